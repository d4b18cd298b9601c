"""One recording: read it from WFDB, write it, and cut the window that the models see.

A `Recording` always holds the twelve leads in the course's order, in millivolts. The header is distrusted in
`header.py`, samples are decoded in `samples.py`, other files than WFDB's are read in `formats.py`; this module finds
leads by name, brings them to one rate and one unit, and joins segments. It doesn't filter (see `filters.py`) and
repairs nothing in silence: whatever was changed stands in `notes`. Taught in: 01 §1, §3 and §5.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ecgchat_lib.ecg.filters import resample
from ecgchat_lib.ecg.header import FS_RANGE, Header, Segment, SignalLine, locate_header, read_header
from ecgchat_lib.ecg.leads import LEADS, canonical_lead
from ecgchat_lib.ecg.samples import read_millivolts
from ecgchat_lib.errors import ParameterError, RecordError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_VALUES = 30_000_000
"""The most ADC values read from one record: about 80 minutes of 12 leads at 500 Hz."""

MAX_MILLIVOLTS = 10_000.0  # electrodes drift by at most some hundred millivolts; more is a wrong gain or baseline
_MILLIVOLTS = {
    "v": 1e3,
    "volt": 1e3,
    "mv": 1.0,
    "millivolt": 1.0,
    "uv": 1e-3,
    "microvolt": 1e-3,
    "nv": 1e-6,
    "nanovolt": 1e-6,
}
_AGE = re.compile(r"\bage\b\W{0,4}?\s*[:=]?\s*>?\s*:?\s*(-?\d+(?:\.\d+)?|nan\b)", re.IGNORECASE)
_SEX = re.compile(r"\b(?:sex|gender)\b\W{0,4}?\s*[:=]?\s*>?\s*:?\s*(female|male|f|m|woman|man)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Patient:
    """What the header says of the patient; None where it says nothing usable."""

    age: float | None = None  # years
    sex: str | None = None  # "male" or "female"


@dataclass(frozen=True)
class Recording:
    """Twelve leads of one patient.

    Attributes:
        name: the record's name, for people.
        signal: float32 `(12, time)` in mV, leads in the order of `LEADS`; NaN where a sample is missing.
        fs: samples per second and lead, in Hz.
        leads: always `LEADS`.
        patient: age and sex, if the header says so.
        comments: the header's comment lines.
        path: the header it came from, or None.
        notes: everything that was changed or doubted while reading, in plain words.
    """

    name: str
    signal: NDArray[np.float32] = field(repr=False)
    fs: float
    leads: tuple[str, ...] = LEADS
    patient: Patient = Patient()
    comments: tuple[str, ...] = ()
    path: Path | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.signal.ndim != 2 or self.signal.shape[0] != len(LEADS):
            raise ParameterError(f"signal: shape {self.signal.shape}, expected (12, time)")
        if self.leads != LEADS:
            raise ParameterError(f"leads: {self.leads}, expected {LEADS}; reorder the signal by name")
        if not np.isfinite(self.fs) or self.fs <= 0:
            raise ParameterError(f"fs: {self.fs}, expected a positive number of Hz")

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.signal.shape[1] / self.fs

    def lead(self, name: str) -> NDArray[np.float32]:
        """Return one lead, `(time,)` in mV, by any spelling of its name.

        Raises:
            ParameterError: it isn't one of the twelve.
        """
        canonical = canonical_lead(name)
        if canonical is None:
            raise ParameterError(f"lead {name!r}: not one of {', '.join(LEADS)}")
        return self.signal[LEADS.index(canonical)]


def read_recording(path: str | Path, *, allow_missing: bool = False) -> Recording:
    """Read one 12-lead WFDB record.

    Args:
        path: the record, with or without extension (.hea, .dat or .mat).
        allow_missing: keep missing samples as NaN, and say so in `notes`. Without it they are an error, since
            what a model or a measurement makes of a gap is a decision that the caller should take.

    Returns:
        The recording: leads by name in the order of `LEADS`, in mV. Other leads are left out; a record longer than
        `MAX_VALUES` is cut; both are noted.

    Raises:
        RecordError: anything that keeps the record from being twelve leads in mV, with the remedy.
    """
    header = read_header(locate_header(path))
    notes = list(header.notes)
    find_leads(header.path, [signal.name for signal in header.signals], notes)
    segments = header.segments or (Segment(header.name, header.samples, header),)
    signal, fs = _read_segments(header, segments, notes)
    check_signal(header.path, signal, allow_missing, notes)
    return Recording(
        name=header.path.stem,
        signal=signal,
        fs=fs,
        patient=_patient(header.comments, notes),
        comments=header.comments,
        path=header.path,
        notes=tuple(dict.fromkeys(notes)),
    )


_lead = lru_cache(maxsize=1024)(canonical_lead)  # the same few names stand in every header


def find_leads(path: Path, names: Sequence[str], notes: list[str]) -> list[int]:
    """Return, for each of `LEADS`, the row of the signal that holds it; note the order and what else there is.

    Raises:
        RecordError: a lead is missing, or there twice.
    """
    found: dict[str, int] = {}
    others: list[str] = []
    for row, name in enumerate(names):
        lead = _lead(name)
        if lead is None:
            others.append(name or f"signal {row + 1} without a name")
        elif lead in found:
            twice = f"lead {lead} twice ({names[found[lead]]!r} and {name!r})"
            raise RecordError(path, twice, "Rename or remove one of them")
        else:
            found[lead] = row
    missing = [lead for lead in LEADS if lead not in found]
    if missing:
        seen = f"; its other signals are called {', '.join(others)[:80]}" if others else ""
        remedy = "Use a 12-lead record, with the leads named in the header"
        raise RecordError(path, f"{len(found)} of 12 leads, without {', '.join(missing)}{seen}", remedy)
    rows = [found[lead] for lead in LEADS]
    if others:
        notes.append(f"signals left out: {', '.join(others)[:200]}")
    if rows != sorted(rows):
        notes.append("leads put into the standard order")
    return rows


def _lead_rows(header: Header) -> dict[str, int]:
    """Return the row of each lead that is among a segment's signals."""
    leads = [_lead(signal.name) for signal in header.signals]
    rows = {lead: row for row, lead in enumerate(leads) if lead is not None}
    if len(rows) + leads.count(None) < len(leads):
        raise RecordError(header.path, "a lead twice", "Rename or remove one of them")
    return rows


