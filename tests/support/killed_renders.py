"""Renders whose workers are killed at random moments, and what was drawn in all.

A `Killed` is a service with its storage, and someone who kills. `LocalKills` has the service in a process of its own:
the render process, the runner or all of the service are killed. With `ModalKills`, containers of a loopback Modal are
preempted.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
import random
import secrets
import signal
import subprocess
import sys
import time
import wave
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from attrs import define, field, frozen

from renderdispatch import RenderService
from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.backends.modal import ModalBackend
from renderdispatch.engine import layout
from renderdispatch.jobs import Job
from renderdispatch.messages import JobStatus, Limits, Output
from renderdispatch.plumbing import pieces
from renderdispatch.protocols import StorageAdapter
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import registered_scenes
from renderdispatch.testing.modal import LoopbackModal
from renderdispatch.testing.webhook_server import webhook_server
from tests.support import ROOT
from tests.support.killed_service import SCENES
from tests.support.modal_services import served_storage

(SCENE,) = SCENES

Victim = Literal["service", "runner", "render"]

_DEPTHS: Final[Mapping[Victim, int]] = {"service": 0, "runner": 2, "render": 4}
"""How deep below the service they are: each has a supervisor above it."""

SEGMENT: Final = 24
SEGMENTS: Final = 18
FRAMES: Final = SEGMENT * SEGMENTS
_OUTPUT: Final = Output(width=64, height=64, fps=Fraction(6))  # at which a segment of four seconds has 24 frames
_RATE: Final = 8000
_FRAME_S: Final = 0.005
_POLL_S: Final = 0.01
_PATIENCE_S: Final = 90.0
_SEGMENTS_AHEAD: Final = 2
"""A kill comes at any moment while about so many segments are drawn."""

_EARLY: Final = 0.2
"""The share of kills that do not wait until something new is kept."""


def write_song(path: Path) -> Path:
    """Write a song, as long as it takes for pieces to be kept."""
    sound = np.random.default_rng(1).normal(0, 3000, FRAMES * _RATE // 6)
    loudness = np.abs(np.sin(np.arange(sound.size) / 5000))
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, _RATE, 0, "NONE", ""))
        file.writeframes((sound * loudness).astype("<i2").tobytes())
    return path


@frozen
class Marks:
    """What was drawn of one video."""

    path: Path

    def read(self) -> list[tuple[int, int]]:
        """Return index and process of each frame, as they were drawn."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [(int(index), int(process)) for index, process in map(str.split, lines)]


@define
class Killed(ABC):
    """Renders, and those who kill.

    Args:
        storage: Where videos are.
        folder: For marks.
        chance: Decides whom and when.
        parallel: How many draw.
    """

    storage: StorageAdapter
    service: RenderService
    folder: Path
    chance: random.Random
    parallel: int
    kills: Counter[str] = field(factory=Counter, init=False)
    _numbers: Iterator[int] = field(factory=itertools.count, init=False)

    @abstractmethod
    def kill(self, job: Job) -> int:
        """Kill someone; return how many workers ended by that, none if nothing was there to be killed."""

    def render(self, song: Path, *, kills: int, frame_s: float = _FRAME_S) -> Video:
        """Render a video with at most so many kills; return it when the job has ended."""
        marks = Marks(self.folder / f"marks-{next(self._numbers)}")
        early = [self.chance.random() < _EARLY for _ in range(kills)]
        limits = Limits(max_attempts=1 + sum(early), total_timeout=timedelta(minutes=10))
        params: dict[str, Any] = {"marks": str(marks.path), "frame_s": frame_s}
        job_id = self.service.submit(
            song, scene=SCENE, params=params, output=_OUTPUT, parallel=self.parallel, limits=limits
        ).id
        killed = workers = kept = 0
        for soon in early:
            self._wait(job_id, lambda job: job.ended or soon or self._kept(job) > kept)  # noqa: B023 - called at once
            time.sleep(self.chance.uniform(0, _SEGMENTS_AHEAD * SEGMENT * frame_s))
            if (job := self.service.get(job_id)).ended:
                break
            ended = self.kill(job)
            kept = self._kept(job)
            killed, workers = killed + (ended > 0), workers + ended
        job = self._wait(job_id, lambda job: job.ended)
        return Video(job, self._hash(job), marks.read(), killed, workers, self.parallel)

    def _wait(self, job_id: str, until: Callable[[Job], bool]) -> Job:
        deadline = time.monotonic() + _PATIENCE_S
        while not until(job := self.service.get(job_id)):
            assert time.monotonic() < deadline, f"nothing happens any more: {job}"
            time.sleep(_POLL_S)
        return job

    def _kept(self, job: Job) -> int:
        """Return how many segments of the job are kept."""
        found = self.storage.list(layout.all_pieces(layout.prefix_of(job)))
        return len({pieces.index_of(info.key.rpartition("/")[2]) for info in found} - {None})

    def _hash(self, job: Job) -> str:
        if job.artifact is None:
            return ""
        with self.storage.open(job.artifact.key) as file:
            return hashlib.sha256(file.read()).hexdigest()


