"""Which jobs, artifacts and clocks do tests start from?"""

from __future__ import annotations

import secrets
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from renderdispatch.jobs import Attempt, CleanUp, Helper, HelperState, Job
from renderdispatch.messages import (
    Artifact,
    FaultDomain,
    JobError,
    JobStatus,
    LocalAudio,
    RenderRequest,
    Stage,
    StoredAudio,
)

_T = TypeVar("_T")


class FakeClock:
    """A clock that moves only by `advance`. Call it for the time, aware and in UTC."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._now = start
        self._lock = threading.Lock()

    def __call__(self) -> datetime:
        with self._lock:
            return self._now

    def advance(self, by: timedelta) -> datetime:
        """Move the clock forward and return the new time."""
        with self._lock:
            self._now += by
            return self._now


def make_request(**changes: Any) -> RenderRequest:
    """Return a request for stored audio, with ``changes`` to its fields."""
    audio = StoredAudio(key="audio/song.wav", size=44)
    return RenderRequest(**{"audio": audio, "scene": "bars", "backend": "inline", **changes})


def make_job(*, backend: str = "inline", machine: str | None = None, **changes: Any) -> Job:
    """Return a job that was just submitted, with a new id.

    Args:
        backend: The backend of its request.
        machine: The only machine that may claim it, because its audio is a file there.
        changes: Any of the job's fields.
    """
    audio: LocalAudio | StoredAudio = StoredAudio(key="audio/song.wav", size=44)
    if machine is not None:
        audio = LocalAudio(path="/music/song.wav", machine=machine, size=44, mtime_ns=1)
    now = changes.get("created_at") or datetime.now(UTC)
    fields = {
        "id": uuid.uuid4().hex,
        "incarnation": secrets.token_hex(8),
        "request": make_request(audio=audio, backend=backend),
        "fingerprint": "0" * 64,
        "created_at": now,
        "updated_at": now,
        "finish_by": now + timedelta(hours=6),
        "ready_at": now,
    }
    return Job(**{**fields, **changes})


def make_artifact(**changes: Any) -> Artifact:
    """Return the artifact of two seconds of video."""
    fields = {
        "key": "videos/video.mp4",
        "bytes": 123_456,
        "etag": "d41d8cd9",
        "sha256": "0" * 64,
        "width": 1280,
        "height": 720,
        "fps": "30000/1001",
        "frames": 60,
        "duration_s": 2.002,
        "rendered_by": "numpy",
        "encoded_by": "libx264",
    }
    return Artifact(**{**fields, **changes})


def make_ended_job(**changes: Any) -> Job:
    """Return a job that completed at its second attempt. Every field that a record can hold has a value."""
    now = datetime(2026, 5, 4, 3, 2, 1, 987_654, tzinfo=UTC)
    error = JobError(code="worker.lost", message="the worker went away: é🎵", fault=FaultDomain.INFRASTRUCTURE)
    lost = Attempt(
        number=1,
        token="token-1",  # noqa: S106 - no secret
        backend="inline",
        local=True,
        claimed_at=now,
        holder="worker-1",
        lease_until=now + timedelta(seconds=30),
        stage_times={Stage.RESOLVING_AUDIO: now},
        ended_at=now,
        error=error,
        clean_up=CleanUp.OWED,
    )
    done = Attempt(
        number=2,
        token="token-2",  # noqa: S106 - no secret
        backend="inline",
        local=False,
        claimed_at=now,
        called=True,
        call_id="call-2",
        runs=("run-1", "run-2"),
        start_by=now + timedelta(hours=1),
        video_key="videos/video.mp4",
        result_key="results/result.json",
        pieces="jobs/job/life/pieces/cpu/",
        frames=60,
        frames_total=60,
        planned=True,
        helpers=(Helper(share=1, token="helper-1", state=HelperState.STOPPED, call_id="call-3"),),  # noqa: S106 - no secret
        segments=4,
        segments_standing=4,
        segments_own=2,
        segments_before=1,
        segments_then=1,
        stage_times={Stage.RESOLVING_AUDIO: now, Stage.RENDERING: now + timedelta(microseconds=1)},
        ended_at=now,
        clean_up=CleanUp.DONE,
    )
    fields = {
        "expired_at": now + timedelta(days=30),
        "tenant": "acme",
        "priority": 7,
        "parallel": 2,
        "retry_of": "another",
        "batch": "album",
        "reroutes": True,
        "rerouted_to": "inline",
        "retry_at": now,
        "created_at": now,
        "ready_at": None,
        "status": JobStatus.COMPLETE,
        "stage": Stage.FINALIZING,
        "progress": 100.0,
        "audio": StoredAudio(key="audio/song.wav", size=44, sha256="0" * 64),
        "audio_clean_up": CleanUp.OWED,
        "attachments": {
            "cover": StoredAudio(key="cover.jpg", size=5, sha256="1" * 64),
            "scene_file": StoredAudio(key="waves.glsl", size=6, sha256="2" * 64, name="waves.glsl"),
            "image_2": StoredAudio(key="rocks.png", size=7, sha256="3" * 64),
        },
        "pieces_clean_up": CleanUp.OWED,
        "pieces_swept_at": now,
        "pieces_kept_until": now,
        "borrows": "jobs/another/life/pieces/",
        "lent_to": "a third one",
        "attempts": (lost, done),
        "error": error,
        "artifact": make_artifact(),
        "cancel_requested_at": now,
        "compute_stopped_at": now,
        "finalizing_at": now,
        "ended_at": now,
    }
    return make_job(**{**fields, **changes})


def in_threads(number: int, work: Callable[[int], _T]) -> list[_T]:
    """Call ``work(0)`` to ``work(number - 1)``, each in its own thread, all released at once."""
    barrier = threading.Barrier(number)

    def run(index: int) -> _T:
        barrier.wait(timeout=30)
        return work(index)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(run, range(number)))


_PATIENCE_S: Final = 60.0


def eventually(condition: Callable[[], _T]) -> _T:
    """Call ``condition`` until it returns something true, and return that; `AssertionError` after 60 s."""
    deadline = time.monotonic() + _PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"still {found!r} after {_PATIENCE_S:.0f} s"
        time.sleep(0.005)
    return found
