"""Batch augmentations of ECGs that keep the report true: disturbances, masks, and small changes of size and position.

Each function changes a known share of the records of a batch, draws everything from one generator, and gives the same
draws on every device. Disturbances are drawn per electrode and projected to the leads, so Einthoven's law survives.
Nothing here mixes two patients, and nothing stretches time. Taught in: 04.

Sources: the choice follows the released ECG-Chat (baseline wander p .5, masking p .3; after torch_ecg), with its errors
mended; amplitudes of electrode noise as in Moody et al., Computers in Cardiology 11 (1984) 381.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch

from ecgchat_lib.errors import ParameterError

ELECTRODES: tuple[str, ...] = ("RA", "LA", "LL", "V1", "V2", "V3", "V4", "V5", "V6")


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


def _check(ecg: torch.Tensor, probability: float) -> None:
    if ecg.dim() != 3 or ecg.shape[1] != 12:
        raise ParameterError(
            f"ecg: found shape {tuple(ecg.shape)}, expected (batch, 12, time). Add a batch axis: ecg[None]"
        )
    if not 0 <= probability <= 1:
        raise ParameterError(f"probability {probability}: expected 0 to 1")


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def _chosen(batch: int, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Which records are changed: bool (batch, 1, 1), each with the probability, on its own."""
    return _uniform((batch, 1, 1), 0.0, 1.0, generator) < probability


def _to_leads(potentials: torch.Tensor) -> torch.Tensor:
    """Electrode potentials (batch, 9, anything) → leads (batch, 12, anything)."""
    return torch.einsum("le,bex->blx", electrode_matrix().to(potentials.device), potentials)


