"""Training ECG-CoCa: a plain loop with AdamW, warm-up and cosine, gradient clipping, seeds, and a resume that is exact.

Everything random in step k comes from the seed and k alone, so a run that was killed and one that was not end in the
same weights, bit by bit on the same machine. How a batch's gradients are computed (whole, in chunks, on several
processes, in half precision) stands in `step.py`. Taught in: 07 §2–8.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from ecgchat_lib.coca.checkpoint import save_coca
from ecgchat_lib.coca.curves import Curves
from ecgchat_lib.coca.model import EcgCoca
from ecgchat_lib.coca.objective import Objective
from ecgchat_lib.coca.pairs import Batch, PairedEcgs
from ecgchat_lib.coca.step import Precision, PrecisionName, batch_gradients
from ecgchat_lib.coca.workers import Workers, join_workers
from ecgchat_lib.errors import EcgChatError, ParameterError

STATE = "state.safetensors"
Augmentation = Callable[[Batch, torch.Generator], Batch]


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are the original's but for the sizes (steps, batch, warm-up).

    Attributes:
        steps: optimizer steps in all; the cosine ends there.
        batch: pairs per step, over all processes.
        chunk: most pairs that go through the model at once, in each process; 0 for all. The result is the same, the
            memory smaller (`step.cached_gradients`).
        precision: "no" for float32; "bf16", or "fp16" with a scaler.
        checkpoint_blocks: forget what happens inside a transformer block and compute it again when it is needed
            (gradient checkpointing): less memory, a third more time, the same gradients.
        learning_rate: the highest, at the end of the warm-up.
        weight_decay: on weight matrices only.
        betas: AdamW's two decays.
        epsilon: AdamW's floor.
        fused: AdamW in one pass over each tensor: much faster for large models, rounded a little differently.
        warmup: steps of linear warm-up.
        clip: largest norm of the gradient.
        objective: the losses and their weights.
        average: decay per step of the moving average of the weights that is validated and kept; 0 for none.
        seed: of every random draw.
        evaluate_every: steps between validations.
        save_every: steps between saved states.
    """

    steps: int = 1000
    batch: int = 64
    chunk: int = 0
    precision: PrecisionName = "no"
    checkpoint_blocks: bool = False
    learning_rate: float = 1e-4
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = 1e-6
    fused: bool = False
    warmup: int = 100
    clip: float = 0.5
    objective: Objective = field(default_factory=Objective)
    average: float = 0.0
    seed: int = 7
    evaluate_every: int = 100
    save_every: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 2 or not 0 <= self.average < 1:
            raise ParameterError(
                f"steps={self.steps} must be at least 1, batch={self.batch} at least 2 (a contrastive loss needs "
                f"another report to compare with), average={self.average} in [0, 1)"
            )
        if self.chunk < 0 or self.precision not in ("no", "bf16", "fp16"):
            raise ParameterError(
                f"chunk={self.chunk} must be 0 (the whole batch) or more, precision={self.precision!r} no, bf16 or fp16"
            )


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the learning rate of a step (from 0): linear warm-up, then half a cosine down to 0."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices only: none on biases, norms and the temperature."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    rate, betas, epsilon = config.learning_rate, config.betas, config.epsilon
    return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=epsilon, fused=config.fused)


@contextmanager
def step_randomness(seed: int, step: int) -> Iterator[torch.Generator]:
    """Give one step its own randomness: a generator for the data, and torch's global state for patch dropout."""
    number = (seed * 1_000_003 + step) % 2**63
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        yield torch.Generator().manual_seed(number)


