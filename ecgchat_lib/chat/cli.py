"""What `ecgchat chat` does: a conversation about one recording or two, or a file of questions about many.

The command line (`ecgchat_lib.cli`) gives the options, reads the recordings and tells the errors; here is the rest.
Answers go to standard output, everything else to standard error; nothing that a model or a file says can steer the
terminal. Taught in: 13 §1.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import typer

from ecgchat_lib.chat.session import Answer, ChatSession, grounding
from ecgchat_lib.errors import EcgChatError, ParameterError, RecordError

if TYPE_CHECKING:
    from ecgchat_lib.ecg.recording import Recording

BATCH = 8  # questions that are answered at the same time
LONGEST_LINE = 1 << 20  # bytes of one line of a file of questions
LONGEST_SKIPPED = 1 << 30  # bytes after which a line is taken for one that never ends, such as /dev/zero's
LONGEST_PATH = 4096  # characters of a recording's path; no system takes more
LONGEST_NAME = 200  # characters of a conversation's name; all of them are remembered
MOST_RECORDS = 16  # recordings of one question; all of them are in memory at the same time

Tell = Callable[[EcgChatError], None]
WriteReport = Callable[["Recording", Path, str, frozenset[str]], object]


class Read(Protocol):
    """Reads a recording; what the file doesn't say comes from the options."""

    def __call__(self, record: Path, fs: float | None, leads: str | None, unit: str | None, /) -> Recording:
        """Read it."""


@dataclass(frozen=True)
class Call:
    """How the command was called.

    Attributes:
        records: what the conversation is about: a recording, or an earlier one and one to compare it with.
        messages: the questions; typed in, if there are none.
        batch: instead of both: a file of questions, or "-" for standard input.
        with_: what the model is given about a recording, see `session.grounding`.
        stream: print answers as they are made.
        as_json: print one JSON object per answer and line.
        model: the chat folder; the course's mini if None.
        neighbours: an index of recordings with reports; the course's own if None.
        fs, leads, unit: for files that don't say them.
    """

    records: tuple[Path, ...]
    messages: tuple[str, ...] = ()
    batch: Path | None = None
    with_: str = "default"
    stream: bool = False
    as_json: bool = False
    model: Path | None = None
    neighbours: Path | None = None
    fs: float | None = None
    leads: str | None = None
    unit: str | None = None


def run(call: Call, read: Read, tell: Tell, write_report: WriteReport | None = None) -> int:
    """Do what the command was called for; return the exit code.

    Args:
        call: the options.
        read: reads a recording.
        tell: tells an error.
        write_report: writes a recording's report into a file, as "pdf", "html" or "md", for a conversation in a
            terminal; None: there are no reports.

    Raises:
        ParameterError: the options don't go together.
        EcgChatError: a recording, a question or the model can't be used. (In a batch, a line that can't be used is
            told of, and the others go on.)
    """
    from ecgchat_lib.chat.session import load_chat

    given = grounding(call.with_)  # before anything is loaded
    if call.stream and call.as_json:
        raise ParameterError("--stream prints an answer while it is made, --json when it is whole. Give one of them")
    if call.batch is None:
        if not call.records:
            raise ParameterError("no recording: give RECORD, or --batch QUESTIONS.jsonl")
        recordings = [read(record, call.fs, call.leads, call.unit) for record in call.records]
        session = load_chat(call.model, with_=given, neighbours=call.neighbours)
        if not (call.messages or call.as_json) and sys.stdin.isatty() and sys.stdout.isatty():
            from ecgchat_lib.chat.terminal import talk

            talk(
                session,
                recordings,
                read=lambda record: read(record, call.fs, call.leads, call.unit),
                write_report=write_report,
            )
        else:
            converse(session, recordings, call.messages or _typed(), call)
        return 0
    if call.records or call.messages or call.stream:
        raise ParameterError("--batch: the file says the records and the questions. Leave out RECORD, -m and --stream")
    worst = 0
    with _opened(call.batch) as file:
        session = load_chat(call.model, with_=given, neighbours=call.neighbours)
        for row in answer_lines(_lines(file), session, read, call):
            if isinstance(error := row.get("error"), EcgChatError):
                tell(error)
                worst = max(worst, error.exit_code)
                row["error"] = str(error)
            if call.as_json:
                typer.echo(json_row(row))
            elif "answer" in row:
                typer.echo(clean(f"{row['record']}: {row['marked']}"))
    return worst


def converse(session: ChatSession, recordings: Sequence[Recording], questions: Iterable[str], call: Call) -> None:
    """Answer questions about recordings one after the other; evidence and notes are told once, to standard error."""
    told: set[str] = set()
    for question in questions:
        reply = _stream(session, recordings, question) if call.stream else session.ask(recordings, question)
        if call.as_json:
            more = {"compare": recordings[1].name} if len(recordings) > 1 else {}
            typer.echo(json_row({"record": recordings[0].name, **more, "question": question, **_said(reply)}))
        elif not call.stream:
            typer.echo(clean(reply.marked))
        else:
            for item in reply.contradictions:
                typer.echo(clean(f"contradicted: {item}"), err=True)
        notes = [f"{recordings[0].name}: {note}" if len(recordings) == 1 else note for note in reply.notes]
        for line in ([] if call.as_json else evidence_lines(reply)) + notes:
            if line not in told:
                typer.echo(clean(line), err=True)
                told.add(line)


