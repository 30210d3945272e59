"""What happens beside the GPU, from the order to the outcome?

`run_order` is the same function on this machine and in a container: nothing here assumes that it is local. The
video goes first, by a write-once PUT to a key that holds the attempt's token; then the result object,
write-once too: that is the commit point (rule J6). Whoever finds one of them there already, looks at it and
reports that one.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Final

from attrs import evolve, field, frozen
from pydantic import ValidationError

from renderdispatch.errors import FaultName, ObjectExistsError, RenderDispatchError, RenderError
from renderdispatch.messages import Artifact, Completed, Failed, FaultDomain, RenderOrder, RenderStats, Stage
from renderdispatch.plumbing.failures import job_error
from renderdispatch.plumbing.stop import Leaving, Stop
from renderdispatch.runner.render import RenderFailed, RenderHost
from renderdispatch.runner.reporting import Pace, Reporter, Send
from renderdispatch.runner.transfers import Transfers, md5_of, open_transfers, sha256_of

_log: Final = logging.getLogger("renderdispatch.runner")


Listen = Callable[[Callable[[str], None]], None]
"""``listen(stop)``: have ``stop(reason)`` called when the service wants the run to end."""


@frozen(kw_only=True)
class RunnerIO:
    """Everything that a run touches.

    Args:
        send: The way to the service; see `reporting.Send`.
        render: Where the renderer runs.
        call_id: What the backend calls this run, where it is known here.
        work_dir: Where the temporary folder goes; None is the system's place.
        pace: How often the run reports.
        now: The clock that deadlines are held against.
        listen: Called with the run's "stop" function, for transports that can speak without being spoken to.
        leaving: Ends the run at once, from another thread.
    """

    send: Send
    render: RenderHost
    call_id: str | None = None
    work_dir: Path | None = None
    pace: Pace = field(factory=Pace)
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    listen: Listen = field(default=lambda _stop: None)
    leaving: Leaving = field(factory=Leaving)


class _TooLate(RenderError):
    code = "deadline.start"
    fault: ClassVar[FaultName] = "start-timeout"


class _OutOfTime(RenderError):
    code = "deadline.total"
    fault: ClassVar[FaultName] = "deadline"


def run_order(order: RenderOrder, *, io: RunnerIO) -> Completed | Failed:
    """Carry out an order; always answer with an outcome, never with an exception.

    A `KeyboardInterrupt` and its like pass after everything was cleaned up, and so does `RunLeft`.
    """
    late = io.now() > order.start_by
    pace = evolve(io.pace, check_in_s=0.0) if late else io.pace  # whatever is answered, it does not start
    with Reporter(order, io.send, call_id=io.call_id, pace=pace, leaving=io.leaving) as reporter:
        io.listen(reporter.stop)
        outcome: Completed | Failed
        try:
            outcome = _carry_out(order, io, reporter)
        except Exception as error:  # noqa: BLE001 - an outcome, never an exception
            known = isinstance(error, (RenderDispatchError, OSError))
            _log.log(logging.INFO if known else logging.ERROR, "job %s failed", order.job_id, exc_info=not known)
            outcome = reporter.failed(job_error(error, otherwise=FaultDomain.INFRASTRUCTURE))
        reporter.finish(outcome, left_s=(order.finish_by - io.now()).total_seconds())
        return outcome


def _carry_out(order: RenderOrder, io: RunnerIO, reporter: Reporter) -> Completed:
    reporter.raise_if_stopped()
    now = io.now()
    left_s = (order.finish_by - now).total_seconds()
    give_up_at = time.monotonic() + left_s

    def in_time() -> None:
        if time.monotonic() > give_up_at:
            raise _OutOfTime("the render did not finish before its deadline")

    def why_stopped(reason: str) -> BaseException:
        try:
            reporter.raise_if_stopped()
        except BaseException as error:  # noqa: BLE001 - it is raised by the stop
            return error
        return RenderError(reason)

    stop = Stop(
        timeout_s=left_s,
        error=why_stopped,
        late=lambda _: _OutOfTime("the render did not finish before its deadline"),
    )
    with (
        tempfile.TemporaryDirectory(prefix="renderdispatch-", dir=io.work_dir) as folder,
        open_transfers(local=order.local, stop=stop) as transfers,
    ):
        io.leaving.on_leave(lambda: stop.request("the run is to leave"))
        reporter.on_stop(lambda: stop.request("the run is to stop"))
        if (delivered := _earlier_result(order, transfers)) is not None:
            return reporter.completed(delivered)
        if now > order.start_by:
            raise _TooLate(f"the order was to start by {order.start_by:%Y-%m-%d %H:%M:%S} UTC; it is past that")
        work = Path(folder)

        def downloading(done: int) -> None:
            in_time()
            reporter.progress(Stage.DOWNLOADING_AUDIO, done / max(1, order.audio_size))

        def rendering(frames: int, total: int) -> None:
            in_time()
            if total > 0:
                reporter.progress(Stage.RENDERING, frames / total, frames=frames, frames_total=total)
            else:
                reporter.progress(Stage.RENDERING)

        reporter.progress(Stage.DOWNLOADING_AUDIO)
        audio = transfers.download(order.audio_url, work / "audio", size=order.audio_size, moved=downloading)
        reporter.progress(Stage.RENDERING)
        video = work / "video.mp4"
        try:
            stats = io.render(order.without_secrets(), audio, video, rendering)
        except Exception as error:
            raise _as_render_error(error) from error
        return _deliver(order, transfers, reporter, video, stats, in_time)


def _deliver(
    order: RenderOrder,
    transfers: Transfers,
    reporter: Reporter,
    video: Path,
    stats: RenderStats,
    in_time: Callable[[], None],
) -> Completed:
    """Upload the video, then the result object: from there on the attempt is delivered."""
    size, sha256 = video.stat().st_size, sha256_of(video, check=reporter.raise_if_stopped)

    def uploading(done: int) -> None:
        in_time()
        reporter.progress(Stage.UPLOADING_VIDEO, done / max(1, size))

    reporter.progress(Stage.UPLOADING_VIDEO)
    same = True
    try:
        etag = transfers.upload(order.video.put, video, moved=uploading)
    except ObjectExistsError:  # an earlier run's, or an earlier try of ours whose answer was lost
        seen = transfers.stat(order.video.get)
        if seen is None:
            raise RenderError("the write-once video stands and cannot be seen", code="video.upload") from None
        # two renders of one scene may well have one size: only an etag that says so makes the bytes the same
        same = seen.size == size and seen.etag == md5_of(video, check=reporter.raise_if_stopped)
        size, etag = seen.size, seen.etag
    artifact = Artifact(**dict(stats), key=order.video.key, bytes=size, etag=etag, sha256=sha256 if same else None)
    reporter.raise_if_stopped()
    outcome = reporter.completed(artifact)
    note = video.with_name("result.json")
    note.write_text(outcome.model_dump_json())
    try:
        transfers.upload(order.result.put, note, moved=lambda _done: None)
    except ObjectExistsError:
        delivered = _earlier_result(order, transfers)
        if delivered is None:
            raise RenderError("the result object stands and cannot be read", code="video.upload") from None
        return reporter.completed(delivered)
    return outcome


def _earlier_result(order: RenderOrder, transfers: Transfers) -> Artifact | None:
    """Return what an earlier run of this attempt delivered."""
    body = transfers.read_small(order.result.get)
    if body is None:
        return None
    try:
        return Completed.model_validate_json(body).artifact
    except ValidationError:
        raise RenderError("the result object is not one that a run wrote", code="result.invalid") from None


def _as_render_error(error: Exception) -> Exception:
    """Blame the scene for whatever its renderer raised without saying whose fault it is."""
    return RenderFailed(job_error(error, otherwise=FaultDomain.SCENE))
