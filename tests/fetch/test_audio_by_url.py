"""Does audio by URL become a video, and is its URL forgotten?"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from renderdispatch import AudioUrl, from_settings, local
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.engine.records import dump_job
from renderdispatch.errors import InvalidRequestError
from renderdispatch.jobs import Job
from renderdispatch.messages import FaultDomain, JobStatus, Limits, RemoteAudio, Stage, StoredAudio
from renderdispatch.plumbing.fetch import GuardedFetcher
from renderdispatch.service import RenderService
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import FakeRenderer
from tests.support.targets import Answer, Target, redirects, says, target

_ONCE = Limits(max_attempts=1)


@pytest.fixture
def service() -> Iterator[RenderService]:
    fetcher = GuardedFetcher(allow_http=True, allow_private=True, max_bytes=1000)
    storage = MemoryStorage()
    with RenderService(MemoryJobStore(), storage, InlineBackend({"fake": FakeRenderer()}), fetcher=fetcher) as service:
        yield service


def _url(host: Target, path: str = "/song.wav") -> AudioUrl:
    return AudioUrl(f"http://127.0.0.1:{host.port}{path}?signature=do-not-tell")


def _end(service: RenderService, answer: Answer, limits: Limits = _ONCE) -> Job:
    with target(answer) as host:
        return service.submit(_url(host), scene="fake", limits=limits).wait(60)


def _shown(service: RenderService, job: Job) -> str:
    """Everything that shows a job to anybody, but the record itself."""
    return repr(job) + str(job) + repr(job.request) + service.poll(job.id).to_json() + repr(service.poll(job.id))


def test_audio_by_url_becomes_a_video(service: RenderService) -> None:
    """The dispatcher fetches the audio and stores it under the job's prefix, and the stages show it."""
    with target(says(b"RIFF, a song")) as host:
        handle = service.submit(_url(host), scene="fake")
        job = handle.wait(60)
    assert job.status is JobStatus.COMPLETE
    assert isinstance(job.audio, StoredAudio)
    assert job.audio.key.startswith(f"jobs/{job.id}/")
    assert job.audio.key.endswith("/audio.wav")
    with service.open_object(job.audio.key) as file:
        assert file.read() == b"RIFF, a song"
    assert job.attempt is not None
    assert {Stage.RESOLVING_AUDIO, Stage.UPLOADING_AUDIO, Stage.GENERATING_URL} <= set(job.attempt.stage_times)


def test_the_url_stands_in_the_record_until_the_audio_is_stored(
    service: RenderService, caplog: pytest.LogCaptureFixture
) -> None:
    """The record holds the URL while it is needed, nothing shows it meanwhile, and then it is gone."""
    asked, go_on = threading.Event(), threading.Event()

    def answer(*args: object) -> None:
        asked.set()
        go_on.wait(30)
        says(b"audio")(*args)  # type: ignore[arg-type]

    with caplog.at_level(logging.DEBUG), target(answer) as host:
        handle = service.submit(_url(host), scene="fake")
        assert asked.wait(30)
        waiting = handle.job
        go_on.set()
        job = handle.wait(60)
    assert isinstance(waiting.request.audio, RemoteAudio)
    assert (waiting.stage, waiting.progress) == (Stage.UPLOADING_AUDIO, 20)
    assert "do-not-tell" in dump_job(waiting)
    assert "do-not-tell" not in _shown(service, waiting)
    assert job.status is JobStatus.COMPLETE
    assert "do-not-tell" not in dump_job(job) + _shown(service, job) + caplog.text


@pytest.mark.parametrize(
    ("answer", "code", "fault"),
    [
        (says(b"", status="404 Gone"), "audio.url-answer", FaultDomain.REQUEST),
        (redirects("http://169.254.169.254/?do-not-tell"), "audio.url-refused", FaultDomain.REQUEST),
        (says(b"x" * 1001), "audio.too-large", FaultDomain.AUDIO),
        (says(b""), "audio.empty", FaultDomain.AUDIO),
        (says(b"", status="503 Away"), "storage.unavailable", FaultDomain.INFRASTRUCTURE),
    ],
)
def test_a_failure_has_the_right_fault(
    service: RenderService, caplog: pytest.LogCaptureFixture, answer: Answer, code: str, fault: FaultDomain
) -> None:
    """Whose fault it was is told apart; the URL is forgotten with the job's end, and told by nothing."""
    with caplog.at_level(logging.DEBUG):
        job = _end(service, answer)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert (job.error.code, job.error.fault) == (code, fault)
    assert "do-not-tell" not in dump_job(job) + _shown(service, job) + caplog.text
    assert "127.0.0.1" not in job.error.message


