"""Compare `ecgchat_lib.ecg.measure` with the cardiologists' marks of LUDB, lead II, and write what comes out.

    ECGCHAT_REAL_DATA=<folder> python benchmarks/measure.py [--out data/results/measure_ludb.json]

The folder holds `ludb/ludb_1_50_wfdb.tar.xz`. Records 1–25 chose the constants of `delineate.py`; 26–50 didn't, and are
the ones to quote. The reference of an interval is the median over the marked beats of the record.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import wfdb

from ecgchat_lib.course.provenance import device, git_commit, library_hash, versions
from ecgchat_lib.ecg.measure import MEASURING_FS, measure, typical_beat
from ecgchat_lib.ecg.recording import Recording, read_recording
from ecgchat_lib.paths import data_folder, project_root

FIELDS = ("rr_ms", "pr_ms", "qrs_ms", "qt_ms")
SPLITS = {"records 1-25 (chose the constants)": range(1, 26), "records 26-50 (untouched)": range(26, 51)}


def reference(record: Path, fs: float) -> dict[str, float]:
    """Return RR, PR, QRS and QT of lead II from the marks, each the median over the beats, in ms; NaN if not marked."""
    marks = wfdb.rdann(str(record), "ii")
    waves: list[tuple[str, int | None, int, int | None]] = []
    for k, symbol in enumerate(marks.symbol):
        if symbol in "pNt":
            on = marks.sample[k - 1] if k > 0 and marks.symbol[k - 1] == "(" else None
            closed = k + 1 < len(marks.symbol) and marks.symbol[k + 1] == ")"
            waves.append((symbol, on, marks.sample[k], marks.sample[k + 1] if closed else None))
    spans: dict[str, list[float]] = {name: [] for name in FIELDS}
    spans["rr_ms"] = list(np.diff([peak for symbol, _, peak, _ in waves if symbol == "N"]))
    for k, (symbol, on, _, off) in enumerate(waves):
        if symbol != "N" or on is None:
            continue
        if off is not None:
            spans["qrs_ms"].append(off - on)
        if k > 0 and waves[k - 1][0] == "p" and (p_on := waves[k - 1][1]) is not None:
            spans["pr_ms"].append(on - p_on)
        if k + 1 < len(waves) and waves[k + 1][0] == "t" and (t_off := waves[k + 1][3]) is not None:
            spans["qt_ms"].append(t_off - on)
    return {name: float(np.median(values)) * 1000 / fs if values else np.nan for name, values in spans.items()}


def rr_of_marked_beats(recording: Recording, record: Path) -> float:
    """Return the median RR in ms of those found beats that are marked: the marks leave out first and last beats."""
    marks = wfdb.rdann(str(record), "ii")
    marked = (
        np.array([at for at, symbol in zip(marks.sample, marks.symbol, strict=True) if symbol == "N"]) / recording.fs
    )
    _, beat = typical_beat(recording)
    if beat is None:
        return np.nan
    found = np.sort(beat.positions) / MEASURING_FS
    nearest = found[np.abs(found[:, None] - marked[None, :]).argmin(axis=0)]
    return float(np.median(np.diff(nearest))) * 1000


def summary(errors: np.ndarray, absent: int, invented: int) -> dict[str, float | int]:
    """Return n, mean and median absolute error, bias, standard deviation and worst error of the finite errors."""
    known = errors[np.isfinite(errors)]
    rounded = {
        "mean_absolute_ms": np.abs(known).mean(),
        "median_absolute_ms": np.median(np.abs(known)),
        "bias_ms": known.mean(),
        "sd_ms": known.std(ddof=1),
        "worst_ms": np.abs(known).max(),
    }
    return {
        "n": len(known),
        **{name: round(float(value), 1) for name, value in rounded.items()},
        "marked_but_not_measured": absent,
        "measured_but_not_marked": invented,
    }


def compare(folder: Path) -> tuple[dict[str, dict[str, dict[str, float | int]]], list[float]]:
    """Return the summaries by split and field, and the seconds that each record took to measure."""
    seconds: list[float] = []
    result: dict[str, dict[str, dict[str, float | int]]] = {}
    for split, numbers in SPLITS.items():
        pairs, same_beats = [], []
        for number in numbers:
            recording = read_recording(folder / str(number))
            begun = time.perf_counter()
            found = measure(recording)
            seconds.append(time.perf_counter() - begun)
            pairs.append((found, reference(folder / str(number), recording.fs)))
            same_beats.append(rr_of_marked_beats(recording, folder / str(number)) - pairs[-1][1]["rr_ms"])
        result[split] = {"rr_ms_of_the_marked_beats": summary(np.array(same_beats), 0, 0)}
        for name in FIELDS:
            mine = np.array([getattr(found, name) for found, _ in pairs])
            theirs = np.array([marked[name] for _, marked in pairs])
            absent = int((np.isnan(mine) & ~np.isnan(theirs)).sum())
            result[split][name] = summary(mine - theirs, absent, int((~np.isnan(mine) & np.isnan(theirs)).sum()))
    return result, seconds


def main() -> int:
    """Run the comparison; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=data_folder() / "results" / "measure_ludb.json")
    out = parser.parse_args().out
    root = os.environ.get("ECGCHAT_REAL_DATA")
    archive = Path(root or "") / "ludb" / "ludb_1_50_wfdb.tar.xz"
    if not root or not archive.is_file():
        print("Set ECGCHAT_REAL_DATA to the folder that holds ludb/ludb_1_50_wfdb.tar.xz", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        result, seconds = compare(Path(scratch) / "data")
    quartiles = np.percentile(seconds, (25, 50, 75))
    content = {
        "what": "difference from the cardiologists' marks, lead II, median over each record's marked beats",
        "data": "LUDB 1.0.1, records 1-50 (Kalyakulina et al. 2020, doi 10.1109/ACCESS.2020.3029211), ODC-By",
        "results": result,
        "seconds_per_record": dict(
            zip(("lower_quartile", "median", "upper_quartile"), quartiles.round(4), strict=True)
        ),
        "stamp": {
            "commit": git_commit(project_root()),
            "library_sha256": library_hash(),
            "device": device(),
            "versions": {
                name: version for name, version in versions().items() if name in ("python", "numpy", "scipy", "wfdb")
            },
        },
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, out)
    for split, fields in result.items():
        for name, values in fields.items():
            print(f"{split:34} {name:26} n {values['n']:2}  mean absolute {values['mean_absolute_ms']:5.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
