"""What does a Shadertoy file hold?

One text. Lines that begin with ``//!`` divide it and describe it; for GLSL, and on Shadertoy, they are comments::

    //! run-up: 90
    //! Common
    float shared(float x) { ... }
    //! Buffer A
    //! iChannel0: Buffer A, nearest
    void mainImage(out vec4 colour, in vec2 place) { ... }
    //! Image
    //! iChannel1: Buffer A
    //! iChannel2: image 1, linear, clamp
    void mainImage(out vec4 colour, in vec2 place) { ... }

``Common``, ``Buffer A`` to ``Buffer D`` and ``Image`` begin a part, as Shadertoy's tabs do. ``Common``, and what stands
before the first of these lines, is part of each pass. A text without such lines is the pass ``Image``.

``iChannelN`` says what a pass reads: ``sound``, ``image 1`` to ``image 3`` of the order, the song's ``cover``, a buffer
or ``none``; then how it is read, ``nearest``, ``linear`` or ``mipmap``, and ``clamp`` or ``repeat``. A pass reads the
sound from ``iChannel0`` and the images from ``iChannel1`` to ``iChannel3``, unless it says otherwise. Before the first
pass, these lines hold for all passes.

``run-up`` says how much of its past a picture depends on: frames, or seconds as in ``1.5 s``. Only a file that reads
pictures of earlier frames needs it. Without it, such a video is drawn from its first frame on, and is never cut.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from fractions import Fraction
from math import ceil
from typing import Final, Literal

from attrs import frozen

from renderdispatch.errors import SceneError
from renderdispatch.plumbing.failures import translated
from renderdispatch.render.gl.text import (
    Mistake,
    Text,
    check_characters,
    check_comments,
    check_conditions,
    check_includes,
    in_one_form,
    line_comments,
    printable,
    shortened,
)

Filter = Literal["nearest", "linear", "mipmap"]
Wrap = Literal["clamp", "repeat"]

BUFFERS: Final = ("Buffer A", "Buffer B", "Buffer C", "Buffer D")
IMAGE: Final = "Image"
COMMON: Final = "Common"
IMAGES: Final = ("image 1", "image 2", "image 3")
SOUND: Final = "sound"
COVER: Final = "cover"
NOTHING: Final = "none"

MAX_RUN_UP: Final = 36_000

_DIRECTIVE: Final = "//!"
_DOXYGEN: Final = ("//!<", "//! \\", "//! @", "//!\\", "//!@")
"""How comments for Doxygen begin, which use the same mark."""

_CHANNEL: Final = re.compile(r"iChannel([0-3])\s*:\s*(.*)", re.IGNORECASE)
_RUN_UP: Final = re.compile(r"run-?up\s*:\s*(\d{1,9}(?:\.\d{1,9})?)\s*(frames?|s|seconds?)?", re.IGNORECASE)
_VR: Final = re.compile(r"\bmainVR\s*\(")
_NOT_OFFERED: Final = re.compile(r"\b(mainSound|mainCubemap)\s*\(")
_PASSES: Final = {name.lower(): name for name in (COMMON, *BUFFERS, IMAGE)}
_SOURCES: Final = {name.lower(): name for name in (SOUND, COVER, NOTHING, *IMAGES, *BUFFERS)}
_FILTERS: Final = ("nearest", "linear", "mipmap")
_WRAPS: Final = ("clamp", "repeat")
_OTHER_PASSES: Final = frozenset({"sound", "cubemap", "cube a", "cubemap a"})
_OTHER_SOURCES: Final = frozenset(
    {"keyboard", "webcam", "microphone", "video", "music", "cubemap", "cube a", "cubemap a", "volume", "texture"}
)
_OFFERED: Final = "renderdispatch offers the song's sound, its cover, images and Buffer A to Buffer D"


@frozen
class Channel:
    """What a pass reads from one of its channels.

    Args:
        source: ``sound``, ``cover``, ``none``, ``image 1`` to ``image 3``, or a buffer.
        filter: How it is read between its pixels; None is Shadertoy's own for this source.
        wrap: How it is read beyond its edges; None is Shadertoy's own for this source.
    """

    source: str
    filter: Filter | None = None
    wrap: Wrap | None = None


@frozen
class RunUp:
    """How much of its past a picture depends on: frames and seconds, together."""

    frames: int = 0
    seconds: Fraction = Fraction(0)

    def __str__(self) -> str:
        return f"{float(self.seconds):g} s" if self.seconds else f"{self.frames} frames"

    def at(self, fps: Fraction) -> int:
        """Return the frames that it is in a video."""
        return self.frames + ceil(self.seconds * fps)


@frozen
class Pass:
    """One picture that is drawn in each frame: a buffer, or the image."""

    name: str
    text: Text
    channels: tuple[Channel, Channel, Channel, Channel]


@frozen
class Shader:
    """What a file says.

    Args:
        name: The file's, for errors.
        common: What stands before the text of each pass.
        passes: In the order in which they are drawn; the last one is the image.
        run_up: What must be drawn before a picture is right: nothing without feedback; None: all frames before it.
        has_vr: Whether the image offers ``mainVR``.
    """

    name: str
    common: tuple[Text, ...]
    passes: tuple[Pass, ...]
    run_up: RunUp | None
    has_vr: bool

    def texts_of(self, drawn: Pass) -> tuple[Text, ...]:
        """Return what is compiled for a pass."""
        return (*self.common, drawn.text)

    def wrong(
        self, what: str, *, drawn: Pass | None = None, line: int | None = None, code: str = "shader.compile"
    ) -> SceneError:
        """Return the error of a mistake in this file, which names the pass where there are several."""
        where = self.name if drawn is None or len(self.passes) == 1 else f"{self.name}, {drawn.name}"
        return _error(where, what, line=line, code=code)


def read_shader(text: str, *, name: str) -> Shader:
    """Read a Shadertoy file.

    Args:
        text: The file's.
        name: The file's, for errors.

    Raises:
        SceneError: ``shader.invalid``: a line that begins with ``//!`` is wrong, the image is missing, the text ends
            within a comment or an ``#if``, or it holds what no GLSL has.
    """
    reader = _Reader(printable(name)[-100:])
    source = in_one_form(text)
    reader.check(Text(source))
    said = {
        line: comment.removeprefix(_DIRECTIVE).strip()
        for line, comment in line_comments(source)
        if comment.startswith(_DIRECTIVE) and not comment.startswith(_DOXYGEN)
    }
    for number, line in enumerate(source.split("\n"), start=1):
        reader.take(number, line, said.get(number))
    return reader.finish()


def reads_images(shader: Shader) -> bool:
    """Return whether a pass reads one of an order's images."""
    for one in shader.passes:
        images = [number for number, channel in enumerate(one.channels) if channel.source in IMAGES]
        reads = re.compile(rf"\biCh(?:annel)?[{''.join(map(str, images))}]\b") if images else None
        if reads is not None and any(reads.search(text.code) for text in shader.texts_of(one)):
            return True
    return False


