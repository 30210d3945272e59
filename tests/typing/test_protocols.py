"""Do the implementations have the shape of their protocols?

Structurally: the type checker reads these assignments; the tests only look for the optional powers at run time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from renderdispatch.protocols import JobStore, StorageAdapter, SupportsClaim, SupportsCounts
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.stores.sql import SqlJobStore

if TYPE_CHECKING:
    from renderdispatch.plumbing.local_urls import Endpoint
    from renderdispatch.protocols import Renderer, SupportsGpu, SupportsParams, SupportsPreview
    from renderdispatch.render.command import CommandRenderer
    from renderdispatch.render.function import FunctionRenderer
    from renderdispatch.render.scene import NumpyRenderer
    from renderdispatch.storage.fsspec import FsspecStorage
    from renderdispatch.storage.memory import MemoryObjects, MemoryStorage

    def stores(memory: MemoryJobStore, sql: SqlJobStore) -> tuple[JobStore, JobStore]:
        return memory, sql

    def claiming(memory: MemoryJobStore, sql: SqlJobStore) -> tuple[SupportsClaim, SupportsClaim]:
        return memory, sql

    def counting(memory: MemoryJobStore, sql: SqlJobStore) -> tuple[SupportsCounts, SupportsCounts]:
        return memory, sql

    def storages(memory: MemoryStorage, fsspec: FsspecStorage) -> tuple[StorageAdapter, StorageAdapter]:
        return memory, fsspec

    def renderers(numpy: NumpyRenderer) -> tuple[Renderer, SupportsPreview]:
        return numpy, numpy

    def programs(command: CommandRenderer) -> tuple[Renderer, SupportsPreview, SupportsParams, SupportsGpu]:
        return command, command, command, command

    def functions(function: FunctionRenderer) -> tuple[Renderer, SupportsPreview, SupportsParams, SupportsGpu]:
        return function, function, function, function

    def endpoint(memory: MemoryObjects) -> Endpoint:
        return memory


@pytest.mark.parametrize("power", [SupportsClaim, SupportsCounts])
@pytest.mark.parametrize("store", [MemoryJobStore, SqlJobStore])
def test_stores_have_the_optional_powers(store: type, power: type) -> None:
    """The stores that ship hand out jobs and count them."""
    assert issubclass(store, power)
