"""Does a Shadertoy file, with its images, reach the renderer as it was submitted?

The video of the renderer here is what it was given. What OpenGL makes of it is tested elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from renderdispatch import RenderService, StorageKey
from renderdispatch.backends.http import HttpBackend
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.backends.modal import ModalBackend
from renderdispatch.engine import layout
from renderdispatch.engine.records import dump_job
from renderdispatch.errors import (
    IdempotencyConflictError,
    InvalidRequestError,
    StorageUnavailableError,
    StoreUnavailableError,
)
from renderdispatch.jobs import Job
from renderdispatch.messages import (
    MAX_COVER_BYTES,
    MAX_SHADER_BYTES,
    JobStatus,
    LocalAudio,
    Output,
    RenderOrder,
    RenderStats,
    StoredAudio,
)
from renderdispatch.protocols import ObjectInfo, Report, Source
from renderdispatch.render import glsl
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import make_job, make_request
from tests.support.rounds import finished

TINY = Output(width=64, height=36)
SHADER = b"void mainImage(out vec4 colour, in vec2 place) { colour = vec4(1.0); }\n"
PNG = b"\x89PNG\r\n\x1a\n, rocks"
JPEG = b"\xff\xd8\xff\xe0, clouds"


class Handed:
    """A renderer in the place of ``glsl``. Its video is its scene file and its images."""

    draws_images = True
    names: tuple[str | None, ...] = ()

    def check_scene_file(self, text: str, *, name: str) -> None:
        glsl.check_scene_file(text, name=name)

    def render(self, order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        assert order.scene_file is not None
        assets = (order.scene_file, *order.images)
        assert {asset.url for asset in assets} == {""}
        self.names = tuple(asset.name for asset in assets)
        output.write_bytes(b"|".join(Path(asset.path or "").read_bytes() for asset in assets))
        return RenderStats(**dict(TINY), frames=2, duration_s=0.1, rendered_by="handed", encoded_by="none")


class Failing(Handed):
    """It fails always."""

    def render(self, order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        raise RuntimeError("it fails always")


@pytest.fixture
def shader(tmp_path: Path) -> Path:
    path = tmp_path / "my waves.glsl"
    path.write_bytes(SHADER)
    return path


@pytest.fixture
def rocks(tmp_path: Path) -> Path:
    path = tmp_path / "rocks.png"
    path.write_bytes(PNG)
    return path


@pytest.fixture
def handed() -> Handed:
    return Handed()


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def idle(storage: MemoryStorage, handed: Handed) -> Iterator[RenderService]:
    """A service that works only when it is told to, so that `submit` stores files."""
    backend = InlineBackend({"glsl": handed})
    with RenderService(MemoryJobStore(), storage, backend, machine="here", worker=False, owned=[backend]) as opened:
        yield opened


@pytest.fixture(params=["memory", "folder"])
def service(
    request: pytest.FixtureRequest, tmp_path: Path, storage: MemoryStorage, handed: Handed
) -> Iterator[RenderService]:
    """A service with a worker, which reads files later. With a folder they are read in place."""
    backend = InlineBackend({"glsl": handed})
    chosen = storage if request.param == "memory" else FsspecStorage(tmp_path / "objects")
    with RenderService(MemoryJobStore(), chosen, backend, owned=[backend]) as opened:
        yield opened


def video_of(service: RenderService, job_id: str) -> bytes:
    with service.open_video(job_id) as video:
        return video.read()


def stored(service: RenderService) -> list[str]:
    """Return the kinds of all objects: the beginnings of the last parts of their keys."""
    keys = [info.key.rpartition("/")[2] for info in service._engine.parts.storage.list("")]
    return sorted(key.rpartition("-")[0] or key for key in keys)


def left(service: RenderService, **files: Path) -> Job:
    """Record a job whose files are left to a worker of this machine, as `submit` does where a worker runs."""
    parts = service._engine.parts

    def local(path: Path) -> LocalAudio:
        found = path.stat()
        return LocalAudio(path=str(path), machine="here", size=found.st_size, mtime_ns=found.st_mtime_ns)

    parts.storage.put("song.wav", b"RIFF")
    request = make_request(audio=StoredAudio(key="song.wav", size=4), scene="glsl", backend="default", output=TINY)
    return parts.store.create(make_job(request=request.attaching({name: local(path) for name, path in files.items()})))


# --- the whole way


def test_a_file_and_its_images(service: RenderService, handed: Handed, shader: Path, rocks: Path) -> None:
    """The renderer gets their bytes in order, and their names; the record holds no URL."""
    service._engine.parts.storage.put("clouds.jpg", JPEG)
    handle = service.submit(b"RIFF", scene=shader, output=TINY, images=[rocks, StorageKey("clouds.jpg")])
    job = handle.wait(30)
    assert (job.status, job.request.scene) == (JobStatus.COMPLETE, "glsl")
    assert video_of(service, job.id) == b"|".join([SHADER, PNG, JPEG])
    assert handed.names == ("my waves.glsl", "rocks.png", None)
    assert not any(scheme in dump_job(job) for scheme in ("memory:", "file:"))


def test_where_no_worker_runs_files_are_stored_at_once(idle: RenderService, shader: Path, rocks: Path) -> None:
    """Another machine can render them; what happens to the files after that does not matter."""
    handle = idle.submit(b"RIFF", scene=shader, output=TINY, images=[rocks, rocks])
    assert stored(idle) == ["audio", "image", "scene-file"]
    shader.unlink()
    rocks.write_bytes(JPEG)
    finished(idle, handle.id)
    assert video_of(idle, handle.id) == b"|".join([SHADER, PNG, PNG])


def test_files_in_place_are_not_stored(service: RenderService, shader: Path, rocks: Path) -> None:
    """Where storage and renderer are on this machine nothing is stored; elsewhere it is, until `delete`."""
    handle = service.submit(b"RIFF", scene=shader, output=TINY, images=[rocks])
    job = handle.wait(30)
    in_place = isinstance(service._engine.parts.storage, FsspecStorage)
    assert set(job.attachments) == (set() if in_place else {"scene_file", "image_1"})
    kept = [] if in_place else ["image", "scene-file"]
    assert [name for name in stored(service) if name not in {"audio", "result.json", "video.mp4"}] == kept
    service.delete(handle.id)
    assert stored(service) == []
    assert (shader.read_bytes(), rocks.read_bytes()) == (SHADER, PNG)


def test_a_byte_order_mark_is_no_part_of_the_text(idle: RenderService, shader: Path) -> None:
    """Editors write one; the lines of the file are read all the same."""
    shader.write_bytes(b"\xef\xbb\xbf//! rubbish\n")
    with pytest.raises(InvalidRequestError, match=r"my waves\.glsl, line 1"):
        idle.submit(b"RIFF", scene=shader)
    shader.write_bytes(b"\xef\xbb\xbf" + SHADER)
    assert finished(idle, idle.submit(b"RIFF", scene=shader, output=TINY).id).status is JobStatus.COMPLETE


# --- what is refused


@pytest.mark.parametrize(
    ("scene", "code", "said"),
    [
        ("my waves.glsl", "scene.file", "Path('my waves.glsl')"),
        ("WAVES.FRAG", "scene.file", "pass a path"),
        ("glsl", "scene.file", "pass its path"),
        (Path("trail.py"), "scene.file", "renderdispatch render --scene file.py:NAME"),
        (Path("trail.py:Trail"), "scene.file", "only a command"),
        (Path("missing.glsl"), "scene-file.missing", "does not exist"),
        (Path("/"), "scene-file.directory", "not a Shadertoy file"),
        (Path("/dev/null"), "scene-file.invalid", "not a regular file"),
        (Path("a\0b"), "scene-file.invalid", "cannot be read"),
        (b"", "scene-file.empty", "is empty"),
        (b"/" * (MAX_SHADER_BYTES + 1), "scene-file.too-large", "1048576 are the limit"),
        ("Schön".encode("latin-1"), "scene-file.invalid", "not text in UTF-8"),
        (SHADER + b"\0", "scene-file.invalid", "not text in UTF-8"),
        (b"//! iChannel0: rubbish\n", "shader.invalid", "my waves.glsl, line 1: "),
        (b"//! Buffer A\n" + SHADER, "shader.invalid", "there is no Image"),
    ],
    ids=lambda value: repr(value)[:30],
)
@pytest.mark.parametrize("worker", [True, False])
def test_what_is_no_scene(scene: Any, code: str, said: str, worker: bool, shader: Path, storage: MemoryStorage) -> None:
    """It is refused with a code and a reason, and leaves neither a job nor an object. A string is never a path."""
    if isinstance(scene, bytes):
        shader.write_bytes(scene)
        scene = shader
    backend = InlineBackend({"glsl": Handed()})
    with RenderService(MemoryJobStore(), storage, backend, worker=worker, owned=[backend]) as service:
        with pytest.raises(InvalidRequestError) as refused:
            service.submit(b"RIFF", scene=scene)
        assert (refused.value.code, said in str(refused.value)) == (code, True), refused.value
        assert service.jobs().items == ()
    assert list(storage.list("")) == []


@pytest.mark.parametrize(
    ("images", "code"),
    [
        ("rocks.png", "image.invalid"),
        (Path("rocks.png"), "image.invalid"),
        (StorageKey("rocks.png"), "image.invalid"),
        (7, "image.invalid"),
        ([None], "image.invalid"),
        (["rocks.png"], "image.invalid"),
        ([PNG], "image.invalid"),
        ([Path("missing.png")], "image.missing"),
        ([StorageKey("missing.png")], "image.missing"),
        ([StorageKey("tenants/acme/rocks.png")], "image.denied"),
        ([StorageKey("text")], "image.invalid"),
        ([StorageKey("rocks")] * 4, "image.too-many"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_no_image(idle: RenderService, storage: MemoryStorage, shader: Path, images: Any, code: str) -> None:
    """It is refused with a code; nothing else stays stored."""
    storage.put("text", SHADER)
    storage.put("rocks", PNG)
    with pytest.raises(InvalidRequestError) as refused:
        idle.submit(b"RIFF", scene=shader, images=images)
    assert refused.value.code == code
    assert stored(idle) == ["rocks", "text"]
    assert idle.jobs().items == ()


@pytest.mark.parametrize("data", [b"", SHADER, PNG.ljust(MAX_COVER_BYTES + 1)], ids=["empty", "text", "large"])
def test_images_are_small_pictures(idle: RenderService, shader: Path, rocks: Path, data: bytes) -> None:
    """As covers are; the message says which one is not."""
    bad = rocks.with_name("bad.png")
    bad.write_bytes(data)
    with pytest.raises(InvalidRequestError, match=r"image 2|bad\.png") as refused:
        idle.submit(b"RIFF", scene=shader, images=[rocks, bad])
    assert (refused.value.code or "").partition(".")[0] == "image"


def test_a_scene_that_takes_no_images(idle: RenderService, rocks: Path) -> None:
    """Images for a scene that would not draw them are refused."""
    with pytest.raises(InvalidRequestError, match="draws no images") as refused:
        idle.submit(b"RIFF", scene="bars", images=[rocks])
    assert refused.value.code == "image.unused"


@pytest.mark.parametrize("backend", [ModalBackend(), HttpBackend("https://renders.example", token="t" * 16)], ids=str)
def test_remote_backends_read_the_text_too(backend: Any, shader: Path, storage: MemoryStorage) -> None:
    """A wrong line is found at submit, without a call to anything."""
    backend.check_scene_file(SHADER.decode(), name="my.glsl")
    with pytest.raises(InvalidRequestError, match=r"my\.glsl, line 2: .*rubbish") as refused:
        backend.check_scene_file("\n//! rubbish\n", name="my.glsl")
    assert refused.value.code == "shader.invalid"
    backend.close()


# --- what changes after submit


@pytest.mark.parametrize("change", ["modified", "touched", "vanished"])
@pytest.mark.parametrize("part", ["scene-file", "image"])
def test_a_file_that_changed_since_submit(
    idle: RenderService, shader: Path, rocks: Path, change: str, part: str
) -> None:
    """The job fails as the request's fault, at its first attempt; its attempt stores nothing."""
    job = left(idle, scene_file=shader, image_1=rocks)
    file = shader if part == "scene-file" else rocks
    match change:
        case "modified":
            file.write_bytes(file.read_bytes() + b"!")
        case "touched":
            os.utime(file, ns=(1, 1))
        case _:
            file.unlink()
    job = finished(idle, job.id)
    assert job.error is not None
    assert (job.error.code, job.error.fault, len(job.attempts)) == (f"{part}.changed", "request", 1)
    assert stored(idle) == ["song.wav"]


