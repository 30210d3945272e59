"""How long is it until the plan of a video stands, beside decoding its song alone?

``python tests/benchmarks/plan.py [--quick] [--scene NAME]``. Each round decodes an mp3 of ten minutes and then makes its
plan, at 1920x1080, on two cores. The last line is JSON, medians of each round's own ratio:

- ``plan_vs_decode``: seconds until the complete plan can be stored, over those of decoding.
- ``drawing_vs_decode``: seconds until the first frame can be drawn, likewise.
- ``plan_cpu_vs_decode``: the CPU seconds of the plan, over those of decoding.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from renderdispatch import render
from renderdispatch.render.device import numpy_held

with numpy_held():
    import av

from renderdispatch.messages import Output, RenderOrder
from renderdispatch.render.alone import order_alone
from renderdispatch.render.music import compose
from renderdispatch.render.planner import Planner
from renderdispatch.render.song import open_song, read_song


def encode(source: Path, target: Path) -> None:
    """Encode a song as mp3."""
    with av.open(str(source)) as decoded, av.open(str(target), "w") as encoded:
        stream = encoded.add_stream("libmp3lame", rate=44_100)
        stream.bit_rate = 192_000
        for frame in decoded.decode(audio=0):
            frame.pts = None
            encoded.mux(stream.encode(frame))
        encoded.mux(stream.encode(None))


@contextmanager
def measured(into: list[tuple[float, float]]) -> Iterator[None]:
    """Measure seconds and CPU seconds of the block."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    into.append((time.perf_counter() - wall, time.process_time() - cpu))


def round_of(order: RenderOrder, song: Path, scene: str) -> dict[str, float]:
    """Decode, and then plan."""
    taken = list[tuple[float, float]]()
    with measured(taken), open_song(song, order) as sound:
        for _ in read_song(sound, longest_s=None):
            pass
    renderer = getattr(render, scene)
    with renderer.artist(order) as artist, TemporaryDirectory() as folder, measured(taken):
        planner = Planner(order, song, Path(folder), artist=artist, digest=lambda sha256: sha256)
        with measured(taken):
            planner.__enter__()
        try:
            planner.finish()
        finally:
            planner.__exit__(None, None, None)
    (decode_s, decode_cpu_s), (drawing_s, _), (plan_s, plan_cpu_s) = taken
    return {
        "plan_vs_decode": plan_s / decode_s,
        "drawing_vs_decode": drawing_s / decode_s,
        "plan_cpu_vs_decode": plan_cpu_s / decode_cpu_s,
        "decode_s": decode_s,
        "plan_s": plan_s,
    }


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one minute of song, three rounds")
    parser.add_argument("--scene", default="bars")
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    with TemporaryDirectory() as name:
        folder = Path(name)
        compose(folder / "song.wav", seconds=60 if given.quick else 600)
        encode(folder / "song.wav", folder / "song.mp3")
        order = order_alone(folder / "song.mp3", scene=given.scene, output=Output(), params={}, start=0, duration=None)
        rounds = [round_of(order, folder / "song.mp3", given.scene) for _ in range(3 if given.quick else 7)]
    for each in rounds:
        print({name: round(value, 3) for name, value in each.items()})
    print(json.dumps({name: round(statistics.median(each[name] for each in rounds), 3) for name in rounds[0]}))


if __name__ == "__main__":
    main()
