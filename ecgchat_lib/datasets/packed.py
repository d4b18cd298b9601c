"""A packed store: a dataset's recordings as int16 in a few large files, mapped into memory, with an index beside them.

A dataset of WFDB files costs an open, a parse and a conversion for each recording, each time. Packed once (`pack.py`,
`ecgchat data pack`), a recording is a slice of a mapped file, and 100,000 of them take no more memory than 1,000: pages
are dropped again once `MAX_RESIDENT` bytes were touched. The millivolts are those that `read_recording` gives, to the
last bit, unless the index says how far off they are. Every block has its sha256, checked on demand (`verify`); opening
checks sizes, headers, and the index. A store is input from outside like any other: one that lies is a `StoreError`,
never a read out of bounds. Taught in: 02 §6.

    store = PackedStore("out/ptbxl_packed")
    store[5]                       a Recording, by row
    store["00123"]                 by name
    store.adc(5)                   the int16 itself, (12, time), no copy
    store.signals([5, 9, 2])       float32 (3, 12, time) in mV
    store.windows(seconds=10)      what a torch DataLoader takes: len() and [k] -> float32 (12, time)
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ecgchat_lib.ecg.leads import LEADS
from ecgchat_lib.ecg.recording import Patient, Recording, model_window
from ecgchat_lib.errors import EcgChatError, ParameterError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

FORMAT, VERSION = "ecgchat-packed", 1
STORE_FILE, INDEX_FILE, MANIFEST_FILE = "store.json", "index.arrow", "manifest.arrow"
BLOCK_NAME = "block-{:05d}.i16"
MISSING = -32768
"""The int16 that marks a missing sample, as in WFDB's format 16."""

MAX_RESIDENT = 64 << 20
"""Bytes of mapped files that are touched before their pages are given back to the system."""

MAX_MAPS = 512  # each map holds a file open, and systems allow about a thousand
MAX_SCALES = 4096
_MAX_JSON = 64 << 20
_HEADER = struct.Struct("<8sIIQ36xI")  # magic, number, records, payload bytes, (room), crc32 of what is before
_MAGIC = b"ECGPACK\x01"
HEADER_BYTES = _HEADER.size
SEXES: tuple[str | None, ...] = (None, "female", "male")

NUMBERS: dict[str, tuple[str, int]] = {
    "block": ("int32", 1),
    "offset": ("int64", 1),  # bytes from the beginning of the block's file
    "samples": ("int32", 1),
    "fs": ("float64", 1),
    "gain": ("float64", len(LEADS)),  # ADC units per mV
    "baseline": ("int32", len(LEADS)),  # ADC value of 0 mV
    "missing": ("int64", 1),  # samples without a value, over all leads
    "error_mv": ("float32", 1),  # the largest difference from what was packed; 0 means none
    "single": ("uint8", 1),  # 1: float32 arithmetic gives the exact result; 0: it takes float64
    "age": ("float32", 1),  # years, NaN where unknown
    "sex": ("uint8", 1),  # place in SEXES
    "hash": ("uint64", 1),  # of the names, sorted, for finding one without reading all
    "hash_row": ("int32", 1),  # whose it is
}
"""Columns of numbers in the index, each with its type and how many there are per recording."""


class StoreError(EcgChatError):
    """A packed store that can't be used: the folder or file, what was found, and what to do."""


@dataclass(frozen=True)
class Block:
    """One file of a store: its name, size, sha256 and number of recordings."""

    file: str
    bytes: int
    sha256: str
    records: int


def is_store(folder: str | Path) -> bool:
    """Return whether a folder holds a packed store, or the beginnings of one."""
    return (Path(folder) / STORE_FILE).is_file() or (Path(folder) / ".packing").is_dir()


def block_header(number: int, records: int, payload: int) -> bytes:
    """Return the first bytes of a block's file."""
    content = _HEADER.pack(_MAGIC, number, records, payload, 0)[:-4]
    return content + struct.pack("<I", zlib.crc32(content))


