"""What encodes the pictures of a video, with which settings, and does it work here?

libx264 works everywhere. FFmpeg lists NVIDIA's encoder (NVENC) on every machine as well, also beside GPUs that have
none (A100, H100): one encoded frame proves it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Final, NamedTuple, Protocol, cast

import av
import av.logging
import numpy as np
from attrs import frozen
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from renderdispatch.errors import GpuUnavailableError
from renderdispatch.messages import Output, Quality, VideoEncoder
from renderdispatch.plumbing.gpus import Gpu, gpus
from renderdispatch.render.device import UNHELD, DrawingGpu
from renderdispatch.render.gl.devices import nvidia_class

_FRAME_THREADS: Final = ((1920 * 1088, 8), (4096 * 2304, 6))
"""How many threads encode a frame each, by the most pixels of the picture. Each takes 10 to 75 MiB."""

_SLICES: Final = 8
"""The threads that share each frame of a larger picture, whose frames take 190 MiB each at 8192x8192."""

_LOOKAHEAD_OF_LARGE: Final = 5


class _Preset(NamedTuple):
    """A preset of an encoder, with how many frames it looks ahead, and the constant quality: less is better."""

    name: str
    lookahead: int
    quality: float


_OF_X264: Final[dict[Quality, _Preset]] = {
    "fast": _Preset("superfast", 0, 22),
    "balanced": _Preset("veryfast", 10, 19),
    "quality": _Preset("medium", 40, 17),
}
_OF_NVENC: Final[dict[Quality, _Preset]] = {
    "fast": _Preset("p4", 0, 25),
    "balanced": _Preset("p5", 10, 22),
    "quality": _Preset("p7", 32, 19),
}
"""NVENC's scale is not that of libx264: the same number is a better picture and more bytes."""


class Encoder(Protocol):
    """Encodes the pictures of a video as H.264."""

    @property
    def name(self) -> str:
        """FFmpeg's name of it."""

    @property
    def device_class(self) -> str | None:
        """Its part of a device's class; None if it encodes the same bytes everywhere."""

    def set_up(self, context: VideoCodecContext, output: Output) -> None:
        """Choose the settings of a context that was not opened yet."""


@frozen
class _Libx264:
    name: str = "libx264"
    device_class: str | None = None

    def set_up(self, context: VideoCodecContext, output: Output) -> None:
        """Choose the settings by the output alone, so that they are the same on every machine."""
        _describe_picture(context, output)
        preset, pixels = _OF_X264[output.quality], output.width * output.height
        threads = next((threads for most, threads in _FRAME_THREADS if pixels <= most), None)
        lookahead = preset.lookahead if threads is not None else min(preset.lookahead, _LOOKAHEAD_OF_LARGE)
        own = {"cpu-independent": 1, "rc-lookahead": lookahead, "sync-lookahead": 0 if threads is None else 4}
        context.options = {
            "preset": preset.name,
            "crf": str(preset.quality),
            "x264-params": ":".join(f"{name}={value}" for name, value in own.items()),
        }
        context.thread_type = "SLICE" if threads is None else "FRAME"
        context.thread_count = _SLICES if threads is None else threads


LIBX264: Final[Encoder] = _Libx264()


@frozen
class Nvenc:
    """NVIDIA's encoder.

    Args:
        gpu: CUDA's number of the GPU; None: CUDA's first one that can encode.
        device_class: Its part of a device's class, such as ``nvenc-l4-535.183.01``.
    """

    gpu: int | None = None
    device_class: str | None = "nvenc"
    name: str = "h264_nvenc"

    def set_up(self, context: VideoCodecContext, output: Output) -> None:
        """Choose the settings: constant quality, closed groups of pictures of a fixed length."""
        _describe_picture(context, output)
        preset = _OF_NVENC[output.quality]
        context.bit_rate = 0  # no other limit than the quality
        context.max_b_frames = 2
        context.options = {
            "preset": preset.name,
            "tune": "hq",
            "profile": "high",
            "rc": "vbr",
            "cq": str(preset.quality),
            "b": "0",
            "rc-lookahead": str(preset.lookahead),
            "strict_gop": "1",
            "no-scenecut": "1",
            "a53cc": "0",
            "gpu": "any" if self.gpu is None else str(self.gpu),
        }


