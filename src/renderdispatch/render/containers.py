"""What does a file hold, and which of its tracks is played?"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from fractions import Fraction
from functools import cache
from itertools import islice
from typing import Any, Final, cast

import av
from av.container import InputContainer
from av.stream import Disposition

from renderdispatch.errors import AudioError
from renderdispatch.render.lengths import promised_s
from renderdispatch.render.links import Window
from renderdispatch.render.streams import Track, codec_of

_NEW: Final = int(av.__version__.split(".")[0]) >= 19
_ANY_TAGS: Final[dict[str, Any]] = {} if _NEW else {"metadata_errors": "surrogateescape"}
"""Old songs have titles that are not UTF-8. PyAV 19 reads them, and no longer has this argument."""

_ENOUGH_OF_WAV: Final = 65_536
"""FFmpeg looks whether the samples of a WAV are DTS or Dolby instead. In this many bytes it finds out in a tenth of the
time that it takes for the 5 MB that it would read."""

_FIRST_PACKETS: Final = 200
"""Packets among which those that are shown first are."""


def open_container(window: Window) -> InputContainer:
    """Open what a file holds.

    Raises:
        AudioError: It is not audio.
    """
    # From an open file, without protocols: a playlist that poses as a song reaches no other file or host. FFmpeg
    # decodes covers and videos to learn their size, unless they are not on its list. Options of streams would crash
    # PyAV before 18 where FFmpeg finds more streams while it probes.
    options = {"protocol_whitelist": "none", "codec_whitelist": _audio_decoders()}
    head = window.peek(0, 12)
    if head[:4] in {b"RIFF", b"RF64"} and head[8:] == b"WAVE":
        options["probesize"] = str(_ENOUGH_OF_WAV)
    try:
        container: InputContainer = av.open(window, "r", container_options=options, **_ANY_TAGS)
    except (av.FFmpegError, OSError) as error:
        raise AudioError("this is not audio in a format that can be read", code="audio.undecodable") from error
    with ExitStack() as stack:
        stack.enter_context(container)
        if container.format.name == "tty":  # FFmpeg takes any text for this format
            raise AudioError("this is text, not audio", code="audio.undecodable")
        if not container.streams.audio:
            raise AudioError("there is no sound in this file", code="audio.no-stream")
        stack.pop_all()
    return container


def tracks(container: InputContainer, wanted: int | None) -> list[int]:
    """Return the audio tracks in the order in which players try them: default ones first.

    Raises:
        AudioError: There is no track ``wanted``, from 0.
    """
    streams = container.streams.audio
    if wanted is None:
        return sorted(range(len(streams)), key=lambda n: not streams[n].disposition & Disposition.default)
    if not 0 <= wanted < len(streams):
        held = "one audio track, 0" if len(streams) == 1 else f"{len(streams)} audio tracks, 0 to {len(streams) - 1}"
        raise AudioError(f"there is no audio track {wanted}; the file has {held}", code="audio.no-track")
    return [wanted]


def select(container: InputContainer, window: Window, index: int) -> Track:
    """Return an audio track; the data of all other streams are not even read where the format allows that."""
    chosen = container.streams.audio[index]
    # Read before the others are skipped, because FFmpeg then forgets them.
    begins = _begin_of(container, window)
    own = None if chosen.start_time is None or chosen.time_base is None else chosen.start_time * chosen.time_base
    leads = own is None or own - begins < Fraction(1, 1000)
    for stream in container.streams:
        if stream is not chosen and hasattr(stream, "discard"):  # PyAV 18
            stream.discard = av.stream.Discard.all
    if codec_of(chosen) == "flac":
        chosen.codec_context.options = {"err_detect": "crccheck+explode"}  # else damage is loud noise
    promised = promised_s(container, chosen, window)
    return Track(container, chosen, window, begins, leads, promised)


def _begin_of(container: InputContainer, window: Window) -> Fraction:
    """Return the second at which the first stream begins. FFmpeg does not know it of videos that it may not decode."""
    start = cast("int | None", container.start_time)
    videos = {s.index for s in container.streams.video if not s.disposition & Disposition.attached_pic}
    if start is None:
        return Fraction(0)
    begins = Fraction(start, av.time_base)
    if not videos:
        return begins
    with suppress(av.FFmpegError), open_container(window.again()) as again:
        for packet in islice(again.demux(list(again.streams)), _FIRST_PACKETS):
            if packet.stream_index in videos and packet.pts is not None and packet.time_base:
                begins = min(begins, packet.pts * packet.time_base)
    return begins


@cache
def _audio_decoders() -> str:
    names = []
    for name in sorted(av.codecs_available):
        try:
            codec = av.Codec(name, "r")
        except av.codec.codec.UnknownCodecError:  # it only encodes
            continue
        if codec.type == "audio":
            names.append(name)
    return ",".join(names)
