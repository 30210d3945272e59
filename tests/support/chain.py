"""What stands between a client and its video, when everything is real?

A `Chain` runs ``examples/fastapi_app`` as its users do: a uvicorn process that is configured by environment variables
alone. Which Modal and which R2 these name is the caller's choice: the loopback Modal and the local R2 (`doubles`), or
real accounts. Between the containers and the application's webhook stands a `WebhookTap`, which hands everything on,
keeps what it saw, and refuses what a test wants refused.

A test submits, polls and downloads as any client would (`submit`, `poll`, `wait`, `download`), looks at the record
where the wire does not say enough (`job`), and may stop, kill and restart the application (`app`).
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
from attrs import frozen

from renderdispatch.jobs import Job
from renderdispatch.messages import RENDER_EVENT, Completed, Failed, Limits, RenderEvent
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing.local_r2 import LocalR2
from renderdispatch.testing.modal import LoopbackModal
from renderdispatch.wiring import Settings, from_settings, open_storage
from tests.support.ports import ReservedPort

EXAMPLE: Final = Path(__file__).parents[2] / "examples" / "fastapi_app"
PATIENCE_S: Final = 60.0
"""How long a test waits for what should come at once: machines are slow at times."""

ENDED: Final = frozenset({"complete", "failed", "cancelled"})

_PREFIX: Final = "RENDERDISPATCH_"
_INHERITED: Final = ("PATH", "LANG", "TMPDIR", "VIRTUAL_ENV", "SSL_CERT_FILE")
_POLL_S: Final = 0.02

Answer = dict[str, Any]
"""What a poll answers, as JSON."""

StartChain = Callable[..., "Chain"]
"""``start_chain(webhook=False, RENDERDISPATCH_LEASE_S="5")``: options of `Chain`, and variables of the application."""


class Chain:
    """The application in a process of its own, a tap on its webhook, and a client. Use it as a context manager.

    Args:
        variables: The application's environment, but for its home and its webhook: see `doubles`.
        home: Where its database lies, and its log, ``app.log``.
        webhook: Whether it has a webhook at all.
        webhook_url: What containers call the tap; None is its address on this machine.
        webhook_port: Where the tap listens; 0 is any.
        patience_s: How long `wait` waits.
        poll_s: How long the client pauses between two polls.
    """

    def __init__(
        self,
        variables: Mapping[str, str],
        *,
        home: Path,
        webhook: bool = True,
        webhook_url: str | None = None,
        webhook_port: int = 0,
        patience_s: float = PATIENCE_S,
        poll_s: float = _POLL_S,
    ) -> None:
        self.home = home
        self.tap = WebhookTap(webhook_port) if webhook else None
        self.secret = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
        self.patience_s = patience_s
        self._poll_s = poll_s
        self.variables = {**variables, "RENDERDISPATCH_HOME": str(home), "RENDERDISPATCH_SECRETS": self.secret}
        if self.tap is not None:
            self.variables["RENDERDISPATCH_WEBHOOK_URL"] = webhook_url or self.tap.url
        self.app = AppProcess(self.variables, home=home)
        if self.tap is not None:
            self.tap.forward_to = f"{self.app.url}/webhook"
        self.client = httpx.Client(base_url=self.app.url, timeout=PATIENCE_S, trust_env=False)
        self._store: SqlJobStore | None = None

    def __enter__(self) -> Self:
        try:
            if self.tap is not None:
                self.tap.start()
            self.app.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Stop everything; what the application logged of its own bugs fails a test that had passed."""
        self.close()
        if kind is None:
            assert "Traceback" not in self.app.log, self.app.log[-5000:]

    def close(self) -> None:
        """Stop the application, the tap and the client. A second call does nothing."""
        self.app.close()
        self.client.close()
        if self.tap is not None:
            self.tap.close()
        if self._store is not None:
            self._store.close()
            self._store = None

    # --- what a client does

    def post(self, audio: Path, *, key: str | None = None, **form: str) -> httpx.Response:
        """Submit and return the answer, whatever it says; ``form`` holds the fields scene, output, params, duration."""
        headers = {} if key is None else {"idempotency-key": key}
        with audio.open("rb") as file:
            return self.client.post("/jobs", files={"audio": (audio.name, file)}, data=form, headers=headers)

    def submit(
        self,
        audio: Path,
        *,
        key: str | None = None,
        duration: float = 1,
        output: str = "flat-1080p-square",
        **form: str,
    ) -> str:
        """Submit and return the job's id: a second of video unless told otherwise."""
        answer = self.post(audio, key=key, duration=str(duration), output=output, **form)
        assert answer.status_code == 202, answer.text
        job_id: str = answer.json()["jobId"]
        return job_id

    def submit_with(
        self,
        limits: Limits,
        audio: Path,
        *,
        duration: float = 1,
        output: str = "flat-1080p-square",
        variables: Mapping[str, str] | None = None,
        **options: Any,
    ) -> str:
        """Submit with limits, which the example's form does not offer: as another process of the same application.

        Args:
            variables: What that process's environment has instead of the application's.
            options: Of `RenderService.submit`.
        """
        with from_settings(settings_of({**self.variables, **(variables or {})}), worker=False) as service:
            sound = audio.read_bytes()
            return service.submit(sound, duration=duration, output=output, limits=limits, **options).id

    def poll(self, job_id: str) -> Answer:
        """Ask how the job stands."""
        answer = self.client.get(f"/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        found: Answer = answer.json()
        return found

    def polls(self, job_id: str, *, timeout_s: float | None = None) -> Iterator[Answer]:
        """Poll again and again until the job has ended; the last answer says so.

        Raises:
            AssertionError: It did not end in time.
        """
        deadline = time.monotonic() + (timeout_s or self.patience_s)
        while True:
            found = self.poll(job_id)
            yield found
            if found["status"] in ENDED:
                return
            assert time.monotonic() < deadline, f"did not end in time: {found}\n{self.app.log[-5000:]}"
            time.sleep(self._poll_s)

    def wait(
        self, job_id: str, until: Callable[[Answer], bool] = lambda _: False, *, timeout_s: float | None = None
    ) -> Answer:
        """Poll until ``until`` is true of the answer, or the job has ended; return that answer.

        Raises:
            AssertionError: Neither came in time.
        """
        found: Answer = {}
        for found in self.polls(job_id, timeout_s=timeout_s):
            if until(found):
                break
        return found

    def cancel(self, job_id: str) -> Answer:
        """Ask for the job's end, and return what is answered."""
        answer = self.client.delete(f"/jobs/{job_id}")
        assert answer.status_code in {200, 202}, answer.text
        found: Answer = answer.json()
        return found

    def download(self, url: str, into: Path) -> Path:
        """Fetch a URL as a plain client does, without any credential, and return the file."""
        with httpx.stream("GET", url, timeout=PATIENCE_S, trust_env=not is_loopback(url)) as answer:
            assert answer.status_code == 200, answer.read()
            with into.open("wb") as file:
                for chunk in answer.iter_bytes():
                    file.write(chunk)
        return into

    # --- what a test sees

    @property
    def settings(self) -> Settings:
        """The application's own settings."""
        return settings_of(self.variables)

    def job(self, job_id: str) -> Job:
        """Return the record."""
        if self._store is None:
            self._store = SqlJobStore(f"sqlite:///{self.home / 'jobs.db'}")
        return self._store.get(job_id)

    def objects(self, prefix: str = "") -> dict[str, int]:
        """Return the size of each object in the bucket, by key."""
        storage = open_storage(self.settings)
        try:
            return {info.key: info.size for info in storage.list(prefix)}
        finally:
            storage.close()

    def events(self, job_id: str) -> list[RenderEvent]:
        """Return what the GPU side reported by webhook and the application took, in order."""
        assert self.tap is not None
        return [seen.event for seen in self.tap.deliveries if seen.status == 200 and seen.event.job_id == job_id]

    def forget(self) -> None:
        """End every job that has not ended, for good, and forget what the tap saw: the next test begins afresh."""
        if self.tap is not None:
            self.tap.gate = lambda _event: None
        if self.app.running:
            with from_settings(self.settings, worker=False) as service:
                for job in service.jobs().items:
                    if not job.ended:
                        service.cancel(job.id)
                        self.wait(job.id)
        if self.tap is not None:
            self.tap.deliveries.clear()


class AppProcess:
    """The example application under uvicorn; it keeps its port over restarts.

    Args:
        variables: What its environment holds, besides the little that a process needs.
        home: Where its log goes.
    """

    def __init__(self, variables: Mapping[str, str], *, home: Path) -> None:
        self._variables = variables
        self._log = home / "app.log"
        self._port = ReservedPort()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port.number}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """What it printed."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self) -> None:
        """Start it, and return when it answers."""
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        command = [sys.executable, "-m", "uvicorn", "app:app", "--app-dir", str(EXAMPLE)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--port", str(self._port.number), "--log-level", "warning"],
                cwd=self._log.parent,
                env={**inherited, "HOME": str(self._log.parent), **self._variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + PATIENCE_S
        while not self._listens():
            assert self.running, f"the application did not start: {self.log}"
            assert time.monotonic() < deadline, "the application does not answer"
            time.sleep(0.02)

    def stop(self) -> None:
        """End it as a deployment does, by SIGTERM. A second call does nothing."""
        if self.running:
            assert self._process is not None
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE_S)
        self.kill()

    def kill(self) -> None:
        """End it as a power cut does, by SIGKILL. A second call does nothing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Stop it for good, and give its port back. A second call does nothing."""
        self.stop()
        self._port.close()

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port.number), timeout=1):
            return True
        return False


@frozen(kw_only=True)
class Delivery:
    """A webhook that passed the tap.

    Args:
        headers: As they came.
        body: As it came.
        status: What was answered.
        forwarded: Whether the application saw it.
        at: When it came.
    """

    headers: tuple[tuple[str, str], ...]
    body: bytes
    status: int
    forwarded: bool
    at: datetime

    @property
    def event(self) -> RenderEvent:
        """What it says, verified or not."""
        return RENDER_EVENT.validate_json(self.body)

    @property
    def final(self) -> bool:
        """Whether it says that the run has ended."""
        return isinstance(self.event, Completed | Failed)


class WebhookTap:
    """Stands where containers report, hands everything to the application, and keeps what it saw.

    Set ``gate`` to have it refuse: it gets each event, and returns the status that is answered in the application's
    stead, or None to let it pass. ``tap.gate = lambda event: 503`` blocks every webhook.

    Args:
        port: Where it listens; 0 is any.
    """

    def __init__(self, port: int = 0) -> None:
        self.deliveries: list[Delivery] = []
        self.gate: Callable[[RenderEvent], int | None] = lambda _event: None
        self.forward_to = ""
        self._client = httpx.Client(timeout=30, trust_env=False)
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="webhook-tap", daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}/webhook"

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening. A second call does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        self._client.close()

    def _take(self, headers: tuple[tuple[str, str], ...], body: bytes) -> httpx.Response:
        came = datetime.now(UTC)
        status = self._gate(body)
        if status is not None:
            answer = httpx.Response(status)
        else:
            kept = [(name, value) for name, value in headers if name.lower() not in _HOP_BY_HOP]
            try:
                answer = self._client.post(self.forward_to, headers=kept, content=body)
            except httpx.HTTPError:  # the application is down
                answer = httpx.Response(502)
        self.deliveries.append(
            Delivery(
                headers=headers,
                body=body,
                status=answer.status_code,
                forwarded=status is None,
                at=came,
            )
        )
        return answer

    def _gate(self, body: bytes) -> int | None:
        try:
            return self.gate(RENDER_EVENT.validate_json(body))
        except ValueError:  # no event at all: the application shall say so
            return None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        tap = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                answer = tap._take(tuple(self.headers.items()), body)
                with contextlib.suppress(OSError):  # whoever asked may be gone
                    self.send_response(answer.status_code)
                    for name in ("content-type", "retry-after"):
                        if name in answer.headers:
                            self.send_header(name, answer.headers[name])
                    self.send_header("content-length", str(len(answer.content)))
                    self.end_headers()
                    self.wfile.write(answer.content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


_HOP_BY_HOP: Final = frozenset({"host", "connection", "content-length", "transfer-encoding", "accept-encoding"})


def doubles(modal: LoopbackModal, r2: LocalR2) -> dict[str, str]:
    """Return the variables of an application that uses the loopback Modal and the local R2."""
    return {
        **modal.environment(),
        "RENDERDISPATCH_BACKENDS": "modal",
        "RENDERDISPATCH_STORAGE": f"r2://{r2.buckets[0]}",
        "RENDERDISPATCH_R2_ENDPOINT_URL": r2.endpoint_url,
        "RENDERDISPATCH_R2_ACCESS_KEY_ID": r2.access_key_id,
        "RENDERDISPATCH_R2_SECRET_ACCESS_KEY": r2.secret_access_key,
    }


def settings_of(variables: Mapping[str, str]) -> Settings:
    """Return what an application reads in an environment that has these variables."""
    ours = {name.removeprefix(_PREFIX).lower(): value for name, value in variables.items() if name.startswith(_PREFIX)}
    return Settings.model_validate(ours)


def is_loopback(url: str) -> bool:
    """Return whether a URL stays on this machine, and needs no proxy."""
    return httpx.URL(url).host == "127.0.0.1"
