"""What in a text of GLSL is code, and what is a comment?

Compilers differ in what they accept around the code: line ends, bytes that are not ASCII, texts that end in the middle
of something. This brings texts into one form, without moving a line, and finds such mistakes before a compiler does.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Final

from attrs import Factory, field, frozen

_COMMENT: Final = re.compile(r"//[^\n]*(?:(?<=\\)\n[^\n]*)*|/\*.*?(?:\*/|\Z)", re.DOTALL)
"""A backslash at its end makes a line go on."""
_FOREIGN: Final = re.compile(r"[^\t\n\v\f -~]")
_INCLUDE: Final = re.compile(r"#\s*include\b")
_CONDITION: Final = re.compile(r"^[ \t]*#[ \t]*(if|ifdef|ifndef|endif)\b", re.MULTILINE)
_BRACKET: Final = re.compile(r"[(){}\[\]]")
_CLOSING: Final = {")": "(", "}": "{", "]": "["}


@frozen
class Text:
    """A part of a file.

    Args:
        source: Its lines, which end with a line feed.
        line: The number of the first one, from 1.
        code: The same text with blanks for comments: places and lines stay.
    """

    source: str = field(repr=False)
    line: int = 1
    code: str = field(
        init=False, repr=False, eq=False, default=Factory(lambda self: code_of(self.source), takes_self=True)
    )

    def line_at(self, place: int) -> int:
        """Return the number of the line that holds the character at a place."""
        return self.line + self.source.count("\n", 0, place)

    def quote(self, line: int) -> str | None:
        """Return a line, shortened; None if it is not in this part."""
        lines = self.source.split("\n")
        return shortened(lines[line - self.line]) if 0 <= line - self.line < len(lines) else None


@frozen
class Mistake(Exception):
    """A text that no compiler accepts."""

    line: int
    what: str


def in_one_form(text: str) -> str:
    """Return a text without a byte order mark, whose lines end with a line feed: as GLSL counts them (ES 3.00, 3.2)."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def blank(text: str) -> str:
    """Return blanks for a text, but for its line feeds."""
    return "\n".join(" " * len(line) for line in text.split("\n"))


def code_of(source: str) -> str:
    """Return a text with blanks for comments."""
    return _COMMENT.sub(lambda found: blank(found[0]), source)


def emptied(source: str) -> str:
    """Return a text whose comments are empty: places and lines stay, and so does a directive that one continues.

    Not every driver reads comments that are not ASCII, and moderngl looks for ``#include`` in them.
    """

    def empty(found: re.Match[str]) -> str:
        is_long = found[0].startswith("/*") and "\n" in found[0]
        return f"/*{blank(found[0][2:-2])}*/" if is_long else blank(found[0])

    return _COMMENT.sub(empty, source)


def numbered(text: Text) -> str:
    """Return a part with its line numbers for a compiler.

    Mesa loses count in what is passed to a macro over several lines. So the number of the next line is written where a
    statement has ended whose brackets were on several lines.
    """
    parts, depth, spread, last, is_directive = [f"#line {text.line}"], 0, False, "", False
    lines = zip(text.source.split("\n"), text.code.split("\n"), strict=True)
    for number, (line, code) in enumerate(lines, start=text.line):
        if spread and depth == 0 and last in ";{}" and code.strip() and not is_directive:
            parts.append(f"#line {number}")
            spread = False
        parts.append(line)
        is_directive = is_directive or code.lstrip().startswith("#")
        if not is_directive:
            depth += code.count("(") - code.count(")")
            spread = spread or depth != 0
            last = code.rstrip()[-1:] or last
        is_directive = is_directive and code.endswith("\\")
    return "\n".join(parts)


def line_comments(source: str) -> Iterator[tuple[int, str]]:
    """Iterate over the lines that hold nothing but a ``//`` comment: their numbers, from 1, and texts."""
    line, seen = 1, 0
    for found in _COMMENT.finditer(source):
        line, seen = line + source.count("\n", seen, found.start()), found.start()
        if found[0].startswith("//") and not source[source.rfind("\n", 0, seen) + 1 : seen].strip():
            yield line, found[0].partition("\n")[0]


def check_comments(text: Text) -> None:
    """Check that each comment ends.

    Raises:
        Mistake: One does not.
    """
    for found in _COMMENT.finditer(text.source):
        if found[0].startswith("/*") and (len(found[0]) < 4 or not found[0].endswith("*/")):
            raise Mistake(text.line_at(found.start()), "a comment begins here and does not end")


def check_characters(text: Text) -> None:
    """Check that the code holds only characters that GLSL has.

    Raises:
        Mistake: It does not, as pages of the web and word processors leave them.
    """
    if (found := _FOREIGN.search(text.code)) is not None:
        name = unicodedata.name(found[0], "a control character")
        what = f"U+{ord(found[0]):04X} ({name}) is not a character of GLSL; only comments may hold it"
        raise Mistake(text.line_at(found.start()), what)


def check_includes(text: Text) -> None:
    """Check that nothing is included: GLSL cannot, and a job has one file.

    Raises:
        Mistake: Something is.
    """
    if (found := _INCLUDE.search(text.code)) is not None:
        raise Mistake(text.line_at(found.start()), "GLSL has no #include; write the other file's text here")


def check_conditions(texts: Iterable[Text]) -> None:
    """Check that each ``#if`` of texts that are compiled together ends.

    Raises:
        Mistake: One does not.
    """
    begun: list[tuple[int, str]] = []
    for text in texts:
        line, seen = text.line, 0
        for found in _CONDITION.finditer(text.code):
            line, seen = line + text.source.count("\n", seen, found.start()), found.start()
            if found[1] != "endif":
                begun.append((line, found[1]))
            elif begun:
                begun.pop()
    if begun:
        raise Mistake(begun[-1][0], f"#{begun[-1][1]} without #endif")


def unclosed_bracket(texts: Iterable[Text]) -> Mistake | None:
    """Return the innermost bracket that is opened and not closed; None if each one is."""
    begun: list[tuple[Text, int, str]] = []
    for text in texts:
        for found in _BRACKET.finditer(text.code):
            if found[0] not in _CLOSING:
                begun.append((text, found.start(), found[0]))
            elif begun and begun[-1][2] == _CLOSING[found[0]]:
                begun.pop()
    if not begun:
        return None
    text, place, bracket = begun[-1]
    return Mistake(text.line_at(place), f"'{bracket}' is not closed")


def printable(text: str) -> str:
    """Return a text for messages: what cannot be printed is escaped."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def shortened(line: str, most: int = 60) -> str:
    """Return a line for messages."""
    line = printable(line[: 4 * most].strip().replace("\t", " "))
    return line if len(line) <= most else f"{line[: most - 3].rstrip()}..."
