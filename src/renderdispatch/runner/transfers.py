"""How do audio and video travel between storage and this disk?

By the order's signed URLs alone, streamed, and retried until the run is to stop. ``file:`` and ``memory:`` URLs are
honoured only for orders that never left the machine. No URL ever reaches a log or an error.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final, Literal, TypeVar

from attrs import frozen

from renderdispatch.errors import (
    AudioError,
    InvalidRequestError,
    ObjectExistsError,
    ObjectNotFoundError,
    RenderDispatchError,
    RenderError,
)
from renderdispatch.messages import SignedPut
from renderdispatch.plumbing import local_urls
from renderdispatch.plumbing.failures import translated
from renderdispatch.plumbing.net import PIECE_BYTES, STALL_S, BadUrlError, Client, NetError, Response, etag_of
from renderdispatch.plumbing.retry import Backoff, Trouble, retry
from renderdispatch.plumbing.stop import Stop, Stopped

CHUNK_BYTES: Final = 1 << 20
_SMALL_BYTES: Final = 1 << 20
_RETRIED: Final = frozenset({408, 425, 500, 502, 503, 504})
_BACKOFF: Final = Backoff(failures=8)

_T = TypeVar("_T")

Moved = Callable[[int], None]
"""``moved(bytes_so_far)``: called now and then while bytes move; what it raises ends the transfer."""

Input = Literal["audio", "cover", "scene-file", "image", "bundle"]
Product = Literal["video", "poster"]


def input_error(what: Input, message: str, code: str) -> RenderDispatchError:
    """Return the error of an input that cannot be used: the audio's fault, or the request's."""
    kind = AudioError if what == "audio" else InvalidRequestError
    return kind(f"the {called(what)} {message}", code=f"{what}.{code}")


def called(what: Input) -> str:
    """Return what messages call an input."""
    return what.replace("-", " ")


@frozen(kw_only=True)
class ObjectStat:
    """An object as its URL shows it: bytes, and the etag if there is one."""

    size: int
    etag: str | None


@contextmanager
def open_transfers(*, local: bool, stop: Stop, stall_s: float = STALL_S) -> Iterator[Transfers]:
    """Yield what moves the objects of one order.

    Args:
        local: Whether ``file:`` and ``memory:`` URLs may be used.
        stop: Ends every transfer, also in its midst, and the waiting between two tries; what its `check` raises passes.
        stall_s: After how many seconds in which nothing moves a try has failed.
    """
    with closing(HttpTransfers(stop, stall_s=stall_s)) as http:
        yield Transfers(http, LocalTransfers() if local else None)


class Transfers:
    """Moves objects by URL, each in the manner of its scheme."""

    def __init__(self, http: HttpTransfers, local: LocalTransfers | None) -> None:
        self._http = http
        self._local = local

    def _of(self, url: str) -> HttpTransfers | LocalTransfers:
        scheme = url.partition(":")[0]
        if scheme in {"http", "https"}:
            return self._http
        if self._local is None:
            raise RenderError(f"the order came from afar and names a {scheme[:10]}: URL", code="order.local-url")
        return self._local

    def download(self, url: str, into: Path, *, size: int, moved: Moved, what: Input = "audio") -> Path:
        """Bring an object of ``size`` bytes to disk and return its path: a local file stays where it is.

        Raises:
            RenderError: ``audio.download``, or the like for another input.
            AudioError: ``audio.missing``, or ``audio.changed`` when the object has another size.
            InvalidRequestError: The same for another input.
        """
        path = self._of(url).download(url, into, size=size, moved=moved, what=what)
        if (found := path.stat().st_size) != size:
            raise input_error(what, f"has {found} bytes, not {size}", "changed")
        return path

    def upload(self, put: SignedPut, path: Path, *, moved: Moved, what: Product = "video") -> str | None:
        """Write a file to a write-once URL and return its etag, if storage names one.

        Raises:
            ObjectExistsError: The object exists: perhaps from an earlier try whose response was lost. Compare it.
            RenderError: ``video.upload``, or the like for another product.
        """
        return self._of(put.url).upload(put, path, moved=moved, what=what)

    def stat(self, url: str) -> ObjectStat | None:
        """Return size and etag of the object behind a read URL, None if there is none; asks for one byte.

        Raises:
            RenderError: ``storage.stat``.
        """
        return self._of(url).stat(url)

    def read_small(self, url: str) -> bytes | None:
        """Return the bytes behind a read URL, at most 1 MiB of them, None if there is no object.

        Raises:
            RenderError: ``storage.read``.
        """
        return self._of(url).read_small(url)


class LocalTransfers:
    """Moves objects of this machine, by ``file:`` and ``memory:`` URLs."""

    def download(self, url: str, into: Path, *, size: int, moved: Moved, what: Input) -> Path:  # noqa: ARG002 - the caller compares
        """Return the file in place; copy an object in memory."""

        def missing(_: object = None) -> RenderDispatchError:
            return input_error(what, "is gone", "missing")

        if (path := local_urls.local_path(url)) is not None:
            if not path.is_file():
                raise missing()
            return path
        with translated({ObjectNotFoundError: missing}):
            source = local_urls.open_get(url)
        with source, into.open("wb") as file:
            while chunk := source.read(CHUNK_BYTES):
                file.write(chunk)
                moved(file.tell())
        return into

    def upload(self, put: SignedPut, path: Path, *, moved: Moved, what: Product) -> None:  # noqa: ARG002 - it is quick
        """Write the file, whole or not at all."""
        local_urls.put_once(put.url, path)

    def stat(self, url: str) -> ObjectStat | None:
        """Return the object's size."""
        with suppress(ObjectNotFoundError), local_urls.open_get(url) as file:
            return ObjectStat(size=file.seek(0, 2), etag=None)
        return None

    def read_small(self, url: str) -> bytes | None:
        """Return the object's first bytes."""
        with suppress(ObjectNotFoundError), local_urls.open_get(url) as file:
            return file.read(_SMALL_BYTES)
        return None


