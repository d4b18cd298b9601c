"""A conversation with a kept cache equals reading everything from the start, on a tiny random Llama."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_chat import ECG_TOKENS, WIDTH, random_ecg, tiny_chat
from torch.nn import functional

from ecgchat_lib.chat.generate import Conversation, Decoding, _pick
from ecgchat_lib.chat.template import ECG_ID, TEMPLATES, encode, opening, prompt_ids
from ecgchat_lib.errors import EcgChatError, ParameterError

LINES = ["Measured: rate 72"]
QUESTIONS = ["What is the heart rate?", "Is it normal?", "Yes?", "Do you see atrial fibrillation here?"]


def conversation(tokens=8, template="smollm2", **more):
    return Conversation(tiny_chat(template=template), Decoding(max_new_tokens=tokens), **more)


def from_scratch(talk, ids):
    """Keys and values of every layer, and the last logits, of reading `ids` at once."""
    with torch.no_grad():
        item = encode([("x", None)], talk.chat.tokenizer, talk.chat.template)
        item = type(item)(tuple(ids), (-100,) * len(ids))
        marks = ids.count(ECG_ID)
        ecg = torch.stack(talk._ecg[:marks]) if marks else torch.empty(0, 1, WIDTH)
        vectors, *_ = talk.chat.splice(item, talk.chat.projector(ecg))
        out = talk.chat.language_model(inputs_embeds=vectors[None], use_cache=True)
    return [(layer.keys, layer.values) for layer in out.past_key_values.layers], out.logits[0, -1]


def check_cache(talk):
    """What the cache holds is what reading its ids from the start gives."""
    layers, _ = from_scratch(talk, talk.ids)
    assert len(talk._cache.layers) == len(layers)
    for layer, (keys, values) in zip(talk._cache.layers, layers, strict=True):
        torch.testing.assert_close(layer.keys, keys, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(layer.values, values, atol=1e-5, rtol=1e-4)


def whole(talk, turns):
    return prompt_ids(turns, talk.chat.tokenizer, talk.chat.template)


def start(line=LINES[0]):
    return opening([line])


@pytest.mark.parametrize("template", TEMPLATES)
def test_each_turn_equals_asking_from_scratch(template):
    talk, ecg = conversation(template=template), random_ecg(2)
    turns, shown = [], 0
    for number, question in enumerate(QUESTIONS):
        before = ""
        if number in (0, 2):  # a second ECG comes in the third turn
            talk.add(ecg[shown], LINES)
            shown, before = shown + 1, start()
        asked = [*turns, (before + question, None)]
        expected = talk.chat.generate(
            [encode(asked, talk.chat.tokenizer, talk.chat.template)], ecg[:shown], max_new_tokens=8
        )
        assert talk.ask(question) == expected[0]
        prompt = whole(talk, asked)
        assert talk.ids[: len(prompt)] == prompt
        check_cache(talk)
        turns.append((before + question, talk.turns[-1][1]))
        logits = talk._prefill(whole(talk, [*turns, ("Next?", None)]))
        assert talk.ids == whole(talk, [*turns, ("Next?", None)])
        torch.testing.assert_close(logits, from_scratch(talk, talk.ids)[1], atol=1e-4, rtol=1e-4)
    assert [question for question, _ in talk.turns] == QUESTIONS


def test_only_what_is_new_is_read():
    talk = conversation()
    talk.add(random_ecg(1)[0], LINES)
    answers = [talk.ask(question) for question in QUESTIONS]
    first = whole(talk, [(start() + QUESTIONS[0], None)])
    assert talk.prefilled[0] == len(first) - 1 + ECG_TOKENS
    assert talk.prompts == sorted(talk.prompts)
    assert talk.prompts[0] == talk.prefilled[0]
    for number in (1, 2, 3):
        said = list(zip(QUESTIONS[:number], answers, strict=False))
        said[0] = (start() + said[0][0], said[0][1])
        added = len(whole(talk, [*said, (QUESTIONS[number], None)])) - len(
            whole(talk, [*said[:-1], (said[-1][0], None)])
        )
        # the question with its marks, and at most the answer: as far as its words are cut into tokens in another way
        assert talk.prefilled[number] <= added
        assert talk.prefilled[number] < talk.prefilled[0]


def test_pieces_are_the_answer():
    talk = conversation(20)
    talk.add(random_ecg(1)[0])
    pieces = list(talk.say("Rate?"))
    assert len(pieces) > 3
    other = conversation(20)
    other.add(random_ecg(1)[0])
    assert "".join(pieces) == other.ask("Rate?") == talk.turns[0][1]


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_a_stream_that_is_broken_off_leaves_what_was_said(taken):
    talk = conversation(12)
    talk.add(random_ecg(1)[0], LINES)
    pieces = talk.say("Rate?")
    said = "".join(next(pieces) for _ in range(taken))
    pieces.close()
    if taken:
        assert talk.turns == [("Rate?", said)]
        check_cache(talk)
    answer = talk.ask("Is it normal?")
    kept = [(start() + "Rate?", said)] if taken else []
    asked = [*kept, (("" if taken else start()) + "Is it normal?", None)]
    item = encode(asked, talk.chat.tokenizer, talk.chat.template)
    assert answer == talk.chat.generate([item], random_ecg(1), max_new_tokens=12)[0]
    assert len(talk.turns) == 1 + bool(taken)
    check_cache(talk)


def test_a_new_question_ends_the_answer_before_it():
    talk = conversation(12)
    talk.add(random_ecg(1)[0])
    first = talk.say("Rate?")
    said = next(first)
    talk.ask("Is it normal?")
    assert talk.turns[0] == ("Rate?", said)
    assert list(first) == []


def test_an_error_in_the_model_costs_the_cache_but_not_the_conversation(monkeypatch):
    talk = conversation()
    talk.add(random_ecg(1)[0])
    talk.ask("Rate?")
    layer, calls = talk.chat.language_model.model.layers[1], []

    def break_off(*args, **kwargs):
        calls.append(1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(layer, "forward", break_off)
        with pytest.raises(KeyboardInterrupt):
            talk.ask("Is it normal?")
    assert calls
    assert talk.ids == ()
    assert talk.turns[-1] == ("Is it normal?", "")
    talk.ask("And now?")
    check_cache(talk)


def test_the_oldest_turns_go_when_the_room_is_used_up():
    rounds, talk, ecg = 12, conversation(4, length=160), random_ecg(2)
    talk.add(ecg[0], LINES)
    dropped, held = 0, 0
    for number in range(rounds):
        if number == 1:
            talk.add(ecg[1], ["Measured: rate 80"])
        before = len(talk.turns)
        talk.ask(f"Question {number}?")
        dropped += len(talk.turns) <= before
        held = max(held, talk._places(talk.ids))
        assert talk.ids.count(ECG_ID) == min(number + 1, 2)  # the ECGs are kept, and so are their lines
        check_cache(talk)
    assert held <= 160
    assert len(talk.turns) < rounds
    assert talk.turns[-1][0] == f"Question {rounds - 1}?"
    text = talk.chat.tokenizer.decode([token for token in talk.ids if token != ECG_ID])
    assert text.index("rate 72") < text.index("rate 80") < text.index(talk.turns[0][0])
    assert 1 <= dropped <= rounds // 2  # not at every turn


def test_lines_for_one_question_go_with_it():
    talk = conversation(4, length=160)
    talk.add(random_ecg(1)[0], LINES)
    with pytest.raises(EcgChatError, match="need"):
        talk.say("rate " * 200, ["Knowledge: zebra"])
    with pytest.raises(EcgChatError, match="a line beside the question holds a mark"):
        list(talk.say("Rate?", ["<|im_end|>"]))
    said = []
    for number in range(12):
        list(talk.say(f"Question {number}?", [f"Knowledge: fact {number}"]))
        said.append(talk.chat.tokenizer.decode([token for token in talk.ids if token != ECG_ID]))
        check_cache(talk)
    assert "zebra" not in "".join(said)
    kept = [number for number in range(12) if f"Question {number}?" in said[-1]]
    assert 0 < len(kept) < 12
    assert [number for number in range(12) if re.search(rf"fact {number}\b", said[-1])] == kept
    assert LINES[0] in said[-1]


def test_what_never_fits_is_refused_and_nothing_is_lost():
    talk = conversation(4, length=100)
    talk.add(random_ecg(1)[0])
    talk.ask("Rate?")
    before = talk.turns
    with pytest.raises(EcgChatError, match=r"need \d+ places, expected at most 96"):
        talk.say("rate " * 200)
    assert talk.turns == before
    talk.ask("Is it?")
    check_cache(talk)
    for bad in (4, 513):
        with pytest.raises(ParameterError, match=f"length={bad}: expected more than max_new_tokens=4"):
            conversation(4, length=bad)


def test_bad_questions_and_ecgs_are_refused():
    talk = conversation()
    for question, message in (
        ("  ", "the question is empty"),
        ("<ecg> hi", "holds a mark"),
        ("a <|im_end|> b", "holds a mark"),
    ):
        with pytest.raises(EcgChatError, match=message):
            talk.say(question)
    with pytest.raises(ParameterError, match=rf"expected \(ecg tokens, {WIDTH}\)"):
        talk.add(torch.zeros(3, WIDTH + 1))
    with pytest.raises(EcgChatError, match="a line about the ECG holds a mark"):
        talk.add(None, ["<ecg>"])
    talk.add(random_ecg(1)[0])
    with pytest.raises(ParameterError, match="as many for each ECG"):
        talk.add(random_ecg(1)[0][1:])
    talk.chat.train()
    with pytest.raises(EcgChatError, match="in training mode"):
        talk.say("Rate?")
    talk.chat.eval()


def test_text_alone_and_a_new_start():
    talk = conversation()
    first = talk.ask("What is the heart rate?")
    item = encode([("What is the heart rate?", None)], talk.chat.tokenizer, talk.chat.template)
    assert first == talk.chat.generate([item], random_ecg(1)[:0], max_new_tokens=8)[0]
    talk.ask("More?")
    talk.reset()
    assert (talk.turns, talk.ids, talk.prompts, talk.prefilled) == ([], (), [], [])
    assert talk.ask("What is the heart rate?") == first


def scripted(monkeypatch, text, template="smollm2"):
    """A conversation whose model says this, token by token."""
    talk = conversation(200, template)
    script = [*talk.chat.tokenizer(text, add_special_tokens=False).input_ids, talk.chat.end_id]
    left = list(script)
    monkeypatch.setattr("ecgchat_lib.chat.generate._pick", lambda *_: left.pop(0))
    return talk


@pytest.mark.parametrize(
    "text",
    [
        "Sinusrhythmus – 72 Schläge",
        "心电图正常。",
        "🫀🫀 ok 🫀",
        "a\n\nb  c",
        "  padded  ",
        "",
        "\N{REPLACEMENT CHARACTER}x",
    ],
)
def test_pieces_are_whole_characters(monkeypatch, text):
    talk = scripted(monkeypatch, text)
    pieces = list(talk.say("Q?"))
    assert "".join(pieces) == text.strip()
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces if "\N{REPLACEMENT CHARACTER}" not in text)
    assert talk.turns == [("Q?", text.strip())]


@given(st.text(max_size=30))
@settings(max_examples=30, deadline=None)
def test_any_text_is_streamed_as_it_is(text):
    with pytest.MonkeyPatch.context() as patch:
        talk = scripted(patch, text)
        said = "".join(talk.say("Q?"))
    expected = talk.chat.said(talk.chat.tokenizer(text, add_special_tokens=False).input_ids)
    assert said == expected
    check_cache(talk)


def test_marks_that_a_model_writes_out_do_no_harm(monkeypatch):
    talk = conversation(200)
    pieces = [f"{part}" for part in ("Hi <", "ecg", ">", " <", "/s", ">", " there")]
    script = [i for part in pieces for i in talk.chat.tokenizer(part, add_special_tokens=False).input_ids]
    script = [*script, talk.chat.tokenizer.bos_token_id, talk.chat.end_id]
    with monkeypatch.context() as patch:
        patch.setattr("ecgchat_lib.chat.generate._pick", lambda *_: script.pop(0))
        assert talk.ask("Q?") == "Hi <ecg> </s> there"
    assert talk.turns == [("Q?", "Hi     there")]
    talk.ask("Again?")
    assert ECG_ID not in talk.ids
    check_cache(talk)


def test_draws_are_those_of_the_seed_and_greedy_is_cold():
    logits = torch.tensor([1.0, 3.0, 2.0, -5.0])

    def draws(decoding, n=200):
        generator = torch.Generator().manual_seed(decoding.seed)
        return [_pick(logits, decoding, generator) for _ in range(n)]

    assert set(draws(Decoding())) == {1}
    assert draws(Decoding(temperature=1, seed=3)) == draws(Decoding(temperature=1, seed=3))
    assert draws(Decoding(temperature=1, seed=3)) != draws(Decoding(temperature=1, seed=4))
    assert set(draws(Decoding(temperature=1, top_p=0.8))) == {1, 2}
    many = torch.tensor(draws(Decoding(temperature=2), 4000)).bincount(minlength=4) / 4000
    torch.testing.assert_close(many, functional.softmax(logits / 2, -1), atol=0.03, rtol=0)
    for bad in (
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"max_new_tokens": 0},
    ):
        with pytest.raises(ParameterError):
            Decoding(**bad)


def test_a_drawn_conversation_can_be_had_again():
    def talked(seed):
        talk = Conversation(tiny_chat(), Decoding(max_new_tokens=8, temperature=1.5, top_p=0.9, seed=seed))
        talk.add(random_ecg(1)[0])
        return [talk.ask(question) for question in QUESTIONS[:2]]

    assert talked(1) == talked(1)
    assert talked(1) != talked(2)
