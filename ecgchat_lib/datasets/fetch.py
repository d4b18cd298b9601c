"""Fetch a dataset, or its first N recordings: `ecgchat data fetch NAME`. Nothing else in the project downloads data.

What is fetched, and each file's sha256, comes from the publisher's own list; `pooch` holds that list and moves a file
into place only if its sha256 is right. A connection that breaks is resumed, a command that was stopped goes on where it
ended, and running it again on a complete folder changes nothing. A list whose own sha256 this project doesn't know is
trusted at the first fetch and held to from then on, and the summary says so. Taught in: 02 §6.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from ecgchat_lib.datasets.lock import locked
from ecgchat_lib.datasets.sources import Source, check_name, choose_subset, patients_of, read_sums, recordings_in
from ecgchat_lib.datasets.transfer import RESERVE_BYTES, FetchError, Patience, Transfer
from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError
from ecgchat_lib.paths import data_folder

STATE = ".ecgchat"
"""Folder inside a fetched dataset: what was asked for, and files that aren't complete yet."""

SUMS = "SHA256SUMS.txt"
_LITTER = re.compile(r"tmp[a-z0-9_]{8}")  # pooch's temporary names; a killed process leaves them behind
_ELSEWHERE = "Choose another folder with --to"
_GIVE_UP = 20  # files in a row that fail before the rest isn't tried


@dataclass
class Summary:
    """What a fetch did.

    Attributes:
        folder: where the dataset is.
        chosen: files that were asked for.
        fetched: files that came over the network.
        present: files that were there already, with the right sha256.
        failed: (file, reason).
        recordings: recordings among the files that were asked for.
        received: bytes over the network.
        seconds: how long it took.
        notes: what to know about where the hashes come from.
    """

    folder: Path
    chosen: int = 0
    fetched: int = 0
    present: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    recordings: int = 0
    received: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


def default_folder(name: str) -> Path:
    """Return where a dataset goes unless told otherwise: `data/downloads/NAME`, which git ignores."""
    return data_folder() / "downloads" / name


def fetch(
    source: Source,
    folder: Path,
    *,
    subset: int | None = None,
    base_url: str | None = None,
    jobs: int = 4,
    patience: Patience | None = None,
    confirm: Callable[[int, int, int], bool] | None = None,
) -> Summary:
    """Fetch a dataset into a folder.

    Args:
        source: what to fetch, from `sources.load_source`.
        folder: made if missing. A folder that holds part of the dataset is completed.
        subset: only the first so many recordings, no patient half inside (`sources.choose_subset`).
        base_url: a mirror with the same files; None is the publisher.
        jobs: files at a time, 1 to 16.
        patience: timeouts and tries.
        confirm: called with (files, bytes, free bytes) before anything large is fetched; False ends it.

    Returns:
        What was done. Files that failed are in it and don't keep the others from coming.

    Raises:
        MissingPartError: the dataset can't be fetched (credentialed, or made locally); the message says what to do.
        ParameterError: `subset` or `jobs` is out of range, or the dataset has no subsets.
        EcgChatError: the sha256 list is not the one it was, or the disk is too small.
        FetchError: the list or the tables can't be had.
    """
    _check_call(source, subset, jobs)
    begun = time.monotonic()
    summary = Summary(folder)
    with locked(folder, f"{STATE}/lock", _ELSEWHERE):
        fetcher = _Fetcher(source, folder, base_url, patience or Patience())
        sums = fetcher.sums(summary)
        chosen = fetcher.choose(sums, subset, summary)
        summary.chosen = len(chosen)
        _ask_for_room(source, folder, chosen, summary.recordings, confirm)
        fetcher.remember(chosen)
        fetcher.get_all(chosen, sums, jobs, summary)
        if source.unpack and not summary.failed:
            _unpack(source, folder)
    summary.received, summary.seconds = fetcher.transfer.received, time.monotonic() - begun
    return summary


def refetch(
    source: Source, folder: Path, names: list[str], *, base_url: str | None = None, patience: Patience | None = None
) -> Summary:
    """Fetch only these files of a dataset that was fetched before; those that are damaged are replaced.

    Raises:
        EcgChatError: as `fetch`.
    """
    summary = Summary(folder, chosen=len(names))
    with locked(folder, f"{STATE}/lock", _ELSEWHERE):
        fetcher = _Fetcher(source, folder, base_url, patience or Patience())
        sums = fetcher.sums(summary)
        fetcher.get_all([name for name in names if name in sums], sums, 4, summary)
        if source.unpack and not summary.failed:
            _unpack(source, folder)
    summary.received = fetcher.transfer.received
    return summary


def _check_call(source: Source, subset: int | None, jobs: int) -> None:
    if source.access != "open":
        found = "nothing to fetch" if source.access == "local" else "credentialed, so this command doesn't attempt it"
        raise MissingPartError(source.name, found, f"{source.how}. {source.page}".replace("..", "."))
    if not 1 <= jobs <= 16:
        raise ParameterError(f"jobs: {jobs}, expected 1 to 16; more would only annoy the server")
    if subset is not None and subset < 1:
        raise ParameterError(f"subset: {subset}, expected at least 1 recording")
    if subset is not None and source.files:
        raise ParameterError(f"subset: {source.name} has none. {source.note}")


