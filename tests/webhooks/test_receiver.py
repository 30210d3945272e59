"""What the service answers to each kind of webhook."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import threading
from collections.abc import Iterator, MutableMapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from renderdispatch.aio import AsyncRenderService
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.engine.commit import commit, forget
from renderdispatch.engine.events import CancelRequested
from renderdispatch.engine.inbox import MAX_BODY_BYTES, WebhookResponse
from renderdispatch.errors import ConfigurationError, StoreUnavailableError
from renderdispatch.jobs import Job
from renderdispatch.messages import Action, EventReply, JobStatus, Stage
from renderdispatch.service import RenderService
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.web.webhook import asgi_app, wsgi_app
from renderdispatch.webhooks import AttemptKeys, WebhookSigner
from tests.support.webhooks import NEW_SECRET, SECRET, Run, Signed, dispatched, redispatched


class SometimesAway(MemoryJobStore):
    """A store that answers nobody while ``away`` is set."""

    away = False
    reads = 0

    def get(self, job_id: str) -> Job:
        self.reads += 1
        if self.away:
            raise StoreUnavailableError("the store does not answer")
        return super().get(job_id)


@pytest.fixture
def store() -> SometimesAway:
    return SometimesAway()


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def service(store: SometimesAway, storage: MemoryStorage) -> Iterator[RenderService]:
    with RenderService(store, storage, {"far": InlineBackend()}, secrets=SECRET, worker=False) as service:
        yield service


def send(service: RenderService, signed: Signed) -> WebhookResponse:
    return service.handle_webhook(*signed)


def reply_of(response: WebhookResponse) -> EventReply:
    assert response.status == 200, response
    return EventReply.model_validate_json(response.body)


def code_of(response: WebhookResponse) -> str:
    code: str = json.loads(response.body)["error"]["code"]
    return code


# --- applied, ignored, superseded -----------------------------------------------------------------


def test_a_check_in_is_applied(service: RenderService, store: MemoryJobStore) -> None:
    """A signed check-in makes its run the owner of the attempt; the answer is to go on."""
    run = dispatched(store)
    assert reply_of(send(service, run.sign(run.check_in()))).action is Action.CONTINUE
    attempt = store.get(run.job_id).attempt
    assert attempt is not None and attempt.runs == (run.run_id,)
    assert service.webhook_counts() == {"applied": 1}


def test_a_job_is_read_once(service: RenderService, store: SometimesAway) -> None:
    """An event that is applied costs one read of its job, and one write."""
    run = dispatched(store)
    reads, revision = store.reads, store._jobs[run.job_id].revision
    reply_of(send(service, run.sign(run.check_in())))
    assert (store.reads - reads, store._jobs[run.job_id].revision - revision) == (1, 1)


def test_a_replay_changes_nothing(service: RenderService, store: MemoryJobStore) -> None:
    """The very same request a second time is answered 200 and not written."""
    run = dispatched(store)
    signed = run.sign(run.progress(0.5))
    send(service, signed)
    revision = store.get(run.job_id).revision
    assert not reply_of(send(service, signed)).stop
    assert store.get(run.job_id).revision == revision
    assert service.webhook_counts() == {"applied": 1, "ignored": 1}


def test_a_completion_ends_the_job(service: RenderService, store: MemoryJobStore, storage: MemoryStorage) -> None:
    """A reported video makes the job `finalizing` at once, and `complete` when storage shows it."""
    run = dispatched(store)
    storage.put("videos/video.mp4", b"a video")
    reply_of(send(service, run.sign(run.completed())))
    assert store.get(run.job_id).stage is Stage.FINALIZING
    service.tick()
    assert store.get(run.job_id).status is JobStatus.COMPLETE


def test_a_late_event_is_answered_200(service: RenderService, store: MemoryJobStore) -> None:
    """After the end nothing changes any more, and the sender is told to stop."""
    run = dispatched(store)
    send(service, run.sign(run.failed()))
    ended = store.get(run.job_id)
    for event in (run.check_in(), run.progress(0.9), run.completed(), run.failed()):
        assert reply_of(send(service, run.sign(event))).stop
    assert store.get(run.job_id) == ended


def test_a_cancelled_render_is_told_to_stop(service: RenderService, store: MemoryJobStore) -> None:
    """Once a cancel is wanted, the answer to any event is "stop"."""
    run = dispatched(store)
    send(service, run.sign(run.check_in()))
    commit(store, run.job_id, CancelRequested())
    reply = reply_of(send(service, run.sign(run.progress(0.1))))
    assert (reply.action, reply.reason) == (Action.STOP, "cancelled")


def test_an_older_run_is_told_to_stop(service: RenderService, store: MemoryJobStore) -> None:
    """The newest run owns the attempt; the one before it changes nothing."""
    older = dispatched(store)
    send(service, older.sign(older.check_in()))
    newer = older.again()
    send(service, newer.sign(newer.check_in()))
    before = store.get(older.job_id)
    for event in (older.progress(0.5), older.completed(), older.failed(), older.check_in()):
        assert reply_of(send(service, older.sign(event))).reason == "superseded"
    assert store.get(older.job_id) == before


def test_a_superseded_attempt_is_told_to_stop(service: RenderService, store: MemoryJobStore) -> None:
    """The key of an attempt that was given up still verifies, and its events change nothing."""
    first = dispatched(store)
    redispatched(store, first)
    before = store.get(first.job_id)
    for event in (first.check_in(), first.progress(0.5), first.completed(), first.failed()):
        assert reply_of(send(service, first.sign(event))).reason == "superseded"
    assert store.get(first.job_id) == before


def test_an_attempt_that_the_record_forgot_is_superseded(service: RenderService, store: MemoryJobStore) -> None:
    """A record may forget an attempt; its key still speaks for none of the others."""
    first = dispatched(store)
    second = redispatched(store, first)
    job = store.get(first.job_id)
    before = store.replace(evolve(job, attempts=job.attempts[1:]), expected_revision=job.revision)
    forged = Run(first.job_id, first.attempt, second.token)
    for run in (first, forged):
        for event in (run.check_in(), run.completed(), run.failed()):
            assert reply_of(send(service, run.sign(event))).reason == "superseded"
    assert store.get(first.job_id) == before
    assert send(service, second.sign(second.check_in())).status == 200
    assert store.get(first.job_id) != before


def test_a_deleted_job_needs_no_render(service: RenderService, store: MemoryJobStore) -> None:
    """A run whose job was deleted is told to stop."""
    run = dispatched(store)
    forget(store, store.get(run.job_id))
    assert reply_of(send(service, run.sign(run.progress(0.5)))).reason == "no such job"


def test_any_content_type_will_do(service: RenderService, store: MemoryJobStore) -> None:
    """The body is JSON whatever the header says."""
    run = dispatched(store)
    headers, body = run.sign(run.check_in())
    assert service.handle_webhook({**headers, "content-type": "text/plain"}, body).status == 200
    del headers["content-type"]
    assert service.handle_webhook(headers, body).status == 200


def test_the_async_twin_answers_the_same(service: RenderService, store: MemoryJobStore) -> None:
    """`AsyncRenderService.handle_webhook` takes the same and answers the same."""
    run = dispatched(store)
    response = asyncio.run(AsyncRenderService(service).handle_webhook(*run.sign(run.check_in())))
    assert not reply_of(response).stop


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("minutes", [-10, 10])
def test_a_wrong_clock_is_named(service: RenderService, store: MemoryJobStore, minutes: int) -> None:
    """A sender whose clock is ten minutes off hears that this is the reason."""
    run = dispatched(store)
    now = datetime.now(UTC) + timedelta(minutes=minutes)
    response = send(service, run.sign(run.check_in(), now=now))
    assert response.status == 401
    assert code_of(response) == f"webhook.timestamp-too-{'old' if minutes < 0 else 'new'}"


@pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_each_header_is_needed(service: RenderService, store: MemoryJobStore, missing: str) -> None:
    """Without one of the three headers nothing is believed."""
    run = dispatched(store)
    headers, body = run.sign(run.check_in())
    del headers[missing]
    response = service.handle_webhook(headers, body)
    assert (response.status, code_of(response)) == (401, "webhook.missing-header")


def test_a_changed_body_is_refused(service: RenderService, store: MemoryJobStore) -> None:
    """A body that is not the signed one changes nothing."""
    run = dispatched(store)
    headers, body = run.sign(run.progress(0.1))
    before = store.get(run.job_id)
    response = service.handle_webhook(headers, body.replace(b"0.1", b"0.9"))
    assert (response.status, code_of(response)) == (401, "webhook.wrong-signature")
    assert store.get(run.job_id) == before


@pytest.mark.parametrize(
    "body", [b"", b"not json", b"{}", b"[]", b"null", b"\xff\xfe", b'{"type":"exploded"}', b"[" * 9999]
)
def test_what_is_no_event_is_refused(service: RenderService, store: MemoryJobStore, body: bytes) -> None:
    """A body that is well signed and no event is answered 400."""
    run = dispatched(store)
    response = send(service, run.sign_body(body))
    assert (response.status, code_of(response)) == (400, "webhook.invalid-event")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)


@given(data=st.data())
def test_no_body_harms(data: st.DataObject) -> None:
    """Whatever a run signs, bytes or almost an event: it is answered, and never with a server's error."""
    store = MemoryJobStore()
    run = dispatched(store)
    event = data.draw(st.sampled_from([run.check_in(), run.progress(0.5), run.completed(), run.failed()]))
    almost = json.loads(event.model_dump_json())
    for name in data.draw(st.lists(st.sampled_from(sorted(almost)), max_size=3)):
        almost[name] = data.draw(JSON)
    body = data.draw(st.binary(max_size=50) | st.just(json.dumps(almost).encode()))
    with RenderService(store, MemoryStorage(), {"far": InlineBackend()}, secrets=SECRET, worker=False) as service:
        assert send(service, run.sign_body(body)).status in {200, 400, 401}
        service.poll(run.job_id)


