"""Electrodes in each other's place: what the twelve leads become, how to undo it, and how to notice it.

The algebra is exact. Noticing is a linear model on the average beat: it knows how the waves of a heart usually stand to
each other, so it can be wrong where a heart is unusual. `benchmarks/fit_reversal.py` fits it on recordings whose
electrodes this module's own algebra exchanged. Taught in: 01 §8.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from ecgchat_lib.ecg.leads import LEADS
from ecgchat_lib.errors import MissingPartError, ParameterError
from ecgchat_lib.paths import data_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

LIMB_SWAPS = ("RA/LA", "RA/LL", "LA/LL")
CHEST_SWAPS = ("V1/V2", "V2/V3", "V3/V4", "V4/V5", "V5/V6", "V1/V3", "V4/V6")
FLAT_SWAPS = {"II": "RA/RL", "III": "LA/RL"}  # the lead that goes flat, since both legs have nearly one potential
SWAPS: tuple[str, ...] = (*LIMB_SWAPS, *FLAT_SWAPS.values(), *CHEST_SWAPS)
MODEL = "weights/ecg-reversal/weights.json"  # inside data/

BEAT_FS = 125.0  # Hz of the average beat
BEFORE, AFTER = 38, 75  # samples kept around the R peak
REACH = 4  # samples that a beat may be moved to lie on the others
MOST_BEATS = 60  # more don't make the average better
FLAT_RATIO = 0.12  # of the larger of the two others: below that, a limb lead is as good as flat
TINY_RATIO = 0.1  # of the chest leads' median: with so small a lead among them, the model has nothing to go by
_INDEPENDENT = [0, 1, 6, 7, 8, 9, 10, 11]  # I, II, V1-V6: the other four follow from them


@dataclass(frozen=True)
class AverageBeat:
    """The average of a recording's beats.

    Attributes:
        signal: float64 `(12, BEFORE + AFTER)` in mV at `BEAT_FS`; the R peak is sample `BEFORE`.
        rr_seconds: median time between beats; 0.8 if there is one beat only.
        beats: how many beats were found.
        likeness: how much the QRS complexes resemble their average, in all leads together: median correlation, up to 1.
    """

    signal: NDArray[np.float64]
    rr_seconds: float
    beats: int
    likeness: float


@dataclass(frozen=True)
class Reversal:
    """An exchange of two electrodes that would explain the recording.

    Attributes:
        swap: one of `SWAPS`.
        score: how much likelier than no exchange, as natural logarithm of the odds; for a flat lead, how small it is.
        limit: the score from which on it is called; for a flat lead, the greatest ratio.
    """

    swap: str
    score: float
    limit: float


def derive_limb_leads(lead_i: NDArray[np.floating], lead_ii: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return I, II, III, aVR, aVL and aVF, `(6, time)`, from I and II (Einthoven 1913, Goldberger 1942)."""
    i, ii = np.asarray(lead_i, dtype=np.float64), np.asarray(lead_ii, dtype=np.float64)
    return np.stack([i, ii, ii - i, -(i + ii) / 2, i - ii / 2, ii - i / 2])


def swap_electrodes(signal: NDArray[np.floating], swap: str) -> NDArray[np.float64]:
    """Return what would have been recorded with two electrodes in each other's place.

    Exchanges among the right arm (RA), left arm (LA) and left leg (LL), and among chest electrodes, undo themselves:
    the same exchange again gives the true leads back. Those with the right leg (RL) lose a lead for good.

    Args:
        signal: `(12, time)` in mV, in the order of `LEADS`.
        swap: one of `SWAPS`.

    Returns:
        float64, same shape. The six limb leads are derived anew from I and II. Both legs are taken to have the same
        potential. Source: Sensors 19 (2019) 2920, doi 10.3390/s19132920, where Wilson's terminal moves too.

    Raises:
        ParameterError: another exchange.
    """
    if swap not in SWAPS:
        raise ParameterError(f"swap {swap!r}: expected one of {', '.join(SWAPS)}")
    result = np.array(signal, dtype=np.float64)
    i, ii = result[0].copy(), result[1].copy()
    iii = ii - i
    if swap in CHEST_SWAPS:
        one, other = (LEADS.index(name) for name in swap.split("/"))
        result[[one, other]] = result[[other, one]]
    pairs = {"RA/LA": (-i, iii), "RA/LL": (-iii, -ii), "LA/LL": (ii, i), "RA/RL": (-iii, 0 * ii), "LA/RL": (ii, ii)}
    result[:6] = derive_limb_leads(*pairs.get(swap, (i, ii)))
    if swap.endswith("RL"):  # Wilson's terminal, which the chest leads are measured against, moves too
        result[6:] -= (ii if swap == "RA/RL" else iii) / 3
    return result


