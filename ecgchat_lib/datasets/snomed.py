"""SNOMED CT codes, as ECG headers of the PhysioNet Challenges and of Chapman-Shaoxing-Ningbo carry them, as statements.

The table is `data/labels/snomed_ct.csv`, compiled for this project. A code that PTB-XL has no statement for keeps its
name, and its superclass where the name alone settles it ("myocardial infarction": MI, wherever it is). Headers are read
as untrusted text. It reads no signals. Taught in: 02 §3.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from ecgchat_lib.datasets.labels import SUPERCLASSES, Statements, parse_statements, superclasses
from ecgchat_lib.datasets.reports import report_from_statements
from ecgchat_lib.errors import EcgChatError, RecordError
from ecgchat_lib.paths import data_folder

MAX_HEADER_BYTES = 100_000  # the longest of the Challenges' headers has a few thousand
_COMMENT = re.compile(r"^#\s*([A-Za-z]{1,20})\s*:\s*(.*?)\s*$")
_CODE = re.compile(r"[A-Za-z0-9-]{1,24}")
_RECORD_LINE = re.compile(r"(\S+?)(?:\.mat)?\s+12\s+\d+(?:\.\d+)?\s+\d+(?:\s+\S+)*\s*")


@dataclass(frozen=True)
class Concept:
    """One SNOMED CT code of an ECG.

    Attributes:
        code: the concept's number, as text.
        name: its name, as a noun phrase.
        chapman: the acronyms of Chapman-Shaoxing-Ningbo's `ConditionNames_SNOMED-CT.csv` that stand for it.
        statements: PTB-XL's statements that say the same, may be empty.
        superclass: the diagnostic superclass of a code without such a statement, where its name settles it, else None.
    """

    code: str
    name: str
    chapman: tuple[str, ...]
    statements: Statements
    superclass: str | None


def _read_concepts(path: Path) -> dict[str, Concept]:
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    concepts = {}
    for row in rows:
        superclass = row["superclass"] or None
        if row["code"] in concepts or (superclass is not None and superclass not in SUPERCLASSES):
            raise EcgChatError(f"{path}: code {row['code']} stands twice, or has an unknown class. Restore the file")
        statements = parse_statements(row["statements"], where=f"{path.name}, {row['code']}")
        concepts[row["code"]] = Concept(row["code"], row["name"], tuple(row["chapman"].split()), statements, superclass)
    return concepts


CONCEPTS: Mapping[str, Concept] = MappingProxyType(_read_concepts(data_folder() / "labels" / "snomed_ct.csv"))

CHAPMAN: Mapping[str, str] = MappingProxyType(
    {acronym: concept.code for concept in CONCEPTS.values() for acronym in concept.chapman}
)
"""Acronym of Chapman-Shaoxing-Ningbo → code. Its `AF` is atrial flutter."""


@lru_cache(maxsize=100_000)
def statements_of_codes(codes: tuple[str, ...]) -> Statements:
    """Return the SCP statements of SNOMED CT codes, each once, in the order of the codes; others are left out."""
    return tuple(dict(pair for code in codes if code in CONCEPTS for pair in CONCEPTS[code].statements).items())


@lru_cache(maxsize=100_000)
def labels_of_codes(codes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the superclasses of SNOMED CT codes: those of their statements, and those that a name alone settles."""
    found = set(superclasses(code for code, _ in statements_of_codes(codes)))
    found |= {CONCEPTS[code].superclass for code in codes if code in CONCEPTS} - {None}  # type: ignore[arg-type]
    return tuple(name for name in SUPERCLASSES if name in found)


def report_of_codes(codes: tuple[str, ...], *, statements: Statements | None = None, seed: int = 0) -> str:
    """Write SNOMED CT codes as a short English report; codes without a statement of PTB-XL are said by their name.

    Args:
        codes: as in a header.
        statements: instead of `statements_of_codes(codes)`, where a dataset has its own reading of a code.
        seed: which of the phrasings.
    """
    statements = statements_of_codes(codes) if statements is None else statements
    others = dict.fromkeys(CONCEPTS[code].name for code in codes if code in CONCEPTS and not CONCEPTS[code].statements)
    said = [report_from_statements(statements, seed=seed)] if statements or not others else []
    said += [f"{name[0].upper()}{name[1:]}." for name in others]
    return " ".join(said)


@dataclass(frozen=True)
class HeaderFacts:
    """What a header says beside the signals: record name, codes of `#Dx:`, and all comments by lower-case key."""

    name: str
    codes: tuple[str, ...]
    comments: Mapping[str, str]


def read_header_facts(path: Path) -> HeaderFacts:
    """Read record name, codes, age and sex from a header without touching the signal.

    Empty codes (one real header has `…,,…`) are skipped, and so is `Unknown`.

    Raises:
        RecordError: too long, no record line of twelve signals (as in the broken JS01052 of Chapman-Shaoxing-Ningbo),
            no `# Dx:` line, or a code with letters that no code has.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_HEADER_BYTES + 1)
    except OSError as error:
        raise RecordError(path, f"can't be read ({error.strerror})", "Get the file again") from None
    if len(content) > MAX_HEADER_BYTES:
        raise RecordError(path, f"longer than {MAX_HEADER_BYTES} bytes", "This is no header of an ECG")
    lines = content.decode("utf-8", errors="replace").splitlines()
    first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    matched = _RECORD_LINE.fullmatch(first)
    if matched is None:
        raise RecordError(
            path,
            f"the record line is {first[:60]!r}, expected 'NAME 12 RATE SAMPLES'",
            "Get the file again, or drop it",
        )
    comments = {found[1].lower(): found[2] for line in lines if (found := _COMMENT.match(line))}
    if "dx" not in comments:
        raise RecordError(path, "the header has no '# Dx:' line", "Use the dataset in the PhysioNet Challenges' format")
    return HeaderFacts(matched[1], split_codes(comments["dx"], path), MappingProxyType(comments))


def split_codes(text: str, path: Path) -> tuple[str, ...]:
    """Split the text of a `#Dx:` line into codes, each once.

    Raises:
        RecordError: a code has other letters than a code can have.
    """
    codes = [code for part in text.split(",") if (code := part.strip()) and code.lower() != "unknown"]
    odd = next((code for code in codes if not _CODE.fullmatch(code)), None)
    if odd is not None:
        raise RecordError(path, f"'# Dx:' holds {odd[:40]!r}, which is no code", "Get the file again")
    return tuple(dict.fromkeys(codes))


def unknown_codes(codes: Iterable[str]) -> tuple[str, ...]:
    """Return the codes that `data/labels/snomed_ct.csv` doesn't list."""
    return tuple(code for code in codes if code not in CONCEPTS)
