"""Mark where P wave, QRS complex and T wave begin and end, on a median beat of twelve leads.

QRS: where all leads together are steep. P onset and T end: the tangent to the steepest flank, met with the baseline,
in lead II, held within a few milliseconds of what the other leads say. The constants were chosen on LUDB records
1–25; `benchmarks/measure.py` reports on 26–50. After Lepeschkin and Surawicz 1952 (tangent), and the CSE working
party's practice of looking at all leads at once. Taught in: 01 §6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ecgchat_lib.ecg.leads import LEADS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ecgchat_lib.ecg.beats import MedianBeat

QRS_FRACTION = 0.10  # of the QRS complex's steepness: below, it is over
QRS_SMOOTH = 0.008  # s, standard deviation of the smoothing before differentiating
P_SMOOTH = 0.012
T_SMOOTH = 0.016
P_TOLERANCE = 0.030  # s: how far lead II may lie from the leads' median
T_TOLERANCE = 0.020
P_REACH = 0.280  # s before the QRS complex, where a P wave is looked for
P_GAP = 0.030  # s before the QRS complex, where no P peak is looked for
T_GAP = 0.060  # s after the QRS complex, where no T peak is looked for
T_PEAK_LATEST, T_END_LATEST = 0.58, 0.69  # of RR, after the R peak: later, and it may be the next P wave
DEAD_MV = 0.02
II = LEADS.index("II")


@dataclass(frozen=True)
class Marks:
    """Fiducial points in samples of the median beat (fractions are possible); NaN where there is none.

    Amplitudes are in mV in lead II, from the level just before the QRS complex (P: from the line under it).
    """

    p_on: float
    p_peak: float
    qrs_on: float
    qrs_off: float
    t_peak: float
    t_off: float
    p_mv: float
    r_mv: float
    t_mv: float


def qrs_bounds(beat: MedianBeat) -> tuple[int, int] | None:
    """Return first and last sample of the QRS complex, or None if it doesn't stand out.

    The leads' absolute slopes are averaged; the complex lasts while that stays above a tenth of its height, and
    above three times what it is in the quiet part of the beat.
    """
    from scipy.ndimage import gaussian_filter1d

    fs, size = beat.fs, beat.signal.shape[-1]
    slope = np.abs(gaussian_filter1d(beat.signal, QRS_SMOOTH * fs, order=1, axis=-1)).mean(axis=0)
    near, later, hold = round(0.12 * fs), round(0.16 * fs), max(1, round(0.006 * fs))
    first, last = max(beat.r - near, hold), min(beat.r + later, size - hold - 1)
    if last - first < near:
        return None
    height = float(np.percentile(slope[first : beat.r + near], 97))
    threshold = max(QRS_FRACTION * height, 3 * float(np.quantile(slope, 0.3)))
    steep = first + np.flatnonzero(slope[first:last] > 0.5 * height)
    if len(steep) == 0 or threshold >= height:
        return None
    on, off = int(steep[0]), int(steep[-1])
    while on > hold and slope[on - hold : on + 1].max() > threshold:
        on -= 1
    while off < size - hold - 1 and slope[off : off + hold + 1].max() > threshold:
        off += 1
    return on, off


def delineate(beat: MedianBeat, rr_seconds: float, *, with_p: bool = True) -> Marks | None:
    """Return the marks of a median beat, or None if it has no QRS complex.

    Args:
        beat: from `beats.median_beat`, bandpassed so that its baseline is flat.
        rr_seconds: the typical time between beats; it bounds where this beat's T wave may end.
        with_p: look for a P wave (not, where the rhythm has none).
    """
    bounds = qrs_bounds(beat)
    if bounds is None:
        return None
    on, off = bounds
    fs = beat.fs
    level = np.median(beat.signal[:, max(0, on - round(0.024 * fs)) : on + 1], axis=-1, keepdims=True)
    t_peak, t_off = _t_wave(beat, level, off, rr_seconds)
    p_on = p_peak = p_mv = float("nan")
    if with_p:
        previous_t = beat.r - rr_seconds * fs + (t_off - beat.r if np.isfinite(t_off) else 0.4 * fs)
        p_on, p_peak, p_mv = _p_wave(beat, on, int(max(previous_t, 0)))
    lead = beat.signal[II] - level[II]
    complex_ = lead[on : off + 1]
    return Marks(
        p_on=p_on,
        p_peak=p_peak,
        qrs_on=float(on),
        qrs_off=float(off),
        t_peak=t_peak,
        t_off=t_off,
        p_mv=p_mv,
        r_mv=float(complex_.max()),
        t_mv=float(lead[round(t_peak)]) if np.isfinite(t_peak) else float("nan"),
    )


def _t_wave(beat: MedianBeat, level: NDArray[np.float64], off: int, rr_seconds: float) -> tuple[float, float]:
    """Return T peak and T end in lead II, held near the median of all leads with a clear T wave."""
    from scipy.ndimage import gaussian_filter1d

    fs, size = beat.fs, beat.signal.shape[-1]
    smooth = gaussian_filter1d(beat.signal, T_SMOOTH * fs, axis=-1) - level
    first = off + round(T_GAP * fs)
    last = min(beat.r + round(min(0.62, T_END_LATEST * rr_seconds) * fs), size - round(0.04 * fs))
    last_peak = min(beat.r + round(T_PEAK_LATEST * rr_seconds * fs), last)
    if last_peak - first < 0.04 * fs:
        return float("nan"), float("nan")
    ends, peaks, heights = [], [], []
    for lead in smooth:
        peak = first + int(np.argmax(np.abs(lead[first:last_peak])))
        upright = lead * (np.sign(lead[peak]) or 1.0)
        ends.append(_tangent_end(upright, peak, min(last + round(0.08 * fs), size - 2), round(0.18 * fs)))
        peaks.append(peak)
        heights.append(upright[peak])
    clear = np.array(heights) > 0.1 * max(heights)
    if max(heights) < 0.01:
        return float("nan"), float("nan")
    return float(peaks[II]), _held(ends, clear, T_TOLERANCE * fs, alive=lead_is_alive(beat, "II"))


def _tangent_end(wave: NDArray[np.float64], peak: int, last: int, reach: int) -> float:
    """Return where the tangent to the steepest descent after `peak` meets the lowest level that follows."""
    slope = np.diff(wave)
    steepest = peak + int(np.argmin(slope[peak : min(peak + reach, last)]))
    base = float(wave[steepest : last + 1].min())
    return steepest + (float(wave[steepest]) - base) / max(-float(slope[steepest]), 1e-9)


def p_window(beat: MedianBeat, on: int, earliest: int) -> tuple[int, int]:
    """Return where a P wave's peak may lie: after the previous T wave, before the QRS complex."""
    fs = beat.fs
    return max(earliest, on - round(P_REACH * fs), round(0.02 * fs)), on - round(P_GAP * fs)


