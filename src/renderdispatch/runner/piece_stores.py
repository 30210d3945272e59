"""How are the pieces of a video read and written, each by its name?

In a folder of this machine, or by the signed URLs of a grants object. `renderdispatch.runner.slots` says which piece
counts. No URL ever reaches a log or an error.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final, Literal, NamedTuple, Protocol, TypeVar

from pydantic import ValidationError

from renderdispatch.errors import ObjectExistsError, ObjectNotFoundError, RenderError, StorageError
from renderdispatch.messages import Grants, Pieces
from renderdispatch.plumbing import local_urls
from renderdispatch.plumbing.files import read_chunks, write_file
from renderdispatch.plumbing.net import PIECE_BYTES, Client, NetError, NotSentError, Response
from renderdispatch.plumbing.retry import Backoff, Trouble, retry
from renderdispatch.plumbing.stop import Stop
from renderdispatch.runner.transfers import Refused, trouble_of

_STALL_S: Final = 15.0
_READ_S: Final = 30.0
"""How long a range may take; plans are read by ranges of some megabytes."""

_READING: Final = Backoff(failures=3, pause_s=0.4, throttled_s=5.0)
_WRITING: Final = Backoff(failures=5, pause_s=0.5, throttled_s=20.0)
_THROTTLED_S: Final = 1.0
"""R2 refuses a second write of a key within a second of the first by 429."""

_MOST_GRANTS: Final = 16 << 20

_T = TypeVar("_T")

Written = Literal["written", "exists", "unclear"]
"""What became of a write. ``unclear``: the piece exists, perhaps by an earlier try whose response was lost."""


class Piece(NamedTuple):
    """A piece of this job, or a lent one, of the job that this one repeats."""

    name: str
    lent: bool = False


class PieceTrouble(Exception):
    """Storage is away, or refuses; the text holds no secret."""


class PieceStore(Protocol):
    """Reads and writes pieces. Every call raises `PieceTrouble`, or what the stop's `check` raises."""

    def read(self, piece: Piece, begin: int, size: int) -> bytes | None:
        """Return a part of a piece, at most ``size`` bytes; None if it does not exist."""

    def put(self, name: str, path: Path) -> Written:
        """Write a piece once, whole or not at all."""

    def fetch(self, piece: Piece, into: Path, most: int) -> bool:
        """Copy a piece to a new file, at most so many bytes of it; return False if it does not exist."""


class FolderPieces:
    """Pieces that are files of this machine.

    Args:
        folder: Holds those of this job.
        lent: Hold the lent ones; of those with one name the first counts.
    """

    def __init__(self, folder: Path, lent: Sequence[Path] = ()) -> None:
        self._folder = folder
        self._lent = lent

    def read(self, piece: Piece, begin: int, size: int) -> bytes | None:
        """Read a part of the file."""
        if (path := self._path(piece)) is None:
            return None
        try:
            with path.open("rb") as file:
                file.seek(begin)
                return file.read(size)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _trouble_with(error) from None

    def put(self, name: str, path: Path) -> Written:
        """Write the file, whole or not at all."""
        try:
            write_file(self._folder / name, read_chunks(path), key=name, only_if_absent=True)
        except ObjectExistsError:
            return "exists"
        except OSError as error:  # of a storage too
            raise _trouble_with(error) from None
        return "written"

    def fetch(self, piece: Piece, into: Path, most: int) -> bool:
        """Copy the file."""
        if (path := self._path(piece)) is None:
            return False
        try:
            with path.open("rb") as source:
                _copy(_pieces_of(source), into, most)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _trouble_with(error) from None
        return True

    def _path(self, piece: Piece) -> Path | None:
        folders = self._lent if piece.lent else (self._folder,)
        paths = [folder / piece.name for folder in folders]
        return next((path for path in paths if path.is_file()), None)


