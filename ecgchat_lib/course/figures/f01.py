"""Figures of notebook 01: recordings on paper, the limb leads as views of one arrow, rates, beats, swapped arms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ecgchat_lib.course.figure import FigureResult, figure
from ecgchat_lib.ecg.leads import LEADS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ecgchat_lib.ecg.beats import MedianBeat
    from ecgchat_lib.ecg.marks import WaveMarks
    from ecgchat_lib.ecg.measure import Measurements
    from ecgchat_lib.ecg.recording import Recording

BLUE, ORANGE, GREEN, PURPLE, INK, QUIET = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#1B2A38", "#5A6875"
LIMB_ANGLES = {"I": 0, "II": 60, "III": 120, "aVR": -150, "aVL": -30, "aVF": 90}  # degrees; 90 points to the feet


@figure("01.1", "Twelve leads of one recording on ECG paper: one small box is 40 ms wide and 0.1 mV high.")
def on_paper(recording: Recording, measurements: Measurements, marks: WaveMarks) -> FigureResult:
    """Draw a recording as a cardiograph prints it, measurements in the header and the waves' marks along the foot."""
    from ecgchat_lib.ecg.paper import describe, draw_paper

    data = [recording.name, recording.fs, list(recording.signal.shape)]
    drawn = draw_paper(recording, measurements=measurements, marks=marks)
    return FigureResult(drawn, describe(recording, measurements, marks=marks), data)


@figure("01.6", "The same recording at 50 mm/s and 5 mm/mV: twice as wide and half as high. The step shows it.")
def other_scale(recording: Recording, seconds: float = 5.0) -> FigureResult:
    """Draw the beginning of a recording at double speed and half gain."""
    from ecgchat_lib.ecg.paper import draw_paper

    drawn = draw_paper(recording, layout="6x2", seconds=seconds, speed=50, gain=5)
    alt = (
        f"The first {seconds:g} s of {recording.name} on ECG paper at 50 mm/s and 5 mm/mV, six leads in each of two "
        "columns. The calibration pulse is 10 mm wide and 5 mm high: half as high and twice as wide as in figure 01.1."
    )
    return FigureResult(drawn, alt, [recording.name, recording.fs, seconds])


