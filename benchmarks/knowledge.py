"""Ask the knowledge base: no retrieval, vectors, BM25, both, and the graph, on the test half of the questions.

    python benchmarks/knowledge.py [--written N] [--journal FOLDER] [--out data/results/knowledge.json]

Everything that can be chosen (chunks, BM25's constants, the fusion's, the walk's, how lines are quoted) is chosen on
the tune half; the test half is asked once. Answers are quoted, and written by SmolLM2 as it was published, greedily.
What was written is kept in the journal, so that a run that was stopped goes on. --written: of how many test questions
(in the order of their names' hashes) answers are written; --retrieval-only leaves them out.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import os
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ecgchat_lib.chat.scope import read_questions
from ecgchat_lib.course.provenance import (
    device,
    git_commit,
    keyed_folder,
    knowledge_hash,
    library_hash,
    read_journal,
    versions,
)
from ecgchat_lib.evaluate.bootstrap import Interval
from ecgchat_lib.knowledge import graph as knowledge_graph
from ecgchat_lib.knowledge.answers import (
    FRONTS,
    MOST_LINES,
    QUOTING,
    LineFit,
    Messages,
    QuotedLine,
    Quoting,
    answer_of,
    best_lines,
    chosen,
    fits,
    messages_for,
)
from ecgchat_lib.knowledge.entries import LINE_PARTS, Entry, lines_of, load_entries, passage
from ecgchat_lib.knowledge.metrics import (
    context_precision,
    context_recall,
    correct,
    faithfulness,
    mean_interval,
    precision_at,
    reciprocal_rank,
)
from ecgchat_lib.knowledge.naming import Asked, Names, asked_part, without_intent
from ecgchat_lib.knowledge.questions import Question, load_questions
from ecgchat_lib.knowledge.retrieve import (
    CHUNKS,
    FUSIONS,
    HOWS,
    SETTINGS,
    Bm25,
    GraphRetriever,
    Hit,
    Hybrid,
    Vectors,
    combine,
    embed,
    fuse,
    make_retriever,
    ranking,
)
from ecgchat_lib.paths import data_folder, output_folder, project_root

SEED, DRAWS, KS = 7, 2000, (3, 5)
CONDITIONS = ("none", *HOWS)
NEW_TOKENS, BATCH = 80, 15
FOLDS, PERMUTED = 5, 20
COST_OF_A_WORD = 0.001  # a quote is chosen by the share of right answers, less this for each word
WORSE = 0.005  # by so much at most may names make questions worse that name nothing
ORDER = "What are the criteria for {name}?"  # with each title and alias, the entry itself is to come first
GLOBAL = [
    (3, 0.0, 60.0),
    *itertools.product((1, 3), (0.05, 0.1, 0.25, 0.5), (10.0, 60.0)),
]  # opened, overview, constant
BEGIN = Quoting(lexical=0.2, entry=0.2, part=0.1, number=0.1, margin=0.1, ratio=0.7, focus=0.5, floor=-1.0)
Search = Callable[[Question], Sequence[str]]


def is_named(question: Question) -> bool:
    """Return whether a question is one of those that name an entry (data/knowledge/questions/named.yml)."""
    return question.id.startswith("q-named-")


def goodness(questions: Sequence[Question], search: Search) -> float:
    """Return what is chosen by: the mean of recall@3, recall@5 and MRR@5."""
    total = 0.0
    for question in questions:
        found = search(question)
        total += context_recall(question.entries, found, 3) + context_recall(question.entries, found, 5)
        total += reciprocal_rank(question.entries, found, 5)
    return total / 3 / len(questions)


def best_of(tried: list[tuple[dict[str, Any], float]]) -> dict[str, Any]:
    """Return the best settings (the first of equals), how good they are, and what was tried."""
    settings, value = max(tried, key=lambda one: round(one[1], 9))
    values = sorted(round(one[1], 4) for one in tried)
    at_edge = [
        name
        for name in settings
        if len(grid := sorted({one[name] for one, _ in tried if isinstance(one[name], int | float)})) > 2
        and settings[name] in (grid[0], grid[-1])
    ]
    return {
        "settings": settings,
        "tune": round(value, 4),
        "tried": len(tried),
        "worst_median_best": [values[0], values[len(values) // 2], values[-1]],
        "at_the_edge_of_its_grid": at_edge,
    }


def choose_bm25(entries: Mapping[str, Entry], tune: Sequence[Question]) -> dict[str, Any]:
    """Choose chunks and constants of BM25."""
    tried = []
    for how, best, k1, b in itertools.product(CHUNKS, (1, 2, 3, 5), (0.0, 0.3, 0.6, 0.9, 1.5), (0.0, 0.15, 0.3, 0.75)):
        if how == "whole" and best > 1:
            continue
        made = Bm25(entries, how=how, best=best, k1=k1, b=b)
        value = goodness(tune, lambda q, made=made: ranking(made.scores(q.question)))
        tried.append(({"how": how, "best": best, "k1": k1, "b": b}, value))
    return best_of(tried)


def choose_vectors(entries: Mapping[str, Entry], tune: Sequence[Question], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Choose chunks of the vectors."""
    tried = []
    for how, best in (("whole", 1), *itertools.product(("parts", "lines"), (1, 2, 3, 5))):
        made = Vectors(entries, how=how, best=best)
        value = goodness(tune, lambda q, made=made: ranking(made.scores_of(asked[q.id])))
        tried.append(({"how": how, "best": best}, value))
        print(tried[-1], flush=True)
    return best_of(tried)


