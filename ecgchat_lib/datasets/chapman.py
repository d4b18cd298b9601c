"""Chapman-Shaoxing-Ningbo as a manifest: 45,152 ten-second ECGs of as many people, with SNOMED CT codes in the headers.

It reads the layout of PhysioNet's ecg-arrhythmia (`WFDBRecords/01/010/JS00001.hea`) and the Challenges' flat folders.
There is no report text; reports are written from the codes. The publishers give one record per person and no patient
number, so a record is a patient. There is no official split: ours goes by a hash of the record's name, and does not
depend on the order of the folders, as the original's does. Taught in: 02 §2 and §3.

Sources: Zheng et al., Scientific Reports 10 (2020) 2898, doi:10.1038/s41598-020-59821-7; PhysioNet,
doi:10.13026/wgex-er52; licence CC BY 4.0.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from ecgchat_lib.datasets.manifest import Manifest, manifest_from_columns, split_by_hash
from ecgchat_lib.datasets.snomed import (
    HeaderFacts,
    labels_of_codes,
    read_header_facts,
    report_of_codes,
    statements_of_codes,
)
from ecgchat_lib.datasets.tables import SEXES, age_of
from ecgchat_lib.errors import MissingPartError, RecordError

# In PhysioNet's ecg-arrhythmia 1.0.0 a lost line break merged the record line and the first signal line of these two,
# so that twelve signals are declared and eleven described. The Challenge's copy of JS01052 is intact.
UNREADABLE = frozenset({"JS01052", "JS23074"})


def load_chapman(
    folder: str | Path,
    *,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    require_files: bool = True,
) -> Manifest:
    """Load a folder of Chapman-Shaoxing-Ningbo as a manifest.

    The two headers of `UNREADABLE` are left out where they are broken; any other broken header is an error.

    Args:
        folder: holds `WFDBRecords/`, or headers JS00001 … at any depth, beside other datasets' too.
        fractions: shares of train, validation and test.
        seed: which split.
        require_files: keep only records whose `.mat` lies beside the header, as in a partial download.

    Returns:
        A manifest with the further columns `age` (years, NaN if unknown), `sex` and `snomed` (tuple of codes, as in the
        header; `data/labels/snomed_ct.csv` may not list all of them).

    Raises:
        MissingPartError: there is no record in the folder.
        RecordError: a header is broken; the message names it.
    """
    folder = Path(folder)
    root = folder / "WFDBRecords" if (folder / "WFDBRecords").is_dir() else folder
    found: dict[str, tuple[Path, HeaderFacts]] = {}
    for path in sorted(root.rglob("JS*.hea")) if root.is_dir() else []:
        facts = _read(path, require_files)
        if facts is not None and path.stem in found:
            raise RecordError(path, f"the same record as {found[path.stem][0]}", "Keep one of the two")
        if facts is not None:
            found[path.stem] = (path, facts)
    if not found:
        raise MissingPartError(
            str(root),
            "no recording (JS*.hea with its signal file) in this folder",
            "Name the folder of PhysioNet's ecg-arrhythmia (https://doi.org/10.13026/wgex-er52), with WFDBRecords/",
        )
    names, codes = list(found), [facts.codes for _, facts in found.values()]
    comments = [facts.comments for _, facts in found.values()]
    return manifest_from_columns(
        {
            "record": names,
            "path": [str(path.with_suffix("")) for path, _ in found.values()],
            "patient": names,
            "split": split_by_hash(names, fractions=fractions, seed=seed),
            "report": [report_of_codes(one, seed=_number(name)) for one, name in zip(codes, names, strict=True)],
            "statements": [statements_of_codes(one) for one in codes],
            "labels": [labels_of_codes(one) for one in codes],
            "language": ["en"] * len(names),
            "age": [age_of(one.get("age", "")) for one in comments],
            "sex": pd.Series([SEXES.get(one.get("sex", "").lower()) for one in comments], dtype=object),
            "snomed": pd.Series(codes, dtype=object),
        }
    )


def _read(path: Path, require_files: bool) -> HeaderFacts | None:
    """Read a header; None for a record that isn't there in full, or is known to be broken."""
    if not re.fullmatch(r"JS\d{5}", path.stem):
        return None
    if require_files and not any(path.with_suffix(suffix).is_file() for suffix in (".mat", ".dat")):
        return None
    try:
        return read_header_facts(path)
    except RecordError:
        if path.stem in UNREADABLE:
            return None
        raise


def _number(name: str) -> int:
    return int("".join(letter for letter in name if letter.isdigit())[-12:] or 0)
