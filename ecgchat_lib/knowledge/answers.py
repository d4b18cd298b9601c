"""Two ways to answer a question from what was found: quote the best lines, or let a language model write.

A quote can be irrelevant, but never says what no entry says, and it says whose line it is. If no line is near enough,
nothing is quoted. A small model writes smoother and makes things up; what it wrote is measured by
`metrics.faithfulness`. Taught in: 14 §7
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ecgchat_lib.errors import ParameterError
from ecgchat_lib.knowledge.entries import LINE_PARTS, Citation, Entry, load_entries, parts_of
from ecgchat_lib.knowledge.metrics import quantities
from ecgchat_lib.knowledge.naming import Asked, Names, names_of, words
from ecgchat_lib.knowledge.retrieve import Hit, embed, embed_question

Messages = list[dict[str, str]]
MOST_LINES = 3
MOST_OF_PART = 6  # lines, where a whole part of an entry is asked for
NOTES = 8  # lines that a model is shown
FRONTS = ("title", "part")
RULES = (
    "You answer questions about electrocardiograms. Use only the notes. Answer in one or two short sentences, "
    "with the numbers and units that the notes give."
)
RULES_WITHOUT_NOTES = (
    "You answer questions about electrocardiograms. Answer in one or two short sentences, with numbers and units."
)
_LENGTH = r"long|wide|short|brief|narrow|last|duration|width|milliseconds?|seconds?"
_HEIGHT = r"high|deep|tall|small|height|depth|size|voltage|millimeters?|millivolts?|rise|low"
_UNITS_ASKED: tuple[tuple[str, frozenset[str]], ...] = (  # the words that ask for a number → units that may answer
    (rf"\bhow (?:{_LENGTH})\b|\b(?:which|what) (?:width|duration|time)\b", frozenset({"ms", "minutes", "days"})),
    (r"\bmilliseconds?\b|\bcorrected qt\b|\bqtc\b|\bpr\b|\bhow many seconds\b", frozenset({"ms"})),
    (rf"\bhow (?:{_HEIGHT})\b|\b(?:which|what) (?:height|depth|sum|size|voltage)\b", frozenset({"mm", "mv"})),
    (r"\bhow (?:fast|slow)\b|\brates?\b|\bpulse\b|\bbeats?\b", frozenset({"bpm"})),
    (r"\baxis\b|\bangles?\b|\bvector\b|\bdegrees?\b", frozenset({"degrees"})),
    (r"\bwhat share\b|\bhow likely\b|\bpercent", frozenset({"percent"})),
    (r"\bserum level\b|\bwhich level\b|\bpotassium level\b", frozenset({"mmol/l"})),
    (r"\bfrequency\b|\bcut-off\b", frozenset({"hz"})),
)
_ASKS_NUMBER = re.compile(
    r"\bhow (?:long|wide|short|narrow|high|deep|tall|small|large|big|fast|slow|many|much|likely)\b"
    r"|\b(?:above|below|from|up to|beyond|within|at|between) (?:what|which)\b|\bby how\b"
    r"|\b(?:which|what) (?:\w+ ){0,2}(?:rates?|width|height|depth|value|limit|range|angles?|frequency|share|score|sum|"
    r"level|distance|time|duration|qtc|cut-off)\b"
)


@dataclass(frozen=True)
class Quoting:
    """How lines are chosen; chosen on the tune half by benchmarks/knowledge.py.

    Attributes:
        hits: entries to quote from.
        front: what stands before a line when it is compared with the question: its entry's "title" or its "part".
        lexical: weight of the share of the question's words, by their idf, that a line holds.
        entry: weight of its entry's score over the best entry's.
        part: weight of being in the part that is asked for.
        number: weight of holding a quantity of a fitting unit, where a number is asked for.
        margin: a further line is quoted if its score is at most this much below the best one's.
        ratio: a further entry is quoted if its score is at least this share of the best one's.
        focus: only the entries that a question names are quoted if their names make up this share of it
            (`naming.Asked.coverage`); less is named in passing.
        floor: least cosine of the question to the best line; below it nothing is quoted. An entry that the question
            focuses on needs none.
    """

    hits: int = 3
    front: str = "title"
    lexical: float = 0.2
    entry: float = 0.0
    part: float = 0.2
    number: float = 0.2
    margin: float = 0.2
    ratio: float = 0.7
    focus: float = 0.5
    floor: float = 0.46

    def __post_init__(self) -> None:
        if self.front not in FRONTS or self.hits < 1:
            raise ParameterError(f"front {self.front!r}, hits {self.hits}: expected {' or '.join(FRONTS)}, 1 or more")


QUOTING = Quoting()


@dataclass(frozen=True)
class QuotedLine:
    """A line of an entry.

    Attributes:
        text: the statement, or one item of a part, as it stands in the entry.
        entry: whose it is.
        score: what it was chosen by.
        part: where it stands, one of `entries.LINE_PARTS`.
    """

    text: str
    entry: Entry
    score: float
    part: str = "statement"


@dataclass(frozen=True)
class KnowledgeAnswer:
    """An answer from the knowledge base.

    Attributes:
        text: the answer; "" if nothing was near enough to be quoted.
        lines: what it rests on: the lines that are quoted, or that the model was shown.
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
        """The entries' documents, each once. Which of them a single line rests on is not recorded."""
        return tuple(dict.fromkeys(one for entry in self.entries for one in entry.citations))

    def __str__(self) -> str:
        """Return the text, each entry's lines with the numbers of its documents, and these documents once."""
        number = {one: f"{place}" for place, one in enumerate(self.citations, 1)}
        shown = [f"[{number[one]}] {one}" for one in self.citations]
        if not self.quoted:
            return "\n".join([self.text, *shown])
        groups = [
            f"{_told(entry, part, lines)} [{', '.join(number[one] for one in entry.citations)}]"
            for entry, part, lines in _grouped(self.lines)
        ]
        return "\n".join([*groups, *shown])


