"""How is one picture of a frame drawn, a buffer or the image?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import moderngl

from renderdispatch.render.gl.program import Entry, compile_pass
from renderdispatch.render.gl.shader import IMAGE, Pass, Shader

Values = Mapping[str, Any]
"""Uniforms, by name."""


class DrawnPass:
    """A pass, its program and what it draws into. A buffer has two pictures: the last one, and the one being drawn.

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
        count, kind = (1, "f1") if drawn.name == IMAGE else (2, "f4")
        self._textures = [context.texture(size, 4, dtype=kind) for _ in range(count)]
        self._framebuffers = [context.framebuffer([texture]) for texture in self._textures]
        for name, value in (values or {}).items():
            self._set(name, value)
        for number in range(4):
            self._set(f"iChannel{number}", number)
        self.clear()

    @property
    def shown(self) -> moderngl.Texture:
        """What was drawn last."""
        return self._textures[0]

    @property
    def framebuffer(self) -> moderngl.Framebuffer:
        """What was drawn last, to be read."""
        return self._framebuffers[0]

    def clear(self) -> None:
        """Forget what was drawn."""
        for framebuffer in self._framebuffers:
            framebuffer.clear()

    def draw(
        self, uniforms: Values, textures: Sequence[moderngl.Texture], *, rows: tuple[int, int] | None = None
    ) -> None:
        """Draw the next picture from these inputs.

        Args:
            uniforms: Of this frame.
            textures: One for each channel.
            rows: The first row from below, and how many, of a part that is drawn into the last picture; None draws a
                new picture.
        """
        sizes: list[tuple[float, float, float]] = []
        for number, texture in enumerate(textures):
            texture.use(number)
            sizes.append((float(texture.width), float(texture.height), 1.0))
        for name, value in uniforms.items():
            self._set(name, value)
        self._set("iChannelResolution", sizes)
        if rows is None:
            self._textures.reverse()
            self._framebuffers.reverse()
        framebuffer = self._framebuffers[0]
        framebuffer.use()
        first, count = rows or (0, framebuffer.height)
        framebuffer.viewport = (0, first, framebuffer.width, count)
        self._vertices.render(moderngl.TRIANGLES, vertices=3)

    def _set(self, name: str, value: Any) -> None:
        if name in self._program:  # compilers drop what a shader does not use, also at the end of an array
            length = getattr(self._program[name], "array_length", 1)
            if isinstance(value, list):
                value = value[:length] if length > 1 else value[0]
            self._program[name] = value
