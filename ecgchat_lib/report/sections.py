"""The content of a report, before any layout: six sections, each line with where it comes from.

Only what is known is written. What nobody recorded is "not recorded", what couldn't be measured says why, and what a
model said stands apart from what was measured, with a mark where the two disagree. Of an unusable recording nothing is
said but why. Recommendations follow fixed rules and the knowledge base, and never come from a model. Taught in: 13 §7
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from ecgchat_lib.chat.checking import Contradiction, contradictions
from ecgchat_lib.chat.session import why_not
from ecgchat_lib.datasets.labels import STATEMENTS, codes_of_kind
from ecgchat_lib.ecg.measure import NUMBERS, Measurements
from ecgchat_lib.ecg.recording import Patient, Recording
from ecgchat_lib.knowledge.limits import Flag, Source, cautions, flag_all, is_child
from ecgchat_lib.report.advice import advice_for
from ecgchat_lib.report.escaping import shorten

if TYPE_CHECKING:
    from ecgchat_lib.ecg.quality import Quality
    from ecgchat_lib.evaluate.classifier import Reading

_MORE = "more"  # what the label of the line ends with that names what there was no room for
TITLES = (
    "Patient Information",
    "Medical History",
    "ECG Data Analysis",
    "Pathological Analysis",
    "Diagnosis",
    "Recommendations",
)
NOT_RECORDED = "not recorded"
MEDICATION = "Medication"
NOTICE = (
    "Not a medical device. Made by teaching software of the ECG-Chat course; not to be used for the care of any person."
)
MODEL_NOTICE = "Written by a small language model that is often wrong, not by a clinician."
QUESTIONS = (  # what the report asks a model: the section in which the answer stands, and the question
    ("Pathological Analysis", "What is the heart rhythm?"),
    ("Diagnosis", "What does this ECG show?"),
    ("Diagnosis", "Is this ECG normal?"),
)
FOOTER = "Made with the ECG-Chat course. Measurements and answers are automatic and unconfirmed."
CLASSIFIER_NOTICE = "From a statistical classifier, not confirmed"
ADVICE_NOTICE = "If a clinician confirms it, what usually comes next, from the knowledge base and not from a model:"
_CONTRADICTS = {  # label → what contradicts a statement: "rule" is a word, held against the limits of what was measured
    "Contradicts the measurements": ("measurement", "rule"),
    "Contradicts the classifier": ("classifier",),
}
_WANTED = ("heart_rate_bpm", "pr_ms", "qrs_ms", "qtc_ms", "axis_deg")  # what a reader of an ECG looks for first
DESCRIPTION_LIMIT = 1000  # characters of the tracing in words
NAME_LIMIT = 60  # characters of a recording's name
_MOST_CONTRADICTIONS = 4  # listed; the others are counted
_MOST_DOUBTS = 3  # the same
_MOST_LABELS = 6  # the same

Origin = Literal["recorded", "measured", "rule", "classifier", "knowledge", "model", "check", "abstained"]


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
    text: str  # or why there is no answer
    notes: tuple[str, ...] = ()
    abstained: bool = False
    reason: str = ""  # abstained: why, in a word, as in `chat.session.Answer`


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
    """The whole content; `render_latex`, `report_html` and `report_markdown` lay it out."""

    record: str
    sections: tuple[Section, ...]  # six, titled as in TITLES
    flags: tuple[Flag, ...]  # the table of measurements
    description: str  # the tracing in words
    by_model: bool  # whether any line was said by a model
    notice: str = NOTICE
    sources: tuple[Source, ...] = field(default=())  # numbered from 1 in the text: of the limits, then of the advice
    limit_sources: int = 0  # how many of them are of the limits
    usable: bool = True  # whether anything may be concluded from the recording
    rhythm: str = ""  # the classifier's, else what the RR intervals show, else ""
    contradicted: int = 0  # statements of the model that something contradicts
    abstained: int = 0  # questions that the model didn't answer

    def section(self, title: str) -> Section:
        """Return the section with this title."""
        return self.sections[TITLES.index(title)]


def withheld(quality: Quality) -> Measurements | None:
    """Return measurements of which none is told, with the reason, where nothing may be concluded; else None."""
    if not why_not(quality):
        return None
    why = "the electrodes may be in each other's place" if quality.usable else "the recording isn't usable"
    return Measurements(reasons=dict.fromkeys(NUMBERS, why))


def build_report(
    recording: Recording,
    measurements: Measurements,
    quality: Quality,
    answers: Sequence[ModelAnswer] = (),
    *,
    patient: PatientDetails | None = None,
    description: str = "",
    reading: Reading | None = None,
    tested: Mapping[str, tuple[int, int]] | None = None,
) -> Report:
    """Put together what is known about a recording.

    Args:
        recording: the recording; its header's history, medication and symptoms are used where they say something.
        measurements: of this recording.
        quality: of this recording.
        answers: what a model said, if one was asked; left out where the recording isn't usable.
        patient: what the reader knows beyond the recording.
        description: the tracing in words (`ecg.paper.describe`).
        reading: what the classifier says, if it was asked; left out as the answers are, and for a child.
        tested: how often the classifier's statements were right (`advice.how_often_right`).

    Returns:
        The report. It holds nothing that isn't in the arguments, in the table of limits or in the knowledge base.
        Where `quality` says that the recording isn't usable, or that electrodes look exchanged, it holds no
        measurement, finding or answer either, but the reason.
    """
    nothing = withheld(quality)
    if nothing is not None:
        measurements, answers, reading = nothing, (), None
    who = patient or PatientDetails()
    person = Patient(
        age=who.age if who.age is not None else recording.patient.age,
        sex=who.sex if who.sex is not None else recording.patient.sex,
    )
    if is_child(person.age):
        reading = None
    flags = flag_all(measurements, sex=person.sex, age=person.age)
    found = _Found(flags, measurements, quality, person, tuple(answers), reading)
    limit_sources = tuple(sorted({item.source for item in flags if item.source}, key=lambda source: source.cite))
    advice, more = advice_for(flags, reading, tested)
    sources = tuple(dict.fromkeys((*limit_sources, *(source for one in advice for source in one.sources))))
    lines = [
        Entry(
            one.about,
            f"{one.step} [{', '.join(str(sources.index(source) + 1) for source in one.sources)}]",
            "knowledge",
        )
        for one in advice
    ]
    if more:
        lines.append(_more(more))
    sections = (
        _patient_information(who, person),
        _medical_history(recording, who),
        _data_analysis(recording, measurements, quality),
        _pathological_analysis(found),
        _diagnosis(found),
        Section("Recommendations", (*_rules(found), *lines)),
    )
    return Report(
        record=recording.name,
        sections=sections,
        flags=flags,
        description=description,
        by_model=any(not answer.abstained for answer in answers),
        sources=sources,
        limit_sources=len(limit_sources),
        usable=nothing is None,
        rhythm=_rhythm(found),
        contradicted=sum(len(found.against(answer)) for answer in answers),
        abstained=sum(answer.abstained for answer in answers),
    )


def _more(names: Sequence[str]) -> Entry:
    """Return the line that names the findings that no advice is given for."""
    return Entry(f"{len(names)} {_MORE}", f"{'; '.join(names)}.", "knowledge")


def with_less_advice(report: Report, most: int) -> Report:
    """Return the report with at most `most` lines of advice; the findings of the others are named in the last line."""
    last = report.sections[-1]
    lines = [entry for entry in last.entries if entry.origin == "knowledge"]
    named = lines.pop().text.rstrip(".").split("; ") if lines and lines[-1].label.endswith(f" {_MORE}") else []
    if len(lines) <= most:
        return report
    names = [entry.label.partition(" \u2014 ")[0] for entry in lines[most:]] + named
    others = [entry for entry in last.entries if entry.origin != "knowledge"]
    fewer = replace(last, entries=(*others, *lines[:most], _more(names)))
    return replace(report, sections=(*report.sections[:-1], fewer))


@dataclass(frozen=True)
class _Found:
    """What sections 4 to 6 are made of."""

    flags: tuple[Flag, ...]
    measurements: Measurements
    quality: Quality
    person: Patient
    answers: tuple[ModelAnswer, ...]
    reading: Reading | None

    @property
    def why_nothing(self) -> tuple[str, ...]:
        """Why nothing is concluded from the recording; empty if something is."""
        if not why_not(self.quality):
            return ()
        return self.quality.reasons or tuple(one.words for one in self.quality.findings if one.kind == "reversal")

    @property
    def out(self) -> list[Flag]:
        """The measurements outside their limits."""
        return [item for item in self.flags if item.status in ("low", "high")]

    def against(self, answer: ModelAnswer) -> tuple[Contradiction, ...]:
        """Return what contradicts an answer."""
        if answer.abstained:
            return ()
        return contradictions(answer.text, self.measurements, self.reading, sex=self.person.sex, age=self.person.age)


def shortened(section: Section, limit: int, patient_limit: int | None = None) -> Section:
    """Return the section with the texts of files and models cut to `limit` characters, each with a note.

    What this package itself says (rules, marks, notices) is never cut, nor is a medication. What else is told of the
    patient is cut to `patient_limit`, if that is given.
    """
    of_patient = section.title in TITLES[:2]

    def short(entry: Entry) -> Entry:
        if entry.origin in ("rule", "classifier", "knowledge") or entry.label in _CONTRADICTS:
            return entry
        most = patient_limit if of_patient else limit
        if most is None or (of_patient and entry.label == MEDICATION):
            most = max(len(entry.label), len(entry.text))  # whole, on one line
        return replace(entry, label=shorten(entry.label, most), text=shorten(entry.text, most))

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
        _recorded(MEDICATION, who.medication or _from_header(recording, "Rx")),
        _recorded("Symptoms", who.symptoms or _from_header(recording, "Sx")),
    )
    return Section("Medical History", entries)


def _data_analysis(recording: Recording, measurements: Measurements, quality: Quality) -> Section:
    signal = f"{len(recording.leads)} leads, {recording.seconds:.1f} s at {recording.fs:g} Hz"
    rhythm = {True: "regular", False: "irregular", None: "not measured"}[measurements.regular]
    verdict = "usable" if quality.usable else "not usable"
    if why_not(quality):
        verdict += ": nothing was concluded from it"
    entries = [
        Entry("Signal", signal, "recorded"),
        Entry("Quality", "; ".join([verdict, *quality.warnings]), "measured"),
        Entry("RR intervals", rhythm, "measured"),
    ]
    entries += [Entry("Reading note", note, "recorded") for note in recording.notes]
    return Section("ECG Data Analysis", tuple(entries))


def _pathological_analysis(found: _Found) -> Section:
    title, quality = "Pathological Analysis", found.quality
    if found.why_nothing:
        return Section(title, (Entry("", f"Nothing was judged: {_listed(found.why_nothing)}.", "rule"),))
    judged = [item for item in found.flags if item.status != "unknown"]
    doubts = [Entry("", f"Doubtful recording: {_listed(quality.warnings)}.", "rule")] if quality.warnings else []
    entries = doubts + [Entry("", item.sentence, "rule") for item in found.out if item.field != "rr_ms"]
    if not found.out and judged:
        entries.append(Entry("", f"All {len(judged)} measurements with a limit lie within it.", "rule"))
    if is_child(found.person.age):
        told = "Nothing was judged: the limits are those of adults. So are the classifier's labels, which are left out."
        entries.append(Entry("", told, "rule"))
    elif not judged:
        entries.append(Entry("", "No measurement could be compared with a limit.", "rule"))
    entries += [Entry("", sentence, "rule") for sentence in cautions(found.measurements)]
    return Section(title, (*entries, *_labels(found.reading), *_said(title, found)))


def _labels(reading: Reading | None) -> list[Entry]:
    """Return the classifier's labels, the likeliest first, each with its probability."""
    if reading is None:
        return []
    present = sorted(reading.present, key=lambda code: -reading.probabilities[code])
    entries = [
        Entry(STATEMENTS[code].description, f"{reading.probabilities[code]:.2f}", "classifier")
        for code in present[:_MOST_LABELS]
    ]
    if len(present) > _MOST_LABELS:
        entries.append(Entry(f"{len(present) - _MOST_LABELS} more labels", "not shown", "classifier"))
    return entries


