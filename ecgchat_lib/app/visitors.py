"""What a visitor of the page has: uploads, recordings, a conversation; in memory and in a folder of their own.

All folders lie in one temporary folder that only its owner may enter. A visitor's are removed when the visitor leaves,
and all of them at the end of the process. An upload's name never becomes a path: it is kept only where it is made of
harmless letters, which a WFDB header needs to find its signal file. Taught in: 13 §7
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ecgchat_lib.errors import EcgChatError, RecordError, printable

if TYPE_CHECKING:
    from ecgchat_lib.app.view import Seen, Turn
    from ecgchat_lib.chat.session import ChatSession
    from ecgchat_lib.ecg.recording import Recording

MOST_BYTES = 20 * 2**20  # of one upload
MOST_FILES = 4  # of one recording: a header and its signal files
MOST_VISITORS = 50  # at the same time; each has recordings and a conversation in memory
MOST_TOGETHER = 1 << 30  # bytes of all that the server keeps of all visitors' uploads; beyond it none is taken
LONGEST_SECONDS = 600.0  # of a recording
WFDB = (".hea", ".dat", ".mat")
UNSAID = (".csv", ".tsv", ".npy", ".h5", ".hdf5")  # these may not say rate, leads or unit
KINDS = (*WFDB, *UNSAID, ".edf", ".bdf", ".dcm", ".dicom")
PREFIX = "ecgchat-app-"  # of the temporary folder
LOCK = "lock"  # in it: held as long as the process lives
_HARMLESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}\.(?:hea|dat|mat)", re.ASCII)


@dataclass
class Visitor:
    """One tab of a browser.

    Attributes:
        key: what the page's server calls the tab.
        uploads: private folder of the uploads; nothing in it is ever served.
        reports: folder of the reports made for this visitor; its name can't be guessed.
        files: file name to the visitor's own copy, for the recording that is being given.
        cached: the server's copies of the uploads.
        seen: the recordings shown, the earliest first.
        session: the conversation with the model.
        turns: what was asked and answered.
        gone: whether the visitor left; what is still being made for them is thrown away.
    """

    key: str
    uploads: Path
    reports: Path
    files: dict[str, Path] = field(default_factory=dict)
    cached: set[Path] = field(default_factory=set)
    seen: list[Seen] = field(default_factory=list)
    session: ChatSession | None = None
    turns: list[Turn] = field(default_factory=list)
    done: bool = False  # whether `files` were read, so that the next upload begins anew
    gone: bool = False

    def stay(self) -> None:
        """Raise EcgChatError if the visitor left."""
        if self.gone:
            raise EcgChatError("the page was closed meanwhile. Load it again")

    def forget_files(self) -> None:
        """Remove the visitor's uploads."""
        for path in self.files.values():
            path.unlink(missing_ok=True)
        self.files.clear()
        self.done = False


