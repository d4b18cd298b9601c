"""Where a model looked: attention roll-out over the encoder's blocks, and occlusion of leads and moments.

Roll-out tells where information could flow from, occlusion what the score really loses when something is hidden; both
are drawn on the ECG paper. Neither says why, and neither is a check that a finding is right. Taught in: 08 §8.
Sources: Abnar and Zuidema 2020, arXiv 2005.00928; Zeiler and Fergus 2014, arXiv 1311.2901.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ecgchat_lib.coca.encoder import EcgEncoder
from ecgchat_lib.ecg.leads import LEADS
from ecgchat_lib.ecg.paper import MM_PER_SECOND, draw_paper
from ecgchat_lib.errors import ParameterError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ecgchat_lib.ecg.recording import Recording

BATCH = 64
SHADE = "#0072B2"  # dark enough under gray and told apart from the paper's red by every kind of color vision
DARKEST = 0.55  # opacity of the largest value: the trace stays readable
TRACE_WIDTH = 0.75  # points; no other line on the paper has it
BAND_MM = 9.0  # above and below a trace's baseline that are shaded


@torch.inference_mode()
def attention_maps(windows: torch.Tensor, encoder: EcgEncoder) -> torch.Tensor:
    """Return the attention of every block: (n, layers, heads, tokens, tokens); each row sums to 1.

    The blocks don't hand their attention out, so it is computed beside them, from the very tokens that go in, and the
    attention's output is compared with the one that the block used.

    Args:
        windows: (n, 12, samples), as `front_end` makes them.
        encoder: the encoder; it is set to evaluation.
    """
    encoder.eval()
    tokens, maps = encoder.embed_patches(windows.float()), []
    for block in encoder.transformer.resblocks:
        normed = block.ln_1(tokens)
        attended, weights = block.attn(normed, normed, normed, need_weights=True, average_attn_weights=False)
        torch.testing.assert_close(attended, block.attention(normed), rtol=1e-3, atol=1e-4)
        maps.append(weights)
        tokens = block(tokens)
    return torch.stack(maps, dim=1)


def rollout(attention: torch.Tensor) -> torch.Tensor:
    """Return how much of each token reaches each token through all blocks: (n, tokens, tokens), rows sum to 1.

    The heads are averaged; a block passes on half of what came in (its shortcut) and half of what it attends to:
    A = (attention + 1) / 2, and the blocks' matrices are multiplied. Row 0 is the CLS token's.

    Args:
        attention: (n, layers, heads, tokens, tokens).
    """
    mean = attention.mean(dim=2)
    same = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
    flow = same.expand(len(mean), -1, -1)
    for layer in range(mean.shape[1]):
        flow = (mean[:, layer] + same) / 2 @ flow
    return flow


def moments_attended(windows: torch.Tensor, encoder: EcgEncoder) -> NDArray[np.float64]:
    """Return (n, patches): the share of each patch in the CLS token by roll-out, summing to 1 over the patches."""
    shares = torch.cat([rollout(attention_maps(part, encoder))[:, 0, 1:] for part in windows.split(BATCH)])
    return np.asarray((shares / shares.sum(dim=1, keepdim=True)).double().numpy())


@dataclass(frozen=True)
class Occlusion:
    """What a score loses when a piece of the ECG is hidden.

    Attributes:
        drop: (groups of leads, steps): score as it is minus score with the piece hidden; below 0 where hiding helps.
        starts: (steps,) seconds at which each piece begins.
        seconds: a piece's length.
        score: as it is.
        leads: names of the leads that were hidden together, group by group.
    """

    drop: NDArray[np.float64]
    starts: NDArray[np.float64]
    seconds: float
    score: float
    leads: tuple[tuple[str, ...], ...]

    def at(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean drop (groups, times) over the pieces that hide each time in seconds; NaN where none does."""
        covers = (times >= self.starts[:, None]) & (times < self.starts[:, None] + self.seconds)  # (steps, times)
        hidden = covers.sum(axis=0)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.where(hidden > 0, self.drop @ covers / hidden, np.nan))


EACH_LEAD: tuple[tuple[str, ...], ...] = tuple((lead,) for lead in LEADS)
ALL_LEADS: tuple[tuple[str, ...], ...] = (tuple(LEADS),)