def evidence_lines(reply: Answer) -> list[str]:
    """Return what an answer rests on and was checked against, a line each; a recording's quality is told as a note."""
    several = len({item.record for item in reply.evidence if item.record}) > 1
    return [
        f"  {item.record + ': ' if several and item.record else ''}[{item.source or item.kind}] {item.text}"
        for item in reply.evidence
        if item.kind != "quality"
    ]


def _stream(session: ChatSession, recordings: Sequence[Recording], question: str) -> Answer:
    """Print an answer while it is made."""
    pieces = session.stream(recordings, question)
    try:
        while True:
            typer.echo(clean(next(pieces)), nl=False)  # echo flushes
    except StopIteration as done:
        answer: Answer = done.value
        return answer
    finally:
        typer.echo()


def _said(reply: Answer) -> dict[str, Any]:
    """Return an answer's part of a row; the question stands in the row as it was asked."""
    return {name: value for name, value in reply.as_dict().items() if name != "question"}


def _typed() -> Iterator[str]:
    """Yield what is typed, line by line, until an empty line or the end of the input."""
    if sys.stdin.isatty():
        typer.echo("Ask about the recording; an empty line ends. For learning, not for care.", err=True)
    while True:
        try:
            question = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise EcgChatError("standard input isn't UTF-8, expected questions in it") from error
        if not question:
            return
        yield question


@dataclass(frozen=True)
class _Item:
    """A question of a batch."""

    given: Mapping[str, Any]  # "record" and "question", as the line says them
    records: tuple[str, ...]
    question: str
    options: tuple[float | None, str | None, str | None]  # fs, leads, unit
    conversation: str | None


def answer_lines(
    lines: Iterable[tuple[int, bytes]], session: ChatSession, read: Read, call: Call
) -> Iterator[dict[str, Any]]:
    """Answer a file of questions; yield one row for each line, in order.

    A line is a JSON object with "record" (a path, or a list of paths to compare) and "question"; "fs", "leads" and
    "unit" where the file doesn't say them, else the call's; and "conversation", a name. Lines in a row with the same
    "conversation" are its turns; all other questions have nothing to do with each other, and several of them are
    answered at the same time. In memory are `BATCH` questions with their recordings and one conversation at most.

    Args:
        lines: (number from 1, text) of the lines.
        session: the model.
        read: reads a recording.
        call: its options stand in where a line has none.

    Yields:
        "record", "question" and either what `Answer.as_dict` holds, or "error": the `EcgChatError`.
    """
    waiting: list[_Item | dict[str, Any]] = []
    ended: set[str] = set()
    current, talk = None, session
    for number, line in lines:
        try:
            item: _Item | dict[str, Any] = _parse(number, line, call)
        except EcgChatError as error:
            item = {**_given(line), "error": error}
        if isinstance(item, _Item) and item.conversation != current:
            yield from _answered(waiting, session, read)
            waiting = []
            ended |= {current} if current is not None else set()
            current = item.conversation
            talk = replace(session, turns=[], _heard=[], _conversation=None)
        if isinstance(item, _Item) and item.conversation is not None:
            yield _next_turn(item, talk, read, ended, number)
            continue
        waiting.append(item)  # a line that can't be used waits too, for its place in the order
        if len(waiting) == BATCH or current is not None:
            yield from _answered(waiting, session, read)
            waiting = []
    yield from _answered(waiting, session, read)


def _next_turn(item: _Item, talk: ChatSession, read: Read, ended: set[str], number: int) -> dict[str, Any]:
    """Return the row of a question that continues a conversation."""
    try:
        if item.conversation in ended:
            raise EcgChatError(
                f"line {number}: conversation {item.conversation!r} was ended by another line. "
                "Put the lines of a conversation one after the other"
            )
        recordings = [read(Path(record), *item.options) for record in item.records]
        return {**item.given, **_said(talk.ask(recordings, item.question))}
    except EcgChatError as error:
        return {**item.given, "error": error}


def _answered(waiting: Sequence[_Item | dict[str, Any]], session: ChatSession, read: Read) -> Iterator[dict[str, Any]]:
    """Answer independent questions at the same time; yield their rows, and those that are errors already."""
    known: dict[Any, Recording | EcgChatError] = {}
    asked, rows = [], list[dict[str, Any]]()
    for item in waiting:
        if not isinstance(item, _Item):
            rows.append(item)
            continue
        found = [_read_once(record, item.options, read, known) for record in item.records]
        error = next((one for one in found if isinstance(one, EcgChatError)), None)
        if error is not None:
            rows.append({**item.given, "error": error})
            continue
        rows.append(dict(item.given))
        asked.append((rows[-1], [one for one in found if not isinstance(one, EcgChatError)], item.question))
    replies = session.ask_many([(recordings, question) for _, recordings, question in asked])
    for (row, *_), reply in zip(asked, replies, strict=True):
        row |= {"error": reply} if isinstance(reply, EcgChatError) else _said(reply)
    yield from rows


