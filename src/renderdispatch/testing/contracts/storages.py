"""What must every object storage do?

Each test is a sentence of `renderdispatch.protocols.StorageAdapter`::

    class TestMyStorage(StorageContract):
        @pytest.fixture
        def storage(self, tmp_path):
            storage = MyStorage(tmp_path)
            yield storage
            storage.close()

        def raw_get(self, storage, key):  # past the storage: straight from where it keeps its objects
            path = storage.folder / key
            return path.read_bytes() if path.exists() else None

        def raw_set(self, storage, key, data):
            path = storage.folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from renderdispatch.errors import (
    InvalidRequestError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageDeniedError,
    StorageError,
)
from renderdispatch.messages import SignedPut
from renderdispatch.plumbing import local_urls
from renderdispatch.protocols import Locality, StorageAdapter, SupportsFileNames
from renderdispatch.testing.builders import eventually, in_threads

_HOUR = timedelta(hours=1)
_THREADS = 8

BAD_KEYS = {
    "empty": "",
    "leading-slash": "/a",
    "trailing-slash": "a/",
    "empty-part": "a//b",
    "slash": "/",
    "dot": ".",
    "dots": "..",
    "dot-part": "a/./b",
    "dots-part": "a/../b",
    "dots-first": "../a",
    "dots-last": "a/..",
    "backslash": "a\\b",
    "newline": "a\nb",
    "nul": "a\0b",
    "delete": "a\x7fb",
    "c1-control": "a\x85b",
    "too-long": "a/" * 512 + "b",
    "too-long-in-utf-8": "é/" * 341 + "éé",
    "no-unicode": "a\ud800b",
}
"""Keys that every storage refuses."""

GOOD_KEYS = {
    "plain": "a",
    "nested": "a/b/c/d/e/f.mp4",
    "dots-inside": "..a/b../c...d/.e",
    "spaces": " a b / c ",
    "reserved": "a?b=c&d#e%20f+g;h:i@j,k!l*m'n(o)p[q]r{s}t|u^v`w~x<y>z\"",
    "scripts": "日本語/αβγ/עברית/ünï/🎵.wav",
    "decomposed": "e\u0301/a\u0308",
    "longest": "/".join(["é" * 51] * 9 + ["é" * 48 + "a"]),
}
"""Keys that every storage takes; the longest has 1,024 bytes."""

assert len(GOOD_KEYS["longest"].encode()) == 1024


class StorageContract:
    """Subclass it, override `storage`, and every promise of `StorageAdapter` is tested.

    Declare on the subclass what a storage does not promise; those tests are skipped. Override `raw_get`
    and `raw_set` too: without them, the tests of what is really stored are skipped.
    """

    write_once: ClassVar[bool] = True
    """Whether ``if_absent`` is honoured."""

    writes_whole: ClassVar[bool] = True
    """Whether readers see the old object or the new one at every moment."""

    signs_urls: ClassVar[bool] = True
    """Whether it can sign URLs."""

    urls_expire: ClassVar[bool] = True
    """Whether signed URLs end by themselves."""

    def raw_get(self, storage: Any, key: str) -> bytes | None:  # noqa: ARG002 - overrides need them
        """Return the bytes that are stored under a key, without a call of the storage; None if there are none."""
        pytest.skip("override `raw_get` and `raw_set` to test what is really stored")

    def raw_set(self, storage: Any, key: str, data: bytes) -> None:  # noqa: ARG002 - overrides need them
        """Store bytes under a key, without a call of the storage, as another program would."""
        pytest.skip("override `raw_get` and `raw_set` to test what is really stored")

    @pytest.fixture
    def storage(self) -> StorageAdapter:
        """An empty storage; override it."""
        raise NotImplementedError("override the fixture `storage`")

    @pytest.fixture
    def second(self, storage: StorageAdapter) -> StorageAdapter | None:  # noqa: ARG002 - overrides need it
        """Another instance over the same objects as `storage`; override it if there can be one."""
        return None

    def read_url(self, url: str) -> bytes:
        """Read a signed URL without credentials. A refusal raises `StorageDeniedError`, a 404 `ObjectNotFoundError`."""
        if not url.startswith("http"):
            with local_urls.open_get(url) as file:
                return file.read()
        import httpx

        response = httpx.get(url)
        if response.status_code == 404:
            raise ObjectNotFoundError("404")
        if response.status_code >= 400:
            raise StorageDeniedError(str(response.status_code))
        return response.content

    def write_url(self, put: SignedPut, source: Path) -> None:
        """Upload a file to a signed URL without credentials. A refusal raises the error that it means."""
        if not put.url.startswith("http"):
            local_urls.put_once(put.url, source)
            return
        import httpx

        data = source.read_bytes()  # its own length is sent, also where another one was signed
        response = httpx.put(put.url, headers={**put.headers, "content-length": str(len(data))}, content=data)
        if response.status_code == 412:
            raise ObjectExistsError("412")
        if response.status_code >= 400:
            raise StorageDeniedError(str(response.status_code))

    @pytest.fixture
    def once(self) -> None:
        """Skips if ``if_absent`` is not honoured."""
        if not self.write_once:
            pytest.skip("the storage does not promise write-once puts")

    @pytest.fixture
    def whole(self) -> None:
        """Skips if readers may see a part."""
        if not self.writes_whole:
            pytest.skip("the storage does not promise whole objects to readers while it writes")

    @pytest.fixture
    def signed(self) -> None:
        """Skips without signed URLs."""
        if not self.signs_urls:
            pytest.skip("the storage does not sign URLs")

    # --- put, open, stat

    @staticmethod
    def _read(storage: StorageAdapter, key: str) -> bytes:
        with storage.open(key) as file:
            return file.read()

    @staticmethod
    def _keys(storage: StorageAdapter, prefix: str = "") -> list[str]:
        return [info.key for info in storage.list(prefix)]

    @pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, (1 << 20) + 1, 5 << 20])
    def test_put_takes_bytes_a_path_a_file_and_chunks(self, storage: StorageAdapter, tmp_path: Path, size: int) -> None:
        """`put` stores the same object from each kind of source, of any size."""
        data = hashlib.shake_128(str(size).encode()).digest(size)
        path = tmp_path / "source"
        path.write_bytes(data)
        storage.put("bytes", data)
        storage.put("path", path)
        with path.open("rb") as file:
            storage.put("file", file)
        storage.put("chunks", (data[start : start + 70_000] for start in range(0, size, 70_000)))
        for key in ("bytes", "path", "file", "chunks"):
            assert self._read(storage, key) == data
            assert storage.stat(key).size == size
        assert path.read_bytes() == data

    def test_put_reads_a_file_from_where_it_stands(self, storage: StorageAdapter) -> None:
        """An open file is read from its position and stays open."""
        file = io.BytesIO(b"0123456789")
        file.seek(4)
        storage.put("key", file)
        assert self._read(storage, "key") == b"456789"
        assert not file.closed

    def test_put_returns_what_stat_returns(self, storage: StorageAdapter) -> None:
        """`put` returns key, size and etag as `stat` does."""
        put, found = storage.put("a/b", b"hello"), storage.stat("a/b")
        assert (put.key, put.size, put.etag) == (found.key, found.size, found.etag) == ("a/b", 5, found.etag)

    def test_a_time_is_aware(self, storage: StorageAdapter) -> None:
        """If storage knows when an object was written, the time is aware."""
        storage.put("key", b"")
        modified_at = storage.stat("key").modified_at
        assert modified_at is None or modified_at.tzinfo is not None

    def test_put_replaces(self, storage: StorageAdapter) -> None:
        """A second `put` replaces the object, longer or shorter; an etag, where there is one, changes with it."""
        first = storage.put("key", b"a longer object")
        storage.put("key", b"short")
        found = storage.stat("key")
        assert self._read(storage, "key") == b"short"
        assert found.size == 5
        assert found.etag is None or found.etag != first.etag

    def test_a_source_that_raises_leaves_no_trace(self, storage: StorageAdapter) -> None:
        """An error of the source passes through. A new key stays absent, an existing object stays as it was."""
        storage.put("standing", b"old")

        def broken() -> Iterator[bytes]:
            yield b"x" * 3_000_000
            raise ZeroDivisionError

        for key in ("standing", "new"):
            with pytest.raises(ZeroDivisionError):
                storage.put(key, broken())
        assert self._read(storage, "standing") == b"old"
        assert self._keys(storage) == ["standing"]

    def test_a_source_of_text_leaves_no_trace(self, storage: StorageAdapter) -> None:
        """A string or chunks of text raise `TypeError`."""
        for source in ("a/path", iter(["text"]), io.StringIO("text")):
            with pytest.raises(TypeError):
                storage.put("key", source)  # type: ignore[arg-type]  # a wrong type is what is tested
        assert self._keys(storage) == []

    def test_a_missing_path_leaves_no_trace(self, storage: StorageAdapter, tmp_path: Path) -> None:
        """A path that does not exist raises `FileNotFoundError`."""
        with pytest.raises(FileNotFoundError):
            storage.put("key", tmp_path / "missing")
        assert self._keys(storage) == []

    @pytest.mark.usefixtures("whole")
    def test_readers_never_see_a_part(self, storage: StorageAdapter) -> None:
        """While an object is replaced, readers see the old one or the new one."""
        old, new = b"o" * 300_000, b"n" * 200_000
        storage.put("key", old)

        def chunks() -> Iterator[bytes]:
            for start in range(0, len(new), 50_000):
                assert self._read(storage, "key") == old
                assert storage.stat("key").size == len(old)
                assert self._keys(storage) == ["key"]
                yield new[start : start + 50_000]

        storage.put("key", chunks())
        assert self._read(storage, "key") == new

    @pytest.mark.usefixtures("whole")
    def test_an_open_object_stays_whole_when_it_is_replaced(self, storage: StorageAdapter) -> None:
        """A reader continues with the object that it opened, or is refused. It never reads a mixture."""
        old, new = b"o" * 300_000, b"n" * 300_000
        storage.put("key", old)
        with storage.open("key") as file:
            start = file.read(1000)
            storage.put("key", new)
            try:
                rest = file.read()
            except StorageError:
                return
        assert start + rest == old

    @pytest.mark.usefixtures("whole")
    def test_concurrent_puts_leave_one_of_them(self, storage: StorageAdapter) -> None:
        """Of eight threads that put one key at once, the object of one is stored, whole."""
        objects = [bytes([65 + number]) * 100_000 for number in range(_THREADS)]
        in_threads(_THREADS, lambda number: storage.put("a/b", objects[number]))
        assert self._read(storage, "a/b") in objects
        assert self._keys(storage) == ["a/b"]

    def test_open_is_streamed(self, storage: StorageAdapter) -> None:
        """An open object is read piece by piece, to its end."""
        storage.put("key", b"0123456789")
        with storage.open("key") as file:
            assert [file.read(4), file.read(4), file.read(4), file.read(4)] == [b"0123", b"4567", b"89", b""]

    def test_open_and_stat_raise_for_an_absent_object(self, storage: StorageAdapter) -> None:
        """`open` and `stat` raise `ObjectNotFoundError` at once, for an absent key and for a part of a key."""
        storage.put("a/b", b"")
        for key in ("absent", "a", "a/b/c"):
            with pytest.raises(ObjectNotFoundError):
                storage.open(key)
            with pytest.raises(ObjectNotFoundError):
                storage.stat(key)

    # --- if_absent

    @pytest.mark.usefixtures("once")
    def test_if_absent_refuses_an_existing_object(self, storage: StorageAdapter) -> None:
        """`put` with ``if_absent`` writes once; then `ObjectExistsError`, and the object stays."""
        storage.put("a/b", b"first", if_absent=True)
        with pytest.raises(ObjectExistsError):
            storage.put("a/b", b"second", if_absent=True)
        assert self._read(storage, "a/b") == b"first"
        storage.delete("a/b")
        storage.put("a/b", b"third", if_absent=True)
        assert self._read(storage, "a/b") == b"third"

    @pytest.mark.usefixtures("once")
    def test_of_concurrent_puts_if_absent_one_succeeds(self, storage: StorageAdapter) -> None:
        """Of eight threads that put one key with ``if_absent`` at once, one succeeds, and its object is stored."""

        def put(number: int) -> bytes | None:
            data = bytes([65 + number]) * 100_000
            try:
                storage.put("contended", data, if_absent=True)
            except ObjectExistsError:
                return None
            return data

        (winner,) = [data for data in in_threads(_THREADS, put) if data is not None]
        assert self._read(storage, "contended") == winner

    # --- what is really stored

    @pytest.mark.parametrize("key", ["key", "a/b c/ü.mp4"])
    def test_what_is_stored_is_what_was_put(self, storage: StorageAdapter, tmp_path: Path, key: str) -> None:
        """`put` stores exactly the bytes of its source; a replacement, a refusal and a delete show there too."""
        path = tmp_path / "source"
        path.write_bytes(b"x" * 70_000)
        for source, data in ((path, b"x" * 70_000), (iter([b"ab", b"", b"c"]), b"abc"), (b"", b"")):
            storage.put(key, source)
            assert self.raw_get(storage, key) == data

        def broken() -> Iterator[bytes]:
            yield b"part"
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            storage.put(key, broken())
        assert self.raw_get(storage, key) == b""
        storage.delete(key)
        assert self.raw_get(storage, key) is None

    @pytest.mark.parametrize("key", ["key", "a/b c/ü.mp4"])
    def test_what_others_stored_is_found(self, storage: StorageAdapter, key: str) -> None:
        """`open`, `stat`, `list` and the deletes go by what is stored, also if another program stored it."""
        self.raw_set(storage, key, b"hello")
        assert self._read(storage, key) == b"hello"
        assert storage.stat(key).size == 5
        assert [(info.key, info.size) for info in storage.list("")] == [(key, 5)]
        self.raw_set(storage, key, b"longer than before")
        assert self._read(storage, key) == b"longer than before"
        assert storage.delete_prefix(key[:2]) == 1
        assert self.raw_get(storage, key) is None
        assert self._keys(storage) == []

    @pytest.mark.usefixtures("once")
    def test_what_others_stored_is_not_overwritten(self, storage: StorageAdapter) -> None:
        """`put` with ``if_absent`` is refused if any object exists under the key, and the object stays as it is."""
        self.raw_set(storage, "a/b", b"theirs")
        with pytest.raises(ObjectExistsError):
            storage.put("a/b", b"ours", if_absent=True)
        assert self.raw_get(storage, "a/b") == b"theirs"

    @pytest.mark.usefixtures("signed")
    def test_signed_urls_reach_what_is_stored(self, storage: StorageAdapter, tmp_path: Path) -> None:
        """An upload by a signed URL stores exactly its bytes, unless an object exists; another one reads them."""
        source = tmp_path / "source"
        source.write_bytes(b"ours")
        for key, theirs in (("new", None), ("old", b"theirs")):
            put = storage.sign_put(key, expires_in=_HOUR, content_type="video/mp4")
            if theirs is not None:
                self.raw_set(storage, key, theirs)
                with pytest.raises(ObjectExistsError):
                    self.write_url(put, source)
            else:
                self.write_url(put, source)
            found = self.raw_get(storage, key)
            assert found == (theirs or b"ours") == self.read_url(storage.sign_get(key, expires_in=_HOUR))

    # --- keys

    @pytest.mark.parametrize("name", GOOD_KEYS)
    def test_good_keys(self, storage: StorageAdapter, name: str) -> None:
        """Any key within the rules is stored, found, listed and deleted under exactly its name."""
        key = GOOD_KEYS[name]
        assert storage.put(key, b"x").key == key
        assert self._read(storage, key) == b"x"
        assert storage.stat(key).key == key
        assert self._keys(storage) == [key]
        storage.delete(key)
        assert self._keys(storage) == []

    @pytest.mark.parametrize("name", BAD_KEYS)
    def test_bad_keys(self, storage: StorageAdapter, name: str) -> None:
        """A key against the rules raises `StorageDeniedError` everywhere, and nothing is written."""
        key = BAD_KEYS[name]
        for call in (
            lambda: storage.put(key, b"x"),
            lambda: storage.open(key),
            lambda: storage.stat(key),
            lambda: storage.delete(key),
            lambda: storage.sign_get(key, expires_in=_HOUR),
            lambda: storage.sign_put(key, expires_in=_HOUR, content_type="video/mp4"),
        ):
            with pytest.raises(StorageDeniedError):
                call()
        assert self._keys(storage) == []

    # --- list, delete

    def test_list_goes_by_prefix_sorted_by_key(self, storage: StorageAdapter) -> None:
        """`list` gives the objects whose keys start with any string, sorted by key."""
        keys = ["a-b", "a/b", "a/b-c", "a/b/c", "a.b", "ab", "b", "a/é", "a/z", "A", "a b"]
        keys.remove("a/b")  # a folder cannot hold an object above another one
        for number, key in enumerate(keys):
            storage.put(key, b"x" * number)
        assert [(info.key, info.size) for info in storage.list("")] == sorted(
            (key, number) for number, key in enumerate(keys)
        )
        for prefix in ("a", "a/", "a/b", "a/b/", "a/b/c", "a/b/cd", "b", "c", "/", "a/../", "..", "a\0", "é"):
            assert self._keys(storage, prefix) == sorted(key for key in keys if key.startswith(prefix))

    def test_list_of_an_empty_storage(self, storage: StorageAdapter) -> None:
        """`list` of a storage without objects gives nothing."""
        assert self._keys(storage) == []

    def test_list_while_others_delete(self, storage: StorageAdapter) -> None:
        """`list` goes on when objects vanish meanwhile."""
        for number in range(9):
            storage.put(f"{number}/x", b"")
        found = []
        for info in storage.list(""):
            found.append(info.key)
            storage.delete(f"{len(found)}/x")
            storage.delete("8/x")
        assert found[0] == "0/x"

    def test_delete_removes(self, storage: StorageAdapter) -> None:
        """`delete` removes the object and no other. An absent object is not an error."""
        storage.put("a/b", b"")
        storage.put("a/c", b"")
        for _ in range(2):
            storage.delete("a/b")
        storage.delete("never/was")
        assert self._keys(storage) == ["a/c"]

    def test_delete_of_a_part_of_a_key(self, storage: StorageAdapter) -> None:
        """`delete` of a part of a key, or of a longer key, removes nothing."""
        storage.put("a/b", b"")
        storage.delete("a")
        storage.delete("a/b/c")
        assert self._keys(storage) == ["a/b"]

    def test_put_beside_deletes(self, storage: StorageAdapter) -> None:
        """A put is not lost when the last other object beside it is deleted at the same moment."""

        def work(number: int) -> None:
            for turn in range(30):
                key = f"shared/folder/{number}-{turn}"
                storage.put(key, b"x")
                assert storage.stat(key).size == 1
                storage.delete(key)

        in_threads(4, work)
        assert self._keys(storage) == []

    def test_delete_prefix_removes_and_counts(self, storage: StorageAdapter) -> None:
        """`delete_prefix` removes every object whose key starts with the string, and returns their number."""
        for key in ("a/b/1", "a/b/2", "a/bc", "a/c", "b"):
            storage.put(key, b"")
        assert storage.delete_prefix("a/b") == 3
        assert self._keys(storage) == ["a/c", "b"]
        assert storage.delete_prefix("a/b") == 0

    def test_delete_prefix_refuses_everything(self, storage: StorageAdapter) -> None:
        """`delete_prefix` of the empty prefix raises `StorageDeniedError`."""
        storage.put("a", b"")
        with pytest.raises(StorageDeniedError):
            storage.delete_prefix("")
        assert self._keys(storage) == ["a"]

    # --- signed URLs

    def test_locality_is_known(self, storage: StorageAdapter) -> None:
        """A storage states how far its URLs reach."""
        assert storage.locality in Locality

    @pytest.mark.parametrize("expires_in", [timedelta(0), -_HOUR, timedelta(days=7, microseconds=1)])
    def test_urls_live_for_at_most_seven_days(self, storage: StorageAdapter, expires_in: timedelta) -> None:
        """Another lifetime than above 0 and at most 7 days raises `InvalidRequestError`."""
        with pytest.raises(InvalidRequestError):
            storage.sign_get("key", expires_in=expires_in)
        with pytest.raises(InvalidRequestError):
            storage.sign_put("key", expires_in=expires_in, content_type="video/mp4")

    @pytest.mark.usefixtures("signed")
    @pytest.mark.parametrize("name", GOOD_KEYS)
    def test_a_signed_url_reads(self, storage: StorageAdapter, name: str) -> None:
        """`sign_get` gives a URL that reads the object as it is when it is read; seven days are allowed."""
        url = storage.sign_get(GOOD_KEYS[name], expires_in=timedelta(days=7))
        assert url.isascii()
        with pytest.raises(ObjectNotFoundError):
            self.read_url(url)
        storage.put(GOOD_KEYS[name], b"hello")
        assert self.read_url(url) == self.read_url(url) == b"hello"

    @pytest.mark.usefixtures("signed")
    @pytest.mark.parametrize("name", GOOD_KEYS)
    def test_a_signed_url_writes_once(self, storage: StorageAdapter, tmp_path: Path, name: str) -> None:
        """`sign_put` gives an upload that works once, and is refused if the object exists."""
        put = storage.sign_put(GOOD_KEYS[name], expires_in=_HOUR, content_type="video/mp4")
        source = tmp_path / "source"
        source.write_bytes(b"first")
        self.write_url(put, source)
        source.write_bytes(b"second")
        with pytest.raises(ObjectExistsError):
            self.write_url(put, source)
        assert self._read(storage, GOOD_KEYS[name]) == b"first"

    @pytest.mark.usefixtures("signed")
    def test_a_signed_url_does_not_overwrite_a_put(self, storage: StorageAdapter, tmp_path: Path) -> None:
        """An upload is refused where `put` wrote an object, before or after the URL was signed."""
        source = tmp_path / "source"
        source.write_bytes(b"second")
        put = storage.sign_put("key", expires_in=_HOUR, content_type="video/mp4")
        storage.put("key", b"first")
        with pytest.raises(ObjectExistsError):
            self.write_url(put, source)
        assert self._read(storage, "key") == b"first"

    @pytest.mark.usefixtures("signed")
    def test_of_concurrent_uploads_one_succeeds(self, storage: StorageAdapter, tmp_path: Path) -> None:
        """Of eight uploads to one signed URL at once, one succeeds, and its object is stored."""
        put = storage.sign_put("a/contended", expires_in=_HOUR, content_type="video/mp4")

        def upload(number: int) -> bytes | None:
            source = tmp_path / f"source-{number}"
            source.write_bytes(bytes([65 + number]) * 100_000)
            try:
                self.write_url(put, source)
            except ObjectExistsError:
                return None
            return source.read_bytes()

        (winner,) = [data for data in in_threads(_THREADS, upload) if data is not None]
        assert self._read(storage, "a/contended") == winner

    @pytest.mark.usefixtures("signed")
    @pytest.mark.parametrize("size", [0, 4, 6])
    def test_a_signed_size_is_enforced(self, storage: StorageAdapter, tmp_path: Path, size: int) -> None:
        """An upload of another size than the signed one is refused and writes nothing; the signed size is accepted."""
        source = tmp_path / "source"
        source.write_bytes(b"x" * 5)
        with pytest.raises(StorageDeniedError):
            self.write_url(storage.sign_put("key", expires_in=_HOUR, content_type="video/mp4", size=size), source)
        assert self._keys(storage) == []
        self.write_url(storage.sign_put("key", expires_in=_HOUR, content_type="video/mp4", size=5), source)
        assert storage.stat("key").size == 5

    @pytest.mark.usefixtures("signed")
    def test_a_signed_url_expires(self, storage: StorageAdapter, tmp_path: Path) -> None:
        """After ``expires_in`` a URL neither reads nor writes."""
        if not self.urls_expire:
            pytest.skip("the storage's URLs do not expire")
        storage.put("key", b"hello")
        source = tmp_path / "source"
        source.write_bytes(b"hello")
        second = timedelta(seconds=1)
        put = storage.sign_put("new", expires_in=second, content_type="video/mp4")
        get = storage.sign_get("key", expires_in=second)  # last, so that it is the last to expire

        def refused() -> bool:
            try:
                self.read_url(get)
            except StorageDeniedError:
                return True
            return False

        eventually(refused)
        with pytest.raises(StorageDeniedError):
            self.write_url(put, source)
        assert self._keys(storage) == ["key"]

    @pytest.mark.usefixtures("signed")
    def test_a_signed_upload_shows_no_secret(self, storage: StorageAdapter) -> None:
        """The result of `sign_put` hides its URL in its repr."""
        put = storage.sign_put("key", expires_in=_HOUR, content_type="video/mp4")
        assert put.url not in repr(put)

    # --- names of files

    @pytest.mark.usefixtures("signed")
    @pytest.mark.parametrize("name", ["song.mp4", 'Élan - 50% "日本"; ü?.mp4', "x" * 255])
    def test_a_file_is_named(self, storage: StorageAdapter, tmp_path: Path, name: str) -> None:
        """URLs that say the name of a file write once and read as others do."""
        if not (isinstance(storage, SupportsFileNames) and storage.names_files):
            pytest.skip("the storage does not say under which name its objects are saved")
        source = tmp_path / "source"
        source.write_bytes(b"hello")
        put = storage.sign_put("a/video.mp4", expires_in=_HOUR, content_type="video/mp4", file_name=name)
        self.write_url(put, source)
        with pytest.raises(ObjectExistsError):
            self.write_url(put, source)
        assert self.read_url(storage.sign_get("a/video.mp4", expires_in=_HOUR, file_name=name)) == b"hello"
        assert self.read_url(storage.sign_get("a/video.mp4", expires_in=_HOUR)) == b"hello"

    @pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b", "a\r\nb", "a\ud800b", "é" * 128])
    def test_what_is_no_file_s_name(self, storage: StorageAdapter, name: str) -> None:
        """A name that is not one part of a path of at most 255 bytes raises `InvalidRequestError`."""
        if not (isinstance(storage, SupportsFileNames) and storage.names_files):
            pytest.skip("the storage does not say under which name its objects are saved")
        with pytest.raises(InvalidRequestError):
            storage.sign_get("key", expires_in=_HOUR, file_name=name)
        with pytest.raises(InvalidRequestError):
            storage.sign_put("key", expires_in=_HOUR, content_type="video/mp4", file_name=name)

    # --- several instances, close

    def test_another_instance_sees_the_objects(self, storage: StorageAdapter, second: StorageAdapter | None) -> None:
        """What one instance put, another reads, lists and deletes."""
        if second is None:
            pytest.skip("the fixture `second` gives no other instance over the same objects")
        storage.put("a/b", b"hello")
        assert self._read(second, "a/b") == b"hello"
        assert self._keys(second) == ["a/b"]
        second.delete("a/b")
        assert self._keys(storage) == []

    def test_close_twice(self, storage: StorageAdapter) -> None:
        """A second `close` does nothing."""
        storage.put("a", b"")
        storage.close()
        storage.close()