def _describe_picture(context: VideoCodecContext, output: Output) -> None:
    context.width, context.height, context.pix_fmt = output.width, output.height, "yuv420p"
    context.time_base, context.framerate = 1 / output.fps, output.fps
    # Players can jump to every fourth second, whatever the frame rate: to where a segment of this length begins.
    context.gop_size = ceil(4 * output.fps)
    context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
    context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709


# --- which one ------------------------------------------------------------------------------------


def find_encoder(output: Output, gpu: DrawingGpu | None) -> Encoder:
    """Return the encoder of a video, after it has encoded a frame if that is in doubt.

    Args:
        output: The picture.
        gpu: What draws; None if the CPU does.

    Raises:
        GpuUnavailableError: ``encoder.unavailable``: NVENC was asked for, and cannot encode this picture here.
    """
    wanted = choose_encoder(output.encoder, gpu=gpu, prove=lambda: prove(nvenc_of(gpu), output))
    return LIBX264 if wanted == LIBX264.name else nvenc_of(gpu)


def choose_encoder(wanted: VideoEncoder, *, gpu: DrawingGpu | None, prove: Callable[[], str | None]) -> str:
    """Return the name of the encoder to use.

    Args:
        wanted: As of the request.
        gpu: What draws; None if the CPU does.
        prove: Encodes a frame with NVENC. Returns None, or why that is not possible.

    Raises:
        GpuUnavailableError: ``encoder.unavailable``.
    """
    if wanted == "libx264" or (wanted == "auto" and gpu is None):
        return LIBX264.name
    reason = prove()
    if reason is None:
        return Nvenc().name
    if wanted == "auto":
        return LIBX264.name
    message = (
        f"h264_nvenc cannot encode this video here ({reason}): use encoder='auto', or a GPU of NVIDIA's with NVENC"
    )
    raise GpuUnavailableError(message, code="encoder.unavailable")


def nvenc_of(gpu: DrawingGpu | None, visible: Sequence[Gpu] | None = None) -> Nvenc:
    """Return NVENC on the GPU that draws; if none of NVIDIA's draws, on the first one that can encode.

    Args:
        gpu: What draws; None if the CPU does.
        visible: The GPUs that CUDA may use; None: those of this process.
    """
    visible = gpus() if visible is None else visible
    if gpu is None or not gpu.device_class.startswith("nvidia-"):
        names = {nvidia_class(each.name, each.driver) for each in visible}
        if len(names) > 1:  # FFmpeg takes the first one that has an encoder
            return Nvenc(device_class=f"nvenc{UNHELD}")
        return Nvenc(device_class=next(iter(names), "nvidia").replace("nvidia", "nvenc", 1))
    # Where CUDA may use one GPU alone, its number is 0, whatever it is among all.
    number = None if len(visible) == 1 else gpu.cuda
    return Nvenc(number, f"nvenc-{gpu.device_class.removeprefix('nvidia-')}")


def prove(encoder: Encoder, output: Output) -> str | None:
    """Encode one frame; return None, or why that is not possible."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    with av.logging.Capture():  # which keeps it from being printed
        try:
            context = cast(VideoCodecContext, av.CodecContext.create(encoder.name, "w"))
            encoder.set_up(context, output)
            grey = np.full((output.height * 3 // 2, output.width), 128, np.uint8)
            frame = VideoFrame.from_ndarray(grey, format="yuv420p")
            frame.pts, frame.time_base = 0, 1 / output.fps
            packets = [*context.encode(frame), *context.encode(None)]
        except (av.FFmpegError, ValueError) as error:  # ValueError: this FFmpeg was built without it
            log = getattr(error, "log", None)  # level, name and text of the last message
            return (log[2].strip() if log else "") or getattr(error, "strerror", None) or str(error)
        finally:
            av.logging.set_level(level)
    return None if any(packet.size for packet in packets) else "it wrote nothing"
