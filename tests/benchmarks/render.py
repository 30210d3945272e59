"""How near does rendering come to what the encoder alone can do, and to what others do?

``python tests/benchmarks/render.py [--quick]`` renders the scenes at 1280x720, x264 veryfast, on two cores. What is
compared takes turns, and medians count. moviepy is installed into a temporary environment. The last line of the output
is JSON:

``overlap_vs_sequential``
    of `bars`, frames a second overlapped / frames a second one after the other; at least 1. It was more when the
    encoder's threads shared each frame: now they work on while the next frame is drawn.
``cpu_vs_parts``
    of `bars`, CPU seconds overlapped / (CPU seconds of drawing alone + of encoding alone); at most 1.1.
``pipeline_vs_encoder_bars``, ``_wave``, ``_radial``
    frames a second from the song to the file / frames a second of libx264 alone with its best threads, on the same
    frames, which were drawn before; at least 0.85, 0.75, 0.85.
``vs_moviepy``
    of `bars`, frames a second from the song to the file / those of moviepy with the same song, settings and frames,
    which it is given as RGB and need not draw; at least 1.2.
``numpy_vs_showcqt``
    frames a second of the fastest scene / those of FFmpeg's showcqt with the same song and settings, whole commands
    without their starts: for the difference between two lengths of the song; at least 0.55.

"One after the other" is the same scene and the same encoder with the same settings, called in turn by one thread: a
picture is encoded when it is drawn. libx264's own threads work meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import venv
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

from renderdispatch.messages import Output
from renderdispatch.render import bars, radial, wave
from renderdispatch.render.audio import SoundReader
from renderdispatch.render.device import numpy_held
from renderdispatch.render.music import compose
from renderdispatch.render.scene import NumpyRenderer
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.testing import make_order

with numpy_held():
    import av

    from renderdispatch.render.encoders import LIBX264
    from renderdispatch.render.features import Features
    from renderdispatch.render.mp4 import Mp4Writer
    from renderdispatch.render.picture import Picture
    from renderdispatch.render.scene_artist import SceneArtist
    from renderdispatch.render.video import draw_and_encode, read_sound

PICTURE: Final = Output(width=1280, height=720, fps=Fraction(30))
SCENES: Final = {"bars": bars, "wave": wave, "radial": radial}
PRESET: Final = {"preset": "veryfast", "crf": "19"}
THREADS: Final = (("FRAME", 0), ("FRAME", 2), ("FRAME", 4), ("FRAME", 8), ("SLICE", 0), ("SLICE", 2))

MOVIEPY: Final = """
import sys, time
import numpy as np
from moviepy import AudioFileClip, VideoClip

