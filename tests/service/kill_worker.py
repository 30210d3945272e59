"""What the kill test runs and kills: a service on a home, with a short lease.

``python kill_worker.py HOME DATABASE SONG FPS``: say ``UP`` once the service works, submit the song under one idempotency key,
say ``ID <job id>``, and work on until the job ends; then say ``END <status>``.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

from renderdispatch import Output, RenderService
from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.stores.sql import SqlJobStore

LEASE_S = 3.0


def main(home: Path, database: str, song: Path, fps: str) -> None:
    """Work on until the job has ended."""
    store = SqlJobStore(database)
    service = RenderService(store, FsspecStorage(home / "objects"), LocalGpuBackend(), lease=timedelta(seconds=LEASE_S))
    with service:
        print("UP", flush=True)
        output = Output(width=64, height=36, fps=fps)  # type: ignore[arg-type]
        handle = service.submit(song, scene="bars", output=output, idempotency_key=song.name)
        print("ID", handle.id, flush=True)
        print("END", handle.wait(timeout=100).status, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4])
