"""Ask the knowledge base: no retrieval, vectors, BM25, both, and the graph, on the test half of the questions.

    python benchmarks/knowledge.py [--written N] [--journal FILE] [--out data/results/knowledge.json]

Everything that can be chosen (chunks, BM25's constants, the fusion's, the walk's, how many lines to quote) is chosen on
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
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ecgchat_lib.course.provenance import device, git_commit, hash_files, library_hash, versions
from ecgchat_lib.evaluate.bootstrap import Interval
from ecgchat_lib.knowledge import graph as knowledge_graph
from ecgchat_lib.knowledge.answers import Messages, QuotedLine, best_lines, messages_for, quote
from ecgchat_lib.knowledge.entries import Entry, load_entries, passage
from ecgchat_lib.knowledge.metrics import (
    context_precision,
    context_recall,
    correct,
    faithfulness,
    mean_interval,
    reciprocal_rank,
)
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
    blend,
    embed,
    fuse,
    make_retriever,
    ranking,
)
from ecgchat_lib.paths import data_folder, output_folder, project_root

SEED, DRAWS, KS = 7, 2000, (3, 5)
CONDITIONS = ("none", *HOWS)
NEW_TOKENS, BATCH = 80, 15
GLOBAL = [(3, 0.0, 60.0), *itertools.product((1, 3), (0.1, 0.25, 0.5), (10.0, 60.0))]  # opened, overview, constant
Search = Callable[[Question], Sequence[str]]


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
    return {
        "settings": settings,
        "tune": round(value, 4),
        "tried": len(tried),
        "worst_median_best": [values[0], values[len(values) // 2], values[-1]],
    }


def choose_bm25(entries: Mapping[str, Entry], tune: Sequence[Question]) -> dict[str, Any]:
    """Choose chunks and constants of BM25."""
    tried = []
    for how, best, k1, b in itertools.product(CHUNKS, (1, 2, 3), (0.9, 1.5), (0.3, 0.75)):
        if how == "whole" and best > 1:
            continue
        made = Bm25(entries, how=how, best=best, k1=k1, b=b)
        value = goodness(tune, lambda q, made=made: ranking(made.scores(q.question)))
        tried.append(({"how": how, "best": best, "k1": k1, "b": b}, value))
        print(tried[-1], flush=True)
    return best_of(tried)


def choose_vectors(entries: Mapping[str, Entry], tune: Sequence[Question], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Choose chunks of the vectors."""
    tried = []
    for how, best in (("whole", 1), *itertools.product(("parts", "lines"), (1, 2, 3))):
        made = Vectors(entries, how=how, best=best)
        value = goodness(tune, lambda q, made=made: ranking(made.scores_of(asked[q.id])))
        tried.append(({"how": how, "best": best}, value))
        print(tried[-1], flush=True)
    return best_of(tried)


def choose_hybrid(bm25: Bm25, vectors: Vectors, tune: Sequence[Question], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Choose the fusion, the vectors' weight and the constant."""
    parts = {q.id: [bm25.scores(q.question), vectors.scores_of(asked[q.id])] for q in tune}
    ranks = {name: [ranking(scores) for scores in both] for name, both in parts.items()}
    tried = []
    for weight in (0.3, 0.5, 1.0, 2.0):
        value = goodness(tune, lambda q, w=weight: ranking(blend(parts[q.id], [1.0, w])))
        tried.append(({"fusion": "scores", "weight": weight, "constant": 60.0}, value))
        for constant in (3.0, 10.0, 30.0, 60.0):
            value = goodness(
                tune, lambda q, w=weight, c=constant: ranking(fuse(ranks[q.id], constant=c, weights=[1, w]))
            )
            tried.append(({"fusion": "ranks", "weight": weight, "constant": constant}, value))
    best = {
        fusion: round(max(value for settings, value in tried if settings["fusion"] == fusion), 4) for fusion in FUSIONS
    }
    return best_of(tried) | {"best_by_fusion": best}


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
        for seeds, mention, damping in itertools.product((3, 5, 10), (0.0, 0.1, 0.2), (0.1, 0.25)):
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
    return best_of(tried) | {"best_by_base": best, "best_of_local_search_alone": local}


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


def choose_quote(found: Mapping[str, list[Hit]], tune: Sequence[Question]) -> dict[str, Any]:
    """Choose how many entries to quote from, the margin and the bonus; of nearly equal ones the shortest quote."""
    tried = []
    for hits, margin, bonus in itertools.product((1, 3, 5), (0.0, 0.05, 0.1, 0.2), (0.0, 0.05, 0.1, 0.2)):
        said = {q.id: quote(q.question, found[q.id][:hits], margin=margin, bonus=bonus).text for q in tune}
        right = sum(correct(said[q.id], q.facts) for q in tune) / len(tune)
        words = sum(len(text.split()) for text in said.values()) / len(tune)
        tried.append(({"hits": hits, "margin": margin, "bonus": bonus}, right - words / 1000))
    return best_of(tried) | {"chosen_by": "share of right answers less 0.001 per word"}


class Writer:
    """SmolLM2 without an adapter, answering several prompts at a time, greedily; what it wrote is kept in a journal."""

    def __init__(self, journal: Path) -> None:
        self.journal, self.known = journal, {}
        if journal.is_file():
            for line in journal.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                    self.known[row["asked"]] = row["text"]
                except (ValueError, KeyError):
                    continue  # a line that was cut off
        self.loaded: Any = None

    @staticmethod
    def key(messages: Messages) -> str:
        """Return the hash of what is asked."""
        return hashlib.sha256(json.dumps([messages, NEW_TOKENS]).encode()).hexdigest()[:24]

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

        from ecgchat_lib.chat.language_model import load_language_model

        self.loaded = self.loaded or load_language_model(quantized=False)
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


def interval(values: Sequence[float]) -> dict[str, Any] | None:
    """Return mean and interval, rounded; None if no value is left."""
    if all(math.isnan(value) for value in values):
        return None
    found: Interval = mean_interval(values, draws=DRAWS, seed=SEED)
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in found.as_dict().items()}


