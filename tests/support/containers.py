"""What the tests of containers share: storage over HTTP that can stall, and a look at what processes leave."""

from __future__ import annotations

import io
import os
import threading
import wave
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from renderdispatch.messages import CallResult, Completed, Failed, ObjectUrls, Output, RenderOrder, SignedPut

RENDERERS: Final = {
    "fake": "renderdispatch.testing.renderers:FakeRenderer",
    "fake-segments": "renderdispatch.testing.renderers:FakeSegmentsRenderer",
}
SONG: Final = bytes(range(256)) * 4096  # 1 MiB
_PATIENCE_S: Final = 60.0


class Objects:
    """Objects over HTTP, write-once; requests for those in ``stalled`` come to a stand half-way."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.objects: dict[str, bytes] = {"song": SONG}
        self.stalled: set[str] = set()
        self.read: list[str] = []  # the keys that were asked for
        self.met = threading.Event()  # a stalled request came
        self.over = threading.Event()

    def urls(self, key: str) -> ObjectUrls:
        url = f"{self.root}/{key}"
        return ObjectUrls(key=key, put=SignedPut(url=url, headers={"if-none-match": "*"}), get=url)

    def order(self, **changes: Any) -> RenderOrder:
        """An order for a scene that does as its parameters say."""
        hour = datetime.now(UTC) + timedelta(hours=1)
        fields = {
            "job_id": "job-1",
            "attempt": 1,
            "token": "token-1",
            "audio_url": f"{self.root}/song",
            "audio_size": len(self.objects["song"]),
            "video": self.urls("video"),
            "result": self.urls("result"),
            "scene": "fake",
            "output": Output(width=64, height=36),
            "start_by": hour,
            "finish_by": hour,
        }
        return RenderOrder(**{**fields, **changes})

    def stall(self) -> None:
        self.met.set()
        self.over.wait(_PATIENCE_S)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Objects

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        key = self.path[1:]
        if key in self.store.stalled and body:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.store.stall()
            body = body[len(body) // 2 :]
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.store.read.append(self.path[1:])
        body = self.store.objects.get(self.path[1:])
        self._answer(404 if body is None else 200, body or b"")

    def do_PUT(self) -> None:
        key = self.path[1:]
        if key in self.store.stalled:
            self.store.stall()
        body = self.rfile.read(int(self.headers["content-length"]))
        if key in self.store.objects:
            self._answer(412)
        else:
            self.store.objects[key] = body
            self._answer(200)

    def do_POST(self) -> None:
        """Take a webhook, and say nothing."""
        self.store.stall()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what these tests are about."""


@contextmanager
def serve_objects() -> Iterator[Objects]:
    server = _Server(("127.0.0.1", 0), _Handler)
    store = Objects(f"http://127.0.0.1:{server.server_address[1]}")
    server.RequestHandlerClass = type("Handler", (_Handler,), {"store": store})
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield store
    finally:
        store.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def song(seconds: float = 1) -> bytes:
    """Return a square wave: 16 bits, mono, 8 kHz."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(array("h", (8000 if n // 20 % 2 else -8000 for n in range(round(8000 * seconds)))).tobytes())
    return buffer.getvalue()


def read(answer: str) -> Completed | Failed:
    """Return the outcome of an answer that has one."""
    outcome = CallResult.model_validate_json(answer).outcome
    assert outcome is not None
    return outcome


def marked(mark: str) -> list[int]:
    """Return the living processes, this one and zombies left out, whose environment holds the mark."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environment = (entry / "environ").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if mark.encode() in environment and state != "Z":
                found.append(int(entry.name))
    return found
