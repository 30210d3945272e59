"""How does a run report over a network?

By signed webhooks, one request a try: each try is signed afresh under the same id. Nothing that the other side does
can delay a run or fill its memory: redirects are not followed, cookies are not kept, only the first kilobytes of a
response are read, and a try is cut off after a few seconds, however slowly bytes trickle in. A refusal with another
time in its ``Date`` corrects this machine's clock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

from pydantic import ValidationError

from renderdispatch.messages import Callback, EventReply, RenderEvent, RenderOrder
from renderdispatch.plumbing.net import Client, NetError, Response
from renderdispatch.plumbing.stop import Stop
from renderdispatch.runner.reporting import NotDeliveredError
from renderdispatch.webhooks import EventId, WebhookSigner

_log: Final = logging.getLogger("renderdispatch.runner")

_RESPONSE_BYTES: Final = 16384
_CONNECT_S: Final = 5.0
_TRY_S: Final = 10.0
_CLOCK_SLACK: Final = timedelta(seconds=30)
_SANE_YEARS: Final = range(2000, 2200)


class WebhookSender:
    """Sends the events of one order to its callback; a `reporting.Send`, for one thread at a time.

    Args:
        order: The order.
        callback: Its callback.
        stop: A request to stop cuts off the try that is running; later tries fail at once.
        now: This machine's clock.
        try_s: Seconds after which a try is over, name resolution and the last byte of the response included.
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
        self._attempt = order.attempt
        self._url = callback.url
        self._signer = WebhookSigner(callback.key)
        self._now = now
        self._offset = timedelta(0)
        self._stop = Stop(parent=stop)
        self._client = Client(total_s=try_s, connect_s=_CONNECT_S, stall_s=try_s, proxies=True)

    def __call__(self, event: RenderEvent) -> EventReply:
        """Deliver the event and return the reply.

        Raises:
            NotDeliveredError: It did not arrive, or was not accepted.
        """
        body = event.model_dump_json().encode()
        message_id = str(EventId(event.job_id, self._attempt, event.event_id))
        response = self._post(message_id, body)
        if response.status == 401 and self._correct_clock(response):
            response = self._post(message_id, body)
        if 200 <= response.status < 300:
            return _read_reply(response.body)
        redirects = 300 <= response.status < 400 and "location" in response.headers
        hint = ", a redirect, which is never followed" if redirects else ""
        message = f"the callback answered {response.status}{hint}"
        raise NotDeliveredError(message, retry_after_s=_retry_after(response))

    def __enter__(self) -> WebhookSender:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection; a try in another thread is cut off."""
        self._stop.request("the sender is closed")
        self._stop.__exit__()
        self._client.close()

    def _post(self, message_id: str, body: bytes) -> Response:
        headers = self._signer.sign(message_id, body, now=self._now() + self._offset)
        headers["content-type"] = "application/json"
        try:
            return self._client.request(
                "POST", self._url, headers=headers, body=body, max_bytes=_RESPONSE_BYTES, stop=self._stop
            )
        except NetError as error:
            raise NotDeliveredError(f"the callback {error}") from None

    def _correct_clock(self, response: Response) -> bool:
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


def _read_reply(body: bytes) -> EventReply:
    """Read the reply; one that cannot be read means "go on"."""
    try:
        return EventReply.model_validate_json(body)
    except ValidationError:
        return EventReply()


def _retry_after(response: Response) -> float:
    """Return the seconds that the other side asked for; dates are not understood."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdecimal() else 0.0
