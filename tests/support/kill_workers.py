"""Worker processes that are cheap to start and to kill: forks of one process that has imported everything.

``python -m tests.support.kill_workers`` is that process. It reads a command from each line of its input and answers each
with a line: ``start {...}`` forks a worker and answers its process id, ``wait PID`` answers how it ended, and ``kill
PID`` kills it first. Workers end with the process that forked them. `Workers` is its client.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from attrs import asdict, field, frozen

from renderdispatch.errors import JobNotFoundError
from renderdispatch.messages import Output
from renderdispatch.protocols import Locality
from renderdispatch.service import RenderService
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.storage.signing import SignedUrls
from renderdispatch.testing import eventually
from renderdispatch.testing.renderers import FAKE_SCENE
from tests.support.far_renders import receiving
from tests.support.http_services import SECRET, TOKEN
from tests.support.kill_points import Death, KillingBackend, KillingStore, When

WEBHOOK_SECRET: Final = "whsec_" + "a2lsbCBwb2ludHMg" * 3
LEASE: Final = timedelta(seconds=1)


@frozen(kw_only=True)
class Errand:
    """What a worker does.

    Args:
        store: The URL of its job store.
        folder: Of the objects.
        objects_url: Where others read and write them.
        backend_url: The service that renders.
        port: Where it takes webhooks.
        song: What it submits, under one idempotency key; None: nothing.
        params: The scene's.
        cancel: Whether it cancels the job once that renders.
        delete: Whether it deletes the job once that has ended.
        point: Where it dies; empty: nowhere.
        when: Before the point or after it.
    """

    store: str
    folder: str
    objects_url: str
    backend_url: str
    port: int
    song: str | None = None
    params: Mapping[str, Any] = field(factory=dict)
    cancel: bool = False
    delete: bool = False
    point: str = ""
    when: When = "before"


def work(errand: Errand) -> None:
    """Run a service until the process is killed."""
    death = Death(errand.point, errand.when)
    urls = SignedUrls(errand.objects_url, SECRET, locality=Locality.WORLD)
    service = RenderService(
        KillingStore(errand.store, death),
        FsspecStorage(Path(errand.folder), urls=urls),
        KillingBackend(errand.backend_url, TOKEN, death),
        secrets=WEBHOOK_SECRET,
        webhook_url=f"http://127.0.0.1:{errand.port}/webhooks",
        lease=LEASE,
    )
    with service, receiving(service, errand.port):
        if errand.song is not None:
            _submit(service, errand)
        signal.pause()


def _submit(service: RenderService, errand: Errand) -> None:
    assert errand.song is not None
    song, output = Path(errand.song), Output(width=64, height=36)
    handle = service.submit(song, scene=FAKE_SCENE, params=errand.params, output=output, idempotency_key=song.name)
    with suppress(JobNotFoundError):
        if errand.cancel:
            eventually(lambda: handle.job.progress >= 35 or handle.job.ended)
            handle.cancel()
        if errand.delete:
            handle.wait()
            eventually(lambda: not handle.job.owes_clean_up)
            service.delete(handle.id)


class Workers:
    """The client of the process that forks workers."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.support.kill_workers"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, errand: Errand) -> int:
        """Start a worker and return its process id."""
        return int(self._ask(f"start {json.dumps(asdict(errand))}"))

    def wait(self, pid: int) -> int:
        """Wait for a worker's end and return how it ended, as `os.waitstatus_to_exitcode` does."""
        return int(self._ask(f"wait {pid}"))

    def kill(self, pid: int) -> None:
        """Kill a worker."""
        self._ask(f"kill {pid}")

    def close(self) -> None:
        """End the process, and every worker with it."""
        self._process.communicate(timeout=60)

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that forks workers has ended"
        return answer


def main() -> None:
    """Fork workers as the input says."""
    logging.basicConfig(level=logging.ERROR)
    lifeline, held = os.pipe()
    for line in sys.stdin:
        verb, _, rest = line.strip().partition(" ")
        if verb == "start":
            print(_fork(Errand(**json.loads(rest)), lifeline, held), flush=True)
            continue
        if verb == "kill":
            os.kill(int(rest), signal.SIGKILL)
        print(os.waitstatus_to_exitcode(os.waitpid(int(rest), 0)[1]), flush=True)


def _fork(errand: Errand, lifeline: int, held: int) -> int:
    """Fork a worker that does not hold the other end of its lifeline."""
    if (pid := os.fork()) > 0:
        return pid
    os.close(held)
    try:
        threading.Thread(target=lambda: (os.read(lifeline, 1), os._exit(1)), daemon=True).start()
        work(errand)
    except BaseException:
        logging.getLogger(__name__).exception("a worker failed")
    finally:
        os._exit(1)


if __name__ == "__main__":
    main()
