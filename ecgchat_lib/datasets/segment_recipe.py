"""Train the segmenting network of `ecg/segment.py` on LUDB's marks and on synthetic ECGs, whose marks are known.

    python -m ecgchat_lib.datasets.segment_recipe LUDB_DATA_FOLDER [--cross-validate 5] [--out data/weights]

Cross-validation trains on four fifths of the records and measures the rest with the whole of `ecg/measure.py`; its
figures are the ones to quote, and nothing else was chosen by the shipped weights. Each member of the network is kept as
it ends, so a run that was cut off goes on with the next. This module needs torch; using the network doesn't. Taught
in: 03 §3.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from ecgchat_lib.datasets.synthetic import VERSION, synthesize
from ecgchat_lib.ecg.leads import LEADS
from ecgchat_lib.ecg.marks import WAVES, WaveMarks, read_marks
from ecgchat_lib.ecg.measure import analyze
from ecgchat_lib.ecg.recording import Recording, read_recording
from ecgchat_lib.ecg.segment import (
    CLASSES,
    SEGMENT_FS,
    WEIGHTS,
    Layers,
    SegmentingNetwork,
    segment_input,
    segment_signal,
    without_spikes,
)
from ecgchat_lib.errors import MissingPartError
from ecgchat_lib.paths import data_folder, output_folder

INTERVALS = ("rr_ms", "pr_ms", "qrs_ms", "qt_ms")


@dataclass(frozen=True)
class SegmentConfig:
    """Every size of the recipe."""

    widths: tuple[int, ...] = (24, 32, 40, 48, 48)  # channels at 125, 62.5, 31.25, 15.6 and 7.8 Hz
    kernel: int = 7  # samples that a convolution sees; odd
    members: int = 3  # networks whose probabilities are averaged
    epochs: int = 30  # passes over all leads of all real records
    batch: int = 16  # real strips in a batch
    synthetic_batch: int = 4  # synthetic strips beside them
    strip: int = 1280  # samples in a strip: 5.12 s
    synthetic: int = 300  # synthetic records
    synthetic_weight: float = 0.5  # of a synthetic strip's loss against a real one's
    learning_rate: float = 4e-3
    weight_decay: float = 1e-2
    warm_up: float = 0.15  # of all steps
    averaging: float = 0.995  # decay of the running mean of the weights, which is what is kept
    seed: int = 0


class SegmentNet(nn.Module):
    """The network with the normalization that training needs; layer for layer the one of `ecg/segment.py`."""

    def __init__(self, config: SegmentConfig) -> None:
        super().__init__()
        widths, kernel = config.widths, config.kernel
        inputs = (1, *widths[:-1])
        self.down = nn.ModuleList(_layer(a, b, kernel, 2) for a, b in zip(inputs, widths, strict=True))
        self.encode = nn.ModuleList(_layer(b, b, kernel) for b in widths)
        self.up = nn.ModuleList(_layer(b, a, 3) for a, b in pairwise(widths))
        self.decode = nn.ModuleList(_layer(a, a, kernel) for a in widths[:-1])
        self.head = nn.Conv1d(widths[0], 2 * len(CLASSES), kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `(batch, 4, time)` for leads `(batch, 1, time)`; time is a multiple of 2**levels."""
        kept = []
        for down, encode in zip(self.down, self.encode, strict=True):
            x = down(x)
            x = x + encode(x)
            kept.append(x)
        for level in reversed(range(len(self.up))):
            x = self.up[level](x).repeat_interleave(2, dim=-1) + kept[level]
            x = x + self.decode[level](x)
        scores = self.head(x)  # (batch, 4 classes * 2 samples, time / 2)
        batch, _, half = scores.shape
        return scores.view(batch, len(CLASSES), 2, half).transpose(2, 3).reshape(batch, len(CLASSES), 2 * half)

    def layers(self) -> Layers:
        """Return the weights for `SegmentingNetwork`, with the normalization multiplied in."""
        folded: Layers = {}
        for name in ("down", "encode", "up", "decode"):
            for level, (convolution, norm, _) in enumerate(getattr(self, name)):
                gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
                weight, bias = convolution.weight * gain[:, None, None], norm.bias - norm.running_mean * gain
                folded[f"{name}.{level}"] = (weight.detach().numpy(), bias.detach().numpy())
        weight, bias = (value.detach().numpy() for value in self.head.parameters())
        folded["head"] = (weight, bias)
        return folded


