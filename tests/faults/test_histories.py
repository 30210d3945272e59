"""Does every job end rightly, whatever goes wrong, in whatever order?

`tests.support.simulation` plays histories of faults on fake clocks. ``python -m tests.faults.replay SEED`` tells one.
"""

from __future__ import annotations

import logging
from collections import Counter

import pytest

from tests.support.simulation import Simulation, history

_SLICES = 8


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """Log nothing: what goes wrong in a history is not news."""
    logging.getLogger("renderdispatch").setLevel(logging.CRITICAL)


def _play(seeds: range) -> None:
    ends: Counter[str] = Counter()
    for seed in seeds:
        simulation = Simulation(seed)
        problems = simulation.play()
        assert not problems, f"python -m tests.faults.replay {seed}\n" + "\n".join(problems)
        ends.update(str(job.status) for job in simulation.jobs())
    print(dict(ends))
    assert set(ends) == {"complete", "failed", "cancelled"}, "these histories show too little"


@pytest.mark.parametrize("part", range(_SLICES))
def test_jobs_end_rightly_in_every_history(part: int) -> None:
    """In 2,000 histories every job ends once, within its limits, and leaves neither units nor objects behind."""
    _play(range(part * 2000 // _SLICES, (part + 1) * 2000 // _SLICES))


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_jobs_end_rightly_in_100_000_histories(seed: int) -> None:
    """What holds in 2,000 histories holds in 100,000 others."""
    _play(range(seed * 100_000, (seed + 1) * 100_000))


def test_a_seed_tells_the_same_history_twice() -> None:
    """One seed always plays the same history, so that a failure can be replayed."""
    assert history(7) == history(7)
    assert history(7) != history(8)
