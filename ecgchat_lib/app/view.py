"""What the page shows, as HTML: the tracing, the measurements, the quality, the conversation.

Nothing here knows the server. Every text that comes from a file, a visitor or a model goes through `safe`. Taught in:
13 §7
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.knowledge.limits import Flag, cautions, flag_all
from ecgchat_lib.report.escaping import shorten
from ecgchat_lib.report.picture import DRAWING
from ecgchat_lib.report.sections import NOTICE, withheld

if TYPE_CHECKING:
    from ecgchat_lib.chat.grounding import Evidence
    from ecgchat_lib.chat.session import Answer
    from ecgchat_lib.ecg.measure import Measurements
    from ecgchat_lib.ecg.quality import Quality
    from ecgchat_lib.ecg.recording import Recording

PIXELS_PER_INCH = 140
_JOINERS = "\u200c\u200d"  # Persian words and joined emoji need them; they can't reorder a text
_LIVE = {"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"}  # Gradio's templates would run these
_KINDS = (
    ("quality", "Quality of the recording"),
    ("measurements", "Measured"),
    ("labels", "Classifier"),
    ("neighbours", "Similar recordings"),
    ("knowledge", "Knowledge"),
)
_SCORES = {"labels": "probability", "neighbours": "similarity"}
_REASONS = {
    "unusable": "the recording isn't usable",
    "reversed": "electrodes look exchanged",
    "few_leads": "too few leads show a signal",
    "outside": "the question is outside its field",
    "instruction": "the message tries to change its rules",
    "unknown_finding": "it was never taught this finding",
}


@dataclass(frozen=True)
class Seen:
    """A recording that is shown, with what was found in it."""

    recording: Recording
    measurements: Measurements
    quality: Quality
    flags: tuple[Flag, ...]
    picture: str  # a data URI
    description: str  # the picture in words


@dataclass
class Turn:
    """A question, and its answer as far as it is made."""

    question: str
    told: str = ""
    answer: Answer | None = None
    error: str = ""


def safe(text: object) -> str:
    """Return a text as HTML that shows exactly its characters: no tag, no template, no hidden change of direction."""
    visible = "".join(
        c if c.isprintable() or c in _JOINERS else " " if c in "\n\t\r" else f"[U+{ord(c):04X}]" for c in str(text)
    )
    return "".join(_LIVE.get(c, c) for c in html.escape(visible))


def examine(recording: Recording) -> Seen:
    """Judge, measure and draw a recording.

    Args:
        recording: twelve leads in mV.

    Returns:
        What the page shows of it; of an unusable one, or with exchanged electrodes, no measurement is told.
    """
    from ecgchat_lib.ecg.measure import measure
    from ecgchat_lib.ecg.paper import describe, draw_paper
    from ecgchat_lib.ecg.quality import judge

    quality = judge(recording)
    nothing = withheld(quality)
    measured = measure(recording) if nothing is None else nothing
    flags = flag_all(measured, sex=recording.patient.sex, age=recording.patient.age)
    with DRAWING:
        drawn = io.BytesIO()
        figure = draw_paper(recording, measurements=measured if nothing is None else None, quality=quality)
        figure.savefig(drawn, format="png", dpi=PIXELS_PER_INCH)
    picture = f"data:image/png;base64,{base64.b64encode(drawn.getvalue()).decode('ascii')}"
    return Seen(recording, measured, quality, flags, picture, describe(recording, measured, quality=quality))


def header_html() -> str:
    """Return the page's head: what this is, and what it is not."""
    return (
        "<header><h1>ECG-Chat</h1><p>Look at a 12-lead ECG, see what is measured on it, and ask a small language "
        f'model about it.</p></header><p class="notice" role="note"><strong>{safe(NOTICE)}</strong> The answers are '
        "often wrong. Recordings stay on this computer and are removed when you close this tab.</p>"
    )


def status_html(text: str, kind: str = "good") -> str:
    """Return one line on what happened: `kind` is "good", "bad" or "wait"."""
    words = {"bad": "Sorry: ", "good": "", "wait": ""}[kind]
    return f'<p class="status {kind}" dir="auto">{words}{safe(text)}</p>' if text else ""


def tracings_html(seen: Sequence[Seen]) -> str:
    """Return the recordings' tracings, each with its name and its description."""
    if not seen:
        return '<div class="empty"><p><strong>No recording yet.</strong> Drop one, or choose a sample.</p></div>'
    return "".join(_tracing(one, _which(number, len(seen))) for number, one in enumerate(seen))


def found_html(seen: Sequence[Seen]) -> str:
    """Return what was measured on the recordings, and what their quality is."""
    parts = []
    for number, one in enumerate(seen):
        which = _which(number, len(seen))
        title = f"<h2>{which}<bdi>{safe(one.recording.name)}</bdi></h2>" if which else ""
        parts.append(f'<section class="found">{title}{_table(one)}{_quality(one)}</section>')
    return "".join(parts)


