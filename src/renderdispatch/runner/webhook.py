"""How does a run report over a network?

By signed webhooks, one request a try: each try is signed afresh under the same id. Nothing that the other side does
can hold a run up or fill its memory: redirects are not followed, cookies not kept, of an answer only the first
kilobytes are read, and a try that is not over after seconds is cut off, whatever trickles in. A refusal with another
time in its ``Date`` corrects this machine's clock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final

import httpx
from pydantic import ValidationError

from renderdispatch.messages import Callback, EventReply, RenderEvent, RenderOrder
from renderdispatch.plumbing.net import Wire
from renderdispatch.plumbing.stop import Stop
from renderdispatch.runner.reporting import NotDeliveredError
from renderdispatch.webhooks import EventId, WebhookSigner

_log: Final = logging.getLogger("renderdispatch.runner")

_ANSWER_BYTES: Final = 16384
_CONNECT_S: Final = 5.0
_TRY_S: Final = 10.0
_CLOCK_SLACK: Final = timedelta(seconds=30)
_SANE_YEARS: Final = range(2000, 2200)


class WebhookSender:
    """Sends the events of one order to its callback; a `reporting.Send`, for one thread at a time.

    Args:
        now: This machine's clock.
        try_s: Seconds after which a try is over.
    """

    def __init__(
        self,
        order: RenderOrder,
        callback: Callback,
        *,
        stop: Stop | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        try_s: float = _TRY_S,
    ) -> None:
        for name in ("httpx", "httpcore"):  # they log URLs, and a callback's may hold a secret
            logging.getLogger(name).setLevel(logging.WARNING)
        self._attempt = order.attempt
        self._url = callback.url
        self._signer = WebhookSigner(callback.key)
        self._now = now
        self._try_s = try_s
        self._offset = timedelta(0)
        self._wire = Wire()
        self._stop = stop or Stop()
        self._stop.on_request(self.cut)
        self._client = httpx.Client(
            timeout=httpx.Timeout(try_s, connect=min(try_s, _CONNECT_S)),
            limits=httpx.Limits(max_connections=1),
            follow_redirects=False,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    def __call__(self, event: RenderEvent) -> EventReply:
        """Deliver the event and return the answer.

        Raises:
            NotDeliveredError: It did not arrive, or was not taken.
        """
        body = event.model_dump_json().encode()
        message_id = str(EventId(event.job_id, self._attempt, event.event_id))
        response, answer = self._post(message_id, body)
        if response.status_code == 401 and self._correct_clock(response):
            response, answer = self._post(message_id, body)
        if response.is_success:
            return _read_reply(answer)
        hint = ", a redirect, which is never followed" if response.has_redirect_location else ""
        message = f"the callback answered {response.status_code}{hint}"
        raise NotDeliveredError(message, retry_after_s=_retry_after(response))

    def cut(self) -> None:
        """Cut off the try that another thread is at."""
        self._wire.cut()

    def __enter__(self) -> WebhookSender:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection; a try in another thread is cut off."""
        self._stop.forget(self.cut)
        self.cut()
        self._client.close()

    def _post(self, message_id: str, body: bytes) -> tuple[httpx.Response, bytes]:
        headers = self._signer.sign(message_id, body, now=self._now() + self._offset)
        headers["content-type"] = "application/json"
        answer = b""
        try:
            with (
                self._wire.cut_after(self._try_s) as watch,
                self._client.stream(
                    "POST", self._url, content=body, headers=headers, extensions={"trace": watch}
                ) as response,
            ):
                for chunk in response.iter_raw():
                    answer += chunk
                    if len(answer) > _ANSWER_BYTES:
                        break
        except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as error:  # their text may hold the URL
            raise NotDeliveredError(f"the callback cannot be reached ({type(error).__name__})") from None
        return response, answer[:_ANSWER_BYTES]

    def _correct_clock(self, response: httpx.Response) -> bool:
        """Take the other side's time where ours is off; return whether that changes anything."""
        try:
            theirs = parsedate_to_datetime(response.headers["date"])
        except (KeyError, ValueError):
            return False
        if theirs.tzinfo is None or theirs.year not in _SANE_YEARS:
            return False
        offset = theirs - self._now()
        if abs(offset - self._offset) < _CLOCK_SLACK:
            return False
        _log.warning("this clock is off by %.0f s; events are signed with the callback's", offset.total_seconds())
        self._offset = offset
        return True


def _read_reply(answer: bytes) -> EventReply:
    """Read the answer; whatever cannot be read says nothing against going on."""
    try:
        return EventReply.model_validate_json(answer)
    except ValidationError:
        return EventReply()


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds that the other side asked for; dates are not understood."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdecimal() else 0.0
