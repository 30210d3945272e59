"""Does an order say which devices may draw it?"""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from renderdispatch import RenderService
from renderdispatch.backends.http import HttpBackend
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.messages import Limits, RenderOrder, RenderStats
from renderdispatch.protocols import Report, SupportsDeviceClass
from renderdispatch.render.device import declared_class, device_class
from renderdispatch.render.music import compose
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import FakeRenderer


class Noting(FakeRenderer):
    """Notes the class that each order declares."""

    declared: ClassVar[list[str | None]] = []

    def render(self, order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        self.declared.append(order.device_class)
        return super().render(order, audio, output, report)


class Elsewhere(InlineBackend):
    """Declares a device that this machine is not."""

    device_class: Any = "one-gpu"


def test_the_order_carries_what_the_backend_declares(tmp_path: Path) -> None:
    """The backend's class reaches the renderer."""
    backend = Elsewhere({"fake": Noting()})
    with RenderService(MemoryJobStore(), MemoryStorage(), backend, owned=[backend]) as service:
        service.submit(b"song", scene="fake").wait(timeout=timedelta(seconds=30))
    assert Noting.declared == ["one-gpu"]


def test_backends_declare_what_they_are_sure_of() -> None:
    """Those of this machine know it, a service behind HTTP is what it is said to be, or unknown."""
    inline, local = InlineBackend(), LocalGpuBackend()
    unknown, known = (HttpBackend("https://gpu.example.com", device_class=name) for name in (None, "cpu-x86-64"))
    backends = inline, local, unknown, known
    try:
        assert all(isinstance(backend, SupportsDeviceClass) for backend in backends)
        found = [backend.device_class for backend in backends]
    finally:
        for backend in backends:
            backend.close()
    assert found == [device_class(), declared_class(), None, "cpu-x86-64"]


def test_a_wrong_declaration_fails_the_job(song: Path) -> None:
    """The job ends with ``device.mismatch``, and with both classes in its message."""
    backend = Elsewhere()
    with RenderService(MemoryJobStore(), MemoryStorage(), backend, owned=[backend]) as service:
        handle = service.submit(song, scene="bars", limits=Limits(max_attempts=1))
        error = handle.wait(timeout=timedelta(seconds=30)).error
    assert error is not None
    assert error.code == "device.mismatch"
    assert re.search(r"'one-gpu'.*'cpu-", error.message)


@pytest.fixture
def song(tmp_path: Path) -> Path:
    compose(tmp_path / "song.wav", seconds=1)
    return tmp_path / "song.wav"
