"""Chat templates: how a conversation becomes tokens, where the ECG goes, and which tokens the model has to learn.

Labels come from the answers' places in the text, never from counting tokens; a token that crosses an answer's edge is
an error, and the labels are decoded again to prove that exactly the answers are left unmasked. Taught in: 10 §5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from types import MappingProxyType
from typing import Any

from ecgchat_lib.errors import EcgChatError, ParameterError

ECG_MARK = "<ecg>"
ECG_ID = -200  # stands for all ECG tokens in a list of token ids; no vocabulary has it
IGNORED = -100  # the label that cross entropy leaves out


@dataclass(frozen=True)
class Template:
    """What stands around the turns of a conversation.

    Attributes:
        name: its name.
        system: the default system text.
        begin: text of the start, with {system}.
        ask: text of a question, with {question}, up to where the answer starts.
        answer: text of an answer, with {answer}; these tokens are learned, the end mark too.
        between: text after an answer.
        end: the token that ends an answer.
        bos: whether the tokenizer's first token (BOS) stands in front.
    """

    name: str
    system: str
    begin: str
    ask: str
    answer: str
    between: str
    end: str
    bos: bool = False


TEMPLATES: Mapping[str, Template] = MappingProxyType(
    {
        template.name: template
        for template in (
            Template(
                name="smollm2",
                system="You read 12-lead ECGs.",
                begin="<|im_start|>system\n{system}<|im_end|>\n",
                ask="<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
                answer="{answer}<|im_end|>",
                between="\n",
                end="<|im_end|>",
            ),
            Template(
                name="vicuna_v1",
                system=(
                    "A chat between a curious user and an artificial intelligence assistant. "
                    "The assistant gives helpful, detailed, and polite answers to the user's questions."
                ),
                begin="{system} ",
                ask="USER: {question} ASSISTANT:",
                answer=" {answer}</s>",
                between="",
                end="</s>",
                bos=True,
            ),
        )
    }
)


@dataclass(frozen=True)
class Encoded:
    """A conversation as token ids.

    Attributes:
        ids: (tokens,) token ids, with `ECG_ID` wherever the tokens of an ECG go.
        labels: (tokens,) the id to be predicted at this place, or `IGNORED`.
        branches: (tokens,) which branch a token belongs to: 0 is the trunk that all see, k > 0 sees the trunk and
            itself only. Empty: one plain sequence.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    branches: tuple[int, ...] = field(default=())


def get_template(name: str) -> Template:
    """Return a template by name.

    Raises:
        ParameterError: there is none of that name.
    """
    if name not in TEMPLATES:
        raise ParameterError(f"unknown chat template {name!r}; expected one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def render(
    turns: Sequence[tuple[str, str | None]], template: Template, *, system: str | None = None
) -> tuple[str, list[tuple[int, int]]]:
    """Write a conversation as one text and say where its answers stand.

    Args:
        turns: (question, answer) pairs; the last answer may be None, which leaves the text open for it.
        template: the chat template.
        system: another system text than the template's.

    Returns:
        The text, and (start, end) of each answer in it, in characters, the end mark included.

    Raises:
        EcgChatError: an answer before the last one is missing.
    """
    text = template.begin.format(system=template.system if system is None else system)
    spans = []
    for number, (question, answer) in enumerate(turns):
        text += template.ask.replace("{question}", question)
        if answer is None:
            if number != len(turns) - 1:
                raise EcgChatError(f"turn {number} has no answer, but turns follow it")
            break
        written = template.answer.replace("{answer}", answer)
        spans.append((len(text), len(text) + len(written)))
        text += written + template.between
    return text, spans


def opening(lines: Sequence[str], *, ecg: bool = True) -> str:
    """Return what stands before a question: the mark of its ECG, and what is said about the ECG in words.

    Args:
        lines: such as the measured line; each gets a line of its own.
        ecg: whether ECG tokens are given.
    """
    return "".join(f"{line}\n" for line in ([ECG_MARK] if ecg else []) + list(lines))


