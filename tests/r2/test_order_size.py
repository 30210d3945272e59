"""Does the order stay within what a remote call takes, and is there nothing in it that should not leave?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from renderdispatch import RenderService, StorageKey
from renderdispatch.engine import layout
from renderdispatch.messages import MAX_IMAGES, MAX_ORDER_BYTES, MAX_PARAMS_BYTES, RenderOrder
from renderdispatch.plumbing.bundles import unpack
from renderdispatch.protocols import BackendCall, CallState, CallStatus, Locality, OnEvent
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing.local_r2 import LocalR2

MASTER = "whsec_" + "QUJD" * 8
SONG = b"RIFF" * 16_000
"""Long enough that its segments are kept, so that orders have one URL more."""


class Keeping:
    """A backend far away that keeps the orders."""

    locality = Locality.WORLD
    slots = None

    def __init__(self) -> None:
        self.orders: list[RenderOrder] = []

    def start(self, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
        self.orders.append(order)
        return BackendCall("call")

    def poll(self, call: BackendCall) -> CallState:
        return CallState(status=CallStatus.RUNNING)

    def cancel(self, call: BackendCall) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def far(r2: LocalR2) -> Iterator[tuple[RenderService, Keeping]]:
    """A service with everything as long as it may be: tenants, keys, the webhook's URL."""
    backend = Keeping()
    storage = r2.storage(prefix="p" * 200)
    url = "https://" + "app." * 40 + "example.com/hooks/" + "x" * 200
    with RenderService(
        MemoryJobStore(), storage, backend, secrets=[MASTER], webhook_url=url, worker=False, owned=[storage]
    ) as service:
        yield service, backend


def test_the_longest_order_fits(far: tuple[RenderService, Keeping]) -> None:
    """With a long prefix, a long tenant, parameters at their limit and a long webhook, an order is at most 8 KiB."""
    service, backend = far
    params = {"text": "x" * (MAX_PARAMS_BYTES - 11)}
    service.for_tenant("t" * 64).submit(SONG, scene="s" * 64, params=params)
    service.tick()
    size = len(backend.orders[0].model_dump_json())
    assert MAX_ORDER_BYTES / 2 < size <= MAX_ORDER_BYTES


def test_the_longest_song_fits(far: tuple[RenderService, Keeping], tmp_path: Path) -> None:
    """So does one with long names, a cover and a poster, with parameters of a usual size; long ones name no file."""
    service, backend = far
    cover = tmp_path / "cover.png"
    cover.write_bytes(b"\x89PNG\r\n\x1a\n")
    tenant = service.for_tenant("t" * 64)
    for title in ("x", "x" * 200, "é" * 150, "日" * 100):
        song: dict[str, Any] = {"title": title, "artist": title, "params": {"text": "x" * 100}}
        tenant.submit(SONG, scene="s" * 64, cover=cover, poster=True, **song)
    service.tick()
    sizes = [len(order.model_dump_json().encode()) for order in backend.orders]
    assert len(sizes) == 4
    assert max(sizes) <= MAX_ORDER_BYTES, sizes
    named = {order.video.put.headers["content-disposition"] for order in backend.orders}
    assert named >= {'inline; filename="x - x.mp4"', 'inline; filename="video.mp4"'}


def files_of_a_scene(folder: Path) -> dict[str, Any]:
    """Return a cover, a Shadertoy file and as many images as there may be, for `submit`."""
    pictures = [folder / f"{name}.png" for name in ("cover", "rocks", "clouds", "waves")]
    for picture in pictures:
        picture.write_bytes(b"\x89PNG\r\n\x1a\n" + picture.name.encode())
    shader = folder / "my waves.glsl"
    shader.write_text("void mainImage(out vec4 colour, in vec2 place) { colour = vec4(1.0); }")
    return {"scene": shader, "cover": pictures[0], "images": pictures[1:], "poster": True}


def test_a_scene_with_all_its_files_fits(r2: LocalR2, tmp_path: Path) -> None:
    """With names of a usual length each file has a URL of its own."""
    backend, storage = Keeping(), r2.storage(prefix="production/renders")
    url = "https://app.example.com/hooks/renderdispatch"
    with RenderService(
        MemoryJobStore(), storage, backend, secrets=[MASTER], webhook_url=url, worker=False, owned=[storage]
    ) as service:
        service.for_tenant("acme").submit(SONG, title="The title of a song", **files_of_a_scene(tmp_path))
        service.tick()
    (order,) = backend.orders
    assert order.bundle is None
    assert order.pieces is not None
    assert order.scene_file is not None and order.cover is not None and len(order.images) == MAX_IMAGES
    assert all(asset.url for asset in (order.scene_file, order.cover, *order.images))
    assert len(order.model_dump_json().encode()) <= MAX_ORDER_BYTES


def test_many_files_with_long_names_travel_as_one(far: tuple[RenderService, Keeping], tmp_path: Path) -> None:
    """Where their URLs would not fit, there is one archive of them under the job's prefix; the order is small again."""
    service, backend = far
    tenant = service.for_tenant("t" * 64)
    song: dict[str, Any] = {"title": "x" * 200, "artist": "日" * 100}
    handle = tenant.submit(SONG, **song, **files_of_a_scene(tmp_path))
    service.tick()
    (order,) = backend.orders
    assert len(order.model_dump_json().encode()) <= MAX_ORDER_BYTES
    assert order.bundle is not None and order.scene_file is not None and order.cover is not None
    assert {asset.url for asset in (order.scene_file, order.cover, *order.images)} == {""}
    assert order.scene_file.name == "my waves.glsl"
    archive = tmp_path / "bundle.zip"
    archive.write_bytes(httpx.get(order.bundle.url, trust_env=False).content)
    for place, asset in (("cover", order.cover), ("scene_file", order.scene_file), ("image_3", order.images[2])):
        unpack(archive, place, tmp_path / place, size=asset.size)
    assert (tmp_path / "image_3").read_bytes().endswith(b"waves.png")
    prefix = layout.prefix_of(handle.job)
    kept = sorted(info.key.removeprefix(prefix)[:5] for info in service._engine.parts.storage.list(prefix))
    assert kept == ["audio", "bundl", "cover", "image", "image", "image", "scene"]


def test_an_order_that_does_not_fit_is_told(far: tuple[RenderService, Keeping], r2: LocalR2) -> None:
    """A storage key that makes the order too long fails the job for good, before anything is sent."""
    service, backend = far
    key = "é" * 400
    storage = r2.storage(prefix="p" * 200)
    storage.put(key, SONG)
    handle = service.submit(StorageKey(key), scene="bars", params={"text": "x" * 2000})
    service.tick()
    storage.close()
    error = handle.job.error
    assert error is not None
    assert error.code == "order.too-large"
    assert len(handle.job.attempts) == 1
    assert not backend.orders


def test_no_secret_leaves_but_the_attempts_own(far: tuple[RenderService, Keeping], r2: LocalR2) -> None:
    """An order holds neither the master secret nor a storage credential; its key is another for each attempt."""
    service, backend = far
    for _ in range(2):
        service.submit(SONG, scene="bars")
    service.tick()
    orders = [order.model_dump_json() for order in backend.orders]
    for order in orders:
        assert MASTER not in order
        assert MASTER.removeprefix("whsec_") not in order
        assert r2.secret_access_key not in order
    keys = {json.loads(order)["callback"]["key"] for order in orders}
    assert len(keys) == 2
