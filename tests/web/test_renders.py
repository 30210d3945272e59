"""Does a render service behind HTTP do what its protocol says?"""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from wsgiref.simple_server import make_server

import av
import httpx
import pytest
import uvicorn
from PIL import Image

from renderdispatch.backends.http import KeyedHttpBackend
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.backends.waiting import WaitingLine
from renderdispatch.errors import BackendError, ConfigurationError
from renderdispatch.messages import EventReply, HelperOrder, JobStatus, Output, Pieces, RenderOrder, Stage, StorageKey
from renderdispatch.protocols import BackendCall, CallState, CallStatus, Locality, OnEvent
from renderdispatch.service import RenderService
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.storage.signing import SignedUrls
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import eventually, in_threads, make_order, registered_scenes
from renderdispatch.testing.renderers import make_helper_order
from renderdispatch.web import objects, renders, webhook
from renderdispatch.web.asgi import AsgiApp, Receive, Scope, Send
from renderdispatch.web.wsgi import Environ, StartResponse
from tests.support.command_line import write_song
from tests.support.needs import need_opengl
from tests.support.object_servers import SECRET, Quiet

TOKEN = "a-token-that-is-secret"
BEARER = {"authorization": f"Bearer {TOKEN}"}
WEBHOOK_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Recording:
    """A backend that renders nothing, and remembers what it was told."""

    locality = Locality.MACHINE
    slots = 1

    def __init__(self) -> None:
        self.started: list[RenderOrder | HelperOrder] = []
        self.cancelled: list[str] = []
        self.error: BackendError | None = None

    def start(self, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
        return self._start(order)

    def start_helper(self, order: HelperOrder) -> BackendCall:
        return self._start(order)

    def _start(self, order: RenderOrder | HelperOrder) -> BackendCall:
        if self.error is not None:
            raise self.error
        self.started.append(order)
        return BackendCall(f"call-{len(self.started)}")

    def poll(self, call: BackendCall) -> CallState:
        known = call.id in {f"call-{number + 1}" for number in range(len(self.started))}
        return CallState(status=CallStatus.RUNNING if known else CallStatus.MISSING)

    def cancel(self, call: BackendCall) -> None:
        self.cancelled.append(call.id)

    def close(self) -> None:
        pass


def serving(app: AsgiApp, listener: socket.socket) -> Callable[[], None]:
    """Serve in a thread; return what ends it."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()

    def end() -> None:
        server.should_exit = True
        thread.join()
        listener.close()

    return end


@pytest.fixture
def backend() -> Recording:
    return Recording()


Install = Callable[[Recording], None]


@pytest.fixture(scope="module", params=["asgi", "wsgi"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[int, Install]]:
    """A server's port, and what puts a new service around a backend behind it."""
    behind: dict[str, Any] = {}
    if request.param == "asgi":

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await behind["app"](scope, receive, send)

        make: Any = renders.asgi_app
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        end = serving(app, listener)
    else:
        make = renders.wsgi_app

        def wsgi(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
            answer: Iterable[bytes] = behind["app"](environ, start_response)
            return answer

        server = make_server("127.0.0.1", 0, wsgi, handler_class=Quiet)
        port = server.server_port
        server.base_environ["wsgi.multiprocess"] = ""
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()

        def end() -> None:
            server.shutdown()
            thread.join()
            server.server_close()

    yield port, lambda backend: behind.update(app=make(backend, token=TOKEN))
    end()


@pytest.fixture
def client(served: tuple[int, Install], backend: Recording) -> Iterator[httpx.Client]:
    """A client of a service around the backend, with the token."""
    port, install = served
    install(backend)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=BEARER, trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture
def order(tmp_path: Path) -> RenderOrder:
    return make_order(FsspecStorage(tmp_path / "objects"), local=False)


def start(client: httpx.Client, order: RenderOrder, **headers: str) -> httpx.Response:
    return client.post("/", content=order.model_dump_json(), headers=headers)


def test_a_start(client: httpx.Client, backend: Recording, order: RenderOrder) -> None:
    """The order is handed to the backend, and its call is returned."""
    answer = start(client, order, **{"idempotency-key": order.token})
    assert (answer.status_code, answer.json()) == (201, {"callId": "call-1"})
    assert backend.started == [order]


@pytest.fixture
def helper(order: RenderOrder, tmp_path: Path) -> HelperOrder:
    lead = order.model_copy(update={"pieces": Pieces(slots=4, grants="https://bucket.example/grants")})
    return make_helper_order(lead, FsspecStorage(tmp_path / "objects"))


def test_a_helper_starts(client: httpx.Client, backend: Recording, helper: HelperOrder) -> None:
    """The order of a helper is started once by its own token, which finds its call."""
    answers = [client.post("/", content=helper.model_dump_json()) for _ in range(2)]
    assert [answer.json() for answer in answers] == [{"callId": "call-1"}] * 2
    assert backend.started == [helper]
    found = client.post("/find", headers={"idempotency-key": helper.token})
    assert found.json() == {"callId": "call-1"}


def test_a_helper_that_finds_no_slot(client: httpx.Client, backend: Recording, helper: HelperOrder) -> None:
    """A helper that the backend refuses as busy can be started later."""
    backend.error = BackendError("all slots are taken", retryable=True, code="backend.busy")
    assert client.post("/", content=helper.model_dump_json()).status_code == 503
    backend.error = None
    assert client.post("/", content=helper.model_dump_json()).status_code == 201


def test_a_backend_without_helpers(tmp_path: Path, helper: HelperOrder) -> None:
    """Where a video is drawn with one call, the order of a helper is refused for good."""
    backend = InlineBackend()
    app = renders.wsgi_app(backend, token=TOKEN)
    with httpx.Client(transport=httpx.WSGITransport(app), base_url="http://renders/", headers=BEARER) as client:
        answer = client.post("/", content=helper.model_dump_json())
    backend.close()
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "backend.no-helpers")


def test_a_start_that_comes_again(client: httpx.Client, backend: Recording, order: RenderOrder) -> None:
    """A second start of the same token returns the same call, also when they come at once; another is another."""
    answers = in_threads(8, lambda _: start(client, order))
    assert {answer.json()["callId"] for answer in answers} == {"call-1"}
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    assert start(client, order.model_copy(update={"token": "another"})).json() == {"callId": "call-2"}
    assert len(backend.started) == 2


def test_find(client: httpx.Client, backend: Recording, order: RenderOrder) -> None:
    """It tells the call of a key; a key that it never saw is refused from then on."""
    start(client, order)
    found = client.post("/find", headers={"idempotency-key": order.token}, json={"jobId": order.job_id})
    assert found.json() == {"callId": "call-1"}
    late = order.model_copy(update={"token": "late"})
    for _ in range(2):
        assert client.post("/find", headers={"idempotency-key": "late"}).json() == {"callId": None}
    assert start(client, late).status_code == 409
    assert len(backend.started) == 1
    assert client.post("/find").status_code == 422


def test_find_where_renders_outlive_the_service(
    client: httpx.Client, backend: Recording, order: RenderOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it started is told; what it does not know may have been started before it was restarted."""
    monkeypatch.setattr(backend, "locality", Locality.WORLD)
    start(client, order)
    assert client.post("/find", headers={"idempotency-key": order.token}).json() == {"callId": "call-1"}
    assert client.post("/find", headers={"idempotency-key": "another"}).status_code == 501
    assert start(client, order.model_copy(update={"token": "another"})).status_code == 201


def test_status_and_cancel(client: httpx.Client, backend: Recording, order: RenderOrder) -> None:
    """They are the backend's; a call that it does not know is 404, and no error to cancel."""
    start(client, order)
    assert client.get("/call-1").json()["status"] == "running"
    assert client.delete("/call-1").is_success
    assert client.get("/call-2").status_code == 404
    assert client.delete("/call-2").is_success
    assert backend.cancelled == ["call-1", "call-2"]


@pytest.mark.parametrize(
    ("error", "status", "waits"),
    [
        (BackendError("all slots are taken", retryable=True, code="backend.busy"), 503, True),
        (BackendError("no process can be started", retryable=True), 503, True),
        (BackendError("no such GPU", retryable=False), 422, False),
        (BackendError("lost", retryable=True, outcome_known=False), 500, False),
    ],
)
def test_a_backend_that_refuses(
    client: httpx.Client, backend: Recording, order: RenderOrder, error: BackendError, status: int, waits: bool
) -> None:
    """Full slots are 503 with Retry-After; whoever reads the answer knows what the backend knew. It may come again."""
    backend.error = error
    answer = start(client, order)
    assert (answer.status_code, "retry-after" in answer.headers) == (status, waits)
    assert answer.json()["error"] == {"code": error.code, "message": str(error)}
    caller = KeyedHttpBackend(str(client.base_url), token=TOKEN)
    with pytest.raises(BackendError) as caught:
        caller.start(order, on_event=lambda _event: EventReply())
    caller.close()
    assert (caught.value.retryable, caught.value.outcome_known) == (error.retryable, error.outcome_known)
    assert (caught.value.code == "backend.busy") is (error.code == "backend.busy"), "only full slots cost no attempt"
    backend.error = None
    assert start(client, order).status_code == 201


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é", f"Bearer {TOKEN[:-1]}"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_without_the_token(client: httpx.Client, backend: Recording, authorization: str | None, method: str) -> None:
    """Nobody gets in, and nothing is told but that."""
    headers = {b"authorization": (authorization or "").encode()}
    answer = client.request(method, "/call-1", headers=headers)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert TOKEN not in answer.text
    assert backend.cancelled == []


@pytest.mark.parametrize("tokens", ["", [], "short", "with space in the middle", ["a-token-that-is-long", ""]])
def test_tokens_that_make_no_sense(backend: Recording, tokens: Any) -> None:
    """A service that anybody could use is never made."""
    for make in (renders.wsgi_app, renders.asgi_app):
        with pytest.raises(ConfigurationError):
            make(backend, token=tokens)


@pytest.mark.parametrize("body", [b"", b"{}", b"[" * 60_000, b"\xff", b"null"])
def test_what_is_no_order(client: httpx.Client, backend: Recording, body: bytes) -> None:
    """It is refused, and not quoted."""
    answer = client.post("/", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "renders.order")
    assert backend.started == []


def test_an_order_that_is_too_large(client: httpx.Client, backend: Recording, order: RenderOrder) -> None:
    """Only the limit and one byte of it are read, whether it says how long it is or not."""
    body = order.model_dump_json().encode() + b" " * renders.MAX_ORDER_BODY
    assert client.post("/", content=body).status_code == 413
    assert backend.started == []


def test_a_local_order(client: httpx.Client, backend: Recording, order: RenderOrder) -> None:
    """What comes over a network never reaches this machine's files."""
    answer = start(client, order.model_copy(update={"local": True}))
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "renders.local-order")
    assert backend.started == []


def test_a_key_of_another(client: httpx.Client, backend: Recording, order: RenderOrder) -> None:
    """The key is the order's token, or nothing."""
    assert start(client, order, **{"idempotency-key": "another"}).status_code == 422
    assert backend.started == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 405), ("PUT", "/call-1", 405), ("POST", "/a/b", 404), ("GET", "/../x", 404), ("PATCH", "/find", 405)],
)
def test_what_it_does_not_do(client: httpx.Client, method: str, path: str, status: int) -> None:
    """Other methods and paths are refused."""
    answer = client.request(method, path)
    assert answer.status_code == status or (path == "/../x" and answer.status_code == 404)
    assert ("allow" in answer.headers) == (status == 405)