def _grouped(lines: Sequence[QuotedLine]) -> list[tuple[Entry, str, list[QuotedLine]]]:
    """Return (entry, part, its lines), entries and parts in the order of their first lines."""
    order = {entry: place for place, entry in reversed(list(enumerate(line.entry for line in lines)))}
    groups: dict[tuple[Entry, str], list[QuotedLine]] = {}
    for line in sorted(lines, key=lambda line: order[line.entry]):
        groups.setdefault((line.entry, line.part), []).append(line)
    return [(entry, part, ones) for (entry, part), ones in groups.items()]


def _told(entry: Entry, part: str, lines: Sequence[QuotedLine]) -> str:
    """Return a group of lines with its entry's title and, but for the statement, its part in front."""
    front = entry.title if part == "statement" else f"{entry.title}, {LINE_PARTS[part].lower()}"
    return f"{front}: " + " ".join(
        line.text if line.text.endswith((".", "!", "?")) else f"{line.text}." for line in lines
    )


def answer_of(lines: Sequence[QuotedLine]) -> KnowledgeAnswer:
    """Return the quote of these lines, grouped by entry and part; without lines its text is empty."""
    text = "\n".join(_told(entry, part, ones) for entry, part, ones in _grouped(lines))
    return KnowledgeAnswer(text, tuple(lines), quoted=True)


# --- how well a line fits --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LineFit:
    """What speaks for one line; `Quoting` weighs it.

    Attributes:
        entry: whose line it is.
        part: where it stands.
        text: the line.
        cosines: to the question by `Quoting.front`; with "part" in front, the question is taken without the name.
        lexical: share of the question's words, by idf, that the line holds.
        ratio: its entry's score over the best entry's.
        in_part: it stands in the part that is asked for.
        number: a number is asked for, and the line holds one of a fitting unit.
    """

    entry: Entry
    part: str
    text: str
    cosines: tuple[float, float]
    lexical: float
    ratio: float
    in_part: bool
    number: bool

    def score(self, how: Quoting) -> float:
        """Return the weighted sum."""
        likeness = self.cosines[FRONTS.index(how.front)]
        weighed = how.lexical * self.lexical + how.entry * self.ratio
        return likeness + weighed + how.part * self.in_part + how.number * self.number

    def line(self, how: Quoting) -> QuotedLine:
        """Return it as a line that is quoted."""
        return QuotedLine(self.text, self.entry, self.score(how), self.part)


@lru_cache(maxsize=512)
def _line_vectors(entry: Entry, front: str) -> np.ndarray:
    """Return MiniLM's embeddings (lines, 384) of an entry's lines, each with its title or its part in front."""
    before = {part: entry.title if front == "title" else heading for part, heading in LINE_PARTS.items()}
    return embed([f"{before[part]}: {line}" for part, line in parts_of(entry)])


def number_units(question: str) -> frozenset[str] | None:
    """Return the units in which a question asks for a number; an empty set: any; None: it asks for no number."""
    text = " ".join(question.lower().split())
    if not _ASKS_NUMBER.search(text):
        return None
    return frozenset[str]().union(*(units for cue, units in _UNITS_ASKED if re.search(cue, text)))


