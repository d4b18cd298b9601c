"""Figures of notebook 13: the report as a page, and measurements beside their normal limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ecgchat_lib.course.figure import FigureResult, figure
from ecgchat_lib.knowledge.limits import Flag, load_limits
from ecgchat_lib.report.picture import page_picture
from ecgchat_lib.report.sections import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, QUIET = "#0072B2", "#D55E00", "#009E73", "#5A6875"
_MARKS = {"low": ("v", ORANGE), "normal": ("o", BLUE), "high": ("^", ORANGE)}


@figure("13.1", "The report of one recording: a single page on which the measured and the said stand apart.")
def report_page(pdf: Path, report: Report) -> FigureResult:
    """Show the page as a picture, or its words where no program can turn a PDF into a picture.

    Args:
        pdf: the report's file.
        report: its content.
    """
    data = {"record": report.record, "flags": [(item.field, item.shown, item.status) for item in report.flags]}
    return FigureResult(draw_page(pdf), page_in_alt_text(report), data)


def draw_page(pdf: Path, *, width: float = 8.27) -> Figure:
    """Draw the PDF's page.

    Args:
        pdf: the report's file.
        width: in inches; the height follows from A4.
    """
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(figsize=(width, width * 297 / 210))
    drawn.subplots_adjust(0, 0, 1, 1)
    axes.axis("off")
    axes.imshow(page_picture(pdf, dpi=200), interpolation="antialiased", aspect="auto")
    return drawn


def page_in_alt_text(report: Report) -> str:
    """Return the page in words, without anything that a model said."""
    out = [f"{item.name} {item.status}" for item in report.flags if item.status in ("low", "high")]
    titles = ", ".join(section.title for section in report.sections)
    return (
        f"One A4 page titled ECG report, recording {report.record}, with the sections {titles}, the tracing of twelve "
        f"leads on ECG paper, and a table of {len(report.flags)} measurements; outside their limits: "
        f"{', '.join(out) or 'none'}."
    )


@figure("13.2", "Measurements of two real recordings beside the normal limits of adults (gray bands).")
def against_limits(flags: Sequence[tuple[str, Sequence[Flag]]]) -> FigureResult:
    """Draw one band for each limit, and one mark for each recording on it.

    Args:
        flags: record name and its flags, for each recording.
    """
    from matplotlib import pyplot

    limits = [limit for limit in load_limits().values() if limit.low and limit.high and limit.field != "rr_ms"]
    upper = [limit for limit in load_limits().values() if limit.field == "qrs_ms"]
    shown = [*limits[:2], *upper, *limits[2:]]
    drawn, axes = pyplot.subplots(len(shown), 1, figsize=(8, 0.95 * len(shown) + 0.5))
    for row, limit in zip(axes, shown, strict=True):
        _band(row, limit.field, [(name, item) for name, items in flags for item in items if item.field == limit.field])
    drawn.tight_layout(h_pad=0.3)
    data = [[name, [(item.field, item.shown, item.status) for item in items]] for name, items in flags]
    said = [
        f"{name}: " + ", ".join(f"{i.name} {i.shown} {i.status}" for i in items if i.field in {x.field for x in shown})
        for name, items in flags
    ]
    return FigureResult(
        drawn, "Gray bands of normal values with one mark per recording. " + ". ".join(said) + ".", data
    )


def _band(axes: Axes, field: str, items: Sequence[tuple[str, Flag]]) -> None:
    limit = load_limits()[field]
    sex_edges = limit.high.by_sex.values() if limit.high else ()
    low = next(iter(limit.low.by_sex.values())) if limit.low else 0.0
    high = max(sex_edges)
    values = [item.value for _, item in items if item.value == item.value]
    margin = 0.35 * (high - low)
    left, right = (
        min([low - margin, *(v - margin / 3 for v in values)]),
        max([high + margin, *(v + margin / 3 for v in values)]),
    )
    axes.axvspan(low, min(sex_edges), color="#DDE3E8", lw=0)
    axes.axvspan(min(sex_edges), high, color="#EEF1F4", lw=0)  # normal in women only
    for index, (name, item) in enumerate(items):
        if item.status in _MARKS:
            marker, color = _MARKS[item.status]
            height = 0.35 + 0.3 * index
            axes.plot([item.value], [height], marker, color=color, markersize=8, clip_on=False)
            axes.annotate(
                name, (item.value, height), (8, 0), textcoords="offset points", va="center", size=8, color=QUIET
            )
    axes.set(xlim=(max(left, 0) if limit.low is None else left, right), ylim=(0, 1), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.set_ylabel(f"{limit.name}\n{limit.unit}", rotation=0, ha="right", va="center", size=9)
