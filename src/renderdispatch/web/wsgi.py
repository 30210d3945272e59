"""How does a WSGI server call a handler?

The server's threads are its own, and their reads and writes have no time limit. Clients that are too slow are cut off
where the server shows its socket: gunicorn, Werkzeug and wsgiref do; waitress and uWSGI have limits of their own.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from http import HTTPStatus
from typing import Any, Final

from typing_extensions import Buffer

from renderdispatch.web.answers import unread
from renderdispatch.web.clients import BusyError, Pace, Room, Waiting, downloads
from renderdispatch.web.http import (
    CHUNK_BYTES,
    Handler,
    IncompleteBodyError,
    Request,
    Response,
    SlowBodyError,
    parse_length,
)

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
WsgiApp = Callable[[Environ, StartResponse], Iterable[bytes]]

_DRAIN_BYTES: Final = 1 << 20
_FIRST_BYTES: Final = 1 << 14
_QUICK_S: Final = 0.25


def wsgi(
    handler: Handler,
    *,
    bodies: int | None = None,
    sends: Callable[[], Pace] = Pace,
    takes: Callable[[], Pace] = downloads,
) -> WsgiApp:
    """Return a WSGI application that answers with ``handler``.

    Args:
        handler: It is called in the server's thread.
        bodies: How many bodies are read at once, so that other requests keep their threads; the next one is answered
            503. None: the handler sees to it.
        sends: Makes the pace of a client that sends a body.
        takes: Makes the pace of a client that takes a streamed response.
    """
    room = None if bodies is None else Room(bodies)

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        with closing(_Body(environ, room, sends)) as body:
            request = Request(
                method=environ["REQUEST_METHOD"],
                path=environ.get("PATH_INFO", "").encode("latin-1").decode(errors="replace").removeprefix("/"),
                query=environ.get("QUERY_STRING", ""),
                pairs=tuple(_headers(environ)),
                body=body,
                multiprocess=bool(environ.get("wsgi.multiprocess")),
            )
            try:
                response = handler(request)
            except (IncompleteBodyError, BusyError) as error:
                response = unread(error)
            if response.status >= 400 and "expect" not in request.headers and request.length is not None:
                body.drain()
        status = HTTPStatus(response.status)
        start_response(f"{status.value} {status.phrase}", response.all_headers)
        return response if response.content is not None else _Sent(environ, response, takes())

    return app


def paced(
    app: WsgiApp,
    *,
    sends: Callable[[], Pace] = Pace,
    raises: Callable[[IncompleteBodyError], Exception] = lambda error: error,
) -> WsgiApp:
    """Return an application whose clients are cut off when they send their bodies too slowly.

    A body that ends too soon, for this or another reason, is never taken for a whole one: reading it raises.

    Args:
        app: The application.
        sends: Makes the pace of a client.
        raises: Returns what reading raises, for a framework that answers its own exceptions.
    """

    def slow_clients_end(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if Waiting(environ, sends()).ends:
            environ["wsgi.input"] = io.BufferedReader(_PacedInput(environ, sends, raises))
        return app(environ, start_response)

    return slow_clients_end


def _headers(environ: Environ) -> Iterator[tuple[str, str]]:
    for name, value in environ.items():
        if name.startswith("HTTP_") or (name in {"CONTENT_TYPE", "CONTENT_LENGTH"} and value):
            yield name.removeprefix("HTTP_").replace("_", "-").lower(), value


class _Body:
    """The body of a request, in pieces. A server that ends the input itself also ends one that has no length."""

    def __init__(self, environ: Environ, room: Room | None, pace: Callable[[], Pace]) -> None:
        length = parse_length(environ.get("CONTENT_LENGTH") or "0")
        endless = environ.get("wsgi.input_terminated") or length is None
        self._left = float("inf") if endless else float(length or 0)
        self._environ = environ
        self._room = room
        self._pace = pace
        self._place = ExitStack()
        self._client: Waiting | None = None
        self._size = _FIRST_BYTES

    def __iter__(self) -> _Body:
        return self

    def __next__(self) -> bytes:
        if self._client is None and self._room is not None and self._left:
            self._place.enter_context(self._room.enter())
        if (piece := self._read()) == b"":
            raise StopIteration
        return piece

    def _read(self) -> bytes:
        if not self._left:
            return b""
        if self._client is None:
            self._client = Waiting(self._environ, self._pace())
        client, asked = self._client, int(min(self._left, self._size))
        read: Callable[[int], bytes] = self._environ["wsgi.input"].read
        piece = b""
        client.begin(asked)
        try:
            piece = read(asked)
        except OSError:
            raise SlowBodyError if client.was_cut else IncompleteBodyError from None
        finally:
            waited_s = client.end(len(piece))
        if client.was_cut and len(piece) < asked:
            raise SlowBodyError
        # a server may wait until it has as much as it was asked for: slow clients get small pieces, and so time enough
        self._size = min(2 * self._size, CHUNK_BYTES) if waited_s < _QUICK_S else _FIRST_BYTES
        self._left = self._left - len(piece) if piece else 0
        return piece

    def drain(self) -> None:
        """Read what comes at once: a server that closes the connection on unread bytes may lose the response.

        A client that sends nothing is cut off, for the server may wait for it too.
        """
        client = self._client = self._client or Waiting(self._environ, Pace())
        if not self._left or not client.ends:
            return  # where the connection is hidden, the rest might never come
        client.pace = Pace(stall_s=0.25, grace_s=0.25, least_rate=_DRAIN_BYTES / 4)
        drained = 0
        with suppress(IncompleteBodyError):
            while drained < _DRAIN_BYTES and (piece := self._read()):
                drained += len(piece)

    def close(self) -> None:
        """Give the place in the room up."""
        self._place.close()


class _Sent:
    """A response that the server streams, as fast as the client takes it."""

    def __init__(self, environ: Environ, response: Response, pace: Pace) -> None:
        self._client = Waiting(environ, pace, takes=True)
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._response:
            self._client.begin(len(chunk))
            yield chunk
            self._client.end(len(chunk))

    def close(self) -> None:
        """End a wait that the server gave up, and release what the body was read from."""
        self._client.end(0)
        self._response.close()


class _PacedInput(io.RawIOBase):
    """The input of a request, whose reads surely end. It ends where the body does, in any server."""

    def __init__(
        self, environ: Environ, pace: Callable[[], Pace], raises: Callable[[IncompleteBodyError], Exception]
    ) -> None:
        self._input = environ["wsgi.input"]
        self._body = _Body({**environ}, None, pace)
        self._missing = parse_length(environ.get("CONTENT_LENGTH") or "0") or 0
        self._raises = raises
        self._piece = b""

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        """Return what shows the client's socket, where the server's input does."""
        number: int = self._input.fileno()
        return number

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer).cast("B")
        if not self._piece:
            self._piece = self._next()
        size = min(len(view), len(self._piece))
        view[:size], self._piece = self._piece[:size], self._piece[size:]
        return size

    def _next(self) -> bytes:
        try:
            piece = next(self._body, b"")
        except IncompleteBodyError as error:
            raise self._raises(error) from None
        self._missing -= len(piece)
        if self._missing > 0 and not piece:
            raise self._raises(IncompleteBodyError())
        return piece
