"""Measure the packed store beside wfdb and `read_recording`: random access, packing, and memory from 1,000 to 100,000.

    ECGCHAT_REAL_DATA=<folder> python benchmarks/packed.py [--scratch DIR] [--largest 100000] [--out FILE]

The folder holds `ptbxl/raw_500hz_wfdb.tar.xz`; its records (12 leads, 10 s at 500 Hz) are packed as often as it takes.
The scratch folder needs 121 kB for each record of the largest store: 12 GB for 100,000. Everything is read from the
system's file cache, wfdb's files too; a first pass over each store that isn't counted brings it there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import wfdb

from ecgchat_lib.course.provenance import device, git_commit, library_hash, versions
from ecgchat_lib.datasets.pack import pack
from ecgchat_lib.datasets.packed import MAX_RESIDENT, PackedStore
from ecgchat_lib.ecg.recording import read_recording
from ecgchat_lib.paths import data_folder, project_root

REPEATS = 5
BATCH = 64
SIZES = (1_000, 10_000, 100_000)
READS = 20_000  # random reads in each of the memory measurements


def copies(headers: list[Path], count: int) -> pd.DataFrame:
    """Return a table of `count` recordings that names the same files over and over."""
    paths = [str(header.with_suffix("")) for header in headers]
    picked = [paths[k % len(paths)] for k in range(count)]
    return pd.DataFrame({"record": [f"copy-{k:06d}" for k in range(count)], "path": picked}, dtype=object)


def spread(values: list[float]) -> dict[str, float]:
    """Return the quartiles."""
    names = ("lower_quartile", "median", "upper_quartile")
    return dict(zip(names, np.percentile(values, (25, 50, 75)).round(1).tolist(), strict=True))


def ways(store: PackedStore, paths: list[str]) -> dict[str, tuple[int, Callable[[np.ndarray], object]]]:
    """Return each way of reading: how many records a round takes, and what reads them."""
    out = np.empty((12, 5000), dtype=np.float32)

    def each(read: Callable[[int], object]) -> Callable[[np.ndarray], object]:
        def loop(rows: np.ndarray) -> None:
            for row in rows.tolist():
                read(row)

        return loop

    def batches(rows: np.ndarray) -> None:
        for begin in range(0, len(rows), BATCH):
            store.signals(rows[begin : begin + BATCH])

    return {
        "wfdb.rdsamp, float64 mV": (400, each(lambda row: wfdb.rdsamp(paths[row]))),
        "read_recording, float32 mV": (1000, each(lambda row: read_recording(paths[row]))),
        "store.adc, int16 view, no sample touched": (20_000, each(store.adc)),
        "store.adc, int16, every sample summed": (4000, each(lambda row: store.adc(row).sum(dtype=np.int64))),
        "store.signal into one array, float32 mV": (4000, each(lambda row: store.signal(row, out))),
        "store.signal, float32 mV": (4000, each(store.signal)),
        "store[row], Recording, float32 mV": (4000, each(store.__getitem__)),
        f"store.signals in batches of {BATCH}, float32 mV": (4096, batches),
    }


def random_access(folder: Path, headers: list[Path]) -> dict[str, Any]:
    """Return records per second of each way, and its ratio to wfdb's within the same round.

    Both by the clock and by this process's own CPU seconds, which other work on the machine doesn't change much.
    """
    rng = np.random.default_rng(0)
    paths = [str(header.with_suffix("")) for header in headers]
    rates: dict[str, list[tuple[float, float]]] = {}
    with PackedStore(folder) as store:
        for round_number in range(REPEATS + 1):  # all ways in each round, so that a busy moment hits all of them
            for name, (count, read) in ways(store, paths).items():
                rows = rng.integers(0, len(paths), count)
                begun, begun_cpu = time.perf_counter(), time.process_time()
                read(rows)
                spent, spent_cpu = time.perf_counter() - begun, time.process_time() - begun_cpu
                if round_number:
                    rates.setdefault(name, []).append((count / spent, count / spent_cpu))
    reference = rates["wfdb.rdsamp, float64 mV"]
    return {
        name: {
            kind: {
                "records_per_second": spread([pair[place] for pair in values]),
                "times_wfdb": spread([pair[place] / base[place] for pair, base in zip(values, reference, strict=True)]),
            }
            for place, kind in enumerate(("by_the_clock", "by_cpu_seconds"))
        }
        for name, values in rates.items()
    }


def packing(scratch: Path, headers: list[Path], count: int) -> dict[str, Any]:
    """Return records per second while packing, with one and with two processes."""
    frame = copies(headers, count)
    rates: dict[str, list[float]] = {}
    for _ in range(3):
        for processes in (1, 2):
            target = scratch / "packing"
            shutil.rmtree(target, ignore_errors=True)
            with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
                list(pool.map(len, ["warm"] * processes))
                pool.submit(read_recording, frame["path"][0]).result()
                begun = time.perf_counter()
                pack(frame, target, executor=pool, block_records=512)
                rates.setdefault(f"{processes} processes", []).append(count / (time.perf_counter() - begun))
    shutil.rmtree(scratch / "packing")
    return {"records": count, "records_per_second": {name: spread(values) for name, values in rates.items()}}


def status() -> dict[str, float]:
    """Return this process's memory in MB, by kind (Linux)."""
    wanted = {"VmHWM": "peak", "VmRSS": "resident", "RssAnon": "own", "RssFile": "mapped_files"}
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return {name: round(int(found[key].split()[0]) / 1024, 1) for key, name in wanted.items()}


