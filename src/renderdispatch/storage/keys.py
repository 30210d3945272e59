"""Which keys, and which lifetimes of signed URLs, are allowed in every storage?"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

from renderdispatch.errors import InvalidRequestError, StorageDeniedError

MAX_KEY_BYTES: Final = 1024
MAX_NAME_BYTES: Final = 255
MAX_PUT_BYTES: Final = 5 << 30
MAX_EXPIRY: Final = timedelta(days=7)

_REFUSED: Final = re.compile(r"[\\\x00-\x1f\x7f-\x9f]")
"""A backslash, or a control character (Unicode's category Cc)."""


def check_key(key: str) -> str:
    """Return ``key``.

    Raises:
        StorageDeniedError: It is not relative, has an empty part, ``.``, ``..``, a backslash or a control character, or
            is longer than 1,024 bytes of UTF-8.
    """
    why = _objection(key)
    if why is not None:
        raise StorageDeniedError(f"the key {str(key)[:80]!a} is refused: {why}")
    return key


def _objection(key: object) -> str | None:
    if not isinstance(key, str):
        return f"it is a {type(key).__name__}, not a str"
    if not key:
        return "it is empty"
    try:
        if len(key.encode()) > MAX_KEY_BYTES:
            return f"it is longer than {MAX_KEY_BYTES} bytes"
    except UnicodeEncodeError:
        return "it is not Unicode text"
    parts = key.split("/")
    if "" in parts:
        return "it starts or ends with a slash, or has two in a row"
    if "." in parts or ".." in parts:
        return "'.' and '..' name no object"
    if _REFUSED.search(key) is not None:
        return "backslashes and control characters are not allowed"
    return None


def check_text(prefix: object) -> str:
    """Return the ``prefix`` of a list, which may be empty.

    Raises:
        StorageDeniedError: It is not a str.
    """
    if not isinstance(prefix, str):
        raise StorageDeniedError(f"a prefix is a str, not {type(prefix).__name__}")
    return prefix


def check_prefix(prefix: object) -> str:
    """Return the ``prefix`` of a deletion.

    Raises:
        StorageDeniedError: It is empty, or not a str.
    """
    if not (text := check_text(prefix)):
        raise StorageDeniedError("an empty prefix would delete everything: name what to delete")
    return text


def check_expiry(expires_in: object) -> timedelta:
    """Return ``expires_in``.

    Raises:
        InvalidRequestError: It is not above 0 and at most 7 days.
    """
    if not isinstance(expires_in, timedelta) or not timedelta(0) < expires_in <= MAX_EXPIRY:
        raise InvalidRequestError(f"a signed URL is valid for more than 0 and at most 7 days, not {expires_in}")
    return expires_in


def check_file_name(name: object) -> str | None:
    """Return the ``name`` under which an object is to be saved.

    Raises:
        InvalidRequestError: It is not one part of a path, or longer than 255 bytes.
    """
    if name is None:
        return None
    if isinstance(name, str) and "/" not in name and _objection(name) is None and len(name.encode()) <= MAX_NAME_BYTES:
        return name
    raise InvalidRequestError("a file's name is one part of a path, without control characters, of at most 255 bytes")


def check_put_size(size: object) -> int | None:
    """Return ``size``, in bytes, of a signed upload.

    Raises:
        InvalidRequestError: It is negative, or above 5 GiB.
    """
    if size is None:
        return None
    if not isinstance(size, int) or not 0 <= size <= MAX_PUT_BYTES:
        raise InvalidRequestError(f"one upload has at most {MAX_PUT_BYTES} bytes, not {size}")
    return size
