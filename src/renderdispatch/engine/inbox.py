"""What does the service answer to a webhook?

Verify, read, apply, answer: 200 for what was applied and for what came too late or twice (so that senders stop), 400
for what is no event, 401 for a bad signature, 413 for a body that is too large, 503 while the store is away or the
service closes (so that senders come back). The body of a 200 is the channel back to the run: go on, or stop.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from attrs import field, frozen
from pydantic import ValidationError

from renderdispatch.engine.transitions import Decision, Verdict
from renderdispatch.errors import (
    JobNotFoundError,
    RenderDispatchError,
    WebhookRefusal,
    WebhookVerificationError,
)
from renderdispatch.messages import RENDER_EVENT, Action, EventReply, RenderEvent
from renderdispatch.protocols import JobStore
from renderdispatch.webhooks import AttemptKeys, EventId, Headers, WebhookVerifier

_log: Final = logging.getLogger("renderdispatch.webhooks")

MAX_BODY_BYTES: Final = 64 * 1024
"""More than any event needs; larger bodies are refused before they are hashed."""

_RETRY_AFTER_S: Final = 5


@frozen(kw_only=True)
class WebhookResponse:
    """An HTTP answer, for whatever framework sends it."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(factory=lambda: {"content-type": "application/json"})


class WebhookReceiver:
    """Takes the webhooks of the GPU side.

    Args:
        keys: The attempts' keys, from the master secrets: newest first, those before it still verify renders in flight.
        apply: Commits an event, as `Dispatcher.receive`.
    """

    def __init__(self, store: JobStore, keys: AttemptKeys, *, apply: Callable[[RenderEvent], Decision]) -> None:
        self._store = store
        self._apply = apply
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
        except WebhookVerificationError as error:
            _log.warning("a webhook was refused: %s", error)
            return self._refuse(413 if error.reason is WebhookRefusal.BODY_TOO_LARGE else 401, error.code, str(error))
        speaker = EventId.parse(verified.id)
        assert speaker is not None  # its key was found
        try:
            event = RENDER_EVENT.validate_json(verified.body)
        except ValidationError as error:
            _log.warning("job %s: a webhook is no event: %d fields are wrong", speaker.job_id, error.error_count())
            return self._refuse(400, "webhook.invalid-event", "the body is no event of this protocol")
        try:
            return self._take(speaker, event)
        except JobNotFoundError:
            self._count("unknown-job")
            return _answer(EventReply(action=Action.STOP, reason="no such job"))
        except RenderDispatchError as error:  # the store is away, others always wrote first, or this service is closed
            _log.warning("job %s: a webhook could not be taken: %s", speaker.job_id, error)
            return self._refuse(503, "store.unavailable", "try again", {"retry-after": str(_RETRY_AFTER_S)})

    def _take(self, speaker: EventId, event: RenderEvent) -> WebhookResponse:
        """Apply an event whose signature is good, where it speaks for the attempt whose key signed it."""
        job = self._store.get(speaker.job_id)
        attempts = job.attempts[speaker.attempt - 1 : speaker.attempt]
        if event.job_id != job.id or not attempts or attempts[0].token != event.token:
            _log.warning("job %s: the key of attempt %d signed for another one", job.id, speaker.attempt)
            return self._refuse(401, "webhook.wrong-attempt", "this key does not speak for this attempt")
        decision = self._apply(event)
        self._count(decision.verdict)
        if decision.verdict is not Verdict.APPLIED:
            _log.info("job %s: a webhook was %s (%s)", job.id, decision.verdict, event.type)
        return _answer(decision.reply)

    def _refuse(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> WebhookResponse:
        self._count(code)
        body = json.dumps({"error": {"code": code, "message": message}}).encode()
        return WebhookResponse(
            status=status, body=body, headers={"content-type": "application/json", **(headers or {})}
        )

    def _count(self, fate: str) -> None:
        with self._lock:
            self._counted[fate] += 1


def _answer(reply: EventReply) -> WebhookResponse:
    return WebhookResponse(status=200, body=reply.model_dump_json(exclude_none=True).encode())
