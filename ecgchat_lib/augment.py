"""Batch augmentations of ECGs that keep the report true: disturbances, masks, and small changes of size and time.

Each function changes a known share of the records of a batch, draws everything from one generator, and gives the same
draws on every device. Disturbances are drawn per electrode and projected to the leads, so Einthoven's law survives.
Nothing here mixes two patients, and what changes a measured number tells by how much. Taught in: 04.

Sources: the choice follows the released ECG-Chat (baseline wander p .5, masking p .3; after torch_ecg), with its errors
mended; amplitudes of electrode noise as in Moody et al., Computers in Cardiology 11 (1984) 381.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import lru_cache, partial
from typing import NamedTuple

import torch

from ecgchat_lib.errors import ParameterError

ELECTRODES: tuple[str, ...] = ("RA", "LA", "LL", "V1", "V2", "V3", "V4", "V5", "V6")
RATES: tuple[float, ...] = (100.0, 128.0, 200.0, 250.0, 360.0)  # Hz, at which other recorders and datasets sample
MOST_WARP = 0.03  # largest change of the local speed: 3 % of an RR interval of 800 ms are 24 ms
PIECE = 2**20  # samples changed at a time on a CPU: what its cache holds

# What a measured number is multiplied by: the time factor to the first power, the size factor to the second.
# Bazett's QTc is QT / sqrt(RR), Fridericia's QT / cbrt(RR); the names are the fields of `ecg.measure.Measurements`.
POWERS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("rr_ms", "rr_sd_ms", "pr_ms", "qrs_ms", "qrs_global_ms", "qt_ms"), (1, 0)),
    "qtc_ms": (1 / 2, 0),
    "qtc_fridericia_ms": (2 / 3, 0),
    "heart_rate_bpm": (-1, 0),
    "axis_deg": (0, 0),
    **dict.fromkeys(("p_mv", "r_mv", "t_mv"), (0, 1)),
}


class Factors(NamedTuple):
    """By how much an augmentation changed what can be measured in each record; 1 where it changed nothing.

    Attributes:
        time: (batch,) intervals were multiplied by it.
        size: (batch,) voltages were multiplied by it.
    """

    time: torch.Tensor
    size: torch.Tensor

    def of(self, names: Sequence[str]) -> torch.Tensor:
        """Return what each measurement was multiplied by, (batch, len(names)): `numbers * factors.of(names)`.

        Raises:
            ParameterError: a name that isn't in `POWERS`.
        """
        unknown = [name for name in names if name not in POWERS]
        if unknown:
            raise ParameterError(f"Factors.of: found {unknown}, expected names among {', '.join(POWERS)}")
        return torch.stack([self.time ** POWERS[name][0] * self.size ** POWERS[name][1] for name in names], dim=1)


def electrode_matrix() -> torch.Tensor:
    """Return the weights that turn nine electrode potentials into twelve leads, float32 (12, 9).

    Rows I II III aVR aVL aVF V1–V6; columns `ELECTRODES`. Chest leads are against Wilson's terminal, the mean of RA, LA
    and LL. I + III = II and aVR + aVL + aVF = 0 hold for every potential.
    """
    third = 1 / 3
    limb = [[-1, 1, 0], [-1, 0, 1], [0, -1, 1], [1, -0.5, -0.5], [-0.5, 1, -0.5], [-0.5, -0.5, 1]]
    matrix = torch.zeros(12, 9)
    matrix[:6, :3] = torch.tensor(limb)
    matrix[6:, :3] = -third
    matrix[6:, 3:] = torch.eye(6)
    return matrix


# Each augmentation first draws everything for the whole batch, which is little, and gives back a change: a function
# that alters some records in place. `_apply` hands it a copy of the batch, a few records at a time.

_Change = Callable[[torch.Tensor, slice], None]  # records (n, 12, time), float32 or float64, and which of the batch


def _apply(ecg: torch.Tensor, changes: Sequence[_Change]) -> torch.Tensor:
    """Return a copy of the batch with the changes in their order.

    On a CPU, a few records go through all changes before the next ones: whole batches between the changes would travel
    to the memory and back each time, and that takes longer than the arithmetic. A GPU takes the batch at once.
    """
    working = torch.promote_types(ecg.dtype, torch.float32)  # halves are too coarse to compute with
    result = torch.empty_like(ecg, memory_format=torch.contiguous_format)
    size = max(1, PIECE // ecg[0].numel()) if ecg.device.type == "cpu" else len(ecg)
    for first in range(0, len(ecg), size):
        rows = slice(first, first + size)
        piece = result[rows].copy_(ecg[rows]) if working == ecg.dtype else ecg[rows].to(working)
        for change in changes:
            change(piece, rows)
        if working != ecg.dtype:
            result[rows].copy_(piece)
    return result


def _of_chosen(chosen: torch.Tensor, alter: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> _Change:
    """Return a change of the chosen records alone.

    `alter` takes them, (n, 12, time), with their numbers in the batch, (n,), and returns them altered.
    """

    def change(piece: torch.Tensor, rows: slice) -> None:
        within = chosen[rows].nonzero()[:, 0]
        if len(within):
            index = within.to(piece.device)
            piece.index_copy_(0, index, alter(piece.index_select(0, index), within + rows.start))

    return change


def _check(ecg: torch.Tensor, probability: float) -> None:
    if ecg.dim() != 3 or ecg.shape[1] != 12 or 0 in ecg.shape:
        raise ParameterError(
            f"ecg: found shape {tuple(ecg.shape)}, expected (batch, 12, time). Add a batch axis: ecg[None]"
        )
    if not ecg.is_floating_point():
        raise ParameterError(f"ecg: found {ecg.dtype}, expected floating point millivolts. Convert it: ecg.float()")
    if not 0 <= probability <= 1:
        raise ParameterError(f"probability {probability}: expected 0 to 1")


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low


def _chosen(batch: int, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Which records are changed: bool (batch,), each with the probability, on its own."""
    return _uniform((batch,), 0.0, 1.0, generator) < probability