def _read_segments(header: Header, segments: Sequence[Segment], notes: list[str]) -> tuple[NDArray[np.float32], float]:
    """Return the leads, float32 `(12, time)` in mV, joined from all segments, and their rate in Hz.

    The rate is that of the fastest lead, wherever it is.
    """
    parts = [part for _, _, part in segments if part is not None]
    signals = [part.signals[row] for part in parts for row in _lead_rows(part).values()]
    per_frame = max([signal.samples_per_frame for signal in signals], default=1)
    fs = header.fs * per_frame
    if not FS_RANGE[0] <= fs <= FS_RANGE[1]:
        found = f"a sampling rate of {fs:g} Hz, not {FS_RANGE[0]:g} to {FS_RANGE[1]:g}"
        raise RecordError(header.path, found, "Correct it in the header")
    _note_conversions(header, signals, notes)
    widest = max(sum([signal.samples_per_frame for signal in part.signals]) for part in parts)
    frames = min(header.samples, MAX_VALUES // max(widest, per_frame * len(LEADS)))
    if frames < header.samples:
        notes.append(f"cut to its first {frames / header.fs:.0f} of {header.samples / header.fs:.0f} seconds")
    if len(segments) == 1 and parts:
        return _read_segment(parts[0], per_frame, frames), fs
    joined = np.full((len(LEADS), frames * per_frame), np.nan, dtype=np.float32)
    at = 0
    for segment in segments:
        count = min(segment.samples, frames - at)
        if count > 0 and segment.header is not None:
            part = _read_segment(segment.header, per_frame, count)
            joined[:, at * per_frame : (at + count) * per_frame] = part
        at += segment.samples
    return joined, fs


def _read_segment(header: Header, per_frame: int, frames: int) -> NDArray[np.float32]:
    """Return the twelve leads of one segment at `per_frame` samples per frame; NaN for a lead that it hasn't."""
    here = _lead_rows(header)
    groups: dict[int, list[str]] = {}
    for lead in LEADS:
        if lead in here:
            groups.setdefault(header.signals[here[lead]].samples_per_frame, []).append(lead)
    if len(here) == len(LEADS) and list(groups) == [per_frame]:
        return _read_leads(header, [here[lead] for lead in LEADS], frames)
    result = np.full((len(LEADS), frames * per_frame), np.nan, dtype=np.float32)
    for rate, leads in groups.items():
        values = _read_leads(header, [here[lead] for lead in leads], frames)
        result[[LEADS.index(lead) for lead in leads]] = resample(values, rate, per_frame)
    return result


def _read_leads(header: Header, rows: Sequence[int], frames: int) -> NDArray[np.float32]:
    factors = [_millivolts_per(header.path, header.signals[row]) for row in rows]
    return read_millivolts(header, rows, factors, frames)


def _note_conversions(header: Header, signals: Sequence[SignalLine], notes: list[str]) -> None:
    """Note units converted, gains that the header doesn't give, and rates that differ."""
    units = sorted({signal.units for signal in signals if _millivolts_per(header.path, signal) != 1})
    if units:
        notes.append(f"{', '.join(units)} converted to mV")
    if any(signal.uncalibrated for signal in signals):
        notes.append(
            "the header gives no gain for some leads; WFDB's default of 200 per mV is used: doubt the amplitudes"
        )
    rates = sorted({signal.samples_per_frame for signal in signals})
    if len(rates) > 1:
        slow = [
            lead for lead in LEADS if any(_lead(s.name) == lead and s.samples_per_frame < rates[-1] for s in signals)
        ]
        hertz = " and ".join(f"{rate * header.fs:g}" for rate in rates[:-1])
        notes.append(
            f"{', '.join(slow)} resampled from {hertz} to {rates[-1] * header.fs:g} Hz, the fastest lead's rate"
        )


@lru_cache(maxsize=256)
def unit_in_millivolts(unit: str) -> float | None:
    """Return how many mV one of this unit is, or None if it isn't a unit of voltage."""
    plain = unit.replace("Â", "").replace("Î¼", "u").replace("µ", "u").replace("μ", "u").lower().removesuffix("s")
    return _MILLIVOLTS.get(plain)


def _millivolts_per(path: Path, signal: SignalLine) -> float:
    """Return how many mV one physical unit of this signal is."""
    factor = unit_in_millivolts(signal.units)
    if factor is None:
        raise RecordError(
            path, f"lead {signal.name} in the unit {signal.units[:20]!r}", "Give the header V, mV, uV or nV as unit"
        )
    return factor


def check_signal(path: Path, signal: NDArray[np.float32], allow_missing: bool, notes: list[str]) -> None:
    """Refuse what no caller can use: no signal, missing samples, flat lines, impossible voltages.

    Args:
        path: for the message.
        signal: float32 `(12, time)` in mV.
        allow_missing: note missing samples (NaN) rather than refuse them.
        notes: where to note them.

    Raises:
        RecordError: what was found, and the remedy.
    """
    if signal.shape[1] == 0:
        raise RecordError(path, "no signal (no sample)", "Use another record")
    low, high = signal.min(axis=1), signal.max(axis=1)
    if np.isnan(low).any():
        low, high = _check_missing(path, signal, allow_missing, notes)
    peak = max(float(high.max()), -float(low.min()))
    if not peak <= MAX_MILLIVOLTS:
        raise RecordError(path, f"{peak:.3g} mV, which no heart gives", "Correct gain, baseline or unit in the header")
    if float((high - low).max()) < 0.005:
        raise RecordError(path, "no signal (all twelve leads are flat)", "Use another record, or check the gain")


def _check_missing(
    path: Path, signal: NDArray[np.float32], allow_missing: bool, notes: list[str]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Refuse or note missing samples; return the lowest and highest value of each lead without them."""
    counts = {lead: int(np.isnan(row).sum()) for lead, row in zip(LEADS, signal, strict=True)}
    empty = [lead for lead, count in counts.items() if count == signal.shape[1]]
    total = sum(counts.values())
    if len(empty) == len(LEADS):
        raise RecordError(path, "no signal (every sample is marked as missing)", "Use another record")
    if empty:
        found = f"{12 - len(empty)} of 12 leads have a signal; {', '.join(empty)} hold only missing samples (NaN)"
        raise RecordError(path, found, "Use a record with 12 leads")
    if not allow_missing:
        found = f"{total} missing samples (NaN) in {', '.join(lead for lead, count in counts.items() if count)}"
        raise RecordError(path, found, "Cut or interpolate the gap, or read with read_recording(…, allow_missing=True)")
    notes.append(f"{total} missing samples (NaN) kept")
    return np.array([np.nanmin(row) for row in signal]), np.array([np.nanmax(row) for row in signal])


def _patient(comments: tuple[str, ...], notes: list[str]) -> Patient:
    """Find age and sex in comments such as `Age: 74`, `<age>: 56`, `Sex: Male`, `<sex>: F`."""
    age: float | None = None
    sex: str | None = None
    for comment in comments:
        if age is None and (match := _AGE.search(comment)):
            age = float(match[1])
            if not 0 <= age <= 120:
                notes.append(f"an age of {match[1][:20]} is taken as unknown")
                age = None
        if sex is None and (match := _SEX.search(comment)):
            sex = "male" if match[1].lower() in ("m", "male", "man") else "female"
    return Patient(age, sex)


def write_recording(recording: Recording, folder: str | Path, *, adc_gain: float = 1000.0) -> Path:
    """Write a recording as WFDB format 16, so that reading it gives the same to half an ADC step.

    Args:
        recording: what to write; its `name` becomes the files' name.
        folder: made if missing.
        adc_gain: ADC units per mV. 16 bits hold ±32.767 mV at 1000.

    Returns:
        The path of the record, without extension.

    Raises:
        ParameterError: the name isn't letters, digits, hyphens and underscores, or the signal doesn't fit 16 bits.
    """
    import wfdb

    if not re.fullmatch(r"[A-Za-z0-9_-]+", recording.name):
        raise ParameterError(f"record name {recording.name!r}: expected letters, digits, '-' and '_'")
    if not np.isfinite(adc_gain) or adc_gain <= 0:
        raise ParameterError(f"adc_gain: {adc_gain}, expected a positive number of ADC units per mV")
    digital = np.rint(recording.signal.T.astype(np.float64) * adc_gain)
    peak = float(np.nanmax(np.abs(digital), initial=0.0))
    if peak > 32767:
        fits = 32767 / (peak / adc_gain)
        raise ParameterError(
            f"{peak / adc_gain:.1f} mV doesn't fit 16 bits at adc_gain={adc_gain:g}; at most {fits:.0f}"
        )
    digital = np.where(np.isnan(digital), -32768, digital).astype(np.int64)  # -32768 is WFDB's missing sample
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as scratch:
        wfdb.wrsamp(
            recording.name,
            fs=recording.fs,
            units=["mV"] * len(LEADS),
            sig_name=list(LEADS),
            d_signal=digital,
            fmt=["16"] * len(LEADS),
            adc_gain=[adc_gain] * len(LEADS),
            baseline=[0] * len(LEADS),
            comments=_comments(recording),
            write_dir=scratch,
        )
        for extension in (".dat", ".hea"):  # the header last: a record without header is no record
            os.replace(Path(scratch) / (recording.name + extension), folder / (recording.name + extension))
    return folder / recording.name


def _comments(recording: Recording) -> list[str]:
    """Return the header's comments, with the patient's age and sex in front if they aren't among them."""
    known = _patient(recording.comments, [])
    lines = [] if recording.patient.age in (None, known.age) else [f"Age: {recording.patient.age:g}"]
    if recording.patient.sex not in (None, known.sex):
        lines.append(f"Sex: {str(recording.patient.sex).capitalize()}")
    return lines + [" ".join(comment.split()) for comment in recording.comments if comment.strip()]


def model_window(
    recording: Recording, *, fs: float = 500.0, seconds: float = 10.0
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Return the window that a model sees: resampled, the first `seconds`, zero-padded, without NaN.

    Args:
        recording: any length and sampling rate.
        fs: the model's sampling rate, in Hz.
        seconds: the window's length.

    Returns:
        float32 `(12, round(fs * seconds))` in mV, and what was done to get it, in words.
    """
    size = round(fs * seconds)
    if size < 1:
        raise ParameterError(f"a window of {seconds} s at {fs} Hz holds no sample")
    notes: list[str] = []
    needed = int(np.ceil((seconds + 1) * recording.fs))  # a second more, so that the filter's edge lies outside
    signal = recording.signal[:, :needed]
    if recording.fs != fs:
        signal = resample(signal, recording.fs, fs)
        notes.append(f"resampled from {recording.fs:g} to {fs:g} Hz")
    if round(recording.seconds * fs) > size:
        notes.append(f"the first {seconds:g} of {recording.seconds:.1f} s")
    window = np.zeros((len(LEADS), size), dtype=np.float32)
    kept = min(size, signal.shape[1])
    window[:, :kept] = signal[:, :kept]
    if kept < size:
        notes.append(f"padded with zeros from {kept / fs:.1f} to {seconds:g} s")
    missing = ~np.isfinite(window)
    if missing.any():
        window[missing] = 0
        notes.append(f"{int(missing.sum())} missing samples set to 0")
    return window, tuple(notes)
