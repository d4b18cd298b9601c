"""What the mini ECG-CoCa learns from: real and synthetic ECGs, their measured numbers, their texts, and how they vary.

The real ones are PTB-XL's development records in the folder named by ECGCHAT_REAL_DATA. Raw and processed ones go
through one front end, the one that `embed_recordings` uses. Taught in: 07 §9.
"""

from __future__ import annotations

import lzma
import math
import os
import random
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from ecgchat_lib.augment import mask_time, muscle_noise, shift
from ecgchat_lib.coca.config import EcgEncoderConfig
from ecgchat_lib.coca.numbers import NUMBERS
from ecgchat_lib.coca.pairs import Batch
from ecgchat_lib.coca.preprocess import recording_windows
from ecgchat_lib.datasets.labels import SUPERCLASSES, superclasses
from ecgchat_lib.datasets.manifest import Manifest
from ecgchat_lib.datasets.ptbxl import TWINS, load_ptbxl
from ecgchat_lib.datasets.reports import PHRASES, clean_report, report_from_statements
from ecgchat_lib.datasets.synthetic import synthesize
from ecgchat_lib.ecg.measure import measure
from ecgchat_lib.ecg.recording import Recording, read_recording
from ecgchat_lib.errors import EcgChatError, MissingPartError
from ecgchat_lib.evaluate.zero_shot import PROMPTS

# The second of each pair of identical waveforms is left out.
REPEATED = tuple(f"{number:05d}" for _, number in TWINS)
SCAFFOLDS = ("{}", "ECG shows {}.", "The ECG shows {}.", "{} is present.")
Said = tuple[tuple[str, float], ...]  # statements with their likelihoods


class Windows(NamedTuple):
    """Windows (n, 12, samples), float16 mV, and the measured numbers (n, 8) of the same recordings, NaN if unknown."""

    ecg: torch.Tensor
    numbers: torch.Tensor


def measured_windows(recordings: Iterable[Recording], config: EcgEncoderConfig, *, measured: bool = True) -> Windows:
    """Return the encoder's windows of recordings, and what `ecg.measure` finds in them (unknown if not `measured`)."""
    windows, numbers = [], []
    for recording in recordings:
        windows.append(recording_windows([recording], config)[0].half())
        if not measured:
            numbers.append([math.nan] * len(NUMBERS))
            continue
        try:
            found = measure(recording)
            numbers.append([getattr(found, name) for name in NUMBERS])
        except EcgChatError:  # nothing to measure
            numbers.append([math.nan] * len(NUMBERS))
    empty = torch.zeros(0, 12, config.samples).half()
    return Windows(torch.stack(windows) if windows else empty, torch.tensor(numbers).reshape(-1, len(NUMBERS)))


def kept(path: Path, make: Callable[[], Windows], made_by: str) -> Windows:
    """Return what `make` makes, kept in `path` for the next call that names the same `made_by`."""
    if path.is_file():
        with np.load(path) as file:
            if str(file["made_by"]) == made_by:
                return Windows(torch.from_numpy(file["ecg"]), torch.from_numpy(file["numbers"]))
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("wb") as file:
        np.savez(file, ecg=made.ecg.numpy(), numbers=made.numbers.numpy(), made_by=made_by)
    os.replace(temporary, path)
    return made


