"""What users deploy to Modal: ``modal deploy -m renderdispatch.modal_app``, or ``renderdispatch modal deploy``.

The app and its functions are in `renderdispatch.modal_app.functions`. They are imported at their first use, because
they need Modal's client. The choices of a deployment (`renderdispatch.modal_app.deployment`) do not need it.
"""

from __future__ import annotations

from typing import Any

__all__ = ["app", "probe", "render", "tick", "webhook"]


def __getattr__(name: str) -> Any:
    """Import the app, or one of its functions, when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'renderdispatch.modal_app' has no attribute {name!r}")
    from renderdispatch.modal_app import functions

    return getattr(functions, name)
