"""A conversation in a terminal: answers word by word, what contradicts them, commands, and a private history.

`ecgchat chat RECORD` calls `talk` where both ends are a terminal; otherwise `chat.cli` reads plain lines. Nothing that
a model, a file or a name says can steer the terminal, and what a user can mend is one line, after which the
conversation goes on. Ctrl-C stops the answer that is being made, Ctrl-D ends. Taught in: 13 §1.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from prompt_toolkit import PromptSession, print_formatted_text
from prompt_toolkit.application import create_app_session, get_app_session
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.styles import Attrs, Style
from prompt_toolkit.utils import get_cwidth

from ecgchat_lib.chat.cli import clean
from ecgchat_lib.chat.grounding import GROUNDING, Evidence, grounding
from ecgchat_lib.errors import EcgChatError, printable
from ecgchat_lib.knowledge.limits import Flag, cautions, flag_all
from ecgchat_lib.paths import cache_folder

if TYPE_CHECKING:
    from prompt_toolkit.input import Input
    from prompt_toolkit.output import Output

    from ecgchat_lib.chat.session import Answer, ChatSession
    from ecgchat_lib.ecg.recording import Recording

COMMANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "/help": ("", "this list"),
        "/measure": ("", "what was measured, beside its normal limits"),
        "/report": ("[FILE]", "a report as .pdf, .html or .md; RECORD.pdf if no file is given"),
        "/compare": ("RECORD2", "add a later recording to the conversation"),
        "/record": ("RECORD", "another recording, and a new conversation"),
        "/with": ("[GROUNDING]", f"see or change what the model is given: {', '.join(GROUNDING)}; all, none, default"),
        "/evidence": ("", "all that the last answer rests on, or was checked by"),
        "/history": ("", "the turns of this conversation"),
        "/reset": ("", "forget the conversation; the recordings stay"),
        "/quit": ("", "end (also Ctrl-D)"),
    }
)
"""Command → (its argument, what it does)."""

KINDS: Mapping[str, str] = MappingProxyType({".pdf": "pdf", ".html": "html", ".htm": "html", ".md": "md"})
REASONS: Mapping[str, str] = MappingProxyType(
    {
        "unusable": "the recording can't be used",
        "reversed": "leads look interchanged",
        "few_leads": "there are too few leads",
        "outside": "the question isn't about ECGs",
        "instruction": "the message tries to change the rules",
        "unknown_finding": "the model was never taught this finding",
    }
)
"""Why the model wasn't asked, see `session.Answer.reason`."""

NO_HISTORY = "ECGCHAT_NO_HISTORY"  # environment variable: if it isn't empty, nothing typed is kept
HISTORY_FILE = "chat-history.jsonl"  # in the cache folder
MOST_KEPT, LONGEST_KEPT = 500, 2_000  # lines of the history, characters of one; longer ones aren't kept
LONGEST_QUESTION = 10_000  # characters
WIDEST = 100  # columns of text; longer lines are hard to read
QUESTION = "Ask about the recording; /help lists the commands, /quit ends. For learning, not for care."

_STYLE = Style.from_dict(
    {
        "strong": "bold",
        "prompt": "bold",
        "error": "bold ansired",
        "contradicted": "bold ansired",
        "flagged": "bold ansired",
        "quiet": "dim" if "dim" in Attrs._fields else "",  # not a gray: in some color schemes that is the background's
    }
)

Read = Callable[[Path], "Recording"]
WriteReport = Callable[["Recording", Path, str, frozenset[str]], object]


def talk(
    session: ChatSession,
    recordings: Sequence[Recording],
    *,
    read: Read,
    write_report: WriteReport | None = None,
    keep_history: bool = True,
    source: Input | None = None,
    out: Output | None = None,
) -> None:
    """Hold a conversation about recordings until the user ends it.

    Args:
        session: the model; what was said before is forgotten.
        recordings: one, or several, the earliest first.
        read: reads a further recording; raises `RecordError` if it can't.
        write_report: writes the report on a recording into a file, as "pdf", "html" or "md", with what the model is
            given now; it mustn't ask this `session`, whose conversation would be lost. None: no reports are written.
        keep_history: keep what is typed for the next time, in `HISTORY_FILE`, which only the user can read. A line that
            begins with a space isn't kept, nor is any where the environment variable `NO_HISTORY` is set.
        source: the keyboard, if it isn't standard input.
        out: the screen, if it isn't standard output.
    """
    session.reset()
    with create_app_session(input=source, output=out):
        _Talk(session, list(recordings), read, write_report, keep_history).run()


