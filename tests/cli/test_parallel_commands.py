"""``--parallel``, and what commands show of a video that several draw."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from renderdispatch import JobStatus, RenderService
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.batches import Submission
from renderdispatch.cli.batch_rows import BatchRow, Hashes
from renderdispatch.cli.display import describe_segments
from renderdispatch.cli.pictures import ChosenScene
from renderdispatch.cli.progress import describe_shared, fitted
from renderdispatch.jobs import Attempt, Helper, HelperState, Job
from renderdispatch.messages import RenderRequest, Stage
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import eventually
from renderdispatch.testing.builders import make_artifact, make_ended_job, make_job
from tests.support.command_line import SMALL, CommandLine


class Unchecked(InlineBackend):
    """Takes scenes that only the process of the command knows."""

    def check(self, request: RenderRequest) -> None:
        """Find nothing wrong."""


def _drawn(*, helpers: int = 0, **attempt: Any) -> Job:
    """Return a job that draws: 12 of 75 segments, all its own."""
    started = tuple(Helper(share=n, token=f"h{n}", state=HelperState.STARTED) for n in range(1, helpers + 1))
    counts = {"segments": 75, "segments_standing": 12, "segments_own": 12, **attempt}
    made = Attempt(
        number=1,
        token="token",
        backend="local",
        local=True,
        claimed_at=datetime.now(UTC),
        helpers=started,
        **counts,
    )
    fields: dict[str, Any] = {"status": JobStatus.PROCESSING, "stage": Stage.RENDERING, "progress": 50.0}
    return make_job(**fields, ready_at=None, parallel=1 + helpers, attempts=(made,))


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (_drawn(), "12 of 75 drawn, 63 missing, 1 draws"),
        (_drawn(helpers=3), "12 of 75 drawn, 63 missing, 4 draw"),
        (_drawn(segments_own=4), "12 of 75 drawn, 8 of them taken over, 63 missing, 1 draws"),
        (_drawn(segments=None), None),
        (make_ended_job(), None),
        (make_ended_job(artifact=make_artifact(segments=75)), "75"),
        (
            make_ended_job(artifact=make_artifact(segments=75, segments_taken=50, segments_twice=1)),
            "75, 50 of them taken over, 1 drawn twice",
        ),
    ],
)
def test_segments_in_words(job: Job, said: str | None) -> None:
    """While it is drawn how far they are, in the end how they came about; nothing where there are none."""
    assert describe_segments(job) == said


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (_drawn(), None),
        (_drawn(helpers=2), "3 draw, 0 of 75 segments taken over"),
        (_drawn(helpers=2, segments_own=4), "3 draw, 8 of 75 segments taken over"),
        (_drawn(segments_own=4), "8 of 75 segments taken over"),
        (_drawn(segments=None), None),
    ],
)
def test_the_bar_shows_whom_a_render_shares_with(job: Job, said: str | None) -> None:
    """A run that draws alone, from the first frame on, shows no more than its frames."""
    assert describe_shared(job) == said


@pytest.mark.parametrize(
    ("room", "shown"),
    [
        (80, "2220/2700 frames, 421/s, 0:00:02 left, 2 draw, 6 of 22 segments taken over"),
        (60, "2220/2700 frames, 421/s, 0:00:02 left, 2 draw"),
        (40, "2220/2700 frames, 421/s, 0:00:02 left"),
        (5, "2220/2700 frames"),
    ],
)
def test_a_narrow_terminal_shows_fewer_words(room: int, shown: str) -> None:
    """The stage, the bar and the percentage keep their places."""
    said = "2220/2700 frames, 421/s, 0:00:02 left, 2 draw, 6 of 22 segments taken over"
    assert fitted(said, room) == shown


def test_show_says_how_many_draw(cli: CommandLine) -> None:
    """``jobs show`` has a line for people, and the names of the wire for scripts."""
    cli.home.mkdir()
    store = SqlJobStore(f"sqlite:///{cli.home / 'jobs.db'}")
    job = store.create(_drawn(helpers=3, segments_own=4))
    store.close()
    shown = cli("jobs", "show", job.id).out
    said = dict(line.split(maxsplit=1) for line in shown.splitlines())
    assert said["parallel"].strip() == "4"
    assert said["segments"].strip() == "12 of 75 drawn, 8 of them taken over, 63 missing, 4 draw"
    found = json.loads(cli("jobs", "show", job.id, "--json").out)
    assert found["parallel"] == 4
    assert found["segments"] == {"total": 75, "standing": 12, "own": 4, "takenOver": 8, "missing": 63, "drawing": 4}


def test_the_option_reaches_the_job(cli: CommandLine, song: Path) -> None:
    """The job knows how many were asked for."""
    ran = cli("render", song, *SMALL, "--parallel", "2", "--json")
    assert ran.status == 0, ran.err
    (job,) = cli.jobs()
    assert job["parallel"] == 2


def test_a_number_that_cannot_be(cli: CommandLine, song: Path) -> None:
    """It is bad usage, and nothing is recorded."""
    ran = cli("render", song, "--parallel", "65")
    assert ran.status == 2
    assert "'--parallel'" in ran.err
    assert cli.jobs() == []


@pytest.mark.parametrize(("slots", "parallel", "made"), [(None, 4, 4), (2, 4, 2), (None, 1, 1)])
def test_there_is_a_slot_for_each_that_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slots: int | None, parallel: int, made: int
) -> None:
    """A command that renders here has as many slots as draw; ``--jobs`` says another number."""
    monkeypatch.setenv("RENDERDISPATCH_HOME", str(tmp_path))
    service, _ = ChosenScene.named("bars").open_service(None, slots=slots, parallel=parallel)
    backend = service._engine.parts.backends["local"]
    service.close()
    assert isinstance(backend, LocalGpuBackend)
    if parallel > 1 or slots:
        assert backend.slots == made


def test_other_backends_have_slots_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--parallel`` takes no other backend's place."""
    monkeypatch.setenv("RENDERDISPATCH_HOME", str(tmp_path))
    monkeypatch.setenv("RENDERDISPATCH_BACKENDS", "local,inline")
    service, _ = ChosenScene.named("bars").open_service(None, parallel=4)
    service.close()
    assert list(service._engine.parts.backends) == ["local", "inline"]


