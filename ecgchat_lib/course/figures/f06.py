"""The figures of notebook 06: temperature, how words and numbers are heard, the leak, and the original's size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgchat_lib.course.figure import FigureResult, figure

if TYPE_CHECKING:
    from ecgchat_lib.coca.model import EcgCoca

BLUE, ORANGE, GREEN, PINK, SKY, YELLOW = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
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


@figure("06.4", "How far each logit moves when the pieces from 40 on are changed: the original's, and ours.")
def moved_logits(change: Mapping[str, np.ndarray], first: int) -> FigureResult:
    """One row of bars per model over the places of the report.

    Args:
        change: per model, (places,) the largest change of a logit at each place.
        first: the first changed piece.
    """
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(2, 1, figsize=(9, 3.4), sharex=True, layout="constrained")
    moved = {name: int((by[:first] != 0).sum()) for name, by in change.items()}
    for ax, (name, by), color in zip(axes, change.items(), (ORANGE, BLUE), strict=True):
        ax.axvspan(first - 0.5, len(by) - 0.5, color="#EEF2F5", lw=0)
        decades = 1 + np.log10(np.maximum(by, 1e-12) / by.max()) / 6
        ax.bar(np.arange(len(by)), np.where(by > 0, decades.clip(0.02), 0), width=0.8, color=color)
        ax.set(ylabel="change (log)", yticks=[], ylim=(0, 1.45), xlim=(-0.7, len(by) - 0.3))
        told = f"{name}: {moved[name]} of {first} earlier logits move"
        ax.text(0.005, 0.95, told, transform=ax.transAxes, va="top", color=color, fontsize=10)
    axes[0].text(first + 0.3, 1.38, "changed pieces", va="top", fontsize=9, color="#555555")
    axes[1].set(xlabel="place in the report")
    told = "; ".join(f"{name}: {n} of {first}" for name, n in moved.items())
    alt = (
        f"Two rows of bars (logarithmic) over {len(next(iter(change.values())))} places; the pieces from place "
        f"{first} on were changed. Logits at earlier places that move: {told}. From there on both move, as they may."
    )
    return FigureResult(fig, alt, {"first": first, "moved": moved})


@figure("06.5", "How like QT = 380 ms another QT is: for the sentence encoder, and as waves.")
def number_likeness(qts: Sequence[int], heard: np.ndarray, told: np.ndarray) -> FigureResult:
    """Two curves over QT.

    Args:
        qts: QT intervals, ms.
        heard: cosine of the whole text's vector with that of 380 ms, by the sentence encoder.
        told: cosine of the waves with those of 380 ms.
    """
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
    ax.axvline(380, color="black", lw=0.8, ls=":")
    ax.plot(qts, heard, color=ORANGE, marker="o", ms=4, ls="--")
    ax.plot(qts, told, color=BLUE, marker="s", ms=4)
    ax.text(qts[-1], heard[-1] - 0.08, "sentence encoder, the whole text", color=ORANGE, ha="right", va="top")
    ax.text(402, 0.62, "waves of the number", color=BLUE)
    ax.set(xlabel="QT in the text (ms)", ylabel="cosine with QT = 380 ms", ylim=(min(-0.35, told.min() - 0.1), 1.08))
    lowest = math.floor(10 * float(heard.min())) / 10
    near, far = (float(told[list(qts).index(qt)]) for qt in (390, 420))
    alt = (
        f"Two curves over QT from {qts[0]} to {qts[-1]} ms. The sentence encoder's cosine with 380 ms never falls "
        f"below {lowest:.1f}. That of the waves is 1 at 380 ms, {near:.1f} at 390 ms and {far:.1f} at 420 ms."
    )
    return FigureResult(fig, alt, {"qts": list(qts), "told": told.astype(np.float64)})


def parameter_parts(sizes: Mapping[str, int], ours: EcgCoca) -> dict[str, dict[str, int]]:
    """Return where the parameters are: of the original (by the names of its state dict), and of ours at its size."""

    def count(*starts: str, of: Mapping[str, int]) -> int:
        return sum(size for name, size in of.items() if name.startswith(starts))

    own = {name: parameter.numel() for name, parameter in ours.named_parameters()}
    parts = {}
    for who, of, tower, text, writer, projection in (
        ("original", sizes, "ecg.", "text.", "text_decoder.", "text_decoder.text_projection"),
        ("ours", own, "encoder.", "text_tower.", "decoder.transformer.", "decoder.transformer.text_projection"),
    ):
        parts[who] = {
            "ECG encoder": count(tower, of=of),
            "text: word pieces": count("text.transformer.embeddings.", of=of),
            "text: layers and projection": count(text, of=of) - count("text.transformer.embeddings.", of=of),
            "decoder: word pieces in": count("decoder.token_embedding", of=of),
            "decoder: layers": count(writer, of=of) - count(projection, of=of),
            "decoder: word pieces out": count(projection, of=of),
        }
        parts[who]["the rest"] = sum(of.values()) - sum(parts[who].values())
    return parts


@figure("06.6", "Where the parameters are that are trained: in the original, and in ours at the same size.")
def parameter_map(parts: Mapping[str, Mapping[str, int]]) -> FigureResult:
    """One stacked bar for each model.

    Args:
        parts: parameters by model and part, from `parameter_parts`.
    """
    from matplotlib import pyplot as plt

    colors = (GREEN, YELLOW, ORANGE, SKY, BLUE, PINK, "#555555")
    fig, ax = plt.subplots(figsize=(9.5, 2.9), layout="constrained")
    for row, counts in enumerate(parts.values()):
        left = 0.0
        for (name, count), color in zip(counts.items(), colors, strict=True):
            millions = count / 1e6
            ax.barh(row, millions, 0.55, left=left, color=color, ec="white", label=name if row == 0 else None)
            if millions > 12:
                ink = "black" if color in (YELLOW, SKY, PINK) else "white"
                ax.text(left + millions / 2, row, f"{millions:.0f}", ha="center", va="center", color=ink)
            left += millions
        ax.text(left + 4, row, f"{left:.0f} million", va="center", fontweight="bold")
    ax.set_yticks(range(len(parts)), list(parts))
    ax.invert_yaxis()
    ax.set(xlabel="trained parameters (millions)", xlim=(0, 460))
    fig.legend(loc="outside lower center", ncols=4, fontsize=8.5)
    told = ". ".join(
        f"{who}: {sum(counts.values()) / 1e6:.0f} million, of them "
        + ", ".join(f"{name} {count / 1e6:.0f}" for name, count in counts.items() if count > 1e6)
        for who, counts in parts.items()
    )
    return FigureResult(fig, f"Two stacked bars. {told}.", {who: dict(counts) for who, counts in parts.items()})


@figure("06.7", "One training step at the paper's size, recorded: records per second, and peak memory.")
def training_step(recorded: Mapping[str, Any]) -> FigureResult:
    """Bars of speed and of memory for each way to train.

    Args:
        recorded: what `benchmarks/coca_step.py` wrote.
    """
    from matplotlib import pyplot as plt

    ways = recorded["ways"]
    names, rates = list(ways), [way["samples_per_second"]["median"] for way in ways.values()]
    memory = [way["peak_memory_gb"] for way in ways.values()]
    colors = [ORANGE if name == "original" else BLUE for name in names]
    fig, axes = plt.subplots(1, 2, figsize=(9.5, 0.9 + 0.5 * len(names)), sharey=True, layout="constrained")
    labels = [f"{rate:.2f} ({rate / rates[0]:.1f}×)" for rate in rates]  # the original comes first
    for ax, values, label, texts in (
        (axes[0], rates, "records per second", labels),
        (axes[1], memory, "peak memory (GB)", [f"{value:.1f}" for value in memory]),
    ):
        bars = ax.barh(range(len(names)), values, 0.6, color=colors)
        ax.bar_label(bars, texts, padding=4, fontsize=9)
        ax.set(xlabel=label, xlim=(0, 1.35 * max(values)))
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    told = "; ".join(
        f"{name} {label} records/s, {gb:.1f} GB" for name, label, gb in zip(names, labels, memory, strict=True)
    )
    return FigureResult(fig, f"Two rows of bars, {recorded['what']}: {told}.", {"rates": rates, "memory": memory})
