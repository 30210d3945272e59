"""Which devices draw the same bytes, and with which versions?

A backend declares the *class* of the devices that it draws on, and the process that draws compares (`check_device`).
All of the class ``cpu-x86-64`` draw the same bytes: x86-64 with AVX2 and FMA, where NumPy uses nothing newer. These two
decide how FFmpeg's decoders, its AAC encoder and the C library round. AVX-512 changes NumPy alone, which is why
`numpy_held` switches it off there; libx264 and swscale are exact. A class that ends with ``-unheld`` promises nothing.

Bytes also depend on the *picture version*: `PICTURES`, which rises with every change of the scenes' pictures and of the
encoder's settings, and the versions of the libraries that take part.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from attrs import frozen

from renderdispatch.errors import RenderError

PICTURES: Final = 3
"""The version of the scenes and of the encoder's settings."""

HELD_CPU: Final = "cpu-x86-64"
UNHELD: Final = "-unheld"

LONGEST_CLASS: Final = 100
"""The most characters of a class that a record takes."""

_DISABLE: Final = "NPY_DISABLE_CPU_FEATURES"
_OF_OTHERS: Final = ("NPY_ENABLE_CPU_FEATURES", "OPENBLAS_CORETYPE")
_AVX512: Final = "F CD _KNL _KNM _SKX _CLX _CNL _ICL _SPR"
_BEYOND: Final = (*(f"AVX512{name}" for name in _AVX512.split()), "X86_V4")
"""What NumPy is to leave alone, by the names of all its versions; a name that it does not know is only a warning."""

_UP_TO_AVX2: Final = "SSE SSE2 SSE3 SSSE3 SSE41 POPCNT SSE42 AVX F16C FMA3 AVX2"
_LEVEL: Final = {*_UP_TO_AVX2.split(), "X86_V2", "X86_V3"}
"""What NumPy uses in the class, by the names of all its versions."""

_FLAGS: Final = frozenset({"avx2", "fma", "f16c", "bmi1", "bmi2", "abm", "movbe"})
"""Linux's names of what NumPy 2.4 and later want for X86_V3: a virtual machine may hide any of it."""

_KNOWN_NUMPY: Final = (2, 6)
"""NumPy from here on may know newer instructions; see `declared_class`."""


@frozen(kw_only=True)
class DrawingGpu:
    """A GPU that draws.

    Args:
        device_class: Its part of a device's class, such as ``nvidia-l4-535.183.01``.
        cuda: CUDA's number of it, if it has one.
    """

    device_class: str
    cuda: int | None = None


@contextmanager
def numpy_held() -> Iterator[None]:
    """Within the block, NumPy is imported at the level of `HELD_CPU`, whatever the environment says.

    This does nothing if it is imported already, and nothing on other processors than x86-64.
    """
    if "numpy" in sys.modules or not _is_x86():
        yield
        return
    before = {name: os.environ.pop(name, None) for name in (_DISABLE, *_OF_OTHERS)}
    os.environ[_DISABLE] = " ".join(_BEYOND)
    try:
        with warnings.catch_warnings():
            # Of features that this version does not know, or that this processor does not have.
            warnings.filterwarnings("ignore", ".*NPY_DISABLE_CPU_FEATURES", ImportWarning)
            yield
    finally:
        del os.environ[_DISABLE]
        os.environ |= {name: value for name, value in before.items() if value is not None}


def class_of_numpy(baseline: Iterable[str], dispatched: Iterable[str], features: dict[str, bool]) -> str:
    """Return the class of an x86-64 machine.

    Args:
        baseline: What NumPy was built for.
        dispatched: What else it uses where there is it.
        features: By name, whether NumPy found it and may use it.
    """
    known = {*baseline, *dispatched}
    used = {name for name in known if features.get(name, False)}
    return HELD_CPU if used == known & _LEVEL else HELD_CPU + UNHELD


@cache
def device_class() -> str:
    """Return the class of this machine and of the NumPy that this process has imported."""
    if not _is_x86():
        return f"cpu-{platform.machine().lower()}{UNHELD}"
    with numpy_held():
        import numpy as np

    core = "core" if np.__version__.startswith("1.") else "_core"
    numpy = sys.modules[f"numpy.{core}._multiarray_umath"]
    return class_of_numpy(numpy.__cpu_baseline__, numpy.__cpu_dispatch__, numpy.__cpu_features__)


@cache
def declared_class() -> str | None:
    """Return the class of the processes that will render on this machine; None if that is not sure.

    NumPy is not imported for this. So of a version that is newer than those that were tried, it is not sure.
    """
    with suppress(PackageNotFoundError, OSError, ValueError):
        numpy = tuple(int(part) for part in version("numpy").split(".")[:2])
        flags = Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0].split()
        if _is_x86() and numpy < _KNOWN_NUMPY and set(flags) >= _FLAGS:
            return HELD_CPU
    return None


def check_device(declared: str | None, actual: str) -> None:
    """Check that what draws is of the declared class.

    A class has parts, separated by ``+``: the CPU's, and those of OpenGL's device and of a hardware encoder where they
    take part. A part that only one of the two names has is not compared.

    Args:
        declared: As of an order; None fits every device.
        actual: The class of what draws here.

    Raises:
        RenderError: ``device.mismatch``: its bytes would not be those that were asked for.
    """
    wanted, found = _by_kind(declared or actual), _by_kind(actual)
    if all(found[kind] == wanted[kind] for kind in wanted.keys() & found.keys()):
        return
    message = (
        f"the order is for devices of the class {declared!r}, and this one is {actual!r}: "
        "declare the class that the backend really has, or None"
    )
    raise RenderError(message, code="device.mismatch")


def join_class(*parts: str | None) -> str:
    """Return the class that has these parts, of the CPU first. Where they are too long, a hash stands for the last.

    Args:
        parts: Those that are None take no part.
    """
    named = [part for part in parts if part]
    if len(joined := "+".join(named)) <= LONGEST_CLASS:
        return joined
    kind, digest = named[-1].partition("-")[0], hashlib.sha256(named[-1].encode()).hexdigest()
    return "+".join([*named[:-1], f"{kind}-{digest[:8]}"])


def _by_kind(name: str) -> dict[str, str]:
    """Return the parts of a class by what they describe: the CPU, then OpenGL's device and the encoder, if any."""
    cpu, *others = name.split("+")
    return {"cpu": cpu, **{"encoder" if part.startswith("nvenc") else "device": part for part in others}}


@cache
def picture_version() -> str:
    """Return what decides about the bytes on a device of one class, such as ``3+numpy-2.4.6+av-18.1.0+...``."""
    import av

    libraries = {name: _version(name) for name in ("numpy", "av")}
    libraries["ffmpeg"] = av.ffmpeg_version_info
    libraries["pillow"] = _version("pillow")
    libraries["libc"] = platform.libc_ver()[1]
    return "+".join([str(PICTURES), *(f"{name}-{found}" for name, found in libraries.items() if found)])[:200]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _is_x86() -> bool:
    return platform.machine().lower() in {"x86_64", "amd64"}
