"""What does the sound do at each frame of the video?

The features are computed in one pass over the whole range of an order, because the spectrum's smoothing and the scales
of level and beat depend on all of it. They are kept in a file and read frame by frame, so that long songs take no more
memory. A part of the frames can be read from a part of the file, so that many machines can draw one song.

They are the same however the sound is cut into blocks, and on any number of cores: nothing here calls BLAS, whose
threads split sums as they like, and spin beside those of the encoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

import numpy as np
from attrs import Factory, define, evolve, field, frozen
from numpy.typing import NDArray

from renderdispatch.render.mixing import Samples

Floats = NDArray[np.floating[Any]]

FFT_SIZE: Final = 2048
TEXTURE_WIDTH: Final = 512
BANDS: Final = 96
WAVE_POINTS: Final = 512
WAVE_RATE: Final = 11_025
"""Points a second of `Frame.wave`, whatever the rate of the sound: 512 of them are 46 ms."""
_RECORD: Final = np.dtype([("texture", "u1", (2, TEXTURE_WIDTH)), ("bands", "u1", BANDS), ("wave", "<i2", WAVE_POINTS)])
RECORD_BYTES: Final = _RECORD.itemsize
"""What one frame takes in the file."""

_FULL_SCALE: Final = 32_767

_SMOOTHING: Final = 0.8
_MIN_DB: Final = -100.0
_MAX_DB: Final = -30.0
_BAND_RANGE_DB: Final = 48.0
"""A band that is further below its top is dark."""
_EVENED: Final = 0.75
"""How far the tops of the bands follow the song's own spectrum, so that rare high notes are seen beside the bass."""
_MOST_EVENED_DB: Final = 32.0
_NEIGHBOURS: Final = 8
"""Bands on each side that share a top: single notes stand out."""
_BAND_STEP_DB: Final = 0.5
_LOWEST_HZ: Final = 45.0
_HIGHEST_HZ: Final = 14_000.0
_QUIETEST: Final = 10 ** (-60 / 20)
"""Songs are scaled to their loudest part, but not those that stay below this level: they are noise."""
_STEADY_DB: Final = 1.0
"""The partials of a low note that is held rise and fall by up to this much, in the mean of all bands."""
_BEAT_FADE_S: Final = 0.16
_AT_ONCE: Final = 32
"""Frames that are analysed together, and read together, which takes a third of the time."""


@frozen(eq=False)
class Frame:
    """The sound during one frame of the video.

    Args:
        index: From 0.
        time_s: Seconds from the start of the video.
        level: Loudness, 0 (silence) to 1 (as loud as this song gets).
        beat: 1 on a strong onset, fading to 0 within about 0.4 s.
        bands: (96,) float32, 0 to 1: the spectrum from 45 Hz to 14 kHz. All bands span the same musical interval. They
            are not smoothed over time. Those that are faint in all of the song are raised by up to 24 dB: 1 is what
            the loudest notes of about this height reach.
        wave: (512,) float32, -1 to 1: the wave in the 46 ms around the frame's middle, all channels together, at 11,025
            points a second. It is smoothed: half remains at 2.8 kHz, nothing above 5.5 kHz.
        texture: (2, 512) uint8, Shadertoy's audio texture. Row 0 is the spectrum as WebAudio's AnalyserNode computes
            it: 2048 points, Blackman, smoothing 0.8 from frame to frame, -100 to -30 dB; texel k is k * rate / 2048 Hz.
            Row 1 is the wave, 128 at rest, 512 samples around the frame's middle, neither smoothed nor resampled.
        rate: Samples a second of the video's sound, which all of this is computed from.
    """

    index: int
    time_s: float
    level: float
    beat: float
    bands: NDArray[np.float32]
    wave: NDArray[np.float32]
    texture: NDArray[np.uint8]
    rate: int = 44_100


