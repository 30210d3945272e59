"""Does a file come into being whole or not at all, whatever its file system lacks?"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from renderdispatch.errors import ObjectExistsError, StorageDeniedError, StorageFullError
from renderdispatch.plumbing import files
from renderdispatch.plumbing.files import TEMPORARY, publish, rehearse, write_file
from renderdispatch.testing import in_threads

WAYS = ("link", "rename", "lock")


def refuse(number: int) -> object:
    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refused


def only(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Leave one way: without hard links, as on FAT, and without renames that do not replace, as in user space."""
    if way != "link":
        monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    if way == "lock":
        monkeypatch.setattr(files, "_rename_once", lambda *_: False)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    only(monkeypatch, request.param)
    return str(request.param)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _once(target: Path, data: bytes = b"x") -> bool:
    try:
        write_file(target, [data], key="key", only_if_absent=True)
    except ObjectExistsError:
        return False
    return True


def test_written_once(way: str, target: Path) -> None:
    """The second writer is refused, the first one's bytes stay, and no temporary file does."""
    assert _once(target, b"first")
    assert not _once(target, b"second")
    assert target.read_bytes() == b"first"
    assert _names(target.parent) == ["target"]


def test_of_many_writers_one_succeeds(way: str, target: Path) -> None:
    """Whichever way the file system has, it is atomic."""
    assert sum(in_threads(8, lambda number: _once(target, b"%d" % number * 100))) == 1
    assert len(set(target.read_bytes())) == 1


@pytest.mark.parametrize("other", ["folder", "empty file", "dangling link"])
def test_whatever_has_the_name_keeps_it(way: str, target: Path, other: str) -> None:
    """A folder, an empty file and a link to nothing are not replaced by what is written only once."""
    match other:
        case "folder":
            target.mkdir()
        case "empty file":
            target.touch()
        case _:
            target.symlink_to("nowhere")
    before = target.lstat()
    with pytest.raises((ObjectExistsError, StorageDeniedError)):
        write_file(target, [b"x"], key="key", only_if_absent=True)
    assert (target.lstat().st_ino, target.lstat().st_mode) == (before.st_ino, before.st_mode)


_WRITERS = """
    import errno, os, sys
    from pathlib import Path
    from renderdispatch.errors import ObjectExistsError
    from renderdispatch.plumbing import files

    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    os.link, files._rename_once = refuse, lambda *_: False
    print("ready", flush=True)
    sys.stdin.readline()
    won = []
    for number in range(200):
        try:
            target = Path(sys.argv[1], str(number % 50), str(number))
            files.write_file(target, [sys.argv[2].encode() * 1000], key="key", only_if_absent=True)
            won.append(str(number))
        except ObjectExistsError:
            pass
    print(*won)
"""


def test_of_many_processes_one_succeeds(tmp_path: Path) -> None:
    """Without links and without renames that do not replace, a lock of the folder makes processes take turns."""
    command = [sys.executable, "-c", textwrap.dedent(_WRITERS), str(tmp_path)]
    pipe = subprocess.PIPE
    writers = {name: subprocess.Popen([*command, name], stdin=pipe, stdout=pipe, text=True) for name in "abc"}
    for writer in writers.values():
        assert writer.stdout is not None
        writer.stdout.readline()
    for writer in writers.values():
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    won = {name: writer.communicate(timeout=60)[0].split() for name, writer in writers.items()}
    assert sorted(number for mine in won.values() for number in mine) == sorted(map(str, range(200)))
    for name, mine in won.items():
        assert all((tmp_path / str(int(n) % 50) / n).read_bytes() == name.encode() * 1000 for n in mine)


_HOLDS_THE_LOCK = """
    import fcntl, os, sys
    fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.readline()
"""


