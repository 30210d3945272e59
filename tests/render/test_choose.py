"""Do workers that see nothing but which segments are kept share a video well?

Simulated: a clock of numbers, workers that look, draw and commit, and a dictionary as storage.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Generator
from itertools import count
from math import ceil

import pytest
from attrs import define, field

from renderdispatch.render.choose import LOOK_EVERY_S, Choice, Draw, Look, Wait, place_of

LOOK_S = 0.03
SEGMENT_S = 4.7
HANGS = float("inf")

Pace = Callable[[int, int, random.Random], float]
"""How many times the usual time a worker takes for its n-th segment."""


def usual(_worker: int, _number: int, chance: random.Random) -> float:
    return chance.uniform(0.9, 1.1)


def varied(_worker: int, _number: int, chance: random.Random) -> float:
    return chance.uniform(0.8, 1.2)


def of_its_own(worker: int, _number: int, _chance: random.Random) -> float:
    """Each worker has a pace of its own, which it keeps."""
    return 1 / random.Random(worker).uniform(0.8, 1.2)


@define
class World:
    """A video that workers draw."""

    total: int
    parallel: int
    pace: Pace = usual
    standing: dict[int, float] = field(factory=dict)
    drawn: float = 0.0
    looks: int = 0
    finished: float = 0.0
    nonsense: frozenset[int] = frozenset()
    mortal: frozenset[int] = frozenset()
    absent: frozenset[int] = frozenset()

    def run(self) -> World:
        """Let all workers draw, each a coroutine that yields until when it is busy."""
        chance, order = random.Random(4), count()
        workers = [w for w in range(self.parallel) if w not in self.absent]
        queue = [(0.0, next(order), self.work(worker, chance)) for worker in workers]
        while queue and len(self.standing) < self.total:
            now, _, worker = heapq.heappop(queue)
            until = worker.send(now) if now else next(worker)
            if until is not None and until < HANGS:
                heapq.heappush(queue, (until, next(order), worker))
        self.finished = max(self.standing.values())
        return self

    def work(self, worker: int, chance: random.Random) -> Generator[float | None, float, None]:
        now = 0.0
        place = place_of("digest", worker, self.parallel)
        choice = Choice(self.total, share=worker, parallel=self.parallel, place=place, now=now)
        for number in count():
            step = choice.next(now)
            while not isinstance(step, Draw):
                if isinstance(step, Look):
                    self.looks += len(step.indices)
                    now = yield now + LOOK_S
                    for index in step.indices:
                        choice.saw(index, now, stands=index in self.standing)
                elif isinstance(step, Wait):
                    now = yield now + step.seconds
                else:
                    yield None
                step = choice.next(now)
            began, takes = now, SEGMENT_S * self.pace(worker, number, chance)
            share = 1.0
            while (left := began + takes - now) > 0:
                now = yield now + min(left, LOOK_EVERY_S if step.contested else left)
                if step.contested and now < began + takes:
                    self.looks += 1
                    if step.index in self.standing:
                        share = (now - began) / takes
                        break
            if worker in self.mortal:
                yield None
            self.drawn += share
            if worker in self.nonsense:
                choice.drew(step.index, now, seconds=takes)
                continue
            in_vain = share if step.index in self.standing else 0.0
            self.standing.setdefault(step.index, now)
            choice.drew(step.index, now, seconds=takes, in_vain=in_vain)


@pytest.mark.parametrize(("pace", "least"), [(varied, 0.85), (of_its_own, 0.8)])
def test_64_workers_are_busy_to_the_end(pace: Pace, least: float) -> None:
    """With paces that differ by 20 %, little is lost against the ideal over whole rounds, and little is drawn twice."""
    world = World(255, 64, pace).run()
    ideal = ceil(255 / 64) * SEGMENT_S
    assert ideal / world.finished >= least
    assert world.drawn <= 1.05 * 255 + 64
    assert world.looks <= 255 * 8


@pytest.mark.parametrize(
    ("total", "parallel"), [(1, 1), (1, 16), (2, 2), (15, 4), (16, 16), (17, 16), (40, 16), (256, 2)]
)
def test_all_segments_are_drawn(total: int, parallel: int) -> None:
    """However many segments and workers there are, all segments stand, and few are drawn twice."""
    world = World(total, parallel).run()
    assert len(world.standing) == total
    assert world.drawn <= 1.05 * total + parallel
    assert world.finished <= (ceil(total / parallel) + 1) * 1.2 * SEGMENT_S


@pytest.mark.parametrize("total", [64, 150, 255])
def test_bad_workers_cost_time_and_nothing_else(total: int) -> None:
    """Of 16, one is ten times slower, one hangs, one writes nonsense, one dies, one never starts: at most twice the time."""

    def with_bad_ones(worker: int, number: int, chance: random.Random) -> float:
        return {3: 10.0, 7: HANGS if number else 1.0}.get(worker, usual(worker, number, chance))

    undisturbed = World(total, 16).run()
    world = World(
        total, 16, with_bad_ones, nonsense=frozenset({5}), mortal=frozenset({9}), absent=frozenset({11})
    ).run()
    assert world.finished <= 2 * undisturbed.finished


def test_the_lead_finishes_alone() -> None:
    """If no helper ever starts, the lead draws all."""
    world = World(12, 4, absent=frozenset({1, 2, 3})).run()
    assert len(world.standing) == 12
    assert world.drawn == 12