def occlusion(
    window: torch.Tensor,
    score: Callable[[torch.Tensor], torch.Tensor],
    *,
    fs: float,
    seconds: float = 0.5,
    step: float = 0.25,
    leads: Sequence[Sequence[str]] = EACH_LEAD,
) -> Occlusion:
    """Hide one piece after another, and see what the score loses.

    A piece is replaced by the straight line between its ends, so that no step appears that no heart makes. Leads that
    tell the same can cover for each other: hide them together (`ALL_LEADS`) to find a moment.

    Args:
        window: (12, samples), as `front_end` makes it.
        score: windows (n, 12, samples) → (n,) numbers, such as the cosine to a prompt.
        fs: of the window, Hz.
        seconds: length of a piece; the window's length hides whole leads.
        step: seconds from one piece to the next.
        leads: groups of lead names that are hidden together.

    Raises:
        ParameterError: another shape, a piece that is longer than the window or shorter than two samples, a step below
            one sample, or an unknown lead.
    """
    if window.ndim != 2 or window.shape[0] != len(LEADS):
        raise ParameterError(f"occlusion reads one window (12, samples), but got {tuple(window.shape)}")
    length, stride, total = round(seconds * fs), round(step * fs), window.shape[1]
    if not 2 <= length <= total or stride < 1:
        raise ParameterError(f"pieces of {seconds} s every {step} s don't fit a window of {total / fs:g} s")
    unknown = {lead for group in leads for lead in group} - set(LEADS)
    if unknown or not leads or not all(leads):
        raise ParameterError(f"leads {sorted(unknown) or leads!r}: expected groups of {', '.join(LEADS)}")
    firsts = np.arange(0, total - length + 1, stride)
    jobs = [(group, int(first)) for group in leads for first in firsts]
    found = []
    for place in range(0, len(jobs), BATCH):
        hidden = torch.stack([_hide(window, group, first, length) for group, first in jobs[place : place + BATCH]])
        found.append(score(hidden).detach().double())
    whole = float(score(window[None]).detach().double()[0])
    drop = (whole - torch.cat(found)).numpy().reshape(len(leads), len(firsts))
    return Occlusion(drop, firsts / fs, length / fs, whole, tuple(tuple(group) for group in leads))


def _hide(window: torch.Tensor, group: Sequence[str], first: int, length: int) -> torch.Tensor:
    hidden, rows = window.clone(), [LEADS.index(lead) for lead in group]
    ends = window[rows, first], window[rows, first + length - 1]
    ramp = torch.linspace(0, 1, length, dtype=window.dtype)
    hidden[rows, first : first + length] = ends[0][:, None] + (ends[1] - ends[0])[:, None] * ramp
    return hidden


def draw_importance(
    recording: Recording,
    moments: NDArray[np.float64],
    *,
    by_lead: NDArray[np.float64] | None = None,
    seconds: float = 10.0,
    layout: str = "3x4+1",
    title: str | None = None,
) -> Figure:
    """Draw a recording on the ECG paper, shaded where something counts; the darkest shade is the largest value.

    Args:
        recording: what is drawn.
        moments: (steps,) at even distances over `seconds`; shades the rhythm strip (or every trace, where the layout
            has no strip or `by_lead` isn't given). What isn't above 0, or is NaN, stays white.
        by_lead: (12, steps), shades each lead's own trace, on a scale of its own.
        seconds: how much is drawn.
        layout: as `draw_paper`.
        title: the header's first words.

    Raises:
        ParameterError: shapes don't fit, or as `draw_paper`.
    """
    if moments.ndim != 1 or not len(moments) or (by_lead is not None and by_lead.shape[:1] != (len(LEADS),)):
        raise ParameterError("moments must be (steps,) and by_lead (12, steps)")
    figure = draw_paper(recording, layout=layout, seconds=seconds, title=title)
    axes = figure.axes[0]
    traces = drawn_traces(axes)
    left = min((float(x[0]) for x, _ in traces if len(x)), default=0.0)
    strips = len(traces) - len(LEADS)
    columns = {"3x4+1": 4, "6x2": 2, "12x1": 1}[layout]
    per_column = len(LEADS) // columns
    for number, (x, y) in enumerate(traces):
        is_strip = strips > 0 and number >= len(LEADS)
        lead = (number % columns) * per_column + number // columns
        values = moments if is_strip or by_lead is None else by_lead[lead]
        if by_lead is None and strips > 0 and not is_strip:
            continue
        largest = np.nanmax(values if is_strip or by_lead is None else by_lead, initial=0.0)
        if largest > 0 and np.isfinite(y).any():
            _shade(axes, values / largest, x, float(np.nanmedian(y)), left, seconds)
    return figure


def drawn_traces(axes: Axes) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return x and y in mm of the traces that `draw_paper` drew, row by row."""
    lines = [line for line in axes.lines if line.get_linewidth() == TRACE_WIDTH]
    return [(np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float)) for line in lines]


def _shade(
    axes: Axes, values: NDArray[np.float64], x: NDArray[np.float64], baseline: float, left: float, seconds: float
) -> None:
    """Shade the stretch of paper under one trace, x in mm, by values (steps,) over the whole time."""
    from matplotlib.patches import Rectangle

    width = seconds * MM_PER_SECOND / len(values)
    for step, value in enumerate(np.nan_to_num(values)):
        start, end = max(left + step * width, x[0]), min(left + (step + 1) * width, x[-1])
        if value > 0 and end > start:
            band = (start, baseline - BAND_MM), end - start, 2 * BAND_MM
            opacity = DARKEST * math.sqrt(min(value, 1.0))  # by square root, or all but the peak looks white
            axes.add_patch(Rectangle(*band, facecolor=SHADE, edgecolor="none", alpha=opacity, zorder=2))
