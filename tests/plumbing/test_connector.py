"""Does a connection that is cut stay as secret as it was?"""

from __future__ import annotations

import socket
import ssl

from renderdispatch.plumbing.connector import Connection, Exchange


def test_a_cut_takes_nothing_off_the_encryption() -> None:
    """The peer sees the end, and the TLS layer stays on: what another thread sends then never leaves in the clear."""
    here, there = socket.socketpair()
    context = ssl.create_default_context()
    with there, context.wrap_socket(here, server_hostname="peer", do_handshake_on_connect=False) as encrypted:
        exchange = Exchange()
        exchange.begin(Connection(encrypted, exchange).shut_down)
        exchange.cut()
        assert there.recv(1) == b""
        assert encrypted._sslobj is not None  # type: ignore[attr-defined]
