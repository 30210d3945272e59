"""Do many requests become jobs in one call, each with its own result?"""

from __future__ import annotations

import inspect
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from renderdispatch import JobHandle, JobStatus, Limits, RenderService, StorageKey, Submission
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.batches import MAX_ROWS
from renderdispatch.errors import (
    ConfigurationError,
    IdempotencyConflictError,
    InvalidRequestError,
    RenderDispatchError,
    StorageFullError,
    StoreUnavailableError,
    UnknownNameError,
)
from renderdispatch.jobs import Job
from renderdispatch.messages import LocalAudio, StoredAudio
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore

_PNG = b"\x89PNG\r\n\x1a\n, a picture"


def _row(audio: Any = b"RIFF", **options: Any) -> Submission:
    return Submission(audio, scene="fake", **options)


def _job(row: JobHandle | RenderDispatchError) -> Job:
    assert isinstance(row, JobHandle)
    return row.job


def _keys(storage: MemoryStorage) -> list[str]:
    return [info.key for info in storage.list("")]


# --- rows


def test_each_row_has_its_job_in_order(service: RenderService) -> None:
    """The result has one handle a row; the jobs belong to the batch, and are listed and claimed in the rows' order."""
    made = service.submit_many([_row(title=f"song {n}") for n in range(5)], batch="album")
    assert not made.errors
    assert [_job(row).request.title for row in made.rows] == [f"song {n}" for n in range(5)]
    assert {_job(row).batch for row in made.rows} == {"album"}
    listed = [job.request.title for job in made.batch.jobs().items]
    assert listed == [f"song {n}" for n in reversed(range(5))]


def test_rows_that_are_refused_do_not_stop_the_others(service: RenderService, tmp_path: Path) -> None:
    """A row that can never be served has its own error; the rows around it have jobs."""
    rows = [
        _row(),
        Submission(b"RIFF", scene="no-such-scene"),
        _row(tmp_path / "missing.mp3"),
        _row(b""),
        _row(limits=Limits(), priority="high"),
        _row(StorageKey("tenants/other/jobs/1/2/audio")),
        "song.mp3",
        _row(),
    ]
    made = service.submit_many(rows)  # type: ignore[arg-type]  # a row is a bare string
    assert list(made.errors) == [1, 2, 3, 4, 5, 6]
    assert isinstance(made.errors[1], UnknownNameError)
    assert all(isinstance(error, InvalidRequestError) for error in made.errors.values())
    assert made.errors[2].code == "audio.missing"
    assert "Submission" in str(made.errors[6])
    assert len(made.handles) == 2
    assert service.counts()[JobStatus.PENDING] == 2


def test_all_of_them_render(rendering: RenderService, song: Path) -> None:
    """A worker renders every row; waiting for the batch waits for all."""
    made = rendering.submit_many([_row(song), _row(b"RIFF, bytes"), _row(io.BytesIO(b"RIFF, a stream"))])
    progress = made.batch.wait(timeout=20)
    assert progress.counts[JobStatus.COMPLETE] == progress.total == 3
    assert {handle.job.status for handle in made.handles} == {JobStatus.COMPLETE}


def test_a_call_has_at_most_ten_thousand_rows(service: RenderService, storage: MemoryStorage) -> None:
    """More rows are refused with the next step: a list at once, an iterator when it turns out; nothing is left."""
    with pytest.raises(InvalidRequestError, match="10,000 rows") as refusal:
        service.submit_many([_row()] * (MAX_ROWS + 1))
    assert refusal.value.code == "batch.too-large"

    def rows() -> Iterator[Submission]:
        for number in range(MAX_ROWS + 1):
            yield _row(b"RIFF" if number == 0 else b"")

    with pytest.raises(InvalidRequestError, match="same batch"):
        service.submit_many(rows())
    assert sum(service.counts().values()) == 0
    assert not _keys(storage)


def test_no_rows_are_an_empty_batch(service: RenderService) -> None:
    """A call without rows makes a batch without jobs, which has ended."""
    made = service.submit_many([])
    assert made.rows == ()
    assert made.batch.wait(timeout=0).total == 0


def test_a_row_takes_what_submit_takes() -> None:
    """A Submission has the arguments of `submit`, with the same defaults, but for what the whole call has."""
    theirs = dict(list(inspect.signature(RenderService.submit).parameters.items())[1:])
    for name in ("batch", "connection"):
        theirs.pop(name)
    ours = inspect.signature(Submission).parameters
    assert [(p.name, p.default, p.kind) for p in ours.values()] == [
        (p.name, p.default, p.kind) for p in theirs.values()
    ]


@pytest.mark.parametrize("batch", ["", "a" * 65, "album 1", "ä", "a/b", 7])
def test_ids_of_batches_are_checked(service: RenderService, batch: Any) -> None:
    """What cannot be a batch's id is refused before anything is stored."""
    for call in (
        lambda: service.submit_many([_row()], batch=batch),
        lambda: service.submit(b"RIFF", scene="fake", batch=batch),
        lambda: service.batch(batch),
    ):
        with pytest.raises(InvalidRequestError, match="batch: an id of 1 to 64") as refusal:
            call()
        assert refusal.value.code == "batch.invalid"
    assert sum(service.counts().values()) == 0


