"""How is a scene loaded from a file that no package registers?

``file.py:name`` is a renderer, or the class of a scene, that the file defines. It is imported as a module of the file's
name, and imports its neighbours. The command line alone takes such names: text from elsewhere never chooses what runs.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import traceback
from contextlib import redirect_stdout
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Final, NamedTuple

from renderdispatch.errors import InvalidRequestError, RenderDispatchError
from renderdispatch.protocols import Renderer

_FILE: Final = re.compile(r"(.*\.py)(?::(.*))?", re.DOTALL | re.IGNORECASE)


class SceneFile(NamedTuple):
    """A scene in a file."""

    path: Path
    name: str

    @property
    def short(self) -> str:
        """What jobs record: the file without its folder."""
        return f"{self.path.name}:{self.name}"


def read_scene_file(text: str) -> SceneFile | None:
    """Return the file and the name in a text such as ``scenes/trail.py:trail``; None if it names no file."""
    found = _FILE.fullmatch(text)
    return None if found is None else SceneFile(Path(found[1]), found[2] or "")


def load_scene_file(file: SceneFile) -> Renderer:
    """Return the renderer that a file defines; the class of a scene becomes one.

    Raises:
        InvalidRequestError: ``scene.file``: there is no such file or name, the import fails, or it is something else.
    """
    from renderdispatch.render.scene import Scene, renderer_of

    module = _imported(file.path)
    found = getattr(module, file.name, None)
    if found is None:
        names = [name for name, value in vars(module).items() if _is_scene(value, module)]
        known = f"it defines {', '.join(names)}" if names else "it defines no scene"
        wrong = (
            f"{file.path.name} has no {file.name!r}" if file.name else f"name a scene of {file.path.name}, file.py:NAME"
        )
        raise _unusable(f"{wrong}; {known}")
    try:
        if inspect.isclass(found):
            found = renderer_of(found) if issubclass(found, Scene) else found()
    except RenderDispatchError:
        raise
    except (Exception, SystemExit) as error:
        raise _unusable(f"{file.short} cannot be used: {type(error).__name__}: {error}") from error
    if not isinstance(found, Renderer):
        raise _unusable(f"{file.short} is neither a scene nor a renderer, but {type(found).__name__}")
    return found


def _is_scene(value: object, module: ModuleType) -> bool:
    from renderdispatch.render.scene import Scene

    if inspect.isclass(value):
        return issubclass(value, Scene) and value.__module__ == module.__name__
    return isinstance(value, Renderer)


def _imported(path: Path) -> ModuleType:
    path = path.absolute()
    name = path.stem
    if (known := sys.modules.get(name)) is not None and getattr(known, "__file__", None) == str(path):
        return known
    if known is not None or name in sys.stdlib_module_names:  # `wave.py` must not take the place of Python's own
        name = f"scene_file_{name}"
    if not path.is_file():
        raise _unusable(f"there is no file {path}")
    # by itself Python finds no loader for the suffix .PY
    spec = importlib.util.spec_from_file_location(name, path, loader=SourceFileLoader(name, str(path)))
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        with redirect_stdout(sys.stderr):  # stdout may be where the video goes
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f" in line {lines[-1]}" if lines else ""
        raise _unusable(f"{path.name} cannot be imported{where}: {type(error).__name__}: {error}") from error
    return module


def _unusable(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, code="scene.file")
