"""What a training will take, before it takes it: parameters, time and memory, from one small step on this machine.

A few records go through the model once, forward and backward; their time and the tensors kept for the backward pass are
scaled to the batch. So it is an estimate, good enough to choose a chunk. Taught in: 07 §9.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from ecgchat_lib.coca.model import EcgCoca, count_parameters
from ecgchat_lib.coca.pairs import PairedEcgs
from ecgchat_lib.coca.step import Precision, batch_losses
from ecgchat_lib.coca.train import TrainConfig, step_randomness
from ecgchat_lib.coca.workers import Workers
from ecgchat_lib.errors import EcgChatError

SAMPLE = 8  # most records that are measured
COPIES = 4  # weights, gradients, and AdamW's two memories; the moving average is a fifth


@dataclass(frozen=True)
class TrainPlan:
    """An estimate for one process.

    Attributes:
        parameters: of the model.
        steps: optimizer steps.
        batch: pairs per step, over all processes.
        chunk: pairs that go through the model at once, in each process.
        processes: how many train together.
        seconds: for all steps, without the validations.
        state_bytes: weights, gradients, the optimizer's memories and the moving average.
        activation_bytes: what a chunk keeps for its backward pass.
        free_bytes: free memory of the device now.
        device: where it will run.
    """

    parameters: int
    steps: int
    batch: int
    chunk: int
    processes: int
    seconds: float
    state_bytes: int
    activation_bytes: int
    free_bytes: int
    device: str

    @property
    def bytes(self) -> int:
        """Memory in all."""
        return self.state_bytes + self.activation_bytes

    def lines(self) -> list[str]:
        """Return the plan for people."""
        minutes = self.seconds / 60
        time_text = f"{self.seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else ""
        return [
            f"model     {self.parameters:,} parameters",
            f"steps     {self.steps:,} of {self.batch} pairs; processes: {self.processes}, pairs at once: {self.chunk}",
            f"time      about {time_text or f'{minutes / 60:.1f} h'} on {self.device}",
            f"memory    about {_megabytes(self.bytes)}: {_megabytes(self.state_bytes)} for the weights and what AdamW "
            f"remembers, {_megabytes(self.activation_bytes)} for a chunk; {_megabytes(self.free_bytes)} are free",
        ]

    def check(self) -> None:
        """Check that it fits.

        Raises:
            EcgChatError: it doesn't, with what would help.
        """
        if self.bytes <= self.free_bytes:
            return
        room = self.free_bytes - self.state_bytes
        fits = int(self.chunk * room / max(1, self.activation_bytes))
        remedy = f"--chunk {fits} would fit" if fits > 0 else "Choose a smaller profile or a larger machine"
        raise EcgChatError(
            f"the training needs about {_megabytes(self.bytes)} of memory on {self.device}, "
            f"{_megabytes(self.free_bytes)} are free. {remedy}."
        )


def plan_training(model: EcgCoca, pairs: PairedEcgs, config: TrainConfig, workers: Workers) -> TrainPlan:
    """Measure a small step and scale it; the model's weights and the random state stay as they are.

    Args:
        model: moved to the process's device.
        pairs: the training set.
        config: the settings.
        workers: this process and the others.
    """
    own = len(workers.rows(config.batch))
    chunk = min(config.chunk or own, own)
    n = min(chunk, SAMPLE, len(pairs))
    model.to(workers.device).train()
    seconds, kept = _small_step(model, pairs, config, workers, n)
    passes = 4 / 3 if chunk < own else 1.0  # a second forward pass, when a forward and backward pass take three thirds
    copies = COPIES + (config.average > 0)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return TrainPlan(
        parameters=count_parameters(model),
        steps=config.steps,
        batch=config.batch,
        chunk=chunk,
        processes=workers.count,
        seconds=seconds / n * own * passes * config.steps,
        state_bytes=copies * weights,
        activation_bytes=round(kept / n * chunk),
        free_bytes=_free_memory(workers.device),
        device=str(workers.device),
    )


def _small_step(model: EcgCoca, pairs: PairedEcgs, config: TrainConfig, workers: Workers, n: int) -> tuple[float, int]:
    """Return the seconds that n records take, and the bytes they keep for the backward pass."""
    precision = Precision(config.precision, workers.device)
    for transformer in (model.encoder.transformer, model.decoder.transformer):
        transformer.grad_checkpointing = config.checkpoint_blocks
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    for _ in range(2):  # the first one warms up
        kept.clear()
        with step_randomness(config.seed, 0) as generator:
            batch = pairs.draw(n, generator).to(workers.device)
            start = _now(workers.device)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = batch_losses(model, batch, config.objective, precision)["loss"]
        loss.backward()
        seconds = _now(workers.device) - start
        model.zero_grad(set_to_none=True)
    return seconds, sum(kept.values())


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    memory: Any = psutil.virtual_memory()
    return int(memory.available)


def _megabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