def name_hash(name: str) -> int:
    """Return 64 bits of a name, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Scale:
    """What turns ADC values into millivolts, `(adc - baseline) / gain`, ready for the arithmetic.

    In float32 the difference of two small integers is exact, and one division of two float32 numbers rounds just as a
    float64 division that is rounded to float32 afterwards (Figueroa 1995, "When is double rounding innocuous?").
    `pack.py` chooses float32 only where that gave the same bits, which is where the gain is a float32 number.
    """

    gain: NDArray[np.floating]  # (12, 1), float32 or float64: that is the arithmetic
    baseline: NDArray[np.floating] | None  # (12, 1), None where all are 0

    @classmethod
    def of(cls, gain: NDArray[np.float64], baseline: NDArray[np.int32], *, single: bool) -> Scale:
        """Make a scale from gain (ADC units per mV) and baseline (ADC value of 0 mV), each `(12,)`."""
        kind: type[np.floating] = np.float32 if single else np.float64
        return cls(gain.astype(kind)[:, None], baseline.astype(kind)[:, None] if baseline.any() else None)


def decode(adc: NDArray[np.int16], scale: Scale, *, missing: bool, out: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn ADC values into millivolts, NaN where missing.

    Args:
        adc: int16 `(12, time)`.
        scale: gain and baseline.
        missing: whether `MISSING` occurs.
        out: float32 `(12, time)`, written and returned.
    """
    if scale.gain.dtype == np.float32:
        out[...] = adc
        if scale.baseline is not None:
            np.subtract(out, scale.baseline, out=out)
        np.divide(out, scale.gain, out=out)
    else:
        out[...] = (adc if scale.baseline is None else adc - scale.baseline) / scale.gain
    if missing:
        out[adc == MISSING] = np.nan
    return out


