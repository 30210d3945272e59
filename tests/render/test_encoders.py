"""Which encoder makes a video, and what proves that it works?"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from renderdispatch.errors import GpuUnavailableError, RenderError
from renderdispatch.messages import FaultDomain, Output, Quality, VideoEncoder
from renderdispatch.plumbing.failures import job_error
from renderdispatch.plumbing.gpus import Gpu
from renderdispatch.render import bars
from renderdispatch.render.device import DrawingGpu, check_device, join_class
from renderdispatch.render.encoders import LIBX264, Nvenc, choose_encoder, nvenc_of, prove
from renderdispatch.render.gl.devices import class_of
from tests.support.needs import need_ffmpeg

L4 = DrawingGpu(device_class="nvidia-l4-535.183.01", cuda=0)
SMALL = Output(width=320, height=180, fps=Fraction(10))


def works() -> None:
    """A proof that succeeds."""


def fails() -> str:
    return "no capable devices found"


def unasked() -> str:
    raise AssertionError("no proof was needed")


@pytest.mark.parametrize(
    ("wanted", "gpu", "prove", "expected"),
    [
        ("auto", None, unasked, "libx264"),
        ("auto", L4, works, "h264_nvenc"),
        ("auto", L4, fails, "libx264"),
        ("libx264", L4, unasked, "libx264"),
        ("h264_nvenc", L4, works, "h264_nvenc"),
        ("h264_nvenc", None, works, "h264_nvenc"),
    ],
)
def test_the_encoder_follows_from_what_draws_and_from_a_proof(
    wanted: VideoEncoder, gpu: DrawingGpu | None, prove: Callable[[], str | None], expected: str
) -> None:
    """``auto`` takes NVENC where a GPU draws and one frame was encoded; who names an encoder gets that one."""
    assert choose_encoder(wanted, gpu=gpu, prove=prove) == expected


def test_what_was_asked_for_and_cannot_encode_is_refused() -> None:
    """A fault of the request, which says why: it would fail at each attempt."""
    with pytest.raises(GpuUnavailableError, match="no capable devices found") as refused:
        choose_encoder("h264_nvenc", gpu=L4, prove=fails)
    error = job_error(refused.value, otherwise=FaultDomain.SCENE)
    assert (error.code, error.fault) == ("encoder.unavailable", FaultDomain.REQUEST)


def test_nvenc_is_on_the_gpu_that_draws() -> None:
    """Where that is one of NVIDIA's, its class and number are taken over; a GPU of another maker has no NVENC."""
    nvenc = nvenc_of(DrawingGpu(device_class="nvidia-l4-535.183.01", cuda=3))
    assert nvenc.device_class == "nvenc-l4-535.183.01"
    assert nvenc.gpu in {3, None}  # None: CUDA may use one GPU alone
    other = nvenc_of(DrawingGpu(device_class="intel-uhd-graphics-620-kbl-gt2-mesa-22.3.6"))
    assert other == nvenc_of(None)


def _nvenc_works() -> bool:
    return prove(Nvenc(), SMALL) is None


def test_one_frame_proves_an_encoder() -> None:
    """libx264 encodes it; NVENC says what it lacks, where there is no GPU."""
    assert prove(LIBX264, SMALL) is None
    if not _nvenc_works():
        reason = prove(Nvenc(), SMALL)
        assert reason is not None
        assert "cuda" in reason.lower() or "device" in reason.lower() or "nvenc" in reason.lower()


def test_a_proof_is_of_this_very_picture() -> None:
    """What the encoder refuses is told, not raised: libx264 has no picture of 32768 lines."""
    assert prove(LIBX264, Output.model_construct(width=16, height=1 << 15, fps=Fraction(30)))


def test_a_render_with_an_encoder_that_is_not_there_ends_before_a_frame(
    tmp_path: Path, write_wav: Callable[..., Path], render: Callable[..., object]
) -> None:
    """NVENC was asked for: no video by another encoder, and none at all."""
    if _nvenc_works():
        pytest.skip("NVENC works here")
    song = write_wav(tmp_path / "a.wav", np.zeros(8000))
    with pytest.raises(GpuUnavailableError, match="h264_nvenc cannot encode this video here"):
        render(bars, song, output=SMALL.model_copy(update={"encoder": "h264_nvenc"}))
    assert not list(tmp_path.glob("**/*.mp4"))


