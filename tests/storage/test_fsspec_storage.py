"""Does `FsspecStorage` keep the promises of a storage: in a folder all of them, elsewhere those that it makes?"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import fsspec
import pytest

from renderdispatch.errors import (
    ConfigurationError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageDeniedError,
    StorageFullError,
)
from renderdispatch.plumbing import files, local_urls
from renderdispatch.plumbing.files import TEMPORARY
from renderdispatch.protocols import Locality
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.testing import StorageContract, in_threads

_HOUR = timedelta(hours=1)


class _InAFolder(StorageContract):
    """Its objects are files, each at its key in a folder."""

    root: Path

    @pytest.fixture(autouse=True)
    def _root(self, tmp_path: Path) -> None:
        self.root = tmp_path / "renders"

    def raw_get(self, storage: FsspecStorage, key: str) -> bytes | None:
        path = self.root / key
        return path.read_bytes() if path.exists() else None

    def raw_set(self, storage: FsspecStorage, key: str, data: bytes) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


class TestFolder(_InAFolder):
    urls_expire = False  # whoever may read the file may read it

    @pytest.fixture
    def storage(self) -> FsspecStorage:
        return FsspecStorage(self.root.as_uri())

    @pytest.fixture
    def second(self) -> FsspecStorage:
        return FsspecStorage(self.root)


class TestFolderWithoutLinks(TestFolder):
    """On FAT and in user space: no hard links, and no renames that do not replace."""

    @pytest.fixture(autouse=True)
    def _no_links(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refused(*_: object) -> None:
            raise PermissionError(errno.EPERM, "no hard links here")

        monkeypatch.setattr(os, "link", refused)
        monkeypatch.setattr(files, "_rename_once", lambda *_: False)


class TestFsspecMemory(StorageContract):
    signs_urls = False

    @pytest.fixture
    def storage(self, memory_url: str) -> FsspecStorage:
        return FsspecStorage(memory_url)

    @pytest.fixture
    def second(self, memory_url: str) -> FsspecStorage:
        return FsspecStorage(memory_url)

    @pytest.fixture(autouse=True)
    def _files(self, memory_url: str) -> None:
        self.files = fsspec.filesystem("memory")
        self.folder = memory_url.removeprefix("memory:/")

    def raw_get(self, storage: FsspecStorage, key: str) -> bytes | None:
        path = f"{self.folder}/{key}"
        return bytes(self.files.cat_file(path)) if self.files.exists(path) else None

    def raw_set(self, storage: FsspecStorage, key: str, data: bytes) -> None:
        self.files.pipe_file(f"{self.folder}/{key}", data)


class TestFsspecElsewhere(_InAFolder):
    """A file system that this library knows nothing about: fsspec's folders within another file system."""

    write_once = False
    writes_whole = False
    signs_urls = False

    @pytest.fixture
    def storage(self) -> FsspecStorage:
        return _elsewhere(self.root)


def _elsewhere(folder: Path) -> FsspecStorage:
    folder.mkdir(exist_ok=True)
    return FsspecStorage(
        "dir://",
        path=str(folder),
        target_protocol="file",
        target_options={"auto_mkdir": True, "skip_instance_cache": True},
    )


@pytest.fixture
def memory_url() -> str:
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "renders"


@pytest.fixture
def storage(root: Path) -> FsspecStorage:
    return FsspecStorage(root)


def _temporary_files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and TEMPORARY in path.name]


# --- where ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["plain", "with space", "ünï", "per%20cent?#", "a::b", "memory:", "new\nline", os.fsdecode(b"\xff")]
)
def test_a_folder_by_path_or_url(tmp_path: Path, name: str) -> None:
    """A path and the URL that `Path.as_uri` writes for it are the same folder."""
    folder = tmp_path / name
    FsspecStorage(folder.as_uri()).put("key", b"x")
    assert (folder / "key").read_bytes() == b"x"
    assert FsspecStorage(str(folder)).stat("key").size == FsspecStorage(folder).stat("key").size == 1
    assert FsspecStorage(folder.as_uri().replace("file://", "file://localhost")).stat("key").size == 1


@pytest.mark.parametrize("name", ["memory:", "file:x", "simplecache::x", "~me"])
def test_a_relative_path_is_not_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """In a `Path`, and in text that begins with ``./``, no character has another meaning."""
    monkeypatch.chdir(tmp_path)
    FsspecStorage(Path(name)).put("key", b"x")
    assert FsspecStorage(f"./{name}").stat("key").size == 1
    assert (tmp_path / name / "key").is_file()
    assert len(list(tmp_path.iterdir())) == 1


