"""Does a request's parameter ever become more than the text of one word?"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import Field

from renderdispatch.errors import ConfigurationError, InvalidRequestError, SceneError
from renderdispatch.messages import FaultDomain, Output, RenderStats
from renderdispatch.render.command import CommandRenderer, ffmpeg
from renderdispatch.render.command.template import Template
from renderdispatch.render.params import Colours, SceneParams

Render = Callable[..., tuple[Path, RenderStats]]


class Params(SceneParams):
    """One of each kind."""

    title: str = Field(default="a title", description="a text")
    speed: float = Field(default=-1.5, description="a number")
    on: bool = Field(default=True, description="a switch")
    colours: Colours = Field(default=("#102030", "#405060"), description="a list")


def template(*words: str, **options: Any) -> Template:
    return Template(("program", *words, "{output}"), params=Params, makes="video", **options)


def filled(made: Template, **params: Any) -> list[str]:
    return made.fill({"output": "out", "width": "64"}, Params(**params))[1:-1]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("program {output}", "a list of words"),
        ([], "a list of words"),
        (["program", "{widht}", "{output}"], "did you mean 'width'"),
        (["program", "{param.titel}", "{output}"], r"did you mean 'param\.title'"),
        (["program", "{}", "{output}"], "unknown placeholder ''"),
        (["program"], "makes video writes to {output}"),
        (["program", "{frames}"], "makes video writes to {output}"),
        (["program", "{output}", "{frames}"], "and to nothing else"),
        (["program", "{first_frame}", "{output}"], "for a command that makes frames"),
        (["{param.title}", "{output}"], "the program itself"),
        (["program", "{width:>9}", "{output}"], "a name alone"),
        (["program", "{width!r}", "{output}"], "a name alone"),
        (["program", "{width", "{output}"], "a brace itself is written twice"),
        (["program", "width}", "{output}"], "a brace itself is written twice"),
    ],
)
def test_a_wrong_template_is_refused_when_it_is_made(command: Any, said: str) -> None:
    """Not when the first job fails."""
    with pytest.raises(ConfigurationError, match=said):
        CommandRenderer(command, makes="video", params=Params)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"progress": r"(\d+)"}, "one group, named"),
        ({"progress": r"(?P<frame>\d+) (?P<percent>\d+)"}, "one group, named"),
        ({"progress": r"(?P<frame>\d+)", "makes": "frames"}, "are counted"),
        ({"pictures": "picture.png"}, "a name such as"),
        ({"pictures": "../%d.png"}, "a name such as"),
        ({"pictures": "%d.tiff"}, "a name such as"),
        ({"faults": {0: FaultDomain.SCENE}}, "from 1 to 255"),
        ({"faults": {-9: FaultDomain.SCENE}}, "from 1 to 255"),
        ({"faults": {3: FaultDomain.DEADLINE}}, "audio, scene, infrastructure"),
    ],
)
def test_other_arguments_are_checked_too(options: dict[str, Any], said: str) -> None:
    """The message says what is possible."""
    makes = options.pop("makes", "video")
    with pytest.raises(ConfigurationError, match=said):
        CommandRenderer(["program", "{frames}" if makes == "frames" else "{output}"], makes=makes, **options)


def test_words_are_filled() -> None:
    """A place may be a part of a word; parameters are written as JSON writes them, lists with commas."""
    made = template("{width}x{width}", "{{{width}}}", "{param.speed}", "--on={param.on}", "{param.colours}")
    assert filled(made) == ["64x64", "{64}", "-1.5", "--on=true", "#102030,#405060"]
    assert made.uses == {"width", "param.speed", "param.on", "param.colours", "output"}


@pytest.mark.parametrize("text", ["two words", "$(rm -rf x); `y` | z", '"quoted"', "{width}", "*", "", "ä-ö"])
def test_a_text_is_one_word(text: str) -> None:
    """Whatever it holds, also what looks like a place."""
    assert filled(template("{param.title}", "title={param.title}"), title=text) == [text, f"title={text}"]


@pytest.mark.parametrize(("text", "said"), [("--help", "begin with '-'"), ("a\0b", "control"), ("a\nb", "control")])
def test_a_text_never_becomes_an_option(text: str, said: str) -> None:
    """It is refused at submit, and again where the command is made."""
    with pytest.raises(InvalidRequestError, match=said) as refused:
        filled(template("{param.title}"), title=text)
    assert refused.value.code == "param.invalid"
    with pytest.raises(InvalidRequestError, match=said):
        CommandRenderer([sys.executable, "{param.title}", "{output}"], makes="video", params=Params).check_params(
            {"title": text}
        )


class More(SceneParams):
    """Kinds that are text although they are not of type str, or may be empty."""

    first: str = Field(default="", description="a text")
    names: tuple[str, ...] = Field(default=("a",), description="texts")
    file: Path = Field(default=Path("x"), description="a path")
    table: dict[str, str] = Field(default={}, description="texts by name")
    price: Decimal = Field(default=Decimal("-1.50"), description="a number")


@pytest.mark.parametrize(
    ("words", "params"),
    [
        (["{param.names}"], {"names": ["-y", "b"]}),
        (["{param.file}"], {"file": "-y"}),
        (["{param.first}{param.names}"], {"names": ["-y"]}),
        (["{cover}{param.first}"], {"first": "-y"}),
        (["of={param.names}"], {"names": ["plain", "[evil]"]}),
        (["of={param.table}"], {"table": {"plain": "[evil]"}}),
        (["of={param.table}"], {"table": {"[evil]": "plain"}}),
        (["of={param.table}"], {"table": {"a": "\n"}}),
        (["of={param.first}"], {"first": "\ud800"}),
        (["of={param.first}"], {"first": "\x9b2J"}),
    ],
)
def test_text_in_a_value_of_any_kind_is_checked(words: list[str], params: dict[str, Any]) -> None:
    """A list, a path or a table holds text too; and what follows an empty place begins the word."""
    made = Template(["program", *words, "{output}"], params=More, makes="video", texts=r"[\w -]*")
    with pytest.raises(InvalidRequestError, match=r"'-'|control characters|only text that matches"):
        made.check_texts(More(**params))


def test_values_of_any_kind_become_text() -> None:
    """As JSON writes them: paths and decimal numbers as text; a number may begin with a minus."""
    words = ["program", "{param.price}", "{param.file}", "{param.table}", "{output}"]
    made = Template(words, params=More, makes="video")
    assert made.fill({"output": "out"}, More())[1:-1] == ["-1.50", "x", "{}"]


def test_a_minus_within_a_word_is_text() -> None:
    """There it cannot begin an option; and a negative number is meant."""
    assert filled(template("--title={param.title}", "{param.speed}"), title="-x", speed=-2) == ["--title=-x", "-2.0"]


def test_a_filter_graph_takes_plain_text_alone() -> None:
    """A text with a meaning to FFmpeg's filters would read files, as with ``movie=``."""
    scene = ffmpeg("drawtext=text={param.title}", params=Params)
    scene.check_params({"title": "Plain text 1.5 #fff_-+"})
    for text in ("a,movie=/etc/passwd", "a:b", "a'b", "a\\b", "a[b]", "a;b"):
        with pytest.raises(InvalidRequestError, match="only text that matches"):
            scene.check_params({"title": text})


