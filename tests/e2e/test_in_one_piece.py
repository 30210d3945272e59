"""Does a scene that cannot be cut render as before when several are asked for, and is it said why?"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Final

import pytest

from renderdispatch import RenderService
from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.jobs import HelperState, Job
from renderdispatch.messages import JobStatus, Output
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.stores.memory import MemoryJobStore
from tests.support.command_line import write_song
from tests.support.needs import need_ffmpeg

SMALL: Final = Output(width=64, height=36, fps=Fraction(10))
SCENES: Final = '''
import sys
import numpy as np
from renderdispatch.render.command import CommandRenderer, ffmpeg
from renderdispatch.render.function import renderer

FRAMES = """
import sys
from PIL import Image
for number in range(90):
    Image.new("RGB", (64, 36), (number, 0, 0)).save("%s/%06d.png" % (sys.argv[1], number))
"""

@renderer
def grey(song, *, width, height):
    for frame in song:
        yield np.full((height, width, 3), round(255 * frame.level), np.uint8)

program = CommandRenderer([sys.executable, "-c", FRAMES, "{frames}"], makes="frames")
waves = ffmpeg("showwaves=size={width}x{height}:rate={fps}")
'''


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RenderService]:
    """Three processes of this machine at once, with scenes that cannot be cut."""
    place = tmp_path / "pieces.py"
    place.write_text(SCENES)
    scenes = {name: f"{place}:{name}" for name in ("grey", "program", "waves")}
    with (
        closing(LocalGpuBackend(slots=3, renderers=scenes)) as backend,
        RenderService(MemoryJobStore(), FsspecStorage(tmp_path / "objects"), backend) as service,
    ):
        yield service


@pytest.mark.parametrize(
    ("scene", "need"),
    [
        ("grey", lambda: None),
        pytest.param("program", lambda: None, marks=pytest.mark.long),
        pytest.param("waves", need_ffmpeg, marks=pytest.mark.long),
    ],
)
def test_one_draws_all_and_says_why(
    service: RenderService, tmp_path: Path, caplog: pytest.LogCaptureFixture, scene: str, need: Callable[[], None]
) -> None:
    """The video is that of a job without helpers; the log and the answer of a poll have the reason."""
    need()
    song = write_song(tmp_path / "song.wav", seconds=9)
    with caplog.at_level(logging.DEBUG, "renderdispatch"):
        handles = [service.submit(song, scene=scene, output=SMALL, parallel=parallel) for parallel in (1, 3)]
        alone, shared = (handle.wait(60) for handle in handles)
    assert hash_of(alone) == hash_of(shared)
    assert [helper.state for helper in shared.attempts[-1].helpers if helper.state is not HelperState.STOPPED] == []
    without, answer = (handle.poll().model_dump(mode="json", by_alias=True) for handle in handles)
    assert "warnings" not in without
    (warning,) = answer["warnings"]
    assert warning["code"] == "parallel.ignored"
    assert re.search("from a function or a program|makes the whole video", warning["message"])
    assert answer["result"].get("segmentsTaken") in {0, None}
    assert answer["result"].get("segments") is None
    said = [record.getMessage() for record in caplog.records if "parallel.ignored" in record.getMessage()]
    assert said == [f"job {shared.id}: parallel.ignored: {warning['message']}"]


def hash_of(job: Job) -> str | None:
    """Return the hash of a job's video."""
    assert job.status is JobStatus.COMPLETE, job.error
    assert job.artifact is not None
    return job.artifact.sha256
