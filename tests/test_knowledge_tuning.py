"""Prompt tuning: DSPy over a writer of a few rules, over a tiny Llama, and over a server on this machine."""

import copy
import importlib.util
import json
import subprocess
import sys
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tiny_chat import tiny_llama, tiny_tokenizer

from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError
from ecgchat_lib.instruct.teachers import BudgetSpent
from ecgchat_lib.knowledge.entries import load_entries
from ecgchat_lib.knowledge.questions import Question
from ecgchat_lib.knowledge.retrieve import make_retriever

dspy = pytest.importorskip("dspy")
from ecgchat_lib.knowledge import tuning  # noqa: E402
from ecgchat_lib.knowledge.tuning import (  # noqa: E402
    CountedLM,
    LocalLM,
    LocalWriter,
    PlainAdapter,
    ServerLM,
    Written,
    evaluate,
    finding_examples,
    knowledge_examples,
    load_tuned,
    make_program,
    names_the_finding,
    run_program,
    save_tuned,
    score_each,
    states_the_facts,
    tune,
)

VAGUE, CLEAR = "Answer.", "Say the number alone."
LIMITS = {"QRS": 120, "PR": 200, "QT": 460, "RR": 600, "P": 110, "T": 160}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def question(name, number):
    row = {"passages": f"The limit of {name} is {number} ms.", "question": f"What is the limit of {name}?"}
    return dspy.Example(row | {"answer": f"{number} ms"}).with_inputs("passages", "question")


QUESTIONS = [question(*item) for item in LIMITS.items()]


def exact(example, prediction, trace=None):
    return float(prediction.answer == example.answer)


class Rules:
    """A writer that finds the number in the passage if told so, or if shown how; otherwise it chats."""

    def __init__(self, shown_suffices=True):
        self.asked, self.shown_suffices = [], shown_suffices

    def __call__(self, messages, temperature, max_tokens):
        self.asked.append((messages, temperature, max_tokens))
        shown = self.shown_suffices and any(one["role"] == "assistant" for one in messages)
        if not shown and messages[0]["content"] != CLEAR:
            return Written("That depends on many things.", 40, 10, 6)
        number = messages[-1]["content"].split(" is ")[1].split(" ms")[0]
        return Written(f"{number} ms", 40, 10, 2)


def test_a_writer_gets_plain_messages_and_settings():
    rules = Rules()
    lm = LocalLM(rules, "rules", temperature=0.3, max_tokens=9)
    program = make_program(CLEAR)
    program.demos = [QUESTIONS[0]]
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        answer = run_program(program, lm, dict(QUESTIONS[1].inputs()))
    assert answer == "200 ms"
    messages, temperature, most = rules.asked[0]
    assert messages == [
        {"role": "system", "content": CLEAR},
        {"role": "user", "content": "Passages:\nThe limit of QRS is 120 ms.\n\nQuestion:\nWhat is the limit of QRS?"},
        {"role": "assistant", "content": "120 ms"},
        {"role": "user", "content": "Passages:\nThe limit of PR is 200 ms.\n\nQuestion:\nWhat is the limit of PR?"},
    ]
    assert (temperature, most) == (0.3, 9)


def test_calls_and_tokens_are_counted_for_copies_too():
    lm = LocalLM(Rules())
    assert isinstance(lm, dspy.BaseLM)
    lm("hello is 5 ms")
    lm.copy(temperature=1.0)("hello is 5 ms")
    assert vars(lm.cost) == {"calls": 2, "read": 80, "reused": 20, "written": 12}
    with dspy.context(lm=lm), dspy.track_usage() as used:  # DSPy's own count agrees
        lm("hello is 5 ms")
    assert used.get_total_tokens()["local"]["prompt_tokens"] == 40


def test_the_limit_stops_what_comes_after_it():
    lm = LocalLM(Rules(), limit=90)
    with pytest.raises(BudgetSpent, match=r"local: 92 tokens used of 90"):
        score_each(make_program(VAGUE), QUESTIONS, exact, lm)
    assert lm.cost.calls == 2
    with pytest.raises(ParameterError, match="limit=0"):
        LocalLM(Rules(), limit=0)


