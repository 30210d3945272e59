"""What happens to calls that break the contract: functions that raise, orders of another version or size?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from renderdispatch import RenderService, StorageKey
from renderdispatch.backends.modal import ModalBackend
from renderdispatch.engine.reconcile import Reconciler
from renderdispatch.jobs import Job
from renderdispatch.messages import PROTOCOL, CallResult, Completed, FaultDomain, JobStatus, Limits, RenderOrder
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import make_order
from renderdispatch.testing.modal import LoopbackModal
from tests.support import SUPPORT
from tests.support.mishaps import Rig
from tests.support.mishaps_scenes import TROUBLE


@pytest.fixture(scope="module")
def odd_modal(troubled_modal: LoopbackModal) -> LoopbackModal:
    """The loopback Modal, with a second function that breaks every promise."""
    troubled_modal.deploy("modal_renders", cwd=SUPPORT)
    return troubled_modal


@pytest.fixture
def ended(rig: Rig, odd_modal: LoopbackModal) -> Iterator[Callable[[str], Job]]:
    """Renders by the user's function, which misbehaves as asked, in one attempt; returns the job at its end."""
    with closing(MemoryJobStore()) as store, closing(ModalBackend("test-renders")) as backend:
        backends = {"odd": backend}
        with RenderService(store, rig.storage, backends, worker=False) as service:

            def render(quirk: str) -> Job:
                handle = service.submit(b"RIFF", scene="fake", params={"quirk": quirk}, limits=Limits(max_attempts=1))
                service.tick()
                (attempt,) = handle.job.attempts
                assert attempt.call_id is not None
                odd_modal.wait_for_end(attempt.call_id)
                Reconciler(store, rig.storage, backends).reconcile(handle.job)
                return handle.job

            yield render


@pytest.mark.parametrize(
    ("quirk", "said"),
    [
        ("timeout", "TimeoutError"),
        ("timeout with words", "the scene was late"),
        ("unpicklable", "no such star"),
        ("far away", "no such moon"),
    ],
)
def test_a_function_that_raises(ended: Callable[[str], Job], quirk: str, said: str) -> None:
    """What a user's own function raises ends the job, also a `TimeoutError`, and what cannot be unpickled."""
    job = ended(quirk)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.code in {"modal.raised", "modal.unreadable"}
    assert job.error.fault is FaultDomain.INFRASTRUCTURE
    assert said in job.error.message


@pytest.fixture
def answer_to(rig: Rig, tmp_path: Path) -> Callable[[str], CallResult]:
    """Calls the deployed function with any text, and reads what it returns."""
    function = rig.modal.function_handle("renderdispatch", "render")

    def call(order: str) -> CallResult:
        return CallResult.model_validate_json(function.spawn(order).get(timeout=60))

    return call


@pytest.fixture
def order(rig: Rig, tmp_path: Path) -> RenderOrder:
    """An order that can be carried out."""
    return make_order(rig.storage, scene=TROUBLE, params={"folder": str(tmp_path)}, local=False)


def test_an_order_of_the_version_before(answer_to: Callable[[str], CallResult], order: RenderOrder) -> None:
    """An order that lacks what came later is carried out."""
    fields = json.loads(order.model_dump_json())
    for later in ("gpu", "requireGpu", "start", "duration", "callback", "local"):
        del fields[later]
    answer = answer_to(json.dumps({**fields, "protocol": PROTOCOL - 1}))
    assert isinstance(answer.outcome, Completed)
    assert answer.outcome.artifact.key == order.video.key


def test_an_order_of_a_later_version(answer_to: Callable[[str], CallResult], order: RenderOrder) -> None:
    """What is not known here is ignored; an order that cannot be understood says that the deployment is old."""
    fields = {**json.loads(order.model_dump_json()), "protocol": PROTOCOL + 1}
    assert isinstance(answer_to(json.dumps({**fields, "colour": "red"})).outcome, Completed)
    answer = answer_to(json.dumps({**fields, "output": "large"}))
    assert answer.outcome is None
    assert answer.error is not None
    assert answer.error.code == "order.invalid"
    assert "deploy" in answer.error.message


def test_nine_kibibytes_of_arguments(rig: Rig, answer_to: Callable[[str], CallResult], order: RenderOrder) -> None:
    """An argument that Modal takes by way of a blob arrives whole, and is carried out."""
    padded = json.dumps({**json.loads(order.model_dump_json()), "padding": "x" * 9 * 1024})
    assert isinstance(answer_to(padded).outcome, Completed)
    (call,) = (call for call in rig.modal.calls if order.job_id.encode() in call.args)
    assert call.args_bytes > 9 * 1024


def test_an_order_of_nine_kibibytes(rig: Rig) -> None:
    """A job whose order would be so large fails at once, with the way out, and nothing is sent."""
    key = "é" * 500
    rig.storage.put(key, b"RIFF")
    before = len(rig.modal.calls)
    handle = rig.service.submit(StorageKey(key), scene="s" * 200, params={"text": "x" * 2000})
    job = handle.wait(timeout=60)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.code == "order.too-large", job.error
    assert "shorten" in job.error.message
    assert len(rig.modal.calls) == before
