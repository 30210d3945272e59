"""Does the Modal backend keep every promise of a backend, against the real client and real containers?"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("modal")

from renderdispatch.backends.modal import TIMEOUT_STEPS_S, ModalBackend, timeout_s
from renderdispatch.errors import BackendError, ConfigurationError
from renderdispatch.messages import MAX_ORDER_BYTES, FaultDomain, RenderOrder
from renderdispatch.protocols import BackendCall, CallState, CallStatus, Locality, StorageAdapter
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.testing import RenderBackendContract, eventually, in_threads
from renderdispatch.testing.contracts.backends import OrderFactory, Recorder
from renderdispatch.testing.modal import CallStatus as ModalStatus
from renderdispatch.testing.modal import LoopbackModal
from renderdispatch.testing.renderers import make_order
from tests.support import SUPPORT
from tests.support.modal_services import closed_port, environment, served_storage, silent_server

APP = "test-renders"
SHORT = timedelta(seconds=0.7)


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackModal]:
    """A Modal on which the function of `modal_renders` is deployed; this process's configuration names it."""
    with LoopbackModal(environments=("main", "dev")) as server, environment(server.environment()):
        server.deploy("modal_renders", cwd=SUPPORT)
        yield server


@pytest.fixture
def backend(server: LoopbackModal) -> Iterator[ModalBackend]:
    """A backend for it; afterwards nothing is wrong with the server any more, and nothing runs."""
    backend = ModalBackend(APP)
    yield backend
    backend.close()
    server.faults.clear()
    left = [call.id for call in server.calls if not call.status.ended or call.running]
    for call_id in left:
        server.lose(call_id)  # else what is killed starts again
    if left:
        server.kill_containers()


@pytest.fixture
def plain() -> Callable[..., RenderOrder]:
    """Makes orders that are never carried out, or misbehave as their ``quirk`` says."""
    storage = MemoryStorage()

    def make(**changes: Any) -> RenderOrder:
        return make_order(storage, **changes)

    return make


@pytest.fixture
def quirk(
    server: LoopbackModal, backend: ModalBackend, plain: Callable[..., RenderOrder]
) -> Callable[[str], CallState]:
    """Starts an order that misbehaves, and returns what `poll` says of it at its end."""

    def start(name: str) -> CallState:
        call = backend.start(plain(params={"quirk": name}), on_event=Recorder())
        server.wait_for_end(call.id)
        return backend.poll(call)

    return start


def running(server: LoopbackModal, backend: ModalBackend, order: RenderOrder) -> BackendCall:
    """Start an order whose function says its name and goes on; return the call once it did.

    An input that a container was given, and has not begun, can miss what it is told.
    """
    call = backend.start(order, on_event=Recorder())
    server.wait(lambda: order.job_id in server.container_log(call.id))
    return call


class TestModalBackend(RenderBackendContract):
    """Renders in containers of a loopback Modal."""

    @pytest.fixture
    def backend(self, server: LoopbackModal) -> Iterator[ModalBackend]:
        backend = ModalBackend(APP, cancel_grace=timedelta(0))  # the contract cancels at any moment, and twice
        yield backend
        backend.close()

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[StorageAdapter]:
        with served_storage(tmp_path / "objects") as storage:
            yield storage

    @pytest.fixture
    def order(self, storage: StorageAdapter) -> OrderFactory:
        """Makes orders for the fake scene, which the deployed function brings."""
        return lambda **params: make_order(storage, params=params, local=False)


# --- what it is


