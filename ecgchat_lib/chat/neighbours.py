"""The nearest recordings and their reports: a small index of ECG embeddings that a chat can look things up in.

`data/neighbours` holds the course's own, made of synthetic recordings: `python -m ecgchat_lib.chat.neighbours --out
FOLDER`. Of any manifest (`--manifest FILE`) it makes another one, for `ecgchat chat --neighbours FOLDER`. An index
holds embeddings and reports, no signals; whoever makes one of patients' recordings ships their reports with it. A
report is text from outside: it is cleaned, cut, and quoted where it enters a prompt. Taught in: 13 §1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgchat_lib.ecg.recording import Recording, read_recording
from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError, RecordError
from ecgchat_lib.evaluate.index import EmbeddingIndex
from ecgchat_lib.paths import data_folder

if TYPE_CHECKING:
    from ecgchat_lib.coca.model import EcgCoca
    from ecgchat_lib.datasets.manifest import Manifest

FORMAT = "ecg-neighbours-1"
FOLDER = Path("neighbours")  # inside data/
EMBEDDINGS, REPORTS, MANIFEST, CARD = "embeddings.safetensors", "reports.jsonl", "manifest.json", "README.md"
RECORDS, SEED = 1800, 11  # of the shipped index; the seed is none that the mini weights were trained with
LONGEST_REPORT = 240  # characters
MOST_ROWS = 2_000_000
SAME = 0.9999  # cosine from which on two recordings are taken for one and the same
BLOCK = 64  # recordings that are encoded at a time
_MAX_MANIFEST = 1 << 20
_AGAIN = "Make the index again: python -m ecgchat_lib.chat.neighbours"


@dataclass(frozen=True)
class Neighbour:
    """A recording that is near to another one.

    Attributes:
        record: its name.
        report: what its report says, cleaned.
        score: the cosine of the two embeddings.
    """

    record: str
    report: str
    score: float


@dataclass(frozen=True)
class Neighbours:
    """Recordings to look up the nearest in.

    Attributes:
        index: their embeddings.
        records: their names, in the index's order.
        reports: what their reports say, cleaned.
        signals: what `signal_digest` says of their signals.
        about: what the maker wrote of it.
    """

    index: EmbeddingIndex
    records: Sequence[str]
    reports: Sequence[str]
    signals: Sequence[str]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.index) == len(self.records) == len(self.reports) == len(self.signals):
            raise ParameterError(
                f"neighbours: {len(self.index)} embeddings, {len(self.records)} names, {len(self.reports)} reports and "
                f"{len(self.signals)} digests, expected as many of each"
            )

    def nearest(self, embedding: np.ndarray, top: int = 3, *, besides: Recording | None = None) -> list[Neighbour]:
        """Return the nearest recordings, best first. Several may have the same report, and each counts.

        Args:
            embedding: (dim,) of the recording that is asked about.
            top: how many at most.
            besides: that recording; it isn't among its own neighbours, by whatever name it is there.
        """
        name, digest = (None, None) if besides is None else (besides.name, signal_digest(besides))
        out: list[Neighbour] = []
        if not len(self.index):
            return out
        hits = self.index.search(np.asarray(embedding), min(len(self.index), 4 * top + 4))
        for row, score in zip(hits.rows[0].tolist(), hits.scores[0].tolist(), strict=True):
            itself = besides is not None and (self.records[row] == name or self.signals[row] == digest or score >= SAME)
            if row >= 0 and not itself and self.reports[row] and len(out) < top:
                out.append(Neighbour(self.records[row], self.reports[row], float(score)))
        return out


def signal_digest(recording: Recording) -> str:
    """Return 16 hexadecimal digits of a signal's microvolts, by which the same signal is known under another name."""
    microvolts = np.round(np.nan_to_num(recording.signal, nan=0.0, posinf=0.0, neginf=0.0) * 1000)
    content = np.clip(microvolts, -(2**31), 2**31 - 1).astype("<i8").tobytes()
    return hashlib.sha256(f"{recording.fs:g} {recording.signal.shape} ".encode() + content).hexdigest()[:16]


def clean_report(text: str) -> str:
    """Return a report as one line of printable characters, at most `LONGEST_REPORT` of them."""
    head = text[: 20 * LONGEST_REPORT]
    plain = " ".join("".join(c if c.isprintable() else " " for c in head).split())
    plain = plain.encode("utf-8", "replace").decode("utf-8")
    return plain if len(plain) <= LONGEST_REPORT else plain[: LONGEST_REPORT - 1].rstrip() + "…"


