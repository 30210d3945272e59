"""Does everything that the reference application did work here, from end to end?

T1 to T7, H1 and H2 are what it did; each has a test of that name. They run the example application as a real server, the
real Modal client, ``modal deploy`` and container entry point, Cloudflare's own local R2, and a client.
"""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import time
import wave
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from PIL import Image

from renderdispatch.messages import Completed, Limits, RenderEvent
from renderdispatch.testing.local_r2 import LocalR2
from renderdispatch.testing.modal import LoopbackModal
from tests.support.chain import Answer, Chain, StartChain
from tests.support.observing import Process, call_of, descendants, order_in
from tests.support.ports import ReservedPort
from tests.support.scenarios import (
    DISPATCH_STAGES,
    SEVEN_DAYS_S,
    answers_at_once,
    decode,
    renders_whole,
    reports_a_failure,
    reports_a_refused_upload,
    reports_the_video,
    signs_for_seven_days,
)

_LONG_BYTES = 64 << 20
_BROKEN_OFF_AT = 40 << 20
_LAST_SEEN_S = 0.5


# --- the truths


def test_t1_audio_is_uploaded_and_its_signed_url_is_dispatched(
    chain: Chain, modal: LoopbackModal, r2: LocalR2, song: Path
) -> None:
    """The audio stands in the bucket, and the order that Modal gets reads it by a signed URL, without a credential."""
    job_id = chain.submit(song)
    assert chain.wait(job_id)["status"] == "complete"
    call = call_of(chain, modal, job_id)
    order = order_in(call)
    audio = chain.job(job_id).audio
    assert audio is not None
    assert chain.objects(audio.key) == {audio.key: song.stat().st_size}
    assert urlsplit(order.audio_url).path.endswith(f"/{r2.buckets[0]}/{audio.key}")
    query = parse_qs(urlsplit(order.audio_url).query)
    assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
    assert 0 < int(query["X-Amz-Expires"][0]) <= SEVEN_DAYS_S
    assert httpx.get(order.audio_url, trust_env=False).content == song.read_bytes()
    for secret in (r2.secret_access_key, chain.secret, modal.token_secret):
        assert secret.encode() not in call.args


def test_t2_the_container_calls_a_secure_webhook(chain: Chain, song: Path, tmp_path: Path) -> None:
    """On completion with the key of the video, on failure with the reason; each one signed by its attempt's key."""
    reports_the_video(chain, song)
    reports_a_failure(chain, tmp_path)


def test_t2_a_forged_webhook_is_refused(chain: Chain, song: Path) -> None:
    """A completion that nobody signed, or that was changed after it was signed, is answered 401 and changes nothing."""
    assert chain.tap is not None
    chain.tap.gate = lambda event: 503 if isinstance(event, Completed) else None
    job_id = chain.submit(song)
    deliveries = chain.tap.deliveries
    assert chain.wait(job_id, lambda _: any(one.final for one in deliveries))["status"] == "processing"
    real = next(one for one in deliveries if one.final)
    forged = real.body.replace(b'"frames":30', b'"frames":31')
    assert forged != real.body
    unsigned = [pair for pair in real.headers if not pair[0].lower().startswith("webhook-")]
    before = chain.poll(job_id)
    for headers, body in ((real.headers, forged), (unsigned, real.body), (unsigned, forged)):
        refused = chain.client.post("/webhook", headers=dict(headers), content=body)
        assert refused.status_code == 401, refused.text
    after = chain.poll(job_id)
    assert (after["status"], after["stage"]) == (before["status"], before["stage"])
    chain.tap.gate = lambda _event: None
    answer = chain.wait(job_id)
    assert (answer["status"], answer["result"]["frames"]) == ("complete", 30)


def test_t3_polling_answers_with_a_url_that_is_good_for_seven_days(chain: Chain, song: Path, tmp_path: Path) -> None:
    """Once the job is complete, and no sooner; a plain client fetches a clean video by it, and its poster.

    The video has the song's name and its cover, which went the same way as the song.
    """
    cover = tmp_path / "cover.png"
    Image.new("RGB", (32, 32), (200, 30, 30)).save(cover)
    job_id = chain.submit_with(Limits(), song, title="Ein Lied", artist="Élan", cover=cover, poster=True)
    answer: dict[str, object] = {}
    for answer in chain.polls(job_id):
        assert ("downloadUrl" in answer) == (answer["status"] == "complete")
    url = str(answer["downloadUrl"])
    signs_for_seven_days(url)
    head = httpx.get(url, trust_env=False, headers={"range": "bytes=0-0"})
    assert head.headers["content-type"] == "video/mp4"
    assert head.headers["content-disposition"].endswith("filename*=UTF-8''%C3%89lan%20-%20Ein%20Lied.mp4")
    video = chain.download(url, tmp_path / "video.mp4")
    assert decode(video).frames == 30
    assert b"covr" in video.read_bytes()
    poster = httpx.get(str(answer["posterUrl"]), trust_env=False)
    assert (poster.headers["content-type"], poster.content[:3]) == ("image/jpeg", b"\xff\xd8\xff")


