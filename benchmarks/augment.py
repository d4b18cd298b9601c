"""Measure how many ECGs a second are augmented: the course's batches, torch_ecg's augmenters, and a record at a time.

    python benchmarks/augment.py [--records 64] [--rounds 9] [--device cpu] [--out data/results/augment.json]

Run it with an interpreter that can import torch_ecg beside the course's packages, or its columns stay empty. The
methods take turns within each round, on one thread; a record at a time is plain numpy and scipy, and on a CPU only.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.signal import resample_poly

from ecgchat_lib import augment
from ecgchat_lib.course.provenance import device, git_commit, library_hash, versions
from ecgchat_lib.datasets.synthetic import synthesize
from ecgchat_lib.paths import data_folder, project_root

FS = 500
MATRIX = augment.electrode_matrix().numpy()
TIME = np.arange(5000, dtype=np.float32) / FS
SHARES = augment.Augment(FS)
METHODS = {
    "this course": "a batch at once, as in a training loop",
    "a record at a time": "the same steps with the same shares and sizes in numpy and scipy, float32, only for the "
    "records that are changed, then stacked; warping is linear between samples, and resampling scipy's resample_poly",
    "torch_ecg": "the augmenters of the same purpose, not in place: BaselineWanderAugmenter (four waves in each lead), "
    "RandomMasking (about four windows), StretchCompress (3 % at most, linear); together in one AugmenterManager",
    "torch_ecg, batches of one": "as in a data loader: one recording at a time, then stacked; at this size its shares "
    "are rounded, so that it masks and stretches hardly any",
}

Work = Callable[[], object]
Record = np.ndarray[Any, np.dtype[np.float32]]


# --- a record at a time ------------------------------------------------------------------------------------------


def add_wander(ecg: Record, rng: np.random.Generator) -> Record:
    """Three slow cosines at each electrode."""
    frequency, phase = rng.uniform(0.01, 0.2, (3, 1)), rng.uniform(0, 2 * np.pi, (3, 1))
    waves = np.cos((2 * np.pi * frequency).astype(np.float32) * TIME + phase.astype(np.float32))
    return ecg + (MATRIX @ rng.uniform(-0.25, 0.25, (9, 3)).astype(np.float32)) @ waves


def add_hum(ecg: Record, rng: np.random.Generator) -> Record:
    """50 or 60 Hz."""
    hum = np.cos(np.float32(2 * np.pi * rng.choice((50, 60))) * TIME + np.float32(rng.uniform(0, 2 * np.pi)))
    return ecg + (MATRIX @ rng.uniform(-0.03, 0.03, 9).astype(np.float32))[:, None] * hum


def add_muscle(ecg: Record, rng: np.random.Generator) -> Record:
    """White noise less itself 4 ms earlier."""
    white = rng.standard_normal((9, 5002), dtype=np.float32)
    size = rng.uniform(0, 0.02 / np.sqrt(2), 9).astype(np.float32)
    return ecg + (MATRIX * size) @ (white[:, 2:] - white[:, :-2])


def hide_moments(ecg: Record, rng: np.random.Generator) -> Record:
    """Four gaps in all leads."""
    ecg = ecg.copy()
    for length in rng.uniform(0.08 * FS, 0.18 * FS, 4):
        first = rng.uniform(0, 5000 - length)
        ecg[:, int(first) : int(first + length)] = 0
    return ecg


def hide_leads(ecg: Record, rng: np.random.Generator) -> Record:
    """One to three leads."""
    ecg = ecg.copy()
    ecg[rng.choice(12, rng.integers(1, 4), replace=False)] = 0
    return ecg


def change_size(ecg: Record, rng: np.random.Generator) -> Record:
    """One factor for all leads."""
    return ecg * np.float32(rng.uniform(0.9, 1.1))


def move(ecg: Record, rng: np.random.Generator) -> Record:
    """Half a second to either side at most."""
    by = int(rng.integers(-FS // 2, FS // 2 + 1))
    moved = np.zeros_like(ecg)
    moved[:, max(0, by) : 5000 + min(0, by)] = ecg[:, max(0, -by) : 5000 - max(0, by)]
    return moved


def _read_at(ecg: Record, place: Record) -> Record:
    grid = np.arange(5000)
    return np.stack([np.interp(place, grid, lead, 0, 0) for lead in ecg]).astype(np.float32)


def warp(ecg: Record, rng: np.random.Generator) -> Record:
    """Three half waves."""
    order = np.arange(1, 4)
    waves = np.sin(order[:, None] * np.linspace(0, np.pi, 5000))
    return _read_at(ecg, np.arange(5000) + (rng.uniform(-0.01, 0.01, 3) * 4999 / (np.pi * order)) @ waves)


def stretch(ecg: Record, rng: np.random.Generator) -> Record:
    """Three percent at most."""
    return _read_at(ecg, (np.arange(5000) - 2499.5) / rng.uniform(0.97, 1.03) + 2499.5)


def resample(ecg: Record, rng: np.random.Generator) -> Record:
    """To one of five lower rates and back."""
    up, down = ((1, 5), (32, 125), (2, 5), (1, 2), (18, 25))[rng.integers(5)]
    return resample_poly(resample_poly(ecg, up, down, axis=1), down, up, axis=1)[:, :5000].astype(np.float32)


PER_RECORD: dict[str, Callable[[Record, np.random.Generator], Record]] = {
    "scale": change_size,
    "warp": warp,
    "stretch": stretch,
    "shift": move,
    "baseline_wander": add_wander,
    "powerline": add_hum,
    "muscle_noise": add_muscle,
    "resample": resample,
    "mask_time": hide_moments,
    "mask_leads": hide_leads,
}


def per_record(signals: list[Record], shares: dict[str, float], rng: np.random.Generator) -> torch.Tensor:
    """Return the batch that a loader would make."""
    changed = []
    for signal in signals:
        one = signal.copy()
        for name, share in shares.items():
            if rng.random() < share:
                one = PER_RECORD[name](one, rng)
        changed.append(one)
    return torch.from_numpy(np.stack(changed))


# --- torch_ecg ---------------------------------------------------------------------------------------------------


def load_torch_ecg() -> Any:
    """Return its module of augmenters, or None where it isn't installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch_ecg import augmenters
    except ImportError:
        return None
    return augmenters


