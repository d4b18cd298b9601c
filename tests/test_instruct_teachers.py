"""Teachers: rules, a local model, and a server with OpenAI's API, played by one on this machine."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from instruct_examples import example_manifest, example_measurements

from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError
from ecgchat_lib.instruct import teachers
from ecgchat_lib.instruct.dataset import build_dataset
from ecgchat_lib.instruct.drafts import BuildConfig, make_drafts
from ecgchat_lib.instruct.journal import Journal
from ecgchat_lib.instruct.prompts import DIAGNOSIS_PROMPT, DIALOGUE_PROMPT, messages_for, read_answers
from ecgchat_lib.instruct.teachers import (
    Budget,
    BudgetSpent,
    LocalTeacher,
    OpenAITeacher,
    Reply,
    TemplateTeacher,
    load_local_teacher,
)

KEY = "sk-secret-of-nobody"


class Server:
    """A server with `/v1/chat/completions`; `script` says what it does to the first requests, then it answers."""

    def __init__(self):
        self.script, self.requests, self.keys, self.times = [], [], [], []
        self.reword = lambda question, draft: draft
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(body)
                outer.keys.append(self.headers.get("Authorization"))
                outer.times.append(time.monotonic())
                act = outer.script.pop(0) if outer.script else outer.answer(body)
                status, headers, content = act if isinstance(act, tuple) else act(body)
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, body):
        asked = json.loads(body["messages"][1]["content"].split("\n\n", 1)[1])
        answers = [self.reword(one["question"], one["draft answer"]) for one in asked]
        return 200, {}, completion(json.dumps({"answers": answers}))


def completion(content, usage=(200, 50)):
    return {
        "choices": [{"message": {"role": "assistant", "content": content}}],
        "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]},
    }


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture(scope="module")
def drafts():
    table = example_manifest(12)
    return make_drafts(table, example_measurements(table), BuildConfig(6, 4, rounds=(4, 8), comparisons=0.3))


def teacher(server, waits=None, **options):
    return OpenAITeacher("m", server.url, sleep=(waits if waits is not None else []).append, **options)


def test_template_gives_the_drafts_own_answers(drafts):
    for draft in drafts:
        assert TemplateTeacher().answer(draft) == Reply(tuple(one.turn.answer for one in draft.rounds))


def test_a_request_has_the_right_prompt_facts_and_key(server, drafts):
    for draft in drafts:
        reply = teacher(server).answer(draft)
        assert reply.answers == tuple(one.turn.answer for one in draft.rounds)
        assert reply.tokens == (200, 50)
        body = server.requests[-1]
        expected = DIAGNOSIS_PROMPT if draft.kind == "diagnosis" else DIALOGUE_PROMPT
        assert body["messages"][0] == {"role": "system", "content": expected}
        assert body["model"] == "m"
        for report, (statements, _) in zip(draft.reports, draft.facts, strict=True):
            assert report in body["messages"][1]["content"]
            assert all(code in body["messages"][1]["content"] for code, _ in statements)
        assert "Measured: rate " in body["messages"][1]["content"]
    assert set(server.keys) == {f"Bearer {KEY}"}


def test_a_busy_server_is_asked_again_as_late_as_it_says(server, drafts):
    soon = formatdate(time.time() + 30, usegmt=True)
    server.script = [
        (429, {"Retry-After": "7"}, b""),
        (503, {}, b"busy"),
        (500, {"Retry-After": soon}, b""),
        (429, {"Retry-After": "soon"}, b""),
        (429, {"Retry-After": "999999"}, b""),
    ]
    waits = []
    assert teacher(server, waits).answer(drafts[0]).answers
    assert len(server.requests) == 6
    assert waits[0] == 7
    assert waits[1] == 2
    assert 20 < waits[2] <= 31
    assert waits[3] == 8
    assert waits[4] == 300


def test_it_gives_up_after_its_attempts_and_says_how_to_go_on(server, drafts):
    server.script = [(500, {}, b"")] * 3
    with pytest.raises(EcgChatError, match=r"no answer after 3 tries \(status 500\).*--resume"):
        teacher(server, attempts=3).answer(drafts[0])
    assert len(server.requests) == 3


def test_a_slow_server_times_out_and_counts_as_billed(server, drafts):
    def slow(body):
        time.sleep(0.6)
        return 200, {}, completion("{}")

    server.script = [slow]
    writer = teacher(server, timeout=0.2, budget=Budget(tokens=100_000))
    assert writer.answer(drafts[0]).answers
    assert writer.budget.used[0] > 200  # the worst case of the one that timed out, and the answered one
    assert writer.budget.used[1] > 50


def test_a_connection_lost_while_waiting_counts_as_billed(server, drafts):
    def hang_up(body):
        raise SystemExit  # the handler's thread ends, and the connection with it

    server.script = [hang_up]
    writer = teacher(server, budget=Budget(tokens=100_000))
    assert writer.answer(drafts[0]).answers
    assert len(server.requests) == 2
    assert writer.budget.used[0] > 200  # the worst case of the lost one, and the answered one


def test_nobody_there(drafts):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    waits = []
    writer = OpenAITeacher("m", f"http://127.0.0.1:{port}/v1", attempts=2, sleep=waits.append)
    with pytest.raises(EcgChatError, match="ConnectionError"):
        writer.answer(drafts[0])
    assert waits == [1]
    assert writer.budget.used == (0, 0)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 302])
def test_a_refusal_is_told_at_once_without_the_key(server, drafts, status):
    server.script = [(status, {"Location": "http://elsewhere/"}, f"bad key {KEY}\n\x1b[31m".encode())]
    with pytest.raises(EcgChatError, match=f"status {status}") as caught:
        teacher(server).answer(drafts[0])
    assert KEY not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(server.requests) == 1
    if status == 401:
        assert "Set OPENAI_API_KEY" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>", b"\xff\xfe", b"[" * 100_000, b"x" * 2_000_000],
    ids=["empty", "html", "no text", "deep", "huge"],
)
def test_what_is_no_json_is_asked_again(server, drafts, content):
    server.script = [(200, {}, content)]
    assert teacher(server).answer(drafts[0]).answers
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "found",
    [
        None,
        [],
        {},
        {"choices": []},
        {"choices": [None]},
        {"choices": [{"message": {"content": None}}]},
        completion("I'd say it is normal."),
        completion('{"answers": "one"}'),
        completion('{"answers": [1]}'),
        completion('{"answers": ["one", "two", "three"]}'),
        {**completion('{"answers": []}'), "usage": {"prompt_tokens": -5, "completion_tokens": True}},
    ],
    ids=str,
)
def test_a_strange_answer_is_paid_for_and_not_asked_again(server, drafts, found):
    server.script = [(200, {}, found)]
    writer = teacher(server)
    reply = writer.answer(drafts[0])
    assert reply.answers == ()
    assert reply.problem
    assert len(server.requests) == 1
    assert sum(writer.budget.used) == sum(reply.tokens) > 0


def test_a_key_at_the_cut_of_a_refusal_is_not_told_by_half(server, drafts):
    server.script = [(400, {}, b"x" * 290 + KEY.encode())]
    with pytest.raises(EcgChatError, match="status 400") as caught:
        teacher(server).answer(drafts[0])
    assert KEY[:6] not in str(caught.value)


def test_a_netrc_does_not_replace_the_key(server, drafts, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for key in (KEY, ""):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        teacher(server).answer(drafts[0])
    assert server.keys == [f"Bearer {KEY}", None]


def test_keys_and_addresses_that_cannot_be_sent_are_told_at_once(drafts, monkeypatch):
    waits = []
    with pytest.raises(EcgChatError, match="address can't be used"):
        OpenAITeacher("m", "http://", sleep=waits.append).answer(drafts[0])
    monkeypatch.setenv("OPENAI_API_KEY", "sk-ä\n")
    with pytest.raises(ParameterError, match="characters that no key has"):
        OpenAITeacher("m", "http://localhost:9", sleep=waits.append).answer(drafts[0])
    assert waits == []


def test_json_in_a_fence_is_read():
    assert read_answers('```json\n{"answers": ["a"]}\n```') == ["a"]
    assert read_answers('["a", "b"]') == ["a", "b"]
    assert read_answers("[" * 10_000) is None


def test_the_budget_is_never_passed(server, drafts):
    writer = teacher(server, budget=Budget(tokens=2000))

    def ask_often():
        for _ in range(50):
            writer.answer(drafts[0])

    with pytest.raises(BudgetSpent, match="of 2000 tokens used"):
        ask_often()
    assert sum(writer.budget.used) <= 2000
    assert len(server.requests) == sum(writer.budget.used) // 250


def test_dollars_need_prices_and_are_kept():
    with pytest.raises(ParameterError, match="prices"):
        Budget(dollars=1.0)
    with pytest.raises(ParameterError, match="expected ≥ 0"):
        Budget(tokens=-1)
    budget = Budget(dollars=0.01, prices=(2.0, 10.0))
    assert budget.cost((1_000_000, 100_000)) == 3.0
    budget.hold((1000, 700))
    with pytest.raises(BudgetSpent):
        budget.hold((1000, 700))  # the first may still need it all
    budget.settle((1000, 700), (100, 10))
    budget.hold((1000, 700))


def test_requests_keep_their_distance(server, drafts):
    waits = []
    writer = teacher(server, waits, per_minute=60)
    for _ in range(3):
        writer.answer(drafts[0])
    assert len(waits) == 2
    assert 0 < waits[0] <= 1
    assert 1 < waits[1] <= 2  # nobody slept, so the third is two seconds after the first


@pytest.mark.parametrize(
    "options",
    [
        {"base_url": "ftp://x"},
        {"jobs": 0},
        {"attempts": 0},
        {"timeout": 0},
        {"per_minute": 0},
        {"per_minute": float("nan")},
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(ParameterError):
        OpenAITeacher("m", **({"base_url": "http://localhost"} | options))


# --- with the builder ------------------------------------------------------------------------------------------------


def build(out, writer, **options):
    table = example_manifest(12)
    config = BuildConfig(6, 4, rounds=(4, 8), comparisons=0.3)
    return build_dataset(table, example_measurements(table), config, writer, out, **options)


def lines(out):
    return [json.loads(line) for name in ("train", "validation", "test") for line in (out / f"{name}.jsonl").open()]


def test_good_rewordings_are_taken_and_wrong_ones_replaced_and_counted(server, tmp_path):
    def reword(question, draft):
        if "rhythm" in question:
            return draft + " There is also ventricular tachycardia."
        if draft.startswith("No, "):
            return "Fine."
        if draft.startswith("Your ECG shows "):
            return draft.replace("Your ECG shows", "I see that your ECG shows")
        return draft + " Kindly consult a soothsayer."

    server.reword = reword
    facts = build(tmp_path, teacher(server, jobs=3))
    reasons = facts["checks"]["reasons"]
    assert {"says what isn't known", "leaves something out", "words that can't be checked"} == set(reasons)
    assert facts["checks"]["reworded"] >= 1
    assert facts["checks"]["answers"] == sum(reasons.values()) + facts["checks"]["reworded"]
    text = json.dumps(lines(tmp_path))
    assert "tachycardia" not in text.replace("sinus tachycardia", "").replace("supraventricular tachycardia", "")
    assert "soothsayer" not in text
    for item in lines(tmp_path):
        for one, turn in zip(item["provenance"]["rounds"], item["conversations"][1::2], strict=True):
            assert one["reworded"] == turn["value"].startswith("I see that your ECG shows")
            assert one["check"] == "passed"
        assert item["provenance"]["teacher"] == {"name": "openai", "model": "m", "temperature": 0.7}


def test_nothing_that_was_written_holds_the_key_or_the_server(server, tmp_path):
    build(tmp_path, teacher(server))
    for path in tmp_path.iterdir():
        content = path.read_text()
        assert KEY not in content
        assert "127.0.0.1" not in content


def test_resumed_after_an_error_nothing_is_asked_twice(server, tmp_path):
    server.script = [server.answer] * 4 + [(400, {}, b"out of credit")]
    with pytest.raises(EcgChatError, match="status 400"):
        build(tmp_path, teacher(server, jobs=1))
    assert not (tmp_path / "manifest.json").exists()
    assert len(server.requests) == 5
    facts = build(tmp_path, teacher(server, jobs=2), resume=True)
    asked = Counter(json.dumps(body) for body in server.requests)
    refused = json.dumps(server.requests[4])
    assert asked.pop(refused) == 2  # refused, so not paid
    assert set(asked.values()) == {1}
    assert len(lines(tmp_path)) == len(asked) + 1 == 10
    again = build(tmp_path, teacher(server), resume=True)
    assert again == facts
    assert len(server.requests) == 11  # a finished build asks for nothing


def test_the_budget_counts_what_earlier_runs_used(server, tmp_path):
    with pytest.raises(BudgetSpent):
        build(tmp_path, teacher(server, jobs=1, budget=Budget(tokens=3000)))
    asked = len(server.requests)
    assert 0 < asked < 10
    with pytest.raises(BudgetSpent):
        build(tmp_path, teacher(server, jobs=1, budget=Budget(tokens=3000)), resume=True)
    assert len(server.requests) == asked
    build(tmp_path, teacher(server, jobs=1, budget=Budget(tokens=100_000)), resume=True)
    assert len(server.requests) == 10


SCRIPT = """
import sys
sys.path[:0] = [sys.argv[3]]
from pathlib import Path
from test_instruct_teachers import build, OpenAITeacher
build(Path(sys.argv[2]), OpenAITeacher("m", sys.argv[1], jobs=1, timeout=30), resume=True)
"""


@pytest.mark.slow
def test_resumed_after_a_kill_nothing_is_asked_twice(server, tmp_path):
    hold = threading.Event()

    def late(body):
        hold.set()
        time.sleep(3)
        return server.answer(body)

    server.script = [server.answer] * 5 + [late]
    arguments = [sys.executable, "-c", SCRIPT, server.url, str(tmp_path), os.path.dirname(__file__)]
    child = subprocess.Popen(arguments)
    assert hold.wait(120)
    child.kill()
    child.wait()
    assert len(server.requests) == 6
    with (tmp_path / "replies.jsonl").open("ab") as file:
        file.write(b'{"asked": "cut o')  # as if the disk had been half done
    build(tmp_path, teacher(server, jobs=1), resume=True)
    asked = Counter(json.dumps(body) for body in server.requests)
    assert sorted(asked.values()) == [1] * 9 + [2]  # only the one that was under way
    assert len(lines(tmp_path)) == 10


def test_a_journal_keeps_whole_lines_and_refuses_others(tmp_path):
    path = tmp_path / "replies.jsonl"
    with Journal(path) as journal:
        journal.add("a", Reply(("x", "ÿ"), "", (3, 4)))
        journal.add("b", Reply((), "nothing", (1, 1)))
    with path.open("ab") as file:
        file.write(b'{"asked": "c"')
    with Journal(path) as journal:
        assert journal.get("a") == Reply(("x", "ÿ"), "", (3, 4))
        assert journal.get("c") is None
        assert journal.tokens == (4, 5)
        journal.add("c", Reply(("z",)))
    assert len(path.read_bytes().splitlines()) == 3
    for tokens in ("", ', "tokens": [-5, 1]', ', "tokens": [Infinity, 1]'):
        path.write_text(f'{{"asked": "a", "answers": [], "problem": ""{tokens}}}\n')
        with pytest.raises(EcgChatError, match="line 1"):
            Journal(path)


def test_a_local_model_rewords_each_answer(tmp_path):
    asked = []

    def generate(messages):
        asked.append(messages)
        return f' "{messages[1]["content"]}" '

    facts = build(tmp_path, LocalTeacher(generate, "tiny", {"sha256": "abc"}))
    assert facts["checks"]["replaced"] == 0
    assert len(asked) == facts["checks"]["answers"]
    assert facts["teacher"] == {"name": "local", "model": "tiny", "sha256": "abc"}
    count = len(asked)
    build(tmp_path, LocalTeacher(generate, "tiny", {"sha256": "abc"}), resume=True)
    assert len(asked) == count


def test_a_local_model_that_talks_nonsense_changes_nothing(tmp_path):
    facts = build(tmp_path, LocalTeacher(lambda messages: "Ventricular fibrillation at 300 bpm!", "liar"))
    assert facts["checks"]["reworded"] == 0
    assert facts["checks"]["replaced"] == facts["checks"]["answers"]
    plain = build(tmp_path.with_name("plain"), TemplateTeacher())
    assert [item["conversations"] for item in lines(tmp_path)] == [
        item["conversations"] for item in lines(tmp_path.with_name("plain"))
    ]
    assert plain["plan"] == facts["plan"]


def test_local_models_that_are_not_there(tmp_path):
    with pytest.raises(MissingPartError, match="neither a known part nor a folder"):
        load_local_teacher(str(tmp_path / "nothing"))
    with pytest.raises(EcgChatError, match="transformers can't load it"):
        load_local_teacher(str(tmp_path))


@pytest.mark.slow
def test_the_default_model_rewords(drafts):
    writer = load_local_teacher(max_new_tokens=30)
    reply = writer.answer(drafts[0])
    assert len(reply.answers) == 1
    assert reply.answers[0]
    assert reply == writer.answer(drafts[0])
    assert writer.about["sha256"].startswith("b179c952")


def test_both_prompts_ask_for_negatives_and_json():
    for prompt in (DIAGNOSIS_PROMPT, DIALOGUE_PROMPT):
        assert "refute" in prompt
        assert "answers" in prompt
    assert teachers.MAX_WAIT == 300


def test_messages_hold_nothing_of_other_recordings(drafts):
    one = next(draft for draft in drafts if draft.kind == "diagnosis")
    content = messages_for(one)[1]["content"]
    assert content.count("statements:") == 1
    both = next(draft for draft in drafts if draft.kind == "comparison")
    assert "ECG 1, report:" in messages_for(both)[1]["content"]
    assert "ECG 2, report:" in messages_for(both)[1]["content"]
