"""What does a Shadertoy file hold?

One text. Lines that begin with ``//!`` divide it and describe it; for GLSL, and on Shadertoy, they are comments::

    //! run-up: 90                      how many frames of its past a picture depends on
    //! Common                          what all passes share; also the text before the first of these lines
    //! Buffer A
    //! iChannel0: Buffer A, nearest    what a pass reads: its own last picture
    void mainImage(out vec4 colour, in vec2 place) { ... }
    //! Image
    //! iChannel1: Buffer A
    void mainImage(out vec4 colour, in vec2 place) { ... }

A text without such lines is the pass ``Image``. A pass reads the sound from ``iChannel0``, and the first to third
picture of the order from ``iChannel1`` to ``iChannel3``, unless it says otherwise.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from attrs import field, frozen

from renderdispatch.errors import SceneError

Filter = Literal["nearest", "linear", "mipmap"]
Wrap = Literal["clamp", "repeat", "mirror"]

BUFFERS: Final = ("Buffer A", "Buffer B", "Buffer C", "Buffer D")
IMAGE: Final = "Image"
COMMON: Final = "Common"
IMAGES: Final = ("image 1", "image 2", "image 3")
SOUND: Final = "sound"
COVER: Final = "cover"
NOTHING: Final = "none"

MAX_RUN_UP: Final = 36_000

_DIRECTIVE: Final = re.compile(r"\s*//!\s*(.*?)\s*$")
_CHANNEL: Final = re.compile(r"iChannel([0-3])\s*:\s*(.*)", re.IGNORECASE)
_RUN_UP: Final = re.compile(r"run-?up\s*:\s*(\d+)(?:\s*frames?)?", re.IGNORECASE)
_COMMENT: Final = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_VR: Final = re.compile(r"\bvoid\s+mainVR\s*\(")
_PASSES: Final = {name.lower(): name for name in (COMMON, *BUFFERS, IMAGE)}
_SOURCES: Final = {name.lower(): name for name in (SOUND, COVER, NOTHING, *IMAGES, *BUFFERS)}
_FILTERS: Final = ("nearest", "linear", "mipmap")
_WRAPS: Final = ("clamp", "repeat", "mirror")


@frozen
class Channel:
    """What a pass reads from one of its channels.

    Args:
        source: ``sound``, ``cover``, ``none``, ``image 1`` to ``image 3``, or a buffer.
        filter: How it is read between its pixels; None is Shadertoy's own for this source.
        wrap: How it is read beyond its edges; None likewise.
    """

    source: str
    filter: Filter | None = None
    wrap: Wrap | None = None


@frozen
class Text:
    """A part of a file: its text, and the number of its first line, from 1."""

    source: str = field(repr=False)
    line: int = 1


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
        run_up: How many frames must be drawn before a picture is right: 0 without feedback; None: all of them.
        has_vr: Whether the image offers ``mainVR``.
    """

    name: str
    common: tuple[Text, ...]
    passes: tuple[Pass, ...]
    run_up: int | None
    has_vr: bool


def read_shader(text: str, *, name: str) -> Shader:
    """Read a Shadertoy file.

    Raises:
        SceneError: ``shader.invalid``: a line that begins with ``//!`` is wrong, or the image is missing.
    """
    reader = _Reader(name)
    for number, line in enumerate(text.splitlines(), start=1):
        reader.take(number, line)
    return reader.finish()


def reads_images(shader: Shader) -> bool:
    """Return whether a pass reads one of an order's images."""
    common = "\n".join(text.source for text in shader.common)
    return any(
        channel.source in IMAGES and re.search(rf"\biChannel{number}\b", _COMMENT.sub(" ", common + one.text.source))
        for one in shader.passes
        for number, channel in enumerate(one.channels)
    )


