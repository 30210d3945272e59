"""Rings of light over a mirror, drawn by Blender: ``renderdispatch render song.mp3 --scene blender_rings.py:rings``.

Blender draws every frame, so begin small: ``--size 320x180 --fps 12 --duration 5``. It needs Blender 3.4 or later
(``apt-get install blender``), and neither a display nor a GPU. ``blender_rings_scene.py`` is what runs in Blender.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from renderdispatch.render.command import blender
from renderdispatch.render.params import Colours, SceneParams


class RingsParams(SceneParams):
    """What users may set."""

    colours: Colours = Field(
        default=("#ff3d7f", "#ff9e4f", "#ffe680", "#4fd6ff", "#5b5bff"), description="from the middle outwards"
    )
    rings: int = Field(default=14, ge=3, le=40, description="how many; each shows some notes, low ones in the middle")
    samples: int = Field(default=12, ge=1, le=512, description="how often Cycles looks at each pixel")


rings = blender(
    Path(__file__).with_name("blender_rings_scene.py"),
    params=RingsParams,
    about="Rings of light rise with the notes over a mirror; drawn by Blender.",
)