@figure("01.7", "Arms swapped: lead I upside down, II and III traded, aVR and aVL too. aVF doesn't notice.")
def swapped_arms(recording: Recording, swapped: np.ndarray, beat: float = 0.9) -> FigureResult:
    """Draw one beat of the limb leads and of V6, as recorded and with the arms' electrodes exchanged.

    Args:
        recording: with its electrodes where they belong.
        swapped: `(12, time)` in mV, with the arms exchanged.
        beat: how many seconds to draw.
    """
    from matplotlib import pyplot

    from ecgchat_lib.ecg.beats import find_r_peaks

    peaks = find_r_peaks(recording.signal, recording.fs)
    first = max(int(peaks[len(peaks) // 2] - 0.35 * recording.fs), 0)
    part = slice(first, first + round(beat * recording.fs))
    shown = [*range(6), 11]
    drawn, panels = pyplot.subplots(2, len(shown), figsize=(10.4, 3.6), sharex=True, sharey=True)
    t = np.arange(part.stop - part.start) / recording.fs
    for row, (signal, name, color) in enumerate(
        ((recording.signal, "as recorded", INK), (swapped, "arms swapped", ORANGE))
    ):
        for axes, lead in zip(panels[row], shown, strict=True):
            axes.plot(t, signal[lead, part] - np.median(signal[lead, part]), color=color, linewidth=1.3)
            axes.axhline(0, color=QUIET, linewidth=0.5)
            axes.set_title(LEADS[lead], color=INK, size=10)
        panels[row, 0].set_ylabel(f"{name}\nmV")
    drawn.tight_layout()
    spans = {LEADS[k]: round(float(np.ptp(recording.signal[k, part])), 1) for k in shown}
    alt = (
        f"One heartbeat of {recording.name} in I, II, III, aVR, aVL, aVF and V6: above as recorded, below with the "
        "electrodes of the arms exchanged. Below, lead I is the mirror image of the one above, II and III have traded "
        "places, and so have aVR and aVL; aVF and V6 are the same."
    )
    return FigureResult(drawn, alt, {"record": recording.name, "mv": spans})


@figure("01.2", "Six limb leads are six views of one arrow: each shows the arrow's shadow on its own direction.")
def six_views(net: Mapping[str, float], axis: float) -> FigureResult:
    """Draw the frontal plane: the directions of the limb leads, the heart's mean QRS arrow, and its shadows.

    Args:
        net: mean of each limb lead over the QRS complex, in mV.
        axis: the arrow's angle in degrees.
    """
    from matplotlib import pyplot

    drawn, (plane, bars) = pyplot.subplots(1, 2, figsize=(9.6, 4.4), width_ratios=(1, 1.05))
    plane.set(xlim=(-1.45, 1.45), ylim=(1.45, -1.45), aspect="equal")  # y downward, as the angles are counted
    plane.axis("off")
    plane.add_patch(pyplot.Circle((0, 0), 1, fill=False, color=QUIET, linewidth=0.8))
    for lead, angle in LIMB_ANGLES.items():
        x, y = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        color = BLUE if lead in ("I", "II", "III") else ORANGE
        plane.plot([-x, 0], [-y, 0], color=color, linewidth=0.8, linestyle=":")
        plane.plot([0, x], [0, y], color=color, linewidth=1.4)
        plane.text(1.2 * x, 1.2 * y, f"{lead}\n{angle}°", ha="center", va="center", color=color, size=9)
    tip = (0.92 * math.cos(math.radians(axis)), 0.92 * math.sin(math.radians(axis)))
    plane.annotate(
        "", tip, (0, 0), arrowprops={"arrowstyle": "-|>", "linewidth": 3, "color": INK, "mutation_scale": 20}
    )
    plane.set_title(f"the QRS arrow points to {axis:.0f}°", color=INK)
    _shadow_bars(bars, net)
    drawn.tight_layout()
    said = ", ".join(f"{lead} {value:+.2f}" for lead, value in net.items())
    alt = (
        f"Left: a circle with the directions of the six limb leads and an arrow at {axis:.0f} degrees. "
        f"Right: bars of each lead's mean over the QRS complex in millivolts: {said}. A lead that the arrow points to "
        "is positive, a lead that it points away from negative."
    )
    return FigureResult(
        drawn, alt, {"net": {lead: round(value, 2) for lead, value in net.items()}, "axis": round(axis)}
    )


def _shadow_bars(axes: Axes, net: Mapping[str, float]) -> None:
    """Draw each lead's net QRS as a bar."""
    names = list(net)
    colors = [BLUE if lead in ("I", "II", "III") else ORANGE for lead in names]
    axes.bar(names, list(net.values()), color=colors, width=0.6)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_ylabel("mean over the QRS complex, mV")
    axes.set_title("what each lead sees of it", color=INK)


@figure("01.3", "The same heartbeat at four sampling rates, and what is left of the height of its sharpest wave.")
def sampling_rates(
    versions: Sequence[tuple[float, np.ndarray]], lead: str, seconds: tuple[float, float]
) -> FigureResult:
    """Draw one beat, sample by sample, at each rate.

    Args:
        versions: (rate in Hz, one lead in mV), the finest first.
        lead: its name.
        seconds: from when to when.
    """
    from matplotlib import pyplot

    drawn, panels = pyplot.subplots(1, len(versions), figsize=(10.4, 3.1), sharey=True)
    spans = []
    for axes, (rate, signal) in zip(panels, versions, strict=True):
        first, last = (round(second * rate) for second in seconds)
        t = np.arange(first, last) / rate
        piece = signal[first:last]
        spans.append(float(np.ptp(piece)))
        axes.plot(t, piece, color=BLUE, linewidth=0.9)
        axes.plot(t, piece, ".", color=BLUE, markersize=2 if rate > 200 else 5)
        axes.set_title(f"{rate:g} Hz: {spans[-1]:.2f} mV", color=INK)
        axes.set_xlabel("s")
    panels[0].set_ylabel(f"lead {lead}, mV")
    drawn.tight_layout()
    said = "; ".join(f"{rate:g} Hz {span:.2f} mV" for (rate, _), span in zip(versions, spans, strict=True))
    alt = f"Lead {lead} for {seconds[1] - seconds[0]:.1f} s, its samples as dots. From lowest to highest point: {said}."
    return FigureResult(drawn, alt, {"lead": lead, "rates": [rate for rate, _ in versions], "mv": np.round(spans, 2)})


@figure("01.4", "Where many leads are steep at once, there is a heartbeat: lead II, and how steep all leads are.")
def beats(recording: Recording, energy: np.ndarray, peaks: np.ndarray, seconds: float = 10.0) -> FigureResult:
    """Draw lead II and the energy from which beats are found, with the beats marked in both.

    Args:
        recording: of n samples.
        energy: (n,).
        peaks: samples of the beats.
        seconds: how much to draw.
    """
    from matplotlib import pyplot

    count = min(round(seconds * recording.fs), recording.signal.shape[1])
    t = np.arange(count) / recording.fs
    shown = peaks[peaks < count]
    drawn, (upper, lower) = pyplot.subplots(2, 1, figsize=(10.0, 3.9), sharex=True, height_ratios=(1.2, 1))
    lead = recording.lead("II")[:count]
    upper.plot(t, lead, color=INK, linewidth=0.8)
    upper.plot(shown / recording.fs, np.full(len(shown), np.nanmax(lead) + 0.08), "v", color=ORANGE, markersize=6)
    upper.set_ylabel("lead II, mV")
    lower.fill_between(t, energy[:count], color=BLUE, alpha=0.35, linewidth=0)
    lower.plot(t, energy[:count], color=BLUE, linewidth=0.8)
    lower.plot(shown / recording.fs, energy[shown], "v", color=ORANGE, markersize=6)
    lower.set(ylabel="steepness", xlabel="s", xlim=(0, t[-1]))
    drawn.tight_layout()
    gaps = np.diff(peaks) * 1000 / recording.fs
    between = f", {np.median(gaps):.0f} ms apart in the median" if len(gaps) else ""
    alt = (
        f"The first {t[-1]:.0f} seconds of lead II of {recording.name}, and below it a curve that is low between beats "
        f"and rises to a peak at each QRS complex. {len(shown)} peaks are marked{between}."
    )
    return FigureResult(drawn, alt, {"record": recording.name, "peaks": [int(peak) for peak in peaks]})


@figure("01.5", "The beat that most beats look like, in all twelve leads, and where its waves begin and end.")
def measured_beat(beat: MedianBeat, marks: WaveMarks, measurements: Measurements) -> FigureResult:
    """Draw the median beat: lead II in front, the other leads behind, intervals as bars below.

    Args:
        beat: the median beat.
        marks: one row for each wave, in samples of the beat.
        measurements: what they amount to.
    """
    from matplotlib import pyplot

    t = (np.arange(beat.signal.shape[1]) - beat.r) * 1000 / beat.fs
    drawn, axes = pyplot.subplots(figsize=(9.4, 4.6))
    for row, lead in enumerate(beat.signal):
        if LEADS[row] != "II":
            axes.plot(t, lead, color=QUIET, linewidth=0.7, alpha=0.55)
    axes.plot(t, beat.signal[LEADS.index("II")], color=BLUE, linewidth=2, label="lead II")
    axes.plot([], [], color=QUIET, linewidth=0.7, label="the other leads")
    low, high = float(beat.signal.min()), float(beat.signal.max())
    step = 0.09 * (high - low)
    said = []
    bars = (
        ("PR", marks.p[0, 0], marks.qrs[0, 0], GREEN),
        ("QRS", marks.qrs[0, 0], marks.qrs[0, 2], ORANGE),
        ("QT", marks.qrs[0, 0], marks.t[0, 2], PURPLE),
    )
    for number, (name, begin, end, color) in enumerate(bars):
        value = getattr(measurements, f"{name.lower()}_ms")
        if math.isnan(value):
            said.append(f"{name} not measured ({measurements.reasons[f'{name.lower()}_ms']})")
            continue
        left, right = ((place - beat.r) * 1000 / beat.fs for place in (begin, end))
        y = low - step * (number + 1)
        axes.plot([left, right], [y, y], color=color, linewidth=5, solid_capstyle="butt")
        axes.text(right + 12, y, f"{name} {value:.0f} ms", va="center", color=INK, size=9)
        for place in (left, right):
            axes.plot([place, place], [y, high], color=color, linewidth=0.8, linestyle="--")
        said.append(f"{name} {value:.0f} ms")
    axes.set(xlabel="ms from the R peak", ylabel="mV", ylim=(low - 4 * step, high + step))
    axes.legend(loc="upper right")
    drawn.tight_layout()
    alt = (
        f"The median of {len(beat.beats)} beats in twelve leads, with dashed lines where waves begin and end and bars "
        f"for the intervals: {'; '.join(said)}."
    )
    return FigureResult(drawn, alt, {"beats": len(beat.beats), "intervals": said})
