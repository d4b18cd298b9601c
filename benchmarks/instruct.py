"""Build ECG-Instruct from the real PTB-XL recordings and synthetic ones, and from all of PTB-XL's metadata; count it.

    ECGCHAT_REAL_DATA=<folder> python benchmarks/instruct.py --work WORK [--parts real full rewriting]
        [--out data/results/instruct.json]

The folder holds `ptbxl/` with `index.csv`, `ptbxl_database.csv.gz`, `raw_500hz_wfdb.tar.xz`, `processed_125hz.npy.xz`.
What is built stays in WORK (PTB-XL is CC BY 4.0); only counts go into the results. What isn't built anew is kept from
the file that is there. The processed recordings are z-scores: axis and heights are left out, as in the chat recipe.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ecgchat_lib.chat.mini_data import Z_SCORE_MV, without_heights
from ecgchat_lib.course.provenance import device, git_commit, library_hash, versions
from ecgchat_lib.datasets.manifest import Manifest, join_manifests
from ecgchat_lib.datasets.ptbxl import load_ptbxl
from ecgchat_lib.datasets.synthetic import write_synthetic
from ecgchat_lib.ecg.measure import Measurements, measure
from ecgchat_lib.ecg.recording import Recording
from ecgchat_lib.evaluate.mini_data import REPEATED, processed_signals
from ecgchat_lib.instruct.dataset import build_dataset
from ecgchat_lib.instruct.drafts import BuildConfig
from ecgchat_lib.instruct.measured import from_row, measure_manifest, to_row
from ecgchat_lib.instruct.teachers import TemplateTeacher, load_local_teacher
from ecgchat_lib.paths import project_root

PARTS = ("real", "full", "rewriting")
KEPT = ("items", "records", "rounds", "words", "vocabulary", "distinct_n", "different_answers", "negatives", "findings")


def real_records(folder: Path, work: Path) -> tuple[Manifest, dict[str, Measurements]]:
    """Return PTB-XL's development records with measurements, which are kept in `work`."""
    index = pd.read_csv(folder / "index.csv")
    index["record"] = [f"{number:05d}" for number in index["ecg_id"]]
    index = index[~index["record"].isin(REPEATED)]
    table = load_ptbxl(folder, require_files=False)
    table = table.assign(path=[Path(path).relative_to(folder).as_posix() for path in table["path"]])
    table = table[table["record"].isin(set(index["record"]))].reset_index(drop=True)
    if not (work / "records500").is_dir():
        with tarfile.open(folder / "raw_500hz_wfdb.tar.xz") as archive:
            archive.extractall(work, filter="data")
    base = next(work.rglob("records500")).parent
    raw = index[index["has_raw500"]]
    rows = table[table["record"].isin(set(raw["record"]))].reset_index(drop=True)
    paths = dict(zip(raw["record"], raw["raw_path"], strict=True))
    rows = rows.assign(path=[str(base / paths[record]) for record in rows["record"]])
    measured, faults = measure_manifest(rows, work / "measurements.jsonl")
    kept = work / "processed.json"
    if not kept.is_file():
        signals = processed_signals(folder / "processed_125hz.npy.xz")
        rest = index[~index["has_raw500"]]
        found = {
            record: to_row(without_heights(measure(Recording(record, signals[row] * np.float32(Z_SCORE_MV), 125.0))))
            for record, row in zip(rest["record"], rest["processed_row"], strict=True)
        }
        kept.write_text(json.dumps(found))
    measured |= {record: from_row(row) for record, row in json.loads(kept.read_text()).items()}
    return table[~table["record"].isin(list(faults))].reset_index(drop=True), measured


def build(table: Manifest, measured: Any, config: BuildConfig, writer: Any, out: Path, name: str) -> dict[str, Any]:
    """Build once; return counts, checks and seconds of CPU time."""
    shutil.rmtree(out, ignore_errors=True)
    started = time.process_time()
    facts = build_dataset(table, measured, config, writer, out, dataset=name)
    seconds = time.process_time() - started
    kinds = Counter[str]()
    for items in facts["statistics"]["items"].values():
        kinds.update(items)
    return {
        "dataset": name,
        "recordings": len(table),
        "conversations": dict(kinds),
        "checks": facts["checks"],
        "statistics": {key: facts["statistics"][key] for key in KEPT},
        "cpu_seconds": round(seconds, 1),
    }


