"""How much sound should a file hold, by its header and its size?

FFmpeg has a duration for nearly every file, and does not say whether it read or estimated it.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Final

import av
from av.audio.stream import AudioStream
from av.container import InputContainer

from renderdispatch.render.links import Window

_RAW: Final = {"aac", "ac3", "eac3", "dts", "loas", "mp3"}
"""The formats that are packets and nothing else."""

_LAST_SEEN: Final = {"mpeg", "mpegts", "ogg"}
"""The formats of pages, whose duration FFmpeg takes from the last page of the file."""

_MP4: Final = "mov,mp4,m4a,3gp,3g2,mj2"
_TOLD: Final = {
    *("aiff", "ape", "asf", "au", "avi", "caf", "dsf", "flac", "iff", "matroska,webm", "mpc", "mpc8", "mxf"),
    *(_MP4, "sox", "tak", "tta", "w64", "wav", "wv", "xwma"),
}
"""The formats whose header tells. Of others FFmpeg concludes the duration from the bit rate and the size."""

_LONG_TAGS: Final = (b"APETAGEX", b"LYRICSBEGIN")
"""Those that hold pictures, or long texts, behind the sound."""

_TAIL: Final = 65_536
"""Bytes; more than this many at the end that are no sound and no tags are damage."""

_FRAGMENT: Final = 1_048_576
"""Bytes behind the end in which another fragment of an MP4 is looked for."""

_SIZED: Final = {"avi", "caf", "w64", "wav"}
"""The formats whose header tells their size in bytes, to which FFmpeg fits their duration where they are cut off."""

_LARGEST: Final = 1 << 50
_STREAMED_WAV: Final = 0x7FFF_0000


def promised_s(container: InputContainer, stream: AudioStream, window: Window) -> Fraction | None:
    """Return the seconds of sound that the header promises; None if it does not."""
    name = container.format.name
    if name == "mp3":
        return _counted_s(window.peek(0, 4096), stream.rate)
    if name not in _TOLD:
        return None
    if stream.duration is not None and stream.time_base is not None:
        return stream.duration * stream.time_base
    if len(container.streams) > 1 or not container.duration:
        return None
    return Fraction(container.duration, av.time_base)


def _counted_s(head: bytes, rate: int) -> Fraction | None:
    """Return how much the first frame of an MP3 says will follow (the Xing header)."""
    at = max(head.find(b"Xing"), head.find(b"Info"))
    if not 0 <= at < len(head) - 12 or not rate or not head[at + 7] & 1:
        return None
    return Fraction(int.from_bytes(head[at + 8 : at + 12], "big") * (1152 if rate >= 32_000 else 576), rate)


def lost_share(name: str, window: Window, read_to: int) -> Fraction:
    """Return how many bytes are missing at the end, or are no packets, for each that was read.

    Args:
        name: Of the format.
        window: The file.
        read_to: Where the last packet of sound ends.
    """
    behind = window.size - read_to
    if not read_to:
        return Fraction(0)
    if name in _SIZED:
        return Fraction(_cut_off(name, window), read_to)
    if behind < _TAIL or any(tag in window.peek(read_to, 4096) for tag in _LONG_TAGS):
        return Fraction(0)
    sound = name in _RAW | _LAST_SEEN or b"moof" in window.peek(read_to, _FRAGMENT)
    return Fraction(behind if sound else 0, read_to)


def _cut_off(name: str, window: Window) -> int:
    """Return how many bytes a file lacks by its header; that of a stream holds no true size."""
    if name == "w64":
        size = int.from_bytes(window.peek(16, 8), "little")
    elif name == "caf":
        size = _end_of_caf(window)
    else:
        size = int.from_bytes(window.peek(4, 4), "little") + 8
        size = size if size < _STREAMED_WAV else 0
    return max(size - window.size, 0) if size < _LARGEST else 0


def _end_of_caf(window: Window) -> int:
    """Return where the chunk with the sound ends; 0 if it does not tell."""
    at = 8
    while len(header := window.peek(at, 12)) == 12:
        size = int.from_bytes(header[4:], "big", signed=True)
        if size < 0 or header[:4] == b"data":
            return at + 12 + max(size, 0)
        at += 12 + size
    return 0
