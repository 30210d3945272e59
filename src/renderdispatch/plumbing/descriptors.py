"""Which number may a descriptor have that another process is to get? One above those of the standard streams."""

from __future__ import annotations

import fcntl
import os
from typing import Final

_STDERR: Final = 2


def beyond_standard_streams(descriptor: int) -> int:
    """Return the descriptor under a number above 2: a process that closed its own streams gets theirs for pipes."""
    if descriptor > _STDERR:
        return descriptor
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _STDERR + 1)
    os.close(descriptor)
    return moved