def test_several_processes(order: RenderOrder) -> None:
    """A server of several processes is refused in words that end the job: each would know its own renders alone."""
    told: list[str] = []
    body = order.model_dump_json().encode()
    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
        "wsgi.multiprocess": True,
        "HTTP_AUTHORIZATION": f"Bearer {TOKEN}",
    }
    app = renders.wsgi_app(Recording(), token=TOKEN)
    answer = b"".join(app(environ, lambda status, _headers: told.append(status)))
    assert told == ["501 Not Implemented"]
    assert json.loads(answer)["error"]["code"] == "renders.processes"


# --- whole jobs


class Chain:
    """An application with a webhook and storage behind http URLs, and a GPU machine, each an HTTP server of its own."""

    def __init__(self, folder: Path, *, webhooks: bool) -> None:
        self._sockets = [socket.create_server(("127.0.0.1", 0), backlog=64) for _ in range(3)]
        stored, hooks, gpu = (f"http://127.0.0.1:{listener.getsockname()[1]}" for listener in self._sockets)
        urls = SignedUrls(stored, SECRET)  # its locality is the world: as far as this test goes
        self.storage = FsspecStorage(folder, urls=urls)
        self.gpu = WaitingLine(LocalGpuBackend())
        self.backend = KeyedHttpBackend(f"{gpu}/", token=TOKEN, timeout=timedelta(seconds=30))
        self.service = RenderService(
            MemoryJobStore(),
            self.storage,
            {"http": self.backend},
            secrets=WEBHOOK_SECRET,
            webhook_url=f"{hooks}/" if webhooks else None,
        )
        apps = [
            objects.asgi_app(self.storage, urls),
            webhook.asgi_app(self.service),
            renders.asgi_app(self.gpu, token=TOKEN),
        ]
        self._ends = [serving(app, listener) for app, listener in zip(apps, self._sockets, strict=True)]

    def close(self) -> None:
        self.service.close()
        self.backend.close()
        self.gpu.close()
        for end in self._ends:
            end()


