"""What does a check find, and how is it shown?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from attrs import asdict, frozen

from renderdispatch.cli.display import print_json, print_table
from renderdispatch.errors import RenderDispatchError

Status: TypeAlias = Literal["ok", "note", "broken"]
Verdict: TypeAlias = tuple[Status, str]
"""How a check ended, and what it saw; if something is wrong, also what to do about it."""


@frozen
class Finding:
    """What one check found."""

    check: str
    status: Status
    said: str


def found(name: str, check: Callable[[], Verdict]) -> Finding:
    """Run a check. An error of the library or of the system is a finding, so that the other checks still run."""
    try:
        return Finding(name, *check())
    except (RenderDispatchError, OSError) as error:
        return Finding(name, "broken", " ".join(str(error).split()))


def show(findings: Sequence[Finding], *, as_json: bool) -> int:
    """Print the findings; return the exit status: 1 if something is broken."""
    if as_json:
        for finding in findings:
            print_json(asdict(finding))
    else:
        print_table([(finding.check, finding.status, finding.said) for finding in findings], "CHECK", "", "")
    return int(any(finding.status == "broken" for finding in findings))
