"""Which requests are the same? (Rule J9)"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from renderdispatch import (
    AudioUrl,
    IdempotencyConflictError,
    InvalidRequestError,
    JobHandle,
    Limits,
    Output,
    RenderService,
    StorageKey,
)
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.engine.intake import fingerprint
from renderdispatch.errors import JobUnreadableError
from renderdispatch.messages import LocalAudio, RenderRequest, StoredAudio
from renderdispatch.plumbing.fetch import GuardedFetcher
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import FakeRenderer

SONG = b"RIFF, a song"
Submit = Callable[..., JobHandle]


@pytest.fixture(params=[True, False], ids=["with a worker", "without a worker"])
def service(request: pytest.FixtureRequest) -> Iterator[RenderService]:
    """A service that leaves files to its worker, and one that stores them at once."""
    backend = InlineBackend({"fake": FakeRenderer()})
    fetcher = GuardedFetcher()
    service = RenderService(
        MemoryJobStore(), MemoryStorage(), backend, worker=request.param, fetcher=fetcher, owned=[backend]
    )
    yield service
    service.close()


@pytest.fixture
def submit(service: RenderService) -> Submit:
    return lambda audio, **fields: service.submit(audio, scene="fake", idempotency_key="key", **fields)


def _store(service: RenderService, key: str, data: bytes) -> StorageKey:
    service._engine.parts.storage.put(key, data)
    return StorageKey(key)


def test_files_bytes_and_streams_are_compared_by_content(submit: Submit, tmp_path: Path) -> None:
    """The same bytes are the same audio, by whichever file, name or stream they come, and whenever it was written."""
    song, copy = tmp_path / "song.wav", tmp_path / "copy.mp3"
    for path in (song, copy):
        path.write_bytes(SONG)
    os.utime(copy, (1, 1))
    first = submit(song)
    with copy.open("rb") as opened:
        for again in (song, copy, SONG, io.BytesIO(SONG), opened):
            assert submit(again).id == first.id
    song.write_bytes(SONG.upper())
    for other in (song, SONG.upper(), io.BytesIO(SONG + b"!")):
        with pytest.raises(IdempotencyConflictError):
            submit(other)


def test_a_file_that_follows_bytes(submit: Submit, tmp_path: Path) -> None:
    """It does not matter which of them came first."""
    song = tmp_path / "song.wav"
    song.write_bytes(SONG)
    assert submit(SONG).id == submit(song).id


def test_without_a_key_a_file_is_not_read(service: RenderService, tmp_path: Path) -> None:
    """Only a key makes `submit` read a file that a worker of this machine reads later."""
    song = tmp_path / "song.wav"
    song.write_bytes(SONG)
    hashes = []
    for key in (None, "key"):
        audio = service.submit(song, scene="fake", idempotency_key=key).job.request.audio
        assert isinstance(audio, LocalAudio | StoredAudio)
        hashes.append(audio.sha256)
    known = hashlib.sha256(SONG).hexdigest()
    assert hashes == ([None, known] if service._engine.parts.worker else [known, known])


@pytest.mark.parametrize("service", [True], ids=["with a worker"], indirect=True)  # the other one stores it as it reads
def test_a_file_that_grows_while_it_is_read(
    service: RenderService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that changes while its content is compared is refused: nobody could say what was submitted."""
    song = tmp_path / "song.wav"
    song.write_bytes(SONG)
    opened = Path.open

    def growing(path: Path, *args: Any) -> Any:
        file = opened(path, *args)
        with opened(path, "ab") as more:
            more.write(b"!")
        return file

    monkeypatch.setattr(Path, "open", growing)
    with pytest.raises(InvalidRequestError) as refusal:
        service.submit(song, scene="fake", idempotency_key="key")
    assert refusal.value.code == "audio.changed"


def test_a_storage_key_is_compared_as_it_is(service: RenderService, submit: Submit) -> None:
    """One key is one object, also once the object is gone; another key is another one, whatever it holds."""
    uploaded = _store(service, "uploaded/a", SONG)
    first = submit(uploaded)
    service._engine.parts.storage.delete(uploaded.key)
    assert submit(uploaded).id == first.id
    for other in (_store(service, "uploaded/b", SONG), SONG):
        with pytest.raises(IdempotencyConflictError):
            submit(other)


