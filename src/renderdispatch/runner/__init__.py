"""What runs beside the GPU: `run_order`, and what it is made of."""

from renderdispatch.runner.render import InProcessRender, SupervisedRender
from renderdispatch.runner.reporting import Pace
from renderdispatch.runner.run import RunnerIO, run_order

__all__ = ["InProcessRender", "Pace", "RunnerIO", "SupervisedRender", "run_order"]
