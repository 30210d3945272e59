"""Does each client end in time, wherever a server hangs: at its deadline, and when it is told to stop?"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest

from renderdispatch.backends.http import HttpBackend
from renderdispatch.cli.bucket import examine_bucket
from renderdispatch.errors import RenderDispatchError, RenderError
from renderdispatch.messages import Callback, CheckedIn, SignedPut
from renderdispatch.plumbing.fetch import GuardedFetcher
from renderdispatch.plumbing.stop import Stop
from renderdispatch.protocols import BackendCall
from renderdispatch.runner.reporting import NotDeliveredError
from renderdispatch.runner.transfers import Transfers, open_transfers
from renderdispatch.runner.webhook import WebhookSender
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.storage.r2 import R2Storage
from renderdispatch.testing import make_order
from renderdispatch.testing.contracts.backends import Recorder

DEADLINE_S: Final = 1.0
HANG_S: Final = 30.0
ENDED_S: Final = 5.0
NAME: Final = "hangs.example"
SIZE: Final = 64 << 20

# --- servers that hang ----------------------------------------------------------------------------


class Server:
    """Listens on loopback and hangs, at most for `HANG_S`."""

    def __init__(self, start: bytes | None) -> None:
        self.over = threading.Event()
        self._start = start
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self.over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._trickle, args=(connection,), daemon=True).start()

    def _trickle(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            if self._start is None:
                self.over.wait(HANG_S)
                return
            connection.recv(65536)
            connection.sendall(self._start)
            ends_at = time.monotonic() + HANG_S
            while time.monotonic() < ends_at and not self.over.wait(0.1):
                connection.sendall(b"x")


@contextmanager
def _server(scheme: str, start: bytes | None) -> Iterator[str]:
    server = Server(start)
    try:
        yield f"{scheme}://{server.address}"
    finally:
        server.close()


@contextmanager
def hanging_in_the_name() -> Iterator[str]:
    """The resolver does not answer."""
    over = threading.Event()
    real = socket.getaddrinfo

    def resolve(host: object, *args: object, **options: object) -> object:
        if host == NAME:
            over.wait(HANG_S)
        return real(host, *args, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", resolve)
        yield f"https://{NAME}"
    over.set()


@contextmanager
def hanging_in_the_connect() -> Iterator[str]:
    """The listener accepts nothing, and its backlog is full: no SYN is answered any more."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        for _ in range(64):
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0.3)
            try:
                waiting.connect(address)
            except TimeoutError:
                break
        else:
            pytest.skip("this machine's backlog never fills")
        yield f"http://127.0.0.1:{address[1]}"


HEAD: Final = b"HTTP/1.1 200 OK\r\n"
HANGS: Final[dict[str, Callable[[], AbstractContextManager[str]]]] = {
    "name": hanging_in_the_name,
    "connect": hanging_in_the_connect,
    "tls": lambda: _server("https", None),
    "headers": lambda: _server("http", HEAD + b"x-trickle: "),
    "body": lambda: _server("http", HEAD + b"content-length: %d\r\n\r\n" % SIZE),
}

# --- clients ----------------------------------------------------------------------------------------

Client = Callable[[str, Path, float, Stop], object]
"""Called with a URL, a folder, the deadline in seconds, and a stop that ends at the deadline too."""


def _backend(url: str, deadline_s: float, stop: Stop, use: Callable[[HttpBackend], object]) -> object:
    backend = HttpBackend(url, timeout=timedelta(seconds=deadline_s), allow_http=True)
    stop.on_request(backend.close)
    return use(backend)


def _start(url: str, _folder: Path, deadline_s: float, stop: Stop) -> object:
    order = make_order(MemoryStorage())
    return _backend(url, deadline_s, stop, lambda backend: backend.start(order, on_event=Recorder()))


def _poll(url: str, _folder: Path, deadline_s: float, stop: Stop) -> object:
    return _backend(url, deadline_s, stop, lambda backend: backend.poll(BackendCall("a")))


def _report(url: str, _folder: Path, deadline_s: float, stop: Stop) -> object:
    order = make_order(MemoryStorage())
    event = CheckedIn(event_id="e", job_id=order.job_id, token=order.token, run_id="r")
    callback = Callback(url=url, key="whsec_" + "A" * 32)
    with WebhookSender(order, callback, stop=stop, try_s=deadline_s) as send:
        return send(event)


