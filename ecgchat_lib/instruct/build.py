"""ECG-Instruct by templates: conversations about recordings, made from their statements and measurements alone.

The teacher here is a set of rules, not a language model: every sentence can be traced to a statement or a measured
value, and `facts.check_facts` traces it again before a conversation leaves. Taught in: 10 §3.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgchat_lib.errors import EcgChatError, ParameterError
from ecgchat_lib.instruct.facts import check_facts
from ecgchat_lib.instruct.findings import (
    FINDINGS,
    Finding,
    findings_of,
    get_finding,
    is_contradicted,
    presence,
    rhythm_of,
    verdict_of,
)
from ecgchat_lib.instruct.wording import (
    ANSWERS,
    INTERVALS,
    QUESTIONS,
    VERDICTS,
    join,
    measured_line,
    whole,
)

if TYPE_CHECKING:
    from ecgchat_lib.datasets.manifest import Manifest
    from ecgchat_lib.ecg.measure import Measurements

ECG_MARK = "<ecg>"
Conversation = dict[str, Any]
Statements = Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Turn:
    """One question with its answer, and what makes the answer right.

    Attributes:
        kind: "rhythm", "rate", "presence", "diagnosis", "normal", "interval" or "axis".
        about: the finding, rhythm, verdict or measured field that the answer turns on.
        truth: True or False for "presence", the rounded value for numbers (None: unknown), else the same as `about`.
        question: without the ECG mark and the measured values.
        answer: what the assistant should say.
        wording: which texts were picked, such as "rhythm:1.0"; "" if nobody noted it.
    """

    kind: str
    about: str
    truth: bool | int | str | None
    question: str
    answer: str
    wording: str = ""


class Teacher:
    """Writes questions and answers about one recording.

    Args:
        statements: (SCP code, likelihood in percent) pairs.
        measurements: what was measured, or None; then nothing about numbers is asked.
        rng: picks wordings.
    """

    def __init__(self, statements: Statements, measurements: Measurements | None, rng: np.random.Generator) -> None:
        self.statements = tuple(statements)
        self.measurements = measurements
        self.rng = rng

    def rhythm(self) -> Turn | None:
        """Ask for the rhythm; None where the statements leave it open or the measured rate contradicts them."""
        name = self.stated_rhythm()
        if name is None:
            return None
        rate = self._value("heart_rate_bpm")
        key = "rhythm" if rate is not None else "rhythm without rate"
        answer = self._pick(ANSWERS[key]).format(it=get_finding(name).phrase, rate=rate)
        return Turn("rhythm", name, name, self._pick(QUESTIONS["rhythm"]), answer)

    def rate(self) -> Turn | None:
        """Ask for the heart rate; None without measurements."""
        if self.measurements is None:
            return None
        rate = self._value("heart_rate_bpm")
        answer = self._pick(ANSWERS["rate" if rate is not None else "rate unknown"]).format(rate=rate)
        return Turn("rate", "heart_rate_bpm", rate, self._pick(QUESTIONS["rate"]), answer)

    def interval(self, field: str) -> Turn | None:
        """Ask for a measured interval, such as "pr_ms"; None without measurements."""
        if self.measurements is None:
            return None
        value, name = self._value(field), INTERVALS[field]
        answer = self._pick(ANSWERS["interval" if value is not None else "interval unknown"])
        question = self._pick(QUESTIONS["interval"]).format(it=name)
        return Turn("interval", field, value, question, answer.format(it=name, value=value))

    def axis(self) -> Turn | None:
        """Ask for the electrical axis; None without measurements."""
        if self.measurements is None:
            return None
        value = self._value("axis_deg")
        answer = self._pick(ANSWERS["axis" if value is not None else "axis unknown"]).format(value=value)
        return Turn("axis", "axis_deg", value, self._pick(QUESTIONS["axis"]), answer)

    def presence(self, finding: Finding) -> Turn | None:
        """Ask whether a finding is there; None where the statements leave it open. What isn't there is refuted."""
        there = presence(finding, self.statements)
        if finding.name in ("sinus_bradycardia", "sinus_tachycardia") and self.measurements is not None:
            # statements and rate must agree: affirmed at a fitting rate, denied at one that doesn't fit
            there = None if there is self._contradicted(finding.name) else there
        if there is None:
            return None
        question = self._pick(QUESTIONS["presence"]).format(it=finding.phrase)
        answer = self._pick(ANSWERS["present" if there else "absent"]).format(it=finding.phrase)
        return Turn("presence", finding.name, there, question, answer)

    def normal(self) -> Turn | None:
        """Ask whether the ECG is normal; None where the statements don't say."""
        verdict = self.verdict()
        if verdict is None:
            return None
        answer = self._pick(ANSWERS["verdict"]).format(it=VERDICTS[verdict])
        return Turn("normal", verdict, verdict, self._pick(QUESTIONS["normal"]), answer)

    def diagnosis(self) -> Turn | None:
        """Ask for all findings; None where there is nothing to say."""
        verdict, names = self.verdict(), self.findings()
        if verdict is None or not names:
            return None
        phrases = [get_finding(name).phrase for name in names]
        sentences = [self._pick(ANSWERS["diagnosis"]).format(it=join(phrases))]
        if verdict == "normal":
            sentences.append(self._pick(ANSWERS["nothing"]))
        sentences.append(self._pick(ANSWERS["verdict"]).format(it=VERDICTS[verdict]))
        return Turn("diagnosis", verdict, verdict, self._pick(QUESTIONS["diagnosis"]), " ".join(sentences))

    def stated_rhythm(self) -> str | None:
        """Return the stated rhythm, unless the measured heart rate contradicts it."""
        name = rhythm_of(self.statements)
        return None if name is None or self._contradicted(name) else name

    def findings(self) -> list[str]:
        """Return the names of what is present: the rhythm first, and no general finding beside its special one."""
        return findings_of(self.statements, self._value("heart_rate_bpm"))

    def verdict(self) -> str | None:
        """Return "normal", "borderline" (called normal, yet with a finding), "abnormal", or None if nothing is said."""
        return verdict_of(self.statements, self._value("heart_rate_bpm"))

    def _value(self, field: str) -> int | None:
        return None if self.measurements is None else whole(self.measurements.judged(field))

    def _contradicted(self, rhythm: str) -> bool:
        return is_contradicted(rhythm, self._value("heart_rate_bpm"))

    def _pick(self, texts: Sequence[str]) -> str:
        return texts[int(self.rng.integers(len(texts)))]


