"""Disturbances: what breathing, skin, muscle and mains add to each electrode, and so to the leads.

Each electrode has its own noise; leads are differences of electrodes, so limb leads share theirs, as real ones do.
Amounts are drawn per recording. It never touches the heart's own signal. Taught in: 02 §1.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

Draw = np.random.Generator

# Nine electrodes (RA LA LL V1–V6) → I, II, V1–V6.
_ELECTRODES = np.zeros((8, 9))
_ELECTRODES[0, :2] = (-1, 1)
_ELECTRODES[1, [0, 2]] = (-1, 1)
_ELECTRODES[2:, :3] = -1 / 3
_ELECTRODES[range(2, 8), range(3, 9)] = 1
_SLOWEST, _FASTEST = 0.04, 0.7  # Hz, of baseline wander


@lru_cache(maxsize=8)
def _slow_waves(total: int, fs: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of the slow frequencies `(2 n, time)`, and the 1/f weights `(2 n,)`."""
    frequency = np.geomspace(_SLOWEST, _FASTEST, 8)
    turns = 2 * math.pi * frequency[:, None] * (np.arange(total) / fs)
    return np.concatenate([np.cos(turns), np.sin(turns)]), np.tile(_SLOWEST / frequency, 2) ** 0.75


def add_noise(out: np.ndarray, fs: float, breath: np.ndarray, draw: Draw) -> None:
    """Add wander, breathing, muscle, mains and loose electrodes to eight leads, in place.

    Args:
        out: `(8, time)` mV.
        fs: sampling rate, Hz.
        breath: `(time,)` how far the chest is filled, −1 to 1.
        draw: the generator.
    """
    total = out.shape[1]
    waves, weights = _slow_waves(total, fs)
    wander = 0.022 * math.exp(draw.normal(0.0, 0.7))
    slow = draw.normal(0.0, 1.0, (9, weights.size)) * (weights * wander)
    slow = np.concatenate([slow, draw.normal(0.0, 0.4 * wander, (9, 1))], axis=1)
    out += (_ELECTRODES @ slow[:, :-1]) @ waves
    out += (_ELECTRODES @ slow[:, -1:]) * breath
    out += _muscle(total, fs, draw)
    if draw.random() < 0.3:
        _mains(out, fs, draw)
    while draw.random() < 0.12:
        _loose_electrode(out, fs, draw)


def _muscle(total: int, fs: float, draw: Draw) -> np.ndarray:
    """Noise of muscles and amplifier; sometimes it swells. Chest leads have their own, limb leads share the arms'."""
    white = draw.standard_normal((8, total), dtype=np.float32)
    smooth = white.copy()
    smooth[:, 1:] += white[:, :-1]
    white *= np.float32(0.6)
    smooth[:, 2:] += white[:, :-2]
    level = 0.0013 * math.exp(draw.normal(0.0, 0.75))
    sizes = level * np.exp(draw.normal(0.0, 0.35, (8, 1))).astype(np.float32)
    if draw.random() < 0.15:  # a burst: tension or tremor for a second or two
        middle, width = draw.uniform(0, total), fs * draw.uniform(0.3, 1.5)
        z = (np.arange(total, dtype=np.float32) - np.float32(middle)) / np.float32(width)
        smooth *= 1 + np.float32(draw.uniform(1, 4)) * np.maximum(1 - z * z, 0)
    smooth *= sizes
    return smooth


def _mains(out: np.ndarray, fs: float, draw: Draw) -> None:
    frequency = 50.0 if draw.random() < 0.7 else 60.0
    turns = 2 * math.pi * frequency * (np.arange(out.shape[1]) / fs) + draw.uniform(0, 2 * math.pi)
    hum = np.sin(turns)
    if draw.random() < 0.4:
        hum += 0.3 * np.sin(3 * turns)
    out += (_ELECTRODES @ draw.normal(0.0, 0.005 * math.exp(draw.normal(0.0, 0.7)), (9, 1))) * hum


def _loose_electrode(out: np.ndarray, fs: float, draw: Draw) -> None:
    """An electrode moves on the skin: its potential jumps and creeps back."""
    total = out.shape[1]
    at = int(draw.integers(0, total))
    length = min(int(fs * draw.uniform(0.3, 2.0)), total - at)
    rise = max(int(fs * draw.uniform(0.02, 0.15)), 1)
    step = np.arange(length)
    left = np.maximum(1 - step / max(length, 1), 0.0)
    shape = np.minimum(step / rise, 1.0) * left * left
    lead = _ELECTRODES[:, int(draw.integers(0, 9))] * draw.normal(0.0, 0.25)
    out[:, at : at + length] += lead[:, None] * shape
