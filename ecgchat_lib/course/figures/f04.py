"""The figures of notebook 04: a gallery, how often augmentations fire, CutMix, time that runs unevenly, and speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ecgchat_lib.course import FigureResult, figure

BLUE, ORANGE, GREEN, PURPLE, GRAY, INK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#AAAAAA", "#1B2A38"


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
        f"blue: {'; '.join(after)}. The R waves stay where they were unless the signal is shifted, warped, or masked."
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


@figure("04.3", "What CutMix makes of two real patients: a window of the second ECG under the first one's report.")
def splice(mixed: np.ndarray, window: tuple[int, int], reports: tuple[str, str], fs: float) -> FigureResult:
    """Lead II of a spliced ECG, the pasted window in orange.

    Args:
        mixed: (time,) lead II in mV after CutMix.
        window: first and last sample of what was pasted.
        reports: of the first and of the second patient.
        fs: sampling rate, Hz.
    """
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots(figsize=(9, 2.6), layout="constrained")
    time, (first, last) = np.arange(mixed.size) / fs, window
    ax.axvspan(first / fs, last / fs, color=ORANGE, alpha=0.1, lw=0)
    for begin, end, color in ((0, first + 1, INK), (first, last + 1, ORANGE), (last, mixed.size, INK)):
        ax.plot(time[begin:end], mixed[begin:end], color=color, lw=0.9)
    top = float(mixed.max()) + 0.16 * float(np.ptp(mixed))
    ax.text(first / fs + 0.08, top, f"pasted: {reports[1]}", color=ORANGE, va="center", fontsize=10, weight="bold")
    ax.set_ylim(top=top + 0.1 * float(np.ptp(mixed)))
    ax.set_title(f"its report says: {reports[0]}", loc="left", fontsize=10, color=INK)
    ax.set_xlim(0, mixed.size / fs)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel("seconds")
    ax.set_ylabel("lead II, mV")
    alt = (
        f"Ten seconds of lead II. Seconds {first / fs:.1f} to {last / fs:.1f} are orange: they come from a patient "
        f"whose report reads '{reports[1]}', while the text that goes with the whole is '{reports[0]}'. The orange "
        "part beats faster and unevenly."
    )
    data = {"window": list(window), "reports": list(reports), "mixed": np.round(mixed[::25] * 1000).astype(int)}
    return FigureResult(fig, alt, data)


@figure("04.4", "Time that runs unevenly: the speed of several warps, and lead II where the bold one strays most.")
def warps(speeds: np.ndarray, before: np.ndarray, after: np.ndarray, fs: float, most: float) -> FigureResult:
    """Curves of speed above; below, two seconds of one lead before and after.

    Args:
        speeds: (warp, time) samples read per sample written.
        before: (time,) a lead in mV.
        after: the same lead under the first of the warps.
        fs: sampling rate, Hz.
        most: largest change of the speed.
    """
    from matplotlib import pyplot as plt

    fig, (top, low) = plt.subplots(2, 1, figsize=(9, 4.6), layout="constrained")
    time, percent = np.arange(speeds.shape[1]) / fs, 100 * (speeds - 1)
    ahead = np.cumsum(percent[0]) * 10 / fs  # ms
    middle = float(np.clip(time[np.abs(ahead).argmax()], 1, time[-1] - 1))
    top.axhspan(-100 * most, 100 * most, color=BLUE, alpha=0.07, lw=0)
    top.axhline(0, color=INK, lw=0.7)
    top.plot(time, percent[1:].T, color=GRAY, lw=1)
    top.plot(time, percent[0], color=BLUE, lw=2.2)
    top.axvspan(middle - 1, middle + 1, color=INK, alpha=0.06, lw=0)
    top.set_ylabel("speed, % faster")
    top.text(0.1, 100 * most * 0.9, f"never beyond {most:.0%}", color=BLUE, fontsize=9, va="top")
    top.set_ylim(-115 * most, 115 * most)
    top.set_xlim(0, time[-1])
    low.plot(time, before, color=GRAY, lw=2.2, label="before")
    low.plot(time, after, color=BLUE, lw=1.2, label="after")
    low.set_ylim(top=1.4 * float(max(before.max(), after.max())))
    low.legend(loc="upper right", ncols=2, frameon=False, fontsize=9)
    low.set_ylabel("lead II, mV")
    low.set_xlabel("seconds")
    low.set_xlim(middle - 1, middle + 1)
    for ax in (top, low):
        ax.spines[["top", "right"]].set_visible(False)
    alt = (
        f"Above, smooth curves of the local speed over {time[-1]:.0f} seconds, all within {most:.0%} of normal. Below, "
        "two seconds of lead II before in gray and after the bold warp in blue, where it strays most: the same beats, "
        "a few hundredths of a second apart."
    )
    data = {"speed": np.round(percent[:, ::250], 1), "most": most, "before": np.round(before[::50] * 1000).astype(int)}
    return FigureResult(fig, alt, data)


@figure("04.5", "By how much measured numbers change with each change of time: one dot per ECG.")
def moved(changes: Mapping[str, np.ndarray], names: Sequence[str], factors: Mapping[str, np.ndarray]) -> FigureResult:
    """A panel per augmentation, a row per measurement.

    Args:
        changes: augmentation → (ecg, measurement), by what each was multiplied.
        names: of the measurements.
        factors: augmentation → (ecg, measurement) what the library says; drawn as rings.
    """
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(1, len(changes), figsize=(9, 3.0), sharex=True, sharey=True, layout="constrained")
    rows = np.arange(len(names))
    for ax, (name, found), color in zip(axes, changes.items(), (BLUE, GREEN, PURPLE), strict=True):
        ax.axvline(0, color=INK, lw=0.7)
        spread = np.linspace(-0.24, 0.24, len(found))
        for told, one, aside in zip(factors.get(name, np.full_like(found, np.nan)), found, spread, strict=True):
            ax.plot(100 * (told - 1), rows + aside, "o", mfc="none", mec=INK, ms=7.5, mew=0.8)
            ax.plot(100 * (one - 1), rows + aside, "o", color=color, ms=4)
        ax.set_title(name, loc="left", fontsize=10)
        ax.set_xlabel("change, %")
        ax.grid(axis="x", color="#DDDDDD", lw=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(rows, names)
    axes[0].invert_yaxis()
    alt = (
        f"{len(changes)} panels ({', '.join(changes)}), each with the rows {', '.join(names)} and a dot per ECG. Where "
        "a factor is returned, the dots lie in rings that it predicts; a warp and a lower rate leave most near zero."
    )
    sizes = {name: list(found.shape) for name, found in changes.items()}
    return FigureResult(fig, alt, {"names": list(names), "sizes": sizes})


@figure("04.6", "Records augmented per second of one processor core, as recorded; each axis step is a factor of ten.")
def speed(cases: Mapping[str, Mapping[str, float]]) -> FigureResult:
    """Dots on a line per case, on a logarithmic axis.

    Args:
        cases: case → method → median records per second; methods may be missing.
    """
    from matplotlib import pyplot as plt

    styles = {
        "this course": ("o", BLUE),
        "a record at a time": ("s", ORANGE),
        "torch_ecg": ("D", GREEN),
        "torch_ecg, batches of one": ("d", PURPLE),
    }
    fig, ax = plt.subplots(figsize=(9, 0.36 * len(cases) + 1.2), layout="constrained")
    for row, methods in enumerate(cases.values()):
        ax.plot([min(methods.values()), max(methods.values())], [row, row], color="#CCCCCC", lw=2, zorder=1)
        for name, value in methods.items():
            mark, color = styles[name]
            ax.plot(value, row, mark, color=color, ms=8, zorder=2, label=name)
    shown = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    ax.legend(
        [shown[name] for name in styles if name in shown],
        [name for name in styles if name in shown],
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=4,
        frameon=False,
        fontsize=9,
    )
    ax.set_yticks(range(len(cases)), [name.replace("_", " ") for name in cases])
    ax.invert_yaxis()
    ax.set_xscale("log")
    ax.set_xlabel("records per second")
    ax.grid(axis="x", color="#E3E3E3", lw=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    alt = f"{len(cases)} rows with a mark per method on a logarithmic axis. " + "; ".join(
        f"{case.replace('_', ' ')}: " + ", ".join(f"{name} {value:.0f}" for name, value in methods.items())
        for case, methods in cases.items()
    )
    return FigureResult(fig, alt + " records per second.", {case: dict(methods) for case, methods in cases.items()})