def test_single_submits_join_a_batch(service: RenderService) -> None:
    """`submit(batch=...)` adds a job to a batch that `submit_many` made, or begins one."""
    service.submit_many([_row()], batch="album")
    handle = service.submit(b"RIFF", scene="fake", batch="album")
    assert [job.id for job in service.batch("album").jobs(limit=1).items] == [handle.id]
    assert service.batch("album").counts()[JobStatus.PENDING] == 2


def test_tenants_have_batches_of_their_own(service: RenderService) -> None:
    """A batch's handle shows and cancels the jobs of its tenant alone, even if another tenant uses the same id."""
    for tenant in ("acme", "other"):
        service.for_tenant(tenant).submit_many([_row()], batch="album")
    ours = service.for_tenant("acme").batch("album")
    assert ours.counts()[JobStatus.PENDING] == 1
    assert ours.cancel() == 1
    assert service.for_tenant("other").batch("album").counts()[JobStatus.PENDING] == 1


# --- idempotency


def test_rows_with_keys_may_be_submitted_again(service: RenderService, song: Path) -> None:
    """A repeated call gives rows with idempotency keys their jobs back; rows without get new ones."""
    rows = [_row(song, idempotency_key="one"), _row(song, title="two", idempotency_key="two"), _row(song)]
    first, second = (service.submit_many(rows, batch="album") for _ in range(2))
    ids = [[_job(row).id for row in made.rows] for made in (first, second)]
    assert ids[0][:2] == ids[1][:2]
    assert ids[0][2] != ids[1][2]
    assert sum(first.batch.counts().values()) == 4


def test_numbered_rows_may_be_submitted_again(service: RenderService, storage: MemoryStorage) -> None:
    """With `number_keys`, the same rows of the same batch are the same jobs, and nothing is stored twice."""
    rows = [_row(b"RIFF 1"), _row(b"RIFF 2")]
    first = service.submit_many(rows, batch="album", number_keys=True)
    stored = _keys(storage)
    second = service.submit_many(rows, batch="album", number_keys=True)
    assert [_job(row).id for row in first.rows] == [_job(row).id for row in second.rows]
    assert _keys(storage) == stored
    changed = service.submit_many([_row(b"RIFF 1"), _row(b"another song")], batch="album", number_keys=True)
    assert isinstance(changed.errors[1], IdempotencyConflictError)
    with pytest.raises(InvalidRequestError, match="needs the batch's id"):
        service.submit_many(rows, number_keys=True)


def test_one_key_in_two_rows_is_one_job(service: RenderService) -> None:
    """Two rows with the same key and request share a job; with another request the second one is refused."""
    rows = [_row(idempotency_key="a"), _row(idempotency_key="a"), _row(b"another", idempotency_key="a")]
    made = service.submit_many(rows)
    assert _job(made.rows[0]).id == _job(made.rows[1]).id
    assert isinstance(made.errors[2], IdempotencyConflictError)
    assert sum(made.batch.counts().values()) == 1


def test_a_faster_submit_with_the_same_key_wins(storage: MemoryStorage, backend: InlineBackend) -> None:
    """If another process creates a row's job first, the row gets that job, and what was stored for it is removed."""

    class Overtaken(MemoryJobStore):
        def create_many(self, jobs: Any, **options: Any) -> Any:
            other = RenderService(self, MemoryStorage(), backend, worker=False)
            other.submit(b"RIFF", scene="fake", idempotency_key="a", title="same")
            return super().create_many(jobs, **options)

    service = RenderService(Overtaken(), storage, backend, worker=False)
    made = service.submit_many([_row(title="same", idempotency_key="a"), _row(b"RIFF, mine")])
    assert _job(made.rows[0]).batch is None
    assert len(_keys(storage)) == 1


# --- files


def test_a_file_of_many_rows_is_stored_once(service: RenderService, storage: MemoryStorage, tmp_path: Path) -> None:
    """Song and cover of many rows are stored once, as uploads are, and each row's record names them."""
    song, cover = tmp_path / "song.wav", tmp_path / "cover.png"
    song.write_bytes(b"RIFF, a song")
    cover.write_bytes(_PNG)
    made = service.submit_many([_row(song, cover=cover, title=f"scene {n}") for n in range(20)])
    audio = {_job(row).request.audio for row in made.rows}
    covers = {_job(row).request.cover for row in made.rows}
    assert len(audio) == len(covers) == 1
    assert len(_keys(storage)) == 2
    assert all(key.startswith("uploads/") for key in _keys(storage))


