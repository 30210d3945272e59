"""What the renderer's tests share: sounds to render, orders, and a way to look into a video."""

from __future__ import annotations

import wave
from collections.abc import Callable
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from renderdispatch.messages import ObjectUrls, Output, RenderOrder, RenderStats, SignedPut
from renderdispatch.protocols import Renderer

Samples = NDArray[np.float64]


def _write_wav(path: Path, samples: Samples, rate: int = 44_100) -> Path:
    """Write 16-bit WAV from (samples,) or (channels, samples), full scale at 1."""
    planes = np.atleast_2d(samples)
    with wave.open(str(path), "wb") as file:
        file.setparams((len(planes), 2, rate, planes.shape[1], "NONE", "not compressed"))
        file.writeframes((planes * 32_767).round().astype("<i2").T.tobytes())
    return path


def _encode(path: Path, codec: str, samples: Samples, rate: int, *, picture: bool = False) -> Path:
    """Encode stereo samples with FFmpeg; with a picture, beside a video stream."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10) if picture else None
        if video is not None:
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        sound: Any = container.add_stream(codec, rate=rate, layout="stereo")
        sound.options = {"strict": "experimental"}  # for Vorbis
        stereo = np.ascontiguousarray(np.broadcast_to(np.atleast_2d(samples), (2, samples.shape[-1])), np.float32)
        frame = av.AudioFrame.from_ndarray(stereo, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        to_encoder = av.AudioResampler(sound.codec_context.format, "stereo", rate)
        for part in [*to_encoder.resample(frame), *to_encoder.resample(None)]:
            container.mux(sound.encode(part))
        container.mux(sound.encode(None))
        if video is not None:
            for number in range(10):
                image = av.VideoFrame(32, 32, "yuv420p")
                image.pts, image.time_base = number, Fraction(1, 10)
                container.mux(video.encode(image))
            container.mux(video.encode(None))
    return path


def _order(**given: Any) -> RenderOrder:
    nowhere = ObjectUrls(key="key", put=SignedPut(url=""), get="")
    defaults: dict[str, Any] = {"output": Output(width=64, height=36), "scene": "a scene"}
    return RenderOrder(
        job_id="job",
        attempt=1,
        token="",
        audio_url="",
        audio_size=0,
        video=nowhere,
        result=nowhere,
        start_by=datetime.now(UTC),
        finish_by=datetime.now(UTC),
        **defaults | given,
    )


@pytest.fixture
def write_wav() -> Callable[..., Path]:
    return _write_wav


@pytest.fixture
def encode() -> Callable[..., Path]:
    return _encode


@pytest.fixture
def order() -> Callable[..., RenderOrder]:
    return _order


@pytest.fixture
def render(tmp_path: Path) -> Callable[..., tuple[Path, RenderStats]]:
    """Render with a renderer; the rest are fields of the order."""

    def run(renderer: Renderer, audio: Path, **given: Any) -> tuple[Path, RenderStats]:
        output = tmp_path / "video.mp4"
        return output, renderer.render(_order(**given), audio, output, lambda done, total: None)

    return run


@pytest.fixture
def brightness() -> Callable[[Path], NDArray[np.float64]]:
    """Return the mean luma of each frame of a video."""

    def of(path: Path) -> NDArray[np.float64]:
        with av.open(str(path)) as container:
            return np.array([float(frame.to_ndarray()[: frame.height].mean()) for frame in container.decode(video=0)])

    return of


@pytest.fixture
def sound_of() -> Callable[[Path], tuple[NDArray[np.float32], int]]:
    """Return a file's decoded sound, (samples,) in mono, and its rate."""

    def of(path: Path) -> tuple[NDArray[np.float32], int]:
        with av.open(str(path)) as container:
            rate = container.streams.audio[0].rate
            parts = [frame.to_ndarray().astype(np.float32).mean(axis=0) for frame in container.decode(audio=0)]
        return np.concatenate(parts), rate

    return of