class _Fetcher:
    """One dataset, one folder: the list, the choice of files, and getting them."""

    def __init__(self, source: Source, folder: Path, base_url: str | None, patience: Patience) -> None:
        import pooch

        self.source, self.folder, self.mirror = source, folder, base_url is not None
        self.base_url = (base_url or source.base_url).rstrip("/") + "/"
        if not self.base_url.startswith(("https://", "http://")):
            raise ParameterError(f"base-url {base_url!r}: expected an address that starts with https://")
        self.transfer = Transfer(self.base_url, source.hosts, source.max_bytes, patience)
        self.pooch = pooch.create(path=folder, base_url=self.base_url, registry={})
        pooch.get_logger().setLevel("WARNING")  # it would tell of each file

    def get(self, name: str, digest: str | None) -> bool:
        """Get one file unless it is there; return whether it came over the network.

        Raises:
            FetchError: it can't be had, or isn't what the list promises.
        """
        import pooch

        target = self.folder / name
        if target.is_file() and (digest is None or pooch.file_hash(str(target)) == digest):
            return False
        target.parent.mkdir(parents=True, exist_ok=True)  # pooch would, but two threads at once trip over each other
        self.pooch.registry[name] = digest
        self.pooch.urls[name] = self.base_url + quote(self._path(name))
        part = self.folder / STATE / "parts" / f"{name}.part"
        for tries_left in (1, 0):  # a resumed file may be spoilt by what was there before: once more, from its start
            try:
                self.pooch.fetch(name, downloader=self.transfer.into(part))
                return True
            except ValueError:
                if not tries_left:
                    break
        raise FetchError(
            f"{name}: what {self.transfer.origin.netloc} sends has another sha256 than the list says. It is not the "
            "published file: try later, or another mirror (--base-url)"
        )

    def _path(self, name: str) -> str:
        """Return a file's path on the server; where the publisher uses numbers, the number."""
        ids = {file["name"]: file["id"] for file in self.source.files}
        return name if self.mirror else ids.get(name, name)

    def sums(self, summary: Summary) -> dict[str, str]:
        """Return the dataset's sha256 list, fetched if it isn't there, and held to what it was before."""
        path = self.folder / SUMS
        if self.source.files:
            return self._own_sums(path, summary)
        before = read_state(self.folder)
        self.get(SUMS, self.source.list_sha256)
        digest = _digest(path)
        pinned = self.source.list_sha256
        expected = pinned or before.get("list_sha256")
        if expected and digest != expected:
            raise EcgChatError(
                f"{path}: sha256 {digest[:12]}…, but {'this project knows' if pinned else 'at the first fetch it was'} "
                f"{expected[:12]}…. If the dataset was published anew, fetch into another folder (--to)"
            )
        try:
            sums = read_sums(path)
        except EcgChatError:
            if not before:  # it came just now, and is no list: don't trip over it the next time
                path.unlink()
            raise
        if not pinned:
            whose = "the mirror" if self.mirror else self.transfer.origin.netloc
            summary.notes.append(
                f"{SUMS} (sha256 {digest[:16]}…) is trusted as {whose} sent it at the first fetch; this project "
                "doesn't know its sha256. From now on it has to stay the same"
            )
        self._write_state({"list_sha256": digest, "pinned": bool(pinned)})
        return sums

    def _own_sums(self, path: Path, summary: Summary) -> dict[str, str]:
        """For publishers without a list: get the files, take their sha256, and write the list."""
        known = read_sums(path) if path.is_file() else {}
        for file in self.source.files:
            name = check_name(file["name"], "data/sources")
            if name in known:
                continue
            summary.fetched += self.get(name, None)
            size = (self.folder / name).stat().st_size
            if file["bytes"] not in (None, size):
                (self.folder / name).unlink()
                raise FetchError(
                    f"{name}: {size} bytes, expected {file['bytes']}. Fetch it again; if it stays so, report it"
                )
            known[name] = _digest(self.folder / name)
            _write_text(path, "".join(f"{digest}  {name}\n" for name, digest in known.items()))
        summary.notes.append(f"the publisher gives no sha256; {SUMS} was made here, at the first fetch")
        self._write_state({"list_sha256": _digest(path), "pinned": False})
        return known

    def choose(self, sums: dict[str, str], subset: int | None, summary: Summary) -> list[str]:
        """Return which files to fetch: the tables, then all recordings or a subset of them."""
        if self.source.files:
            return list(sums)
        also = [name for name in self.source.also if name in sums]
        recordings = recordings_in(sums, self.source.records)
        if not recordings:
            raise EcgChatError(
                f"{self.folder / SUMS}: no recording under {self.source.records!r}. Is it another dataset's?"
            )
        if subset is None:
            summary.recordings = len(recordings)
            return also + [name for name in sums if name.startswith(self.source.records)]
        patients = None
        if self.source.patients:
            table = self.source.patients["table"]
            summary.fetched += self.get(table, sums[table])
            patients = patients_of(self.source, self.folder / table)
        else:
            summary.notes.append("the dataset names no patients: each recording counts as one of its own")
        chosen = choose_subset(recordings, patients, subset)
        summary.recordings = len(chosen)
        return also + [name for stem in chosen for name in recordings[stem]]

    def remember(self, chosen: list[str]) -> None:
        """Write down what was asked for, so that `verify` knows what should be there; earlier wishes stay."""
        wanted = sorted({*read_chosen(self.folder), *chosen})
        _write_text(self.folder / STATE / "chosen.txt", "".join(f"{name}\n" for name in wanted))

    def _write_state(self, more: dict[str, Any]) -> None:
        state = {"dataset": self.source.name, "version": self.source.version, "base_url": self.base_url, **more}
        _write_text(self.folder / STATE / "source.json", json.dumps(state, indent=1) + "\n")

    def get_all(self, names: list[str], sums: dict[str, str], jobs: int, summary: Summary) -> None:
        """Get files, `jobs` at a time; a file that fails is noted. Gives up when nothing comes any more."""
        from tqdm import tqdm

        _sweep(self.folder, names)
        running: dict[Future[bool], str] = {}
        queue, row = iter(names), 0
        with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(names), unit="file", disable=None) as bar:
            try:
                while True:
                    while len(running) < 2 * jobs and row < _GIVE_UP and (name := next(queue, None)) is not None:
                        running[pool.submit(self.get, name, sums[name])] = name
                    if not running:
                        break
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        row = self._note(done, running.pop(done), summary, row)
                        bar.update()
            except BaseException:
                self.transfer.stop.set()
                raise
        if row >= _GIVE_UP and (left := sum(1 for _ in queue)):
            summary.failed.append((f"{left} further files", f"not tried: the last {row} all failed"))

    def _note(self, done: Future[bool], name: str, summary: Summary, row: int) -> int:
        """Count one file's outcome; return how many in a row have failed."""
        try:
            fetched = done.result()
        except EcgChatError as error:
            summary.failed.append((name, str(error)))
            return row + 1
        summary.fetched += fetched
        summary.present += not fetched
        return 0