def _read_once(record: str, options: Any, read: Read, known: dict[Any, Recording | EcgChatError]) -> Any:
    key = (record, *options)
    if key not in known:
        try:
            known[key] = read(Path(record), *options)
        except EcgChatError as error:
            known[key] = error
    return known[key]


def _parse(number: int, line: bytes, call: Call) -> _Item:
    """Return the question that a line asks.

    Raises:
        EcgChatError: with the line's number, what is wrong and what was expected.
    """
    values, wrong = _decoded(line)
    if wrong:
        raise EcgChatError(f"line {number}: {wrong}, expected a JSON object with record and question")
    records = values.get("record")
    records = [records] if isinstance(records, str) else records
    if not isinstance(records, list) or not records or not all(isinstance(r, str) and r.strip("\0 ") for r in records):
        raise EcgChatError(
            f"line {number}: record is {_short(values.get('record'))}, expected a path, or a list of them"
        )
    if len(records) > MOST_RECORDS:
        raise EcgChatError(f"line {number}: {len(records)} recordings, expected at most {MOST_RECORDS}")
    for record in records:
        _check_path(number, record)
    question = values.get("question")
    if not isinstance(question, str) or not question.strip():
        raise EcgChatError(f"line {number}: question is {_short(question)}, expected a sentence")
    fs, leads, unit = (values.get(key, getattr(call, key)) for key in ("fs", "leads", "unit"))
    leads = ",".join(map(str, leads)) if isinstance(leads, list) else leads
    if isinstance(fs, bool) or not isinstance(fs, int | float | None) or not abs(fs or 0) < 1e9:
        raise EcgChatError(f"line {number}: fs is {_short(fs)}, expected samples per second")
    for key, value in (("leads", leads), ("unit", unit)):
        if not isinstance(value, str | None):
            raise EcgChatError(f"line {number}: {key} is {_short(value)}, expected text")
    talk = values.get("conversation")
    if isinstance(talk, bool) or not isinstance(talk, str | int | None):
        raise EcgChatError(f"line {number}: conversation is {_short(talk)}, expected a name")
    if len(str(talk)) > LONGEST_NAME:
        raise EcgChatError(f"line {number}: conversation is {_short(talk)}, expected at most {LONGEST_NAME} characters")
    given = {"record": values["record"], "question": question}
    return _Item(given, tuple(records), question, (fs, leads, unit), None if talk is None else str(talk))


def _check_path(number: int, record: str) -> None:
    """Raise if no file can have this path: the system's calls would with errors of another kind."""
    if len(record) > LONGEST_PATH:
        raise EcgChatError(f"line {number}: record is {_short(record)}, expected at most {LONGEST_PATH} characters")
    if "\0" in record:
        raise EcgChatError(f"line {number}: record holds a zero byte, expected a path")
    try:
        os.fsencode(record)
    except UnicodeEncodeError:
        raise EcgChatError(f"line {number}: record is {_short(record)}, expected a path in Unicode") from None


def _decoded(line: bytes) -> tuple[dict[str, Any], str]:
    """Return what a line says, or what is wrong with it."""
    if len(line) > LONGEST_LINE:
        return {}, f"longer than {LONGEST_LINE} bytes"
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        return {}, f"not JSON in UTF-8 ({type(error).__name__})"
    return (values, "") if isinstance(values, dict) else ({}, f"{_short(values)}")


def _given(line: bytes) -> dict[str, Any]:
    """Return what a line that can't be used says of record and question, as far as that is text."""
    values, _ = _decoded(line)
    return {key: value if isinstance(value := values.get(key), str) else None for key in ("record", "question")}


def _short(value: Any) -> str:
    text = "missing" if value is None else json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _opened(path: Path) -> Any:
    """Open a file of questions, or standard input for "-"."""
    if str(path) == "-":
        return contextlib.nullcontext(sys.stdin.buffer)
    try:
        return path.open("rb")
    except OSError as error:
        raise RecordError(path, f"can't be opened ({error.strerror})", "Give a JSONL file of questions") from error


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that aren't empty, with their numbers; of a line that is too long, only its beginning.

    Raises:
        EcgChatError: a line doesn't end, or the file can't be read on.
    """
    try:
        yield from _cut_lines(file)
    except OSError as error:
        raise EcgChatError(f"--batch: the file of questions can't be read ({error.strerror})") from error


def _cut_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := file.readline(LONGEST_LINE + 2):
        number += 1
        rest, skipped = line, 0
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST_LINE)
            skipped += len(rest)
            if skipped > LONGEST_SKIPPED:
                raise EcgChatError(f"line {number}: doesn't end, expected JSON lines. Is --batch the right file?")
        if line.strip():
            yield number, line.rstrip(b"\r\n")


def clean(text: str) -> str:
    """Return a text in which no character steers the terminal; line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else " " if c == "\t" else "?" for c in text)


def json_row(row: Mapping[str, Any]) -> str:
    """Return a row as one line of strict JSON, in which characters that steer a terminal are escaped."""
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
