"""Is a shader ended that never ends, and does one that is too much for its compiler harm its own process alone?"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from renderdispatch.errors import RenderError
from renderdispatch.messages import Asset, Output
from renderdispatch.runner import SupervisedRender
from tests.support.containers import marked
from tests.support.needs import need_opengl

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks processes up in /proc")

ENDLESS = """void mainImage(out vec4 o, in vec2 p)
{
    o = vec4(0.0);
    for (int i = int(p.x); i >= 0; i ^= 1)
        for (int j = 1; j > 0; j ^= 2) o.x += sin(float(i));
}
"""
DEEP = "(" * 200_000
LONG = "    a = sin(a) * 1.5;\n" * 100_000
DOUBLED = "#define A0 sin(p.x) +\n" + "".join(f"#define A{k} A{k - 1} A{k - 1}\n" for k in range(1, 23))


def _image(code: str) -> str:
    return f"void mainImage(out vec4 o, in vec2 p)\n{{\n    float a = p.x;\n{code}\n    o = vec4(a);\n}}\n"


def failure_of(
    text: str, *, tmp_path: Path, order: Callable[..., Any], write_wav: Callable[..., Path], **limits: Any
) -> str:
    """Return the code with which the render of a shader fails."""
    need_opengl()
    shader, song = tmp_path / "scene.glsl", write_wav(tmp_path / "song.wav", np.zeros(44_100))
    shader.write_text(text)
    file = Asset(url="", size=len(text), path=str(shader))
    with pytest.raises(RenderError) as caught:
        SupervisedRender()(
            order(scene="glsl", scene_file=file, **limits), song, tmp_path / "video.mp4", lambda _done, _total: None
        )
    assert not (tmp_path / "video.mp4").exists()
    return caught.value.code


def test_an_endless_loop(
    scratch: Path, tmp_path: Path, order: Callable[..., Any], write_wav: Callable[..., Path]
) -> None:
    """It is ended as stalled, and no process is left of it. llvmpipe itself would end it, but after minutes."""
    limits = {"stall_timeout": timedelta(seconds=3), "output": Output(width=1920, height=1080)}
    code = failure_of(ENDLESS, tmp_path=tmp_path, order=order, write_wav=write_wav, **limits)
    assert code == "render.stalled"
    assert marked(str(scratch)) == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("text", "codes"),
    [
        (_image(LONG), {"render.stalled", "memory.full"}),  # whichever limit is reached first
        (_image(f"a = {DEEP}a{DEEP.replace('(', ')')};"), {"shader.compile"}),
        (DOUBLED + _image("a = A22 1.0;"), {"memory.full"}),
    ],
    ids=["100,000 lines", "200,000 brackets", "4 million terms"],
)
def test_too_much_for_a_compiler(
    text: str, codes: set[str], scratch: Path, tmp_path: Path, order: Callable[..., Any], write_wav: Callable[..., Path]
) -> None:
    """The render fails under its own limits, and no process is left of it."""
    limits = {"stall_timeout": timedelta(seconds=40), "memory_mib": 1500}
    assert failure_of(text, tmp_path=tmp_path, order=order, write_wav=write_wav, **limits) in codes
    assert marked(str(scratch)) == []