def _layer(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv1d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm1d(outputs), nn.ReLU())


# --- what is learned from ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Strips:
    """Leads and what they show.

    Attributes:
        x: float32 `(lead, time)`, from `segment_input`.
        y: float32 `(lead, 4, time)`: how much of each sample belongs to each class.
        weight: float32 `(lead, time)`: 0 where nobody marked anything.
    """

    x: NDArray[np.float32]
    y: NDArray[np.float32]
    weight: NDArray[np.float32]


def coverage(marks: WaveMarks, time: int, fs: float) -> NDArray[np.float32]:
    """Return how much of each sample at `SEGMENT_FS` each class covers, `(4, time)`; the four add up to 1.

    Args:
        marks: of one lead, in samples at `fs`.
        time: samples at `SEGMENT_FS`.
        fs: Hz.
    """
    covered = np.zeros((len(CLASSES), time))
    for name in WAVES:
        for on, _, off in marks.wave(name) * SEGMENT_FS / fs:
            if np.isfinite(on) and np.isfinite(off):
                near = np.arange(max(int(on) - 1, 0), min(int(off) + 3, time))
                part = np.minimum(near + 0.5, off) - np.maximum(near - 0.5, on)
                covered[CLASSES.index(name), near] += np.clip(part, 0, 1)
    covered = np.clip(covered, 0, 1)
    covered[0] = np.clip(1 - covered[1:].sum(axis=0), 0, 1)
    return (covered / covered.sum(axis=0)).astype(np.float32)


def marked_stretch(marks: WaveMarks, time: int, fs: float) -> NDArray[np.float32]:
    """Return 1 from the first to the last mark of a lead and 0 elsewhere, `(time,)`: beyond, waves go unmarked."""
    weight = np.zeros(time, dtype=np.float32)
    every = np.concatenate([marks.wave(name).ravel() for name in WAVES])
    if np.isfinite(every).any():
        first, last = np.nanmin(every) * SEGMENT_FS / fs, np.nanmax(every) * SEGMENT_FS / fs
        weight[max(int(first) - 2, 0) : int(last) + 3] = 1
    return weight


def strips(signal: NDArray[np.float32], fs: float, marks: Sequence[WaveMarks], loss_weight: float = 1.0) -> Strips:
    """Return the twelve leads of one recording, ready to learn from."""
    x = segment_input(segment_signal(without_spikes(signal, fs), fs))
    time = x.shape[-1]
    y = np.stack([coverage(one, time, fs) for one in marks])
    return Strips(x, y, loss_weight * np.stack([marked_stretch(one, time, fs) for one in marks]))


def read_ludb(folder: Path) -> dict[int, tuple[Recording, list[WaveMarks]]]:
    """Read LUDB's records with the marks of each lead.

    Args:
        folder: LUDB's `data/`, with 1.hea, 1.dat, 1.i, 1.ii and so on.

    Returns:
        Number to recording and twelve leads' marks, in samples of the recording.

    Raises:
        MissingPartError: there is no such record.
    """
    numbers = sorted(int(path.stem) for path in Path(folder).glob("*.hea") if path.stem.isdigit())
    if not numbers:
        raise MissingPartError(str(folder), "no records of LUDB", "Name its data folder; ecgchat data fetch ludb")
    return {
        number: (
            read_recording(Path(folder) / str(number)),
            [read_marks(Path(folder) / str(number), lead.lower()) for lead in LEADS],
        )
        for number in numbers
    }