def child(arguments: list[str]) -> dict[str, Any]:
    """Run one measurement in a process of its own and return what it prints."""
    command = [sys.executable, __file__, *arguments]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def pack_in_child(folder: str, headers: str, count: int) -> None:
    """Pack, and print how long it took and the memory."""
    frame = copies([Path(line) for line in Path(headers).read_text(encoding="utf-8").split("\n")], count)
    before, begun, begun_cpu = status(), time.perf_counter(), time.process_time()
    pack(frame, folder)
    seconds = {"pack_seconds": time.perf_counter() - begun, "pack_cpu_seconds": time.process_time() - begun_cpu}
    rounded = {name: round(value, 1) for name, value in seconds.items()}
    print(json.dumps({**rounded, "before_pack_mb": before, "pack_mb": status()}))


def read_in_child(folder: str) -> None:
    """Open a store, read at random, and print rate and memory."""
    rng = np.random.default_rng(1)
    out = np.empty((12, 5000), dtype=np.float32)
    before = status()
    begun = time.perf_counter()
    with PackedStore(folder) as store:
        opened = time.perf_counter() - begun
        after_opening = status()
        for row in rng.integers(0, len(store), 2000).tolist():
            store.signal(row, out)
        begun, begun_cpu = time.perf_counter(), time.process_time()
        for row in rng.integers(0, len(store), READS).tolist():
            store.signal(row, out)
        rate, rate_cpu = READS / (time.perf_counter() - begun), READS / (time.process_time() - begun_cpu)
        begun = time.perf_counter()
        for row in rng.integers(0, len(store), 2000).tolist():
            store.row(f"copy-{row:06d}")
        by_name = 2000 / (time.perf_counter() - begun)
        facts = {
            "open_ms": round(1000 * opened, 1),
            "records_per_second": round(rate),
            "records_per_cpu_second": round(rate_cpu),
            "names_per_second": round(by_name),
        }
        print(json.dumps({**facts, "before_mb": before, "opened_mb": after_opening, "after_reads_mb": status()}))


def memory(scratch: Path, headers: list[Path], largest: int) -> dict[str, Any]:
    """Return memory and speed with stores of growing size."""
    names = scratch / "headers.txt"
    names.write_text("\n".join(map(str, headers)), encoding="utf-8")
    result: dict[str, Any] = {}
    for size in [size for size in SIZES if size <= largest]:
        folder = scratch / f"store-{size}"
        facts = child(["--child-pack", str(folder), str(names), str(size)])
        result[str(size)] = {**facts, **child(["--child-read", str(folder)])}
        result[str(size)]["gigabytes"] = round(sum(path.stat().st_size for path in folder.iterdir()) / 1e9, 3)
        shutil.rmtree(folder)
    return result


def main() -> int:
    """Run everything and write the result; return the exit code."""
    if sys.argv[1:2] == ["--child-pack"]:
        pack_in_child(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return 0
    if sys.argv[1:2] == ["--child-read"]:
        read_in_child(sys.argv[2])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=data_folder() / "results" / "packed.json")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--largest", type=int, default=max(SIZES))
    arguments = parser.parse_args()
    root = os.environ.get("ECGCHAT_REAL_DATA")
    archive = Path(root or "") / "ptbxl" / "raw_500hz_wfdb.tar.xz"
    if not root or not archive.is_file():
        print("Set ECGCHAT_REAL_DATA to the folder that holds ptbxl/raw_500hz_wfdb.tar.xz", file=sys.stderr)
        return 2
    needed = 125_000 * arguments.largest
    if shutil.disk_usage(arguments.scratch).free < 1.2 * needed:
        print(
            f"{arguments.scratch} has no room for {needed / 1e9:.0f} GB; give --scratch or --largest", file=sys.stderr
        )
        return 2
    load = [round(os.getloadavg()[0], 1)]
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        scratch = Path(folder)
        with tarfile.open(archive) as tar:
            tar.extractall(scratch / "in", filter="data")
        headers = sorted((scratch / "in").rglob("*.hea"))
        pack(copies(headers, len(headers)), scratch / "store")
        content = {
            "what": "reading and packing 12 leads of 10 s at 500 Hz; everything in the system's file cache",
            "data": f"PTB-XL, {len(headers)} records as published (Wagner et al. 2020), CC BY 4.0; packed as copies",
            "random_access": random_access(scratch / "store", headers),
            "packing": packing(scratch, headers, 4096),
            "memory_by_records_in_the_store": memory(scratch, headers, arguments.largest),
            "max_resident_mb": MAX_RESIDENT / 2**20,
        }
    load.append(round(os.getloadavg()[0], 1))
    wanted = ("python", "numpy", "wfdb")
    content["stamp"] = {
        "commit": git_commit(project_root()),
        "library_sha256": library_hash(),
        "device": device(),
        "load_average_before_and_after": load,
        "versions": {name: version for name, version in versions().items() if name in wanted},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    partial = arguments.out.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, arguments.out)
    for name, values in content["random_access"].items():
        for kind, figures in values.items():
            rate, times = figures["records_per_second"]["median"], figures["times_wfdb"]["median"]
            print(f"{name:48} {kind:15} {rate:9,.0f} records/s  {times:6.1f} x wfdb")
    return 0


if __name__ == "__main__":
    sys.exit(main())
