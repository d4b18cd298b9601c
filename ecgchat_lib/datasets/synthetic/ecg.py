"""Synthetic 12-lead ECGs with known rhythm, marks, intervals and findings.

A heart vector (left, foot, back) is a sum of bumps; Dower's matrix, varied from torso to torso, projects it to eight
leads, and the four others follow from I and II, so Einthoven's and Goldberger's equations hold exactly. It teaches and
tests; it is no substitute for real ECGs, and no result on it says anything about patients. Taught in: 02 §1.

Sources: an ECG as a sum of bell-shaped waves as in McSharry et al., IEEE Trans. Biomed. Eng. 50 (2003) 289,
doi:10.1109/TBME.2003.808805; lead projection by Dower et al., J. Electrocardiol. 13 (1980) 171.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import median
from types import MappingProxyType

import numpy as np

from ecgchat_lib.datasets.reports import report_from_statements
from ecgchat_lib.datasets.synthetic.hearts import (
    CHANGES,
    P_GAINS,
    T_GAINS,
    Heart,
    Statements,
    normal_heart,
    ventricular_heart,
)
from ecgchat_lib.datasets.synthetic.noise import add_noise
from ecgchat_lib.datasets.synthetic.rhythms import RATES, Schedule, intervals_before, make_schedule
from ecgchat_lib.datasets.synthetic.waves import TWELVE, Part, draw_part, make_part, part_marks
from ecgchat_lib.ecg.leads import LEADS
from ecgchat_lib.ecg.marks import WaveMarks
from ecgchat_lib.errors import ParameterError
from ecgchat_lib.threads import one_blas_thread

VERSION = 2  # of the generator: another number means that the same seed gives another ECG

Truth = dict[str, object]
Draw = np.random.Generator

# Finding → its share where the finding is drawn; roughly PTB-XL's order of frequency, rare ones lifted.
FINDINGS: Mapping[str, float] = MappingProxyType(
    {
        "NORM": 0.24,
        "SBRAD": 0.04,
        "STACH": 0.04,
        "SARRH": 0.02,
        "AFIB": 0.07,
        "AFLT": 0.025,
        "SVTAC": 0.01,
        "1AVB": 0.035,
        "2AVB1": 0.01,
        "2AVB2": 0.01,
        "2AVB2:1": 0.01,
        "3AVB": 0.015,
        "CLBBB": 0.04,
        "CRBBB": 0.04,
        "IRBBB": 0.03,
        "IVCD": 0.02,
        "LAFB": 0.04,
        "LPFB": 0.015,
        "WPW": 0.015,
        "PACE": 0.025,
        "PVC": 0.03,
        "BIGU": 0.01,
        "TRIGU": 0.005,
        "PAC": 0.025,
        "VT": 0.015,
        "LVH": 0.05,
        "RVH": 0.015,
        "IMI": 0.045,
        "ASMI": 0.035,
        "AMI": 0.02,
        "ALMI": 0.01,
        "LMI": 0.015,
        "STD_": 0.035,
        "NDT": 0.04,
        "INVT": 0.03,
        "LNGQT": 0.015,
        "LVOLT": 0.015,
        "HYPERK": 0.01,
        "REVERSED": 0.01,
    }
)

# What each finding is called in PTB-XL's codes; the heart may add to it. Three have no code of their own.
_STATEMENTS: Mapping[str, Statements] = MappingProxyType(
    {
        "NORM": (("NORM", 100.0),),
        "SBRAD": (("NORM", 80.0),),
        "STACH": (("NORM", 80.0),),
        "SARRH": (("NORM", 80.0),),
        "AFIB": (),
        "AFLT": (),
        "SVTAC": (),
        "2AVB1": (("2AVB", 100.0),),
        "2AVB2": (("2AVB", 100.0),),
        "2AVB2:1": (("2AVB", 100.0),),
        "PACE": (),
        "PAC": (("PAC", 0.0),),
        "BIGU": (("PVC", 100.0), ("BIGU", 0.0)),
        "TRIGU": (("PVC", 100.0), ("TRIGU", 0.0)),
        "VT": (("ABQRS", 0.0),),
        "STD_": (("NST_", 100.0), ("STD_", 0.0)),
        "NDT": (("NDT", 100.0), ("LOWT", 0.0)),
        "INVT": (),
        "LVOLT": (("LVOLT", 0.0),),
        "HYPERK": (("EL", 100.0),),
        "REVERSED": (),
    }
)
_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "2AVB1": ("Mobitz type I, Wenckebach", "PR grows until a beat is dropped"),
        "2AVB2": ("Mobitz type II", "Beats are dropped without a change of PR, Mobitz type II"),
        "2AVB2:1": ("2:1 conduction", "Every second P wave is conducted"),
        "VT": ("Ventricular tachycardia", "Broad complex tachycardia of ventricular origin"),
        "BIGU": ("Ventricular bigeminy", "Every second beat is ventricular"),
    }
)
_RHYTHM_FINDINGS = ("SBRAD", "STACH", "SARRH", "AFIB", "AFLT", "SVTAC")

# Findings of the shape may come with another rhythm than sinus rhythm; the share of each.
_OTHER_RHYTHMS = (("SBRAD", 0.08), ("STACH", 0.07), ("AFIB", 0.08), ("SARRH", 0.02))
_SHAPE_FINDINGS = frozenset(CHANGES) - {"1AVB", "WPW", "PACE", "LNGQT", "REVERSED"}


@dataclass(frozen=True)
class SyntheticEcg:
    """One synthetic ECG and what is known of it.

    Attributes:
        signal: float32 (12, time), mV, whole multiples of 0.001 mV; leads I II III aVR aVL aVF V1–V6.
        fs: sampling rate, Hz.
        statements: (SCP code, likelihood) pairs, as PTB-XL would list them.
        truth: `r_peaks` (sample numbers of all QRS, int array), `beat_types` (tuple of N, A or V per peak), and the
            medians over the marks of lead II `rr_ms`, `p_ms`, `pr_ms`, `qrs_ms`, `qt_ms` (of N beats where there are
            any), further `rr_sd_ms`, `heart_rate_bpm`, `axis_deg` (NaN where a thing doesn't exist, such as PR in
            atrial fibrillation), `finding`, `rhythm` and `stage` (acute, recent or old infarction, else "").
        report: English text made from the statements and from what no statement says.
        age: years.
        sex: `male` or `female`.
        marks: onset, peak and offset of every wave that lies wholly inside the recording, as seen in lead II.
        waves: P, QRS and T of the schedule, each `(wave, lead, 3)` in samples, cut off or not; `lead_marks` reads them.
    """

    signal: np.ndarray
    fs: float
    statements: Statements
    truth: Truth
    report: str
    age: float
    sex: str
    waves: tuple[np.ndarray, np.ndarray, np.ndarray] = field(repr=False)

    @property
    def marks(self) -> WaveMarks:
        """The marks of lead II."""
        return self.lead_marks("II")

    def lead_marks(self, lead: str) -> WaveMarks:
        """Return the marks of one lead, such as "V2".

        Raises:
            ParameterError: there is no such lead.
        """
        if lead not in LEADS:
            raise ParameterError(f"lead {lead!r}: expected one of {', '.join(LEADS)}")
        row, total = LEADS.index(lead), self.signal.shape[1]
        return WaveMarks(*(_inside(wave[:, row], total) for wave in self.waves))


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
    check_arguments(seed, finding, fs, seconds)
    with one_blas_thread():
        return _make(seed, finding, fs, seconds, seed if patient_seed is None else patient_seed)


def _make(seed: int, finding: str | None, fs: float, seconds: float, patient_seed: int) -> SyntheticEcg:
    draw = np.random.default_rng([seed, 1])
    body = np.random.default_rng([patient_seed, 2])
    if finding is None:
        finding = str(draw.choice(list(FINDINGS), p=np.array(list(FINDINGS.values())) / sum(FINDINGS.values())))
    rhythm, pattern = _rhythm_of(finding, draw)
    age, sex = _person(finding, body)
    heart = _heart(finding, age, sex, body)
    plan = _plan_of(heart, rhythm, pattern, finding, seconds, draw)
    signal = np.zeros((8, round(fs * seconds)))
    breath = _Breath(
        draw.uniform(0.18, 0.33), draw.uniform(0, 2 * math.pi), draw.normal(0.015, 0.015) + draw.normal(0, 0.02, 8)
    )
    _draw_beats(signal, plan, breath, fs, draw)
    if rhythm in ("AFIB", "AFLT"):
        signal += heart.field @ _atrial_activity(rhythm, plan.schedule, fs, signal.shape[1], draw)
    if finding == "PACE":
        _spikes(signal, plan.schedule, pattern, fs, draw)
    add_noise(signal, fs, breath.at(np.arange(signal.shape[1]) / fs), draw)
    statements = (*_STATEMENTS.get(finding, ((finding, 100.0),)), *heart.statements)
    statements += ((rhythm, 0.0),) if rhythm != "VT" else ()
    marks, truth = _known(plan, heart, fs, signal.shape[1])
    truth |= {"finding": finding, "rhythm": rhythm, "stage": heart.stage}
    report = _report(statements, finding, pattern, heart, truth, seed)
    return SyntheticEcg(
        (_twelve_leads(signal) / 1000).astype(np.float32), fs, statements, truth, report, age, sex, marks
    )


def check_arguments(seed: int, finding: str | None, fs: float, seconds: float) -> None:
    """Raise a ParameterError if an argument of `synthesize` is out of range."""
    if seed < 0:
        raise ParameterError(f"seed {seed}: expected a whole number ≥ 0")
    if finding is not None and finding not in FINDINGS:
        raise ParameterError(f"finding {finding!r}: expected one of {', '.join(FINDINGS)}")
    if not 50 <= fs <= 5000:
        raise ParameterError(f"fs {fs}: expected 50 to 5000 Hz")
    if not 2 <= seconds <= 600:
        raise ParameterError(f"seconds {seconds}: expected 2 to 600")


def codes_of(finding: str) -> tuple[str, ...]:
    """Return the codes that every ECG of a finding has, rhythm aside."""
    return tuple(code for code, _ in _STATEMENTS.get(finding, ((finding, 100.0),)))


def _rhythm_of(finding: str, draw: Draw) -> tuple[str, str]:
    """Rhythm and pattern of the beats."""
    if finding in _RHYTHM_FINDINGS:
        return finding, ""
    if finding == "VT":
        return ("VT", "VT") if draw.random() < 0.6 else ("SR", "NSVT")
    if finding == "PACE":
        return ("PACE", "VVI") if draw.random() < 0.4 else ("PACE", "DDD")
    if finding in _SHAPE_FINDINGS:
        pick = draw.random()
        for rhythm, share in _OTHER_RHYTHMS:
            if pick < share:
                return rhythm, ""
            pick -= share
    return "SR", finding


def _person(finding: str, body: Draw) -> tuple[float, str]:
    young = finding in ("NORM", "SBRAD", "STACH", "SARRH", "SVTAC", "WPW", "IRBBB", "PAC", "REVERSED")
    age = float(np.clip(np.round(body.normal(48 if young else 67, 17 if young else 12)), 18, 89))
    return age, "female" if body.random() < 0.48 else "male"


def _heart(finding: str, age: float, sex: str, body: Draw) -> Heart:
    """A normal heart, changed as the finding demands."""
    heart = normal_heart(age, sex, body)
    if finding == "2AVB2" and body.random() < 0.6:
        return replace(CHANGES["CRBBB"](heart, body), statements=(("CRBBB", 100.0),))
    if finding == "3AVB" and body.random() < 0.6:
        return ventricular_heart(heart, body, late=True)
    change = CHANGES.get(finding)
    if change is not None:
        return change(heart, body)
    if finding in ("AFIB", "PVC", "AFLT") and body.random() < 0.35:  # age brings more than one thing
        code = "STD_" if body.random() < 0.5 else "NDT"
        return replace(CHANGES[code](heart, body), statements=_STATEMENTS[code])
    return heart


# --- from heart and rhythm to beats ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Beat:
    """One kind of beat: its QRS (in shares of `qrs`) and its ST, T and U waves (in shares of the JT interval)."""

    qrs: float  # ms
    qtc: float  # ms
    complex: Part
    recovery: Part
    complex_marks: np.ndarray  # (12, 3) in shares of `qrs`
    t_marks: np.ndarray  # (12, 3) in shares of the JT interval


@dataclass(frozen=True)
class _Plan:
    """Everything that is drawn and marked: the schedule, what the letters mean, and QT of every beat in ms."""

    schedule: Schedule
    beats: Mapping[str, _Beat]
    p: Mapping[str, Part]
    qt: np.ndarray


@dataclass(frozen=True)
class _Breath:
    """Breathing: rate (Hz), phase, and by which share each of the eight leads swells with it."""

    rate: float
    phase: float
    depth: np.ndarray

    def at(self, time: np.ndarray) -> np.ndarray:
        return np.sin(2 * math.pi * self.rate * time + self.phase)


def _beat(heart: Heart, draw: Draw) -> _Beat:
    uneven = np.exp(draw.normal(0.0, 0.08, (8, 12)))  # no dipole gives this: electrodes near the heart see parts of it
    waves = (*heart.t, *heart.st)
    recovery = make_part(waves, _with_gains(heart.field, T_GAINS), 3, uneven)
    whole = make_part(heart.ventricle, heart.field, 6, uneven)
    marks = part_marks(whole, "QRS"), part_marks(recovery, "T", slice(0, len(heart.t)))
    return _Beat(heart.qrs, heart.qtc, whole, recovery, *marks)


def _with_gains(field: np.ndarray, chest: np.ndarray) -> np.ndarray:
    return field * np.concatenate([[1.0, 1.0], chest])[:, None]


def _plan_of(heart: Heart, rhythm: str, pattern: str, finding: str, seconds: float, draw: Draw) -> _Plan:
    low, high = RATES.get(rhythm, RATES["SR"])
    limits = (low, 80.0) if finding == "LNGQT" else (low, high)  # faster, a long QT would run into the next P wave
    rate_guess = (limits[0] + limits[1]) / 2
    pr = max(heart.pr - 0.35 * max(rate_guess - 75.0, 0.0), 96.0)
    schedule = make_schedule(rhythm, pattern, pr / 1000, seconds, limits, draw)
    form = np.random.default_rng([int(1000 * heart.size), int(10 * heart.qtc)])  # the patient's, not the recording's
    beats = {"N": _beat(heart, form)}
    beats["A"] = beats["N"]
    if "V" in schedule.kinds:
        beats["V"] = _beat(ventricular_heart(heart, draw), draw)
    uneven = np.exp(form.normal(0.0, 0.08, (8, 2)))
    other = tuple(w._replace(vector=(0.9 * w.vector[0], -0.6 * w.vector[1], 1.2 * w.vector[2])) for w in heart.p)
    field = _with_gains(heart.field, P_GAINS)
    p = {"S": make_part(heart.p, field, 3, uneven), "A": make_part(other, field, 3, uneven)}
    return _Plan(schedule, beats, p, _qt(schedule, beats))


def _qt(schedule: Schedule, beats: Mapping[str, _Beat]) -> np.ndarray:
    """QT of each beat, ms: Fridericia's rule for the intervals so far, and never far into the next beat."""
    rr = intervals_before(schedule.qrs, median(b - a for a, b in pairwise(schedule.qrs.tolist())))
    typical = float(np.mean(rr))
    corrected = np.array([beats[kind].qtc for kind in schedule.kinds])
    qt = corrected * np.cbrt(np.clip(0.7 * typical + 0.3 * rr, 0.25, 1.5)) + 12.0
    shortest = np.array([beats[kind].qrs for kind in schedule.kinds]) + 130.0
    return np.maximum(np.minimum(qt, 1000 * np.append(rr[1:], typical) + 40.0), shortest)


