"""How good retrieval and answers are: recall, precision and rank of the gold entries; right facts; support by passages.

The last two read texts by rules: numbers with their units, words without their endings. They see neither negation nor
sense; `correct` can call an answer right that says the right number of the wrong thing, and `faithfulness` calls a
sentence supported whose words merely stand in the passages. Taught in: 14 §6
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ecgchat_lib.errors import ParameterError
from ecgchat_lib.evaluate.bootstrap import Interval, bootstrap_interval
from ecgchat_lib.knowledge.naming import words

OVERLAP = 0.6  # least share of a sentence's words that the passages must hold

_UNITS: tuple[tuple[str, float, str], ...] = (  # quantity, factor to its unit, spelling
    ("ms", 1.0, r"ms(?:ec)?|milliseconds?"),
    ("ms", 1000.0, r"s|secs?|seconds?"),
    ("mv", 1.0, r"mv|millivolts?"),
    ("mv", 0.001, r"[µu]v|microvolts?"),
    ("mm", 1.0, r"mm|millimet(?:er|re)s?"),
    ("bpm", 1.0, r"bpm|/ ?min(?:ute)?|(?:beats?|times)? ?(?:per|a|each) min(?:ute)?"),
    ("mm/s", 1.0, r"mm ?(?:/ ?s|per second)"),
    ("mm/mv", 1.0, r"mm ?(?:/ ?mv|per (?:mv|millivolt))"),
    ("hz", 1.0, r"hz|hertz"),
    ("degrees", 1.0, r"°(?! ?c)|deg(?:rees?)?(?! c)"),
    ("celsius", 1.0, r"° ?c|degrees c(?:elsius)?"),
    ("percent", 1.0, r"%|percent|per cent"),
    ("mmol/l", 1.0, r"mmol(?: ?/ ?l| per lit(?:er|re))"),
    ("minutes", 1.0, r"min|minutes?"),
    ("minutes", 60.0, r"h|hours?"),
    ("days", 1.0, r"days?"),
    ("beats", 1.0, r"beats?"),
)
_UNIT = re.compile(  # the longest spelling first, and never a part of a word
    " ?(?:"
    + "|".join(f"(?P<u{k}>{_UNITS[k][2]})" for k in (6, 7, 0, 1, 2, 3, 5, 4, 8, 10, 9, 11, 12, 13, 14, 15, 16))
    + r")(?!\w)"
)
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?![\d]|\.\d)")
_JOINED = re.compile(r" ?(?:-|to|and|or) ?(?=[-+]?\d)")
_ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_NUMBER_WORDS = re.compile(rf"\b(?:{'|'.join(_ONES)})\b")


@dataclass(frozen=True)
class Quantity:
    """A number of a text.

    Attributes:
        value: in the unit's base: ms, mV, minutes, ...
        unit: "" if the number has none.
    """

    value: float
    unit: str


def normalize(text: str) -> str:
    """Return a text in lower case with plain signs: "–" as "-", "T-wave" as "t wave", "three" as "3", one space."""
    plain = unicodedata.normalize("NFKC", text).replace("μ", "µ").lower()
    plain = re.sub(r"[‐‑‒–—−]", "-", plain)
    plain = re.sub(r"(?<=[^\W\d])-(?=[^\W\d])", " ", plain)
    plain = re.sub(r"(?<=\d)-(?=[^\W\d])", " ", plain)  # 12-lead, 120-ms
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", plain)
    plain = re.sub(r"\bminus (?=\d)", "-", plain)
    plain = _NUMBER_WORDS.sub(lambda match: str(_ONES.index(match.group())), plain)
    return " ".join(plain.split())


def quantities(text: str) -> list[Quantity]:
    """Return the numbers of a text with their units, in its order.

    "0.12 s" and "120 ms" are the same; in "110 to 119 ms" both numbers are ms. A hyphen between two numbers is no sign.
    """
    plain = re.sub(r"(?<=\d) ?- ?(?=\d)", " to ", normalize(text))
    found: list[Quantity] = []
    waiting: list[float] = []  # numbers whose unit stands after the next number
    for match in _NUMBER.finditer(plain):
        waiting.append(float(match.group()))
        unit = _UNIT.match(plain, match.end())
        if unit is None and _JOINED.match(plain, match.end()):
            continue
        name, factor = _unit(unit)
        found += [Quantity(round(value * factor, 6), name) for value in waiting]
        waiting = []
    return found + [Quantity(value, "") for value in waiting]


def _unit(match: re.Match[str] | None) -> tuple[str, float]:
    if match is None:
        return "", 1.0
    name, factor, _ = _UNITS[int(str(match.lastgroup)[1:])]
    return name, factor


def holds_fact(text: str, fact: str) -> bool:
    """Return whether a text states a fact.

    A fact that is one number with a unit ("120 ms") is compared as a number. Any other is looked for as it stands,
    after `normalize`, from a word's beginning to a word's end; a plural "s" or "es" may follow. Its own numbers are
    never parts of longer ones.
    """
    plain, wanted = normalize(text), normalize(fact)
    alone = _NUMBER.match(wanted)
    if alone and (unit := _UNIT.match(wanted, alone.end())) and unit.end() == len(wanted):
        return any(_same(one, quantities(fact)[0]) for one in quantities(text))
    end = r"(?:e?s)?(?!\w)" if wanted[-1:].isalpha() else r"(?!\d|\.\d)"
    if re.search(r"[^\W\d]\d+$", wanted):  # V4 is not V4R
        end = r"(?!\w|\.\d)"
    return re.search(rf"(?<![\w.]){re.escape(wanted)}{end}", plain) is not None


def _same(a: Quantity, b: Quantity) -> bool:
    return a.unit == b.unit and math.isclose(a.value, b.value, rel_tol=1e-6, abs_tol=1e-9)


def correct(answer: str, facts: Iterable[Iterable[str]]) -> bool:
    """Return whether an answer states at least one fact of each group."""
    return all(any(holds_fact(answer, fact) for fact in group) for group in facts)


def sentences(text: str) -> list[str]:
    """Return the sentences of a text: it ends at ".", "!", "?" or ";" before a space, and at each line."""
    return [part.strip(" -•") for part in re.split(r"(?<=[.!?;])\s+|\n+", text) if re.search(r"\w", part)]


def supported(sentence: str, passages: Sequence[str]) -> bool:
    """Return whether passages support a sentence.

    They do if each of its numbers stands in them, with the same unit (a number without a unit: with any), and at least
    `OVERLAP` of its other words without stop words, as `naming.words` makes them. A sentence without such words and
    numbers is supported by nothing.
    """
    text = "\n".join(passages)
    known = quantities(text)
    said = quantities(sentence)
    for one in said:
        if not any(_same(one, other) or (not one.unit and one.value == other.value) for other in known):
            return False
    told = words(_without_numbers(sentence))
    if not told:
        return bool(said)
    held = set(words(_without_numbers(text)))
    return sum(word in held for word in told) / len(told) >= OVERLAP


def _without_numbers(text: str) -> str:
    """Return a normalized text without its numbers and their units."""
    plain, parts, end = normalize(text), [], 0
    for match in _NUMBER.finditer(plain):
        unit = _UNIT.match(plain, match.end())
        parts.append(plain[end : match.start()])
        end = unit.end() if unit else match.end()
    return " ".join([*parts, plain[end:]])


def faithfulness(answer: str, passages: Sequence[str]) -> float:
    """Return the share of an answer's sentences that the passages support; NaN for an answer without sentences."""
    found = [supported(sentence, passages) for sentence in sentences(answer)]
    return sum(found) / len(found) if found else math.nan


