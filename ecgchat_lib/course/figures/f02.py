"""The figures of notebook 02: label counts per split, synthetic ECGs beside a real one, and the leak of a bad split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import numpy as np

from ecgchat_lib.course import FigureResult, figure
from ecgchat_lib.datasets.labels import SUPERCLASS_NAMES, SUPERCLASSES
from ecgchat_lib.datasets.manifest import SPLITS, Manifest, indicator_matrix

_SPLIT_LOOKS = {"train": ("#0072B2", ""), "validation": ("#E69F00", "//"), "test": ("#009E73", "..")}


def _wrapped(name: str) -> str:
    return "\n".join(wrap(SUPERCLASS_NAMES.get(name, "rhythm or form only"), 12))


@figure("02.1", "Records per diagnostic superclass and split. One record may have several superclasses, or none.")
def label_counts(manifest: Manifest) -> FigureResult:
    """Grouped bars: the five superclasses and "none", for each split."""
    from matplotlib import pyplot as plt

    counts: dict[str, list[int]] = {}
    for split in SPLITS:
        rows = manifest[manifest["split"] == split]
        none = int((rows["labels"].map(len) == 0).sum())
        counts[split] = [*(int(count) for count in indicator_matrix(rows).sum(axis=0)), none]
    names = [*SUPERCLASSES, "none"]
    fig, ax = plt.subplots(figsize=(8, 3.4))
    place = np.arange(len(names))
    for shift, (split, (color, hatch)) in enumerate(_SPLIT_LOOKS.items()):
        bars = ax.bar(
            place + (shift - 1) * 0.27, counts[split], 0.25, color=color, hatch=hatch, ec="white", label=split
        )
        ax.bar_label(bars, fontsize=8)
    ax.set_xticks(place, [f"{name}\n{_wrapped(name)}" for name in names], fontsize=8)
    ax.set_ylabel("records")
    ax.legend(title="split")
    told = "; ".join(
        f"{split}: " + ", ".join(f"{name} {count}" for name, count in zip(names, counts[split], strict=True))
        for split in SPLITS
    )
    return FigureResult(fig, f"Grouped bars of {len(manifest)} records. {told}.", counts)


@figure("02.2", "Ten seconds of leads II and V1: five synthetic ECGs, and a real one (CPSC2018) at the bottom.")
def strips(ecgs: Mapping[str, np.ndarray], fs: float) -> FigureResult:
    """Two leads of several ECGs under each other.

    Args:
        ecgs: title → (12, time) in mV.
        fs: sampling rate, Hz.
    """
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(len(ecgs), 1, figsize=(9, 1.15 * len(ecgs) + 0.5), sharex=True, layout="constrained")
    for ax, (title, ecg) in zip(axes, ecgs.items(), strict=True):
        time = np.arange(ecg.shape[1]) / fs
        for lead, (row, name) in enumerate(((1, "II"), (6, "V1"))):
            centered = ecg[row] - np.median(ecg[row])
            ax.plot(time, centered - 1.5 * lead, color="#000000", lw=0.7)
            ax.text(-0.12, -1.5 * lead, name, ha="right", va="center", fontsize=8)
        ax.set_title(title, loc="left", fontsize=9, pad=1)
        ax.set_ylim(-2.7, 1.4)
        ax.set_yticks([])
        ax.spines["left"].set_visible(False)
        ax.spines["bottom"].set_visible(False)
        ax.tick_params(bottom=False)
    axes[-1].set_xlabel("seconds")
    spans = {title: round(float(np.ptp(ecg[1])), 1) for title, ecg in ecgs.items()}
    told = "; ".join(f"{title}: lead II spans {span} mV" for title, span in spans.items())
    data = {title: np.round(ecg[1, ::50] * 1000).astype(int) for title, ecg in ecgs.items()}
    return FigureResult(fig, f"{len(ecgs)} strips of leads II and V1, ten seconds each. {told}.", data)


@figure(
    "02.3",
    "Share of test recordings whose patient is also in training, if recordings are split without regard to patients.",
)
def leak(simulated: Sequence[tuple[int, float]], here: tuple[float, float], train_share: float) -> FigureResult:
    """The leak against the number of recordings per patient: formula, simulation, and this dataset.

    Args:
        simulated: (recordings per patient, simulated share) pairs.
        here: mean recordings per patient and share in the manifest at hand.
        train_share: share of the recordings that go into training.
    """
    from matplotlib import pyplot as plt

    number = np.arange(1, 11)
    formula = 1 - (1 - train_share) ** (number - 1)
    fig, ax = plt.subplots(figsize=(6.4, 3.4))
    ax.plot(number, formula, color="#0072B2", marker="o", ms=4, label="formula: 1 − (1 − p)^(k−1)")
    ax.plot(*zip(*simulated, strict=True), "s", color="#D55E00", ms=8, mfc="none", label="simulated")
    ax.plot(*here, "*", color="#009E73", ms=13, label="this dataset (mean k)")
    ax.axvline(5, color="#888888", ls=":", lw=1)
    ax.text(5.1, 0.05, "MIMIC-IV-ECG:\nabout five per patient", fontsize=8, color="#555555")
    ax.set_xlabel("recordings per patient, k")
    ax.set_ylabel("share of leaked test recordings")
    ax.set_ylim(-0.03, 1.05)
    ax.legend(loc="center right")
    alt = (
        f"A curve that rises from 0 at one recording per patient to {formula[1]:.2f} at two and {formula[4]:.2f} at "
        f"five, with training share p = {train_share:g}. Simulated points lie on it. This dataset has {here[0]:.1f} "
        f"recordings per patient and a leak of {here[1]:.2f}."
    )
    data: dict[str, Any] = {"simulated": list(simulated), "here": here, "train_share": train_share}
    return FigureResult(fig, alt, data)
