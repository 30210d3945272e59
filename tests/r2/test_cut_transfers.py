"""Does every transfer that is cut leave a whole object, or none, and no upload open?"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest
from attrs import frozen

from renderdispatch.errors import ObjectExistsError, ObjectNotFoundError, RenderError, StorageError
from renderdispatch.plumbing.stop import Stop
from renderdispatch.runner.transfers import Transfers, open_transfers
from renderdispatch.storage.r2 import PART_BYTES, R2Storage
from renderdispatch.testing.local_r2 import FaultKind, LocalR2
from tests.support.lengths import lengths

_HOUR: Final = timedelta(hours=1)
_STALL_S: Final = 0.5
_SMALL: Final = hashlib.shake_128(b"song").digest(3_000_000)
_LARGE: Final = hashlib.shake_128(b"video").digest(PART_BYTES + 1_500_000)
_KINDS: Final[tuple[FaultKind, ...]] = ("reset", "stall", "500", "503", "403")


@pytest.fixture
def storage(r2: LocalR2) -> Iterator[R2Storage]:
    """An R2 storage that does not wait long for what stands still."""
    storage = r2.storage(stall_s=_STALL_S)
    yield storage
    storage.close()


@frozen
class Cut:
    """Where a transfer is cut: the next ``times`` requests by ``method``, after some bytes of the body."""

    transfer: str
    kind: FaultKind
    method: str
    after_bytes: int
    times: int

    @classmethod
    def drawn(cls, transfer: str, chance: random.Random) -> Cut:
        method, size = _METHODS[transfer](chance)
        return cls(transfer, chance.choice(_KINDS), method, chance.randrange(size), chance.choice((1, 1, 1, 2)))


@frozen
class Place:
    """Where one transfer goes: a key of its own, and files to read from and write to."""

    storage: R2Storage
    transfers: Transfers
    key: str
    folder: Path


def _put(place: Place) -> bytes:
    place.storage.put(place.key, _SMALL)
    return _SMALL


def _put_once(place: Place) -> bytes:
    place.storage.put(place.key, _SMALL, if_absent=True)
    return _SMALL


def _put_parts(place: Place) -> bytes:
    place.storage.put(place.key, (_LARGE[at : at + 700_001] for at in range(0, len(_LARGE), 700_001)))
    return _LARGE


def _upload(place: Place) -> bytes:
    path = place.folder / "video"
    path.write_bytes(_SMALL)
    signed = place.storage.sign_put(place.key, expires_in=_HOUR, content_type="video/mp4", size=len(_SMALL))
    with suppress(ObjectExistsError):  # an earlier try came through, and its response was lost: it is compared below
        place.transfers.upload(signed, path, moved=lambda _: None)
    return _SMALL


def _read(place: Place) -> bytes:
    with place.storage.open(place.key) as file:
        return file.read()


def _download(place: Place) -> bytes:
    url = place.storage.sign_get(place.key, expires_in=_HOUR)
    path = place.transfers.download(url, place.folder / "song", size=len(_SMALL), moved=lambda _: None)
    return path.read_bytes()


_WRITING: Final = {"put": _put, "put-once": _put_once, "put-parts": _put_parts, "upload": _upload}
_READING: Final = {"open": _read, "download": _download}
_TRANSFERS: Final[dict[str, Callable[[Place], bytes]]] = {**_WRITING, **_READING}

_METHODS: Final[dict[str, Callable[[random.Random], tuple[str, int]]]] = {
    "put": lambda _: ("PUT", len(_SMALL)),
    "put-once": lambda _: ("PUT", len(_SMALL)),
    "put-parts": lambda chance: chance.choice([("PUT", PART_BYTES), ("PUT", PART_BYTES), ("POST", 200)]),
    "upload": lambda _: ("PUT", len(_SMALL)),
    "open": lambda _: ("GET", len(_SMALL)),
    "download": lambda _: ("GET", len(_SMALL)),
}
"""Which request is cut, and how many bytes its body has."""


@pytest.mark.parametrize("cuts", lengths(20, soak=200, timeout_s=1800))
def test_an_object_is_whole_or_not_there(r2: LocalR2, storage: R2Storage, tmp_path: Path, cuts: int, seed: int) -> None:
    """However a transfer is cut, it ends with the whole object or with an error and none; no upload stays open."""
    chance = random.Random(seed)
    whole = 0
    for number in range(cuts):
        cut = Cut.drawn(list(_TRANSFERS)[number % len(_TRANSFERS)], chance)
        with open_transfers(local=False, stop=Stop(timeout_s=60), stall_s=_STALL_S) as transfers:
            place = Place(storage, transfers, f"cut/{number:03}", tmp_path)
            whole += _cut(r2, cut, place, f"seed {seed}, cut {number}: {cut}")
        storage.delete(place.key)
    assert r2.open_uploads() == [], f"seed {seed}"
    assert whole > cuts // 2, f"seed {seed}: {whole} of {cuts} arrived; what can be tried again was not"


def _cut(r2: LocalR2, cut: Cut, place: Place, label: str) -> bool:
    """Carry out the transfer and say whether it succeeded; whatever it did is checked."""
    reading = cut.transfer in _READING
    if reading:
        place.storage.put(place.key, _SMALL)
    r2.fail(cut.kind, method=cut.method, key=place.key, after_bytes=cut.after_bytes, times=cut.times)
    ended = _end(place, cut.transfer)
    assert r2.open_uploads() == [], label
    if isinstance(ended, bytes):
        assert cut.kind != "403", f"{label}: a refusal was tried again"
        assert ended == (_LARGE if cut.transfer == "put-parts" else _SMALL), label
        assert _read(place) == ended, label
        return True
    assert cut.kind == "403", f"{label}: {ended}"
    assert not isinstance(ended, (ObjectNotFoundError, ObjectExistsError)), label
    assert reading or list(place.storage.list(place.key)) == [], label
    return False


def _end(place: Place, transfer: str) -> bytes | Exception:
    """Return what arrived, or why nothing did."""
    try:
        return _TRANSFERS[transfer](place)
    except (StorageError, RenderError) as error:
        return error