@define(eq=False, kw_only=True)
class Features:
    """The features of consecutive frames, read from a file of records. Use it with ``with``, or close it.

    Args:
        path: The file.
        fps: Frames a second.
        level: (frames,) float32, as in `Frame`.
        beat: (frames,) float32, as in `Frame`.
        tops_db: (96,) float32, the levels that are 1 in ``bands``.
        first: The index of the first frame.
        offset: Where in the file the record of the first frame begins. Each has `RECORD_BYTES`; the others follow.
        rate: Samples of the sound a second.
    """

    path: Path
    fps: Fraction
    level: NDArray[np.float32] = field(repr=False)
    beat: NDArray[np.float32] = field(repr=False)
    tops_db: NDArray[np.float32] = field(repr=False)
    first: int = 0
    offset: int = 0
    rate: int = 44_100
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
        for begin in range(0, len(self), _AT_ONCE):
            yield from self._read(begin, min(_AT_ONCE, len(self) - begin))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def slice(self, begin: int, end: int) -> Features:
        """Return the frames ``begin`` to ``end - 1`` alone, with their index and time, read from the same file.

        Raises:
            IndexError: There is no such frame.
        """
        part = slice(self._place(begin), self._place(end - 1) + 1)
        offset = self.offset + part.start * RECORD_BYTES
        return evolve(self, level=self.level[part], beat=self.beat[part], first=begin, offset=offset)

    def frame(self, index: int) -> Frame:
        """Return the features of one frame.

        Raises:
            IndexError: There is no such frame.
        """
        return self._read(self._place(index), 1)[0]

    def _read(self, begin: int, count: int) -> list[Frame]:
        """Return ``count`` frames, the first at the place ``begin`` among these."""
        self._file.seek(self.offset + begin * RECORD_BYTES)
        records = np.frombuffer(self._file.read(count * RECORD_BYTES), _RECORD)
        db = records["bands"] * np.float32(_BAND_STEP_DB) - np.float32(255 * _BAND_STEP_DB)
        bands = np.clip((db - self.tops_db) / np.float32(_BAND_RANGE_DB) + 1, 0, 1)
        waves = records["wave"] / np.float32(_FULL_SCALE)
        return [
            Frame(
                index=self.first + place,
                time_s=(self.first + place) * self.fps.denominator / self.fps.numerator,
                level=float(self.level[place]),
                beat=float(self.beat[place]),
                bands=bands[row],
                wave=waves[row],
                texture=records[row]["texture"],
                rate=self.rate,
            )
            for row, place in enumerate(range(begin, begin + count))
        ]

    def _place(self, index: int) -> int:
        if not self.first <= index < self.first + len(self):
            raise IndexError(f"frame {index} is not among the frames {self.first} to {self.first + len(self) - 1}")
        return index - self.first


