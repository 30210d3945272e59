"""Which song is it: title, artist and cover, by the order or else by the song's own tags?

A song whose tags are broken is rendered without them. FFmpeg reads the tags of most formats when it opens a song, and
passes pictures on as they are. ID3v2 is read here: FFmpeg does not know all of it, and unpacks pictures of any size.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final, cast

from attrs import evolve, field, frozen
from av.container import InputContainer
from av.stream import Disposition

from renderdispatch.errors import InvalidRequestError
from renderdispatch.messages import MAX_TAG, RenderOrder, RenderWarning, shorten
from renderdispatch.render.containers import open_container
from renderdispatch.render.covers import Cover, read_cover
from renderdispatch.render.id3 import Picture, picture_of, read_frames, text_of
from renderdispatch.render.links import Window, id3_chunks, id3_tags, parts_of

_TITLES: Final = ("TIT2", "TT2")
_ARTISTS: Final = ("TPE1", "TP1")
_PICTURES: Final = ("APIC", "PIC")
_FRONT: Final = 3
_MOST_TAGS: Final = 10
_FIRST_PACKETS: Final = 100
"""FFmpeg yields the pictures before the sound."""

_UNSEEN: Final = frozenset({"Cc", "Cs", "Co", "Cn", "Zl", "Zp"})
_DIRECTIONS: Final = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@frozen
class Tags:
    """What a file says of its song; ``cover`` is a picture file."""

    title: str | None = None
    artist: str | None = None
    cover: bytes | None = field(default=None, repr=False)


@frozen(eq=False)
class Song:
    """What is known of a song.

    Args:
        title: In one line.
        artist: In one line.
        cover: Its picture.
        warnings: What was left out.
    """

    title: str | None = None
    artist: str | None = None
    cover: Cover | None = field(default=None, repr=False)
    warnings: tuple[RenderWarning, ...] = ()

    @property
    def tags(self) -> Tags:
        """The tags for the video; the cover is a JPEG."""
        return Tags(self.title, self.artist, None if self.cover is None else self.cover.to_jpeg())


def describe_song(order: RenderOrder, audio: Path) -> Song:
    """Return what is known of a song; what the order says counts more than the song's own tags.

    Raises:
        InvalidRequestError: The order's cover cannot be used: ``cover.invalid``, ``cover.too-large``.
    """
    tags = read_tags(audio)
    title, artist = (
        tidy(own if given is None else given) for given, own in ((order.title, tags.title), (order.artist, tags.artist))
    )
    if order.cover is not None and order.cover.path is not None:
        return _with_cover(Song(title, artist), Path(order.cover.path))
    if tags.cover is None:
        return Song(title, artist)
    try:
        return _with_cover(Song(title, artist), tags.cover)
    except InvalidRequestError as error:
        ignored = RenderWarning(code="cover.ignored", message=f"the cover in the song's tags is left out: {error}")
        return Song(title, artist, warnings=(ignored,))


def _with_cover(song: Song, source: Path | bytes) -> Song:
    cover = read_cover(source)
    moves = RenderWarning(code="cover.animated", message="the cover is an animation; its first picture is shown")
    return evolve(song, cover=cover, warnings=(moves,) if cover.is_animated else ())


def read_tags(audio: Path) -> Tags:
    """Return a song's own tags, as they are; none of those that cannot be read. Never raises."""
    tags = Tags()
    with suppress(Exception), audio.open("rb") as file:
        tags = _of_id3(read_frames(file))
        for at in (*(at + 8 for at in id3_chunks(file)), *id3_tags(file, *parts_of(file)[0])[:_MOST_TAGS]):
            file.seek(at)
            tags = _or(tags, _of_id3(read_frames(file)))
        if None in {tags.title, tags.artist, tags.cover}:
            with open_container(Window(file, *parts_of(file)[0])) as container:
                tags = _or(tags, _of_container(container))
    return tags


def tidy(text: str | None) -> str | None:
    """Return a text in one line of at most `MAX_TAG` characters, without what cannot be seen; None if nothing stays."""
    if text is None:
        return None
    seen = (" " if unicodedata.category(sign) in _UNSEEN or sign in _DIRECTIONS else sign for sign in text[:_LONGEST])
    return cast("str", shorten(" ".join("".join(seen).split()), MAX_TAG)) or None


_LONGEST: Final = 10 * MAX_TAG


def _of_id3(frames: Iterator[tuple[str, bytes]]) -> Tags:
    title = artist = None
    best: Picture | None = None
    for name, content in frames:
        if name in _TITLES:
            title = title or text_of(content)
        elif name in _ARTISTS:
            artist = artist or text_of(content)
        elif name in _PICTURES and (best is None or best.kind != _FRONT):
            picture = picture_of(name, content)
            if picture is not None and (best is None or picture.kind == _FRONT):
                best = picture
    return Tags(title or None, artist or None, None if best is None else best.data)


def _of_container(container: InputContainer) -> Tags:
    # the tags of an Ogg belong to its streams
    texts = {**container.streams.audio[0].metadata, **container.metadata}
    texts = {name.lower(): _decoded(text) for name, text in texts.items()}
    artist = texts.get("artist") or texts.get("author")  # AIFF's
    several = None if artist is None else "; ".join(filter(None, map(str.strip, artist.split(";"))))
    pictures = [stream for stream in container.streams if stream.disposition & Disposition.attached_pic]
    pictures.sort(key=lambda stream: stream.metadata.get("comment") != "Cover (front)")
    cover = None
    if pictures:
        packets = islice(container.demux(), _FIRST_PACKETS)
        cover = next((bytes(packet) for packet in packets if packet.stream_index == pictures[0].index), None)
    return Tags(texts.get("title") or None, several or None, cover or None)


def _decoded(text: str) -> str:
    """Return a text whose bytes are not UTF-8 as Latin-1, which such files mostly mean."""
    raw = text.encode(errors="surrogateescape")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _or(tags: Tags, others: Tags) -> Tags:
    return Tags(tags.title or others.title, tags.artist or others.artist, tags.cover or others.cover)