@pytest.mark.parametrize("modal_is", ["silent", "away"])
def test_t4_submit_answers_at_once_and_never_waits_for_modal(
    start_chain: StartChain, song: Path, modal_is: str
) -> None:
    """With a control plane that takes connections and never answers, and with none at all, the answer comes."""
    with contextlib.ExitStack() as stack:
        if modal_is == "silent":
            port = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64)).getsockname()[1]
        else:
            port = stack.enter_context(ReservedPort()).number
        chain = start_chain(MODAL_SERVER_URL=f"http://127.0.0.1:{port}")
        first = answers_at_once(chain, song)
        chain.wait(first, lambda seen: seen["stage"] not in {"queued", *DISPATCH_STAGES} or seen["progress"] >= 27)
        second = answers_at_once(chain, song)  # while the first one waits for Modal
        for job_id in (first, second):
            assert chain.poll(job_id)["status"] in {"pending", "processing"}
        chain.app.kill()  # its dispatcher still waits


def test_t5_polling_shows_each_stage_and_its_percentage(chain: Chain, song: Path) -> None:
    """A client that polls sees the five documented stages; the job is `processing` until the GPU side reports."""
    assert chain.tap is not None
    documented = set(DISPATCH_STAGES.items())
    seen: set[tuple[str, float]] = set()
    for _ in range(20):  # on a busy machine two commits may slip by together
        for answer in step_by_step(chain, song):
            if answer["stage"] in DISPATCH_STAGES:
                assert answer["status"] == "processing"
                seen.add((answer["stage"], answer["progress"]))
        assert chain.wait(answer["jobId"])["status"] == "complete"
        if documented <= seen:
            break
    assert seen == documented

    refused: list[str] = []

    def refuse_the_end(event: RenderEvent) -> int | None:
        if not isinstance(event, Completed):
            return None
        refused.append(event.event_id)
        return 503

    chain.tap.gate = refuse_the_end
    job_id = chain.submit(song)
    assert chain.wait(job_id, lambda _: bool(refused))["status"] == "processing"
    assert [chain.poll(job_id)["status"] for _ in range(10)] == ["processing"] * 10
    chain.tap.gate = lambda _event: None
    assert chain.wait(job_id)["status"] == "complete"


def test_t6_the_container_needs_no_local_file(chain: Chain, modal: LoopbackModal, r2: LocalR2, song: Path) -> None:
    """Nothing of the order, the environment or the open files of a container is the application's or the client's."""
    for _ in range(10):  # on a busy machine a render may be over before it is observed
        job_id = chain.submit(song, duration=2)
        processes: list[list[str]] = []
        for answer in chain.polls(job_id):
            if answer["stage"] == "rendering" and len(processes) < 2:  # the entry point, and the render
                found = descendants(call_of(chain, modal, job_id).pids[-1])
                processes = [touched for pid in found if (touched := Process(pid).touched())]
        assert answer["status"] == "complete", answer
        if len(processes) >= 2:
            break
    assert len(processes) >= 2
    ours = [str(chain.home), str(song.parent), r2.secret_access_key, r2.access_key_id, chain.secret]
    for touched in processes:
        assert not [one for one in touched for word in ours if word in one]
    order = order_in(call_of(chain, modal, job_id))
    assert not order.local
    text = order.model_dump_json()
    assert "file:" not in text
    assert not [word for word in ours[:2] if word in text]


def test_t7_the_container_streams_the_audio_to_disk(
    chain: Chain, modal: LoopbackModal, r2: LocalR2, song: Path, tmp_path: Path
) -> None:
    """Long audio takes no more memory than a short song, and what stood on disk when the link broke is kept."""
    long = tmp_path / "long.wav"
    with wave.open(str(long), "wb") as file:
        file.setparams((2, 2, 44_100, 0, "NONE", "not compressed"))
        for _ in range(_LONG_BYTES >> 20):
            file.writeframesraw(bytes(1 << 20))

    def submit_long() -> str:
        r2.forget()
        r2.fail("reset", method="GET", key="/audio", after_bytes=_BROKEN_OFF_AT)
        return chain.submit(long)

    of_the_song = peaks_of(chain, modal, lambda: chain.submit(song))
    of_the_long_one = peaks_of(chain, modal, submit_long)
    assert r2.counts()["GET reset"] == 1
    assert r2.counts()["GET 206"] == 1, "only the rest was asked for"
    for short, other in zip(of_the_song, of_the_long_one, strict=True):
        assert other < short + _LONG_BYTES / 4


