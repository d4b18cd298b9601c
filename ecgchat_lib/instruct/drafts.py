"""The plan of an ECG-Instruct data set: which conversations are held about which recordings, written by rules.

A draft is a conversation whose every answer is known to be right, with the facts that it rests on. A language model may
reword it later (`teachers.py`). Taught in: 10 §3.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ecgchat_lib.errors import EcgChatError, ParameterError
from ecgchat_lib.instruct.build import ECG_MARK, Turn, rng_for
from ecgchat_lib.instruct.compare import Comparison, Facts, find_pair_errors
from ecgchat_lib.instruct.dialogue import Balance, Chain, Narrator
from ecgchat_lib.instruct.facts import find_errors
from ecgchat_lib.instruct.findings import get_finding
from ecgchat_lib.instruct.wording import measured_line

if TYPE_CHECKING:
    import numpy as np

    from ecgchat_lib.datasets.manifest import Manifest
    from ecgchat_lib.ecg.measure import Measurements

CHECKED_SHARE = 0.4  # of the diagnoses that are asked with a finding, which the answer confirms or refutes first
PRESENCE_SHARE = 0.4  # of a dialogue's questions that ask whether a finding is there
FOLLOW_SHARE = 0.6  # of the chances for a follow-up that are taken
RECALL_EVERY = 4  # rounds; one of so many may ask again for what was answered
AGAIN = ("rhythm", "rate", "interval", "axis", "normal", "diagnosis", "summary")  # what may be asked again
LATER_SHARE = 0.5  # of the comparisons whose second ECG comes in a later turn


@dataclass(frozen=True)
class BuildConfig:
    """What a data set depends on beside its recordings.

    Attributes:
        diagnoses: conversations of one question; None: one per recording.
        dialogues: conversations of several rounds; None: one per recording.
        rounds: fewest and most rounds of a dialogue.
        comparisons: share of the dialogues that are about two recordings of one patient, as far as there are any.
        seed: of every random draw.
    """

    diagnoses: int | None = None
    dialogues: int | None = None
    rounds: tuple[int, int] = (4, 30)
    comparisons: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        counts = [count for count in (self.diagnoses, self.dialogues) if count is not None]
        if any(not 0 <= count <= 10_000_000 for count in counts):
            raise ParameterError(f"diagnoses={self.diagnoses}, dialogues={self.dialogues}: expected 0 to 10 million")
        if not 2 <= self.rounds[0] <= self.rounds[1] <= 60:
            raise ParameterError(f"rounds={self.rounds}: expected two numbers, 2 to 60, the smaller one first")
        if not 0 <= self.comparisons <= 1:
            raise ParameterError(f"comparisons={self.comparisons}: expected a share, 0 to 1")


@dataclass(frozen=True)
class Round:
    """One question with its answer in a draft.

    Attributes:
        turn: the question and the right answer.
        opening: what stands before the question: marks and measured values; mostly "".
        sides: which of the recordings the answer is about.
    """

    turn: Turn
    opening: str = ""
    sides: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Draft:
    """A conversation whose answers are right, and what makes them so.

    Attributes:
        name: the conversation's id.
        kind: "diagnosis", "dialogue" or "comparison".
        split: train, validation or test.
        records: names of the recordings, in the order of the marks.
        paths: where they are.
        facts: statements and measurements of each.
        reports: the manifest's report of each.
        rounds: the questions and answers.
    """

    name: str
    kind: str
    split: str
    records: tuple[str, ...]
    paths: tuple[str, ...]
    facts: tuple[Facts, ...]
    reports: tuple[str, ...]
    rounds: tuple[Round, ...]

    def errors(self, number: int, answer: str) -> list[str]:
        """Return what is wrong with an answer to question `number`, in words."""
        sides = self.rounds[number].sides
        if len(sides) == 1:
            return find_errors(answer, *self.facts[sides[0]])
        return find_pair_errors(answer, [self.facts[side] for side in sides])

    @property
    def digest(self) -> str:
        """Return a hash of everything that a language model is shown."""
        shown = repr((self.name, self.records, self.facts, self.reports, [asdict(one.turn) for one in self.rounds]))
        return hashlib.sha256(shown.encode()).hexdigest()[:16]


def make_drafts(
    manifest: Manifest, measurements: Mapping[str, Measurements] | None, config: BuildConfig
) -> list[Draft]:
    """Plan a data set. The same arguments give the same drafts on any machine.

    Recordings are taken in an order drawn from the seed, all of them before one comes again, so that a small data set
    is a fair sample. Within each split, every finding is affirmed and denied equally often, up to a few.

    Args:
        manifest: a checked manifest.
        measurements: record name → what was measured; None, or a missing name: nothing about numbers is asked.
        config: how many conversations, of what length.

    Raises:
        EcgChatError: an answer of a template is wrong (a bug), or nothing can be said of any recording.
    """
    if not len(manifest):
        raise EcgChatError("manifest: no recording in it; expected one at least. Check the folder or file")
    return _Planner(manifest, measurements or {}, config).plan()


class _Planner:
    def __init__(self, manifest: Manifest, measured: Mapping[str, Measurements], config: BuildConfig) -> None:
        self.rows: list[dict[str, Any]] = manifest[
            ["record", "path", "patient", "split", "report", "statements"]
        ].to_dict("records")  # type: ignore[assignment]
        self.measured, self.config = measured, config
        self.balance = Balance()
        order = rng_for(config.seed, "order").permutation(len(self.rows))
        self.order = [self.rows[int(k)] for k in order]

    def plan(self) -> list[Draft]:
        config = self.config
        diagnoses = len(self.rows) if config.diagnoses is None else config.diagnoses
        dialogues = len(self.rows) if config.dialogues is None else config.dialogues
        drafts = self._repeat(self.order, diagnoses, self._diagnosis)
        pairs = self._pairs()
        compared = self._repeat(pairs, min(round(dialogues * config.comparisons), 4 * len(pairs)), self._comparison)
        drafts += self._repeat(self.order, dialogues - len(compared), self._dialogue) + compared
        if (diagnoses or dialogues) and not drafts:
            raise EcgChatError("manifest: nothing is stated of any recording with certainty, so nothing can be asked")
        for draft in drafts:
            self._check(draft)
        return drafts

    def _repeat(self, items: Sequence[Any], count: int, make: Any) -> list[Draft]:
        """Go over the items again and again, until there are `count` drafts or nobody has one more to give."""
        out: list[Draft] = []
        again = 0
        while items and len(out) < count:
            before = len(out)
            for item in items:
                draft = make(item, again)
                if draft is not None:
                    out.append(draft)
                    if len(out) == count:
                        break
            again += 1
            if len(out) == before:
                break
        return out

    def _facts(self, row: Mapping[str, Any]) -> Facts:
        return row["statements"], self.measured.get(row["record"])

    def _draft(self, kind: str, rows: Sequence[Mapping[str, Any]], rounds: Sequence[Round], again: int) -> Draft:
        names = tuple(row["record"] for row in rows)
        return Draft(
            f"{'+'.join(names)}-{kind}-{again}",
            kind,
            rows[0]["split"],
            names,
            tuple(row["path"] for row in rows),
            tuple(self._facts(row) for row in rows),
            tuple(row["report"] for row in rows),
            tuple(rounds),
        )

    def _diagnosis(self, row: Mapping[str, Any], again: int) -> Draft | None:
        rng = rng_for(self.config.seed, "diagnosis", row["record"], again)
        narrator = Narrator(*self._facts(row), rng)
        turn = None
        if rng.random() < CHECKED_SHARE:
            turn = self._checked(narrator, row["split"])
        turn = turn or narrator.note(narrator.report)
        return None if turn is None else self._draft("diagnosis", [row], [Round(turn, self._opening(row))], again)

    def _checked(self, narrator: Narrator, split: str) -> Turn | None:
        chosen = narrator.presence_chains(1, split, self.balance)
        if not chosen or chosen[0].first.kind == "either":
            self._take_back(chosen, split)
            return None
        asked = get_finding(chosen[0].first.about)
        turn = narrator.note(lambda: narrator.report(asked))
        if turn is None:  # it was counted, but isn't asked
            self._take_back(chosen, split)
        return turn

    def _opening(self, row: Mapping[str, Any]) -> str:
        measured = self.measured.get(row["record"])
        return f"{ECG_MARK}\n" + (f"{measured_line(measured)}\n" if measured is not None else "")

    def _length(self, rng: np.random.Generator) -> int:
        """Draw a number of rounds; each doubling is as likely as the next, so short dialogues are more frequent."""
        low, high = (math.log(number) for number in (self.config.rounds[0], self.config.rounds[1] + 1))
        return min(int(math.exp(rng.uniform(low, high))), self.config.rounds[1])

    def _dialogue(self, row: Mapping[str, Any], again: int) -> Draft | None:
        rng = rng_for(self.config.seed, "dialogue", row["record"], again)
        narrator = Narrator(*self._facts(row), rng)
        length = self._length(rng)
        asked = narrator.presence_chains(max(1, round(PRESENCE_SHARE * length)), row["split"], self.balance)
        turns = _arrange(narrator, asked, narrator.chains(), length, rng)
        if len(turns) < self.config.rounds[0]:
            self._take_back(asked, row["split"])
            return None
        rounds = [Round(turn, self._opening(row) if number == 0 else "") for number, turn in enumerate(turns)]
        return self._draft("dialogue", [row], rounds, again)

    def _take_back(self, chains: Sequence[Chain], split: str) -> None:
        """Uncount the findings of a dialogue that came out too short."""
        for chain in chains:
            if chain.first.kind == "either":
                there, missing = chain.first.about.split("/")
                self.balance.add(split, there, False)
                self.balance.add(split, missing, True)
            else:
                self.balance.add(split, chain.first.about, not chain.first.truth)

    def _pairs(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Return two recordings of each patient who has several, in the manifest's order; more for whoever has more."""
        of: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows:
            of.setdefault(row["patient"], []).append(row)
        pairs = [(one, other) for rows in of.values() for one, other in pairwise(rows)]
        order = rng_for(self.config.seed, "pairs").permutation(len(pairs))
        return [pairs[int(k)] for k in order]

    def _comparison(self, pair: Sequence[Mapping[str, Any]], again: int) -> Draft | None:
        rows = tuple(pair)
        rng = rng_for(self.config.seed, "comparison", rows[0]["record"], rows[1]["record"], again)
        comparison = Comparison([self._facts(row) for row in rows], rng)
        length = self._length(rng)
        compared = comparison.turns(max(2, length // 2), rows[0]["split"], self.balance)
        alone = [
            (side, chain.first)
            for side in (0, 1)
            for chain in comparison.sides[side].chains()
            if chain.first.kind not in ("beyond", "open")
        ]
        alone = [alone[int(k)] for k in rng.permutation(len(alone))][: max(0, length - len(compared))]
        later = rng.random() < LATER_SHARE and any(side == 0 for side, _ in alone)
        rounds = self._two_rounds(comparison, rows, compared, alone, later, rng)
        return self._draft("comparison", rows, rounds, again) if len(rounds) >= self.config.rounds[0] else None

    def _two_rounds(
        self,
        comparison: Comparison,
        rows: Sequence[Mapping[str, Any]],
        compared: Sequence[Turn],
        alone: Sequence[tuple[int, Turn]],
        later: bool,
        rng: np.random.Generator,
    ) -> list[Round]:
        """Put the questions about one and about both into an order; with `later` the first ECG is spoken of alone."""
        before = [Round(turn) for side, turn in alone if side == 0] if later else []
        rest = [Round(comparison.about(side, turn), "", (side,)) for side, turn in alone if not (later and side == 0)]
        rest += [Round(turn, "", (0, 1)) for turn in compared]
        rest = [rest[int(k)] for k in rng.permutation(len(rest))]
        openings = [self._opening(row) for row in rows]
        if not later:
            rest[:1] = [replace(one, opening="".join(openings)) for one in rest[:1]]
            return rest
        before[0] = replace(before[0], opening=openings[0])
        told = openings[1] + "This is a second ECG of the same patient. "
        return before + [replace(one, opening=told) for one in rest[:1]] + rest[1:]

    def _check(self, draft: Draft) -> None:
        for number, one in enumerate(draft.rounds):
            errors = draft.errors(number, one.turn.answer)
            if errors:
                raise EcgChatError(
                    f"{draft.name}, round {number} ({one.turn.kind}): {one.turn.answer!r} {'; it '.join(errors)}. "
                    "Correct the template or the statements"
                )


def _arrange(
    narrator: Narrator, asked: Sequence[Chain], others: Sequence[Chain], length: int, rng: np.random.Generator
) -> list[Turn]:
    """Mix questions about findings with others; follow-ups come at once, recalls some rounds later."""
    room = length - len(asked)
    chosen: list[Chain] = list(asked)
    for chain in others:
        if room <= 0:
            break
        follow = tuple(turn for turn in chain.follow if rng.random() < FOLLOW_SHARE)[: room - 1]
        chosen.append(Chain(chain.first, follow))
        room -= 1 + len(follow)
    spare = room
    mixed = [chosen[int(k)] for k in rng.permutation(len(chosen))]
    turns: list[Turn] = []
    for chain in mixed:
        keep = chain.turns if chain not in asked or (spare > 0 and rng.random() < FOLLOW_SHARE) else (chain.first,)
        spare -= len(keep) - 1 if chain in asked else 0
        turns.extend(keep)
        if spare > 0 and len(turns) % RECALL_EVERY == 0:
            earlier = turns[int(rng.integers(max(1, len(turns) - 3)))]
            if earlier.kind in AGAIN:
                turns.append(narrator.recall(earlier))
                spare -= 1
    return turns[:length]
