"""How is the state of a scene stored, and read back elsewhere?

As an archive of NumPy arrays without pickle, so that reading a state of another machine runs no code.
"""

from __future__ import annotations

import io
from typing import Any, Final, TypeVar

import numpy as np

from renderdispatch.errors import SceneError

S = TypeVar("S", bound=tuple[Any, ...])

MAX_STATE_BYTES: Final = 256 * 1024
"""The most that the fields of a state take together."""


def dump_state(state: tuple[Any, ...]) -> bytes:
    """Return a state as bytes.

    Raises:
        SceneError: It is not a `NamedTuple` of numbers and arrays, or is larger than `MAX_STATE_BYTES`.
    """
    fields = {name: np.asarray(value) for name, value in zip(_names(state), state, strict=True)}
    for name, array in fields.items():
        if array.dtype.kind not in "biuf":
            raise SceneError(f"the state of a scene holds numbers and arrays of numbers; {name!r} is neither")
    size = sum(array.nbytes for array in fields.values())
    if size > MAX_STATE_BYTES:
        raise SceneError(f"the state of the scene has {size} bytes; at most {MAX_STATE_BYTES} are stored")
    stored = io.BytesIO()
    np.savez(stored, allow_pickle=False, **fields)
    return stored.getvalue()


def load_state(stored: bytes, like: S) -> S:
    """Return the state that `dump_state` wrote.

    Args:
        stored: The bytes.
        like: A state of the same scene, such as that of ``start()``: it tells the types and the shapes.

    Raises:
        SceneError: The bytes hold no state of this scene.
    """
    try:
        with np.load(io.BytesIO(stored), allow_pickle=False) as fields:
            found = {name: fields[name] for name in fields.files}
    except Exception as error:
        raise SceneError(f"the stored state of the scene cannot be read: {error}") from error
    values = []
    for name, usual in zip(_names(like), like, strict=True):
        array, expected = found.pop(name, None), np.asarray(usual)
        if array is None or array.shape != expected.shape or array.dtype != expected.dtype:
            raise SceneError(f"the stored state belongs to another scene or size: {name!r} differs")
        values.append(array if isinstance(usual, np.ndarray) else type(usual)(array[()]))
    if found:
        raise SceneError(f"the stored state belongs to another scene: it holds {min(found)!r}")
    return like._make(values) if values else like  # type: ignore[attr-defined]  # a NamedTuple


def _names(state: tuple[Any, ...]) -> tuple[str, ...]:
    names = getattr(state, "_fields", ())
    if len(names) != len(state):
        raise SceneError(f"the state of a scene is a NamedTuple, not {type(state).__name__}")
    return tuple(names)
