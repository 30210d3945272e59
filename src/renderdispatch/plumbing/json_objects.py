"""What is in a JSON object that a person wrote? Python's reader takes the last of two members with one name."""

from __future__ import annotations

from collections.abc import Callable


def named_once(refuse: Callable[[str], Exception]) -> Callable[[list[tuple[str, object]]], dict[str, object]]:
    """Return an ``object_pairs_hook`` of `json.loads` that raises what ``refuse`` makes of a name given twice."""

    def read(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for name, value in pairs:
            if name in found:
                raise refuse(name[:80])
            found[name] = value
        return found

    return read