def encode(
    turns: Sequence[tuple[str, str | None]], tokenizer: Any, template: Template, *, system: str | None = None
) -> Encoded:
    """Turn a conversation into token ids and labels.

    Args:
        turns: (question, answer) pairs; a question holds `<ecg>` as often as ECGs belong to it, which may be never.
        tokenizer: a fast tokenizer (it knows each token's place in the text).
        template: the chat template.
        system: another system text than the template's.

    Raises:
        EcgChatError: a turn holds a mark of the template, an answer holds `<ecg>`, a token crosses an answer's edge,
            or the tokens that would be learned don't decode to exactly the answers.
        ParameterError: the tokenizer is a slow one.
    """
    _check_turns(turns, tokenizer, template, system)
    text, spans = render(turns, template, system=system)
    coded = _tokens(text, tokenizer, template)
    labels = tuple(_label(token, low, high, spans, text) for token, low, high in coded)
    check_labels(labels, [text[low:high] for low, high in spans], tokenizer)
    return Encoded(tuple(token for token, *_ in coded), labels)


def prompt_ids(
    turns: Sequence[tuple[str, str | None]], tokenizer: Any, template: Template, *, system: str | None = None
) -> tuple[int, ...]:
    """Return the token ids of a conversation as `encode` does, but without labels.

    For answers that a model wrote and that nobody will train on: nothing about them has to be proven.

    Raises:
        EcgChatError: a turn holds a mark of the template, or an answer `<ecg>`.
    """
    _check_turns(turns, tokenizer, template, system)
    return tuple(token for token, *_ in _tokens(render(turns, template, system=system)[0], tokenizer, template))


def _tokens(text: str, tokenizer: Any, template: Template) -> list[tuple[int, int, int]]:
    """Return each token with where it begins and ends in the text; the pieces between ECGs are cut up one by one."""
    if not tokenizer.is_fast:
        raise ParameterError(
            f"{type(tokenizer).__name__} doesn't say where its tokens stand in the text. "
            "Use the fast tokenizer (AutoTokenizer's default) of this model"
        )
    out: list[tuple[int, int, int]] = []
    if template.bos and tokenizer.bos_token_id is not None:
        out.append((tokenizer.bos_token_id, 0, 0))
    start = 0
    for number, piece in enumerate(text.split(ECG_MARK)):
        if number:
            out.append((ECG_ID, start, start + len(ECG_MARK)))
            start += len(ECG_MARK)
        coded = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
        places = coded["offset_mapping"]
        out += [(i, start + low, start + high) for i, (low, high) in zip(coded["input_ids"], places, strict=True)]
        start += len(piece)
    return out


def _label(token: int, low: int, high: int, spans: Sequence[tuple[int, int]], text: str) -> int:
    """Return the token if it stands inside an answer, `IGNORED` if outside; one that is in both worlds raises."""
    for start, end in spans:
        if start <= low < end and high <= end:
            return token
        if low < end and start < high:
            raise EcgChatError(
                f"the token {text[low:high]!r} crosses an edge of the answer {text[start:end]!r}. "
                "An answer must not begin or end so that it melts into the template; strip it, "
                "and use the template that belongs to this tokenizer"
            )
    return IGNORED


def encode_conversation(conversation: Mapping[str, Any], tokenizer: Any, template: Template) -> Encoded:
    """Turn a conversation in the original's JSON format into token ids and labels.

    Raises:
        EcgChatError: as `encode`; the message names the conversation.
    """
    lines = conversation["conversations"]
    turns = [(q["value"], a["value"]) for q, a in zip(lines[::2], lines[1::2], strict=True)]
    try:
        return encode(turns, tokenizer, template)
    except EcgChatError as error:
        raise EcgChatError(f"conversation {conversation.get('id', '?')}: {error}") from error


def check_labels(labels: Sequence[int], answers: Sequence[str], tokenizer: Any) -> None:
    """Raise unless the unmasked labels decode to exactly the answers, run by run.

    Raises:
        EcgChatError: with the first answer that differs, what was found and what was expected.
    """
    runs: list[list[int]] = []
    previous = IGNORED
    for label in labels:
        if label != IGNORED:
            if previous == IGNORED:
                runs.append([])
            runs[-1].append(label)
        previous = label
    found = [_decode_inside(run, tokenizer) for run in runs]
    for number in range(max(len(found), len(answers))):
        got = found[number] if number < len(found) else "nothing"
        wanted = answers[number] if number < len(answers) else "nothing"
        if got != wanted:
            raise EcgChatError(
                f"answer {number}: the labels decode to {got!r}, expected {wanted!r}. "
                "Tokens cross an answer's edge; use the template that belongs to this tokenizer"
            )


