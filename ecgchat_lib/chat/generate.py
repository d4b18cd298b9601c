"""A conversation with a chat model that keeps what was computed: each turn costs its new words only.

The keys and values of everything read so far stay in a cache. Before an answer, the whole conversation is written down
as token ids, the cache is cut back to where these agree with what it holds, and the rest is read. So the cache always
is what reading the conversation from the start would have given, also after a stream that was broken off. It answers
one conversation; `EcgChat.generate` answers many at a time. Taught in: 11 §7.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from ecgchat_lib.chat.template import ECG_ID, ECG_MARK, IGNORED, Encoded, opening, prompt_ids, without_marks
from ecgchat_lib.errors import EcgChatError, ParameterError

if TYPE_CHECKING:
    import torch

    from ecgchat_lib.chat.model import EcgChat


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: most tokens of an answer.
        temperature: 0 takes the likeliest token; 1 draws by the model's probabilities, less keeps nearer to the
            likeliest, more strays further.
        top_p: draw among the likeliest tokens that together have this probability.
        seed: of the draws; each answer starts with it, so the same conversation gives the same answers.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ParameterError(f"max_new_tokens={self.max_new_tokens}: expected at least 1")
        if not 0 <= self.temperature <= 100:
            raise ParameterError(f"temperature={self.temperature}: expected 0 (the likeliest token) to 100")
        if not 0 < self.top_p <= 1:
            raise ParameterError(f"top_p={self.top_p}: expected a share above 0, up to 1")


@dataclass(frozen=True)
class _Round:
    """A question, with what stands before it, and its answer.

    Attributes:
        opening: ECGs and their lines, which are kept when the turn is dropped.
        question: what was asked.
        answer: None while it isn't there yet.
        beside: lines for this question alone, which go with it.
    """

    opening: str
    question: str
    answer: str | None = None
    beside: str = ""


@dataclass
class Conversation:
    """Questions and answers about any number of ECGs, or none.

    Attributes:
        chat: the model; it must be in evaluation mode and stay as it is while the conversation goes on.
        decoding: how the next token is chosen.
        system: another system text than the template's.
        length: most places (words and ECG tokens) of prompt and answer; what the language model reads, if None. Where
            the next turn wouldn't fit, the oldest turns are dropped, but the ECGs and their lines are kept.
        prompts: for each question so far, the places of its whole prompt.
        prefilled: how many of them were read for it; the cache held the others.
    """

    chat: EcgChat
    decoding: Decoding = field(default_factory=Decoding)
    system: str | None = None
    length: int | None = None
    prompts: list[int] = field(default_factory=list)
    prefilled: list[int] = field(default_factory=list)
    _rounds: list[_Round] = field(default_factory=list)
    _waiting: str = ""  # what will stand before the next question
    _ecg: list[torch.Tensor] = field(default_factory=list)  # (ecg tokens, width) each, in the order of the marks
    _held: list[int] = field(default_factory=list)  # ids in the cache, `ECG_ID` for a whole ECG
    _cache: Any = None
    _running: Generator[str, None, None] | None = None

    def __post_init__(self) -> None:
        limit = self.chat.context
        self.length = limit if self.length is None else self.length
        if not self.decoding.max_new_tokens < self.length <= limit:
            raise ParameterError(
                f"length={self.length}: expected more than max_new_tokens={self.decoding.max_new_tokens}, "
                f"and at most the {limit} places that the language model reads"
            )

    @property
    def turns(self) -> list[tuple[str, str]]:
        """The (question, answer) pairs that are still in the prompt."""
        return [(item.question, item.answer or "") for item in self._rounds]

    @property
    def ids(self) -> tuple[int, ...]:
        """The token ids that the cache holds, `ECG_ID` for each ECG."""
        return tuple(self._held)

    def add(self, ecg: torch.Tensor | None = None, lines: Sequence[str] = ()) -> None:
        """Hand over an ECG, or lines about one, to stand before the next question.

        Args:
            ecg: (ecg tokens, width) from the encoder.
            lines: what is said about it in words, such as the measured line.

        Raises:
            EcgChatError: a line holds a mark of the template.
            ParameterError: the ECG has another shape than the projector reads.
        """
        if ecg is not None:
            like = self._ecg[0].shape if self._ecg else (*ecg.shape[:1], self.chat.projector.width)
            if ecg.ndim != 2 or tuple(ecg.shape) != tuple(like):
                raise ParameterError(
                    f"an ECG of shape {tuple(ecg.shape)}, expected (ecg tokens, {self.chat.projector.width}), "
                    "as many for each ECG. Use the encoder that the projector was trained with"
                )
        for line in lines:
            self._refuse_marks(line, "a line about the ECG")
        self._close()
        self._waiting += opening(lines, ecg=ecg is not None)
        if ecg is not None:
            self._ecg.append(ecg)

    def ask(self, question: str) -> str:
        """Return the answer to a question; see `say`."""
        return "".join(self.say(question))

    def say(self, question: str, lines: Sequence[str] = ()) -> Generator[str, None, None]:
        """Ask a question; yield its answer piece by piece, in whole characters and without marks.

        The turn is part of the conversation as soon as the iterator ends, is closed, or another question is asked; a
        stream that was broken off leaves the answer as far as it was made.

        Args:
            question: in English.
            lines: what else stands before this question, such as a line of knowledge; they are dropped with it.

        Raises:
            EcgChatError: the question is empty or doesn't fit into the model with its ECGs; it or a line holds a mark;
            or the model is in training mode, where its dropout would make the cache wrong.
        """
        if self.chat.training:
            raise EcgChatError("the chat model is in training mode. Call chat.eval() before asking")
        if not question.strip():
            raise EcgChatError("the question is empty, expected a sentence such as 'What is the heart rhythm?'")
        self._refuse_marks(question, "the question")
        for line in lines:
            self._refuse_marks(line, "a line beside the question")
        self._close()
        asked = _Round(self._waiting, question, beside=opening(lines, ecg=False))
        ids = self._fit(asked)
        self._rounds.append(replace(asked, opening=self._waiting))
        self._waiting = ""
        self._running = self._stream(ids)
        return self._running

    def reset(self) -> None:
        """Forget everything that was said, and all ECGs."""
        self._close()
        self._rounds, self._ecg, self._waiting, self.prompts, self.prefilled = [], [], "", [], []
        self._forget()

    def _refuse_marks(self, text: str, what: str) -> None:
        if without_marks(text, self.chat.tokenizer, self.chat.template) != text:
            raise EcgChatError(
                f"{what} holds a mark of the chat template, {ECG_MARK} or half a surrogate pair. Use plain_text() first"
            )

    def _close(self) -> None:
        """End the answer that is still being made, if there is one; a question that nobody listened to is dropped."""
        if self._running is not None:
            self._running.close()
        if self._rounds and self._rounds[-1].answer is None:
            self._waiting = self._rounds.pop().opening + self._waiting
        self._running = None

    def _fit(self, asked: _Round) -> tuple[int, ...]:
        """Return the ids of the prompt with a new question, after dropping the oldest turns if it would be too long.

        When turns are dropped, half of the room is cleared, so that the cache isn't rebuilt again at the next turn.
        """
        assert self.length is not None
        room = self.length - self.decoding.max_new_tokens
        turns = [*self._rounds, asked]
        ids = self._prompt(turns)
        if self._places(ids) <= room:
            return ids
        while len(turns) > 1 and self._places(ids) > room // 2:
            first = turns.pop(0)
            turns[0] = replace(turns[0], opening=first.opening + turns[0].opening)
            ids = self._prompt(turns)
        if self._places(ids) > room:
            raise EcgChatError(
                f"the question and {len(self._ecg)} ECGs need {self._places(ids)} places, expected at most {room} "
                f"beside an answer of {self.decoding.max_new_tokens} tokens. Ask a shorter question, or start anew"
            )
        *self._rounds, last = turns
        self._waiting = last.opening
        return ids

    def _prompt(self, rounds: Sequence[_Round]) -> tuple[int, ...]:
        turns = [(item.opening + item.beside + item.question, item.answer) for item in rounds]
        return prompt_ids(turns, self.chat.tokenizer, self.chat.template, system=self.system)

    def _places(self, ids: Sequence[int]) -> int:
        """Return how many places ids take up: one each, an ECG as many as it has tokens. ECGs stand in their order."""
        marks = sum(token == ECG_ID for token in ids)
        return len(ids) - marks + sum(len(tokens) for tokens in self._ecg[:marks])

    def _stream(self, ids: Sequence[int]) -> Generator[str, None, None]:
        """Yield the answer to a prompt; whatever happens, leave the turn and the cache fitting each other."""
        import torch

        made: list[int] = []
        told = ""
        generator = torch.Generator().manual_seed(self.decoding.seed)
        try:
            logits = self._prefill(ids)
            while len(made) < self.decoding.max_new_tokens:
                token = _pick(logits, self.decoding, generator)
                if token == self.chat.end_id:
                    break
                made.append(token)
                text = self.chat.said(made)
                if text.startswith(told) and len(text) > len(told):
                    piece, told = text[len(told) :], text
                    yield piece
                if len(made) < self.decoding.max_new_tokens:
                    logits = self._read(made[-1:])
        except GeneratorExit:
            raise
        except BaseException:
            self._forget()  # some layers of the cache may be a token ahead of others
            raise
        finally:
            answer = without_marks(told, self.chat.tokenizer, self.chat.template).strip()
            self._rounds[-1] = replace(self._rounds[-1], answer=answer)
            self._running = None

    def _prefill(self, ids: Sequence[int]) -> torch.Tensor:
        """Read what the cache doesn't hold yet of a prompt; return the logits of the first new token."""
        from transformers import DynamicCache

        pairs = zip(self._held, ids[:-1], strict=False)  # the last one is always read, for its logits
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if self._cache is None or not same:
            self._forget()
            self._cache, same = DynamicCache(config=self.chat.language_model.config), 0
        surplus = self._places(self._held) - self._places(ids[:same])
        if surplus:
            self._cache.crop(-surplus)  # negative: how many to remove, in every version of transformers
        del self._held[same:]
        self.prompts.append(self._places(ids))
        self.prefilled.append(self._places(ids) - self._places(ids[:same]))
        return self._read(ids[same:])

    def _read(self, ids: Sequence[int]) -> torch.Tensor:
        """Read tokens behind those in the cache; return the logits (vocabulary,) of what comes next."""
        import torch

        with torch.no_grad():
            before, marks = self._held.count(ECG_ID), ids.count(ECG_ID)
            none = torch.empty(0, 1, self.chat.projector.width)
            ecg = torch.stack(self._ecg[before : before + marks]) if marks else none
            piece = Encoded(tuple(ids), (IGNORED,) * len(ids))
            vectors, *_ = self.chat.splice(piece, self.chat.project(ecg))
            start = self._places(self._held)
            out = self.chat.language_model(
                inputs_embeds=vectors[None],
                position_ids=torch.arange(start, start + len(vectors), device=self.chat.device)[None],
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self._held += ids
        logits: torch.Tensor = out.logits[0, -1].float()
        return logits

    def _forget(self) -> None:
        self._cache, self._held = None, []


def _pick(logits: torch.Tensor, decoding: Decoding, generator: torch.Generator) -> int:
    """Choose the next token by its logits (vocabulary,)."""
    if decoding.temperature == 0:
        return int(logits.argmax())
    import torch
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(decoding.temperature))])
    if decoding.top_p < 1:
        warpers.append(TopPLogitsWarper(decoding.top_p))
    nothing: Any = torch.empty(1, 0, dtype=torch.long)  # these warpers don't look at earlier tokens
    scores: Any = logits[None].cpu()
    chances = warpers(nothing, scores).softmax(-1)[0]
    return int(torch.multinomial(chances, 1, generator=generator))
