"""Retrieval: does the right report come up for an ECG, and the right ECG for a report?

Recall at k over a similarity matrix. Equal reports count as equally right, because nothing can tell them apart; without
that rule a set full of "normal ECG" punishes a perfect model. Taught in: 08 §2.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from ecgchat_lib.errors import ParameterError


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
    similarity: np.ndarray, k: int | Sequence[int] = (1, 5, 10), keys: Sequence[Hashable] | None = None
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
