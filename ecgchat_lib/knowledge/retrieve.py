"""Finding entries for a question: by words (BM25), by meaning (MiniLM), by both and its names, and over the graph.

All four give entries with a score that only orders them; scores of different retrievers can't be compared. What is
indexed is the base as it is at that moment: embeddings kept on disk are named by the hash of the texts and the model.

Taught in: 14 §2–5
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ecgchat_lib.errors import ParameterError, RecordError
from ecgchat_lib.knowledge import graph as knowledge_graph
from ecgchat_lib.knowledge.entries import PARTS, Entry, heading_of, lines_of, load_entries, passage, read_text
from ecgchat_lib.knowledge.naming import Names, without_intent, words
from ecgchat_lib.models import PARTS as MODEL_PARTS
from ecgchat_lib.paths import cache_folder, data_folder

if TYPE_CHECKING:
    from ecgchat_lib.coca.text import ReportEncoder
    from ecgchat_lib.evaluate.index import EmbeddingIndex

HOWS = ("bm25", "vector", "hybrid", "graph")
CHUNKS = ("whole", "parts", "lines")
FUSIONS = ("ranks", "scores")
PIECES = 256  # MiniLM was trained on up to so many word pieces; the rest of a longer text is cut off
MOST_QUERY = 2000  # characters of a question that are read
KEPT = 24  # folders of embeddings in the cache: a base has three, and a benchmark some more
_KEPT_NAME = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Hit:
    """An entry that was found.

    Attributes:
        entry: the entry.
        score: higher is better; comparable only within one search.
    """

    entry: Entry
    score: float


class Retriever(Protocol):
    """Who finds entries for a question."""

    def search(self, query: str, top: int = 3) -> list[Hit]:
        """Return up to `top` entries, the best first."""
        ...


def chunks(entry: Entry, how: str) -> list[str]:
    """Return the texts by which an entry is indexed, each with the entry's name in front.

    Args:
        entry: the entry.
        how: "whole" (one passage), "parts" (statement, criteria, look-alikes, ...) or "lines" (each item by itself).

    Raises:
        ParameterError: another `how`.
    """
    if how not in CHUNKS:
        raise ParameterError(f"chunks: {how!r}, expected one of {', '.join(CHUNKS)}")
    if how == "whole":
        return [passage(entry)]
    first = f"{heading_of(entry)}: {entry.statement}"
    if how == "lines":
        return [first, *(f"{entry.title}: {line}" for line in lines_of(entry)[1:])]
    return [first, *(f"{entry.title}. {heading}: {' '.join(getattr(entry, name))}" for heading, name in PARTS.items())]


def _question(query: str, top: int) -> str:
    """Return the question without control characters, cut to `MOST_QUERY`."""
    if not isinstance(query, str) or not query.strip():
        raise ParameterError(f"query: {str(query)[:20]!r}, expected a question")
    if top < 1:
        raise ParameterError(f"top: {top}, expected at least 1")
    return "".join(sign if sign.isprintable() else " " for sign in query[:MOST_QUERY])


def _hits(entries: Mapping[str, Entry], scores: Mapping[str, float], top: int) -> list[Hit]:
    return [Hit(entries[name], float(scores[name])) for name in ranking(scores)[:top]]


def pool(owners: Sequence[str], scores: Sequence[float] | np.ndarray, best: int) -> dict[str, float]:
    """Return each entry's score: the mean of its `best` highest chunks (of all, if it has fewer)."""
    by_entry: dict[str, list[float]] = {}
    for name, score in zip(owners, scores, strict=True):
        by_entry.setdefault(name, []).append(float(score))
    return {name: float(np.mean(sorted(found, reverse=True)[:best])) for name, found in by_entry.items()}


