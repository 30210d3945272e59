"""How much memory does a render take, and how much may it take?

What counts is what only this render needs: its own pages, its shared memory, and what was swapped out. Address space
that nothing was written to, and files that are mapped, do not count, so no limit of the kernel's (``ulimit``) fits.
"""

from __future__ import annotations

import os
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_CGROUPS: Final = Path("/sys/fs/cgroup")
_SHARE: Final = 0.9
_OWN: Final = frozenset({"RssAnon", "RssShmem", "VmSwap"})
_SHARED_OUT: Final = frozenset({"Pss_Anon", "Pss_Shmem", "SwapPss"})
"""The same, where each process counts its share of the pages that several use: slow to read."""

CHECK_S: Final = 0.25
_EXACT_EVERY_S: Final = 5.0
_PS_EVERY_S: Final = 2.0


def most_bytes(asked: int) -> int:
    """Return what a render may take: ``asked``, or nine tenths of what there is here, whichever is less."""
    return min(asked, *(int(_SHARE * size) for size in _sizes()))


def _sizes() -> Iterator[int]:
    """Iterate over the sizes that bound this process: the machine's memory, and the limits of its containers."""
    yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, own = line.split(":", 2)
            if not controllers:  # version 2 of cgroups
                yield from _limits(_CGROUPS, own, "memory.max")
            elif "memory" in controllers.split(","):
                yield from _limits(_CGROUPS / "memory", own, "memory.limit_in_bytes")


def _limits(root: Path, own: str, name: str) -> Iterator[int]:
    """Iterate over the limits of a control group and of those around it, as far as this container sees them."""
    group = root / own.lstrip("/")
    for folder in (group, *group.parents):
        with suppress(OSError, ValueError):  # "max" is no limit
            yield int((folder / name).read_text())


class MemoryWatch:
    """Knows whether a process and its descendants take more than they may.

    Args:
        pid: The process.
        most: How many bytes.
        now: The monotonic time.
    """

    def __init__(self, pid: int, most: int, *, now: float) -> None:
        self._pid = pid
        self._most = most
        self._due = self._exact_due = now
        self._counted_twice = 0
        self._has_proc = Path("/proc/self").exists()

    def is_over(self, *, now: float) -> bool:
        """Return whether it is too much. Reads the system's tables at most four times a second."""
        if now < self._due:
            return False
        self._due = now + (CHECK_S if self._has_proc else _PS_EVERY_S)
        total = self._measure()
        if total <= self._most:
            self._counted_twice = 0
        if total - self._counted_twice <= self._most and (not self._counted_twice or now < self._exact_due):
            return False
        self._exact_due = now + _EXACT_EVERY_S
        exact = (
            _sum_of("smaps_rollup", _SHARED_OUT, _tree(self._pid)) or total
        )  # forks share what they have not written
        self._counted_twice = total - exact
        return exact > self._most

    def _measure(self) -> int:
        if self._has_proc:
            return _sum_of("status", _OWN, _tree(self._pid))
        with suppress(OSError, subprocess.SubprocessError):  # macOS
            columns = ["ps", "-axo", "pid=,ppid=,rss="]
            table = subprocess.run(columns, capture_output=True, check=True, timeout=2).stdout
            return resident(self._pid, table.decode())
        return 0


def _tree(pid: int) -> Iterator[int]:
    """Iterate over a process and its descendants."""
    yield pid
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - names, not paths
            with suppress(OSError):
                for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                    yield from _tree(int(child))


def _sum_of(table: str, names: frozenset[str], processes: Iterable[int]) -> int:
    """Add up fields of a table in ``/proc``; those of processes that are gone are 0."""
    total = 0
    for pid in processes:
        with suppress(OSError):
            lines = (line.partition(":") for line in Path(f"/proc/{pid}/{table}").read_text().splitlines())
            fields = {name: value.split()[0] for name, _, value in lines if name in names or name == "VmRSS"}
            rss = fields.pop("VmRSS", "0")  # all that gVisor tells
            total += sum(map(int, fields.values() or (rss,))) << 10
    return total


def resident(pid: int, table: str) -> int:
    """Return how many bytes a process and its descendants hold, by a table of ids, parents' ids and KiB."""
    children, sizes = defaultdict[int, list[int]](list), dict[int, int]()
    for line in table.splitlines():
        process, parent, kib = map(int, line.split())
        children[parent].append(process)
        sizes[process] = kib << 10
    total, left = 0, [pid]
    while left:
        process = left.pop()
        total += sizes.get(process, 0)
        left += children.pop(process, ())
    return total
