"""Draw a recording as a cardiograph prints it: 25 mm/s, 10 mm/mV, on millimeter paper, true to scale.

The signal is drawn as it is, apart from each lead's median being put on its baseline; nothing is filtered. Figures
are plain matplotlib `Figure`s, so that no window system is needed. Taught in: 01 §1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ecgchat_lib.ecg.leads import LEADS
from ecgchat_lib.errors import ParameterError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from ecgchat_lib.ecg.measure import Measurements
    from ecgchat_lib.ecg.recording import Recording

MM_PER_SECOND = 25.0
MM_PER_MV = 10.0
LAYOUTS = {
    "3x4+1": (4, True),
    "6x2": (2, False),
    "12x1": (1, False),
}  # columns, and whether lead II runs along the foot
MOST_SECONDS = 30.0

# Told apart by lightness alone, so by every kind of color vision, and in gray.
_PAPER, _FINE, _COARSE, _INK, _SOFT = "#fffaf6", "#f6ddd2", "#e6ab96", "#14142b", "#5b5566"
_LEFT, _RIGHT, _TOP, _FOOT = 14.0, 6.0, 17.0, 9.0  # mm around the traces; the left one holds the calibration pulse
_NEAREST, _FARTHEST = 20.0, 42.0  # mm between one row's baseline and the next


def draw_paper(
    recording: Recording,
    *,
    layout: str = "3x4+1",
    seconds: float = 10.0,
    title: str | None = None,
    measurements: Measurements | None = None,
) -> Figure:
    """Draw the beginning of a recording on ECG paper.

    Args:
        recording: twelve leads in mV; a gap of NaN stays a gap.
        layout: "3x4+1" (four columns of three leads, and lead II along the foot), "6x2" or "12x1". Columns follow
            each other in time: the second column begins where the first ends.
        seconds: how much to draw; a shorter recording leaves the rest of the paper empty.
        title: the header's first words; the recording's name if None.
        measurements: printed in the header, if given.

    Returns:
        A figure whose size in inches is the paper's: saved at any dpi, 25 mm are one second.

    Raises:
        ParameterError: an unknown layout, or `seconds` not above 0 and at most `MOST_SECONDS`.
    """
    from matplotlib.figure import Figure

    if layout not in LAYOUTS:
        raise ParameterError(f"layout {layout!r}: expected one of {', '.join(LAYOUTS)}")
    if not 0 < seconds <= MOST_SECONDS:
        raise ParameterError(f"seconds: {seconds}, expected above 0 and at most {MOST_SECONDS:g}")
    strips = _strips(recording, layout, seconds)
    baselines, height = _baselines(strips)
    width = _LEFT + seconds * MM_PER_SECOND + _RIGHT
    figure = Figure(figsize=(width / 25.4, height / 25.4), facecolor=_PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))  # millimeters from the upper left corner
    axes.set_axis_off()
    _grid(axes, width, height)
    for row, baseline in zip(strips, baselines, strict=True):
        _pulse(axes, baseline)
        for number, (lead, start, signal) in enumerate(row):
            _trace(axes, lead, _LEFT + start * MM_PER_SECOND, baseline, signal, recording.fs, first=number == 0)
    _words(axes, recording, title, measurements, width, height, seconds)
    return figure


Strip = tuple[str, float, "NDArray[np.float64]"]  # lead, seconds at which it starts, millivolts around its median


def _strips(recording: Recording, layout: str, seconds: float) -> list[list[Strip]]:
    """Return, row by row, what stands side by side."""
    columns, rhythm = LAYOUTS[layout]
    per_column, piece = len(LEADS) // columns, seconds / columns
    shown = recording.signal[:, : round(seconds * recording.fs)].astype(np.float64)
    some = np.isfinite(shown).any(axis=1)
    middle = np.zeros((len(LEADS), 1))
    middle[some] = np.nanmedian(shown[some], axis=1, keepdims=True)
    shown = shown - middle

    def cut(lead: int, start: float, stop: float) -> Strip:
        # one sample into the neighbor, so that no seam shows
        return LEADS[lead], start, shown[lead, round(start * recording.fs) : round(stop * recording.fs) + 1]

    rows = [
        [cut(column * per_column + row, column * piece, (column + 1) * piece) for column in range(columns)]
        for row in range(per_column)
    ]
    return [*rows, [cut(LEADS.index("II"), 0.0, seconds)]] if rhythm else rows


def _baselines(strips: list[list[Strip]]) -> tuple[list[float], float]:
    """Return each row's baseline and the paper's height, in mm: rows move apart where the waves are tall."""
    ups, downs = [], []
    for row in strips:
        values = np.concatenate([signal[np.isfinite(signal)] for _, _, signal in row] or [np.zeros(1)])
        low, high = np.percentile(values, (0.2, 99.8)) if len(values) else (0.0, 0.0)
        ups.append(min(max(high * MM_PER_MV, 6.0), 26.0))
        downs.append(min(max(-low * MM_PER_MV, 4.0), 22.0))
    positions = [_TOP + ups[0] + 4.0]
    for down, up in zip(downs[:-1], ups[1:], strict=True):
        positions.append(positions[-1] + min(max(down + up + 5.0, _NEAREST), _FARTHEST))
    grid = [5.0 * round(position / 5.0) for position in positions]  # a baseline runs along a heavy line
    return grid, 5.0 * math.ceil((grid[-1] + downs[-1] + 4.0 + _FOOT) / 5.0)


def _grid(axes: Axes, width: float, height: float) -> None:
    """Draw a line every millimeter and a heavier one every five."""
    from matplotlib.collections import LineCollection

    for step, color, weight in ((1.0, _FINE, 0.35), (5.0, _COARSE, 0.55)):
        upright = [[(x, 0), (x, height)] for x in np.arange(_LEFT % step, width + 1e-9, step)]
        level = [[(0, y), (width, y)] for y in np.arange(0, height + 1e-9, step)]
        axes.add_collection(LineCollection(upright + level, colors=color, linewidths=weight, zorder=step / 10))


def _pulse(axes: Axes, baseline: float) -> None:
    """Draw the calibration pulse: 1 mV high, 0.2 s wide."""
    x = np.array([0, 2, 2, 7, 7, 9]) + _LEFT - 11.0
    y = baseline - np.array([0, 0, 1, 1, 0, 0]) * MM_PER_MV
    axes.plot(x, y, color=_INK, linewidth=0.7, solid_joinstyle="miter", zorder=3)


def _trace(
    axes: Axes, lead: str, left: float, baseline: float, signal: NDArray[np.float64], fs: float, *, first: bool
) -> None:
    """Draw one strip with its label, and a tick where a column begins."""
    from matplotlib.patheffects import withStroke

    x = left + np.arange(len(signal)) / fs * MM_PER_SECOND
    axes.plot(x, baseline - signal * MM_PER_MV, color=_INK, linewidth=0.75, solid_joinstyle="round", zorder=4)
    if not first:
        axes.plot([left, left], [baseline - 3, baseline + 3], color=_INK, linewidth=0.9, zorder=4)
    halo = [withStroke(linewidth=2.2, foreground=_PAPER)]  # and behind the trace: a label must not hide a wave
    axes.text(
        left + 1.5,
        baseline - 7.0,
        lead,
        color=_INK,
        fontsize=8.5,
        weight="bold",
        va="center",
        zorder=3.5,
        path_effects=halo,
    )


def _words(
    axes: Axes,
    recording: Recording,
    title: str | None,
    measurements: Measurements | None,
    width: float,
    height: float,
    seconds: float,
) -> None:
    """Print the header and the foot."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((0, 0), width, 13.5, facecolor=_PAPER, edgecolor="none", zorder=2))
    axes.add_patch(Rectangle((0, height - 6.5), width, 6.5, facecolor=_PAPER, edgecolor="none", zorder=5))
    age = "" if recording.patient.age is None else f"{recording.patient.age:g} years"
    who = ", ".join(part for part in (age, recording.patient.sex or "") if part)
    left = _LEFT - 9.0
    axes.text(left, 5.0, title or recording.name, color=_INK, fontsize=11, weight="bold", va="center", zorder=6)
    axes.text(left, 10.3, who, color=_SOFT, fontsize=8, va="center", zorder=6)
    if measurements is not None:
        for number, (name, value) in enumerate(_printed(measurements)):
            x = left + 62 + 33 * number
            if x + 30 < width:
                axes.text(x, 5.0, name, color=_SOFT, fontsize=7.5, va="center", zorder=6)
                axes.text(x, 10.3, value, color=_INK, fontsize=9, va="center", zorder=6)
    speed = f"{MM_PER_SECOND:g} mm/s   {MM_PER_MV:g} mm/mV   unfiltered   {recording.fs:g} Hz"
    shown = min(seconds, recording.seconds)
    length = f"first {shown:g} of {recording.seconds:.1f} s" if recording.seconds > seconds else f"{shown:.1f} s"
    y = height - 3.3
    axes.text(left, y, f"{speed}   {length}", color=_SOFT, fontsize=7.5, va="center", zorder=6)
    if width > 180:
        axes.text(
            width - _RIGHT,
            y,
            "for learning, not for diagnosis",
            color=_SOFT,
            fontsize=7.5,
            va="center",
            ha="right",
            zorder=6,
        )