def context_recall(gold: Sequence[str], found: Sequence[str], k: int) -> float:
    """Return the share of the gold entries among the first k found; at most k of them can be."""
    _check(gold, k)
    return len(set(gold) & set(found[:k])) / len(set(gold))


def precision_at(gold: Sequence[str], found: Sequence[str], k: int) -> float:
    """Return the share of the first k places that hold a gold entry; with g gold entries at most g / k."""
    _check(gold, k)
    return len(set(gold) & set(found[:k])) / k


def context_precision(gold: Sequence[str], found: Sequence[str], k: int) -> float:
    """Return the mean of precision@i over the places i ≤ k that hold a gold entry; 0 if none does.

    It is 1 if all gold entries among the first k stand in front, and with one gold entry it equals the reciprocal rank:
    it tells the order, where `precision_at` tells how much of what was found is gold. Source:
    the context precision of Es et al. 2023, RAGAS, arXiv 2309.15217, as its library computes it.
    """
    _check(gold, k)
    at, right = [], 0
    for place, name in enumerate(found[:k], 1):
        if name in gold:
            right += 1
            at.append(right / place)
    return sum(at) / len(at) if at else 0.0


def reciprocal_rank(gold: Sequence[str], found: Sequence[str], k: int) -> float:
    """Return 1 / place of the first gold entry among the first k found; 0 if there is none. Its mean is MRR@k."""
    _check(gold, k)
    return next((1 / place for place, name in enumerate(found[:k], 1) if name in gold), 0.0)


def _check(gold: Sequence[str], k: int) -> None:
    if not gold or k < 1:
        raise ParameterError(f"{len(gold)} gold entries and k = {k}: expected at least one of each")


def mean_interval(
    values: Sequence[float], *, groups: Sequence[Hashable] | None = None, draws: int = 2000, seed: int = 7
) -> Interval:
    """Return the mean over questions with its 95 % percentile interval; questions with NaN are left out.

    Args:
        values: one per question. For a paired difference: the differences.
        groups: one key per question (`Question.group`); whole groups are drawn, since near-copies of a question are
            answered alike. None: single questions are drawn.
        draws: resamples of the groups.
        seed: of the draws.

    Raises:
        ParameterError: no value is left, or there is not one group per value.
    """
    if groups is not None and len(groups) != len(values):
        raise ParameterError(f"{len(values)} values and {len(groups)} groups: expected one group for each value")
    rows = [row for row, value in enumerate(values) if not math.isnan(value)]
    kept = np.array([values[row] for row in rows], dtype=np.float64)
    units = None if groups is None else [groups[row] for row in rows]
    return bootstrap_interval(lambda drawn: float(np.mean(drawn)), kept, groups=units, draws=draws, seed=seed)
