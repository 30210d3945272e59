"""Which of EGL's devices is to draw, and of which class is it?

EGL lists the devices of every driver: NVIDIA's first, then Mesa's, whose last one is its renderer on the CPU. This list
has an order of its own, which ``CUDA_VISIBLE_DEVICES`` does not change. So devices are recognised by what their driver
says of them: the UUID, the place on the bus, or CUDA's number (``EGL_NV_device_cuda``).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from attrs import frozen

from renderdispatch.plumbing.gpus import VISIBLE, Gpu, visible
from renderdispatch.render.device import UNHELD

APT_PACKAGES: Final = ("libegl1", "libgl1")
"""What Debian and Ubuntu call EGL and OpenGL; they bring Mesa, and with it llvmpipe."""

CHOSEN: Final = "RENDERDISPATCH_GPU"
"""The variable that names the GPU of a process that renders: its UUID, or its index in NVIDIA's list."""

_ON_THE_CPU: Final = ("llvmpipe", "softpipe", "swrast", "swiftshader", "lavapipe", "software rasterizer")

# Of EGL_EXT_device_base and _query, _drm, _drm_render_node, _persistent_id, and of EGL_NV_device_cuda.
_EXTENSIONS: Final = 0x3055
_DRM_FILES: Final = {"EGL_EXT_device_drm": 0x3233, "EGL_EXT_device_drm_render_node": 0x3377}
_UUID: Final = 0x335C
_CUDA: Final = 0x323A
_MOST: Final = 64

_LONGEST_NAME: Final = 40
_LONGEST_OF_NVIDIA: Final = 22
"""A class has at most 100 characters, and with NVIDIA's encoder such a name is in it twice."""

_WITHOUT_LLVM: Final = ("GALLIUM_OVERRIDE_CPU_CAPS", "GALLIUM_NOSSE", "LP_FORCE_SSE2")
"""Variables by which Mesa uses less of the processor than it has."""


@frozen(kw_only=True)
class EglDevice:
    """A device in EGL's list.

    Args:
        index: In this list.
        extensions: What EGL says of it.
        uuid: As NVIDIA's driver writes it: ``GPU-`` and 32 hexadecimal digits in groups.
        pci: Its place on the bus, such as ``0000:3b:00.0``.
        cuda: CUDA's number of it.
    """

    index: int
    extensions: frozenset[str] = frozenset()
    uuid: str | None = None
    pci: str | None = None
    cuda: int | None = None

    @property
    def on_cpu(self) -> bool:
        """Whether it is known to draw on the CPU."""
        return "EGL_MESA_device_software" in self.extensions

    @property
    def of_nvidia(self) -> bool:
        """Whether NVIDIA's driver offers it."""
        return "EGL_NV_device_cuda" in self.extensions

    @property
    def has_identity(self) -> bool:
        """Whether its driver says which one it is."""
        return (self.uuid, self.pci, self.cuda) != (None, None, None)


# --- which one ------------------------------------------------------------------------------------


def order_devices(
    devices: Iterable[EglDevice], environment: Mapping[str, str], gpus: Sequence[Gpu] = ()
) -> list[EglDevice]:
    """Return the devices that may draw, in the order in which they are to be tried. Those on the CPU come last.

    ``RENDERDISPATCH_GPU`` names the only GPU that may draw: the others belong to other renders. Without it,
    ``CUDA_VISIBLE_DEVICES`` names those of NVIDIA's that may, and their order. Devices whose driver does not say which
    ones they are may draw whatever is named, unless another one is known to be it.

    Args:
        devices: EGL's list.
        environment: Of the process that renders.
        gpus: What NVIDIA's driver lists, as `renderdispatch.plumbing.gpus` reads it; none if it cannot be asked.
    """
    devices = list(devices)
    on_cpu = [device for device in devices if device.on_cpu]
    of_nvidia = [device for device in devices if device.of_nvidia]
    others = [device for device in devices if not (device.on_cpu or device.of_nvidia)]
    chosen = environment.get(CHOSEN, "").strip()
    if chosen:
        return [*_named([chosen], of_nvidia, gpus), *on_cpu]
    value = environment.get(VISIBLE)
    if value is not None:
        names = [gpu.uuid for gpu in visible(gpus, value)] if gpus else _entries(value)
        of_nvidia = _named(names, of_nvidia, gpus)
    return [*of_nvidia, *others, *on_cpu]