def test_nothing_is_opened_before_it_is_used() -> None:
    """Neither importing the module nor making a backend loads the client."""
    script = (
        "import sys, threading\n"
        "from renderdispatch.backends.modal import ModalBackend\n"
        "backend = ModalBackend()\n"
        "assert 'modal' not in sys.modules and 'grpclib' not in sys.modules\n"
        "assert threading.active_count() == 1\n"
        "backend.close()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_without_the_extra() -> None:
    """Where the client is not installed, the error names the extra that brings it."""
    script = (
        "import sys\n"
        "from renderdispatch.errors import MissingExtraError\n"
        "sys.modules['modal'] = None\n"
        "from renderdispatch.backends.modal import ModalBackend\n"
        "try: ModalBackend()\n"
        "except MissingExtraError as error: assert 'renderdispatch[modal]' in str(error)\n"
        "else: raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_what_it_is() -> None:
    """It renders far away, without a limit of its own, and shows what it renders with."""
    backend = ModalBackend(environment="dev", version=3, gpu="L4")
    assert (backend.locality, backend.slots) == (Locality.WORLD, None)
    assert repr(backend) == "ModalBackend('renderdispatch', 'render', environment='dev', version=3, gpu='L4')"


@pytest.mark.parametrize(
    "options",
    [{"token_id": "ak-1"}, {"token_secret": "as-1"}, {"connect_timeout": timedelta(0)}],
    ids=["id alone", "secret alone", "no time"],
)
def test_options_that_make_no_sense(options: dict[str, object]) -> None:
    """Half a token, or no time to connect, is refused at once."""
    with pytest.raises(ConfigurationError):
        ModalBackend(**options)  # type: ignore[arg-type]


# --- start


def test_gpu_and_timeout_of_a_job(
    server: LoopbackModal, backend: ModalBackend, plain: Callable[..., RenderOrder]
) -> None:
    """An order's GPU and deadline become the function's; without one the backend's GPU counts, then the deployed."""
    hours = timedelta(hours=5)
    order = plain(gpu="H100", finish_by=datetime.now(UTC) + hours, params={"quirk": "number"})
    call = server.call(backend.start(order, on_event=Recorder()).id)
    assert (call.gpu, call.timeout_s) == ("H100", 8 * 3600)
    with_gpu = ModalBackend(APP, gpu="L4")
    calls = [
        server.call(with_gpu.start(plain(gpu=gpu, params={"quirk": "number"}), on_event=Recorder()).id)
        for gpu in (None, "T4")
    ]
    with_gpu.close()
    assert [call.gpu for call in calls] == ["L4", "T4"]


def test_containers_are_shared(server: LoopbackModal, backend: ModalBackend, plain: Callable[..., RenderOrder]) -> None:
    """Orders with about the same deadline run as one variant of the function, so that they share its containers."""
    now = datetime.now(UTC)
    calls = []
    for minutes in (70, 80, 117):
        order = plain(finish_by=now + timedelta(minutes=minutes), params={"quirk": "number"})
        calls.append(server.call(backend.start(order, on_event=Recorder()).id))
    assert len({call.function_id for call in calls}) == 1


@pytest.mark.parametrize(
    ("needed", "step"),
    [
        (timedelta(days=-1), 900),
        (timedelta(minutes=15), 900),
        (timedelta(minutes=15, seconds=1), 1800),
        (timedelta(hours=6), 8 * 3600),
        (timedelta(hours=17), 86_400),
        (timedelta(days=6), 86_400),
    ],
)
def test_timeouts_come_in_steps(needed: timedelta, step: int) -> None:
    """What is needed is rounded up to the next step; a day is the most that Modal takes."""
    assert timeout_s(needed) == step
    assert step in TIMEOUT_STEPS_S


def test_many_threads_start_at_once(
    server: LoopbackModal, backend: ModalBackend, plain: Callable[..., RenderOrder]
) -> None:
    """The first starts of a process, from many threads, share a client and a look-up; each makes one call."""
    before = len(server.calls)
    order = plain(params={"quirk": "number"})
    calls = in_threads(16, lambda _: backend.start(order, on_event=Recorder()).id)
    assert len(set(calls)) == 16
    assert len(server.calls) - before == 16
    assert len({server.call(call).function_id for call in calls}) == 1


def test_a_start_for_which_no_thread_can_be_started(
    backend: ModalBackend, plain: Callable[..., RenderOrder], refuse_thread: Callable[[str], None]
) -> None:
    """Where no thread can be started, it is known that nothing was; the next start is."""
    refuse_thread("renderdispatch-modal")
    with pytest.raises(BackendError, match="was not started") as refused:
        backend.start(plain(), on_event=Recorder())
    assert (refused.value.retryable, refused.value.outcome_known) == (True, True)
    assert backend.start(plain(params={"quirk": "number"}), on_event=Recorder()).id


def test_from_a_running_event_loop(backend: ModalBackend, plain: Callable[..., RenderOrder]) -> None:
    """It can be called where an event loop runs, as in notebooks; it only blocks, as everywhere."""

    async def use() -> CallState:
        return backend.poll(backend.start(plain(params={"quirk": "number"}), on_event=Recorder()))

    assert asyncio.run(use()).status in {CallStatus.RUNNING, CallStatus.ENDED}


def test_nine_kibibytes(server: LoopbackModal, backend: ModalBackend, plain: Callable[..., RenderOrder]) -> None:
    """An order over 8 KiB is refused before anything is sent, and for good."""
    before = len(server.calls)
    with pytest.raises(BackendError, match=str(MAX_ORDER_BYTES)) as refused:
        backend.start(plain(params={"text": "x" * 9 * 1024}), on_event=Recorder())
    assert (refused.value.retryable, refused.value.outcome_known) == (False, True)
    assert len(server.calls) == before


def test_an_environment(server: LoopbackModal, plain: Callable[..., RenderOrder]) -> None:
    """The function is looked up in the environment that is asked for, and in no other."""
    server.deploy("modal_renders", name="only-dev", environment="dev", cwd=SUPPORT)
    there, elsewhere = ModalBackend("only-dev", environment="dev"), ModalBackend("only-dev", environment="main")
    call = there.start(plain(params={"quirk": "number"}), on_event=Recorder())
    assert server.call(call.id).app == "only-dev"
    with pytest.raises(BackendError, match="'main'"):
        elsewhere.start(plain(), on_event=Recorder())
    there.close()
    elsewhere.close()


def test_a_pinned_version(server: LoopbackModal, plain: Callable[..., RenderOrder]) -> None:
    """A backend that is pinned stays with the deployed version; another follows the newest."""
    for _ in range(2):
        server.deploy("modal_renders", name="versions", cwd=SUPPORT)
    pinned, newest = ModalBackend("versions", version=1), ModalBackend("versions")
    found = []
    for backend in (pinned, newest):
        call = server.call(backend.start(plain(params={"quirk": "number"}), on_event=Recorder()).id)
        found += [function.version for function in server.functions if function.id == call.function_id]
        backend.close()
    assert found == [1, 2]


@pytest.mark.parametrize("target", [("nowhere", "render"), (APP, "no_render")], ids=["no such app", "no such function"])
def test_what_is_not_deployed(
    server: LoopbackModal, plain: Callable[..., RenderOrder], target: tuple[str, str]
) -> None:
    """A missing app or function is told by name, with the next step; another try would not help."""
    backend = ModalBackend(*target)
    with pytest.raises(BackendError, match="renderdispatch modal deploy") as refused:
        backend.start(plain(), on_event=Recorder())
    backend.close()
    assert all(repr(name) in str(refused.value) for name in target)
    assert ("modal deploy --app nowhere" in str(refused.value)) == (target[0] == "nowhere")
    assert (refused.value.code, refused.value.retryable) == ("modal.not-deployed", False)
    assert refused.value.outcome_known


def test_an_app_that_was_deployed_anew(server: LoopbackModal, plain: Callable[..., RenderOrder]) -> None:
    """An app that was stopped and deployed again, under new ids, is found without a restart."""
    server.deploy("modal_renders", name="again", cwd=SUPPORT)
    backend = ModalBackend("again")
    first = server.call(backend.start(plain(params={"quirk": "number"}), on_event=Recorder()).id)
    subprocess.run(
        [sys.executable, "-m", "modal", "app", "stop", "again", "--yes"], check=True, capture_output=True, timeout=60
    )
    with pytest.raises(BackendError, match="renderdispatch modal deploy"):
        backend.start(plain(), on_event=Recorder())
    server.deploy("modal_renders", name="again", cwd=SUPPORT)
    second = server.call(backend.start(plain(params={"quirk": "number"}), on_event=Recorder()).id)
    backend.close()
    assert first.function_id != second.function_id


def test_from_a_container(quirk: Callable[[str], CallState]) -> None:
    """In a container, as in a scheduled worker, it needs no token: the container is known."""
    error = quirk("nested").error
    assert error is not None
    assert (error.code, error.message) == ("x.y", "said")


# --- the way to Modal


def test_a_lost_answer(server: LoopbackModal, backend: ModalBackend, plain: Callable[..., RenderOrder]) -> None:
    """A start whose answer was lost is no failure: the call exists, and the error says that this is not known."""
    before = len(server.calls)
    server.faults.force("lose_spawn_answers")
    with pytest.raises(BackendError) as lost:
        backend.start(plain(params={"quirk": "number"}), on_event=Recorder())
    assert not lost.value.outcome_known
    assert "is not known" in str(lost.value)
    assert len(server.calls) == before + 1


def test_a_server_that_is_away_for_a_moment(
    server: LoopbackModal, backend: ModalBackend, plain: Callable[..., RenderOrder]
) -> None:
    """A request that was refused once is repeated by the client, and nobody notices."""
    server.faults.force("unavailable")
    call = backend.start(plain(params={"quirk": "number"}), on_event=Recorder())
    server.faults.force("unavailable")
    assert backend.poll(call).status is not CallStatus.MISSING


@pytest.mark.parametrize("where", ["refused", "silent"])
def test_an_unreachable_control_plane(plain: Callable[..., RenderOrder], where: str) -> None:
    """Where nothing answers, each call ends within seconds: the start surely was none, and may be tried again."""
    with silent_server() as silent, closed_port() as closed:
        url = silent if where == "silent" else closed
        with environment({"MODAL_SERVER_URL": url, "MODAL_TOKEN_ID": "ak-1", "MODAL_TOKEN_SECRET": "as-1"}):
            backend = ModalBackend(connect_timeout=SHORT)
            call, known = BackendCall("fc-1"), []
            began = time.monotonic()
            for ask in (
                lambda: backend.start(plain(), on_event=Recorder()),
                lambda: backend.poll(call),
                lambda: backend.cancel(call),
            ):
                with pytest.raises(BackendError) as failed:
                    ask()
                assert (failed.value.code, failed.value.retryable) == ("modal.unreachable", True)
                known.append(failed.value.outcome_known)
            assert time.monotonic() - began < 20  # the client alone takes 56 s for each
            assert known[:2] == [True, True]
            backend.close()


def started(backend: ModalBackend, order: RenderOrder) -> BackendCall | None:
    """Start; None where a busy machine took longer than this backend waits."""
    try:
        return backend.start(order, on_event=Recorder())
    except BackendError:
        return None


def test_a_server_that_falls_silent(server: LoopbackModal, plain: Callable[..., RenderOrder]) -> None:
    """The one start that was sent into the silence is unknown; those after it are not sent, and so are known."""
    backend = ModalBackend(APP, connect_timeout=SHORT, answer_timeout=SHORT)

    def is_known() -> bool:
        with pytest.raises(BackendError) as failed:
            backend.start(plain(params={"quirk": "number"}), on_event=Recorder())
        assert failed.value.retryable
        return failed.value.outcome_known

    def sent_into_the_silence() -> bool:
        """Whether the start that came next was sent: not where a busy machine let five seconds pass before it."""
        server.faults.slow_s = 0.0
        eventually(lambda: started(backend, plain(params={"quirk": "number"})))
        server.faults.slow_s = 10
        return not is_known()

    eventually(sent_into_the_silence)
    assert is_known()
    server.faults.clear()
    backend.close()


def test_at_most_fifty_polls_at_once(
    server: LoopbackModal, backend: ModalBackend, plain: Callable[..., RenderOrder]
) -> None:
    """Of 120 polls fifty are asked at a time: three rounds of the server's time, and each is answered."""
    call = backend.start(plain(params={"quirk": "sleep"}), on_event=Recorder())
    server.faults.slow_s = 0.5
    began = time.monotonic()
    states = in_threads(120, lambda _: backend.poll(call))
    assert time.monotonic() - began > 1.5
    server.faults.slow_s = 0.0
    backend.cancel(call)
    assert {state.status for state in states} == {CallStatus.RUNNING}


def in_a_child(work: Callable[[], None]) -> int:
    """Fork; do the work in the child; return its exit status."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is what is tested
        pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 1
    try:
        work()
        status = 0
    except BaseException:  # noqa: BLE001 - the child must not come back into pytest
        traceback.print_exc()
    finally:
        os._exit(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_a_fork(server: LoopbackModal, backend: ModalBackend, plain: Callable[..., RenderOrder]) -> None:
    """A child has a client of its own, and neither its work nor its close touches the parent's."""
    call = backend.start(plain(params={"quirk": "number"}), on_event=Recorder())
    server.wait_for_end(call.id)

    def serve() -> None:
        assert backend.poll(call).status is CallStatus.ENDED
        backend.start(plain(params={"quirk": "number"}), on_event=Recorder())
        backend.close()

    before = len(server.calls)
    assert [in_a_child(serve) for _ in range(2)] == [0, 0]
    assert len(server.calls) == before + 2
    assert backend.poll(call).status is CallStatus.ENDED
    backend.start(plain(params={"quirk": "number"}), on_event=Recorder())


# --- poll


@pytest.mark.parametrize("name", ["timeout", "timeout with words", "value", "exit", "unpicklable", "far away"])
def test_a_function_that_raises(quirk: Callable[[str], CallState], name: str) -> None:
    """Whatever the function raised ended the call: a `TimeoutError` is not "still running", an exit ends nobody here."""
    state = quirk(name)
    assert state.status is CallStatus.ENDED
    assert state.outcome is None
    assert state.error is not None
    assert state.error.fault is FaultDomain.INFRASTRUCTURE
    assert state.error.code == ("modal.unreadable" if name == "far away" else "modal.raised")
    assert "Signature" not in state.error.message
    assert quirk("number").status is CallStatus.ENDED


@pytest.mark.parametrize("name", ["number", "no json", "older"])
def test_an_answer_that_is_none(quirk: Callable[[str], CallState], name: str) -> None:
    """What is no `CallResult` is an error of the deployment, with the next step."""
    state = quirk(name)
    assert state.status is CallStatus.ENDED
    assert state.error is not None
    assert (state.error.code, state.error.fault) == ("modal.answer", FaultDomain.REQUEST)
    assert "renderdispatch modal deploy" in state.error.message


def test_an_answer_of_a_later_version(quirk: Callable[[str], CallState]) -> None:
    """Fields that are not known here are passed over."""
    state = quirk("newer")
    assert state.error is not None
    assert (state.error.code, state.error.fault) == ("x.y", FaultDomain.SCENE)


def test_a_timeout(server: LoopbackModal, backend: ModalBackend, plain: Callable[..., RenderOrder]) -> None:
    """A function that ran into Modal's timeout missed the deadline."""
    call = running(server, backend, plain(params={"quirk": "sleep"}))
    server.timeout(call.id)
    server.wait_for_end(call.id)
    state = backend.poll(call)
    assert state.error is not None
    assert (state.error.code, state.error.fault) == ("modal.timeout", FaultDomain.DEADLINE)


def test_a_lost_worker(server: LoopbackModal, backend: ModalBackend, plain: Callable[..., RenderOrder]) -> None:
    """A call that Modal gave up ended, by the infrastructure's fault."""
    call = backend.start(plain(params={"quirk": "sleep"}), on_event=Recorder())
    server.lose(call.id)
    state = backend.poll(call)
    assert state.error is not None
    assert (state.error.code, state.error.fault) == ("modal.worker-lost", FaultDomain.INFRASTRUCTURE)


def test_an_expired_result(server: LoopbackModal, backend: ModalBackend, plain: Callable[..., RenderOrder]) -> None:
    """A result that is no longer kept is missing: nothing can be learned."""
    call = backend.start(plain(params={"quirk": "number"}), on_event=Recorder())
    server.wait_for_end(call.id)
    server.expire(call.id)
    assert backend.poll(call).status is CallStatus.MISSING


@pytest.mark.parametrize("call_id", ["fc-0123456789", "no-such-call", "", "fc-é"])
def test_an_unknown_id(backend: ModalBackend, call_id: str) -> None:
    """An id that Modal does not know, or that is none, is missing, and cancelling it is no error."""
    assert backend.poll(BackendCall(call_id)).status is CallStatus.MISSING
    backend.cancel(BackendCall(call_id))


# --- cancel


def test_a_cancelled_call(server: LoopbackModal, backend: ModalBackend, plain: Callable[..., RenderOrder]) -> None:
    """A cancelled call ended without an outcome, and its container is there for the next one."""
    call = running(server, backend, plain(params={"quirk": "sleep"}))
    backend.cancel(call)
    found = server.wait_for_end(call.id)
    assert found.status is ModalStatus.CANCELLED
    assert [start.ended_by for start in found.starts] == ["stopped"]
    state = backend.poll(call)
    assert (state.status, state.outcome) == (CallStatus.ENDED, None)
    assert state.error is not None
    assert state.error.code == "modal.ended"
    backend.cancel(call)


def test_a_call_that_does_not_obey(server: LoopbackModal, plain: Callable[..., RenderOrder]) -> None:
    """A function that swallows the cancel has its container taken away when it is told again."""
    backend = ModalBackend(APP, cancel_grace=timedelta(seconds=0.2))
    call = running(server, backend, plain(params={"quirk": "stubborn"}))

    def cancelled() -> bool:
        backend.cancel(call)
        return backend.poll(call).status is CallStatus.ENDED

    eventually(cancelled)
    backend.close()
    assert [start.ended_by for start in server.wait_for_end(call.id).starts] == ["died"]


# --- credentials and close


def test_a_token_of_its_own(server: LoopbackModal, plain: Callable[..., RenderOrder]) -> None:
    """A token that is given goes before Modal's own configuration."""
    with environment({**server.environment(), "MODAL_TOKEN_ID": "ak-other", "MODAL_TOKEN_SECRET": "as-other"}):
        backend = ModalBackend(APP, token_id=server.token_id, token_secret=server.token_secret)
        backend.start(plain(params={"quirk": "number"}), on_event=Recorder())
        backend.close()


def test_a_wrong_token(server: LoopbackModal, plain: Callable[..., RenderOrder]) -> None:
    """A token that Modal does not know is told with the next step; its secret is seen nowhere."""
    backend = ModalBackend(APP, token_id="ak-other", token_secret="as-secret-of-mine")
    failures = []
    for ask in (lambda: backend.start(plain(), on_event=Recorder()), lambda: backend.poll(BackendCall("fc-1"))):
        with pytest.raises(BackendError, match="modal token new") as refused:
            ask()
        assert (refused.value.code, refused.value.retryable) == ("modal.credentials", False)
        failures.append("".join(traceback.format_exception(refused.value)))
    backend.close()
    for shown in (*failures, repr(backend), repr(vars(backend))):
        assert "as-secret-of-mine" not in shown


def test_no_token_at_all(plain: Callable[..., RenderOrder]) -> None:
    """Without credentials a start fails for good, and says how to get some."""
    with closed_port() as url, environment({"MODAL_SERVER_URL": url}):
        backend = ModalBackend()
        with pytest.raises(BackendError, match="modal token new") as refused:
            backend.start(plain(), on_event=Recorder())
        backend.close()
    assert (refused.value.retryable, refused.value.outcome_known) == (False, True)


_CLOSED_LAST = """
import atexit
from renderdispatch.backends.modal import ModalBackend
from renderdispatch.protocols import BackendCall
backend = ModalBackend("test-renders")
atexit.register(backend.close)
print(backend.poll(BackendCall("fc-0")).status)
"""


def test_close_as_the_process_ends(server: LoopbackModal) -> None:
    """Closed by `atexit`, when no thread can be started any more, it is silent."""
    command = [sys.executable, "-W", "always", "-c", _CLOSED_LAST]
    ran = subprocess.run(
        command, env={**os.environ, **server.environment()}, capture_output=True, text=True, check=True, timeout=60
    )
    assert (ran.stdout, ran.stderr) == ("missing\n", "")


def test_close(server: LoopbackModal, plain: Callable[..., RenderOrder]) -> None:
    """Closing ends the backend's thread and not its renders; a second close does nothing, a start is refused."""
    threads = set(threading.enumerate())
    backend = ModalBackend(APP)
    call = backend.start(plain(params={"quirk": "sleep"}), on_event=Recorder())
    backend.close()
    backend.close()
    left = set(threading.enumerate()) - threads
    assert "renderdispatch-modal" not in {thread.name for thread in left}
    with pytest.raises(BackendError) as refused:
        backend.start(plain(), on_event=Recorder())
    assert (refused.value.code, refused.value.retryable) == ("backend.closed", True)
    assert not server.call(call.id).status.ended
    server.lose(call.id)
    server.kill_containers()


def test_close_ends_waiting(server: LoopbackModal, plain: Callable[..., RenderOrder]) -> None:
    """Whoever waits for Modal when the backend is closed is told at once; what was sent stays unknown."""
    backend = ModalBackend(APP)
    backend.start(plain(params={"quirk": "number"}), on_event=Recorder())
    server.faults.slow_s = 15
    raised: list[BackendError] = []

    def start() -> None:
        with pytest.raises(BackendError) as refused:
            backend.start(plain(params={"quirk": "number"}), on_event=Recorder())
        raised.append(refused.value)

    thread = threading.Thread(target=start)
    thread.start()
    time.sleep(0.2)  # in any state: before, within or after the request
    backend.close()
    thread.join(timeout=30)
    server.faults.clear()
    assert [error.code for error in raised] == ["backend.closed"]