frames, song, output, fps, height, width, count = sys.argv[1:]
shape = int(count), int(height), int(width), 3
pictures = np.memmap(frames, np.uint8, "r", shape=shape)
seconds = shape[0] / float(fps)
began = time.perf_counter()
clip = VideoClip(lambda t: pictures[min(round(t * float(fps)), shape[0] - 1)], duration=seconds)
clip = clip.with_audio(AudioFileClip(song).subclipped(0, seconds))
clip.write_videofile(
    output, fps=float(fps), codec="libx264", preset="veryfast", audio_codec="aac", audio_bitrate="192k",
    ffmpeg_params=["-crf", "19"], pixel_format="yuv420p", logger=None,
)
print(time.perf_counter() - began)
"""


class Cost(NamedTuple):
    """Seconds of wall and of CPU."""

    wall: float
    cpu: float


class Bench:
    """One song, rendered with one scene in different ways."""

    def __init__(self, renderer: NumpyRenderer, song: Path, folder: Path) -> None:
        self.renderer = renderer
        self.song = song
        self.folder = folder
        writer, self.features = self._begin()
        writer.abandon()
        self.frames = len(self.features)
        self.drawn = list(self._pictures())

    def whole(self) -> Cost:
        """From the song to the file."""
        return measured(lambda: render(self.renderer, self.song, self.folder / "whole.mp4"))

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

    def encoder(self, kind: str, threads: int) -> Cost:
        """Libx264 alone, into nothing."""

        def run() -> None:
            context = av.CodecContext.create(LIBX264.name, "w")
            context.width, context.height, context.pix_fmt = PICTURE.width, PICTURE.height, "yuv420p"
            context.time_base, context.framerate = 1 / PICTURE.fps, PICTURE.fps
            context.options = PRESET
            context.thread_type, context.thread_count = kind, threads
            context.gop_size = round(4 * PICTURE.fps)
            for number, picture in enumerate(self.drawn):
                picture.frame.pts, picture.frame.time_base = number, 1 / PICTURE.fps
                context.encode(picture.frame)
            context.encode(None)

        return measured(run)

    def save_rgb(self, path: Path) -> None:
        """Write all frames as RGB."""
        with path.open("wb") as file:
            for picture in self.drawn:
                file.write(picture.frame.to_ndarray(format="rgb24").tobytes())

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
        """Do what comes before the first frame."""
        with SoundReader(self.song, start=Fraction(0), duration=None) as sound:
            files = self.folder / "video.mp4", self.folder / "sound"
            writer = Mp4Writer(*files, PICTURE, rate=sound.rate, layout=sound.layout)
            path = self.folder / "features"
            return writer, read_sound(sound, writer, path, fps=PICTURE.fps, report=lambda done, total: None)

    def _artist(self) -> SceneArtist:
        return SceneArtist(*self.renderer.load({}), PICTURE)


class Peers:
    """What others make of the same song, in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        venv.create(folder / "peers", with_pip=True)
        self._python = folder / "peers" / "bin" / "python"
        subprocess.run([self._python, "-m", "pip", "install", "--quiet", "moviepy>=2.1"], check=True)
        self._ffmpeg = shutil.which("ffmpeg") or self._run(
            "-c", "import imageio_ffmpeg as f; print(f.get_ffmpeg_exe())"
        )

    def moviepy(self, bench: Bench, rgb: Path) -> float:
        """Return the seconds that moviepy takes for a video of these frames."""
        size = str(PICTURE.height), str(PICTURE.width), str(bench.frames)
        files = str(rgb), str(bench.song), str(self._folder / "moviepy.mp4")
        return float(self._run("-c", MOVIEPY, *files, str(float(PICTURE.fps)), *size))

    def showcqt(self, song: Path) -> Cost:
        """Return what FFmpeg's command takes, without the CPU."""
        drawn = f"[0:a]showcqt=s={PICTURE.width}x{PICTURE.height}:fps={PICTURE.fps},format=yuv420p[v]"
        video = "-c:v", "libx264", "-preset", PRESET["preset"], "-crf", PRESET["crf"], "-g", str(4 * PICTURE.fps)
        sound = "-map", "0:a", "-c:a", "aac", "-b:a", "192k", "-aac_coder", "fast"
        command = [self._ffmpeg, "-v", "error", "-y", "-i", str(song), "-filter_complex", drawn, "-map", "[v]", *video]
        output = ["-movflags", "+faststart", str(self._folder / "showcqt.mp4")]
        return measured(lambda: subprocess.run([*command, *sound, *output], check=True))._replace(cpu=0)

    def _run(self, *arguments: str) -> str:
        # Without the variables that would show it this environment's packages.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        done = subprocess.run(
            [self._python, *arguments], check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
        return done.stdout.strip().splitlines()[-1]


def render(renderer: NumpyRenderer, song: Path, output: Path) -> None:
    order = make_order(MemoryStorage(), output=PICTURE, params={})
    renderer.render(order, song, output, lambda done, total: None)


def measured(run: Callable[[], object]) -> Cost:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def in_turns(ways: dict[str, Callable[[], Cost]], rounds: int) -> dict[str, list[Cost]]:
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in sorted(ways, reverse=bool(number % 2)):
            costs[name].append(ways[name]())
    return costs


def ratio(costs: dict[str, list[Cost]], one: str, other: str) -> float:
    """Return how many times as long the one takes as the other: the median of each round's own."""
    return statistics.median(a.wall / b.wall for a, b in zip(costs[one], costs[other], strict=True))


def show(name: str, costs: list[Cost], frames: int) -> None:
    wall, cpu = (statistics.median(values) for values in zip(*costs, strict=True))
    print(f"{name:>22}: {frames / wall:6.1f} frames/s, {1000 * cpu / frames:5.2f} ms of CPU a frame", flush=True)


