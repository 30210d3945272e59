"""``jobs``, ``scenes`` and ``worker``: looking after a home."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from renderdispatch import local
from tests.support.command_line import SMALL, CommandLine


@pytest.fixture
def failed(cli: CommandLine, song: Path) -> str:
    """The id of a failed job."""
    answer = json.loads(cli("render", song, *SMALL, "--scene", "broken", "-o", "not.mp4", "--json").out)
    return str(answer["jobId"])


def test_list_shows_jobs_newest_first(cli: CommandLine, made: str, failed: str) -> None:
    """One row a job, in aligned columns; ``jobs`` alone is ``jobs list``."""
    listed = cli("jobs", "list")
    heading, first, second = listed.out.splitlines()
    assert heading.split() == ["JOB", "STATUS", "STAGE", "%", "SCENE", "AUDIO", "AGE"]
    assert first.split()[:5] == [failed[:8], "failed", "rendering", "35", "broken"]
    assert second.split()[:6] == [made[:8], "complete", "finalizing", "100", "bars", "song.wav"]
    assert cli("jobs").out.splitlines()[0].split() == heading.split()


def test_list_by_status_and_limit(cli: CommandLine, made: str, failed: str) -> None:
    """Filters are joined; what is left out is mentioned."""
    (line,) = cli("jobs", "list", "--status", "complete", "--json").out.splitlines()
    assert json.loads(line)["jobId"] == made
    limited = cli("jobs", "list", "--limit", "1")
    assert made[:8] not in limited.out
    assert "more" in limited.err


def test_an_empty_home_has_no_jobs(cli: CommandLine) -> None:
    """Scripts get nothing on stdout."""
    ran = cli("jobs", "list")
    assert (ran.status, ran.out, ran.err) == (0, "", "no jobs\n")


def test_show_takes_the_beginning_of_an_id(cli: CommandLine, made: str) -> None:
    """A unique prefix is enough."""
    shown = cli("jobs", "show", made[:5])
    assert shown.status == 0
    assert made in shown.out
    assert "libx264" in shown.out
    assert "kB, " in shown.out
    assert json.loads(cli("jobs", "show", made[:5], "--json").out)["jobId"] == made


def test_show_says_parameters_as_they_were_given(cli: CommandLine, song: Path) -> None:
    """In the form of ``--set``."""
    with local(cli.home, worker=False) as service:
        job_id = service.submit(song, params={"bars": 12, "peaks": False}).id
    assert "bars=12 peaks=false" in cli("jobs", "show", job_id).out


def test_a_prefix_of_several_ids_is_refused(cli: CommandLine, song: Path) -> None:
    """The ids that it may mean are named."""
    with local(cli.home, worker=False) as service:
        ids = [service.submit(song).id for _ in range(17)]  # two of 17 ids begin alike
    first = next(job_id[0] for job_id in ids if sum(job_id[0] == other[0] for other in ids) > 1)
    alike = [job_id for job_id in ids if job_id[0] == first]
    ran = cli("jobs", "show", first)
    assert ran.status == 2
    assert all(job_id in ran.said_one_error() for job_id in alike[:5])


def test_show_says_why_a_job_failed(cli: CommandLine, failed: str) -> None:
    """The message and the code."""
    assert "ZeroDivisionError: a scene's own mistake [scene.failed]" in cli("jobs", "show", failed).out


def test_watch_answers_with_how_it_ended(cli: CommandLine, made: str, failed: str) -> None:
    """Status 0 for a complete job, 1 for another."""
    assert (cli("jobs", "watch", made).status, cli("jobs", "watch", failed).status) == (0, 1)
    assert json.loads(cli("jobs", "watch", failed, "--json").out)["error"]["code"] == "scene.failed"


def test_retry_queues_a_new_job_that_a_worker_renders(cli: CommandLine, song: Path) -> None:
    """The new job names the old one; a worker of the home takes it."""
    process = cli.start("render", song, *SMALL, "--scene", "slow")
    old = cli.wait_for(stage="rendering")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=8)
    new = json.loads(cli("jobs", "retry", old, "--json").out)
    assert (new["status"], new["retryOf"]) == ("pending", old)
    worker = cli.start("worker")
    cli.wait_for(stage="rendering")
    assert cli("jobs", "cancel", new["jobId"]).out == f"job {new['jobId'][:8]}: cancelled\n"
    worker.send_signal(signal.SIGTERM)
    assert "working for" in worker.communicate(timeout=15)[1]
    assert worker.returncode == 0


def test_retry_of_a_complete_job_is_refused(cli: CommandLine, made: str) -> None:
    """Only what failed or was cancelled can be tried again."""
    ran = cli("jobs", "retry", made)
    assert ran.status == 2
    assert ran.said_one_error().endswith("[job.not-retryable]")


def test_save_writes_the_stored_video_again(cli: CommandLine, made: str) -> None:
    """The video is kept with the job; an existing file is refused without ``--force``."""
    before = (cli.folder / "song.mp4").read_bytes()
    assert cli("jobs", "save", made).status == 2
    assert cli("jobs", "save", made, "-o", "again.mp4").out == "again.mp4\n"
    assert (cli.folder / "again.mp4").read_bytes() == before
    assert cli("jobs", "save", made, "--force").status == 0


def test_save_of_a_failed_job_says_why_there_is_no_video(cli: CommandLine, failed: str) -> None:
    """The job's own error."""
    ran = cli("jobs", "save", failed)
    assert ran.status == 1
    assert ran.said_one_error().endswith("[scene.failed]")


