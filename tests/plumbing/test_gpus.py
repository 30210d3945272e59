"""Which GPUs does a process see, and which does it choose?"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from renderdispatch.errors import ConfigurationError
from renderdispatch.plumbing.gpus import Gpu, choose, read_gpus, visible

A = Gpu(uuid="GPU-aaaa1111-0000-0000-0000-000000000000", index=0, name="NVIDIA L4")
B = Gpu(uuid="GPU-aaaa2222-0000-0000-0000-000000000000", index=1, name="NVIDIA L4")
C = Gpu(uuid="GPU-cccc3333-0000-0000-0000-000000000000", index=2, name="NVIDIA H200")
PART = Gpu(uuid="MIG-dddd4444-0000-0000-0000-000000000000", index=3)
ALL = (A, B, C, PART)


@pytest.mark.parametrize(
    ("value", "left"),
    [
        (None, ALL),
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("1", (B,)),
        ("2,0", (C, A)),
        (" 0 , 1 ", (A, B)),
        ("0,-1,1", (A,)),
        ("0,7,1", (A,)),
        ("0,,1", (A,)),
        ("0,0", ()),
        ("0,1,0", ()),
        (C.uuid, (C,)),
        (f"{C.uuid},{A.uuid}", (C, A)),
        ("GPU-cc", (C,)),
        ("gpu-CCCC3333", (C,)),
        ("GPU-aaaa", ()),  # of two of them
        ("GPU-cc,GPU-none,GPU-aaaa1", (C,)),
        ("GPU-cc,0", (C,)),
        ("0,GPU-cc", (A,)),
        (PART.uuid, (PART,)),
        ("MIG-none", ()),
        ("all", ()),
    ],
)
def test_what_cuda_leaves_visible(value: str | None, left: Sequence[Gpu]) -> None:
    """In the variable's order, up to the first entry that names none; nothing if one is named twice."""
    assert visible(ALL, value) == tuple(left)


@pytest.mark.parametrize(
    ("wanted", "chosen"), [("auto", ALL), ((), ()), ([2, 0], (C, A)), (["1"], (B,)), (["GPU-cc", 0], (C, A))]
)
def test_what_is_chosen(wanted: Any, chosen: Sequence[Gpu]) -> None:
    """All, or those that are named by an index or a UUID, in this order."""
    assert choose(wanted, ALL) == tuple(chosen)


def test_a_gpu_is_taken_as_it_is() -> None:
    """Also one that does not exist, which simulates one."""
    simulated = Gpu(uuid="GPU-simulated")
    assert choose([simulated], ()) == (simulated,)


@pytest.mark.parametrize("wanted", ["0", "GPU-cccc3333", [9], ["GPU-none"], ["GPU-aaaa"], [-1], [0, "GPU-aaaa1111"]])
def test_what_makes_no_sense_is_refused(wanted: Any) -> None:
    """No GPU of this name, one that is named twice, and a name where a list belongs."""
    with pytest.raises(ConfigurationError):
        choose(wanted, ALL)


def test_the_error_names_those_that_there_are() -> None:
    """So that the right name can be copied."""
    with pytest.raises(ConfigurationError, match=r"no GPU 7 here.* 2 \(NVIDIA H200, GPU-cccc3333"):
        choose([7], ALL)


class NVMLError(Exception):
    """What NVML raises."""


class Nvml:
    """A machine's NVML: its GPUs, each with its parts if it is divided."""

    NVMLError = NVMLError

    def __init__(self, *machine: dict[str, Any] | None, driver: bool = True) -> None:
        self._machine = machine
        self._driver = driver
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's name, as those below
        if not self._driver:
            raise NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> bytes:  # noqa: N802
        assert self.open
        return b"535.183.01"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self._machine)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:  # noqa: N802
        if (found := self._machine[index]) is None:
            raise NVMLError("GPU is lost")
        return found

    def nvmlDeviceGetUUID(self, handle: dict[str, Any]) -> str:  # noqa: N802
        return str(handle["uuid"])

    def nvmlDeviceGetName(self, handle: dict[str, Any]) -> str:  # noqa: N802
        return "NVIDIA A100"

    def nvmlDeviceGetPciInfo(self, handle: dict[str, Any]) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(busId="00000000:3B:00.0")

    def nvmlDeviceGetMigMode(self, handle: dict[str, Any]) -> list[int]:  # noqa: N802
        if "parts" not in handle:
            raise NVMLError("Not Supported")
        return [handle["parts"] is not None] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: dict[str, Any]) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: dict[str, Any], place: int) -> dict[str, Any]:  # noqa: N802
        if place >= len(handle["parts"]):
            raise NVMLError("Not Found")
        return {"uuid": handle["parts"][place]}


def test_what_nvml_lists() -> None:
    """Each GPU, or the parts of one that is divided; one that fell off the bus is left out. NVML is shut down."""
    nvml = Nvml(
        {"uuid": "GPU-0"}, {"uuid": "GPU-1", "parts": None}, None, {"uuid": "GPU-3", "parts": ["MIG-a", "MIG-b"]}
    )
    found = read_gpus(nvml)
    assert [(gpu.index, gpu.uuid) for gpu in found] == [(0, "GPU-0"), (1, "GPU-1"), (3, "MIG-a"), (3, "MIG-b")]
    assert {(gpu.name, gpu.driver, gpu.pci) for gpu in found} == {("NVIDIA A100", "535.183.01", "0000:3b:00.0")}
    assert nvml.open == 0


def test_without_a_driver_there_is_none() -> None:
    """As on most machines."""
    assert read_gpus(Nvml({"uuid": "GPU-0"}, driver=False)) == ()