def test_the_home_in_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings do not pass through a shell, so ``~`` is understood."""
    monkeypatch.setenv("HOME", str(tmp_path))
    FsspecStorage("~/renders").put("key", b"x")
    assert (tmp_path / "renders/key").is_file()


@pytest.mark.parametrize("name", ["50%?#", "new\nline", os.fsdecode(b"\xff")])
def test_signed_urls_of_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    """What such a URL names is the object, for reading and writing."""
    storage, source = FsspecStorage(tmp_path / name), tmp_path / "source"
    source.write_bytes(b"x")
    put = storage.sign_put("key", expires_in=_HOUR, content_type="video/mp4", size=1)
    local_urls.put_once(put.url, source)
    assert (tmp_path / name / "key").is_file()
    with local_urls.open_get(storage.sign_get("key", expires_in=_HOUR)) as file:
        assert file.read() == b"x"


def test_localities(tmp_path: Path, memory_url: str) -> None:
    """A folder reaches over the machine, fsspec's memory over the process."""
    assert FsspecStorage(tmp_path).locality is Locality.MACHINE
    assert FsspecStorage(memory_url).locality is Locality.PROCESS


def test_a_relative_folder_stays_where_it_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative folder is the one in the working directory of the moment when the storage was made."""
    monkeypatch.chdir(tmp_path)
    storage = FsspecStorage("renders")
    monkeypatch.chdir("/")
    storage.put("key", b"x")
    assert (tmp_path / "renders/key").exists()


def test_unknown_protocols_and_missing_packages() -> None:
    """A URL that fsspec cannot open is a `ConfigurationError`."""
    with pytest.raises(ConfigurationError):
        FsspecStorage("nonsense://user:s3cret@host/x")
    with pytest.raises(ConfigurationError):
        FsspecStorage("s3://bucket", key="x", secret="s3cret") if not _has("s3fs") else _raise()


def _has(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


def _raise() -> None:
    raise ConfigurationError("s3fs is installed here")


def test_what_is_not_promised_is_refused(tmp_path: Path, memory_url: str) -> None:
    """Where a file system cannot do it atomically, write-once is a `ConfigurationError`, and so are URLs."""
    elsewhere = _elsewhere(tmp_path / "objects")
    with pytest.raises(ConfigurationError, match="only if it is absent"):
        elsewhere.put("key", b"x", if_absent=True)
    assert list(elsewhere.list("")) == []
    for storage in (elsewhere, FsspecStorage(memory_url)):
        with pytest.raises(ConfigurationError, match="R2Storage"):
            storage.sign_get("key", expires_in=_HOUR)
        with pytest.raises(ConfigurationError, match="R2Storage"):
            storage.sign_put("key", expires_in=_HOUR, content_type="video/mp4")


# --- staying inside -------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path: Path, root: Path) -> Path:
    """A folder with a secret, and links in the storage that lead to it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    root.mkdir()
    (root / "folder").symlink_to(outside)
    (root / "file").symlink_to(outside / "secret")
    (root / "relative").symlink_to("../outside/secret")
    (root / "circle").symlink_to("circle")
    return outside


@pytest.mark.parametrize("key", ["folder/secret", "folder/new", "folder/a/b", "file", "relative", "circle", "circle/x"])
def test_links_do_not_lead_out(storage: FsspecStorage, outside: Path, key: str) -> None:
    """No call follows a symbolic link out of the folder: `StorageDeniedError`, and nothing outside changes."""
    for call in (
        lambda: storage.put(key, b"x"),
        lambda: storage.put(key, b"x", if_absent=True),
        lambda: storage.open(key),
        lambda: storage.stat(key),
        lambda: storage.delete(key),
        lambda: storage.sign_get(key, expires_in=_HOUR),
        lambda: storage.sign_put(key, expires_in=_HOUR, content_type="video/mp4"),
    ):
        with pytest.raises(StorageDeniedError):
            call()
    assert list(storage.list("")) == []
    assert storage.delete_prefix("f") == 0
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_bytes() == b"secret"


def test_links_inside_are_followed(storage: FsspecStorage, root: Path) -> None:
    """A link that stays inside names the object that it leads to; deleting it leaves that one."""
    storage.put("a/b", b"hello")
    (root / "link").symlink_to("a/b")
    assert storage.stat("link").size == 5
    storage.delete("link")
    assert storage.stat("a/b").size == 5


