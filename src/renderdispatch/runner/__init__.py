"""What runs beside the GPU: `run_order`, and what it is made of."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from renderdispatch.runner.render import InProcessRender as InProcessRender
    from renderdispatch.runner.render import SupervisedRender as SupervisedRender
    from renderdispatch.runner.reporting import Pace as Pace
    from renderdispatch.runner.run import RunnerIO as RunnerIO
    from renderdispatch.runner.run import run_order as run_order

_NAMES: Final = {"render": "InProcessRender SupervisedRender", "reporting": "Pace", "run": "RunnerIO run_order"}
_MODULE_OF: Final = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: what only starts runners needs neither runs nor transfers."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'renderdispatch.runner' has no attribute {name!r}")
    return getattr(import_module(f"renderdispatch.runner.{_MODULE_OF[name]}"), name)
