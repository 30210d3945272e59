"""What the tests share, and the modules that they run in other processes.

A process of its own finds the package with `ROOT` on its ``PYTHONPATH``. `modal_renders` alone is imported by its bare
name, from `SUPPORT`: it is what ``modal deploy`` is given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

SUPPORT: Final = Path(__file__).parent
ROOT: Final = SUPPORT.parents[1]
"""The root of the repository."""