def test_a_large_body_is_refused(service: RenderService, store: MemoryJobStore) -> None:
    """A body over the limit is answered 413, however well it is signed."""
    run = dispatched(store)
    response = send(service, run.sign_body(b" " * (MAX_BODY_BYTES + 1)))
    assert (response.status, code_of(response)) == (413, "webhook.body-too-large")


def test_a_key_speaks_for_no_other_job(service: RenderService, store: MemoryJobStore) -> None:
    """A leaked key cannot sign an event of another job, neither under its own id nor under that of the other."""
    leaked, other = dispatched(store), dispatched(store)
    before = store.get(other.job_id)
    event = other.failed()
    under_its_own = leaked.sign_body(event.model_dump_json().encode())
    response = send(service, under_its_own)
    assert (response.status, code_of(response)) == (401, "webhook.wrong-attempt")
    forged = WebhookSigner(AttemptKeys(SECRET).secret(job_id=leaked.job_id, attempt=1))
    headers, body = other.sign(event)
    response = service.handle_webhook(forged.sign(headers["webhook-id"], body, now=datetime.now(UTC)), body)
    assert (response.status, code_of(response)) == (401, "webhook.wrong-signature")
    assert store.get(other.job_id) == before


def test_a_key_speaks_for_no_other_attempt(service: RenderService, store: MemoryJobStore) -> None:
    """The key of the first attempt cannot sign for the second, nor the other way round."""
    first = dispatched(store)
    second = redispatched(store, first)
    before = store.get(first.job_id)
    for key, other in ((first, second), (second, first)):
        body = other.failed().model_dump_json().encode()
        response = send(service, key.sign_body(body))
        assert (response.status, code_of(response)) == (401, "webhook.wrong-attempt")
    assert store.get(first.job_id) == before


