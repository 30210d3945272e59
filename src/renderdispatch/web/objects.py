"""How does any WSGI or ASGI application serve the signed URLs of a storage?

Mount one of these applications at the base URL of the `SignedUrls`::

    urls = SignedUrls("https://app.example/objects", secret)
    storage = FsspecStorage("/var/renders", urls=urls)
    app.mount("/objects", asgi_app(storage, urls))                                                      # FastAPI
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/objects": wsgi_app(storage, urls)})            # Flask

They answer as R2 does, so that development behaves like production:

- 403: the URL was changed, has expired, or was signed for another method (``HEAD`` is not ``GET``) or other headers
- 404: the object does not exist
- 206 and 416: ranges
- 304: the client has the object already
- 408: an upload that sends nothing for half a minute, or falls below 1 KiB a second
- 411: an upload without a ``Content-Length``
- 412: the object of a write-once upload exists already
- 503: more uploads at once than there is room for, of all objects or (2) of this one; or the storage is away

Bodies are streamed in both directions. Errors are written as S3 writes them.

Slow clients cost only themselves: what browsers upload by `create_upload` and what renders upload have room of their
own, and downloads need neither.

What users uploaded is never shown as a page: types that a browser could execute are served as downloads.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from datetime import UTC
from email.utils import format_datetime
from functools import partial
from typing import BinaryIO, Final
from urllib.parse import quote
from xml.sax.saxutils import escape

from attrs import frozen

from renderdispatch import errors
from renderdispatch.engine.layout import UPLOADS
from renderdispatch.protocols import ObjectInfo, StorageAdapter
from renderdispatch.storage.keys import MAX_PUT_BYTES
from renderdispatch.storage.signing import SignedUrls
from renderdispatch.web.answers import RETRY_AFTER_S
from renderdispatch.web.asgi import AsgiApp, asgi
from renderdispatch.web.clients import BusyError, Room
from renderdispatch.web.http import CHUNK_BYTES, IncompleteBodyError, Request, Response, SlowBodyError
from renderdispatch.web.wsgi import WsgiApp, wsgi

_THREADS: Final = 64
_LEAST_EACH: Final = 2
"""Uploads of one object at once: a client that tries again may do so before the server notices that it had gone."""
_RANGE: Final = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))", re.ASCII)
_ETAG: Final = re.compile(r'(W/)?"([^"]*)"')
_SHOWN: Final = re.compile(r"(?:audio|video)/[\w.+-]+|image/(?:png|jpeg|gif|webp)|application/json|text/plain")


def wsgi_app(storage: StorageAdapter, urls: SignedUrls, *, uploads: int = 4) -> WsgiApp:
    """Return a WSGI application that serves the objects of ``storage`` at the URLs that ``urls`` signs.

    Args:
        storage: Where the objects are.
        urls: What signs their URLs.
        uploads: How many uploads of browsers, and how many of renders, each process takes at once. Each holds a thread
            of the server, so a server should have more than twice as many threads.
    """
    return wsgi(partial(_respond, storage, urls, _Rooms.of(uploads)))


def asgi_app(storage: StorageAdapter, urls: SignedUrls, *, uploads: int = 256) -> AsgiApp:
    """Return an ASGI application that serves the objects of ``storage`` at the URLs that ``urls`` signs.

    Args:
        storage: Where the objects are.
        urls: What signs their URLs.
        uploads: How many uploads of browsers, and how many of renders, each process takes at once.
    """
    return asgi(partial(_respond, storage, urls, _Rooms.of(uploads)), threads=_THREADS)


@frozen
class _Rooms:
    """For uploads of browsers, and for those of renders."""

    browsers: Room
    renders: Room

    @classmethod
    def of(cls, uploads: int) -> _Rooms:
        each = max(_LEAST_EACH, uploads // 16)
        return cls(Room(uploads, each=each), Room(uploads, each=each))

    def enter(self, key: str) -> AbstractContextManager[None]:
        return (self.browsers if key.startswith(UPLOADS) else self.renders).enter(key)


def _respond(storage: StorageAdapter, urls: SignedUrls, rooms: _Rooms, request: Request) -> Response:
    try:
        file_name = urls.check(request.method, request.path, request.query, request.headers)
        return _write(storage, request, rooms) if request.method == "PUT" else _read(storage, request, file_name)
    except errors.StorageDeniedError as error:
        code = "SignatureDoesNotMatch" if error.code == "url.wrong-signature" else "AccessDenied"
        return _refuse(403, code, str(error))
    except errors.ObjectNotFoundError:
        return _refuse(404, "NoSuchKey", "no object has this key")
    except errors.ObjectExistsError:
        return _refuse(412, "PreconditionFailed", "the object is not the one that the request allows")
    except BusyError:
        message = "too many uploads at once, of this object or of all; try again"
        return _refuse(503, "SlowDown", message, **{"retry-after": str(RETRY_AFTER_S)})
    except SlowBodyError:
        return _refuse(408, "RequestTimeout", "the body comes too slowly")
    except IncompleteBodyError:
        return _refuse(400, "IncompleteBody", "the body is not as long as Content-Length says")
    except errors.StorageError:
        return _refuse(503, "ServiceUnavailable", "the storage does not respond; try again")


def _refuse(status: int, code: str, message: str, **headers: str) -> Response:
    error = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
    common = {"content-type": "application/xml", "x-content-type-options": "nosniff"}
    return Response(status, {**common, **headers}, f'<?xml version="1.0" encoding="UTF-8"?>\n{error}'.encode())


def _write(storage: StorageAdapter, request: Request, rooms: _Rooms) -> Response:
    size = request.length
    if size is None:
        return _refuse(411, "MissingContentLength", "an upload needs a Content-Length header")
    if size > MAX_PUT_BYTES:
        return _refuse(400, "EntityTooLarge", f"an upload has at most {MAX_PUT_BYTES} bytes")
    with suppress(errors.ObjectNotFoundError):
        storage.stat(request.path)
        raise errors.ObjectExistsError("found before any byte of the body was read")
    content_type = request.headers.get("content-type", "application/octet-stream")
    with rooms.enter(request.path):
        written = storage.put(request.path, _exactly(request.body, size), content_type=content_type, if_absent=True)
    return Response(200, _etag(written))


def _exactly(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Pass the chunks on; raise unless they have ``size`` bytes together, so that no other object is stored."""
    for chunk in chunks:
        size -= len(chunk)
        if size < 0:
            break
        yield chunk
    if size:
        raise IncompleteBodyError


