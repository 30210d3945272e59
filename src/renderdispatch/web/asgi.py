"""How does an ASGI server call a handler?

In a worker thread, so that the event loop never waits for a store or a disk.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from typing import Any, Final

import anyio
from anyio import CapacityLimiter, from_thread, to_thread
from attrs import field, frozen

from renderdispatch.web.http import Handler, IncompleteBodyError, Request, Response

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})


def asgi(handler: Handler, *, threads: int, body_limit: int | None = None) -> AsgiApp:
    """Return an ASGI application that answers with ``handler``.

    Args:
        handler: It is called in a worker thread.
        threads: How many of these threads there may be. They are not the application's own.
        body_limit: Bodies of up to this many bytes are read before a thread is taken, so that slow clients hold none.
            None: the handler reads the body as it arrives.
    """
    return _Asgi(handler, body_limit, CapacityLimiter(threads))


@frozen
class _Asgi:
    """An object, not a function: Starlette would take a function as an endpoint."""

    handler: Handler
    body_limit: int | None
    threads: CapacityLimiter = field(repr=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection. The lifespan is left to the application around this one."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        if scope["type"] != "http":
            return
        method = scope["method"]
        body: Iterable[bytes]
        try:
            if self.body_limit is None:
                body = _pieces(receive)
            else:
                body = [await _read(receive, self.body_limit)] if method in _WITH_BODY else []
        except IncompleteBodyError:
            return
        request = Request(
            method=method,
            path=_path(scope),
            query=scope.get("query_string", b"").decode("latin-1"),
            pairs=tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]),
            body=iter(body),
        )
        response = await to_thread.run_sync(self.handler, request, limiter=self.threads)
        try:
            headers = [(name.encode(), value.encode("latin-1")) for name, value in response.all_headers]
            await send({"type": "http.response.start", "status": response.status, "headers": headers})
            if response.content is not None:
                await send({"type": "http.response.body", "body": response.content})
            else:
                await _stream(response, receive, send)
        finally:
            response.close()


def _path(scope: Scope) -> str:
    """Return the path below the mount point; the specification has ``path`` begin with ``root_path``."""
    path: str = scope.get("path", "")
    root = scope.get("root_path", "").rstrip("/")
    return (path.removeprefix(root) if f"{path}/".startswith(f"{root}/") else path).removeprefix("/")


async def _read(receive: Receive, limit: int) -> bytes:
    """Read the body, but not much more than ``limit`` bytes of it."""
    body = bytearray()
    more = True
    while more and len(body) <= limit:
        piece, more = _piece(await receive())
        body += piece
    return bytes(body)


def _pieces(receive: Receive) -> Iterator[bytes]:
    """Yield the body in a worker thread. The server stops reading from the client while no piece is taken."""
    more = True
    while more:
        piece, more = _piece(from_thread.run(receive))  # type: ignore[arg-type]  # any awaitable will do
        yield piece


def _piece(message: MutableMapping[str, Any]) -> tuple[bytes, bool]:
    """Return the bytes of a message, and whether more follow."""
    if message["type"] == "http.disconnect":
        raise IncompleteBodyError
    return message.get("body", b""), message.get("more_body", False)


async def _stream(response: Response, receive: Receive, send: Send) -> None:
    """Send the body, and stop reading it when the client disconnects."""
    chunks = iter(response)
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(watch)
        while (chunk := await to_thread.run_sync(next, chunks, b"")) != b"":
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        group.cancel_scope.cancel()