def test_an_attempt_that_never_was_is_refused(service: RenderService, store: MemoryJobStore) -> None:
    """A key of an attempt that the record does not know speaks for nobody."""
    run = dispatched(store)
    unknown = Run(run.job_id, 7, run.token)
    response = send(service, unknown.sign(unknown.failed()))
    assert (response.status, code_of(response)) == (401, "webhook.wrong-attempt")


def test_another_service_s_message_is_refused(service: RenderService, store: MemoryJobStore) -> None:
    """An id that no order led to has no key."""
    run = dispatched(store)
    headers, body = run.sign(run.check_in())
    response = service.handle_webhook({**headers, "webhook-id": "msg_123"}, body)
    assert (response.status, code_of(response)) == (401, "webhook.unknown-key")


# --- rotation -------------------------------------------------------------------------------------


def test_secrets_rotate(store: SometimesAway, storage: MemoryStorage) -> None:
    """While both secrets are configured, attempts of either get through; afterwards the old ones do not."""
    old, new = dispatched(store, secret=SECRET), dispatched(store, secret=NEW_SECRET)
    both = RenderService(store, storage, {"far": InlineBackend()}, secrets=[NEW_SECRET, SECRET], worker=False)
    after = RenderService(store, storage, {"far": InlineBackend()}, secrets=[NEW_SECRET], worker=False)
    with both, after:
        assert send(both, old.sign(old.check_in())).status == 200
        assert send(both, new.sign(new.check_in())).status == 200
        assert send(after, new.sign(new.progress(0.1))).status == 200
        assert code_of(send(after, old.sign(old.progress(0.1)))) == "webhook.wrong-signature"


