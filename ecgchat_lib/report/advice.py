"""What usually comes next after a finding: a line of the knowledge base with its source, never a model's words.

A finding is a measurement outside its limit, or a statement that the classifier says. The line is what the entry names
first under *What to do next*; whether it applies to somebody is a clinician's decision. Taught in: 13 §7
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ecgchat_lib.knowledge.entries import URGENCIES, Entry, load_entries
from ecgchat_lib.knowledge.limits import Flag, Source

if TYPE_CHECKING:
    from ecgchat_lib.evaluate.classifier import Reading

MOST = 4  # lines; the most urgent first
# A measurement outside its limit → the knowledge entry that is about just that.
ENTRY_OF_FLAG: Mapping[tuple[str, str], str] = {
    ("heart_rate_bpm", "low"): "heart-rate",
    ("heart_rate_bpm", "high"): "heart-rate",
    ("pr_ms", "low"): "short-pr-interval",
    ("pr_ms", "high"): "first-degree-av-block",
    ("qrs_ms", "high"): "qrs-duration",
    ("qtc_ms", "low"): "qt-interval",  # a short value is seldom the syndrome: measure again first
    ("qtc_ms", "high"): "long-qt-interval",
    ("axis_deg", "low"): "left-axis-deviation",
    ("axis_deg", "high"): "electrical-axis",  # right of its limit, or in no man's land
}
# An entry's `codes` name every statement that can be a sign of it, so that one statement leads to several entries. Here
# is the one that is about the statement itself. What is too vague for that (SVARR, EL, 2AVB, PRC(S)) is left out.
_CODES_OF_ENTRY: Mapping[str, str] = {
    "anterior-infarction": "AMI ASMI ALMI",
    "inferior-infarction": "IMI ILMI IPMI IPLMI",
    "lateral-infarction": "LMI",
    "posterior-infarction": "PMI",
    "left-ventricular-aneurysm": "ANEUR",
    "pathological-q-waves": "QWAVE",
    "subendocardial-ischemia": "ISC_ ISCAL ISCIN ISCAS ISCLA ISCAN ISCIL INJAS INJAL INJIN INJIL INJLA",
    "st-elevation": "STE_",
    "st-depression": "STD_",
    "t-wave-inversion": "INVT",
    "nonspecific-st-t-changes": "NST_ NDT NT_ LOWT TAB_",
    "digitalis-effect": "DIG",
    "long-qt-interval": "LNGQT",
    "left-ventricular-hypertrophy": "LVH VCLVH HVOLT SEHYP",
    "right-ventricular-hypertrophy": "RVH",
    "left-atrial-enlargement": "LAO/LAE",
    "right-atrial-enlargement": "RAO/RAE",
    "low-voltage": "LVOLT",
    "qrs-duration": "ABQRS",
    "right-bundle-branch-block": "CRBBB",
    "incomplete-right-bundle-branch-block": "IRBBB",
    "left-bundle-branch-block": "CLBBB",
    "incomplete-left-bundle-branch-block": "ILBBB",
    "left-anterior-fascicular-block": "LAFB",
    "left-posterior-fascicular-block": "LPFB",
    "nonspecific-intraventricular-conduction-delay": "IVCD",
    "first-degree-av-block": "1AVB LPR",
    "complete-av-block": "3AVB",
    "wolff-parkinson-white-pattern": "WPW",
    "atrial-fibrillation": "AFIB",
    "typical-atrial-flutter": "AFLT",
    "supraventricular-tachycardia": "SVTAC PSVT",
    "sinus-bradycardia": "SBRAD",
    "sinus-tachycardia": "STACH",
    "sinus-arrhythmia": "SARRH",
    "ventricular-premature-beats": "PVC",
    "atrial-premature-beats": "PAC",
    "bigeminy-and-trigeminy": "BIGU TRIGU",
    "ventricular-pacing": "PACE",
    "sinus-rhythm": "SR",
    "normal-ecg": "NORM",
}
ENTRY_OF_CODE: Mapping[str, str] = {code: id_ for id_, codes in _CODES_OF_ENTRY.items() for code in codes.split()}


@dataclass(frozen=True)
class Advice:
    """One line.

    Attributes:
        about: the finding, and how it was found.
        step: what usually comes next.
        urgency: one of `knowledge.entries.URGENCIES`.
        sources: the documents behind the entry, at least one.
    """

    about: str
    step: str
    urgency: str
    sources: tuple[Source, ...]


def advice_for(flags: Sequence[Flag], reading: Reading | None = None) -> tuple[Advice, ...]:
    """Return the lines for what was found, the most urgent first, each entry once.

    Args:
        flags: the measurements against their limits.
        reading: what the classifier says, or None.

    Returns:
        At most `MOST` lines. Statements of the classifier that need no action are left out.
    """
    found: dict[str, Advice] = {}
    for entry, how in _findings(flags, reading):
        if entry.id not in found:
            sources = tuple(Source(one.cite, one.doi) for one in entry.citations[:1])
            urgency = "" if entry.urgency == "none" else f"; {entry.urgency}"
            found[entry.id] = Advice(f"{entry.title} ({how}{urgency})", entry.next_steps[0], entry.urgency, sources)
    return tuple(sorted(found.values(), key=lambda one: -URGENCIES.index(one.urgency))[:MOST])


def _findings(flags: Sequence[Flag], reading: Reading | None) -> Iterator[tuple[Entry, str]]:
    """Yield the knowledge entries of what was found, with how: measurements first, then the likeliest statements."""
    entries = load_entries()
    for item in flags:
        if (item.field, item.status) in ENTRY_OF_FLAG:
            yield entries[ENTRY_OF_FLAG[item.field, item.status]], "measured"
    if reading is None:
        return
    for code in sorted(reading.present, key=lambda one: -reading.probabilities[one]):
        entry = entries[ENTRY_OF_CODE[code]] if code in ENTRY_OF_CODE else None
        if entry is not None and entry.urgency != "none":
            yield entry, f"classifier, {reading.probabilities[code]:.2f}"
