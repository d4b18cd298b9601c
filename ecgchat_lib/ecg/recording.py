"""One recording: read it from WFDB, write it, and cut the window that the models see.

A `Recording` always holds the twelve leads in the course's order, in millivolts. Decoding is the `wfdb` package's;
this module distrusts the header (see `header.py`), finds leads by name and converts units. It doesn't filter (see
`filters.py`) and repairs nothing in silence: whatever was changed stands in `notes`. Taught in: 01 §1, §3 and §5.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ecgchat_lib.ecg.header import Header, SignalLine, locate_header, read_header
from ecgchat_lib.ecg.leads import LEADS, canonical_lead
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
    header_path = locate_header(path)
    header = read_header(header_path)
    notes = list(header.notes)
    rows = _find_leads(header_path, header, notes)
    signals = [header.signals[row] for row in rows]
    factors = np.array([_millivolts_per(header_path, signal) for signal in signals])
    _note_conversions(signals, factors, notes)
    physical = _decode(header_path, header, rows, notes) * factors
    signal = np.ascontiguousarray(physical.T, dtype=np.float32)
    _check_signal(header_path, signal, allow_missing, notes)
    return Recording(
        name=header_path.stem,
        signal=signal,
        fs=header.fs,
        patient=_patient(header.comments, notes),
        comments=header.comments,
        path=header_path,
        notes=tuple(notes),
    )


def _find_leads(path: Path, header: Header, notes: list[str]) -> list[int]:
    """Return, for each of `LEADS`, the number of the header's signal that holds it."""
    found: dict[str, int] = {}
    others: list[str] = []
    for row, signal in enumerate(header.signals):
        lead = canonical_lead(signal.name)
        if lead is None:
            others.append(signal.name or f"signal {row + 1} without a name")
        elif lead in found:
            twin = header.signals[found[lead]].name
            raise RecordError(path, f"lead {lead} twice ({twin!r} and {signal.name!r})", "Rename or remove one of them")
        else:
            found[lead] = row
    missing = [lead for lead in LEADS if lead not in found]
    if missing:
        seen = f"; its other signals are called {', '.join(others)[:80]}" if others else ""
        remedy = "Use a 12-lead record, with the leads named in the header"
        raise RecordError(path, f"{len(found)} of 12 leads, without {', '.join(missing)}{seen}", remedy)
    if others:
        notes.append(f"signals left out: {', '.join(others)[:200]}")
    if [found[lead] for lead in LEADS] != sorted(found.values()):
        notes.append("leads put into the standard order")
    return [found[lead] for lead in LEADS]


def _millivolts_per(path: Path, signal: SignalLine) -> float:
    """Return how many mV one physical unit of this signal is."""
    unit = (
        signal.units.replace("Â", "").replace("Î¼", "u").replace("µ", "u").replace("μ", "u").lower().removesuffix("s")
    )
    if unit not in _MILLIVOLTS:
        raise RecordError(
            path, f"lead {signal.name} in the unit {signal.units[:20]!r}", "Give the header V, mV, uV or nV as unit"
        )
    return _MILLIVOLTS[unit]


def _note_conversions(signals: list[SignalLine], factors: NDArray[np.float64], notes: list[str]) -> None:
    """Note units converted, and gains that the header doesn't give."""
    units = sorted({signal.units for signal, factor in zip(signals, factors, strict=True) if factor != 1})
    if units:
        notes.append(f"{', '.join(units)} converted to mV")
    if any(signal.uncalibrated for signal in signals):
        notes.append(
            "the header gives no gain for some leads; WFDB's default of 200 per mV is used: doubt the amplitudes"
        )


