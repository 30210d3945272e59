"""How does a FastAPI application use the service?

::

    app = FastAPI(lifespan=lifespan(service))       # the service starts and ends with the application
    app.add_middleware(BodyLimit, max_bytes=512 << 20)
    install(app, service)                           # errors become responses, POST /webhook

The routes are the application's own: ``examples/fastapi_app`` has them in less than 80 lines.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio

from renderdispatch.aio import AsyncRenderService
from renderdispatch.errors import MissingExtraError, RenderDispatchError
from renderdispatch.service import RenderService
from renderdispatch.web.answers import ANSWERED, answer, refusal
from renderdispatch.web.clients import Pace
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
    app.add_exception_handler(_Refused, _refuse)
    if takes_webhooks(service):
        # Starlette takes any ASGI application.
        app.add_route(webhook, asgi_app(service), name="webhook", include_in_schema=False)  # type: ignore[arg-type]


class BodyLimit:
    """Middleware that answers 413 to requests with a larger body, and 408 to those whose body comes too slowly.

    It reads no more of such a body.

    Args:
        max_bytes: Of the body as it is sent: a form has some hundred bytes more than its file.
        sends: Makes the pace of a client: by default 30 s without a byte are too slow, and less than 1 KiB a second.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, sends: Callable[[], Pace] = Pace) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._sends = sends

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        received, more, pace = 0, True, self._sends()
        too_large = _Refused(413, "request.too-large", f"the request has more than {self._max_bytes:,} bytes")

        async def counted() -> Message:
            nonlocal received, more
            if int(announced) > self._max_bytes:  # servers refuse a length that is not a number
                raise too_large
            began = time.monotonic()
            with anyio.move_on_after(
                pace.patience_s() if more else None
            ) as waiting:  # later it waits for the client's end
                message = await receive()
            if waiting.cancelled_caught:
                raise _Refused(408, "request.too-slow", "the body comes too slowly")
            size = len(message.get("body", b""))
            pace.count(size, time.monotonic() - began)
            received, more = received + size, message.get("more_body", False)
            if received > self._max_bytes:
                raise too_large
            return message

        await self._app(scope, counted, send)


class _Refused(HTTPException):
    """FastAPI lets this exception pass while it reads a form; it turns any other one into a 400."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, message, {"connection": "close"} if status == 408 else None)
        self.code = code


async def _refuse(_: Request, error: Exception) -> Response:
    if isinstance(error, _Refused):
        response = refusal(error.status_code, error.code, error.detail, **(error.headers or {}))
    else:
        assert isinstance(error, RenderDispatchError)
        response = answer(error)
    return Response(response.content, response.status, dict(response.all_headers))
