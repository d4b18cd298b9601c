"""Draw a recording as a cardiograph prints it: 25 mm/s, 10 mm/mV, on millimeter paper, true to scale.

The signal is drawn as it is, apart from each lead's median being put on its baseline; nothing is filtered. Marks and
measurements can be laid over it. Figures are plain matplotlib `Figure`s, so that no window system is needed. Taught in:
01 §1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgchat_lib.ecg.leads import LEADS, canonical_lead
from ecgchat_lib.ecg.marks import WAVES, WaveMarks
from ecgchat_lib.errors import ParameterError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from ecgchat_lib.ecg.measure import Measurements
    from ecgchat_lib.ecg.quality import Quality
    from ecgchat_lib.ecg.recording import Recording

MM_PER_SECOND = 25.0
MM_PER_MV = 10.0
SPEEDS = (12.5, 25.0, 50.0)  # mm/s, that cardiographs have
GAINS = (2.5, 5.0, 10.0, 20.0)  # mm/mV
LAYOUTS = {
    "3x4+1": (4, True),
    "6x2": (2, False),
    "12x1": (1, False),
}  # columns, and whether a rhythm strip runs along the foot
PULSE_SECONDS = 0.2  # of the calibration pulse, which is 1 mV high
MOST_SECONDS = 30.0
MOST_ROWS = 12  # of a rhythm sheet

# Told apart by lightness alone, so by every kind of color vision, and in gray.
_PAPER, _FINE, _COARSE, _INK, _SOFT = "#fffaf6", "#f6ddd2", "#e6ab96", "#14142b", "#5b5566"
_BAND = {"P": "#d9e6f2", "QRS": "#b9c6d8", "T": "#e9e2f0"}  # behind the trace; the bars below it carry the meaning
_RIGHT, _TOP, _FOOT = 6.0, 18.0, 9.0  # mm around the traces; at the left, the calibration pulse stands
_EDGE = 5.0  # mm from the paper's left edge to the first letter
_HEADER, _FOOTER = 14.5, 6.5  # mm of it without grid
MOST_UP, MOST_DOWN = 26.0, 22.0  # mm that a row's waves get; what is taller is cut off a little later
_NEAREST, _FARTHEST = 20.0, 42.0  # mm between one row's baseline and the next
_MARKS = 8.0  # mm below a marked row for its bars and letters


@dataclass(frozen=True)
class Strip:
    """A piece of one lead: where it begins on the row in seconds, its first sample, and mV around the lead's median."""

    lead: str
    start: float
    first: int
    signal: NDArray[np.float64]


@dataclass(frozen=True)
class _Scale:
    speed: float  # mm/s
    gain: float  # mm/mV
    fs: float

    @property
    def left(self) -> float:
        """Where the traces begin, in mm."""
        return 9.0 + PULSE_SECONDS * self.speed

    def x(self, strip: Strip) -> NDArray[np.float64]:
        return np.asarray(self.left + (strip.start + np.arange(len(strip.signal)) / self.fs) * self.speed)

    def at(self, strip: Strip, sample: float) -> float:
        """Return where a sample of the recording is on the paper, in mm."""
        return self.left + (strip.start + (sample - strip.first) / self.fs) * self.speed


Marks = WaveMarks | Mapping[str, WaveMarks]


