"""Does a Shadertoy file go the whole way, as T1 to T7 say, and are its frames the ones that it has here?

One job is run and observed from its submit to its end; each test is about one thing that was observed. The file has a
buffer with feedback and reads an image; both of its links, and the song's, break once on their way to the container.
"""

from __future__ import annotations

import random
import socket
import time
from fractions import Fraction
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from attrs import frozen
from PIL import Image

from renderdispatch import RenderService
from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.jobs import Job
from renderdispatch.messages import Asset, Completed, JobStatus, Limits, Output, RenderOrder, Stage, StoredAudio
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing.local_r2 import LocalR2
from renderdispatch.testing.modal import LoopbackModal
from tests.support.chain import Answer, Chain, StartChain
from tests.support.needs import need_opengl
from tests.support.observing import Process, call_of, descendants, order_in
from tests.support.scenarios import (
    CONNECT_S,
    DISPATCH_STAGES,
    SEVEN_DAYS_S,
    decode,
    reports_securely,
    signs_for_seven_days,
)

OUTPUT: Final = Output(width=128, height=72, fps=Fraction(20))
BROKEN_OFF_AT: Final = {"/audio": 250_000, "/scene-file-": 300, "/image-": 20_000}
SHADER: Final = """//! run-up: 20
// A trail of the sound over the picture.
//! Buffer A
//! iChannel1: Buffer A, nearest
void mainImage(out vec4 colour, in vec2 place) {
    vec2 at = place / iResolution.xy;
    float level = texture(iChannel0, vec2(at.x, 0.25)).x;
    colour = max(0.9 * texture(iChannel1, at), vec4(step(at.y, level)));
}
//! Image
//! iChannel1: Buffer A
//! iChannel2: image 1
void mainImage(out vec4 colour, in vec2 place) {
    vec2 at = place / iResolution.xy;
    colour = vec4(mix(texture(iChannel2, at).rgb, vec3(0.2, 0.6, 1.0), texture(iChannel1, at).r), 1.0);
}
"""


