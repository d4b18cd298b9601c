"""The `ecgchat` command: thin wrappers around the library, one for each thing a user does with a recording.

Exit codes: 0 done, 1 something failed while running, 2 the input or the call can't be used (one line says why). What a
program reads goes to standard output, everything else to standard error. Taught in: 00 §5.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from ecgchat_lib import __version__
from ecgchat_lib.course.cli import app as course_app
from ecgchat_lib.errors import EcgChatError

app = typer.Typer(
    name="ecgchat",
    help="Read a 12-lead ECG, measure it, talk about it, report on it. For learning; not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(course_app, name="course")

RECORD_HELP = "A WFDB record, with or without extension."
MEASURED_FIELDS = ("heart_rate_bpm", "rr_ms", "pr_ms", "qrs_ms", "qt_ms", "qtc_ms", "axis_deg")

Records = Annotated[list[Path], typer.Argument(metavar="RECORD...", help=RECORD_HELP, show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]


def json_line(values: dict[str, Any]) -> str:
    """Return `values` as one line of strict JSON; numbers that are not finite become null."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }
    return json.dumps(finite, ensure_ascii=False, allow_nan=False)


def _whole(value: float) -> str:
    """Return a measured value as a whole number, or n/a where it is unknown."""
    return f"{value:.0f}" if math.isfinite(value) else "n/a"


def _complain(error: EcgChatError) -> None:
    """Print the error on one line, whatever line breaks or control characters its parts hold."""
    line = " ".join(str(error).split())
    typer.echo("ecgchat: " + "".join(c if c.isprintable() else "?" for c in line), err=True)


def _progress(records: Iterable[Path], what: str) -> Iterable[Path]:
    """Show progress on standard error if that is a terminal and there is more than one record."""
    from tqdm import tqdm

    items = list(records)
    return tqdm(items, desc=what, unit="record", disable=None if len(items) > 1 else True)


def _for_each(records: list[Path], what: str, do: Callable[[Path], None]) -> None:
    """Do it for each record; one that can't be used is told of in a line, the others go on, and the exit code is 2."""
    worst = 0
    for record in _progress(records, what):
        try:
            do(record)
        except EcgChatError as error:
            _complain(error)
            worst = max(worst, error.exit_code)
    if worst:
        raise typer.Exit(worst)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"ecgchat {__version__}")
        raise typer.Exit


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check Python, packages, pretrained parts, LaTeX, memory and disk; say what to do about each fault."""
    from ecgchat_lib.course.doctor import examine

    findings = examine()
    for finding in findings:
        if as_json:
            typer.echo(json_line({"check": finding.check, "status": finding.status, "detail": finding.detail}))
        else:
            typer.echo(f"{finding.status:4}  {finding.check}: {finding.detail}")
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(1)


@app.command()
def measure(records: Records, as_json: AsJson = False) -> None:
    """Measure rate, intervals (ms) and frontal axis (degrees); unknown values are n/a, or null in JSON."""
    from ecgchat_lib.ecg.measure import measure as measure_recording
    from ecgchat_lib.ecg.recording import read_recording

    def measure_one(record: Path) -> None:
        recording = read_recording(record)
        measured = measure_recording(recording)
        values = {name: getattr(measured, name) for name in MEASURED_FIELDS}
        if as_json:
            rounded = {name: round(float(value), 1) for name, value in values.items()}
            typer.echo(json_line({"record": recording.name, "fs": recording.fs, **rounded}))
            return
        shown = "  ".join(
            f"{name} {value:.0f}" if math.isfinite(value) else f"{name} n/a" for name, value in values.items()
        )
        typer.echo(f"{recording.name}: {shown}")
        for note in (*recording.notes, *(f"{field}: {reason}" for field, reason in measured.reasons.items())):
            typer.echo(f"  {recording.name}: {note}", err=True)

    _for_each(records, "measure", measure_one)


@app.command()
def chat(
    record: Annotated[Path, typer.Argument(metavar="RECORD", help=RECORD_HELP, show_default=False)],
    message: Annotated[
        list[str] | None,
        typer.Option("--message", "-m", help="A question; repeat it for several turns. Without it, a conversation."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask questions about a recording; they are answered by the shipped mini model."""
    from ecgchat_lib.chat.session import load_chat
    from ecgchat_lib.ecg.recording import read_recording

    recording = read_recording(record)
    session = load_chat()
    told: set[str] = set()

    def answer(question: str) -> None:
        reply = session.ask(recording, question)
        if as_json:
            typer.echo(json_line({"record": recording.name, "question": question, "answer": reply.text}))
        else:
            typer.echo(reply.text)
        for note in reply.notes:
            if note not in told:  # what was changed in the recording is said once, not at each turn
                typer.echo(f"{recording.name}: {note}", err=True)
                told.add(note)

    for question in message or _questions():
        answer(question)


def _questions() -> Iterable[str]:
    """Yield what is typed, line by line, until an empty line or the end of the input."""
    if sys.stdin.isatty():
        typer.echo("Ask about the recording; an empty line ends. For learning, not for care.", err=True)
    while True:
        try:
            question = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if not question:
            return
        yield question


@app.command()
def report(
    records: Records,
    pdf: Annotated[
        Path,
        typer.Option("--pdf", help="Where to write: a file for one record, a folder for several.", show_default=False),
    ],
    as_json: AsJson = False,
) -> None:
    """Write a one-page PDF report of each recording: tracing, measurements, what the model said."""
    from ecgchat_lib.chat.session import load_chat
    from ecgchat_lib.ecg.recording import read_recording
    from ecgchat_lib.report import write_report

    session = None

    def report_one(record: Path) -> None:
        nonlocal session
        recording = read_recording(record)
        target = pdf if len(records) == 1 and not pdf.is_dir() else pdf / f"{recording.name}.pdf"
        session = session or load_chat()
        written = write_report(recording, target, session=session)
        typer.echo(json_line({"record": recording.name, "pdf": str(written)}) if as_json else str(written))

    _for_each(records, "report", report_one)


def main() -> None:
    """Run the command; turn every error that a user can mend into one line and its exit code."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a waiting thread sleeps; read when torch is first imported
    try:
        app(prog_name="ecgchat")
    except EcgChatError as error:
        _complain(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("ecgchat: interrupted", err=True)
        sys.exit(130)
