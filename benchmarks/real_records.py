"""Read the real recordings that benchmarks use, from the folder named by ECGCHAT_REAL_DATA, without unpacking to disk.

For the benchmarks only; the library reads datasets with `ecgchat_lib.datasets`.
"""

from __future__ import annotations

import lzma
import os
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ecgchat_lib.ecg.recording import Recording, read_recording
from ecgchat_lib.ecg.reversal import derive_limb_leads
from ecgchat_lib.errors import RecordError


@dataclass(frozen=True)
class Real:
    """A real recording: where it is from, its patient, its fold in PTB-XL (0 elsewhere), and its PTB-XL number."""

    recording: Recording
    source: str
    patient: str
    fold: int = 0
    number: int = 0


SCALED_MV = 0.2  # root mean square that leads without millivolts get: an ordinary one
ARCHIVES = {
    "LUDB": "ludb/ludb_1_50_wfdb.tar.xz",
    "Challenge": "challenge/challenge_wfdb_mat.tar.xz",
    "CODE-15%": "code15/code15_wfdb.tar.xz",
}


def real_folder() -> Path:
    """Return the folder named by ECGCHAT_REAL_DATA; leave with a message if there is none."""
    root = os.environ.get("ECGCHAT_REAL_DATA", "")
    if not root or not (Path(root) / ARCHIVES["LUDB"]).is_file():
        raise SystemExit(f"Set ECGCHAT_REAL_DATA to the folder that holds {ARCHIVES['LUDB']}")
    return Path(root)


def unpacked(archive: Path) -> Iterator[Recording]:
    """Yield every record of an archive that can be read, in the order of their names."""
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        for header in sorted(Path(scratch).rglob("*.hea")):
            try:
                recording = read_recording(header, allow_missing=True)
            except RecordError:
                continue
            yield replace(recording, path=None)


def ptbxl(root: Path) -> list[Real]:
    """Return PTB-XL's raw records."""
    index = pd.read_csv(root / "ptbxl" / "index.csv").set_index("ecg_id")
    found = []
    for recording in unpacked(root / "ptbxl" / "raw_500hz_wfdb.tar.xz"):
        row = index.loc[int(recording.name.split("_")[0])]
        found.append(Real(recording, "PTB-XL", f"{row.patient_id:.0f}", int(row.strat_fold), int(row.name)))
    return found


def ptbxl_processed(root: Path) -> list[Real]:
    """Return PTB-XL's records of which only a copy filtered and scaled lead by lead exists, that have no raw one.

    The six limb leads get their common scale back: only with the true factors do they obey Einthoven's identity. The
    chest leads keep their own scales.
    """
    index = pd.read_csv(root / "ptbxl" / "index.csv")
    with lzma.open(root / "ptbxl" / "processed_125hz.npy.xz") as file:
        packed = np.load(file)
    signals = np.cumsum(np.cumsum(packed.astype(np.int32), -1), -1).astype(np.float32) / 500
    found = []
    for row in index[(index.processed_row >= 0) & ~index.has_raw500].itertuples():
        signal = signals[int(row.processed_row)].astype(np.float64)
        three = np.stack([signal[0], -signal[1], signal[2]], axis=1)
        _, sizes, axes = np.linalg.svd(three - three.mean(axis=0), full_matrices=False)
        factors = axes[-1] * np.sign(axes[-1][0])
        if (factors <= 0).any() or sizes[-1] > 0.05 * sizes[0]:
            continue
        limb = signal[:2] * factors[:2, None]
        limb *= SCALED_MV / np.sqrt((limb**2).mean())
        whole = np.concatenate([derive_limb_leads(*limb), SCALED_MV * signal[6:]]).astype(np.float32)
        recording = Recording(f"{row.ecg_id:05d}", whole, 125.0)
        found.append(Real(recording, "PTB-XL, scaled", f"{row.patient_id:.0f}", int(row.strat_fold), int(row.ecg_id)))
    return found


def others(root: Path) -> list[Real]:
    """Return LUDB's, the Challenge's and CODE-15%'s records."""
    return [
        Real(recording, source, f"{source} {recording.name}")
        for source, archive in ARCHIVES.items()
        for recording in unpacked(root / archive)
    ]
