"""Does what a video lacks reach everyone who asks for the video, and the wished track the renderer?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import anyio
import pytest

from renderdispatch import AsyncRenderService
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.errors import InvalidRequestError
from renderdispatch.jobs import Job
from renderdispatch.messages import Output, RenderOrder, RenderStats, RenderWarning
from renderdispatch.protocols import Report
from renderdispatch.service import RenderService
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.sql import SqlJobStore

TINY = Output(width=16, height=16, fps=Fraction(10))
LOST = RenderWarning(code="audio.damaged", message="silent <from> 3 s")


class Lossy:
    """A renderer that lost a bit of the song."""

    def render(self, order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        output.write_bytes(b"a video")
        drawn = f"track {order.audio_track}, at most {order.max_duration:g} s"
        made: dict[str, Any] = {"frames": 1, "duration_s": 0.1, "encoded_by": "none", "warnings": (LOST,)}
        return RenderStats(**dict(order.output), **made, rendered_by=drawn)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RenderService]:
    backend, store = InlineBackend({"lossy": Lossy()}), SqlJobStore(f"sqlite:///{tmp_path / 'jobs.db'}")
    with RenderService(store, MemoryStorage(), backend, owned=[backend, store]) as opened:
        yield opened


def test_warnings_reach_record_poll_and_notebook(service: RenderService) -> None:
    """The record holds what the renderer said; a poll has it as JSON, and a notebook in words."""
    handle = service.submit(b"RIFF", scene="lossy", output=TINY)
    artifact = handle.wait(30).artifact
    assert artifact is not None
    assert artifact.warnings == handle.poll().warnings == (LOST,)
    assert json.loads(handle.poll().to_json())["warnings"] == [
        {"code": "audio.damaged", "message": "silent <from> 3 s"}
    ]
    assert "warning: silent &lt;from&gt; 3 s" in handle._repr_html_()


def test_warnings_survive_a_lost_report(service: RenderService) -> None:
    """The result object holds them too: whoever finalizes the job from storage tells the same."""
    job = service.submit(b"RIFF", scene="lossy", output=TINY).wait(30)
    assert job.attempt is not None and job.attempt.result_key is not None
    with service.open_object(job.attempt.result_key) as file:
        assert json.load(file)["artifact"]["warnings"] == [LOST.model_dump()]


def test_the_wished_track_reaches_the_renderer(service: RenderService) -> None:
    """The blocking service and its async twin take it alike; the longest audio goes along."""
    blocking = service.submit(b"RIFF", scene="lossy", output=TINY, audio_track=3).wait(30)

    async def submit() -> Job:
        return await (await AsyncRenderService(service).submit(b"RIFF", scene="lossy", output=TINY, audio_track=0))

    drawn = [job.artifact and job.artifact.rendered_by for job in (blocking, anyio.run(submit))]
    assert drawn == ["track 3, at most 14400 s", "track 0, at most 14400 s"]


@pytest.mark.parametrize("track", [-1, 1000, "first", 0.5])
def test_what_is_no_track_is_refused(service: RenderService, track: object) -> None:
    """A track is a small whole number."""
    with pytest.raises(InvalidRequestError, match="audio"):
        service.submit(b"RIFF", scene="lossy", audio_track=track)  # type: ignore[arg-type]
