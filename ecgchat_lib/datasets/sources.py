"""Where each dataset is published: its address, version, license, size and sha256 list, as facts in `data/sources/`.

It reads those facts and lists of sha256, and chooses which files a subset needs. It fetches nothing (`fetch.py` does).
A list comes from the network, so it is read as untrusted input: no name may leave the dataset's folder.
Taught in: 02 §6.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError
from ecgchat_lib.paths import data_folder

MAX_LIST_BYTES = 1_000_000_000  # MIMIC-IV-ECG lists 1.6 million files in about 180 MB
_LINE = re.compile(r"^([0-9a-fA-F]{64})[ \t]+\*?(\S.*)$")
_RESERVED = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # names that Windows keeps for itself


@dataclass(frozen=True)
class Source:
    """What is known of a dataset before anything is fetched.

    Attributes:
        name: the word for the command line.
        title: its name for people.
        version: the published version.
        access: `open`, `credentialed` (explained, never attempted) or `local` (made on this machine).
        license: its license.
        page: where to read about it.
        base_url: what the names in the list are relative to; ends with a slash.
        list_sha256: the sha256 of the publisher's list, SHA256SUMS.txt, or None: then the list is trusted at the first
            fetch and held to later.
        hosts: further hosts that a redirect may lead to.
        records: folder of the recordings inside the dataset.
        also: further files that always come along.
        files: `{name, id, bytes}` of each file, for publishers without a list.
        unpack: `{archive, suffix, folder}`: which members of which archive go where.
        record_count: recordings in all.
        record_bytes: bytes of one recording, on average.
        also_bytes: bytes of the further files.
        max_bytes: no single file is larger.
        patients: `{table, patient, path}`: the table and columns that tell whose recording it is.
        how: what to do where nothing can be fetched.
        note: what to know before fetching.
    """

    name: str
    title: str
    version: str
    access: str
    license: str
    page: str
    base_url: str = ""
    list_sha256: str | None = None
    hosts: tuple[str, ...] = ()
    records: str = ""
    also: tuple[str, ...] = ()
    files: tuple[Mapping[str, Any], ...] = ()
    unpack: Mapping[str, str] = field(default_factory=dict)
    record_count: int = 0
    record_bytes: int = 0
    also_bytes: int = 0
    max_bytes: int = 0
    patients: Mapping[str, str] = field(default_factory=dict)
    how: str = ""
    note: str = ""

    @property
    def total_bytes(self) -> int:
        """About how many bytes the whole dataset takes on the disk, unpacked archives included."""
        listed = sum(file["bytes"] or 0 for file in self.files) * (2 if self.unpack else 1)
        return listed + self.record_count * self.record_bytes + self.also_bytes


def source_names() -> list[str]:
    """Return the names of the datasets that `data/sources/` knows."""
    return sorted(path.stem for path in (data_folder() / "sources").glob("*.yml"))


def load_source(name: str) -> Source:
    """Read `data/sources/NAME.yml`.

    Raises:
        MissingPartError: there is no such dataset; the message lists those that there are.
        EcgChatError: the file misses a field or has one that nothing reads.
    """
    if name not in source_names():
        raise MissingPartError(name, "no such dataset", f"Known datasets: {', '.join(source_names())}")
    path = data_folder() / "sources" / f"{name}.yml"
    facts = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key in ("also", "hosts", "files"):
        facts[key] = tuple(facts.get(key, ()))
    try:
        return Source(name=name, **facts)
    except TypeError as error:
        raise EcgChatError(f"{path}: {error}. See the fields of ecgchat_lib.datasets.sources.Source") from None


def check_name(name: str, where: str) -> str:
    """Return a file name of a list if it stays inside the dataset's folder.

    Raises:
        EcgChatError: it is absolute, climbs out with `..`, or can't be a file's name on every system.
    """
    parts = name.split("/")
    fine = (
        name.isprintable()
        and len(name) <= 500
        and not any(character in name for character in '\\:*?"<>|')
        and all(part not in ("", ".", "..") and not _RESERVED.match(part) and part == part.strip(" ") for part in parts)
        and not parts[0].startswith(".ecgchat")
    )
    if not fine:
        shown = "".join(character if character.isprintable() else "?" for character in name[:80])
        raise EcgChatError(
            f"{where}: the file name {shown!r} leaves the dataset's folder or is no file name. Don't use it"
        )
    return name


def read_sums(path: Path) -> dict[str, str]:
    """Read a list of `SHA256  NAME` lines, as sha256sum writes and PhysioNet publishes them.

    Returns:
        File name, relative to the dataset's folder with forward slashes → sha256 in lower-case hexadecimal.

    Raises:
        EcgChatError: the file isn't such a list, contradicts itself, or names a file outside the folder.
    """
    if path.stat().st_size > MAX_LIST_BYTES:
        raise EcgChatError(f"{path}: {path.stat().st_size} bytes, more than a list of sha256 ever has. Fetch it again")
    sums: dict[str, str] = {}
    with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            text = line.rstrip("\r\n")
            if not text:
                continue
            match = _LINE.match(text[:1000])
            if match is None:
                raise EcgChatError(
                    f"{path}, line {number}: not 'SHA256 NAME' ({text[:40]!r}). It is no list of sha256, or was cut; "
                    "delete it and fetch again"
                )
            digest, name = match[1].lower(), check_name(match[2].removeprefix("./"), f"{path}, line {number}")
            if sums.setdefault(name, digest) != digest:
                raise EcgChatError(f"{path}, line {number}: two different sha256 for {name}. Fetch the list again")
    if not sums:
        raise EcgChatError(f"{path}: an empty list of sha256. Delete it and fetch again")
    return sums


def recordings_in(names: Iterable[str], folder: str) -> dict[str, list[str]]:
    """Group files into recordings: those under `folder` that share a path up to the extension, and have a header.

    Returns:
        Path without extension → its files, in natural order (2 before 10).
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        if name.startswith(folder):
            head, dot, extension = name.rpartition(".")
            groups.setdefault(head if dot and "/" not in extension else name, []).append(name)
    found = [stem for stem, files in groups.items() if f"{stem}.hea" in files]
    return {stem: sorted(groups[stem]) for stem in sorted(found, key=_natural)}


