"""The signals of a manifest, read into one array of equal length and rate.

It reads record by record through `ecg.formats`, so units, lead order and rate are handled in one place. It doesn't
filter, and doesn't cache; `packed.py` makes a store for fast reading. Taught in: 02 §5 and §7.
"""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from ecgchat_lib.datasets.manifest import Manifest
from ecgchat_lib.ecg.formats import read_any
from ecgchat_lib.ecg.recording import Recording, model_window


def load_recording(manifest: Manifest, record: str) -> Recording:
    """Read one recording of a manifest by its record name.

    Raises:
        KeyError: the manifest has no such record.
        RecordError: the recording can't be read.
    """
    rows = manifest.loc[manifest["record"] == record, "path"]
    if rows.empty:
        raise KeyError(f"no record {record!r} in this manifest of {len(manifest)} records")
    return read_any(rows.iloc[0])


def load_signals(manifest: Manifest, *, fs: float = 500.0, seconds: float = 10.0) -> np.ndarray:
    """Read all recordings of a manifest as the model sees them.

    Longer recordings are cut to their first `seconds`, shorter ones padded with zeros, others resampled, as
    `ecg.recording.model_window` does.

    Args:
        manifest: a checked manifest.
        fs: sampling rate of the answer, Hz.
        seconds: length of the answer.

    Returns:
        float32 (n, 12, fs·seconds), mV, leads I II III aVR aVL aVF V1–V6.

    Raises:
        RecordError: one of the recordings can't be read; the message names it.
    """
    out = np.zeros((len(manifest), 12, round(fs * seconds)), dtype=np.float32)
    for row, path in enumerate(tqdm(manifest["path"], desc="reading", unit="record", disable=None)):
        out[row], _ = model_window(read_any(path), fs=fs, seconds=seconds)
    return out
