"""What does the facade load?"""

from __future__ import annotations

import subprocess
import sys

import pytest

UNWANTED = (
    "renderdispatch.runner",
    "renderdispatch.render",
    "renderdispatch.stores",
    "renderdispatch.storage",
    "renderdispatch.backends",
    "httpx",
    "sqlalchemy",
)


@pytest.mark.parametrize("module", ["service", "aio", "engine.runtime"])
def test_the_facade_loads_no_runner_and_no_adapter(module: str) -> None:
    """An application that only submits and polls pays for no renderer, runner, adapter, HTTP client or database."""
    script = f"import renderdispatch.{module}, sys; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    loaded = set(ran.stdout.split())
    assert [name for name in UNWANTED if name in loaded] == []
