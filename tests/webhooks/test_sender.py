"""How the sender of a run fares with callbacks that misbehave, and what it hears from those that do not."""

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
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from renderdispatch.errors import RenderStopped
from renderdispatch.messages import (
    RENDER_EVENT,
    Callback,
    Completed,
    EventReply,
    Failed,
    Progressed,
    RenderOrder,
    Stage,
)
from renderdispatch.plumbing.stop import Stop
from renderdispatch.runner import InProcessRender, Pace, RunnerIO, run_order
from renderdispatch.runner.reporting import NotDeliveredError, Reporter, told_to_stop
from renderdispatch.runner.webhook import WebhookSender
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.testing import eventually
from renderdispatch.testing.renderers import FAKE_SCENE, FakeRenderer, make_order
from renderdispatch.webhooks import AttemptKeys, WebhookVerifier
from tests.support.callbacks import Answer, PeakMemory, Request, answering, callback, closing, endless, hanging, saying
from tests.support.webhooks import SECRET, Run

QUICK = Pace(progress_s=0.02, heartbeat_s=0.1, check_in_s=0.1, final_s=0.2, backoff_s=0.02, backoff_max_s=0.1)
MIB = 1 << 20


@pytest.fixture
def order() -> RenderOrder:
    return make_order(MemoryStorage())


@pytest.fixture
def run(order: RenderOrder) -> Run:
    return Run(order.job_id, order.attempt, order.token)


def key_of(order: RenderOrder) -> str:
    return AttemptKeys(SECRET).secret(job_id=order.job_id, attempt=order.attempt)


def sender_to(url: str, order: RenderOrder, **options: Any) -> WebhookSender:
    return WebhookSender(order, Callback(url=url, key=key_of(order)), **options)


# --- what is sent ---------------------------------------------------------------------------------


def test_an_event_arrives_signed(order: RenderOrder, run: Run) -> None:
    """One POST with the event as its body, signed with the key of the order, under the event's id."""
    event = run.check_in()
    with callback(answering(200)) as seen, sender_to(seen.url, order) as send:
        assert not send(event).stop
    (request,) = seen.requests
    assert request.line == "POST /callback?secret=do-not-log HTTP/1.1"
    assert request.headers["content-type"] == "application/json"
    verified = WebhookVerifier(key_of(order)).verify(request.headers, request.body)
    assert verified.id == f"rd:{order.job_id}:1:{event.event_id}"
    assert RENDER_EVENT.validate_json(verified.body) == event


def test_each_try_is_signed_afresh(order: RenderOrder, run: Run) -> None:
    """The second try of an event has the same id and body, and a timestamp and signature of its own."""
    event, times = run.check_in(), iter([datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)])
    with callback(answering(500)) as seen, sender_to(seen.url, order, now=lambda: next(times)) as send:
        for _ in range(2):
            with pytest.raises(NotDeliveredError, match="answered 500"):
                send(event)
    first, second = (r.headers for r in seen.requests)
    assert first["webhook-id"] == second["webhook-id"]
    assert int(second["webhook-timestamp"]) - int(first["webhook-timestamp"]) == 86400
    assert first["webhook-signature"] != second["webhook-signature"]


def test_the_answer_says_stop(order: RenderOrder, run: Run) -> None:
    """The body of a 200 is the channel back."""
    with (
        callback(answering(200, b'{"action":"stop","reason":"cancelled"}')) as seen,
        sender_to(seen.url, order) as send,
    ):
        assert send(run.check_in()) == EventReply.model_validate({"action": "stop", "reason": "cancelled"})


def test_one_connection_serves_many_events(order: RenderOrder, run: Run) -> None:
    """Events reuse the connection."""
    ports: set[int] = set()

    def answer(connection: socket.socket, request: Request) -> None:
        ports.add(connection.getpeername()[1])
        answering(200)(connection, request)

    with callback(answer) as seen, sender_to(seen.url, order) as send:
        for _ in range(5):
            send(run.progress(0.5))
    assert (len(seen.requests), len(ports)) == (5, 1)


