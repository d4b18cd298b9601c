"""Waves of a beat: what one is, how many of them are drawn into eight leads at once, and where each begins and ends.

A wave is a bump with a beginning and an end, (1 − z²)ᵏ between −1 < z < 1: a polynomial, so no last digit hangs on a
machine's `exp`. Rise and fall have their own widths. It knows nothing of rhythms or findings. Taught in: 02 §1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Vector = tuple[float, float, float]

# Dower's matrix: rows I, II, V1–V6; columns left, foot, back (Dower et al. 1980, table of the 8 independent leads).
DOWER = np.array(
    [
        [0.632, -0.235, 0.059],
        [0.235, 1.066, -0.132],
        [-0.515, 0.157, -0.917],
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ]
)

# Eight independent leads (I, II, V1–V6) → twelve, in the order I II III aVR aVL aVF V1–V6.
TWELVE = np.zeros((12, 8))
TWELVE[:2, :2] = np.eye(2)
TWELVE[2:6, :2] = np.array([[-1, 1], [-0.5, -0.5], [1, -0.5], [-0.5, 1]])
TWELVE[6:, 2:] = np.eye(6)


class Wave(NamedTuple):
    """A bump: where its peak is, how long it rises and falls (all in the unit of its part), and its vector in mV."""

    center: float
    rise: float
    fall: float
    vector: Vector


@dataclass(frozen=True)
class Part:
    """The waves of a P wave, a QRS complex or an ST segment with T wave, seen in eight leads.

    Attributes:
        center: `(wave,)` places of the peaks, in the unit of the part: ms, or a share of the part's length.
        rise: `(wave,)` from beginning to peak.
        fall: `(wave,)` from peak to end.
        leads: `(8, wave)` heights in mV in the leads I, II, V1–V6.
        power: k of (1 − z²)ᵏ, 3 or 6; 6 begins more gently.
    """

    center: np.ndarray
    rise: np.ndarray
    fall: np.ndarray
    leads: np.ndarray
    power: int

    @property
    def start(self) -> float:
        """Where the first wave begins."""
        return float((self.center - self.rise).min())

    @property
    def stop(self) -> float:
        """Where the last wave ends."""
        return float((self.center + self.fall).max())

    def bumps(self, time: np.ndarray) -> np.ndarray:
        """Heights between 0 and 1 at `(…, time)` in the part's unit: `(…, wave, time)`."""
        distance = time[..., None, :] - self.center[:, None]
        z = distance * np.where(distance < 0, (1 / self.rise)[:, None], (1 / self.fall)[:, None])
        hill = np.maximum(1 - z * z, 0.0)
        cube = hill * hill * hill
        return cube if self.power == 3 else cube * cube


def make_part(waves: Sequence[Wave], field: np.ndarray, power: int, uneven: np.ndarray | None = None) -> Part:
    """Put waves together as the electrodes see them.

    Args:
        waves: the bumps.
        field: `(8, 3)` lead vectors.
        power: see `Part`; widths of `waves` are those of power 3, and another power keeps the width at half height.
        uneven: `(8, wave)` factors by which the leads differ from what one dipole would give; None is 1.
    """
    leads = field @ np.array([wave.vector for wave in waves]).T
    wider = math.sqrt((1 - 0.5 ** (1 / 3)) / (1 - 0.5 ** (1 / power)))
    return Part(
        np.array([wave.center for wave in waves]),
        wider * np.array([wave.rise for wave in waves]),
        wider * np.array([wave.fall for wave in waves]),
        leads if uneven is None else leads * uneven[:, : len(waves)],
        power,
    )


