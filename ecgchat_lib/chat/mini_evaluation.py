"""How well the mini chat model answers, beside its text-only twin, exchanged ECG tokens, and rules without a model.

Reported on the half of fold 9 on which nothing was chosen, and on ten recordings of another dataset. Taught in: 12 §6.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ecgchat_lib.chat.evaluation import RATE_TOLERANCE, Asked, Outcome, compare, evaluate_answers, summarize
from ecgchat_lib.chat.mini_data import Material, known_rates, presence_table, sample_material, turns_of
from ecgchat_lib.chat.model import EcgChat
from ecgchat_lib.chat.projector import Projector
from ecgchat_lib.chat.reader import SIGNS
from ecgchat_lib.chat.spelling import Spelling, presence_scores, spelled_rates
from ecgchat_lib.coca.model import EcgCoca
from ecgchat_lib.evaluate.mini_recipe import split_fold_nine
from ecgchat_lib.instruct.build import Turn, finding_weights
from ecgchat_lib.instruct.findings import FINDINGS, get_finding, presence, rhythm_class

CPSC_FINDINGS = ("afib", "av_block", "lbbb", "rbbb", "pac", "pvc", "st_depression")
MODES: Mapping[str, tuple[str, ...]] = {
    "tokens": ("tokens",),
    "all": ("tokens", "measurements", "labels"),
}
Outcomes = dict[str, dict[str, list[Outcome]]]  # set → mode → outcomes


def spelled_well(
    projector: Projector, embeddings: torch.Tensor, material: Material, spelling: Spelling, rows: list[int]
) -> dict[str, Any]:
    """Return how well a projector spells on recordings that it wasn't trained on.

    Args:
        projector: after `train_spelling`.
        embeddings: the language model's word embeddings.
        material: the recordings.
        spelling: the layout.
        rows: which recordings.

    Returns:
        The mean, over findings that at least 3 recordings have and 3 don't, of the area under the ROC curve and of the
        balanced accuracy at one half; and the share of heart rates within 5 per minute.
    """
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    scores = presence_scores(projector, embeddings, material.tokens[rows], spelling)
    truth = presence_table(material.manifest.iloc[rows])
    areas, shares = [], []
    for there, score in zip(truth.T, scores.T, strict=True):
        said = ~there.isnan()
        labels, values = there[said].numpy(), score[said].numpy()
        if min(labels.sum(), (1 - labels).sum()) >= 3:
            areas.append(roc_auc_score(labels, values))
            shares.append(balanced_accuracy_score(labels, values > 0.5))
    rates = known_rates(material)[rows]
    close = (spelled_rates(projector, embeddings, material.tokens[rows], spelling) - rates).abs() <= RATE_TOLERANCE
    return {
        "recordings": len(rows),
        "findings": len(areas),
        "mean_auc": round(float(np.mean(areas)), 4) if areas else None,
        "mean_balanced_accuracy": round(float(np.mean(shares)), 4) if shares else None,
        "rate_within_5_per_minute": round(float(close[rates.isfinite()].float().mean()), 4),
    }


@dataclass(frozen=True)
class TestSet:
    """Recordings to answer about.

    Attributes:
        material: where they are.
        rows: which ones.
        asked: the questions about each of them.
    """

    material: Material
    rows: Sequence[int]
    asked: Sequence[Sequence[Turn]]

    def items(self, grounding: Sequence[str], tokens: torch.Tensor | None = None) -> list[Asked]:
        """Return what is asked with some grounding; `tokens` (rows, ecg tokens, width) are the own ones if None."""
        given = self.material.tokens[list(self.rows)] if tokens is None else tokens
        patients = self.material.manifest["patient"].iloc[list(self.rows)]
        return [
            Asked(turns, self.material.lines(row, grounding), own, str(patient))
            for turns, row, own, patient in zip(self.asked, self.rows, given, patients, strict=True)
        ]

    def others(self) -> torch.Tensor:
        """Return the tokens of another recording of the set for each of them."""
        own = self.material.tokens[list(self.rows)]
        return own.roll(len(own) // 2, dims=0)


def mini_test_sets(material: Material, encoder: EcgCoca, reader: Any, seed: int) -> dict[str, TestSet]:
    """Return the reporting half of fold 9, and the ten real sample recordings with signs by the same reader."""
    samples = sample_material(encoder)
    measured = [samples.measured(row) for row in range(len(samples.manifest))]
    samples = replace(samples, signs=reader.read(samples.tokens, measured))
    sets = {}
    for name, source, rows in (
        ("fold9", material, split_fold_nine(material.manifest, seed)[1].tolist()),
        ("real_sample", samples, list(range(len(samples.manifest)))),
    ):
        weights = finding_weights(source.manifest.iloc[rows])
        asked = [turns_of(source, row, weights, seed=seed) for row in rows]
        if name == "real_sample":  # its nine labels say nothing about other findings
            asked = [[t for t in turns if t.kind != "presence" or t.about in CPSC_FINDINGS] for turns in asked]
        sets[name] = TestSet(source, rows, asked)
    return sets


def answers_of(chat: EcgChat, sets: Mapping[str, TestSet], *, exchanged: bool = False) -> Outcomes:
    """Ask a model everything, with the ECG tokens alone and with the words too.

    Args:
        chat: the model.
        sets: from `mini_test_sets`.
        exchanged: give it another recording's tokens (the words stay), and leave out what must be generated.
    """
    out: Outcomes = {}
    for name, tests in sets.items():
        for mode, grounding in MODES.items():
            items = tests.items(grounding, tests.others() if exchanged else None)
            out.setdefault(name, {})[mode] = evaluate_answers(chat, items, generate=not exchanged)
            print(name, mode, summarize(out[name][mode]).get("presence", {}).get("balanced_accuracy"), flush=True)
    return out


def template_answers(sets: Mapping[str, TestSet], material: Material) -> Outcomes:
    """Answer by rules alone: from the words in the prompt where there are any, else what is commonest in training."""
    train = material.rows("train")
    statements = material.manifest["statements"].iloc[train]
    usual: dict[str, bool | str | float] = {}
    for finding in FINDINGS:
        known = [there for said in statements if (there := presence(finding, said)) is not None]
        usual[finding.name] = bool(known) and float(np.mean(known)) > 0.5
    usual["rhythm"], usual["rate"] = "sinus", float(known_rates(material)[train].nanmedian().round())
    return {
        name: {
            mode: [
                Outcome(turn, _by_rule(turn, tests, row, mode, usual), item.patient)
                for item, row in zip(tests.items(grounding), tests.rows, strict=True)
                for turn in item.turns
                if turn.kind in ("presence", "rhythm", "rate")
            ]
            for mode, grounding in MODES.items()
        }
        for name, tests in sets.items()
    }


def _by_rule(
    turn: Turn, tests: TestSet, row: int, mode: str, usual: Mapping[str, bool | str | float]
) -> bool | str | float | None:
    if mode == "tokens":
        return usual[turn.about if turn.kind == "presence" else turn.kind]
    if turn.kind == "rate":
        return float(np.round(tests.material.measured(row).judged("heart_rate_bpm")))
    signs = tests.material.signs[row].removeprefix(SIGNS).split(", ")
    if turn.kind == "presence":
        return get_finding(turn.about).phrase in signs
    return rhythm_class(next((f.name for f in FINDINGS if f.rhythm and f.phrase == signs[0]), None))


def figures(models: Mapping[str, Outcomes], *, seed: int) -> dict[str, Any]:
    """Return set → mode → model → `summarize`'s figures, and how much better "own_ecg" is than the twin.

    Args:
        models: "own_ecg", "other_tokens", "twin" and "template", each with its outcomes.
        seed: of the bootstrap.
    """
    out: dict[str, Any] = {}
    for name, modes in models["own_ecg"].items():
        for mode in modes:
            found: dict[str, Any] = {model: summarize(of[name][mode], seed=seed) for model, of in models.items()}
            found["own_ecg_less_twin"] = compare(models["own_ecg"][name][mode], models["twin"][name][mode], seed=seed)
            out.setdefault(name, {})[mode] = found
    return out


def outcomes_to_json(outcomes: Outcomes) -> dict[str, Any]:
    """Return outcomes as plain lists; the questions' order says which is which."""
    return {name: {mode: [o.said for o in items] for mode, items in modes.items()} for name, modes in outcomes.items()}


def outcomes_from_json(found: Mapping[str, Any], sets: Mapping[str, TestSet], *, generated: bool) -> Outcomes:
    """Return outcomes from what `outcomes_to_json` made of answers to the same sets."""
    out: Outcomes = {}
    for name, modes in found.items():
        turns = list(_in_order(sets[name].items(("tokens",)), generated))
        for mode, said in modes.items():
            out.setdefault(name, {})[mode] = [
                Outcome(turn, one, patient) for (turn, patient), one in zip(turns, said, strict=True)
            ]
    return out


def _in_order(items: Sequence[Asked], generated: bool) -> Iterable[tuple[Turn, str]]:
    """Yield the questions in the order in which `evaluate_answers` asks them."""
    yield from ((turn, item.patient) for item in items for turn in item.turns if turn.kind == "presence")
    if generated:
        yield from ((turn, item.patient) for item in items for turn in item.turns if turn.kind in ("rhythm", "rate"))
