"""Exercises of notebook 07: the learning rate's course, randomness that survives a kill, a batch in chunks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ecgchat_lib.course import Exercise, Misconception, expect_equal

# --- 07.1 --------------------------------------------------------------------------------------------------------


def rate(step: int, steps: int, warmup: int, highest: float) -> float:
    """Reference of 07.1: linear warm-up, then half a cosine."""
    if step < warmup:
        return highest * (step + 1) / warmup
    return highest * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def _verify_rate(answer: Callable[..., float], rng: Any) -> None:
    if answer(0, 100, 10, 1.0) == 0:
        raise Misconception(
            "Your first step has a learning rate of 0, so it does nothing. Steps count from 0: use step + 1."
        )
    expect_equal(answer(0, 100, 10, 1.0), 0.1, "step 0 of a warm-up of 10", tolerance=1e-6)
    expect_equal(answer(9, 100, 10, 1.0), 1.0, "the last step of the warm-up", tolerance=1e-6)
    found = answer(10, 100, 10, 1.0)
    if np.isclose(found, (1 + math.cos(math.pi * 0.1)) / 2):
        raise Misconception("Your cosine runs over all steps, so it jumps down after the warm-up. Let it begin there.")
    expect_equal(found, 1.0, "the first step after the warm-up", tolerance=1e-6)
    middle = answer(55, 100, 10, 1.0)
    if np.isclose(middle, math.cos(math.pi / 4)):
        raise Misconception("That is a quarter of a cosine's turn. Use (1 + cos(π · progress)) / 2, which ends flat.")
    for _ in range(20):
        warmup = int(rng.integers(1, 50))
        steps, highest = warmup + int(rng.integers(1, 200)), float(rng.uniform(1e-4, 1))
        step = int(rng.integers(0, steps + 1))
        expect_equal(
            answer(step, steps, warmup, highest),
            rate(step, steps, warmup, highest),
            f"step {step} of {steps}, warm-up {warmup}",
            tolerance=1e-6,
        )


def _from_zero(step: int, steps: int, warmup: int, highest: float) -> float:
    return highest * step / warmup if step < warmup else rate(step, steps, warmup, highest)


def _over_all_steps(step: int, steps: int, warmup: int, highest: float) -> float:
    if step < warmup:
        return highest * (step + 1) / warmup
    return highest * (1 + math.cos(math.pi * step / steps)) / 2


def _quarter(step: int, steps: int, warmup: int, highest: float) -> float:
    if step < warmup:
        return highest * (step + 1) / warmup
    return highest * math.cos(math.pi / 2 * (step - warmup) / (steps - warmup))


# --- 07.2 --------------------------------------------------------------------------------------------------------


def rows_of_step(seed: int, step: int, records: int, size: int) -> list[int]:
    """Reference of 07.2: rows that depend on seed and step alone."""
    return np.random.default_rng([seed, step]).permutation(records)[:size].tolist()


def _verify_rows(answer: Callable[..., Any], rng: Any) -> None:
    for _ in range(10):
        seed, step, records = (int(n) for n in rng.integers(1, 1000, size=3))
        records += 200
        size = int(rng.integers(40, 60))
        first = _as_list(answer(seed, step, records, size))
        what = f"seed {seed}, step {step}"
        if len(first) != size:
            raise Misconception(f"{what}: expected {size} rows, found {len(first)}.")
        if len(set(first)) < size:
            raise Misconception(
                f"{what}: a row occurs twice. In one batch its report would be a wrong answer to itself."
            )
        if min(first) < 0 or max(first) >= records:
            raise Misconception(f"{what}: rows must lie between 0 and {records - 1}.")
        other = _as_list(answer(seed, step + 1, records, size))
        if other == first and _as_list(answer(seed, step + 2, records, size)) == first:
            raise Misconception(f"{what}: every step draws the same rows. Let the step count too, not the seed alone.")
        np.random.random(3)  # noqa: NPY002  what a kill, or another cell, does to the global generator
        if _as_list(answer(seed, step, records, size)) != first:
            raise Misconception(
                f"{what}: a second call gives other rows, so a resumed run would draw other batches. Make a generator "
                "from seed and step in each call."
            )
        if _as_list(answer(seed + 1, step, records, size)) == first:
            raise Misconception(f"{what}: another seed gives the same rows. Let the seed count too.")
        if _as_list(answer(seed + 1, step - 1, records, size)) == first:
            raise Misconception(
                f"{what}: seed + 1 at the step before gives the same rows: you add the two. Runs with neighboring "
                "seeds would then train on the same batches. Give the generator both numbers: [seed, step]."
            )


def _as_list(rows: Any) -> list[int]:
    if rows is None or rows is Ellipsis:
        raise Misconception("Your function returned nothing; end it with return.")
    return [int(row) for row in rows]


def _global_generator(seed: int, step: int, records: int, size: int) -> list[int]:
    return np.random.permutation(records)[:size].tolist()  # noqa: NPY002


def _seed_only(seed: int, step: int, records: int, size: int) -> list[int]:
    return np.random.default_rng(seed).permutation(records)[:size].tolist()


def _with_repeats(seed: int, step: int, records: int, size: int) -> list[int]:
    return np.random.default_rng([seed, step]).integers(0, records, size).tolist()


def _sum_of_both(seed: int, step: int, records: int, size: int) -> list[int]:
    return np.random.default_rng(seed + step).permutation(records)[:size].tolist()


# --- 07.3 --------------------------------------------------------------------------------------------------------


def cached_gradient(model: Callable[..., Any], weight: Any, inputs: Any, chunk: int, loss: Callable[..., Any]) -> Any:
    """Reference of 07.3: gradients of the embeddings first, then each chunk again."""
    import torch

    with torch.no_grad():
        embeddings: Any = torch.cat([model(weight, rows) for rows in inputs.split(chunk)])
    embeddings.requires_grad_()
    loss(embeddings).backward()
    total = torch.zeros_like(weight)
    for rows, gradient in zip(inputs.split(chunk), embeddings.grad.split(chunk), strict=True):
        total += torch.autograd.grad((model(weight, rows) * gradient).sum(), weight)[0]
    return total


def _compared(embeddings: Any) -> Any:
    """A loss in which each row is compared with every other."""
    import torch

    return torch.nn.functional.cross_entropy(embeddings @ embeddings.T.roll(1, 1), torch.arange(len(embeddings)))


def _verify_cached(answer: Callable[..., Any], rng: Any) -> None:
    import torch

    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    for _ in range(6):
        rows, chunk = int(rng.integers(5, 14)), int(rng.integers(2, 5))
        inputs = torch.randn(rows, 4, generator=generator)
        weight = torch.randn(4, 3, generator=generator).requires_grad_()
        largest = [0]

        def model(weight: Any, part: Any, largest: list[int] = largest) -> Any:
            if torch.is_grad_enabled():
                largest[0] = max(largest[0], len(part))
            return torch.tanh(part @ weight)

        found = answer(model, weight, inputs, chunk, _compared)
        if found is None or found is Ellipsis:
            raise Misconception("Your function returned nothing; end it with return.")
        what = f"{rows} rows, {chunk} at once"
        if largest[0] > chunk:
            raise Misconception(
                f"{what}: {largest[0]} rows went through the model at once with a graph. That is what doesn't fit: "
                "the first pass must run under torch.no_grad()."
            )
        expected = torch.autograd.grad(_compared(torch.tanh(inputs @ weight)), weight)[0]
        parts = [torch.autograd.grad(_compared(torch.tanh(p @ weight)), weight)[0] for p in inputs.split(chunk)]
        added = torch.stack(parts).sum(dim=0)
        for wrong in (added, added / len(parts)):
            if torch.allclose(torch.as_tensor(found), wrong, rtol=1e-4, atol=1e-6):
                raise Misconception(
                    f"{what}: each chunk is compared with itself only. Compute one loss over all embeddings, and send "
                    "its gradients back chunk by chunk."
                )
        if torch.allclose(2 * expected, torch.as_tensor(found), rtol=1e-3, atol=1e-6):
            raise Misconception(f"{what}: twice the gradient. Does something add to weight.grad as well?")
        expect_equal(found, expected, f"the gradient of {what}", tolerance=1e-4)


def _chunks_alone(model: Callable[..., Any], weight: Any, inputs: Any, chunk: int, loss: Callable[..., Any]) -> Any:
    import torch

    parts = inputs.split(chunk)
    return sum(torch.autograd.grad(loss(model(weight, rows)), weight)[0] for rows in parts) / len(parts)


def _whole_at_once(model: Callable[..., Any], weight: Any, inputs: Any, chunk: int, loss: Callable[..., Any]) -> Any:
    import torch

    return torch.autograd.grad(loss(model(weight, inputs)), weight)[0]


def _mean_of_chunks(model: Callable[..., Any], weight: Any, inputs: Any, chunk: int, loss: Callable[..., Any]) -> Any:
    return cached_gradient(model, weight, inputs, chunk, loss) / len(inputs.split(chunk))


EXERCISES = (
    Exercise(
        id="07.1",
        title="The learning rate's course",
        difficulty=1,
        minutes=10,
        verify=_verify_rate,
        reference=rate,
        wrong=(
            ("starts at 0", _from_zero),
            ("lets the cosine run over all steps", _over_all_steps),
            ("takes a quarter of a turn", _quarter),
        ),
    ),
    Exercise(
        id="07.2",
        title="Randomness that survives a kill",
        difficulty=2,
        minutes=15,
        verify=_verify_rows,
        reference=rows_of_step,
        wrong=(
            ("draws from the global generator", _global_generator),
            ("uses the seed alone", _seed_only),
            ("draws with replacement", _with_repeats),
            ("adds seed and step", _sum_of_both),
        ),
    ),
    Exercise(
        id="07.3",
        title="A large batch in small chunks",
        difficulty=3,
        minutes=25,
        verify=_verify_cached,
        reference=cached_gradient,
        wrong=(
            ("compares each chunk with itself", _chunks_alone),
            ("lets the whole batch through at once", _whole_at_once),
            ("takes the mean of the chunks' gradients", _mean_of_chunks),
        ),
    ),
)
