"""Which texts can a database store?

PostgreSQL stores no NUL, and neither database stores half of a surrogate pair. Both are refused on both, so that what
works on one works on the other.
"""

from __future__ import annotations

from collections.abc import Iterable

from renderdispatch.errors import InvalidRequestError


def check_texts(values: Iterable[object]) -> None:
    """Check the values of a statement.

    Raises:
        InvalidRequestError: One of them is a text that cannot be stored.
    """
    for value in values:
        if type(value) is str and ("\0" in value or not (value.isascii() or _is_whole(value))):
            raise unstorable()


def unstorable() -> InvalidRequestError:
    """Return the refusal."""
    return InvalidRequestError(
        "a text holds a NUL character or half of a surrogate pair, which no database stores; remove it"
    )


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
