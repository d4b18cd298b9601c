"""Judge whether a recording can be trusted, and say what is wrong with it in words.

Rules, not learning: flat and missing leads, clipping, noise, impossible voltages, length, and whether the limb leads
obey the identities that they must (II = I + III; aVR + aVL + aVF = 0). Taught in: 01 §4 and §8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ecgchat_lib.ecg.filters import bandpass, fill_missing, find_spikes
from ecgchat_lib.ecg.leads import LEADS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ecgchat_lib.ecg.recording import Recording

FLAT_MV = 0.02  # a lead that moves less from its 1st to its 99th percentile in the best second is flat
CLIPPED_SECONDS = 0.02  # that a lead stays exactly at its highest or lowest value
NOISE_MV = 0.05  # typical deviation above 40 Hz
WANDER_MV = 1.0  # range of the baseline below 0.5 Hz
HUGE_MV = 8.0  # heartbeats higher than that are a wrong gain
TINY_MV = 0.15  # and lower than that in every lead, too
IDENTITY_FRACTION = 0.15  # of the limb leads' size, that an identity may be off
SLOWEST_HZ = 40.0
SHORT_SECONDS = 5.0  # less holds too few beats for a rhythm


@dataclass(frozen=True)
class Quality:
    """The verdict on a recording.

    Attributes:
        usable: whether measurements and models have something to work on.
        warnings: what is wrong, in plain words; empty for a good recording.
    """

    usable: bool
    warnings: tuple[str, ...]


def judge(recording: Recording) -> Quality:
    """Judge a recording.

    Args:
        recording: twelve leads in mV.

    Returns:
        Warnings, and `usable=False` where a warning makes the whole recording doubtful: most leads flat or missing,
        limb leads that contradict each other, impossible voltages, or too short for one heartbeat.
    """
    warnings: list[str] = []
    grave: list[str] = []
    signal, fs = recording.signal, recording.fs
    if recording.seconds < 1:
        grave.append(f"only {recording.seconds:.2f} s long")
    elif recording.seconds < SHORT_SECONDS:
        warnings.append(f"only {recording.seconds:.1f} s long, too short to judge the rhythm")
    missing = ~np.isfinite(signal)
    filled = fill_missing(signal)[0]
    dead = flat_leads(recording)
    if dead:
        (grave if len(dead) > 3 else warnings).append(f"flat or missing: {', '.join(dead)}")
    gaps = float(missing.mean()) if missing.size else 1.0
    if gaps > 0:
        (grave if gaps > 0.5 else warnings).append(f"{gaps:.1%} of the samples are missing")
    if fs < SLOWEST_HZ:
        grave.append(f"only {fs:g} samples a second, too few for the QRS complexes")
    elif signal.shape[1] > 2:
        _amplitudes(filled, fs, dead, warnings, grave)
        _disturbances(filled, fs, dead, warnings)
        _identities(filled, fs, dead, warnings, grave)
    return Quality(not grave, (*grave, *warnings))


def flat_leads(recording: Recording) -> tuple[str, ...]:
    """Return the leads that show next to nothing: not even 20 microvolts in their liveliest second."""
    window = max(1, round(recording.fs))
    signal = fill_missing(recording.signal)[0]
    pieces = [signal[:, start : start + window] for start in range(0, signal.shape[1], window)] or [signal]
    ranges = [np.ptp(np.percentile(piece, (1, 99), axis=1), axis=0) for piece in pieces if piece.shape[1] > 0]
    liveliest = np.max(ranges, axis=0) if ranges else np.zeros(len(LEADS))
    return tuple(lead for lead, span in zip(LEADS, liveliest, strict=True) if span < FLAT_MV)


def identity_residuals(signal: NDArray[np.floating]) -> dict[str, float]:
    """Return how far the limb leads are from Einthoven's and Goldberger's identities.

    Args:
        signal: `(12, time)` in mV, in the order of `LEADS`, without NaN.

    Returns:
        "Einthoven" (I + III - II) and "Goldberger" (aVR + aVL + aVF): root mean square of what should be zero, as a
        fraction of the root mean square of the leads in it. Zero for leads that were derived from each other.
    """
    lead = {name: np.asarray(row, dtype=np.float64) for name, row in zip(LEADS, signal, strict=True)}

    def fraction(rest: NDArray[np.float64], parts: tuple[str, ...]) -> float:
        size = float(np.sqrt(np.mean([np.mean(lead[name] ** 2) for name in parts])))
        return float(np.sqrt(np.mean(rest**2))) / size if size > 0 else 0.0

    return {
        "Einthoven": fraction(lead["I"] + lead["III"] - lead["II"], ("I", "II", "III")),
        "Goldberger": fraction(lead["aVR"] + lead["aVL"] + lead["aVF"], ("aVR", "aVL", "aVF")),
    }


def _amplitudes(
    filled: NDArray[np.float64], fs: float, dead: tuple[str, ...], warnings: list[str], grave: list[str]
) -> None:
    """Add what is wrong with the voltages: clipped, too large, too small."""
    clipped = []
    for name, row in zip(LEADS, filled, strict=True):
        low, high = row.min(), row.max()
        stuck = max(_longest_run(row == extreme) for extreme in (low, high))
        if name not in dead and stuck > max(CLIPPED_SECONDS * fs, 3):
            clipped.append(name)
    if clipped:
        warnings.append(f"clipped at the amplifier's limit: {', '.join(clipped)}")
    beats = bandpass(filled, fs, 0.5, 40.0)
    spans = np.ptp(np.percentile(beats, (0.5, 99.5), axis=1), axis=0)
    huge = [name for name, span in zip(LEADS, spans, strict=True) if span > HUGE_MV]
    if huge:
        found = f"up to {spans.max():.0f} mV from lowest to highest: {', '.join(huge)}; check electrode, gain and unit"
        (grave if len(huge) > 6 else warnings).append(found)
    elif spans.max() < TINY_MV and len(dead) < len(LEADS):
        grave.append(f"no lead reaches {TINY_MV:g} mV: check gain and unit")


def _longest_run(flags: NDArray[np.bool_]) -> int:
    """Return the length of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def _disturbances(filled: NDArray[np.float64], fs: float, dead: tuple[str, ...], warnings: list[str]) -> None:
    """Add noise, drift and pacemaker spikes."""
    alive = [name not in dead for name in LEADS]
    if fs > 100:
        fast = np.median(np.abs(filled - bandpass(filled, fs, 0, 40.0)), axis=1)
        noisy = [name for name, value, live in zip(LEADS, fast, alive, strict=True) if live and value > NOISE_MV]
        if noisy:
            warnings.append(f"noise above 40 Hz (mains or muscle): {', '.join(noisy)}")
    if filled.shape[1] > 4 * fs:
        slow = np.ptp(bandpass(filled, fs, 0, 0.5), axis=1)
        drifting = [name for name, value, live in zip(LEADS, slow, alive, strict=True) if live and value > WANDER_MV]
        if drifting:
            warnings.append(f"the baseline wanders by more than {WANDER_MV:g} mV: {', '.join(drifting)}")
    spikes = len(find_spikes(filled, fs))
    if spikes > 0.5 * filled.shape[1] / fs:
        warnings.append(f"{spikes} spikes as of a pacemaker")


