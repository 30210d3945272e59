"""Does the loopback Modal behave as the real one does, to the real client and the real container entry point?"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import modal
import pytest

from renderdispatch.testing import eventually
from renderdispatch.testing.modal import CallStatus, DeployFailedError, LoopbackModal
from renderdispatch.testing.modal.faults import ModalFaults

HERE = Path(__file__).parent
FAST = 10.0
"""Seconds within which is at once, on a machine that may be busy."""


def spawn(server: LoopbackModal, function: str, argument: object) -> modal.FunctionCall[Any]:
    return server.function_handle("example", function).spawn(str(argument))


def marks(folder: Path) -> list[str]:
    try:
        return (folder / "marks").read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def connections(server: LoopbackModal) -> set[str]:
    """Return the local ends of the connections to the server that stand."""
    port = f":{int(server.url.rpartition(':')[2]):04X}"
    lines = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return {local for _, local, remote, state, *_ in lines if remote.endswith(port) and state == "01"}


def started(server: LoopbackModal, folder: Path, times: int = 1) -> None:
    server.wait(lambda: len([mark for mark in marks(folder) if mark.startswith("started")]) >= times)


def idle(server: LoopbackModal, call_id: str) -> None:
    """Wait until the container that worked on this call last waits for the next input."""
    last = server.call(call_id).starts[-1].container_id
    server.wait(lambda: any(one.idle for one in server.containers if one.id == last))


class TestDeploying:
    """The real ``modal deploy``."""

    def test_a_function_is_as_it_was_defined(self, server: LoopbackModal) -> None:
        """CPU, memory, timeouts, retries and the GPU fallback list stand as the client sent them."""
        function = server.function("shout")
        assert (function.cpu, function.memory_mb, function.retries) == (2.0, 1024, 0)
        assert (function.timeout_s, function.startup_timeout_s) == (300, 120)
        assert function.gpus == ("L4", "A10")
        assert (function.app, function.environment, function.name) == ("example", "main", "shout")

    def test_schedules_and_secrets_are_recorded(self, server: LoopbackModal) -> None:
        """A schedule and the names of secrets stand with the function."""
        assert server.function("tick").schedule == "period 60 s"
        assert server.function("environment").secrets == ("keys", "")
        assert server.function("shout").secrets == ()

    def test_image_layers_are_recorded(self, server: LoopbackModal) -> None:
        """Each layer is there with its commands, standing on the one before."""
        *_, apt, pip, env = server.image_layers
        assert "RUN apt-get install -y ffmpeg" in apt.commands
        assert any("pip install httpx" in command for command in pip.commands)
        assert pip.base_ids == (apt.id,)
        assert env.base_ids == (pip.id,)

    def test_what_cannot_be_deployed_says_why(self, server: LoopbackModal) -> None:
        """A deployment that fails raises what modal printed."""
        with pytest.raises(DeployFailedError, match="no_such_module"):
            server.deploy("no_such_module", cwd=HERE)

    @pytest.mark.parametrize("seconds", [0, 86_401])
    def test_a_timeout_that_modal_does_not_take_is_refused(self, server: LoopbackModal, seconds: int) -> None:
        """A function runs for 1 second at least, and for a day at most; else nothing is deployed."""
        with pytest.raises(DeployFailedError, match="timeout of function 'bounded'"):
            server.deploy("timeout_example", env={"EXAMPLE_TIMEOUT": str(seconds)}, cwd=HERE)
        assert not [function for function in server.functions if function.name == "bounded"]

    @pytest.mark.parametrize("seconds", [1, 86_400])
    def test_a_timeout_at_the_bounds_is_taken(self, server: LoopbackModal, seconds: int) -> None:
        """One second, and a day."""
        server.deploy("timeout_example", name=f"for-{seconds}", env={"EXAMPLE_TIMEOUT": str(seconds)}, cwd=HERE)
        assert server.function("bounded", app=f"for-{seconds}").timeout_s == seconds

    def test_a_second_deployment_is_a_new_version(self, server: LoopbackModal) -> None:
        """Both versions can be called by number; unknown ones are not found."""
        server.deploy("modal_example", name="twice", cwd=HERE)
        server.deploy("modal_example", name="twice", cwd=HERE)
        assert server.function("shout", app="twice").version == 2
        for version in (1, 2, None):
            handle = server.function_handle("twice", "shout", version=version)
            assert handle.spawn("hello").get(timeout=30) == "HELLO"
        with pytest.raises(modal.exception.NotFoundError):
            server.function_handle("twice", "shout", version=3).spawn("hello")

    def test_an_app_whose_containers_do_not_start_fails_its_calls(self, server: LoopbackModal) -> None:
        """The call ends with what the import raised."""
        server.deploy("broken_example", cwd=HERE)
        call = server.function_handle("broken", "never").spawn("hello")
        with pytest.raises(RuntimeError, match="does not start"):
            call.get(timeout=30)
        assert server.call(call.object_id).status is CallStatus.INIT_FAILED


class TestCalling:
    """The real client and the real entry point."""

    def test_a_call_answers(self, server: LoopbackModal) -> None:
        """The result comes back, and the record says who made it."""
        call = spawn(server, "shout", "hello")
        assert call.get(timeout=30) == "HELLO"
        record = server.call(call.object_id)
        assert record.status is CallStatus.SUCCEEDED
        assert (record.gpu, record.timeout_s, record.outputs) == ("L4", 300, 1)
        assert pickle.loads(record.args) == (("hello",), {})
        assert [start.kind for start in record.starts] == ["first"]
        assert 0 < record.billed_s < FAST
        assert record in server.calls

    def test_a_call_that_runs_is_pending(self, server: LoopbackModal, tmp_path: Path) -> None:
        """``get(timeout=0)`` raises TimeoutError until the result stands."""
        call = spawn(server, "wait", tmp_path)
        with pytest.raises(TimeoutError):
            call.get(timeout=0)
        started(server, tmp_path)
        assert server.call(call.object_id).status is CallStatus.RUNNING
        with pytest.raises(TimeoutError):
            call.get(timeout=0)
        (tmp_path / "go").touch()
        assert call.get(timeout=30) == "waited"
        assert call.get(timeout=0) == "waited"

    def test_containers_are_reused_and_know_their_call(self, server: LoopbackModal) -> None:
        """A second input goes to the container that is there; each sees its own ids."""
        calls = []
        for _ in range(2):
            call = spawn(server, "ids", "")
            calls.append(json.loads(call.get(timeout=30)))
            record = server.call(call.object_id)
            assert calls[-1] == [record.pids[0], record.id, record.input_id]
            idle(server, call.object_id)
        assert calls[0][0] == calls[1][0]

    def test_large_arguments_and_results_go_by_blob(self, server: LoopbackModal) -> None:
        """More than 8 KiB of arguments, and of an answer, arrive whole."""
        text = "x" * 20_000
        call = spawn(server, "shout", text)
        assert call.get(timeout=30) == text.upper()
        assert server.call(call.object_id).args_bytes > 20_000

    def test_options_make_a_variant(self, server: LoopbackModal) -> None:
        """``with_options`` changes the GPU and the timeout of its calls, and of no others."""
        handle = server.function_handle("example", "shout")
        call = handle.with_options(gpu="A100", timeout=77).spawn("hello")
        assert call.get(timeout=30) == "HELLO"
        record = server.call(call.object_id)
        assert (record.gpu, record.timeout_s) == ("A100", 77)
        variant = next(one for one in server.functions if one.id == record.function_id)
        assert variant.gpus == ("A100",)
        assert variant.options is not None
        assert server.function("shout").timeout_s == 300

    def test_a_remote_exception_is_itself(self, server: LoopbackModal) -> None:
        """What the function raised is raised, a TimeoutError too, which looks like a call that is pending."""
        with pytest.raises(ValueError, match="a remote value"):
            spawn(server, "fail", "value").get(timeout=30)
        call = spawn(server, "fail", "timeout")
        server.wait_for_end(call.object_id)
        with pytest.raises(TimeoutError, match="a remote timeout"):
            call.get(timeout=0)

    def test_an_unpicklable_exception_is_told_of(self, server: LoopbackModal) -> None:
        """What cannot be pickled still ends the call with its message."""
        with pytest.raises(Exception, match="this cannot be pickled"):
            spawn(server, "fail", "unpicklable").get(timeout=30)

    def test_the_functions_own_retries_are_honoured(self, server: LoopbackModal, tmp_path: Path) -> None:
        """A function with two retries is started three times."""
        call = spawn(server, "flaky", tmp_path)
        assert call.get(timeout=30) == "at last"
        assert [start.kind for start in server.call(call.object_id).starts] == ["first", "retry", "retry"]

    def test_unknown_names_and_calls_are_not_found(self, server: LoopbackModal) -> None:
        """Apps, functions, environments and calls that are not there raise NotFoundError."""
        client = server.client()
        names = [("nothing", "shout", "main"), ("example", "nothing", "main"), ("example", "shout", "other")]
        for app, function, environment in names:
            handle = modal.Function.from_name(app, function, environment_name=environment, client=client)
            with pytest.raises(modal.exception.NotFoundError):
                handle.spawn("hello")
        with pytest.raises(modal.exception.NotFoundError):
            server.call_handle("fc-0000").get(timeout=0)

    def test_a_wrong_token_is_refused(self, server: LoopbackModal) -> None:
        """A client that shows another token gets AuthError."""
        with modal.Client(server.url, 1, ("ak-other", "as-other")) as client:
            handle = modal.Function.from_name("example", "shout", client=client)
            with pytest.raises(modal.exception.AuthError):
                handle.spawn("hello")

    def test_a_container_calls_another_function(self, server: LoopbackModal) -> None:
        """Code in a container reaches the same server, without a token."""
        assert spawn(server, "nested", "hello").get(timeout=30) == "HELLO"

    def test_a_container_has_the_environment_that_it_was_given(
        self, server: LoopbackModal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The image's ENV, the function's secrets and ``container_env`` are there, and nothing of this process."""
        monkeypatch.setenv("SECRET_OF_THE_TEST", "hidden")
        found = json.loads(spawn(server, "environment", "").get(timeout=30))
        assert found["FROM_IMAGE"] == "it is so"
        assert (found["NAMED"], found["INLINE"], found["GIVEN"]) == ("two", "one", "yes")
        assert "SECRET_OF_THE_TEST" not in found
        assert "MODAL_TOKEN_SECRET" not in found
        assert found["HOME"] != os.environ["HOME"]

    @pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="looks connections up in /proc")
    def test_handles_share_a_connection(self, server: LoopbackModal) -> None:
        """However many handles of functions and calls are made, they ask over the same connections."""
        call = spawn(server, "shout", "hello")
        assert call.get(timeout=30) == "HELLO"
        before = connections(server)
        for number in range(10):
            assert spawn(server, "shout", number).get(timeout=30) == str(number)
            assert server.call_handle(call.object_id).get(timeout=30) == "HELLO"
        assert connections(server) <= before

    def test_a_server_that_runs_again_is_another(self) -> None:
        """Handles that are made then ask the new one."""
        server = LoopbackModal()
        for _ in range(2):
            with server, pytest.raises(modal.exception.NotFoundError):
                server.call_handle("fc-0000").get(timeout=0)

    def test_what_comes_on_top_of_the_containers_waits(self, tmp_path: Path) -> None:
        """With one container, a second call is queued until the first ended; idle ones make room for others."""
        with LoopbackModal(max_containers=1) as server:
            server.secrets["keys"] = {}
            server.deploy("modal_example", cwd=HERE)
            first = spawn(server, "wait", tmp_path)
            started(server, tmp_path)
            second = spawn(server, "shout", "hello")
            assert server.call(second.object_id).status is CallStatus.QUEUED
            (tmp_path / "go").touch()
            assert second.get(timeout=30) == "HELLO"
            assert first.get(timeout=0) == "waited"
            assert sum(container.alive for container in server.containers) == 1


