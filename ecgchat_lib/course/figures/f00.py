"""Figures of the tour: the path of the data through the library, and a real recording next to what was made of it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgchat_lib.course.figure import FigureResult, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import FancyBboxPatch

    from ecgchat_lib.ecg.measure import Measurements
    from ecgchat_lib.ecg.recording import Recording
    from ecgchat_lib.report.sections import Report

BLUE, ORANGE, GREEN, INK, QUIET = "#0072B2", "#D55E00", "#009E73", "#1B2A38", "#5A6875"


@dataclass(frozen=True)
class Room:
    """One box of the path: where it stands, what it is called, what it does, and which notebooks teach it."""

    name: str
    does: str
    notebooks: str
    column: float
    row: float
    color: str


ROOMS = (
    Room("recording", "12 leads, mV\nfs Hz", "", 0, 2, INK),
    Room("ecg/", "read, filter, draw,\nmeasure, judge", "01", 1, 2, BLUE),
    Room("datasets/", "many recordings,\nreports, labels", "02", 2, 2, BLUE),
    Room("augment", "disturb, but keep\nthe reading", "04", 3, 2, BLUE),
    Room("coca/", "ECG → 101 tokens,\ntrained with reports", "05 06 07", 4, 2, ORANGE),
    Room("evaluate/", "retrieval, zero-shot,\nprobe", "08", 5, 2, ORANGE),
    Room("measurements", "rate, intervals,\naxis, amplitudes", "01", 1, 0, BLUE),
    Room("instruct/", "questions and\nanswers from reports", "10", 2, 1, GREEN),
    Room("chat/", "tokens + question\n→ language model", "11 12 13", 4, 1, GREEN),
    Room("knowledge/", "normal limits and\ntheir sources", "13", 2, 0, GREEN),
    Room("report/", "measured and said,\nkept apart", "13", 4, 0, GREEN),
    Room("an answer", "to a question\nabout the ECG", "", 5, 1, INK),
    Room("a PDF", "one page for\na reader", "", 5, 0, INK),
)
PATHS = (  # from, to, what passes
    ("recording", "ecg/", ""),
    ("ecg/", "datasets/", ""),
    ("datasets/", "augment", ""),
    ("augment", "coca/", ""),
    ("coca/", "evaluate/", ""),
    ("ecg/", "measurements", "beats and waves"),
    ("datasets/", "instruct/", "reports"),
    ("instruct/", "chat/", "conversations"),
    ("coca/", "chat/", "101 tokens"),
    ("measurements", "knowledge/", ""),
    ("knowledge/", "report/", "low, normal, high"),
    ("chat/", "report/", "answers"),
    ("chat/", "an answer", ""),
    ("report/", "a PDF", ""),
)
_WIDTH, _HEIGHT, _COLUMN, _ROW = 1.62, 0.98, 2.05, 1.62


@figure("00.1", "The path of the data: from one recording to an answer and a report, and the notebook of each step.")
def path_of_the_data(recording: Recording) -> FigureResult:
    """Draw the rooms of the library in the order in which data passes through them.

    Args:
        recording: shown as a strip of lead II where the path begins.
    """
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(figsize=(11.2, 4.9))
    axes.set(xlim=(-0.95, 5 * _COLUMN + 0.95), ylim=(-0.65, 2 * _ROW + 0.65), aspect="equal")
    axes.axis("off")
    boxes = {room.name: _box(axes, room) for room in ROOMS}
    for begin, end, label in PATHS:
        _arrow(axes, boxes[begin], boxes[end], label)
    _strip(axes, recording)
    drawn.subplots_adjust(0.005, 0.01, 0.995, 0.99)
    return FigureResult(drawn, _in_words(), {"rooms": [vars_of(room) for room in ROOMS], "paths": PATHS})


def vars_of(room: Room) -> dict[str, Any]:
    """Return what the picture says of a room, without where it stands."""
    return {"name": room.name, "does": room.does, "notebooks": room.notebooks}


def _center(room: Room) -> tuple[float, float]:
    return room.column * _COLUMN, room.row * _ROW


def _box(axes: Axes, room: Room) -> FancyBboxPatch:
    from matplotlib.patches import FancyBboxPatch

    x, y = _center(room)
    corner = (x - _WIDTH / 2, y - _HEIGHT / 2)
    style = "round,pad=0,rounding_size=0.1"
    box = FancyBboxPatch(
        corner, _WIDTH, _HEIGHT, boxstyle=style, facecolor="white", edgecolor=room.color, linewidth=1.6
    )
    axes.add_patch(box)
    top = y + _HEIGHT / 2
    axes.text(x, top - 0.2, room.name, ha="center", va="center", weight="bold", color=room.color, size=10)
    axes.text(x, top - 0.36, room.does, ha="center", va="top", color=INK, size=8, linespacing=1.25)
    if room.notebooks:
        text = "notebook " + room.notebooks if " " not in room.notebooks else "notebooks " + room.notebooks
        axes.text(x, y - _HEIGHT / 2 + 0.04, text, ha="center", va="bottom", color=QUIET, size=7.2)
    return box


def _arrow(axes: Axes, begin: FancyBboxPatch, end: FancyBboxPatch, label: str) -> None:
    from matplotlib.patches import FancyArrowPatch

    (x0, y0), (x1, y1) = _middle(begin), _middle(end)
    arrow = FancyArrowPatch(
        (x0, y0), (x1, y1), patchA=begin, patchB=end, shrinkA=3, shrinkB=3,
        arrowstyle="-|>", mutation_scale=11, color=QUIET, linewidth=1.3, zorder=0,
    )  # fmt: skip
    axes.add_patch(arrow)
    look: dict[str, Any] = {"va": "center", "color": QUIET, "size": 7.8}
    if label and x0 == x1:
        axes.text(x0 + 0.08, (y0 + y1) / 2, label, ha="left", **look)
    elif label:
        axes.text((x0 + x1) / 2, (y0 + y1) / 2 + 0.16, label, ha="center", **look)


def _middle(box: FancyBboxPatch) -> tuple[float, float]:
    return box.get_x() + box.get_width() / 2, box.get_y() + box.get_height() / 2


def _strip(axes: Axes, recording: Recording) -> None:
    """Draw three seconds of lead II in the lower part of the first box."""
    room = ROOMS[0]
    x, y = _center(room)
    count = min(int(3 * recording.fs), recording.signal.shape[1])
    lead = np.nan_to_num(recording.signal[recording.leads.index("II"), :count].astype(float))
    lead = (lead - np.median(lead)) / max(np.ptp(lead), 1e-6)
    time = np.linspace(x - 0.68, x + 0.68, count)
    axes.plot(time, y - 0.3 + 0.24 * lead, color=ORANGE, linewidth=1.0, clip_on=False)


def _in_words() -> str:
    names = {room.name: room for room in ROOMS}
    upper = ", ".join(name for name, room in names.items() if room.row == 2)
    steps = "; ".join(f"{begin} to {end}" for begin, end, _ in PATHS)
    return f"A diagram of {len(ROOMS)} boxes and {len(PATHS)} arrows. Along the top: {upper}. The arrows: {steps}."


@figure("00.2", "A real 12-lead recording as a clinician sees it: 25 mm for a second, 10 mm for a millivolt.")
def on_paper(recording: Recording, measurements: Measurements) -> FigureResult:
    """Draw the recording on ECG paper.

    Args:
        recording: a real one.
        measurements: of it, for the description in words.
    """
    from ecgchat_lib.ecg.paper import describe, draw_paper

    data = [recording.name, recording.fs, list(recording.signal.shape)]
    return FigureResult(draw_paper(recording), describe(recording, measurements), data)


@figure("00.3", "How near each recording lies to each sentence in the mini model's space; a ring marks the nearest.")
def nearest_sentence(
    names: Sequence[str], labels: Sequence[str], sentences: Sequence[str], cosines: np.ndarray
) -> FigureResult:
    """Draw a table of similarities, shaded by how far each lies above or below its column's mean.

    Args:
        names: of the n recordings.
        labels: what the dataset says of each recording.
        sentences: the m texts.
        cosines: (n, m).
    """
    from matplotlib import pyplot

    centered = cosines - cosines.mean(axis=0)
    span = float(np.abs(centered).max()) or 1.0
    drawn, axes = pyplot.subplots(figsize=(8.6, 0.36 * len(names) + 1.3))
    axes.imshow(centered, cmap="PuOr_r", vmin=-span, vmax=span, aspect="auto")
    axes.scatter(
        centered.argmax(axis=1), range(len(names)), s=150, facecolors="none", edgecolors="black", linewidths=1.6
    )
    axes.set_xticks(range(len(sentences)), [textwrap.fill(sentence, 15) for sentence in sentences], size=8)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(names)), names)
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(len(names)), [f"labeled: {label}" for label in labels], size=8)
    for side in (axes, right):
        side.tick_params(length=0)
        side.spines[:].set_visible(False)
    drawn.tight_layout()
    said = "; ".join(f"{name} {label}" for name, label in zip(names, labels, strict=True))
    alt = (
        f"A table of {len(names)} recordings by {len(sentences)} sentences ({'; '.join(sentences)}), shaded by "
        f"similarity, with a ring at each recording's nearest sentence. The dataset's labels at the right: {said}."
    )
    return FigureResult(drawn, alt, {"names": list(names), "labels": list(labels), "sentences": list(sentences)})


@figure("00.4", "The page at the end of the path, as a picture of the PDF.")
def page(pdf: Path, report: Report) -> FigureResult:
    """Show the report's page.

    Args:
        pdf: the report's file.
        report: its content.
    """
    from ecgchat_lib.course.figures.f13 import draw_page, page_in_alt_text

    data = {"record": report.record, "flags": [(item.field, item.shown, item.status) for item in report.flags]}
    return FigureResult(draw_page(pdf, width=6.2), page_in_alt_text(report), data)
