"""What usually comes next after a finding: the knowledge base's words with their source, never a model's.

A finding is a measurement outside its limit, or a statement that the classifier says; it is named as it was found, and
the entry that speaks of it stands beside it. Whether a step applies to somebody is a clinician's decision. So is that
none is needed: who calls a finding harmless has to know the symptoms and all other findings, so that words to that end
are left out here. Taught in: 13 §7
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ecgchat_lib.datasets.labels import STATEMENTS
from ecgchat_lib.knowledge.entries import Entry, load_entries
from ecgchat_lib.knowledge.limits import Flag, Source
from ecgchat_lib.paths import data_folder

if TYPE_CHECKING:
    from ecgchat_lib.evaluate.classifier import Reading

MOST = 5  # lines; as many as there are measurements with an entry, so that none of these is left out
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
# is the one that is about the statement itself. Left out is what is too vague (SVARR, EL, 2AVB, PRC(S)), or less than
# an entry says: high voltage is no hypertrophy, and AFLT is a flutter of either kind.
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
    "left-ventricular-hypertrophy": "LVH VCLVH SEHYP",
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


# Words that say that nothing has to be done, in a clause of a step.
_REASSURES = re.compile(r"\b(?:no (?:further )?(?:treatment|tests?|steps?)|nothing|reassur\w*)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Advice:
    """One line.

    Attributes:
        about: the finding in its own words, how it was found, and the entry.
        step: what usually comes next.
        sources: the documents behind the entry, at least one.
    """

    about: str
    step: str
    sources: tuple[Source, ...]


def advice_for(
    flags: Sequence[Flag], reading: Reading | None = None, tested: Mapping[str, tuple[int, int]] | None = None
) -> tuple[tuple[Advice, ...], tuple[str, ...]]:
    """Return the lines for what was found, and what there was no room for; each entry once.

    Args:
        flags: the measurements against their limits.
        reading: what the classifier says, or None.
        tested: how often the classifier's statements were right when tested, see `how_often_right`.

    Returns:
        At most `MOST` lines: the measurements in their order, then the likeliest statements; and the names of the
        findings beyond these. Statements of the classifier that need no action are left out.
    """
    found: dict[str, tuple[Entry, str, str]] = {}
    for entry, name, how in _findings(flags, reading, tested or {}):
        found.setdefault(entry.id, (entry, name, how))
    lines = tuple(_line(*one) for one in list(found.values())[:MOST])
    return lines, tuple(name for _, name, _ in list(found.values())[MOST:])


def how_often_right(about: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return how often each statement of the course's classifier was right when it was tested.

    Args:
        about: the classifier's; of any other classifier nothing is known.

    Returns:
        Code → (how often it was right, how often it was said), from `data/results/ecg-classifier-mini.json`.
    """
    try:
        record = json.loads((data_folder() / "results" / "ecg-classifier-mini.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if record["about"] != dict(about):
        return {}
    found = {}
    for name, one in record["metrics"]["labels"].items():
        level, _, code = name.partition(":")
        if level == "statement" and one["said"]:
            right = round((one["f1"] or 0.0) * (one["positives"] + one["said"]) / 2)  # what F1 is made of
            found[code] = (right, one["said"])
    return found


def _line(entry: Entry, name: str, how: str) -> Advice:
    """Return a finding's line: all steps of the entry, without the clauses that reassure."""
    steps = []
    for step in entry.next_steps:
        kept = "; ".join(clause for clause in step.rstrip(".").split("; ") if not _REASSURES.search(clause))
        if kept:
            steps.append(f"{kept[0].upper()}{kept[1:]}.")
    sources = tuple(Source(one.cite, one.doi) for one in entry.citations[:1])
    return Advice(f"{name} \u2014 {how}; see: {entry.title}", " ".join(steps), sources)


def _findings(
    flags: Sequence[Flag], reading: Reading | None, tested: Mapping[str, tuple[int, int]]
) -> Iterator[tuple[Entry, str, str]]:
    """Yield entry, finding and how it was found: measurements first, then the likeliest statements.

    How urgent an entry is holds for a finding that is there. Of the classifier's statements many aren't, and none says
    whether what it names is new; so no urgency stands beside these, but how often they were right.
    """
    entries = load_entries()
    for item in flags:
        if (item.field, item.status) in ENTRY_OF_FLAG:
            entry = entries[ENTRY_OF_FLAG[item.field, item.status]]
            yield entry, item.sentence.rstrip("."), "measured" + (f", {entry.urgency}" * (entry.urgency != "none"))
    if reading is None:
        return
    for code in sorted(reading.present, key=lambda one: -reading.probabilities[one]):
        if code not in ENTRY_OF_CODE or entries[ENTRY_OF_CODE[code]].urgency == "none":
            continue
        entry = entries[ENTRY_OF_CODE[code]]
        how = f"classifier, {reading.probabilities[code]:.2f}"
        if code in tested:
            how += ", right {} times of {} when tested".format(*tested[code])
        if entry.kind == "infarction":
            how += ", old or new: compare with earlier ECGs"
        yield entry, STATEMENTS[code].description, how
