"""How much does drawing while encoding gain, and what does it cost?

``python tests/benchmarks/render.py [--quick]`` renders `bars` at 1280x720, x264 veryfast, in four ways: drawing alone,
encoding alone (of frames drawn before), one after the other in a single flow, and overlapped as the library does it.
The ways take turns, and medians are compared. The last line of its output is JSON:

``overlap_vs_sequential``
    frames a second overlapped / frames a second one after the other; at least 1.1.
``cpu_vs_parts``
    CPU seconds overlapped / (CPU seconds of drawing alone + of encoding alone); at most 1.2.

"One after the other" is the same scene, the same conversion and the same encoder with the same settings, called in
turn by one thread: the picture is converted when it is drawn, and encoded when it is converted. libx264 has the threads
that it has in every render, as many as there are cores, which share each frame.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from renderdispatch.messages import Output
from renderdispatch.render.audio import SoundReader
from renderdispatch.render.features import Features
from renderdispatch.render.mp4 import Mp4Writer
from renderdispatch.render.music import compose
from renderdispatch.render.params import BarsParams
from renderdispatch.render.picture import Picture
from renderdispatch.render.scenes.bars import Bars
from renderdispatch.render.video import Artist, draw_and_encode, read_sound

PICTURE = Output(width=1280, height=720, fps=Fraction(30))


class Cost(NamedTuple):
    """Seconds of wall and of CPU."""

    wall: float
    cpu: float


class Bench:
    """One clip, rendered in different ways."""

    def __init__(self, song: Path, folder: Path) -> None:
        self.song = song
        self.folder = folder
        writer, self.features = self._begin()
        writer.abandon()
        self.frames = len(self.features)
        self.drawn = list(self._pictures())

    def draw(self) -> Cost:
        return measured(lambda: deque(self._pictures(), maxlen=0))

    def encode(self) -> Cost:
        return self._written(self.drawn)

    def sequential(self) -> Cost:
        return self._written(self._pictures())

    def overlapped(self) -> Cost:
        writer, features = self._begin()

        def run() -> None:
            draw_and_encode(self._artist(), features, writer, lambda done, total: None)
            writer.close()

        with features:
            return measured(run)

    def _pictures(self) -> Iterator[Picture]:
        artist = self._artist()
        state = artist.start()
        for frame in self.features:
            state = artist.step(state, frame)
            yield artist.draw(state, frame)

    def _written(self, pictures: Iterable[Picture]) -> Cost:
        writer, features = self._begin()

        def run() -> None:
            for picture in pictures:
                writer.write_frame(picture.frame)
            writer.close()

        with features:
            return measured(run)

    def _begin(self) -> tuple[Mp4Writer, Features]:
        """Do what comes before the first frame, which is the same in every way and not measured."""
        with SoundReader(self.song, start=Fraction(0), duration=None) as sound:
            files = self.folder / "video.mp4", self.folder / "sound"
            writer = Mp4Writer(*files, PICTURE, rate=sound.rate, layout=sound.layout)
            path = self.folder / "features"
            return writer, read_sound(sound, writer, path, fps=PICTURE.fps, report=lambda done, total: None)

    def _artist(self) -> Artist:
        return Artist(Bars, BarsParams(), PICTURE)


def measured(run: Callable[[], object]) -> Cost:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description="measure what overlapping drawing and encoding gains")
    parser.add_argument("--quick", action="store_true", help="a shorter clip and fewer rounds")
    quick = parser.parse_args().quick
    seconds, rounds = (5, 5) if quick else (8, 9)
    if sys.platform == "linux" and len(cores := sorted(os.sched_getaffinity(0))) > 2:
        os.sched_setaffinity(0, cores[:2])

    with TemporaryDirectory() as folder:
        whole = Path(folder, "whole.wav")
        compose(whole, seconds=seconds)
        bench = Bench(whole, Path(folder))
        ways = {
            "draw": bench.draw,
            "encode": bench.encode,
            "sequential": bench.sequential,
            "overlapped": bench.overlapped,
        }
        costs: dict[str, list[Cost]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                costs[name].append(way())

    wall = {name: statistics.median(cost.wall for cost in each) for name, each in costs.items()}
    cpu = {name: statistics.median(cost.cpu for cost in each) for name, each in costs.items()}
    for name in ways:
        each = 1000 / bench.frames
        print(f"{name:>10}: {bench.frames / wall[name]:6.1f} frames/s, {cpu[name] * each:5.2f} ms of CPU a frame")
    figures = {
        "overlap_vs_sequential": statistics.median(
            one.wall / other.wall for one, other in zip(costs["sequential"], costs["overlapped"], strict=True)
        ),
        "cpu_vs_parts": cpu["overlapped"] / (cpu["draw"] + cpu["encode"]),
    }
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
