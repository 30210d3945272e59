"""Which version of a scene draws?

Shipped scenes change with `renderdispatch.render.device.PICTURES`. Those of others are known by their source: the
module of the scene and the text of the shader. What such a module imports is not followed.
"""

from __future__ import annotations

import hashlib
import sys
from contextlib import suppress
from importlib import import_module
from importlib.resources import files
from pathlib import Path

from renderdispatch.render.gl.renderer import GlslRenderer
from renderdispatch.render.renderer import VideoRenderer
from renderdispatch.render.scene import NumpyRenderer

_SHIPPED = "renderdispatch.render."


def scene_version(renderer: VideoRenderer) -> str:
    """Return the name of a renderer's scene, and the hash of its source if it is not shipped."""
    sources = dict.fromkeys([type(renderer).__module__, renderer.params.__module__])
    name = type(renderer).__qualname__
    texts = [renderer.params.__qualname__.encode()]
    if isinstance(renderer, NumpyRenderer):
        name = renderer.scene
        sources[renderer.scene.partition(":")[0]] = None
    elif isinstance(renderer, GlslRenderer):
        name = renderer.shader
        package, _, file = renderer.shader.partition(":")
        if not package.startswith(_SHIPPED):
            texts.append(files(package).joinpath(file).read_bytes())
    texts += [_source(module) for module in sources if not module.startswith(_SHIPPED)]
    return f"{name} {hashlib.sha256(b''.join(texts)).hexdigest()}"


def _source(module: str) -> bytes:
    """Return the source of a module, or what there is of it."""
    with suppress(ImportError, OSError, TypeError):
        found = sys.modules.get(module) or import_module(module)
        return Path(str(found.__file__)).read_bytes()
    return module.encode()
