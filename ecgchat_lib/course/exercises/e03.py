"""Exercises of notebook 03: QT corrected for the rate, stretches of a wave, a typical beat, limits of agreement."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ecgchat_lib.course import Exercise, Misconception, expect_equal
from ecgchat_lib.ecg.delineate import find_stretches
from ecgchat_lib.ecg.measure import complete

Array = np.ndarray[Any, Any]


def correct_qt(qt_ms: float, rr_ms: float) -> tuple[float, float, float]:
    """Reference of 03.1: QT corrected by Bazett 1920, Fridericia 1920 and Sagie 1992 (Framingham), in ms."""
    rr = rr_ms / 1000
    return qt_ms / math.sqrt(rr), qt_ms / math.cbrt(rr), qt_ms + 154 * (1 - rr)


def _verify_qt(answer: Callable[[float, float], Any], rng: Any) -> None:
    found = answer(400.0, 1000.0)
    if found is None or np.shape(found) != (3,):
        raise Misconception("Return three numbers in ms: by Bazett, Fridericia and Framingham.")
    if found[0] < 100:
        raise Misconception("In these formulas RR is in seconds, so that at 60 beats per minute nothing changes.")
    expect_equal(found, (400.0, 400.0, 400.0), "QT 400 ms at RR 1000 ms", "At RR = 1 s all three leave QT as it is.")
    bazett, fridericia, framingham = (float(value) for value in answer(360.0, 640.0))
    if math.isclose(bazett, 360 * 0.8, rel_tol=1e-3):
        raise Misconception("You multiplied. A fast heart has a short QT, and the correction makes it longer: divide.")
    if math.isclose(fridericia, 450.0, rel_tol=1e-3) and math.isclose(bazett, 360 / math.cbrt(0.64), rel_tol=1e-3):
        raise Misconception("Bazett and Fridericia are exchanged: Bazett's is the square root.")
    expect_equal(bazett, 450.0, "Bazett at QT 360 ms, RR 640 ms", "360 / sqrt(0.64) = 360 / 0.8.")
    expect_equal(fridericia, 360 / math.cbrt(0.64), "Fridericia at QT 360 ms, RR 640 ms", "It is the cube root of RR.")
    if math.isclose(framingham, 360 + 0.154 * 0.36, rel_tol=1e-6):
        raise Misconception("Framingham's 0.154 is in seconds. QT is in ms here, so it is 154.")
    sign = "Framingham adds 154 ms for each second that RR is shorter than one: 360 + 154 * 0.36."
    expect_equal(framingham, 360 + 154 * 0.36, "Framingham at QT 360 ms, RR 640 ms", sign)
    for qt, rr in zip(rng.uniform(250, 600, 20), rng.uniform(300, 1800, 20), strict=True):
        expect_equal(answer(float(qt), float(rr)), correct_qt(float(qt), float(rr)), f"QT {qt:.0f} ms, RR {rr:.0f} ms")
    unknown = answer(math.nan, 800.0)
    if not np.isnan(np.asarray(unknown, dtype=float)).all():
        raise Misconception("An unknown QT (NaN) stays unknown; any other number would be taken for a measurement.")


def _milliseconds(qt_ms: float, rr_ms: float) -> tuple[float, float, float]:
    return qt_ms / math.sqrt(rr_ms), qt_ms / math.cbrt(rr_ms), qt_ms + 154 * (1 - rr_ms)


def _framingham_in_seconds(qt_ms: float, rr_ms: float) -> tuple[float, float, float]:
    bazett, fridericia, _ = correct_qt(qt_ms, rr_ms)
    return bazett, fridericia, qt_ms + 0.154 * (1 - rr_ms / 1000)


def _multiplied(qt_ms: float, rr_ms: float) -> tuple[float, float, float]:
    rr = rr_ms / 1000
    return qt_ms * math.sqrt(rr), qt_ms * math.cbrt(rr), qt_ms - 154 * (1 - rr)


def _unknown_as_zero(qt_ms: float, rr_ms: float) -> tuple[float, float, float]:
    return correct_qt(0.0 if math.isnan(qt_ms) else qt_ms, rr_ms)


def stretches(probability: Array) -> Array:
    """Reference of 03.2: (stretch, 2), where a probability rises above one half and where it falls below it again."""
    return find_stretches(np.asarray(probability, dtype=np.float64))


def _verify_stretches(answer: Callable[[Array], Any], rng: Any) -> None:
    def found(values: Any) -> Array:
        result = answer(np.array(values, dtype=np.float64))
        if result is None:
            raise Misconception("Your function returned nothing; end it with return.")
        return np.asarray(result, dtype=np.float64).reshape(-1, 2)

    one = found([0.0, 0.3, 0.8, 0.9, 0.6, 0.2, 0.0])
    if one.shape == (1, 2) and np.allclose(one, [[2, 4]]):
        raise Misconception("Those are whole samples. The line from 0.3 to 0.8 crosses one half between 1 and 2.")
    if one.shape == (1, 2) and np.allclose(one, [[1.6, 4.75]]):
        raise Misconception("You went as far as the sample inside is above one half, but from the sample outside.")
    expect_equal(one, [[1.4, 4.25]], "the stretch of 0.0 0.3 0.8 0.9 0.6 0.2 0.0", "Draw lines between the samples.")
    two = found([0.1, 0.9, 0.1, 0.1, 0.7, 0.7, 0.3])
    if two.shape == (1, 2):
        raise Misconception("There are two waves here: what lies between them is below one half.")
    expect_equal(two, [[0.5, 1.5], [11 / 3, 5.5]], "two waves, 0.1 0.9 0.1 0.1 0.7 0.7 0.3")
    edge = found([0.9, 0.8, 0.2, 0.1, 0.6])
    edges = "A wave may be cut off by an end of the recording: there it begins or ends with the last sample."
    expect_equal(edge, [[0, 1.5], [3.8, 4]], "waves that are cut off, 0.9 0.8 0.2 0.1 0.6", edges)
    expect_equal(found([0.1, 0.2, 0.1]), np.zeros((0, 2)), "no wave at all", "Return nothing, of shape (0, 2).")
    for size in rng.integers(1, 60, size=20):
        values = rng.uniform(0, 1, int(size))
        expect_equal(found(values), stretches(values), f"{size} random probabilities")


def _whole_samples(probability: Array) -> Array:
    right = stretches(probability)
    return np.stack([np.ceil(right[:, 0]), np.floor(right[:, 1])], axis=1)


def _from_outside(probability: Array) -> Array:
    right = stretches(probability)
    first, last = np.ceil(right[:, 0]), np.floor(right[:, 1])
    return np.stack([2 * first - 1 - right[:, 0], 2 * last + 1 - right[:, 1]], axis=1)


def _one_wave(probability: Array) -> Array:
    right = stretches(probability)
    return np.array([[right[0, 0], right[-1, 1]]]) if len(right) else right


def _never_cut_off(probability: Array) -> Array:
    right = stretches(probability)
    return right[(right[:, 0] > 0) & (right[:, 1] < len(probability) - 1)]


def typical(values: Array, alike: Array) -> float:
    """Reference of 03.3: the median over the beats that look alike, without the first and last of five or more."""
    inside = complete(values)
    kept = np.asarray(values, dtype=np.float64)[inside][np.asarray(alike, dtype=bool)[inside]]
    kept = kept[np.isfinite(kept)]
    return float(np.median(kept)) if len(kept) else math.nan


def _verify_typical(answer: Callable[[Array, Array], Any], rng: Any) -> None:
    def found(values: Any, alike: Any) -> float:
        result = answer(np.array(values, dtype=np.float64), np.array(alike, dtype=bool))
        if result is None or np.shape(result) != ():
            raise Misconception("Return one number: the interval of the typical beat.")
        return float(result)

    even = [True] * 6
    first = found([30, 90, 94, 92, 150, 40], even)
    if math.isclose(first, (90 + 94 + 92 + 150) / 4):
        raise Misconception("That is the mean: one beat of 150 ms pulls it up. The median doesn't move.")
    cut = "Of six beats, the first and the last are left out: the recording may begin or end inside them."
    expect_equal(first, 93.0, "six beats, 30 90 94 92 150 40", cut)
    unknown = found([90, 90, math.nan, 94, 98, 90], even)
    if math.isclose(unknown, (90 + 94) / 2):
        raise Misconception("You counted the unknown beat as 0. It is not a short beat: leave it out.")
    expect_equal(unknown, 94.0, "a beat that wasn't found, 90 90 nan 94 98 90", "Leave out NaN, then take the median.")
    odd = found([90, 90, 150, 152, 96, 90], [True, True, False, False, True, True])
    expect_equal(odd, 93.0, "two beats that look unlike the others", "Only beats that look alike count.")
    few = "Of fewer than five beats none is left out: there would be too little left."
    expect_equal(found([80, 90, 100], [True] * 3), 90.0, "three beats, 80 90 100", few)
    if not math.isnan(found([math.nan, math.nan], [True, True])):
        raise Misconception("With no beat left the answer is NaN: unknown. A number would be taken for a measurement.")
    for size in rng.integers(1, 30, size=20):
        values = np.where(rng.random(int(size)) < 0.2, math.nan, rng.normal(100, 20, int(size)))
        alike = rng.random(int(size)) < 0.8
        expect_equal(found(values, alike), typical(values, alike), f"{size} random beats")


def _mean(values: Array, alike: Array) -> float:
    kept = values[complete(values)][alike[complete(values)]]
    return float(np.nanmean(kept)) if np.isfinite(kept).any() else math.nan


def _zero_for_unknown(values: Array, alike: Array) -> float:
    return typical(np.nan_to_num(values), alike)


def _all_beats(values: Array, alike: Array) -> float:
    kept = values[alike & np.isfinite(values)]
    return float(np.median(kept)) if len(kept) else math.nan


def _unlike_too(values: Array, alike: Array) -> float:
    return typical(values, np.ones(len(values), dtype=bool))


def _zero_for_nothing(values: Array, alike: Array) -> float:
    return float(np.nan_to_num(typical(values, alike)))


def limits_of_agreement(measured: Array, marked: Array) -> tuple[int, float, float, float]:
    """Reference of 03.4: number of pairs, bias, and bias minus and plus 1.96 SD (Bland and Altman 1986)."""
    differences = np.asarray(measured, dtype=np.float64) - np.asarray(marked, dtype=np.float64)
    differences = differences[np.isfinite(differences)]
    bias, spread = float(differences.mean()), float(differences.std(ddof=1))
    return len(differences), bias, bias - 1.96 * spread, bias + 1.96 * spread


def _verify_limits(answer: Callable[[Array, Array], Any], rng: Any) -> None:
    measured, marked = np.array([102.0, 98.0, 110.0, 90.0]), np.array([100.0, 94.0, 104.0, 90.0])
    found = answer(measured.copy(), marked.copy())
    if found is None or np.shape(found) != (4,):
        raise Misconception("Return four numbers: how many pairs, the bias, the lower and the upper limit.")
    n, bias, low, high = (float(value) for value in found)
    if math.isclose(bias, -3.0):
        raise Misconception("Measured minus marked: a positive bias says that the measurement is too long.")
    expect_equal((n, bias), (4, 3.0), "n and bias of the differences 2, 4, 6 and 0")
    spread = (high - low) / 2 / 1.96
    differences = measured - marked
    if math.isclose(spread, differences.std(), rel_tol=1e-3):
        raise Misconception("These differences are a sample: divide by n - 1 (ddof=1), else the limits are too narrow.")
    if math.isclose(spread, differences.std(ddof=1) / 2, rel_tol=1e-3):
        raise Misconception("That is the bias's own uncertainty (SD / sqrt(n)). Limits are about the next patient.")
    expect_equal((n, bias, low, high), limits_of_agreement(measured, marked), "the limits of 2, 4, 6 and 0")
    far = answer(np.array([90.0, 110.0, 100.0]), np.array([100.0, 100.0, 100.0]))
    signed = "The differences keep their sign: too long and too short cancel in the bias, and count in the limits."
    expect_equal(far, limits_of_agreement(np.array([90.0, 110, 100]), np.full(3, 100.0)), "-10, 10 and 0", signed)
    gaps = answer(np.array([102.0, math.nan, 98.0, 97.0]), np.array([100.0, 80.0, math.nan, 96.0]))
    left_out = "A pair with an unknown value is no pair: leave it out, and count the others."
    expect_equal(gaps, limits_of_agreement(np.array([102.0, 97.0]), np.array([100.0, 96.0])), "two pairs", left_out)
    for size in rng.integers(3, 60, size=10):
        marked = rng.normal(160, 20, int(size))
        measured = marked + rng.normal(3, 8, int(size))
        expect_equal(answer(measured.copy(), marked.copy()), limits_of_agreement(measured, marked), f"{size} pairs")


def _population(measured: Array, marked: Array) -> tuple[int, float, float, float]:
    n, bias, low, high = limits_of_agreement(measured, marked)
    half = (high - low) / 2 * math.sqrt((n - 1) / n)
    return n, bias, bias - half, bias + half


def _absolute(measured: Array, marked: Array) -> tuple[int, float, float, float]:
    return limits_of_agreement(np.abs(measured - marked), np.zeros(len(marked)))


def _marked_first(measured: Array, marked: Array) -> tuple[int, float, float, float]:
    return limits_of_agreement(marked, measured)


def _standard_error(measured: Array, marked: Array) -> tuple[int, float, float, float]:
    n, bias, low, high = limits_of_agreement(measured, marked)
    half = (high - low) / 2 / math.sqrt(n)
    return n, bias, bias - half, bias + half


def _gaps_as_zero(measured: Array, marked: Array) -> tuple[int, float, float, float]:
    return limits_of_agreement(np.nan_to_num(measured), np.nan_to_num(marked))


EXERCISES = (
    Exercise(
        id="03.1",
        title="Three corrections of QT",
        difficulty=1,
        minutes=8,
        verify=_verify_qt,
        reference=correct_qt,
        wrong=(
            ("takes RR in milliseconds", _milliseconds),
            ("takes Framingham's constant in seconds", _framingham_in_seconds),
            ("multiplies", _multiplied),
            ("turns an unknown QT into 0", _unknown_as_zero),
        ),
    ),
    Exercise(
        id="03.2",
        title="Where a wave begins and ends",
        difficulty=2,
        minutes=20,
        verify=_verify_stretches,
        reference=stretches,
        wrong=(
            ("takes whole samples", _whole_samples),
            ("measures the fraction from the wrong side", _from_outside),
            ("joins all waves", _one_wave),
            ("loses waves that are cut off", _never_cut_off),
        ),
    ),
    Exercise(
        id="03.3",
        title="The typical beat",
        difficulty=2,
        minutes=12,
        verify=_verify_typical,
        reference=typical,
        wrong=(
            ("takes the mean", _mean),
            ("counts unknown as 0", _zero_for_unknown),
            ("keeps the beats at both ends", _all_beats),
            ("keeps beats that look unlike the others", _unlike_too),
            ("calls nothing 0", _zero_for_nothing),
        ),
    ),
    Exercise(
        id="03.4",
        title="Limits of agreement",
        difficulty=3,
        minutes=15,
        verify=_verify_limits,
        reference=limits_of_agreement,
        wrong=(
            ("divides by n", _population),
            ("takes sizes instead of differences", _absolute),
            ("subtracts the other way round", _marked_first),
            ("takes the standard error", _standard_error),
            ("counts unknown as 0", _gaps_as_zero),
        ),
    ),
)