class HttpTransfers:
    """Moves objects by signed HTTP URLs, and retries until ``stop``.

    Args:
        stop: Ends every try and the waiting between two.
        stall_s: After how many seconds in which nothing moves a try has failed.
    """

    def __init__(self, stop: Stop, *, stall_s: float = STALL_S) -> None:
        self._stop = stop
        self._client = Client(stall_s=stall_s, proxies=True)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def download(self, url: str, into: Path, *, size: int, moved: Moved, what: Input = "audio") -> Path:
        """Download; after a broken connection only the rest is asked for."""
        into.write_bytes(b"")
        self._retry(
            lambda: self._download_rest(url, into, size, moved),
            f"{what}.download",
            f"download the {called(what)}",
            progress=lambda: into.stat().st_size,
        )
        return into

    def upload(self, put: SignedPut, path: Path, *, moved: Moved, what: Product = "video") -> str | None:
        """Upload with exactly the signed headers and the length."""
        return self._retry(lambda: self._put(put, path, moved), f"{what}.upload", f"upload the {what}")

    def stat(self, url: str) -> ObjectStat | None:
        """Ask for one byte: signed read URLs allow no HEAD."""
        return self._retry(lambda: self._stat(url), "storage.stat", "check the stored video")

    def read_small(self, url: str) -> bytes | None:
        """Read the beginning of the object."""
        return self._retry(lambda: self._read_small(url), "storage.read", "read the result object")

    def _retry(self, attempt: Callable[[], _T], code: str, what: str, progress: Callable[[], int] | None = None) -> _T:
        tries = 0

        def counted() -> _T:
            nonlocal tries
            tries += 1
            return attempt()

        try:
            return retry(counted, _BACKOFF, trouble=trouble_of, progress=progress, stop=self._stop, what=what)
        except (NetError, Refused) as error:
            after = f", after {tries} tries" if tries > 1 else ""
            raise RenderError(f"could not {what}: storage {error}{after}", code=code) from None

    def _download_rest(self, url: str, into: Path, size: int, moved: Moved) -> None:
        done = into.stat().st_size
        if done and done == size:
            return
        headers = {"range": f"bytes={done}-"} if done else {}
        with self._client.stream("GET", url, headers=headers, stop=self._stop) as response:
            if done and response.status == 200:
                done = 0
            elif response.status != (206 if done else 200):
                raise Refused.by(response)
            with into.open("ab" if done else "wb") as file:
                for piece in response.pieces:  # as it comes: a connection that breaks loses nothing
                    if file.tell() + len(piece) > size:
                        file.write(piece)  # one piece too many is enough to see that it changed
                        return
                    file.write(piece)
                    moved(file.tell())
        if into.stat().st_size < size:
            raise Refused("broke off", Trouble.FAILED)

    def _put(self, put: SignedPut, path: Path, moved: Moved) -> str | None:
        with path.open("rb") as file:

            def pieces() -> Iterator[bytes]:
                while piece := file.read(PIECE_BYTES):
                    yield piece
                    moved(file.tell())

            # else it would go in chunks, which S3 refuses
            headers = {"content-length": str(path.stat().st_size)} | {k.lower(): v for k, v in put.headers.items()}
            response = self._client.request("PUT", put.url, headers=headers, body=pieces(), stop=self._stop)
        if response.status == 412:
            raise ObjectExistsError("an object exists under this write-once key")
        if response.status not in {200, 201, 204}:
            raise Refused.by(response)
        return etag_of(response.headers.get("etag"))

    def _stat(self, url: str) -> ObjectStat | None:
        response = self._client.request("GET", url, headers={"range": "bytes=0-0"}, max_bytes=1, stop=self._stop)
        match response.status:
            case 404:
                return None
            case 416:
                size = "0"
            case 206:
                size = response.headers.get("content-range", "").rpartition("/")[2]
            case 200:
                size = response.headers.get("content-length", "")
            case _:
                raise Refused.by(response)
        if not size.isdecimal():
            raise Refused("did not say how many bytes there are", Trouble.FATAL)
        return ObjectStat(size=int(size), etag=etag_of(response.headers.get("etag")))

    def _read_small(self, url: str) -> bytes | None:
        response = self._client.request("GET", url, max_bytes=_SMALL_BYTES, stop=self._stop)
        if response.status == 404:
            return None
        if response.status != 200:
            raise Refused.by(response)
        return response.body


