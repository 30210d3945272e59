"""Does a job through R2 tell a credential or a signed URL to anybody who need not know it?"""

from __future__ import annotations

import logging
import sqlite3
import traceback
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from attrs import define, field

from renderdispatch import AudioUrl, RenderService
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.engine.records import dump_job
from renderdispatch.errors import RenderDispatchError
from renderdispatch.jobs import Job
from renderdispatch.messages import JobStatus, Limits
from renderdispatch.plumbing.fetch import GuardedFetcher
from renderdispatch.plumbing.retry import Backoff
from renderdispatch.protocols import RenderBackend
from renderdispatch.runner import Pace
from renderdispatch.storage.r2 import R2Storage
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import FakeRenderer, make_order, registered_scenes
from renderdispatch.testing.local_r2 import LocalR2

_HOUR: Final = timedelta(hours=1)
_PACE: Final = Pace(progress_s=0.02, backoff_s=0.02)
_ONCE: Final = Limits(max_attempts=1)
_LIBRARIES: Final = ("botocore", "aiobotocore", "s3fs", "fsspec", "aiohttp", "httpx", "httpcore", "asyncio")


class Lines(logging.Handler):
    """Keeps what is logged, formatted and as it was given; pytest's own handler forgets it between test and teardown."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{self.format(record)} {record.args!r}")

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@define
class Told:
    """Everything that was told to anybody, and what must not be in it."""

    r2: LocalR2
    log: Lines
    capfd: pytest.CaptureFixture[str]
    texts: list[str] = field(factory=list)

    def value(self, *values: object) -> None:
        """Take in what values show of themselves."""
        self.texts.extend(f"{value!r}\n{value}\n" for value in values)

    def error(self, error: BaseException) -> None:
        """Take in an error with all that it chains: causes and contexts, suppressed ones too."""
        seen: BaseException | None = error
        while seen is not None:
            self.texts.append("".join(traceback.format_exception(seen, chain=False)) + repr(seen))
            seen = seen.__cause__ or seen.__context__

    def job(self, service: RenderService, job: Job) -> None:
        """Take in a job's record, and the answer to a poll but for its download URL."""
        answer = service.poll(job.id)
        self.value(job, job.request, job.attempts, answer)
        self.texts.extend([dump_job(job), answer.model_copy(update={"download_url": None}).to_json()])

    def check(self) -> None:
        """Nothing that was told or logged holds a credential, or any part of a signature."""
        out, err = self.capfd.readouterr()
        text = "\n".join([*self.texts, self.log.text, out, err])
        secrets = [self.r2.access_key_id, self.r2.secret_access_key, _WRONG_SECRET]
        for secret in (*secrets, "X-Amz-Signature", "X-Amz-Credential", "AWS4-HMAC"):
            where = text.find(secret)
            assert where < 0, f"{secret[:6]}... stands in: {text[max(0, where - 300) : where]}"


_WRONG_SECRET: Final = "not-the-secret-of-anybody"


