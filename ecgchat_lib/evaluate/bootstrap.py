"""How sure a measured number is: the bootstrap's percentile interval, over records or over patients.

It resamples the evaluation set, not the training; a small interval does not mean that another training run would score
the same. Taught in: 08 §6. Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ecgchat_lib.errors import ParameterError


@dataclass(frozen=True)
class Interval:
    """A value measured on n records, with its interval at `level`."""

    value: float
    low: float
    high: float
    n: int
    level: float = 0.95

    def as_dict(self) -> dict[str, float]:
        """Return it as plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}], n = {self.n}"


def bootstrap_interval(
    metric: Callable[..., float],
    *arrays: np.ndarray,
    groups: Sequence[Hashable] | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 7,
) -> Interval:
    """Return a metric's value with its percentile interval.

    Args:
        metric: called with the arrays, or with resampled rows of them.
        arrays: each with n rows, resampled together.
        groups: one key per row (the patient); whole groups are drawn, since rows of one patient are not independent.
        draws: resamples. Those on which the metric is NaN (a class is missing) are left out.
        level: share of the resamples inside the interval.
        seed: of the draws.

    Raises:
        ParameterError: the arrays differ in length, there are none, or the metric is NaN on every resample.
    """
    lengths = {len(array) for array in arrays} | ({len(groups)} if groups is not None else set())
    if len(lengths) != 1 or lengths == {0}:
        raise ParameterError(f"bootstrap_interval needs arrays of one length above 0, but got {sorted(lengths)}")
    n = lengths.pop()
    members = _members(groups if groups is not None else range(n))
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        chosen = generator.integers(len(members), size=len(members))
        rows = np.concatenate([members[k] for k in chosen])
        values.append(metric(*(array[rows] for array in arrays)))
    return interval_of(float(metric(*arrays)), np.array(values), n, level)


def interval_of(value: float, resampled: np.ndarray, n: int, level: float = 0.95) -> Interval:
    """Return the percentile interval of a metric's values on resamples; NaN ones are left out.

    Raises:
        ParameterError: all are NaN.
    """
    kept = resampled[~np.isnan(resampled)]
    if not len(kept):
        raise ParameterError("the metric is NaN on every resample: the set is too small, or lacks a class")
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high), n, level)


def resample_counts(groups: Sequence[Hashable], draws: int = 1000, seed: int = 7) -> np.ndarray:
    """Return how often each row is in each resample, int32 (draws, n): the draws of `bootstrap_interval`.

    A metric that takes weights can then be computed on all resamples at once.

    Args:
        groups: one key per row (the patient); `range(n)` draws single rows.
        draws: resamples.
        seed: of the draws.
    """
    order = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    place = np.array([order[group] for group in groups], dtype=np.int64)
    generator = np.random.default_rng(seed)
    drawn = (np.bincount(generator.integers(len(order), size=len(order)), minlength=len(order)) for _ in range(draws))
    return np.stack([counts[place] for counts in drawn]).astype(np.int32)


def _members(groups: Sequence[Hashable]) -> list[np.ndarray]:
    rows: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    return [np.array(members) for members in rows.values()]