@pytest.mark.parametrize("part", ["scene-file", "image"])
def test_a_file_that_changes_after_the_last_check(tmp_path: Path, shader: Path, rocks: Path, part: str) -> None:
    """A file that is read in place is checked once more by the run, behind its copy."""

    class Meddling(FsspecStorage):
        meddle: Callable[[], object] = staticmethod(lambda: None)

        def sign_put(self, key: str, **options: Any) -> Any:
            self.meddle()
            return super().sign_put(key, **options)

    storage, backend = Meddling(tmp_path / "objects"), InlineBackend({"glsl": Handed()})
    storage.meddle = lambda: os.utime(shader if part == "scene-file" else rocks, ns=(1, 1))
    with RenderService(MemoryJobStore(), storage, backend, owned=[backend]) as service:
        job = service.submit(b"RIFF", scene=shader, output=TINY, images=[rocks]).wait(30)
    assert job.error is not None
    assert (job.error.code, job.error.fault) == (f"{part}.changed", "request")


def test_files_wait_for_their_machine(idle: RenderService, shader: Path, rocks: Path) -> None:
    """A job is claimed where its files lie, until an attempt has stored all of them, in one commit."""
    job = left(idle, scene_file=shader, image_1=rocks)
    assert job.machine == "here"
    done = finished(idle, job.id)
    assert (done.status, done.machine, set(done.attachments)) == (JobStatus.COMPLETE, None, {"scene_file", "image_1"})


