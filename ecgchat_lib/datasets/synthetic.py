"""Synthetic 12-lead ECGs with known rhythm, intervals and findings, and a writer that stores them in PTB-XL's layout.

A heart vector (left, foot, back) is a sum of bell-shaped waves; Dower's matrix projects it to eight leads, and the four
others follow from I and II, so Einthoven's and Goldberger's equations hold exactly. It teaches and tests; it is no
substitute for real ECGs, and no result on it says anything about patients. Taught in: 02 §1.

Sources: sums of Gaussian waves as in McSharry et al., IEEE Trans. Biomed. Eng. 50 (2003) 289,
doi:10.1109/TBME.2003.808805; lead projection by Dower et al., J. Electrocardiol. 13 (1980) 171.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
from tqdm import tqdm

from ecgchat_lib.datasets.labels import superclasses
from ecgchat_lib.datasets.manifest import Manifest
from ecgchat_lib.datasets.ptbxl import load_ptbxl
from ecgchat_lib.datasets.reports import report_from_statements
from ecgchat_lib.errors import EcgChatError, ParameterError
from ecgchat_lib.paths import data_folder

VERSION = 1  # of the generator: another number means that the same seed gives another ECG

# Dower's matrix: rows I, II, V1–V6; columns left, foot, back (Dower et al. 1980, table of the 8 independent leads).
DOWER = np.array(
    [
        [0.632, -0.235, 0.059],
        [0.235, 1.066, -0.132],
        [-0.515, 0.157, -0.917],
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ]
)

Truth = dict[str, object]
Vector = tuple[float, float, float]

# Finding → its share where the finding is drawn; roughly PTB-XL's order of frequency, rare ones lifted.
FINDINGS: Mapping[str, float] = MappingProxyType(
    {
        "NORM": 0.28,
        "SBRAD": 0.05,
        "STACH": 0.05,
        "AFIB": 0.08,
        "AFLT": 0.03,
        "1AVB": 0.05,
        "CLBBB": 0.05,
        "CRBBB": 0.05,
        "LAFB": 0.05,
        "PVC": 0.05,
        "PAC": 0.03,
        "LVH": 0.06,
        "IMI": 0.06,
        "ASMI": 0.05,
        "STD_": 0.03,
        "NDT": 0.03,
        "LNGQT": 0.02,
    }
)

_STATEMENTS: Mapping[str, tuple[tuple[str, float], ...]] = MappingProxyType(
    {
        "NORM": (("NORM", 100.0),),
        "SBRAD": (("NORM", 80.0),),
        "STACH": (("NORM", 80.0),),
        "AFIB": (),
        "AFLT": (),
        "1AVB": (("1AVB", 100.0),),
        "CLBBB": (("CLBBB", 100.0),),
        "CRBBB": (("CRBBB", 100.0),),
        "LAFB": (("LAFB", 100.0),),
        "PVC": (("PVC", 100.0),),
        "PAC": (("PAC", 0.0),),
        "LVH": (("LVH", 100.0), ("VCLVH", 0.0)),
        "IMI": (("IMI", 100.0), ("QWAVE", 0.0)),
        "ASMI": (("ASMI", 100.0), ("ABQRS", 0.0)),
        "STD_": (("NST_", 100.0), ("STD_", 0.0)),
        "NDT": (("NDT", 100.0), ("LOWT", 0.0)),
        "LNGQT": (("LNGQT", 100.0),),
    }
)

# Findings of the shape may come with another rhythm than sinus rhythm; the share of each.
_OTHER_RHYTHMS = (("SBRAD", 0.08), ("STACH", 0.08), ("AFIB", 0.08))
_SHAPE_FINDINGS = ("CLBBB", "CRBBB", "LAFB", "LVH", "IMI", "ASMI", "STD_", "NDT")


@dataclass(frozen=True)
class SyntheticEcg:
    """One synthetic ECG and what is known of it.

    Attributes:
        signal: float32 (12, time), mV, whole multiples of 0.001 mV; leads I II III aVR aVL aVF V1–V6.
        fs: sampling rate, Hz.
        statements: (SCP code, likelihood) pairs, as PTB-XL would list them.
        truth: `r_peaks` (sample numbers of all QRS, int array), `beat_types` (tuple of N, A or V per peak), and the
            medians `rr_ms`, `pr_ms`, `qrs_ms`, `qt_ms`, further `heart_rate_bpm`, `axis_deg` (NaN where a thing
            doesn't exist, such as PR in atrial fibrillation), `finding` and `rhythm`.
        report: English text made from the statements.
        age: years.
        sex: `male` or `female`.
    """

    signal: np.ndarray
    fs: float
    statements: tuple[tuple[str, float], ...]
    truth: Truth
    report: str
    age: float
    sex: str


@dataclass(frozen=True)
class _Wave:
    """A bell: centre and widths (rise, fall; standard deviations) in ms after the QRS onset, and its vector in mV."""

    center: float
    rise: float
    fall: float
    vector: Vector


@dataclass(frozen=True)
class _Heart:
    """What stays the same from beat to beat: sizes in mV, times in ms, angles in degrees."""

    pr: float
    qrs: float
    qtc: float  # Fridericia, ms
    p: tuple[_Wave, ...]  # times after P onset
    ventricle: tuple[_Wave, ...]  # times after QRS onset, as fractions of `qrs`
    t_vector: Vector
    st_vector: Vector = (0.0, 0.0, 0.0)
    t_width: float = 1.0
    chest: tuple[float, ...] = (1.0,) * 6  # how near each chest electrode lies: gains of V1–V6


def synthesize(
    seed: int,
    *,
    finding: str | None = None,
    fs: float = 500.0,
    seconds: float = 10.0,
    patient_seed: int | None = None,
) -> SyntheticEcg:
    """Make one ECG; the same arguments give the same numbers on any machine.

    Args:
        seed: which ECG, ≥ 0.
        finding: one of `FINDINGS`; None draws one with the shares given there.
        fs: sampling rate, Hz, 50–5000.
        seconds: length, 2–600.
        patient_seed: whose heart it is (age, sex, axis, sizes); two ECGs of one patient share it. None takes `seed`.

    Raises:
        ParameterError: an argument is out of range, or the finding is unknown.
    """
    _check_arguments(seed, finding, fs, seconds)
    draw = np.random.default_rng([seed, 1])
    body = np.random.default_rng([seed if patient_seed is None else patient_seed, 2])
    if finding is None:
        finding = str(draw.choice(list(FINDINGS), p=np.array(list(FINDINGS.values())) / sum(FINDINGS.values())))
    rhythm = _rhythm_of(finding, draw)
    age, sex = _person(finding, body)
    heart = _heart(finding, age, sex, body)
    beats = _beats(rhythm, finding, seconds, draw)
    vector, truth = _heart_vector(heart, beats, rhythm, fs, seconds, draw)
    if rhythm in ("AFIB", "AFLT"):
        vector += _atrial_activity(rhythm, beats, fs, vector.shape[1], draw)
    units = _twelve_leads(_project(vector, heart.chest) + _noise(fs, vector.shape[1], draw))
    statements = (*_STATEMENTS[finding], (rhythm, 0.0))
    truth |= {"finding": finding, "rhythm": rhythm}
    rate = truth["heart_rate_bpm"]
    report = report_from_statements(statements, heart_rate_bpm=rate, seed=seed)  # type: ignore[arg-type]
    return SyntheticEcg((units / 1000).astype(np.float32), fs, statements, truth, report, age, sex)


def _check_arguments(seed: int, finding: str | None, fs: float, seconds: float) -> None:
    if seed < 0:
        raise ParameterError(f"seed {seed}: expected a whole number ≥ 0")
    if finding is not None and finding not in FINDINGS:
        raise ParameterError(f"finding {finding!r}: expected one of {', '.join(FINDINGS)}")
    if not 50 <= fs <= 5000:
        raise ParameterError(f"fs {fs}: expected 50 to 5000 Hz")
    if not 2 <= seconds <= 600:
        raise ParameterError(f"seconds {seconds}: expected 2 to 600")


def _rhythm_of(finding: str, draw: np.random.Generator) -> str:
    if finding in ("SBRAD", "STACH", "AFIB", "AFLT"):
        return finding
    if finding in _SHAPE_FINDINGS:
        pick = draw.random()
        for rhythm, share in _OTHER_RHYTHMS:
            if pick < share:
                return rhythm
            pick -= share
    return "SR"


def _person(finding: str, body: np.random.Generator) -> tuple[float, str]:
    young = finding in ("NORM", "SBRAD", "STACH", "PAC")
    age = float(np.clip(np.round(body.normal(46 if young else 67, 16 if young else 11)), 18, 89))
    return age, "female" if body.random() < 0.48 else "male"


# --- the shape of a beat -----------------------------------------------------------------------------------------


def _turned(size: float, axis_deg: float, back: float) -> Vector:
    """Heart vector that limb leads show as `size` mV at `axis_deg` (0° lead I, 90° aVF), with a part to the back."""
    angle = math.radians(axis_deg)
    one = size * math.cos(angle) - DOWER[0, 2] * back
    two = size * math.cos(angle - math.pi / 3) - DOWER[1, 2] * back
    (a, b), (c, d) = DOWER[0, :2], DOWER[1, :2]
    left, foot = (d * one - b * two) / (a * d - b * c), (a * two - c * one) / (a * d - b * c)
    return (float(left), float(foot), back)


def _heart(finding: str, age: float, sex: str, body: np.random.Generator) -> _Heart:
    """Draw a normal heart and change it as the finding demands."""
    size = math.exp(body.normal(0.0, 0.16)) * (0.92 if sex == "female" else 1.0)
    axis = float(np.clip(body.normal(54 - 0.5 * (age - 40), 24), -22, 76))
    width = float(np.clip(body.normal(90, 6), 78, 104))
    qtc = float(np.clip(body.normal(404 if sex == "male" else 412, 11), 378, 432))
    back = size * body.uniform(0.35, 0.6)
    ventricle = (
        _Wave(0.20, 0.085, 0.085, (-0.17 * size, -0.06 * size, -0.30 * size * body.uniform(0.8, 1.2))),
        _Wave(0.47, 0.115, 0.125, _turned(1.05 * size, axis, back)),
        _Wave(0.66, 0.12, 0.11, _turned(0.26 * size, axis + 160 + body.normal(0, 15), 0.42 * size)),
    )
    t_axis = axis * 0.7 + 12 + body.normal(0, 6)
    t_size = 0.30 * math.exp(body.normal(0.0, 0.15))
    heart = _Heart(
        pr=float(np.clip(body.normal(156 + 0.15 * (age - 50), 14), 125, 192)),
        qrs=width,
        qtc=qtc,
        p=_atrial_waves(body),
        ventricle=ventricle,
        t_vector=_turned(t_size, t_axis, -t_size * body.uniform(0.3, 0.6)),
        chest=tuple(float(gain) for gain in _CHEST_GAINS * np.exp(body.normal(0.0, 0.12, 6))),
    )
    change = _CHANGES.get(finding)
    return heart if change is None else change(heart, size, axis, body)


def _atrial_waves(body: np.random.Generator) -> tuple[_Wave, ...]:
    size = math.exp(body.normal(0.0, 0.15))
    right = (0.05 * size, 0.085 * size, -0.045 * size)
    left = (0.075 * size, 0.065 * size, 0.05 * size)
    length = float(np.clip(body.normal(100, 7), 84, 116))
    return (
        _Wave(0.38 * length, 0.145 * length, 0.145 * length, right),
        _Wave(0.66 * length, 0.145 * length, 0.145 * length, left),
    )


# Dower's lead vectors are averages over torsos; measured amplitudes of V2–V4 in PTB-XL ask for more.
_CHEST_GAINS = np.array([0.85, 1.55, 1.5, 1.25, 1.0, 0.95])

_Change = Callable[[_Heart, float, float, np.random.Generator], _Heart]


def _first_degree_block(heart: _Heart, size: float, axis: float, body: np.random.Generator) -> _Heart:
    return replace(heart, pr=float(body.uniform(222, 310)))


def _left_bundle_branch_block(heart: _Heart, size: float, axis: float, body: np.random.Generator) -> _Heart:
    axis = float(np.clip(axis - 25, -40, 60))
    back = size * body.uniform(0.95, 1.3)
    ventricle = (
        _Wave(0.24, 0.09, 0.10, _turned(0.22 * size, axis, 0.12 * size)),
        _Wave(0.42, 0.10, 0.12, _turned(0.60 * size, axis, back)),
        _Wave(0.66, 0.12, 0.11, _turned(0.68 * size, axis - 8, 0.75 * back)),
    )
    t_vector = _turned(-0.22 * size, axis, -0.28 * size)
    st_vector = _turned(-0.06 * size, axis, -0.11 * size)
    return replace(
        heart,
        qrs=float(body.uniform(134, 166)),
        ventricle=ventricle,
        t_vector=t_vector,
        st_vector=st_vector,
        qtc=heart.qtc + 28,
    )


def _right_bundle_branch_block(heart: _Heart, size: float, axis: float, body: np.random.Generator) -> _Heart:
    septal, main, _ = heart.ventricle
    ventricle = (
        _Wave(0.14, 0.055, 0.06, septal.vector),
        _Wave(0.31, 0.075, 0.08, tuple(0.95 * part for part in main.vector)),  # type: ignore[arg-type]
        _Wave(0.66, 0.13, 0.13, (-0.52 * size, 0.10 * size, -0.62 * size * body.uniform(0.85, 1.25))),
    )
    left, foot, _ = heart.t_vector
    return replace(
        heart,
        qrs=float(body.uniform(126, 156)),
        ventricle=ventricle,
        t_vector=(left * 1.1, foot, 0.12),
        qtc=heart.qtc + 15,
    )


def _left_anterior_fascicular_block(heart: _Heart, size: float, axis: float, body: np.random.Generator) -> _Heart:
    axis = float(body.uniform(-66, -48))
    _, main, _ = heart.ventricle
    ventricle = (
        _Wave(0.17, 0.07, 0.08, (-0.10 * size, 0.34 * size, -0.24 * size)),
        _Wave(0.50, 0.115, 0.12, _turned(1.15 * size, axis, main.vector[2])),
        _Wave(0.78, 0.085, 0.08, _turned(0.30 * size, axis - 60, 0.22 * size)),
    )
    return replace(heart, qrs=float(body.uniform(94, 110)), ventricle=ventricle)


def _left_ventricular_hypertrophy(heart: _Heart, size: float, axis: float, body: np.random.Generator) -> _Heart:
    grown = 1.45 * body.uniform(0.93, 1.15) / size  # SV1 + RV5 above 3.5 mV, the Sokolow-Lyon criterion
    septal, main, last = heart.ventricle
    axis = float(np.clip(axis - 15, -25, 45))
    big = size * grown
    ventricle = (
        replace(septal, vector=tuple(1.1 * part for part in septal.vector)),  # type: ignore[arg-type]
        replace(main, vector=_turned(1.05 * big, axis, 0.70 * big)),
        last,
    )
    chest = tuple(float(gain) for gain in np.maximum(heart.chest, _CHEST_GAINS))
    strain = body.uniform(0.5, 1.0)
    t_vector = _turned(-0.20 * strain, axis, -0.28 * (0.4 + strain))
    st_vector = _turned(-0.08 * strain, axis, -0.08)
    return replace(
        heart,
        qrs=float(body.uniform(98, 112)),
        ventricle=ventricle,
        t_vector=t_vector,
        st_vector=st_vector,
        chest=chest,
    )


def _inferior_infarction(heart: _Heart, size: float, axis: float, body: np.random.Generator) -> _Heart:
    _, main, last = heart.ventricle
    depth = body.uniform(0.42, 0.62) * max(size, 0.85)
    ventricle = (
        _Wave(0.22, 0.10, 0.11, (-0.04 * size, -depth, -0.22 * size)),
        _Wave(0.55, 0.10, 0.11, _turned(1.0 * size, float(np.clip(axis, 0, 30)), main.vector[2])),
        last,
    )
    recent = body.random()  # old infarction: flat T; recent one: raised ST and inverted T
    left, _, back = heart.t_vector
    t_vector = (left, -0.10 - 0.14 * recent, back)
    return replace(
        heart,
        ventricle=ventricle,
        t_vector=t_vector,
        st_vector=(-0.04 * recent, 0.12 * recent, 0.02),
        qrs=heart.qrs + 6,
    )


def _anteroseptal_infarction(heart: _Heart, size: float, axis: float, body: np.random.Generator) -> _Heart:
    _, main, last = heart.ventricle
    depth = body.uniform(0.45, 0.65) * max(size, 0.85)
    ventricle = (
        _Wave(0.28, 0.11, 0.12, (0.05 * size, -0.04 * size, 0.8 * depth)),
        _Wave(0.48, 0.12, 0.12, _turned(1.05 * size, axis, main.vector[2] + 0.35 * size)),
        last,
    )
    recent = body.random()
    left, foot, _ = heart.t_vector
    t_vector = (left * 0.6, foot * 0.8, 0.06 + 0.24 * recent)
    return replace(heart, ventricle=ventricle, t_vector=t_vector, st_vector=(0.02, 0.0, -0.06 - 0.10 * recent))


def _st_depression(heart: _Heart, size: float, axis: float, body: np.random.Generator) -> _Heart:
    depth = body.uniform(0.11, 0.18)
    left, foot, back = heart.t_vector
    return replace(heart, st_vector=_turned(-depth, axis, 0.05), t_vector=(left * 0.85, foot * 0.85, back * 0.85))


def _flat_t(heart: _Heart, size: float, axis: float, body: np.random.Generator) -> _Heart:
    shrunk = body.uniform(-0.25, 0.2)
    left, foot, back = heart.t_vector
    return replace(heart, t_vector=(left * shrunk, foot * shrunk, back * shrunk * 0.5))


def _long_qt(heart: _Heart, size: float, axis: float, body: np.random.Generator) -> _Heart:
    return replace(heart, qtc=float(body.uniform(492, 555)), t_width=1.25)


_CHANGES: Mapping[str, _Change] = MappingProxyType(
    {
        "1AVB": _first_degree_block,
        "CLBBB": _left_bundle_branch_block,
        "CRBBB": _right_bundle_branch_block,
        "LAFB": _left_anterior_fascicular_block,
        "LVH": _left_ventricular_hypertrophy,
        "IMI": _inferior_infarction,
        "ASMI": _anteroseptal_infarction,
        "STD_": _st_depression,
        "NDT": _flat_t,
        "LNGQT": _long_qt,
    }
)


# --- the rhythm --------------------------------------------------------------------------------------------------

# Lowest and highest rate per minute; for atrial flutter that of the atria.
_RATES = {
    "SR": (60.0, 94.0),
    "SBRAD": (40.0, 56.0),
    "STACH": (104.0, 130.0),
    "AFIB": (66.0, 130.0),
    "AFLT": (250.0, 310.0),
}


@dataclass(frozen=True)
class _Beats:
    """The beats of a recording and a little around it: QRS onsets in s, kinds N, A or V, basic rate per minute."""

    onsets: np.ndarray
    kinds: tuple[str, ...]
    rate: float


def _beats(rhythm: str, finding: str, seconds: float, draw: np.random.Generator) -> _Beats:
    """Place the beats from a second before the recording to a second after it."""
    low, high = _RATES[rhythm]
    if finding == "LNGQT":
        high = 80.0  # at a fast rate a long QT would run into the next P wave
    rate = float(np.clip(draw.normal((low + high) / 2, (high - low) / 4), low, high))
    interval = _interval_source(rhythm, 60.0 / rate, draw)
    ectopic = _ectopic_places(finding, seconds, draw)
    onsets: list[float] = []
    kinds: list[str] = []
    due = -1.5 + draw.uniform(0.0, 0.5)
    while due < seconds + 1.0:
        rr = interval(due)
        early = rr * draw.uniform(0.28, 0.36) if len(onsets) in ectopic else 0.0
        onsets.append(due - early)
        kinds.append("N" if not early else "V" if finding == "PVC" else "A")
        # A ventricular beat leaves the sinus node alone: the next beat comes when it was due. An atrial one resets it.
        due = due + rr if kinds[-1] != "A" else onsets[-1] + 1.05 * rr
    return _Beats(np.array(onsets), tuple(kinds), rate)


def _interval_source(rhythm: str, base: float, draw: np.random.Generator) -> Callable[[float], float]:
    """Return a function: time (s) → the next RR interval (s)."""
    breath, phase = draw.uniform(0.2, 0.33), draw.uniform(0, 2 * math.pi)
    depth = draw.uniform(0.006, 0.03) * (0.4 if rhythm == "STACH" else 1.0)
    drop = [int(draw.integers(2, 5))]

    def sinus(now: float) -> float:
        return base * (1 + depth * math.sin(2 * math.pi * breath * now + phase) + draw.normal(0, 0.006))

    def fibrillation(now: float) -> float:
        return base * float(np.clip(draw.gamma(16.0, 1 / 16.0), 0.55, 1.75))

    def flutter(now: float) -> float:
        if draw.random() < 0.2:
            drop[0] = int(draw.integers(2, 5))
        return base * drop[0]

    return {"AFIB": fibrillation, "AFLT": flutter}.get(rhythm, sinus)


def _ectopic_places(finding: str, seconds: float, draw: np.random.Generator) -> set[int]:
    """Which beats are premature: one in four or five, never two in a row."""
    if finding not in ("PVC", "PAC"):
        return set()
    return set(range(3 + int(draw.integers(0, 2)), round(3 * seconds) + 5, int(draw.integers(4, 6))))


# --- from beats to signal ----------------------------------------------------------------------------------------

_REACH = 4.0  # a wave is drawn to this many standard deviations, where it is at 0.03 % of its height
_QRS_EDGE = 0.02  # QRS begins and ends where the heart vector is this part of its largest length
_EDGE = 0.06  # P begins, and T ends, at this part of its height
_BELL_EDGE = math.sqrt(-2 * math.log(_EDGE))  # the same in standard deviations


def _edges(waves: Sequence[_Wave], share: float) -> tuple[float, float, float]:
    """First and last time where the sum of the waves has `share` of its largest length, and the time of the largest."""
    start = min(wave.center - _REACH * wave.rise for wave in waves)
    stop = max(wave.center + _REACH * wave.fall for wave in waves)
    time = np.linspace(start, stop, 800)
    length = np.sqrt(np.sum(_sum_waves(waves, time) ** 2, axis=0))
    above = np.flatnonzero(length >= share * length.max())
    return float(time[above[0]]), float(time[above[-1]]), float(time[int(length.argmax())])


def _sum_waves(waves: Sequence[_Wave], time: np.ndarray) -> np.ndarray:
    """Heart vector (3, time) in mV of some waves, at times in ms."""
    out = np.zeros((3, time.size))
    for wave in waves:
        distance = time - wave.center
        bell = np.exp(-0.5 * (distance / np.where(distance < 0, wave.rise, wave.fall)) ** 2)
        out += np.array(wave.vector)[:, None] * bell
    return out


def _scaled(waves: Sequence[_Wave], factor: float, shift: float) -> tuple[_Wave, ...]:
    return tuple(_Wave(w.center * factor + shift, w.rise * factor, w.fall * factor, w.vector) for w in waves)


@dataclass(frozen=True)
class _Beat:
    """One kind of beat: waves in ms after the QRS onset, by part, since QT changes with the rate."""

    p: tuple[_Wave, ...]
    qrs: tuple[_Wave, ...]
    r_peak: float  # ms after the QRS onset
    qrs_ms: float
    st_vector: Vector
    t_vector: Vector
    t_width: float

    def waves(self, qt: float) -> tuple[_Wave, ...]:
        """All waves for one QT interval in ms."""
        fall = 0.085 * qt * self.t_width**0.5
        peak = qt - _BELL_EDGE * fall
        t_wave = _Wave(peak, 0.135 * qt * self.t_width, fall, self.t_vector)
        middle = self.qrs_ms + 0.35 * (peak - self.qrs_ms)
        st = _Wave(middle, (middle - self.qrs_ms) / 2.3, (peak - self.qrs_ms) / 2.5, self.st_vector)
        return (*self.p, *self.qrs, st, t_wave)


def _conducted_beat(heart: _Heart, pr: float, p: tuple[_Wave, ...]) -> _Beat:
    """Stretch the heart's waves so that PR and QRS are exactly what they should be, as the edges above see them."""
    first, last, peak = _edges(heart.ventricle, _QRS_EDGE)
    factor = heart.qrs / (last - first)
    qrs = _scaled(heart.ventricle, factor, -first * factor)
    p_wave = _scaled(p, 1.0, -pr - _edges(p, _EDGE)[0]) if p else ()
    return _Beat(p_wave, qrs, (peak - first) * factor, heart.qrs, heart.st_vector, heart.t_vector, heart.t_width)


def _premature_ventricular_beat(draw: np.random.Generator) -> _Beat:
    """Wide, large, without P wave, and with a T wave that points the other way."""
    axis, size, back = float(draw.uniform(80, 130)), float(draw.uniform(1.2, 1.7)), float(draw.uniform(-0.5, 0.6))
    waves = (
        _Wave(0.36, 0.14, 0.16, _turned(size, axis, back)),
        _Wave(0.70, 0.13, 0.13, _turned(0.45 * size, axis + 40, 0.4 * back)),
    )
    heart = _Heart(0.0, float(draw.uniform(140, 168)), 0.0, (), waves, _turned(-0.45 * size, axis, -0.4 * back))
    return _conducted_beat(heart, 0.0, ())


def _other_p(p: tuple[_Wave, ...]) -> tuple[_Wave, ...]:
    """The P wave of an atrial premature beat, from elsewhere in the atria."""
    return tuple(replace(w, vector=(0.9 * w.vector[0], -0.6 * w.vector[1], 1.2 * w.vector[2])) for w in p)


def _heart_vector(
    heart: _Heart, beats: _Beats, rhythm: str, fs: float, seconds: float, draw: np.random.Generator
) -> tuple[np.ndarray, Truth]:
    """Sum the waves of all beats into (3, time) mV, and note what is true of them."""
    mean_rr = float(np.mean(np.diff(beats.onsets)))
    pr = max(heart.pr - 0.35 * max(60.0 / mean_rr - 75.0, 0.0), 112.0)
    p = () if rhythm in ("AFIB", "AFLT") else heart.p
    shapes = {"N": _conducted_beat(heart, pr, p)}
    if "A" in beats.kinds:
        shapes["A"] = _conducted_beat(heart, pr - 12.0, _other_p(p))
    if "V" in beats.kinds:
        shapes["V"] = _premature_ventricular_beat(draw)
    vector = np.zeros((3, round(fs * seconds)))
    breath, phase = draw.uniform(0.2, 0.33), draw.uniform(0, 2 * math.pi)
    rr_before = np.concatenate([[mean_rr], np.diff(beats.onsets)])
    qts = heart.qtc * np.cbrt(0.75 * mean_rr + 0.25 * rr_before)
    for onset, kind, qt in zip(beats.onsets, beats.kinds, qts, strict=True):
        qt = qt + 40.0 if kind == "V" else qt
        gain = 1 + 0.03 * math.sin(2 * math.pi * breath * onset + phase)
        _add_waves(vector, shapes[kind].waves(qt), onset, gain, fs)
    return vector, _truth(heart, beats, shapes, qts, pr if p else math.nan, fs, vector.shape[1])


def _add_waves(vector: np.ndarray, waves: Sequence[_Wave], onset: float, gain: float, fs: float) -> None:
    for wave in waves:
        start = math.ceil((onset + (wave.center - _REACH * wave.rise) / 1000) * fs)
        stop = math.floor((onset + (wave.center + _REACH * wave.fall) / 1000) * fs) + 1
        start, stop = max(start, 0), min(stop, vector.shape[1])
        if start < stop and any(wave.vector):
            time = np.arange(start, stop) * (1000 / fs) - onset * 1000
            vector[:, start:stop] += gain * _sum_waves((wave,), time)


def _truth(
    heart: _Heart, beats: _Beats, shapes: Mapping[str, _Beat], qts: np.ndarray, pr: float, fs: float, total: int
) -> Truth:
    peaks = np.round((beats.onsets + [shapes[kind].r_peak / 1000 for kind in beats.kinds]) * fs).astype(np.int64)
    inside = (peaks >= 0) & (peaks < total)
    kinds = tuple(kind for kind, here in zip(beats.kinds, inside, strict=True) if here)
    normal = inside & (np.array(beats.kinds) == "N")
    rr = np.diff(beats.onsets[inside]) * 1000
    return {
        "r_peaks": peaks[inside],
        "beat_types": kinds,
        "rr_ms": round(float(np.median(rr)), 1) if rr.size else math.nan,
        "rr_sd_ms": round(float(np.std(rr)), 1) if rr.size else math.nan,
        "pr_ms": round(pr, 1),
        "qrs_ms": round(heart.qrs, 1),
        "qt_ms": round(float(np.median(qts[normal])), 1) if normal.any() else math.nan,
        "heart_rate_bpm": round(60000 / float(np.mean(rr)), 1) if rr.size else math.nan,
        "axis_deg": round(_axis(shapes["N"].qrs), 1),
    }


def _axis(qrs: Sequence[_Wave]) -> float:
    """Frontal QRS axis in degrees, from the net areas of leads I and aVF: 0° left, 90° foot, −180 < axis ≤ 180."""
    area = np.sum([np.array(wave.vector) * (wave.rise + wave.fall) for wave in qrs], axis=0)
    one, two = float(DOWER[0] @ area), float(DOWER[1] @ area)
    return math.degrees(math.atan2((2 * two - one) / math.sqrt(3), one))


def _atrial_activity(rhythm: str, beats: _Beats, fs: float, total: int, draw: np.random.Generator) -> np.ndarray:
    """Fibrillatory waves or flutter's sawtooth, (3, time) mV; largest in V1, and in II, III and aVF respectively."""
    time = np.arange(total) / fs
    if rhythm == "AFLT":
        turns = 2 * math.pi * beats.rate / 60 * (time - beats.onsets[0])
        saw = np.sin(turns) + 0.42 * np.sin(2 * turns) + 0.16 * np.sin(3 * turns)
        return draw.uniform(0.10, 0.15) * np.array([0.15, -1.0, -0.45])[:, None] * saw
    turns = 2 * math.pi * draw.uniform(5.2, 7.2) * time
    for _ in range(3):  # the rate of fibrillation wanders
        turns = turns + draw.uniform(0.6, 1.6) * np.sin(
            2 * math.pi * draw.uniform(0.15, 1.3) * time + draw.uniform(0, 6.3)
        )
    swell = 1 + 0.4 * np.sin(2 * math.pi * draw.uniform(0.2, 0.5) * time + draw.uniform(0, 6.3))
    first = swell * (np.sin(turns) + 0.35 * np.sin(2 * turns + 0.8))
    second = np.sin(0.93 * turns + 1.7)
    size = draw.uniform(0.035, 0.075)
    return size * (np.array([-0.25, 0.45, -0.85])[:, None] * first + np.array([0.3, 0.35, 0.2])[:, None] * second)


def _project(vector: np.ndarray, chest: tuple[float, ...]) -> np.ndarray:
    """Heart vector (3, time) → leads I, II, V1–V6 (8, time). Written out as sums: the same digits on every machine."""
    matrix = DOWER * np.array([1.0, 1.0, *chest])[:, None]
    return matrix[:, 0, None] * vector[0] + matrix[:, 1, None] * vector[1] + matrix[:, 2, None] * vector[2]


def _noise(fs: float, total: int, draw: np.random.Generator) -> np.ndarray:
    """Breathing, drift, muscle and sometimes mains in eight leads, (8, time) mV."""
    time = np.arange(total) / fs
    breath = np.sin(2 * math.pi * draw.uniform(0.2, 0.33) * time + draw.uniform(0, 6.3))
    drift = np.sin(2 * math.pi * draw.uniform(0.03, 0.12) * time + draw.uniform(0, 6.3))
    out = draw.normal(0, 0.025, (8, 1)) * breath + draw.normal(0, 0.04, (8, 1)) * drift
    muscle = draw.standard_normal((8, total))
    out += 0.003 * math.exp(draw.normal(0.0, 0.6)) * (muscle + 0.5 * np.roll(muscle, 1, axis=1))
    if draw.random() < 0.25:
        mains = np.sin(2 * math.pi * 50.0 * time + draw.uniform(0, 6.3))
        out += draw.normal(0, 0.005, (8, 1)) * mains
    return out


def _twelve_leads(eight: np.ndarray) -> np.ndarray:
    """Round I and II to 2 µV and V1–V6 to 1 µV, derive the other four: int16 (12, time) in µV, exact in every sum."""
    frontal = np.round(eight[:2] * 500).astype(np.int32) * 2
    one, two = np.clip(frontal, -16000, 16000)
    chest = np.clip(np.round(eight[2:] * 1000), -32000, 32000)
    limb = [one, two, two - one, -(one + two) // 2, one - two // 2, two - one // 2]
    return np.vstack([*limb, chest]).astype(np.int16)


# --- PTB-XL's layout ---------------------------------------------------------------------------------------------

_HEADER_LEADS = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")  # PTB-XL's spelling

TRUTH_TABLE = "synthetic_truth.csv"

DATABASE_COLUMNS = (
    *("ecg_id", "patient_id", "age", "sex", "height", "weight", "nurse", "site", "device", "recording_date", "report"),
    *("scp_codes", "heart_axis", "infarction_stadium1", "infarction_stadium2", "validated_by", "second_opinion"),
    *("initial_autogenerated_report", "validated_by_human", "baseline_drift", "static_noise", "burst_noise"),
    *("electrodes_problems", "extra_beats", "pacemaker", "strat_fold", "filename_lr", "filename_hr"),
)


def write_synthetic(folder: str | Path, n: int, seed: int, *, fs: float = 500.0) -> Manifest:
    """Write synthetic ECGs as a dataset in PTB-XL's published layout, and load it with `load_ptbxl`.

    Patients have one to three recordings, and all of a patient's lie in one of the ten folds. Beside PTB-XL's own files
    the folder gets `synthetic_truth.csv` (what is known of each ECG) and `synthetic.json` (how it was made).

    Args:
        folder: made if missing; files of an earlier call are overwritten.
        n: number of recordings, 1–99999.
        seed: which dataset, ≥ 0; the same seed, n and fs give identical files.
        fs: sampling rate, Hz.

    Returns:
        The manifest of `load_ptbxl(folder)`.

    Raises:
        ParameterError: an argument is out of range.
        EcgChatError: the folder holds a dataset that isn't synthetic; it is left alone.
    """
    folder = Path(folder)
    if not 1 <= n <= 99999:
        raise ParameterError(f"n {n}: expected 1 to 99999 recordings")
    _check_arguments(seed, None, fs, 10.0)
    if (folder / "ptbxl_database.csv").exists() and not (folder / "synthetic.json").exists():
        raise EcgChatError(
            f"{folder}: holds another dataset (ptbxl_database.csv without synthetic.json). Name another folder"
        )
    plan = _plan(n, seed)
    rows, truths = [], []
    for number, (patient, finding, fold) in enumerate(tqdm(plan, desc="writing", unit="record", disable=None), start=1):
        ecg = synthesize(_mixed(seed, number), finding=finding, fs=fs, patient_seed=_mixed(seed, 10**6 + patient))
        path = f"records500/{number // 1000 * 1000:05d}/{number:05d}_hr"
        _write_wfdb(folder / path, ecg)
        rows.append(_database_row(number, patient, fold, path, ecg))
        truths.append(_truth_row(number, ecg))
    _write_table(folder / "ptbxl_database.csv", pd.DataFrame(rows, columns=list(DATABASE_COLUMNS)))
    _write_table(folder / TRUTH_TABLE, pd.DataFrame(truths))
    labels = data_folder() / "labels" / "scp_statements.csv"
    _write_bytes(folder / "scp_statements.csv", labels.read_bytes())
    made = {"generator": "ecgchat_lib.datasets.synthetic", "version": VERSION, "n": n, "seed": seed, "fs": fs}
    _write_bytes(folder / "synthetic.json", (json.dumps(made) + "\n").encode())
    return load_ptbxl(folder)


def _mixed(*numbers: int) -> int:
    """Turn several numbers into one seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _plan(n: int, seed: int) -> list[tuple[int, str, int]]:
    """Patient, finding and fold of each recording; folds take turns over the patients of each superclass."""
    draw = np.random.default_rng([seed, 3])
    names, shares = list(FINDINGS), np.array(list(FINDINGS.values()))
    turn: dict[tuple[str, ...], int] = {}
    plan: list[tuple[int, str, int]] = []
    patient = 0
    while len(plan) < n:
        patient += 1
        finding = names[int(draw.choice(len(names), p=shares / shares.sum()))]
        group = superclasses(code for code, _ in _STATEMENTS[finding])
        turn[group] = turn.get(group, int(draw.integers(0, 10))) % 10 + 1
        recordings = 1 + int(draw.choice(3, p=(0.7, 0.2, 0.1)))
        plan += [(patient, finding, turn[group])] * min(recordings, n - len(plan))
    return plan


def _write_wfdb(path: Path, ecg: SyntheticEcg) -> None:
    """Write a record as PTB-XL does: format 16, 1000 units per mV, 12 signals in one .dat file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    units = np.round(ecg.signal.astype(np.float64) * 1000).astype("<i2")
    lines = [f"{path.name} 12 {ecg.fs:g} {units.shape[1]}"]
    for lead, row in zip(_HEADER_LEADS, units, strict=True):
        checksum = int(row.sum(dtype=np.int64)) & 0xFFFF
        lines.append(f"{path.name}.dat 16 1000.0(0)/mV 16 0 {row[0]} {checksum} 0 {lead}")
    _write_bytes(path.with_name(path.name + ".dat"), np.ascontiguousarray(units.T).tobytes())
    _write_bytes(path.with_name(path.name + ".hea"), ("\n".join(lines) + "\n").encode())


def _database_row(number: int, patient: int, fold: int, path: str, ecg: SyntheticEcg) -> dict[str, object]:
    return {
        "ecg_id": number,
        "patient_id": float(patient),
        "age": ecg.age,
        "sex": 1 if ecg.sex == "female" else 0,
        "device": "synthetic",
        "report": ecg.report,
        "scp_codes": str(dict(ecg.statements)),
        "second_opinion": False,
        "initial_autogenerated_report": True,
        "validated_by_human": False,
        "strat_fold": fold,
        "filename_hr": path,
    }


def _truth_row(number: int, ecg: SyntheticEcg) -> dict[str, object]:
    row = dict(ecg.truth)
    row["r_peaks"] = " ".join(str(peak) for peak in ecg.truth["r_peaks"])  # type: ignore[attr-defined]
    row["beat_types"] = "".join(ecg.truth["beat_types"])  # type: ignore[arg-type]
    return {"record": f"{number:05d}", **row}


def read_truth(folder: str | Path) -> pd.DataFrame:
    """Read what is known of a synthetic dataset: one row per record, columns as `SyntheticEcg.truth`.

    Raises:
        EcgChatError: the folder has no `synthetic_truth.csv`, so it wasn't written by `write_synthetic`.
    """
    path = Path(folder) / TRUTH_TABLE
    if not path.is_file():
        raise EcgChatError(f"{path}: no such file. Only datasets made by write_synthetic have one")
    table = pd.read_csv(path, dtype={"record": str, "r_peaks": str, "beat_types": str, "finding": str, "rhythm": str})
    peaks = [np.array(text.split(), dtype=np.int64) for text in table["r_peaks"].fillna("")]
    table["r_peaks"] = pd.Series(peaks, dtype=object, index=table.index)
    kinds = [tuple(text) for text in table["beat_types"].fillna("")]
    table["beat_types"] = pd.Series(kinds, dtype=object, index=table.index)
    return table


def _write_table(path: Path, table: pd.DataFrame) -> None:
    _write_bytes(path, table.to_csv(index=False, lineterminator="\n").encode())


def _write_bytes(path: Path, content: bytes) -> None:
    """Write through a temporary file, so that an interrupted run leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
