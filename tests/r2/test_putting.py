"""Does an object arrive whole in R2, once, or not at all?"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from renderdispatch.errors import ObjectExistsError, StorageError
from renderdispatch.protocols import Source
from renderdispatch.storage.r2 import PART_BYTES, R2Storage
from renderdispatch.testing import in_threads
from renderdispatch.testing.local_r2 import FaultKind, LocalR2
from tests.support.lengths import lengths

_HOUR = timedelta(hours=1)
_WRITERS = 8


def _chunks(data: bytes, size: int = 700_001) -> Iterator[bytes]:
    yield from (data[start : start + size] for start in range(0, len(data), size))


def _read(storage: R2Storage, key: str) -> bytes:
    with storage.open(key) as file:
        return file.read()


class TestParts:
    """Chunks of unknown size go up in parts."""

    large = hashlib.shake_128(b"large").digest(2 * PART_BYTES + 12_345)

    def test_uneven_chunks_arrive_in_equal_parts(self, storage: R2Storage, r2: LocalR2) -> None:
        """Chunks of any size become parts of one size, and `put` says what `stat` says."""
        put = storage.put("song", _chunks(self.large), content_type="audio/wav")
        found = storage.stat("song")
        assert (put.size, put.etag) == (found.size, found.etag) == (len(self.large), put.etag)
        assert _read(storage, "song") == self.large
        assert r2.open_uploads() == []
        assert r2.counts()["PUT 200"] == 3

    def test_a_source_that_raises_ends_the_upload(self, storage: R2Storage, r2: LocalR2) -> None:
        """Nothing stands, and no upload stays open, when the source raises between two parts."""

        def broken() -> Iterator[bytes]:
            yield self.large
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            storage.put("song", broken())
        assert list(storage.list("")) == []
        assert r2.open_uploads() == []
        assert r2.counts()["DELETE 204"] == 1

    @pytest.mark.parametrize("kind", ["reset", "500", "503", "lost-answer"])
    def test_a_part_is_sent_again(self, storage: R2Storage, r2: LocalR2, kind: FaultKind) -> None:
        """A part that breaks off, or is answered with trouble, is sent again."""
        r2.fail(kind, method="PUT", after_bytes=1_000_000)
        storage.put("song", _chunks(self.large))
        assert _read(storage, "song") == self.large
        assert r2.open_uploads() == []

    def test_a_lost_end_is_found(self, storage: R2Storage, r2: LocalR2) -> None:
        """An upload whose end was done, but not answered, has succeeded: the end is asked for again, and known."""
        chunks = _chunks(self.large)

        def failing_later() -> Iterator[bytes]:
            yield from chunks
            r2.fail("lost-answer", method="POST")

        storage.put("song", failing_later())
        assert _read(storage, "song") == self.large
        assert r2.open_uploads() == []

    def test_a_lost_beginning_stays_open(self, storage: R2Storage, r2: LocalR2) -> None:
        """An upload whose beginning was done, but not answered, is begun again; the first one is left to a rule.

        Nobody heard its id, and among the open uploads of a key nothing tells it from another writer's.
        """
        r2.fail("lost-answer", method="POST")
        storage.put("song", _chunks(self.large))
        assert _read(storage, "song") == self.large
        assert [path.rpartition("/")[2] for path in r2.open_uploads()] == ["song"]

    def test_a_part_that_is_refused_ends_the_upload(self, storage: R2Storage, r2: LocalR2) -> None:
        """No upload stays open when storage refuses a part for good."""
        r2.fail("403", method="PUT", after_bytes=1_000_000)
        with pytest.raises(StorageError):
            storage.put("song", _chunks(self.large))
        assert r2.open_uploads() == []
        assert list(storage.list("")) == []


class TestIfAbsent:
    """One writer wins."""

    def test_a_lost_answer_is_no_conflict(self, storage: R2Storage, r2: LocalR2) -> None:
        """A conditional `put` that succeeded unheard, and is refused when it is repeated, has succeeded."""
        r2.fail("lost-answer", method="PUT")
        put = storage.put("key", b"mine", if_absent=True)
        assert r2.counts()["PUT 412"] == 1
        assert put.etag == storage.stat("key").etag

    def test_the_same_bytes_of_another_are_a_conflict(self, storage: R2Storage) -> None:
        """A standing object is never taken for one's own, not even where the bytes are the same."""
        storage.put("key", b"same", if_absent=True)
        with pytest.raises(ObjectExistsError, match="write-once"):
            storage.put("key", b"same", if_absent=True)

    @pytest.mark.parametrize("rounds", lengths(10, soak=100, timeout_s=300))
    def test_small_objects_have_one_winner(self, storage: R2Storage, rounds: int) -> None:
        """Of eight writers of the same bytes, one wins, in every round."""
        for number in range(rounds):
            self._one_winner(storage, f"key-{number}", lambda _: b"the same")

    @pytest.mark.parametrize("rounds", lengths(1, long=10, soak=100, timeout_s=1800))
    def test_large_objects_have_one_winner(self, storage: R2Storage, rounds: int) -> None:
        """Of eight writers of chunks that are too many for one part, one wins, in every round."""
        data = [bytes([65 + index]) * (PART_BYTES + 1) for index in range(_WRITERS)]
        for number in range(rounds):
            winner = self._one_winner(storage, f"key-{number}", lambda index: _chunks(data[index]))
            assert _read(storage, f"key-{number}") == data[winner]
            storage.delete(f"key-{number}")

    @staticmethod
    def _one_winner(storage: R2Storage, key: str, source: Callable[[int], Source]) -> int:
        def put(index: int) -> int | None:
            try:
                storage.put(key, source(index), if_absent=True)
            except ObjectExistsError:
                return None
            return index

        (winner,) = [index for index in in_threads(_WRITERS, put) if index is not None]
        return winner


