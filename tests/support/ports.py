"""Ports for servers that a test starts later, or in another process."""

from __future__ import annotations

import socket
import sys
from typing import Self


class ReservedPort:
    """A port that no other process is given. Connections to it are refused until the server that it is for listens.

    A socket that is bound and does not listen holds the port. A server that sets SO_REUSEADDR, as asyncio, gunicorn and
    the standard library's servers do, may listen there all the same. Only Linux allows this; elsewhere the port is free,
    and will hardly be taken by another process in the meantime.
    """

    def __init__(self) -> None:
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind(("127.0.0.1", 0))
        self.number: int = self._held.getsockname()[1]
        if sys.platform != "linux":
            self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give it back. A second call does nothing."""
        self._held.close()


_kept: list[ReservedPort] = []


def free_port() -> int:
    """Return a port that is reserved for this process until it ends."""
    _kept.append(ReservedPort())
    return _kept[-1].number