@frozen(kw_only=True)
class Observed:
    """What was seen of the job.

    Args:
        files: The scene file and the image, as they were submitted.
        answers: Of every poll, from the submit to the end.
        withheld: Those that came while the container's last report was refused.
        touched: By each process of the container, as far as it was seen while it drew.
        counts: Of the bucket's answers.
    """

    chain: Chain
    files: tuple[Path, Path]
    job: Job
    order: RenderOrder
    argument: bytes
    answers: list[Answer]
    withheld: list[Answer]
    touched: list[list[str]]
    counts: dict[str, int]

    @property
    def assets(self) -> tuple[Asset, Asset]:
        """The scene file and the image, as the container got to know of them."""
        assert self.order.scene_file is not None
        return self.order.scene_file, self.order.images[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The scene file and its image, which is noise, so that it has many bytes."""
    need_opengl()
    folder = tmp_path_factory.mktemp("mine")
    (folder / "my trail.glsl").write_text(SHADER)
    noise = random.Random(7).randbytes(128 * 128 * 3)
    Image.frombytes("RGB", (128, 128), noise).save(folder / "rocks.png")
    return folder / "my trail.glsl", folder / "rocks.png"


@pytest.fixture(scope="module")
def request_of(files: tuple[Path, Path]) -> dict[str, Any]:
    """What is submitted, there and here."""
    return {"scene": files[0], "images": [files[1]], "output": OUTPUT, "duration": 1}


@pytest.fixture(scope="module")
def observed(
    _running_chain: Chain,
    modal_server: LoopbackModal,
    r2_server: LocalR2,
    song: Path,
    files: tuple[Path, Path],
    request_of: dict[str, Any],
) -> Observed:
    """Run the job once, and observe it."""
    chain, tap = _running_chain, _running_chain.tap
    assert tap is not None
    chain.forget()
    r2_server.forget()
    for key, size in BROKEN_OFF_AT.items():
        r2_server.fail("reset", method="GET", key=key, after_bytes=size)
    refused: list[float] = []
    taken: list[object] = []

    def withhold_the_end(event: object) -> int | None:
        if not isinstance(event, Completed):
            return None
        if refused and time.monotonic() - refused[0] > 1.0:
            taken.append(event)
            return None
        refused.append(time.monotonic())
        return 503

    tap.gate = withhold_the_end
    job_id = chain.submit_with(Limits(), song, **request_of)
    answers, withheld, touched = list[Answer](), list[Answer](), dict[int, list[str]]()
    for answer in chain.polls(job_id):
        answers.append(answer)
        if refused and not taken:
            withheld.append(answer)
        if answer["stage"] == Stage.RENDERING:
            for pid in descendants(call_of(chain, modal_server, job_id).pids[-1]):
                if found := Process(pid).touched():
                    touched[pid] = found
    call = call_of(chain, modal_server, job_id)
    return Observed(
        chain=chain,
        files=files,
        job=chain.job(job_id),
        order=order_in(call),
        argument=call.args,
        answers=answers,
        withheld=withheld,
        touched=list(touched.values()),
        counts=r2_server.counts(),
    )


def test_t1_the_files_are_uploaded_and_their_signed_urls_are_dispatched(observed: Observed, r2_server: LocalR2) -> None:
    """They stand in the bucket as they are on disk, and the order reads them by signed URLs, without a credential."""
    stored = observed.job.request.attached()
    for asset, file, place in zip(observed.assets, observed.files, ("scene_file", "image_1"), strict=True):
        assert asset.name == file.name
        kept = stored[place]
        assert isinstance(kept, StoredAudio)
        assert urlsplit(asset.url).path.endswith(f"/{r2_server.buckets[0]}/{kept.key}")
        query = parse_qs(urlsplit(asset.url).query)
        assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
        assert 0 < int(query["X-Amz-Expires"][0]) <= SEVEN_DAYS_S
        assert httpx.get(asset.url, trust_env=False).content == file.read_bytes()
    for secret in (r2_server.secret_access_key, observed.chain.secret):
        assert secret.encode() not in observed.argument


def test_t2_the_container_calls_a_secure_webhook(observed: Observed) -> None:
    """It reports the key of the video, signed by its attempt's key."""
    final = reports_securely(observed.chain, observed.job.id)
    assert isinstance(final, Completed)
    assert final.artifact.key == observed.answers[-1]["result"]["videoKey"]
    assert observed.chain.objects(final.artifact.key) == {final.artifact.key: final.artifact.bytes}


def test_t3_polling_answers_with_a_url_that_is_good_for_seven_days(observed: Observed, tmp_path: Path) -> None:
    """Once the job is complete, and no sooner; a plain client fetches the video by it, which llvmpipe drew."""
    assert [("downloadUrl" in answer) == (answer["status"] == "complete") for answer in observed.answers]
    answer = observed.answers[-1]
    signs_for_seven_days(answer["downloadUrl"])
    video = decode(observed.chain.download(answer["downloadUrl"], tmp_path / "video.mp4"))
    assert (video.frames, video.size) == (20, (OUTPUT.width, OUTPUT.height))
    assert video.changes > 0.1
    assert "llvmpipe" in answer["result"]["renderedBy"]


def test_t4_submit_never_waits_for_modal(start_chain: StartChain, song: Path, request_of: dict[str, Any]) -> None:
    """With a control plane that takes connections and never answers, the job is recorded all the same."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        chain = start_chain(MODAL_SERVER_URL=f"http://127.0.0.1:{silent.getsockname()[1]}")
        for _ in range(2):  # the second one while the first waits for Modal
            began = time.monotonic()
            job_id = chain.submit_with(Limits(), song, **request_of)
            assert time.monotonic() - began < CONNECT_S
            assert chain.poll(job_id)["status"] in {"pending", "processing"}
            chain.wait(job_id, lambda seen: seen["progress"] >= DISPATCH_STAGES["dispatching"])
        chain.app.kill()  # its dispatcher still waits


def test_t5_the_stages_are_entered_in_order(observed: Observed) -> None:
    """Each with its percentage; the job is `processing` until the GPU side's report is taken."""
    entered = observed.job.attempts[0].stage_times
    times = [entered[Stage(stage)] for stage in DISPATCH_STAGES]
    assert times == sorted(times)
    for answer in observed.answers:
        if answer["stage"] in DISPATCH_STAGES:
            assert (answer["status"], answer["progress"]) == ("processing", DISPATCH_STAGES[answer["stage"]])
    assert {answer["status"] for answer in observed.withheld} == {"processing"}
    assert observed.answers[-1]["status"] == "complete"


def test_t6_the_container_needs_no_local_file(observed: Observed, r2_server: LocalR2) -> None:
    """Its processes touch neither the files nor the application's folder, and the order names no file."""
    assert observed.touched
    ours = [str(observed.chain.home), str(observed.files[0].parent), r2_server.secret_access_key]
    for touched in observed.touched:
        assert not [one for one in touched for word in ours if word in one]
    text = observed.order.model_dump_json()
    assert not observed.order.local
    assert not [word for word in ("file:", *ours) if word in text]


def test_t7_the_container_streams_what_it_needs_to_disk(observed: Observed) -> None:
    """Song, scene file and image come by links that break; of a long file, what stood on disk then is kept."""
    assert observed.counts["GET reset"] == len(BROKEN_OFF_AT)
    assert observed.counts["GET 206"] >= 1, "only the rest was asked for"


def test_the_frames_are_those_of_a_render_here(
    observed: Observed, song: Path, request_of: dict[str, Any], tmp_path: Path
) -> None:
    """The same request gives the same file, byte for byte, wherever a device of the class draws it."""
    backend = LocalGpuBackend(slots=1)
    storage = FsspecStorage(tmp_path / "objects")
    with RenderService(MemoryJobStore(), storage, backend, owned=[backend]) as service:
        here = service.submit(song.read_bytes(), **request_of).wait(60)
    assert here.status is JobStatus.COMPLETE, here.error
    assert here.artifact is not None and observed.job.artifact is not None
    assert here.artifact.device_class == observed.job.artifact.device_class
    assert here.artifact.sha256 == observed.job.artifact.sha256
