"""An app whose containers cannot start, though it deploys."""

from __future__ import annotations

import modal

app = modal.App("broken")

if not modal.is_local():
    raise RuntimeError("this container does not start")


@app.function()
def never(_text: str) -> str:
    """Never run."""
    return ""