def choose_hybrid(
    entries: Mapping[str, Entry], bm25: Bm25, vectors: Vectors, tune: Sequence[Question], asked: Mapping[str, Any]
) -> dict[str, Any]:
    """Choose the fusion, its weights, and what a name counts.

    Of those that make questions without names at most `WORSE` than the best without naming, and that put each entry
    first that is asked for by any of its names (if there are such), the best on the whole tune half; of equals the
    smallest.
    """
    names = Names(entries)
    asks = {ORDER.format(name=name): id_ for id_, entry in entries.items() for name in entry.names}
    vector = asked | dict(zip(asks, embed(list(asks)), strict=True))
    texts = {q.id: q.question for q in tune} | {text: text for text in asks}
    both = {
        (key, drop): [bm25.scores(without_intent(text) if drop else text), vectors.scores_of(vector[key])]
        for key, text in texts.items()
        for drop in (False, True)
    }
    coverage = {key: names.read(text).coverage for key, text in texts.items()}

    def order(key: str, given: Mapping[str, Any]) -> list[str]:
        more = {name: given[name] for name in ("fusion", "weight", "constant", "naming")}
        return ranking(combine(both[key, given["drop_intent"]], coverage[key], **more))

    plain = [q for q in tune if not is_named(q)]
    fusions = [("scores", 60.0), *(("ranks", constant) for constant in (3.0, 10.0, 30.0, 60.0))]
    tried, without = [], []
    for (fusion, constant), weight in itertools.product(fusions, (0.0, 0.15, 0.3, 0.5, 0.75, 1.0, 2.0)):
        for naming, drop in itertools.product((0.0, 0.25, 0.5, 1.0, 2.0), (False, True)):
            given = {"fusion": fusion, "weight": weight, "constant": constant, "naming": naming, "drop_intent": drop}
            tried.append((given, goodness(tune, lambda q, given=given: order(q.id, given))))
            without.append(goodness(plain, lambda q, given=given: order(q.id, given)))
    least = max(value for (given, _), value in zip(tried, without, strict=True) if not given["naming"]) - WORSE
    allowed = [one for one, value in zip(tried, without, strict=True) if value >= least]
    first = [sum(order(text, given)[0] == id_ for text, id_ in asks.items()) / len(asks) for given, _ in allowed]
    kept = [one for one, share in zip(allowed, first, strict=True) if share == max(first)]
    kept.sort(key=lambda one: (-round(one[1], 3), one[0]["naming"], one[0]["drop_intent"], one[0]["weight"]))
    place = tried.index(kept[0])
    by_fusion = {name: round(max(value for one, value in tried if one["fusion"] == name), 4) for name in FUSIONS}
    by_naming = {
        str(naming): {
            "all": round(max(value for one, value in tried if one["naming"] == naming), 4),
            "without_names": round(
                max(v for (one, _), v in zip(tried, without, strict=True) if one["naming"] == naming), 4
            ),
        }
        for naming in (0.0, 0.25, 0.5, 1.0, 2.0)
    }
    return best_of(tried) | {
        "settings": kept[0][0],
        "tune": round(kept[0][1], 4),
        "tune_without_names": round(without[place], 4),
        "best_without_naming": round(least + WORSE, 4),
        "allowed": len(allowed),
        "names": len(asks),
        "names_found_first": round(max(first), 4),
        "best_by_fusion": by_fusion,
        "best_by_naming": by_naming,
    }