def draw_paper(
    recording: Recording,
    *,
    layout: str = "3x4+1",
    seconds: float = 10.0,
    start: float = 0.0,
    rhythm: str = "II",
    speed: float = MM_PER_SECOND,
    gain: float = MM_PER_MV,
    title: str | None = None,
    measurements: Measurements | None = None,
    marks: Marks | None = None,
    quality: Quality | None = None,
) -> Figure:
    """Draw a part of a recording on ECG paper.

    Args:
        recording: twelve leads in mV; a gap of NaN stays a gap.
        layout: "3x4+1" (four columns of three leads, and a rhythm strip along the foot), "6x2" or "12x1". Columns
            follow each other in time: the second column begins where the first ends.
        seconds: how much to draw; a shorter recording leaves the rest of the paper empty.
        start: from when on, in seconds.
        rhythm: the rhythm strip's lead.
        speed: of the paper, one of `SPEEDS` in mm/s.
        gain: one of `GAINS` in mm/mV.
        title: the header's first words; the recording's name if None.
        measurements: printed in the header, if given.
        marks: waves to mark: one set for the whole recording (on the rhythm strip, or on every lead where the layout
            has none), or a set for each lead that is named. In samples from the recording's start.
        quality: what is wrong with the recording, printed in the header, if given.

    Returns:
        A figure whose size in inches is the paper's: saved at any dpi, 25 mm are one second.

    Raises:
        ParameterError: an unknown layout, lead, speed or gain; `start` below 0; `seconds` not above 0 and at most
            `MOST_SECONDS`.
    """
    if layout not in LAYOUTS:
        raise ParameterError(f"layout {layout!r}: expected one of {', '.join(LAYOUTS)}")
    _check_scale(speed, gain)
    if not 0 < seconds <= MOST_SECONDS:
        raise ParameterError(f"seconds: {seconds}, expected above 0 and at most {MOST_SECONDS:g}")
    if not 0 <= start < math.inf:
        raise ParameterError(f"start: {start}, expected 0 or more seconds")
    rows = _rows(recording, layout, seconds, start, _lead(rhythm))
    by_row = _marks_by_row(rows, marks, strip_only=LAYOUTS[layout][1])
    scale = _Scale(speed, gain, recording.fs)
    shown = f"{start:g} to {min(start + seconds, recording.seconds):.1f} s" if start > 0 else None
    if shown is None and recording.seconds > seconds:
        shown = f"first {seconds:g} of {recording.seconds:.1f} s"
    figure, axes, width, _ = _sheet(rows, by_row, scale, seconds)
    _header(axes, recording, title, measurements, quality, width)
    _footer(axes, scale, shown or f"{recording.seconds:.1f} s", width)
    return figure


def draw_rhythm(
    recording: Recording,
    *,
    lead: str = "II",
    row_seconds: float = 10.0,
    start: float = 0.0,
    speed: float = MM_PER_SECOND,
    gain: float = MM_PER_MV,
    title: str | None = None,
    measurements: Measurements | None = None,
    marks: WaveMarks | None = None,
    quality: Quality | None = None,
) -> Figure:
    """Draw one lead of a long recording, row after row, at most `MOST_ROWS` of them.

    Args:
        recording: twelve leads in mV.
        lead: which.
        row_seconds: how much stands in one row, at most `MOST_SECONDS`.
        start: from when on, in seconds.
        speed: as in `draw_paper`, like all that follows.
        gain: mm/mV.
        title: header.
        measurements: header.
        marks: of the whole recording.
        quality: header.

    Raises:
        ParameterError: as `draw_paper`.
    """
    _check_scale(speed, gain)
    if not 0 < row_seconds <= MOST_SECONDS:
        raise ParameterError(f"row_seconds: {row_seconds}, expected above 0 and at most {MOST_SECONDS:g}")
    if not 0 <= start < math.inf:
        raise ParameterError(f"start: {start}, expected 0 or more seconds")
    name, fs = _lead(lead), recording.fs
    count = min(max(math.ceil(round((recording.seconds - start) / row_seconds, 6)), 1), MOST_ROWS)
    centered = _centered(recording, round(start * fs), round((start + count * row_seconds) * fs))[LEADS.index(name)]
    rows = []
    for number in range(count):
        first = round(number * row_seconds * fs)
        piece = centered[first : round((number + 1) * row_seconds * fs) + 1]
        rows.append([Strip(name, 0.0, round(start * fs) + first, piece)])
    scale = _Scale(speed, gain, fs)
    figure, axes, width, baselines = _sheet(rows, _marks_by_row(rows, marks, strip_only=False), scale, row_seconds)
    for number, baseline in enumerate(baselines):
        at = f"{start + number * row_seconds:g} s"
        axes.text(scale.left - 2.0, baseline + 3.0, at, color=_SOFT, fontsize=6.5, ha="right", **_PLAIN)
    _header(axes, recording, title, measurements, quality, width)
    last = min(start + count * row_seconds, recording.seconds)
    _footer(axes, scale, f"lead {name}, {start:g} to {last:.1f} of {recording.seconds:.1f} s", width)
    return figure


def _check_scale(speed: float, gain: float) -> None:
    if speed not in SPEEDS:
        raise ParameterError(f"speed: {speed}, expected one of {', '.join(f'{item:g}' for item in SPEEDS)} mm/s")
    if gain not in GAINS:
        raise ParameterError(f"gain: {gain}, expected one of {', '.join(f'{item:g}' for item in GAINS)} mm/mV")