@dataclass
class _Talk:
    """One conversation in a terminal.

    Attributes:
        recordings: what it is about.
        last: the last answer that was made to its end.
        told: notes that were shown already.
    """

    session: ChatSession
    recordings: list[Recording]
    read: Read
    write_report: WriteReport | None
    keep_history: bool
    last: Answer | None = None
    told: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Ask for lines and do what they say, until the end."""
        keyboard = _keyboard(_history() if self.keep_history else InMemoryHistory())
        for recording in self.recordings:
            self._introduce(recording)
        self._say(QUESTION, "quiet")
        while True:
            self._write("\n")
            try:
                line = keyboard.prompt(FormattedText([("class:prompt", self._names())]))
            except KeyboardInterrupt:
                self._say("/quit or Ctrl-D ends the conversation.", "quiet")
                continue
            except EOFError:
                return
            text = clean(" ".join(line.split()))
            if text.lower() in ("/quit", "/exit", "quit", "exit"):
                return
            try:
                if self._obey(text):
                    return
            except KeyboardInterrupt:
                self._say("Stopped.", "quiet")
            except (EcgChatError, OSError) as error:
                self._complain(str(error))

    def _obey(self, text: str) -> bool:
        """Do what a line says; return whether it ends the conversation."""
        if not text:
            return False
        if not text.startswith("/"):
            self._ask(text)
            return False
        word, _, argument = text.partition(" ")
        known = [word] if word in COMMANDS else [name for name in COMMANDS if name.startswith(word.lower())]
        if len(known) != 1:
            near = known or difflib.get_close_matches(word.lower(), COMMANDS, n=1)
            hint = f"Did you mean {' or '.join(near)}? " if near and word != "/" else ""
            raise EcgChatError(f"{_short(word)}: no such command. {hint}/help lists them")
        if known[0] == "/quit":
            return True
        getattr(self, f"_{known[0][1:]}")(_unquoted(argument))
        return False

    # --- questions

    def _ask(self, question: str) -> None:
        if len(question) > LONGEST_QUESTION:
            raise EcgChatError(f"the question has {len(question)} characters, expected at most {LONGEST_QUESTION}")
        answer = self._streamed(question)
        if answer is None:
            self._say("[stopped]", "quiet")
            return
        self.last = answer
        if not answer.text.strip():
            self._say("[the model said nothing]", "quiet")
        if answer.abstained:
            self._say(f"Not answered: {REASONS.get(answer.reason, answer.reason or 'no reason given')}.", "strong")
        for item in answer.contradictions:
            self._say(f"contradicted: {item}", "contradicted", indent="  ")
        for note in answer.notes:
            if note not in self.told:
                self._say(f"note: {note}", "quiet", indent="  ")
                self.told.add(note)
        if answer.evidence:
            self._say(f"{_in_short(answer.evidence)} (/evidence shows all)", "quiet", indent="  ")

    def _streamed(self, question: str) -> Answer | None:
        """Show an answer while it is made; return it, or None if it was stopped."""
        flow = _Flow(self._write, self._width())
        pieces = self.session.stream(self.recordings, question)
        try:
            while True:
                flow.add(clean(next(pieces)))
        except StopIteration as done:
            answer: Answer = done.value
            return answer
        except KeyboardInterrupt:
            return None
        finally:
            pieces.close()  # what was said until now stays in the conversation
            flow.end()

    # --- commands

    def _help(self, _: str) -> None:
        wide = max(len(name) + len(argument) for name, (argument, _) in COMMANDS.items()) + 3
        for name, (argument, what) in COMMANDS.items():
            self._row(f"  {f'{name} {argument}':<{wide}}", what)
        self._say("Anything else is a question. Ctrl-C stops an answer, Tab completes.", "quiet", indent="  ")

    def _measure(self, _: str) -> None:
        from ecgchat_lib.ecg.measure import measure

        before: dict[str, float] = {}
        sources: list[str] = []
        for recording in self.recordings:
            patient = recording.patient
            age = "age unknown" if patient.age is None else f"{patient.age:g} years"
            self._say(f"{recording.name} ({patient.sex or 'sex unknown'}, {age})", "strong")
            if why := _unfit(recording):
                self._say(f"not measured: {why}", "flagged", indent="  ")
                continue
            measured = measure(recording)
            flags = flag_all(measured, sex=patient.sex, age=patient.age)
            self._table(flags, before)
            for sentence in cautions(measured):
                self._say(sentence, indent="  ")
            before = {item.field: float(item.shown) for item in flags if math.isfinite(item.value)}
            sources += [str(item.source) for item in flags if item.source is not None]
        for cite in dict.fromkeys(sources):
            self._say(f"limits from {cite}", "quiet", indent="  ")

    def _table(self, flags: Sequence[Flag], before: Mapping[str, float]) -> None:
        """Print measurements, the change since an earlier recording, the normal limits of adults, and a verdict."""
        rows = [(item.name, _value(item, before.get(item.field)), item.normal, item) for item in flags]
        wide = [max(map(len, column)) for column in zip(*(row[:3] for row in rows), strict=True)]
        for name, value, normal, item in rows:
            cells = f"  {name:<{wide[0]}}  {value:<{wide[1]}}  {normal:<{wide[2]}}  "
            why = item.sentence.removesuffix(".").partition(": ")[2]
            off = item.status in ("low", "high")
            said = "normal" if item.status == "normal" else f"{item.status.upper()}: {why}" if off else why
            self._row(cells, said, "flagged" if off else "quiet" if item.status == "unknown" else "")

    def _report(self, argument: str) -> None:
        if self.write_report is None:
            raise EcgChatError("/report: no reports are written here. Use 'ecgchat report RECORD --pdf FILE'")
        recording = self.recordings[-1]
        path = _path(argument or f"{_file_stem(recording.name)}.pdf")
        kind = KINDS.get(path.suffix.lower())
        if kind is None:
            raise EcgChatError(f"/report {path}: expected a file that ends in {', '.join(KINDS)}")
        if path.exists() and not self._sure(f"{path} is there already. Replace it? [y/N] "):
            self._say(f"{path} is left as it is.")
            return
        self._say(f"Writing the report on {recording.name} ...", "quiet")
        self.write_report(recording, path, kind, self.session.with_)
        self._say(f"Report on {recording.name}: {path}")

    def _compare(self, argument: str) -> None:
        self._add(self._opened("/compare", argument), [*self.recordings])

    def _record(self, argument: str) -> None:
        self._add(self._opened("/record", argument), [])
        self._forget()

    def _opened(self, command: str, argument: str) -> Recording:
        if not argument:
            raise EcgChatError(f"{command}: no recording, expected {command} {COMMANDS[command][0]}")
        return self.read(_path(argument))

    def _add(self, recording: Recording, others: Sequence[Recording]) -> None:
        """Talk about a recording after others; one that can't be used would silence the others."""
        if others and (why := _unfit(recording)):
            raise EcgChatError(f"{recording.name}: not added, because {why}. Record it again, or /record it alone")
        self.recordings = [*others, recording]
        self._introduce(recording)

    def _with(self, argument: str) -> None:
        if argument:
            given = grounding(",".join(argument.replace(",", " ").split()))
            if "neighbours" in given and self.session.neighbours is None:
                from ecgchat_lib.chat.neighbours import load_neighbours

                self.session.neighbours = load_neighbours()
            self.session.with_ = given
            self._forget()
            self._say("The conversation begins anew.", "quiet")
        names = [name for name in GROUNDING if name in self.session.with_]
        self._say(f"The model is given: {', '.join(names) or 'the question only'}.")

    def _evidence(self, _: str) -> None:
        if self.last is None:
            raise EcgChatError("/evidence: nothing was answered yet. Ask a question first")
        for given, title in ((True, "Given to the model"), (False, "Not given to it, but compared or cited")):
            lines = [item for item in self.last.evidence if item.given is given]
            if lines:
                self._say(title, "strong")
            for item in lines:
                self._row(f"  {item.kind}: ", evidence_line(item))
        if not self.last.evidence:
            self._say("The answer rests on nothing but the question.")

    def _history(self, _: str) -> None:
        for number, (question, answer) in enumerate(self.session.turns, start=1):
            self._row(f"{number}. ", question, "strong")
            self._row("   ", answer)
        if not self.session.turns:
            self._say("Nothing was said yet.")

    def _reset(self, _: str) -> None:
        self._forget()
        self._say("Forgotten. The recordings stay.")

    def _forget(self) -> None:
        self.session.reset()
        self.last = None
        self.told.clear()

    # --- the screen

    def _introduce(self, recording: Recording) -> None:
        self._say(f"{recording.name}: {recording.seconds:.3g} s at {recording.fs:g} Hz", "strong")

    def _names(self) -> str:
        """Return what stands before the cursor: which recordings the conversation is about."""
        return f"{', '.join(_short(item.name, 20) for item in self.recordings)} > "

    def _sure(self, question: str) -> bool:
        """Ask for a yes; Ctrl-C and Ctrl-D are a no."""
        try:
            return bool(PromptSession[str]().prompt(printable(question)).strip().lower() in ("y", "yes"))
        except (KeyboardInterrupt, EOFError):
            return False

    def _complain(self, text: str) -> None:
        self._say(printable(" ".join(text.split())), "error")

    def _say(self, text: str, style: str = "", indent: str = "") -> None:
        self._row(indent, text, style)

    def _row(self, head: str, text: str, style: str = "") -> None:
        """Print a text behind a head; further lines begin below the text, or a little to the right if that is far."""
        width = self._width()
        deep = get_cwidth(head) if get_cwidth(head) <= width - 24 else 4
        self._write(clean(head))
        flow = _Flow(lambda piece: self._write(piece, style), width, get_cwidth(head), " " * deep)
        flow.add(clean(text))
        flow.end()

    def _write(self, text: str, style: str = "") -> None:
        fragments = FormattedText([(f"class:{style}" if style else "", text)])
        depth = ColorDepth.from_env()  # NO_COLOR
        print_formatted_text(fragments, style=_STYLE, output=get_app_session().output, end="", color_depth=depth)

    def _width(self) -> int:
        return max(20, min(get_app_session().output.get_size().columns - 1, WIDEST))


