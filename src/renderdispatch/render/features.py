"""What does the sound do at each frame of the video?

The features are computed in one pass over the whole song, because the spectrum's smoothing and the scales of level and
beat depend on all of it. They are kept in a file and read frame by frame, so that long songs take no more memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

import numpy as np
from attrs import Factory, define, field, frozen
from numpy.typing import NDArray

from renderdispatch.render.mixing import Samples

Floats = NDArray[np.floating[Any]]

FFT_SIZE: Final = 2048
TEXTURE_WIDTH: Final = 512
BANDS: Final = 96
_TEXTURE_BYTES: Final = 2 * TEXTURE_WIDTH
_RECORD_BYTES: Final = _TEXTURE_BYTES + BANDS

_SMOOTHING: Final = 0.8
_MIN_DB: Final = -100.0
_MAX_DB: Final = -30.0
_BAND_RANGE_DB: Final = 48.0
"""A band that is further below the song's loudest one is dark."""
_BAND_STEP_DB: Final = 0.5
_LOWEST_HZ: Final = 45.0
_HIGHEST_HZ: Final = 14_000.0
_QUIETEST: Final = 10 ** (-60 / 20)
"""Songs are scaled to their loudest part, but not those that stay below this level: they are noise."""
_BEAT_FADE_S: Final = 0.16


@frozen(eq=False)
class Frame:
    """The sound during one frame of the video.

    Args:
        index: From 0.
        time_s: Seconds from the start of the video.
        level: Loudness, 0 (silence) to 1 (as loud as this song gets).
        beat: 1 on a strong onset, fading to 0 within about 0.4 s.
        bands: (96,) float32, 0 to 1: the spectrum from 45 Hz to 14 kHz. All bands span the same musical interval. They
            are not smoothed over time. High notes are raised by 3 dB an octave, because music has less of them.
        texture: (2, 512) uint8, Shadertoy's audio texture. Row 0 is the spectrum as WebAudio's AnalyserNode computes
            it: 2048 points, Blackman, smoothing 0.8 from frame to frame, -100 to -30 dB; texel k is k * rate / 2048 Hz.
            Row 1 is the wave, 128 at rest, 512 samples around the frame's middle.
    """

    index: int
    time_s: float
    level: float
    beat: float
    bands: NDArray[np.float32]
    texture: NDArray[np.uint8]

    @property
    def wave(self) -> NDArray[np.float32]:
        """The wave of the texture, (512,) float32, -1 to 1."""
        return np.asarray((self.texture[1].astype(np.float32) - 128) / 128)