def test_the_better_instruction_is_found():
    rules = Rules(shown_suffices=False)
    lm = LocalLM(rules)
    tuned = tune(
        make_program(VAGUE), QUESTIONS[:3], QUESTIONS[3:], exact, lm, instructions=["Guess.", CLEAR], candidates=1
    )
    assert tuned.program.signature.instructions == CLEAR
    assert [(trial.how, trial.instruction, trial.score) for trial in tuned.trials[:3]] == [
        ("instruction", VAGUE, 0.0),
        ("instruction", "Guess.", 0.0),
        ("instruction", CLEAR, 1.0),
    ]
    assert {trial.instruction for trial in tuned.trials[3:]} == {CLEAR}
    assert tuned.program.demos == []  # examples did no better, so the shorter prompt stays
    assert tuned.score == 1.0
    assert tuned.about["cost"] == vars(lm.cost)
    assert tuned.about["cost"]["calls"] == len(rules.asked)
    assert (tuned.about["train"], tuned.about["validation"]) == (3, 3)


def test_examples_are_found_where_they_help():
    tuned = tune(make_program(VAGUE), QUESTIONS[:3], QUESTIONS[3:], exact, LocalLM(Rules()), candidates=2, examples=2)
    assert tuned.trials[0].score == 0.0
    assert tuned.score == 1.0
    assert len(tuned.trials) == 1 + 2 + 2
    assert len(tuned.program.demos) == 2
    assert {demo.answer for demo in tuned.program.demos} <= {one.answer for one in QUESTIONS[:3]}
    assert any(trial.examples[1] for trial in tuned.trials)  # some the model wrote itself


def test_the_same_seed_finds_the_same_program():
    def found(seed):
        lm = LocalLM(Rules())
        return tune(make_program(VAGUE), QUESTIONS[:4], QUESTIONS[4:], exact, lm, candidates=3, examples=2, seed=seed)

    assert found(3).program.dump_state() == found(3).program.dump_state()
    assert found(3).trials == found(3).trials
    drawn = {tuple(demo.answer for demo in found(seed).program.demos) for seed in range(4)}
    assert len(drawn) > 1


def test_sets_are_checked():
    lm = LocalLM(Rules())
    with pytest.raises(ParameterError, match="0 training and 2 validation"):
        tune(make_program(VAGUE), [], QUESTIONS[:2], exact, lm)
    with pytest.raises(ParameterError, match="1 questions are in both sets"):
        tune(make_program(VAGUE), QUESTIONS[:2], QUESTIONS[1:], exact, lm)
    with pytest.raises(ParameterError, match="candidates=-1"):
        tune(make_program(VAGUE), QUESTIONS[:2], QUESTIONS[2:], exact, lm, candidates=-1)
    assert lm.cost.calls == 0


def test_an_empty_or_failed_answer_scores_nothing_and_is_named():
    def sometimes(messages, temperature, max_tokens):
        if "QRS" in messages[-1]["content"]:
            return Written("")
        if "PR" in messages[-1]["content"]:
            raise EcgChatError("the model fell over")
        return Rules()(messages, temperature, max_tokens)

    lm = LocalLM(sometimes)
    rows = evaluate(make_program(CLEAR), QUESTIONS, exact, lm)
    assert [score for *_, score in rows] == [0, 0, 1, 1, 1, 1]
    assert [answer for _, answer, _ in rows][:3] == ["", "", "460 ms"]
    for row in QUESTIONS[:2]:
        with pytest.raises(EcgChatError, match="local: no answer"):
            run_program(make_program(CLEAR), lm, dict(row.inputs()))


def test_the_adapter_takes_one_output_field():
    two = dspy.Signature("question -> answer, reason")
    for act in (
        lambda: PlainAdapter().parse(two, "x"),
        lambda: PlainAdapter().format_assistant_message_content(two, {"answer": "x"}),
    ):
        with pytest.raises(ParameterError, match="2 output fields"):
            act()
    one = dspy.Signature("long_name, other -> answer")
    assert PlainAdapter().parse(one, " yes \n") == {"answer": "yes"}
    assert PlainAdapter().format_user_message_content(one, {"long_name": "x", "other": ""}) == "Long name:\nx"


