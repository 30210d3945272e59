"""Is a video the same file, wherever it is drawn and by however many, and is it as good as one that is not cut?

Services of three kinds draw it, each with helpers: with processes of this machine and a folder; with containers of the
loopback Modal and the local R2; and with a render service behind HTTP.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import wave
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from attrs import field, frozen

from renderdispatch import JobHandle, RenderService
from renderdispatch.backends.http import HttpBackend
from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.backends.modal import ModalBackend
from renderdispatch.jobs import Job
from renderdispatch.messages import JobStatus, ObjectUrls, Output, RenderOrder, SignedPut
from renderdispatch.protocols import RenderBackend, StorageAdapter
from renderdispatch.render import bars
from renderdispatch.render.artist import Artist
from renderdispatch.render.covers import Cover
from renderdispatch.render.params import BarsParams
from renderdispatch.render.picture import Picture
from renderdispatch.render.renderer import VideoRenderer
from renderdispatch.runner.render import SupervisedRender
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import make_order, registered_scenes
from renderdispatch.testing.local_r2 import LocalR2
from renderdispatch.testing.modal import LoopbackModal
from renderdispatch.testing.webhook_server import webhook_server
from tests.support import ROOT
from tests.support.decoding import ffmpeg_warnings, heard, psnr, shown
from tests.support.http_services import TOKEN, rendering, stored_behind_http
from tests.support.meeting_scene import MEETING
from tests.support.modal_services import environment

MOST: Final = 16
"""How many draw one video at most."""

_PATIENCE_S: Final = 110.0
_RATE: Final = 44_100


@frozen(kw_only=True)
class Film:
    """A video.

    Args:
        seconds: How long it is.
        fps: Frames a second.
        size: Its width and its height.
    """

    seconds: float
    fps: Fraction = Fraction(10)
    size: tuple[int, int] = (64, 36)

    @property
    def output(self) -> Output:
        """What is asked for."""
        width, height = self.size
        return Output(width=width, height=height, fps=self.fps)

    @property
    def segments(self) -> int:
        """How many pieces of at least four seconds, and of at least 24 frames, it has."""
        least = max(-(-4 * self.fps.numerator // self.fps.denominator), 24)
        return min(max(round(Fraction(self.seconds) * self.fps) // least, 1), 256)


FRACTION: Final = Film(seconds=0.4)
ONE: Final = Film(seconds=4.0)
THREE: Final = Film(seconds=12.0)
NTSC: Final = Film(seconds=21.3, fps=Fraction(30_000, 1001))
MANY: Final = Film(seconds=68.05)
TEN_MINUTES: Final = Film(seconds=600.0, fps=Fraction(30), size=(256, 144))


@frozen
class Files:
    """What was delivered.

    Args:
        video: The hash of its bytes.
        poster: Likewise.
        path: Where the video is.
    """

    video: str
    poster: str
    path: Path = field(eq=False)

    @classmethod
    def at(cls, video: Path, poster: Path) -> Files:
        """Return what two files are."""
        made, shown_first = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (video, poster))
        return cls(made, shown_first, video)


class Studio:
    """A service, and the folder of a test.

    Args:
        service: Draws with helpers.
        songs: What is heard.
        folder: For videos, and for the marks of those who draw.
    """

    def __init__(self, service: RenderService, songs: Songs, folder: Path) -> None:
        self.service = service
        self._songs = songs
        self._folder = folder
        self._parties: dict[str, Path] = {}

    def begin(self, film: Film, workers: int, *, frame_s: float = 0) -> JobHandle:
        """Have a film drawn by so many, of whom each that has a segment to draw is there before the first frame."""
        parties = self._folder / f"parties-{len(self._parties)}"
        parties.mkdir()
        params: dict[str, Any] = {"folder": str(parties), "workers": min(workers, film.segments), "frame_s": frame_s}
        handle = self.service.submit(
            self._songs[film].read_bytes(),
            scene=MEETING,
            params=params,
            output=film.output,
            duration=film.seconds,
            poster=True,
            parallel=workers,
        )
        self._parties[handle.id] = parties
        return handle

    def end(self, handle: JobHandle, *, timeout_s: float = _PATIENCE_S) -> tuple[Files, Job]:
        """Wait for a film, and return it."""
        job = handle.wait(timeout_s)
        assert job.status is JobStatus.COMPLETE, job.error
        video, poster = (self._folder / f"{handle.id}.{kind}" for kind in ("mp4", "jpg"))
        self.service.save(job.id, video)
        self.service.save_poster(job.id, poster)
        return Files.at(video, poster), job

    def drawers(self, handle: JobHandle) -> int:
        """Return how many processes drew a film."""
        return len(list(self._parties[handle.id].iterdir()))


# --- who draws


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that makes the scene known, here and to other processes."""
    folder = tmp_path_factory.mktemp("scenes")
    with registered_scenes(folder, {MEETING: "tests.support.meeting_scene:meeting"}):
        yield folder