def _draw_beats(signal: np.ndarray, plan: _Plan, breath: _Breath, fs: float, draw: Draw) -> None:
    schedule = plan.schedule
    kinds, p_kinds = np.array(schedule.kinds), np.array(schedule.p_kinds)
    gains = 1 + breath.at(schedule.qrs)[:, None] * breath.depth + draw.normal(0, 0.012, (len(kinds), 1))
    for kind in dict.fromkeys(schedule.kinds):
        mine, beat = kinds == kind, plan.beats[kind]
        start, length = schedule.qrs[mine], np.full(int(mine.sum()), beat.qrs)
        draw_part(signal, beat.complex, start, length, gains[mine], fs)
        draw_part(signal, beat.recovery, start + beat.qrs / 1000, plan.qt[mine] - beat.qrs, gains[mine], fs)
    for kind in dict.fromkeys(schedule.p_kinds):
        start = schedule.p[p_kinds == kind]
        draw_part(signal, plan.p[kind], start, np.ones(start.size), np.ones((start.size, 8)), fs)


def _atrial_activity(rhythm: str, schedule: Schedule, fs: float, total: int, draw: Draw) -> np.ndarray:
    """Fibrillatory waves or flutter's sawtooth, (3, time) mV; largest in V1, and in II, III and aVF respectively."""
    time = np.arange(total) / fs
    if rhythm == "AFLT":
        turns = 2 * math.pi / schedule.base * (time - schedule.qrs[0])
        saw = np.sin(turns) + 0.42 * np.sin(2 * turns) + 0.16 * np.sin(3 * turns)
        return draw.uniform(0.08, 0.16) * np.array([0.15, -1.0, -0.45])[:, None] * saw
    turns = 2 * math.pi * draw.uniform(4.8, 7.4) * time
    for _ in range(3):  # the rate of fibrillation wanders
        turns += draw.uniform(0.6, 1.6) * np.sin(2 * math.pi * draw.uniform(0.15, 1.3) * time + draw.uniform(0, 6.3))
    swell = 1 + 0.4 * np.sin(2 * math.pi * draw.uniform(0.2, 0.5) * time + draw.uniform(0, 6.3))
    first = swell * (np.sin(turns) + 0.35 * np.sin(2 * turns + 0.8))
    second = np.sin(0.93 * turns + 1.7)
    size = 0.035 * math.exp(draw.normal(0.0, 0.5))
    return size * (np.array([-0.25, 0.45, -0.85])[:, None] * first + np.array([0.3, 0.35, 0.2])[:, None] * second)