class _Reader:
    """Takes the lines of one file."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lines: dict[str, list[str]] = {}
        self._first: dict[str, int] = {}
        self._channels: dict[str, dict[int, Channel]] = {}
        self._run_up: RunUp | None = None
        self._section = ""  # before the first line that names one
        self._begin("", 1)

    def check(self, text: Text) -> None:
        """Check what does not depend on the passes."""
        with self._mistakes():
            check_comments(text)
            check_characters(text)
            check_includes(text)
        if (found := _NOT_OFFERED.search(text.code)) is not None:
            raise self._wrong(text.line_at(found.start()), f"{found[1]} is not offered: {_OFFERED}")

    def take(self, number: int, line: str, said: str | None) -> None:
        """Take a line, and what it says if it begins with ``//!``."""
        if said is None:
            self._lines[self._section].append(line)
        elif (section := _PASSES.get(_spaced(said))) is not None:
            if section in self._lines:
                raise self._wrong(number, f"{section} is there twice")
            self._begin(section, number + 1)
        else:
            self._lines[self._section].append("")
            self._describe(number, said)

    def finish(self) -> Shader:
        """Return what the file says."""
        names = [name for name in (*BUFFERS, IMAGE) if name in self._lines]
        if not names and COMMON not in self._lines:
            names = [IMAGE]
            self._lines[IMAGE], self._first[IMAGE] = self._lines.pop(""), self._first.pop("")
            self._channels[IMAGE] = self._channels.pop("")
        elif IMAGE not in names:
            raise self._invalid("there is no Image; begin it with a line '//! Image'")
        passes = tuple(Pass(name, self._text(name), self._channels_of(name)) for name in names)
        common = tuple(self._text(name) for name in ("", COMMON) if name in self._lines)
        shader = Shader(
            name=self._name,
            common=common,
            passes=passes,
            run_up=self._run_up if _has_feedback(passes) else RunUp(),
            has_vr=any(_VR.search(text.code) for text in (*common, passes[-1].text)),
        )
        with self._mistakes():
            for one in passes:
                check_conditions(shader.texts_of(one))
        return shader

    def _begin(self, section: str, line: int) -> None:
        self._section = section
        self._lines[section], self._first[section], self._channels[section] = [], line, {}

    def _text(self, section: str) -> Text:
        return Text("\n".join(self._lines[section]), self._first[section])

    def _channels_of(self, name: str) -> tuple[Channel, Channel, Channel, Channel]:
        usual = {number: Channel(source) for number, source in enumerate((SOUND, *IMAGES))}
        found = {**usual, **self._channels.get("", {}), **self._channels.get(COMMON, {}), **self._channels[name]}
        for channel in found.values():
            if channel.source in BUFFERS and channel.source not in self._lines:
                raise self._invalid(f"{name} reads {channel.source}, which is not there")
        return found[0], found[1], found[2], found[3]

    def _describe(self, number: int, said: str) -> None:
        if (run_up := _RUN_UP.fullmatch(said)) is not None:
            self._run_up = self._run_up_of(number, run_up[1], (run_up[2] or "frames").lower())
        elif (channel := _CHANNEL.fullmatch(said)) is not None:
            self._channels[self._section][int(channel[1])] = self._channel(number, channel[2])
        elif _spaced(said) in _OTHER_PASSES:
            raise self._wrong(number, f"a pass {shortened(said)} is not offered: {_OFFERED}")
        else:
            known = "run-up: FRAMES, iChannel0: SOURCE, Common, Buffer A to Buffer D, Image"
            raise self._wrong(number, f"'//! {shortened(said)}' says nothing known; known are {known}")

    def _run_up_of(self, number: int, amount: str, unit: str) -> RunUp:
        if unit.startswith("s"):
            run_up = RunUp(seconds=Fraction(amount))
        elif "." in amount:
            raise self._wrong(number, "a run-up is a whole number of frames, or in seconds, such as 'run-up: 1.5 s'")
        else:
            run_up = RunUp(frames=int(amount))
        if run_up.at(Fraction(60)) > MAX_RUN_UP:
            raise self._wrong(number, f"a run-up has at most {MAX_RUN_UP} frames, {MAX_RUN_UP // 60} seconds")
        return run_up

    def _channel(self, number: int, said: str) -> Channel:
        source, *options = (_spaced(part) for part in said.split(","))
        if source in _OTHER_SOURCES:
            raise self._wrong(number, f"{source} is not offered in a channel: {_OFFERED}")
        if source not in _SOURCES:
            known = ", ".join(_SOURCES.values())
            raise self._wrong(number, f"a channel has no source '{shortened(source)}'; known are {known}")
        filters: Filter | None = None
        wrap: Wrap | None = None
        for option in options:
            match option:
                case "nearest" | "linear" | "mipmap":
                    filters = option
                case "clamp" | "repeat":
                    wrap = option
                case _:
                    known = ", ".join(_FILTERS + _WRAPS)
                    raise self._wrong(number, f"unknown option '{shortened(option)}'; known are {known}")
        return Channel(_SOURCES[source], filters, wrap)

    def _invalid(self, what: str) -> SceneError:
        return _error(self._name, what, code="shader.invalid")

    def _wrong(self, number: int, what: str) -> SceneError:
        return _error(self._name, what, line=number, code="shader.invalid")

    def _mistakes(self) -> AbstractContextManager[None]:
        return translated({Mistake: lambda mistake: self._wrong(mistake.line, mistake.what)})


def _error(name: str, what: str, *, line: int | None = None, code: str) -> SceneError:
    return SceneError(f"{name}: {what}" if line is None else f"{name}, line {line}: {what}", code=code)


def _spaced(text: str) -> str:
    """Return a text in small letters whose words have one blank between them."""
    return " ".join(text.lower().split())


def _has_feedback(passes: tuple[Pass, ...]) -> bool:
    """Return whether a pass reads a picture of the frame before: its own, or that of a later buffer."""
    drawn: set[str] = set()
    for one in passes:
        if any(channel.source in BUFFERS and channel.source not in drawn for channel in one.channels):
            return True
        drawn.add(one.name)
    return False
