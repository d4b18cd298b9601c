"""Where an answer says something else than the measurements and the classifier: its statements, each with its place.

It reads what is stated ("heart rate of 75", "first-degree AV block", "atrial fibrillation") and compares it with what
was measured and with what the diagnosis-driven classifier says. The classifier is often wrong itself, so that it
contradicts only where it is sure, by margins that `benchmarks/grounding.py` chose; it counts how often right answers
are marked all the same. Silence is no proof that an answer is right, and what can't be judged is
named by `unchecked`. Taught in: 13 §3.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from ecgchat_lib.chat.grounding import chance_of, is_said
from ecgchat_lib.instruct.facts import (
    MEASURED_WORDS,
    Claim,
    Word,
    find_claims,
    find_verdicts,
    find_words,
    read_claims,
    read_numbers,
)
from ecgchat_lib.instruct.findings import BY_NAME, FINDINGS, Finding, rhythm_class
from ecgchat_lib.instruct.quantities import Said
from ecgchat_lib.knowledge.limits import Flag, Status, flag

if TYPE_CHECKING:
    from ecgchat_lib.ecg.measure import Measurements
    from ecgchat_lib.evaluate.classifier import Reading


@dataclass(frozen=True)
class Contradiction:
    """One statement of an answer that isn't borne out.

    Attributes:
        field: a name in `Measurements`, "regular", "verdict", or the name of a finding.
        claimed: the words of the answer.
        found: what was found instead, in words.
        start: where these words begin in the answer.
        stop: where they end.
        by: "measurement" (a number that was measured), "rule" (a word, by the limits of what was measured), or
            "classifier".
    """

    field: str
    claimed: str
    found: str
    start: int = 0
    stop: int = 0
    by: str = "measurement"

    def __str__(self) -> str:
        return f"“{self.claimed}”, but {self.found}"

    def as_dict(self) -> dict[str, object]:
        """Return every field under its name, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Margins:
    """How sure the classifier must be to contradict an answer.

    Attributes:
        absent: an affirmed finding is contradicted where its probability is below this share of its threshold.
        present: a denied one where its probability is above its threshold by this share of the way to 1.
        rhythm: a rhythm where the classifier's likeliest one, that excludes it, has at least this probability.
        other: and the stated one at most this.
    """

    absent: float = 0.1
    present: float = 0.0
    rhythm: float = 0.5
    other: float = 0.1


# Of benchmarks/grounding.py's grid those that mark most of the wrong sentences, and at most 5 % of the right ones, on
# the choosing half of PTB-XL's fold 9.
MARGINS = Margins()
# What a number in an answer may differ by, in the field's unit. Intervals: twice the delineator's own mean absolute
# error (data/results/measure_ludb.json), rounded up; QTc has QT's. Rate, RR and axis are often told in round numbers.
TOLERANCE = {
    "heart_rate_bpm": 5.0,
    "rr_ms": 10.0,
    "pr_ms": 10.0,
    "qrs_ms": 15.0,
    "qt_ms": 20.0,
    "qtc_ms": 20.0,
    "axis_deg": 10.0,
}
PARTLY_KNOWN = frozenset({"ischemia"})  # half of these recordings have other statements than the classifier's
LONGEST = 5000  # characters of an answer that are read

