"""Questions with gold entries and gold facts, written by hand: half to tune on, half to test on.

A question says which entries hold its answer, and which facts an answer must state to be right. Its half is decided by
the hash of its name alone, so that adding a question moves no other. Taught in: 14 §6
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecgchat_lib.errors import EcgChatError, ParameterError
from ecgchat_lib.knowledge.entries import Entry, load_entries, read_text, read_yaml
from ecgchat_lib.paths import data_folder

QUESTION_KINDS = ("single", "relation", "compare", "global")
SPLITS = ("tune", "test")
FIELDS = ("id", "question", "entries", "facts", "kind")
MOST_GOLD = 3  # entries, and groups of facts, of one question
_ID = re.compile(r"q-[a-z0-9]+(?:-[a-z0-9]+)*")


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: unique, starts with "q-".
        question: as a learner or nurse would ask it.
        entries: ids of the one to three entries that hold the answer.
        facts: one to three groups; a right answer states at least one fact of each.
        kind: "single", "relation", "compare" or "global" (needs several entries).
    """

    id: str
    question: str
    entries: tuple[str, ...]
    facts: tuple[tuple[str, ...], ...]
    kind: str

    @property
    def split(self) -> str:
        """Return "tune" if the sha256 of the id is an even number, else "test"."""
        return SPLITS[int(hashlib.sha256(self.id.encode()).hexdigest(), 16) % 2]


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
    return [found[name] for name in sorted(found) if split in (None, found[name].split)]


def _question(where: str, fields: Any, entries: Mapping[str, Entry]) -> Question:
    if not isinstance(fields, dict) or set(fields) != set(FIELDS):
        names = ", ".join(map(str, fields)) if isinstance(fields, dict) else type(fields).__name__
        raise EcgChatError(f"{where}: fields {names}; expected exactly {', '.join(FIELDS)}")
    name = fields["id"]
    if not isinstance(name, str) or not _ID.fullmatch(name):
        raise EcgChatError(f"{where}, id: found {name!r}, expected 'q-' and lower-case words joined by hyphens")
    where = f"{where} ({name})"
    if fields["kind"] not in QUESTION_KINDS:
        raise EcgChatError(f"{where}, kind: found {fields['kind']!r}, expected one of {', '.join(QUESTION_KINDS)}")
    gold = _texts(where, "entries", fields["entries"], MOST_GOLD)
    for one in gold:
        if one not in entries:
            raise EcgChatError(f"{where}, entries: {one!r} is no entry of the knowledge base. Expected an entry's id")
    groups = fields["facts"]
    if not isinstance(groups, list) or not 1 <= len(groups) <= MOST_GOLD:
        raise EcgChatError(f"{where}, facts: expected one to {MOST_GOLD} groups '- any: [...]'")
    facts = []
    for group in groups:
        if not isinstance(group, dict) or set(group) != {"any"}:
            raise EcgChatError(f"{where}, facts: found {str(group)[:60]!r}, expected '- any: [...]'")
        facts.append(_texts(where, "facts", group["any"], 20))
    (text,) = _texts(where, "question", [fields["question"]], 1)
    return Question(name, " ".join(text.split()), gold, tuple(facts), fields["kind"])


def _texts(where: str, field: str, value: object, most: int) -> tuple[str, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        raise EcgChatError(f"{where}, {field}: found {str(value)[:60]!r}, expected a list of one to {most}")
    for one in value:
        if not isinstance(one, str) or not one.strip():
            raise EcgChatError(f"{where}, {field}: found {one!r}, expected text (in quotes if it is a number)")
    if len(set(value)) != len(value):
        raise EcgChatError(f"{where}, {field}: something stands there twice. Name it once")
    return tuple(value)
