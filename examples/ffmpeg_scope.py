"""Two scenes of FFmpeg's filters: ``renderdispatch render song.mp3 --scene ffmpeg_scope.py:notes`` (or ``scope``).

They need the program (``apt-get install ffmpeg``). FFmpeg draws and encodes the video, which is then
checked.
"""

from __future__ import annotations

from pydantic import Field

from renderdispatch.render.command import ffmpeg
from renderdispatch.render.params import Colour, SceneParams


class ScopeParams(SceneParams):
    """What users may set."""

    colour: Colour = Field(default="#7fdcff", description="of the figure")
    zoom: float = Field(default=2.0, ge=1, le=10, description="how large the figure is")


notes = ffmpeg(
    "showcqt=size={width}x{height}:rate={fps}:axis=0:sono_h=0:bar_g=4:bar_v=30:cscheme=1|0.2|0.6|0.5|0.4|1,"
    "scale=iw:ih/2,format=yuv444p,split[up][down];[down]vflip[below];[up][below]vstack",
    about="A bar for each note, and its reflection; drawn by FFmpeg.",
)

scope = ffmpeg(
    "aformat=channel_layouts=mono,lowpass=f=300,asplit[x][y];[y]adelay=2[late];[x][late]join=inputs=2:channel_layout=stereo,"
    "avectorscope=size={width}x{height}:rate={fps}:mode=lissajous_xy:zoom={param.zoom}:draw=line:scale=sqrt"
    ":rc=255:gc=255:bc=255:rf=30:gf=30:bf=30,format=gbrp[white];"
    "color=c={param.colour}:size={width}x{height}:rate={fps},format=gbrp[tint];"
    "[white][tint]blend=all_mode=multiply",
    params=ScopeParams,
    about="The sound against itself a moment later, as an oscilloscope shows it; drawn by FFmpeg.",
)
