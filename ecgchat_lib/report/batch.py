"""Reports of many recordings: found in folders, resumed where they were left, and told of in one summary.

What is complete is known by a journal of hashes, not by a file's existence: a report is left alone only if the same
recording was written with the same settings and each of its files is still as it was. One recording is in memory at a
time. Taught in: 13 §7
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecgchat_lib import __version__
from ecgchat_lib.datasets.lock import locked
from ecgchat_lib.errors import EcgChatError, ParameterError, RecordError
from ecgchat_lib.report.html import summary_html
from ecgchat_lib.report.markdown import summary_markdown
from ecgchat_lib.report.sections import NOTICE, PatientDetails, Report
from ecgchat_lib.report.write import KINDS, Kind, make_report, picture_beside, write_report

if TYPE_CHECKING:
    from ecgchat_lib.ecg.recording import Recording
    from ecgchat_lib.report.patient import Patients
    from ecgchat_lib.report.write import Session

JOURNAL = ".ecgchat-report.jsonl"
LOCK = ".ecgchat-report.lock"
SUMMARY = "summary"  # .csv, and .html or .md
COLUMNS: Mapping[str, str] = {
    "record": "Recording",
    "usable": "Usable",
    "rate": "Rate (bpm)",
    "rhythm": "Rhythm",
    "flags": "Outside the limits",
    "contradictions": "Contradictions",
    "abstained": "Unanswered",
    "file": "Report",
    "error": "Error",
}
ENDINGS = (".hea", ".dat", ".mat", ".csv", ".tsv", ".npy", ".h5", ".hdf5", ".edf", ".bdf", ".dcm", ".dicom")
_LONGEST_LINE = 1 << 20  # bytes of a journal's line
_FOLDERS_FIRST: tuple[Kind, ...] = ("html", "pdf", "md")  # where summary and journal stand


@dataclass(frozen=True)
class Job:
    """One recording of a batch.

    Attributes:
        key: its name there; no other has it.
        path: where it is.
        targets: the file to write for each kind.
        name: its name before a number was added, because another has the same; "" if that is the key.
    """

    key: str
    path: Path
    targets: Mapping[Kind, Path]
    name: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        job: which.
        row: its line of the summary.
        skipped: whether it was complete already.
        error: what kept it from being written, or None.
    """

    job: Job
    row: dict[str, str]
    skipped: bool = False
    error: EcgChatError | None = None


@dataclass(frozen=True)
class Settings:
    """What a report depends on beside its recording.

    Attributes:
        patients: what is known of the patients, by the jobs' keys, see `match_patients`.
        model: which chat model is asked, in words that change with it; "" if none. The library and its own weights
            count anyway.
        resume: whether complete reports are left alone.
    """

    patients: Mapping[str, PatientDetails] = field(default_factory=dict)
    model: str = ""
    resume: bool = True


# ------------------------------------------------------------------------------------------- what there is to do


def find_recordings(folder: Path) -> list[Path]:
    """Return the recordings in a folder and the folders below it, sorted: WFDB headers, csv, npy, h5, EDF, DICOM.

    Hidden files and folders, tables without a lead's name, and the segments of a longer WFDB record are left out.

    Raises:
        RecordError: the folder can't be read, or holds no recording.
    """

    def refuse(error: OSError) -> None:
        raise RecordError(folder, f"can't be read ({error.strerror})", "Check its permissions") from None

    found = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = [Path(place, name) for name in sorted(names) if not name.startswith(".")]
        segments = {name for path in here if path.suffix.lower() == ".hea" for name in _segments(path)}
        found += [path for path in here if path.stem not in segments and _is_recording(path)]
    if not found:
        raise RecordError(
            folder, "holds no recording", "Expected WFDB headers (.hea), csv, npy, h5, EDF or DICOM files"
        )
    return found


def _is_recording(path: Path) -> bool:
    from ecgchat_lib.ecg.formats import file_kind

    if not path.is_file():
        return False
    kind = file_kind(path)
    if kind == "WFDB":
        return path.suffix.lower() == ".hea"
    return kind != "csv" or _names_leads(path)


def _names_leads(path: Path) -> bool:
    """Whether a table's first row names at least two leads; a list of records or a summary doesn't."""
    import re

    from ecgchat_lib.ecg.leads import canonical_lead

    try:
        with path.open("rb") as stream:
            head = stream.readline(65_536).decode("utf-8-sig", errors="replace")
    except OSError:
        return True  # told of when it is read
    names = (re.sub(r"[\s_]*[(\[].*$", "", name.strip().strip('"')) for name in re.split(r"[,;\t]", head))
    return sum(canonical_lead(name) is not None for name in names) >= 2


