"""May clients send audio straight to storage, and is what they leave there collected?"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from renderdispatch import AsyncRenderService, RenderService, StorageKey, UploadGrant
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.engine import layout
from renderdispatch.engine.reconcile import Reconciler
from renderdispatch.errors import InvalidRequestError, ObjectNotFoundError, StorageDeniedError, StorageUnavailableError
from renderdispatch.jobs import Job
from renderdispatch.messages import JobStatus, StoredAudio
from renderdispatch.plumbing import local_urls
from renderdispatch.protocols import ObjectInfo
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import FakeClock, FakeRenderer, eventually, in_threads

_DAY = timedelta(days=1)
_SONG = b"RIFF, a song"


class Rig:
    """A service whose time stands still, and its parts."""

    def __init__(self) -> None:
        self.clock = FakeClock(datetime(2126, 3, 1, 18, tzinfo=UTC))  # runs take their own time for early
        self.store = MemoryJobStore(clock=self.clock)
        self.storage = MemoryStorage(clock=self.clock)
        backend = InlineBackend({"fake": FakeRenderer()})
        self.service = RenderService(self.store, self.storage, backend, worker=False, owned=[backend])

    def uploaded(self, service: RenderService | None = None) -> str:
        """Return the key of an upload that was granted now, and sent."""
        grant = (service or self.service).create_upload(size=len(_SONG), content_type="audio/wav")
        self.storage.put(grant.key, _SONG)
        return grant.key

    def finished(self, job_id: str) -> Job:
        """Take rounds until the job has ended."""

        def ended() -> Job | None:
            self.service.tick()
            job = self.service.get(job_id)
            return job if job.ended else None

        job = eventually(ended)
        assert job is not None
        return job

    def keys(self) -> list[str]:
        return [info.key for info in self.storage.list("uploads/")]


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    with rig.service:
        yield rig


def _send(grant: UploadGrant, path: Path, data: bytes = _SONG) -> None:
    path.write_bytes(data)
    local_urls.put_once(grant.put.url, path)


# --- the grant


def test_an_upload_is_rendered_where_it_stands(rig: Rig, tmp_path: Path) -> None:
    """A grant takes one upload, of the announced size; the job uses it in place."""
    grant = rig.service.create_upload(size=len(_SONG), content_type="audio/wav")
    assert grant.key.startswith("uploads/21260301/")
    assert grant.expires_at == rig.clock() + _DAY
    with pytest.raises(StorageDeniedError):
        _send(grant, tmp_path / "song", _SONG + b"!")
    _send(grant, tmp_path / "song")
    handle = rig.service.submit(StorageKey(grant.key), scene="fake")
    job = rig.finished(handle.id)
    assert (job.status, job.audio) == (JobStatus.COMPLETE, StoredAudio(key=grant.key, size=len(_SONG)))


def test_a_grant_ends_after_a_day(rig: Rig, tmp_path: Path) -> None:
    """A grant takes nothing after 24 hours."""
    grant = rig.service.create_upload(size=len(_SONG), content_type="audio/wav")
    rig.clock.advance(_DAY)
    with pytest.raises(StorageDeniedError):
        _send(grant, tmp_path / "song")


def test_a_grant_shows_its_url_to_the_client_alone(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The URL is in the answer's JSON, with the names of the wire, and in no repr and no log."""
    with caplog.at_level(logging.DEBUG):
        grant = rig.service.create_upload(size=1, content_type="audio/wav")
    assert grant.put.url not in repr(grant) + str(grant) + caplog.text
    assert grant.put.url in grant.to_json()
    assert '"expiresAt"' in grant.to_json()
    assert UploadGrant.model_validate_json(grant.to_json()) == grant


def test_grants_have_keys_of_their_own(rig: Rig) -> None:
    """No two grants share a key."""
    keys = in_threads(8, lambda _: rig.service.create_upload(size=1, content_type="audio/wav").key)
    assert len(set(keys)) == 8