def _entries(value: str) -> list[str]:
    """Return the entries of ``CUDA_VISIBLE_DEVICES``, up to the first that can be no GPU's."""
    return list(takewhile(re.compile("[0-9]+$|GPU-").match, map(str.strip, value.split(","))))


def _named(names: Sequence[str], devices: Sequence[EglDevice], gpus: Sequence[Gpu]) -> list[EglDevice]:
    found = [device for name in names for device in devices if _is(device, name, gpus)]
    if found or not names:
        return list(dict.fromkeys(found))
    return [device for device in devices if not device.has_identity]


def _is(device: EglDevice, name: str, gpus: Sequence[Gpu]) -> bool:
    """Return whether a name is a device's, by the surest of what is known of both."""
    gpu = next((gpu for gpu in gpus if name == str(gpu.index) or _begins(gpu.uuid, name)), None)
    if gpu is None:
        return name == str(device.cuda) or (device.uuid is not None and _begins(device.uuid, name))
    if device.uuid is not None:
        return device.uuid == gpu.uuid.lower().replace("gpu-", "GPU-")
    if device.pci is not None and gpu.pci is not None:
        return device.pci == gpu.pci
    return device.cuda == gpu.index


def _begins(uuid: str, name: str) -> bool:
    """Return whether a name is a UUID or its beginning, which CUDA accepts as well."""
    return name.upper().startswith("GPU-") and uuid.lower().startswith(name.lower())


# --- what it is called ----------------------------------------------------------------------------


def draws_on_gpu(renderer: str) -> bool:
    """Return whether OpenGL's name of a device (``GL_RENDERER``) is a GPU's."""
    return not any(name in renderer.lower() for name in _ON_THE_CPU)


def class_of(renderer: str, version: str, *, held: bool) -> str:
    """Return the class of a device: the GPU's name, or llvmpipe, with all versions that its frames depend on.

    Examples: ``nvidia-l4-535.183.01``, ``intel-uhd-graphics-620-kbl-gt2-mesa-22.3.6``, ``llvmpipe-22.3.6-llvm-15.0.6``.
    The width of llvmpipe's vectors changes nothing, if it uses AVX.

    Args:
        renderer: ``GL_RENDERER``.
        version: ``GL_VERSION``.
        held: Whether llvmpipe, if it draws, uses AVX.
    """
    compiler = re.search(r"LLVM ([0-9.]+)", renderer)
    llvm = f"-llvm-{compiler[1]}" if compiler else ""
    mesa = re.search(r"Mesa ([0-9.]+)", version)
    if not draws_on_gpu(renderer):
        name = next((name for name in _ON_THE_CPU if name in renderer.lower()), "llvmpipe").replace(" ", "-")
        return f"{name}-{mesa[1] if mesa else _plain(version)}{llvm}" + ("" if held else UNHELD)
    nvidia = re.search(r"NVIDIA ([0-9.]+)", version)
    if nvidia:
        return nvidia_class(renderer.partition("/")[0], nvidia[1])
    # What drivers of Mesa write behind the name: driver, chip, compiler, kernel. The chip is part of it.
    words = re.sub(r"\((R|TM)\)", "", renderer).removeprefix("Mesa ").removeprefix("DRI ")
    name, _, details = words.rstrip(")").partition("(")
    chip = next((part for part in map(str.strip, details.split(",")) if part and not _is_detail(part)), "")
    driver = f"mesa-{mesa[1]}{llvm}" if mesa else _short(version, _LONGEST_OF_NVIDIA)
    return f"{_short(f'{name} {chip}', _LONGEST_NAME)}-{driver}"


def nvidia_class(name: str, driver: str) -> str:
    """Return the class of a GPU of NVIDIA's: ``nvidia-l4-535.183.01``."""
    short = re.sub("NVIDIA |GeForce ", "", name, flags=re.IGNORECASE)
    return f"nvidia-{_short(short, _LONGEST_OF_NVIDIA)}-{driver}"


