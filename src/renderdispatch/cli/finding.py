"""What does a check of ``doctor`` find, and what becomes of one that fails?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from attrs import frozen

from renderdispatch.cli.display import plain_table, print_json, print_table
from renderdispatch.errors import RenderDispatchError


@frozen
class Finding:
    """What one check found.

    Args:
        said: What is so, and where something is wrong, what to do about it.
    """

    check: str
    status: Literal["ok", "note", "broken"]
    said: str


def found(name: str, check: Callable[[], Finding]) -> Finding:
    """Carry out the check; an error of our tree, or of the system, is a finding too."""
    try:
        return check()
    except (RenderDispatchError, OSError) as error:
        return Finding(name, "broken", " ".join(str(error).split()))


def show(findings: Sequence[Finding], *, as_json: bool) -> int:
    """Print what was found; return the exit status: 1 when something is broken."""
    if as_json:
        for finding in findings:
            print_json({"check": finding.check, "status": finding.status, "said": finding.said})
    else:
        table = plain_table("CHECK", "", "")
        for finding in findings:
            table.add_row(finding.check, finding.status, finding.said)
        print_table(table)
    return 1 if any(finding.status == "broken" for finding in findings) else 0
