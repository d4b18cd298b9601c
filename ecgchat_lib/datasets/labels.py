"""The label names of the course: the 71 SCP-ECG statements that PTB-XL uses, and its five diagnostic superclasses.

This is the one place where a code is tied to its description and class; the facts are read from PTB-XL's own table.
It isn't a classifier and holds no records. Taught in: 02 §3.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.paths import data_folder

SUPERCLASSES: tuple[str, ...] = ("NORM", "MI", "STTC", "CD", "HYP")

SUPERCLASS_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "NORM": "normal ECG",
        "MI": "myocardial infarction",
        "STTC": "ST/T change",
        "CD": "conduction disturbance",
        "HYP": "hypertrophy",
    }
)

KINDS: tuple[str, ...] = ("diagnostic", "form", "rhythm")


@dataclass(frozen=True)
class Statement:
    """One SCP-ECG statement as PTB-XL uses it.

    Attributes:
        code: PTB-XL's acronym, such as `1AVB`.
        description: its English description.
        kinds: one or two of `diagnostic`, `form` and `rhythm`.
        superclass: one of `SUPERCLASSES` for a diagnostic statement, else None.
        subclass: PTB-XL's finer class (such as `_AVB`) for a diagnostic statement, else None.
    """

    code: str
    description: str
    kinds: tuple[str, ...]
    superclass: str | None
    subclass: str | None


def read_statements(path: Path) -> dict[str, Statement]:
    """Read a table of statements in the format of PTB-XL's `scp_statements.csv`.

    Args:
        path: the csv file; its first column, without a name, holds the codes.

    Returns:
        code → Statement, in the order of the file.

    Raises:
        EcgChatError: the file or one of its columns is missing, or it names a class that PTB-XL doesn't have.
    """
    if not path.is_file():
        raise EcgChatError(
            f"{path}: no such file. It is part of the project; get it back with 'git checkout {path.name}'"
        )
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    needed = {"", "description", "diagnostic_class", "diagnostic_subclass", *KINDS}
    missing = needed - set(rows[0] if rows else ())
    if missing:
        raise EcgChatError(f"{path}: columns {sorted(missing)} are missing. Use PTB-XL's own scp_statements.csv")
    return {row[""]: _statement(row, path) for row in rows}


def _statement(row: dict[str, str], path: Path) -> Statement:
    kinds = tuple(kind for kind in KINDS if row[kind] and float(row[kind]) == 1.0)
    superclass = row["diagnostic_class"] or None
    if superclass is not None and superclass not in SUPERCLASSES:
        raise EcgChatError(f"{path}: class {superclass!r} of {row['']}; expected one of {', '.join(SUPERCLASSES)}")
    return Statement(row[""], row["description"], kinds, superclass, row["diagnostic_subclass"] or None)


STATEMENTS: Mapping[str, Statement] = MappingProxyType(read_statements(data_folder() / "labels" / "scp_statements.csv"))


def superclasses(codes: Iterable[str]) -> tuple[str, ...]:
    """Return the diagnostic superclasses of a set of statement codes, in the order of `SUPERCLASSES`.

    A statement counts whatever its likelihood, since PTB-XL writes 0 where the likelihood is unknown; this is the
    rule behind the published counts (fold 10 of PTB-XL 1.0.3: NORM 963, MI 550, STTC 521, CD 496, HYP 262). Form and
    rhythm statements have no superclass, so the answer may be empty.

    Args:
        codes: statement codes such as `["IMI", "SR"]`, or a mapping with these keys.

    Raises:
        EcgChatError: a code is not one of PTB-XL's 71.
    """
    found = {get_statement(code).superclass for code in codes}
    return tuple(name for name in SUPERCLASSES if name in found)


def get_statement(code: str) -> Statement:
    """Return the statement of a code.

    Raises:
        EcgChatError: the code is not one of PTB-XL's 71; the message names the nearest ones.
    """
    try:
        return STATEMENTS[code]
    except KeyError:
        from difflib import get_close_matches

        near = get_close_matches(code.upper(), STATEMENTS, n=3, cutoff=0.5) or [
            "see ecgchat_lib.datasets.labels.STATEMENTS"
        ]
        raise EcgChatError(
            f"unknown statement {code!r}; expected one of PTB-XL's {len(STATEMENTS)} codes. Near: {', '.join(near)}"
        ) from None


def codes_of_kind(kind: str) -> tuple[str, ...]:
    """Return the codes of one kind (`diagnostic`: 44, `form`: 19, `rhythm`: 12), in the table's order.

    Raises:
        EcgChatError: the kind is unknown.
    """
    if kind not in KINDS:
        raise EcgChatError(f"unknown kind of statement {kind!r}; expected one of {', '.join(KINDS)}")
    return tuple(code for code, statement in STATEMENTS.items() if kind in statement.kinds)
