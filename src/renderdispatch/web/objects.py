"""How does any WSGI or ASGI application serve the signed URLs of a storage?

By mounting one of these callables where `SignedUrls` says that they are::

    urls = SignedUrls("https://app.example/objects", secret)
    storage = FsspecStorage("/var/renders", urls=urls)
    app.mount("/objects", asgi_app(storage, urls))                                                      # FastAPI
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/objects": wsgi_app(storage, urls)})            # Flask

They answer as R2 does, so that development behaves like production: 403 for a URL that was changed, has expired or was
signed for another method or other headers; 404 for an absent object; 206 and 416 for ranges; 304 for what the client
has already; 412 where a write-once upload meets an object; 411 for an upload that does not say how long it is. A URL
signed for ``GET`` is no URL for ``HEAD``. Bodies are streamed in both directions. Errors are written as S3 writes them.

What users uploaded is never shown as a page: types that browsers could run are served as downloads.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack
from datetime import UTC
from email.utils import format_datetime
from typing import Any, BinaryIO, Final
from urllib.parse import quote
from xml.sax.saxutils import escape

import anyio
from anyio import CapacityLimiter, from_thread, to_thread
from attrs import define, field, frozen

from renderdispatch.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    StorageDeniedError,
    StorageError,
    StorageUnavailableError,
)
from renderdispatch.protocols import ObjectInfo, StorageAdapter
from renderdispatch.storage.keys import MAX_PUT_BYTES
from renderdispatch.storage.signing import SignedUrls
from renderdispatch.web.gateways import (
    AsgiApp,
    Environ,
    Receive,
    Scope,
    Send,
    StartResponse,
    WsgiApp,
    asgi_headers,
    asgi_path,
    wsgi_headers,
    wsgi_path,
    wsgi_status,
)

_CHUNK_BYTES: Final = 1 << 18
_DRAIN_BYTES: Final = 1 << 20
_THREADS: Final = 64
_RANGE: Final = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))", re.ASCII)
_ETAG: Final = re.compile(r'(W/)?"([^"]*)"')
_SHOWN: Final = re.compile(r"(?:audio|video)/[\w.+-]+|image/(?:png|jpeg|gif|webp)|application/json|text/plain")


def wsgi_app(storage: StorageAdapter, urls: SignedUrls) -> WsgiApp:
    """Return a WSGI application that serves the objects of ``storage`` by the URLs that ``urls`` signed."""

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        headers = wsgi_headers(environ)
        body = _wsgi_body(environ["wsgi.input"], _length(headers) or 0)
        request = _Request(
            method=environ["REQUEST_METHOD"],
            key=wsgi_path(environ),
            query=environ.get("QUERY_STRING", ""),
            headers=headers,
            body=body,
        )
        answer = _answer(storage, urls, request)
        if answer.status >= 400 and "expect" not in headers:
            _drain(body)  # else closing the connection may cost the client the answer
        start_response(wsgi_status(answer.status), list(answer.headers.items()))
        return answer

    return app


def asgi_app(storage: StorageAdapter, urls: SignedUrls) -> AsgiApp:
    """Return an ASGI application that serves the objects of ``storage`` by the URLs that ``urls`` signed."""

    threads = CapacityLimiter(_THREADS)  # slow uploads hold theirs for long: not the application's

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        if scope["type"] != "http":  # the lifespan is the outer application's
            return
        request = _Request(
            method=scope["method"],
            key=asgi_path(scope),
            query=scope.get("query_string", b"").decode("latin-1"),
            headers=asgi_headers(scope),
            body=_asgi_body(receive),
        )
        answer = await to_thread.run_sync(_answer, storage, urls, request, limiter=threads)
        try:
            headers = [(name.encode(), value.encode("latin-1")) for name, value in answer.headers.items()]
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            await _send_body(answer, receive, send)
        finally:
            answer.close()

    return app


# --- what both share ------------------------------------------------------------------------------


@frozen(kw_only=True)
class _Request:
    method: str
    key: str
    query: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    body: Iterator[bytes]


@define
class _Answer:
    """An answer; iterating gives its body, whose ``left`` bytes of ``file`` are read as they are asked for."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    file: BinaryIO | None = None
    left: int = 0
    opened: ExitStack = field(factory=ExitStack)

    def __iter__(self) -> Iterator[bytes]:
        if self.body:
            yield self.body
        while self.left and self.file is not None:
            chunk = self.file.read(min(self.left, _CHUNK_BYTES))
            if not chunk:
                raise StorageUnavailableError("the object ended before its time")
            self.left -= len(chunk)
            yield chunk

    def close(self) -> None:
        self.opened.close()


