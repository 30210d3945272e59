"""How does a FastAPI application use the service?

::

    app = FastAPI(lifespan=lifespan(service))       # the service starts and ends with the application
    app.add_middleware(BodyLimit, max_bytes=512 << 20)
    install(app, service)                           # errors become responses, POST /webhook

The routes are the application's own: ``examples/fastapi_app`` has them in less than 80 lines.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from renderdispatch.aio import AsyncRenderService
from renderdispatch.errors import MissingExtraError, RenderDispatchError
from renderdispatch.service import RenderService
from renderdispatch.web.answers import ANSWERED, answer, refusal
from renderdispatch.web.webhook import asgi_app, takes_webhooks

try:
    from fastapi import FastAPI, HTTPException, Request, Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as error:
    raise MissingExtraError.of("renderdispatch.web.fastapi", "fastapi") from error


def lifespan(service: RenderService) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Return a lifespan that starts the service with the application, and closes it at the end."""

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncRenderService(service):
            yield

    return running


def install(app: FastAPI, service: RenderService, *, webhook: str = "/webhook") -> None:
    """Answer the service's errors with fitting statuses, and take webhooks.

    Args:
        webhook: The path of the webhook, with which ``webhook_url`` ends. A service without secrets takes no webhooks.
    """
    for kind in ANSWERED:
        app.add_exception_handler(kind, _refuse)
    app.add_exception_handler(_TooLarge, _refuse)
    if takes_webhooks(service):
        app.add_route(webhook, asgi_app(service), name="webhook", include_in_schema=False)  # type: ignore[arg-type]


class BodyLimit:
    """Middleware that answers 413 to requests with a larger body, and reads no more of it.

    Args:
        max_bytes: Of the body as it is sent: a form has some hundred bytes more than its file.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        received = 0

        async def counted() -> Message:
            nonlocal received
            if int(announced) > self._max_bytes:  # servers refuse a length that is not a number
                raise _TooLarge(self._max_bytes)
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise _TooLarge(self._max_bytes)
            return message

        await self._app(scope, counted, send)


class _TooLarge(HTTPException):
    """FastAPI lets this exception pass while it reads a form; it turns any other one into a 400."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(413, f"the request has more than {max_bytes:,} bytes")


async def _refuse(_: Request, error: Exception) -> Response:
    if isinstance(error, _TooLarge):
        response = refusal(413, "request.too-large", error.detail)
    else:
        assert isinstance(error, RenderDispatchError)
        response = answer(error)
    return Response(response.content, response.status, dict(response.all_headers))