def _lead(name: str) -> str:
    lead = canonical_lead(name)
    if lead is None:
        raise ParameterError(f"lead {name!r}: not one of {', '.join(LEADS)}")
    return lead


def _centered(recording: Recording, first: int, stop: int) -> NDArray[np.float64]:
    """Return samples `first` to `stop` (and one more) of all leads, each around its median."""
    shown = recording.signal[:, first : stop + 1].astype(np.float64)
    shown[~np.isfinite(shown)] = np.nan
    some = np.isfinite(shown).any(axis=1)
    shown[some] -= np.nanmedian(shown[some], axis=1, keepdims=True)
    return shown


def _rows(recording: Recording, layout: str, seconds: float, start: float, rhythm: str) -> list[list[Strip]]:
    """Return, row by row, what stands side by side."""
    columns, has_rhythm = LAYOUTS[layout]
    per_column, piece, fs = len(LEADS) // columns, seconds / columns, recording.fs
    offset = round(start * fs)
    shown = _centered(recording, offset, offset + round(seconds * fs))

    def cut(lead: int, begin: float, end: float) -> Strip:
        # one sample into the neighbor, so that no seam shows
        first = round(begin * fs)
        return Strip(LEADS[lead], begin, offset + first, shown[lead, first : round(end * fs) + 1])

    rows = [
        [cut(column * per_column + row, column * piece, (column + 1) * piece) for column in range(columns)]
        for row in range(per_column)
    ]
    return [*rows, [cut(LEADS.index(rhythm), 0.0, seconds)]] if has_rhythm else rows


def _marks_by_row(rows: Sequence[Sequence[Strip]], marks: Marks | None, *, strip_only: bool) -> list[list[WaveMarks]]:
    """Return the marks of each strip of each row (empty ones where there are none)."""
    none = WaveMarks()
    if marks is None:
        return [[none] * len(row) for row in rows]
    if isinstance(marks, WaveMarks):
        whole = marks
        last = len(rows) - 1
        return [[none if strip_only and number != last else whole] * len(row) for number, row in enumerate(rows)]
    by_lead = {_lead(name): found for name, found in marks.items()}
    return [[by_lead.get(strip.lead, none) for strip in row] for row in rows]


def _sheet(
    rows: list[list[Strip]], marks: list[list[WaveMarks]], scale: _Scale, seconds: float
) -> tuple[Figure, Axes, float, list[float]]:
    """Draw the grid, the pulses, the traces, the labels and the marks.

    Returns figure, axes, the paper's width and the rows' baselines in mm.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    marked = [any(len(found.wave(name)) for found in row for name in WAVES) for row in marks]
    baselines, height = _baselines(rows, marked, scale.gain)
    width = scale.left + seconds * scale.speed + _RIGHT
    figure = Figure(figsize=(width / 25.4, height / 25.4), facecolor=_PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))  # millimeters from the upper left corner
    axes.set_axis_off()
    _grid(axes, scale.left, width, height)
    inked = [
        [(scale.x(strip), baseline - strip.signal * scale.gain) for strip in row]
        for row, baseline in zip(rows, baselines, strict=True)
    ]
    for number, (row, baseline) in enumerate(zip(rows, baselines, strict=True)):
        _pulse(axes, baseline, scale)
        top, foot = max(baseline - MOST_UP - 4.0, _HEADER), min(baseline + MOST_DOWN + 4.0, height - _FOOTER)
        window = Rectangle((0, top), width, foot - top, transform=axes.transData)  # a spike of 20 mV must end somewhere
        near = list(itertools.chain(*inked[max(number - 1, 0) : number + 2]))
        for place, (strip, (x, y)) in enumerate(zip(row, inked[number], strict=True)):
            (trace,) = axes.plot(x, y, color=_INK, linewidth=0.75, solid_joinstyle="round", zorder=4)
            trace.set_clip_path(window)
            _label(axes, strip, scale.left + strip.start * scale.speed, baseline, near, first=place == 0)
            if marked[number]:
                _draw_marks(axes, strip, marks[number][place], scale, baseline, _depth(row, scale.gain) + 2.5)
    return figure, axes, width, baselines


def _reach(row: Sequence[Strip], gain: float) -> tuple[float, float]:
    """Return how far a row's waves go up and down, in mm, without the rarest two in a thousand samples at each end."""
    values = np.concatenate([strip.signal[np.isfinite(strip.signal)] for strip in row] or [np.zeros(1)])
    low, high = np.percentile(values, (0.2, 99.8)) if len(values) else (0.0, 0.0)
    return min(max(high * gain, 6.0), MOST_UP), min(max(-low * gain, 4.0), MOST_DOWN)


