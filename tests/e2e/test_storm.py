"""Does every job end rightly, whatever goes wrong on the way?

Jobs go through the loopback Modal, the local R2 and a real webhook, and every link misbehaves: see `storm_support`
for what is drawn, and what a seed replays. ``RENDERDISPATCH_STORM_SEED=17`` replays one; each run prints its own.
``RENDERDISPATCH_STORM_JOBS=100`` makes the long one shorter, or longer.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from pathlib import Path

import pytest

from renderdispatch.testing.local_r2 import LocalR2
from tests.support.storm import Dice, Storm, stormy_modal, wishes

SEED = "RENDERDISPATCH_STORM_SEED"


@pytest.mark.timeout(480)
def test_a_few_jobs_end_rightly_in_a_storm(
    r2: LocalR2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Twelve jobs end as their clients would have them, and leave nothing behind.

    Most storms are over in seconds; where the newest run of a call dies after an older copy answered, that is believed
    after two minutes of silence, and the job is tried again.
    """
    _survive(12, deaf=0.0, outages=0.0, timeout_s=300, r2=r2, folder=tmp_path, monkeypatch=monkeypatch, caplog=caplog)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_500_jobs_end_rightly_in_a_storm(
    r2: LocalR2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Five hundred jobs end as their clients would have them, and leave nothing behind."""
    count = int(os.environ.get("RENDERDISPATCH_STORM_JOBS", "500"))
    _survive(
        count, deaf=0.01, outages=0.01, timeout_s=780, r2=r2, folder=tmp_path, monkeypatch=monkeypatch, caplog=caplog
    )


def _survive(
    count: int,
    *,
    deaf: float,
    outages: float,
    timeout_s: float,
    r2: LocalR2,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    seed = int(os.environ.get(SEED) or secrets.randbelow(2**32))
    print(f"{SEED}={seed} replays this storm")
    caplog.set_level(logging.WARNING)
    for name in [name for name in os.environ if name.startswith("MODAL_")]:
        monkeypatch.delenv(name)
    dice = Dice(seed)
    with stormy_modal(dice, folder) as modal:
        for name, value in modal.environment().items():
            monkeypatch.setenv(name, value)
        storm = Storm(dice, wishes(dice, count, deaf=deaf), outages=outages, modal=modal, r2=r2, folder=folder)
        with storm.running():
            try:
                storm.play(clients=16, timeout_s=timeout_s)
            finally:
                storm.settle(timeout_s=90)
                print(json.dumps(storm.summary()))
            problems = storm.problems() + storm.left_over() + storm.logged(caplog.text)
    problems += [f"logged: {record.getMessage()}" for record in caplog.records if record.levelno >= logging.ERROR]
    assert not problems, "\n".join([f"{SEED}={seed} replays this storm", *problems])