def test_a_missing_program_is_said_at_submit() -> None:
    """With the command that installs it."""
    scene = CommandRenderer(["no-such-program", "{output}"], makes="video", install="apt-get install such")
    with pytest.raises(ConfigurationError, match="was not found; install it: apt-get install such") as missing:
        scene.check_params({})
    assert missing.value.code == "command.missing"


def test_a_file_that_cannot_run_is_said_at_submit(tmp_path: Path) -> None:
    """It is there, and no program."""
    (tmp_path / "text").write_text("no program")
    scene = CommandRenderer([str(tmp_path / "text"), "{output}"], makes="video")
    with pytest.raises(ConfigurationError, match="cannot be executed"):
        scene.check_params({})


def test_the_program_gets_what_the_places_name(render: Render, write_wav: Callable[..., Path], tmp_path: Path) -> None:
    """Files hold the features, the parameters, the range's sound; numbers are of the picture and the range."""
    song = write_wav(tmp_path / "song.wav", 0.5 * np.sin(np.arange(88_200) / 20))
    names = ("width", "height", "fps", "fps_num", "fps_den", "start", "duration", "frame_count", "projection", "cover")
    code = (
        "import json, os, sys, wave; at = sys.argv[1:]; "
        "features = json.load(open(at[0])); sound = wave.open(at[2]); "
        "print(json.dumps([at[3:], sorted(features), features['frames'], len(features['bands'][-1]),"
        " max(features['level']), json.load(open(at[1])), sound.getnframes(), os.getcwd() in at[0],"
        " sys.stdin.read(), os.environ['EXTRA'], 'SECRET_KEY' in os.environ])); sys.exit(3)"
    )
    words = [sys.executable, "-c", code.replace("{", "{{"), "{features}", "{params}", "{sound}"]
    scene = CommandRenderer(
        [*words, *(f"{{{name}}}" for name in names), "{output}"],
        makes="video",
        params=Params,
        environment={"EXTRA": "more"},
    )
    with pytest.raises(SceneError) as failed, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECRET_KEY", "of the application")
        output = Output(width=64, height=36, fps=Fraction(30000, 1001))
        render(scene, song, params={"speed": 2}, start=0.5, duration=1.0, output=output)
    values, keys, frames, bands, level, params, samples, works_there, stdin, extra, secret = json.loads(
        str(failed.value).partition(": ")[2]
    )
    assert dict(zip(names, values[:-1], strict=True)) == {
        "width": "64",
        "height": "36",
        "fps": "30000/1001",
        "fps_num": "30000",
        "fps_den": "1001",
        "start": "0.500000",
        "duration": "1.001000",
        "frame_count": "30",
        "projection": "flat",
        "cover": "",
    }
    assert (keys, frames, bands) == (["bands", "beat", "fps", "frames", "level"], 30, 96)
    assert 0.5 < level <= 1
    assert params == {"title": "a title", "speed": 2.0, "on": True, "colours": ["#102030", "#405060"]}
    assert samples == 44_100
    assert (works_there, stdin, extra, secret) == (True, "", "more", False)
