"""Which entries a question names, and what it asks for besides: the name, the words left over, and the part.

Retrieval by likeness can rank a neighbor above the very entry that a question names; so names are looked up in a table.
Taught in: 14 §4
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from ecgchat_lib.knowledge.entries import Entry, passage

SHORT = 3  # a name of up to so many letters ("AF", "VT") counts only as it is written, capitals included
_STOP_WORDS = """
a about after again all also am an and any are as at be because been before being between both but by can could did do
does doing down during each few for from further had has have having he her here his how i if in into is it its just may
me might more most must my no nor not now of off on once one only or other our out over own same she should so some such
than that the their them then there these they this those through to too under until up upon very was we were what when
where which while who whom why will with would you your
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
_INTENT_WORDS = """
apart ask called cause caused check come criteria criterion define defined definition describe differ difference
distinguish done due ecg electrocardiogram explain favor find finding first found give given handle handled happen kind
know known lead let like list look made make manage managed management mean meant mimic mistaken name need next order
patient please possible put reason recognize recognized recommend recommended resemble say see seen separate show shown
sign somebody someone step suspect take tell test treat treated treatment trigger usual usually versus
"""
INTENT_WORDS = frozenset(_INTENT_WORDS.split())
"""Words, as `words` makes them, that say what is wanted of an entry and not which entry is meant."""
_CUES: tuple[tuple[str, str], ...] = (  # the first that a question holds decides
    (
        "next_steps",
        r"what (?:should|do|can|shall|must) (?:i|we|one|you) (?:do|check|give)|what to do|what (?:comes )?next|"
        r"what is (?:done|tried)|next steps?|steps to take|treat(?:ed|ment)?|therapy|manag(?:e|ed|ement)|handled?|"
        r"should (?:i|be given|we)|recommended|\bstopped\b|to order|what now|first thing to do",
    ),
    (
        "look_alikes",
        r"\bapart\b|\btells? .*\bfrom\b|differ|distinguish|separat|mistaken|mimic|imitat|look[- ]?alike|confus|"
        r"versus|\bvs\b|resemble|which sign decides",
    ),
    ("causes", r"\bcauses?\b|\bcaused\b|\bwhy\b|due to|\breasons?\b|\bleads to\b|come from|\btriggers?\b|\bfavors?\b"),
    (
        "criteria",
        r"criteri|how (?:wide|long|short|fast|slow|high|low|deep|small|big|large|tall|many|much)|limit|above|below|"
        r"recogni[sz]ed?|looks? like|\bsigns?\b|from (?:what|which)|up to (?:what|which)|normal range|cut-?off|"
        r"what is (?:the |a )?normal|\bshows? (?:in|on|up)\b|^where\b",
    ),
    (
        "statement",
        r"^(?:so |please |can you )*(?:what(?:'s|’s| is| are| does)|define|explain)\b|meant by|definition|called|"
        r"what kind of|what .* (?:is|are|means?)\b",
    ),
)


def words(text: str) -> list[str]:
    """Return the words of a text that carry meaning: lower case, no stop words, plurals as singulars.

    Source of the plural rule: Harman 1991, How effective is suffixing?, the "S" stemmer.
    """
    return [_singular(word) for word in re.findall(r"[a-z0-9]+(?:\.[0-9]+)?", text.lower()) if word not in STOP_WORDS]


def _singular(word: str) -> str:
    if word.endswith("ies") and not word.endswith(("eies", "aies")):
        return word[:-3] + "y"
    if word.endswith("es") and not word.endswith(("aes", "ees", "oes")):
        return word[:-1]
    return word[:-1] if word.endswith("s") and not word.endswith(("us", "ss")) and len(word) > 3 else word


def without_intent(text: str) -> str:
    """Return the words of a text without those of `INTENT_WORDS`; the text itself if none would be left."""
    return " ".join(word for word in words(text) if word not in INTENT_WORDS) or text


def asked_part(question: str) -> str:
    """Return the part of an entry that a question asks for, one of `entries.LINE_PARTS`; "" if that isn't clear."""
    text = " ".join(question.lower().split())
    return next((part for part, cue in _CUES if re.search(cue, text)), "")


@dataclass(frozen=True)
class Name:
    """An entry's name in a text: text[start:stop] names the entry of this id."""

    id: str
    start: int
    stop: int


