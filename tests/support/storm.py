"""A storm: a service whose every link misbehaves, as drawn from one seed.

A `Storm` runs a service with the loopback Modal, the local R2 and its webhook, all of them real servers. One `Link` that
misbehaves is between the service and R2, another between the containers and the webhook. Clients submit jobs, cancel
some, and wait for each. `Storm.problems` returns what is wrong afterwards.

`Dice` draws everything: it returns a number from 0 to 1 for the seed and a name. The names do not depend on when
something happens: ``r2/17/PUT video.mp4/2`` is the third PUT of a video of job 17, ``crash/17`` the seventeenth start of
an input. So one seed gives the same jobs, the same cancels, and the same fate to the request of the same name. It does
not give the same interleaving. That depends on the machine, and with it how many requests there are, how far a job was
when it was cancelled, and which call is the seventeenth on Modal's side.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import secrets
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any, Final, Literal
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import httpx
from attrs import define, field, frozen

from renderdispatch.backends.modal import ModalBackend
from renderdispatch.engine.intake import keyed_id
from renderdispatch.engine.layout import attempt_prefix, prefix_of
from renderdispatch.errors import StorageError
from renderdispatch.jobs import CleanUp, Job
from renderdispatch.messages import Completed, FaultDomain, JobStatus, Limits, Output, StoredAudio
from renderdispatch.service import JobHandle, RenderService
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing.local_r2 import LocalR2
from renderdispatch.testing.modal import LoopbackModal, ModalCall
from renderdispatch.testing.renderers import registered_scenes
from renderdispatch.web.webhook import wsgi_app
from tests.support import ROOT
from tests.support.storm_scene import BROKEN_SCENE, BROKEN_SOUND, SCENE, SOUND, StormRenderer, video_of

SECRET: Final = "whsec_c3Rvcm0gc3Rvcm0gc3Rvcm0gc3Rvcm0gc3Rvcm0="
BACKEND: Final = "modal"
MARK: Final = "RENDERDISPATCH_STORM"
"""A variable in the environment of every container of a storm."""

LIMITS: Final = Limits(
    # Jobs wait in Modal's queue for seconds; a call that never started is given up 60 s after this.
    start_timeout=timedelta(seconds=30),
    total_timeout=timedelta(minutes=12),
    # An attempt is lost to some fault in at most one case of ten here, so that twenty of them never all are (1e-20):
    # a job that fails has met a defect, not bad luck.
    max_attempts=20,
)

_HELPED: Final = 1 / 3
"""The share of jobs that several draw."""

_COME_AND_GO_S: Final = 30.0
"""How long a container may take to start, or to end."""

How = Literal["pass", "slow", "drop", "lose answer", "cut answer", "double", "late", "500", "503"]


# --- chance ---------------------------------------------------------------------------------------


class Dice:
    """Draws from a seed, by name: the same name gives the same number, whatever else was drawn."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def draw(self, *name: object) -> float:
        """Return a number from 0 to 1."""
        return random.Random("/".join(map(str, (self.seed, *name)))).random()


@frozen(kw_only=True)
class Wish:
    """One job of a storm, and what its client does.

    Args:
        number: From 0; in every name that is drawn for it.
        sound: The audio.
        from_file: Whether it is submitted as a file's path, else as bytes.
        size: Bytes of its video.
        seconds: How long its scene draws.
        broken_scene: Whether its scene raises.
        cancel_after_s: When its client cancels it; None is never.
        deaf: Whether none of its webhooks arrives.
        parallel: How many draw it.
    """

    number: int
    sound: bytes = field(repr=False)
    from_file: bool
    size: int
    seconds: float
    broken_scene: bool
    cancel_after_s: float | None
    deaf: bool
    parallel: int = 1

    @property
    def id(self) -> str:
        """The job's id, which its idempotency key gives."""
        return keyed_id(None, self.key)

    @property
    def key(self) -> str:
        return f"job {self.number}"

    @property
    def broken_sound(self) -> bool:
        return not self.sound.startswith(SOUND)

    @property
    def fault(self) -> tuple[str, FaultDomain] | None:
        """The code and the domain of the error that it must end with; None where nothing is wrong with it."""
        if self.broken_sound:
            return BROKEN_SOUND, FaultDomain.AUDIO
        return (BROKEN_SCENE, FaultDomain.SCENE) if self.broken_scene else None