class Analyser:
    """Takes the song block by block and writes the features of each frame to a file.

    Frame n shows the sound of exactly [n, n + 1) / fps seconds: its level is that of these samples, and the window of
    its spectrum is centred on them. So a click is seen in the frame during which it is heard.

    Args:
        path: The file.
        rate: Samples a second.
        fps: Frames a second.
        offset: Where in the file the first record begins; what is before it is left free.
    """

    def __init__(self, path: Path, *, rate: int, fps: Fraction, offset: int = 0) -> None:
        self._path = path
        self._file = path.open("wb")
        self._file.seek(offset)
        self._offset = offset
        self._rate = rate
        self._fps = fps
        self._samples, self._frames = rate * fps.denominator, fps.numerator
        """So many samples are so many frames long, exactly."""
        self._window = np.blackman(FFT_SIZE + 1)[:-1].astype(np.float32)
        self._smoothed = np.zeros(TEXTURE_WIDTH, np.float32)
        self._bands = _BandFilter(rate)
        self._resampler = _WaveResampler(rate)
        self._half = max(FFT_SIZE // 2, self._resampler.reach)
        """Samples before and after a frame's middle that its features are made of."""
        self._last_db = np.full(BANDS, -255 * _BAND_STEP_DB, np.float32)
        self._held_from = -self._half
        self._held = np.zeros((1, self._half), np.float32)  # silence before the song
        self._next = self._ready = 0
        """Frames that are analysed, and those for which there are samples."""
        self._counts = np.zeros((BANDS, 256), np.intp)
        """How many frames had which level in each band."""
        self._measured: list[NDArray[np.float32]] = []  # (3, n): loudness, onsets and highest bands of n frames

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def feed(self, samples: Samples) -> None:
        """Take the next samples: (channels, n) float32."""
        self._hold(samples)
        while self._reach(self._ready) <= self._held_from + self._held.shape[1]:
            self._ready += 1
        if self._ready >= self._next + _AT_ONCE:
            self._analyse(self._ready)

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
            rate=self._rate,
            offset=self._offset,
            level=_level(rms),
            beat=_beat(flux, fps=float(self._fps)),
            tops_db=_tops_db(self._counts, max(float(np.percentile(peaks, 98)), float(peaks.max()) - 12, -60.0)),
        )

    def _hold(self, samples: Samples) -> None:
        if self._held.shape[0] != samples.shape[0]:
            self._held = np.repeat(self._held[:1], samples.shape[0], axis=0)
        self._held = np.concatenate([self._held, samples], axis=1)

    def _first_sample(self, frame: int) -> int:
        """Return the first sample at or after the frame's time, in integers: floats drift over a song."""
        return -(-frame * self._samples // self._frames)

    def _middle(self, frame: int) -> int:
        return (self._first_sample(frame) + self._first_sample(frame + 1)) // 2

    def _reach(self, frame: int) -> int:
        """Return the end of the samples that are needed for a frame's features."""
        return max(self._middle(frame) + self._half, self._first_sample(frame + 1))

    def _analyse(self, until: int) -> None:
        frames = range(self._next, until)
        if not frames:
            return
        mono = _mean(self._held)
        bounds = np.array([self._first_sample(frame) for frame in (*frames, until)]) - self._held_from
        middles = (bounds[:-1] + bounds[1:] + 2 * self._held_from) // 2 - self._held_from
        around = np.stack([mono[middle - self._half : middle + self._half] for middle in middles])
        windows = around[:, self._half - FFT_SIZE // 2 : self._half + FFT_SIZE // 2]
        magnitudes = np.abs(np.fft.rfft(windows * self._window)).astype(np.float32) / FFT_SIZE
        records = np.empty(len(frames), _RECORD)
        shade = (_db(self._smooth(magnitudes[:, :TEXTURE_WIDTH])) - _MIN_DB) * (255 / (_MAX_DB - _MIN_DB))
        records["texture"][:, 0] = np.clip(shade, 0, 255)
        shown = windows[:, (FFT_SIZE - TEXTURE_WIDTH) // 2 : (FFT_SIZE + TEXTURE_WIDTH) // 2]
        records["texture"][:, 1] = np.clip(np.floor(128 * (1 + shown)), 0, 255)
        bands = self._bands.db(magnitudes)
        records["bands"] = np.clip(bands / _BAND_STEP_DB + 255, 0, 255)
        levels = records["bands"] + 256 * np.arange(BANDS)
        self._counts += np.bincount(levels.ravel(), minlength=BANDS * 256).reshape(BANDS, 256)
        records["wave"] = np.rint(np.clip(self._resampler.wave(around), -1, 1) * _FULL_SCALE)
        self._file.write(records.tobytes())
        rises = np.diff(np.maximum(bands, -80), axis=0, prepend=np.maximum(self._last_db, -80)[np.newaxis])
        measured = [self._loudness(bounds), np.maximum(rises, 0).mean(axis=1), bands.max(axis=1)]
        self._measured.append(np.array(measured, np.float32))
        self._last_db = bands[-1]
        self._next = until
        keep = min(self._first_sample(until), self._middle(until) - self._half) - self._held_from
        self._held = self._held[:, keep:].copy()
        self._held_from += keep

    def _smooth(self, magnitudes: Floats) -> Floats:
        """Return the spectra of frames, each smoothed by those before it."""
        smoothed = magnitudes * np.float32(1 - _SMOOTHING)
        last, faded = self._smoothed, np.empty(TEXTURE_WIDTH, np.float32)
        for row in smoothed:
            last = np.add(row, np.multiply(last, np.float32(_SMOOTHING), out=faded), out=row)
        self._smoothed = last
        return smoothed

    def _loudness(self, bounds: NDArray[np.intp]) -> Floats:
        """Return the root of the mean power of frames, from each of the ``bounds`` to the next one."""
        power = _mean(np.square(self._held[:, bounds[0] : bounds[-1]]))
        return np.asarray(np.sqrt(np.add.reduceat(power, bounds[:-1] - bounds[0]) / np.diff(bounds)))


def _mean(channels: Floats) -> Floats:
    """Return the mean of one or two channels."""
    return np.asarray(channels[0] if len(channels) == 1 else (channels[0] + channels[1]) * np.float32(0.5))


def _db(magnitude: Floats) -> Floats:
    # NumPy has vector instructions for `log` and none for `log10`, which takes four times as long.
    return np.log(np.maximum(magnitude, np.float32(1e-8))) * np.float32(20 / np.log(10))


class _WaveResampler:
    """Brings the wave to `WAVE_RATE`, each point the mean of the samples around it, weighted by a raised cosine.

    The cosine is four points wide, so that it lets nothing through above half of `WAVE_RATE`. Where the sound has few
    samples a second it is four samples wide, and then it interpolates.
    """

    def __init__(self, rate: int) -> None:
        radius = 2 * max(rate / WAVE_RATE, 1)
        places = (np.arange(WAVE_POINTS) - (WAVE_POINTS - 1) / 2) * (rate / WAVE_RATE)
        self._taps = np.floor(places - radius).astype(np.intp) + np.arange(1, int(np.ceil(2 * radius)) + 1)[:, None]
        """(taps, points): the samples of a point, counted from the middle."""
        away = np.minimum(np.abs(self._taps - places) / radius, 1)
        weights = 1 + np.cos(np.pi * away)
        self._weights = (weights / weights.sum(axis=0)).astype(np.float32)
        self.reach: Final = int(np.abs(self._taps).max()) + 1
        """Samples that are needed before and after the middle."""

    def wave(self, around: Floats) -> Floats:
        """Return (frames, points) from (frames, samples), whose middle is the frame's."""
        # Frames are side by side, so that `take` copies rows of them, and the sums of a point have one order.
        beside = np.ascontiguousarray(around.T)
        wave = np.zeros((WAVE_POINTS, len(around)), np.float32)
        samples = np.empty_like(wave)
        for taps, weights in zip(self._taps + around.shape[1] // 2, self._weights, strict=True):
            np.take(beside, taps, axis=0, out=samples, mode="clip")  # "raise", the default, copies once more
            samples *= weights[:, np.newaxis]
            wave += samples
        return wave.T


class _BandFilter:
    """Gathers the bins of a spectrum into bands of equal musical intervals, by overlapping triangles.

    Triangles are at least a bin wide: several bands of low notes share a bin, and so they blend.
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


def _tops_db(counts: NDArray[np.intp], loudest: float) -> NDArray[np.float32]:
    """Return the tops of the bands: between the song's loudest level, and what each band reaches in 5 % of the frames.

    Args:
        counts: (bands, 256), how many frames had which stored level.
        loudest: In dB.
    """
    seen = np.cumsum(counts, axis=1)
    reached = np.argmax(seen * 20 >= seen[:, -1:] * 19, axis=1)
    sums = np.cumsum(np.pad(reached, (_NEIGHBOURS + 1, _NEIGHBOURS), mode="edge"))
    around = (sums[2 * _NEIGHBOURS + 1 :] - sums[: -2 * _NEIGHBOURS - 1]) / (2 * _NEIGHBOURS + 1)
    below = loudest - (around - 255) * _BAND_STEP_DB
    silence = -255 * _BAND_STEP_DB + _BAND_RANGE_DB
    return np.asarray(np.maximum(loudest - _EVENED * np.clip(below, 0, _MOST_EVENED_DB), silence), np.float32)


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
    onset = np.maximum(flux - 1.4 * around - _STEADY_DB, 0)
    strong = max(float(np.percentile(onset, 98)), float(onset.max()) / 4, 1.0)
    fade = float(np.exp(-1 / (fps * _BEAT_FADE_S)))
    beat = np.empty(len(flux), np.float32)
    pulse = 0.0
    for n, now in enumerate(np.clip(onset / strong, 0, 1)):
        pulse = max(float(now), pulse * fade)
        beat[n] = pulse
    return beat
