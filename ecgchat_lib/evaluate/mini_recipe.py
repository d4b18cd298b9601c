"""The recipe of the mini ECG-CoCa that the course ships: data, texts, training, choice, and the figures in its card.

`python -m ecgchat_lib.evaluate.mini_recipe --out FOLDER` reads the real recordings in the folder named by
ECGCHAT_REAL_DATA, trains, and writes a checkpoint with its results; killed, it goes on where it was. It isn't the
paper's recipe: that one reads MIMIC-IV-ECG. Taught in: 07 §6.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import platform
import random
import tarfile
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from ecgchat_lib.augment import mask_leads, mask_time, muscle_noise, shift
from ecgchat_lib.coca.checkpoint import load_coca, save_coca
from ecgchat_lib.coca.config import MINI, EcgEncoderConfig
from ecgchat_lib.coca.embed import embed_texts, embed_windows, raw_embeddings
from ecgchat_lib.coca.losses import caption_loss
from ecgchat_lib.coca.model import EcgCoca, count_parameters
from ecgchat_lib.coca.preprocess import front_end, recording_windows
from ecgchat_lib.coca.text import ReportEncoder, build_vocabulary
from ecgchat_lib.coca.train import PairedEcgs, TrainConfig, train_coca
from ecgchat_lib.datasets.labels import SUPERCLASSES
from ecgchat_lib.datasets.manifest import Manifest, indicator_matrix
from ecgchat_lib.datasets.ptbxl import load_ptbxl
from ecgchat_lib.datasets.reports import PHRASES, report_from_statements
from ecgchat_lib.datasets.synthetic import synthesize
from ecgchat_lib.ecg.recording import read_recording
from ecgchat_lib.errors import MissingPartError
from ecgchat_lib.evaluate.bootstrap import bootstrap_interval
from ecgchat_lib.evaluate.probe import linear_probe
from ecgchat_lib.evaluate.retrieval import chance_recall, ranks_of_right, recall_at
from ecgchat_lib.evaluate.zero_shot import PROMPTS, auc, macro_auc, prompt_scores

# PTB-XL 1.0.1 holds five pairs of identical waveforms; the second of each is left out.
REPEATED = ("00138", "00144", "00457", "00460", "00463")
Statements = tuple[tuple[str, float], ...]

TRAIN = TrainConfig(
    steps=800,
    batch=64,
    learning_rate=1e-3,
    warmup=50,
    clip=1.0,
    share_targets=True,
    average=0.98,
    evaluate_every=50,
    save_every=50,
)


@dataclass(frozen=True)
class RecipeConfig:
    """What the recipe's results depend on.

    Attributes:
        synthetic: synthetic ECGs beside the real ones.
        synthetic_share: share of them among the drawn records, 0 to 1.
        wordings: texts per record.
        keep: chance that a statement is said in a wording (the first wording says all).
        seed: of the split of fold 9, the synthetic ECGs, the texts and the weights.
        train: the training settings.
    """

    synthetic: int = 3000
    synthetic_share: float = 0.3
    wordings: int = 6
    keep: float = 0.8
    seed: int = 7
    train: TrainConfig = TRAIN


def read_real(folder: Path, config: EcgEncoderConfig) -> tuple[Manifest, torch.Tensor]:
    """Read PTB-XL's development records, folds 1–9, into a manifest and windows (n, 12, samples).

    Where a record is there both raw and processed, the raw one counts. The processed ones were band-passed by their
    maker, so the band pass is left out for them; all else is the same.

    Args:
        folder: holds `index.csv`, `ptbxl_database.csv.gz`, `raw_500hz_wfdb.tar.xz`, `processed_125hz.npy.xz`.
        config: the encoder's front end.

    Raises:
        MissingPartError: a file is missing.
    """
    for name in ("index.csv", "ptbxl_database.csv.gz", "raw_500hz_wfdb.tar.xz", "processed_125hz.npy.xz"):
        if not (folder / name).is_file():
            raise MissingPartError(name, f"not in {folder}", "Set ECGCHAT_REAL_DATA to the folder above ptbxl/")
    index = pd.read_csv(folder / "index.csv")
    index["record"] = [f"{number:05d}" for number in index["ecg_id"]]
    index = index[~index["record"].isin(REPEATED)]
    windows = dict(_raw_windows(folder, index[index["has_raw500"]], config))
    rest = index[~index["has_raw500"]]
    processed = _processed_signals(folder / "processed_125hz.npy.xz")[rest["processed_row"].to_numpy()]
    windows |= dict(zip(rest["record"], front_end(processed, config, fs=125.0, filtered=True), strict=True))
    manifest = load_ptbxl(folder, require_files=False)
    manifest = manifest[manifest["record"].isin(windows)].reset_index(drop=True)
    return manifest, torch.stack([windows[record] for record in manifest["record"]])


def _raw_windows(folder: Path, index: pd.DataFrame, config: EcgEncoderConfig) -> list[tuple[str, torch.Tensor]]:
    with tempfile.TemporaryDirectory() as place:
        with tarfile.open(folder / "raw_500hz_wfdb.tar.xz") as archive:
            archive.extractall(place, filter="data")
        base = next(Path(place).rglob("records500")).parent
        paths = tqdm(index["raw_path"], desc="raw records", unit="record", disable=None)
        windows = [recording_windows([read_recording(base / path)], config)[0] for path in paths]
    return list(zip(index["record"], windows, strict=True))


def _processed_signals(path: Path) -> np.ndarray:
    """Undo the storage of the processed records, int16 second differences: float32 (1625, 12, 1250), z-scores."""
    with lzma.open(path) as file:
        differences = np.load(file)
    return (np.cumsum(np.cumsum(differences.astype(np.int32), -1), -1) / 500).astype(np.float32)


def synthetic_records(n: int, seed: int, config: EcgEncoderConfig) -> tuple[list[Statements], torch.Tensor]:
    """Return the statements and windows (n, 12, samples) of n synthetic ECGs."""
    statements, windows = [], []
    for number in tqdm(range(n), desc="synthetic", unit="record", disable=None):
        ecg = synthesize(seed * 1_000_000 + number)
        statements.append(ecg.statements)
        windows.append(front_end(ecg.signal[None], config, fs=ecg.fs)[0].half())
    return statements, torch.stack(windows) if windows else torch.zeros(0, 12, config.samples).half()


def wordings(statements: Statements, n: int, keep: float, seed: int) -> list[str]:
    """Return n texts of one record: the first says every statement, the others leave some out at random."""
    draw = random.Random(f"wordings {seed}")
    texts = [report_from_statements(statements, seed=seed)]
    for number in range(1, n):
        said = [item for item in statements if draw.random() < keep] or list(statements)
        texts.append(report_from_statements(said, seed=seed + 7919 * number))
    return texts


def augment_windows(windows: torch.Tensor, generator: torch.Generator, fs: float = 100.0) -> torch.Tensor:
    """Augment z-scored windows (B, 12, samples): shift, gain per lead, noise, gaps in time, missing leads.

    Each lead may get its own gain, since the z-score has taken the millivolts away already.
    """
    windows = shift(windows, fs, generator, probability=0.8, seconds=1.0)
    windows = windows * (0.75 + 0.5 * torch.rand(len(windows), 12, 1, generator=generator))
    windows = muscle_noise(windows, fs, generator, probability=0.6, size_mv=0.15)  # of a standard deviation, here
    windows = mask_time(windows, fs, generator, probability=0.5, windows=3, seconds=(0.2, 0.6))
    return mask_leads(windows, generator, probability=0.5, most=4)


def split_fold_nine(manifest: Manifest, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers of two halves of fold 9, split by patient: one to choose on, one to report on."""
    rows = np.flatnonzero(manifest["split"] == "validation")
    patients = sorted(set(manifest["patient"].iloc[rows]))
    first = set(np.random.default_rng(seed).permutation(patients)[: len(patients) // 2])
    chosen = manifest["patient"].iloc[rows].isin(first).to_numpy()
    return rows[chosen], rows[~chosen]


def zero_shot_scores(windows: torch.Tensor, model: EcgCoca) -> np.ndarray:
    """Return the superclasses' zero-shot scores (n, 5), each class against the prompts of a normal ECG."""
    ecg = embed_windows(windows, model).numpy()
    return prompt_scores(ecg, lambda texts: embed_texts(texts, model).numpy(), PROMPTS, against="NORM")


def build_model(texts: Sequence[Sequence[str]], seed: int, encoder: ReportEncoder) -> EcgCoca:
    """Return an untrained mini model whose vocabulary covers the texts and every phrase of the report writer."""
    phrases = [phrase for ways in PHRASES.values() for phrase in ways]
    prompts = [text for ways in PROMPTS.values() for text in ways]
    vocabulary = build_vocabulary([*(text for ways in texts for text in ways), *phrases, *prompts])
    torch.manual_seed(seed)
    config = replace(MINI, decoder=replace(MINI.decoder, vocabulary=len(vocabulary)))
    return EcgCoca(config, vocabulary, encoder)


@dataclass
class Material:
    """All that the recipe reads: the real records, the halves of fold 9, and the training pairs."""

    manifest: Manifest
    windows: torch.Tensor
    choose: np.ndarray
    report: np.ndarray
    pairs: PairedEcgs

    @property
    def labels(self) -> np.ndarray:
        """(n, 5) superclasses of the real records."""
        return indicator_matrix(self.manifest, SUPERCLASSES)


def prepare(folder: Path, recipe: RecipeConfig, out: Path) -> tuple[EcgCoca, Material]:
    """Read everything and build the untrained model; report vectors are kept in `out`, since they take minutes."""
    manifest, windows = read_real(folder, MINI.encoder)
    choose, report = split_fold_nine(manifest, recipe.seed)
    rows = np.flatnonzero(manifest["split"] == "train")
    made, synthetic = synthetic_records(recipe.synthetic, recipe.seed, MINI.encoder)
    statements: list[Statements] = [*manifest["statements"].iloc[rows], *made]
    texts = [wordings(s, recipe.wordings, recipe.keep, recipe.seed + n) for n, s in enumerate(statements)]
    keys: list[Hashable] = [frozenset(code for code, _ in s) for s in statements]
    share = recipe.synthetic_share if made else 0.0
    weights = [(1 - share) / len(rows)] * len(rows) + [share / max(1, len(made))] * len(made)
    encoder = ReportEncoder(cache=out / "report-vectors.npz")
    model = build_model(texts, recipe.seed, encoder)
    pairs = PairedEcgs(torch.cat([windows[rows].half(), synthetic]), texts, model, keys, weights)
    return model, Material(manifest, windows, choose, report, pairs)


def train(model: EcgCoca, material: Material, recipe: RecipeConfig, out: Path) -> tuple[list[dict[str, float]], float]:
    """Train, keep the best by the zero-shot macro-AUC on the choosing half; return the history and the seconds."""
    rows = material.choose
    labels, windows = material.labels[rows], material.windows[rows]
    note = out / "seconds.json"
    before = json.loads(note.read_text())["seconds"] if note.is_file() else 0.0
    start = time.perf_counter()

    def validate(candidate: EcgCoca) -> float:
        value = macro_auc(labels, zero_shot_scores(windows, candidate))
        note.write_text(json.dumps({"seconds": before + time.perf_counter() - start}))
        print(
            f"{before + time.perf_counter() - start:6.0f} s  zero-shot macro-AUC, choosing half: {value:.3f}",
            flush=True,
        )
        return value

    result = train_coca(model, material.pairs, recipe.train, folder=out, augment=augment_windows, validate=validate)
    return summarize(result.history, 25), float(json.loads(note.read_text())["seconds"])


def summarize(history: list[dict[str, float]], every: int) -> list[dict[str, float]]:
    """Return the means of the losses and the temperature's inverse over each `every` steps, and the validations."""
    rows = []
    for start in range(0, len(history), every):
        part = history[start : start + every]
        row = {"step": start + len(part)} | {
            name: round(float(np.mean([entry[name] for entry in part])), 4)
            for name in ("contrastive", "caption", "scale")
        }
        checked = [entry["validation"] for entry in part if "validation" in entry]
        rows.append(row | ({"validation": checked[-1]} if checked else {}))
    return rows


def evaluate(model: EcgCoca, material: Material, seed: int) -> dict[str, Any]:
    """Return the figures on the reporting half, with 95 % intervals over patients, and a random encoder beside them."""
    floor = untrained(model, seed)
    rows, labels = material.report, material.labels
    windows, patients = material.windows[rows], list(material.manifest["patient"].iloc[rows])
    interval = _interval_over(patients, seed)
    train_rows = np.flatnonzero(material.manifest["split"] == "train")
    results: dict[str, Any] = {"records": len(rows), "patients": len(set(patients)), "zero_shot": {}, "probe": {}}
    for name, one in {"mini": model, "random_encoder": floor}.items():
        scores = zero_shot_scores(windows, one)
        results["zero_shot"][name] = {"macro_auc": interval(macro_auc, labels[rows], scores)} | {
            code: interval(auc, labels[rows][:, k], scores[:, k]) for k, code in enumerate(SUPERCLASSES)
        }
        train_x, test_x = (raw_embeddings(material.windows[part], one).numpy() for part in (train_rows, rows))
        probed = linear_probe(train_x, labels[train_rows], test_x)
        results["probe"][name] = {"macro_auc": interval(macro_auc, labels[rows], probed)}
    results["positives"] = {code: int(labels[rows][:, k].sum()) for k, code in enumerate(SUPERCLASSES)}
    results["retrieval"] = retrieval_figures(model, material, interval)
    results["caption"] = caption_figures(model, windows, [material.manifest["report"].iloc[row] for row in rows])
    return results


def untrained(model: EcgCoca, seed: int) -> EcgCoca:
    """Return a model of the same sizes with random weights: the floor that must stand beside every result."""
    torch.manual_seed(seed)
    assert model.tokenizer is not None
    return EcgCoca(model.config, model.tokenizer.vocabulary, model.report_encoder).eval()


def _interval_over(patients: list[str], seed: int) -> Callable[..., dict[str, float]]:
    def interval(metric: Callable[..., float], *arrays: np.ndarray) -> dict[str, float]:
        return bootstrap_interval(metric, *arrays, groups=patients, seed=seed).as_dict()

    return interval


def retrieval_figures(
    model: EcgCoca, material: Material, interval: Callable[..., dict[str, float]]
) -> dict[str, dict[str, Any]]:
    """Return recall at 1, 5, 10 on the reporting half, equal statements counted as right, with the chance floor."""
    part = material.manifest.iloc[material.report]
    keys: list[Hashable] = [frozenset(code for code, _ in statements) for statements in part["statements"]]
    ecg, text = embed_windows(material.windows[material.report], model), embed_texts(list(part["report"]), model)
    similarity = (ecg @ text.T).numpy()
    figures: dict[str, dict[str, Any]] = {"strict": {"recall": _texted(recall_at(similarity))}}
    for name, matrix in {"ecg_to_report": similarity, "report_to_ecg": similarity.T}.items():
        ranks = ranks_of_right(matrix, keys)
        figures[name] = {f"recall_at_{k}": interval(lambda r, k=k: float((r < k).mean()), ranks) for k in (1, 5, 10)}
    figures["chance"] = {f"recall_at_{k}": chance_recall(keys, k) for k in (1, 5, 10)}
    figures["chance"]["distinct_reports"] = len(set(keys))
    return figures


def _texted(recall: dict[str, dict[int, float]]) -> dict[str, dict[str, float]]:
    return {name: {f"recall_at_{k}": value for k, value in values.items()} for name, values in recall.items()}


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
    print(f"{len(material.pairs)} training records, {len(material.pairs.vectors)} distinct texts", flush=True)
    history, seconds = train(model, material, recipe, out)
    best = load_coca(out / "best", report_encoder=model.report_encoder)
    stored = save_coca(best, out / "release", dtype=torch.float16)  # what is reported is what is shipped
    best = load_coca(stored, report_encoder=model.report_encoder)
    chosen = json.loads((out / "best" / "manifest.json").read_text())["about"]
    record = {
        "model": "ecg-coca-mini",
        "data": {
            "train_real": int((material.manifest["split"] == "train").sum()),
            "train_synthetic": recipe.synthetic,
            "distinct_texts": len(material.pairs.vectors),
            "choose": len(material.choose),
            "report": len(material.report),
        },
        "parameters": {"all": count_parameters(best), "encoder": count_parameters(best.encoder)},
        "recipe": asdict(recipe),
        "chosen": chosen,
        "history": history,
        "seconds": round(seconds),
        "device": f"CPU, {torch.get_num_threads()} thread(s), {platform.machine()}, torch {torch.__version__}",
        "metrics": evaluate(best, material, recipe.seed),
    }
    about = {key: record[key] for key in ("data", "chosen", "seconds")}
    for path in [path for path in (out / "release", release) if path]:
        save_coca(best, path, dtype=torch.float16, about=about)
        (path / "README.md").write_text(model_card(record), encoding="utf-8")
    for path in [path for path in (out / "results.json", results) if path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
    return record


CARD = """# ecg-coca-mini

A small ECG-CoCa: a 1-D vision transformer for 12-lead ECGs, trained together with report embeddings and a caption
decoder. It is the encoder that the notebooks of this course evaluate and that the mini chat model reads. It is **not a
medical device**: it is often wrong, and nothing it says may be used to diagnose or treat anyone.

| | |
| --- | --- |
| parameters | {all:,}, of which {encoder:,} in the ECG encoder |
| input | 12 leads in the order I II III aVR aVL aVF V1–V6, 10 s; front end 0.5–40 Hz, 100 Hz, z-score per lead |
| output | 101 tokens of width 192 (CLS first), an embedding of 256 numbers, a caption |
| encoder | two small convolutions, 100 patches of 0.1 s, 4 transformer blocks |
| text side | all-MiniLM-L6-v2, frozen, and a trained matrix; not included here |
| files | `model.safetensors` (float16), `config.json`, `vocabulary.txt`, `manifest.json` (sha256 of each) |
| load | `from ecgchat_lib.coca.checkpoint import load_mini` |

## Data

Trained on {train_real:,} real ECGs of PTB-XL 1.0.1 (folds 1–8; a subset, the second of each pair of identical
waveforms left out) and {train_synthetic:,} synthetic ECGs of `ecgchat_lib.datasets.synthetic`. Some of the real ones
were available only filtered and z-scored at 125 Hz; all went through the same front end. The texts are English
sentences made from each record's SCP-ECG statements, {wordings} wordings a record, {distinct_texts:,} distinct; the
original reports were not used.

PTB-XL: Wagner P, Strodthoff N, Bousseljot R-D, Kreiseler D, Lunze FI, Samek W, Schaeffter T. PTB-XL, a large publicly
available electrocardiography dataset. Scientific Data 7, 154 (2020), doi:10.1038/s41597-020-0495-6, CC BY 4.0.
Changes: filtered, resampled, scaled, and used to train these weights.

## License

The weights: CC BY 4.0, with the attribution above. all-MiniLM-L6-v2: Apache-2.0.

## Recipe

`python -m ecgchat_lib.evaluate.mini_recipe --out FOLDER` with `ECGCHAT_REAL_DATA` set. Seed {seed}, {steps} steps of
{batch} pairs, AdamW {learning_rate:g}, warm-up {warmup}, cosine, weight decay {weight_decay:g}, clipping {clip:g},
contrastive loss 1 with shared targets, caption loss 2, patch dropout {patch_dropout:g}, moving average {average:g}.
About {minutes} minutes on one busy core ({device}). Fold 9 was split by patient: {choose} records chose the step
({step} of {steps}), the other {report} are reported here.

## Results

On PTB-XL fold 9, reporting half: n = {records} records of {patients} patients. Intervals: 95 %, bootstrap over
patients. These are the float16 weights as shipped.

| zero-shot AUC, prompts against the normal prompts | positives | mini | random encoder |
| --- | --- | --- | --- |
{zero_shot_rows}

| linear probe, macro-AUC | mini | random encoder |
| --- | --- | --- |
| superclasses, fitted on folds 1–8 | {probe} | {probe_random} |

| retrieval, equal statements counted as right | recall at 1 | at 5 | at 10 |
| --- | --- | --- | --- |
{retrieval_rows}

Caption loss on the same records: {own:.3f} with their own ECG, {other:.3f} with another record's.

## Limits

- The set is small, and has fewer infarctions than all of PTB-XL: no figure may stand beside a published fold-10 figure.
- The prompts use words of the training texts, so "zero-shot" means: prompted, in-domain, no label given.
- The z-score takes the millivolts away: voltage criteria (hypertrophy, low voltage) can't be seen, only their shape.
- The frozen text encoder hardly tells "left" from "right" bundle branch block.
- Trained on one German hospital's records and on synthetic ones; other devices, ages and populations are untested.
- Ten seconds only; longer recordings are cut, shorter ones padded with zeros, which it has hardly seen.
"""


def model_card(record: Mapping[str, Any]) -> str:
    """Return the model card; every number in it comes from the record."""
    metrics, recipe = record["metrics"], record["recipe"]
    zero, retrieval = metrics["zero_shot"], metrics["retrieval"]
    rows = []
    for name, count in {"macro_auc": "", **metrics["positives"]}.items():
        title = "**mean of the five**" if name == "macro_auc" else name
        rows.append(f"| {title} | {count} | {_shown(zero['mini'][name])} | {_shown(zero['random_encoder'][name])} |")
    found = []
    for name, title in {"ecg_to_report": "ECG → report", "report_to_ecg": "report → ECG", "chance": "chance"}.items():
        cells = [retrieval[name][f"recall_at_{k}"] for k in (1, 5, 10)]
        found.append(f"| {title} | " + " | ".join(f"{c:.3f}" if name == "chance" else _shown(c) for c in cells) + " |")
    return CARD.format(
        **record["parameters"],
        **record["data"],
        **{k: metrics[k] for k in ("records", "patients")},
        **{
            k: recipe["train"][k]
            for k in ("steps", "batch", "learning_rate", "warmup", "weight_decay", "clip", "average")
        },
        seed=recipe["seed"],
        wordings=recipe["wordings"],
        step=record["chosen"]["step"],
        device=record["device"],
        minutes=round(record["seconds"] / 60),
        patch_dropout=MINI.encoder.patch_dropout,
        zero_shot_rows="\n".join(rows),
        retrieval_rows="\n".join(found),
        probe=_shown(metrics["probe"]["mini"]["macro_auc"]),
        probe_random=_shown(metrics["probe"]["random_encoder"]["macro_auc"]),
        own=metrics["caption"]["loss_own_ecg"],
        other=metrics["caption"]["loss_other_ecg"],
    )


def _shown(interval: Mapping[str, float]) -> str:
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


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
