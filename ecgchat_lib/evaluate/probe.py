"""The linear probe: how much of the labels can be read from frozen embeddings by a straight line.

scikit-learn's logistic regression, one per class, on standardized embeddings, with all labels or a few. It is
supervised, so it is no zero-shot result; and a random encoder and plain features of the signal must be probed beside
it, because they score well too. Taught in: 08 §7.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ecgchat_lib.errors import ParameterError
from ecgchat_lib.evaluate.bootstrap import bootstrap_interval
from ecgchat_lib.evaluate.zero_shot import macro_auc

STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # inverse penalties to choose from, on validation records
FRACTIONS = (0.01, 0.1, 1.0)  # of the training labels


class Parts(NamedTuple):
    """One thing for the three parts of the records: to train on, to choose the penalty on, and to report on."""

    train: np.ndarray
    choose: np.ndarray
    report: np.ndarray


def linear_probe(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, strength: float = 0.05, iterations: int = 1000
) -> np.ndarray:
    """Fit one logistic regression per class and return its scores on the test rows.

    Args:
        train: (n, width) embeddings.
        labels: (n, classes) 0/1.
        test: (m, width) embeddings; standardized with the training rows' mean and deviation.
        strength: inverse of the L2 penalty (scikit-learn's `C`).
        iterations: most iterations of the solver.

    Returns:
        (m, classes) log-odds.

    Raises:
        ParameterError: a class is constant in the training rows, or shapes don't fit.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    labels = np.asarray(labels).astype(int)
    if len(train) != len(labels) or train.shape[1] != test.shape[1]:
        raise ParameterError(f"probe shapes don't fit: train {train.shape}, labels {labels.shape}, test {test.shape}")
    constant = [k for k in range(labels.shape[1]) if len(set(labels[:, k])) < 2]
    if constant:
        raise ParameterError(f"label columns {constant} never change in the training rows, so nothing can be learned")
    scaler = StandardScaler().fit(np.asarray(train, dtype=np.float64))
    scaled, asked = scaler.transform(train), scaler.transform(np.asarray(test, dtype=np.float64))
    columns = []
    for k in range(labels.shape[1]):
        model = LogisticRegression(C=strength, max_iter=iterations).fit(scaled, labels[:, k])
        columns.append(model.decision_function(asked))
    return np.stack(columns, axis=1)


def stratified_rows(labels: np.ndarray, fraction: float, seed: int = 7) -> np.ndarray:
    """Return a random share of the rows in which each class keeps its share of positives, and at least one.

    Classes are served from the rarest on: rows are drawn for a class until it has its share, those that others drew
    included. Then rows without any label, and at last any rows, fill up.

    Args:
        labels: (n, classes) of 0/1.
        fraction: above 0, at most 1.
        seed: of the draw.

    Returns:
        Row numbers in rising order: round(fraction · n) of them, or a few more where many classes need their one.

    Raises:
        ParameterError: a fraction out of range, or no labels.
    """
    labels = np.asarray(labels).astype(bool)
    if not 0 < fraction <= 1 or labels.ndim != 2 or not len(labels):
        raise ParameterError(f"fraction {fraction} of labels {labels.shape}: expected above 0 to 1, of (n, classes)")
    order = np.random.default_rng(seed).permutation(len(labels))
    taken = np.zeros(len(labels), dtype=bool)
    for k in np.argsort(labels.sum(axis=0), kind="stable"):
        _take(taken, order[labels[order, k]], fraction)
    _take(taken, order[~labels[order].any(axis=1)], fraction)
    missing = max(0, round(fraction * len(labels)) - int(taken.sum()))
    taken[order[~taken[order]][:missing]] = True
    return np.flatnonzero(taken)


def _take(taken: np.ndarray, rows: np.ndarray, fraction: float) -> None:
    wanted = max(1, round(fraction * len(rows))) if len(rows) else 0
    taken[rows[~taken[rows]][: max(0, wanted - int(taken[rows].sum()))]] = True


def probe_fractions(
    features: Mapping[str, Parts],
    labels: Parts,
    *,
    fractions: Sequence[float] = FRACTIONS,
    draws: int = 5,
    groups: Sequence[Hashable] | None = None,
    seed: int = 7,
) -> dict[str, dict[str, Any]]:
    """Probe each kind of features with a few labels and with all, the penalty chosen on other records each time.

    All kinds get the same draws of labels. A class that has no positive (or no negative) in a draw can't be learned
    from it: its scores are equal, its AUC is 0.5.

    Args:
        features: name → (n, width) arrays of the three parts.
        labels: (n, classes) of 0/1 of the three parts.
        fractions: of the training records' labels.
        draws: random choices of labels per fraction below 1.
        groups: one key per reported record (the patient), for the interval at fraction 1.
        seed: of the draws and the resamples.

    Returns:
        name → fraction, as text → `{"labels", "macro_auc", "sd", "values", "strengths"}`: the records whose labels
        were used, the mean over the draws, their standard deviation, each draw's value and chosen strength; for the
        whole also `"interval"` over groups.

    Raises:
        ParameterError: as `stratified_rows` and `linear_probe`.
    """
    results: dict[str, dict[str, Any]] = {name: {} for name in features}
    for fraction in fractions:
        rows = [stratified_rows(labels.train, fraction, seed + draw) for draw in range(draws if fraction < 1 else 1)]
        for name, parts in features.items():
            found = [_probe(parts, labels, one) for one in rows]
            areas = [macro_auc(labels.report, scores) for scores, _ in found]
            results[name][f"{fraction:g}"] = {
                "labels": len(rows[0]),
                "macro_auc": float(np.mean(areas)),
                "sd": float(np.std(areas, ddof=1)) if len(areas) > 1 else None,
                "values": areas,
                "strengths": [strength for _, strength in found],
            }
            if fraction == 1:
                interval = bootstrap_interval(macro_auc, labels.report, found[0][0], groups=groups, seed=seed)
                results[name]["1"]["interval"] = interval.as_dict()
    return results


def _probe(parts: Parts, labels: Parts, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the scores of the reported records and the strength that was best on the choosing ones."""
    few = np.asarray(labels.train)[rows].astype(bool)
    learned = few.any(axis=0) & ~few.all(axis=0)
    others = np.concatenate([parts.choose, parts.report])
    best: tuple[float, np.ndarray, float] | None = None
    for strength in STRENGTHS:
        scores = np.zeros((len(others), few.shape[1]))
        if learned.any():
            scores[:, learned] = linear_probe(parts.train[rows], few[:, learned], others, strength=strength)
        area = macro_auc(labels.choose, scores[: len(parts.choose)])
        if best is None or area > best[0]:
            best = (area, scores[len(parts.choose) :], strength)
    assert best is not None
    return best[1], best[2]


def signal_components(
    train: np.ndarray, *others: np.ndarray, components: int = 128, pooled: int = 10, seed: int = 7
) -> list[np.ndarray]:
    """Return principal components of the signals, fitted on the first: a baseline that never saw a network.

    Args:
        train: windows (n, 12, samples).
        others: more windows, projected alike.
        components: at most; fewer where there are fewer windows.
        pooled: samples that are averaged into one.
        seed: of the solver.

    Returns:
        One (n, components) array for each.
    """
    from sklearn.decomposition import PCA

    flat = [_pooled(windows, pooled) for windows in (train, *others)]
    most = min(components, *flat[0].shape)
    fitted = PCA(most, svd_solver="randomized", random_state=seed).fit(flat[0])
    return [fitted.transform(one) for one in flat]


def _pooled(windows: np.ndarray, pooled: int) -> np.ndarray:
    windows = np.asarray(windows, dtype=np.float64)
    kept = windows.shape[2] // pooled * pooled
    return (
        windows[:, :, :kept].reshape(len(windows), windows.shape[1], -1, pooled).mean(axis=3).reshape(len(windows), -1)
    )


def spectrum_features(windows: np.ndarray, fs: float, *, highest: float = 40.0) -> np.ndarray:
    """Return the logarithm of each lead's power per hertz: (n, 12 · highest), which doesn't care when a beat comes.

    Args:
        windows: (n, 12, samples).
        fs: their rate in Hz.
        highest: frequency in Hz up to which bands of 1 Hz are taken.
    """
    windows = np.asarray(windows, dtype=np.float64)
    power = np.abs(np.fft.rfft(windows, axis=2)) ** 2
    bands = np.floor(np.fft.rfftfreq(windows.shape[2], 1 / fs)).astype(int)
    kept = [power[:, :, bands == band].mean(axis=2) for band in range(int(highest)) if (bands == band).any()]
    return np.log(np.stack(kept, axis=2) + 1e-6).reshape(len(windows), -1)
