"""The recipe of the mini ECG-CoCa that the course ships: data, texts, training, choice, and the figures in its card.

`python -m ecgchat_lib.evaluate.mini_recipe --out FOLDER` reads the real recordings in the folder named by
ECGCHAT_REAL_DATA, trains, and writes a checkpoint with its results; killed, it goes on where it was. It isn't the
paper's recipe: that one reads MIMIC-IV-ECG. Taught in: 07 §9.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecgchat_lib.coca.checkpoint import load_coca, save_coca
from ecgchat_lib.coca.config import MINI, EcgCocaConfig
from ecgchat_lib.coca.embed import embed_texts, embed_windows, encoder_tokens
from ecgchat_lib.coca.encoder import standardize_leads
from ecgchat_lib.coca.losses import caption_loss
from ecgchat_lib.coca.model import EcgCoca, count_parameters
from ecgchat_lib.coca.numbers import NUMBERS, standardize
from ecgchat_lib.coca.objective import Objective
from ecgchat_lib.coca.pairs import PairedEcgs
from ecgchat_lib.coca.text import ReportEncoder, build_vocabulary
from ecgchat_lib.coca.train import TrainConfig, train_coca
from ecgchat_lib.datasets.labels import SUPERCLASSES, get_label_set, label_matrix
from ecgchat_lib.datasets.manifest import Manifest, indicator_matrix
from ecgchat_lib.datasets.reports import PHRASES
from ecgchat_lib.datasets.synthetic import VERSION
from ecgchat_lib.ecg.measure import Measurements, wde_text
from ecgchat_lib.evaluate.controls import wde_controls
from ecgchat_lib.evaluate.metrics import choose_thresholds, score_report
from ecgchat_lib.evaluate.mini_card import model_card
from ecgchat_lib.evaluate.mini_data import (
    published_report,
    read_real,
    read_synthetic,
    single_statements,
    vary,
    wordings,
)
from ecgchat_lib.evaluate.probe import Parts, probe_fractions, signal_components, spectrum_features
from ecgchat_lib.evaluate.prompts import ckepe_prompts, label_set_scores
from ecgchat_lib.evaluate.retrieval import recall_at, retrieval_report
from ecgchat_lib.evaluate.zero_shot import PROMPTS, macro_auc, prompt_scores

LABEL_SETS = ("super", "sub", "form", "rhythm")  # those that PTB-XL's statements answer

TRAIN = TrainConfig(
    steps=2000,
    batch=64,
    learning_rate=1e-3,
    warmup=100,
    clip=1.0,
    objective=Objective(contrastive=1.0, caption=0.5, numbers=1.0, statements=0.3, share_targets=True),
    average=0.99,
    evaluate_every=100,
    save_every=100,
)


@dataclass(frozen=True)
class RecipeConfig:
    """What the recipe's results depend on.

    Attributes:
        real: use the real ECGs.
        synthetic: synthetic ECGs beside them.
        synthetic_share: share of them among the drawn records, 0 to 1.
        wordings: English texts per record.
        keep: chance that a statement is said in a wording (the first wording says all).
        least: a statement made by fewer records isn't asked about on its own.
        seed: of the split of fold 9, the synthetic ECGs, the texts and the weights.
        model: sizes of the model.
        train: the training settings.
    """

    real: bool = True
    synthetic: int = 6000
    synthetic_share: float = 0.3
    wordings: int = 8
    keep: float = 0.8
    least: int = 8
    seed: int = 7
    model: EcgCocaConfig = MINI
    train: TrainConfig = TRAIN


def split_fold_nine(manifest: Manifest, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers of two halves of fold 9, split by patient: one to choose on, one to report on."""
    rows = np.flatnonzero(manifest["split"] == "validation")
    patients = sorted(set(manifest["patient"].iloc[rows]))
    first = set(np.random.default_rng(seed).permutation(patients)[: len(patients) // 2])
    chosen = manifest["patient"].iloc[rows].isin(first).to_numpy()
    return rows[chosen], rows[~chosen]


def zero_shot_scores(ecg: np.ndarray, model: EcgCoca) -> np.ndarray:
    """Return the superclasses' scores (n, 5) of embeddings, by a few prompts each, for the choice of the step."""
    return prompt_scores(ecg, lambda texts: embed_texts(texts, model).numpy(), PROMPTS, against="NORM")


def build_model(texts: Sequence[Sequence[str]], recipe: RecipeConfig, encoder: ReportEncoder) -> EcgCoca:
    """Return an untrained mini model whose vocabulary covers the texts and every phrase of the report writer."""
    phrases = [phrase for ways in PHRASES.values() for phrase in ways]
    prompts = [text for ways in PROMPTS.values() for text in ways]
    vocabulary = build_vocabulary([*(text for ways in texts for text in ways), *phrases, *prompts])
    torch.manual_seed(recipe.seed)
    decoder = replace(recipe.model.decoder, vocabulary=len(vocabulary))
    return EcgCoca(replace(recipe.model, decoder=decoder), vocabulary, encoder)


@dataclass
class Material:
    """All that the recipe reads: the real records with their numbers, the halves of fold 9, and the training pairs."""

    manifest: Manifest
    windows: torch.Tensor
    numbers: torch.Tensor
    wde: list[str]
    choose: np.ndarray
    report: np.ndarray
    pairs: PairedEcgs

    @property
    def labels(self) -> np.ndarray:
        """(n, 5) superclasses of the real records."""
        return indicator_matrix(self.manifest, SUPERCLASSES)

    def patients(self, rows: np.ndarray) -> list[str]:
        """The patients of some real records."""
        return list(self.manifest["patient"].iloc[rows])

    def keys(self, rows: np.ndarray) -> list[Hashable]:
        """What the reports of some real records say: the set of their statements."""
        return [frozenset(code for code, _ in said) for said in self.manifest["statements"].iloc[rows]]


def prepare(folder: Path, recipe: RecipeConfig, out: Path) -> tuple[EcgCoca, Material]:
    """Read everything and build the untrained model; what takes minutes is kept in `out`."""
    manifest, real = read_real(folder, recipe.model.encoder, out / "real.npz")
    choose, report = split_fold_nine(manifest, recipe.seed)
    rows = np.flatnonzero(manifest["split"] == "train") if recipe.real else np.array([], dtype=int)
    made, synthetic = read_synthetic(recipe.synthetic, recipe.seed, recipe.model.encoder, out / "synthetic.npz")
    statements = [*manifest["statements"].iloc[rows], *made]
    english = [wordings(s, recipe.wordings, recipe.keep, recipe.seed + n) for n, s in enumerate(statements)]
    published = [published_report(text) for text in manifest["report_original"].iloc[rows]] + [[] for _ in made]
    weights = _weights(len(rows), len(made), recipe.synthetic_share)
    phrases, present = single_statements(statements, recipe.least)
    encoder = ReportEncoder(cache=out / "report-states.npz")
    model = build_model(english, recipe, encoder)
    pairs = PairedEcgs(
        torch.cat([real.ecg[rows], synthetic.ecg]),
        [ours + theirs for ours, theirs in zip(english, published, strict=True)],
        model,
        keys=[frozenset(code for code, _ in s) for s in statements],
        weights=weights,
        numbers=torch.cat([real.numbers[rows], synthetic.numbers]),
        phrases=phrases,
        present=present,
        captions=[ours + ours[:1] * len(theirs) for ours, theirs in zip(english, published, strict=True)],
    )
    return model, Material(manifest, real.ecg, real.numbers, endings(real.numbers), choose, report, pairs)


def _weights(real: int, synthetic: int, share: float) -> list[float]:
    """Return how likely each record is drawn, so that the synthetic ones make up `share` of the draws."""
    share = 0.0 if not synthetic else 1.0 if not real else share
    return [(1 - share) / max(1, real)] * real + [share / max(1, synthetic)] * synthetic


def endings(numbers: torch.Tensor) -> list[str]:
    """Return the text of each recording's measured numbers (n, 8), as `ecg.measure.wde_text` writes it."""
    return [wde_text(Measurements(**dict(zip(NUMBERS, row, strict=True)))) for row in numbers.tolist()]


def step_value(model: EcgCoca, windows: torch.Tensor, labels: np.ndarray, texts: Sequence[str]) -> dict[str, float]:
    """Return what chooses the step: the superclasses' zero-shot macro-AUC, and the recall at 1 by texts with numbers.

    Args:
        model: the candidate.
        windows: (n, 12, samples) of the records to choose on.
        labels: (n, 5) superclasses.
        texts: their reports, each with its numbers at the end.

    Returns:
        `zero_shot_auc`, NaN where no class has both kinds of records; `recall_at_1`, the mean of both directions; and
        `value`: 0.8 of the area and 0.2 of the recall, or the recall alone without an area.
    """
    ecg = embed_windows(windows, model)
    area = macro_auc(labels, zero_shot_scores(ecg.numpy(), model))
    found = recall_at((ecg @ embed_texts(texts, model).T).numpy(), 1)
    recall = (found["ecg_to_report"][1] + found["report_to_ecg"][1]) / 2
    value = recall if math.isnan(area) else 0.8 * area + 0.2 * recall
    return {"value": value, "zero_shot_auc": area, "recall_at_1": recall}


def train(model: EcgCoca, material: Material, recipe: RecipeConfig, out: Path) -> tuple[list[dict[str, float]], float]:
    """Train, keep the best step by `step_value` on the choosing half; return the history and the seconds."""
    note = out / "seconds.json"
    before = json.loads(note.read_text())["seconds"] if note.is_file() else 0.0
    start = time.perf_counter()

    rows = material.choose
    texts = [material.manifest["report"].iloc[row] + material.wde[row] for row in rows]

    def validate(candidate: EcgCoca) -> float:
        found = step_value(candidate, material.windows[rows], material.labels[rows], texts)
        seconds = before + time.perf_counter() - start
        note.write_text(json.dumps({"seconds": seconds}))
        print(f"{seconds:6.0f} s  choosing half: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items()), flush=True)
        return found["value"]

    result = train_coca(model, material.pairs, recipe.train, folder=out, augment=vary, validate=validate)
    return summarize(result.history, 25), float(json.loads(note.read_text())["seconds"])


def summarize(history: list[dict[str, float]], every: int) -> list[dict[str, float]]:
    """Return the means of the losses and the temperature's inverse over each `every` steps, and the validations."""
    rows = []
    for start in range(0, len(history), every):
        part = history[start : start + every]
        names = [name for name in part[0] if name not in ("learning_rate", "validation")]
        row = {"step": start + len(part)} | {
            name: round(float(np.mean([entry[name] for entry in part])), 4) for name in names
        }
        checked = [entry["validation"] for entry in part if "validation" in entry]
        rows.append(row | ({"validation": checked[-1]} if checked else {}))
    return rows


def evaluate(model: EcgCoca, material: Material, seed: int, ckepe: Path | None = None) -> dict[str, Any]:
    """Return the figures on the reporting half, with 95 % intervals over patients, and a random encoder beside them.

    Thresholds and penalties are chosen on the choosing half; probes are fitted on folds 1–8. `retrieval_wde` searches
    through all of fold 9, `retrieval_wde_half` through the reporting half alone.

    Args:
        model: the trained one.
        material: what `prepare` returns.
        seed: of the resamples, the random encoder and the draws of labels.
        ckepe: CKEPE's prompts as published, to compare with; left out if None.
    """
    models = {"mini": model, "random_encoder": untrained(model, seed)}
    vectors = {name: embed_windows(material.windows, one).numpy() for name, one in models.items()}
    ecg, rows, labels = vectors["mini"], material.report, material.labels
    patients = material.patients(rows)
    results: dict[str, Any] = {"records": len(rows), "patients": len(set(patients))}
    results["positives"] = {code: int(labels[rows][:, k].sum()) for k, code in enumerate(SUPERCLASSES)}
    results["zero_shot"] = {
        name: zero_shot_figures(one, vectors[name], material, "super", seed) for name, one in models.items()
    }
    results["zero_shot_sets"] = {name: zero_shot_figures(model, ecg, material, name, seed) for name in LABEL_SETS[1:]}
    if ckepe is not None:
        results["zero_shot_ckepe"] = {
            name: zero_shot_figures(model, ecg, material, name, seed, ckepe_prompts(ckepe, name)) for name in LABEL_SETS
        }
    results["probe_fractions"] = probe_figures(vectors, material, model.config.encoder.fs, seed)
    results["probe"] = {name: {"macro_auc": results["probe_fractions"][name]["1"]["interval"]} for name in models}
    both = np.sort(np.concatenate([material.choose, rows]))
    results["retrieval_wde"] = wde_figures(model, ecg, material, both, seed)
    results["retrieval_wde_half"] = wde_figures(model, ecg, material, rows, seed)
    results["retrieval"] = results["retrieval_wde_half"]["words"]
    if model.number_head is not None:
        results["numbers"] = number_figures(model, material)
    results["caption"] = caption_figures(
        model, material.windows[rows], [material.manifest["report"].iloc[row] for row in rows]
    )
    return results


def zero_shot_figures(
    model: EcgCoca,
    ecg: np.ndarray,
    material: Material,
    label_set: str,
    seed: int,
    prompts: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Return the report of a label set by prompts, and for the superclasses `macro_auc` and each class's area too.

    As in published comparisons, a record without any label of the set is left out. `ecg`: embeddings of all real
    records.
    """
    labels = label_matrix(material.manifest["statements"], label_set)
    classes = get_label_set(label_set).classes
    choose, rows = (part[labels[part].any(axis=1)] for part in (material.choose, material.report))

    def scores(part: np.ndarray) -> np.ndarray:
        return label_set_scores(ecg[part], lambda texts: embed_texts(texts, model).numpy(), label_set, prompts)

    thresholds = choose_thresholds(labels[choose], scores(choose))
    report = score_report(
        labels[rows], scores(rows), classes, thresholds=thresholds, groups=material.patients(rows), seed=seed
    )
    areas = {name: found["auc"] for name, found in report["classes"].items() if "auc" in found}
    return {"macro_auc": report["macro"]["auc"], **areas, "report": report} if label_set == "super" else report


def probe_figures(vectors: Mapping[str, np.ndarray], material: Material, fs: float, seed: int) -> dict[str, Any]:
    """Return the linear probe of the superclasses with 1, 10 and 100 % of the labels: each encoder, and plain signals.

    An encoder is probed on its embedding in the contrastive space, which is what `ecgchat embed` writes; `vectors` are
    those of all real records, `fs` is the windows' rate.
    """
    rows = Parts(np.flatnonzero(material.manifest["split"] == "train"), material.choose, material.report)
    features = {name: Parts(*(ecg[part] for part in rows)) for name, ecg in vectors.items()}
    scaled = [standardize_leads(material.windows[part].float())[0].numpy() for part in rows]
    features["signal_components"] = Parts(*signal_components(*scaled, seed=seed))
    features["spectrum"] = Parts(*(spectrum_features(part, fs) for part in scaled))
    labels = Parts(*(material.labels[part] for part in rows))
    return probe_fractions(features, labels, groups=material.patients(material.report), seed=seed)


def untrained(model: EcgCoca, seed: int) -> EcgCoca:
    """Return a model of the same sizes with random weights: the floor that must stand beside every result."""
    torch.manual_seed(seed)
    assert model.tokenizer is not None
    return EcgCoca(model.config, model.tokenizer.vocabulary, model.report_encoder).eval()


def wde_figures(
    model: EcgCoca, ecg: np.ndarray, material: Material, rows: np.ndarray, seed: int
) -> dict[str, dict[str, Any]]:
    """Return retrieval among some real records by four texts: words, words with numbers, numbers, foreign numbers."""
    patients = material.patients(rows)
    words = [material.manifest["report"].iloc[row] for row in rows]
    variants = wde_controls(words, [material.wde[row] for row in rows], material.keys(rows), groups=patients, seed=seed)
    return {
        name: retrieval_report(
            ecg[rows] @ embed_texts(said.texts, model).numpy().T, said.keys, groups=patients, seed=seed
        )
        for name, said in variants.items()
    }


@torch.inference_mode()
def number_figures(model: EcgCoca, material: Material) -> dict[str, Any]:
    """Return how far the CLS token's numbers are from the measured ones on the reporting half.

    Per number: the mean absolute error in spreads (`numbers.SPREAD`), that of always saying the training median beside
    it, and how many records have the number.
    """
    rows = material.report
    wanted = standardize(material.numbers[rows])
    train_rows = np.flatnonzero(material.manifest["split"] == "train")
    typical = standardize(material.numbers[train_rows]).nanmedian(dim=0).values
    tokens = encoder_tokens(material.windows[rows], model)
    errors = {"mini": model.predict_numbers(tokens) - wanted, "median": typical - wanted}
    return {
        name: {
            "n": int((~wanted[:, k].isnan()).sum()),
            **{who: float(error[:, k].abs().nanmean()) for who, error in errors.items()},
        }
        for k, name in enumerate(NUMBERS)
    }


@torch.inference_mode()
def caption_figures(model: EcgCoca, windows: torch.Tensor, reports: list[str]) -> dict[str, float]:
    """Return the caption loss with each ECG's own report, and with the ECGs rotated by one place."""
    assert model.tokenizer is not None
    model.eval()
    pieces = model.tokenizer.encode(reports, model.config.decoder.context + 1)
    patches = model.caption_patches(model.encoder(windows.float()).tokens)
    own = caption_loss(model.decoder(pieces[:, :-1], patches), pieces[:, 1:])
    other = caption_loss(model.decoder(pieces[:, :-1], patches.roll(1, dims=0)), pieces[:, 1:])
    return {"loss_own_ecg": own.item(), "loss_other_ecg": other.item()}


def run(
    folder: Path, out: Path, recipe: RecipeConfig, *, release: Path | None = None, results: Path | None = None
) -> dict:
    """Do the whole recipe and return its record; with `release` and `results`, write the course's files too."""
    out.mkdir(parents=True, exist_ok=True)
    model, material = prepare(folder, recipe, out)
    print(f"{len(material.pairs)} training records, {len(material.pairs.states)} distinct texts", flush=True)
    history, seconds = train(model, material, recipe, out)
    record = measure_best(material, recipe, out, ckepe=_ckepe(folder)) | {
        "history": history,
        "seconds": round(seconds),
        "device": f"CPU, {torch.get_num_threads()} thread(s), {platform.machine()}, torch {torch.__version__}",
    }
    about = {key: record[key] for key in ("data", "chosen", "seconds")}
    stored = load_coca(out / "release", report_encoder=material.pairs.model.report_encoder)
    for path in [path for path in (out / "release", release) if path]:
        save_coca(stored, path, dtype=torch.float16, about=about)
        (path / "README.md").write_text(model_card(record), encoding="utf-8")
    for path in [path for path in (out / "results.json", results) if path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
    return record


def measure_best(material: Material, recipe: RecipeConfig, out: Path, *, ckepe: Path | None) -> dict[str, Any]:
    """Store the best step in half precision in `out/release`, and return the record of what that copy reaches."""
    encoder = material.pairs.model.report_encoder
    best = load_coca(out / "best", report_encoder=encoder)
    save_coca(best, out / "release", dtype=torch.float16)
    best = load_coca(out / "release", report_encoder=encoder)  # what is reported is what is shipped
    return {
        "model": "ecg-coca-mini",
        "data": {
            "train_real": int((material.manifest["split"] == "train").sum()),
            "train_synthetic": recipe.synthetic,
            "generator_version": VERSION,
            "distinct_texts": len(material.pairs.states),
            "single_statements": len(material.pairs.phrases),
            "choose": len(material.choose),
            "report": len(material.report),
        },
        "parameters": {"all": count_parameters(best), "encoder": count_parameters(best.encoder)},
        "recipe": asdict(recipe),
        "chosen": json.loads((out / "best" / "manifest.json").read_text())["about"],
        "metrics": evaluate(best, material, recipe.seed, ckepe=ckepe),
    }


def _ckepe(folder: Path) -> Path | None:
    """Return the published CKEPE prompts beside PTB-XL's folder, if they are there."""
    found = sorted((folder.parent / "text").glob("*CKEPE*.json"))
    return found[0] if found else None


def main() -> None:
    """Run the recipe from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("ECGCHAT_REAL_DATA"), help="folder above ptbxl/")
    parser.add_argument("--out", type=Path, required=True, help="folder for states, weights and results")
    parser.add_argument("--release", type=Path, help="also write the weights here")
    parser.add_argument("--results", type=Path, help="also write the results file here")
    parser.add_argument("--steps", type=int, default=TRAIN.steps)
    parser.add_argument("--synthetic", type=int, default=RecipeConfig.synthetic)
    parser.add_argument("--seed", type=int, default=RecipeConfig.seed)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.data is None:
        parser.error("name the folder with the real recordings: --data, or ECGCHAT_REAL_DATA")
    torch.set_num_threads(given.threads)
    settings = replace(TRAIN, steps=given.steps, seed=given.seed)
    recipe = RecipeConfig(synthetic=given.synthetic, seed=given.seed, train=settings)
    record = run(given.data / "ptbxl", given.out, recipe, release=given.release, results=given.results)
    print(json.dumps(record["metrics"], indent=2))


if __name__ == "__main__":
    main()
