"""PTB-XL as a manifest: 21,799 ten-second ECGs of 18,869 patients with SCP statements, read in the published layout.

It reads the tables and leaves the signals where they are. Reports are rebuilt in English from the statements, since
most originals are German; the original text is kept beside them. Taught in: 02 §2 and §3.

Source: Wagner et al., PTB-XL, a large publicly available electrocardiography dataset, Scientific Data 7 (2020) 154,
doi:10.1038/s41597-020-0495-6; licence CC BY 4.0.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pandas as pd

from ecgchat_lib.datasets.labels import STATEMENTS
from ecgchat_lib.datasets.manifest import Manifest, make_manifest
from ecgchat_lib.datasets.reports import report_from_statements
from ecgchat_lib.errors import EcgChatError, MissingPartError

DATABASE = "ptbxl_database.csv"
NEEDED = ("ecg_id", "patient_id", "age", "sex", "report", "scp_codes", "strat_fold", "filename_hr", "filename_lr")
SEXES = {0: "male", 1: "female"}
HIDDEN_AGE = 300  # PTB-XL ≥ 1.0.2 writes this for everyone older than 89 years, to protect them


def load_ptbxl(folder: str | Path, *, require_files: bool = True, low_rate: bool = False) -> Manifest:
    """Load PTB-XL's metadata as a manifest.

    Folds 1–8 train, 9 validation, 10 test, as the dataset's authors recommend; they are disjoint in patients. All
    statements are kept with their likelihoods.

    Args:
        folder: the dataset's folder, with `ptbxl_database.csv` (or `.csv.gz`) and `records500/`.
        require_files: keep only the records whose header lies in the folder; False keeps every row of the table.
        low_rate: paths of the 100 Hz records (`records100/`) instead of the 500 Hz ones.

    Returns:
        A manifest with the further columns `report_original` (the clinician's or device's text), `age` in years (NaN
        if unknown; 90 for PTB-XL's "older than 89"), `sex` ("male", "female" or None) and `fold` (1–10).

    Raises:
        MissingPartError: the table is not there, or none of its records is.
        EcgChatError: a column is missing or a cell can't be read.
    """
    folder = Path(folder)
    table = _read_table(folder)
    name = "filename_lr" if low_rate else "filename_hr"
    if require_files:
        table = table.loc[[_has_header(folder, path) for path in table[name]]]
        if table.empty:
            raise MissingPartError(
                str(folder),
                f"{DATABASE} is there, but none of the recordings it names ({name})",
                "Unpack PTB-XL's records500/ beside it, or pass require_files=False to work with the labels alone",
            )
    return make_manifest([_row(folder, name, cells) for cells in table.to_dict("records")])


def _read_table(folder: Path) -> pd.DataFrame:
    found = next((folder / name for name in (DATABASE, f"{DATABASE}.gz") if (folder / name).is_file()), None)
    if found is None:
        raise MissingPartError(
            str(folder / DATABASE),
            "no such file",
            "Name the folder of PTB-XL (https://physionet.org/content/ptb-xl/), or make a synthetic one with "
            "ecgchat_lib.datasets.synthetic.write_synthetic",
        )
    table = pd.read_csv(found)
    missing = [name for name in NEEDED if name not in table.columns]
    if missing:
        raise EcgChatError(f"{found}: columns {missing} are missing. Use the table as published with PTB-XL")
    return table


def _has_header(folder: Path, path: object) -> bool:
    return isinstance(path, str) and (folder / f"{path}.hea").is_file()


def parse_scp_codes(text: str, *, where: str = "scp_codes") -> tuple[tuple[str, float], ...]:
    """Read PTB-XL's `scp_codes` cell, a Python dictionary as text, without executing it.

    Args:
        text: such as `"{'NORM': 100.0, 'SR': 0.0}"`.
        where: what to call the cell in an error.

    Returns:
        (code, likelihood in percent) pairs in the order of the text; 0 means that the likelihood is unknown.

    Raises:
        EcgChatError: the text is something else, or holds a code that PTB-XL doesn't have.
    """
    try:
        codes = ast.literal_eval(text)
        pairs = tuple((str(code), float(likelihood)) for code, likelihood in codes.items())
    except (ValueError, SyntaxError, TypeError, AttributeError, MemoryError, RecursionError):
        raise EcgChatError(f"{where}: found {str(text)[:60]!r}, expected a dictionary like {{'NORM': 100.0}}") from None
    unknown = [code for code, _ in pairs if code not in STATEMENTS]
    if unknown:
        raise EcgChatError(f"{where}: statements {unknown} are not in scp_statements.csv. Update data/labels/")
    return pairs


def _row(folder: Path, name: str, cells: dict) -> dict[str, object]:
    number = int(cells["ecg_id"])
    statements = parse_scp_codes(cells["scp_codes"], where=f"{DATABASE}, ecg_id {number}, scp_codes")
    patient = cells["patient_id"]
    # A record without a patient gets one of its own: it must not share a split by accident.
    patient = f"record-{number}" if pd.isna(patient) else str(int(patient))
    age = float(cells["age"])
    fold = int(cells["strat_fold"])
    original = cells["report"]
    return {
        "record": f"{number:05d}",
        "path": str(folder / cells[name]) if isinstance(cells[name], str) else str(folder / f"{number:05d}"),
        "patient": patient,
        "split": split_of_fold(fold),
        "report": report_from_statements(statements, seed=number),
        "statements": statements,
        "language": "en",
        "report_original": original if isinstance(original, str) else "",
        "age": 90.0 if age == HIDDEN_AGE else age,
        "sex": SEXES.get(cells["sex"]),
        "fold": fold,
    }


def split_of_fold(fold: int) -> str:
    """Return the split of PTB-XL's fold 1–10: 1–8 `train`, 9 `validation`, 10 `test`.

    Raises:
        EcgChatError: the fold is not 1–10.
    """
    if not 1 <= fold <= 10:
        raise EcgChatError(f"fold {fold}: expected 1 to 10. Use the table as published with PTB-XL")
    return "train" if fold <= 8 else "validation" if fold == 9 else "test"
