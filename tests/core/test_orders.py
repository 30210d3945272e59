"""What does an order hold?"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from attrs import evolve, field, frozen

from renderdispatch.engine.orders import make_order
from renderdispatch.errors import InvalidRequestError
from renderdispatch.jobs import Job
from renderdispatch.messages import MAX_ORDER_BYTES, Callback, Limits, RenderOrder, SignedPut, StoredAudio
from renderdispatch.testing import make_request
from renderdispatch.testing.histories import HISTORIES, START, after, new_job

AUDIO = StoredAudio(key="songs/song.wav", size=7)


@frozen
class Signer:
    """Writes a key and its lifetime down, in place of a signature."""

    signed: list[tuple[str, timedelta]] = field(factory=list)
    padding: str = ""

    def sign_get(self, key: str, *, expires_in: timedelta) -> str:
        self.signed.append((key, expires_in))
        return f"https://objects.example/{key}{self.padding}"

    def sign_put(self, key: str, *, expires_in: timedelta, content_type: str) -> SignedPut:
        return SignedPut(url=self.sign_get(key, expires_in=expires_in), headers={"content-type": content_type})


def claimed_job(**changes: Any) -> Job:
    return evolve(after(new_job(), HISTORIES["resolving-audio"]), **changes)


def order_of(job: Job, signer: Signer, *, now: datetime = START, callback: Callback | None = None) -> RenderOrder:
    return make_order(job, AUDIO, signer=signer, now=now, callback=callback, local=False)


def test_an_order_says_what_the_record_says() -> None:
    """The request, the attempt and the keys of its own prefix; and it starts and ends when the limits say."""
    job = claimed_job()
    assert job.attempt is not None
    order = order_of(job, Signer())
    assert (order.job_id, order.attempt, order.token) == (job.id, 1, job.attempt.token)
    assert (order.scene, order.output, order.finish_by) == (job.request.scene, job.request.output, job.finish_by)
    assert order.start_by == min(START + job.request.limits.start_timeout, job.finish_by)
    assert job.incarnation in order.video.key and job.attempt.token in order.result.key
    assert order.audio_url.endswith(AUDIO.key)


def test_urls_outlive_the_deadline() -> None:
    """By ten minutes, and never by more than storages sign for (rule J10)."""
    signer = Signer()
    job = claimed_job(finish_by=START + timedelta(hours=6))
    order_of(job, signer)
    assert {life for _, life in signer.signed} == {timedelta(hours=6, minutes=10)}
    signer = Signer()
    order_of(evolve(job, finish_by=START + timedelta(days=30)), signer)
    assert {life for _, life in signer.signed} == {timedelta(days=7)}


def test_a_start_is_due_before_the_end() -> None:
    """The start deadline never lies behind the total one."""
    limits = Limits(start_timeout=timedelta(hours=2))
    job = claimed_job(request=make_request(limits=limits), finish_by=START + timedelta(hours=1))
    assert order_of(job, Signer()).start_by == job.finish_by


def test_the_same_record_gives_the_same_order() -> None:
    """Nothing but the arguments counts."""
    job = claimed_job()
    assert order_of(job, Signer()) == order_of(job, Signer())


def test_an_order_that_is_too_large_is_refused() -> None:
    """Backends take orders of 8 KiB; a longer one says what to shorten."""
    with pytest.raises(InvalidRequestError, match="shorten the storage key") as caught:
        order_of(claimed_job(), Signer(padding="x" * MAX_ORDER_BYTES))
    assert caught.value.code == "order.too-large"