# --- idempotency and retry


def test_j9_files_count_by_their_content(service: RenderService, shader: Path, rocks: Path) -> None:
    """With a key the same bytes are the same request wherever they lie; others, or another order, are a conflict."""

    def submit(scene: Path, *images: Path) -> str:
        return service.submit(b"RIFF", scene=scene, output=TINY, idempotency_key="k", images=images).id

    other, clouds = shader.with_name("copy.txt"), rocks.with_name("clouds.jpg")
    other.write_bytes(SHADER)
    clouds.write_bytes(JPEG)
    first = submit(shader, rocks, clouds)
    assert submit(other, rocks, clouds) == first
    for scene, images in ((shader, (clouds, rocks)), (shader, (rocks,)), (shader, ())):
        with pytest.raises(IdempotencyConflictError):
            submit(scene, *images)
    other.write_bytes(SHADER + b"\n")
    with pytest.raises(IdempotencyConflictError):
        submit(other, rocks, clouds)


def test_retry_keeps_the_files(storage: MemoryStorage, shader: Path, rocks: Path) -> None:
    """A new job has copies of its own, under the files' names; one whose original is gone is refused."""
    backend = InlineBackend({"glsl": Failing()})
    storage.put("clouds.jpg", JPEG)
    with RenderService(MemoryJobStore(), storage, backend, worker=False, owned=[backend]) as service:
        first = service.submit(b"RIFF", scene=shader, output=TINY, images=[rocks, StorageKey("clouds.jpg")])
        finished(service, first.id)
        again = first.retry()
        service.delete(first.id)
        request, prefix = again.job.request, layout.prefix_of(again.job)
        keys = {place: file.key for place, file in request.attached().items() if isinstance(file, StoredAudio)}
        assert keys["image_2"] == "clouds.jpg"
        assert all(keys[place].startswith(prefix) for place in ("scene_file", "image_1"))
        assert isinstance(request.scene_file, StoredAudio) and request.scene_file.name == "my waves.glsl"
        with storage.open(keys["scene_file"]) as file:
            assert file.read() == SHADER
        finished(service, again.id)
        storage.delete(keys["scene_file"])
        with pytest.raises(InvalidRequestError) as refused:
            again.retry()
        assert refused.value.code == "scene-file.missing"
        service.delete(again.id)
        assert stored(service) == ["clouds.jpg"]