# --- the clock ------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [timedelta(minutes=10), -timedelta(minutes=10), timedelta(days=-20000)])
def test_a_wrong_clock_is_corrected(order: RenderOrder, run: Run, off: timedelta) -> None:
    """Refused for its timestamp, the sender takes the time of the answer and gets through, from then on at once."""
    verifier = WebhookVerifier(key_of(order))

    def answer(connection: socket.socket, request: Request) -> None:
        try:
            verifier.verify(request.headers, request.body)
        except ValueError:
            answering(401, date=format_datetime(datetime.now(UTC), usegmt=True))(connection, request)
        else:
            answering(200)(connection, request)

    with callback(answer) as seen, sender_to(seen.url, order, now=lambda: datetime.now(UTC) + off) as send:
        send(run.check_in())
        assert len(seen.requests) == 2
        send(run.progress(0.5))
        assert len(seen.requests) == 3


@pytest.mark.parametrize(
    "date",
    [
        "",
        "yesterday",
        "Mon, 99 Foo 2026 99:99:99 GMT",
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Mon, 01 Jan 0100 00:00:00 +2359",
        "Mon, 23 Nov 2026 10:00:00 -0000",
        "Mon, 23 Nov 2026 10:00:00 +9999999999",
        "Mon, 23 Nov " + "9" * 5000 + " 10:00:00 GMT",
    ],
)
def test_a_date_that_is_none_is_ignored(order: RenderOrder, run: Run, date: str) -> None:
    """Whatever a refusal says for a date, the sender goes on with its own clock."""
    with callback(answering(401, date=date)) as seen, sender_to(seen.url, order) as send:
        for _ in range(2):
            with pytest.raises(NotDeliveredError, match="answered 401"):
                send(run.check_in())
        seen.answer = answering(200)
        send(run.check_in())
        WebhookVerifier(key_of(order)).verify(seen.requests[-1].headers, seen.requests[-1].body)


def test_a_refusal_with_the_right_date_is_not_tried_at_once(order: RenderOrder, run: Run) -> None:
    """A 401 for another reason is one request."""
    now = format_datetime(datetime.now(UTC), usegmt=True)
    with callback(answering(401, date=now)) as seen, sender_to(seen.url, order) as send:
        with pytest.raises(NotDeliveredError):
            send(run.check_in())
        assert len(seen.requests) == 1


