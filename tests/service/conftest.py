"""Services to test, and the parts that misbehave."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from renderdispatch import RenderService
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.runner import Pace
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import FakeRenderer, registered_scenes


@pytest.fixture
def song(tmp_path: Path) -> Path:
    path = tmp_path / "song.wav"
    path.write_bytes(b"RIFF, a song")
    return path


@pytest.fixture
def memory_service() -> Iterator[RenderService]:
    """A service that lives in this process alone."""
    backend = InlineBackend({"fake": FakeRenderer()}, pace=Pace(progress_s=0.02, backoff_s=0.02))
    with RenderService(MemoryJobStore(), MemoryStorage(), backend, owned=[backend]) as service:
        yield service


@pytest.fixture
def embedded_service(tmp_path: Path) -> Iterator[RenderService]:
    """The embedded default: SQLite, a folder, render processes."""
    backend = LocalGpuBackend()
    store = SqlJobStore(f"sqlite:///{tmp_path / 'jobs.db'}")
    with registered_scenes(tmp_path / "scenes"):
        storage = FsspecStorage(tmp_path / "objects")
        with RenderService(store, storage, backend, lease=timedelta(seconds=3), owned=[backend, store]) as service:
            yield service


@pytest.fixture(params=["memory", "embedded"])
def service(request: pytest.FixtureRequest) -> RenderService:
    found: RenderService = request.getfixturevalue(f"{request.param}_service")
    return found
