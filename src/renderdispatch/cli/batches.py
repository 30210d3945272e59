"""How does a command render many songs, and go on where an earlier run stopped?

The rows become jobs of one batch. Their videos are written to one folder as they are ready, and its manifest
(`renderdispatch.cli.manifest`) says what became of each. A row whose video is there already is left out, a job that
still runs or whose video is still stored is taken over, and everything else is rendered.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click
from attrs import define, evolve, field, frozen

from renderdispatch import errors
from renderdispatch.batches import MAX_ROWS, Submission
from renderdispatch.cli.batch_rows import BatchRow, Hashes, WrongRowsError, read_rows
from renderdispatch.cli.display import length, note, print_warnings, report, report_json
from renderdispatch.cli.failures import tell
from renderdispatch.cli.interrupts import Interrupted, Interrupts
from renderdispatch.cli.manifest import Entry, Manifest, error_of
from renderdispatch.cli.pictures import ChosenScene
from renderdispatch.cli.progress import BatchBars
from renderdispatch.cli.songs import status_of
from renderdispatch.cli.targets import Sources, read_target
from renderdispatch.engine.watching import Pause
from renderdispatch.jobs import Job
from renderdispatch.messages import JobStatus
from renderdispatch.service import RenderService

_CANCEL_S: Final = 5.0
"""How long interrupted renders may take to stop computing."""

_AHEAD: Final = 32
"""Jobs are claimed in the order of their rows, so the next ones to end are among the first that have not ended."""

_RUNNING: Final = 1000

_SHOWN: Final = 20
"""So many wrong rows are named; more of them are one mistake, such as another kind of file."""


@frozen
class Todo:
    """A row that is to be rendered, or whose job is followed.

    Args:
        force: Whether its video may replace a file.
    """

    row: BatchRow
    entry: Entry
    force: bool


def render_batch(
    source: Path,
    output: Path,
    defaults: Submission,
    interrupts: Interrupts,
    *,
    chosen: ChosenScene,
    slots: int | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Render the rows of a file or a folder; return the exit status.

    Args:
        source: The file of JSON lines, or the folder of songs.
        output: The folder of the videos.
        defaults: What rows leave out.
        interrupts: Its signals cancel what runs.
        chosen: The scene of the command line.
        slots: How many renders this machine does at once; None: as many as suit it.
        force: Whether videos replace files that the manifest does not know.
        as_json: Print a line of JSON for each row, and one for all.
        quiet: Print nothing but errors.
    """
    began = time.monotonic()
    run: _Run | None = None
    try:
        service, where = chosen.open_service(defaults.backend, slots=slots, parallel=defaults.parallel)
        with closing(service), Manifest.opened(output) as manifest:
            scene = _Scene(chosen, where)
            with interrupts.abrupt():
                rows = read_rows(source, defaults, check=lambda row: service.check(scene.draws(row)))
                todo = list(_Plan(service, manifest, output, scene, force=force).todo(rows))
            run = _Run(service, manifest, output, as_json=as_json)
            run.submit(todo, scene)
            service.start()  # jobs of an earlier run need a worker too
            with BatchBars(quiet=quiet or as_json) as bars:
                run.follow(interrupts, bars)
            if interrupts.received:
                run.cancel()
            _report(run, manifest, rows, seconds=time.monotonic() - began, as_json=as_json, quiet=quiet)
    except WrongRowsError as error:
        for where_, why in islice(error.rows.items(), _SHOWN):
            note(f"renderdispatch: {where_}: {' '.join(why.split())}")
        if len(error.rows) > _SHOWN:
            note(f"renderdispatch: and {len(error.rows) - _SHOWN} more")
        return tell(error, as_json=as_json)
    except errors.RenderDispatchError as error:
        return tell(error, as_json=as_json)
    except Interrupted:
        pass
    if interrupts.received:
        if not quiet:
            note("renderdispatch: interrupted; the same command goes on with what is left")
        return interrupts.exit_status
    return 1 if run is not None and run.failed else 0


@frozen
class _Scene:
    """The scene of the command line: one in a Python file draws all rows, in this process alone."""

    chosen: ChosenScene
    backend: Mapping[str, Any]

    @property
    def only_here(self) -> bool:
        """Whether no other process can render the batch's jobs."""
        return self.chosen.where is not None

    @property
    def program(self) -> Path | None:
        """The Python file."""
        return None if self.chosen.where is None else Path(self.chosen.where.rpartition(":")[0])

    def draws(self, row: Submission) -> Submission:
        """Return the row as it is submitted.

        Raises:
            InvalidRequestError: Its scene is another one than that of the Python file.
        """
        if self.only_here and row.scene != self.chosen.submitted:
            message = "with --scene file.py:NAME, that scene draws all rows; leave 'scene' out"
            raise errors.InvalidRequestError(message, code="scene.file")
        return evolve(row, **self.backend) if self.only_here else row


