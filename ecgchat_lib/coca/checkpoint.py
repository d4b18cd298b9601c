"""A checkpoint of ECG-CoCa: one folder with weights (safetensors), config, vocabulary, and a manifest of their hashes.

Nothing is unpickled. A file that was changed, cut off or swapped is an error before a weight is read. The mini weights
that the course ships lie in such a folder. Taught in: 07 §7.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ecgchat_lib.coca.config import EcgCocaConfig
from ecgchat_lib.coca.model import EcgCoca
from ecgchat_lib.coca.text import ReportEncoder
from ecgchat_lib.errors import EcgChatError, MissingPartError
from ecgchat_lib.paths import data_folder

FORMAT = "ecg-coca-1"
WEIGHTS, CONFIG, VOCABULARY, MANIFEST = "model.safetensors", "config.json", "vocabulary.txt", "manifest.json"
MINI_FOLDER = Path("weights") / "ecg-coca-mini"  # inside data/


def save_coca(
    model: EcgCoca,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint; the manifest comes last, so a folder without one is an unfinished write.

    Args:
        model: with a vocabulary.
        folder: made if missing; other files in it are left alone.
        dtype: how the weights are stored; float16 halves the size and costs three digits.
        about: what else the manifest should tell (data, seed, results).

    Raises:
        EcgChatError: the model has no vocabulary.
    """
    if model.tokenizer is None:
        raise EcgChatError("a model without a vocabulary can't be saved: its decoder's pieces would be lost")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    tensors = {name: value.detach().to(dtype).contiguous() for name, value in model.state_dict().items()}
    temporary = folder / f".{WEIGHTS}.part"
    save_file(tensors, temporary, {"format": FORMAT})
    temporary.chmod(0o644)  # safetensors makes files that only their owner may read
    os.replace(temporary, folder / WEIGHTS)
    _write(folder / CONFIG, json.dumps(model.config.as_dict(), indent=2) + "\n")
    _write(folder / VOCABULARY, "\n".join(model.tokenizer.vocabulary) + "\n")
    hashes = {name: _sha256(folder / name) for name in (WEIGHTS, CONFIG, VOCABULARY)}
    manifest = {"format": FORMAT, "about": dict(about or {}), "sha256": hashes}
    _write(folder / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return folder


def load_coca(folder: Path, *, report_encoder: ReportEncoder | None = None) -> EcgCoca:
    """Read a checkpoint, in float32 and evaluation mode.

    Args:
        folder: what `save_coca` wrote.
        report_encoder: an already loaded report encoder to share.

    Raises:
        MissingPartError: the folder, or a file in it, isn't there.
        EcgChatError: a file's sha256 differs from the manifest's, or the weights don't fit the config.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest["sha256"].items():
        _check(folder / name, expected)
    config = EcgCocaConfig.from_dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    vocabulary = (folder / VOCABULARY).read_text(encoding="utf-8").split("\n")[:-1]
    model = EcgCoca(config, vocabulary, report_encoder)
    tensors = {name: value.float() for name, value in load_file(folder / WEIGHTS).items()}
    try:
        model.load_state_dict(tensors)  # strict: nothing missing, nothing left over
    except RuntimeError as error:
        raise EcgChatError(f"{folder / WEIGHTS}: does not fit {CONFIG}. {error}") from error
    return model.eval().requires_grad_(False)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest: format, sha256 of each file, and what its maker wrote about it.

    Raises:
        MissingPartError: there is none.
        EcgChatError: it isn't a manifest of this format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise MissingPartError(
            folder.name, f"no {MANIFEST} in {folder}", "Train it (notebook 07), or take the folder from the project"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        known = manifest["format"] == FORMAT and {WEIGHTS, CONFIG, VOCABULARY} <= set(manifest["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise EcgChatError(
            f"{path}: not a readable manifest ({error}). Take the folder from the project again."
        ) from error
    if not known:
        raise EcgChatError(f"{path}: another format than {FORMAT}. Use the library version that wrote it.")
    return manifest


@cache
def load_mini() -> EcgCoca:
    """Return the course's mini ECG-CoCa, from `data/weights/ecg-coca-mini/`; read once, then the same object.

    It is in evaluation mode and needs no gradient. `model.encoder(front_end(signals, model.config.encoder))` gives an
    embedding (B, 256) and tokens (B, 101, 192).
    """
    return load_coca(data_folder() / MINI_FOLDER)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(path: Path, expected: str) -> None:
    if not path.is_file():
        raise MissingPartError(path.name, f"not in {path.parent}", "Take the checkpoint's folder again, whole")
    found = _sha256(path)
    if found != expected:
        raise EcgChatError(
            f"{path}: sha256 is {found[:12]}…, the manifest says {expected[:12]}…: the file was changed or cut off. "
            "Take it from the project again."
        )


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
