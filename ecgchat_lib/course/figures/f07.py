"""The figures of notebook 07: the losses of the live run, the learning rate, and the recorded run of the mini model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgchat_lib.course.figure import FigureResult, figure

if TYPE_CHECKING:
    from ecgchat_lib.coca.train import TrainConfig

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
LOSSES = (("contrastive", BLUE), ("caption", ORANGE))
MINI_LOSSES = (*LOSSES, ("numbers", "#CC79A7"), ("statements", "#555555"))


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Return the running mean over up to `width` values on each side's inside."""
    sums = np.convolve(values, np.ones(width), mode="same")
    return sums / np.convolve(np.ones(len(values)), np.ones(width), mode="same")


@figure(
    "07.1", "Both losses of the live run: each training batch (thin), their mean (thick), and held-out records (dots)."
)
def losses(
    history: Sequence[Mapping[str, float]], held_out: Mapping[str, Sequence[float]], config: TrainConfig
) -> FigureResult:
    """Two panels of loss curves.

    Args:
        history: one entry per step, with `contrastive` and `caption`.
        held_out: the same losses on held-out records, at the steps that have a `validation`.
        config: the run's settings; they stand in the digest for the trained numbers.
    """
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    steps = [step + 1 for step, entry in enumerate(history) if "validation" in entry]
    told = []
    for ax, (name, color) in zip(axes, LOSSES, strict=True):
        values = np.array([entry[name] for entry in history])
        ax.plot(np.arange(1, len(values) + 1), values, color=color, lw=0.6, alpha=0.6, label="training batch")
        ax.plot(np.arange(1, len(values) + 1), _smooth(values, 7), color=color, lw=2, label="running mean")
        ax.plot(steps, held_out[name], "o", mfc="white", color="black", label="held out")
        ax.set(title=f"{name} loss", xlabel="step", ylim=(0, 1.25 * values.max()))
        ax.legend(loc="upper right")
        fell = values[-5:].mean() < values[:5].mean()
        told.append(f"the {name} loss {'falls' if fell else 'does not fall'}")
    axes[0].set_ylabel("loss (nats)")
    alt = f"Two loss curves over {len(history)} steps of {config.batch} pairs: {' and '.join(told)}; dots are held out."
    return FigureResult(fig, alt, {"steps": config.steps, "batch": config.batch, "seed": config.seed})


@figure("07.2", "The learning rate's course: linear warm-up, then half a cosine down to 0.")
def learning_rates(rates: Sequence[float], config: TrainConfig) -> FigureResult:
    """The learning rate over the steps.

    Args:
        rates: one per step.
        config: the settings they come from.
    """
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 2.4), layout="constrained")
    ax.plot(range(1, len(rates) + 1), np.array(rates) * 1000, color=BLUE)
    ax.axvspan(0, config.warmup, color="#EEF2F5")
    ax.text(config.warmup / 2, 0.1, "warm-up", ha="center", fontsize=8)
    ax.set(xlabel="step", ylabel="learning rate × 1000", ylim=(0, None), xlim=(0, len(rates)))
    alt = (
        f"A curve over {len(rates)} steps: it rises in a line to {max(rates):g} in the first {config.warmup} steps, "
        f"then falls as half a cosine to {rates[-1]:.1g}."
    )
    return FigureResult(fig, alt, [1000 * rate for rate in rates])


@figure(
    "07.3",
    "The recorded run of the mini model: training losses, and the value on one half of fold 9 that chose the step.",
)
def mini_run(recorded: Mapping[str, Any]) -> FigureResult:
    """Losses and validation of the mini model's recorded run.

    Args:
        recorded: `data/results/ecg-coca-mini.json`.
    """
    from matplotlib import pyplot as plt

    history = recorded["history"]
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.3), layout="constrained")
    told = []
    for (name, color), style in zip(MINI_LOSSES, ("-", "--", "-.", ":"), strict=True):
        if name in history[0]:
            values = [h[name] for h in history]
            left.plot([h["step"] for h in history], values, color=color, ls=style, label=f"{name} loss")
            told.append(f"the {name} loss goes from {values[0]:.2f} to {values[-1]:.2f}")
    left.set(xlabel="step", ylabel="loss", ylim=(0, None))
    left.legend()
    checked = [h for h in history if "validation" in h]
    right.plot([h["step"] for h in checked], [h["validation"] for h in checked], "o-", color=GREEN, ms=4)
    best = max(checked, key=lambda h: h["validation"])
    right.annotate(
        f"kept: step {best['step']}",
        (best["step"], best["validation"]),
        xytext=(0, -28),
        textcoords="offset points",
        ha="center",
        arrowprops={"arrowstyle": "->"},
    )
    right.set(xlabel="step", ylabel="validation", ylim=(min(0.5, *(h["validation"] for h in checked)), 1))
    alt = (
        f"Left: over {history[-1]['step']} steps {', '.join(told)}. Right: the validation goes from "
        f"{checked[0]['validation']:.3f} to {best['validation']:.3f} at step {best['step']}, whose weights were kept."
    )
    return FigureResult(fig, alt, {"history": history})
