"""What can be drawn, with which parameters, and how does it look?"""

from __future__ import annotations

import inspect

import click
from attrs import asdict

from renderdispatch.cli.display import print_json, print_table
from renderdispatch.cli.interrupts import Interrupts
from renderdispatch.cli.options import json_option, output_path
from renderdispatch.cli.pictures import ChosenScene, complete_scene
from renderdispatch.errors import RenderDispatchError
from renderdispatch.protocols import Renderer, SupportsParams
from renderdispatch.render.gl.shader import Channel, RunUp, Shader
from renderdispatch.runner.renderers import scene_names


@click.command()
@click.argument("name", required=False, shell_complete=complete_scene)
@click.option(
    "--preview",
    "folder",
    type=output_path,
    metavar="DIR",
    help="Draw each scene, or the one that is named, to DIR/NAME.png over the demo's music.",
)
@click.option("-f", "--force", is_flag=True, help="Replace pictures that exist.")
@json_option
def scenes(*, name: str | None, folder: str | None, force: bool, as_json: bool) -> int:
    """List the scenes, or show the parameters of one.

    NAME may also be a file of yours: a Shadertoy file, such as my.glsl, of which the passes are shown and what they
    read; or file.py:NAME, a scene in Python.
    """
    if folder is not None:
        from renderdispatch.cli.preview import draw_scenes

        with Interrupts() as interrupts:
            return draw_scenes(name, folder, interrupts, force=force, as_json=as_json)
    if name is not None:
        chosen = ChosenScene.named(name)
        if chosen.shader is not None:
            _show_shader(chosen.read_shader(), as_json=as_json)
        else:
            _show(name, chosen.load(), as_json=as_json)
    elif as_json:
        for known in scene_names():
            print_json({"name": known, "summary": _summary(known)})
    else:
        print_table([(known, _summary(known)) for known in scene_names()])
    return 0


def _show(name: str, renderer: Renderer, *, as_json: bool) -> None:
    params = list(renderer.describe_params()) if isinstance(renderer, SupportsParams) else []
    summary = _first_line(renderer)
    if as_json:
        print_json({"name": name, "summary": summary, "params": [asdict(param) for param in params]})
        return
    click.echo(f"{name}: {summary}" if summary else name)
    if params:
        rows = [(param.name, param.type, param.default, param.help) for param in params]
        print_table(rows, "PARAMETER", "TYPE", "DEFAULT", "MEANING")
    else:
        click.echo("It takes no parameters.")


def _show_shader(shader: Shader, *, as_json: bool) -> None:
    run_up = shader.run_up
    if as_json:
        passes = [{"name": one.name, "channels": list(map(asdict, one.channels))} for one in shader.passes]
        print_json({"name": shader.name, "passes": passes, "runUp": run_up and str(run_up), "mainVR": shader.has_vr})
        return
    click.echo(f"{shader.name}: {_about(run_up)}")
    if shader.has_vr:
        click.echo("It offers mainVR: 360 videos are drawn all around.")
    rows = [(one.name, *map(_channel, one.channels)) for one in shader.passes]
    print_table(rows, "PASS", *(f"iChannel{number}" for number in range(4)))


def _about(run_up: RunUp | None) -> str:
    if run_up is None:
        return "feedback without a run-up, so that each frame needs all those before it"
    return f"a run-up of {run_up}" if run_up != RunUp() else "no feedback, so that each frame is drawn by itself"


def _channel(channel: Channel) -> str:
    return ", ".join(filter(None, (channel.source, channel.filter, channel.wrap)))


def _summary(name: str) -> str:
    """Return the first line of the renderer's docstring, or why the scene cannot be used."""
    try:
        return _first_line(ChosenScene(name).load())
    except RenderDispatchError as error:
        return f"(cannot be used: {error})"


def _first_line(renderer: Renderer) -> str:
    return (inspect.getdoc(renderer) or "").partition("\n")[0]