def test_a_batch_is_done_whatever_parallel_says(tmp_path: Path) -> None:
    """The same command with another ``--parallel`` renders nothing again: the videos would be the same."""
    song = tmp_path / "song.mp3"
    song.write_bytes(b"a song")
    row = BatchRow("song.mp3", Submission(song, parallel=1), "song.mp4")
    other = evolve(row, submission=evolve(row.submission, parallel=8))
    assert other.digest(Hashes(), program=None) == row.digest(Hashes(), program=None)


def test_a_row_says_how_many_draw_it(cli: CommandLine, song: Path) -> None:
    """What a row leaves out is as the option says; a wrong number names its line."""
    rows = [{"audio": "song.wav", "file": "a"}, {"audio": "song.wav", "file": "b", "parallel": 3}]
    (cli.folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    ran = cli("render", "--batch", "rows.jsonl", "-o", "videos", *SMALL, "--parallel", "2", "-q")
    assert ran.status == 0, ran.err
    assert sorted(job["parallel"] for job in cli.jobs()) == [2, 3]
    (cli.folder / "rows.jsonl").write_text('{"audio": "song.wav", "parallel": 65}\n')
    ran = cli("render", "--batch", "rows.jsonl", "-o", "others")
    assert (ran.status, cli.jobs()[2:]) == (2, [])
    assert "line 1: parallel: an integer from 1 to 64" in ran.err


def test_a_worker_has_so_many_slots(cli: CommandLine, song: Path) -> None:
    """With --jobs 2, a worker renders two songs at once."""
    cli.home.mkdir()
    store, storage = SqlJobStore(f"sqlite:///{cli.home / 'jobs.db'}"), FsspecStorage(cli.home / "objects")
    with RenderService(store, storage, {"local": Unchecked()}, worker=False, owned=[store]) as service:
        for _ in range(2):
            service.submit(song.read_bytes(), scene="slow")
    worker = cli.start("worker", "-q", "--jobs", "2")
    assert eventually(lambda: [job["stage"] for job in cli.jobs()] == ["rendering"] * 2)
    worker.send_signal(signal.SIGTERM)
    worker.communicate(timeout=15)
    assert worker.returncode == 0
