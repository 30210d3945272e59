"""What can be drawn, and with which parameters?"""

from __future__ import annotations

import inspect

import click

from renderdispatch.cli.display import facts_table, plain_table, print_json, print_table
from renderdispatch.cli.options import json_option
from renderdispatch.errors import RenderDispatchError
from renderdispatch.protocols import ParamInfo, Renderer, SupportsParams
from renderdispatch.runner.renderers import find_renderer, scene_names


@click.command()
@click.argument("name", required=False)
@json_option
def scenes(*, name: str | None, as_json: bool) -> None:
    """List the scenes, or show the parameters of one."""
    if name is not None:
        _show(name, find_renderer(name), as_json=as_json)
    elif as_json:
        for found in scene_names():
            print_json({"name": found, "summary": _summary(found)})
    else:
        print_table(facts_table([(found, _summary(found)) for found in scene_names()]))


def _show(name: str, renderer: Renderer, *, as_json: bool) -> None:
    params = _params(renderer)
    if as_json:
        shown = [{"name": p.name, "type": p.type, "default": p.default, "help": p.help} for p in params]
        print_json({"name": name, "summary": _summary(name), "params": shown})
        return
    click.echo(f"{name}: {_summary(name)}")
    if not params:
        click.echo("It takes no parameters.")
        return
    table = plain_table("PARAMETER", "TYPE", "DEFAULT", "MEANING")
    for param in params:
        table.add_row(param.name, param.type, param.default, param.help)
    print_table(table)


def _params(renderer: Renderer) -> list[ParamInfo]:
    return list(renderer.describe_params()) if isinstance(renderer, SupportsParams) else []


def _summary(name: str) -> str:
    """Return the first line of the renderer's docstring; a scene that is broken is listed with what is wrong."""
    try:
        renderer = find_renderer(name)
    except RenderDispatchError as error:
        return f"(cannot be used: {error})"
    said = inspect.getdoc(renderer) or ""
    return said.partition("\n")[0]
