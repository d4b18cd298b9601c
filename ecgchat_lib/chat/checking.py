"""Where an answer says something else than the measurements and the classifier: its statements, each with its place.

It reads what is stated ("heart rate of 75", "first-degree AV block", "atrial fibrillation") and compares it with what
was measured and with what the diagnosis-driven classifier says. The classifier is often wrong itself, so that it
contradicts only where it is sure. The margins are set by judgment so far; `benchmarks/grounding.py` measures how often
right and wrong answers are marked. Silence is no proof that an answer is right, and what can't be judged is named by
`unchecked`. Taught in: 13 §3.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

from ecgchat_lib.chat.grounding import chance_of, is_said
from ecgchat_lib.instruct.facts import read_claims
from ecgchat_lib.instruct.findings import BY_NAME, FINDINGS, Finding, rhythm_class
from ecgchat_lib.instruct.quantities import Said, said_numbers
from ecgchat_lib.instruct.vocabulary import find_names
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

    absent: float = 0.25
    present: float = 0.25
    rhythm: float = 0.8
    other: float = 0.05


MARGINS = Margins()
# What a number in an answer may differ by, in the field's unit: wide beside the delineator's own mean errors (1 to
# 10 ms, data/results/measure_ludb.json), so that only what no rounding or other lead explains is called wrong.
TOLERANCE = {
    "heart_rate_bpm": 5.0,
    "rr_ms": 50.0,
    "pr_ms": 25.0,
    "qrs_ms": 25.0,
    "qt_ms": 40.0,
    "qtc_ms": 40.0,
    "axis_deg": 20.0,
}
PARTLY_KNOWN = frozenset({"ischemia"})  # half of these recordings have other statements than the classifier's
LONGEST = 20_000  # characters of an answer that are read

_SENTENCE = re.compile(r"[^.!?;\n]*(?:[.!?;](?!\s|$)[^.!?;\n]*)*[.!?;]?", re.S)
_PLAIN = str.maketrans({"’": "'", "−": "-", "–": "-", "‑": "-"})
_GENERAL = re.compile(r"\s*(?:in general|generally|as a rule|typically)\b", re.I)
_EXPONENT = re.compile(r"e[+-]?\d", re.I)
_DIGITS = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?")
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
    text: str,
    measurements: Measurements,
    reading: Reading | None = None,
    *,
    sex: str | None = None,
    age: float | None = None,
    margins: Margins = MARGINS,
) -> tuple[Contradiction, ...]:
    """Find statements of an answer that the measurements or the classifier contradict.

    Args:
        text: the model's answer; of a very long one the first `LONGEST` characters.
        measurements: of the same recording; a measurement that is NaN contradicts nothing.
        reading: what the classifier says of it, or None.
        sex: "female", "male" or None, for the limits.
        age: years or None, for the limits.
        margins: how sure the classifier must be.

    Returns:
        What was found, one entry per field and statement, in the order of the answer.
    """
    text = _about_this_one(text[:LONGEST])
    flags = {
        field: flag(field, measurements.judged(field), sex=sex, age=age) for field in TOLERANCE if field != "rr_ms"
    }
    found = [*_wrong_numbers(text, measurements, flags), *_wrong_words(text, flags)]
    found += [*_wrong_rhythm(text, measurements.regular), *_wrong_verdict(text, flags, measurements.regular)]
    if reading is not None:
        found += [item for claim in _claims(text) if (item := _against(claim, text, reading, margins))]
    kept: list[Contradiction] = []
    for item in sorted(found, key=lambda one: (one.start, -one.stop)):
        # "rate is 72" and "72 bpm" may be the same 72; what is said twice is shown once.
        if not any(
            other.field == item.field and (item.start < other.stop or other.claimed.lower() == item.claimed.lower())
            for other in kept
        ):
            kept.append(item)
    return tuple(kept)


def unchecked(text: str, measurements: Measurements, reading: Reading | None = None) -> tuple[str, ...]:
    """Return a note for what an answer says and nothing here can judge: findings, and numbers that nobody measured.

    Args:
        text: the model's answer.
        measurements: of the recording.
        reading: what the classifier says of it, or None: then no finding can be judged.
    """
    text = _about_this_one(text[:LONGEST])
    names = [
        claim.finding.phrase
        for claim in _claims(text)
        if claim.affirmed is not None and (reading is None or not _judged(claim.finding, claim.affirmed, reading))
    ]
    numbers = [
        f"{said.value:g}"
        for _, said in _numbers(text)
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


# --- findings, against the classifier


class _Claim(NamedTuple):
    finding: Finding
    affirmed: bool | None
    start: int
    stop: int


def _sentences(text: str) -> Iterator[tuple[int, str]]:
    """Yield sentences with their places, as long as they are in the text."""
    plain = text.translate(_PLAIN)
    for match in _SENTENCE.finditer(plain):
        if match.group().strip():
            yield match.start(), match.group()


def _about_this_one(text: str) -> str:
    """Return a text in which spaces stand for sentences that speak of ECGs in general; nothing else moves."""
    general = [(start, start + len(part)) for start, part in _sentences(text) if _GENERAL.match(part)]
    for start, stop in general:
        text = text[:start] + " " * (stop - start) + text[stop:]
    return text


def _claims(text: str) -> Iterator[_Claim]:
    """Yield what a text says of findings, each time at the first place in its sentence where the finding is named."""
    for start, sentence in _sentences(text):
        places: dict[str, list[slice]] = {}
        for place, finding in find_names(sentence):
            places.setdefault(finding.name, []).append(place)
        for claim in read_claims(sentence):
            here = places.get(claim.finding.name)
            if here:
                place = here.pop(0) if len(here) > 1 else here[0]
                yield _Claim(claim.finding, claim.affirmed, start + place.start, start + place.stop)


def _judged(finding: Finding, affirmed: bool, reading: Reading) -> bool:
    """Return whether the classifier can say anything about a statement of a finding."""
    if finding.rhythm:
        return any(other.rhythm and is_said(other, reading) for other in FINDINGS)
    if chance_of(finding, reading) is None:
        return False
    if not affirmed:
        return True  # one of its statements, said by the classifier, refutes a denial
    whole = finding.codes <= set(reading.probabilities)
    return finding.name not in PARTLY_KNOWN and (whole or finding.name in BY_NAME)


def _against(claim: _Claim, text: str, reading: Reading, margins: Margins) -> Contradiction | None:
    """Return what the classifier has against a statement."""
    finding, chance = claim.finding, chance_of(claim.finding, reading)
    if claim.affirmed is None or not _judged(finding, claim.affirmed, reading):
        return None
    if finding.rhythm and claim.affirmed:
        found = _other_rhythm(finding, reading, margins)
    elif chance is None:
        found = None
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


def _matches(pattern: str, text: str) -> Iterator[re.Match[str]]:
    """Yield the matches that no negation stands before in the same clause."""
    for match in re.finditer(pattern, text, re.IGNORECASE):
        clause = re.split(r"[.;,]", text[max(0, match.start() - 60) : match.start()])[-1]
        if not _NEGATION.search(clause):
            yield match


def _numbers(text: str) -> Iterator[tuple[slice, Said]]:
    """Yield the numbers of a text with their places; one that is spelled out has its sentence's."""
    for start, sentence in _sentences(text):
        digits = list(_DIGITS.finditer(sentence))
        for said in said_numbers(sentence):
            match = next((m for m in digits if float(m.group()) in (said.value, said.value / 1000)), None)
            if match is not None:
                digits.remove(match)
            low, high = (0, len(sentence)) if match is None else match.span()
            if _EXPONENT.match(sentence, high):
                continue  # "1e9" is no number that an answer would say of a heart
            yield slice(start + low, start + high), said