def _transfer(move: Callable[[Transfers, str, Path], object]) -> Client:
    def client(url: str, folder: Path, _deadline_s: float, stop: Stop) -> object:
        with open_transfers(local=False, stop=stop) as transfers:
            return move(transfers, url, folder)

    return client


def _upload(transfers: Transfers, url: str, folder: Path) -> object:
    (folder / "video").write_bytes(b"v")
    return transfers.upload(SignedPut(url=url, headers={}), folder / "video", moved=lambda _: None)


def _fetch(url: str, _folder: Path, deadline_s: float, stop: Stop) -> object:
    fetcher = GuardedFetcher(allow_http=True, allow_private=True, total_s=deadline_s)
    with fetcher.fetch(url, stop=stop) as fetched:
        return b"".join(fetched.chunks)


def _examine(url: str, _folder: Path, _deadline_s: float, stop: Stop) -> object:
    storage = R2Storage("bucket", endpoint_url=url, access_key_id="id", secret_access_key="secret")
    (clock,) = examine_bucket(storage, stop=stop)
    raise RenderDispatchError(clock.said)


CLIENTS: Final[dict[str, Client]] = {
    "start": _start,
    "poll": _poll,
    "webhook": _report,
    "download": _transfer(
        lambda transfers, url, folder: transfers.download(url, folder / "a", size=SIZE, moved=_ignore)
    ),
    "upload": _transfer(_upload),
    "stat": _transfer(lambda transfers, url, _: transfers.stat(url)),
    "read": _transfer(lambda transfers, url, _: transfers.read_small(url)),
    "fetch": _fetch,
    "doctor": _examine,
}


def _ignore(_done: int) -> None:
    pass


def _ended(use: Callable[[], object], *, least_s: float) -> str:
    """Return how a client ended, and whether it hung, and then ended in time."""
    began = time.monotonic()
    try:
        use()
        how = "returned"
    except (RenderDispatchError, NotDeliveredError):
        how = "raised"
    seconds = time.monotonic() - began
    return how if least_s <= seconds < ENDED_S else f"{how} after {seconds:.1f} s"


@pytest.mark.parametrize("ending", ["deadline", "stop"])
@pytest.mark.parametrize("hang", HANGS)
def test_a_client_ends(hang: str, ending: str, tmp_path: Path) -> None:
    """Every client ends soon after its deadline of a second, or after a request to stop, wherever the server hangs."""
    ended: dict[str, str] = {}

    def end(name: str, url: str, deadline_s: float, stop: Stop) -> None:
        folder = tmp_path / name
        folder.mkdir()
        ended[name] = _ended(lambda: CLIENTS[name](url, folder, deadline_s, stop), least_s=0.1)

    with HANGS[hang]() as url:
        deadline_s = DEADLINE_S if ending == "deadline" else HANG_S
        stop = Stop(timeout_s=deadline_s, error=RenderError)
        threads = [threading.Thread(target=end, args=(name, url, deadline_s, stop)) for name in CLIENTS]
        for thread in threads:
            thread.start()
        if ending == "stop":
            time.sleep(0.3)  # nothing tells that a client hangs; to stop one that does not yet must end it too
            stop.request("cancelled")
        for thread in threads:
            thread.join()
    needs_no_body = {"stat": "returned"} if hang == "body" else {}
    assert ended == {**dict.fromkeys(CLIENTS, "raised"), **needs_no_body}


@pytest.mark.parametrize("ending", ["deadline", "stop"])
def test_an_upload_that_is_not_read(ending: str, tmp_path: Path) -> None:
    """An upload ends too when the server does not read the body."""
    video = tmp_path / "video"
    with video.open("wb") as file:
        file.truncate(SIZE)
    with _server("http", None) as url:
        stop = Stop(timeout_s=DEADLINE_S if ending == "deadline" else HANG_S, error=RenderError)
        with open_transfers(local=False, stop=stop) as transfers:
            put = SignedPut(url=url, headers={})
            if ending == "stop":
                threading.Timer(0.3, stop.request, ("cancelled",)).start()
            assert _ended(lambda: transfers.upload(put, video, moved=_ignore), least_s=0.1) == "raised"
