"""What the tests of GLSL share: an open device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from renderdispatch.render.gl.context import GlDevice, open_device
from tests.support.needs import need_opengl


@pytest.fixture(scope="session")
def opened() -> Iterator[GlDevice]:
    """Open a device once for all tests of a process."""
    need_opengl()
    with open_device() as device:
        yield device


@pytest.fixture
def device(opened: GlDevice) -> Iterator[GlDevice]:
    """Return a device whose context is current: another test may have opened its own."""
    with opened.context:
        yield opened
