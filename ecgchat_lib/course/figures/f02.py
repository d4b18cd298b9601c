"""The figures of notebook 02: synthetic ECGs, label counts, the leak of a bad split, substrings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import numpy as np

from ecgchat_lib.course import FigureResult, figure
from ecgchat_lib.datasets.labels import SUPERCLASS_NAMES, SUPERCLASSES
from ecgchat_lib.datasets.manifest import SPLITS, Manifest, indicator_matrix
from ecgchat_lib.datasets.synthetic import SyntheticEcg

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


@figure("02.4", "Seven labels of a published list: records counted by the whole acronym, and as the list has them.")
def substrings(counts: Mapping[str, Mapping[str, int]]) -> FigureResult:
    """Horizontal pairs of bars: what the acronyms say, and what the published columns hold.

    Args:
        counts: label → `as_acronym` and `column`, numbers of records.
    """
    from matplotlib import pyplot as plt

    names = sorted(counts, key=lambda name: counts[name]["column"])
    fig, ax = plt.subplots(figsize=(7, 0.42 * len(names) + 1.1), layout="constrained")
    place = np.arange(len(names))
    looks = (("column", "#D55E00", "//", "in the published column"), ("as_acronym", "#0072B2", "", "by whole acronyms"))
    for shift, (kind, color, hatch, label) in zip((-0.2, 0.2), looks, strict=True):
        values = [counts[name][kind] for name in names]
        bars = ax.barh(place + shift, values, 0.38, color=color, hatch=hatch, ec="white", label=label)
        ax.bar_label(bars, fontsize=8, padding=2)
    ax.set_yticks(place, names)
    ax.set_xlabel("records")
    ax.margins(x=0.12)
    ax.legend(loc="lower right")
    told = "; ".join(f"{name} {counts[name]['column']} instead of {counts[name]['as_acronym']}" for name in names[::-1])
    data = {name: [counts[name]["column"], counts[name]["as_acronym"]] for name in names}
    return FigureResult(fig, f"Pairs of horizontal bars for {len(names)} labels. Records in the column: {told}.", data)


@figure("02.5", "Five bumps with a direction each: the heart vector of one beat, and what eight leads see of it.")
def heart_vector(vector: np.ndarray, leads: np.ndarray) -> FigureResult:
    """The three components over each other, and the eight leads under each other.

    Args:
        vector: (3, time) left, foot, back in mV, one sample per ms.
        leads: (8, time) I, II, V1–V6 in mV.
    """
    from matplotlib import pyplot as plt

    names = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
    fig, (ax, *panels) = plt.subplots(1, 3, figsize=(9, 3.4), width_ratios=(1.3, 1, 1), layout="constrained")
    ms = np.arange(vector.shape[1])
    for part, name, color, dash in zip(
        vector, ("left", "foot", "back"), ("#0072B2", "#D55E00", "#009E73"), ("-", "--", ":"), strict=True
    ):
        ax.plot(ms, part, color=color, ls=dash, label=name)
    ax.set(xlabel="ms", ylabel="mV", title="the heart vector")
    ax.legend()
    for panel, rows in zip(panels, (range(4), range(4, 8)), strict=True):
        for place, row in enumerate(rows):
            panel.plot(ms, leads[row] - 2.2 * place, color="#000000", lw=0.9)
            panel.text(-25, -2.2 * place, names[row], ha="right", va="center", fontsize=9)
        panel.set(xlabel="ms", yticks=[])
        panel.spines["left"].set_visible(False)
    panels[0].set_title("what the leads see", loc="left")
    told = ", ".join(f"{name} {lead.max():.1f} and {lead.min():.1f}" for name, lead in zip(names, leads, strict=True))
    alt = (
        "Left: the components of the heart vector over 600 ms; a small P wave, a QRS that turns from front and right "
        f"to left and foot and then to the back, and a T wave. Right: eight leads; highest and lowest mV: {told}."
    )
    return FigureResult(fig, alt, {"vector": vector[:, ::20].round(3), "leads": leads[:, ::20].round(3)})


_WAVE_LOOKS = (("P", "#56B4E9", "//"), ("QRS", "#E69F00", ""), ("T", "#009E73", ".."))


@figure("02.6", "Four seconds of lead II of twelve findings, with their marks: P hatched, QRS plain, T dotted.")
def findings(ecgs: Mapping[str, SyntheticEcg]) -> FigureResult:
    """Lead II of several findings, each mark a bar from onset to offset under the trace.

    Args:
        ecgs: finding → ECG of at least four seconds.
    """
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots((len(ecgs) + 1) // 2, 2, figsize=(9, 0.62 * len(ecgs)), sharex=True, layout="constrained")
    counts: dict[str, list[int]] = {}
    for ax, (name, ecg) in zip(axes.flat, ecgs.items(), strict=False):
        span = round(4 * ecg.fs)
        trace = ecg.signal[1, :span] - np.median(ecg.signal[1])
        ax.plot(np.arange(span) / ecg.fs, trace, color="#000000", lw=0.7)
        low = trace.min() - 0.35
        for wave, color, hatch in _WAVE_LOOKS:
            for onset, _, offset in ecg.marks.wave(wave) / ecg.fs:
                ax.barh(low, offset - onset, 0.22, left=onset, color=color, hatch=hatch, ec="white", lw=0)
        ax.set(xlim=(0, 4), yticks=[])
        ax.set_title(name, loc="left", fontsize=9, pad=1)
        ax.spines["left"].set_visible(False)
        counts[name] = [int((ecg.marks.wave(wave)[:, 2] < span).sum()) for wave, _, _ in _WAVE_LOOKS]
    for ax in axes[-1]:
        ax.set_xlabel("seconds")
    told = "; ".join(f"{name}: {p} P, {qrs} QRS, {t} T" for name, (p, qrs, t) in counts.items())
    return FigureResult(fig, f"Strips of lead II with marked waves under them. In four seconds, {told}.", counts)