class _Incomplete(Exception):
    """The client went away before its body was whole."""


def _answer(storage: StorageAdapter, urls: SignedUrls, request: _Request) -> _Answer:
    try:
        urls.check(request.method, request.key, request.query, request.headers)
        if request.method == "PUT":
            return _write(storage, request)
        return _read(storage, request)
    except StorageDeniedError as error:
        code = "SignatureDoesNotMatch" if error.code == "url.wrong-signature" else "AccessDenied"
        return _refusal(403, code, str(error))
    except ObjectNotFoundError:
        return _refusal(404, "NoSuchKey", "no object stands under this key")
    except ObjectExistsError:
        return _refusal(412, "PreconditionFailed", "another object stands there than the request allows")
    except _Incomplete:
        return _refusal(400, "IncompleteBody", "the body is shorter than its length")
    except StorageError:
        return _refusal(503, "ServiceUnavailable", "storage is away; try again")


def _refusal(status: int, code: str, message: str, **headers: str) -> _Answer:
    told = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{told}'.encode()
    given = {"content-type": "application/xml", "content-length": str(len(body)), "x-content-type-options": "nosniff"}
    return _Answer(status, {**given, **headers}, body=body)


def _write(storage: StorageAdapter, request: _Request) -> _Answer:
    size = _length(request.headers)
    if size is None:
        return _refusal(411, "MissingContentLength", "an upload says how long it is: send Content-Length")
    if size > MAX_PUT_BYTES:
        return _refusal(400, "EntityTooLarge", f"an upload has at most {MAX_PUT_BYTES} bytes")
    if _stands(storage, request.key):
        raise ObjectExistsError("seen before a byte of the body was read")
    content_type = request.headers.get("content-type", "application/octet-stream")
    written = storage.put(request.key, _exactly(request.body, size), content_type=content_type, if_absent=True)
    return _Answer(200, {"content-length": "0", **_etag(written)})


def _stands(storage: StorageAdapter, key: str) -> bool:
    try:
        storage.stat(key)
    except ObjectNotFoundError:
        return False
    return True


