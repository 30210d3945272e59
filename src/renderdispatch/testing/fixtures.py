"""Which fixtures do tests of applications get?

Name this module in your ``conftest.py``::

    pytest_plugins = ["renderdispatch.testing.fixtures"]

Then ``loopback_modal`` is Modal, ``local_r2`` is Cloudflare R2 and ``webhook_server`` receives webhooks: a whole
deployment on this machine, that fails as you tell it to. Each needs the extra of what it stands for (``modal``,
``r2``), and is skipped where that, or Node for the local R2, is missing; where ``CI`` is set it fails instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from renderdispatch.errors import ConfigurationError
from renderdispatch.testing.webhook_server import WebhookServer
from renderdispatch.testing.webhook_server import webhook_server as _webhook_server

if TYPE_CHECKING:
    from renderdispatch.testing.local_r2 import LocalR2
    from renderdispatch.testing.modal import LoopbackModal


@pytest.fixture
def loopback_modal_options() -> dict[str, Any]:
    """What `LoopbackModal` is made with; override this fixture to choose."""
    return {}


@pytest.fixture
def loopback_modal(loopback_modal_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackModal]:
    """A control plane of its own for the test, at which every Modal client of this process is pointed."""
    try:
        from renderdispatch.testing.modal import LoopbackModal
    except ConfigurationError as error:
        _leave(error)
    with LoopbackModal(**loopback_modal_options) as server:
        for name in [name for name in os.environ if name.startswith("MODAL_")]:
            monkeypatch.delenv(name)
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def local_r2_server() -> Iterator[LocalR2]:
    """A local R2 with one bucket, ``renders``; override this fixture to choose others."""
    try:
        from renderdispatch.testing.local_r2 import local_r2 as running

        with running() as server:
            yield server
    except ConfigurationError as error:
        _leave(error)


@pytest.fixture
def local_r2(local_r2_server: LocalR2) -> Iterator[LocalR2]:
    """The local R2, its buckets empty and without faults."""
    local_r2_server.forget()
    yield local_r2_server
    local_r2_server.forget()
    for bucket in local_r2_server.buckets:
        storage = local_r2_server.storage(bucket)
        for info in storage.list(""):
            storage.delete(info.key)
        storage.close()


@pytest.fixture
def webhook_server() -> Iterator[WebhookServer]:
    """A webhook server of its own for the test; give it your service by ``webhook_server.serve(service)``."""
    with _webhook_server() as server:
        yield server


def _leave(error: ConfigurationError) -> None:
    """Skip the test, or fail it where skipping would hide that it never runs."""
    if os.environ.get("CI"):
        pytest.fail(str(error))
    pytest.skip(str(error))