# --- callbacks that misbehave ---------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(order: RenderOrder, run: Run, status: int) -> None:
    """The event is not delivered, and whatever the redirect names is never asked."""
    with callback(answering(200)) as target:
        redirect = answering(status, location=target.url)
        with callback(redirect) as seen, sender_to(seen.url, order) as send:
            with pytest.raises(NotDeliveredError, match=f"answered {status}"):
                send(run.check_in())
            assert len(seen.requests) == 1
        assert target.requests == []


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
MISBEHAVING = {
    "closes": closing,
    "hangs": hanging,
    "says half a status": saying(b"HTTP/1."),
    "says half an answer": saying(HEAD + b"content-length: 100\r\n\r\n{"),
    "speaks another protocol": saying(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "says noise": saying(bytes(range(256)) * 100),
    "drips its status": endless(b"", b"H", every_s=0.05),
    "drips its headers": endless(HEAD, b"x", every_s=0.05),
    "drips header lines": endless(HEAD, b"x: y\r\n", every_s=0.05),
    "drips its body": endless(HEAD + b"content-length: 16000\r\n\r\n", b" ", every_s=0.05),
    "sends endless headers": endless(HEAD, b"x: " + b"y" * 60_000 + b"\r\n"),
    "sends one endless header": endless(HEAD + b"x: ", b"y" * 60_000),
    "sends endless chunk extensions": endless(CHUNKED + b"1;", b"y" * 60_000),
    "sends endless interim answers": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "drips interim answers": endless(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", every_s=0.05),
}


@pytest.mark.parametrize("answer", MISBEHAVING.values(), ids=MISBEHAVING.keys())
def test_a_try_is_bounded(order: RenderOrder, run: Run, answer: Answer) -> None:
    """A callback that misbehaves costs a try, seconds at most and little memory; the next try works."""
    with callback(answer) as seen, sender_to(seen.url, order, try_s=0.3) as send:
        began = time.monotonic()
        with PeakMemory() as memory, pytest.raises(NotDeliveredError, match=r"callback (could|did|cannot|broke)"):
            send(run.check_in())
        assert time.monotonic() - began < 2.5
        assert memory.grown < 16 * MIB
        seen.answer = answering(200)
        send(run.check_in())


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A certificate for loopback, which senders trust that are made from here on."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    openssl = shutil.which("openssl")
    if openssl is None:
        if os.environ.get("CI"):
            pytest.fail("TLS has to be tested here, and there is no openssl that makes a certificate")
        pytest.skip("there is no openssl that makes a certificate")
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@pytest.mark.parametrize("way", ["hangs", "drips its status", "drips its headers", "drips its body", "closes"])
def test_a_try_is_bounded_over_tls(order: RenderOrder, run: Run, tls: ssl.SSLContext, way: str) -> None:
    """The same holds over https, where the socket changes under way; the next try works."""
    with callback(MISBEHAVING[way], tls=tls) as seen, sender_to(seen.url, order, try_s=0.3) as send:
        began = time.monotonic()
        with pytest.raises(NotDeliveredError, match=r"callback (could|did|cannot|broke)"):
            send(run.check_in())
        assert time.monotonic() - began < 2.5
        assert len(seen.requests) == 1
        seen.answer = answering(200)
        send(run.check_in())


def test_a_handshake_is_bounded(order: RenderOrder, run: Run, tls: ssl.SSLContext) -> None:
    """A port that takes connections and never shakes hands costs a try as well."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        sender_to(f"https://127.0.0.1:{server.getsockname()[1]}/", order, try_s=0.3) as send,
    ):
        began = time.monotonic()
        with pytest.raises(NotDeliveredError):
            send(run.check_in())
        assert time.monotonic() - began < 2.5


def test_a_stranger_s_certificate_is_refused(order: RenderOrder, run: Run, tls: ssl.SSLContext) -> None:
    """A certificate that nobody vouches for gets no event."""
    os.environ.pop("SSL_CERT_FILE")
    with callback(answering(200), tls=tls) as seen, sender_to(seen.url, order) as send:
        with pytest.raises(NotDeliveredError):
            send(run.check_in())
        assert seen.requests == []


def test_ten_gigabytes_are_not_read(order: RenderOrder, run: Run) -> None:
    """An endless answer counts for what its status says; of its body a few kilobytes are read."""
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    with callback(endless(CHUNKED, chunk)) as seen, sender_to(seen.url, order) as send:
        began = time.monotonic()
        with PeakMemory() as memory:
            for _ in range(20):
                assert not send(run.check_in()).stop
        assert time.monotonic() - began < 5
        assert memory.grown < 16 * MIB


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b'{"action":"explode"}', b"\xff", b"[" * 16000])
def test_an_answer_that_cannot_be_read_says_go_on(order: RenderOrder, run: Run, body: bytes) -> None:
    """A success whose body is no reply delivered the event all the same."""
    with callback(answering(200, body)) as seen, sender_to(seen.url, order) as send:
        assert not send(run.check_in()).stop


def test_cookies_are_not_kept(order: RenderOrder, run: Run) -> None:
    """A callback cannot fill the sender's memory, nor mark its requests, with cookies."""
    with callback(answering(200, set_cookie="a=b; Path=/")) as seen, sender_to(seen.url, order) as send:
        send(run.check_in())
        send(run.check_in())
        assert "cookie" not in seen.requests[1].headers


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/", "http://[::1", "http://nowhere.invalid/", "https://127.0.0.1:1/", "http://a b/"]
)
def test_a_callback_that_is_not_there_is_one_error(order: RenderOrder, run: Run, url: str) -> None:
    """Whatever is wrong with the URL, the event was not delivered, and the error does not quote it."""
    with sender_to(url + "?secret=do-not-log", order) as send, pytest.raises(NotDeliveredError) as caught:
        send(run.check_in())
    assert "do-not-log" not in str(caught.value)


def test_leaving_cuts_a_try_off(order: RenderOrder, run: Run) -> None:
    """Closing the sender ends the try that another thread is in, long before its time."""
    errors: list[BaseException] = []

    def report() -> None:
        try:
            send(run.check_in())
        except NotDeliveredError as error:
            errors.append(error)

    with callback(hanging) as seen:
        with sender_to(seen.url, order, try_s=60) as send:
            thread = threading.Thread(target=report)
            thread.start()
            eventually(lambda: seen.requests)
        thread.join(5)
        assert len(errors) == 1
        with pytest.raises(NotDeliveredError):
            send(run.check_in())


# --- the reporter over it -------------------------------------------------------------------------


def report_to(
    url: str, order: RenderOrder, *, pace: Pace = QUICK, stop: Stop | None = None, **options: Any
) -> tuple[WebhookSender, Reporter]:
    send = sender_to(url, order, **options)
    return send, Reporter(order, send, pace=pace, stop=stop)


@pytest.mark.parametrize("answer", [hanging, answering(500), closing, answering(503, retry_after="3600")])
def test_the_final_phase_is_bounded(order: RenderOrder, run: Run, answer: Answer) -> None:
    """Whatever the callback does, a run that is over leaves within `final_s`."""
    with callback(answer) as seen:
        send, reporter = report_to(seen.url, order, try_s=60)
        with send:
            with reporter:
                assert len(seen.requests) >= 1
                began = time.monotonic()
                assert not reporter.finish(reporter.events.completed(run.completed().artifact))
            assert time.monotonic() - began < QUICK.final_s + 0.5


def test_the_final_report_gets_through_at_last(order: RenderOrder, run: Run) -> None:
    """A callback that is back in time hears the check-in that it missed, then the final event, each once."""
    with callback(answering(503)) as seen:
        send, reporter = report_to(
            seen.url, order, pace=Pace(check_in_s=0.1, final_s=20, backoff_s=0.02, backoff_max_s=0.1)
        )
        with send, reporter:
            seen.answer = answering(200)
            already = len(seen.requests)
            assert reporter.finish(reporter.events.completed(run.completed().artifact))
        types = [RENDER_EVENT.validate_json(r.body).type for r in seen.requests[already + 1 :]]
        assert types in (["checked-in", "completed"], ["completed"])


def test_a_wish_to_wait_is_heard(order: RenderOrder) -> None:
    """After a 503 with Retry-After the next try comes no sooner, or after a heartbeat when that is less."""
    times: list[float] = []

    def answer(connection: socket.socket, request: Request) -> None:
        times.append(time.monotonic())
        answering(503, retry_after="1")(connection, request)

    with callback(answer) as seen:
        pace = Pace(heartbeat_s=0.4, check_in_s=1.0, final_s=0.1, backoff_s=0.001, backoff_max_s=0.002)
        send, reporter = report_to(seen.url, order, pace=pace)
        with send, reporter:
            assert len(times) in {2, 3}
        assert times[1] - times[0] >= 0.4


def test_a_silent_render_hears_of_a_stop(order: RenderOrder) -> None:
    """A run that has nothing to say asks once a heartbeat, and so hears that it was cancelled."""
    stop = Stop(error=told_to_stop)
    with callback(answering(200)) as seen:
        send, reporter = report_to(seen.url, order, stop=stop)
        with send, reporter:
            reporter.progress(Stage.RENDERING, 0.5)
            eventually(lambda: len(seen.requests) >= 2)
            seen.answer = answering(200, b'{"action":"stop","reason":"cancelled"}')
            began = time.monotonic()
            with pytest.raises(RenderStopped, match="cancelled"):
                while time.monotonic() < began + 5:
                    stop.check()
                    time.sleep(0.001)
            assert time.monotonic() - began < QUICK.heartbeat_s + 0.5


def test_progress_is_coalesced(order: RenderOrder) -> None:
    """Over a slow callback there is one request at a time, and the next one brings the newest state."""
    release = threading.Semaphore(0)

    def slow(connection: socket.socket, request: Request) -> None:
        release.acquire(timeout=10)
        answering(200)(connection, request)

    with callback(slow) as seen:
        release.release()
        send, reporter = report_to(seen.url, order)
        with send, reporter:
            reporter.progress(Stage.RENDERING, 0.0)
            eventually(lambda: len(seen.requests) == 2)
            for step in range(1, 1001):
                reporter.progress(Stage.RENDERING, step / 1000, frames=step, frames_total=1000)
            release.release()
            eventually(lambda: len(seen.requests) == 3)
            newest = RENDER_EVENT.validate_json(seen.requests[2].body)
            assert isinstance(newest, Progressed) and newest.frames == 1000
            assert seen.most_at_once == 1
            release.release(100)


# --- whole runs -----------------------------------------------------------------------------------


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


def carry_out(
    url: str, storage: MemoryStorage, tmp_path: Path, *, pace: Pace = QUICK, **params: Any
) -> Completed | Failed:
    order = make_order(storage, params=params)
    order = order.model_copy(update={"callback": Callback(url=url, key=key_of(order))})
    assert order.callback is not None
    with WebhookSender(order, order.callback, try_s=1.0) as send:
        io = RunnerIO(send=send, render=InProcessRender({FAKE_SCENE: FakeRenderer()}), work_dir=tmp_path, pace=pace)
        return run_order(order, io=io)


BROKEN = {**MISBEHAVING, "redirects": answering(302, location="/"), "fails": answering(500)}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN.keys())
def test_a_render_needs_no_callback(storage: MemoryStorage, tmp_path: Path, answer: Answer) -> None:
    """However broken the callback: the video and the result object stand, and the run ends soon after."""
    with callback(answer) as seen:
        began = time.monotonic()
        with PeakMemory() as memory:
            outcome = carry_out(seen.url, storage, tmp_path)
        assert time.monotonic() - began < QUICK.check_in_s + QUICK.final_s + 2
        assert memory.grown < 24 * MIB
    assert isinstance(outcome, Completed)
    with storage.open(next(o.key for o in storage.list("") if o.key.endswith("result.json"))) as file:
        assert Completed.model_validate_json(file.read()) == outcome


