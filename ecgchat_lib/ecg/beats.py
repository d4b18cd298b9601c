"""Find the heartbeats of a recording with all twelve leads, and average them into one clean beat.

Classical signal processing: a QRS complex is where many leads are steep at once. No network, and no naming of
beat types beyond "looks like most others" or not. Taught in: 01 §6 and 03 §5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ecgchat_lib.ecg.filters import bandpass, fill_missing, remove_spikes

if TYPE_CHECKING:
    from numpy.typing import NDArray

QRS_BAND = (5.0, 25.0)  # Hz: QRS complexes are steep here, P and T waves are not
SMOOTH_SECONDS = 0.08  # about the width of a narrow QRS complex
REFRACTORY_SECONDS = 0.24  # no two beats are nearer than this (250 per minute)
PEAK_FRACTION = 0.4  # of the typical peak's height
WAVE_SECONDS = 0.36  # a P or T wave lies this near to its QRS complex
WAVE_FRACTION = 0.6  # and is weaker than this fraction of it, even where a bundle branch block slows the QRS
CONTRAST = 3.0  # peaks must stand out from the energy between beats by this factor


MAX_BEATS = 400  # more don't make the median better, only slower
CORE_SECONDS = 0.07  # before and after the R peak, that beats are compared in
REACH_SECONDS = 0.05  # that a beat may be moved to lie on the others
LEAST_LIKENESS = 0.8  # correlation with the typical QRS complex


@dataclass(frozen=True)
class Beats:
    """Where the beats are, and which of them look like most.

    Attributes:
        positions: float64 `(beat,)`, seconds from the start, the same point in each QRS complex.
        alike: bool `(beat,)`, whether the QRS complex resembles the typical one.
    """

    positions: NDArray[np.float64]
    alike: NDArray[np.bool_]


@dataclass(frozen=True)
class MedianBeat:
    """The median of the beats that look alike.

    Attributes:
        signal: float64 `(12, time)` in mV; the level just before the QRS complex is 0.
        fs: Hz.
        r: the sample of the R peak in `signal`.
        beats: float64 `(beat, 12, time)`, the beats that went in.
    """

    signal: NDArray[np.float64]
    fs: float
    r: int
    beats: NDArray[np.float64]

    @property
    def spread(self) -> NDArray[np.float64]:
        """float64 `(12, time)` mV, median absolute deviation over the beats."""
        return np.median(np.abs(self.beats - np.median(self.beats, axis=0)), axis=0)


def qrs_energy(signal: NDArray[np.floating], fs: float) -> NDArray[np.float64]:
    """Return how steep the leads are together: high in QRS complexes, low elsewhere.

    Each lead is bandpassed, differentiated, made positive and divided by its own 99th percentile, so that small leads
    count as much as large ones; then all leads are averaged, and smoothed over the width of a QRS complex.

    Args:
        signal: `(lead, time)` in mV.
        fs: Hz.

    Returns:
        float64 `(time,)`, no unit; about 1 at a QRS complex.
    """
    from scipy.ndimage import uniform_filter1d

    if signal.shape[-1] < 3:
        return np.zeros(signal.shape[-1])
    low, high = QRS_BAND
    steep = np.abs(np.gradient(fill_missing(bandpass(remove_spikes(signal, fs), fs, low, high))[0], axis=-1))
    typical = np.percentile(steep, 99, axis=-1, keepdims=True)
    live = typical[:, 0] > 1e-6 * 500 / fs  # mV per sample: below that, a lead is flat
    if not live.any():
        return np.zeros(signal.shape[-1])
    mean = (steep[live] / typical[live]).mean(axis=0)
    return uniform_filter1d(mean, max(1, round(SMOOTH_SECONDS * fs)), mode="constant")


def find_r_peaks(signal: NDArray[np.floating], fs: float) -> NDArray[np.int64]:
    """Return the samples where the QRS complexes are, `(beat,)`, from all leads together.

    Args:
        signal: `(lead, time)` in mV.
        fs: Hz.

    Returns:
        The maxima of `qrs_energy` that are high enough and far enough apart; none if nothing stands out.
    """
    from scipy.signal import find_peaks

    energy = qrs_energy(signal, fs)
    distance = max(1, round(REFRACTORY_SECONDS * fs))
    peaks, _ = find_peaks(energy, distance=distance)
    if len(peaks) == 0:
        return peaks
    typical = np.percentile(energy[peaks], 90)
    peaks, _ = find_peaks(energy, distance=distance, height=PEAK_FRACTION * typical)
    peaks = peaks[energy[peaks] > CONTRAST * np.median(energy)]
    return _without_waves(peaks, energy, WAVE_SECONDS * fs)


def _without_waves(peaks: NDArray[np.int64], energy: NDArray[np.float64], distance: float) -> NDArray[np.int64]:
    """Return the peaks without those that are near to a much stronger one: its P or T wave."""
    if len(peaks) < 2:
        return peaks
    near = np.diff(peaks) <= distance
    weaker = np.diff(energy[peaks]) < 0  # each peak against the one before
    ratio = np.minimum(energy[peaks[1:]], energy[peaks[:-1]]) / np.maximum(energy[peaks[1:]], energy[peaks[:-1]])
    pair = near & (ratio < WAVE_FRACTION)
    wave = np.zeros(len(peaks), dtype=bool)
    wave[1:] |= pair & weaker
    wave[:-1] |= pair & ~weaker
    return peaks[~wave]


def align_beats(signal: NDArray[np.floating], fs: float, peaks: NDArray[np.int64]) -> Beats:
    """Lay the QRS complexes on each other in all leads at once, to a fraction of a sample.

    Three times, each beat is moved to where it correlates best with the median of the beats that look alike; a parabola
    through the best place and its neighbors gives the fraction.

    Args:
        signal: `(12, time)` in mV, without drift and NaN.
        fs: Hz.
        peaks: from `find_r_peaks`.
    """
    core, reach = max(1, round(CORE_SECONDS * fs)), max(1, round(REACH_SECONDS * fs))
    padded = np.pad(np.asarray(signal, dtype=np.float64), [(0, 0), (core + reach, core + reach)], mode="edge")
    width, offsets = 2 * core + 1, np.arange(2 * reach + 1)
    around = np.arange(2 * (core + reach) + 1)
    windows = padded[:, peaks[:, None] + around].swapaxes(0, 1)  # (beat, lead, time)
    views = np.lib.stride_tricks.sliding_window_view(windows, width, axis=-1)  # (beat, lead, offset, width)
    every = np.arange(len(peaks))
    shifts, alike = np.full(len(peaks), reach), np.ones(len(peaks), dtype=bool)
    for _ in range(3):
        template = np.median(views[every, :, shifts][alike][:MAX_BEATS], axis=0)
        template = template - template.mean(axis=-1, keepdims=True)
        scores = np.einsum("blow,lw->bo", views, template)
        shifts = np.argmax(scores - 1e-9 * np.abs(offsets - reach), axis=1)
        best = views[every, :, shifts]
        size = np.linalg.norm(best - best.mean(axis=-1, keepdims=True), axis=(1, 2)) * np.linalg.norm(template)
        likeness = scores[every, shifts] / np.where(size > 0, size, 1.0)
        alike = likeness >= max(LEAST_LIKENESS, np.median(likeness) - 0.15)
        if not alike.any():
            alike = likeness >= np.median(likeness)
    return Beats((peaks + shifts - reach + _fractions(scores, shifts)) / fs, alike)


def _fractions(scores: NDArray[np.float64], best: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how far, from -0.5 to 0.5, the top of a parabola through each best score and its neighbors lies off."""
    every, last = np.arange(len(scores)), scores.shape[1] - 1
    inner = (best > 0) & (best < last)
    left, middle, right = (scores[every, np.clip(best + step, 0, last)] for step in (-1, 0, 1))
    bend = 2 * middle - left - right
    usable = inner & (bend > 0)
    return np.clip(np.where(usable, (right - left) / 2 / np.where(usable, bend, 1.0), 0.0), -0.5, 0.5)


def median_beat(
    signal: NDArray[np.floating],
    fs: float,
    beats: Beats,
    levels: NDArray[np.float64],
    before: float,
    after: float,
) -> MedianBeat | None:
    """Cut out the beats that look alike, put each on its own level, and take their median.

    Args:
        signal: `(12, time)` in mV, without NaN.
        fs: Hz.
        beats: from `align_beats`.
        levels: float64 `(12, beat)` mV, the level just before each QRS complex.
        before: seconds kept before the R peak.
        after: seconds kept after it.

    Returns:
        The median beat, or None if no beat lies wholly inside the recording.
    """
    left, right = round(before * fs), round(after * fs)
    places = np.rint(beats.positions * fs).astype(int)
    usable = np.flatnonzero(beats.alike & (places >= left) & (places + right < signal.shape[-1]))[:MAX_BEATS]
    if len(usable) == 0:
        return None
    window = np.arange(-left, right + 1)
    cut = np.asarray(signal, dtype=np.float64)[:, places[usable, None] + window].swapaxes(0, 1)  # (beat, lead, time)
    cut = cut - levels[:, usable].T[:, :, None]
    return MedianBeat(np.median(cut, axis=0), fs, left, cut)
