"""What the workers do that share one database: each runs a service until it is killed."""

from __future__ import annotations

import signal
from datetime import timedelta
from pathlib import Path

from renderdispatch.protocols import Locality
from renderdispatch.queueing import QueuePolicy
from renderdispatch.service import RenderService
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.storage.signing import SignedUrls
from renderdispatch.stores.sql import SqlJobStore
from tests.support.call_counter import CountedBackend
from tests.support.http_services import SECRET

LEASE = timedelta(seconds=2)


def storage_at(folder: str) -> FsspecStorage:
    """Return a storage in a folder, whose URLs nobody opens."""
    return FsspecStorage(Path(folder), urls=SignedUrls("http://127.0.0.1:9", SECRET, locality=Locality.WORLD))


def work(*, store: str, folder: str, port: int, backends: list[str], policy: str) -> None:
    """Run a service until the process is killed."""
    service = RenderService(
        SqlJobStore(store),
        storage_at(folder),
        {name: CountedBackend(port, name) for name in backends},
        policy=QueuePolicy.model_validate_json(policy),
        lease=LEASE,
    )
    with service:
        signal.pause()
