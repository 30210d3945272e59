"""How near does rendering come to what the encoder alone can do, and to what others do?

``python tests/benchmarks/render.py [--quick]`` renders the scenes and two shaders at 1280x720, x264 veryfast, on two
cores; the shaders are drawn by llvmpipe. What is compared takes turns, and medians count. moviepy and ShaderFlow are
installed into temporary environments. The last line of the output is JSON:

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
``cpu_vs_parts_simple``, ``_heavy``
    of a shader, CPU seconds from the song to the file / (those of drawing, reading and converting alone + of encoding
    alone + of the sound); at most 1.1.
``fps_vs_limit_simple``, ``_heavy``
    of a shader, frames a second from the song to the file, with OpenGL open / (cores / CPU seconds a frame of these
    parts), which is as fast as two cores can be; at least 0.9.
``vs_shaderflow_simple``, ``_heavy``
    of a shader, frames a second from the song to the file, with the start of OpenGL / those of ShaderFlow's ``main``
    with the same song and settings, and the same scene in its own language; at least 4 and 2.

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
from contextlib import AbstractContextManager, nullcontext
from fractions import Fraction
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

from renderdispatch.messages import Asset, Output, RenderOrder
from renderdispatch.render import bars, glsl, radial, wave
from renderdispatch.render.audio import SoundReader
from renderdispatch.render.device import numpy_held
from renderdispatch.render.music import compose
from renderdispatch.render.params import SceneParams
from renderdispatch.render.renderer import VideoRenderer
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.testing import make_order

with numpy_held():
    import av

    from renderdispatch.render.artist import Artist
    from renderdispatch.render.covers import Cover
    from renderdispatch.render.encoders import LIBX264
    from renderdispatch.render.features import Features, Frame
    from renderdispatch.render.mp4 import Mp4Writer
    from renderdispatch.render.picture import Picture
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


SIMPLE: Final = """
void mainImage(out vec4 colour, in vec2 place) {
    vec2 at = place / iResolution.xy;
    float strength = texture(iChannel0, vec2(at.x, 0.25)).x;
    vec3 sky = 0.5 + 0.5 * cos(iTime + 4.0 * at.xyx + vec3(0.0, 2.0, 4.0));
    float below = smoothstep(0.0, 0.02, 0.2 + 0.6 * strength - at.y);
    colour = vec4(sky * (0.3 + 0.7 * below), 1.0);
}
"""
"""A few cosines, and the spectrum as a curve."""

_MARCH: Final = """
vec3 march(vec2 at, float loud) {
    vec3 eye = vec3(1.5, 0.7, iTime), ray = normalize(vec3(at, 1.5)), near;
    float far = 0.0;
    for (int number = 0; number < 40; number++) {
        near = eye + far * ray;
        near.z = 4.0 * (fract(0.25 * near.z) - 0.5);
        float distance = length(near) - 1.0;
        far += distance;
        if (distance < 0.01 || far > 20.0) break;
    }
    float light = max(dot(normalize(near), vec3(0.58, 0.58, -0.58)), 0.0);
    return (0.3 + 0.7 * light) * (0.5 + loud) * vec3(0.6, 0.8, 1.0) / (1.0 + 0.1 * far);
}
"""

HEAVY: Final = (
    _MARCH
    + """
void mainImage(out vec4 colour, in vec2 place) {
    vec2 at = (2.0 * place - iResolution.xy) / iResolution.y;
    colour = vec4(march(at, texture(iChannel0, vec2(0.1, 0.25)).x), 1.0);
}
"""
)
"""Spheres in a row, by up to 40 steps along each ray, with light."""

SHADERS: Final = {"simple": SIMPLE, "heavy": HEAVY}

SHADERFLOW: Final = "shaderflow==0.12.0"
THEIR_SHADERS: Final = {
    "simple": """
void main() {
    float strength = sqrt(texture(iSpectrogram, vec2(0.0, astuv.x)).x / 1000.0);
    vec3 sky = 0.5 + 0.5 * cos(iTime + 4.0 * astuv.xyx + vec3(0.0, 2.0, 4.0));
    float below = smoothstep(0.0, 0.02, 0.2 + 0.6 * strength - astuv.y);
    fragColor = vec4(sky * (0.3 + 0.7 * below), 1.0);
}
""",
    "heavy": _MARCH
    + """
void main() {
    float loud = sqrt(texture(iSpectrogram, vec2(0.0, 0.1)).x / 1000.0);
    fragColor = vec4(march(vec2(agluv.x * iResolution.x / iResolution.y, agluv.y), loud), 1.0);
}
""",
}

THEIR_SCENE: Final = """
import sys, time, types
from pathlib import Path
sys.modules["soundcard"] = types.ModuleType("soundcard")  # it wants a sound server, for microphones
import shaderflow.ffmpeg as ffmpeg
from shaderflow.audio import ShaderAudio
from shaderflow.audio.spectrogram import ShaderSpectrogram
from shaderflow.scene import ShaderScene