class Bm25:
    """Entries that share rare words with the question, by Lucene's BM25.

    A chunk d scores the sum over the question's words w of idf(w) · f / (f + k1 (1 - b + b |d| / mean |d|)), where f is
    how often d holds w, and idf(w) = ln(1 + (N - n + ½) / (n + ½)) for n of N chunks that hold it.

    Args:
        entries: id → entry.
        how: one of `CHUNKS`.
        best: how many chunks of an entry count.
        k1: how soon repeating a word stops to help.
        b: how much long chunks are held back, 0 to 1.

    Source: Robertson and Zaragoza 2009, The probabilistic relevance framework; computed by bm25s.
    """

    def __init__(
        self, entries: Mapping[str, Entry], *, how: str = "whole", best: int = 1, k1: float = 1.5, b: float = 0.75
    ) -> None:
        import bm25s

        self.entries = dict(entries)
        texts = [(entry.id, text) for entry in entries.values() for text in chunks(entry, how)]
        self.owners, self.best = [owner for owner, _ in texts], best
        self._index = bm25s.BM25(method="lucene", k1=k1, b=b)
        self._index.index([words(text) for _, text in texts], show_progress=False)

    def scores(self, query: str) -> dict[str, float]:
        """Return the score of each entry that shares a word with the question."""
        asked = words(_question(query, 1))
        found = self._index.get_scores(asked) if asked else np.zeros(len(self.owners))
        return {name: score for name, score in pool(self.owners, found, self.best).items() if score > 0}

    def search(self, query: str, top: int = 3) -> list[Hit]:
        """Return up to `top` entries that share a word with the question, the best first.

        Raises:
            ParameterError: an empty question, or `top` below 1.
        """
        return _hits(self.entries, self.scores(_question(query, top)), top)


_ENCODING = threading.Lock()


@lru_cache(maxsize=1)
def _encoder() -> ReportEncoder:
    from ecgchat_lib.coca.text import ReportEncoder

    return ReportEncoder(pieces=PIECES)


def embed(texts: Sequence[str]) -> np.ndarray:
    """Return MiniLM's embeddings (n, 384) of texts, float32 of length 1.

    Raises:
        MissingPartError: MiniLM isn't on this machine.
        ParameterError: a text is empty.
    """
    with _ENCODING:  # the encoder forgets each call's texts, so one thread at a time
        made = _encoder()(list(texts)).numpy()
        _encoder().forget()  # what is worth keeping is kept by its reader
    return np.asarray(made, dtype=np.float32)


@lru_cache(maxsize=512)
def embed_question(question: str) -> np.ndarray:
    """Return MiniLM's embedding (384,) of a question; the last ones are remembered, don't change it."""
    return embed([question])[0]


def embedded(keys: Sequence[str], texts: Sequence[str]) -> EmbeddingIndex:
    """Return an index of texts, from the cache folder if these very texts were embedded before by the same model.

    The folder's name is a hash of keys, texts, model and settings, so a changed entry never meets an old embedding. It
    is made under another name and renamed when complete; a damaged one is made again.

    Args:
        keys: one per text, such as the entry's id.
        texts: none empty.

    Raises:
        MissingPartError, ParameterError: as `embed`.
    """
    from ecgchat_lib.evaluate.index import EmbeddingIndex

    model = sorted(MODEL_PARTS["report-encoder"].files.items())  # `resolve` checks these hashes when it loads the model
    content = json.dumps(["knowledge 1", model, PIECES, list(keys), list(texts)], ensure_ascii=True)
    folder = cache_folder() / "knowledge" / hashlib.sha256(content.encode()).hexdigest()[:32]
    with contextlib.suppress(RecordError):
        index = EmbeddingIndex.load(folder)
        if index.keys == list(keys):
            with contextlib.suppress(OSError):
                os.utime(folder)  # it is in use: `_keep` removes those that were not read for longest
            return index
    index = EmbeddingIndex(384, kind="exact")
    index.add(keys, embed(texts))
    with contextlib.suppress(OSError):  # a cache that can't be written costs time alone
        _keep(index, folder)
    return index