def _factors(batch: int, probability: float, most: float, generator: torch.Generator) -> torch.Tensor:
    """Draw a factor per record, (batch,): 1 - `most` to 1 + `most` with the probability, else exactly 1."""
    factor = _uniform((batch,), 1 - most, 1 + most, generator)
    return torch.where(_chosen(batch, probability, generator), factor, 1.0)


def _to_leads(potentials: torch.Tensor) -> torch.Tensor:
    """Electrode potentials (batch, 9, anything) → leads (batch, 12, anything)."""
    return electrode_matrix().to(potentials.device) @ potentials


def _add(piece: torch.Tensor, weights: torch.Tensor, signals: torch.Tensor) -> None:
    """Add signals (n, k, time) to the records with the leads' weights (n, 12, k); 0 in those that stay."""
    piece.baddbmm_(weights.to(piece), signals.to(piece))


def _read(part: torch.Tensor, move: torch.Tensor) -> torch.Tensor:
    """Return each record (n, 12, time) read at sample number + `move` (n, time): cubic between samples, ends held.

    Keys' cubic convolution, IEEE Trans ASSP 29 (1981) 1153, over the four nearest samples. All leads of a sample are
    read together, so time comes first while reading.
    """
    n, leads, total = part.shape
    whole = move.floor()
    weights = _keys_weights().to(part)[((move - whole) * 1024).round().long().to(part.device)]  # (n, time, 4)
    count = partial(torch.arange, dtype=torch.int32, device=part.device)  # half the bytes of torch's usual numbers
    start = count(total) + whole.to(dtype=torch.int32, device=part.device)
    nearest = (start[..., None] + count(-1, 3)).clamp_(0, total - 1)  # (n, time, 4)
    nearest += total * count(n)[:, None, None]
    samples = part.transpose(1, 2).reshape(n * total, leads)
    read = torch.nn.functional.embedding_bag(
        nearest.view(-1, 4), samples, per_sample_weights=weights.view(-1, 4), mode="sum"
    )  # the weighted sum of four rows for each sample
    return read.view(n, total, leads).transpose(1, 2)


@lru_cache(maxsize=1)
def _keys_weights() -> torch.Tensor:
    """Weights of the samples before and after a place, at 1,025 places between two of them: float64 (1025, 4)."""
    x = torch.linspace(0, 1, 1025, dtype=torch.float64)
    one = ((2 - x) * x - 1) * x / 2
    two = (3 * x - 5) * x * x / 2 + 1
    three = ((4 - 3 * x) * x + 1) * x / 2
    return torch.stack([one, two, three, (x - 1) * x * x / 2], dim=1)


