"""Other files than WFDB's: csv, npy, h5, EDF or BDF, and DICOM waveforms, each read by the library that is kept for it.

One door, `read_any`, which hands WFDB records to `recording.py`. What a file doesn't say (rate, names, unit) must be
said by the caller; nothing is guessed from the numbers. EDF, DICOM and h5 need the packages of `ecgchat[formats]`,
which are imported when such a file is met. Taught in: 01 §3.
"""

from __future__ import annotations

import csv
import io
import os
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgchat_lib.ecg.filters import resample
from ecgchat_lib.ecg.header import FS_RANGE
from ecgchat_lib.ecg.leads import LEADS, canonical_lead
from ecgchat_lib.ecg.recording import (
    MAX_VALUES,
    Patient,
    Recording,
    check_signal,
    find_leads,
    read_recording,
    unit_in_millivolts,
)
from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError, RecordError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_FILE_BYTES = 300_000_000
_KINDS = {".csv": "csv", ".tsv": "csv", ".npy": "npy", ".h5": "h5", ".hdf5": "h5", ".edf": "EDF", ".bdf": "EDF"}
_KINDS |= {".dcm": "DICOM", ".dicom": "DICOM"}
_BEGINNINGS = {b"\x93NUMPY": "npy", b"\x89HDF\r\n\x1a\n": "h5", b"0       ": "EDF", b"\xffBIOSEMI": "EDF"}
_UNIT_IN_NAME = re.compile(r"^(.*?)[\s_]*[(\[]\s*([^)\]]*?)\s*[)\]]$")
_TIME = {"time": 1.0, "t": 1.0, "seconds": 1.0, "time_s": 1.0, "time_ms": 1e-3, "ms": 1e-3}  # in seconds
_MDC_LEADS = {1: "I", 2: "II", 61: "III", 62: "aVR", 63: "aVL", 64: "aVF"} | {k + 2: f"V{k}" for k in range(1, 7)}
"""DICOM's lead codes `2:n` (scheme MDC) and `5.6.3-9-n` (scheme SCPECG): n is SCP-ECG's number of the lead."""


@dataclass
class _Found:
    """What a file holds: signals by name, each in its unit and at its rate."""

    names: list[str]
    signals: list[NDArray[Any]]
    rates: list[float]  # Hz
    units: list[str]
    patient: Patient = field(default_factory=Patient)
    notes: list[str] = field(default_factory=list)


def read_any(
    path: str | Path,
    *,
    fs: float | None = None,
    leads: Sequence[str] | None = None,
    unit: str | None = None,
    allow_missing: bool = False,
) -> Recording:
    """Read one 12-lead recording from any kind of file that the library knows.

    - WFDB (.hea, .dat, .mat or no extension), EDF or BDF (.edf, .bdf), DICOM (.dcm): the file says everything.
    - csv (.csv, .tsv): a first row with the leads' names, which may carry a unit ("I (uV)"); `fs`, or a column `time`
      in seconds or `time_ms`.
    - npy: an array (12, time) or (time, 12); `fs` and `leads`, the names in the array's order.
    - h5 (.h5, .hdf5): a dataset `ecg`, (12, time) or (time, 12). As SPH ships it (float16, nothing else said) it is
      500 Hz, mV and the course's order; any other needs `fs` and `leads`.

    Args:
        path: the file, or the WFDB record.
        fs: samples per second and lead, where the file doesn't say.
        leads: names of the leads in the array's order, where the file doesn't say.
        unit: V, mV, uV or nV, where the file doesn't say; mV if not given. Integers need one.
        allow_missing: keep missing samples as NaN.

    Raises:
        RecordError: the file can't be read, or isn't twelve leads in mV.
        ParameterError: something is missing, or given though the file says it itself.
        MissingPartError: the package for this kind of file isn't installed.
    """
    kind = file_kind(Path(path))
    if kind in ("WFDB", "EDF", "DICOM"):
        given = [name for name, value in (("fs", fs), ("leads", leads), ("unit", unit)) if value is not None]
        if given:
            raise ParameterError(f"{given[0]}: a file of kind {kind} says it itself; leave it out")
    if kind == "WFDB":
        return read_recording(path, allow_missing=allow_missing)
    if unit is not None and unit_in_millivolts(unit) is None:
        raise ParameterError(f"unit {unit!r}: expected V, mV, uV or nV")
    if fs is not None and not FS_RANGE[0] <= fs <= FS_RANGE[1]:
        raise ParameterError(f"fs: {fs}, expected {FS_RANGE[0]:g} to {FS_RANGE[1]:g} Hz")
    path = Path(path)
    _check_size(path)
    with _one_line(path, kind):
        if kind == "csv":
            found = _read_csv(path, fs, unit)
        elif kind == "npy":
            found = _from_array(path, _read_npy(path), fs, leads, unit)
        elif kind == "h5":
            found = _read_h5(path, fs, leads, unit)
        else:
            found = _read_edf(path) if kind == "EDF" else _read_dicom(path)
        return _assemble(path, found, allow_missing)


