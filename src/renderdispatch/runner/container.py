"""What does a function in somebody's cloud do with an order?

`carry_out` does all of it. Strings go in and come out, so that neither side unpickles anything, and a result is never
mistaken for a call that still runs. The deployed function around it is one line; see `renderdispatch.modal_app`.
"""

from __future__ import annotations

import _thread
import logging
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from pydantic import ValidationError
from pydantic_core import from_json

from renderdispatch import messages
from renderdispatch.plumbing.failures import job_error
from renderdispatch.plumbing.stop import Bell, Stop
from renderdispatch.runner.help import HelperIO, run_helper
from renderdispatch.runner.render import SupervisedRender
from renderdispatch.runner.reporting import reporting_by
from renderdispatch.runner.run import RunLeft, RunnerIO, run_order

_log: Final = logging.getLogger("renderdispatch.runner")

LEAVE_S: Final = 8.0
"""How long what the platform throws in is held back while the run cleans up."""

MARGIN: Final = timedelta(seconds=60)
"""How long before the platform's timeout a run gives up by itself: it may take 30 s to notice a transfer that stalls,
and 30 s more to report the end over a bad network."""

_CHECK_S: Final = 0.2


def carry_out(
    order: str,
    *,
    call_id: str | None = None,
    renderers: Mapping[str, str] | None = None,
    timeout: timedelta | None = None,
) -> str:
    """Carry out an order (JSON of `RenderOrder` or `HelperOrder`) and return JSON of `CallResult`, whatever happens.

    The render runs in a process of its own. Downloads and uploads go by the order's signed URLs: no credential is
    needed, and none is read. It raises no error of its own. What the platform throws into this thread (Modal's
    ``InputCancellation``, a `KeyboardInterrupt`) passes, at most ten seconds later. By then the render process and
    all that it started are dead, the temporary files are gone, and the connections are cut. Such a run reports no
    end, because it may be started again.

    Args:
        order: What is to be done. Unknown fields are ignored, so that a newer service can send orders. ``file:`` URLs
            are always refused.
        call_id: What the platform calls this call; the check-in brings it to the service.
        renderers: Scenes beside those that are registered, each as ``"package.module:name"``.
        timeout: When the platform ends this call, where that is known: the run gives up a minute earlier.
    """
    read = _read(order)
    if isinstance(read, messages.JobError):
        return messages.CallResult(error=read).model_dump_json()
    if timeout is not None:
        # This deadline is of this very clock: take off what the run adds to every deadline.
        latest = datetime.now(UTC) + max(timeout - MARGIN, timeout / 2) - messages.CLOCK_SLACK
        read = read.model_copy(update={"finish_by": min(read.finish_by, latest)})
    return _Run(read, call_id, renderers or {}).result().model_dump_json()


def _read(order: str) -> messages.RenderOrder | messages.HelperOrder | messages.JobError:
    try:
        return messages.read_order(order).model_copy(update={"local": False})
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in found["loc"]) or "it"
        what = f"{where}: {found['msg']}"
    except Exception as error:  # noqa: BLE001 - not text, or text that no encoding can carry
        what = type(error).__name__
    hint = "; deploy the version of the service here too" if _is_newer(order) else ""
    message = f"the order cannot be read ({what}){hint}"
    return messages.JobError(code="order.invalid", message=message, fault=messages.FaultDomain.REQUEST)


def _is_newer(order: str) -> bool:
    try:
        return int(from_json(order)["protocol"]) > messages.PROTOCOL
    except Exception:  # noqa: BLE001 - then it is unknown
        return False


class _Run:
    """One order, carried out in a thread of its own.

    Exceptions are thrown into the thread that calls `result`, at any instruction. So that thread only waits, and takes
    no lock that it could leave locked. Everything that has to be cleaned up belongs to the other thread.
    """

    def __init__(
        self,
        order: messages.RenderOrder | messages.HelperOrder,
        call_id: str | None,
        renderers: Mapping[str, str],
    ) -> None:
        self._order = order
        self._call_id = call_id
        self._renderers = renderers
        self._folder = Path(tempfile.gettempdir()) / f"renderdispatch-{uuid.uuid4().hex}"
        self._stop = Stop(error=RunLeft)
        self._start = [True]  # the thread that pops this decides whether the run begins
        self._ended = False
        self._end = Bell()
        self._result = messages.CallResult()

    def result(self) -> messages.CallResult:
        """Run, and return the result; what is thrown in meanwhile is raised when the run has cleaned up."""
        try:
            try:
                # not threading.Thread: its start() waits, in Python code that an exception may leave half-way
                _thread.start_new_thread(self._work, ())
            except RuntimeError as error:
                return messages.CallResult(error=job_error(error, otherwise=messages.FaultDomain.INFRASTRUCTURE))
            while not self._ended:
                self._end.wait(_CHECK_S)
        except BaseException:
            self._leave()
            raise
        return self._result

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
                self._stop.request("the platform takes the run away")
                if time.monotonic() > until:  # it is connecting somewhere, and holds nothing but its folder
                    shutil.rmtree(self._folder, ignore_errors=True)
                    return
                self._end.wait(_CHECK_S)
            except BaseException:  # noqa: BLE001, S112 - the first one is raised
                continue

    def _work(self) -> None:
        try:
            self._start.pop()
        except IndexError:
            return
        try:
            self._folder.mkdir(mode=0o700)
            self._result = self._run(self._order)
        except RunLeft:
            _log.info("job %s: the platform took the run away", self._order.job_id)
        except BaseException as error:  # noqa: BLE001 - a result, never an exception
            _log.error("job %s: the run broke", self._order.job_id, exc_info=True)
            self._result = messages.CallResult(error=job_error(error, otherwise=messages.FaultDomain.INFRASTRUCTURE))
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._ended = True
            self._end.ring()

    def _run(self, order: messages.RenderOrder | messages.HelperOrder) -> messages.CallResult:
        render = SupervisedRender(self._renderers)
        if isinstance(order, messages.HelperOrder):
            helper = HelperIO(render=render, work_dir=self._folder, stop=self._stop)
            return messages.CallResult(helped=run_helper(order, io=helper))
        with reporting_by(order, otherwise=lambda _event: messages.EventReply(), stop=self._stop) as send:
            io = RunnerIO(send=send, render=render, call_id=self._call_id, work_dir=self._folder, stop=self._stop)
            return messages.CallResult(outcome=run_order(order, io=io))
