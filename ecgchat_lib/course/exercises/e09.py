"""Exercises of notebook 09: the gradient of a logistic regression, the calibration error, and what is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ecgchat_lib.course import Exercise, Misconception, expect_equal

# --- 09.1 --------------------------------------------------------------------------------------------------------


def gradient(weight: np.ndarray, bias: float, x: np.ndarray, y: np.ndarray, strength: float) -> np.ndarray:
    """Reference of 09.1: of half the squared weight plus strength times the log losses' sum; the bias comes last."""
    miss = 1 / (1 + np.exp(-(x @ weight + bias))) - y
    return np.append(weight + strength * miss @ x, strength * miss.sum())


def _verify_gradient(answer: Callable[..., np.ndarray], rng: Any) -> None:
    for _ in range(8):
        n, width = int(rng.integers(3, 12)), int(rng.integers(2, 6))
        x, y = rng.normal(size=(n, width)), (rng.random(n) < 0.4).astype(float)
        weight, bias, strength = rng.normal(size=width), float(rng.normal()), float(rng.uniform(0.05, 2))
        given = (weight, bias, x, y, strength)
        found, expected = answer(weight.copy(), bias, x.copy(), y.copy(), strength), gradient(*given)
        if found is not None and np.shape(found) == expected.shape and np.asarray(found).dtype.kind == "f":
            for wrong, reason in (
                (_no_penalty, "the penalty is missing: half the squared weight has the gradient weight"),
                (_penalized_bias, "the bias isn't penalized: how frequent a finding is isn't a matter of size"),
                (_mean, "you take the mean of the losses; scikit-learn's C multiplies their sum"),
                (_uphill, "the sign is turned: the gradient of the log loss is (probability - label) times the input"),
            ):
                if np.allclose(np.asarray(found), wrong(*given)):
                    raise Misconception(f"{n} records, {width} features: {reason}.")
        expect_equal(found, expected, f"the gradient on {n} records with {width} features")


def _no_penalty(weight: np.ndarray, bias: float, x: np.ndarray, y: np.ndarray, strength: float) -> np.ndarray:
    return gradient(weight, bias, x, y, strength) - np.append(weight, 0.0)


def _penalized_bias(weight: np.ndarray, bias: float, x: np.ndarray, y: np.ndarray, strength: float) -> np.ndarray:
    return gradient(weight, bias, x, y, strength) + np.append(np.zeros_like(weight), bias)


def _mean(weight: np.ndarray, bias: float, x: np.ndarray, y: np.ndarray, strength: float) -> np.ndarray:
    return gradient(weight, bias, x, y, strength / len(y))


def _uphill(weight: np.ndarray, bias: float, x: np.ndarray, y: np.ndarray, strength: float) -> np.ndarray:
    return gradient(weight, bias, x, y, -strength)


# --- 09.2 --------------------------------------------------------------------------------------------------------


def error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Reference of 09.2: the library's expected calibration error in ten bins."""
    from ecgchat_lib.evaluate.calibration import calibration_error

    return calibration_error(labels, probabilities)


def _verify_error(answer: Callable[..., float], rng: Any) -> None:
    for _ in range(12):
        n = int(rng.integers(30, 80))
        probabilities = np.round(rng.beta(0.6, 1.2, n), 3) * 0.98 + 0.0101  # no value on an edge
        labels = rng.random(n) < probabilities**1.6
        found, expected = answer(labels.copy(), probabilities.copy()), error(labels, probabilities)
        a_number = found is not None and np.size(found) == 1 and np.asarray(found).dtype.kind == "f"
        if a_number and not np.isclose(float(np.squeeze(found)), expected):
            for wrong, reason in (
                (_unweighted, "every bin counts alike in your answer. A bin with more predictions weighs more"),
                (_signed, "too high and too low cancel in your answer. Take each bin's distance without its sign"),
                (_largest, "that is the largest distance. Take the mean, weighted by the bins' counts"),
                (_pointwise, "you compare each prediction with 0 or 1. Compare the means of a bin"),
            ):
                if np.isclose(float(np.squeeze(found)), wrong(labels, probabilities)):
                    raise Misconception(f"{n} predictions: {reason}.")
        expect_equal(found, expected, f"the calibration error of {n} predictions")