def test_the_root_may_be_a_link(tmp_path: Path) -> None:
    """A folder that is reached by a link is a folder."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    FsspecStorage(tmp_path / "link").put("a/b", b"x")
    assert (tmp_path / "real/a/b").exists()


@pytest.mark.parametrize("key", [TEMPORARY, f"{TEMPORARY}/x", f"{TEMPORARY.upper()}/x"])
def test_the_folder_for_temporary_files_holds_no_objects(storage: FsspecStorage, key: str) -> None:
    """Its name is refused as a key's first part, on file systems that ignore case too."""
    with pytest.raises(StorageDeniedError):
        storage.put(key, b"x")


def test_pipes_and_folders_are_no_objects(storage: FsspecStorage, root: Path) -> None:
    """What is no regular file is not there, and opening it waits for nobody."""
    root.mkdir()
    os.mkfifo(root / "pipe")
    (root / "folder").mkdir()
    for key in ("pipe", "folder"):
        with pytest.raises(ObjectNotFoundError):
            storage.open(key)
    assert list(storage.list("")) == []


# --- what a folder cannot do ----------------------------------------------------------------------


@pytest.mark.parametrize("if_absent", [False, True])
def test_no_object_stands_below_another(storage: FsspecStorage, if_absent: bool) -> None:
    """A folder holds no object above or below another one: `StorageDeniedError`, and both stay as they were."""
    storage.put("a", b"1")
    storage.put("b/c", b"2")
    for key in ("a/b", "a/b/c", "b"):
        with pytest.raises(StorageDeniedError):
            storage.put(key, b"x", if_absent=if_absent)
    assert [(info.key, info.size) for info in storage.list("")] == [("a", 1), ("b/c", 1)]


def test_a_part_of_a_key_may_be_too_long(storage: FsspecStorage) -> None:
    """A part that is longer than a file's name may be is `StorageDeniedError`."""
    with pytest.raises(StorageDeniedError, match="longer"):
        storage.put("x" * 300, b"")


# --- tidiness -------------------------------------------------------------------------------------


def test_delete_takes_empty_folders_away(storage: FsspecStorage, root: Path) -> None:
    """Folders that a delete leaves empty go; the root and folders with something in them stay."""
    storage.put("a/b/c/d", b"")
    storage.put("a/x", b"")
    storage.delete("a/b/c/d")
    assert sorted(path.name for path in (root / "a").iterdir()) == ["x"]
    storage.delete("a/x")
    assert [path.name for path in root.iterdir()] == [TEMPORARY]


def test_a_put_outlives_whoever_takes_its_folder_away(storage: FsspecStorage, root: Path) -> None:
    """A folder that goes between its making and the naming of the file is made again."""
    over = threading.Event()

    def take_away() -> None:
        while not over.wait(0.0002):  # often, but not at every turn of the interpreter
            with suppress(OSError):
                (root / "shared").rmdir()

    taker = threading.Thread(target=take_away)
    taker.start()
    try:
        for number in range(300):
            storage.put("shared/key", b"x", if_absent=number % 2 == 0)
            storage.delete("shared/key")
    finally:
        over.set()
        taker.join()


_MAKES_AND_TAKES = """
    import os, sys
    print("ready", flush=True)
    while True:
        for turn in os.mkdir, os.rmdir:
            try:
                turn(sys.argv[1])
            except OSError:
                pass
"""


def test_a_folder_that_comes_and_goes_is_no_object(storage: FsspecStorage, root: Path) -> None:
    """A put beside another process that makes and takes its folder, as fast as it can, is not refused."""
    storage.put("shared/key", b"x")
    command = [sys.executable, "-c", textwrap.dedent(_MAKES_AND_TAKES), str(root / "shared")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            for _ in range(300):  # one in seventy was refused
                storage.put("shared/key", b"x")
                storage.delete("shared/key")
        finally:
            process.kill()


def test_files_of_dead_writers_go_after_a_day(root: Path) -> None:
    """A storage's first write removes temporary files that are older than a day, and no younger ones."""
    old, young = root / TEMPORARY / "old", root / TEMPORARY / "young"
    young.parent.mkdir(parents=True)
    for path, age_s in ((old, 86_500), (young, 86_000)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age_s,) * 2)
    FsspecStorage(root).put("key", b"x")
    assert [path.name for path in (root / TEMPORARY).iterdir()] == ["young"]
    assert [info.key for info in FsspecStorage(root).list("")] == ["key"]


def test_objects_are_readable_for_others(storage: FsspecStorage, root: Path) -> None:
    """An object has the rights of any new file, so that whoever serves the folder may read it."""
    before = os.umask(0o022)
    try:
        storage.put("key", b"x")
    finally:
        os.umask(before)
    assert (root / "key").stat().st_mode & 0o777 == 0o644


# --- mishaps --------------------------------------------------------------------------------------


def _endless() -> Iterator[bytes]:
    while True:
        yield b"x" * 65_536


