"""Is nothing drawn twice but what was being drawn, however often those who draw are killed?"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from renderdispatch.testing.modal import LoopbackModal
from tests.support.killed_renders import Killed, local_kills, modal_kills, modal_with_counted, write_song
from tests.support.lengths import lengths
from tests.support.modal_services import environment

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_song(tmp_path_factory.mktemp("song") / "song.wav")


@pytest.fixture(scope="module")
def undisturbed(song: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of the file that one worker draws, whom nobody kills."""
    with local_kills(tmp_path_factory.mktemp("undisturbed"), random.Random(0), parallel=1) as renders:
        video = renders.render(song, kills=0, frame_s=0)
    assert len(video.sha256) == 64
    assert video.in_vain == 0
    return video.sha256


@pytest.fixture(scope="module")
def modal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackModal]:
    with modal_with_counted(tmp_path_factory.mktemp("scenes")) as server:
        yield server


def see_through(renders: Killed, song: Path, undisturbed: str, kills: int) -> None:
    """Render videos until there were so many kills, and check each."""
    while (left := kills - renders.kills.total()) > 0:
        video = renders.render(song, kills=left)
        print(video)
        assert not [*video.problems(undisturbed)]


@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("kills", lengths(long=6, soak=60, timeout_s=3600))
def test_processes_that_are_killed_lose_what_they_were_drawing(
    song: Path, undisturbed: str, tmp_path: Path, seed: int, kills: int, parallel: int
) -> None:
    """Render processes, runners or the whole service: the next run goes on, and delivers the same file."""
    with local_kills(tmp_path, random.Random(f"{seed} {parallel}"), parallel=parallel) as renders:
        see_through(renders, song, undisturbed, kills)


@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("kills", lengths(long=4, soak=40, timeout_s=3600))
def test_containers_that_are_preempted_lose_what_they_were_drawing(
    modal: LoopbackModal, song: Path, undisturbed: str, tmp_path: Path, seed: int, kills: int, parallel: int
) -> None:
    """Modal starts each input again, which goes on, and delivers the same file."""
    with ExitStack() as stack:
        stack.enter_context(environment(modal.environment()))
        renders = stack.enter_context(
            modal_kills(modal, tmp_path, random.Random(f"{seed} {parallel}"), parallel=parallel)
        )
        see_through(renders, song, undisturbed, kills)
