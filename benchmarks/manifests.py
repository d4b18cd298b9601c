"""Compare the manifests' labels with MERL's published lists, record by record, and time the building of manifests.

    ECGCHAT_REAL_DATA=<folder> python benchmarks/manifests.py [--rows 100000] [--out data/results/manifests.json]

The folder holds `ptbxl/ptbxl_database.csv.gz` (version 1.0.1) and `ptbxl/merl_splits_csv.tar.xz`. The large table is
made in MIMIC-IV-ECG's layout, with machine statements drawn from a small vocabulary; the real one has more different
ones.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import lzma
import os
import resource
import statistics
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ecgchat_lib.course.provenance import device, git_commit, library_hash, versions
from ecgchat_lib.datasets import load
from ecgchat_lib.datasets.labels import LABEL_SETS, classes_of, read_merl_names
from ecgchat_lib.datasets.manifest import Manifest, check_manifest
from ecgchat_lib.datasets.ptbxl import REVISED, WITHDRAWN, load_ptbxl
from ecgchat_lib.datasets.sph import official_split
from ecgchat_lib.datasets.wording import statements_from_text
from ecgchat_lib.paths import data_folder, project_root

FOLDERS = {"super": "super_class", "sub": "sub_class", "form": "form", "rhythm": "rhythm"}
SPLITS = {"train": "train", "validation": "val", "test": "test"}
REPEATS = 3


def read_lists(archive: Path) -> dict[str, list[dict[str, str]]]:
    """Return MERL's lists: path inside the archive → rows."""
    with lzma.open(archive) as packed, tarfile.open(fileobj=packed) as tar:
        names = [member.name for member in tar.getmembers() if member.name.endswith(".csv")]
        texts = {name: tar.extractfile(name).read().decode() for name in names}  # type: ignore[union-attr]
    return {name.removeprefix("data_split/"): list(csv.DictReader(io.StringIO(text))) for name, text in texts.items()}


def compare_ptbxl(manifest: Manifest, lists: dict[str, list[dict[str, str]]]) -> dict[str, Any]:
    """Return for each label set and split: records, records per class, and records that differ from MERL's list."""
    out: dict[str, Any] = {}
    for name, folder in FOLDERS.items():
        spelled = read_merl_names(name)
        for split, short in SPLITS.items():
            rows = lists[f"ptbxl/{folder}/ptbxl_{folder}_{short}.csv"]
            theirs = {int(row["ecg_id"]): {ours for merl, ours in spelled.items() if row[merl] == "1"} for row in rows}
            here = manifest[manifest["split"] == split]
            pairs = zip(here["record"], here["statements"], strict=True)
            ours = {int(record): set(classes_of((code for code, _ in cell), name)) for record, cell in pairs}
            ours = {record: found for record, found in ours.items() if found}
            differ = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
            counts = Counter(one for found in ours.values() for one in found)
            out[f"{name}/{split}"] = {
                "records": len(ours),
                "records_merl": len(theirs),
                "per_class": {one: counts[one] for one in LABEL_SETS[name].classes},
                "per_class_merl": dict(Counter(one for found in theirs.values() for one in found)),
                "records_that_differ": len(differ),
            }
    return out


def compare_cpsc2018(lists: dict[str, list[dict[str, str]]]) -> dict[str, Any]:
    """Return the records per class of MERL's three lists together, and how many records have several labels."""
    rows = [row for short in SPLITS.values() for row in lists[f"icbeb/icbeb_{short}.csv"]]
    spelled = read_merl_names("cpsc2018")
    counts = {ours: sum(int(row[merl]) for row in rows) for merl, ours in spelled.items()}
    several = sum(sum(int(row[merl]) for merl in spelled) > 1 for row in rows)
    order = LABEL_SETS["cpsc2018"].classes
    return {"records": len(rows), "any_label": {one: counts[one] for one in order}, "records_with_several": several}


