"""Figures of scores against labels: AUC, average precision, F1 at thresholds fixed beforehand, floors, and intervals.

Every figure is computed on all resamples of the bootstrap at once, as a weighted one, so that intervals over patients
cost little. A class without positives (or negatives) has no figure: it is named and left out, never counted as 0.
Taught in: 08 §5.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from ecgchat_lib.errors import ParameterError
from ecgchat_lib.evaluate.bootstrap import interval_of, resample_counts

FIGURES = ("auc", "auprc", "f1", "oracle_f1")
_CELLS = 2**22  # weights that are worked on at a time, about 32 MB each


def choose_thresholds(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return, per class, the threshold (score ≥ threshold is a yes) with the highest F1; of equals, the lowest.

    Call it with validation records, and freeze what it returns.

    Args:
        labels: (n, classes) of 0/1.
        scores: (n, classes).

    Returns:
        (classes,); NaN for a class without positives, for which nothing can be chosen.

    Raises:
        ParameterError: shapes differ, labels aren't 0/1, or a score isn't finite.
    """
    labels, scores = _checked(labels, scores)
    chosen = np.full(labels.shape[1], np.nan)
    for k in np.flatnonzero(labels.any(axis=0)):
        curve = _Curve(labels[:, k], scores[:, k])
        f1 = curve.f1(np.ones((1, len(labels))))[0]
        chosen[k] = curve.thresholds[len(f1) - 1 - int(np.argmax(f1[::-1]))]  # thresholds fall
    return chosen