def _short(name: str, most: int) -> str:
    """Return a name of at most so many characters; what is left out of it is in a hash."""
    plain = _plain(name)
    if len(plain) <= most:
        return plain
    return f"{plain[: most - 5].strip('-')}-{hashlib.sha256(plain.encode()).hexdigest()[:4]}"


def _is_detail(part: str) -> bool:
    return re.match(r"radeonsi|LLVM|ACO|DRM|[0-9]", part) is not None


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def llvmpipe_is_held() -> bool:
    """Return whether llvmpipe uses AVX here. Without it, its frames differ."""
    if platform.machine().lower() not in {"x86_64", "amd64"} or any(name in os.environ for name in _WITHOUT_LLVM):
        return False
    with suppress(OSError):
        return "avx" in Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0].split()
    return False


def why_no_gpu(renderer: str) -> str:
    """Return why a GPU does not draw, and what to do.

    Args:
        renderer: OpenGL's name of what draws.
    """
    if any(Path("/dev").glob("nvidia[0-9]*")):
        step = (
            "a GPU of NVIDIA's is here, but not its OpenGL: set NVIDIA_DRIVER_CAPABILITIES=all in a container, "
            "install the driver's OpenGL elsewhere (libnvidia-gl on Ubuntu)"
        )
    else:
        step = "render where there is a GPU, or without require_gpu; 'renderdispatch doctor' shows what is here"
    return f"OpenGL's device is {renderer}; {step}"


# --- which there are ------------------------------------------------------------------------------


def list_devices() -> list[EglDevice]:
    """Return EGL's list; an empty one if EGL cannot list devices.

    Raises:
        OSError: There is no EGL, or it is broken.
    """
    egl = ctypes.CDLL("libEGL.so.1")
    try:
        egl.eglGetProcAddress.restype, egl.eglGetProcAddress.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    except AttributeError as error:
        raise OSError(str(error)) from error
    query = _function(egl, "eglQueryDevicesEXT", ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))
    found, count = (ctypes.c_void_p * _MOST)(), ctypes.c_int()
    if query is None or not query(_MOST, found, ctypes.byref(count)):
        return []
    return [_describe(egl, index, found[index]) for index in range(count.value)]


def _describe(egl: ctypes.CDLL, index: int, device: int | None) -> EglDevice:
    extensions = frozenset((_string(egl, device, _EXTENSIONS) or "").split())
    cuda = None
    attribute = _function(egl, "eglQueryDeviceAttribEXT", ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    number = ctypes.c_ssize_t()
    if "EGL_NV_device_cuda" in extensions and attribute and attribute(device, _CUDA, ctypes.byref(number)):
        cuda = number.value
    files = [_string(egl, device, name) for extension, name in _DRM_FILES.items() if extension in extensions]
    return EglDevice(
        index=index,
        extensions=extensions,
        uuid=_uuid(egl, device) if "EGL_EXT_device_persistent_id" in extensions else None,
        pci=next((place for file in files if file and (place := _place(file))), None),
        cuda=cuda,
    )


def _function(egl: ctypes.CDLL, name: str, *types: type, result: type = ctypes.c_uint) -> Callable[..., Any] | None:
    address = egl.eglGetProcAddress(name.encode())
    return ctypes.CFUNCTYPE(result, *types)(address) if address else None


def _string(egl: ctypes.CDLL, device: int | None, name: int) -> str | None:
    query = _function(egl, "eglQueryDeviceStringEXT", ctypes.c_void_p, ctypes.c_int, result=ctypes.c_char_p)
    text: bytes | None = query(device, name) if query else None
    return None if text is None else text.decode(errors="replace")


def _uuid(egl: ctypes.CDLL, device: int | None) -> str | None:
    types = (ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    query = _function(egl, "eglQueryDeviceBinaryEXT", *types)
    value, size = (ctypes.c_ubyte * 16)(), ctypes.c_int()
    if query is None or not query(device, _UUID, len(value), value, ctypes.byref(size)) or size.value != len(value):
        return None
    return f"GPU-{UUID(bytes=bytes(value))}"


def _place(file: str) -> str | None:
    """Return the place on the bus of a device file such as ``/dev/dri/card0``."""
    with suppress(OSError):
        return Path("/sys/class/drm", Path(file).name, "device").resolve(strict=True).name
    return None