class Visitors:
    """All visitors, and the temporary folder in which theirs lie."""

    def __init__(self) -> None:
        """Make the temporary folder, which only its owner may enter; remove those that a killed process left."""
        sweep(Path(tempfile.gettempdir()))
        self._folder = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
        self.root = Path(self._folder.name).resolve()
        self._held = _hold(self.root / "new")
        if self._held is not None:
            (self.root / "new").rename(self.root / LOCK)  # nobody sees it before it is held
        self.cache = self.root / "gradio"  # where Gradio puts uploads; of it only `reports` is served
        self.reports = self.cache / "reports"
        self.private = self.root / "visitors"
        for folder in (self.cache, self.reports, self.private):
            folder.mkdir(mode=0o700)
        self._here: dict[str, Visitor] = {}
        self._lock = threading.Lock()

    def enter(self, key: str | None) -> Visitor:
        """Return the visitor of a tab, a new one if it is new.

        Raises:
            EcgChatError: the tab has no name, or there are too many visitors.
        """
        if not key:
            raise EcgChatError("the page lost its session, expected an open tab. Load the page again")
        with self._lock:
            if key not in self._here:
                if len(self._here) >= MOST_VISITORS:
                    raise EcgChatError(f"{MOST_VISITORS} visitors are here already. Close another tab, or try later")
                token = secrets.token_urlsafe(24)
                visitor = Visitor(key, self.private / token, self.reports / token)
                visitor.uploads.mkdir(mode=0o700)
                visitor.reports.mkdir(mode=0o700)
                self._here[key] = visitor
            return self._here[key]

    def find(self, key: str | None) -> Visitor | None:
        """Return the visitor of a tab, or None if nothing was given there yet."""
        with self._lock:
            return self._here.get(key or "")

    def hand_over(self, visitor: Visitor, made: Path) -> list[Path]:
        """Put a report's files where the visitor can fetch them, instead of the last one's.

        Args:
            visitor: who asked.
            made: a folder of finished files; they are copied.

        Raises:
            EcgChatError: the visitor left meanwhile, and nothing may be left behind.
        """
        with self._lock:  # a visitor who leaves now waits for this, and then takes the files along
            visitor.stay()
            shutil.rmtree(visitor.reports, ignore_errors=True)
            visitor.reports.mkdir(mode=0o700)
            return [Path(shutil.copyfile(path, visitor.reports / path.name)) for path in sorted(made.iterdir())]

    def crowded(self) -> bool:
        """Whether there is no room for another recording's upload."""
        total = 0
        for path in self.cache.rglob("*"):
            try:
                total += path.lstat().st_size
            except OSError:  # removed meanwhile
                continue
        return total > MOST_TOGETHER - MOST_FILES * MOST_BYTES

    def leave(self, key: str | None) -> None:
        """Remove everything that a visitor brought or got."""
        with self._lock:
            visitor = self._here.pop(key or "", None)
            others = {path for other in self._here.values() for path in other.cached}
            if visitor is None:
                return
            visitor.gone = True
        for path in visitor.cached - others:  # two visitors with the same file share the server's copy
            shutil.rmtree(path.parent, ignore_errors=True)
        for folder in (visitor.uploads, visitor.reports):
            shutil.rmtree(folder, ignore_errors=True)
        visitor.files.clear()
        visitor.seen.clear()
        visitor.turns.clear()
        visitor.session = None

    def close(self) -> None:
        """Let all visitors leave, and remove the temporary folder."""
        for key in list(self._here):
            self.leave(key)
        self._folder.cleanup()
        if self._held is not None:
            self._held.close()

    def receive(self, visitor: Visitor, uploads: Sequence[str | Path]) -> None:
        """Take uploads over into the visitor's own folder.

        A signal file is added to the header that was given before, and the other way round; any other file, or one
        that comes after a recording was read, begins a new recording.

        Args:
            visitor: whose they are.
            uploads: Gradio's copies.

        Raises:
            EcgChatError: too many, too large, of an unknown kind, empty, or not from this server's uploads.
        """
        visitor.cached.update(path for path in map(Path, uploads) if self._is_upload(path))  # refused ones must go, too
        paths = [self._checked(Path(upload)) for upload in uploads]
        together = all(path.suffix.lower() in WFDB for path in (*paths, *map(Path, visitor.files)))
        if visitor.done or not together:
            visitor.forget_files()
        names = {path.name for path in paths} | set(visitor.files)
        if len(names) > MOST_FILES:
            visitor.forget_files()
            raise EcgChatError(f"{len(names)} files, expected one recording of at most {MOST_FILES}. Give fewer files")
        for path in paths:
            harmless = _HARMLESS.fullmatch(path.name)
            target = visitor.uploads / (path.name if harmless else f"{secrets.token_hex(8)}{path.suffix.lower()}")
            try:
                shutil.copyfile(path, target)
            except OSError:
                raise EcgChatError(f"{_short(path)}: the upload was lost. Give the file again") from None
            target.chmod(0o600)
            visitor.files[path.name] = target

    def _is_upload(self, path: Path) -> bool:
        """Whether it is a file in a folder of its own, as Gradio keeps uploads."""
        inside = path.resolve().parent.parent == self.cache and path.resolve().parent != self.reports
        return inside and ".." not in path.parts and not path.is_symlink() and path.is_file()

    def _checked(self, path: Path) -> Path:
        """Return an upload's path if it can be taken."""
        if not self._is_upload(path):
            raise EcgChatError(f"{_short(path)}: the upload was lost. Give the file again")
        return check_upload(path)


