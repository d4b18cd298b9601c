"""From the bytes of a record's signal files to millivolts, after `header.py` has checked what the header claims.

Two ways lead to the same integers: one read for the common case (one file, format 16, which the Challenge's .mat files
hold too), and the `wfdb` package for every other format. What follows, from integers to millivolts, is the same for
both. It finds no leads by name and judges no signal (see `recording.py`). Taught in: 01 §3.
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgchat_lib.ecg.header import MATLAB_5, MOST_COMPRESSED, Header, SignalLine
from ecgchat_lib.errors import RecordError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MISSING = {"16": -(2**15), "61": -(2**15), "160": -(2**15), "516": -(2**15), "24": -(2**23), "524": -(2**23)}
_MISSING |= {"80": -(2**7), "508": -(2**7), "310": -(2**9), "311": -(2**9), "212": -(2**11), "32": -(2**31)}
"""The integer that marks a missing sample, by WFDB format; format 8, differences, has none."""

_CONVERT = "Convert it to WFDB format 16"
_REMEDY = "Get the record again, or write it anew with wfdb.wrsamp"


def read_millivolts(header: Header, rows: Sequence[int], factors: Sequence[float], frames: int) -> NDArray[np.float32]:
    """Read signals that have equally many samples per frame.

    Args:
        header: of one segment, checked.
        rows: which of its signals.
        factors: how many mV are one physical unit of each.
        frames: how many to read, from the first.

    Returns:
        float32 `(len(rows), frames * samples_per_frame)` in mV, NaN where a sample is missing. It equals what `wfdb`
        gives, which computes in float64, after that has been rounded to float32.

    Raises:
        RecordError: the files can't be decoded as the header says.
    """
    signals = [header.signals[row] for row in rows]
    late = max(signal.skew for signal in signals)
    stored = min(frames + late, header.samples)
    if is_plain(header):
        counts = _read_plain(header, rows, stored)
    elif header.signals[0].format == MATLAB_5:
        counts = _read_matlab_5(header, rows, stored)
    else:
        counts = _read_with_wfdb(header, rows, stored)
    if late:  # sample t of a skewed signal stands in frame t + skew
        size = frames * signals[0].samples_per_frame
        starts = [signal.skew * signal.samples_per_frame for signal in signals]
        counts = [column[start : start + size] for column, start in zip(counts, starts, strict=True)]
    return _to_millivolts(counts, signals, factors, frames * signals[0].samples_per_frame)


def _to_millivolts(
    counts: list[NDArray[Any]], signals: list[SignalLine], factors: Sequence[float], size: int
) -> NDArray[np.float32]:
    """Return (counts - baseline) / gain * factor, with NaN for missing samples and beyond the end of a column.

    16-bit integers, baselines and most gains have no more than float32's 24 bits. Then one division in float32 gives
    the same as a division in float64 that is rounded to float32: 53 bits are more than twice 24 and two, so that no
    result can be rounded twice in different directions (Figueroa 1995, doi 10.1145/221332.221334).
    """
    gains = np.array([signal.gain for signal in signals])[:, None]
    baselines = np.array([signal.baseline for signal in signals], dtype=np.float64)[:, None]
    exact = all([column.dtype == np.int16 for column in counts]) and all([factor == 1 for factor in factors])
    exact = exact and bool((gains.astype(np.float32) == gains).all() and np.abs(baselines).max() < 2**23)
    dtype = np.float32 if exact else np.float64
    values = np.empty((len(counts), size), dtype)
    for row, column in zip(values, counts, strict=True):
        row[: len(column)] = column
        if len(column) < size:
            row[len(column) :] = np.nan
    marks = [_MISSING.get(signal.format, -np.inf) for signal in signals]
    if not values.min() > max(marks):  # true for NaN too
        values[values == np.array(marks)[:, None]] = np.nan
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # a MATLAB file may hold 1e300; what becomes inf is refused later
        if baselines.any():
            values -= baselines.astype(dtype)
        values /= gains.astype(dtype)
        if dtype is np.float64:
            values *= np.array(factors)[:, None]
        return values.astype(np.float32, copy=False)


def is_plain(header: Header) -> bool:
    """Return whether one read gives all samples: one file, format 16, one sample of each signal per frame."""
    first = header.signals[0]
    return first.format == "16" and all([s.file == first.file and s.samples_per_frame == 1 for s in header.signals])


def _read_plain(header: Header, rows: Sequence[int], frames: int) -> list[NDArray[Any]]:
    """Read format 16: the 16-bit integers of all signals at one time, then of the next time, and so on."""
    first = header.signals[0]
    counts = np.empty((frames, len(header.signals)), dtype="<i2")
    path = header.path.with_name(first.file)
    with open(path, "rb", buffering=0) as stream:
        stream.seek(first.byte_offset)
        if stream.readinto(counts.data) != counts.nbytes:
            raise RecordError(path, "holds less than when it was opened", _REMEDY)
    return [counts[:, row] for row in rows]


def _read_with_wfdb(header: Header, rows: Sequence[int], frames: int) -> list[NDArray[Any]]:
    """Let wfdb decode the wanted signals.

    wfdb gets a header written anew from what was checked, in a folder of its own, so that it can't read the original
    differently than `read_header` did.
    """
    import wfdb

    for file in {signal.file for signal in header.signals}:
        group = [signal for signal in header.signals if signal.file == file]
        values = frames * sum(signal.samples_per_frame for signal in group)
        path = header.path.with_name(file)
        if values > path.stat().st_size * MOST_COMPRESSED:
            raise RecordError(path, f"too small for the {header.samples} samples that the header announces", _REMEDY)
    with tempfile.TemporaryDirectory(prefix="ecgchat-") as folder:
        _write_checked_header(Path(folder), header)
        try:
            record = wfdb.rdrecord(
                os.path.join(folder, "record"),
                sampto=frames,
                channels=list(rows),
                smooth_frames=False,
            )
        except Exception as error:
            found = f"wfdb can't decode it ({type(error).__name__}: {' '.join(str(error).split())[:80]})"
            raise RecordError(header.path, found, _REMEDY) from None
    counts: list[NDArray[Any]] = record.e_p_signal or []  # "physical" with a gain of 1: the integers, and NaN
    if [len(column) for column in counts] != [frames * header.signals[row].samples_per_frame for row in rows]:
        raise RecordError(header.path, "its signal file holds less than the header announces", _REMEDY)
    return counts


def _write_checked_header(folder: Path, header: Header) -> None:
    """Write `record.hea` with what was checked, and links to the signal files, into an empty folder."""
    files = {file: f"signal{number}.dat" for number, file in enumerate(dict.fromkeys(s.file for s in header.signals))}
    lines = [f"record {len(header.signals)} {header.fs:f} {header.samples}"]
    for number, signal in enumerate(header.signals):
        format_ = f"{signal.format}x{signal.samples_per_frame}:0+{signal.byte_offset}"  # the skew is undone later
        numbers = f"1(0)/mV {signal.resolution} {signal.zero} {signal.initial} 0 0"
        lines.append(f"{files[signal.file]} {format_} {numbers} {number}")
    (folder / "record.hea").write_text("\n".join(lines) + "\n", encoding="ascii")
    for file, alias in files.items():
        source = header.path.with_name(file).resolve()
        try:
            os.symlink(source, folder / alias)
        except OSError:  # Windows without the right to make links
            shutil.copyfile(source, folder / alias)


# --- MATLAB 5 ----------------------------------------------------------------------------------------------------

MAX_MATLAB_BYTES = 300_000_000
_MOST_ELEMENTS = 1000
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}  # miINT8, …
_MATRIX, _COMPRESSED, _COMPLEX = 14, 15, 0x0800
_NUMERIC_CLASSES = range(6, 16)  # double, single, and the integers


def _read_matlab_5(header: Header, rows: Sequence[int], frames: int) -> list[NDArray[Any]]:
    """Read the matrix `val` of a MATLAB 5 file, signals by time or time by signals."""
    path = header.path.with_name(header.signals[0].file)
    if any(signal.file != path.name or signal.samples_per_frame != 1 for signal in header.signals):
        raise RecordError(path, "a MATLAB 5 file that doesn't hold all signals", _CONVERT)
    size = path.stat().st_size
    if size > MAX_MATLAB_BYTES:
        raise RecordError(path, f"{size} bytes, more than {MAX_MATLAB_BYTES}", _CONVERT)
    if frames * len(header.signals) > size * 1032:  # zlib's limit
        raise RecordError(path, f"too small for the {header.samples} samples that the header announces", _REMEDY)
    try:
        values = matlab_matrix(path.read_bytes(), "val", frames * len(header.signals))
    except (ValueError, struct.error, zlib.error) as error:
        raise RecordError(path, f"a MATLAB 5 file that can't be used ({error})", _CONVERT) from None
    shape = values.shape
    if shape[0] != len(header.signals):
        values = values.T
    if values.shape[0] != len(header.signals) or values.shape[1] < frames:
        found = f"a matrix of {shape}, the header announces {len(header.signals)} signals of {frames} samples"
        raise RecordError(path, found, "Correct the header")
    values = values[list(rows), :frames]
    if values.dtype.kind == "i" and values.dtype.itemsize == 2:
        values = np.where(values == -32768, np.nan, values)
    return list(values)


def matlab_matrix(content: bytes, name: str, most: int) -> NDArray[Any]:
    """Return one numeric matrix of a MATLAB 5 file.

    `scipy.io.loadmat` isn't used: it believes sizes that a file claims, and unpacks whatever it holds.

    Args:
        content: the file.
        name: the matrix's name.
        most: how many values are wanted; of a compressed matrix, not many more are unpacked.

    Raises:
        ValueError, struct.error, zlib.error: no such matrix, or not a sound one.
    """
    order = ">" if content[126:128] == b"MI" else "<"
    at = 128
    for _ in range(_MOST_ELEMENTS):
        if at + 8 > len(content):
            break
        kind, size = struct.unpack_from(order + "2I", content, at)
        element = content[at : at + 8 + size]
        if kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            head = unpacker.decompress(element[8:], 256)
            rest = unpacker.decompress(unpacker.unconsumed_tail, 16 * most) if name.encode() in head else b""
            element = head + rest
        if (found := _numeric_matrix(element, order, name)) is not None:
            return found
        at += 8 + size
    raise ValueError(f"no matrix {name} of numbers")


def _numeric_matrix(element: bytes, order: str, name: str) -> NDArray[Any] | None:
    """Return the matrix in one element, or None if it is another kind of thing or has another name."""
    if len(element) < 8:
        return None
    kind, size = struct.unpack_from(order + "2I", element)
    if kind != _MATRIX:
        return None
    parts = []
    at = 8
    for _ in range(4):  # flags, dimensions, name, real part
        part_kind, part_size = struct.unpack_from(order + "2I", element, at)
        if part_kind >> 16:  # up to four bytes stand in the tag itself
            part_kind, part_size, start, at = part_kind & 0xFFFF, part_kind >> 16, at + 4, at + 8
        else:
            start = at + 8
            at = start + -(-part_size // 8) * 8
        parts.append((part_kind, element[start : start + part_size]))
        if len(parts) == 3 and parts[2][1] != name.encode():
            return None
        if start + part_size > min(len(element), 8 + size):
            raise ValueError("a truncated matrix")
    (_, flags), (_, dims), _, (real, data) = parts
    kind = struct.unpack_from(order + "I", flags)[0]
    if kind & 0xFF not in _NUMERIC_CLASSES or kind & _COMPLEX or real not in _NUMBERS or len(dims) != 8:
        raise ValueError(f"a {name} that is no real matrix of numbers")
    shape = struct.unpack(order + "2i", dims)
    return np.frombuffer(data, order + _NUMBERS[real]).reshape(shape, order="F")
