"""The process that renders one scene; started by `SupervisedRender`."""

from renderdispatch.runner.render import child_main

if __name__ == "__main__":
    child_main()
