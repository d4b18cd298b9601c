"""Exercises of the tour: a rate from the beats, and the order of the path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ecgchat_lib.course import Exercise, Misconception, expect_equal


def heart_rate(peaks: Any, fs: float) -> float:
    """Reference of 00.1: 60 over the median time between beats in seconds."""
    return float(60 * fs / np.median(np.diff(peaks)))


def _verify_rate(answer: Callable[[Any, float], float], rng: Any) -> None:
    even = np.array([0, 500, 1000, 1500, 2000])
    found = answer(even, 500.0)
    if found == 500:
        raise Misconception("You returned the samples between two beats. Divide by fs to get seconds, then 60 by that.")
    if np.isclose(found, 1.0):
        raise Misconception("You returned seconds per beat, or beats per second. A heart rate is beats per minute.")
    if np.isclose(found, 75.0):
        raise Misconception("Five peaks enclose four intervals. Count the intervals between beats, not the beats.")
    expect_equal(found, 60.0, "five beats, one second apart")
    early = np.array([0, 500, 1000, 1250, 1750, 2250])
    expect_equal(
        answer(early, 500.0), 60.0, "a steady rhythm with one early beat", "The median overlooks a single early beat."
    )
    for _ in range(20):
        fs = float(rng.choice([125, 250, 400, 500, 1000]))
        peaks = np.cumsum(rng.integers(int(0.4 * fs), int(1.4 * fs), size=int(rng.integers(4, 20))))
        expect_equal(answer(peaks, fs), heart_rate(peaks, fs), f"{len(peaks)} beats at {fs:g} Hz")


def _mean_of_count(peaks: Any, fs: float) -> float:
    return float(len(peaks) * 60 * fs / (peaks[-1] - peaks[0]))


PATH = ("recording", "measurements", "tokens", "answer", "report")
_WHY = {
    "recording": "everything starts from what was recorded",
    "measurements": "measurements are taken from the recording, and no model is asked for them",
    "tokens": "the encoder turns the recording into tokens before the language model can read it",
    "answer": "the language model needs the tokens and the question",
    "report": "the report puts measurements and answers on one page, so it comes last",
}


def _verify_path(answer: Any, rng: Any) -> None:
    found = tuple(answer() if callable(answer) else answer)
    if set(found) != set(PATH) or len(found) != len(PATH):
        raise Misconception(f"Use each of these five words once: {', '.join(sorted(PATH))}.")
    for expected, name in zip(PATH, found, strict=True):
        if name != expected:
            raise Misconception(f"'{name}' stands too early: {_WHY[expected]}.")


EXERCISES = (
    Exercise(
        id="00.1",
        title="A heart rate from the places of the beats",
        difficulty=1,
        minutes=5,
        verify=_verify_rate,
        reference=heart_rate,
        wrong=(
            ("counts beats, not intervals", _mean_of_count),
            ("forgets the sampling rate", lambda peaks, fs: float(np.median(np.diff(peaks)))),
            ("takes the mean", lambda peaks, fs: float(60 * fs / np.mean(np.diff(peaks)))),
        ),
    ),
    Exercise(
        id="00.2",
        title="The order of the path",
        difficulty=1,
        minutes=3,
        verify=_verify_path,
        reference=PATH,
        wrong=(
            ("asks the model before it sees the ECG", ("recording", "measurements", "answer", "tokens", "report")),
            ("lets the model measure", ("recording", "tokens", "answer", "measurements", "report")),
        ),
    ),
)