# --- what is to be done ---------------------------------------------------------------------------


@frozen
class _Plan:
    """Finds out which rows are to be rendered."""

    service: RenderService
    manifest: Manifest
    output: Path
    scene: _Scene
    force: bool

    def todo(self, rows: Sequence[BatchRow]) -> Iterator[Todo]:
        """Yield the rows whose videos are not there.

        Raises:
            WrongRowsError: Some videos cannot be written, or must not. No job was touched.
        """
        hashes, sources = Hashes(), {path: status_of(path) for row in rows for path in map(str, row.files)}
        missing: list[Todo] = []
        wrong: dict[str, str] = {}
        for row in rows:
            digest, known = row.digest(hashes, program=self.scene.program), self.manifest.entries.get(row.file)
            if known is not None and known.digest == digest and known.complete and (self.output / row.file).exists():
                continue
            force = self.force or (known is not None and known.complete)
            try:
                self._check(row, sources, force=force)
            except errors.InvalidRequestError as error:
                wrong[row.where] = f"{error} [{error.code}]"
            new = Entry(file=row.file, row=row.where, digest=digest, audio=row.audio.name)
            missing.append(Todo(row, new, force))
        if wrong:
            raise WrongRowsError(wrong, len(rows))
        for each in missing:
            known = self.manifest.entries.get(each.row.file)
            kept = None if known is None else self._goes_on(known, same=known.digest == each.entry.digest)
            yield each if kept is None else evolve(each, entry=kept)

    def _check(self, row: BatchRow, sources: Sources, *, force: bool) -> None:
        target = read_target(str(self.output / row.file), force=force)
        for each in [target, target.poster] if row.submission.poster else [target]:
            each.check(sources)

    def _goes_on(self, entry: Entry, *, same: bool) -> Entry | None:
        """Return the entry of a job that an earlier run left and this one takes over; cancel one that it does not.

        Args:
            entry: What the manifest knows of a video.
            same: Whether the row asks for the same video still.
        """
        job = None
        if entry.job_id is not None:
            with suppress(errors.JobNotFoundError):
                job = self.service.get(entry.job_id)
        if job is not None and job.batch != self.manifest.batch:  # a file may say anything
            return None
        if job is None:
            return entry if same and entry.job_id is None and not entry.ended and not self.scene.only_here else None
        if same and (job.status is JobStatus.COMPLETE or not (self.scene.only_here or job.ended)):
            return evolve(entry, status=str(JobStatus.PENDING), error=None)
        if not job.ended:
            self.service.cancel(job.id)
        return None


# --- doing it -------------------------------------------------------------------------------------


