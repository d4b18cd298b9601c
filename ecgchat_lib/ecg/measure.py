"""Measure a recording: heart rate, intervals, axis and amplitudes, or the reason why one of them can't be measured.

Classical methods on all twelve leads and a median beat; no network. A value that can't be measured is NaN and has
a reason; it is never 0, and no exception is ever turned into a number. Taught in: 01 §6 and §7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np

from ecgchat_lib.ecg.beats import MedianBeat, find_r_peaks, median_beat
from ecgchat_lib.ecg.delineate import DEAD_MV, Marks, delineate, lead_is_alive, line_under, p_window
from ecgchat_lib.ecg.filters import bandpass, fill_missing, remove_spikes, resample
from ecgchat_lib.ecg.leads import LEADS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ecgchat_lib.ecg.recording import Recording

MEASURING_FS = 500.0  # Hz; other recordings are resampled to it
MEASURED_BAND = (0.5, 90.0)  # Hz
NOISY_HIGH = 40.0  # Hz, the upper corner when there is noise (mains, muscle) above it
NOISY_MV = 0.02  # typical deviation that counts as noise
WINDOWS = ((0.42, 0.70), (0.25, 0.50))  # s kept before and after each R peak; the second if the first fits nowhere
EVEN, UNEVEN = 0.05, 0.07  # of RR: typical change from one RR interval to the next
P_COHERENCE = (0.5, 0.75, 0.93)  # least likeness of P waves from beat to beat: even, in between, uneven rhythm
P_LEAST_MV = 0.04  # in the lead where the P wave is largest
PR_LEAST_MS = 80.0  # shorter, and what was found isn't the P wave of this beat

NO_BEATS = "no QRS complexes stand out"
NO_P = "no consistent P wave"


@dataclass(frozen=True)
class Measurements:
    """What was measured; NaN where it couldn't be, with the reason in `reasons`.

    Attributes:
        heart_rate_bpm: 60 000 / `rr_ms`, in beats per minute.
        rr_ms: median time between beats.
        rr_sd_ms: standard deviation of the times between beats.
        pr_ms: start of the P wave to start of the QRS complex.
        qrs_ms: duration of the QRS complex.
        qt_ms: start of the QRS complex to the end of the T wave.
        qtc_ms: QT corrected for the heart rate by Bazett's formula, QT / sqrt(RR in s).
        axis_deg: frontal axis of the QRS complex, -180 to 180 degrees; 0 points to the left, 90 down.
        p_mv: height of the P wave in lead II.
        r_mv: height of the R wave in lead II.
        t_mv: height of the T wave in lead II; negative if inverted.
        reasons: field name to why it is NaN (or None).
        qtc_formula: always "Bazett".
        regular: whether the beats come at even times; None if there are too few.
    """

    heart_rate_bpm: float = math.nan
    rr_ms: float = math.nan
    rr_sd_ms: float = math.nan
    pr_ms: float = math.nan
    qrs_ms: float = math.nan
    qt_ms: float = math.nan
    qtc_ms: float = math.nan
    axis_deg: float = math.nan
    p_mv: float = math.nan
    r_mv: float = math.nan
    t_mv: float = math.nan
    reasons: dict[str, str] = field(default_factory=dict)
    qtc_formula: str = "Bazett"
    regular: bool | None = None

    def as_dict(self) -> dict[str, object]:
        """Return every field under its name, ready for JSON: NaN becomes None."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


NUMBERS = tuple(item.name for item in fields(Measurements) if item.name not in ("reasons", "qtc_formula", "regular"))


def measure(recording: Recording) -> Measurements:
    """Measure a recording of any length and sampling rate.

    Args:
        recording: twelve leads in mV; missing samples (NaN) are bridged by straight lines.

    Returns:
        The measurements. Intervals are those of the beat that most beats look like, judged in lead II with the
        help of the others.
    """
    peaks, beat = typical_beat(recording)
    if len(peaks) == 0:
        return _nothing(NO_BEATS)
    if beat is None:
        values, reasons = _rhythm(peaks.astype(float))
        reasons |= dict.fromkeys(NUMBERS[3:], "no heartbeat lies wholly inside the recording")
        return _assemble(values, reasons)
    values, reasons = _rhythm(beat.positions)
    _intervals(beat, values, reasons)
    return _assemble(values, reasons)