def sweep(folder: Path) -> None:
    """Remove what killed pages of the same user left in a folder: theirs whose lock nobody holds.

    Args:
        folder: where temporary folders are made.
    """
    if not hasattr(os, "getuid"):  # without such locks, nobody knows which are in use
        return
    for found in folder.glob(f"{PREFIX}*"):
        try:
            about = found.lstat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or not (found / LOCK).is_file():
                continue
            held = _hold(found / LOCK)
        except OSError:  # somebody else removed it meanwhile
            continue
        if held is not None:
            with held:
                shutil.rmtree(found, ignore_errors=True)


def _hold(path: Path) -> IO[str] | None:
    """Return a file with a lock that goes when the process does; None if another has it, or there are no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def check_upload(path: Path) -> Path:
    """Return the path of an upload whose kind and size are right.

    Raises:
        EcgChatError: what was found, and what is taken.
    """
    if path.suffix.lower() not in KINDS:
        kinds = ", ".join(KINDS)
        raise EcgChatError(f"{_short(path)}: not a kind of file that is read here. Expected one of {kinds}")
    size = path.stat().st_size
    if size == 0:
        raise EcgChatError(f"{_short(path)}: an empty file. Get the file again")
    if size > MOST_BYTES:
        raise EcgChatError(
            f"{_short(path)}: {size / 2**20:.1f} MB, expected at most {MOST_BYTES / 2**20:.0f} MB. Cut it"
        )
    return path


def read_upload(
    visitor: Visitor, *, fs: float | None = None, leads: str | None = None, unit: str | None = None
) -> Recording:
    """Read the recording that a visitor's files are.

    Args:
        visitor: whose files.
        fs: samples per second, where the file doesn't say.
        leads: names with commas, where the file doesn't say.
        unit: V, mV, uV or nV, where the file doesn't say.

    Raises:
        EcgChatError: the files aren't one recording, or can't be read; no path of this machine is in the message.
    """
    from ecgchat_lib.ecg.formats import read_any

    path = _main_file(visitor.files)
    given = {"fs": fs, "leads": [name.strip() for name in leads.split(",")] if leads else None, "unit": unit}
    wanted = given if visitor.files[path].suffix in UNSAID else {}  # the fields may be left from another file
    try:
        recording = read_any(visitor.files[path], **wanted)  # type: ignore[arg-type]
    except EcgChatError as error:
        raise EcgChatError(told(error, visitor)) from None
    if recording.seconds > LONGEST_SECONDS:
        limit = f"{LONGEST_SECONDS / 60:.0f} minutes"
        raise EcgChatError(f"{_short(path)}: {recording.seconds / 60:.0f} minutes, expected at most {limit}. Cut it")
    return replace(recording, name=_short(Path(path).stem), path=None)


def _main_file(files: dict[str, Path]) -> str:
    """Return the name of the file to read: the header, or the only file.

    Raises:
        EcgChatError: there is none, or more than one.
    """
    if not files:
        raise EcgChatError("no file yet. Give a recording, or choose one of the samples")
    headers = [name for name, path in files.items() if path.suffix == ".hea"]
    signals = [name for name, path in files.items() if path.suffix in (".dat", ".mat")]
    others = [name for name in files if name not in headers and name not in signals]
    if len(headers) > 1 or len(others) > 1 or (others and (headers or signals)):
        raise EcgChatError(f"{len(files)} files that aren't one recording. Give one recording at a time")
    if signals and not headers:
        raise EcgChatError(f"{_short(signals[0])}: its header (.hea) is missing. Give the header too")
    if headers and not signals:
        raise EcgChatError(f"{_short(headers[0])}: its signal file (.dat or .mat) is missing. Give that file too")
    return (headers or others)[0]


def told(error: Exception, visitor: Visitor | None = None) -> str:
    """Return an error as one line that says nothing about this machine's folders."""
    text = str(error)
    if isinstance(error, RecordError):
        name = Path(error.path).name
        known = {path.name: original for original, path in (visitor.files if visitor else {}).items()}
        text = f"{known.get(name, name)}: {error.found}. {error.remedy}"
    if visitor is not None:
        text = text.replace(f"{visitor.uploads}/", "").replace(f"{visitor.reports}/", "")
    return printable(" ".join(text.split()))[:500]


def _short(name: str | Path) -> str:
    """Return a file's name without its folder, at most 80 characters of it."""
    text = printable(Path(name).name)
    return text if len(text) <= 80 else f"{text[:79]}…"
