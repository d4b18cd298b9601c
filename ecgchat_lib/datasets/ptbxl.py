"""PTB-XL as a manifest: 21,799 ten-second ECGs of 18,869 patients with SCP statements, read in the published layout.

It reads the tables and leaves the signals where they are. Reports are rebuilt in English from the statements, since
most originals are German; the original text is kept beside them. What was published twice, or revised since version
1.0.1, is known: see `TWINS`, `WITHDRAWN` and `REVISED`. Taught in: 02 §2, §3 and §5.

Source: Wagner et al., PTB-XL, a large publicly available electrocardiography dataset, Scientific Data 7 (2020) 154,
doi:10.1038/s41597-020-0495-6; licence CC BY 4.0.
"""

from __future__ import annotations

import ast
import csv
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from ecgchat_lib.datasets.labels import STATEMENTS, Statements, parse_statements
from ecgchat_lib.datasets.manifest import Manifest, manifest_from_columns
from ecgchat_lib.datasets.reports import language_of, report_from_statements
from ecgchat_lib.datasets.tables import check_paths, find_table, numbers_in, read_table, sexes_of, whole_numbers
from ecgchat_lib.errors import EcgChatError, MissingPartError, RecordError
from ecgchat_lib.paths import data_folder

DATABASE = "ptbxl_database.csv"
NEEDED = ("ecg_id", "patient_id", "age", "sex", "report", "scp_codes", "strat_fold", "filename_hr", "filename_lr")
HIDDEN_AGE = 300  # PTB-XL ≥ 1.0.2 writes this for everyone older than 89 years, to protect them
MAX_CELL = 10_000  # characters of a scp_codes cell; real ones have below 200

# Records of version 1.0.1 with identical waveforms (found by comparing samples). 145 and 463 even go by two patients.
TWINS: tuple[tuple[int, int], ...] = ((137, 138), (143, 144), (145, 463), (456, 457), (459, 460))


def _read_changes(path: Path) -> tuple[frozenset[int], dict[int, Statements]]:
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    gone = frozenset(int(row["ecg_id"]) for row in rows if row["change"] == "withdrawn")
    revised = {
        int(row["ecg_id"]): parse_statements(row["statements"], where=f"{path.name}, {row['ecg_id']}")
        for row in rows
        if row["change"] == "revised"
    }
    return gone, revised


_GONE, _REVISED = _read_changes(data_folder() / "labels" / "ptbxl_1_0_3.csv")

WITHDRAWN: frozenset[int] = _GONE
"""The 38 records of 1.0.1 that 1.0.3 no longer has: those that stand in none of the four label lists which MERL made
from 1.0.3, exactly as many as the versions differ by. One of each pair of twins is among them."""

REVISED: Mapping[int, Statements] = MappingProxyType(_REVISED)
"""The ten records whose statements differ between 1.0.1 and 1.0.3, as far as MERL's lists show it; where only a
likelihood changed, they can't tell. Several took over the statements of a withdrawn neighbor."""


def load_ptbxl(
    folder: str | Path, *, require_files: bool = True, low_rate: bool = False, as_of: str | None = None
) -> Manifest:
    """Load PTB-XL's metadata as a manifest.

    Folds 1–8 train, 9 validation, 10 test, as the dataset's authors recommend; they are disjoint in patients. All
    statements are kept with their likelihoods. Twins (identical waveforms) get one patient, so that no split by patient
    parts them, and the earlier one of the two names the later in `twin`.

    Args:
        folder: the dataset's folder, with `ptbxl_database.csv` (or `.csv.gz`) and `records500/`.
        require_files: keep only the records whose header lies in the folder; False keeps every row of the table.
        low_rate: paths of the 100 Hz records (`records100/`) instead of the 500 Hz ones.
        as_of: "1.0.3" turns a table of 1.0.1 into what published comparisons use: without `WITHDRAWN`, and with
            `REVISED`; None takes the table as it is.

    Returns:
        A manifest with the further columns `report_original` (the clinician's or device's text), `language_original`
        (`de`, `en`, `sv`, or "" if the words don't tell), `age` in years (NaN if unknown; 90 for PTB-XL's "older than
        89"), `sex` ("male", "female" or None), `fold` (1–10) and `twin` (the record with the same waveform, or "").

    Raises:
        MissingPartError: the table is not there, or none of its records is.
        EcgChatError: a column is missing or a cell can't be read; the message names the record.
    """
    folder = Path(folder)
    if as_of not in (None, "1.0.3"):
        raise EcgChatError(f"as_of {as_of!r}: expected None or '1.0.3'")
    path = find_table(
        folder,
        (DATABASE,),
        "Name the folder of PTB-XL (https://physionet.org/content/ptb-xl/), or make a synthetic one with "
        "ecgchat_lib.datasets.synthetic.write_synthetic",
    )
    table = read_table(path, NEEDED, texts=("report", "scp_codes", "filename_hr", "filename_lr"))
    numbers = whole_numbers(table["ecg_id"], "ecg_id", path)
    name = "filename_lr" if low_rate else "filename_hr"
    keep = pd.Series(True, index=table.index) if as_of is None else ~numbers.isin(WITHDRAWN)
    if require_files:
        check_paths(table[name].where(table[name] != "", "none"), numbers, path)  # before the disk is asked for them
        keep &= pd.Series([_has_header(folder, cell) for cell in table[name]], index=table.index)
        if not keep.any():
            raise MissingPartError(
                str(folder),
                f"{DATABASE} is there, but none of the recordings it names ({name})",
                "Unpack PTB-XL's records500/ beside it, or pass require_files=False to work with the labels alone",
            )
    return _manifest(folder, path, table[keep].reset_index(drop=True), numbers[keep].tolist(), name, as_of is not None)