# --- H1 and H2


def test_h1_the_whole_chain(chain: Chain, song: Path, tmp_path: Path) -> None:
    """A song goes in, a video comes out: every frame of it, with its sound, by signed URL."""
    answer = renders_whole(chain, song, tmp_path)
    assert answer["result"]["encodedBy"] == "libx264"


@pytest.mark.parametrize("status", ["403", pytest.param("500", marks=pytest.mark.long)])
def test_h2_an_upload_that_fails_in_the_container_is_a_failed_job(
    chain: Chain, r2: LocalR2, song: Path, status: Literal["403", "500"]
) -> None:
    """403 on the signed PUT, and 500 for good: webhook says `failed`, the job is `failed` and says why."""
    r2.fail(status, method="PUT", key="/video.mp4", times=1000)
    reports_a_refused_upload(chain, song, status=int(status), limits=Limits(max_attempts=1))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_h2_with_the_limits_of_a_job_that_says_none(chain: Chain, r2: LocalR2, song: Path) -> None:
    """500 for good costs three attempts, each of eight tries at the upload, and then the job has failed."""
    r2.fail("500", method="PUT", key="/video.mp4", times=1000)
    answer = reports_a_refused_upload(chain, song, status=500, limits=Limits(), timeout_s=400)
    assert answer["attempt"] == 3
    assert answer["error"]["message"].endswith("after 8 tries")
    assert r2.counts()["PUT 500"] == 24


# --- what the tests above observe with


def peaks_of(chain: Chain, modal: LoopbackModal, submit: Callable[[], str]) -> tuple[int, int]:
    """Run a job; return the peak memory of its container, and that of the processes which the container started.

    The processes are observed while they live. On a busy machine the last observation may be long before their end, and
    show too little; then another job is run.
    """
    for _ in range(10):
        job_id = submit()
        container = renders = 0
        seen_at = gone_at = 0.0
        for answer in chain.polls(job_id):  # noqa: B007 - the last one is wanted
            attempts = chain.job(job_id).attempts
            call_id = attempts[-1].call_id if attempts else None
            pids = modal.call(call_id).pids if call_id is not None else ()
            now = time.monotonic()
            for pid in pids:
                container = max(container, Process(pid).peak_bytes())
                if taken := max((Process(one).peak_bytes() for one in descendants(pid)[1:]), default=0):
                    renders, seen_at, gone_at = max(renders, taken), now, 0.0
            if seen_at < now:
                gone_at = gone_at or now
        assert answer["status"] == "complete", answer
        assert container
        if renders and gone_at - seen_at < _LAST_SEEN_S:
            return container, renders
    raise AssertionError("no render was observed shortly before its end")


def step_by_step(chain: Chain, song: Path) -> Iterator[Answer]:
    """Submit, and poll after each commit to the database until the job was dispatched.

    Its stages may last for less than a poll takes. So there is another user of the database, who has it wait as others
    do: it holds the write lock while the client polls, lets one commit by, and takes the lock again.
    """
    with (
        contextlib.closing(sqlite3.connect(chain.home / "jobs.db", timeout=30, isolation_level=None)) as database,
        ThreadPoolExecutor(1) as client,
    ):
        database.execute("BEGIN IMMEDIATE")
        submitting = client.submit(chain.submit, song, duration=0.1)
        while not wait([submitting], timeout=0.3).done:
            let_one_by(database)
        job_id = submitting.result()
        while True:
            answer = chain.poll(job_id)
            yield answer
            if answer["stage"] not in {"queued", *DISPATCH_STAGES} or answer["stage"] == "dispatched":
                return
            let_one_by(database)


def let_one_by(database: sqlite3.Connection) -> None:
    """Release the write lock until somebody has committed, at most for half a second, and take it again."""
    database.execute("ROLLBACK")
    before = database.execute("PRAGMA data_version").fetchone()
    until = time.monotonic() + 0.5  # who waits for the lock looks for it every 100 ms
    while database.execute("PRAGMA data_version").fetchone() == before and time.monotonic() < until:
        pass
    database.execute("BEGIN IMMEDIATE")
