"""`ecgchat chat` with a tiny random model in place of the mini: output, order, exit codes, a harmless terminal."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from command import run_command as run
from tiny_chat import HIDDEN, tiny_llama, tiny_tokenizer

from ecgchat_lib.chat import cli, session
from ecgchat_lib.chat.generate import Decoding
from ecgchat_lib.chat.model import EcgChat
from ecgchat_lib.chat.projector import Projector
from ecgchat_lib.chat.session import ChatSession
from ecgchat_lib.chat.template import get_template
from ecgchat_lib.coca.config import MINI
from ecgchat_lib.coca.model import EcgCoca
from ecgchat_lib.ecg.leads import LEADS
from ecgchat_lib.ecg.recording import read_recording
from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.paths import data_folder

SAMPLE = data_folder() / "real_sample"
ONE, TWO, THREE = (SAMPLE / f"A000{number}" for number in (1, 2, 3))


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    encoder = EcgCoca(MINI, vocabulary=None).eval()
    chat = EcgChat(tiny_llama(), tiny_tokenizer(), Projector(MINI.encoder.width, HIDDEN), get_template("smollm2"))
    return chat.eval(), encoder


@pytest.fixture
def loads(parts, monkeypatch):
    """Put the tiny model in the mini's place; the list says what was loaded."""
    loaded = []

    def load(folder=None, *, with_="default", **_):
        loaded.append((folder, with_))
        return ChatSession(*parts, with_=with_, decoding=Decoding(max_new_tokens=8))

    monkeypatch.setattr(session, "load_chat", load)
    return loaded


def rows(lines):
    return [json.loads(line) for line in lines]


def test_a_conversation_prints_one_json_object_per_answer(capsys, loads):
    code, out, _ = run(capsys, "chat", ONE, "-m", "Rhythm?", "-m", "Rate?", "--json")
    assert code == 0
    assert [(row["record"], row["question"]) for row in rows(out)] == [("A0001", "Rhythm?"), ("A0001", "Rate?")]
    keys = "record question answer marked abstained reason evidence contradictions notes"
    assert all(list(row) == keys.split() for row in rows(out))
    assert loads == [(None, session.DEFAULT)]


def test_a_stream_prints_what_the_whole_answer_is(capsys, loads):
    plain = run(capsys, "chat", ONE, "-m", "Rhythm?", "-m", "Rate?")
    streamed = run(capsys, "chat", ONE, "-m", "Rhythm?", "-m", "Rate?", "--stream")
    assert [line.partition(" [contradicted")[0] for line in plain[1]] == streamed[1]
    assert plain[2] == streamed[2]
    assert any("Measured: rate " in line for line in plain[2])  # the evidence
    assert plain[0] == 0
    assert plain[1]


def test_a_stream_is_flushed_piece_by_piece(loads, parts, monkeypatch):
    events, recording = [], read_recording(ONE)
    monkeypatch.setattr(cli.typer, "echo", lambda text="", nl=True, err=False: events.append((text, nl, err)))
    talk = ChatSession(*parts, decoding=Decoding(max_new_tokens=8))
    cli.converse(talk, [recording], ["Rhythm?"], cli.Call((ONE,), stream=True))
    pieces = [text for text, nl, err in events if not nl and not err]
    assert len(pieces) > 2
    assert "".join(pieces) == cli.clean(talk.turns[0][1])
    assert ("", True, False) in events  # the line ends


def test_two_recordings_are_compared(capsys, loads):
    code, out, err = run(capsys, "chat", ONE, "--compare", TWO, "-m", "What changed?", "--json", "--with", "tokens")
    assert code == 0
    (row,) = rows(out)
    assert (row["record"], row["compare"]) == ("A0001", "A0002")
    assert [note for note in row["notes"] if note.startswith("A0001: ")]
    assert not [line for line in err if line.count("A0001") > 1]  # a note says once which recording it is about
    assert loads == [(None, frozenset({"tokens"}))]


def test_another_model_is_asked_for_by_its_folder(capsys, loads, tmp_path):
    assert run(capsys, "chat", ONE, "-m", "Rhythm?", "--model", tmp_path)[0] == 0
    assert loads[0][0] == tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([ONE, "--json", "--stream", "-m", "Rhythm?"], "--stream prints an answer while it is made"),
        ([], "no recording"),
        ([ONE, "--batch", "x.jsonl"], "Leave out RECORD"),
        (["--batch", "x.jsonl", "-m", "Rhythm?"], "Leave out RECORD"),
        (["--batch", "missing.jsonl"], "missing.jsonl: can't be opened"),
        ([ONE, "--with", "magic", "-m", "Rhythm?"], "grounding magic"),
        ([SAMPLE / "A9999", "-m", "Rhythm?"], "A9999"),
    ],
)
def test_calls_that_cannot_be_used_are_one_line(capsys, loads, arguments, message):
    code, out, err = run(capsys, "chat", *arguments)
    assert (code, out) == (2, [])
    (line,) = err
    assert message in line
    assert loads == []


