"""A strict reader of WFDB headers: what a header claims, checked against the files it points to.

It decodes no signal (the `wfdb` package does, see `recording.py`). It exists because a header is untrusted input: a few
bytes can claim a billion samples, a file outside the folder or a gain of nothing, and a reader that believes them runs
out of memory or computes nonsense. Format: WFDB Applications Guide, header(5). Taught in: 01 §3.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from ecgchat_lib.errors import RecordError

MAX_HEADER_BYTES = 1_000_000
MAX_SIGNALS = 512
FS_RANGE = (40.0, 10_000.0)
DEFAULT_GAIN = 200.0  # ADC units per physical unit, WFDB's default where the header gives none

# samples stored in one group of bytes, by WFDB format: (samples, bytes)
_PACKING = {"8": (1, 1), "16": (1, 2), "24": (1, 3), "32": (1, 4), "61": (1, 2), "80": (1, 1), "160": (1, 2)}
_PACKING |= {"212": (2, 3), "310": (3, 4), "311": (3, 4)}
_COMPRESSED = ("508", "516", "524")  # FLAC: the length is known only after decoding

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RECORD_LINE = re.compile(r"^(\S+)\s+(\d+)(?:\s+([^\s/(]+)(?:[/(]\S*)?(?:\s+(\S+)(?:\s.*)?)?)?$")
_FORMAT = re.compile(r"^(\d+)(?:x(\d+))?(?::(\d+))?(?:\+(\d+))?$")
_GAIN = re.compile(r"^([^(/]*)(?:\(([^)]*)\))?(?:/(\S*))?$")


@dataclass(frozen=True)
class SignalLine:
    """One signal of a header: where its samples are, and how to turn them into physical units."""

    file: str
    format: str
    samples_per_frame: int
    skew: int
    byte_offset: int
    gain: float  # ADC units per physical unit
    baseline: int  # ADC value of 0 physical units
    units: str
    resolution: int  # bits, 0 if unknown
    zero: int
    initial: int  # first ADC value; format 8 stores differences from it
    name: str
    uncalibrated: bool  # the header gives no gain


@dataclass(frozen=True)
class Header:
    """What a header claims: `samples` frames of `len(signals)` signals at `fs` Hz."""

    name: str
    fs: float
    samples: int
    signals: tuple[SignalLine, ...]
    comments: tuple[str, ...]
    notes: tuple[str, ...]


def locate_header(path: str | Path) -> Path:
    """Return the .hea file of a record given with or without an extension (.hea, .dat or .mat).

    Raises:
        RecordError: there is no such file, or the path is a folder.
    """
    path = Path(path)
    if not path.name or "\0" in str(path):
        raise RecordError(repr(str(path)), "not the path of a record", "Give the path of a WFDB record")
    candidates = [path.with_name(path.name + ".hea")]
    if path.suffix.lower() in (".hea", ".dat", ".mat"):
        candidates.insert(0, path.with_suffix(".hea"))
        if path.suffix.lower() == ".hea":
            candidates.insert(0, path)
    try:
        for candidate in candidates:
            if candidate.is_file():
                return candidate
        folder, elsewhere = path.is_dir(), path.exists()
    except OSError as error:
        raise RecordError(path, f"can't be looked up ({error.strerror})", "Check the path") from None
    if folder:
        raise RecordError(path, "a folder, not a record", "Name one record inside it, without extension")
    if elsewhere and path.suffix.lower() not in (".hea", ".dat", ".mat"):
        raise RecordError(path, "not a WFDB record", "Convert it to WFDB (a .hea and a .dat file) first")
    if elsewhere:
        raise RecordError(path, f"its header {candidates[0].name} is missing", "Put the .hea file beside it")
    raise RecordError(
        path, "no such record", f"Check the path; expected the file {candidates[0].name} in {path.parent}"
    )


def read_header(path: Path) -> Header:
    """Read a .hea file and check it against the signal files beside it.

    Args:
        path: an existing .hea file.

    Raises:
        RecordError: the header can't be read, contradicts itself, or claims what its signal files don't hold.
    """
    lines, comments = _lines(path)
    name, n_signals, fs, samples = _record_line(path, lines[0])
    if len(lines) - 1 != n_signals:
        raise RecordError(
            path,
            f"{n_signals} signals announced but {len(lines) - 1} described",
            "Get the header again; there must be one line per signal",
        )
    signals = tuple(_signal_line(path, line) for line in lines[1:])
    notes: list[str] = []
    samples = _check_files(path, signals, samples, notes)
    for signal in signals:
        if signal.skew > samples:
            raise RecordError(path, f"a skew of {signal.skew} samples for {signal.name}", "Correct the header's skew")
    return Header(name, fs, samples, signals, comments, tuple(notes))


def _lines(path: Path) -> tuple[list[str], tuple[str, ...]]:
    """Return the header's lines and its comments."""
    remedy = "Get the .hea file again, or write it anew with wfdb.wrsamp"
    try:
        size = path.stat().st_size
        if size > MAX_HEADER_BYTES:
            raise RecordError(path, f"a header of {size} bytes, more than {MAX_HEADER_BYTES}", remedy)
        raw = path.read_bytes()
    except OSError as error:
        raise RecordError(
            path, f"can't be read ({error.strerror})", "Check the file and your right to read it"
        ) from None
    if not raw.strip():
        raise RecordError(path, "an empty header", remedy)
    if b"\0" in raw:
        raise RecordError(path, "not a text header (it holds zero bytes)", remedy)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    stripped = [line.strip() for line in text.splitlines()]
    comments = tuple(" ".join(line.lstrip("#").split()) for line in stripped if line.startswith("#"))
    lines = [line for line in stripped if line and not line.startswith("#")]
    if not lines:
        raise RecordError(path, "a header of comments only", remedy)
    return lines, tuple(comment for comment in comments if comment)


