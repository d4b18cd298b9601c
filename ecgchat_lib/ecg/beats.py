"""Find the heartbeats of a recording with all twelve leads, and average them into one clean beat.

Classical signal processing: a QRS complex is where many leads are steep at once. No network, and no naming of
beat types beyond "looks like most others" or not. Taught in: 01 §6.
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


@dataclass(frozen=True)
class MedianBeat:
    """The median of the beats that look alike.

    Attributes:
        signal: float64 `(12, time)` in mV.
        fs: Hz.
        r: the sample of the R peak in `signal`.
        spread: float64 `(12, time)` mV, median absolute deviation over the beats.
        beats: float64 `(beat, 12, time)`, the beats that went in.
        positions: the beats' R peaks in the recording, refined, in samples (fractions are possible).
        alike: for each of all beats, whether it went in.
    """

    signal: NDArray[np.float64]
    fs: float
    r: int
    spread: NDArray[np.float64]
    beats: NDArray[np.float64]
    positions: NDArray[np.float64]
    alike: NDArray[np.bool_]


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


def median_beat(
    signal: NDArray[np.floating], fs: float, peaks: NDArray[np.int64], before: float, after: float
) -> MedianBeat | None:
    """Align the beats by their QRS complexes, and take the median of those that look alike.

    Args:
        signal: `(12, time)` in mV, without slow drift.
        fs: Hz.
        peaks: from `find_r_peaks`.
        before: seconds kept before the R peak.
        after: seconds kept after it.

    Returns:
        The median beat, or None if no beat lies wholly inside the recording.
    """
    filled, _ = fill_missing(signal)
    left, right, reach = round(before * fs), round(after * fs), round(0.05 * fs)
    inside = peaks[(peaks - left - reach >= 0) & (peaks + right + reach < filled.shape[-1])]
    if len(inside) == 0:
        return None
    core = round(0.07 * fs)
    shifts, alike = _align(filled, peaks, core, reach)
    positions = peaks + shifts
    usable = alike & (positions - left >= 0) & (positions + right < filled.shape[-1])
    if not usable.any():
        return None
    starts = positions[usable].astype(int) - left
    beats = np.stack([filled[:, start : start + left + right + 1] for start in starts[:MAX_BEATS]])
    middle = np.median(beats, axis=0)
    spread = np.median(np.abs(beats - middle), axis=0)
    return MedianBeat(middle, fs, left, spread, beats, positions.astype(float), usable)


MAX_BEATS = 400  # more don't make the median better, only slower


def _align(
    signal: NDArray[np.float64], peaks: NDArray[np.int64], core: int, reach: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return each beat's shift to match the typical QRS complex, and whether it resembles it."""
    padded = np.pad(signal, [(0, 0), (core + reach, core + reach)], mode="edge")
    windows = np.stack([padded[:, p : p + 2 * (core + reach) + 1] for p in peaks])  # (beat, lead, time)
    width = 2 * core + 1
    offsets = np.arange(2 * reach + 1)
    shifts = np.zeros(len(peaks), dtype=np.int64)
    quality = np.ones(len(peaks))
    alike = np.ones(len(peaks), dtype=bool)
    for _ in range(3):
        cut = np.stack([w[:, reach + s : reach + s + width] for w, s in zip(windows, shifts, strict=True)])
        template = np.median(cut[alike], axis=0)
        template = template - template.mean(axis=-1, keepdims=True)
        norm = np.linalg.norm(template) or 1.0
        for number, window in enumerate(windows):
            views = np.lib.stride_tricks.sliding_window_view(window, width, axis=-1)  # (lead, offset, width)
            centered = views - views.mean(axis=-1, keepdims=True)
            scores = np.einsum("low,lw->o", centered, template)
            best = int(np.argmax(scores - 1e-9 * np.abs(offsets - reach)))
            shifts[number] = best - reach
            quality[number] = scores[best] / (norm * (np.linalg.norm(centered[:, best]) or 1.0))
        alike = quality >= max(0.8, np.median(quality) - 0.15)
        if not alike.any():
            alike = quality >= np.median(quality)
    return shifts, alike
