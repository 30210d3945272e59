"""How is an order rendered by a service behind plain HTTP?

By anything that answers three requests: a web function on Modal, a GPU machine of one's own
(`renderdispatch.web.renders`), or any service that wraps another one. **The wire**, all bodies JSON, all names
camelCase::

    POST   {url}             start    the order (`messages.RenderOrder`, about 8 KiB), with "Idempotency-Key: <token>"
        200 | 201 | 202      {"callId": "<id>"}    it runs, or will: the answer does not wait for the render
    GET    {url}/{callId}    status
        200                  {"status": "running" | "ended" | "missing", "outcome": {...}, "error": {...}}
        200                  {"outcome": {...}} or {"error": {...}} alone (`messages.CallAnswer`): it has ended
        202                  it runs; the body is not looked at
        404 | 410            no such call, or its result is no longer kept
    DELETE {url}/{callId}    cancel
        200 | 202 | 204      it stops computing soon; also where it had ended
        404 | 410            no such call: no error

``outcome`` is what the run answered (`messages.Completed` or `messages.Failed`), ``error`` (`messages.JobError`) why
there is no outcome, where that is known. A call id is 1 to 200 of ``A-Z a-z 0-9 . _ ~ : -`` and begins with a letter or
a digit. A slash at the end of ``url`` is kept for the start and is not doubled in front of an id. Every request carries
``Authorization: Bearer <token>``, ``Modal-Key`` and ``Modal-Secret``, as far as they are given. The run itself reports
to the order's callback, as every remote run does; its check-in may bring the call id.

**What other answers mean**, first of all whether the render may have been started (rule J2: unknown is not failed):

| answer to a start | outcome known | retryable | code |
|---|---|---|---|
| none, and not a byte was sent: no connection, or no certificate | yes | yes | `backend.unreachable` |
| none, or no whole one, after something was sent | no | yes | `backend.no-answer` |
| 429; 503 with ``Retry-After`` | yes | yes | `backend.busy` |
| 408, 425 | yes | yes | `backend.error` |
| 401, 403, 407 | yes | no | `backend.denied` |
| 501, any other 4xx | yes | no | `backend.refused` |
| any other 5xx, a bare 503 among them | no | yes | `backend.error` |
| 303 | no | yes | `backend.redirect` |
| any other redirect | yes | no | `backend.redirect` |
| anything else, such as a 200 without a call id | no | no | `backend.bad-answer` |

A bare 5xx says nothing: a gateway writes it after the service behind it has started the render as well as before. A
service that means "not now" says 503 with ``Retry-After``. Redirects are never followed, for credentials would go
along: 303 is what Modal's web functions answer after 150 s, so the function renders where it should `spawn` and return
the id. A status or a cancel fails in the same words; the next look asks again.

404 is believed: let no proxy say it in the place of a service that is away.

**Keyed services** keep starts by their key, and `KeyedHttpBackend` may ask them two things more. A start with a key
that was seen answers with the same call. And::

    POST   {url}/find        "Idempotency-Key: <token>", {"jobId": "<id>"}
        200                  {"callId": "<id>"}
        200                  {"callId": null}    none was started, **and none will be**: a start with this key that
                                                 arrives later is refused (409)

Nothing but that ``null`` counts as "surely none", so that a wrong route or another version never does.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from datetime import timedelta
from ipaddress import ip_address
from typing import Final
from urllib.parse import quote

import httpx
from pydantic import Field, JsonValue, ValidationError
from pydantic_core import from_json

from renderdispatch.errors import BackendError, ConfigurationError
from renderdispatch.messages import CallAnswer, Message, RenderOrder
from renderdispatch.plumbing.net import Client, NetError, NotSentError, Response
from renderdispatch.protocols import BackendCall, CallState, CallStatus, Locality, OnEvent

MAX_ANSWER_BYTES: Final = 1 << 20
CALL_ID: Final = r"[A-Za-z0-9][A-Za-z0-9._~:-]{0,199}"

_CONNECT_S: Final = 5.0
_QUOTED_CHARS: Final = 300
_SECRET: Final = re.compile(r"[\x21-\x7e]{1,4096}", re.ASCII)
_A_CALL_ID: Final = re.compile(CALL_ID, re.ASCII)
_A_URL: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s\"'<>]+")
_NO_TEXT: Final = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
_STARTED: Final = frozenset({200, 201, 202})
_GONE: Final = frozenset({404, 410})
_DENIED: Final = frozenset({401, 403, 407})
_NOT_NOW: Final = frozenset({408, 425})


class StartAnswer(Message):
    """What a start is answered with."""

    call_id: str = Field(pattern=f"^{CALL_ID}$")


class StatusAnswer(CallAnswer):
    """What a status is answered with; without ``status``, a call that has ended."""

    status: CallStatus | None = None


class FindRequest(Message):
    """What a find asks, beside its key."""

    job_id: str


class FindAnswer(Message):
    """What a find is answered with; None is the promise that there is no such call, nor will be."""

    call_id: str | None = Field(pattern=f"^{CALL_ID}$")


class HttpBackend:
    """Renders wherever a service behind an HTTP URL does; the module says what it must answer.

    Nothing is sent before the first start. Safe to share between threads, and to take through a fork.

    Args:
        url: Of the service; https, unless the host is this machine.
        token: Sent as ``Authorization: Bearer``.
        modal_key: Sent as ``Modal-Key``: the token id of a Modal endpoint with ``requires_proxy_auth``.
        modal_secret: Sent as ``Modal-Secret``; belongs to it.
        timeout: For each request as a whole, from the look-up of the name to the last byte of the answer.
        slots: Orders that are handed over at once; None is no limit. The service itself says how many it renders.
        allow_http: Whether a plain http URL of another machine will do. Credentials and signed URLs then travel in the
            clear: for a network that is encrypted underneath.
        ssl_context: What judges certificates, for a service with an authority of one's own.

    Raises:
        ConfigurationError: The URL is none that may be used, or a secret could not be sent in a header.
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
        self._secrets = tuple(secrets.values())
        self._slots = slots
        self._closed = False
        total_s = timeout.total_seconds()
        headers |= {"Accept": "application/json", "Content-Type": "application/json"}
        self._client = Client(headers, total_s=total_s, connect_s=_CONNECT_S, stall_s=total_s, ssl_context=ssl_context)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._origin!r})"

    @property
    def slots(self) -> int | None:
        return self._slots

    def start(self, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:  # noqa: ARG002 - the run reports by webhook
        """Hand the order over; its run reports to the order's callback."""
        key = {"Idempotency-Key": order.token}
        answer = self._ask("POST", self._url, headers=key, body=order.model_dump_json().encode(), what="start")
        if answer.status not in _STARTED:
            raise self._refusal("start", answer, secrets=_secrets_of(order))
        try:
            return BackendCall(StartAnswer.model_validate_json(answer.body).call_id)
        except ValidationError:
            raise self._unreadable("start", answer, "without a call id", outcome_known=False) from None

    def poll(self, call: BackendCall) -> CallState:
        """Ask how the call stands."""
        if _A_CALL_ID.fullmatch(call.id) is None:
            return CallState(status=CallStatus.MISSING)
        answer = self._ask("GET", self._below(call.id), what="status")
        if answer.status in _GONE:
            return CallState(status=CallStatus.MISSING)
        if answer.status == 202:
            return CallState(status=CallStatus.RUNNING)
        if answer.status != 200:
            raise self._refusal("status", answer)
        try:
            stands = StatusAnswer.model_validate_json(answer.body)
        except ValidationError:
            raise self._unreadable("status", answer, "that is no status") from None
        status = stands.status
        if status is None:  # a bare answer of the function; an empty object is nobody's
            if stands.outcome is None and stands.error is None:
                raise self._unreadable("status", answer, "that is no status")
            status = CallStatus.ENDED
        if status is not CallStatus.ENDED:
            return CallState(status=status)
        return CallState(status=status, outcome=stands.outcome, error=None if stands.outcome else stands.error)

    def cancel(self, call: BackendCall) -> None:
        """Tell the service to stop the call."""
        if _A_CALL_ID.fullmatch(call.id) is None:
            return
        answer = self._ask("DELETE", self._below(call.id), what="cancel")
        if answer.status not in {200, 202, 204} | _GONE:
            raise self._refusal("cancel", answer)

    def close(self) -> None:
        """Close the connections; what renders goes on."""
        self._closed = True
        self._client.close()

    # --- one request

    @property
    def _origin(self) -> str:
        return f"{self._url.scheme}://{self._url.netloc.decode('ascii')}"

    def _below(self, name: str) -> httpx.URL:
        path = self._url.raw_path.decode("ascii").rstrip("/")
        return self._url.copy_with(raw_path=f"{path}/{quote(name, safe=':~')}".encode("ascii"))

    def _ask(
        self,
        method: str,
        url: httpx.URL,
        *,
        what: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Response:
        if self._closed:
            raise BackendError("the backend is closed", retryable=True, code="backend.closed")
        starts = method == "POST"
        message = f"the render service at {self._origin}"
        try:
            response = self._client.request(
                method, url, headers=headers, body=body, fresh=starts, max_bytes=MAX_ANSWER_BYTES
            )
        except NotSentError as error:
            message = f"{message} {error}: the request ({what}) was not sent"
            raise BackendError(message, retryable=True, code="backend.unreachable") from None
        except NetError as error:
            message = f"{message} {error} ({what})"
            raise BackendError(message, retryable=True, outcome_known=not starts, code="backend.no-answer") from None
        if not response.whole:
            message = f"{message} answered more than {MAX_ANSWER_BYTES} bytes ({what})"
            raise BackendError(message, retryable=True, outcome_known=not starts, code="backend.no-answer")
        return response

    # --- what an answer means

    def _refusal(self, what: str, answer: Response, *, secrets: tuple[str, ...] = ()) -> BackendError:
        """Return the error that an answer stands for, by the table of the module."""
        status = answer.status
        said = _say(answer, (*self._secrets, *secrets))
        message = f"the render service at {self._origin} answered {status} ({what})"
        unknown = what == "start"
        wait = answer.headers.get("retry-after")
        if status == 429 or (status == 503 and wait):
            asked = f", for {wait} s" if wait and wait.isascii() and wait.isdecimal() and len(wait) < 7 else ""
            return BackendError(f"{message}: not now{asked}{said}", retryable=True, code="backend.busy")
        if status in _NOT_NOW:
            return BackendError(message + said, retryable=True)
        if status in _DENIED:
            hint = "check the token, or Modal's key and secret, that this backend was given"
            return BackendError(f"{message}: {hint}{said}", retryable=False, code="backend.denied")
        if status == 501 or 400 <= status < 500:
            hint = "; is its URL right?" if status in {404, 405} else ""
            return BackendError(f"{message}{hint}{said}", retryable=False, code="backend.refused")
        if status >= 500:
            return BackendError(message + said, retryable=True, outcome_known=not unknown)
        if status == 303:
            hint = "it must answer at once, and not when the render ends"
            return BackendError(
                f"{message}: {hint}", retryable=True, outcome_known=not unknown, code="backend.redirect"
            )
        if 300 <= status < 400:
            hint = "redirects are never followed, for credentials would go along; give the backend the final URL"
            return BackendError(f"{message}: {hint}", retryable=False, code="backend.redirect")
        return self._unreadable(what, answer, "that means nothing here", outcome_known=not unknown)

    def _unreadable(self, what: str, answer: Response, why: str, *, outcome_known: bool = True) -> BackendError:
        message = f"the render service at {self._origin} answered {answer.status} ({what}) {why}"
        return BackendError(message, retryable=False, outcome_known=outcome_known, code="backend.bad-answer")


class KeyedHttpBackend(HttpBackend):
    """Renders at a service that keeps starts by their key, as `renderdispatch.web.renders` does.

    A start whose answer was lost is repeated once, and `find` tells what became of it: an attempt never waits for its
    start deadline just because an answer was lost.
    """

    def start(self, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
        """Hand the order over; a second time where it is not known what became of the first."""
        try:
            return super().start(order, on_event=on_event)
        except BackendError as lost:
            if lost.outcome_known:
                raise
            try:
                return super().start(order, on_event=on_event)
            except BackendError:  # it says nothing about the first one
                raise lost from None

    def find(self, *, job_id: str, token: str) -> BackendCall | None:
        """Return the call that was started for this attempt; None when the service says that none was, nor will be."""
        body = FindRequest(job_id=job_id).model_dump_json().encode()
        answer = self._ask("POST", self._below("find"), headers={"Idempotency-Key": token}, body=body, what="find")
        if answer.status != 200:
            raise self._refusal("find", answer, secrets=(token,))
        try:
            call_id = FindAnswer.model_validate_json(answer.body).call_id
        except ValidationError:
            raise self._unreadable("find", answer, "without a call id") from None
        return None if call_id is None else BackendCall(call_id)


def _read_url(url: str, *, allow_http: bool) -> httpx.URL:
    """Return the URL, once it may be used; what is refused is never quoted, for it may hold a secret."""
    try:
        read = httpx.URL(url.strip())
        host = read.host
    except (httpx.InvalidURL, UnicodeError):
        raise ConfigurationError("the URL of a render service is none") from None
    if read.scheme not in {"https", "http"} or not host or not (read.port is None or 0 < read.port < 65536):
        raise ConfigurationError("the URL of a render service is one such as https://gpu.example.com/renders")
    if read.userinfo or read.query or read.fragment or "?" in url or "#" in url:
        message = "the URL of a render service has no user name, query or fragment; secrets have arguments of their own"
        raise ConfigurationError(message)
    if read.scheme == "http" and not allow_http and not _is_here(host):
        message = (
            "the URL of a render service is https, for its credentials and signed URLs are secret; "
            "allow_http=True takes http, for a network that is encrypted underneath"
        )
        raise ConfigurationError(message)
    return read


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _read_secret(name: str, value: str) -> str:
    if _SECRET.fullmatch(value) is None:
        raise ConfigurationError(f"{name} is 1 to 4096 visible ASCII characters; a line break at its end, perhaps?")
    return value


def _secrets_of(order: RenderOrder) -> tuple[str, ...]:
    """Return what of an order must not be quoted, beside its URLs."""
    puts = (order.video.put, order.result.put)
    found = [order.token, *(value for put in puts for name, value in put.headers.items() if name.startswith("x-"))]
    if order.callback is not None:
        found.append(order.callback.key)
    return tuple(found)


def _say(answer: Response, secrets: tuple[str, ...]) -> str:
    """Return what a refusal says for itself: one short line, without URLs and without what we sent in secret."""
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        try:
            text = next(_messages(from_json(answer.body)), "")
        except ValueError:
            return ""
    elif kind == "text/plain":
        text = answer.body[: 16 * _QUOTED_CHARS].decode(errors="replace")
    else:
        return ""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "<secret>")
    text = _NO_TEXT.sub(" ", _A_URL.sub("<url>", text)).strip()
    if len(text) > _QUOTED_CHARS:
        text = text[: _QUOTED_CHARS - 3] + "..."
    return f": {text}" if text else ""


def _messages(said: JsonValue) -> Iterator[str]:
    """Yield what reads as a message, where services and frameworks put it."""
    match said:
        case {"error": {"message": str(text)}} | {"error": str(text)} | {"message": str(text)} | {"detail": str(text)}:
            yield text
        case {"detail": [{"msg": str(text)}, *_]}:  # FastAPI's; what else it says there quotes the order
            yield text