def choose_graph(
    bases: Mapping[str, Vectors | Hybrid], tune: Sequence[Question], asked: Mapping[str, Any]
) -> dict[str, Any]:
    """Choose the base, how far to walk, how much the named entities count, and the weight of the global search."""
    tried = []
    for name, base in bases.items():
        made = GraphRetriever(base)
        scores = {
            q.id: base.scores_of(asked[q.id]) if isinstance(base, Vectors) else base.scores_of(q.question, asked[q.id])
            for q in tune
        }
        for seeds, mention, damping in itertools.product((3, 5, 10, 20), (0.0, 0.1, 0.2), (0.0, 0.05, 0.1, 0.25)):
            made.seeds, made.mention, made.damping, made.overview = seeds, mention, damping, 0.0
            near = {q.id: ranking(made.scores_of(q.question, asked[q.id], scores[q.id])) for q in tune}
            given = {"base": name, "seeds": seeds, "mention": mention, "damping": damping}
            for opened, overview, constant in GLOBAL:
                order = {q.id: ranking(fused(made, near, scores, asked, q, opened, overview, constant)) for q in tune}
                value = goodness(tune, lambda q, order=order: order[q.id])
                tried.append(({**given, "overview": overview, "opened": opened, "constant": constant}, value))
        print(name, max(value for _, value in tried), flush=True)
    best = {name: round(max(value for one, value in tried if one["base"] == name), 4) for name in bases}
    local = round(max(value for one, value in tried if not one["overview"]), 4)
    still = round(max(value for one, value in tried if not one["damping"]), 4)
    whole = [(one, value) for one, value in tried if one["damping"] and one["mention"] and one["overview"]]
    return best_of(tried) | {
        "with_all_parts": best_of(whole),
        "best_by_base": best,
        "best_of_local_search_alone": local,
        "best_without_a_walk": still,
    }


def fused(
    made: GraphRetriever,
    near: Mapping[str, list[str]],
    scores: Mapping[str, Mapping[str, float]],
    asked: Mapping[str, Any],
    question: Question,
    opened: int,
    overview: float,
    constant: float,
) -> dict[str, float]:
    """Return what `GraphRetriever.scores_of` returns, from a local search that is already done."""
    likeness = (made.summary_vectors @ asked[question.id]).tolist()
    wide = knowledge_graph.global_search(made.communities, likeness, scores[question.id], most=opened)
    return fuse([near[question.id], ranking(wide)], constant=constant, weights=[1.0, overview])


# --- quoting ---------------------------------------------------------------------------------------------------------


class Quotes:
    """The quotes of one retriever under any settings; what speaks for a line is computed once.

    Args:
        names: of the base.
        questions: what is asked.
        found: question id → hits.
    """

    def __init__(self, names: Names, questions: Sequence[Question], found: Mapping[str, list[Hit]]) -> None:
        self.asked: dict[str, Asked] = {q.id: names.read(q.question) for q in questions}
        self.fits: dict[str, list[LineFit]] = {
            q.id: fits(q.question, found[q.id], self.asked[q.id], names) for q in questions
        }
        self.hits = {q.id: [hit.entry.id for hit in found[q.id]] for q in questions}
        self._right: dict[tuple[str, str], bool] = {}

    def lines(self, question: Question, how: Quoting) -> tuple[QuotedLine, ...]:
        """Return the lines that are quoted."""
        kept = set(self.hits[question.id][: how.hits])
        found = [one for one in self.fits[question.id] if one.entry.id in kept]
        return chosen(found, self.asked[question.id], how)

    def right_and_words(self, question: Question, how: Quoting) -> tuple[float, float]:
        """Return whether the quote is right, and how many words it has."""
        text = answer_of(self.lines(question, how)).text
        key = (question.id, text)
        if key not in self._right:
            self._right[key] = correct(text, question.facts)
        return float(self._right[key]), float(len(text.split()))


def weight_grid(how: Quoting) -> list[Quoting]:
    """Return settings with other weights."""
    grid = itertools.product(FRONTS, (0.0, 0.2, 0.4), (0.0, 0.2, 0.4), (0.0, 0.1, 0.2), (0.0, 0.1, 0.2))
    return [
        replace(how, front=front, lexical=lexical, entry=entry, part=part, number=number)
        for front, lexical, entry, part, number in grid
    ]


def extent_grid(how: Quoting) -> list[Quoting]:
    """Return settings that quote more or less."""
    grid = itertools.product((1, 3, 5), (0.0, 0.05, 0.1, 0.2, 0.4), (0.5, 0.7, 0.9, 1.0), (0.25, 0.5, 0.75, 1.01))
    return [replace(how, hits=hits, margin=margin, ratio=ratio, focus=focus) for hits, margin, ratio, focus in grid]


def simplicity(how: Quoting) -> tuple[int, float, float, float]:
    """Return a key that is small for few and small weights and for few lines."""
    weights = (how.lexical, how.entry, how.part, how.number)
    return sum(map(bool, weights)), sum(weights), how.margin, how.hits


