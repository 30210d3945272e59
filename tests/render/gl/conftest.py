"""What the tests of GLSL share: an open device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from renderdispatch.render.gl.context import GlDevice, open_device
from tests.support.needs import need_opengl


@pytest.fixture(scope="session")
def device() -> Iterator[GlDevice]:
    """Open a device once for all tests of a process. Another test may make its own current meanwhile."""
    need_opengl()
    with open_device() as opened:
        yield opened
