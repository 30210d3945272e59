"""Is a song, or another file, that is read in place still the one that was submitted?

A song is checked before a render begins and when the renderer has read it. Changes after that do not matter. A file
that was removed meanwhile did not change: a renderer that had it open read it to its end, and another one failed. Other
files are small: the renderer gets copies, and each file is checked once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from renderdispatch.errors import AudioError, InvalidRequestError
from renderdispatch.messages import Asset, RenderOrder
from renderdispatch.protocols import Renderer, Report, SupportsReadAhead


@contextmanager
def checked(renderer: Renderer, order: RenderOrder, audio: Path, report: Report) -> Iterator[Report]:
    """Yield the report for a render; it and the end of the block check the song.

    Raises:
        AudioError: ``audio.changed``.
    """
    ahead = isinstance(renderer, SupportsReadAhead) and renderer.reads_audio_first
    drawing = False

    def reported(frames: int, total: int) -> None:
        nonlocal drawing
        if ahead and frames > 0 and not drawing:
            drawing = True
            check_unchanged(audio, order)
        report(frames, total)

    try:
        yield reported
    except AudioError:  # a changed file may well be one that cannot be decoded
        check_unchanged(audio, order)
        raise
    if not drawing:
        check_unchanged(audio, order)


def check_unchanged(audio: Path, order: RenderOrder) -> None:
    """Check a file that is read in place.

    Raises:
        AudioError: ``audio.changed``.
    """
    if _changed(audio, order.audio_size, order.audio_mtime_ns):
        raise AudioError(f"{audio.name} changed since submit; submit it again", code="audio.changed")


def check_asset_unchanged(path: Path, asset: Asset, what: str) -> None:
    """Check a file that was copied from where it is.

    Raises:
        InvalidRequestError: ``cover.changed``, or the like for another input.
    """
    if _changed(path, asset.size, asset.mtime_ns):
        raise InvalidRequestError(f"{path.name} changed since submit; submit it again", code=f"{what}.changed")


def _changed(path: Path, size: int, mtime_ns: int | None) -> bool:
    if mtime_ns is None:
        return False
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return (found.st_size, found.st_mtime_ns) != (size, mtime_ns)
