"""Renders on a loopback Modal that get into trouble.

A `Rig` is a service in this process (SQLite, the local R2, its worker), with a gate before its webhook, and a loopback
Modal to which the real ``modal deploy`` has deployed `renderdispatch.modal_app`. Its containers know one scene more,
`tests.support.mishaps_scenes.Trouble`. A `Render` is one job of the rig, with the marks that its renders left.

Tests take the fixture ``rig``, which ``tests/e2e/conftest.py`` imports.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
from attrs import define, field, frozen

from renderdispatch import RenderService
from renderdispatch.backends.modal import ModalBackend
from renderdispatch.engine.inbox import WebhookResponse
from renderdispatch.engine.reconcile import Reconciler
from renderdispatch.jobs import HelperState, Job
from renderdispatch.messages import RENDER_EVENT, JobStatus, Limits, Output, RenderEvent, Stage
from renderdispatch.protocols import RenderBackend
from renderdispatch.storage.r2 import R2Storage
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import registered_scenes
from renderdispatch.testing.local_r2 import LocalR2
from renderdispatch.testing.modal import LoopbackModal, ModalCall
from renderdispatch.testing.webhook_server import webhook_server
from tests.support import ROOT
from tests.support.mishaps_scenes import TROUBLE, Trouble

PATIENCE_S: Final = 60.0
CONTAINERS: Final = 3
SMALL: Final = Output(width=64, height=64)

_POLL_S: Final = 0.02
_UNAVAILABLE: Final = WebhookResponse(status=503, body=b"{}", headers={})
_ACCEPTED: Final = WebhookResponse(status=200, body=b"{}", headers={})


@define
class Gate:
    """What receives webhooks before the service does.

    Events for which ``shut`` returns True are refused with 503. Events for which ``swallow`` returns True are answered
    200 and lost, as by a misconfigured proxy.
    """

    service: RenderService | None = None
    shut: Callable[[RenderEvent], bool] = lambda _event: False
    swallow: Callable[[RenderEvent], bool] = lambda _event: False
    events: list[RenderEvent] = field(factory=list)
    """The events that the service accepted, in order."""

    def handle_webhook(self, headers: list[tuple[str, str]], body: bytes) -> WebhookResponse:
        """Pass a webhook on to the service, refuse it, or lose it."""
        event = RENDER_EVENT.validate_json(body)
        if self.service is None or self.shut(event):
            return _UNAVAILABLE
        if self.swallow(event):
            return _ACCEPTED
        response = self.service.handle_webhook(headers, body)
        if response.status == 200:
            self.events.append(event)
        return response


@define
class Rig:
    """A service and everything that it talks to.

    Args:
        modal: Where containers run.
        r2: Where objects are stored, and the switches for its faults.
        storage: The service's storage.
        store: The service's job store.
        backend: The service's backend.
        service: The service, with its worker.
        gate: What receives webhooks for the service.
        folder: Where renders leave their marks.
        secret: The service's master secret.
        renders: Every render that was submitted.
    """

    modal: LoopbackModal
    r2: LocalR2
    storage: R2Storage
    store: SqlJobStore
    backend: RenderBackend
    service: RenderService
    gate: Gate
    folder: Path
    secret: str = field(repr=False)
    renders: list[Render] = field(factory=list)

    def submit(
        self, *, limits: Limits | None = None, audio: bytes = b"RIFF, a song", parallel: int = 1, **params: Any
    ) -> Render:
        """Submit a job for the scene `Trouble`; ``params`` are its parameters."""
        folder = self.folder / f"render-{len(self.renders)}"
        folder.mkdir()
        params["folder"] = str(folder)
        handle = self.service.submit(
            audio, scene=TROUBLE, params=params, output=SMALL, limits=limits, parallel=parallel
        )
        render = Render(self, handle.id, folder)
        self.renders.append(render)
        return render

    def clean_up(self) -> None:
        """End what a test left: turn every fault off, cancel every job, let every held render go on."""
        self.modal.faults.clear()
        self.r2.forget()
        self.gate.shut = self.gate.swallow = lambda _event: False
        for render in self.renders:
            if not render.job.ended:
                self.service.cancel(render.id)
            render.go()
        mine = {attempt.call_id for render in self.renders for attempt in render.job.attempts}
        left = [call for call in self.modal.calls if call.id in mine or not call.status.ended]
        for call in left:
            self.modal.lose(call.id)  # otherwise Modal would start the killed input again
        if any(call.running for call in left):
            self.modal.kill_containers()


@frozen
class Render:
    """One job, and what its renders did."""

    rig: Rig
    id: str
    folder: Path

    @property
    def job(self) -> Job:
        return self.rig.store.get(self.id)

    @property
    def call(self) -> ModalCall:
        """The call of the newest attempt, as Modal sees it."""
        return self.rig.modal.call(self.wait_for_call())

    @property
    def calls(self) -> list[ModalCall]:
        """Every call that was made for this job."""
        return [call for call in self.rig.modal.calls if self.id.encode() in call.args]

    @property
    def starts(self) -> int:
        """How many times the renderer was started."""
        marks = self.folder / "renders"
        return len(marks.read_text().splitlines()) if marks.exists() else 0

    @property
    def objects(self) -> dict[str, int]:
        """The size of each object that the job's attempts have in storage, by key.

        But for those that tell helpers to stop, which stay for as long as a helper's URLs are good.
        """
        infos = self.rig.storage.list(f"jobs/{self.id}/")
        return {info.key: info.size for info in infos if "audio" not in info.key and not info.key.endswith("/stop")}

    @property
    def rendered_at(self) -> datetime:
        """When the renderer finished."""
        return datetime.fromtimestamp(float((self.folder / "ended").read_text()), UTC)

    def go(self) -> None:
        """Let a render with ``hold`` go on."""
        (self.folder / "go").touch()

    def wait(self, until: Callable[[Job], bool], what: str = "that") -> Job:
        """Wait until ``until`` is true of the job's record, and return the record."""
        deadline = time.monotonic() + PATIENCE_S
        while not until(job := self.job):
            assert time.monotonic() < deadline, f"still not {what}: {job}\n{self._logs()}"
            time.sleep(_POLL_S)
        return job

    def wait_for(self, status: JobStatus) -> Job:
        """Wait until the job has ended, assert that it has this status, and return it."""
        job = self.wait(lambda job: job.ended, str(status))
        assert job.status is status, f"{job}\n{self._logs()}"
        return job

    def wait_for_stage(self, stage: Stage) -> Job:
        """Wait until the job is at this stage."""
        return self.wait(lambda job: job.stage is stage, str(stage))

    def wait_for_call(self) -> str:
        """Wait until the newest attempt's call is known, and return its id."""
        attempt = self.wait(lambda job: job.attempt is not None and job.attempt.call_id is not None, "called").attempt
        assert attempt is not None and attempt.call_id is not None
        return attempt.call_id

    def wait_for_renders(self, number: int) -> None:
        """Wait until the renderer was started this many times."""
        _eventually(lambda: self.starts >= number, lambda: f"{self.starts} renders, {self.job}\n{self._logs()}")

    def wait_for_helpers(self, number: int) -> None:
        """Wait until so many helpers were started, and their calls are known."""

        def known() -> bool:
            marks = self.folder / "helpers"
            started = len(marks.read_text().splitlines()) if marks.exists() else 0
            attempt = self.job.attempt
            states = () if attempt is None else [helper.state for helper in attempt.helpers]
            return started >= number and all(state is HelperState.STARTED for state in states)

        _eventually(known, lambda: f"{self.job}\n{self._logs()}")

    def wait_for_video(self) -> None:
        """Wait until the newest attempt's video is in storage."""
        _eventually(lambda: any(key.endswith("video.mp4") for key in self.objects), lambda: f"{self.job}")

    def wait_for_objects(self, number: int) -> None:
        """Wait until the job's attempts have this many objects in storage."""
        _eventually(lambda: len(self.objects) == number, lambda: f"{self.objects}, {self.job}")

    def wait_for_clean_up(self) -> None:
        """Wait until the job owes no clean-up."""
        self.wait(lambda job: not job.owes_clean_up, "cleaned up")

    def reconcile(self) -> Job:
        """Reconcile the job now, whether or not it is due, and return it."""
        rig = self.rig
        Reconciler(rig.store, rig.storage, {"default": rig.backend}).reconcile(self.job)
        return self.job

    def assert_delivered_once(self) -> None:
        """Assert that the job is complete with one video and one result object, and that nothing of it still runs."""
        job = self.wait_for(JobStatus.COMPLETE)
        assert job.artifact is not None and job.attempt is not None
        keys = {job.artifact.key, job.attempt.result_key}
        _eventually(lambda: set(self.objects) == keys, lambda: f"{self.objects}, {job}")
        seen = self.rig.storage.stat(job.artifact.key)
        assert (seen.size, seen.etag) == (job.artifact.bytes, job.artifact.etag)
        with self.rig.storage.open(job.artifact.key) as video:
            digest = hashlib.sha256(video.read()).hexdigest()
        assert job.artifact.sha256 in {digest, None}
        self.assert_stopped()

    def assert_stopped(self) -> None:
        """Assert that no call of this job still runs, and that none left a process behind."""
        _eventually(
            lambda: not any(call.running for call in self.calls),
            lambda: f"{self.calls}\n{self._logs()}",
        )
        ids = {start.container_id for call in self.calls for start in call.starts}
        _eventually(lambda: not processes_in(self.rig.modal, ids), lambda: f"{processes_in(self.rig.modal, ids)}")

    def _logs(self) -> str:
        return "".join(self.rig.modal.container_log(call.id)[-3000:] for call in self.calls)


