"""The recipe of the diagnosis-driven classifier that the course ships: records, fit, calibration, figures, card.

`python -m ecgchat_lib.evaluate.classifier_recipe --out FOLDER` reads the real recordings in the folder named by
ECGCHAT_REAL_DATA. Folds 1–8 fit the lines; one half of fold 9 calibrates and sets thresholds; the other half is
reported, and chose nothing here. Taught in: 09 §4.
"""

from __future__ import annotations

import argparse
import json
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecgchat_lib.coca.checkpoint import load_coca, load_mini
from ecgchat_lib.coca.model import EcgCoca
from ecgchat_lib.datasets.labels import SUPERCLASSES, Statements
from ecgchat_lib.datasets.manifest import Manifest
from ecgchat_lib.evaluate.bootstrap import bootstrap_interval
from ecgchat_lib.evaluate.calibration import (
    best_threshold,
    brier,
    calibration_error,
    f1_score,
    probability,
    reliability,
)
from ecgchat_lib.evaluate.classifier import (
    STATEMENT,
    DiagnosisClassifier,
    encoder_digest,
    fit_classifier,
    label_targets,
    load_classifier,
    save_classifier,
)
from ecgchat_lib.evaluate.zero_shot import macro_auc

LICENSE = "CC BY 4.0"
ATTRIBUTION = (
    "Fitted on PTB-XL 1.0.1, Wagner et al. 2020, PTB-XL, a large publicly available electrocardiography dataset, "
    "doi:10.1038/s41597-020-0495-6, CC BY 4.0"
)
SEED = 7  # of the halves of fold 9 (the encoder's recipe has the same) and of the bootstrap

Part = tuple[torch.Tensor, Sequence[Statements]]
Interval = Callable[..., dict[str, float]]


def parts_of(manifest: Manifest, windows: torch.Tensor) -> tuple[dict[str, Part], list[str]]:
    """Return training, validation and reporting windows with their statements, and the reporting half's patients."""
    from ecgchat_lib.evaluate.mini_recipe import split_fold_nine

    validation, report = split_fold_nine(manifest, SEED)
    rows = {"train": np.flatnonzero(manifest["split"] == "train"), "validation": validation, "report": report}
    parts: dict[str, Part] = {
        name: (windows[part], list(manifest["statements"].iloc[part])) for name, part in rows.items()
    }
    return parts, list(manifest["patient"].iloc[report])


def figures(classifier: DiagnosisClassifier, parts: Mapping[str, Part], patients: list[str]) -> dict[str, Any]:
    """Return the figures on the reporting half, with 95 % intervals over patients.

    F1 at thresholds from validation; beside it, marked as such, F1 at thresholds chosen on the reported records
    themselves, which is the original's mistake.
    """

    def interval(metric: Callable[..., float], *arrays: np.ndarray) -> dict[str, float]:
        return bootstrap_interval(metric, *arrays, groups=patients, seed=SEED).as_dict()

    windows, statements = parts["report"]
    truth, x = label_targets(classifier.labels, statements), classifier.features(windows)
    raw, calibrated = probability(classifier.heads.log_odds(x)), classifier.heads.probabilities(x)
    said = classifier.said(calibrated)
    told: dict[str, Any] = {"records": len(truth), "patients": len(set(patients)), "levels": {}}
    for level in ("super", "sub", STATEMENT):
        rows = [k for k, label in enumerate(classifier.labels) if label.level == level]
        told["levels"][level] = _level(truth[:, rows], raw[:, rows], calibrated[:, rows], said[:, rows], interval)
        told["levels"][level]["labels"] = len(rows)
    told["labels"] = {
        f"{label.level}:{label.code}": _of_label(truth[:, k], calibrated[:, k], said[:, k])
        for k, label in enumerate(classifier.labels)
    }
    return told


def _level(
    truth: np.ndarray, raw: np.ndarray, calibrated: np.ndarray, said: np.ndarray, interval: Interval
) -> dict[str, Any]:
    """Return one level's figures; F1 and AUC are means over the labels that the reporting half has."""
    with_positives = int(truth.any(axis=0).sum())
    level: dict[str, Any] = {
        "labels_with_positives": with_positives,
        "macro_auc": interval(macro_auc, truth, calibrated),
        "macro_f1": interval(macro_f1, truth, said),
        "macro_f1_thresholds_from_these_records": macro_f1(truth, oracle(truth, calibrated)),
    }
    for name, values in {"before": raw, "after": calibrated}.items():
        curve = reliability(truth, values)
        level[name] = {
            "brier": interval(brier, truth, values),
            "calibration_error": interval(calibration_error, truth, values),
            "reliability": {
                "said": curve.said.round(4).tolist(),
                "found": curve.found.round(4).tolist(),
                "count": curve.n.tolist(),
            },
        }
    return level


