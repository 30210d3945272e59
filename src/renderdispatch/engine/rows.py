"""What does an application submit?

A `Submission` holds the arguments of one `RenderService.submit`, so that `submit_many` takes many of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from itertools import islice
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen
from pydantic import JsonValue

from renderdispatch.engine.attachments import AttachmentSource
from renderdispatch.engine.audio import AudioSource
from renderdispatch.engine.intake import read_images, read_scene
from renderdispatch.errors import InvalidRequestError
from renderdispatch.messages import MAX_IMAGES, Limits, Output, read_output

MAX_ROWS: Final = 10_000
"""How many rows one `submit_many` takes: they are one transaction."""


def _held(images: Iterable[AttachmentSource]) -> Iterable[AttachmentSource]:
    """Return images that can be read twice; one too many of an iterator's, as what refuses them needs no more."""
    return tuple(islice(images, MAX_IMAGES + 1)) if isinstance(images, Iterator) else images


@frozen
class Submission:
    """A render to submit: the arguments of `RenderService.submit`, which says what each of them is."""

    audio: AudioSource = field(repr=False)
    scene: str | Path = field(default="bars", kw_only=True)
    params: Mapping[str, JsonValue] | None = field(default=None, kw_only=True)
    output: Output | str = field(default="flat-1080p-landscape", kw_only=True)
    start: float = field(default=0, kw_only=True)
    duration: float | None = field(default=None, kw_only=True)
    audio_track: int | None = field(default=None, kw_only=True)
    title: str | None = field(default=None, kw_only=True)
    artist: str | None = field(default=None, kw_only=True)
    cover: AttachmentSource | None = field(default=None, kw_only=True)
    images: Iterable[AttachmentSource] = field(default=(), kw_only=True, converter=_held)
    poster: bool = field(default=False, kw_only=True)
    backend: str | None = field(default=None, kw_only=True)
    require_gpu: bool = field(default=False, kw_only=True)
    parallel: int = field(default=1, kw_only=True)
    limits: Limits | None = field(default=None, kw_only=True)
    priority: int = field(default=0, kw_only=True)
    metadata: Mapping[str, JsonValue] | None = field(default=None, kw_only=True)
    idempotency_key: str | None = field(default=None, kw_only=True, repr=False)

    def files(self) -> dict[str, AttachmentSource]:
        """Return the files beside the audio, by the names of `RenderRequest.attached`.

        Raises:
            InvalidRequestError: The scene or the images are not what they may be.
        """
        beside = {"cover": self.cover, "scene_file": read_scene(self.scene)[1]}
        return {place: source for place, source in beside.items() if source is not None} | read_images(self.images)

    def fields(self) -> dict[str, Any]:
        """Return the fields of the request, without its files and its backend.

        Raises:
            InvalidRequestError: The scene or the output is not what it may be.
        """
        return {
            "scene": read_scene(self.scene)[0],
            "params": {} if self.params is None else self.params,
            "output": read_output(self.output),
            "start": self.start,
            "duration": self.duration,
            "audio_track": self.audio_track,
            "title": self.title,
            "artist": self.artist,
            "poster": self.poster,
            "require_gpu": self.require_gpu,
            "limits": Limits() if self.limits is None else self.limits,
            "metadata": {} if self.metadata is None else self.metadata,
        }


def read_rows(rows: Iterable[Submission]) -> Iterator[Submission]:
    """Yield the rows, at most `MAX_ROWS`.

    Raises:
        InvalidRequestError: ``batch.too-large``: at once where their number is known, else after the last one allowed.
    """
    message = f"submit_many takes at most {MAX_ROWS:,} rows; submit the rest in further calls with the same batch"
    if isinstance(rows, Sized) and len(rows) > MAX_ROWS:
        raise InvalidRequestError(message, code="batch.too-large")
    for number, row in enumerate(rows):
        if number == MAX_ROWS:
            raise InvalidRequestError(message, code="batch.too-large")
        yield row