def _spikes(signal: np.ndarray, schedule: Schedule, pattern: str, fs: float, draw: Draw) -> None:
    """A pacemaker's pulses: one or two samples high, then a small swing back."""
    way = draw.normal(0.0, 1.0, 8)
    tall = way * draw.uniform(0.15, 1.2) + np.sign(way) * 0.1
    at = [schedule.qrs - 0.012]
    if pattern == "DDD" and draw.random() < 0.5:
        at.append(schedule.p - 0.010)
    width = max(round(0.002 * fs), 1)
    for start in np.round(np.concatenate(at) * fs).astype(int).tolist():
        for offset, share in ((0, 1.0), (width, -0.15), (2 * width, -0.06)):
            left, right = max(start + offset, 0), min(start + offset + width, signal.shape[1])
            if left < right:
                signal[:, left:right] += share * tall[:, None]


def _twelve_leads(eight: np.ndarray) -> np.ndarray:
    """Round I and II to 2 µV and V1–V6 to 1 µV, derive the other four: int16 (12, time) in µV, exact in every sum."""
    frontal = np.round(eight[:2] * 500).astype(np.int32) * 2
    one, two = np.clip(frontal, -16000, 16000)
    chest = np.clip(np.round(eight[2:] * 1000), -32000, 32000)
    limb = [one, two, two - one, -(one + two) // 2, one - two // 2, two - one // 2]
    return np.vstack([*limb, chest]).astype(np.int16)


# --- what is known -----------------------------------------------------------------------------------------------


def _known(plan: _Plan, heart: Heart, fs: float, total: int) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], Truth]:
    """Marks in all leads, and the medians that follow from those of lead II."""
    schedule = plan.schedule
    kinds = np.array(schedule.kinds)
    widths = np.array([plan.beats[kind].qrs for kind in kinds])
    complexes = np.stack([plan.beats[kind].complex_marks for kind in kinds])  # (beat, 12, 3)
    recoveries = np.stack([plan.beats[kind].t_marks for kind in kinds])
    start = schedule.qrs[:, None, None] * 1000
    qrs = start + complexes * widths[:, None, None]  # ms
    t = start + widths[:, None, None] + recoveries * (plan.qt - widths)[:, None, None]
    following = np.append(qrs[1:, :, 0], np.full((1, 12), np.inf), axis=0)
    t[:, :, 2] = np.minimum(t[:, :, 2], following)  # the next beat ends a T wave that would last longer
    t[t[:, :, 1] >= following - 20] = np.nan
    p = _p_marks(plan, qrs)
    truth = _medians(plan, qrs[:, 1], t[:, 1], p[:, 1], fs, total) | {
        "axis_deg": round(_axis(plan.beats["N"].complex), 1)
    }
    per_ms = fs / 1000
    return (p * per_ms, qrs * per_ms, t * per_ms), truth