def choose_quote(quotes: Quotes, tune: Sequence[Question]) -> dict[str, Any]:
    """Choose how lines are quoted, by cross-validation over groups of questions: the simplest within a standard error.

    The weights are chosen first and then how much is quoted. The floor is off meanwhile.
    """
    values: dict[Quoting, np.ndarray] = {}  # settings → (questions, 2): right, words

    def worth(how: Quoting, rows: np.ndarray) -> np.ndarray:
        if how not in values:
            values[how] = np.array([quotes.right_and_words(q, how) for q in tune])
        return values[how][rows, 0] - COST_OF_A_WORD * values[how][rows, 1]

    def best(grid: Sequence[Quoting], rows: np.ndarray) -> Quoting:
        return max(grid, key=lambda how: (round(float(worth(how, rows).mean()), 9), tuple(-x for x in simplicity(how))))

    def search(rows: np.ndarray) -> Quoting:
        return best(extent_grid(best(weight_grid(BEGIN), rows)), rows)

    groups = sorted({q.group for q in tune})
    random.Random(SEED).shuffle(groups)
    fold = np.array([groups.index(q.group) % FOLDS for q in tune])
    everything = np.arange(len(tune))
    held, errors = np.zeros(len(tune)), []
    for number in range(FOLDS):
        how = search(everything[fold != number])
        held[fold == number] = worth(how, everything[fold == number])
        errors.append(float(held[fold == number].mean()))
    top = search(everything)
    margin = float(np.std([worth(top, everything[fold == k]).mean() for k in range(FOLDS)], ddof=1) / math.sqrt(FOLDS))
    near = [how for how in values if worth(how, everything).mean() >= worth(top, everything).mean() - margin]
    kept = min(near, key=lambda how: (simplicity(how), -round(float(worth(how, everything).mean()), 9)))
    right, words = values[kept].mean(axis=0)
    return {
        "settings": asdict(kept),
        "tune": {
            "right": round(float(right), 4),
            "words": round(float(words), 1),
            "objective": round(float(worth(kept, everything).mean()), 4),
        },
        "objective_of_the_best": round(float(worth(top, everything).mean()), 4),
        "best": asdict(top),
        "standard_error": round(margin, 4),
        "cross_validated_objective": round(float(held.mean()), 4),
        "by_fold": [round(one, 4) for one in errors],
        "tried": len(values),
        "within_a_standard_error": len(near),
        "chosen_by": f"share of right answers less {COST_OF_A_WORD} per word; the simplest within one standard error",
    }


def choose_floor(quotes: Quotes, how: Quoting, tune: Sequence[Question], outside: Quotes, ids: Sequence[str]) -> Any:
    """Choose below which cosine nothing is quoted, from questions of the base and questions about something else."""

    def likeness(one: Quotes, name: str) -> float | None:
        named = sum(one.asked[name].coverage.values())
        return None if named >= how.focus else max((fit.cosines[0] for fit in one.fits[name]), default=-1.0)

    inside = [value for q in tune if (value := likeness(quotes, q.id)) is not None]
    others = [value for name in ids if (value := likeness(outside, name)) is not None]
    tried = []
    for floor in (round(0.02 * k, 2) for k in range(41)):
        answered = sum(value >= floor for value in inside) / len(inside)
        refused = sum(value < floor for value in others) / len(others)
        tried.append(
            ({"floor": floor, "answered": round(answered, 4), "refused": round(refused, 4)}, answered + refused)
        )
    best = best_of(tried)["settings"]
    about = {"questions": len(inside), "outside": len(others), "outside_that_name_an_entry": len(ids) - len(others)}
    return best | about | {"chosen_by": "share answered plus share refused"}


def controls(
    entries: Mapping[str, Entry], names: Names, quotes: Quotes, how: Quoting, test: Sequence[Question]
) -> dict[str, Any]:
    """Return what bounds the share of right quotes, below and above.

    Below: quotes that were made for questions of other groups. Above: quotes from the gold entries; three lines of the
    first hits, or of the gold entries, chosen by who knows the facts; the whole first hits.
    """
    groups = [q.group for q in test]
    texts = [answer_of(quotes.lines(q, how)).text for q in test]
    draw = random.Random(SEED)
    permuted = []
    for q in test:
        others = [text for text, group in zip(texts, groups, strict=True) if group != q.group]
        drawn = draw.sample(others, min(PERMUTED, len(others)))
        permuted.append(sum(correct(text, q.facts) for text in drawn) / len(drawn))
    golden = Quotes(names, test, {q.id: [Hit(entries[name], 1.0) for name in q.entries] for q in test})
    wide = replace(how, hits=6, floor=-1.0)
    given = [float(correct(answer_of(golden.lines(q, wide)).text, q.facts)) for q in test]
    first = {q.id: [entries[name] for name in quotes.hits[q.id][: how.hits]] for q in test}
    gold = {q.id: [entries[name] for name in q.entries] for q in test}
    whole = [float(correct("\n".join(map(passage, first[q.id])), q.facts)) for q in test]
    return {
        "quotes_of_other_questions": interval(permuted, groups),
        "quoted_from_the_gold_entries": interval(given, groups),
        "best_three_lines_of_the_hits": interval([in_three_lines(first[q.id], q) for q in test], groups),
        "best_three_lines_of_the_gold_entries": interval([in_three_lines(gold[q.id], q) for q in test], groups),
        "whole_hits": interval(whole, groups),
        "hits": how.hits,
        "permutations": PERMUTED,
    }


