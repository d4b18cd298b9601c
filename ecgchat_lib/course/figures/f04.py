"""The figures of notebook 04: a gallery of augmentations, how often they fire, and what CutMix does to a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ecgchat_lib.course import FigureResult, figure


@figure(
    "04.1", "Lead II before (gray) and after (blue) each augmentation, in the record of the batch that it changed most."
)
def gallery(before: np.ndarray, after: Mapping[str, np.ndarray], fs: float, seconds: float = 4.0) -> FigureResult:
    """Panels of one lead with and without each augmentation.

    Args:
        before: (batch, time) one lead in mV.
        after: name of the augmentation → the same lead after it, (batch, time).
        fs: sampling rate, Hz.
        seconds: how much is drawn.
    """
    from matplotlib import pyplot as plt

    rows = -(-len(after) // 2)
    fig, axes = plt.subplots(rows, 2, figsize=(9, 1.35 * rows), sharex=True, sharey=True, layout="constrained")
    shown = round(seconds * fs)
    time = np.arange(shown) / fs
    for ax, (name, leads) in zip(axes.flat, after.items(), strict=False):
        most = int(np.abs(leads - before)[:, :shown].mean(axis=1).argmax())
        ax.plot(time, before[most, :shown], color="#AAAAAA", lw=1.6)
        ax.plot(time, leads[most, :shown], color="#0072B2", lw=0.8)
        ax.set_title(name, loc="left", fontsize=9, pad=2)
    for ax in axes.flat[len(after) :]:
        ax.set_axis_off()
    for ax in axes[-1]:
        ax.set_xlabel("seconds")
    fig.supylabel("mV", fontsize=9)
    alt = (
        f"{len(after)} small panels of {seconds:g} seconds of lead II, the original in gray and the changed signal in "
        f"blue: {'; '.join(after)}. The R waves stay where they were unless the signal is shifted or its lead masked."
    )
    data = {"names": list(after), "fs": fs, "before": np.round(before[:4, ::50] * 1000).astype(int)}
    return FigureResult(fig, alt, data)


@figure("04.2", "Share of the records that are changed when 30 % are asked for, against the size of the batch.")
def firing(sizes: Sequence[int], counted: Sequence[float], each: Sequence[float], wanted: float) -> FigureResult:
    """Two lines over the batch size: a rounded normal count, and a draw per record.

    Args:
        sizes: batch sizes.
        counted: share when a rounded normal number of records is drawn.
        each: share when each record is drawn on its own.
        wanted: the share asked for.
    """
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots(figsize=(6.4, 3.2))
    ax.axhline(wanted, color="#888888", ls=":", lw=1, label="asked for")
    ax.plot(sizes, each, "o-", color="#009E73", label="each record on its own")
    ax.plot(sizes, counted, "s--", color="#D55E00", label="a rounded count per batch")
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.set_xlabel("records in the batch")
    ax.set_ylabel("share changed")
    ax.set_ylim(0, wanted * 1.5)
    ax.legend(loc="lower right")
    alt = (
        f"Two lines over batch sizes {sizes[0]} to {sizes[-1]}; {wanted:.0%} are asked for. With a rounded count, "
        f"{counted[0]:.1%} of the records are changed at batch size {sizes[0]} and {counted[-1]:.1%} at {sizes[-1]}; "
        f"with a draw per record, {each[0]:.1%} and {each[-1]:.1%}."
    )
    return FigureResult(
        fig, alt, {"sizes": list(sizes), "counted": list(counted), "each": list(each), "wanted": wanted}
    )


@figure("04.3", "What CutMix makes of two patients: a window of the second ECG under the first one's report.")
def splice(mixed: np.ndarray, window: tuple[int, int], reports: tuple[str, str], fs: float) -> FigureResult:
    """Lead II of a spliced ECG with the pasted window shaded.

    Args:
        mixed: (time,) lead II in mV after CutMix.
        window: first and last sample of what was pasted.
        reports: of the first and of the second patient.
        fs: sampling rate, Hz.
    """
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots(figsize=(9, 2.3), layout="constrained")
    time = np.arange(mixed.size) / fs
    ax.axvspan(window[0] / fs, window[1] / fs, color="#E69F00", alpha=0.25, hatch="//", ec="#E69F00", lw=0)
    ax.plot(time, mixed, color="#000000", lw=0.8)
    ax.text(window[0] / fs + 0.1, ax.get_ylim()[1], "from another patient", va="bottom", fontsize=9)
    ax.set_xlabel("seconds")
    ax.set_ylabel("lead II, mV")
    alt = (
        f"Ten seconds of lead II. Seconds {window[0] / fs:.1f} to {window[1] / fs:.1f} are shaded: they come from a "
        f"patient whose report reads '{reports[1]}', while the text that goes with the whole is '{reports[0]}'."
    )
    data = {"window": list(window), "reports": list(reports), "mixed": np.round(mixed[::25] * 1000).astype(int)}
    return FigureResult(fig, alt, data)