def build_conversations(
    manifest: Manifest,
    measurements: Mapping[str, Measurements] | None = None,
    *,
    seed: int = 0,
    singles: int = 4,
    dialogues: int = 1,
    rounds: tuple[int, int] = (3, 6),
) -> list[Conversation]:
    """Build conversations about every recording of a manifest.

    Each recording gets `singles` single questions and `dialogues` longer conversations. Absent findings are asked as
    often as present ones, and each finding is denied about as often as it is confirmed, so that a question's wording
    doesn't give its answer away. The same seed gives the same text for a recording, whatever else is in the manifest,
    except for the choice of absent findings, which looks at how common the findings are.

    Args:
        manifest: a checked manifest.
        measurements: record name → what was measured; None or a missing name: nothing about numbers is asked.
        seed: which random choice of questions and wordings.
        singles: conversations of one question.
        dialogues: conversations of several rounds.
        rounds: fewest and most rounds of a dialogue.

    Returns:
        Conversations in the original's format, {"id", "ecg", "conversations": [{"from", "value"}, ...]}, checked.

    Raises:
        ParameterError: a count is out of range.
        EcgChatError: a conversation says what statements or measurements don't hold (a bug in a template).
    """
    if singles < 0 or dialogues < 0 or not 1 <= rounds[0] <= rounds[1]:
        raise ParameterError(f"singles={singles}, dialogues={dialogues}, rounds={rounds}: expected counts, low ≤ high")
    weights = finding_weights(manifest)
    conversations: list[Conversation] = []
    for row in manifest.itertuples():
        statements: Any = row.statements
        measured = (measurements or {}).get(str(row.record))
        turns = questions_about(str(row.record), statements, measured, weights, seed=seed)
        prefix = f"{ECG_MARK}\n{measured_line(measured)}\n" if measured is not None else f"{ECG_MARK}\n"
        rng = rng_for(seed, "arrange", str(row.record))
        for number, chosen in enumerate(_arrange(turns, singles, dialogues, rounds, rng)):
            for turn in chosen:
                check_facts(turn.answer, statements, measured, where=f"{row.record}, {turn.kind}")
            conversations.append(conversation(f"{row.record}-{number}", str(row.path), prefix, chosen))
    return validate_conversations(conversations)