def test_only_what_may_change_is_tried_again(service: RenderService) -> None:
    """A host that was away is asked again and the job completes; a refusal and too many bytes are final."""
    answers = iter([says(b"", status="503 Away"), says(b"audio")])
    job = _end(service, lambda *args: next(answers)(*args), Limits(max_attempts=3))  # noqa: PLW0108 - one each
    assert (job.status, len(job.attempts)) == (JobStatus.COMPLETE, 2)
    for answer in (says(b"", status="403 No"), says(b"x" * 1001)):
        job = _end(service, answer, Limits(max_attempts=3))
        assert (job.status, len(job.attempts)) == (JobStatus.FAILED, 1)


def test_what_will_never_be_fetched_is_refused_at_submit(service: RenderService) -> None:
    """Scheme, shape and literal addresses are looked at in submit; the refusal quotes nothing."""
    for url in ("ftp://a.example/x", "file:///etc/passwd", "http://169.254.169.254/x", "http://u@127.0.0.1/x", "x", ""):
        with pytest.raises(InvalidRequestError) as refusal:
            service.submit(AudioUrl(url), scene="fake")
        assert refusal.value.code == "audio.url-refused"
        assert not url or url not in str(refusal.value)
    assert service.counts()[JobStatus.PENDING] == 0


def test_a_cancel_ends_the_fetching(service: RenderService) -> None:
    """A job that is cancelled while its audio comes in keeps no URL and no audio."""
    asked, go_on = threading.Event(), threading.Event()

    def answer(*args: object) -> None:
        asked.set()
        go_on.wait(30)
        says(b"audio")(*args)  # type: ignore[arg-type]

    with target(answer) as host:
        handle = service.submit(_url(host), scene="fake")
        assert asked.wait(30)
        handle.cancel()
        go_on.set()
        job = handle.wait(60)
    assert job.status is JobStatus.CANCELLED
    assert "do-not-tell" not in dump_job(job)


@pytest.mark.parametrize("ending", ["cancel", "close"])
def test_a_host_that_trickles_is_left_at_once(service: RenderService, ending: str) -> None:
    """Response headers that never end hold up neither a cancel nor the service's end."""
    asked, over = threading.Event(), threading.Event()

    def answer(connection: socket.socket, _: bytes) -> None:
        asked.set()
        connection.sendall(b"HTTP/1.1 200 OK\r\nx-trickle: ")
        while not over.wait(0.05):
            connection.sendall(b"x")

    with target(answer) as host:
        handle = service.submit(_url(host), scene="fake")
        assert asked.wait(30)
        began = time.monotonic()
        if ending == "cancel":
            handle.cancel()
            assert handle.wait(30).status is JobStatus.CANCELLED
        else:
            service.close()
        assert time.monotonic() - began < 5
        over.set()


def test_a_failed_job_can_be_tried_again_once_its_audio_was_stored(service: RenderService) -> None:
    """`retry` uses the stored audio, and says so where there is none."""
    with target(says(b"audio")) as host:
        handle = service.submit(_url(host), scene="fake", params={"fail": "a broken scene"})
        assert handle.wait(60).status is JobStatus.FAILED
        assert handle.retry().wait(60).audio is not None
        assert host.hits == 1
    failed = _end(service, says(b"", status="404 Gone"))
    with pytest.raises(InvalidRequestError) as refusal:
        service.retry(failed.id)
    assert refusal.value.code == "audio.missing"


def test_an_idempotency_key_covers_the_url(service: RenderService) -> None:
    """The same key with the same URL is the same job, also after the URL was forgotten."""
    with target(says(b"audio")) as host:
        first = service.submit(_url(host), scene="fake", idempotency_key="key")
        first.wait(60)
        assert service.submit(_url(host), scene="fake", idempotency_key="key").id == first.id
        assert host.hits == 1


def test_wiring_gives_a_guarded_fetcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`local` and `from_settings` fetch from public hosts by https alone, unless the settings say otherwise."""
    monkeypatch.setenv("RENDERDISPATCH_HOME", str(tmp_path))
    for make in (local, from_settings):
        with make(worker=False) as service:
            service.submit(AudioUrl("https://audio.example/song.wav"))
            for url in ("http://audio.example/song.wav", "https://127.0.0.1/"):
                with pytest.raises(InvalidRequestError):
                    service.submit(AudioUrl(url))
    monkeypatch.setenv("RENDERDISPATCH_FETCH_ALLOW_HOSTS", "media.example, *.cdn.example")
    monkeypatch.setenv("RENDERDISPATCH_FETCH_ALLOW_HTTP", "1")
    with from_settings(worker=False) as service:
        service.submit(AudioUrl("http://a.cdn.example/song.wav"))
        with pytest.raises(InvalidRequestError):
            service.submit(AudioUrl("https://audio.example/song.wav"))
