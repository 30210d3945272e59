"""How does an ASGI server call a handler?

In a worker thread, so that the event loop never waits for a store or a disk. Requests with a body have threads of their
own, and none of these counts while it waits for its client. So slow clients cost neither reads nor other writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from typing import Any, Final

import anyio
from anyio import CapacityLimiter, from_thread, to_thread
from attrs import define, field, frozen

from renderdispatch.web.answers import unread
from renderdispatch.web.clients import BusyError, Pace, downloads
from renderdispatch.web.http import Handler, IncompleteBodyError, Request, Response, SlowBodyError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})


def asgi(
    handler: Handler,
    *,
    threads: int,
    body_limit: int | None = None,
    sends: Callable[[], Pace] = Pace,
    takes: Callable[[], Pace] = downloads,
) -> AsgiApp:
    """Return an ASGI application that answers with ``handler``.

    Args:
        handler: It is called in a worker thread.
        threads: How many of these threads may work at once for requests with a body, and how many for others. They
            are not the application's own.
        body_limit: Bodies of up to this many bytes are read before a thread is taken, so that slow clients hold none.
            None: the handler reads the body as it arrives.
        sends: Makes the pace of a client that sends a body.
        takes: Makes the pace of a client that takes a streamed response.
    """
    return _Asgi(handler, body_limit, sends, takes, CapacityLimiter(threads), CapacityLimiter(threads))


@frozen
class _Asgi:
    """An object, not a function: Starlette would take a function as an endpoint."""

    handler: Handler
    body_limit: int | None
    sends: Callable[[], Pace]
    takes: Callable[[], Pace]
    reads: CapacityLimiter = field(repr=False)
    writes: CapacityLimiter = field(repr=False)
    _all: CapacityLimiter = field(factory=lambda: CapacityLimiter(math.inf), repr=False)
    """Of the threads, working or waiting."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection. The lifespan is left to the application around this one."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        if scope["type"] != "http":
            return
        method = scope["method"]
        client = _Client(receive, self.writes if method in _WITH_BODY else self.reads, self.sends())
        body: Iterable[bytes]
        try:
            if self.body_limit is None:
                body = client.pieces()
            else:
                body = [await client.read(self.body_limit)] if method in _WITH_BODY else []
        except SlowBodyError as error:
            await _send(scope, unread(error), send)
            return
        except IncompleteBodyError:
            return
        request = Request(
            method=method,
            path=_path(scope),
            query=scope.get("query_string", b"").decode("latin-1"),
            pairs=tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]),
            body=iter(body),
        )
        async with client:
            response = await to_thread.run_sync(self._respond, request, limiter=self._all)
        try:
            if not await _send(scope, response, send):
                await self._stream(response, receive, send)
        finally:
            response.close()

    def _respond(self, request: Request) -> Response:
        try:
            return self.handler(request)
        except (IncompleteBodyError, BusyError) as error:
            return unread(error)

    async def _stream(self, response: Response, receive: Receive, send: Send) -> None:
        """Send the body. Stop reading it when the client disconnects or takes it too slowly."""
        chunks, pace = iter(response), self.takes()
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(watch)
            while (chunk := await to_thread.run_sync(next, chunks, b"", limiter=self.reads)) != b"":
                began = time.monotonic()
                with anyio.move_on_after(pace.patience_s(len(chunk))) as sending:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                pace.count(len(chunk), time.monotonic() - began)
                if sending.cancelled_caught:
                    break  # without an end: the server closes the connection
            else:
                await send({"type": "http.response.body", "body": b""})
            group.cancel_scope.cancel()


@define(eq=False)
class _Client:
    """Who sends the body of one request, and the place of that request among the threads that work."""

    receive: Receive
    threads: CapacityLimiter
    pace: Pace

    async def __aenter__(self) -> None:
        await self.threads.acquire_on_behalf_of(self)

    async def __aexit__(self, *_: object) -> None:
        self.threads.release_on_behalf_of(self)

    async def read(self, limit: int) -> bytes:
        """Read the body, but not much more than ``limit`` bytes of it. No thread is taken meanwhile."""
        body = bytearray()
        more = True
        while more and len(body) <= limit:
            piece, more = await self._next()
            body += piece
        return bytes(body)

    def pieces(self) -> Iterator[bytes]:
        """Yield the body in a worker thread. The server stops reading from the client while no piece is taken."""
        more = True
        while more:
            piece, more = from_thread.run(self._next_for_a_thread)
            yield piece

    async def _next_for_a_thread(self) -> tuple[bytes, bool]:
        self.threads.release_on_behalf_of(self)
        try:
            return await self._next()
        finally:
            with anyio.CancelScope(shield=True):
                await self.threads.acquire_on_behalf_of(self)

    async def _next(self) -> tuple[bytes, bool]:
        """Return the bytes that come next, and whether more follow."""
        began = time.monotonic()
        try:
            with anyio.fail_after(self.pace.patience_s()):
                message = await self.receive()
        except TimeoutError:
            raise SlowBodyError from None
        if message["type"] == "http.disconnect":
            raise IncompleteBodyError
        piece: bytes = message.get("body", b"")
        self.pace.count(len(piece), time.monotonic() - began)
        return piece, message.get("more_body", False)


def _path(scope: Scope) -> str:
    """Return the path below the mount point; the specification has ``path`` begin with ``root_path``."""
    path: str = scope.get("path", "")
    root = scope.get("root_path", "").rstrip("/")
    return (path.removeprefix(root) if f"{path}/".startswith(f"{root}/") else path).removeprefix("/")


async def _send(scope: Scope, response: Response, send: Send) -> bool:
    """Send the response, a stream without its body; return whether that was all of it."""
    headers = [(name.encode(), value.encode("latin-1")) for name, value in response.all_headers]
    if response.status == 408 and scope.get("http_version", "1.1").startswith("1"):
        headers.append((b"connection", b"close"))  # RFC 9110 15.5.9; else the server waits for the rest of the body
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    if response.content is None:
        return False
    await send({"type": "http.response.body", "body": response.content})
    return True