def _depth(row: Sequence[Strip], gain: float) -> float:
    return _reach(row, gain)[1]


def _baselines(rows: Sequence[Sequence[Strip]], marked: Sequence[bool], gain: float) -> tuple[list[float], float]:
    """Return each row's baseline and the paper's height, in mm: rows move apart where the waves are tall."""
    ups, downs = zip(*(_reach(row, gain) for row in rows), strict=True)
    extra = [_MARKS if flag else 0.0 for flag in marked]
    positions = [_TOP + ups[0] + 4.0]
    for number in range(1, len(rows)):
        gap = min(max(downs[number - 1] + ups[number] + 5.0, _NEAREST), _FARTHEST) + extra[number - 1]
        positions.append(positions[-1] + gap)
    grid = [5.0 * round(position / 5.0) for position in positions]  # a baseline runs along a heavy line
    return grid, 5.0 * math.ceil((grid[-1] + downs[-1] + extra[-1] + 4.0 + _FOOT) / 5.0)


def _grid(axes: Axes, left: float, width: float, height: float) -> None:
    """Draw a line every millimeter and a heavier one every five."""
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Rectangle

    top, foot = _HEADER, height - _FOOTER
    axes.add_patch(Rectangle((0, 0), width, height, facecolor=_PAPER, edgecolor="none", zorder=0))
    for step, color, weight in ((1.0, _FINE, 0.35), (5.0, _COARSE, 0.55)):
        upright = [[(x, top), (x, foot)] for x in np.arange(left % step, width + 1e-9, step)]
        level = [[(0, y), (width, y)] for y in np.arange(math.ceil(top / step) * step, foot + 1e-9, step)]
        axes.add_collection(LineCollection(upright + level, colors=color, linewidths=weight, zorder=step / 10))


def _pulse(axes: Axes, baseline: float, scale: _Scale) -> None:
    """Draw the calibration pulse: 1 mV high, 0.2 s wide."""
    wide = PULSE_SECONDS * scale.speed
    x = scale.left - 4.0 - wide + np.array([-2, 0, 0, wide, wide, wide + 2])
    y = baseline - np.array([0, 0, 1, 1, 0, 0]) * scale.gain
    axes.plot(x, y, color=_INK, linewidth=0.7, solid_joinstyle="miter", zorder=3)


Ink = tuple["NDArray[np.float64]", "NDArray[np.float64]"]


def _label(axes: Axes, strip: Strip, left: float, baseline: float, near: Sequence[Ink], *, first: bool) -> None:
    """Write a lead's name where no trace runs, and draw a tick where a column begins."""
    from matplotlib.patheffects import withStroke

    if not first:
        axes.plot([left, left], [baseline - 3, baseline + 3], color=_INK, linewidth=0.9, zorder=4)
    wide = 1.0 + 1.9 * len(strip.lead)
    places = [(dx, dy) for dy in (-6.5, -8.5, -10.5, 6.0, -12.5, 8.0) for dx in (1.5, 4.5, 8.0)]
    free = (place for place in places if _is_free(left + place[0], baseline + place[1], wide, near))
    dx, dy = next(free, places[0])
    halo = [withStroke(linewidth=2.2, foreground=_PAPER)]  # and behind the trace: a label must not hide a wave
    style: dict[str, Any] = {"color": _INK, "fontsize": 8.5, "weight": "bold", "va": "center", "zorder": 3.5}
    axes.text(left + dx, baseline + dy, strip.lead, path_effects=halo, **style)


def _is_free(x: float, y: float, wide: float, near: Sequence[Ink]) -> bool:
    """Return whether no trace runs through the box of a label 3 mm high that begins at x and is centered at y."""
    for xs, ys in near:
        first, last = np.searchsorted(xs, (x - 0.5, x + wide))
        part = ys[max(first - 1, 0) : last + 1]
        part = part[np.isfinite(part)]
        if len(part) and part.min() < y + 2.0 and part.max() > y - 2.0:
            return False
    return True