def _segments(header: Path) -> list[str]:
    """Return the names of a WFDB record's segments; none for an ordinary record."""
    try:
        with header.open("rb") as stream:
            lines = [line.split() for line in stream.read(65_536).decode("ascii", "replace").splitlines()]
    except OSError:
        return []
    rows = [row for row in lines if row and not row[0].startswith("#")]
    if not rows or "/" not in rows[0][0]:
        return []
    return [row[0] for row in rows[1:]]


def plan(
    records: Sequence[Path], outputs: Mapping[Kind, Path], besides: Sequence[Path] = ()
) -> tuple[list[Job], Path | None]:
    """Return what is to be done, and the folder of the summary, or None for a single report.

    Args:
        records: recordings, or folders of them.
        outputs: kind → file, or folder if there are several recordings.
        besides: what else is read, and must not be replaced.

    Raises:
        ParameterError: no output; a file where a folder is needed; an output that would replace a recording.
        RecordError: a folder without recordings.
    """
    if not outputs:
        raise ParameterError(f"no output: give one or more of {', '.join(f'--{kind}' for kind in KINDS)}")
    single = len(records) == 1 and not records[0].is_dir()
    if single:
        path = records[0]
        targets = {kind: out / f"{_name(path)}.{kind}" if out.is_dir() else out for kind, out in outputs.items()}
        if len({target.absolute() for target in targets.values()}) < len(targets):
            raise ParameterError("two outputs in the same file. Give each its own")
        jobs = [Job(_name(path), path, targets)]
        _keep_inputs(jobs, (), besides)
        return jobs, None
    for kind, out in outputs.items():
        if out.exists() and not out.is_dir():
            raise ParameterError(f"--{kind} {out}: a file, expected a folder, because there are several recordings")
    jobs = []
    taken = {SUMMARY.casefold()}
    for path, key in _named(records):
        unique, count = key, 1
        while unique.casefold() in taken:  # two recordings of the same name, or one that is called "summary"
            count += 1
            unique = f"{key}-{count}"
        taken.add(unique.casefold())
        jobs.append(Job(unique, path, {kind: out / f"{unique}.{kind}" for kind, out in outputs.items()}, key))
    main = next(outputs[kind] for kind in _FOLDERS_FIRST if kind in outputs)
    summary = [main / name for name in (f"{SUMMARY}.csv", f"{SUMMARY}.html", f"{SUMMARY}.md", JOURNAL, LOCK)]
    _keep_inputs(jobs, summary, besides)
    return jobs, main


def _keep_inputs(jobs: Sequence[Job], summary: Sequence[Path], besides: Sequence[Path]) -> None:
    """Refuse to write where something is read from, and a report under a name that only recordings have.

    Raises:
        ParameterError: the file that would be replaced.
    """

    def same(path: Path) -> tuple[int, int] | None:
        try:
            return (found := path.stat()).st_dev, found.st_ino
        except (OSError, ValueError):
            return None

    inputs = {same(path) for path in (*(job.path for job in jobs), *besides)} - {None}
    targets = [target for job in jobs for target in _files(job).values()]
    for target in (*targets, *summary):
        if same(target) in inputs:
            raise ParameterError(f"{target}: read from, and would be replaced. Choose another place")
    for target in targets:
        if target.suffix.lower() in ENDINGS:
            raise ParameterError(f"{target}: a name that recordings have. Choose one that ends in {' or '.join(KINDS)}")


def match_patients(patients: Patients, jobs: Sequence[Job]) -> dict[str, PatientDetails]:
    """Return whose details belong to which recording: the only place where names in a file become recordings.

    A recording goes by its key, or by the name of its file, with or without ending, if no other has that.

    Args:
        patients: what a file holds.
        jobs: from `plan`.

    Returns:
        Job's key → details.

    Raises:
        ParameterError: one person's details for several recordings; a name that is none's, or more than one's.
    """
    if patients.by_record is None:
        if patients.one is not None and len(jobs) > 1:
            raise ParameterError(
                f"one person's details for {len(jobs)} recordings. Write them below each recording's name"
            )
        return {job.key: patients.one for job in jobs if patients.one is not None}
    found: dict[str, PatientDetails] = {}
    for name, details in patients.by_record.items():
        meant = [job for job in jobs if name in (job.key, job.name or job.key)]
        meant = meant or [job for job in jobs if name in (_name(job.path), job.path.stem, job.path.name)]
        shown = repr(name[:80])
        if not meant:
            raise ParameterError(f"{shown} is none of the recordings. Check its spelling")
        if len(meant) > 1:
            keys = ", ".join(job.key for job in meant[:5]) + (", …" if len(meant) > 5 else "")
            raise ParameterError(f"{shown} can be any of {keys}. Write one of these, or rename the recordings")
        if meant[0].key in found:
            raise ParameterError(f"{shown}: details of {meant[0].key} stand there twice. Keep one of them")
        found[meant[0].key] = details
    return found


