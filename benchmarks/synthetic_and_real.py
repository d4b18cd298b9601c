"""Train a plain classifier on synthetic ECGs and test it on real ones, and back; write the figures.

    ECGCHAT_REAL_DATA=<folder> python benchmarks/synthetic_and_real.py [--out data/results/synthetic_and_real.json]

The classifier: random convolutions (as in Dempster et al., ROCKET, 2020, doi 10.1007/s10618-020-00701-z), of each the
share of time above a threshold and the largest value, and one logistic regression per superclass. The classifier was
not tuned on test records, but the generator was: it was changed after earlier runs of this very comparison, so the
figure from synthetic to real is optimistic. The real records are PTB-XL's, folds 1-9: 479 raw ones and 1,625 at 125 Hz,
filtered and z-scored; so every record, real or synthetic, is filtered, thinned and z-scored in the same way, and no
amplitude in mV remains.
Real to real is threefold, by PTB-XL's folds, which keep patients together; each record is tested once.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.signal import butter, sosfiltfilt
from tqdm import tqdm

from ecgchat_lib.course.provenance import device, git_commit, library_hash, versions
from ecgchat_lib.datasets.labels import SUPERCLASSES, superclasses
from ecgchat_lib.datasets.synthetic import VERSION, synthesize
from ecgchat_lib.ecg.recording import read_recording
from ecgchat_lib.evaluate.bootstrap import bootstrap_interval
from ecgchat_lib.evaluate.probe import linear_probe
from ecgchat_lib.evaluate.zero_shot import auc
from ecgchat_lib.paths import data_folder, project_root

FS, SAMPLES = 125, 1250
DILATIONS = (1, 2, 4, 8, 16, 32, 64)
_BAND = butter(3, (0.5, 40.0), "band", fs=500, output="sos")


def prepare(ecg: np.ndarray) -> np.ndarray:
    """Filter (12, 5000) at 500 Hz to 0.5-40 Hz, keep every fourth sample, and give each lead mean 0 and deviation 1."""
    slow = sosfiltfilt(_BAND, ecg.astype(np.float64), axis=1)[:, ::4][:, :SAMPLES]
    return normalized(slow)


def normalized(ecg: np.ndarray) -> np.ndarray:
    """Give each lead mean 0 and deviation 1; clip what lies beyond 10 deviations."""
    centered = ecg - ecg.mean(axis=-1, keepdims=True)
    return np.clip(centered / (centered.std(axis=-1, keepdims=True) + 1e-6), -10, 10).astype(np.float32)


def read_real(root: Path) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Return windows (n, 12, 1250), superclasses (n, 5) and the index of all records that have a diagnosis."""
    index = pd.read_csv(root / "ptbxl" / "index.csv", keep_default_na=False)
    with lzma.open(root / "ptbxl" / "processed_125hz.npy.xz") as packed:
        second = np.load(packed)
    windows = []
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(root / "ptbxl" / "raw_500hz_wfdb.tar.xz") as tar:
            tar.extractall(scratch, filter="data")
        for row in tqdm(index.itertuples(), total=len(index), desc="real", disable=None):
            if int(row.processed_row) >= 0:  # second differences in time
                ecg = np.cumsum(np.cumsum(second[int(row.processed_row)].astype(np.int32), -1), -1) / 500
                windows.append(normalized(ecg))
            else:
                header = next(Path(scratch).rglob(Path(row.raw_path).name + ".hea"))
                windows.append(prepare(read_recording(header.with_suffix("")).signal))
    labels = np.array([[name in text for name in SUPERCLASSES] for text in index["superclasses"]])
    keep = labels.any(axis=1)
    return np.stack(windows)[keep], labels[keep], index[keep].reset_index(drop=True)