@dataclass(frozen=True)
class Asked:
    """What a question asks.

    Attributes:
        names: of entries, from left to right.
        rest: the question without these names.
        content: its words outside the names that are no intent words; each once.
        part: `asked_part` of it.
        coverage: id → how much of the question is the entry's name, 0 to 1: the idf of the name's words over that of
            all words but the intent words outside names.
    """

    names: tuple[Name, ...]
    rest: str
    content: tuple[str, ...]
    part: str
    coverage: Mapping[str, float]


class Names:
    """The names of all entries: titles and aliases.

    Capitals, hyphens and a plural "s" make no difference, but a name of up to `SHORT` letters counts only as written.
    Two entries that share such a normalized name: a title goes before an alias, then the id decides.

    Args:
        entries: id → entry.
    """

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._ids: dict[tuple[str, ...], str] = {}
        named = [(entry.title, entry.id) for entry in entries.values()]
        named += [(alias, entry.id) for entry in entries.values() for alias in entry.aliases]
        for name, id_ in named:
            key = tuple(_plain(token, len(name) <= SHORT) for token in _tokens(name))
            if key:
                self._ids.setdefault(key, id_)
        self._longest = max(map(len, self._ids), default=0)
        texts = [set(words(passage(entry))) for entry in entries.values()]
        self._count = len(texts)
        self._having: dict[str, int] = {}
        for text in texts:
            for word in text:
                self._having[word] = self._having.get(word, 0) + 1

    def idf(self, word: str) -> float:
        """Return how rare a word of `words` is among the entries: ln(1 + (N - n + ½) / (n + ½)), n of N hold it."""
        having = self._having.get(word, 0)
        return math.log(1 + (self._count - having + 0.5) / (having + 0.5))

    def find(self, text: str) -> tuple[Name, ...]:
        """Return the names in a text, from left to right, the longest first, without overlap."""
        tokens = [(match.group(), match.start(), match.end()) for match in re.finditer(r"[^\W_]+", text)]
        found: list[Name] = []
        here = 0
        while here < len(tokens):
            for size in range(min(self._longest, len(tokens) - here), 0, -1):
                window = tokens[here : here + size]
                id_ = self._id([token for token, _, _ in window])
                if id_:
                    found.append(Name(id_, window[0][1], window[-1][2]))
                    here += size - 1
                    break
            here += 1
        return tuple(found)

    def _id(self, tokens: list[str]) -> str | None:
        """Return whose name these words are: as they are written, or in lower case if they are longer."""
        as_written = tuple(_plain(token, True) for token in tokens)
        if sum(map(len, as_written)) <= SHORT and as_written in self._ids:
            return self._ids[as_written]
        return self._ids.get(tuple(_plain(token, False) for token in tokens))

    def read(self, question: str) -> Asked:
        """Return what a question asks."""
        names = self.find(question)
        pieces, end = [], 0
        for name in names:
            pieces.append(question[end : name.start])
            end = name.stop
        rest = " ".join(" ".join([*pieces, question[end:]]).split())
        content = tuple(dict.fromkeys(word for word in words(rest) if word not in INTENT_WORDS))
        shares: dict[str, float] = {}
        for name in names:
            weight = sum(map(self.idf, words(question[name.start : name.stop]))) or 1e-9  # a name of stop words
            shares[name.id] = shares.get(name.id, 0.0) + weight
        whole = sum(shares.values()) + sum(map(self.idf, content))
        coverage = {id_: share / whole for id_, share in shares.items()}
        return Asked(names, rest, content, asked_part(question), coverage)


def _tokens(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)


def _plain(token: str, as_written: bool) -> str:
    """Return a token without its plural "s": "PVCs" as written is PVC, "Waves" in lower case is wave."""
    if as_written:
        return token[:-1] if len(token) > 2 and token[:-1].isupper() and token.endswith("s") else token
    lowered = token.lower()
    return lowered[:-1] if len(lowered) > 3 and lowered.endswith("s") else lowered


@lru_cache(maxsize=4)
def names_of(entries: tuple[Entry, ...]) -> Names:
    """Return the table of these entries' names, made once."""
    return Names({entry.id: entry for entry in entries})
