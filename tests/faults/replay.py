"""Tell one history of faults: ``python -m tests.faults.replay SEED``."""

from __future__ import annotations

import logging
import sys

from tests.support.simulation import history

if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    print(history(int(sys.argv[1])))