def typical_beat(recording: Recording) -> tuple[NDArray[np.int64], MedianBeat | None]:
    """Return where the beats are, and the beat that most of them look like.

    Args:
        recording: any length and sampling rate.

    Returns:
        The R peaks in samples at `MEASURING_FS`, and the median beat at that rate (drift, pacemaker spikes and noise
        removed), or None if no beat lies wholly inside the recording.
    """
    signal = resample(remove_spikes(recording.signal, recording.fs), recording.fs, MEASURING_FS)
    peaks = find_r_peaks(signal, MEASURING_FS)
    if len(peaks) == 0:
        return peaks, None
    clean = _clean(signal)
    beats = (median_beat(clean, MEASURING_FS, peaks, before, after) for before, after in WINDOWS)
    return peaks, next((beat for beat in beats if beat is not None), None)


def _clean(signal: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the signal without drift, without what lies above 90 Hz, and above 40 Hz if there is noise there."""
    clean = fill_missing(bandpass(signal, MEASURING_FS, *MEASURED_BAND))[0]
    smooth = bandpass(clean, MEASURING_FS, 0, NOISY_HIGH)
    noise = float(np.median(np.abs(clean - smooth), axis=-1).max())  # the median overlooks the QRS complexes
    return smooth.astype(np.float64) if noise > NOISY_MV else clean


def _nothing(reason: str) -> Measurements:
    return Measurements(reasons=dict.fromkeys([*NUMBERS, "regular"], reason))


def _assemble(values: dict[str, float | bool], reasons: dict[str, str]) -> Measurements:
    """Put values and reasons together; a value without a finite number must have a reason."""
    kept = {name: value for name, value in values.items() if isinstance(value, bool) or math.isfinite(value)}
    unknown = [name for name in (*NUMBERS, "regular") if name not in kept]
    return Measurements(**kept, reasons={name: reasons.get(name, "can't be measured") for name in unknown})  # type: ignore[arg-type]


def _rhythm(positions: NDArray[np.float64]) -> tuple[dict[str, float | bool], dict[str, str]]:
    """Return heart rate and RR intervals from the beats' positions (in samples at `MEASURING_FS`)."""
    intervals = np.diff(np.sort(positions)) * 1000 / MEASURING_FS
    if len(intervals) == 0:
        return {}, dict.fromkeys(("heart_rate_bpm", "rr_ms", "rr_sd_ms", "qtc_ms", "regular"), "only one heartbeat")
    rr = float(np.median(intervals))
    values: dict[str, float | bool] = {"rr_ms": rr, "heart_rate_bpm": 60_000 / rr}
    if len(intervals) < 3:
        return values, dict.fromkeys(("rr_sd_ms", "regular"), "fewer than four heartbeats")
    values["rr_sd_ms"] = float(np.std(intervals, ddof=1))
    values["regular"] = _unevenness(intervals) < UNEVEN
    return values, {}


def _unevenness(intervals: NDArray[np.float64]) -> float:
    """Return the typical change from one RR interval to the next, as a part of RR.

    Sinus rhythm breathes slowly, so neighbors differ little; in atrial fibrillation they differ by a tenth and more.
    The median overlooks a single early beat.
    """
    if len(intervals) < 2:
        return 0.0
    return float(np.median(np.abs(np.diff(intervals))) / np.median(intervals))


def _intervals(beat: MedianBeat, values: dict[str, float | bool], reasons: dict[str, str]) -> None:
    """Add intervals, axis and amplitudes of the median beat to `values`, or why not to `reasons`."""
    rr_seconds = float(values.get("rr_ms", 1000.0)) / 1000
    marks = delineate(beat, rr_seconds)
    if marks is None:
        reasons |= dict.fromkeys(NUMBERS[3:], "the QRS complex doesn't stand out from the noise")
        return
    to_ms = 1000 / MEASURING_FS
    values["qrs_ms"] = (marks.qrs_off - marks.qrs_on) * to_ms
    if lead_is_alive(beat, "II"):
        values["r_mv"] = marks.r_mv
    _axis(beat, marks, values, reasons)
    if math.isfinite(marks.t_off):
        values["qt_ms"] = (marks.t_off - marks.qrs_on) * to_ms
        if lead_is_alive(beat, "II"):
            values["t_mv"] = marks.t_mv
        if "rr_ms" in values:
            values["qtc_ms"] = values["qt_ms"] / math.sqrt(rr_seconds)
    else:
        reasons |= dict.fromkeys(("qt_ms", "qtc_ms", "t_mv"), "no T wave stands out")
    pr = (marks.qrs_on - marks.p_on) * to_ms
    if pr >= PR_LEAST_MS and has_p_wave(beat, marks, rr_seconds):  # NaN compares false
        values["pr_ms"] = pr
        if lead_is_alive(beat, "II"):
            values["p_mv"] = marks.p_mv
    else:
        reasons |= dict.fromkeys(("pr_ms", "p_mv"), NO_P)
    if not lead_is_alive(beat, "II"):
        reasons |= dict.fromkeys(("p_mv", "r_mv", "t_mv"), "lead II is flat")


def _axis(beat: MedianBeat, marks: Marks, values: dict[str, float | bool], reasons: dict[str, str]) -> None:
    """Add the frontal axis from the net areas of the QRS complex in I and aVF.

    Goldberger's leads are shorter than Einthoven's by sqrt(3)/2 in the hexaxial system, hence the factor.
    """
    on, off = int(marks.qrs_on), int(marks.qrs_off)
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


def has_p_wave(beat: MedianBeat, marks: Marks, rr_seconds: float) -> bool:
    """Return whether the beats share a P wave: large enough, and the same in both halves of the beats.

    The more uneven the rhythm, the more alike the halves must be: fibrillation waves resemble each other by chance.
    """
    coherence, height = p_evidence(beat, marks, rr_seconds)
    unevenness = _unevenness(np.diff(np.sort(beat.positions)))
    needed = P_COHERENCE[int(unevenness >= EVEN) + int(unevenness >= UNEVEN)]
    return coherence >= needed and height >= P_LEAST_MV


def p_evidence(beat: MedianBeat, marks: Marks, rr_seconds: float) -> tuple[float, float]:
    """Return how alike the P windows of odd and even beats are (-1 to 1), and the largest P height in mV."""
    fs, on = beat.fs, int(marks.qrs_on)
    t_end = marks.t_off - beat.r if math.isfinite(marks.t_off) else 0.4 * fs
    first, last = p_window(beat, on, int(max(beat.r - rr_seconds * fs + t_end, 0)))
    if last - first < 0.03 * fs:
        return 0.0, 0.0

    def window(signal: NDArray[np.float64]) -> NDArray[np.float64]:
        smooth = bandpass(signal, fs, 0, 30.0).astype(np.float64)
        return (smooth - line_under(smooth, first, on, fs))[:, first:last]

    height = float(np.abs(window(beat.signal)).max())
    if len(beat.beats) < 2:
        return 1.0, height  # a single beat can't contradict itself
    halves = [window(np.mean(beat.beats[part::2], axis=0)) for part in (0, 1)]
    norm = float(np.linalg.norm(halves[0]) * np.linalg.norm(halves[1]))
    return (float((halves[0] * halves[1]).sum()) / norm if norm > 0 else 0.0), height


def wde_text(measurements: Measurements) -> str:
    """Return the measurements as the text that ECG-Chat appends to a report (waveform data enhancement).

    The order is the original's; the values are real ones (milliseconds, and millivolts for the waves), and what
    couldn't be measured reads `n/a`.
    """

    def whole(value: float) -> str:
        return "n/a" if math.isnan(value) else f"{value:.0f}"

    def millivolts(value: float) -> str:
        return "n/a" if math.isnan(value) else f"{value:.2f}"

    m = measurements
    return (
        f" RR: {whole(m.rr_ms)} PR: {whole(m.pr_ms)} QRS: {whole(m.qrs_ms)} QT/QTc: {whole(m.qt_ms)}/{whole(m.qtc_ms)}"
        f" P/R/T Wave: {millivolts(m.p_mv)}/{millivolts(m.r_mv)}/{millivolts(m.t_mv)}"
    )
