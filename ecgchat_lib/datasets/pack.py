"""Write a packed store (`packed.py`) from a manifest or a list of recordings, over any `concurrent.futures` executor.

The work is cut into blocks of equally many recordings. A block is written beside its place, synced, and renamed; then
its part of the index. A run that was killed, at any moment, goes on with the blocks that aren't there, and ends with
the same bytes as one that wasn't. A recording that can't be read is listed with its reason and left out.

What is exact. The ADC values are found from the millivolts of `read_any` and the header's gain and baseline, and
turned back; if every bit comes out the same, the record is stored so. Values wider than 16 bits are shifted, with the
baseline, where their span fits. Where no integer scale gives the same bits (float16 files, resampled leads), each
lead is stored at the largest power of two that fits, if no sample then differs by more than `MAX_ERROR_MV`; the index
says by how much. Otherwise the record is refused. Taught in: 02 §6.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgchat_lib.datasets.lock import locked
from ecgchat_lib.datasets.manifest_file import to_arrow
from ecgchat_lib.datasets.packed import (
    BLOCK_NAME,
    FORMAT,
    HEADER_BYTES,
    INDEX_FILE,
    MANIFEST_FILE,
    MISSING,
    NUMBERS,
    SEXES,
    STORE_FILE,
    VERSION,
    Scale,
    block_header,
    decode,
    index_schema,
    name_hash,
)
from ecgchat_lib.ecg.formats import read_any
from ecgchat_lib.ecg.header import Header, locate_header, read_header
from ecgchat_lib.ecg.leads import LEADS, canonical_lead
from ecgchat_lib.ecg.recording import Recording, unit_in_millivolts
from ecgchat_lib.errors import EcgChatError, ParameterError, RecordError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

WORK = ".packing"
"""Folder inside an unfinished store: the plan, and the index of each block that is done."""

BLOCK_RECORDS = 2048
"""Recordings in a block: 246 MB of ten seconds at 500 Hz; 800,000 of them make 391 files."""

MAX_ERROR_MV = 0.0025
"""The most that a record may differ from what was read: half of the 5 µV step of electrocardiographs."""

_AHEAD = 64  # blocks handed to the executor at once, so that a large plan isn't held twice
_SHOWN_NOTES = 500


@dataclass
class PackSummary:
    """What packing did.

    Attributes:
        folder: the store.
        records: recordings in it.
        inexact: those of them that differ from what was read, by at most `MAX_ERROR_MV`.
        failures: `record`, `path` and `reason` of each recording that isn't in it.
        blocks: blocks in all.
        kept: blocks that an earlier run had finished.
        bytes: size of the blocks.
    """

    folder: Path
    records: int = 0
    inexact: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)
    blocks: int = 0
    kept: int = 0
    bytes: int = 0


def pack(
    records: pd.DataFrame | Sequence[str | Path],
    folder: str | Path,
    *,
    executor: Executor | None = None,
    block_records: int = BLOCK_RECORDS,
    progress: Callable[[int], object] | None = None,
) -> PackSummary:
    """Pack recordings into a store; run it again after an interruption and it goes on.

    Args:
        records: a manifest (its columns go into the store's), or paths of recordings, named after their files.
        folder: the store; made if missing. A finished store of the same plan is left as it is.
        executor: where the blocks are packed: a process pool, or a Dask cluster's `client.get_executor()`, whose
            workers see the same paths. None: here, one after the other.
        block_records: recordings per block. The result depends on it, but not on the executor.
        progress: called with the number of recordings after each block.

    Returns:
        What was done, with every recording that failed.

    Raises:
        ParameterError: names that are doubled or empty, no records, or `block_records` out of range.
        EcgChatError: the folder holds something else, or the disk is full.
    """
    frame = _as_frame(records)
    folder = Path(folder)
    _check_plan(frame, block_records)
    _begin(folder, _plan_hash(frame, block_records))
    kept = -(-len(frame) // block_records)
    if not (folder / STORE_FILE).is_file():
        with locked(folder, f"{WORK}/lock", "Choose another folder"):
            for litter in (*(folder / WORK).glob("*.i16"), *(folder / WORK).glob("writing-*")):
                litter.unlink()  # of a run that was killed
            kept = _pack_blocks(frame, folder, executor, block_records, progress)
            _finish(frame, folder, block_records)
    shutil.rmtree(folder / WORK, ignore_errors=True)
    return _summary(folder, kept)


def _as_frame(records: pd.DataFrame | Sequence[str | Path]) -> pd.DataFrame:
    import pandas as pd

    if isinstance(records, pd.DataFrame):
        return records.reset_index(drop=True)
    paths = [str(path) for path in records]
    return pd.DataFrame({"record": [Path(path).stem for path in paths], "path": paths}, dtype=object)


def _check_plan(frame: pd.DataFrame, block_records: int) -> None:
    missing = [name for name in ("record", "path") if name not in frame.columns]
    if missing:
        raise ParameterError(f"records: columns {missing} are missing. Give a manifest, or a list of paths")
    if frame.empty:
        raise ParameterError("records: none. Give at least one recording")
    wrong = [name for name in frame["record"] if not isinstance(name, str) or not name]
    if wrong:
        raise ParameterError(f"records: a name that is {wrong[0]!r}. Every recording needs a name")
    twice = frame["record"][frame["record"].duplicated()]
    if len(twice):
        raise ParameterError(f"records: {twice.iloc[0]!r} twice. Names must be unique: put the folder's name in front")
    if not 1 <= block_records <= 100_000:
        raise ParameterError(f"block_records: {block_records}, expected 1 to 100000")


def _plan_hash(frame: pd.DataFrame, block_records: int) -> str:
    """Return what identifies the work: every cell of the manifest, and how it is cut into blocks."""
    digest = hashlib.sha256(f"{FORMAT} {VERSION} {block_records} {list(frame.columns)}\n".encode())
    for row in frame.itertuples(index=False, name=None):
        digest.update(repr(row).encode() + b"\n")
    return digest.hexdigest()


def _begin(folder: Path, plan: str) -> None:
    """Make the folder, or check that what is in it belongs to the same plan."""
    path = folder / WORK / "plan.json"
    try:
        if (folder / STORE_FILE).is_file():
            found = json.loads((folder / STORE_FILE).read_text(encoding="utf-8")).get("plan")
        elif path.is_file():
            found = json.loads(path.read_text(encoding="utf-8")).get("plan")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            if any(entry.name != WORK for entry in folder.iterdir()):
                raise EcgChatError(f"{folder}: not empty, and not a packed store. Choose another folder")
            (folder / WORK).mkdir(exist_ok=True)
            _write(folder, f"{WORK}/plan.json", json.dumps({"plan": plan}).encode())
            return
    except (OSError, ValueError, AttributeError) as error:
        found = getattr(error, "strerror", None) or type(error).__name__
        raise EcgChatError(f"{folder}: can't be used ({found}). Make room, or choose another folder") from None
    if found != plan:
        raise EcgChatError(f"{folder}: holds a store of other recordings. Choose another folder, or delete this one")


def _pack_blocks(
    frame: pd.DataFrame,
    folder: Path,
    executor: Executor | None,
    block_records: int,
    progress: Callable[[int], object] | None,
) -> int:
    """Pack every block that isn't done; return how many were."""
    bounds = range(0, len(frame), block_records)
    todo = [(number, begin) for number, begin in enumerate(bounds) if not _is_done(folder, number)]
    tell = progress or (lambda count: None)
    tell(len(frame) - sum(min(block_records, len(frame) - begin) for _, begin in todo))
    queue = iter(todo)
    running: set[Future[int]] = set()
    try:
        while True:
            while len(running) < _AHEAD and (job := next(queue, None)) is not None:
                number, begin = job
                part = frame.iloc[begin : begin + block_records]
                names, paths = part["record"].tolist(), [os.path.abspath(path) for path in part["path"]]
                if executor is None:
                    tell(pack_block(str(folder), number, names, paths))
                else:
                    running.add(executor.submit(pack_block, str(folder), number, names, paths))
            if not running:
                return len(bounds) - len(todo)
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                tell(future.result())
    except OSError as error:
        raise EcgChatError(
            f"{folder}: can't be written ({error.strerror or error}). Make room, then run it again"
        ) from None
    except RuntimeError as error:  # BrokenProcessPool: a worker was killed, for example for its memory
        found = f"a worker process ended ({type(error).__name__})"
        raise EcgChatError(f"{folder}: {found}. Run it again; finished blocks are kept") from None
    finally:
        for future in running:
            future.cancel()


def _sidecar(folder: Path, number: int) -> Path:
    return folder / WORK / f"{number:05d}.arrow"


def _is_done(folder: Path, number: int) -> bool:
    """Return whether a block is there with the sha256 that was noted when it was finished."""
    import pyarrow as pa

    try:
        with pa.ipc.open_file(_sidecar(folder, number)) as reader:
            noted = json.loads(reader.schema.metadata[b"block"])
        path = folder / BLOCK_NAME.format(number)
        if path.stat().st_size != noted["bytes"]:
            return False
        with path.open("rb") as file:
            return bool(hashlib.file_digest(file, "sha256").hexdigest() == noted["sha256"])
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
        return False


def pack_block(folder: str, number: int, names: list[str], paths: list[str]) -> int:
    """Pack one block and its part of the index; what an executor's worker runs. Return the number of recordings.

    Raises:
        OSError: the disk is full, or the folder can't be written.
    """
    target = Path(folder) / BLOCK_NAME.format(number)
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    handle, temporary = tempfile.mkstemp(dir=Path(folder) / WORK, prefix=f"{number:05d}-", suffix=".i16")
    with os.fdopen(handle, "w+b") as file:
        file.write(bytes(HEADER_BYTES))
        for name, path in zip(names, paths, strict=True):
            try:
                adc, row = _encode_file(path)
            except EcgChatError as error:
                failures.append({"record": name, "path": path, "reason": str(error)})
                continue
            except Exception as error:  # a fault of a reader must not end a run over 800,000 files; it is listed
                failures.append({"record": name, "path": path, "reason": f"{type(error).__name__}: {error}"[:300]})
                continue
            rows.append({"record": name, "block": number, "offset": file.tell(), **row})
            file.write(adc.astype("<i2", copy=False).tobytes())
        size = file.tell()
        file.seek(0)
        file.write(block_header(number, len(rows), size - HEADER_BYTES))
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    os.chmod(temporary, 0o644)
    os.replace(temporary, target)
    noted = {"file": target.name, "bytes": size, "sha256": digest, "records": len(rows)}
    _write(Path(folder), f"{WORK}/{number:05d}.arrow", _arrow_bytes(_rows_table(rows), noted, failures))
    return len(names)


def _encode_file(path: str) -> tuple[NDArray[np.int16], dict[str, Any]]:
    """Read one recording; return its int16 `(12, time)` and its numbers for the index."""
    recording = read_any(path, allow_missing=True)
    adc, numbers = encode(recording, _calibration(path))
    age, sex = recording.patient.age, recording.patient.sex
    notes = "; ".join(recording.notes)[:_SHOWN_NOTES]
    return adc, {
        "samples": adc.shape[1],
        "fs": recording.fs,
        "age": np.nan if age is None else age,
        "sex": SEXES.index(sex),
        "notes": notes,
        **numbers,
    }


def _calibration(path: str) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return gain (ADC units per mV) and baseline of the twelve leads, or None where the header has no single ones.

    Only a guess at a scale: whether it is right is decided by comparing every bit afterwards.
    """
    try:
        header = read_header(locate_header(path))
        if header.segments:
            header = next(part.header for part in header.segments if part.header is not None)
        return _gains(header)
    except (EcgChatError, OSError, StopIteration, KeyError, TypeError):
        return None


def _gains(header: Header) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    signals = {canonical_lead(signal.name): signal for signal in header.signals}
    twelve = [signals[lead] for lead in LEADS]
    factors = [unit_in_millivolts(signal.units) or 1.0 for signal in twelve]
    gains = np.array([signal.gain / factor for signal, factor in zip(twelve, factors, strict=True)])
    return gains, np.array([float(signal.baseline) for signal in twelve])


def encode(
    recording: Recording, calibration: tuple[NDArray[np.float64], NDArray[np.float64]] | None
) -> tuple[NDArray[np.int16], dict[str, Any]]:
    """Turn a recording into int16 and the scale that gives it back.

    Args:
        recording: in mV, NaN where a sample is missing.
        calibration: gain and baseline that may be exact, each `(12,)`.

    Returns:
        int16 `(12, time)`, and `gain`, `baseline`, `missing`, `error_mv` and `single` for the index.

    Raises:
        RecordError: no 16-bit scale comes within `MAX_ERROR_MV`.
    """
    found_gaps = np.isnan(recording.signal)
    count = int(found_gaps.sum())
    gaps = found_gaps if count else None
    if calibration is not None:
        found = _exact(recording.signal, gaps, *calibration)
        if found is not None:
            return found[0], {**found[1], "missing": count, "error_mv": 0.0}
    return _scaled(recording, gaps, count)


def _exact(
    signal: NDArray[np.float32],
    gaps: NDArray[np.bool_] | None,
    gain: NDArray[np.float64],
    baseline: NDArray[np.float64],
) -> tuple[NDArray[np.int16], dict[str, Any]] | None:
    """Return the ADC values that give the signal back to the bit, or None."""
    with np.errstate(over="ignore", invalid="ignore"):
        adc = signal * gain[:, None]
        adc += baseline[:, None]
        np.rint(adc, out=adc)
    if gaps is None:
        low, high = adc.min(axis=1), adc.max(axis=1)
    else:
        low, high = np.where(gaps, np.inf, adc).min(axis=1), np.where(gaps, -np.inf, adc).max(axis=1)
    if not (np.isfinite(low) & np.isfinite(high) & (high - low <= 65534)).all():
        return None
    shift = np.where((low < -32767) | (high > 32767), np.floor((low + high) / 2), 0.0)
    zero = baseline - shift
    if np.abs(zero).max() >= 2**31:
        return None
    if shift.any():
        adc -= shift[:, None]
    if gaps is not None:
        adc[gaps] = MISSING
    values = adc.astype(np.int16)
    zeros = zero.astype(np.int32)
    for single in (True, False):
        back = decode(values, Scale.of(gain, zeros, single=single), missing=gaps is not None, out=np.empty_like(signal))
        if np.array_equal(back, signal, equal_nan=gaps is not None):
            return values, {"gain": gain, "baseline": zeros, "single": int(single)}
    return None


def _scaled(
    recording: Recording, gaps: NDArray[np.bool_] | None, count: int
) -> tuple[NDArray[np.int16], dict[str, Any]]:
    """Return the signal at the largest power of two that fits 16 bits, with the error that this makes."""
    signal = recording.signal.astype(np.float64)
    if gaps is not None:
        signal[gaps] = 0.0
    peaks = np.maximum(np.abs(signal).max(axis=1), 1e-3)
    gain = 2.0 ** np.floor(np.log2(32767 / peaks))  # powers of two: division by them is exact
    values = np.rint(signal * gain[:, None])
    error = float(np.abs(values / gain[:, None] - signal).max())
    if error > MAX_ERROR_MV:
        raise RecordError(
            recording.path or recording.name,
            f"up to {peaks.max():.0f} mV in steps that 16 bits hold to {error * 1000:.1f} µV only; at most "
            f"{MAX_ERROR_MV * 1000:g} µV is kept",
            "Cut out the artifact, or leave this recording out",
        )
    if gaps is not None:
        values[gaps] = MISSING
    adc = values.astype(np.int16)
    numbers = {"gain": gain, "baseline": np.zeros(12, dtype=np.int32), "single": 1}
    return adc, {**numbers, "missing": count, "error_mv": error}


def _rows_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Return the index of one block: the columns of the index without the sorted hashes, and the reader's notes."""
    import pyarrow as pa

    schema = index_schema()
    columns: dict[str, Any] = {"record": pa.array([row["record"] for row in rows], pa.string())}
    for name, (kind, width) in NUMBERS.items():
        if name in ("hash", "hash_row"):
            continue
        flat = np.array([row[name] for row in rows], dtype=kind).reshape(-1)
        array = pa.array(flat)
        columns[name] = array if width == 1 else pa.FixedSizeListArray.from_arrays(array, type=schema.field(name).type)
    columns["notes"] = pa.array([row["notes"] for row in rows], pa.string())
    return pa.table(columns)


def _arrow_bytes(table: pa.Table, noted: dict[str, Any], failures: list[dict[str, str]]) -> bytes:
    import pyarrow as pa

    metadata = {b"block": json.dumps(noted).encode(), b"failures": json.dumps(failures).encode()}
    return _ipc(table.replace_schema_metadata(metadata), pa)


def _ipc(table: pa.Table, pa: Any) -> bytes:
    """Return a table as an Arrow file of one part."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        batches = table.combine_chunks().to_batches()
        for batch in batches or [pa.RecordBatch.from_pylist([], schema=table.schema)]:
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def _finish(frame: pd.DataFrame, folder: Path, block_records: int) -> None:
    """Join the parts of the index, write the manifest of what was packed, and last the file that makes it a store."""
    import pyarrow as pa

    blocks, failures, parts = [], [], []
    for number in range(-(-len(frame) // block_records)):
        part = pa.ipc.open_file(_sidecar(folder, number)).read_all()
        blocks.append(json.loads(part.schema.metadata[b"block"]))
        failures += json.loads(part.schema.metadata[b"failures"])
        parts.append(part.replace_schema_metadata(None))
    rows = pa.concat_tables(parts).combine_chunks()
    index = _ipc(_with_hashes(rows).select(index_schema().names).cast(index_schema()), pa)
    failed = {failure["record"] for failure in failures}
    stored = frame.loc[~frame["record"].isin(failed)]
    manifest = _ipc(to_arrow(stored).append_column("reading_notes", rows["notes"]), pa)
    described = {}
    for kind, name, content in (("index", INDEX_FILE, index), ("manifest", MANIFEST_FILE, manifest)):
        _write(folder, name, content)
        described[kind] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    facts = {"format": FORMAT, "version": VERSION, "plan": _plan_hash(frame, block_records), "records": rows.num_rows}
    facts |= {**described, "blocks": blocks, "failures": failures}
    _write(folder, STORE_FILE, (json.dumps(facts, indent=1) + "\n").encode())


def _with_hashes(rows: pa.Table) -> pa.Table:
    import pyarrow as pa

    hashes = np.array([name_hash(name) for name in rows["record"].to_pylist()], dtype=np.uint64)
    order = np.argsort(hashes, kind="stable").astype(np.int32)
    return rows.append_column("hash", pa.array(hashes[order])).append_column("hash_row", pa.array(order))


def _write(folder: Path, name: str, content: bytes) -> None:
    """Write a file of the store in one step that survives a power cut; what a kill leaves lies in the work folder."""
    path = folder / name
    handle, temporary = tempfile.mkstemp(dir=folder / WORK, prefix="writing-")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


def _summary(folder: Path, kept: int) -> PackSummary:
    from ecgchat_lib.datasets.packed import PackedStore

    with PackedStore(folder) as store:
        return PackSummary(
            folder=folder,
            records=len(store),
            inexact=int((store.number("error_mv") > 0).sum()),
            failures=store.failures(),
            blocks=len(store.blocks),
            kept=kept,
            bytes=sum(block.bytes for block in store.blocks),
        )