@pytest.mark.parametrize("size", [0, -1, (5 << 30) + 1, 1.5, True, None, "1"])
def test_a_size_that_is_none(rig: Rig, size: int) -> None:
    """An upload has 1 byte to 5 GiB."""
    with pytest.raises(InvalidRequestError) as refusal:
        rig.service.create_upload(size=size, content_type="audio/wav")
    assert refusal.value.code == "upload.size"


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/html",
        "image/svg+xml",
        "image/png; a=b",
        "audio",
        "audio/",
        "audio/wav\r\nx: y",
        "audio/wav,text/html",
        "audio/é",
        None,
        "/wav",
    ],
)
def test_a_type_that_is_none(rig: Rig, content_type: str) -> None:
    """An upload is audio, video, a picture or plain bytes; a type that could say more in a header is refused."""
    with pytest.raises(InvalidRequestError) as refusal:
        rig.service.create_upload(size=1, content_type=content_type)
    assert refusal.value.code == "upload.type"


@pytest.mark.parametrize(
    "content_type",
    [
        "audio/wav",
        "image/jpeg",
        "audio/x-m4a",
        "video/mp4",
        "application/octet-stream",
        "audio/webm;codecs=opus",
        "audio/vnd.wave",
    ],
)
@pytest.mark.parametrize("size", [1, 5 << 30])
def test_what_browsers_send(rig: Rig, content_type: str, size: int) -> None:
    """The types and sizes of browsers' recordings and files are granted."""
    assert rig.service.create_upload(size=size, content_type=content_type).key


async def _async_grant(service: RenderService) -> UploadGrant:
    return await AsyncRenderService(service).create_upload(size=1, content_type="audio/wav")


def test_the_async_facade_grants_too(rig: Rig) -> None:
    """`AsyncRenderService.create_upload` answers as the blocking one does."""
    import anyio

    assert anyio.run(_async_grant, rig.service).key.startswith("uploads/21260301/")


def test_an_upload_is_its_tenants_alone(rig: Rig) -> None:
    """Another tenant, and the service without tenants, can neither submit nor read a tenant's upload."""
    acme, other = rig.service.for_tenant("acme"), rig.service.for_tenant("other")
    key, common = rig.uploaded(acme), rig.uploaded()
    assert acme.submit(StorageKey(key), scene="fake").job.tenant == "acme"
    for service, theirs in ((other, key), (rig.service, key), (acme, common), (other, common)):
        with pytest.raises(InvalidRequestError) as refusal:
            service.submit(StorageKey(theirs), scene="fake")
        assert refusal.value.code == "audio.denied"
        with pytest.raises(ObjectNotFoundError):
            service.open_object(theirs)
    with acme.open_object(key) as file:
        assert file.read() == _SONG


@pytest.mark.parametrize(
    "key",
    [
        "uploads/21260301/tenants/acme/../other/" + "0" * 32,
        "uploads/21260301/tenants/other/tenants/acme/" + "0" * 32,
        "uploads/21260301/tenants/acme",
        "uploads/21260301/tenants/acme2/" + "0" * 32,
        "uploads/21260301/" + "0" * 32,
        "Uploads/21260301/tenants/acme/" + "0" * 32,
        "uploads/21260301/uploads/21260301/tenants/acme/" + "0" * 32,
    ],
)
def test_no_key_is_read_as_another_tenants(key: str) -> None:
    """Only a key exactly as `upload_key` makes it is a tenant's upload."""
    assert not layout.may_read("acme", key)


# --- what nobody uses


@pytest.fixture
def monotonic() -> list[float]:
    return [0.0]


@pytest.fixture
def reconciler(rig: Rig, monotonic: list[float]) -> Reconciler:
    return Reconciler(rig.store, rig.storage, {}, monotonic=lambda: monotonic[0])


def test_old_uploads_are_collected(rig: Rig, reconciler: Reconciler, monotonic: list[float]) -> None:
    """Uploads whose day began more than eight days ago are deleted, whoever's they are; younger ones stay."""
    rig.uploaded()
    rig.uploaded(rig.service.for_tenant("acme"))
    rig.clock.advance(_DAY)
    young = rig.uploaded()
    rig.clock.advance(7 * _DAY)  # the first day began 8 days and 18 hours ago
    reconciler.tick()
    assert rig.keys() == [young]
    monotonic[0] += 3600
    rig.clock.advance(_DAY)
    reconciler.tick()
    assert rig.keys() == []