def _ask_for_room(
    source: Source, folder: Path, chosen: list[str], recordings: int, confirm: Callable[[int, int, int], bool] | None
) -> None:
    """Compare what is missing with the free disk, before anything large is fetched."""
    missing = [name for name in chosen if not (folder / name).is_file()]
    if source.files:
        needed = source.total_bytes if missing else 0
    else:
        in_recordings = [name for name in missing if name not in source.also]
        share = len(in_recordings) / max(len(chosen) - len(source.also), 1)
        needed = round(min(share, 1.0) * recordings * source.record_bytes)
        needed += source.also_bytes if len(in_recordings) < len(missing) else 0
    free = shutil.disk_usage(folder).free
    if needed + RESERVE_BYTES > free:
        raise EcgChatError(
            f"{folder}: {source.name} needs about {needed / 1e9:.2f} GB more, but the disk has {free / 1e9:.2f} GB "
            "left. Make room, choose another disk with --to, or fetch less with --subset"
        )
    if confirm is not None and missing and not confirm(len(missing), needed, free):
        raise FetchError("nothing was fetched")


def _unpack(source: Source, folder: Path) -> None:
    """Unpack the archive's recordings, all or nothing; members are taken by suffix and by their bare names."""
    target, archive = folder / source.unpack["folder"], folder / source.unpack["archive"]
    if target.is_dir():
        return
    with tempfile.TemporaryDirectory(prefix="unpack-", dir=folder / STATE) as scratch:
        try:
            with tarfile.open(archive) as tar:
                for member in tar:
                    if member.isfile() and member.name.endswith(source.unpack["suffix"]):
                        member.name = check_name(PurePosixPath(member.name).name, str(archive))
                        tar.extract(member, scratch, filter="data")
        except (tarfile.TarError, OSError, EOFError) as error:
            raise FetchError(
                f"{archive}: can't be unpacked ({error}). Verify it: ecgchat data verify {folder}"
            ) from None
        os.replace(scratch, target)
        Path(scratch).mkdir()  # for the end of the with block


def read_state(folder: Path) -> dict[str, Any]:
    """Return what is noted of an earlier fetch into this folder; empty where there is none."""
    try:
        state = json.loads((folder / STATE / "source.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def read_chosen(folder: Path) -> list[str]:
    """Return the files that were asked for in this folder; empty where nothing was noted."""
    path = folder / STATE / "chosen.txt"
    if not path.is_file():
        return []
    return [check_name(line, str(path)) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _sweep(folder: Path, names: list[str]) -> None:
    """Remove the temporary files that a killed fetch left in the dataset's folders."""
    for parent in {str(PurePosixPath(name).parent) for name in names}:
        if (folder / parent).is_dir():
            for entry in os.scandir(folder / parent):
                if _LITTER.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    os.unlink(entry.path)


def _digest(path: Path) -> str:
    import pooch

    return str(pooch.file_hash(str(path)))


def _write_text(path: Path, text: str) -> None:
    """Write a file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
    os.replace(temporary, path)
