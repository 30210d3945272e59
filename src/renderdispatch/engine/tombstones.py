"""What remains of a deleted job while uploads of its objects may be under way?

A tombstone: an empty object. Its key holds the prefix of the job's objects, and when the last of those uploads is over.
It is stored before the objects and the record go, so a crash in between loses nothing. `bury` deletes what came later.
Keys sort by time, so no tombstone is opened, and no younger one is listed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from typing import Final

from renderdispatch.engine import layout
from renderdispatch.protocols import StorageAdapter

_log: Final = logging.getLogger("renderdispatch.engine.reconcile")


def leave(storage: StorageAdapter, prefix: str, until: datetime) -> None:
    """Have a job's objects deleted once more at a later time.

    Raises:
        StorageError: Storage is away; a second call is safe.
    """
    storage.put(layout.tombstone_key(prefix, until), b"")


def bury(storage: StorageAdapter, now: datetime, *, limit: int) -> int:
    """Delete the objects of all tombstones whose time has come, and the tombstones; return how many there were.

    Raises:
        StorageError: Storage is away; a second call is safe.
    """
    due = list(islice(_due(storage, now), limit))
    for key, prefix in due:
        storage.delete_prefix(prefix)
        storage.delete(key)
    return len(due)


def _due(storage: StorageAdapter, now: datetime) -> Iterator[tuple[str, str]]:
    for info in storage.list(layout.TOMBSTONES):
        found = layout.read_tombstone(info.key)
        if found is None:
            _log.warning("the object %s is not a tombstone", info.key)
            continue
        until, prefix = found
        if until > now:
            return
        yield info.key, prefix