class PackedStore:
    """A folder written by `pack`, opened for reading.

    It works as a torch Dataset (`len`, `[k]`) without importing torch; pickling it sends the folder's name only, so
    each worker process opens its own map.

    Raises:
        StoreError: the folder holds no finished store, or one that contradicts itself.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        facts = _read_facts(self.folder)
        self.blocks = tuple(_block(self.folder, entry) for entry in facts["blocks"])
        self._facts = facts
        self._names, self._columns = _read_index(self.folder, facts)
        self._maps: OrderedDict[int, tuple[mmap.mmap, NDArray[np.int16]]] = OrderedDict()
        self._scales: dict[tuple[bytes, bytes, Any], Scale] = {}
        self._touched = 0
        self._check_layout()
        for number in range(len(self.blocks)):
            _check_block(self.folder, number, self.blocks[number]).close()

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, key: int | str) -> Recording:
        """Return a recording by row (negative ones count from the end) or by name.

        Raises:
            IndexError: there is no such row.
            ParameterError: there is no such name.
        """
        row = self.row(key) if isinstance(key, str) else self._row(key)
        age, sex = float(self._columns["age"][row]), int(self._columns["sex"][row])
        return Recording(
            name=self.name(row),
            signal=self.signal(row),
            fs=float(self._columns["fs"][row]),
            patient=Patient(None if np.isnan(age) else age, SEXES[sex] if sex < len(SEXES) else None),
        )

    def __iter__(self) -> Iterator[Recording]:
        return (self[row] for row in range(len(self)))

    def __enter__(self) -> PackedStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[PackedStore], tuple[Path]]:
        return PackedStore, (self.folder,)

    def close(self) -> None:
        """Let go of the mapped files; arrays that were handed out stay valid. Reading opens them again."""
        self._maps.clear()

    def row(self, name: str) -> int:
        """Return the row of a recording.

        Raises:
            ParameterError: there is none of that name.
        """
        digest = np.uint64(name_hash(name))
        hashes, rows = self._columns["hash"], self._columns["hash_row"]
        for place in range(int(np.searchsorted(hashes, digest)), len(hashes)):
            if hashes[place] != digest:
                break
            if 0 <= rows[place] < len(self) and self.name(int(rows[place])) == name:
                return int(rows[place])
        raise ParameterError(f"{self.folder}: no recording {name!r} among its {len(self)}")

    def name(self, row: int) -> str:
        """Return the name of a recording."""
        return str(self._names[row].as_py())

    def number(self, column: str) -> NDArray[Any]:
        """Return a column of `NUMBERS`, `(n,)` or `(n, 12)`, mapped and read-only; for example `fs` or `samples`."""
        return self._columns[column]

    def adc(self, row: int) -> NDArray[np.int16]:
        """Return the stored int16 of a recording, `(12, time)`: a read-only view into the mapped file, no copy."""
        row = self._row(row)
        samples = int(self._columns["samples"][row])
        start = int(self._columns["offset"][row]) // 2
        block = self._map(int(self._columns["block"][row]))
        self._touched += 24 * samples
        if self._touched > MAX_RESIDENT:
            self._give_back()
        return block[start : start + 12 * samples].reshape(12, samples)

    def signal(self, row: int, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Return a recording in millivolts, float32 `(12, time)`, NaN where a sample is missing.

        Args:
            row: which recording.
            out: write into this array instead of a new one.

        Raises:
            IndexError: there is no such row.
        """
        row = self._row(row)
        adc = self.adc(row)
        if out is None:
            out = np.empty(adc.shape, dtype=np.float32)
        return decode(adc, self._scale(row), missing=self._columns["missing"][row] != 0, out=out)

    def _scale(self, row: int) -> Scale:
        """Return a recording's scale; most of a dataset's recordings share one, so it is looked up by its bytes."""
        gain, baseline = self._columns["gain"][row], self._columns["baseline"][row]
        key = (gain.tobytes(), baseline.tobytes(), self._columns["single"][row])
        found = self._scales.get(key)
        if found is None:
            if not (np.isfinite(gain) & (gain > 0)).all():
                raise StoreError(
                    f"{self.folder / INDEX_FILE}: recording {row} has a gain of {gain.min()}. Pack it again"
                )
            if len(self._scales) > MAX_SCALES:
                self._scales.clear()
            found = self._scales[key] = Scale.of(gain, baseline, single=bool(key[2]))
        return found

    def signals(self, rows: Sequence[int] | NDArray[np.integer], samples: int | None = None) -> NDArray[np.float32]:
        """Return recordings as one array, float32 `(n, 12, samples)` in mV.

        Args:
            rows: which recordings, in any order, also repeated.
            samples: cut longer recordings to their first so many samples, pad shorter ones with zeros. None: they must
                be equally long.

        Raises:
            IndexError: there is no such row.
            ParameterError: they differ in length, or in sampling rate.
        """
        picked = np.array([self._row(int(row)) for row in rows], dtype=np.int64)
        lengths, rates = self._columns["samples"][picked], self._columns["fs"][picked]
        if len(set(rates.tolist())) > 1:
            raise ParameterError(f"{self.folder}: sampling rates {sorted(set(rates.tolist()))} Hz. Use windows(fs=...)")
        if samples is None and len(set(lengths.tolist())) > 1:
            raise ParameterError(f"{self.folder}: {lengths.min()} to {lengths.max()} samples. Give samples=...")
        size = int(samples if samples is not None else lengths[0] if len(lengths) else 0)
        out = np.zeros((len(picked), 12, size), dtype=np.float32)
        for place, row in enumerate(picked.tolist()):
            if lengths[place] == size:
                self.signal(row, out[place])
            else:
                kept = min(int(lengths[place]), size)
                out[place, :, :kept] = self.signal(row)[:, :kept]
        return out

    def windows(self, rows: Sequence[int] | None = None, *, fs: float = 500.0, seconds: float = 10.0) -> Windows:
        """Return the recordings as the models see them (`ecg.recording.model_window`), for a torch DataLoader."""
        return Windows(self, list(range(len(self)) if rows is None else rows), fs, seconds)

    def manifest(self) -> pd.DataFrame:
        """Return the manifest's rows of the stored recordings, in the store's order, with statements as tuples.

        Raises:
            StoreError: the manifest's file was changed.
        """
        from ecgchat_lib.datasets.manifest_file import from_arrow

        table = _open_arrow(self.folder, self._facts["manifest"], "manifest")
        if table.num_rows != len(self):
            raise StoreError(
                f"{self.folder / MANIFEST_FILE}: {table.num_rows} rows, expected {len(self)}. Pack it again"
            )
        return from_arrow(table)

    def failures(self) -> list[dict[str, str]]:
        """Return the recordings that couldn't be packed: `record`, `path` and `reason`."""
        return [dict(entry) for entry in self._facts["failures"]]

    def verify(self) -> list[str]:
        """Read every block and return what is wrong, one line each; an empty list if all is right."""
        wrong = []
        for block in self.blocks:
            with (self.folder / block.file).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != block.sha256:
                    wrong.append(
                        f"{block.file}: {block.records} recordings; its sha256 is not the one it was packed with"
                    )
        manifest = self.folder / MANIFEST_FILE
        if not manifest.is_file() or _sha256(manifest) != self._facts["manifest"]["sha256"]:
            wrong.append(f"{MANIFEST_FILE}: its sha256 is not the one it was packed with")
        return wrong

    def _row(self, row: int) -> int:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row}: {self.folder} holds {len(self)} recordings")
        return int(row) % len(self)

    def _map(self, number: int) -> NDArray[np.int16]:
        """Return a block as one int16 array over its mapped file."""
        found = self._maps.get(number)
        if found is None:
            block = self.blocks[number]
            with _check_block(self.folder, number, block) as file:
                mapped = mmap.mmap(file.fileno(), block.bytes, access=mmap.ACCESS_READ)
            found = mapped, np.frombuffer(mapped, dtype="<i2")
            self._maps[number] = found
            if len(self._maps) > MAX_MAPS:
                self._maps.popitem(last=False)
        return found[1]

    def _give_back(self) -> None:
        """Drop the pages that were touched; they stay in the system's cache, but no longer count as ours."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped, _ in list(self._maps.values()):  # a list, since another thread may map a block meanwhile
                mapped.madvise(mmap.MADV_DONTNEED)
        self._touched = 0

    def _check_layout(self) -> None:
        """Refuse an index that points outside a block, or at one place twice: records follow without gaps."""
        block, offset, samples = (self._columns[name] for name in ("block", "offset", "samples"))
        index = self.folder / INDEX_FILE
        sizes = np.array([entry.bytes for entry in self.blocks], dtype=np.int64)
        counts = np.array([entry.records for entry in self.blocks], dtype=np.int64)
        expected = np.repeat(np.arange(len(self.blocks)), counts) if counts.sum() == len(self) else None
        if expected is None or not np.array_equal(block, expected):
            raise StoreError(f"{index}: its recordings are not those of the {len(self.blocks)} blocks. Pack it again")
        if len(self) and (samples.min() < 1 or samples.max() > 2**31 // 24):
            raise StoreError(f"{index}: a recording of {samples.min()} or {samples.max()} samples. Pack it again")
        begins = np.full(len(self), HEADER_BYTES, dtype=np.int64)
        ends = offset + 24 * samples.astype(np.int64)
        inside = block[1:] == block[:-1]
        begins[1:][inside] = ends[:-1][inside]
        last = np.append(~inside, True) if len(self) else np.zeros(0, dtype=bool)
        if not np.array_equal(offset, begins) or not np.array_equal(ends[last], sizes[block[last]]):
            raise StoreError(f"{index}: a recording overlaps another, or lies outside its block. Pack it again")


class Windows:
    """The recordings of a store as windows of equal length: `len()`, and `[k]` → float32 `(12, time)`, without NaN."""

    def __init__(self, store: PackedStore, rows: list[int], fs: float, seconds: float) -> None:
        self.store, self.rows, self.fs, self.seconds = store, rows, fs, seconds

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> NDArray[np.float32]:
        row = self.rows[place]
        columns = self.store.number
        size = round(self.fs * self.seconds)
        if columns("fs")[row] == self.fs and columns("samples")[row] == size and not columns("missing")[row]:
            return self.store.signal(row)
        return model_window(self.store[row], fs=self.fs, seconds=self.seconds)[0]


def _read_facts(folder: Path) -> dict[str, Any]:
    """Read store.json and check its form."""
    path = folder / STORE_FILE
    if not path.is_file():
        found = "a store that isn't finished" if is_store(folder) else "no packed store"
        raise StoreError(
            f"{folder}: {found} (no {STORE_FILE}). Run 'ecgchat data pack' (again); it goes on where it ended"
        )
    try:
        if path.stat().st_size > _MAX_JSON:
            raise StoreError(f"{path}: {path.stat().st_size} bytes, more than such a file ever has. Pack it again")
        facts = json.loads(path.read_text(encoding="utf-8"))
        if (facts["format"], facts["version"]) != (FORMAT, VERSION):
            raise StoreError(
                f"{path}: format {str(facts['format'])[:40]!r}, expected {FORMAT!r} {VERSION}. Pack it again"
            )
        fine = all(
            isinstance(facts[part], kind) for part, kind in {"blocks": list, "failures": list, "records": int}.items()
        )
        fine &= all(
            isinstance(facts[part]["bytes"], int) and isinstance(facts[part]["sha256"], str)
            for part in ("index", "manifest")
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{path}: can't be read ({type(error).__name__}). Pack it again") from None
    if not fine:
        raise StoreError(f"{path}: a field of the wrong type. Pack it again")
    return dict(facts)


def _block(folder: Path, entry: Any) -> Block:
    """Check one block's entry in store.json."""
    try:
        block = Block(str(entry["file"]), int(entry["bytes"]), str(entry["sha256"]), int(entry["records"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        raise StoreError(f"{folder / STORE_FILE}: a block that can't be understood. Pack it again") from None
    if not 0 <= block.records <= 2**31 or not HEADER_BYTES <= block.bytes < 2**48:
        raise StoreError(
            f"{folder / STORE_FILE}: a block of {block.records} recordings, {block.bytes} bytes. Pack it again"
        )
    return block


def _check_block(folder: Path, number: int, block: Block) -> BinaryIO:
    """Check a block's name, size and header; return the open file."""
    path = folder / block.file
    if block.file != BLOCK_NAME.format(number):
        raise StoreError(f"{folder / STORE_FILE}: block {number} is called {block.file[:40]!r}. Pack it again")
    try:
        file = path.open("rb")
    except OSError as error:
        raise StoreError(f"{path}: can't be opened ({error.strerror}). Pack it again") from None
    size = path.stat().st_size
    header = file.read(HEADER_BYTES)
    if size != block.bytes:
        file.close()
        raise StoreError(f"{path}: {size} bytes, expected {block.bytes}. Copy or pack it again")
    if header != block_header(number, block.records, block.bytes - HEADER_BYTES):
        file.close()
        raise StoreError(f"{path}: its first bytes are not those of block {number}. Copy or pack it again")
    return file


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_arrow(folder: Path, facts: dict[str, Any], kind: str) -> pa.Table:
    """Open one of the store's Arrow files, mapped, after checking its size, its sha256 and its inner offsets."""
    import pyarrow as pa

    path = folder / (INDEX_FILE if kind == "index" else MANIFEST_FILE)
    if not path.is_file() or path.stat().st_size != facts["bytes"]:
        found = f"{path.stat().st_size} bytes, expected {facts['bytes']}" if path.is_file() else "missing"
        raise StoreError(f"{path}: {found}. Copy or pack it again")
    if _sha256(path) != facts["sha256"]:
        raise StoreError(f"{path}: its sha256 is not the one it was packed with. Copy or pack it again")
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)  # offsets of texts and lists; without it a lying one is read out of bounds
    except (pa.ArrowException, OSError, MemoryError, ValueError, KeyError) as error:
        raise StoreError(f"{path}: not a sound Arrow file ({type(error).__name__}). Copy or pack it again") from None
    return table


def _read_index(folder: Path, facts: dict[str, Any]) -> tuple[pa.StringArray, dict[str, NDArray[Any]]]:
    """Open the index; return the names, and each column of numbers as an array over the mapped file."""
    import pyarrow as pa

    path = folder / INDEX_FILE
    table = _open_arrow(folder, facts["index"], "index")
    if table.schema.remove_metadata() != index_schema():
        raise StoreError(f"{path}: other columns than an index has. Pack it again")
    if table.num_rows != facts["records"]:
        raise StoreError(f"{path}: {table.num_rows} rows, but {STORE_FILE} says {facts['records']}. Pack it again")
    if any(column.num_chunks > 1 or column.null_count for column in table.columns):
        raise StoreError(f"{path}: in several parts, or with gaps. Pack it again")
    columns: dict[str, NDArray[Any]] = {}
    for name, (kind, width) in NUMBERS.items():
        array = table[name].chunk(0) if table.num_rows else pa.array([], table.schema.field(name).type)
        if width > 1:
            array = array.flatten()
        columns[name] = array.to_numpy(zero_copy_only=True).view(kind)
        if width > 1:
            columns[name] = columns[name].reshape(-1, width)
        if len(columns[name]) != table.num_rows:
            raise StoreError(f"{path}: {len(columns[name])} values of {name}, expected {table.num_rows}. Pack it again")
    names = table["record"].chunk(0) if table.num_rows else pa.array([], pa.string())
    return names, columns


def index_schema() -> pa.Schema:
    """Return the columns of the index: the name, then `NUMBERS`."""
    import pyarrow as pa

    fields = [pa.field("record", pa.string(), nullable=False)]
    for name, (kind, width) in NUMBERS.items():
        number = getattr(pa, kind)()
        value = number if width == 1 else pa.list_(pa.field("item", number, nullable=False), width)
        fields.append(pa.field(name, value, nullable=False))
    return pa.schema(fields)