def test_rm_frees_what_the_job_kept(cli: CommandLine, made: str) -> None:
    """Record and objects go."""
    ran = cli("jobs", "rm", made[:8])
    assert (ran.status, ran.out) == (0, "removed 1 job\n")
    assert cli.jobs() == []
    assert not list((cli.home / "objects").rglob("*.mp4"))


def test_rm_by_age(cli: CommandLine, made: str, failed: str) -> None:
    """``--older-than`` spares what ended since; ``--all-ended`` spares nothing."""
    assert cli("jobs", "rm", "--older-than", "1h").out == "removed 0 jobs\n"
    assert len(cli.jobs()) == 2
    assert cli("jobs", "rm", "--all-ended").out == "removed 2 jobs\n"
    assert cli.jobs() == []


def test_rm_by_status(cli: CommandLine, made: str, failed: str) -> None:
    """Only what ended so; with ``--older-than`` only what is old too."""
    assert cli("jobs", "rm", "--status", "failed", "--older-than", "1h").out == "removed 0 jobs\n"
    assert cli("jobs", "rm", "--status", "failed").out == "removed 1 job\n"
    assert [job["jobId"] for job in cli.jobs()] == [made]
    refused = cli("jobs", "rm", "--status", "processing")
    assert refused.status == 2


def test_rm_of_a_running_job_is_refused(cli: CommandLine, song: Path) -> None:
    """The error names the next step."""
    process = cli.start("render", song, "--scene", "slow")
    job = cli.wait_for(stage="rendering")
    ran = cli("jobs", "rm", job)
    assert ran.status == 2
    assert f"renderdispatch jobs cancel {job[:8]}" in ran.said_one_error()
    assert cli("jobs", "rm", "--all-ended").out == "removed 0 jobs\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=8)


def test_a_job_is_rendered_by_whichever_worker_takes_it(cli: CommandLine, song: Path) -> None:
    """With a worker that runs already, ``render`` only waits for the result."""
    worker = cli.start("worker", "-v")
    while "Ctrl-C ends" not in (worker.stderr.readline() if worker.stderr else ""):
        pass
    assert cli("render", song, *SMALL, "-o", "one.mp4").status == 0
    worker.send_signal(signal.SIGINT)
    worker.communicate(timeout=10)
    assert worker.returncode == 0


def test_scenes_are_listed_with_what_they_draw(cli: CommandLine) -> None:
    """Each with one line; plug-ins are among them."""
    listed = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in cli("scenes").out.splitlines())
    assert {"bars", "wave", "radial", "slow"} <= set(listed)
    assert listed["slow"].strip() == "Takes as long as it is let."
    assert len({listed[name] for name in ("bars", "wave", "radial")}) == 3


def test_a_scene_shows_its_parameters(cli: CommandLine) -> None:
    """Name, type, default and meaning; as JSON for scripts."""
    shown = cli("scenes", "bars").out
    assert "gain" in shown
    assert "how far the sound moves the picture" in shown
    params = json.loads(cli("scenes", "bars", "--json").out)["params"]
    assert {"name", "type", "default", "help"} == set(params[0])
    assert "no parameters" in cli("scenes", "slow").out
    assert cli("scenes", "bats").status == 2
