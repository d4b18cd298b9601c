"""What each part of the prompt is worth: choose how its lines are written, then leave out each part in turn.

    ECGCHAT_REAL_DATA=<folder> python benchmarks/grounding.py --work FOLDER [--part PART ...]

On one half of PTB-XL's fold 9 (its patients choose) the wordings, the default set and the margins of the answer check
are chosen; on the other half they are reported. Each condition has a journal in the work folder, so that a run that was
killed goes on where it was. Intervals: 95 %, from resampled patients.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from quality import ALL as ALL_SWAPS
from quality import NO_ECG, no_ecg, share, spoiled, swapped, white
from real_records import Real, ptbxl, real_folder

from ecgchat_lib.chat.checking import MARGINS, Contradiction, Margins, contradictions
from ecgchat_lib.chat.checkpoint import load_chat_model, write_text
from ecgchat_lib.chat.evaluation import RATE_TOLERANCE, Outcome, reduce_answer, summarize
from ecgchat_lib.chat.grounding import (
    LABELS,
    LABELS_FORM,
    LONGEST_KNOWN,
    MOST_KNOWN,
    NEIGHBOURS,
    NEIGHBOURS_FORM,
    SIGNS,
    knowledge_lines,
)
from ecgchat_lib.chat.mini_data import Material, RecipeConfig, read_material, turns_of
from ecgchat_lib.chat.mini_recipe import open_encoder
from ecgchat_lib.chat.model import EcgChat
from ecgchat_lib.chat.neighbours import Neighbour, Neighbours, load_neighbours, neighbours_of
from ecgchat_lib.chat.session import why_not
from ecgchat_lib.chat.template import ECG_ID, opening, plain_text, prompt_ids
from ecgchat_lib.coca.model import EcgCoca
from ecgchat_lib.course.provenance import device, git_commit, library_hash, versions
from ecgchat_lib.ecg.measure import Measurements
from ecgchat_lib.ecg.quality import judge
from ecgchat_lib.ecg.recording import Patient, Recording
from ecgchat_lib.evaluate.classifier import DiagnosisClassifier, Reading, load_classifier
from ecgchat_lib.evaluate.mini_recipe import split_fold_nine
from ecgchat_lib.instruct.build import Turn, finding_weights
from ecgchat_lib.instruct.dialogue import TOLD
from ecgchat_lib.instruct.facts import numbers
from ecgchat_lib.instruct.findings import FINDINGS as FINDINGS_ALL
from ecgchat_lib.instruct.findings import get_finding, presence, rhythm_class
from ecgchat_lib.instruct.wording import ANSWERS, measured_line
from ecgchat_lib.paths import data_folder, project_root

SEED = 7  # of fold 9's halves (encoder, classifier and chat mini have the same), of the questions and the bootstrap
OPEN = {"rhythm": 20, "rate": 14, "diagnosis": 30}  # questions whose answers are generated: most tokens
CHOOSE_FROM = 48  # recordings of the choosing half that choose between wordings


@dataclass(frozen=True)
class Condition:
    """What the prompt carries.

    Attributes:
        tokens: the ECG tokens.
        measurements: the measured line.
        labels: "" for none, "reader", or one of `grounding.LABELS`.
        neighbours: "" for none, or "index: form" with "synthetic" or "real", and one of `grounding.NEIGHBOURS`.
        knowledge: "" for none, "after" the other lines, or "before" the ECG; with how many entries and characters.
    """

    tokens: bool = True
    measurements: bool = True
    labels: str = ""
    neighbours: str = ""
    knowledge: str = ""


class Bench:
    """Everything that is read once."""

    def __init__(self, real: Path, work: Path) -> None:
        self.real, self.work = real, work
        self.encoder: EcgCoca
        self.encoder, origin = open_encoder()
        self._encoder_sha256 = origin["sha256"]
        self.material: Material = read_material(real, self.encoder, RecipeConfig(), origin["sha256"], work / "material")
        choosing, reporting = split_fold_nine(self.material.manifest, SEED)
        self.halves = {"choosing": choosing.tolist(), "reporting": reporting.tolist()}
        self.classifier: DiagnosisClassifier = load_classifier(model=self.encoder)

    @cached_property
    def chat(self) -> EcgChat:
        """The chat mini."""
        folder = data_folder() / "weights" / "ecg-chat-mini"
        return load_chat_model(folder, encoder_sha256=self._encoder_sha256)[0].eval()

    @cached_property
    def turns(self) -> dict[int, list[Turn]]:
        """The questions about each recording of fold 9, with their right answers."""
        out = {}
        for rows in self.halves.values():
            weights = finding_weights(self.material.manifest.iloc[rows])
            out |= {row: turns_of(self.material, row, weights, seed=SEED) for row in rows}
        return out

    @cached_property
    def cls(self) -> torch.Tensor:
        """CLS of every recording after the last norm, (n, width)."""
        with torch.no_grad():
            return self.encoder.encoder.ln_post(self.material.tokens[:, 0])

    @cached_property
    def readings(self) -> dict[int, Reading]:
        """What the classifier says of each recording of fold 9."""
        rows = [row for half in self.halves.values() for row in half]
        return dict(zip(rows, self.classifier.read_features(self.cls[rows].numpy()), strict=True))

    @cached_property
    def patients(self) -> dict[int, Patient]:
        """Return sex and age of fold 9's patients, for the limits; 300 years stand for "above 89" in PTB-XL."""
        table = pd.read_csv(self.real / "ptbxl" / "ptbxl_database.csv.gz", usecols=["ecg_id", "age", "sex"])
        told = {
            f"{int(one.ecg_id):05d}": Patient(
                None if pd.isna(one.age) else min(float(one.age), 90.0), {0: "male", 1: "female"}.get(one.sex)
            )
            for one in table.itertuples()
        }
        records = self.material.manifest["record"]
        return {row: told.get(records.iloc[row], Patient()) for half in self.halves.values() for row in half}

    @cached_property
    def signs(self) -> dict[int, str]:
        """The reader's line of each recording of fold 9."""
        rows = [row for half in self.halves.values() for row in half]
        measured = [self.material.measured(row) for row in rows]
        return dict(zip(rows, self.chat.reader.read(self.material.tokens[rows], measured), strict=True))

    @cached_property
    def indices(self) -> dict[str, Neighbours]:
        """The shipped index, and one of the real training recordings."""
        manifest = self.material.manifest
        real = [r for r in self.material.rows("train") if not manifest["record"].iloc[r].startswith("synthetic-")]
        vectors = (self.cls[real] @ self.encoder.encoder.proj).detach().numpy()
        names = manifest["record"].iloc[real].tolist()
        return {
            "synthetic": load_neighbours(model=self.encoder),
            "real": neighbours_of(names, manifest["report"].iloc[real].tolist(), vectors, names),
        }

    def near(self, row: int, index: str, top: int = 8) -> list[Neighbour]:
        """Return the nearest recordings of an index."""
        vector = (self.cls[row] @ self.encoder.encoder.proj).detach().numpy()
        return self.indices[index].nearest(vector, top)

    @cached_property
    def retriever(self) -> Any:
        """The knowledge base."""
        from ecgchat_lib.knowledge.retrieve import load_retriever

        return load_retriever()

    def known(self, question: str, how: str) -> list[str]:
        """Return the lines of knowledge for a question; `how` is "place: entries x characters"."""
        if not how:
            return []
        most, limit = (int(part) for part in how.split(": ")[1].split("x"))
        lines = knowledge_lines(self.retriever.search(question, most), most, limit)
        return [plain_text(line, self.chat.tokenizer, self.chat.template) for line in lines]

    def lines(self, row: int, given: Condition) -> list[str]:
        """Return the lines about a recording."""
        out = [measured_line(self.material.measured(row))] if given.measurements else []
        if given.labels == "reader":
            out.append(self.signs[row])
        elif given.labels:
            out.append(LABELS[given.labels](self.readings[row]))
        if given.neighbours:
            index, form = given.neighbours.split(": ")
            out += NEIGHBOURS[form](self.near(row, index))
        return [plain_text(line, self.chat.tokenizer, self.chat.template) for line in out]

    def before(self, row: int, given: Condition, question: str) -> str:
        """Return what stands before a question."""
        known = self.known(question, given.knowledge)
        about = self.lines(row, given)
        if given.knowledge.startswith("before"):
            return opening(known, ecg=False) + opening(about, ecg=given.tokens)
        return opening([*about, *known], ecg=given.tokens)


