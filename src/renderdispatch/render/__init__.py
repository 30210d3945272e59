"""Which renderers come with the library?

`bars`, `wave` and `radial`: scenes that NumPy draws and PyAV encodes. They need only the ``render`` extra, and load it
when they render, not when this package is imported. Write your own scene with `Scene`, `SceneParams` and
`NumpyRenderer` of `renderdispatch.render.scene`.

`flame`, `nebula` and `orb`: scenes in GLSL, which OpenGL draws. They need the ``gl`` extra.
"""

from __future__ import annotations

from typing import Final

from renderdispatch.render.gl.renderer import GlslRenderer, ShaderFileRenderer
from renderdispatch.render.params import (
    BarsParams,
    FlameParams,
    InkParams,
    NebulaParams,
    OrbParams,
    RadialParams,
    TerrainParams,
    TunnelParams,
    WaveParams,
)
from renderdispatch.render.scene import NumpyRenderer

__all__ = ["bars", "flame", "glsl", "ink", "nebula", "orb", "radial", "terrain", "tunnel", "wave"]

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

flame: Final = GlslRenderer(
    "renderdispatch.render.gl.scenes:flame.glsl",
    FlameParams,
    about="A fire that the spectrum feeds, with sparks above it.",
)

nebula: Final = GlslRenderer(
    "renderdispatch.render.gl.scenes:nebula.glsl",
    NebulaParams,
    about="Gas and dust between the stars, lit from within; all around the viewer in 360.",
)

orb: Final = GlslRenderer(
    "renderdispatch.render.gl.scenes:orb.glsl",
    OrbParams,
    about="A drop of liquid metal in a room whose lights are the spectrum; also in 360.",
)

tunnel: Final = GlslRenderer(
    "renderdispatch.render.gl.scenes:tunnel.glsl",
    TunnelParams,
    about="A flight through a shaft of glass tiles, which the notes light up.",
)

terrain: Final = GlslRenderer(
    "renderdispatch.render.gl.scenes:terrain.glsl",
    TerrainParams,
    about="A flight at dusk between mountains, whose lines of light are the spectrum.",
)

ink: Final = GlslRenderer(
    "renderdispatch.render.gl.scenes:ink.glsl",
    InkParams,
    about="Two inks that the music drips into water, where they flow and fade.",
)

glsl: Final = ShaderFileRenderer()
