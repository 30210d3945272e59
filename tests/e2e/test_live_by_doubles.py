"""Would the live tests run, if there were accounts?

They are run as a user runs them, in a process of their own: without accounts, and with variables that point at the
loopback Modal and the local R2.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from renderdispatch.testing.local_r2 import LocalR2
from renderdispatch.testing.modal import LoopbackModal
from tests.support.chain import doubles
from tests.support.live import PAGE, PATIENCE_S, RENDER_S, RENDERS, estimate, missing, prices
from tests.support.ports import ReservedPort

_ROOT = Path(__file__).parents[2]
_LIVE = Path(__file__).with_name("test_live.py")


def run_live(home: Path, *options: str, **variables: str) -> str:
    """Run pytest on the live tests with these variables and no others of ours; return what it says."""
    ours = ("MODAL_", "RENDERDISPATCH_", "PYTEST_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "live", *options, str(_LIVE)],
        cwd=_ROOT,
        env={**environment, "HOME": str(home), **variables},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_without_accounts_they_are_skipped_and_say_what_is_missing(tmp_path: Path) -> None:
    """Each test is collected and skipped; the reason names every variable, and no cost is announced."""
    said = run_live(tmp_path)
    assert re.search(r"\b6 skipped in", said), said
    assert "live tests: nothing will be rendered" in said
    for name in (
        "MODAL_TOKEN_ID and MODAL_TOKEN_SECRET",
        "RENDERDISPATCH_STORAGE (r2://bucket/prefix)",
        "RENDERDISPATCH_R2_ACCOUNT_ID",
        "RENDERDISPATCH_R2_ACCESS_KEY_ID",
        "RENDERDISPATCH_R2_SECRET_ACCESS_KEY",
        "docs/how-to/live-tests.md",
    ):
        assert name in said


def test_they_never_run_unasked(pytestconfig: pytest.Config) -> None:
    """What pytest runs by default leaves them out, and so does the target for long tests."""
    assert "not live" in " ".join(pytestconfig.getini("addopts"))
    assert "-m live" not in (_ROOT / "Makefile").read_text()


def test_a_file_of_modal_counts_as_a_token(tmp_path: Path) -> None:
    """What ``modal token new`` writes is enough; an empty file is not."""
    environment = {"HOME": str(tmp_path)}
    assert any("MODAL" in name for name in missing(environment))
    (tmp_path / ".modal.toml").touch()
    assert any("MODAL" in name for name in missing(environment))
    (tmp_path / ".modal.toml").write_text('[default]\ntoken_id = "ak-1"\ntoken_secret = "as-1"\n')
    assert not any("MODAL" in name for name in missing(environment))


@pytest.mark.parametrize("gpu", [*sorted(set(prices()) - {"core", "GiB"})])
def test_the_page_says_what_is_announced(gpu: str) -> None:
    """The costs in the documentation's table are those that the tests print."""
    said = re.findall(
        r"about \$(\d+\.\d\d); \$(\d+\.\d\d) at most",
        estimate({"RENDERDISPATCH_MODAL_GPU": "" if gpu == "no GPU" else gpu}),
    )
    (row,) = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| {gpu} | 0.")]
    assert [cell.strip() for cell in row.split("|")[3:5]] == list(said[0])


def test_the_page_says_the_numbers_behind_it() -> None:
    """How many renders, how long each, and when they are cancelled."""
    words = " ".join(PAGE.read_text().split())
    assert (RENDERS, RENDER_S, PATIENCE_S) == (6, 30, 600)
    assert "starts five renders" in words
    assert "about 30 seconds for each of the six" in words
    assert "not over after ten minutes is cancelled" in words


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("webhook", [True, False], ids=["with a webhook URL", "without one"])
def test_they_pass_where_the_accounts_are_doubles(
    modal: LoopbackModal, r2: LocalR2, tmp_path: Path, *, webhook: bool
) -> None:
    """All but the one that needs a read-only token; their cost is announced first, and the bucket is left empty."""
    variables = {**doubles(modal, r2), "RENDERDISPATCH_STORAGE": f"r2://{r2.buckets[0]}/live"}
    with ReservedPort() as port:
        if webhook:
            variables["RENDERDISPATCH_LIVE_WEBHOOK_URL"] = f"http://127.0.0.1:{port.number}/some/path"
            variables["RENDERDISPATCH_LIVE_WEBHOOK_PORT"] = str(port.number)
        said = run_live(tmp_path, "-q", "-rs", **variables)
    assert re.search(r"\b5 passed, 1 skipped", said), said
    assert estimate(variables) in said.partition("passed")[0], said
    assert "RENDERDISPATCH_LIVE_READ_ONLY_ACCESS_KEY_ID" in said
    assert_emptied(r2)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_one_with_a_token_that_may_only_read_passes(modal: LoopbackModal, r2: LocalR2, tmp_path: Path) -> None:
    """The local R2 has no such tokens: it refuses uploads of videos as R2 would."""
    r2.fail("403", method="PUT", key="/video.mp4", times=1000)
    said = run_live(
        tmp_path,
        "-q",
        *("-k", "h2"),
        **{**doubles(modal, r2), "RENDERDISPATCH_STORAGE": f"r2://{r2.buckets[0]}/live"},
        RENDERDISPATCH_LIVE_READ_ONLY_ACCESS_KEY_ID=r2.access_key_id,
        RENDERDISPATCH_LIVE_READ_ONLY_SECRET_ACCESS_KEY=r2.secret_access_key,
    )
    assert re.search(r"\b1 passed", said), said
    assert_emptied(r2)


def assert_emptied(r2: LocalR2) -> None:
    storage = r2.storage()
    assert [info.key for info in storage.list("live/")] == []
    storage.close()
