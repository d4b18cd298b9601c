"""What `ecgchat report` does: one report or many, as PDF, HTML or Markdown.

The command line (`ecgchat_lib.cli`) gives the options, reads the recordings and tells the errors; here is the rest.
What a program reads goes to standard output, everything else to standard error. Taught in: 13 §7
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ecgchat_lib.errors import EcgChatError, ParameterError, printable
from ecgchat_lib.report.batch import SUMMARY, Job, Outcome, Settings, match_patients, plan, run
from ecgchat_lib.report.patient import read_patients
from ecgchat_lib.report.write import KINDS, Kind, require_engines

if TYPE_CHECKING:
    from ecgchat_lib.ecg.recording import Recording
    from ecgchat_lib.report.sections import PatientDetails
    from ecgchat_lib.report.write import Session


@dataclass(frozen=True)
class Call:
    """How the command was called.

    Attributes:
        records: recordings, or folders of them.
        outputs: kind → file, or folder if there are several recordings.
        patient: a file with details of the patient, or of several.
        resume: whether reports that are complete are left alone.
        ask: whether the chat model and the classifier are asked.
        as_json: print one JSON object per report and line.
    """

    records: tuple[Path, ...]
    outputs: Mapping[Kind, Path]
    patient: Path | None = None
    resume: bool = True
    ask: bool = True
    as_json: bool = False


def run_report(
    call: Call,
    read: Callable[[Path], Recording],
    tell: Callable[[EcgChatError], None],
    progress: Callable[[Sequence[Job], str], Iterable[Job]],
) -> int:
    """Do what the command was called for; return the exit code.

    Args:
        call: the options.
        read: reads a recording.
        tell: prints an error.
        progress: shows how far it is.

    Raises:
        EcgChatError: the call can't be used: its outputs, its patient file, its folders, no LaTeX for a PDF.
    """
    jobs, main = plan(call.records, call.outputs, [] if call.patient is None else [call.patient])
    patients = {} if call.patient is None else _patients(call.patient, jobs)
    if "pdf" in call.outputs:
        require_engines()  # before a model takes its time

    @cache
    def session() -> Session | None:
        from ecgchat_lib.chat.session import load_chat

        return load_chat() if call.ask else None

    settings = Settings(patients, "the course's mini" if call.ask else "", call.resume)
    worst = written = skipped = failed = 0
    for outcome in run(progress(jobs, "report"), main, settings, read, session):
        if outcome.error is not None:
            tell(outcome.error)
            worst, failed = max(worst, outcome.error.exit_code), failed + 1
            continue
        written, skipped = written + (not outcome.skipped), skipped + outcome.skipped
        _print(outcome, call.as_json)
    if main is not None:
        ends = "md" if set(call.outputs) == {"md"} else "html"
        told = f"{written} written, {skipped} unchanged, {failed} failed; see {main / SUMMARY}.{ends} and .csv"
        typer.echo(f"ecgchat: {printable(told)}", err=True)
    return worst


def _patients(path: Path, jobs: Sequence[Job]) -> dict[str, PatientDetails]:
    """Return what a file tells of the recordings' patients, by the jobs' keys."""
    found = read_patients(path)
    try:
        return match_patients(found, jobs)
    except ParameterError as error:
        raise ParameterError(f"{path}: {error}") from None


def _print(outcome: Outcome, as_json: bool) -> None:
    targets = outcome.job.targets
    if not as_json:
        for kind in KINDS:
            if kind in targets:
                typer.echo(printable(str(targets[kind])))
        return
    row: dict[str, Any] = {"record": outcome.row["record"]}
    row |= {str(kind): str(targets[kind]) for kind in KINDS if kind in targets}
    row |= {
        "usable": outcome.row["usable"] == "yes",
        "rate": float(outcome.row["rate"]) if outcome.row["rate"] else None,
        "rhythm": outcome.row["rhythm"] or None,
        "flags": outcome.row["flags"].split("; ") if outcome.row["flags"] else [],
        "contradictions": int(outcome.row["contradictions"]),
        "abstained": int(outcome.row["abstained"]),
        "unchanged": outcome.skipped,
    }
    typer.echo(json.dumps(row))  # ASCII: a path may hold what isn't UTF-8
