"""Do the shaders of the documents draw something?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from renderdispatch.render.gl.context import GlDevice
from tests.support.documents import ROOT
from tests.support.shaders import artist_of, draw_each

BLOCK = re.compile(r"^```glsl\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("document", ["docs/how-to/write-a-scene.md"])
def test_shaders(device: GlDevice, document: str) -> None:
    """Each one compiles, and draws a picture that is not of one colour."""
    shaders = BLOCK.findall(Path(ROOT, document).read_text())
    assert shaders
    for text in shaders:
        picture = draw_each(artist_of(device, text), [3])[0]
        assert picture.luma.std() > 5