class TestSchedulesAndWeb:
    """What runs by itself, and what is asked by HTTP."""

    def test_a_scheduled_function_runs_on_request(self, server: LoopbackModal) -> None:
        """``run`` calls it as its schedule would."""
        record = server.run("tick")
        assert record.status is CallStatus.SUCCEEDED
        assert record.args == b""

    def test_a_web_endpoint_answers(self, server: LoopbackModal) -> None:
        """A request reaches the ASGI application in the container; its answer comes back, headers and all."""
        url = server.function("web").web_url
        for number in range(2):
            answer = httpx.post(f"{url}/hooks?x=1", content=f"body {number}", timeout=30)
            assert answer.status_code == 201
            assert answer.headers["x-from"] == "container"
            assert answer.json() == {"method": "POST", "path": "/hooks", "body": f"body {number}"}
        assert server.function_handle("example", "web").get_web_url() == url

    def test_proxy_authentication_is_asked_for(self, server: LoopbackModal) -> None:
        """An endpoint that wants Modal-Key and Modal-Secret answers 401 without them."""
        url = server.function("private").web_url
        assert httpx.get(url, timeout=30).status_code == 401
        key, secret = server.proxy_token
        answer = httpx.get(url, headers={"Modal-Key": key, "Modal-Secret": secret}, timeout=30)
        assert answer.status_code == 201


