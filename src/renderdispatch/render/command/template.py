"""How does a template of a command line become the words that a program is started with?

The template belongs to the registered renderer, never to a request. A request's parameters only fill places in its
words. A word stays one word, no shell sees it, and no text of a parameter becomes an option.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from numbers import Number
from string import Formatter
from typing import Final, Literal

from pydantic import JsonValue

from renderdispatch.errors import ConfigurationError, InvalidRequestError, UnknownNameError
from renderdispatch.render.params import SceneParams

Makes = Literal["video", "frames"]
"""What a program writes: one video file, or numbered pictures."""

PLACEHOLDERS: Final = frozenset(
    (
        *("audio", "sound", "output", "frames", "features", "params", "cover", "projection", "threads"),
        *("width", "height", "fps", "fps_num", "fps_den", "start", "duration", "frame_count", "first_frame"),
    )
)
"""See `CommandRenderer`. ``{param.NAME}`` is one more for each parameter."""

_PARAM: Final = "param."
_TARGET: Final[Mapping[Makes, str]] = {"video": "output", "frames": "frames"}
_MAYBE_EMPTY: Final = "cover"
"""The place that may become nothing, so that what follows it begins the word."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, and halves of characters, which no program can be given."""


class Template:
    """The words of a command line, with places to fill.

    Args:
        words: The program and its arguments. ``{name}`` is a place; a brace itself is written twice.
        params: The model of the scene's parameters.
        makes: What the program writes.
        texts: A regular expression that every text of a parameter with a place must match as a whole, each text of a
            list too; None: any text without control characters.

    Raises:
        ConfigurationError: A placeholder is not known, the one of the output is missing, or the program is not fixed.
    """

    def __init__(
        self, words: Sequence[str], *, params: type[SceneParams], makes: Makes, texts: str | None = None
    ) -> None:
        if isinstance(words, str) or not words:
            raise ConfigurationError("a command is a list of words: ['ffmpeg', '-i', '{audio}', ...]")
        self.words: Final = tuple(words)
        self._texts = None if texts is None else re.compile(texts)
        self._parts = [_parts_of(word) for word in self.words]
        used = {name for parts in self._parts for _, name in parts if name is not None}
        self.uses: Final = frozenset(used)
        """The names of the places."""
        for name in sorted(used):
            self._check_known(name, params)
        if any(name is not None for _, name in self._parts[0]):
            raise ConfigurationError(f"{self.words[0]!r}: the program itself cannot be a placeholder")
        if makes == "video" and "first_frame" in used:
            raise ConfigurationError("{first_frame} is for a command that makes frames")
        target = _TARGET[makes]
        if target not in used or {*_TARGET.values()} & used != {target}:
            raise ConfigurationError(f"a command that makes {makes} writes to {{{target}}}, and to nothing else")

    def check_texts(self, params: SceneParams) -> None:
        """Refuse parameters that cannot be words of this command line.

        Raises:
            InvalidRequestError: ``param.invalid``.
        """
        values = params.model_dump(mode="json", by_alias=False)
        for parts in self._parts:
            begun = False
            for literal, name in parts:
                begun = begun or bool(literal)
                if name is None or not name.startswith(_PARAM):
                    begun = begun or name != _MAYBE_EMPTY
                    continue
                field = name.removeprefix(_PARAM)
                is_number = isinstance(getattr(params, field), Number)
                self._check_value(field, values[field], is_number=is_number, begins=not begun)
                begun = begun or bool(text_of_param(values[field]))

    def fill(self, values: Mapping[str, str], params: SceneParams) -> list[str]:
        """Return the words.

        Args:
            values: Of the placeholders that `uses` names, without those of parameters.
            params: The parameters.

        Raises:
            InvalidRequestError: As of `check_texts`.
        """
        self.check_texts(params)
        given = params.model_dump(mode="json", by_alias=False)

        def filled(name: str) -> str:
            if name.startswith(_PARAM):
                return text_of_param(given[name.removeprefix(_PARAM)])
            return values[name]

        return ["".join(text + ("" if name is None else filled(name)) for text, name in parts) for parts in self._parts]

    def _check_known(self, name: str, params: type[SceneParams]) -> None:
        known = [*PLACEHOLDERS, *(_PARAM + field for field in params.model_fields)]
        if name not in known:
            raise ConfigurationError(str(UnknownNameError.of("placeholder", name, known, code="")))

    def _check_value(self, name: str, value: JsonValue, *, is_number: bool, begins: bool) -> None:
        """Refuse a value; all that holds text counts as text, also a list. Numbers cannot do harm."""
        text, said = text_of_param(value), list(_texts_in(value))
        if any(map(_CONTROL.search, (text, *said))):
            raise InvalidRequestError(f"parameter {name!r}: control characters are refused", code="param.invalid")
        if is_number or not said:
            return
        if begins and text.startswith("-"):
            raise InvalidRequestError(f"parameter {name!r}: it may not begin with '-'", code="param.invalid")
        if self._texts is not None and not all(map(self._texts.fullmatch, said)):
            message = f"parameter {name!r}: only text that matches {self._texts.pattern} is allowed"
            raise InvalidRequestError(message, code="param.invalid")


def text_of_param(value: JsonValue) -> str:
    """Return a parameter as a part of a word: text as it is, lists with commas, true and false in lower case."""
    match value:
        case str():
            return value
        case list():
            return ",".join(text_of_param(item) for item in value)
        case _:
            return json.dumps(value)


def _texts_in(value: JsonValue) -> Iterator[str]:
    """Iterate over all texts that a value holds."""
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from _texts_in(item)
        case dict():
            for key, item in value.items():
                yield key
                yield from _texts_in(item)
        case _:
            return


def _parts_of(word: str) -> list[tuple[str, str | None]]:
    """Return the parts of a word: each a text, and the place behind it."""
    parts = list[tuple[str, str | None]]()
    try:
        for literal, name, spec, conversion in Formatter().parse(word):
            if spec or conversion:
                raise ConfigurationError(f"{word!r}: a placeholder is a name alone, such as {{width}}")
            parts.append((literal, name))
    except ValueError as error:
        raise ConfigurationError(f"{word!r}: {error}; a brace itself is written twice") from error
    return parts