def class_figures(
    labels: np.ndarray, scores: np.ndarray, thresholds: np.ndarray | None = None, weights: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return the figures of each class, on weighted records.

    Args:
        labels: (n, classes) of 0/1.
        scores: (n, classes).
        thresholds: (classes,), from other records than these; without them `f1` is NaN.
        weights: (draws, n), such as `resample_counts`; None weighs all records alike.

    Returns:
        `auc`, `auprc` (average precision), `f1` (at the thresholds) and `oracle_f1` (at the best threshold for these
        very records, so too high): each (draws, classes), or (classes,) without weights. NaN where the class has no
        positives, or for the AUC no negatives, among the records that weigh something. They equal scikit-learn's
        `roc_auc_score`, `average_precision_score` and `f1_score`.

    Raises:
        ParameterError: as `choose_thresholds`, or weights or thresholds don't fit.
    """
    labels, scores = _checked(labels, scores)
    n, classes = labels.shape
    thresholds = None if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    used = np.ones((1, n)) if weights is None else np.asarray(weights)
    fits = thresholds is None or thresholds.shape == (classes,)
    if used.ndim != 2 or used.shape[1] != n or not fits:
        raise ParameterError(f"weights {used.shape}, or the thresholds, don't fit labels {labels.shape}")
    out = {name: np.full((len(used), classes), np.nan) for name in FIGURES}
    step = max(1, _CELLS // n)
    for k in range(classes):
        curve = _Curve(labels[:, k], scores[:, k])
        for first in range(0, len(used), step):
            part = slice(first, first + step)
            weighted = used[part].astype(np.float64)
            out["auc"][part, k], out["auprc"][part, k], out["oracle_f1"][part, k] = curve.areas(weighted)
            if thresholds is not None and not np.isnan(thresholds[k]):
                out["f1"][part, k] = _f1_at(labels[:, k], scores[:, k] >= thresholds[k], weighted)
    return {name: values[0] for name, values in out.items()} if weights is None else out


class _Curve:
    """The records of one class sorted by falling score; ties stand together."""

    def __init__(self, labels: np.ndarray, scores: np.ndarray) -> None:
        self.order = np.argsort(-scores, kind="stable")
        self.labels = labels[self.order].astype(np.float64)
        falling = scores[self.order]
        self.last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))  # of each group of ties
        self.thresholds = falling[self.last]

    def counts(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return true and false positives (draws, thresholds) for weights (draws, n)."""
        weights = weights[:, self.order]
        true = np.cumsum(weights * self.labels, axis=1)[:, self.last]
        return true, np.cumsum(weights, axis=1)[:, self.last] - true

    def f1(self, weights: np.ndarray) -> np.ndarray:
        """Return F1 (draws, thresholds); NaN without positives."""
        true, false = self.counts(weights)
        return _f1(true, false, true[:, -1:] - true)

    def areas(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return AUC, average precision and the highest F1, each (draws,)."""
        true, false = self.counts(weights)
        positives, negatives = true[:, -1], false[:, -1]
        gained = np.diff(true, axis=1, prepend=0)
        # a positive beats the negatives below it, and ties with those of its own score by half
        new = np.diff(false, axis=1, prepend=0)
        won = (gained * (negatives[:, None] - false + new / 2)).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            area = won / (positives * negatives)
            precision = np.where(true + false > 0, true / (true + false), 0.0)
            average = (gained * precision).sum(axis=1) / positives
        best = _f1(true, false, positives[:, None] - true).max(axis=1)
        none = positives <= 0
        return np.where(negatives > 0, area, np.nan), np.where(none, np.nan, average), best


def _f1(true: np.ndarray, false: np.ndarray, missed: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(true + missed > 0, 2 * true / (2 * true + false + missed), np.nan)


def _f1_at(labels: np.ndarray, said: np.ndarray, weights: np.ndarray) -> np.ndarray:
    true, false = weights @ (labels & said), weights @ (~labels & said)
    return _f1(true, false, weights @ (labels & ~said))


def floors(labels: np.ndarray, *, draws: int = 20, seed: int = 7) -> dict[str, np.ndarray]:
    """Return what a model that knows nothing reaches, per class: NaN without positives.

    Args:
        labels: (n, classes) of 0/1.
        draws: random orders that the mean is taken over.
        seed: of them.

    Returns:
        `auc`: 0.5. `auprc`: the share of positives (random scores reach a little more where these are few). `f1`:
        saying yes to all, 2p/(1+p). `oracle_f1`: random scores with the best threshold for them, the mean over the
        draws. Each (classes,).
    """
    labels = np.asarray(labels).astype(bool)
    share = np.where(labels.any(axis=0), labels.mean(axis=0), np.nan)
    oracle = np.full(labels.shape[1], np.nan)
    generator = np.random.default_rng(seed)
    order = np.argsort(generator.random((draws, len(labels))), axis=1)
    for k in np.flatnonzero(labels.any(axis=0)):
        true = np.cumsum(labels[order, k], axis=1)
        said = np.arange(1, len(labels) + 1)
        oracle[k] = (2 * true / (said + true[:, -1:])).max(axis=1).mean()
    auc = np.where(labels.any(axis=0) & ~labels.all(axis=0), 0.5, np.nan)
    return {"auc": auc, "auprc": share, "f1": 2 * share / (1 + share), "oracle_f1": oracle}


def score_report(
    labels: np.ndarray,
    scores: np.ndarray,
    classes: Sequence[str],
    *,
    thresholds: np.ndarray | None = None,
    groups: Sequence[Hashable] | None = None,
    draws: int = 1000,
    seed: int = 7,
) -> dict[str, Any]:
    """Return every figure per class and their means over the classes, with intervals and floors, ready for JSON.

    Args:
        labels: (n, classes) of 0/1.
        scores: (n, classes).
        classes: their names.
        thresholds: (classes,) from `choose_thresholds` on validation records; without them there is no F1.
        groups: one key per record (the patient), resampled whole.
        draws: resamples.
        seed: of the resamples and of the floors' random scores.

    Returns:
        `{"records", "groups", "macro": {figure: interval}, "floor": {figure: number}, "classes": {name: {"positives",
        "threshold", figure: interval, "floor": {...}}}, "without_positives": [...], "without_threshold": [...]}`. The
        macro figures are means over the classes that have the figure. A figure that can't be had is missing.

    Raises:
        ParameterError: as `class_figures`, or the names' number differs.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.shape[1] != len(classes):
        raise ParameterError(f"{len(classes)} class names for labels {labels.shape}")
    keys: Sequence[Hashable] = range(len(labels)) if groups is None else groups
    if len(keys) != len(labels) or not len(labels):
        raise ParameterError(f"{len(keys)} groups for {len(labels)} records; expected one each, and some")
    counts = resample_counts(keys, draws, seed)
    value, drawn = class_figures(labels, scores, thresholds), class_figures(labels, scores, thresholds, counts)
    floor, positives = floors(labels, seed=seed), labels.astype(bool).sum(axis=0)
    n = len(labels)
    report: dict[str, Any] = {"records": n, "groups": len(set(keys)), "macro": {}, "floor": {}, "classes": {}}
    for name in FIGURES:
        known = ~np.isnan(value[name])
        if known.any():
            means = _mean_of_known(drawn[name][:, known])
            report["macro"][name] = interval_of(float(value[name][known].mean()), means, n).as_dict()
            report["floor"][name] = float(np.nanmean(floor[name][known]))
    for k, one in enumerate(classes):
        report["classes"][one] = {"positives": int(positives[k])} | {
            name: interval_of(float(value[name][k]), drawn[name][:, k], n).as_dict()
            for name in FIGURES
            if not np.isnan(value[name][k])
        }
        if positives[k]:
            report["classes"][one]["floor"] = {name: float(floor[name][k]) for name in FIGURES if floor[name][k] > 0}
        if thresholds is not None and not np.isnan(thresholds[k]):
            report["classes"][one]["threshold"] = float(thresholds[k])
    report["without_positives"] = [one for k, one in enumerate(classes) if not positives[k]]
    report["without_threshold"] = [
        one for k, one in enumerate(classes) if positives[k] and (thresholds is None or np.isnan(thresholds[k]))
    ]
    return report


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """(draws, classes) → (draws,): the mean over the classes that a resample has; NaN where it has none."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0).sum(axis=1) / known.sum(axis=1))


def _checked(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if labels.ndim != 2 or labels.shape != scores.shape or not labels.size:
        raise ParameterError(f"labels {labels.shape} and scores {scores.shape}: expected both (n, classes), not empty")
    if not np.isin(labels, (0, 1)).all():
        raise ParameterError("labels hold something else than 0 and 1; unknown ones must be left out first")
    if not np.isfinite(scores).all():
        raise ParameterError("a score is NaN or infinite; nothing can be ranked by it")
    return labels.astype(bool), scores
