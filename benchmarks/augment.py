"""Speed of synthetic ECGs, of writing and reading them, and of each augmentation: medians and spread, one process.

    python benchmarks/augment.py [--records 64] [--rounds 7] [--device cpu]

Nothing in the tests asserts a time; run this on an idle machine and compare the lines of one run with each other only.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ecgchat_lib import augment
from ecgchat_lib.datasets.signals import load_signals
from ecgchat_lib.datasets.synthetic import synthesize, write_synthetic

FS = 500.0


def rate(work: Callable[[int], object], records: int, rounds: int) -> str:
    """Return records per second as median and range over the rounds; the first, warming-up round doesn't count."""
    rates = []
    for number in range(rounds + 1):
        begin = time.perf_counter()
        work(number)
        rates.append(records / (time.perf_counter() - begin))
    rates = rates[1:]
    return f"{statistics.median(rates):9.0f} records/s   ({min(rates):.0f} to {max(rates):.0f}, n = {rounds})"


def main() -> None:
    """Measure and print one line per thing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=64, help="records per round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    n, rounds = given.records, given.rounds
    print(f"{n} records of 12 x 5000, {given.threads} thread(s), device {given.device}")

    print("synthesize        ", rate(lambda k: [synthesize(k * n + i) for i in range(n)], n, rounds))
    with tempfile.TemporaryDirectory() as folder:
        print("write_synthetic   ", rate(lambda k: write_synthetic(Path(folder) / str(k), n, k), n, rounds))
        manifest = write_synthetic(Path(folder) / "read", n, 0)
        print("load_signals      ", rate(lambda k: load_signals(manifest), n, rounds))

    signals = np.stack([synthesize(i).signal for i in range(n)])
    ecg = torch.from_numpy(signals).to(given.device)
    source = torch.Generator(device=given.device).manual_seed(0)
    always = {"probability": 1.0}
    works: dict[str, Callable[[int], object]] = {
        "baseline_wander": lambda k: augment.baseline_wander(ecg, FS, source, **always),
        "powerline": lambda k: augment.powerline(ecg, FS, source, **always),
        "muscle_noise": lambda k: augment.muscle_noise(ecg, FS, source, **always),
        "mask_time": lambda k: augment.mask_time(ecg, FS, source, **always),
        "mask_leads": lambda k: augment.mask_leads(ecg, source, **always),
        "scale": lambda k: augment.scale(ecg, source, **always),
        "shift": lambda k: augment.shift(ecg, FS, source, **always),
        "Augment (defaults)": lambda k: augment.Augment(FS)(ecg, source),
    }
    for name, work in works.items():
        print(f"{name:18}", rate(work, n, rounds))


if __name__ == "__main__":
    main()
