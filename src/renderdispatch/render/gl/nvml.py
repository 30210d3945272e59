"""Which GPUs does NVIDIA's driver list?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from attrs import frozen


@frozen(kw_only=True)
class NvidiaGpu:
    """A GPU, as NVIDIA's driver names it.

    Args:
        index: As ``nvidia-smi`` counts: by the place on the bus.
        uuid: ``GPU-`` and 32 hexadecimal digits in groups.
        name: Such as ``NVIDIA L4``.
        pci: The place on the bus, as Linux writes it: ``0000:3b:00.0``; None if it is not known.
        driver: The driver's version, such as ``535.183.01``.
    """

    index: int
    uuid: str
    name: str
    pci: str | None = None
    driver: str = ""


def list_gpus() -> tuple[NvidiaGpu, ...]:
    """Return the GPUs of NVIDIA's driver; none where there is no driver, or ``nvidia-ml-py`` is not installed."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return ()
    try:
        with _session():
            driver = _text(pynvml.nvmlSystemGetDriverVersion())
            return tuple(_describe(index, driver) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError:  # NVMLError_LibraryNotFound on most machines
        return ()


@contextmanager
def _session() -> Iterator[None]:
    import pynvml

    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _describe(index: int, driver: str) -> NvidiaGpu:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    place = _text(pynvml.nvmlDeviceGetPciInfo(handle).busId)
    return NvidiaGpu(
        index=index,
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        pci=linux_place(place),
        driver=driver,
    )


def linux_place(place: str) -> str:
    """Return a place on the bus as Linux writes it: NVML's domain has eight digits, Linux's four."""
    domain, _, rest = place.lower().partition(":")
    return f"{domain[-4:]}:{rest}"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # bytes before version 11.495
