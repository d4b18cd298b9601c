"""A conversation about a recording: what `ecgchat chat` and notebook 13 call.

It judges the recording, measures it, encodes it, asks the model and keeps the conversation. Where the judge finds the
recording unusable, the model isn't asked. Answers are greedy, so the same question gives the same answer. It is a
teaching model and no medical device. Taught in: 13 §2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ecgchat_lib.ecg.measure import NUMBERS, Measurements, measure
from ecgchat_lib.ecg.quality import judge
from ecgchat_lib.ecg.recording import Recording, model_window, read_recording
from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.instruct.facts import numbers
from ecgchat_lib.instruct.wording import measured_line, whole
from ecgchat_lib.paths import data_folder

if TYPE_CHECKING:
    import torch

    from ecgchat_lib.chat.model import EcgChat
    from ecgchat_lib.chat.reader import FindingReader
    from ecgchat_lib.coca.model import EcgCoca

MINI_FOLDER = Path("weights") / "ecg-chat-mini"  # inside data/
ROUNDS_KEPT = 6  # earlier turns that stay in the prompt


@dataclass(frozen=True)
class Answer:
    """What the model said, and what it had to go by.

    Attributes:
        text: the answer, or why there is none.
        question: the question, as it was asked.
        measurements: what was measured on the recording, by rules and not by the model.
        evidence: the lines of the prompt that the answer can rest on.
        notes: what was changed in the recording, what is doubtful about it, and where the answer disagrees with the
            measurements.
        abstained: whether the recording is unusable, so that the model wasn't asked.
    """

    text: str
    question: str
    measurements: Measurements
    evidence: tuple[str, ...]
    notes: tuple[str, ...]
    abstained: bool = False


@dataclass(frozen=True)
class _Heard:
    """A recording as the model hears it."""

    recording: Recording
    tokens: torch.Tensor | None  # (1, 101, width); None where the recording is unusable
    measurements: Measurements
    lines: tuple[str, ...]  # what the prompt says about it in words
    notes: tuple[str, ...]
    reasons: tuple[str, ...] = ()  # why it is unusable


@dataclass
class ChatSession:
    """A chat model, its encoder, and the conversation so far.

    Attributes:
        chat: the chat model.
        encoder: ECG-CoCa, whose tokens the model reads.
        turns: (question, answer) pairs about the current recording.
    """

    chat: EcgChat
    encoder: EcgCoca
    turns: list[tuple[str, str]] = field(default_factory=list)
    _heard: _Heard | None = None

    def ask(self, recording: Recording | str | Path, question: str, *, max_new_tokens: int = 64) -> Answer:
        """Ask a question about a recording. Further questions about it continue the conversation; another recording
        starts a new one.

        Args:
            recording: a recording, or its WFDB path.
            question: in English.
            max_new_tokens: most tokens of the answer.

        Returns:
            The model's answer; for a recording that the judge finds unusable, a refusal that gives the reason.

        Raises:
            RecordError: the recording can't be read.
            EcgChatError: the question is empty.
        """
        from ecgchat_lib.chat.template import encode, plain_text

        heard = self._listen(recording)
        asked = plain_text(question, self.chat.tokenizer, self.chat.template)
        if not asked:
            raise EcgChatError("the question is empty, expected a sentence such as 'What is the heart rhythm?'")
        if heard.tokens is None:
            text = refusal(heard.reasons)
            self.turns.append((asked, text))
            return Answer(text, question, heard.measurements, heard.lines, heard.notes, abstained=True)
        encoded = encode(self._prompt(heard, asked), self.chat.tokenizer, self.chat.template)
        text = self.chat.generate([encoded], heard.tokens, max_new_tokens=max_new_tokens)[0]
        self.turns.append((asked, text))
        notes = (*heard.notes, *disagreements(text, heard.measurements))
        return Answer(text, question, heard.measurements, heard.lines, notes)

    def reset(self) -> None:
        """Forget the conversation and the recording."""
        self.turns.clear()
        self._heard = None

    def _listen(self, recording: Recording | str | Path) -> _Heard:
        """Measure and encode a recording, unless it is the one that the conversation is about already."""
        if not isinstance(recording, Recording):
            recording = read_recording(recording)
        if self._heard is None or not _same(self._heard.recording, recording):
            self.turns.clear()
            self._heard = hear(recording, self.encoder, self.chat.reader)
        return self._heard

    def _prompt(self, heard: _Heard, question: str) -> list[tuple[str, str | None]]:
        """Return the kept turns and the open one; the ECG and the lines about it stand before the first."""
        kept: list[tuple[str, str | None]] = [*self.turns[-ROUNDS_KEPT:], (question, None)]
        start = "\n".join(("<ecg>", *heard.lines, ""))
        return [(start + kept[0][0], kept[0][1]), *kept[1:]]


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
        return _Heard(recording, None, nothing, (measured_line(nothing),), notes, quality.reasons)
    measured = measure(recording)
    tokens = encoder_tokens(recording_windows([recording], config), encoder)
    signs = reader.read(tokens, [measured]) if reader is not None else []
    return _Heard(recording, tokens, measured, (measured_line(measured), *signs), notes)


def refusal(reasons: tuple[str, ...]) -> str:
    """Return what is said of an unusable recording, instead of an answer."""
    return f"I can't say anything about this recording: {'; '.join(reasons)}. Please record the ECG again."


def disagreements(text: str, measurements: Measurements) -> tuple[str, ...]:
    """Return a note for each number in an answer that isn't the measured one."""
    notes = []
    for field_name, value in numbers(text):
        known = None if field_name is None else whole(measurements.judged(field_name))
        if known is None:
            notes.append(f"the answer says {value:g}, which nothing measured supports")
        elif value != known:
            notes.append(f"the answer says {value:g}, but {field_name} was measured as {known}")
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


def load_chat(folder: str | Path | None = None, *, quantized: bool = False, device: str = "cpu") -> ChatSession:
    """Load a chat model with its encoder and start a session. Loading the same one again is free.

    Args:
        folder: a folder written by `chat.checkpoint.save_chat`; None: the course's mini, `data/weights/ecg-chat-mini`.
        quantized: the language model in NF4: a quarter of the memory; on a CPU several times slower.
        device: "cpu" or "cuda".

    Raises:
        MissingPartError: weights or the language model aren't on this machine.
        EcgChatError: a hash differs, or the weights were trained with another encoder.
    """
    place = Path(folder) if folder is not None else data_folder() / MINI_FOLDER
    return ChatSession(*_load_parts(place.resolve(), quantized, device))