@define
class _Run:
    """Submits rows, follows their jobs, and writes their videos."""

    service: RenderService
    manifest: Manifest
    output: Path
    as_json: bool
    rendered: int = 0
    failed: int = 0
    _left: dict[str, Todo] = field(factory=dict)
    _running: dict[str, Job] = field(factory=dict)
    _ended_before: int = 0

    def submit(self, todo: list[Todo], scene: _Scene) -> None:
        """Submit the rows that have no job yet."""
        if not todo:
            return  # the folder may be read-only
        for each in todo:
            self.manifest.entries[each.entry.file] = each.entry
        self.manifest.write()  # with the keys, so that a run after a crash finds the jobs
        new = iter([each for each in todo if each.entry.job_id is None])
        self._left = {each.entry.job_id: each for each in todo if each.entry.job_id is not None}
        while rows := list(islice(new, MAX_ROWS)):
            keyed = (evolve(scene.draws(each.row.submission), idempotency_key=each.entry.key) for each in rows)
            made = self.service.submit_many(keyed, batch=self.manifest.batch)
            for each, result in zip(rows, made.rows, strict=True):
                if isinstance(result, errors.RenderDispatchError):
                    self._fail(each, JobStatus.FAILED, {"code": result.code, "message": str(result)})
                else:
                    entry = evolve(each.entry, job_id=result.id)
                    self._left[result.id] = evolve(each, entry=entry)
                    self.manifest.entries[entry.file] = entry
            self.manifest.write()

    def follow(self, interrupts: Interrupts, bars: BatchBars) -> None:
        """Write each video as it is ready, until all jobs have ended or a signal came."""
        total, pause = len(self._left), Pause(None)
        for job_id in list(self._left):  # jobs of an earlier run may have ended already
            self._take_if_ended(job_id, interrupts)
        batch = self.service.batch(self.manifest.batch)
        while self._left and not interrupts.received:
            now_running = {j.id: j for j in batch.jobs(status=JobStatus.PROCESSING, limit=_RUNNING).items}
            self._running, before = {i: j for i, j in now_running.items() if i in self._left}, self._running
            self._look_for_ended(before, interrupts)
            running = [(self._left[i].row.file, job) for i, job in self._running.items() if i in self._left]
            bars.show(running, left=len(self._left), total=total, failed=self.failed)
            seen = (len(self._left), [job.revision for _, job in running])
            if self._left:
                interrupts.wait(pause.next(seen, ""))

    def _look_for_ended(self, before: Iterable[str], interrupts: Interrupts) -> None:
        counts = self.service.batch(self.manifest.batch).counts()
        ended = sum(count for status, count in counts.items() if status.terminal)
        if ended == self._ended_before:
            return
        likely = dict.fromkeys([*before, *islice(self._left, _AHEAD)])
        for job_id in [i for i in likely if i in self._left and i not in self._running]:
            self._take_if_ended(job_id, interrupts)
            if interrupts.received:
                return
        left = counts[JobStatus.PENDING] + counts[JobStatus.PROCESSING]
        if len(self._left) > left:  # the others ended out of order
            for job_id in list(self._left):
                self._take_if_ended(job_id, interrupts)
        self._ended_before = ended

    def _take_if_ended(self, job_id: str, interrupts: Interrupts) -> None:
        if interrupts.received:
            return
        try:
            job = self.service.get(job_id)
        except errors.JobNotFoundError as error:
            deleted = {"code": error.code, "message": "its job was deleted meanwhile"}
            self._fail(self._left.pop(job_id), JobStatus.FAILED, deleted)
            return
        if not job.ended:
            return
        done = self._left.pop(job.id)
        if job.status is not JobStatus.COMPLETE:
            self._fail(done, job.status, error_of(job))
            return
        try:
            self._save(done, job)
        except OSError as error:
            message = f"{error}; the video is kept, and the next run writes it"
            self._fail(done, JobStatus.FAILED, {"code": getattr(error, "code", "system"), "message": message})
            return
        self.rendered += 1
        print_warnings(job)
        self._note(evolve(done.entry, status=str(JobStatus.COMPLETE)))

    def _save(self, done: Todo, job: Job) -> None:
        target = read_target(str(self.output / done.row.file), force=done.force)
        target.take(self.service, job.id)
        if job.artifact is not None and job.artifact.poster_key is not None:
            target.poster.take(self.service, job.id)

    def _fail(self, todo: Todo, status: JobStatus, error: dict[str, str] | None) -> None:
        self.failed += 1
        self._note(evolve(todo.entry, status=str(status), error=error))

    def _note(self, entry: Entry) -> None:
        self.manifest.set(entry)
        if self.as_json:
            report_json(entry.as_json())

    def cancel(self) -> None:
        """Cancel this run's jobs that have not ended, and wait a moment until nothing computes.

        Closing the service ends the rest. Other jobs of the batch are left alone: another folder may have a copy of
        the manifest.
        """
        for job_id in self._left:
            with suppress(errors.JobNotFoundError):
                self.service.cancel(job_id)
        with suppress(errors.WaitTimeoutError):
            self.service.batch(self.manifest.batch).wait(_CANCEL_S)
        for job_id, todo in self._left.items():
            with suppress(errors.JobNotFoundError):
                if self.service.get(job_id).status is JobStatus.COMPLETE:  # it was faster: the next run writes it
                    continue
            self.manifest.set(evolve(todo.entry, status=str(JobStatus.CANCELLED)))


# --- the last lines -------------------------------------------------------------------------------


def _report(run: _Run, manifest: Manifest, rows: list[BatchRow], *, seconds: float, as_json: bool, quiet: bool) -> None:
    entries = [manifest.entries[row.file] for row in rows]
    done = sum(entry.complete for entry in entries)
    if as_json:
        counts = {"rows": len(rows), "complete": done, "rendered": run.rendered, "failed": run.failed}
        report_json({"batch": manifest.batch, **counts, "manifest": str(manifest.path), "seconds": round(seconds, 3)})
        return
    for entry in entries:
        if entry.error is not None and not entry.complete:
            message = " ".join(entry.error["message"].split())
            where = entry.row if entry.row == entry.audio else f"{entry.row} ({entry.audio})"
            note(f"renderdispatch: {where}: {message} [{entry.error['code']}]")
    if quiet:
        return
    left = len(rows) - done - run.failed
    counted = {"rendered": run.rendered, "there already": done - run.rendered, "failed": run.failed, "left": left}
    shown = ", ".join(f"{number} {what}" for what, number in counted.items() if number)
    folder = click.format_filename(manifest.path.parent)
    report(f"{folder}: {done} of {len(rows)} videos ({shown}) in {length(seconds)}")