def _of_label(truth: np.ndarray, chances: np.ndarray, said: np.ndarray) -> dict[str, Any]:
    """Return one label's counts and figures; None where nothing can be said of it."""
    values = {"auc": macro_auc(truth[:, None], chances[:, None]), "f1": f1_score(truth, said)}
    shown = {name: None if np.isnan(value) else round(value, 4) for name, value in values.items()}
    if not truth.any():
        shown["f1"] = None
    return {"positives": int(truth.sum()), "said": int(said.sum()), **shown}


def macro_f1(truth: np.ndarray, said: np.ndarray) -> float:
    """Return the mean F1 over the labels that have positives; NaN if none has."""
    kept = np.flatnonzero(truth.any(axis=0))
    return float(np.mean([f1_score(truth[:, k], said[:, k]) for k in kept])) if len(kept) else float("nan")


def oracle(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return yes/no answers at the thresholds that serve these very records best: what nobody can have in advance."""
    thresholds = [best_threshold(t, s) if t.any() else np.inf for t, s in zip(truth.T, scores.T, strict=True)]
    return np.asarray(scores >= np.array(thresholds))


CARD = """# ecg-classifier-mini

The diagnosis-driven classifier of the course: for each of {labels} labels one logistic regression on the features of
the frozen encoder `ecg-coca-mini`, calibrated, with a threshold. `ecgchat_lib/evaluate/classifier.py` reads it,
notebook 09 teaches it. It is for learning and not a medical device.

- **What**: {per_level} of PTB-XL.
  Weights in safetensors ({bytes} bytes), labels, preprocessing and hashes in `manifest.json`. It refuses
  any other encoder than the one with sha256 `{encoder}…`.
- **License**: {license}, with attribution: PTB-XL 1.0.1, Wagner et al. 2020, PTB-XL, a large publicly available
  electrocardiography dataset. Scientific Data 7, 154, doi:10.1038/s41597-020-0495-6, CC BY 4.0. Changes: filtered,
  resampled, encoded, and used to fit these numbers.
- **Recipe**: `python -m ecgchat_lib.evaluate.classifier_recipe --out FOLDER` with `ECGCHAT_REAL_DATA` set;
  scikit-learn, C = {strength:g}, one thread.
- **Data**: {train} real recordings of folds 1–8 to fit; one half of fold 9 ({validation} recordings) for calibration
  and thresholds; the other half ({records} recordings of {patients} patients) is reported. The penalty and
  the encoder's training step were chosen on the first half, too. A statement counts whatever its likelihood, as in the
  published comparisons.
- **Labels**: those with at least {least_train} training and {least_validation} validation recordings. Left out,
  for too few or because their scores don't hold on validation:
  {left_out}.

## How good

Fold 9, reporting half; 95 % intervals by bootstrap over patients. Supervised: nothing here is zero-shot. Means are over
the labels that have positives in this half.

| | labels | macro-AUC | macro-F1, thresholds from validation |
| --- | --- | --- | --- |
{rows}

| | calibration error before → after | Brier before → after |
| --- | --- | --- |
{calibration_rows}

"Before" is the plain logistic regression, "after" has a slope and an intercept per label from other patients, drawn
toward "leave it as it is" where a label is rare (`calibration.shrunk_platt`). That two free numbers suit rare labels
badly, and that thresholds above one half do, was first seen on the reporting half, with an earlier encoder. The
remedy's strength was chosen by cross-validation within the first half; the cap at one half follows from theory (Lipton
et al. 2014, arXiv 1402.1892).

## Limits

- Thresholds rest on as few as {least_validation} positive recordings; for rare labels they are little better than a
  guess. `data/results/ecg-classifier-mini.json` has each label's counts.