def _record_line(path: Path, line: str) -> tuple[str, int, float, int | None]:
    """Return name, number of signals, sampling rate (Hz) and number of samples (None if not given)."""
    match = _RECORD_LINE.match(line)
    if match is None:
        shown = line if len(line) <= 60 else line[:60] + "…"
        raise RecordError(
            path,
            f"not a WFDB header (first line: {shown!r})",
            "Expected 'NAME SIGNALS HERTZ SAMPLES' in its first line",
        )
    name, n_text, fs_text, samples_text = match.groups()
    if re.search(r"/\d+$", name):
        raise RecordError(path, "a record of several segments", "Join them into one (wfdb.rdrecord, then wfdb.wrsamp)")
    n_signals = int(n_text[:9])
    if n_signals == 0:
        raise RecordError(path, "no signal (the header announces 0 signals)", "Use a record with 12 leads")
    if n_signals > MAX_SIGNALS:
        raise RecordError(path, f"{n_signals} signals announced, more than {MAX_SIGNALS}", "Correct the header")
    if fs_text is None:
        raise RecordError(path, "no sampling rate", "Write it as the third field of the header's first line")
    fs = float(fs_text) if re.fullmatch(_NUMBER, fs_text) else math.nan
    if not FS_RANGE[0] <= fs <= FS_RANGE[1]:
        raise RecordError(
            path,
            f"a sampling rate of {fs_text[:20]} Hz, not {FS_RANGE[0]:g} to {FS_RANGE[1]:g}",
            "Correct it in the header",
        )
    if samples_text is not None and not re.fullmatch(r"\d{1,12}", samples_text):
        raise RecordError(path, f"{samples_text[:20]} samples announced", "Correct the header's number of samples")
    return name, n_signals, fs, int(samples_text or 0) or None  # WFDB: 0 means "not said"


def _signal_line(path: Path, line: str) -> SignalLine:
    """Parse `FILE FORMAT GAIN(BASELINE)/UNITS RESOLUTION ZERO INITIAL CHECKSUM BLOCK NAME`."""
    fields = line.split(maxsplit=8)
    remedy = "Correct this line of the header"
    shown = " ".join(fields[:3])[:60]
    if len(fields) < 2 or (match := _FORMAT.match(fields[1])) is None:
        raise RecordError(path, f"a signal line that can't be understood ({shown!r})", remedy)
    file = fields[0]
    if "/" in file or "\\" in file or ":" in file or file.startswith((".", "-", "~")):
        raise RecordError(path, f"a signal file outside the record's folder ({file[:60]!r})", "Name a file beside it")
    if match[1] not in _PACKING and match[1] not in _COMPRESSED:
        raise RecordError(path, f"an unknown signal format {match[1][:20]}", "Convert it to WFDB format 16")
    per_frame, skew, offset = (
        int(text[:12]) if text else default for text, default in zip(match.groups()[1:], (1, 0, 0), strict=True)
    )
    if not 1 <= per_frame <= 10_000:
        raise RecordError(path, f"{per_frame} samples per frame in {shown!r}", remedy)
    gain, baseline, units = _gain(path, fields[2]) if len(fields) > 2 else (None, None, "mV")
    numbers = []
    for text in fields[3:8]:
        if re.fullmatch(r"[+-]?\d{1,12}", text) is None:
            raise RecordError(path, f"{text[:20]!r} where a whole number belongs in {shown!r}", remedy)
        numbers.append(int(text))
    resolution, zero, initial = (*numbers, 0, 0, 0)[:3]
    return SignalLine(
        file=file,
        format=match[1],
        samples_per_frame=per_frame,
        skew=skew,
        byte_offset=offset,
        gain=DEFAULT_GAIN if gain is None else gain,
        baseline=zero if baseline is None else baseline,
        units=units,
        resolution=resolution,
        zero=zero,
        initial=initial,
        name=fields[8].strip() if len(fields) > 8 else "",
        uncalibrated=gain is None,
    )