def _p_wave(beat: MedianBeat, on: int, earliest: int) -> tuple[float, float, float]:
    """Return P onset, P peak and the amplitude of P in lead II, held near the median of the leads with a clear P."""
    from scipy.ndimage import gaussian_filter1d

    fs = beat.fs
    nothing = (float("nan"),) * 3
    first, last = p_window(beat, on, earliest)
    if last - first < 0.03 * fs:
        return nothing
    smooth = gaussian_filter1d(beat.signal, P_SMOOTH * fs, axis=-1)
    flat = smooth - line_under(smooth, first, on, fs)
    onsets, peaks, heights = [], [], []
    for lead in flat:
        peak = first + int(np.argmax(np.abs(lead[first:last])))
        upright = lead * (np.sign(lead[peak]) or 1.0)
        onsets.append(_tangent_start(upright, peak, first, round(0.1 * fs), round(0.08 * fs)))
        peaks.append(peak)
        heights.append(upright[peak])
    clear = np.array(heights) > 0.3 * max(heights)
    onset = _held(onsets, clear, P_TOLERANCE * fs, alive=lead_is_alive(beat, "II"))
    return onset, float(peaks[II]), float(flat[II][peaks[II]])


def lead_is_alive(beat: MedianBeat, lead: str) -> bool:
    """Return whether a lead has a signal at all: `DEAD_MV` from lowest to highest point of the beat."""
    return float(np.ptp(beat.signal[LEADS.index(lead)])) > DEAD_MV


def _held(points: list[float], clear: NDArray[np.bool_], tolerance: float, *, alive: bool) -> float:
    """Return lead II's point, moved at most to within `tolerance` of the median of the clear leads."""
    middle = float(np.median(np.array(points)[clear]))
    return float(np.clip(points[II], middle - tolerance, middle + tolerance)) if alive else middle


def line_under(signal: NDArray[np.float64], first: int, on: int, fs: float) -> NDArray[np.float64]:
    """Return, per lead, the straight line from before the P wave to the level before the QRS complex."""
    start = np.median(signal[:, first : first + round(0.02 * fs)], axis=-1)
    end = np.median(signal[:, max(on - round(0.016 * fs), 0) : on + 1], axis=-1)
    right = on - round(0.008 * fs)
    weight = np.clip((np.arange(signal.shape[-1]) - first) / max(right - first, 1), 0, 1)
    return start[:, None] * (1 - weight) + end[:, None] * weight


def _tangent_start(wave: NDArray[np.float64], peak: int, first: int, reach: int, before: int) -> float:
    """Return where the tangent to the steepest rise before `peak` meets the lowest level just before it."""
    slope = np.diff(wave)
    start = max(first, peak - reach)
    steepest = start + int(np.argmax(slope[start : peak + 1]))
    base = float(wave[max(first, steepest - before) : steepest + 1].min())
    return steepest - (float(wave[steepest]) - base) / max(float(slope[steepest]), 1e-9)
