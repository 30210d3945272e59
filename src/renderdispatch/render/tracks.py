"""What does the index of an mp4 file say of its picture and its sound?

Boxes are those of ISO/IEC 14496-12. All of this is a function of its arguments: it holds no time and no version.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from renderdispatch.messages import Output
from renderdispatch.render.boxes import box, full_box

Numbers = NDArray[np.int64]

_FINEST: Final = 10_000
"""Some players round times to the track's clock, and some of their clocks to thousandths. So a track has at least so
many ticks a second, as those of FFmpeg have."""

_MATRIX: Final = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
_UNDETERMINED: Final = 0x55C4  # the language "und" in three times five bits
_VIDEO_HEADER: Final = full_box(b"vmhd", bytes(8), flags=1)
_SOUND_HEADER: Final = full_box(b"smhd", bytes(4))
_HERE: Final = box(b"dinf", full_box(b"dref", struct.pack(">I", 1), full_box(b"url ", flags=1)))


@frozen
class Clock:
    """The clock of a track.

    Args:
        scale: Ticks a second.
        tick: Ticks that a frame is shown.
    """

    scale: int
    tick: int

    @classmethod
    def of(cls, fps: Fraction) -> Clock:
        """Return the clock of a video: every frame begins at a whole tick."""
        times = 1
        while fps.numerator * times < _FINEST:
            times *= 2
        return cls(fps.numerator * times, fps.denominator * times)


@frozen(kw_only=True, eq=False)
class Track:
    """All that the index says of a track.

    Args:
        number: From 1.
        entry: The sample entry: what decodes it.
        scale: Ticks a second.
        durations: Ticks of each sample.
        sizes: Bytes of each sample.
        chunks: Where each chunk is in the file; samples of a chunk follow each other.
        counts: How many samples each chunk has.
        shown_at: Ticks from when each sample is decoded to when it is shown; None: it is shown at once.
        keys: The samples at which players can begin; None: all.
        skip: Ticks at the begin that are not played.
        played: Ticks that are played.
        picture: The picture; None: the track is sound.
    """

    number: int
    entry: bytes
    scale: int
    durations: Numbers
    sizes: Numbers
    chunks: Sequence[int]
    counts: Sequence[int]
    shown_at: Numbers | None = None
    keys: Numbers | None = None
    skip: int = 0
    played: int
    picture: Output | None = None

    def pack(self, scale: int) -> bytes:
        """Return the track's box.

        Args:
            scale: Ticks a second of the file's clock.
        """
        lasts = self.lasts(scale)
        media = full_box(
            b"mdhd",
            struct.pack(">QQIQHH", 0, 0, self.scale, int(self.durations.sum()), _UNDETERMINED, 0),
            version=1,
        )
        return box(
            b"trak",
            _track_header(self.number, lasts, self.picture),
            _edits(lasts, skip=self.skip),
            box(b"mdia", media, _handler(self.picture), _media_information(self.picture, self._tables())),
        )

    def lasts(self, scale: int) -> int:
        """Return for how many ticks of a clock it is played."""
        return round(Fraction(self.played * scale, self.scale))

    def _tables(self) -> list[bytes]:
        tables = [_descriptions(self.entry), full_box(b"stts", _runs(self.durations))]
        if self.keys is not None:
            tables.append(full_box(b"stss", struct.pack(">I", len(self.keys)), _words(self.keys + 1)))
        if self.shown_at is not None:
            tables.append(full_box(b"ctts", _runs(self.shown_at)))
        if self.picture is None:
            # decoders of AAC need the packet before the one at which they begin
            tables.append(full_box(b"sgpd", b"roll", struct.pack(">IIh", 2, 1, -1), version=1))
            tables.append(full_box(b"sbgp", b"roll", struct.pack(">III", 1, len(self.sizes), 1)))
        tables.append(full_box(b"stsc", _chunk_sizes(np.asarray(self.counts, np.int64))))
        tables.append(full_box(b"stsz", struct.pack(">II", 0, len(self.sizes)), _words(self.sizes)))
        kind, number = (b"stco", ">u4") if max(self.chunks, default=0) < 1 << 32 else (b"co64", ">u8")
        tables.append(full_box(kind, struct.pack(">I", len(self.chunks)), np.asarray(self.chunks, number).tobytes()))
        return tables


def index_content(tracks: Sequence[Track], scale: int) -> bytes:
    """Return the content of the box ``moov`` of a whole file.

    Args:
        tracks: All of them.
        scale: Ticks a second of the file's clock.
    """
    lasts = max(track.lasts(scale) for track in tracks)
    return _movie_header(scale, lasts, len(tracks) + 1) + b"".join(track.pack(scale) for track in tracks)


def largest_tables(samples: int, chunks: int) -> int:
    """Return the most bytes that the tables of a track have beyond those of one without samples."""
    return samples * (8 + 8 + 4 + 4) + chunks * (12 + 8)


def fragments_begin(picture: Output, config: bytes, *, late: int) -> bytes:
    """Return what a player needs before the segments of a video: ``ftyp``, and ``moov`` without samples.

    Args:
        picture: The picture.
        config: The decoder's configuration (``avcC``).
        late: How many frames late each one is shown.
    """
    clock = Clock.of(picture.fps)
    nothing = struct.pack(">I", 0)
    tables = [
        _descriptions(picture_entry(picture, config)),
        *(full_box(kind, nothing) for kind in (b"stts", b"stsc", b"stco")),
        full_box(b"stsz", nothing, nothing),
    ]
    media = full_box(b"mdhd", struct.pack(">QQIQHH", 0, 0, clock.scale, 0, _UNDETERMINED, 0), version=1)
    track = box(
        b"trak",
        _track_header(1, 0, picture),
        _edits(0, skip=late * clock.tick),
        box(b"mdia", media, _handler(picture), _media_information(picture, tables)),
    )
    defaults = box(b"mvex", full_box(b"trex", struct.pack(">IIIII", 1, 1, 0, 0, 0)))
    kinds = box(b"ftyp", b"iso6", bytes(4), b"iso6cmfcmp41")
    return kinds + box(b"moov", _movie_header(clock.scale, 0, 2), track, defaults)


def picture_entry(picture: Output, config: bytes) -> bytes:
    """Return the sample entry of H.264 in BT.709, limited range, with square pixels."""
    return box(
        b"avc1",
        bytes(6) + struct.pack(">H16xHH", 1, picture.width, picture.height),
        struct.pack(">II4xH32xHh", 0x480000, 0x480000, 1, 24, -1),
        box(b"avcC", config),
        box(b"colr", b"nclx", struct.pack(">HHHB", 1, 1, 1, 0)),
        box(b"pasp", struct.pack(">II", 1, 1)),
    )


def sound_entry(*, channels: int, rate: int, bit_rate: int, config: bytes) -> bytes:
    """Return the sample entry of AAC; ``config`` is the AudioSpecificConfig of ISO/IEC 14496-3."""
    decoder = struct.pack(">BB3xII", 0x40, 0x15, bit_rate, bit_rate) + _descriptor(5, config)
    stream = struct.pack(">HB", 0, 0) + _descriptor(4, decoder) + _descriptor(6, b"\2")
    head = bytes(6) + struct.pack(">H8xHH4xI", 1, channels, 16, rate << 16)
    return box(b"mp4a", head, full_box(b"esds", _descriptor(3, stream)))


def _descriptor(tag: int, content: bytes) -> bytes:
    return bytes((tag, 0x80, 0x80, 0x80, len(content))) + content


def _descriptions(entry: bytes) -> bytes:
    return full_box(b"stsd", struct.pack(">I", 1), entry)


def _movie_header(scale: int, lasts: int, next_track: int) -> bytes:
    times = struct.pack(">QQIQ", 0, 0, scale, lasts)
    return full_box(
        b"mvhd",
        times,
        struct.pack(">IH10x", 0x10000, 0x100),
        _MATRIX,
        bytes(24),
        struct.pack(">I", next_track),
        version=1,
    )


def _track_header(number: int, lasts: int, picture: Output | None) -> bytes:
    width, height = (0, 0) if picture is None else (picture.width, picture.height)
    group, volume = (1, 0x100) if picture is None else (0, 0)
    times = struct.pack(">QQI4xQ", 0, 0, number, lasts)
    kind = struct.pack(">8xhhH2x", 0, group, volume)
    size = struct.pack(">II", width << 16, height << 16)
    return full_box(b"tkhd", times, kind, _MATRIX, size, version=1, flags=3)


def _edits(lasts: int, *, skip: int) -> bytes:
    return box(b"edts", full_box(b"elst", struct.pack(">IQqHH", 1, lasts, skip, 1, 0), version=1))


def _handler(picture: Output | None) -> bytes:
    kind, name = (b"soun", b"SoundHandler\0") if picture is None else (b"vide", b"VideoHandler\0")
    return full_box(b"hdlr", bytes(4), kind, bytes(12), name)


def _media_information(picture: Output | None, tables: list[bytes]) -> bytes:
    return box(b"minf", _SOUND_HEADER if picture is None else _VIDEO_HEADER, _HERE, box(b"stbl", *tables))


def _words(values: NDArray[Any]) -> bytes:
    return values.astype(">u4").tobytes()


def _runs(values: Numbers) -> bytes:
    """Return values with how often each comes in a row."""
    begins = _begins(values)
    lengths = np.diff(begins, append=len(values))
    return struct.pack(">I", len(begins)) + _words(np.stack([lengths, values[begins]], axis=1))


def _chunk_sizes(counts: Numbers) -> bytes:
    begins = _begins(counts)
    rows = np.stack([begins + 1, counts[begins], np.ones_like(begins)], axis=1)
    return struct.pack(">I", len(begins)) + _words(rows)


def _begins(values: Numbers) -> Numbers:
    """Return where each run of equal values begins."""
    return np.flatnonzero(np.diff(values, prepend=values[:1] - 1)).astype(np.int64)
