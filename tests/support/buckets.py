"""A small HTTP storage that misbehaves as a test says."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from renderdispatch.messages import ObjectUrls, RenderOrder, SignedPut
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.testing import make_order

SIGNATURE = "X-Signature=do-not-tell"
SONG = bytes(range(256)) * 4096  # 1 MiB


class Bucket:
    """What a small HTTP storage holds, and how it misbehaves."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.objects: dict[str, bytes] = {}
        self.headers: list[dict[str, str]] = []
        self.statuses: list[int] = []  # answered first, one after the other
        self.break_after: list[int] = []  # bytes of the next answers, after which the connection breaks
        self.forget_first_answer = False
        self.zip = False
        self.slow_s = 0.0
        self.trickling_until = 0.0  # answers come a header line at a time, and do not end before

    def url(self, key: str) -> str:
        return f"{self.root}/{key}?{SIGNATURE}"

    def put_url(self, key: str) -> SignedPut:
        return SignedPut(url=self.url(key), headers={"Content-Type": "video/mp4", "if-none-match": "*"})

    def urls(self, key: str) -> ObjectUrls:
        return ObjectUrls(key=key, put=self.put_url(key), get=self.url(key))

    def order(self, **changes: Any) -> RenderOrder:
        """An order that came over the network."""
        self.objects["song"] = SONG
        fields = {"audio_url": self.url("song"), "audio_size": len(SONG), "local": False}
        return make_order(
            MemoryStorage(), **{**fields, "video": self.urls("video"), "result": self.urls("result"), **changes}
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        while time.monotonic() < self.bucket.trickling_until:
            self.send_header("X-Wait", "a moment")
            self.flush_headers()
            time.sleep(0.05)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        bucket = self.bucket
        if bucket.break_after:
            self.wfile.write(body[: bucket.break_after.pop(0)])
            self.close_connection = True
            return
        for start in range(0, len(body), 65536):
            self.wfile.write(body[start : start + 65536])
            time.sleep(bucket.slow_s)

    def _misbehaves(self) -> bool:
        self.bucket.headers.append({name.lower(): value for name, value in self.headers.items()})
        if self.bucket.statuses:
            self._answer(self.bucket.statuses.pop(0), b"<Error>" + self.path.encode() + b"</Error>")
            self.close_connection = True
            return True
        return False

    def do_GET(self) -> None:
        if self._misbehaves():
            return
        body = self.bucket.objects.get(self.path[1:].partition("?")[0])
        if body is None:
            self._answer(404)
            return
        if self.bucket.zip and "gzip" in self.headers.get("accept-encoding", ""):
            self._answer(200, gzip.compress(body), Content_Encoding="gzip")
            return
        asked = self.headers.get("range")
        if asked is None:
            self._answer(200, body, ETag='"tag"')
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, end = int(first), min(len(body), int(last) + 1) if last else len(body)
        if start >= len(body):
            self._answer(416)
            return
        self._answer(206, body[start:end], Content_Range=f"bytes {start}-{end - 1}/{len(body)}", ETag='"tag"')

    def do_PUT(self) -> None:
        bucket, key = self.bucket, self.path[1:].partition("?")[0]
        length = int(self.headers["content-length"])
        body = b""
        while len(body) < length:
            body += self.rfile.read(min(65536, length - len(body)))
            time.sleep(bucket.slow_s)
        if self._misbehaves():
            return
        if key in bucket.objects:
            self._answer(412)
            return
        bucket.objects[key] = body
        if bucket.forget_first_answer:
            bucket.forget_first_answer = False
            self.close_connection = True
            return
        self._answer(200, ETag='"tag"')


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what these tests are about."""


@contextmanager
def small_bucket() -> Iterator[Bucket]:
    """Serve one for the length of the block."""

    class Handler(_Handler):
        pass

    server = _Server(("127.0.0.1", 0), Handler)
    Handler.bucket = Bucket(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield Handler.bucket
    server.shutdown()
    thread.join()
    server.server_close()