class TestStopping:
    """Cancels and timeouts."""

    def test_a_cancel_reaches_the_function(self, server: LoopbackModal, tmp_path: Path) -> None:
        """The function sees InputCancellation, the client RemoteError, and the container lives on."""
        call = spawn(server, "wait", tmp_path)
        started(server, tmp_path)
        call.cancel()
        record = server.wait_for_end(call.object_id)
        assert marks(tmp_path) == ["started", "cancelled"]
        assert record.status is CallStatus.CANCELLED
        assert record.cancelled_at is not None
        assert [start.ended_by for start in record.starts] == ["stopped"]
        with pytest.raises(modal.exception.RemoteError):
            call.get(timeout=0)
        assert alive(record.pids[0])
        call.cancel()
        assert server.call(call.object_id).cancels == 1

    def test_a_container_that_idled_after_a_cancel_hears_the_next_one(
        self, server: LoopbackModal, tmp_path: Path
    ) -> None:
        """Its heartbeats go on as before: the next input's cancel does not wait for one that is due later."""
        handle = server.function_handle("example", "wait").with_options(timeout=299)
        pids = []
        for number in range(2):
            folder = tmp_path / str(number)
            folder.mkdir()
            call = handle.spawn(str(folder))
            started(server, folder)
            call.cancel()
            record = server.wait_for_end(call.object_id)
            assert record.ended_at is not None and record.cancelled_at is not None
            assert (record.ended_at - record.cancelled_at).total_seconds() < FAST
            pids.append(record.pids)
            idle(server, call.object_id)
            time.sleep(1.5)  # the client asks again a second after a cancel
        assert pids[0] == pids[1]

    def test_a_queued_call_is_cancelled_at_once(self, server: LoopbackModal, tmp_path: Path) -> None:
        """A call that no container has ends with the cancel."""
        running = [spawn(server, "wait", tmp_path) for _ in range(4)]
        started(server, tmp_path, 4)
        call = spawn(server, "wait", tmp_path)
        call.cancel()
        assert server.call(call.object_id).status is CallStatus.CANCELLED
        assert server.call(call.object_id).starts == ()
        (tmp_path / "go").touch()
        assert [one.get(timeout=30) for one in running] == ["waited"] * 4

    def test_a_swallowed_cancel_is_a_success(self, server: LoopbackModal, tmp_path: Path) -> None:
        """A function that takes InputCancellation for the end succeeds, as on Modal."""
        call = spawn(server, "swallow", tmp_path)
        started(server, tmp_path)
        call.cancel()
        assert call.get(timeout=30) == "swallowed"

    def test_a_function_that_never_stops_is_killed(self, fast: LoopbackModal, tmp_path: Path) -> None:
        """InputCancellation, SIGINT after the first grace, SIGKILL after the second; its children go with it."""
        call = spawn(fast, "deaf", tmp_path)
        started(fast, tmp_path)
        call.cancel()
        record = fast.wait_for_end(call.object_id)
        assert marks(tmp_path)[1:] == ["InputCancellation", "KeyboardInterrupt"]
        assert record.status is CallStatus.CANCELLED
        assert [start.ended_by for start in record.starts] == ["died"]
        child = int(marks(tmp_path)[0].split()[1])
        fast.wait(lambda: not alive(child))

    def test_containers_can_be_terminated_with_the_cancel(self, server: LoopbackModal, tmp_path: Path) -> None:
        """``terminate_containers`` kills at once."""
        call = spawn(server, "deaf", tmp_path)
        started(server, tmp_path)
        call.cancel(terminate_containers=True)
        assert server.wait_for_end(call.object_id).status is CallStatus.CANCELLED
        assert marks(tmp_path)[1:] in ([], ["InputCancellation"])

    def test_an_ignored_cancel_changes_nothing(self, server: LoopbackModal, tmp_path: Path) -> None:
        """The client is told that all is well, and the function goes on."""
        server.faults.force("ignore_cancels")
        call = spawn(server, "wait", tmp_path)
        started(server, tmp_path)
        call.cancel()
        (tmp_path / "go").touch()
        assert call.get(timeout=30) == "waited"
        assert server.call(call.object_id).cancels == 0

    def test_a_timeout_is_one(self, fast: LoopbackModal, tmp_path: Path) -> None:
        """A function that is past its timeout sees InputCancellation, and the client FunctionTimeoutError."""
        handle = fast.function_handle("example", "wait").with_options(timeout=30)
        call = handle.spawn(str(tmp_path))
        with pytest.raises(modal.exception.FunctionTimeoutError):
            call.get(timeout=30)
        assert marks(tmp_path) == ["started", "cancelled"]
        assert fast.call(call.object_id).status is CallStatus.TIMED_OUT

    def test_a_timeout_comes_on_request(self, server: LoopbackModal, tmp_path: Path) -> None:
        """``timeout`` does not wait for it."""
        call = spawn(server, "wait", tmp_path)
        started(server, tmp_path)
        server.timeout(call.object_id)
        assert server.wait_for_end(call.object_id).status is CallStatus.TIMED_OUT


