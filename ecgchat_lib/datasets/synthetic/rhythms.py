"""Rhythms: when each P wave and each QRS comes, and which P belongs to which QRS.

Times are of the beginnings of waves, in seconds from the start of the recording; a schedule reaches over both ends of
it. Shapes are no concern of this module. Taught in: 02 §1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Draw = np.random.Generator

# Rhythm → lowest and highest rate per minute; for flutter that of the atria, for third-degree block the escape's.
RATES = {
    "SR": (58.0, 96.0),
    "SARRH": (54.0, 90.0),
    "SBRAD": (38.0, 56.0),
    "STACH": (103.0, 140.0),
    "AFIB": (52.0, 145.0),
    "AFLT": (240.0, 320.0),
    "SVTAC": (150.0, 205.0),
    "VT": (135.0, 205.0),
    "3AVB": (30.0, 50.0),
}
BEFORE, AFTER = 1.5, 1.0  # s that a schedule reaches beyond the recording


@dataclass(frozen=True)
class Schedule:
    """The beats of a recording and a little around it.

    Attributes:
        qrs: `(beat,)` beginnings, s.
        kinds: a letter per beat: N as the heart beats, A atrial premature, V ventricular.
        p: `(wave,)` beginnings, s, also of waves that no QRS follows.
        p_kinds: S for the sinus node's, A from elsewhere in the atria.
        conducted: `(beat,)` which P wave leads to the beat; −1 for none.
        base: s, the basic interval; in flutter the atria's.
    """

    qrs: np.ndarray
    kinds: tuple[str, ...]
    p: np.ndarray
    p_kinds: tuple[str, ...]
    conducted: np.ndarray
    base: float


@dataclass(frozen=True)
class Event:
    """A P wave, a QRS, or both; NaN where there is none."""

    p: float = math.nan
    qrs: float = math.nan
    kind: str = "N"
    p_kind: str = "S"


def make_schedule(
    rhythm: str, pattern: str, pr: float, seconds: float, limits: tuple[float, float], draw: Draw
) -> Schedule:
    """Place the beats.

    Args:
        rhythm: a key of `RATES`.
        pattern: "" for every beat alike, or PVC, PAC, BIGU, TRIGU, 2AVB1, 2AVB2, 2AVB2:1, 3AVB, VT, NSVT, VVI, DDD.
        pr: from P to QRS, s.
        seconds: length of the recording.
        limits: lowest and highest rate per minute.
        draw: the generator.
    """
    low, high = limits
    rate = float(np.clip(draw.normal((low + high) / 2, (high - low) / 4), low, high))
    base = 60.0 / rate
    interval = _intervals(rhythm, base, draw)
    start = -BEFORE + draw.uniform(0.0, 0.5)
    maker = _PATTERNS.get(pattern, _regular)
    has_p = rhythm in ("SR", "SARRH", "SBRAD", "STACH") or pattern == "DDD"
    events: list[Event] = []
    for event in maker(start, interval, base, pr if has_p else math.nan, draw):
        if (event.qrs if math.isnan(event.p) else event.p) > seconds + AFTER:
            break
        events.append(event)
    if pattern == "3AVB":
        events += _escape(seconds, draw)
    return _collected(events, base)


def _collected(events: list[Event], base: float) -> Schedule:
    with_qrs = sorted((e for e in events if not math.isnan(e.qrs)), key=lambda e: e.qrs)
    with_p = [e for e in events if not math.isnan(e.p)]
    number = {id(e): k for k, e in enumerate(with_p)}
    return Schedule(
        np.array([e.qrs for e in with_qrs]),
        tuple(e.kind for e in with_qrs),
        np.array([e.p for e in with_p]),
        tuple(e.p_kind for e in with_p),
        np.array([number.get(id(e), -1) for e in with_qrs], dtype=np.int64),
        base,
    )


def _intervals(rhythm: str, base: float, draw: Draw) -> Callable[[float], float]:
    """Return a function: time (s) → the next interval (s), with breathing and slower waves of the heart rate."""
    breath, phase = draw.uniform(0.18, 0.33), draw.uniform(0, 2 * math.pi)
    slow, slow_phase = draw.uniform(0.07, 0.12), draw.uniform(0, 2 * math.pi)
    depth = {"SARRH": draw.uniform(0.09, 0.18), "STACH": draw.uniform(0.002, 0.01)}.get(
        rhythm, draw.uniform(0.005, 0.035)
    )
    drop = [int(draw.integers(2, 5))]
    wild = draw.uniform(0.10, 0.26)

    def sinus(now: float) -> float:
        swing = math.sin(2 * math.pi * breath * now + phase) + 0.5 * math.sin(2 * math.pi * slow * now + slow_phase)
        return base * (1 + depth * swing + draw.normal(0, 0.006))

    def fibrillation(now: float) -> float:
        return max(base * float(np.clip(draw.gamma(1 / wild**2, wild**2), 0.5, 1.9)), 0.31)

    def flutter(now: float) -> float:
        if draw.random() < 0.2:
            drop[0] = int(draw.integers(2, 5))
        return base * drop[0]

    def regular(now: float) -> float:
        return base * (1 + draw.normal(0, 0.004))

    return {"AFIB": fibrillation, "AFLT": flutter, "SVTAC": regular, "VT": regular}.get(rhythm, sinus)


Maker = Callable[[float, Callable[[float], float], float, float, Draw], Iterator[Event]]


def _regular(due: float, interval: Callable[[float], float], base: float, pr: float, draw: Draw) -> Iterator[Event]:
    while True:
        yield Event(due - pr, due)
        due += interval(due)


def _premature(kind: str, every: tuple[int, int], first: int) -> Maker:
    """Premature beats: a ventricular one leaves the sinus node alone, an atrial one resets it."""

    def maker(due: float, interval: Callable[[float], float], base: float, pr: float, draw: Draw) -> Iterator[Event]:
        left = int(draw.integers(first, first + 2))
        coupling = draw.uniform(0.28, 0.38)
        while True:
            rr = interval(due)
            if left:
                left -= 1
                yield Event(due - pr, due)
                due += rr
                continue
            left = int(draw.integers(*every))
            at = due - rr * min(coupling + draw.normal(0, 0.01), 0.42)
            if kind == "V":
                yield Event(qrs=at, kind="V")
                due += rr
            else:
                yield Event(at - pr + 0.012, at, "A", "A")
                due = at + 1.05 * rr

    return maker


def _wenckebach(due: float, interval: Callable[[float], float], base: float, pr: float, draw: Draw) -> Iterator[Event]:
    """Mobitz I: PR grows, by less each time, until a P wave stays alone."""
    steps = int(draw.integers(3, 6))
    k, grow = int(draw.integers(0, steps)), draw.uniform(0.05, 0.10)
    while True:
        k = (k + 1) % steps
        longer = grow * (1 - 0.5**k) * 2
        yield Event(due - pr, due + longer if k < steps - 1 else math.nan)
        due += interval(due)


def _dropped(every: int | None) -> Maker:
    """Mobitz II, or 2:1: PR stays the same, and some P waves stay alone."""

    def maker(due: float, interval: Callable[[float], float], base: float, pr: float, draw: Draw) -> Iterator[Event]:
        turn = every or int(draw.integers(3, 5))
        k = int(draw.integers(0, turn))
        while True:
            k += 1
            yield Event(due - pr, due if k % turn else math.nan)
            due += interval(due)

    return maker


def _no_conduction(
    due: float, interval: Callable[[float], float], base: float, pr: float, draw: Draw
) -> Iterator[Event]:
    """Third-degree block, the atria's half: P waves at their own pace."""
    atrial = 60.0 / draw.uniform(64, 98)
    while True:
        yield Event(due - 0.16)
        due += atrial * interval(due) / base