def _natural(text: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


def patients_of(source: Source, table: Path) -> dict[str, str]:
    """Read whose recording each is: path without extension → patient, in the order of the dataset's own table.

    Raises:
        EcgChatError: the table lacks a column.
    """
    found: dict[str, str] = {}
    with table.open(encoding="utf-8", errors="replace", newline="") as lines:
        reader = csv.DictReader(lines)
        wanted = (source.patients["path"], source.patients["patient"])
        missing = [name for name in wanted if name not in (reader.fieldnames or ())]
        if missing:
            raise EcgChatError(f"{table}: columns {missing} are missing. Fetch the table again")
        for number, row in enumerate(reader):
            path, patient = (row[name] or "" for name in wanted)
            # a recording without a patient counts as one of its own
            found[path.removesuffix(".hea")] = patient or f"unknown-{number}"
    return found


def choose_subset(recordings: Iterable[str], patients: Mapping[str, str] | None, n: int) -> list[str]:
    """Choose the first `n` recordings so that no patient lies half inside and half outside.

    Patients are taken in the order of their first recording, each with all of theirs; one with more recordings than
    there is room for is passed over. So the subset and the rest of the dataset share no patient.

    Args:
        recordings: paths without extension, in order.
        patients: path → patient; None where the dataset names no patients, then each recording counts as one.
        n: how many.

    Returns:
        At most `n` paths; fewer only where the dataset is smaller or no patient fits the room left.

    Raises:
        ParameterError: `n` is less than 1.
    """
    if n < 1:
        raise ParameterError(f"subset: {n}, expected at least 1 recording")
    known = list(recordings)
    if patients is None:
        return known[:n]
    there = set(known)
    groups: dict[str, list[str]] = {}
    for path in [*(path for path in patients if path in there), *(path for path in known if path not in patients)]:
        groups.setdefault(patients.get(path, path), []).append(path)
    chosen: list[str] = []
    for group in groups.values():
        if len(chosen) + len(group) <= n:
            chosen += group
        if len(chosen) == n:
            break
    return chosen
