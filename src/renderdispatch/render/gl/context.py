"""Which device draws, and how is it opened?

EGL without a screen. llvmpipe, Mesa's renderer on the CPU, is what a machine without a GPU has.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import moderngl
from attrs import field, frozen

from renderdispatch.errors import GpuUnavailableError, RenderError
from renderdispatch.plumbing.gpus import gpus
from renderdispatch.plumbing.per_process import PerProcess
from renderdispatch.render.device import DrawingGpu
from renderdispatch.render.gl.devices import (
    APT_PACKAGES,
    CHOSEN,
    EglDevice,
    class_of,
    draws_on_gpu,
    list_devices,
    llvmpipe_is_held,
    order_devices,
    why_no_gpu,
)

_APT: Final = f"apt-get install --no-install-recommends {' '.join(APT_PACKAGES)}"
_OPENGL: Final = 430

_ZERO: Final = {"glsl_zero_init": "true", "MESA_DEBUG": "silent"}

_inherited: Final[list[None]] = []
_USED: Final = PerProcess[None](lambda: None, inherited=_inherited.append)
"""Drivers have threads for all contexts of a process. A child of a fork lacks them, and waits for them for ever."""


@frozen(eq=False)
class GlDevice:
    """An open context. It belongs to the thread that opened it.

    Args:
        context: moderngl's.
        library: OpenGL itself, for calls that let other threads of Python work meanwhile.
        renderer: OpenGL's name of the device.
        version: OpenGL's version, with the driver's.
        vendor: Who made the driver.
        cuda: CUDA's number of the device; None if it has none.
    """

    context: moderngl.Context = field(repr=False)
    library: ctypes.CDLL = field(repr=False)
    renderer: str
    version: str
    vendor: str = ""
    cuda: int | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU draws, not the CPU."""
        return draws_on_gpu(self.renderer)

    @property
    def gpu(self) -> DrawingGpu | None:
        """The GPU that draws; None if the CPU does."""
        return DrawingGpu(device_class=self.device_class, cuda=self.cuda) if self.on_gpu else None

    @property
    def device_class(self) -> str:
        """The part of the device's class that OpenGL decides about; see `class_of`."""
        return class_of(self.renderer, self.version, held=llvmpipe_is_held())

    def check(self, what: str) -> None:
        """Raise if a call failed since the last check: OpenGL says so only when it is asked, and goes on.

        Args:
            what: What was tried, for the message.

        Raises:
            RenderError: ``memory.full``, or ``gl.failed``.
        """
        error = self.context.error
        if error == "GL_OUT_OF_MEMORY":
            raise RenderError(f"{self.renderer} has too little memory: {what}", code="memory.full")
        if error != "GL_NO_ERROR":
            raise RenderError(f"OpenGL failed ({error}): {what}", code="gl.failed")


@contextmanager
def open_device(*, require_gpu: bool = False) -> Iterator[GlDevice]:
    """Open the device that is to draw in this process, for the block; see `order_devices`.

    A GPU that cannot be opened is passed over, also one that a driver lists and then draws for on the CPU.

    Args:
        require_gpu: Refuse to draw on the CPU.

    Raises:
        GpuUnavailableError: A GPU is required, and OpenGL has none here; the message says what it has.
        RenderError: ``gl.unavailable``: there is no EGL, or none of its devices can be opened, or this process was
            forked from one that had opened one.
    """
    _USED.get()
    if _inherited:
        raise RenderError(
            "this process was forked from one that has used OpenGL, whose threads are missing here: start the process "
            "that renders as a new one (spawn)",
            code="gl.unavailable",
        )
    device = _open_best(os.environ)
    try:
        if require_gpu and not device.on_gpu:
            raise GpuUnavailableError(f"a GPU is required, and there is none here: {why_no_gpu(device.renderer)}")
        yield device
    finally:
        device.context.release()


def _open_best(environment: Mapping[str, str]) -> GlDevice:
    try:
        devices = list_devices()
        library = ctypes.CDLL("libGL.so.1")
    except OSError as error:
        raise _unavailable(str(error)) from error
    last, failures = None, list[str]()
    for candidate in order_devices(devices, environment, gpus()):
        if last is not None and candidate.on_cpu:
            break
        try:
            device = _open(candidate, library)
        except Exception as error:  # noqa: BLE001 - moderngl raises bare exceptions
            failures.append(f"device {candidate.index}: {error}")
            continue
        if last is not None:
            last.context.release()
        if device.on_gpu:
            return device
        last = device
    if last is None:
        named = f"; {CHOSEN} is {environment[CHOSEN][:50]!r}" if environment.get(CHOSEN) else ""
        raise _unavailable(("; ".join(failures) or f"EGL lists {len(devices)} devices, and none may draw") + named)
    return last


def _open(device: EglDevice, library: ctypes.CDLL) -> GlDevice:
    names = {"libegl": "libEGL.so.1", "libgl": "libGL.so.1"}  # to find them itself, glcontext starts programs
    options = {"backend": "egl", "device_index": device.index, **names}
    with _variables_begin_at_zero():
        context = moderngl.create_context(require=_OPENGL, standalone=True, **options)  # type: ignore[arg-type]  # as one dict
    found = context.info
    return GlDevice(
        context, library, found["GL_RENDERER"], found["GL_VERSION"], vendor=found["GL_VENDOR"], cuda=device.cuda
    )


@contextmanager
def _variables_begin_at_zero() -> Iterator[None]:
    """Have Mesa begin variables that have no value at 0, as browsers do: many files of Shadertoy count on it.

    It reads this option when it opens a device, and would say on standard error that it was set.
    """
    before = {name: os.environ.get(name) for name in _ZERO}
    os.environ.update({name: value for name, value in _ZERO.items() if before[name] is None})
    try:
        yield
    finally:
        for name in _ZERO:
            if before[name] is None:
                os.environ.pop(name, None)


def _unavailable(reason: str) -> RenderError:
    return RenderError(f"OpenGL cannot be used here ({reason}); on Debian and Ubuntu: {_APT}", code="gl.unavailable")
