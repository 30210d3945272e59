"""Which of EGL's devices draws, and what is it called?"""

from __future__ import annotations

import pytest

from renderdispatch.plumbing.gpus import Gpu
from renderdispatch.render.gl.devices import EglDevice, class_of, draws_on_gpu, list_devices, order_devices
from tests.support.needs import need_opengl

NVIDIA = frozenset(
    {"EGL_NV_device_cuda", "EGL_EXT_device_drm", "EGL_EXT_device_drm_render_node", "EGL_EXT_device_persistent_id"}
)
OF_MESA = frozenset({"EGL_EXT_device_drm", "EGL_EXT_device_drm_render_node"})
SOFTWARE = frozenset({"EGL_MESA_device_software", "EGL_EXT_device_drm_render_node"})

UUIDS = [f"GPU-{number:08x}-1111-2222-3333-444444444444" for number in range(8)]
PLACES = [f"0000:{17 + 16 * number:02x}:00.0" for number in range(8)]
GPUS = [
    Gpu(index=number, uuid=UUIDS[number], name="NVIDIA L4", pci=PLACES[number], driver="535.183.01")
    for number in range(8)
]
OTHER_ORDER = [3, 2, 1, 0, 7, 6, 5, 4]
"""EGL's order of eight GPUs, by their place on the bus."""


def nvidia(index: int, gpu: int, *, uuid: bool = True, pci: bool = True, cuda: bool = True) -> EglDevice:
    """A device of NVIDIA's, as more or less of it is told."""
    return EglDevice(
        index=index,
        extensions=NVIDIA,
        uuid=UUIDS[gpu] if uuid else None,
        pci=PLACES[gpu] if pci else None,
        cuda=gpu if cuda else None,
    )


def mesa(index: int, pci: str | None = None) -> EglDevice:
    return EglDevice(index=index, extensions=OF_MESA, pci=pci)


def software(index: int) -> EglDevice:
    return EglDevice(index=index, extensions=SOFTWARE)


ONE = [nvidia(0, 0), mesa(1, PLACES[0]), software(2)]
"""What a machine with one GPU lists: Mesa offers the same one, and fails to open it."""

EIGHT = [*(nvidia(index, gpu) for index, gpu in enumerate(OTHER_ORDER)), software(8)]


def order(devices: list[EglDevice], gpus: list[Gpu] = GPUS, **environment: str) -> list[int]:
    return [device.index for device in order_devices(devices, environment, gpus)]


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ([], []),
        ([software(0)], [0]),
        (ONE, [0, 1, 2]),
        ([software(0), mesa(1), nvidia(2, 0)], [2, 1, 0]),
        (EIGHT, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ([mesa(0), software(1)], [0, 1]),
    ],
    ids=["none", "llvmpipe", "one", "any order", "eight", "mesa"],
)
def test_gpus_are_tried_before_the_cpu(devices: list[EglDevice], expected: list[int]) -> None:
    """NVIDIA's first, then those of Mesa, and llvmpipe last, in whatever order EGL lists them."""
    assert order(devices) == expected


@pytest.mark.parametrize("known", [{}, {"uuid": False}, {"uuid": False, "pci": False}], ids=["uuid", "pci", "cuda"])
@pytest.mark.parametrize("gpu", range(8))
def test_the_chosen_gpu_alone_draws(gpu: int, known: dict[str, bool]) -> None:
    """By UUID or index, recognised by what the driver tells. The other GPUs belong to other renders."""
    devices = [*(nvidia(index, there, **known) for index, there in enumerate(OTHER_ORDER)), mesa(8), software(9)]
    expected = [OTHER_ORDER.index(gpu), 9]
    assert order(devices, RENDERDISPATCH_GPU=UUIDS[gpu]) == expected
    assert order(devices, RENDERDISPATCH_GPU=str(gpu), CUDA_VISIBLE_DEVICES="5") == expected


def test_a_chosen_gpu_is_found_without_its_drivers_list() -> None:
    """EGL's own UUID, or CUDA's number of the device, are enough."""
    assert order(EIGHT, [], RENDERDISPATCH_GPU=UUIDS[6]) == [5, 8]
    assert order(EIGHT, [], RENDERDISPATCH_GPU="6") == [5, 8]
    assert order(EIGHT, [], CUDA_VISIBLE_DEVICES=f"6,{UUIDS[0]},-1,2") == [5, 3, 8]


