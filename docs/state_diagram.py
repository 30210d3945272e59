# ruff: noqa: INP001 - a script
"""Draw the table of transitions as a Mermaid diagram, in the page about the design.

``python docs/state_diagram.py`` writes it between the page's markers. With ``--check`` nothing is written, and the exit
status is 1 if the page differs from the table.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from renderdispatch.engine.rules import OUT, PREPARING, STAGE_PROGRESS, WAITING
from renderdispatch.engine.transitions import TABLE
from renderdispatch.messages import JobStatus, Stage

PAGE = Path(__file__).parent / "explanation/design.md"
BEGIN, END = "<!-- states: begin -->\n", "<!-- states: end -->\n"

GROUPS = {"waiting": WAITING, "preparing": PREPARING, "out": OUT}
ORDER = [*STAGE_PROGRESS, Stage.CANCELLING, *JobStatus]


def edges() -> Iterator[tuple[str, str, str]]:
    """Yield (from, to, event) for each row of the table, from a whole group where that is possible."""
    for row in TABLE:
        for to in row.to:
            for name, group in GROUPS.items():
                if group <= row.stages and to not in group:
                    yield name, to, row.event.__name__
                elif group <= row.stages:  # within a group, stages only go forward
                    for stage in group:
                        if ORDER.index(stage) < ORDER.index(to):
                            yield stage, to, row.event.__name__
            grouped = frozenset().union(*(group for group in GROUPS.values() if group <= row.stages))
            for stage in row.stages - grouped:
                yield stage, to, row.event.__name__


def diagram() -> str:
    """Return the diagram as a fenced block."""
    labels: dict[tuple[str, str], set[str]] = defaultdict(set)
    for start, to, event in edges():
        labels[start, to].add(event)
    lines = ["```mermaid", "flowchart TD", "    submit((submit)) --> queued"]
    for name, group in GROUPS.items():
        lines += [f"    subgraph {name}", *(f"        {stage}" for stage in ORDER if stage in group), "    end"]
    places = [*GROUPS, *map(str, ORDER)]
    for (start, to), events in sorted(labels.items(), key=lambda item: tuple(map(places.index, item[0]))):
        lines.append(f'    {start} -- "{", ".join(sorted(events))}" --> {to}')
    lines += [f"    {end}([{end}])" for end in JobStatus if end.terminal]
    return "\n".join([*lines, "```", ""])


def main() -> int:
    """Write or check the page."""
    page = PAGE.read_text("utf-8")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    drawn = f"{before}{BEGIN}{diagram()}{END}{after}"
    if "--check" in sys.argv[1:]:
        return int(page != drawn)
    PAGE.write_text(drawn, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
