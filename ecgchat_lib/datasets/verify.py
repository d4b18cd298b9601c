"""Check a fetched dataset against its sha256 list: what is missing, damaged, or shouldn't be there.

This is `ecgchat data verify`. It reads every byte, so it takes as long as the disk does. A folder that was filled by
other means is checked too, if the publisher's `SHA256SUMS.txt` lies in it. Taught in: 02 §6.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from ecgchat_lib.datasets.fetch import STATE, SUMS, read_chosen, read_state
from ecgchat_lib.datasets.sources import load_source, read_sums, source_names
from ecgchat_lib.errors import EcgChatError, MissingPartError


@dataclass
class Report:
    """What a folder holds, compared with its list; names are relative to the folder.

    Attributes:
        folder: which folder.
        right: number of files with the right sha256.
        missing: asked for, or listed where nothing was asked for, but not there.
        damaged: there, with another sha256.
        extra: there, but not in the list.
        notes: what to know about the list itself.
    """

    folder: Path
    right: int = 0
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Nothing is missing or damaged; further files do no harm."""
        return not (self.missing or self.damaged)


def verify(folder: Path, *, jobs: int = 2) -> Report:
    """Compare a dataset's folder with its sha256 list.

    Args:
        folder: holds `SHA256SUMS.txt`, as `fetch` or the publisher's own tools leave it.
        jobs: files at a time.

    Raises:
        MissingPartError: there is no list in the folder.
        EcgChatError: the list isn't the one that was there at the first fetch, or is no list.
    """
    from tqdm import tqdm

    if not (folder / SUMS).is_file():
        raise MissingPartError(
            str(folder),
            f"no {SUMS} in it, so there is nothing to compare with",
            "Fetch it: ecgchat data fetch NAME --to FOLDER",
        )
    report = Report(folder)
    _check_list(folder, report)
    sums = read_sums(folder / SUMS)
    wanted = read_chosen(folder) or list(sums)
    there = set(_files(folder))
    report.missing = sorted(name for name in wanted if name not in there)
    report.extra = sorted(there - sums.keys() - _unpacked(folder, there))
    present = sorted(there & sums.keys())
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(present), unit="file", disable=None) as bar:
        names = iter(present)
        while batch := list(islice(names, 256)):  # bounded, so that a million files don't wait as a million tasks
            for name, digest in zip(batch, pool.map(lambda name: _digest(folder / name), batch), strict=True):
                if digest == sums[name]:
                    report.right += 1
                else:
                    report.damaged.append(name)
            bar.update(len(batch))
    return report


def _check_list(folder: Path, report: Report) -> None:
    """Hold the list to what it was at the first fetch, which held it to what this project knows of it."""
    state = read_state(folder)
    digest = _digest(folder / SUMS)
    expected = state.get("list_sha256")
    if expected and digest != expected:
        raise EcgChatError(
            f"{folder / SUMS}: sha256 {digest[:12]}…, expected {expected[:12]}…: the list itself was changed. "
            "Delete it and fetch again"
        )
    known = [source for source in map(load_source, source_names()) if source.list_sha256 == digest]
    if not state and known:
        report.notes.append(f"{SUMS} is the published one of {known[0].title} {known[0].version}")
    elif not state:
        report.notes.append(f"{SUMS} is taken as it lies there; nothing is known of where it came from")
    elif not state.get("pinned"):
        report.notes.append(f"{SUMS} is the one of the first fetch; this project doesn't know its sha256")


def _files(folder: Path) -> Iterator[str]:
    """Yield the files below a folder, relative and with forward slashes, without the notes of `fetch`."""
    for parent, folders, files in os.walk(folder):
        if Path(parent) == folder:
            folders[:] = [name for name in folders if name != STATE]
            files = [name for name in files if name != SUMS]
        for name in files:
            yield (Path(parent) / name).relative_to(folder).as_posix()


def _unpacked(folder: Path, there: set[str]) -> set[str]:
    """Return the files that `fetch` unpacked from an archive; the list knows the archive only."""
    name = read_state(folder).get("dataset")
    unpack = load_source(name).unpack if name in source_names() else {}
    return {file for file in there if unpack and file.startswith(unpack["folder"] + "/")}


def _digest(path: Path) -> str:
    import pooch

    return str(pooch.file_hash(str(path)))