def _measured(item: Flag) -> str:
    return f"{item.shown} {item.unit} was measured"


def _wrong_numbers(text: str, measurements: Measurements, flags: dict[str, Flag]) -> Iterator[Contradiction]:
    for place, said in _numbers(text):
        value = math.nan if said.field is None else measurements.judged(said.field)
        if said.field is None or math.isnan(value) or not _is_wrong(said, value):
            continue
        found = _measured(flags[said.field]) if said.field in flags else f"{value:.0f} ms was measured"
        start, stop = _with_words(text, place)
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
    return apart > TOLERANCE[field]


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


def _wrong_words(text: str, flags: dict[str, Flag]) -> Iterator[Contradiction]:
    for field, agrees, pattern in _WORDS:
        item = flags[field]
        for match in _matches(pattern, text):
            if item.status not in ("unknown", agrees):
                normal = f" (normal: {item.normal})" if item.normal else ""
                yield Contradiction(field, match.group().strip(), _measured(item) + normal, *match.span(), "rule")


def _wrong_rhythm(text: str, regular: bool | None) -> Iterator[Contradiction]:
    if regular is None:
        return
    measured = f"the RR intervals are {'regular' if regular else 'irregular'}"
    for agrees, pattern in _REGULAR:
        if agrees is not regular:
            for match in _matches(pattern, text):
                yield Contradiction("regular", match.group().strip(), measured, *match.span(), "rule")


def _wrong_verdict(text: str, flags: dict[str, Flag], regular: bool | None) -> Iterator[Contradiction]:
    out = [f"{item.name} {item.shown} {item.unit}" for item in flags.values() if item.status in ("low", "high")]
    if out:
        measured = f"{' and '.join(out[:2])} {'lies' if len(out) == 1 else 'lie'} outside the limits"
    elif regular is False:
        measured = "the RR intervals are irregular"
    else:
        return
    for match in _matches(_VERDICT, text):
        yield Contradiction("verdict", match.group().strip(), measured, *match.span(), "rule")