def test_ffmpeg_knows_every_setting_of_nvenc() -> None:
    """Each is an option of the encoder, or of every encoder: a wrong name would be ignored."""
    need_ffmpeg()
    command = ["ffmpeg", "-hide_banner", "-h", "encoder=h264_nvenc"]
    help_text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    context = av.CodecContext.create("h264_nvenc", "w")
    Nvenc(gpu=1).set_up(context, SMALL)
    assert {name for name in context.options if name != "b" and f"\n  -{name} " not in help_text} == set()
    assert (context.gop_size, context.max_b_frames) == (40, 2)


@pytest.mark.parametrize("quality", ["fast", "balanced", "quality"])
def test_nvenc_takes_the_values_of_every_quality(quality: Quality) -> None:
    """FFmpeg reads them before it looks for a GPU, and refuses those that make no sense."""
    if _nvenc_works():
        assert prove(Nvenc(), SMALL.model_copy(update={"quality": quality})) is None
        return
    lacking = prove(Nvenc(), SMALL)
    assert prove(Nvenc(), SMALL.model_copy(update={"quality": quality})) == lacking
    context = av.CodecContext.create("h264_nvenc", "w")
    Nvenc().set_up(context, SMALL)
    context.options = {**context.options, "tune": "no such tune"}
    with pytest.raises(av.FFmpegError) as refused:
        context.open()
    assert str(lacking) not in str(refused.value)


def test_an_encoder_is_a_part_of_the_class() -> None:
    """A declared class is compared part by part: those that only one side has are not compared."""
    drawn = "cpu-x86-64+nvidia-l4-535.183.01+nvenc-l4-535.183.01"
    for declared in (None, "cpu-x86-64", "cpu-x86-64+nvidia-l4-535.183.01", drawn, "cpu-x86-64+nvenc-l4-535.183.01"):
        check_device(declared, drawn)
    check_device(drawn, "cpu-x86-64")
    check_device(drawn, "cpu-x86-64+nvenc-l4-535.183.01")
    for declared in (
        "cpu-x86-64+nvidia-l4-550.54.15",
        "cpu-x86-64+llvmpipe-22.3.6-llvm-15.0.6",
        "cpu-x86-64+nvidia-l4-535.183.01+nvenc-l4-550.54.15",
        "cpu-aarch64-unheld",
    ):
        with pytest.raises(Exception, match="declare the class"):
            check_device(declared, drawn)


def test_a_class_is_never_too_long_for_a_record() -> None:
    """A hash stands for an encoder's part that has no room; the same encoder has the same one."""
    cpu = "cpu-x86-64-unheld"
    device = class_of(f"AMD Radeon {'X' * 80} (radeonsi, navi31, LLVM 17.0.6)", "4.6 Mesa 24.2.8-1ubuntu1", held=True)
    encoder = f"nvenc-{'l' * 22}-570.133.07"
    joined = join_class(f"{cpu}+{device}", encoder)
    assert len(joined) <= 100
    assert joined == join_class(f"{cpu}+{device}", encoder)
    assert joined != join_class(f"{cpu}+{device}", f"{encoder}8")
    check_device(joined, joined)
    with pytest.raises(RenderError, match="declare the class"):
        check_device(joined, join_class(f"{cpu}+{device}", f"{encoder}8"))
    assert join_class("cpu-x86-64", None) == "cpu-x86-64"
    assert join_class("cpu-x86-64", "nvenc-l4-1") == "cpu-x86-64+nvenc-l4-1"


def test_nvenc_beside_gpus_of_two_kinds_promises_nothing() -> None:
    """FFmpeg takes the first one that has an encoder, and does not say which one that is."""
    a100, l4 = (Gpu(uuid=f"GPU-{name}", name=f"NVIDIA {name}", driver="535.183.01") for name in ("A100", "L4"))
    assert nvenc_of(None, [a100, l4]).device_class == "nvenc-unheld"
    assert nvenc_of(None, [l4, l4]).device_class == "nvenc-l4-535.183.01"
    assert nvenc_of(None, []).device_class == "nvenc"
    assert nvenc_of(L4, [a100, l4]) == Nvenc(0, "nvenc-l4-535.183.01")