def test_a_gpu_that_is_not_there_is_not_replaced_by_another() -> None:
    """A wrong name leaves the CPU; but a driver that does not say which GPU is which has the benefit of the doubt."""
    assert order(EIGHT, RENDERDISPATCH_GPU="GPU-ffffffff-0000") == [8]
    unknown = nvidia(0, 0, uuid=False, pci=False, cuda=False)
    assert order([unknown, software(1)], RENDERDISPATCH_GPU=UUIDS[0]) == [0, 1]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("2", [1]),
        ("6,0", [5, 3]),
        (UUIDS[1], [2]),
        (UUIDS[1][:12], [2]),
        ("1,-1,2", [2]),
        ("", []),
        ("-1", []),
        ("MIG-41b35e04", []),
    ],
)
def test_cudas_choice_is_egls(visible: str, expected: list[int]) -> None:
    """``CUDA_VISIBLE_DEVICES`` says which of NVIDIA's GPUs draw, first things first; those of Mesa are not CUDA's."""
    devices = [*EIGHT[:-1], mesa(8), software(9)]
    assert order(devices, CUDA_VISIBLE_DEVICES=visible) == [*expected, 8, 9]


def test_this_machines_devices_are_listed() -> None:
    """Each with its extensions; where there is no GPU, llvmpipe is one."""
    need_opengl()
    devices = list_devices()
    assert [device.index for device in devices] == list(range(len(devices)))
    assert all(device.extensions for device in devices)


RECORDED = [
    ("NVIDIA L4/PCIe/SSE2", "4.6.0 NVIDIA 535.183.01", "nvidia-l4-535.183.01"),
    ("Tesla T4/PCIe/SSE2", "4.6.0 NVIDIA 525.60.13", "nvidia-tesla-t4-525.60.13"),
    ("NVIDIA GeForce RTX 3090/PCIe/SSE2", "4.6.0 NVIDIA 550.54.15", "nvidia-rtx-3090-550.54.15"),
    ("NVIDIA A100-SXM4-40GB/PCIe/SSE2", "4.6.0 NVIDIA 535.104.05", "nvidia-a100-sxm4-40gb-535.104.05"),
    (
        "AMD Radeon RX 6800 XT (radeonsi, navi21, LLVM 15.0.7, DRM 3.54, 6.5.0-14-generic)",
        "4.6 (Core Profile) Mesa 23.2.1-1ubuntu3.1",
        "amd-radeon-rx-6800-xt-navi21-mesa-23.2.1-llvm-15.0.7",
    ),
    (
        "AMD Radeon Graphics (radeonsi, renoir, ACO, DRM 3.59, 6.12.0)",
        "4.6 (Core Profile) Mesa 25.0.7-2",
        "amd-radeon-graphics-renoir-mesa-25.0.7",
    ),
    (
        "Mesa Intel(R) UHD Graphics 620 (KBL GT2)",
        "4.6 (Core Profile) Mesa 22.3.6",
        "intel-uhd-graphics-620-kbl-gt2-mesa-22.3.6",
    ),
    (
        "Mesa DRI Intel(R) HD Graphics 630 (KBL GT2)",
        "4.6 (Core Profile) Mesa 20.0.8",
        "intel-hd-graphics-630-kbl-gt2-mesa-20.0.8",
    ),
    ("llvmpipe (LLVM 15.0.6, 256 bits)", "4.5 (Core Profile) Mesa 22.3.6", "llvmpipe-22.3.6-llvm-15.0.6"),
    ("llvmpipe (LLVM 11.0.1, 128 bits)", "4.5 (Core Profile) Mesa 20.3.5", "llvmpipe-20.3.5-llvm-11.0.1"),
    ("llvmpipe (LLVM 19.1.7, 512 bits)", "4.5 (Core Profile) Mesa 25.0.7-2", "llvmpipe-25.0.7-llvm-19.1.7"),
    ("softpipe", "3.3 (Core Profile) Mesa 22.3.6", "softpipe-22.3.6"),
]


@pytest.mark.parametrize(("renderer", "version", "expected"), RECORDED, ids=[each[2] for each in RECORDED])
def test_a_class_names_device_and_versions(renderer: str, version: str, expected: str) -> None:
    """What frames depend on is in it, and nothing else: no kernel, no bus, no width of vectors."""
    assert class_of(renderer, version, held=True) == expected
    assert draws_on_gpu(renderer) is not expected.startswith(("llvmpipe", "softpipe"))


def test_llvmpipe_without_avx_promises_nothing() -> None:
    """Its frames differ from those of the class, and the class of a GPU does not depend on the processor."""
    assert class_of("llvmpipe (LLVM 15.0.6, 128 bits)", "4.5 Mesa 22.3.6", held=False).endswith("-15.0.6-unheld")
    assert class_of("NVIDIA L4/PCIe/SSE2", "4.6.0 NVIDIA 535.183.01", held=False) == "nvidia-l4-535.183.01"


def test_long_names_stay_apart() -> None:
    """A class of three parts has at most 100 characters, and no two GPUs share one."""
    names = [f"NVIDIA RTX PRO 6000 Blackwell {kind} Edition/PCIe/SSE2" for kind in ("Server", "Workstation")]
    classes = [class_of(name, "4.6.0 NVIDIA 575.57.08", held=True) for name in names]
    assert len(set(classes)) == len(names)
    for name in classes:
        assert len(f"cpu-x86-64-unheld+{name}+{name.replace('nvidia', 'nvenc')}") <= 100