@define(eq=False, kw_only=True)
class Features:
    """The features of all frames, read from the analyser's file. Use it with ``with``, or close it.

    Args:
        path: The file that `Analyser` wrote.
        fps: Frames a second.
        level: (frames,) float32, as in `Frame`.
        beat: (frames,) float32, as in `Frame`.
        loudest_band_db: The level that is 1 in ``bands``.
    """

    path: Path
    fps: Fraction
    level: NDArray[np.float32] = field(repr=False)
    beat: NDArray[np.float32] = field(repr=False)
    loudest_band_db: float
    _file: BinaryIO = field(init=False, repr=False, default=Factory(lambda self: self.path.open("rb"), takes_self=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.level)

    def __iter__(self) -> Iterator[Frame]:
        """Iterate over the frames, in order."""
        return map(self.frame, range(len(self)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def frame(self, index: int) -> Frame:
        """Return the features of one frame.

        Raises:
            IndexError: There is no such frame.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        self._file.seek(index * _RECORD_BYTES)
        record = np.frombuffer(self._file.read(_RECORD_BYTES), np.uint8)
        db = record[_TEXTURE_BYTES:] * np.float32(_BAND_STEP_DB) - np.float32(255 * _BAND_STEP_DB)
        return Frame(
            index=index,
            time_s=float(index / self.fps),
            level=float(self.level[index]),
            beat=float(self.beat[index]),
            bands=np.clip((db - np.float32(self.loudest_band_db - _BAND_RANGE_DB)) / np.float32(_BAND_RANGE_DB), 0, 1),
            texture=record[:_TEXTURE_BYTES].reshape(2, TEXTURE_WIDTH),
        )


class Analyser:
    """Takes the song block by block and writes the features of each frame to a file.

    Frame n shows the sound of exactly [n, n + 1) / fps seconds: its level is that of these samples, and the window of
    its spectrum is centred on them. So a click is seen in the frame during which it is heard.

    Args:
        path: The file.
        rate: Samples a second.
        fps: Frames a second.
    """

    def __init__(self, path: Path, *, rate: int, fps: Fraction) -> None:
        self._path = path
        self._file = path.open("wb")
        self._rate = rate
        self._fps = fps
        self._window = np.blackman(FFT_SIZE + 1)[:-1].astype(np.float32)
        self._smoothed = np.zeros(TEXTURE_WIDTH, np.float32)
        self._bands = _BandFilter(rate)
        self._last_db = np.full(BANDS, -255 * _BAND_STEP_DB, np.float32)
        self._held_from = -FFT_SIZE
        self._held = np.zeros((1, FFT_SIZE), np.float32)  # silence before the song
        self._next = 0
        self._measured: list[NDArray[np.float32]] = []  # (3, n): loudness, onsets and highest bands of n frames

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def feed(self, samples: Samples) -> None:
        """Take the next samples: (channels, n) float32."""
        self._hold(samples)
        ready = self._next
        while self._reach(ready) <= self._held_from + self._held.shape[1]:
            ready += 1
        self._analyse(ready)

    def finish(self, frames: int) -> Features:
        """Analyse the rest, as if silence followed, and return the features of ``frames`` frames."""
        missing = self._reach(frames - 1) - self._held_from - self._held.shape[1]
        self._hold(np.zeros((self._held.shape[0], max(missing, 0)), np.float32))
        self._analyse(frames)
        self._file.close()
        rms, flux, peaks = np.concatenate(self._measured, axis=1)
        return Features(
            path=self._path,
            fps=self._fps,
            level=_level(rms),
            beat=_beat(flux, fps=float(self._fps)),
            loudest_band_db=max(float(np.percentile(peaks, 98)), float(peaks.max()) - 12, -60.0),
        )

    def _hold(self, samples: Samples) -> None:
        if self._held.shape[0] != samples.shape[0]:
            self._held = np.repeat(self._held[:1], samples.shape[0], axis=0)
        self._held = np.concatenate([self._held, samples], axis=1)

    def _first_sample(self, frame: int) -> int:
        """Return the first sample at or after the frame's time, in integers: floats drift over a song."""
        return -(-frame * self._rate * self._fps.denominator // self._fps.numerator)

    def _middle(self, frame: int) -> int:
        return (self._first_sample(frame) + self._first_sample(frame + 1)) // 2

    def _reach(self, frame: int) -> int:
        """Return the end of the samples that are needed for a frame's features."""
        return max(self._middle(frame) + FFT_SIZE // 2, self._first_sample(frame + 1))

    def _analyse(self, until: int) -> None:
        frames = range(self._next, until)
        if not frames:
            return
        mono = self._held.mean(axis=0)
        middles = [self._middle(frame) - self._held_from for frame in frames]
        half = FFT_SIZE // 2
        windows = np.stack([mono[middle - half : middle + half] for middle in middles])
        magnitudes = np.abs(np.fft.rfft(windows * self._window)).astype(np.float32) / FFT_SIZE
        records = np.empty((len(frames), _RECORD_BYTES), np.uint8)
        for row, magnitude in enumerate(magnitudes[:, :TEXTURE_WIDTH]):
            self._smoothed = _SMOOTHING * self._smoothed + (1 - _SMOOTHING) * magnitude
            scaled = (_db(self._smoothed) - _MIN_DB) * (255 / (_MAX_DB - _MIN_DB))
            records[row, :TEXTURE_WIDTH] = np.clip(scaled, 0, 255)
        waves = windows[:, half - TEXTURE_WIDTH // 2 : half + TEXTURE_WIDTH // 2]
        records[:, TEXTURE_WIDTH:_TEXTURE_BYTES] = np.clip(np.floor(128 * (1 + waves)), 0, 255)
        bands = self._bands.db(magnitudes)
        records[:, _TEXTURE_BYTES:] = np.clip(bands / _BAND_STEP_DB + 255, 0, 255)
        self._file.write(records.tobytes())
        rms = [self._rms_of(frame) for frame in frames]
        rises = np.diff(np.maximum(bands, -80), axis=0, prepend=np.maximum(self._last_db, -80)[np.newaxis])
        self._measured.append(np.array([rms, np.maximum(rises, 0).mean(axis=1), bands.max(axis=1)], np.float32))
        self._last_db = bands[-1]
        self._next = until
        keep = min(self._first_sample(until), self._middle(until) - half) - self._held_from
        self._held = self._held[:, keep:].copy()
        self._held_from += keep

    def _rms_of(self, frame: int) -> float:
        begin, end = (self._first_sample(n) - self._held_from for n in (frame, frame + 1))
        return float(np.sqrt(np.mean(np.square(self._held[:, begin:end]))))


def _db(magnitude: Floats) -> Floats:
    return 20 * np.log10(np.maximum(magnitude, np.float32(1e-8)))


class _BandFilter:
    """Gathers the bins of a spectrum into bands of equal musical intervals, by overlapping triangles.

    Triangles are at least a bin wide: several bands of low notes share a bin, and so they blend. This is not a matrix
    product, because BLAS would start threads that spin beside those of the encoder.
    """

    def __init__(self, rate: int) -> None:
        edges = np.geomspace(_LOWEST_HZ, min(_HIGHEST_HZ, rate / 2), BANDS + 2) * FFT_SIZE / rate
        centre = edges[1:-1]
        below = np.maximum(centre - edges[:-2], 1.2)
        above = np.maximum(edges[2:] - centre, 1.2)
        distance = np.arange(FFT_SIZE // 2 + 1) - centre[:, np.newaxis]
        triangles = np.clip(1 - np.where(distance < 0, -distance / below[:, None], distance / above[:, None]), 0, None)
        triangles /= triangles.sum(axis=1, keepdims=True)
        bands, self._bins = np.nonzero(triangles)
        self._weights = triangles[bands, self._bins].astype(np.float32)
        self._starts = np.searchsorted(bands, np.arange(BANDS))
        self._lift_db = (3 * np.log2(centre / centre[0])).astype(np.float32)

    def db(self, magnitudes: Floats) -> Floats:
        """Return (frames, bands) in dB from (frames, bins)."""
        gathered: Floats = np.add.reduceat(magnitudes[:, self._bins] * self._weights, self._starts, axis=1)
        return np.asarray(_db(gathered) + self._lift_db)


def _level(rms: Floats) -> NDArray[np.float32]:
    """Scale a song's loudness to 0..1. The root of it is nearer to how loud music seems than its power."""
    loudest = max(float(np.percentile(rms, 98)), float(rms.max()) / 4, _QUIETEST)
    return np.asarray(np.sqrt(np.clip(rms / loudest, 0, 1)), np.float32)


def _beat(flux: Floats, *, fps: float) -> NDArray[np.float32]:
    """Return pulses at the onsets, where the spectrum rises more than in the second around them.

    Spectral flux with an adaptive threshold: Bello et al., "A Tutorial on Onset Detection in Music Signals" (2005).
    """
    reach = max(round(fps / 2), 1)
    sums = np.concatenate([[0.0], np.cumsum(np.pad(flux, reach, mode="edge"), dtype=np.float64)])
    around = (sums[2 * reach + 1 :] - sums[: -2 * reach - 1]) / (2 * reach + 1)
    onset = np.maximum(flux - 1.4 * around, 0)
    strong = max(float(np.percentile(onset, 98)), float(onset.max()) / 4, 1.0)
    fade = float(np.exp(-1 / (fps * _BEAT_FADE_S)))
    beat = np.empty(len(flux), np.float32)
    pulse = 0.0
    for n, now in enumerate(np.clip(onset / strong, 0, 1)):
        pulse = max(float(now), pulse * fade)
        beat[n] = pulse
    return beat