def test_a_whole_run_logs_no_secret(
    storage: MemoryStorage, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Key, signatures and the callback's URL appear in no log line of a run, also at DEBUG, nor in any repr."""
    caplog.set_level(logging.DEBUG)
    failures = iter([answering(503), closing, answering(401, date="Mon, 23 Nov 2020 10:00:00 GMT"), answering(302)])

    def answer(connection: socket.socket, request: Request) -> None:
        next(failures, answering(200))(connection, request)

    with callback(answer) as seen:
        outcome = carry_out(seen.url, storage, tmp_path, frames=20, frame_s=0.02)
        assert isinstance(outcome, Completed)
        order = make_order(storage)
        order = order.model_copy(update={"callback": Callback(url=seen.url, key=key_of(order))})
        assert order.callback is not None
        with WebhookSender(order, order.callback) as send:
            said = caplog.text + repr(outcome) + repr(order) + repr(send) + "".join(capfd.readouterr())
        job_id = json.loads(seen.requests[0].body)["jobId"]
        secrets = [AttemptKeys(SECRET).secret(job_id=job_id, attempt=1)[6:], order.callback.key[6:]]
        secrets += [r.headers["webhook-signature"][3:] for r in seen.requests]
        assert len(seen.requests) > 4
        for secret in (*secrets, "do-not-log", SECRET[6:]):
            assert secret not in said


def test_a_stop_ends_the_render(storage: MemoryStorage, tmp_path: Path) -> None:
    """A render that hears "stop" computes no more and says so."""

    def answer(connection: socket.socket, request: Request) -> None:
        stop = b'"rendering"' in request.body
        answering(200, b'{"action":"stop"}' if stop else b"{}")(connection, request)

    with callback(answer) as seen:
        outcome = carry_out(seen.url, storage, tmp_path, frames=10_000, frame_s=0.01)
    assert isinstance(outcome, Failed)
    assert outcome.error.code == "render.stopped"


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Reporter and timer threads end with their run."""
    yield
    names = {"renderdispatch-reporter", "renderdispatch-deadline"}
    eventually(lambda: not [t for t in threading.enumerate() if t.name in names])