_EXPONENT = re.compile(r"e[+-]?\d", re.I)
_WORDS = (
    *MEASURED_WORDS,
    ("a long PR interval", re.compile(r"\b(?:prolonged|long) PR\b|\bPR (?:interval )?is (?:prolonged|long)\b", re.I)),
    ("a normal QT interval", re.compile(r"\bnormal (?:corrected )?QTc?\b|\bQTc? (?:interval )?is normal\b", re.I)),
    ("a narrow QRS", re.compile(r"\bnormal QRS\b(?! (?:electrical )?axis)", re.I)),
    ("a regular rhythm", re.compile(r"\bregular(?:ly)?\b", re.I)),
)
_MEANS: dict[str, tuple[str, Status]] = {  # words for a value: the field, and the status that agrees
    "left axis deviation": ("axis_deg", "low"),
    "right axis deviation": ("axis_deg", "high"),
    "a normal axis": ("axis_deg", "normal"),
    "a wide QRS": ("qrs_ms", "high"),
    "a narrow QRS": ("qrs_ms", "normal"),
    "a long PR interval": ("pr_ms", "high"),
    "a normal PR interval": ("pr_ms", "normal"),
    "a fast rate": ("heart_rate_bpm", "high"),
    "a slow rate": ("heart_rate_bpm", "low"),
    "a normal heart rate": ("heart_rate_bpm", "normal"),
    "a long QT interval": ("qtc_ms", "high"),
    "a normal QT interval": ("qtc_ms", "normal"),
}
_IMPLIES: dict[str, tuple[str, ...]] = {  # findings by whose presence something measured follows
    "sinus": ("a regular rhythm",),  # sinus arrhythmia is irregular, and has its own name
    "sinus_tachycardia": ("a fast rate", "a regular rhythm"),
    "sinus_bradycardia": ("a slow rate", "a regular rhythm"),
    "afib": ("an irregular rhythm",),
    "svt": ("a fast rate",),
    "psvt": ("a fast rate",),
    "ventricular tachycardia": ("a fast rate",),
    "av_block": ("a long PR interval",),
    "lpr": ("a long PR interval",),
    "lbbb": ("a wide QRS",),
    "clbbb": ("a wide QRS",),
    "crbbb": ("a wide QRS",),
    "long_qt": ("a long QT interval",),
}
_IS_MEASURED = frozenset({"av_block", "lpr", "long_qt"})  # nothing but the measurement: denied words are checked too


def contradictions(
    text: str,
    measurements: Measurements,
    reading: Reading | None = None,
    *,
    sex: str | None = None,
    age: float | None = None,
    margins: Margins = MARGINS,
    repeated: bool = False,
) -> tuple[Contradiction, ...]:
    """Find statements of an answer that the measurements or the classifier contradict.

    Args:
        text: the model's answer; of a very long one the first `LONGEST` characters.
        measurements: of the same recording; a measurement that is NaN contradicts nothing.
        reading: what the classifier says of it, or None.
        sex: "female", "male" or None, for the limits.
        age: years or None, for the limits.
        margins: how sure the classifier must be.
        repeated: also tell where the same words stand again.

    Returns:
        What was found, one entry per field and statement, in the order of the answer.
    """
    text = text[:LONGEST]
    flags = {
        field: flag(field, measurements.judged(field), sex=sex, age=age) for field in TOLERANCE if field != "rr_ms"
    }
    found = [*_wrong_numbers(text, measurements, flags), *_wrong_words(text, flags, measurements.regular)]
    found += _wrong_verdict(text, flags, measurements.regular)
    if reading is not None:
        found += [item for claim in find_claims(text) if (item := _against(claim, text, reading, margins))]
    kept: list[Contradiction] = []
    for item in sorted(found, key=lambda one: (one.start, -one.stop)):
        # "irregular" and "irregular rhythm" may be the same words; what is said twice is shown once.
        again = [other for other in kept if other.field == item.field]
        said = [] if repeated else [other.claimed.lower() for other in again]
        if item.claimed.lower() not in said and not any(item.start < other.stop for other in again):
            kept.append(item)
    return tuple(kept)


def unchecked(text: str, measurements: Measurements, reading: Reading | None = None) -> tuple[str, ...]:
    """Return a note for what an answer says and nothing here can judge: findings, and numbers that nobody measured.

    Args:
        text: the model's answer.
        measurements: of the recording.
        reading: what the classifier says of it, or None: then no finding can be judged.
    """
    text = text[:LONGEST]
    names = [
        claim.finding.phrase
        for claim in sorted(read_claims(text), key=lambda one: one.start)
        if claim.affirmed is not None and (reading is None or not _judged(claim.finding, claim.affirmed, reading))
    ]
    numbers = [
        f"{said.value:g}"
        for said in _numbers(text)
        if said.field is None or math.isnan(measurements.judged(said.field))
    ]
    notes = [f"not checked: {', '.join(dict.fromkeys(names))}"] if names else []
    return (*notes, *(f"the answer says {value}, which nothing measured supports" for value in dict.fromkeys(numbers)))


