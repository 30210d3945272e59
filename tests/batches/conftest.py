"""Services whose jobs are submitted many at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from renderdispatch import RenderService
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.protocols import JobStore
from renderdispatch.runner import Pace
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import FakeRenderer


@pytest.fixture
def song(tmp_path: Path) -> Path:
    path = tmp_path / "song.wav"
    path.write_bytes(b"RIFF, a song")
    return path


@pytest.fixture
def backend() -> Iterator[InlineBackend]:
    backend = InlineBackend({"fake": FakeRenderer()}, pace=Pace(progress_s=0.02, backoff_s=0.02))
    yield backend
    backend.close()


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobStore]:
    store: JobStore = MemoryJobStore() if request.param == "memory" else SqlJobStore(tmp_path / "jobs.db")
    yield store
    store.close()


@pytest.fixture
def service(store: JobStore, storage: MemoryStorage, backend: InlineBackend) -> Iterator[RenderService]:
    """A service that renders only when it is told to."""
    with RenderService(store, storage, backend, worker=False) as service:
        yield service


@pytest.fixture
def rendering(store: JobStore, storage: MemoryStorage, backend: InlineBackend) -> Iterator[RenderService]:
    """A service with a worker."""
    with RenderService(store, storage, backend) as service:
        yield service