class TestTrouble:
    """What may work later is tried again."""

    @pytest.mark.parametrize("kind", ["reset", "500", "503"])
    def test_a_put_is_sent_again_from_its_start(
        self, storage: R2Storage, r2: LocalR2, tmp_path: Path, kind: FaultKind
    ) -> None:
        """A `put` of bytes, a path or a file that breaks off in the middle is sent again."""
        data = hashlib.shake_128(b"song").digest(3_000_000)
        path = tmp_path / "song"
        path.write_bytes(data)
        file = io.BytesIO(b"skipped" + data)
        file.seek(7)
        sources: dict[str, Source] = {"bytes": data, "path": path, "file": file}
        for key, source in sources.items():
            r2.fail(kind, method="PUT", after_bytes=1_500_000)
            storage.put(key, source)
            assert _read(storage, key) == data

    def test_a_put_that_is_refused_in_the_middle(self, storage: R2Storage, r2: LocalR2) -> None:
        """A refusal is not tried again, and nothing stands."""
        r2.fail("403", method="PUT", after_bytes=1_000_000)
        with pytest.raises(PermissionError):
            storage.put("key", b"x" * 3_000_000)
        assert list(storage.list("")) == []

    def test_a_reader_goes_on_where_it_broke_off(self, storage: R2Storage, r2: LocalR2) -> None:
        """A download that breaks off goes on at its place: nothing is lost, nothing doubled."""
        data = hashlib.shake_128(b"song").digest(3_000_000)
        storage.put("key", data)
        for kind in ("reset", "reset", "503"):
            r2.fail(kind, method="GET", key="key", after_bytes=900_000)
        assert _read(storage, "key") == data
        assert r2.counts()["GET reset"] == 2

    def test_a_reader_never_mixes_two_objects(self, storage: R2Storage, r2: LocalR2) -> None:
        """A download that breaks off is refused when the object was replaced meanwhile."""
        storage.put("key", b"o" * 64_000_000)  # more than sockets hold: it breaks off only once it is read
        r2.fail("reset", method="GET", key="key", after_bytes=48_000_000)
        with storage.open("key") as file:
            assert file.read(1000) == b"o" * 1000
            storage.put("key", b"n" * 64_000_000)
            with pytest.raises(StorageError, match="replaced"):
                file.read()

    def test_one_write_a_second(self, storage: R2Storage, r2: LocalR2) -> None:
        """Where one key takes one write a second, writers wait for their turn, and none fails."""
        r2.throttle(True)
        in_threads(3, lambda index: storage.put("key", bytes([index])))
        storage.delete("key")
        storage.put("key", (b"x" * PART_BYTES for _ in range(2)), if_absent=True)
        assert storage.stat("key").size == 2 * PART_BYTES
        assert r2.counts()["PUT 429"] > 0