class _Reader:
    """Takes the lines of one file."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lines: dict[str, list[str]] = {}
        self._first: dict[str, int] = {}
        self._channels: dict[str, dict[int, Channel]] = {}
        self._run_up: int | None = None
        self._section = ""  # before the first line that names one
        self._begin("", 1)

    def take(self, number: int, line: str) -> None:
        """Take a line."""
        found = _DIRECTIVE.match(line)
        if found is None:
            self._lines[self._section].append(line)
        elif (section := _PASSES.get(found[1].lower())) is not None:
            if section in self._lines:
                raise self._wrong(number, f"{section} is there twice")
            self._begin(section, number + 1)
        else:
            self._lines[self._section].append("")
            self._describe(number, found[1])

    def finish(self) -> Shader:
        """Return what the file says."""
        names = [name for name in (*BUFFERS, IMAGE) if name in self._lines]
        if not names:
            names = [IMAGE]
            self._lines[IMAGE], self._first[IMAGE] = self._lines.pop(""), self._first.pop("")
            self._channels[IMAGE] = self._channels.pop("")
        elif IMAGE not in names:
            raise self._invalid("there is no Image; begin it with a line '//! Image'")
        passes = tuple(Pass(name, self._text(name), self._channels_of(name)) for name in names)
        image = _COMMENT.sub(" ", "\n".join(self._lines[IMAGE]))
        return Shader(
            name=self._name,
            common=tuple(self._text(name) for name in ("", COMMON) if name in self._lines),
            passes=passes,
            run_up=self._run_up if _has_feedback(passes) else 0,
            has_vr=_VR.search(image) is not None,
        )

    def _begin(self, section: str, line: int) -> None:
        self._section = section
        self._lines[section], self._first[section], self._channels[section] = [], line, {}

    def _text(self, section: str) -> Text:
        return Text("\n".join(self._lines[section]), self._first[section])

    def _channels_of(self, name: str) -> tuple[Channel, Channel, Channel, Channel]:
        usual = {number: Channel(source) for number, source in enumerate((SOUND, *IMAGES))}
        found = {**usual, **self._channels.get("", {}), **self._channels[name]}
        for channel in found.values():
            if channel.source in BUFFERS and channel.source not in self._lines:
                raise self._invalid(f"{name} reads {channel.source}, which is not there")
        return found[0], found[1], found[2], found[3]

    def _describe(self, number: int, said: str) -> None:
        if (run_up := _RUN_UP.fullmatch(said)) is not None:
            self._run_up = int(run_up[1])
            if self._run_up > MAX_RUN_UP:
                raise self._wrong(number, f"a run-up has at most {MAX_RUN_UP} frames")
        elif (channel := _CHANNEL.fullmatch(said)) is not None:
            self._channels[self._section][int(channel[1])] = self._channel(number, channel[2])
        else:
            known = "run-up: FRAMES, iChannel0: SOURCE, Common, Buffer A to Buffer D, Image"
            raise self._wrong(number, f"'//! {said[:80]}' says nothing known; known are {known}")

    def _channel(self, number: int, said: str) -> Channel:
        source, *options = (part.strip().lower() for part in said.split(","))
        if source not in _SOURCES:
            raise self._wrong(
                number, f"a channel has no source {source[:40]!r}; known are {', '.join(_SOURCES.values())}"
            )
        filters: Filter | None = None
        wrap: Wrap | None = None
        for option in options:
            if option in _FILTERS:
                filters = option  # type: ignore[assignment]
            elif option in _WRAPS:
                wrap = option  # type: ignore[assignment]
            else:
                raise self._wrong(number, f"unknown option {option[:40]!r}; known are {', '.join(_FILTERS + _WRAPS)}")
        return Channel(_SOURCES[source], filters, wrap)

    def _invalid(self, what: str) -> SceneError:
        return SceneError(f"{self._name}: {what}", code="shader.invalid")

    def _wrong(self, number: int, what: str) -> SceneError:
        return SceneError(f"{self._name}, line {number}: {what}", code="shader.invalid")


def _has_feedback(passes: tuple[Pass, ...]) -> bool:
    """Return whether a pass reads a picture of the frame before: its own, or that of a later buffer."""
    drawn: set[str] = set()
    for one in passes:
        if any(channel.source in BUFFERS and channel.source not in drawn for channel in one.channels):
            return True
        drawn.add(one.name)
    return False
