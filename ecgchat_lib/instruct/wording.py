"""How questions and answers are worded, and how measured values are written into a prompt.

Plain templates, several for each kind of question, so that a model learns the question and not its wording.
Nothing here decides what is true; that is `build.py`. Taught in: 10 §2.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ecgchat_lib.ecg.measure import Measurements

QUESTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "rhythm": (
            "What is the heart rhythm?",
            "Which rhythm does this ECG show?",
            "What rhythm is this?",
            "Can you name the rhythm?",
            "Describe the cardiac rhythm.",
            "Is the rhythm normal, and what is it called?",
        ),
        "rate": (
            "What is the heart rate?",
            "How fast does the heart beat?",
            "How many beats per minute are there?",
            "What rate do you read?",
            "Please give the heart rate.",
        ),
        "diagnosis": (
            "What does this ECG show?",
            "What are the findings?",
            "Please interpret this ECG.",
            "What is your diagnosis?",
            "Summarize this recording.",
            "Can you read this ECG for me?",
        ),
        "normal": (
            "Is this ECG normal?",
            "Is anything abnormal here?",
            "Would you call this ECG normal or abnormal?",
            "Is this a normal recording?",
        ),
        "presence": (
            "Does this ECG show {it}?",
            "Do you see {it}?",
            "Can {it} be seen here?",
            "Is there evidence of {it}?",
            "Would you say there is any sign of {it}?",
        ),
        "interval": (
            "What is the {it}?",
            "How long is the {it}?",
            "Please give the {it}.",
        ),
        "axis": (
            "What is the electrical axis?",
            "Where does the QRS axis point?",
            "Please give the axis.",
        ),
    }
)

ANSWERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "rhythm": (
            "This is {it}, at {rate} beats per minute.",
            "The ECG shows {it} at {rate} beats per minute.",
        ),
        "rhythm without rate": ("This is {it}.", "The ECG shows {it}."),
        "rate": ("The heart rate is {rate} beats per minute.",),
        "rate unknown": ("The heart rate could not be measured.",),
        "present": ("Yes, this ECG shows {it}.", "Yes, I see {it} here."),
        "absent": ("No, this ECG does not show {it}.", "No, I do not see {it} here."),
        "interval": ("The {it} is {value} ms.",),
        "interval unknown": ("The {it} could not be measured.",),
        "axis": ("The QRS axis is {value} degrees.",),
        "axis unknown": ("The QRS axis could not be measured.",),
        "diagnosis": ("This ECG shows {it}.", "I see {it}."),
        "nothing": ("There is no abnormal finding.",),
        "verdict": ("It is {it}.",),
    }
)

VERDICTS: Mapping[str, str] = MappingProxyType(
    {"normal": "a normal ECG", "borderline": "a borderline ECG", "abnormal": "an abnormal ECG"}
)

INTERVALS: Mapping[str, str] = MappingProxyType(
    {"pr_ms": "PR interval", "qrs_ms": "QRS duration", "qt_ms": "QT interval", "qtc_ms": "corrected QT interval"}
)


def join(parts: Sequence[str]) -> str:
    """Join phrases as in a sentence: "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def without_article(phrase: str) -> str:
    """Return a phrase without a leading "a" or "an"."""
    first, _, rest = phrase.partition(" ")
    return rest if first in ("a", "an") else phrase


def whole(value: float | None) -> int | None:
    """Round a measured value to a whole number; None for NaN and None."""
    return None if value is None or math.isnan(value) else round(value)


def measured_line(measurements: Measurements | None) -> str:
    """Write the measured values as the one line that stands in a prompt; "n/a" for what is unknown.

    Intervals in ms, the rate in beats per minute, the axis in degrees; ± is the standard deviation of RR.

    Args:
        measurements: what was measured, or None if nothing was.
    """
    if measurements is None:
        return "Measured: n/a"
    text = {
        name: "n/a" if (value := whole(measurements.judged(name))) is None else str(value)
        for name in ("heart_rate_bpm", "rr_ms", "rr_sd_ms", "pr_ms", "qrs_ms", "qt_ms", "qtc_ms", "axis_deg")
    }
    rhythm = {True: " regular", False: " irregular", None: ""}[measurements.regular]
    return (
        f"Measured: rate {text['heart_rate_bpm']}, RR {text['rr_ms']} ± {text['rr_sd_ms']}{rhythm}, "
        f"PR {text['pr_ms']}, QRS {text['qrs_ms']}, QT {text['qt_ms']}, QTc {text['qtc_ms']}, axis {text['axis_deg']}"
    )