def _which(number: int, count: int) -> str:
    return f'<span class="which">{"Later" if number else "Earlier"}</span> ' if count > 1 else ""


def _tracing(seen: Seen, which: str) -> str:
    recording = seen.recording
    who = [f"{recording.patient.age:g} years" if recording.patient.age is not None else "", recording.patient.sex or ""]
    facts = [*filter(None, who), f"{recording.seconds:.1f} s", f"{recording.fs:g} Hz"]
    label = safe(f"ECG tracing of {recording.name}")
    return (
        f'<section class="recording"><h2>{which}<bdi>{safe(recording.name)}</bdi> '
        f"<small>{safe(', '.join(facts))}</small></h2>"
        f'<div class="paper" role="region" tabindex="0" aria-label="{label}">'
        f'<img src="{seen.picture}" alt="{safe(seen.description)}"></div></section>'
    )


def _table(seen: Seen) -> str:
    """Return the measurements beside their normal ranges; what is out of range is said in words."""
    if withheld(seen.quality) is not None:
        why = safe(seen.measurements.reasons["heart_rate_bpm"])
        return f'<div class="measured"><p>Nothing was measured: {why}.</p></div>'
    rows = []
    for item in seen.flags:
        out = item.status in ("low", "high")
        arrow = {"low": "↓ low", "high": "↑ high", "normal": "normal"}.get(item.status, "not judged")
        value = (
            f"{safe(item.shown)} <small>{safe(item.unit)}</small>" if item.shown != "not measured" else "not measured"
        )
        reason = item.sentence.partition(": ")[2]  # before it stand the name and the value, as in the row
        told = bool(reason) and (out or item.shown == "not measured")
        rows.append(
            f'<tr class="{safe(item.status)}{" told" if told else ""}"><th scope="row">{safe(item.name)}</th>'
            f"<td>{value}</td><td>{safe(item.normal) or '–'}</td><td>{arrow}</td></tr>"
        )
        if told:
            rows.append(f'<tr class="why"><td colspan="4">{safe(reason)}</td></tr>')
    said = "".join(f"<li>{safe(sentence)}</li>" for sentence in cautions(seen.measurements))
    sources = dict.fromkeys(str(item.source) for item in seen.flags if item.source)
    return (
        '<div class="measured"><table><thead><tr><th scope="col">By rules</th>'
        '<th scope="col">Value</th><th scope="col">Normal</th><th scope="col">Flag</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>{f'<ul>{said}</ul>' if said else ''}"
        "<details><summary>Where the limits come from</summary>"
        f"{_list(_linked(source) for source in sources)}</details></div>"
    )


def _quality(seen: Seen) -> str:
    usable = seen.quality.usable
    doubts = "electrodes look exchanged" if withheld(seen.quality) is not None else "usable, with doubts"
    word = "not usable" if not usable else doubts if seen.quality.warnings else "usable"
    kind = "bad" if not usable else "doubt" if seen.quality.warnings else "good"
    parts = [f'<div class="quality"><h3>Quality</h3><p class="verdict {kind}">{word}</p>']
    parts.append(_list(safe(warning) for warning in seen.quality.warnings))
    notes = _list(f'<span dir="auto">{safe(note)}</span>' for note in seen.recording.notes)
    parts.append(f"<h4>While reading</h4>{notes}" if notes else "")
    comments = _list(
        f'<span dir="auto">{safe(shorten(comment, 200))}</span>' for comment in seen.recording.comments[:20]
    )
    if comments:
        parts.append(f"<details><summary>What the file's header says</summary>{comments}</details>")
    return f"{''.join(parts)}</div>"


def conversation_html(turns: Sequence[Turn], *, busy: bool = False) -> str:
    """Return the conversation, the newest answer first.

    Args:
        turns: questions and answers, the earliest first.
        busy: whether the last answer is still being made.
    """
    newest = len(turns) - 1
    shown = (_turn(turn, number == newest, busy) for number, turn in enumerate(turns))
    return "".join(reversed([*shown]))


def _turn(turn: Turn, newest: bool, busy: bool) -> str:
    asked = f'<p class="asked" dir="auto"><span class="who">You asked</span> {safe(shorten(turn.question, 500))}</p>'
    if turn.error:
        return f'<article class="turn">{asked}{status_html(turn.error, "bad")}</article>'
    if turn.answer is None:
        busy = busy and newest
        cursor = '<span class="cursor" aria-hidden="true"></span>' if busy else ""
        waiting = '<p class="origin">The model is answering …</p>' if busy else '<p class="origin">Not finished</p>'
        said = f'<div class="said">{waiting}<p dir="auto">{safe(turn.told)}{cursor}</p></div>'
        return f'<article class="turn">{asked}{said}</article>'
    return f'<article class="turn">{asked}{_answer(turn.answer, newest)}</article>'