def _manifest(folder: Path, path: Path, table: pd.DataFrame, numbers: list[int], name: str, revised: bool) -> Manifest:
    where = [f"{DATABASE}, ecg_id {number}" for number in numbers]
    cells = zip(table["scp_codes"], where, strict=True)
    statements = [parse_scp_codes(text, where=f"{at}, scp_codes") for text, at in cells]
    if revised:
        statements = [REVISED.get(number, found) for number, found in zip(numbers, statements, strict=True)]
    named = table[name].where(table[name] != "", pd.Series([f"{number:05d}" for number in numbers], dtype=object))
    check_paths(named, pd.Series(numbers), path)
    folds = [_fold(cell, at) for cell, at in zip(table["strat_fold"], where, strict=True)]
    ages = numbers_in(table["age"], 0, HIDDEN_AGE)
    ages = ages.where((ages <= 130) | (ages == HIDDEN_AGE))
    twins_known = (
        () if (folder / "synthetic.json").is_file() else TWINS
    )  # a made dataset has PTB-XL's numbers, not its twins
    patients, twins = _patients_and_twins(table["patient_id"], numbers, twins_known)
    return manifest_from_columns(
        {
            "record": [f"{number:05d}" for number in numbers],
            "path": [str(folder / cell) for cell in named],
            "patient": patients,
            "split": [split_of_fold(fold) for fold in folds],
            "report": [report_from_statements(one, seed=k) for one, k in zip(statements, numbers, strict=True)],
            "statements": statements,
            "language": ["en"] * len(table),
            "report_original": table["report"],
            "language_original": [language_of(text) for text in table["report"]],
            "age": ages.mask(ages == HIDDEN_AGE, 90.0),
            "sex": sexes_of(table["sex"]),
            "fold": folds,
            "twin": twins,
        }
    )


def _has_header(folder: Path, path: str) -> bool:
    return bool(path) and (folder / f"{path}.hea").is_file()


def _fold(cell: object, where: str) -> int:
    try:
        fold = int(float(str(cell)))
    except (ValueError, OverflowError):
        fold = 0
    if not 1 <= fold <= 10:
        raise EcgChatError(f"{where}: fold {str(cell)[:40]}; expected 1 to 10. Use the table as published with PTB-XL")
    return fold


def _patients_and_twins(
    cells: pd.Series, numbers: list[int], pairs: tuple[tuple[int, int], ...]
) -> tuple[list[str], list[str]]:
    """Name each record's patient and its twin; twins share the patient of the later one, the one that was kept."""
    known = numbers_in(cells, 0, 2**53)
    # A record without a patient gets one of its own: it must not share a split by accident.
    patient = {
        number: f"record-{number}" if pd.isna(one) else str(int(one))
        for number, one in zip(numbers, known, strict=True)
    }
    twin = dict.fromkeys(numbers, "")
    for first, second in pairs:
        if first in patient and second in patient:
            patient[first] = patient[second]
            twin[first], twin[second] = f"{second:05d}", f"{first:05d}"
    return [patient[number] for number in numbers], [twin[number] for number in numbers]


@lru_cache(maxsize=50_000)
def _parse_cell(text: str) -> Statements | None:
    try:
        codes = ast.literal_eval(text)
        return tuple((str(code), float(likelihood)) for code, likelihood in codes.items())
    except (ValueError, SyntaxError, TypeError, AttributeError, MemoryError, RecursionError):
        return None


def parse_scp_codes(text: str, *, where: str = "scp_codes") -> Statements:
    """Read PTB-XL's `scp_codes` cell, a Python dictionary as text, without executing it.

    Args:
        text: such as `"{'NORM': 100.0, 'SR': 0.0}"`.
        where: what to call the cell in an error.

    Returns:
        (code, likelihood in percent) pairs in the order of the text; 0 means that the likelihood is unknown.

    Raises:
        EcgChatError: the text is something else, or holds a code that PTB-XL doesn't have.
    """
    pairs = _parse_cell(text) if isinstance(text, str) and len(text) <= MAX_CELL else None
    if pairs is None:
        raise EcgChatError(f"{where}: found {str(text)[:60]!r}, expected a dictionary like {{'NORM': 100.0}}")
    unknown = [code[:20] for code, _ in pairs if code not in STATEMENTS]
    if unknown:
        raise EcgChatError(f"{where}: statements {unknown} are not in scp_statements.csv. Update data/labels/")
    return pairs


def split_of_fold(fold: int) -> str:
    """Return the split of PTB-XL's fold 1–10: 1–8 `train`, 9 `validation`, 10 `test`.

    Raises:
        EcgChatError: the fold is not 1–10.
    """
    if not 1 <= fold <= 10:
        raise EcgChatError(f"fold {fold}: expected 1 to 10. Use the table as published with PTB-XL")
    return "train" if fold <= 8 else "validation" if fold == 9 else "test"


def without_twins(manifest: Manifest) -> Manifest:
    """Return a PTB-XL manifest with one record of each pair of identical waveforms, the one that 1.0.3 kept.

    Raises:
        RecordError: the manifest has no column `twin`, so it isn't one of `load_ptbxl`.
    """
    if "twin" not in manifest.columns:
        raise RecordError("manifest", "has no column 'twin'", "Pass what load_ptbxl returns")
    present = set(manifest["record"])
    drop = (manifest["twin"] > manifest["record"]) & manifest["twin"].isin(present)
    return manifest[~drop].reset_index(drop=True)
