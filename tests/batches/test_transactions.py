"""Is a render recorded with the application's own row, or not at all?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from renderdispatch import JobStatus, RenderService, StorageKey, Submission
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.engine.cleanup import UploadSweep
from renderdispatch.errors import (
    ConfigurationError,
    IdempotencyConflictError,
    InvalidRequestError,
    JobExistsError,
    JobNotFoundError,
    ObjectNotFoundError,
)
from renderdispatch.messages import StoredAudio
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import FakeClock, FakeRenderer, eventually

_NOW = datetime(2126, 3, 1, 18, tzinfo=UTC)
_PNG = b"\x89PNG\r\n\x1a\n, a picture"


class App:
    """An application with a table of its own in the job store's database.

    Args:
        begin: Begins a transaction and gives what the application has of it: a `Connection` or a `Session`.
    """

    def __init__(self, url: str, begin: Callable[[sa.Engine], AbstractContextManager[Any]]) -> None:
        self.url = url
        self.engine = sa.create_engine(url)
        self.videos = sa.Table("videos", sa.MetaData(), sa.Column("job", sa.Text, primary_key=True))
        self.videos.metadata.create_all(self.engine)
        self._begin = begin

    def transaction(self) -> AbstractContextManager[Any]:
        """Begin a transaction, which is committed at the end of the block, or rolled back if that raises."""
        return self._begin(self.engine)

    def note(self, transaction: Any, job_id: str) -> None:
        """Write the application's own row."""
        transaction.execute(self.videos.insert().values(job=job_id))

    def noted(self) -> list[str]:
        """Return what is committed."""
        with self.engine.connect() as connection:
            return list(connection.execute(sa.select(self.videos.c.job)).scalars())


def _session(engine: sa.Engine) -> AbstractContextManager[Session]:
    from sqlalchemy.orm import sessionmaker

    return sessionmaker(engine).begin()


