"""A conversation about recordings: what `ecgchat chat` and notebook 13 call.

It judges each recording, measures it, encodes it, asks the model and keeps the conversation. Where the judge finds a
recording unusable, the model isn't asked. Answers are greedy unless told otherwise, so the same conversation gives the
same answers. It is a teaching model and no medical device. Taught in: 13 §1.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ecgchat_lib.ecg.measure import NUMBERS, Measurements, measure
from ecgchat_lib.ecg.quality import judge
from ecgchat_lib.ecg.recording import Recording, model_window, read_recording
from ecgchat_lib.errors import EcgChatError, ParameterError
from ecgchat_lib.instruct.facts import numbers
from ecgchat_lib.instruct.wording import measured_line, whole
from ecgchat_lib.paths import data_folder

if TYPE_CHECKING:
    import torch

    from ecgchat_lib.chat.generate import Conversation, Decoding
    from ecgchat_lib.chat.model import EcgChat
    from ecgchat_lib.chat.reader import FindingReader
    from ecgchat_lib.chat.template import Encoded
    from ecgchat_lib.coca.model import EcgCoca

MINI_FOLDER = Path("weights") / "ecg-chat-mini"  # inside data/
GROUNDING = ("tokens", "measurements", "labels")
OneRecording = Recording | str | Path
Recordings = OneRecording | Sequence[OneRecording]


@dataclass(frozen=True)
class Answer:
    """What the model said, and what it had to go by.

    Attributes:
        text: the answer, or why there is none.
        question: the question, as it was asked.
        measurements: what was measured on the (first) recording, by rules and not by the model.
        evidence: the lines of the prompt that the answer can rest on; of several recordings, one after the other.
        notes: what was changed in the recording, what is doubtful about it, and where the answer disagrees with the
            measurements.
        abstained: whether a recording is unusable, so that the model wasn't asked.
        others: what was measured on the second recording and those after it.
    """

    text: str
    question: str
    measurements: Measurements
    evidence: tuple[str, ...]
    notes: tuple[str, ...]
    abstained: bool = False
    others: tuple[Measurements, ...] = ()


@dataclass(frozen=True)
class _Heard:
    """A recording as the model hears it."""

    recording: Recording
    tokens: torch.Tensor | None  # (1, 101, width); None where the recording is unusable
    measurements: Measurements
    said: dict[str, str]  # "measurements", "labels": the line that says it
    notes: tuple[str, ...]
    reasons: tuple[str, ...] = ()  # why it is unusable

    def lines(self, with_: frozenset[str]) -> tuple[str, ...]:
        """Return what the prompt says about it in words."""
        return tuple(line for name, line in self.said.items() if name in with_)


def grounding(names: str | Iterable[str]) -> frozenset[str]:
    """Return a set of what the model is given about a recording.

    Args:
        names: some of "tokens", "measurements" and "labels" (the reader's line of signs), as a list or with commas;
            or "all", or "none".

    Raises:
        ParameterError: another name.
    """
    found = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    if found in (["all"], ["none"]):
        return frozenset(GROUNDING if found == ["all"] else ())
    unknown = sorted(set(found) - set(GROUNDING))
    if unknown or not found:
        raise ParameterError(f"grounding {', '.join(unknown) or 'nothing'}: expected {', '.join(GROUNDING)}; all, none")
    return frozenset(found)


@dataclass
class ChatSession:
    """A chat model, its encoder, and the conversation so far.

    Attributes:
        chat: the chat model.
        encoder: ECG-CoCa, whose tokens the model reads.
        turns: (question, answer) pairs about the current recordings.
        with_: what the model is given about a recording, see `grounding`.
        decoding: how the next token is chosen; greedily, 64 tokens at most, if None.
    """

    chat: EcgChat
    encoder: EcgCoca
    turns: list[tuple[str, str]] = field(default_factory=list)
    with_: frozenset[str] = frozenset(GROUNDING)
    decoding: Decoding | None = None
    _heard: list[_Heard] = field(default_factory=list)
    _conversation: Conversation | None = None

    def ask(self, recording: Recordings, question: str, *, max_new_tokens: int | None = None) -> Answer:
        """Ask a question about a recording. Further questions about it continue the conversation; another recording
        starts a new one.

        Args:
            recording: a recording, or its path; or several, the earliest first. Several that begin with those of the
                conversation so far continue it: the new ones are shown to the model before this question.
            question: in English.
            max_new_tokens: most tokens of the answer, if not as in `decoding`.

        Returns:
            The model's answer; for a recording that the judge finds unusable, a refusal that gives the reason.

        Raises:
            RecordError: the recording can't be read.
            EcgChatError: the question is empty, or there are more ECGs and words than the model reads.
        """
        pieces = self.stream(recording, question, max_new_tokens=max_new_tokens)
        while True:
            try:
                next(pieces)
            except StopIteration as done:
                answer: Answer = done.value
                return answer

    def stream(
        self, recording: Recordings, question: str, *, max_new_tokens: int | None = None
    ) -> Generator[str, None, Answer]:
        """Ask as `ask` does; yield the answer's text piece by piece, and return the `Answer`.

        A stream that is closed early leaves the turn in the conversation as far as it was made.
        """
        asked = self._plain(question)
        heard = self._listen(recording)
        if any(item.tokens is None for item in heard):
            answer = refuse(heard, question)
            self.turns.append((asked, answer.text))
            yield answer.text
            return answer
        talk = self._conversation
        assert talk is not None
        decoding = self._decoding()  # an earlier question's max_new_tokens was meant for that one alone
        talk.decoding = decoding if max_new_tokens is None else replace(decoding, max_new_tokens=max_new_tokens)
        pieces, told = talk.say(asked), ""
        try:
            for piece in pieces:
                told += piece
                yield piece
        finally:
            pieces.close()
            self.turns.append((asked, told))
        return self._answer(heard, question, told)

    def ask_many(self, asked: Sequence[tuple[Recordings, str]]) -> list[Answer | EcgChatError]:
        """Ask questions that have nothing to do with each other, all at the same time; no conversation comes of it.

        Args:
            asked: (recording or recordings, question) pairs. They are one batch, so their number is bounded by memory.

        Returns:
            For each its answer, or the error that says why there is none.
        """
        import torch

        from ecgchat_lib.chat.template import encode

        known: dict[int, _Heard] = {}  # a recording that is asked about several times is heard once
        out: list[Answer | EcgChatError | None] = [None] * len(asked)
        prompts, ecg, open_ones = [], [], []
        for place, (recording, question) in enumerate(asked):
            try:
                items = _several(recording)
                for item in items:
                    known[id(item)] = known.get(id(item)) or self._hear(item)
                heard = [known[id(item)] for item in items]
                if any(item.tokens is None for item in heard):
                    out[place] = refuse(heard, question)
                    continue
                turn = self._before(heard) + self._plain(question)
                prompt = encode([(turn, None)], self.chat.tokenizer, self.chat.template)
                self._check_length(prompt, heard)
                prompts.append(prompt)
            except EcgChatError as error:
                out[place] = error
                continue
            ecg += [item.tokens for item in heard if item.tokens is not None and "tokens" in self.with_]
            open_ones.append((place, heard, question))
        if prompts:
            width, most = self.chat.projector.width, self._decoding().max_new_tokens
            table = torch.cat(ecg) if ecg else torch.empty(0, 1, width)
            texts = self.chat.generate(prompts, table, max_new_tokens=most)
            for (place, heard, question), text in zip(open_ones, texts, strict=True):
                out[place] = self._answer(heard, question, text)
        return [item for item in out if item is not None]

    def reset(self) -> None:
        """Forget the conversation and the recordings."""
        self.turns.clear()
        self._heard, self._conversation = [], None

    def _check_length(self, prompt: Encoded, heard: Sequence[_Heard]) -> None:
        """Raise if a prompt and its answer are longer than the model reads."""
        places = len(prompt.ids)
        if "tokens" in self.with_:
            places += sum(len(item.tokens[0]) - 1 for item in heard if item.tokens is not None)
        room = self.chat.context - self._decoding().max_new_tokens
        if places > room:
            raise EcgChatError(f"the question and its ECGs need {places} places, expected at most {room}. Ask shorter")

    def _plain(self, question: str) -> str:
        from ecgchat_lib.chat.template import plain_text

        asked = plain_text(question, self.chat.tokenizer, self.chat.template)
        if not asked:
            raise EcgChatError("the question is empty, expected a sentence such as 'What is the heart rhythm?'")
        return asked

    def _decoding(self) -> Decoding:
        from ecgchat_lib.chat.generate import Decoding

        return self.decoding or Decoding()

    def _listen(self, recording: Recordings) -> list[_Heard]:
        """Measure and encode recordings, but for those that the conversation is about already."""
        from ecgchat_lib.chat.generate import Conversation

        items = [item if isinstance(item, Recording) else read_recording(item) for item in _several(recording)]
        known = [one.recording for one in self._heard]
        continued = len(known) <= len(items) and all(map(_same, known, items))
        if not continued or self._conversation is None:
            self.reset()
            self._conversation = Conversation(self.chat, self._decoding())
        for item in items[len(self._heard) :]:
            one = self._hear(item)
            self._heard.append(one)
            if one.tokens is not None:
                tokens = one.tokens[0] if "tokens" in self.with_ else None
                self._conversation.add(tokens, one.lines(self.with_))
        return list(self._heard)

    def _hear(self, recording: OneRecording) -> _Heard:
        recording = recording if isinstance(recording, Recording) else read_recording(recording)
        return hear(recording, self.encoder, self.chat.reader)

    def _before(self, heard: Sequence[_Heard]) -> str:
        """Return what stands before a question about recordings."""
        from ecgchat_lib.chat.template import opening

        return "".join(opening(item.lines(self.with_), ecg="tokens" in self.with_) for item in heard)

    def _answer(self, heard: Sequence[_Heard], question: str, text: str) -> Answer:
        """Put an answer together with what is known beside it."""
        evidence = tuple(line for item in heard for line in item.lines(self.with_))
        first, *others = (item.measurements for item in heard)
        notes = (*_notes(heard), *disagreements(text, first, *others))
        return Answer(text, question, first, evidence, notes, others=tuple(others))


def _several(recordings: Recordings) -> list[OneRecording]:
    out: list[OneRecording] = [recordings] if isinstance(recordings, Recording | str | Path) else list(recordings)
    if not out:
        raise EcgChatError("no recording, expected at least one")
    return out


def _notes(heard: Sequence[_Heard]) -> tuple[str, ...]:
    """Return the notes on recordings; where there are several, each says which one it is about."""
    if len(heard) == 1:
        return heard[0].notes
    return tuple(f"{item.recording.name}: {note}" for item in heard for note in item.notes)


def refuse(heard: Sequence[_Heard], question: str) -> Answer:
    """Return what is answered to a question about recordings of which one or more are unusable: why."""
    reasons = tuple(reason for item in heard for reason in item.reasons)
    if len(heard) > 1:
        reasons = tuple(f"{item.recording.name}: {reason}" for item in heard for reason in item.reasons)
    evidence = tuple(item.said["measurements"] for item in heard if item.reasons)
    first, *others = (item.measurements for item in heard)
    return Answer(refusal(reasons), question, first, evidence, _notes(heard), abstained=True, others=tuple(others))


def hear(recording: Recording, encoder: EcgCoca, reader: FindingReader | None = None) -> _Heard:
    """Judge and measure a recording, turn it into ECG tokens and read these, unless it is unusable.

    What was cut or looks doubtful becomes notes.
    """
    from ecgchat_lib.coca.embed import encoder_tokens
    from ecgchat_lib.coca.preprocess import recording_windows

    config = encoder.config.encoder
    quality = judge(recording)
    _, cut = model_window(recording, fs=500.0, seconds=config.seconds)
    notes = tuple(dict.fromkeys((*recording.notes, *cut, *quality.warnings)))  # each once, in order
    if not quality.usable:
        nothing = Measurements(reasons=dict.fromkeys(NUMBERS, "the recording isn't usable"))
        return _Heard(recording, None, nothing, {"measurements": measured_line(nothing)}, notes, quality.reasons)
    measured = measure(recording)
    tokens = encoder_tokens(recording_windows([recording], config), encoder)
    said = {"measurements": measured_line(measured)}
    if reader is not None:
        (said["labels"],) = reader.read(tokens, [measured])
    return _Heard(recording, tokens, measured, said, notes)


def refusal(reasons: tuple[str, ...]) -> str:
    """Return what is said of an unusable recording, instead of an answer."""
    return f"I can't say anything about this recording: {'; '.join(reasons)}. Please record the ECG again."


def disagreements(text: str, measurements: Measurements, *others: Measurements) -> tuple[str, ...]:
    """Return a note for each number in an answer that isn't the measured one.

    Args:
        text: the answer.
        measurements: what was measured.
        others: what was measured on further recordings; the answer may speak of any of them.
    """
    notes = []
    for field_name, value in numbers(text):
        measured = [] if field_name is None else [whole(m.judged(field_name)) for m in (measurements, *others)]
        known = list(dict.fromkeys(one for one in measured if one is not None))
        if not known:
            notes.append(f"the answer says {value:g}, which nothing measured supports")
        elif value not in known:
            found = " and ".join(str(one) for one in known)
            notes.append(f"the answer says {value:g}, but {field_name} was measured as {found}")
    return tuple(notes)


def _same(one: Recording, other: Recording) -> bool:
    import numpy as np

    return one is other or (
        one.name == other.name and one.fs == other.fs and np.array_equal(one.signal, other.signal, equal_nan=True)
    )


@cache
def _load_parts(folder: Path, quantized: bool, device: str) -> tuple[EcgChat, EcgCoca]:
    from ecgchat_lib.chat.checkpoint import load_chat_model
    from ecgchat_lib.coca.checkpoint import MINI_FOLDER as ENCODER_FOLDER
    from ecgchat_lib.coca.checkpoint import WEIGHTS, load_coca
    from ecgchat_lib.coca.checkpoint import read_manifest as read_encoder_manifest

    encoder_folder = data_folder() / ENCODER_FOLDER
    digest = read_encoder_manifest(encoder_folder)["sha256"][WEIGHTS]
    chat, _ = load_chat_model(folder, encoder_sha256=digest, quantized=quantized, device=device)
    return chat, load_coca(encoder_folder)


def load_chat(
    folder: str | Path | None = None,
    *,
    quantized: bool = False,
    device: str = "cpu",
    with_: str | Iterable[str] = "all",
    decoding: Decoding | None = None,
) -> ChatSession:
    """Load a chat model with its encoder and start a session. Loading the same one again is free.

    Args:
        folder: a folder written by `chat.checkpoint.save_chat`; None: the course's mini, `data/weights/ecg-chat-mini`.
        quantized: the language model in NF4: a quarter of the memory; on a CPU several times slower.
        device: "cpu" or "cuda".
        with_: what the model is given about a recording, see `grounding`.
        decoding: how the next token is chosen; greedily if None.

    Raises:
        ParameterError: an unknown name in `with_`.
        MissingPartError: weights or the language model aren't on this machine.
        EcgChatError: a hash differs, or the weights were trained with another encoder.
    """
    place = Path(folder) if folder is not None else data_folder() / MINI_FOLDER
    given = grounding(with_)
    return ChatSession(*_load_parts(place.resolve(), quantized, device), with_=given, decoding=decoding)