def _decode(path: Path, header: Header, rows: list[int], notes: list[str]) -> NDArray[np.float64]:
    """Let wfdb decode the wanted signals; return `(time, 12)` in the header's units.

    wfdb gets a header written anew from what was checked, in a folder of its own, so that it can't read the original
    differently than `read_header` did.
    """
    import wfdb

    per_frame = sum(signal.samples_per_frame for signal in header.signals)
    samples = min(header.samples, MAX_VALUES // per_frame)
    if samples < header.samples:
        notes.append(f"cut to its first {samples / header.fs:.0f} of {header.samples / header.fs:.0f} seconds")
    with tempfile.TemporaryDirectory(prefix="ecgchat-") as folder:
        _write_checked_header(Path(folder), path, header)
        try:
            record = wfdb.rdrecord(os.path.join(folder, "record"), sampto=samples, channels=rows)
        except Exception as error:
            found = f"wfdb can't decode it ({type(error).__name__}: {' '.join(str(error).split())[:80]})"
            raise RecordError(path, found, "Get the record again, or write it anew with wfdb.wrsamp") from None
    physical = record.p_signal
    if physical is None or physical.shape != (samples, len(rows)):
        raise RecordError(path, "its signal file holds less than the header announces", "Get the record again")
    return physical


def _write_checked_header(folder: Path, path: Path, header: Header) -> None:
    """Write `record.hea` with what was checked, and links to the signal files, into an empty folder."""
    files = {file: f"signal{number}.dat" for number, file in enumerate(dict.fromkeys(s.file for s in header.signals))}
    lines = [f"record {len(header.signals)} {header.fs:f} {header.samples}"]
    for number, signal in enumerate(header.signals):
        format_ = f"{signal.format}x{signal.samples_per_frame}:{signal.skew}+{signal.byte_offset}"
        numbers = f"{signal.gain!r}({signal.baseline})/mV {signal.resolution} {signal.zero} {signal.initial} 0 0"
        lines.append(f"{files[signal.file]} {format_} {numbers} {number}")
    (folder / "record.hea").write_text("\n".join(lines) + "\n", encoding="ascii")
    for file, alias in files.items():
        source = path.with_name(file).resolve()
        try:
            os.symlink(source, folder / alias)
        except OSError:  # Windows without the right to make links
            shutil.copyfile(source, folder / alias)


def _check_signal(path: Path, signal: NDArray[np.float32], allow_missing: bool, notes: list[str]) -> None:
    """Refuse what no caller can use: no signal, missing samples, flat lines, impossible voltages."""
    missing = np.isnan(signal)
    if missing.all():
        raise RecordError(path, "no signal (every sample is marked as missing)", "Use another record")
    empty = [lead for lead, gap in zip(LEADS, missing, strict=True) if gap.all()]
    if empty:
        found = f"{12 - len(empty)} of 12 leads have a signal; {', '.join(empty)} hold only missing samples (NaN)"
        raise RecordError(path, found, "Use a record with 12 leads")
    count = int(missing.sum())
    if count and not allow_missing:
        leads = ", ".join(lead for lead, gap in zip(LEADS, missing, strict=True) if gap.any())
        found = f"{count} missing samples (NaN) in {leads}"
        raise RecordError(path, found, "Cut or interpolate the gap, or read with read_recording(…, allow_missing=True)")
    if count:
        notes.append(f"{count} missing samples (NaN) kept")
    finite = np.where(missing, 0, signal)
    peak = float(np.abs(finite).max())
    if not peak <= MAX_MILLIVOLTS:
        raise RecordError(path, f"{peak:.3g} mV, which no heart gives", "Correct gain, baseline or unit in the header")
    if float(np.nanmax(np.nanmax(signal, 1) - np.nanmin(signal, 1))) < 0.005:
        raise RecordError(path, "no signal (all twelve leads are flat)", "Use another record, or check the gain")


def _patient(comments: tuple[str, ...], notes: list[str]) -> Patient:
    """Find age and sex in comments such as `Age: 74`, `<age>: 56`, `Sex: Male`, `<sex>: F`."""
    age: float | None = None
    sex: str | None = None
    for comment in comments:
        if age is None and (match := _AGE.search(comment)):
            age = float(match[1])
            if not 0 <= age <= 120:
                notes.append(f"an age of {match[1]} is taken as unknown")
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
    from ecgchat_lib.ecg.filters import resample

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
