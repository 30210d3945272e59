"""Which renderer draws the scene of this name?

Renderers come from the entry points of the group ``renderdispatch.renderers``. The shipped ones are also in a table,
for images whose packages carry no metadata. A scene is imported when it is first used.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from renderdispatch.errors import ConfigurationError, RenderDispatchError, UnknownNameError
from renderdispatch.messages import SCENE_OF_FILES
from renderdispatch.protocols import Renderer, SupportsSceneFiles
from renderdispatch.runner.scene_files import load_scene_file, read_scene_file

GROUP: Final = "renderdispatch.renderers"

SHIPPED: Final[Mapping[str, str]] = {
    "bars": "renderdispatch.render:bars",
    "wave": "renderdispatch.render:wave",
    "radial": "renderdispatch.render:radial",
    "flame": "renderdispatch.render:flame",
    "nebula": "renderdispatch.render:nebula",
    "orb": "renderdispatch.render:orb",
    "tunnel": "renderdispatch.render:tunnel",
    "terrain": "renderdispatch.render:terrain",
    "ink": "renderdispatch.render:ink",
    "glsl": "renderdispatch.render:glsl",
}


@cache
def _registered() -> Mapping[str, EntryPoint]:
    shipped = [EntryPoint(name, value, GROUP) for name, value in SHIPPED.items()]
    return {point.name: point for point in (*shipped, *entry_points(group=GROUP))}


def scene_names() -> list[str]:
    """Return the names of all registered scenes, sorted."""
    return sorted(_registered())


def forget_registered() -> None:
    """Read the entry points again at the next call, because a package was installed meanwhile."""
    _registered.cache_clear()
    find_renderer.cache_clear()


@cache
def find_renderer(scene: str) -> Renderer:
    """Return the renderer of a registered scene.

    Raises:
        UnknownNameError: No scene has this name; the message holds the near matches.
        ConfigurationError: The scene is registered, but cannot be imported or is not a renderer.
    """
    point = _registered().get(scene)
    if point is None and read_scene_file(scene) is not None:
        message = f"{scene[:200]!r} is a scene file; only commands such as 'renderdispatch render --scene' take those"
        raise UnknownNameError(message, code="scene.unknown")
    if point is None:
        raise UnknownNameError.of("scene", scene, scene_names(), code="scene.unknown")
    return load_renderer(scene, point.value)


def check_scene_file(text: str, *, name: str, renderers: Mapping[str, Renderer] | None = None) -> None:
    """Refuse a scene file that can never be drawn; see `SupportsSceneFiles`.

    Args:
        text: What the file says.
        name: The file's own.
        renderers: Scenes beside those that are registered.

    Raises:
        InvalidRequestError: ``shader.invalid``.
    """
    renderer = (renderers or {}).get(SCENE_OF_FILES) or find_renderer(SCENE_OF_FILES)
    if isinstance(renderer, SupportsSceneFiles):
        renderer.check_scene_file(text, name=name)


def load_renderer(scene: str, where: str) -> Renderer:
    """Return the renderer that is defined at ``"package.module:name"``, or in a file ``"/folder/file.py:name"``.

    Raises:
        ConfigurationError: It cannot be imported, or is not a renderer.
        InvalidRequestError: The file cannot be used; see `load_scene_file`.
    """
    if (file := read_scene_file(where)) is not None and file.path.is_absolute():
        return load_scene_file(file)
    point = EntryPoint(scene, where, GROUP)
    try:
        found = point.load()
        renderer = found() if inspect.isclass(found) else found
    except RenderDispatchError:
        raise
    except Exception as error:
        raise ConfigurationError(f"scene {scene!r} ({point.value}) cannot be loaded: {error}") from error
    if not isinstance(renderer, Renderer):
        raise ConfigurationError(f"scene {scene!r} ({point.value}) is not a renderer: it has no render() method")
    return renderer
