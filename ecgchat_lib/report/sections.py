"""The content of a report, before any layout: six sections, each line with where it comes from.

Only what is known is written. What nobody recorded is "not recorded", what couldn't be measured says why, and what a
model said stands apart from what was measured, with a mark where the two disagree. Of an unusable recording nothing is
said but why. Recommendations follow fixed rules
and never come from a model. Taught in: 13 §4
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from ecgchat_lib.ecg.measure import NUMBERS, Measurements
from ecgchat_lib.ecg.recording import Patient, Recording
from ecgchat_lib.knowledge.limits import Flag, Source, cautions, flag_all, is_child
from ecgchat_lib.report.escaping import shorten
from ecgchat_lib.report.grounding import contradictions

if TYPE_CHECKING:
    from ecgchat_lib.ecg.quality import Quality

TITLES = (
    "Patient Information",
    "Medical History",
    "ECG Data Analysis",
    "Pathological Analysis",
    "Diagnosis",
    "Recommendations",
)
NOT_RECORDED = "not recorded"
NOTICE = (
    "Not a medical device. Made by teaching software of the ECG-Chat course; not to be used for the care of any person."
)
MODEL_NOTICE = "Written by a small language model that is often wrong, not by a clinician."
QUESTIONS = (  # what the report asks a model: the section in which the answer stands, and the question
    ("Pathological Analysis", "What is the heart rhythm?"),
    ("Diagnosis", "What does this ECG show?"),
    ("Diagnosis", "Is this ECG normal?"),
)
_CONTRADICTS = "Contradicts the measurements"
_WANTED = ("heart_rate_bpm", "pr_ms", "qrs_ms", "qtc_ms", "axis_deg")  # what a reader of an ECG looks for first
_MOST_CONTRADICTIONS = 4  # listed; the others are counted
_MOST_DOUBTS = 3  # the same

Origin = Literal["recorded", "measured", "rule", "model", "check"]


@dataclass(frozen=True)
class PatientDetails:
    """What the person who asks for the report knows beyond the recording; None where unknown."""

    name: str | None = None
    identifier: str | None = None
    age: float | None = None  # years; the recording's own if None
    sex: str | None = None  # "female" or "male"; the recording's own if None
    recorded_at: str | None = None
    history: str | None = None
    medication: str | None = None
    symptoms: str | None = None


@dataclass(frozen=True)
class ModelAnswer:
    """What a model answered to a question, and the section of the report in which it stands."""

    section: str  # "Pathological Analysis" or "Diagnosis"
    question: str
    text: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One line of a section: what it is about ("" if nothing), the text, and where it comes from."""

    label: str
    text: str
    origin: Origin


@dataclass(frozen=True)
class Section:
    """One of the six sections."""

    title: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Report:
    """The whole content; `render_latex` and `report_markdown` lay it out."""

    record: str
    sections: tuple[Section, ...]  # six, titled as in TITLES
    flags: tuple[Flag, ...]  # the table of measurements
    description: str  # the tracing in words
    by_model: bool  # whether any line was said by a model
    notice: str = NOTICE
    sources: tuple[Source, ...] = field(default=())  # of the limits that were used

    def section(self, title: str) -> Section:
        """Return the section with this title."""
        return self.sections[TITLES.index(title)]


def build_report(
    recording: Recording,
    measurements: Measurements,
    quality: Quality,
    answers: Sequence[ModelAnswer] = (),
    *,
    patient: PatientDetails | None = None,
    description: str = "",
) -> Report:
    """Put together what is known about a recording.

    Args:
        recording: the recording; its header's history, medication and symptoms are used where they say something.
        measurements: of this recording.
        quality: of this recording.
        answers: what a model said, if one was asked; left out where the recording isn't usable.
        patient: what the reader knows beyond the recording.
        description: the tracing in words (`ecg.paper.describe`).

    Returns:
        The report. It holds nothing that isn't in the arguments or in the table of limits. Where `quality` says that
        the recording isn't usable, it holds no measurement, finding or answer either, but the reason.
    """
    if not quality.usable:
        measurements, answers = Measurements(reasons=dict.fromkeys(NUMBERS, "the recording isn't usable")), ()
    who = patient or PatientDetails()
    person = Patient(
        age=who.age if who.age is not None else recording.patient.age,
        sex=who.sex if who.sex is not None else recording.patient.sex,
    )
    flags = flag_all(measurements, sex=person.sex, age=person.age)
    sections = (
        _patient_information(who, person),
        _medical_history(recording, who),
        _data_analysis(recording, measurements, quality),
        _pathological_analysis(flags, measurements, answers, person, quality),
        _diagnosis(measurements, answers, person, quality),
        _recommendations(flags, quality, bool(answers)),
    )
    used = {item.source for item in flags if item.source}
    sources = tuple(sorted(used, key=lambda source: source.cite))
    return Report(recording.name, sections, flags, description, bool(answers), NOTICE, sources)


def shortened(section: Section, limit: int) -> Section:
    """Return the section with the texts of users, files and models cut to `limit` characters, each with a note.

    What this package itself says (rules, marks, notices) is never cut.
    """

    def short(entry: Entry) -> Entry:
        if entry.origin == "rule" or entry.label == _CONTRADICTS:
            return entry
        return replace(entry, label=shorten(entry.label, limit), text=shorten(entry.text, limit))

    return replace(section, entries=tuple(short(entry) for entry in section.entries))


def _recorded(label: str, value: str | None) -> Entry:
    return Entry(label, (value or "").strip() or NOT_RECORDED, "recorded")


