"""What does the service hear of a run, and what does the run hear back?

A `Reporter` sends one event at a time, from a thread of its own: the check-in first, then the newest progress
(at most one a second, older ones dropped rather than queued), a heartbeat when nothing moved, and the final
event. Each answer may say "stop". The way is any callable: a pipe, a webhook, a function; it raises when an
event did not arrive. Rendering never waits for it.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
import uuid
from collections.abc import Callable
from typing import Final

from attrs import frozen

from renderdispatch.errors import RenderStopped
from renderdispatch.messages import (
    Artifact,
    CheckedIn,
    Completed,
    EventReply,
    Failed,
    JobError,
    Progressed,
    RenderEvent,
    RenderOrder,
    RunStage,
)
from renderdispatch.plumbing.stop import Leaving

_log: Final = logging.getLogger("renderdispatch.runner")

Send = Callable[[RenderEvent], EventReply]
"""Deliver one event and return the answer; raise (an `OSError`, when all is well here) when it did not arrive."""

_LEAVE_S: Final = 1.0
_LAST_TRY_S: Final = 3.0
_LOOK_S: Final = 0.1


class NotDeliveredError(OSError):
    """An event did not arrive; ``retry_after_s`` is what the other side asked for, if it did."""

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@frozen(kw_only=True)
class Pace:
    """How often, and how long, a run speaks; seconds."""

    progress_s: float = 1.0
    heartbeat_s: float = 5.0
    check_in_s: float = 10.0
    """How long a run waits for the answer to its check-in before it goes on all the same."""
    final_s: float = 30.0
    """How long the final event is tried: an idle GPU is not billed for a broken network."""
    backoff_s: float = 0.5
    backoff_max_s: float = 5.0


class Reporter:
    """Speaks for one run of an order. Use it as a context manager: leaving it ends its thread."""

    def __init__(
        self,
        order: RenderOrder,
        send: Send,
        *,
        call_id: str | None = None,
        pace: Pace | None = None,
        leaving: Leaving | None = None,
    ) -> None:
        self.run_id = uuid.uuid4().hex
        self._send = send
        self._pace = pace or Pace()
        self._leaving = leaving or Leaving()
        self._common = {"job_id": order.job_id, "token": order.token, "run_id": self.run_id}
        self._check_in = CheckedIn.model_validate({**self._stamp(), "call_id": call_id})
        self._progress: dict[str, object] | None = None
        self._fresh = False
        self._final: Completed | Failed | None = None
        self._stop_reason: str | None = None
        self._on_stop: list[Callable[[], None]] = []
        self._closing = False
        self._failures = 0
        self._not_before = 0.0
        self._final_by: float | None = None
        self._woken = threading.Condition()
        self._checked_in = threading.Event()
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._speak, name="renderdispatch-reporter", daemon=True)

    def __enter__(self) -> Reporter:
        """Check in, and wait a while for the answer."""
        self._thread.start()
        self._await(self._checked_in, self._pace.check_in_s)
        return self

    def __exit__(self, *_: object) -> None:
        with self._woken:
            self._closing = True
            self._woken.notify()
        # a try may hang for longer than that; nobody waits for it, and its thread is a daemon
        if self._final_by is None or self._leaving.asked:
            self._thread.join(_LEAVE_S)
        else:
            self._thread.join(max(0.0, self._final_by - time.monotonic()))

    def stop(self, reason: str) -> None:
        """Have the run stop, as if an answer had said so."""
        self._stop_reason = self._stop_reason or reason
        for cut in tuple(self._on_stop):
            cut()

    def on_stop(self, cut: Callable[[], None]) -> None:
        """Have ``cut`` called when the run is told to stop, or now where it was; from any thread, perhaps again."""
        self._on_stop.append(cut)
        if self._stop_reason is not None:
            cut()

    def raise_if_stopped(self) -> None:
        """Raise `RenderStopped` once any answer said stop; `RunLeft` once the run is to leave."""
        self._leaving.check()
        if self._stop_reason is not None:
            raise RenderStopped(f"told to stop: {self._stop_reason}")

    def progress(
        self, stage: RunStage, fraction: float = 0.0, *, frames: int | None = None, frames_total: int | None = None
    ) -> None:
        """Note where the run is; cheap. Raises `RenderStopped` once any answer said stop."""
        self.raise_if_stopped()
        with self._woken:
            entered = self._progress is None or self._progress["stage"] is not stage
            self._progress = {
                "stage": stage,
                "fraction": min(1.0, max(0.0, fraction)),
                "frames": None if frames is None else max(0, frames),
                "frames_total": None if frames_total is None else max(0, frames_total),
            }
            if entered or not self._fresh:  # the thread may be waiting for as long as a heartbeat
                self._woken.notify()
            self._fresh = True

    def completed(self, artifact: Artifact) -> Completed:
        """Return the event that says so; `finish` sends it."""
        return Completed.model_validate({**self._stamp(), "artifact": artifact})

    def failed(self, error: JobError) -> Failed:
        """Return the event that says so; `finish` sends it."""
        return Failed.model_validate({**self._stamp(), "error": error})

    def finish(self, outcome: Completed | Failed, *, left_s: float = math.inf) -> bool:
        """Send the final event; return whether it arrived in time. A run that is to leave sends none.

        It is tried for ``final_s``, but not past the deadline that is ``left_s`` away: then the service needs no
        telling, and nobody shall pay for it. It always gets the time for one good try.
        """
        self._leaving.check()
        seconds = min(self._pace.final_s, max(left_s, _LAST_TRY_S))
        with self._woken:
            self._final = outcome
            self._final_by = time.monotonic() + seconds
            self._woken.notify()
        return self._await(self._finished, seconds)

    def _await(self, arrived: threading.Event, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not arrived.wait(max(0.0, min(_LOOK_S, until - time.monotonic()))):
            if self._leaving.asked or time.monotonic() >= until:
                return False
        return True

    def _stamp(self) -> dict[str, object]:
        return {"event_id": uuid.uuid4().hex, **self._common}

    # --- the thread

    def _speak(self) -> None:
        while not self._checked_in.is_set() and not self._over():
            if not self._try(self._check_in, self._checked_in):
                self._pause()
        sent = time.monotonic()
        stage = None
        while not self._over():
            with self._woken:
                now = time.monotonic()
                entered = self._fresh and self._progress is not None and self._progress["stage"] is not stage
                pause_s = self._pace.progress_s if self._fresh else self._pace.heartbeat_s
                due = max(0.0 if entered else sent + pause_s, self._not_before)
                if due > now:
                    self._woken.wait(due - now)
                    continue
                news, self._fresh = self._progress, False
            sent = time.monotonic()
            if news is not None:
                stage = news["stage"]
            self._try(self._sign_of_life(news))
        while self._final_by is not None and not self._finished.is_set() and not self._too_late(self._final_by):
            assert self._final is not None
            known = self._checked_in.is_set() or self._try(self._check_in, self._checked_in)
            if not (known and self._try(self._final, self._finished)):
                self._pause()

    def _sign_of_life(self, news: dict[str, object] | None) -> CheckedIn | Progressed:
        """Return the news as an event; where there are none, or no event can carry them, the check-in again."""
        if news is None:
            return self._check_in
        try:
            return Progressed.model_validate({**self._stamp(), **news})
        except Exception:  # noqa: BLE001 - logged; this thread is how the run hears of a stop
            _log.exception("job %s: progress that cannot be reported", self._check_in.job_id)
            return self._check_in

    def _over(self) -> bool:
        return self._closing or self._final is not None

    def _too_late(self, final_by: float) -> bool:
        return self._leaving.asked or time.monotonic() >= final_by

    def _pause(self) -> None:
        with self._woken:
            self._failures += 1
            longest = min(self._pace.backoff_max_s, self._pace.backoff_s * 2.0 ** min(self._failures, 30))
            self._woken.wait(max(random.uniform(longest / 2, longest), self._not_before - time.monotonic()))

    def _try(self, event: RenderEvent, arrived: threading.Event | None = None) -> bool:
        try:
            reply = self._send(event)
        except OSError as error:
            _log.warning("job %s: a report did not arrive: %s", event.job_id, error)
            if isinstance(error, NotDeliveredError):  # a longer wish would cost the run its way to hear of a stop
                self._not_before = time.monotonic() + min(error.retry_after_s, self._pace.heartbeat_s)
            return False
        except Exception:  # noqa: BLE001 - logged
            _log.exception("job %s: a report did not arrive", event.job_id)
            return False
        self._failures = 0
        if arrived is not None:
            arrived.set()
        if reply.stop:
            self.stop(reply.reason or "no longer wanted")
        return True
