"""Which backend does `Failover` choose after each way in which an attempt may end?"""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from renderdispatch import Failover
from renderdispatch.errors import ConfigurationError
from renderdispatch.failover import Ended, ended_by
from renderdispatch.jobs import Attempt
from renderdispatch.messages import FaultDomain, JobError
from renderdispatch.testing import make_request

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CHAIN = Failover("modal", "http", "local")


def ended(
    code: str,
    fault: FaultDomain = FaultDomain.INFRASTRUCTURE,
    *,
    backend: str = "modal",
    refused: bool = False,
    runs: tuple[str, ...] = (),
) -> Attempt:
    error = JobError(code=code, message="it broke", fault=fault)
    return Attempt(
        number=1,
        token="token",
        backend=backend,
        local=False,
        claimed_at=NOW,
        ended_at=NOW,
        error=error,
        refused=refused,
        runs=runs,
    )


WAYS = [
    (ended("deadline.start", FaultDomain.START_TIMEOUT), Ended.START_DEADLINE),
    (ended("backend.unreachable", refused=True), Ended.AWAY),
    (ended("modal.unreachable", refused=True), Ended.AWAY),
    (ended("backend.call-missing"), Ended.AWAY),
    (ended("backend.busy", refused=True), Ended.REFUSED),
    (ended("backend.waited"), Ended.REFUSED),
    (ended("modal.busy", refused=True), Ended.REFUSED),
    (ended("modal.credentials", FaultDomain.REQUEST, refused=True), Ended.REFUSED),
    (ended("backend.denied", FaultDomain.REQUEST, refused=True), Ended.REFUSED),
    (ended("a-code-of.another-backend", refused=True), Ended.REFUSED),
    (ended("modal.preempted", FaultDomain.PREEMPTION, runs=("run",)), Ended.PREEMPTED),
    (ended("worker.closed"), Ended.HANDED_BACK),
    (ended("worker.lost"), Ended.FAILED),
    (ended("runner.died", runs=("run",)), Ended.FAILED),
    (ended("disk.full", runs=("run",)), Ended.FAILED),
    (ended("backend.call-missing", runs=("run",)), Ended.FAILED),
    (ended("backend.waited", runs=("run",)), Ended.FAILED),
]


@pytest.mark.parametrize(("attempt", "way"), WAYS, ids=lambda value: getattr(getattr(value, "error", None), "code", ""))
def test_what_ended_an_attempt_decides(attempt: Attempt, way: Ended) -> None:
    """What another backend may do better moves on to the next one; anything else stays."""
    assert ended_by(attempt) is way
    stays = way in {Ended.FAILED, Ended.HANDED_BACK}
    assert CHAIN(make_request(), (attempt,)) == ("modal" if stays else "http")


def test_the_first_attempt_runs_on_the_first_backend() -> None:
    """So does one after an attempt on a backend that is not in the chain."""
    assert CHAIN(make_request(), ()) == "modal"
    assert CHAIN(make_request(), (ended("backend.busy", backend="old", refused=True),)) == "modal"


def test_after_the_last_backend_the_first_is_next() -> None:
    """A chain begins again, and only the last attempt counts."""
    first, last = ended("backend.busy", refused=True), ended("backend.busy", backend="local", refused=True)
    assert CHAIN(make_request(), (first, last)) == "modal"
    assert CHAIN(make_request(), (last, first)) == "http"


def test_the_reasons_are_an_argument() -> None:
    """``on`` takes the place of the usual reasons; codes of errors are reasons too."""
    chain = Failover("modal", "local", on={Ended.PREEMPTED, "runner.died"})
    assert chain(make_request(), (ended("modal.preempted", FaultDomain.PREEMPTION),)) == "local"
    assert chain(make_request(), (ended("runner.died", runs=("run",)),)) == "local"
    assert chain(make_request(), (ended("backend.busy", refused=True),)) == "modal"
    assert repr(chain) == "Failover('modal', 'local', on=['preempted', 'runner.died'])"
    assert repr(CHAIN) == "Failover('modal', 'http', 'local')"


def test_a_hand_back_never_moves() -> None:
    """A closed worker says nothing about its backend, whatever ``on`` holds."""
    chain = Failover("modal", "local", on=[*(set(Ended) - {Ended.HANDED_BACK}), "worker.closed"])
    assert chain(make_request(), (ended("worker.closed"),)) == "modal"


@pytest.mark.parametrize("names", [(), ("",), (7,), ("modal", "modal")])
def test_names_that_make_no_chain_are_refused(names: tuple[str, ...]) -> None:
    """A chain has at least one name, and each name once."""
    with pytest.raises(ConfigurationError):
        Failover(*names)


@pytest.mark.parametrize("on", ["start_deadline", ["refuse"], {"handed-back"}])
def test_reasons_that_do_not_exist_are_refused(on: str | list[str]) -> None:
    """The error names the near matches."""
    with pytest.raises(ConfigurationError, match=r"start-deadline|refused|known"):
        Failover("modal", on=on)