def difference(values: Sequence[float], others: Sequence[float]) -> dict[str, Any] | None:
    """Return the paired difference with its interval."""
    return interval([value - other for value, other in zip(values, others, strict=True)])


def retrieval_table(questions: Sequence[Question], found: Mapping[str, Mapping[str, list[Hit]]]) -> dict[str, Any]:
    """Return recall, precision and MRR of each retriever, and its paired difference to BM25."""
    measures = {f"{name}@{k}": (measure, k) for k in KS for name, measure in MEASURES.items()}
    values = {
        how: {
            name: [measure(q.entries, [hit.entry.id for hit in found[how][q.id]], k) for q in questions]
            for name, (measure, k) in measures.items()
        }
        for how in HOWS
    }
    table: dict[str, Any] = {}
    for how in HOWS:
        table[how] = {name: interval(rows) for name, rows in values[how].items()}
        table[how]["difference_to_bm25"] = {
            name: difference(rows, values["bm25"][name]) for name, rows in values[how].items() if how != "bm25"
        }
        kinds = sorted({q.kind for q in questions})
        table[how]["context_recall@5_by_kind"] = {
            kind: interval(
                [row for q, row in zip(questions, values[how]["context_recall@5"], strict=True) if q.kind == kind]
            )
            for kind in kinds
        }
    return table


MEASURES = {
    "context_recall": context_recall,
    "context_precision": context_precision,
    "mrr": reciprocal_rank,
}


def answer_table(
    questions: Sequence[Question],
    said: Mapping[str, Sequence[str]],
    shown: Mapping[str, Sequence[Sequence[str]]],
    entries: Mapping[str, Entry],
) -> dict[str, Any]:
    """Return correctness and faithfulness of each condition's answers, and the paired differences to "none"."""
    gold = [[passage(entries[name]) for name in q.entries] for q in questions]
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
        }
    return {
        condition: {
            **{name: interval(values) for name, values in found.items()},
            "difference_to_none": {
                name: difference(found[name], rows["none"][name]) for name in ("correct", "supported_by_gold_entries")
            }
            if condition != "none" and "none" in rows
            else None,
        }
        for condition, found in rows.items()
    }


