"""What do users deploy to Modal?

An app with the function ``render``: ``renderdispatch modal deploy``, or ``modal deploy -m renderdispatch.modal_app``.
It takes a `RenderOrder`, or the `HelperOrder` of a helper, and returns a `CallResult`, all as JSON. It gets no secret:
an order holds signed URLs and the key of its own attempt, nothing else. `renderdispatch.modal_app.deployment` says what
can be chosen, by variables in the environment of ``modal deploy``. The function ``probe`` has the same image and GPU,
and says what it draws on.

With ``RENDERDISPATCH_MODAL_WORKER=1`` the app also has a worker, for applications without one: ``tick`` is scheduled,
and dispatches and reconciles; ``webhook`` receives the reports of renders. These two get the Modal Secret that
``RENDERDISPATCH_MODAL_SECRET`` names.

Containers import the same module. There the package is source alone, and the variables are not set, but for those that
define the worker's functions: its image carries them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from renderdispatch.errors import ConfigurationError, MissingExtraError
from renderdispatch.modal_app.deployment import RENDER_EXTRAS, WORKER_EXTRAS, Deployment
from renderdispatch.modal_app.image import base_image, with_source
from renderdispatch.runner.container import carry_out

try:
    import modal
except ImportError:
    raise MissingExtraError.of("renderdispatch.modal_app", "modal") from None

if TYPE_CHECKING:
    from renderdispatch.service import RenderService

DEPLOYMENT: Final = Deployment.from_environment(os.environ, carried=not modal.is_local())

LONGEST: Final = timedelta(hours=24)
"""Modal ends a call after this time, whatever timeout it was spawned with."""

_PAUSE_S: Final = 1.0
_PROBE_S: Final = 60
_WORKER_MEMORY: Final = 512
_WEBHOOKS_AT_ONCE: Final = 32


app: Final = modal.App(DEPLOYMENT.app, include_source=False)


_image: Final = with_source(base_image(*RENDER_EXTRAS))


@app.function(
    image=_image,
    gpu=list(DEPLOYMENT.gpu) or None,
    cpu=DEPLOYMENT.cpu,
    memory=DEPLOYMENT.memory,
    timeout=DEPLOYMENT.timeout,
    startup_timeout=DEPLOYMENT.startup_timeout,
    scaledown_window=DEPLOYMENT.scaledown_window,
    retries=0,  # attempts are the service's: it knows whose fault a failure was
    restrict_modal_access=True,
)
def render(order: str) -> str:
    """Carry out one order, a lead's or a helper's."""
    return carry_out(order, call_id=modal.current_function_call_id(), timeout=LONGEST)


@app.function(
    image=_image,
    gpu=list(DEPLOYMENT.gpu) or None,
    cpu=DEPLOYMENT.cpu,
    memory=DEPLOYMENT.memory,
    timeout=2 * _PROBE_S,
    startup_timeout=DEPLOYMENT.startup_timeout,
    scaledown_window=2,  # asked once, and a GPU is billed meanwhile
    retries=0,
    restrict_modal_access=True,
)
def probe() -> str:
    """Return what a container of `render` draws and encodes with: JSON of `renderdispatch.runner.probe.Probe`."""
    from renderdispatch.runner.probe import probe as try_all

    return try_all(timeout_s=_PROBE_S).model_dump_json()


def _open_service() -> RenderService:
    """Return the service that the secret's variables describe.

    Raises:
        ConfigurationError: They do not name a store and a storage.
    """
    from renderdispatch.wiring import from_settings, read_settings

    settings = read_settings()
    for name, value in (("STORE", settings.store), ("STORAGE", settings.storage)):
        if value is None:
            raise ConfigurationError(
                f"the Modal Secret {DEPLOYMENT.secret!r} has no RENDERDISPATCH_{name}: a worker on Modal needs the "
                "database and the bucket that the application uses"
            )
    return from_settings(settings, worker=False)


if DEPLOYMENT.worker:
    assert DEPLOYMENT.secret is not None
    _carried = {"RENDERDISPATCH_BACKENDS": "modal", **DEPLOYMENT.to_carry()}
    _worker_image = with_source(base_image(*WORKER_EXTRAS), environment=_carried)
    _secret = modal.Secret.from_name(DEPLOYMENT.secret)

    @app.function(
        image=_worker_image,
        secrets=[_secret],
        schedule=modal.Period(seconds=DEPLOYMENT.period),
        memory=_WORKER_MEMORY,
        timeout=min(2 * DEPLOYMENT.period + 60, int(LONGEST.total_seconds())),
        max_containers=1,
        retries=0,
    )
    def tick() -> int:
        """Dispatch and reconcile for most of a period; return how many jobs moved."""
        until = time.monotonic() + 0.8 * DEPLOYMENT.period
        moved = 0
        with _open_service() as service:
            while True:
                now = service.tick()
                moved += now
                if time.monotonic() >= until:
                    return moved
                if now == 0:
                    time.sleep(_PAUSE_S)

    @app.function(image=_worker_image, secrets=[_secret], memory=_WORKER_MEMORY)
    @modal.concurrent(max_inputs=_WEBHOOKS_AT_ONCE)
    @modal.asgi_app()
    def webhook() -> Callable[..., Awaitable[Any]]:
        """Receive the reports of renders, at every path. Each request is verified by its signature."""
        from renderdispatch.web.webhook import asgi_app

        return asgi_app(_open_service())
