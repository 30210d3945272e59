"""What does each quality cost, and how near is its picture to what was drawn?

``python tests/benchmarks/quality.py`` encodes the same 6 s of each scene at 1280x720 with each `Output.quality`, and
has ffmpeg compare the videos with the frames. The last line of the output is JSON: for each quality, means over the
scenes of CPU seconds and bytes relative to ``balanced``, and of PSNR (dB) and SSIM.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import time
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple, get_args

from renderdispatch.messages import Output, Quality
from renderdispatch.render import bars, radial, wave
from renderdispatch.render.audio import SoundReader
from renderdispatch.render.mp4 import Mp4Writer
from renderdispatch.render.music import compose
from renderdispatch.render.picture import Picture
from renderdispatch.render.scene import NumpyRenderer
from renderdispatch.render.scene_artist import SceneArtist
from renderdispatch.render.video import read_sound

PICTURE: Final = Output(width=1280, height=720, fps=Fraction(30))


class Cost(NamedTuple):
    """Of one video."""

    cpu: float
    size: float
    psnr: float
    ssim: float


def drawn(renderer: NumpyRenderer, song: Path, folder: Path) -> list[Picture]:
    artist = SceneArtist(*renderer.load({}), PICTURE)
    with SoundReader(song, start=Fraction(0), duration=None) as sound:
        features = read_sound(sound, None, folder / "features", fps=PICTURE.fps, report=lambda done, total: None)
    pictures, state = [], artist.start()
    for frame in features:
        state = artist.step(state, frame)
        pictures.append(artist.draw(state, frame))
    return pictures


def encoded(pictures: list[Picture], quality: Quality, original: Path, folder: Path) -> Cost:
    video = folder / "video.mp4"
    output = PICTURE.model_copy(update={"quality": quality})
    writer = Mp4Writer(video, folder / "sound", output, rate=48_000, layout="mono")
    writer.finish_sound()
    began = time.process_time()
    for picture in pictures:
        writer.write_frame(picture.frame)
    writer.close()
    cpu = time.process_time() - began
    frames = ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", "1280x720", "-framerate", "30", "-i", str(original)]
    command = ["ffmpeg", "-hide_banner", "-i", str(video), *frames, "-lavfi", "[0:v][1:v]ssim;[0:v][1:v]psnr"]
    said = subprocess.run([*command, "-f", "null", "-"], check=True, capture_output=True, text=True).stderr
    psnr, ssim = (re.search(pattern, said) for pattern in (r"PSNR .*average:([\d.]+)", r"SSIM .*All:([\d.]+)"))
    assert psnr is not None
    assert ssim is not None
    return Cost(cpu, video.stat().st_size, float(psnr[1]), float(ssim[1]))


def main() -> None:
    costs: dict[str, list[Cost]] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        song, original = folder / "song.wav", folder / "frames.yuv"
        compose(song, seconds=6)
        for scene, renderer in {"bars": bars, "wave": wave, "radial": radial}.items():
            pictures = drawn(renderer, song, folder)
            with original.open("wb") as file:
                for picture in pictures:
                    file.write(picture.frame.to_ndarray().tobytes())
            each = {quality: encoded(pictures, quality, original, folder) for quality in get_args(Quality)}
            for quality, cost in each.items():
                mbit, cpu = cost.size * 8 / 6e6, 1000 * cost.cpu / len(pictures)
                print(
                    f"{scene:>6} {quality:>8}: {cpu:5.1f} ms of CPU a frame, {mbit:4.1f} Mbit/s, "
                    f"PSNR {cost.psnr:.1f} dB, SSIM {cost.ssim:.4f}"
                )
                usual = each["balanced"]
                relative = Cost(cost.cpu / usual.cpu, cost.size / usual.size, cost.psnr, cost.ssim)
                costs.setdefault(quality, []).append(relative)
    means = {
        quality: {
            name: round(statistics.mean(values), 4)
            for name, values in zip(Cost._fields, zip(*each, strict=True), strict=True)
        }
        for quality, each in costs.items()
    }
    print(json.dumps(means))


if __name__ == "__main__":
    main()
