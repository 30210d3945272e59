"""What happens beside the GPU, from the order to the outcome?

`run_order` is the same function on this machine and in a container: nothing here assumes that it is local. The video
goes first, by a write-once PUT to a key that holds the attempt's token. Then comes the result object, write-once too:
that is the commit point (rule J6). A run that finds one of them written already reports the one that is there.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from attrs import evolve, field, frozen
from pydantic import ValidationError

from renderdispatch import messages
from renderdispatch.errors import ObjectExistsError, RenderDispatchError, RenderError
from renderdispatch.plumbing.failures import job_error
from renderdispatch.plumbing.stop import Stop
from renderdispatch.runner.in_place import check_unchanged
from renderdispatch.runner.inputs import with_assets
from renderdispatch.runner.render import RenderFailed, RenderHost
from renderdispatch.runner.reporting import Pace, Reporter, Send, told_to_stop
from renderdispatch.runner.slots import open_slots
from renderdispatch.runner.transfers import Hashing, Moved, Transfers, hex_of, open_transfers

_log: Final = logging.getLogger("renderdispatch.runner")

_LATE_S: Final = 3.0
"""How long a run that begins past its deadline takes to see whether an earlier run delivered."""


class RunLeft(BaseException):
    """The platform takes this run away. Not an `Exception`, so that it is never reported as a failure."""


@frozen(kw_only=True)
class RunnerIO:
    """Everything that a run touches.

    Args:
        send: Delivers an event to the service; see `reporting.Send`.
        render: Where the renderer runs.
        call_id: What the backend calls this run, where it is known here.
        work_dir: Where the temporary folder goes; None: the system's place.
        pace: How often the run reports.
        now: The clock of the deadlines.
        stop: Ends the run from another thread. What it raises decides how: after `RenderStopped` the run reports that
            it was stopped; `RunLeft` passes, after everything was cleaned up and without a report.
    """

    send: Send
    render: RenderHost
    call_id: str | None = None
    work_dir: Path | None = None
    pace: Pace = field(factory=Pace)
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    stop: Stop = field(factory=lambda: Stop(error=told_to_stop))


def run_order(order: messages.RenderOrder, *, io: RunnerIO) -> messages.Completed | messages.Failed:
    """Carry out an order; always return an outcome, never raise an `Exception`.

    A `KeyboardInterrupt` and the like pass after everything was cleaned up, and so does `RunLeft`.
    """
    began = io.now()
    late = began > _at_the_latest(order.start_by)
    left_s = (_at_the_latest(order.finish_by) - began).total_seconds()
    pace = evolve(io.pace, check_in_s=0.0) if late else io.pace  # whatever the reply says, it does not start
    with (
        Stop(
            timeout_s=left_s if left_s > 0 else _LATE_S, parent=io.stop, error=told_to_stop, late=_out_of_time
        ) as stop,
        Reporter(order, io.send, call_id=io.call_id, pace=pace, stop=stop) as reporter,
    ):
        outcome: messages.Completed | messages.Failed
        try:
            outcome = _Run(order, io, stop, reporter).carry_out(began)
        except Exception as error:  # noqa: BLE001 - an outcome, never an exception
            known = isinstance(error, (RenderDispatchError, OSError))
            _log.log(logging.INFO if known else logging.ERROR, "job %s failed", order.job_id, exc_info=not known)
            outcome = reporter.events.failed(job_error(error, otherwise=messages.FaultDomain.INFRASTRUCTURE))
        reporter.finish(outcome, left_s=(_at_the_latest(order.finish_by) - io.now()).total_seconds())
        return outcome


def _at_the_latest(deadline: datetime) -> datetime:
    """Return when this machine's clock has surely passed a deadline of the service's clock (rule J13)."""
    return deadline + messages.CLOCK_SLACK


def _out_of_time(_why: str = "") -> RenderFailed:
    message = "the render did not finish before its deadline"
    return RenderFailed(messages.JobError(code="deadline.total", message=message, fault=messages.FaultDomain.DEADLINE))


@frozen
class _Run:
    """One order on its way: the audio comes, the scene is rendered, the video and the result object go."""

    order: messages.RenderOrder
    io: RunnerIO
    stop: Stop
    reporter: Reporter

    def carry_out(self, began: datetime) -> messages.Completed:
        """Deliver the video, or find that an earlier run did."""
        order = self.order
        self.stop.check()
        with (
            tempfile.TemporaryDirectory(prefix="renderdispatch-", dir=self.io.work_dir) as folder,
            open_transfers(local=order.local, stop=self.stop) as transfers,
        ):
            if (delivered := self._earlier_result(transfers)) is not None:
                return self.reporter.events.completed(delivered)
            if began > _at_the_latest(order.start_by):
                message = f"the order was to start by {order.start_by:%Y-%m-%d %H:%M:%S} UTC; it is past that"
                raise RenderFailed(
                    messages.JobError(code="deadline.start", message=message, fault=messages.FaultDomain.START_TIMEOUT)
                )
            if began > _at_the_latest(order.finish_by):
                raise _out_of_time()
            moved = self._enter(messages.Stage.DOWNLOADING_AUDIO, order.audio_size)
            audio = transfers.download(order.audio_url, Path(folder) / "audio", size=order.audio_size, moved=moved)
            check_unchanged(audio, order)
            seen, video = with_assets(order, transfers, Path(folder)), Path(folder) / "video.mp4"
            stats = self._render(seen, audio, video)
            poster_key, warnings = self._upload_poster(transfers, video.with_suffix(".jpg"))
            artifact = self._upload_video(transfers, video, stats)
            artifact = artifact.model_copy(
                update={"poster_key": poster_key, "warnings": (*warnings, *stats.warnings)[: messages.MAX_WARNINGS]}
            )
            return self._commit(transfers, artifact, Path(folder) / "result.json")

    def _enter(self, stage: messages.RunStage, size: int) -> Moved:
        """Report that a stage begins; return what reports how many of its bytes moved."""
        self.reporter.progress(stage)
        return lambda done: self.reporter.progress(stage, done / max(1, size))

    def _render(self, order: messages.RenderOrder, audio: Path, video: Path) -> messages.RenderStats:
        def drawn(frames: int, total: int) -> None:
            if total > 0:
                self.reporter.progress(messages.Stage.RENDERING, frames / total, frames=frames, frames_total=total)
            else:
                self.reporter.progress(messages.Stage.RENDERING)

        self.reporter.progress(messages.Stage.RENDERING)
        try:
            with open_slots(self.order, stop=self.stop, told=self.reporter.segments) as slots:
                return self.io.render(order, audio, video, drawn, slots=slots)
        except Exception as error:  # the scene's fault, unless the error names another one
            raise RenderFailed(job_error(error, otherwise=messages.FaultDomain.SCENE)) from error

    def _upload_poster(
        self, transfers: Transfers, poster: Path
    ) -> tuple[str | None, tuple[messages.RenderWarning, ...]]:
        """Upload the poster, if one was asked for; return its key, and a warning if the renderer wrote none."""
        urls = self.order.poster
        if urls is None:
            return None, ()
        if not poster.is_file() or poster.stat().st_size == 0:
            message = f"scene {self.order.scene!r} made no poster"
            return None, (messages.RenderWarning(code="poster.missing", message=message),)
        self.reporter.progress(messages.Stage.UPLOADING_VIDEO)
        with suppress(ObjectExistsError):  # an earlier run's, or an earlier try of ours whose answer was lost
            transfers.upload(urls.put, poster, moved=lambda _done: self.stop.check(), what="poster")
        return urls.key, ()

    def _upload_video(self, transfers: Transfers, video: Path, stats: messages.RenderStats) -> messages.Artifact:
        order, size, same = self.order, video.stat().st_size, True
        moved = self._enter(messages.Stage.UPLOADING_VIDEO, size)
        with Hashing(video, stop=self.stop) as hashing:
            try:
                etag = transfers.upload(order.video.put, video, moved=moved)
            except ObjectExistsError:  # an earlier run's, or an earlier try of ours whose answer was lost
                found = transfers.stat(order.video.get)
                if found is None:
                    raise RenderError("the write-once video exists and cannot be read", code="video.upload") from None
                # Two renders of one scene may well have one size: only an etag that says so makes the bytes the same.
                # S3 and R2 give to what came in one PUT its MD5.
                md5 = hashlib.md5(usedforsecurity=False)
                same = found.size == size and found.etag == hex_of(video, md5, check=self.stop.check)
                size, etag = found.size, found.etag
            sha256 = hashing.sha256() if same else None
        return messages.Artifact(**dict(stats), key=order.video.key, bytes=size, etag=etag, sha256=sha256)

    def _commit(self, transfers: Transfers, artifact: messages.Artifact, note: Path) -> messages.Completed:
        """Write the result object: from there on the attempt is delivered."""
        self.stop.check()
        outcome = self.reporter.events.completed(artifact)
        note.write_text(outcome.model_dump_json())
        try:
            transfers.upload(self.order.result.put, note, moved=lambda _done: None)
        except ObjectExistsError:
            delivered = self._earlier_result(transfers)
            if delivered is None:
                raise RenderError("the result object exists and cannot be read", code="video.upload") from None
            return self.reporter.events.completed(delivered)
        return outcome

    def _earlier_result(self, transfers: Transfers) -> messages.Artifact | None:
        """Return what an earlier run of this attempt delivered."""
        body = transfers.read_small(self.order.result.get)
        if body is None:
            return None
        try:
            return messages.Completed.model_validate_json(body).artifact
        except ValidationError:
            raise RenderError("no run wrote this result object", code="result.invalid") from None