class TokenTree:
    """Token sequences that begin alike, read together: what they share is computed once, and each sees its own only.

    Args:
        chat: the model.
        sequences: of token ids, `ECG_ID` for the ECG.
        ecg: (1, ecg tokens, hidden), projected, or (0, ...).
    """

    def __init__(self, chat: EcgChat, sequences: Sequence[Sequence[int]], ecg: torch.Tensor) -> None:
        self.chat = chat
        parents: list[int] = []
        vectors: list[torch.Tensor] = []
        known: dict[tuple[int, int], int] = {}
        words = chat.language_model.get_input_embeddings()
        self.leaves = []
        for ids in sequences:
            at = -1
            for token in ids:
                if (at, token) not in known:
                    places = ecg[0] if token == ECG_ID else words(torch.tensor([token]))
                    above = at
                    for vector in places:
                        parents.append(above)
                        vectors.append(vector)
                        above = len(parents) - 1
                    known[at, token] = above
                at = known[at, token]
            self.leaves.append(at)
        self.seen = torch.zeros(len(parents), len(parents), dtype=torch.bool)
        self.depth = torch.zeros(len(parents), dtype=torch.long)
        for place, parent in enumerate(parents):
            if parent >= 0:
                self.seen[place] = self.seen[parent]
                self.depth[place] = self.depth[parent] + 1
            self.seen[place, place] = True
        self.vectors = torch.stack(vectors)

    @torch.no_grad()
    def answers(self, most: Sequence[int]) -> list[list[int]]:
        """Return the greedy continuation of each sequence, at most so many tokens of it, without the end mark."""
        from transformers import DynamicCache

        model = self.chat.language_model
        model = model.get_base_model() if hasattr(model, "get_base_model") else model
        cache = DynamicCache(config=model.config)
        states = model.model(
            inputs_embeds=self.vectors[None],
            attention_mask=self.seen[None, None],
            position_ids=self.depth[None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[0]
        rows = [self.seen[leaf] for leaf in self.leaves]
        depth = [int(self.depth[leaf]) for leaf in self.leaves]
        tokens = model.lm_head(states[self.leaves]).argmax(-1).tolist()
        made: list[list[int]] = [[] for _ in rows]
        open_ones = list(range(len(rows)))
        while True:
            kept = []
            for k, token in zip(open_ones, tokens, strict=True):
                if token != self.chat.end_id:
                    made[k].append(token)
                    if len(made[k]) < most[k]:
                        kept.append(k)
            open_ones = kept
            if not open_ones:
                return made
            length, count = len(rows[open_ones[0]]), len(open_ones)
            for k in range(len(rows)):
                rows[k] = torch.cat([rows[k], torch.zeros(count, dtype=torch.bool)])
            for place, k in enumerate(open_ones):
                rows[k][length + place] = True
                depth[k] += 1
            words = model.get_input_embeddings()(torch.tensor([made[k][-1] for k in open_ones]))
            states = model.model(
                inputs_embeds=words[None],
                attention_mask=torch.stack([rows[k] for k in open_ones])[None, None],
                position_ids=torch.tensor([depth[k] for k in open_ones])[None],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[0]
            tokens = model.lm_head(states).argmax(-1).tolist()


def read_journal(path: Path, given: Condition, kinds: Collection[str]) -> tuple[str, dict[int, dict[str, Any]]]:
    """Return the head that a condition's journal has, and the recordings of a journal with that head."""
    head = json.dumps({"given": vars(given), "asked": sorted(kinds), "most": OPEN})
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    done: dict[int, dict[str, Any]] = {}
    for line in lines[1:] if lines and lines[0] == head else []:
        try:
            done |= {row["row"]: row for row in [json.loads(line)]}
        except ValueError:
            break  # the last line of a run that was killed
    return head, done


class Journal:
    """What was answered under one condition, a line for each recording."""

    def __init__(self, path: Path, given: Condition, kinds: Collection[str]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        head, self.done = read_journal(path, given, kinds)
        write_text(path, "\n".join([head, *(json.dumps(row) for row in self.done.values())]) + "\n")

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a recording's answers."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.done[row["row"]] = dict(row)


def ask(
    bench: Bench, half: str, rows: Sequence[int], conditions: Mapping[str, Condition], kinds: Collection[str]
) -> dict[str, dict[int, Any]]:
    """Ask about recordings what is known of them, under all conditions at once; go on with what the journals hold.

    Returns:
        Condition → row → {"presence": [first words], "rhythm": text, "rate": text, "diagnosis": text}.
    """
    folder = bench.work / "answers" / half
    journals = {name: Journal(folder / f"{name}.jsonl", given, kinds) for name, given in conditions.items()}
    started = time.perf_counter()
    left = [row for row in rows if any(row not in journal.done for journal in journals.values())]
    for number, row in enumerate(left, start=1):
        missing = {name: conditions[name] for name, journal in journals.items() if row not in journal.done}
        for name, said in _ask_one(bench, row, missing, kinds).items():
            journals[name].add(said)
        print(f"{half} {number}/{len(left)}, {time.perf_counter() - started:.0f} s", flush=True)
    return {name: {row: journal.done[row] for row in rows} for name, journal in journals.items()}


def _ask_one(
    bench: Bench, row: int, conditions: Mapping[str, Condition], kinds: Collection[str]
) -> dict[str, dict[str, Any]]:
    chat = bench.chat
    out = {name: {"row": row, "presence": []} for name in conditions}
    turns = [turn for turn in bench.turns[row] if turn.kind in kinds]
    asked = [(name, turn) for name in conditions for turn in turns]
    sequences = [
        prompt_ids(
            [(bench.before(row, conditions[name], turn.question) + turn.question, None)], chat.tokenizer, chat.template
        )
        for name, turn in asked
    ]
    with torch.no_grad():
        ecg = chat.project(bench.material.tokens[row][None])
    tree = TokenTree(chat, sequences, ecg)
    answers = tree.answers([1 if turn.kind == "presence" else OPEN[turn.kind] for _, turn in asked])
    for (name, turn), ids in zip(asked, answers, strict=True):
        text = chat.said(ids)
        if turn.kind == "presence":
            out[name]["presence"].append({"Yes": True, "No": False}.get(text))
        else:
            out[name][turn.kind] = text
    return out


def outcomes(bench: Bench, said: Mapping[int, Mapping[str, Any]]) -> list[Outcome]:
    """Return what was said as outcomes, for `chat.evaluation.summarize`."""
    out = []
    for row, item in said.items():
        patient = str(bench.material.manifest["patient"].iloc[row])
        yes_no = [turn for turn in bench.turns[row] if turn.kind == "presence"]
        if item["presence"]:
            out += [Outcome(t, word, patient) for t, word in zip(yes_no, item["presence"], strict=True)]
        for turn in bench.turns[row]:
            if turn.kind in ("rhythm", "rate") and turn.kind in item:
                out.append(Outcome(turn, reduce_answer(turn, item[turn.kind]), patient))
    return out


def short(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the few figures that a choice is made by."""
    out: dict[str, Any] = {}
    if "presence" in found:
        out["balanced_accuracy"] = found["presence"]["balanced_accuracy"]
        out["interval_95"] = found["presence"]["interval_95"]
        out["mean_over_findings"] = found["presence"]["mean_over_these_findings"]
    if "rhythm" in found:
        out["rhythm_mean_recall"] = found["rhythm"]["mean_recall"]
        out["rhythm_accuracy"] = found["rhythm"]["accuracy"]
    if "rate" in found:
        out["rate_within_5"] = found["rate"]["within_5_per_minute"]
    return out


TODAY = Condition(labels=LABELS_FORM)
SHIPPED_KNOWLEDGE = f"{MOST_KNOWN}x{LONGEST_KNOWN}"
CHOICES: dict[str, Condition] = {
    "labels reader": replace(TODAY, labels="reader"),
    **{f"labels {form}": replace(TODAY, labels=form) for form in LABELS},
    **{f"neighbours synthetic {form}": replace(TODAY, neighbours=f"synthetic: {form}") for form in NEIGHBOURS},
    "neighbours real findings 3": replace(TODAY, neighbours="real: findings 3"),
    f"knowledge after {SHIPPED_KNOWLEDGE}": replace(TODAY, knowledge=f"after: {SHIPPED_KNOWLEDGE}"),
    f"knowledge before {SHIPPED_KNOWLEDGE}": replace(TODAY, knowledge=f"before: {SHIPPED_KNOWLEDGE}"),
}


def choose(bench: Bench, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the figures of each way to write a line, on recordings of the choosing half."""
    rows = np.random.default_rng(SEED).permutation(bench.halves["choosing"])[:CHOOSE_FROM].tolist()
    conditions = {name: given for name, given in CHOICES.items() if not names or name in names}
    said = ask(bench, "choosing", rows, conditions, ("presence",))
    found = {name: short(summarize(outcomes(bench, items), seed=SEED)) for name, items in said.items()}
    for name, figures in found.items():
        print(name, json.dumps(figures), flush=True)
    return found


NOTHING = Condition(tokens=False, measurements=False)
NEAR, KNOWN = f"synthetic: {NEIGHBOURS_FORM}", f"after: {SHIPPED_KNOWLEDGE}"
ALL = Condition(labels=LABELS_FORM, neighbours=NEAR, knowledge=KNOWN)
CORE: dict[str, Condition] = {
    "none": NOTHING,
    "tokens": replace(NOTHING, tokens=True),
    "labels": replace(NOTHING, labels=LABELS_FORM),
    "labels, the classifier's": replace(NOTHING, labels="prompt"),
    "measurements": replace(NOTHING, measurements=True),
    "neighbours": replace(NOTHING, neighbours=NEAR),
    "neighbours, real": replace(NOTHING, neighbours=NEAR.replace("synthetic", "real")),
    "tokens+labels+measurements": TODAY,
    "tokens+the classifier's labels+measurements": replace(TODAY, labels="prompt"),
    "all but knowledge": replace(ALL, knowledge=""),
}
WITH_KNOWLEDGE: dict[str, Condition] = {
    "knowledge": replace(NOTHING, knowledge=KNOWN),
    "all": ALL,
    "all but tokens": replace(ALL, tokens=False),
    "all but labels": replace(ALL, labels=""),
    "all but measurements": replace(ALL, measurements=False),
    "all but neighbours": replace(ALL, neighbours=""),
}
ASKED = ("presence", "rhythm", "rate")


def ablate(bench: Bench, conditions: Mapping[str, Condition]) -> None:
    """Ask the reporting half under each condition."""
    rows = np.random.default_rng(SEED).permutation(bench.halves["reporting"]).tolist()
    ask(bench, "reporting", rows, conditions, ASKED)


# --- the check of answers


# What is said of a finding: every template that the chat was trained with, and paraphrases that it wasn't.
AFFIRMED = (
    *(
        *ANSWERS["present"],
        *ANSWERS["diagnosis"],
        *ANSWERS["rhythm without rate"],
        *TOLD["report"],
        *TOLD["tag present"],
    ),
    *("There is {it}.", "I find {it} in this recording.", "The tracing is consistent with {it}.", "{it}."),
    "This looks like {it} to me.",
)
DENIED = (
    *(*ANSWERS["absent"], *TOLD["tag absent"]),
    *(
        "There is no {it}.",
        "I can't find {it}.",
        "This ECG is without {it}.",
        "{it} is absent.",
        "{it} isn't seen here.",
    ),
    *("I don’t think that this is {it}.", "{it} can be ruled out."),
)


def statements_about(bench: Bench, row: int) -> list[tuple[str, bool, bool]]:
    """Return sentences on a recording's findings: (text, whether it is right, whether it affirms).

    Each finding is affirmed and denied once, in forms that take turns over recordings and findings, and each absent one
    is told apart from a present one. Findings that the recording's statements leave open are left out. A denied rhythm
    stands for itself; an affirmed one too.
    """
    said = bench.material.manifest["statements"].iloc[row]
    known = [(f, there) for f in FINDINGS_ALL if (there := presence(f, said)) is not None]
    present = [finding.phrase for finding, there in known if there]
    out = []
    for number, (finding, there) in enumerate(known, start=row):
        affirmed, denied = (forms[number % len(forms)] for forms in (AFFIRMED, DENIED))
        out.append((affirmed.format(it=finding.phrase), there, True))
        out.append((denied.format(it=finding.phrase), not there, False))
        if present and not there:
            form = TOLD["either"][number % len(TOLD["either"])]
            out.append((form.format(one=present[0], other=finding.phrase), True, False))
            out.append((form.format(one=finding.phrase, other=present[0]), False, True))
    return out


def spans(found: Sequence[Contradiction]) -> int:
    """Return how many places of an answer are marked; what several witnesses contradict counts once."""
    number, stop = 0, -1
    for item in sorted(found, key=lambda one: one.start):
        number += item.start >= stop
        stop = max(stop, item.stop)
    return number


def marks(bench: Bench, half: str, margins: Margins, *, measured: bool) -> dict[str, Any]:
    """Return how often right and wrong sentences about findings are marked.

    Args:
        bench: the recordings.
        half: "choosing" or "reporting".
        margins: of the check.
        measured: also count what the measurements contradict.
    """
    counts: dict[tuple[str, bool], list[bool]] = defaultdict(list)
    for row in bench.halves[half]:
        measurements = bench.material.measured(row) if measured else Measurements()
        patient = bench.patients[row]
        for text, right, affirmed in statements_about(bench, row):
            found = contradictions(
                text, measurements, bench.readings[row], sex=patient.sex, age=patient.age, margins=margins
            )
            counts["affirmed" if affirmed else "denied", right].append(bool(found))
    return mark_figures(counts)


def mark_figures(counts: Mapping[tuple[str, bool], Sequence[bool]]) -> dict[str, Any]:
    """Return precision (how much of what is marked is wrong) and recall (how much of what is wrong is marked)."""
    out: dict[str, Any] = {}
    for kinds in (("affirmed",), ("denied",), ("affirmed", "denied")):
        wrong = [flag for kind in kinds for flag in counts.get((kind, False), [])]
        right = [flag for kind in kinds for flag in counts.get((kind, True), [])]
        marked = sum(wrong) + sum(right)
        out["all" if len(kinds) > 1 else kinds[0]] = {
            "wrong": len(wrong),
            "wrong_marked": sum(wrong),
            "right": len(right),
            "right_marked": sum(right),
            "precision": round(sum(wrong) / marked, 4) if marked else None,
            "recall": round(sum(wrong) / len(wrong), 4) if wrong else None,
        }
    return out


def lines_alone(bench: Bench, half: str) -> dict[str, Any]:
    """Return how good the lines themselves are: yes/no questions answered by whether a line has the finding's name.

    The classifier's thresholds were set on the choosing half, so that its figures there are too good.
    """
    out = {}
    for name, line_of in {"reader": bench.signs.get, "signs": lambda row: LABELS["signs"](bench.readings[row])}.items():
        found = []
        for row in bench.halves[half]:
            signs = str(line_of(row)).removeprefix(SIGNS).split(", ")
            patient = str(bench.material.manifest["patient"].iloc[row])
            for turn in bench.turns[row]:
                if turn.kind == "presence":
                    found.append(Outcome(turn, get_finding(turn.about).phrase in signs, patient))
        out[name] = short(summarize(found, seed=SEED))
    return out


def margins_table(bench: Bench) -> dict[str, Any]:
    """Return the figures of several margins on the choosing half, each kind of margin on its own."""
    out: dict[str, Any] = {}
    off = Margins(absent=0.0, present=9.0, rhythm=9.0)
    for value in (1.0, 0.5, 0.25, 0.1, 0.05):
        out[f"absent {value}"] = marks(bench, "choosing", replace(off, absent=value), measured=False)["affirmed"]
    for value in (0.0, 0.1, 0.25, 0.5, 0.75):
        out[f"present {value}"] = marks(bench, "choosing", replace(off, present=value), measured=False)["denied"]
    for sure in (0.5, 0.8, 0.9):
        for other in (0.02, 0.05, 0.1):
            figures = marks(bench, "choosing", replace(off, rhythm=sure, other=other), measured=False)
            out[f"rhythm {sure} {other}"] = figures["affirmed"]
    return out


def answer_marks(bench: Bench, said: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Return how many marked places a model's answers have, and how often wrong and right ones are marked.

    Of a yes/no question only the answer's first word was made; it stands for the whole sentence in the model's words.
    """
    counts: dict[tuple[str, bool], list[bool]] = defaultdict(list)
    number = 0
    for row, item in said.items():
        measurements, reading, patient = bench.material.measured(row), bench.readings[row], bench.patients[row]
        for text, right, affirmed in _answers(bench, row, item):
            found = contradictions(text, measurements, reading, sex=patient.sex, age=patient.age)
            number += spans(found)
            counts["affirmed" if affirmed else "denied", right].append(bool(found))
    answers = sum(map(len, counts.values()))
    per_answer = round(number / answers, 4) if answers else None
    return {"answers": answers, "marked_places_per_answer": per_answer, **mark_figures(counts)}


def _answers(bench: Bench, row: int, item: Mapping[str, Any]) -> Iterator[tuple[str, bool, bool]]:
    """Yield (text, whether it is right, whether it affirms) of the answers about a recording whose truth is known."""
    yes_no = [turn for turn in bench.turns[row] if turn.kind == "presence"]
    for turn, word in zip(yes_no, item["presence"], strict=False):
        if word is not None:
            form = "Yes, this ECG shows {}." if word else "No, this ECG does not show {}."
            yield form.format(get_finding(turn.about).phrase), word is turn.truth, word
    rate = bench.material.measured(row).judged("heart_rate_bpm")
    for turn in bench.turns[row]:
        text = item.get(turn.kind, "")
        if turn.kind in ("rhythm", "rate") and text:
            said = [value for field, value in numbers(text) if field == "heart_rate_bpm"]
            right = not said or not np.isfinite(rate) or abs(said[0] - rate) <= RATE_TOLERANCE
            if turn.kind == "rhythm":
                right = right and reduce_answer(turn, text) == rhythm_class(str(turn.about))
            yield text, bool(right), True


# --- recordings that must not be answered about


def abstentions(bench: Bench, real: Path) -> dict[str, Any]:
    """Return how many of the reporting half's raw recordings are refused as they are, and answered about once spoiled.

    What spoils them is that of `benchmarks/quality.py`; exchanged electrodes are made by lead algebra.
    """
    names = set(bench.material.manifest["record"].iloc[bench.halves["reporting"]])
    records = [item for item in ptbxl(real) if f"{item.number:05d}" in names]
    rng = np.random.default_rng(SEED)
    plain = [why_not(judge(item.recording)) for item in records]
    out: dict[str, Any] = {"usable": {"refused": share([bool(why) for why in plain])}}
    for why in ("unusable", "few_leads", "reversed"):
        out["usable"][why] = share([one == why for one in plain])
    kept = [item for item, why in zip(records, plain, strict=True) if not why]
    changes: dict[str, Callable[[Real], Recording]] = {
        f"electrodes {swap} exchanged": partial(swapped, swap=swap) for swap in ALL_SWAPS
    }
    changes |= {f"{count} leads without signal": partial(_without, count=count, rng=rng) for count in (4, 6, 10)}
    changes |= {f"white noise of {mv} mV": partial(spoiled, change=white(mv), rng=rng) for mv in (0.3, 1.0)}
    for name, change in changes.items():
        reasons = [why_not(judge(change(item))) for item in kept]
        out[name] = {"answered": share([not why for why in reasons]), "reasons": dict(Counter(filter(None, reasons)))}
    signals = [no_ecg(kind, how, rng) for kind in NO_ECG for how in ("one", "three", "own") for _ in range(5)]
    reasons = [why_not(judge(signal)) for signal in signals]
    out["no ECG"] = {"answered": share([not why for why in reasons]), "reasons": dict(Counter(filter(None, reasons)))}
    return out


def _without(item: Real, count: int, rng: np.random.Generator) -> Recording:
    signal = item.recording.signal.copy()
    signal[rng.choice(12, count, replace=False)] = np.nan
    return replace(item.recording, signal=signal)


# --- the figures


def results(bench: Bench) -> dict[str, Any]:
    """Return all figures that the journals give so far; a condition that isn't finished says of how many recordings."""
    out: dict[str, Any] = {"ablation": {}, "choices": {}}
    for half, conditions in (("choosing", CHOICES), ("reporting", CORE | WITH_KNOWLEDGE)):
        for name, given in conditions.items():
            path = bench.work / "answers" / half / f"{name}.jsonl"
            said = read_journal(path, given, ("presence",) if half == "choosing" else ASKED)[1]
            if not said:
                continue
            figures = summarize(outcomes(bench, said), seed=SEED)
            if half == "choosing":
                out["choices"][name] = {"recordings": len(said), **short(figures)}
            else:
                checked = answer_marks(bench, said)
                out["ablation"][name] = {"recordings": len(said), "given": vars(given), **figures, "check": checked}
    out["lines_alone"] = {half: lines_alone(bench, half) for half in bench.halves}
    chosen = MARGINS
    out["check"] = {
        "margins": vars(chosen),
        "tried_on_the_choosing_half": margins_table(bench),
        "every_sentence_on_the_reporting_half": {
            "classifier": marks(bench, "reporting", chosen, measured=False),
            "classifier_and_measurements": marks(bench, "reporting", chosen, measured=True),
        },
    }
    return out


PARTS = ("choose", "core", "knowledge", "abstain", "write")
QUICK = ("lines", "margins")  # parts without the language model, for a look; "write" does them too


def main(arguments: Sequence[str] | None = None) -> None:
    """Do the parts that are asked for, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="where the material and the journals are kept")
    parser.add_argument("--out", type=Path, default=data_folder() / "results" / "grounding.json")
    parser.add_argument("--part", action="append", choices=(*PARTS, *QUICK))
    parser.add_argument("--only", action="append", help="this way to write a line alone")
    chosen = parser.parse_args(arguments)
    real = real_folder()
    bench = Bench(real, chosen.work)
    refused = chosen.work / "abstentions.json"
    for part in chosen.part or PARTS:
        if part == "choose":
            choose(bench, chosen.only)
        elif part == "core":
            ablate(bench, CORE)
        elif part == "knowledge":
            ablate(bench, WITH_KNOWLEDGE)
        elif part == "lines":
            print(json.dumps({half: lines_alone(bench, half) for half in bench.halves}), flush=True)
        elif part == "margins":
            print(json.dumps(margins_table(bench)), flush=True)
        elif part == "abstain":
            write_text(refused, json.dumps(abstentions(bench, real)))
        else:
            content = {"what": WHAT, "seed": SEED, **results(bench), "stamp": stamp()}
            if refused.is_file():
                content["abstention"] = json.loads(refused.read_text(encoding="utf-8"))
            write_text(chosen.out, json.dumps(content, indent=1) + "\n")


WHAT = (
    "ecg-chat-mini on PTB-XL 1.0.1, fold 9, by its halves of patients; greedy answers; intervals: 95 %, from resampled "
    "patients; the check's precision: share of marked sentences that are wrong, its recall: share of wrong ones marked"
)


def stamp() -> dict[str, Any]:
    """Return where the figures are from."""
    return {
        "commit": git_commit(project_root()),
        "library_sha256": library_hash(),
        "device": device(),
        "threads": torch.get_num_threads(),
        "versions": {k: v for k, v in versions().items() if k in ("python", "numpy", "torch", "transformers")},
    }


if __name__ == "__main__":
    main()
