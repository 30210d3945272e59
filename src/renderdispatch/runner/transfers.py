"""How do audio and video travel between storage and this disk?

By the order's signed URLs alone, streamed, and tried again until the deadline. ``file:`` and ``memory:`` URLs are
honoured only for orders that never left the machine. No URL ever reaches a log or an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from attrs import frozen

from renderdispatch.errors import ObjectExistsError, ObjectNotFoundError, RenderError
from renderdispatch.messages import SignedPut
from renderdispatch.plumbing import local_urls
from renderdispatch.plumbing.net import PIECE_BYTES, STALL_S, Wire, etag_of, new_client
from renderdispatch.plumbing.stop import Stop

if TYPE_CHECKING:
    import httpx

_log: Final = logging.getLogger("renderdispatch.runner")

CHUNK_BYTES: Final = 1 << 20
_SMALL_BYTES: Final = 1 << 20
_RETRIED: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_MAX_FAILURES: Final = 8
_CHECK_S: Final = 0.1

_T = TypeVar("_T")

Moved = Callable[[int], None]
"""``moved(bytes_so_far)``: told now and then while bytes move; what it raises ends the transfer."""


@frozen(kw_only=True)
class Seen:
    """An object as its URL shows it: bytes, and the etag where there is one."""

    size: int
    etag: str | None


@contextlib.contextmanager
def open_transfers(*, local: bool, stop: Stop, stall_s: float = STALL_S) -> Iterator[Transfers]:
    """Open what moves objects by URL.

    Args:
        local: Whether ``file:`` and ``memory:`` URLs may be used.
        stop: Ends a transfer.
        stall_s: After how many seconds in which nothing moves a try has failed.
    """
    with Transfers(local=local, stop=stop, stall_s=stall_s) as transfers:
        stop.on_request(transfers.cut)
        try:
            yield transfers
        finally:
            stop.forget(transfers.cut)


class Transfers:
    """Moves objects by URL. Use it as a context manager."""

    def __init__(self, *, local: bool, stop: Stop, stall_s: float = STALL_S) -> None:
        self._local = local
        self._give_up_at = time.monotonic() + stop.remaining_s
        self._check = stop.check
        self._stall_s = stall_s
        self._wire = Wire()
        self._client: httpx.Client | None = None
        self._end: threading.Timer | None = None

    def __enter__(self) -> Transfers:
        return self

    def cut(self) -> None:
        """Cut off the transfer that another thread is at; what ``check`` raises then ends it."""
        self._wire.cut()

    def __exit__(self, *_: object) -> None:
        if self._end is not None:
            self._end.cancel()
        if self._client is not None:
            self._client.close()

    def download(self, url: str, into: Path, *, size: int, moved: Moved) -> Path:
        """Bring an object of ``size`` bytes to disk and return where it lies: a local file stays where it is.

        Raises:
            RenderError: ``audio.download``, or ``audio.changed`` when the object has another size.
        """
        if self._is_local(url):
            path = local_urls.local_path(url) or self._copy(url, into, moved)
            found = path.stat().st_size if path.is_file() else None
        else:
            path = into
            into.unlink(missing_ok=True)
            self._persist(
                lambda: self._download_rest(url, into, size, moved),
                "audio.download",
                "download the audio",
                moved=lambda: into.stat().st_size if into.exists() else 0,
            )
            found = into.stat().st_size
        if found is None:
            raise RenderError("the audio is not in storage any more", code="audio.missing")
        if found != size:
            raise RenderError(f"the audio in storage has {found} bytes, not {size}", code="audio.changed")
        return path

    def upload(self, put: SignedPut, path: Path, *, moved: Moved) -> str | None:
        """Write a file to a write-once URL and return its etag, where storage says one.

        Raises:
            ObjectExistsError: An object stands there: perhaps an earlier try whose answer was lost. Look at it.
            RenderError: ``video.upload``.
        """
        if self._is_local(put.url):
            local_urls.put_once(put.url, path)
            return None
        return self._persist(lambda: self._put(put, path, moved), "video.upload", "upload the video")

    def stat(self, url: str) -> Seen | None:
        """Return what stands behind a read URL, None when nothing does; asks for one byte.

        Raises:
            RenderError: ``storage.look``.
        """
        if self._is_local(url):
            with contextlib.suppress(ObjectNotFoundError, FileNotFoundError), local_urls.open_get(url) as file:
                return Seen(size=file.seek(0, 2), etag=None)
            return None
        return self._persist(lambda: self._look(url), "storage.look", "look at the stored video")

    def read_small(self, url: str) -> bytes | None:
        """Return the bytes behind a read URL, at most 1 MiB of them, None when nothing stands there.

        Raises:
            RenderError: ``storage.read``.
        """
        if self._is_local(url):
            with contextlib.suppress(ObjectNotFoundError, FileNotFoundError), local_urls.open_get(url) as file:
                return file.read(_SMALL_BYTES)
            return None
        return self._persist(lambda: self._read_small(url), "storage.read", "read the result object")

    # --- this machine

    def _is_local(self, url: str) -> bool:
        scheme = url.partition(":")[0]
        if scheme in {"http", "https"}:
            return False
        if not self._local:
            raise RenderError(f"the order came from afar and names a {scheme[:10]}: URL", code="order.local-url")
        return True

    def _copy(self, url: str, into: Path, moved: Moved) -> Path:
        try:
            with local_urls.open_get(url) as source, into.open("wb") as file:
                while chunk := source.read(CHUNK_BYTES):
                    file.write(chunk)
                    moved(file.tell())
        except (ObjectNotFoundError, FileNotFoundError):
            raise RenderError("the audio is not in storage any more", code="audio.missing") from None
        return into

    # --- HTTP

    def _http(self) -> httpx.Client:
        if self._client is None:
            self._client = new_client(stall_s=self._stall_s, wire=self._wire)
            left_s = max(0.0, self._give_up_at - time.monotonic()) + self._stall_s
            if left_s <= threading.TIMEOUT_MAX:
                # the timeouts of sockets begin anew with every byte: nothing else looks at an answer that trickles in
                self._end = threading.Timer(left_s, self._wire.cut)
                self._end.name, self._end.daemon = "renderdispatch-deadline", True
                self._end.start()
        return self._client

    def _persist(self, attempt: Callable[[], _T], code: str, what: str, moved: Callable[[], int] = lambda: 0) -> _T:
        """Try until it works, is refused for good, or time is up; tries that moved something are not counted."""
        import httpx

        failures = 0
        before = moved()
        while True:
            try:
                return attempt()
            except _Refused as refused:
                if not refused.again:
                    raise RenderError(f"could not {what}: {refused}", code=code) from None
                reason = str(refused)
            except httpx.HTTPError as error:  # its text may hold the URL
                reason = type(error).__name__
            after = moved()
            failures = 1 if after > before else failures + 1
            before = after
            pause = random.uniform(0.5, 1.0) * min(20.0, 0.25 * 2**failures)
            if time.monotonic() + pause > self._give_up_at or failures >= _MAX_FAILURES:
                raise RenderError(f"could not {what}: {reason}, after {failures} tries", code=code)
            _log.info("trying again to %s: %s", what, reason)
            self._rest(pause)

    def _rest(self, pause_s: float) -> None:
        until = time.monotonic() + pause_s
        while (left_s := until - time.monotonic()) > 0:
            self._check()
            time.sleep(min(_CHECK_S, left_s))
        self._check()

    def _download_rest(self, url: str, into: Path, size: int, moved: Moved) -> None:
        done = into.stat().st_size if into.exists() else 0
        if done == size and into.exists():
            return
        headers = {"range": f"bytes={done}-"} if done else {}
        with self._http().stream("GET", url, headers=headers) as response:
            if done and response.status_code == 200:
                done = 0
            elif response.status_code != (206 if done else 200):
                raise _Refused.by(response)
            with into.open("ab" if done else "wb") as file:
                for chunk in response.iter_raw():  # as it comes: a connection that breaks loses nothing
                    if file.tell() + len(chunk) > size:
                        file.write(chunk)  # one chunk too many is enough to see that it changed
                        return
                    file.write(chunk)
                    moved(file.tell())
        if into.stat().st_size < size:
            raise _Refused("the answer broke off", again=True)

    def _put(self, put: SignedPut, path: Path, moved: Moved) -> str | None:
        size = path.stat().st_size
        with path.open("rb") as file:

            def chunks() -> Iterator[bytes]:
                while chunk := file.read(PIECE_BYTES):
                    yield chunk
                    moved(file.tell())

            headers = {name.lower(): value for name, value in put.headers.items()}
            headers.setdefault("content-length", str(size))  # else it would go in chunks, which S3 refuses
            response = self._http().put(put.url, content=chunks(), headers=headers)
        if response.status_code == 412:
            raise ObjectExistsError("an object stands under this write-once key")
        if response.status_code not in {200, 201, 204}:
            raise _Refused.by(response)
        return etag_of(response.headers.get("etag"))

    def _look(self, url: str) -> Seen | None:
        with self._http().stream("GET", url, headers={"range": "bytes=0-0"}) as response:
            match response.status_code:
                case 404:
                    return None
                case 416:
                    return Seen(size=0, etag=etag_of(response.headers.get("etag")))
                case 206:
                    size = response.headers.get("content-range", "").rpartition("/")[2]
                case 200:
                    size = response.headers.get("content-length", "")
                case _:
                    raise _Refused.by(response)
            if not size.isdecimal():
                raise _Refused("storage did not say how many bytes there are", again=False)
            return Seen(size=int(size), etag=etag_of(response.headers.get("etag")))

    def _read_small(self, url: str) -> bytes | None:
        with self._http().stream("GET", url) as response:
            if response.status_code == 404:
                return None
            if response.status_code != 200:
                raise _Refused.by(response)
            body = b""
            for chunk in response.iter_raw(65536):
                body += chunk
                if len(body) > _SMALL_BYTES:
                    break
            return body[:_SMALL_BYTES]


class _Refused(Exception):
    """An answer that is no success; ``again`` says whether another try makes sense."""

    def __init__(self, message: str, *, again: bool) -> None:
        super().__init__(message)
        self.again = again

    @classmethod
    def by(cls, response: httpx.Response) -> _Refused:
        return cls(f"storage answered {response.status_code}", again=response.status_code in _RETRIED)


def sha256_of(path: Path, *, check: Callable[[], None] = lambda: None) -> str:
    """Return the SHA-256 of a file, in hex; what ``check`` raises ends it."""
    return _hex_of(path, hashlib.sha256(), check)


def md5_of(path: Path, *, check: Callable[[], None] = lambda: None) -> str:
    """Return the MD5 of a file, in hex: the etag that S3 and R2 give what came in one PUT."""
    return _hex_of(path, hashlib.md5(usedforsecurity=False), check)


def _hex_of(path: Path, digest: hashlib._Hash, check: Callable[[], None]) -> str:
    piece = memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(piece):
            digest.update(piece[:size])
            check()
    return digest.hexdigest()
