"""Tune a small model's prompt on some questions, and test it once on others.

    python benchmarks/prompt_tuning.py [--task scope] [--out data/results/prompt_tuning.json] [--work out/...]

Three tasks: "scope" (what is a question to the chat about: the recording, ECGs in general, something else?),
"findings" (which of the findings that retrieval offers is a question about?) and "answers" (answer it from retrieved
lines; it was tried first, and its result is not published). Of the knowledge base's questions only those are used whose
gold entry is offered, or whose gold facts stand in the lines: on the others no prompt can help. Examples come from one
part of the questions, another scores candidates. What was retrieved, the answers and the tuned program are kept in the
working folder, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import dspy
import torch

from ecgchat_lib.chat.language_model import LanguageModel, load_language_model
from ecgchat_lib.chat.scope import read_questions, scopes_of
from ecgchat_lib.course.provenance import (
    device,
    git_commit,
    keyed_folder,
    knowledge_hash,
    library_hash,
    read_journal,
    versions,
)
from ecgchat_lib.instruct.teachers import Messages
from ecgchat_lib.knowledge.metrics import faithfulness, mean_interval
from ecgchat_lib.knowledge.questions import load_questions
from ecgchat_lib.knowledge.retrieve import SETTINGS, load_retriever
from ecgchat_lib.knowledge.tuning import (
    Cost,
    LocalLM,
    LocalWriter,
    Tuned,
    Written,
    digest_of,
    evaluate,
    finding_examples,
    knowledge_examples,
    load_tuned,
    make_program,
    names_the_finding,
    save_tuned,
    states_the_facts,
    tune,
)
from ecgchat_lib.paths import data_folder, output_folder, project_root

SEED = 7
MODEL = "SmolLM2-135M-Instruct"  # the built-in language model, without an adapter
TOP, LINES = 3, 5  # entries and their lines that are shown


@dataclass(frozen=True)
class Task:
    """What is tuned for.

    Attributes:
        what: in words, for the record.
        fields: of the program.
        metric: of an answer.
        baseline: the instruction to begin with.
        instructions: others to try.
        most_tokens: of an answer.
        share: of the tune half that examples are taken from; "scope" has parts of its own.
        search: numbers for `tune`.
        out: name of the result.
    """

    what: str
    fields: str
    metric: Callable[..., float]
    baseline: str
    instructions: tuple[str, ...]
    most_tokens: int
    share: float
    search: dict[str, int]
    out: str


SCOPES = {"ecg": "this recording", "knowledge": "ECGs in general", "outside": "something else"}
OF_EACH = {"train": 30, "validation": 30, "test": 42}  # questions of each scope: as many as the rarest has in the test
TASKS = {
    "scope": Task(
        "whether a question to the chat is about the recording, ECGs in general, or something else, said by a small "
        "language model",
        "question -> answer",
        names_the_finding,
        "Say what the question is about. Answer with one of: this recording, ECGs in general, something else.",
        (
            "A patient's electrocardiogram lies on the table. Sort the question: this recording (what can be read from "
            "this patient's ECG), ECGs in general (textbook knowledge), or something else (not about ECGs).",
        ),
        8,
        0.0,
        {"candidates": 8, "examples": 3, "labeled": 9},
        "prompt_tuning.json",
    ),
    "findings": Task(
        "which of the findings that retrieval offers a question is about, named by a small language model",
        "question, findings -> answer",
        names_the_finding,
        "Say which of the findings the question is about. Answer with the name of one finding alone.",
        ("Copy the one line of the findings that belongs to the question. Write nothing else.",),
        16,
        0.6,
        {"candidates": 2, "examples": 4, "labeled": 6},
        "prompt_tuning_findings.json",
    ),
    "answers": Task(
        "answers of a small language model from retrieved lines",
        "passages, question -> answer",
        states_the_facts,
        "Answer the question from the passages.",
        ("Copy the part of the passages that answers the question, with its numbers and units. Write nothing else.",),
        32,
        0.58,
        {"candidates": 2, "examples": 3},
        "prompt_tuning_answers.json",
    ),
}


class Kept:
    """A writer that keeps its greedy answers in a file, one JSON line each, with the CPU seconds they took.

    Attributes:
        seconds: what the answers took that were handed out so far, also those of an earlier run.
    """

    def __init__(self, writer: LocalWriter, path: Path) -> None:
        self.writer, self.path, self.seconds = writer, path, 0.0
        self.answers: dict[str, dict[str, Any]] = {row["asked"]: row for row in read_journal(path)}

    def __call__(self, messages: Messages, temperature: float, max_tokens: int) -> Written:
        """Return the kept answer, or let the writer write."""
        key = digest_of(messages, max_tokens)
        if temperature > 0 or key not in self.answers:
            began = time.process_time()
            done = self.writer(messages, temperature, max_tokens)
            row = {"asked": key, **asdict(done), "seconds": round(time.process_time() - began, 3)}
            if temperature > 0:
                self.seconds += row["seconds"]
                return done
            self.answers[key] = row
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        row = self.answers[key]
        self.seconds += row["seconds"]
        return Written(row["text"], row["read"], row["reused"], row["written"])


class KeptLM(LocalLM):
    """A `LocalLM` over a `Kept` writer."""

    def expect(self, contents: Sequence[str]) -> None:
        """Tell the writer below."""
        self.writer.writer.expect(contents)


def write_json(path: Path, content: Any) -> None:
    """Write a file under another name, then rename it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def scope_examples(split: str) -> tuple[list[Any], int]:
    """Return `OF_EACH` questions of each scope out of one split of the chat's collection, mixed, and its size."""
    asked = [one for one in read_questions() if one.kind in SCOPES and one.split == split and not one.after]
    draw, made = random.Random(SEED), []
    for kind, answer in SCOPES.items():
        texts = sorted(one.text for one in asked if one.kind == kind)
        for text in draw.sample(texts, min(OF_EACH[split], len(texts))):
            row = {"question": text, "answer": answer, "findings": "\n".join(SCOPES.values()), "right": [answer]}
            made.append(dspy.Example(row | {"id": text}).with_inputs("question"))
    draw.shuffle(made)
    return made, len(asked)