def _from_header(recording: Recording, key: str) -> str | None:
    """Return what a header comment such as "Rx: Aspirin" says; None for "Unknown" or nothing."""
    for comment in recording.comments:
        match = re.match(rf"\s*#?\s*{key}\s*:\s*(.*)", comment, re.IGNORECASE)
        if match and match.group(1).strip().lower() not in ("", "unknown", "nan", "none"):
            return match.group(1).strip()
    return None


def _patient_information(who: PatientDetails, person: Patient) -> Section:
    entries = (
        _recorded("Name", who.name),
        _recorded("Identifier", who.identifier),
        _recorded("Age", None if person.age is None else f"{person.age:g} years"),
        _recorded("Sex", person.sex),
        _recorded("Recorded", who.recorded_at),
    )
    return Section("Patient Information", entries)


def _medical_history(recording: Recording, who: PatientDetails) -> Section:
    entries = (
        _recorded("History", who.history or _from_header(recording, "Hx")),
        _recorded("Medication", who.medication or _from_header(recording, "Rx")),
        _recorded("Symptoms", who.symptoms or _from_header(recording, "Sx")),
    )
    return Section("Medical History", entries)


def _data_analysis(recording: Recording, measurements: Measurements, quality: Quality) -> Section:
    signal = f"{len(recording.leads)} leads, {recording.seconds:.1f} s at {recording.fs:g} Hz"
    rhythm = {True: "regular", False: "irregular", None: "not measured"}[measurements.regular]
    verdict = "usable" if quality.usable else "not usable: nothing was concluded from it"
    entries = [
        Entry("Signal", signal, "recorded"),
        Entry("Quality", "; ".join([verdict, *quality.warnings]), "measured"),
        Entry("RR intervals", rhythm, "measured"),
    ]
    entries += [Entry("Reading note", note, "recorded") for note in recording.notes]
    return Section("ECG Data Analysis", tuple(entries))


def _pathological_analysis(
    flags: Sequence[Flag],
    measurements: Measurements,
    answers: Sequence[ModelAnswer],
    person: Patient,
    quality: Quality,
) -> Section:
    title = "Pathological Analysis"
    if not quality.usable:
        return Section(title, (Entry("", f"Nothing was judged: {_listed(quality.reasons)}.", "rule"),))
    out = [item for item in flags if item.status in ("low", "high")]
    judged = [item for item in flags if item.status != "unknown"]
    doubts = [Entry("", f"Doubtful recording: {_listed(quality.warnings)}.", "rule")] if quality.warnings else []
    entries = doubts + [Entry("", item.sentence, "rule") for item in out if item.field != "rr_ms"]
    if not out and judged:
        entries.append(Entry("", f"All {len(judged)} measurements with a limit lie within it.", "rule"))
    if is_child(person.age):
        entries.append(Entry("", "Nothing was judged: the limits are those of adults.", "rule"))
    elif not judged:
        entries.append(Entry("", "No measurement could be compared with a limit.", "rule"))
    entries += [Entry("", sentence, "rule") for sentence in cautions(measurements)]
    return Section(title, (*entries, *_said(title, answers, measurements, person)))


def _listed(texts: Sequence[str]) -> str:
    """Return the first of the texts in one line, and how many more there are."""
    more = [f"{len(texts) - _MOST_DOUBTS} more"] if len(texts) > _MOST_DOUBTS else []
    return "; ".join([*texts[:_MOST_DOUBTS], *more])


def _diagnosis(
    measurements: Measurements, answers: Sequence[ModelAnswer], person: Patient, quality: Quality
) -> Section:
    if not quality.usable:
        return Section("Diagnosis", (Entry("", "No diagnosis: the recording isn't usable.", "rule"),))
    entries = _said("Diagnosis", answers, measurements, person)
    return Section("Diagnosis", entries or (Entry("", "No diagnosis: no model was asked, and no clinician.", "rule"),))


def _said(title: str, answers: Sequence[ModelAnswer], measurements: Measurements, person: Patient) -> tuple[Entry, ...]:
    """Return a section's answers, each followed by its notes and by what contradicts it."""
    entries: list[Entry] = []
    for answer in answers:
        if answer.section != title:
            continue
        entries.append(Entry(answer.question, answer.text.strip() or "(the model answered nothing)", "model"))
        entries += [Entry("Note", note, "check") for note in answer.notes]
        found = contradictions(answer.text, measurements, sex=person.sex, age=person.age)
        if found:
            shown = [str(item) for item in found[:_MOST_CONTRADICTIONS]]
            shown += [f"{len(found) - len(shown)} more"] if len(found) > len(shown) else []
            entries.append(Entry(_CONTRADICTS, "; ".join(shown) + ".", "check"))
    return tuple(entries)


def _recommendations(flags: Sequence[Flag], quality: Quality, by_model: bool) -> Section:
    """Fixed rules only: what a model recommends is no business of a report."""
    texts = []
    if not quality.usable:
        texts.append("Record the ECG again: the quality of this one doesn't allow a judgment.")
    if any(item.status in ("low", "high") for item in flags):
        texts.append("Have the measurements outside their limits confirmed by a clinician, on the tracing.")
    if quality.usable and any(item.field in _WANTED and item.shown == "not measured" for item in flags):
        texts.append("Measure by hand what couldn't be measured automatically.")
    if by_model:
        texts.append("Treat the model's sentences as an exercise, not as a finding.")
    texts.append("A normal result here excludes nothing: with symptoms, see a clinician.")
    return Section("Recommendations", tuple(Entry("", text, "rule") for text in texts))
