"""Exercises of notebook 04: wander at the electrodes, a mask, CutMix's wrong pairs, and numbers in another time."""

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


# --- 04.3 --------------------------------------------------------------------------------------------------------


def wrong_pairs(order: Any, reports: Any) -> float:
    """Reference of 04.3: share of the ECGs whose pasted window comes from a record with another report."""
    return sum(reports[k] != reports[int(source)] for k, source in enumerate(order)) / len(reports)


def _verify_pairs(answer: Callable[..., Any], rng: Any) -> None:
    import torch

    for _ in range(8):
        n = int(rng.integers(6, 12))
        reports = [
            ("sinus rhythm", "atrial fibrillation", "left bundle branch block")[k] for k in rng.integers(0, 3, n)
        ]
        order = torch.as_tensor(rng.permutation(n))
        moved = sum(k != int(source) for k, source in enumerate(order))
        expected = wrong_pairs(order, reports)
        if not 0 < expected * n < moved:  # both kinds of window must be there
            continue
        found = float(_given(answer(order, reports)))
        if abs(found - expected) < 1e-6:
            continue
        if abs(found - expected * n) < 1e-6:
            raise Misconception("That is their number. Divide by the number of records: a share is 0 to 1.")
        if abs(found - moved / n) < 1e-6:
            raise Misconception(
                "You counted every window from another record. One from a record with the same report tells no lie."
            )
        if abs(found - (1 - expected)) < 1e-6:
            raise Misconception("That is the share of the pairs that stay true; the wrong ones are asked for.")
        raise Misconception(
            f"Expected {expected:.4f} for order {order.tolist()}, found {found:.4f}: "
            "the window of record k comes from record order[k]."
        )


def _pairs_moved(order: Any, reports: Any) -> float:
    return sum(k != int(source) for k, source in enumerate(order)) / len(reports)


def _pairs_counted(order: Any, reports: Any) -> float:
    return wrong_pairs(order, reports) * len(reports)


def _pairs_right(order: Any, reports: Any) -> float:
    return 1 - wrong_pairs(order, reports)


# --- 04.4 --------------------------------------------------------------------------------------------------------


def restate(numbers: Any, factor: Any) -> Any:
    """Reference of 04.4: RR, PR, QRS, QT times the factor, Bazett's QTc times its root."""
    import torch

    powers = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5])
    return numbers * factor[:, None] ** powers


def _verify_restate(answer: Callable[..., Any], rng: Any) -> None:
    import torch

    for _ in range(6):
        batch = int(rng.integers(2, 8))
        rr, qt = rng.uniform(500, 1200, batch), rng.uniform(320, 440, batch)
        columns = [rr, rng.uniform(120, 200, batch), rng.uniform(80, 130, batch), qt, qt / (rr / 1000) ** 0.5]
        numbers = torch.stack([torch.as_tensor(column) for column in columns], dim=1).float()
        numbers[0, 1] = math.nan  # no P wave
        factor = torch.as_tensor(rng.choice([-1, 1], batch) * rng.uniform(0.02, 0.1, batch) + 1).float()
        before = numbers.clone()
        found = _given(answer(numbers, factor))
        _unchanged(before.nan_to_num(-1), numbers.nan_to_num(-1))
        expected = restate(numbers, factor)
        if tuple(found.shape) != tuple(expected.shape):
            raise Misconception(
                f"Expected shape {tuple(expected.shape)}, found {tuple(found.shape)}: one factor for each row."
            )
        if not bool(found[0, 1].isnan()):
            raise Misconception("An unknown PR interval became a number. NaN times a factor is NaN: leave it so.")
        if torch.allclose(found[:, 0], numbers[:, 0] / factor, rtol=1e-4):
            raise Misconception("A factor above 1 plays slower: intervals get longer, and the rate is what is divided.")
        if torch.allclose(found[:, 4], numbers[:, 4] * factor, rtol=1e-4):
            raise Misconception(
                "QTc was multiplied by the factor. It is QT / sqrt(RR): the divisor grows too, by the factor's root."
            )
        if torch.allclose(found[:, 4], numbers[:, 4], rtol=1e-4):
            raise Misconception("QTc stayed. It is QT / sqrt(RR), and only a part of the factor cancels.")
        known = ~expected.isnan()
        expect_equal(found[known], expected[known], "the restated numbers", tolerance=0.1)


def _restate_plain(numbers: Any, factor: Any) -> Any:
    return numbers * factor[:, None]


def _restate_inverse(numbers: Any, factor: Any) -> Any:
    return restate(numbers, 1 / factor)


def _restate_corrected(numbers: Any, factor: Any) -> Any:
    changed = numbers * factor[:, None]
    changed[:, 4] = numbers[:, 4]
    return changed


def _restate_filled(numbers: Any, factor: Any) -> Any:
    return restate(numbers.nan_to_num(0.0), factor)


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
    Exercise(
        id="04.3",
        title="Count the wrong pairs",
        difficulty=1,
        minutes=5,
        verify=_verify_pairs,
        reference=wrong_pairs,
        wrong=(
            ("counts windows from any other record", _pairs_moved),
            ("returns a number instead of a share", _pairs_counted),
            ("counts the true pairs", _pairs_right),
        ),
    ),
    Exercise(
        id="04.4",
        title="Restate the numbers",
        difficulty=2,
        minutes=10,
        verify=_verify_restate,
        reference=restate,
        wrong=(
            ("multiplies QTc as well", _restate_plain),
            ("divides", _restate_inverse),
            ("leaves QTc", _restate_corrected),
            ("makes unknown values zero", _restate_filled),
        ),
    ),
)
