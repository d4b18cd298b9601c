"""A strict reader of WFDB headers: what a header claims, checked against the files it points to.

It decodes no signal (see `samples.py`). It exists because a header is untrusted input: a few bytes can claim a billion
samples, a file outside the folder or a gain of nothing, and a reader that believes them runs out of memory or computes
nonsense. Every way of decoding goes through these checks. Format: WFDB Applications Guide, header(5). Taught in: 01 §3.
"""

from __future__ import annotations

import math
import os
import re
import stat
import struct
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ecgchat_lib.errors import RecordError

MAX_HEADER_BYTES = 1_000_000
MAX_SIGNALS = 512
MAX_SEGMENTS = 1000
FS_RANGE = (40.0, 10_000.0)
DEFAULT_GAIN = 200.0  # ADC units per physical unit, WFDB's default where the header gives none

# samples stored in one group of bytes, by WFDB format: (samples, bytes)
_PACKING = {"8": (1, 1), "16": (1, 2), "24": (1, 3), "32": (1, 4), "61": (1, 2), "80": (1, 1), "160": (1, 2)}
_PACKING |= {"212": (2, 3), "310": (3, 4), "311": (3, 4)}
_COMPRESSED = ("508", "516", "524")  # FLAC: the length is known only after decoding
MOST_COMPRESSED = 5000  # values in a byte: a FLAC block of 65,535 equal values takes some 13 bytes
MATLAB_5 = "MATLAB 5"  # stands in place of a WFDB format
_INT16_MATRIX = 30  # MATLAB 4's code of a little-endian matrix of 16-bit integers

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_RECORD_LINE = re.compile(r"^(\S+)\s+(\d+)(?:\s+([^\s/(]+)(?:[/(]\S*)?(?:\s+(\S+)(?:\s.*)?)?)?$", re.ASCII)
_FORMAT = re.compile(r"^(\d+)(?:x(\d+))?(?::(\d+))?(?:\+(\d+))?$", re.ASCII)
_GAIN = re.compile(r"^([^(/]*)(?:\(([^)]*)\))?(?:/(\S*))?$")
_WHOLE = re.compile(r"[+-]?\d{1,12}", re.ASCII)
_WHOLES = re.compile(r"(?:[+-]?\d{1,12}(?: |$))*", re.ASCII)
_REMEDY = "Correct this line of the header"


class SignalLine(NamedTuple):
    """One signal of a header: where its samples are, and how to turn them into physical units."""

    file: str
    format: str
    samples_per_frame: int
    skew: int  # frames by which its samples are stored late
    byte_offset: int
    gain: float  # ADC units per physical unit
    baseline: int  # ADC value of 0 physical units
    units: str
    resolution: int  # bits, 0 if unknown
    zero: int
    initial: int  # first ADC value; format 8 stores differences from it
    name: str
    uncalibrated: bool  # the header gives no gain


class Segment(NamedTuple):
    """One segment of a record of several; a null segment (a gap) has no header."""

    name: str
    samples: int  # frames
    header: Header | None


@dataclass(frozen=True)
class Header:
    """What a header claims, checked: `samples` frames of `len(signals)` signals, `fs` frames a second.

    A record of several segments has its samples in `segments`; its `signals` are those of the layout segment, if it
    has one, or of its first segment.
    """

    path: Path
    name: str
    fs: float
    samples: int
    signals: tuple[SignalLine, ...]
    comments: tuple[str, ...]
    notes: tuple[str, ...]
    segments: tuple[Segment, ...] = ()


class _Wrong(Exception):
    """What is wrong with a line, before the path of its file is known: what was found, and the remedy."""


def locate_header(path: str | Path) -> Path:
    """Return the .hea file of a record given with or without an extension (.hea, .dat or .mat).

    Raises:
        RecordError: there is no such file, or the path is a folder.
    """
    path = Path(path)
    if not path.name or "\0" in str(path):
        raise RecordError(repr(str(path)), "not the path of a record", "Give the path of a WFDB record")
    suffix = path.suffix.lower()
    candidates = [path.with_name(path.name + ".hea")]
    if suffix in (".hea", ".dat", ".mat"):
        candidates.insert(0, path.with_suffix(".hea"))
        if suffix == ".hea":
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
    if elsewhere and suffix not in (".hea", ".dat", ".mat"):
        raise RecordError(path, "not a WFDB record", "Convert it to WFDB (a .hea and a .dat file) first")
    if elsewhere:
        raise RecordError(path, f"its header {candidates[0].name} is missing", "Put the .hea file beside it")
    raise RecordError(
        path, f"no such record; expected the file {candidates[0].name} in {path.parent}", "Check the path"
    )


