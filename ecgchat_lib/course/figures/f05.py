"""The figures of notebook 05: patches, receptive fields, where parameters are, what tokens and the CLS token hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ecgchat_lib.course.figure import FigureResult, figure

if TYPE_CHECKING:
    from ecgchat_lib.coca.config import EcgEncoderConfig
    from ecgchat_lib.coca.encoder import EcgEncoder

BLUE, ORANGE, GREEN, PINK, SKY, YELLOW = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


@figure("05.1", "Ten seconds of lead II cut into 100 patches, and one patch as the encoder sees it.")
def patches(window: np.ndarray, record: str, config: EcgEncoderConfig, patch: int) -> FigureResult:
    """A strip of lead II with patch borders, and one patch of all leads as a heat map.

    Args:
        window: (12, samples), from the front end.
        record: the recording's name.
        config: the encoder's config.
        patch: which patch to show.
    """
    from matplotlib import pyplot as plt

    size = config.patch_samples
    fig, (strip, close) = plt.subplots(1, 2, figsize=(10, 3.4), width_ratios=(3.4, 1), layout="constrained")
    time = np.arange(window.shape[1]) / config.fs
    for number in range(0, config.patches, 2):
        strip.axvspan(number * size / config.fs, (number + 1) * size / config.fs, color="#EEF2F5", lw=0)
    begin = patch * size
    strip.axvspan(begin / config.fs, (begin + size) / config.fs, color=ORANGE, alpha=0.45, lw=0)
    strip.plot(time, window[1], color="black", lw=0.8)
    strip.set(xlabel="time (s)", ylabel="lead II (mV)", xlim=(0, config.seconds))
    strip.annotate(f"patch {patch}", (begin / config.fs, strip.get_ylim()[1] * 0.93), color=ORANGE, ha="right")
    heat = window[:, begin : begin + size]
    limit = max(0.1, float(np.abs(heat).max()))
    shown = close.imshow(heat, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto")
    close.set_yticks(range(12), LEADS, fontsize=8)
    close.set_xticks(range(0, size, 3))
    close.set(xlabel=f"sample of patch {patch}")
    fig.colorbar(shown, ax=close, label="mV")
    low, high = float(heat.min()), float(heat.max())
    alt = (
        f"Left: lead II of {record}, {config.seconds:g} s, under {config.patches} stripes of "
        f"{size / config.fs:g} s. Right: patch {patch}, which begins at {begin / config.fs:.1f} s, as a table of 12 "
        f"leads by {size} samples in color, from {low:.1f} to {high:.1f} mV."
    )
    return FigureResult(fig, alt, {"record": record, "patch": patch, "heat": heat.astype(np.float64).round(2)})


def _shares(encoder: EcgEncoder) -> dict[str, int]:
    """Return the parameters of an encoder by part; they add up to all of them."""
    from ecgchat_lib.coca.model import count_parameters

    whole = {
        "stem": count_parameters(encoder.stem),
        "patch matrix": count_parameters(encoder.conv1),
        "CLS and places": encoder.class_embedding.numel() + encoder.positional_embedding.numel(),
        "size of each lead": encoder.scale_projection.weight.numel() if encoder.scale_projection is not None else 0,
        "attention": sum(count_parameters(b.attn) for b in encoder.transformer.resblocks),
        "networks (MLP)": sum(count_parameters(b.mlp) for b in encoder.transformer.resblocks),
        "projection": encoder.proj.numel(),
    }
    return whole | {"norms": count_parameters(encoder) - sum(whole.values())}


@figure("05.2", "What can move one token: its own patch before the first block, every moment after it.")
def receptive_field(
    before: np.ndarray, after: np.ndarray, lead: np.ndarray, patch: int, config: EcgEncoderConfig
) -> FigureResult:
    """Lead II, and below it how strongly each moment moves one token before and after a block.

    Args:
        before: (samples,) size of the token's gradient at each sample, before the first block.
        after: (samples,) the same after it.
        lead: (samples,) lead II, mV.
        patch: the token's patch.
        config: the encoder's config.
    """
    from matplotlib import pyplot as plt

    size = config.patch_samples
    time = np.arange(len(lead)) / config.fs
    fig, axes = plt.subplots(3, 1, figsize=(9.5, 3.9), height_ratios=(2, 1.2, 1.2), sharex=True, layout="constrained")
    for ax in axes:
        ax.axvspan(patch * size / config.fs, (patch + 1) * size / config.fs, color=ORANGE, alpha=0.25, lw=0)
    axes[0].plot(time, lead, color="black", lw=0.8)
    axes[0].set(ylabel="lead II (mV)", xlim=(0, config.seconds))
    axes[0].annotate(
        f"patch {patch}", (patch * size / config.fs, axes[0].get_ylim()[1] * 0.9), color=ORANGE, ha="right"
    )
    reached = {}
    for ax, influence, color, name in (
        (axes[1], before, ORANGE, "before the first block"),
        (axes[2], after, BLUE, "after one block"),
    ):
        by_patch = influence.reshape(-1, size).sum(axis=1)
        reached[name] = int((influence > 0).sum())
        middle = (np.arange(len(by_patch)) + 0.5) * size / config.fs
        decades = 1 + np.log10(np.maximum(by_patch, 1e-9) / by_patch.max()) / 4
        ax.bar(middle, np.where(by_patch > 0, decades, 0), width=0.85 * size / config.fs, color=color)
        ax.set(ylim=(0, 1.6), yticks=[], ylabel="influence\n(log)")
        label = f"{name}: {reached[name]:,} of {len(lead):,} samples"
        ax.text(0.995, 0.97, label, ha="right", va="top", transform=ax.transAxes, fontsize=9, color=color)
    axes[2].set(xlabel="time (s)")
    told = " and ".join(f"{number:,} samples {name}" for name, number in reached.items())
    alt = (
        f"Lead II over {config.seconds:g} s with patch {patch} marked, and two rows of bars, one bar a patch, of the "
        f"influence on that patch's token (logarithmic, four decades): {told}."
    )
    return FigureResult(fig, alt, {"patch": patch, "reached": reached})


@figure("05.3", "Where the parameters are, as a share of the whole encoder: the paper's and the mini.")
def parameter_shares(paper: EcgEncoder, mini: EcgEncoder) -> FigureResult:
    """Horizontal bars of the share of each part, for two encoders."""
    from matplotlib import pyplot as plt

    counts = {"paper": _shares(paper), "mini": _shares(mini)}
    names = list(counts["paper"])
    fig, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
    for row, (who, color, hatch) in enumerate((("paper", BLUE, ""), ("mini", ORANGE, "//"))):
        total = sum(counts[who].values())
        shares = [100 * counts[who][name] / total for name in names]
        places = np.arange(len(names)) + (row - 0.5) * 0.4
        bars = ax.barh(places, shares, 0.38, color=color, hatch=hatch, ec="white", label=f"{who}: {total:,} parameters")
        ax.bar_label(bars, [f"{share:.1f} %" for share in shares], padding=3, fontsize=8)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set(xlabel="share of the parameters (%)", xlim=(0, 78))
    ax.legend(loc="lower right")
    told = "; ".join(
        f"{who} ({sum(parts.values()):,}): "
        + ", ".join(f"{name} {100 * count / sum(parts.values()):.1f} %" for name, count in parts.items())
        for who, parts in counts.items()
    )
    return FigureResult(fig, f"Horizontal bars of shares. {told}.", counts)


def _cosines(tokens: np.ndarray) -> np.ndarray:
    centered = tokens - tokens.mean(axis=0)
    unit = centered / np.linalg.norm(centered, axis=1, keepdims=True)
    return unit @ unit.T


@figure("05.4", "How alike the 100 patch tokens are: cosine, after their mean is taken out.")
def token_likeness(untrained: np.ndarray, trained: np.ndarray, lead: np.ndarray, record: str) -> FigureResult:
    """Two matrices of cosines between patch tokens, with lead II above each.

    Args:
        untrained: (100, width) tokens from random weights.
        trained: (100, width) tokens from the mini weights.
        lead: (samples,) lead II, to see where the beats are.
        record: the recording's name.
    """
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(2, 2, figsize=(9.5, 5.4), height_ratios=(1, 4.6), sharex="col", layout="constrained")
    for column, (title, tokens) in enumerate((("random weights", untrained), ("mini weights", trained))):
        axes[0, column].plot(np.arange(len(lead)) / len(lead) * len(tokens) - 0.5, lead, color="black", lw=0.7)
        axes[0, column].set(title=title, yticks=[])
        shown = axes[1, column].imshow(_cosines(tokens), cmap="PuOr_r", vmin=-1, vmax=1, aspect="auto")
        axes[1, column].set(xlabel="patch", ylabel="patch" if column == 0 else "")
    axes[0, 0].set_ylabel("lead II")
    fig.colorbar(shown, ax=axes[1, :], label="cosine", shrink=0.9)
    alt = (
        f"Two square pictures of the cosines between the {len(trained)} patch tokens of {record}, with lead II above "
        "each. Lines parallel to the diagonal, one beat apart, are faint with random weights and clear with the mini's."
    )
    return FigureResult(fig, alt, {"record": record, "shape": list(trained.shape)})


@figure("05.5", "Where the CLS token of the mini model takes from in its last block, head by head.")
def cls_attention(shares: np.ndarray, lead: np.ndarray, record: str) -> FigureResult:
    """Lead II, and below it a heat map of the CLS token's attention, one row a head.

    Args:
        shares: (heads, patches) shares of attention.
        lead: (samples,) lead II.
        record: the recording's name.
    """
    from matplotlib import pyplot as plt

    heads, patches_ = shares.shape
    fig, (strip, heat) = plt.subplots(
        2, 1, figsize=(9.5, 3.9), height_ratios=(1, 1.5), sharex=True, layout="constrained"
    )
    strip.plot(np.linspace(0, patches_, len(lead)), lead, color="black", lw=0.8)
    strip.set(ylabel="lead II", yticks=[], xlim=(0, patches_))
    strip.tick_params(bottom=False)
    shown = heat.imshow(
        100 * shares,
        cmap="Blues",
        vmin=0,
        aspect="auto",
        extent=(0, patches_, heads + 0.5, 0.5),
        interpolation="nearest",
    )
    heat.set(xlabel="patch", ylabel="head", yticks=range(1, heads + 1))
    fig.colorbar(shown, ax=heat, label="share (%)")
    alt = (
        f"Lead II of {record} above a table of {heads} rows and {patches_} columns: how each head of the last block "
        "spreads the CLS token's attention over the ten seconds, darker where it takes more."
    )
    return FigureResult(fig, alt, {"record": record, "shape": list(shares.shape)})
