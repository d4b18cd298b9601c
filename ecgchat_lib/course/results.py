"""Results of notebooks as JSON: written by a run, recorded in `data/results/`, shown as "not run" where there is none.

A results file holds the notebook's number, its parameters, its metrics and the provenance stamp; `check_results` says
what must be in it. It holds no timing of anything but the whole notebook.
Taught in: nowhere; this is machinery.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ecgchat_lib.course.figure import write_atomically
from ecgchat_lib.errors import EcgChatError

PROFILES = ("ci", "cpu", "t4", "h100")
NOT_RUN = "not run"

_FIELDS = {"notebook": str, "profile": str, "parameters": dict, "metrics": dict, "stamp": dict}
_STAMP = (
    "source_sha256",
    "library_version",
    "library_sha256",
    "profile",
    "seed",
    "device",
    "seconds",
    "peak_memory_mb",
    "versions",
)


def plain(value: object) -> Any:
    """Return a metric as JSON takes it: numpy numbers and arrays as Python's, NaN and infinities as None.

    Raises:
        EcgChatError: the value is neither number, text, list nor dictionary.
    """
    if hasattr(value, "tolist"):  # numpy arrays and scalars, torch tensors
        value = value.tolist()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    raise EcgChatError(f"a metric may be a number, text, list or dictionary, not {type(value).__name__}")


def results_path(folder: Path, number: str, profile: str) -> Path:
    """Return `folder/NN_profile.json`."""
    return folder / f"{number}_{profile}.json"


def write_results(path: Path, content: Mapping[str, Any]) -> None:
    """Check and write one results file."""
    content = plain(content)
    check_results(content, str(path))
    write_atomically(path, (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def check_results(content: Mapping[str, Any], where: str) -> None:
    """Raise `EcgChatError` if a results file lacks a field or has one of the wrong type."""
    for name, kind in _FIELDS.items():
        if not isinstance(content.get(name), kind):
            raise EcgChatError(f"{where}: field '{name}' must be a {kind.__name__}, found {content.get(name)!r}")
    missing = [name for name in _STAMP if name not in content["stamp"]]
    if missing:
        raise EcgChatError(f"{where}: the stamp lacks '{missing[0]}'")
    if not content["metrics"]:
        raise EcgChatError(f"{where}: there are no metrics")


def read_results(path: Path) -> dict[str, Any] | None:
    """Return a checked results file, or None if it isn't there."""
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    check_results(content, path.name)
    return content


def cost(folder: Path, number: str, profile: str) -> str:
    """Return what a recorded run cost, e.g. "0.4 min, 1.2 GB", or "not run"."""
    content = read_results(results_path(folder, number, profile))
    if content is None:
        return NOT_RUN
    minutes, memory = content["stamp"]["seconds"] / 60, content["stamp"]["peak_memory_mb"] / 1000
    return f"{minutes:.1f} min, {memory:.1f} GB"