def file_kind(path: Path) -> str:
    """Return what kind of file it is, such as "csv" or "DICOM": by its extension, else its first bytes, else "WFDB"."""
    suffix = path.suffix.lower()
    if suffix in _KINDS:
        return _KINDS[suffix]
    try:
        if suffix in (".hea", ".dat", ".mat") or "\0" in str(path) or not path.is_file():
            return "WFDB"
        with open(path, "rb") as stream:
            head = stream.read(132)
    except OSError:
        return "WFDB"
    if head[128:] == b"DICM":
        return "DICOM"
    return next((kind for beginning, kind in _BEGINNINGS.items() if head.startswith(beginning)), "WFDB")


def _check_size(path: Path) -> None:
    """Refuse what is no file, or too large to be read at once."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        raise RecordError(path, "no such file", "Check the path") from None
    if not stat.S_ISREG(found.st_mode):
        raise RecordError(path, "not a plain file", "Name one file")
    if found.st_size > MAX_FILE_BYTES:
        raise RecordError(path, f"{found.st_size} bytes, more than {MAX_FILE_BYTES}", "Cut the recording first")
    if found.st_size == 0:
        raise RecordError(path, "an empty file", "Get the file again")


@contextmanager
def _one_line(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a library raises at a broken file into one line; its warnings are left out."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except EcgChatError:
        raise
    except ImportError as error:
        raise MissingPartError(str(error.name), "isn't installed", "pip install 'ecgchat[formats]'") from None
    except Exception as error:  # libraries raise nearly every exception there is at hostile bytes
        told = " ".join(str(error).split())[:80]
        found = f"can't be read as {kind} ({type(error).__name__}: {told})"
        raise RecordError(path, found, "Get the file again, or convert it to WFDB") from None


def _assemble(path: Path, found: _Found, allow_missing: bool) -> Recording:
    """Find the leads by name, and bring them to mV and to the fastest lead's rate."""
    notes = found.notes
    rows = find_leads(path, found.names, notes)
    fs = max(found.rates[row] for row in rows)
    if not FS_RANGE[0] <= fs <= FS_RANGE[1]:
        raise RecordError(path, f"{fs:g} Hz, not {FS_RANGE[0]:g} to {FS_RANGE[1]:g}", "Correct the sampling rate")
    longest = max(len(found.signals[row]) * fs / found.rates[row] for row in rows)
    if not longest * len(LEADS) <= MAX_VALUES:
        raise RecordError(path, f"{longest / fs:.0f} s, too long to be read at once", "Cut the recording first")
    leads = []
    for lead, row in zip(LEADS, rows, strict=True):
        factor = unit_in_millivolts(found.units[row])
        if factor is None:
            raise RecordError(path, f"lead {lead} in the unit {found.units[row][:20]!r}", "Expected V, mV, uV or nV")
        values = (np.asarray(found.signals[row], dtype=np.float64) * factor).astype(np.float32)
        leads.append(resample(values, found.rates[row], fs))
    if len({len(lead) for lead in leads}) > 1:
        raise RecordError(path, "leads of different lengths", "Get the file again")
    slow = [lead for lead, row in zip(LEADS, rows, strict=True) if found.rates[row] < fs]
    if slow:
        notes.append(f"{', '.join(slow)} resampled to {fs:g} Hz, the fastest lead's rate")
    converted = sorted({found.units[row] for row in rows if unit_in_millivolts(found.units[row]) != 1})
    if converted:
        notes.append(f"{', '.join(converted)} converted to mV")
    signal = np.array(leads)
    check_signal(path, signal, allow_missing, notes)
    return Recording(path.stem, signal, fs, LEADS, found.patient, (), path, tuple(dict.fromkeys(notes)))