def baseline_wander(
    ecg: torch.Tensor, fs: float, generator: torch.Generator, *, probability: float = 0.5, size_mv: float = 0.25
) -> torch.Tensor:
    """Add slow drift: at each electrode three cosines of 0.01–0.2 Hz, from breathing and moving skin.

    Args:
        ecg: (batch, 12, time), mV.
        fs: sampling rate, Hz.
        generator: source of all draws; its device may differ from the ecg's.
        probability: share of the records that are changed.
        size_mv: largest amplitude of one cosine at an electrode.

    Returns:
        A new tensor of the same shape, dtype and device; the input is left alone.

    Raises:
        ParameterError: the shape, the type or the probability is wrong.
    """
    return _apply(ecg, [_wander(ecg, fs, generator, probability, size_mv)])


def _wander(
    ecg: torch.Tensor, fs: float, generator: torch.Generator, probability: float, size_mv: float = 0.25
) -> _Change:
    _check(ecg, probability)
    batch, _, total = ecg.shape
    radians = torch.arange(total, device=generator.device) * (2 * math.pi / fs)  # of 1 Hz
    frequency = _uniform((batch, 3, 1), 0.01, 0.2, generator)  # the body moves once: shared by all electrodes
    phase = _uniform((batch, 3, 1), 0.0, 2 * math.pi, generator)
    size = _uniform((batch, 9, 3), -size_mv, size_mv, generator)
    # Projecting the sizes before the waves is the same sum, in a ninth of the work.
    weights = _to_leads(size * _chosen(batch, probability, generator)[:, None, None])

    def change(piece: torch.Tensor, rows: slice) -> None:
        _add(piece, weights[rows], torch.cos(frequency[rows] * radians + phase[rows]))

    return change


def powerline(
    ecg: torch.Tensor, fs: float, generator: torch.Generator, *, probability: float = 0.3, size_mv: float = 0.03
) -> torch.Tensor:
    """Add mains hum of 50 or 60 Hz, one phase for the whole body and another size at each electrode.

    Args and errors as `baseline_wander`; at `fs` up to 120 Hz, 60 Hz would fold to another rate, so nothing is added.
    """
    return _apply(ecg, [_hum(ecg, fs, generator, probability, size_mv)])


def _hum(
    ecg: torch.Tensor, fs: float, generator: torch.Generator, probability: float, size_mv: float = 0.03
) -> _Change:
    _check(ecg, probability)
    batch, _, total = ecg.shape
    chosen = _chosen(batch, probability if fs > 120 else 0.0, generator)
    size = _uniform((batch, 9, 1), -size_mv, size_mv, generator) * chosen[:, None, None]
    phase = _uniform((batch, 1, 1), 0.0, 2 * math.pi, generator)
    at_50 = (_uniform((batch, 1, 1), 0, 1, generator) < 0.5).float()
    # cos(wt + p) = cos(p) cos(wt) - sin(p) sin(wt): the four waves are the same for all records.
    turned = torch.cat([phase.cos(), -phase.sin()], dim=2)
    weights = _to_leads(size) * torch.cat([turned * at_50, turned * (1 - at_50)], dim=2)  # (batch, 12, 4)
    waves = _mains(total, fs).to(ecg.device)

    def change(piece: torch.Tensor, rows: slice) -> None:
        _add(piece, weights[rows], waves.expand(len(piece), -1, -1))

    return change


@lru_cache(maxsize=8)
def _mains(total: int, fs: float) -> torch.Tensor:
    """Cosine and sine of 50 and of 60 Hz, float32 (4, total)."""
    radians = torch.arange(total, dtype=torch.float64) * (2 * math.pi / fs)
    return torch.stack([wave(hertz * radians) for hertz in (50, 60) for wave in (torch.cos, torch.sin)]).float()


def muscle_noise(
    ecg: torch.Tensor, fs: float, generator: torch.Generator, *, probability: float = 0.3, size_mv: float = 0.02
) -> torch.Tensor:
    """Add broadband noise as of tense muscles: white noise less itself 4 ms earlier, so without slow parts.

    That is strongest at 125 Hz (at half the sampling rate, if that is lower), where muscles are. Args and errors as
    `baseline_wander`; `size_mv` is the largest standard deviation at an electrode.
    """
    return _apply(ecg, [_muscle(ecg, fs, generator, probability, size_mv)])


