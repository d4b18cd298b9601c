"""Calibration: does a finding that is given 30 % turn up in 30 % of such recordings, and from where on is it said?

Platt's two numbers per label, the reliability curve, the expected calibration error, Brier's score, and the threshold
that serves F1 best. All of them are for records that the scores were *not* fitted on. Taught in: 09 §3–4.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import expit

from ecgchat_lib.errors import ParameterError

BINS = 10


class Reliability(NamedTuple):
    """A reliability curve, one entry per bin that holds a prediction.

    Attributes:
        said: mean predicted probability in the bin.
        found: share of positives in the bin.
        n: predictions in the bin.
    """

    said: np.ndarray
    found: np.ndarray
    n: np.ndarray


def platt(log_odds: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return slope and intercept that turn log-odds into better ones: `expit(slope * log_odds + intercept)`.

    A logistic regression with one input and no penalty. Instead of 1 and 0 it aims at (p + 1) / (p + 2) and
    1 / (n + 2), for p positives and n negatives, so that a few records can't claim certainty. Equals scikit-learn's
    `CalibratedClassifierCV(method="sigmoid")`.

    Args:
        log_odds: (n,) of records that the scores were not fitted on.
        labels: (n,) booleans or 0/1.

    Raises:
        ParameterError: there are no positives or no negatives, or the scores are all the same or not finite.

    Source: Platt 1999, Probabilistic outputs for support vector machines, section 2.2.
    """
    from sklearn.linear_model import LogisticRegression

    log_odds, labels = np.asarray(log_odds, dtype=np.float64), np.asarray(labels, dtype=bool)
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if not positives or not negatives:
        raise ParameterError(f"platt needs positives and negatives, but got {positives} and {negatives}")
    size = float(np.std(log_odds))
    if not np.isfinite(size) or size == 0.0:
        raise ParameterError("platt needs finite scores that differ; these are constant, NaN or infinite")
    target = np.where(labels, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    rows = np.tile(log_odds / size, 2)[:, None]  # each record once as positive and once as negative, weighted
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    model.fit(rows, np.repeat([1, 0], len(labels)), sample_weight=np.concatenate([target, 1 - target]))
    return float(model.coef_[0, 0]) / size, float(model.intercept_[0])


def shrunk_platt(log_odds: np.ndarray, labels: np.ndarray, *, pull: float = 10.0) -> tuple[float, float]:
    """Return slope and intercept as `platt`, but drawn toward (1, 0), "leave it as it is".

    With three positive records Platt's two numbers follow the three. Here the log loss, summed over the records, is
    minimized together with pull/2 · ((slope - 1)² + intercept²): many records move the numbers, a few don't.

    Args:
        log_odds: (n,) of records that the scores were not fitted on.
        labels: (n,) booleans or 0/1.
        pull: how strongly, above 0; near 0 it is the plain maximum of the likelihood.

    Raises:
        ParameterError: the scores are not finite, or the pull is not above 0: labels that a threshold separates would
            then have no best slope.
    """
    from scipy.optimize import minimize

    z, y = np.asarray(log_odds, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if not len(z) or not np.isfinite(z).all():
        raise ParameterError("shrunk_platt needs finite scores, at least one")
    if not pull > 0:
        raise ParameterError(f"pull={pull}: expected a number above 0")

    def loss(pair: np.ndarray) -> tuple[float, np.ndarray]:
        odds = pair[0] * z + pair[1]
        away, miss = pair - (1.0, 0.0), expit(odds) - y
        total = np.sum(np.logaddexp(0.0, odds) - y * odds) + pull / 2 * np.sum(away**2)
        return float(total), np.array([miss @ z, miss.sum()]) + pull * away

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-9})
    return float(found.x[0]), float(found.x[1])


def probability(log_odds: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-log_odds)), without overflow."""
    return np.asarray(expit(log_odds))


def brier(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the mean squared difference between probability and truth: 0 is perfect, 0.25 is "always one half".

    Source: Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2.
    """
    labels, probabilities = _checked(labels, probabilities)
    return float(np.mean((probabilities - labels) ** 2))


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> Reliability:
    """Return the reliability curve: predictions sorted into bins of equal width, and what was found in each.

    Args:
        labels: booleans or 0/1, any shape.
        probabilities: 0 to 1, of the same shape.
        bins: how many; the first holds 0 to 1/bins with its upper end, as scikit-learn's `calibration_curve` has it.

    Raises:
        ParameterError: shapes differ, or something is not a probability.
    """
    labels, probabilities = _checked(labels, probabilities)
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.searchsorted(edges[1:-1], probabilities)
    count = np.bincount(place, minlength=bins)
    kept = count > 0
    said = np.bincount(place, weights=probabilities, minlength=bins)[kept] / count[kept]
    found = np.bincount(place, weights=labels, minlength=bins)[kept] / count[kept]
    return Reliability(said, found, count[kept])


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> float:
    """Return the expected calibration error: the mean distance between said and found, weighted by the bins' counts.

    Equals torchmetrics' `binary_calibration_error(norm="l1")` where no prediction lies on an edge.

    Source: Naeini et al. 2015, Obtaining well calibrated probabilities using Bayesian binning, AAAI.
    """
    curve = reliability(labels, probabilities, bins)
    return float(np.sum(curve.n * np.abs(curve.said - curve.found)) / np.sum(curve.n))


def f1_score(labels: np.ndarray, said: np.ndarray) -> float:
    """Return F1 = 2·TP / (2·TP + FP + FN) of yes/no answers; NaN where nothing is there and nothing was said."""
    labels, said = np.asarray(labels, dtype=bool), np.asarray(said, dtype=bool)
    whole = int(labels.sum() + said.sum())
    return float(2 * (labels & said).sum() / whole) if whole else float("nan")


def best_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the threshold that gives the highest F1 when a score at or above it means yes.

    It lies halfway between two neighboring scores, so that rounding can't move a record across. Of equally good ones
    the highest is taken: what is in doubt isn't said.

    Args:
        labels: (n,) booleans or 0/1, of records that neither the fit nor the report uses.
        scores: (n,).

    Raises:
        ParameterError: there is no positive.
    """
    labels, scores = np.asarray(labels, dtype=bool), np.asarray(scores, dtype=np.float64)
    if not labels.any():
        raise ParameterError("a threshold can't be chosen without a positive record. Leave the label out, and say so")
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], labels[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # a cut between equal scores is none
    right = np.cumsum(hits)
    f1 = np.where(last, 2 * right / (np.arange(1, len(hits) + 1) + hits.sum()), -1.0)
    best = int(np.argmax(f1))
    below = ranked[best + 1] if best + 1 < len(ranked) else ranked[best] - 1e-6
    return float((ranked[best] + below) / 2)


def _checked(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, probabilities = np.asarray(labels, dtype=np.float64), np.asarray(probabilities, dtype=np.float64)
    if labels.shape != probabilities.shape or not labels.size:
        raise ParameterError(f"labels {labels.shape} and probabilities {probabilities.shape} don't fit")
    if not np.all((probabilities >= 0) & (probabilities <= 1)):  # NaN fails, too
        raise ParameterError("probabilities must be 0 to 1; these hold another number or NaN")
    return labels.ravel(), probabilities.ravel()
