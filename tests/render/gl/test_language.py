"""Do Shadertoy files draw what they say, and do broken ones say line and reason?

Each file under ``files`` exercises a part of the language, and paints every pixel green where it works and red where it
does not.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from renderdispatch.errors import SceneError
from renderdispatch.render.gl.context import GlDevice
from renderdispatch.render.picture import Picture, Plane
from tests.support.shaders import GREEN, artist_of, draw_each, is_all

FILES = Path(__file__).with_name("files")


def test_there_are_thirty() -> None:
    """Thirty files exercise the language, and ten are broken."""
    assert len([*FILES.glob("*.glsl")]) >= 30
    assert {path.stem for path in FILES.glob("broken/*.glsl")} == set(BROKEN)
    assert len(BROKEN) >= 10


@pytest.mark.parametrize("name", sorted(path.stem for path in FILES.glob("*.glsl")))
def test_files(device: GlDevice, name: str) -> None:
    """Every pixel of the eighth frame is green."""
    text = (FILES / f"{name}.glsl").read_bytes().decode()
    artist = artist_of(device, text, name=name)
    *_, picture = draw_each(artist, range(8))
    assert is_all(picture, GREEN), f"\n{_shown(picture)}"


def _shown(picture: Picture) -> str:
    """Return a small map of where it is green."""
    luma: Plane = picture.luma[::4, ::2]
    return "\n".join("".join("." if value == 173 else "X" for value in row) for row in luma)


BROKEN = {
    "undeclared": (4, ("brightness", "'fragColor = vec4(uv, brightness, 1.0);'")),
    "several": (3, ("first", "line 4: ", "second", "line 5: ", "third")),
    "after_macros": (14, ("wrong", "'fragColor.x = wrong;'")),
    "types": (3, ("numbers are not converted: 1.0, not 1", "'float bright = 2 * fragCoord.x;'")),
    "semicolon": (4, ("syntax error",)),
    "brace": (2, ("'{' is not closed",)),
    "signature": (3, ("mainImage must be void mainImage(out vec4 fragColor, in vec2 fragCoord)",)),
    "missing": (None, ("there is no mainImage; write void mainImage(out vec4 fragColor, in vec2 fragCoord)",)),
    "linking": (1, ("noise",)),
    "condition": (2, ("#if without #endif",)),
    "comment": (3, ("a comment begins here and does not end",)),
    "in_a_buffer": (12, ("Image: ", "SPEEED")),
    "in_common": (2, ("y", "'float twice(float x) { return 2.0 * y; }'")),
    "cubemap": (4, ("cubemaps and volumes are not offered",)),
    "keyboard": (1, ("keyboard is not offered in a channel",)),
    "sound_tab": (3, ("mainSound is not offered",)),
    "no_value": (2, ("nothing sets the uniform 'speed'",)),
    "other_type": (1, ("iResolution is declared already, as vec3",)),
    "directive": (2, ("unknown option 'nearly'",)),
    "error_line": (3, ("write SOMETHING first",)),
    "web_page": (1, ("U+00A0 (NO-BREAK SPACE)",)),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_broken_files(device: GlDevice, name: str) -> None:
    """The error says the file, its line, and the reason, and nothing of what is around the file's text."""
    text = (FILES / "broken" / f"{name}.glsl").read_text()
    line, reasons = BROKEN[name]
    with pytest.raises(SceneError) as caught:
        artist_of(device, text, name=f"{name}.glsl")
    said = str(caught.value)
    assert said.startswith(f"{name}.glsl: " if line is None else f"{name}.glsl, line {line}: ")
    for reason in reasons:
        assert reason in said
    assert "renderdispatch_" not in said and len(said) < 700
    assert caught.value.code in {"shader.compile", "shader.invalid"}


def test_more_than_three_mistakes(device: GlDevice) -> None:
    """The first three are listed."""
    text = (FILES / "broken" / "several.glsl").read_text()
    with pytest.raises(SceneError) as caught:
        artist_of(device, text)
    assert "fourth" not in str(caught.value)
