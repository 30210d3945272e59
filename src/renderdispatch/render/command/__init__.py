"""How does a program of any kind draw a song: FFmpeg, Blender, a script of your own?

`CommandRenderer` runs it by a template of its command line. `ffmpeg` and `blender` make templates for these two.
"""

from __future__ import annotations

from renderdispatch.render.command.profiles import blender, ffmpeg
from renderdispatch.render.command.renderer import CommandRenderer

__all__ = ["CommandRenderer", "blender", "ffmpeg"]