# --- mishaps --------------------------------------------------------------------------------------


def test_senders_come_back_to_a_store_that_is_away(service: RenderService, store: SometimesAway) -> None:
    """While the store does not answer, webhooks are answered 503 with Retry-After; the same request works later."""
    run = dispatched(store)
    signed = run.sign(run.check_in())
    store.away = True
    response = send(service, signed)
    assert (response.status, response.headers["retry-after"]) == (503, "5")
    store.away = False
    assert send(service, signed).status == 200


def test_senders_come_back_to_a_service_that_closes(service: RenderService, store: MemoryJobStore) -> None:
    """A service that was closed answers 503."""
    run = dispatched(store)
    service.close()
    assert send(service, run.sign(run.check_in())).status == 503


def test_without_a_secret_nothing_is_mounted(store: MemoryJobStore, storage: MemoryStorage) -> None:
    """A service that could not verify anything refuses to take webhooks, when mounted and when asked."""
    with RenderService(store, storage, {"far": InlineBackend()}, worker=False) as service:
        for mount in (wsgi_app, asgi_app, lambda s: s.handle_webhook({}, b"")):
            with pytest.raises(ConfigurationError, match="need a secret"):
                mount(service)
    for secrets in ("", [], "whsec_", "short", ["whsec_c2hvcnQ="]):
        with pytest.raises(ConfigurationError):
            RenderService(
                store,
                storage,
                {"far": InlineBackend()},
                secrets=secrets,
                webhook_url="https://example.com",
                worker=False,
            )


