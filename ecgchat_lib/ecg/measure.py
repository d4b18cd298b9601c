"""Measure a recording: rate, intervals, axis, amplitudes and ST levels, or the reason why one can't be measured.

Beats come from all twelve leads (`beats.py`), the waves' ends from a small network that looks at lead II
(`segment.py`, `delineate.py`), heights from the median beat. A value that can't be measured is NaN and has a reason; it
is never 0, and no exception is ever turned into a number. Taught in: 03 §5 and §6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from ecgchat_lib.ecg.beats import Beats, MedianBeat, align_beats, find_r_peaks, median_beat, qrs_energy
from ecgchat_lib.ecg.delineate import find_qrs, find_waves, waves_of_beats
from ecgchat_lib.ecg.filters import resample
from ecgchat_lib.ecg.leads import LEADS
from ecgchat_lib.ecg.marks import WaveMarks
from ecgchat_lib.ecg.segment import (
    SEGMENT_FS,
    SegmentingNetwork,
    load_segmenting_network,
    segment_input,
    segment_signal,
    without_spikes,
)
from ecgchat_lib.errors import ParameterError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ecgchat_lib.ecg.recording import Recording

MEASURING_FS = 500.0  # Hz, of the median beat; other recordings are resampled to it
WINDOWS = ((0.42, 0.70), (0.25, 0.50))  # s kept before and after each R peak; the second if the first fits nowhere
SMOOTH_SECONDS = 0.004  # standard deviation of the Gaussian: half power at about 33 Hz
NOISY_MV = 0.02  # typical deviation that counts as noise
LEVEL_SECONDS = (0.024, 0.004)  # before the QRS complex, where the level is taken
ASSUMED_ONSET = 0.045  # s from QRS onset to R, for beats whose onset the network doesn't see
DEAD_MV = 0.02  # a lead whose median beat moves less is flat
COMPLETE_BEATS = 5  # with so many, the first and the last are left out: they may be cut off
OVERLOOKED_SECONDS = 0.1  # a QRS complex of the network's that far from every beat was overlooked,
OVERLOOKED_LEAST, OVERLOOKED_ENERGY = 3, 0.2  # if there are so many, and they have this part of the usual steepness
TIE_SHARE, NARROWER_MS = 0.4, 20.0  # of the beats that don't look like most; and by how much they must be narrower
ST_SECONDS = 0.060  # after the J point, where the ST level is taken
UNEVEN = 0.07  # of RR: typical change from one RR interval to the next that counts as irregular
GLOBAL_LEADS = ("I", "II", "V1", "V2", "V4", "V6")  # they look from all sides; each costs time
GLOBAL_LEAST = 4  # of them that must show a QRS complex
GLOBAL_WINDOW = (0.28, 0.36)  # s before and after the R peak
P_SHARE, P_CERTAIN = 0.5, 0.9  # of the beats that must have a P wave; and that make it certain
P_SPREAD_MS, P_STEADY_MS = 24.0, 10.0  # typical difference of PR from beat to beat: too much; and certainly steady
P_LEAST_MV = 0.04  # in the lead where the P wave is largest
P_COHERENCE = (0.5, 0.75)  # least likeness of P waves from beat to beat: even, uneven rhythm
PR_LEAST_MS = 60.0  # shorter, and what was found isn't the P wave of this beat

NO_BEATS = "no QRS complexes stand out"
NO_QRS = "the QRS complex doesn't stand out from the noise"
NO_P = "no consistent P wave"
NO_T = "no T wave stands out"


@dataclass(frozen=True)
class Measurements:
    """What was measured; NaN where it couldn't be, with the reason in `reasons`.

    Attributes:
        heart_rate_bpm: 60 000 / `rr_ms`, in beats per minute.
        rr_ms: median time between beats; the first and the last of five or more are left out, since they may be cut.
        rr_sd_ms: standard deviation of the times between beats.
        pr_ms: start of the P wave to start of the QRS complex.
        qrs_ms: duration of the QRS complex in `interval_lead`.
        qrs_global_ms: from its beginning in the leads where it begins first to its end where it ends last; this is the
            one that shows a bundle branch block, whose end may lie flat in lead II.
        qt_ms: start of the QRS complex to the end of the T wave.
        qtc_ms: QT corrected for the heart rate by Bazett's formula, QT / sqrt(RR), RR in s.
        qtc_fridericia_ms: by Fridericia's, QT / cbrt(RR).
        qtc_framingham_ms: by the Framingham study's, QT + 154 ms (1 - RR).
        axis_deg: frontal axis of the QRS complex, -180 to 180 degrees; 0 points to the left, 90 down.
        p_mv: height of the P wave in lead II; negative if inverted.
        r_mv: height of the R wave in lead II.
        t_mv: height of the T wave in lead II; negative if inverted.
        reasons: field name to why it is NaN (or None).
        qtc_formula: which formula `qtc_ms` is by; always "Bazett".
        regular: whether the beats come at even times; None if there are too few.
        interval_lead: the lead that the intervals were measured in: II, or another if II is flat.
        st_mv: lead to the level 60 ms after the J point, against the level before the QRS complex; flat leads are left
            out, and all of them if there is no QRS complex.
        r_by_lead_mv: lead to the height of the R wave; 0 where the complex doesn't rise above its level.
        s_by_lead_mv: lead to the depth of the deepest negative wave (Q or S), as a positive number.
        transition: the first chest lead whose R wave is at least as large as its negative wave; None if none is.
    """

    heart_rate_bpm: float = math.nan
    rr_ms: float = math.nan
    rr_sd_ms: float = math.nan
    pr_ms: float = math.nan
    qrs_ms: float = math.nan
    qrs_global_ms: float = math.nan
    qt_ms: float = math.nan
    qtc_ms: float = math.nan
    qtc_fridericia_ms: float = math.nan
    qtc_framingham_ms: float = math.nan
    axis_deg: float = math.nan
    p_mv: float = math.nan
    r_mv: float = math.nan
    t_mv: float = math.nan
    reasons: dict[str, str] = field(default_factory=dict)
    qtc_formula: str = "Bazett"
    regular: bool | None = None
    interval_lead: str = "II"
    st_mv: dict[str, float] = field(default_factory=dict)
    r_by_lead_mv: dict[str, float] = field(default_factory=dict)
    s_by_lead_mv: dict[str, float] = field(default_factory=dict)
    transition: str | None = None

    @property
    def widest_qrs_ms(self) -> float:
        """The QRS duration to judge by: over all leads if it is known, else in `interval_lead`."""
        return self.qrs_ms if math.isnan(self.qrs_global_ms) else self.qrs_global_ms

    def judged(self, field: str) -> float:
        """Return the value to judge by: for `qrs_ms` the widest, for any other field the field."""
        return self.widest_qrs_ms if field == "qrs_ms" else getattr(self, field)

    def as_dict(self) -> dict[str, object]:
        """Return every field under its name, ready for JSON: NaN becomes None."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


