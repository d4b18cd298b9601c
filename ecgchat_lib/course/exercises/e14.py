"""Exercises of notebook 14: BM25 scores, the fusion of rankings, and how much of the gold was found and how soon."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ecgchat_lib.course import Exercise, Misconception, expect_equal

WORDS = ("qrs", "wide", "narrow", "p", "wave", "st", "elevation", "lead", "rhythm", "regular", "pause", "axis")
NAMES = ("af", "flutter", "lbbb", "rbbb", "stemi", "vf", "vt", "wpw")

# --- 14.1 --------------------------------------------------------------------------------------------------------


def bm25(query: Sequence[str], texts: Sequence[Sequence[str]], k1: float = 1.5, b: float = 0.75) -> list[float]:
    """Reference of 14.1: Lucene's BM25 of each text; a text is a list of words."""
    return _bm25(query, texts, k1, b)


def _bm25(
    query: Sequence[str],
    texts: Sequence[Sequence[str]],
    k1: float,
    b: float,
    idf: Callable[[int, int], float] = lambda n, having: math.log(1 + (n - having + 0.5) / (having + 0.5)),
    saturating: bool = True,
) -> list[float]:
    mean = sum(map(len, texts)) / len(texts)
    scores = []
    for text in texts:
        score = 0.0
        for word in query:
            count = text.count(word)
            if count:
                held_back = k1 * (1 - b + b * len(text) / mean)
                score += idf(len(texts), sum(word in other for other in texts)) * (
                    count / (count + held_back) if saturating else count
                )
        scores.append(score)
    return scores


def _occurrences(query: Sequence[str], texts: Sequence[Sequence[str]], k1: float, b: float) -> list[float]:
    """Count how often a word occurs in all texts where it should be counted in how many."""
    mean = sum(map(len, texts)) / len(texts)
    scores = [0.0] * len(texts)
    for word in query:
        often = sum(text.count(word) for text in texts)
        inner = 1 + (len(texts) - often + 0.5) / (often + 0.5)
        for number, text in enumerate(texts):
            if inner > 0 and (count := text.count(word)):
                scores[number] += math.log(inner) * count / (count + k1 * (1 - b + b * len(text) / mean))
    return scores


def _verify_bm25(answer: Callable[..., Any], rng: Any) -> None:
    typical: tuple[tuple[Callable[..., list[float]], str], ...] = (
        (
            _no_length,
            "Long texts aren't held back: 1 - b + b · |d| / mean is missing, the length over the mean one.",
        ),
        (_no_saturation, "A word that stands there twice counts double. It must saturate: f / (f + k1 · ...)."),
        (_no_idf, "Each word weighs the same. A rare word must weigh more; that is what idf is for."),
        (_occurrences, "n is in how many texts a word stands, not how often it stands in all of them together."),
    )
    for _ in range(8):
        vocabulary = list(rng.choice(WORDS, size=8, replace=False))
        texts = [list(rng.choice(vocabulary[:-1], size=int(n))) for n in rng.integers(3, 15, size=5)]
        texts[0] += [vocabulary[0]] * 3  # a word that is repeated
        query = [vocabulary[0], *rng.choice(vocabulary[1:7], size=2, replace=False), vocabulary[7]]  # the last: nowhere
        query, texts = [str(word) for word in query], [[str(word) for word in text] for text in texts]
        k1, b = float(rng.uniform(0.8, 2)), float(rng.uniform(0.3, 0.9))
        found, expected = answer(list(query), [list(text) for text in texts], k1, b), bm25(query, texts, k1, b)
        found = found.tolist() if hasattr(found, "tolist") else found
        if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != len(texts):
            raise Misconception(f"{len(texts)} texts: expected a list of as many scores, found {str(found)[:60]}.")
        for wrong, why in typical:
            if _close(found, wrong(query, texts, k1, b)) and not _close(expected, wrong(query, texts, k1, b)):
                raise Misconception(why)
        expect_equal(list(found), expected, f"the scores of {len(texts)} texts for {query}", tolerance=1e-6)


