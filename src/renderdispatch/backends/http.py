"""How is an order rendered by a service behind plain HTTP?

By anything that answers three requests: a web function on Modal, a GPU machine of one's own
(`renderdispatch.web.renders`), or any service that wraps another one. **The wire**, all bodies JSON, all names
camelCase::

    POST   {url}             start    the order (`messages.RenderOrder`, about 8 KiB), with "Idempotency-Key: <token>"
        200 | 201 | 202      {"callId": "<id>"}    it runs, or will: the response does not wait for the render
                             A helper is started likewise; its order (`messages.HelperOrder`) has "kind": "helper"
    GET    {url}/{callId}    status
        200                  {"status": "running" | "ended" | "missing", "outcome": {...}, "error": {...}}
        200                  {"outcome": {...}}, {"error": {...}} or {"helped": {...}} alone (`messages.CallResult`):
                             it has ended
        202                  it runs; the body is not read
        404 | 410            no such call, or its result is no longer kept
    DELETE {url}/{callId}    cancel
        200 | 202 | 204      it stops computing soon; also if it had ended
        404 | 410            no such call: not an error

``outcome`` is the outcome of the run (`messages.Completed` or `messages.Failed`), ``error`` (`messages.JobError`) why
there is no outcome, if that is known. A helper has neither. A call id is 1 to 200 of ``A-Z a-z 0-9 . _ ~ : -`` and
begins with a letter or a digit. A slash at the end of ``url`` is kept for the start and is not doubled in front of an
id. Every request carries ``Authorization: Bearer <token>``, ``Modal-Key`` and ``Modal-Secret``, as far as they are
given. The run itself reports to the order's callback, as every remote run does; its check-in may bring the call id.

**What other responses mean**, first of all whether the render may have been started (rule J2: unknown is not failed):

| response to a start | outcome known | retryable | code |
|---|---|---|---|
| none, and not a byte was sent: no connection, or no certificate | yes | yes | `backend.unreachable` |
| none, or no whole one, after something was sent | no | yes | `backend.no-answer` |
| 429; 503 with ``Retry-After`` | yes | yes | `backend.busy` |
| 408, 425; 503 with ``Retry-After`` and, in JSON, an ``error.code`` that is no ``busy`` | yes | yes | `backend.error` |
| 401, 403, 407 | yes | no | `backend.denied` |
| 501, any other 4xx | yes | no | `backend.refused` |
| any other 5xx, a bare 503 among them | no | yes | `backend.error` |
| 303 | no | yes | `backend.redirect` |
| any other redirect | yes | no | `backend.redirect` |
| anything else, such as a 200 without a call id | no | no | `backend.bad-answer` |

A bare 5xx says nothing: a gateway may send it before or after the service behind it started the render. A service that
means "not now" sends 503 with ``Retry-After``. Redirects are never followed, because credentials would go along.
Modal's web functions answer 303 after 150 s, so the function should `spawn` the render and return the id. A status or a
cancel fails in the same words; the next check of the job asks again.

404 is believed: no proxy may send it in the place of a service that is away.

**Keyed services** remember starts by their key, and `KeyedHttpBackend` may ask them two things more. A start with a key
that was seen is answered with the same call. And::

    POST   {url}/find        "Idempotency-Key: <token>", {"jobId": "<id>"}
        200                  {"callId": "<id>"}
        200                  {"callId": null}    none was started, **and none will be**: a start with this key that
                                                 arrives later is refused (409)

Only that ``null`` means "surely none", so that a wrong route or another version never does.
"""

from __future__ import annotations

import re
import ssl
from codecs import BOM_UTF8
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Final, TypeVar
from urllib.parse import quote

import httpx
from pydantic import Field, JsonValue, ValidationError
from pydantic_core import from_json

from renderdispatch.errors import BackendError, ConfigurationError
from renderdispatch.messages import CallResult, HelperOrder, Message, RenderOrder
from renderdispatch.plumbing.net import Client, NetError, NotSentError, Response, is_loopback
from renderdispatch.protocols import BackendCall, CallState, CallStatus, Locality, OnEvent
from renderdispatch.runner.renderers import check_scene_file

MAX_RESPONSE_BYTES: Final = 1 << 20
CALL_ID: Final = r"[A-Za-z0-9][A-Za-z0-9._~:-]{0,199}"