def test_an_upload_is_kept_for_as_long_as_a_job_may_need_it(rig: Rig, reconciler: Reconciler) -> None:
    """What is submitted at the last moment, with the longest deadline, is still there at that deadline."""
    key = rig.uploaded()
    rig.clock.advance(timedelta(days=1, hours=5, minutes=59))
    rig.service.submit(StorageKey(key), scene="fake")
    rig.clock.advance(6 * _DAY)
    reconciler.tick()
    assert rig.keys() == [key]
    rig.clock.advance(timedelta(minutes=13))
    Reconciler(rig.store, rig.storage, {}).tick()
    assert rig.keys() == []


def test_an_upload_that_may_go_before_its_job_ends_is_refused(rig: Rig) -> None:
    """From the second day after its grant on, an upload is not taken any more, and the refusal says what to do."""
    key = rig.uploaded()
    rig.clock.advance(timedelta(days=1, hours=6))
    with pytest.raises(InvalidRequestError, match="upload it again") as refusal:
        rig.service.submit(StorageKey(key), scene="fake")
    assert refusal.value.code == "audio.expired"


def test_what_is_no_upload_of_ours_stays(rig: Rig, reconciler: Reconciler) -> None:
    """Objects that an application keeps under the same prefix are never touched."""
    kept = ["uploads/20200101/song.wav", "uploads/2020-01-01/" + "0" * 32, "uploads/20201399/" + "0" * 32, "uploads/x"]
    for key in [*kept, "uploadsX", "jobs/uploads/20200101/" + "0" * 32]:
        rig.storage.put(key, b"x")
    rig.storage.put("uploads/20200101/" + "0" * 32, b"x")
    reconciler.tick()
    assert sorted(rig.keys()) == sorted(kept)


class _Counting(MemoryStorage):
    """Counts listings, and what they gave."""

    listings = 0
    listed = 0
    away = False

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self.listings += 1
        if self.away:
            raise StorageUnavailableError("storage is away")
        for info in super().list(prefix):
            self.listed += 1
            yield info


def test_a_sweep_is_cheap(rig: Rig) -> None:
    """Uploads and tombstones are listed once an hour, and no further than to the first young one."""
    now = [0.0]
    storage = _Counting()
    reconciler = Reconciler(rig.store, storage, {}, monotonic=lambda: now[0])
    for _ in range(50):
        storage.put(layout.upload_key(None, rig.clock()), b"x")
    for _ in range(3):
        reconciler.tick()
    assert (storage.listings, storage.listed) == (2, 1)
    now[0] += 3599
    reconciler.tick()
    assert storage.listings == 2
    now[0] += 1
    reconciler.tick()
    assert storage.listings == 4


def test_many_old_uploads_go_in_several_rounds(rig: Rig, reconciler: Reconciler) -> None:
    """A round deletes a bounded number, and the next one goes on at once."""
    for _ in range(450):
        rig.storage.put(layout.upload_key(None, rig.clock() - 30 * _DAY), b"x")
    left = []
    for _ in range(3):
        reconciler.tick()
        left.append(len(rig.keys()))
    assert left == [250, 50, 0]


def test_a_storage_that_is_away_keeps_no_job_waiting(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """A sweep that fails is logged, and tried again an hour later."""
    now = [0.0]
    storage = _Counting()
    storage.away = True
    reconciler = Reconciler(rig.store, storage, {}, monotonic=lambda: now[0])
    assert reconciler.tick() == 0
    assert "old uploads" in caplog.text
    storage.away = False
    tries = storage.listings
    now[0] += 3600
    reconciler.tick()
    assert storage.listings > tries


def test_a_retry_keeps_the_audio_of_an_old_upload(rig: Rig, reconciler: Reconciler) -> None:
    """`retry` copies an upload that stands, for it may go before the new job ends; it says so where it is gone."""
    key = rig.uploaded()
    handle = rig.service.submit(StorageKey(key), scene="fake", params={"fail": "a broken scene"})
    assert rig.finished(handle.id).status is JobStatus.FAILED
    rig.clock.advance(8 * _DAY - timedelta(hours=18))
    again = handle.retry()
    audio = again.job.request.audio
    assert isinstance(audio, StoredAudio)
    assert audio.key.startswith(f"jobs/{again.id}/")
    rig.clock.advance(_DAY)
    reconciler.tick()
    assert rig.finished(again.id).status is JobStatus.FAILED
    with pytest.raises(InvalidRequestError, match="not in storage any more") as refusal:
        handle.retry()
    assert refusal.value.code == "audio.missing"
