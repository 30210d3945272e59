"""Which parameters do scenes have, and how are they checked?

A scene's parameters are one pydantic model, so that they can be checked and described where neither NumPy nor the
scene is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError, model_validator

from renderdispatch.errors import InvalidRequestError, UnknownNameError
from renderdispatch.protocols import ParamInfo

_LISTS: Final = frozenset({list, tuple, set, frozenset})


class SceneParams(BaseModel):
    """The base of a scene's parameters: give every field a default and a description."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _split_lists(cls, given: Any) -> Any:
        """Accept each list as a command line writes it: ``1,2``."""
        if not isinstance(given, dict):
            return given
        lists = {name for name, field in cls.model_fields.items() if get_origin(field.annotation) in _LISTS}
        return {name: _split(value) if name in lists else value for name, value in given.items()}


def read_params(model: type[SceneParams], params: Mapping[str, JsonValue]) -> SceneParams:
    """Return the checked parameters.

    Raises:
        UnknownNameError: The scene has no such parameter (``param.unknown``).
        InvalidRequestError: A value is not allowed (``param.invalid``).
    """
    for name in params:
        if name not in model.model_fields:
            raise UnknownNameError.of("parameter", name, model.model_fields, code="param.unknown")
    try:
        return model.model_validate(dict(params))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        raise InvalidRequestError(f"parameter {where!r}: {what}", code="param.invalid") from None


def describe_params(model: type[SceneParams]) -> list[ParamInfo]:
    """Return one line of help for each parameter, in the order of declaration."""
    described = model.model_json_schema()
    properties, named = described["properties"], described.get("$defs", {})
    return [
        ParamInfo(name, _type_of(schema, named), _default_of(schema.get("default")), schema.get("description", ""))
        for name, schema in properties.items()
    ]


def _type_of(schema: Mapping[str, Any], named: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        schema = named[schema["$ref"].rpartition("/")[2]]
    if "enum" in schema or "const" in schema:
        return " or ".join(map(_default_of, schema.get("enum", [schema.get("const")])))
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type_of(one, named) for one in schema["anyOf"]))
    if schema.get("type") == "array":
        items = schema.get("prefixItems") or [schema.get("items", {})]
        return f"list of {', '.join(_type_of(item, named) for item in items)}"
    if schema.get("pattern") == _HEX:
        return "#rrggbb"
    names = {"integer": "integer", "number": "number", "boolean": "true or false", "string": "text", "null": "nothing"}
    kind = names.get(schema.get("type", ""), "value")
    if "minimum" in schema and "maximum" in schema:
        return f"{kind} {schema['minimum']:g} to {schema['maximum']:g}"
    return kind


def _default_of(default: object) -> str:
    if isinstance(default, list | tuple):
        return ",".join(str(item) for item in default)
    return str(default).lower() if isinstance(default, bool) else str(default)


def _split(value: object) -> object:
    """Accept a list as a command line writes it: ``#102030,#405060``."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


_HEX = "^#[0-9a-fA-F]{6}$"
MAX_COLOURS: Final = 8
Colour = Annotated[str, Field(pattern=_HEX)]
"""``#rrggbb``."""
Colours = Annotated[tuple[Colour, ...], BeforeValidator(_split), Field(min_length=1, max_length=MAX_COLOURS)]
"""One to eight colours, blended from the first to the last; a list, or text with commas."""

FewColours = Annotated[tuple[Colour, ...], BeforeValidator(_split), Field(min_length=1, max_length=4)]
"""One to four colours, as `Colours`: so few that a shader blends them without a table, which takes CPUs long."""


def _colours(*default: str) -> Any:
    return Field(default=default, description="the colours, first to last")


def _pulse() -> Any:
    return Field(default=0.6, ge=0, le=1, description="how strongly the picture answers the beat")


class LightParams(SceneParams):
    """What the scenes that ship have in common."""

    colours: Colours = _colours("#5b5bff", "#b44dff", "#ff4d9d", "#ffb35c")
    background: Colour = Field(default="#090b1a", description="the colour behind everything")
    gain: float = Field(default=1.0, ge=0.1, le=4, description="how far the sound moves the picture")
    glow: float = Field(default=0.6, ge=0, le=1, description="how much light spreads around the shapes")
    pulse: float = _pulse()