NUMBERS = tuple(item.name for item in fields(Measurements) if item.type == "float")
_QTCS = ("qtc_ms", "qtc_fridericia_ms", "qtc_framingham_ms")


@dataclass(frozen=True)
class Analysis:
    """A recording's measurements with what they rest on.

    Attributes:
        measurements: the numbers.
        marks: every wave of `measurements.interval_lead`, in samples of the recording.
        beats: where the beats are, in seconds, and which look alike.
        beat: the median beat at `MEASURING_FS`, or None if no beat lies wholly inside the recording.
        beat_marks: where its waves are, in its samples: one row per wave, NaN where there is none.
        qrs_ends: first and last sample of its QRS complex over all leads (or in one, if no more is known).
    """

    measurements: Measurements
    marks: WaveMarks = field(default_factory=WaveMarks)
    beats: Beats = field(default_factory=lambda: Beats(np.zeros(0), np.zeros(0, dtype=bool)))
    beat: MedianBeat | None = None
    beat_marks: WaveMarks = field(default_factory=WaveMarks)
    qrs_ends: tuple[int, int] | None = None


def measure(recording: Recording) -> Measurements:
    """Measure a recording of any length and sampling rate.

    Args:
        recording: twelve leads in mV; missing samples (NaN) are bridged by straight lines.

    Returns:
        The measurements. Each interval is the median over the beats that look alike, in lead II.
    """
    return analyze(recording).measurements


