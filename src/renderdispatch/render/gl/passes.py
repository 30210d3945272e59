"""How is one picture of a frame drawn, a buffer or the image?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import moderngl

from renderdispatch.render.gl.program import Entry, compile_pass
from renderdispatch.render.gl.shader import IMAGE, Pass, Shader
from renderdispatch.render.gl.textures import Input, mipmapped

Values = Mapping[str, Any]
"""Uniforms, by name."""

_DISCARD: Final = re.compile(r"\bdiscard\b")


class DrawnPass:
    """A pass, its program and what it draws into.

    A buffer that reads itself has two pictures: the last one, and the one being drawn. Others have one, which is drawn
    over: the passes that read it from the frame before are drawn first. Pixels that a shader discards are black. Those
    of an earlier picture would depend on where the video was cut.

    Args:
        context: Draws.
        shader: The file.
        drawn: The pass.
        size: Columns and rows of its picture.
        entry: Which of its functions draws.
        declarations: Of further uniforms, in GLSL.
        values: Of these uniforms.

    Raises:
        SceneError: ``shader.compile``.
    """

    def __init__(
        self,
        context: moderngl.Context,
        shader: Shader,
        drawn: Pass,
        size: tuple[int, int],
        *,
        entry: Entry = "image",
        declarations: str = "",
        values: Values | None = None,
    ) -> None:
        self.name: Final = drawn.name
        self.channels: Final = drawn.channels
        self._program = compile_pass(context, shader, drawn, entry, uniforms=declarations)
        self._vertices = context.vertex_array(self._program, [])
        reads_itself = any(drawn.channels[number].source == drawn.name for number in self.reads)
        count, kind = 2 if reads_itself else 1, "f1" if drawn.name == IMAGE else "f4"
        self._textures = [context.texture(size, 4, dtype=kind) for _ in range(count)]
        self._framebuffers = [context.framebuffer([texture]) for texture in self._textures]
        self._discards = any(_DISCARD.search(text.code) for text in shader.texts_of(drawn))
        self._is_mipmapped = drawn.name in mipmapped(shader)
        for name, value in (values or {}).items():
            self._set(name, value)
        for number in range(4):
            self._set(f"iChannel{number}", number)
            self._set(f"iCh{number}.sampler", number)
            self._set(f"iCh{number}.loaded", 1)
        self.clear()

    @property
    def shown(self) -> moderngl.Texture:
        """What was drawn last."""
        return self._textures[0]

    @property
    def framebuffer(self) -> moderngl.Framebuffer:
        """What was drawn last, to be read."""
        return self._framebuffers[0]

    @property
    def reads(self) -> tuple[int, ...]:
        """The channels that its program reads; compilers drop the others."""
        return tuple(
            number for number in range(4) if {f"iChannel{number}", f"iCh{number}.sampler"} & set(self._program)
        )

    def clear(self) -> None:
        """Forget what was drawn."""
        for framebuffer, texture in zip(self._framebuffers, self._textures, strict=True):
            framebuffer.clear()
            if self._is_mipmapped:
                texture.build_mipmaps()

    def draw(self, uniforms: Values, inputs: Sequence[Input], *, rows: tuple[int, int] | None = None) -> None:
        """Draw the next picture from these inputs.

        Args:
            uniforms: Of this frame.
            inputs: One for each channel.
            rows: The first row from below, and how many, of a part that is drawn into the last picture; None draws a
                new picture.
        """
        for number, one in enumerate(inputs):
            one.use(number)
            self._set(f"iCh{number}.size", (*one.size, 1.0 if one.size[0] else 0.0))
            self._set(f"iCh{number}.time", one.time_s)
        for name, value in uniforms.items():
            self._set(name, value)
        self._set("iChannelResolution", [(*map(float, one.size), 1.0 if one.size[0] else 0.0) for one in inputs])
        self._set("iChannelTime", [one.time_s for one in inputs])
        if rows is None:
            self._textures.reverse()
            self._framebuffers.reverse()
        framebuffer = self._framebuffers[0]
        framebuffer.use()
        first, count = rows or (0, framebuffer.height)
        framebuffer.viewport = (0, first, framebuffer.width, count)
        if self._discards:
            framebuffer.clear(viewport=framebuffer.viewport)
        self._vertices.render(moderngl.TRIANGLES, vertices=3)
        for number, one in enumerate(inputs):  # what is drawn next may read in its own way
            one.sampler.clear(number)
        if self._is_mipmapped:
            self.shown.build_mipmaps()

    def _set(self, name: str, value: Any) -> None:
        """Set a uniform; an array is a list. Compilers drop what a shader does not use, also the end of an array."""
        if name not in self._program:
            return
        member = self._program[name]
        if isinstance(value, list) and isinstance(member, moderngl.Uniform):
            value = value[: member.array_length] if member.array_length > 1 else value[0]
        self._program[name] = value