@pytest.fixture
def chain(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Chain]:
    with registered_scenes(tmp_path / "scenes"):
        chain = Chain(tmp_path / "objects", webhooks=request.param)
        chain.storage.put("song.wav", b"a song")
        yield chain
        chain.close()


EACH_WAY = pytest.mark.parametrize("chain", [True, False], indirect=True, ids=["webhooks", "polls"])
"""With the reports of the renders, or without a webhook URL."""

WITHOUT_WAITING = pytest.mark.parametrize(
    "chain",
    [pytest.param(True, id="webhooks"), pytest.param(False, id="polls", marks=pytest.mark.long)],
    indirect=True,
)
"""Likewise; how an attempt that does not report went is first asked after some 15 seconds."""


@WITHOUT_WAITING
def test_whole_jobs(chain: Chain) -> None:
    """More jobs than the GPU has slots all complete, whether their renders report or are only asked."""
    submitted = [chain.service.submit(StorageKey("song.wav"), scene="fake", params={"video": v}) for v in "abc"]
    for handle, video in zip(submitted, "abc", strict=True):
        job = handle.wait(timeout=90)
        assert (job.status, len(job.attempts)) == (JobStatus.COMPLETE, 1)
        assert httpx.get(handle.download_url(), trust_env=False, timeout=60).text == video


