"""What can be chosen when the render function is deployed?

`renderdispatch.modal_app` reads it from the environment when Modal's client imports it; ``renderdispatch modal deploy``
writes that environment. Nothing here needs Modal's client.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, requires
from typing import Final, TypeVar

from attrs import field, frozen

from renderdispatch.errors import ConfigurationError, UnknownNameError

GPUS: Final = (
    "T4",
    "L4",
    "A10",
    "L40S",
    "A100",
    "A100-80GB",
    "RTX-PRO-6000",
    "H100",
    "H200",
    "B200",
)
"""The GPUs that Modal rents out, cheapest first."""

SUGGESTED_GPUS: Final = ("L4", "A10", "T4")
"""For renderers that use one. All three encode video (NVENC), which A100, H100 and H200 do not; the L4 is the newest of
them. The second and third are taken when there is none of those before."""

APT_PACKAGES: Final = ("libegl1", "libgl1")
"""What renderers that draw with OpenGL need beside their Python packages."""

PYTHON_VERSION: Final = "3.12"
"""Of the image: one that every image builder of Modal's since 2023 knows."""

RENDER_EXTRAS: Final = ("render",)
WORKER_EXTRAS: Final = ("r2", "modal", "postgres")

_CARRIED: Final = frozenset({"APP", "WORKER", "SECRET", "PERIOD"})
_NO_GPU: Final = "none"
_MOST_GPUS: Final = 8
_PREFIX: Final = "RENDERDISPATCH_MODAL_"
_DAY_S: Final = 86_400

_Number = TypeVar("_Number", int, float)


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
    """Return what pip has to install so that this package's source runs with these extras, the base always included.

    Raises:
        ConfigurationError: The package is not installed, only its source is here.
    """
    try:
        said = requires("renderdispatch") or []
    except PackageNotFoundError:
        raise ConfigurationError(
            "what renderdispatch needs cannot be looked up: install it (pip install renderdispatch) where you deploy"
        ) from None
    found = []
    for requirement in said:
        what, _, marker = (part.strip() for part in requirement.partition(";"))
        extra = re.search(r"""(?:\s+and\s+)?\bextra\s*==\s*['"]([^'"]+)['"]""", marker)
        if extra is None or extra[1] in extras:
            rest = marker if extra is None else marker.replace(extra[0], "").strip()
            found.append(f"{what}; {rest}" if rest else what)
    return tuple(found)


@frozen(kw_only=True)
class Deployment:
    """What is deployed. Each field is ``RENDERDISPATCH_MODAL_`` and its name in capitals.

    Args:
        app: The app's name.
        gpu: GPUs in order of preference, separated by commas; empty, or ``none``, for none. The scenes that ship draw
            on the CPU, and a GPU that idles is billed all the same.
        cpu: Cores of a render.
        memory: MiB of a render.
        timeout: Seconds after which Modal ends a call that was spawned without a timeout of its own. `ModalBackend`
            sets one for each call, from the order's deadline.
        startup_timeout: Seconds that a container may take to start.
        scaledown_window: Seconds that an idle container waits for the next render, and is billed.
        worker: Whether the app also dispatches and reconciles, and takes webhooks.
        secret: The Modal Secret that the worker's settings come from; the render function gets none.
        period: Seconds between two starts of the worker.
    """

    app: str = "renderdispatch"
    gpu: tuple[str, ...] = ()
    cpu: float = 4.0
    memory: int = 8192
    timeout: int = _DAY_S
    startup_timeout: int = 600
    scaledown_window: int = 15
    worker: bool = False
    secret: str | None = field(default=None)
    period: int = 60

    @secret.validator
    def _goes_with_worker(self, _attribute: object, secret: str | None) -> None:
        if self.worker and not secret:
            raise ConfigurationError(
                "the worker needs the name of a Modal Secret that holds its RENDERDISPATCH_ variables: "
                "RENDERDISPATCH_MODAL_SECRET, or --secret"
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], *, carried: bool = False) -> Deployment:
        """Read what is set; empty is not set.

        Args:
            carried: Read only what `to_carry` writes. The others may mean something else to whatever runs there.

        Raises:
            ConfigurationError: A variable makes no sense; the message names it.
        """
        said = {
            name.removeprefix(_PREFIX): value.strip()
            for name, value in environment.items()
            if name.startswith(_PREFIX) and value.strip() and (not carried or name.removeprefix(_PREFIX) in _CARRIED)
        }
        default = cls()
        try:
            gpus = read_gpus(said["GPU"]) if "GPU" in said else default.gpu
        except ValueError as error:
            raise ConfigurationError(f"{_PREFIX}GPU: {error}") from None
        return cls(
            app=said.get("APP", default.app),
            gpu=gpus,
            cpu=_number(said, "CPU", default.cpu, 0.125, 256.0),
            memory=_number(said, "MEMORY", default.memory, 128, 2_000_000),
            timeout=_number(said, "TIMEOUT", default.timeout, 1, _DAY_S),
            startup_timeout=_number(said, "STARTUP_TIMEOUT", default.startup_timeout, 1, _DAY_S),
            scaledown_window=_number(said, "SCALEDOWN_WINDOW", default.scaledown_window, 2, 3600),
            worker=_flag(said, "WORKER"),
            secret=said.get("SECRET"),
            period=_number(said, "PERIOD", default.period, 5, _DAY_S),
        )

    def to_environment(self) -> dict[str, str]:
        """Return the variables that `from_environment` reads as this."""
        values = {
            "APP": self.app,
            "GPU": ",".join(self.gpu) or _NO_GPU,
            "CPU": f"{self.cpu:g}",
            "MEMORY": str(self.memory),
            "TIMEOUT": str(self.timeout),
            "STARTUP_TIMEOUT": str(self.startup_timeout),
            "SCALEDOWN_WINDOW": str(self.scaledown_window),
            "WORKER": str(int(self.worker)),
            "SECRET": self.secret or "",
            "PERIOD": str(self.period),
        }
        return {_PREFIX + name: value for name, value in values.items()}

    def to_carry(self) -> dict[str, str]:
        """Return those of the variables that the worker's functions are defined by, for their containers."""
        return {name: value for name, value in self.to_environment().items() if name.removeprefix(_PREFIX) in _CARRIED}


def _number(said: Mapping[str, str], name: str, default: _Number, least: _Number, most: _Number) -> _Number:
    if name not in said:
        return default
    try:
        value = type(default)(said[name])
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        raise ConfigurationError(
            f"{_PREFIX}{name} is a number from {least:.10g} to {most:.10g}, not {said[name][:40]!r}"
        )
    return value


def _flag(said: Mapping[str, str], name: str) -> bool:
    match said.get(name, "0").lower():
        case "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off":
            return False
    raise ConfigurationError(f"{_PREFIX}{name} is 1 or 0, not {said[name][:40]!r}")
