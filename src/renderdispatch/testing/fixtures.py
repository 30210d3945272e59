"""Pytest fixtures for tests of applications: a whole deployment on this machine, which fails as you tell it to.

Name this module in your ``conftest.py``::

    pytest_plugins = ["renderdispatch.testing.fixtures"]

``loopback_modal`` is a Modal control plane, ``local_r2`` is Cloudflare R2, ``webhook_server`` receives webhooks. The
first two need the extras ``modal`` and ``r2``; the local R2 needs Node. A test is skipped when something is missing;
when the variable ``CI`` is set, it fails instead.
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
    """Return the arguments of `LoopbackModal`. Override this fixture to choose them."""
    return {}


@pytest.fixture
def loopback_modal(loopback_modal_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackModal]:
    """Run a Modal control plane for this test; every Modal client of this process uses it."""
    try:
        from renderdispatch.testing.modal import LoopbackModal
    except ConfigurationError as error:
        _skip(error)
    with LoopbackModal(**loopback_modal_options) as server:
        for name in [name for name in os.environ if name.startswith("MODAL_")]:
            monkeypatch.delenv(name)
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def local_r2_server() -> Iterator[LocalR2]:
    """Run a local R2 with one bucket, ``renders``. Override this fixture to choose others."""
    try:
        from renderdispatch.testing.local_r2 import local_r2 as running

        with running() as server:
            yield server
    except ConfigurationError as error:
        _skip(error)


@pytest.fixture
def local_r2(local_r2_server: LocalR2) -> Iterator[LocalR2]:
    """Return the local R2 with empty buckets and no faults."""
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
    """Run a webhook server for this test. Pass your service to it: ``webhook_server.serve(service)``."""
    with _webhook_server() as server:
        yield server


def _skip(error: ConfigurationError) -> None:
    """Skip the test, or fail it in CI, where a skip would hide that it never runs."""
    if os.environ.get("CI"):
        pytest.fail(str(error))
    pytest.skip(str(error))
