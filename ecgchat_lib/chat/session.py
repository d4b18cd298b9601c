"""A conversation about recordings: what `ecgchat chat`, the page and notebook 13 call.

It judges each recording, measures it, encodes it, classifies it, asks the model, checks the answer and keeps the
conversation. Where the judge finds a recording unusable, or a question isn't one for this model, the model isn't asked,
and the answer says why. Answers are greedy unless told otherwise, so the same conversation gives the same answers. It
is a teaching model and no medical device. Taught in: 13 §1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecgchat_lib.chat.checking import Contradiction, contradictions, marked, of_several, unchecked
from ecgchat_lib.chat.grounding import (
    DEFAULT,
    GROUNDING,
    LABELS,
    LABELS_FORM,
    NEIGHBOURS,
    NEIGHBOURS_FORM,
    Evidence,
    chances,
    grounding,
    knowledge_lines,
    labels_evidence,
)
from ecgchat_lib.ecg.measure import NUMBERS, Measurements, measure
from ecgchat_lib.ecg.quality import Quality, judge
from ecgchat_lib.ecg.recording import Recording, model_window, read_recording
from ecgchat_lib.errors import EcgChatError, ParameterError
from ecgchat_lib.instruct.vocabulary import find_names
from ecgchat_lib.instruct.wording import measured_line
from ecgchat_lib.paths import data_folder

if TYPE_CHECKING:
    import torch

    from ecgchat_lib.chat.generate import Conversation, Decoding
    from ecgchat_lib.chat.model import EcgChat
    from ecgchat_lib.chat.neighbours import Neighbour, Neighbours
    from ecgchat_lib.chat.reader import FindingReader
    from ecgchat_lib.chat.scope import Scope
    from ecgchat_lib.chat.template import Encoded
    from ecgchat_lib.coca.model import EcgCoca
    from ecgchat_lib.evaluate.classifier import DiagnosisClassifier, Reading
    from ecgchat_lib.knowledge.retrieve import Hit, Retriever

__all__ = [
    "DEFAULT",
    "GROUNDING",
    "MINI_FOLDER",
    "Answer",
    "ChatSession",
    "Contradiction",
    "Evidence",
    "grounding",
    "hear",
    "load_chat",
]

MINI_FOLDER = Path("weights") / "ecg-chat-mini"  # inside data/
MOST_NEIGHBOURS = 8  # that are looked up; how many enter the prompt is up to `grounding.NEIGHBOURS_FORM`
MOST_ENTRIES = 3  # of the knowledge base, for a question about ECGs in general
NO_LEADS = frozenset({"flat", "missing"})  # the judge's findings that mean too few leads
OneRecording = Recording | str | Path
Recordings = OneRecording | Sequence[OneRecording]


@dataclass(frozen=True)
class Answer:
    """What the model said, and what it had to go by.

    Attributes:
        text: the answer, or why there is none.
        question: the question, as it was asked.
        measurements: what was measured on the (first) recording, by rules and not by the model.
        evidence: what the answer can rest on, and what it was checked against; of several recordings, one after the
            other.
        contradictions: its statements that measurements or classifier don't bear out, with their places in `text`.
        notes: what was changed in the recording, what is doubtful about it, and what of the answer couldn't be checked.
        abstained: whether the model wasn't asked, because of the recording or of the question.
        reason: why: "unusable", "reversed", "few_leads" (the recording), "outside", "instruction", "unknown_finding"
            (the question), or "".
        others: what was measured on the second recording and those after it.
    """

    text: str
    question: str
    measurements: Measurements
    evidence: tuple[Evidence, ...]
    contradictions: tuple[Contradiction, ...]
    notes: tuple[str, ...]
    abstained: bool = False
    reason: str = ""
    others: tuple[Measurements, ...] = ()

    @property
    def marked(self) -> str:
        """The text with each contradicted statement followed by " [contradicted: <why>]"."""
        return marked(self.text, self.contradictions)

    def as_dict(self) -> dict[str, Any]:
        """Return the answer as JSON has it; "answer" is the plain text, "marked" the text with its contradictions."""
        return {
            "question": self.question,
            "answer": self.text,
            "marked": self.marked,
            "abstained": self.abstained,
            "reason": self.reason,
            "evidence": [item.as_dict() for item in self.evidence],
            "contradictions": [item.as_dict() for item in self.contradictions],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class _Heard:
    """A recording as the model hears it."""

    recording: Recording
    tokens: torch.Tensor | None  # (1, 101, width); None where nothing should be concluded from the recording
    measurements: Measurements
    quality: Quality
    notes: tuple[str, ...]
    signs: str = ""  # the reader's line
    reading: Reading | None = None
    near: tuple[Neighbour, ...] = ()
    labels: str = LABELS_FORM  # how the labels are written

    def lines(self, with_: frozenset[str]) -> tuple[str, ...]:
        """Return what the prompt says about it in words."""
        return tuple(item.text for item in self.evidence(with_) if item.given and item.kind != "quality")

    def evidence(self, with_: frozenset[str], about: str = "") -> tuple[Evidence, ...]:
        """Return what is known of it, in the prompt's order; what isn't in the prompt is marked so.

        Args:
            with_: what the prompt carries.
            about: question and answer, whose findings are looked up in what the classifier says.
        """
        name, lead = self.recording.name, self.measurements.interval_lead
        out = [Evidence("quality", words, "judge", record=name, given=False) for words in self.quality.warnings]
        source = f"measured on lead {lead}" if lead and self.tokens is not None else "measured"
        line = measured_line(self.measurements)
        out.append(Evidence("measurements", line, source, record=name, given="measurements" in with_))
        if "labels" in with_:
            out += self._labels()
        if self.reading is not None:
            out += labels_evidence(self.reading, name, about)
        if "neighbours" in with_:
            out += self._neighbours()
        return tuple(out)

    def _labels(self) -> list[Evidence]:
        if self.reading is not None and (self.labels != "reader" or not self.signs):
            form = self.labels if self.labels in LABELS else "signs"  # a model without a reader
            return [Evidence("labels", LABELS[form](self.reading), "classifier", record=self.recording.name)]
        return [Evidence("labels", self.signs, "reader", record=self.recording.name)] if self.signs else []

    def _neighbours(self) -> list[Evidence]:
        name, lines = self.recording.name, NEIGHBOURS[NEIGHBOURS_FORM](self.near)
        said = [Evidence("neighbours", line, "the nearest recordings", record=name) for line in lines]
        return said + [
            Evidence("neighbours", item.report, f"neighbour {item.record}", round(item.score, 4), name, given=False)
            for item in self.near[:3]
        ]


@dataclass
class ChatSession:
    """A chat model, its encoder, and the conversation so far.

    Attributes:
        chat: the chat model.
        encoder: ECG-CoCa, whose tokens the model reads.
        turns: (question, answer) pairs about the current recordings.
        with_: what the model is given about a recording, see `grounding`. A question about ECGs in general is answered
            from the knowledge base all the same: the model isn't asked.
        decoding: how the next token is chosen; greedily, 64 tokens at most, if None.
        classifier: what checks the answers, and stands in the evidence; None: only the measurements do.
        neighbours: where the nearest recordings are looked up; None: prompts go without.
        knowledge: what finds entries of the knowledge base; None: prompts go without.
        scope: tells which questions are none for this model; None: every question is asked.
        labels: how the labels stand in the prompt: "reader" (the chat model's own reader writes them), or one of
            `grounding.LABELS`, which are the classifier's; `grounding.LABELS_FORM` is the shipped one.
    """

    chat: EcgChat
    encoder: EcgCoca
    turns: list[tuple[str, str]] = field(default_factory=list)
    with_: frozenset[str] = DEFAULT
    decoding: Decoding | None = None
    classifier: DiagnosisClassifier | None = None
    neighbours: Neighbours | None = None
    knowledge: Retriever | None = None
    scope: Callable[..., Scope] | None = None
    labels: str = LABELS_FORM
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
            The model's answer; for a recording that nothing should be concluded from, and for a question that is none
            for this model, why it isn't asked. A question about ECGs in general is answered from the knowledge base.

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
        scope = self._scope_of(question, self.turns)
        settled = self._settle(heard, question, scope)
        if settled is not None:
            self.turns.append((asked, settled.text))
            yield settled.text
            return settled
        talk = self._conversation
        assert talk is not None
        hits = self._look_up(_meant(scope, asked))
        decoding = self._decoding()  # an earlier question's max_new_tokens was meant for that one alone
        talk.decoding = decoding if max_new_tokens is None else replace(decoding, max_new_tokens=max_new_tokens)
        pieces, told, place = talk.say(asked, self._known(hits)), "", len(self.turns)
        try:
            for piece in pieces:
                told += piece
                yield piece
        finally:
            pieces.close()
            if self._conversation is talk:  # else it was forgotten meanwhile
                self.turns.insert(place, (asked, told))
        return self._answer(heard, question, told, hits)

    def ask_many(self, asked: Sequence[tuple[Recordings, str]]) -> list[Answer | EcgChatError]:
        """Ask questions that have nothing to do with each other, all at the same time; no conversation comes of it.

        Args:
            asked: (recording or recordings, question) pairs. They are one batch, so their number is bounded by memory.

        Returns:
            For each its answer, or the error that says why there is none.

        Raises:
            ParameterError: `decoding` draws the tokens; answers that are made together are greedy.
        """
        import torch

        from ecgchat_lib.chat.template import encode

        if self._decoding().temperature:
            raise ParameterError(
                f"temperature={self._decoding().temperature}: several questions at once are answered "
                "greedily, expected 0. Ask them one by one"
            )
        known: dict[int, _Heard] = {}  # a recording that is asked about several times is heard once
        out: list[Answer | EcgChatError | None] = [None] * len(asked)
        prompts, ecg, open_ones = [], [], []
        for place, (recording, question) in enumerate(asked):
            try:
                items = _several(recording)
                for item in items:
                    known[id(item)] = known.get(id(item)) or self._hear(item)
                heard, plain = [known[id(item)] for item in items], self._plain(question)
                scope = self._scope_of(question, ())
                settled = self._settle(heard, question, scope)
                if settled is not None:
                    out[place] = settled
                    continue
                hits = self._look_up(_meant(scope, plain))
                turn = self._before(heard, self._known(hits)) + plain
                prompt = encode([(turn, None)], self.chat.tokenizer, self.chat.template)
                self._check_length(prompt, heard)
                prompts.append(prompt)
            except EcgChatError as error:
                out[place] = error
                continue
            ecg += [item.tokens for item in heard if item.tokens is not None and "tokens" in self.with_]
            open_ones.append((place, heard, question, hits))
        if prompts:
            width, most = self.chat.projector.width, self._decoding().max_new_tokens
            table = torch.cat(ecg) if ecg else torch.empty(0, 1, width)
            texts = self.chat.generate(prompts, table, max_new_tokens=most)
            for (place, heard, question, hits), text in zip(open_ones, texts, strict=True):
                out[place] = self._answer(heard, question, text, hits)
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
                self._conversation.add(tokens, self._lines(one))
        return list(self._heard)

    def _hear(self, recording: OneRecording) -> _Heard:
        recording = recording if isinstance(recording, Recording) else read_recording(recording)
        near = self.neighbours if "neighbours" in self.with_ else None
        heard = hear(recording, self.encoder, self.chat.reader, self.classifier, near)
        return replace(heard, labels=self.labels)

    def _lines(self, heard: _Heard) -> list[str]:
        """Return what the prompt says about a recording; marks of the template can't be in it."""
        return [line for text in heard.lines(self.with_) if (line := self._without_marks(text))]

    def _without_marks(self, text: str) -> str:
        from ecgchat_lib.chat.template import plain_text

        return plain_text(text, self.chat.tokenizer, self.chat.template)

    def _look_up(self, question: str, top: int = 1) -> list[Hit]:
        """Return what the knowledge base has on a question, if the prompt may carry it."""
        return self.knowledge.search(question, top) if self.knowledge is not None and "knowledge" in self.with_ else []

    def _known(self, hits: Sequence[Hit]) -> list[str]:
        return [self._without_marks(line) for line in knowledge_lines(hits)] if hits else []

    def _before(self, heard: Sequence[_Heard], known: Sequence[str] = ()) -> str:
        """Return what stands before a question about recordings."""
        from ecgchat_lib.chat.template import opening

        about = "".join(opening(self._lines(item), ecg="tokens" in self.with_) for item in heard)
        return about + opening(known, ecg=False)

    def _scope_of(self, question: str, turns: Sequence[tuple[str, str]]) -> Scope | None:
        return None if self.scope is None else self.scope(question, turns=turns)

    def _settle(self, heard: Sequence[_Heard], question: str, scope: Scope | None) -> Answer | None:
        """Return the answer to a question that the model isn't asked, or None."""
        if scope is not None and scope.kind == "knowledge" and self.knowledge is not None:
            return self._from_knowledge(heard, question, _meant(scope, question))
        if scope is not None and scope.kind in ("outside", "instruction"):
            return _abstain(heard, question, scope.reason, scope.kind)
        if any(item.tokens is None for item in heard):
            return refuse(heard, question)
        if scope is not None and scope.kind == "unknown_finding":
            return _abstain(heard, question, scope.reason, scope.kind, _classified(heard, _meant(scope, question)))
        return None

    def _from_knowledge(self, heard: Sequence[_Heard], question: str, meant: str) -> Answer:
        """Answer a question about ECGs in general by quoting the knowledge base, without the model.

        Whatever `with_` says: that is about what the model is given. The course's own knowledge base always quotes
        something, since its search ranks entries and has no least score; each line's score stands beside it.
        """
        from ecgchat_lib.knowledge.answers import quote

        assert self.knowledge is not None
        said = quote(meant, self.knowledge.search(meant, MOST_ENTRIES))
        evidence = tuple(
            Evidence("knowledge", line.text, _sources(line.entry), round(line.score, 4), given=False)
            for line in said.lines
        )
        first, *others = (item.measurements for item in heard)
        notes = ("quoted from the knowledge base; it isn't about this recording",)
        text = said.text or "I found nothing about that in the knowledge base."
        return Answer(text, question, first, evidence, (), notes if evidence else (), others=tuple(others))

    def _answer(self, heard: Sequence[_Heard], question: str, text: str, hits: Sequence[Hit]) -> Answer:
        """Put an answer together with what is known beside it, and with what of it is contradicted."""
        evidence = [one for item in heard for one in item.evidence(self.with_, f"{question} {text}")]
        evidence += [
            Evidence("knowledge", line, _sources(hit.entry), round(hit.score, 4))
            for line, hit in zip(self._known(hits), hits, strict=False)
        ]
        first, *others = (item.measurements for item in heard)
        found, unclear = _contradicted(text, heard)
        notes = (*_notes(heard), *unclear, *_unchecked(text, heard))
        return Answer(text, question, first, tuple(evidence), found, notes, others=tuple(others))


def _sources(entry: Any) -> str:
    """Return an entry's title and its citations."""
    return f"{entry.title}: {'; '.join(map(str, entry.citations))}"


def _contradicted(text: str, heard: Sequence[_Heard]) -> tuple[tuple[Contradiction, ...], tuple[str, ...]]:
    """Return what contradicts an answer, and a note where nobody can tell which recording it means."""
    several = len(heard) > 1
    found = []
    for item in heard:
        patient = item.recording.patient
        checked = (text, item.measurements, item.reading)
        found.append(contradictions(*checked, sex=patient.sex, age=patient.age, repeated=several))
    return of_several(text, found, [item.recording.name for item in heard]) if several else (found[0], ())


def _unchecked(text: str, heard: Sequence[_Heard]) -> tuple[str, ...]:
    """Return what nothing could judge; about several recordings, only what none of them could."""
    notes = [unchecked(text, item.measurements, item.reading) for item in heard]
    return tuple(note for note in notes[0] if all(note in others for others in notes))


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


def _meant(scope: Scope | None, question: str) -> str:
    """Return the question that a bare one, such as "Why?", goes back to; else the question itself."""
    return scope.question if scope is not None and scope.question else question


def _classified(heard: Sequence[_Heard], question: str) -> tuple[Evidence, ...]:
    """Return what the classifier says of the findings that a question names."""
    named = {code for _, finding in find_names(question) for code in finding.codes}
    return tuple(
        one for item in heard if item.reading is not None for one in chances(item.reading, item.recording.name, named)
    )


def _abstain(
    heard: Sequence[_Heard], question: str, text: str, reason: str, evidence: tuple[Evidence, ...] = ()
) -> Answer:
    """Return what is said instead of an answer because of the question; and what the classifier says, if anything."""
    first, *others = (item.measurements for item in heard)
    if evidence:
        told = (f"{one.record}: {one}" if others else str(one) for one in evidence)
        text += f" The classifier, which is a model of its own and often wrong, gives: {'; '.join(told)}."
    return Answer(text, question, first, evidence, (), (), True, reason, tuple(others))


def refuse(heard: Sequence[_Heard], question: str) -> Answer:
    """Return what is answered to a question about recordings from one or more of which nothing can be concluded."""
    bad = [item for item in heard if item.tokens is None]
    several = len(heard) > 1
    reasons = [f"{item.recording.name}: {words}" if several else words for item in bad for words in _reasons(item)]
    first, *others = (item.measurements for item in heard)
    evidence = tuple(one for item in bad for one in item.evidence(frozenset()))
    text, why = refusal(tuple(reasons)), why_not(bad[0].quality)
    return Answer(text, question, first, evidence, (), _notes(heard), True, why, tuple(others))


def why_not(quality: Quality) -> str:
    """Return why nothing should be concluded from a recording: "unusable", "few_leads", "reversed", or "" if not so."""
    if not quality.usable:
        grave = {item.kind for item in quality.findings if item.severity == "abstain"}
        return "few_leads" if grave & NO_LEADS else "unusable"
    return "reversed" if any(item.kind == "reversal" for item in quality.findings) else ""


def _reasons(heard: _Heard) -> tuple[str, ...]:
    return heard.quality.reasons or tuple(item.words for item in heard.quality.findings if item.kind == "reversal")


def hear(
    recording: Recording,
    encoder: EcgCoca,
    reader: FindingReader | None = None,
    classifier: DiagnosisClassifier | None = None,
    neighbours: Neighbours | None = None,
) -> _Heard:
    """Judge and measure a recording, turn it into ECG tokens and read these, unless nothing can be concluded from it.

    What was cut or looks doubtful becomes notes.
    """
    import torch

    from ecgchat_lib.coca.embed import encoder_tokens
    from ecgchat_lib.coca.preprocess import recording_windows

    config = encoder.config.encoder
    quality = judge(recording)
    _, cut = model_window(recording, fs=500.0, seconds=config.seconds)
    notes = tuple(dict.fromkeys((*recording.notes, *cut, *quality.warnings)))  # each once, in order
    if why_not(quality):
        why = "the recording isn't usable" if not quality.usable else "the electrodes may be in each other's place"
        return _Heard(recording, None, Measurements(reasons=dict.fromkeys(NUMBERS, why)), quality, notes)
    measured = measure(recording)
    tokens = encoder_tokens(recording_windows([recording], config), encoder)
    signs = "" if reader is None else reader.read(tokens, [measured])[0]
    with torch.inference_mode():
        pooled = encoder.encoder.ln_post(tokens[:, 0].to(encoder.logit_scale.device))  # as the encoder pools them
        vector = (pooled @ encoder.encoder.proj)[0].cpu().numpy()
    reading = None if classifier is None else classifier.read_features(pooled.cpu().numpy())[0]
    near = () if neighbours is None else tuple(neighbours.nearest(vector, MOST_NEIGHBOURS, besides=recording))
    return _Heard(recording, tokens, measured, quality, notes, signs, reading, near)


def refusal(reasons: tuple[str, ...]) -> str:
    """Return what is said of a recording from which nothing can be concluded, instead of an answer."""
    return f"I can't say anything about this recording: {'; '.join(reasons)}. Please record the ECG again."


def _same(one: Recording, other: Recording) -> bool:
    import numpy as np

    return one is other or (
        one.name == other.name
        and one.fs == other.fs
        and one.patient == other.patient
        and np.array_equal(one.signal, other.signal, equal_nan=True)
    )


def _state(*folders: Path) -> str:
    """Return a hash of folders' manifests, which name the sha256 of every other file in them."""
    manifests = [folder / "manifest.json" for folder in folders]
    return hashlib.sha256(b"\0".join(p.read_bytes() if p.is_file() else b"" for p in manifests)).hexdigest()


@lru_cache(maxsize=2)  # a folder that was written anew is another one
def _load_parts(folder: Path, quantized: bool, device: str, state: str) -> tuple[EcgChat, EcgCoca, DiagnosisClassifier]:
    from ecgchat_lib.chat.checkpoint import load_chat_model
    from ecgchat_lib.coca.checkpoint import MINI_FOLDER as ENCODER_FOLDER
    from ecgchat_lib.coca.checkpoint import WEIGHTS, load_coca
    from ecgchat_lib.coca.checkpoint import read_manifest as read_encoder_manifest
    from ecgchat_lib.evaluate.classifier import load_classifier

    encoder_folder = data_folder() / ENCODER_FOLDER
    digest = read_encoder_manifest(encoder_folder)["sha256"][WEIGHTS]
    chat, _ = load_chat_model(folder, encoder_sha256=digest, quantized=quantized, device=device)
    encoder = load_coca(encoder_folder)
    return chat, encoder, load_classifier(model=encoder)


class BuiltInKnowledge:
    """The course's knowledge base, opened when it is first searched."""

    def search(self, query: str, top: int = 3) -> list[Hit]:
        """Return up to `top` entries, the best first."""
        from ecgchat_lib.knowledge.retrieve import load_retriever

        return load_retriever().search(query, top)


def within_scope(question: str, *, turns: Sequence[tuple[str, str]] = ()) -> Scope:
    """Tell what a question is about, see `scope.scope_of`; what that needs is loaded at the first question."""
    from ecgchat_lib.chat.scope import scope_of

    return scope_of(question, turns=turns)


def load_chat(
    folder: str | Path | None = None,
    *,
    quantized: bool = False,
    device: str = "cpu",
    with_: str | Iterable[str] = "default",
    decoding: Decoding | None = None,
    neighbours: str | Path | None = None,
    labels: str = LABELS_FORM,
) -> ChatSession:
    """Load a chat model with all that belongs to it and start a session. Loading the same one again is free.

    Args:
        folder: a folder written by `chat.checkpoint.save_chat`; None: the course's mini, `data/weights/ecg-chat-mini`.
        quantized: the language model in NF4: a quarter of the memory; on a CPU several times slower.
        device: "cpu" or "cuda".
        with_: what the model is given about a recording, see `grounding`.
        decoding: how the next token is chosen; greedily if None.
        neighbours: a folder written by `chat.neighbours.build_neighbours`; None: the course's own, if `with_` has
            "neighbours".
        labels: how the labels stand in the prompt, see `ChatSession`.

    Raises:
        ParameterError: an unknown name in `with_`, or another form of labels.
        MissingPartError: weights, the language model or the neighbours aren't on this machine.
        EcgChatError: a hash differs, or the weights were trained with another encoder.
    """
    from ecgchat_lib.chat.neighbours import FOLDER as NEIGHBOURS_FOLDER
    from ecgchat_lib.coca.checkpoint import MINI_FOLDER as ENCODER_FOLDER
    from ecgchat_lib.evaluate.classifier import MINI_FOLDER as CLASSIFIER_FOLDER

    place = Path(folder) if folder is not None else data_folder() / MINI_FOLDER
    given = grounding(with_)
    if labels != "reader" and labels not in LABELS:
        raise ParameterError(f"labels {labels!r}: expected one of reader, {', '.join(LABELS)}")
    weights = (data_folder() / ENCODER_FOLDER, data_folder() / CLASSIFIER_FOLDER)
    chat, encoder, classifier = _load_parts(place.resolve(), quantized, device, _state(place, *weights))
    near = None
    if neighbours is not None or "neighbours" in given:
        index = (data_folder() / NEIGHBOURS_FOLDER if neighbours is None else Path(neighbours)).resolve()
        near = _load_neighbours(index, _state(index, *weights))
    return ChatSession(
        chat,
        encoder,
        with_=given,
        decoding=decoding,
        classifier=classifier,
        neighbours=near,
        knowledge=BuiltInKnowledge(),
        scope=within_scope,
        labels=labels,
    )


@lru_cache(maxsize=2)
def _load_neighbours(folder: Path, state: str) -> Neighbours:
    from ecgchat_lib.chat.neighbours import load_neighbours

    return load_neighbours(folder)
