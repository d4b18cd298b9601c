"""Measure a manifest's recordings once, keep the values beside the data set, and tell what can't be read.

Taught in: 10 §3.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecgchat_lib.ecg.measure import Measurements, measure
from ecgchat_lib.errors import EcgChatError, RecordError

if TYPE_CHECKING:
    from ecgchat_lib.datasets.manifest import Manifest

_FLOATS = frozenset(item.name for item in fields(Measurements) if item.type == "float")
_NAMES = frozenset(item.name for item in fields(Measurements))


def to_row(measurements: Measurements) -> dict[str, Any]:
    """Return measurements as plain JSON: NaN becomes None."""
    return measurements.as_dict()


def from_row(row: dict[str, Any]) -> Measurements:
    """Return the measurements that `to_row` wrote; None becomes NaN again where a number belongs.

    Raises:
        EcgChatError: the row holds something else.
    """
    if set(row) - _NAMES:
        raise EcgChatError(f"measurements: unknown fields {sorted(set(row) - _NAMES)[:3]}. Measure again")
    values: dict[str, Any] = {
        name: math.nan if value is None and name in _FLOATS else value for name, value in row.items()
    }
    wrong = [
        name
        for name in _FLOATS & set(values)
        if isinstance(values[name], bool) or not isinstance(values[name], (int, float))
    ]
    if wrong:
        raise EcgChatError(f"measurements: {wrong[0]} is {values[wrong[0]]!r}, expected a number. Measure again")
    if values.get("regular") not in (True, False, None) or not isinstance(values.get("reasons", {}), dict):
        raise EcgChatError("measurements: 'regular' or 'reasons' is strange. Measure again")
    return Measurements(**values)


def measure_manifest(
    manifest: Manifest, cache: Path, *, progress: Callable[[int], object] = lambda count: None
) -> tuple[dict[str, Measurements], dict[str, str]]:
    """Measure every recording of a manifest, or take its values from an earlier call.

    Values are kept in `cache`, a line of JSON each, under the recording's name, path and the state of its file (size
    and time of change), so that a call that was cut off goes on, and a changed recording is measured again.

    Args:
        manifest: a checked manifest whose paths lead to recordings.
        cache: the file to keep them in.
        progress: called with 1 after each recording.

    Returns:
        Record name → what was measured; and record name → why it couldn't be read.

    Raises:
        EcgChatError: the cache can't be read or written.
    """
    from ecgchat_lib.ecg.recording import read_recording

    known, end = _read_cache(cache)
    measured: dict[str, Measurements] = {}
    unreadable: dict[str, str] = {}
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with cache.open("a", encoding="utf-8") as file:
            file.truncate(end)
            for record, path in zip(manifest["record"], manifest["path"], strict=True):
                key = _key(str(record), str(path))
                if key not in known:
                    try:
                        known[key] = measure(read_recording(path))
                    except RecordError as error:
                        unreadable[str(record)] = error.found
                        progress(1)
                        continue
                    row = {"key": key, "measurements": to_row(known[key])}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    file.flush()
                measured[str(record)] = known[key]
                progress(1)
    except OSError as error:
        raise EcgChatError(f"{cache}: can't be written ({error.strerror}). Choose another place with --out") from None
    return measured, unreadable


def _key(record: str, path: str) -> str:
    """Return a recording's name, path, and its file's size and time of change, as JSON."""
    stat = next((p.stat() for p in map(Path, (path, f"{path}.dat", f"{path}.mat", f"{path}.hea")) if p.is_file()), None)
    return json.dumps([record, path, *([stat.st_size, stat.st_mtime_ns] if stat else [])])


def _read_cache(cache: Path) -> tuple[dict[str, Measurements], int]:
    """Read what is kept, and where its last whole line ends; what was cut off after it doesn't count."""
    if not cache.is_file():
        return {}, 0
    content = cache.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    known = {}
    for number, line in enumerate(whole.splitlines()):
        try:
            row = json.loads(line)
            str(json.loads(row["key"])[0])
            known[row["key"]] = from_row(row["measurements"])
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, EcgChatError):
            remedy = "Delete the file; they are made again"
            raise EcgChatError(f"{cache}, line {number + 1}: no measurements. {remedy}") from None
    return known, len(whole)


def read_measurements(cache: Path) -> dict[str, Measurements]:
    """Return what a cache of `measure_manifest` holds: record name → measurements, the latest of each.

    Raises:
        EcgChatError: there is no such file, or it holds something else.
    """
    if not cache.is_file():
        raise EcgChatError(f"{cache}: no such file. It is written by 'ecgchat instruct build' beside the data set")
    return {str(json.loads(key)[0]): found for key, found in _read_cache(cache)[0].items()}
