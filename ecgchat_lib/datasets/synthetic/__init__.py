"""Synthetic 12-lead ECGs with known rhythm, marks, intervals and findings, and a writer in PTB-XL's layout.

`waves.py` says what a wave is and where it begins, `hearts.py` what a finding does to a heart, `rhythms.py` when the
beats come, `noise.py` what disturbs them, `ecg.py` makes an ECG of all that, and `dataset.py` a dataset on disk. It
teaches and tests; no result on it says anything about patients. Taught in: 02 §1.
"""

from ecgchat_lib.datasets.synthetic.dataset import DATABASE_COLUMNS, TRUTH_TABLE, read_truth, write_synthetic
from ecgchat_lib.datasets.synthetic.ecg import FINDINGS, VERSION, SyntheticEcg, synthesize
from ecgchat_lib.datasets.synthetic.waves import DOWER

__all__ = [
    "DATABASE_COLUMNS",
    "DOWER",
    "FINDINGS",
    "TRUTH_TABLE",
    "VERSION",
    "SyntheticEcg",
    "read_truth",
    "synthesize",
    "write_synthetic",
]
