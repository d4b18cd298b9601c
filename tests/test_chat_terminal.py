"""The conversation in a terminal: keys and commands with a stand-in for the model, the rest with the shipped mini."""

import io
import json
import os
import re
import select
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.data_structures import Size
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output.vt100 import Vt100_Output

from ecgchat_lib.chat import terminal
from ecgchat_lib.chat.checking import Contradiction
from ecgchat_lib.chat.grounding import Evidence
from ecgchat_lib.chat.session import Answer, load_chat
from ecgchat_lib.chat.terminal import HISTORY_FILE, NO_HISTORY, PrivateHistory, talk
from ecgchat_lib.ecg.formats import read_any
from ecgchat_lib.ecg.measure import Measurements, measure
from ecgchat_lib.ecg.recording import Recording, read_recording
from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.paths import data_folder

SAMPLE = data_folder() / "real_sample"
CONTROL_C, CONTROL_D, UP = "\x03", "\x04", "\x1b[A"
FLAT = Recording("flat", np.zeros((12, 5000), np.float32), 500.0)


@pytest.fixture(autouse=True)
def interruptible():
    """Hear Ctrl-C even where the shell that started the tests in its background told them to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class StandIn:
    """Says each question back, word by word; "stop" sends this process what Ctrl-C sends, "fail" raises an error."""

    def __init__(self):
        self.turns, self.with_, self.neighbours, self.asked, self.resets = [], frozenset({"tokens"}), None, [], 0
        self.more = {}

    def reset(self):
        self.turns.clear()
        self.resets += 1

    def stream(self, recordings, question):
        self.asked.append((tuple(item.name for item in recordings), question))
        told = ""
        try:
            for word in re.findall(r"\S+\s*", question):
                if word.strip() == "fail":
                    raise EcgChatError("too long.\nAsk shorter \x1b[31m")
                if word.strip() == "stop":
                    signal.raise_signal(signal.SIGINT)
                told += word
                yield word
        finally:
            self.turns.append((question, told))
        return Answer(told, question, Measurements(), *self.more.get("parts", ((), (), ())), **self.more.get("why", {}))


class Screen(io.StringIO):
    """What was written on a terminal."""

    @property
    def output(self):
        return Vt100_Output(self, lambda: Size(rows=40, columns=100), term="xterm", enable_cpr=False)

    @property
    def text(self):
        """Without colors, cursor movements and the editor's own lines."""
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.getvalue()).replace("\r\n", "\n")
        return "\n".join(line for line in plain.split("\n") if "\r" not in line)


def hold(keys, *, session=None, recordings=None, read=read_any, **more):
    """Hold a conversation that these keys are typed in; return session and screen. Ctrl-D is pressed last."""
    session, screen = session or StandIn(), Screen()
    with create_pipe_input() as keyboard:
        keyboard.send_text(keys + CONTROL_D)
        talk(
            session,
            recordings or [read_recording(SAMPLE / "A0001")],
            read=read,
            source=keyboard,
            out=screen.output,
            **{"keep_history": False, **more},
        )
    return session, screen


def test_questions_are_asked_and_answers_shown():
    session, screen = hold("What is it?\r\r  \rAnd  now?\r")
    assert [question for _, question in session.asked] == ["What is it?", "And now?"]
    assert "What is it?\n" in screen.text
    assert terminal.QUESTION in screen.text
    assert "A0001: 15 s at 500 Hz" in screen.text


@pytest.mark.parametrize("end", ["/quit\r", "/q\r", "quit\r", "/exit\r", "EXIT\r", CONTROL_D])
def test_the_end(end):
    session, _ = hold(f"One\r{end}Two\r")
    assert [question for _, question in session.asked] == ["One"]


def test_an_answer_that_is_stopped_keeps_what_was_said():
    session, screen = hold("one two stop three\rAnd now?\r/history\r")
    assert session.turns == [("one two stop three", "one two "), ("And now?", "And now?")]
    assert "one two\n[stopped]\n" in screen.text
    assert "1. one two stop three\n   one two\n2. And now?\n   And now?\n" in screen.text