class TestWhatIsStored:
    """What a browser is told."""

    @pytest.mark.parametrize(
        ("key", "content_type", "said"),
        [
            ("a/video.mp4", "video/mp4", 'inline; filename="video.mp4"'),
            ("a/poster.jpg", "image/jpeg", 'inline; filename="poster.jpg"'),
            ("a/image.svg", "image/svg+xml", 'attachment; filename="image.svg"'),
            ("a/page.html", "text/html", 'attachment; filename="page.html"'),
            (
                'a/50% "é".mp4',
                "video/mp4",
                "inline; filename=\"50_ ___.mp4\"; filename*=UTF-8''50%25%20%22%C3%A9%22.mp4",
            ),
        ],
    )
    def test_content_disposition(self, storage: R2Storage, key: str, content_type: str, said: str) -> None:
        """Video is played and all else saved, under the name of the key's last part; by `put` and by a signed upload."""
        storage.put(key, b"x", content_type=content_type)
        put = storage.sign_put(f"b/{key}", expires_in=_HOUR, content_type=content_type)
        assert httpx.put(put.url, headers=put.headers, content=b"x").status_code == 200
        for stored in (key, f"b/{key}"):
            answer = httpx.get(storage.sign_get(stored, expires_in=_HOUR))
            assert answer.headers["content-disposition"] == said
            assert answer.headers["content-type"] == content_type

    def test_a_prefix_is_a_folder(self, storage: R2Storage, r2: LocalR2) -> None:
        """A storage with a prefix keeps everything below it, sees nothing else, and its keys do not show it."""
        storage.put("outside", b"")
        below = r2.storage(prefix="tenants/acme")
        below.put("a/b", b"hello")
        assert [info.key for info in below.list("")] == ["a/b"]
        assert [info.key for info in storage.list("")] == ["outside", "tenants/acme/a/b"]
        assert httpx.get(below.sign_get("a/b", expires_in=_HOUR)).content == b"hello"
        assert below.delete_prefix("a") == 1
        with pytest.raises(PermissionError, match="prefix"):
            below.put("x" * 1024, b"")
        below.close()

    def test_folders_of_the_dashboard(self, storage: R2Storage) -> None:
        """Objects whose keys no storage takes are not listed, and `delete_prefix` removes them."""
        storage.put("a/b", b"")
        storage._s3.call("put_object", "a folder", Key="a/", Body=b"")
        assert [info.key for info in storage.list("a")] == ["a/b"]
        assert storage.delete_prefix("a/") == 2

    @pytest.mark.long
    def test_more_than_a_page(self, storage: R2Storage) -> None:
        """`list` and `delete_prefix` go through every page of a thousand."""
        keys = [f"k/{number:04}" for number in range(1001)]

        def put_some(index: int) -> None:
            for key in keys[index::8]:
                storage.put(key, b"")

        storage.put("first", b"")
        in_threads(8, put_some)
        assert [info.key for info in storage.list("k/")] == keys
        assert storage.delete_prefix("k/") == len(keys)
        assert [info.key for info in storage.list("")] == ["first"]


_LIMITED = """
import resource, sys
from pathlib import Path
import s3fs, httpx  # what is measured is the transfer, not the imports
from renderdispatch.storage.r2 import R2Storage
storage = R2Storage("renders", endpoint_url=sys.argv[1], access_key_id=sys.argv[2], secret_access_key=sys.argv[3])
list(storage.list("none"))

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])

before = peak()
source = Path(sys.argv[4])
with source.open("rb") as file:
    storage.put("chunks", iter(lambda: file.read(1 << 20), b""))
with storage.open("chunks") as file:
    assert sum(len(piece) for piece in iter(lambda: file.read(1 << 20), b"")) == source.stat().st_size
storage.close()
print((peak() - before) // 1024)
"""


@pytest.mark.parametrize("mebibytes", [128, pytest.param(256, marks=pytest.mark.long)])
def test_memory_is_bounded(r2: LocalR2, tmp_path: Path, mebibytes: int) -> None:
    """A large object goes up in chunks, which takes the most memory, and comes down again, in less than 64 MiB."""
    source = tmp_path / "large"
    with source.open("wb") as file:
        file.truncate(mebibytes << 20)
    arguments = [r2.endpoint_url, r2.access_key_id, r2.secret_access_key, str(source)]
    done = subprocess.run([sys.executable, "-c", _LIMITED, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64


_FORKING = """
import os, sys, threading
from renderdispatch.storage.r2 import R2Storage
storage = R2Storage("renders", endpoint_url=sys.argv[1], access_key_id=sys.argv[2], secret_access_key=sys.argv[3])
storage.put("before", b"x")
child = os.fork()
storage.put(f"after-{child > 0}", b"y")
assert storage.stat("before").size == 1
storage.close()
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


def test_parent_and_child_go_on_after_a_fork(storage: R2Storage, r2: LocalR2) -> None:
    """A storage that was in use before a fork works on both sides."""
    arguments = [r2.endpoint_url, r2.access_key_id, r2.secret_access_key]
    command = [sys.executable, "-c", _FORKING, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ})
    assert done.returncode == 0, done.stderr
    assert [info.key for info in storage.list("")] == ["after-False", "after-True", "before"]


async def _inside(storage: R2Storage) -> bytes:
    storage.put("key", b"hello")
    return _read(storage, "key")


def test_it_works_inside_a_running_event_loop(storage: R2Storage) -> None:
    """A storage may be called where an event loop runs, as in a notebook."""
    import asyncio

    assert asyncio.run(_inside(storage)) == b"hello"
