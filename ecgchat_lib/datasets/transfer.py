"""One file over HTTP, from a server that may drop, truncate, stall or lie: resumed, bounded, and never trusted.

`Transfer.download` is a downloader for `pooch`, which checks the sha256 and moves the file into place; this module only
gets the bytes. It follows no redirect to another host, and writes no more than the disk and the dataset allow.
Taught in: 02 §6.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from ecgchat_lib.errors import EcgChatError

if TYPE_CHECKING:
    import requests

CHUNK = 1 << 18
RESERVE_BYTES = 200_000_000
"""What is always left free on the disk."""

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)$")
_MAX_REDIRECTS = 5
_LOGIN = "The server asks for a login. If the dataset is credentialed, download it yourself in a browser"
_TRICKLE = 1000  # bytes within the stall time; less counts as a stall


class FetchError(EcgChatError):
    """Fetching failed, but nothing is wrong with the call: the same command goes on where this one ended."""

    exit_code = 1


class _Again(Exception):
    """This attempt failed, the next one may not."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Patience:
    """How long to try.

    Attributes:
        attempts: tries in a row without a single new byte, before a file counts as failed.
        backoff: seconds before the second try; doubled each time, up to 30.
        connect: seconds for the connection.
        stall: seconds without a noteworthy number of bytes, after which a connection counts as dead.
    """

    attempts: int = 5
    backoff: float = 0.5
    connect: float = 15.0
    stall: float = 30.0