def _escape(seconds: float, draw: Draw) -> list[Event]:
    base = 60.0 / draw.uniform(*RATES["3AVB"])
    at, events = -BEFORE - draw.uniform(0.0, 0.5), []
    while at < seconds + AFTER:
        events.append(Event(qrs=at))
        at += base * (1 + draw.normal(0, 0.008))
    return events


def _ventricular_run(
    due: float, interval: Callable[[float], float], base: float, pr: float, draw: Draw
) -> Iterator[Event]:
    """Ventricular tachycardia from the beginning to the end."""
    while True:
        yield Event(qrs=due, kind="V")
        due += interval(due)


def _short_run(due: float, interval: Callable[[float], float], base: float, pr: float, draw: Draw) -> Iterator[Event]:
    """Sinus rhythm with runs of ventricular beats."""
    quick = 60.0 / draw.uniform(*RATES["VT"])
    left = int(draw.integers(3, 5))
    while True:
        for _ in range(left):
            yield Event(due - pr, due)
            due += interval(due)
        due -= 0.36 * base
        for _ in range(int(draw.integers(3, 9))):
            yield Event(qrs=due, kind="V")
            due += quick * (1 + draw.normal(0, 0.02))
        due += 1.0 * base
        left = int(draw.integers(3, 7))


def _paced_ventricle(
    due: float, interval: Callable[[float], float], base: float, pr: float, draw: Draw
) -> Iterator[Event]:
    """A pacemaker that knows only the ventricle: exact intervals, no P wave that leads."""
    while True:
        yield Event(qrs=due)
        due += base


def _paced_both(due: float, interval: Callable[[float], float], base: float, pr: float, draw: Draw) -> Iterator[Event]:
    while True:
        yield Event(due - pr, due)
        due += base


_PATTERNS: dict[str, Maker] = {
    "PVC": _premature("V", (3, 6), 3),
    "BIGU": _premature("V", (1, 2), 1),
    "TRIGU": _premature("V", (2, 3), 2),
    "PAC": _premature("A", (3, 6), 3),
    "2AVB1": _wenckebach,
    "2AVB2": _dropped(None),
    "2AVB2:1": _dropped(2),
    "3AVB": _no_conduction,
    "VT": _ventricular_run,
    "NSVT": _short_run,
    "VVI": _paced_ventricle,
    "DDD": _paced_both,
}


def intervals_before(qrs: np.ndarray, typical: float) -> np.ndarray:
    """RR interval before each beat, s; the typical one before the first."""
    return np.array([typical, *(b - a for a, b in pairwise(qrs.tolist()))])[: len(qrs)]
