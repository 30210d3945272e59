"""How are Modal's messages filled when their fields differ between versions of the client?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def set_known(message: Any, **fields: Any) -> None:
    """Set the fields that this version of a message has. Messages and lists are copied."""
    for name, value in fields.items():
        if name not in message.DESCRIPTOR.fields_by_name:
            continue
        if hasattr(value, "DESCRIPTOR"):
            getattr(message, name).CopyFrom(value)
        elif isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)


def copy_known(source: Any, target: Any, *names: str) -> None:
    """Copy the fields that both messages have in this version."""
    for name in names:
        if name in source.DESCRIPTOR.fields_by_name:
            set_known(target, **{name: getattr(source, name)})
