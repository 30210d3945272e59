"""Tests of your own stores, storages, backends and applications. Needs the ``testing`` extra.

Test an adapter by subclassing its contract suite and giving it one fixture: `JobStoreContract`, `StorageContract` or
`RenderBackendContract`. Further modules, each imported by its own name:

- `renderdispatch.testing.fixtures`: pytest fixtures for a whole deployment on this machine.
- `renderdispatch.testing.modal`, `.local_r2`, `.webhook_server`: what these fixtures run.
- `renderdispatch.testing.world`: a service driven by hand, and backends, storages and stores that misbehave.
- `renderdispatch.testing.stateful`, `.histories`: models to compare a store with.
"""

from __future__ import annotations

from renderdispatch.errors import MissingExtraError

try:
    import pytest
except ImportError:
    raise MissingExtraError.of("renderdispatch.testing", "testing") from None

pytest.register_assert_rewrite("renderdispatch.testing.contracts", "renderdispatch.testing.stateful")

from renderdispatch.testing.builders import (  # noqa: E402 - its asserts are rewritten only from here on
    FakeClock,
    eventually,
    in_threads,
    make_artifact,
    make_ended_job,
    make_job,
    make_request,
)
from renderdispatch.testing.contracts.backends import RenderBackendContract  # noqa: E402
from renderdispatch.testing.contracts.storages import StorageContract  # noqa: E402
from renderdispatch.testing.contracts.stores import JobStoreContract  # noqa: E402
from renderdispatch.testing.renderers import FakeRenderer, make_order, registered_scenes  # noqa: E402

__all__ = [
    "FakeClock",
    "FakeRenderer",
    "JobStoreContract",
    "RenderBackendContract",
    "StorageContract",
    "eventually",
    "in_threads",
    "make_artifact",
    "make_ended_job",
    "make_job",
    "make_order",
    "make_request",
    "registered_scenes",
]
