"""Who speaks in the tests of webhooks: runs of attempts, with the keys of their orders."""

from __future__ import annotations

import secrets
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from attrs import field, frozen

from renderdispatch.engine.commit import commit
from renderdispatch.engine.events import AttemptFailed, Claimed, Dispatched, DispatchIntended, ResultMissing
from renderdispatch.jobs import Job
from renderdispatch.messages import (
    CheckedIn,
    Completed,
    Failed,
    FaultDomain,
    JobError,
    Progressed,
    RenderEvent,
    Stage,
)
from renderdispatch.protocols import JobStore
from renderdispatch.testing import make_artifact, make_job
from renderdispatch.webhooks import AttemptKeys, EventId, WebhookSigner

SECRET: Final = "whsec_b2xkIG9sZCBvbGQgb2xkIG9sZCBvbGQgb2xkIG9sZCE="
NEW_SECRET: Final = "whsec_bmV3IG5ldyBuZXcgbmV3IG5ldyBuZXcgbmV3IG5ldyE="

Signed = tuple[dict[str, str], bytes]
"""Headers and body of one delivery."""


@frozen
class Run:
    """One run of a job's attempt: what it says, and how it signs."""

    job_id: str
    attempt: int
    token: str
    secret: str = SECRET
    run_id: str = field(factory=lambda: uuid.uuid4().hex)

    def check_in(self, **changes: Any) -> CheckedIn:
        return CheckedIn(**{**self._common(), **changes})

    def progress(self, fraction: float, stage: Stage = Stage.RENDERING) -> Progressed:
        return Progressed.model_validate({**self._common(), "stage": stage, "fraction": fraction})

    def completed(self, key: str = "videos/video.mp4", size: int = 7) -> Completed:
        return Completed(**self._common(), artifact=make_artifact(key=key, bytes=size, etag=None))

    def failed(self, fault: FaultDomain = FaultDomain.SCENE) -> Failed:
        return Failed(**self._common(), error=JobError(code="scene.failed", message="it broke", fault=fault))

    def sign(self, event: RenderEvent, *, now: datetime | None = None) -> Signed:
        """Sign an event as this run's sender would."""
        return self.sign_body(event.model_dump_json().encode(), event_id=event.event_id, now=now)

    def sign_body(self, body: bytes, *, event_id: str | None = None, now: datetime | None = None) -> Signed:
        """Sign any body."""
        message_id = str(EventId(self.job_id, self.attempt, event_id or uuid.uuid4().hex))
        signer = WebhookSigner(AttemptKeys(self.secret).secret(job_id=self.job_id, attempt=self.attempt))
        headers = signer.sign(message_id, body, now=now or datetime.now(UTC))
        return {**headers, "content-type": "application/json"}, body

    def again(self) -> Run:
        """Return another run of the same attempt: its container was restarted."""
        return Run(self.job_id, self.attempt, self.token, self.secret)

    def _common(self) -> dict[str, Any]:
        return {"event_id": uuid.uuid4().hex, "job_id": self.job_id, "token": self.token, "run_id": self.run_id}


def dispatched(store: JobStore, job: Job | None = None, *, secret: str = SECRET) -> Run:
    """Take a job (by default a new one) to a remote backend, as a dispatcher does; return the run that begins there."""
    job = job if job is not None else store.create(make_job(backend="far"))
    now, token = store.now(), secrets.token_hex(16)
    hour = timedelta(hours=1)
    claim = Claimed(token=token, holder="a worker", lease_until=now + hour, backend="far", local=False)
    commit(store, job.id, claim)
    intent = DispatchIntended(
        token=token, video_key="videos/video.mp4", result_key=f"results/{job.id}.json", start_by=now + hour
    )
    commit(store, job.id, intent)
    attempts = commit(store, job.id, Dispatched(token=token, call_id=f"call-{token}")).job.attempts
    return Run(job.id, attempts[-1].number, token, secret)


def redispatched(store: JobStore, run: Run) -> Run:
    """Have the attempt of ``run`` fail, and the next one begin."""
    error = JobError(code="worker.lost", message="gone", fault=FaultDomain.INFRASTRUCTURE)
    commit(store, run.job_id, AttemptFailed(token=run.token, error=error, stopped=True))
    job = commit(store, run.job_id, ResultMissing(token=run.token)).job
    return dispatched(store, job, secret=run.secret)