def read_header(path: Path) -> Header:
    """Read a .hea file, and those of its segments, and check them against the signal files beside it.

    Args:
        path: an existing .hea file.

    Raises:
        RecordError: the header can't be read, contradicts itself, or claims what its signal files don't hold.
    """
    return _read(path, segments_allowed=True)


def _read(path: Path, *, segments_allowed: bool) -> Header:
    """Read a header; one that is itself a segment can't have segments, so that no chain of them is without end."""
    lines, comments = _lines(path)
    try:
        name, n_segments, n_signals, fs, samples = _record_line(lines[0])
        if n_segments is None:
            signals = _signal_lines(lines[1:], n_signals)
        elif not segments_allowed:
            raise _Wrong("a segment that has segments itself", "Only a whole record can have segments")
        else:
            record = Header(path, name, fs, samples or 0, (), comments, ())
            return _with_segments(record, n_signals, _segment_lines(lines[1:], n_segments))
    except _Wrong as wrong:
        raise RecordError(path, *wrong.args) from None
    notes: list[str] = []
    samples, signals = _check_files(path, signals, samples, notes)
    for signal in signals:
        if signal.skew > samples:
            raise RecordError(path, f"a skew of {signal.skew} samples for {signal.name}", "Correct the header's skew")
    return Header(path, name, fs, samples, signals, comments, tuple(notes))


def _lines(path: Path) -> tuple[list[str], tuple[str, ...]]:
    """Return the header's lines and its comments."""
    remedy = "Get the .hea file again, or write it anew with wfdb.wrsamp"
    try:
        with open(path, "rb", buffering=0) as stream:
            raw = stream.read(8192)  # most headers have less than a thousand bytes
            while len(raw) <= MAX_HEADER_BYTES and (more := stream.read(MAX_HEADER_BYTES)):
                raw += more
    except OSError as error:
        raise RecordError(
            path, f"can't be read ({error.strerror})", "Check the file and your right to read it"
        ) from None
    if len(raw) > MAX_HEADER_BYTES:
        raise RecordError(path, f"a header of more than {MAX_HEADER_BYTES} bytes", remedy)
    if not raw.strip():
        raise RecordError(path, "an empty header", remedy)
    if b"\0" in raw:
        raise RecordError(path, "not a text header (it holds zero bytes)", remedy)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    stripped = [line.strip() for line in text.splitlines()]
    comments = [" ".join(line.lstrip("#").split()) for line in stripped if line.startswith("#")]
    lines = [line for line in stripped if line and not line.startswith("#")]
    if not lines:
        raise RecordError(path, "a header of comments only", remedy)
    return lines, tuple(comment for comment in comments if comment)


def _record_line(line: str) -> tuple[str, int | None, int, float, int | None]:
    """Return name, number of segments (None: not segmented) and of signals, frames per second, frames (or None)."""
    match = _RECORD_LINE.match(line)
    if match is None:
        shown = line if len(line) <= 60 else line[:60] + "…"
        raise _Wrong(
            f"not a WFDB header (first line: {shown!r})", "Expected 'NAME SIGNALS HERTZ SAMPLES' in its first line"
        )
    name, n_text, fs_text, samples_text = match.groups()
    name, slash, segments_text = name.rpartition("/") if re.search(r"/\d{1,9}$", name, re.ASCII) else (name, "", "")
    n_signals = int(n_text[:9])
    if n_signals == 0:
        raise _Wrong("no signal (the header announces 0 signals)", "Use a record with 12 leads")
    if n_signals > MAX_SIGNALS:
        raise _Wrong(f"{n_signals} signals announced, more than {MAX_SIGNALS}", "Correct the header")
    if fs_text is None:
        raise _Wrong("no sampling rate", "Write it as the third field of the header's first line")
    fs = float(fs_text) if _NUMBER.fullmatch(fs_text) else math.nan
    if not 0 < fs <= FS_RANGE[1]:  # frames: the rate of the samples is checked where their number per frame is known
        raise _wrong_rate(fs_text[:20])
    if samples_text is not None and (len(samples_text) > 12 or not _WHOLE.fullmatch("+" + samples_text)):
        raise _Wrong(f"{samples_text[:20]} samples announced", "Correct the header's number of samples")
    samples = int(samples_text or 0) or None  # WFDB: 0 means "not said"
    return name, int(segments_text) if slash else None, n_signals, fs, samples