class BarsParams(LightParams):
    """The parameters of `bars`."""

    bars: int = Field(default=64, ge=4, le=96, description="how many bars; fewer where the picture is narrow")
    peaks: bool = Field(default=True, description="caps that mark each bar's recent height")


class WaveParams(LightParams):
    """The parameters of `wave`."""

    colours: Colours = _colours("#32e0ff", "#5b7cff", "#c04dff", "#ff5ca8")
    thickness: float = Field(default=1.0, ge=0.2, le=4, description="of the line")


class RadialParams(LightParams):
    """The parameters of `radial`."""

    colours: Colours = _colours("#2ee6c5", "#4d8dff", "#a64dff", "#ff4d88")
    bars: int = Field(default=120, ge=12, le=192, description="how many bars around the disc")
    spin: float = Field(default=1.0, ge=-20, le=20, description="turns a minute")


class FlowParams(SceneParams):
    """What `flame`, `orb` and `nebula` have in common; each has colours of its own."""

    colours: FewColours
    background: Colour
    gain: float = Field(default=1.0, ge=0, le=2, description="how far the sound moves the picture")
    pulse: float = _pulse()


class FlameParams(FlowParams):
    """The parameters of `flame`."""

    colours: FewColours = _colours("#5c0d1f", "#d4301c", "#ff8a2a", "#ffe2a0")
    root: Colour = Field(default="#3566ff", description="the colour at the root of the flames")
    background: Colour = Field(default="#0c0710", description="the colour of the night behind")
    speed: float = Field(default=1.0, ge=0.1, le=3, description="how fast the fire rises")
    embers: float = Field(default=0.6, ge=0, le=1, description="how many sparks fly")


class OrbParams(FlowParams):
    """The parameters of `orb`."""

    colours: FewColours = _colours("#3a3dff", "#12c8ff", "#ff3fa4", "#ffb066")
    background: Colour = Field(default="#0a0b16", description="the colour of the room")
    speed: float = Field(default=1.0, ge=0.1, le=3, description="how fast the orb flows")
    size: float = Field(default=1.0, ge=0.3, le=1.4, description="of the orb")


class NebulaParams(FlowParams):
    """The parameters of `nebula`."""

    colours: FewColours = _colours("#1d2f86", "#14899c", "#e0663c", "#ffd79a")
    background: Colour = Field(default="#04060f", description="the colour of the sky without gas")
    speed: float = Field(default=1.0, ge=0.1, le=3, description="how fast the gas flows")
    stars: float = Field(default=0.6, ge=0, le=1, description="how many stars shine")


class TunnelParams(SceneParams):
    """The parameters of `tunnel`."""

    near: Colour = Field(default="#22b8ff", description="one colour of the light")
    far: Colour = Field(default="#ff3d86", description="the other one, and the light at the end")
    speed: float = Field(default=1.0, ge=0, le=4, description="of the flight")
    pulse: float = _pulse()
    turns: float = Field(default=1.0, ge=0, le=1.5, description="how far the tunnel bends; 0 is straight")


class TerrainParams(SceneParams):
    """The parameters of `terrain`."""

    sky: Colour = Field(default="#1a2466", description="the colour of the night above")
    sun: Colour = Field(default="#ff8a4c", description="of the sun and the horizon")
    lines: Colour = Field(default="#4de1ff", description="of the lines of light on the land")
    speed: float = Field(default=1.0, ge=0, le=4, description="of the flight")
    pulse: float = _pulse()


class InkParams(SceneParams):
    """The parameters of `ink`."""

    first: Colour = Field(default="#1c3fa8", description="the colour of one ink")
    second: Colour = Field(default="#d3225f", description="the colour of the other ink")
    paper: Colour = Field(default="#f1e9dc", description="the colour of the water's ground")
    speed: float = Field(default=1.0, ge=0.1, le=3, description="of the currents")
    pulse: float = _pulse()
