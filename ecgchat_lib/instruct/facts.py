"""A fact check for answers: no finding that the statements deny or leave open, no number that wasn't measured.

It reads the sentences of `wording.py`, splits them, looks for findings, negations and numbers, and compares each with
what is known. It is no general language understanding; a sentence it can't read holds nothing it could miss here.
Taught in: 10 §4.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.instruct.findings import FINDINGS, Finding, presence, rhythm_of
from ecgchat_lib.instruct.wording import whole, without_article

if TYPE_CHECKING:
    from ecgchat_lib.ecg.measure import Measurements

_NEGATION = re.compile(r"\b(no|not|without|absent|neither|nor|never)\b|n't\b", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?")
_FIELDS: tuple[tuple[str, str], ...] = (
    ("corrected qt", "qtc_ms"),
    ("qtc", "qtc_ms"),
    ("axis", "axis_deg"),
    ("qt", "qt_ms"),
    ("pr ", "pr_ms"),
    ("qrs", "qrs_ms"),
    ("rr ", "rr_ms"),
    ("beats per minute", "heart_rate_bpm"),
    ("rate", "heart_rate_bpm"),
)
_PHRASES: tuple[tuple[str, Finding], ...] = tuple(
    sorted(((without_article(f.phrase).lower(), f) for f in FINDINGS), key=lambda pair: -len(pair[0]))
)  # the longest first: "anterior myocardial infarction" before "myocardial infarction"


def claims(text: str) -> list[tuple[Finding, bool]]:
    """Return the findings that a text speaks of, each with whether it is affirmed (True) or denied (False)."""
    found = []
    for sentence in re.split(r"(?<=[.!?;])\s+", text):
        rest, denied = sentence.lower(), bool(_NEGATION.search(sentence))
        for phrase, finding in _PHRASES:
            if phrase in rest:
                found.append((finding, not denied))
                rest = rest.replace(phrase, "·")
    return found


def numbers(text: str) -> list[tuple[str | None, float]]:
    """Return the numbers of a text, each with the measured field that its sentence is about (None: can't tell)."""
    found: list[tuple[str | None, float]] = []
    for sentence in re.split(r"(?<=[.!?;])\s+", text):
        lower = sentence.lower()
        field = next((field for word, field in _FIELDS if word in lower), None)
        found += [(field, float(match.group())) for match in _NUMBER.finditer(sentence)]
    return found


def find_errors(
    text: str, statements: Sequence[tuple[str, float]], measurements: Measurements | None = None
) -> list[str]:
    """Return what is wrong with an answer, in words; an empty list if nothing is.

    Args:
        text: the answer.
        statements: (SCP code, likelihood) pairs of the recording.
        measurements: what was measured, or None: then every number is wrong.
    """
    errors = []
    for finding, affirmed in claims(text):
        there = presence(finding, statements)
        if finding.rhythm and affirmed and there is None:
            there = rhythm_of(statements) == finding.name or None
        if there is None:
            errors.append(f"speaks of {finding.phrase}, which the statements leave open")
        elif there != affirmed:
            errors.append(f"{'affirms' if affirmed else 'denies'} {finding.phrase} against the statements")
    for field, value in numbers(text):
        known = None if field is None or measurements is None else whole(measurements.judged(field))
        if known is None or value != known:
            errors.append(f"says {value:g} for {field or 'an unnamed quantity'}, measured: {known}")
    return errors


def check_facts(
    text: str,
    statements: Sequence[tuple[str, float]],
    measurements: Measurements | None = None,
    *,
    where: str = "answer",
) -> None:
    """Raise unless an answer holds only what statements and measurements hold.

    Raises:
        EcgChatError: with the place, the answer and everything that is wrong with it.
    """
    errors = find_errors(text, statements, measurements)
    if errors:
        raise EcgChatError(f"{where}: {text!r} {'; it '.join(errors)}. Correct the template or the statements")
