"""The loopback Modal that tests start, inspect and disturb."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import modal
from grpclib.server import Server
from modal.client import _Client
from modal_proto import api_pb2

from renderdispatch.plumbing.interpreter import interpreter
from renderdispatch.testing.modal.blobs import HttpFront, listen_on_loopback
from renderdispatch.testing.modal.calls import Call, Container, Scheduler, Start
from renderdispatch.testing.modal.containers import ContainerProcess
from renderdispatch.testing.modal.deployments import Deployments
from renderdispatch.testing.modal.faults import ModalFaults
from renderdispatch.testing.modal.records import ImageLayer, ModalCall, ModalContainer, ModalFunction
from renderdispatch.testing.modal.rpc import ContainerPlane, ControlPlane
from renderdispatch.testing.modal.web import WebEndpoints

T = TypeVar("T")

_START_S: Final = 30.0
_DEPLOY_S: Final = 120.0
_POLL_S: Final = 0.01
_HEARTBEAT_GAP_S: Final = 0.05


class DeployFailedError(RuntimeError):
    """``modal deploy`` failed; the message is what it printed."""


class LoopbackModal:
    """Modal's control plane and containers, on this machine, for as long as the ``with`` block runs.

    One thread of its own serves it; every method may be called from any thread.

    Args:
        max_containers: How many containers run at once; other inputs wait in the queue.
        container_env: The environment of each container, in addition to the few variables that a process needs to
            start. From this process's own environment, containers get ``PATH`` alone.
        environments: The environments of the workspace, the default one first.
        result_ttl: For how many seconds results are kept; None keeps them forever (Modal: seven days).
        heartbeat_s: The interval of a container's heartbeats. The response to each is held until the next is due; a
            cancel sends it at once.
        clock_rate: How much faster Modal's own times pass: 100 makes a function timeout of 300 s three seconds, and
            the 30 s of grace before SIGINT and the 60 s before SIGKILL also a hundredth.
        max_deaths: After how many lost containers a call ends with an internal failure; None restarts it without end,
            as Modal does. Preemptions do not count.
        seed: What `ModalFaults` draws from.
    """

    def __init__(
        self,
        *,
        max_containers: int = 4,
        container_env: Mapping[str, str] | None = None,
        environments: tuple[str, ...] = ("main",),
        result_ttl: float | None = None,
        heartbeat_s: float = 15.0,
        clock_rate: float = 1.0,
        max_deaths: int | None = None,
        seed: int = 0,
    ) -> None:
        self.faults = ModalFaults(seed)
        self.container_env = dict(container_env or {})
        self.token_id = "ak-loopback"  # noqa: S105 - it is made up
        self.token_secret = f"as-{secrets.token_hex(16)}"
        self.url = ""
        self._max_containers = max_containers
        self._environments = environments
        self._result_ttl = result_ttl
        self._heartbeat_s = heartbeat_s
        self._clock_rate = clock_rate
        self._max_deaths = max_deaths
        self._clients: list[modal.Client] = []
        self._of_handles: modal.Client | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="renderdispatch-modal-"))
        (self._folder / "modal.toml").touch()
        started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, args=(started,), name="renderdispatch-loopback-modal", daemon=True
        )
        self._thread.start()
        started.wait(_START_S)
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_clients()
        processes = [one.process for one in self._on_loop(self._end_containers)]
        for process in processes:
            if process is not None:
                process.join()
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    # What users need

    def environment(self) -> dict[str, str]:
        """Return the environment variables that point every Modal client of a process at this server alone."""
        return {
            "MODAL_SERVER_URL": self.url,
            "MODAL_TOKEN_ID": self.token_id,
            "MODAL_TOKEN_SECRET": self.token_secret,
            "MODAL_CONFIG_PATH": str(self._folder / "modal.toml"),
            "MODAL_ENVIRONMENT": self._environments[0],
            "MODAL_DISABLE_API_PROXY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def client(self) -> modal.Client:
        """Open a client of this server; it is closed with the server. It needs no environment variables."""
        client = modal.Client(self.url, api_pb2.CLIENT_TYPE_CLIENT, (self.token_id, self.token_secret))
        client.__enter__()  # type: ignore[no-untyped-call]  # Modal's is not typed
        self._clients.append(client)
        return client

    def function_handle(self, app: str, function: str, *, version: int | None = None) -> modal.Function[..., Any, Any]:
        """Return the client's handle of a deployed function."""
        return modal.Function.from_name(app, function, version=version, client=self._client_of_handles())

    def call_handle(self, call_id: str) -> modal.FunctionCall[Any]:
        """Return the client's handle of a call."""
        return modal.FunctionCall.from_id(call_id, client=self._client_of_handles())

    def _client_of_handles(self) -> modal.Client:
        with self._lock:
            if self._of_handles is None:
                self._of_handles = self.client()
            return self._of_handles

    def deploy(
        self,
        module: str,
        *,
        name: str | None = None,
        environment: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Run the real ``modal deploy -m module``.

        Args:
            module: What to deploy, importable from ``cwd`` or installed.
            name: The name of the deployment, if not the app's.
            environment: The environment to deploy to, if not the default one.
            env: Added to this process's own environment, from which Modal's variables are removed.
            cwd: Where it runs; None is the current folder.

        Raises:
            DeployFailedError: It failed, or took more than two minutes.
        """
        command = [interpreter(), "-m", "modal", "deploy", "-m", module]
        command += ["--name", name] if name is not None else []
        command += ["--env", environment] if environment is not None else []
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("MODAL_")}
        ours = {
            **inherited,
            **self.environment(),
            "MODAL_BUILD_VALIDATION": "ignore",  # the sources may be edited meanwhile
            "PYTHONUTF8": "1",
            "TERM": "dumb",
            **(env or {}),
        }
        try:
            done = subprocess.run(
                command,
                cwd=cwd,
                env=ours,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_DEPLOY_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise DeployFailedError(f"modal deploy -m {module} took more than {_DEPLOY_S:.0f} s") from None
        if done.returncode != 0:
            raise DeployFailedError(f"modal deploy -m {module} exited with status {done.returncode}:\n{done.stdout}")

    @property
    def secrets(self) -> dict[str, dict[str, str]]:
        """The named secrets of the workspace: what ``modal.Secret.from_name`` finds. Change it at any time."""
        return self._deployments.named_secrets

    @property
    def proxy_token(self) -> tuple[str, str]:
        """The Modal-Key and Modal-Secret that web endpoints with ``requires_proxy_auth`` ask for."""
        return self._web.proxy_token

    # What happened

    @property
    def calls(self) -> list[ModalCall]:
        """Every call that was made, oldest first."""
        return self._on_loop(lambda: [call.describe() for call in self._scheduler.calls.values()])

    def call(self, call_id: str) -> ModalCall:
        """Return one call.

        Raises:
            LookupError: No call has this id.
        """
        return self._on_loop(lambda: self._find(call_id).describe())

    @property
    def functions(self) -> list[ModalFunction]:
        """What is deployed, the newest version of each app, then the variants that ``with_options`` made."""
        return self._on_loop(lambda: self._deployments.functions)

    def function(self, name: str, *, app: str | None = None) -> ModalFunction:
        """Return a deployed function.

        Raises:
            LookupError: No function has this name.
        """
        for function in self.functions:
            if function.options is None and function.name == name and app in {None, function.app}:
                return function
        raise LookupError(f"no function {name!r} is deployed")

    @property
    def image_layers(self) -> list[ImageLayer]:
        """Every image layer that deployments asked for, bases first."""
        return self._on_loop(lambda: self._deployments.image_layers)

    @property
    def containers(self) -> list[ModalContainer]:
        """Every container that was started, oldest first."""
        return self._on_loop(lambda: [one.describe() for one in self._scheduler.containers.values()])

    def container_log(self, call_id: str) -> str:
        """Return what the containers of a call printed, in order."""
        ids = {start.container_id for start in self.call(call_id).starts}
        return "".join(one.log for one in self.containers if one.id in ids)

    def wait(self, predicate: Callable[[], bool], *, timeout: float = 30.0) -> None:
        """Wait until ``predicate`` is true.

        Raises:
            TimeoutError: It was not for ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while not predicate():
            if time.monotonic() >= deadline:
                raise TimeoutError(f"this did not happen within {timeout:g} s; calls: {self.calls}")
            time.sleep(_POLL_S)

    def wait_for_start(self, call_id: str, *, number: int = 1, timeout: float = 30.0) -> ModalCall:
        """Wait until the input of a call was given to a container ``number`` times; return the call then.

        Raises:
            TimeoutError: It was not for ``timeout`` seconds.
        """
        self.wait(lambda: len(self.call(call_id).starts) >= number, timeout=timeout)
        return self.call(call_id)

    def wait_for_end(self, call_id: str, *, timeout: float = 30.0) -> ModalCall:
        """Wait until a call ended and no container works on it any more; return the call then.

        Raises:
            TimeoutError: It did not for ``timeout`` seconds.
        """
        self.wait(lambda: (call := self.call(call_id)).status.ended and not call.running, timeout=timeout)
        return self.call(call_id)

    # What goes wrong on request

    def kill_container(self, call_id: str, *, signal: int = signal.SIGKILL) -> None:
        """Send a signal to the containers that have this call's input, once they have it: SIGKILL is a crash.

        Modal starts a crashed input again on another container, with the same ids.
        """
        for start in self._running(call_id):
            # Mypy infers no lambda with a default.
            self._on_loop(lambda start=start: self._scheduler.kill(start.container, signal))  # type: ignore[misc]

    def kill_containers(self, *, signal: int = signal.SIGKILL) -> None:
        """Send a signal to every container."""

        def kill() -> None:
            for container in self._scheduler.containers.values():
                self._scheduler.kill(container, signal)

        self._on_loop(kill)

    def preempt(self, call_id: str) -> None:
        """Preempt the containers that have this call's input, once they have it: SIGINT, SIGKILL 30 s later."""
        for start in self._running(call_id):
            self._on_loop(lambda start=start: self._scheduler.preempt(start.container))  # type: ignore[misc]

    def redeliver(self, call_id: str) -> None:
        """Hand this call's input to a second container, once a first one has it."""
        self._running(call_id)
        self._on_loop(lambda: self._scheduler.redeliver(self._find(call_id)))

    def timeout(self, call_id: str) -> None:
        """Let the function's timeout pass for this call's input, once a container has it."""
        for start in self._running(call_id):
            self._on_loop(lambda start=start: self._scheduler.time_out(start))  # type: ignore[misc]

    def lose(self, call_id: str) -> None:
        """End a call with an internal failure. A container that has its input goes on."""
        self._on_loop(lambda: self._scheduler.give_up(self._find(call_id), "the input was lost"))

    def expire(self, call_id: str) -> None:
        """Forget the result of a call."""
        self._on_loop(lambda: self._scheduler.expire(self._find(call_id)))

    # What Modal does by itself

    def run(self, function: str, *, app: str | None = None, timeout: float = 60.0) -> ModalCall:
        """Run a function without arguments, as its schedule would, and wait until it ended.

        Raises:
            LookupError: No function has this name.
            TimeoutError: It did not end for ``timeout`` seconds.
        """
        found = self.function(function, app=app)
        return self.wait_for_end(self._on_loop(lambda: self._call_without_arguments(found.id)), timeout=timeout)

    def _close_clients(self) -> None:
        shared = _Client._client_from_env  # noqa: SLF001 - the next server has another address
        if shared is not None and shared.server_url == self.url:
            self._clients.append(modal.Client.from_env())
        for client in self._clients:
            client.__exit__(None, None, None)  # type: ignore[no-untyped-call]  # close() came with 1.6
        self._clients.clear()
        self._of_handles = None

    # Its own thread

    def _call_without_arguments(self, function_id: str) -> str:
        deployed = self._deployments.function(function_id)
        invocation = api_pb2.FUNCTION_CALL_INVOCATION_TYPE_ASYNC
        input = api_pb2.FunctionInput(data_format=api_pb2.DATA_FORMAT_PICKLE)
        return self._scheduler.add(deployed, input, b"", invocation).id

    def _find(self, call_id: str) -> Call:
        if call_id not in self._scheduler.calls:
            raise LookupError(f"no call {call_id!r} was made")
        return self._scheduler.calls[call_id]

    def _running(self, call_id: str) -> list[Start]:
        def found() -> list[Start]:
            return list(self._find(call_id).running)

        self.wait(lambda: bool(self._on_loop(found)) or self.call(call_id).status.ended)
        return self._on_loop(found)

    def _on_loop(self, function: Callable[[], T]) -> T:
        async def run() -> T:
            return function()

        return self._await(run())

    def _await(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _run(self, started: threading.Event) -> None:
        try:
            asyncio.run(self._serve(started))
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
            self._failure = error
        finally:
            started.set()

    async def _serve(self, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._deployments = Deployments(self._folder, self._environments)
        self._scheduler = Scheduler(
            self._launch,
            self._deployments.describe,
            self.faults,
            max_containers=self._max_containers,
            clock_rate=self._clock_rate,
            max_deaths=self._max_deaths,
            result_ttl_s=self._result_ttl,
        )
        self._http = HttpFront(lambda *request: self._web.answer(*request))  # noqa: PLW0108 - made below
        self._web = WebEndpoints(self._deployments, self._scheduler, self._http)
        self._planes: list[Server] = []
        await self._http.start()
        token = (self.token_id, self.token_secret)
        plane = ControlPlane(self._deployments, self._scheduler, self._http, self.faults, token=token)
        listening = listen_on_loopback()
        server = Server([plane])
        await server.start(sock=listening)
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        started.set()
        await self._stopping.wait()
        for one in (server, *self._planes):
            one.close()
        for one in (server, *self._planes):
            await one.wait_closed()
        await self._http.close()

    def _launch(self, container: Container) -> ContainerProcess:
        function = container.function
        app = self._deployments.app(function.app_id)
        path = self._folder / f"{container.id[-12:]}.sock"
        plane = ContainerPlane(
            self._deployments,
            self._scheduler,
            self._http,
            self.faults,
            container=container,
            heartbeat_s=max(0.0, self._heartbeat_s - _HEARTBEAT_GAP_S),
        )
        # It listens before the container starts, and it is known from now on that it does.
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        listening.listen(16)
        server = Server([plane])
        self._planes.append(server)
        task = self._loop.create_task(server.start(sock=listening))
        task.add_done_callback(lambda done: done.result())
        arguments = api_pb2.ContainerArguments(
            task_id=container.id,
            function_id=function.id,
            app_id=app.id,
            function_def=function.definition,
            serialized_params=function.serialized_params,
            environment_name=app.environment,
            app_layout=self._deployments.layout(app, function),
        )

        def exited(status: int) -> None:
            server.close()
            self._planes.remove(server)
            self._scheduler.exited(container, status)

        return ContainerProcess(
            arguments,
            environment={
                **self._deployments.container_environment(function),
                **self.container_env,
                "MODAL_CONFIG_PATH": str(self._folder / "modal.toml"),
                "MODAL_HEARTBEAT_INTERVAL": str(self._heartbeat_s),
            },
            root=self._deployments.place_files(function),
            folder=self._folder,
            socket=path,
            on_exit=exited,
        )

    def _end_containers(self) -> list[Container]:
        self._scheduler.closing = True
        for container in self._scheduler.containers.values():
            if container.process is not None and container.alive:
                container.process.end()
        return list(self._scheduler.containers.values())
