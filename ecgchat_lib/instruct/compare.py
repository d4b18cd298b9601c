"""Dialogues about two recordings of one patient: what both show, what one of them shows, how the numbers differ.

"First" and "second" are places in the conversation; a manifest doesn't say which was recorded earlier.
Taught in: 10 §3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from ecgchat_lib.instruct.build import Statements, Turn
from ecgchat_lib.instruct.dialogue import ALL_VALUES, Balance, Narrator
from ecgchat_lib.instruct.facts import find_errors
from ecgchat_lib.instruct.findings import FINDINGS, Finding, get_finding, presence
from ecgchat_lib.instruct.wording import VERDICTS, join, without_article

if TYPE_CHECKING:
    import numpy as np

    from ecgchat_lib.ecg.measure import Measurements

Facts = tuple[Statements, "Measurements | None"]
NAMES = ("first", "second")
CLOSE = {
    "heart_rate_bpm": 3,
    "pr_ms": 8,
    "qrs_ms": 8,
    "qt_ms": 12,
    "qtc_ms": 12,
    "axis_deg": 8,
}  # less is no difference

ASKED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "which": ("Which of the two ECGs shows {it}?", "Can {it} be seen in both ECGs, in one, or in neither?"),
        "rhythm": ("How do the rhythms of the two ECGs compare?", "Is the rhythm the same in both ECGs?"),
        "verdict": ("Which of the ECGs is normal?", "How do you judge the two ECGs?"),
        "value": ("How does the {it} differ between the two ECGs?", "Compare the {it} of both ECGs."),
        "new": (
            "What does the second ECG show that the first one doesn't?",
            "Which findings are new in the second ECG?",
        ),
        "common": ("What do both ECGs show?", "Which findings do the two ECGs share?"),
    }
)

_PIECE = re.compile(
    r",\s*|;\s*|\bwhile\b|\bwhereas\b|\bbut\b|(?<=[.!?])\s+|\s+and\s+(?=(?:in )?the (?:first|second)\b)", re.I
)
_SIDE = re.compile(
    r"\b(?P<both>both|neither|each|either)\b|\b(?P<first>first)(?![ -]degree)\b|\b(?P<second>second)(?![ -]degree)\b",
    re.I,
)
_HIGHER = re.compile(
    r"\b(?P<what>heart rate|PR interval|QRS duration|corrected QT interval|QT interval) is "
    r"(?P<how>higher|faster|longer|lower|slower|shorter|about the same) in the (?P<side>first|second|two)",
    re.I,
)


def find_pair_errors(text: str, facts: Sequence[Facts]) -> list[str]:
    """Return what is wrong with an answer about two recordings, in words.

    Each part of a sentence is compared with the recording that it names ("first", "second"), or with both where it
    says "both" or "neither" or names none; without a name of its own it goes with the part before it.

    Args:
        text: the answer.
        facts: statements and measurements of the two.
    """
    errors = _wrong_order(text, facts)
    rest = _HIGHER.sub("", text)
    sides: tuple[int, ...] = (0, 1)
    for piece in _PIECE.split(rest):
        found = {match.lastgroup for match in _SIDE.finditer(piece)}
        if found:
            sides = (0,) if found == {"first"} else (1,) if found == {"second"} else (0, 1)
        for side in sides:
            errors += [f"{error} of the {NAMES[side]} ECG" for error in find_errors(piece, *facts[side])]
    return list(dict.fromkeys(errors))


def _wrong_order(text: str, facts: Sequence[Facts]) -> list[str]:
    errors = []
    fields = {name.lower(): field for field, name in ALL_VALUES.items()}
    for match in _HIGHER.finditer(text):
        field, side = fields[match["what"].lower()], match["side"].lower()
        values = [None if m is None else Narrator.value_of(m, field) for _, m in facts]
        if values[0] is None or values[1] is None:
            errors.append(f"compares {match['what']}, which isn't known of both")
            continue
        difference = values[1] - values[0]
        same = abs(difference) < CLOSE[field]
        up = match["how"].lower() in ("higher", "faster", "longer")
        right = same if side == "two" else (difference > 0) == (up == (side == "second")) and difference != 0
        if not right:
            errors.append(f"compares {match['what']} wrongly")
    return errors


class Comparison:
    """Writes questions and answers about two recordings of one patient.

    Args:
        facts: statements and measurements of the first and of the second.
        rng: picks wordings.
    """

    def __init__(self, facts: Sequence[Facts], rng: np.random.Generator) -> None:
        self.facts = tuple(facts)
        self.sides = [Narrator(statements, measured, rng) for statements, measured in facts]
        self.rng = rng

    def turns(self, count: int, split: str, balance: Balance) -> list[Turn]:
        """Return up to `count` questions that compare the two, in random order; their findings are counted."""
        made: list[Callable[[], Turn | None]] = [self.rhythm, self.verdict, self.new, self.common]
        made += [lambda field=field: self.value(field) for field in CLOSE if field != "axis_deg"]  # type: ignore[misc]
        turns = [turn for k in self.rng.permutation(len(made)) if (turn := made[int(k)]()) is not None]
        asked = self._which(max(2, count - len(turns)), split, balance)
        turns = turns[: count - len(asked)] + asked
        turns = [turn for turn in turns if not find_pair_errors(turn.answer, self.facts)]
        return [turns[int(k)] for k in self.rng.permutation(len(turns))]

    def _which(self, count: int, split: str, balance: Balance) -> list[Turn]:
        """Return questions which of the two shows a finding, those first that level affirmed and denied answers."""
        known: list[tuple[Finding, list[bool]]] = []
        for finding in FINDINGS:
            there = [presence(finding, statements) for statements, _ in self.facts]
            if None not in there and self._fits(finding, there):
                known.append((finding, [bool(one) for one in there]))
        order = [known[int(k)] for k in self.rng.permutation(len(known))]

        def need(item: tuple[Finding, list[bool]]) -> int:
            return sum(balance.need(split, item[0].name, one) for one in item[1])

        turns: list[Turn] = []
        for finding, both in sorted(order, key=lambda item: (-need(item), item[1][0] == item[1][1])):
            mixed = both[0] != both[1]
            if len(turns) == count or not (mixed or balance.allows(split, finding.name, both[0])):
                continue
            for one in both:
                balance.add(split, finding.name, one)
            turns.append(self.which(finding, both))
        return turns

    def _fits(self, finding: Finding, there: Sequence[bool | None]) -> bool:
        """Return whether measured rates agree with what is stated, for rhythms that depend on them."""
        asked = [side.presence(finding) for side in self.sides]
        return all(turn is not None and turn.truth is one for turn, one in zip(asked, there, strict=True))

    def which(self, finding: Finding, there: Sequence[bool]) -> Turn:
        """Ask which of the two shows a finding."""
        it = finding.phrase
        if there[0] == there[1]:
            answer = f"Both ECGs show {it}." if there[0] else f"Neither of the ECGs shows {without_article(it)}."
        else:
            yes, no = NAMES if there[0] else NAMES[::-1]
            answer = f"The {yes} ECG shows {it}. The {no} ECG does not show {it}."
        kind = "which " + "".join("yn"[not one] for one in there)
        return self._turn(kind, finding.name, ASKED["which"], answer, it)

    def rhythm(self) -> Turn | None:
        """Compare the rhythms; None where one of them is open."""
        names = [side.stated_rhythm() for side in self.sides]
        if names[0] is None or names[1] is None:
            return None
        first, second = (get_finding(name).phrase for name in names if name)
        both = names[0] == names[1]
        answer = f"Both ECGs show {first}." if both else f"The first ECG shows {first}. The second ECG shows {second}."
        return self._turn("compare rhythm", f"{names[0]}/{names[1]}", ASKED["rhythm"], answer)

    def verdict(self) -> Turn | None:
        """Compare the verdicts; None where one of them is open."""
        found = [side.verdict() for side in self.sides]
        if found[0] is None or found[1] is None:
            return None
        sentences = [f"The {name} one is {VERDICTS[one]}." for name, one in zip(NAMES, found, strict=True) if one]
        return self._turn("compare verdict", f"{found[0]}/{found[1]}", ASKED["verdict"], " ".join(sentences))

    def value(self, field: str) -> Turn | None:
        """Compare a measured value; None where one of them is unknown."""
        values = [side.value(field) for side in self.sides]
        if values[0] is None or values[1] is None:
            return None
        name, unit = ALL_VALUES[field], "beats per minute" if field == "heart_rate_bpm" else "ms"
        words = ("higher", "lower") if field == "heart_rate_bpm" else ("longer", "shorter")
        if abs(values[1] - values[0]) < CLOSE[field]:
            last = f"The {name} is about the same in the two."
        else:
            last = f"The {name} is {words[values[1] < values[0]]} in the second ECG."
        told = [f"In the {n} ECG the {name} is {v} {unit}." for n, v in zip(NAMES, values, strict=True)]
        return self._turn("compare value", field, ASKED["value"], " ".join([*told, last]), name)

    def new(self) -> Turn | None:
        """Ask for findings of the second that the first lacks; None where the statements can't tell for one."""
        pairs = [[presence(f, statements) for statements, _ in self.facts] for f in FINDINGS]
        if any(second and first is None for first, second in pairs):
            return None
        names = [f for f, (first, second) in zip(FINDINGS, pairs, strict=True) if second and not first]
        if not names or not all(self._fits(f, (False, True)) for f in names):
            return None
        it = join([f.phrase for f in names])
        answer = (
            f"The second ECG shows {it}. The first ECG shows no {join([without_article(f.phrase) for f in names])}."
        )
        return self._turn("compare new", "/".join(f.name for f in names), ASKED["new"], answer)

    def common(self) -> Turn | None:
        """Ask for what both show; None where nothing is."""
        names = [name for name in self.sides[0].findings() if name in self.sides[1].findings()]
        if not names:
            return None
        answer = f"Both ECGs show {join([get_finding(name).phrase for name in names])}."
        return self._turn("compare common", "/".join(names), ASKED["common"], answer)

    def about(self, side: int, turn: Turn) -> Turn:
        """Return a question about one of the two, with its name before question and answer."""
        name = NAMES[side]
        return replace(turn, question=f"About the {name} ECG: {turn.question}", answer=f"The {name} ECG: {turn.answer}")

    def _turn(self, kind: str, about: str, questions: Sequence[str], answer: str, it: str = "") -> Turn:
        number = int(self.rng.integers(len(questions)))
        return Turn(kind, about, None, questions[number].format(it=it), answer, f"{kind}:{number}")