def torch_ecg_augmenters(module: Any, shares: dict[str, float]) -> dict[str, Any]:
    """Return its augmenters under our names."""
    kept: dict[str, Any] = {"inplace": False}
    return {
        "baseline_wander": module.BaselineWanderAugmenter(FS, prob=shares["baseline_wander"], **kept),
        "mask_time": module.RandomMasking(FS, prob=[shares["mask_time"], 0.075], **kept),
        "stretch": module.StretchCompress(ratio=0.015, prob=shares["stretch"], **kept),
    }


# --- measuring ---------------------------------------------------------------------------------------------------


def ours(ecg: torch.Tensor, source: torch.Generator) -> dict[str, Work]:
    """Return each augmentation of the course, of every record."""
    with_rate = {"baseline_wander", "powerline", "muscle_noise", "mask_time", "shift", "resample"}
    works: dict[str, Work] = {}
    for name in PER_RECORD:
        given = (ecg, FS, source) if name in with_rate else (ecg, source)
        works[name] = partial(getattr(augment, name), *given, probability=1.0)
    return works


def gather(ecg: torch.Tensor, seed: int) -> dict[str, dict[str, Work]]:
    """Return what is measured: case → method → work."""
    source, rng = torch.Generator(device=ecg.device).manual_seed(seed), np.random.default_rng(seed)
    signals, labels = list(ecg.cpu().numpy()), torch.zeros(len(ecg), 1)
    cases: dict[str, dict[str, Work]] = {name: {"this course": work} for name, work in ours(ecg, source).items()}
    off = dict.fromkeys(PER_RECORD, 0.0)
    three = off | {"baseline_wander": 0.5, "mask_time": 0.3, "stretch": 0.2}
    chains = {"three together": three, "all, default shares": {name: getattr(SHARES, name) for name in PER_RECORD}}
    for name, shares in chains.items():
        cases[name] = {"this course": partial(augment.Augment(FS, **shares), ecg, source)}
    if ecg.device.type == "cpu":
        for name, work in cases.items():
            work["a record at a time"] = partial(per_record, signals, chains.get(name, {name: 1.0}), rng)
    module = load_torch_ecg()
    if module is not None:
        for name, one in torch_ecg_augmenters(module, dict.fromkeys(three, 1.0)).items():
            cases[name]["torch_ecg"] = partial(one, ecg, labels)
        manager = module.AugmenterManager(*torch_ecg_augmenters(module, three).values())
        cases["three together"]["torch_ecg"] = partial(manager, ecg, labels)
        cases["three together"]["torch_ecg, batches of one"] = lambda: torch.cat(
            [manager(one[None], label[None])[0] for one, label in zip(ecg, labels, strict=True)]
        )
    return cases


