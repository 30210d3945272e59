"""What can be chosen when the render function is deployed?

`renderdispatch.modal_app` reads the choices from the environment when Modal's client imports it, and
``renderdispatch modal deploy`` writes that environment. Nothing here needs Modal's client.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, requires
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from renderdispatch.errors import ConfigurationError, UnknownNameError
from renderdispatch.render.gl.devices import APT_PACKAGES as OPENGL

GPUS: Final = ("T4", "L4", "A10", "L40S", "A100", "A100-80GB", "RTX-PRO-6000", "H100", "H200", "B200")
"""The GPUs that Modal rents out, cheapest first."""

SUGGESTED_GPUS: Final = ("L4", "A10", "T4")
"""For renderers that use a GPU. All three encode video (NVENC); A100, H100 and H200 do not. Modal takes the first one
that is available; the L4 is the newest."""

APT_PACKAGES: Final = (*OPENGL, "libvulkan1")
"""What renderers that draw with OpenGL or Vulkan need besides their Python packages."""

DRIVER_FILES: Final = {
    "/usr/share/glvnd/egl_vendor.d/10_nvidia.json": {
        "file_format_version": "1.0.0",
        "ICD": {"library_path": "libEGL_nvidia.so.0"},
    },
    "/etc/vulkan/icd.d/nvidia_icd.json": {
        "file_format_version": "1.0.0",
        "ICD": {"library_path": "libGLX_nvidia.so.0", "api_version": "1.3.0"},
    },
}
"""What names NVIDIA's driver to EGL and to Vulkan, by path. Container hosts bring the libraries, but not always these
files. A file whose library is missing does no harm."""

PYTHON_VERSION: Final = "3.12"
"""The image's Python. Every image builder of Modal's since 2023 knows this version."""

RENDER_EXTRAS: Final = ("render", "gl")
WORKER_EXTRAS: Final = ("r2", "modal", "postgres")

_CARRIED: Final = frozenset({"app", "worker", "secret", "period"})
_NO_GPU: Final = "none"
_MOST_GPUS: Final = 8
_PREFIX: Final = "RENDERDISPATCH_MODAL_"
_DAY_S: Final = 86_400


def read_gpus(text: str) -> tuple[str, ...]:
    """Read a list such as ``L4,A10,H100:2``; ``none`` is no GPU.

    Raises:
        UnknownNameError: Modal has no such GPU.
        ConfigurationError: The list is empty, or a count makes no sense.
    """
    if text.strip().lower() == _NO_GPU:
        return ()
    gpus = []
    for part in (part.strip() for part in text.split(",") if part.strip()):
        name, colon, count = part.partition(":")
        if name.upper() not in GPUS:
            raise UnknownNameError(
                f"unknown GPU {name[:40]!r}; Modal has {', '.join(GPUS)}, and {_NO_GPU!r} is none", code="gpu.unknown"
            )
        if colon and not (re.fullmatch(r"[0-9]", count) and 1 <= int(count) <= _MOST_GPUS):
            raise ConfigurationError(f"{part[:40]!r}: a container has 1 to {_MOST_GPUS} GPUs, as in {name.upper()}:2")
        gpus.append(name.upper() + colon + count)
    if not gpus:
        raise ConfigurationError(f"no GPU is named; {_NO_GPU!r} is none, {','.join(SUGGESTED_GPUS)} a good choice")
    return tuple(gpus)


def pip_requirements(*extras: str) -> tuple[str, ...]:
    """Return what pip must install so that this package's source runs with these extras. The base is always included.

    Raises:
        ConfigurationError: The package is not installed; only its source is here.
    """
    try:
        requirements = requires("renderdispatch") or []
    except PackageNotFoundError:
        raise ConfigurationError(
            "the requirements of renderdispatch are not known here: install it (pip install renderdispatch) where you "
            "deploy"
        ) from None
    found = []
    for requirement in requirements:
        what, _, marker = (part.strip() for part in requirement.partition(";"))
        extra = re.search(r"""(?:\s+and\s+)?\bextra\s*==\s*['"]([^'"]+)['"]""", marker)
        if extra is None or extra[1] in extras:
            rest = marker if extra is None else marker.replace(extra[0], "").strip()
            found.append(f"{what}; {rest}" if rest else what)
    return tuple(dict.fromkeys(found))


class Deployment(BaseModel):
    """What is deployed. Each field is read from ``RENDERDISPATCH_MODAL_`` and its name in capitals.

    Args:
        app: The app's name.
        gpu: GPUs in order of preference, separated by commas; empty, or ``none``, for none. Scenes of NumPy
            draw on the CPU, those in GLSL on either, and Modal bills an idle GPU all the same.
        cpu: Cores of a render.
        memory: MiB of a render.
        timeout: Seconds after which Modal ends a call that was spawned without a timeout of its own. `ModalBackend`
            sets one for each call, from the order's deadline.
        startup_timeout: Seconds that a container may take to start.
        scaledown_window: Seconds that an idle container waits for the next render, and is billed.
        worker: Whether the app also dispatches and reconciles, and takes webhooks.
        secret: The Modal Secret that the worker's settings come from. The render function gets no secret.
        period: Seconds between two starts of the worker.
    """

    model_config = ConfigDict(frozen=True, str_strip_whitespace=True)

    app: str = "renderdispatch"
    gpu: tuple[str, ...] = ()
    cpu: float = Field(default=4.0, ge=0.125, le=256)
    memory: int = Field(default=8192, ge=128, le=2_000_000)
    timeout: int = Field(default=_DAY_S, ge=1, le=_DAY_S)
    startup_timeout: int = Field(default=600, ge=1, le=_DAY_S)
    scaledown_window: int = Field(default=15, ge=2, le=3600)
    worker: bool = False
    secret: str | None = None
    period: int = Field(default=60, ge=5, le=_DAY_S)

    @field_validator("gpu", mode="before")
    @classmethod
    def _read_gpu(cls, value: object) -> object:
        return read_gpus(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _worker_has_secret(self) -> Self:
        if self.worker and not self.secret:
            raise ConfigurationError(
                "the worker needs the name of a Modal Secret that holds its RENDERDISPATCH_ variables: "
                "RENDERDISPATCH_MODAL_SECRET, or --secret"
            )
        return self

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], *, carried: bool = False) -> Self:
        """Read the variables that are set. An empty one is not set.

        Args:
            carried: Read only the variables that `to_carry` writes. The others may be the application's, in the
                worker's secret.

        Raises:
            ConfigurationError: A variable makes no sense; the message names it.
        """
        names = _CARRIED if carried else cls.model_fields
        given = {name: environment.get(f"{_PREFIX}{name.upper()}", "") for name in names}
        try:
            return cls.model_validate({name: value for name, value in given.items() if value.strip()})
        except ValidationError as error:
            raise ConfigurationError("; ".join(map(_describe, error.errors()))) from None

    def to_environment(self) -> dict[str, str]:
        """Return the variables that `from_environment` reads as this."""
        return {f"{_PREFIX}{name.upper()}": _written(value) for name, value in self}

    def to_carry(self) -> dict[str, str]:
        """Return the variables that define the worker's functions, for their containers."""
        return {f"{_PREFIX}{name.upper()}": _written(value) for name, value in self if name in _CARRIED}


def _written(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(value) or _NO_GPU
    if isinstance(value, bool | float):
        return f"{value:g}"
    return "" if value is None else str(value)


def _describe(problem: Mapping[str, Any]) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return str(message)
    given = "" if problem["type"] == "value_error" else f", not {str(problem['input'])[:40]!r}"
    return f"{_PREFIX}{problem['loc'][0].upper()}: {message}{given}"
