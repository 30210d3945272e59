"""How does the video that a program wrote become the one that was ordered?

It is looked through, and refused where it is not what was ordered. Then it is written anew without being encoded again:
frame n at exactly n / fps, the song's sound if it has none, the index in front.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from heapq import merge
from pathlib import Path
from typing import Any, Final

import av
from attrs import frozen
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from renderdispatch.errors import SceneError
from renderdispatch.messages import Output, RenderOrder
from renderdispatch.plumbing.failures import text_of
from renderdispatch.render.mixing import frame_of
from renderdispatch.render.picture import Picture
from renderdispatch.render.song import open_song, read_song
from renderdispatch.render.sound import add_sound

FRAMES_OFF: Final = 1
"""How many frames a program's video may have more or less: programs cut the last one in different ways."""

_RATE_OFF: Final = Fraction(1, 100)
"""From here on it is another frame rate; below it, single frames are late or early."""

_SOUND_LONGER_S: Final = 1
"""How much longer than the video a program's own sound may be."""

_PIXELS: Final = frozenset({"yuv420p", "yuvj420p"})
_ADVICE: Final = "-c:v libx264 -pix_fmt yuv420p"


@frozen(eq=False)
class Delivered:
    """The video in a program's file.

    Args:
        path: The file.
        times: When each frame is shown, sorted, in the units of its stream.
        time_base: Seconds of a unit.
        has_sound: Whether the file has sound of its own.
    """

    path: Path
    times: tuple[int, ...]
    time_base: Fraction
    has_sound: bool


def inspect(path: Path, output: Output, *, frames: int, name: str) -> Delivered:
    """Look through the file of a program.

    Args:
        path: The file.
        output: The picture that was ordered.
        frames: The frames that were ordered.
        name: The program's name, for messages.

    Raises:
        SceneError: ``command.wrong-output``: it is not a video, or another one than was ordered.
    """

    def wrong(found: str, wanted: str) -> SceneError:
        return SceneError(f"{name} wrote {found}; {wanted}", code="command.wrong-output")

    try:
        with av.open(str(path)) as container:
            videos = _videos_of(container)
            if len(videos) != 1:
                raise wrong(f"a file with {len(videos)} videos", "one was ordered")
            video = videos[0]
            sounds = list(container.streams.audio)
            codec, pixels = video.codec_context.name, video.codec_context.pix_fmt
            shape = video.sample_aspect_ratio
            size = f"{video.codec_context.width}x{video.codec_context.height}"
            time_base = _exact(video.time_base)
            heard_s = max((one.duration * _exact(one.time_base) for one in sounds if one.duration), default=None)
            times = [packet.pts for packet in container.demux(video) if packet.size]
    except (av.FFmpegError, OSError) as error:
        raise wrong("a file that is not a video", f"FFmpeg says: {text_of(error)}") from error
    if codec != "h264" or pixels not in _PIXELS:
        raise wrong(f"{codec} in {pixels}", f"h264 in yuv420p is needed, of FFmpeg: {_ADVICE}")
    if size != f"{output.width}x{output.height}":
        raise wrong(f"a video of {size}", f"{output.width}x{output.height} was ordered")
    if shape and shape != 1:
        raise wrong(
            f"pixels of {shape.numerator}:{shape.denominator}", "square ones are needed, of FFmpeg: -vf setsar=1"
        )
    if len(sounds) > 1 or any(sound.codec_context.name != "aac" for sound in sounds):
        kinds = ", ".join(sound.codec_context.name for sound in sounds)
        raise wrong(f"sound in {kinds}", "at most one stream of AAC is taken; without sound, the song's is put in")
    if heard_s is not None and heard_s > frames / output.fps + _SOUND_LONGER_S:
        raise wrong(f"{float(heard_s):.4g} s of sound", f"{float(frames / output.fps):.4g} s were ordered")
    if None in times or not times:
        raise wrong("a video whose frames have no times", "write mp4 or Matroska")
    shown = tuple(sorted(time for time in times if time is not None))
    if (problem := _problem_of(shown, time_base, fps=output.fps, frames=frames)) is not None:
        raise wrong(*problem)
    return Delivered(path, shown, time_base, has_sound=bool(sounds))


def _problem_of(times: tuple[int, ...], time_base: Fraction, *, fps: Fraction, frames: int) -> tuple[str, str] | None:
    """Return what a video has, and what was ordered, if these times are not those of the frames that were ordered."""
    count, step = len(times), time_base * fps
    lasts = (times[-1] - times[0]) * step  # in frames
    if count > 1 and abs(lasts - (count - 1)) > max(_RATE_OFF * count, Fraction(2)):
        rate = f"{float(fps * (count - 1) / lasts):.5g}" if lasts else "endlessly many"
        return f"{rate} frames a second", f"{fps} were ordered"
    if abs(count - frames) > FRAMES_OFF:
        return f"{count} frames", f"{frames} were ordered"
    for number, time in enumerate(times):
        if abs((time - times[0]) * step - number) > Fraction(1, 2):
            at = f"at {float((time - times[0]) * time_base):.3f} s"
            return f"frame {number} {at}", f"{float(number / fps):.3f} s was ordered: frames come regularly"
    return None