class TestLosing:
    """Containers and results that go away, inputs that come twice."""

    def test_a_crashed_input_starts_again(self, server: LoopbackModal, tmp_path: Path) -> None:
        """The same call and input id, on another container."""
        call = spawn(server, "wait", tmp_path)
        started(server, tmp_path)
        server.kill_container(call.object_id)
        started(server, tmp_path, 2)
        (tmp_path / "go").touch()
        assert call.get(timeout=30) == "waited"
        record = server.call(call.object_id)
        assert [start.kind for start in record.starts] == ["first", "restart"]
        assert [start.ended_by for start in record.starts] == ["died", "output"]
        assert len(set(record.pids)) == 2
        killed = next(one for one in server.containers if one.id == record.starts[0].container_id)
        assert killed.exit_status == 128 + signal.SIGKILL

    def test_a_container_that_was_just_killed_gets_no_input(self, server: LoopbackModal) -> None:
        """Though it has not gone yet: what comes next starts once, on another one."""
        before = server.run("tick")
        idle(server, before.id)
        server.kill_containers()
        after = server.run("tick")
        assert [start.kind for start in after.starts] == ["first"]
        assert after.pids != before.pids

    def test_a_preempted_input_starts_again(self, server: LoopbackModal, tmp_path: Path) -> None:
        """The function sees KeyboardInterrupt, re-raises it, and runs again elsewhere."""
        call = spawn(server, "wait", tmp_path)
        started(server, tmp_path)
        server.preempt(call.object_id)
        started(server, tmp_path, 2)
        (tmp_path / "go").touch()
        assert call.get(timeout=30) == "waited"
        assert marks(tmp_path) == ["started", "interrupted", "started", "finished"]

    def test_a_preempted_container_that_does_not_go_is_killed(self, fast: LoopbackModal, tmp_path: Path) -> None:
        """After the notice comes SIGKILL, and the input starts again."""
        call = spawn(fast, "deaf", tmp_path)
        started(fast, tmp_path)
        fast.preempt(call.object_id)
        started(fast, tmp_path, 2)
        assert [start.kind for start in fast.call(call.object_id).starts] == ["first", "restart"]
        call.cancel(terminate_containers=True)
        fast.wait_for_end(call.object_id)

    def test_a_redelivered_input_runs_twice_at_once(self, server: LoopbackModal, tmp_path: Path) -> None:
        """Two containers have it; the first result counts."""
        call = spawn(server, "wait", tmp_path)
        started(server, tmp_path)
        server.redeliver(call.object_id)
        started(server, tmp_path, 2)
        assert len(server.call(call.object_id).running) == 2
        (tmp_path / "go").touch()
        assert call.get(timeout=30) == "waited"
        record = server.wait_for_end(call.object_id)
        assert (record.outputs, [start.kind for start in record.starts]) == (2, ["first", "redelivery"])
        assert record.billed_s == sum(start.billed_s for start in record.starts)

    def test_a_container_out_of_memory_is_killed(self, server: LoopbackModal, tmp_path: Path) -> None:
        """More than the function's memory limit is SIGKILL; the input starts again."""
        call = spawn(server, "eat", tmp_path)
        assert call.get(timeout=60) == "enough"
        record = server.call(call.object_id)
        assert [start.ended_by for start in record.starts] == ["died", "output"]

    def test_a_call_can_be_given_up_after_some_crashes(self, tmp_path: Path) -> None:
        """``max_deaths`` ends what would be restarted without end."""
        with LoopbackModal(max_deaths=2) as server:
            server.secrets["keys"] = {}
            server.deploy("modal_example", cwd=HERE)
            server.faults.crash = 1.0
            server.faults.fault_within_s = 0.1
            call = spawn(server, "wait", tmp_path)
            with pytest.raises(modal.exception.InternalFailure):
                call.get(timeout=30)
            assert server.call(call.object_id).status is CallStatus.LOST
            assert len(server.call(call.object_id).starts) == 2

    def test_an_expired_result_is_gone(self, server: LoopbackModal) -> None:
        """The client raises OutputExpiredError."""
        call = spawn(server, "shout", "hello")
        assert call.get(timeout=30) == "HELLO"
        server.expire(call.object_id)
        with pytest.raises(modal.exception.OutputExpiredError):
            call.get(timeout=0)

    def test_a_lost_call_is_an_internal_failure(self, server: LoopbackModal, tmp_path: Path) -> None:
        """The client raises InternalFailure, while the container goes on."""
        call = spawn(server, "wait", tmp_path)
        started(server, tmp_path)
        server.lose(call.object_id)
        with pytest.raises(modal.exception.InternalFailure):
            call.get(timeout=0)
        assert len(server.call(call.object_id).running) == 1
        (tmp_path / "go").touch()
        server.wait_for_end(call.object_id)

    def test_an_answer_to_spawn_is_lost(self, server: LoopbackModal) -> None:
        """The client raises ServiceError after its own retries; the one call exists, and runs."""
        handle = server.function_handle("example", "shout")
        handle.hydrate()
        before = len(server.calls)
        server.faults.force("lose_spawn_answers")
        with pytest.raises(modal.exception.ServiceError):
            handle.spawn("hello")
        (call,) = server.calls[before:]
        assert server.wait_for_end(call.id).status is CallStatus.SUCCEEDED

    def test_each_try_of_a_spawn_may_make_a_call(self, server: LoopbackModal) -> None:
        """Where the client's idempotency keys are forgotten, its retries are calls of their own."""
        handle = server.function_handle("example", "shout")
        handle.hydrate()
        before = len(server.calls)
        server.faults.forget_idempotency_keys = True
        server.faults.force("lose_spawn_answers")
        with pytest.raises(modal.exception.ServiceError):
            handle.spawn("hello")
        calls = server.calls[before:]
        assert len(calls) > 1
        for call in calls:
            server.wait_for_end(call.id)

    def test_a_server_that_is_away_is_tried_again(self, server: LoopbackModal) -> None:
        """The client rides out one refusal by itself, and raises ServiceError where there is no end of them."""
        handle = server.function_handle("example", "shout")
        handle.hydrate()
        server.faults.force("unavailable")
        assert handle.spawn("hello").get(timeout=30) == "HELLO"
        before = len(server.calls)
        server.faults.unavailable = 1.0
        with pytest.raises(modal.exception.ServiceError):
            handle.spawn("hello")
        assert len(server.calls) == before

    def test_faults_happen_by_probability(self, server: LoopbackModal, tmp_path: Path) -> None:
        """An input is crashed, preempted and delivered twice where the switches say so; a result expires."""
        server.faults.fault_within_s = 0.2
        server.faults.force("crash")
        call = spawn(server, "wait", tmp_path)
        server.wait_for_start(call.object_id, number=2)
        server.faults.force("preempt")
        server.kill_container(call.object_id)  # what is lost while nothing else has the input is started again
        server.wait_for_start(call.object_id, number=4, timeout=60)
        server.faults.force("duplicate_deliveries")
        server.kill_container(call.object_id)
        server.wait_for_start(call.object_id, number=6)
        kinds = [start.kind for start in server.call(call.object_id).starts]
        assert kinds == ["first", "restart", "restart", "restart", "restart", "redelivery"]
        server.faults.expired_results = 1.0
        (tmp_path / "go").touch()
        server.wait_for_end(call.object_id)
        with pytest.raises(modal.exception.OutputExpiredError):
            call.get(timeout=0)