def _keep(index: EmbeddingIndex, folder: Path) -> None:
    """Write an index beside its place and rename it; another process that was first wins, unless its folder is bad.

    Afterwards only the `KEPT` folders that were used last are left: each changed entry makes a new one.
    """
    from ecgchat_lib.evaluate.index import EmbeddingIndex

    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    try:
        index.save(made)
        if folder.is_dir():
            with contextlib.suppress(RecordError):
                if EmbeddingIndex.load(folder).keys == index.keys:
                    return
            shutil.rmtree(folder, ignore_errors=True)
        os.rename(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    old = sorted((one for one in folder.parent.iterdir() if _KEPT_NAME.fullmatch(one.name)), key=_last_used)
    for one in old[:-KEPT]:
        shutil.rmtree(one, ignore_errors=True)


def _last_used(folder: Path) -> float:
    """Return when a folder of the cache was last made or read; 0 if it has just vanished."""
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


class Vectors:
    """Entries whose texts mean what the question means, by the cosine of MiniLM's embeddings.

    Args:
        entries: id → entry.
        how: one of `CHUNKS`.
        best: how many chunks of an entry count.

    Raises:
        MissingPartError: MiniLM isn't on this machine.
    """

    def __init__(self, entries: Mapping[str, Entry], *, how: str = "lines", best: int = 1) -> None:
        self.entries, self.best = dict(entries), best
        texts = [(entry.id, text) for entry in entries.values() for text in chunks(entry, how)]
        self.index = embedded([owner for owner, _ in texts], [text for _, text in texts])

    def scores(self, query: str) -> dict[str, float]:
        """Return the score of every entry, a mean of cosines."""
        return self.scores_of(embed_question(_question(query, 1)))

    def scores_of(self, vector: np.ndarray) -> dict[str, float]:
        """Return the score of every entry for an embedded question (384,)."""
        found = self.index.search(vector, top=len(self.index))
        return pool([self.index.keys[row] for row in found.rows[0]], found.scores[0], self.best)

    def search(self, query: str, top: int = 3) -> list[Hit]:
        """Return the `top` entries whose chunks are nearest to the question, the best first.

        Raises:
            ParameterError: an empty question, or `top` below 1.
        """
        return _hits(self.entries, self.scores(_question(query, top)), top)


def fuse(
    rankings: Sequence[Sequence[str]], *, constant: float = 60.0, weights: Sequence[float] | None = None
) -> dict[str, float]:
    """Return the reciprocal rank fusion of rankings: id → Σ weight / (constant + rank), ranks from 1.

    Args:
        rankings: each with the best id first; an id that a ranking lacks gets nothing from it.
        constant: the greater, the less the first ranks stand out.
        weights: one per ranking, all 1 by default.

    Source: Cormack, Clarke and Büttcher 2009, Reciprocal rank fusion, equation 1.
    """
    scores: dict[str, float] = {}
    for weight, names in zip(weights or [1.0] * len(rankings), rankings, strict=True):
        for rank, name in enumerate(names, 1):
            scores[name] = scores.get(name, 0.0) + weight / (constant + rank)
    return scores


def ranking(scores: Mapping[str, float]) -> list[str]:
    """Return the ids, the best first; equal scores go by id, so that any machine agrees."""
    return sorted(scores, key=lambda name: (-round(scores[name], 6), name))


def blend(parts: Sequence[Mapping[str, float]], weights: Sequence[float]) -> dict[str, float]:
    """Return the weighted sum of scores, each brought to 0 (its worst, or not found) to 1 (its best).

    Args:
        parts: id → score, one for each retriever; an id that one lacks gets 0 from it.
        weights: one for each.

    Source: Bruch, Gai and Ingber 2023, An analysis of fusion functions for hybrid retrieval, equation 2.
    """
    total: dict[str, float] = {}
    for weight, scores in zip(weights, parts, strict=True):
        low, high = min(scores.values(), default=0.0), max(scores.values(), default=0.0)
        for name, score in scores.items():
            total[name] = total.get(name, 0.0) + weight * ((score - low) / (high - low) if high > low else 1.0)
    return total


def combine(
    both: Sequence[Mapping[str, float]],
    coverage: Mapping[str, float],
    *,
    fusion: str,
    weight: float,
    constant: float,
    naming: float,
) -> dict[str, float]:
    """Return the scores of `Hybrid` from those of BM25 and of the vectors, and from what the question names.

    Args:
        both: id → score, of BM25 and of the vectors.
        coverage: id → share of the question that is the entry's name.
        fusion: one of `FUSIONS`.
        weight: of the vectors.
        constant: of `fuse`.
        naming: weight of the coverage.
    """
    if fusion == "scores":
        found, unit = blend(both, [1.0, weight]), 1.0
    else:
        ranks = [ranking(scores) for scores in both]
        found, unit = fuse(ranks, constant=constant, weights=[1.0, weight]), 1 / (constant + 1)
    for name, share in coverage.items():
        found[name] = found.get(name, 0.0) + unit * naming * share
    return found


class Hybrid:
    """Both BM25 and vectors, fused by ranks or by scores.

    Args:
        bm25: search by words.
        vectors: search by meaning, over the same entries.
        fusion: "ranks" (reciprocal rank fusion, `fuse`) or "scores" (`blend`).
        weight: of the vectors beside BM25's 1.
        constant: of `fuse`; blending needs none.
        naming: added to the score of an entry that the question names, times how much of the question the name is
            (`naming.Asked.coverage`); beside ranks in units of one first rank.
        drop_intent: whether BM25 reads the question without words such as "criteria" and "treatment".

    Raises:
        ParameterError: another fusion, or a negative weight.
    """

    def __init__(
        self,
        bm25: Bm25,
        vectors: Vectors,
        *,
        fusion: str = "scores",
        weight: float = 1.0,
        constant: float = 60.0,
        naming: float = 0.0,
        drop_intent: bool = False,
    ) -> None:
        if fusion not in FUSIONS:
            raise ParameterError(f"fusion {fusion!r}: expected one of {', '.join(FUSIONS)}")
        self.bm25, self.vectors, self.entries = bm25, vectors, vectors.entries
        if weight < 0 or naming < 0:
            raise ParameterError(f"weight {weight}, naming {naming}: expected 0 or more")
        self.fusion, self.weight, self.constant = fusion, weight, constant
        self.naming, self.drop_intent, self.names = naming, drop_intent, Names(self.entries)

    def scores(self, query: str) -> dict[str, float]:
        """Return the score of every entry."""
        return self.scores_of(query, embed_question(_question(query, 1)))

    def scores_of(self, query: str, vector: np.ndarray) -> dict[str, float]:
        """Return the score of every entry for a question and its embedding (384,)."""
        asked = without_intent(query) if self.drop_intent else query
        both = [self.bm25.scores(asked), self.vectors.scores_of(vector)]
        coverage = self.names.read(query[:MOST_QUERY]).coverage if self.naming else {}
        return combine(
            both, coverage, fusion=self.fusion, weight=self.weight, constant=self.constant, naming=self.naming
        )

    def search(self, query: str, top: int = 3) -> list[Hit]:
        """Return up to `top` entries, the best first.

        Raises:
            ParameterError: an empty question, or `top` below 1.
        """
        return _hits(self.entries, self.scores(_question(query, top)), top)


class GraphRetriever:
    """GraphRAG: local search from the question's entities, and global search over summaries of communities, fused.

    Local search starts at the entries that a plain search finds (in the paper: those nearest by embeddings) and at the
    entities that the question names, and walks over the graph from there.

    Args:
        base: the plain search; its entries make the graph.
        seeds: how many entries that it finds are starts; their weights are 1, 1/2, 1/3, ...
        mention: share of the start that belongs to what the question names, 0 to 1.
        damping: how far the walk goes, of `graph.local_search`.
        overview: weight of the global search beside the local one's 1.
        opened: communities that the global search opens.
        constant: of `fuse`.
    """

    def __init__(
        self,
        base: Vectors | Hybrid,
        *,
        seeds: int = 5,
        mention: float = 0.3,
        damping: float = 0.3,
        overview: float = 0.25,
        opened: int = 3,
        constant: float = 60.0,
    ) -> None:
        self.base, self.entries, self.seeds, self.mention, self.damping = base, base.entries, seeds, mention, damping
        self.overview, self.opened, self.constant = overview, opened, constant
        self.terms = knowledge_graph.load_terms()
        self.graph = knowledge_graph.build_graph(self.entries, self.terms)
        self.communities = knowledge_graph.communities(self.graph, self.entries)
        names = [str(number) for number in range(len(self.communities))]
        self.summary_vectors = embedded(names, [community.summary for community in self.communities]).vectors

    def start(self, query: str, scores: Mapping[str, float]) -> dict[str, float]:
        """Return where the walk starts: node → weight, at most 1 in all."""
        near = ranking(scores)[: self.seeds]
        total = sum(1 / rank for rank in range(1, len(near) + 1))
        named = [node for node in knowledge_graph.entities_in(query, self.entries, self.terms) if node in self.graph]
        share = self.mention if named else 0.0
        begin = {f"entry:{name}": (1 - share) / rank / total for rank, name in enumerate(near, 1)}
        for node in named:
            begin[node] = begin.get(node, 0.0) + share / len(named)
        return begin

    def search(self, query: str, top: int = 3) -> list[Hit]:
        """Return the `top` entries, the best first.

        Raises:
            ParameterError: an empty question, or `top` below 1.
        """
        asked = _question(query, top)
        vector = embed_question(asked)
        base = self.base
        scores = base.scores_of(vector) if isinstance(base, Vectors) else base.scores_of(asked, vector)
        return _hits(self.entries, self.scores_of(asked, vector, scores), top)

    def scores_of(self, query: str, vector: np.ndarray, scores: Mapping[str, float]) -> dict[str, float]:
        """Return the fused score of the entries that either search finds.

        Args:
            query: the question.
            vector: its embedding (384,).
            scores: what the plain search says, id → score.
        """
        near = knowledge_graph.local_search(self.graph, self.start(query, scores), damping=self.damping)
        if not self.overview:
            return near
        similarity = (self.summary_vectors @ vector).tolist()
        wide = knowledge_graph.global_search(self.communities, similarity, scores, most=self.opened)
        return fuse([ranking(near), ranking(wide)], constant=self.constant, weights=[1.0, self.overview])


SETTINGS: dict[str, dict[str, Any]] = {
    "bm25": {"how": "parts", "best": 3, "k1": 0.6, "b": 0.3},
    "vector": {"how": "parts", "best": 2},
    "hybrid": {"fusion": "scores", "weight": 1.0, "constant": 60.0, "naming": 2.0, "drop_intent": True},
    "graph": {
        "base": "hybrid",
        "seeds": 5,
        "mention": 0.0,
        "damping": 0.25,
        "overview": 0.0,
        "opened": 3,
        "constant": 60.0,
    },
}
"""What the built-in retrievers use: chosen on the questions of the tune half by benchmarks/knowledge.py."""


def make_retriever(
    how: str, entries: Mapping[str, Entry], settings: Mapping[str, Mapping[str, Any]] = SETTINGS
) -> Retriever:
    """Return a retriever over given entries.

    Args:
        how: one of `HOWS`.
        entries: id → entry, at least one.
        settings: of each way, as `SETTINGS`.

    Raises:
        ParameterError: another `how`, or no entries.
        MissingPartError: MiniLM isn't on this machine (BM25 doesn't need it).
    """
    if how not in HOWS:
        raise ParameterError(f"retriever {how!r}: expected one of {', '.join(HOWS)}")
    if not entries:
        raise ParameterError("a retriever needs at least one entry")
    if how == "bm25":
        return Bm25(entries, **settings["bm25"])
    vectors = Vectors(entries, **settings["vector"])
    if how == "vector":
        return vectors
    more = dict(settings["graph"])
    if how == "graph" and more.pop("base") == "vector":
        return GraphRetriever(vectors, **more)
    hybrid = Hybrid(Bm25(entries, **settings["bm25"]), vectors, **settings["hybrid"])
    return hybrid if how == "hybrid" else GraphRetriever(hybrid, **more)


def load_retriever(how: str = "hybrid") -> Retriever:
    """Return a retriever over the built-in knowledge base; made once per process and state of the base.

    Args:
        how: one of `HOWS`.

    Raises:
        ParameterError: another `how`.
        MissingPartError: MiniLM isn't on this machine.
        EcgChatError: the knowledge base breaks a rule.
    """
    terms = read_text(data_folder() / "knowledge" / "terms.yml") if how == "graph" else ""
    return _loaded(how, tuple(load_entries().values()), terms)


@lru_cache(maxsize=8)
def _loaded(how: str, entries: tuple[Entry, ...], terms: str) -> Retriever:
    """Return the retriever; `terms` is the text of the file that the graph reads, so that a change makes a new one."""
    return make_retriever(how, {entry.id: entry for entry in entries})