class GrantedPieces:
    """Pieces behind the URLs of a grants object, which is read at the first use. Safe to share between threads.

    Args:
        grants: The URL of the object.
        local: Whether ``file:`` and ``memory:`` URLs may be used.
        stop: Ends every request; what its `check` raises passes.
    """

    def __init__(self, grants: str, *, local: bool, stop: Stop) -> None:
        self._url = grants
        self._local = local
        self._stop = stop
        self._client = Client(stall_s=_STALL_S, proxies=True)
        self._lock = threading.Lock()
        self._grants: Grants | None = None

    def close(self) -> None:
        """Cut off what is running, and close the connections."""
        self._client.close()

    def read(self, piece: Piece, begin: int, size: int) -> bytes | None:
        """Read a range."""
        url = self._read_url(piece)
        return None if url is None else self.read_url(url, begin, size)

    def put(self, name: str, path: Path) -> Written:
        """Write by one PUT."""
        grants = self._granted()
        if (url := grants.put.get(name)) is None:
            raise PieceTrouble(f"nothing may be written as {name}")
        if self._is_local(url):
            try:
                local_urls.put_once(url, path)
            except ObjectExistsError:
                return "exists"
            except OSError as error:
                raise _trouble_with(error) from None
            return "written"
        unclear = False

        def attempt() -> Written:
            nonlocal unclear
            try:
                return self._put(url, path, grants)
            except (NetError, Refused) as error:
                unclear |= not isinstance(error, NotSentError) and trouble_of(error) is Trouble.FAILED
                raise

        written = self._retried(attempt, _WRITING)
        return "unclear" if unclear and written == "exists" else written

    def fetch(self, piece: Piece, into: Path, most: int) -> bool:
        """Download the object."""
        url = self._read_url(piece)
        if url is None:
            return False
        if self._is_local(url):
            try:
                with local_urls.open_get(url) as source:
                    _copy(_pieces_of(source), into, most)
            except ObjectNotFoundError:
                return False
            except OSError as error:
                raise _trouble_with(error) from None
            return True
        return self._retried(lambda: self._download(url, into, most), _WRITING)

    def read_url(self, url: str, begin: int, size: int) -> bytes | None:
        """Return a part of the object behind a URL, which needs not be a granted one; None if it does not exist."""
        if self._is_local(url):
            try:
                with local_urls.open_get(url) as file:
                    file.seek(begin)
                    return file.read(size)
            except ObjectNotFoundError:
                return None
            except OSError as error:
                raise _trouble_with(error) from None
        return self._retried(lambda: self._range(url, begin, size), _READING)

    # --- one request

    def _range(self, url: str, begin: int, size: int) -> bytes | None:
        headers = {"range": f"bytes={begin}-{begin + size - 1}"}
        with (
            Stop(timeout_s=_READ_S, parent=self._stop) as stop,
            self._client.stream("GET", url, headers=headers, stop=stop) as response,
        ):
            match response.status:
                case 206:
                    return response.read(size).body
                case 200:  # by a server that knows no ranges
                    return response.read(begin + size).body[begin:]
                case 404:
                    return None
                case 416:
                    return b""
            raise Refused.by(response)

    def _put(self, url: str, path: Path, grants: Grants) -> Written:
        def chunks() -> Iterator[bytes]:
            with path.open("rb") as file:
                yield from _pieces_of(file)

        headers = {**grants.headers, "content-length": str(path.stat().st_size)}
        response = self._client.request("PUT", url, headers=headers, body=chunks(), stop=self._stop)
        if response.status == 412:
            return "exists"
        if response.status not in {200, 201, 204}:
            raise Refused.by(response)
        return "written"

    def _download(self, url: str, into: Path, most: int) -> bool:
        with self._client.stream("GET", url, stop=self._stop) as response:
            if response.status == 404:
                return False
            if response.status != 200:
                raise Refused.by(response)
            _copy(response.pieces, into, most)
        return True

    def _retried(self, attempt: Callable[[], _T], backoff: Backoff) -> _T:
        """Try until it succeeds, with the same limits for every kind of request."""
        try:
            return retry(
                attempt,
                backoff,
                trouble=trouble_of,
                least_s=lambda error: _THROTTLED_S if trouble_of(error) is Trouble.THROTTLED else 0.0,
                stop=self._stop,
            )
        except (NetError, Refused, OSError) as error:
            self._stop.check()
            raise PieceTrouble(f"storage {error}") from None

    # --- the grants

    def _read_url(self, piece: Piece) -> str | None:
        grants = self._granted()
        return (grants.lent if piece.lent else grants.get).get(piece.name)

    def _granted(self) -> Grants:
        with self._lock:
            if self._grants is None:
                body = self.read_url(self._url, 0, _MOST_GRANTS)
                if body is None:
                    raise PieceTrouble("has no grants object")
                self._grants = _read_grants(body)
            return self._grants

    def _is_local(self, url: str) -> bool:
        scheme = url.partition(":")[0]
        if scheme in {"http", "https"}:
            return False
        if not self._local:
            raise PieceTrouble(f"is named by a {scheme[:10]}: URL, in an order that came from afar")
        return True


def is_there(url: str, *, local: bool, client: Client, stop: Stop) -> bool:
    """Return whether there is an object behind a read URL. Asks once, for one byte; trouble counts as no."""
    if local and url.partition(":")[0] not in {"http", "https"}:
        with suppress(StorageError), local_urls.open_get(url):
            return True
        return False
    with suppress(NetError), Stop(timeout_s=_READ_S, parent=stop) as bounded:
        response: Response = client.request("GET", url, headers={"range": "bytes=0-0"}, max_bytes=1, stop=bounded)
        return response.status in {200, 206, 416}
    return False


def folder_of(pieces: Pieces, *, local: bool) -> FolderPieces | None:
    """Return the pieces in the folder that an order names; None if it names none.

    Raises:
        RenderError: ``order.local-url``: the order came from afar.
    """
    if pieces.folder is None:
        return None
    if not local:
        raise RenderError("the order came from afar and names a folder", code="order.local-url")
    return FolderPieces(Path(pieces.folder), [Path(lent) for lent in pieces.lent])


def _read_grants(body: bytes) -> Grants:
    try:
        if body[:2] == b"\x1f\x8b":
            inflater = zlib.decompressobj(wbits=31)
            body = inflater.decompress(body, _MOST_GRANTS)
            if not inflater.eof:
                raise PieceTrouble("has a grants object that is cut off, or too large")
        return Grants.model_validate_json(body)
    except (zlib.error, ValidationError):
        raise PieceTrouble("has no grants object that can be read") from None


def _pieces_of(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(PIECE_BYTES):
        yield piece


def _copy(pieces: Iterable[bytes], into: Path, most: int) -> None:
    """Write pieces to a file, until there is no other one or the file has ``most`` bytes."""
    left = most
    with into.open("wb") as file:
        for piece in pieces:
            file.write(piece[:left])
            left -= min(len(piece), left)
            if not left:
                return


def _trouble_with(error: OSError) -> PieceTrouble:
    return PieceTrouble(f"fails: {type(error).__name__}: {error.strerror or ''}".rstrip(": "))
