"""How does any WSGI or ASGI application take the GPU side's webhooks?

Mount one of these applications::

    app.mount("/webhooks", asgi_app(service))                                                   # FastAPI
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/webhooks": wsgi_app(service)})         # Flask

End ``webhook_url`` with a slash: FastAPI redirects the path of a mount without one, and senders follow no redirects.
"""

from __future__ import annotations

from typing import Final

from renderdispatch.engine.inbox import MAX_BODY_BYTES
from renderdispatch.errors import ConfigurationError
from renderdispatch.service import RenderService
from renderdispatch.web.asgi import AsgiApp, asgi
from renderdispatch.web.http import Handler, Request, Response
from renderdispatch.web.wsgi import WsgiApp, wsgi

_THREADS: Final = 40
_BODIES: Final = 8
"""How many bodies a WSGI server reads at once: one that has arrived takes no time."""


def takes_webhooks(service: RenderService) -> bool:
    """Return whether the service has a secret. Without one it cannot verify webhooks, and takes none."""
    try:
        service.webhook_counts()
    except ConfigurationError:
        return False
    return True


def wsgi_app(service: RenderService) -> WsgiApp:
    """Return a WSGI application that takes webhooks at every path.

    Raises:
        ConfigurationError: The service has no secret.
    """
    return wsgi(_handler(service), bodies=_BODIES)


def asgi_app(service: RenderService) -> AsgiApp:
    """Return an ASGI application that takes webhooks at every path.

    Raises:
        ConfigurationError: The service has no secret.
    """
    return asgi(_handler(service), threads=_THREADS, body_limit=MAX_BODY_BYTES)


def _handler(service: RenderService) -> Handler:
    service.webhook_counts()  # raises if the service has no secret

    def handle(request: Request) -> Response:
        if request.method != "POST":
            return Response(405, {"allow": "POST"}, {"error": {"code": "webhook.method"}})
        taken = service.handle_webhook(request.pairs, request.read(MAX_BODY_BYTES))
        return Response(taken.status, taken.headers, taken.body)

    return handle
