"""The numbers of a sentence: of which measured quantity each is said, and whether it may be said.

A number is right if it is the measured value, or a limit in common use that is named as one ("below 100"). Units decide
first, then the nearest name of a quantity. Taught in: 10 §4.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ecgchat_lib.instruct.wording import whole

if TYPE_CHECKING:
    from ecgchat_lib.ecg.measure import Measurements

_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?")
_NOT_A_VALUE = re.compile(r"\b(?:12|3|6)[- ]leads?\b|\b[123](?:st|nd|rd)\b|\bleads? \d\b", re.IGNORECASE)
_NAME = re.compile(
    r"(?P<qtc_ms>corrected qt|qt corrected|qtc)|(?P<axis_deg>axis)|(?P<qt_ms>\bqt)|(?P<pr_ms>\bp-?[rq]\b)|"
    r"(?P<qrs_ms>\bqrs)|(?P<rr_ms>\br-?r\b)|(?P<heart_rate_bpm>\brate\b|\bpulse\b|beats per minute|\bbpm\b)",
    re.IGNORECASE,
)
_UNITS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(r"\s*" + pattern, re.IGNORECASE))
    for name, pattern in (
        ("rate", r"(?:bpm\b|beats?\b|/ ?min|per minute)"),
        ("ms", r"(?:ms\b|msec\b|milliseconds?\b)"),
        ("s", r"(?:s\b|secs?\b|seconds?\b)"),
        ("axis", r"(?:degrees?\b|°)"),
        ("other", r"(?:mv\b|millivolts?\b|mm\b|%|percent\b|years?\b|-?year)"),
    )
)
_BOTH_QT = re.compile(r"qt\s*/\s*qtc\D{0,20}?(\d+)\s*/\s*(\d+)", re.IGNORECASE)
_NOT = r"(?P<not>(?:\b(?:not|no|never)|n't)\s+(?:(?:any|be|clearly|much)\s+)?)?"  # directly before a comparison
_MORE = re.compile(
    rf"{_NOT}(?:above|over|more than|greater than|longer than|higher than|exceed\w*|at least|>|≥)\s*$", re.I
)
_LESS = re.compile(rf"{_NOT}(?:below|under|less than|shorter than|lower than|at most|up to|<|≤)\s*$", re.I)
_RANGE_WORD = re.compile(r"\b(?:normal|usual|usually|reference|limits?|range|between)\b", re.I)
_RANGE = re.compile(r"(-?\d+)\s*(?:-|to|and)\s*(-?\d+)")
_NOT_THIS = re.compile(r"(?:\b(?:not|never)|n't)\s+(?:be\s+)?(?:(?:at|about|around|exactly|of)\s+)?$", re.I)
_NAMED_LIMIT = re.compile(  # "normal up to 200 ms", "the limit of 120 ms", but not "is normal, below 100"
    r"\b(?:(?:normal(?:ly)?|usual(?:ly)?|reference)\W{0,3}(?:is|are|range|value)?\s*(?:not |no )?"
    r"(?:above|over|more than|longer than|below|under|less than|shorter than|at most|at least|up to|[<>≤≥])"
    r"|limit(?: (?:of|is|at))?)\W*$",
    re.I,
)
_INTERVALS = frozenset({"qtc_ms", "qt_ms", "pr_ms", "qrs_ms", "rr_ms"})

LIMITS: dict[str, frozenset[float]] = {
    "heart_rate_bpm": frozenset({50, 60, 100}),
    "pr_ms": frozenset({120, 200}),
    "qrs_ms": frozenset({100, 110, 120}),
    "qtc_ms": frozenset({440, 450, 460, 470, 480, 500}),
    "axis_deg": frozenset({-30, 0, 90}),
}
"""Limits of adults' normal values that are in common use; a text may name them as limits."""

_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ONES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_WORDS: dict[str, int] = {
    **{word: 10 * number for number, word in enumerate(_TENS, 2)},
    **{word: number for number, word in enumerate(_ONES, 1)},
    "hundred": 100,
}
_WORD = rf"(?:{'|'.join(_WORDS)})"
_SPELLED = re.compile(
    rf"\b{_WORD}(?:[\s-]+(?:and\s+)?{_WORD})*(?=\s+(?:beats|bpm|ms|milliseconds|degrees))", re.IGNORECASE
)