# --- tables and arrays -------------------------------------------------------------------------------------------


def _read_csv(path: Path, fs: float | None, unit: str | None) -> _Found:
    """Read a table with a first row of names."""
    import pandas as pd

    with open(path, "rb") as stream:
        first, second = stream.readline(65_536), stream.readline(65_536)
    head = first.decode("utf-8-sig", errors="replace")
    separator = max(",;\t", key=head.count)
    decimal = "," if separator != "," and b"," in second else "."
    columns = next(csv.reader([head], delimiter=separator), [])
    names, units = [], []
    for column in columns:
        match = _UNIT_IN_NAME.match(column.strip())
        known = match is not None and (unit_in_millivolts(match[2]) is not None or match[2] in ("s", "ms"))
        names.append(match[1] if match and known else column.strip())
        units.append(match[2] if match and known else "")
    if sum(canonical_lead(name) is not None for name in names) == 0:
        raise RecordError(path, "no lead's name in its first row", "Expected a first row such as time,I,II,III,…,V6")
    wanted = [k for k, name in enumerate(names) if canonical_lead(name) is not None or name.lower() in _TIME]
    numbers = {k: np.float64 for k in wanted}
    table = pd.read_csv(
        path, sep=separator, decimal=decimal, header=None, skiprows=1, dtype=numbers, encoding="latin-1"
    )
    if table.shape[1] != len(names):
        found = f"{len(names)} names in the first row, but {table.shape[1]} columns"
        raise RecordError(path, found, "Expected a name for each column")
    times = [k for k in wanted if _is_time(names[k])]
    if times:
        scale = 1e-3 if units[times[0]] == "ms" else _TIME[names[times[0]].lower()]
        fs = _rate_of(path, table[times[0]].to_numpy() * scale, fs)
    if fs is None:
        raise ParameterError(f"fs: {path.name} has no column time; say how many samples a second it has")
    kept = [k for k in range(len(names)) if k not in times]
    notes = [] if unit or any(units[k] for k in kept) else ["no unit given; taken as mV"]
    return _Found(
        names=[names[k] for k in kept],
        signals=[table[k].to_numpy() if k in wanted else np.empty(0) for k in kept],
        rates=[fs] * len(kept),
        units=[units[k] or unit or "mV" for k in kept],
        notes=notes,
    )


def _is_time(name: str) -> bool:
    """Return whether a column of this name holds the time."""
    return name.lower() in _TIME


