"""``--scene my.glsl --image rocks.png``: a Shadertoy file on the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from tests.support.command_line import SMALL, CommandLine
from tests.support.needs import need_opengl

SHADER = """//! run-up: 90
//! Buffer A
//! iChannel1: Buffer A, nearest
void mainImage(out vec4 colour, in vec2 place) { colour = texture(iChannel1, place / iResolution.xy); }
//! Image
//! iChannel1: image 1
//! iChannel2: Buffer A
void mainImage(out vec4 colour, in vec2 place) { colour = texture(iChannel1, place / iResolution.xy); }
"""
VR = """void mainVR(out vec4 colour, in vec2 place, in vec3 origin, in vec3 direction) { colour = vec4(1.0); }
void mainImage(out vec4 colour, in vec2 place) { colour = vec4(1.0); }
"""


@pytest.fixture
def shader(cli: CommandLine) -> str:
    """A file in a folder that draws the image, which is green."""
    (cli.folder / "mine").mkdir()
    (cli.folder / "mine" / "my waves.glsl").write_text(SHADER)
    Image.new("RGB", (8, 8), (0, 255, 0)).save(cli.folder / "rocks.png")
    return "mine/my waves.glsl"


def test_a_file_is_previewed_and_rendered(cli: CommandLine, song: Path, shader: str) -> None:
    """With its image; the job says the file's name, and who drew it."""
    need_opengl()
    scene = ("--scene", shader, "--image", "rocks.png")
    ran = cli("preview", song, *SMALL, *scene, "--at", "1", "-o", "frame.png", "--json")
    assert (ran.status, ran.err) == (0, "")
    with Image.open(cli.folder / "frame.png") as picture:
        assert picture.getpixel((32, 32)) == pytest.approx((0, 255, 0), abs=3)
    ran = cli("render", song, *SMALL, *scene, "--json")
    assert (ran.status, ran.err) == (0, "")
    assert "llvmpipe" in json.loads(ran.out)["artifact"]["renderedBy"]
    (job,) = cli.jobs()
    assert (job["scene"], job["sceneFile"]) == ("glsl", "my waves.glsl")
    assert "my waves.glsl" in cli("jobs").out
    assert "mine" not in cli("jobs").out
    assert "scene        my waves.glsl" in cli("jobs", "show", job["jobId"]).out


def test_a_job_with_a_file_is_tried_again(cli: CommandLine, song: Path, shader: str) -> None:
    """What does not compile fails with the line of the file; once it is mended, the file is submitted anew."""
    need_opengl()
    broken = SHADER.replace(
        "colour = texture(iChannel1, place / iResolution.xy); }\n//! Image", "colour = 1; }\n//! Image"
    )
    (cli.folder / shader).write_text(broken)
    failed = cli("render", song, *SMALL, "--scene", shader, "--json")
    error = json.loads(failed.out)["error"]
    assert (failed.status, error["code"]) == (1, "shader.compile")
    assert "my waves.glsl, Buffer A, line 4: " in error["message"]
    again = cli("jobs", "retry", json.loads(failed.out)["jobId"], "--json")
    assert (again.status, json.loads(again.out)["sceneFile"]) == (0, "my waves.glsl")


