"""What the workers of the kill points do."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen

from renderdispatch.errors import JobNotFoundError
from renderdispatch.messages import Output
from renderdispatch.protocols import Locality
from renderdispatch.service import RenderService
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.storage.signing import SignedUrls
from renderdispatch.testing import eventually
from renderdispatch.testing.renderers import FAKE_SCENE
from tests.support.far_renders import receiving
from tests.support.http_services import SECRET, TOKEN
from tests.support.kill_points import Death, KillingBackend, KillingStore, When

WEBHOOK_SECRET: Final = "whsec_" + "a2lsbCBwb2ludHMg" * 3
LEASE: Final = timedelta(seconds=1)


@frozen(kw_only=True)
class Errand:
    """What a worker does.

    Args:
        store: The URL of its job store.
        folder: Of the objects.
        objects_url: Where others read and write them.
        backend_url: The service that renders.
        port: Where it takes webhooks.
        song: What it submits, under one idempotency key; None: nothing.
        params: The scene's.
        cancel: Whether it cancels the job once that renders.
        delete: Whether it deletes the job once that has ended.
        point: Where it dies; empty: nowhere.
        when: Before the point or after it.
    """

    store: str
    folder: str
    objects_url: str
    backend_url: str
    port: int
    song: str | None = None
    params: Mapping[str, Any] = field(factory=dict)
    cancel: bool = False
    delete: bool = False
    point: str = ""
    when: When = "before"


def work(**errand: Any) -> None:
    """Run a service until the process is killed; the arguments are those of an `Errand`."""
    _work(Errand(**errand))


def _work(errand: Errand) -> None:
    death = Death(errand.point, errand.when)
    urls = SignedUrls(errand.objects_url, SECRET, locality=Locality.WORLD)
    service = RenderService(
        KillingStore(errand.store, death),
        FsspecStorage(Path(errand.folder), urls=urls),
        KillingBackend(errand.backend_url, TOKEN, death),
        secrets=WEBHOOK_SECRET,
        webhook_url=f"http://127.0.0.1:{errand.port}/webhooks",
        lease=LEASE,
    )
    with service, receiving(service, errand.port):
        if errand.song is not None:
            _submit(service, errand)
        signal.pause()


def _submit(service: RenderService, errand: Errand) -> None:
    assert errand.song is not None
    song, output = Path(errand.song), Output(width=64, height=36)
    handle = service.submit(song, scene=FAKE_SCENE, params=errand.params, output=output, idempotency_key=song.name)
    with suppress(JobNotFoundError):
        if errand.cancel:
            eventually(lambda: handle.job.progress >= 35 or handle.job.ended)
            handle.cancel()
        if errand.delete:
            handle.wait()
            eventually(lambda: not handle.job.owes_clean_up)
            service.delete(handle.id)