def wishes(dice: Dice, count: int, *, deaf: float) -> list[Wish]:
    """Draw the jobs of a storm.

    Args:
        dice: Draws them.
        count: How many.
        deaf: The share whose webhooks are all lost; each of these holds a container for 40 s.
    """

    def wish(number: int) -> Wish:
        def chance(what: str) -> float:
            return dice.draw("job", number, what)

        parallel = 2 + int(2 * chance("parallel")) if chance("helped") < _HELPED else 1
        sound = SOUND if chance("broken sound") >= 0.05 else b"noise of job "
        return Wish(
            number=number,
            sound=sound + f"{number} ".encode() * int(1 + 2000 * chance("length")),
            from_file=chance("from file") < 0.3,
            size=int(1 + 200_000 * chance("size")),
            seconds=0.3 * chance("seconds")
            if parallel == 1
            else 3 + 4 * chance("seconds"),  # so long that helpers come in time
            broken_scene=chance("broken scene") < 0.05,
            cancel_after_s=3 * chance("cancel after") if chance("cancel") < 0.12 else None,
            deaf=chance("deaf") < deaf,
            parallel=parallel,
        )

    return [wish(number) for number in range(count)]


@frozen
class Fate:
    """What becomes of a request."""

    how: How
    wait_s: float = 0.0


@define
class Fates:
    """Draws what becomes of the requests on a link: each by its name, and by how often that name came before."""

    dice: Dice
    link: str
    shares: Mapping[How, float]
    longest_s: float
    _seen: Counter[str] = field(factory=Counter)
    _lock: threading.Lock = field(factory=threading.Lock)

    def of(self, name: str) -> Fate:
        with self._lock:
            count = self._seen[name]
            self._seen[name] += 1
        drawn = self.dice.draw(self.link, name, count)
        for how, share in self.shares.items():
            drawn -= share
            if drawn < 0:
                return Fate(how, self.longest_s * self.dice.draw(self.link, name, count, "wait"))
        return Fate("pass")


# --- the network ----------------------------------------------------------------------------------


@frozen(kw_only=True)
class Request:
    """A request as it came to a link."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(repr=False)


@frozen(kw_only=True)
class Answer:
    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = field(default=b"", repr=False)


class Link:
    """A way to an HTTP server that loses, delays, doubles, reorders and refuses requests as their fate wants it.

    Requests pass unchanged, ``Host`` included: a signature that covers it stays good.

    Args:
        upstream: The port of the server that it leads to.
        fate_of: Decides about each request.
    """

    def __init__(self, upstream: int, fate_of: Callable[[Request], Fate]) -> None:
        self._upstream = upstream
        self._fate_of = fate_of
        self._late: list[threading.Timer] = []
        self._server = _Server(("127.0.0.1", 0), _handler_of(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.port: int = self._server.server_port
        self.calm = False
        """Whether everything passes."""
        self.met: Counter[str] = Counter()
        """How many requests met each fate."""

    def __enter__(self) -> Link:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for timer in self._late:
            timer.join()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def fate_of(self, request: Request) -> Fate:
        fate = Fate("pass") if self.calm else self._fate_of(request)
        self.met[fate.how] += 1
        return fate

    def forward(self, request: Request) -> Answer | None:
        """Ask the server; None where it does not answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self._upstream, timeout=60)
        try:
            connection.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers:
                if name.lower() not in _HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.endheaders(request.body or None)
            response = connection.getresponse()
            return Answer(status=response.status, headers=tuple(response.getheaders()), body=response.read())
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def forward_late(self, request: Request, wait_s: float) -> None:
        """Have the server see the request after whatever comes meanwhile."""
        timer = threading.Timer(wait_s, self.forward, [request])
        timer.daemon = True
        timer.start()
        self._late.append(timer)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def shutdown_request(self, request: Any) -> None:
        self.close_request(request)  # no polite end first: a reset is a reset

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # whoever asked is gone


_HOP_BY_HOP: Final = frozenset({"connection", "keep-alive", "transfer-encoding", "expect"})
_AT_ONCE: Final = struct.pack("ii", 1, 0)