def analyze(recording: Recording, network: SegmentingNetwork | None = None) -> Analysis:
    """Measure a recording, and keep the beats and marks that the numbers rest on.

    Args:
        recording: as for `measure`.
        network: finds the waves; the shipped one if None.
    """
    signal = without_spikes(recording.signal, recording.fs)
    clean = segment_signal(signal, recording.fs)
    peaks = find_r_peaks(clean, SEGMENT_FS)
    if len(peaks) == 0:
        return Analysis(_assemble({}, dict.fromkeys([*NUMBERS, "regular"], NO_BEATS)))
    row = _interval_lead(clean)
    network = network or load_segmenting_network()
    probabilities = network.probabilities(segment_input(clean[row : row + 1]))[0]
    waves = find_waves(probabilities, clean[row])
    beats = align_beats(clean, SEGMENT_FS, _with_overlooked(peaks, waves, clean))
    order = np.argsort(beats.positions)
    beats = Beats(beats.positions[order], beats.alike[order])
    each = waves_of_beats(waves, beats.positions * SEGMENT_FS)
    beats = _prefer_narrow(beats, each)
    values, reasons = _rhythm(beats.positions)
    beat, beat_marks = _median_beat(resample(signal, recording.fs, MEASURING_FS), beats, each)
    _intervals(each, beats, beat, beat_marks, values, reasons)
    ends = _global_qrs(beat, network) if beat is not None and "qrs_ms" in values else None
    if ends is not None:
        values["qrs_global_ms"] = (ends[1] - ends[0]) * 1000 / MEASURING_FS
    elif "qrs_ms" in values:
        reasons["qrs_global_ms"] = "too few leads show where it ends"
    if ends is None and "qrs_ms" in values and beat is not None:
        ends = beat_marks.qrs[0, 0], beat_marks.qrs[0, 2]
    qrs_ends = None if ends is None else (max(round(ends[0]), 0), round(ends[1]))
    by_lead = _heights(beat, beat_marks, qrs_ends, values, reasons)
    measured = _assemble(values, reasons, interval_lead=LEADS[row], **by_lead)
    scale = recording.fs / SEGMENT_FS
    marks = WaveMarks(*(waves.wave(name) * scale for name in ("P", "QRS", "T")))
    return Analysis(measured, marks, beats, beat, beat_marks, qrs_ends)