def _close(found: Sequence[float], other: Sequence[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) for a, b in zip(found, other, strict=True))


def _no_length(query: Sequence[str], texts: Sequence[Sequence[str]], k1: float, b: float) -> list[float]:
    return _bm25(query, texts, k1, 0.0)


def _no_saturation(query: Sequence[str], texts: Sequence[Sequence[str]], k1: float, b: float) -> list[float]:
    return _bm25(query, texts, k1, b, saturating=False)


def _no_idf(query: Sequence[str], texts: Sequence[Sequence[str]], k1: float, b: float) -> list[float]:
    return _bm25(query, texts, k1, b, idf=lambda n, having: 1.0)


# --- 14.2 --------------------------------------------------------------------------------------------------------


def fuse(rankings: Sequence[Sequence[str]], constant: float = 60.0) -> dict[str, float]:
    """Reference of 14.2: id → Σ 1 / (constant + rank), ranks from 1; nothing from a ranking that lacks the id."""
    scores: dict[str, float] = {}
    for names in rankings:
        for rank, name in enumerate(names, 1):
            scores[name] = scores.get(name, 0.0) + 1 / (constant + rank)
    return scores


def _verify_fuse(answer: Callable[..., Any], rng: Any) -> None:
    typical: tuple[tuple[Callable[..., dict[str, float]], str], ...] = (
        (_from_zero, "The best one has rank 1, not 0."),
        (_in_all, "An id that one ranking lacks is gone. It keeps what the other rankings gave it."),
        (_last_place, "A ranking that lacks an id gives it nothing; it isn't treated as if it stood at the end."),
        (_overwritten, "Each ranking overwrites what the one before it gave. Add them up."),
    )
    expect_equal(answer([], 60.0), {}, "no rankings at all", "Nothing was found, so the dictionary is empty.")
    for _ in range(8):
        rankings = [
            [str(name) for name in rng.choice(NAMES, size=int(size), replace=False)]
            for size in (int(rng.integers(2, 5)), int(rng.integers(5, 7)), 0, int(rng.integers(3, 6)))
        ]
        constant = float(rng.integers(1, 80))
        found, expected = answer([list(one) for one in rankings], constant), fuse(rankings, constant)
        if not isinstance(found, dict):
            raise Misconception(f"Expected a dictionary, id → score; found {type(found).__name__}.")
        for wrong, why in typical:
            other = wrong(rankings, constant)
            if found.keys() == other.keys() and _close(list(found.values()), [other[name] for name in found]):
                raise Misconception(why)
        if found.keys() != expected.keys():
            raise Misconception(f"Expected scores of {sorted(expected)}, found scores of {sorted(map(str, found))}.")
        pairs = [float(found[name]) for name in sorted(expected)]
        expect_equal(pairs, [expected[name] for name in sorted(expected)], f"the scores of {sorted(expected)}")


def _from_zero(rankings: Sequence[Sequence[str]], constant: float) -> dict[str, float]:
    scores: dict[str, float] = {}
    for names in rankings:
        for rank, name in enumerate(names):
            scores[name] = scores.get(name, 0.0) + 1 / (constant + rank)
    return scores


def _in_all(rankings: Sequence[Sequence[str]], constant: float) -> dict[str, float]:
    shared = set.intersection(*(set(names) for names in rankings)) if rankings else set()
    return {name: score for name, score in fuse(rankings, constant).items() if name in shared}


def _last_place(rankings: Sequence[Sequence[str]], constant: float) -> dict[str, float]:
    everyone = {name for names in rankings for name in names}
    full = [[*names, *sorted(everyone - set(names))] for names in rankings]
    return {
        name: sum(
            1 / (constant + min(names.index(name), len(given)) + 1) for names, given in zip(full, rankings, strict=True)
        )
        for name in everyone
    }


def _overwritten(rankings: Sequence[Sequence[str]], constant: float) -> dict[str, float]:
    return {name: 1 / (constant + rank) for names in rankings for rank, name in enumerate(names, 1)}


