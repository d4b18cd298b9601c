"""Two ways to answer a question from what was found: quote the best lines, or let a language model write.

A quote can be irrelevant, but never says what no entry says. A small model writes smoother and makes things up; what it
wrote is measured by `metrics.faithfulness`. Taught in: 14 §7
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ecgchat_lib.errors import ParameterError
from ecgchat_lib.knowledge.entries import Citation, Entry, lines_of
from ecgchat_lib.knowledge.retrieve import Hit, embed, embed_question

Messages = list[dict[str, str]]
MOST_LINES = 3
HITS = 3  # entries to quote from; this, margin and bonus were chosen on the tune half by benchmarks/knowledge.py
MARGIN = 0.2  # a further line is quoted if its cosine is at most this much below the best one's
NOTES = 8  # lines that a model is shown
RANK_BONUS = 0.1  # added to the lines of the first hit, half of it to those of the second, a third to the third's
RULES = (
    "You answer questions about electrocardiograms. Use only the notes. Answer in one or two short sentences, "
    "with the numbers and units that the notes give."
)
RULES_WITHOUT_NOTES = (
    "You answer questions about electrocardiograms. Answer in one or two short sentences, with numbers and units."
)


@dataclass(frozen=True)
class QuotedLine:
    """A line of an entry.

    Attributes:
        text: the statement, or one item of a part, as it stands in the entry.
        entry: whose it is.
        score: its cosine to the question, plus the bonus of the entry's rank.
    """

    text: str
    entry: Entry
    score: float


@dataclass(frozen=True)
class KnowledgeAnswer:
    """An answer from the knowledge base.

    Attributes:
        text: the answer.
        lines: what it rests on, the best first: the lines that are quoted, or that the model was shown.
        quoted: whether the text is these lines; else a model wrote it.
    """

    text: str
    lines: tuple[QuotedLine, ...]
    quoted: bool

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The entries of the lines, each once."""
        return tuple(dict.fromkeys(line.entry for line in self.lines))

    @property
    def citations(self) -> tuple[Citation, ...]:
        """The documents behind the entries, each once."""
        return tuple(dict.fromkeys(one for entry in self.entries for one in entry.citations))

    def __str__(self) -> str:
        """Return each quoted line with its sources, or the text with the sources of what the model was shown."""
        if not self.quoted:
            return self.text + "".join(f"\n  [{one}]" for one in self.citations)
        return "\n".join(
            f"{line.entry.title}: {line.text} [{'; '.join(map(str, line.entry.citations))}]" for line in self.lines
        )


@lru_cache(maxsize=256)
def _line_vectors(entry: Entry) -> np.ndarray:
    """Return MiniLM's embeddings (lines, 384) of an entry's lines, each with the title in front."""
    return embed([f"{entry.title}: {line}" for line in lines_of(entry)])


def best_lines(
    question: str, hits: Sequence[Hit], *, most: int, margin: float = MARGIN, bonus: float = RANK_BONUS
) -> tuple[QuotedLine, ...]:
    """Return the lines of the found entries that are nearest to a question, the nearest first.

    Args:
        question: what was asked.
        hits: from a retriever, the best first.
        most: how many lines at most.
        margin: how far a further line's score may be below the best one's.
        bonus: for the rank of a line's entry: bonus / rank is added to its cosine.

    Raises:
        ParameterError: an empty question, or `most` below 1.
        MissingPartError: MiniLM isn't on this machine.
    """
    if not question.strip() or most < 1:
        raise ParameterError(f"question {question[:20]!r}, most {most}: expected a question and at least one line")
    if not hits:
        return ()
    vector = embed_question(question)
    lines = [
        QuotedLine(text, hit.entry, float(cosine) + bonus / rank)
        for rank, hit in enumerate(hits, 1)
        for text, cosine in zip(lines_of(hit.entry), _line_vectors(hit.entry) @ vector, strict=True)
    ]
    best = sorted(lines, key=lambda line: (-round(line.score, 6), line.entry.id, line.text))[:most]
    return tuple(line for line in best if line.score >= best[0].score - margin)


def quote(
    question: str, hits: Sequence[Hit], *, most: int = MOST_LINES, margin: float = MARGIN, bonus: float = RANK_BONUS
) -> KnowledgeAnswer:
    """Answer with the found entries' one to three nearest lines; without hits the text is empty.

    Args and errors are those of `best_lines`.
    """
    lines = best_lines(question, hits, most=most, margin=margin, bonus=bonus)
    text = " ".join(line.text if line.text.endswith((".", "!", "?")) else f"{line.text}." for line in lines)
    return KnowledgeAnswer(text, lines, quoted=True)


def messages_for(question: str, lines: Sequence[QuotedLine]) -> Messages:
    """Return what a language model is asked: the rules, the lines as notes, and the question.

    Args:
        question: what was asked.
        lines: from `best_lines`; none: the model answers out of its own memory.
    """
    asked = f"Question: {' '.join(question.split())}"
    if not lines:
        return [{"role": "system", "content": RULES_WITHOUT_NOTES}, {"role": "user", "content": asked}]
    notes = "\n".join(f"- {line.entry.title}: {line.text}" for line in lines)
    return [{"role": "system", "content": RULES}, {"role": "user", "content": f"Notes:\n{notes}\n\n{asked}"}]


def write(
    question: str, hits: Sequence[Hit], writer: Callable[[Messages], str], *, notes: int = NOTES
) -> KnowledgeAnswer:
    """Let a language model answer from the found entries' nearest lines.

    Args:
        question: what was asked.
        hits: from a retriever; none: the model is asked without notes.
        writer: messages ({"role", "content"}) → the model's text.
        notes: how many lines it is shown; a small model loses its way in whole entries.

    Raises:
        ParameterError, MissingPartError: as `best_lines`.
    """
    lines = best_lines(question, hits, most=notes, margin=2.0)
    return KnowledgeAnswer(" ".join(writer(messages_for(question, lines)).split()), lines, quoted=False)