def test_control_c_at_the_prompt_ends_nothing():
    session, screen = hold(f"half{CONTROL_C}whole\r")
    assert [question for _, question in session.asked] == ["whole"]
    assert "/quit or Ctrl-D ends" in screen.text


def test_errors_are_one_line_and_the_conversation_goes_on():
    session, screen = hold("please fail\rAnd now?\r")
    assert "too long. Ask shorter ?[31m\n" in screen.text
    assert len(session.asked) == 2
    _, screen = hold("x" * 20 + "\r", session=session)
    assert "x" * 20 in screen.text


def test_a_question_that_is_too_long_is_not_asked(monkeypatch):
    monkeypatch.setattr(terminal, "LONGEST_QUESTION", 10)
    session, screen = hold("12345678901\r1234567890\r")
    assert [question for _, question in session.asked] == ["1234567890"]
    assert "has 11 characters, expected at most 10" in screen.text


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("/mesure", "/mesure: no such command. Did you mean /measure? /help lists them"),
        ("/re", "/re: no such command. Did you mean /report or /record or /reset? /help lists them"),
        ("/", "/: no such command. /help lists them"),
        ("/zzz", "/zzz: no such command. /help lists them"),
        ("/compare", "/compare: no recording, expected /compare RECORD2"),
        ("/record nothing/there", "nothing/there"),
        ("/compare ~nobody-of-this-name/A", "Give the path in full"),
        ("/compare " + "x" * 300, "x" * 60),
        ("/evidence", "/evidence: nothing was answered yet. Ask a question first"),
        ("/with magic", "grounding magic: expected tokens"),
        ("/report a.doc", "/report a.doc: expected a file that ends in .pdf, .html, .htm, .md"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(typed, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session, screen = hold(f"{typed}\rAnd now?\r", write_report=lambda *_: None)
    assert line in screen.text
    assert "Traceback" not in screen.text
    assert len(session.asked) == 1
    assert not list(tmp_path.iterdir())


def test_nothing_that_is_said_steers_the_terminal():
    hostile = "a\x1b]0;title\x07b\x9bc\u202ed\x1b[2J"
    session = StandIn()
    found = Contradiction(hostile, hostile, hostile, 0, 1)
    session.more = {"parts": ((Evidence(hostile, hostile, hostile),), (found,), (hostile,))}
    session.more["why"] = {"abstained": True, "reason": hostile}
    recording = Recording(hostile, read_recording(SAMPLE / "A0001").signal, 500.0)
    keys = f"\x1b[200~{hostile}\r\nsecond line\x1b[201~\r/evidence\r/history\r/measure\r"
    _, screen = hold(keys, session=session, recordings=[recording])
    ours = r"\x1b\[[0-9;?]*[mKJAHhlCDBPq]|\x1b7|\x1b8"  # the line editor's own
    rest = re.sub(ours, "", screen.getvalue())
    assert not re.search(r"[\x00-\x06\x0b\x0e-\x1f\x7f-\x9f\u202e]", rest.replace("\x08", ""))
    assert "title" in rest
    assert "\x1b[2J" not in screen.getvalue()
    assert session.asked[0][1] == "a?]0;title?b?c?d?[2J second line"  # pasted lines are one question


def test_contradictions_notes_and_evidence_stand_below_the_answer(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    session = StandIn()
    evidence = (Evidence("measurements", "Measured: rate 75", "lead II"), Evidence("neighbours", "AF", "x", 0.81, "A"))
    other = Evidence("labels", "sinus rhythm: 97 %", "classifier", 0.97, given=False)
    found = Contradiction("heart_rate_bpm", "rate of 90", "75 was measured", 0, 4)
    session.more = {"parts": ((*evidence, other, other), (found,), ("a short recording",))}
    _, screen = hold("rate of 90\rAgain\r/evidence\r", session=session)
    assert "  contradicted: “rate of 90”, but 75 was measured\n  note: a short recording\n" in screen.text
    assert screen.text.count("note: a short recording") == 1
    assert "  evidence: measurements, neighbours, labels (2) (/evidence shows all)\n" in screen.text
    given = "  measurements: Measured: rate 75 (lead II)\n  neighbours: AF (A; x; likeness 0.81)\n"
    assert f"Given to the model\n{given}" in screen.text
    assert "Not given to it, but compared or cited\n  labels: sinus rhythm: 97 % (classifier)\n" in screen.text
    colored = screen.getvalue()
    assert re.search(r"\x1b\[[0-9;]*31[0-9;]*mcontradicted:", colored)


def test_no_color_is_respected(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    _, screen = hold("please fail\r")
    assert not re.search(r"\x1b\[[0-9;]*3[0-79][0-9;]*m", screen.getvalue())
    assert "too long." in screen.text


def test_why_a_question_was_not_answered():
    session = StandIn()
    session.more = {"why": {"abstained": True, "reason": "few_leads"}}
    _, screen = hold("Rhythm?\r", session=session)
    assert "Not answered: there are too few leads.\n" in screen.text


def test_recordings_are_added_and_exchanged(tmp_path):
    def read(path):
        return FLAT if path.name == "flat" else read_any(path)

    two, three = SAMPLE / "A0002", SAMPLE / "A0003"
    keys = f"/compare '{two}'\rOne\r/compare flat\rTwo\r/record {three}\rThree\r/reset\r/history\r"
    session, screen = hold(keys, read=read)
    assert [names for names, _ in session.asked] == [("A0001", "A0002"), ("A0001", "A0002"), ("A0003",)]
    assert "flat: not added, because" in screen.text
    assert "Forgotten. The recordings stay.\n" in screen.text
    assert "Nothing was said yet.\n" in screen.text
    assert session.resets == 3


def test_what_the_model_is_given_can_be_changed():
    session, screen = hold("/with\rOne\r/with labels, measurements\r/with\r/history\r/with none\r")
    assert session.with_ == frozenset()
    assert "The model is given: tokens.\n" in screen.text
    assert "The model is given: labels, measurements.\n" in screen.text
    assert "The model is given: the question only.\n" in screen.text
    assert session.turns == []


def test_neighbours_are_loaded_when_they_are_asked_for(monkeypatch):
    loads = []
    monkeypatch.setattr("ecgchat_lib.chat.neighbours.load_neighbours", lambda: loads.append(1) or "the neighbours")
    session, _ = hold("/with labels\r/with tokens,neighbours\r/with all\r")
    assert (session.neighbours, loads) == ("the neighbours", [1])


def test_measurements_stand_beside_their_limits():
    recordings = [read_recording(SAMPLE / "A0001"), FLAT, read_recording(SAMPLE / "A0003")]
    _, screen = hold("/measure\r", recordings=recordings)
    one, rest = screen.text.split("A0001 (male, 74 years)")[1].split("flat (sex unknown, age unknown)")
    rate = re.search(r"Heart rate +(\d+) bpm +60 to 100 +HIGH: faster than 100 bpm \(tachycardia\)", one)
    assert rate
    assert re.search(r"PR interval +\d+ ms +120 to 200 +normal\n", one)
    assert "not measured: there are too few leads (" in rest
    later = re.search(r"Heart rate +(\d+) bpm \(([+-]\d+)\)", rest)
    assert int(later[1]) - int(rate[1]) == int(later[2])
    assert rest.count("limits from Page et al. 2015") == 1
    assert "no consistent P wave" in rest


def test_reports_are_written_where_they_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = []

    given = []

    def write(recording, path, kind, with_):
        written.append((recording.name, str(path), kind))
        given.append(with_)
        path.write_text(kind)

    keys = (
        "/report\r/report\r\r/report\ry\r/report\rn\r/report my ecg.html\r/with labels\r/report x.MD\r/report\r"
        + CONTROL_C
    )
    _, screen = hold(keys + "/history\r", write_report=write)
    pdf = ("A0001", "A0001.pdf", "pdf")
    assert written == [pdf, pdf, ("A0001", "my ecg.html", "html"), ("A0001", "x.MD", "md")]
    assert given[2] != given[3] == {"labels"}
    assert screen.text.count("A0001.pdf is left as it is.") == 3
    assert "Report on A0001: my ecg.html\n" in screen.text
    assert "Nothing was said yet." in screen.text

    def fail(*_):
        raise OSError(28, "No space left on device")

    _, screen = hold("/report new.pdf\rOne\r", write_report=fail)
    assert "No space left on device" in screen.text
    _, screen = hold("/report new.pdf\r")
    assert "no reports are written here" in screen.text


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a\\b:c", "...", "\x1b[31m", "x" * 500])
def test_a_report_is_never_written_outside_this_folder_because_of_a_name(name):
    stem = terminal._file_stem(name)
    assert re.fullmatch(r"[\w-][\w.-]{0,79}", stem)


def test_help_and_completion_know_every_command(tmp_path, monkeypatch):
    _, screen = hold("/help\r")
    assert all(f"  {name} " in screen.text for name in terminal.COMMANDS)
    (tmp_path / "A0009.hea").touch()
    (tmp_path / ".hidden.hea").touch()
    monkeypatch.chdir(tmp_path)

    def complete(text):
        return [item.text for item in terminal._Completer().get_completions(Document(text), CompleteEvent())]

    assert complete("/re") == ["/report", "/record", "/reset"]
    assert complete("/compare A0") == ["009.hea"]
    assert complete("/compare ") == ["A0009.hea"]
    assert complete("/with tokens,la") == ["labels"]
    assert complete("What about /re") == complete("/help ") == []
    assert set(complete("/")) == {*terminal.COMMANDS}
    assert all(hasattr(terminal._Talk, f"_{name[1:]}") for name in terminal.COMMANDS if name != "/quit")


# --- the history


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("ECGCHAT_CACHE", str(tmp_path))
    monkeypatch.delenv(NO_HISTORY, raising=False)
    return tmp_path / HISTORY_FILE


def test_the_history_is_kept_for_its_owner_only(kept):
    old = os.umask(0)
    try:
        hold("One?\r A secret?\r/with\r", keep_history=True)
    finally:
        os.umask(old)
    assert [json.loads(line) for line in kept.read_text().splitlines()] == ["One?", "/with"]
    if os.name == "posix":
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    session, _ = hold(f"{UP}{UP}\r", keep_history=True)
    assert session.asked[0][1] == "One?"
    assert list(kept.parent.iterdir()) == [kept]


def test_the_history_can_be_left_out(kept, monkeypatch):
    hold("One?\r")
    monkeypatch.setenv(NO_HISTORY, "1")
    hold("One?\r", keep_history=True)
    assert not kept.exists()


def test_the_history_is_bounded_and_survives_damage(tmp_path, monkeypatch):
    history = PrivateHistory(tmp_path / "kept", most=3)
    for line in ["a", "b", "ü\n\ud800", "d", "x" * (terminal.LONGEST_KEPT + 1)]:
        history.store_string(line)
    assert list(history.load_history_strings()) == ["d", "ü\n\ud800", "b"]
    with (tmp_path / "kept").open("ab") as file:
        file.write(b"\xff\xfe\n[1]\n" + b"[" * 20_000 + b'\n"e"\n{"broken')
    assert list(history.load_history_strings()) == ["e", "d", "ü\n\ud800"]
    nowhere = PrivateHistory(tmp_path / "no" / "folder")
    nowhere.store_string("a")
    assert list(nowhere.load_history_strings()) == []
    monkeypatch.setattr(terminal, "cache_folder", lambda: (tmp_path / "kept").mkdir())
    assert not isinstance(terminal._history(), PrivateHistory)


# --- lines


@pytest.mark.parametrize("pieces", [["The rhythm is regular ", "an", "d", " fast."], "The rhythm is regular and fast."])
def test_lines_break_between_words_wherever_the_pieces_end(pieces):
    screen = io.StringIO()
    flow = terminal._Flow(screen.write, 14, indent="  ")
    for piece in pieces:
        flow.add(piece)
    flow.end()
    assert screen.getvalue() == "The rhythm is\n  regular and\n  fast.\n"


def test_lines_of_the_text_stay():
    screen = io.StringIO()
    flow = terminal._Flow(screen.write, 12)
    flow.add("- one\n- two  three\n\n心房細動 心房 " + "x" * 20)
    flow.end()
    assert screen.getvalue() == f"- one\n- two three\n\n心房細動\n心房\n{'x' * 20}\n"


# --- the shipped mini


class Interrupting(Screen):
    """A screen that presses Ctrl-C once, when a word appears."""

    def __init__(self, word):
        super().__init__()
        self.word = word

    def write(self, text):
        if self.word and self.word in text:
            self.word = ""
            super().write(text)
            signal.raise_signal(signal.SIGINT)
            return len(text)
        return super().write(text)


@pytest.mark.slow
def test_a_conversation_with_the_mini():
    session = load_chat()
    keys = f"What is the heart rate?\r/evidence\r/compare {SAMPLE / 'A0003'}\rWhat changed?\rWho won the cup?\r"
    _, screen = hold(keys, session=session)
    flat = " ".join(screen.text.split())
    assert [question for question, _ in session.turns] == [
        "What is the heart rate?",
        "What changed?",
        "Who won the cup?",
    ]
    assert all(" ".join(answer.split()) in flat for _, answer in session.turns)
    assert f"Measured: rate {rate_of('A0001')}" in flat
    assert "Not answered: the question isn't about ECGs." in flat


@pytest.mark.slow
def test_an_answer_of_the_mini_is_stopped():
    session = load_chat()
    question = "What is the heart rhythm?"
    whole = load_chat().ask(read_recording(SAMPLE / "A0001"), question).text
    screen = Interrupting(next(word for word in whole.split()[1:] if word not in question))
    with create_pipe_input() as keyboard:
        keyboard.send_text(f"{question}\rWhat is the heart rate?\r{CONTROL_D}")
        recordings = [read_recording(SAMPLE / "A0001")]
        talk(session, recordings, read=read_any, keep_history=False, source=keyboard, out=screen.output)
    (_, told), (_, after) = session.turns
    assert whole.startswith(told.strip())
    assert 0 < len(told) < len(whole)
    assert "[stopped]" in screen.text
    assert rate_of("A0001") in after


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="pseudo terminals are POSIX's")
def test_the_command_in_a_pseudo_terminal(tmp_path):
    import pty

    keyboard, screen = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "PROMPT_TOOLKIT_NO_CPR": "1", NO_HISTORY: "1"}
    command = [sys.executable, "-c", "from ecgchat_lib.cli import main; main()", "chat", str(SAMPLE / "A0001")]
    ends = dict.fromkeys(("stdin", "stdout", "stderr"), screen)
    with subprocess.Popen(command, env=environment, cwd=tmp_path, **ends) as process:
        os.close(screen)
        try:
            seen = read_until(keyboard, "A0001 >")
            os.write(keyboard, b"What is the heart rate?\r")
            seen += read_until(keyboard, "/evidence shows all) A0001 >")
            os.write(keyboard, b"/help\r")
            seen += read_until(keyboard, "Tab completes. A0001 >")
            os.write(keyboard, CONTROL_D.encode())
            assert process.wait(60) == 0
        finally:
            process.kill()
            os.close(keyboard)
    assert f"{rate_of('A0001')} beats per minute" in seen
    assert terminal.QUESTION in seen


def rate_of(name):
    return f"{measure(read_recording(SAMPLE / name)).heart_rate_bpm:.0f}"


def read_until(terminal_end, words, seconds=300):
    """Return what appears on a terminal until these words do, without colors and cursor movements."""
    seen, shown, last = b"", "", time.monotonic() + seconds
    while words not in shown:
        ready, *_ = select.select([terminal_end], [], [], max(0, last - time.monotonic()))
        try:
            seen += os.read(terminal_end, 65536) if ready else b""
        except OSError:  # the other end is closed
            ready = []
        shown = " ".join(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode(errors="replace")).split())
        assert ready, f"{words!r} never came: {shown}"
    return shown
