"""What can this machine draw and encode with?

``python -m renderdispatch.runner.probe`` tries everything and prints one line of JSON, a `Probe`. Drivers may crash or
hang, and what they load stays in the process, so services ask by `probe`: it tries in a process of its own, within a
limit.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from fractions import Fraction
from typing import Final

from attrs import define, field
from pydantic import Field, ValidationError

from renderdispatch.errors import ConfigurationError, RenderDispatchError
from renderdispatch.messages import Message, Output
from renderdispatch.plumbing.gpus import gpus
from renderdispatch.plumbing.per_process import PerProcess
from renderdispatch.runner.process import SupervisedProcess, describe_exit, events_pipe, has_parent

PROBE_S: Final = 10.0
"""How long a service waits for the answer at most."""

FAILURE_S: Final = 30.0
"""How long a failure of OpenGL counts as the answer."""

_PICTURE: Final = Output(width=1280, height=720, fps=Fraction(30))
"""What the encoders are tried with."""

_VULKAN_TYPES: Final = ("other", "integrated", "discrete", "virtual", "cpu")


class OpenGl(Message):
    """What OpenGL draws on.

    Args:
        renderer: OpenGL's name of the device; blank if it cannot be used.
        version: OpenGL's version, with the driver's.
        vendor: Who made the driver.
        on_gpu: Whether a GPU draws.
        device_class: The part of the device's class that it decides about.
        devices: How many devices EGL lists.
        error: Why it cannot be used, and what to do.
    """

    renderer: str = ""
    version: str = ""
    vendor: str = ""
    on_gpu: bool = False
    device_class: str = ""
    devices: int = 0
    error: str | None = None

    @property
    def why_no_gpu(self) -> str:
        """Why no GPU draws, and what to do."""
        from renderdispatch.render.gl.devices import why_no_gpu

        return self.error or why_no_gpu(self.renderer)


class VulkanDevice(Message):
    """A device that Vulkan lists; ``type`` is ``discrete``, ``integrated``, ``virtual``, ``cpu`` or ``other``."""

    name: str
    type: str


class Vulkan(Message):
    """What Vulkan lists, or why it cannot be used."""

    devices: tuple[VulkanDevice, ...] = ()
    error: str | None = None


class ProbedGpu(Message):
    """A GPU that NVIDIA's driver lists."""

    uuid: str
    name: str
    driver: str


class Probe(Message):
    """What a machine can draw and encode with.

    Args:
        opengl: What draws scenes in GLSL.
        vulkan: What programs that draw with Vulkan find.
        encoders: By FFmpeg's name of the encoder: None if it encoded a frame, else why not.
        gpus: Those of NVIDIA's driver.
    """

    opengl: OpenGl = Field(default_factory=OpenGl)
    vulkan: Vulkan = Field(default_factory=Vulkan)
    encoders: Mapping[str, str | None] = Field(default_factory=dict)
    gpus: tuple[ProbedGpu, ...] = ()

    @property
    def encodes_with(self) -> list[str]:
        """The names of the encoders that work."""
        return [name for name, reason in self.encoders.items() if reason is None]


# --- in a service ---------------------------------------------------------------------------------


def probe(*, timeout_s: float = PROBE_S) -> Probe:
    """Return what this machine can draw and encode with; tried in a process of its own. It raises nothing.

    Args:
        timeout_s: How long it may take. What was not tried by then is reported as an error.
    """
    *_, found = _watch(timeout_s)
    return found


def probe_opengl() -> OpenGl:
    """Return what renders in GLSL are drawn on here; tried in a process of its own, for `PROBE_S` at most."""
    with closing(_watch(PROBE_S)) as tried:
        return next(found.opengl for found in tried if found.opengl.renderer or found.opengl.error)


def opengl_here() -> OpenGl:
    """Return what renders in GLSL are drawn on, on this machine. The answer is kept; see `KeptAnswer`.

    A process that renders opens the device itself (`renders_here`); others have it tried by `probe_opengl`.
    """
    return _this.get().opengl.get()


def renders_here() -> None:
    """Let this process, which renders, open OpenGL's device itself."""
    _this.get().opengl = KeptAnswer(try_opengl)


