"""Replies of a teacher on disk, one JSON line each, so that a build that was killed doesn't ask (or pay) twice.

Each line is flushed to the disk before the next draft is asked. A last line that was cut off is dropped.
Taught in: 10 §6.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.instruct.teachers import Reply

if TYPE_CHECKING:
    from types import TracebackType


class Journal:
    """Replies by the digest of what was asked.

    Args:
        path: the file; made if missing.

    Raises:
        EcgChatError: the file holds something else, or can't be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._replies: dict[str, Reply] = {}
        self._lock = threading.Lock()
        try:
            end = self._read()
            self._file = path.open("ab")
            self._file.truncate(end)
        except OSError as error:
            raise EcgChatError(
                f"{path}: can't be written ({error.strerror}). Choose another place with --out"
            ) from None

    def _read(self) -> int:
        """Read what is there; return where its last whole line ends."""
        if not self.path.is_file():
            return 0
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    break
                self._keep(line, number)
                end += len(line)
        return end

    def _keep(self, line: bytes, number: int) -> None:
        try:
            row = json.loads(line)
            tokens = (int(row["tokens"][0]), int(row["tokens"][1]))
            answers = tuple(str(one) for one in row["answers"])
            if min(tokens) < 0:
                raise ValueError(tokens)
            self._replies[str(row["asked"])] = Reply(answers, str(row["problem"]), tokens)
        except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError):
            raise EcgChatError(f"{self.path}, line {number + 1}: no reply of a teacher. Move the file away") from None

    @property
    def tokens(self) -> tuple[int, int]:
        """Return the tokens that all replies cost, read and written."""
        kept = list(self._replies.values())
        return sum(one.tokens[0] for one in kept), sum(one.tokens[1] for one in kept)

    def get(self, asked: str) -> Reply | None:
        """Return the reply to a draft's digest, or None."""
        return self._replies.get(asked)

    def add(self, asked: str, reply: Reply) -> None:
        """Keep a reply, on the disk before this returns."""
        row = {"asked": asked, "answers": list(reply.answers), "problem": reply.problem, "tokens": list(reply.tokens)}
        with self._lock:
            self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            self._replies[asked] = reply

    def __enter__(self) -> Journal:
        """Return the journal itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._file.close()
