"""Does the inline backend keep every promise of a backend?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from renderdispatch.backends.inline import InlineBackend
from renderdispatch.errors import BackendError
from renderdispatch.runner import Pace
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.testing import RenderBackendContract, make_order
from renderdispatch.testing.contracts.backends import Recorder


class TestInlineBackend(RenderBackendContract):
    """Renders in threads of this process."""

    renders_apart = False

    @pytest.fixture
    def backend(self) -> Iterator[InlineBackend]:
        backend = InlineBackend(pace=Pace(progress_s=0.1, backoff_s=0.05))
        yield backend
        backend.close()


def test_a_backend_that_could_start_nothing_is_closed(refuse_thread: Callable[[str], None]) -> None:
    """A start for which there is no thread leaves nothing that `close` would wait for."""
    backend = InlineBackend()
    refuse_thread("renderdispatch-call")
    with pytest.raises(BackendError) as refused:
        backend.start(make_order(MemoryStorage()), on_event=Recorder())
    assert refused.value.retryable
    backend.close()
