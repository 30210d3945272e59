"""``python -m renderdispatch.cli`` is ``renderdispatch``."""

from renderdispatch.cli import main

if __name__ == "__main__":
    main()
