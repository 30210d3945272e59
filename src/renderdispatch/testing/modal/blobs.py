"""What holds large arguments and results, and serves web endpoints?

One small HTTP server on loopback takes and gives blobs, as the object storage behind Modal does; each web endpoint
has one of its own. A request to an endpoint becomes an input of its function, and two streams of messages.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from aiohttp import web
from attrs import define, field
from modal_proto import api_pb2

_MAX_BODY: Final = 1 << 30

WebHandler = Callable[[str, web.Request], Awaitable[web.StreamResponse]]
"""Answers a request to the endpoint of a function, by the function's id."""


def listen_on_loopback() -> socket.socket:
    """Listen on a free port.

    The protocol is named because asyncio switches Nagle's algorithm off only then: 40 ms an answer.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    listening.listen(256)
    return listening


@define(eq=False)
class DataStream:
    """Messages in order, for readers that come and go."""

    chunks: list[api_pb2.DataChunk] = field(factory=list)
    grown: asyncio.Event = field(factory=asyncio.Event)
    closed: bool = False

    def put(self, chunks: list[api_pb2.DataChunk]) -> None:
        """Add messages."""
        self.chunks.extend(chunks)
        self.grown.set()

    def close(self) -> None:
        """Let readers end."""
        self.closed = True
        self.grown.set()

    async def after(self, index: int) -> AsyncIterator[api_pb2.DataChunk]:
        """Iterate over the messages after one, as they come."""
        position = 0
        while True:
            while position < len(self.chunks):
                chunk = self.chunks[position]
                position += 1
                if chunk.index > index:
                    yield chunk
            if self.closed:
                return
            self.grown.clear()
            await self.grown.wait()


class HttpFront:
    """The HTTP side of the server.

    Args:
        answer: Answers requests to web endpoints.
    """

    def __init__(self, answer: WebHandler) -> None:
        self._answer = answer
        self._blobs: dict[str, bytes] = {}
        self._key = secrets.token_bytes(16)
        self._runners: list[web.AppRunner] = []
        self._web_urls: dict[str, str] = {}
        self._data_in: dict[str, DataStream] = {}
        self._data_out: dict[str, DataStream] = {}
        self.url = ""

    async def start(self) -> None:
        """Serve blobs."""
        app = web.Application(client_max_size=_MAX_BODY)
        app.router.add_put("/blobs/{id}", self._put_blob)
        app.router.add_get("/blobs/{id}", self._get_blob)
        self.url = await self._serve(app)

    async def close(self) -> None:
        """Stop serving anything."""
        for stream in (*self._data_in.values(), *self._data_out.values()):
            stream.close()
        for runner in self._runners:
            await runner.cleanup()

    async def web_url(self, function_id: str) -> str:
        """Serve a function's web endpoint from now on; return its URL."""
        if function_id not in self._web_urls:

            async def answer(request: web.Request) -> web.StreamResponse:
                return await self._answer(function_id, request)

            app = web.Application(client_max_size=_MAX_BODY)
            app.router.add_route("*", "/{path:.*}", answer)
            self._web_urls[function_id] = await self._serve(app)
        return self._web_urls[function_id]

    def blob(self, blob_id: str) -> bytes:
        """Return a blob; empty if it does not exist."""
        return self._blobs.get(blob_id, b"")

    def blob_url(self, blob_id: str) -> str:
        """Return the signed URL by which a blob is put and got."""
        return f"{self.url}/blobs/{blob_id}?signature={self._sign(blob_id)}"

    def data_in(self, call_id: str) -> DataStream:
        """Return the messages for a call."""
        return self._data_in.setdefault(call_id, DataStream())

    def data_out(self, call_id: str) -> DataStream:
        """Return the messages of a call."""
        return self._data_out.setdefault(call_id, DataStream())

    def forget_data(self, call_id: str) -> None:
        """End and forget the messages of a call."""
        for streams in (self._data_in, self._data_out):
            if (stream := streams.pop(call_id, None)) is not None:
                stream.close()

    def _sign(self, blob_id: str) -> str:
        return hmac.new(self._key, blob_id.encode(), hashlib.sha256).hexdigest()

    async def _serve(self, app: web.Application) -> str:
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
        await runner.setup()
        self._runners.append(runner)
        listening = listen_on_loopback()
        await web.SockSite(runner, listening).start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    async def _put_blob(self, request: web.Request) -> web.Response:
        if not self._signed(request):
            return web.Response(status=403)
        body = await request.read()
        self._blobs[request.match_info["id"]] = body
        return web.Response(headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})  # noqa: S324 - as S3 does

    async def _get_blob(self, request: web.Request) -> web.Response:
        if not self._signed(request):
            return web.Response(status=403)
        if request.match_info["id"] not in self._blobs:
            return web.Response(status=404)
        return web.Response(body=self._blobs[request.match_info["id"]])

    def _signed(self, request: Any) -> bool:
        return hmac.compare_digest(request.query.get("signature", ""), self._sign(request.match_info["id"]))
