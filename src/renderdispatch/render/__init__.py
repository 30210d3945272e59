"""Which renderers come with the library?

`bars`, `wave` and `radial`: scenes that NumPy draws and PyAV encodes. They need only the ``render`` extra, and load it
when they render, not when this package is imported. Write your own scene with `Scene`, `SceneParams` and
`NumpyRenderer` of `renderdispatch.render.scene`.
"""

from __future__ import annotations

from typing import Final

from renderdispatch.render.gl.renderer import ShaderFileRenderer
from renderdispatch.render.params import BarsParams, RadialParams, WaveParams
from renderdispatch.render.scene import NumpyRenderer

__all__ = ["bars", "glsl", "radial", "wave"]

bars: Final = NumpyRenderer(
    "renderdispatch.render.scenes.bars:Bars",
    BarsParams,
    about="A spectrum of glowing, rounded bars over their reflection.",
)

wave: Final = NumpyRenderer(
    "renderdispatch.render.scenes.wave:Wave", WaveParams, about="The sound's wave as ribbons of light."
)

radial: Final = NumpyRenderer(
    "renderdispatch.render.scenes.radial:Radial", RadialParams, about="A spectrum around a pulsing disc."
)

glsl: Final = ShaderFileRenderer()