def build_neighbours(
    manifest: Manifest, out: str | Path, *, model: EcgCoca | None = None, about: Mapping[str, Any] | None = None
) -> Path:
    """Encode the recordings of a manifest and write them with their reports as an index.

    Args:
        manifest: its records' paths can be read, and have reports; one without a report is left out.
        out: the folder, made if missing. The manifest is written last: without it, the folder is an unfinished write.
        model: the encoder; None: the course's mini.
        about: what else the index's manifest should tell (data, license, seed).

    Raises:
        RecordError: a recording can't be read.
        EcgChatError: no recording has a report.
    """
    from ecgchat_lib.coca.checkpoint import load_mini

    model = model if model is not None else load_mini()
    rows = manifest[manifest["report"].str.strip().astype(bool)]
    if not len(rows):
        raise EcgChatError("neighbours: no recording has a report, expected a manifest with reports")
    vectors, signals = _encoded(rows["path"].tolist(), model)
    reports = [clean_report(report) for report in rows["report"]]
    made = neighbours_of(rows["record"].tolist(), reports, vectors, signals, about=about)
    return save_neighbours(made, Path(out), model)


def neighbours_of(
    records: Sequence[str],
    reports: Sequence[str],
    embeddings: np.ndarray,
    signals: Sequence[str],
    *,
    about: Mapping[str, Any] | None = None,
) -> Neighbours:
    """Return an index of embeddings (n, dim) that are there already; see `Neighbours`."""
    index = EmbeddingIndex(embeddings.shape[1])
    index.add(records, embeddings)
    return Neighbours(index, list(records), [clean_report(text) for text in reports], list(signals), dict(about or {}))


def _encoded(paths: Sequence[str], model: EcgCoca) -> tuple[np.ndarray, list[str]]:
    from tqdm import tqdm

    from ecgchat_lib.coca.embed import embed_recordings

    parts, signals = [], []
    for start in tqdm(range(0, len(paths), BLOCK), desc="encoding", unit=f"{BLOCK} records", disable=None):
        recordings = [read_recording(path) for path in paths[start : start + BLOCK]]
        parts.append(embed_recordings(recordings, model).numpy())
        signals += [signal_digest(recording) for recording in recordings]
    return np.concatenate(parts), signals


# --- the folder


def save_neighbours(neighbours: Neighbours, folder: Path, model: EcgCoca) -> Path:
    """Write an index: embeddings in float16, reports as JSON lines, a card, and at last the manifest."""
    from safetensors.numpy import save

    from ecgchat_lib.evaluate.classifier import encoder_digest

    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    vectors = save({"embeddings": neighbours.index.vectors.astype(np.float16)}, {"format": FORMAT})
    lines = "".join(
        json.dumps({"record": record, "report": report, "signal": signal}, ensure_ascii=False) + "\n"
        for record, report, signal in zip(neighbours.records, neighbours.reports, neighbours.signals, strict=True)
    ).encode()
    manifest = {
        "format": FORMAT,
        "rows": len(neighbours.records),
        "dim": neighbours.index.dim,
        "sha256": {EMBEDDINGS: hashlib.sha256(vectors).hexdigest(), REPORTS: hashlib.sha256(lines).hexdigest()},
        "encoder_sha256": encoder_digest(model),
        "about": dict(neighbours.about),
    }
    _write(folder / EMBEDDINGS, vectors)
    _write(folder / REPORTS, lines)
    _write(folder / CARD, _card(manifest).encode())
    _write(folder / MANIFEST, (json.dumps(manifest, indent=1, allow_nan=False) + "\n").encode())
    return folder


def load_neighbours(folder: str | Path | None = None, model: EcgCoca | None = None) -> Neighbours:
    """Read an index and tie it to its encoder.

    Args:
        folder: what `build_neighbours` wrote; None: the course's own, `data/neighbours`.
        model: the encoder; None: the course's mini.

    Raises:
        MissingPartError: the folder, or a file in it, isn't there.
        RecordError: a file is damaged, or doesn't fit the others.
        EcgChatError: the index was made with another encoder.
    """
    from ecgchat_lib.coca.checkpoint import load_mini
    from ecgchat_lib.evaluate.classifier import encoder_digest

    place = Path(folder) if folder is not None else data_folder() / FOLDER
    manifest = _read_manifest(place)
    model = model if model is not None else load_mini()
    if (digest := encoder_digest(model)) != manifest["encoder_sha256"]:
        raise EcgChatError(
            f"{place}: the index was made with an encoder with sha256 {manifest['encoder_sha256'][:12]}…, but this one "
            f"has {digest[:12]}…: its embeddings mean something else. {_AGAIN}"
        )
    vectors = _read_vectors(place / EMBEDDINGS, manifest)
    rows = list(_read_rows(place / REPORTS, manifest))
    if len(rows) != len(vectors):
        raise RecordError(place / REPORTS, f"{len(rows)} reports for {len(vectors)} embeddings", _AGAIN)
    records, reports, signals = (list(column) for column in zip(*rows, strict=True))
    try:
        return neighbours_of(records, reports, vectors, signals, about=manifest["about"])
    except ParameterError as error:
        raise RecordError(place / EMBEDDINGS, str(error), _AGAIN) from None


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise MissingPartError(str(folder), f"no {MANIFEST} in it", _AGAIN)
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            raise ValueError(f"{path.stat().st_size} bytes")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        shaped = (
            manifest["format"] == FORMAT
            and 1 <= manifest["rows"] <= MOST_ROWS
            and 1 <= manifest["dim"] <= 65536
            and all(isinstance(manifest["sha256"][name], str) for name in (EMBEDDINGS, REPORTS))
            and isinstance(manifest["encoder_sha256"], str)
            and isinstance(manifest["about"], dict)
        )
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise RecordError(path, f"not a readable manifest ({type(error).__name__}: {error})", _AGAIN) from None
    if not shaped:
        raise RecordError(path, f"a field is not what it should be, expected the format {FORMAT}", _AGAIN)
    return dict(manifest)