def _printed(m: Measurements) -> list[tuple[str, str]]:
    """Return the header's columns: name and value."""

    def number(value: float, unit: str) -> str:
        return "n/a" if math.isnan(value) else f"{value:.0f} {unit}"

    qt = number(m.qt_ms, "") + "/ " + number(m.qtc_ms, "ms")
    return [
        ("Heart rate", number(m.heart_rate_bpm, "/min")),
        ("PR", number(m.pr_ms, "ms")),
        ("QRS", number(m.qrs_ms, "ms")),
        ("QT / QTc", qt.replace(" /", " /")),
        ("Axis", "n/a" if math.isnan(m.axis_deg) else f"{m.axis_deg:.0f}°"),
    ]


def describe(recording: Recording, measurements: Measurements) -> str:
    """Return an alternative text for the drawing: what a reader who can't see it should know, from the data.

    Args:
        recording: what is drawn.
        measurements: of the same recording.

    Returns:
        Two or three sentences.
    """
    m = measurements
    if math.isnan(m.heart_rate_bpm):
        rhythm = f"The heart rate can't be measured: {m.reasons.get('heart_rate_bpm', 'no reason known')}"
    else:
        kind = {True: "A regular rhythm", False: "An irregular rhythm", None: "A rhythm"}[m.regular]
        rhythm = f"{kind} of {m.heart_rate_bpm:.0f} beats per minute"
    intervals = [
        f"{name} {value:.0f} ms"
        for name, value in (("PR", m.pr_ms), ("QRS", m.qrs_ms), ("QT", m.qt_ms), ("QTc", m.qtc_ms))
        if not math.isnan(value)
    ]
    if "pr_ms" in m.reasons:
        intervals.append(f"no PR interval ({m.reasons['pr_ms']})")
    if not math.isnan(m.axis_deg):
        intervals.append(f"frontal axis {m.axis_deg:.0f} degrees")
    finite = np.where(np.isfinite(recording.signal), recording.signal, 0)
    spans = np.ptp(finite, axis=1) if finite.shape[1] else np.zeros(len(LEADS))
    tallest = int(np.argmax(spans))
    size = f"The tallest lead is {LEADS[tallest]} with {spans[tallest]:.1f} mV from lowest to highest point"
    values = f": {', '.join(intervals)}" if intervals else ""
    return (
        f"Twelve-lead ECG {recording.name}, {recording.seconds:.1f} s at {recording.fs:g} Hz. {rhythm}{values}. {size}."
    )
