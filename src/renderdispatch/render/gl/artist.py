"""How does OpenGL draw the frames of a video?

Each frame sets Shadertoy's inputs, draws the buffers and the image, and reads the image back. While one frame is
drawn, the one before it is converted and encoded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from math import exp
from typing import Any, Final, NamedTuple, TypeVar

import moderngl
import numpy as np
from numpy.typing import NDArray

from renderdispatch.errors import InvalidRequestError, RenderError
from renderdispatch.messages import Output
from renderdispatch.render.device import DrawingGpu, device_class
from renderdispatch.render.features import BANDS, Frame
from renderdispatch.render.gl.context import GlDevice
from renderdispatch.render.gl.passes import DrawnPass, Values
from renderdispatch.render.gl.reading import Pixels, reader_for
from renderdispatch.render.gl.shader import BUFFERS, IMAGE, Shader
from renderdispatch.render.gl.textures import Image, Input, Inputs, check_images
from renderdispatch.render.picture import Picture
from renderdispatch.render.projection import projection_of

T = TypeVar("T")

_DATE: Final = (2026.0, 0.0, 1.0, 0.0)
"""A fixed day: a picture must not depend on when it is drawn."""

_EYE: Final = 0.032
"""How far an eye is from the middle of the head, in the scene's units: metres, if the scene means to look natural."""


_RISE_S: Final = 0.045
_FALL_S: Final = 0.2
"""How long the swells take to follow by 63 %: they have risen after 0.1 s, and fallen after 0.5 s."""

_SILENCE: Final = np.zeros(1 + BANDS, np.float32)
_SILENCE.setflags(write=False)


class GlState(NamedTuple):
    """What the scene remembers.

    Args:
        energy: How much sound there was, in seconds at full level.
        swells: (97,) float32, 0 to 1: the level and each band, smoothed so that they do not flicker.
    """

    energy: float = 0.0
    swells: NDArray[np.float32] = _SILENCE