def average_beat(slow: NDArray[np.floating], peaks: NDArray[np.int64]) -> AverageBeat | None:
    """Lay the beats on each other and average them.

    Args:
        slow: `(12, time)` in mV at `BEAT_FS`, without drift and noise.
        peaks: R peaks in samples.

    Returns:
        The average (a median) beat, or None if fewer than two beats lie wholly inside.
    """
    margin = REACH + 1
    inside = peaks[(peaks >= BEFORE + margin) & (peaks + AFTER + margin < slow.shape[1])][:MOST_BEATS]
    if len(inside) < 2:
        return None
    core = np.arange(-10 - REACH, 11 + REACH)
    scale = slow.std(axis=1, keepdims=True)
    near = (slow / np.where(scale > 1e-6, scale, np.inf))[:, inside[:, None] + core]  # (lead, beat, time)
    views = np.lib.stride_tricks.sliding_window_view(near, 21, axis=2)  # (lead, beat, shift, time)
    views = views - views.mean(axis=-1, keepdims=True)
    shifts = np.full(len(inside), REACH)
    every = np.arange(len(inside))
    for _ in range(2):
        template = np.median(views[:, every, shifts], axis=1)
        shifts = np.einsum("lbst,lt->bs", views, template).argmax(axis=1)
    chosen = views[:, every, shifts]
    template = np.median(chosen, axis=1)
    sizes = np.sqrt((chosen**2).sum(axis=(0, 2)) * (template**2).sum())
    likeness = np.median(np.einsum("lbt,lt->b", chosen, template) / np.maximum(sizes, 1e-12))
    whole = (inside + shifts - REACH)[:, None] + np.arange(-BEFORE, AFTER)
    beat = np.median(slow[:, whole], axis=1)
    gaps = np.diff(peaks)
    rr = float(np.median(gaps)) / BEAT_FS if len(gaps) else 0.8
    return AverageBeat(beat, rr, len(peaks), float(likeness))


