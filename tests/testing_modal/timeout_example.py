"""An app with a function whose timeout the environment says."""

from __future__ import annotations

import os

import modal

app = modal.App("timeout")


@app.function(timeout=int(os.environ.get("EXAMPLE_TIMEOUT", "300")))
def bounded(_text: str) -> str:
    """Do nothing, for so long at most."""
    return ""
