"""The figures of notebook 08: real recordings against findings, zero-shot areas, and the recorded results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ecgchat_lib.course.figure import FigureResult, figure

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#5A6875"
WHO = {"mini": ("mini", BLUE, "o"), "random_encoder": ("random encoder", ORANGE, "s")}


@figure("08.1", "Ten real recordings against the findings their labels name: darker is nearer, a frame is the label.")
def real_sample(
    cosines: np.ndarray, records: Sequence[str], labels: Sequence[str], findings: Sequence[str], texts: Sequence[str]
) -> FigureResult:
    """A table of cosines with the labels framed.

    Args:
        cosines: (n, findings).
        records: n names.
        labels: n codes, each one of `findings`.
        findings: the codes of the columns.
        texts: the words of the columns.
    """
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots(figsize=(8, 4.6), layout="constrained")
    # each row on its own scale: what counts is which finding is nearest to this ECG
    low, high = cosines.min(axis=1, keepdims=True), cosines.max(axis=1, keepdims=True)
    ax.imshow((cosines - low) / (high - low), cmap="Blues", aspect="auto", vmax=1.25)
    right = 0
    for row, label in enumerate(labels):
        column, best = findings.index(label), int(cosines[row].argmax())
        right += best == column
        ax.add_patch(plt.Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, fill=False, ec=ORANGE, lw=2.5))
        for place, cosine in enumerate(cosines[row]):
            dark = (cosine - low[row, 0]) / (high[row, 0] - low[row, 0]) > 0.7
            words = f"{cosine:.2f}" + (" ◄" if place == best else "")
            ax.text(place, row, words, ha="center", va="center", color="white" if dark else "black")
    ax.set_yticks(range(len(records)), [f"{name}  {label}" for name, label in zip(records, labels, strict=True)])
    ax.set_xticks(range(len(texts)), [f"{c}\n{_wrapped(t)}" for c, t in zip(findings, texts, strict=True)], fontsize=9)
    alt = (
        f"A table of cosines, {len(records)} recordings by {len(texts)} findings ({', '.join(texts)}). Of the "
        f"{len(records)} recordings, {right} are nearest to the finding that their label names."
    )
    return FigureResult(fig, alt, {"records": list(records), "labels": list(labels), "right": right})


def _wrapped(text: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, 16))


@figure("08.2", "Zero-shot AUC on synthetic test ECGs, by superclass: the mini and a random encoder. Dotted: guessing.")
def zero_shot(
    areas: Mapping[str, Mapping[str, float]], positives: Sequence[int], settings: Mapping[str, Any]
) -> FigureResult:
    """Grouped bars of areas.

    Args:
        areas: model → class → AUC.
        positives: records of each class.
        settings: what the figures depend on; stands in the digest for them.
    """
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots(figsize=(8, 3.2), layout="constrained")
    names = list(next(iter(areas.values())))
    for shift, ((who, values), color, hatch) in enumerate(zip(areas.items(), (BLUE, ORANGE), ("", "//"), strict=False)):
        heights = [0 if np.isnan(values[name]) else values[name] for name in names]
        ax.bar(
            np.arange(len(names)) + (shift - 0.5) * 0.36, heights, 0.34, color=color, hatch=hatch, ec="white", label=who
        )
    ax.axhline(0.5, color="black", lw=0.9, ls=":")
    ax.set_xticks(range(len(names)), [f"{name}\nn = {n}" for name, n in zip(names, positives, strict=True)])
    ax.set(ylabel="AUC", ylim=(0, 1.02))
    fig.legend(loc="outside upper center", ncols=2)
    higher = [name for name in names if areas["mini"][name] > areas["random encoder"][name]]
    counts = ", ".join(f"{n} {name}" for name, n in zip(names, positives, strict=True))
    alt = (
        f"Bars of AUC for {len(names)} superclasses ({counts} records). The mini's bar is the higher one in "
        f"{len(higher)} of {len(names)} classes."
    )
    return FigureResult(fig, alt, {"positives": list(positives), "higher": higher, **settings})


@figure(
    "08.3", "Recorded zero-shot AUC on real ECGs (PTB-XL fold 9, reporting half), with 95 % intervals over patients."
)
def recorded(results: Mapping[str, Any]) -> FigureResult:
    """Points with intervals, per class and macro, for the mini and a random encoder.

    Args:
        results: `data/results/ecg-coca-mini.json`.
    """
    from matplotlib import pyplot as plt

    metrics = results["metrics"]
    names = ["macro_auc", *metrics["positives"]]
    fig, ax = plt.subplots(figsize=(8, 3.3), layout="constrained")
    for shift, (key, (label, color, marker)) in enumerate(WHO.items()):
        rows = [metrics["zero_shot"][key][name] for name in names]
        places = np.arange(len(names)) + (shift - 0.5) * 0.26
        spread = [[r["value"] - r["low"] for r in rows], [r["high"] - r["value"] for r in rows]]
        ax.errorbar([r["value"] for r in rows], places, xerr=spread, fmt=marker, color=color, capsize=3, label=label)
    ax.axvline(0.5, color="black", lw=0.9, ls=":")
    ticks = ["mean of the five", *(f"{name} (n = {metrics['positives'][name]})" for name in names[1:])]
    ax.set_yticks(range(len(names)), ticks)
    ax.invert_yaxis()
    ax.set(xlabel="AUC (dotted: guessing)", xlim=(0, 1.02))
    ax.legend(loc="lower left")
    told = "; ".join(
        f"{tick} {r['value']:.2f} [{r['low']:.2f}, {r['high']:.2f}]"
        for tick, r in zip(ticks, (metrics["zero_shot"]["mini"][name] for name in names), strict=True)
    )
    floor = metrics["zero_shot"]["random_encoder"]["macro_auc"]["value"]
    alt = (
        f"Points with intervals on {metrics['records']} records. The mini: {told}. "
        f"The random encoder: {floor:.2f} in the mean."
    )
    return FigureResult(fig, alt, metrics["zero_shot"])
