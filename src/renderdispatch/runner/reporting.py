"""What does the service hear of a run, and what does the run hear back?

A `Reporter` sends one event at a time, from a thread of its own: the check-in first, then the newest progress (at most
one a second; older ones are dropped, not queued), a heartbeat when nothing moved, and the final event. Each reply may
say "stop". Events go through any callable: a pipe, a webhook, a function. It raises when an event did not arrive.
Rendering never waits for it.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final, TypeVar

from attrs import frozen
from pydantic import BaseModel

from renderdispatch import messages
from renderdispatch.errors import RenderStopped
from renderdispatch.plumbing.retry import Backoff, Trouble, retry
from renderdispatch.plumbing.stop import Bell, Stop, Stopped

_log: Final = logging.getLogger("renderdispatch.runner")

Send = Callable[[messages.RenderEvent], messages.EventReply]
"""Deliver one event and return the reply; raise (an `OSError`, if the fault is not here) when it did not arrive."""

_Event = TypeVar("_Event", bound=BaseModel)

_LEAVE_S: Final = 1.0
_LAST_TRY_S: Final = 3.0


def told_to_stop(reason: str) -> RenderStopped:
    """Make the error of a `Stop` whose request the run reports as ``render.stopped``."""
    return RenderStopped(f"told to stop: {reason}")


class NotDeliveredError(OSError):
    """An event did not arrive; ``retry_after_s`` is what the other side asked for, if it did."""

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@contextmanager
def reporting_by(order: messages.RenderOrder, *, otherwise: Send, stop: Stop | None = None) -> Iterator[Send]:
    """Yield what the order's events go through: webhooks where it names a callback, else ``otherwise``.

    Args:
        order: The order.
        otherwise: What the surroundings offer.
        stop: Cuts off a webhook; for a run whose last report does not matter.
    """
    if order.callback is None:
        yield otherwise
        return
    from renderdispatch.runner.webhook import WebhookSender  # it loads the network

    with WebhookSender(order, order.callback, stop=stop) as webhook:
        yield webhook


@frozen(kw_only=True)
class Pace:
    """How often a run reports, and how long it tries; seconds."""

    progress_s: float = 1.0
    heartbeat_s: float = 5.0
    check_in_s: float = 10.0
    """How long a run waits for the reply to its check-in before it goes on all the same."""
    final_s: float = 30.0
    """How long the final event is tried: an idle GPU is not billed for a broken network."""
    backoff_s: float = 0.5
    backoff_max_s: float = 5.0


class RunEvents:
    """Makes the events of one run of an order.

    Args:
        order: The order.
        call_id: What the backend calls this run, where it is known here.
        run_id: The run's id; None: a new one.
    """

    def __init__(self, order: messages.RenderOrder, *, call_id: str | None = None, run_id: str | None = None) -> None:
        run_id = uuid.uuid4().hex if run_id is None else run_id
        self._common = {"job_id": order.job_id, "token": order.token, "run_id": run_id}
        self.check_in = self.make(messages.CheckedIn, call_id=call_id)

    def completed(self, artifact: messages.Artifact) -> messages.Completed:
        """Return the event for a delivered video."""
        return self.make(messages.Completed, artifact=artifact)

    def failed(self, error: messages.JobError) -> messages.Failed:
        """Return the event for a failure."""
        return self.make(messages.Failed, error=error)

    def make(self, kind: type[_Event], **fields: object) -> _Event:
        """Return an event of a kind, with an id of its own."""
        return kind.model_validate({"event_id": uuid.uuid4().hex, **self._common, **fields})


class Reporter:
    """Reports one run of an order. Use it as a context manager: leaving it ends its thread.

    Args:
        order: The order.
        send: Delivers one event.
        call_id: What the backend calls this run, where it is known here.
        pace: How often to report.
        stop: The run's; a reply of "stop" is a request to it.
    """

    def __init__(
        self,
        order: messages.RenderOrder,
        send: Send,
        *,
        call_id: str | None = None,
        pace: Pace | None = None,
        stop: Stop | None = None,
    ) -> None:
        self.events = RunEvents(order, call_id=call_id)
        self._pace = pace or Pace()
        self._stop = stop or Stop(error=told_to_stop)
        self._send = send
        self._backoff = Backoff(pause_s=2 * self._pace.backoff_s, longest_pause_s=self._pace.backoff_max_s)
        self._not_before = 0.0
        self._stage: messages.RunStage | None = None
        self._idle = True
        self._told: Mapping[str, object] = {}
        self._segments: Mapping[str, object] = {}
        self._news: deque[Mapping[str, object]] = deque(maxlen=1)
        self._final: messages.Completed | messages.Failed | None = None
        self._delivered: list[str] = []
        self._rendering = Stop()  # ends when the outcome is known
        self._ending = Stop()  # ends when the outcome is not sent any more
        self._wake, self._noticed = Bell(), Bell()
        self._thread = threading.Thread(target=self._speak, name="renderdispatch-reporter", daemon=True)

    def __enter__(self) -> Reporter:
        """Check in, and wait a while for the reply, or until the run is to stop."""
        self._rendering.on_request(self._wake.ring)
        self._stop.on_request(self._noticed.ring)
        self._thread.start()
        try:
            self._await(lambda: bool(self._delivered) or self._stop.requested, self._pace.check_in_s)
        except BaseException as error:
            self.__exit__(type(error))
            raise
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._stop.forget(self._noticed.ring)
        if left := self._final is None or error is not None:
            self._ending.request("the run was left")
            self._rendering.request("the run was left")
        # a try may hang for longer than that; its thread is a daemon, and is left alone
        self._thread.join(_LEAVE_S if left else self._ending.remaining_s)

    def progress(self, stage: messages.RunStage, fraction: float = 0.0, **frames: int) -> None:
        """Note how far the run is; cheap. Raises what the run's stop does once it is to stop.

        Args:
            stage: What it does.
            fraction: How much of that is done; less than 0 is 0, and more than 1 is 1.
            frames: ``frames`` and ``frames_total``, where they are known.
        """
        self._stop.check()
        entered = self._stage is not stage
        self._stage = stage
        self._told = {"stage": stage, "fraction": min(1.0, max(0.0, fraction)), **frames}
        self._news.append(self._told)
        if entered or self._idle:  # the thread may be waiting for as long as a heartbeat
            self._wake.ring()

    def segments(self, counts: messages.SegmentCounts, planned: bool) -> None:
        """Note how far the segments are, for the next report; cheap. Raises as `progress` does.

        Args:
            counts: How many there are.
            planned: Whether the plan is kept.
        """
        self._stop.check()
        self._segments = {"segments": counts, "planned": planned}
        if self._told:
            self._news.append(self._told)
        if self._idle:
            self._wake.ring()

    def finish(self, outcome: messages.Completed | messages.Failed, *, left_s: float = math.inf) -> bool:
        """Send the final event; return whether it arrived in time.

        It is tried for ``final_s``, but not past the deadline that is ``left_s`` away: by then the service needs no
        report, and the GPU should not be billed for one. There is always time for one good try. A run that the platform
        takes away sends none.
        """
        self._check_left()
        seconds = min(self._pace.final_s, max(left_s, _LAST_TRY_S))
        self._final, self._ending = outcome, Stop(timeout_s=seconds)
        self._rendering.request("the outcome is known")
        return self._await(lambda: outcome.event_id in self._delivered, seconds)

    def _await(self, condition: Callable[[], bool], seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not condition():
            if not self._noticed.wait(until - time.monotonic()) and time.monotonic() >= until:
                return condition()
            self._check_left()
        return True

    def _check_left(self) -> None:
        """Raise what is not an `Exception`: the platform takes the run away. A run that was stopped still reports."""
        with suppress(Exception):
            self._stop.check()

    # --- the thread -----------------------------------------------------------------------------------

    def _speak(self) -> None:
        with suppress(Stopped):
            self._deliver(self.events.check_in, self._rendering)
        self._send_signs_of_life()
        if self._final is not None:
            with suppress(Exception):  # it was logged, or the time is up
                if not self._delivered:
                    self._deliver(self.events.check_in, self._ending)
                self._deliver(self._final, self._ending)

    def _deliver(self, event: messages.CheckedIn | messages.Completed | messages.Failed, within: Stop) -> None:
        """Deliver an event; try until it arrives, or ``within`` ends: then raise `Stopped`, or the last error."""
        retry(
            lambda: self._try_once(event),
            self._backoff,
            trouble=lambda _error: Trouble.FAILED,
            least_s=lambda _error: self._not_before - time.monotonic(),
            stop=within,
        )
        self._delivered.append(event.event_id)
        self._noticed.ring()

    def _send_signs_of_life(self) -> None:
        sent, latest = time.monotonic(), dict[str, object]()
        while not self._rendering.requested:
            self._idle = True  # before the news are read, so that none come unnoticed in between
            self._idle = not self._news
            entered = bool(self._news) and self._news[0]["stage"] is not latest.get("stage")
            pause_s = self._pace.progress_s if self._news else self._pace.heartbeat_s
            due = max(0.0 if entered else sent + pause_s, self._not_before)
            if (due_s := due - time.monotonic()) > 0:
                self._wake.wait(due_s)
                continue
            sent = time.monotonic()
            latest = dict(self._news.pop()) if self._news else latest
            with suppress(Exception):  # it was logged
                self._try_once(self._sign_of_life(latest))

    def _sign_of_life(self, news: Mapping[str, object]) -> messages.CheckedIn | messages.Progressed:
        """Return the news as an event; where there are none, or no event can carry them, the check-in again."""
        if not news:
            return self.events.check_in
        try:
            return self.events.make(messages.Progressed, **{**news, **self._segments})
        except Exception:  # noqa: BLE001 - logged; this thread is how the run hears of a stop
            _log.exception("job %s: progress that cannot be reported", self.events.check_in.job_id)
            return self.events.check_in

    def _try_once(self, event: messages.RenderEvent) -> None:
        """Deliver an event, or log why it did not arrive. A reply of "stop" reaches the run."""
        try:
            reply = self._send(event)
        except OSError as error:
            _log.warning("job %s: a report did not arrive: %s", event.job_id, error)
            if isinstance(error, NotDeliveredError):  # a longer pause would keep the run from hearing of a stop
                self._not_before = time.monotonic() + min(error.retry_after_s, self._pace.heartbeat_s)
            raise
        except Exception:
            _log.exception("job %s: a report did not arrive", event.job_id)
            raise
        if reply.stop:
            self._stop.request(reply.reason or "no longer wanted")
