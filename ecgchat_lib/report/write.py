"""From a recording to its report in one call: measure, ask the model if there is one, lay out, compile.

The PDF is one A4 page; HTML is one file; Markdown is a file and the tracing's picture beside it.

Taught in: 13 §7
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from ecgchat_lib.ecg.measure import measure
from ecgchat_lib.ecg.paper import describe
from ecgchat_lib.ecg.quality import judge
from ecgchat_lib.errors import EcgChatError, ParameterError
from ecgchat_lib.report.advice import MOST, how_often_right
from ecgchat_lib.report.escaping import shorten
from ecgchat_lib.report.html import report_html
from ecgchat_lib.report.latex import Engine, compile_pdf, find_engines, move_into_place, render_latex
from ecgchat_lib.report.markdown import report_markdown
from ecgchat_lib.report.picture import save_tracing, tracing_svg
from ecgchat_lib.report.sections import (
    DESCRIPTION_LIMIT,
    MEDICATION,
    NAME_LIMIT,
    QUESTIONS,
    ModelAnswer,
    PatientDetails,
    Report,
    build_report,
    with_less_advice,
    withheld,
)

if TYPE_CHECKING:
    from ecgchat_lib.ecg.recording import Recording
    from ecgchat_lib.evaluate.classifier import DiagnosisClassifier

Kind = Literal["pdf", "html", "md"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Tried in turn until the report is one page: the tracing's least height in mm, characters of a text by a file or a
# model, characters of what is told of the patient, and lines of advice. The medication is never cut.
FITS = (
    (56, 700, 4000, MOST),
    (56, 350, 4000, MOST),
    (54, 200, 4000, MOST),
    (48, 200, 4000, 4),
    (46, 200, 4000, 3),
    (40, 80, 4000, 2),
    (40, 80, 1000, 1),
    (40, 80, 300, 1),
    (40, 80, 80, 1),
)
_MOST_MEDICATION = 4000  # characters; more is no list of drugs, and fits on no page


class _Answer(Protocol):
    @property
    def text(self) -> str: ...
    @property
    def notes(self) -> Sequence[str]: ...


class Session(Protocol):
    """What a report needs of `chat.session.ChatSession`."""

    def ask(self, recording: Recording, question: str) -> _Answer:
        """Answer a question about a recording."""
        ...


def ask_for_report(session: Session, recording: Recording) -> tuple[ModelAnswer, ...]:
    """Ask the model the report's questions, as a conversation of their own.

    Args:
        session: the model; a conversation that it was in is forgotten.
        recording: the recording.

    Returns:
        One answer for each of `QUESTIONS`, with the notes that nothing else in the report says.
    """
    forget = getattr(session, "reset", None)
    if forget is not None:
        forget()  # what was said before must not change a report
    known = {*recording.notes, *judge(recording).warnings}
    answers = []
    for section, question in QUESTIONS:
        answer = session.ask(recording, question)
        # What contradicts the measurements is found by the report itself, for any session.
        notes = [note for note in answer.notes if note not in known and not note.startswith("the answer says")]
        known.update(notes)
        abstained, reason = getattr(answer, "abstained", False), getattr(answer, "reason", "")
        answers.append(ModelAnswer(section, question, answer.text, tuple(notes), abstained, reason))
    return tuple(answers)


def make_report(
    recording: Recording, *, session: Session | None = None, patient: PatientDetails | None = None
) -> Report:
    """Measure a recording, ask the model if there is one, and put the report's content together.

    Args:
        recording: the recording.
        session: a model that answers questions; without one the report holds measurements only. It isn't asked about
            a recording that isn't usable, or whose electrodes look exchanged.
        patient: what is known beyond the recording.

    Returns:
        The content.
    """
    quality = judge(recording)
    nothing = withheld(quality)
    measurements = measure(recording) if nothing is None else nothing
    answers = ask_for_report(session, recording) if session is not None and nothing is None else ()
    classifier: DiagnosisClassifier | None = getattr(session, "classifier", None) if answers else None
    return build_report(
        recording,
        measurements,
        quality,
        answers,
        patient=patient,
        description=describe(recording, measurements, quality=quality),
        reading=None if classifier is None else classifier.predict([recording])[0],
        tested=None if classifier is None else how_often_right(classifier.about),
    )


def write_report(
    recording: Recording,
    path: Path,
    *,
    kind: Kind = "pdf",
    session: Session | None = None,
    patient: PatientDetails | None = None,
    report: Report | None = None,
    engines: Sequence[Engine] | None = None,
    seconds: float = 60.0,
) -> Path:
    """Write a recording's report.

    Args:
        recording: the recording.
        path: the file to write; it is replaced only when the new one is complete. Beside a Markdown file stands the
            tracing's picture, see `picture_beside`.
        kind: "pdf" (one A4 page), "html" (one file) or "md".
        session: a model that answers questions; without one the report holds measurements only.
        patient: what is known beyond the recording.
        report: the content, if it was made already; `session` and `patient` must then be None.
        engines: LaTeX programs to try; those of this machine if None.
        seconds: how long LaTeX may take.

    Returns:
        `path`.

    Raises:
        ParameterError: an unknown kind; a report together with a session or patient; the recording's own file.
        MissingPartError: there is no LaTeX program.
        EcgChatError: LaTeX failed, or the file can't be written.
    """
    if kind not in KINDS:
        raise ParameterError(f"kind {kind!r}: expected one of {', '.join(KINDS)}")
    if report is not None and (session is not None or patient is not None):
        raise ParameterError("report: give either the report, or the session and patient that it is made from")
    path = Path(path)
    if recording.path is not None and path.exists() and recording.path.exists() and path.samefile(recording.path):
        raise ParameterError(f"{path}: the recording itself, which the report would replace. Choose another place")
    if kind == "pdf":
        engines = require_engines(engines)  # says what is missing, before a model takes its time
    content = report or make_report(recording, session=session, patient=patient)
    with tempfile.TemporaryDirectory(prefix="ecgchat-report-") as folder:
        if kind == "pdf":
            made = _one_page(recording, content, Path(folder), tuple(engines or ()), seconds)
            if made is None:
                told = "doesn't fit on one page, though all but the medication was cut"
                raise EcgChatError(f"{path}: {told}. Shorten that, or write HTML")
        elif kind == "html":
            made = Path(folder) / "report.html"
            drawn = tracing_svg(
                recording,
                f"Tracing of {shorten(content.record, NAME_LIMIT)}",
                shorten(content.description, DESCRIPTION_LIMIT),
            )
            made.write_text(report_html(content, tracing=drawn), encoding="utf-8")
        else:
            made, beside = Path(folder) / "report.md", picture_beside(path)
            save_tracing(recording, made.with_suffix(".png"))
            made.write_text(report_markdown(content, tracing=beside.name), encoding="utf-8")
            move_into_place(made.with_suffix(".png"), beside)
        move_into_place(made, path)
    return path


def picture_beside(path: Path) -> Path:
    """Return where the tracing's picture of a Markdown report stands: `report.md`, `report-tracing.png`."""
    return path.with_name(f"{path.stem}-tracing.png")


def require_engines(engines: Sequence[Engine] | None = None) -> tuple[Engine, ...]:
    """Return the LaTeX programs, those of this machine if None.

    Raises:
        MissingPartError: there is none.
    """
    found = find_engines() if engines is None else tuple(engines)
    if not found:
        compile_pdf("", Path("report.pdf"), engines=found)  # raises
    return found


def _one_page(
    recording: Recording, content: Report, folder: Path, engines: Sequence[Engine], seconds: float
) -> Path | None:
    """Compile the report with less and less of its long texts until it is one page; None if it never is."""
    tracing, made = folder / "tracing.pdf", folder / "report.pdf"
    history = content.section("Medical History").entries
    if any(entry.label == MEDICATION and len(entry.text) > _MOST_MEDICATION for entry in history):
        return None
    save_tracing(recording, tracing)
    for least, limit, patient, advice in FITS:
        less = with_less_advice(content, advice)
        source = render_latex(less, tracing=tracing.name, least_mm=least, text_limit=limit, patient_limit=patient)
        if compile_pdf(source, made, files={tracing.name: tracing}, engines=engines, seconds=seconds) == 1:
            return made
    return None
