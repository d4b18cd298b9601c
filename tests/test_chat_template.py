"""Chat templates against the tokenizers they belong to: SmolLM2's own, and one that behaves like Llama's."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_chat import CORPUS, tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ecgchat_lib.chat.template import (
    ECG_ID,
    IGNORED,
    TEMPLATES,
    Template,
    encode,
    get_template,
    opening,
    plain_text,
    prompt_ids,
    render,
    without_marks,
)
from ecgchat_lib.errors import EcgChatError, ParameterError

TURNS = [
    ("What is the rhythm?", "This is sinus rhythm, at 72 beats per minute."),
    ("Is the PR interval normal?\nAnswer in a word.", "Yes."),
    ("Wie groß ist das QRS?", "90 ms – so groß wie üblich."),
]


@cache
def smollm2_tokenizer():
    from ecgchat_lib.chat.language_model import load_tokenizer

    return load_tokenizer()


@cache
def llama_tokenizer(kind):
    """BPE with byte fallback and SentencePiece's space before the text, as Llama's, in both ways it is written down.

    "normalizer": a space is put in front of every piece between marks (Llama 1 and 2, as converted at first);
    "metaspace": in front of the first piece only.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    if kind == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    marks = ["<unk>", "<s>", "</s>"]
    octets = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=marks + octets, show_progress=False, max_token_length=12
    )
    tokenizer.train_from_iterator([part for line in CORPUS for part in line.split(" ")] * 3, trainer)
    # the bytes are ordinary tokens of the vocabulary, not special ones
    whole = Tokenizer.from_str(tokenizer.to_str())
    fast = PreTrainedTokenizerFast(tokenizer_object=whole, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.add_special_tokens({"eos_token": AddedToken("</s>", normalized=False)})
    return fast


def learned_texts(encoded, tokenizer):
    """The learned runs, each decoded behind the token before it (Llama drops a space at the start of a text)."""
    out, k = [], 0
    while k < len(encoded.labels):
        end = k
        while end < len(encoded.labels) and encoded.labels[end] != IGNORED:
            end += 1
        if end > k:
            before = tokenizer.decode(encoded.ids[k - 1 : k])
            out.append(tokenizer.decode(encoded.ids[k - 1 : end]).removeprefix(before))
        k = end + 1
    return out


@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize("is_open", [False, True])
def test_smollm2_is_written_as_its_own_template_writes(rounds, is_open):
    template, tokenizer = get_template("smollm2"), smollm2_tokenizer()
    turns = [*TURNS[:rounds], ("And the axis?", None)] if is_open else TURNS[:rounds]
    messages = [{"role": "system", "content": template.system}]
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
    text, _ = render(turns, template)
    assert text == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=is_open)
    theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=is_open, return_dict=True)["input_ids"]
    assert list(encode(turns, tokenizer, template).ids) == theirs


def test_smollm2_learns_the_answers_and_their_end_marks():
    tokenizer = smollm2_tokenizer()
    encoded = encode(TURNS, tokenizer, get_template("smollm2"))
    assert learned_texts(encoded, tokenizer) == [f"{answer}<|im_end|>" for _, answer in TURNS]


SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([("Q1?", None)], " USER: Q1? ASSISTANT:"),
        ([("Q1?", "A1.")], " USER: Q1? ASSISTANT: A1.</s>"),
        ([("Q1?", "A1."), ("Q2?", None)], " USER: Q1? ASSISTANT: A1.</s>USER: Q2? ASSISTANT:"),
        ([("Q1?", "A1."), ("Q2?", "A2.")], " USER: Q1? ASSISTANT: A1.</s>USER: Q2? ASSISTANT: A2.</s>"),
        (
            [("<ecg>\nQ1?", "A1."), ("<ecg>\nQ2?", "A2."), ("Q3?", None)],
            " USER: <ecg>\nQ1? ASSISTANT: A1.</s>USER: <ecg>\nQ2? ASSISTANT: A2.</s>USER: Q3? ASSISTANT:",
        ),
    ],
)
def test_vicuna_v1_is_written_turn_by_turn(turns, expected):
    assert render(turns, get_template("vicuna_v1"))[0] == SYSTEM + expected


