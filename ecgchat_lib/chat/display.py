"""A chat for notebooks without widgets: each answer is an object that shows itself, and the notebook keeps plain HTML.

The HTML has no script, no link and nothing from elsewhere; its colors stand in the tags, and where a viewer throws them
away (GitHub does), who said what and what is contradicted still stands there in words. The plain text says the same.
For one conversation, same questions, same texts. Taught in: 13 §1.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ecgchat_lib.chat.cli import clean
from ecgchat_lib.chat.terminal import REASONS, evidence_line
from ecgchat_lib.ecg.recording import Recording, read_recording

if TYPE_CHECKING:
    from ecgchat_lib.chat.session import Answer, ChatSession

DISCLAIMER = "For learning, not for care."

# Text on its ground: contrast of 4.5 or more, whatever the notebook's own theme is.
_FRAME = "max-width:46em;margin:.4em 0;padding:.7em;color:#1b2a38;background:#ffffff;line-height:1.45;text-align:left;"
_FRAME += "border:1px solid #c9d3da;border-radius:10px;overflow-wrap:anywhere"
_HEAD = "margin:0 0 .6em;color:#55636f;background:#ffffff;font-size:.85em"
_BUBBLE = "width:fit-content;max-width:82%;padding:.5em .8em;"
_ASKED = f"{_BUBBLE}margin:0 0 .5em auto;color:#ffffff;background:#0b5c7a;border-radius:12px 12px 3px 12px"
_SAID = f"{_BUBBLE}margin:0 0 .7em;color:#1b2a38;background:#eef2f5;border-radius:12px 12px 12px 3px"
_WHO_ASKED = "color:#ffffff;background:#0b5c7a"
_WHO_SAID = "color:#0b5c7a;background:#eef2f5"
_WRONG = "color:#8f1d14;background:#fbdcd7;font-weight:600;text-decoration:underline wavy"
_WHY = "color:#8f1d14;background:#eef2f5;font-size:.88em"
_DOUBT = "margin:.35em 0 0;color:#7a4b00;background:#eef2f5;font-size:.88em"
_LIST = "margin:.3em 0;padding:0 0 0 1.2em"
_MORE = "margin:.4em 0 0;color:#43515d;background:#eef2f5;font-size:.85em"


@dataclass(frozen=True)
class Shown:
    """Questions with their answers, which a notebook shows as speech bubbles and everything else as text.

    Attributes:
        records: names of the recordings that they are about.
        answers: what was answered, in order.
    """

    records: tuple[str, ...]
    answers: tuple[Answer, ...]

    @property
    def answer(self) -> Answer:
        """The last answer, with its evidence and contradictions.

        Raises:
            IndexError: nothing was asked.
        """
        return self.answers[-1]

    def __repr__(self) -> str:
        told: set[str] = set()
        turns = "\n\n".join(_as_text(answer, told) for answer in self.answers) or "Nothing was asked yet."
        return f"About {', '.join(map(_line, self.records))}. {DISCLAIMER}\n\n{turns}"

    def _repr_html_(self) -> str:
        about = html.escape(f"About {', '.join(map(_line, self.records))}. {DISCLAIMER}")
        told: set[str] = set()
        turns = "".join(_as_html(answer, told) for answer in self.answers) or "<p>Nothing was asked yet.</p>"
        return f'<div style="{_FRAME}"><p style="{_HEAD}">{about}</p>{turns}</div>'


@dataclass
class NotebookChat:
    """A conversation in a notebook: call it with a question.

        chat = NotebookChat(load_chat(), recording)
        chat("What is the rhythm?")

    Attributes:
        session: the model. It keeps one conversation, so give each chat a session of its own (loading one again is
            free); what was said in it before is forgotten.
        recording: a recording or its path, or several of them, the earliest first.
        answers: what was answered so far.
    """

    session: ChatSession
    recording: Recording | str | Path | Sequence[Recording | str | Path]
    answers: list[Answer] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        given = [self.recording] if isinstance(self.recording, Recording | str | Path) else list(self.recording)
        self.recordings = [item if isinstance(item, Recording) else read_recording(item) for item in given]
        self.session.reset()

    def __call__(self, question: str) -> Shown:
        """Ask a question; further ones continue the conversation.

        Raises:
            EcgChatError: the question is empty, there is no recording, or there are more ECGs and words than the model
                reads.
        """
        self.answers.append(self.session.ask(self.recordings, question))
        return Shown(self._names(), (self.answers[-1],))

    def conversation(self) -> Shown:
        """Return all that was said."""
        return Shown(self._names(), tuple(self.answers))

    def __repr__(self) -> str:
        return f"NotebookChat about {', '.join(map(_line, self._names()))}: {len(self.answers)} answers"

    def _names(self) -> tuple[str, ...]:
        return tuple(item.name for item in self.recordings)


def _line(text: str) -> str:
    """Return a text on one line, without characters that steer what shows it."""
    return clean(" ".join(text.split()))


def _refused(answer: Answer) -> str:
    """Return why the model wasn't asked, or ""."""
    return f"Not answered: {REASONS.get(answer.reason, _line(answer.reason))}." if answer.abstained else ""


