"""How is the state of a scene stored, and read back elsewhere?

As text that names the fields, with type and shape, and then their values as plain bytes. Equal states are equal bytes.
Reading compares this text with what the scene expects, so bytes of strangers are not interpreted, and run no code.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from renderdispatch.errors import SceneError

S = TypeVar("S", bound=tuple[Any, ...])

MAX_STATE_BYTES: Final = 256 * 1024
"""The most that the fields of a state take together."""
_END: Final = b"\n\n"


def dump_state(state: tuple[Any, ...]) -> bytes:
    """Return a state as bytes.

    Raises:
        SceneError: It is not a `NamedTuple` of numbers and arrays, or is larger than `MAX_STATE_BYTES`.
    """
    arrays = _arrays(state)
    size = sum(array.nbytes for array in arrays.values())
    if size > MAX_STATE_BYTES:
        raise SceneError(f"the state of the scene has {size} bytes; at most {MAX_STATE_BYTES} are stored")
    return _head(arrays) + _END + b"".join(array.tobytes() for array in arrays.values())


def load_state(stored: bytes, like: S) -> S:
    """Return the state that `dump_state` wrote; its arrays may be written to.

    Args:
        stored: The bytes.
        like: A state of the same scene, such as that of ``start()``: it tells the types and the shapes.

    Raises:
        SceneError: The bytes hold no state of this scene.
    """
    expected = _arrays(like)
    head, _, values = stored.partition(_END)
    if head != _head(expected):
        lines = zip_longest(_head(expected).splitlines(), head.splitlines())
        differs = next((mine for mine, theirs in lines if mine != theirs), None) or b"nothing more"
        raise SceneError(f"the stored state belongs to another scene or size: expected {differs.decode()}")
    if len(values) != sum(array.nbytes for array in expected.values()):
        raise SceneError("the stored state is incomplete or damaged")
    found, begin = [], 0
    for array, usual in zip(expected.values(), like, strict=True):
        end = begin + array.nbytes
        value = np.frombuffer(values[begin:end], array.dtype).reshape(array.shape).copy()
        found.append(value if isinstance(usual, np.ndarray) else type(usual)(value[()]))
        begin = end
    return like._make(found) if found else like  # type: ignore[attr-defined]  # a NamedTuple


def _arrays(state: tuple[Any, ...]) -> dict[str, NDArray[Any]]:
    """Return the fields as arrays, little-endian whatever the machine."""
    names = getattr(state, "_fields", ())
    if len(names) != len(state):
        raise SceneError(f"the state of a scene is a NamedTuple, not {type(state).__name__}")
    arrays = {}
    for name, value in zip(names, state, strict=True):
        # A list or a tuple would come back as something else.
        plain = isinstance(value, int | float | np.generic) or type(value) is np.ndarray
        if not plain or (array := np.asarray(value)).dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise SceneError(f"the state of a scene holds numbers and arrays of numbers; {name!r} is neither")
        arrays[name] = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    return arrays


def _head(arrays: dict[str, NDArray[Any]]) -> bytes:
    lines = [f"{name}: {array.dtype.str} {array.shape}" for name, array in arrays.items()]
    return "\n".join(["renderdispatch state 1", *lines]).encode()