def overlap(bench: Bench, rounds: int) -> dict[str, float]:
    ways = {name: getattr(bench, name) for name in ("draw", "encode", "sequential", "overlapped")}
    costs = in_turns(ways, rounds)
    for name in ways:
        show(name, costs[name], bench.frames)
    cpu = {name: statistics.median(cost.cpu for cost in each) for name, each in costs.items()}
    return {
        "overlap_vs_sequential": ratio(costs, "sequential", "overlapped"),
        "cpu_vs_parts": cpu["overlapped"] / (cpu["draw"] + cpu["encode"]),
    }


def pipeline(name: str, bench: Bench, rounds: int) -> float:
    """Return frames a second from the song to the file / those of the encoder alone with its best threads."""
    alone: dict[str, Callable[[], Cost]] = {
        f"{kind} {count}": partial(bench.encoder, kind, count) for kind, count in THREADS
    }
    tried = in_turns(alone, 2)
    best = min(tried, key=lambda way: min(cost.wall for cost in tried[way]))
    costs = in_turns({"whole": bench.whole, "alone": alone[best]}, rounds)
    show(name, costs["whole"], bench.frames)
    show(f"x264 alone, {best.lower()}", costs["alone"], bench.frames)
    return ratio(costs, "alone", "whole")


def against_moviepy(bench: Bench, peers: Peers, folder: Path, rounds: int) -> float:
    rgb = folder / "frames.rgb"
    bench.save_rgb(rgb)
    costs = in_turns({"ours": bench.whole, "moviepy": lambda: Cost(peers.moviepy(bench, rgb), 0)}, rounds)
    rgb.unlink()
    print(f"{'moviepy':>22}: {bench.frames / statistics.median(cost.wall for cost in costs['moviepy']):6.1f} frames/s")
    return ratio(costs, "moviepy", "ours")


def against_showcqt(renderer: NumpyRenderer, peers: Peers, folder: Path, *, seconds: int, rounds: int) -> float:
    """Return frames a second of a scene / those of showcqt, both between a length of the song and three times it."""
    songs = [folder / "short.wav", folder / "long.wav"]
    for song, times in zip(songs, (1, 3), strict=True):
        compose(song, seconds=times * seconds)
    output = folder / "whole.mp4"
    ways: dict[str, Callable[[], Cost]] = {}
    for song in songs:
        ways[f"ours {song.stem}"] = partial(measured, partial(render, renderer, song, output))
        ways[f"theirs {song.stem}"] = partial(peers.showcqt, song)
    costs = in_turns(ways, rounds)
    more: dict[str, float] = {}
    for whose in ("ours", "theirs"):
        short, long = (statistics.median(cost.wall for cost in costs[f"{whose} {song.stem}"]) for song in songs)
        more[whose] = long - short
        print(f"{whose + ', without start':>22}: {2 * seconds * PICTURE.fps / more[whose]:6.1f} frames/s", flush=True)
    return more["theirs"] / more["ours"]


def main() -> None:
    parser = argparse.ArgumentParser(description="measure rendering against the encoder alone, moviepy and showcqt")
    parser.add_argument("--quick", action="store_true", help="shorter clips and fewer rounds")
    quick = parser.parse_args().quick
    seconds, rounds = (5, 5) if quick else (8, 9)
    if sys.platform == "linux" and len(cores := sorted(os.sched_getaffinity(0))) > 2:
        os.sched_setaffinity(0, cores[:2])

    with TemporaryDirectory() as name:
        folder = Path(name)
        song = folder / "song.wav"
        compose(song, seconds=seconds)
        peers = Peers(folder)
        figures: dict[str, float] = {}
        speeds: dict[str, float] = {}
        for scene, renderer in SCENES.items():
            bench = Bench(renderer, song, folder)
            if scene == "bars":
                figures |= overlap(bench, rounds)
                figures["vs_moviepy"] = against_moviepy(bench, peers, folder, rounds // 2 + 1)
            figures[f"pipeline_vs_encoder_{scene}"] = pipeline(scene, bench, rounds)
            speeds[scene] = min(bench.whole().wall for _ in range(2))
        fastest = SCENES[min(speeds, key=speeds.__getitem__)]
        figures["numpy_vs_showcqt"] = against_showcqt(fastest, peers, folder, seconds=seconds, rounds=rounds // 2 + 1)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
