"""Do WSGI and ASGI give a handler the same request, and send its response in the same way?"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from attrs import define, field

from renderdispatch.web.asgi import asgi
from renderdispatch.web.http import Handler, Request, Response
from renderdispatch.web.wsgi import wsgi

BODY = b"a body"


@define
class Sent:
    """What a server would send."""

    status: int = 0
    headers: dict[str, str] = field(factory=dict)
    body: bytes = b""


def by_wsgi(handler: Handler) -> Sent:
    sent = Sent()

    def start_response(status: str, headers: list[tuple[str, str]]) -> None:
        sent.status, sent.headers = int(status[:3]), dict(headers)

    environ: dict[str, Any] = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "/mount",
        "PATH_INFO": "/é/b".encode().decode("latin-1"),
        "QUERY_STRING": "c=%20",
        "CONTENT_TYPE": "text/plain",
        "CONTENT_LENGTH": "6",
        "HTTP_X_NAME": "é",
        "wsgi.input": io.BytesIO(BODY),
    }
    chunks: Any = wsgi(handler)(environ, start_response)
    sent.body = b"".join(chunks)
    chunks.close()
    return sent


def by_asgi(handler: Handler) -> Sent:
    sent = Sent()
    more = {"type": "http.request", "body": BODY[:2], "more_body": True}
    incoming = iter([more, {"type": "http.request", "body": BODY[2:]}])

    async def receive() -> Any:
        if (message := next(incoming, None)) is None:
            await asyncio.Event().wait()  # the client stays
        return message

    async def send(message: Any) -> None:
        sent.status = message.get("status", sent.status)
        sent.headers |= {name.decode(): value.decode("latin-1") for name, value in message.get("headers", [])}
        sent.body += message.get("body", b"")

    scope = {
        "type": "http",
        "method": "POST",
        "root_path": "/mount",
        "path": "/mount/é/b",
        "query_string": b"c=%20",
        "headers": [(b"Content-Type", b"text/plain"), (b"content-length", b"6"), (b"X-Name", b"\xe9")],
    }
    asyncio.run(asgi(handler, threads=1, body_limit=None)(scope, receive, send))  # type: ignore[arg-type]
    return sent


BOTH = pytest.mark.parametrize("call", [by_wsgi, by_asgi], ids=["wsgi", "asgi"])
Call = Callable[..., Sent]


@BOTH
def test_a_handler_sees_the_same_request(call: Call) -> None:
    """Method, path below the mount, query, headers in lower case, and the body."""
    seen: list[tuple[Request, bytes]] = []

    def handler(request: Request) -> Response:
        seen.append((request, request.read(100)))
        return Response(200)

    call(handler)
    [(request, body)] = seen
    assert (request.method, request.path, request.query, body) == ("POST", "é/b", "c=%20", b"a body")
    assert request.headers == {"content-type": "text/plain", "content-length": "6", "x-name": "é"}
    assert request.length == 6


@BOTH
def test_a_larger_body_is_cut_off(call: Call) -> None:
    """One byte more than the limit shows that the body is too large."""
    read: list[bytes] = []

    def handler(request: Request) -> Response:
        read.append(request.read(3))
        return Response(200)

    call(handler)
    assert read == [b"a bo"]


@BOTH
@pytest.mark.parametrize(
    ("response", "headers", "body"),
    [
        (Response(200), {"content-length": "0"}, b""),
        (Response(200, {"x": "y"}, b"abc"), {"x": "y", "content-length": "3"}, b"abc"),
        (Response(409, body={"a": 1}), {"content-type": "application/json", "content-length": "8"}, b'{"a": 1}'),
        (Response(204), {}, b""),
        (Response(304, {"etag": '"e"'}), {"etag": '"e"'}, b""),
        (Response(200, {"content-length": "3"}, [b"a", b"bc"]), {"content-length": "3"}, b"abc"),
    ],
    ids=["empty", "bytes", "json", "no content", "not modified", "stream"],
)
def test_a_response_is_sent(call: Call, response: Response, headers: dict[str, str], body: bytes) -> None:
    """The length is added to a body that is not a stream, except for statuses that have none."""
    sent = call(lambda _request: response)
    assert (sent.status, sent.headers, sent.body) == (response.status, headers, body)


@BOTH
def test_a_stream_is_closed(call: Call) -> None:
    """What the body was read from is released once it was sent."""
    closed: list[str] = []

    def chunks() -> Iterator[bytes]:
        yield b"a"
        assert not closed

    call(lambda _request: Response(200, body=chunks(), on_close=lambda: closed.append("closed")))
    assert closed == ["closed"]


def test_a_repeated_header_is_seen_twice() -> None:
    """`pairs` has each, `headers` has them joined."""
    request = Request(method="GET", path="", pairs=(("a", "1"), ("a", "2")), body=iter(()))
    assert request.headers == {"a": "1,2"}
    assert len(request.pairs) == 2


def test_a_length_that_is_not_one() -> None:
    """The rest of a body without a readable length is not read after a refusal: a raw input might never end."""

    class Endless:
        def read(self, size: int) -> bytes:
            raise AssertionError(size)

    environ = {"REQUEST_METHOD": "PUT", "CONTENT_LENGTH": "9" * 20, "wsgi.input": Endless()}
    statuses: list[str] = []

    def respond(request: Request) -> Response:
        assert request.length is None
        return Response(411)

    def start_response(status: str, _headers: list[tuple[str, str]]) -> None:
        statuses.append(status)

    list(wsgi(respond)(environ, start_response))
    assert statuses == ["411 Length Required"]