def _muscle(
    ecg: torch.Tensor, fs: float, generator: torch.Generator, probability: float, size_mv: float = 0.02
) -> _Change:
    _check(ecg, probability)
    batch, _, total = ecg.shape
    chosen = _chosen(batch, probability, generator)
    lag = max(1, round(0.004 * fs))
    size = _uniform((batch, 1, 9), 0.0, size_mv / math.sqrt(2), generator)
    # Bytes are even, not normal, but a lead sums four or more of them, and eight cost one draw: for the chosen alone.
    needed = 9 * (total + lag)
    draws = torch.empty((int(chosen.sum()), -(-needed // 8)), dtype=torch.int64, device=generator.device)
    draws.random_(-(2**63), None, generator=generator)
    white = draws.view(torch.int8)[:, :needed].unflatten(1, (9, total + lag))
    place = chosen.cumsum(0) - 1  # number in the batch → row of `white`
    weights = electrode_matrix().to(size.device) * size / math.sqrt((2**16 - 1) / 12)

    def alter(part: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        noise = white.index_select(0, place[which]).to(part)
        return part.baddbmm_(weights[which].to(part), noise[..., lag:] - noise[..., :-lag])

    return _of_chosen(chosen, alter)


def mask_time(
    ecg: torch.Tensor,
    fs: float,
    generator: torch.Generator,
    *,
    probability: float = 0.3,
    windows: int = 4,
    seconds: tuple[float, float] = (0.08, 0.18),
) -> torch.Tensor:
    """Set short windows to zero in all leads at once, as when the electrodes lose contact for a moment.

    Args:
        ecg: (batch, 12, time), mV.
        fs: sampling rate, Hz.
        generator: source of all draws.
        probability: share of the records that are changed.
        windows: windows per changed record.
        seconds: shortest and longest window; the default is the original's.

    Returns:
        A new tensor. A window may hide a premature beat: keep windows × seconds far below the length.

    Raises:
        ParameterError: the shape, the type, the probability, or the windows are wrong.
    """
    return _apply(ecg, [_gaps(ecg, fs, generator, probability, windows, seconds)])


def _gaps(
    ecg: torch.Tensor,
    fs: float,
    generator: torch.Generator,
    probability: float,
    windows: int = 4,
    seconds: tuple[float, float] = (0.08, 0.18),
) -> _Change:
    _check(ecg, probability)
    batch, _, total = ecg.shape
    if windows < 1 or not 0 < seconds[0] <= seconds[1] or seconds[1] * fs > total:
        raise ParameterError(
            f"mask_time: windows {windows} of {seconds} s; expected ≥ 1 of more than 0 s, within {total / fs:g} s"
        )
    length = _uniform((batch, windows), *seconds, generator) * fs
    start = _uniform((batch, windows), 0.0, 1.0, generator) * (total - length)
    ends = torch.stack([start, start + length], dim=2).ceil().long().tolist()
    chosen = _chosen(batch, probability, generator).tolist()

    def change(piece: torch.Tensor, rows: slice) -> None:
        for record, gaps, hit in zip(piece, ends[rows], chosen[rows], strict=True):
            for first, last in gaps if hit else []:
                record[:, first:last] = 0.0

    return change


def mask_leads(
    ecg: torch.Tensor, generator: torch.Generator, *, probability: float = 0.1, most: int = 3
) -> torch.Tensor:
    """Set one to `most` whole leads to zero, so that the model doesn't lean on a single lead.

    Args and errors as `mask_time`; `most` is 1 to 11.
    """
    return _apply(ecg, [_lost_leads(ecg, generator, probability, most)])


def _lost_leads(ecg: torch.Tensor, generator: torch.Generator, probability: float, most: int = 3) -> _Change:
    _check(ecg, probability)
    if not 1 <= most <= 11:
        raise ParameterError(f"mask_leads: most {most}; expected 1 to 11")
    batch = len(ecg)
    count = torch.floor(_uniform((batch, 1), 1.0, most + 1.0, generator)).clamp_(max=most)
    rank = _uniform((batch, 12), 0.0, 1.0, generator).argsort(dim=1).argsort(dim=1)
    hidden = (rank < count) & _chosen(batch, probability, generator)[:, None]

    def change(piece: torch.Tensor, rows: slice) -> None:
        for record, lead in hidden[rows].nonzero().tolist():
            piece[record, lead] = 0.0

    return change


def scale(
    ecg: torch.Tensor, generator: torch.Generator, *, probability: float = 0.5, most: float = 0.1
) -> torch.Tensor:
    """Multiply all leads of a record by one factor between 1 − `most` and 1 + `most`.

    Small on purpose: voltage is a finding, and a factor of 1.5 would turn a normal ECG into hypertrophy. A text with
    measured heights needs the factors: `Augment.with_factors`. Args and errors as `mask_time`; `most` is 0 to 0.3.
    """
    return _apply(ecg, [_scaled(_size_factors(ecg, generator, probability, most))])


def _size_factors(ecg: torch.Tensor, generator: torch.Generator, probability: float, most: float = 0.1) -> torch.Tensor:
    _check(ecg, probability)
    if not 0 <= most <= 0.3:
        raise ParameterError(f"scale: most {most}; expected 0 to 0.3, beyond that voltage criteria would change")
    return _factors(len(ecg), probability, most, generator)


def _scaled(factor: torch.Tensor) -> _Change:
    def change(piece: torch.Tensor, rows: slice) -> None:
        piece.mul_(factor[rows, None, None].to(piece))

    return change


def shift(
    ecg: torch.Tensor, fs: float, generator: torch.Generator, *, probability: float = 0.5, seconds: float = 0.5
) -> torch.Tensor:
    """Move a record in time by up to ± `seconds`; what comes in is zero, as in a padded recording.

    A roll would join the end to the beginning and so invent an RR interval. Args and errors as `mask_time`.
    """
    return _apply(ecg, [_shifted(ecg, fs, generator, probability, seconds)])


def _shifted(
    ecg: torch.Tensor, fs: float, generator: torch.Generator, probability: float, seconds: float = 0.5
) -> _Change:
    _check(ecg, probability)
    batch, _, total = ecg.shape
    if not 0 <= seconds * fs < total:
        raise ParameterError(f"shift: {seconds} s; expected 0 to less than {total / fs:g} s")
    drawn = _uniform((batch,), -seconds * fs, seconds * fs, generator)
    steps = (drawn.sign() * drawn.abs().ceil().clamp(max=int(seconds * fs))).long()  # at least one sample, if it may be
    later = torch.where(_chosen(batch, probability, generator), steps, 0).tolist()

    def change(piece: torch.Tensor, rows: slice) -> None:
        for record, by in zip(piece, later[rows], strict=True):
            kept = record[:, max(0, -by) : total - max(0, by)].clone()
            record[:, : max(0, by)] = 0.0
            record[:, total + min(0, by) :] = 0.0
            record[:, max(0, by) : total + min(0, by)] = kept

    return change


def warp(
    ecg: torch.Tensor, generator: torch.Generator, *, probability: float = 0.3, most: float = MOST_WARP
) -> torch.Tensor:
    """Let time run a little faster here and slower there, by at most the share `most`; both ends stay.

    The place that is read runs ahead and falls behind by three half waves over the record's length. So each interval
    changes by at most `most`, as RR does with breathing: the number of beats and the mean RR interval stay, RR varies
    more, and the median RR, PR, QRS and QT move by a part of `most`. Words stay true, and so do numbers within what
    two measurements of one heart differ by; where they must hold exactly, leave it out or use `stretch`.

    Args:
        ecg: (batch, 12, time), mV.
        generator: source of all draws.
        probability: share of the records that are changed.
        most: largest change of the speed, 0 to 0.1; more would look like an irregular rhythm.

    Returns:
        A new tensor, with cubic interpolation between the samples.

    Raises:
        ParameterError: the shape, the type, the probability, or `most` is wrong.
    """
    return _apply(ecg, [_warped(ecg, generator, probability, most)])


def _warped(ecg: torch.Tensor, generator: torch.Generator, probability: float, most: float = MOST_WARP) -> _Change:
    _check(ecg, probability)
    batch, _, total = ecg.shape
    if not 0 <= most <= 0.1:
        raise ParameterError(f"warp: most {most}; expected 0 to 0.1, beyond that the rhythm looks irregular")
    order = torch.arange(1, 4, device=generator.device)
    radians = torch.linspace(0, math.pi, total, device=generator.device)
    waves = torch.sin(order[:, None] * radians)  # (3, time); 0 at both ends
    # The slopes of the three waves add up to at most `most`.
    size = _uniform((batch, 3), -most / 3, most / 3, generator) * (total - 1) / (math.pi * order)

    return _of_chosen(_chosen(batch, probability, generator), lambda part, which: _read(part, size[which] @ waves))


def stretch(
    ecg: torch.Tensor, generator: torch.Generator, *, probability: float = 0.3, most: float = MOST_WARP
) -> tuple[torch.Tensor, Factors]:
    """Play a record slower or faster by one factor between 1 − `most` and 1 + `most`; its middle stays.

    Every interval is multiplied by the factor, and the heart rate divided. That is another ECG, and a text with
    measured numbers is true only after `numbers * factors.of(names)`; a text that says 61 per minute stays as it is and
    is then wrong, so words with a rate in them forbid this one. What comes in at the ends is zero.

    Args:
        ecg: (batch, 12, time), mV.
        generator: source of all draws.
        probability: share of the records that are changed.
        most: 0 to 0.2; a longer QRS complex would soon be called a block.

    Returns:
        A new tensor, and by what each record's intervals were multiplied.

    Raises:
        ParameterError: the shape, the type, the probability, or `most` is wrong.
    """
    factor = _time_factors(ecg, generator, probability, most)
    return _apply(ecg, [_stretched(factor)]), Factors(factor.to(ecg.device), torch.ones_like(factor, device=ecg.device))


def _time_factors(
    ecg: torch.Tensor, generator: torch.Generator, probability: float, most: float = MOST_WARP
) -> torch.Tensor:
    _check(ecg, probability)
    if not 0 <= most <= 0.2:
        raise ParameterError(f"stretch: most {most}; expected 0 to 0.2, beyond that QRS and rate change their name")
    return _factors(len(ecg), probability, most, generator)


def _stretched(factor: torch.Tensor) -> _Change:
    def alter(part: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        total = part.shape[2]
        from_middle = torch.arange(total, device=factor.device) - (total - 1) / 2
        move = from_middle * (1 / factor[which, None] - 1)
        outside = ((from_middle + move).abs() > (total - 1) / 2).to(part.device)
        return _read(part, move).masked_fill(outside[:, None], 0.0)

    return _of_chosen(factor != 1, alter)


def resample(
    ecg: torch.Tensor,
    fs: float,
    generator: torch.Generator,
    *,
    probability: float = 0.2,
    rates: Sequence[float] = RATES,
) -> torch.Tensor:
    """Make records look as if sampled at a lower rate and interpolated back: what was above its half is gone.

    Both ways with the filter of `ecg.filters.resample`. Steep edges get rounder and R waves a little lower, intervals
    stay. Rates that aren't below `fs` are left out; if none remains (at 100 Hz, with the default), nothing is changed.

    Args:
        ecg: (batch, 12, time), mV.
        fs: its sampling rate, Hz.
        generator: source of all draws.
        probability: share of the records that are changed.
        rates: each changed record gets one of them, Hz.

    Returns:
        A new tensor of the same shape, at the same rate.

    Raises:
        ParameterError: the shape, the type, the probability, or a rate is wrong.
    """
    return _apply(ecg, [_resampled(ecg, fs, generator, probability, rates)])


def _resampled(
    ecg: torch.Tensor, fs: float, generator: torch.Generator, probability: float, rates: Sequence[float] = RATES
) -> _Change:
    _check(ecg, probability)
    if not all(fs / 1000 < rate < math.inf for rate in rates):
        raise ParameterError(f"resample: rates {tuple(rates)}; expected Hz, above a thousandth of {fs:g}")
    lower = [rate for rate in rates if rate < fs]
    choice = torch.floor(_uniform((len(ecg),), 0, max(1, len(lower)), generator)).clamp_(max=max(0, len(lower) - 1))
    chosen = _chosen(len(ecg), probability, generator)

    def through(rate: float, here: torch.Tensor) -> _Change:
        low, total = math.ceil(ecg.shape[2] * rate / fs), ecg.shape[2]  # samples there and here
        return _of_chosen(here, lambda part, _: _at_rate(_at_rate(part, fs, rate, low), rate, fs, total))

    each = [through(rate, chosen & (choice == number)) for number, rate in enumerate(lower)]

    def change(piece: torch.Tensor, rows: slice) -> None:
        for one in each:
            one(piece, rows)

    return change


def _at_rate(ecg: torch.Tensor, fs_from: float, fs_to: float, size: int) -> torch.Tensor:
    """Return (n, 12, time) at another sampling rate, (n, 12, size); the ends are held.

    The same few filters come again and again, so one matrix times a piece of the signal gives a piece of the result.
    """
    matrix, before, step = _filters(fs_from, fs_to)
    width, made = matrix.shape
    pieces = -(-size // made)
    after = max(0, (pieces - 1) * step + width - before - ecg.shape[2])
    ends = ecg[:, :, :1].expand(-1, -1, before), ecg[:, :, -1:].expand(-1, -1, after)
    wide = torch.cat([ends[0], ecg, ends[1]], dim=2)
    return (wide.unfold(2, width, step)[:, :, :pieces] @ matrix.to(ecg)).flatten(2)[:, :, :size]


@lru_cache(maxsize=32)
def _filters(fs_from: float, fs_to: float) -> tuple[torch.Tensor, int, int]:
    """Polyphase filters as one matrix float64 (samples read, samples made), samples read in advance, and the step.

    A sinc at half the lower rate under a Kaiser window (beta 5) of 10 periods to each side, as scipy's `resample_poly`.
    """
    ratio = Fraction(fs_to / fs_from).limit_denominator(1000)
    up, down = ratio.numerator, ratio.denominator
    half = 10 * max(up, down)  # of the filter, at `up` times the rate
    before = half // up
    blocks = -(-2 * before // down)  # of `down` samples; few would read nearly all in advance, many would multiply by 0
    made = torch.arange(blocks * up)
    read = torch.arange(-before, ((blocks * up - 1) * down + half) // up + 1)
    apart = made * down - read[:, None] * up  # (read, made)
    window = torch.kaiser_window(2 * half + 1, periodic=False, beta=5.0, dtype=torch.float64)
    inside = apart.abs() <= half
    matrix = torch.sinc(apart.double() / max(up, down)) * window[apart.clamp(-half, half) + half] * inside
    return matrix / matrix.sum(dim=0), before, blocks * down  # each phase lets a constant through as it is


@dataclass(frozen=True)
class Augment:
    """All augmentations in the order in which they happen: the heart, the recording, the recorder, the loss of signal.

    Each field but `fs` is the share of the records that the augmentation changes; 0 leaves it out. `stretch` is off
    unless asked for, since a text with intervals must change with it: `with_factors`.

        augment = Augment(fs=500)
        ecg = augment(ecg, generator)  # (batch, 12, time) → the same shape

    Raises:
        ParameterError: a probability is outside 0–1, or the ecg hasn't the shape (batch, 12, time).
    """

    fs: float
    scale: float = 0.5
    shift: float = 0.5
    baseline_wander: float = 0.5
    powerline: float = 0.3
    muscle_noise: float = 0.3
    mask_time: float = 0.3
    mask_leads: float = 0.1
    warp: float = 0.2
    stretch: float = 0.0
    resample: float = 0.2

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name != "fs" and not 0 <= value <= 1:
                raise ParameterError(f"Augment({one.name}={value}): expected a probability, 0 to 1")

    def __call__(self, ecg: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return an augmented copy of a batch (batch, 12, time) in mV; all draws come from the generator."""
        return self.with_factors(ecg, generator)[0]

    def with_factors(self, ecg: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, Factors]:
        """Return the same, and by what measured times and heights were multiplied.

        ecg, factors = augment.with_factors(ecg, generator)
        numbers = numbers * factors.of(("rr_ms", "qt_ms", "r_mv"))  # (batch, 3)
        """
        size = _size_factors(ecg, generator, self.scale)
        time = _time_factors(ecg, generator, self.stretch)
        steps = [_scaled(size)] if self.scale else []
        steps += [_stretched(time)] if self.stretch else []
        steps += [_warped(ecg, generator, self.warp)] if self.warp else []
        for share, disturb in (
            (self.shift, _shifted),
            (self.baseline_wander, _wander),
            (self.powerline, _hum),
            (self.muscle_noise, _muscle),
            (self.resample, _resampled),
            (self.mask_time, _gaps),
        ):
            steps += [disturb(ecg, self.fs, generator, share)] if share else []
        steps += [_lost_leads(ecg, generator, self.mask_leads)] if self.mask_leads else []
        return _apply(ecg, steps), Factors(time.to(ecg.device), size.to(ecg.device))