def test_dspys_caches_and_its_other_client_stay_away():
    tune(make_program(VAGUE), QUESTIONS[:3], QUESTIONS[3:], exact, LocalLM(Rules()), candidates=1)
    assert "cache" not in vars(dspy)  # it is made in the home folder when it is first asked for
    assert "litellm" not in sys.modules


# --- saving ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned():
    lm = LocalLM(Rules(), "rules")
    return tune(make_program(VAGUE), QUESTIONS[:3], QUESTIONS[3:], exact, lm, candidates=2, examples=2)


def test_a_saved_program_comes_back_and_answers_the_same(tuned, tmp_path):
    path = tmp_path / "tuned.json"
    save_tuned(tuned, path)
    assert [file.name for file in tmp_path.iterdir()] == ["tuned.json"]
    again = load_tuned(path)
    assert (again.trials, again.score, again.about) == (tuned.trials, tuned.score, tuned.about)
    first, second = Rules(), Rules()
    for one in QUESTIONS:
        inputs = dict(one.inputs())
        run_program(tuned.program, LocalLM(first), inputs)
        run_program(again.program, LocalLM(second), inputs)
    assert first.asked == second.asked
    save_tuned(again, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    with pytest.raises(EcgChatError, match="can't be written"):
        save_tuned(tuned, tmp_path / "none" / "tuned.json")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda c: c.update(format=2), "format 1"),
        (lambda c: c.update(instruction=3), "'instruction' is missing or of another type"),
        (lambda c: c.pop("examples"), "'examples' is missing"),
        (lambda c: c.update(inputs=["passages", "__import__('os')"]), "fields"),
        (lambda c: c.update(inputs=["answer"]), "fields"),
        (lambda c: c.update(inputs=[]), "fields"),
        (lambda c: c["examples"].append({"answer": "x"}), "an example without"),
        (lambda c: c["examples"].append(7), "an example without"),
        (lambda c: c["trials"].append({"how": "x"}), "KeyError"),
        (lambda c: c["trials"].append(None), "TypeError"),
    ],
)
def test_a_changed_file_is_refused(tuned, tmp_path, change, found):
    path = tmp_path / "tuned.json"
    save_tuned(tuned, path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(EcgChatError, match=f"tuned.json: not a tuned program.*{found}"):
        load_tuned(path)


@pytest.mark.parametrize("raw", [b"", b"[]", b"\xff\xfe", b"[" * 100_000, b" " * 2_000_001])
def test_anything_else_is_refused(tmp_path, raw):
    path = tmp_path / "tuned.json"
    path.write_bytes(raw)
    with pytest.raises(EcgChatError, match="not a tuned program"):
        load_tuned(path)
    with pytest.raises(EcgChatError, match="can't be read"):
        load_tuned(tmp_path / "missing.json")


# --- a server --------------------------------------------------------------------------------------------------------


@pytest.fixture
def server():
    """A server with `/v1/chat/completions` that answers by the rules; `server.busy` refuses that often first."""
    rules = Rules()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            http.requests.append((self.path, self.headers.get("Authorization"), body))
            http.busy -= 1
            done = rules(body["messages"], body["temperature"], body.get("max_tokens"))
            content = json.dumps(
                {
                    "id": "1",
                    "object": "chat.completion",
                    "model": body["model"],
                    "choices": [
                        {"index": 0, "message": {"role": "assistant", "content": done.text}, "finish_reason": "stop"}
                    ],
                    "usage": {"prompt_tokens": 40, "completion_tokens": done.written, "total_tokens": 40},
                }
            ).encode()
            self.send_response(503 if http.busy >= 0 else 200)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.requests, http.busy, http.url = [], 0, f"http://127.0.0.1:{http.server_port}/v1"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield http
    http.shutdown()
    http.server_close()


def test_the_same_search_runs_on_a_server(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-nobody")
    server.busy = 1
    lm = ServerLM("some-model", server.url, max_tokens=20)
    tuned = tune(make_program(VAGUE), QUESTIONS[:3], QUESTIONS[3:], exact, lm, candidates=1, examples=2)
    assert tuned.score == 1.0
    path, key, body = server.requests[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer sk-secret-of-nobody")
    assert body["messages"][0] == {"role": "system", "content": VAGUE}
    assert (body["model"], body["temperature"]) == ("some-model", 0.0)
    assert 20 in (body.get("max_tokens"), body.get("max_completion_tokens"))
    assert lm.cost.calls == len(server.requests) - 1  # one was refused
    assert lm.cost.read == 40 * lm.cost.calls
    assert "sk-secret" not in json.dumps([lm.dump_state(), tuned.about, tuned.program.dump_state()])
    assert "sk-secret" not in repr(lm.history)


def test_a_server_that_refuses_or_isnt_there(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server.busy = 100
    lm = ServerLM("some-model", server.url, retries=1)
    with pytest.raises(EcgChatError, match="some-model: no answer"):
        run_program(make_program(VAGUE), lm, dict(QUESTIONS[0].inputs()))
    assert len(server.requests) == 2
    assert lm.cost.calls == 0
    gone = ServerLM("some-model", "http://127.0.0.1:9/v1", retries=0)
    with pytest.raises(EcgChatError, match="some-model: no answer"):
        run_program(make_program(VAGUE), gone, dict(QUESTIONS[0].inputs()))
    with pytest.raises(ParameterError, match="expected http"):
        ServerLM("some-model", "file:///etc/passwd")


# --- a model on this machine -----------------------------------------------------------------------------------------


def tiny_writer(seed=0):
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = CHATML
    return LocalWriter(tiny_llama(), tokenizer, seed=seed)


def asked(text, system="You read 12-lead ECGs."):
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]


def test_what_is_kept_in_memory_changes_no_answer():
    prompts = [asked("What is the heart rate?"), asked("Is it regular?"), asked("Is it?"), asked("Is it?", "Other.")]
    kept = tiny_writer()
    for number, messages in enumerate([*prompts, prompts[0]]):
        one, fresh = kept(messages, 0.0, 12), tiny_writer()(messages, 0.0, 12)
        assert (one.text, one.read, one.written) == (fresh.text, fresh.read, fresh.written)
        assert fresh.reused == 0
        assert 0 < one.reused < one.read or number == 0
    assert kept(prompts[0], 0.0, 12).reused == kept(prompts[0], 0.0, 12).read - 1


def test_answering_several_at_a_time_changes_no_answer():
    contents = ["What is the heart rate, then, in words?", "Is it?", "Is it regular, or is it not?", "Yes", "I see"]
    together = tiny_writer()
    together.together = 3
    together.expect(contents)
    calls = []
    together.model.generate, plain = lambda *a, **k: calls.append(len(a[0])) or plain(*a, **k), together.model.generate
    for messages in (asked("Is it here?", "Other."), *map(asked, contents), asked("Yes"), asked("Is it?", "Other.")):
        one, fresh = together(messages, 0.0, 12), tiny_writer()(messages, 0.0, 12)
        assert (one.text, one.read, one.written) == (fresh.text, fresh.read, fresh.written)
    assert calls == [1, 3, 2, 2, 3]
    with pytest.raises(ParameterError, match="together=0"):
        LocalWriter(together.model, together.tokenizer, together=0)


def test_draws_are_reproducible_and_leave_torchs_own_alone():
    import torch

    first, second = tiny_writer(1), tiny_writer(1)
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    texts = [first(asked("Is it?"), 2.0, 8).text for _ in range(3)]
    assert texts == [second(asked("Is it?"), 2.0, 8).text for _ in range(3)]
    assert len(set(texts)) > 1
    assert torch.equal(torch.rand(2), expected)


def test_a_prompt_that_is_too_long_is_refused_and_the_next_one_answered():
    writer = tiny_writer()
    expected = writer(asked("Is it?"), 0.0, 8)
    with pytest.raises(EcgChatError, match=r"a prompt of \d+ tokens and an answer of 8: the model reads 512"):
        writer(asked("word " * 600), 0.0, 8)
    assert writer(asked("Is it?"), 0.0, 8).text == expected.text
    with pytest.raises(EcgChatError, match="no chat template"):
        LocalWriter(tiny_llama(), tiny_tokenizer())


def test_a_tiny_llama_can_be_tuned():
    lm = LocalLM(tiny_writer(), "tiny", max_tokens=6)
    tuned = tune(
        make_program("It is."),
        QUESTIONS[:2],
        QUESTIONS[2:4],
        exact,
        lm,
        instructions=["Yes."],
        candidates=1,
        examples=1,
    )
    assert tuned.score == 0.0  # it is random
    assert tuned.program.signature.instructions == "It is."
    assert lm.cost.reused > 0


@pytest.mark.slow
def test_smollm2_answers_from_a_passage_better_when_shown_how():
    from ecgchat_lib.chat.language_model import load_language_model

    loaded = load_language_model(quantized=False)
    lm = LocalLM(LocalWriter(loaded.model, loaded.tokenizer), loaded.name, max_tokens=16)
    tuned = tune(make_program(VAGUE), QUESTIONS[:3], QUESTIONS[3:], exact, lm, candidates=0, examples=2)
    assert tuned.trials[0].score < 1.0
    assert tuned.score > tuned.trials[0].score


# --- the questions of the knowledge base -----------------------------------------------------------------------------


def test_questions_become_examples_with_the_lines_that_state_the_facts():
    entries = load_entries()
    names = ("left-bundle-branch-block", "hyperkalemia", "sinus-tachycardia")
    retriever = make_retriever("bm25", {name: entries[name] for name in names})
    wide = Question("q-a", "How wide is the QRS in left bundle branch block?", names[:1], (("120 ms",),), "single")
    fast = Question("q-b", "What is the rate of sinus tachycardia?", names[2:], (("purple",),), "single")
    first, second = knowledge_examples([wide, fast], retriever, top=2, lines=6)
    assert set(first.inputs().keys()) == {"passages", "question"}
    shown = first.passages.splitlines()
    assert sum(line.startswith("- ") for line in shown) == 6
    assert {line for line in shown if not line.startswith("- ")} <= {entries[name].title for name in names}
    assert f"- {first.answer}" in shown
    assert "120 ms" in first.answer
    assert states_the_facts(first, dspy.Prediction(answer="At least 0.12 s.")) == 1.0
    assert states_the_facts(first, dspy.Prediction(answer="At least 20 ms.")) == 0.0
    assert second.answer == ""  # no line says so


def test_questions_become_examples_with_the_findings_that_are_offered():
    entries = load_entries()
    names = ("left-bundle-branch-block", "hyperkalemia", "sinus-tachycardia")
    retriever = make_retriever("bm25", {name: entries[name] for name in names})
    asked = [
        Question("q-a", "Is the rate of sinus tachycardia above 100 per minute?", names[2:], (("x",),), "single"),
        Question("q-b", "Potassium?", names[:1], (("x",),), "single"),  # what is gold isn't found
    ]
    (made,) = finding_examples(asked, retriever, top=2)
    offered = made.findings.splitlines()
    assert (made.id, made.answer, made.right, made.first) == (
        "q-a",
        "Sinus tachycardia",
        ["Sinus tachycardia"],
        offered[-1],
    )
    assert offered == sorted(offered)
    assert len(offered) == 2
    assert set(made.inputs().keys()) == {"findings", "question"}


def test_the_first_finding_that_an_answer_names_counts():
    example = dspy.Example(findings="Long QT\nLong QT interval\nHyperkalemia", right=["Long QT interval"])
    for answer, score in {
        "long qt interval.": 1.0,
        "It is Long QT interval, not hyperkalemia": 1.0,
        "Long QT": 0.0,
        "Hyperkalemia or long QT interval": 0.0,
        "potassium": 0.0,
        "": 0.0,
    }.items():
        assert names_the_finding(example, dspy.Prediction(answer=answer)) == score


# --- the extra isn't installed ---------------------------------------------------------------------------------------


def test_without_dspy_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dspy", None)
    spec = importlib.util.spec_from_file_location("tuning_without_dspy", tuning.__file__)
    with pytest.raises(MissingPartError, match=r"dspy: .*pip install 'ecgchat\[prompts\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_the_rest_of_the_room_doesnt_need_dspy():
    code = "import sys, ecgchat_lib.cli, ecgchat_lib.knowledge; sys.exit('dspy' in sys.modules)"
    root = Path(tuning.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_the_classes_are_lms_of_dspy():
    assert issubclass(CountedLM, dspy.LM)