def _p_marks(plan: _Plan, qrs: np.ndarray) -> np.ndarray:
    """P waves in ms `(wave, 12, 3)`; NaN for one that a QRS hides."""
    schedule = plan.schedule
    shapes = {kind: part_marks(part, "P") for kind, part in plan.p.items()}
    if not schedule.p.size:
        return np.zeros((0, 12, 3))
    p = schedule.p[:, None, None] * 1000 + np.stack([shapes[kind] for kind in schedule.p_kinds])
    middle = p[:, :, 1]
    hidden = (middle[:, None] > qrs[None, :, :, 0] - 25) & (middle[:, None] < qrs[None, :, :, 2] + 25)
    p[hidden.any(axis=1)] = np.nan
    return p


def _inside(marks: np.ndarray, total: int) -> np.ndarray:
    return marks[(marks[:, 0] >= 0) & (marks[:, 2] <= total - 1)]


def _medians(plan: _Plan, qrs: np.ndarray, t: np.ndarray, p: np.ndarray, fs: float, total: int) -> Truth:
    """R peaks and the medians over the marks of lead II (in ms); over N beats where there are any."""
    schedule = plan.schedule
    last = (total - 1) / fs * 1000
    summits = {kind: _r_peak(plan.beats[kind]) / 1000 for kind in dict.fromkeys(schedule.kinds)}
    peaks = np.round((schedule.qrs + [summits[kind] for kind in schedule.kinds]) * fs).astype(np.int64)
    seen = (peaks >= 0) & (peaks < total)
    whole = (qrs[:, 0] >= 0) & (qrs[:, 2] <= last)
    basic = np.array(schedule.kinds) == "N"
    basic = basic if basic.any() else ~basic
    rr = np.diff(qrs[whole, 1])
    pr = np.full(len(qrs), np.nan)
    led = schedule.conducted >= 0
    if led.any():
        pr[led] = qrs[led, 0] - p[schedule.conducted[led], 0]
        pr[led & ~(p[schedule.conducted, 0] >= 0)] = np.nan
    ended = t[:, 2] <= last
    whole_p = p[(p[:, 0] >= 0) & (p[:, 2] <= last)]
    return {
        "r_peaks": peaks[seen],
        "beat_types": tuple(kind for kind, here in zip(schedule.kinds, seen, strict=True) if here),
        "rr_ms": _median(rr),
        "rr_sd_ms": round(float(np.std(rr)), 1) if rr.size else math.nan,
        "p_ms": _median(whole_p[:, 2] - whole_p[:, 0]),
        "pr_ms": _median(pr[whole & basic]),
        "qrs_ms": _median((qrs[:, 2] - qrs[:, 0])[whole & basic]),
        "qt_ms": _median((t[:, 2] - qrs[:, 0])[whole & basic & ended]),
        "heart_rate_bpm": round(60000 / float(np.mean(rr)), 1) if rr.size else math.nan,
    }


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return round(float(np.median(known)), 1) if known.size else math.nan


