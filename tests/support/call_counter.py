"""A far machine that many processes share, and that counts what runs on it.

`CallCounter` is a server on loopback. A worker says ``start TOKEN JOB BACKEND TENANT VIDEO RESULT``; the call then
computes for a moment, in the server, whatever becomes of the worker. It stores the video and the result, and tells the
worker ``ended TOKEN`` if that still lives. ``poll TOKEN`` answers ``running`` or ``ended``. `CountedBackend` is the
worker's side.
"""

from __future__ import annotations

import heapq
import json
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any, Final

from attrs import define, field, frozen

from renderdispatch.messages import CheckedIn, Completed, RenderOrder
from renderdispatch.protocols import BackendCall, CallState, CallStatus, Locality, OnEvent, StorageAdapter
from renderdispatch.testing.builders import make_artifact

_VIDEO: Final = b"a video of nothing"


@frozen
class Started:
    """A call that was started."""

    token: str
    job: str
    backend: str
    tenant: str


@define(eq=False)
class CallCounter:
    """Serves the calls of all processes.

    Args:
        storage: Where calls store what they deliver.
        call_s: How long a call computes.
    """

    storage: StorageAdapter
    call_s: float
    started: list[Started] = field(factory=list)
    running: dict[str, Started] = field(factory=dict)
    most: Counter[tuple[str, ...]] = field(factory=Counter)
    """The most that ever ran at once: by backend, by tenant, and by both."""

    _lock: threading.Condition = field(factory=threading.Condition)
    _ends: list[tuple[float, int, dict[str, str], socket.socket]] = field(factory=list)
    _server: socket.socket = field(factory=lambda: socket.create_server(("127.0.0.1", 0), backlog=64))
    _closed: bool = False

    def __attrs_post_init__(self) -> None:
        threading.Thread(target=self._accept, daemon=True).start()
        threading.Thread(target=self._compute, daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.getsockname()[1])

    def close(self) -> None:
        """End the server."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection, connection.makefile("r") as lines:
            for line in lines:
                asked: dict[str, str] = json.loads(line)
                reply = self._start(asked, connection) if asked["do"] == "start" else self._state(asked["token"])
                connection.sendall(f"{json.dumps({'reply': reply})}\n".encode())

    def _start(self, asked: dict[str, str], connection: socket.socket) -> str:
        call = Started(asked["token"], asked["job"], asked["backend"], asked["tenant"])
        with self._lock:
            self.started.append(call)
            self.running[call.token] = call
            for key in ((call.backend,), ("", call.tenant), (call.backend, call.tenant)):
                self.most[key] = max(self.most[key], self._count(key))
            heapq.heappush(self._ends, (time.monotonic() + self.call_s, len(self.started), asked, connection))
            self._lock.notify_all()
        return "started"

    def _count(self, key: tuple[str, ...]) -> int:
        def counts(call: Started) -> bool:
            return key in {(call.backend,), ("", call.tenant), (call.backend, call.tenant)}

        return sum(map(counts, self.running.values()))

    def _state(self, token: str) -> str:
        with self._lock:
            return "running" if token in self.running else "ended"

    def _compute(self) -> None:
        while (ended := self._next()) is not None:
            asked, connection = ended
            self.storage.put(asked["video"], _VIDEO)
            self.storage.put(asked["result"], completed(asked).model_dump_json().encode())
            with self._lock:
                del self.running[asked["token"]]
            with suppress(OSError):  # the worker was killed
                connection.sendall(f"{json.dumps({'ended': asked})}\n".encode())

    def _next(self) -> tuple[dict[str, str], socket.socket] | None:
        with self._lock:
            while not self._closed:
                wait_s = self._ends[0][0] - time.monotonic() if self._ends else None
                if wait_s is not None and wait_s <= 0:
                    return heapq.heappop(self._ends)[2:]
                self._lock.wait(wait_s)
        return None


def _common(asked: dict[str, str], kind: str) -> dict[str, Any]:
    run = f"run-{asked['token']}"
    return {"event_id": f"{kind}-{run}", "job_id": asked["job"], "token": asked["token"], "run_id": run}


def completed(asked: dict[str, str]) -> Completed:
    """Return how a call ended."""
    return Completed(
        **_common(asked, "completed"), artifact=make_artifact(key=asked["video"], bytes=len(_VIDEO), etag=None)
    )


class CountedBackend:
    """A worker's way to the machine. What the machine tells reaches the worker as if by its webhook.

    Args:
        port: The counter's.
        name: What the machine calls this backend.
    """

    locality = Locality.WORLD
    slots = None

    def __init__(self, port: int, name: str) -> None:
        self._name = name
        self._on_event: dict[str, OnEvent] = {}
        self._connection = socket.create_connection(("127.0.0.1", port))
        self._lock = threading.Lock()
        self._replies: list[str] = []
        self._came = threading.Semaphore(0)
        threading.Thread(target=self._read, daemon=True).start()

    def start(self, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
        """Start a call."""
        tenant = order.video.key.split("/")[1]
        self._on_event[order.token] = on_event
        self._ask(
            do="start",
            token=order.token,
            job=order.job_id,
            backend=self._name,
            tenant=tenant,
            video=order.video.key,
            result=order.result.key,
        )
        return BackendCall(order.token)

    def poll(self, call: BackendCall) -> CallState:
        """Return whether a call runs. How it ended, storage tells."""
        running = self._ask(do="poll", token=call.id) == "running"
        return CallState(status=CallStatus.RUNNING if running else CallStatus.ENDED)

    def find(self, *, job_id: str, token: str) -> BackendCall | None:
        """Return the call of an order; the token is its id, whether it was started or not."""
        return BackendCall(token)

    def cancel(self, call: BackendCall) -> None:
        """Do nothing: calls are short."""

    def close(self) -> None:
        """Go away."""
        self._connection.close()

    def _ask(self, **asked: str) -> str:
        with self._lock:
            self._connection.sendall(f"{json.dumps(asked)}\n".encode())
            self._came.acquire()
            return self._replies.pop()

    def _read(self) -> None:
        with suppress(OSError), self._connection.makefile("r") as lines:
            for line in lines:
                told = json.loads(line)
                if "reply" in told:
                    self._replies.append(told["reply"])
                    self._came.release()
                else:
                    threading.Thread(target=self._end, args=(told["ended"],), daemon=True).start()

    def _end(self, asked: dict[str, str]) -> None:
        on_event = self._on_event.pop(asked["token"])
        on_event(CheckedIn(**_common(asked, "in"), call_id=asked["token"]))
        on_event(completed(asked))
