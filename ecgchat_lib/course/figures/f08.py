"""The figures of notebook 08: retrieval and its controls, zero-shot, thresholds, probes, maps, and where it looked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ecgchat_lib.course.figure import FigureResult, figure
from ecgchat_lib.ecg.recording import Recording

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#5A6875"
PINK, SKY = "#CC79A7", "#56B4E9"
WHO = {"mini": ("mini", BLUE, "o"), "random_encoder": ("random encoder", ORANGE, "s")}


@figure("08.1", "Ten real recordings against the findings their labels name: darker is nearer, a frame is the label.")
def real_sample(
    cosines: np.ndarray, records: Sequence[str], labels: Sequence[str], findings: Sequence[str], texts: Sequence[str]
) -> FigureResult:
    """A table of cosines with the labels framed.

    Args:
        cosines: (n, findings).
        records: n names.
        labels: n codes, each one of `findings`.
        findings: the codes of the columns.
        texts: the words of the columns.
    """
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots(figsize=(8, 4.6), layout="constrained")
    # each row on its own scale: what counts is which finding is nearest to this ECG
    low, high = cosines.min(axis=1, keepdims=True), cosines.max(axis=1, keepdims=True)
    ax.imshow((cosines - low) / (high - low), cmap="Blues", aspect="auto", vmax=1.25)
    right = 0
    for row, label in enumerate(labels):
        column, best = findings.index(label), int(cosines[row].argmax())
        right += best == column
        ax.add_patch(plt.Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, fill=False, ec=ORANGE, lw=2.5))
        for place, cosine in enumerate(cosines[row]):
            dark = (cosine - low[row, 0]) / (high[row, 0] - low[row, 0]) > 0.7
            words = f"{cosine:.2f}" + (" ◄" if place == best else "")
            ax.text(place, row, words, ha="center", va="center", color="white" if dark else "black")
    ax.set_yticks(range(len(records)), [f"{name}  {label}" for name, label in zip(records, labels, strict=True)])
    ax.set_xticks(range(len(texts)), [f"{c}\n{_wrapped(t)}" for c, t in zip(findings, texts, strict=True)], fontsize=9)
    alt = (
        f"A table of cosines, {len(records)} recordings by {len(texts)} findings ({', '.join(texts)}). Of the "
        f"{len(records)} recordings, {right} are nearest to the finding that their label names."
    )
    return FigureResult(fig, alt, {"records": list(records), "labels": list(labels), "right": right})


def _wrapped(text: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, 16))


@figure("08.3", "Zero-shot AUC on synthetic test ECGs, by superclass: the mini and a random encoder. Dotted: guessing.")
def zero_shot(
    areas: Mapping[str, Mapping[str, float]], positives: Sequence[int], settings: Mapping[str, Any]
) -> FigureResult:
    """Grouped bars of areas.

    Args:
        areas: model → class → AUC.
        positives: records of each class.
        settings: what the figures depend on; stands in the digest for them.
    """
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots(figsize=(8, 3.2), layout="constrained")
    names = list(next(iter(areas.values())))
    for shift, ((who, values), color, hatch) in enumerate(zip(areas.items(), (BLUE, ORANGE), ("", "//"), strict=False)):
        heights = [0 if np.isnan(values[name]) else values[name] for name in names]
        ax.bar(
            np.arange(len(names)) + (shift - 0.5) * 0.36, heights, 0.34, color=color, hatch=hatch, ec="white", label=who
        )
    ax.axhline(0.5, color="black", lw=0.9, ls=":")
    ax.set_xticks(range(len(names)), [f"{name}\nn = {n}" for name, n in zip(names, positives, strict=True)])
    ax.set(ylabel="AUC", ylim=(0, 1.02))
    fig.legend(loc="outside upper center", ncols=2)
    higher = [name for name in names if areas["mini"][name] > areas["random encoder"][name]]
    counts = ", ".join(f"{n} {name}" for name, n in zip(names, positives, strict=True))
    alt = (
        f"Bars of AUC for {len(names)} superclasses ({counts} records). The mini's bar is the higher one in "
        f"{len(higher)} of {len(names)} classes."
    )
    return FigureResult(fig, alt, {"positives": list(positives), "higher": higher, **settings})


@figure(
    "08.5", "Recorded zero-shot AUC on real ECGs (PTB-XL fold 9, reporting half), with 95 % intervals over patients."
)
def recorded(results: Mapping[str, Any]) -> FigureResult:
    """Points with intervals, per class and macro, for the mini and a random encoder.

    Args:
        results: `data/results/ecg-coca-mini.json`.
    """
    from matplotlib import pyplot as plt

    metrics = results["metrics"]
    names = ["macro_auc", *metrics["positives"]]
    fig, ax = plt.subplots(figsize=(8, 3.3), layout="constrained")
    for shift, (key, (label, color, marker)) in enumerate(WHO.items()):
        rows = [metrics["zero_shot"][key][name] for name in names]
        places = np.arange(len(names)) + (shift - 0.5) * 0.26
        spread = [[r["value"] - r["low"] for r in rows], [r["high"] - r["value"] for r in rows]]
        ax.errorbar([r["value"] for r in rows], places, xerr=spread, fmt=marker, color=color, capsize=3, label=label)
    ax.axvline(0.5, color="black", lw=0.9, ls=":")
    ticks = ["mean of the five", *(f"{name} (n = {metrics['positives'][name]})" for name in names[1:])]
    ax.set_yticks(range(len(names)), ticks)
    ax.invert_yaxis()
    ax.set(xlabel="AUC (dotted: guessing)", xlim=(0, 1.02))
    ax.legend(loc="center", bbox_to_anchor=(0.72, 0.5))  # between the two encoders, where no interval reaches
    told = "; ".join(
        f"{tick} {r['value']:.2f} [{r['low']:.2f}, {r['high']:.2f}]"
        for tick, r in zip(ticks, (metrics["zero_shot"]["mini"][name] for name in names), strict=True)
    )
    floor = metrics["zero_shot"]["random_encoder"]["macro_auc"]["value"]
    alt = (
        f"Points with intervals on {metrics['records']} records. The mini: {told}. "
        f"The random encoder: {floor:.2f} in the mean."
    )
    return FigureResult(fig, alt, metrics["zero_shot"])


@figure(
    "08.2",
    "Recall at 1 with four texts per ECG: what the words find, what the numbers, and whose they are. Ticks: chance.",
)
def controls(reports: Mapping[str, Mapping[str, Any]], names: Mapping[str, str], records: int) -> FigureResult:
    """Horizontal bars of recall at 1, both ways, with chance as a tick.

    Args:
        reports: variant → `retrieval_report`.
        names: variant → its words.
        records: how many ECGs and texts there are.
    """
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots(figsize=(8, 3), layout="constrained")
    ways = {"ecg_to_report": ("ECG → text", BLUE, ""), "report_to_ecg": ("text → ECG", SKY, "//")}
    places = np.arange(len(reports))
    for shift, (way, (label, color, hatch)) in enumerate(ways.items()):
        values = [report[way]["recall_at_1"]["value"] for report in reports.values()]
        at = places + (shift - 0.5) * 0.36
        ax.barh(at, values, 0.34, color=color, hatch=hatch, ec="white", label=label)
        for place, value, report in zip(at, values, reports.values(), strict=True):
            chance = report["chance"]["recall_at_1"]
            ax.text(max(value, chance) + 0.012, place, f"{100 * value:.0f} %", va="center", fontsize=9)
    for place, report in zip(places, reports.values(), strict=True):
        ax.plot([report["chance"]["recall_at_1"]] * 2, [place - 0.4, place + 0.4], color="black", lw=1.8)
    ax.set_yticks(places, [names[name] for name in reports])
    ax.invert_yaxis()
    ax.set(xlabel=f"recall at 1 among {records} ECGs", xlim=(0, 1.08))
    ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    fig.legend(loc="outside upper right", ncols=2)
    told = "; ".join(
        f"{names[name]} {100 * report['ecg_to_report']['recall_at_1']['value']:.0f} and "
        f"{100 * report['report_to_ecg']['recall_at_1']['value']:.0f} %"
        for name, report in reports.items()
    )
    alt = f"Bars of recall at 1 among {records} ECGs, ECG to text and text to ECG: {told}. Black ticks mark chance."
    return FigureResult(fig, alt, {"records": records, "variants": list(reports)})


@figure(
    "08.4", "F1 at thresholds fixed beforehand, beside the oracle's, which chose on these very records, and floors."
)
def thresholds(report: Mapping[str, Any], settings: Mapping[str, Any]) -> FigureResult:
    """Points per class: frozen F1 with its interval, oracle F1, and what random scores reach with an oracle.

    Args:
        report: `score_report` with thresholds.
        settings: what the figures depend on; stands in the digest for them.
    """
    from matplotlib import pyplot as plt

    names = [name for name, found in report["classes"].items() if "f1" in found]
    rows = [report["classes"][name] for name in names]
    fig, ax = plt.subplots(figsize=(8, 3.2), layout="constrained")
    places = np.arange(len(names))
    frozen = [row["f1"] for row in rows]
    # a percentile interval may lie on one side of its value, and a bar can't be shorter than nothing
    spread = [[max(0, f["value"] - f["low"]) for f in frozen], [max(0, f["high"] - f["value"]) for f in frozen]]
    style: dict[str, Any] = {"fmt": "o", "color": BLUE, "capsize": 3, "label": "F1, threshold fixed before"}
    ax.errorbar(places - 0.12, [f["value"] for f in frozen], yerr=spread, **style)
    ax.plot(
        places + 0.12, [row["oracle_f1"]["value"] for row in rows], "D", mfc="none", color=ORANGE, label="oracle F1"
    )
    for place, row in zip(places, rows, strict=True):
        ax.plot([place - 0.3, place + 0.3], [row["floor"]["oracle_f1"]] * 2, color="black", lw=1.8)
    ax.plot([], [], color="black", lw=1.8, label="random scores, oracle")
    ax.set_xticks(places, [f"{name}\nn = {row['positives']}" for name, row in zip(names, rows, strict=True)])
    ax.set(ylabel="F1", ylim=(-0.03, 1.05))
    fig.legend(loc="outside upper center", ncols=3)
    higher = sum(row["oracle_f1"]["value"] > row["f1"]["value"] + 1e-9 for row in rows)
    counts = ", ".join(f"{row['positives']} {name}" for name, row in zip(names, rows, strict=True))
    alt = (
        f"Points of F1 for {len(names)} classes ({counts} records). The oracle, which chose its thresholds on these "
        f"records, is above the honest F1 in {higher} of {len(names)}. Black lines mark what random scores reach."
    )
    return FigureResult(fig, alt, {"classes": names, **settings})


@figure("08.6", "The linear probe with few labels and with all: the mini, a random encoder, and the signal itself.")
def probes(curves: Mapping[str, Mapping[str, Mapping[str, Any]]], where: str) -> FigureResult:
    """Lines of macro-AUC over the number of labels, with each draw as a dot.

    Args:
        curves: `probe_fractions`.
        where: what records they are of.
    """
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
    looks = zip((BLUE, ORANGE, GREEN, PINK), ("o", "s", "^", "D"), ("-", "--", "-.", ":"), strict=True)
    told = []
    for (name, rows), (color, marker, dashes) in zip(curves.items(), looks, strict=False):
        labels = [row["labels"] for row in rows.values()]
        areas = [row["macro_auc"] for row in rows.values()]
        ax.plot(labels, areas, dashes, marker=marker, color=color, label=name.replace("_", " "))
        for row in rows.values():
            ax.plot([row["labels"]] * len(row["values"]), row["values"], marker, color=color, ms=3, alpha=0.5)
        told.append(f"{name.replace('_', ' ')} from {areas[0]:.1f} to {areas[-1]:.1f}")
    first = next(iter(curves.values()))
    lowest = min(0.45, *(min(row["values"]) for rows in curves.values() for row in rows.values()))
    ax.set_xscale("log")
    ticks = [row["labels"] for row in first.values()]
    ax.set_xticks(ticks, [f"{row['labels']}\n{100 * float(share):g} %" for share, row in first.items()])
    ax.xaxis.set_minor_locator(plt.NullLocator())
    ax.axhline(0.5, color="black", lw=0.9, ls=":")
    ax.set(xlabel=f"records with labels ({where})", ylabel="macro-AUC", ylim=(lowest - 0.03, 1.0))
    fig.legend(loc="outside upper center", ncols=4)
    alt = f"Lines of macro-AUC with {ticks[0]} to {ticks[-1]} labeled records, {where}: {'; '.join(told)}."
    return FigureResult(fig, alt, {"labels": ticks, "features": list(curves), "where": where})


@figure("08.7", "Two maps of the same embeddings. The number on each is the share of neighbors of the same finding.")
def maps(
    places: Mapping[str, np.ndarray], findings: Sequence[str], purity: Mapping[str, float], chance: float
) -> FigureResult:
    """Two scatter plots side by side.

    Args:
        places: name of the map → (n, 2).
        findings: the finding of each record.
        purity: name of the map → the neighbors' share.
        chance: the share by chance.
    """
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(1, len(places), figsize=(8, 3.9), layout="constrained")
    kinds = list(dict.fromkeys(findings))
    looks = zip((GREY, BLUE, ORANGE, GREEN, PINK, SKY), ("o", "s", "^", "D", "v", "P"), strict=True)
    styles = dict(zip(kinds, looks, strict=False))
    for ax, (name, points) in zip(axes, places.items(), strict=True):
        for kind, (color, marker) in styles.items():
            chosen = np.array([finding == kind for finding in findings])
            ax.scatter(*points[chosen].T, s=22, c=color, marker=marker, alpha=0.8, lw=0.3, ec="white", label=kind)
        ax.set_title(f"{name}: {100 * purity[name]:.0f} % alike (chance {100 * chance:.0f} %)")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(kinds))
    told = "; ".join(f"{name} {100 * share:.0f} %" for name, share in purity.items())
    alt = (
        f"Two maps of {len(findings)} ECGs, points marked by {len(kinds)} findings ({', '.join(kinds)}). Neighbors of "
        f"the same finding: {told}; by chance {100 * chance:.0f} %."
    )
    return FigureResult(fig, alt, {"records": len(findings), "findings": kinds, "maps": list(places)})


@figure("08.8", "Where the score for a premature beat was lost when a moment was hidden: the darker, the more.")
def looked(
    recording: Recording, moments: np.ndarray, by_lead: np.ndarray, beats: Sequence[float], words: str
) -> FigureResult:
    """ECG paper shaded by occlusion, with arrows at the planted beats.

    Args:
        recording: the ECG.
        moments: (steps,) loss with all leads hidden.
        by_lead: (12, steps) loss with one lead hidden.
        beats: seconds of the planted beats.
        words: the prompt.
    """
    from ecgchat_lib.ecg.paper import MM_PER_SECOND
    from ecgchat_lib.evaluate.explain import draw_importance, drawn_traces

    fig = draw_importance(recording, moments, by_lead=by_lead, title=f'score for "{words}"')
    ax = fig.axes[0]
    traces = drawn_traces(ax)
    strip, left = traces[-1], float(traces[0][0][0])
    foot = float(np.nanmax(strip[1])) + 7
    for beat in beats:
        place = left + beat * MM_PER_SECOND
        head = {"arrowstyle": "-|>", "color": ORANGE, "lw": 2.2}
        ax.annotate("", (place, foot - 5), (place, foot + 1), arrowprops=head, zorder=7)
    shown = ", ".join(f"{beat:.1f}" for beat in beats)
    alt = (
        f"An ECG on paper, each lead and the rhythm strip of lead II shaded where hiding a moment lowers the score for "
        f"{words}. Arrows below the strip mark the planted premature beats, at {shown} s."
    )
    return FigureResult(fig, alt, {"beats": [round(beat, 2) for beat in beats], "words": words})


@figure("08.9", "Nearest neighbors among very many embeddings: speed against how many of the true ones are found.")
def nearest(results: Mapping[str, Any]) -> FigureResult:
    """Points of queries per second over recall, recorded.

    Args:
        results: `data/results/nearest.json`.
    """
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots(figsize=(8, 3.2), layout="constrained")
    told = []
    for kind, color, marker in (("ecg", BLUE, "o"), ("text", ORANGE, "s")):
        rows = [(r["recall_at_10"][kind], r["queries_per_second"]["median"]) for r in results["search"].values()]
        ax.plot(
            *zip(*rows, strict=True), marker, color=color, ms=8, label=f"{'ECG' if kind == 'ecg' else kind} queries"
        )
    for name, row in results["search"].items():
        speed = row["queries_per_second"]["median"]
        found = min(row["recall_at_10"].values())
        ax.annotate(name, (found, speed), xytext=(-9, 0), textcoords="offset points", ha="right", va="center")
        told.append(f"{name} {speed:.0f} a second, recall {found:.2f} or more")
    ax.set_yscale("log")
    low = min(min(row["recall_at_10"].values()) for row in results["search"].values())
    ax.set_xlim(low - 0.3 * (1.02 - low) - 0.03, 1 + 0.04 * (1.02 - low))
    ax.set(xlabel="recall of the true ten nearest", ylabel="queries per second (log)")
    ax.legend(loc="lower left")
    alt = f"Queries per second over recall among {results['rows']:,} embeddings: {'; '.join(told)}."
    return FigureResult(fig, alt, {"rows": results["rows"], "search": list(results["search"])})