def _rhythm(found: _Found) -> str:
    """Return the rhythm in a few words: the classifier's rhythm statement, else what the RR intervals show."""
    if found.reading is not None:
        rhythms = set(codes_of_kind("rhythm"))
        for code in found.reading.present:
            if code in rhythms:
                return STATEMENTS[code].description
    return {True: "regular", False: "irregular", None: ""}[found.measurements.regular]


def _listed(texts: Sequence[str]) -> str:
    """Return the first of the texts in one line, and how many more there are."""
    more = [f"{len(texts) - _MOST_DOUBTS} more"] if len(texts) > _MOST_DOUBTS else []
    return "; ".join([*texts[:_MOST_DOUBTS], *more])


def _diagnosis(found: _Found) -> Section:
    if found.why_nothing:
        why = "electrodes look exchanged" if found.quality.usable else "the recording isn't usable"
        return Section("Diagnosis", (Entry("", f"No diagnosis: {why}.", "rule"),))
    entries = _said("Diagnosis", found)
    return Section("Diagnosis", entries or (Entry("", "No diagnosis: no model was asked, and no clinician.", "rule"),))


def _said(title: str, found: _Found) -> tuple[Entry, ...]:
    """Return a section's answers, each followed by its notes and by what contradicts it."""
    entries: list[Entry] = []
    for answer in found.answers:
        if answer.section != title:
            continue
        origin: Origin = "abstained" if answer.abstained else "model"
        entries.append(Entry(answer.question, answer.text.strip() or "(the model answered nothing)", origin))
        entries += [Entry("Note", note, "check") for note in answer.notes]
        against = found.against(answer)
        for label, by in _CONTRADICTS.items():
            words = [str(item) for item in against if item.by in by]
            if words:
                more = [f"{len(words) - _MOST_CONTRADICTIONS} more"] if len(words) > _MOST_CONTRADICTIONS else []
                entries.append(Entry(label, "; ".join([*words[:_MOST_CONTRADICTIONS], *more]) + ".", "check"))
    return tuple(entries)


def _rules(found: _Found) -> list[Entry]:
    """Return what fixed rules recommend; what a model recommends is no business of a report."""
    texts = []
    if found.why_nothing:
        why = (
            "check where the electrodes are" if found.quality.usable else "the quality of this one is too low to judge"
        )
        texts.append(f"Record the ECG again: {why}.")
    if found.out:
        texts.append("Have the measurements outside their limits confirmed by a clinician, on the tracing.")
    wanted = (item for item in found.flags if item.field in _WANTED)
    if not found.why_nothing and any(item.shown == "not measured" for item in wanted):
        texts.append("Measure by hand what couldn't be measured automatically.")
    if any(not answer.abstained for answer in found.answers):
        texts.append("Treat the model's sentences as an exercise, not as a finding.")
    texts.append("A normal result here excludes nothing: with symptoms, see a clinician.")
    return [Entry("", text, "rule") for text in texts]