def _add(ecg: torch.Tensor, leads: torch.Tensor, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Add what was drawn, (batch, 12, time) in mV on the generator's device, to the chosen records."""
    leads = leads * _chosen(ecg.shape[0], probability, generator)
    return ecg + leads.to(device=ecg.device, dtype=ecg.dtype)


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
        ParameterError: the shape or the probability is wrong.
    """
    _check(ecg, probability)
    batch, _, total = ecg.shape
    time = torch.arange(total, device=generator.device) / fs
    frequency = _uniform((batch, 3, 1), 0.01, 0.2, generator)  # the body moves once: shared by all electrodes
    phase = _uniform((batch, 3, 1), 0.0, 2 * math.pi, generator)
    size = _uniform((batch, 9, 3), -size_mv, size_mv, generator)
    waves = torch.cos(2 * math.pi * frequency * time + phase)  # (batch, 3, time)
    # Projecting the sizes before the waves is the same sum, in a ninth of the work.
    return _add(ecg, _to_leads(size) @ waves, probability, generator)


def powerline(
    ecg: torch.Tensor, fs: float, generator: torch.Generator, *, probability: float = 0.3, size_mv: float = 0.03
) -> torch.Tensor:
    """Add mains hum of 50 or 60 Hz, one phase for the whole body and another size at each electrode.

    Args and errors as `baseline_wander`; at `fs` below 120 Hz, 60 Hz would fold to another rate, so nothing is added.
    """
    _check(ecg, probability)
    batch, _, total = ecg.shape
    if fs <= 120:
        return ecg.clone()
    time = torch.arange(total, device=generator.device) / fs
    frequency = torch.where(_uniform((batch, 1, 1), 0, 1, generator) < 0.5, 50.0, 60.0)
    phase = _uniform((batch, 1, 1), 0.0, 2 * math.pi, generator)
    size = _uniform((batch, 9, 1), -size_mv, size_mv, generator)
    hum = torch.cos(2 * math.pi * frequency * time + phase)  # (batch, 1, time)
    return _add(ecg, _to_leads(size) * hum, probability, generator)


def muscle_noise(
    ecg: torch.Tensor, fs: float, generator: torch.Generator, *, probability: float = 0.3, size_mv: float = 0.02
) -> torch.Tensor:
    """Add broadband noise as of tense muscles: white noise less itself 4 ms earlier, so without slow parts.

    That is strongest at 125 Hz (at half the sampling rate, if that is lower), where muscles are. Args and errors as
    `baseline_wander`; `size_mv` is the largest standard deviation at an electrode.
    """
    _check(ecg, probability)
    batch, _, total = ecg.shape
    lag = max(1, round(0.004 * fs))
    white = _normal((batch, 9, total + lag), generator)
    size = _uniform((batch, 9, 1), 0.0, size_mv / math.sqrt(2), generator)
    return _add(ecg, _to_leads((white[..., lag:] - white[..., :-lag]) * size), probability, generator)


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
        ParameterError: the shape, the probability, or the windows are wrong.
    """
    _check(ecg, probability)
    batch, _, total = ecg.shape
    if windows < 1 or not 0 < seconds[0] <= seconds[1] or seconds[1] * fs > total:
        raise ParameterError(
            f"mask_time: windows {windows} of {seconds} s; expected ≥ 1 of more than 0 s, within {total / fs:g} s"
        )
    length = _uniform((batch, windows, 1), *seconds, generator) * fs
    start = _uniform((batch, windows, 1), 0.0, 1.0, generator) * (total - length)
    time = torch.arange(total, device=generator.device)
    hidden = ((time >= start) & (time < start + length)).any(dim=1, keepdim=True)  # (batch, 1, time)
    hidden = hidden & _chosen(batch, probability, generator)
    return ecg.masked_fill(hidden.to(ecg.device), 0.0)


def mask_leads(
    ecg: torch.Tensor, generator: torch.Generator, *, probability: float = 0.1, most: int = 3
) -> torch.Tensor:
    """Set one to `most` whole leads to zero, so that the model doesn't lean on a single lead.

    Args and errors as `mask_time`; `most` is 1 to 11.
    """
    _check(ecg, probability)
    if not 1 <= most <= 11:
        raise ParameterError(f"mask_leads: most {most}; expected 1 to 11")
    batch = ecg.shape[0]
    count = torch.floor(_uniform((batch, 1), 1.0, most + 1.0, generator)).clamp_(max=most)
    rank = _uniform((batch, 12), 0.0, 1.0, generator).argsort(dim=1).argsort(dim=1)
    hidden = (rank < count)[:, :, None] & _chosen(batch, probability, generator)
    return ecg.masked_fill(hidden.to(ecg.device), 0.0)


def scale(
    ecg: torch.Tensor, generator: torch.Generator, *, probability: float = 0.5, most: float = 0.1
) -> torch.Tensor:
    """Multiply all leads of a record by one factor between 1 − `most` and 1 + `most`.

    Small on purpose: voltage is a finding, and a factor of 1.5 would turn a normal ECG into hypertrophy.
    Args and errors as `mask_time`; `most` is 0 to 0.3.
    """
    _check(ecg, probability)
    if not 0 <= most <= 0.3:
        raise ParameterError(f"scale: most {most}; expected 0 to 0.3, beyond that voltage criteria would change")
    factor = _uniform((ecg.shape[0], 1, 1), 1 - most, 1 + most, generator)
    factor = torch.where(_chosen(ecg.shape[0], probability, generator), factor, 1.0)
    return ecg * factor.to(device=ecg.device, dtype=ecg.dtype)


def shift(
    ecg: torch.Tensor, fs: float, generator: torch.Generator, *, probability: float = 0.5, seconds: float = 0.5
) -> torch.Tensor:
    """Move a record in time by up to ± `seconds`; what comes in is zero, as in a padded recording.

    A roll would join the end to the beginning and so invent an RR interval. Args and errors as `mask_time`.
    """
    _check(ecg, probability)
    batch, _, total = ecg.shape
    if not 0 <= seconds * fs < total:
        raise ParameterError(f"shift: {seconds} s; expected 0 to less than {total / fs:g} s")
    steps = torch.round(_uniform((batch, 1, 1), -seconds * fs, seconds * fs, generator)).long()
    steps = torch.where(_chosen(batch, probability, generator), steps, 0).to(ecg.device)
    source = torch.arange(total, device=ecg.device) - steps  # (batch, 1, time)
    outside = (source < 0) | (source >= total)
    moved = ecg.gather(2, source.clamp(0, total - 1).expand(-1, 12, -1))
    return moved.masked_fill(outside, 0.0)


@dataclass(frozen=True)
class Augment:
    """All augmentations in the order in which they happen: the heart, the recording, the loss of signal.

    Each field but `fs` is the share of the records that the augmentation changes; 0 leaves it out.

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

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name != "fs" and not 0 <= value <= 1:
                raise ParameterError(f"Augment({one.name}={value}): expected a probability, 0 to 1")

    def __call__(self, ecg: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return an augmented copy of a batch (batch, 12, time) in mV; all draws come from the generator."""
        _check(ecg, 0.0)
        ecg = scale(ecg, generator, probability=self.scale) if self.scale else ecg
        ecg = shift(ecg, self.fs, generator, probability=self.shift) if self.shift else ecg
        for disturb in (baseline_wander, powerline, muscle_noise):
            probability = getattr(self, disturb.__name__)
            ecg = disturb(ecg, self.fs, generator, probability=probability) if probability else ecg
        ecg = mask_time(ecg, self.fs, generator, probability=self.mask_time) if self.mask_time else ecg
        ecg = mask_leads(ecg, generator, probability=self.mask_leads) if self.mask_leads else ecg
        return ecg
