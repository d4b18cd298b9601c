"""Figures of notebook 14: what the base holds, words beside meaning, the graph with its communities, and measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgchat_lib.course.figure import FigureResult, figure
from ecgchat_lib.knowledge.entries import KINDS, URGENCIES, Entry

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, GRAY, QUIET = "#0072B2", "#D55E00", "#009E73", "#9AA5AD", "#5A6875"
URGENCY_COLORS = ("#DCE3E8", "#9CC3DE", "#2E86C1", "#0B3C5D")  # light to dark, so that gray print keeps the order
COMMUNITY_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#4D4D4D", "#D55E00", "#B8A800")
COMMUNITY_MARKS = ("o", "s", "^", "D", "v", "P", "X", "h")
HOW_NAMES = {"bm25": "words (BM25)", "vector": "meaning (vectors)", "hybrid": "both (fusion)", "graph": "graph"}
MEASURE_NAMES = {
    "context_recall@5": "context recall, first 5",
    "precision@5": "precision, first 5",
    "mrr@5": "reciprocal rank (MRR), first 5",
}
STRONG = 2.0  # weight from which on an edge between communities is drawn
Spread = tuple[float, float, float]  # value, lower and upper end of the 95 % interval


@figure("14.1", "What the knowledge base holds: entries by kind, and how soon what they describe needs action.")
def counts(entries: Mapping[str, Entry]) -> FigureResult:
    """Draw stacked bars.

    Args:
        entries: id → entry.
    """
    from matplotlib import pyplot

    table = {kind: [0] * len(URGENCIES) for kind in KINDS}
    for entry in entries.values():
        table[entry.kind][URGENCIES.index(entry.urgency)] += 1
    kinds = sorted((kind for kind in KINDS if sum(table[kind])), key=lambda kind: (-sum(table[kind]), kind))
    drawn, axes = pyplot.subplots(figsize=(8, 0.33 * len(kinds) + 1.1), layout="constrained")
    for number, (urgency, color) in enumerate(zip(URGENCIES, URGENCY_COLORS, strict=True)):
        sizes = np.array([table[kind][number] for kind in kinds])
        left = np.array([sum(table[kind][:number]) for kind in kinds])
        axes.barh(kinds, sizes, 0.74, left, color=color, edgecolor="white", label=urgency)
        for place, (size, start) in enumerate(zip(sizes, left, strict=True)):
            if size > 1:
                ink = "white" if number >= 2 else "black"
                axes.text(start + size / 2, place, str(size), ha="center", va="center", size=8, color=ink)
    for place, kind in enumerate(kinds):
        axes.text(sum(table[kind]) + 0.4, place, str(sum(table[kind])), va="center", size=9, weight="bold")
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel="entries", xlim=(0, 1.06 * max(map(sum, table.values()))))
    axes.legend(loc="lower right", title="needs action", reverse=False)
    alt = (
        f"Bars of {len(entries)} entries by kind, split by urgency ({', '.join(URGENCIES)}). "
        + "; ".join(f"{kind} {sum(table[kind])} ({', '.join(map(str, table[kind]))})" for kind in kinds)
        + "."
    )
    return FigureResult(drawn, alt, table)


BINS = (("1", 1), ("2–3", 3), ("4–10", 10), ("later", 10**9))  # name and last place


@figure("14.2", "Where the gold entry stands: by words (across) and by meaning (down). Off the diagonal one helps out.")
def places(pairs: Sequence[tuple[int | None, int | None]]) -> FigureResult:
    """Draw a table of counts as shades.

    Args:
        pairs: for each question the place of its first gold entry by words and by meaning, from 1; None: not found.
    """
    from matplotlib import pyplot

    names = [name for name, _ in BINS] + ["not found"]
    table = np.zeros((len(names), len(names)), dtype=int)
    for across, down in pairs:
        table[_bin(down), _bin(across)] += 1
    used = [k for k in range(len(names)) if table[k].any() or table[:, k].any() or k < len(BINS)]
    rows = [k for k in used if k < len(BINS) or table[k].any()]
    columns = [k for k in used if k < len(BINS) or table[:, k].any()]
    shown = table[np.ix_(rows, columns)]
    drawn, axes = pyplot.subplots(figsize=(0.95 * len(columns) + 2.2, 0.62 * len(rows) + 1.3), layout="constrained")
    axes.imshow(shown, cmap="Blues", vmin=0, vmax=1.2 * shown.max(), aspect="auto")
    axes.set_xticks(np.arange(1, len(columns)) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, len(rows)) - 0.5, minor=True)
    axes.grid(which="minor", color="white", lw=2.5)
    for y in range(len(rows)):
        for x in range(len(columns)):
            if shown[y, x]:
                ink = "white" if shown[y, x] > 0.7 * shown.max() else "black"
                axes.text(x, y, str(shown[y, x]), ha="center", va="center", color=ink)
    axes.set_xticks(range(len(columns)), [names[k] for k in columns])
    axes.set_yticks(range(len(rows)), [names[k] for k in rows])
    axes.set(xlabel="place by words (BM25)", ylabel="place by meaning (vectors)")
    axes.tick_params(length=0, which="both")
    axes.spines[["left", "bottom"]].set_visible(False)
    both = int(table[:2, :2].sum())
    words_alone, meaning_alone = int(table[2:, :2].sum()), int(table[:2, 2:].sum())
    alt = (
        f"A table of {len(pairs)} questions. Among the first three by words and by meaning: {both}; by words alone: "
        f"{words_alone}; by meaning alone: {meaning_alone}; by neither: "
        f"{len(pairs) - both - words_alone - meaning_alone}."
    )
    return FigureResult(drawn, alt, {"names": names, "table": table})


def _bin(place: int | None) -> int:
    return len(BINS) if place is None else next(k for k, (_, last) in enumerate(BINS) if place <= last)


@figure("14.3", "The entries of the knowledge graph by community; names stand at the most central ones.")
def graph(
    near: Mapping[str, Mapping[str, float]], groups: Sequence[Sequence[str]], entries: Mapping[str, Entry], labels: int
) -> FigureResult:
    """Draw the entries, the relations between them, and the communities as color and shape.

    Args:
        near: node → {neighbor: weight}; entries are the nodes "entry:<id>".
        groups: communities, each a list of nodes; the largest first.
        entries: id → entry.
        labels: how many names in each community.
    """
    from matplotlib import pyplot

    home = {node: number for number, group in enumerate(groups) for node in group if node.startswith("entry:")}
    central = [_central(near, group)[:labels] for group in groups]
    place = _layout(near, home, len(groups))
    drawn, axes = pyplot.subplots(figsize=(9.6, 6.4), layout="constrained")
    for one, other, weight in _edges(near):
        inside = home[one] == home[other]
        if not inside and weight < STRONG:
            continue
        color = COMMUNITY_COLORS[home[one] % 8] if inside else GRAY
        ends, alpha = np.array([place[one], place[other]]), 0.4 if inside else 0.12
        axes.plot(*ends.T, color=color, lw=0.5 + 0.3 * weight, alpha=alpha, zorder=1)
    for number, group in enumerate(groups):
        nodes = [node for node in group if node in place and node not in central[number]]
        style: dict[str, Any] = {"marker": COMMUNITY_MARKS[number % 8], "color": COMMUNITY_COLORS[number % 8]}
        for kind, size, edge in ((nodes, 46, "white"), (central[number], 190, "black")):
            if kind:
                xy = np.array([place[node] for node in kind])
                axes.scatter(
                    xy[:, 0], xy[:, 1], s=size, edgecolor=edge, lw=0.7 if kind is nodes else 1.1, zorder=2, **style
                )
        ink = "white" if number % 8 in (0, 5) else "black"
        for rank, node in enumerate(central[number], 1):
            axes.text(
                place[node][0],
                place[node][1],
                str(rank),
                ha="center",
                va="center_baseline",
                size=8,
                weight="bold",
                color=ink,
            )
    for number, x, y, side in _blocks(place, groups, labels):
        names = [f"{rank} {_short(entries, node)}" for rank, node in enumerate(central[number], 1)]
        count = sum(node in home for node in groups[number])
        spot: dict[str, Any] = {"ha": side, "va": "top", "linespacing": 1.25, "zorder": 3}
        axes.text(x, y, f"{count} entries", weight="bold", size=9.5, **spot)
        axes.text(x, y - LINE, "\n".join(names), size=9, **spot)
    axes.axis("off")
    heights = [y for _, y in place.values()]
    axes.set(xlim=(-4.1, 4.1), ylim=(min(heights) - 0.1, max(heights) + 0.1))
    words = "; ".join(
        f"{sum(node in home for node in group)} entries, most central {', '.join(_short(entries, n) for n in names)}"
        for group, names in zip(groups, central, strict=True)
        if names
    )
    alt = (
        f"{len(home)} entries as marks in {len(groups)} communities, joined where one names the other (in different "
        f"communities where it is named twice): {words}."
    )
    return FigureResult(drawn, alt, {"home": home, "edges": len(list(_edges(near)))})


def _short(entries: Mapping[str, Entry], node: str) -> str:
    title = entries[node.removeprefix("entry:")].title
    return title if len(title) <= 34 else title[:33].rsplit(" ", 1)[0] + " …"


def _central(near: Mapping[str, Mapping[str, float]], group: Sequence[str]) -> list[str]:
    inside = set(group)
    weight = {node: sum(w for other, w in near[node].items() if other in inside) for node in group}
    return sorted((node for node in group if node.startswith("entry:")), key=lambda n: (-round(weight[n], 9), n))


def _edges(near: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str, float]]:
    return [
        (one, other, weight)
        for one, others in near.items()
        for other, weight in others.items()
        if one < other and one.startswith("entry:") and other.startswith("entry:")
    ]


def _layout(near: Mapping[str, Mapping[str, float]], home: Mapping[str, int], groups: int) -> dict[str, Any]:
    """Return a place for each entry: springs pull what is joined, and each community to a spot on an ellipse."""
    nodes = sorted(home)
    row = {node: number for number, node in enumerate(nodes)}
    sizes = np.bincount([home[node] for node in nodes], minlength=groups).astype(float)
    share = np.cumsum(sizes) - sizes / 2
    angle = 2 * np.pi * share / sizes.sum() + 0.6
    spots = np.stack([1.75 * np.cos(angle), 1.15 * np.sin(angle)], axis=1)
    rng = np.random.default_rng(3)
    at = spots[[home[node] for node in nodes]] + rng.normal(0, 0.3, (len(nodes), 2))
    pull = np.zeros((len(nodes), len(nodes)))
    for one, other, weight in _edges(near):
        both = 1.0 if home[one] == home[other] else 0.12
        pull[row[one], row[other]] = pull[row[other], row[one]] = both * min(weight, 3.0)
    anchor = spots[[home[node] for node in nodes]]
    for step in range(250):
        away = at[:, None] - at[None]
        distance = np.sqrt((away**2).sum(-1) + 1e-6)
        force = (away * (0.022 / distance**2 - 0.05 * pull * distance)[..., None]).sum(1) + 0.9 * (anchor - at)
        length = np.sqrt((force**2).sum(1, keepdims=True)) + 1e-9
        at = at + force / length * np.minimum(length * 0.05, 0.12 * (1 - step / 250))
    return dict(zip(nodes, at.tolist(), strict=True))


LINE = 0.135  # height of a line of text in the picture's units


def _blocks(
    place: Mapping[str, Any], groups: Sequence[Sequence[str]], labels: int
) -> list[tuple[int, float, float, str]]:
    """Return where the names of each community stand, beside it: (community, x, upper end, "left" or "right")."""
    found: list[tuple[int, float, float, str]] = []
    for number, group in enumerate(groups):
        xy = np.array([place[node] for node in group if node in place])
        if len(xy):
            right = float(xy[:, 0].mean()) > -0.1
            x = float(xy[:, 0].max()) + 0.12 if right else float(xy[:, 0].min()) - 0.12
            middle = float(xy[:, 1].mean()) + 0.5 * LINE * (labels + 1)
            found.append((number, x, middle, "left" if right else "right"))
    apart = []
    for side in ("left", "right"):
        above = float("inf")
        for number, x, y, _ in sorted((one for one in found if one[3] == side), key=lambda one: -one[2]):
            apart.append((number, x, min(y, above), side))
            above = min(y, above) - LINE * (labels + 1.6)
    return apart


@figure("14.4", "How good the four ways of finding are, with 95 % intervals over questions.")
def measures(
    live: Mapping[str, Mapping[str, Spread]], recorded: Mapping[str, Mapping[str, Spread]], asked: tuple[int, int]
) -> FigureResult:
    """Draw a point with its interval for each way and measure.

    Args:
        live: way → measure → (value, low, high), of this notebook's run.
        recorded: the same, of the recorded run over all test questions; empty if there is none.
        asked: number of questions, live and recorded.
    """
    from matplotlib import pyplot

    drawn, panels = pyplot.subplots(1, len(MEASURE_NAMES), figsize=(9.6, 2.7), sharey=True, layout="constrained")
    runs = (
        (live, ORANGE, "o", f"live, {asked[0]} questions"),
        (recorded, BLUE, "D", f"recorded, {asked[1]} questions"),
    )
    shown = [run for run in runs if run[0]]
    ways = list(live)
    for axes, (name, title) in zip(panels, MEASURE_NAMES.items(), strict=True):
        for number, (values, color, mark, label) in enumerate(shown):
            found = np.array([values[how][name] for how in ways])
            y = np.arange(len(ways)) + 0.24 * (number - (len(shown) - 1) / 2)
            spread = np.abs(found[:, 1:] - found[:, :1]).T
            axes.errorbar(found[:, 0], y, xerr=spread, fmt=mark, color=color, ms=5, capsize=2, lw=1.3, label=label)
        axes.set(title=title, xlim=(0, 1.0), xticks=[0, 0.25, 0.5, 0.75], ylim=(len(ways) - 0.5, -0.5))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="#E6EAED", lw=0.8)
        axes.set_axisbelow(True)
    panels[0].set_yticks(range(len(ways)), [HOW_NAMES[how] for how in ways])
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    words = "; ".join(
        f"{label}: "
        + ", ".join(
            f"{HOW_NAMES[how]} " + " / ".join(f"{values[how][name][0]:.2f}" for name in MEASURE_NAMES) for how in ways
        )
        for values, _, _, label in shown
    )
    alt = f"Points with intervals for {', '.join(MEASURE_NAMES.values())}, in this order. {words}."
    return FigureResult(drawn, alt, {"live": live, "recorded": recorded})


def _bars(axes: Axes, rows: Sequence[tuple[str, Spread | None]], color: str) -> None:
    for place, (_, spread) in enumerate(rows):
        if spread is None:
            axes.text(0.02, place, "nothing was shown", va="center", size=8, color=QUIET)
            continue
        value, low, high = spread
        axes.barh(place, value, 0.62, color=color)
        axes.errorbar([value], [place], xerr=[[value - low], [high - value]], color="black", capsize=2, lw=1)
        axes.text(high + 0.02, place, f"{value:.2f}", va="center", size=8)


@figure("14.5", "Recorded answers to the test questions: right by gold facts, and held up by what was shown.")
def answers(
    rows: Sequence[tuple[str, Spread, Spread | None]], asked: Mapping[str, int], bounds: Mapping[str, float]
) -> FigureResult:
    """Draw two panels of bars with intervals.

    Args:
        rows: (who answers, right, faithful to what was shown; None where nothing was shown).
        asked: number of questions, by kind of answer.
        bounds: what bounds the share of right answers → the share, drawn as lines.
    """
    from matplotlib import pyplot

    drawn, panels = pyplot.subplots(1, 2, figsize=(9.6, 0.34 * len(rows) + 1.3), sharey=True, layout="constrained")
    _bars(panels[0], [(name, right) for name, right, _ in rows], BLUE)
    _bars(panels[1], [(name, faithful) for name, _, faithful in rows], GREEN)
    for (name, share), style in zip(bounds.items(), (":", "--"), strict=False):
        panels[0].axvline(share, color=ORANGE, ls=style, lw=1.4, label=name, zorder=0)
    if bounds:
        drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    panels[0].set_yticks(range(len(rows)), [name for name, _, _ in rows])
    panels[0].invert_yaxis()
    for axes, title in zip(panels, ("right: all gold facts stated", "faithful: sentences held up"), strict=True):
        axes.set(title=title, xlim=(0, 1.14), xticks=[0, 0.25, 0.5, 0.75, 1.0], xlabel="share")
        axes.tick_params(axis="y", length=0)
    words = "; ".join(
        f"{name}: {right[0]:.2f} right" + (f", {faithful[0]:.2f} faithful" if faithful else "")
        for name, right, faithful in rows
    )
    counted = ", ".join(f"{number} questions {kind}" for kind, number in asked.items())
    lines = "".join(f" Line, {name}: {share:.2f}." for name, share in bounds.items())
    alt = f"Two panels of bars with 95 % intervals ({counted}). {words}.{lines}"
    values = {"rows": [list(row) for row in rows], "asked": dict(asked), "bounds": dict(bounds)}
    return FigureResult(drawn, alt, values)