def write(tmp_path, *lines):
    path = tmp_path / "questions.jsonl"
    data = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(data) + b"\n")
    return path


def test_a_batch_is_answered_in_order_and_the_model_loaded_once(capsys, loads, tmp_path):
    asked = [
        (str(record), question) for question in ("Rhythm?", "Rate?", "Is it normal?") for record in (ONE, TWO, THREE)
    ]
    path = write(tmp_path, *({"record": record, "question": question} for record, question in asked))
    code, out, err = run(capsys, "chat", "--batch", path, "--json")
    assert (code, err) == (0, [])
    assert [(row["record"], row["question"]) for row in rows(out)] == asked
    assert len(loads) == 1
    alone = [rows(run(capsys, "chat", record, "-m", question, "--json")[1])[0]["answer"] for record, question in asked]
    assert [row["answer"] for row in rows(out)] == alone


def test_a_recording_in_a_batch_is_heard_once(capsys, loads, tmp_path, monkeypatch):
    heard, real = [], session.hear
    monkeypatch.setattr(
        session, "hear", lambda recording, *rest: heard.append(recording.name) or real(recording, *rest)
    )
    path = write(tmp_path, *({"record": str(ONE), "question": f"Question {n}?"} for n in range(5)))
    assert run(capsys, "chat", "--batch", path, "--json")[0] == 0
    assert heard == ["A0001"]


