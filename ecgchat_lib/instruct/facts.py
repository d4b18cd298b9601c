"""A fact check for answers: no finding that the statements deny or leave open, no number that wasn't measured.

It reads free text clause by clause: which findings it names, whether a negation covers them, which numbers it says of
which quantity, and whether it calls the ECG or a value normal. Each is compared with what is known. It is no general
language understanding: what it has no word for, it doesn't see. How well it does is measured on hand-written answers in
`tests/test_instruct_facts.py`. The rules of negation follow NegEx (Chapman et al. 2001, doi:10.1006/jbin.2001.1029):
words before or after a finding, with words that end their reach. Taught in: 10 §4.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.instruct.findings import Finding, presence, present_codes, rhythm_of, verdict_of
from ecgchat_lib.instruct.quantities import Said, said_numbers, wrong_number
from ecgchat_lib.instruct.vocabulary import find_names
from ecgchat_lib.instruct.wording import whole

if TYPE_CHECKING:
    from ecgchat_lib.ecg.measure import Measurements

_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n+")
_ENUMERATED = re.compile(r"^\s*\d+[.)]\s+", re.M)
_ANSWER_NO = re.compile(
    r"(?:^|:)\s*(?:no|nope)\s*[,:;-]\s*(?=.*\b(?:is|are|shows?|sees?|has|have|do|does|can|was|were)\b)", re.I
)
_HARMLESS = re.compile(r"\b(?:no doubt|without (?:a |any )?doubt|not only|no question|not just)\b", re.I)
_NOT_EXCLUDED = re.compile(
    r"\b(?:can ?not|can't|could not|couldn't|is not|are not|not)\s+(?:be\s+)?(?:excluded?|ruled? out)\b", re.I
)
_NOT_BEFORE = re.compile(
    r"\b(?:no|not|without|neither|nor|never|none|nothing|absence of|lacks?|lacking|free of|negative for|rules? out|"
    r"ruled out|excludes?|rather than|instead of|absent|cannot|fails? to show)\b|n't\b",
    re.I,
)
_NOT_AFTER = re.compile(
    r"\b(?:absent|missing|excluded|ruled out|unlikely|lacking)\b|"
    r"(?:\bnot|\bcannot|n't)\s+(?:be\s+|to be\s+)?(?:present|seen|visible|shown|evident|found|there|detected|"
    r"identified|apparent|here|observed|recognizable|likely|supported|the case|confirmed|made out|diagnosed)\b|"
    r"\bnowhere\b|(?:\bis|\bare|\bdoes|\bdo)(?: not|n't)\s*[.!,]*\s*$",
    re.I,
)
_WITH = re.compile(r"\bwith\b", re.I)  # "atrial fibrillation with absent P waves": only these are
_CONTRAST = re.compile(
    r"\b(?:but|however|although|though|yet|whereas|while|except(?: for)?|apart from|aside from|other than|besides|"
    r"nevertheless|because|therefore|hence|instead(?! of)|only)\b|[;—]|\.{3}|"
    r"(?<=\w):(?=\s+(?:it|this|there|i)\b)",
    re.I,
)
_SOFT = re.compile(
    r"\b(?:consistent with|compatible with|suggest\w*|indicat\w+|pointing to|points to|due to|typical of|as in)\b", re.I
)
_JOINT = re.compile(r",\s*(?:and\s+)?|\s+and\s+", re.I)
_VERB = re.compile(
    r"\b(?:is|are|was|were|shows?|has|have|sees?|do|does|can|cannot|appears?|remains?|exists?)\b|n't\b", re.I
)
_OPEN = re.compile(
    r"\b(?:can ?not|can't|do not|don't|does not|doesn't|not)\s+(?:say|tell|know|judge|answer|state)\b|\bleft open\b|"
    r"\bleaves? (?:it |this |that )?open\b|\b(?:unclear|unknown|not known|not certain)\s+(?:if|whether)\b",
    re.I,
)
_GENERAL = re.compile(r"^\s*(?:in general|generally|as a rule|typically)\b", re.I)
_ECG = r"(?:12[- ]lead )?(?:ecg|ekg|electrocardiogram|tracing|recording|trace)"
_VERDICTS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("abnormal", re.compile(rf"\babnormal {_ECG}\b|\b{_ECG} (?:is|looks|appears) (?:clearly )?abnormal\b", re.I)),
    ("borderline", re.compile(rf"\bborderline(?: normal)? {_ECG}\b|\b{_ECG} (?:is|looks) borderline\b", re.I)),
    (
        "normal",
        re.compile(
            rf"(?<!otherwise )(?<!borderline )\bnormal {_ECG}\b|\bunremarkable\b|"
            rf"\b{_ECG} (?:is|looks|appears) (?:entirely |completely |quite |within )?normal\b",
            re.I,
        ),
    ),
)
_NOTHING_WRONG = re.compile(r"\bno (?:signs? of an? )?abnormal(?:ity|ities| findings?)\b|\bnothing abnormal\b", re.I)


@dataclass(frozen=True)
class Claim:
    """What a text says of one finding: there (True), not there (False), or not to be told (None); and where."""

    finding: Finding
    affirmed: bool | None
    start: int
    stop: int


@dataclass(frozen=True)
class Word:
    """Words for a measured value or for the whole ECG, such as "left axis deviation", and where they stand.

    Attributes:
        name: what they mean: a name in `MEASURED_WORDS`, or "normal", "borderline", "abnormal" of a whole ECG.
        affirmed: False where they are denied.
        start: where they begin in the text.
        stop: where they end.
    """

    name: str
    affirmed: bool
    start: int
    stop: int


def claims(text: str) -> list[tuple[Finding, bool]]:
    """Return the findings that a text speaks of, each with whether it is affirmed (True) or denied (False).

    What it says can't be told, and what it says in general, isn't among them. Within a sentence, longer names stand
    first.
    """
    return [(one.finding, one.affirmed) for one in read_claims(text) if one.affirmed is not None]


def read_claims(text: str) -> list[Claim]:
    """Return the findings that a text speaks of, those included that it leaves open; each once in a sentence."""
    found: list[Claim] = []
    for here in _claims_by_sentence(text):
        seen: set[tuple[str, bool | None]] = set()
        for one in here:
            if (one.finding.name, one.affirmed) not in seen:
                seen.add((one.finding.name, one.affirmed))
                found.append(one)
    return found


def find_claims(text: str) -> list[Claim]:
    """Return the same at each place where a finding is named, from left to right."""
    return sorted((one for here in _claims_by_sentence(text) for one in here), key=lambda one: one.start)


@lru_cache(maxsize=50_000)  # a data set says the same sentence thousands of times
def _claims_by_sentence(text: str) -> tuple[tuple[Claim, ...], ...]:
    """Return the claims of each sentence, those of longer names first."""
    found = []
    for begin, sentence in _sentences(text):
        if _GENERAL.search(sentence):
            continue
        leaves_open = bool(_OPEN.search(sentence))
        here = [
            Claim(finding, None if leaves_open else not denied, at + place.start, at + place.stop)
            for at, clause in _clauses(begin, sentence)
            for place, finding, denied in _read_clause(clause)
        ]
        found.append(tuple(sorted(here, key=lambda one: one.start - one.stop)))
    return tuple(found)


def _sentences(text: str) -> Iterator[tuple[int, str]]:
    """Yield the sentences of a text with their places; blanks stand for the numbers of an enumeration."""
    plain = text.replace("’", "'").replace("−", "-").replace("–", "-").replace("‑", "-")
    plain = _ENUMERATED.sub(_blank, plain)
    start = 0
    for match in [*_SENTENCE.finditer(plain), None]:
        stop = len(plain) if match is None else match.start()
        if plain[start:stop].strip():
            yield start, plain[start:stop]
        start = stop if match is None else match.end()


def _blank(match: re.Match[str]) -> str:
    return " " * len(match.group())


def _clauses(begin: int, sentence: str) -> list[tuple[int, str]]:
    """Cut a sentence where a negation ends: at "but", "except" and their like, and between two verbs.

    Args:
        begin: the sentence's place in the text; each clause comes with its own.
        sentence: every character that is replaced in it keeps its place.
    """
    sentence = _ANSWER_NO.sub(_blank, sentence, count=1)
    sentence = _HARMLESS.sub(_blank, sentence)
    sentence = _NOT_EXCLUDED.sub(lambda match: "is possible:"[: len(match.group())].ljust(len(match.group())), sentence)
    out: list[tuple[int, str]] = []
    last = 0
    for match in [*_CONTRAST.finditer(sentence), None]:
        stop = len(sentence) if match is None else match.start()
        out += _parts(begin + last, sentence[last:stop])
        last = stop if match is None else match.end()
    return [(at, part) for at, part in out if part.strip()]


def _parts(begin: int, part: str) -> Iterator[tuple[int, str]]:
    """Cut what stands between two contrasts where a second verb, or a cautious word, begins something new."""
    start = 0
    for match in sorted([*_SOFT.finditer(part), *_JOINT.finditer(part)], key=lambda m: m.start()):
        left, right = part[start : match.start()], part[match.end() :]
        soft = match.re is _SOFT
        if soft and _NOT_BEFORE.search(" ".join(left.split()[-2:])):
            continue  # "does not suggest": the negation goes on
        if soft or (_VERB.search(left) and _starts_clause(right)):
            yield begin + start, left
            start = match.end()
    yield begin + start, part[start:]


def _starts_clause(text: str) -> bool:
    """Return whether a text, up to the next comma or "and", has a verb of its own."""
    return bool(_VERB.search(_JOINT.split(text, maxsplit=1)[0]))


def _read_clause(clause: str) -> list[tuple[slice, Finding, bool]]:
    """Return the findings of one clause, each with its place and whether it is denied."""
    reach = _reach(clause)
    return [(place, finding, _is_denied(place, reach)) for place, finding in find_names(clause)]


def _reach(clause: str) -> tuple[list[int], list[int], list[int]]:
    """Return where negations stand that cover what follows, those that cover what precedes, and where these end."""
    before, after, ends = ([match.start() for match in p.finditer(clause)] for p in (_NOT_BEFORE, _NOT_AFTER, _WITH))
    return before, after, ends


def _is_denied(place: slice, reach: tuple[list[int], list[int], list[int]]) -> bool:
    before, after, ends = reach
    if before and before[0] < place.start:
        return True
    near, end = (next(iter(starts[bisect_left(starts, place.stop) :]), None) for starts in (after, ends))
    return near is not None and (end is None or end > near)


def verdicts(text: str) -> list[tuple[str, bool]]:
    """Return whether a text calls the ECG "normal", "borderline" or "abnormal", each with whether it affirms that."""
    return [(one.name, one.affirmed) for one in find_verdicts(text)]


@lru_cache(maxsize=50_000)
def find_verdicts(text: str) -> tuple[Word, ...]:
    """Return where a text calls the ECG "normal" (also "no abnormal finding"), "borderline" or "abnormal"."""
    found: list[Word] = []
    for begin, sentence in _sentences(text):
        if _GENERAL.search(sentence) or _OPEN.search(sentence):
            continue
        for at, clause in _clauses(begin, sentence):
            denied = [match.start() for match in _NOT_BEFORE.finditer(clause)]
            for name, pattern in _VERDICTS:
                for match in pattern.finditer(clause):
                    affirmed = not any(place < match.start() for place in denied)
                    found.append(Word(name, affirmed, at + match.start(), at + match.end()))
            if nothing := _NOTHING_WRONG.search(clause):
                found.append(Word("normal", True, at + nothing.start(), at + nothing.end()))
    return tuple(found)


def numbers(text: str) -> list[tuple[str | None, float]]:
    """Return the numbers of a text, each with the measured field that it is said of (None: can't tell)."""
    return [(one.field, one.value) for one, _ in read_numbers(text)]


def find_errors(
    text: str, statements: Sequence[tuple[str, float]], measurements: Measurements | None = None
) -> list[str]:
    """Return what is wrong with an answer, in words; an empty list if nothing is.

    Args:
        text: the answer.
        statements: (SCP code, likelihood) pairs of the recording.
        measurements: what was measured, or None: then every number is wrong.
    """
    errors = [error for one in read_claims(text) if (error := _wrong_claim(one, statements, measurements))]
    errors += _wrong_verdicts(text, statements, measurements)
    errors += _wrong_words(text, statements, measurements)
    errors += [e for one, general in read_numbers(text) if (e := wrong_number(one, measurements, general=general))]
    return errors


@lru_cache(maxsize=50_000)
def read_numbers(text: str) -> tuple[tuple[Said, bool], ...]:
    """Return the numbers of a text with their places, each with whether its sentence speaks in general."""
    return tuple(
        (replace(one, start=at + one.start, stop=at + one.stop), bool(_GENERAL.search(sentence)))
        for at, sentence in _sentences(text)
        for one in said_numbers(sentence)
    )


def _wrong_claim(
    claim: Claim, statements: Sequence[tuple[str, float]], measurements: Measurements | None
) -> str | None:
    finding, there = claim.finding, presence(claim.finding, statements)
    if finding.rhythm and claim.affirmed and there is None:
        there = rhythm_of(statements) == finding.name or None
    if claim.affirmed is None:
        return None if there is None else f"leaves {finding.phrase} open, which the statements answer"
    if there is None:
        return f"speaks of {finding.phrase}, which the statements leave open"
    if there != claim.affirmed:
        return f"{'affirms' if claim.affirmed else 'denies'} {finding.phrase} against the statements"
    return None


def _wrong_verdicts(text: str, statements: Sequence[tuple[str, float]], measurements: Measurements | None) -> list[str]:
    known = verdict_of(statements, None if measurements is None else whole(measurements.judged("heart_rate_bpm")))
    errors = []
    for name, affirmed in verdicts(text):
        if known is None:
            errors.append(f"calls the ECG {'' if affirmed else 'not '}{name}, which the statements leave open")
        elif affirmed != (name == known):
            errors.append(f"calls the ECG {'' if affirmed else 'not '}{name}; by the statements it is {known}")
    return errors


Patterns = tuple[tuple[str, re.Pattern[str]], ...]
MEASURED_WORDS: Patterns = tuple(
    (name, re.compile("|".join(patterns), re.I))
    for name, *patterns in (
        ("left axis deviation", r"\bleft(?:ward)? axis(?: deviation)?\b", r"\baxis is deviated to the left\b"),
        ("right axis deviation", r"\bright(?:ward)? axis(?: deviation)?\b", r"\baxis is deviated to the right\b"),
        ("a normal axis", r"(?<!ab)\bnormal (?:qrs |electrical )?axis\b", r"\baxis is normal\b"),
        (
            "a wide QRS",
            r"\b(?:wide|broad|prolonged|widened) qrs\b",
            r"\bqrs (?:complex |duration )?is (?:wide|broad|prolonged)\b",
        ),
        ("a narrow QRS", r"\bnarrow qrs\b", r"\bqrs (?:complex |duration )?is (?:narrow|normal)\b"),
        ("a normal PR interval", r"\bnormal pr\b", r"\bpr interval is (?:normal|within normal limits)\b"),
        ("a normal heart rate", r"\bnormal (?:heart )?rate\b", r"\brate is (?:normal|within normal limits)\b"),
        (
            "a fast rate",
            r"\btachycardi[ac]\b",
            r"\brate is (?:fast|high|rapid|elevated)\b",
            r"\b(?:rapid|fast) (?:heart )?rate\b",
        ),
        ("a slow rate", r"\bbradycardi[ac]\b", r"\brate is (?:slow|low)\b", r"\bslow (?:heart )?rate\b"),
        (
            "a regular rhythm",
            r"\bregular (?:rhythm|beats|intervals)\b",
            r"\b(?:rhythm|beats?|intervals?) (?:is|are|come) (?:regular|regularly|evenly)\b",
        ),
        ("an irregular rhythm", r"\birregular(?:ly)?\b"),
    )
)


def _wrong_words(text: str, statements: Sequence[tuple[str, float]], measurements: Measurements | None) -> list[str]:
    errors = []
    for word in find_words(text):
        right = _holds(word.name, statements, measurements)
        if right is None:
            errors.append(f"speaks of {word.name}, which isn't known")
        elif right != word.affirmed:
            errors.append(f"{'affirms' if word.affirmed else 'denies'} {word.name} against what was measured")
    return errors


@lru_cache(maxsize=50_000)
def find_words(text: str, patterns: Patterns = MEASURED_WORDS) -> tuple[Word, ...]:
    """Return words that stand for a measured value, such as "left axis deviation", each with whether it is affirmed.

    Args:
        text: an answer.
        patterns: names of such words, and what they look like; they aren't looked for in the names of findings.
    """
    found: list[Word] = []
    for begin, sentence in _sentences(text):
        if _GENERAL.search(sentence) or _OPEN.search(sentence):
            continue
        for at, clause in _clauses(begin, sentence):
            bare = clause
            for place, _ in reversed(find_names(clause)):  # "irregular sinus rhythm" is a finding's own name
                bare = bare[: place.start] + "·" * (place.stop - place.start) + bare[place.stop :]
            reach = _reach(bare)
            found += [
                Word(name, not _is_denied(slice(*match.span()), reach), at + match.start(), at + match.end())
                for name, pattern in patterns
                for match in pattern.finditer(bare)
            ]
    return tuple(found)


def _holds(name: str, statements: Sequence[tuple[str, float]], measurements: Measurements | None) -> bool | None:
    """Return whether a word for a measured value is right; None if nobody knows."""
    codes = present_codes(statements)
    if name == "a fast rate" and codes & {"STACH", "SVTAC", "PSVT"}:
        return True
    if name == "a slow rate" and "SBRAD" in codes:
        return True
    if name.endswith("regular rhythm") and "AFIB" in codes:
        return name.startswith("an ")
    if name == "an irregular rhythm" and codes & {"SARRH", "SVARR"}:
        return True
    if measurements is None:
        return None
    if name.endswith("regular rhythm"):
        return None if measurements.regular is None else measurements.regular != name.startswith("an ")
    field, low, high = _BOUNDS[name]
    value = measurements.judged(field)
    return None if math.isnan(value) else low <= round(value) <= high


_BOUNDS: dict[str, tuple[str, float, float]] = {  # usual adult limits, as in notebook 13
    "left axis deviation": ("axis_deg", -90, -31),
    "right axis deviation": ("axis_deg", 91, 180),
    "a normal axis": ("axis_deg", -30, 90),
    "a wide QRS": ("qrs_ms", 120, math.inf),
    "a narrow QRS": ("qrs_ms", 0, 119),
    "a normal PR interval": ("pr_ms", 120, 200),
    "a normal heart rate": ("heart_rate_bpm", 60, 100),
    "a fast rate": ("heart_rate_bpm", 101, math.inf),
    "a slow rate": ("heart_rate_bpm", 0, 59),
}


def find_losses(draft: str, written: str) -> list[str]:
    """Return what a rewritten answer no longer says, or says otherwise, than the draft it was made from.

    Args:
        draft: the answer that is known to be right.
        written: the same in other words.
    """
    after = {(one.finding.name, one.affirmed) for one in read_claims(written)}
    lost = [
        f"no longer {'affirms' if one.affirmed else 'leaves open' if one.affirmed is None else 'denies'} "
        f"{one.finding.phrase}"
        for one in read_claims(draft)
        if (one.finding.name, one.affirmed) not in after
    ]
    told = set(numbers(written))
    lost += [f"no longer says {value:g} for {field}" for field, value in numbers(draft) if (field, value) not in told]
    judged = set(verdicts(written))
    lost += [f"no longer calls the ECG {name}" for name, affirmed in verdicts(draft) if (name, affirmed) not in judged]
    return lost


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