@dataclass(frozen=True)
class Said:
    """A number in a text.

    Attributes:
        field: the measured quantity that it is said of; None: can't tell.
        value: the number; seconds are turned into ms.
        relation: "=" for a value, ">" and "<" for a comparison, "range" for one end of a normal range, or a limit
            that is named as one.
        negated: whether value or comparison are denied by a word directly before them ("not longer than 120 ms").
        start: where the number begins in the sentence.
        stop: where it ends, without its unit.
    """

    field: str | None
    value: float
    relation: str = "="
    negated: bool = False
    start: int = 0
    stop: int = 0


def said_numbers(sentence: str) -> list[Said]:
    """Return the numbers of one sentence in their order; "12-lead" and "1st" hold none."""
    both = _BOTH_QT.search(sentence)
    if both:
        rest = sentence[: both.start()] + " " * (both.end() - both.start()) + sentence[both.end() :]
        first, second = (
            Said(field, float(both[k]), start=both.start(k), stop=both.end(k))
            for k, field in enumerate(("qt_ms", "qtc_ms"), 1)
        )
        return [first, second, *said_numbers(rest)]
    text = _NOT_A_VALUE.sub(lambda match: "·" * len(match.group()), sentence)
    names = [(match.start(), str(match.lastgroup)) for match in _NAME.finditer(text)]
    ranges = [match.span() for match in _RANGE.finditer(text) if _RANGE_WORD.search(text)]
    places = [(match.start(), match.end(), float(match.group())) for match in _NUMBER.finditer(text)]
    places += [(match.start(), match.end(), _spelled(match.group())) for match in _SPELLED.finditer(text)]
    found = []
    for start, end, value in sorted(places):
        unit = next((name for name, pattern in _UNITS if pattern.match(text, end)), None)
        field = _field(start, unit, names)
        scaled = value * 1000 if unit == "s" and field in _INTERVALS else value
        before = text[max(0, start - 60) : start]
        more, less = _MORE.search(before), _LESS.search(before)
        relation = ">" if more else "<" if less else "="
        negated = bool(more["not"]) if more else bool(less["not"]) if less else bool(_NOT_THIS.search(before))
        is_limit = field is not None and scaled in LIMITS.get(field, ())
        if any(low <= start < high for low, high in ranges) or (is_limit and _NAMED_LIMIT.search(before)):
            relation = "range"
        found.append(Said(field, scaled, relation, negated, start, end))
    return found


def _spelled(text: str) -> float:
    """Return "one hundred and five" as 105."""
    total = 0
    for word in re.split(r"[\s-]+", text.lower()):
        number = _WORDS.get(word, 0)
        total = max(total, 1) * 100 if word == "hundred" else total + number
    return float(total)


def _field(place: int, unit: str | None, names: list[tuple[int, str]]) -> str | None:
    if unit == "rate":
        return "heart_rate_bpm"
    if unit == "axis":
        return "axis_deg"
    if unit == "other":
        return None
    fitting = [(at, name) for at, name in names if unit is None or name in _INTERVALS]
    before = [name for at, name in fitting if at < place]
    after = [name for at, name in fitting if at > place]
    return before[-1] if before else after[0] if after else None


def wrong_number(said: Said, measurements: Measurements | None, *, general: bool = False) -> str | None:
    """Return what is wrong with a number, in words, or None.

    Args:
        said: from `said_numbers`.
        measurements: what was measured, or None.
        general: the sentence isn't about this ECG; then limits in common use may be named.
    """
    named = said.field or "an unnamed quantity"
    is_limit = said.field is not None and said.value in LIMITS.get(said.field, ())
    if is_limit and (general or said.relation == "range"):
        return None
    exact = math.nan if said.field is None or measurements is None else measurements.judged(said.field)
    known = whole(exact)
    if said.relation in "<>" and is_limit:
        if known is None:
            return f"compares {named} with {said.value:g}, measured: None"
        holds = known > said.value if said.relation == ">" else known < said.value
        return None if holds != said.negated else f"compares {named} with {said.value:g} wrongly, measured: {known}"
    if known is not None and (said.value == known or (said.value % 1 and abs(said.value - exact) < 0.051)):
        return None
    return f"says {said.value:g} for {named}, measured: {known}"
