"""A service in a process of its own, to be killed: ``python -m tests.support.killed_service DATABASE OBJECTS SLOTS``.

It works until its stdin ends.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Final

from renderdispatch import RenderService
from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.stores.sql import SqlJobStore

SCENES: Final[Mapping[str, str]] = {"counted": "tests.support.counted_frames:counted"}

if __name__ == "__main__":
    backend = LocalGpuBackend(gpus=(), slots=int(sys.argv[3]), renderers=SCENES)
    store, storage = SqlJobStore(sys.argv[1]), FsspecStorage(Path(sys.argv[2]))
    with RenderService(store, storage, backend, lease=timedelta(seconds=1)):
        sys.stdin.read()