@pytest.mark.parametrize(
    ("command", "arguments", "code"),
    [
        ("render", ["--scene", "missing.glsl"], "scene-file.missing"),
        ("preview", ["--scene", "./missing"], "scene-file.missing"),
        ("render", ["--scene", "mine/"], "scene-file.directory"),
        ("preview", ["--scene", "song.wav"], "scene-file.invalid"),
        ("render", ["--scene", "bad.glsl"], "shader.invalid"),
        ("preview", ["--scene", "bad.glsl"], "shader.invalid"),
        ("render", ["--scene", "glsl"], "scene.file"),
        ("preview", ["--scene", "glsl"], "scene.file"),
        ("render", ["--scene", "bars", "--image", "rocks.png"], "image.unused"),
        ("preview", ["--scene", "mine/my waves.glsl", "--image", "missing.png"], "image.missing"),
        ("preview", ["--scene", "mine/my waves.glsl", *["--image", "rocks.png"] * 4], "image.too-many"),
        ("render", ["--scene", "mine/my waves.glsl", *["--image", "rocks.png"] * 4], "image.too-many"),
        ("preview", ["--scene", "SONG.PY"], "scene.file"),
        ("render", ["--scene", "mine/my waves.glsl", "--set", "speed=2"], "param.unknown"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else value,
)
def test_what_is_no_scene_is_refused(
    cli: CommandLine, song: Path, shader: str, command: str, arguments: list[str], code: str
) -> None:
    """One line, status 2, and no job."""
    (cli.folder / "bad.glsl").write_text("//! iChannel0: rubbish\n")
    before = sorted(path.name for path in cli.folder.iterdir())
    ran = cli(command, song, *SMALL, *arguments, "--json")
    assert (ran.status, json.loads(ran.out)["error"]["code"]) == (2, code)
    ran.said_one_error()
    assert sorted(path.name for path in cli.folder.iterdir()) == before


def test_names_that_are_no_text(cli: CommandLine, song: Path, shader: str) -> None:
    """A scene file and an image may have names that are not UTF-8; messages and jobs leave out what is no text."""
    need_opengl()
    odd = (cli.folder / shader).rename(cli.folder / os.fsdecode(b"o\xffdd.glsl"))
    image = (cli.folder / "rocks.png").rename(cli.folder / os.fsdecode(b"\xff.png"))
    ran = cli("preview", song, *SMALL, "--scene", odd, "--image", image, "--at", "1", "-o", "frame.png")
    assert (ran.status, ran.err) == (0, "")
    odd.write_text(VR)
    assert cli("scenes", odd, "--preview", "drawn").status == 0
    odd.write_text(VR.replace("vec4(1.0)", "1"))
    assert (
        "odd.glsl, line 1: " in cli("preview", song, *SMALL, "--scene", odd, "-o", "frame.png", "-f").said_one_error()
    )


def test_a_missing_file_says_what_to_do(cli: CommandLine, song: Path) -> None:
    """The path may be wrong, or a scene was meant."""
    said = cli("render", song, "--scene", "missing.glsl").said_one_error()
    assert "no file missing.glsl; check its path, or name a scene that 'renderdispatch scenes' lists" in said


def test_inputs_are_never_replaced(cli: CommandLine, song: Path, shader: str) -> None:
    """Not the scene file and not an image, whatever was forced."""
    for output, what in ((shader, "scene file"), ("rocks.png", "first image")):
        ran = cli("preview", song, "--scene", shader, "--image", "rocks.png", "-f", "-o", output)
        assert f"is the {what} itself" in ran.said_one_error()
    (cli.folder / "waves.png").write_text(VR)
    ran = cli("scenes", "./waves.png", "--preview", ".", "-f")
    assert "is the scene file itself" in ran.said_one_error()


def test_what_a_file_declares_is_shown(cli: CommandLine, shader: str) -> None:
    """Its passes, what they read, and its run-up; nothing is drawn for it."""
    ran = cli("scenes", shader)
    assert (ran.status, ran.err) == (0, "")
    lines = [line.split("  ") for line in ran.out.splitlines()]
    assert lines[0] == ["my waves.glsl: a run-up of 90 frames"]
    rows = [[cell.strip() for cell in line if cell.strip()] for line in lines[1:]]
    assert rows == [
        ["PASS", "iChannel0", "iChannel1", "iChannel2", "iChannel3"],
        ["Buffer A", "sound", "Buffer A, nearest", "image 2", "image 3"],
        ["Image", "sound", "image 1", "Buffer A", "image 3"],
    ]
    shown = json.loads(cli("scenes", shader, "--json").out)
    assert (shown["runUp"], shown["mainVR"], [one["name"] for one in shown["passes"]]) == (
        "90 frames",
        False,
        ["Buffer A", "Image"],
    )
    assert shown["passes"][0]["channels"][1] == {"source": "Buffer A", "filter": "nearest", "wrap": None}


def test_a_file_for_360_says_so(cli: CommandLine) -> None:
    """And that each of its frames stands alone."""
    (cli.folder / "room.frag").write_text(VR)
    ran = cli("scenes", "room.frag")
    assert ran.out.startswith("room.frag: no feedback, so that each frame is drawn by itself\nIt offers mainVR: ")
