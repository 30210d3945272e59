"""What do all our WSGI and ASGI callables share?

The types of the two gateways, and how a small request is read without believing what it says of its size.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http import HTTPStatus
from typing import Any

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
WsgiApp = Callable[[Environ, StartResponse], Iterable[bytes]]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


def wsgi_path(environ: Environ) -> str:
    """Return the path below the mount, unquoted, without its leading slash."""
    path: str = environ.get("PATH_INFO", "")
    return path.encode("latin-1").decode(errors="replace").removeprefix("/")


def wsgi_headers(environ: Environ) -> dict[str, str]:
    """Return the headers, with names in lower case."""
    headers = {name[5:].replace("_", "-").lower(): v for name, v in environ.items() if name.startswith("HTTP_")}
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(name):
            headers[name.replace("_", "-").lower()] = environ[name]
    return headers


def wsgi_body(environ: Environ, *, limit: int) -> bytes:
    """Read the body up to one byte more than ``limit``: enough to see that it is too large."""
    size = limit + 1
    if not environ.get("wsgi.input_terminated"):  # else the server ends the input itself, also where it came in chunks
        length = environ.get("CONTENT_LENGTH") or "0"
        size = min(size, int(length)) if length.isascii() and length.isdecimal() and len(length) < 20 else size
    body: bytes = environ["wsgi.input"].read(size)
    return body


def wsgi_status(status: int) -> str:
    """Return the status line's code and phrase."""
    found = HTTPStatus(status)
    return f"{found.value} {found.phrase}"


def asgi_path(scope: Scope) -> str:
    """Return the path below the mount likewise; by the specification ``path`` begins with ``root_path``."""
    path: str = scope["path"]
    root = scope.get("root_path", "").rstrip("/")
    return (path.removeprefix(root) if f"{path}/".startswith(f"{root}/") else path).removeprefix("/")


def asgi_headers(scope: Scope) -> dict[str, str]:
    """Return the headers likewise; those that come twice are joined."""
    headers: dict[str, str] = {}
    for raw, value in scope["headers"]:
        name, text = raw.decode("latin-1").lower(), value.decode("latin-1")
        headers[name] = f"{headers[name]},{text}" if name in headers else text
    return headers


async def asgi_body(receive: Receive, *, limit: int) -> bytes | None:
    """Read the body likewise; None when the client went away."""
    body = bytearray()
    while len(body) <= limit:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    return bytes(body[: limit + 1])


async def asgi_answer(send: Send, status: int, headers: dict[str, str], body: bytes) -> None:
    """Send a small answer; its length is added."""
    given = {**headers, "content-length": str(len(body))}
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
