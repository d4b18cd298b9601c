"""Retrieval: does the right report come up for an ECG, and the right ECG for a report?

Recall at k over a similarity matrix. Equal reports count as equally right, because nothing can tell them apart; without
that rule a set full of "normal ECG" punishes a perfect model. Taught in: 08 §2.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from ecgchat_lib.errors import ParameterError
from ecgchat_lib.evaluate.bootstrap import interval_of, resample_counts

CUTOFFS = (1, 5, 10)


def ranks_of_right(similarity: np.ndarray, keys: Sequence[Hashable] | None = None) -> np.ndarray:
    """Return, per row, the place (0 = first) of the best-placed right column.

    Args:
        similarity: (n, n); row i and column i belong together.
        keys: one per pair; columns with the row's key are right too. None: only column i is.

    Returns:
        (n,) ints. Ties count against the model: of equal similarities, the wrong ones come first. So a constant
        similarity scores 0, not 1.

    Raises:
        ParameterError: the matrix is not square, holds NaN, or the keys' number differs.
    """
    similarity = np.asarray(similarity, dtype=np.float64)
    n = len(similarity)
    if similarity.shape != (n, n) or (keys is not None and len(keys) != n):
        raise ParameterError(
            f"retrieval needs an (n, n) similarity and n keys, but got {similarity.shape}"
            + (f" and {len(keys)}" if keys is not None else "")
        )
    if np.isnan(similarity).any():
        raise ParameterError("the similarity holds NaN: an embedding has length 0 or was never computed")
    right = np.eye(n, dtype=bool) if keys is None else same_key(keys)
    best = np.where(right, similarity, -np.inf).max(axis=1, keepdims=True)
    return ((similarity >= best) & ~right).sum(axis=1)


def same_key(keys: Sequence[Hashable]) -> np.ndarray:
    """Return the boolean (n, n) matrix of equal keys."""
    order = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    group = np.array([order[key] for key in keys])
    return group[:, None] == group[None, :]


def recall_at(
    similarity: np.ndarray, k: int | Sequence[int] = CUTOFFS, keys: Sequence[Hashable] | None = None
) -> dict[str, dict[int, float]]:
    """Return recall at k in both directions: the share of queries with a right answer among the first k.

    Args:
        similarity: (n, n), rows ECGs, columns reports; pair i is on the diagonal.
        k: one or more cut-offs, each at least 1.
        keys: what each report says; equal keys are equally right (`ranks_of_right`).

    Returns:
        `{"ecg_to_report": {k: recall}, "report_to_ecg": {k: recall}}`, from 0 to 1.

    Raises:
        ParameterError: a k below 1, or a similarity as in `ranks_of_right`.
    """
    cutoffs = [k] if isinstance(k, int) else list(k)
    if min(cutoffs) < 1:
        raise ParameterError(f"recall at {min(cutoffs)}: k counts from 1")
    similarity = np.asarray(similarity)
    directions = {"ecg_to_report": similarity, "report_to_ecg": similarity.T}
    ranks = {name: ranks_of_right(matrix, keys) for name, matrix in directions.items()}
    return {name: {k: float((places < k).mean()) for k in cutoffs} for name, places in ranks.items()}


def chance_recall(keys: Sequence[Hashable], k: int) -> float:
    """Return the recall at k that a random order reaches, equal keys counted as right: the floor of `recall_at`.

    With m right among n, a random first k holds none of them with probability C(n − m, k) / C(n, k).
    """
    n = len(keys)
    right = same_key(keys).sum(axis=1)
    miss = np.ones(n)
    for place in range(min(k, n)):
        miss *= np.maximum(n - right - place, 0) / (n - place)
    return float((1 - miss).mean())


def chance_median_rank(keys: Sequence[Hashable]) -> int:
    """Return the median rank (1 = first) of a random order: the first k at which `chance_recall` reaches one half."""
    low, high = 1, len(keys)
    while low < high:  # recall only rises with k
        middle = (low + high) // 2
        low, high = (low, middle) if chance_recall(keys, middle) >= 0.5 else (middle + 1, high)
    return low


def retrieval_report(
    similarity: np.ndarray,
    keys: Sequence[Hashable] | None = None,
    *,
    groups: Sequence[Hashable] | None = None,
    draws: int = 1000,
    seed: int = 7,
) -> dict[str, Any]:
    """Return recall at 1, 5, 10 and the median rank, both ways, with intervals, strict figures and the chance floor.

    Args:
        similarity: (n, n), rows ECGs, columns reports; pair i is on the diagonal.
        keys: what each report says; equal keys are equally right. None: only the own report is.
        groups: one key per pair (the patient). The bootstrap draws queries; what is searched through stays.
        draws: resamples.
        seed: of the resamples.

    Returns:
        `{"pairs", "ecg_to_report": {"recall_at_1": interval, ..., "median_rank": interval}, "report_to_ecg": ...,
        "strict": {"recall": {direction: {...}}, "median_rank": {direction: rank}}, "chance": {"recall_at_1", ...,
        "median_rank", "distinct_reports"}}`. Ranks count from 1; intervals are as `Interval.as_dict`. The strict
        figures count the own report only.

    Raises:
        ParameterError: as `ranks_of_right`, or the groups' number differs.
    """
    similarity = np.asarray(similarity)
    n = len(similarity)
    if not n or (groups is not None and len(groups) != n):
        raise ParameterError(f"retrieval_report needs pairs, and one group for each, but got {n} pairs")
    says: Sequence[Hashable] = range(n) if keys is None else keys
    counts = resample_counts(range(n) if groups is None else groups, draws, seed)
    report: dict[str, Any] = {"pairs": n, "strict": {"recall": {}, "median_rank": {}}}
    for name, matrix in {"ecg_to_report": similarity, "report_to_ecg": similarity.T}.items():
        report[name] = _with_intervals(ranks_of_right(matrix, says) + 1, counts)
        own = ranks_of_right(matrix) + 1
        report["strict"]["recall"][name] = {f"recall_at_{k}": float((own <= k).mean()) for k in CUTOFFS}
        report["strict"]["median_rank"][name] = float(np.median(own))
    report["chance"] = {f"recall_at_{k}": chance_recall(says, k) for k in CUTOFFS}
    report["chance"] |= {"median_rank": chance_median_rank(says), "distinct_reports": len(set(says))}
    return report


def _with_intervals(ranks: np.ndarray, counts: np.ndarray) -> dict[str, Mapping[str, float]]:
    """Return recalls and median of ranks (n,) that count from 1, over resamples counts (draws, n)."""
    n, drawn = len(ranks), counts.sum(axis=1)
    figures: dict[str, Mapping[str, float]] = {}
    for k in CUTOFFS:
        hit = (ranks <= k).astype(np.float64)
        figures[f"recall_at_{k}"] = interval_of(float(hit.mean()), counts @ hit / drawn, n).as_dict()
    medians = np.array([np.median(np.repeat(ranks, row)) for row in counts])
    figures["median_rank"] = interval_of(float(np.median(ranks)), medians, n).as_dict()
    return figures