def in_three_lines(entries: Sequence[Entry], question: Question) -> float:
    """Return 1.0 if some `MOST_LINES` lines of the entries state all facts, under their titles as quotes have them."""
    told = [
        [f"{entry.title}: {line}" for entry in entries for line in lines_of(entry) if states(entry, line, group)]
        for group in question.facts
    ]
    return float(len(question.facts) <= MOST_LINES and all(told))


def states(entry: Entry, line: str, group: Sequence[str]) -> bool:
    """Return whether a line under its entry's title states one of the facts."""
    return correct(f"{entry.title}: {line}", [group])


def part_accuracy(questions: Sequence[Question]) -> dict[str, Any]:
    """Return how often the part that a question asks for is recognized."""
    asked = [q for q in questions if q.part]
    right = [float(asked_part(q.question) == q.part) for q in asked]
    wrong = {q.id: asked_part(q.question) for q in asked if asked_part(q.question) != q.part}
    return {"right": interval(right, [q.group for q in asked]), "wrong": wrong, "parts": list(LINE_PARTS)}


# --- writing ---------------------------------------------------------------------------------------------------------


class Writer:
    """SmolLM2 without an adapter, answering several prompts at a time, greedily; what it wrote is kept in a journal.

    Args:
        folder: where journals stand; each is in a folder named by the hash of what it depends on.
    """

    def __init__(self, folder: Path) -> None:
        from ecgchat_lib.chat.language_model import load_language_model

        self.loaded = load_language_model(quantized=False)
        made = {"model": self.loaded.sha256, "tokens": NEW_TOKENS, "knowledge": knowledge_hash(), "settings": SETTINGS}
        self.journal = keyed_folder(folder, **made) / "written.jsonl"
        self.known = {row["asked"]: row["text"] for row in read_journal(self.journal)}

    def key(self, messages: Messages) -> str:
        """Return the hash of what is asked, and of whom."""
        return hashlib.sha256(json.dumps([messages, NEW_TOKENS, self.loaded.sha256]).encode()).hexdigest()[:24]

    def write(self, prompts: Sequence[Messages]) -> list[str]:
        """Return a text for each prompt."""
        keys = [self.key(messages) for messages in prompts]
        new = [number for number, key in enumerate(keys) if key not in self.known]
        for start in range(0, len(new), BATCH):
            part = new[start : start + BATCH]
            texts = self._generate([prompts[number] for number in part])
            with self.journal.open("a", encoding="utf-8") as file:
                for number, text in zip(part, texts, strict=True):
                    self.known[keys[number]] = text
                    file.write(json.dumps({"asked": keys[number], "text": text}) + "\n")
            print(f"written {start + len(part)} of {len(new)}", flush=True)
        return [self.known[key] for key in keys]

    def _generate(self, prompts: Sequence[Messages]) -> list[str]:
        import torch

        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.eos_token
        texts = [tokenizer.apply_chat_template(one, add_generation_prompt=True, tokenize=False) for one in prompts]
        batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            out = model.generate(
                **batch, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.eos_token_id
            )
        new = out[:, batch["input_ids"].shape[1] :]
        return [" ".join(text.split()) for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


# --- tables ----------------------------------------------------------------------------------------------------------


def interval(values: Sequence[float], groups: Sequence[str]) -> dict[str, Any] | None:
    """Return mean and interval over groups, rounded; None if no value is left."""
    if all(math.isnan(value) for value in values):
        return None
    found: Interval = mean_interval(values, groups=groups, draws=DRAWS, seed=SEED)
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in found.as_dict().items()}
    kept = {group for group, value in zip(groups, values, strict=True) if not math.isnan(value)}
    return rounded | {"groups": len(kept)}


def difference(values: Sequence[float], others: Sequence[float], groups: Sequence[str]) -> dict[str, Any] | None:
    """Return the paired difference with its interval."""
    return interval([value - other for value, other in zip(values, others, strict=True)], groups)


