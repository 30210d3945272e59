"""Where does a demo get its music from?

It is composed here: a short piece for drums, bass, chords and melody, written as a WAV file. The same arguments always
give the same piece.
"""

from __future__ import annotations

import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Sound = NDArray[np.float64]
"""(samples,) in mono, (2, samples) in stereo; full scale at 1."""

RATE: Final = 44_100
_STEP: Final = round(RATE * 60 / 104 / 4)
"""The samples of a sixteenth note, at 104 beats a minute."""
_BAR: Final = 16 * _STEP
_ECHO: Final = 3 * _STEP

_CHORDS: Final = ((57, 64, 71, 72), (53, 60, 64, 69), (48, 55, 64, 67), (55, 59, 62, 69))
"""A minor 9, F major 7, C, G add 9, as MIDI notes; one chord a bar."""
_SCALE: Final = (69, 72, 74, 76, 79, 81, 84)
"""A minor pentatonic: any two of its notes sound well together."""
_RHYTHMS: Final = ((0, 3, 6, 10, 12), (0, 2, 6, 8, 11, 14), (2, 6, 10, 12), (0, 3, 8, 11, 14))


def compose(path: Path, *, seconds: float = 20.0, seed: int = 7) -> None:
    """Write a piece of music: 16-bit stereo WAV at 44.1 kHz.

    It begins with chords and a melody, grows, becomes quiet after the middle, and ends with all instruments.

    Args:
        path: The file.
        seconds: Its length. The last half second fades out.
        seed: Each number gives another melody.
    """
    total = round(seconds * RATE)
    written = 0
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, RATE, total, "NONE", "not compressed"))
        for bar in _bars(-(-total // _BAR), np.random.default_rng(seed)):
            at = np.arange(written, min(written + _BAR, total))
            faded = bar[:, : len(at)] * np.clip((total - at) / (RATE / 2), 0, 1)
            file.writeframes((np.tanh(faded) * 32_000).astype("<i2").T.tobytes())
            written += len(at)


def _bars(count: int, random: Generator) -> Iterator[Sound]:
    """Iterate over the bars, (2, _BAR) each; notes that sound at the end of a bar continue in the next one."""
    sounding = np.zeros((2, 2 * _BAR + 4 * _ECHO))
    degree = 3
    for number in range(count):
        full = number / count >= 0.62
        groove = full or 0.2 <= number / count < 0.48
        chord = _CHORDS[number % len(_CHORDS)]
        for voice, note in enumerate(chord):
            _add(sounding, 0, _pad(note, _BAR + 2 * _STEP), 0.08 if groove else 0.035, pan=voice / 1.5 - 1)
        for step in _RHYTHMS[random.integers(len(_RHYTHMS))]:
            degree = int(np.clip(degree + random.integers(-2, 3), 0, len(_SCALE) - 1))
            pluck = _pluck(_SCALE[degree], 5 * _STEP)
            for echo in range(3):
                loudness = (0.18 if groove else 0.07) * 0.42**echo
                _add(sounding, step * _STEP + echo * _ECHO, pluck, loudness, pan=(0.1, -0.6, 0.6)[echo])
        if groove:
            for step in (0, 3, 6, 8, 11, 14) if full else (0, 6, 8, 14):
                _add(sounding, step * _STEP, _bass(chord[0] - 24, 3 * _STEP), 0.34)
            for step in (0, 4, 8, 12) if full else (0, 8, 10):
                _add(sounding, step * _STEP, _kick(), 0.8)
            for step in (4, 12):
                _add(sounding, step * _STEP, _snare(random), 0.3)
            for step in range(0 if full else 2, 16, 2 if full else 4):
                _add(sounding, step * _STEP, _hat(random, opened=step % 8 == 6), 0.1, pan=0.3)
        yield sounding[:, :_BAR]
        sounding = np.concatenate([sounding[:, _BAR:], np.zeros((2, _BAR))], axis=1)


def _add(sounding: Sound, at: int, sound: Sound, loudness: float, *, pan: float = 0.0) -> None:
    """Mix in mono sound; ``pan`` is -1 (left) to 1 (right), at equal power."""
    angle = (pan + 1) * np.pi / 4
    sounding[:, at : at + len(sound)] += loudness * np.outer((np.cos(angle), np.sin(angle)), sound)


def _time(samples: int) -> Sound:
    return np.arange(samples) / RATE


def _hertz(note: float) -> float:
    return float(440 * 2 ** ((note - 69) / 12))


def _pad(note: int, samples: int) -> Sound:
    """Return two detuned voices with soft overtones, which swell and fade."""
    t = _time(samples)
    voices = sum(
        np.sin(2 * np.pi * _hertz(note + detune) * overtone * t + overtone) / overtone**1.6
        for detune in (-0.06, 0.06)
        for overtone in range(1, 7)
    )
    edge = np.minimum(t, t[::-1]) / 0.35
    return np.asarray(voices * np.sin(np.clip(edge, 0, 1) * np.pi / 2) ** 2)


def _pluck(note: int, samples: int) -> Sound:
    """Return a plucked note: the higher an overtone, the sooner it fades."""
    t = _time(samples)
    tones = sum(
        np.sin(2 * np.pi * _hertz(note) * overtone * t) * np.exp(-t * (5 + 4 * overtone)) / overtone
        for overtone in range(1, 6)
    )
    return np.asarray(tones * np.clip(t / 0.004, 0, 1) * np.clip(t[::-1] / 0.02, 0, 1))


def _bass(note: int, samples: int) -> Sound:
    t = _time(samples)
    tone = np.sin(2 * np.pi * _hertz(note) * t) + 0.4 * np.sin(4 * np.pi * _hertz(note) * t) * np.exp(-t * 9)
    return np.asarray(np.tanh(1.6 * tone) * np.exp(-t * 3) * np.clip(t / 0.005, 0, 1) * np.clip(t[::-1] / 0.03, 0, 1))


def _kick() -> Sound:
    """Return a drum whose pitch falls from 150 to 46 Hz."""
    t = _time(round(0.35 * RATE))
    return np.asarray(np.sin(2 * np.pi * (46 * t + 104 / 28 * (1 - np.exp(-28 * t)))) * np.exp(-9 * t))


def _snare(random: Generator) -> Sound:
    t = _time(round(0.22 * RATE))
    noise = random.standard_normal(t.size) * np.exp(-t * 22) * 0.7
    return np.asarray(noise + np.sin(2 * np.pi * 185 * t) * np.exp(-t * 26))


def _hat(random: Generator, *, opened: bool) -> Sound:
    """Return noise without its lower half: the differences between samples."""
    t = _time(round((0.2 if opened else 0.06) * RATE))
    return np.asarray(np.diff(random.standard_normal(t.size + 1)) * np.exp(-t * (18 if opened else 70)))
