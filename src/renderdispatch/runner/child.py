"""The process that renders one scene; started by `SupervisedRender`."""

import os

from renderdispatch.runner.process import held_descriptor
from renderdispatch.runner.render import child_main

if __name__ == "__main__":
    if (held := held_descriptor()) is not None:
        os.close(held)  # its supervisor holds it; a scene and its programs must not
    child_main()