def fits(
    question: str, hits: Sequence[Hit], asked: Asked, names: Names, *, fronts: Sequence[str] = FRONTS
) -> list[LineFit]:
    """Return what speaks for each line of the found entries, entries in their order, lines in that of the file.

    Args:
        question: what was asked.
        hits: from a retriever, the best first.
        asked: `names.read` of the question.
        names: of the whole base.
        fronts: without "part" in it, only titles are put in front, which takes half the time; both cosines are equal.

    Raises:
        MissingPartError: MiniLM isn't on this machine.
    """
    whole = embed_question(question)
    bare = embed_question(asked.rest) if asked.names and asked.content else whole
    units = number_units(question)
    idf = {word: names.idf(word) for word in asked.content}
    total, best = sum(idf.values()), max((hit.score for hit in hits), default=0.0)
    found = []
    for hit in hits:
        by_title = _line_vectors(hit.entry, "title") @ whole
        by_part = _line_vectors(hit.entry, "part") @ bare if "part" in fronts else by_title
        for (part, text), first, second in zip(parts_of(hit.entry), by_title, by_part, strict=True):
            held = set(words(text))
            share = sum(weight for word, weight in idf.items() if word in held) / total if total else 0.0
            known = {one.unit for one in quantities(text)}
            number = units is not None and bool(known & units if units else known - {""})
            ratio = hit.score / best if best > 0 else 1.0
            cosines = (float(first), float(second))
            found.append(LineFit(hit.entry, part, text, cosines, share, ratio, part == asked.part, number))
    return found


def _sorted(found: Sequence[LineFit], how: Quoting) -> list[QuotedLine]:
    lines = [one.line(how) for one in found]
    return sorted(lines, key=lambda line: (-round(line.score, 6), line.entry.id, line.text))


def chosen(found: Sequence[LineFit], asked: Asked, how: Quoting, most: int = MOST_LINES) -> tuple[QuotedLine, ...]:
    """Return the lines that are quoted, the best first; none if no line is near enough.

    The question focuses on one entry and a part of it, and on nothing else: this part. On one entry: its lines alone.
    On several: the best line of each, and then further ones. On none: the best entry's lines, and those of others that
    are nearly as good.

    Args:
        found: from `fits`.
        asked: the question, as read.
        how: the weights.
        most: how many lines, but for a whole part (`MOST_OF_PART`).
    """
    here = {one.entry.id for one in found}
    named = [id_ for id_ in dict.fromkeys(name.id for name in asked.names) if id_ in here]
    if sum(asked.coverage[id_] for id_ in named) < how.focus:
        named = []
    if len(named) == 1 and asked.part and not asked.content:
        part = [one.line(how) for one in found if one.entry.id == named[0] and one.part == asked.part]
        return tuple(part[:MOST_OF_PART])
    if named:
        lines = _sorted([one for one in found if one.entry.id in named], how)
    else:
        if max((one.cosines[0] for one in found), default=-1.0) < how.floor:
            return ()
        lines = _sorted([one for one in found if one.ratio >= how.ratio], how)
    if not lines:
        return ()
    first = [next(line for line in lines if line.entry.id == id_) for id_ in named] if len(named) > 1 else lines[:1]
    rest = [line for line in lines if line not in first and line.score >= lines[0].score - how.margin]
    return tuple([*first, *rest][:most])


def _read(question: str, most: int, names: Names | None) -> tuple[Asked, Names]:
    if not question.strip() or most < 1:
        raise ParameterError(f"question {question[:20]!r}, most {most}: expected a question and at least one line")
    names = names or names_of(tuple(load_entries().values()))
    return names.read(question), names


def best_lines(
    question: str, hits: Sequence[Hit], *, most: int, how: Quoting = QUOTING, names: Names | None = None
) -> tuple[QuotedLine, ...]:
    """Return the lines of the found entries that fit a question best, the best first.

    Args:
        question: what was asked.
        hits: from a retriever, the best first.
        most: how many lines at most.
        how: the weights.
        names: of the base that the question may name; the built-in one's by default.

    Raises:
        ParameterError: an empty question, or `most` below 1.
        MissingPartError: MiniLM isn't on this machine.
    """
    asked, names = _read(question, most, names)
    return tuple(_sorted(fits(question, hits, asked, names, fronts=(how.front,)), how)[:most])


def quote(
    question: str,
    hits: Sequence[Hit],
    *,
    most: int = MOST_LINES,
    how: Quoting = QUOTING,
    names: Names | None = None,
) -> KnowledgeAnswer:
    """Answer with lines of the found entries (see `chosen`); if none is near enough, or without hits, its text is "".

    Args and errors are those of `best_lines`.
    """
    asked, names = _read(question, most, names)
    found = fits(question, hits[: how.hits], asked, names, fronts=(how.front,))
    return answer_of(chosen(found, asked, how, most))


# --- what a language model is asked ----------------------------------------------------------------------------------


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
    """Let a language model answer from the found entries' best lines.

    Args:
        question: what was asked.
        hits: from a retriever; none: the model is asked without notes.
        writer: messages ({"role", "content"}) → the model's text.
        notes: how many lines it is shown; a small model loses its way in whole entries.

    Raises:
        ParameterError, MissingPartError: as `best_lines`.
    """
    lines = best_lines(question, hits, most=notes)
    return KnowledgeAnswer(" ".join(writer(messages_for(question, lines)).split()), lines, quoted=False)
