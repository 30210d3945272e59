"""How does a WSGI server call a handler?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any, Final

from renderdispatch.web.http import CHUNK_BYTES, Handler, Request, parse_length

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
WsgiApp = Callable[[Environ, StartResponse], Iterable[bytes]]

_DRAIN_BYTES: Final = 1 << 20


def wsgi(handler: Handler) -> WsgiApp:
    """Return a WSGI application that answers with ``handler``."""

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(
            method=environ["REQUEST_METHOD"],
            path=environ.get("PATH_INFO", "").encode("latin-1").decode(errors="replace").removeprefix("/"),
            query=environ.get("QUERY_STRING", ""),
            pairs=tuple(_headers(environ)),
            body=_pieces(environ),
            multiprocess=bool(environ.get("wsgi.multiprocess")),
        )
        response = handler(request)
        if response.status >= 400 and "expect" not in request.headers and request.length is not None:
            request.read(_DRAIN_BYTES)  # a server that closes the connection on unread bytes may lose the response
        status = HTTPStatus(response.status)
        start_response(f"{status.value} {status.phrase}", response.all_headers)
        return response

    return app


def _headers(environ: Environ) -> Iterator[tuple[str, str]]:
    for name, value in environ.items():
        if name.startswith("HTTP_") or (name in {"CONTENT_TYPE", "CONTENT_LENGTH"} and value):
            yield name.removeprefix("HTTP_").replace("_", "-").lower(), value


def _pieces(environ: Environ) -> Iterator[bytes]:
    """Yield the body. A server that ends the input itself also ends one that comes in chunks, without a length."""
    length = parse_length(environ.get("CONTENT_LENGTH") or "0")
    left = float("inf") if environ.get("wsgi.input_terminated") or length is None else length
    while left and (piece := environ["wsgi.input"].read(int(min(left, CHUNK_BYTES)))):
        left -= len(piece)
        yield piece
