"""What does a foreign error mean here, and whose fault was it?"""

from __future__ import annotations

import errno

import pytest

from renderdispatch.errors import (
    AudioError,
    ConfigurationError,
    InvalidRequestError,
    RenderError,
    StorageDeniedError,
    StorageFullError,
    StorageUnavailableError,
)
from renderdispatch.messages import FaultDomain
from renderdispatch.plumbing.failures import Translation, is_disk_full, job_error, translated


def test_a_foreign_error_becomes_ours() -> None:
    """The nearest class of its ancestry counts; its text is out of sight."""
    table: Translation = {
        OSError: lambda _error: StorageUnavailableError("storage is away"),
        PermissionError: lambda _error: StorageDeniedError("refused"),
    }
    with pytest.raises(StorageUnavailableError) as away, translated(table):
        raise ConnectionResetError("https://host/?signature=secret")
    assert away.value.__cause__ is None and away.value.__suppress_context__
    with pytest.raises(StorageDeniedError), translated(table):
        raise PermissionError


def test_the_cause_may_stay_visible() -> None:
    """Where its text is harmless."""
    with (
        pytest.raises(StorageDeniedError) as refused,
        translated({OSError: lambda _: StorageDeniedError("")}, chain=True),
    ):
        raise PermissionError("no")
    assert isinstance(refused.value.__cause__, PermissionError)


def test_the_end_of_an_iterator_is_an_error_like_any_other() -> None:
    """`next` raises it; contextlib gives it a meaning of its own."""
    with (
        pytest.raises(RuntimeError, match="ours"),
        translated({Exception: lambda _: RuntimeError("ours")}, chain=True),
    ):
        next(iter(()))


def test_what_is_in_no_table_passes() -> None:
    """And so does an error that its function returns as it came."""
    with pytest.raises(ZeroDivisionError), translated({OSError: lambda _: StorageDeniedError("")}):
        raise ZeroDivisionError
    mine = OSError("mine")
    with pytest.raises(OSError, match="mine") as passed, translated({OSError: lambda error: error}):
        raise mine
    assert passed.value is mine
    with translated({OSError: lambda _: StorageDeniedError("")}):
        pass


@pytest.mark.parametrize(
    ("error", "code", "fault"),
    [
        (AudioError("noise"), "audio.invalid", FaultDomain.AUDIO),
        (RenderError("odd", code="mine"), "mine", FaultDomain.INFRASTRUCTURE),
        (InvalidRequestError("no"), "request.invalid", FaultDomain.REQUEST),
        (ConfigurationError("no"), "configuration", FaultDomain.REQUEST),
        (StorageFullError("full"), "disk.full", FaultDomain.INFRASTRUCTURE),
        (StorageUnavailableError("away"), "storage.unavailable", FaultDomain.INFRASTRUCTURE),
        (OSError(errno.ENOSPC, "full"), "disk.full", FaultDomain.INFRASTRUCTURE),
        (OSError(errno.EDQUOT, "full"), "disk.full", FaultDomain.INFRASTRUCTURE),
        (MemoryError(), "memory.full", FaultDomain.INFRASTRUCTURE),
        (KeyError("k"), "internal", FaultDomain.INFRASTRUCTURE),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_whose_fault_it_was(error: BaseException, code: str, fault: FaultDomain) -> None:
    """An error that says so is believed; any other is that of whoever `otherwise` names."""
    found = job_error(error, otherwise=FaultDomain.INFRASTRUCTURE)
    assert (found.code, found.fault) == (code, fault)


def test_an_unknown_error_while_a_scene_renders() -> None:
    """It is the scene's, with the name of its class."""
    found = job_error(KeyError("k"), otherwise=FaultDomain.SCENE)
    assert (found.code, found.message, found.fault) == ("scene.failed", "KeyError: 'k'", FaultDomain.SCENE)
    assert job_error(KeyError(), otherwise=FaultDomain.SCENE).message == "KeyError"


def test_a_full_disk() -> None:
    """A disk without space, or one on which this user may write no more."""
    assert is_disk_full(OSError(errno.EDQUOT, ""))
    assert not is_disk_full(OSError("full"))
