"""What the tests of the training loop start as a process of its own: `python train_process.py MODE FOLDER`.

`whole` trains from where the folder's state is to the end. `slow` does the same, but tells each step on standard output
and sleeps in the middle of step 5, so that it can be killed there. `together` is one of several processes that compute
one step's gradients and then a training; it writes what it found to `FOLDER/RANK.pt`.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from tiny_coca import CONFIG_SMALL, EVERYTHING, model_and_pairs, noisy, weights

from ecgchat_lib.coca.step import Precision, batch_gradients
from ecgchat_lib.coca.train import step_randomness, train_coca
from ecgchat_lib.coca.workers import Workers, join_workers, leave_workers

CONFIG = replace(CONFIG_SMALL, batch=8, objective=EVERYTHING)


def one_step(workers: Workers, chunk: int) -> dict[str, dict[str, torch.Tensor]]:
    """Return the losses and gradients of one batch."""
    model, pairs = model_and_pairs(dropout=0.4, rich=True)
    model.train()
    with step_randomness(7, 3) as generator:
        batch = noisy(pairs.draw(8, generator), generator)
        precision = Precision("no", workers.device)
        losses = batch_gradients(model, batch, EVERYTHING, chunk=chunk, workers=workers, precision=precision)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"losses": {name: value.detach() for name, value in losses.items()}, "gradients": gradients}


def together(folder: Path) -> None:
    workers = join_workers()
    found = {f"step {chunk}": one_step(workers, chunk) for chunk in (0, 3)}
    model, pairs = model_and_pairs(dropout=0.4, rich=True)
    values = []
    train_coca(model, pairs, CONFIG, folder=folder / "run", augment=noisy, validate=lambda m: values.append(1) or 1.0)
    found["trained"] = {"weights": weights(model), "validations": torch.tensor(len(values))}
    torch.save(found, folder / f"{workers.index}.pt")
    leave_workers()


def alone(folder: Path, slow: bool) -> None:
    model, pairs = model_and_pairs(dropout=0.4, rich=True)
    calls = []

    def told(batch, generator):
        calls.append(1)
        print("in step", len(calls), flush=True)
        if slow and len(calls) == 5:
            time.sleep(600)
        return noisy(batch, generator)

    torch.rand(int(slow) + 3)
    train_coca(model, pairs, CONFIG, folder=folder, augment=told, validate=lambda m: 0.5, tensorboard=True)


if __name__ == "__main__":
    mode, place = sys.argv[1], Path(sys.argv[2])
    if mode == "together":
        together(place)
    else:
        alone(place, mode == "slow")