def test_a_submit_that_fails_leaves_no_files(idle: RenderService, shader: Path, rocks: Path) -> None:
    """What was stored before the audio turned out to be unusable is removed."""
    with pytest.raises(InvalidRequestError, match="nothing is stored"):
        idle.submit(StorageKey("missing.wav"), scene=shader, images=[rocks])
    assert stored(idle) == []


# --- nothing is left behind


class Away(MemoryJobStore):
    """A store that refuses new jobs while it is told to."""

    away = False

    def create(self, job: Job) -> Job:
        if self.away:
            raise StoreUnavailableError("the store is away")
        return super().create(job)


def test_a_retry_that_cannot_be_recorded_leaves_no_copies(storage: MemoryStorage, shader: Path, rocks: Path) -> None:
    """Its copies go again, because no job ever names them."""
    store, backend = Away(), InlineBackend({"glsl": Failing()})
    with RenderService(store, storage, backend, worker=False, owned=[backend]) as service:
        job = service.submit(b"RIFF", scene=shader, output=TINY, images=[rocks])
        finished(service, job.id)
        before, store.away = stored(service), True
        with pytest.raises(StoreUnavailableError):
            job.retry()
        assert stored(service) == before


class Interrupting(MemoryStorage):
    """A user presses Ctrl-C when an object of this kind was just stored."""

    kind = ""
    away = False

    def put(self, key: str, source: Source, **options: Any) -> ObjectInfo:
        done = super().put(key, source, **options)
        if self.kind and f"/{self.kind}" in key:
            raise KeyboardInterrupt
        return done

    def delete(self, key: str) -> None:
        if self.away:
            raise StorageUnavailableError("the storage is away")
        super().delete(key)


