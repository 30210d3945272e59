"""What is a service put together from?

The store, the storage, the backends and the settings, as one value that everything in the engine is built from.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import sys
import uuid
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from attrs import field, frozen

from renderdispatch.engine.policies import check_policy, checked_keep
from renderdispatch.engine.quotas import check_store
from renderdispatch.errors import ConfigurationError, UnknownNameError
from renderdispatch.failover import Failover
from renderdispatch.jobs import Attempt
from renderdispatch.messages import Callback, JobStatus, RenderRequest
from renderdispatch.protocols import AudioFetcher, JobStore, Locality, RenderBackend, StorageAdapter, SupportsWebhook
from renderdispatch.queueing import QueuePolicy

if TYPE_CHECKING:
    from renderdispatch.webhooks import AttemptKeys

Route = Callable[[RenderRequest], str]
"""Chooses a backend by name for a request that names none."""

Reroute = Callable[[RenderRequest, tuple[Attempt, ...]], str]
"""Chooses the backend of each attempt, by the attempts before; the first one has none before it."""


class Closable(Protocol):
    """Something that can be closed."""

    def close(self) -> None:
        """Release it."""


def machine_id() -> str:
    """Return an id of this machine, the same for every process and every start of it."""
    seed = platform.node()  # containers share their image's id, and may share an address with those of other hosts
    for source in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with contextlib.suppress(OSError):
            seed += Path(source).read_text("ascii")
            break
    else:
        address = uuid.getnode()
        if not address >> 40 & 1:  # else it is random, another one in each process (RFC 9562)
            seed = f"{address:x}" if sys.platform == "darwin" else f"{seed}{address:x}"  # macOS: names follow networks
    return hashlib.sha256(b"renderdispatch" + seed.encode()).hexdigest()[:16]


def _is_lease(value: object) -> bool:
    return isinstance(value, timedelta) and value >= timedelta(seconds=1)


def _is_url(value: object) -> bool:
    return isinstance(value, str) and value.startswith(("https://", "http://"))


@frozen(kw_only=True)
class Parts:
    """What a service is put together from; `RenderService` says what each part is.

    Raises:
        ConfigurationError: The parts do not fit together.
    """

    store: JobStore
    storage: StorageAdapter
    backends: Mapping[str, RenderBackend]
    route: Route | None = None
    fetcher: AudioFetcher | None = None
    worker: bool = True
    lease: timedelta = timedelta(seconds=30)
    machine: str = field(factory=machine_id)
    policy: QueuePolicy = field(factory=QueuePolicy)
    failover: Reroute | None = None
    keep: Mapping[JobStatus, timedelta] = field(default=None, converter=checked_keep)
    keys: AttemptKeys | None = None
    webhook_url: str | None = None
    owned: tuple[Closable, ...] = ()

    def __attrs_post_init__(self) -> None:
        if not self.backends:
            raise ConfigurationError("a service needs at least one backend")
        if not _is_lease(self.lease):
            raise ConfigurationError("lease must be a timedelta of at least one second")
        self._check_failover()
        check_policy(self.policy)
        check_store(self.store, self.policy)
        for name, backend in self.backends.items():
            if not isinstance(getattr(backend, "locality", None), Locality):
                raise ConfigurationError(f"backend {name!r} is a {type(backend).__name__}, not a RenderBackend")
            if self.storage.locality < backend.locality:
                message = (
                    f"backend {name!r} ({type(backend).__name__}) cannot read the URLs of "
                    f"{type(self.storage).__name__}. FsspecStorage serves this machine; set "
                    "RENDERDISPATCH_STORAGE=r2://bucket, or RENDERDISPATCH_OBJECTS_URL to sign URLs of a folder"
                )
                raise ConfigurationError(message)
        if self.webhook_url is None:
            if any(b.reports_by_webhook for b in self.backends.values() if isinstance(b, SupportsWebhook)):
                raise ConfigurationError("a backend that reports by webhook needs webhook_url and secrets")
        elif not _is_url(self.webhook_url):
            raise ConfigurationError("webhook_url must be an http or https URL")
        elif self.keys is None:
            raise ConfigurationError("webhook_url needs secrets: reports that are not signed cannot be trusted")

    def _check_failover(self) -> None:
        if self.failover is not None and self.route is not None:
            raise ConfigurationError("route and failover both choose the backend of a request: give one of them")
        for name in self.failover.backends if isinstance(self.failover, Failover) else ():
            if name not in self.backends:
                error = UnknownNameError.of("backend", name, self.backends, code="backend.unknown")
                raise ConfigurationError(f"{self.failover!r}: {error}")

    def callback(self, job_id: str, attempt: int, backend: RenderBackend) -> Callback | None:
        """Return where a run of this attempt reports, and the key that it signs with; None where it does not."""
        remote = backend.locality is Locality.WORLD
        reports = backend.reports_by_webhook if isinstance(backend, SupportsWebhook) else remote
        if self.webhook_url is None or self.keys is None or not reports:
            return None
        return Callback(url=self.webhook_url, key=self.keys.secret(job_id=job_id, attempt=attempt))
