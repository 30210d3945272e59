"""What went to Modal, and what do its containers touch?"""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path

from renderdispatch.messages import RenderOrder
from renderdispatch.testing.modal import LoopbackModal, ModalCall
from tests.support.chain import Chain


def call_of(chain: Chain, modal: LoopbackModal, job_id: str) -> ModalCall:
    """Return the call of a job's last attempt, as the control plane has it."""
    call_id = chain.job(job_id).attempts[-1].call_id
    assert call_id is not None
    return modal.call(call_id)


def order_in(call: ModalCall) -> RenderOrder:
    """Return the order that went to Modal."""
    (argument,), named = pickle.loads(call.args)
    assert named == {}
    return RenderOrder.model_validate_json(argument)


def descendants(pid: int) -> list[int]:
    """Return a process and all that it started, as /proc has it."""
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{one}/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
    return found


class Process:
    """A process, as /proc shows it; one that is gone touches nothing."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._proc = Path(f"/proc/{pid}")

    def touched(self) -> list[str]:
        """Its environment, command line, working directory and open files."""
        found: list[str] = []
        with contextlib.suppress(OSError):
            for name in ("environ", "cmdline"):
                found += (self._proc / name).read_bytes().decode(errors="replace").split("\0")
            for link in (self._proc / "cwd", *(self._proc / "fd").iterdir()):
                with contextlib.suppress(OSError):
                    found.append(str(link.readlink()))
        return found

    def peak_bytes(self) -> int:
        """The most memory that was resident at once."""
        with contextlib.suppress(OSError):
            for line in (self._proc / "status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) << 10
        return 0