@pytest.fixture
def told(r2: LocalR2, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[Told]:
    """What is told in a test, every logger at DEBUG; it is searched when the test ends."""
    for name in (None, "renderdispatch", *_LIBRARIES):
        caplog.set_level(logging.DEBUG, logger=name)
    log = Lines()
    logging.getLogger().addHandler(log)
    told = Told(r2, log, capfd)
    yield told
    logging.getLogger().removeHandler(log)
    told.check()


@pytest.fixture(params=["inline", "local"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RenderBackend]:
    """Renders in this process, and in processes of their own, whose output is searched too."""
    with registered_scenes(tmp_path / "scenes"):
        inline = request.param == "inline"
        backend: RenderBackend = InlineBackend({"fake": FakeRenderer()}, pace=_PACE) if inline else LocalGpuBackend()
        yield backend
        backend.close()


@pytest.fixture
def service(told: Told, storage: R2Storage, backend: RenderBackend, tmp_path: Path) -> Iterator[RenderService]:
    """A service over R2 whose database is searched, table by table, once it is closed."""
    database = tmp_path / "jobs.db"
    store = SqlJobStore(f"sqlite:///{database}")
    fetcher = GuardedFetcher(allow_http=True, allow_private=True)
    with RenderService(store, storage, backend, fetcher=fetcher, owned=[store]) as service:
        yield service
        told.value(service)
    with closing(sqlite3.connect(database)) as connection:
        told.texts.extend(connection.iterdump())


def _end(told: Told, service: RenderService, **asked: Any) -> Job:
    """Carry one job to its end, and take in all that it shows on the way."""
    handle = service.submit(**{"audio": b"RIFF, a song", "scene": "fake", "limits": _ONCE, **asked})
    told.value(handle)
    told.job(service, service.get(handle.id))
    job = handle.wait(60)
    told.job(service, job)
    return job


def test_a_job_that_completes(told: Told, service: RenderService) -> None:
    """A video is made; the one signed URL that anybody gets is the download URL."""
    job = _end(told, service)
    assert job.status is JobStatus.COMPLETE, job.error
    assert told.log.text
    assert "X-Amz-Signature" in service.poll(job.id).to_json()


def test_a_job_whose_transfers_are_tried_again(told: Told, r2: LocalR2, service: RenderService) -> None:
    """Storage that fails for a while is logged without a URL."""
    for kind in ("503", "reset"):
        r2.fail(kind, method="GET", key="/jobs/")
        r2.fail(kind, method="PUT", key="/jobs/")
    assert _end(told, service).status is JobStatus.COMPLETE
    assert "trying again" in told.log.text


@pytest.mark.parametrize(
    ("method", "part", "code"), [("GET", "/audio", "audio.download"), ("PUT", "/video", "video.upload")]
)
def test_a_job_whose_transfer_is_refused(
    told: Told, r2: LocalR2, service: RenderService, method: str, part: str, code: str
) -> None:
    """A download or an upload that storage refuses fails the job, with an error that names no URL."""
    r2.fail("403", method=method, key=part, times=20)
    job = _end(told, service)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.code == code


def test_a_scene_that_fails(told: Told, service: RenderService) -> None:
    """A scene that raises fails the job."""
    assert _end(told, service, params={"fail": "as told"}).status is JobStatus.FAILED


@pytest.mark.parametrize("refused", [False, True])
def test_audio_by_a_signed_url(
    told: Told, r2: LocalR2, storage: R2Storage, service: RenderService, refused: bool
) -> None:
    """A signed URL that was submitted is forgotten when the job ends, well or badly."""
    storage.put("theirs.wav", b"RIFF, a song")
    if refused:
        r2.fail("403", method="GET", key="theirs.wav", times=20)
    handle = service.submit(AudioUrl(storage.sign_get("theirs.wav", expires_in=_HOUR)), scene="fake", limits=_ONCE)
    told.value(handle, handle.job, handle.job.request)
    told.texts.append(service.poll(handle.id).model_copy(update={"download_url": None}).to_json())
    job = handle.wait(60)
    assert job.status is (JobStatus.FAILED if refused else JobStatus.COMPLETE)
    told.job(service, job)


@pytest.mark.parametrize(
    "options",
    [{"secret_access_key": _WRONG_SECRET}, {"bucket": "absent"}, {"endpoint_url": "http://127.0.0.1:9"}],
    ids=["wrong secret", "wrong bucket", "nobody listens"],
)
def test_a_storage_that_refuses_everything(
    told: Told, r2: LocalR2, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What every call raises is told with all that it chains."""
    monkeypatch.setattr("renderdispatch.plumbing.s3._BACKOFF", Backoff(failures=2))
    storage = r2.storage(**options)
    told.value(storage)
    path = tmp_path / "song"
    path.write_bytes(b"song")
    calls = (
        lambda: storage.put("key", b"song"),
        lambda: storage.put("key", path, if_absent=True),
        lambda: storage.open("key"),
        lambda: storage.stat("key"),
        lambda: list(storage.list("")),
        lambda: storage.delete("key"),
        lambda: storage.delete_prefix("key"),
    )
    for call in calls:
        with pytest.raises(RenderDispatchError) as caught:
            call()
        told.error(caught.value)
    storage.close()


def test_what_values_show(told: Told, storage: R2Storage) -> None:
    """Orders and signed uploads hold URLs, and show none."""
    order = make_order(storage)
    told.value(order, order.video, storage.sign_put("key", expires_in=_HOUR, content_type="video/mp4"))
