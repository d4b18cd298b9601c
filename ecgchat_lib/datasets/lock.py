"""A lock on a folder, so that two commands don't write into it at once; it goes when the process does, however it ends.

Taught in: nowhere; this is machinery.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ecgchat_lib.errors import EcgChatError


@contextmanager
def locked(folder: Path, file: str, remedy: str) -> Iterator[None]:
    """Hold a lock on `folder` by its file `file`; both are made if missing.

    Args:
        folder: what is locked.
        file: name of the lock's file inside it, in a folder of its own.
        remedy: what to do if the folder can't be written.

    Raises:
        EcgChatError: another process holds it, or the folder can't be written.
    """
    path = folder / file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("a")
    except OSError as error:
        raise EcgChatError(f"{folder}: can't be written ({error.strerror}). {remedy}") from None
    with lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows: no advisory locks; two commands at once are the user's to avoid
            pass
        except BlockingIOError:
            raise EcgChatError(f"{folder}: another command is at work here. Wait for it") from None
        yield