def _decode_inside(ids: Sequence[int], tokenizer: Any) -> str:
    """Decode tokens that stand inside a text. Llama's tokenizers drop the space at the start of what they decode."""
    before = tokenizer("a", add_special_tokens=False)["input_ids"]
    text, start = (
        str(tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        for part in ([*before, *ids], before)
    )
    return text.removeprefix(start)


def pack(conversations: Sequence[Encoded]) -> Encoded:
    """Pack conversations that begin alike (same ECG, same measured values) into one tree.

    What they share becomes the trunk, each rest a branch that sees only the trunk and itself, at the positions it had
    alone. So the answers' probabilities are those of separate sequences, but the 101 ECG tokens are computed once.
    The ids say where an ECG stands and not which: conversations about other ECGs must not be packed together.

    Args:
        conversations: plain encoded conversations about the same ECGs, in the same order.

    Raises:
        EcgChatError: there is none, or they share nothing.
    """
    if not conversations or any(item.branches for item in conversations):
        raise EcgChatError("pack: expected one or more plain conversations")
    columns = zip(*(item.ids for item in conversations), strict=False)
    shared = sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, columns))
    first = [next((k for k, label in enumerate(c.labels) if label != IGNORED), len(c.labels)) for c in conversations]
    # The last trunk token must not predict anything: it has one label, but many first branch tokens follow it.
    shared = min(shared, *(place - 1 for place in first), *(len(item.ids) - 1 for item in conversations))
    if shared < 1:
        raise EcgChatError("pack: these conversations begin differently. Pack only conversations about one ECG")
    ids, labels, branches = list(conversations[0].ids[:shared]), [IGNORED] * shared, [0] * shared
    for number, item in enumerate(conversations, start=1):
        ids += item.ids[shared:]
        labels += item.labels[shared:]
        branches += [number] * (len(item.ids) - shared)
    return Encoded(tuple(ids), tuple(labels), tuple(branches))


def without_marks(text: str, tokenizer: Any, template: Template) -> str:
    """Return a text without the marks that would end a turn or stand for an ECG; a space stands in their place.

    Halves of surrogate pairs, which no tokenizer takes (JSON and undecodable input can hold them), become "?".
    """
    text = text.encode("utf-8", "replace").decode("utf-8")
    for mark in sorted(_marks(tokenizer, template), key=len, reverse=True):
        text = text.replace(mark, " ")
    return text


def plain_text(text: str, tokenizer: Any, template: Template) -> str:
    """Return a user's text on one line, without the marks that would end their turn or stand for an ECG."""
    return " ".join(without_marks(text, tokenizer, template).split())


def _marks(tokenizer: Any, template: Template) -> set[str]:
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    marks = {*tokenizer.all_special_tokens, *special, template.end, ECG_MARK}
    if template.name == "smollm2":
        marks |= {"<|im_start|>", "<|im_end|>"}
    return marks


def _check_turns(
    turns: Sequence[tuple[str, str | None]], tokenizer: Any, template: Template, system: str | None
) -> None:
    marks = _marks(tokenizer, template)
    parts = [("the system text", system or "", marks)]
    for number, (question, answer) in enumerate(turns):
        parts.append((f"turn {number}, question", question, marks - {ECG_MARK}))
        parts.append((f"turn {number}, answer", answer or "", marks))
    for where, text, forbidden in parts:
        mark = next((mark for mark in sorted(forbidden) if mark in text), None)
        if mark == ECG_MARK:
            raise EcgChatError(f"{where}: holds the mark {ECG_MARK}, expected it in questions only")
        if mark is not None:
            raise EcgChatError(f"{where}: holds the chat mark {mark!r}. Use plain_text() first")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise EcgChatError(f"{where}: holds half a surrogate pair, expected Unicode. Use plain_text() first")