def _answer(answer: Answer, newest: bool) -> str:
    if answer.abstained:
        why = _REASONS.get(answer.reason, "")
        said = (
            f'<div class="said abstained"><p class="origin">No answer{safe(f": {why}" if why else "")}</p>'
            f'<p dir="auto">{safe(answer.text)}</p></div>'
        )
        return said + _evidence(answer, newest) + _notes(answer)
    said = f'<div class="said"><p class="origin">Said by the model, not measured</p><p dir="auto">{_marked(answer)}</p>'
    wrong = _list(f'<span dir="auto">{safe(item)}</span>' for item in answer.contradictions)
    if wrong:
        said += f'<div class="wrong"><strong>! Contradicted by what was found</strong>{wrong}</div>'
    return f"{said}</div>{_evidence(answer, newest)}{_notes(answer)}"


def _marked(answer: Answer) -> str:
    """Return the answer's text, each contradicted statement marked, and followed by the reason in words."""
    parts, last = [], 0
    for item in sorted(answer.contradictions, key=lambda one: (one.start, one.stop)):
        start = max(item.start, last)
        if item.stop <= start:
            continue
        parts += [safe(answer.text[last:start]), f"<mark>{safe(answer.text[start : item.stop])}</mark>"]
        parts.append(f' <span class="contradicted">[contradicted: {safe(item.found)}]</span>')
        last = item.stop
    return "".join([*parts, safe(answer.text[last:])])


def _evidence(answer: Answer, newest: bool) -> str:
    """Return what the answer can rest on, by kind; open at the newest answer, folded at the others."""
    groups = []
    several = len({item.record for item in answer.evidence if item.record}) > 1
    for kind, title in _KINDS:
        for given, said in ((True, ""), (False, " (checked against, not told to the model)")):
            items = [item for item in answer.evidence if item.kind == kind and item.given is given]
            if items:
                rows = _list(_row(item, several) for item in items)
                groups.append(f"<div><h3>{title}{said}</h3>{rows}</div>")
    opened = " open" if newest else ""
    return f'<details class="evidence"{opened}><summary>Evidence</summary>{"".join(groups)}</details>' if groups else ""


def _row(item: Evidence, several: bool) -> str:
    """Return one line of evidence: whose, what, how sure, where from."""
    parts = [f"<bdi>{safe(item.record)}</bdi>: "] if several and item.record else []
    parts.append(f'<span dir="auto">{safe(shorten(item.text, 600))}</span>')
    if item.score is not None and item.kind in _SCORES:
        parts.append(f' <span class="score">{_SCORES[item.kind]} {item.score:.2f}</span>')
    if item.source:
        parts.append(f' <cite dir="auto">{_linked(item.source)}</cite>')
    return "".join(parts)


def _linked(source: str) -> str:
    """Return citations, each DOI as a link."""
    parts, last = [], 0
    for found in re.finditer(r"doi (10\.[\w.()/:-]*[\w)])", source, re.ASCII):
        doi = safe(found[1])
        link = f'<a href="https://doi.org/{doi}" target="_blank" rel="noopener noreferrer">doi {doi}</a>'
        parts += [safe(source[last : found.start()]), link]
        last = found.end()
    return "".join([*parts, safe(source[last:])])


def _notes(answer: Answer) -> str:
    notes = _list(f'<span dir="auto">{safe(shorten(note, 300))}</span>' for note in answer.notes)
    return f'<details class="notes"><summary>Notes</summary>{notes}</details>' if notes else ""


def _list(items: Iterable[str]) -> str:
    rows = "".join(f"<li>{item}</li>" for item in items)
    return f"<ul>{rows}</ul>" if rows else ""


def report_html(files: Sequence[tuple[str, str]]) -> str:
    """Return links to the (address, name) of a report's files; the first is the report."""
    links = (
        f'<a class="report-link" href="{safe(url)}" download="{safe(name)}">Save {safe(name)}</a>'
        for url, name in files
    )
    return f'<p class="status good">{" and ".join(links)}</p>'


def announced(turn: Turn) -> str:
    """Return what a screen reader is told once an answer is complete."""
    if turn.error or turn.answer is None:
        return f"<p>{safe(turn.error)}</p>"
    wrong = len(turn.answer.contradictions)
    more = f" {wrong} statement{'s are' if wrong > 1 else ' is'} contradicted by what was found." if wrong else ""
    return f"<p>{safe(turn.answer.text)}{more}</p>"


def check_question(question: str | None, seen: Sequence[Seen]) -> str:
    """Return the question without spaces around it.

    Raises:
        EcgChatError: there is no recording, no question, or a very long one.
    """
    asked = (question or "").strip()
    if not seen:
        raise EcgChatError("no recording yet. Drop one, or choose a sample")
    if not asked:
        raise EcgChatError("the question is empty. Ask for instance: What is the heart rhythm?")
    if len(asked) > 2000:
        raise EcgChatError(f"a question of {len(asked)} characters, expected at most 2000. Ask shorter")
    return asked
