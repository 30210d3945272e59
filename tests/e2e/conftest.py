"""The whole chain for tests: a loopback Modal with the real deployment, a local R2, the application, a song.

Each test process has one of each, and ``chain`` is cleared before and after every test. A test that needs an
application of its own (other settings, killed, without a webhook) makes it with ``start_chain``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from renderdispatch.errors import ConfigurationError
from renderdispatch.render.music import compose
from renderdispatch.testing.local_r2 import LocalR2, local_r2
from renderdispatch.testing.modal import LoopbackModal
from tests.support.chain import Chain, StartChain, doubles
from tests.support.live import estimate, missing
from tests.support.mishaps import rig, troubled_modal  # noqa: F401 - fixtures

_CACHE = Path(__file__).parents[2] / ".cache" / "miniflare"


@pytest.fixture(scope="session")
def r2_server() -> Iterator[LocalR2]:
    """Cloudflare's own local R2; skips where there is no Node, and fails there in CI."""
    try:
        running = local_r2(cache=_CACHE)
        with running as server:
            yield server
    except ConfigurationError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def modal_server() -> Iterator[LoopbackModal]:
    """The loopback Modal; `renderdispatch.modal_app` was deployed to it by the real ``modal deploy``."""
    with LoopbackModal() as server:
        server.deploy("renderdispatch.modal_app")
        yield server


@pytest.fixture
def modal(modal_server: LoopbackModal) -> Iterator[LoopbackModal]:
    """The loopback Modal without faults."""
    modal_server.faults.clear()
    yield modal_server
    modal_server.faults.clear()


@pytest.fixture
def r2(r2_server: LocalR2) -> Iterator[LocalR2]:
    """The local R2 without faults."""
    r2_server.forget()
    yield r2_server
    r2_server.forget()


@pytest.fixture(scope="session")
def _running_chain(
    modal_server: LoopbackModal, r2_server: LocalR2, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Chain]:
    with Chain(doubles(modal_server, r2_server), home=tmp_path_factory.mktemp("app")) as chain:
        yield chain


@pytest.fixture
def chain(_running_chain: Chain, modal: LoopbackModal, r2: LocalR2) -> Iterator[Chain]:
    """The application with its webhook; jobs that a test leaves unfinished are cancelled after it."""
    yield _running_chain
    modal.faults.clear()
    r2.forget()
    _running_chain.forget()


@pytest.fixture
def start_chain(modal: LoopbackModal, r2: LocalR2, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartChain]:
    """Starts applications of a test's own, on the same Modal and R2; they end with the test."""
    with ExitStack() as stack:

        def start(**options: Any) -> Chain:
            variables = {name: options.pop(name) for name in list(options) if name.isupper()}
            home = tmp_path_factory.mktemp("app")
            return stack.enter_context(Chain({**doubles(modal, r2), **variables}, home=home, **options))

        yield start


@pytest.fixture(scope="session")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of music, composed here."""
    path = tmp_path_factory.mktemp("song") / "song.wav"
    compose(path, seconds=2)
    return path


def pytest_collection_finish(session: pytest.Session) -> None:
    """Say what the live tests cost before the first one starts, however quiet pytest is told to be."""
    if any(item.get_closest_marker("live") for item in session.items):
        cost = "nothing will be rendered" if missing(os.environ) else estimate(os.environ)
        terminal = session.config.pluginmanager.get_plugin("terminalreporter")
        if terminal is not None:
            terminal.write_line(f"live tests: {cost}")
