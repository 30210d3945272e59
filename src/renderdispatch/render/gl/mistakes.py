"""Where in a file are the mistakes that a compiler names, and how are they said?

Each driver has a form of its own: ``0:12(5): error: ...`` (Mesa), ``0(12) : error C0000: ...`` (NVIDIA), ``ERROR: 0:12:
...`` (AMD, Intel, Apple). Our own text around the file's is never shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from renderdispatch.render.gl.shader import Pass, Shader
from renderdispatch.render.gl.text import Text, printable, shortened, unclosed_bracket

OURS: Final = 2_000_000
"""The first line number of what is not the file's. Source strings would be clearer, but Mesa 22 names them wrongly."""

_MOST: Final = 3
"""Mistakes that are listed; those after the first ones mostly follow from them."""

_PLACE: Final = re.compile(
    r"^\s*(?:(?P<severity>ERROR|WARNING):\s*)?\d+(?::|\()(?P<line>\d+)\)?(?:\(\d+\))?\s*:?\s*(?P<what>.*)$"
)
_SEVERITY: Final = re.compile(
    r"^(?:\(\d+\)\s*:\s*)?(?:preprocessor\s+)?(?P<severity>error|warning|note|info)\b\s*(?:C\d+|\(#\d+\))?\s*:?\s*",
    re.IGNORECASE,
)
_QUOTED: Final = re.compile(r"""[`'"]\s*(?:[\w\[\]]+\s+)?([A-Za-z_]\w*)\s*(?:\([^`'"]*\))?\s*;?\s*['"]""")

_HINTS: Final = (
    (re.compile(r"\btexture(?:2D|2DLod\w*|Cube\w*|2DProj\w*)\b"), "GLSL ES 3.00 has texture, textureLod, textureProj"),
    (
        re.compile(r"\bsampler(?:Cube|3D|2DArray)\b|texture\w*\W*\(sampler2D, vec3"),
        "channels are 2D pictures here: cubemaps and volumes are not offered",
    ),
    (re.compile(r"memory exhausted"), "the code is nested too deeply"),
    (re.compile(r"implicit|cannot convert|wrong operand types|operands? "), "numbers are not converted: 1.0, not 1"),
)


def describe_mistakes(
    shader: Shader, drawn: Pass, log: str, *, signature: str, taken: Mapping[str, str]
) -> tuple[str, int | None]:
    """Return what a compiler or linker says about a pass, and the file's line of the first mistake.

    Args:
        shader: The file.
        drawn: The pass.
        log: The driver's.
        signature: Of the function that draws.
        taken: The types of all inputs, by name.
    """
    texts = shader.texts_of(drawn)
    found: dict[int, str] = {}
    around: list[str] = []
    lines = [range(text.line, text.line + text.source.count("\n") + 1) for text in texts]
    for line, what in _said(log):
        if line is None or not any(line in each for each in lines):  # Mesa writes 0 for what belongs to no line
            around.append(what)
        else:
            found.setdefault(line, what)
    if not found:
        line, what = _of_the_whole(texts, around, signature)
        return what, line
    said = [_with_its_line(texts, line, what, taken) for line, what in list(found.items())[:_MOST]]
    more = [f"; line {line}: {what}" for line, what in zip(list(found)[1:], said[1:], strict=False)]
    return said[0] + "".join(more), next(iter(found))


def line_of(name: str, texts: Iterable[Text]) -> int | None:
    """Return the first line that has a name in its code."""
    for text in texts:
        if (found := re.search(rf"\b{re.escape(name)}\b", text.code)) is not None:
            return text.line_at(found.start())
    return None


def _said(log: str) -> list[tuple[int | None, str]]:
    """Return the errors of a log: their lines, if they are known, and texts."""
    errors: list[tuple[int | None, str]] = []
    for each in log.splitlines():
        place = _PLACE.match(each)
        text = each.strip() if place is None else place["what"]
        severity = _SEVERITY.match(text)
        is_error = severity is not None and severity["severity"].lower() == "error"
        if place is not None and severity is None:
            is_error = (place["severity"] or "").upper() == "ERROR"
        if is_error:
            what = text[severity.end() :] if severity is not None else text
            errors.append((None if place is None else int(place["line"]), what))
    return errors


def _with_its_line(texts: tuple[Text, ...], line: int, what: str, taken: Mapping[str, str]) -> str:
    quote = next((quote for text in texts if (quote := text.quote(line)) is not None), None)
    said = printable(what.strip())[:200].removesuffix("; candidates are:")
    if (hint := _hint(said, quote or "", taken)) is not None:
        said += f" ({hint})"
    return f"{said}, in '{quote}'" if quote else said


def _hint(what: str, quote: str, taken: Mapping[str, str]) -> str | None:
    name = next((name for name in _QUOTED.findall(what) if name in taken), None)
    if name is not None and re.search(r"redecl|redefin|already", what):
        return f"{name} is declared already, as {taken[name].partition(' ')[0]}"
    return next((hint for pattern, hint in _HINTS if pattern.search(f"{what} {quote}")), None)


def _of_the_whole(texts: tuple[Text, ...], around: list[str], signature: str) -> tuple[int | None, str]:
    """Return the line and the text of a mistake that the compiler noticed outside of the file's text."""
    entry = signature.partition("(")[0].split()[-1]
    first = around[0] if around else "the shader cannot be compiled"
    last = texts[-1].line + texts[-1].source.rstrip().count("\n")
    if entry in first:
        return line_of(entry, texts), f"{entry} must be {signature}"
    if re.search(r"syntax error|unexpected|parse error", first):
        bracket = unclosed_bracket(texts)
        return (last, "the text ends in the middle") if bracket is None else (bracket.line, bracket.what)
    line = next((line for name in _QUOTED.findall(first) if (line := line_of(name, texts)) is not None), None)
    return line, printable(re.sub(r"renderdispatch_\w+", "...", shortened(first, 200)))
