"""From the network's probabilities to marks: where each P wave, QRS complex and T wave begins and ends.

A wave is a stretch in which its class is likely; its ends lie between two samples, where the probability crosses a
threshold. No amplitudes here, and no judgment whether a rhythm has P waves at all: that is `measure.py`'s.
Taught in: 03 §4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ecgchat_lib.ecg.marks import WAVES, WaveMarks
from ecgchat_lib.ecg.segment import CLASSES, SEGMENT_FS

if TYPE_CHECKING:
    from numpy.typing import NDArray

THRESHOLD = 0.45  # at one half, waves came out 2 to 4 ms short (cross-validation on LUDB 1-50)
LEAST_SECONDS = {"P": 0.024, "QRS": 0.024, "T": 0.040}  # shorter stretches are no waves
QRS_REACH = 0.10  # s: a beat's QRS complex lies this near to where the beat was found
P_REACH = 0.45  # s: a beat's P wave begins at most this long before its QRS complex
OVERLAP = 0.012  # s: that neighboring waves may run into each other


def find_stretches(
    probability: NDArray[np.floating], least: float = 0.0, threshold: float = 0.5
) -> NDArray[np.float64]:
    """Return where a probability stays above a threshold.

    Args:
        probability: `(time,)`.
        least: samples that a stretch must last.
        threshold: between 0 and 1.

    Returns:
        float64 `(stretch, 2)`: first and last place in samples; between two samples, by a straight line.
    """
    above = np.concatenate([[False], probability > threshold, [False]])
    edges = np.flatnonzero(np.diff(above.astype(np.int8)))
    first, last = edges[::2], edges[1::2] - 1
    rows = []
    for a, b in zip(first, last, strict=True):
        start = a if a == 0 else a - _part(probability[a], probability[a - 1], threshold)
        stop = b if b == len(probability) - 1 else b + _part(probability[b], probability[b + 1], threshold)
        if stop - start >= least:
            rows.append((start, stop))
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def _part(inside: float, outside: float, threshold: float) -> float:
    """Return how far from the sample inside toward the one outside the threshold is crossed, 0 to 1."""
    return float((inside - threshold) / (inside - outside))


def find_waves(probabilities: NDArray[np.floating], lead: NDArray[np.floating]) -> WaveMarks:
    """Return every wave of one lead.

    Args:
        probabilities: `(4, time)`, one row for each of `segment.CLASSES`.
        lead: `(time,)`, the same lead; a wave's peak is where it is farthest from the line between its ends.

    Returns:
        Marks in samples at `SEGMENT_FS`.
    """
    waves = []
    for name in WAVES:
        stretches = find_stretches(probabilities[CLASSES.index(name)], LEAST_SECONDS[name] * SEGMENT_FS, THRESHOLD)
        rows = [(start, _peak(lead, start, stop), stop) for start, stop in stretches]
        waves.append(np.array(rows, dtype=np.float64).reshape(-1, 3))
    return WaveMarks(*waves)


def find_qrs(probabilities: NDArray[np.floating], beat: float) -> tuple[float, float] | None:
    """Return where the QRS complex of one beat begins and ends, in samples; None if there is none near it.

    Args:
        probabilities: `(4, time)` of one lead.
        beat: where the beat is, in samples.
    """
    row = probabilities[CLASSES.index("QRS")]
    stretches = find_stretches(row, LEAST_SECONDS["QRS"] * SEGMENT_FS, THRESHOLD)
    reach = QRS_REACH * SEGMENT_FS
    near = stretches[(stretches[:, 0] <= beat + reach) & (stretches[:, 1] >= beat - reach)]
    if len(near) == 0:
        return None
    start, stop = near[np.argmin(np.abs(near.mean(axis=1) - beat))]
    return float(start), float(stop)


def _peak(lead: NDArray[np.floating], start: float, stop: float) -> float:
    first, last = int(np.ceil(start)), int(np.floor(stop))
    piece = lead[first : last + 1]
    if len(piece) < 3:
        return (start + stop) / 2
    rise = (piece[-1] - piece[0]) / (len(piece) - 1)
    return float(first + np.argmax(np.abs(piece - piece[0] - rise * np.arange(len(piece)))))


def waves_of_beats(waves: WaveMarks, beats: NDArray[np.float64]) -> WaveMarks:
    """Return, for each beat, its P wave, QRS complex and T wave: one row per beat, NaN where it has none.

    Args:
        waves: every wave of one lead, in samples at `SEGMENT_FS`.
        beats: `(beat,)`, where the beats are, in order, in the same samples.

    Returns:
        Marks with as many rows as there are beats. A P wave is the last one that ends before the QRS complex and begins
        after the previous beat's; a T wave is the first that begins after it, before the next beat.
    """
    empty = np.full((len(beats), 3), np.nan)
    p, qrs, t = empty.copy(), empty.copy(), empty.copy()
    slack = OVERLAP * SEGMENT_FS
    for k, beat in enumerate(beats):
        near = waves.qrs[
            (waves.qrs[:, 0] <= beat + QRS_REACH * SEGMENT_FS) & (waves.qrs[:, 2] >= beat - QRS_REACH * SEGMENT_FS)
        ]
        if len(near) == 0:
            continue
        qrs[k] = near[np.argmin(np.abs(near[:, [0, 2]].mean(axis=1) - beat))]
        onset, _, offset = qrs[k]
        before = np.nanmax([beats[k - 1], qrs[k - 1, 2]]) if k else -np.inf
        after = beats[k + 1] if k + 1 < len(beats) else np.inf
        earliest = max(before, onset - P_REACH * SEGMENT_FS)
        ps = waves.p[(waves.p[:, 0] > earliest) & (waves.p[:, 2] <= onset + slack)]
        ts = waves.t[(waves.t[:, 0] >= offset - slack) & (waves.t[:, 0] < after)]
        p[k] = ps[-1] if len(ps) else np.nan
        t[k] = ts[0] if len(ts) else np.nan
    return WaveMarks(p, qrs, t)