def real_and_synthetic(
    table: Manifest, measured: dict[str, Measurements], chosen: argparse.Namespace
) -> dict[str, Any]:
    """Build from the real recordings and some synthetic ones together."""
    made = write_synthetic(chosen.work / "synthetic", chosen.synthetic, chosen.seed)
    known, _ = measure_manifest(made, chosen.work / "synthetic.jsonl")
    made = made.assign(path=[Path(path).relative_to(chosen.work).as_posix() for path in made["path"]])
    both = join_manifests({"ptbxl": table, "synthetic": made})
    numbers = {f"ptbxl/{name}": one for name, one in measured.items()}
    numbers |= {f"synthetic/{name}": one for name, one in known.items()}
    config = BuildConfig(2600, 2600, seed=chosen.seed)
    return build(both, numbers, config, TemplateTeacher(), chosen.work / "both", "ptbxl, synthetic")


def rewriting(table: Manifest, measured: Any, count: int, seed: int, out: Path) -> dict[str, Any]:
    """Let the default language model reword some diagnoses and dialogues; return what passed, and examples."""
    config = BuildConfig(count, count // 2, rounds=(4, 6), comparisons=0.0, seed=seed)
    writer = load_local_teacher()
    found = build(table, measured, config, writer, out, "ptbxl")
    rows = [json.loads(line) for line in (out / "replies.jsonl").open(encoding="utf-8")]
    return {
        "model": writer.model,
        **{key: found[key] for key in ("conversations", "checks", "cpu_seconds")},
        "cpu_seconds_per_answer": round(found["cpu_seconds"] / max(1, found["checks"]["answers"]), 2),
        "first_replies": [row["answers"][0] for row in rows[:4]],
    }


def main() -> None:
    """Build, count, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=project_root() / "data" / "results" / "instruct.json")
    parser.add_argument("--synthetic", type=int, default=200)
    parser.add_argument("--rewrite", type=int, default=8, help="diagnoses to reword with the local model")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to build anew")
    parser.add_argument("--seed", type=int, default=7)
    chosen = parser.parse_args()
    folder = Path(os.environ["ECGCHAT_REAL_DATA"]) / "ptbxl"
    chosen.work.mkdir(parents=True, exist_ok=True)
    results = json.loads(chosen.out.read_text()) if chosen.out.is_file() else {}
    table, measured = real_records(folder, chosen.work)
    if "real" in chosen.parts:
        results["real_and_synthetic"] = real_and_synthetic(table, measured, chosen)
    if "full" in chosen.parts:
        every = load_ptbxl(folder, require_files=False)
        every = every.assign(path=[Path(path).relative_to(folder).as_posix() for path in every["path"]])
        full = BuildConfig(20_258, 24_786, seed=chosen.seed)
        results["ptbxl_metadata"] = build(every, None, full, TemplateTeacher(), chosen.work / "full", "ptbxl")
    if "rewriting" in chosen.parts:
        sample = table.groupby("split", sort=False).head(40).reset_index(drop=True)
        results["rewriting"] = rewriting(sample, measured, chosen.rewrite, chosen.seed, chosen.work / "reworded")
    results["how"] = {
        "command": "benchmarks/instruct.py",
        "seed": chosen.seed,
        "device": device(),
        "note": "seconds of CPU time; one core, which was shared",
        "commit": git_commit(project_root()),
        "library": library_hash(),
        "versions": versions(),
    }
    partial = chosen.out.with_name(f".{chosen.out.name}.part")
    partial.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, chosen.out)
    print(json.dumps({name: one.get("checks") for name, one in results.items() if name != "how"}, indent=1))


if __name__ == "__main__":
    main()
