"""The label names of the course: the 71 SCP-ECG statements that PTB-XL uses, and the five label sets made of them.

This is the one place where a code is tied to its description and class; the facts are read from PTB-XL's own table.
The label sets (`super`, `sub`, `form`, `rhythm`, `cpsc2018`) are those of the published comparisons. It isn't a
classifier and holds no records. Taught in: 02 §3.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

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

Statements = tuple[tuple[str, float], ...]
"""(SCP code, likelihood in percent) pairs; 0 is PTB-XL's "likelihood unknown"."""

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


def parse_statements(text: str, *, where: str) -> Statements:
    """Read statements as the tables in `data/labels/` write them: codes between spaces, a likelihood after a colon.

    Without a likelihood a diagnostic statement gets 100 and any other 0, as most of PTB-XL's do.

    Raises:
        EcgChatError: a code is unknown, or a likelihood isn't 0 to 100.
    """
    pairs = []
    for item in text.split():
        code, colon, number = item.partition(":")
        default = 100.0 if get_statement(code).superclass else 0.0
        try:
            likelihood = float(number) if colon else default
        except ValueError:
            likelihood = -1.0
        if not 0 <= likelihood <= 100:
            raise EcgChatError(f"{where}: likelihood {number!r} of {code}; expected 0 to 100")
        pairs.append((code, likelihood))
    return tuple(pairs)


@dataclass(frozen=True)
class LabelSet:
    """One of the label sets of published comparisons.

    Attributes:
        name: `super`, `sub`, `form`, `rhythm` or `cpsc2018`.
        classes: its classes, in a fixed order.
        names: class → English name.
        class_of: statement code → class, for the codes that count.
    """

    name: str
    classes: tuple[str, ...]
    names: Mapping[str, str]
    class_of: Mapping[str, str]


def _label_set(name: str, class_of: dict[str, str], names: Mapping[str, str], classes: Iterable[str]) -> LabelSet:
    return LabelSet(name, tuple(classes), MappingProxyType(dict(names)), MappingProxyType(class_of))


def _label_sets() -> dict[str, LabelSet]:
    described = {code: statement.description for code, statement in STATEMENTS.items()}
    to_super = {code: s.superclass for code, s in STATEMENTS.items() if s.superclass}
    to_sub = {code: s.subclass for code, s in STATEMENTS.items() if s.subclass}
    sub_names = {sub: described.get(sub, sub) for sub in dict.fromkeys(to_sub.values())} | _SUBCLASS_NAMES
    sets = [
        _label_set("super", to_super, SUPERCLASS_NAMES, SUPERCLASSES),
        _label_set("sub", to_sub, sub_names, dict.fromkeys(to_sub.values())),
    ]
    for kind in ("form", "rhythm"):
        codes = codes_of_kind(kind)
        sets.append(_label_set(kind, {code: code for code in codes}, {code: described[code] for code in codes}, codes))
    own = {code: code for code in CPSC2018_CLASSES}
    sets.append(_label_set("cpsc2018", own, {code: described[code] for code in own}, CPSC2018_CLASSES))
    return {one.name: one for one in sets}


# CPSC2018's classes 1 to 9, in the order of its REFERENCE.csv.
CPSC2018_CLASSES: tuple[str, ...] = ("NORM", "AFIB", "1AVB", "CLBBB", "CRBBB", "PAC", "PVC", "STD_", "STE_")

_SUBCLASS_NAMES = {
    "STTC": "ST-T changes",
    "AMI": "anterior myocardial infarction",
    "LAFB/LPFB": "left anterior or posterior fascicular block",
    "_AVB": "AV block",
    "ISCA": "ischemia in anterior or lateral leads",
    "ISCI": "ischemia in inferior leads",
}

LABEL_SETS: Mapping[str, LabelSet] = MappingProxyType(_label_sets())


def get_label_set(name: str) -> LabelSet:
    """Return a label set by its name.

    Raises:
        EcgChatError: there is none of that name.
    """
    if name not in LABEL_SETS:
        raise EcgChatError(f"unknown label set {name!r}; expected one of {', '.join(LABEL_SETS)}")
    return LABEL_SETS[name]


def classes_of(codes: Iterable[str], name: str) -> tuple[str, ...]:
    """Return the classes of a label set that a record's statement codes have, in the set's order; may be empty.

    Args:
        codes: statement codes, or a mapping with these keys; their likelihoods don't matter.
        name: `super`, `sub`, `form`, `rhythm` or `cpsc2018`.

    Raises:
        EcgChatError: the label set is unknown.
    """
    labels = get_label_set(name)
    found = {labels.class_of[code] for code in codes if code in labels.class_of}
    return tuple(one for one in labels.classes if one in found)


def label_matrix(statements: Iterable[Statements], name: str) -> np.ndarray:
    """Return which record has which class of a label set, int8 (n, classes).

    A row of zeros is a record without any label of the set; published comparisons leave such records out, so take
    `matrix.any(axis=1)` first.

    Args:
        statements: a manifest's column.
        name: the label set.

    Raises:
        EcgChatError: the label set is unknown.
    """
    labels = get_label_set(name)
    place = {one: k for k, one in enumerate(labels.classes)}
    cells = list(statements)
    out = np.zeros((len(cells), len(labels.classes)), dtype=np.int8)
    rows: dict[Statements, list[int]] = {}
    for row, cell in enumerate(cells):
        rows.setdefault(cell, []).append(row)
    for cell, where in rows.items():
        for one in classes_of((code for code, _ in cell), name):
            out[where, place[one]] = 1
    return out


def read_merl_names(name: str) -> dict[str, str]:
    """Return MERL's spelling → this project's for a label set; a class that isn't there is spelled alike.

    Raises:
        EcgChatError: the label set is unknown.
    """
    labels = get_label_set(name)
    with (data_folder() / "labels" / "merl_names.csv").open(encoding="utf-8", newline="") as lines:
        other = {row["here"]: row["merl"] for row in csv.DictReader(lines) if row["set"] == name}
    return {other.get(one, one): one for one in labels.classes}