def _identities(
    filled: NDArray[np.float64], fs: float, dead: tuple[str, ...], warnings: list[str], grave: list[str]
) -> None:
    """Add limb leads that contradict each other: scaled differently, or swapped, mislabeled, damaged."""
    beats = bandpass(filled, fs, 0.5, 40.0).astype(np.float64) if filled.shape[1] > fs else filled
    parts = {"Einthoven": ("II", "I", "III"), "Goldberger": ("aVR", "aVL", "aVF")}
    meaning = {"Einthoven": "II is not I + III", "Goldberger": "aVR + aVL + aVF is not 0"}
    for law, off in identity_residuals(beats).items():
        if off <= IDENTITY_FRACTION or set(parts[law]) & set(dead):
            continue
        rows = [beats[LEADS.index(name)] for name in parts[law]]
        if _scaled_apart(rows, sign=1.0 if law == "Einthoven" else -1.0):
            warnings.append(f"{meaning[law]} (off by {off:.0%}), but would be with other gains: doubt heights and axis")
        else:
            grave.append(f"{meaning[law]} (off by {off:.0%}): a limb lead is damaged or mislabeled")


def _scaled_apart(rows: list[NDArray[np.float64]], sign: float) -> bool:
    """Return whether the first lead is the sum of the other two (times `sign`) once each may have its own gain."""
    others = np.stack(rows[1:], axis=1)
    gains, *_ = np.linalg.lstsq(others, rows[0], rcond=None)
    rest = rows[0] - others @ gains
    small = float(np.sqrt(np.mean(rest**2))) <= 0.5 * IDENTITY_FRACTION * float(np.sqrt(np.mean(rows[0] ** 2)))
    return small and bool((sign * gains > 0.1).all())