def _rate_of(path: Path, times: NDArray[np.float64], fs: float | None) -> float:
    """Return the rate in Hz of evenly spaced times in seconds, which may be rounded."""
    span = times[-1] - times[0] if len(times) > 1 else 0.0
    if not np.isfinite(times).all() or span <= 0:
        raise RecordError(path, "a column of times that doesn't rise", "Correct it, or leave it out and give fs")
    step = span / (len(times) - 1)
    if np.abs(times - times[0] - step * np.arange(len(times))).max() > step:
        raise RecordError(path, "unevenly spaced times", "Resample it to an even rate first")
    rate = float(1 / step)
    if abs(rate - round(rate)) < 1e-3 * rate:  # times in milliseconds are rounded ones
        rate = float(round(rate))
    if fs is not None and abs(fs - rate) > 1e-3 * rate:
        raise ParameterError(f"fs: {fs:g}, but the times of {path.name} say {rate:g} Hz")
    return rate


def _read_npy(path: Path) -> NDArray[Any]:
    """Map an array into memory, so that a header that claims more than the file holds costs nothing."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise RecordError(path, "not one array", "Save one array with numpy.save")
    return array


def _from_array(path: Path, array: Any, fs: float | None, leads: Sequence[str] | None, unit: str | None) -> _Found:
    """Take rows or columns of an array as the leads that the caller names."""
    if fs is None or leads is None:
        missing = "fs" if fs is None else "leads"
        raise ParameterError(f"{missing}: {path.name} doesn't say it; give fs and the leads' names in its order")
    if array.ndim != 2 or (array.shape[0] == len(leads)) == (array.shape[1] == len(leads)):
        found = f"an array of shape {array.shape}"
        raise RecordError(
            path, found, f"Expected ({len(leads)}, time) or (time, {len(leads)}), as leads has {len(leads)} names"
        )
    if array.dtype.kind not in "fiu" or array.size > MAX_VALUES:
        raise RecordError(path, f"{array.size} values of type {array.dtype}", f"Expected at most {MAX_VALUES} numbers")
    if array.dtype.kind != "f" and unit is None:
        raise ParameterError(f"unit: {path.name} holds integers; say what one of them is (V, mV, uV or nV)")
    values = np.asarray(array[:])
    values = values if values.shape[0] == len(leads) else values.T
    notes = [] if unit else ["no unit given; taken as mV"]
    return _Found(list(leads), list(values), [fs] * len(leads), [unit or "mV"] * len(leads), notes=notes)


def _read_h5(path: Path, fs: float | None, leads: Sequence[str] | None, unit: str | None) -> _Found:
    """Read the dataset `ecg` of an HDF5 file.

    SPH's files hold nothing else: float16 of (12, time). 500 Hz is what its list of records says (Liu et al. 2022, doi
    10.1038/s41597-022-01403-5). That they are mV in the course's order is what the numbers say: Einthoven's and
    Goldberger's identities hold to float16's rounding, and QRS complexes are 1 to 3 high.
    """
    import h5py

    with h5py.File(path, "r") as file:
        link = file.get("ecg", getlink=True)
        if not isinstance(link, h5py.HardLink) or not isinstance(file["ecg"], h5py.Dataset):
            raise RecordError(path, "no dataset 'ecg'", "Expected a dataset 'ecg' of shape (12, time)")
        dataset = file["ecg"]
        if dataset.external or dataset.is_virtual:
            raise RecordError(path, "a dataset kept in other files", "Put the samples into the file itself")
        if np.prod(dataset.chunks or (1,), dtype=float) > MAX_VALUES:
            raise RecordError(path, f"chunks of shape {dataset.chunks}", "Write it anew in smaller chunks")
        as_sph = dataset.dtype == np.float16 and dataset.ndim == 2 and dataset.shape[0] == len(LEADS)
        if not as_sph or (fs is not None and leads is not None):
            return _from_array(path, dataset, fs, leads, unit)
        found = _from_array(path, dataset, fs or 500.0, leads or LEADS, unit or "mV")
    found.notes.append("the file says neither rate nor leads; taken as SPH writes it, 500 Hz and I to V6 in mV")
    return found


# --- EDF and DICOM -----------------------------------------------------------------------------------------------


def _read_edf(path: Path) -> _Found:
    """Read EDF, EDF+ or BDF, whose signals may have different rates."""
    import edfio

    content = path.read_bytes()
    edf: Any = edfio.read_bdf(io.BytesIO(content)) if content[:1] == b"\xff" else edfio.read_edf(content)
    if not edf.is_continuous:
        raise RecordError(path, "an interrupted recording (EDF+D)", "Cut one continuous piece out of it")
    signals = [signal for signal in edf.signals if canonical_lead(signal.label) is not None]
    others = [signal.label for signal in edf.signals if canonical_lead(signal.label) is None]
    try:
        sex = {"M": "male", "F": "female"}.get(edf.patient.sex)
    except ValueError:  # not EDF+: the field is free text
        sex = None
    return _Found(
        names=[signal.label for signal in signals] + others,
        signals=[np.asarray(signal.data) for signal in signals] + [np.empty(0)] * len(others),
        rates=[float(signal.sampling_frequency) for signal in signals] + [0.0] * len(others),
        units=[signal.physical_dimension or "mV" for signal in signals] + [""] * len(others),
        patient=Patient(None, sex),
        notes=[] if all(s.physical_dimension for s in signals) else ["no unit given for some leads; taken as mV"],
    )


def _read_dicom(path: Path) -> _Found:
    """Read the first group of a DICOM waveform that holds the twelve leads (supplement 30, 12-lead ECG)."""
    import pydicom
    from pydicom.waveforms import multiplex_array

    content = path.read_bytes()
    if b"1.2.840.10008.1.2.1.99" in content[:4096]:
        raise RecordError(path, "a deflated DICOM file", "Convert it to explicit VR little endian")
    dataset = pydicom.dcmread(io.BytesIO(content))  # of a file, an element could claim four gigabytes
    groups = dataset.get("WaveformSequence") or []
    for number, group in enumerate(groups):
        channels = list(group.ChannelDefinitionSequence)
        names = [_channel_name(channel) for channel in channels]
        if not set(LEADS) <= {canonical_lead(name) for name in names}:
            continue
        values = multiplex_array(dataset, number, as_raw=False)
        raw = multiplex_array(dataset, number, as_raw=True)
        padding = group.get("WaveformPaddingValue")
        if padding is not None:
            values[raw == np.frombuffer(padding, raw.dtype)[0]] = np.nan
        units = [str(channel.ChannelSensitivityUnitsSequence[0].CodeValue) for channel in channels]
        notes = [f"group {number + 1} of {len(groups)} is read"] if len(groups) > 1 else []
        rates = [float(group.SamplingFrequency)] * len(names)
        return _Found(names, list(values.T), rates, units, _dicom_patient(dataset), notes=notes)
    found = f"no group of waveforms with the twelve leads (of {len(groups)})"
    raise RecordError(path, found, "Expected a 12-lead ECG waveform")


def _channel_name(channel: Any) -> str:
    """Return a channel's lead, by its code where it has a known one, else by what the code is said to mean."""
    source = channel.ChannelSourceSequence[0]
    scheme, code = str(source.get("CodingSchemeDesignator", "")), str(source.get("CodeValue", ""))
    number = re.fullmatch(r"2:(\d{1,3})", code) if scheme == "MDC" else re.fullmatch(r"5\.6\.3-9-(\d{1,3})", code)
    if number and int(number[1]) in _MDC_LEADS:
        return _MDC_LEADS[int(number[1])]
    return re.sub(r"\s*\(.*\)$", "", str(source.get("CodeMeaning", "")))  # "Lead I (Einthoven)"


def _dicom_patient(dataset: Any) -> Patient:
    """Return age in years and sex."""
    age = re.fullmatch(r"(\d{3})([DWMY])", str(dataset.get("PatientAge", "")))
    years = int(age[1]) / {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}[age[2]] if age else None
    sex = {"M": "male", "F": "female"}.get(str(dataset.get("PatientSex", "")))
    return Patient(years if years is not None and years <= 120 else None, sex)
