"""The figures of notebook 06: what the temperature does, how a sentence encoder hears ECG terms, and the leak."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ecgchat_lib.course.figure import FigureResult, figure

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
SCALES = (1.0, 14.3, 100.0)


def _probabilities(cosines: np.ndarray, scale: float) -> np.ndarray:
    exponentials = np.exp(scale * (cosines - cosines.max(axis=1, keepdims=True)))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _loss(cosines: np.ndarray, scale: float) -> float:
    rows = [np.log(np.diag(_probabilities(matrix, scale))).mean() for matrix in (cosines, cosines.T)]
    return float(-np.mean(rows))


@figure("06.1", "The same nine cosines at three scales: the probability of each report for each ECG, and the loss.")
def temperature(cosines: np.ndarray) -> FigureResult:
    """Three heat maps of row-wise probabilities, and the loss over the scale for these cosines and for mended ones.

    Args:
        cosines: (3, 3), right pairs on the diagonal.
    """
    from matplotlib import pyplot as plt

    mended = cosines.copy()
    mended[2, [1, 2]] = mended[2, [2, 1]]
    fig, axes = plt.subplots(1, 4, figsize=(11, 3), width_ratios=(1, 1, 1, 1.7), layout="constrained")
    losses = {}
    for ax, scale in zip(axes[:3], SCALES, strict=True):
        shares = _probabilities(cosines, scale)
        losses[f"{scale:g}"] = _loss(cosines, scale)
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), share in np.ndenumerate(shares):
            ax.text(column, row, f"{share:.2f}", ha="center", va="center", color="white" if share > 0.6 else "black")
        ax.set(title=f"scale {scale:g}: loss {losses[f'{scale:g}']:.2f}", xlabel="report")
        ax.set_xticks(range(3), "ABC")
        ax.set_yticks(range(3), "ABC")
    axes[0].set_ylabel("ECG")
    scales = np.geomspace(0.5, 100, 60)
    for matrix, color, style, label in (
        (cosines, ORANGE, "-", "one pair wrong"),
        (mended, BLUE, "--", "all pairs right"),
    ):
        axes[3].plot(scales, [_loss(matrix, scale) for scale in scales], color=color, ls=style, label=label)
    axes[3].axhline(np.log(3), color="black", lw=0.7, ls=":")
    axes[3].text(0.55, np.log(3) + 0.05, "ln 3: a guess", fontsize=8)
    axes[3].set(xscale="log", xlabel="scale", ylabel="loss", ylim=(0, 3))
    axes[3].legend(loc="upper left")
    told = ", ".join(f"{loss:.2f} at scale {scale}" for scale, loss in losses.items())
    alt = (
        f"Three 3 by 3 tables of probabilities, ever sharper with the scale; the loss is {told}. A fourth picture: "
        "with one wrong pair the loss falls and then rises with the scale, with all pairs right it falls towards 0."
    )
    return FigureResult(fig, alt, {"cosines": cosines, "losses": losses})


@figure("06.2", "Cosines of a general sentence encoder between five short findings: it hears the words.")
def sentence_likeness(sentences: Sequence[str], cosines: np.ndarray) -> FigureResult:
    """A matrix of cosines between sentences.

    Args:
        sentences: n texts.
        cosines: (n, n).
    """
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.9), layout="constrained")
    shown = ax.imshow(cosines, cmap="Blues", vmin=0, vmax=1)
    for (row, column), cosine in np.ndenumerate(cosines):
        color = "white" if cosine > 0.6 else "black"
        ax.text(column, row, f"{cosine:.2f}", ha="center", va="center", color=color, fontsize=9)
    ax.set_yticks(range(len(sentences)), sentences)
    ax.set_xticks(range(len(sentences)), [text.replace(" ", "\n") for text in sentences], fontsize=8)
    fig.colorbar(shown, ax=ax, label="cosine")
    pairs = [(cosines[i, j], i, j) for i in range(len(sentences)) for j in range(i)]
    best = max(pairs)
    alt = (
        f"A {len(sentences)} by {len(sentences)} table of cosines. The two most alike different texts are "
        f"'{sentences[best[2]]}' and '{sentences[best[1]]}', with a cosine above {math.floor(10 * best[0]) / 10:.1f}."
    )
    return FigureResult(fig, alt, {"sentences": list(sentences), "most alike": [best[2], best[1]]})


@figure(
    "06.3",
    "Caption loss on random reports: only a decoder that sees the answer gets below the line.",
)
def leak(causal: np.ndarray, leaky: np.ndarray, floor: float, settings: Mapping[str, Any]) -> FigureResult:
    """Two loss curves and the floor.

    Args:
        causal: (steps,) losses of the causal decoder.
        leaky: (steps,) losses of the decoder that reads a bidirectional encoder's states.
        floor: the entropy of the random pieces, nats.
        settings: what the losses depend on; goes into the digest in their place.
    """
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots(figsize=(8, 3.3), layout="constrained")
    ax.plot(causal, color=BLUE, label="causal: embeds the pieces itself")
    ax.plot(leaky, color=ORANGE, ls="--", label="leaky: reads a two-way encoder's states")
    ax.axhline(floor, color="black", lw=0.8, ls=":")
    ax.text(len(causal) * 0.99, floor + 0.06, "the least an honest loss can be", ha="right", fontsize=8)
    ax.set(xlabel="step", ylabel="caption loss (nats)", ylim=(0, None))
    ax.legend(loc="center right")
    under = "falls far below it" if leaky[-1] < floor / 2 else "has not fallen far below it yet"
    alt = (
        f"Two loss curves over {len(causal)} steps. The causal decoder's stays at the floor of {floor:.1f}; "
        f"the leaky one's {under}."
    )
    return FigureResult(fig, alt, dict(settings))
