"""How does OpenGL draw the frames of a video?

Each frame sets Shadertoy's inputs, draws the buffers and the image, and reads the image back. While one frame is
drawn, the one before it is converted and encoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any, Final, NamedTuple

import moderngl
import numpy as np

from renderdispatch.messages import Output
from renderdispatch.render.device import DrawingGpu, device_class
from renderdispatch.render.features import TEXTURE_WIDTH, Frame
from renderdispatch.render.gl.context import GlDevice
from renderdispatch.render.gl.passes import DrawnPass, Values
from renderdispatch.render.gl.reading import reader_for
from renderdispatch.render.gl.shader import BUFFERS, IMAGE, SOUND, Channel, Shader
from renderdispatch.render.picture import Canvas, Picture
from renderdispatch.render.projection import projection_of

_DATE: Final = (2026.0, 0.0, 1.0, 0.0)
"""A fixed day: a picture must not depend on when it is drawn."""

_EYE: Final = 0.032
"""How far an eye is from the middle of the head, in the scene's units: metres, if the scene means to look natural."""


class GlState(NamedTuple):
    """What the scene remembers: how much sound there was, in seconds at full level."""

    energy: float = 0.0


class GlArtist:
    """Draws a shader; see `renderdispatch.render.artist.Artist`.

    Args:
        device: Draws. Use this artist in its thread.
        shader: What is drawn.
        output: Size, frame rate and projection.
        pictures: By source (``cover``, ``image 1`` to ``image 3``): (rows, columns, 3) uint8, RGB.
        declarations: Of further uniforms, in GLSL.
        values: Of these uniforms.
        planar: Whether OpenGL makes yuv420p; None is what is faster on this device.
    """

    def __init__(
        self,
        device: GlDevice,
        shader: Shader,
        output: Output,
        *,
        pictures: Mapping[str, Canvas] | None = None,
        declarations: str = "",
        values: Values | None = None,
        planar: bool | None = None,
    ) -> None:
        self.rendered_by = device.renderer
        self.device_class = f"{device_class()}+{device.device_class}"
        self.gpu: DrawingGpu | None = device.gpu
        self.run_up = shader.run_up
        self._device, self._fps = device, output.fps
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
        self._sound = context.texture((TEXTURE_WIDTH, 2), 1)
        self._sound.repeat_x = self._sound.repeat_y = False
        self._pictures = {name: self._texture(canvas) for name, canvas in (pictures or {}).items()}
        self._black = context.texture((1, 1), 4, bytes(4))
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
        self._buffers = {one.name: one for one in self._passes if one.name in BUFFERS}
        self._last = -1
        self._reader = reader_for(device, self._size, planar=planar)

    def start(self) -> GlState:
        """Return the state before the first frame."""
        return GlState()

    def step(self, state: GlState, frame: Frame) -> GlState:
        """Return the state at a frame."""
        return GlState(state.energy + frame.level / float(self._fps))

    def light(self, state: GlState, frame: Frame) -> float:
        """Return how loud it is: loud moments are bright ones."""
        return frame.level

    def draw(self, state: GlState, frame: Frame) -> Picture:
        """Return a new picture of a frame."""
        return self._projection.place(self.flat(state, frame))

    def flat(self, state: GlState, frame: Frame) -> Picture:
        """Return the shader's own picture of a frame."""
        self._reader.forget()
        self._submit(state, frame)
        return self._reader.picture(self._reader.fetch())

    def pictures(self, moments: Iterable[tuple[GlState, Frame]]) -> Iterator[Picture]:
        """Draw frames that come in order, and yield a new picture of each."""
        self._reader.forget()
        asked = 0
        for state, frame in moments:
            # What is fetched is converted when the next frame is being drawn, and not before that.
            fetched = self._reader.fetch() if asked == self._reader.ahead else None
            self._submit(state, frame)
            if fetched is None:
                asked += 1
            else:
                yield self._projection.place(self._reader.picture(fetched))
        for _ in range(asked):
            yield self._projection.place(self._reader.picture(self._reader.fetch()))

    def _submit(self, state: GlState, frame: Frame) -> None:
        """Have a frame drawn, and ask for its pixels."""
        if frame.index != self._last + 1:
            for buffer in self._buffers.values():
                buffer.clear()
        self._last = frame.index
        self._sound.write(frame.texture.tobytes())
        common = self._common(state, frame)
        for one in self._passes[:-1]:
            one.draw(common, self._textures_of(one))
        image = self._passes[-1]
        textures = self._textures_of(image)
        if self._eyes == 0:
            image.draw(common, textures)
        height, rows = self._size[1], self._seen[1]
        for eye in range(self._eyes):  # the left eye's picture is above the right eye's
            place, first = (2 * eye - 1) * (self._eyes - 1), (height - rows) * (self._eyes - 1 - eye)
            own = {"renderdispatch_eye": place * _EYE, "renderdispatch_below": float(first)}
            image.draw({**common, **own}, textures, rows=(first, rows))
        self._reader.ask(image.framebuffer)

    def _common(self, state: GlState, frame: Frame) -> dict[str, Any]:
        """Return the uniforms of a frame that all passes share."""
        return {
            "iResolution": (*self._seen, 1.0),
            "iTime": float(Fraction(frame.index) / self._fps),
            "iTimeDelta": float(1 / self._fps),
            "iFrameRate": float(self._fps),
            "iFrame": frame.index,
            "iMouse": (0.0, 0.0, 0.0, 0.0),
            "iDate": _DATE,
            "iSampleRate": 44_100.0,
            "iChannelTime": [frame.time_s] * 4,
            "iBeat": frame.beat,
            "iLevel": frame.level,
            "iEnergy": state.energy,
            "iBands": frame.bands.tolist(),
        }

    def _textures_of(self, one: DrawnPass) -> list[moderngl.Texture]:
        return [self._source(channel) for channel in one.channels]

    def _source(self, channel: Channel) -> moderngl.Texture:
        if channel.source == SOUND:
            return self._sound
        if channel.source in self._buffers:
            return self._buffers[channel.source].shown
        return self._pictures.get(channel.source, self._black)

    def _texture(self, canvas: Canvas) -> moderngl.Texture:
        rows, columns, _ = canvas.shape
        upwards = np.ascontiguousarray(canvas[::-1]).tobytes()
        texture = self._device.context.texture((columns, rows), 3, upwards, alignment=1)
        texture.build_mipmaps()
        return texture