MEASURES = {
    "context_recall": context_recall,
    "context_precision": context_precision,
    "precision": precision_at,
    "mrr": reciprocal_rank,
}


def retrieval_table(questions: Sequence[Question], found: Mapping[str, Mapping[str, list[Hit]]]) -> dict[str, Any]:
    """Return recall, precision and MRR of each retriever, and its paired difference to BM25."""
    measures = {f"{name}@{k}": (measure, k) for k in KS for name, measure in MEASURES.items()}
    groups = [q.group for q in questions]
    values = {
        how: {
            name: [measure(q.entries, [hit.entry.id for hit in found[how][q.id]], k) for q in questions]
            for name, (measure, k) in measures.items()
        }
        for how in HOWS
    }
    kinds: dict[str, list[int]] = {}
    for row, q in enumerate(questions):
        kinds.setdefault(q.kind, []).append(row)
    asked = {name: [row for row, q in enumerate(questions) if is_named(q) == (name == "named")] for name in ASKED}
    table: dict[str, Any] = {}
    for how in HOWS:

        def part(rows: Sequence[int], name: str, how: str = how) -> dict[str, Any] | None:
            return interval([values[how][name][row] for row in rows], [groups[row] for row in rows])

        table[how] = {name: interval(rows, groups) for name, rows in values[how].items()}
        table[how]["difference_to_bm25"] = {
            name: difference(rows, values["bm25"][name], groups) for name, rows in values[how].items() if how != "bm25"
        }
        table[how]["context_recall@5_by_kind"] = {kind: part(kinds[kind], "context_recall@5") for kind in sorted(kinds)}
        table[how]["mrr@5_by_asking"] = {name: part(rows, "mrr@5") for name, rows in asked.items()}
        table[how]["context_recall@5_by_asking"] = {
            name: part(rows, "context_recall@5") for name, rows in asked.items()
        }
    return table


ASKED = ("named", "paraphrased")


def with_all_parts(
    given: Mapping[str, Any],
    entries: Mapping[str, Entry],
    settings: Mapping[str, Mapping[str, Any]],
    questions: Sequence[Question],
    found: Mapping[str, Mapping[str, list[Hit]]],
) -> dict[str, Any]:
    """Return how good the graph is where walk, named entities and global search all count, beside the fusion."""
    made = make_retriever("graph", entries, {**settings, "graph": given})
    hits = {q.id: made.search(q.question, max(KS)) for q in questions}
    groups = [q.group for q in questions]
    table: dict[str, Any] = {"settings": dict(given)}
    for k, (name, measure) in itertools.product(KS, MEASURES.items()):
        values, others = (
            [measure(q.entries, [hit.entry.id for hit in ones[q.id]], k) for q in questions]
            for ones in (hits, found["hybrid"])
        )
        table[f"{name}@{k}"] = interval(values, groups) | {"difference_to_hybrid": difference(values, others, groups)}
    return table


def answer_table(
    questions: Sequence[Question],
    said: Mapping[str, Sequence[str]],
    shown: Mapping[str, Sequence[Sequence[str]]],
    entries: Mapping[str, Entry],
) -> dict[str, Any]:
    """Return correctness and faithfulness of each condition's answers, and the paired differences to "none"."""
    gold = [[passage(entries[name]) for name in q.entries] for q in questions]
    groups = [q.group for q in questions]
    rows: dict[str, dict[str, list[float]]] = {}
    for condition, texts in said.items():
        rows[condition] = {
            "correct": [float(correct(text, q.facts)) for text, q in zip(texts, questions, strict=True)],
            "faithful_to_what_was_shown": [
                faithfulness(text, notes) if notes else math.nan
                for text, notes in zip(texts, shown[condition], strict=True)
            ],
            "supported_by_gold_entries": [faithfulness(text, ones) for text, ones in zip(texts, gold, strict=True)],
            "words": [float(len(text.split())) for text in texts],
            "silent": [float(not text) for text in texts],
        }
    table: dict[str, Any] = {}
    for condition, found in rows.items():
        table[condition] = {name: interval(values, groups) for name, values in found.items()}
        for name in ASKED:
            kept = [row for row, q in enumerate(questions) if is_named(q) == (name == "named")]
            table[condition][f"correct_{name}"] = (
                interval([found["correct"][row] for row in kept], [groups[row] for row in kept]) if kept else None
            )
        compared = condition != "none" and "none" in rows
        table[condition]["difference_to_none"] = (
            {
                name: difference(found[name], rows["none"][name], groups)
                for name in ("correct", "supported_by_gold_entries")
            }
            if compared
            else None
        )
    return table