def substrings_in_chapman(lists: dict[str, list[dict[str, str]]]) -> dict[str, Any]:
    """Count, in MERL's Chapman lists, the labels of their 0/1 columns, of substrings, and of whole acronyms."""
    rows = [row for short in SPLITS.values() for row in lists[f"chapman/chapman_{short}.csv"]]
    columns = [name for name in rows[0] if name not in ("ecg_path", "age", "diagnose")]
    out = {}
    for name in columns:
        column = sum(int(row[name]) for row in rows)
        substring = sum(name in row["diagnose"] for row in rows)
        word = sum(name in row["diagnose"].split(",") for row in rows)
        out[name] = {"column": column, "as_substring": substring, "as_acronym": word}
    wrong = {name: counts for name, counts in out.items() if counts["column"] != counts["as_acronym"]}
    odd = {name for row in rows for name in columns if int(row[name]) != (name in row["diagnose"])}
    agree = len(out) - len(odd)  # in every record, not only in sum
    return {"records": len(rows), "labels": len(out), "columns_that_equal_substrings": agree, "too_many": wrong}


def compare_wording(manifest: Manifest) -> dict[str, Any]:
    """Return how what `statements_from_text` reads in PTB-XL's English reports agrees with their statements.

    The reader was made for a machine's sentences, not for these; codes that PTB-XL's annotators gave for other reasons
    than the text count against it.
    """
    english = manifest[manifest["language_original"] == "en"]
    said, read, both = Counter[str](), Counter[str](), Counter[str]()
    for text, cell in zip(english["report_original"], english["statements"], strict=True):
        theirs, ours = {code for code, _ in cell}, {code for code, _ in statements_from_text(text)}
        said.update(theirs)
        read.update(ours)
        both.update(theirs & ours)
    per_code = {
        code: {
            "records": number,
            "precision": round(both[code] / read[code], 3) if read[code] else None,
            "recall": round(both[code] / number, 3),
        }
        for code, number in said.most_common()
        if number >= 20
    }
    total = {"precision": round(both.total() / read.total(), 3), "recall": round(both.total() / said.total(), 3)}
    return {"reports": len(english), "all_codes": total, "per_code": per_code}


