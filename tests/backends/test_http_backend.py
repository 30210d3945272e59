"""Does the HTTP backend keep every promise of a backend, whatever the service does?"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from renderdispatch.backends.http import MAX_RESPONSE_BYTES, HttpBackend, KeyedHttpBackend
from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.errors import BackendError, ConfigurationError
from renderdispatch.messages import (
    Callback,
    CallResult,
    Completed,
    EventReply,
    FaultDomain,
    Helped,
    JobError,
    RenderEvent,
    RenderOrder,
)
from renderdispatch.protocols import BackendCall, CallStatus, Locality, SupportsFind
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.testing import RenderBackendContract, in_threads, make_artifact, make_order, registered_scenes
from renderdispatch.testing.contracts.backends import OrderFactory
from tests.support.http_services import (
    TOKEN,
    Asked,
    Behaviour,
    Service,
    answering,
    dripping,
    far_order,
    rendering,
    saying,
    service,
    stored_behind_http,
)
from tests.support.ports import free_port

SHORT = timedelta(seconds=1)


def ignore(_event: RenderEvent) -> EventReply:
    return EventReply()


class TestKeyedHttpBackend(RenderBackendContract):
    """Renders at `renderdispatch.web.renders`, around the local backend, with http URLs."""

    @pytest.fixture
    def backend(self, order: OrderFactory) -> Iterator[KeyedHttpBackend]:
        with rendering(local := LocalGpuBackend()) as url:
            backend = KeyedHttpBackend(url, token=TOKEN, timeout=timedelta(seconds=30))
            yield backend
            backend.close()
            local.close()

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[FsspecStorage]:
        with stored_behind_http(tmp_path / "objects") as storage:
            yield storage

    @pytest.fixture
    def order(self, storage: FsspecStorage, tmp_path: Path) -> Iterator[OrderFactory]:
        with registered_scenes(tmp_path / "scenes"):
            yield lambda **params: far_order(storage, params=params)


@pytest.fixture
def order(tmp_path: Path) -> RenderOrder:
    """An order with secrets in it."""
    callback = Callback(url="https://app.example/webhooks/?k=url-secret", key="callback-key-secret")
    return make_order(FsspecStorage(tmp_path / "objects"), token="fence-token-secret", local=False, callback=callback)


@pytest.fixture
def fake() -> Iterator[Service]:
    """A service that a test tells how to answer."""
    with service(answering(500)) as served:
        yield served


@pytest.fixture
def backend(fake: Service) -> Iterator[HttpBackend]:
    backend = HttpBackend(fake.url, token=TOKEN)
    yield backend
    backend.close()


def refused(backend: HttpBackend, order: RenderOrder) -> BackendError:
    """Return the error of a start."""
    with pytest.raises(BackendError) as caught:
        backend.start(order, on_event=ignore)
    return caught.value


# --- the wire


def test_a_start(fake: Service, backend: HttpBackend, order: RenderOrder) -> None:
    """It posts the order, with the credentials and the attempt's token as idempotency key."""
    fake.behaviour = answering(201, {"callId": "fc-1"})
    assert backend.start(order, on_event=ignore) == BackendCall("fc-1")
    (asked,) = fake.asked
    assert asked.line == "POST /renders HTTP/1.1"
    assert asked.headers["idempotency-key"] == order.token
    assert asked.headers["authorization"] == f"Bearer {TOKEN}"
    assert asked.headers["content-type"] == "application/json"
    assert RenderOrder.model_validate_json(asked.body) == order


@pytest.mark.parametrize("status", [200, 201, 202])
def test_each_way_to_say_started(fake: Service, backend: HttpBackend, order: RenderOrder, status: int) -> None:
    """A start is answered with 200, 201 or 202."""
    fake.behaviour = answering(status, {"callId": "a", "more": [1]})
    assert backend.start(order, on_event=ignore).id == "a"


def test_a_byte_order_mark_before_an_answer(fake: Service, backend: HttpBackend, order: RenderOrder) -> None:
    """Some frameworks send one before JSON; it is passed over."""
    fake.behaviour = answering(201, b'\xef\xbb\xbf{"callId": "a"}')
    assert backend.start(order, on_event=ignore).id == "a"