class TestLiving:
    """The server's own life."""

    def test_nothing_is_left_when_it_closes(self, tmp_path: Path) -> None:
        """Containers and their children end with the server, whatever they do."""
        with LoopbackModal() as server:
            server.secrets["keys"] = {}
            server.deploy("modal_example", cwd=HERE)
            call = spawn(server, "deaf", tmp_path)
            started(server, tmp_path)
            pids = [server.call(call.object_id).pids[0], int(marks(tmp_path)[0].split()[1])]
            assert all(alive(pid) for pid in pids)
        eventually(lambda: not any(alive(pid) for pid in pids))

    def test_nothing_is_left_when_its_process_is_killed(self, tmp_path: Path) -> None:
        """SIGKILL of the process that holds the server ends its containers too."""
        script = tmp_path / "hold.py"
        script.write_text(_HOLD)
        process = subprocess.Popen([sys.executable, str(script), str(tmp_path), str(HERE)])
        try:
            eventually(lambda: bool(marks(tmp_path)) or process.poll() is not None)
            child = int(marks(tmp_path)[0].split()[1])
            assert alive(child)
        finally:
            process.kill()
            process.wait()
        eventually(lambda: not alive(child))

    def test_results_are_kept_for_as_long_as_it_says(self) -> None:
        """``result_ttl`` after its end a result is gone by itself."""
        with LoopbackModal(result_ttl=0.5) as server:
            server.secrets["keys"] = {}
            server.deploy("modal_example", cwd=HERE)
            call = spawn(server, "shout", "hello")
            server.wait(lambda: server.call(call.object_id).expired)
            with pytest.raises(modal.exception.OutputExpiredError):
                call.get(timeout=0)

    def test_clients_in_other_processes_need_only_the_environment(self, server: LoopbackModal) -> None:
        """``environment`` is all that a program needs, whatever this machine's own configuration says."""
        program = "import modal; print(modal.Function.from_name('example', 'shout').remote('hello'))"
        environment = {**os.environ, "HTTPS_PROXY": "http://127.0.0.1:9", **server.environment()}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout == "HELLO\n"

    def test_what_never_happens_is_told(self, server: LoopbackModal) -> None:
        """``wait`` raises TimeoutError, and names what there was."""
        with pytest.raises(TimeoutError, match="did not happen within"):
            server.wait(lambda: False, timeout=0.05)


_HOLD = """
import sys
import time
from pathlib import Path
from renderdispatch.testing.modal import LoopbackModal

with LoopbackModal() as server:
    server.secrets["keys"] = {}
    server.deploy("modal_example", cwd=Path(sys.argv[2]))
    server.function_handle("example", "deaf").spawn(sys.argv[1])
    time.sleep(120)
"""


class TestFaultDraws:
    """The seed decides."""

    def test_a_seed_draws_the_same_again(self) -> None:
        """Whatever else was drawn in between, each kind of fault meets the same fate at the same count."""
        first, second = ModalFaults(7), ModalFaults(7)
        first.crash = second.crash = first.preempt = 0.5
        drawn = []
        for _ in range(50):
            drawn.append(first.happens("crash"))
            first.happens("preempt")
        assert [second.happens("crash") for _ in range(50)] == drawn
        assert 5 < sum(drawn) < 45

    def test_other_seeds_draw_otherwise(self) -> None:
        """Two seeds do not share their fate."""
        draws = []
        for seed in range(2):
            faults = ModalFaults(seed)
            faults.crash = 0.5
            draws.append([faults.happens("crash") for _ in range(50)])
        assert draws[0] != draws[1]