Songs = Mapping[Film, Path]


class _Songs(dict[Film, Path]):
    """Chords that swell and change, with noise: the sound of each film, and a second more."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __missing__(self, film: Film) -> Path:
        path = self._folder / f"{len(self)}.wav"
        total, random = round((film.seconds + 1) * _RATE), np.random.default_rng(7)
        with wave.open(str(path), "wb") as file:
            file.setparams((2, 2, _RATE, total, "NONE", "not compressed"))
            for begin in range(0, total, 10 * _RATE):
                at = np.arange(begin, min(begin + 10 * _RATE, total)) / _RATE
                tones = [np.sin(2 * np.pi * hz * (at // 2 % 5 + 1) * at) for hz in (55.0, 110.5)]
                swelling = 0.2 + 0.15 * np.sin(at * 1.3) * np.sin(at / 17)
                sound = (tones + random.normal(0, 0.1, (2, len(at)))) * swelling
                file.writeframes((sound * 32_000).clip(-32_000, 32_000).astype("<i2").T.tobytes())
        return self.setdefault(film, path)


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Songs:
    """The songs of films."""
    return _Songs(tmp_path_factory.mktemp("songs"))


@contextmanager
def serving(storage: StorageAdapter, backend: RenderBackend) -> Iterator[RenderService]:
    """A service that hears of its renders by webhook."""
    secret = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
    with (
        webhook_server() as hooks,
        RenderService(MemoryJobStore(), storage, backend, secrets=secret, webhook_url=hooks.url) as service,
    ):
        hooks.handler = service
        yield service


@pytest.fixture
def local(scenes: Path, tmp_path: Path) -> Iterator[RenderService]:
    """Processes of this machine, and a folder."""
    with (
        closing(LocalGpuBackend(slots=MOST)) as backend,
        RenderService(MemoryJobStore(), FsspecStorage(tmp_path / "objects"), backend) as service,
    ):
        yield service


@pytest.fixture(scope="module")
def known_to_modal(scenes: Path) -> Iterator[LoopbackModal]:
    """A loopback Modal whose containers know the scene."""
    path = os.pathsep.join([str(scenes), str(ROOT)])
    with LoopbackModal(max_containers=MOST, container_env={"PYTHONPATH": path}) as server:
        server.deploy("renderdispatch.modal_app")
        yield server


@pytest.fixture
def modal(known_to_modal: LoopbackModal, r2: LocalR2) -> Iterator[RenderService]:
    """Containers of the loopback Modal, and the local R2."""
    with (
        environment(known_to_modal.environment()),
        closing(r2.storage(prefix=secrets.token_hex(4))) as storage,
        closing(ModalBackend()) as backend,
        serving(storage, backend) as service,
    ):
        yield service


@pytest.fixture
def http(scenes: Path, tmp_path: Path) -> Iterator[RenderService]:
    """A render service behind HTTP, and objects behind signed URLs."""
    with ExitStack() as stack:
        storage = stack.enter_context(stored_behind_http(tmp_path / "objects"))
        machine = stack.enter_context(closing(LocalGpuBackend(slots=MOST)))
        url = stack.enter_context(rendering(machine))
        backend = stack.enter_context(closing(HttpBackend(url, token=TOKEN)))
        yield stack.enter_context(serving(storage, backend))


@pytest.fixture
def studio(request: pytest.FixtureRequest, songs: Songs, tmp_path: Path) -> Studio:
    """The service that the test's parameter names."""
    return Studio(request.getfixturevalue(request.param), songs, tmp_path)


LOCAL: Final = pytest.mark.parametrize("studio", ["local"], indirect=True)
EACH: Final = pytest.mark.parametrize("studio", ["local", "modal", "http"], indirect=True)


# --- what it is compared with

Alone = Mapping[Film, Files]


class _Alone(dict[Film, Files]):
    """Films that one process drew without any place to keep segments."""

    def __init__(self, songs: Songs, folder: Path) -> None:
        super().__init__()
        self._songs, self._folder = songs, folder

    def __missing__(self, film: Film) -> Files:
        video = self._folder / f"{len(self)}.mp4"
        with SupervisedRender() as render:
            render(plain_order(film), self._songs[film], video, quiet)
        return self.setdefault(film, Files.at(video, video.with_suffix(".jpg")))