- The set has fewer infarctions than all of PTB-XL; no figure may stand beside a published fold-10 figure.
- The probabilities hold for a population like PTB-XL's. Where a finding is rarer or more frequent, they are off.
- One German hospital's recordings; other devices, ages and populations are untested. The likeliest rhythm is always
  said, also where the true one is none of those it knows.
"""

LEVEL_NAMES = {"super": "superclasses", "sub": "subclasses", STATEMENT: "statements"}


def classifier_card(record: Mapping[str, Any], size: int) -> str:
    """Return the card; every number in it comes from the record.

    Args:
        record: of `run`.
        size: bytes of the weights.
    """
    about, metrics = record["about"], record["metrics"]
    rows, calibration = [], []
    for level, name in LEVEL_NAMES.items():
        one = metrics["levels"][level]
        rows.append(f"| {name} | {one['labels']} | {_shown(one['macro_auc'])} | {_shown(one['macro_f1'])} |")
        pairs = [f"{one['before'][what]['value']:.3f} → {_shown(one['after'][what])}" for what in _CALIBRATION]
        calibration.append(f"| {name} | {' | '.join(pairs)} |")
    left = [name.partition(":")[2] for name in about["left_out"] if name.startswith(STATEMENT)]
    return CARD.format(
        labels=sum(one["labels"] for one in metrics["levels"].values()),
        per_level=", ".join(f"{metrics['levels'][level]['labels']} {name}" for level, name in LEVEL_NAMES.items()),
        bytes=f"{size:,}",
        encoder=record["encoder_sha256"][:12],
        license=about["license"],
        strength=about["strength"],
        **about["records"],
        records=metrics["records"],
        patients=metrics["patients"],
        least_train=about["least"]["train"],
        least_validation=about["least"]["validation"],
        left_out=textwrap.fill(", ".join(left) or "none", 116, subsequent_indent="  ", break_on_hyphens=False),
        rows="\n".join(rows),
        calibration_rows="\n".join(calibration),
    )


_CALIBRATION = ("calibration_error", "brier")


def _shown(interval: Mapping[str, float]) -> str:
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def run(
    folder: Path, out: Path, model: EcgCoca, *, results: Path | None = None, cache: Path | None = None
) -> dict[str, Any]:
    """Do the whole recipe: write the classifier and its card to `out`, and the record to `results`; return the record.

    Args:
        folder: PTB-XL's, see `mini_data.read_real`.
        out: where the classifier goes.
        model: the encoder.
        results: file of the record; None: none is written.
        cache: where the recordings' windows are kept; the encoder's recipe keeps them in `real.npz`.
    """
    from ecgchat_lib.evaluate.mini_data import read_real

    manifest, real = read_real(folder, model.config.encoder, cache, measured=cache is not None)
    parts, patients = parts_of(manifest, real.ecg)
    about = {"license": LICENSE, "attribution": ATTRIBUTION, "seed": SEED}
    save_classifier(fit_classifier(model, parts["train"], parts["validation"], about=about), out)
    classifier = load_classifier(out, model)  # what is reported is what lies in the folder
    record = {
        "model": "ecg-classifier-mini",
        "encoder_sha256": encoder_digest(model),
        "classes": list(SUPERCLASSES),
        "about": dict(classifier.about),
        "metrics": figures(classifier, parts, patients),
    }
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    _write(out / "README.md", classifier_card(record, size))
    if results is not None:
        _write(results, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return record


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def main() -> None:
    """Run the recipe from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("ECGCHAT_REAL_DATA"), help="folder above ptbxl/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the classifier and its card")
    parser.add_argument("--results", type=Path, help="file for the record")
    parser.add_argument("--encoder", type=Path, help="folder of an ECG-CoCa; the course's mini if not given")
    parser.add_argument("--cache", type=Path, help="real.npz of the encoder's recipe, so that nothing is read again")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.data is None:
        parser.error("name the folder with the real recordings: --data, or ECGCHAT_REAL_DATA")
    torch.set_num_threads(given.threads)
    model = load_mini() if given.encoder is None else load_coca(given.encoder)
    record = run(given.data / "ptbxl", given.out, model, results=given.results, cache=given.cache)
    for level, one in record["metrics"]["levels"].items():
        print(f"{level:10} {one['labels']:3} labels  AUC {_shown(one['macro_auc'])}  F1 {_shown(one['macro_f1'])}")


if __name__ == "__main__":
    main()