def written_answers(
    questions: Sequence[Question], found: Mapping[str, Mapping[str, list[Hit]]], writer: Writer, hits: int, notes: int
) -> tuple[dict[str, list[str]], dict[str, list[list[str]]]]:
    """Return the texts of each condition, and the lines that were shown; a question's conditions share a batch."""
    lines: dict[tuple[str, str], tuple[QuotedLine, ...]] = {
        (condition, q.id): best_lines(q.question, found[condition][q.id][:hits], most=notes)
        for q in questions
        for condition in found
    }
    order = [(condition, q) for q in questions for condition in found]
    texts = writer.write([messages_for(q.question, lines[condition, q.id]) for condition, q in order])
    said: dict[str, list[str]] = {condition: [] for condition in found}
    shown: dict[str, list[list[str]]] = {condition: [] for condition in found}
    for (condition, q), text in zip(order, texts, strict=True):
        said[condition].append(text)
        shown[condition].append([f"{line.entry.title}: {line.text}" for line in lines[condition, q.id]])
    return said, shown


def by_hash(questions: Sequence[Question]) -> list[Question]:
    """Return the questions in the order of their names' hashes, so that the first n are a fair draw."""
    return sorted(questions, key=lambda q: hashlib.sha256(q.id.encode()).hexdigest())


def choose(entries: Mapping[str, Entry], tune: Sequence[Question]) -> dict[str, dict[str, Any]]:
    """Choose the settings of all four retrievers on the tune half."""
    asked = dict(zip([q.id for q in tune], embed([q.question for q in tune]), strict=True))
    made = {"bm25": choose_bm25(entries, tune), "vector": choose_vectors(entries, tune, asked)}
    bm25, vectors = Bm25(entries, **made["bm25"]["settings"]), Vectors(entries, **made["vector"]["settings"])
    made["hybrid"] = choose_hybrid(entries, bm25, vectors, tune, asked)
    print(json.dumps(made, indent=1), flush=True)
    bases = {"vector": vectors, "hybrid": Hybrid(bm25, vectors, **made["hybrid"]["settings"])}
    made["graph"] = choose_graph(bases, tune, asked)
    return made


def choose_quotes(
    names: Names, tune: Sequence[Question], found: Mapping[str, Mapping[str, list[Hit]]], retrievers: Mapping[str, Any]
) -> dict[str, Any]:
    """Choose how lines are quoted after each retriever, with the floor below which nothing is."""
    outside = [
        Question(f"q-outside-{number}", one.text, ("none",), (("none",),), "single")
        for number, one in enumerate(read_questions())
        if one.kind == "outside" and one.split == "train" and not one.after
    ]
    made = {}
    for how in HOWS:
        quotes = Quotes(names, tune, found[how])
        made[how] = choose_quote(quotes, tune)
        quoting = Quoting(**made[how]["settings"])
        others = Quotes(names, outside, {q.id: retrievers[how].search(q.question, max(KS)) for q in outside})
        made[how]["floor"] = choose_floor(quotes, quoting, tune, others, [q.id for q in outside])
        made[how]["settings"]["floor"] = made[how]["floor"]["floor"]
        print(how, json.dumps(made[how]), flush=True)
    return made