def _draw_marks(axes: Axes, strip: Strip, marks: WaveMarks, scale: _Scale, baseline: float, below: float) -> None:
    """Draw a bar for each wave below the strip, told apart by letter and by line, and a faint band behind the wave.

    A QRS complex has a thick bar, a P wave a thin one, a T wave a thin dashed one; a tick shows the peak.
    """
    from matplotlib.patches import Rectangle

    last = strip.first + len(strip.signal) - 1
    y = baseline + below
    for name, weight, dashes in (("P", 1.1, "-"), ("QRS", 2.6, "-"), ("T", 1.1, (0, (2.2, 1.1)))):
        for on, peak, off in marks.wave(name):
            known = [point for point in (on, peak, off) if math.isfinite(point)]
            if not known or min(known) < strip.first or max(known) > last:
                continue
            begin, end = scale.at(strip, min(known)), scale.at(strip, max(known))
            axes.plot(
                [begin, end], [y, y], color=_INK, linewidth=weight, linestyle=dashes, zorder=4, solid_capstyle="butt"
            )
            for edge in (on, off):
                if math.isfinite(edge):
                    place = scale.at(strip, edge)
                    axes.plot([place, place], [y - 1.2, y + 1.2], color=_INK, linewidth=0.6, zorder=4)
            if math.isfinite(peak):
                place = scale.at(strip, peak)
                axes.plot([place, place], [y, y - 1.4], color=_INK, linewidth=0.6, zorder=4)
            axes.text((begin + end) / 2, y + 3.0, name, color=_INK, fontsize=5.5, ha="center", va="center", zorder=4)
            area = (begin, baseline - 8.0), end - begin, below + 8.0
            axes.add_patch(Rectangle(*area, facecolor=_BAND[name], edgecolor="none", alpha=0.55, zorder=0.9))


def _header(
    axes: Axes,
    recording: Recording,
    title: str | None,
    measurements: Measurements | None,
    quality: Quality | None,
    width: float,
) -> None:
    """Print who and what at the top."""
    age = "" if recording.patient.age is None else f"{recording.patient.age:g} years"
    who = ", ".join(part for part in (age, recording.patient.sex or "") if part)
    left = _EDGE
    name = title or recording.name
    axes.text(left, 4.4, _fitted(name, 62 if measurements else width - 20, 2.3), color=_INK, fontsize=11, **_BOLD)
    axes.text(left, 9.2, who, color=_SOFT, fontsize=8, **_PLAIN)
    if measurements is not None:
        for number, (label, value) in enumerate(_printed(measurements)):
            x = left + 64 + 33 * number
            if x + 30 < width:
                axes.text(x, 4.4, label, color=_SOFT, fontsize=7.5, **_PLAIN)
                axes.text(x, 9.2, value, color=_INK, fontsize=9, **_PLAIN)
    if quality is not None and quality.warnings:
        verdict = "Check the recording" if quality.usable else "NOT USABLE"
        words = _fitted(f"{verdict}: {'; '.join(quality.warnings)}", width - left - _RIGHT, 1.62)
        axes.text(left, 12.7, words, color=_INK, fontsize=7, **_BOLD)


_PLAIN: dict[str, Any] = {"va": "center", "zorder": 6}
_BOLD: dict[str, Any] = {**_PLAIN, "weight": "bold"}


def _fitted(words: str, room: float, each: float) -> str:
    """Cut words to the room in mm, `each` mm a letter; what can't be printed becomes a question mark."""
    visible = "".join(c if c.isprintable() else "?" for c in words).replace("$", r"\$")
    most = max(int(room / each), 4)
    return visible if len(visible) <= most else visible[: most - 1].rstrip() + "…"


def _footer(axes: Axes, scale: _Scale, shown: str, width: float) -> None:
    """Print speed, gain, filter, sampling rate and what is shown at the foot."""
    y = axes.get_ylim()[0] - 3.3
    scales = f"{scale.speed:g} mm/s   {scale.gain:g} mm/mV   unfiltered   {scale.fs:g} Hz   {shown}"
    axes.text(_EDGE, y, scales, color=_SOFT, fontsize=7.5, **_PLAIN)
    if width > 180:
        words = "for learning, not for diagnosis"
        axes.text(width - _RIGHT, y, words, color=_SOFT, fontsize=7.5, ha="right", **_PLAIN)


