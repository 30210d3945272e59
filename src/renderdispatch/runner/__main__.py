"""``python -m renderdispatch.runner``: carry out the order on stdin, as a process.

Stdin: the order as one JSON line; after it, one JSON answer (`EventReply`) a line for each event (``null`` for one
that was not taken), and an unasked-for "stop" at any time. Events go as JSON lines to the descriptor that a parent
process handed over, else to stdout, and then no answers are awaited. The exit status is 0 when the outcome is a
video, 1 when it is not, 2 for an order that cannot be read.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import sys
import threading
from collections.abc import Callable
from io import FileIO, RawIOBase
from typing import BinaryIO, Final

from pydantic import TypeAdapter, ValidationError

from renderdispatch.messages import Action, Completed, EventReply, Failed, RenderEvent, RenderOrder
from renderdispatch.runner.process import events_pipe
from renderdispatch.runner.render import SupervisedRender
from renderdispatch.runner.reporting import Send
from renderdispatch.runner.run import Listen, RunnerIO, run_order
from renderdispatch.runner.ways import way_of

_ANSWER_S: Final = 10.0
_GONE: Final = EventReply(action=Action.STOP, reason="the service is gone")
_REPLY: Final[TypeAdapter[EventReply | None]] = TypeAdapter(EventReply | None)


class _Parent:
    """The way to the process that holds the other ends of the pipes."""

    def __init__(self, answers: RawIOBase, events: BinaryIO) -> None:
        self._answers = answers
        self._events = events
        self._replies: queue.SimpleQueue[EventReply | None] = queue.SimpleQueue()
        self._stop: Callable[[str], None] | None = None
        self._stopped: str | None = None
        self._gone = False

    def send(self, event: RenderEvent) -> EventReply:
        if self._gone:
            return _GONE
        self._events.write(event.model_dump_json().encode() + b"\n")
        try:
            reply = self._replies.get(timeout=_ANSWER_S)
        except queue.Empty:
            raise TimeoutError("the service did not answer") from None
        if reply is None:
            raise ConnectionError("the service did not take the event")
        return reply

    def tell(self, outcome: Completed | Failed) -> None:
        """Say how it ended, without waiting for an answer: what reported by webhook may not have got through."""
        with contextlib.suppress(OSError):
            self._events.write(outcome.model_dump_json().encode() + b"\n")

    def listen(self, stop: Callable[[str], None]) -> None:
        self._stop = stop
        if self._stopped is not None:
            stop(self._stopped)

    def read_replies(self) -> None:
        for line in self._answers:
            with contextlib.suppress(ValidationError):
                reply = _REPLY.validate_json(line)
                self._replies.put(reply)
                if reply is not None and reply.stop:
                    self._obey(reply)
        self._gone = True
        self._replies.put(_GONE)
        self._obey(_GONE)

    def _obey(self, reply: EventReply) -> None:
        self._stopped = reply.reason or "no longer wanted"
        if self._stop is not None:
            self._stop(self._stopped)


def _print_event(event: RenderEvent) -> EventReply:
    sys.stdout.write(event.model_dump_json() + "\n")
    sys.stdout.flush()
    return EventReply()


def _leave(_signal: int, _frame: object) -> None:
    raise SystemExit(143)


def main() -> int:
    """Carry out one order; return the exit status."""
    signal.signal(signal.SIGTERM, _leave)
    # Unbuffered: at its end the interpreter waits for the lock of a buffer that a thread reads from, and aborts.
    stdin = FileIO(0, closefd=False)
    try:
        order = RenderOrder.model_validate_json(stdin.readline())
    except ValidationError as error:
        sys.stderr.write(f"no order on stdin: {error.error_count()} fields are wrong or missing\n")
        return 2
    try:
        parent = _Parent(stdin, events_pipe())
    except KeyError:
        parent = None
    outcome = _run(order, parent)
    return 0 if isinstance(outcome, Completed) else 1


def _run(order: RenderOrder, parent: _Parent | None) -> Completed | Failed:
    send: Send = _print_event if parent is None else parent.send
    listen: Listen = (lambda _stop: None) if parent is None else parent.listen
    if parent is not None:
        threading.Thread(target=parent.read_replies, name="renderdispatch-replies", daemon=True).start()
    with way_of(order, otherwise=send) as way:
        outcome = run_order(order, io=RunnerIO(send=way, render=SupervisedRender(), listen=listen))
    if parent is not None and order.callback is not None:
        parent.tell(outcome)
    return outcome


if __name__ == "__main__":
    sys.exit(main())