@frozen
class Video:
    """A video that was rendered.

    Args:
        job: Its job, which has ended.
        sha256: Of the file; empty if there is none.
        drawn: Index and process of each frame that was drawn.
        kills: How often someone was killed.
        workers: How many workers ended by that.
        parallel: How many drew.
    """

    job: Job
    sha256: str
    drawn: list[tuple[int, int]]
    kills: int
    workers: int
    parallel: int

    @property
    def in_vain(self) -> int:
        """How many frames more were drawn than are shown."""
        return len(self.drawn) - FRAMES

    def problems(self, sha256: str) -> Iterator[str]:
        """Yield what is not as it should be, beside a file with this hash."""
        if self.job.status is not JobStatus.COMPLETE:
            yield f"{self.job.status}: {self.job.error}"
        if self.sha256 != sha256:
            yield "the file is another one"
        if {index for index, _ in self.drawn} != set(range(FRAMES)):
            yield "some frames were not drawn"
        if self.in_vain > 0.05 * FRAMES + SEGMENT * (self.workers + self.parallel):
            drew = Counter(index // SEGMENT for index, _ in self.drawn)
            yield f"{self.in_vain} frames in vain, {self.workers} workers killed; frames by segment: {drew}"

    def __str__(self) -> str:
        attempts = ", ".join(f"{len(a.runs)} runs {a.error.code if a.error else ''}" for a in self.job.attempts)
        return f"{self.kills} kills, {self.workers} workers, {self.in_vain} frames in vain; attempts: {attempts}"


# --- on this machine


@define
class LocalKills(Killed):
    """A service of this machine, in a process of its own."""

    process: ServiceProcess
    _victims: list[Victim] = field(factory=list, init=False)

    def kill(self, job: Job) -> int:
        """Kill a render process, a runner, or the service, each as often as the others."""
        del job
        if not self._victims:
            self._victims = ["render", "runner", "service"]
            self.chance.shuffle(self._victims)
        victim = self._victims.pop()
        below = _below(self.process.pid)
        found = [pid for pid, depth in below.items() if depth == _DEPTHS[victim]]
        if not found:
            return 0
        self.kills[victim] += 1
        if victim == "service":
            self.process.kill()
            self.process.start()
            return max(1, sum(depth == _DEPTHS["runner"] for depth in below.values()))
        with suppress(ProcessLookupError):
            os.kill(self.chance.choice(found), signal.SIGKILL)
        return 1


@define
class ServiceProcess:
    """`tests.support.killed_service`, which may be killed and started again."""

    arguments: list[str]
    _process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it."""
        command = [sys.executable, "-m", "tests.support.killed_service", *self.arguments]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE)

    def kill(self) -> None:
        """Kill it by SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.communicate()


@contextmanager
def local_kills(folder: Path, chance: random.Random, *, parallel: int) -> Iterator[LocalKills]:
    """A service with SQLite, a folder and as many slots as workers."""
    database, objects = f"sqlite:///{folder / 'jobs.db'}", folder / "objects"
    process = ServiceProcess([database, str(objects), str(parallel)])
    storage = FsspecStorage(objects)
    with ExitStack() as stack:
        store = stack.enter_context(closing(SqlJobStore(database)))
        here = LocalGpuBackend(gpus=(), renderers=SCENES)
        service = stack.enter_context(RenderService(store, storage, here, worker=False))
        process.start()
        stack.callback(process.kill)
        yield LocalKills(storage, service, folder, chance, parallel, process)


# --- on a loopback Modal


@define
class ModalKills(Killed):
    """Containers of a loopback Modal."""

    modal: LoopbackModal

    def kill(self, job: Job) -> int:
        """Preempt a container that has an input of the job."""
        running = [call for call in self.modal.calls if call.running and job.id.encode() in call.args]
        if not running:
            return 0
        self.kills["container"] += 1
        self.modal.preempt(self.chance.choice(running).id)
        return 1


@contextmanager
def modal_kills(modal: LoopbackModal, folder: Path, chance: random.Random, *, parallel: int) -> Iterator[ModalKills]:
    """A service of this process that renders on the loopback Modal."""
    secret = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
    with ExitStack() as stack:
        storage = stack.enter_context(served_storage(folder / "objects"))
        store = stack.enter_context(closing(SqlJobStore(f"sqlite:///{folder / 'jobs.db'}")))
        backend = stack.enter_context(closing(ModalBackend()))
        hooks = stack.enter_context(webhook_server())
        service = stack.enter_context(RenderService(store, storage, backend, secrets=secret, webhook_url=hooks.url))
        hooks.handler = service
        yield ModalKills(storage, service, folder, chance, parallel, modal)


@contextmanager
def modal_with_counted(folder: Path) -> Iterator[LoopbackModal]:
    """A loopback Modal whose containers know the scene."""
    with registered_scenes(folder, SCENES):
        path = os.pathsep.join([str(folder), str(ROOT)])
        with LoopbackModal(max_containers=8, container_env={"PYTHONPATH": path}) as modal:
            modal.deploy("renderdispatch.modal_app")
            yield modal


# --- processes


def _below(pid: int) -> dict[int, int]:
    """Return a process and its descendants, and how deep below it they are."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found, ahead = {pid: 0}, [pid]
    while ahead:
        parent = ahead.pop()
        for child in children.get(parent, []):
            found[child] = found[parent] + 1
            ahead.append(child)
    return found
