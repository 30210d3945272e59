"""Does every job end rightly, whatever goes wrong on the way?

Jobs go through the loopback Modal, the local R2 and a real webhook, and every link misbehaves. `tests.support.storm`
says what is drawn, and how much of it a seed replays.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from renderdispatch.testing.local_r2 import LocalR2
from tests.support.storm import Dice, Storm, stormy_modal, wishes


@pytest.mark.parametrize(
    ("count", "rare", "timeout_s"),
    [
        # Most storms are over in seconds. Where the newest run of a call dies after an older copy answered, that is
        # believed after two minutes of silence, and the job is tried again.
        pytest.param(12, 0.0, 300, marks=pytest.mark.timeout(480), id="12"),
        pytest.param(50, 0.04, 480, marks=[pytest.mark.long, pytest.mark.timeout(600)], id="50"),
        pytest.param(500, 0.01, 1500, marks=[pytest.mark.soak, pytest.mark.timeout(1800)], id="500"),
    ],
)
def test_jobs_end_rightly_in_a_storm(
    count: int,
    rare: float,
    timeout_s: float,
    seed: int,
    r2: LocalR2,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Jobs end as their clients would have them, and leave nothing behind.

    ``rare`` is the share of jobs that meet what takes long: none of their webhooks arrives, or Modal is away for a while.
    """
    database = f"sqlite:///{tmp_path / 'jobs.db'}"
    _blow(database, count, rare, timeout_s, seed, r2, tmp_path, monkeypatch, caplog)


@pytest.mark.long
@pytest.mark.timeout(480)
def test_jobs_end_rightly_in_a_storm_on_postgresql(
    seed: int,
    r2: LocalR2,
    postgres_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What holds on SQLite holds on PostgreSQL."""
    _blow(postgres_url, 12, 0.0, 300, seed, r2, tmp_path, monkeypatch, caplog)


def _blow(
    database: str,
    count: int,
    rare: float,
    timeout_s: float,
    seed: int,
    r2: LocalR2,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    for name in [name for name in os.environ if name.startswith("MODAL_")]:
        monkeypatch.delenv(name)
    dice = Dice(seed)
    with stormy_modal(dice, folder) as modal:
        for name, value in modal.environment().items():
            monkeypatch.setenv(name, value)
        jobs = wishes(dice, count, deaf=rare)
        storm = Storm(dice, jobs, outages=rare, modal=modal, r2=r2, folder=folder, database=database)
        with storm.running():
            try:
                storm.play(clients=16, timeout_s=timeout_s)
            finally:
                storm.settle(timeout_s=90)
                print(json.dumps(storm.summary()))
            problems = storm.problems() + storm.left_over() + storm.logged(caplog.text)
    problems += [f"logged: {record.getMessage()}" for record in caplog.records if record.levelno >= logging.ERROR]
    assert not problems, "\n".join(problems)