class Refused(Exception):
    """A response that is not a success, and what it says about another try."""

    def __init__(self, message: str, trouble: Trouble) -> None:
        super().__init__(message)
        self.trouble = trouble

    @classmethod
    def by(cls, response: Response) -> Refused:
        """Return the error that a response stands for."""
        trouble = Trouble.FAILED if response.status in _RETRIED else Trouble.FATAL
        return cls(f"answered {response.status}", Trouble.THROTTLED if response.status == 429 else trouble)


def trouble_of(error: Exception) -> Trouble:
    """Return what an error of a transfer over HTTP says about another try."""
    if isinstance(error, Refused):
        return error.trouble
    again = isinstance(error, NetError) and not isinstance(error, BadUrlError)
    return Trouble.FAILED if again else Trouble.FATAL


class Hashing:
    """Computes the SHA-256 of a file in a thread of its own, while the file is sent.

    Leaving the context manager ends it.

    Args:
        path: The file, which does not change meanwhile.
        stop: Ends it; what its `check` raises passes.
    """

    def __init__(self, path: Path, *, stop: Stop) -> None:
        self._path = path
        self._ending = Stop(parent=stop)
        self._stop = stop
        self._found: str | None = None
        self._thread = threading.Thread(target=self._hash, name="renderdispatch-hash", daemon=True)

    def __enter__(self) -> Hashing:
        with suppress(RuntimeError):  # no thread can be started: `sha256` computes it
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.request("it is not needed any more")
        self._ending.__exit__()
        if self._thread.ident is not None:
            self._thread.join()

    def sha256(self) -> str:
        """Return the hash, in hex, when it is computed."""
        if self._thread.ident is not None:
            self._thread.join()
        self._stop.check()
        return self._found or hex_of(self._path, hashlib.sha256(), check=self._stop.check)

    def _hash(self) -> None:
        with suppress(Exception):  # it was stopped, or `sha256` meets the error again
            self._found = hex_of(self._path, hashlib.sha256(), check=self._check)

    def _check(self) -> None:
        if self._ending.requested:
            raise Stopped


def hex_of(path: Path, digest: hashlib._Hash, *, check: Callable[[], None]) -> str:
    """Return the digest of a file, in hex; what ``check`` raises ends it."""
    piece = memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(piece):
            digest.update(piece[:size])
            check()
    return digest.hexdigest()