def test_the_same_bytes_are_stored_once_and_others_are_not_mixed_up(
    service: RenderService, storage: MemoryStorage
) -> None:
    """Bytes are shared by their content; every row renders its own song."""
    made = service.submit_many([_row(b"RIFF %d" % (n % 3)) for n in range(9)])
    assert len(_keys(storage)) == 3
    for number, row in enumerate(made.rows):
        audio = _job(row).request.audio
        assert isinstance(audio, StoredAudio)
        with storage.open(audio.key) as file:
            assert file.read() == b"RIFF %d" % (number % 3)


def test_files_stay_in_place_where_a_worker_reads_them(
    rendering: RenderService, storage: MemoryStorage, song: Path
) -> None:
    """With a worker in this process, a file is not copied at submit."""
    made = rendering.submit_many([_row(song), _row(song)])
    assert all(isinstance(_job(row).request.audio, LocalAudio) for row in made.rows)


def test_a_rows_files_go_if_it_is_refused(service: RenderService, storage: MemoryStorage, tmp_path: Path) -> None:
    """What was stored for a row that then is refused does not stay, unless another row names it."""
    cover = tmp_path / "cover.png"
    cover.write_bytes(_PNG)
    empty = io.BytesIO(b"")  # that it is empty is found out when it is read, after the cover was stored
    made = service.submit_many([_row(empty, cover=cover)])
    assert made.errors[0].code == "audio.empty"
    assert not _keys(storage)
    made = service.submit_many([_row(io.BytesIO(b""), cover=cover), _row(cover=cover)])
    assert len(made.handles) == 1
    assert len(_keys(storage)) == 2


def test_when_storage_is_full_nothing_stays(backend: InlineBackend) -> None:
    """A file that cannot be stored ends the whole call; nothing is recorded or stored."""

    class Full(MemoryStorage):
        def put(self, key: str, source: Any, **options: Any) -> Any:
            if len(list(self.list(""))) == 2:
                raise StorageFullError("no space is left")
            return super().put(key, source, **options)

    storage = Full()
    service = RenderService(MemoryJobStore(), storage, backend, worker=False)
    with pytest.raises(StorageFullError):
        service.submit_many([_row(b"RIFF %d" % n) for n in range(3)])
    assert not _keys(storage)
    assert sum(service.counts().values()) == 0


# --- transactions


class _Failing(MemoryJobStore):
    def __init__(self, *, after: bool) -> None:
        super().__init__()
        self._after = after

    def create_many(self, jobs: Any, **options: Any) -> Any:
        if self._after:
            super().create_many(jobs, **options)
        raise StoreUnavailableError("the database is away")


def test_a_transaction_that_fails_leaves_nothing(storage: MemoryStorage, backend: InlineBackend) -> None:
    """If the jobs were not recorded, what was stored for them is removed."""
    service = RenderService(_Failing(after=False), storage, backend, worker=False)
    with pytest.raises(StoreUnavailableError):
        service.submit_many([_row(), _row(b"RIFF 2")])
    assert not _keys(storage)


def test_a_transaction_whose_answer_was_lost_keeps_the_audio(storage: MemoryStorage, backend: InlineBackend) -> None:
    """If the jobs may be recorded, their audio stays."""
    service = RenderService(_Failing(after=True), storage, backend, worker=False)
    with pytest.raises(StoreUnavailableError):
        service.submit_many([_row(), _row(b"RIFF 2")])
    assert service.counts()[JobStatus.PENDING] == 2
    assert len(_keys(storage)) == 2


class _Plain:
    """A store without any optional power."""

    def __init__(self) -> None:
        store = MemoryJobStore()
        for name in ("get", "replace", "query", "delete", "now", "close"):
            setattr(self, name, getattr(store, name))
        self._create = store.create
        self.left = 2

    def create(self, job: Job) -> Job:
        if self.left == 0:
            raise StoreUnavailableError("the store is away")
        self.left -= 1
        return self._create(job)


def test_a_store_without_transactions_takes_rows_one_by_one(storage: MemoryStorage, backend: InlineBackend) -> None:
    """Rows that it took have jobs; the others have its error, and their audio stays, as they may be recorded."""
    store: Any = _Plain()
    service = RenderService(store, storage, backend, worker=False)
    made = service.submit_many([_row(b"RIFF %d" % n) for n in range(4)], batch="album")
    assert list(made.errors) == [2, 3]
    assert all(isinstance(error, StoreUnavailableError) for error in made.errors.values())
    assert made.batch.counts()[JobStatus.PENDING] == 2
    with pytest.raises(ConfigurationError, match="_Plain has no database"):
        service.submit_many([_row()], connection=object())


def test_rows_of_an_iterator_are_let_go_of(service: RenderService, storage: MemoryStorage) -> None:
    """Rows are read one at a time, each stored before the next one is asked for, so their bytes need no room."""
    seen: list[int] = []

    def rows() -> Iterator[Submission]:
        for number in range(3):
            yield _row(b"RIFF %d" % number)
            seen.append(len(_keys(storage)))

    service.submit_many(rows())
    assert seen == [1, 2, 3]
