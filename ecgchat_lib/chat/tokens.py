"""The ECG tower's tokens, computed once per recording and kept on disk.

The tower is frozen, so a recording's tokens never change while the chat model trains, and a stage of three epochs would
compute them three times. They are kept in float16 under a hash of what they follow from: the encoder's weights, its
front end and the recording's own bytes. Whatever changes there is noticed and computed anew. Taught in: 11 §2.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ecgchat_lib.chat.train_state import write_tensors
from ecgchat_lib.coca.embed import encoder_tokens
from ecgchat_lib.coca.model import EcgCoca
from ecgchat_lib.coca.preprocess import recording_windows
from ecgchat_lib.ecg.formats import read_any
from ecgchat_lib.errors import EcgChatError, RecordError

PART = 64  # recordings in one file: what a kill loses at most
TOKENS = "tokens"


class TokenStore:
    """Tokens by row, read from disk when they are asked for: what training takes in place of a tensor.

    Args:
        places: for each row, the file and the place in it.
        shape: tokens per recording, and width.
    """

    def __init__(self, places: Sequence[tuple[Path, int]], shape: tuple[int, int]) -> None:
        self._places = list(places)
        self.shape = (len(self._places), *shape)
        self._open: dict[Path, Any] = {}

    def __len__(self) -> int:
        """Return how many recordings there are."""
        return len(self._places)

    def __getitem__(self, rows: Sequence[int]) -> torch.Tensor:
        """Return the tokens of some rows, float32 (rows, tokens, width)."""
        parts = []
        for row in rows:
            path, place = self._places[row]
            parts.append(self._file(path).get_slice(TOKENS)[place : place + 1].float())
        return torch.cat(parts) if parts else torch.zeros(0, *self.shape[1:])

    def _file(self, path: Path) -> Any:
        from safetensors import safe_open

        if path not in self._open:
            self._open[path] = safe_open(path, "pt")  # mapped into memory, not read
        return self._open[path]


def cached_tokens(
    paths: Sequence[Path],
    encoder: EcgCoca,
    encoder_sha256: str,
    folder: Path,
    *,
    share: tuple[int, int] = (0, 1),
    wait: Callable[[], None] = lambda: None,
) -> TokenStore:
    """Return the tokens of recordings, computing those that the folder doesn't hold yet.

    Killed, it goes on where it was. Several processes may work on one folder: each takes its share of what is missing
    and waits for the others; two that do the same write the same files.

    Args:
        paths: the recordings, one row each; the same one may stand there twice.
        encoder: the frozen tower, on the device where it should run.
        encoder_sha256: hash of its weights.
        folder: where the tokens are kept.
        share: which process this is, of how many.
        wait: returns when all processes have called it.

    Raises:
        RecordError: a recording can't be read.
        EcgChatError: tokens are too large for float16.
    """
    digests = [record_digest(path) for path in paths]
    place = folder / store_key(encoder, encoder_sha256)
    place.mkdir(parents=True, exist_ok=True)
    known = _known(place)
    missing = {digest: path for digest, path in zip(digests, paths, strict=True) if digest not in known}
    wait()  # until every process has seen the same
    names = list(missing)
    parts = [names[start : start + PART] for start in range(0, len(names), PART)]
    for part in tqdm(parts[share[0] :: share[1]], desc="ECG tokens", unit="part", disable=None):
        _write_part(place, part, [missing[digest] for digest in part], encoder)
    wait()
    known = _known(place) if missing else known
    config = encoder.config.encoder
    shape = next(iter(known.values()))[2] if known else (0, config.width)
    return TokenStore([known[digest][:2] for digest in digests], shape)


def store_key(encoder: EcgCoca, encoder_sha256: str) -> str:
    """Return the name of the folder for one encoder: a hash of its weights and of its config, the front end in it."""
    about = json.dumps([encoder_sha256, dataclasses.asdict(encoder.config.encoder)], sort_keys=True, default=str)
    return hashlib.sha256(about.encode()).hexdigest()[:16]


def record_digest(path: Path) -> str:
    """Return a hash of a recording's files: the one that is named, and for a WFDB header those that it names.

    Raises:
        RecordError: a file isn't there.
    """
    header = path if path.is_file() else path.with_name(path.name + ".hea")
    files = [header]
    try:
        if header.suffix == ".hea":
            lines = header.read_text(encoding="utf-8", errors="replace").splitlines()
            named = {Path(line.split()[0]).name for line in lines if line.strip() and not line.startswith("#")}
            files += sorted(header.parent / name for name in named if (header.parent / name).is_file())
        digest = hashlib.sha256()
        for file in files:
            content = file.read_bytes()
            digest.update(len(content).to_bytes(8, "little") + content)
    except OSError as error:
        raise RecordError(path, f"can't be read ({error.strerror})", "Check the conversation's path") from error
    return digest.hexdigest()


def _known(place: Path) -> dict[str, tuple[Path, int, tuple[int, int]]]:
    """Return where each recording's tokens are; a damaged file is deleted, so that it is computed again."""
    from safetensors import SafetensorError, safe_open

    known: dict[str, tuple[Path, int, tuple[int, int]]] = {}
    for path in sorted(place.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                digests = json.loads(file.metadata()["state"])
                rows, tokens, width = file.get_slice(TOKENS).get_shape()
            if rows != len(digests):
                raise ValueError(f"{rows} rows for {len(digests)} recordings")
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            path.unlink(missing_ok=True)
            continue
        known |= {digest: (path, row, (tokens, width)) for row, digest in enumerate(digests)}
    return known


def _write_part(place: Path, digests: Sequence[str], paths: Sequence[Path], encoder: EcgCoca) -> None:
    windows = recording_windows([read_any(path) for path in paths], encoder.config.encoder)
    tokens = encoder_tokens(windows, encoder).to(torch.float16)
    finite = tokens.isfinite().flatten(1).all(1)
    if not finite.all():
        first = paths[int(finite.logical_not().nonzero()[0])]
        raise EcgChatError(f"{first}: its ECG tokens don't fit into float16; the encoder's weights can't be right")
    name = hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
    write_tensors(place / f"{name}.safetensors", {TOKENS: tokens}, {"state": json.dumps(list(digests))})
