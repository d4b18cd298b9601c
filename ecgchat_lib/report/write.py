"""From a recording to its one-page PDF in one call: measure, ask the model if there is one, lay out, compile.

Taught in: 13 §6
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ecgchat_lib.ecg.measure import measure
from ecgchat_lib.ecg.paper import describe, draw_paper
from ecgchat_lib.ecg.quality import judge
from ecgchat_lib.errors import EcgChatError, ParameterError
from ecgchat_lib.report.latex import Engine, compile_pdf, find_engines, move_into_place, render_latex
from ecgchat_lib.report.sections import QUESTIONS, ModelAnswer, PatientDetails, Report, build_report

if TYPE_CHECKING:
    from ecgchat_lib.ecg.recording import Recording

# Height of the tracing in mm and characters of a text, tried in turn until the report is one page.
_FITS = ((95, 700), (80, 700), (80, 350), (70, 200), (65, 120), (60, 80))


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
        answers.append(ModelAnswer(section, question, answer.text, tuple(notes)))
    return tuple(answers)


def make_report(
    recording: Recording, *, session: Session | None = None, patient: PatientDetails | None = None
) -> Report:
    """Measure a recording, ask the model if there is one, and put the report's content together.

    Args:
        recording: the recording.
        session: a model that answers questions; without one the report holds measurements only. It isn't asked about
            a recording that isn't usable.
        patient: what is known beyond the recording.

    Returns:
        The content.
    """
    measurements, quality = measure(recording), judge(recording)
    answers = ask_for_report(session, recording) if session is not None and quality.usable else ()
    description = describe(recording, measurements, quality=quality)
    return build_report(recording, measurements, quality, answers, patient=patient, description=description)


def write_report(
    recording: Recording,
    pdf: Path,
    *,
    session: Session | None = None,
    patient: PatientDetails | None = None,
    report: Report | None = None,
    engines: Sequence[Engine] | None = None,
    seconds: float = 60.0,
) -> Path:
    """Write a recording's one-page PDF report.

    Args:
        recording: the recording.
        pdf: the file to write; it is replaced only when the new one is complete.
        session: a model that answers questions; without one the report holds measurements only.
        patient: what is known beyond the recording.
        report: the content, if it was made already; `session` and `patient` must then be None.
        engines: LaTeX programs to try; those of this machine if None.
        seconds: how long LaTeX may take.

    Returns:
        `pdf`.

    Raises:
        ParameterError: a report together with a session or patient.
        MissingPartError: there is no LaTeX program.
        EcgChatError: LaTeX failed, or the file can't be written.
    """
    if report is not None and (session is not None or patient is not None):
        raise ParameterError("report: give either the report, or the session and patient that it is made from")
    found = find_engines() if engines is None else tuple(engines)
    if not found:
        compile_pdf("", Path(pdf), engines=found)  # says what is missing, before a model takes its time
    content = report or make_report(recording, session=session, patient=patient)
    with tempfile.TemporaryDirectory(prefix="ecgchat-tracing-") as folder:
        tracing = Path(folder) / "tracing.pdf"
        _draw_tracing(recording, tracing)
        made = Path(folder) / "report.pdf"
        for height, limit in _FITS:
            source = render_latex(content, tracing=tracing.name, tracing_mm=height, text_limit=limit)
            if compile_pdf(source, made, files={tracing.name: tracing}, engines=found, seconds=seconds) == 1:
                move_into_place(made, Path(pdf))
                return Path(pdf)
    raise EcgChatError(f"{pdf}: the report of {recording.name} doesn't fit on one page. Shorten the patient's details.")


def _draw_tracing(recording: Recording, path: Path) -> None:
    """Draw the recording on ECG paper as a PDF without dates, so that the same recording gives the same bytes."""
    nothing = dict.fromkeys(("Creator", "Producer", "CreationDate"))
    draw_paper(recording).savefig(path, format="pdf", metadata=nothing)