def _read(storage: StorageAdapter, request: Request, file_name: str | None) -> Response:
    info = storage.stat(request.path)
    given = request.headers
    if (if_match := given.get("if-match")) is not None and not _matches(if_match, info):
        raise errors.ObjectExistsError("the object was replaced")
    if (if_none_match := given.get("if-none-match")) is not None and _matches(if_none_match, info, weak=True):
        return Response(304, _etag(info))
    with ExitStack() as stack:
        file = stack.enter_context(storage.open(request.path))
        size = file.seek(0, 2)
        kind = _kind(request.path, file_name)
        headers = {"accept-ranges": "bytes", "x-content-type-options": "nosniff", **kind, **_etag(info)}
        if info.modified_at is not None:
            headers["last-modified"] = format_datetime(info.modified_at.astimezone(UTC), usegmt=True)
        status, asked = 200, range(size)
        if_range = given.get("if-range")
        part = _parse_range(given.get("range", ""), size) if if_range is None or _matches(if_range, info) else None
        if part is not None:
            if not part:
                return _refuse(416, "InvalidRange", "the range has no bytes", **{"content-range": f"bytes */{size}"})
            status, asked = 206, part
            headers["content-range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
        headers["content-length"] = str(len(asked))
        file.seek(asked.start)
        body = () if request.method == "HEAD" else _chunks(file, len(asked))
        return Response(status, headers, body, stack.pop_all().close)


def _chunks(file: BinaryIO, left: int) -> Iterator[bytes]:
    while left:
        chunk = file.read(min(left, CHUNK_BYTES))
        if not chunk:
            raise errors.StorageUnavailableError("the object ended too soon")
        left -= len(chunk)
        yield chunk


def _parse_range(value: str, size: int) -> range | None:
    """Return the bytes that a ``Range`` header asks for, an empty range if it has none; None for the whole object.

    Headers with several ranges, and those that are not a range of bytes, get the whole object: RFC 9110 14.2 allows it.
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


def _matches(condition: str, info: ObjectInfo, *, weak: bool = False) -> bool:
    """Return whether an ``If-Match``, ``If-Range`` or ``If-None-Match`` header names this object.

    Args:
        condition: The header's value.
        info: The object.
        weak: Whether an etag that a proxy weakened counts, as it does for ``If-None-Match`` (RFC 9110 13.1.2).
    """
    if condition.strip() == "*":
        return True
    named = _ETAG.findall(condition)
    return info.etag is not None and ("", info.etag) in [("" if weak else mark, etag) for mark, etag in named]


def _kind(key: str, file_name: str | None) -> dict[str, str]:
    """Return type and disposition by the key's extension; what a browser could execute is a download."""
    name = key.rpartition("/")[2]
    guessed = mimetypes.guess_type(name)[0] or ""
    shown = _SHOWN.fullmatch(guessed) is not None
    disposition = "inline" if shown else "attachment"
    return {
        "content-type": guessed if shown else "application/octet-stream",
        "content-disposition": f"{disposition}; filename*=UTF-8''{quote(file_name or name, safe='')}",
    }