_CONNECT_S: Final = 5.0
_QUOTED_CHARS: Final = 300
_SECRET: Final = re.compile(r"[\x21-\x7e]{1,4096}", re.ASCII)
_A_CALL_ID: Final = re.compile(CALL_ID, re.ASCII)
_A_URL: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s\"'<>]+")
_NO_TEXT: Final = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
_STARTED: Final = frozenset({200, 201, 202})
_GONE: Final = frozenset({404, 410})

_M = TypeVar("_M", bound=Message)


class StartReply(Message):
    """The response to a start."""

    call_id: str = Field(pattern=f"^{CALL_ID}$")


class StatusReply(CallResult):
    """The response to a status; without ``status``, of a call that has ended."""

    status: CallStatus | None = None


class FindRequest(Message):
    """The body of a find."""

    job_id: str


class FindReply(Message):
    """The response to a find; None promises that there is no such call, and that none will be."""

    call_id: str | None = Field(pattern=f"^{CALL_ID}$")


class HttpBackend:
    """Renders at a service behind an HTTP URL; the module says how that must respond.

    Nothing is sent before the first start. Safe to share between threads, and to take through a fork.

    Args:
        url: Of the service; https, unless the host is this machine.
        token: Sent as ``Authorization: Bearer``.
        modal_key: Sent as ``Modal-Key``: the token id of a Modal endpoint with ``requires_proxy_auth``.
        modal_secret: Sent as ``Modal-Secret``; belongs to ``modal_key``.
        timeout: For each request as a whole, from name resolution to the last byte of the response.
        slots: Orders that are handed over at once; None is no limit. The service itself says how many it renders.
        allow_http: Whether a plain http URL of another machine is accepted. Credentials and signed URLs then travel in
            the clear: for a network that is encrypted underneath.
        ssl_context: Judges certificates, for a service with its own authority.
        device_class: What NumPy's scenes are drawn on there, such as ``cpu-x86-64``; None if it is not sure. A run that
            finds another device fails with ``device.mismatch``.

    Raises:
        ConfigurationError: The URL may not be used, or a secret cannot be sent in a header.
    """

    locality = Locality.WORLD

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        modal_key: str | None = None,
        modal_secret: str | None = None,
        timeout: timedelta = timedelta(seconds=10),
        slots: int | None = None,
        allow_http: bool = False,
        ssl_context: ssl.SSLContext | None = None,
        device_class: str | None = None,
    ) -> None:
        self._url = _read_url(url, allow_http=allow_http)
        if (modal_key is None) != (modal_secret is None):
            raise ConfigurationError("Modal's proxy authentication needs both: modal_key and modal_secret")
        if timeout <= timedelta(0):
            raise ConfigurationError(f"the timeout must be above 0, not {timeout}")
        if slots is not None and slots < 1:
            raise ConfigurationError(f"slots must be None or at least 1, not {slots}")
        given = {"token": token, "modal_key": modal_key, "modal_secret": modal_secret}
        secrets = {name: _read_secret(name, value) for name, value in given.items() if value is not None}
        named = {"token": "Authorization", "modal_key": "Modal-Key", "modal_secret": "Modal-Secret"}
        headers = {named[name]: f"Bearer {value}" if name == "token" else value for name, value in secrets.items()}
        headers["Accept"] = "application/json"
        self.slots = slots
        self.device_class = device_class
        self._secrets = tuple(secrets.values())
        self._closed = False
        total_s = timeout.total_seconds()
        self._client = Client(headers, total_s=total_s, connect_s=_CONNECT_S, stall_s=total_s, ssl_context=ssl_context)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._origin!r})"

    def start(self, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:  # noqa: ARG002 - the run reports by webhook
        """Hand the order over; its run reports to the order's callback."""
        return self._start(order)

    def start_helper(self, order: HelperOrder) -> BackendCall:
        """Hand the order of a helper over. A service that knows no helpers refuses it."""
        return self._start(order)

    def _start(self, order: RenderOrder | HelperOrder) -> BackendCall:
        response = self._request("start", "POST", self._url, key=order.token, body=order)
        if response.status not in _STARTED:
            raise self._refusal("start", response, secrets=_secrets_of(order))
        return BackendCall(self._parsed(StartReply, "start", response).call_id)

    def check_scene_file(self, text: str, *, name: str) -> None:
        """Raise `InvalidRequestError` for a scene file that can never be drawn; its text needs nothing from there."""
        check_scene_file(text, name=name)

    def poll(self, call: BackendCall) -> CallState:
        """Ask for the state of the call."""
        if _A_CALL_ID.fullmatch(call.id) is None:
            return CallState(status=CallStatus.MISSING)
        response = self._request("status", "GET", self._below(call.id))
        if response.status in _GONE:
            return CallState(status=CallStatus.MISSING)
        if response.status == 202:
            return CallState(status=CallStatus.RUNNING)
        if response.status != 200:
            raise self._refusal("status", response)
        found = self._parsed(StatusReply, "status", response)
        if not (found.status or found.outcome or found.error or found.helped):  # an empty object of another service
            raise self._refusal("status", response)
        if found.status not in {None, CallStatus.ENDED}:
            return CallState(status=CallStatus(found.status))
        return CallState(status=CallStatus.ENDED, outcome=found.outcome, error=None if found.outcome else found.error)

    def cancel(self, call: BackendCall) -> None:
        """Tell the service to stop the call."""
        if _A_CALL_ID.fullmatch(call.id) is None:
            return
        response = self._request("cancel", "DELETE", self._below(call.id))
        if response.status not in {200, 202, 204} | _GONE:
            raise self._refusal("cancel", response)

    def close(self) -> None:
        """Cut off requests that are running and close the connections; renders go on."""
        self._closed = True
        self._client.close()

    # --- one request

    @property
    def _origin(self) -> str:
        return f"{self._url.scheme}://{self._url.netloc.decode('ascii')}"

    def _below(self, name: str) -> httpx.URL:
        path = self._url.raw_path.decode("ascii").rstrip("/")
        return self._url.copy_with(raw_path=f"{path}/{quote(name, safe=':~')}".encode("ascii"))

    def _request(
        self, what: str, method: str, url: httpx.URL, *, key: str | None = None, body: Message | None = None
    ) -> Response:
        if self._closed:
            raise BackendError("the backend is closed", retryable=True, code="backend.closed")
        headers = {} if key is None else {"Idempotency-Key": key, "Content-Type": "application/json"}
        content = None if body is None else body.model_dump_json().encode()
        sent = True
        try:
            response = self._client.request(
                method, url, headers=headers, body=content, fresh=method == "POST", max_bytes=MAX_RESPONSE_BYTES
            )
            if response.whole:
                return response
            why = f"answered more than {MAX_RESPONSE_BYTES} bytes"
        except NetError as error:
            why, sent = str(error), not isinstance(error, NotSentError)
        raise BackendError(
            f"the render service at {self._origin} {why} ({what}{'' if sent else ', which was not sent'})",
            retryable=True,
            outcome_known=not sent or method != "POST",
            code="backend.no-answer" if sent else "backend.unreachable",
        )

    # --- what a response means

    def _parsed(self, model: type[_M], what: str, response: Response) -> _M:
        try:
            return model.model_validate_json(response.body.removeprefix(BOM_UTF8))  # some frameworks send it
        except ValidationError:
            raise self._refusal(what, response) from None

    def _refusal(self, what: str, response: Response, *, secrets: tuple[str, ...] = ()) -> BackendError:
        """Return the error that a response stands for, by the table of the module."""
        wait = response.headers.get("retry-after", "")
        meant = 429 if response.status == 503 and wait else response.status
        code, retryable, known, hint = _MEANINGS.get(meant, _BAD_ANSWER)
        if meant != response.status and not (_code(response) or _BUSY).endswith("busy"):
            code = "backend.error"  # of `renderdispatch.web.renders`: it could not start it, and has slots
        if meant == 429 and wait.isascii() and wait.isdecimal() and len(wait) < 7:
            hint += f", for {wait} s"
        quoted = _quote(response, (*self._secrets, *secrets)) if response.status >= 400 else ""
        return BackendError(
            f"the render service at {self._origin} answered {response.status} ({what}){hint}{quoted}",
            retryable=retryable,
            outcome_known=known or what != "start",
            code=code,
        )


class KeyedHttpBackend(HttpBackend):
    """Renders at a service that remembers starts by their key, as `renderdispatch.web.renders` does.

    A start whose response was lost is repeated once, and `find` tells what became of it: an attempt never waits for its
    start deadline just because a response was lost.
    """

    def _start(self, order: RenderOrder | HelperOrder) -> BackendCall:
        """Hand the order over, a second time if it is not known what became of the first."""
        try:
            return super()._start(order)
        except BackendError as lost:
            if lost.outcome_known:
                raise
            try:
                return super()._start(order)
            except BackendError:  # it says nothing about the first one
                raise lost from None

    def find(self, *, job_id: str, token: str) -> BackendCall | None:
        """Return the call that was started for this attempt; None if the service says that none was, nor will be."""
        response = self._request("find", "POST", self._below("find"), key=token, body=FindRequest(job_id=job_id))
        if response.status != 200:
            raise self._refusal("find", response, secrets=(token,))
        call_id = self._parsed(FindReply, "find", response).call_id
        return None if call_id is None else BackendCall(call_id)


_BUSY: Final = "backend.busy"
_MOVED: Final = ": redirects are never followed, because credentials would go along; give the backend the final URL"
_DENIED: Final = ": check the token, or Modal's key and secret, of this backend"
_BAD_ANSWER: Final = ("backend.bad-answer", False, False, ", not in the form that this backend reads")
_MEANINGS: Final[Mapping[int, tuple[str, bool, bool, str]]] = {
    **dict.fromkeys(range(300, 400), ("backend.redirect", False, True, _MOVED)),
    303: ("backend.redirect", True, False, ": it must respond at once, not when the render ends"),
    **dict.fromkeys([*range(400, 500), 501], ("backend.refused", False, True, "")),
    **dict.fromkeys([404, 405], ("backend.refused", False, True, "; is its URL right?")),
    **dict.fromkeys([401, 403, 407], ("backend.denied", False, True, _DENIED)),
    **dict.fromkeys([408, 425], ("backend.error", True, True, "")),
    429: (_BUSY, True, True, ": not now"),
    **dict.fromkeys([500, *range(502, 1000)], ("backend.error", True, False, "")),
}
"""By status: the code, whether to retry, whether the outcome of a start is known, and a hint for the message."""


def _read_url(url: object, *, allow_http: bool) -> httpx.URL:
    """Return the URL if it may be used; a refused one is never quoted, because it may hold a secret."""
    if not isinstance(url, str):
        raise ConfigurationError(f"the URL of a render service is a str, not {type(url).__name__}")
    try:
        read = httpx.URL(url.strip())
        host = read.host
    except (httpx.InvalidURL, UnicodeError):
        raise ConfigurationError("the URL of a render service is not valid") from None
    if read.scheme not in {"https", "http"} or not host or not (read.port is None or 0 < read.port < 65536):
        why = "is one such as https://gpu.example.com/renders"
    elif read.userinfo or read.query or read.fragment or "?" in url or "#" in url:
        why = "has no user name, query or fragment; secrets have arguments of their own"
    elif read.scheme == "http" and not allow_http and not is_loopback(host):
        why = (
            "is https, because credentials and signed URLs are secret; "
            "allow_http=True accepts http, for a network that is encrypted underneath"
        )
    else:
        return read
    raise ConfigurationError(f"the URL of a render service {why}")


def _read_secret(name: str, value: object) -> str:
    if not isinstance(value, str) or _SECRET.fullmatch(value) is None:
        raise ConfigurationError(f"{name} is 1 to 4096 visible ASCII characters; a line break at its end, perhaps?")
    return value


def _secrets_of(order: RenderOrder | HelperOrder) -> tuple[str, ...]:
    """Return what must not be quoted of an order, beside its URLs."""
    if isinstance(order, HelperOrder):
        return (order.token,)
    puts = (order.video.put, order.result.put)
    found = [order.token, *(value for put in puts for name, value in put.headers.items() if name.startswith("x-"))]
    if order.callback is not None:
        found.append(order.callback.key)
    return tuple(found)


def _quote(response: Response, secrets: tuple[str, ...]) -> str:
    """Return the message of a refusal: one short line, without URLs and without the secrets that we sent."""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    text = ""
    if kind == "application/json" or kind.endswith("+json"):
        with suppress(ValueError):
            text = _message(from_json(response.body))
    elif kind == "text/plain":
        text = response.body[: 16 * _QUOTED_CHARS].decode(errors="replace")
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "<secret>")
    text = _NO_TEXT.sub(" ", _A_URL.sub("<url>", text)).strip()
    if len(text) > _QUOTED_CHARS:
        text = text[: _QUOTED_CHARS - 3] + "..."
    return f": {text}" if text else ""


def _code(response: Response) -> str | None:
    """Return the code of a refusal in the shape of `renderdispatch.web`; None in any other."""
    with suppress(ValueError):
        match from_json(response.body):
            case {"error": {"code": str(code)}}:
                return code
    return None


def _message(body: JsonValue) -> str:
    """Return the message, if it is in one of the places where services and frameworks put it."""
    match body:
        case {"error": {"message": str(text)}} | {"error": str(text)} | {"message": str(text)} | {"detail": str(text)}:
            return text
        case {"detail": [{"msg": str(text)}, *_]}:  # FastAPI's; the rest of it quotes the order
            return text
    return ""
