"""A cloud on loopback: a backend that reports by webhook alone, a server for the service, and a network in between."""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from attrs import define, field

from renderdispatch.backends.executor import Capacity, Executor, ThreadTask
from renderdispatch.messages import Completed, EventReply, Failed, RenderEvent, RenderOrder, RenderStats
from renderdispatch.protocols import BackendCall, CallState, CallStatus, Locality, OnEvent, Report
from renderdispatch.runner import InProcessRender, Pace, RunnerIO, run_order
from renderdispatch.runner.webhook import WebhookSender
from renderdispatch.service import RenderService
from renderdispatch.testing.renderers import FAKE_SCENE, FakeRenderer
from renderdispatch.web.webhook import wsgi_app
from tests.support.callbacks import Callback, Request, callback
from tests.support.webhooks import Signed

QUICK: Final = Pace(progress_s=0.05, heartbeat_s=0.5, check_in_s=0.5, final_s=3.0, backoff_s=0.03, backoff_max_s=0.2)
TRY_S: Final = 0.5


class WatchedRenderer:
    """The fake scene; notes when each job was last seen to compute."""

    def __init__(self, last_seen: dict[str, float]) -> None:
        self._last_seen = last_seen

    def render(self, order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        def watched(done: int, total: int) -> None:
            self._last_seen[order.job_id] = time.monotonic()
            report(done, total)

        return FakeRenderer().render(order, audio, output, watched)


class FarBackend:
    """Renders in threads that only the webhook joins to the service: no events, and a cancel that never arrives.

    Args:
        at_once: Renders at once; the others wait, as in a cloud's own queue.
        mute: Whether it also never says how a call ended: then the result object alone tells.
    """

    locality = Locality.WORLD
    slots = None

    def __init__(self, *, at_once: int = 8, pace: Pace = QUICK, try_s: float = TRY_S, mute: bool = False) -> None:
        self._calls = Executor(lambda: Capacity(slots=1000))
        self._room = threading.Semaphore(at_once)
        self._pace = pace
        self._try_s = try_s
        self._mute = mute
        self.last_seen: dict[str, float] = {}
        self.stops: dict[str, float] = {}
        """When the first "stop" got through to each job's run."""

    def start(self, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
        order = order.model_copy(update={"local": True})  # its URLs are this process's
        callback = order.callback
        assert callback is not None

        def body(call: BackendCall) -> Completed | Failed:
            with self._room, WebhookSender(order, callback, try_s=self._try_s) as webhook:

                def send(event: RenderEvent) -> EventReply:
                    reply = webhook(event)
                    if reply.stop:
                        self.stops.setdefault(order.job_id, time.monotonic())
                    return reply

                render = InProcessRender({FAKE_SCENE: WatchedRenderer(self.last_seen)})
                return run_order(order, io=RunnerIO(send=send, render=render, call_id=call.id, pace=self._pace))

        return self._calls.start(ThreadTask(body, lambda: None))

    def poll(self, call: BackendCall) -> CallState:
        state = self._calls.poll(call) or CallState(status=CallStatus.MISSING)
        return CallState(status=CallStatus.RUNNING) if self._mute else state

    def computes(self, call_id: str) -> bool:
        """Say whether a call runs, whatever `poll` says."""
        state = self._calls.poll(BackendCall(call_id))
        return state is not None and state.status is CallStatus.RUNNING

    def cancel(self, call: BackendCall) -> None:
        """Lose the cancel on its way."""

    def close(self) -> None:
        self._calls.stop()


# --- the service's server -------------------------------------------------------------------------


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def receiving(service: RenderService, port: int = 0) -> Iterator[int]:
    """Serve the service's webhooks over HTTP; give the port."""
    with make_server("127.0.0.1", port, wsgi_app(service), server_class=_Server, handler_class=_Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


# --- the network ----------------------------------------------------------------------------------


@define
class Network:
    """A proxy that mishandles requests, by chance: it drops, delays, doubles and reorders them.

    Args:
        upstream: The port of the service's server.
        trouble: The share of requests that do not simply pass.
    """

    upstream: int
    rng: random.Random
    trouble: float = 0.5
    done: Counter[str] = field(factory=Counter)
    late: list[threading.Timer] = field(factory=list)
    _lock: threading.Lock = field(factory=threading.Lock)

    def __call__(self, connection: socket.socket, request: Request) -> None:
        """Treat one request; a `callback_support.Answer`."""
        with self._lock:
            how = "pass"
            if self.rng.random() < self.trouble:
                how = self.rng.choice(
                    ["drop", "lose the answer", "delay", "delay long", "double", "reorder", "double late"]
                )
            wait_s = self.rng.uniform(0.05, 0.3)
            self.done[how] += 1
        match how:
            case "pass":
                self._answer(connection, request)
            case "drop":
                connection.shutdown(socket.SHUT_RDWR)
            case "lose the answer":
                self._forward(request)
                connection.shutdown(socket.SHUT_RDWR)
            case "delay":
                time.sleep(wait_s)
                self._answer(connection, request)
            case "delay long":  # until after the sender gave up
                time.sleep(TRY_S + wait_s)
                self._answer(connection, request)
            case "double":
                self._forward(request)
                self._answer(connection, request)
            case "reorder":  # the sender hears nothing; the request arrives after those that come next
                self._later(request, 2 * wait_s)
                connection.shutdown(socket.SHUT_RDWR)
            case "double late":
                self._answer(connection, request)
                self._later(request, 4 * wait_s)

    def settle(self) -> None:
        """Wait until nothing is under way any more."""
        while self.late:
            self.late.pop().join()

    def _later(self, request: Request, wait_s: float) -> None:
        timer = threading.Timer(wait_s, self._forward, [request])
        timer.daemon = True
        timer.start()
        self.late.append(timer)

    def _answer(self, connection: socket.socket, request: Request) -> None:
        answer = self._forward(request)
        if answer is None:
            connection.shutdown(socket.SHUT_RDWR)
            return
        status, body = answer
        connection.sendall(f"HTTP/1.1 {status} x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)

    def _forward(self, request: Request) -> tuple[int, bytes] | None:
        signed: Signed = (
            {n: v for n, v in request.headers.items() if n.startswith(("webhook-", "content-"))},
            request.body,
        )
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=30)
        with suppress(OSError, http.client.HTTPException):
            try:
                connection.request("POST", "/webhooks", signed[1], signed[0])
                response = connection.getresponse()
                return response.status, response.read()
            finally:
                connection.close()
        return None


@contextmanager
def network(upstream: int, rng: random.Random, *, trouble: float = 0.5) -> Iterator[tuple[Network, Callback]]:
    """Put a proxy before ``upstream``; give it, and the callback whose ``url`` leads through it."""
    through = Network(upstream, rng, trouble)
    with callback(through) as seen:
        yield through, seen
        through.settle()