def kept_choice(path: Path) -> dict[str, Any]:
    """Return what an earlier run on the same knowledge base chose."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["stamp"]["knowledge_sha256"] != knowledge_hash():
        raise SystemExit(f"{path}: chosen on another state of data/knowledge. Run without --keep-chosen")
    return dict(content["chosen_on_the_tune_half"])


WHAT = (
    "questions to the knowledge base; context recall, precision and MRR, right and faithful answers. The test half was "
    "looked at once before names, parts and quotes were designed anew; since then questions were added and mended, and "
    "the halves were drawn again by groups. Whoever wrote the rules that recognize a part had seen all questions."
)


def main() -> int:
    """Run everything and write the result; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=data_folder() / "results" / "knowledge.json")
    parser.add_argument("--journal", type=Path)
    parser.add_argument("--written", type=int, default=1000, help="test questions that answers are written to")
    parser.add_argument("--written-tune", type=int, default=30, help="tune questions that answers are written to")
    parser.add_argument("--retrieval-only", action="store_true")
    parser.add_argument("--keep-chosen", action="store_true", help="take the settings from --out: go on with a run")
    given = parser.parse_args()
    entries = load_entries()
    names = Names(entries)
    tune, test = (by_hash(load_questions(entries=entries, split=split)) for split in ("tune", "test"))
    made = kept_choice(given.out) if given.keep_chosen else choose(entries, tune)
    settings = {how: made[how]["settings"] for how in HOWS}
    if settings != SETTINGS:
        print("retrieve.SETTINGS differ from what was chosen; put these there:", settings, sep="\n", flush=True)
    retrievers = {how: make_retriever(how, entries, settings) for how in HOWS}
    found = {how: {q.id: one.search(q.question, max(KS)) for q in [*tune, *test]} for how, one in retrievers.items()}
    if "quote" not in made:
        made["quote"] = choose_quotes(names, tune, found, retrievers)
    quoting = {how: Quoting(**made["quote"][how]["settings"]) for how in HOWS}
    if quoting["hybrid"] != QUOTING:
        print("answers.QUOTING differs from what was chosen; put this there:", quoting["hybrid"], sep="\n", flush=True)
    quotes = {how: Quotes(names, test, found[how]) for how in HOWS}
    lines = {how: [quotes[how].lines(q, quoting[how]) for q in test] for how in HOWS}
    content: dict[str, Any] = {
        "what": WHAT,
        "data": f"{len(entries)} entries; {len(tune)} questions to choose by, {len(test)} to test "
        f"({len({q.group for q in test})} groups)",
        "profile": "mini",
        "interval": f"95 %, percentile bootstrap over groups of questions about the same entries, {DRAWS} draws",
        "chosen_by": "the mean of recall@3, recall@5 and MRR@5 on the tune half",
        "chosen_on_the_tune_half": made,
        "retrieval": retrieval_table(test, found),
        "quoted": answer_table(
            test,
            {how: [answer_of(one).text for one in ones] for how, ones in lines.items()},
            {how: [list(map(told, one)) for one in ones] for how, ones in lines.items()},
            entries,
        ),
        "controls": controls(entries, names, quotes["hybrid"], quoting["hybrid"], test),
        "parts": {"tune": part_accuracy(tune), "test": part_accuracy(test)},
        "graph_with_all_parts": with_all_parts(
            made["graph"]["with_all_parts"]["settings"], entries, settings, test, found
        ),
    }
    save(given.out, content)
    if not given.retrieval_only:
        writer = Writer(given.journal or output_folder() / "knowledge_journal")
        asked = tune[: given.written_tune], test[: given.written]
        content |= write_all(writer, entries, names, *asked, found, quoting["hybrid"])
        save(given.out, content)
    print(json.dumps({name: value for name, value in content.items() if name != "stamp"}, indent=1))
    return 0


def told(line: QuotedLine) -> str:
    """Return a line with all that may stand before it in a quote."""
    return f"{line.entry.title}, {LINE_PARTS[line.part]}: {line.text}"


def write_all(
    writer: Writer,
    entries: Mapping[str, Entry],
    names: Names,
    tune: Sequence[Question],
    test: Sequence[Question],
    found: dict[str, dict[str, list[Hit]]],
    quoting: Quoting,
) -> dict[str, Any]:
    """Let the model write: on some tune questions beside the quotes, and on the test questions in all conditions."""
    nothing: dict[str, dict[str, list[Hit]]] = {"none": {q.id: [] for q in [*tune, *test]}}
    content: dict[str, Any] = {}
    tried = {}
    for notes in (3, 8):
        said, shown = written_answers(tune, {"hybrid": found["hybrid"]}, writer, quoting.hits, notes)
        tried[f"written from {notes} lines"] = answer_table(tune, said, shown, entries)["hybrid"]
    quotes = Quotes(names, tune, found["hybrid"])
    lines = [quotes.lines(q, quoting) for q in tune]
    said, shown = (
        {"hybrid": [answer_of(one).text for one in lines]},
        {"hybrid": [list(map(told, one)) for one in lines]},
    )
    tried["quoted"] = answer_table(tune, said, shown, entries)["hybrid"]
    content["quoted_and_written_on_the_tune_half"] = {"questions": len(tune), "with": "hybrid", **tried}
    notes = max((3, 8), key=lambda n: tried[f"written from {n} lines"]["correct"]["value"])
    said, shown = written_answers(test, nothing | found, writer, quoting.hits, notes)
    model = {"language_model": "SmolLM2-135M-Instruct, no adapter, float32", "decoding": f"greedy, {NEW_TOKENS} tokens"}
    content["written"] = {"questions": len(test), "lines_shown": notes, **model}
    content["written"] |= answer_table(test, said, shown, entries)
    return content


def save(path: Path, content: dict[str, Any]) -> None:
    """Write the result with its stamp, in one step."""
    content["stamp"] = {
        "commit": git_commit(project_root()),
        "library_sha256": library_hash(),
        "knowledge_sha256": knowledge_hash(),
        "device": device(),
        "seed": SEED,
        "versions": versions(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


if __name__ == "__main__":
    sys.exit(main())
