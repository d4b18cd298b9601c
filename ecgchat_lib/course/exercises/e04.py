"""Exercises of notebook 04: wander at the electrodes, and a mask on a batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ecgchat_lib.course import Exercise, Misconception, expect_equal

# torch is imported inside the functions, so that reading the list of exercises stays fast.


def _given(value: Any) -> Any:
    if value is None or value is Ellipsis:
        raise Misconception("Your function returned nothing; end it with return.")
    return value


def _unchanged(before: Any, ecg: Any) -> None:
    if not bool((before == ecg).all()):
        raise Misconception(
            "The ecg you were given was changed. Return a new tensor: the next epoch needs the original."
        )


# --- 04.1 --------------------------------------------------------------------------------------------------------


def add_wander(ecg: Any, fs: float, frequency: float, size: Any) -> Any:
    """Reference of 04.1: a cosine at nine electrodes, projected to twelve leads."""
    import torch

    from ecgchat_lib.augment import electrode_matrix

    time = torch.arange(ecg.shape[-1]) / fs
    potentials = size[:, :, None] * torch.cos(2 * math.pi * frequency * time)  # (batch, 9, time)
    return ecg + torch.einsum("le,bet->blt", electrode_matrix(), potentials)


def _verify_wander(answer: Callable[..., Any], rng: Any) -> None:
    import torch

    for _ in range(6):
        batch, total, fs = int(rng.integers(1, 5)), int(rng.integers(200, 900)), float(rng.choice([100, 250, 500]))
        generator = torch.Generator().manual_seed(int(rng.integers(10**6)))
        ecg = torch.randn(batch, 12, total, generator=generator)
        size = torch.rand(batch, 9, generator=generator)
        frequency = float(rng.uniform(0.2, 2.0))
        before = ecg.clone()
        found = _given(answer(ecg, fs, frequency, size))
        _unchanged(before, ecg)
        expected = add_wander(ecg, fs, frequency, size)
        if tuple(found.shape) != tuple(expected.shape):
            raise Misconception(
                f"Expected shape {tuple(expected.shape)}, found {tuple(found.shape)}: 9 electrodes become 12 leads."
            )
        drift = found - ecg
        if (drift[:, 0] + drift[:, 2] - drift[:, 1]).abs().max() > 1e-3:
            raise Misconception(
                "I + III = II no longer holds: project the electrodes with electrode_matrix() to the leads."
            )
        if torch.allclose(found, add_wander(ecg, 1.0, frequency, size), atol=1e-3):
            raise Misconception("The cosine runs over sample numbers. Divide by fs to get seconds: frequency is in Hz.")
        expect_equal(found, expected, f"wander of {frequency:.2f} Hz at {fs:g} Hz sampling", tolerance=1e-4)


def _wander_in_samples(ecg: Any, fs: float, frequency: float, size: Any) -> Any:
    return add_wander(ecg, 1.0, frequency, size)


def _wander_per_lead(ecg: Any, fs: float, frequency: float, size: Any) -> Any:
    import torch

    time = torch.arange(ecg.shape[-1]) / fs
    twelve = torch.cat([size, size[:, :3]], dim=1)
    return ecg + twelve[:, :, None] * torch.cos(2 * math.pi * frequency * time)


def _wander_in_place(ecg: Any, fs: float, frequency: float, size: Any) -> Any:
    ecg += add_wander(ecg, fs, frequency, size) - ecg
    return ecg


# --- 04.2 --------------------------------------------------------------------------------------------------------


def mask(ecg: Any, start: Any, length: int, chosen: Any) -> Any:
    """Reference of 04.2: zero in samples start … start + length − 1 of all leads, in the chosen records."""
    import torch

    time = torch.arange(ecg.shape[-1])
    hidden = (time >= start[:, None]) & (time < start[:, None] + length) & chosen[:, None]  # (batch, time)
    return ecg.masked_fill(hidden[:, None, :], 0.0)


def _verify_mask(answer: Callable[..., Any], rng: Any) -> None:
    import torch

    for _ in range(8):
        batch, total = int(rng.integers(2, 7)), int(rng.integers(60, 200))
        length = int(rng.integers(5, 20))
        ecg = torch.randn(batch, 12, total, generator=torch.Generator().manual_seed(int(rng.integers(10**6))))
        start = torch.as_tensor(rng.integers(0, total - length - 1, size=batch))
        chosen = torch.as_tensor(rng.permutation(batch) < max(1, batch // 2))
        before = ecg.clone()
        found = _given(answer(ecg, start, length, chosen))
        _unchanged(before, ecg)
        expected = mask(ecg, start, length, chosen)
        if tuple(found.shape) != tuple(expected.shape):
            raise Misconception(f"Expected shape {tuple(expected.shape)}, found {tuple(found.shape)}.")
        if not torch.equal(found[~chosen], ecg[~chosen]):
            raise Misconception("A record that wasn't chosen has changed: apply the mask where `chosen` is True only.")
        hidden = int((found[chosen] == 0).sum())
        if hidden == 12 * int(chosen.sum()) * (length + 1):
            raise Misconception("One sample too many: a window of `length` samples ends before start + length.")
        if hidden == int(chosen.sum()) * length:
            raise Misconception("Only one lead was masked; contact is lost in all twelve at once.")
        expect_equal(found, expected, "the masked batch", "Each record has its own start.")


def _mask_all(ecg: Any, start: Any, length: int, chosen: Any) -> Any:
    import torch

    return mask(ecg, start, length, torch.ones_like(chosen))


def _mask_inclusive(ecg: Any, start: Any, length: int, chosen: Any) -> Any:
    return mask(ecg, start, length + 1, chosen)


def _mask_first_start(ecg: Any, start: Any, length: int, chosen: Any) -> Any:
    return mask(ecg, start[:1].expand(len(start)), length, chosen)


EXERCISES = (
    Exercise(
        id="04.1",
        title="Wander at the electrodes",
        difficulty=2,
        minutes=15,
        verify=_verify_wander,
        reference=add_wander,
        wrong=(
            ("counts samples as seconds", _wander_in_samples),
            ("adds to each lead on its own", _wander_per_lead),
            ("changes its input", _wander_in_place),
        ),
    ),
    Exercise(
        id="04.2",
        title="A mask on a batch",
        difficulty=2,
        minutes=10,
        verify=_verify_mask,
        reference=mask,
        wrong=(
            ("masks every record", _mask_all),
            ("ends one sample late", _mask_inclusive),
            ("takes the first start for all", _mask_first_start),
        ),
    ),
)
