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
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from ecgchat_lib import __version__
from ecgchat_lib.chat.train_cli import add_commands
from ecgchat_lib.course.cli import app as course_app
from ecgchat_lib.datasets.cli import app as data_app
from ecgchat_lib.errors import EcgChatError, printable
from ecgchat_lib.evaluate.train_cli import train_app
from ecgchat_lib.instruct.cli import instruct_app

Item = TypeVar("Item")

if TYPE_CHECKING:
    from ecgchat_lib.chat.cli import Call
    from ecgchat_lib.ecg.measure import Measurements
    from ecgchat_lib.ecg.quality import Quality
    from ecgchat_lib.ecg.recording import Recording
    from ecgchat_lib.report.write import Kind

app = typer.Typer(
    name="ecgchat",
    help="Read a 12-lead ECG, measure it, talk about it, report on it. For learning; not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(course_app, name="course")
app.add_typer(data_app, name="data")
app.add_typer(train_app, name="train")
add_commands(train_app)
app.add_typer(instruct_app, name="instruct")

RECORD_HELP = "A WFDB record, with or without extension; or a csv, npy, h5, EDF or DICOM file."
SHOWN_FIELDS = ("heart_rate_bpm", "rr_ms", "pr_ms", "qrs_ms", "qrs_global_ms", "qt_ms", "qtc_ms", "axis_deg")

Records = Annotated[list[Path], typer.Argument(metavar="RECORD...", help=RECORD_HELP, show_default=False)]
ReportRecords = Annotated[
    list[Path], typer.Argument(metavar="RECORD...", help=f"{RECORD_HELP} Or a folder of them.", show_default=False)
]
OUT_HELP = "a file for one recording, a folder for several, with a summary."
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
Rate = Annotated[
    float | None, typer.Option("--fs", help="Samples per second, for files that don't say it (csv, npy, h5).")
]
Leads = Annotated[
    str | None,
    typer.Option("--leads", help="Names of the leads in the file's order, with commas, for files that don't say them."),
]
Unit = Annotated[str | None, typer.Option("--unit", help="V, mV, uV or nV, for files that don't say it.")]


Model = Annotated[
    Path | None,
    typer.Option("--model", metavar="FOLDER", help="An ECG-CoCa's folder; the course's mini if not given."),
]

WdeStyle = Literal["course", "original"]
LabelSet = Literal["super", "sub", "form", "rhythm", "cpsc2018"]
How = Literal["prompts", "probe"]


def json_line(values: dict[str, Any]) -> str:
    """Return `values` as one line of strict JSON; numbers that are not finite become null."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }
    return json.dumps(finite, ensure_ascii=False, allow_nan=False)


def _read(record: Path, fs: float | None, leads: str | None, unit: str | None) -> Recording:
    """Read a recording of any kind; what the file doesn't say comes from the options."""
    from ecgchat_lib.ecg.formats import read_any

    names = None if leads is None else [name.strip() for name in leads.split(",")]
    return read_any(record, fs=fs, leads=names, unit=unit)


def _whole(value: float) -> str:
    """Return a measured value as a whole number, or n/a where it is unknown."""
    return f"{value:.0f}" if math.isfinite(value) else "n/a"


def _complain(error: EcgChatError) -> None:
    """Print the error on one line, whatever line breaks or control characters its parts hold."""
    typer.echo(f"ecgchat: {_one_line(str(error))}", err=True)


def _one_line(text: str) -> str:
    """Return a text on one line, without control characters: it may come from a file."""
    return printable(" ".join(text.split()))


def _progress(records: Iterable[Item], what: str) -> Iterable[Item]:
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
def measure(
    records: Records,
    as_json: AsJson = False,
    fs: Rate = None,
    leads: Leads = None,
    unit: Unit = None,
    wde: Annotated[WdeStyle, typer.Option("--wde", help="How unknown values read in --json's WDE text.")] = "course",
) -> None:
    """Measure rate, intervals (ms), axis, heights (mV) and ST levels, and judge the quality; unknown is n/a or null."""
    from ecgchat_lib.ecg.measure import measure as measure_recording
    from ecgchat_lib.ecg.quality import judge

    def measure_one(record: Path) -> None:
        recording = _read(record, fs, leads, unit)
        measured, quality = measure_recording(recording), judge(recording)
        if as_json:
            typer.echo(json_line(_measured_row(recording, measured, quality, wde)))
            return
        shown = "  ".join(f"{name} {_whole(getattr(measured, name))}" for name in SHOWN_FIELDS)
        typer.echo(f"{recording.name}: {shown}")
        reasons = (f"{name}: {reason}" for name, reason in measured.reasons.items())
        for note in (*recording.notes, *quality.warnings, *reasons):
            typer.echo(f"  {recording.name}: {note}", err=True)

    _for_each(records, "measure", measure_one)


def _measured_row(recording: Recording, measured: Measurements, quality: Quality, wde: WdeStyle) -> dict[str, Any]:
    """Return what `measure --json` prints of one recording: times to 0.1 ms, heights to 0.001 mV."""
    from ecgchat_lib.ecg.measure import wde_text

    row: dict[str, Any] = {"record": recording.name, "fs": recording.fs}
    for name, value in measured.as_dict().items():
        digits = 3 if name.endswith("_mv") else 1
        if isinstance(value, dict) and name != "reasons":
            row[name] = {lead: round(level, digits) for lead, level in value.items()}
        else:
            row[name] = round(value, digits) if isinstance(value, float) else value
    return row | {
        "wde": wde_text(measured, style=wde).strip(),
        "quality": quality.as_dict(),
        "notes": list(recording.notes),
    }


@app.command()
def embed(
    out: Annotated[Path, typer.Option("--out", help="The npz file to write.", show_default=False)],
    records: Annotated[list[Path] | None, typer.Argument(metavar="RECORD...", help=RECORD_HELP)] = None,
    texts: Annotated[
        Path | None, typer.Option("--texts", metavar="FILE", help="Instead of recordings: one text a line, in UTF-8.")
    ] = None,
    model: Model = None,
    fs: Rate = None,
    leads: Leads = None,
    unit: Unit = None,
) -> None:
    """Embed recordings, or texts, into the space in which they are compared; each vector has length 1."""
    from ecgchat_lib.evaluate.cli import embed_records, embed_text_file

    if (texts is None) == (not records):
        raise typer.BadParameter("give recordings, or --texts FILE, and not both", param_hint="RECORD...")
    if texts is not None:
        typer.echo(f"{out}: {embed_text_file(texts, out, model=model)} texts")
        return
    shown = _progress(records or [], "embed")
    written, worst = embed_records(
        shown, out, read=lambda record: _read(record, fs, leads, unit), tell=_complain, model=model
    )
    typer.echo(f"{out}: {written} recordings")
    if worst:
        raise typer.Exit(worst)


@app.command()
def classify(
    records: Records,
    labels: Annotated[LabelSet, typer.Option("--labels", help="Which classes to score.")] = "super",
    how: Annotated[
        How, typer.Option("--how", help="prompts: by words, zero-shot; probe: a trained classifier's probabilities.")
    ] = "prompts",
    as_json: AsJson = False,
    model: Model = None,
    fs: Rate = None,
    leads: Leads = None,
    unit: Unit = None,
) -> None:
    """Score the classes of a label set in each recording. For learning; not a diagnosis."""
    from ecgchat_lib.evaluate.cli import classify_records

    worst = 0
    shown = _progress(records, "classify")
    for found in classify_records(shown, labels, how, read=lambda record: _read(record, fs, leads, unit), model=model):
        if isinstance(found, EcgChatError):
            _complain(found)
            worst = max(worst, found.exit_code)
        elif as_json:
            typer.echo(json_line({"record": str(found.record), "scores": found.scores}))
        else:
            scores = (f"{one} {'n/a' if score is None else f'{score:.3f}'}" for one, score in found.scores.items())
            typer.echo(_one_line(f"{found.record}: {'  '.join(scores)}"))
    if worst:
        raise typer.Exit(worst)


@app.command()
def search(
    query: Annotated[str, typer.Argument(metavar="TEXT", help="What to look for, in English.", show_default=False)],
    source: Annotated[
        Path,
        typer.Option(
            "--in", metavar="MANIFEST", help="A manifest (parquet, csv) or a packed store.", show_default=False
        ),
    ],
    top: Annotated[int, typer.Option("--top", min=1, max=100_000, help="How many recordings.")] = 10,
    as_json: AsJson = False,
    model: Model = None,
) -> None:
    """Find the recordings nearest to a text; a second search in the same manifest reads nothing again."""
    from ecgchat_lib.evaluate.cli import search as search_in

    found, worst = search_in(
        query, source, top, tell=_complain, progress=lambda rows: _progress(rows, "embed"), model=model
    )
    for row in found:
        if as_json:
            typer.echo(json_line(row))
        else:
            said = _one_line(f"{row['record']}: {row['report'] or ', '.join(row['statements'])}")
            typer.echo(f"{row['rank']:3}  {row['similarity']:6.3f}  {said}")
    if worst:
        raise typer.Exit(worst)


@app.command()
def chat(
    record: Annotated[Path | None, typer.Argument(metavar="RECORD", help=RECORD_HELP, show_default=False)] = None,
    message: Annotated[
        list[str] | None,
        typer.Option("--message", "-m", help="A question; repeat it for several turns. Without it, a conversation."),
    ] = None,
    compare: Annotated[
        Path | None, typer.Option("--compare", metavar="RECORD2", help="A later recording, to compare RECORD with.")
    ] = None,
    batch: Annotated[
        Path | None,
        typer.Option(
            "--batch",
            metavar="QUESTIONS.jsonl",
            help='Instead of RECORD: a file (or -) with {"record": ..., "question": ...} on each line. '
            'Lines in a row with the same "conversation" are its turns.',
        ),
    ] = None,
    with_: Annotated[
        str,
        typer.Option(
            "--with",
            help="What the model is given: tokens, labels, measurements, neighbours, knowledge (with commas), all, "
            "none or default. A question about ECGs in general is answered from the knowledge base all the same.",
        ),
    ] = "default",
    stream: Annotated[bool, typer.Option("--stream", help="Print each answer while it is made.")] = False,
    as_json: AsJson = False,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FOLDER", help="A chat model's folder; the course's mini if not given."),
    ] = None,
    neighbours: Annotated[
        Path | None,
        typer.Option(
            "--neighbours",
            metavar="FOLDER",
            help="An index of recordings with reports, to look up similar ones in; the course's if not given.",
        ),
    ] = None,
    fs: Rate = None,
    leads: Leads = None,
    unit: Unit = None,
) -> None:
    """Ask questions about recordings. For learning; not a diagnosis."""
    from ecgchat_lib.chat.cli import Call, run

    records = tuple(path for path in (record, compare) if path is not None)
    if compare is not None and record is None:
        raise typer.BadParameter("give the earlier RECORD too", param_hint="--compare")
    call = Call(records, tuple(message or ()), batch, with_, stream, as_json, model, neighbours, fs, leads, unit)
    if worst := run(call, _read, _complain, lambda *asked: _report_beside(call, *asked)):
        raise typer.Exit(worst)


