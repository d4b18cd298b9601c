"""A small manifest with measurements, for the tests of ECG-Instruct."""

import math

from ecgchat_lib.datasets.manifest import make_manifest
from ecgchat_lib.ecg.measure import Measurements

KINDS = (
    (("NORM", 100.0), ("SR", 0.0)),
    (("AFIB", 0.0), ("LVH", 100.0), ("ABQRS", 0.0)),
    (("SBRAD", 0.0), ("IMI", 100.0)),
    (("SR", 0.0), ("CLBBB", 100.0)),
    (("SR", 0.0), ("NDT", 30.0), ("PVC", 0.0)),
    (("NORM", 100.0), ("SR", 0.0)),
)
RATES = (72.4, 88.0, 51.0, 66.0, 79.0, 64.0)


def example_manifest(n=60):
    """Return n recordings; patients have one or two, and sides as their number says."""
    splits = ("train", "train", "train", "validation", "test")
    rows = []
    for k in range(n):
        patient = k if k % 4 else max(0, k - 1)
        rows.append(
            {
                "record": f"r{k:03d}",
                "path": f"records/r{k:03d}",
                "patient": f"p{patient}",
                "split": splits[patient % 5],
                "report": f"report {k}",
                "statements": KINDS[k % len(KINDS)],
                "language": "en",
            }
        )
    return make_manifest(rows)


def example_measurements(manifest):
    """Return measurements that fit the statements: irregular where fibrillation is stated, without PR."""
    out = {}
    for k, record in enumerate(manifest["record"]):
        rate, afib = RATES[k % len(RATES)] + k % 3, k % len(KINDS) == 1
        out[record] = Measurements(
            heart_rate_bpm=rate,
            rr_ms=60000 / rate,
            rr_sd_ms=120 if afib else 14,
            pr_ms=math.nan if afib else 150 + k % 70,
            qrs_ms=142 if k % len(KINDS) == 3 else 94,
            qt_ms=380 + k % 30,
            qtc_ms=410 + k % 20,
            axis_deg=(k * 13) % 150 - 50,
            regular=not afib,
        )
    return out