def _wrong_rate(text: str) -> _Wrong:
    return _Wrong(f"a sampling rate of {text} Hz, not {FS_RANGE[0]:g} to {FS_RANGE[1]:g}", "Correct it in the header")


def _signal_lines(lines: list[str], n_signals: int) -> tuple[SignalLine, ...]:
    """Parse the lines of the signals."""
    if len(lines) != n_signals:
        raise _Wrong(
            f"{n_signals} signals announced but {len(lines)} described",
            "Get the header again; there must be one line per signal",
        )
    return tuple([_signal_line(line) for line in lines])


def _signal_line(line: str) -> SignalLine:
    """Parse `FILE FORMAT GAIN(BASELINE)/UNITS RESOLUTION ZERO INITIAL CHECKSUM BLOCK NAME`."""
    fields = line.split(maxsplit=8)
    if len(fields) < 2 or len(line) > 1000:
        raise _Wrong(f"a signal line that can't be understood ({line[:60]!r})", _REMEDY)
    format_, per_frame, skew, offset = _format_field(fields[1])
    gain, baseline, units = _gain_field(fields[2]) if len(fields) > 2 else (None, None, "mV")
    numbers = fields[3:8]
    if not _WHOLES.fullmatch(" ".join(numbers)):
        raise _Wrong(f"{' '.join(numbers)[:60]!r} where whole numbers belong in a signal line", _REMEDY)
    resolution, zero, initial = (int(number) for number in [*numbers, "0", "0", "0"][:3])
    return SignalLine(
        fields[0],
        format_,
        per_frame,
        skew,
        offset,
        DEFAULT_GAIN if gain is None else gain,
        zero if baseline is None else baseline,
        units,
        resolution,
        zero,
        initial,
        fields[8] if len(fields) > 8 else "",
        gain is None,
    )


@lru_cache(maxsize=256)  # the same few texts stand in every line of every record of a dataset
def _format_field(text: str) -> tuple[str, int, int, int]:
    """Parse `FORMATxSAMPLES_PER_FRAME:SKEW+BYTE_OFFSET`."""
    match = _FORMAT.match(text)
    if match is None:
        raise _Wrong(f"a signal line that can't be understood (format {text[:40]!r})", _REMEDY)
    if match[1] not in _PACKING and match[1] not in _COMPRESSED and match[1] != "0":
        raise _Wrong(f"an unknown signal format {match[1][:20]}", "Convert it to WFDB format 16")
    per_frame, skew, offset = (
        int(text[:12]) if text else default for text, default in zip(match.groups()[1:], (1, 0, 0), strict=True)
    )
    if not 1 <= per_frame <= 10_000:
        raise _Wrong(f"{per_frame} samples per frame", _REMEDY)
    return match[1], per_frame, skew, offset


@lru_cache(maxsize=1024)
def _gain_field(text: str) -> tuple[float | None, int | None, str]:
    """Parse `GAIN(BASELINE)/UNITS`; a gain of 0 means that nobody calibrated the signal."""
    remedy = "Write the true gain (ADC units per mV) into the header"
    match = _GAIN.match(text)
    if match is None or not _NUMBER.fullmatch(match[1]):
        raise _Wrong(f"a gain that is no number ({text[:40]!r})", remedy)
    gain = float(match[1])
    if gain == 0:
        raise _Wrong("a gain of 0, which means not calibrated", remedy)
    if not 1e-9 <= gain <= 1e12:
        raise _Wrong(f"a gain of {match[1][:20]}, which is impossible", remedy)
    if match[2] is not None and not _WHOLE.fullmatch(match[2]):
        raise _Wrong(f"a baseline that is no whole number ({match[2][:20]!r})", remedy)
    return gain, int(match[2]) if match[2] is not None else None, match[3] or "mV"


