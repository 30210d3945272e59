"""How does a render process reach its `Slots`, which need storage?

By calls over the two pipes that it has: a call is a line of its events, and the answer is a line of its stdin. Several
calls run at once, each in a thread of the runner. What is large goes by files of this machine. Whatever goes wrong in
the runner is answered as if storage was away.
"""

from __future__ import annotations

import itertools
import logging
import os
import queue
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, cast

from pydantic import ValidationError

from renderdispatch.errors import RenderStopped
from renderdispatch.messages import Message, SegmentCounts
from renderdispatch.plumbing.failures import text_of
from renderdispatch.protocols import Commit, Slots

_log: Final = logging.getLogger("renderdispatch.runner")

_AT_ONCE: Final = 16
_READ_BYTES: Final = 65536


class SlotsShape(Message):
    """What a render process knows of its slots without a call."""

    count: int
    share: int
    parallel: int


class SlotCall(Message):
    """A call of one of the methods of `Slots`, with its arguments; ``path`` is read or written by the runner."""

    id: int
    method: Literal["read_plan", "put_plan", "is_drawn", "commit", "fetch", "report"]
    digest: str = ""
    index: int = 0
    begin: int = 0
    size: int = 0
    path: Path = Path()
    counts: SegmentCounts | None = None
    planned: bool = False


class SlotAnswer(Message):
    """What a call returns; ``stopped`` says why the render is to stop."""

    id: int
    value: bool | str | None = None
    stopped: str | None = None


_NOTHING: Final[dict[str, bool | str | None]] = {"commit": "kept"}
"""What a call that broke returns; None and False are alike."""


def shape_of(slots: Slots) -> SlotsShape:
    """Return what a render process knows of its slots."""
    return SlotsShape(count=slots.count, share=slots.share, parallel=slots.parallel)


class SlotsServer:
    """Carries out calls of a render process, each in a thread.

    Args:
        slots: What is called.
        write_line: Sends a line to the render process.
    """

    def __init__(self, slots: Slots, write_line: Callable[[str], None]) -> None:
        from concurrent.futures import ThreadPoolExecutor  # render processes need none

        self._slots = slots
        self._write_line = write_line
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="renderdispatch-slots")

    def take(self, call: SlotCall) -> None:
        """Begin a call."""
        try:
            self._pool.submit(self._answer, call)
        except RuntimeError:  # the process has as many threads as it may
            self._answer(call)

    def close(self) -> None:
        """Begin no more calls. Those that run end with their slots."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, call: SlotCall) -> None:
        try:
            answer = SlotAnswer(id=call.id, value=self._carry_out(call))
        except RenderStopped as stopped:
            answer = SlotAnswer(id=call.id, stopped=text_of(stopped))
        except Exception:  # noqa: BLE001 - logged; a render never fails because of what keeps its pieces
            _log.exception("%s of a render's slots failed", call.method)
            answer = SlotAnswer(id=call.id, value=_NOTHING.get(call.method))
        except BaseException as leaving:  # noqa: BLE001 - the platform takes the run away: its own thread hears it too
            answer = SlotAnswer(id=call.id, stopped=text_of(leaving))
        self._write_line(answer.model_dump_json())

    def _carry_out(self, call: SlotCall) -> bool | str | None:
        slots = self._slots
        match call.method:
            case "read_plan":
                part = slots.read_plan(call.begin, call.size)
                if part is not None:
                    call.path.write_bytes(part)
                return part is not None
            case "put_plan":
                return slots.put_plan(call.path)
            case "is_drawn":
                return slots.is_drawn(call.digest, call.index)
            case "commit":
                return slots.commit(call.digest, call.index, call.path)
            case "fetch":
                return slots.fetch(call.digest, call.index, call.path)
            case "report":
                assert call.counts is not None
                slots.report(call.counts, planned=call.planned)
                return None


class PipeSlots:
    """The `Slots` of a render process.

    Args:
        shape: What needs no call.
        send: Sends a call to the runner.
        answers: The descriptor from which answers are read; see `listen`.
    """

    def __init__(self, shape: SlotsShape, send: Callable[[SlotCall], None], answers: int = 0) -> None:
        self._shape = shape
        self._send = send
        self._from = answers
        self._ids = itertools.count()
        self._lock = threading.Lock()
        self._waiting: dict[int, queue.SimpleQueue[SlotAnswer]] = {}
        self._gone = False

    def listen(self) -> None:
        """Read answers in a thread from now on."""
        threading.Thread(target=self._read_answers, name="renderdispatch-answers", daemon=True).start()

    @property
    def count(self) -> int:
        """For how many segments there is a place."""
        return self._shape.count

    @property
    def share(self) -> int:
        """Which segments to draw first."""
        return self._shape.share

    @property
    def parallel(self) -> int:
        """How many draw, with the lead."""
        return self._shape.parallel

    def read_plan(self, begin: int, size: int) -> bytes | None:
        """Have the runner write the part to a file, and read it."""
        descriptor, name = tempfile.mkstemp(prefix="plan-")
        os.close(descriptor)
        part = Path(name)
        try:
            found = self._call(method="read_plan", begin=begin, size=size, path=part)
            return part.read_bytes() if found else None
        finally:
            part.unlink(missing_ok=True)

    def put_plan(self, plan: Path) -> bool:
        """Have the runner keep it."""
        return bool(self._call(method="put_plan", path=plan.absolute()))

    def is_drawn(self, digest: str, index: int) -> bool:
        """Ask the runner."""
        return bool(self._call(method="is_drawn", digest=digest, index=index))

    def commit(self, digest: str, index: int, segment: Path) -> Commit:
        """Have the runner keep it."""
        return cast("Commit", self._call(method="commit", digest=digest, index=index, path=segment.absolute()))

    def fetch(self, digest: str, index: int, into: Path) -> bool:
        """Have the runner bring it."""
        return bool(self._call(method="fetch", digest=digest, index=index, path=into.absolute()))

    def report(self, counts: SegmentCounts, *, planned: bool) -> None:
        """Tell the runner."""
        self._call(method="report", counts=counts, planned=planned)

    def _call(self, **call: object) -> bool | str | None:
        answers: queue.SimpleQueue[SlotAnswer] = queue.SimpleQueue()
        number = next(self._ids)
        with self._lock:
            if self._gone:
                raise RenderStopped("the runner is gone")
            self._waiting[number] = answers
        self._send(SlotCall.model_validate({"id": number, **call}))
        answer = answers.get()
        if answer.stopped is not None:
            raise RenderStopped(answer.stopped)
        return answer.value

    def _read_answers(self) -> None:
        """Read until the pipe ends; not by a buffered file, whose lock would keep the interpreter from its end."""
        buffer = b""
        while chunk := os.read(self._from, _READ_BYTES):
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                self._deliver(line)
        with self._lock:
            self._gone = True
            waiting = [*self._waiting.items()]
            self._waiting.clear()
        for number, answers in waiting:
            answers.put(SlotAnswer(id=number, stopped="the runner is gone"))

    def _deliver(self, line: bytes) -> None:
        try:
            answer = SlotAnswer.model_validate_json(line)
        except ValidationError:
            return
        with self._lock:
            answers = self._waiting.pop(answer.id, None)
        if answers is not None:
            answers.put(answer)
