"""Do several files come out of an archive as they went in?"""

from __future__ import annotations

import io
import itertools
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from renderdispatch.plumbing.bundles import pack, unpack


def packed(members: Mapping[str, bytes], into: Path) -> Path:
    pack({name: partial(io.BytesIO, data) for name, data in members.items()}, into)
    return into


def test_members_come_out_as_they_went_in(tmp_path: Path) -> None:
    """Whatever they hold; the archive is the same each time, as it is the one key's object."""
    members = {"scene_file": b"void", "image_1": bytes(range(256)) * 8192, "cover": b"x"}
    archive = packed(members, tmp_path / "a.zip")
    assert archive.read_bytes() == packed(members, tmp_path / "b.zip").read_bytes()
    for name, data in members.items():
        unpack(archive, name, tmp_path / name, size=len(data))
        assert (tmp_path / name).read_bytes() == data


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_nothing_is_decompressed(tmp_path: Path, method: int) -> None:
    """`pack` compresses nothing, so an archive that does is none of ours, whatever it would grow to."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        archive.writestr("image_1", bytes(1 << 20))
    with pytest.raises(ValueError, match="compressed"):
        unpack(tmp_path / "a.zip", "image_1", tmp_path / "out", size=1 << 20)


def test_no_damage_raises_anything_else(tmp_path: Path) -> None:
    """An archive of which one byte is another one comes out right, or is told to be broken."""
    archive, out = packed({"image_1": b"a picture", "cover": b"x"}, tmp_path / "a.zip"), tmp_path / "out"
    whole = archive.read_bytes()
    for at, value in itertools.product(range(len(whole)), (1, 8, 127, 255)):
        archive.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
        with suppress(ValueError):
            unpack(archive, "image_1", out, size=9)
            assert out.read_bytes() == b"a picture"


@pytest.mark.parametrize("damage", ["absent", "size", "cut", "flipped", "none"])
def test_what_is_not_as_expected(tmp_path: Path, damage: str) -> None:
    """A member that is absent, of another size or damaged, and an archive that is none, are told."""
    archive, name, size = packed({"image_1": b"a picture"}, tmp_path / "a.zip"), "image_1", 9
    data = archive.read_bytes()
    match damage:
        case "absent":
            name = "image_2"
        case "size":
            size = 8
        case "cut":
            archive.write_bytes(data[:-30])
        case "flipped":
            archive.write_bytes(data.replace(b"picture", b"pictura"))
        case _:
            archive.write_bytes(b"a picture")
    with pytest.raises(ValueError, match=r"archive is broken|not 8"):
        unpack(archive, name, tmp_path / "out", size=size)