def _check_files(
    path: Path, signals: tuple[SignalLine, ...], samples: int | None, notes: list[str]
) -> tuple[int, tuple[SignalLine, ...]]:
    """Check each signal file against the header; return the number of samples (frames), and what is in the files."""
    groups: dict[str, list[SignalLine]] = {}
    for signal in signals:
        groups.setdefault(signal.file, []).append(signal)
    for file, group in groups.items():
        if len({(signal.format, signal.byte_offset) for signal in group}) > 1:
            raise RecordError(path, f"two formats for the one file {file}", "Correct the header")
        size = check_beside(path, file)
        if file[-4:].lower() == ".mat" and _is_matlab_5(path.with_name(file), group):
            signals = tuple(s._replace(format=MATLAB_5, byte_offset=0) if s.file == file else s for s in signals)
            notes.append(f"{file} is a MATLAB 5 file; its matrix val is read, whatever format the header gives")
            held = None
        else:
            held = _frames_in(path, group, size)
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
    return samples, signals


def _segment_lines(lines: list[str], n_segments: int) -> list[tuple[str, int]]:
    """Parse `NAME SAMPLES` of each segment."""
    if not 1 <= n_segments <= MAX_SEGMENTS:
        raise _Wrong(f"{n_segments} segments announced, not 1 to {MAX_SEGMENTS}", "Cut the record into shorter ones")
    if len(lines) != n_segments:
        raise _Wrong(f"{n_segments} segments announced but {len(lines)} named", "Get the header again")
    fields = [line.split() for line in lines]
    for words in fields:
        if len(words) != 2 or not _WHOLE.fullmatch("+" + words[1]):
            raise _Wrong(f"a segment line that can't be understood ({' '.join(words)[:60]!r})", "Expected NAME SAMPLES")
    return [(name, int(samples)) for name, samples in fields]


def _with_segments(record: Header, n_signals: int, lines: list[tuple[str, int]]) -> Header:
    """Read the headers of a record's segments, and check them against the record's own.

    The first may be a layout: it has no samples, and names every signal that any of the others may have. Without one,
    all have the same signals. `~` is a gap.
    """
    path = record.path
    layout = _layout(path, lines[0][0]) if lines[0][1] == 0 and lines[0][0] != "~" else None
    known: dict[str, Header] = {}
    for name, _ in lines[1 if layout else 0 :]:
        if name != "~" and name not in known:
            check_beside(path, f"{name}.hea")
            known[name] = _read(path.with_name(f"{name}.hea"), segments_allowed=False)
    segments = tuple(Segment(name, samples, known.get(name)) for name, samples in lines[1 if layout else 0 :])
    if not known:
        raise RecordError(path, "no signal (all segments are gaps)", "Use another record")
    for segment in segments:
        _check_segment(record, segment, None if layout else n_signals)
    total = sum(segment.samples for segment in segments)
    if record.samples not in (0, total):
        found = f"{record.samples} samples announced, but its segments hold {total}"
        raise RecordError(path, found, "Correct the header, or get it again")
    headers = (record, *([layout] if layout else []), *known.values())
    signals = headers[1].signals
    if len(signals) != n_signals:
        raise RecordError(path, f"{n_signals} signals announced, its layout has {len(signals)}", "Correct the header")
    return replace(
        record,
        samples=total,
        signals=signals,
        comments=tuple(dict.fromkeys(comment for header in headers for comment in header.comments)),
        notes=(f"joined from {len(segments)} segments", *(note for header in headers for note in header.notes)),
        segments=segments,
    )


def _layout(path: Path, name: str) -> Header:
    """Read the header of a layout segment, whose signals have no file."""
    check_beside(path, f"{name}.hea")
    path = path.with_name(f"{name}.hea")
    lines, comments = _lines(path)
    try:
        name, n_segments, n_signals, fs, _ = _record_line(lines[0])
        if n_segments is not None:
            raise _Wrong("a layout that has segments itself", "Only a whole record can have segments")
        signals = _signal_lines(lines[1:], n_signals)
    except _Wrong as wrong:
        raise RecordError(path, *wrong.args) from None
    if any(signal.file != "~" for signal in signals):
        raise RecordError(path, "a layout segment that names signal files", "Expected ~ in place of each file")
    return Header(path, name, fs, 0, signals, comments, ())