def _printed(m: Measurements) -> list[tuple[str, str]]:
    """Return the header's columns: name and value."""

    def number(value: float, unit: str) -> str:
        return "n/a" if math.isnan(value) else f"{value:.0f} {unit}".strip()

    return [
        ("Heart rate", number(m.heart_rate_bpm, "/min")),
        ("PR", number(m.pr_ms, "ms")),
        ("QRS", number(m.widest_qrs_ms, "ms")),
        ("QT / QTc", f"{number(m.qt_ms, '')} / {number(m.qtc_ms, 'ms')}"),
        ("Axis", "n/a" if math.isnan(m.axis_deg) else f"{m.axis_deg:.0f}°"),
    ]


def describe(
    recording: Recording,
    measurements: Measurements,
    *,
    quality: Quality | None = None,
    marks: Marks | None = None,
) -> str:
    """Return an alternative text for the drawing: what a reader who can't see it should know, from the data.

    Args:
        recording: what is drawn.
        measurements: of the same recording; not told where `quality` says that it isn't usable.
        quality: of the same recording, if it was judged.
        marks: that are laid over the drawing, if any.

    Returns:
        Some sentences.
    """
    said = [f"Twelve-lead ECG {recording.name}, {recording.seconds:.1f} s at {recording.fs:g} Hz."]
    if quality is not None and not quality.usable:
        said.append(f"The recording isn't usable: {'; '.join(quality.reasons)}.")
    else:
        said += [_rhythm_and_intervals(measurements), *_by_lead(measurements)]
        if quality is not None and quality.warnings:
            said.append(f"What is doubtful: {'; '.join(quality.warnings)}.")
    said.append(_sizes(recording))
    if marks is not None:
        said.append(_marked(marks))
    return " ".join(said)


def _rhythm_and_intervals(m: Measurements) -> str:
    """Return rhythm, intervals and axis in one sentence."""
    if math.isnan(m.heart_rate_bpm):
        rhythm = f"The heart rate can't be measured: {m.reasons.get('heart_rate_bpm', 'no reason known')}"
    else:
        kind = {True: "A regular rhythm", False: "An irregular rhythm", None: "A rhythm"}[m.regular]
        rhythm = f"{kind} of {m.heart_rate_bpm:.0f} beats per minute"
    intervals = [
        f"{name} {value:.0f} ms"
        for name, value in (("PR", m.pr_ms), ("QRS", m.widest_qrs_ms), ("QT", m.qt_ms), ("QTc", m.qtc_ms))
        if not math.isnan(value)
    ]
    if "pr_ms" in m.reasons:
        intervals.append(f"no PR interval ({m.reasons['pr_ms']})")
    if not math.isnan(m.axis_deg):
        intervals.append(f"frontal axis {m.axis_deg:.0f} degrees")
    return f"{rhythm}{': ' if intervals else ''}{', '.join(intervals)}."


ST_UP_MV, ST_DOWN_MV = 0.1, -0.05  # what is told; a healthy heart may have 0.2 in V2 and V3


def _by_lead(m: Measurements) -> list[str]:
    """Say in which leads ST is off its level, and where the R wave outgrows the S wave."""
    said = []
    for word, leads in (
        ("raised", {lead: value for lead, value in m.st_mv.items() if value >= ST_UP_MV}),
        ("lowered", {lead: value for lead, value in m.st_mv.items() if value <= ST_DOWN_MV}),
    ):
        if leads:
            values = ", ".join(f"{lead} ({value:+.2f} mV)" for lead, value in leads.items())
            said.append(f"60 ms after the J point, ST is {word} in {values}.")
    if m.transition is not None:
        said.append(f"The R wave outgrows the S wave in {m.transition}.")
    return said


def _sizes(recording: Recording) -> str:
    """Say which lead is tallest, and whether the limb leads are low."""
    finite = np.where(np.isfinite(recording.signal), recording.signal, 0)
    spans = np.ptp(finite, axis=1) if finite.shape[1] else np.zeros(len(LEADS))
    tallest = int(np.argmax(spans))
    words = f"The tallest lead is {LEADS[tallest]} with {spans[tallest]:.1f} mV from lowest to highest point."
    if 0 < spans[:6].max() < 0.5:
        words += f" No limb lead spans more than {spans[:6].max():.1f} mV."
    return words


def _marked(marks: Marks) -> str:
    """Count what is marked."""
    sets = [marks] if isinstance(marks, WaveMarks) else list(marks.values())
    where = "" if isinstance(marks, WaveMarks) else f" in {', '.join(marks)}"
    counts = [f"{sum(len(found.wave(name)) for found in sets)} {name}" for name in WAVES]
    return f"Bars below the trace mark {', '.join(counts[:2])} and {counts[2]} waves{where}."