def rounds(works: dict[str, Work], count: int, on: torch.device) -> Iterator[tuple[str, float, float]]:
    """Yield method, seconds by the clock, and seconds of the processor; the methods take turns, after a warm-up."""
    for number in range(-1, count):
        for name, work in works.items():
            clock, processor = time.perf_counter(), time.process_time()
            work()
            if on.type == "cuda":
                torch.cuda.synchronize(on)
            if number >= 0:
                yield name, time.perf_counter() - clock, time.process_time() - processor


def summary(values: list[float], digits: int) -> dict[str, float]:
    """Return the median and the quartiles."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return {
        "lower_quartile": round(float(low), digits),
        "median": round(float(middle), digits),
        "upper_quartile": round(float(high), digits),
    }


def measure_case(works: dict[str, Work], records: int, count: int, on: torch.device) -> dict[str, Any]:
    """Return records per second of each method, and how many times those of each other one the course's are."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for name, clock, processor in rounds(works, count, on):
        seconds[name].append((clock, processor))
    found: dict[str, Any] = {}
    for name, pairs in seconds.items():
        found[name] = {}
        for kind, each, first in zip(
            ("by_the_clock", "by_cpu_seconds"), np.transpose(pairs), np.transpose(seconds["this course"]), strict=True
        ):
            found[name][kind] = {"records_per_second": summary(list(records / each), 1)}
            if name != "this course":
                found[name][kind]["course_is_times_as_fast"] = summary(list(each / first), 1)
    return found


def main() -> None:
    """Measure, print a line per case and method, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=64, help="records per batch")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=data_folder() / "results" / "augment.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    on = torch.device(given.device)
    ecg = torch.from_numpy(np.stack([synthesize(k).signal for k in range(given.records)])).to(on)
    there = load_torch_ecg() is not None
    cases = {name: measure_case(works, given.records, given.rounds, on) for name, works in gather(ecg, seed=0).items()}
    content = {
        "what": "12 leads of 10 s at 500 Hz, float32; single augmentations of every record, chains at their shares",
        "records": given.records,
        "rounds": given.rounds,
        "threads": 1,
        "machine": "shared with other programs; cpu seconds are those of this process, ratios are within one round",
        "methods": METHODS if there else {name: METHODS[name] for name in list(METHODS)[:2]},
        "torch_ecg": version("torch_ecg") if there else "not installed: not run",
        "shares": {name: getattr(SHARES, name) for name in PER_RECORD},
        "cases": cases,
        "stamp": {
            "commit": git_commit(project_root()),
            "library_sha256": library_hash(),
            "device": device() if on.type == "cpu" else torch.cuda.get_device_name(on),
            "versions": {k: v for k, v in versions().items() if k in ("python", "numpy", "scipy", "torch")},
        },
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = given.out.with_suffix(".partial")
    unfinished.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(unfinished, given.out)
    for case, methods in cases.items():
        for name, found in methods.items():
            speed = found["by_cpu_seconds"]["records_per_second"]["median"]
            faster = found["by_cpu_seconds"].get("course_is_times_as_fast", {}).get("median", "")
            print(f"{case:20} {name:26} {speed:9.0f} records/s of CPU  {faster}")
    print("torch_ecg:", content["torch_ecg"])


if __name__ == "__main__":
    main()
