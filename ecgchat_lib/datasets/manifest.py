"""The manifest: one checked table that every dataset is turned into, one row per recording.

Everything downstream (augmentation, pretraining, evaluation, instructions) reads a manifest and never a dataset's own
tables. It holds no signals; `signals.load_signals` reads them from the paths. The checks look at distinct values where
they can, so that MIMIC-IV-ECG's 800,000 rows take seconds. Taught in: 02 §2 and §5.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from ecgchat_lib.datasets.labels import STATEMENTS, SUPERCLASSES, superclasses
from ecgchat_lib.errors import EcgChatError

Manifest = pd.DataFrame
"""A table that `check_manifest` has accepted: the columns of `COLUMNS`, and any further ones."""

SPLITS: tuple[str, ...] = ("train", "validation", "test")

COLUMNS: dict[str, str] = {
    "record": "name of the recording, unique in the table",
    "path": "WFDB path without extension, or a file with one of another format",
    "patient": "patient, never empty; all recordings of one patient share it",
    "split": "train, validation or test",
    "report": "text that describes the ECG, may be empty",
    "statements": "tuple of (SCP code, likelihood in percent); 0 is PTB-XL's 'likelihood unknown'",
    "labels": "tuple of diagnostic superclasses, may be empty",
    "language": "language of the report, such as en",
}


def make_manifest(rows: Iterable[dict[str, object]]) -> Manifest:
    """Build and check a manifest from rows; `labels` are derived from `statements` where they aren't given.

    Args:
        rows: one dict per recording, keys as in `COLUMNS`; further keys become further columns.

    Raises:
        EcgChatError: as `check_manifest`.
    """
    rows = list(rows)
    if not rows:
        return check_manifest(pd.DataFrame(columns=list(COLUMNS)))
    frame = pd.DataFrame(rows)
    if "statements" not in frame.columns:
        frame["statements"] = pd.Series([()] * len(frame), dtype=object)
    derived = derive_labels(frame["statements"])
    if "labels" in frame.columns:
        given = [isinstance(row, dict) and "labels" in row for row in rows]
        derived = [row["labels"] if has else new for row, has, new in zip(rows, given, derived, strict=True)]  # type: ignore[misc]
    return check_manifest(frame.assign(labels=pd.Series(derived, dtype=object, index=frame.index)))


def manifest_from_columns(columns: Mapping[str, Sequence[object] | pd.Series]) -> Manifest:
    """Build and check a manifest from whole columns, the fast way for large tables.

    Args:
        columns: name → values of equal length; `labels` are derived from `statements` where they aren't given.

    Raises:
        EcgChatError: as `check_manifest`.
    """
    frame = pd.DataFrame(
        {
            name: pd.Series(list(values), dtype=object) if name in ("statements", "labels") else values
            for name, values in columns.items()
        }
    )
    if "labels" not in frame.columns and "statements" in frame.columns:
        frame["labels"] = pd.Series(derive_labels(frame["statements"]), dtype=object, index=frame.index)
    return check_manifest(frame)


def derive_labels(statements: Iterable[object]) -> list[tuple[str, ...]]:
    """Return the superclasses of each cell of statements; equal cells share one tuple. Unknown codes are skipped."""
    known: dict[object, tuple[str, ...]] = {}
    out = []
    for cell in statements:
        try:
            labels = known.get(cell)
        except TypeError:  # a list can't be looked up; check_manifest refuses it with a better message
            out.append(_labels_of(cell))
            continue
        if labels is None:
            labels = known[cell] = _labels_of(cell)
        out.append(labels)
    return out


def _labels_of(cell: object) -> tuple[str, ...]:
    if not isinstance(cell, (tuple, list)):
        return ()
    codes = [item[0] for item in cell if isinstance(item, (tuple, list)) and item and isinstance(item[0], str)]
    return superclasses(code for code in codes if code in STATEMENTS)


def check_manifest(frame: pd.DataFrame) -> Manifest:
    """Check a table against the manifest's rules and return it with the columns in their standard order.

    The rules: every column of `COLUMNS` is there; `record` is unique; texts are texts; splits, statements and labels
    are known ones; and no patient is on two sides of a split, since a model that has seen a patient's other ECG is
    tested on something it knows.

    Raises:
        EcgChatError: with the column, the first offending record, what was found, what was expected and the remedy.
    """
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise EcgChatError(
            f"manifest: columns {missing} are missing; expected {list(COLUMNS)}. Build it with make_manifest"
        )
    for name in ("record", "path", "patient", "split", "report", "language"):
        _check_texts(frame, name)
    _check_values(frame)
    _check_statements(frame)
    _check_patients(frame)
    rest = [name for name in frame.columns if name not in COLUMNS]
    return frame.loc[:, [*COLUMNS, *rest]].reset_index(drop=True)


def _fail(record: object, column: str, found: object, expected: str, remedy: str) -> EcgChatError:
    return EcgChatError(f"manifest, record {record}, column '{column}': found {found!r}, expected {expected}. {remedy}")


def _check_texts(frame: pd.DataFrame, column: str) -> None:
    may_be_empty = column == "report"
    values = frame[column]
    are_texts = pd.api.types.infer_dtype(values, skipna=False) in ("string", "empty") and not values.isna().any()
    if are_texts and (may_be_empty or not (values == "").any()):
        return
    for record, value in zip(frame["record"], values, strict=True):
        if not isinstance(value, str) or not (value or may_be_empty):
            raise _fail(
                record, column, value, "a text" if may_be_empty else "a text, not empty", "Fill or drop that row"
            )


def _check_values(frame: pd.DataFrame) -> None:
    twice = frame.loc[frame["record"].duplicated(), "record"]
    if len(twice):
        raise _fail(twice.iloc[0], "record", "the same name twice", "a unique name", "Put the dataset's name in front")
    wrong = frame.loc[~frame["split"].isin(SPLITS)]
    if len(wrong):
        first = wrong.iloc[0]
        raise _fail(first["record"], "split", first["split"], " or ".join(SPLITS), "Rename it")
    _check_cells(frame, "labels", _wrong_labels)


def _check_cells(
    frame: pd.DataFrame, column: str, find_wrong: Callable[[object], tuple[object, str, str] | None]
) -> None:
    """Apply `find_wrong` to each distinct cell; on a fault raise for the first record that has it."""
    try:
        faults = {cell: fault for cell in set(frame[column]) if (fault := find_wrong(cell)) is not None}
    except TypeError:  # an unhashable cell, such as a list
        faults = None
    if faults == {}:
        return
    for record, cell in zip(frame["record"], frame[column], strict=True):
        fault = find_wrong(cell)
        if fault is not None:
            raise _fail(record, column, *fault)


def _wrong_labels(cell: object) -> tuple[object, str, str] | None:
    if isinstance(cell, tuple) and all(label in SUPERCLASSES for label in cell):
        return None
    return cell, f"a tuple out of {', '.join(SUPERCLASSES)}", "Use labels.superclasses"


def _wrong_statements(cell: object) -> tuple[object, str, str] | None:
    if not isinstance(cell, tuple):
        return cell, "a tuple of (code, likelihood)", "Convert it with tuple(...)"
    for item in cell:
        fits = isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) and item[0] in STATEMENTS
        if not fits or not isinstance(item[1], (int, float)) or not 0 <= item[1] <= 100:
            return item, "(SCP code, likelihood 0 to 100)", "Map it to an SCP code first"
    return None


def _check_statements(frame: pd.DataFrame) -> None:
    _check_cells(frame, "statements", _wrong_statements)


def _check_patients(frame: pd.DataFrame) -> None:
    patient, names = pd.factorize(frame["patient"])
    if not len(names):
        return
    sides = np.zeros((len(names), len(SPLITS)), dtype=bool)
    for column, split in enumerate(SPLITS):
        sides[patient[(frame["split"] == split).to_numpy()], column] = True
    number = sides.sum(axis=1)
    if (number > 1).any():
        first = int(np.argmax(number > 1))
        rows = frame.loc[patient == first]
        found = ", ".join(
            f"{record} in {split}" for record, split in zip(rows["record"][:6], rows["split"][:6], strict=True)
        )
        raise EcgChatError(
            f"manifest, patient {names[first]}: on {number[first]} sides of the split ({found}); expected one. "
            f"Split by patient: manifest.split_by_patient"
        )


def split_by_patient(
    patients: Sequence[str], *, fractions: tuple[float, float, float] = (0.8, 0.1, 0.1), seed: int = 0
) -> list[str]:
    """Give each recording a split so that all recordings of a patient share it.

    Exactly the wanted share of the patients at hand goes to each side; who lands where depends on who is there. For a
    dataset of which someone may have a part only, see `split_by_hash`.

    Args:
        patients: the patient of each recording, (n,).
        fractions: shares of the patients for train, validation and test; they add up to 1.
        seed: which random assignment.

    Returns:
        One of `SPLITS` per recording, (n,).

    Raises:
        EcgChatError: the fractions are negative or don't add up to 1.
    """
    _check_fractions(fractions)
    unique = sorted(set(patients))  # sorted: the order of the rows must not matter
    order = np.random.default_rng(seed).permutation(len(unique))
    bounds = np.cumsum(fractions)[:2] * len(unique)
    side = {unique[k]: SPLITS[int(np.searchsorted(bounds, place, side="right"))] for place, k in enumerate(order)}
    return [side[patient] for patient in patients]


def split_by_hash(
    patients: Sequence[str], *, fractions: tuple[float, float, float] = (0.8, 0.1, 0.1), seed: int = 0
) -> list[str]:
    """Give each recording a split by a hash of its patient's name alone.

    A patient is on the same side whichever part of the dataset is at hand, on every machine and in every version of
    this library; the shares are met on average only (to about 0.3 % for 10,000 patients).

    Args:
        patients: the patient of each recording, (n,).
        fractions: shares of the patients for train, validation and test; they add up to 1.
        seed: which assignment.

    Returns:
        One of `SPLITS` per recording, (n,).

    Raises:
        EcgChatError: the fractions are negative or don't add up to 1.
    """
    _check_fractions(fractions)
    codes, unique = pd.factorize(pd.Series(list(patients), dtype=object))
    draws = np.array([_unit_interval(f"{seed}/{patient}") for patient in unique])
    sides = np.searchsorted(np.cumsum(fractions)[:2], draws, side="right")
    return np.array(SPLITS, dtype=object)[sides[codes]].tolist() if len(codes) else []


def _unit_interval(text: str) -> float:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def _check_fractions(fractions: tuple[float, float, float]) -> None:
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise EcgChatError(f"fractions {fractions}: expected three numbers ≥ 0 that add up to 1")


def join_manifests(manifests: Mapping[str, Manifest]) -> Manifest:
    """Put manifests of several datasets under each other, with the dataset's name in front of records and patients.

    Args:
        manifests: name → checked manifest; a name holds no "/".

    Returns:
        A manifest with the further column `dataset`; further columns that one of them lacks are empty there.

    Raises:
        EcgChatError: there is nothing to join, or a name is empty or holds a "/".
    """
    if not manifests or any(not name or "/" in name for name in manifests):
        raise EcgChatError(f"names {sorted(manifests)}: expected at least one dataset, and names without '/'")
    parts = [
        part.assign(record=name + "/" + part["record"], patient=name + "/" + part["patient"], dataset=name)
        for name, part in manifests.items()
    ]
    return check_manifest(pd.concat(parts, ignore_index=True))


def split_table(manifest: Manifest) -> pd.DataFrame:
    """Return records, patients and the share of records for each split; raise where a patient is on two sides.

    Raises:
        EcgChatError: as `check_manifest` for patients.
    """
    _check_patients(manifest)
    grouped = manifest.groupby("split", sort=False)
    table = pd.DataFrame({"records": grouped.size(), "patients": grouped["patient"].nunique()})
    table = table.reindex(list(SPLITS), fill_value=0)
    return table.assign(share=(table["records"] / max(len(manifest), 1)).round(4))


def indicator_matrix(manifest: Manifest, classes: Sequence[str] = SUPERCLASSES, column: str = "labels") -> np.ndarray:
    """Return which record has which class, as int8 (n, classes).

    Args:
        manifest: a checked manifest.
        classes: names of the columns of the answer.
        column: `labels` (superclasses) or `statements` (SCP codes).
    """
    out = np.zeros((len(manifest), len(classes)), dtype=np.int8)
    place = {name: k for k, name in enumerate(classes)}
    for row, items in enumerate(manifest[column]):
        for item in items:
            name = item[0] if column == "statements" else item
            if name in place:
                out[row, place[name]] = 1
    return out