BAD = [
    (b"not json", "line 2: not JSON in UTF-8"),
    (b'{"record": "caf\xe9", "question": "?"}', "line 2: not JSON in UTF-8"),
    (b"[1, 2]", "line 2: [1, 2], expected a JSON object"),
    (b"[" * 100_000, "line 2: not JSON"),
    (b'{"question": "Rhythm?"}', "line 2: record is missing"),
    (b'{"record": [], "question": "Rhythm?"}', "line 2: record is []"),
    (b'{"record": "a\\u0000b", "question": "Rhythm?"}', "line 2: record holds a zero byte"),
    (b'{"record": "a\\ud800b", "question": "Rhythm?"}', 'line 2: record is "a\\ud800b"'),
    (b'{"record": "' + b"a" * 5000 + b'", "question": "Rhythm?"}', "expected at most 4096 characters"),
    (json.dumps({"record": ["x"] * 17, "question": "Rhythm?"}).encode(), "line 2: 17 recordings, expected at most 16"),
    (b'{"record": "x", "question": 7}', "line 2: question is 7"),
    (b'{"record": "x", "question": "Rhythm?", "fs": NaN}', "line 2: fs is NaN"),
    (b'{"record": "x", "question": "Rhythm?", "fs": ' + b"9" * 400 + b"}", "line 2: fs is 9"),
    (b'{"record": "x", "question": "Rhythm?", "fs": "fast"}', 'line 2: fs is "fast"'),
    (b'{"record": "x", "question": "Rhythm?", "unit": 3}', "line 2: unit is 3"),
    (b'{"record": "x", "question": "Rhythm?", "conversation": []}', "line 2: conversation is []"),
    (b'{"record": "x", "question": "Rhythm?", "conversation": "' + b"a" * 201 + b'"}', "expected at most 200 char"),
    (b'{"record": "/nowhere/at/all", "question": "Rhythm?"}', "/nowhere/at/all"),
    (b'{"record": "x", "question": "' + b"long " * 300_000 + b'"}', "line 2: longer than"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=[message for _, message in BAD])
def test_a_bad_line_is_told_and_the_others_go_on(capsys, loads, tmp_path, line, message):
    good = {"record": str(ONE), "question": "Rhythm?"}
    code, out, err = run(capsys, "chat", "--batch", write(tmp_path, good, line, good), "--json")
    assert code == 2
    first, bad, last = rows(out)
    assert first["answer"] == last["answer"]
    assert bad.keys() == {"record", "question", "error"}
    assert message in bad["error"]
    (told,) = err
    assert message in told


class Broken(io.BytesIO):
    """A file that can't be read to its end."""

    def readline(self, *_):
        raise OSError(5, "Input/output error")


def test_a_file_without_end_or_that_breaks_off_is_told(monkeypatch):
    monkeypatch.setattr(cli, "LONGEST_SKIPPED", 1 << 22)
    endless = io.BytesIO(b"first\n" + bytes(1 << 23))
    lines = cli._lines(endless)
    assert next(lines) == (1, b"first")
    with pytest.raises(EcgChatError, match="line 2: doesn't end"):
        next(lines)
    with pytest.raises(EcgChatError, match="Input/output error"):
        next(cli._lines(Broken()))


def test_undecodable_questions_are_asked_or_refused_in_one_line(capsys, loads, tmp_path, monkeypatch):
    asked = {"record": str(ONE), "question": "a\ud800 b?"}
    code, out, err = run(capsys, "chat", "--batch", write(tmp_path, asked), "--json")
    assert (code, err) == (0, [])
    assert rows(out)[0]["question"] == "a\ud800 b?"
    assert run(capsys, "chat", ONE, "-m", "a\udcff b?", "--json")[0] == 0  # how Python hands over the byte FF
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\xff b?\n"), encoding="utf-8"))
    code, out, err = run(capsys, "chat", ONE)
    assert (code, out) == (2, [])
    assert err == ["ecgchat: standard input isn't UTF-8, expected questions in it"]


def test_a_question_that_does_not_fit_does_no_harm_to_its_neighbors(capsys, loads, tmp_path):
    good = {"record": str(ONE), "question": "Rhythm?"}
    long = {"record": str(ONE), "question": "rate " * 2000}
    code, out, _ = run(capsys, "chat", "--batch", write(tmp_path, good, long, good), "--json")
    assert code == 2
    first, bad, last = rows(out)
    assert first["answer"] == last["answer"]
    assert "expected at most 504" in bad["error"]


def test_lines_of_a_conversation_are_its_turns(capsys, loads, tmp_path):
    def line(question, record=ONE, **more):
        return {"record": str(record), "question": question, **more}

    path = write(
        tmp_path,
        line("Rhythm?", conversation="a"),
        line("Rate?", conversation="a"),
        b"broken",
        line("Is it normal?", conversation="a"),
        line("Rhythm?"),
        line("Rhythm?", conversation=2),
        line("Rate?", conversation="a"),
    )
    code, out, _ = run(capsys, "chat", "--batch", path, "--json")
    found = rows(out)
    talked = rows(run(capsys, "chat", ONE, "-m", "Rhythm?", "-m", "Rate?", "-m", "Is it normal?", "--json")[1])
    assert [found[k]["answer"] for k in (0, 1, 3)] == [row["answer"] for row in talked]
    assert found[4]["answer"] == found[5]["answer"] == talked[0]["answer"]
    assert "line 7: conversation 'a' was ended by another line" in found[6]["error"]
    assert code == 2


def test_a_line_can_compare_and_can_say_what_its_file_does_not(capsys, loads, tmp_path):
    np.save(tmp_path / "bare.npy", read_recording(ONE).signal.T)
    bare = {"record": str(tmp_path / "bare.npy"), "question": "Rhythm?", "leads": list(LEADS), "unit": "mV"}
    path = write(tmp_path, {"record": [str(ONE), str(TWO)], "question": "What changed?"}, bare | {"fs": 500}, bare)
    code, out, _ = run(capsys, "chat", "--batch", path, "--json")
    both, said, missing = rows(out)
    assert both["record"] == [str(ONE), str(TWO)]
    assert "answer" in said
    assert "fs" in missing["error"]
    assert code == 2
    assert run(capsys, "chat", "--batch", write(tmp_path, bare), "--json", "--fs", 500)[0] == 0


def test_questions_come_from_standard_input_too(capsys, loads, monkeypatch):
    line = json.dumps({"record": str(ONE), "question": "Rhythm?"}).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n" + line)))
    code, out, _ = run(capsys, "chat", "--batch", "-")
    assert code == 0
    assert out[0].startswith(f"{ONE}: ")


EVIL = "\x1b[31mred\x1b[0m \x9b2J \x07bell\ttab\u202ereversed"


def test_nothing_said_can_steer_the_terminal(capsys, loads, monkeypatch):
    def say(self, recording, question, **_):
        yield EVIL[:3]
        yield EVIL[3:]
        return replace(real.ask(recording, "Rhythm?"), text=EVIL, notes=(EVIL,))

    real = session.load_chat()
    monkeypatch.setattr(ChatSession, "stream", say)
    monkeypatch.setattr(ChatSession, "ask", lambda *_, **__: reply)
    reply = replace(real.ask_many([(ONE, "Rhythm?")])[0], text=EVIL, notes=(EVIL,))
    real.ask = lambda *_: reply
    for options in ([], ["--stream"], ["--json"]):
        code, out, err = run(capsys, "chat", ONE, "-m", "Rhythm?", *options)
        assert code == 0
        for line in (*out, *err):
            assert line.isprintable(), options
        if options == ["--json"]:
            assert rows(out)[0]["answer"] == EVIL
