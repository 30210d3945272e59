"""How do tests receive the GPU side's webhooks over real HTTP, and lose them?

A small server on loopback hands each webhook to a service, keeps what came, and fails on request.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, Literal, Protocol

from attrs import define, field, frozen

from renderdispatch.engine.inbox import WebhookResponse

WebhookFault = Literal["refuse", "drop", "lose-answer"]
"""Answer 503; break off without a word; take the webhook, then break off without a word."""

_AWAY: Final = WebhookResponse(status=503, body=b'{"error":{"code":"webhook.away"}}', headers={})


class TakesWebhooks(Protocol):
    """What webhooks are handed to: a `RenderService`, or anything else that has its ``handle_webhook``."""

    def handle_webhook(self, headers: list[tuple[str, str]], body: bytes, /) -> WebhookResponse: ...


@frozen
class Received:
    """One webhook that came.

    Args:
        headers: As they were sent; they hold a signature.
        body: The raw bytes.
        status: What was answered, 0 when the connection was broken off.
    """

    headers: list[tuple[str, str]] = field(repr=False)
    body: bytes
    status: int


@define(eq=False)
class WebhookServer:
    """A running server; get one from `webhook_server`.

    Args:
        url: Where it listens, what ``webhook_url`` of a service wants.
        handler: What webhooks are handed to; None answers 503, so that senders come again.
        fault: What happens to each webhook instead, None for nothing; set it at any time.
    """

    url: str
    handler: TakesWebhooks | None = None
    fault: WebhookFault | None = None
    _received: list[Received] = field(factory=list, init=False)
    _times: int | None = field(default=None, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def serve(self, handler: TakesWebhooks) -> None:
        """Hand webhooks to this service from now on."""
        self.handler = handler

    def fail(self, fault: WebhookFault, times: int | None = None) -> None:
        """Let the next ``times`` webhooks fail, all until `recover` when it is None."""
        with self._lock:
            self.fault, self._times = fault, times

    def recover(self) -> None:
        """Fail no more."""
        with self._lock:
            self.fault, self._times = None, None

    @property
    def received(self) -> list[Received]:
        """What came so far, in the order in which it was answered."""
        with self._lock:
            return list(self._received)

    def _next_fault(self) -> WebhookFault | None:
        with self._lock:
            fault = self.fault
            if fault is not None and self._times is not None:
                self._times -= 1
                if self._times <= 0:
                    self.fault, self._times = None, None
            return fault

    def _answer(self, headers: list[tuple[str, str]], body: bytes) -> WebhookResponse | None:
        """Return what to answer, None to break off."""
        fault = self._next_fault()
        response: WebhookResponse | None = _AWAY
        if fault == "drop":
            response = None
        elif fault != "refuse" and self.handler is not None:
            response = self.handler.handle_webhook(headers, body)
            response = None if fault == "lose-answer" else response
        with self._lock:
            self._received.append(Received(headers, body, response.status if response is not None else 0))
        return response


@contextmanager
def webhook_server(handler: TakesWebhooks | None = None) -> Iterator[WebhookServer]:
    """Run a webhook server on a free port of this machine for as long as the block runs.

    Args:
        handler: What webhooks are handed to; `WebhookServer.serve` sets it later, where the service wants to know
            the URL first.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            response = running._answer(list(self.headers.items()), body)  # noqa: SLF001 - its own half
            if response is None:
                self.close_connection = True
                return
            self.send_response(response.status)
            for name, value in response.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(response.body)))
            self.end_headers()
            self.wfile.write(response.body)

        def log_message(self, *_: object) -> None:
            """Say nothing: what came is kept."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            """A sender went away."""

    server = Server(("127.0.0.1", 0), Handler)
    running = WebhookServer(f"http://127.0.0.1:{server.server_address[1]}/webhooks/", handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="renderdispatch-webhooks", daemon=True)
    thread.start()
    try:
        yield running
    finally:
        with contextlib.suppress(OSError):
            server.shutdown()
        thread.join()
        server.server_close()