def make_mimic_tables(folder: Path, rows: int, seed: int) -> None:
    """Write record_list.csv and machine_measurements.csv in MIMIC-IV-ECG's layout, five records per patient on
    average.
    """
    draw = np.random.default_rng(seed)
    subject, study = 10_000_000 + draw.integers(0, max(rows // 5, 1), rows), 40_000_000 + draw.permutation(rows)
    walls = ("Inferior", "Lateral", "Anterior", "Anteroseptal", "Inferior/lateral")
    findings = [
        f"{wall} {kind} {tail}"
        for wall in walls
        for kind in ("ST-T changes", "T wave changes", "ST abnormality")
        for tail in ("are nonspecific", "may be due to myocardial ischemia", "is borderline")
    ]
    findings += [f"Possible {wall.lower()} infarct - age undetermined" for wall in walls]
    findings += [
        "Left axis deviation",
        "RBBB",
        "LBBB",
        "Left ventricular hypertrophy",
        "Low QRS voltages in limb leads",
    ]
    findings += ["--- Warning: Data quality may affect interpretation ---"]
    rhythms = [
        "Sinus rhythm",
        "Sinus bradycardia",
        "Sinus tachycardia",
        "Atrial fibrillation",
        "Sinus rhythm with PACs",
    ]
    table: dict[str, Any] = {"subject_id": subject, "study_id": study, "cart_id": 1, "ecg_time": "2180-07-23 08:44:00"}
    table["report_0"] = draw.choice(rhythms, rows)
    for k in range(1, 4):
        table[f"report_{k}"] = np.where(draw.random(rows) < 0.6, draw.choice(findings, rows), "")
    table["report_4"] = draw.choice(["Abnormal ECG", "Normal ECG", "Borderline ECG"], rows)
    table |= dict.fromkeys((f"report_{k}" for k in range(5, 18)), "")
    usual = {"rr_interval": 800, "p_onset": 40, "p_end": 128, "qrs_onset": 170, "qrs_end": 258, "t_end": 518}
    for name, value in (usual | {"p_axis": 81, "qrs_axis": 77, "t_axis": 79}).items():
        table[name] = np.where(draw.random(rows) < 0.1, 29999, value + draw.integers(-20, 20, rows))
    pd.DataFrame(table).to_csv(folder / "machine_measurements.csv", index=False)
    patient, name = pd.Series(subject).astype(str), pd.Series(study).astype(str)
    path = "files/p" + patient.str[:4] + "/p" + patient + "/s" + name + "/" + name
    records = {
        "subject_id": subject,
        "study_id": study,
        "file_name": study,
        "ecg_time": table["ecg_time"],
        "path": path,
    }
    pd.DataFrame(records).to_csv(folder / "record_list.csv", index=False)


def timed(make: Callable[[], Any], records: int) -> dict[str, float | int]:
    """Run a few times; return the median and the spread of the seconds, and records per second."""
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        make()
        seconds.append(time.perf_counter() - begun)
    middle = statistics.median(seconds)
    spread = {"fastest": round(min(seconds), 2), "slowest": round(max(seconds), 2)}
    return {
        "records": records,
        "median_seconds": round(middle, 2),
        **spread,
        "records_per_second": round(records / middle),
    }


def timings(ptbxl: Path, rows: int) -> dict[str, Any]:
    """Time the loading of PTB-XL's real table and of a made one in MIMIC-IV-ECG's layout."""
    with tempfile.TemporaryDirectory() as scratch:
        make_mimic_tables(Path(scratch), rows, seed=1)
        large = load("mimic_iv_ecg", scratch, require_files=False)
        out = {
            "mimic_layout": timed(lambda: load("mimic_iv_ecg", scratch, require_files=False), rows),
            "check_manifest": timed(lambda: check_manifest(large), rows),
        }
        out["mimic_layout"]["manifest_megabytes"] = round(float(large.memory_usage(deep=True).sum()) / 1e6, 1)
        out["mimic_layout"]["process_peak_megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    number = len(load_ptbxl(ptbxl, require_files=False))
    out["ptbxl_table"] = timed(lambda: load_ptbxl(ptbxl, require_files=False), number)
    return out


def sph_of_published_size() -> dict[str, int]:
    """Split a made table of SPH's size (25,770 rows of 24,666 patients) by the published rule."""
    draw = np.random.default_rng(5)
    names = [f"S{k:05d}" for k in range(24666)]
    splits = official_split([*names, *draw.choice(names[:900], 25770 - 24666)])
    return {"train": splits.count("train"), "test": splits.count("test")}


def main() -> int:
    """Run the comparison; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=data_folder() / "results" / "manifests.json")
    asked = parser.parse_args()
    root = os.environ.get("ECGCHAT_REAL_DATA")
    ptbxl = Path(root or "") / "ptbxl"
    if not root or not (ptbxl / "merl_splits_csv.tar.xz").is_file():
        print("Set ECGCHAT_REAL_DATA to the folder that holds ptbxl/merl_splits_csv.tar.xz", file=sys.stderr)
        return 2
    lists = read_lists(ptbxl / "merl_splits_csv.tar.xz")
    older = load_ptbxl(ptbxl, require_files=False)
    compared = {
        "1.0.1": compare_ptbxl(older, lists),
        "1.0.3": compare_ptbxl(load_ptbxl(ptbxl, require_files=False, as_of="1.0.3"), lists),
    }
    content = {
        "what": "labels of the manifests against MERL's published lists, record by record; speed of building manifests",
        "data": "ptbxl_database.csv of PTB-XL 1.0.1 (CC BY 4.0) and MERL's lists (MIT, made from 1.0.3)",
        "records": {"1.0.1": len(older), "1.0.3": len(older) - len(WITHDRAWN)},
        "withdrawn": len(WITHDRAWN),
        "revised": len(REVISED),
        "ptbxl": compared,
        "cpsc2018": compare_cpsc2018(lists),
        "chapman_substrings": substrings_in_chapman(lists),
        "sph": sph_of_published_size(),
        "report_languages": older["language_original"].replace("", "unknown").value_counts().to_dict(),
        "wording": compare_wording(older),
        "timings": timings(ptbxl, asked.rows),
        "stamp": {
            "commit": git_commit(project_root()),
            "library_sha256": library_hash(),
            "device": device(),
            "repeats": REPEATS,
            "note": "other programs ran on the machine at the same time",
            "versions": {key: value for key, value in versions().items() if key in ("python", "numpy")}
            | {"pandas": pd.__version__},
        },
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    partial = asked.out.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, asked.out)
    for version, table in compared.items():
        differ = sum(row["records_that_differ"] for row in table.values())
        print(f"PTB-XL {version}: {differ} labels of records differ from MERL's in {len(table)} lists")
    print(json.dumps(content["timings"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
