"""How does the sender fare with a server that sends headers and body apart, without ``TCP_NODELAY``?"""

from __future__ import annotations

import socket
import sys
import time

import pytest

from renderdispatch.messages import Callback
from renderdispatch.runner.webhook import WebhookSender
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.testing.renderers import make_order
from renderdispatch.webhooks import AttemptKeys
from tests.support.callbacks import Request, callback
from tests.support.webhooks import SECRET, Run


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be told to acknowledge at once")
def test_the_headers_of_a_response_are_acknowledged_at_once() -> None:
    """The server's kernel holds the body back until the headers are acknowledged; the sender does not delay that.

    Of twenty requests on a warm connection the fastest counts: each of them would take the 40 ms.
    """
    order = make_order(MemoryStorage())
    run = Run(order.job_id, order.attempt, order.token)
    key = AttemptKeys(SECRET).secret(job_id=order.job_id, attempt=order.attempt)

    def respond(connection: socket.socket, _request: Request) -> None:
        assert not connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
        connection.send(b"{}")

    seconds = []
    with callback(respond) as seen, WebhookSender(order, Callback(url=seen.url, key=key)) as send:
        for _ in range(40):
            began = time.monotonic()
            send(run.progress(0.5))
            seconds.append(time.monotonic() - began)
    assert min(seconds[20:]) < 0.03
