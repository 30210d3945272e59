"""Does the same input give the same bytes, whatever the machine and its environment?"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from renderdispatch.errors import RenderError
from renderdispatch.messages import Output, RenderOrder, RenderStats
from renderdispatch.render import bars
from renderdispatch.render.device import check_device, class_of_numpy, declared_class, device_class, picture_version
from renderdispatch.render.music import compose
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.testing import make_order

WriteWav = Callable[..., Path]
Order = Callable[..., RenderOrder]
Render = Callable[..., tuple[Path, RenderStats]]

OLD_LEVEL = ["SSSE3", "SSE41", "POPCNT", "SSE42", "AVX", "F16C", "FMA3", "AVX2"]

BY_THE_RUNNER = """
import os, sys
from hashlib import sha256
from pathlib import Path

from renderdispatch.messages import RenderOrder
from renderdispatch.runner.render import SupervisedRender

song, order, cores, *scenes = sys.argv[1:]
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
for scene in scenes:
    wanted = RenderOrder.model_validate_json(order).model_copy(update={"scene": scene})
    video = Path(song).with_name(f"{os.getpid()}.mp4")
    with SupervisedRender() as render:
        stats = render(wanted, Path(song), video, lambda done, total: None)
    print(stats.device_class, stats.picture_version, sha256(video.read_bytes()).hexdigest())
"""

HELD = """
import os
from renderdispatch.render.device import numpy_held, device_class
with numpy_held():
    import numpy
print(device_class(), os.environ["NPY_DISABLE_CPU_FEATURES"], os.environ["OPENBLAS_CORETYPE"])
"""


def python(*arguments: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **environment}, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize("quality", ["fast", "balanced", "quality"])
def test_two_renders_are_the_same_file(
    tmp_path: Path, write_wav: WriteWav, render: Render, order: Order, quality: Any
) -> None:
    """The same order gives the same bytes again: no time, no chance, no trace of how threads took turns."""
    song = write_wav(tmp_path / "a.wav", np.random.default_rng(5).uniform(-0.4, 0.4, 30_000))
    output = Output(width=160, height=90, quality=quality)
    digests = set()
    for _ in range(2):
        video, _ = render(bars, song, output=output)
        digests.add(sha256(video.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_the_file_says_nothing_of_how_it_was_made(tmp_path: Path, write_wav: WriteWav, render: Render) -> None:
    """There is no SEI with the encoder's settings, no version of a library, and no date."""
    video, _ = render(bars, write_wav(tmp_path / "a.wav", np.zeros(20_000)))
    held = video.read_bytes()
    assert not [word for word in (b"x264", b"Lavf", b"Lavc", b"options:") if word in held]
    for header in (b"mvhd", b"tkhd", b"mdhd"):
        at = held.index(header) + 8
        assert held[at : at + 8] == bytes(8)  # created, modified


def test_the_artifact_says_what_drew_it(tmp_path: Path, write_wav: WriteWav, render: Render) -> None:
    """Statistics name the class of the device, and the version of the pictures."""
    _, stats = render(bars, write_wav(tmp_path / "a.wav", np.zeros(20_000)))
    assert (stats.device_class, stats.picture_version) == (device_class(), picture_version())
    assert f"numpy-{np.__version__}+" in picture_version()


def test_another_class_than_the_declared_one_is_refused(tmp_path: Path, write_wav: WriteWav, render: Render) -> None:
    """Bytes that the order does not ask for are not drawn: ``device.mismatch``, a fault of the infrastructure."""
    song = write_wav(tmp_path / "a.wav", np.zeros(20_000))
    with pytest.raises(RenderError, match=r"'one-gpu'.*'cpu-") as caught:
        render(bars, song, device_class="one-gpu")
    assert (caught.value.code, caught.value.fault) == ("device.mismatch", "infrastructure")
    check_device(None, device_class())
    check_device(device_class(), device_class())


