"""What `ecgchat embed`, `classify` and `search` do: thousands of recordings in batches, in order, in bounded memory.

The command line (`ecgchat_lib.cli`) gives the options, reads the recordings and tells the errors; here is the rest. A
recording that can't be used doesn't stop the others. Taught in: 08 §8 and 09 §6.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np
from tqdm import tqdm

from ecgchat_lib.errors import EcgChatError, ParameterError, RecordError

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from ecgchat_lib.coca.model import EcgCoca
    from ecgchat_lib.ecg.recording import Recording
    from ecgchat_lib.evaluate.index import EmbeddingIndex

BATCH = 64  # recordings in memory at a time
TEXTS_AT_A_TIME = 4096  # about 100 MB of the report encoder's states
LONGEST_TEXT = 5000  # characters of one line; the report encoder reads far less
MOST_TEXT_BYTES = 64 << 20
DIGITS = 6

Item = TypeVar("Item")
Read = Callable[[Item], "Recording"]
Encode = Callable[["torch.Tensor"], np.ndarray]


class Tell(Protocol):
    """Tells the user of an error that doesn't stop the work."""

    def __call__(self, error: EcgChatError, /) -> None:
        """Tell it."""


def load_model(folder: Path | None) -> EcgCoca:
    """Return the model in a folder, or the course's mini."""
    from ecgchat_lib.coca.checkpoint import load_coca, load_mini

    return load_mini() if folder is None else load_coca(folder)


def in_batches(
    items: Iterable[Item], read: Read[Item], encode: Encode, model: EcgCoca, *, size: int = BATCH
) -> Iterator[tuple[Item, np.ndarray | EcgChatError]]:
    """Yield each item with its row of numbers, or with the error that says why there is none, in the items' order.

    Args:
        items: what `read` takes.
        read: item → recording.
        encode: windows (n, 12, samples) → (n, width).
        model: whose front end makes the windows.
        size: recordings at a time.
    """
    from ecgchat_lib.coca.preprocess import recording_windows

    waiting: list[tuple[Item, torch.Tensor | EcgChatError]] = []
    for item in items:
        try:
            waiting.append((item, recording_windows([read(item)], model.config.encoder)))
        except EcgChatError as error:
            waiting.append((item, error))
        if len(waiting) == size:
            yield from _encoded(waiting, encode)
            waiting = []
    yield from _encoded(waiting, encode)


def _encoded(
    waiting: Sequence[tuple[Item, torch.Tensor | EcgChatError]], encode: Encode
) -> Iterator[tuple[Item, np.ndarray | EcgChatError]]:
    import torch

    windows = [found for _, found in waiting if not isinstance(found, EcgChatError)]
    rows: Iterator[np.ndarray] = iter(encode(torch.cat(windows)) if windows else ())
    for item, found in waiting:
        if isinstance(found, EcgChatError):
            yield item, found
            continue
        row = next(rows)
        if np.isinf(row).any() or np.isnan(row).all():
            yield item, RecordError(item, "the model gives no finite numbers for it", "Look at it with 'measure'")
        else:
            yield item, row


# --- embed


def embed_records(
    records: Iterable[Path], out: Path, *, read: Read[Path], tell: Tell, model: Path | None = None
) -> tuple[int, int]:
    """Embed recordings and write `record` (n,) and `embedding` (n, width); the unusable ones are told and left out.

    Args:
        records: as given by the user; so they stand in the file.
        out: the npz file, written in one step.
        read: path → recording.
        tell: what to do with an error.
        model: folder of an ECG-CoCa; None: the course's mini.

    Returns:
        How many were written, and the worst exit code of the others (0 if there are none).

    Raises:
        EcgChatError: the file can't be written, or no recording can be used.
    """
    from ecgchat_lib.coca.embed import embed_windows

    _check_target(out)
    coca = load_model(model)
    names, rows, worst = [], [], 0
    for record, found in in_batches(records, read, lambda windows: embed_windows(windows, coca).numpy(), coca):
        if isinstance(found, EcgChatError):
            tell(found)
            worst = max(worst, found.exit_code)
        else:
            names.append(str(record))
            rows.append(found)
    if not rows:
        raise EcgChatError(f"{out}: not written, since none of the recordings can be used. See the lines above")
    write_npz(out, record=np.array(names), embedding=np.stack(rows).astype(np.float32))
    return len(rows), worst


