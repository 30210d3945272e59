"""How is a job followed and shown?

`Pause` spaces the reads of a caller that waits; `show_html` draws a job in a notebook.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from numbers import Real
from typing import BinaryIO, Final

from renderdispatch.errors import InvalidRequestError, WaitTimeoutError
from renderdispatch.jobs import Job
from renderdispatch.messages import PollResponse
from renderdispatch.protocols import MAX_POSITION

_EMBED_BYTES: Final = 20 << 20


class Pause:
    """How long to wait between two reads of a job: short after a change, then longer."""

    def __init__(self, timeout: object, *, longest_s: float = 0.5) -> None:
        self._deadline = time.monotonic() + _seconds(timeout)
        self._longest_s = longest_s
        self._seen: object = None
        self._pause = 0.02

    def after(self, job: Job) -> float:
        """Return the seconds to wait after this read.

        Raises:
            WaitTimeoutError: Time is up.
        """
        return self.next(job.revision, f"job {job.id} is still {job.status} ({job.stage}, {job.progress:g} %)")

    def next(self, seen: object, still: str) -> float:
        """Return the seconds to wait after a read.

        Args:
            seen: What was read; if it changes, the pauses are short again.
            still: What is said when time is up.

        Raises:
            WaitTimeoutError: Time is up.
        """
        changed = seen != self._seen
        self._seen = seen
        self._pause = 0.02 if changed else min(self._longest_s, self._pause * 1.5)
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise WaitTimeoutError(still)
        return min(self._pause, left)


def _seconds(timeout: object) -> float:
    given = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if given is None:
        return math.inf
    try:
        seconds = float(given) if isinstance(given, Real) else math.nan
    except OverflowError:
        return math.inf
    if math.isnan(seconds):
        raise InvalidRequestError(f"timeout: seconds, a timedelta or None, not {timeout!r:.80}")
    return seconds


def what_shows(job: Job) -> tuple[object, ...]:
    """Return what a watcher can see of a job: everything but renewed leases."""
    attempt = job.attempt
    drawn = attempt and (attempt.frames, attempt.segments_standing, attempt.segments_own)
    return (job.status, job.stage, job.progress, job.attempt_number, drawn, job.ended)


def show_html(poll: PollResponse, open_video: Callable[[], AbstractContextManager[BinaryIO]]) -> str:
    """Return HTML that shows a job in a notebook: its state, and the finished video.

    Args:
        open_video: Opens the video; a small one is embedded where a page could not load its URL.
    """
    import base64
    import html

    text = f"{poll.status} · {poll.stage} · {poll.progress:g} %"
    if poll.queue_position is not None:
        many = poll.queue_position > MAX_POSITION
        text += f" · more than {MAX_POSITION:,} ahead" if many else f" · place {poll.queue_position}"
    if poll.segments is not None:
        text += f" · {poll.segments.standing} of {poll.segments.total} segments"
        text += f" · {poll.segments.taken_over} taken over" if poll.segments.taken_over else ""
        text += f" · {poll.segments.drawing} draw" if poll.segments.drawing > 1 else ""
    if poll.error is not None:
        text += f" · {poll.error.code}: {poll.error.message}"
    text += "".join(f" · warning: {warning.message}" for warning in poll.warnings)
    shown = f"<div><code>{html.escape(poll.job_id)}</code> {html.escape(text)}</div>"
    if poll.result is not None and poll.download_url is None:
        return f"{shown}<div>The video is kept no longer.</div>"
    if poll.download_url is None or poll.result is None:
        return shown
    source = poll.download_url
    if not source.startswith("http") and poll.result.bytes <= _EMBED_BYTES:
        with open_video() as file:
            source = "data:video/mp4;base64," + base64.b64encode(file.read()).decode()
    return f'{shown}<video controls style="max-width:100%" src="{html.escape(source)}"></video>'