@pytest.fixture(scope="module")
def alone(songs: Songs, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """Return a film that one process drew, without a service."""
    return _Alone(songs, tmp_path_factory.mktemp("alone"))


def plain_order(film: Film) -> RenderOrder:
    """Return an order of `bars`."""
    poster = ObjectUrls(key="poster", put=SignedPut(url=""), get="")
    wanted: dict[str, Any] = {
        "scene": "bars",
        "params": {},
        "output": film.output,
        "duration": film.seconds,
        "poster": poster,
    }
    return make_order(MemoryStorage(), **wanted)


def quiet(_done: int, _total: int) -> None:
    pass


class _Seeing:
    """Draws as an artist does, all in one piece, and keeps the luma of each picture."""

    run_up = None

    def __init__(self, artist: Any, seen: list[bytes]) -> None:
        self._artist, self._seen = artist, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._artist, name)

    def pictures(self, moments: Iterable[Any]) -> Iterator[Picture]:
        for picture in self._artist.pictures(moments):
            self._seen.append(bytes(picture.frame.planes[0]))
            yield picture


class Uncut(VideoRenderer):
    """Draws `bars` as if it could not be cut."""

    def __init__(self) -> None:
        super().__init__(BarsParams)
        self.drawn: list[bytes] = []

    @contextmanager
    def artist(self, order: RenderOrder, *, cover: Cover | None = None) -> Iterator[Artist]:
        """Return the artist of `bars`, without its run-up."""
        with bars.artist(order, cover=cover) as artist:
            seeing: Any = _Seeing(artist, self.drawn)
            yield seeing


# --- the same file


@LOCAL
def test_a_helper_changes_no_byte(studio: Studio, alone: Alone) -> None:
    """Two processes draw, and a part of the segments is taken over from the second one."""
    handle = studio.begin(THREE, 2, frame_s=0.005)
    files, job = studio.end(handle)
    assert files == alone[THREE]
    assert studio.drawers(handle) == 2
    assert job.artifact is not None
    assert (job.artifact.segments, len(job.attempts)) == (3, 1)
    assert job.artifact.segments_taken >= 1


@pytest.mark.long
@pytest.mark.timeout(300)
@EACH
def test_any_number_of_workers_makes_the_same_file(studio: Studio, alone: Alone) -> None:
    """Videos of a part of a segment, of one, of three exactly and of a rate that is no whole number; posters too."""
    begun = [(film, workers, studio.begin(film, workers)) for film, workers in ((FRACTION, 4), (ONE, 1), (THREE, 2))]
    ended = [(film, workers, handle, *studio.end(handle)) for film, workers, handle in begun]
    last = studio.begin(NTSC, 4)
    for film, workers, handle, files, job in [*ended, (NTSC, 4, last, *studio.end(last))]:
        assert files == alone[film], (film, workers)
        assert studio.drawers(handle) >= min(workers, film.segments)
        assert job.artifact is not None and job.artifact.segments == film.segments


@pytest.mark.long
@pytest.mark.timeout(300)
@LOCAL
def test_sixteen_workers_make_the_same_file(studio: Studio, alone: Alone) -> None:
    """Each draws a segment of its own at least."""
    handle = studio.begin(MANY, 16, frame_s=0.01)
    files, job = studio.end(handle)
    assert files == alone[MANY]
    assert studio.drawers(handle) == 16
    assert job.artifact is not None and job.artifact.segments_taken >= 8


@pytest.mark.soak
@pytest.mark.timeout(1800)
@EACH
@pytest.mark.parametrize("workers", [1, 2, 4, 16])
@pytest.mark.parametrize("film", [FRACTION, ONE, THREE, NTSC, MANY, TEN_MINUTES], ids=lambda film: f"{film.seconds} s")
def test_any_film_is_the_same_file(studio: Studio, alone: Alone, tmp_path: Path, film: Film, workers: int) -> None:
    """Every length with every number of workers on every backend; players have nothing to complain of."""
    handle = studio.begin(film, workers)
    files, _ = studio.end(handle, timeout_s=1500)
    assert files == alone[film]
    assert ffmpeg_warnings(files.path) == ""


# --- as good as a video that is not cut


@pytest.mark.long
@pytest.mark.timeout(300)
@LOCAL
def test_cutting_costs_nothing_that_is_seen_or_heard(studio: Studio, songs: Songs, tmp_path: Path) -> None:
    """Against what was drawn, the picture is as near as that of one encode; the sound has the same samples."""
    film = Film(seconds=13.3, fps=Fraction(30_000, 1001), size=(128, 72))
    files, _ = studio.end(studio.begin(film, 2))
    uncut, whole = Uncut(), tmp_path / "whole.mp4"
    stats = uncut.render(plain_order(film), songs[film], whole, quiet)
    assert stats.segments is None and len(uncut.drawn) == stats.frames
    cut = shown(files.path)
    assert [at for at, _ in cut] == [number / film.fps for number in range(stats.frames)]
    measured = [psnr((luma for _, luma in frames), uncut.drawn) for frames in (cut, shown(whole))]
    assert abs(measured[0] - measured[1]) < 0.2, measured
    (begin, sound), (begin_of_whole, sound_of_whole) = heard(files.path), heard(whole)
    assert begin == begin_of_whole == 0
    assert np.array_equal(sound, sound_of_whole)
    assert ffmpeg_warnings(files.path) == ""