def _with_overlooked(peaks: NDArray[np.int64], waves: WaveMarks, clean: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the beats with those that the network sees and the energy didn't, if there are several of them.

    Beside the tall, steep beats of bigeminy, the normal ones look like their T waves to `find_r_peaks`.
    """
    middles = np.rint(waves.qrs[:, [0, 2]].mean(axis=1)).astype(np.int64)
    apart = np.abs(middles[:, None] - peaks).min(axis=1) > OVERLOOKED_SECONDS * SEGMENT_FS
    middles = np.clip(middles[apart], 0, clean.shape[-1] - 1)
    if len(middles) < OVERLOOKED_LEAST:
        return peaks
    energy = qrs_energy(clean, SEGMENT_FS)
    middles = middles[energy[middles] > OVERLOOKED_ENERGY * np.median(energy[peaks])]
    return np.union1d(peaks, middles) if len(middles) >= OVERLOOKED_LEAST else peaks


def _prefer_narrow(beats: Beats, each: WaveMarks) -> Beats:
    """Return the beats with the others as the typical ones, if these are as many and clearly narrower.

    In bigeminy every second beat comes from a ventricle, and the larger of the two kinds is no more typical.
    """
    others = ~beats.alike
    if others.sum() < TIE_SHARE * len(others):
        return beats
    width = (each.qrs[:, 2] - each.qrs[:, 0]) * 1000 / SEGMENT_FS
    narrow, wide = _median(width[others]), _median(width[beats.alike])
    return replace(beats, alike=others) if narrow < wide - NARROWER_MS else beats


def _interval_lead(clean: NDArray[np.float32]) -> int:
    """Return the row of lead II, or of the lead that moves most if II is flat."""
    spread = clean.std(axis=-1)
    two = LEADS.index("II")
    return two if spread[two] > DEAD_MV / 4 or not spread.any() else int(np.argmax(spread))


def _assemble(values: dict[str, float | bool], reasons: dict[str, str], **others: object) -> Measurements:
    """Put values and reasons together; a value without a finite number must have a reason."""
    kept = {name: value for name, value in values.items() if isinstance(value, bool) or math.isfinite(value)}
    unknown = [name for name in (*NUMBERS, "regular") if name not in kept]
    told = {name: reasons.get(name, "can't be measured") for name in unknown}
    return Measurements(**kept, reasons=told, **others)  # type: ignore[arg-type]


def complete(beats: NDArray[np.float64]) -> slice:
    """Return which beats to measure: without the first and the last, which may be cut off, if there are enough."""
    return slice(1, -1) if len(beats) >= COMPLETE_BEATS else slice(None)


def _rhythm(positions: NDArray[np.float64]) -> tuple[dict[str, float | bool], dict[str, str]]:
    """Return heart rate and RR intervals from the beats' positions in seconds."""
    intervals = np.diff(positions[complete(positions)]) * 1000
    if len(intervals) == 0:
        return {}, dict.fromkeys(("heart_rate_bpm", "rr_ms", "rr_sd_ms", *_QTCS, "regular"), "only one heartbeat")
    rr = float(np.median(intervals))
    values: dict[str, float | bool] = {"rr_ms": rr, "heart_rate_bpm": 60_000 / rr}
    every = np.diff(positions) * 1000
    if len(every) < 3:
        return values, dict.fromkeys(("rr_sd_ms", "regular"), "fewer than four heartbeats")
    values["rr_sd_ms"] = float(np.std(every, ddof=1))
    values["regular"] = _unevenness(positions) < UNEVEN
    return values, {}


def _unevenness(positions: NDArray[np.float64]) -> float:
    """Return the typical change from one RR interval to the next, as a part of RR.

    Sinus rhythm breathes slowly, so neighbors differ little; in atrial fibrillation they differ by a tenth and more.
    The median overlooks a single early beat.
    """
    intervals = np.diff(positions)
    if len(intervals) < 2:
        return 0.0
    return float(np.median(np.abs(np.diff(intervals))) / np.median(intervals))


# --- the median beat ---------------------------------------------------------------------------------------------


def _median_beat(signal: NDArray[np.float32], beats: Beats, each: WaveMarks) -> tuple[MedianBeat | None, WaveMarks]:
    """Return the median of the unfiltered beats, and the medians of the marks in its samples."""
    positions = beats.positions * SEGMENT_FS
    usual = {name: _usual(each.wave(name) - positions[:, None], beats) / SEGMENT_FS for name in ("P", "QRS", "T")}
    onset = usual["QRS"][0] if math.isfinite(usual["QRS"][0]) else -ASSUMED_ONSET
    levels = _levels(signal, beats.positions + onset)
    made = (median_beat(signal, MEASURING_FS, beats, levels, before, after) for before, after in WINDOWS)
    beat = next((one for one in made if one is not None), None)
    if beat is None:
        return None, WaveMarks()
    marks = WaveMarks(*(beat.r + usual[name][None] * MEASURING_FS for name in ("P", "QRS", "T")))
    return _without_noise(beat), marks


def _usual(times: NDArray[np.float64], beats: Beats) -> NDArray[np.float64]:
    """Return the medians, over the complete beats that look alike, of `(beat, 3)` times; NaN if none is known."""
    inside = complete(beats.positions)
    kept = times[inside][beats.alike[inside]]
    known = kept[np.isfinite(kept).all(axis=1)]
    return np.median(known, axis=0) if len(known) else np.full(3, np.nan)


def _levels(signal: NDArray[np.float32], onsets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each lead's level `(12, beat)` just before the QRS complexes that begin at `onsets` (in seconds)."""
    first, last = (round(seconds * MEASURING_FS) for seconds in LEVEL_SECONDS)
    places = np.rint(onsets * MEASURING_FS).astype(int)[:, None] + np.arange(-first, -last + 1)
    return np.median(signal[:, np.clip(places, 0, signal.shape[-1] - 1)].astype(np.float64), axis=-1)


def _without_noise(beat: MedianBeat) -> MedianBeat:
    """Return the beat smoothed, if there is noise (mains, muscle) in it; the QRS complex loses a little height."""
    smooth = _smooth(beat.signal, beat.fs)
    noise = float(np.median(np.abs(beat.signal - smooth), axis=-1).max())  # the median overlooks the QRS complex
    return replace(beat, signal=smooth) if noise > NOISY_MV else beat


def _smooth(signal: NDArray[np.float64], fs: float) -> NDArray[np.float64]:
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(signal, SMOOTH_SECONDS * fs, axis=-1)


def lead_is_alive(beat: MedianBeat, lead: str) -> bool:
    """Return whether a lead of the median beat shows more than a flat line."""
    return bool(np.ptp(beat.signal[LEADS.index(lead)]) > DEAD_MV)


# --- intervals ---------------------------------------------------------------------------------------------------


def _intervals(
    each: WaveMarks,
    beats: Beats,
    beat: MedianBeat | None,
    beat_marks: WaveMarks,
    values: dict[str, float | bool],
    reasons: dict[str, str],
) -> None:
    """Add the intervals of the typical beat to `values`, or why not to `reasons`."""
    inside = complete(beats.positions)
    chosen = np.flatnonzero(beats.alike[inside]) + (inside.start or 0)
    to_ms = 1000 / SEGMENT_FS
    p, qrs, t = (each.wave(name)[chosen] for name in ("P", "QRS", "T"))
    if len(chosen) == 0 or np.isfinite(qrs[:, 0]).mean() < 0.5:
        every = ("pr_ms", "qrs_ms", "qrs_global_ms", "qt_ms", *_QTCS, "axis_deg", "p_mv", "r_mv", "t_mv")
        reasons |= {name: reasons.get(name, NO_QRS) for name in every}
        return
    values["qrs_ms"] = _median((qrs[:, 2] - qrs[:, 0]) * to_ms)
    qt = _median((t[:, 2] - qrs[:, 0]) * to_ms)
    if math.isfinite(qt):
        values["qt_ms"] = qt
        values |= _corrected(qt, float(values["rr_ms"]) / 1000) if "rr_ms" in values else {}
    else:
        reasons |= dict.fromkeys(("qt_ms", *_QTCS, "t_mv"), NO_T)
    pr = (qrs[:, 0] - p[:, 0]) * to_ms
    if has_p_waves(pr, beats, beat, beat_marks):
        values["pr_ms"] = _median(pr)
    else:
        reasons |= dict.fromkeys(("pr_ms", "p_mv"), NO_P)


def _global_qrs(beat: MedianBeat, network: SegmentingNetwork) -> tuple[float, float] | None:
    """Return where the QRS complex of the median beat begins and ends over all leads, in its samples; None if unclear.

    One member of the network is enough here. The earliest onset and the latest end are passed over, against outliers.
    """
    first = max(beat.r - round(GLOBAL_WINDOW[0] * beat.fs), 0)
    last = beat.r + round(GLOBAL_WINDOW[1] * beat.fs)
    rows = [LEADS.index(lead) for lead in GLOBAL_LEADS]
    x = _smooth(beat.signal[rows, first : last + 1], beat.fs)[:, :: round(beat.fs / SEGMENT_FS)]
    one = SegmentingNetwork(network.members[:1])
    probabilities = one.probabilities(segment_input((x - x.mean(axis=-1, keepdims=True)).astype(np.float32)))
    middle = (beat.r - first) * SEGMENT_FS / beat.fs
    known = [ends for one in probabilities if (ends := find_qrs(one, middle)) is not None]
    if len(known) < GLOBAL_LEAST:
        return None
    onsets, offsets = np.sort(np.array(known), axis=0).T * beat.fs / SEGMENT_FS
    return first + float(onsets[1]), first + float(offsets[-2])


def _corrected(qt: float, rr: float) -> dict[str, float]:
    """Return QT (ms) corrected for RR (s): Bazett 1920, Fridericia 1920, Sagie 1992 (Framingham)."""
    return {
        "qtc_ms": qt / math.sqrt(rr),
        "qtc_fridericia_ms": qt / math.cbrt(rr),
        "qtc_framingham_ms": qt + 154.0 * (1 - rr),
    }


def _median(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else math.nan


def has_p_waves(pr: NDArray[np.float64], beats: Beats, beat: MedianBeat | None, beat_marks: WaveMarks) -> bool:
    """Return whether most beats have a P wave at the same time before the QRS complex; if in doubt, of the same shape.

    Args:
        pr: `(beat,)`, PR of the complete beats that look alike, in ms; NaN where no P wave was found.
        beats: all beats.
        beat: their median, or None.
        beat_marks: its marks.
    """
    known = pr[np.isfinite(pr)]
    if len(known) == 0 or len(known) < P_SHARE * len(pr) or np.median(known) < PR_LEAST_MS:
        return False
    spread = np.median(np.abs(known - np.median(known)))
    if beat is None or (len(known) >= P_CERTAIN * len(pr) and spread <= P_STEADY_MS):
        return bool(spread <= P_STEADY_MS)
    if spread > P_SPREAD_MS:
        return False
    likeness, height = p_evidence(beat, beat_marks)
    needed = P_COHERENCE[int(_unevenness(beats.positions) >= UNEVEN)]
    return likeness >= needed and height >= P_LEAST_MV


def p_evidence(beat: MedianBeat, marks: WaveMarks) -> tuple[float, float]:
    """Return how alike the P waves of odd and even beats are in all leads (-1 to 1), and the largest height in mV.

    In fibrillation there is something before each QRS complex, but something else each time: what the halves share by
    chance is less alike than a P wave is to itself.
    """
    margin = round(0.02 * beat.fs)
    first = max(round(marks.p[0, 0]) - margin, 0)
    last = min(round(marks.p[0, 2]) + margin, round(marks.qrs[0, 0]))
    if last - first < 0.03 * beat.fs:
        return 0.0, 0.0

    def window(signal: NDArray[np.float64]) -> NDArray[np.float64]:
        smooth = _smooth(signal, beat.fs)[:, first : last + 1]
        ramp = np.linspace(0, 1, smooth.shape[-1])
        return smooth - (smooth[:, :1] * (1 - ramp) + smooth[:, -1:] * ramp)

    height = float(np.abs(window(beat.signal)).max())
    if len(beat.beats) < 2:
        return 1.0, height  # a single beat can't contradict itself
    halves = [window(np.mean(beat.beats[part::2], axis=0)) for part in (0, 1)]
    norm = float(np.linalg.norm(halves[0]) * np.linalg.norm(halves[1]))
    return (float((halves[0] * halves[1]).sum()) / norm if norm > 0 else 0.0), height


# --- heights -----------------------------------------------------------------------------------------------------


def _heights(
    beat: MedianBeat | None,
    marks: WaveMarks,
    ends: tuple[int, int] | None,
    values: dict[str, float | bool],
    reasons: dict[str, str],
) -> dict[str, object]:
    """Add axis and amplitudes to `values`, or why not to `reasons`; return what is kept by lead."""
    if beat is None:
        why = "no heartbeat lies wholly inside the recording"
        reasons |= {name: reasons.get(name, why) for name in ("axis_deg", "p_mv", "r_mv", "t_mv")}
        return {}
    if ends is None:
        return {}
    (p_on, _, p_off), (t_on, _, t_off) = marks.p[0], marks.t[0]
    on, off = ends
    _axis(beat, on, off, values, reasons)
    complexes = beat.signal[:, on : off + 1]
    alive = [lead for lead in LEADS if lead_is_alive(beat, lead)]
    r = {lead: max(float(complexes[LEADS.index(lead)].max()), 0.0) for lead in alive}
    s = {lead: max(-float(complexes[LEADS.index(lead)].min()), 0.0) for lead in alive}
    if "II" in alive:
        two = beat.signal[LEADS.index("II")]
        values["r_mv"] = float(complexes[LEADS.index("II")].max())
        if "pr_ms" in values:
            values["p_mv"] = _extreme(two, p_on, p_off, above_line=True)
        if "qt_ms" in values:
            values["t_mv"] = _extreme(two, t_on, t_off, above_line=False)
    else:
        reasons |= dict.fromkeys(("p_mv", "r_mv", "t_mv"), "lead II is flat")
    transition = next((lead for lead in LEADS[6:] if lead in r and r[lead] >= s[lead]), None)
    return {"st_mv": _st(beat, off, alive), "r_by_lead_mv": r, "s_by_lead_mv": s, "transition": transition}


def _extreme(lead: NDArray[np.float64], on: float, off: float, *, above_line: bool) -> float:
    """Return the largest deflection, with its sign, from zero or from the line between the wave's ends."""
    if not math.isfinite(on) or not math.isfinite(off):
        return math.nan
    piece = lead[max(round(on), 0) : round(off) + 1]
    if len(piece) < 2:
        return math.nan
    if above_line:
        piece = piece - np.linspace(piece[0], piece[-1], len(piece))
    return float(piece[np.argmax(np.abs(piece))])


def _st(beat: MedianBeat, off: int, alive: list[str]) -> dict[str, float]:
    """Return the level 60 ms after the J point (8 ms averaged), of the leads that show something."""
    place, half = off + round(ST_SECONDS * beat.fs), round(0.004 * beat.fs)
    if place + half >= beat.signal.shape[-1]:
        return {}
    level = beat.signal[:, place - half : place + half + 1].mean(axis=-1)
    return {lead: float(level[LEADS.index(lead)]) for lead in alive}


def _axis(beat: MedianBeat, on: int, off: int, values: dict[str, float | bool], reasons: dict[str, str]) -> None:
    """Add the frontal axis from the net areas of the QRS complex in I and aVF.

    Goldberger's leads are shorter than Einthoven's by sqrt(3)/2 in the hexaxial system, hence the factor.
    """
    net = (beat.signal[:, on : off + 1] - beat.signal[:, on : on + 1]).sum(axis=-1)
    left, down = net[LEADS.index("I")], net[LEADS.index("aVF")] * 2 / math.sqrt(3)
    expected = {"I": beat.signal[LEADS.index("II")] - beat.signal[LEADS.index("III")]}  # by Einthoven's identity
    expected["aVF"] = (beat.signal[LEADS.index("II")] + beat.signal[LEADS.index("III")]) / 2
    flat = [lead for lead in expected if not lead_is_alive(beat, lead) and np.ptp(expected[lead]) > DEAD_MV]
    if flat:
        reasons["axis_deg"] = f"lead {flat[0]} is flat"
    elif not any(lead_is_alive(beat, lead) for lead in expected):
        reasons["axis_deg"] = "leads I and aVF are flat"
    elif math.hypot(left, down) < 0.02 * (off - on):  # mV on average: up and down cancel
        reasons["axis_deg"] = "the QRS complexes in I and aVF are isoelectric"
    else:
        values["axis_deg"] = math.degrees(math.atan2(down, left))


# --- as text -----------------------------------------------------------------------------------------------------


def wde_text(measurements: Measurements, *, style: Literal["course", "original"] = "course") -> str:
    """Return the measurements as the text that ECG-Chat appends to a report (waveform data enhancement).

    Args:
        measurements: of one recording.
        style: "course": what couldn't be measured reads `n/a`, and heights are millivolts. "original": the same order
            and punctuation, and 0 for what couldn't be measured, as models trained on the original's text expect.

    Returns:
        The text, with a blank in front; times are whole milliseconds.

    Raises:
        ParameterError: an unknown style.
    """
    if style not in ("course", "original"):
        raise ParameterError(f"style {style!r}: expected 'course' or 'original'")
    unknown = "n/a" if style == "course" else "0"

    def number(value: float, digits: int) -> str:
        return unknown if math.isnan(value) else f"{value:.{digits}f}"

    m = measurements
    rr, pr, qrs, qt, qtc = (number(value, 0) for value in (m.rr_ms, m.pr_ms, m.qrs_ms, m.qt_ms, m.qtc_ms))
    p, r, t = (number(value, 2) for value in (m.p_mv, m.r_mv, m.t_mv))
    return f" RR: {rr} PR: {pr} QRS: {qrs} QT/QTc: {qt}/{qtc} P/R/T Wave: {p}/{r}/{t}"
