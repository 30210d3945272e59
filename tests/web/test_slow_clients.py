"""What does a slow client cost the others?"""

from __future__ import annotations

import io
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from socketserver import ThreadingMixIn
from typing import Annotated, Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIServer

import anyio
import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Form
from flask import Flask
from flask import request as flask_request

from renderdispatch.backends.inline import InlineBackend
from renderdispatch.engine.layout import upload_key
from renderdispatch.messages import SignedPut
from renderdispatch.service import RenderService
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import eventually
from renderdispatch.web import fastapi, flask, webhook
from renderdispatch.web.asgi import AsgiApp, Receive, asgi
from renderdispatch.web.clients import BusyError, Pace, Room
from renderdispatch.web.http import Handler, IncompleteBodyError, Request, Response, SlowBodyError
from renderdispatch.web.wsgi import paced, wsgi
from tests.support.object_servers import KINDS, ObjectServer, Quiet, object_server

_HOUR = timedelta(hours=1)
_MANY = 12
"""More than gunicorn has threads here."""

_QUICK = partial(Pace, stall_s=0.3, grace_s=0.3, least_rate=float(1 << 20))
"""The pace of a test that waits for its end."""


# --- how slow a client may be


def test_a_client_may_wait_for_a_while() -> None:
    """A wait ends after the stall time, or once the client is behind the least rate for the time of grace."""
    pace = Pace(stall_s=30, grace_s=30, least_rate=1000)
    assert pace.patience_s() == 30
    pace.count(10_000, waited_s=25)
    assert pace.patience_s() == 15
    pace.count(0, waited_s=20)
    assert pace.patience_s() == 0
    pace.count(1_000_000, waited_s=1)
    assert (pace.patience_s(), pace.patience_s(5000)) == (30, 35)


def test_a_room_has_places() -> None:
    """Of one kind and of all there are so many places, and one that is left is free again."""
    room = Room(3, each=2)
    with ExitStack() as inside:
        for kind in ("a", "a", "b"):
            inside.enter_context(room.enter(kind))
        for kind in ("a", "b", "c"):
            with pytest.raises(BusyError), room.enter(kind):
                pass
    with room.enter("a"), room.enter("a"), pytest.raises(BusyError), room.enter("a"):
        pass


# --- servers of objects, as they are


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    with object_server(request.param, tmp_path_factory.mktemp("objects")) as server:
        yield server


def _begin(put: SignedPut) -> socket.socket:
    """Send the head of an upload, and nothing of its body."""
    parts = urlsplit(put.url)
    head = [f"PUT {parts.path}?{parts.query} HTTP/1.1", f"host: {parts.netloc}"]
    head += [f"{name}: {value}" for name, value in put.headers.items()]
    raw = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20)
    raw.sendall("\r\n".join([*head, "", ""]).encode())
    return raw


@pytest.mark.parametrize("granted", ["one grant", "a grant each", "no grant"])
def test_silent_uploads_cost_only_themselves(server: ObjectServer, granted: str) -> None:
    """However many connections send nothing, a video is downloaded and a render delivers one."""
    storage, urls = server.storage(), server.urls()
    storage.put("a/video.mp4", b"a video")
    now = MemoryJobStore().now()
    keys = [upload_key(None, now) for _ in range(_MANY if granted == "a grant each" else 1)]
    puts = [urls.sign_put(key, expires_in=_HOUR, content_type="audio/wav", size=1000) for key in keys]
    if granted == "no grant":
        puts = [SignedPut(url=f"{server.base}/key?expires=1", headers=puts[0].headers)]
    with ExitStack() as stack, httpx.Client(trust_env=False, timeout=60) as client:
        for number in range(_MANY):
            stack.enter_context(_begin(puts[number % len(puts)]))
        answer = client.get(urls.sign_get("a/video.mp4", expires_in=_HOUR))
        assert (answer.status_code, answer.content) == (200, b"a video")
        video = urls.sign_put(f"jobs/{granted}/video.mp4", expires_in=_HOUR, content_type="video/mp4", size=3)
        assert client.put(video.url, headers=video.headers, content=b"abc").status_code == 200


def test_an_upload_beyond_the_room_may_come_again(server: ObjectServer) -> None:
    """One upload too many of one object at once is told when to repeat; it succeeds once the others have gone."""
    urls = server.urls()
    put = urls.sign_put("jobs/x/song.wav", expires_in=_HOUR, content_type="audio/wav", size=3)

    def send() -> httpx.Response:
        return httpx.put(put.url, headers=put.headers, content=b"abc", trust_env=False, timeout=20)

    with ExitStack() as silent:
        refused: list[socket.socket] = []
        while not refused:  # those that found room are not answered
            uploads = [silent.enter_context(_begin(put)) for _ in range(16)]
            refused, _, _ = select.select(uploads, [], [], 1)
        answer = refused[0].recv(4096)
        assert b"503" in answer and b"retry-after: 5" in answer.lower()
        assert "SlowDown" in send().text
    eventually(lambda: send().status_code in {200, 412})