@define
class KeptAnswer:
    """What OpenGL draws on, asked by one thread while the others wait for the same answer.

    A device is kept for the process's life. A failure may pass, and is kept for `FAILURE_S` alone: a driver that hangs
    does not hold up each request anew.

    Args:
        ask: Finds it out.
        clock: Monotonic seconds.
    """

    _ask: Callable[[], OpenGl]
    _clock: Callable[[], float] = time.monotonic
    _found: OpenGl | None = field(default=None, init=False)
    _asked_s: float = field(default=0.0, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def get(self) -> OpenGl:
        """Return what was found."""
        with self._lock:
            found = self._found
            if found is None or (found.error is not None and self._clock() - self._asked_s >= FAILURE_S):
                self._found = found = self._ask()
                self._asked_s = self._clock()
            return found


@define
class _Process:
    """What is known in this process."""

    opengl: KeptAnswer = field(factory=lambda: KeptAnswer(probe_opengl))


_this: Final = PerProcess(_Process)


def _watch(timeout_s: float) -> Generator[Probe]:
    """Have everything tried; iterate over what is found, more each time. In the last one, nothing is left out."""
    last, reason = _News(), ""
    try:
        process = SupervisedProcess("renderdispatch.runner.probe")
    except (OSError, ConfigurationError) as error:
        yield _failed(last.found, f"the process that tries it cannot be started: {error}")
        return
    deadline = time.monotonic() + timeout_s
    try:
        while not (last.complete or reason):
            line = process.read_line(max(0.0, deadline - time.monotonic()))
            if line is None:
                reason = f"the process that tries it gave no answer for {timeout_s:g} s; the driver may be stuck"
            elif line == b"":
                reason = f"the process that tries it {describe_exit(process.end(wait_s=1), process.log)}"
            else:
                last = _News.model_validate_json(line)
                yield last.found
    except ValidationError:
        reason = "the process that tries it wrote something else"
    finally:
        process.end(wait_s=1 if last.complete else 0)
    if reason:
        yield _failed(last.found, reason)


class _News(Message):
    """A line of the process that tries: what it found so far."""

    found: Probe = Field(default_factory=Probe)
    complete: bool = False


def _failed(found: Probe, reason: str) -> Probe:
    """Return what was found, with a reason for each thing that was not tried."""
    changes: dict[str, object] = {}
    if not (found.opengl.renderer or found.opengl.error):
        changes["opengl"] = OpenGl(error=reason)
    if not (found.vulkan.devices or found.vulkan.error):
        changes["vulkan"] = Vulkan(error=reason)
    if not found.encoders:
        changes["encoders"] = {"libx264": reason, "h264_nvenc": reason}
    return found.model_copy(update=changes)


# --- in the process that tries --------------------------------------------------------------------


def try_all() -> Iterator[Probe]:
    """Iterate over what is found, more each time."""
    found = Probe(gpus=try_gpus())
    yield (found := found.model_copy(update={"opengl": try_opengl()}))
    yield (found := found.model_copy(update={"encoders": try_encoders()}))
    yield found.model_copy(update={"vulkan": try_vulkan()})


def try_opengl() -> OpenGl:
    """Open the device that a render would draw on."""
    try:
        with _extras_are_named():
            from renderdispatch.render.gl.context import open_device
            from renderdispatch.render.gl.devices import list_devices
        with open_device() as device:
            return OpenGl(
                renderer=device.renderer,
                version=device.version,
                vendor=device.vendor,
                on_gpu=device.on_gpu,
                device_class=device.device_class,
                devices=len(list_devices()),
            )
    except RenderDispatchError as error:
        return OpenGl(error=str(error))


def try_encoders() -> dict[str, str | None]:
    """Encode a frame with each encoder."""
    try:
        with _extras_are_named():
            from renderdispatch.render.encoders import LIBX264, nvenc_of, prove
    except RenderDispatchError as error:
        return dict.fromkeys(("libx264", "h264_nvenc"), str(error))
    return {encoder.name: prove(encoder, _PICTURE) for encoder in (LIBX264, nvenc_of(None))}


def try_gpus() -> tuple[ProbedGpu, ...]:
    """Return the GPUs that NVIDIA's driver lists."""
    return tuple(ProbedGpu(uuid=gpu.uuid, name=gpu.name, driver=gpu.driver) for gpu in gpus())


@contextmanager
def _extras_are_named() -> Iterator[None]:
    from renderdispatch.render.gl.renderer import gl_is_named
    from renderdispatch.render.renderer import extra_is_named

    with extra_is_named(), gl_is_named():
        yield


def try_vulkan() -> Vulkan:
    """Ask Vulkan for its devices."""
    try:
        library = ctypes.CDLL("libvulkan.so.1")
    except OSError:
        return Vulkan(error="libvulkan.so.1 is not installed; on Debian and Ubuntu: apt-get install libvulkan1")
    return _list_vulkan(library)


def _list_vulkan(library: ctypes.CDLL) -> Vulkan:
    # VkInstanceCreateInfo: sType 1, pNext, flags, pApplicationInfo, two counts, each with its array; all of them zero.
    create_info = (ctypes.c_uint64 * 8)(1)
    instance, count = ctypes.c_void_p(), ctypes.c_uint32()
    if (result := library.vkCreateInstance(create_info, None, ctypes.byref(instance))) != 0:
        return Vulkan(error=f"no driver can be used (vkCreateInstance: {result})")
    try:
        library.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
        devices = (ctypes.c_void_p * max(count.value, 1))()
        if (result := library.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), devices)) != 0:
            return Vulkan(error=f"its devices cannot be listed (vkEnumeratePhysicalDevices: {result})")
        found = [_describe_vulkan(library, device) for device in devices[: count.value]]
    finally:
        library.vkDestroyInstance(instance, None)
    return Vulkan(devices=tuple(found)) if found else Vulkan(error="it has no device")


def _describe_vulkan(library: ctypes.CDLL, device: int | None) -> VulkanDevice:
    properties = (ctypes.c_uint32 * 1024)()  # VkPhysicalDeviceProperties takes 824 bytes; type and name are in front
    library.vkGetPhysicalDeviceProperties(ctypes.c_void_p(device), properties)
    kind, name = properties[4], bytes(properties)[20:276].partition(b"\0")[0]
    return VulkanDevice(
        name=name.decode(errors="replace"), type=_VULKAN_TYPES[kind] if kind < len(_VULKAN_TYPES) else "other"
    )


def main() -> None:
    """Try everything; tell what started this process after each thing, or print the whole."""
    if not has_parent():
        *_, found = try_all()
        sys.stdout.write(found.model_dump_json() + "\n")
        return
    with events_pipe() as events:
        found = Probe()
        for found in try_all():
            events.write(_News(found=found).model_dump_json().encode() + b"\n")
        events.write(_News(found=found, complete=True).model_dump_json().encode() + b"\n")


if __name__ == "__main__":
    main()
