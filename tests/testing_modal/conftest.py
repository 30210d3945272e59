"""A loopback Modal with the example app, one a module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from renderdispatch.testing.modal import LoopbackModal

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def deployed() -> Iterator[LoopbackModal]:
    """A server with the example deployed."""
    with LoopbackModal(container_env={"GIVEN": "yes"}) as server:
        server.secrets["keys"] = {"NAMED": "two"}
        server.deploy("modal_example", cwd=HERE)
        yield server


@pytest.fixture
def server(deployed: LoopbackModal) -> Iterator[LoopbackModal]:
    """The server, with every fault off."""
    deployed.faults.clear()
    yield deployed
    deployed.faults.clear()


@pytest.fixture(scope="module")
def fast() -> Iterator[LoopbackModal]:
    """A server with the example deployed, where a second is six of Modal's: each grace of 30 s takes five.

    So long a container may be held up, and still answers one signal before the next one comes.
    """
    with LoopbackModal(clock_rate=6) as server:
        server.secrets["keys"] = {}
        server.deploy("modal_example", cwd=HERE)
        yield server