def _check_segment(record: Header, segment: Segment, n_signals: int | None) -> None:
    """Check one segment against its record."""
    if segment.samples == 0:
        raise RecordError(record.path, f"segment {segment.name} without samples", "Correct the header")
    header = segment.header
    if header is None:
        return
    if header.samples != segment.samples:
        found = f"{header.samples} samples, but {record.path.name} announces {segment.samples} for this segment"
        raise RecordError(header.path, found, "Correct either header")
    if not math.isclose(header.fs, record.fs, rel_tol=1e-6):
        found = f"{header.fs:g} Hz, but the whole record {record.fs:g} Hz"
        raise RecordError(header.path, found, "Correct either header")
    if n_signals not in (None, len(header.signals)):
        found = f"{len(header.signals)} signals, but {record.path.name} announces {n_signals} for every segment"
        raise RecordError(header.path, found, "Correct either header, or give the record a layout segment")


def _frames_in(path: Path, group: list[SignalLine], size: int) -> int | None:
    """Return the whole frames in a signal file of `size` bytes (None where only decoding tells)."""
    format_ = group[0].format
    if format_ == "0":
        raise RecordError(path, f"format 0, which holds no samples, for {group[0].file}", "Name the true format")
    if format_ in _COMPRESSED:
        return None  # `samples.py` refuses what no compression could have made of so few bytes
    per_group, group_bytes = _PACKING[format_]
    whole = max(size - group[0].byte_offset, 0)
    values = whole // group_bytes * per_group + (whole % group_bytes // 2 if per_group > 1 else 0)
    return values // sum([signal.samples_per_frame for signal in group])


def check_beside(path: Path, file: str) -> int:
    """Return the size of the signal file that a header names, which must be a file in the header's own folder.

    Raises:
        RecordError: it is missing, empty, no plain file, or outside the folder (by its name or as a link).
    """
    if "/" in file or "\\" in file or ":" in file or file.startswith((".", "-", "~")):
        raise RecordError(path, f"a signal file outside the record's folder ({file[:60]!r})", "Name a file beside it")
    target = path.with_name(file)
    try:
        found = os.lstat(target)
        if stat.S_ISLNK(found.st_mode):
            _check_link(target)
            found = os.stat(target)
    except (OSError, ValueError):
        found = None
    if found is None or not stat.S_ISREG(found.st_mode):
        raise RecordError(target, "the signal file is missing", f"Put it beside {path.name}, which names it")
    if found.st_size == 0:
        raise RecordError(target, "an empty signal file", "Get the file again")
    return found.st_size


def _check_link(target: Path) -> None:
    """Refuse a link out of the folder: a record from a stranger must not show the reader's own files."""
    if not Path(os.path.realpath(target)).is_relative_to(os.path.realpath(target.parent)):
        raise RecordError(
            target, "a link to a file outside the record's folder", "Put the file itself there, not a link"
        )


def _is_matlab_5(target: Path, group: list[SignalLine]) -> bool:
    """Return whether a .mat file is MATLAB 5; check the 24 bytes in front of the samples if it is MATLAB 4.

    A MATLAB 4 file says in five numbers what it holds (kind, rows, columns, imaginary part, length of its name). The
    Challenge's are `int16` matrices called `val`, one row for each signal, which are the very bytes of format 16.
    """
    with open(target, "rb", buffering=0) as stream:
        head = stream.read(24)
    if head[:6] == b"MATLAB":
        return True
    if len(head) == 24 and group[0].byte_offset == 24 and group[0].format == "16":
        kind, rows, _, imaginary, _ = struct.unpack("<5i", head[:20])
        if (kind, imaginary) != (_INT16_MATRIX, 0):
            raise RecordError(
                target, "not a MATLAB 4 matrix of 16-bit integers, as the header says", "Get the file again"
            )
        if rows != sum([signal.samples_per_frame for signal in group]):
            raise RecordError(
                target, f"a matrix of {rows} rows, the header announces {len(group)} signals", "Correct the header"
            )
    return False