def write_anew(
    delivered: Delivered, target: Path, *, order: RenderOrder, audio: Path, check: Callable[[], None]
) -> None:
    """Write the video as `Mp4Writer` would: frame n at n / fps, and with sound.

    Args:
        delivered: The program's.
        target: A new file.
        order: The order.
        audio: The song, for a video without sound.
        check: Called for each packet; raises to end the work.

    Raises:
        AudioError: The song cannot be read.
        av.FFmpegError: The file cannot be written.
    """
    with ExitStack() as stack:
        source = stack.enter_context(av.open(str(delivered.path)))
        made = stack.enter_context(av.open(str(target), "w", format="mp4", options={"fflags": "+bitexact"}))
        video = _videos_of(source)[0]
        shown = made.add_stream_from_template(video)
        shown.time_base = frame_time = 1 / order.output.fps
        shown.metadata.clear()
        packets = _retimed(source, video, shown, delivered, frame_time)
        if delivered.has_sound:
            again = stack.enter_context(av.open(str(delivered.path)))
            heard = _copied(again, made, start=delivered.times[0] * delivered.time_base)
        else:
            heard = _encoded(made, audio, order)
        made.start_encoding()
        for packet in merge(packets, heard, key=_decoded_at):
            made.mux(packet)
            check()


def picture_of(delivered: Delivered, index: int) -> Picture:
    """Return the picture of a frame, or the last one.

    Raises:
        av.FFmpegError: It cannot be decoded.
    """
    wanted = delivered.times[min(index, len(delivered.times) - 1)]
    with av.open(str(delivered.path)) as container:
        video = _videos_of(container)[0]
        container.seek(wanted, stream=video)
        frame = None
        for frame in container.decode(video):
            if frame.pts is not None and frame.pts >= wanted:
                break
        assert frame is not None
        return Picture.of(frame.reformat(format="yuv420p"))


def _videos_of(container: InputContainer) -> list[VideoStream]:
    return [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]


def _retimed(
    source: InputContainer, video: VideoStream, shown: VideoStream, delivered: Delivered, frame_time: Fraction
) -> Iterator[Packet[Any]]:
    """Iterate over the packets of the video, each with the number of its frame as its time."""
    number_of = {time: number for number, time in enumerate(delivered.times)}
    with av.open(str(delivered.path)) as again:
        times = [packet.pts for packet in again.demux(_videos_of(again)[0]) if packet.size]
    late = max(at - number_of[time] for at, time in enumerate(times) if time is not None)
    for at, packet in enumerate(packet for packet in source.demux(video) if packet.size):
        assert packet.pts is not None
        number = number_of[packet.pts]
        packet.stream, packet.time_base = shown, frame_time
        packet.pts, packet.dts, packet.duration = number, at - late, 1
        yield packet


def _copied(source: InputContainer, made: OutputContainer, *, start: Fraction) -> Iterator[Packet[Any]]:
    """Iterate over the packets of the program's own sound, counted from the first frame."""
    sound = source.streams.audio[0]
    heard = made.add_stream_from_template(sound)
    heard.metadata.clear()

    def packets() -> Iterator[Packet[Any]]:
        for packet in source.demux(sound):
            if packet.size and packet.pts is not None and packet.dts is not None:
                by = round(start / _exact(packet.time_base))
                packet.stream = heard
                packet.pts, packet.dts = packet.pts - by, packet.dts - by
                yield packet

    return packets()


def _encoded(made: OutputContainer, audio: Path, order: RenderOrder) -> Iterator[Packet[Any]]:
    """Iterate over the packets of the song's sound."""
    with open_song(audio, order) as sound:
        rate, layout = sound.rate, sound.layout
    heard: AudioStream = add_sound(made, rate=rate, layout=layout)

    def packets() -> Iterator[Packet[Any]]:
        done = 0
        with open_song(audio, order) as sound:
            for block in read_song(sound, longest_s=order.max_duration):
                frame = frame_of(block, layout=layout, rate=rate)
                frame.pts, frame.time_base = done, Fraction(1, rate)
                done += block.shape[1]
                yield from heard.encode(frame)
            yield from heard.encode(None)

    return packets()


def _decoded_at(packet: Packet[Any]) -> Fraction:
    assert packet.dts is not None
    return packet.dts * _exact(packet.time_base)


def _exact(time_base: Any) -> Fraction:
    """Return PyAV's rational as Python's, which it was before PyAV 19."""
    return Fraction(time_base.numerator, time_base.denominator)