def parts_for(task: Task, name: str, work: Path) -> tuple[list[Any], list[Any], list[Any], dict[str, Any]]:
    """Return the questions that examples come from, those that score candidates, those to test on, and their counts."""
    if name == "scope":
        found = {split: scope_examples(split) for split in OF_EACH}
        counts = {split: {"used": len(used), "all": everything} for split, (used, everything) in found.items()}
        return found["train"][0], found["validation"][0], found["test"][0], counts
    tuning, tune_all = examples_of(name, "tune", work)
    testing, test_all = examples_of(name, "test", work)
    order = random.Random(SEED).sample(tuning, len(tuning))
    cut = round(task.share * len(order))
    counts = {"tune": {"used": len(tuning), "all": tune_all}, "test": {"used": len(testing), "all": test_all}}
    return order[:cut], order[cut:], testing, counts


def examples_of(name: str, split: str, work: Path) -> tuple[list[Any], int]:
    """Return the split's questions that the task can use, and how many it has in all."""
    path = work / f"{split}.json"
    if not path.is_file():
        questions = load_questions(split=split)
        if name == "findings":
            found = finding_examples(questions, load_retriever(), top=TOP)
        else:
            found = knowledge_examples(questions, load_retriever(), top=TOP, lines=LINES)
        write_json(path, {"all": len(questions), "usable": [one.toDict() for one in found if one.answer]})
    content = json.loads(path.read_text(encoding="utf-8"))
    inputs = ("findings" if name == "findings" else "passages", "question")
    return [dspy.Example(row).with_inputs(*inputs) for row in content["usable"]], content["all"]


def tuned_program(task: Task, lm: KeptLM, train: list[Any], validation: list[Any], work: Path) -> Tuned:
    """Return the tuned program, from the working folder if it is there."""
    path = work / "tuned.json"
    if not path.is_file():
        found = tune(
            make_program(task.baseline, task.fields),
            train,
            validation,
            task.metric,
            lm,
            instructions=task.instructions,
            seed=SEED,
            **task.search,
        )
        del found.about["seconds"]  # of this run alone, on however busy a machine
        found.about["cpu_seconds"] = round(lm.writer.seconds, 1)
        save_tuned(found, path)
    return load_tuned(path)


def tested(task: Task, program: Any, questions: list[Any], lm: KeptLM) -> dict[str, Any]:
    """Return a program's answers to the test questions, what they are worth, and what they cost."""
    before = Cost(**asdict(lm.cost))
    rows = evaluate(program, questions, task.metric, lm)
    groups = [group_of().get(question.id, question.id) for question, *_ in rows]
    right = [score for *_, score in rows]
    shown = [(answer, question.passages) for question, answer, _ in rows if "passages" in question]
    support = [faithfulness(answer, [passages]) for answer, passages in shown]
    return {
        "right": right,
        "support": support,
        "groups": groups,
        "correct": mean_interval(right, groups=groups, seed=SEED).as_dict(),
        **({"faithfulness": mean_interval(support, groups=groups, seed=SEED).as_dict()} if support else {}),
        "words_per_answer": round(sum(len(answer.split()) for _, answer, _ in rows) / len(rows), 1),
        "cost": asdict(lm.cost.since(before)),
        "answers": {question.id: answer for question, answer, _ in rows},
    }


@cache
def group_of() -> dict[str, str]:
    """Return id → group of the base's questions: those of one group are about the same entries, and drawn together."""
    return {question.id: question.group for question in load_questions()}


def difference(before: list[float], after: list[float], groups: list[str]) -> dict[str, float]:
    """Return the mean paired difference with its interval; pairs with NaN are left out."""
    return mean_interval([b - a for a, b in zip(before, after, strict=True)], groups=groups, seed=SEED).as_dict()