@dataclass
class _Flow:
    """Breaks a text that comes in pieces into lines, between words.

    Attributes:
        write: prints.
        width: columns of a line.
        column: where the cursor is.
        indent: what every line but the first begins with.
    """

    write: Callable[[str], None]
    width: int
    column: int = 0
    indent: str = ""
    _word: str = ""
    _space: bool = False

    def add(self, text: str) -> None:
        """Print what is complete of a text: all but its last word."""
        for part in re.findall(r"\n|[^\S\n]+|\S+", text):
            if part.isspace():
                self._put()
                self._space = True
                if part == "\n":
                    self._break()
            else:
                self._word += part

    def end(self) -> None:
        """Print the last word, and end the line if there is one."""
        self._put()
        if self.column:
            self.write("\n")
            self.column = 0

    def _put(self) -> None:
        wide = get_cwidth(self._word)
        if not wide:
            return
        start = self.column <= len(self.indent)
        if self._space and not start and self.column + 1 + wide > self.width:
            self._break()
        elif self._space and not start:
            self._word, wide = f" {self._word}", wide + 1
        self.write(self._word)
        self.column += wide
        self._word, self._space = "", False

    def _break(self) -> None:
        self.write(f"\n{self.indent}")
        self.column, self._space = len(self.indent), False


