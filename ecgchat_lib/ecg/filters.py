"""Change a signal's sampling rate, and keep only a band of frequencies; both without shifting anything in time.

Thin wrappers over scipy that cope with short signals, missing samples and odd sampling rates. No noise is modeled
here. Taught in: 01 §5.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ecgchat_lib.errors import ParameterError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def resample(signal: NDArray[np.floating], fs_from: float, fs_to: float) -> NDArray[np.float32]:
    """Resample along the last axis with an anti-aliasing polyphase filter.

    Args:
        signal: `(..., time)`; NaN marks missing samples, and stays NaN in the result.
        fs_from: its sampling rate in Hz.
        fs_to: the wanted one.

    Returns:
        float32 `(..., round(time * fs_to / fs_from))`.

    Raises:
        ParameterError: a sampling rate that isn't positive.
    """
    from scipy.signal import resample_poly

    if not (np.isfinite([fs_from, fs_to]).all() and fs_from > 0 and fs_to > 0):
        raise ParameterError(f"sampling rates {fs_from} and {fs_to}: expected positive numbers of Hz")
    n = signal.shape[-1]
    size = round(n * fs_to / fs_from)
    if fs_from == fs_to or n == 0:
        return np.array(signal, dtype=np.float32)
    ratio = Fraction(fs_to / fs_from).limit_denominator(1000)
    if ratio == 0:
        raise ParameterError(f"from {fs_from} to {fs_to} Hz: more than a thousandfold isn't supported")
    filled, missing = fill_missing(signal)
    if n == 1:  # no line can be drawn through it
        return np.broadcast_to(np.asarray(signal, dtype=np.float32), (*signal.shape[:-1], size)).copy()
    # The offset is taken out first: each phase of the filter has a slightly different gain, which would turn it into
    # ripples. Beyond the ends, padtype "line" goes on along the line from first to last sample.
    offset = np.median(filled, axis=-1, keepdims=True)
    values = resample_poly(filled - offset, ratio.numerator, ratio.denominator, axis=-1, padtype="line") + offset
    result = np.empty((*signal.shape[:-1], size), dtype=np.float32)
    kept = min(size, values.shape[-1])
    result[..., :kept] = values[..., :kept]
    result[..., kept:] = values[..., kept - 1 : kept]
    if missing.any():
        nearest = np.minimum((np.arange(size) * fs_from / fs_to).round().astype(int), n - 1)
        result[missing[..., nearest]] = np.nan
    return result


def bandpass(signal: NDArray[np.floating], fs: float, low: float = 0.5, high: float = 40.0) -> NDArray[np.float32]:
    """Keep `low` to `high` Hz: Butterworth, second order, run forward and backward (no delay).

    Args:
        signal: `(..., time)`; NaN marks missing samples, and stays NaN in the result.
        fs: its sampling rate in Hz.
        low: lower corner in Hz; 0 keeps everything below `high`.
        high: upper corner in Hz; at or above half of `fs`, everything above `low` is kept.

    Returns:
        float32, same shape.

    Raises:
        ParameterError: `low` isn't below `high` and half of `fs`.
    """
    from scipy.signal import sosfiltfilt

    if not 0 <= low < min(high, fs / 2):
        raise ParameterError(f"band {low} to {high} Hz at {fs} Hz: expected 0 <= low < high and low < fs / 2")
    n = signal.shape[-1]
    if n < 2 or (low == 0 and high >= fs / 2):
        return np.array(signal, dtype=np.float32)
    sections = _butterworth(low, high, fs)
    filled, missing = fill_missing(signal)
    padding = min(n - 1, round(fs / max(low, 0.1)))  # a period of the slowest wave, so that the edges settle
    result = sosfiltfilt(sections, filled, axis=-1, padlen=padding).astype(np.float32)
    result[missing] = np.nan
    return result


@lru_cache(maxsize=64)
def _butterworth(low: float, high: float, fs: float) -> NDArray[np.float64]:
    """Design the filter of `bandpass`; kept, since the same few are needed again and again."""
    from scipy.signal import butter

    if low == 0:
        return butter(2, high, "lowpass", fs=fs, output="sos")
    if high >= fs / 2:
        return butter(2, low, "highpass", fs=fs, output="sos")
    return butter(2, [low, high], "bandpass", fs=fs, output="sos")


def find_spikes(signal: NDArray[np.floating], fs: float) -> NDArray[np.int64]:
    """Return the samples of pacemaker spikes: steeper, in all leads together, than everything some 30 ms around them.

    Args:
        signal: `(lead, time)` in mV.
        fs: Hz; below 400 Hz a spike of a millisecond or two leaves no trace that could be told from a QRS complex.

    Returns:
        `(spike,)`; empty below 400 Hz.
    """
    from scipy.ndimage import maximum_filter1d
    from scipy.signal import find_peaks

    if fs < 400 or signal.shape[-1] < fs * 0.1:
        return np.zeros(0, dtype=np.int64)
    steep = np.abs(np.diff(fill_missing(signal)[0], axis=-1)).sum(axis=0) * fs / 500  # mV in 2 ms
    peaks, _ = find_peaks(steep, height=0.6, distance=round(0.02 * fs))
    middle = round(0.02 * fs)
    around = maximum_filter1d(steep, 2 * round(0.01 * fs) + 1, mode="constant")  # of the 10 ms on either side of each
    padded = np.pad(around, middle)
    before, after = padded[peaks], padded[peaks + 2 * middle]
    return peaks[(steep[peaks] > 4 * before) & (steep[peaks] > 2.5 * after)]


def remove_spikes(signal: NDArray[np.floating], fs: float) -> NDArray[np.float32]:
    """Draw straight lines through pacemaker spikes (8 ms before to 8 ms after each one), in all leads.

    Args:
        signal: `(lead, time)` in mV.
        fs: Hz.

    Returns:
        float32, same shape; NaN stays NaN.
    """
    result = np.array(signal, dtype=np.float32)
    reach = round(0.008 * fs)
    for spike in find_spikes(signal, fs):
        first, last = max(spike - reach, 0), min(spike + 1 + reach, signal.shape[-1] - 1)
        weight = np.linspace(0, 1, last - first + 1, dtype=np.float32)
        result[:, first : last + 1] = (1 - weight) * result[:, first, None] + weight * result[:, last, None]
    return result


def fill_missing(signal: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Interpolate missing samples linearly along the last axis; a row without any sample becomes 0.

    Args:
        signal: `(..., time)`, NaN or infinite where a sample is missing.

    Returns:
        float64 of the same shape without NaN, and where they were.
    """
    values = np.array(signal, dtype=np.float64)
    missing = ~np.isfinite(values)
    if missing.any():
        rows, gaps = values.reshape(-1, values.shape[-1]), missing.reshape(-1, values.shape[-1])
        time = np.arange(values.shape[-1])
        for row, gap in zip(rows, gaps, strict=True):
            if gap.all():
                row[:] = 0
            elif gap.any():
                row[gap] = np.interp(time[gap], time[~gap], row[~gap])
    return values, missing