def test_refusals_log_no_secret(
    service: RenderService, store: MemoryJobStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither master secret nor key, token or signature is in any log line, also at DEBUG."""
    caplog.set_level(logging.DEBUG)
    run = dispatched(store)
    headers, body = run.sign(run.progress(0.1))
    answers = [
        service.handle_webhook(headers, body),
        service.handle_webhook(headers, body + b" "),
        send(service, run.sign_body(b"no json " + run.token.encode())),
        send(service, run.sign(run.check_in(), now=datetime.now(UTC) - timedelta(hours=1))),
        send(service, Run(run.job_id, 2, run.token).sign(run.check_in())),
    ]
    key = AttemptKeys(SECRET).secret(job_id=run.job_id, attempt=1)
    said = caplog.text + "".join(map(repr, answers)) + repr(service) + repr(run.check_in())
    for secret in (SECRET[6:], key[6:], run.token, headers["webhook-signature"][3:]):
        assert secret not in said


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # which is what preforking servers do
def test_a_child_takes_webhooks_after_a_fork(service: RenderService, store: MemoryJobStore) -> None:
    """A prefork server mounts in its parent; a child answers also when the parent's locks were held at the fork."""
    run = dispatched(store)
    signed = run.sign(run.check_in())
    service.webhook_counts()
    engine = service._engine
    (lock,) = engine._receiver._locks.values()
    with lock, engine.receiver()._lock:
        child = os.fork()
        if child == 0:  # pragma: no cover - in the child
            answered = threading.Event()
            statuses: list[int] = []

            def take() -> None:
                statuses.append(send(service, signed).status)
                answered.set()

            threading.Thread(target=take, daemon=True).start()
            answered.wait(10)
            os._exit(0 if statuses == [200] and service.webhook_counts() == {"applied": 1} else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


# --- the callables --------------------------------------------------------------------------------


def call_wsgi(service: RenderService, body: bytes, **environ: Any) -> tuple[int, dict[str, str], bytes]:
    """Call the WSGI application as a server would."""
    answered: list[Any] = []
    given = {"REQUEST_METHOD": "POST", "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body)), **environ}
    chunks = wsgi_app(service)(given, lambda *args: answered.extend(args))
    return int(answered[0][:3]), dict(answered[1]), b"".join(chunks)


def as_environ(headers: dict[str, str]) -> dict[str, str]:
    return {"HTTP_" + name.upper().replace("-", "_"): value for name, value in headers.items()}


def test_wsgi_applies_a_webhook(service: RenderService, store: MemoryJobStore) -> None:
    """What the server hands over is verified as it was sent."""
    run = dispatched(store)
    headers, body = run.sign(run.check_in())
    status, answer, reply = call_wsgi(service, body, **as_environ(headers))
    assert (status, answer["content-length"]) == (200, str(len(reply)))


def test_wsgi_reads_a_body_in_chunks(service: RenderService, store: MemoryJobStore) -> None:
    """A body without a length is read where the server says that it ends by itself, and is empty elsewhere."""
    run = dispatched(store)
    headers, body = run.sign(run.check_in())
    unknown = {**as_environ(headers), "CONTENT_LENGTH": ""}
    assert call_wsgi(service, body, **unknown)[0] == 401
    assert call_wsgi(service, body, **unknown, **{"wsgi.input_terminated": True})[0] == 200


@pytest.mark.parametrize("length", ["-1", "1e3", "\N{ARABIC-INDIC DIGIT ONE}", "9" * 5000, str(1 << 60)])
def test_wsgi_trusts_no_length(service: RenderService, length: str) -> None:
    """A Content-Length that is nonsense, or a lie, reads no more than is taken."""
    assert call_wsgi(service, b"x" * (2 * MAX_BODY_BYTES), CONTENT_LENGTH=length)[0] == 413


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "OPTIONS"])
def test_wsgi_takes_only_post(service: RenderService, method: str) -> None:
    """Any other method is answered 405."""
    status, headers, _ = call_wsgi(service, b"", REQUEST_METHOD=method)
    assert (status, headers["allow"]) == (405, "POST")


def call_asgi(
    service: RenderService, messages: list[MutableMapping[str, Any]], **scope: Any
) -> list[MutableMapping[str, Any]]:
    """Call the ASGI application as a server would; return what it sent."""
    sent: list[MutableMapping[str, Any]] = []
    incoming = iter(messages)

    async def receive() -> MutableMapping[str, Any]:
        return next(incoming)

    async def send_it(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    given = {"type": "http", "method": "POST", "headers": [], **scope}
    asyncio.run(asgi_app(service)(given, receive, send_it))  # type: ignore[arg-type]
    return sent


def test_asgi_applies_a_webhook(service: RenderService, store: MemoryJobStore) -> None:
    """A body may come in any number of pieces."""
    run = dispatched(store)
    headers, body = run.sign(run.check_in())
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    pieces: list[MutableMapping[str, Any]] = [
        {"type": "http.request", "body": body[:10], "more_body": True},
        {"type": "http.request", "more_body": True},
        {"type": "http.request", "body": body[10:]},
    ]
    assert [m.get("status") for m in call_asgi(service, pieces, headers=pairs)] == [200, None]


def test_asgi_says_nothing_to_a_client_that_left(service: RenderService) -> None:
    """Half a body is no forgery: it is neither answered nor counted."""
    half = {"type": "http.request", "body": b"{", "more_body": True}
    assert call_asgi(service, [half, {"type": "http.disconnect"}]) == []
    assert service.webhook_counts() == {}


def test_asgi_takes_only_post(service: RenderService) -> None:
    """Any other method is answered 405, a websocket is closed, the lifespan is the outer application's."""
    assert call_asgi(service, [], method="GET")[0]["status"] == 405
    assert call_asgi(service, [], type="websocket") == [{"type": "websocket.close"}]
    assert call_asgi(service, [], type="lifespan") == []
