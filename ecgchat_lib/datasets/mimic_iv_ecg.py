"""MIMIC-IV-ECG as a manifest: 800,035 ECGs of some 160,000 patients, with the machine's statements as reports.

It reads `record_list.csv` and `machine_measurements.csv` as published and leaves the signals where they are. Each
machine statement is cleaned and read once, however many records make it, so the whole table takes minutes. The
statements are a machine's: nobody has confirmed them. Taught in: 02 §2, §4 and §5.

The split goes by patient (`subject_id`, hashed), so it is disjoint, and uses every record. The original's goes by the
last digit of a study's number: patients on both sides, and an empty slice that leaves out a tenth of the records.

Source: Gow et al., MIMIC-IV-ECG 1.0, PhysioNet (2023), doi:10.13026/4nqg-sb35; license ODbL 1.0.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from ecgchat_lib.datasets.labels import Statements
from ecgchat_lib.datasets.manifest import Manifest, manifest_from_columns, split_by_hash
from ecgchat_lib.datasets.reports import clean_report
from ecgchat_lib.datasets.tables import check_paths, find_table, numbers_in, read_table, whole_numbers
from ecgchat_lib.datasets.wording import statements_from_text
from ecgchat_lib.errors import EcgChatError, MissingPartError, RecordError

RECORD_LIST = "record_list.csv"
MEASUREMENTS = "machine_measurements.csv"
REPORT_COLUMNS = tuple(f"report_{k}" for k in range(18))

# Column → the range of values that can be: ms, or degrees for the axes. The machine writes 29999 where it has none;
# that and anything else outside the range becomes NaN.
MEASURED: dict[str, tuple[float, float]] = {
    "rr_interval": (150.0, 5000.0),
    "p_onset": (0.0, 5000.0),
    "p_end": (0.0, 5000.0),
    "qrs_onset": (0.0, 5000.0),
    "qrs_end": (0.0, 5000.0),
    "t_end": (0.0, 5000.0),
    "p_axis": (-180.0, 360.0),
    "qrs_axis": (-180.0, 360.0),
    "t_axis": (-180.0, 360.0),
}

# Statements about the recording rather than about the heart.
_REMARK = re.compile(
    r"data quality|unsuitable for analysis|analysis error|lead reversal|measurement error|pediatric criteria"
    r"|pediatric ecg interpretation|without knowing patient|pacer detection suspended|faulty v\d|sequence error"
    r"|missing lead|leads? (?:are )?missing|report may not be valid|no further analysis|unconfirmed|confirmed by"
    r"|please repeat|summary:",
    re.IGNORECASE,
)


def load_mimic_iv_ecg(
    folder: str | Path,
    *,
    fractions: tuple[float, float, float] = (0.9, 0.05, 0.05),
    seed: int = 0,
    require_files: bool = True,
) -> Manifest:
    """Load MIMIC-IV-ECG's tables as a manifest.

    Args:
        folder: holds `record_list.csv`, `machine_measurements.csv` and `files/`.
        fractions: shares of the patients for train, validation and test.
        seed: which split. A patient's side depends on it and on the patient's number alone, not on what was downloaded.
        require_files: keep only records whose header lies in the folder; False asks the disk for nothing.

    Returns:
        A manifest with the further columns `remarks` (what the machine says about the recording itself, kept out of the
        report), `ecg_time`, the nine columns of `MEASURED` as float32 (NaN where the machine has no value), and from
        them `machine_pr_ms`, `machine_qrs_ms` and `machine_qt_ms`. A record without a machine report has the report "".

    Raises:
        MissingPartError: a table is not there, or none of its records is.
        RecordError, EcgChatError: a column is missing, a cell can't be read, a study stands twice, or the two tables
            disagree on whose study it is.
    """
    folder = Path(folder)
    remedy = "Name the folder of MIMIC-IV-ECG (https://doi.org/10.13026/4nqg-sb35), which is open, with both tables"
    list_path = find_table(folder, (RECORD_LIST,), remedy)
    machine_path = find_table(folder, (MEASUREMENTS,), remedy)
    records = _read_records(list_path)
    if require_files:
        records = records[[(folder / f"{path}.hea").is_file() for path in records["path"]]].reset_index(drop=True)
        if records.empty:
            raise MissingPartError(
                str(folder),
                f"{RECORD_LIST} is there, but none of the recordings it names",
                "Download files/ beside it, or pass require_files=False to work with the tables alone",
            )
    machine = _read_machine(machine_path, records)
    reports, statements, remarks = read_machine_reports(machine)
    patients = records["subject_id"].astype(str).tolist()
    measured = {name: numbers_in(machine[name], *bounds).astype(np.float32) for name, bounds in MEASURED.items()}
    base = str(folder) + "/"
    return manifest_from_columns(
        {
            "record": records["study_id"].astype(str),
            "path": base + records["path"],
            "patient": patients,
            "split": pd.Series(split_by_hash(patients, fractions=fractions, seed=seed)),
            "report": reports,
            "statements": statements,
            "language": pd.Series(["en"] * len(records)),
            "remarks": remarks,
            "ecg_time": records["ecg_time"],
            **measured,
            **_intervals(measured),
        }
    )


def _read_records(path: Path) -> pd.DataFrame:
    needed = ("subject_id", "study_id", "file_name", "ecg_time", "path")
    table = read_table(path, needed, texts=("path", "ecg_time"), columns=needed)
    for name in ("subject_id", "study_id"):
        table[name] = whole_numbers(table[name], name, path)
    twice = table["study_id"].duplicated()
    if twice.any():
        found = f"study {table['study_id'][int(np.argmax(twice.to_numpy()))]} stands twice"
        raise RecordError(path, found, "Use the table as published")
    check_paths(table["path"], table["study_id"], path)
    return table


def _read_machine(path: Path, records: pd.DataFrame) -> pd.DataFrame:
    """Read the rows of the measurement table that belong to the records, in their order."""
    needed = ("subject_id", "study_id", *MEASURED)
    table = read_table(path, needed, texts=REPORT_COLUMNS, columns=(*needed, *REPORT_COLUMNS))
    if not any(name in table.columns for name in REPORT_COLUMNS):
        raise EcgChatError(f"{path}: columns report_0 … report_17 are missing. Use the table as published")
    table["study_id"] = whole_numbers(table["study_id"], "study_id", path)
    table["subject_id"] = whole_numbers(table["subject_id"], "subject_id", path)
    if table["study_id"].duplicated().any():
        study = table.loc[table["study_id"].duplicated(), "study_id"].iloc[0]
        raise RecordError(path, f"study {study} stands twice", "Use the table as published")
    joined = table.set_index("study_id").reindex(records["study_id"]).reset_index(drop=True)
    other = joined["subject_id"].notna() & (joined["subject_id"] != records["subject_id"])
    if other.any():
        study = records["study_id"][int(np.argmax(other.to_numpy()))]
        raise RecordError(
            path, f"study {study} has another subject_id than in {RECORD_LIST}", "Use tables of one version"
        )
    return joined


@lru_cache(maxsize=500_000)
def read_machine_statement(text: str) -> tuple[str, Statements, bool]:
    """Clean one machine statement: its text, what it says, and whether it is a remark about the recording."""
    if _REMARK.search(text) and not re.match(r"\s*pacemaker rhythm", text, re.IGNORECASE):
        return clean_report(text), (), True
    return clean_report(text), statements_from_text(text), False


def read_machine_reports(machine: pd.DataFrame) -> tuple[list[str], list[Statements], list[str]]:
    """Join each row's statements: the report, what it says, and the remarks about the recording.

    Args:
        machine: has some of the columns `report_0` … `report_17`; cells are texts, or NaN.
    """
    columns = [machine[name].tolist() for name in REPORT_COLUMNS if name in machine.columns]
    known: dict[tuple[str, ...], tuple[str, Statements, str]] = {}
    rows = []
    for cells in zip(*columns, strict=True):
        said = tuple([text for text in cells if isinstance(text, str) and text])
        if said not in known:
            known[said] = _join(said)
        rows.append(known[said])
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


def _join(said: tuple[str, ...]) -> tuple[str, Statements, str]:
    texts: list[str] = []
    remarks: list[str] = []
    found: dict[str, float] = {}
    for text in dict.fromkeys(said):
        cleaned, statements, remark = read_machine_statement(text)
        (remarks if remark else texts).append(cleaned)
        for code, likelihood in statements:
            found[code] = _surer(found[code], likelihood) if code in found else likelihood
    return " ".join(filter(None, texts)), tuple(found.items()), " ".join(filter(None, remarks))


def _surer(one: float, other: float) -> float:
    return one if one in (0.0, 100.0) else other if other in (0.0, 100.0) else max(one, other)


def _intervals(measured: dict[str, pd.Series]) -> dict[str, pd.Series]:
    """PR, QRS and QT in ms from the machine's fiducial points; NaN where one is missing or they are out of order."""
    pairs = {"pr": ("p_onset", "qrs_onset"), "qrs": ("qrs_onset", "qrs_end"), "qt": ("qrs_onset", "t_end")}
    spans = {f"machine_{name}_ms": measured[end] - measured[begin] for name, (begin, end) in pairs.items()}
    return {name: span.where(span > 0) for name, span in spans.items()}
