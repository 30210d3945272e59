"""How does what a run reports reach its job?

Events of local runs and of webhooks go the same way: the `Inbox` commits them, and tells the holder of the attempt when
it need hold it no longer. `WebhookReceiver` stands before it for the webhooks: it verifies, reads the job once, checks
that the key speaks for the attempt, and answers. 200 is for what was applied, and for what came too late or twice (so
that senders stop); 400 for what is not an event; 401 for a bad signature; 413 for a body that is too large; 503 while
the store is away or the service closes (so that senders come back). The body of a 200 is the channel back to the run:
go on, or stop.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from attrs import field, frozen
from pydantic import ValidationError

from renderdispatch import errors
from renderdispatch.engine.commit import commit
from renderdispatch.engine.transitions import Decision, Verdict
from renderdispatch.jobs import Job
from renderdispatch.messages import Action, EventReply, Failed, Progressed, RenderEvent, Stage, read_event
from renderdispatch.protocols import JobStore
from renderdispatch.webhooks import AttemptKeys, EventId, Headers, WebhookVerifier

if TYPE_CHECKING:
    from renderdispatch.engine.leases import Held

_log: Final = logging.getLogger("renderdispatch.webhooks")

MAX_BODY_BYTES: Final = 64 * 1024
"""More than any event needs; larger bodies are refused before they are hashed."""

_RETRY_AFTER_S: Final = 5
_JSON: Final = {"content-type": "application/json"}


@frozen
class Inbox:
    """Commits what runs report.

    Args:
        over: Called with the token of an attempt that computes nothing more that its job needs.
        noticed: Called with each job that an event changed.
        check: Called before each event; raises when none is taken any more.
        find: Returns an attempt that this process holds.
    """

    store: JobStore
    _over: Callable[[str], None]
    _noticed: Callable[[Job], None] = lambda _job: None
    _check: Callable[[], None] = lambda: None
    _find: Callable[[str], Held | None] = lambda _token: None

    def take(self, event: RenderEvent, job: Job | None = None) -> Decision:
        """Apply an event of a run; the decision holds the reply.

        Args:
            event: What the run reports.
            job: Its job as just read, which saves a read.

        Raises:
            JobNotFoundError: The job was deleted.
            StoreUnavailableError: The event was not taken, and is to come again.
        """
        self._check()
        held = self._find(event.token)
        try:
            if held is not None and held.local and not held.released and held.job_id == event.job_id:
                decision = held.report(self.store, event)
            else:
                decision = commit(self.store, job if job is not None else event.job_id, event)
        except errors.JobNotFoundError:
            self._over(event.token)
            raise
        job = decision.job
        judged = isinstance(event, Failed) and job.attempt is not None and job.attempt.verdict is not None
        if judged or job.ended or job.stage in {Stage.FINALIZING, Stage.RETRY_WAIT}:
            self._over(event.token)
        if decision.verdict is Verdict.APPLIED and (not isinstance(event, Progressed) or job.helpers_to_start()):
            self._noticed(job)
        return decision

    def on_event(self, event: RenderEvent) -> EventReply:
        """Take an event of a local run, as `OnEvent`; a job that was deleted meanwhile needs no render."""
        try:
            return self.take(event).reply
        except errors.JobNotFoundError:
            return EventReply(action=Action.STOP, reason="deleted")


@frozen(kw_only=True)
class WebhookResponse:
    """An HTTP response, for any framework to send."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(factory=lambda: dict(_JSON))


class WebhookReceiver:
    """Answers the webhooks of the GPU side.

    Args:
        inbox: Takes the events.
        keys: The attempts' keys, from the master secrets: newest first, those before it still verify renders in flight.
    """

    def __init__(self, inbox: Inbox, keys: AttemptKeys) -> None:
        self._inbox = inbox
        self._verifier = WebhookVerifier(keys, max_body=MAX_BODY_BYTES)
        self._counted: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def counts(self) -> dict[str, int]:
        """How many webhooks had each fate: ``applied``, ``ignored``, ``superseded``, or the reason of a refusal."""
        with self._lock:
            return dict(self._counted)

    def receive(self, headers: Headers, body: bytes) -> WebhookResponse:
        """Answer one webhook; never raises."""
        try:
            verified = self._verifier.verify(headers, body)
        except errors.WebhookVerificationError as error:
            _log.warning("a webhook was refused: %s", error)
            too_large = error.reason is errors.WebhookRefusal.BODY_TOO_LARGE
            return self._refuse(413 if too_large else 401, error.code, str(error))
        sender = EventId.parse(verified.id)
        assert sender is not None  # its key was found
        try:
            event = read_event(verified.body)
        except ValidationError as error:
            _log.warning("job %s: a webhook is not an event: %d fields are wrong", sender.job_id, error.error_count())
            return self._refuse(400, "webhook.invalid-event", "the body is not an event of this protocol")
        try:
            return self._take(sender, event)
        except errors.JobNotFoundError:
            self._count("unknown-job")
            return WebhookResponse(status=200, body=_json_of(EventReply(action=Action.STOP, reason="no such job")))
        except errors.RenderDispatchError as error:
            # The store is away, others always wrote first, or this service is closed.
            _log.warning("job %s: a webhook could not be taken: %s", sender.job_id, error)
            return self._refuse(503, "store.unavailable", "try again")

    def _take(self, sender: EventId, event: RenderEvent) -> WebhookResponse:
        """Apply an event whose signature is good, if it speaks for the attempt whose key signed it."""
        job = self._inbox.store.get(sender.job_id)
        attempt = next((a for a in job.attempts if a.number == sender.attempt), None)
        forgotten = attempt is None and 0 < sender.attempt <= job.attempt_number
        if forgotten and event.job_id == job.id:
            self._count(Verdict.SUPERSEDED)
            return WebhookResponse(status=200, body=_json_of(EventReply(action=Action.STOP, reason="superseded")))
        if event.job_id != job.id or attempt is None or attempt.token != event.token:
            _log.warning("job %s: the key of attempt %d signed for another one", job.id, sender.attempt)
            return self._refuse(401, "webhook.wrong-attempt", "this key does not speak for this attempt")
        decision = self._inbox.take(event, job)
        self._count(decision.verdict)
        if decision.verdict is not Verdict.APPLIED:
            _log.info("job %s: a webhook was %s (%s)", job.id, decision.verdict, event.type)
        return WebhookResponse(status=200, body=_json_of(decision.reply))

    def _refuse(self, status: int, code: str, message: str) -> WebhookResponse:
        self._count(code)
        retry = {"retry-after": str(_RETRY_AFTER_S)} if status == 503 else {}
        body = json.dumps({"error": {"code": code, "message": message}}).encode()
        return WebhookResponse(status=status, body=body, headers={**_JSON, **retry})

    def _count(self, fate: str) -> None:
        with self._lock:
            self._counted[fate] += 1


@lru_cache(16)
def _json_of(reply: EventReply) -> bytes:
    return reply.model_dump_json(exclude_none=True).encode()
