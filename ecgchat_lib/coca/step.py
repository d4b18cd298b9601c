"""The gradients of one batch: the plain way, and in chunks or over several processes with the same result.

The losses of a record for itself can be added up chunk by chunk. The contrastive loss can't: each ECG is compared with
every report of the batch. So the embeddings of all chunks are computed first, without a graph; the loss over all of
them gives a gradient for each embedding; then each chunk runs again, with a graph, and is given its embeddings'
gradients (Gao et al. 2021, GradCache, arXiv 2101.06983). Memory is that of one chunk, the price is a second forward
pass. Between processes nothing but embeddings and gradients is exchanged. Taught in: 07 §5, §6 and §8.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch.overrides import TorchFunctionMode

from ecgchat_lib.coca.model import EcgCoca
from ecgchat_lib.coca.objective import LocalLosses, Objective
from ecgchat_lib.coca.pairs import Batch
from ecgchat_lib.coca.text import PAD_ID
from ecgchat_lib.coca.workers import Workers

PrecisionName = Literal["no", "bf16", "fp16"]
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Automatic mixed precision: half precision where it is safe, and a scaler where its range is too small.

    bf16 has the range of float32 and needs no scaler. fp16's smallest number is 6e-8, so small gradients would become
    0: the loss is multiplied by a large number before the backward pass, and the gradients divided by it before the
    step. A step whose gradients overflow is left out, and the number halved.

    Args:
        name: "no", "bf16" or "fp16".
        device: where the model is.
    """

    def __init__(self, name: PrecisionName, device: torch.device) -> None:
        self.device, self.dtype = device, HALVES.get(name)
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context for the forward pass."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)


def batch_losses(
    model: EcgCoca, batch: Batch, objective: Objective, precision: Precision | None = None
) -> dict[str, torch.Tensor]:
    """Run the model on a batch; return its losses by name, and their weighted sum as "loss"."""
    with (precision or Precision("no", batch.ecg.device)).autocast():
        local = objective.local(model, batch)
    contrastive = objective.together(local.ecg.float(), local.text.float(), model.logit_scale.exp(), batch.keys)
    return {"loss": objective.total(contrastive, local.parts), "contrastive": contrastive, **local.parts}


def batch_gradients(
    model: EcgCoca, batch: Batch, objective: Objective, *, chunk: int, workers: Workers, precision: Precision
) -> dict[str, torch.Tensor]:
    """Put the gradients of a batch's loss into the parameters, and return the losses by name.

    Args:
        model: with no gradients yet.
        batch: the whole batch, the same in every process.
        objective: the losses.
        chunk: most records that go through the model at once, in each process; 0 for all.
        workers: the processes among which the batch is split.
        precision: mixed or not.
    """
    if workers.count == 1 and not 0 < chunk < len(batch.keys):
        losses = batch_losses(model, batch.to(workers.device), objective, precision)
        precision.scaler.scale(losses["loss"]).backward()
        return losses
    losses = cached_gradients(model, batch, objective, chunk=chunk, workers=workers, precision=precision)
    if workers.count > 1:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad = workers.sum(parameter.grad)
    return losses


def cached_gradients(
    model: EcgCoca, batch: Batch, objective: Objective, *, chunk: int, workers: Workers, precision: Precision
) -> dict[str, torch.Tensor]:
    """Put this process's share of the gradients into the parameters, chunk by chunk; the losses are the batch's."""
    own, size = workers.rows(len(batch.keys)), len(batch.keys)
    chunks = [own[start : start + (chunk or size)] for start in range(0, len(own), chunk or size)]
    noise = torch.get_rng_state()

    def run(rows: range) -> LocalLosses:
        torch.set_rng_state(noise)
        with precision.autocast(), RowsOfNoise(rows, size):
            return objective.local(model, batch.rows(rows.start, rows.stop).to(workers.device))

    with torch.set_grad_enabled(len(chunks) == 1):  # a single chunk needs no second pass
        first = [run(rows) for rows in chunks]
    ecg = workers.gather(torch.cat([local.ecg for local in first]).float()).requires_grad_()
    text = workers.gather(torch.cat([local.text for local in first]).float()).requires_grad_()
    contrastive = objective.together(ecg, text, model.logit_scale.exp(), batch.keys)
    precision.scaler.scale(objective.contrastive * contrastive).backward()
    if workers.index and model.logit_scale.grad is not None:
        model.logit_scale.grad.zero_()  # all processes found the same one: it counts once
    assert ecg.grad is not None
    assert text.grad is not None
    if len(chunks) > 1:
        first.clear()  # frees what the first pass kept

    sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=workers.device))
    whole = terms(batch)
    for rows in chunks:
        local, part = first[0] if first else run(rows), slice(rows.start, rows.stop)
        share = terms(batch.rows(rows.start, rows.stop))
        losses = {name: value * (share[name] / max(1, whole[name])) for name, value in local.parts.items()}
        loss = precision.scaler.scale(objective.total(torch.zeros_like(contrastive), losses))
        loss = loss + (local.ecg * ecg.grad[part]).sum() + (local.text * text.grad[part]).sum()
        loss.backward()
        for name, value in losses.items():
            sums[name] = sums[name] + value.detach()
    parts = {name: workers.sum(value) for name, value in sums.items()}
    contrastive = contrastive.detach()
    return {"loss": objective.total(contrastive, parts), "contrastive": contrastive, **parts}


def terms(batch: Batch) -> dict[str, int]:
    """Return how many terms each of `Objective.local`'s means has over a batch: pieces, known numbers, records."""
    return {
        "caption": int((batch.pieces[:, 1:] != PAD_ID).sum()),
        "numbers": int((~torch.isnan(batch.text.numbers)).sum()),
        "statements": len(batch.keys),
    }


class RowsOfNoise(TorchFunctionMode):
    """While a chunk runs, draw random numbers for the whole batch, and hand out the chunk's rows of them.

    So patch dropout drops the same patches of a record whether its batch runs whole, in chunks or on several processes.

    Args:
        rows: the chunk's rows of the batch.
        size: records in the batch.
    """

    def __init__(self, rows: range, size: int) -> None:
        super().__init__()
        self.rows, self.size = rows, size

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Widen `torch.rand` and `torch.randn` from the chunk's number of rows to the batch's; leave all else alone."""
        if func in (torch.rand, torch.randn) and args and args[0] == len(self.rows):
            return func(self.size, *args[1:], **(kwargs or {}))[self.rows.start : self.rows.stop]
        return func(*args, **(kwargs or {}))