@dataclass
class TrainState:
    """All that a resume needs: model, optimizer, moving average, fp16's scaler, the next step, the history so far."""

    model: EcgCoca
    optimizer: torch.optim.AdamW
    average: dict[str, torch.Tensor]
    precision: Precision
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)

    def _optimizer_tensors(self) -> dict[str, torch.Tensor]:
        names = {id(p): name for name, p in self.model.named_parameters()}
        return {
            f"optimizer.{key}.{names[id(p)]}": value
            for p, values in self.optimizer.state.items()
            for key, value in values.items()
        }

    def save(self, path: Path, config: TrainConfig) -> None:
        """Write the state to one safetensors file, in one step (a kill leaves the old one)."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()} | self._optimizer_tensors()
        about = {"step": self.step, "history": self.history, "best": self.best, "config": _plain(config)}
        about["scaler"] = self.precision.scaler.state_dict()
        temporary = path.with_name(path.name + ".part")
        save_file({k: v.detach().clone() for k, v in tensors.items()}, temporary, {"state": json.dumps(about)})
        os.replace(temporary, path)

    def load(self, path: Path, config: TrainConfig) -> None:
        """Read the state back.

        Raises:
            EcgChatError: the file is damaged, or it belongs to a run with other settings or another model.
        """
        try:
            with safe_open(path, "pt") as file:
                about = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            before = {**_plain(TrainConfig()), **about["config"]}  # a field that the file lacks had its default then
        except Exception as error:
            raise EcgChatError(f"{path}: not a readable training state ({error}). Delete it to start over.") from error
        changed = [name for name, value in before.items() if value != _plain(config).get(name)]
        if changed:
            raise EcgChatError(
                f"{path}: this run was started with other settings ({', '.join(changed)}). "
                "Use the same settings to resume it, or another folder to start a new run."
            )
        self.step, self.history, self.best = about["step"], about["history"], about["best"]
        if about.get("scaler"):
            self.precision.scaler.load_state_dict(about["scaler"])
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, rest = name.split(".", 1)
            parts[part][rest] = tensor
        try:
            self.model.load_state_dict(parts["model"])
        except RuntimeError as error:
            raise EcgChatError(
                f"{path}: this run trains a model of other sizes. Build the same model to resume it, or use another "
                f"folder. ({str(error).splitlines()[-1].strip()})"
            ) from error
        device = self.precision.device
        self.average = {name: tensor.to(device) for name, tensor in parts["average"].items()}
        parameters = dict(self.model.named_parameters())
        for key, tensor in parts["optimizer"].items():
            what, name = key.split(".", 1)  # "exp_avg.encoder.conv1.weight"
            self.optimizer.state[parameters[name]][what] = tensor if what == "step" else tensor.to(device)


def _plain(config: TrainConfig) -> dict[str, Any]:
    """Return the config as JSON gives it back (tuples become lists)."""
    return json.loads(json.dumps(asdict(config)))


class TrainResult(NamedTuple):
    """The run's history (one dict per step), the step and value of the best validation (NaN without one)."""

    history: list[dict[str, float]]
    best_step: int
    best_value: float


def train_coca(
    model: EcgCoca,
    pairs: PairedEcgs,
    config: TrainConfig,
    *,
    folder: Path | None = None,
    augment: Augmentation | None = None,
    validate: Callable[[EcgCoca], float] | None = None,
    until: int | None = None,
    tensorboard: bool = False,
) -> TrainResult:
    """Train a model in place on pairs of ECG and report.

    With a folder, the state is saved there every `save_every` steps and a later call with the same settings goes on
    from it; the curve grows in `folder/curve.jsonl`; the weights with the highest validation value are kept in
    `folder/best`. Started in several processes (torchrun), they train together: the same batches, the same
    result up to rounding. The model is moved to the GPU, where there is one, and stays there.

    Args:
        model: trained in place; built alike in every process.
        pairs: the training set, the same in every process.
        config: the settings.
        folder: where the state is kept; None to keep nothing.
        augment: called on each batch, with the step's generator.
        validate: called every `evaluate_every` steps and at the end with the (averaged) model; higher is better. With
            several processes, the first alone calls it.
        until: stop after this many steps in all, as a kill would; None for `config.steps`.
        tensorboard: with a folder, write TensorBoard's files into `folder/tensorboard` too.

    Raises:
        EcgChatError: the loss is not a number any more, or the folder holds another run's state.
        ParameterError: the processes can't split the batch evenly.
    """
    workers = join_workers()
    workers.rows(config.batch)  # an error before anything is written
    state = _open_state(model.to(workers.device), config, folder, workers)
    main = workers.index == 0
    curves = Curves(folder, state.history, tensorboard=tensorboard) if folder and main else None
    last = min(config.steps, config.steps if until is None else until)
    bar = tqdm(total=config.steps, initial=state.step, desc="train", unit="step", disable=None if main else True)
    while state.step < last:
        losses = _train_step(state, pairs, config, augment, workers)
        state.history.append(losses)
        state.step += 1
        bar.update()
        bar.set_postfix(loss=f"{losses['loss']:.3f}")
        if validate and main and (state.step % config.evaluate_every == 0 or state.step == config.steps):
            _validate(state, validate, folder)
        if curves:
            curves.add(state.step, state.history[-1])
        if folder and main and (state.step % config.save_every == 0 or state.step == last):
            state.save(folder / STATE, config)
    bar.close()
    if curves:
        curves.close()
    workers.wait()
    return TrainResult(state.history, int(state.best.get("step", 0)), state.best.get("value", math.nan))


