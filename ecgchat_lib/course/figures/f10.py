"""The figures of notebook 10: what is confirmed and denied, which tokens are learned, how long dialogues are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ecgchat_lib.course.figure import FigureResult, figure

BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#E3E6E9"


@figure("10.1", "How often each finding is confirmed and denied: asking about everything, and asking in balance.")
def balance(
    naive: Mapping[str, tuple[int, int]], balanced: Mapping[str, tuple[int, int]], phrases: Mapping[str, str]
) -> FigureResult:
    """Two panels of horizontal bars, denied to the left and confirmed to the right.

    Args:
        naive: finding → (confirmed, denied) when every finding is asked of every recording.
        balanced: the same as planned data sets ask.
        phrases: finding → how it is called.
    """
    from matplotlib import pyplot as plt

    names = sorted(naive, key=lambda name: naive[name][0])
    fig, axes = plt.subplots(1, 2, figsize=(10, 0.3 * len(names) + 1.4), sharey=True, layout="constrained")
    for panel, counts, title in zip(axes, (naive, balanced), ("ask about everything", "ask in balance"), strict=True):
        yes = [counts.get(name, (0, 0))[0] for name in names]
        no = [counts.get(name, (0, 0))[1] for name in names]
        panel.barh(names, [-n for n in no], color=ORANGE, hatch="///", edgecolor="white", label="denied")
        panel.barh(names, yes, color=BLUE, label="confirmed")
        panel.axvline(0, color="black", lw=0.8)
        panel.set(title=title, xlabel="questions (denied ← → confirmed)")
        panel.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes[0].set_yticks(range(len(names)), [phrases[name] for name in names])
    axes[1].legend(loc="lower right")
    shares = [_share_denied(counts) for counts in (naive, balanced)]
    alt = (
        f"Bars for {len(names)} findings. Asked about everything, {shares[0]:.0f} percent of the answers deny; asked "
        f"in balance, {shares[1]:.0f} percent do, and each finding is denied about as often as it is confirmed."
    )
    data = {name: [*naive[name], *balanced.get(name, (0, 0))] for name in names}
    return FigureResult(fig, alt, data)


def _share_denied(counts: Mapping[str, tuple[int, int]]) -> float:
    yes, no = (sum(pair[k] for pair in counts.values()) for k in (0, 1))
    return 100 * no / max(1, yes + no)


@figure("10.2", "One conversation as tokens: what the model reads, and what it has to learn.")
def token_strip(texts: Sequence[str], learned: Sequence[bool], ecg: int) -> FigureResult:
    """Write the tokens in lines of boxes, the learned ones colored.

    Args:
        texts: each token as text; the place of the ECG as "<ecg>".
        learned: whether the token has a label.
        ecg: how many ECG tokens go there.
    """
    from matplotlib import pyplot as plt

    longest, rows, x, y = 96, [], 0, 0
    for text, on in zip(texts, learned, strict=True):
        shown = f"{ecg} ECG tokens" if text == "<ecg>" else text.replace("\n", "↵").replace(" ", "·")
        if x + len(shown) + 1 > longest:
            x, y = 0, y + 1
        rows.append((x, y, shown, on, text == "<ecg>"))
        x += len(shown) + 1
    fig, axes = plt.subplots(figsize=(10, 0.34 * (y + 1) + 0.5), layout="constrained")
    for left, line, shown, on, is_ecg in rows:
        color = ORANGE if is_ecg else BLUE if on else GRAY
        axes.add_patch(plt.Rectangle((left, -line - 0.42), len(shown) + 0.6, 0.84, color=color, lw=0))
        style = {"color": "white" if on or is_ecg else "black", "family": "DejaVu Sans Mono", "size": 7.5}
        axes.text(left + len(shown) / 2 + 0.3, -line, shown, ha="center", va="center", **style)  # type: ignore[arg-type]
    axes.set(xlim=(-0.5, longest + 1), ylim=(-y - 0.6, 0.6))
    axes.axis("off")
    answers = int(np.diff([0, *map(int, learned)]).clip(0).sum())
    alt = (
        f"{len(texts) - 1} text tokens in boxes and one box for {ecg} ECG tokens. Blue boxes, {sum(learned)} of them "
        f"in {answers} groups, are the answers with their end marks, which the model learns; gray boxes are only read."
    )
    return FigureResult(fig, alt, {"texts": list(texts), "learned": [bool(on) for on in learned]})


@figure("10.3", "How many rounds the conversations have.")
def rounds(conversations: Sequence[tuple[str, int]]) -> FigureResult:
    """Draw how many dialogues have how many rounds, those about two ECGs on top.

    Args:
        conversations: (kind, rounds) of each; diagnoses, which have one round, are only counted.
    """
    from matplotlib import pyplot as plt

    kinds = {"dialogue": ("about one ECG", BLUE, ""), "comparison": ("about two ECGs", ORANGE, "///")}
    longest = max((n for kind, n in conversations if kind in kinds), default=1)
    places = np.arange(1, longest + 1)
    fig, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
    bottom = np.zeros(longest)
    data: dict[str, object] = {}
    for kind, (label, color, hatch) in kinds.items():
        counts = np.bincount([n for one, n in conversations if one == kind], minlength=longest + 1)[1:]
        axes.bar(places, counts, bottom=bottom, color=color, hatch=hatch, edgecolor="white", label=label)
        bottom, data[kind] = bottom + counts, counts.tolist()
    axes.set(xlabel="rounds", ylabel="dialogues", xlim=(3.2, longest + 0.8))
    axes.yaxis.set_major_locator(plt.MaxNLocator(integer=True))
    axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    axes.legend()
    several = [n for kind, n in conversations if kind in kinds]
    alt = (
        f"Bars for {len(several)} dialogues of {min(several, default=0)} to {longest} rounds; "
        f"{sum(kind == 'comparison' for kind, _ in conversations)} of them are about two ECGs."
    )
    return FigureResult(fig, alt, data)
