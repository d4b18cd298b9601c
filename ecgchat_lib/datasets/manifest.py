"""The manifest: one checked table that every dataset is turned into, one row per recording.

Everything downstream (augmentation, pretraining, evaluation, instructions) reads a manifest and never a dataset's own
tables. It holds no signals; `signals.load_signals` reads them from the paths. Taught in: 02 §2 and §5.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from ecgchat_lib.datasets.labels import STATEMENTS, SUPERCLASSES, superclasses
from ecgchat_lib.errors import EcgChatError

Manifest = pd.DataFrame
"""A table that `check_manifest` has accepted: the columns of `COLUMNS`, and any further ones."""

SPLITS: tuple[str, ...] = ("train", "validation", "test")

COLUMNS: dict[str, str] = {
    "record": "name of the recording, unique in the table",
    "path": "WFDB path without extension",
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
    filled = []
    for row in rows:
        statements = row.get("statements", ())
        known = [code for code, _ in statements if code in STATEMENTS]  # type: ignore[attr-defined]
        filled.append({**row, "labels": row.get("labels", superclasses(known))})
    frame = pd.DataFrame(filled, columns=None if filled else list(COLUMNS))
    return check_manifest(frame)


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
    for record, value in zip(frame["record"], frame[column], strict=True):
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
    for record, labels in zip(frame["record"], frame["labels"], strict=True):
        if not isinstance(labels, tuple) or any(label not in SUPERCLASSES for label in labels):
            raise _fail(
                record, "labels", labels, f"a tuple out of {', '.join(SUPERCLASSES)}", "Use labels.superclasses"
            )


def _check_statements(frame: pd.DataFrame) -> None:
    for record, statements in zip(frame["record"], frame["statements"], strict=True):
        if not isinstance(statements, tuple):
            raise _fail(record, "statements", statements, "a tuple of (code, likelihood)", "Convert it with tuple(...)")
        for item in statements:
            if not (isinstance(item, tuple) and len(item) == 2 and item[0] in STATEMENTS and 0 <= item[1] <= 100):
                raise _fail(
                    record, "statements", item, "(SCP code, likelihood 0 to 100)", "Map it to an SCP code first"
                )


def _check_patients(frame: pd.DataFrame) -> None:
    sides = frame.groupby("patient")["split"].nunique()
    if (sides > 1).any():
        patient = sides.index[sides > 1][0]
        rows = frame.loc[frame["patient"] == patient]
        found = ", ".join(f"{record} in {split}" for record, split in zip(rows["record"], rows["split"], strict=True))
        raise EcgChatError(
            f"manifest, patient {patient}: on {sides[patient]} sides of the split ({found}); expected one. "
            f"Split by patient: manifest.split_by_patient"
        )


def split_by_patient(
    patients: Sequence[str], *, fractions: tuple[float, float, float] = (0.8, 0.1, 0.1), seed: int = 0
) -> list[str]:
    """Give each recording a split so that all recordings of a patient share it.

    Args:
        patients: the patient of each recording, (n,).
        fractions: shares of the patients for train, validation and test; they add up to 1.
        seed: which random assignment.

    Returns:
        One of `SPLITS` per recording, (n,).

    Raises:
        EcgChatError: the fractions are negative or don't add up to 1.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise EcgChatError(f"fractions {fractions}: expected three numbers ≥ 0 that add up to 1")
    unique = sorted(set(patients))  # sorted: the order of the rows must not matter
    order = np.random.default_rng(seed).permutation(len(unique))
    bounds = np.cumsum(fractions)[:2] * len(unique)
    side = {unique[k]: SPLITS[int(np.searchsorted(bounds, place, side="right"))] for place, k in enumerate(order)}
    return [side[patient] for patient in patients]


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
