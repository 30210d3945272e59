"""Does the whole chain hold with real accounts?

``pytest -m live``: the same scenarios as on every commit, on Modal's GPUs and in a real bucket. What has to be set and
what it costs stands in ``docs/how-to/live-tests.md``; the cost is printed before anything starts.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from renderdispatch.messages import Limits
from renderdispatch.modal_app.deployment import Deployment
from renderdispatch.wiring import open_storage
from tests.support.chain import Chain, settings_of
from tests.support.live import PATIENCE_S, Accounts, accounts, missing
from tests.support.scenarios import (
    answers_at_once,
    renders_whole,
    reports_a_failure,
    reports_a_refused_upload,
    reports_the_video,
    signs_for_seven_days,
)

pytestmark = [pytest.mark.live, pytest.mark.timeout(3 * PATIENCE_S)]

_DEPLOY_S = 1200.0
_WITH_NVENC = frozenset({"T4", "L4", "A10", "L40S", "RTX-PRO-6000"})


@pytest.fixture(scope="session")
def real() -> Accounts:
    """The accounts, with the app deployed; skips where a variable is missing."""
    if lacking := missing(os.environ):
        pytest.skip(f"no real accounts: set {', '.join(lacking)}; see docs/how-to/live-tests.md")
    found = accounts(os.environ)
    command = [sys.executable, "-m", "modal", "deploy", "-m", "renderdispatch.modal_app"]
    done = subprocess.run(
        command,
        env={**os.environ, **found.variables},
        capture_output=True,
        text=True,
        timeout=_DEPLOY_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return found


@contextmanager
def _running(real: Accounts, home: Path, **variables: str) -> Iterator[Chain]:
    """Run the application in a folder of the bucket of its own, and empty that in the end."""
    folder = f"{real.storage}/live-tests-{secrets.token_hex(4)}"
    chain = Chain(
        {**real.variables, "RENDERDISPATCH_STORAGE": folder, **variables},
        home=home,
        webhook=real.webhook_url is not None,
        webhook_url=real.webhook_url,
        webhook_port=real.webhook_port,
        patience_s=PATIENCE_S,
        poll_s=0.5,
    )
    with chain:
        try:
            yield chain
        finally:
            chain.forget()
            storage = open_storage(settings_of({**chain.variables, **real.variables}))
            storage.delete_prefix("jobs/")
            storage.close()


@pytest.fixture(scope="module")
def live_chain(real: Accounts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """The application with real accounts."""
    with _running(real, tmp_path_factory.mktemp("app")) as chain:
        yield chain


def test_t1_t3_t5_h1_the_whole_chain(live_chain: Chain, song: Path, tmp_path: Path) -> None:
    """A song goes in, polling shows how it goes, a video comes out by a URL that is good for seven days."""
    answer = renders_whole(live_chain, song, tmp_path)
    signs_for_seven_days(answer["downloadUrl"])
    audio = live_chain.job(answer["jobId"]).audio
    assert audio is not None
    assert live_chain.objects(audio.key) == {audio.key: song.stat().st_size}


def test_t2_the_video_is_reported(live_chain: Chain, song: Path) -> None:
    """By a webhook that is signed, where one reaches this machine; found out by the reconciler, where none does."""
    reports_the_video(live_chain, song)


def test_t2_a_failure_is_reported(live_chain: Chain, tmp_path: Path) -> None:
    """In the same way, with the reason."""
    reports_a_failure(live_chain, tmp_path)


def test_t4_submit_answers_at_once(live_chain: Chain, song: Path) -> None:
    """The answer comes before anything of Modal is asked; then the job goes its way."""
    job_id = answers_at_once(live_chain, song)
    assert live_chain.wait(job_id)["status"] == "complete"


def test_a_container_says_what_it_draws_with(real: Accounts) -> None:
    """OpenGL draws on the GPU that was asked for, and NVENC encodes where it has that; else llvmpipe and libx264."""
    ran = subprocess.run(
        [sys.executable, "-m", "renderdispatch.cli", "modal", "check", "--json"],
        env={**os.environ, **real.variables, "RENDERDISPATCH_STORAGE": real.storage},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    findings = {found["check"]: found for found in map(json.loads, ran.stdout.splitlines())}
    assert ran.returncode == 0, ran.stdout + ran.stderr
    gpu = next(iter(Deployment.from_environment(real.variables).gpu), None)
    assert findings["container opengl"]["status"] == ("note" if gpu is None else "ok"), findings
    encoders = "libx264, h264_nvenc" if gpu in _WITH_NVENC else "libx264"
    assert findings["container encoder"]["said"].startswith(encoders), findings


def test_h2_an_upload_that_fails_in_the_container_is_a_failed_job(
    real: Accounts, song: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Upload URLs that are signed by a token that may only read are refused, and the job says so."""
    if not real.read_only:
        pytest.skip(
            "no token that may only read: set RENDERDISPATCH_LIVE_READ_ONLY_ACCESS_KEY_ID and "
            "RENDERDISPATCH_LIVE_READ_ONLY_SECRET_ACCESS_KEY; see docs/how-to/live-tests.md"
        )
    limits = Limits(max_attempts=1, total_timeout=timedelta(seconds=PATIENCE_S))
    with _running(real, tmp_path_factory.mktemp("app"), **real.read_only) as chain:
        reports_a_refused_upload(chain, song, status=403, limits=limits, variables=real.variables)
