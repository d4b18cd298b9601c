"""RR, PR, QRS and QT of lead II by NeuroKit2, for `measure.py` beside it; run by an interpreter that has NeuroKit2.

    PYTHON_WITH_NEUROKIT2 neurokit_intervals.py leads.npz > intervals.json

NeuroKit2 wants an older pandas than the course, so it is no dependency and has an environment of its own.
"""

from __future__ import annotations

import json
import sys
import time
import warnings

import neurokit2
import numpy as np


def intervals(lead: np.ndarray, fs: int) -> dict[str, float]:
    """Return the medians over the beats in ms, from NeuroKit2's cleaning, peaks and wavelet delineation."""
    clean = neurokit2.ecg_clean(lead, sampling_rate=fs)
    _, peaks = neurokit2.ecg_peaks(clean, sampling_rate=fs)
    r = np.asarray(peaks["ECG_R_Peaks"], dtype=float)
    _, waves = neurokit2.ecg_delineate(clean, peaks["ECG_R_Peaks"], sampling_rate=fs, method="dwt")
    points = {name: np.asarray(values, dtype=float) for name, values in waves.items()}
    spans = {
        "rr_ms": np.diff(r),
        "pr_ms": points["ECG_R_Onsets"] - points["ECG_P_Onsets"],
        "qrs_ms": points["ECG_R_Offsets"] - points["ECG_R_Onsets"],
        "qt_ms": points["ECG_T_Offsets"] - points["ECG_R_Onsets"],
    }
    return {name: float(np.nanmedian(values)) * 1000 / fs for name, values in spans.items()}


def main() -> None:
    """Measure each lead of the file, and print intervals and seconds as JSON."""
    warnings.simplefilter("ignore")
    stored = np.load(sys.argv[1])
    fs = int(stored["fs"])
    results, seconds = [], []
    for lead in stored["leads"]:
        begun = time.perf_counter()
        try:
            found = intervals(lead, fs)
        except Exception:  # it raises many kinds on leads that it can't follow; such a record counts as not measured
            found = dict.fromkeys(("rr_ms", "pr_ms", "qrs_ms", "qt_ms"), float("nan"))
        seconds.append(time.perf_counter() - begun)
        results.append({name: value if np.isfinite(value) else None for name, value in found.items()})
    print(json.dumps({"version": neurokit2.__version__, "intervals": results, "seconds": seconds}))


if __name__ == "__main__":
    main()
