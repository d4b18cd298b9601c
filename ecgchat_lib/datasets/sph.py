"""SPH as a manifest: 25,770 ECGs of 24,666 patients of Shandong Provincial Hospital, with AHA statement codes.

It reads `metadata.csv` as published and leaves the signals (`records/A00001.h5`) where they are. There is no report
text; reports are the words of the codes, modifiers included. Taught in: 02 §2, §3 and §5.

The published test set has 5,154 records: everyone with more than one recording, filled up to a fifth by a random draw
(the publishers' example code, which the original follows; seed 73). It is made here from the table itself, and is
disjoint in patients. Nobody publishes a validation set: ours is a share of the training patients, by a hash of their
names.

Source: Liu et al., Scientific Data 9 (2022) 272, doi:10.1038/s41597-022-01403-5, data
doi:10.6084/m9.figshare.c.5779802.v1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ecgchat_lib.datasets.aha import read_aha_cell
from ecgchat_lib.datasets.manifest import Manifest, manifest_from_columns, split_by_hash
from ecgchat_lib.datasets.tables import check_paths, find_table, numbers_in, read_table, sexes_of
from ecgchat_lib.errors import EcgChatError, MissingPartError, RecordError

METADATA = "metadata.csv"
NEEDED = ("ECG_ID", "AHA_Code", "Patient_ID", "Age", "Sex", "N")
TEST_SHARE, TEST_SEED = 0.2, 73  # of the publishers' example code


def load_sph(folder: str | Path, *, validation: float = 0.1, seed: int = 0, require_files: bool = True) -> Manifest:
    """Load SPH's metadata as a manifest.

    Args:
        folder: holds `metadata.csv` and `records/`, or the .h5 files beside the table.
        validation: share of the training patients for validation, 0 to below 1.
        seed: which of them.
        require_files: keep only records whose file lies in the folder. The split is made before, from the whole table.

    Returns:
        A manifest with the further columns `age` (years), `sex`, `aha` (the cell of codes) and `samples` (N).

    Raises:
        MissingPartError: the table is not there, or none of its records is.
        RecordError, EcgChatError: a column is missing or a cell can't be read; the message names the record.
    """
    folder = Path(folder)
    if not 0 <= validation < 1:
        raise EcgChatError(f"validation {validation}: expected a share from 0 to below 1")
    path = find_table(
        folder, (METADATA,), "Name the folder of SPH (https://doi.org/10.6084/m9.figshare.c.5779802.v1), unpacked"
    )
    table = read_table(path, NEEDED, texts=("ECG_ID", "AHA_Code", "Patient_ID"))
    names = table["ECG_ID"].str.strip().str.removesuffix(".h5")
    odd = ~names.str.fullmatch(r"[A-Za-z]{1,4}\d{1,8}") | (table["Patient_ID"].str.strip() == "")
    if odd.any():
        row = int(np.argmax(odd.to_numpy()))
        cells = table.iloc[row][["ECG_ID", "Patient_ID"]].astype(str).str[:40].tolist()
        raise RecordError(path, f"row {row + 1}: {cells} are no record and patient", "Use the table as published")
    check_paths(names, names, path)
    splits = official_split(table["Patient_ID"].tolist())
    inner = split_by_hash(table["Patient_ID"].tolist(), fractions=(1 - validation, validation, 0.0), seed=seed)
    splits = [one if one == "test" else other for one, other in zip(splits, inner, strict=True)]
    places = (folder / "records" / "records", folder / "records", folder)  # the archive holds a folder of its own
    base = next((place for place in places if place.is_dir() and any(place.glob("*.h5"))), folder)
    files = [base / f"{name}.h5" for name in names]
    keep = np.array([file.is_file() for file in files] if require_files else [True] * len(files), dtype=bool)
    if not keep.any():
        raise MissingPartError(
            str(base), f"{METADATA} is there, but none of the recordings it names", "Unpack records.tar.gz beside it"
        )
    return _manifest(table, names, files, splits, keep)


def _manifest(
    table: pd.DataFrame, names: pd.Series, files: list[Path], splits: list[str], keep: np.ndarray
) -> Manifest:
    rows = np.flatnonzero(keep)
    part = table.iloc[rows].reset_index(drop=True)
    readings = [
        read_aha_cell(cell, f"{METADATA}, {name}, AHA_Code")
        for cell, name in zip(part["AHA_Code"], names.iloc[rows], strict=True)
    ]
    return manifest_from_columns(
        {
            "record": names.iloc[rows].tolist(),
            "path": [str(files[row]) for row in rows],
            "patient": part["Patient_ID"].str.strip().tolist(),
            "split": [splits[row] for row in rows],
            "report": [reading.report for reading in readings],
            "statements": [reading.statements for reading in readings],
            "labels": [reading.labels for reading in readings],
            "language": ["en"] * len(rows),
            "age": numbers_in(part["Age"], 0, 130),
            "sex": sexes_of(part["Sex"]),
            "aha": part["AHA_Code"],
            "samples": numbers_in(part["N"], 1, 1_000_000),
        }
    )


def official_split(patients: list[str]) -> list[str]:
    """Return `train` or `test` for each row of SPH's metadata, in the table's order.

    Everyone with more than one recording goes to the test side; it is then filled up to a fifth of the records by a
    draw among the others. On the full table of 25,770 rows this gives 20,616 and 5,154. The draw is numpy's legacy
    generator, whose stream is frozen, as pandas' `sample(n, random_state=73)` uses it.

    Args:
        patients: the patient of each row, (n,).
    """
    repeated = pd.Series(patients).duplicated(keep=False).to_numpy()
    missing = max(int(len(patients) * TEST_SHARE) - int(repeated.sum()), 0)
    alone = np.flatnonzero(~repeated)
    drawn = np.random.RandomState(TEST_SEED).permutation(len(alone))[:missing]
    test = repeated.copy()
    test[alone[drawn]] = True
    return ["test" if one else "train" for one in test]
