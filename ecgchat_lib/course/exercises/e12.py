"""Exercises of notebook 12: quantize a block to four bits, add a low-rank adapter, and count what must be held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ecgchat_lib.course import Exercise, Misconception, expect_equal

# --- 12.1 --------------------------------------------------------------------------------------------------------


def quantize(block: Any, levels: Any) -> tuple[Any, float]:
    """Reference of 12.1: code of each weight (0–15) and the block's scale."""
    import numpy as np

    scale = float(np.abs(block).max())
    return np.abs(block[:, None] / scale - levels).argmin(1), scale


def _verify_quantize(answer: Callable[..., tuple[Any, float]], rng: Any) -> None:
    import numpy as np

    for _ in range(10):
        inner = np.sort(rng.uniform(-1, 1, size=14))
        levels = np.array([-1.0, *inner, 1.0])
        block = rng.normal(0, rng.uniform(0.01, 5), size=64)
        block[int(rng.integers(64))] = -np.abs(block).max() * 1.1  # the largest weight is negative
        found = answer(block.copy(), levels.copy())
        if not (isinstance(found, tuple) and len(found) == 2):
            raise Misconception("Return two things: the codes and the scale.")
        codes, scale = quantize(block, levels)
        if np.allclose(float(found[1]), block.max()):
            raise Misconception("The scale is the largest weight, but the largest *size* counts: -3 is larger than 2.")
        expect_equal(float(found[1]), scale, "the scale of a block", "It is the largest absolute value.")
        got = np.asarray(found[0])
        even = np.clip(np.round((block / scale + 1) * 7.5), 0, 15)
        if got.shape == codes.shape and np.array_equal(got, even) and not np.array_equal(codes, even):
            raise Misconception("You round to 16 even steps. The levels aren't even; look for the nearest of them.")
        if got.shape == codes.shape and np.array_equal(got, np.abs(block[:, None] - levels).argmin(1)):
            raise Misconception("You look for the nearest level before dividing by the scale; levels go from -1 to 1.")
        expect_equal(got, codes, "the codes of a block", "A code is the number of the nearest level.")


def _largest_value(block: Any, levels: Any) -> tuple[Any, float]:
    import numpy as np

    scale = float(block.max())
    return np.abs(block[:, None] / scale - levels).argmin(1), scale


def _even_steps(block: Any, levels: Any) -> tuple[Any, float]:
    import numpy as np

    scale = float(np.abs(block).max())
    return np.clip(np.round((block / scale + 1) * 7.5), 0, 15).astype(int), scale


def _not_scaled(block: Any, levels: Any) -> tuple[Any, float]:
    import numpy as np

    return np.abs(block[:, None] - levels).argmin(1), float(np.abs(block).max())


# --- 12.2 --------------------------------------------------------------------------------------------------------


def lora(x: Any, weight: Any, a: Any, b: Any, alpha: float) -> Any:
    """Reference of 12.2: (batch, in) → (batch, out) through a frozen weight and its adapter."""
    return x @ weight.T + (alpha / len(a)) * (x @ a.T @ b.T)


def _verify_lora(answer: Callable[..., Any], rng: Any) -> None:
    import torch

    for _ in range(10):
        batch, inward, outward, rank = (int(n) for n in rng.integers(2, 8, size=4))
        alpha = float(2 * rank + rng.integers(1, 9))
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 30)))
        sizes = ((batch, inward), (outward, inward), (rank, inward), (outward, rank))
        x, weight, a, b = (torch.randn(*size, generator=generator) for size in sizes)
        found, expected = answer(x, weight, a, b, alpha), lora(x, weight, a, b, alpha)
        what = f"x {tuple(x.shape)}, weight {tuple(weight.shape)}, rank {rank}"
        close = isinstance(found, torch.Tensor) and found.shape == expected.shape
        if close and torch.allclose(found, x @ weight.T + x @ a.T @ b.T, atol=1e-4):
            raise Misconception(f"{what}: the scale alpha / rank is missing.")
        if close and torch.allclose(found, x @ weight.T + alpha * (x @ a.T @ b.T), atol=1e-4):
            raise Misconception(f"{what}: the scale is alpha / rank, not alpha; so the rank can change alone.")
        if close and torch.allclose(found, expected - x @ weight.T, atol=1e-4):
            raise Misconception(f"{what}: that is the adapter alone. It is added to what the frozen weight gives.")
        expect_equal(found, expected, what, "A maps to rank numbers, B maps them to the output.", tolerance=1e-4)