def test_modal_proxy_authentication(fake: Service) -> None:
    """Modal's key and secret go as its proxy wants them, on every request."""
    fake.behaviour = answering(202)
    backend = HttpBackend(fake.url, modal_key="wk-1", modal_secret="ws-1")
    backend.poll(BackendCall("a"))
    backend.cancel(BackendCall("a"))
    backend.close()
    for asked in fake.asked:
        assert (asked.headers["modal-key"], asked.headers["modal-secret"]) == ("wk-1", "ws-1")
        assert "authorization" not in asked.headers
    assert [asked.line for asked in fake.asked] == ["GET /renders/a HTTP/1.1", "DELETE /renders/a HTTP/1.1"]


def test_a_slash_at_the_end(fake: Service, order: RenderOrder) -> None:
    """The URL's slash is kept for the start, and is not doubled before an id."""
    backend = HttpBackend(fake.url + "/")
    fake.behaviour = answering(202, {"callId": "a~b"})
    backend.poll(backend.start(order, on_event=ignore))
    backend.close()
    assert [asked.line for asked in fake.asked] == ["POST /renders/ HTTP/1.1", "GET /renders/a~b HTTP/1.1"]


_OUTCOME = Completed(event_id="e", job_id="j", token="t", run_id="r", artifact=make_artifact())
_ERROR = JobError(code="order.invalid", message="no order", fault=FaultDomain.REQUEST)


@pytest.mark.parametrize(
    ("behaviour", "status", "outcome", "error"),
    [
        (answering(200, {"status": "running"}), CallStatus.RUNNING, None, None),
        (answering(202, b"<html>"), CallStatus.RUNNING, None, None),
        (answering(200, {"status": "missing"}), CallStatus.MISSING, None, None),
        (answering(404), CallStatus.MISSING, None, None),
        (answering(410), CallStatus.MISSING, None, None),
        (answering(200, {"status": "ended"}), CallStatus.ENDED, None, None),
        (
            answering(200, {"status": "ended", "outcome": json.loads(_OUTCOME.model_dump_json())}),
            CallStatus.ENDED,
            _OUTCOME,
            None,
        ),
        (answering(200, CallResult(outcome=_OUTCOME).model_dump_json().encode()), CallStatus.ENDED, _OUTCOME, None),
        (answering(200, CallResult(error=_ERROR).model_dump_json().encode()), CallStatus.ENDED, None, _ERROR),
        (answering(200, CallResult(helped=Helped()).model_dump_json().encode()), CallStatus.ENDED, None, None),
    ],
)
def test_a_status(
    fake: Service, backend: HttpBackend, behaviour: Behaviour, status: CallStatus, outcome: Any, error: Any
) -> None:
    """Each way to say how a call stands is understood, the bare answer of a function among them."""
    fake.behaviour = behaviour
    state = backend.poll(BackendCall("a"))
    assert (state.status, state.outcome, state.error) == (status, outcome, error)


@pytest.mark.parametrize("said", [{}, {"detail": "hello"}, {"status": "odd"}, [], "text", b"<html>", b"[" * 100_000])
def test_a_status_that_is_none(fake: Service, backend: HttpBackend, said: Any) -> None:
    """A 200 that says nothing about a call is an error, and never an end."""
    fake.behaviour = answering(200, said)
    with pytest.raises(BackendError) as caught:
        backend.poll(BackendCall("a"))
    assert caught.value.code == "backend.bad-answer"


@pytest.mark.parametrize("status", [200, 202, 204, 404, 410])
def test_a_cancel(fake: Service, backend: HttpBackend, status: int) -> None:
    """A call that stops, has ended, or never was is no error."""
    fake.behaviour = answering(status) if status != 204 else saying(b"HTTP/1.1 204 No Content\r\n\r\n", close=False)
    backend.cancel(BackendCall("a"))


def test_a_cancel_that_is_refused(fake: Service, backend: HttpBackend) -> None:
    """A service that cannot cancel says so to the caller."""
    fake.behaviour = answering(405)
    with pytest.raises(BackendError, match="405"):
        backend.cancel(BackendCall("a"))


