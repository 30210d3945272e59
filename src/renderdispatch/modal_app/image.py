"""What does an image on Modal need, so that orders can be carried out in it?

Containers run the same lines, but build nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from renderdispatch.errors import MissingExtraError
from renderdispatch.modal_app.deployment import APT_PACKAGES, DRIVER_FILES, PYTHON_VERSION, pip_requirements

try:
    import modal
except ImportError:
    raise MissingExtraError.of("renderdispatch.modal_app.image", "modal") from None


def base_image(*extras: str) -> modal.Image:
    """Return an image with the requirements of this package and these extras, without its source.

    Add your own packages to it. Add the source last, by `with_source`, because it changes most often.
    """
    image = modal.Image.debian_slim(python_version=PYTHON_VERSION)
    if "render" in extras:
        # "all" brings the driver's OpenGL and its video encoder into the container
        image = image.env({"NVIDIA_DRIVER_CAPABILITIES": "all"}).apt_install(*APT_PACKAGES)
        image = image.run_commands(*map(_write, DRIVER_FILES))
    # in a container the package has no metadata
    return image.pip_install(*pip_requirements(*extras)) if modal.is_local() else image


def _write(path: str) -> str:
    """Return the command that writes one of `DRIVER_FILES`, unless it is there."""
    folder, content = str(Path(path).parent), json.dumps(DRIVER_FILES[path])
    return f"mkdir -p {folder} && test -e {path} || echo '{content}' > {path}"


def with_source(image: modal.Image, *modules: str, environment: Mapping[str, str] | None = None) -> modal.Image:
    """Return the image with the source of this package and of ``modules``, as they are imported here.

    Args:
        modules: Packages or modules that can be imported here.
        environment: Variables to set.
    """
    if environment:
        image = image.env(dict(environment))
    return image.add_local_python_source("renderdispatch", *modules, ignore=[])