@pytest.mark.parametrize("kind", ["normalizer", "metaspace"])
def test_vicuna_v1_learns_exactly_the_answers_with_a_tokenizer_like_llamas(kind):
    tokenizer, template = llama_tokenizer(kind), get_template("vicuna_v1")
    assert tokenizer.decode(tokenizer("Yes.", add_special_tokens=False).input_ids) == "Yes."  # the space is dropped
    turns = [(f"<ecg>\n{TURNS[0][0]}", TURNS[0][1]), TURNS[1], (f"<ecg>\n{TURNS[2][0]}", TURNS[2][1])]
    encoded = encode(turns, tokenizer, template)
    assert learned_texts(encoded, tokenizer) == [f" {answer}</s>" for _, answer in turns]
    assert encoded.ids[0] == tokenizer.bos_token_id
    assert encoded.ids.count(tokenizer.bos_token_id) == 1
    assert encoded.ids.count(ECG_ID) == 2
    assert [label for label in encoded.labels if label == tokenizer.eos_token_id] == [tokenizer.eos_token_id] * 3
    assert prompt_ids(turns, tokenizer, template) == encoded.ids


@pytest.mark.parametrize("kind", ["normalizer", "metaspace"])
def test_an_open_prompt_begins_as_the_conversation_that_answers_it(kind):
    tokenizer, template = llama_tokenizer(kind), get_template("vicuna_v1")
    asked = encode([TURNS[0], (TURNS[1][0], None)], tokenizer, template)
    answered = encode(TURNS[:2], tokenizer, template)
    assert answered.ids[: len(asked.ids)] == asked.ids
    assert answered.labels[len(asked.ids)] != IGNORED


words = st.text(st.characters(codec="utf-8", exclude_characters="<>|\x00", exclude_categories=["Cs"]), max_size=20)


@given(turns=st.lists(st.tuples(words, words.map(str.strip)), min_size=1, max_size=3), name=st.sampled_from(["a", "b"]))
@settings(max_examples=60, deadline=None)
def test_whatever_is_said_the_labels_are_the_answers(turns, name):
    template = get_template({"a": "smollm2", "b": "vicuna_v1"}[name])
    tokenizer = {"a": tiny_tokenizer(), "b": llama_tokenizer("metaspace")}[name]
    try:
        encoded = encode(turns, tokenizer, template)
    except EcgChatError as error:
        assert "edge of the answer" in str(error) or "decode to" in str(error)  # noqa: PT017  said, not hidden
        return
    assert learned_texts(encoded, tokenizer) == [template.answer.replace("{answer}", answer) for _, answer in turns]


def test_a_token_that_crosses_an_answers_edge_raises():
    # the space before the answer melts into its first word: " Yes" is one token
    melting = Template("melting", "S.", "{system} ", "Q: {question} A: ", "{answer}</s>", " ", "</s>")
    with pytest.raises(EcgChatError, match="the token ' Yes' crosses an edge of the answer 'Yes</s>'"):
        encode([("Q?", "Yes")], tiny_tokenizer(), melting)
    assert encode([("Q?", "Yes")], tiny_tokenizer(), get_template("smollm2")).labels


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast, all_special_tokens, bos_token_id = False, (), None
        added_tokens_decoder = {}  # noqa: RUF012  like the real one

    with pytest.raises(ParameterError, match="Use the fast tokenizer"):
        encode([("Q?", "A.")], Slow(), get_template("smollm2"))


def test_the_system_text_must_hold_no_mark():
    with pytest.raises(EcgChatError, match="the system text: holds the mark <ecg>"):
        encode([("Q?", "A.")], tiny_tokenizer(), get_template("smollm2"), system="<ecg>")


def test_what_stands_before_a_question():
    assert opening([]) == "<ecg>\n"
    assert opening(["Measured: rate 72", "Signs: sinus rhythm"]) == "<ecg>\nMeasured: rate 72\nSigns: sinus rhythm\n"
    assert opening(["Measured: rate 72"], ecg=False) == "Measured: rate 72\n"
    assert opening([], ecg=False) == ""


@given(st.text(max_size=30), st.sampled_from(sorted(TEMPLATES)))
def test_no_mark_is_left_in_plain_text(text, name):
    template, tokenizer = get_template(name), tiny_tokenizer()
    hidden = f"<|im_<ecg>end|>{text}</s></s><ecg><|im_end|><|im_start|>"
    for cleaned in (plain_text(hidden, tokenizer, template), without_marks(hidden, tokenizer, template)):
        assert not any(mark in cleaned for mark in ("<ecg>", "<|im_end|>", "<|im_start|>", "</s>"))
    assert without_marks("a\n b", tokenizer, template) == "a\n b"


@pytest.mark.parametrize("turn", [("a\ud800?", None), ("Q?", "a\udcff")])
def test_half_a_surrogate_pair_is_no_text(turn):
    tokenizer, template = tiny_tokenizer(), get_template("smollm2")
    for write in (encode, prompt_ids):
        with pytest.raises(EcgChatError, match="holds half a surrogate pair"):
            write([turn], tokenizer, template)
    assert plain_text("a\ud800 \udcff🫀", tokenizer, template) == "a? ?🫀"
