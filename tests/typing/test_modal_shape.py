"""Has the Modal backend the shape of a backend?

Structurally: the type checker reads the assignments; the test only looks at run time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("modal")

from renderdispatch.backends.modal import ModalBackend
from renderdispatch.protocols import RenderBackend, SupportsCheck, SupportsFind, SupportsHelpers

if TYPE_CHECKING:

    def backend(modal: ModalBackend) -> RenderBackend:
        return modal

    def helping(modal: ModalBackend) -> SupportsHelpers:
        return modal


def test_it_has_the_shape() -> None:
    """It is a backend, and starts helpers; it cannot find a call by its order, and asks nothing at submit."""
    found = ModalBackend()
    assert isinstance(found, RenderBackend)
    assert isinstance(found, SupportsHelpers)
    assert not isinstance(found, SupportsFind | SupportsCheck)