def test_a_storage_key_whose_hash_is_recorded(service: RenderService, submit: Submit) -> None:
    """The stored audio of a job is compared by the hash that the job's record holds."""
    earlier = service.submit(SONG, scene="fake").job.request.audio
    assert isinstance(earlier, StoredAudio)
    first = submit(StorageKey(earlier.key))
    assert submit(SONG).id == first.id == submit(StorageKey(earlier.key)).id
    with pytest.raises(IdempotencyConflictError):
        submit(SONG + b"!")


def test_a_url_is_compared_as_it_is_written(submit: Submit) -> None:
    """Another spelling is another URL."""
    url = "https://media.example/song.wav?a=1&b=2"
    first = submit(AudioUrl(url))
    assert submit(AudioUrl(url)).id == first.id
    for other in ("https://media.example/song.wav?b=2&a=1", "https://MEDIA.example/song.wav?a=1&b=2"):
        with pytest.raises(IdempotencyConflictError):
            submit(AudioUrl(other))


def test_what_is_not_used_does_not_count(submit: Submit) -> None:
    """Saying a default is the same as saying nothing; the file's name of a stream is not part of the request."""
    first = submit(SONG)
    assert (
        submit(SONG, output=Output(), start=0, params={}, limits=Limits(max_attempts=3), metadata=None).id == first.id
    )
    for changes in ({"output": Output(width=640)}, {"limits": Limits(max_attempts=2)}, {"audio_track": 0}):
        with pytest.raises(IdempotencyConflictError):
            submit(SONG, **changes)


# --- records of other versions


def _recorded(service: RenderService, handle: JobHandle, request: RenderRequest, written: str) -> None:
    """Replace a job's record by one with this request and fingerprint."""
    store, job = service._engine.parts.store, handle.job
    store.replace(evolve(job, request=request, fingerprint=written), expected_revision=job.revision)


@pytest.fixture
def idle() -> Iterator[RenderService]:
    backend = InlineBackend({"fake": FakeRenderer()})
    service = RenderService(MemoryJobStore(), MemoryStorage(), backend, worker=False, owned=[backend])
    yield service
    service.close()


def test_a_record_of_the_first_rule_is_compared_by_it(idle: RenderService) -> None:
    """A job that an older version recorded keeps its key: bytes and storage keys are found again."""
    sources: list[bytes | StorageKey] = [SONG, _store(idle, "uploaded/a", SONG)]
    for number, audio in enumerate(sources):
        handle = idle.submit(audio, scene="fake", idempotency_key=str(number))
        request = handle.job.request
        _recorded(idle, handle, request, fingerprint(request, version=1))
        assert idle.submit(audio, scene="fake", idempotency_key=str(number)).id == handle.id
        with pytest.raises(IdempotencyConflictError):
            idle.submit(audio, scene="fake", start=1, idempotency_key=str(number))


def test_a_file_is_compared_by_the_rule_of_its_record(tmp_path: Path) -> None:
    """The first rule knew a file by path, size and time; such a record does not know its content."""
    backend = InlineBackend({"fake": FakeRenderer()})
    service = RenderService(MemoryJobStore(), MemoryStorage(), backend, owned=[backend])
    song = tmp_path / "song.wav"
    song.write_bytes(SONG)
    handle = service.submit(song, scene="fake", idempotency_key="key")
    service.close()
    job = handle.job
    older = job.request.model_copy(update={"audio": job.request.audio.model_copy(update={"sha256": None})})
    again = RenderService(service._engine.parts.store, MemoryStorage(), backend, worker=True)
    _recorded(service, handle, older, fingerprint(older, version=1))
    assert again.submit(song, scene="fake", idempotency_key="key").id == handle.id
    with pytest.raises(IdempotencyConflictError):
        again.submit(SONG, scene="fake", idempotency_key="key")
    again.close()


def test_a_record_of_a_newer_rule(idle: RenderService) -> None:
    """A rule that this version does not know cannot be applied: another process of the deployment can do it."""
    handle = idle.submit(SONG, scene="fake", idempotency_key="key")
    _recorded(idle, handle, handle.job.request, "3:" + "0" * 64)
    with pytest.raises(JobUnreadableError):
        idle.submit(SONG, scene="fake", idempotency_key="key")