@pytest.mark.parametrize("kind", ["scene-file-", "image-", "audio"])
def test_ctrl_c_leaves_no_files(shader: Path, rocks: Path, kind: str) -> None:
    """Not even of the upload that had just ended. A storage that is away hides the interrupt from nobody."""
    storage, backend = Interrupting(), InlineBackend({"glsl": Handed()})
    storage.kind = kind
    with RenderService(MemoryJobStore(), storage, backend, worker=False, owned=[backend]) as service:
        with pytest.raises(KeyboardInterrupt):
            service.submit(b"RIFF", scene=shader, output=TINY, images=[rocks])
        assert stored(service) == []
        storage.away = True
        with pytest.raises(KeyboardInterrupt):
            service.submit(b"RIFF", scene=shader, output=TINY, images=[rocks])


def test_j15_an_attempt_whose_job_was_deleted_leaves_no_files(shader: Path, rocks: Path, handed: Handed) -> None:
    """Also where another file then turns out to be unusable, so that the attempt never gets to its record."""

    class Meddling(MemoryStorage):
        meddle: Callable[[], object] = staticmethod(lambda: None)

        def put(self, key: str, source: Source, **options: Any) -> ObjectInfo:
            if "/scene-file-" in key:
                self.meddle()
            return super().put(key, source, **options)

    store, storage, backend = MemoryJobStore(), Meddling(), InlineBackend({"glsl": handed})
    with RenderService(store, storage, backend, machine="here", worker=False, owned=[backend]) as service:
        job = left(service, scene_file=shader, image_1=rocks)

        def delete() -> None:
            store.delete(job.id, expected_revision=store.get(job.id).revision)
            rocks.unlink()

        storage.meddle = delete
        service.tick()
        assert stored(service) == ["song.wav"]
