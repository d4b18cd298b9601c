"""The stamp on each result: which sources, library, lock, profile, device and seed made it, and what it cost.

It records; it doesn't judge. Nothing here needs git or the network, and no stamp is ever printed in a notebook.
Taught in: nowhere; this is machinery.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import ecgchat_lib

PACKAGES = ("numpy", "scipy", "matplotlib", "torch", "open_clip_torch", "transformers", "peft", "bitsandbytes", "wfdb")


def hash_files(paths: list[Path], base: Path) -> str:
    """Return one sha256 over the names (relative to `base`) and contents of files, whatever order they come in."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(path.relative_to(base).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


@cache
def library_hash() -> str:
    """Return the sha256 of the library's sources (the .py and .yml files of `ecgchat_lib`)."""
    package = Path(ecgchat_lib.__file__).parent
    return hash_files([*package.rglob("*.py"), *package.rglob("*.yml")], package)


def lock_hash(root: Path) -> str | None:
    """Return the sha256 of the files in `requirements/`, or None if there are none."""
    files = sorted((root / "requirements").glob("*.txt"))
    return hash_files(files, root) if files else None


def git_commit(root: Path) -> str | None:
    """Return the commit of the project, with "+changes" if files differ from it, or None where git can't tell."""
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Return the installed versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device() -> str:
    """Return the GPU's name if torch is loaded and sees one, else the kind of CPU and its number of cores."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{platform.machine()} CPU, {cores} cores"


def peak_memory_mb() -> int:
    """Return the most memory that this process has held so far, in MB (0 where the system can't tell)."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3))


def stamp(root: Path, source: Path, values: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Return the provenance of a result of the notebook whose hand-written source is `source`."""
    return {
        "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "library_version": ecgchat_lib.__version__,
        "library_sha256": library_hash(),
        "lock_sha256": lock_hash(root),
        "commit": git_commit(root),
        "profile": values["PROFILE"],
        "seed": values["SEED"],
        "device": device(),
        "seconds": round(seconds, 1),
        "peak_memory_mb": peak_memory_mb(),
        "versions": versions(),
    }


def knowledge_hash() -> str:
    """Return the sha256 of the knowledge base: entries, questions, sources, limits and terms."""
    from ecgchat_lib.paths import data_folder

    folder = data_folder() / "knowledge"
    return hash_files([*folder.rglob("*.md"), *folder.rglob("*.yml")], folder)


def keyed_folder(base: Path, **made_with: Any) -> Path:
    """Return a folder for what may be kept between runs, named by the sha256 of all that it depends on; it is made.

    Args:
        base: where the folder stands.
        made_with: what the content depends on, as JSON can hold it: hashes of weights and data, settings, limits.
    """
    content = json.dumps(made_with, sort_keys=True, ensure_ascii=True)
    folder = base / hashlib.sha256(content.encode()).hexdigest()[:24]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file with one JSON object a line; a last line that was cut off is left out."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = [json.loads(line) for line in lines[:-1] if line]
    if lines[-1]:  # without the newline that ends each whole line: mend it, so that the next one starts afresh
        path.write_bytes(b"".join(line + b"\n" for line in lines[:-1]))
    return rows