def marked(text: str, found: Sequence[Contradiction]) -> str:
    """Return an answer in which each contradicted statement is followed by " [contradicted: <why>]"."""
    out, last = [], 0
    for item in sorted(found, key=lambda one: one.stop):
        out += [text[last : item.stop], f" [contradicted: {item.found}]"]
        last = item.stop
    return "".join([*out, text[last:]])


# --- an answer about several recordings

_ECG = r"(?:12[- ]lead\s+)?(?:ecgs?|ekgs?|recordings?|tracings?|traces?)"
_ALONE = r"(?=\s*(?:[.,;:!?)]|$)|\s+(?:is|was|it|there|shows?|has|had|at|with|and|but|while|whereas|an?|the)\b)"
_REFERENCES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (which, re.compile(pattern, re.I))
    for which, pattern in (
        (
            "all",
            rf"\b(?:both|all|each|either|neither)(?:\s+(?:of|the|these|two|three))*\s+{_ECG}\b|"
            r"\bboth (?:show|have|are)\b|\bin (?:both|all|each)\b(?! (?:bundle|ventric|atri|lead))",
        ),
        ("first", rf"\b(?:first|earlier|earliest|older|old|previous|former)\s+(?:{_ECG}|one)\b"),
        ("first", rf"\bthe (?:first|former)(?![- ]degree){_ALONE}"),
        ("second", rf"\bsecond\s+(?:{_ECG}|one)\b|\bthe second(?![- ]degree){_ALONE}"),
        ("last", rf"\b(?:last|latest|later|newest|newer|new|current|latter)\s+(?:{_ECG}|one)\b"),
        ("last", rf"\bthe (?:last|latter){_ALONE}"),
    )
)
_PIECE = re.compile(r"[.!?;\n](?:\s|$)|\n|,|\b(?:and|but|while|whereas|however|versus)\b", re.I)
_END = re.compile(r"[.!?\n]")


def of_several(
    text: str, found: Sequence[Sequence[Contradiction]], names: Sequence[str]
) -> tuple[tuple[Contradiction, ...], tuple[str, ...]]:
    """Put together what contradicts an answer about several recordings.

    A statement is held against the recordings that its part of the sentence names ("the first ECG", "both ECGs"). Where
    none is named, it is contradicted if every recording contradicts it, and left open if some do.

    Args:
        text: the answer.
        found: what `contradictions(..., repeated=True)` finds for each recording, the earliest first.
        names: of the recordings.

    Returns:
        Contradictions, each with the recordings in `found`, and a note on statements that may be about any of them.
    """
    pairs = sorted(((k, one) for k, items in enumerate(found) for one in items), key=lambda pair: pair[1].start)
    groups: list[list[tuple[int, Contradiction]]] = []
    for pair in pairs:
        if groups and pair[1].start < max(one.stop for _, one in groups[-1]):
            groups[-1].append(pair)
        else:
            groups.append([pair])
    kept, left = [], []
    for group in groups:
        first = group[0][1]
        about = _recordings_meant(text, first.start, names)
        against = [(k, one) for k, one in group if about is None or k in about]
        if about is None and len({k for k, _ in group}) < len(names):
            left.append(f"“{first.claimed}”")
        elif against:
            why = "; ".join(dict.fromkeys(f"{names[k]}: {one.found}" for k, one in against))
            kept.append(replace(against[0][1], found=why))
    notes = (f"which recording is meant isn't said, so not checked: {', '.join(dict.fromkeys(left))}",) if left else ()
    return tuple(kept), notes


def _recordings_meant(text: str, place: int, names: Sequence[str]) -> frozenset[int] | None:
    """Return the recordings that a place in a text speaks of, by the nearest part of its sentence that names any."""
    begin = max((m.end() for m in _END.finditer(text, 0, place)), default=0)
    cuts = [begin, *(m.start() for m in _PIECE.finditer(text, begin) if m.start() > begin), len(text)]
    pieces = [text[low:high] for low, high in pairwise(cuts)]
    here = max(k for k, low in enumerate(cuts[:-1]) if low <= place)
    for back, piece in enumerate(reversed(pieces[: here + 1])):
        named = _named(piece, names)
        if named:
            (one, *more) = named
            return (
                None if more or (back and len(one) > 1) else one
            )  # "Both ECGs are fast, 110 and 120": which is which?
    return None


