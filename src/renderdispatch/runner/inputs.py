"""How do the files beside the audio come to disk?

Each by its own URL, or out of a bundle that holds several of them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TypeVar

from renderdispatch.errors import RenderError
from renderdispatch.messages import Asset, HelperOrder, RenderOrder
from renderdispatch.plumbing.bundles import unpack
from renderdispatch.runner.in_place import check_asset_unchanged
from renderdispatch.runner.transfers import Input, Transfers

_Order = TypeVar("_Order", RenderOrder, HelperOrder)


def with_assets(order: _Order, transfers: Transfers, folder: Path) -> _Order:
    """Bring the files beside the audio to disk; return the order as renderers see it.

    Raises:
        RenderDispatchError: As `Transfers.download`; ``bundle.invalid``.
    """
    bundle = order.bundle and _brought(transfers, order.bundle, "bundle", folder / "bundle")

    def brought(asset: Asset, what: Input, place: str) -> Asset:
        into = folder / place
        if bundle is None or asset.url:
            return _brought(transfers, asset, what, into)
        try:
            unpack(Path(bundle.path or ""), place, into, size=asset.size)
        except ValueError as error:
            raise RenderError(f"the scene's files cannot be unpacked: {error}", code="bundle.invalid") from None
        return asset.model_copy(update={"path": str(into)})

    images = [brought(image, "image", f"image_{number}") for number, image in enumerate(order.images, start=1)]
    files = {
        "cover": order.cover and brought(order.cover, "cover", "cover"),
        "scene_file": order.scene_file and brought(order.scene_file, "scene-file", "scene_file"),
        "images": tuple(images),
    }
    return order.without_secrets().model_copy(update=files)


def _brought(transfers: Transfers, asset: Asset, what: Input, into: Path) -> Asset:
    """Bring a file to disk; return it as renderers see it."""
    found = transfers.download(asset.url, into, size=asset.size, moved=lambda _done: None, what=what)
    if found != into:
        shutil.copyfile(found, into)
        check_asset_unchanged(found, asset, what)  # after the copy, so that what was checked is what is drawn
    return asset.model_copy(update={"url": "", "path": str(into)})