def conversation(name: str, path: str, prefix: str, turns: Sequence[Turn]) -> Conversation:
    """Put turns into the original's JSON format; `prefix` (ECG mark, measured values) stands before the first one."""
    lines = []
    for number, turn in enumerate(turns):
        lines.append({"from": "human", "value": (prefix if number == 0 else "") + turn.question})
        lines.append({"from": "gpt", "value": turn.answer})
    return {"id": name, "ecg": path, "conversations": lines}


def questions_about(
    record: str,
    statements: Statements,
    measurements: Measurements | None,
    weights: Mapping[str, float],
    *,
    seed: int = 0,
) -> list[Turn]:
    """Return every kind of question about one recording, each once; presence questions half and half.

    Args:
        record: its name, part of the random draw.
        statements: (SCP code, likelihood) pairs.
        measurements: what was measured, or None.
        weights: finding name → how often to deny it, from `finding_weights`.
        seed: which random choice.
    """
    rng = rng_for(seed, "questions", record)
    teacher = Teacher(statements, measurements, rng)
    asked: list[Turn | None] = [teacher.rhythm(), teacher.rate(), teacher.diagnosis(), teacher.normal()]
    asked += [teacher.interval(str(field)) for field in rng.permutation(list(INTERVALS))[:2]]
    asked.append(teacher.axis())
    every = [turn for finding in FINDINGS if (turn := teacher.presence(finding)) is not None]
    # a finding that most recordings have would teach "yes": confirm it only as often as it can be denied
    present = [turn for turn in every if turn.truth and rng.random() * weights.get(turn.about, 0.0) < 1]
    absent = [turn for turn in every if not turn.truth]
    asked += present
    if absent:
        chance = np.array([weights.get(turn.about, 0.0) + 1e-3 for turn in absent])
        count = min(len(absent), max(1, len(present)))
        asked += [absent[int(k)] for k in rng.choice(len(absent), count, replace=False, p=chance / chance.sum())]
    return [turn for turn in asked if turn is not None]


def finding_weights(manifest: Manifest) -> dict[str, float]:
    """Return how often each finding should be denied: as often as it is present, per recording that lacks it."""
    there: Counter[str] = Counter()
    lacking: Counter[str] = Counter()
    for statements in manifest["statements"]:
        for finding in FINDINGS:
            state = presence(finding, statements)
            there[finding.name] += state is True
            lacking[finding.name] += state is False
    return {name: there[name] / max(1, lacking[name]) for name in there}


def _arrange(
    turns: Sequence[Turn], singles: int, dialogues: int, rounds: tuple[int, int], rng: np.random.Generator
) -> Iterable[list[Turn]]:
    """Yield single questions, then dialogues in random order; each question at most once per dialogue."""
    for k in rng.permutation(len(turns))[:singles]:
        yield [turns[int(k)]]
    for _ in range(dialogues):
        length = min(len(turns), int(rng.integers(rounds[0], rounds[1] + 1)))
        if length:
            yield [turns[int(k)] for k in rng.permutation(len(turns))[:length]]


