"""How much of a song does an order take, and whose fault is it if it cannot be read?

Whatever fails while a song is read is the song's fault, whichever library raised it: another attempt would read the
same bytes (rule J11). What is done with the sound happens outside, and is blamed there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Final

from renderdispatch.errors import AudioError, RenderDispatchError
from renderdispatch.messages import RenderOrder
from renderdispatch.plumbing.failures import Translation, text_of, translated
from renderdispatch.render.audio import SoundReader
from renderdispatch.render.mixing import Samples

_SURE: Final = 2
"""Some containers do not hold their duration, and FFmpeg estimates it from the bit rate. Nothing is refused for an
estimate that is less than this many times too long: then the samples are counted."""

_TAIL_S: Final = 0.1
"""Encoders and resamplers may add a little."""


@contextmanager
def open_song(audio: Path, order: RenderOrder) -> Iterator[SoundReader]:
    """Open the order's range of a song.

    Raises:
        AudioError: It cannot be read; or it is surely longer than the order allows (``audio.too-long``).
    """
    duration = None if order.duration is None else Fraction(order.duration)
    with ExitStack() as stack:
        with blamed_on_the_audio():
            reader = SoundReader(audio, start=Fraction(order.start), duration=duration, track=order.audio_track)
            sound = stack.enter_context(reader)
        if order.max_duration is not None and sound.expected_s > _SURE * order.max_duration:
            raise _too_long(order.max_duration)
        yield sound


def read_song(sound: SoundReader, *, longest_s: float | None) -> Iterator[Samples]:
    """Iterate over the blocks of the range.

    Raises:
        AudioError: The rest cannot be read, or the range is longer than ``longest_s`` seconds.
    """
    blocks, samples = sound.blocks(), 0
    while True:
        with blamed_on_the_audio():
            block = next(blocks, None)
        if block is None:
            return
        samples += block.shape[1]
        if longest_s is not None and samples > (longest_s + _TAIL_S) * sound.rate:
            raise _too_long(longest_s)
        yield block


def blamed_on_the_audio() -> AbstractContextManager[None]:
    """Raise an `AudioError` in the place of any other exception."""
    return translated(_BLAME, chain=True)


def _same(error: RenderDispatchError) -> RenderDispatchError:
    return error


def _out_of_memory(_: MemoryError) -> AudioError:
    return AudioError("reading the audio takes more memory than there is", code="memory.full")


def _undecodable(error: Exception) -> AudioError:
    message = f"the audio cannot be decoded: {type(error).__name__}: {text_of(error)}"
    return AudioError(message, code="audio.undecodable")


_BLAME: Final[Translation] = {
    RenderDispatchError: _same,
    MemoryError: _out_of_memory,  # FFmpeg says so too where a header asks for absurd buffers
    Exception: _undecodable,
}


def _too_long(longest_s: float) -> AudioError:
    message = (
        f"the audio is longer than {longest_s:g} s, the longest that this job may render: "
        "give a duration, or raise Limits(max_duration=...), --max-duration on the command line"
    )
    return AudioError(message, code="audio.too-long")