def _gaps(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from ecgchat_lib.evaluate.calibration import reliability

    curve = reliability(labels, probabilities)
    return curve.said - curve.found, curve.n / curve.n.sum()


def _unweighted(labels: np.ndarray, probabilities: np.ndarray) -> float:
    return float(np.abs(_gaps(labels, probabilities)[0]).mean())


def _signed(labels: np.ndarray, probabilities: np.ndarray) -> float:
    gaps, share = _gaps(labels, probabilities)
    return float(gaps @ share)


def _largest(labels: np.ndarray, probabilities: np.ndarray) -> float:
    return float(np.abs(_gaps(labels, probabilities)[0]).max())


def _pointwise(labels: np.ndarray, probabilities: np.ndarray) -> float:
    return float(np.abs(probabilities - labels).mean())


# --- 09.3 --------------------------------------------------------------------------------------------------------


def said(probabilities: np.ndarray, thresholds: np.ndarray, rhythms: Sequence[int]) -> np.ndarray:
    """Reference of 09.3: at or above the threshold; of the rhythms the likeliest, always and alone."""
    out = probabilities >= thresholds
    columns = np.asarray(rhythms)
    out[:, columns] = False
    out[np.arange(len(out)), columns[probabilities[:, columns].argmax(axis=1)]] = True
    return out


def _verify_said(answer: Callable[..., np.ndarray], rng: Any) -> None:
    for _ in range(8):
        n, count = int(rng.integers(6, 12)), int(rng.integers(5, 9))
        probabilities, thresholds = rng.random((n, count)), rng.uniform(0.2, 0.6, count)
        probabilities[0, 0] = thresholds[0]  # exactly at it
        rhythms = sorted(rng.choice(np.arange(1, count), 3, replace=False).tolist())
        given = (probabilities, thresholds, rhythms)
        found, expected = answer(probabilities.copy(), thresholds.copy(), list(rhythms)), said(*_copied(given))
        if found is not None and np.shape(found) == expected.shape and not np.array_equal(np.asarray(found), expected):
            for wrong, reason in (
                (_all_thresholded, "rhythms have no threshold: the likeliest one is said, however unlikely it is"),
                (_added, "a heart has one rhythm. Say the likeliest one alone, not also those above their thresholds"),
                (_top_of_all, "you take the likeliest label of all. Look for it among the rhythms only"),
                (_above, "at the threshold means yes: use >= and not >"),
            ):
                if np.array_equal(np.asarray(found), wrong(*_copied(given))):
                    raise Misconception(f"{n} records, {count} labels: {reason}.")
        expect_equal(found, expected, f"what is said of {n} records, rhythms {rhythms}")


def _copied(given: tuple[np.ndarray, np.ndarray, list[int]]) -> tuple[np.ndarray, np.ndarray, list[int]]:
    return given[0].copy(), given[1].copy(), list(given[2])


def _all_thresholded(probabilities: np.ndarray, thresholds: np.ndarray, rhythms: Sequence[int]) -> np.ndarray:
    return probabilities >= thresholds


def _added(probabilities: np.ndarray, thresholds: np.ndarray, rhythms: Sequence[int]) -> np.ndarray:
    return (probabilities >= thresholds) | said(probabilities, thresholds, rhythms)


def _top_of_all(probabilities: np.ndarray, thresholds: np.ndarray, rhythms: Sequence[int]) -> np.ndarray:
    out = probabilities >= thresholds
    out[:, list(rhythms)] = False
    out[np.arange(len(out)), probabilities.argmax(axis=1)] = True
    return out


def _above(probabilities: np.ndarray, thresholds: np.ndarray, rhythms: Sequence[int]) -> np.ndarray:
    return said(probabilities, np.nextafter(thresholds, 1.0), rhythms)


EXERCISES = (
    Exercise(
        id="09.1",
        title="The gradient of a logistic regression",
        difficulty=2,
        minutes=15,
        verify=_verify_gradient,
        reference=gradient,
        wrong=(
            ("forgets the penalty", _no_penalty),
            ("penalizes the bias", _penalized_bias),
            ("takes the mean", _mean),
            ("turns the sign", _uphill),
        ),
    ),
    Exercise(
        id="09.2",
        title="The calibration error",
        difficulty=2,
        minutes=15,
        verify=_verify_error,
        reference=error,
        wrong=(
            ("weighs every bin alike", _unweighted),
            ("lets signs cancel", _signed),
            ("takes the largest", _largest),
            ("compares with 0 and 1", _pointwise),
        ),
    ),
    Exercise(
        id="09.3",
        title="What is said",
        difficulty=1,
        minutes=10,
        verify=_verify_said,
        reference=said,
        wrong=(
            ("thresholds the rhythms", _all_thresholded),
            ("adds the likeliest rhythm", _added),
            ("takes the likeliest of all", _top_of_all),
            ("uses > at the threshold", _above),
        ),
    ),
)
