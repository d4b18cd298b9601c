"""Questions with gold entries and gold facts, written by hand: half to tune on, half to test on.

A question says which entries hold its answer, and which facts an answer must state to be right. Questions about the
same entries are nearly copies of each other, so they form a group, and a whole group goes to one half, by the hash of
its first name. Taught in: 14 §6
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ecgchat_lib.errors import EcgChatError, ParameterError
from ecgchat_lib.knowledge.entries import LINE_PARTS, Entry, load_entries, read_text, read_yaml
from ecgchat_lib.paths import data_folder

QUESTION_KINDS = ("single", "relation", "compare", "global")
SPLITS = ("tune", "test")
FIELDS = ("id", "question", "entries", "facts", "kind")
MOST_ENTRIES, MOST_FACTS = 6, 3  # gold entries, and groups of facts, of one question
ALIKE = 0.5  # share of the gold entries of two questions that both have, from which on they belong to one group
_ID = re.compile(r"q-[a-z0-9]+(?:-[a-z0-9]+)*")


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: unique, starts with "q-".
        question: as a learner or nurse would ask it.
        entries: ids of the one to six entries that hold the answer.
        facts: one to three groups; a right answer states at least one fact of each.
        kind: "single", "relation", "compare" or "global" (needs several entries).
        part: which part of the entries is asked for, one of `entries.LINE_PARTS`; "" if that is not said.
        group: first id of the questions that are about the same entries; "" stands for its own id.
    """

    id: str
    question: str
    entries: tuple[str, ...]
    facts: tuple[tuple[str, ...], ...]
    kind: str
    part: str = ""
    group: str = field(default="", compare=False)

    @property
    def split(self) -> str:
        """Return "tune" if the sha256 of the group is an even number, else "test"."""
        return SPLITS[int(hashlib.sha256((self.group or self.id).encode()).hexdigest(), 16) % 2]


def grouped(questions: Sequence[Question]) -> list[Question]:
    """Return the questions with their groups, in their order.

    Two questions are joined if at least `ALIKE` of the gold entries that either has are gold to both, and a group is
    what such joins connect. (Joined by any entry in common, nearly all questions would make one group.)
    """
    first = {one.id: one.id for one in questions}
    for one in questions:
        for other in questions:
            shared = len(set(one.entries) & set(other.entries)) / len(set(one.entries) | set(other.entries))
            if shared >= ALIKE and first[one.id] != first[other.id]:
                low, high = sorted((first[one.id], first[other.id]))
                first = {name: low if group == high else group for name, group in first.items()}
    return [replace(one, group=first[one.id]) for one in questions]


def load_questions(
    folder: Path | None = None, *, entries: Mapping[str, Entry] | None = None, split: str | None = None
) -> list[Question]:
    """Read and check a folder of questions.

    Args:
        folder: with `*.yml` files; `data/knowledge/questions` by default.
        entries: the base that the questions are about; `load_entries()` by default.
        split: "tune" or "test" for one half; None for all.

    Returns:
        The questions, sorted by id.

    Raises:
        EcgChatError: there are none, or one breaks a rule; the message names file, question and field.
        ParameterError: another `split`.
    """
    if split is not None and split not in SPLITS:
        raise ParameterError(f"split {split!r}: expected one of {', '.join(SPLITS)}, or None")
    folder = folder or data_folder() / "knowledge" / "questions"
    entries = load_entries() if entries is None else entries
    found: dict[str, Question] = {}
    for path in sorted(path for path in folder.glob("*.yml") if not path.name.startswith(".")):
        content = read_yaml(read_text(path), str(path))
        if not isinstance(content, list):
            raise EcgChatError(f"{path}: found {type(content).__name__}, expected a list of questions")
        for number, fields in enumerate(content, 1):
            question = _question(f"{path}, question {number}", fields, entries)
            if question.id in found:
                raise EcgChatError(f"{path}, {question.id}: there is another question of this id. Give it its own")
            found[question.id] = question
    if not found:
        raise EcgChatError(f"{folder}: holds no question (*.yml). Restore data/knowledge from the project")
    questions = grouped([found[name] for name in sorted(found)])
    return [question for question in questions if split in (None, question.split)]


def _question(where: str, fields: Any, entries: Mapping[str, Entry]) -> Question:
    if not isinstance(fields, dict) or set(fields) - {"part"} != set(FIELDS):
        names = ", ".join(map(str, fields)) if isinstance(fields, dict) else type(fields).__name__
        raise EcgChatError(f"{where}: fields {names}; expected exactly {', '.join(FIELDS)}, and part or not")
    name = fields["id"]
    if not isinstance(name, str) or not _ID.fullmatch(name):
        raise EcgChatError(f"{where}, id: found {name!r}, expected 'q-' and lower-case words joined by hyphens")
    where = f"{where} ({name})"
    if fields["kind"] not in QUESTION_KINDS:
        raise EcgChatError(f"{where}, kind: found {fields['kind']!r}, expected one of {', '.join(QUESTION_KINDS)}")
    part = fields.get("part", "")
    if "part" in fields and (not isinstance(part, str) or part not in LINE_PARTS):
        raise EcgChatError(f"{where}, part: found {str(part)[:60]!r}, expected one of {', '.join(LINE_PARTS)}")
    gold = _texts(where, "entries", fields["entries"], MOST_ENTRIES)
    for one in gold:
        if one not in entries:
            raise EcgChatError(f"{where}, entries: {one!r} is no entry of the knowledge base. Expected an entry's id")
    groups = fields["facts"]
    if not isinstance(groups, list) or not 1 <= len(groups) <= MOST_FACTS:
        raise EcgChatError(f"{where}, facts: expected one to {MOST_FACTS} groups '- any: [...]'")
    facts = []
    for group in groups:
        if not isinstance(group, dict) or set(group) != {"any"}:
            raise EcgChatError(f"{where}, facts: found {str(group)[:60]!r}, expected '- any: [...]'")
        facts.append(_texts(where, "facts", group["any"], 20))
    (text,) = _texts(where, "question", [fields["question"]], 1)
    return Question(name, " ".join(text.split()), gold, tuple(facts), fields["kind"], part)


def _texts(where: str, field: str, value: object, most: int) -> tuple[str, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        raise EcgChatError(f"{where}, {field}: found {str(value)[:60]!r}, expected a list of one to {most}")
    for one in value:
        if not isinstance(one, str) or not one.strip():
            raise EcgChatError(f"{where}, {field}: found {one!r}, expected text (in quotes if it is a number)")
    if len(set(value)) != len(value):
        raise EcgChatError(f"{where}, {field}: something stands there twice. Name it once")
    return tuple(value)