def synthetic_strips(config: SegmentConfig) -> list[Strips]:
    """Return synthetic recordings' leads with the marks that the generator knows."""
    made = []
    for number in tqdm(range(config.synthetic), desc="synthetic", disable=None):
        ecg = synthesize(50_000 + number)
        marks = [ecg.lead_marks(lead) for lead in LEADS]
        made.append(strips(ecg.signal, ecg.fs, marks, config.synthetic_weight))
    return made


# --- learning ----------------------------------------------------------------------------------------------------


def disturb(strip: NDArray[np.float32], draw: np.random.Generator) -> NDArray[np.float32]:
    """Return a strip with another size, sometimes upside down, with noise, drift and hum; no wave is moved."""
    turns = 2 * np.pi * np.arange(len(strip)) / SEGMENT_FS
    changed = strip * np.exp(draw.normal(0, 0.3)) * (1 if draw.random() < 0.7 else -1)
    changed = changed + draw.choice([0, 0.02, 0.05, 0.1, 0.2]) * draw.standard_normal(len(strip))
    for chance, most, frequencies in ((0.5, 0.4, (0.1, 0.7)), (0.1, 0.15, (50, 50)), (0.1, 0.15, (60, 60))):
        if draw.random() < chance:
            phase = draw.uniform(*frequencies) * turns + draw.uniform(0, 2 * np.pi)
            changed = changed + draw.uniform(0, most) * np.sin(phase)
    return changed.astype(np.float32)


def _stretched(rows: NDArray[np.float32], speed: float) -> NDArray[np.float32]:
    """Return rows `(row, time)` played at another speed; what lies beyond their end is 0."""
    place = np.arange(rows.shape[-1]) * speed
    low = np.minimum(place.astype(int), rows.shape[-1] - 2)
    part = (place - low).astype(np.float32)
    mixed = rows[:, low] * (1 - part) + rows[:, low + 1] * part
    return np.where(place <= rows.shape[-1] - 1, mixed, 0)


def draw_strip(source: Strips, lead: int, length: int, draw: np.random.Generator) -> NDArray[np.float32]:
    """Return a disturbed strip with its classes and weight, `(1 + 4 + 1, length)`."""
    start = int(draw.integers(0, source.x.shape[-1] - length + 1))
    cut = slice(start, start + length)
    rows = np.concatenate(
        [disturb(source.x[lead, cut], draw)[None], source.y[lead, :, cut], source.weight[lead, None, cut]]
    )
    return _stretched(rows, draw.uniform(0.85, 1.18)) if draw.random() < 0.5 else rows