def evidence_line(item: Evidence) -> str:
    """Return a line of evidence with its record, source and, of a neighbour, how alike it is; on one line."""
    beside = [item.record, item.source]
    if item.score is not None and item.kind in ("neighbours", "knowledge"):  # labels say their probability themselves
        beside.append(f"{'likeness' if item.kind == 'neighbours' else 'score'} {item.score:.2f}")
    tail = f" ({'; '.join(part for part in beside if part)})" if any(beside) else ""
    return " ".join(f"{item.text}{tail}".split())


def _unfit(recording: Recording) -> str:
    """Return why nothing should be concluded from a recording, or ""."""
    from ecgchat_lib.chat.session import why_not
    from ecgchat_lib.ecg.quality import judge

    quality = judge(recording)
    found = quality.reasons or tuple(item.words for item in quality.findings if item.kind == "reversal")
    return f"{REASONS[reason]} ({'; '.join(found)})" if (reason := why_not(quality)) else ""


def _in_short(evidence: Iterable[Evidence]) -> str:
    """Return how many lines of each kind there are, in words."""
    count = Counter(item.kind for item in evidence)
    return "evidence: " + ", ".join(kind if number == 1 else f"{kind} ({number})" for kind, number in count.items())


def _value(item: Flag, before: float | None) -> str:
    """Return a measured value with its unit and, if there is an earlier one, the change."""
    if not math.isfinite(item.value):
        return item.shown
    shown = f"{item.shown} {item.unit}"
    if before is None:
        return shown
    change = float(item.shown) - before
    if item.field == "axis_deg":
        change = (change + 180) % 360 - 180  # the short way round
    decimals = len(item.shown.partition(".")[2])
    return f"{shown} ({change:+.{decimals}f})"


