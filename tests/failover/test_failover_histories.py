"""What holds for every job with failover, whatever happened before?"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from renderdispatch import Failover
from renderdispatch.engine.events import Rerouted
from renderdispatch.engine.transitions import Verdict, decide
from renderdispatch.messages import Stage
from renderdispatch.testing.histories import Step, lives

CHAIN = Failover("modal", "local")


@given(lives(max_steps=20))
def test_every_history_of_attempts_has_a_next_backend(life: list[Step]) -> None:
    """The policy returns a name of the chain for any attempts, and the same one for the same attempts."""
    job = life[-1].after
    assert CHAIN(job.request, job.attempts) == CHAIN(job.request, job.attempts)
    assert CHAIN(job.request, job.attempts) in CHAIN.backends


@given(lives(max_steps=20), st.sampled_from(["modal", "local", "another"]))
def test_a_choice_ends_the_wait_for_it(life: list[Step], backend: str) -> None:
    """Whichever backend is chosen, the job can be claimed there, or fails because it was refused there for good."""
    for step in life:
        job = step.after
        if job.retry_at is None or job.attempt is None:
            continue
        decision = decide(job, Rerouted(after=job.attempt.token, backend=backend), step.now)
        assert decision.verdict is Verdict.APPLIED
        after = decision.job
        if after.ended:
            assert backend == job.attempt.backend
            assert after.error == job.attempt.error
        else:
            assert after.retry_at is None
            assert after.ready_at is not None and after.ready_at >= step.now
            assert after.backend == backend


@given(lives(max_steps=20))
def test_only_a_job_that_waits_for_a_choice_takes_one(life: list[Step]) -> None:
    """At any other time a choice changes nothing: it names no running attempt, and moves none."""
    for step in life:
        if isinstance(step.event, Rerouted) and step.after is not step.before:
            assert step.before.stage is Stage.RETRY_WAIT
            assert step.before.retry_at is not None
            assert step.before.attempt is not None and step.before.attempt.token == step.event.after
            assert step.after.attempts == step.before.attempts


@given(lives(max_steps=20))
def test_without_a_policy_nothing_waits_for_one(life: list[Step]) -> None:
    """A job whose request named its backend, or whose service has no policy, is ready as it always was."""
    for step in life:
        if not step.after.reroutes:
            assert step.after.retry_at is None
            assert step.after.rerouted_to is None