fragment, song, output, fps, height, width, seconds, subsample = sys.argv[1:]

# 0.12.0 passes a text here where its own `command` wants a member: no file can be heard without this.
of_format = lambda self, format="pcm_f32le": self.smartset(ffmpeg.FFmpegAudioCodecPCM(format=ffmpeg.FFmpegPCM(format)))
ffmpeg.FFmpeg.pcm = of_format

class Scene(ShaderScene):
    def build(self):
        self.audio = ShaderAudio(scene=self, name="iAudio", file=Path(song))
        self.spectrogram = ShaderSpectrogram(scene=self, audio=self.audio, length=0, smooth=True)
        self.shader.fragment = fragment

scene = Scene(backend="headless")
scene.ffmpeg.h264(preset="veryfast", crf=19)
scene.ffmpeg.aac(bitrate=192)
began = time.perf_counter()
scene.main(
    width=int(width), height=int(height), fps=float(fps), time=float(seconds), output=output, subsample=int(subsample)
)
print(time.perf_counter() - began)
"""


class Cost(NamedTuple):
    """Seconds of wall and of CPU."""

    wall: float
    cpu: float


class Opened(VideoRenderer):
    """Renders with an artist that is there already."""

    def __init__(self, artist: Artist) -> None:
        super().__init__(SceneParams)
        self._artist = artist

    def artist(self, order: RenderOrder, *, cover: Cover | None = None) -> AbstractContextManager[Artist]:
        return nullcontext(self._artist)


class Bench:
    """One song, rendered with one artist in different ways."""

    def __init__(self, artist: Artist, song: Path, folder: Path) -> None:
        self.artist = artist
        self.song = song
        self.folder = folder
        writer, self.features = self._begin()
        writer.abandon()
        self.frames = len(self.features)
        self.drawn = list(self._pictures())

    def whole(self) -> Cost:
        """From the song to the file."""
        return measured(lambda: render(Opened(self.artist), self.song, self.folder / "whole.mp4"))

    def sound(self) -> Cost:
        """Analyse and encode the song."""

        def run() -> None:
            writer, features = self._begin()
            features.close()
            writer.abandon()

        return measured(run)

    def draw(self) -> Cost:
        return measured(lambda: deque(self._pictures(), maxlen=0))

    def encode(self) -> Cost:
        return self._written(self.drawn)

    def sequential(self) -> Cost:
        return self._written(self._pictures())

    def overlapped(self) -> Cost:
        writer, features = self._begin()

        def run() -> None:
            draw_and_encode(self.artist, features, writer, lambda done, total: None)
            writer.close()

        with features:
            return measured(run)

    def encoder(self, kind: str, threads: int) -> Cost:
        """Libx264 alone, into nothing."""

        def run() -> None:
            context: Any = av.CodecContext.create(LIBX264.name, "w")
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
        return self.artist.pictures(self._moments())

    def _moments(self) -> Iterator[tuple[Any, Frame]]:
        state = self.artist.start()
        for frame in self.features:
            state = self.artist.step(state, frame)
            yield state, frame

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


class Peers:
    """What others make of the same song, in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._moviepy, self._shaderflow = folder / "moviepy", folder / "shaderflow"
        for environment, package in ((self._moviepy, "moviepy>=2.1"), (self._shaderflow, SHADERFLOW)):
            venv.create(environment, with_pip=True)
            self._run(environment, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", package)
        self._ffmpeg = shutil.which("ffmpeg") or self._run(
            self._moviepy, "-c", "import imageio_ffmpeg as f; print(f.get_ffmpeg_exe())"
        )

    def moviepy(self, bench: Bench, rgb: Path) -> float:
        """Return the seconds that moviepy takes for a video of these frames."""
        size = str(PICTURE.height), str(PICTURE.width), str(bench.frames)
        files = str(rgb), str(bench.song), str(self._folder / "moviepy.mp4")
        return float(self._run(self._moviepy, "-c", MOVIEPY, *files, str(float(PICTURE.fps)), *size))

    def shaderflow(self, shader: str, song: Path, *, seconds: int, samples: int = 1) -> Cost:
        """Return what ShaderFlow takes, without the CPU.

        Args:
            shader: Which one.
            song: The file.
            seconds: Its length.
            samples: The square root of how often it reads each pixel of its picture to make the final one.
        """
        size = str(float(PICTURE.fps)), str(PICTURE.height), str(PICTURE.width), str(seconds), str(samples)
        files = str(song), str(self._folder / "shaderflow.mp4")
        return Cost(float(self._run(self._shaderflow, "-c", THEIR_SCENE, THEIR_SHADERS[shader], *files, *size)), 0)

    def showcqt(self, song: Path) -> Cost:
        """Return what FFmpeg's command takes, without the CPU."""
        drawn = f"[0:a]showcqt=s={PICTURE.width}x{PICTURE.height}:fps={PICTURE.fps},format=yuv420p[v]"
        video = "-c:v", "libx264", "-preset", PRESET["preset"], "-crf", PRESET["crf"], "-g", str(4 * PICTURE.fps)
        sound = "-map", "0:a", "-c:a", "aac", "-b:a", "192k", "-aac_coder", "fast"
        command = [self._ffmpeg, "-v", "error", "-y", "-i", str(song), "-filter_complex", drawn, "-map", "[v]", *video]
        output = ["-movflags", "+faststart", str(self._folder / "showcqt.mp4")]
        return measured(lambda: subprocess.run([*command, *sound, *output], check=True))._replace(cpu=0)

    def _run(self, environment: Path, *arguments: str) -> str:
        # Without the variables that would show it this environment's packages.
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [str(environment / "bin" / "python"), *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=variables)
        if done.returncode != 0:
            raise SystemExit(done.stderr[-4000:])
        return done.stdout.strip().rpartition("\n")[2]


def order_for(**fields: Any) -> RenderOrder:
    return make_order(MemoryStorage(), output=PICTURE, params={}, **fields)


def render(renderer: VideoRenderer, song: Path, output: Path, **fields: Any) -> None:
    renderer.render(order_for(**fields), song, output, lambda done, total: None)


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


def against_showcqt(renderer: VideoRenderer, peers: Peers, folder: Path, *, seconds: int, rounds: int) -> float:
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


def shader_alone(shader: str, file: Asset, song: Path, folder: Path, *, rounds: int) -> dict[str, float]:
    """Return how near a shader comes to what the cores can do."""
    with glsl.artist(order_for(scene_file=file)) as artist:
        bench = Bench(artist, song, folder)
        ways = {name: getattr(bench, name) for name in ("draw", "encode", "sound", "whole")}
        costs = in_turns(ways, rounds)
        for name in ways:
            show(f"{shader}, {name}", costs[name], bench.frames)
    parts = sum(statistics.median(cost.cpu for cost in costs[name]) for name in ("draw", "encode", "sound"))
    wall, cpu = (statistics.median(values) for values in zip(*costs["whole"], strict=True))
    return {
        f"cpu_vs_parts_{shader}": cpu / parts,
        f"fps_vs_limit_{shader}": parts / len(os.sched_getaffinity(0)) / wall,
    }


def against_shaderflow(
    shader: str, file: Asset, song: Path, peers: Peers, folder: Path, *, seconds: int, rounds: int, quick: bool
) -> float:
    ways: dict[str, Callable[[], Cost]] = {
        "ours": lambda: measured(lambda: render(glsl, song, folder / "whole.mp4", scene_file=file)),
        "shaderflow": lambda: peers.shaderflow(shader, song, seconds=seconds),
    }
    costs = in_turns(ways, rounds)
    if not quick:
        costs["shaderflow, as it comes"] = [peers.shaderflow(shader, song, seconds=seconds, samples=2)]
    for name, each in costs.items():
        wall = statistics.median(cost.wall for cost in each)
        print(f"{shader + ', ' + name:>32}: {seconds * PICTURE.fps / wall:6.1f} frames/s", flush=True)
    return ratio(costs, "shaderflow", "ours")


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
            with renderer.artist(order_for()) as artist:
                bench = Bench(artist, song, folder)
                if scene == "bars":
                    figures |= overlap(bench, rounds)
                    figures["vs_moviepy"] = against_moviepy(bench, peers, folder, rounds // 2 + 1)
                figures[f"pipeline_vs_encoder_{scene}"] = pipeline(scene, bench, rounds)
                speeds[scene] = min(bench.whole().wall for _ in range(2))
        fastest = SCENES[min(speeds, key=speeds.__getitem__)]
        figures["numpy_vs_showcqt"] = against_showcqt(fastest, peers, folder, seconds=seconds, rounds=rounds // 2 + 1)
        for shader, text in SHADERS.items():
            path = folder / f"{shader}.glsl"
            path.write_text(text)
            file = Asset(url="", size=len(text), path=str(path))
            figures |= shader_alone(shader, file, song, folder, rounds=rounds // 2 + 1)
            figures[f"vs_shaderflow_{shader}"] = against_shaderflow(
                shader, file, song, peers, folder, seconds=seconds, rounds=2 if quick else rounds // 2 + 1, quick=quick
            )
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
