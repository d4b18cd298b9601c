"""No network: makes this process refuse every connection that leaves the machine.

Notebooks and tests prove with it that they need none. Jupyter's own sockets (loopback) go on working.
Taught in: nowhere; this is machinery.
"""

from __future__ import annotations

import socket
from typing import Any, NoReturn


class NetworkBlockedError(OSError):
    """Something reached for the network while it was blocked."""


def _refuse(host: object) -> NoReturn:
    raise NetworkBlockedError(f"the network is blocked here (ECGCHAT_BLOCK_NETWORK=1), and '{host}' isn't this machine")


def _is_local(host: object) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    return name is None or name in ("", "localhost", "::1", "0.0.0.0") or str(name).startswith("127.")


def block_network() -> None:
    """Make connections to other machines, and looking up their names, raise `NetworkBlockedError` in this process."""
    if hasattr(socket.socket, "_ecgchat_blocked"):
        return

    def guarded(method: str) -> Any:
        original = getattr(socket.socket, method)

        def reach(self: socket.socket, *args: Any) -> Any:
            address = args[-1]  # the address comes last in each of these methods; a Unix socket's is no tuple
            if isinstance(address, tuple) and not _is_local(address[0]):
                _refuse(address[0])
            return original(self, *args)

        return reach

    lookup = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_local(host):
            _refuse(host)
        return lookup(host, *args, **kwargs)

    for method in ("connect", "connect_ex", "sendto"):
        setattr(socket.socket, method, guarded(method))
    socket.getaddrinfo = getaddrinfo
    socket.socket._ecgchat_blocked = True  # type: ignore[attr-defined]
