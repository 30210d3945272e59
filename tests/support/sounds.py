"""Sounds of bursts, files of several tracks with timestamps at will, and a way to hear what is in a file."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from attrs import frozen
from av.stream import Disposition
from numpy.typing import NDArray

from renderdispatch.render.audio import SoundReader

RATE = 48_000
_BURST_S = 0.02


def bursts(seconds: float, *at: float, hz: float = 1000, rate: int = RATE) -> NDArray[np.float32]:
    """Return silence with a burst of 20 ms at each given second."""
    sound = np.zeros(round(seconds * rate), np.float32)
    burst = 0.9 * np.sin(2 * np.pi * hz * np.arange(round(_BURST_S * rate)) / rate)
    for second in at:
        begin = round(second * rate)
        sound[begin : begin + len(burst)] = burst
    return sound


def _every(_: float) -> bool:
    return True


def _same(time: float) -> float:
    return time


@frozen(kw_only=True)
class Track:
    """A track of a file.

    Args:
        sound: (samples,), in mono.
        codec: The name of FFmpeg's encoder.
        rate: Samples a second.
        keep: Tells from its time whether a packet gets into the file.
        stamp: Changes the time of a packet.
        default: Whether the track is marked as the one to play.
    """

    sound: NDArray[np.float32]
    codec: str = "libopus"
    rate: int = RATE
    keep: Callable[[float], bool] = _every
    stamp: Callable[[float], float] = _same
    default: bool = False


def write(path: Path, *tracks: Track, video_s: float = 0, options: dict[str, str] | None = None) -> Path:
    """Write the tracks; with ``video_s``, beside a video of so many seconds from the beginning."""
    with av.open(str(path), "w", options=options or {}) as file:
        packets: list[av.Packet[Any]] = []
        streams: list[Any] = []
        if video_s:
            video = file.add_stream("mpeg4", rate=10)
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
            for number in range(round(video_s * 10)):
                image = av.VideoFrame(32, 32, "yuv420p")
                image.pts, image.time_base = number, Fraction(1, 10)
                packets += video.encode(image)
            packets += video.encode(None)
        for track in tracks:
            stream: Any = file.add_stream(track.codec, rate=track.rate, layout="mono")
            stream.options = {"strict": "experimental"}  # for Vorbis
            stream.bit_rate = 128_000
            stream.disposition = Disposition.default if track.default else 0
            streams.append(stream)
        for track, stream in zip(tracks, streams, strict=True):
            packets += _packets(track, stream)
        for packet in sorted(packets, key=lambda p: float((p.dts or 0) * p.time_base)):
            file.mux(packet)
    return path


def _packets(track: Track, stream: Any) -> list[av.Packet[Any]]:
    frame = av.AudioFrame.from_ndarray(track.sound[np.newaxis], format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = track.rate, 0, Fraction(1, track.rate)
    convert = av.AudioResampler(stream.codec_context.format, "mono", track.rate)
    parts = [*convert.resample(frame), *convert.resample(None)]
    packets = []
    for packet in [*(p for part in parts for p in stream.encode(part)), *stream.encode(None)]:
        time = float(packet.pts * packet.time_base)
        if track.keep(time):
            packet.pts = packet.dts = round(track.stamp(time) / packet.time_base)
            packets.append(packet)
    return packets


def read(
    path: Path, start: float = 0, duration: float | None = None, track: int | None = None
) -> tuple[NDArray[np.float32], SoundReader]:
    """Return the range's samples, and the reader that read them."""
    length = None if duration is None else Fraction(duration)
    with SoundReader(path, start=Fraction(start), duration=length, track=track) as reader:
        return np.concatenate(list(reader.blocks()), axis=1), reader


def heard(path: Path, start: float = 0, track: int | None = None) -> list[float]:
    """Return the seconds at which bursts begin."""
    sound, reader = read(path, start, track=track)
    loud = np.flatnonzero(np.abs(sound[0]) > 0.2)
    begins = loud[np.diff(loud, prepend=-reader.rate) > reader.rate // 5]
    return [round(float(begin) / reader.rate, 3) for begin in begins]


def pitch(sound: NDArray[np.float32], rate: int) -> float:
    """Return the loudest frequency."""
    spectrum = np.abs(np.fft.rfft(sound[0] * np.hanning(sound.shape[1])))
    return float(np.fft.rfftfreq(sound.shape[1], 1 / rate)[spectrum.argmax()])


def codes(reader: SoundReader) -> set[str]:
    """Return the codes of the reader's warnings."""
    return {warning.code for warning in reader.warnings}
