"""The front end: from recordings in millivolts to what the encoder was trained on.

Band pass, resampling and scaling per lead, all by `ecg.filters` and all set by the encoder's config, so that training,
evaluation and chat cannot drift apart. Taught in: 05 §1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ecgchat_lib.coca.config import LEADS, EcgEncoderConfig
from ecgchat_lib.ecg.filters import bandpass, resample
from ecgchat_lib.ecg.recording import Recording, model_window
from ecgchat_lib.errors import ParameterError

FLAT = 1e-6  # a lead with a smaller standard deviation (mV) holds no signal: it becomes zero


def front_end(
    signals: np.ndarray | torch.Tensor, config: EcgEncoderConfig, *, fs: float = 500.0, filtered: bool = False
) -> torch.Tensor:
    """Turn signals into windows for the encoder.

    Args:
        signals: (n, 12, time) mV; NaN counts as 0.
        config: the encoder's config: band, rate, length, scaling.
        fs: samples per second of `signals`, Hz.
        filtered: they were band-passed already.

    Returns:
        float32 (n, 12, samples): longer signals are cut at the end, shorter ones get zeros there. Scaled per lead to
        standard deviation 1 if the config says so; a flat lead stays 0.

    Raises:
        ParameterError: `signals` has another shape.
    """
    ecg: np.ndarray = np.nan_to_num(np.asarray(signals, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    if ecg.ndim != 3 or ecg.shape[1] != LEADS:
        raise ParameterError(
            f"front_end reads (n, {LEADS}, time), but got {ecg.shape}. Add the batch axis: signal[None]"
        )
    if not len(ecg):
        return torch.zeros(0, LEADS, config.samples)
    if config.band is not None and not filtered:
        ecg = bandpass(ecg, fs, *config.band)
    if fs != config.fs:
        ecg = resample(ecg, fs, config.fs)
    ecg = ecg[:, :, : config.samples]
    if config.z_score:
        deviation = ecg.std(axis=2, keepdims=True)
        gain = np.where(deviation < FLAT, 0.0, 1 / np.maximum(deviation, FLAT))
        ecg = (ecg - ecg.mean(axis=2, keepdims=True)) * gain
    ecg = np.pad(ecg, ((0, 0), (0, 0), (0, config.samples - ecg.shape[2])))
    return torch.from_numpy(ecg.astype(np.float32))


def recording_windows(recordings: Sequence[Recording], config: EcgEncoderConfig) -> torch.Tensor:
    """Return the encoder's windows (n, 12, samples) of recordings: any rate, length and units, by `model_window`."""
    signals = [model_window(recording, fs=500.0, seconds=config.seconds)[0] for recording in recordings]
    return front_end(np.stack(signals) if signals else np.zeros((0, LEADS, 1)), config, fs=500.0)
