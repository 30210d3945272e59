"""Run pytest, then each test that failed once more, alone: ``python .ci/repeat.py [ARGUMENT OF PYTEST ...]``.

A test that passes at the second try depends on something that it should not: on time, on load, on chance, on other
tests. The run passes all the same, but says which tests those were, with both results, so that they can be mended.
Their names are also added to the file that ``SECOND_TRIES`` names, if it is set.

More than ten failures are not repeated: those are no accidents. Neither is a run that ended for another reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

MOST = 10
_PYTEST = [sys.executable, "-m", "pytest"]


def main(arguments: Sequence[str]) -> int:
    """Return pytest's exit status; 0 also where every test that failed passed at its second try."""
    with tempfile.TemporaryDirectory() as cache:
        # the tests that failed are in pytest's own cache, under its own names
        status, lines = _run([*_PYTEST, *arguments, "-o", f"cache_dir={cache}"])
        found = Path(cache, "v", "cache", "lastfailed")
        failed = sorted(json.loads(found.read_text())) if found.exists() else []
    if status != 1 or not failed:
        return status
    if len(failed) > MOST:
        print(f"\n{len(failed)} tests failed; at most {MOST} are tried a second time")
        return status
    passed: list[str] = []
    for test in failed:
        print(f"\n--- second try, alone: {test}", flush=True)
        # an empty -m selects also what pyproject.toml leaves out
        again, second = _run([*_PYTEST, "-m", "", "-p", "no:cacheprovider", test])
        if again == 0:
            first = next((line for line in lines if line.startswith((f"FAILED {test}", f"ERROR {test}"))), "failed")
            passed.append(f"{test}\n    first try:  {first}\n    second try: {second[-1].strip('= ')}")
    if passed:
        print("\n=== passed at the second try ===", *passed, sep="\n", flush=True)
        if listed := os.environ.get("SECOND_TRIES"):
            with Path(listed).open("a") as file:
                file.writelines(f"{line}\n" for line in passed)
    return 0 if len(passed) == len(failed) else status


def _run(command: Sequence[str]) -> tuple[int, list[str]]:
    """Run a command and pass on what it prints; return its exit status and the lines."""
    lines: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
    ) as run:
        for line in run.stdout or ():
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    return run.returncode, lines or [""]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