@pytest.mark.parametrize("if_absent", [False, True])
def test_a_full_disk(small_disk: Path, if_absent: bool) -> None:
    """A full disk is `StorageFullError`; no temporary file is left, other objects stay, and with room it goes on."""
    storage = FsspecStorage(small_disk)
    storage.put("standing", b"old")
    with pytest.raises(StorageFullError):
        storage.put("new", _endless(), if_absent=if_absent)
    assert _temporary_files(small_disk) == []
    assert [(info.key, info.size) for info in storage.list("")] == [("standing", 3)]
    storage.put("new", b"x" * 1_000_000)


def test_a_full_disk_by_url(small_disk: Path, tmp_path: Path) -> None:
    """An upload to a signed URL meets a full disk as `StorageFullError`, and leaves nothing."""
    source = tmp_path / "source"
    source.write_bytes(b"x" * (4 << 20))
    put = FsspecStorage(small_disk).sign_put("a/new", expires_in=_HOUR, content_type="video/mp4")
    with pytest.raises(StorageFullError):
        local_urls.put_once(put.url, source)
    assert _temporary_files(small_disk) == []
    assert list(FsspecStorage(small_disk).list("")) == []


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    """What the file system does not allow is `StorageDeniedError`, for reading and writing."""
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("permissions have to be tested here: run as root")
        pytest.skip("needs root, to become somebody else")
    with tempfile.TemporaryDirectory() as folder:  # tmp_path lies below folders that only root may enter
        root = Path(folder)
        root.chmod(0o755)
        storage = FsspecStorage(root)
        storage.put("private/key", b"x")
        (root / "private/key").chmod(0o600)
        (root / "private").chmod(0o755)
        pid = os.fork()
        if pid == 0:
            refused = 0
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            for call in (
                lambda: storage.put("new", b"x"),
                lambda: storage.put("private/new", b"x", if_absent=True),
                lambda: storage.open("private/key"),
                lambda: storage.delete("private/key"),
            ):
                with suppress(Exception):
                    try:
                        call()
                    except StorageDeniedError:
                        refused += 1
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4
        assert (root / "private/key").read_bytes() == b"x"


def test_a_read_only_file_system(small_disk: Path) -> None:
    """A read-only file system is `StorageDeniedError` for writes, and reads on."""
    storage = FsspecStorage(small_disk)
    storage.put("key", b"x")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for call in (
        lambda: storage.put("new", b"x"),
        lambda: storage.delete("key"),
        lambda: FsspecStorage(small_disk).put("a", b""),
    ):
        with pytest.raises(StorageDeniedError, match="read-only"):
            call()
    assert [info.key for info in storage.list("")] == ["key"]
    with storage.open("key") as file:
        assert file.read() == b"x"


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    """A storage whose folder is a file refuses to write, and has no objects."""
    (tmp_path / "file").write_bytes(b"x")
    storage = FsspecStorage(tmp_path / "file")
    with pytest.raises(StorageDeniedError, match=str(tmp_path / "file")):
        storage.put("key", b"x")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(StorageDeniedError, match="link cannot be made: File exists"):
        FsspecStorage(tmp_path / "link").put("key", b"x")
    if sys.platform != "linux":
        return
    with pytest.raises(StorageDeniedError, match="the folder /proc/renders cannot be made: No such file"):
        FsspecStorage("/proc/renders").put("key", b"x")
    with pytest.raises(ObjectNotFoundError):
        storage.stat("key")
    assert list(storage.list("")) == []


_SLOW_WRITER = """
    import sys, time
    from renderdispatch.storage.fsspec import FsspecStorage
    def chunks():
        for turn in range(10**6):
            yield b"x" * 1_000_000
            print(turn, flush=True)
            time.sleep(0.01)
    FsspecStorage(sys.argv[1]).put("key", chunks())
"""