def _open_state(model: EcgCoca, config: TrainConfig, folder: Path | None, workers: Workers) -> TrainState:
    for transformer in (model.encoder.transformer, model.decoder.transformer):
        transformer.grad_checkpointing = config.checkpoint_blocks
    average = {k: v.detach().clone() for k, v in model.state_dict().items()} if config.average else {}
    precision = Precision(config.precision, workers.device)
    state = TrainState(model, build_optimizer(model, config), average, precision)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / STATE).is_file():
            state.load(folder / STATE, config)
    workers.check_same(state.step, model)
    return state


def _train_step(
    state: TrainState, pairs: PairedEcgs, config: TrainConfig, augment: Augmentation | None, workers: Workers
) -> dict[str, float]:
    """Take one optimizer step; return its losses, learning rate and temperature."""
    model, scaler = state.model, state.precision.scaler
    rate = learning_rate(state.step, config)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    model.train()
    state.optimizer.zero_grad(set_to_none=True)
    with step_randomness(config.seed, state.step) as generator:
        batch = pairs.draw(config.batch, generator)
        if augment is not None:
            batch = augment(batch, generator)
        losses = batch_gradients(
            model, batch, config.objective, chunk=config.chunk, workers=workers, precision=state.precision
        )
    if not torch.isfinite(losses["loss"]):
        raise EcgChatError(
            f"step {state.step}: the loss is {losses['loss'].item()}. Lower learning_rate or raise warmup."
        )
    scaler.unscale_(state.optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    scaler.step(state.optimizer)
    scaler.update()
    model.clamp_temperature()
    if state.average:
        decay = min(config.average, (state.step + 1) / (state.step + 10))  # short memory at the start
        for name, value in model.state_dict().items():
            state.average[name].lerp_(value, 1 - decay)
    return {
        **{name: loss.item() for name, loss in losses.items()},
        "learning_rate": rate,
        "scale": model.logit_scale.exp().item(),
    } | ({"loss_scale": scaler.get_scale()} if scaler.is_enabled() else {})


@contextmanager
def averaged_weights(state: TrainState) -> Iterator[EcgCoca]:
    """Lend the model with its averaged weights, in evaluation mode, and put the trained ones back."""
    trained = {k: v.detach().clone() for k, v in state.model.state_dict().items()}
    if state.average:
        state.model.load_state_dict(state.average)
    state.model.eval()
    try:
        yield state.model
    finally:
        state.model.load_state_dict(trained)


def _validate(state: TrainState, validate: Callable[[EcgCoca], float], folder: Path | None) -> None:
    """Validate the averaged weights, note the value, and keep the best."""
    with averaged_weights(state) as model:
        value = float(validate(model))
        state.history[-1]["validation"] = value
        if value > state.best.get("value", -math.inf):
            state.best = {"step": state.step, "value": value}
            if folder and model.tokenizer is not None:
                save_coca(model, folder / "best", about={"step": state.step, "validation": value})