def make_synthetic(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return windows and superclasses of n synthetic ECGs that have a diagnosis."""
    windows, labels = [], []
    for number in tqdm(range(n), desc="synthetic", disable=None):
        ecg = synthesize(seed * 1_000_000 + number)
        found = superclasses(code for code, _ in ecg.statements)
        if found:
            windows.append(prepare(ecg.signal))
            labels.append([name in found for name in SUPERCLASSES])
    return np.stack(windows), np.array(labels)


class RandomConvolutions:
    """Fixed random kernels of length 9 over three leads each; two features per kernel."""

    def __init__(self, kernels: int, seed: int, sample: np.ndarray) -> None:
        """Draw the kernels, and each threshold as a quantile of the kernel's output on `sample` (n, 12, time)."""
        generator = torch.Generator().manual_seed(seed)
        self.weights = []
        for _ in DILATIONS:
            weight = torch.randn(kernels, 12, 9, generator=generator)
            weight -= weight.mean(dim=2, keepdim=True)
            leads = torch.rand(kernels, 12, generator=generator).argsort(dim=1) < 3
            self.weights.append(weight * leads[..., None])
        share = torch.rand(len(DILATIONS), kernels, generator=generator)
        outputs = [self._out(torch.from_numpy(sample), k) for k in range(len(DILATIONS))]
        self.thresholds = [
            torch.stack([torch.quantile(out[:, j, ::5].flatten(), share[k, j]) for j in range(kernels)])
            for k, out in enumerate(outputs)
        ]

    def _out(self, windows: torch.Tensor, k: int) -> torch.Tensor:
        return torch.nn.functional.conv1d(windows, self.weights[k], dilation=DILATIONS[k], padding=4 * DILATIONS[k])

    @torch.inference_mode()
    def __call__(self, windows: np.ndarray) -> np.ndarray:
        """Return the features, (n, 2 * kernels * dilations)."""
        parts = []
        for begin in tqdm(range(0, len(windows), 32), desc="features", disable=None):
            piece = torch.from_numpy(windows[begin : begin + 32])
            row = []
            for k, threshold in enumerate(self.thresholds):
                out = self._out(piece, k)
                row += [(out > threshold[:, None]).float().mean(dim=2), out.amax(dim=2)]
            parts.append(torch.cat(row, dim=1))
        return torch.cat(parts).numpy()


def areas(labels: np.ndarray, scores: np.ndarray, groups: list[object]) -> dict[str, dict[str, float]]:
    """Return AUC per superclass and their mean, each with a 95 % bootstrap interval over patients."""

    def mean_auc(truth: np.ndarray, score: np.ndarray) -> float:
        return float(np.mean([auc(truth[:, k], score[:, k]) for k in range(truth.shape[1])]))

    wanted = {"macro": list(range(len(SUPERCLASSES)))} | {name: [k] for k, name in enumerate(SUPERCLASSES)}
    return {
        name: {
            key: round(value, 3)
            for key, value in bootstrap_interval(
                mean_auc, labels[:, columns], scores[:, columns], groups=groups, draws=500
            )
            .as_dict()
            .items()
        }
        for name, columns in wanted.items()
    }


def crossed(
    features: np.ndarray, labels: np.ndarray, folds: np.ndarray, more: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    """Return scores of real records from models that saw the other two thirds of the folds, and `more` if given."""
    scores = np.zeros(labels.shape)
    for third in range(3):
        test = folds % 3 == third
        train, known = features[~test], labels[~test]
        if more is not None:
            train, known = np.concatenate([train, more[0]]), np.concatenate([known, more[1]])
        scores[test] = linear_probe(train, known, features[test], strength=STRENGTH)
    return scores


STRENGTH = 0.002  # of the logistic regressions; set once, by synthetic ECGs alone


def run(root: Path, made: int, kernels: int, seed: int) -> dict[str, object]:
    """Return the areas of each pair of training and test set."""
    real, real_labels, index = read_real(root)
    synthetic, synthetic_labels = make_synthetic(made, seed)
    convolutions = RandomConvolutions(kernels, seed, synthetic[:64])
    features, made_features = convolutions(real), convolutions(synthetic)
    patients, numbers = index["patient_id"].tolist(), list(range(len(synthetic)))
    half = len(synthetic) // 2
    early, late = slice(0, half), slice(half, None)
    pairs = {
        "synthetic to real": (real_labels, linear_probe(made_features, synthetic_labels, features, strength=STRENGTH)),
        "real to real": (real_labels, crossed(features, real_labels, index["strat_fold"].to_numpy())),
        "real and synthetic to real": (
            real_labels,
            crossed(features, real_labels, index["strat_fold"].to_numpy(), (made_features, synthetic_labels)),
        ),
        "real to synthetic": (
            synthetic_labels,
            linear_probe(features, real_labels, made_features, strength=STRENGTH),
        ),
        "synthetic to synthetic": (
            synthetic_labels[late],
            linear_probe(made_features[early], synthetic_labels[early], made_features[late], strength=STRENGTH),
        ),
    }
    results = {
        name: areas(truth, scores, patients if name.endswith("real") else numbers[: len(truth)])
        for name, (truth, scores) in pairs.items()
    }
    return {
        "n": {"real": len(real), "patients": len(set(patients)), "synthetic": len(synthetic)},
        "with the superclass": {
            "real": dict(zip(SUPERCLASSES, real_labels.sum(axis=0).tolist(), strict=True)),
            "synthetic": dict(zip(SUPERCLASSES, synthetic_labels.sum(axis=0).tolist(), strict=True)),
        },
        "auc": results,
    }


def main() -> int:
    """Run the comparison; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=data_folder() / "results" / "synthetic_and_real.json")
    parser.add_argument("--synthetic", type=int, default=2000)
    parser.add_argument("--kernels", type=int, default=32, help="per dilation")
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    root = os.environ.get("ECGCHAT_REAL_DATA")
    if not root or not (Path(root) / "ptbxl" / "index.csv").is_file():
        print("Set ECGCHAT_REAL_DATA to the folder that holds ptbxl/index.csv", file=sys.stderr)
        return 2
    begun = time.perf_counter()
    found = run(Path(root), given.synthetic, given.kernels, given.seed)
    content = {
        "what": "AUC per superclass and their mean, 95 % bootstrap intervals over patients; z-scored leads, 0.5-40 Hz",
        "data": "PTB-XL 1.0.1, folds 1-9 (Wagner et al. 2020, doi 10.1038/s41597-020-0495-6), CC BY 4.0, 479 raw and "
        "1,625 processed records less those without a diagnosis; synthetic ECGs of the generator's version below",
        "generator_version": VERSION,
        "classifier": f"{given.kernels * len(DILATIONS)} random convolutions, two features each, logistic regressions",
        **found,
        "seed": given.seed,
        "seconds": round(time.perf_counter() - begun),
        "stamp": {
            "commit": git_commit(project_root()),
            "library_sha256": library_hash(),
            "device": device(),
            "versions": {k: v for k, v in versions().items() if k in ("python", "numpy", "scipy", "torch")},
        },
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = given.out.with_name(f".{given.out.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, given.out)
    for name, row in found["auc"].items():  # type: ignore[attr-defined]
        print(f"{name:28s}", *(f"{k} {v['value']:.3f} [{v['low']:.3f}, {v['high']:.3f}]" for k, v in row.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