def _report_beside(call: Call, recording: Recording, path: Path, kind: Kind, given: frozenset[str]) -> None:
    """Write the report that is asked for in a conversation: the same model, in a conversation of its own."""
    from ecgchat_lib.chat.session import load_chat
    from ecgchat_lib.report import write_report

    session = load_chat(call.model, with_=given, neighbours=call.neighbours)
    write_report(recording, path, kind=kind, session=session)


@app.command()
def report(
    records: ReportRecords,
    pdf: Annotated[Path | None, typer.Option("--pdf", metavar="OUT", help=f"Write PDF: {OUT_HELP}")] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="OUT", help="The same as one HTML file.")] = None,
    md: Annotated[Path | None, typer.Option("--md", metavar="OUT", help="The same as Markdown and a picture.")] = None,
    patient: Annotated[
        Path | None,
        typer.Option(
            "--patient",
            metavar="FILE",
            help="YAML or JSON: name, identifier, age, sex, recorded_at, history, medication, symptoms; "
            "for several recordings below each one's name.",
        ),
    ] = None,
    ask: Annotated[bool, typer.Option(help="Ask the chat model and the classifier, or only measure.")] = True,
    resume: Annotated[bool, typer.Option(help="Of several: leave alone what is complete and unchanged.")] = True,
    as_json: AsJson = False,
    fs: Rate = None,
    leads: Leads = None,
    unit: Unit = None,
) -> None:
    """Report on each recording on a page: tracing, measurements, what the model said and what contradicts it."""
    outputs = {kind: out for kind, out in (("pdf", pdf), ("html", html), ("md", md)) if out is not None}
    if not outputs:
        raise typer.BadParameter("give one or more of --pdf, --html and --md", param_hint="--pdf")
    from ecgchat_lib.report.cli import Call, run_report

    call = Call(tuple(records), outputs, patient, resume, ask, as_json)  # type: ignore[arg-type]
    if worst := run_report(call, lambda record: _read(record, fs, leads, unit), _complain, _progress):
        raise typer.Exit(worst)


@app.command(name="app")
def page(
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port of 127.0.0.1.")] = 7860,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FOLDER", help="A chat model's folder; the course's mini if not given."),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Serve a page on this computer: drop a recording, see it, ask, take the report along. Not a medical device."""
    from ecgchat_lib.app import serve

    serve(port, model=model, open_browser=open_browser)


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