def _content(path: Path, manifest: Mapping[str, Any], most: int) -> bytes:
    """Return a file whose size and hash are as they should be."""
    if not path.is_file():
        raise MissingPartError(path.name, f"not in {path.parent}", _AGAIN)
    if path.stat().st_size > most:
        raise RecordError(path, f"{path.stat().st_size} bytes, expected at most {most}", _AGAIN)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest["sha256"][path.name]:
        raise RecordError(path, "is not the file that the manifest names (sha256 differs)", _AGAIN)
    return content


def _read_vectors(path: Path, manifest: Mapping[str, Any]) -> np.ndarray:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    shape = (manifest["rows"], manifest["dim"])
    try:
        found = load(_content(path, manifest, 2 * shape[0] * shape[1] + 4096))["embeddings"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise RecordError(path, f"not embeddings in safetensors ({error})", _AGAIN) from None
    if found.shape != shape or found.dtype != np.float16:
        raise RecordError(path, f"holds {found.dtype} {found.shape}, expected float16 {shape}", _AGAIN)
    return np.asarray(found, dtype=np.float32)


def _read_rows(path: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    content = _content(path, manifest, manifest["rows"] * (8 * LONGEST_REPORT + 1024))
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            row = json.loads(line)
            fields = tuple(row[name] for name in ("record", "report", "signal"))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RecordError(path, f"line {number}: not a report ({type(error).__name__})", _AGAIN) from None
        if not all(isinstance(one, str) for one in fields):
            raise RecordError(path, f"line {number}: record, report or signal isn't text", _AGAIN)
        yield clean_report(fields[0]), fields[1], fields[2]


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _card(manifest: Mapping[str, Any]) -> str:
    """Return the index's README."""
    about = manifest["about"]
    told = "".join(f"- **{name.replace('_', ' ').capitalize()}**: {value}\n" for name, value in about.items())
    return f"""# Neighbours

An index of ECG embeddings with reports, in which `ecgchat chat --with ...,neighbours` looks up the recordings nearest
to the one that is asked about. `ecgchat_lib/chat/neighbours.py` makes and reads it; notebook 13 teaches it. For
learning; a neighbour's report says nothing certain about another recording.

- **Holds**: {manifest["rows"]} recordings, embeddings of {manifest["dim"]} numbers in float16, reports of at most
  {LONGEST_REPORT} characters; no signals.
- **Encoder**: sha256 `{manifest["encoder_sha256"][:12]}…`; with another one the index is refused.
{told}"""


def build_synthetic(out: str | Path, *, records: int = RECORDS, seed: int = SEED) -> Path:
    """Write the course's own index: of synthetic recordings, so that it can be shipped. The same seed, the same index.

    Args:
        out: the folder.
        records: how many.
        seed: which ones, see `datasets.synthetic.write_synthetic`.
    """
    from ecgchat_lib.datasets.synthetic import VERSION, write_synthetic

    with tempfile.TemporaryDirectory() as place:
        manifest = write_synthetic(place, records, seed)
        about = {
            "data": f"synthetic recordings (ecgchat_lib.datasets.synthetic, version {VERSION}); no patient's",
            "license": "CC BY 4.0",
            "recipe": f"python -m ecgchat_lib.chat.neighbours --records {records} --seed {seed}",
            "seed": seed,
        }
        return build_neighbours(manifest, out, about=about)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make an index from the command line."""
    parser = argparse.ArgumentParser(description="Make an index of ECG embeddings with reports for `ecgchat chat`.")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--manifest", type=Path, help="a manifest of your own; synthetic recordings if not given")
    parser.add_argument("--records", type=int, default=RECORDS, help="how many synthetic recordings")
    parser.add_argument("--seed", type=int, default=SEED, help="which synthetic recordings")
    chosen = parser.parse_args(arguments)
    if chosen.manifest is None:
        build_synthetic(chosen.out, records=chosen.records, seed=chosen.seed)
        return
    from ecgchat_lib.datasets.manifest_file import read_manifest

    manifest = read_manifest(chosen.manifest)
    build_neighbours(manifest, chosen.out, about={"data": f"{len(manifest)} recordings of {chosen.manifest.name}"})


if __name__ == "__main__":
    main()
