"""Figures of notebook 03: marks of one beat, the network and what it says, robust beats, heights, agreement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgchat_lib.course.figure import FigureResult, figure
from ecgchat_lib.ecg.leads import LEADS
from ecgchat_lib.ecg.marks import WAVES
from ecgchat_lib.ecg.segment import CLASSES, SEGMENT_FS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ecgchat_lib.ecg.beats import MedianBeat
    from ecgchat_lib.ecg.marks import WaveMarks
    from ecgchat_lib.ecg.measure import Measurements
    from ecgchat_lib.ecg.recording import Recording
    from ecgchat_lib.ecg.segment import Layers

BLUE, ORANGE, GREEN, PURPLE, INK, QUIET = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#1B2A38", "#5A6875"
WAVE_COLORS = {"P": GREEN, "QRS": ORANGE, "T": PURPLE}
INTERVALS = {"rr_ms": "RR", "pr_ms": "PR", "qrs_ms": "QRS", "qt_ms": "QT"}
Pairs = Mapping[str, tuple[np.ndarray, np.ndarray]]


@figure("03.1", "What a cardiologist marks on one beat: nine points. What is measured: distances between them.")
def known_marks(lead: np.ndarray, fs: float, marks: WaveMarks, beat: int) -> FigureResult:
    """Draw one beat with its marks, and its intervals as bars.

    Args:
        lead: `(time,)` in mV.
        fs: Hz.
        marks: of this lead, in its samples.
        beat: which QRS complex.
    """
    from matplotlib import pyplot

    qrs = marks.qrs[beat]
    p = marks.p[marks.p[:, 1] < qrs[0]][-1]
    t = marks.t[marks.t[:, 1] > qrs[2]][0]
    first, last = max(round(p[0] - 0.08 * fs), 0), min(round(t[2] + 0.08 * fs), len(lead))
    drawn, axes = pyplot.subplots(figsize=(8.6, 4.2))
    axes.plot((np.arange(first, last) - qrs[0]) * 1000 / fs, lead[first:last], color=INK, linewidth=1.4)
    low, high = float(lead[first:last].min()), float(lead[first:last].max())
    step = 0.11 * (high - low)
    for name, wave in zip(WAVES, (p, qrs, t), strict=True):
        on, peak, off = (wave - qrs[0]) * 1000 / fs
        axes.axvspan(on, off, color=WAVE_COLORS[name], alpha=0.16, linewidth=0)
        for place, point in ((on, "("), (peak, "|"), (off, ")")):
            axes.text(place, high + 0.3 * step, point, ha="center", color=WAVE_COLORS[name], size=13, weight="bold")
        axes.text((on + off) / 2, high + 1.4 * step, name, ha="center", color=WAVE_COLORS[name], size=12)
    lengths = {"PR": (p[0], qrs[0]), "QRS": (qrs[0], qrs[2]), "QT": (qrs[0], t[2])}
    for row, (name, (begin, end)) in enumerate(lengths.items()):
        y, left, right = low - step * (row + 0.8), (begin - qrs[0]) * 1000 / fs, (end - qrs[0]) * 1000 / fs
        axes.plot([left, right], [y, y], color=BLUE, linewidth=4, solid_capstyle="butt")
        axes.text(right + 8, y, f"{name} {right - left:.0f} ms", va="center", color=INK, size=9)
    axes.set(xlabel="ms from the start of the QRS complex", ylabel="lead II, mV", ylim=(low - 3.6 * step, None))
    drawn.tight_layout()
    told = {name: round((end - begin) * 1000 / fs) for name, (begin, end) in lengths.items()}
    alt = (
        "One beat of a synthetic lead II. Shaded from onset to offset: the P wave, the QRS complex and the T wave, "
        f"each with its peak marked. Bars below: {', '.join(f'{name} {ms} ms' for name, ms in told.items())}."
    )
    return FigureResult(drawn, alt, told)


@figure("03.2", "One real QRS complex, two widths: from the Q peak to the S peak, and from its beginning to its end.")
def two_widths(beat: MedianBeat, marks: WaveMarks, q: int, s: int) -> FigureResult:
    """Draw lead II of a median beat around the QRS complex with both widths.

    Args:
        beat: the median beat.
        marks: its marks.
        q: sample of the Q peak.
        s: sample of the S peak.
    """
    from matplotlib import pyplot

    to_ms = 1000 / beat.fs
    on, _, off = marks.qrs[0]
    first, last = round(on - 0.07 * beat.fs), round(off + 0.08 * beat.fs)
    lead = beat.signal[LEADS.index("II")]
    drawn, axes = pyplot.subplots(figsize=(7.6, 3.9))
    axes.plot((np.arange(first, last) - on) * to_ms, lead[first:last], color=INK, linewidth=1.6)
    axes.plot((np.array([q, s]) - on) * to_ms, lead[[q, s]], "o", color=BLUE, markersize=7)
    low, high = float(lead[first:last].min()), float(lead[first:last].max())
    step = 0.1 * (high - low)
    widths = (("S peak minus Q peak", q, s, BLUE), ("beginning to end", on, off, ORANGE))
    for row, (name, begin, end, color) in enumerate(widths):
        y, left, right = low - step * (row + 1), (begin - on) * to_ms, (end - on) * to_ms
        axes.plot([left, right], [y, y], color=color, linewidth=6, solid_capstyle="butt")
        axes.text((max(s, off) - on) * to_ms + 4, y, f"{name}: {right - left:.0f} ms", va="center", color=INK)
        for place in (left, right):
            axes.plot([place, place], [y, high], color=color, linewidth=0.8, linestyle="--")
    axes.set(xlabel="ms from the start of the QRS complex", ylabel="lead II, mV", ylim=(low - 2.8 * step, high + step))
    drawn.tight_layout()
    short, whole = round((s - q) * to_ms), round((off - on) * to_ms)
    alt = (
        f"The QRS complex of lead II of the median of {len(beat.beats)} beats. A bar from the lowest point before the R"
        f" peak to the lowest point after it is {short} ms long; a bar from where the complex begins to where it ends "
        f"is {whole} ms long."
    )
    return FigureResult(drawn, alt, {"q_to_s": short, "whole": whole})


@figure("03.3", "The network: down to a few numbers that see far, up again with the detail that was kept on the way.")
def unet(layers: Layers) -> FigureResult:
    """Draw the network's stages as boxes: channels by samples, and the way that data take.

    Args:
        layers: of one member.
    """
    from matplotlib import pyplot

    levels = sum(name.startswith("down") for name in layers)
    drawn, axes = pyplot.subplots(figsize=(9.6, 4.4))
    axes.axis("off")
    arrow: dict[str, Any] = {"arrowstyle": "-|>", "color": QUIET, "linewidth": 1.3}

    def box(x: float, level: int, words: str, color: str) -> None:
        edge = {"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": color, "linewidth": 1.6}
        axes.text(x, -level, words, ha="center", va="center", size=9, color=INK, bbox=edge)

    right = 2.0 * levels
    box(0.0, 0, f"one lead\n1 × {SEGMENT_FS:g}/s", INK)
    box(right, 0, f"4 classes\n4 × {SEGMENT_FS:g}/s", INK)
    told = []
    for level in range(levels):
        channels = layers[f"down.{level}"][0].shape[0]
        rate = SEGMENT_FS / 2 ** (level + 1)
        told.append(f"{channels} at {rate:.3g}")
        x = 0.85 * (level + 1)
        last = level == levels - 1
        place = right / 2 if last else x
        box(place, level + 1, f"{channels} × {rate:.3g}/s", BLUE)
        before = 0.85 * level
        axes.annotate("", (place - 0.1, -level - 0.72), (before + 0.1, -level - 0.3), arrowprops=arrow)
        after = right - 0.85 * level
        axes.annotate("", (after - 0.1, -level - 0.3), (right - place + 0.1, -level - 0.72), arrowprops=arrow)
        if not last:
            box(right - x, level + 1, f"{channels} × {rate:.3g}/s", ORANGE)
            kept = arrow | {"linestyle": "--", "color": GREEN}
            axes.annotate("", (right - x - 0.75, -level - 1), (x + 0.75, -level - 1), arrowprops=kept)
            axes.text(right / 2, -level - 0.9, "kept", ha="center", color=GREEN, size=8)
    axes.set(xlim=(-0.8, right + 0.8), ylim=(-levels - 0.5, 0.5))
    alt = (
        f"A U-shaped network of {levels} levels. On the left, one lead at {SEGMENT_FS:g} samples a second goes down "
        f"through stages with (channels at samples per second) {', '.join(told)}; on the right it comes up again "
        "through the same sizes, and at each level what was kept on the left is added. At the end: four classes."
    )
    return FigureResult(drawn, alt, told)


@figure("03.4", "What the network says of a real lead: at each sample, how likely each kind of wave is.")
def probabilities(lead: np.ndarray, found: np.ndarray, name: str, seconds: tuple[float, float]) -> FigureResult:
    """Draw a lead and, below it, the probability of each class.

    Args:
        lead: `(time,)` in mV at `SEGMENT_FS`.
        found: `(4, time)`.
        name: of the recording.
        seconds: from when to when.
    """
    from matplotlib import pyplot

    first, last = (round(second * SEGMENT_FS) for second in seconds)
    t = np.arange(first, last) / SEGMENT_FS
    drawn, (upper, lower) = pyplot.subplots(2, 1, figsize=(9.6, 4.2), sharex=True, height_ratios=(1.1, 1))
    upper.plot(t, lead[first:last], color=INK, linewidth=1.2)
    upper.set_ylabel("lead II, mV")
    for wave in WAVES:
        likely = found[CLASSES.index(wave), first:last]
        lower.plot(t, likely, color=WAVE_COLORS[wave], linewidth=1.6, label=wave)
        lower.fill_between(t, likely, color=WAVE_COLORS[wave], alpha=0.15, linewidth=0)
    lower.axhline(0.5, color=QUIET, linewidth=0.9, linestyle="--")
    lower.set(ylabel="probability", xlabel="s", ylim=(0, 1.05), xlim=(t[0], t[-1]))
    lower.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    drawn.tight_layout()
    counted = {
        wave: int((np.diff((found[CLASSES.index(wave), first:last] > 0.5).astype(int)) == 1).sum()) for wave in WAVES
    }
    alt = (
        f"Lead II of {name} from {seconds[0]:g} to {seconds[1]:g} s, and below it three curves between 0 and 1, for P, "
        "QRS and T: each rises to nearly 1 under its wave and falls back to 0. They rise above one half "
        f"{', '.join(f'{count} times for {wave}' for wave, count in counted.items())}."
    )
    return FigureResult(drawn, alt, {"record": name, "waves": counted})


@figure("03.5", "A small copy learns: the loss of each batch of synthetic strips.")
def training(losses: Sequence[float], records: int, epochs: int, seed: int) -> FigureResult:
    """Draw the loss of each step, and its running median.

    Args:
        losses: one for each step.
        records: how many recordings it learned from.
        epochs: how often it saw each.
        seed: of the draws.
    """
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(figsize=(7.2, 3.1))
    steps = np.arange(1, len(losses) + 1)
    calm = [float(np.median(losses[max(k - 7, 0) : k + 1])) for k in range(len(losses))]
    axes.plot(steps, losses, color=BLUE, linewidth=0.8, alpha=0.5, label="each step")
    axes.plot(steps, calm, color=BLUE, linewidth=2, label="median of the last 8")
    axes.set(xlabel="step", ylabel="cross entropy", ylim=(0, None))
    axes.legend()
    drawn.tight_layout()
    fell = "less than half" if calm[-1] < losses[0] / 2 else "more than half"
    alt = (
        f"The cross entropy over {len(losses)} steps. It falls steeply at first and slowly later; at the end, it is "
        f"{fell} of what it was at the first step."
    )
    return FigureResult(drawn, alt, {"records": records, "epochs": epochs, "steps": len(losses), "seed": seed})


@figure("03.6", "Every wave of a real recording, marked in every lead: P thin, QRS thick, T dashed.")
def every_wave(recording: Recording, marks: Mapping[str, WaveMarks], seconds: float = 5.0) -> FigureResult:
    """Draw a recording on paper with each lead's marks.

    Args:
        recording: twelve leads.
        marks: lead to its waves, in samples of the recording.
        seconds: how much to draw.
    """
    from ecgchat_lib.ecg.paper import draw_paper

    drawn = draw_paper(recording, layout="6x2", seconds=seconds, marks=marks)
    counts = {name: sum(len(one.wave(name)) for one in marks.values()) for name in WAVES}
    alt = (
        f"The first {seconds:g} s of {recording.name} on ECG paper, six leads in each of two columns. Below each lead, "
        "bars show where its waves begin and end. In the whole recording, all leads together, the network marks "
        f"{', '.join(f'{count} {name}' for name, count in counts.items())}."
    )
    return FigureResult(drawn, alt, {"record": recording.name, "waves": counts})


@figure("03.7", "Beats with early ones among them: the mean is pulled aside, the median stays with the many.")
def mean_and_median(beats: np.ndarray, fs: float, odd: int) -> FigureResult:
    """Draw all beats of a lead, their mean and their median.

    Args:
        beats: `(beat, time)` in mV, aligned.
        fs: Hz.
        odd: how many of them are ectopic.
    """
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(figsize=(8.2, 3.8))
    t = (np.arange(beats.shape[-1]) - beats.shape[-1] // 3) * 1000 / fs
    for row in beats:
        axes.plot(t, row, color=QUIET, linewidth=0.7, alpha=0.6)
    axes.plot([], [], color=QUIET, linewidth=0.7, label=f"{len(beats)} beats, {odd} of them ectopic")
    mean, median = beats.mean(axis=0), np.median(beats, axis=0)
    axes.plot(t, mean, color=BLUE, linewidth=2, linestyle="--", label="mean")
    axes.plot(t, median, color=ORANGE, linewidth=2, label="median")
    axes.set(xlabel="ms from the R peak", ylabel="lead II, mV", xlim=(t[0], t[-1]))
    axes.legend()
    drawn.tight_layout()
    apart = round(float(np.abs(mean - median).max()), 1)
    alt = (
        f"{len(beats)} beats on each other, {odd} of them broad and of another shape. The median runs with the many. "
        f"The mean lies between the two kinds, up to about {apart:.1f} mV off the median, and is the shape of no beat."
    )
    return FigureResult(drawn, alt, {"beats": len(beats), "odd": odd})


@figure("03.8", "Heights by lead: the R wave grows from V1 on and the S wave shrinks; ST is flat, or isn't.")
def heights(normal: Measurements, infarct: Measurements, names: tuple[str, str]) -> FigureResult:
    """Draw R and S waves of the chest leads, and the ST levels of two recordings.

    Args:
        normal: its R waves and ST levels are drawn.
        infarct: its ST levels are drawn beside them.
        names: what the two are called.
    """
    from matplotlib import pyplot

    drawn, (left, right) = pyplot.subplots(1, 2, figsize=(10.0, 3.6), width_ratios=(1, 1.7))
    chest = [lead for lead in LEADS[6:] if lead in normal.r_by_lead_mv]
    r, s = ([values[lead] for lead in chest] for values in (normal.r_by_lead_mv, normal.s_by_lead_mv))
    left.bar(chest, r, color=BLUE, width=0.6, label="R")
    left.bar(chest, [-value for value in s], color=ORANGE, width=0.6, label="S (or Q)")
    left.axhline(0, color=INK, linewidth=0.8)
    left.set(ylabel="mV", title=f"{names[0]}: transition in {normal.transition}")
    left.legend(loc="lower right")
    place = np.arange(len(LEADS))
    for shift, measured, name, color in ((-0.2, normal, names[0], BLUE), (0.2, infarct, names[1], ORANGE)):
        levels = [measured.st_mv.get(lead, math.nan) for lead in LEADS]
        right.bar(place + shift, levels, color=color, width=0.38, label=name)
    right.axhline(0, color=INK, linewidth=0.8)
    right.set_xticks(place, LEADS)
    right.set(ylabel="mV", title="60 ms after the end of the QRS complex")
    right.legend()
    drawn.tight_layout()
    said = "; ".join(f"{lead} {up:.2f} up and {down:.2f} down" for lead, up, down in zip(chest, r, s, strict=True))
    highest = max(infarct.st_mv, key=lambda lead: infarct.st_mv[lead])
    flat = max(abs(level) for level in normal.st_mv.values())
    alt = (
        f"Left: R and S waves of the chest leads of {names[0]} in mV: {said}. Right: ST levels in twelve leads. "
        f"Those of {names[0]} are at most {flat:.2f} mV from zero; those of {names[1]} reach "
        f"{infarct.st_mv[highest]:.2f} mV in {highest}."
    )
    return FigureResult(drawn, alt, {"names": list(names), "transition": normal.transition, "highest": highest})


@figure("03.9", "One healthy heart at many rates: Bazett's QTc follows the rate, the others hardly do.")
def corrections(rates: Sequence[float], corrected: Mapping[str, Sequence[float]]) -> FigureResult:
    """Draw QTc by several formulas against the heart rate.

    Args:
        rates: beats per minute.
        corrected: formula to QTc in ms, one for each rate.
    """
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(figsize=(7.4, 3.6))
    for (name, values), color, style in zip(
        corrected.items(), (ORANGE, BLUE, GREEN, INK), ("o-", "s--", "^:", "."), strict=False
    ):
        axes.plot(rates, values, style, color=color, label=name)
    axes.axhline(450, color=QUIET, linewidth=0.9)
    axes.text(rates[0], 452, "450 ms: prolonged in men", color=QUIET, size=9)
    axes.set(xlabel="heart rate, beats per minute", ylabel="QTc, ms")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    drawn.tight_layout()
    said = "; ".join(f"{name} from {values[0]:.0f} to {values[-1]:.0f}" for name, values in corrected.items())
    alt = f"QTc in ms of one heart, from {rates[0]:.0f} to {rates[-1]:.0f} beats per minute, by three formulas: {said}."
    return FigureResult(drawn, alt, {"rates": [round(rate) for rate in rates]})


@figure("03.10", "Measured against known marks, on synthetic recordings of several findings.")
def against_known_marks(pairs: Pairs) -> FigureResult:
    """Draw a Bland–Altman plot for each interval, measured against what the generator knows."""
    drawn, told, counts = _agreement(pairs)
    alt = f"Four plots of measured minus known against their mean, one dot for each synthetic recording. {told}"
    return FigureResult(drawn, alt, counts)


@figure("03.11", "Measured against cardiologists' marks, each record by a network that never saw it (LUDB 1–50).")
def against_cardiologists(pairs: Pairs) -> FigureResult:
    """Draw a Bland–Altman plot for each interval, measured against the marks of LUDB."""
    drawn, told, counts = _agreement(pairs)
    alt = f"Four plots of measured minus marked against their mean, one dot for each record of LUDB. {told}"
    recorded = {name: [measured, marked] for name, (measured, marked) in pairs.items()}  # from a file: no rounding
    return FigureResult(drawn, alt, {"counts": counts, "pairs": recorded})


def _agreement(pairs: Pairs) -> tuple[Figure, str, dict[str, int]]:
    """Draw one panel for each interval; return the figure, its numbers in words, and how many pairs each has."""
    from matplotlib import pyplot

    drawn, panels = pyplot.subplots(1, len(pairs), figsize=(10.8, 3.4))
    said, counts = [], {}
    for axes, (name, (measured, marked)) in zip(panels, pairs.items(), strict=True):
        both = np.isfinite(measured) & np.isfinite(marked)
        differences = measured[both] - marked[both]
        bias, spread = float(differences.mean()), float(differences.std(ddof=1))
        _panel(axes, (measured[both] + marked[both]) / 2, differences, bias, spread)
        title = INTERVALS.get(name, name)
        axes.set_title(f"{title}: {bias:+.0f} ± {1.96 * spread:.0f} ms, n = {len(differences)}", size=10)
        counts[name] = len(differences)
        said.append(f"{title}: bias {bias:.0f} ms, limits {bias - 1.96 * spread:.0f} to {bias + 1.96 * spread:.0f} ms")
    panels[0].set_ylabel("measured minus marked, ms")
    drawn.tight_layout()
    return drawn, "; ".join(said) + ".", counts


def _panel(axes: Axes, mean: np.ndarray, differences: np.ndarray, bias: float, spread: float) -> None:
    """Draw differences against means, with the bias and the limits of agreement."""
    axes.axhspan(bias - 1.96 * spread, bias + 1.96 * spread, color=BLUE, alpha=0.1, linewidth=0)
    axes.axhline(0, color=QUIET, linewidth=0.8)
    axes.axhline(bias, color=ORANGE, linewidth=1.6)
    for side in (-1, 1):
        axes.axhline(bias + 1.96 * side * spread, color=BLUE, linewidth=1.0, linestyle="--")
    axes.plot(mean, differences, "o", color=INK, markersize=4, alpha=0.55, markeredgewidth=0)
    reach = 1.15 * max(float(np.abs(differences).max()), abs(bias) + 1.96 * spread, 1.0)
    axes.set(xlabel="mean of both, ms", ylim=(-reach, reach))
