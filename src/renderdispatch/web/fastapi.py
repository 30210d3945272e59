"""How does a FastAPI application hold the service?

::

    app = FastAPI(lifespan=lifespan(service))       # the service starts and ends with the application
    app.add_middleware(BodyLimit, max_bytes=512 << 20)
    install(app, service)                           # errors as answers, POST /webhook

The routes are the application's own: ``examples/fastapi_app`` has them in less than 80 lines.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from attrs import frozen

from renderdispatch.aio import AsyncRenderService
from renderdispatch.errors import MissingExtraError, RenderDispatchError
from renderdispatch.service import RenderService
from renderdispatch.web.answers import ANSWERED, ErrorAnswer, answer, refusal
from renderdispatch.web.webhook import asgi_app, takes_webhooks

try:
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.responses import JSONResponse
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as error:
    raise MissingExtraError.of("renderdispatch.web.fastapi", "fastapi") from error


def lifespan(service: RenderService) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Return a lifespan that starts the service, and closes it in the end."""

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncRenderService(service):
            yield

    return running


def install(app: FastAPI, service: RenderService, *, webhook: str = "/webhook") -> None:
    """Answer the service's errors with fitting statuses, and take webhooks.

    Args:
        webhook: The path of the webhook: what ``webhook_url`` ends with. A service without secrets takes none.
    """
    for kind in ANSWERED:
        app.add_exception_handler(kind, _refused)
    app.add_exception_handler(_TooLarge, _too_large)
    if takes_webhooks(service):
        app.add_route(webhook, _Asgi(asgi_app(service)), name="webhook", include_in_schema=False)  # type: ignore[arg-type]


class BodyLimit:
    """Middleware that answers 413 to requests whose body is larger; no more of it is read.

    Args:
        max_bytes: Of the body as it is sent: a form is some hundred bytes larger than its file.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            if int(announced) > self._max_bytes:  # servers refuse what is no number
                raise _TooLarge(self._max_bytes)
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._max_bytes:
                raise _TooLarge(self._max_bytes)
            return message

        await self._app(scope, counted, send)


class _TooLarge(HTTPException):
    """FastAPI lets this one through while it reads a form; of any other exception it makes a 400."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(413, f"the request has more than {max_bytes:,} bytes")


@frozen
class _Asgi:
    """A function that Starlette shall take as an application, not as an endpoint."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RenderDispatchError)
    return _json(answer(error))


async def _too_large(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, _TooLarge)
    return _json(refusal(413, "request.too-large", error.detail))


def _json(told: ErrorAnswer) -> JSONResponse:
    return JSONResponse(told.body, told.status, dict(told.headers))