@WITHOUT_WAITING
def test_a_job_that_fails(chain: Chain) -> None:
    """The scene's own words reach the application."""
    handle = chain.service.submit(StorageKey("song.wav"), scene="fake", params={"fail": "no such star"})
    eventually(lambda: handle.job.ended)
    error = handle.job.error
    assert handle.job.status is JobStatus.FAILED
    assert error is not None and (error.code, error.message) == ("scene.fake", "no such star")


@EACH_WAY
def test_a_job_that_is_cancelled(chain: Chain) -> None:
    """The render on the other machine stops, and the job keeps when."""
    long = {"frames": 6000, "frame_s": 0.01}
    handle = chain.service.submit(StorageKey("song.wav"), scene="fake", params=long)
    eventually(lambda: handle.job.attempt is not None and handle.job.attempt.call_id is not None)
    if chain.service.get(handle.id).stage is not Stage.CANCELLING:
        handle.cancel()
    eventually(lambda: handle.job.ended)
    job = handle.job
    assert job.status is JobStatus.CANCELLED
    assert job.compute_stopped_at is not None
    assert job.attempt is not None and job.attempt.call_id is not None
    call = BackendCall(job.attempt.call_id)
    eventually(lambda: chain.gpu.poll(call).status is CallStatus.ENDED)


@pytest.mark.parametrize("chain", [True], indirect=True, ids=["webhooks"])
def test_a_shadertoy_file(chain: Chain, tmp_path: Path) -> None:
    """The other machine draws it, with its image, by signed URLs."""
    need_opengl()
    shader, picture = tmp_path / "waves.glsl", tmp_path / "rocks.png"
    shader.write_text("void mainImage(out vec4 c, in vec2 p) { c = texture(iChannel1, p / iResolution.xy); }")
    Image.new("RGB", (8, 8), (0, 255, 0)).save(picture)
    song, output = write_song(tmp_path / "song.wav", seconds=1), Output(width=64, height=64)
    job = chain.service.submit(song, scene=shader, images=[picture], duration=0.2, output=output).wait(timeout=90)
    assert (job.status, len(job.attempts)) == (JobStatus.COMPLETE, 1), job.error
    assert job.artifact is not None and "llvmpipe" in job.artifact.rendered_by
    with av.open(str(chain.service.save(job.id, tmp_path / "video.mp4"))) as video:
        frame = next(video.decode(video=0)).to_ndarray(format="rgb24")
    assert frame[32, 32].tolist() == pytest.approx([0, 255, 0], abs=3)


def test_the_inline_backend_serves_too(tmp_path: Path) -> None:
    """Any backend can stand behind the service."""
    backend = InlineBackend()
    assert callable(renders.asgi_app(backend, token=[TOKEN, TOKEN + "-old"]))
    backend.close()