def read_real(
    folder: Path, config: EcgEncoderConfig, cache: Path | None = None, *, measured: bool = True
) -> tuple[Manifest, Windows]:
    """Read PTB-XL's development records, folds 1–9: a manifest, and windows with measured numbers.

    Where a record is there both raw and processed, the raw one counts. The processed ones were band-passed and scaled
    per lead by their maker: their numbers in mV are in standard deviations.

    Args:
        folder: holds `index.csv`, `ptbxl_database.csv.gz`, `raw_500hz_wfdb.tar.xz`, `processed_125hz.npy.xz`.
        config: the encoder's front end.
        cache: where the windows are kept between runs.
        measured: measure them too, which takes most of the time.

    Raises:
        MissingPartError: a file is missing.
    """
    for name in ("index.csv", "ptbxl_database.csv.gz", "raw_500hz_wfdb.tar.xz", "processed_125hz.npy.xz"):
        if not (folder / name).is_file():
            raise MissingPartError(name, f"not in {folder}", "Set ECGCHAT_REAL_DATA to the folder above ptbxl/")
    index = pd.read_csv(folder / "index.csv")
    index["record"] = [f"{number:05d}" for number in index["ecg_id"]]
    index = index[~index["record"].isin(REPEATED)].sort_values("ecg_id").reset_index(drop=True)
    manifest = load_ptbxl(folder, require_files=False).set_index("record", drop=False).loc[index["record"]]

    def make() -> Windows:
        recordings = tqdm(_real_recordings(folder, index), "real", len(index), disable=None)
        return measured_windows(recordings, config, measured=measured)

    windows = make() if cache is None else kept(cache, make, f"real {config}{'' if measured else ' unmeasured'}")
    return manifest.reset_index(drop=True), windows


def _real_recordings(folder: Path, index: pd.DataFrame) -> Iterable[Recording]:
    processed = processed_signals(folder / "processed_125hz.npy.xz")
    with tempfile.TemporaryDirectory() as place:
        with tarfile.open(folder / "raw_500hz_wfdb.tar.xz") as archive:
            archive.extractall(place, filter="data")
        base = next(Path(place).rglob("records500")).parent
        columns = (index[name].tolist() for name in ("record", "has_raw500", "raw_path", "processed_row"))
        for record, raw, path, row in zip(*columns, strict=True):
            yield read_recording(base / path) if raw else Recording(record, processed[row], fs=125.0)


def processed_signals(path: Path) -> np.ndarray:
    """Undo the storage of the processed records, int16 second differences: float32 (1625, 12, 1250), z-scores."""
    with lzma.open(path) as file:
        differences = np.load(file)
    return (np.cumsum(np.cumsum(differences.astype(np.int32), -1), -1) / 500).astype(np.float32)


def read_synthetic(
    n: int, seed: int, config: EcgEncoderConfig, cache: Path | None = None
) -> tuple[list[Said], Windows]:
    """Return the statements of n synthetic ECGs, and their windows with measured numbers."""
    seeds = [seed * 1_000_000 + number for number in range(n)]
    statements = [synthesize(number, seconds=10.0).statements for number in seeds]

    def make() -> Windows:
        ecgs = (synthesize(number) for number in tqdm(seeds, "synthetic", disable=None))
        return measured_windows((Recording("", ecg.signal, fs=ecg.fs) for ecg in ecgs), config)

    return statements, make() if cache is None else kept(cache, make, f"synthetic {n} {seed} {config}")


def wordings(statements: Said, n: int, keep: float, seed: int) -> list[str]:
    """Return n texts of one record: the first says every statement, the others leave some out at random."""
    draw = random.Random(f"wordings {seed}")
    texts = [report_from_statements(statements, seed=seed)]
    for number in range(1, n):
        said = [item for item in statements if draw.random() < keep] or list(statements)
        texts.append(report_from_statements(said, seed=seed + 7919 * number))
    return texts


def published_report(report: str) -> list[str]:
    """Return the report as its hospital wrote it, tidied, as a list: empty if nothing is left."""
    text = clean_report(report)
    return [text] if text else []


def single_statements(said: Sequence[Said], least: int) -> tuple[list[tuple[str, ...]], torch.Tensor]:
    """Return phrases for each statement and superclass made by at least `least` records, and who makes it.

    Returns:
        The phrases of S statements, each in several scaffolds; and (n, S) booleans.
    """
    codes = [frozenset(code for code, _ in one) for one in said]
    asked: list[tuple[tuple[str, ...], list[bool]]] = []
    for code, phrases in PHRASES.items():
        asked.append((phrases, [code in one for one in codes]))
    groups = [frozenset(superclasses(one)) for one in codes]
    for name in SUPERCLASSES:
        asked.append((PROMPTS[name][:1], [name in one for one in groups]))
    frequent = [(phrases, made) for phrases, made in asked if sum(made) >= least]
    ways = [tuple(scaffold.format(phrase) for scaffold in SCAFFOLDS for phrase in phrases) for phrases, _ in frequent]
    return ways, torch.tensor([made for _, made in frequent]).T


