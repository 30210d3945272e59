"""How many renders does a command do at once on this machine?"""

from __future__ import annotations

from renderdispatch import errors
from renderdispatch.protocols import RenderBackend
from renderdispatch.wiring import read_settings


def backends_with_slots(slots: int | None, *, parallel: int = 1) -> dict[str, RenderBackend] | None:
    """Return the backend of this machine with so many slots; None: the backends that the settings name.

    Args:
        slots: What ``--jobs`` says; None: a slot for each that draws a video, if several do.
        parallel: How many draw a video at once.

    Raises:
        InvalidRequestError: ``slots`` was given, and the settings name another backend, which has slots of its own.
    """
    if slots is None and parallel == 1:
        return None
    names = read_settings().backends
    if list(names) == ["local"]:
        from renderdispatch.backends.local import LocalGpuBackend

        return {"local": LocalGpuBackend(slots=slots or parallel)}
    if slots is None:
        return None
    message = f"--jobs is for renders on this machine, and RENDERDISPATCH_BACKENDS is {','.join(names)}"
    raise errors.InvalidRequestError(message, code="command.usage")
