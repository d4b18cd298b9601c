"""CPSC2018 as a manifest: 6,877 ECGs of 6–60 s with one or more of nine labels, and the ten of them shipped here.

It reads the headers in the form of the PhysioNet/CinC Challenge (SNOMED CT codes in `# Dx:`) and maps them to SCP
statements. CPSC2018 names no patients and has no report texts; reports are written from the statements, and every
record belongs to the test split, as in the paper, which evaluates on it only. Taught in: 02 §2.

Sources: Liu et al., J. Med. Imaging Health Inform. 8 (2018) 1368, doi:10.1166/jmihi.2018.2442; Alday et al., PhysioNet/
CinC Challenge 2020, Physiol. Meas. 41 (2020) 124003, doi:10.1088/1361-6579/abc960; licence CC BY 4.0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from ecgchat_lib.datasets.manifest import SPLITS, Manifest, make_manifest
from ecgchat_lib.datasets.reports import report_from_statements
from ecgchat_lib.errors import EcgChatError, MissingPartError, RecordError
from ecgchat_lib.paths import data_folder

# SNOMED CT code → (SCP code, likelihood). Likelihood 0 is PTB-XL's way to write a rhythm or form statement.
SNOMED: Mapping[str, tuple[str, float]] = MappingProxyType(
    {
        "426783006": ("SR", 0.0),  # sinus rhythm; CPSC2018's own name of the class is "Normal", see CPSC_CLASSES
        "164889003": ("AFIB", 0.0),  # atrial fibrillation
        "270492004": ("1AVB", 100.0),  # first degree atrioventricular block
        "164909002": ("CLBBB", 100.0),  # left bundle branch block
        "59118001": ("CRBBB", 100.0),  # right bundle branch block
        "284470004": ("PAC", 0.0),  # premature atrial contraction
        "164884008": ("PVC", 100.0),  # ventricular ectopics
        "429622005": ("STD_", 0.0),  # ST depression
        "164931005": ("STE_", 0.0),  # ST elevation
    }
)

# The abbreviations of the first Challenge release of early 2020 (A0011–A0150 in some copies).
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

_COMMENT = re.compile(r"^#\s*(Age|Sex|Dx)\s*:\s*(.*?)\s*$", re.IGNORECASE)
_SEXES = {"male": "male", "m": "male", "female": "female", "f": "female"}


def load_cpsc2018(folder: str | Path, *, split: str = "test") -> Manifest:
    """Load a folder of CPSC2018 records (searched at any depth) as a manifest.

    Since CPSC2018 names no patients, each record counts as its own; a random split of it may have the same person on
    both sides, and nothing in the data can tell. "Normal", SNOMED's sinus rhythm, becomes (NORM, 100) and (SR, 0).

    Args:
        folder: holds `A0001.hea`, `A0001.mat`, ….
        split: the split of every record.

    Returns:
        A manifest with the further columns `age` (years, NaN if unknown), `sex` and `snomed` (tuple of codes).

    Raises:
        MissingPartError: there is no record in the folder.
        RecordError: a header has no `# Dx:` line.
        EcgChatError: the split is unknown.
    """
    folder = Path(folder)
    if split not in SPLITS:
        raise EcgChatError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    headers = sorted(folder.rglob("*.hea")) if folder.is_dir() else []
    if not headers:
        raise MissingPartError(
            str(folder),
            "no WFDB header (*.hea) in this folder",
            "Name the folder with CPSC2018's A0001.hea …, for example the project's data/real_sample",
        )
    return make_manifest([_row(path, split) for path in headers])


def load_real_sample() -> Manifest:
    """Load the ten real CPSC2018 recordings A0001–A0010 that come with the project (CC BY 4.0).

    Raises:
        MissingPartError: `data/real_sample` is missing.
    """
    return load_cpsc2018(data_folder() / "real_sample")


def statements_from_snomed(codes: tuple[str, ...]) -> tuple[tuple[str, float], ...]:
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


def _row(path: Path, split: str) -> dict[str, object]:
    comments = _comments(path)
    if "dx" not in comments:
        raise RecordError(path, "the header has no '# Dx:' line", "Use CPSC2018 in the PhysioNet Challenge's format")
    codes = tuple(code.strip() for code in comments["dx"].split(",") if code.strip())
    statements = statements_from_snomed(codes)
    number = int(re.sub(r"\D", "", path.stem) or 0)
    return {
        "record": path.stem,
        "path": str(path.with_suffix("")),
        "patient": path.stem,
        "split": split,
        "report": report_from_statements(statements, seed=number),
        "statements": statements,
        "language": "en",
        "age": _age(comments.get("age", "")),
        "sex": _SEXES.get(comments.get("sex", "").lower()),
        "snomed": codes,
    }


def _comments(path: Path) -> dict[str, str]:
    """Read `Age`, `Sex` and `Dx` from a header's comment lines, without touching the signal."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    matches = (_COMMENT.match(line) for line in lines)
    return {match[1].lower(): match[2] for match in matches if match}


def _age(text: str) -> float:
    try:
        age = float(text)
    except ValueError:
        return float("nan")
    return age if 0 < age < 130 else float("nan")