def embed_text_file(texts: Path, out: Path, *, model: Path | None = None) -> int:
    """Embed the lines of a text file and write `text` (n,) and `embedding` (n, width); return n.

    Raises:
        EcgChatError: the texts can't be read (see `read_texts`), or the file can't be written.
    """
    from ecgchat_lib.coca.embed import embed_texts

    _check_target(out)
    lines, coca = read_texts(texts), load_model(model)
    parts = []
    for start in tqdm(range(0, len(lines), TEXTS_AT_A_TIME), desc="embed", unit="part", disable=None):
        parts.append(embed_texts(lines[start : start + TEXTS_AT_A_TIME], coca).numpy())
        coca.report_encoder.forget()  # or the states of all lines would fill the memory
    write_npz(out, text=np.array(lines), embedding=np.concatenate(parts).astype(np.float32))
    return len(lines)


def read_texts(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file; ends of lines may be those of Windows, and the last one may lack its end.

    Raises:
        EcgChatError: the file is missing, too large or not UTF-8; it is empty; a line is blank, too long, or holds a
            control character. The message names the line.
    """
    remedy = "Write one text a line, in UTF-8"
    try:
        if path.stat().st_size > MOST_TEXT_BYTES:
            raise RecordError(path, f"{path.stat().st_size:,} bytes, most is {MOST_TEXT_BYTES:,}", "Split the file")
        content = path.read_bytes()
    except OSError as error:
        raise RecordError(path, f"can't be read ({error.strerror})", "Name a text file with --texts") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise RecordError(path, f"line {number}: not UTF-8", remedy) from None
    lines = text.split("\n")  # nothing else ends a line: splitlines() would also cut at form feeds
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise RecordError(path, "holds no text", remedy)
    lines = [line.removesuffix("\r") for line in lines]
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise RecordError(path, f"line {number}: blank", remedy)
        if len(line) > LONGEST_TEXT:
            raise RecordError(path, f"line {number}: {len(line)} characters, most is {LONGEST_TEXT}", remedy)
        if any(ord(character) < 32 and character != "\t" for character in line):
            raise RecordError(path, f"line {number}: a control character", remedy)
    return lines


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays as an npz file in one step; no pickle is needed to read it, and the same arrays give equal bytes.

    Raises:
        EcgChatError: it can't be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        os.replace(temporary, path)
    except OSError as error:
        raise EcgChatError(f"{path}: can't be written ({error.strerror}). Choose another place with --out") from None
    finally:
        temporary.unlink(missing_ok=True)


def _check_target(path: Path) -> None:
    """Refuse a place that can't be written to before anything takes long."""
    remedy = "Choose another place with --out"
    if path.is_dir():
        raise EcgChatError(f"{path}: is a folder, expected a file to write. {remedy}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EcgChatError(f"{path}: its folder can't be made ({error.strerror}). {remedy}") from None
    if not os.access(path.parent, os.W_OK):
        raise EcgChatError(f"{path}: its folder can't be written to. {remedy}")


# --- classify


class Scores(NamedTuple):
    """One recording's scores: class → score, None where the classifier doesn't know the class."""

    record: Path
    scores: dict[str, float | None]


def classify_records(
    records: Iterable[Path],
    label_set: str,
    how: str,
    *,
    read: Read[Path],
    model: Path | None = None,
) -> Iterator[Scores | EcgChatError]:
    """Yield the scores of each recording, or the error that says why there are none, in order.

    Args:
        records: as given by the user.
        label_set: `super`, `sub`, `form`, `rhythm` or `cpsc2018`.
        how: `prompts`, zero-shot: a score says nothing by itself, only which of two recordings has more of it.
            `probe`: calibrated probabilities of the saved classifier, which was trained on labels.
        read: path → recording.
        model: folder of an ECG-CoCa; None: the course's mini.

    Raises:
        EcgChatError: the model or the classifier isn't there or doesn't fit, or it doesn't know the label set.
    """
    from ecgchat_lib.datasets.labels import get_label_set

    classes = get_label_set(label_set).classes
    coca = load_model(model)
    encode = _prompt_scorer(coca, label_set) if how == "prompts" else _probe_scorer(coca, label_set)
    for record, found in in_batches(records, read, encode, coca):
        if isinstance(found, EcgChatError):
            yield found
        else:
            values = (round(float(value), DIGITS) if math.isfinite(value) else None for value in found)
            yield Scores(record, dict(zip(classes, values, strict=True)))


def _prompt_scorer(model: EcgCoca, label_set: str) -> Encode:
    from ecgchat_lib.coca.embed import embed_texts, embed_windows
    from ecgchat_lib.evaluate.prompts import label_set_scores

    known: dict[tuple[str, ...], np.ndarray] = {}

    def embed(texts: Sequence[str]) -> np.ndarray:
        key = tuple(texts)
        if key not in known:  # the prompts are the same for each batch
            known[key] = embed_texts(texts, model).numpy()
        return known[key]

    return lambda windows: label_set_scores(embed_windows(windows, model).numpy(), embed, label_set)


def _probe_scorer(model: EcgCoca, label_set: str) -> Encode:
    from ecgchat_lib.evaluate.classifier import load_classifier

    classifier = load_classifier(model=model)
    classifier.check_knows(label_set)
    return lambda windows: classifier.scores(windows, label_set)


# --- search


class Corpus(NamedTuple):
    """What is searched: a manifest's rows, how to read the recording of one, and a hash of all that they rest on."""

    rows: pd.DataFrame
    read: Read[int]
    digest: str


def open_corpus(source: Path) -> Corpus:
    """Open a manifest (.parquet, or .csv with a column `path`) or a packed store.

    Raises:
        EcgChatError: it is neither, or damaged.
    """
    from ecgchat_lib.datasets.manifest_file import read_manifest
    from ecgchat_lib.datasets.packed import STORE_FILE, PackedStore, is_store
    from ecgchat_lib.ecg.formats import read_any

    if is_store(source):
        store = PackedStore(source)
        return Corpus(store.manifest(), store.__getitem__, _sha256((source / STORE_FILE).read_bytes()))
    rows = _read_csv(source) if source.suffix.lower() == ".csv" else read_manifest(source)
    paths = [_located(path, source.parent) for path in rows["path"]]
    seen = "\n".join(f"{path} {_last_change(path)}" for path in paths)  # a changed recording has a new embedding
    digest = _sha256(source.read_bytes() + seen.encode())
    return Corpus(rows, lambda row: read_any(paths[row]), digest)


def _read_csv(path: Path) -> pd.DataFrame:
    """Read a table with a column `path`, and, where they are there, `record` and `report`."""
    import pandas as pd

    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError, MemoryError) as error:
        raise RecordError(path, f"not a csv table ({type(error).__name__})", "Write one with a column 'path'") from None
    if "path" not in rows.columns or not len(rows) or (rows["path"] == "").any():
        raise RecordError(path, "no column 'path', or an empty cell in it", "Give each recording's path")
    if "record" not in rows.columns:
        rows["record"] = rows["path"]
    if rows["record"].duplicated().any():
        raise RecordError(path, "a record's name stands twice", "Give each recording a name of its own")
    return rows[[name for name in ("record", "path", "report") if name in rows.columns]]


def _located(path: str, folder: Path) -> Path:
    """Return a recording's path as it stands, or beside the manifest if only there is something."""
    given = Path(path)
    beside = folder / given
    return beside if not _files(given) and _files(beside) else given


def _files(path: Path) -> list[Path]:
    endings = ("", ".hea", ".dat", ".mat")
    return [file for ending in endings if (file := path.with_name(path.name + ending)).is_file()]


def _last_change(path: Path) -> str:
    return " ".join(f"{(told := file.stat()).st_size} {told.st_mtime_ns}" for file in _files(path))


def search(
    query: str,
    source: Path,
    top: int,
    *,
    tell: Tell,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    model: Path | None = None,
) -> tuple[list[dict[str, Any]], int]:
    """Return the recordings nearest to a text, best first, and the worst exit code of those that can't be used.

    The embeddings are kept in the cache folder, under a hash of the manifest, its recordings' dates and the weights.

    Args:
        query: what to look for.
        source: a manifest or a packed store.
        top: how many.
        tell: what to do with an error.
        progress: wraps the rows while they are embedded.
        model: folder of an ECG-CoCa; None: the course's mini.

    Raises:
        EcgChatError: the query is blank, or the source can't be read or holds no usable recording.
    """
    from ecgchat_lib.coca.embed import embed_texts

    if not query.strip():
        raise ParameterError("the query is blank, expected words such as 'atrial fibrillation'")
    corpus, coca = open_corpus(source), load_model(model)
    index, faults = _index(corpus, coca, _weights_digest(model), progress)
    for fault in faults:
        tell(fault)
    if not len(index):
        raise EcgChatError(f"{source}: none of its {len(corpus.rows)} recordings can be used. See the lines above")
    place = {name: row for row, name in enumerate(corpus.rows["record"])}
    nearest = index.nearest(embed_texts([query], coca)[0].numpy(), top)
    found = [
        {"rank": rank, "record": name, "similarity": round(cosine, DIGITS), **_described(corpus.rows.iloc[place[name]])}
        for rank, (name, cosine) in enumerate(nearest, start=1)
    ]
    return found, max((fault.exit_code for fault in faults), default=0)


def _described(row: pd.Series) -> dict[str, Any]:
    told: dict[str, Any] = {"path": row["path"]} if "path" in row else {}
    told["report"] = row.get("report", None) or None
    told["statements"] = [code for code, _ in row["statements"]] if "statements" in row else []
    return told


def _weights_digest(folder: Path | None) -> str:
    from ecgchat_lib.coca.checkpoint import MINI_FOLDER, read_manifest
    from ecgchat_lib.paths import data_folder

    hashes = read_manifest(folder if folder is not None else data_folder() / MINI_FOLDER)["sha256"]
    return _sha256(json.dumps(hashes, sort_keys=True).encode())


def _index(
    corpus: Corpus, model: EcgCoca, weights: str, progress: Callable[[Iterable[int]], Iterable[int]]
) -> tuple[EmbeddingIndex, list[EcgChatError]]:
    """Return the index of a corpus and its unusable recordings' errors, from the cache if both are there."""
    from ecgchat_lib import __version__
    from ecgchat_lib.evaluate.index import EmbeddingIndex
    from ecgchat_lib.paths import cache_folder

    folder = cache_folder() / "search" / _sha256(f"{__version__} {weights} {corpus.digest}".encode())[:32]
    left_out = folder / "left_out.json"
    try:
        kept = EmbeddingIndex.load(folder)
        faults = [EcgChatError(str(line)) for line in json.loads(left_out.read_text(encoding="utf-8"))]
        if set(kept.keys) <= set(corpus.rows["record"]) and len(kept) + len(faults) == len(corpus.rows):
            return kept, faults
    except (EcgChatError, OSError, ValueError, TypeError):
        pass  # not there yet, or damaged: it is made again
    index, faults = _embed_corpus(corpus, model, progress)
    if len(index):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = left_out.with_name(f".left_out.{os.getpid()}.part")
        temporary.write_text(json.dumps([str(fault) for fault in faults]), encoding="utf-8")
        os.replace(temporary, left_out)
        index.save(folder)
    return index, faults


def _embed_corpus(
    corpus: Corpus, model: EcgCoca, progress: Callable[[Iterable[int]], Iterable[int]]
) -> tuple[EmbeddingIndex, list[EcgChatError]]:
    from ecgchat_lib.coca.embed import embed_windows
    from ecgchat_lib.evaluate.index import EmbeddingIndex

    index, faults = EmbeddingIndex(model.config.encoder.embedding), []
    names, rows = [], []
    numbers = progress(range(len(corpus.rows)))
    for row, found in in_batches(numbers, corpus.read, lambda w: embed_windows(w, model).numpy(), model):
        if isinstance(found, EcgChatError):
            faults.append(found)
        else:
            names.append(str(corpus.rows["record"].iloc[row]))
            rows.append(found)
    if rows:
        index.add(names, np.stack(rows))
    return index, faults


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
