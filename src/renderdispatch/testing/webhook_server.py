"""How do tests receive the GPU side's webhooks over real HTTP, and lose them?

A small server on loopback passes each webhook to a service, records it, and fails on request.
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
"""Answer 503; drop the connection; or take the webhook, and then drop the connection."""

_AWAY: Final = WebhookResponse(status=503, body=b'{"error":{"code":"webhook.away"}}', headers={})


class TakesWebhooks(Protocol):
    """Takes webhooks: a `RenderService`, or any object that has its ``handle_webhook``."""

    def handle_webhook(self, headers: list[tuple[str, str]], body: bytes, /) -> WebhookResponse:
        """Take a webhook and return the response."""


@frozen
class Received:
    """One webhook that arrived.

    Args:
        headers: As they were sent, with the signature.
        body: The raw bytes.
        status: The status of the response; 0 if the connection was dropped.
    """

    headers: list[tuple[str, str]] = field(repr=False)
    body: bytes
    status: int


@define(eq=False)
class WebhookServer:
    """A running server; get one from `webhook_server`.

    Args:
        url: The URL of the server, for ``webhook_url`` of a service.
        handler: Takes the webhooks. Without one the server answers 503, so that senders try again.
        fault: What happens to each webhook instead. Set it at any time; None is no fault.
    """

    url: str
    handler: TakesWebhooks | None = None
    fault: WebhookFault | None = None
    _received: list[Received] = field(factory=list, init=False)
    _times: int | None = field(default=None, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def serve(self, handler: TakesWebhooks) -> None:
        """Pass webhooks to this service from now on."""
        self.handler = handler

    def fail(self, fault: WebhookFault, times: int | None = None) -> None:
        """Let the next ``times`` webhooks fail; None is all of them until `recover`."""
        with self._lock:
            self.fault, self._times = fault, times

    def recover(self) -> None:
        """End the fault."""
        with self._lock:
            self.fault, self._times = None, None

    @property
    def received(self) -> list[Received]:
        """The webhooks that arrived so far, in the order in which they were answered."""
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

    def _respond(self, headers: list[tuple[str, str]], body: bytes) -> WebhookResponse | None:
        """Return the response; None to drop the connection."""
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
    """Run a webhook server on a free port of this machine until the block ends.

    Args:
        handler: Takes the webhooks. If the service needs the URL first, set it later with `WebhookServer.serve`.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            response = running._respond(list(self.headers.items()), body)  # noqa: SLF001 - its own half
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
            """Log nothing: the webhooks are recorded."""

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