def _exactly(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Pass the chunks on while they stay within ``size``; an object of another size never comes to stand."""
    for chunk in chunks:
        size -= len(chunk)
        if size < 0:
            raise _Incomplete
        yield chunk
    if size:
        raise _Incomplete


def _read(storage: StorageAdapter, request: _Request) -> _Answer:
    info = storage.stat(request.key)
    if (if_match := request.headers.get("if-match")) is not None and not _names(if_match, info):
        raise ObjectExistsError("the object is another one by now")
    if (if_none_match := request.headers.get("if-none-match")) is not None and _names(if_none_match, info, weak=True):
        return _Answer(304, _etag(info))
    with ExitStack() as stack:
        file = stack.enter_context(storage.open(request.key))
        size = file.seek(0, 2)
        headers = {"accept-ranges": "bytes", "x-content-type-options": "nosniff", **_kind(request.key), **_etag(info)}
        if info.modified_at is not None:
            headers["last-modified"] = format_datetime(info.modified_at.astimezone(UTC), usegmt=True)
        status, start, length = 200, 0, size
        if_range = request.headers.get("if-range")
        if if_range is None or _names(if_range, info):
            match _parse_range(request.headers.get("range", ""), size):
                case range() as asked if not asked:
                    told = {"content-range": f"bytes */{size}"}
                    return _refusal(416, "InvalidRange", "the range holds no byte", **told)
                case range() as asked:
                    status, start, length = 206, asked.start, len(asked)
                    headers["content-range"] = f"bytes {asked.start}-{asked.stop - 1}/{size}"
        headers["content-length"] = str(length)
        file.seek(start)
        left = 0 if request.method == "HEAD" else length
        return _Answer(status, headers, file=file, left=left, opened=stack.pop_all())


def _parse_range(value: str, size: int) -> range | None:
    """Return the bytes that are asked for, an empty range where there are none; None for all of them.

    Several ranges, and what is no range of bytes, are answered by the whole object, as RFC 9110 14.2 allows.
    """
    found = _RANGE.fullmatch(value.strip())
    if found is None:
        return None
    first, last, suffix = found.groups()
    if suffix is not None:
        return range(max(0, size - int(suffix)), size)
    if last and int(last) < int(first):
        return None
    return range(int(first), min(size, int(last) + 1 if last else size))


def _etag(info: ObjectInfo) -> dict[str, str]:
    return {} if info.etag is None else {"etag": f'"{info.etag}"'}


def _names(condition: str, info: ObjectInfo, *, weak: bool = False) -> bool:
    """Return whether an ``If-Match``, ``If-Range`` or ``If-None-Match`` speaks of this object.

    Args:
        condition: The header's value.
        info: What stands there.
        weak: Whether an etag counts that a proxy weakened, as it does for ``If-None-Match`` (RFC 9110 13.1.2).
    """
    if condition.strip() == "*":
        return True
    named = _ETAG.findall(condition)
    return info.etag is not None and ("", info.etag) in [("" if weak else mark, etag) for mark, etag in named]


def _kind(key: str) -> dict[str, str]:
    """Return type and disposition by the key's extension; what a browser might run is a download."""
    name = key.rpartition("/")[2]
    guessed = mimetypes.guess_type(name)[0] or ""
    shown = _SHOWN.fullmatch(guessed) is not None
    disposition = "inline" if shown else "attachment"
    return {
        "content-type": guessed if shown else "application/octet-stream",
        "content-disposition": f"{disposition}; filename*=UTF-8''{quote(name, safe='')}",
    }


def _length(headers: Mapping[str, str]) -> int | None:
    value = headers.get("content-length", "").strip()
    return int(value) if value.isascii() and value.isdecimal() and len(value) < 19 else None


# --- WSGI -----------------------------------------------------------------------------------------


def _wsgi_body(source: BinaryIO, left: int) -> Iterator[bytes]:
    while left:
        chunk = source.read(min(left, _CHUNK_BYTES))
        if not chunk:
            return
        left -= len(chunk)
        yield chunk


def _drain(body: Iterator[bytes]) -> None:
    dropped = 0
    for chunk in body:
        dropped += len(chunk)
        if dropped >= _DRAIN_BYTES:
            return


# --- ASGI -----------------------------------------------------------------------------------------


def _asgi_body(receive: Receive) -> Iterator[bytes]:
    """Read the body from the worker thread that stores it: what is not taken yet waits at the client."""

    async def take() -> MutableMapping[str, Any]:
        return await receive()

    more = True
    while more:
        message = from_thread.run(take)
        if message["type"] == "http.disconnect":
            raise _Incomplete
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def _send_body(answer: _Answer, receive: Receive, send: Send) -> None:
    """Send the body, and stop reading the file once nobody takes it any more."""
    chunks = iter(answer)
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        if answer.file is not None:
            group.start_soon(watch)
        while (chunk := await to_thread.run_sync(next, chunks, b"")) != b"":
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        group.cancel_scope.cancel()
