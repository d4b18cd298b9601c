"""Where a model's answer says something else than the measurements: a thin check of numbers and of a few words.

It compares what is stated ("heart rate of 75", "first-degree AV block", "normal axis") with what was measured, and
stays silent about everything else. Silence is no proof that an answer is right. Taught in: 13 §3
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ecgchat_lib.knowledge.limits import Flag, Status, flag

if TYPE_CHECKING:
    from ecgchat_lib.ecg.measure import Measurements


@dataclass(frozen=True)
class Contradiction:
    """One statement of an answer that the measurements don't bear out."""

    field: str  # name in `Measurements`
    claimed: str  # the words of the answer
    measured: str  # the measurement in words

    def __str__(self) -> str:
        return f"“{self.claimed}”, but {self.measured}"


# What a number in an answer may differ by, in the field's unit: about twice the delineator's own mean error.
TOLERANCE = {"heart_rate_bpm": 5.0, "pr_ms": 25.0, "qrs_ms": 25.0, "qt_ms": 40.0, "qtc_ms": 40.0, "axis_deg": 20.0}

_GAP = r"[^.;,\d-]{0,30}?"  # between a name and its number: no other number, no other clause
_NUMBERS: tuple[tuple[str, str], ...] = (
    ("heart_rate_bpm", rf"\brate{_GAP}(\d{{2,3}})\b(?!\s*ms)"),
    ("heart_rate_bpm", r"\b(\d{2,3})\s*(?:bpm|beats per minute|beats/min)"),
    ("pr_ms", rf"\bPR\b{_GAP}(\d{{2,3}})\s*(?:ms|milliseconds)"),
    ("qrs_ms", rf"\bQRS\b(?! axis){_GAP}(\d{{2,3}})\s*(?:ms|milliseconds)"),
    ("qt_ms", rf"(?<!corrected )\bQT\b{_GAP}(\d{{3}})\s*(?:ms|milliseconds)"),
    ("qtc_ms", rf"\b(?:QTc|corrected QT)\b{_GAP}(\d{{3}})\s*(?:ms|milliseconds)"),
    ("axis_deg", rf"\baxis\b{_GAP}(-?\d{{1,3}})\s*(?:°|deg)"),
)
_WORDS: tuple[tuple[str, Status, str], ...] = (  # field, the status that would agree, words
    ("heart_rate_bpm", "high", r"\btachycardia"),
    ("heart_rate_bpm", "low", r"\bbradycardia"),
    ("heart_rate_bpm", "normal", r"\bnormal (?:heart )?rate\b"),
    ("pr_ms", "high", r"\b(?:first[- ]degree|1st[- ]degree|prolonged PR|long PR)\b"),
    ("pr_ms", "normal", r"\bnormal PR\b"),
    ("qrs_ms", "high", r"\b(?:wide QRS|(?:left|complete right) bundle branch block)\b"),
    ("qrs_ms", "normal", r"\b(?:normal|narrow) QRS\b(?! axis)"),
    ("qtc_ms", "high", r"\b(?:prolonged|long) QTc?\b"),
    ("qtc_ms", "normal", r"\bnormal QTc?\b"),
    ("axis_deg", "low", r"\bleft axis\b"),
    ("axis_deg", "high", r"\bright axis\b"),
    ("axis_deg", "normal", r"\bnormal (?:QRS )?axis\b"),
)
_REGULAR: tuple[tuple[bool, str], ...] = (
    (False, r"\batrial fibrillation\b"),
    (False, r"\birregular(?:ly)?\b"),
    (True, r"\bregular(?:ly)?\b"),
    (True, r"\bsinus (?:rhythm|tachycardia|bradycardia)\b"),  # sinus arrhythmia is irregular, and has its own name
)
_VERDICT = r"\bnormal ECG\b|\bno abnormal findings?\b"
_NEGATION = re.compile(r"\b(?:no|not|without|never|neither|nor|absen(?:t|ce)|rules? out|isn't|incomplete)\b", re.I)


def contradictions(
    text: str, measurements: Measurements, *, sex: str | None = None, age: float | None = None
) -> tuple[Contradiction, ...]:
    """Find statements of an answer that the measurements contradict.

    Args:
        text: the model's answer.
        measurements: of the same recording; a measurement that is NaN contradicts nothing.
        sex: "female", "male" or None, for the limits.
        age: years or None, for the limits.

    Returns:
        What was found, one entry per field and statement, in the order of the answer.
    """
    flags = {field: flag(field, measurements.judged(field), sex=sex, age=age) for field in TOLERANCE}
    found = [*_wrong_numbers(text, flags), *_wrong_words(text, flags)]
    found += [*_wrong_rhythm(text, measurements.regular), *_wrong_verdict(text, flags, measurements.regular)]
    kept: list[tuple[slice, Contradiction]] = []
    for span, item in sorted(found, key=lambda pair: (pair[0].start, -pair[0].stop)):
        # "rate is 72" and "72 bpm" may be the same 72; what is said twice is shown once.
        if not any(
            other.field == item.field and (span.start < where.stop or other.claimed.lower() == item.claimed.lower())
            for where, other in kept
        ):
            kept.append((span, item))
    return tuple(item for _, item in kept)


def _matches(pattern: str, text: str) -> Iterator[re.Match[str]]:
    """Yield the matches that no negation stands before in the same clause."""
    for match in re.finditer(pattern, text, re.IGNORECASE):
        clause = re.split(r"[.;,]", text[max(0, match.start() - 60) : match.start()])[-1]
        if not _NEGATION.search(clause):
            yield match


def _measured(item: Flag) -> str:
    return f"{item.shown} {item.unit} was measured"


def _wrong_numbers(text: str, flags: dict[str, Flag]) -> Iterator[tuple[slice, Contradiction]]:
    for field, pattern in _NUMBERS:
        item = flags[field]
        for match in _matches(pattern, text):
            apart = abs(float(match.group(1)) - item.value)
            apart = min(apart, 360 - apart) if field == "axis_deg" else apart
            if math.isfinite(apart) and apart > TOLERANCE[field]:
                yield slice(*match.span()), Contradiction(field, match.group().strip(), _measured(item))


def _wrong_words(text: str, flags: dict[str, Flag]) -> Iterator[tuple[slice, Contradiction]]:
    for field, agrees, pattern in _WORDS:
        item = flags[field]
        for match in _matches(pattern, text):
            if item.status not in ("unknown", agrees):
                normal = f" (normal: {item.normal})" if item.normal else ""
                yield slice(*match.span()), Contradiction(field, match.group().strip(), _measured(item) + normal)


def _wrong_rhythm(text: str, regular: bool | None) -> Iterator[tuple[slice, Contradiction]]:
    if regular is None:
        return
    measured = f"the RR intervals are {'regular' if regular else 'irregular'}"
    for agrees, pattern in _REGULAR:
        if agrees is not regular:
            for match in _matches(pattern, text):
                yield slice(*match.span()), Contradiction("regular", match.group().strip(), measured)


def _wrong_verdict(text: str, flags: dict[str, Flag], regular: bool | None) -> Iterator[tuple[slice, Contradiction]]:
    out = [f"{item.name} {item.shown} {item.unit}" for item in flags.values() if item.status in ("low", "high")]
    if out:
        measured = f"{' and '.join(out[:2])} {'lies' if len(out) == 1 else 'lie'} outside the limits"
    elif regular is False:
        measured = "the RR intervals are irregular"
    else:
        return
    for match in _matches(_VERDICT, text):
        yield slice(*match.span()), Contradiction("verdict", match.group().strip(), measured)
