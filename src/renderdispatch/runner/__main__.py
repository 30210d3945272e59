"""``python -m renderdispatch.runner``: carry out the order on stdin, as a process.

Stdin: the order as one JSON line, with the proxies that a parent process hands over; after it, one JSON reply
(`EventReply`) a line for each event (``null`` for one that was not taken), and an unasked-for "stop" at any time.
Events go as JSON lines to the descriptor that a parent process handed over, else to stdout, and then no replies are
awaited. The exit status is 0 when the outcome is a video, 1 when it is not, 2 for an order that cannot be read.

The order of a helper is carried out likewise. There are no events; the last line is its `Helped`, and the status 0.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
from io import FileIO, RawIOBase
from typing import BinaryIO, Final

from pydantic import ConfigDict, TypeAdapter, ValidationError

from renderdispatch.errors import RenderError
from renderdispatch.messages import (
    Action,
    Completed,
    EventReply,
    Failed,
    Helped,
    HelperOrder,
    RenderEvent,
    RenderOrder,
    read_order,
)
from renderdispatch.plumbing.stop import Stop
from renderdispatch.runner.environment import proxies_of, renderers_of
from renderdispatch.runner.help import HelperIO, run_helper
from renderdispatch.runner.process import events_pipe, has_parent, held_descriptor
from renderdispatch.runner.render import SupervisedRender
from renderdispatch.runner.reporting import reporting_by, told_to_stop
from renderdispatch.runner.run import RunnerIO, run_order

_REPLY_S: Final = 10.0
_GONE: Final = EventReply.model_construct(action=Action.STOP, reason="the service is gone")
_REPLY: Final[TypeAdapter[EventReply | None]] = TypeAdapter(EventReply | None, config=ConfigDict(defer_build=True))


class _Parent:
    """The process that holds the other ends of the pipes."""

    def __init__(self, replies: RawIOBase, events: BinaryIO, stop: Stop) -> None:
        self._incoming = replies
        self._events = events
        self._stop = stop
        self._replies: queue.SimpleQueue[EventReply | None] = queue.SimpleQueue()
        self._gone = False

    def send(self, event: RenderEvent) -> EventReply:
        """Hand over one event and wait for the reply."""
        if self._gone:
            return _GONE
        self._events.write(event.model_dump_json().encode() + b"\n")
        try:
            reply = self._replies.get(timeout=_REPLY_S)
        except queue.Empty:
            raise TimeoutError("the service did not reply") from None
        if reply is None:
            raise ConnectionError("the service did not take the event")
        return reply

    def tell(self, outcome: Completed | Failed | Helped) -> None:
        """Hand over how it ended without waiting for a reply: a webhook may not have got through."""
        with contextlib.suppress(OSError):
            self._events.write(outcome.model_dump_json().encode() + b"\n")

    def read_replies(self) -> None:
        """Read replies until the pipe ends."""
        for line in self._incoming:
            with contextlib.suppress(ValidationError):
                reply = _REPLY.validate_json(line)
                self._replies.put(reply)
                if reply is not None and reply.stop:
                    self._stop.request(reply.reason or "no longer wanted")
        self._gone = True
        self._replies.put(_GONE)
        self._stop.request("the service is gone")


def _print_event(event: RenderEvent) -> EventReply:
    sys.stdout.write(event.model_dump_json() + "\n")
    sys.stdout.flush()
    return EventReply()


def main() -> int:
    """Carry out one order; return the exit status."""
    with SupervisedRender(hold=held_descriptor()) as render:
        if has_parent():
            render.fork()  # first: there is one thread, and the order with its secrets was not read yet
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        # Unbuffered: at its end the interpreter waits for the lock of a buffer that a thread reads from, and aborts.
        stdin = FileIO(0, closefd=False)
        try:
            order = read_order(line := stdin.readline())
        except ValidationError as error:
            sys.stderr.write(f"no order on stdin: {error.error_count()} fields are wrong or missing\n")
            return 2
        os.environ |= proxies_of(line)
        render.renderers |= renderers_of(line)
        with contextlib.suppress(RenderError, OSError):  # the render meets it again, and reports it
            render.prepare(order.scene)
        if isinstance(order, HelperOrder):
            _help(order, stdin, render)
            return 0
        return 0 if isinstance(_run(order, stdin, render), Completed) else 1


def _parent_of(stdin: RawIOBase, stop: Stop) -> _Parent | None:
    """Return the parent process, whose replies are read from now on; None from a shell."""
    try:
        parent = _Parent(stdin, events_pipe(), stop)
    except KeyError:
        return None
    threading.Thread(target=parent.read_replies, name="renderdispatch-replies", daemon=True).start()
    return parent


def _help(order: HelperOrder, stdin: RawIOBase, render: SupervisedRender) -> None:
    stop = Stop(error=told_to_stop)
    parent = _parent_of(stdin, stop)
    helped = run_helper(order, io=HelperIO(render=render, stop=stop))
    if parent is None:
        sys.stdout.write(helped.model_dump_json() + "\n")
    else:
        parent.tell(helped)


def _run(order: RenderOrder, stdin: RawIOBase, render: SupervisedRender) -> Completed | Failed:
    stop = Stop(error=told_to_stop)
    parent = _parent_of(stdin, stop)
    with reporting_by(order, otherwise=_print_event if parent is None else parent.send) as send:
        outcome = run_order(order, io=RunnerIO(send=send, render=render, stop=stop))
    if parent is not None and order.callback is not None:
        parent.tell(outcome)
    return outcome


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # taking the interpreter down costs as much as starting it, and there is nothing left to do
