"""What can be drawn, and with which parameters?"""

from __future__ import annotations

import inspect

import click
from attrs import asdict

from renderdispatch.cli.display import print_json, print_table
from renderdispatch.cli.options import json_option
from renderdispatch.errors import RenderDispatchError
from renderdispatch.protocols import Renderer, SupportsParams
from renderdispatch.runner.renderers import find_renderer, scene_names


@click.command()
@click.argument("name", required=False)
@json_option
def scenes(*, name: str | None, as_json: bool) -> None:
    """List the scenes, or show the parameters of one."""
    if name is not None:
        _show(name, find_renderer(name), as_json=as_json)
    elif as_json:
        for known in scene_names():
            print_json({"name": known, "summary": _summary(known)})
    else:
        print_table([(known, _summary(known)) for known in scene_names()])


def _show(name: str, renderer: Renderer, *, as_json: bool) -> None:
    params = list(renderer.describe_params()) if isinstance(renderer, SupportsParams) else []
    if as_json:
        print_json({"name": name, "summary": _summary(name), "params": [asdict(param) for param in params]})
        return
    click.echo(f"{name}: {_summary(name)}")
    if params:
        rows = [(param.name, param.type, param.default, param.help) for param in params]
        print_table(rows, "PARAMETER", "TYPE", "DEFAULT", "MEANING")
    else:
        click.echo("It takes no parameters.")


def _summary(name: str) -> str:
    """Return the first line of the renderer's docstring, or why the scene cannot be used."""
    try:
        renderer = find_renderer(name)
    except RenderDispatchError as error:
        return f"(cannot be used: {error})"
    return (inspect.getdoc(renderer) or "").partition("\n")[0]
