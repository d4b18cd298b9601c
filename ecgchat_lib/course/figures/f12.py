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


@figure("12.4", "Stage 2 of the shipped mini and of its twin: the loss while right words give way to spelled ones.")
def mini_losses(losses: Mapping[str, Sequence[float]], steps: int, fading: tuple[int, int]) -> FigureResult:
    """Draw the recorded losses, means over parts of the run.

    Args:
        losses: of "own" and "twin".
        steps: optimizer steps in all.
        fading: the step in which the right words begin to fade, and the one in which they are gone.
    """
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(figsize=(8, 3), layout="constrained")
    axes.axvspan(*fading, color="#EEF1F4", lw=0)
    axes.text(sum(fading) / 2, 0.97, "right words fade", transform=axes.get_xaxis_transform(), ha="center", va="top")
    names = {"own": ("the model", BLUE, "o-"), "twin": ("its text-only twin", ORANGE, "s--")}
    for part, values in losses.items():
        name, color, style = names[part]
        middles = (np.arange(len(values)) + 0.5) * steps / len(values)
        axes.plot(middles, values, style, color=color, ms=4, label=name)
    axes.set(xlabel="step of stage 2", ylabel="loss (nats per answer token)", xlim=(0, steps), ylim=(0, None))
    axes.set_yscale("symlog", linthresh=0.3)
    axes.legend(loc="upper right")
    ends = "; ".join(f"{names[part][0]} from {of[0]:.2f} to {of[-1]:.2f}" for part, of in losses.items())
    alt = f"Two curves over {steps} steps; right words fade from step {fading[0]} to {fading[1]}. Loss of {ends}."
    return FigureResult(fig, alt, {"losses": {k: list(v) for k, v in losses.items()}, "fading": list(fading)})


Figured = tuple[float, tuple[float, float]]  # a share, and the middle 95 % of what resampled patients give


@figure("12.5", "The mini chat model on recordings it has never seen: beside another's ECG, its twin, and rules alone.")
def with_and_without(rows: Sequence[tuple[str, int, Sequence[Figured | None]]], kinds: Sequence[str]) -> FigureResult:
    """Groups of bars with intervals.

    Args:
        rows: (what, number of answers, figure for each kind; None where there is none).
        kinds: who answers, with what.
    """
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(figsize=(8, 1.15 * len(rows) + 1.2), layout="constrained")
    y = np.arange(len(rows))
    height = 0.84 / len(kinds)
    styles = ((BLUE, ""), (GREEN, "..."), (ORANGE, "///"), (GRAY, ""))
    for number, (kind, (color, hatch)) in enumerate(zip(kinds, styles, strict=False)):
        found = [(k, *figured) for k, (_, _, of) in enumerate(rows) if (figured := of[number]) is not None]
        place = np.array([y[k] for k, *_ in found]) + (number - (len(kinds) - 1) / 2) * height
        values = np.array([value for _, value, _ in found])
        ends = np.array([interval for *_, interval in found]).T
        axes.barh(place, values, 0.92 * height, color=color, hatch=hatch, edgecolor="white", label=kind)
        axes.errorbar(values, place, xerr=np.abs(ends - values), fmt="none", ecolor="black", lw=1, capsize=2)
        for where, value, end in zip(place, values, ends[1], strict=True):
            axes.text(max(value, end) + 0.012, where, f"{value:.2f}", va="center", fontsize=8)
    axes.set_yticks(y, [f"{name}\n(n = {n})" for name, n, _ in rows])
    axes.set(xlim=(0, 1.08), xlabel="share right, with 95 % intervals")
    axes.axvline(0.5, color="black", lw=0.8, ls=":")
    axes.invert_yaxis()
    fig.legend(loc="outside upper center", ncols=len(kinds))
    words = "; ".join(
        f"{name}: "
        + ", ".join(
            f"{found[0]:.2f} ({found[1][0]:.2f} to {found[1][1]:.2f}) by {kind}"
            for found, kind in zip(values, kinds, strict=True)
            if found is not None
        )
        for name, _, values in rows
    )
    alt = f"Groups of bars for {len(rows)} kinds of question, share right. {words}."
    plain = [[name, n, *(None if found is None else [found[0], *found[1]] for found in of)] for name, n, of in rows]
    return FigureResult(fig, alt, {"kinds": list(kinds), "rows": plain})