class GlArtist:
    """Draws a shader; see `renderdispatch.render.artist.Artist`.

    Args:
        device: Draws. Use this artist in its thread.
        shader: What is drawn.
        output: Size, frame rate and projection.
        pictures: By source (``cover``, ``image 1`` to ``image 3``).
        declarations: Of further uniforms, in GLSL.
        values: Of these uniforms.
        planar: Whether OpenGL makes yuv420p; None is what is faster on this device.

    Raises:
        SceneError: ``shader.compile``: the file has a mistake; ``shader.image``: an image that it reads is missing.
        RenderError: ``memory.full``: the device has too little memory for pictures of this size; ``gl.failed``.
        InvalidRequestError: ``output.unsupported``: the device draws no pictures of this size.
    """

    def __init__(
        self,
        device: GlDevice,
        shader: Shader,
        output: Output,
        *,
        pictures: Mapping[str, Image] | None = None,
        declarations: str = "",
        values: Values | None = None,
        planar: bool | None = None,
    ) -> None:
        self.keep: int | None = None
        self.kept: Picture | None = None
        self.rendered_by = device.renderer
        self.device_class = f"{device_class()}+{device.device_class}"
        self.gpu: DrawingGpu | None = device.gpu
        self.run_up = None if shader.run_up is None else shader.run_up.at(output.fps)
        self._device, self._fps = device, output.fps
        rise, fall = (1 - exp(-1 / (float(output.fps) * time_s)) for time_s in (_RISE_S, _FALL_S))
        self._rise, self._fall = np.float32(rise), np.float32(fall)
        context = device.context
        self._eyes = 0  # a flat picture
        if output.projection != "flat" and shader.has_vr:
            self._eyes = 2 if output.projection == "360-stereo" else 1
            output = output.model_copy(update={"projection": "flat"})  # of the whole circle
        self._projection = projection_of(output)
        width, height = self._projection.width, self._projection.height
        self._size = width, height
        # Even, as the colours are shared by two rows: where the height is no multiple of 4, the two pictures overlap.
        self._seen = width, -(-height // 4) * 2 if self._eyes == 2 else height
        _check_size(device, width, height)
        with _making(device, f"pictures of {width}x{height} for {shader.name}"):
            self._inputs = Inputs(context, shader, pictures or {})
            self._passes = [
                DrawnPass(
                    context,
                    shader,
                    one,
                    (width, height) if one.name == IMAGE else self._seen,
                    entry="vr" if self._eyes and one.name == IMAGE else "image",
                    declarations=declarations,
                    values=values,
                )
                for one in shader.passes
            ]
            self._reader = reader_for(device, self._size, planar=planar)
        check_images(shader, {one.name: one.reads for one in self._passes}, pictures or {})
        self._buffers = {one.name: one for one in self._passes if one.name in BUFFERS}
        self._last: int | None = None

    def start(self) -> GlState:
        """Return the state before the first frame."""
        return GlState()

    def step(self, state: GlState, frame: Frame) -> GlState:
        """Return the state at a frame."""
        change = np.append(np.float32(frame.level), frame.bands) - state.swells
        swells = state.swells + change * np.where(change > 0, self._rise, self._fall)
        return GlState(state.energy + frame.level / float(self._fps), swells)

    def light(self, state: GlState, frame: Frame) -> float:
        """Return how loud it is: loud moments are bright ones."""
        return frame.level

    def draw(self, state: GlState, frame: Frame) -> Picture:
        """Return a new picture of a frame."""
        return self._projection.place(self.flat(state, frame))

    def flat(self, state: GlState, frame: Frame) -> Picture:
        """Return the shader's own picture of a frame."""
        self._reader.forget()
        self._submit(state, frame, lambda: None)
        return self._reader.picture(self._reader.fetch())

    def pictures(self, moments: Iterable[tuple[GlState, Frame]]) -> Iterator[Picture]:
        """Draw frames that come in order, and yield a new picture of each."""
        self._reader.forget()
        self._last = None  # the first of these frames sees no earlier pictures, whatever was drawn before
        asked = deque[int]()
        for state, frame in moments:
            if len(asked) < self._reader.ahead:
                self._submit(state, frame, lambda: None)
            else:
                yield self._submit(state, frame, partial(self._placed, self._reader.fetch(), asked.popleft()))
            asked.append(frame.index)
        for index in asked:
            yield self._placed(self._reader.fetch(), index)

    def _placed(self, pixels: Pixels, index: int) -> Picture:
        flat = self._reader.picture(pixels)
        if index == self.keep:
            self.kept = flat
        return self._projection.place(flat)

    def _submit(self, state: GlState, frame: Frame, meanwhile: Callable[[], T]) -> T:
        """Have a frame drawn, and ask for its pixels; return what ``meanwhile`` returns, called when drawing began."""
        if self._last is None or frame.index != self._last + 1:
            for buffer in self._buffers.values():
                buffer.clear()
        self._last = frame.index
        self._inputs.hear(frame)
        common = self._common(state, frame)
        first, *others = self._passes
        self._draw_pass(first, common)
        done = meanwhile()
        for one in others:
            if not self._device.on_gpu:
                # llvmpipe waits when a pass reads what is still being drawn, and moderngl would hold the GIL meanwhile.
                self._device.library.glFinish()
            self._draw_pass(one, common)
        return done

    def _draw_pass(self, one: DrawnPass, common: dict[str, Any]) -> None:
        inputs = self._inputs_of(one)
        if one.name != IMAGE:
            one.draw(common, inputs)
            self._device.library.glFlush()
            return
        if self._eyes == 0:
            one.draw(common, inputs)
        height, rows = self._size[1], self._seen[1]
        for eye in range(self._eyes):  # the left eye's picture is above the right eye's
            place, first = (2 * eye - 1) * (self._eyes - 1), (height - rows) * (self._eyes - 1 - eye)
            own = {"renderdispatch_eye": place * _EYE, "renderdispatch_below": float(first)}
            one.draw({**common, **own}, inputs, rows=(first, rows))
        self._reader.ask(one.framebuffer)

    def _common(self, state: GlState, frame: Frame) -> dict[str, Any]:
        """Return the uniforms of a frame that all passes share."""
        return {
            "iResolution": (*self._seen, 1.0),
            "iTime": float(Fraction(frame.index) / self._fps),
            "iGlobalTime": float(Fraction(frame.index) / self._fps),
            "iTimeDelta": float(1 / self._fps),
            "iFrameRate": float(self._fps),
            "iFrame": frame.index,
            "iMouse": (0.0, 0.0, 0.0, 0.0),
            "iDate": _DATE,
            "iSampleRate": float(frame.rate),
            "iBeat": frame.beat,
            "iLevel": frame.level,
            "iSwell": float(state.swells[0]),
            "iEnergy": state.energy,
            "iBands": frame.bands.tolist(),
            "iSwells": state.swells[1:].tolist(),
        }

    def _inputs_of(self, one: DrawnPass) -> list[Input]:
        shown = {name: buffer.shown for name, buffer in self._buffers.items()}
        return [self._inputs.of(channel, shown) for channel in one.channels]


def _check_size(device: GlDevice, width: int, height: int) -> None:
    most = device.context.info["GL_MAX_TEXTURE_SIZE"]
    if max(width, height) > most:
        what = f"{device.renderer} draws pictures of at most {most}x{most}, not of {width}x{height}"
        raise InvalidRequestError(what, code="output.unsupported")


@contextmanager
def _making(device: GlDevice, what: str) -> Iterator[None]:
    """Raise `RenderError` if OpenGL cannot make something."""
    try:
        yield
    except moderngl.Error as error:
        device.check(what)
        raise RenderError(f"OpenGL failed ({error}): {what}", code="gl.failed") from error
    device.check(what)
