"""A service with two far backends, ``cloud`` and ``box``, that a test plays by hand as in `renderdispatch.testing.world`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from renderdispatch.engine.parts import Reroute
from renderdispatch.protocols import JobStore, RenderBackend
from renderdispatch.service import RenderService
from renderdispatch.testing import FakeClock
from renderdispatch.testing.world import ForgetfulStore, Remote, World, WorldStorage


class Clouds(World):
    """Two far backends and a policy.

    Args:
        failover: The service's policy.
        cloud: The first backend; None makes one.
        beside: Another process's world, whose clock, store and storage this process shares.
        options: Of the service.
    """

    def __init__(
        self,
        failover: Reroute | None,
        *,
        cloud: Remote | None = None,
        beside: Clouds | None = None,
        more: Mapping[str, RenderBackend] | None = None,
        **options: Any,
    ) -> None:
        self.clock = beside.clock if beside else FakeClock(datetime.now(UTC))
        self.store: JobStore = beside.store if beside else ForgetfulStore(clock=self.clock)  # type: ignore[assignment]  # any store will do
        self.storage = beside.storage if beside else WorldStorage()
        self.cloud: Remote = beside.cloud if beside else cloud or Remote()
        self.box: Remote = beside.box if beside else Remote()
        self.backend = self.cloud
        backends: dict[str, RenderBackend] = {"cloud": self.cloud, "box": self.box, **(more or {})}
        options.setdefault("worker", False)
        self.service = RenderService(self.store, self.storage, backends, failover=failover, **options)
        self.seconds = 0.0
        self.service._engine.worker().reconciler._monotonic = lambda: self.seconds

    def where(self, job_id: str) -> list[str]:
        """Return the backends of the job's attempts, oldest first."""
        return [attempt.backend for attempt in self.job(job_id).attempts]