def _gain(path: Path, text: str) -> tuple[float | None, int | None, str]:
    """Parse `GAIN(BASELINE)/UNITS`; a gain of 0 means that nobody calibrated the signal."""
    remedy = "Write the true gain (ADC units per mV) into the header"
    match = _GAIN.match(text)
    if match is None or not re.fullmatch(_NUMBER, match[1]):
        raise RecordError(path, f"a gain that is no number ({text[:40]!r})", remedy)
    gain = float(match[1])
    if gain == 0:
        raise RecordError(path, "a gain of 0, which means not calibrated", remedy)
    if not 1e-9 <= gain <= 1e12:
        raise RecordError(path, f"a gain of {match[1][:20]}, which is impossible", remedy)
    if match[2] is not None and not re.fullmatch(r"[+-]?\d{1,12}", match[2]):
        raise RecordError(path, f"a baseline that is no whole number ({match[2][:20]!r})", remedy)
    return gain, int(match[2]) if match[2] is not None else None, match[3] or "mV"


def _check_files(path: Path, signals: tuple[SignalLine, ...], samples: int | None, notes: list[str]) -> int:
    """Check each signal file's size against the header, and return the number of samples (frames)."""
    groups: dict[str, list[SignalLine]] = {}
    for signal in signals:
        groups.setdefault(signal.file, []).append(signal)
    for file, group in groups.items():
        if len({(signal.format, signal.byte_offset) for signal in group}) > 1:
            raise RecordError(path, f"two formats for the one file {file}", "Correct the header")
        size, held = _frames_in(path, file, group)
        if held is None:
            if samples is None:
                raise RecordError(path, "no number of samples", "Write it as the fourth field of the first line")
            continue
        if samples is None:
            samples = held
            notes.append(f"the header gives no length; taken from the size of {file}")
        if samples == 0 or held == 0:
            raise RecordError(path.with_name(file), "no signal (the file holds no sample)", "Get the file again")
        if held < samples:
            raise RecordError(
                path.with_name(file),
                f"truncated: {size} bytes hold {held} samples per lead, the header announces {samples}",
                "Get the file again, or correct the header's number of samples",
            )
        if held > samples:
            notes.append(f"{file} holds {held} samples, the header announces {samples}; only those are read")
    assert samples is not None  # there is at least one signal
    return samples


def _frames_in(path: Path, file: str, group: list[SignalLine]) -> tuple[int, int | None]:
    """Return a signal file's size in bytes and the whole frames in it (None for a compressed file)."""
    target = path.with_name(file)
    if not target.is_file():
        raise RecordError(target, "the signal file is missing", f"Put it beside {path.name}, which names it")
    size, format_ = target.stat().st_size, group[0].format
    if size == 0:
        raise RecordError(target, "an empty signal file", "Get the file again")
    if target.suffix.lower() == ".mat":
        with target.open("rb") as stream:
            if stream.read(6) == b"MATLAB":
                raise RecordError(target, "a MATLAB 5 file", "Convert it to WFDB format 16 (or MATLAB version 4)")
    if format_ in _COMPRESSED:
        return size, None
    per_group, group_bytes = _PACKING[format_]
    whole = max(size - group[0].byte_offset, 0)
    values = whole // group_bytes * per_group + (whole % group_bytes // 2 if per_group > 1 else 0)
    return size, values // sum(signal.samples_per_frame for signal in group)