def rng_for(*key: object) -> np.random.Generator:
    """Return a generator that depends on the key alone, so that neighbors in the table don't matter."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def split_conversations(conversations: Sequence[Conversation], manifest: Manifest) -> dict[str, list[Conversation]]:
    """Sort conversations into the manifest's splits, which share no patient.

    Raises:
        EcgChatError: a conversation is about a recording that the manifest doesn't hold.
    """
    split_of = dict(zip(manifest["path"], manifest["split"], strict=True))
    patients: dict[str, set[str]] = {}
    for patient, split in zip(manifest["patient"], manifest["split"], strict=True):
        patients.setdefault(patient, set()).add(split)
    shared = sorted(patient for patient, splits in patients.items() if len(splits) > 1)
    if shared:
        raise EcgChatError(f"patient {shared[0]} is on two sides of the split; expected one. Split by patient")
    out: dict[str, list[Conversation]] = {"train": [], "validation": [], "test": []}
    for item in conversations:
        sides = set()
        for path in ecgs_of(item):
            if path not in split_of:
                raise EcgChatError(f"conversation {item['id']}: its ECG {path} is not in the manifest")
            sides.add(split_of[path])
        if len(sides) != 1:
            raise EcgChatError(f"conversation {item['id']}: its ECGs are in {sorted(sides)}; expected one split")
        out[sides.pop()].append(item)
    return out


def ecgs_of(conversation: Conversation) -> list[str]:
    """Return the ECGs of a conversation in the order of its marks; the original's format has one, as a text."""
    return [conversation["ecg"]] if isinstance(conversation["ecg"], str) else list(conversation["ecg"])


def validate_conversations(conversations: Sequence[Any]) -> list[Conversation]:
    """Check conversations against the original's format and return them.

    The rules: `id` is a text, ids are unique; `ecg` is a text, or several for a conversation about several ECGs; turns
    alternate human, gpt, human, …, gpt and are not empty; the first turn starts with a mark <ecg>, and there are as
    many marks as ECGs, each at the start of a line of a human turn. One ECG stands in the first turn.

    Raises:
        EcgChatError: with the conversation's place and id, the turn, what was found and what was expected.
    """
    seen: set[str] = set()
    for place, item in enumerate(conversations):
        where = f"conversation {place}"
        if not isinstance(item, dict) or {"id", "ecg", "conversations"} - set(item):
            raise EcgChatError(f"{where}: found {item!r:.80}, expected a dict with 'id', 'ecg' and 'conversations'")
        where += f" ({item['id']})"
        if not isinstance(item["id"], str) or not item["id"]:
            raise EcgChatError(f"{where}: 'id' is {item['id']!r}, expected a text")
        ecg = item["ecg"] if isinstance(item["ecg"], list) and len(item["ecg"]) > 1 else [item["ecg"]]
        if not all(isinstance(path, str) and path for path in ecg):
            raise EcgChatError(f"{where}: 'ecg' is {item['ecg']!r:.80}, expected a text, or a list of two or more")
        if item["id"] in seen:
            raise EcgChatError(f"{where}: this id stands twice. Give each conversation an id of its own")
        seen.add(item["id"])
        _validate_turns(item["conversations"], where, len(ecg))
    return list(conversations)


def _validate_turns(turns: Any, where: str, ecgs: int) -> None:
    if not isinstance(turns, list) or not turns or len(turns) % 2:
        raise EcgChatError(f"{where}: expected a list of human and gpt turns in pairs, found {turns!r:.80}")
    marks = 0
    for number, turn in enumerate(turns):
        speaker = "human" if number % 2 == 0 else "gpt"
        if not isinstance(turn, dict) or turn.get("from") != speaker:
            raise EcgChatError(f"{where}, turn {number}: found {turn!r:.80}, expected one from '{speaker}'")
        if not isinstance(turn.get("value"), str) or not turn["value"].replace(ECG_MARK, "").strip():
            raise EcgChatError(f"{where}, turn {number}: it says nothing. Drop the pair or write it")
        found = turn["value"].count(ECG_MARK)
        marks += found
        if ecgs == 1 and found != (number == 0):
            raise EcgChatError(
                f"{where}, turn {number}: {found} marks {ECG_MARK}, expected {int(number == 0)}. "
                "The ECG stands once, at the start of the first turn"
            )
        starts = sum(line.startswith(ECG_MARK) for line in turn["value"].split("\n"))
        if found and ecgs > 1 and (speaker == "gpt" or starts != found):
            raise EcgChatError(
                f"{where}, turn {number}: {found} marks {ECG_MARK}, {starts} of them at the start of a line; "
                "each stands at the start of a line of a human turn"
            )
    if marks != ecgs:
        raise EcgChatError(f"{where}: {marks} marks {ECG_MARK}, expected {ecgs}, one for each ECG")
    if not turns[0]["value"].startswith(ECG_MARK):
        raise EcgChatError(f"{where}, turn 0: starts with {turns[0]['value'][:20]!r}, expected {ECG_MARK}")
