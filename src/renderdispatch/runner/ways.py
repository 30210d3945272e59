"""Which way does a run report: by the webhook that its order names, or by what its surroundings offer?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from renderdispatch.messages import RenderOrder
from renderdispatch.plumbing.stop import Leaving, Stop
from renderdispatch.runner.reporting import Send


@contextmanager
def way_of(order: RenderOrder, *, otherwise: Send, leaving: Leaving | None = None) -> Iterator[Send]:
    """Yield the way that the order names: webhooks where it has a callback, else ``otherwise``."""
    if order.callback is None:
        yield otherwise
        return
    from renderdispatch.runner.webhook import WebhookSender

    stop = Stop()
    with WebhookSender(order, order.callback, stop=stop) as webhook:
        if leaving is not None:
            leaving.on_leave(lambda: stop.request("the run is to leave"))
        yield webhook
