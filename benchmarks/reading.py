"""How many recordings a second are read: wfdb.rdsamp, ours (both ways of decoding), and the bytes alone, in one run.

    ECGCHAT_REAL_DATA=<folder> python benchmarks/reading.py [--records 100] [--rounds 9] [--out FILE]

Reads PTB-XL's raw records (format 16) and the Challenge's (.mat). Every file is read once before, so that all come from
the system's cache. In each round every reader reads every record, in an order that changes from round to round; what is
quoted is the median over the rounds, with quartiles. `equal` counts the records whose signal equals that of wfdb,
rounded to float32, bit by bit.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import wfdb

from ecgchat_lib.course.provenance import device, git_commit, library_hash, versions
from ecgchat_lib.ecg import samples
from ecgchat_lib.ecg.leads import LEADS, canonical_lead
from ecgchat_lib.ecg.recording import read_recording
from ecgchat_lib.paths import data_folder, project_root

ARCHIVES = {
    "PTB-XL raw, 500 Hz, .dat": ("ptbxl/raw_500hz_wfdb.tar.xz", ".dat"),
    "Challenge 2020/21, .mat": ("challenge/challenge_wfdb_mat.tar.xz", ".mat"),
}


def with_wfdb_inside(path: Path) -> None:
    """Read it with our checks, but decode as other formats are decoded."""
    with mock.patch.object(samples, "is_plain", return_value=False):
        read_recording(path)


def readers(suffix: str) -> dict[str, Callable[[Path], object]]:
    """Return each way of reading a record, by what it is called."""
    return {
        "wfdb.rdsamp": lambda path: wfdb.rdsamp(str(path)),
        "read_recording": read_recording,
        "read_recording, decoded by wfdb": with_wfdb_inside,
        "numpy.fromfile, bytes alone": lambda path: np.fromfile(f"{path}{suffix}", dtype="<i2"),
    }


def equal(path: Path) -> bool:
    """Return whether our signal is wfdb's, rounded to float32."""
    signal, fields = wfdb.rdsamp(str(path))
    names = [canonical_lead(name) for name in fields["sig_name"]]
    expected = signal.T[[names.index(lead) for lead in LEADS]].astype(np.float32)
    return np.array_equal(read_recording(path, allow_missing=True).signal, expected, equal_nan=True)


def compare(paths: list[Path], suffix: str, rounds: int) -> dict[str, dict[str, float]]:
    """Return records per second of each reader, and how many times as fast as wfdb.rdsamp it was in the same round."""
    ways = readers(suffix)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        names = list(ways)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begun = time.perf_counter()
            for path in paths:
                ways[name](path)
            seconds[name].append(time.perf_counter() - begun)
    result = {}
    for name, taken in seconds.items():
        per_second = len(paths) / np.array(taken)
        lower, median, upper = np.percentile(per_second, (25, 50, 75))
        factor = np.median(np.array(seconds["wfdb.rdsamp"]) / np.array(taken))
        quartiles = {"lower_quartile": round(float(lower), 1), "upper_quartile": round(float(upper), 1)}
        result[name] = {
            "records_per_second": round(float(median), 1),
            **quartiles,
            "times_wfdb": round(float(factor), 2),
        }
    return result


def main() -> int:
    """Run the comparison; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--records", type=int, default=100, help="of each archive, for the times")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=data_folder() / "results" / "reading.json")
    options = parser.parse_args()
    root = os.environ.get("ECGCHAT_REAL_DATA")
    if not root:
        print("Set ECGCHAT_REAL_DATA to the folder that holds ptbxl/ and challenge/", file=sys.stderr)
        return 2
    results = {}
    for what, (archive, suffix) in ARCHIVES.items():
        with tempfile.TemporaryDirectory() as scratch:
            with tarfile.open(Path(root) / archive) as tar:
                tar.extractall(scratch, filter="data")
            paths = sorted(path.with_suffix("") for path in Path(scratch).rglob("*.hea"))
            same = sum(equal(path) for path in paths)
            timed = paths[:: max(len(paths) // options.records, 1)][: options.records]
            results[what] = {
                "equal_to_wfdb": f"{same} of {len(paths)}",
                "timed": len(timed),
                "readers": compare(timed, suffix, options.rounds),
            }
    _write(options, results)
    for what, found in results.items():
        print(f"{what}: {found['equal_to_wfdb']} equal to wfdb, {found['timed']} timed in {options.rounds} rounds")
        for name, values in found["readers"].items():
            print(
                f"  {name:33} {values['records_per_second']:9.1f} a second, {values['times_wfdb']:6.2f} x wfdb.rdsamp"
            )
    return 0


def _write(options: argparse.Namespace, results: dict) -> None:
    """Write the results with their provenance."""
    used = ("python", "numpy", "scipy", "wfdb")
    content = {
        "what": "records read per second on one core, medians over rounds in which all readers read all records",
        "rounds": options.rounds,
        "results": results,
        "stamp": {
            "commit": git_commit(project_root()),
            "library_sha256": library_hash(),
            "device": device(),
            "load_average_at_the_end": [round(load, 1) for load in os.getloadavg()],
            "versions": {name: version for name, version in versions().items() if name in used},
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    partial = options.out.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, options.out)


if __name__ == "__main__":
    sys.exit(main())