class Transfer:
    """Gets files from one server. Safe to use from several threads; `stop` ends all of them."""

    def __init__(self, base_url: str, hosts: tuple[str, ...], max_bytes: int, patience: Patience) -> None:
        self.origin = urlsplit(base_url)
        self.hosts = {self.origin.netloc, *hosts}
        self.max_bytes = max_bytes
        self.patience = patience
        self.stop = threading.Event()
        self.received = 0  # bytes over the network; only shown, so that a lost update does no harm
        self._local = threading.local()

    def into(self, part: Path) -> Callable[[str, str, Any], None]:
        """Return a downloader for pooch that collects a file in `part`, and goes on with what is there already."""
        return partial(self.download, part)

    def download(self, part: Path, url: str, output_file: str, pooch: Any) -> None:
        """Get `url` into `part`, as often as it takes, then give it to pooch under the name `output_file`.

        Raises:
            FetchError: it can't be had; the message says why.
        """
        failures, best = 0, _size(part)
        while True:
            try:
                self._attempt(url, part)
                break
            except _Again as again:
                size = _size(part)
                failures = 0 if size > best else failures + 1
                best = max(best, size)
                if failures >= self.patience.attempts:
                    raise FetchError(f"{url}: {again} ({failures} tries). Run the same command again later") from None
                wait = max(again.wait, min(self.patience.backoff * 2**failures, 30.0))
                if self.stop.wait(wait):
                    raise FetchError(f"{url}: interrupted") from None
        os.replace(part, output_file)

    def _attempt(self, url: str, part: Path) -> None:
        """Ask once for what is missing of the file, and append it to `part`."""
        import requests
        import urllib3

        start = _size(part)
        try:
            response = self._get(url, start)
            with response:
                if response.status_code == 416:  # nothing left to send: complete, or longer than the file
                    if response.headers.get("Content-Range", "").rpartition("/")[2] != str(start):
                        part.unlink(missing_ok=True)
                        raise _Again("what was there is longer than the file")
                    return
                self._receive(response, part, self._resumes_at(response, start, part))
        except (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException) as error:
            raise _Again(f"{type(error).__name__}: {_short(error)}") from None
        except OSError as error:
            if error.errno is None or isinstance(error, ConnectionError | TimeoutError):
                raise _Again(_short(error)) from None
            raise FetchError(f"{part}: can't be written ({error.strerror}). Check the folder and the disk") from None

    def _get(self, url: str, start: int) -> requests.Response:
        """Send the request, follow redirects on the same server, and turn bad answers into errors."""
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        patience = (self.patience.connect, self.patience.stall)
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._session().get(url, headers=headers, stream=True, timeout=patience, allow_redirects=False)
            if response.is_redirect:
                target = urljoin(url, response.headers["Location"])
                response.close()
                self._check_redirect(url, target)
                url = target
                continue
            if response.status_code not in (200, 206, 416):
                with response:
                    self._refuse(url, response)
            return response
        raise FetchError(f"{url}: more than {_MAX_REDIRECTS} redirects. Check the address, or the network's login page")

    def _session(self) -> requests.Session:
        """Return this thread's session; a session isn't safe to share between threads."""
        import requests

        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
            self._local.session.headers["User-Agent"] = "ecgchat (course on ECG models; fetches public datasets)"
        return self._local.session

    def _check_redirect(self, url: str, target: str) -> None:
        parts = urlsplit(target)
        if parts.netloc not in self.hosts or parts.scheme not in ("https", self.origin.scheme):
            raise FetchError(
                f"{url}: redirected to {parts.scheme}://{parts.netloc}, which is not the dataset's server. Is there a "
                "login page on this network? If the dataset moved, name its new address with --base-url"
            )

    def _refuse(self, url: str, response: requests.Response) -> None:
        """Raise for any answer but the file: final where asking again can't help."""
        status = f"{response.status_code} {response.reason or ''}".strip()
        if response.status_code in (401, 403):
            raise FetchError(f"{url}: {status}. {_LOGIN}")
        if response.status_code == 202:
            remedy = "Download it in a browser into the dataset's folder, then run the same command again"
            raise FetchError(f"{url}: {status}: the server lets only browsers pass. {remedy}")
        if response.status_code in (408, 425, 429) or response.status_code >= 500:
            asked = response.headers.get("Retry-After", "")
            raise _Again(f"the server answers {status}", min(float(asked), 60.0) if asked.isdecimal() else 0.0)
        raise FetchError(f"{url}: {status}. Check the address and the version; a mirror must hold the same files")

    def _resumes_at(self, response: requests.Response, start: int, part: Path) -> int:
        """Return the place at which the answer's bytes belong; 0 where the server ignored the wish to resume."""
        if response.status_code == 200:
            return 0
        match = _RANGE.match(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != start or start == 0:
            part.unlink(missing_ok=True)  # what it would send can't be placed; begin anew
            raise _Again(f"a part that nobody asked for ({response.headers.get('Content-Range', 'no range')[:60]!r})")
        return start

    def _receive(self, response: requests.Response, part: Path, start: int) -> None:
        """Write the answer's bytes, watching size, disk and speed."""
        length = response.headers.get("Content-Length", "")
        announced = int(length) if length.isdecimal() else None
        self._check_room(start + (announced or 0), announced or 0, part, response.url)
        part.parent.mkdir(parents=True, exist_ok=True)
        got, seen, since = 0, 0, time.monotonic()
        with part.open("r+b" if start else "wb", buffering=0) as out:  # what came is kept, also if killed
            out.seek(start)
            out.truncate()
            # read1 hands over what has arrived; read would wait for a whole chunk and miss a connection that trickles
            while chunk := response.raw.read1(CHUNK, decode_content=False):
                out.write(chunk)
                got += len(chunk)
                self.received += len(chunk)
                if self.stop.is_set():
                    raise FetchError(f"{response.url}: interrupted")
                if announced is None or got > announced:
                    self._check_room(start + got, 0, part, response.url)
                now = time.monotonic()
                if now - since > self.patience.stall:
                    if got - seen < _TRICKLE:
                        raise _Again(f"stalled: {got - seen} bytes in {now - since:.0f} s")
                    seen, since = got, now
        if announced is not None and got < announced:
            raise _Again(f"cut off after {start + got} of {start + announced} bytes")

    def _check_room(self, total: int, coming: int, part: Path, url: str) -> None:
        """Refuse a file larger than the dataset has, or than the disk holds."""
        if total > self.max_bytes:
            raise FetchError(
                f"{url}: {total} bytes, but no file of this dataset has more than {self.max_bytes}. Refused"
            )
        free = shutil.disk_usage(_existing(part)).free
        if free - coming < RESERVE_BYTES:
            raise FetchError(f"{url}: {coming / 1e6:.0f} MB, but the disk has {free / 1e6:.0f} MB left. Make room")


def _existing(path: Path) -> Path:
    """Return the nearest folder above `path` that exists."""
    return next(folder for folder in path.absolute().parents if folder.is_dir())


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
