"""Compare `ecgchat_lib.ecg.measure` with the cardiologists' marks of LUDB, lead II, and time it beside NeuroKit2.

    python -m ecgchat_lib.datasets.segment_recipe LUDB_DATA --cross-validate 5 --work WORK
    ECGCHAT_REAL_DATA=<folder> python benchmarks/measure.py [--cross-validation WORK/cross_validation.json]
        [--neurokit PYTHON_WITH_NEUROKIT2] [--out data/results/measure_ludb.json]

The folder holds `ludb/ludb_1_50_wfdb.tar.xz`. The shipped network was trained on these records, so its own errors on
them prove little; the figures to quote are those of the cross-validation, in which each record is measured by a network
that never saw it. What isn't given anew is kept from the file that is there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

from ecgchat_lib.course.provenance import device, git_commit, library_hash, versions
from ecgchat_lib.datasets.segment_recipe import INTERVALS, compare, marked_intervals, read_ludb, summarize
from ecgchat_lib.ecg.leads import LEADS
from ecgchat_lib.ecg.marks import WaveMarks
from ecgchat_lib.ecg.measure import measure
from ecgchat_lib.ecg.recording import Recording
from ecgchat_lib.paths import data_folder, project_root

REPEATS = 5
Records = dict[int, tuple[Recording, list[WaveMarks]]]
Pairs = dict[int, dict[str, tuple[float, float]]]


def rate(seconds: list[float]) -> dict[str, float]:
    """Return records per second: the median over the records, and the quartiles."""
    low, middle, high = np.percentile(1 / np.array(seconds), (25, 50, 75))
    return {
        "median": round(float(middle), 1),
        "lower_quartile": round(float(low), 1),
        "upper_quartile": round(float(high), 1),
    }


def time_ours(records: Records) -> dict[str, object]:
    """Return how fast the course measures: all twelve leads, one thread, reading not included."""
    measure(next(iter(records.values()))[0])  # loads the network
    seconds = []
    for _ in range(REPEATS):
        for recording, _ in records.values():
            begun = time.perf_counter()
            measure(recording)
            seconds.append(time.perf_counter() - begun)
    return {"records_per_second": rate(seconds), "leads": 12}


def run_neurokit(python: str, records: Records) -> dict[str, object]:
    """Return NeuroKit2's speed and errors on lead II of the same records."""
    fs = {recording.fs for recording, _ in records.values()}
    (one,) = fs
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "leads.npz"
        np.savez(file, leads=np.stack([recording.lead("II") for recording, _ in records.values()]), fs=one)
        script = Path(__file__).with_name("neurokit_intervals.py")
        found = json.loads(subprocess.run([python, str(script), str(file)], capture_output=True, check=True).stdout)
    pairs: Pairs = {}
    for (number, (recording, marks)), row in zip(records.items(), found["intervals"], strict=True):
        marked = marked_intervals(marks[LEADS.index("II")], recording.fs)
        pairs[number] = {name: (np.nan if row[name] is None else row[name], marked[name]) for name in INTERVALS}
    return {
        "version": found["version"],
        "records_per_second": rate(found["seconds"]),
        "leads": 1,
        "errors": summarize(pairs),
    }


def cross_validation(path: Path) -> dict[str, object]:
    """Return the cross-validation's summary and pairs from what the recipe left."""
    left = json.loads(path.read_text(encoding="utf-8"))
    pairs = {int(number): {name: tuple(pair) for name, pair in row.items()} for number, row in left["pairs"].items()}
    rounded = {
        number: {name: [None if np.isnan(value) else round(value, 1) for value in pair] for name, pair in row.items()}
        for number, row in pairs.items()
    }
    return {"folds": left["folds"], "config": left["config"], "summary": summarize(pairs), "pairs": rounded}


def main() -> int:
    """Run the comparison; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=data_folder() / "results" / "measure_ludb.json")
    parser.add_argument("--cross-validation", type=Path, help="what the recipe left in its work folder")
    parser.add_argument("--neurokit", help="an interpreter that has NeuroKit2")
    options = parser.parse_args()
    root = os.environ.get("ECGCHAT_REAL_DATA")
    archive = Path(root or "") / "ludb" / "ludb_1_50_wfdb.tar.xz"
    if not root or not archive.is_file():
        print("Set ECGCHAT_REAL_DATA to the folder that holds ludb/ludb_1_50_wfdb.tar.xz", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        records = read_ludb(Path(scratch) / "data")
    content = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    methods = content.get("methods", {})
    methods["this course"] = {**time_ours(records), "errors_on_its_training_records": summarize(compare(records))}
    if options.neurokit:
        methods["NeuroKit2, wavelets"] = run_neurokit(options.neurokit, records)
    if options.cross_validation:
        content["cross_validation"] = cross_validation(options.cross_validation)
    content |= {
        "what": "difference from the cardiologists' marks, lead II, median over each record's marked beats",
        "data": "LUDB 1.0.1, records 1-50 (Kalyakulina et al. 2020, doi 10.1109/ACCESS.2020.3029211), ODC-By",
        "methods": methods,
        "stamp": {
            "commit": git_commit(project_root()),
            "library_sha256": library_hash(),
            "device": device(),
            "threads": os.environ.get("OMP_NUM_THREADS", "all"),
            "versions": {
                name: version for name, version in versions().items() if name in ("python", "numpy", "scipy", "torch")
            },
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    partial = options.out.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, options.out)
    for name, values in content.get("cross_validation", {}).get("summary", {}).items():
        print(f"cross-validated {name:7} n {values['n']:2}  mean absolute {values['mean_absolute_ms']:5.1f} ms")
    for name, method in methods.items():
        print(f"{name:22} {method['records_per_second']['median']:6.1f} records/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