def written_answers(
    questions: Sequence[Question], found: Mapping[str, Mapping[str, list[Hit]]], writer: Writer, hits: int, notes: int
) -> tuple[dict[str, list[str]], dict[str, list[list[str]]]]:
    """Return the texts of each condition, and the lines that were shown; a question's conditions share a batch."""
    lines: dict[tuple[str, str], tuple[QuotedLine, ...]] = {
        (condition, q.id): best_lines(q.question, found[condition][q.id][:hits], most=notes, margin=2.0)
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
    chosen = {"bm25": choose_bm25(entries, tune), "vector": choose_vectors(entries, tune, asked)}
    bm25, vectors = Bm25(entries, **chosen["bm25"]["settings"]), Vectors(entries, **chosen["vector"]["settings"])
    chosen["hybrid"] = choose_hybrid(bm25, vectors, tune, asked)
    bases = {"vector": vectors, "hybrid": Hybrid(bm25, vectors, **chosen["hybrid"]["settings"])}
    chosen["graph"] = choose_graph(bases, tune, asked)
    print(json.dumps(chosen, indent=1), flush=True)
    return chosen


def knowledge_hash() -> str:
    """Return the hash of entries, questions, sources, limits and terms."""
    folder = data_folder() / "knowledge"
    return hash_files([*folder.rglob("*.md"), *folder.rglob("*.yml")], folder)


def kept_choice(path: Path) -> dict[str, Any]:
    """Return what an earlier run on the same knowledge base chose."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["stamp"]["knowledge_sha256"] != knowledge_hash():
        raise SystemExit(f"{path}: chosen on another state of data/knowledge. Run without --keep-chosen")
    return dict(content["chosen_on_the_tune_half"])


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
    tune, test = (by_hash(load_questions(entries=entries, split=split)) for split in ("tune", "test"))
    chosen = kept_choice(given.out) if given.keep_chosen else choose(entries, tune)
    settings = {how: chosen[how]["settings"] for how in HOWS}
    if settings != SETTINGS:
        print("retrieve.SETTINGS differ from what was chosen; put these there:", settings, sep="\n", flush=True)
    retrievers = {how: make_retriever(how, entries, settings) for how in HOWS}
    found = {how: {q.id: made.search(q.question, max(KS)) for q in [*tune, *test]} for how, made in retrievers.items()}
    if "quote" not in chosen:
        chosen["quote"] = choose_quote(found["hybrid"], tune)
    quoting = dict(chosen["quote"]["settings"])
    hits = quoting.pop("hits")
    content: dict[str, Any] = {
        "what": "questions to the knowledge base; context recall, precision and MRR, right and faithful answers",
        "data": f"{len(entries)} entries; {len(tune)} questions to choose by, {len(test)} to test",
        "profile": "mini",
        "interval": f"95 %, percentile bootstrap over questions, {DRAWS} draws",
        "chosen_by": "the mean of recall@3, recall@5 and MRR@5 on the tune half",
        "chosen_on_the_tune_half": chosen,
        "retrieval": retrieval_table(test, found),
    }
    quoted = {how: [quote(q.question, found[how][q.id][:hits], **quoting) for q in test] for how in HOWS}
    content["quoted"] = answer_table(
        test,
        {how: [one.text for one in answers] for how, answers in quoted.items()},
        {
            how: [[f"{line.entry.title}: {line.text}" for line in one.lines] for one in answers]
            for how, answers in quoted.items()
        },
        entries,
    )
    save(given.out, content)
    if not given.retrieval_only:
        writer = Writer(given.journal or output_folder() / "knowledge_journal.jsonl")
        content |= write_all(writer, entries, tune[: given.written_tune], test[: given.written], found, hits, quoting)
        save(given.out, content)
    print(json.dumps({name: value for name, value in content.items() if name != "stamp"}, indent=1))
    return 0


def write_all(
    writer: Writer,
    entries: Mapping[str, Entry],
    tune: Sequence[Question],
    test: Sequence[Question],
    found: dict[str, dict[str, list[Hit]]],
    hits: int,
    quoting: Mapping[str, float],
) -> dict[str, Any]:
    """Let the model write: on some tune questions beside the quotes, and on the test questions in all conditions."""
    nothing: dict[str, dict[str, list[Hit]]] = {"none": {q.id: [] for q in [*tune, *test]}}
    content: dict[str, Any] = {}
    tried = {}
    for notes in (3, 8):
        said, shown = written_answers(tune, {"hybrid": found["hybrid"]}, writer, hits, notes)
        tried[f"written from {notes} lines"] = answer_table(tune, said, shown, entries)["hybrid"]
    quotes = [quote(q.question, found["hybrid"][q.id][:hits], **quoting) for q in tune]
    lines = [[line.text for line in one.lines] for one in quotes]
    tried["quoted"] = answer_table(tune, {"hybrid": [one.text for one in quotes]}, {"hybrid": lines}, entries)["hybrid"]
    content["quoted_and_written_on_the_tune_half"] = {"questions": len(tune), "with": "hybrid", **tried}
    notes = max((3, 8), key=lambda n: tried[f"written from {n} lines"]["correct"]["value"])
    said, shown = written_answers(test, nothing | found, writer, hits, notes)
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