def test_a_writer_that_is_killed_locks_nobody_out(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    """The lock ends with its process, and nothing has taken the name."""
    only(monkeypatch, "lock")
    command = [sys.executable, "-c", textwrap.dedent(_HOLDS_THE_LOCK), str(target.parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.send_signal(signal.SIGKILL)
        assert _once(target)


def test_a_file_system_without_any_way(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    """It is refused, and so is its rehearsal; what may be replaced can still be written."""
    only(monkeypatch, "lock")
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    for call in (lambda: rehearse(target, key="key", only_if_absent=True), lambda: _once(target)):
        with pytest.raises(StorageDeniedError, match="neither hard links nor locks"):
            call()
    write_file(target, [b"x"], key="key", only_if_absent=False)
    assert _names(target.parent) == ["target"]


# --- mounts ---------------------------------------------------------------------------------------


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that no file of another folder can be renamed or linked into, as on another mount."""
    far = tmp_path / "far"
    far.mkdir()

    def at_home(call: object) -> object:
        def checked(source: Path, target: Path, **options: int) -> None:
            if Path(source).parent != far:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            call(source, target, **options)  # type: ignore[operator]

        return checked

    for name in ("link", "replace", "rename"):
        monkeypatch.setattr(os, name, at_home(getattr(os, name)))
    return far


@pytest.mark.parametrize("once", [False, True])
def test_across_mounts_files_are_copied(far: Path, once: bool) -> None:
    """Where the temporary file is on another mount, a copy beside the target is renamed."""
    (far.parent / TEMPORARY).mkdir()  # as in a storage, a folder of which is a mount
    write_file(far / "target", [b"x" * 3_000_000], key="key", only_if_absent=once)
    assert (far / "target").stat().st_size == 3_000_000
    assert [*_names(far), *_names(far.parent / TEMPORARY)] == ["target"]
    if once:
        assert not _once(far / "target")


@pytest.fixture
def mounted_file(tmp_path: Path) -> Iterator[Path]:
    """A file that is mounted by itself, as ``docker run -v`` does; only root can."""
    source, target = tmp_path / "source", tmp_path / "mounted"
    source.write_bytes(b"a longer text than the new one")
    target.touch()
    mount = ["mount", "--bind", str(source), str(target)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("no file can be mounted: needs root")
    yield target
    subprocess.run(["umount", "-l", str(target)], check=True)


def test_a_file_that_is_mounted_by_itself_is_rewritten(mounted_file: Path) -> None:
    """It cannot be replaced; its new bytes are seen on both sides of the mount."""
    write_file(mounted_file, [b"new"], key="key", only_if_absent=False)
    assert mounted_file.read_bytes() == (mounted_file.parent / "source").read_bytes() == b"new"


# --- what else file systems lack ------------------------------------------------------------------


def test_folders_that_cannot_be_brought_to_disk(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    """A file system that knows no ``fsync``, for folders or at all, is written all the same."""
    monkeypatch.setattr(os, "fsync", refuse(errno.EINVAL))
    assert _once(target)


def test_a_disk_that_fails_is_no_success(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    """What the disk did not take is an error."""
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(StorageFullError):
        _once(target)


# --- rehearsals -----------------------------------------------------------------------------------


def test_a_rehearsal_leaves_nothing(way: str, target: Path) -> None:
    """Neither a file nor a folder, and a file that exists stays as it is."""
    rehearse(target.parent / "some" / "folders" / "target", key="key", only_if_absent=True)
    assert _names(target.parent) == []
    target.write_bytes(b"mine")
    rehearse(target, key="key", only_if_absent=False)
    assert target.read_bytes() == b"mine"


def test_a_rehearsal_meets_a_full_disk(small_disk: Path) -> None:
    """Where not even one byte can be written, no work begins."""
    (small_disk / "filler").write_bytes(b"x" * (2 << 20))
    with pytest.raises(StorageFullError):
        rehearse(small_disk / "target", key="key", only_if_absent=True)
    assert _names(small_disk) == ["filler"]


@pytest.mark.parametrize("name", ["a:b.mp4", "x" * 250 + ".mp4", "ü" * 120, os.fsdecode(b"\xff" * 120)])
def test_a_rehearsal_tries_the_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """The characters of the name are tried too, for some file systems refuse some."""
    tried = []

    def noted(_temporary: Path, named: Path, *, replace: bool) -> None:
        tried.append(named.name)
        publish(_temporary, named, replace=replace)

    monkeypatch.setattr(files, "publish", noted)
    rehearse(tmp_path / name, key="key", only_if_absent=True)
    assert tried[0].endswith(name[-50:])
