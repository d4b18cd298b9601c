"""Reading the tables that datasets come with, as untrusted input: columns, numbers and paths are checked, not believed.

A path in a cell must stay inside the dataset's folder; a number that is no number becomes NaN; a table that is empty,
isn't text or lacks a column is refused by name. It knows no dataset. Taught in: 02 §2.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ecgchat_lib.errors import EcgChatError, MissingPartError, RecordError

_OUTSIDE = r"(?:^|[\\/])\.\.(?:[\\/]|$)|^[\\/~]|^[A-Za-z]:|[\x00-\x1f]"  # climbs up, absolute, a drive, control letters

SEXES = {"0": "male", "m": "male", "male": "male", "1": "female", "f": "female", "female": "female"}


def find_table(folder: str | Path, names: Sequence[str], remedy: str) -> Path:
    """Return the first of several files that is in a folder, each also as `.gz`.

    Raises:
        MissingPartError: none is there; the remedy says how to get it.
    """
    folder = Path(folder)
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise MissingPartError(str(folder / names[0]), "no such file", remedy)


def read_table(
    path: Path, needed: Sequence[str], *, texts: Sequence[str] = (), columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Read a csv table and check that the needed columns are there.

    Args:
        path: csv, or csv.gz.
        needed: columns that must be there.
        texts: columns read as text ("" where empty) whatever they hold.
        columns: columns to keep; None keeps all.

    Raises:
        RecordError: the file is empty or no table of text.
        EcgChatError: a needed column is missing.
    """
    keep = None if columns is None else (lambda name: name in columns)
    try:
        table = pd.read_csv(path, dtype={name: str for name in texts}, usecols=keep, low_memory=False)
    except (
        pd.errors.EmptyDataError,
        pd.errors.ParserError,
        UnicodeDecodeError,
        EOFError,
        OSError,
        ValueError,
    ) as error:
        found = f"can't be read as a table ({type(error).__name__}: {str(error)[:120]})"
        raise RecordError(path, found, "Get the file again, as published with the dataset") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes the first column for names then
        raise RecordError(path, "its rows have more cells than its first line", "Get the file again")
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise EcgChatError(f"{path}: columns {missing} are missing. Use the table as published with the dataset")
    for name in texts:
        if name in table.columns:
            table[name] = table[name].fillna("")
    return table


def check_paths(cells: pd.Series, records: pd.Series, path: Path) -> None:
    """Refuse a column of relative paths if one of them is absent or leaves the dataset's folder.

    Args:
        cells: the column.
        records: what to call each row in the message.
        path: the table, for the message.

    Raises:
        RecordError: names the first row and what its cell holds.
    """
    texts = cells.where(cells.map(lambda cell: isinstance(cell, str)), "").astype(str)
    bad = texts.eq("") | texts.str.contains(_OUTSIDE, regex=True)
    if bad.any():
        row = int(np.argmax(bad.to_numpy()))
        found = f"record {records.iloc[row]}: the path {str(cells.iloc[row])[:80]!r} is empty or leaves the folder"
        raise RecordError(path, found, "Use the table as published with the dataset")


def whole_numbers(cells: pd.Series, column: str, path: Path) -> pd.Series:
    """Return a column of identifiers as int64.

    Raises:
        RecordError: a cell isn't a whole number ≥ 0; the row and the cell are named.
    """
    numbers = pd.to_numeric(cells, errors="coerce")
    bad = ~(np.isfinite(numbers) & (numbers >= 0) & (numbers == np.floor(numbers)) & (numbers < 2**53))
    if bad.any():
        row = int(np.argmax(bad.to_numpy()))
        found = f"row {row + 1}, column {column}: found {str(cells.iloc[row])[:60]!r}, expected a whole number"
        raise RecordError(path, found, "Use the table as published with the dataset")
    return numbers.astype(np.int64)


def numbers_in(cells: pd.Series, low: float, high: float) -> pd.Series:
    """Return a column as float64; what is no number, or outside low–high, is NaN."""
    numbers = pd.to_numeric(cells, errors="coerce").astype(np.float64)
    return numbers.where((numbers >= low) & (numbers <= high))


def sexes_of(cells: pd.Series) -> pd.Series:
    """Return `male`, `female` or None; understands 0/1 (PTB-XL: 0 is male), M/F and Male/Female."""
    keys = cells.astype(str).str.strip().str.lower().str.replace(r"\.0$", "", regex=True)
    return pd.Series([SEXES.get(key) for key in keys], index=cells.index, dtype=object)


def age_of(text: object) -> float:
    """Return an age in years from a header or cell; NaN for what is no age (0 < age < 130; infants as fractions)."""
    try:
        age = float(str(text))
    except ValueError:
        return float("nan")
    return age if 0 < age < 130 else float("nan")
