"""How do a document's examples become a program?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
BLOCK: Final = re.compile(r"^```(python|console|glsl)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE: Final = re.compile(r"(?:#|//) ([\w.]+\.(?:py|glsl))\n")


def script_of(document: Path) -> str:
    """Return a program that does what the document's examples say."""
    text = document.read_text()
    steps = ["import pathlib, subprocess", "names = {'__name__': '__main__'}"]
    for block in BLOCK.finditer(text):
        kind, code = block.groups()
        if kind == "console":
            typed = [line[2:] for line in code.splitlines() if line.startswith("$ ")]
            steps += [f"subprocess.run(['bash', '-ec', {line!r}], check=True)" for line in typed]
        elif named := _FILE.match(code):
            steps.append(f"pathlib.Path({named[1]!r}).write_text({code!r})")
        else:
            line = text.count("\n", 0, block.start(2))
            padded = "\n" * line + code  # so that tracebacks name the document's lines
            steps.append(f"exec(compile({padded!r}, {document.name!r}, 'exec'), names)")
    return "\n".join(steps) + "\n"