@pytest.fixture(params=["connection to SQLite", "session of SQLite", "connection to PostgreSQL"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[App]:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    if "PostgreSQL" in request.param:
        url = request.getfixturevalue("postgres_url").replace("postgresql://", "postgresql+psycopg://")
    app = App(url, _session if "session" in request.param else sa.Engine.begin)
    yield app
    app.engine.dispose()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(_NOW)


@pytest.fixture
def storage(clock: FakeClock) -> MemoryStorage:
    return MemoryStorage(clock=clock)


@pytest.fixture
def service(app: App, storage: MemoryStorage, clock: FakeClock) -> Iterator[RenderService]:
    """A service whose time stands still, and that renders only when it is told to."""
    backend, store = InlineBackend({"fake": FakeRenderer()}), SqlJobStore(app.url, clock=clock)
    with RenderService(store, storage, backend, worker=False, owned=[backend, store]) as service:
        service.counts()  # makes the table
        yield service


class Undone(Exception):
    """What the application raises to roll its transaction back."""


def _keys(storage: MemoryStorage) -> list[str]:
    return [info.key for info in storage.list("")]


def _sweep(storage: MemoryStorage, clock: FakeClock) -> None:
    UploadSweep(storage, 0.0).sweep(clock(), 1.0)


def _submit(service: RenderService, transaction: Any, **options: Any) -> str:
    return service.submit(b"RIFF", scene="fake", connection=transaction, **options).id


# --- all or nothing


def test_the_job_is_there_when_the_application_commits(app: App, service: RenderService) -> None:
    """Until then it is invisible to polls and workers; from then on it is as any other job."""
    with app.transaction() as transaction:
        job_id = _submit(service, transaction)
        app.note(transaction, job_id)
        with pytest.raises(JobNotFoundError):
            service.get(job_id)
        assert service.counts()[JobStatus.PENDING] == 0
    assert app.noted() == [job_id]
    assert service.get(job_id).status is JobStatus.PENDING


def test_a_rollback_takes_both_away_and_the_audio_is_collected(
    app: App, service: RenderService, storage: MemoryStorage, clock: FakeClock
) -> None:
    """Neither row is there; what was stored goes with the uploads of its day, which nobody has to look for."""
    with pytest.raises(Undone), app.transaction() as transaction:
        job_id = _submit(service, transaction)
        app.note(transaction, job_id)
        raise Undone
    assert app.noted() == []
    with pytest.raises(JobNotFoundError):
        service.get(job_id)
    [key] = _keys(storage)
    assert key.startswith("uploads/21260301/")
    clock.advance(timedelta(days=7))
    _sweep(storage, clock)
    assert _keys(storage) == [key]
    clock.advance(timedelta(days=2))
    _sweep(storage, clock)
    assert _keys(storage) == []


def test_a_savepoint_of_the_application_may_be_rolled_back(app: App, service: RenderService) -> None:
    """What was submitted within it never was; what was submitted around it is."""
    with app.transaction() as transaction:
        kept = _submit(service, transaction)
        with pytest.raises(Undone), transaction.begin_nested():
            lost = _submit(service, transaction)
            raise Undone
    assert service.get(kept).status is JobStatus.PENDING
    with pytest.raises(JobNotFoundError):
        service.get(lost)


def test_many_are_recorded_or_none(app: App, service: RenderService) -> None:
    """`submit_many` joins the transaction as `submit` does; a refused row does not harm it."""
    rows = [Submission(b"RIFF %d" % n, scene="fake" if n else "no-such-scene") for n in range(4)]
    with pytest.raises(Undone), app.transaction() as transaction:
        service.submit_many(rows, batch="lost", connection=transaction)
        raise Undone
    with app.transaction() as transaction:
        made = service.submit_many(rows, batch="kept", connection=transaction)
        assert list(made.errors) == [0]
        for handle in made.handles:
            app.note(transaction, handle.id)
    assert sorted(app.noted()) == sorted(handle.id for handle in made.handles)
    assert service.batch("kept").counts()[JobStatus.PENDING] == 3
    assert sum(service.batch("lost").counts().values()) == 0


def test_a_worker_renders_it_after_the_commit(app: App, tmp_path: Path) -> None:
    """The worker of this process finds the job by itself, with a file in place, audio and cover in storage."""
    cover = tmp_path / "cover.png"
    cover.write_bytes(_PNG)
    backend, store = InlineBackend({"fake": FakeRenderer()}), SqlJobStore(app.url)
    with RenderService(store, MemoryStorage(), backend, owned=[backend, store]) as service:
        with app.transaction() as transaction:
            handle = service.submit(b"RIFF", scene="fake", cover=cover, poster=True, connection=transaction)
        assert handle.wait(timeout=20).status is JobStatus.COMPLETE


def test_a_commit_wakes_the_workers_of_other_processes(postgres_url: str) -> None:
    """On PostgreSQL the notice is a part of the transaction: a rollback sends none, and the commit does."""
    url = postgres_url.replace("postgresql://", "postgresql+psycopg://")
    backend, store, engine = InlineBackend({"fake": FakeRenderer()}), SqlJobStore(url), sa.create_engine(url)
    with RenderService(store, MemoryStorage(), backend, worker=False, owned=[backend, store]) as service:
        woken: list[int] = []
        end = store.listen(lambda: woken.append(service.counts()[JobStatus.PENDING]))
        eventually(lambda: store.notifies)
        for count in (1, 2):
            with pytest.raises(Undone), engine.begin() as transaction:
                _submit(service, transaction)
                raise Undone
            with engine.begin() as transaction:
                _submit(service, transaction)
            eventually(partial(woken.__contains__, count))
        assert woken[-2:] == [1, 2]
        end()
    engine.dispose()


# --- what is stored


def test_files_of_every_kind_are_stored_as_uploads(
    app: App, service: RenderService, storage: MemoryStorage, tmp_path: Path
) -> None:
    """Audio and cover are below the day, in the tenant's part: it may read them, and another tenant may not."""
    song, cover = tmp_path / "song.mp3", tmp_path / "cover.png"
    song.write_bytes(b"ID3, a song")
    cover.write_bytes(_PNG)
    acme = service.for_tenant("acme")
    with app.transaction() as transaction:
        job_id = acme.submit(song, scene="fake", cover=cover, connection=transaction).id
    request = acme.get(job_id).request
    assert isinstance(request.audio, StoredAudio)
    assert isinstance(request.cover, StoredAudio)
    keys = {request.audio.key, request.cover.key}
    assert keys == set(_keys(storage))
    assert all(key.startswith("uploads/21260301/tenants/acme/") for key in keys)
    assert acme.file_name(job_id) == "song.mp4"
    with acme.open_object(request.audio.key) as file:
        assert file.read() == b"ID3, a song"
    with pytest.raises(ObjectNotFoundError):
        service.for_tenant("other").open_object(request.audio.key)
    with pytest.raises(InvalidRequestError, match="not yours"):
        service.for_tenant("other").submit(StorageKey(request.audio.key), scene="fake")


def test_an_ended_job_may_be_submitted_again_while_its_audio_is_kept(
    app: App, service: RenderService, storage: MemoryStorage, clock: FakeClock
) -> None:
    """A retry copies the audio to the new job; after eight days there is none to copy, and the error says so."""
    with app.transaction() as transaction:
        job_id = _submit(service, transaction)
    service.cancel(job_id)
    again = service.retry(job_id).job.request.audio
    assert isinstance(again, StoredAudio)
    assert again.key.startswith("jobs/")
    clock.advance(timedelta(days=9))
    _sweep(storage, clock)
    with pytest.raises(InvalidRequestError, match="not in storage any more"):
        service.retry(job_id)


# --- refusals


def test_refused_requests_leave_the_transaction_usable(
    app: App, service: RenderService, storage: MemoryStorage
) -> None:
    """An error of `submit` ends nothing: the application may go on and commit."""
    with app.transaction() as transaction:
        with pytest.raises(InvalidRequestError):
            service.submit(b"", scene="fake", connection=transaction)
        app.note(transaction, "a row without a job")
    assert app.noted() == ["a row without a job"]
    assert _keys(storage) == []


def test_a_repeated_key_gives_the_job_back(app: App, service: RenderService, storage: MemoryStorage) -> None:
    """A key of a committed job gives that job; one of this very transaction is refused, and nothing else happens."""
    with app.transaction() as transaction:
        job_id = _submit(service, transaction, idempotency_key="order 7")
        stored = _keys(storage)
        with pytest.raises(JobExistsError, match="not been committed yet"):
            _submit(service, transaction, idempotency_key="order 7")
        app.note(transaction, job_id)
    with app.transaction() as transaction:
        assert _submit(service, transaction, idempotency_key="order 7") == job_id
        with pytest.raises(IdempotencyConflictError):
            _submit(service, transaction, idempotency_key="order 7", title="another request")
    assert app.noted() == [job_id]
    assert _keys(storage) == stored


def test_what_is_no_transaction_of_this_database_is_refused(
    app: App, service: RenderService, storage: MemoryStorage, tmp_path: Path
) -> None:
    """A text, another database's connection, and any connection where the store has none: nothing stays stored."""
    other = sa.create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    memory = RenderService(MemoryJobStore(), storage, InlineBackend({"fake": FakeRenderer()}), worker=False)
    with other.begin() as transaction, app.transaction() as ours:
        for owner, connection in [(service, "jobs.db"), (service, transaction), (memory, ours)]:
            with pytest.raises(ConfigurationError):
                owner.submit(b"RIFF", scene="fake", connection=connection)
            with pytest.raises(ConfigurationError):
                owner.submit_many([Submission(b"RIFF", scene="fake")], connection=connection)
    assert _keys(storage) == []
    other.dispose()
