"""What are a request and a response, whichever gateway brings them?

Handlers are functions from one to the other. `wsgi` and `asgi` make an application of a handler; no handler knows
which of the two calls it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Final

from attrs import field, frozen

CHUNK_BYTES: Final = 1 << 18


class IncompleteBodyError(Exception):
    """The client disconnected before it had sent the whole body."""


class SlowBodyError(IncompleteBodyError):
    """The client sends its body too slowly."""


@frozen(kw_only=True)
class Request:
    """An HTTP request.

    Args:
        method: In capitals.
        path: Below the mount point, unquoted, without the leading slash.
        query: The raw query string.
        pairs: The headers as they were sent, with names in lower case.
        body: The pieces of the body. The iterator raises `IncompleteBodyError` if the client disconnects or is too
            slow, and may raise `BusyError`.
        multiprocess: Whether the gateway says that several processes serve the application.
    """

    method: str
    path: str
    query: str = field(default="", repr=False)
    pairs: tuple[tuple[str, str], ...] = field(repr=False)
    body: Iterator[bytes] = field(repr=False)
    multiprocess: bool = False

    @cached_property
    def headers(self) -> Mapping[str, str]:
        """The headers by name; values of a repeated header are joined by commas."""
        headers: dict[str, str] = {}
        for name, value in self.pairs:
            headers[name] = f"{headers[name]},{value}" if name in headers else value
        return headers

    @property
    def length(self) -> int | None:
        """The value of ``Content-Length``; None if it is missing or not a number."""
        return parse_length(self.headers.get("content-length", ""))

    def read(self, limit: int) -> bytes:
        """Return the body. A larger one is cut off after ``limit + 1`` bytes, which is enough to refuse it."""
        body = bytearray()
        for piece in self.body:
            body += piece
            if len(body) > limit:
                break
        return bytes(body[: limit + 1])


@frozen
class Response:
    """An HTTP response. Iterating over it yields the bytes of its body.

    Args:
        status: The status code.
        headers: With names in lower case. The gateway adds ``content-length`` unless the body is a stream.
        body: Bytes, a mapping to send as JSON, or a stream of chunks.
        on_close: Called when the response was sent or the client has gone.
    """

    status: int
    headers: Mapping[str, str] = field(factory=dict)
    body: bytes | Mapping[str, Any] | Iterable[bytes] = field(default=b"", repr=False)
    on_close: Callable[[], object] = field(default=lambda: None, repr=False)

    @cached_property
    def content(self) -> bytes | None:
        """The whole body; None if it is a stream."""
        if isinstance(self.body, Mapping):
            return json.dumps(self.body).encode()
        return self.body if isinstance(self.body, bytes) else None

    @property
    def all_headers(self) -> list[tuple[str, str]]:
        """The headers, those that follow from the body included."""
        added = {"content-type": "application/json"} if isinstance(self.body, Mapping) else {}
        if (content := self.content) is not None and self.status not in {204, 304}:  # RFC 9110 8.6
            added["content-length"] = str(len(content))
        return list({**added, **self.headers}.items())

    def __iter__(self) -> Iterator[bytes]:
        # Without content, the body is iterable.
        return iter(self.body if (content := self.content) is None else [content])  # type: ignore[arg-type]

    def close(self) -> None:
        """Release what the body was read from."""
        self.on_close()


Handler = Callable[[Request], Response]


def parse_length(value: str) -> int | None:
    """Return the number that a ``Content-Length`` holds; None if it is not a number of at most 18 digits."""
    value = value.strip()
    return int(value) if value.isascii() and value.isdecimal() and len(value) < 19 else None