@pytest.mark.parametrize("call_id", ["..", ".", "", "a/b", "a?b", "a b", "é", "a" * 201, "a\r\nx: y"])
def test_a_call_id_that_is_none(fake: Service, backend: HttpBackend, order: RenderOrder, call_id: str) -> None:
    """An id that would lead elsewhere is not taken from a service, and nobody is asked about it."""
    fake.behaviour = answering(200, {"callId": call_id})
    assert refused(backend, order).code == "backend.bad-answer"
    asked = len(fake.asked)
    assert backend.poll(BackendCall(call_id)).status is CallStatus.MISSING
    backend.cancel(BackendCall(call_id))
    assert len(fake.asked) == asked


# --- what is known when it fails


@pytest.mark.parametrize(
    ("behaviour", "code", "known", "retryable"),
    [
        (answering(429), "backend.busy", True, True),
        (answering(429, retry_after="7"), "backend.busy", True, True),
        (answering(503, retry_after="7"), "backend.busy", True, True),
        (answering(503, retry_after="Wed, 21 Oct 2026 07:28:00 GMT"), "backend.busy", True, True),
        (answering(503, {"error": {"code": "request.busy"}}, retry_after="7"), "backend.busy", True, True),
        (answering(503, {"error": {"code": "backend.closed"}}, retry_after="7"), "backend.error", True, True),
        (answering(503, {"error": {"code": 7}}, retry_after="7"), "backend.busy", True, True),
        (answering(503, b"[", retry_after="7"), "backend.busy", True, True),
        (answering(503), "backend.error", False, True),
        (answering(500), "backend.error", False, True),
        (answering(502), "backend.error", False, True),
        (answering(504), "backend.error", False, True),
        (answering(501), "backend.refused", True, False),
        (answering(408), "backend.error", True, True),
        (answering(425), "backend.error", True, True),
        (answering(401), "backend.denied", True, False),
        (answering(403), "backend.denied", True, False),
        (answering(407), "backend.denied", True, False),
        (answering(400), "backend.refused", True, False),
        (answering(404), "backend.refused", True, False),
        (answering(409), "backend.refused", True, False),
        (answering(413), "backend.refused", True, False),
        (answering(422), "backend.refused", True, False),
        (answering(303, location="https://elsewhere.example/"), "backend.redirect", False, True),
        (answering(301, location="/renders/"), "backend.redirect", True, False),
        (answering(307, location="/renders/"), "backend.redirect", True, False),
        (answering(308, location="/renders/"), "backend.redirect", True, False),
        (answering(200), "backend.bad-answer", False, False),
        (answering(200, {"callId": None}), "backend.bad-answer", False, False),
        (answering(200, b"<html>"), "backend.bad-answer", False, False),
        (answering(299), "backend.bad-answer", False, False),
        (answering(200, b" " * (MAX_RESPONSE_BYTES + 1)), "backend.no-answer", False, True),
        (saying(b""), "backend.no-answer", False, True),
        (saying(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{"), "backend.no-answer", False, True),
        (saying(b"SSH-2.0-OpenSSH_9.2\r\n"), "backend.no-answer", False, True),
        (saying(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n\x1f\x8b"), "backend.bad-answer", False, False),
    ],
)
def test_a_start_that_fails(
    fake: Service,
    backend: HttpBackend,
    order: RenderOrder,
    behaviour: Behaviour,
    code: str,
    known: bool,
    retryable: bool,
) -> None:
    """Each answer says whether the render may have been started, and whether trying again makes sense; once asked."""
    fake.behaviour = behaviour
    error = refused(backend, order)
    assert (error.code, error.outcome_known, error.retryable) == (code, known, retryable)
    assert len(fake.asked) == 1


def test_nobody_listens(order: RenderOrder) -> None:
    """A refused connection started nothing: the next try may come at once."""
    error = refused(HttpBackend(f"http://127.0.0.1:{free_port()}"), order)
    assert (error.code, error.outcome_known, error.retryable) == ("backend.unreachable", True, True)


def test_a_name_that_is_none(order: RenderOrder) -> None:
    """A host that cannot be found was sent nothing."""
    error = refused(HttpBackend("https://no-such-host.invalid/renders"), order)
    assert (error.code, error.outcome_known, error.retryable) == ("backend.unreachable", True, True)


def test_a_listener_that_never_accepts(order: RenderOrder) -> None:
    """A service that hangs with the order in its hands may have started it; the caller hears so in time."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        began = time.monotonic()
        error = refused(HttpBackend(f"http://127.0.0.1:{deaf.getsockname()[1]}", timeout=SHORT), order)
        assert time.monotonic() - began < 20
    assert (error.code, error.outcome_known, error.retryable) == ("backend.no-answer", False, True)


def test_no_tls_where_tls_is_asked(fake: Service, order: RenderOrder) -> None:
    """A connection that never became secret carried no order."""
    error = refused(HttpBackend(fake.url.replace("http:", "https:"), timeout=timedelta(seconds=5)), order)
    assert (error.code, error.outcome_known) == ("backend.unreachable", True)


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's certificate for 127.0.0.1, and the file of whoever vouches for it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        if os.environ.get("CI"):
            pytest.fail("TLS has to be tested here, and there is no openssl that makes a certificate")
        pytest.skip("there is no openssl that makes a certificate")
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", "key.pem", "-out", "certificate.pem", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    return context, tmp_path / "certificate.pem"


def test_a_certificate_of_nobody(tls: tuple[ssl.SSLContext, Path], order: RenderOrder) -> None:
    """A certificate that nobody vouches for is refused before anything is sent; one's own authority may be named."""
    context, authority = tls
    with service(answering(201, {"callId": "a"}), tls=context) as fake:
        error = refused(HttpBackend(fake.url), order)
        assert (error.code, error.outcome_known) == ("backend.unreachable", True)
        assert "certificate" in str(error)
        assert fake.asked == []
        trusting = HttpBackend(fake.url, ssl_context=ssl.create_default_context(cafile=authority))
        assert trusting.start(order, on_event=ignore).id == "a"
        trusting.close()


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx-endless: ",
        b"",
    ],
    ids=["body", "headers", "status line"],
)
@pytest.mark.parametrize("method", ["start", "poll"])
def test_a_service_that_drips(order: RenderOrder, head: bytes, method: str) -> None:
    """However slowly an answer trickles in, a request is over in time."""
    done = threading.Event()
    with service(dripping(head, b"1", every_s=0.05, until=done)) as fake:
        backend = HttpBackend(fake.url, timeout=SHORT)
        began = time.monotonic()
        with pytest.raises(BackendError) as caught:
            backend.start(order, on_event=ignore) if method == "start" else backend.poll(BackendCall("a"))
        assert 0.5 < time.monotonic() - began < 20
        assert caught.value.code == "backend.no-answer"
        assert caught.value.outcome_known is (method == "poll")
        backend.close()
        done.set()


def test_an_answer_without_an_end(order: RenderOrder) -> None:
    """However much a service sends, only a bounded part of it is read."""
    sent = 0

    def behave(connection: socket.socket, _asked: Asked) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b" " * 65536)
            sent += 65536

    with service(behave) as fake:
        backend = HttpBackend(fake.url)
        assert refused(backend, order).code == "backend.no-answer"
        backend.close()
    assert sent < 64 * MAX_RESPONSE_BYTES


def test_a_redirect_is_not_followed(fake: Service, backend: HttpBackend, order: RenderOrder) -> None:
    """Credentials and order go to the one host that was named; where it pointed is not told."""
    with service(answering(200, {"callId": "a"})) as other:
        for status in (301, 302, 303, 307, 308):
            fake.behaviour = answering(status, location=f"{other.url}?signed=location-secret")
            assert "location-secret" not in str(refused(backend, order))
            with pytest.raises(BackendError):
                backend.poll(BackendCall("a"))
        assert other.asked == []


def test_a_start_has_a_connection_of_its_own(fake: Service, backend: HttpBackend, order: RenderOrder) -> None:
    """An idle connection may be closed at any moment: polls share one, no start ever depends on it."""
    fake.behaviour = answering(200, {"status": "running", "callId": "a"})
    for _ in range(3):
        backend.poll(BackendCall("a"))
    assert fake.connections == 1
    backend.start(order, on_event=ignore)
    backend.start(order, on_event=ignore)
    assert fake.connections == 3


# --- secrets


def test_what_a_refusal_says(fake: Service, backend: HttpBackend, order: RenderOrder) -> None:
    """The service's own words are told: one short line, without the secrets and URLs that it echoes."""
    echoed = f"{order.token} {TOKEN} callback-key-secret {order.audio_url} https://app.example/?k=url-secret \x1b[31m\n"
    for body in (
        {"error": {"code": "x", "message": f"no such scene; you sent {echoed}"}},
        {"error": f"no such scene; {echoed}"},
        {"message": f"no such scene; {echoed}"},
        {"detail": f"no such scene; {echoed}"},
        {"detail": [{"msg": f"no such scene; {echoed}", "input": echoed}]},
    ):
        fake.behaviour = answering(422, body)
        text = str(refused(backend, order))
        assert "no such scene" in text
        assert "secret" not in text.replace("<secret>", "")
        assert order.audio_url not in text
        assert text.isprintable()
    fake.behaviour = answering(422, b"no such scene" + b"!" * 100_000, kind="text/plain; charset=utf-8")
    assert "no such scene" in str(refused(backend, order)) and len(str(refused(backend, order))) < 600
    for kind, said in (("text/html", b"<p>no such scene"), ("application/json", b"[" * 100_000)):
        fake.behaviour = answering(422, said, kind=kind)
        assert str(refused(backend, order)).endswith("(start)")


def test_secrets_are_never_shown(fake: Service, order: RenderOrder, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in a repr, nor in an error with all its causes, nor in a log."""
    caplog.set_level(logging.DEBUG)
    backend = HttpBackend(fake.url, token=TOKEN, modal_key="wk-secret", modal_secret="ws-secret")
    shown = [repr(backend), str(vars(backend)["_client"])]
    for behaviour in (answering(401), answering(500), saying(b"")):
        fake.behaviour = behaviour
        error = refused(backend, order)
        shown += [str(error), repr(error), repr(error.__cause__)]
    fake.behaviour = answering(200, {"callId": "a"})
    shown.append(repr(backend.start(order, on_event=ignore)))
    backend.close()
    logged = [record.getMessage() for record in caplog.records]
    assert "-secret" not in "".join([*shown, *logged])


@pytest.mark.parametrize("secret", ["", "with space", "line\n", "é", "x" * 5000])
@pytest.mark.parametrize("name", ["token", "modal_key", "modal_secret"])
def test_a_secret_that_cannot_be_sent(name: str, secret: str) -> None:
    """It is refused at once, and not quoted."""
    given = {"modal_key": "k", "modal_secret": "s"} if name != "token" else {}
    with pytest.raises(ConfigurationError, match=name) as caught:
        HttpBackend("https://gpu.example", **{**given, name: secret})  # type: ignore[arg-type]
    assert not secret or secret not in str(caught.value)


# --- settings


@pytest.mark.parametrize(
    "url",
    [
        "",
        "gpu.example",
        "ftp://gpu.example",
        "https://",
        "http://gpu.example/renders",
        "http://192.0.2.1/",
        "https://user:secret@gpu.example",
        "https://gpu.example/?token=secret",
        "https://gpu.example/#x",
        "https://gpu.example:99999999/",
    ],
)
def test_a_url_that_may_not_be_used(url: str) -> None:
    """Only https URLs without secrets in them are taken, or loopback ones; what is refused is not quoted."""
    with pytest.raises(ConfigurationError) as caught:
        HttpBackend(url)
    assert "secret@" not in str(caught.value) and "=secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["https://gpu.example", "http://localhost:1/x", "http://127.0.0.9/", "http://[::1]:80/"]
)
def test_a_url_that_may_be_used(url: str) -> None:
    """https, or this very machine."""
    backend = HttpBackend(url)
    assert (backend.locality, backend.slots) == (Locality.WORLD, None)
    assert HttpBackend("http://10.0.0.1/", allow_http=True, slots=4).slots == 4


def test_options_that_make_no_sense() -> None:
    """They are refused at once."""
    with pytest.raises(ConfigurationError, match="both"):
        HttpBackend("https://gpu.example", modal_key="k")
    with pytest.raises(ConfigurationError, match="timeout"):
        HttpBackend("https://gpu.example", timeout=timedelta(0))
    with pytest.raises(ConfigurationError, match="slots"):
        HttpBackend("https://gpu.example", slots=0)


# --- processes and threads


def test_a_fork(fake: Service, backend: HttpBackend) -> None:
    """A child makes connections of its own, and leaves the parent's alone."""
    fake.behaviour = answering(200, {"status": "running"})
    backend.poll(BackendCall("parent"))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if backend.poll(BackendCall("child")).status is CallStatus.RUNNING else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert fake.connections == 2
    assert backend.poll(BackendCall("parent")).status is CallStatus.RUNNING
    assert fake.connections == 2


def test_threads_share_a_backend(fake: Service, backend: HttpBackend) -> None:
    """Many threads at once get each their own answer."""

    def behave(connection: socket.socket, asked: Asked) -> None:
        code = asked.line.split()[1].rpartition("/")[2]
        error = {"code": code, "message": "", "fault": "request"}
        answering(200, {"status": "ended", "error": error})(connection, asked)

    fake.behaviour = behave

    def poll(index: int) -> set[bool]:
        states = [backend.poll(BackendCall(f"c{index}")) for _ in range(20)]
        return {state.error is not None and state.error.code == f"c{index}" for state in states}

    assert in_threads(16, poll) == [{True}] * 16


def test_after_close(fake: Service, order: RenderOrder) -> None:
    """Nothing is sent any more; a second close does nothing."""
    backend = HttpBackend(fake.url)
    backend.close()
    backend.close()
    assert refused(backend, order).code == "backend.closed"
    assert fake.asked == []


# --- keyed services


def test_only_keyed_services_can_find(fake: Service, backend: HttpBackend) -> None:
    """What a service cannot do, its backend does not claim."""
    assert not isinstance(backend, SupportsFind)
    assert isinstance(KeyedHttpBackend(fake.url), SupportsFind)


def _losing(times: int) -> Behaviour:
    """Lose the answers to so many starts, and then answer."""
    lost = iter(range(times))

    def behave(connection: socket.socket, asked: Asked) -> None:
        if next(lost, None) is not None:
            connection.shutdown(socket.SHUT_RDWR)
        else:
            answering(200, {"callId": "a"})(connection, asked)

    return behave


def test_a_lost_answer_is_asked_again(fake: Service, order: RenderOrder) -> None:
    """The same start, with the same key, brings the call that the first one made."""
    fake.behaviour = _losing(1)
    keyed = KeyedHttpBackend(fake.url)
    assert keyed.start(order, on_event=ignore).id == "a"
    assert [asked.headers["idempotency-key"] for asked in fake.asked] == [order.token] * 2
    keyed.close()


def test_a_refused_repeat_says_nothing(fake: Service, order: RenderOrder) -> None:
    """When the second start is refused, it is still not known what the first one did."""

    def behave(connection: socket.socket, asked: Asked) -> None:
        answering(500 if len(fake.asked) == 1 else 409)(connection, asked)

    fake.behaviour = behave
    keyed = KeyedHttpBackend(fake.url)
    error = refused(keyed, order)
    assert (error.outcome_known, len(fake.asked)) == (False, 2)
    keyed.close()


def test_a_plain_service_is_asked_once(fake: Service, backend: HttpBackend, order: RenderOrder) -> None:
    """Where the service may not know the key, a second start could be a second render."""
    fake.behaviour = _losing(1)
    assert not refused(backend, order).outcome_known
    assert len(fake.asked) == 1


def test_find(fake: Service) -> None:
    """It asks with the key in a header, never in the URL; only an explicit null is "surely none"."""
    keyed = KeyedHttpBackend(fake.url, token=TOKEN)
    fake.behaviour = answering(200, {"callId": "a"})
    assert keyed.find(job_id="j", token="key-1") == BackendCall("a")
    asked = fake.asked[-1]
    assert asked.line == "POST /renders/find HTTP/1.1"
    assert asked.headers["idempotency-key"] == "key-1"
    assert json.loads(asked.body) == {"jobId": "j"}
    fake.behaviour = answering(200, {"callId": None})
    assert keyed.find(job_id="j", token="key-1") is None
    for behaviour in (answering(404), answering(200), answering(200, b"null"), answering(500), saying(b"")):
        fake.behaviour = behaviour
        with pytest.raises(BackendError):
            keyed.find(job_id="j", token="key-1")
    keyed.close()