def batches(
    real: Sequence[Strips], synthetic: Sequence[Strips], config: SegmentConfig, draw: np.random.Generator
) -> Iterator[Tensor]:
    """Yield one epoch of batches `(batch, 6, strip)`: every lead of every real record once, and synthetic leads."""
    order = draw.permutation(len(real) * len(LEADS))
    for first in range(0, len(order) - config.batch + 1, config.batch):
        chosen = [(real[int(k) // len(LEADS)], int(k) % len(LEADS)) for k in order[first : first + config.batch]]
        if synthetic:
            numbers = draw.integers(0, len(synthetic), config.synthetic_batch)
            leads = draw.integers(0, len(LEADS), config.synthetic_batch)
            chosen += [(synthetic[int(number)], int(lead)) for number, lead in zip(numbers, leads, strict=True)]
        yield torch.from_numpy(np.stack([draw_strip(one, lead, config.strip, draw) for one, lead in chosen]))


def segment_loss(scores: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Return the cross entropy against the coverage, over the marked samples.

    Args:
        scores: `(batch, 4, time)`.
        y: `(batch, 4, time)`, adds up to 1 over the classes.
        weight: `(batch, time)`.
    """
    each = -(y * functional.log_softmax(scores, dim=1)).sum(dim=1)
    return (each * weight).sum() / weight.sum().clamp_min(1.0)


def train_member(
    real: Sequence[Strips], synthetic: Sequence[Strips], config: SegmentConfig, seed: int, label: str = "member"
) -> Layers:
    """Train one network and return the running mean of its weights.

    Args:
        real: recordings with cardiologists' marks; may be empty only if `synthetic` isn't: then it takes its place.
        synthetic: recordings with known marks; may be empty.
        config: the sizes.
        seed: of this member.
        label: shown with the progress.
    """
    real, synthetic = (real, synthetic) if real else (synthetic, ())
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    net = SegmentNet(config)
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    steps = config.epochs * (len(real) * len(LEADS) // config.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=steps, pct_start=config.warm_up
    )
    follow = _running_mean(config.averaging)
    mean = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=follow, use_buffers=True)
    with tqdm(total=steps, desc=label, disable=None) as bar:
        for _ in range(config.epochs):
            for batch in batches(real, synthetic, config, draw):
                loss = segment_loss(net(batch[:, :1]), batch[:, 1:5], batch[:, 5])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                mean.update_parameters(net)
                bar.update()
                bar.set_postfix_str(f"loss {loss.item():.3f}")
    return mean.module.layers()  # type: ignore[operator]


def _running_mean(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """Return a running mean that follows quickly at first."""

    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], updates: Tensor | int) -> None:
        now = float(updates)
        follow = 1 - min(decay, (now + 1) / (now + 11))
        with torch.no_grad():
            for old, new in zip(averaged, current, strict=True):
                if old.dtype.is_floating_point:
                    old.lerp_(new.to(old.dtype), follow)
                else:
                    old.copy_(new)

    return update


def save_network(members: Sequence[Layers], path: Path, metadata: dict[str, str]) -> None:
    """Write the members as one safetensors file of 16-bit numbers, whole or not at all."""
    tensors = {}
    for number, layers in enumerate(members):
        for name, (weight, bias) in layers.items():
            tensors[f"{number}.{name}.weight"] = np.ascontiguousarray(weight.astype(np.float16))
            tensors[f"{number}.{name}.bias"] = np.ascontiguousarray(bias.astype(np.float16))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    save_file(tensors, partial, metadata)
    os.replace(partial, path)


# --- measuring what was learned ----------------------------------------------------------------------------------


def marked_intervals(marks: WaveMarks, fs: float) -> dict[str, float]:
    """Return RR, PR, QRS and QT of one lead's marks in ms, each the median over the beats; NaN where none is marked.

    Args:
        marks: every wave of a lead, in samples at `fs`.
        fs: Hz.
    """
    pr, qrs, qt = [], [], []
    for k, (onset, peak, offset) in enumerate(marks.qrs):
        qrs.append(offset - onset)
        before = marks.qrs[k - 1, 1] if k else -np.inf
        after = marks.qrs[k + 1, 1] if k + 1 < len(marks.qrs) else np.inf
        pr += [onset - p[0] for p in marks.p[(marks.p[:, 1] > before) & (marks.p[:, 1] < peak)][-1:]]
        qt += [t[2] - onset for t in marks.t[(marks.t[:, 1] > peak) & (marks.t[:, 1] < after)][:1]]
    lists = [np.array(values, dtype=float) for values in (np.diff(marks.qrs[:, 1]), pr, qrs, qt)]
    return {
        name: float(np.nanmedian(values)) * 1000 / fs if np.isfinite(values).any() else np.nan
        for name, values in zip(INTERVALS, lists, strict=True)
    }


def compare(
    records: dict[int, tuple[Recording, list[WaveMarks]]], network: SegmentingNetwork | None = None
) -> dict[int, dict[str, tuple[float, float]]]:
    """Return, for each record and interval, what was measured and what the marks of lead II say, in ms.

    Args:
        records: from `read_ludb`.
        network: what to measure with; the shipped one if None, which was trained on these very records.
    """
    result = {}
    for number, (recording, marks) in records.items():
        found = analyze(recording, network).measurements
        marked = marked_intervals(marks[LEADS.index("II")], recording.fs)
        result[number] = {name: (getattr(found, name), marked[name]) for name in INTERVALS}
    return result


def summarize(pairs: dict[int, dict[str, tuple[float, float]]]) -> dict[str, dict[str, float | int]]:
    """Return, for each interval, n, the errors in ms (mean absolute with its interval, bias …) and what lacks."""
    summary: dict[str, dict[str, float | int]] = {}
    for name in INTERVALS:
        found, marked = np.array([row[name] for row in pairs.values()]).T
        errors = (found - marked)[np.isfinite(found) & np.isfinite(marked)]
        size = np.abs(errors)
        draw = np.random.default_rng(0).integers(0, len(size), (2000, len(size)))
        low, high = np.percentile(size[draw].mean(axis=1), (2.5, 97.5))
        figures = {
            "mean_absolute_ms": size.mean(),
            "mean_absolute_low_ms": low,
            "mean_absolute_high_ms": high,
            "median_absolute_ms": np.median(size),
            "bias_ms": errors.mean(),
            "sd_ms": errors.std(ddof=1),
            "worst_ms": size.max(),
        }
        summary[name] = {
            "n": len(errors),
            **{key: round(float(value), 1) for key, value in figures.items()},
            "marked_but_not_measured": int((np.isfinite(marked) & ~np.isfinite(found)).sum()),
            "measured_but_not_marked": int((np.isfinite(found) & ~np.isfinite(marked)).sum()),
        }
    return summary


def cross_validate(
    records: dict[int, tuple[Recording, list[WaveMarks]]],
    synthetic: Sequence[Strips],
    config: SegmentConfig,
    folds: int,
    work: Path,
) -> dict[int, dict[str, tuple[float, float]]]:
    """Measure each record with a network that was trained on the other folds' records and the synthetic ones.

    Args:
        records: from `read_ludb`; record k is in fold k mod `folds`.
        synthetic: from `synthetic_strips`.
        config: the sizes.
        folds: how many parts.
        work: folder where each trained network is kept, so that a run that was cut off goes on.
    """
    pairs: dict[int, dict[str, tuple[float, float]]] = {}
    for fold in range(folds):
        inside = {number: record for number, record in records.items() if number % folds != fold}
        outside = {number: record for number, record in records.items() if number % folds == fold}
        network = train_network(inside, synthetic, config, work / f"fold{fold}of{folds}")
        pairs |= compare(outside, network)
        print(f"fold {fold + 1} of {folds}:", json.dumps(summarize(pairs)), flush=True)
    return dict(sorted(pairs.items()))


def train_network(
    records: dict[int, tuple[Recording, list[WaveMarks]]],
    synthetic: Sequence[Strips],
    config: SegmentConfig,
    work: Path,
) -> SegmentingNetwork:
    """Train all members, or take those that are in the folder `work` already."""
    real = [strips(recording.signal, recording.fs, marks) for recording, marks in records.values()]
    members = []
    for number in range(config.members):
        path = work / f"member{number}.safetensors"
        if not path.is_file():
            seed = config.seed * 1000 + number
            layers = train_member(real, synthetic, config, seed, f"{work.name}, member {number + 1}")
            save_network([layers], path, {})
        members.append(_read_member(path))
    return SegmentingNetwork(tuple(members))


def _read_member(path: Path) -> Layers:
    tensors = {name.removeprefix("0."): value.astype(np.float32) for name, value in load_file(path).items()}
    names = sorted({name.rpartition(".")[0] for name in tensors})
    return {name: (tensors[f"{name}.weight"], tensors[f"{name}.bias"]) for name in names}


CARD = """# ecg-segment-mini

Says, 250 times a second, whether a lead shows nothing, a P wave, a QRS complex or a T wave.
`ecgchat_lib/ecg/segment.py` runs it with numpy; notebook 03 teaches it.

- **What**: {members} one-dimensional U-Nets of {numbers:,} numbers each (16 bits), whose probabilities are averaged;
  channels {widths}, kernel {kernel}.
- **Data**: LUDB 1.0.1, records {records}, all twelve leads as single strips, with the cardiologists' marks
  (Kalyakulina et al. 2020, doi:10.1109/ACCESS.2020.3029211); and {synthetic} synthetic ECGs with known marks
  (generator version {version}).
- **License**: ODC-By 1.0, as LUDB. Attribution: LUDB, Kalyakulina A, et al., PhysioNet.
- **Recipe**: `python -m ecgchat_lib.datasets.segment_recipe LUDB_DATA_FOLDER --cross-validate {folds}`; {epochs}
  epochs, seed {seed}, one thread. The same processor and versions give the same weights; others, very similar ones.

## How good

{folds}-fold cross-validation over {n} records: each was measured, with the whole of `ecg/measure.py`, by a network that
never saw it. Differences from the cardiologists' marks of lead II in ms, medians over each record's beats; 95 %
interval by bootstrap over records. The configuration was settled while looking at cross-validated errors of earlier
versions on the same records, so the figures may be a little too good.

| interval | n | mean absolute | median absolute | bias | standard deviation | worst | marked, not measured |
| --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

## Limits

Seen: adults at rest, 10 s at 500 Hz, mostly sinus rhythm; the rarer rhythms and blocks only as synthetic ECGs. Not
seen: children, exercise, long recordings, heavy noise. QT errs most where a U wave or a flat T wave leaves the end
open; the cardiologists' marks themselves vary from beat to beat by some 10 ms. For learning, not for diagnosis.
"""


def write_card(
    path: Path,
    network: SegmentingNetwork,
    config: SegmentConfig,
    records: Sequence[int],
    folds: int,
    pairs: dict[int, dict[str, tuple[float, float]]],
) -> None:
    """Write the model card from what was trained and measured.

    Args:
        path: the card.
        network: as trained.
        config: the sizes.
        records: numbers of the records it was trained on.
        folds: of the cross-validation.
        pairs: what the cross-validation measured.
    """
    rows = [
        f"| {name.removesuffix('_ms').upper()} | {row['n']} | {row['mean_absolute_ms']} "
        f"({row['mean_absolute_low_ms']} to {row['mean_absolute_high_ms']}) | {row['median_absolute_ms']} | "
        f"{row['bias_ms']} | {row['sd_ms']} | {row['worst_ms']} | {row['marked_but_not_measured']} |"
        for name, row in summarize(pairs).items()
    ]
    text = CARD.format(
        members=len(network.members),
        numbers=sum(weight.size + bias.size for weight, bias in network.members[0].values()),
        widths=", ".join(map(str, config.widths)),
        kernel=config.kernel,
        records=f"{min(records)}–{max(records)}",
        synthetic=config.synthetic,
        version=VERSION,
        folds=folds,
        epochs=config.epochs,
        seed=config.seed,
        n=len(pairs),
        rows="\n".join(rows),
    )
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def main() -> None:
    """Train and cross-validate; write weights, card and what the cross-validation measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("ludb", type=Path, help="LUDB's data folder")
    parser.add_argument("--cross-validate", type=int, default=5, metavar="FOLDS", help="how many parts")
    parser.add_argument("--out", type=Path, default=data_folder() / "weights", help="where the weights go")
    parser.add_argument("--work", type=Path, default=output_folder() / "segment", help="where unfinished work is kept")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config, folds = SegmentConfig(), options.cross_validate
    records, synthetic = read_ludb(options.ludb), synthetic_strips(config)
    pairs = cross_validate(records, synthetic, config, folds, options.work)
    kept = {"config": asdict(config), "folds": folds, "generator": VERSION, "pairs": pairs}
    (options.work / "cross_validation.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")
    network = train_network(records, synthetic, config, options.work / "all")
    metadata = {"config": json.dumps(asdict(config)), "generator": str(VERSION), "ludb": "1.0.1, records 1-50"}
    save_network(network.members, options.out / WEIGHTS, metadata)
    card = (options.out / WEIGHTS).with_name("README.md")
    write_card(card, network, config, list(records), folds, pairs)
    print(options.out / WEIGHTS)


if __name__ == "__main__":
    main()
