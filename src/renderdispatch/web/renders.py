"""How does a GPU machine of one's own become a render service behind HTTP?

By serving one of these callables around any backend; `renderdispatch.backends.http` says what they answer, and its
`KeyedHttpBackend` is what calls them::

    app = asgi_app(WaitingLine(LocalGpuBackend()), token=os.environ["RENDER_TOKEN"])        # uvicorn gpu_machine:app

Serve it from **one process**, with as many threads as it likes: the renders are that process's children, and another
one would not know them. Behind it stand the renders of whoever has the token: they read audio from any URL that their
orders name, and write videos to any; files of this machine are out of their reach.

A start that comes again with the same token is answered with the same call. A full service says 503 with
``Retry-After``. Refusals are JSON: ``{"error": {"code": "...", "message": "..."}}``.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from anyio import CapacityLimiter, to_thread
from attrs import field, frozen
from pydantic import ValidationError

from renderdispatch.backends.http import CALL_ID, FindAnswer, StartAnswer, StatusAnswer
from renderdispatch.errors import BackendError, ConfigurationError
from renderdispatch.messages import EventReply, Message, RenderEvent, RenderOrder
from renderdispatch.protocols import BackendCall, CallStatus, Locality, RenderBackend
from renderdispatch.web.answers import refusal
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
    asgi_headers,
    asgi_path,
    wsgi_body,
    wsgi_headers,
    wsgi_path,
    wsgi_status,
)

_log: Final = logging.getLogger("renderdispatch.web.renders")

MAX_ORDER_BODY: Final = 64 * 1024

_THREADS: Final = 16
_KEYS_KEPT: Final = 100_000
_TOKEN: Final = re.compile(r"[\x21-\x7e]{16,512}", re.ASCII)
_BEARER: Final = re.compile(r"bearer +([\x21-\x7e]+)", re.ASCII | re.IGNORECASE)
_KEY: Final = re.compile(r"[\x21-\x7e]{1,200}", re.ASCII)
_A_CALL_ID: Final = re.compile(CALL_ID, re.ASCII)


def wsgi_app(backend: RenderBackend, *, token: str | Sequence[str]) -> WsgiApp:
    """Return a WSGI application that renders with ``backend`` for whoever has the token.

    Args:
        backend: Whoever opened it closes it.
        token: 16 to 512 visible ASCII characters; several while one is being replaced.

    Raises:
        ConfigurationError: No token, or one of another shape.
    """
    desk = _Desk(backend, token)

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        request = _Request(environ["REQUEST_METHOD"], wsgi_path(environ), wsgi_headers(environ))
        if environ.get("wsgi.multiprocess") and backend.locality < Locality.WORLD:
            answer = _refuse(501, "renders.processes", "several processes serve these renders: let one do it")
        else:
            body = wsgi_body(environ, limit=MAX_ORDER_BODY)  # always: an unread one may cost the client the answer
            answer = desk.answer(request, body)
        headers = {**answer.headers, "content-length": str(len(answer.body))}
        start_response(wsgi_status(answer.status), list(headers.items()))
        return [answer.body]

    return app


def asgi_app(backend: RenderBackend, *, token: str | Sequence[str]) -> AsgiApp:
    """Return an ASGI application that renders with ``backend`` for whoever has the token.

    Args:
        backend: Whoever opened it closes it.
        token: 16 to 512 visible ASCII characters; several while one is being replaced.

    Raises:
        ConfigurationError: No token, or one of another shape.
    """
    desk = _Desk(backend, token)
    threads = CapacityLimiter(_THREADS)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        if scope["type"] != "http":  # the lifespan is the outer application's
            return
        body = await asgi_body(receive, limit=MAX_ORDER_BODY)
        if body is None:
            return
        request = _Request(scope["method"], asgi_path(scope), asgi_headers(scope))
        answer = await to_thread.run_sync(desk.answer, request, body, limiter=threads)
        await asgi_answer(send, answer.status, dict(answer.headers), answer.body)

    return app


# --- what both share ------------------------------------------------------------------------------


@frozen
class _Request:
    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)


@frozen
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


def _say(status: int, message: Message) -> _Answer:
    body = message.model_dump_json().encode()
    return _Answer(status, {"content-type": "application/json", "cache-control": "no-store"}, body)


def _refuse(status: int, code: str, message: str, **headers: str) -> _Answer:
    told = refusal(status, code, message)
    body = _Refused(error=_Error.model_validate(told.body["error"])).model_dump_json().encode()
    return _Answer(status, {"content-type": "application/json", **told.headers, **headers}, body)


class _Error(Message):
    code: str
    message: str


class _Refused(Message):
    error: _Error


class _Desk:
    """Takes requests to a backend, and remembers which call was started by which key."""

    def __init__(self, backend: RenderBackend, tokens: str | Sequence[str]) -> None:
        given = [tokens] if isinstance(tokens, str) else list(tokens)
        if not given or any(_TOKEN.fullmatch(token) is None for token in given):
            raise ConfigurationError("a render service needs a token of 16 to 512 visible ASCII characters")
        self._digests = [_digest(token) for token in given]
        self._backend = backend
        self._starting = threading.Lock()
        self._calls: OrderedDict[str, str | None] = OrderedDict()
        """By key; None where a find was told that there will be none."""

    def answer(self, request: _Request, body: bytes) -> _Answer:
        """Answer one request, whatever it is."""
        if not self._knows(request.headers.get("authorization", "")):
            return _refuse(401, "renders.denied", "this is not the token", **{"www-authenticate": "Bearer"})
        if len(body) > MAX_ORDER_BODY:
            return _refuse(413, "renders.too-large", f"an order has at most {MAX_ORDER_BODY} bytes")
        try:
            match request.method, request.path:
                case "POST", "":
                    return self._start(request, body)
                case "POST", "find":
                    return self._find(request)
                case "GET", path if _A_CALL_ID.fullmatch(path):
                    return self._status(BackendCall(path))
                case "DELETE", path if _A_CALL_ID.fullmatch(path):
                    return self._cancel(BackendCall(path))
        except BackendError as error:
            return self._failed(error)
        fixed = request.path in {"", "find"}
        allowed = "POST" if fixed else "GET, DELETE"
        if fixed or _A_CALL_ID.fullmatch(request.path):
            return _refuse(405, "renders.method", f"only {allowed}", allow=allowed)
        return _refuse(404, "renders.unknown-path", "nothing is here")

    def _knows(self, authorization: str) -> bool:
        """Return whether it is one of the tokens, in a time that does not tell which, or how much of it was right."""
        found = _BEARER.fullmatch(authorization.strip())
        digest = _digest(found[1] if found is not None else "")
        known = False
        for expected in self._digests:
            known |= hmac.compare_digest(expected, digest)
        return known

    def _start(self, request: _Request, body: bytes) -> _Answer:
        try:
            order = RenderOrder.model_validate_json(body)
        except ValidationError as error:
            return _refuse(422, "renders.order", f"this is no order: {error.error_count()} fields are wrong or missing")
        if order.local:
            return _refuse(422, "renders.local-order", "an order that came over a network names no files of a machine")
        key = request.headers.get("idempotency-key", order.token)
        if key != order.token or _KEY.fullmatch(key) is None:
            return _refuse(422, "renders.key", "the idempotency key is the order's token")
        with self._starting:
            if key in self._calls:
                known = self._calls[key]
                if known is None:
                    return _refuse(409, "renders.retired", "this order was given up before it came")
                return _say(200, StartAnswer(call_id=known))
            call = self._backend.start(order, on_event=_ignore)
            self._keep(key, call.id)
        _log.info("job %s: call %s started", order.job_id, call.id)
        return _say(201, StartAnswer(call_id=call.id))

    def _find(self, request: _Request) -> _Answer:
        key = request.headers.get("idempotency-key", "")
        if _KEY.fullmatch(key) is None:
            return _refuse(422, "renders.key", "name the order's token as the idempotency key")
        with self._starting:
            if key not in self._calls:
                if self._backend.locality is Locality.WORLD:  # its renders outlive this process and what it remembers
                    return _refuse(501, "renders.no-find", "whether this was started is not known here")
                self._keep(key, None)
            return _say(200, FindAnswer(call_id=self._calls[key]))

    def _keep(self, key: str, call_id: str | None) -> None:
        self._calls[key] = call_id
        if len(self._calls) > _KEYS_KEPT:
            self._calls.popitem(last=False)

    def _status(self, call: BackendCall) -> _Answer:
        state = self._backend.poll(call)
        if state.status is CallStatus.MISSING:
            return _say(404, StatusAnswer(status=state.status))
        return _say(200, StatusAnswer(status=state.status, outcome=state.outcome, error=state.error))

    def _cancel(self, call: BackendCall) -> _Answer:
        self._backend.cancel(call)
        return _say(202, StatusAnswer(status=self._backend.poll(call).status))

    def _failed(self, error: BackendError) -> _Answer:
        """Say what became of a request that the backend refused, so that the caller reads the same in it."""
        if not error.outcome_known:
            return _refuse(500, error.code, str(error))
        return _refuse(503 if error.retryable else 422, error.code, str(error))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _ignore(_event: RenderEvent) -> EventReply:
    """Take the events of an order without a callback: the status tells how it ended."""
    return EventReply()
