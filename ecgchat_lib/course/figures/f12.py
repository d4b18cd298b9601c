"""The figures of notebook 12: sixteen levels for a block of weights, memory by size, and the loss of stage 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ecgchat_lib.course.figure import FigureResult, figure
from ecgchat_lib.course.figures.f11 import _curve

BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#9AA5AD"
KINDS = (  # what the bars of 12.2 add up, how it is called and drawn
    ("weights", ("weights",), BLUE, ""),
    ("adapters, gradients, optimizer", ("adapters", "gradients", "optimizer"), GREEN, "///"),
    ("activations and logits", ("activations", "logits"), ORANGE, "..."),
    ("temporary and reserve", ("temporary", "reserve"), GRAY, ""),
)


@figure("12.1", "One block of 64 weights on 16 levels: NF4's levels lie where the weights are, even ones don't.")
def levels(block: np.ndarray, nf4: np.ndarray, even: np.ndarray) -> FigureResult:
    """Show the weights, both sets of levels, and how far each weight moves.

    Args:
        block: (64,) weights.
        nf4: (16,) levels of NF4, scaled to the block.
        even: (16,) equally spaced levels, scaled to the block.
    """
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(2, 1, figsize=(9, 3.6), sharex=True, layout="constrained")
    errors = []
    for panel, grid, name, color in ((axes[0], nf4, "NF4", BLUE), (axes[1], even, "even", ORANGE)):
        nearest = grid[np.abs(block[:, None] - grid).argmin(1)]
        errors.append(float(np.sqrt(np.mean((block - nearest) ** 2))))
        panel.vlines(grid, 0, 1, color=color, lw=1.4)
        for weight, level in zip(block, nearest, strict=True):
            panel.plot([weight, level], [0.45, 0.85], color=GRAY, lw=0.7)
        panel.plot(block, np.full(len(block), 0.4), "k|", ms=12)
        panel.set(yticks=[], ylabel=name, ylim=(0, 1))
        panel.set_title(f"root mean square error {errors[-1]:.4f}", loc="right")
    axes[1].set_xlabel("weight")
    alt = (
        f"64 weights as ticks between {block.min():.2f} and {block.max():.2f}, twice. On NF4's levels, which crowd "
        f"around zero, they move by {errors[0]:.4f} (root mean square); on 16 even levels by {errors[1]:.4f}."
    )
    return FigureResult(fig, alt, {"block": block, "nf4": nf4, "even": even})


@figure("12.2", "Memory for fine-tuning Vicuna with LoRA, by what is stored and what is kept.")
def memory(plans: Mapping[tuple[str, str], Any], limit: float) -> FigureResult:
    """Stacked bars of each kind of memory.

    Args:
        plans: (size, form) → plan.
        limit: a GPU's memory in GB, drawn as a line.
    """
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(figsize=(9, 0.5 * len(plans) + 1.6), layout="constrained")
    labels, words = [], []
    groups = list(dict.fromkeys(name for name, _ in plans))
    for number, ((name, form), plan) in enumerate(plans.items()):
        y, left = number + 0.5 * groups.index(name), 0.0
        for label, kinds, color, hatch in KINDS:
            size = sum(plan.parts[kind] for kind in kinds) / 1e9
            shown = label if number == 0 else None
            axes.barh(y, size, left=left, color=color, hatch=hatch, edgecolor="white", label=shown)
            left += size
        axes.text(left, y, f" {left:.1f} GB", va="center", bbox={"color": "white", "pad": 0.8}, zorder=3)
        labels.append((y, f"{name}, {form}"))
        words.append(f"{name} in {form}: {left:.1f} GB")
    axes.axvline(limit, color="black", lw=1, ls="--", zorder=2)
    axes.text(limit, -0.75, f" T4, {limit:.0f} GB", va="center")
    axes.set_yticks([y for y, _ in labels], [text for _, text in labels])
    axes.set_ylim(labels[-1][0] + 0.6, -1)  # downwards
    axes.margins(x=0.12)
    axes.set_xlabel("memory (GB), planned from the config")
    axes.legend(loc="upper right")
    alt = f"Bars of planned memory beside a line at {limit:.0f} GB. {'; '.join(words)}."
    return FigureResult(fig, alt, {" ".join(key): plan.total for key, plan in plans.items()})


@figure("12.3", "Stage 2 on NF4 weights: the loss of the answers while projector and adapters learn.")
def stage_2(losses: Sequence[float], about: Mapping[str, Any]) -> FigureResult:
    """Draw the loss of each step with a moving mean.

    Args:
        losses: one per step.
        about: what the run depends on, for the digest.
    """
    return FigureResult(*_curve(losses, "step of stage 2"), dict(about))


@figure("12.4", "The mini chat model on recordings it has never seen, and with parts of the ECG exchanged.")
def with_and_without(rows: Sequence[tuple[str, int, Sequence[float]]], kinds: Sequence[str]) -> FigureResult:
    """Groups of bars.

    Args:
        rows: (what, number of answers, share right for each kind).
        kinds: whose ECG tokens and signs the model got.
    """
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(figsize=(8, 1.0 * len(rows) + 1.2), layout="constrained")
    y = np.arange(len(rows))
    height = 0.8 / len(kinds)
    for number, (kind, color, hatch) in enumerate(zip(kinds, (BLUE, GREEN, ORANGE), ("", "...", "///"), strict=False)):
        place = y + (number - (len(kinds) - 1) / 2) * height
        axes.barh(place, [r[2][number] for r in rows], height, color=color, hatch=hatch, edgecolor="white", label=kind)
        for where, row in zip(place, rows, strict=True):
            axes.text(row[2][number] + 0.01, where, f"{row[2][number]:.2f}", va="center", fontsize=9)
    axes.set_yticks(y, [f"{name}\n(n = {n})" for name, n, _ in rows])
    axes.set(xlim=(0, 1.08), xlabel="share right")
    axes.axvline(0.5, color="black", lw=0.8, ls=":")
    axes.invert_yaxis()
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=len(kinds))
    words = "; ".join(
        f"{name}: {', '.join(f'{value:.2f} with {kind}' for value, kind in zip(values, kinds, strict=True))}"
        for name, _, values in rows
    )
    alt = f"Groups of bars for {len(rows)} kinds of question, share right. {words}."
    return FigureResult(fig, alt, {"kinds": list(kinds), "rows": [[name, n, *values] for name, n, values in rows]})