def _r_peak(beat: _Beat) -> float:
    """Where all leads together are largest, ms after the beginning of the QRS."""
    time = np.linspace(0, 1, 200)
    leads = TWELVE @ (beat.complex.leads @ beat.complex.bumps(time))
    return float(time[int((leads**2).sum(axis=0).argmax())]) * beat.qrs


def _axis(part: Part) -> float:
    """Frontal QRS axis in degrees, from the net areas of leads I and aVF: 0° left, 90° foot, −180 < axis ≤ 180."""
    one, two = (part.leads[:2] * (part.rise + part.fall)).sum(axis=1)
    return math.degrees(math.atan2(float(2 * two - one) / math.sqrt(3), float(one)))


# --- the report --------------------------------------------------------------------------------------------------

_AXES = (
    (-180.0, -30.0, ("Left axis deviation", "The axis is deviated to the left")),
    (100.0, 180.0, ("Right axis deviation", "The axis is deviated to the right")),
)


def _report(statements: Statements, finding: str, pattern: str, heart: Heart, truth: Truth, seed: int) -> str:
    """The statements in words, then what they can't say: type of block, stage, axis, intervals."""
    rate = float(truth["heart_rate_bpm"])  # type: ignore[arg-type]
    whose = pattern.startswith(("2AVB", "3AVB"))  # the rate of the ventricles isn't the sinus node's
    text = report_from_statements(statements, heart_rate_bpm=rate if rate > 0 and not whose else None, seed=seed)
    draw = random.Random(f"words {seed}")  # seeded by text: the same on every platform
    more = [draw.choice(_WORDS[finding])] if finding in _WORDS and pattern != "NSVT" else []
    if pattern == "NSVT":
        more.append("Runs of ventricular tachycardia")
    if whose and rate > 0:
        more.append(f"Ventricular rate {rate:.0f} per minute")
    more += heart.words
    if draw.random() < 0.3:
        more += [draw.choice(words) for low, high, words in _AXES if low <= truth["axis_deg"] < high][:1]  # type: ignore[operator]
    if draw.random() < 0.2:
        more += _spoken_intervals(truth, draw)
    return " ".join([text, *(f"{sentence}." for sentence in more)]) if more else text


def _spoken_intervals(truth: Truth, draw: random.Random) -> list[str]:
    parts = []
    for name, key in (("PR", "pr_ms"), ("QRS", "qrs_ms"), ("QT", "qt_ms")):
        value = float(truth[key])  # type: ignore[arg-type]
        if math.isfinite(value):
            longer = "duration" if name == "QRS" else "interval"
            parts.append(draw.choice((f"{name} {value:.0f} ms", f"{name} {longer} {value:.0f} ms")))
    return [", ".join(parts)] if parts else []
