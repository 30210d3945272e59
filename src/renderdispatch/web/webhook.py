"""How does any WSGI or ASGI application take the GPU side's webhooks?

By mounting one of these callables; there is no logic in them::

    app.mount("/webhooks", asgi_app(service))                                                   # FastAPI
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/webhooks": wsgi_app(service)})         # Flask

Let ``webhook_url`` end with a slash: at a mount FastAPI redirects the path without one, and senders follow no redirect.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from anyio import to_thread

from renderdispatch.engine.inbox import MAX_BODY_BYTES, WebhookResponse
from renderdispatch.errors import ConfigurationError
from renderdispatch.service import RenderService
from renderdispatch.web.gateways import (
    AsgiApp,
    Environ,
    Receive,
    Scope,
    Send,
    StartResponse,
    WsgiApp,
    asgi_answer,
    asgi_body,
    wsgi_body,
    wsgi_status,
)

_ONLY_POST: Final = WebhookResponse(
    status=405,
    body=b'{"error":{"code":"webhook.method"}}',
    headers={"content-type": "application/json", "allow": "POST"},
)


def takes_webhooks(service: RenderService) -> bool:
    """Return whether the service has a secret: without one nothing could be verified, and nothing may be taken."""
    try:
        service.webhook_counts()
    except ConfigurationError:
        return False
    return True


def wsgi_app(service: RenderService) -> WsgiApp:
    """Return a WSGI application that answers webhooks at every path.

    Raises:
        ConfigurationError: The service has no secret.
    """
    service.webhook_counts()  # refuses to start where nothing could be verified

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "POST":
            response = _ONLY_POST
        else:
            body = wsgi_body(environ, limit=MAX_BODY_BYTES)
            headers = [
                (name[5:].replace("_", "-"), value) for name, value in environ.items() if name.startswith("HTTP_")
            ]
            response = service.handle_webhook(headers, body)
        start_response(
            wsgi_status(response.status),
            [*response.headers.items(), ("content-length", str(len(response.body)))],
        )
        return [response.body]

    return app


def asgi_app(service: RenderService) -> AsgiApp:
    """Return an ASGI application that answers webhooks at every path.

    Raises:
        ConfigurationError: The service has no secret.
    """
    service.webhook_counts()  # refuses to start where nothing could be verified

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        if scope["type"] != "http":  # the lifespan is the outer application's
            return
        if scope["method"] != "POST":
            response = _ONLY_POST
        elif (body := await asgi_body(receive, limit=MAX_BODY_BYTES)) is None:
            return
        else:
            response = await to_thread.run_sync(service.handle_webhook, scope["headers"], body)
        await asgi_answer(send, response.status, dict(response.headers), response.body)

    return app
