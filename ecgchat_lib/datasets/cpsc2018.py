"""CPSC2018 as a manifest: 6,877 ECGs of 6–60 s with one to three of nine labels, and the ten of them shipped here.

It reads both forms in which the set goes round: the headers of the PhysioNet/CinC Challenge (SNOMED CT codes in
`# Dx:`), and the original `REFERENCE.csv` with up to three class numbers. CPSC2018 names no patients and has no report
texts; reports are written from the statements, and every record belongs to the test split, as in the paper, which
evaluates on it only. The original's "validation set" is A0001–A0300 of its training set over again, so a record is
taken once, whatever folders hold it. Taught in: 02 §2, §5 and §7.

Sources: Liu et al., J. Med. Imaging Health Inform. 8 (2018) 1368, doi:10.1166/jmihi.2018.2442; Alday et al., PhysioNet/
CinC Challenge 2020, Physiol. Meas. 41 (2020) 124003, doi:10.1088/1361-6579/abc960; licence CC BY 4.0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from ecgchat_lib.datasets.labels import CPSC2018_CLASSES, Statements
from ecgchat_lib.datasets.manifest import SPLITS, Manifest, manifest_from_columns, split_by_hash
from ecgchat_lib.datasets.reports import report_from_statements
from ecgchat_lib.datasets.snomed import CONCEPTS, read_header_facts
from ecgchat_lib.datasets.tables import SEXES, age_of, read_table
from ecgchat_lib.errors import EcgChatError, MissingPartError, RecordError
from ecgchat_lib.paths import data_folder

# Class of CPSC2018 → its SNOMED CT code in the Challenges' headers.
CLASS_CODES: Mapping[str, str] = MappingProxyType(
    {
        "NORM": "426783006",  # sinus rhythm; CPSC2018's own name of the class is "Normal"
        "AFIB": "164889003",
        "1AVB": "270492004",
        "CLBBB": "164909002",
        "CRBBB": "59118001",
        "PAC": "284470004",
        "PVC": "164884008",
        "STD_": "429622005",
        "STE_": "164931005",
    }
)

# The abbreviations of the first Challenge release of early 2020 (A0011–A0150 in some copies). Its AF is fibrillation.
ABBREVIATIONS: Mapping[str, str] = MappingProxyType(
    {
        "Normal": "426783006",
        "AF": "164889003",
        "I-AVB": "270492004",
        "LBBB": "164909002",
        "RBBB": "59118001",
        "PAC": "284470004",
        "PVC": "164884008",
        "STD": "429622005",
        "STE": "164931005",
    }
)

SNOMED: Mapping[str, tuple[str, float]] = MappingProxyType(
    {code: CONCEPTS[code].statements[0] for code in CLASS_CODES.values()}
)
"""SNOMED CT code of a class → its statement."""

REFERENCE = "REFERENCE.csv"
_NAME = re.compile(r"A\d{4}")  # A0001 to A6877
SHOWN_AGAIN = frozenset(f"A{number:04d}" for number in range(1, 301))  # the original's 300 validation records


def load_cpsc2018(folder: str | Path, *, split: str = "test", seed: int = 0) -> Manifest:
    """Load a folder of CPSC2018 records (searched at any depth) as a manifest.

    Since CPSC2018 names no patients, each record counts as its own; a random split of it may have the same person on
    both sides, and nothing in the data can tell. "Normal", SNOMED's sinus rhythm, becomes (NORM, 100) and (SR, 0).

    Args:
        folder: holds `A0001.hea`, `A0001.mat`, … (it may be a whole Challenge's folder; other datasets' records are
            passed over); or the original's `REFERENCE.csv` beside `A0001.mat`, ….
        split: the split of every record; or "random", which gives 80, 10 and 10 % of the records to the three splits by
            a hash of their names. Either way a record stands on one side only.
        seed: which random split.

    Returns:
        A manifest with the further columns `age` (years, NaN if unknown), `sex`, `snomed` (tuple of codes) and
        `shown_again` (True for A0001–A0300, which the original validates on after training on them).

    Raises:
        MissingPartError: there is no record in the folder.
        RecordError: a header has no `# Dx:` line, or the same record lies in two folders with different labels.
        EcgChatError: the split is unknown.
    """
    folder = Path(folder)
    if split not in (*SPLITS, "random"):
        raise EcgChatError(f"split {split!r}: expected one of {', '.join(SPLITS)}, or random")
    references = sorted(folder.rglob(REFERENCE)) if folder.is_dir() else []
    rows = _rows_of_references(references) if references else _rows_of_headers(folder)
    if not rows:
        raise MissingPartError(
            str(folder),
            f"neither a WFDB header (*.hea) nor {REFERENCE} in this folder",
            "Name the folder with CPSC2018's A0001.hea …, for example the project's data/real_sample",
        )
    names = list(rows)
    splits = split_by_hash(names, seed=seed) if split == "random" else [split] * len(names)
    frame = pd.DataFrame(list(rows.values()))
    return manifest_from_columns(
        {
            "record": names,
            "path": frame["path"],
            "patient": names,
            "split": splits,
            "report": [
                report_from_statements(row["statements"], seed=_number(name))  # type: ignore[arg-type]
                for name, row in rows.items()
            ],
            "statements": frame["statements"],
            "language": ["en"] * len(names),
            "age": frame["age"].astype(np.float64),
            "sex": pd.Series(frame["sex"].tolist(), dtype=object),
            "snomed": pd.Series(frame["snomed"].tolist(), dtype=object),
            "shown_again": [name in SHOWN_AGAIN for name in names],
        }
    )


def load_real_sample() -> Manifest:
    """Load the ten real CPSC2018 recordings A0001–A0010 that come with the project (CC BY 4.0).

    Raises:
        MissingPartError: `data/real_sample` is missing.
    """
    return load_cpsc2018(data_folder() / "real_sample")


def statements_from_snomed(codes: tuple[str, ...]) -> Statements:
    """Map CPSC2018's SNOMED CT codes (or early abbreviations) to SCP statements; unknown codes are left out.

    Args:
        codes: such as `("426783006",)` or `("Normal",)`.

    Returns:
        (SCP code, likelihood) pairs; the normal class alone gives NORM and SR.
    """
    known = [ABBREVIATIONS.get(code, code) for code in codes]
    statements = tuple(dict(SNOMED[code] for code in known if code in SNOMED).items())
    if statements == (("SR", 0.0),):
        return (("NORM", 100.0), ("SR", 0.0))
    return statements


def _number(name: str) -> int:
    return int(re.sub(r"\D", "", name)[-12:] or 0)


def _add(rows: dict[str, dict[str, object]], name: str, row: dict[str, object], where: Path) -> None:
    """Take a record once; refuse a second one of the same name with other labels."""
    first = rows.setdefault(name, row)
    if first["statements"] != row["statements"]:
        found = f"record {name} with other labels than in {first['path']}"
        raise RecordError(where, found, "Keep one of the two folders, as published")


def _rows_of_headers(folder: Path) -> dict[str, dict[str, object]]:
    rows: dict[str, dict[str, object]] = {}
    for path in sorted(folder.rglob("A*.hea")) if folder.is_dir() else []:
        if not _NAME.fullmatch(path.stem):  # the Challenges' other datasets lie beside it
            continue
        facts = read_header_facts(path)
        row: dict[str, object] = {
            "path": str(path.with_suffix("")),
            "statements": statements_from_snomed(facts.codes),
            "age": age_of(facts.comments.get("age", "")),
            "sex": SEXES.get(facts.comments.get("sex", "").lower()),
            "snomed": facts.codes,
        }
        _add(rows, path.stem, row, path)
    return rows


def _rows_of_references(paths: list[Path]) -> dict[str, dict[str, object]]:
    """Read the original's tables; the training set's copy of a record wins over the validation set's."""
    rows: dict[str, dict[str, object]] = {}
    for path in sorted(paths, key=lambda path: ("valid" in path.parent.name.lower(), path)):
        table = read_table(path, ("Recording", "First_label"), texts=("Recording",))
        labels = [name for name in ("First_label", "Second_label", "Third_label") if name in table.columns]
        for position, cells in enumerate(table.to_dict("records")):
            name = str(cells["Recording"]).strip()
            if not _NAME.fullmatch(name):
                raise RecordError(
                    path, f"row {position + 1}: {name[:40]!r} is no record's name", "Use the table as published"
                )
            codes = tuple(dict.fromkeys(CLASS_CODES[one] for one in _classes(cells, labels, name, path)))
            row: dict[str, object] = {
                "path": str(path.parent / f"{name}.mat"),
                "statements": statements_from_snomed(codes),
                "age": age_of(cells.get("age", "")),
                "sex": SEXES.get(str(cells.get("sex", "")).lower()),
                "snomed": codes,
            }
            _add(rows, name, row, path)
    return rows


def _classes(cells: Mapping[object, object], columns: list[str], name: str, path: Path) -> list[str]:
    found = []
    for column in columns:
        number = pd.to_numeric(pd.Series([cells[column]]), errors="coerce").iloc[0]
        if pd.isna(number) and column != "First_label":
            continue
        if not np.isfinite(number) or number != int(number) or not 1 <= number <= len(CPSC2018_CLASSES):
            said = f"record {name}, {column}: found {str(cells[column])[:20]!r}, expected 1 to {len(CPSC2018_CLASSES)}"
            raise RecordError(path, said, "Use the table as published")
        found.append(CPSC2018_CLASSES[int(number) - 1])
    return found