def _named(records: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Yield each recording with its name in the batch: the path inside its folder without ending, or its own name."""
    for record in records:
        if record.is_dir():
            for path in find_recordings(record):
                yield path, path.relative_to(record).with_name(_name(path)).as_posix()
        else:
            yield record, _name(record)


def _name(path: Path) -> str:
    """Return a recording's name as its reader gives it: the file's without a known ending."""
    return path.stem if path.suffix.lower() in ENDINGS else path.name


# ------------------------------------------------------------------------------------------- what was done before


class Journal:
    """What is complete, one JSON line for each report, on the disk before the next one begins.

    Its lines are hints, not orders: no path in it is followed, and a line that can't be understood counts for nothing.

    Args:
        path: the file; made when something is added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, dict[str, Any]] = {}
        try:
            with path.open("rb") as file:
                while line := file.readline(_LONGEST_LINE):
                    self._keep(line)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise EcgChatError(f"{path}: can't be read ({error.strerror}). Move it away, or use --no-resume") from None

    def _keep(self, line: bytes) -> None:
        if not line.endswith(b"\n"):
            return
        try:
            row = json.loads(line)
            key, files, told = row["record"], row["files"], row["row"]
            texts = [key, row["input"], row["settings"], *files, *files.values(), *told.values()]
            numbers = [int(told["contradictions"]), int(told["abstained"]), float(told["rate"] or 0)]
            whole = all(isinstance(text, str) for text in texts) and set(told) == set(COLUMNS)
            if whole and all(map(isfinite, numbers)):
                self._rows[key] = row
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return

    def complete(self, job: Job, signal: str, settings: str) -> dict[str, str] | None:
        """Return the summary's line of a job that is complete, or None."""
        row = self._rows.get(job.key)
        if row is None or (row["input"], row["settings"]) != (signal, settings):
            return None
        files = {name: _digest(path) for name, path in _files(job).items()}
        return dict(row["row"]) if files == row["files"] and all(files.values()) else None  # "": it can't be read

    def add(self, outcome: Outcome, signal: str, settings: str) -> None:
        """Keep what was just written.

        Raises:
            EcgChatError: the journal can't be written.
        """
        files = {name: _digest(path) for name, path in _files(outcome.job).items()}
        row = {"record": outcome.job.key, "input": signal, "settings": settings, "files": files, "row": outcome.row}
        line = json.dumps(row, sort_keys=True).encode("ascii") + b"\n"
        try:
            with self.path.open("ab") as file:
                if file.tell() and not self._ends_a_line():
                    line = b"\n" + line  # what a killed run left behind stays a line of its own
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise EcgChatError(f"{self.path}: can't be written ({error.strerror}). Choose another folder") from None

    def _ends_a_line(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


def _files(job: Job) -> dict[str, Path]:
    """Return every file of a job by a short name."""
    files = {str(kind): path for kind, path in job.targets.items()}
    return files | ({"picture": picture_beside(job.targets["md"])} if "md" in job.targets else {})


def _digest(path: Path) -> str:
    """Return a file's sha256, or "" if it can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def recording_digest(recording: Recording) -> str:
    """Return a sha256 of all that a report takes from a recording."""
    told = (recording.name, recording.fs, asdict(recording.patient), recording.comments, recording.notes)
    total = hashlib.sha256(json.dumps(told).encode("ascii"))
    total.update(repr(recording.signal.shape).encode())
    total.update(recording.signal.tobytes())
    return total.hexdigest()


def settings_digest(job: Job, settings: Settings, patient: PatientDetails | None) -> str:
    """Return a sha256 of what else decides a report's bytes: this code, the kinds, the model, the patient."""
    told = (_code_digest(), sorted(job.targets), settings.model, None if patient is None else asdict(patient))
    return hashlib.sha256(json.dumps(told).encode("ascii")).hexdigest()


_DATA = (  # the files that reports are made from, beside the code
    "knowledge/*.yml",
    "knowledge/entries/*.md",
    "chat/*.yml",
    "labels/*.csv",
    "results/ecg-classifier-mini.json",
    "weights/*/manifest.json",  # with the hashes of the larger weights
    "weights/ecg-reversal/weights.json",
    "weights/ecg-segment-mini/model.safetensors",
)


@cache
def _code_digest() -> str:
    """Return a sha256 of the library, its templates, the data that decide what it says, and what identifies weights."""
    from ecgchat_lib.paths import data_folder

    package, data = Path(__file__).parent.parent, data_folder()
    files = [*package.rglob("*.py"), *(package / "report" / "templates").iterdir()]
    for pattern in _DATA:
        files += data.glob(pattern)
    total = hashlib.sha256(__version__.encode())
    for path in sorted(files):
        total.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


# ------------------------------------------------------------------------------------------- doing it


def run(
    jobs: Iterable[Job],
    main: Path | None,
    settings: Settings,
    read: Callable[[Path], Recording],
    session: Callable[[], Session | None],
) -> Iterator[Outcome]:
    """Write the reports one after the other; one that fails is told of, and the others go on.

    Args:
        jobs: from `plan`.
        main: the summary's folder; None for a single report, which has neither summary nor journal.
        settings: what the reports depend on.
        read: reads a recording.
        session: gives the model to ask, or None; called when it is first needed.

    Yields:
        What became of each job.

    Raises:
        EcgChatError: the folder is in use by another batch, or can't be written.
    """
    if main is None:
        for job in jobs:
            yield _do(job, None, settings, read, session)
        return
    with locked(main, LOCK, "Choose another folder"):
        journal = Journal(main / JOURNAL)
        outcomes = []
        for job in jobs:
            outcomes.append(_do(job, journal, settings, read, session))
            yield outcomes[-1]
        write_summary(outcomes, main)


def _do(
    job: Job,
    journal: Journal | None,
    settings: Settings,
    read: Callable[[Path], Recording],
    session: Callable[[], Session | None],
) -> Outcome:
    try:
        recording = read(job.path)
        patient = settings.patients.get(job.key)
        hashes = (recording_digest(recording), settings_digest(job, settings, patient))
        if journal is not None and settings.resume and (row := journal.complete(job, *hashes)):
            return Outcome(job, row, skipped=True)
        report = make_report(recording, session=session(), patient=patient)
        for kind, target in job.targets.items():
            write_report(recording, target, kind=kind, report=report)
        outcome = Outcome(job, _row(job, report))
        if journal is not None:
            journal.add(outcome, *hashes)
        return outcome
    except EcgChatError as error:
        error.__traceback__ = error.__context__ = error.__cause__ = None  # they hold the recording in memory
        return Outcome(job, dict.fromkeys(COLUMNS, "") | {"record": job.key, "error": str(error)}, error=error)


def _row(job: Job, report: Report) -> dict[str, str]:
    """Return a report's line of the summary."""
    rate = next((item.shown for item in report.flags if item.field == "heart_rate_bpm"), "")
    out = [f"{item.name} {item.status}" for item in report.flags if item.status in ("low", "high")]
    return {
        "record": job.key,
        "usable": "yes" if report.usable else "no",
        "rate": rate if rate != "not measured" else "",
        "rhythm": report.rhythm,
        "flags": "; ".join(out),
        "contradictions": str(report.contradicted),
        "abstained": str(report.abstained),
        "file": "",
        "error": "",
    }


def write_summary(outcomes: Sequence[Outcome], main: Path) -> list[Path]:
    """Write what became of a batch as summary.csv and as summary.html (or summary.md if only Markdown was asked for).

    Args:
        outcomes: in the order of the batch.
        main: the folder.

    Returns:
        The files.
    """
    rows = [_with_files(outcome, main) for outcome in outcomes]
    failed, skipped = sum(one.error is not None for one in outcomes), sum(one.skipped for one in outcomes)
    written = len(outcomes) - failed - skipped
    counts = f"{len(outcomes)} recordings: {written} written, {skipped} unchanged, {failed} failed"
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_harmless(row[column]) for column in COLUMNS] for row in rows)
    only_markdown = all(set(one.job.targets) == {"md"} for one in outcomes)
    layout = summary_markdown if only_markdown else summary_html
    page = layout(rows, COLUMNS, counts, NOTICE)
    files = [main / f"{SUMMARY}.csv", main / f"{SUMMARY}.{'md' if only_markdown else 'html'}"]
    for path, text in zip(files, (table.getvalue(), page), strict=True):
        _replace(path, text.encode("utf-8", "backslashreplace"))
    return files


def _with_files(outcome: Outcome, main: Path) -> dict[str, Any]:
    """Return an outcome's line with its files, as they are seen from the summary."""
    files = [] if outcome.error else [os.path.relpath(path, main) for path in outcome.job.targets.values()]
    files = [Path(file).as_posix() for file in files]
    return {**outcome.row, "file": " ".join(files), "files": files}


def _harmless(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _replace(path: Path, content: bytes) -> None:
    """Write a file in one step."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        raise EcgChatError(f"{path}: can't be written ({error.strerror}). Choose another folder") from None