def test_a_killed_writer_leaves_no_half_object(storage: FsspecStorage, root: Path) -> None:
    """A writer that dies by SIGKILL leaves the object as it was before, and no other in sight."""
    storage.put("key", b"old")
    command = [sys.executable, "-c", textwrap.dedent(_SLOW_WRITER), str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        process.send_signal(signal.SIGKILL)
    assert len(_temporary_files(root)) == 1
    assert [(info.key, info.size) for info in storage.list("")] == [("key", 3)]


_LARGE_PUT = """
    import resource, sys
    from renderdispatch.storage.fsspec import FsspecStorage
    from renderdispatch.plumbing import files, local_urls
    storage = FsspecStorage(sys.argv[1])
    storage.put("warm", b"up")
    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    before = peak()
    storage.put("large", (bytes([number]) * (1 << 20) for number in range(256)))
    with storage.open("large") as file:
        while file.read(1 << 20):
            pass
    print((peak() - before) // 1024, storage.stat("large").size)
"""


def test_memory_is_bounded(tmp_path: Path) -> None:
    """A put of 256 MiB from a generator, and reading it again, takes less than 32 MiB more memory at the peak."""
    command = [sys.executable, "-c", textwrap.dedent(_LARGE_PUT), str(tmp_path)]
    mebibytes, size = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(size) == 256 << 20
    assert int(mebibytes) < 32


_PUT_ONCE = """
    import sys
    from renderdispatch.errors import ObjectExistsError
    from renderdispatch.storage.fsspec import FsspecStorage
    storage = FsspecStorage(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    won = []
    for number in range(100):
        try:
            storage.put(f"a/{number}", sys.argv[2].encode(), if_absent=True)
            won.append(number)
        except ObjectExistsError:
            pass
    print(*won)
"""


def test_of_processes_that_put_if_absent_one_succeeds(storage: FsspecStorage, root: Path) -> None:
    """Of three processes that put the same hundred keys with ``if_absent``, each key has one winner."""
    command = [sys.executable, "-c", textwrap.dedent(_PUT_ONCE), str(root)]
    processes = [
        subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for name in "abc"
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for name, process in zip("abc", processes, strict=True):
        for number in process.communicate(timeout=60)[0].split():
            with storage.open(f"a/{number}") as file:
                assert file.read() == name.encode()
    assert len(list(storage.list("a/"))) == 100


# --- file: URLs -----------------------------------------------------------------------------------


def test_a_file_url_names_the_file(storage: FsspecStorage, root: Path) -> None:
    """`local_path` gives the path of a file: URL, so that it may be read in place; other URLs have none."""
    storage.put("a b/ü#?.mp4", b"x")
    path = local_urls.local_path(storage.sign_get("a b/ü#?.mp4", expires_in=_HOUR))
    assert path == root / "a b" / "ü#?.mp4"
    for url in (
        "https://example.com/a",
        "memory://x/a",
        "file://elsewhere/a",
        "file:///a%00b",
        "file:///a\0b",
        "/a",
        "",
    ):
        assert local_urls.local_path(url) is None


def test_a_file_url_writes_whole_files_outside_of_storages_too(tmp_path: Path) -> None:
    """`put_once` needs no storage: it makes the folders, writes once, and leaves no temporary file."""
    source, target = tmp_path / "source", tmp_path / "a/b/target"
    source.write_bytes(b"first")
    local_urls.put_once(target.as_uri(), source)
    with pytest.raises(ObjectExistsError):
        local_urls.put_once(target.as_uri(), source)
    assert target.read_bytes() == b"first"
    assert [path.name for path in target.parent.iterdir()] == ["target"]


@pytest.mark.parametrize("url", ["", "x", "ftp://host/x", "memory:", "memory://x", "file://host/x", "http://h/x"])
def test_urls_that_name_nothing_here(url: str, tmp_path: Path) -> None:
    """Any other URL is `StorageDeniedError`."""
    (tmp_path / "source").write_bytes(b"")
    with pytest.raises(StorageDeniedError):
        local_urls.open_get(url)
    with pytest.raises(StorageDeniedError):
        local_urls.put_once(url, tmp_path / "source")


def test_concurrent_uploads_by_url_beside_deletes(storage: FsspecStorage, tmp_path: Path) -> None:
    """An upload by URL is not lost because the last object beside it is deleted at the same moment."""
    source = tmp_path / "source"
    source.write_bytes(b"x")

    def work(number: int) -> None:
        for turn in range(20):
            key = f"shared/{number}-{turn}"
            local_urls.put_once(storage.sign_put(key, expires_in=_HOUR, content_type="x", size=1).url, source)
            storage.delete(key)

    in_threads(4, work)
    assert list(storage.list("")) == []


class Nameless(FsspecStorage):
    """Signs its own URLs, which say no names."""

    names_files = False

    def sign_get(self, key: str, *, expires_in: timedelta) -> str:  # type: ignore[override]  # what the flag is for
        return super().sign_get(key, expires_in=expires_in)


def test_names_of_files_are_a_power(tmp_path: Path) -> None:
    """The contract asks none of a subclass that has given it up."""
    contract, storage = StorageContract(), Nameless(tmp_path)
    with pytest.raises(pytest.skip.Exception):
        contract.test_a_file_is_named(storage, tmp_path, "song.mp4")
    with pytest.raises(pytest.skip.Exception):
        contract.test_what_is_no_file_s_name(storage, "")