# --- 14.3 --------------------------------------------------------------------------------------------------------


def recall_and_rank(gold: Sequence[str], found: Sequence[str], k: int) -> tuple[float, float]:
    """Reference of 14.3: the library's context recall and reciprocal rank among the first k."""
    from ecgchat_lib.knowledge.metrics import context_recall, reciprocal_rank

    return context_recall(gold, found, k), reciprocal_rank(gold, found, k)


def _verify_recall(answer: Callable[..., Any], rng: Any) -> None:
    cases: tuple[tuple[list[str], list[str], int, str], ...] = (
        (["af"], [], 3, "Nothing was found: both are 0."),
        (["af"], ["vf", "vt", "wpw", "af"], 3, "The gold entry stands at place 4, and only the first 3 count."),
        (["af", "vf"], ["vt", "af", "vf"], 3, "Recall asks for the share of the gold entries, here both of two."),
        (["af", "vf", "vt"], ["af"], 5, "One of three gold entries was found. k isn't in the denominator."),
        (["af", "vf"], ["vt", "vf", "af"], 3, "The first gold entry counts, whichever it is: here the one at place 2."),
    )
    drawn = []
    for _ in range(20):
        names = [str(name) for name in rng.permutation(NAMES)]
        gold, size, k = names[: int(rng.integers(1, 4))], int(rng.integers(0, 8)), int(rng.integers(1, 8))
        drawn.append((gold, [str(name) for name in rng.permutation(NAMES)][:size], k, "Only the first k count."))
    for gold, found, k, why in (*cases, *drawn):
        told = answer(list(gold), list(found), k)
        what = f"gold {gold}, found {found}, k = {k}"
        if not (isinstance(told, tuple) and len(told) == 2):
            raise Misconception(f"{what}: return two numbers, recall and reciprocal rank; found {str(told)[:60]}.")
        for name, got, right in zip(("recall", "reciprocal rank"), told, recall_and_rank(gold, found, k), strict=True):
            if not isinstance(got, int | float) or not math.isclose(got, right, abs_tol=1e-9):
                raise Misconception(f"{what}: the {name} is {right:.3g}, found {str(got)[:12]}. {why}")


def _over_k(gold: Sequence[str], found: Sequence[str], k: int) -> tuple[float, float]:
    recall, rank = recall_and_rank(gold, found, k)
    return recall * len(gold) / k, rank


def _all_found(gold: Sequence[str], found: Sequence[str], k: int) -> tuple[float, float]:
    return recall_and_rank(gold, found, max(len(found), 1))


def _first_gold(gold: Sequence[str], found: Sequence[str], k: int) -> tuple[float, float]:
    recall, _ = recall_and_rank(gold, found, k)
    return recall, 1 / (list(found).index(gold[0]) + 1) if gold[0] in found[:k] else 0.0


EXERCISES = (
    Exercise(
        id="14.1",
        title="BM25 scores",
        difficulty=2,
        minutes=12,
        verify=_verify_bm25,
        reference=bm25,
        wrong=(
            ("long texts aren't held back", _no_length),
            ("a repeated word counts in full", _no_saturation),
            ("all words weigh the same", _no_idf),
            ("occurrences are counted instead of texts", _occurrences),
        ),
    ),
    Exercise(
        id="14.2",
        title="Fuse rankings",
        difficulty=1,
        minutes=8,
        verify=_verify_fuse,
        reference=fuse,
        wrong=(
            ("ranks begin at 0", _from_zero),
            ("only what all rankings hold is kept", _in_all),
            ("what is missing counts as last", _last_place),
            ("the last ranking wins", _overwritten),
        ),
    ),
    Exercise(
        id="14.3",
        title="Recall and rank of the gold",
        difficulty=1,
        minutes=8,
        verify=_verify_recall,
        reference=recall_and_rank,
        wrong=(
            ("recall over k instead of over the gold", _over_k),
            ("looks beyond the first k", _all_found),
            ("only the first gold entry counts for the rank", _first_gold),
        ),
    ),
)