def _no_scale(x: Any, weight: Any, a: Any, b: Any, alpha: float) -> Any:
    return x @ weight.T + x @ a.T @ b.T


def _alpha_alone(x: Any, weight: Any, a: Any, b: Any, alpha: float) -> Any:
    return x @ weight.T + alpha * (x @ a.T @ b.T)


def _adapter_alone(x: Any, weight: Any, a: Any, b: Any, alpha: float) -> Any:
    return (alpha / len(a)) * (x @ a.T @ b.T)


# --- 12.3 --------------------------------------------------------------------------------------------------------

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)


def held(layers: Any, others: int, rank: int) -> float:
    """Reference of 12.3: bytes of frozen weights, adapters, their gradients and AdamW's moments."""
    frozen = sum(inward * outward for inward, outward in layers) * NF4_BITS / 8 + 2 * others
    return frozen + 16 * _adapter_numbers(layers, rank)


def _adapter_numbers(layers: Any, rank: int) -> int:
    return rank * sum(inward + outward for inward, outward in layers)


def _verify_held(answer: Callable[..., float], rng: Any) -> None:
    typical = (
        (_four_bits, "The scales are missing: an NF4 weight takes 4 + 8/64 + 32/(64 · 256) bits."),
        (_no_moments, "AdamW's two moments per adapter number are missing, 8 bytes each number."),
        (_no_gradients, "The adapters' gradients are missing: 4 bytes per number."),
        (_as_large_as_the_layer, "An adapter has rank · (in + out) numbers; it isn't as large as its layer."),
        (_bits_for_bytes, "That counts bits. Eight bits are a byte."),
    )
    for _ in range(10):
        layers = [(int(i), int(o)) for i, o in rng.integers(64, 4096, size=(int(rng.integers(1, 9)), 2))]
        others, rank = int(rng.integers(1000, 1_000_000)), int(rng.integers(2, 65))
        found, expected = answer(list(layers), others, rank), held(layers, others, rank)
        for wrong, why in typical:
            if isinstance(found, int | float) and abs(found - wrong(layers, others, rank)) < 1e-6 * expected:
                raise Misconception(why)
        what = f"{len(layers)} layers, {others} other weights, rank {rank}"
        hint = "NF4 for layers, 2 bytes for others, 16 bytes per adapter number."
        expect_equal(found, expected, what, hint, tolerance=1e-6 * expected)


def _four_bits(layers: Any, others: int, rank: int) -> float:
    return sum(i * o for i, o in layers) / 2 + 2 * others + 16 * _adapter_numbers(layers, rank)


def _no_moments(layers: Any, others: int, rank: int) -> float:
    return held(layers, others, rank) - 8 * _adapter_numbers(layers, rank)


def _no_gradients(layers: Any, others: int, rank: int) -> float:
    return held(layers, others, rank) - 4 * _adapter_numbers(layers, rank)


def _as_large_as_the_layer(layers: Any, others: int, rank: int) -> float:
    return held(layers, others, 0) + 16 * rank * sum(i * o for i, o in layers)


def _bits_for_bytes(layers: Any, others: int, rank: int) -> float:
    return sum(i * o for i, o in layers) * NF4_BITS + 2 * others + 16 * _adapter_numbers(layers, rank)


EXERCISES = (
    Exercise(
        id="12.1",
        title="a block of weights in four bits",
        difficulty=2,
        minutes=10,
        verify=_verify_quantize,
        reference=quantize,
        wrong=(
            ("the largest value instead of the largest size", _largest_value),
            ("sixteen even steps", _even_steps),
            ("the block isn't scaled", _not_scaled),
        ),
    ),
    Exercise(
        id="12.2",
        title="a low-rank adapter",
        difficulty=2,
        minutes=10,
        verify=_verify_lora,
        reference=lora,
        wrong=(
            ("the scale is left out", _no_scale),
            ("alpha isn't divided by the rank", _alpha_alone),
            ("the frozen weight is left out", _adapter_alone),
        ),
    ),
    Exercise(
        id="12.3",
        title="what must be held",
        difficulty=2,
        minutes=10,
        verify=_verify_held,
        reference=held,
        wrong=(
            ("the scales of NF4 are left out", _four_bits),
            ("AdamW's moments are left out", _no_moments),
            ("the gradients are left out", _no_gradients),
            ("an adapter as large as its layer", _as_large_as_the_layer),
            ("bits for bytes", _bits_for_bytes),
        ),
    ),
)
