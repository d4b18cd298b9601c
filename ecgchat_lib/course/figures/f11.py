"""The figures of notebook 11: vectors in a prompt, what is spelled, the loss of stage 1, what a kept cache saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ecgchat_lib.course.figure import FigureResult, figure

BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#9AA5AD"


@figure("11.1", "How long the vector at each place of a prompt is: words, and ECG tokens before and after scaling.")
def vector_lengths(
    unscaled: np.ndarray, scaled: np.ndarray, first: int, tokens: int, about: Mapping[str, Any]
) -> FigureResult:
    """Draw the length of every vector that enters the language model.

    Args:
        unscaled: (places,) lengths with a fresh projector.
        scaled: (places,) the same after `scale_to`.
        first: place of the first ECG token.
        tokens: number of ECG tokens.
        about: what the picture depends on, for the digest.
    """
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(figsize=(9, 3), layout="constrained")
    places = np.arange(len(scaled))
    ecg = (places >= first) & (places < first + tokens)
    axes.axvspan(first - 0.5, first + tokens - 0.5, color="#FBEDE4", lw=0)
    axes.plot(places[ecg], unscaled[ecg], "^", ms=4, color=GRAY, label="ECG tokens, fresh projector")
    axes.plot(places[ecg], scaled[ecg], "s", ms=3.5, color=ORANGE, label="ECG tokens, scaled")
    axes.plot(places[~ecg], scaled[~ecg], "o", ms=4, color=BLUE, label="words")
    axes.set(xlabel="place in the prompt", ylabel="length of the vector", ylim=(0, None))
    axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.2))
    alt = (
        f"The prompt has {len(scaled)} places: {first} word tokens, {tokens} ECG tokens in a shaded band, and "
        f"{len(scaled) - first - tokens} word tokens. Scaled ECG vectors lie at the height of the words' vectors."
    )
    return FigureResult(fig, alt, dict(about))


@figure("11.2", "What the projector spells for real recordings: how far each finding's places lie towards its words.")
def spelled(
    scores: np.ndarray, records: Sequence[str], findings: Sequence[str], about: Mapping[str, Any]
) -> FigureResult:
    """A table in color, recordings by findings.

    Args:
        scores: (recordings, findings) 0 at the filler, 1 at the words.
        records: names with what the dataset states.
        findings: how the findings are called.
        about: what the picture depends on, for the digest.
    """
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(figsize=(10, 0.33 * len(records) + 2.4), layout="constrained")
    shown = axes.imshow(scores, cmap="PuOr_r", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(findings)), findings, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(records)), records, fontsize=9)
    for row, best in enumerate(scores.argmax(1)):
        axes.plot(best, row, "k*", ms=8)
    fig.colorbar(shown, ax=axes, label="share of the way to the words")
    alt = (
        f"A table in color of {len(records)} real recordings by {len(findings)} findings; from purple, the filler is "
        "spelled, to orange, the finding's words are. A star marks what is spelled most clearly in each recording."
    )
    return FigureResult(fig, alt, dict(about))


@figure("11.3", "Stage 1: the loss of the answers while the projector, and only the projector, learns.")
def stage_1(losses: Sequence[float], about: Mapping[str, Any]) -> FigureResult:
    """Draw the loss of each step with a moving mean.

    Args:
        losses: one per step.
        about: what the run depends on, for the digest.
    """
    return FigureResult(*_curve(losses, "step of stage 1"), dict(about))


@figure("11.4", "A conversation with a kept cache reads what is new only; without one it reads everything again.")
def places_read(kept: Sequence[int], whole: Sequence[int], about: Mapping[str, Any]) -> FigureResult:
    """Draw how many places are read before each answer.

    Args:
        kept: places read in each turn with a kept cache.
        whole: places of each turn's whole prompt.
        about: what the run depends on, for the digest.
    """
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    turns = np.arange(1, len(kept) + 1)
    axes.bar(turns - 0.2, whole, 0.38, color=GRAY, label="everything again")
    axes.bar(turns + 0.2, kept, 0.38, color=BLUE, label="with a kept cache")
    axes.set(xlabel="question", ylabel="places read before the answer", xticks=turns)
    axes.legend(loc="upper left")
    alt = (
        f"Two bars for each of {len(kept)} questions. What is read without a cache grows with every question; with a "
        "kept cache only the questions that bring a new ECG have high bars, the others low ones of about equal height."
    )
    return FigureResult(fig, alt, dict(about))


def _curve(losses: Sequence[float], label: str) -> tuple[Any, str]:
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    steps = np.arange(1, len(losses) + 1)
    axes.plot(steps, losses, "o-", ms=3, lw=0.8, color=GRAY, label="each step")
    width = max(1, len(losses) // 4)
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    axes.plot(steps[width - 1 :], smooth, lw=2.2, color=BLUE, label=f"mean of {width} steps")
    axes.set(xlabel=label, ylabel="cross entropy (nats per token)", ylim=(0, None))
    axes.legend()
    third = max(1, len(losses) // 3)
    fell = np.mean(losses[-third:]) < np.mean(losses[:third])
    where = "below" if fell else "not below"
    alt = f"A curve of {len(losses)} steps. The mean loss of the last third is {where} the first third's."
    return fig, alt
