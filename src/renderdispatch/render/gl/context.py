"""Which device draws, and how is it opened?

EGL without a screen. llvmpipe, Mesa's renderer on the CPU, is what a machine without a GPU has.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import moderngl
from attrs import field, frozen

from renderdispatch.errors import RenderError

APT_PACKAGES: Final = ("libegl1", "libgl1")
"""What Debian and Ubuntu call EGL and OpenGL; they bring Mesa, and with it llvmpipe."""

_ON_THE_CPU: Final = ("llvmpipe", "softpipe", "swrast", "swiftshader")


@frozen(eq=False)
class GlDevice:
    """An open context. It belongs to the thread that opened it.

    Args:
        context: moderngl's.
        library: OpenGL itself, for calls that let other threads of Python work meanwhile.
        renderer: OpenGL's name of the device.
        version: OpenGL's version, with the driver's.
    """

    context: moderngl.Context = field(repr=False)
    library: ctypes.CDLL = field(repr=False)
    renderer: str
    version: str

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU draws, not the CPU."""
        return not any(name in self.renderer.lower() for name in _ON_THE_CPU)

    @property
    def device_class(self) -> str:
        """The part of the device's class that OpenGL decides about: the GPU's name, or llvmpipe, and the driver."""
        return re.sub(r"[^a-z0-9.]+", "-", f"{self.renderer} {self.version}".lower()).strip("-")[:60]


@contextmanager
def open_device() -> Iterator[GlDevice]:
    """Open a device for the block.

    Raises:
        RenderError: ``gl.unavailable``: there is no EGL, or it has no device.
    """
    try:
        context = moderngl.create_standalone_context(require=430, backend="egl")  # type: ignore[arg-type]  # it annotates keywords as one dict
        library = ctypes.CDLL("libGL.so.1")
    except Exception as error:  # moderngl raises bare exceptions
        step = f"apt-get install --no-install-recommends {' '.join(APT_PACKAGES)}"
        message = f"OpenGL cannot be used here ({error}); on Debian and Ubuntu: {step}"
        raise RenderError(message, code="gl.unavailable") from error
    try:
        yield GlDevice(context, library, context.info["GL_RENDERER"], context.info["GL_VERSION"])
    finally:
        context.release()
