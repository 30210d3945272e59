"""How do the authors of stores, storages and backends test theirs?

By subclassing a contract suite and giving it one fixture. Needs the ``testing`` extra.
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
