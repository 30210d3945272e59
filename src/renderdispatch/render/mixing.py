"""How does a frame of any format become planes of numbers, in mono or stereo?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from renderdispatch.errors import AudioError

Samples = NDArray[np.float32]
"""(channels, samples) float32, full scale at 1."""

_MOST: Final = 131_072
"""Samples that are made at once: a thousand of a file with 10 samples a second become millions."""


def frame_of(samples: Samples, *, layout: str, rate: int) -> AudioFrame:
    """Return the samples as a frame of FFmpeg."""
    frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
    frame.sample_rate = rate
    return frame


def samples_of(frame: AudioFrame) -> Samples:
    """Return what a frame of float32 holds: (planes, samples), or (1, samples of all channels) if it is packed."""
    return frame.to_ndarray().astype(np.float32, copy=False)


class Mixer:
    """Mixes frames of any format and layout down to mono or stereo, sample by sample.

    FFmpeg mixes the layouts that it knows, and takes up to 8 channels without a layout for the usual ones. Of others
    no channel is known to be more important than another: both sides get the mean of all. Of ambisonic sound they get
    the first channel, which is what an omnidirectional microphone hears.

    Args:
        layout: ``mono`` or ``stereo``.
        rate: Samples a second, of all frames.
    """

    def __init__(self, layout: str, rate: int) -> None:
        self._layout = layout
        self._rate = rate
        self._source = ""
        self._resampler = AudioResampler("fltp", layout, rate)
        self._averages = False

    def mix(self, frame: AudioFrame) -> Samples:
        """Return the samples of one frame.

        Raises:
            AudioError: FFmpeg cannot convert the format (``audio.unsupported``).
        """
        frame.pts = None
        source = f"{frame.format.name} {frame.layout.name}"
        if source != self._source:
            self._prepare(frame, source)
        try:
            converted = self._resampler.resample(frame)
        except (av.FFmpegError, ValueError) as error:
            if self._averages:
                what = f"sound of {frame.layout.nb_channels} channels cannot be mixed"
                raise AudioError(what, code="audio.unsupported") from error
            self._average()
            return self.mix(frame)
        samples = np.concatenate([samples_of(part) for part in converted], axis=1)
        if not self._averages:
            return samples
        channels = samples.reshape(-1, frame.layout.nb_channels)
        mono = channels[:, 0] if frame.layout.name.startswith("ambisonic") else channels.mean(axis=1)
        return np.tile(mono, (1 if self._layout == "mono" else 2, 1))

    def _prepare(self, frame: AudioFrame, source: str) -> None:
        self._source = source
        self._averages = False
        self._resampler = AudioResampler("fltp", self._layout, self._rate)
        if frame.layout.nb_channels > 8 and frame.layout.name.endswith(" channels"):
            self._average()

    def _average(self) -> None:
        self._averages = True
        # Packed, because PyAV reads past the end of a frame of more than 8 planes.
        self._resampler = AudioResampler("flt", None, self._rate)


def resampled(blocks: Iterable[Samples], *, layout: str, source: int, rate: int) -> Iterator[AudioFrame]:
    """Convert blocks of ``source`` samples a second to another rate, in frames of a bounded size.

    Raises:
        AudioError: FFmpeg cannot convert it (``audio.unsupported``).
    """
    most = max(_MOST * source // rate, 1)
    pieces = (block[:, at : at + most] for block in blocks for at in range(0, block.shape[1], most))
    resampler = AudioResampler("fltp", layout, rate)
    for piece in chain(pieces, [None]):
        try:
            yield from resampler.resample(None if piece is None else frame_of(piece, layout=layout, rate=source))
        except (av.FFmpegError, ValueError) as error:
            raise AudioError(f"sound of {source} Hz cannot be converted", code="audio.unsupported") from error
