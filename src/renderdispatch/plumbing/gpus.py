"""Which of NVIDIA's GPUs may this process use?

NVML lists those of the machine, or of the container; ``CUDA_VISIBLE_DEVICES`` may leave some out, and then does for
everything here as well. NVML is shut down after each list: a process that forks must not hand it to its children.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from attrs import evolve, frozen

from renderdispatch.errors import ConfigurationError

_log: Final = logging.getLogger("renderdispatch.gpus")

VISIBLE: Final = "CUDA_VISIBLE_DEVICES"


@frozen(kw_only=True)
class Gpu:
    """A GPU, or a part of one (MIG) that works as one.

    Args:
        uuid: ``GPU-`` or ``MIG-``, and 32 hexadecimal digits in groups.
        index: Of the whole GPU, as ``nvidia-smi`` counts: by the place on the bus.
        name: Such as ``NVIDIA L4``.
        driver: The driver's version, such as ``535.183.01``.
        pci: The place on the bus, as Linux writes it: ``0000:3b:00.0``; None if it is not known.
    """

    uuid: str
    index: int = 0
    name: str = ""
    driver: str = ""
    pci: str | None = None


def gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that this process may use, in CUDA's order; none without NVIDIA's driver or ``nvidia-ml-py``."""
    try:
        import pynvml
    except ModuleNotFoundError:
        if any(Path("/dev").glob("nvidia[0-9]*")):
            _log.warning("the GPUs of this machine are not counted: nvidia-ml-py is missing (renderdispatch[gl])")
        return ()
    return visible(read_gpus(pynvml), os.environ.get(VISIBLE))


def read_gpus(nvml: Any) -> tuple[Gpu, ...]:
    """Return the GPUs that NVML lists; none where there is no driver.

    Args:
        nvml: The module ``pynvml``.
    """
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:  # NVMLError_LibraryNotFound on most machines
        return ()
    try:
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        return tuple(gpu for index in range(nvml.nvmlDeviceGetCount()) for gpu in _read(nvml, index, driver))
    except nvml.NVMLError as error:
        _log.warning("the GPUs of this machine are not counted: NVML says %s", error)
        return ()
    finally:
        nvml.nvmlShutdown()


def _read(nvml: Any, index: int, driver: str) -> Iterator[Gpu]:
    """Yield the GPU with this index, or its parts; nothing for one that fell off the bus."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        gpu = Gpu(
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            index=index,
            name=_text(nvml.nvmlDeviceGetName(handle)),
            driver=driver,
            pci=_place(_text(nvml.nvmlDeviceGetPciInfo(handle).busId)),
        )
    except nvml.NVMLError as error:
        _log.warning("GPU %d is left out: NVML says %s", index, error)
        return
    if _is_divided(nvml, handle):
        yield from (evolve(gpu, uuid=uuid) for uuid in _read_parts(nvml, handle))
    else:
        yield gpu


def _is_divided(nvml: Any, handle: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    except nvml.NVMLError:  # most GPUs cannot be
        return False


def _read_parts(nvml: Any, handle: Any) -> Iterator[str]:
    """Yield the UUIDs of the parts of a divided GPU (MIG), which alone can be used then."""
    for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            yield _text(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)))
        except nvml.NVMLError:  # there are fewer than the most
            continue


def _place(place: str) -> str:
    """Return a place on the bus as Linux writes it: NVML's domain has eight digits, Linux's four."""
    domain, _, rest = place.lower().partition(":")
    return f"{domain[-4:]}:{rest}"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # bytes before version 11.495


def visible(found: Sequence[Gpu], value: str | None) -> tuple[Gpu, ...]:
    """Return the GPUs that a value of ``CUDA_VISIBLE_DEVICES`` leaves, in its order, as CUDA reads it.

    It holds indexes, or UUIDs or their unambiguous beginnings. The first entry that names no GPU hides all from there
    on, so that ``""`` and ``-1`` hide all; so does a GPU that is named twice.
    https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#cuda-environment-variables

    Args:
        found: All GPUs.
        value: The variable's; None: it is not set.
    """
    if value is None:
        return tuple(found)
    left: list[Gpu] = []
    kind = _kind(value)
    for entry in (part.strip() for part in value.split(",")):
        gpu = _named(found, entry) if _kind(entry) == kind else None
        if gpu is None:
            break
        if gpu in left:
            return ()
        left.append(gpu)
    return tuple(left)


def _kind(entry: str) -> str:
    """Return how an entry names a GPU: CUDA takes no list of both."""
    return next((kind for kind in ("GPU-", "MIG-") if entry.strip().upper().startswith(kind)), "index")


def _named(found: Sequence[Gpu], name: str) -> Gpu | None:
    if re.fullmatch(r"[0-9]+", name):
        return next((gpu for gpu in found if gpu.index == int(name)), None)
    if _kind(name) == "index":
        return None
    exact = [gpu for gpu in found if gpu.uuid.lower() == name.lower()]
    matching = exact or [gpu for gpu in found if gpu.uuid.lower().startswith(name.lower())]
    return matching[0] if len(matching) == 1 else None


def choose(wanted: Literal["auto"] | Sequence[int | str | Gpu], found: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Return the GPUs that are wanted.

    Args:
        wanted: ``auto``: all. Otherwise indexes as ``nvidia-smi`` counts, UUIDs or their beginnings. A `Gpu` is taken
            as it is, known or not.
        found: All that there are.

    Raises:
        ConfigurationError: A GPU is named that does not exist, or one is named twice.
    """
    if wanted == "auto":
        return tuple(found)
    if isinstance(wanted, str):
        raise ConfigurationError(f"gpus must be 'auto' or a list of indexes and UUIDs, not {wanted!r}")
    chosen: list[Gpu] = []
    for each in wanted:
        gpu = each if isinstance(each, Gpu) else _named(found, str(each))
        if gpu is None:
            known = ", ".join(f"{gpu.index} ({gpu.name}, {gpu.uuid})" for gpu in found) or "none"
            raise ConfigurationError(f"there is no GPU {each!r} here; those of this process are: {known}")
        if any(gpu.uuid == other.uuid for other in chosen):
            raise ConfigurationError(f"GPU {each!r} is named twice")
        chosen.append(gpu)
    return tuple(chosen)
