"""A service on simulated GPUs, in a process of its own: ``python -m tests.support.gpu_service DATABASE OBJECTS GPUS``.

It says ``UP`` once it works, and works until its stdin ends.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

from renderdispatch import RenderService
from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.plumbing.gpus import Gpu
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.stores.sql import SqlJobStore

SCENES = {name: f"tests.support.gpu_scenes:{name}" for name in ("OnCpu", "OnGpu")}


def service(database: Path, objects: Path, gpus: int, *, worker: bool = True) -> RenderService:
    """Return a service whose backend has so many simulated GPUs."""
    backend = LocalGpuBackend(gpus=simulated(gpus), renderers=SCENES)
    store = SqlJobStore(f"sqlite:///{database}")
    return RenderService(store, FsspecStorage(objects), backend, worker=worker, lease=timedelta(seconds=3))


def simulated(number: int) -> list[Gpu]:
    """Return GPUs that do not exist."""
    return [Gpu(uuid=f"GPU-simulated-{index}", index=index) for index in range(number)]


if __name__ == "__main__":
    with service(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])):
        print("UP", flush=True)
        sys.stdin.read()