def _named(piece: str, names: Sequence[str]) -> set[frozenset[int]]:
    """Return the recordings that a part of a sentence names, a set for each way in which it does."""
    last = len(names) - 1
    places = {"first": {0}, "second": {min(1, last)}, "last": {last}, "all": set(range(len(names)))}
    found = {frozenset(places[which]) for which, pattern in _REFERENCES if pattern.search(piece)}
    called = [k for k, name in enumerate(names) if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", piece)]
    return found | {frozenset({k}) for k in called}


# --- findings, against the classifier


def _judged(finding: Finding, affirmed: bool, reading: Reading) -> bool:
    """Return whether the classifier can say anything about a statement of a finding."""
    if chance_of(finding, reading) is None:
        return False  # it was never taught it, so that its word for another rhythm says nothing about this one
    if finding.rhythm:
        return any(other.rhythm and is_said(other, reading) for other in FINDINGS)
    if not affirmed:
        return True  # one of its statements, said by the classifier, refutes a denial
    whole = finding.codes <= set(reading.probabilities)
    return finding.name not in PARTLY_KNOWN and (whole or finding.name in BY_NAME)


def _against(claim: Claim, text: str, reading: Reading, margins: Margins) -> Contradiction | None:
    """Return what the classifier has against a statement."""
    finding = claim.finding
    if claim.affirmed is None or not _judged(finding, claim.affirmed, reading):
        return None
    if finding.rhythm and claim.affirmed:
        found = _other_rhythm(finding, reading, margins)
    elif claim.affirmed:
        found = _too_unlikely(finding, reading, margins)
    else:
        found = _too_likely(finding, reading, margins)
    if found is None:
        return None
    claimed = text[claim.start : claim.stop]
    words = claimed if claim.affirmed else f"no {claimed}"
    return Contradiction(finding.name, words, found, claim.start, claim.stop, "classifier")


def _too_unlikely(finding: Finding, reading: Reading, margins: Margins) -> str | None:
    codes = [code for code in finding.codes if code in reading.probabilities]
    if any(code in reading.present for code in codes):
        return None
    if all(reading.probabilities[c] < margins.absent * reading.thresholds.get(c, 0.5) for c in codes):
        best = max(codes, key=lambda code: reading.probabilities[code])
        return f"the classifier gives it {_share(reading.probabilities[best])}{_limit(best, reading)}"
    return None


def _too_likely(finding: Finding, reading: Reading, margins: Margins) -> str | None:
    for code in sorted(finding.codes & set(reading.present), key=lambda one: -reading.probabilities[one]):
        limit = reading.thresholds.get(code, 0.5)
        if reading.probabilities[code] >= limit + margins.present * (1 - limit):
            return f"the classifier gives it {_share(reading.probabilities[code])}{_limit(code, reading)}"
    return None


def _other_rhythm(finding: Finding, reading: Reading, margins: Margins) -> str | None:
    """Return the classifier's rhythm, if it is sure of it and if the stated one excludes it."""
    said = next((other for other in FINDINGS if other.rhythm and is_said(other, reading)), None)
    if said is None or said.name == finding.name:
        return None
    kinds = {rhythm_class(said.name), rhythm_class(finding.name)}
    slow_and_fast = {said.name, finding.name} == {"sinus_bradycardia", "sinus_tachycardia"}
    if kinds == {"sinus"} and not slow_and_fast:
        return None
    sure, stated = chance_of(said, reading) or 0.0, chance_of(finding, reading) or 0.0
    if sure >= margins.rhythm and stated <= margins.other:
        return f"the classifier says {said.phrase}, {_share(sure)}"
    return None


def _share(value: float) -> str:
    return f"{100 * value:.0f} %" if value >= 0.01 else "less than 1 %"


def _limit(code: str, reading: Reading) -> str:
    limit = reading.thresholds.get(code)
    return "" if limit is None else f" (threshold {_share(limit)})"


# --- numbers and words, against the measurements


def _numbers(text: str) -> Iterator[Said]:
    """Yield what a text says in numbers of this ECG."""
    for said, general in read_numbers(text):
        if not general and not _EXPONENT.match(text, said.stop):  # "1e9" is no number that an answer would say
            yield said


def _measured(item: Flag) -> str:
    return f"{item.shown} {item.unit} was measured"


def _wrong_numbers(text: str, measurements: Measurements, flags: dict[str, Flag]) -> Iterator[Contradiction]:
    for said in _numbers(text):
        value = math.nan if said.field is None else measurements.judged(said.field)
        if said.field is None or math.isnan(value) or not _is_wrong(said, value):
            continue
        found = _measured(flags[said.field]) if said.field in flags else f"{value:.0f} ms was measured"
        start, stop = _with_words(text, slice(said.start, said.stop))
        yield Contradiction(said.field, text[start:stop], found, start, stop)


def _is_wrong(said: Said, value: float) -> bool:
    """Return whether a number differs from the measured one, or compares it wrongly."""
    field = str(said.field)
    apart = abs(said.value - value)
    apart = min(apart, 360 - apart) if field == "axis_deg" else apart
    if said.relation == "range":
        return False  # what is normal, and not what this ECG shows
    if said.relation in "<>":
        holds = value > said.value if said.relation == ">" else value < said.value
        return holds == said.negated and apart > TOLERANCE[field]
    return apart < 1 if said.negated else apart > TOLERANCE[field]


_UNIT = re.compile(
    r"\s*(?:bpm\b|beats?(?: per minute|/ ?min)?|/ ?min\b|per minute|ms\b|milliseconds?\b|degrees?\b|°)", re.I
)
_NAME = re.compile(r"(?:\b(?:rate|corrected QT|QTc?|PR|QRS(?: axis)?|axis|RR)\b[^.;,\d-]{0,30}?)$", re.I)


def _with_words(text: str, place: slice) -> tuple[int, int]:
    """Widen the place of a number to the name before it and the unit behind it."""
    after = _UNIT.match(text, place.stop)
    stop = after.end() if after else place.stop
    before = _NAME.search(text[max(0, place.start - 50) : place.start])
    return place.start - (len(before.group()) if before else 0), stop


def _said_words(text: str) -> Iterator[Word]:
    """Yield the words of a text for measured values, and what follows for these from the findings that it names."""
    yield from find_words(text, _WORDS)
    for claim in find_claims(text):
        affirmed, finding = claim.affirmed, claim.finding.name
        if affirmed is not None and (affirmed or finding in _IS_MEASURED):
            for name in _IMPLIES.get(finding, ()):
                yield Word(name, affirmed, claim.start, claim.stop)


def _wrong_words(text: str, flags: dict[str, Flag], regular: bool | None) -> Iterator[Contradiction]:
    for word in _said_words(text):
        if word.name in _MEANS:
            field, agrees = _MEANS[word.name]
            item = flags[field]
            holds = None if item.status == "unknown" else item.status == agrees
            why = _measured(item) + (f" (normal: {item.normal})" if item.normal else "")
        else:
            field, holds = "regular", None if regular is None else regular == (word.name == "a regular rhythm")
            why = f"the RR intervals are {'regular' if regular else 'irregular'}"
        if holds is not None and holds != word.affirmed:
            claimed = text[word.start : word.stop]
            yield Contradiction(
                field, claimed if word.affirmed else f"no {claimed}", why, word.start, word.stop, "rule"
            )


def _wrong_verdict(text: str, flags: dict[str, Flag], regular: bool | None) -> Iterator[Contradiction]:
    out = [f"{item.name} {item.shown} {item.unit}" for item in flags.values() if item.status in ("low", "high")]
    if out:
        measured = f"{' and '.join(out[:2])} {'lies' if len(out) == 1 else 'lie'} outside the limits"
    elif regular is False:
        measured = "the RR intervals are irregular"
    else:
        return
    for said in find_verdicts(text):
        claimed = text[said.start : said.stop]
        if said.name == "normal" and said.affirmed and claimed.lower() != "unremarkable":  # of what, isn't said
            yield Contradiction("verdict", claimed, measured, said.start, said.stop, "rule")