def _news(lines: Sequence[str], told: set[str]) -> list[str]:
    """Return the lines that weren't told yet, and remember them."""
    new = [line for line in dict.fromkeys(map(_line, lines)) if line not in told]
    told.update(new)
    return new


def _as_text(answer: Answer, told: set[str]) -> str:
    """Return a turn as text; notes and evidence that an earlier turn has aren't said again."""
    lines = [f"You: {_line(answer.question)}", f"ECG-Chat: {clean(answer.marked).strip() or '(nothing)'}"]
    lines += [_refused(answer)] if answer.abstained else []
    lines += _news([f"Note: {note}" for note in answer.notes], told)
    lines += _news([f"Evidence, {item.kind}: {evidence_line(item)}" for item in answer.evidence], told)
    return "\n".join(lines)


def _as_html(answer: Answer, told: set[str]) -> str:
    """Return a turn as HTML; notes that an earlier turn has aren't said again."""
    said = _marked(answer) or "<em>(nothing)</em>"
    parts = [f'<strong style="{_WHO_SAID}">ECG-Chat:</strong> {said}']
    if answer.abstained:
        parts.append(f'<p style="{_DOUBT}"><strong>{html.escape(_refused(answer))}</strong></p>')
    for note in _news([f"Note: {note}" for note in answer.notes], told):
        parts.append(f'<p style="{_DOUBT}">{html.escape(note)}</p>')
    if answer.evidence:
        rows = "".join(
            f"<li><strong>{html.escape(_line(item.kind))}</strong>: {html.escape(_line(evidence_line(item)))}</li>"
            for item in answer.evidence
        )
        listed = f'<summary>Evidence ({len(answer.evidence)})</summary><ul style="{_LIST}">{rows}</ul>'
        parts.append(f'<details style="{_MORE}">{listed}</details>')
    asked = f'<strong style="{_WHO_ASKED}">You:</strong> {html.escape(_line(answer.question))}'
    return f'<p style="{_ASKED}">{asked}</p><div style="{_SAID}">{"".join(parts)}</div>'


def _marked(answer: Answer) -> str:
    """Return the answer as HTML, each contradicted statement marked and followed by what was found instead."""
    out, last = [], 0
    for item in sorted(answer.contradictions, key=lambda one: one.stop):
        start = max(item.start, last)  # one statement can be contradicted twice
        out.append(_text(answer.text[last:start]))
        if start < item.stop:
            out.append(f'<mark style="{_WRONG}">{_text(answer.text[start : item.stop])}</mark>')
        out.append(f' <strong style="{_WHY}">[contradicted: {html.escape(_line(item.found))}]</strong>')
        last = max(last, item.stop)
    return "".join([*out, _text(answer.text[last:])]).strip()


def _text(text: str) -> str:
    return html.escape(clean(text)).replace("\n", "<br>")
