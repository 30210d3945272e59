"""How does a GPU machine of your own become a render service behind HTTP?

Serve one of these applications around any backend. `renderdispatch.backends.http` describes the protocol, and its
`KeyedHttpBackend` is the client::

    app = asgi_app(WaitingLine(LocalGpuBackend()), token=os.environ["RENDER_TOKEN"])        # uvicorn gpu_machine:app

Serve it from **one process**, with any number of threads: the renders are children of that process, and another process
would not know them. Everyone who has the token can start renders. These read audio from any URL that their orders name,
and write videos to any URL, but they cannot reach files of this machine.

Helpers (`messages.HelperOrder`) are started where a slot is free; they never wait.

A start that is repeated with the same token returns the same call. A full service answers 503 with ``Retry-After``.
Refusals are JSON: ``{"error": {"code": "...", "message": "..."}}``.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from pydantic import ValidationError

from renderdispatch.backends.http import CALL_ID, FindReply, StartReply, StatusReply
from renderdispatch.errors import BackendError, ConfigurationError, WebhookVerificationError
from renderdispatch.messages import EventReply, HelperOrder, Message, RenderEvent, RenderOrder, read_order
from renderdispatch.plumbing.failures import translated
from renderdispatch.protocols import BackendCall, CallStatus, Locality, RenderBackend, SupportsHelpers
from renderdispatch.web.answers import refusal
from renderdispatch.web.asgi import AsgiApp, asgi
from renderdispatch.web.http import Request, Response
from renderdispatch.web.wsgi import WsgiApp, wsgi
from renderdispatch.webhooks import BearerVerifier

_log: Final = logging.getLogger("renderdispatch.web.renders")

MAX_ORDER_BODY: Final = 64 * 1024

_THREADS: Final = 16
_KEYS_KEPT: Final = 100_000
_KEY: Final = re.compile(r"[\x21-\x7e]{1,200}", re.ASCII)
_CALL_PATH: Final = re.compile(CALL_ID, re.ASCII)


def wsgi_app(backend: RenderBackend, *, token: str | Sequence[str]) -> WsgiApp:
    """Return a WSGI application that renders with ``backend`` for clients that have the token.

    Args:
        backend: It is not closed here.
        token: 16 to 512 visible ASCII characters; several while one is being replaced.

    Raises:
        ConfigurationError: There is no token, or one is malformed.
    """
    return wsgi(_Renders(backend, token))


def asgi_app(backend: RenderBackend, *, token: str | Sequence[str]) -> AsgiApp:
    """Return an ASGI application that renders with ``backend`` for clients that have the token.

    Args:
        backend: It is not closed here.
        token: 16 to 512 visible ASCII characters; several while one is being replaced.

    Raises:
        ConfigurationError: There is no token, or one is malformed.
    """
    return asgi(_Renders(backend, token), threads=_THREADS, body_limit=MAX_ORDER_BODY)


class _Renders:
    """Hands requests to a backend, and remembers which call each key started."""

    def __init__(self, backend: RenderBackend, tokens: str | Sequence[str]) -> None:
        what = "a render service needs a token of 16 to 512 visible ASCII characters"
        with translated({ConfigurationError: lambda _: ConfigurationError(what)}):
            self._verifier = BearerVerifier(tokens)
        self._backend = backend
        self._starting = threading.Lock()
        self._calls: OrderedDict[str, str | None] = OrderedDict()
        """Call ids by key. None: a find was told that this key will never start a call."""

    def __call__(self, request: Request) -> Response:
        """Answer one request."""
        if request.multiprocess and self._backend.locality < Locality.WORLD:
            return refusal(501, "renders.processes", "several processes serve these renders; serve them from one")
        try:
            self._verifier.verify({"authorization": request.headers.get("authorization", "").strip()}, b"")
        except WebhookVerificationError:
            return refusal(401, "renders.denied", "the token is wrong or missing", **{"www-authenticate": "Bearer"})
        body = request.read(MAX_ORDER_BODY)
        if len(body) > MAX_ORDER_BODY:
            return refusal(413, "renders.too-large", f"an order has at most {MAX_ORDER_BODY} bytes")
        try:
            return self._route(request, body)
        except BackendError as error:  # the status tells the caller whether the outcome is known, and whether to retry
            status = 500 if not error.outcome_known else 503 if error.retryable else 422
            return refusal(status, error.code, str(error))

    def _route(self, request: Request, body: bytes) -> Response:
        is_call = _CALL_PATH.fullmatch(request.path) is not None and request.path != "find"
        match request.method, request.path:
            case "POST", "":
                return self._start(request, body)
            case "POST", "find":
                return self._find(request)
            case "GET", path if is_call:
                state = self._backend.poll(BackendCall(path))
                status = 404 if state.status is CallStatus.MISSING else 200
                return _json(status, StatusReply(status=state.status, outcome=state.outcome, error=state.error))
            case "DELETE", path if is_call:
                self._backend.cancel(BackendCall(path))
                return _json(202, StatusReply(status=self._backend.poll(BackendCall(path)).status))
        if is_call or request.path in {"", "find"}:
            allowed = "GET, DELETE" if is_call else "POST"
            return refusal(405, "renders.method", f"this path allows only {allowed}", allow=allowed)
        return refusal(404, "renders.unknown-path", "this path does not exist")

    def _start(self, request: Request, body: bytes) -> Response:
        try:
            order = read_order(body)
        except ValidationError as error:
            wrong = f"{error.error_count()} fields are wrong or missing"
            return refusal(422, "renders.order", f"the body is not an order: {wrong}")
        if order.local:
            return refusal(422, "renders.local-order", "an order that comes over a network cannot name local files")
        key = request.headers.get("idempotency-key", order.token)
        if key != order.token or _KEY.fullmatch(key) is None:
            return refusal(422, "renders.key", "the idempotency key must be the order's token")
        with self._starting:
            if key in self._calls:
                known = self._calls[key]
                if known is None:
                    return refusal(409, "renders.retired", "this order was given up before it arrived")
                return _json(200, StartReply(call_id=known))
            call = self._begin(order)
            self._keep(key, call.id)
        _log.info("job %s: call %s started", order.job_id, call.id)
        return _json(201, StartReply(call_id=call.id))

    def _begin(self, order: RenderOrder | HelperOrder) -> BackendCall:
        if isinstance(order, RenderOrder):
            return self._backend.start(order, on_event=_ignore)
        if isinstance(self._backend, SupportsHelpers):
            return self._backend.start_helper(order)
        raise BackendError("this service draws a video with one call", retryable=False, code="backend.no-helpers")

    def _find(self, request: Request) -> Response:
        key = request.headers.get("idempotency-key", "")
        if _KEY.fullmatch(key) is None:
            return refusal(422, "renders.key", "send the order's token as the idempotency key")
        with self._starting:
            if key not in self._calls:
                if self._backend.locality is Locality.WORLD:  # its renders outlive this process and its memory
                    return refusal(501, "renders.no-find", "this service does not know whether the order was started")
                self._keep(key, None)
            return _json(200, FindReply(call_id=self._calls[key]))

    def _keep(self, key: str, call_id: str | None) -> None:
        self._calls[key] = call_id
        if len(self._calls) > _KEYS_KEPT:
            self._calls.popitem(last=False)


def _json(status: int, message: Message) -> Response:
    headers = {"content-type": "application/json", "cache-control": "no-store"}
    return Response(status, headers, message.model_dump_json().encode())


def _ignore(_event: RenderEvent) -> EventReply:
    """Ignore the events of an order that has no callback: the status tells how it ended."""
    return EventReply()