# --- the gateways


@contextmanager
def _by_uvicorn(app: Any) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


class _Threads(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextmanager
def _by_wsgiref(app: Any) -> Iterator[int]:
    with _Threads(("127.0.0.1", 0), Quiet) as server:
        server.set_app(app)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


Serve = Callable[[Handler], Any]


@contextmanager
def _over_asgi(handler: Handler) -> Iterator[int]:
    app = asgi(handler, threads=1, sends=_QUICK, takes=_QUICK)
    with _by_uvicorn(app) as port:
        yield port


@contextmanager
def _over_wsgi(handler: Handler) -> Iterator[int]:
    with _by_wsgiref(wsgi(handler, sends=_QUICK, takes=_QUICK)) as port:
        yield port


BOTH = pytest.mark.parametrize("serve", [_over_asgi, _over_wsgi], ids=["asgi", "wsgi"])


def _ask(port: int, text: bytes) -> socket.socket:
    raw = socket.create_connection(("127.0.0.1", port), timeout=20)
    raw.sendall(text)
    return raw


def _rest(raw: socket.socket) -> bytes:
    return b"".join(iter(lambda: raw.recv(65536), b""))


_POST = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n"


@BOTH
def test_a_body_that_stalls_is_given_up(serve: Serve) -> None:
    """It is answered 408, the connection is closed, and the handler hears of it."""
    heard: list[str] = []

    def handler(request: Request) -> Response:
        try:
            request.read(1 << 20)
        except Exception as error:
            heard.append(type(error).__name__)
            raise
        return Response(200)

    with serve(handler) as port, _ask(port, _POST + b"abc") as raw:
        answer = _rest(raw)
    assert b" 408 " in answer.splitlines()[0]
    assert b"request.too-slow" in answer
    assert heard == ["SlowBodyError"]


@BOTH
def test_a_body_that_trickles_is_given_up(serve: Serve) -> None:
    """A byte now and then does not help: the average counts."""
    with serve(lambda request: Response(200, body=request.read(1 << 20))) as port, _ask(port, _POST) as raw:
        raw.settimeout(0.05)
        answer, until = b"", time.monotonic() + 20
        while not answer and time.monotonic() < until:
            raw.sendall(b"x")
            try:
                answer = raw.recv(100)
            except TimeoutError:
                continue
        assert b" 408 " in answer


@BOTH
def test_a_client_that_takes_nothing_is_left(serve: Serve) -> None:
    """What its response was read from is closed, and others are served meanwhile."""
    closed: list[str] = []

    def handler(request: Request) -> Response:
        if request.path:
            return Response(200, body=b"quick")
        pieces = (b"x" * (1 << 18) for _ in range(1000))
        return Response(200, {"content-length": str(1000 << 18)}, pieces, lambda: closed.append("closed"))

    with serve(handler) as port, _ask(port, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n") as raw:
        raw.recv(1)
        assert httpx.get(f"http://127.0.0.1:{port}/other", trust_env=False, timeout=20).text == "quick"
        eventually(lambda: bool(closed))


class _Caller:
    """Calls an ASGI application as a server does whose clients send nothing, until they disconnect."""

    def __init__(self) -> None:
        self.gone = anyio.Event()
        self.sent: list[Any] = []

    async def silence(self) -> Any:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def body(self) -> Any:
        return {"type": "http.request", "body": b"sent"}

    async def send(self, message: Any) -> None:
        self.sent.append(message.get("body", message.get("status")))


def _scope(method: str) -> dict[str, Any]:
    return {"type": "http", "method": method, "path": "/", "headers": [], "http_version": "1.1"}


async def _call(app: AsgiApp, receive: Receive, caller: _Caller) -> None:
    await app(_scope("PUT"), receive, caller.send)


def test_waiting_for_clients_takes_no_thread_that_works() -> None:
    """With one such thread, silent bodies wait, and both another body and a read are served."""

    async def main() -> list[Any]:
        app = asgi(lambda request: Response(200, body=request.read(10)), threads=1)
        caller = _Caller()
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(_call, app, caller.silence, caller)
                await anyio.wait_all_tasks_blocked()
                await app(_scope("PUT"), caller.body, caller.send)
                await app(_scope("GET"), caller.body, caller.send)
                served = caller.sent[:]
                caller.gone.set()
        return served

    assert anyio.run(main) == [200, b"sent", 200, b"sent"]


def test_writes_take_no_threads_of_reads() -> None:
    """While every thread for bodies works, a read is served."""
    working, read_served = threading.Event(), threading.Event()

    def handler(request: Request) -> Response:
        if request.method == "PUT":
            working.set()
            assert read_served.wait(20)
        return Response(200, body=request.method.encode())

    async def main() -> list[Any]:
        app = asgi(handler, threads=1)
        caller = _Caller()
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(_call, app, caller.body, caller)
            await anyio.to_thread.run_sync(working.wait, 20)
            await app(_scope("GET"), caller.body, caller.send)
            served = caller.sent[:]
            read_served.set()
        return served

    assert anyio.run(main) == [200, b"GET"]


# --- webhooks, and forms of applications


def _service() -> RenderService:
    return RenderService(MemoryJobStore(), MemoryStorage(), InlineBackend(), secrets="whsec_" + "A" * 44, worker=False)


def test_slow_webhooks_leave_threads_to_others() -> None:
    """A WSGI server reads a few bodies of webhooks at once; a sender beyond them is told to come again."""
    app = webhook.wsgi_app(_service())
    reading, go_on = threading.Semaphore(0), threading.Event()

    class Silent(io.BytesIO):
        def read(self, _: int | None = -1) -> bytes:
            reading.release()
            assert go_on.wait(20)
            return b""

    statuses: list[str] = []

    def call(source: io.BytesIO) -> None:
        environ = {"REQUEST_METHOD": "POST", "CONTENT_LENGTH": "10", "wsgi.input": source}
        list(app(environ, lambda status, _headers: statuses.append(status)))

    threads = [threading.Thread(target=call, args=(Silent(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
        assert reading.acquire(timeout=20)
    call(io.BytesIO(b"x" * 10))
    assert statuses == ["503 Service Unavailable"]
    go_on.set()
    for thread in threads:
        thread.join()
    call(io.BytesIO(b"x" * 10))
    assert statuses[1:] == ["401 Unauthorized"] * 9


def _form(port: int, body: bytes) -> bytes:
    head = b"POST /form HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-www-form-urlencoded\r\n"
    with _ask(port, head + b"content-length: 5\r\n\r\n" + body) as raw:
        raw.shutdown(socket.SHUT_WR) if len(body) == 5 else None
        return _rest(raw)


def test_a_form_of_fastapi_that_stalls() -> None:
    """`BodyLimit` ends it with 408, and passes one that comes in time."""
    app = FastAPI()
    app.add_middleware(fastapi.BodyLimit, max_bytes=1000, sends=_QUICK)
    fastapi.install(app, _service())

    @app.post("/form")
    async def form(a: Annotated[str, Form()]) -> str:
        return a

    with _by_uvicorn(app) as port:
        assert b"request.too-slow" in _form(port, b"a=b")
        assert _form(port, b"a=bcd").endswith(b'"bcd"')


def test_a_form_of_flask_that_stalls() -> None:
    """`install` has the connection cut, and answers 408; the thread is free."""
    app = Flask(__name__)
    flask.install(app, _service(), sends=_QUICK)

    @app.post("/form")
    def form() -> str:
        return flask_request.form["a"]

    with _by_wsgiref(app) as port:
        assert b" 408 " in _form(port, b"a=b").splitlines()[0]
        assert _form(port, b"a=bcd").endswith(b"bcd")


# --- applications that read a body as they like


def _read_all(length: int | None, send: Callable[[socket.socket], object], *, ends: bool = True) -> bytes:
    """Return what an application reads of a body.

    Args:
        length: What the client announces.
        send: Sends the body.
        ends: Whether the server ends the input, as gunicorn does.
    """
    theirs, ours = socket.socketpair()
    with theirs, ours, ours.makefile("rb") as file:
        announced = {} if length is None else {"CONTENT_LENGTH": str(length)}
        environ = {"wsgi.input": file, "wsgi.input_terminated": ends, "gunicorn.socket": ours, **announced}
        sender = threading.Thread(target=send, args=[theirs])
        sender.start()
        try:
            (body,) = paced(lambda environ, _: [environ["wsgi.input"].read()], sends=_QUICK)(environ, lambda *_: None)
        finally:
            sender.join()
    return body


def _send_and_go(pieces: list[bytes], client: socket.socket) -> None:
    for piece in pieces:
        client.sendall(piece)
        time.sleep(0.1)
    client.shutdown(socket.SHUT_WR)


def test_a_body_that_is_cut_off_is_no_body() -> None:
    """What was read of an upload until its client was cut off, or went away, is never taken for the whole."""
    with pytest.raises(SlowBodyError):
        _read_all(5 << 30, lambda client: client.sendall(b"half of it"))
    with pytest.raises(IncompleteBodyError) as gone:
        _read_all(100_000, partial(_send_and_go, [b"half of it"]))
    assert not isinstance(gone.value, SlowBodyError)


def test_a_body_may_take_as_long_as_it_keeps_its_pace() -> None:
    """The time that a client has does not end while it sends, whether it announced a length or not."""

    assert len(_read_all(None, partial(_send_and_go, [bytes(1 << 18)] * 12))) == 12 << 18
    lines = _read_all(8, lambda client: client.sendall(b"one\ntwo\nand what is of another request"), ends=False)
    assert lines == b"one\ntwo\n"
