"""How do several small files travel as one?

As a ZIP archive without compression. Its bytes follow from its members alone: the same files
always make the same archive.
"""

from __future__ import annotations

import errno
import shutil
import struct
import zipfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Final

_OLDEST: Final = (1980, 1, 1, 0, 0, 0)
"""The first day that ZIP knows."""

_PIECE: Final = 1 << 20
_ENCRYPTED: Final = 1


def pack(members: Mapping[str, Callable[[], AbstractContextManager[IO[bytes]]]], into: Path) -> None:
    """Write an archive of these members; each is opened when it is written."""
    with zipfile.ZipFile(into, "w") as archive:
        for name, open_member in members.items():
            with open_member() as source, archive.open(zipfile.ZipInfo(name, _OLDEST), "w") as file:
                shutil.copyfileobj(source, file, _PIECE)


def unpack(archive: Path, name: str, into: Path, *, size: int) -> None:
    """Write a member of an archive to a file.

    Raises:
        ValueError: There is no such member of this size, or the archive is broken.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            member = opened.getinfo(name)
            if member.file_size != size:
                raise ValueError(f"{name} has {member.file_size} bytes, not {size}")
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
                raise ValueError(f"{name} is compressed or encrypted")
            with opened.open(member) as source, into.open("wb") as file:
                shutil.copyfileobj(source, file, _PIECE)
    except (KeyError, zipfile.BadZipFile, EOFError, NotImplementedError, struct.error) as error:
        raise ValueError(f"the archive is broken: {error}") from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the file's beginning, to which the archive points
            raise
        raise ValueError(f"the archive is broken: {error}") from None