def compared(task: Task, tuned: Tuned, questions: list[Any], lm: KeptLM) -> dict[str, Any]:
    """Return baseline and tuned program on the same test questions, and their paired differences."""
    sides = {
        "baseline": tested(task, make_program(task.baseline, task.fields), questions, lm),
        "tuned": tested(task, tuned.program, questions, lm),
    }
    gained = {
        name: difference(sides["baseline"][key], sides["tuned"][key], sides["tuned"]["groups"])
        for name, key in (("correct", "right"), ("faithfulness", "support"))
        if sides["baseline"][key]
    }
    ids = [question.id for question in questions]
    only = {
        name: [one for one, a, b in zip(ids, sides[name]["right"], sides[other]["right"], strict=True) if a > b]
        for name, other in (("baseline", "tuned"), ("tuned", "baseline"))
    }
    for side in sides.values():
        del side["right"], side["support"], side["groups"]
    return {**sides, "difference": gained, "right_only_with": only, "mcnemar_p": mcnemar(*map(len, only.values()))}


def mcnemar(one: int, other: int) -> float:
    """Return the exact two-sided p value that so uneven a split of one + other questions is chance.

    Source: McNemar 1947, Note on the sampling error of the difference between correlated proportions.
    """
    both = one + other
    tail = sum(math.comb(both, k) for k in range(min(one, other) + 1)) / 2**both
    return float(f"{min(1.0, 2 * tail):.2g}")


def chance(testing: list[Any]) -> float:
    """Return how often one of the offered findings, drawn at random, is a right one."""
    shares = [len(one.right) / len(one.findings.splitlines()) for one in testing]
    return round(sum(shares) / len(shares), 4)


def by_retrieval(testing: list[Any]) -> dict[str, Any]:
    """Return how often what retrieval ranks first is right: no language model is needed for that."""
    right = [float(one.first in one.right) for one in testing]
    return {"correct": mean_interval(right, groups=[group_of()[one.id] for one in testing], seed=SEED).as_dict()}


def by_rules(testing: list[Any]) -> dict[str, Any]:
    """Return how often the chat's own way to tell (rules and a regression on MiniLM's embeddings) is right."""
    found = scopes_of([one.question for one in testing])
    right = [float(SCOPES.get(scope.kind) == one.answer) for scope, one in zip(found, testing, strict=True)]
    return {"correct": mean_interval(right, seed=SEED).as_dict()}


def stamp(loaded: LanguageModel, load: list[float]) -> dict[str, Any]:
    """Return what made the result."""
    return {
        "commit": git_commit(project_root()),
        "library_sha256": library_hash(),
        "knowledge_sha256": knowledge_hash(),
        "device": device(),
        "load_average_before_and_after": load,
        "model": {"name": MODEL, "sha256": loaded.sha256, "dtype": "float32"},
        "versions": {"dspy": dspy.__version__}
        | {name: version for name, version in versions().items() if name in ("python", "torch", "transformers")},
    }


def main() -> int:
    """Run everything and write the result; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--task", choices=list(TASKS), default="scope")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", type=Path)
    given = parser.parse_args()
    task = TASKS[given.task]
    out = given.out or data_folder() / "results" / task.out
    torch.set_num_threads(1)
    load = [round(os.getloadavg()[0], 1)]
    loaded = load_language_model(quantized=False)
    work = keyed_folder(
        (given.work or output_folder() / "prompt_tuning") / given.task,
        model=loaded.sha256,
        knowledge=knowledge_hash(),
        task=asdict(task) | {"metric": task.metric.__name__},
        retrieval=SETTINGS,
        shown=[TOP, LINES],
        seed=SEED,
    )
    train, validation, testing, counts = parts_for(task, given.task, work)
    kept = Kept(LocalWriter(loaded.model, loaded.tokenizer, together=12), work / "answers.jsonl")
    lm = KeptLM(kept, MODEL, max_tokens=task.most_tokens)
    tuned = tuned_program(task, lm, train, validation, work)
    before = kept.seconds
    results = compared(task, tuned, testing, lm)
    if given.task != "answers":
        results["chance"] = chance(testing)
    if given.task == "findings":
        results["first_of_retrieval"] = by_retrieval(testing)
    if given.task == "scope":
        results["without_a_language_model"] = by_rules(testing)
    shown = {"scope": {}, "findings": {"entries": TOP}, "answers": {"entries": TOP, "lines": LINES}}[given.task]
    content = {
        "what": task.what + ", before and after prompt tuning",
        "task": given.task,
        "questions": counts,
        "settings": {**shown, "most_tokens": task.most_tokens, "temperature": 0, "seed": SEED, **task.search},
        "tuning": {
            **tuned.about,
            "score_on_validation": tuned.score,
            "trials": [asdict(trial) for trial in tuned.trials],
            "baseline_instruction": task.baseline,
            "instruction": tuned.program.signature.instructions,
            "examples": len(tuned.program.demos),
            "shown": [{name: str(value) for name, value in dict(demo).items()} for demo in tuned.program.demos],
        },
        "test": {**results, "cpu_seconds": round(kept.seconds - before, 1)},
        "stamp": stamp(loaded, [*load, round(os.getloadavg()[0], 1)]),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, content)
    print(json.dumps({name: value for name, value in content.items() if name != "stamp"}, indent=1)[:6000])
    return 0


if __name__ == "__main__":
    sys.exit(main())
