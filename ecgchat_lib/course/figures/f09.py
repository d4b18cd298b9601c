"""The figures of notebook 09: calibration before and after, thresholds from where, and the recorded results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ecgchat_lib.course.figure import FigureResult, figure

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#5A6875"
STYLES = {"before": (ORANGE, "s"), "after": (BLUE, "o")}
LEVELS = {"super": "superclasses", "sub": "subclasses", "statement": "statements"}


def _diagonal(ax: Any) -> None:
    ax.plot([0, 1], [0, 1], color="black", lw=0.9, ls=":")
    ax.set(xlabel="predicted probability", ylabel="share that has it", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    ax.set_aspect("equal")


def _curve(ax: Any, name: str, said: Sequence[float], found: Sequence[float], n: Sequence[int]) -> None:
    color, marker = STYLES[name]
    ax.plot(said, found, color=color, lw=1.2)
    ax.scatter(
        said,
        found,
        s=np.minimum(90, 18 + 6 * np.sqrt(np.asarray(n, dtype=float))),
        color=color,
        marker=marker,
        label=name,
    )


@figure(
    "09.1", "Reliability on synthetic test ECGs, before and after calibration. Dotted: said and found are the same."
)
def calibration(curves: Mapping[str, Any], errors: Mapping[str, float], settings: Mapping[str, Any]) -> FigureResult:
    """Two reliability curves beside the counts of the predictions.

    Args:
        curves: "before" and "after" → `evaluate.calibration.Reliability`.
        errors: the same names → expected calibration error.
        settings: what the figures depend on; stands in the digest for them.
    """
    from matplotlib import pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
    for name, curve in curves.items():
        _curve(left, name, curve.said, curve.found, curve.n)
    _diagonal(left)
    left.legend(loc="upper left")
    for shift, (name, curve) in enumerate(curves.items()):
        places = np.floor(np.asarray(curve.said) * 10).clip(0, 9) / 10 + 0.05
        right.bar(places + (shift - 0.5) * 0.04, curve.n, 0.04, color=STYLES[name][0], label=name)
    right.set(xlabel="predicted probability", ylabel="predictions", yscale="log")
    total = int(np.sum(next(iter(curves.values())).n))
    better = errors["after"] < errors["before"]
    alt = (
        f"Two reliability curves over {total} predictions, and how many predictions lie in each tenth. After "
        f"calibration their mean distance from the diagonal is {'smaller' if better else 'not smaller'} than before."
    )
    return FigureResult(fig, alt, {"predictions": total, "closer": better, **settings})


@figure("09.2", "F1 on the test records, by label: the threshold from validation, and the one that nobody can have.")
def thresholds(rows: Sequence[tuple[str, int, float, float]], settings: Mapping[str, Any]) -> FigureResult:
    """Pairs of points per label.

    Args:
        rows: (label, positives among the test records, honest F1, oracle F1).
        settings: what the figures depend on; stands in the digest for them.
    """
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots(figsize=(8, 0.34 * len(rows) + 1.3), layout="constrained")
    for place, (_, _, honest, oracle) in enumerate(rows):
        ax.plot([honest, oracle], [place, place], color=GREY, lw=1.5, zorder=1)
    ax.scatter([row[2] for row in rows], range(len(rows)), color=BLUE, marker="o", label="threshold from validation")
    ax.scatter([row[3] for row in rows], range(len(rows)), color=ORANGE, marker="s", label="chosen on the test records")
    ax.set_yticks(range(len(rows)), [f"{name} (n = {n})" for name, n, _, _ in rows])
    ax.invert_yaxis()
    ax.set(xlabel="F1", xlim=(-0.02, 1.02))
    fig.legend(loc="outside upper center", ncols=2)
    higher = sum(oracle > honest for _, _, honest, oracle in rows)
    alt = (
        f"F1 of {len(rows)} labels ({', '.join(f'{name} {n}' for name, n, _, _ in rows)} positive test records). In "
        f"{higher} of them the threshold chosen on the test records gives more than the one from validation, in none "
        "less."
    )
    return FigureResult(
        fig, alt, {"labels": [row[0] for row in rows], "positives": [row[1] for row in rows], **settings}
    )


@figure("09.3", "Recorded on real ECGs (PTB-XL fold 9, reporting half): reliability of the statements, and macro-F1.")
def recorded(results: Mapping[str, Any]) -> FigureResult:
    """The shipped classifier's reliability curves, and F1 at both kinds of threshold.

    Args:
        results: `data/results/ecg-classifier-mini.json`.
    """
    from matplotlib import pyplot as plt

    metrics = results["metrics"]
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
    for name in STYLES:
        curve = metrics["levels"]["statement"][name]["reliability"]
        _curve(left, name, curve["said"], curve["found"], curve["count"])
    _diagonal(left)
    left.legend(loc="upper left")
    told = []
    for place, (level, words) in enumerate(LEVELS.items()):
        one = metrics["levels"][level]
        f1, best = one["macro_f1"], one["macro_f1_thresholds_from_these_records"]
        spread = [[f1["value"] - f1["low"]], [f1["high"] - f1["value"]]]
        right.errorbar([f1["value"]], [place + 0.1], xerr=spread, fmt="o", color=BLUE, capsize=3)
        right.plot([best], [place - 0.1], "s", color=ORANGE)
        told.append(f"{words} {f1['value']:.2f} [{f1['low']:.2f}, {f1['high']:.2f}] against {best:.2f}")
    right.set_yticks(
        range(len(LEVELS)), [f"{metrics['levels'][one]['labels']} {words}" for one, words in LEVELS.items()]
    )
    right.set(xlabel="macro-F1 (square: chosen on these records)", xlim=(0, 1.02), ylim=(len(LEVELS) - 0.5, -0.5))
    alt = (
        f"On {metrics['records']} recordings: reliability curves of the statements before and after calibration, and "
        f"macro-F1 with thresholds from validation against thresholds chosen on the same recordings: {'; '.join(told)}."
    )
    return FigureResult(fig, alt, {"levels": metrics["levels"]})
