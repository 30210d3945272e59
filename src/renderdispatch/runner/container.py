"""What does a function in somebody's cloud do with an order?

All of it is `carry_out`: strings go in and come out, so that nothing needs unpickling on either side, and an answer is
never mistaken for a call that still runs. The function that is deployed around it is one line; see
`renderdispatch.modal_app`.
"""

from __future__ import annotations

import _thread
import logging
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from pydantic import ValidationError
from pydantic_core import from_json

from renderdispatch.messages import (
    PROTOCOL,
    CallAnswer,
    Completed,
    EventReply,
    Failed,
    FaultDomain,
    JobError,
    RenderOrder,
)
from renderdispatch.plumbing.failures import job_error
from renderdispatch.plumbing.stop import Leaving, RunLeft
from renderdispatch.runner.render import SupervisedRender
from renderdispatch.runner.run import RunnerIO, run_order
from renderdispatch.runner.ways import way_of

_log: Final = logging.getLogger("renderdispatch.runner")

LEAVE_S: Final = 8.0
"""How long what the platform throws in is held back while the run cleans up after itself."""

MARGIN: Final = timedelta(seconds=60)
"""How long before the platform's timeout a run gives up by itself: it may take 30 s until a transfer that stalls is
seen, and 30 s more to report the end over a bad network."""

_LOOK_S: Final = 0.2


def carry_out(
    order: str,
    *,
    call_id: str | None = None,
    renderers: Mapping[str, str] | None = None,
    timeout: timedelta | None = None,
) -> str:
    """Carry out an order (JSON of `RenderOrder`) and answer with JSON of `CallAnswer`, whatever happens.

    The render runs in a process of its own, downloads and uploads go by the order's signed URLs: no credential is
    needed, none is read. It raises nothing of its own. What the platform throws into this thread (Modal's
    ``InputCancellation``, a `KeyboardInterrupt`) passes, at most ten seconds later: the render process and all that
    it started are dead by then, the temporary files are gone and connections cut. Such a run reports no end, for it
    may be started again.

    Args:
        order: What is to be done. Unknown fields are ignored, so that a newer service can order; ``file:`` URLs are
            refused, whatever it says.
        call_id: What the platform calls this call; the check-in brings it to the service.
        renderers: Scenes beside those that are registered, each as ``"package.module:name"``.
        timeout: After which the platform ends this call, where that is known: the run gives up a minute earlier.
    """
    read = _read(order)
    if isinstance(read, JobError):
        return CallAnswer(error=read).model_dump_json()
    if timeout is not None:
        latest = datetime.now(UTC) + max(timeout - MARGIN, timeout / 2)
        read = read.model_copy(update={"finish_by": min(read.finish_by, latest)})
    return _Run(read, call_id, renderers or {}).answer().model_dump_json()


def _read(order: str) -> RenderOrder | JobError:
    try:
        return RenderOrder.model_validate_json(order).model_copy(update={"local": False})
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in found["loc"]) or "it"
        what = f"{where}: {found['msg']}"
    except Exception as error:  # noqa: BLE001 - no text at all, or text that no encoding knows
        what = type(error).__name__
    hint = "; deploy the version of the service here too" if _is_newer(order) else ""
    return JobError(code="order.invalid", message=f"the order cannot be read ({what}){hint}", fault=FaultDomain.REQUEST)


def _is_newer(order: str) -> bool:
    try:
        return int(from_json(order)["protocol"]) > PROTOCOL
    except Exception:  # noqa: BLE001 - then nobody knows
        return False


class _Run:
    """One order, carried out in a thread of its own.

    Exceptions are thrown into the thread that calls `answer`, at any instruction: so it only waits, and takes
    no lock that it could leave behind. Everything that has to be cleaned up belongs to the other thread.
    """

    def __init__(self, order: RenderOrder, call_id: str | None, renderers: Mapping[str, str]) -> None:
        self._order = order
        self._call_id = call_id
        self._renderers = renderers
        self._folder = Path(tempfile.gettempdir()) / f"renderdispatch-{uuid.uuid4().hex}"
        self._leaving = Leaving()
        self._start = [True]  # whoever takes this decides whether the run begins
        self._ended = False
        self._woken = threading.Lock()
        self._answer = CallAnswer()

    def answer(self) -> CallAnswer:
        """Run, and return the answer; what is thrown in meanwhile is raised when the run has left."""
        try:
            self._woken.acquire()
            try:
                # not threading.Thread: its start() waits, in Python code that may be left in the middle
                _thread.start_new_thread(self._work, ())
            except RuntimeError as error:
                return CallAnswer(error=job_error(error, otherwise=FaultDomain.INFRASTRUCTURE))
            while not self._ended:
                self._woken.acquire(timeout=_LOOK_S)
        except BaseException:
            self._leave()
            raise
        return self._answer

    def _leave(self) -> None:
        """Wait until the run has cleaned up, at most `LEAVE_S`, whatever else is thrown in."""
        until = time.monotonic() + LEAVE_S
        while True:
            try:
                if self._start:
                    self._start.pop()
                    return
                if self._ended:
                    return
                self._leaving.leave()
                if time.monotonic() > until:  # it connects somewhere, and holds nothing but its folder
                    shutil.rmtree(self._folder, ignore_errors=True)
                    return
                self._woken.acquire(timeout=_LOOK_S)
            except BaseException:  # noqa: BLE001, S112 - the first one is raised
                continue

    def _work(self) -> None:
        try:
            self._start.pop()
        except IndexError:
            return
        try:
            self._folder.mkdir(mode=0o700)
            self._answer = CallAnswer(outcome=self._run())
        except RunLeft:
            _log.info("job %s: the run was told to leave", self._order.job_id)
        except BaseException as error:  # noqa: BLE001 - an answer, never an exception
            _log.error("job %s: the run broke", self._order.job_id, exc_info=True)
            self._answer = CallAnswer(error=job_error(error, otherwise=FaultDomain.INFRASTRUCTURE))
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._ended = True
            self._woken.release()

    def _run(self) -> Completed | Failed:
        render = SupervisedRender(self._renderers)
        with way_of(self._order, otherwise=lambda _event: EventReply(), leaving=self._leaving) as send:
            io = RunnerIO(send=send, render=render, call_id=self._call_id, work_dir=self._folder, leaving=self._leaving)
            return run_order(self._order, io=io)