def _short(text: str, limit: int = 40) -> str:
    plain = printable(text)
    return plain if len(plain) <= limit else f"{plain[: limit - 1]}…"


def _unquoted(argument: str) -> str:
    """Return an argument without the quotation marks around it, as a path dropped on a terminal has them."""
    text = argument.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _path(argument: str) -> Path:
    """Return what a user calls a file, "~" being a home folder."""
    try:
        return Path(argument).expanduser()
    except RuntimeError as error:  # "~nobody"
        raise EcgChatError(f"{argument}: {error}. Give the path in full") from error


def _file_stem(name: str) -> str:
    """Return a record's name as the name of a file in this folder, whatever the name says."""
    return re.sub(r"[^\w.-]+", "_", name)[:80].strip("._-") or "report"


# --- the keyboard


def _keyboard(history: History) -> PromptSession[str]:
    """Return the line editor: several pasted lines become one, Tab completes commands and paths."""
    bindings = KeyBindings()

    @bindings.add(Keys.BracketedPaste)
    def _paste(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text(clean(" ".join(event.data.split())))

    keyboard: PromptSession[str] = PromptSession(
        history=history,
        completer=_Completer(),
        key_bindings=bindings,
        style=_STYLE,
        enable_suspend=True,
        reserve_space_for_menu=6,
        complete_while_typing=Condition(lambda: keyboard.default_buffer.text.startswith("/")),
    )
    return keyboard


class _Completer(Completer):
    """Completes commands, paths behind those that take a file, and the names of what the model can be given."""

    def __init__(self) -> None:
        self.paths = PathCompleter(expanduser=True, file_filter=lambda path: not Path(path).name.startswith("."))

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """Yield what the word before the cursor can become."""
        command, space, rest = document.text_before_cursor.partition(" ")
        if not command.startswith("/"):
            return
        if not space:
            for name, (_, what) in COMMANDS.items():
                if name.startswith(command):
                    yield Completion(name, start_position=-len(command), display_meta=what)
        elif command in ("/compare", "/record", "/report"):
            yield from self.paths.get_completions(Document(rest.lstrip(" '\"")), complete_event)
        elif command == "/with":
            begun = re.split(r"[,\s]+", rest)[-1]
            for name in (*GROUNDING, "all", "none", "default"):
                if name.startswith(begun):
                    yield Completion(name, start_position=-len(begun))


def _history() -> History:
    """Return the history that is kept, or one that isn't, if the user or the system doesn't let it."""
    if not os.environ.get(NO_HISTORY):
        with contextlib.suppress(OSError):
            return PrivateHistory(cache_folder() / HISTORY_FILE)
    return InMemoryHistory()


class PrivateHistory(History):
    """What was typed, in a file that only its owner can read: one JSON text a line, the newest `MOST_KEPT` of them."""

    def __init__(self, path: Path, most: int = MOST_KEPT) -> None:
        super().__init__()
        self.path, self.most = path, most

    def load_history_strings(self) -> Iterable[str]:
        """Return what was typed, the newest first; of a damaged file, what can be read."""
        return reversed(self._kept())

    def store_string(self, string: str) -> None:
        """Keep a line, unless it begins with a space; where the file can't be written, nothing is kept."""
        if string.startswith(" ") or len(string) > LONGEST_KEPT:
            return
        with contextlib.suppress(OSError):
            self._write([*self._kept(), string][-self.most :])

    def _kept(self) -> list[str]:
        try:
            if not self.path.is_file():
                return []
            with self.path.open("rb") as file:
                data = file.read(self.most * 12 * (LONGEST_KEPT + 1))  # JSON writes a character in 12 bytes at most
        except OSError:
            return []
        found: list[Any] = []
        for line in data.splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                found.append(json.loads(line))
        return [item for item in found if isinstance(item, str)][-self.most :]

    def _write(self, lines: Sequence[str]) -> None:
        handle, made = tempfile.mkstemp(prefix=".chat-history-", dir=self.path.parent)  # readable by its owner only
        try:
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.writelines(f"{json.dumps(line)}\n" for line in lines)
            os.replace(made, self.path)
        except BaseException:
            Path(made).unlink(missing_ok=True)
            raise