def draw_part(
    out: np.ndarray, part: Part, anchors: np.ndarray, scale: np.ndarray, gains: np.ndarray, fs: float
) -> None:
    """Add a part to eight leads, once per beat.

    Args:
        out: `(8, time)` mV, changed in place.
        part: the waves.
        anchors: `(beat,)` when the part's zero is, s.
        scale: `(beat,)` length of the part's unit, ms.
        gains: `(beat, 8)` factors, such as breathing's.
        fs: sampling rate, Hz.
    """
    total = out.shape[1]
    first = np.ceil((anchors + part.start * scale / 1000) * fs).astype(np.int64)
    last = np.floor((anchors + part.stop * scale / 1000) * fs).astype(np.int64)
    here = (last >= 0) & (first < total)
    if not here.any():
        return
    first, last, anchors, scale, gains = first[here], last[here], anchors[here], scale[here], gains[here]
    index = first[:, None] + np.arange(int((last - first).max()) + 1)  # (beat, window)
    time = (index / fs - anchors[:, None]) * (1000 / scale)[:, None]
    leads = gains[:, :, None] * (part.leads @ part.bumps(time))  # (beat, 8, window)
    for begin, beat in zip(first.tolist(), leads, strict=True):
        left, right = max(-begin, 0), min(beat.shape[1], total - begin)
        out[:, begin + left : begin + right] += beat[:, left:right]


# --- marks -------------------------------------------------------------------------------------------------------


class Edge(NamedTuple):
    """When a wave counts as begun and ended: a share of its height in the lead, and at least so many mV.

    Who marks one lead knows the others: a mark lies `pull` of the way from what the lead alone shows to what all leads
    together show. Where the wave is lower than `faint` mV in a lead, the others decide alone.
    """

    onset: float
    offset: float
    onset_floor: float
    offset_floor: float
    faint: float
    pull: float


# From where LUDB's cardiologists put their marks (medians over records 1–50, lead II, and the other leads beside it).
EDGES = {
    "P": Edge(0.05, 0.08, 0.003, 0.005, 0.02, 0.3),
    "QRS": Edge(0.003, 0.016, 0.001, 0.006, 0.12, 0.5),
    "T": Edge(0.10, 0.06, 0.010, 0.006, 0.03, 0.3),
}
_GRID = 400


def part_marks(part: Part, wave: str, waves: slice = slice(None)) -> np.ndarray:
    """Return onset, peak and offset in the part's unit, `(12, 3)`, of some of a part's waves without noise."""
    shown = Part(part.center[waves], part.rise[waves], part.fall[waves], part.leads[:, waves], part.power)
    time = np.linspace(shown.start, shown.stop, _GRID)
    leads = TWELVE @ (shown.leads @ shown.bumps(time))  # (12, time)
    together = np.sqrt((leads * leads).mean(axis=0))
    edge = EDGES[wave]
    marks = _ends(np.concatenate([leads, together[None]]), time, edge, wave)
    marks, everywhere = marks[:12], marks[12]
    pull = np.where(np.abs(leads).max(axis=1) < edge.faint, 1.0, edge.pull)[:, None]
    marks[:, ::2] += pull * (everywhere[::2] - marks[:, ::2])
    marks[:, 1] = np.clip(marks[:, 1], marks[:, 0], marks[:, 2])
    return marks


def _ends(leads: np.ndarray, time: np.ndarray, edge: Edge, wave: str) -> np.ndarray:
    """Onset, peak and offset of each row, `(row, 3)`, by `edge`'s shares and floors alone."""
    size = np.abs(leads)
    peak = size.argmax(axis=1)
    height = size.max(axis=1, keepdims=True)
    onset = np.maximum(edge.onset * height, np.minimum(edge.onset_floor, 0.3 * height))
    offset = np.maximum(edge.offset * height, np.minimum(edge.offset_floor, 0.3 * height))
    begun = (size > onset).argmax(axis=1)
    ended = time.size - 1 - (size[:, ::-1] > offset).argmax(axis=1)
    if wave == "QRS":  # the R wave, where there is one
        peak = np.where(leads.max(axis=1) >= 0.15 * height[:, 0], leads.argmax(axis=1), peak)
    return time[np.stack([begun, peak, ended], axis=1)]