def vary(batch: Batch, generator: torch.Generator, *, fs: float = 100.0) -> Batch:
    """Change a batch as recordings of the same heart may differ, and its measured numbers with it.

    Time is stretched by up to 8 %, each lead gets a gain, half of the records lose their millivolts as the processed
    ones have; then a shift, noise, gaps, and missing leads. Everything is relative to a lead's standard deviation.
    """
    ecg, numbers = _stretch(batch.ecg, batch.text.numbers, generator)
    gain = torch.exp(0.15 * torch.randn(len(ecg), 12, 1, generator=generator))
    deviation = ecg.std(dim=2, keepdim=True, correction=0).clamp_min(1e-6)
    lost = torch.rand(len(ecg), 1, 1, generator=generator) < 0.5
    gain = torch.where(lost, 1 / deviation, gain)
    ecg, numbers = ecg * gain, torch.cat([numbers[:, :5], numbers[:, 5:] * gain[:, 1]], dim=1)  # heights are lead II's
    ecg = shift(ecg, fs, generator, probability=0.8, seconds=1.0)
    size = torch.where(lost, torch.ones_like(deviation), deviation * gain)
    ecg = ecg + size * muscle_noise(torch.zeros_like(ecg), fs, generator, probability=0.6, size_mv=0.15)
    ecg = mask_time(ecg, fs, generator, probability=0.3, windows=3, seconds=(0.1, 0.4))
    hidden = torch.rand(len(ecg), 12, 1, generator=generator) < 0.4 * torch.rand(len(ecg), 1, 1, generator=generator)
    hidden &= torch.rand(len(ecg), 1, 1, generator=generator) < 0.5
    ecg = ecg.masked_fill(hidden, 0.0)
    numbers = torch.cat([numbers[:, :5], numbers[:, 5:].masked_fill(hidden[:, 1], math.nan)], dim=1)
    return batch._replace(ecg=ecg, text=batch.text._replace(numbers=_jitter(numbers, generator)))


def _stretch(ecg: torch.Tensor, numbers: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Stretch half of the records in time by up to 8 %; QTc goes with the root, as Bazett's formula has it.

    `augment.stretch` does it more exactly. This is what the shipped weights were trained with, so it stays until they
    are trained anew.
    """
    factor = torch.exp(0.08 * (2 * torch.rand(len(ecg), generator=generator) - 1))
    factor = torch.where(torch.rand(len(ecg), generator=generator) < 0.5, factor, 1.0)
    total = ecg.shape[2]
    place = torch.arange(total) / factor[:, None] + (total - 1) / 2 * (1 - 1 / factor[:, None])  # the middle stays
    left = place.floor().clamp(0, total - 2).long()
    weight = (place - left)[:, None]
    index = left[:, None].expand(-1, 12, -1)
    moved = ecg.gather(2, index) * (1 - weight) + ecg.gather(2, index + 1) * weight
    moved = moved.masked_fill(((place < 0) | (place > total - 1))[:, None], 0.0)
    scale = torch.stack([factor] * 4 + [factor.sqrt()], dim=1)
    return moved, torch.cat([numbers[:, :5] * scale, numbers[:, 5:]], dim=1)


def _jitter(numbers: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Move the numbers by about as much as two measurements of one recording differ."""
    noise = torch.randn(numbers.shape, generator=generator)
    times = numbers[:, :5] + noise[:, :5] * torch.tensor([1.5, 3.0, 2.0, 3.0, 3.0])
    return torch.cat([times, numbers[:, 5:] * (1 + 0.03 * noise[:, 5:])], dim=1)
