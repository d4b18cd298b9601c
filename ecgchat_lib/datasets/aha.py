"""Statement codes of the AHA/ACC/HRS recommendations, as SPH writes them (`22;23`, `50+346`), as words and statements.

A record's cell lists statements between semicolons; each is a primary code with modifiers after plus signs. The table
is `data/labels/aha.csv`, compiled for this project; where PTB-XL's own table names an AHA code, it agrees. Taught in:
02 §3.

Source of the codes: Mason et al., Recommendations for the standardization and interpretation of the electrocardiogram,
part II, Circulation 115 (2007) 1325, doi:10.1161/CIRCULATIONAHA.106.180201.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from ecgchat_lib.datasets.labels import SUPERCLASSES, Statements, parse_statements, superclasses
from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.paths import data_folder

_CELL = re.compile(r"\d{1,3}(?:\+\d{1,3})*(?:;\d{1,3}(?:\+\d{1,3})*)*")
_LIKELIHOODS = {"302": 35.0, "312": 50.0, "301": 50.0, "315": 80.0}  # consider, possible, borderline, probable
_SECONDARY = 50.0  # "suggests …", "consider …"


@dataclass(frozen=True)
class AhaCode:
    """One code: `kind` is primary, secondary, modifier, convenience or pair (a primary code with one modifier)."""

    code: str
    kind: str
    name: str
    statements: Statements
    superclass: str | None
    place: str


def _read_codes(path: Path) -> dict[str, AhaCode]:
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    codes = {}
    for row in rows:
        statements = parse_statements(row["statements"], where=f"{path.name}, {row['code']}")
        codes[row["code"]] = AhaCode(
            row["code"], row["kind"], row["name"], statements, row["superclass"] or None, row["place"]
        )
    return codes


AHA_CODES: Mapping[str, AhaCode] = MappingProxyType(_read_codes(data_folder() / "labels" / "aha.csv"))


@dataclass(frozen=True)
class AhaReading:
    """What a cell of AHA codes says: its statements apart, PTB-XL's statements and superclasses, and the text."""

    codes: tuple[tuple[str, ...], ...]
    statements: Statements
    labels: tuple[str, ...]
    report: str


@lru_cache(maxsize=100_000)
def read_aha_cell(cell: str, where: str = "AHA_Code") -> AhaReading:
    """Read a cell such as `22;145+362`.

    Raises:
        EcgChatError: it isn't codes between `;` and `+`, a code is unknown, or a statement starts with a modifier.
    """
    text = cell.replace(" ", "").strip(";")
    if not _CELL.fullmatch(text):
        raise EcgChatError(f"{where}: found {cell[:60]!r}, expected codes such as '22;23' or '50+346'. Mend the cell")
    parts = tuple(tuple(part.split("+")) for part in text.split(";"))
    for part in parts:
        unknown = [code for code in part if code not in AHA_CODES]
        if unknown or AHA_CODES[part[0]].kind == "modifier":
            raise EcgChatError(
                f"{where}: {'+'.join(part)!r} has the unknown code {unknown}, or starts with a modifier. "
                f"Expected the codes of data/labels/aha.csv"
            )
    statements = tuple(dict(pair for part in parts for pair in _statements(part)).items())
    found = set(superclasses(code for code, _ in statements))
    found |= {AHA_CODES[code].superclass for part in parts for code in part} - {None}  # type: ignore[arg-type]
    sentences = dict.fromkeys(_sentence(part) for part in parts)
    labels = tuple(name for name in SUPERCLASSES if name in found)
    return AhaReading(parts, statements, labels, " ".join(sentences))


def _statements(part: tuple[str, ...]) -> Statements:
    first, rest = part[0], part[1:]
    pairs = [key for code in rest if (key := f"{first}+{code}") in AHA_CODES]
    found = [pair for key in pairs or [first] for pair in AHA_CODES[key].statements]
    if AHA_CODES[first].kind == "secondary":
        found = [(code, _SECONDARY) for code, _ in found]
    found += [
        (code, _SECONDARY)
        for key in rest
        if AHA_CODES[key].kind == "secondary"
        for code, _ in AHA_CODES[key].statements
    ]
    hedges = [_LIKELIHOODS[code] for code in rest if code in _LIKELIHOODS]
    if hedges:
        found = [(code, min([likelihood or 100.0, *hedges])) for code, likelihood in found]
    return tuple(found)


def _sentence(part: tuple[str, ...]) -> str:
    first = part[0]
    pair = next((key for code in part[1:] if (key := f"{first}+{code}") in AHA_CODES), None)
    rest = [code for code in part[1:] if pair is None or f"{first}+{code}" != pair]
    before = [AHA_CODES[code].name for code in rest if AHA_CODES[code].place == "before"]
    after = [AHA_CODES[code].name for code in rest if AHA_CODES[code].place == "after"]
    more = [", " + AHA_CODES[code].name for code in rest if not AHA_CODES[code].place]
    text = " ".join([*before, AHA_CODES[pair or first].name, *after]) + "".join(more)
    return f"{text[0].upper()}{text[1:]}."