def processes_in(modal: LoopbackModal, containers: Collection[str]) -> dict[int, str]:
    """Return the command lines of all processes of these containers, except for the entry points, by pid."""
    known = {one.pid for one in modal.containers}
    found = {}
    for path in Path("/proc").iterdir():
        if not path.name.isdigit() or int(path.name) in known:
            continue
        with contextlib.suppress(OSError):
            environment = (path / "environ").read_bytes().split(b"\0")
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            task = next((entry[14:].decode() for entry in environment if entry.startswith(b"MODAL_TASK_ID=")), None)
            # each container's own supervisor starts the entry point
            if task in containers and command and "modal._container_entrypoint" not in command:
                found[int(path.name)] = command
    return found


def _eventually(condition: Callable[[], bool], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(_POLL_S)


@pytest.fixture(scope="session")
def troubled_modal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackModal]:
    """A loopback Modal with the real app, whose containers know the scene `Trouble`."""
    folder = tmp_path_factory.mktemp("scenes")
    with registered_scenes(folder, {TROUBLE: f"{Trouble.__module__}:{Trouble.__name__}"}):
        pass  # what it wrote stays
    path = os.pathsep.join([str(folder), str(ROOT)])
    with LoopbackModal(max_containers=CONTAINERS, container_env={"PYTHONPATH": path}) as server:
        server.deploy("renderdispatch.modal_app")
        yield server


@pytest.fixture
def rig(troubled_modal: LoopbackModal, r2: LocalR2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """A service that renders on the loopback Modal and stores in the local R2."""
    with open_rig(troubled_modal, r2, tmp_path, monkeypatch) as opened:
        yield opened


@contextlib.contextmanager
def open_rig(modal: LoopbackModal, r2: LocalR2, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Open a service that renders on this Modal."""
    for name, value in modal.environment().items():
        monkeypatch.setenv(name, value)
    with ExitStack() as stack:
        storage = stack.enter_context(closing(r2.storage(prefix=secrets.token_hex(4))))
        store = stack.enter_context(closing(SqlJobStore(f"sqlite:///{folder / 'jobs.db'}")))
        backend = stack.enter_context(closing(ModalBackend()))
        gate = Gate()
        hooks = stack.enter_context(webhook_server(gate))
        secret = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
        service = stack.enter_context(RenderService(store, storage, backend, secrets=secret, webhook_url=hooks.url))
        gate.service = service
        rig = Rig(modal, r2, storage, store, backend, service, gate, folder, secret)
        stack.callback(rig.clean_up)
        yield rig