@pytest.mark.parametrize(
    ("baseline", "dispatched", "used", "held"),
    [
        (["X86_V2"], ["X86_V3", "X86_V4", "AVX512_ICL"], ["X86_V2", "X86_V3"], True),
        (["X86_V2"], ["X86_V3", "X86_V4", "AVX512_ICL"], ["X86_V2", "X86_V3", "X86_V4"], False),
        (["X86_V2"], ["X86_V3", "X86_V4", "AVX512_ICL"], ["X86_V2"], False),
        (["X86_V3"], ["X86_V4"], ["X86_V3", "AVX512F"], True),
        (["SSE", "SSE2", "SSE3"], [*OLD_LEVEL, "AVX512F"], ["SSE", "SSE2", "SSE3", *OLD_LEVEL], True),
        (["SSE", "SSE2", "SSE3"], [*OLD_LEVEL, "AVX512F"], ["SSE", "SSE2", "SSE3", *OLD_LEVEL, "AVX512F"], False),
        (["SSE", "SSE2", "SSE3"], [*OLD_LEVEL, "AVX512F"], ["SSE", "SSE2", "SSE3", *OLD_LEVEL[:-1]], False),
        (["X86_V2"], ["X86_V3", "AVX10_9"], ["X86_V2", "X86_V3", "AVX10_9"], False),
    ],
)
def test_only_one_level_of_numpy_is_of_the_class(
    baseline: list[str], dispatched: list[str], used: list[str], *, held: bool
) -> None:
    """More instructions, known or not, and fewer ones are another class, by the names of old and new versions."""
    found = class_of_numpy(baseline, dispatched, dict.fromkeys(used, True))
    assert found == ("cpu-x86-64" if held else "cpu-x86-64-unheld")


@pytest.mark.parametrize(
    ("numpy", "hidden", "declared"),
    [
        *((version, None, "cpu-x86-64") for version in ("1.26.4", "2.0.2", "2.4.6", "2.5.5")),
        *(("2.4.6", name, None) for name in ("avx2", "fma", "movbe", "abm", "bmi2")),
        ("2.6.0", None, None),
    ],
)
def test_a_class_is_declared_where_it_is_sure(
    monkeypatch: pytest.MonkeyPatch, numpy: str, hidden: str | None, declared: str | None
) -> None:
    """Virtual machines may hide some of what NumPy wants, and a NumPy that was not tried may use more."""
    read = Path.read_text
    flags = {"sse2", "avx2", "fma", "f16c", "bmi1", "bmi2", "abm", "movbe"} - {hidden}

    def read_flags(path: Path, *arguments: Any, **named: Any) -> str:
        made_up = f"processor\t: 0\nflags\t\t: {' '.join(flags)}\nbugs\t\t:\n"
        return made_up if path == Path("/proc/cpuinfo") else read(path, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", read_flags)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("renderdispatch.render.device.version", lambda _: numpy)
    assert declared_class.__wrapped__() == declared


def test_numpy_is_held_whatever_the_environment_says() -> None:
    """Variables of the environment neither lower nor raise NumPy's level, and stay as they were for others."""
    environment = {
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 AVX2",
        "NPY_ENABLE_CPU_FEATURES": "AVX512F",
        "OPENBLAS_CORETYPE": "Nehalem",
    }
    found, *kept = python("-W", "error", "-c", HELD, **environment).split()
    assert kept == ["X86_V3", "AVX2", "Nehalem"]
    if os.environ.get("CI"):  # where a NumPy that was not tried is to be noticed
        assert declared_class() == (found if found == "cpu-x86-64" else None)
    else:
        assert declared_class() in {found, None}


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("same") / "song.wav"
    compose(path, seconds=2)
    return path


@pytest.fixture(scope="module")
def rendered(song: Path) -> Callable[..., str]:
    """Returns what a render process made of each scene, on so many cores and with these variables."""
    output = Output(width=320, height=180)
    wanted = make_order(MemoryStorage(), output=output, device_class=declared_class()).model_dump_json()

    def run(cores: int, **environment: str) -> str:
        return python("-c", BY_THE_RUNNER, str(song), wanted, str(cores), "bars", "wave", "radial", **environment)

    return run


@pytest.fixture(scope="module")
def first(rendered: Callable[..., str]) -> str:
    """What it made on two cores, in the environment of these tests."""
    return rendered(2)


@pytest.mark.long
@pytest.mark.parametrize(
    ("cores", "environment"),
    [
        (1, {}),
        (2, {"NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR"}),
        (1, {"NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F"}),
        (2, {"NPY_ENABLE_CPU_FEATURES": "X86_V4", "OPENBLAS_CORETYPE": "Nehalem"}),
        (2, {"OPENBLAS_CORETYPE": "Sandybridge", "OPENBLAS_NUM_THREADS": "7"}),
        (1, {"OPENBLAS_CORETYPE": "Haswell"}),
        (2, {"OPENBLAS_CORETYPE": "SkylakeX"}),
        (2, {"OPENBLAS_CORETYPE": "Zen", "PYTHONHASHSEED": "5", "TZ": "Asia/Tokyo", "LC_ALL": "C"}),
    ],
)
def test_cores_and_environment_change_no_byte(
    rendered: Callable[..., str], first: str, cores: int, environment: dict[str, str]
) -> None:
    """A render process makes one and the same file of each scene, on one core and on two, in any environment."""
    assert len(set(first.splitlines())) == 3
    assert rendered(cores, **environment) == first