def _handler_of(link: Link) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def _meet(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            request = Request(method=self.command, target=self.path, headers=tuple(self.headers.items()), body=body)
            fate = link.fate_of(request)
            match fate.how:
                case "pass":
                    self._say(link.forward(request))
                case "slow":
                    time.sleep(fate.wait_s)
                    self._say(link.forward(request))
                case "drop":
                    self._reset()
                case "lose answer":
                    link.forward(request)
                    self._reset()
                case "cut answer":
                    self._say(link.forward(request), whole=False)
                case "double":
                    self._say(link.forward(request))
                    link.forward(request)
                case "late":
                    link.forward_late(request, fate.wait_s)
                    self._reset()
                case "500" | "503":
                    self._say(Answer(status=int(fate.how), body=_ERROR))

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _meet  # noqa: N815 - as the base class names them

        def _say(self, answer: Answer | None, *, whole: bool = True) -> None:
            if answer is None:
                self._reset()
                return
            self.send_response_only(answer.status)
            sized = False
            for name, value in answer.headers:
                if name.lower() not in _HOP_BY_HOP:
                    self.send_header(name, value)
                    sized = sized or name.lower() == "content-length"
            if not sized:
                self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body if whole else answer.body[: len(answer.body) // 2])
            self.wfile.flush()
            if not whole:
                self._reset()

        def _reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


_ERROR: Final = b"<Error><Code>InternalError</Code><Message>as told</Message></Error>"

_OBJECT: Final = re.compile(r"/jobs/([0-9a-f]{32})/(?:[^/]*/)*([^/?]*)")


def r2_name(request: Request, numbers: Mapping[str, int]) -> str:
    """Name a request to R2: the number of its job, what is done, and to which object."""
    found = _OBJECT.search(request.target)
    if found is None:
        return f"-/{request.method}"
    return f"{numbers.get(found[1], '-')}/{request.method} {found[2]}"


class _WebhookServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def receiving(service: Callable[[], RenderService]) -> Iterator[int]:
    """Serve a service's webhook, which may be made after this; give the port."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        return wsgi_app(service())(environ, start_response)

    with make_server("127.0.0.1", 0, app, server_class=_WebhookServer, handler_class=_Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


# --- the storm ------------------------------------------------------------------------------------


@contextmanager
def stormy_modal(dice: Dice, folder: Path) -> Iterator[LoopbackModal]:
    """The loopback Modal with `renderdispatch.modal_app` deployed and six containers that know the scene."""
    scenes = folder / "scenes"
    with registered_scenes(scenes, {SCENE: f"{StormRenderer.__module__}:{StormRenderer.__name__}"}):
        path = os.pathsep.join([str(scenes), str(ROOT)])
        env = {"PYTHONPATH": path, MARK: f"storm-{dice.seed}-{secrets.token_hex(4)}", "RENDERDISPATCH_PASS_ENV": MARK}
        with LoopbackModal(max_containers=6, container_env=env, seed=dice.seed) as server:
            server.deploy("renderdispatch.modal_app")
            yield server


class Storm:
    """A service, its clients and all that goes wrong between it and the world.

    Args:
        dice: Draws it all.
        wishes: The jobs.
        outages: The share of jobs at whose submission Modal is away for a while, which may cost some job 95 s.
        modal: Where `renderdispatch.modal_app` is deployed, with the scenes of `scenes_for_containers`.
        r2: Whose first bucket is used, below a prefix of its own.
        folder: For files.
        database: The URL of the job store.
    """

    def __init__(
        self,
        dice: Dice,
        wishes: list[Wish],
        *,
        outages: float,
        modal: LoopbackModal,
        r2: LocalR2,
        folder: Path,
        database: str,
    ) -> None:
        self.dice = dice
        self.wishes = wishes
        self.modal = modal
        self._folder = folder
        self._database = database
        self._numbers = {wish.id: wish.number for wish in wishes}
        self._deaf = {wish.id for wish in wishes if wish.deaf}
        self._r2_fates = Fates(dice, "r2", _R2_SHARES, longest_s=1.0)
        self._webhook_fates = Fates(dice, "webhook", _WEBHOOK_SHARES, longest_s=1.0)
        self._r2 = r2
        self._prefix = modal.container_env[MARK]
        self._service: RenderService | None = None
        # none shortly before the end, which would have to wait for it
        self._outages = {n for n in range(len(wishes) * 2 // 3) if dice.draw("outage", n) < outages}
        self._ahead = timedelta(0)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let it blow for as long as the block runs."""
        upstream = httpx.URL(self._r2.endpoint_url)
        assert upstream.port is not None
        with (
            Link(upstream.port, self._fate_at_r2) as self.to_r2,
            receiving(lambda: self.service) as webhook_port,
            Link(webhook_port, self._fate_at_webhook) as self.to_webhook,
        ):
            endpoint = str(upstream.copy_with(port=self.to_r2.port))
            self.storage = self._r2.storage(endpoint_url=endpoint, prefix=self._prefix, stall_s=5.0)
            self.store = SqlJobStore(self._database, clock=self._now)
            backend = ModalBackend()
            self._service = RenderService(
                self.store,
                self.storage,
                {BACKEND: backend},
                secrets=SECRET,
                webhook_url=f"http://127.0.0.1:{self.to_webhook.port}/webhook",
                lease=timedelta(seconds=2),
                machine="storm",
                owned=[backend, self.storage, self.store],
            )
            self._r2.throttle(on=True)
            self._begin()
            try:
                with self._service:
                    yield
            finally:
                self.modal.faults.clear()
                self._r2.forget()

    def _now(self) -> datetime:
        return datetime.now(UTC) + self._ahead

    @property
    def service(self) -> RenderService:
        assert self._service is not None
        return self._service

    def _begin(self) -> None:
        faults = self.modal.faults
        faults.seed = self.dice.seed
        faults.lose_spawn_answers = 0.08
        faults.forget_idempotency_keys = True
        faults.unavailable = 0.05
        faults.container_unavailable = 0.02
        faults.ignore_cancels = 0.3
        faults.duplicate_deliveries = 0.3
        faults.crash = 0.05
        faults.preempt = 0.05
        faults.expired_results = 0.1
        faults.fault_within_s = 1.0
        faults.slow_s = 0.01

    def _fate_at_r2(self, request: Request) -> Fate:
        return self._r2_fates.of(r2_name(request, self._numbers))

    def _fate_at_webhook(self, request: Request) -> Fate:
        said = json.loads(request.body)
        job_id = said["jobId"]
        if job_id in self._deaf:
            return Fate("drop")
        return self._webhook_fates.of(f"{self._numbers[job_id]}/{said['type']}")

    # --- clients

    def play(self, *, clients: int, timeout_s: float) -> None:
        """Have so many clients at once see one job after another to its end."""
        deadline = time.monotonic() + timeout_s
        with ThreadPoolExecutor(clients, thread_name_prefix="client") as pool:
            for done in [pool.submit(self._see_through, wish, deadline) for wish in self.wishes]:
                done.result()

    def _see_through(self, wish: Wish, deadline: float) -> None:
        if wish.number in self._outages:
            self.modal.faults.force("unavailable", 10)
        handle = self._submit(wish)
        if wish.cancel_after_s is not None:
            threading.Event().wait(wish.cancel_after_s)
            handle.cancel()
        handle.wait(timeout=max(0.1, deadline - time.monotonic()))

    def _submit(self, wish: Wish) -> JobHandle:
        """Submit, again with the same key where the audio could not be stored."""
        audio: bytes | Path = wish.sound
        if wish.from_file:
            audio = self._folder / f"{wish.number}.wav"
            audio.write_bytes(wish.sound)
        params = {"size": wish.size, "seconds": wish.seconds, "broken": wish.broken_scene}
        while True:
            with suppress(StorageError):
                return self.service.submit(
                    audio,
                    scene=SCENE,
                    params=params,
                    output=Output(width=64, height=36),
                    limits=LIMITS,
                    idempotency_key=wish.key,
                    parallel=wish.parallel,
                )

    # --- afterwards

    def settle(self, *, timeout_s: float) -> None:
        """Wait, with all faults still on, until nothing runs and nothing is owed; then let everything pass.

        Calls whose ids nobody ever learned are out of reach until the URLs of their orders have ended, and attempts
        that were run twice are left alone for a while: the store's clock goes on by so much when nothing else is left.
        """
        deadline = time.monotonic() + timeout_s
        self._wait_while(lambda: self._running() or self._owing(reachable=True), deadline)
        self._ahead += LIMITS.total_timeout + timedelta(minutes=12)
        self._wait_while(lambda: self._running() or self._owing(), deadline)
        self.to_r2.calm = self.to_webhook.calm = True
        self.modal.faults.clear()
        self._r2.throttle(on=False)

    def _wait_while(self, found: Callable[[], object], deadline: float) -> None:
        while found() and time.monotonic() < deadline:
            threading.Event().wait(0.2)

    def _running(self) -> list[str]:
        return [f"call {call.id} is {call.status}: {call}" for call in self.modal.calls if _goes_on(call)]

    def _owing(self, *, reachable: bool = False) -> list[str]:
        """Return the jobs that owe clean-up; only those that can do it now, if asked."""
        jobs = [self.store.get(wish.id) for wish in self.wishes]
        return [
            f"job {self._numbers[job.id]} owes clean-up: {_history(job)}"
            for job in jobs
            if ((job.owes_clean_up or job.owes_pieces) and not reachable)
            or job.audio_clean_up is CleanUp.OWED
            or any(a.clean_up is CleanUp.OWED and a.call_id is not None and len(a.runs) < 2 for a in job.attempts)
        ]

    def problems(self) -> list[str]:
        """Return everything that is not as it should be, a line each."""
        found = self._running() + self._owing()
        objects = {info.key: info.size for info in self.storage.list("")}
        for wish in self.wishes:
            job = self.store.get(wish.id)
            found += [f"job {wish.number}: {problem}" for problem in self._problems_of(wish, job, objects)]
            objects = {key: size for key, size in objects.items() if not key.startswith(prefix_of(job))}
        found += [f"an object of no job: {key}" for key in objects]
        return found

    def _problems_of(self, wish: Wish, job: Job, objects: Mapping[str, int]) -> Iterator[str]:
        if not self._ended_rightly(wish, job):
            yield f"ended wrongly: {job.status}, {job.error}; {wish}; {_history(job)}"
        if any(job.helpers_to_stop(attempt) for attempt in job.attempts):
            yield f"helpers were not stopped: {_history(job)}"
        if len(job.attempts) > LIMITS.max_attempts:
            yield f"{len(job.attempts)} attempts"
        audio = job.audio or job.request.audio
        expected = {audio.key} if isinstance(audio, StoredAudio) else set()
        if job.artifact is not None and job.attempt is not None and job.status is JobStatus.COMPLETE:
            assert job.attempt.result_key is not None
            expected |= {job.artifact.key, job.attempt.result_key}
            if not job.artifact.key.startswith(attempt_prefix(prefix_of(job), job.attempt.token)):
                yield f"its video is of another attempt: {_history(job)}"
            yield from self._problems_of_video(wish, job)
        standing = {key for key in objects if key.startswith(prefix_of(job))}
        for key in sorted(standing - expected):
            yield f"an object too many: {key}; {job.status}; {_history(job)}"
        for key in sorted(expected - standing):
            yield f"an object too few: {key}; {_history(job)}"

    def _ended_rightly(self, wish: Wish, job: Job) -> bool:
        if job.status is JobStatus.CANCELLED:
            return wish.cancel_after_s is not None
        if wish.fault is not None:
            return (
                job.status is JobStatus.FAILED
                and job.error is not None
                and ((job.error.code, job.error.fault) == wish.fault)
            )
        return job.status is JobStatus.COMPLETE and job.progress == 100

    def _problems_of_video(self, wish: Wish, job: Job) -> Iterator[str]:
        artifact = job.artifact
        assert artifact is not None
        answer = httpx.get(self.service.download_url(job.id), timeout=30, trust_env=False)
        right = video_of(wish.sound, wish.size)
        if answer.status_code != 200 or answer.content != right:
            yield f"its video is not the right one: {answer.status_code}, {len(answer.content)} bytes; {_history(job)}"
        found = self.storage.stat(artifact.key)
        if (found.size, found.etag) != (len(right), artifact.etag) or artifact.bytes != len(right):
            yield f"its artifact is another one than {found}: {artifact}"
        assert job.attempt is not None
        assert job.attempt.result_key is not None
        with self.storage.open(job.attempt.result_key) as file:
            result = Completed.model_validate_json(file.read()).artifact
        if (result.key, result.bytes, result.etag) != (artifact.key, artifact.bytes, artifact.etag):
            yield f"its result object tells of another video: {result}"

    # --- what can be told of it

    def summary(self) -> dict[str, Any]:
        """Return what happened, in numbers."""
        jobs = [self.store.get(wish.id) for wish in self.wishes]
        calls = self.modal.calls
        return {
            "seed": self.dice.seed,
            "jobs": dict(Counter(str(job.status) for job in jobs)),
            "attempts": dict(sorted(Counter(len(job.attempts) for job in jobs).items())),
            "errors of attempts": dict(Counter(a.error.code for job in jobs for a in job.attempts if a.error)),
            "one of each": {a.error.code: a.error.message for job in jobs for a in job.attempts if a.error},
            "helpers": dict(Counter(str(helper.state) for job in jobs for a in job.attempts for helper in a.helpers)),
            "segments of others": sum(job.artifact.segments_taken for job in jobs if job.artifact is not None),
            "calls": dict(Counter(str(call.status) for call in calls)),
            "starts": dict(Counter(start.kind for call in calls for start in call.starts)),
            "containers": len(self.modal.containers),
            "R2": dict(self.to_r2.met),
            "webhook": dict(self.to_webhook.met),
        }

    def logged(self, ours: str) -> list[str]:
        """Return what must not stand in a log: a secret, or a run that broke.

        Args:
            ours: What was logged in this process.
        """
        logs = {"this process": ours, **{container.id: container.log for container in self.modal.containers}}
        never = ("X-Amz-Signature", SECRET.removeprefix("whsec_"), "the run broke")
        return [f"{words!r} stands in the log of {who}" for who, log in logs.items() for words in never if words in log]

    def left_over(self) -> list[str]:
        """Return the processes of containers that are neither one that is alive nor its supervisor (on Linux).

        Containers that start or end just now are looked at again: what is left behind stays.
        """
        if not Path("/proc/self/environ").exists():
            return []
        deadline = time.monotonic() + _COME_AND_GO_S
        while (found := self._left_over()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found

    def _left_over(self) -> list[str]:
        alive = {container.pid for container in self.modal.containers if container.alive}
        marked = dict(_processes_with(f"{MARK}={self._prefix}"))
        found = [f"container {pid} cannot be told by its mark" for pid in alive - set(marked)]
        known = alive | {_parent_of(pid) for pid in alive}
        return found + [f"process {pid} was left behind: {marked[pid]}" for pid in set(marked) - known]


_R2_SHARES: Final[Mapping[How, float]] = {
    "drop": 0.02,
    "lose answer": 0.02,
    "cut answer": 0.02,
    "500": 0.02,
    "503": 0.02,
    "slow": 0.02,
}
_WEBHOOK_SHARES: Final[Mapping[How, float]] = {
    "drop": 0.06,
    "lose answer": 0.05,
    "500": 0.05,
    "503": 0.02,
    "slow": 0.05,
    "double": 0.05,
    "late": 0.05,
}


def _goes_on(call: ModalCall) -> bool:
    return bool(call.running) or not call.status.ended


def _processes_with(variable: str) -> Iterator[tuple[int, str]]:
    """Find the processes that have a variable in their environment; give their ids and command lines."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if variable.encode() in (process / "environ").read_bytes().split(b"\0"):
                yield (
                    int(process.name),
                    (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"),
                )


def _parent_of(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _history(job: Job) -> str:
    """Tell of a job's attempts, for people."""
    told = []
    for a in job.attempts:
        times = " ".join(f"{stage}@{at:%M:%S.%f}"[:-4] for stage, at in a.stage_times.items())
        ended = f"{a.ended_at:%M:%S.%f}"[:-4] if a.ended_at else "never"
        error = f"{a.error.code}: {a.error.message}" if a.error else None
        told.append(
            f"attempt {a.number} {a.token[:6]} call {a.call_id} runs {len(a.runs)} {times} ended {ended} "
            f"stopped={a.stopped} clean_up={a.clean_up} error={error}"
        )
    return f"{job.status}/{job.stage} " + "; ".join(told)