def beat_features(beat: AverageBeat) -> NDArray[np.float64]:
    """Return what the linear model looks at: `(feature,)`, no unit.

    For P, QRS and T of each lead its mean, highest and lowest point and the share that each limb lead has in the wave;
    for each two leads how alike they are over the whole beat and over each wave; and how large each chest lead is
    beside the others. Limb leads are divided by their common size, each chest lead by its own, so that no gain matters.
    """
    x = beat.signal[_INDEPENDENT]
    x = x - np.median(x[:, BEFORE - 12 : BEFORE - 8], axis=1, keepdims=True)  # just before the QRS complex
    size = np.sqrt((x[:, BEFORE - 9 : BEFORE + 10] ** 2).mean(axis=1, keepdims=True)) + 1e-6
    relative = np.log(size[2:, 0]) - np.log(size[2:, 0]).mean()
    size[:2] = np.sqrt((size[:2] ** 2).mean())
    x = x / size
    leads = np.concatenate([x[:2], x[1:2] - x[:1], x[2:]])  # I, II, III, V1-V6
    p_on = BEFORE - round(min(0.26, 0.16 + 0.12 * beat.rr_seconds) * BEAT_FS)
    t_off = min(BEFORE + round(min(0.55, 0.12 + 0.42 * beat.rr_seconds**0.5) * BEAT_FS), leads.shape[1])
    p, qrs, t = leads[:, p_on : BEFORE - 8], leads[:, BEFORE - 9 : BEFORE + 10], leads[:, BEFORE + 13 : t_off]
    line = np.linspace(0, 1, p.shape[1])
    p = p - (p[:, :1] * (1 - line) + p[:, -1:] * line)
    found: list[NDArray[np.float64]] = []
    for wave, gain, least in ((qrs, 1.0, 0.01), (p, 6.0, 0.003), (t, 2.0, 0.003)):
        for weight, part in ((1.0, wave.mean(axis=1)), (0.5, wave.max(axis=1)), (0.5, wave.min(axis=1))):
            found += [gain * weight * part, 2 * part[:3] / (np.linalg.norm(part[:3]) + least)]
        strength = np.linalg.norm(wave[:3], axis=1)
        found.append(2 * strength / (np.linalg.norm(strength) + 0.02))
    found += [_likeness(wave) for wave in (leads[:, p_on:t_off], qrs, t, p)]
    found += [2 * relative, 2 * np.diff(relative)]
    return np.clip(np.concatenate(found), -5, 5)


def _likeness(wave: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the correlation of each two leads, drawn to 0 where a lead shows next to nothing."""
    centered = wave - wave.mean(axis=1, keepdims=True)
    centered /= np.sqrt((centered**2).sum(axis=1, keepdims=True)) + 0.01 * wave.shape[1] ** 0.5
    return np.asarray((centered @ centered.T)[np.triu_indices(len(wave), 1)])


def find_reversal(beat: AverageBeat) -> Reversal | None:
    """Return the exchange that explains this beat best, if it explains it much better than none.

    Args:
        beat: of a rhythm without pacemaker; most certain where there is a P wave.

    Raises:
        MissingPartError: the model's file isn't there.
    """
    window = beat.signal[:3, BEFORE - 25 : BEFORE + 50]
    spans = np.ptp(window, axis=1)
    rest = float(np.ptp(window[0] + window[2] - window[1]))
    for lead, swap in FLAT_SWAPS.items():
        row = LEADS.index(lead)
        largest = max(float(np.delete(spans, row).max()), 1e-9)
        if max(float(spans[row]), rest) < FLAT_RATIO * largest:  # a lead that fell off would break Einthoven's identity
            return Reversal(swap, float(spans[row]) / largest, FLAT_RATIO)
    if spans.min() < FLAT_RATIO * spans.max() / 2:
        return None
    model = _model()
    scores = (beat_features(beat) - model.middle) / model.spread @ model.weight.T + model.bias
    best = int(np.argmax(scores - model.limits))
    spans = np.ptp(beat.signal[6:], axis=1)
    if scores[best] <= model.limits[best] or spans.min() < TINY_RATIO * np.median(spans):
        return None
    return Reversal(model.swaps[best], float(scores[best]), float(model.limits[best]))


@dataclass(frozen=True)
class _Model:
    swaps: tuple[str, ...]
    middle: NDArray[np.float64]  # (feature,)
    spread: NDArray[np.float64]  # (feature,)
    weight: NDArray[np.float64]  # (swap, feature): log odds against no exchange
    bias: NDArray[np.float64]  # (swap,)
    limits: NDArray[np.float64]  # (swap,)


@cache
def _model() -> _Model:
    path = data_folder() / MODEL
    if not path.is_file():
        raise MissingPartError(
            path.name, "not in data/weights/ecg-reversal", "Restore it, or run benchmarks/fit_reversal.py"
        )
    content = json.loads(path.read_text(encoding="utf-8"))
    arrays = {name: np.asarray(content[name]) for name in ("middle", "spread", "weight", "bias", "limits")}
    return _Model(tuple(content["swaps"]), **arrays)
