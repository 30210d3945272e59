"""Do audio and video get through a network that fails, and do URLs stay secret?"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from renderdispatch.errors import RenderError
from renderdispatch.messages import (
    CLOCK_SLACK,
    Action,
    Completed,
    EventReply,
    Failed,
    Progressed,
    RenderEvent,
    RenderOrder,
    Stage,
)
from renderdispatch.plumbing.stop import Stop, Stopped
from renderdispatch.runner import InProcessRender, Pace, RunnerIO, run_order
from renderdispatch.runner.transfers import Hashing, Transfers, open_transfers
from renderdispatch.testing import FakeRenderer, eventually
from renderdispatch.testing.contracts.backends import Recorder
from tests.support.buckets import SIGNATURE, SONG, Bucket, small_bucket


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with small_bucket() as bucket:
        yield bucket


@pytest.fixture(autouse=True)
def no_secret_is_told(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No test of this file may leave a signed URL in a log."""
    caplog.set_level(logging.DEBUG)
    yield
    told = [record.getMessage() + (record.exc_text or "") for record in caplog.get_records("call")]
    assert not [text for text in told if "do-not-tell" in text]


def stopping_after(timeout_s: float) -> Stop:
    """Return a stop that raises what a run raises."""
    return Stop(timeout_s=timeout_s, error=lambda reason: RenderError(f"stopped: {reason}", code="render.stopped"))


@pytest.fixture
def transfers() -> Iterator[Transfers]:
    with open_transfers(local=False, stop=stopping_after(30)) as transfers:
        yield transfers


def silent(_done: int) -> None:
    pass


def refusal(call: Any) -> RenderError:
    """Return the error of a call, which holds no URL anywhere."""
    with pytest.raises(RenderError) as caught:
        call()
    assert "do-not-tell" not in repr(caught.value) + str(caught.value)
    assert "127.0.0.1" not in str(caught.value)
    return caught.value


# --- downloads


def test_a_download(bucket: Bucket, transfers: Transfers, tmp_path: Path) -> None:
    """Bytes come down whole, counted on the way."""
    bucket.objects["song"] = SONG
    moved: list[int] = []
    path = transfers.download(bucket.url("song"), tmp_path / "song", size=len(SONG), moved=moved.append)
    assert path.read_bytes() == SONG
    assert moved and moved == sorted(moved) and moved[-1] == len(SONG)


def test_a_download_that_breaks_off_goes_on_where_it_was(bucket: Bucket, transfers: Transfers, tmp_path: Path) -> None:
    """After a broken connection only the rest is asked for, and tries that brought something are not counted."""
    bucket.objects["song"] = SONG
    bucket.break_after = [100_000] * 9
    path = transfers.download(bucket.url("song"), tmp_path / "song", size=len(SONG), moved=silent)
    assert path.read_bytes() == SONG
    asked = [headers.get("range") for headers in bucket.headers]
    assert asked[0] is None and all(asked[1:])


def test_a_hiccup_of_storage(bucket: Bucket, transfers: Transfers, tmp_path: Path) -> None:
    """A 500, 503 or 429 is tried again."""
    bucket.objects["song"] = SONG
    bucket.statuses = [500, 429]
    path = transfers.download(bucket.url("song"), tmp_path / "song", size=len(SONG), moved=silent)
    assert path.read_bytes() == SONG


def test_a_refusal_is_final(bucket: Bucket, transfers: Transfers, tmp_path: Path) -> None:
    """A 403 is not tried again, and the error says what storage answered."""
    bucket.statuses = [403]
    error = refusal(lambda: transfers.download(bucket.url("song"), tmp_path / "song", size=1, moved=silent))
    assert error.code == "audio.download"
    assert "403" in str(error)
    assert len(bucket.headers) == 1


def test_a_redirect_is_not_followed(bucket: Bucket, transfers: Transfers, tmp_path: Path) -> None:
    """A signed URL answers for itself: a redirect is a refusal."""
    bucket.statuses = [302]
    error = refusal(lambda: transfers.download(bucket.url("a"), tmp_path / "a", size=1, moved=silent))
    assert "302" in str(error)


@pytest.mark.parametrize("size", [len(SONG) - 1, len(SONG) + 1, 1, 10 * len(SONG)])
def test_audio_of_another_size(bucket: Bucket, tmp_path: Path, size: int) -> None:
    """An object that is larger or smaller than was ordered is not rendered."""
    bucket.objects["song"] = SONG
    with open_transfers(local=False, stop=stopping_after(1)) as transfers:
        error = refusal(lambda: transfers.download(bucket.url("song"), tmp_path / "song", size=size, moved=silent))
    assert error.code in {"audio.changed", "audio.download"}
    assert (tmp_path / "song").stat().st_size <= len(SONG)


def test_a_storage_that_compresses(bucket: Bucket, transfers: Transfers, tmp_path: Path) -> None:
    """Nothing is taken compressed: sizes and ranges count the object's own bytes."""
    bucket.zip = True
    bucket.objects["song"] = SONG
    path = transfers.download(bucket.url("song"), tmp_path / "song", size=len(SONG), moved=silent)
    assert path.read_bytes() == SONG
    assert transfers.read_small(bucket.url("song")) == SONG


def test_nobody_answers(tmp_path: Path) -> None:
    """A host that cannot be reached is tried until time is up; the error says how often."""
    with open_transfers(local=False, stop=stopping_after(1)) as transfers:
        url = f"http://127.0.0.1:9/song?{SIGNATURE}"
        error = refusal(lambda: transfers.download(url, tmp_path / "song", size=1, moved=silent))
    assert re.search(r"cannot be reached.*, after \d+ tries$", str(error))


def test_a_stop_ends_the_waiting(bucket: Bucket, tmp_path: Path) -> None:
    """A run that is told to stop does not sit out the pause between two tries."""
    bucket.statuses = [503] * 20
    stop = stopping_after(100)

    def request() -> None:
        eventually(lambda: len(bucket.headers) >= 3)
        stop.request("cancelled")

    began = time.monotonic()
    with open_transfers(local=False, stop=stop) as transfers:
        thread = threading.Thread(target=request)
        thread.start()
        error = refusal(lambda: transfers.download(bucket.url("a"), tmp_path / "a", size=1, moved=silent))
        thread.join()
    assert error.code == "render.stopped"
    assert time.monotonic() - began < 4


# --- uploads


def test_an_upload(bucket: Bucket, transfers: Transfers, tmp_path: Path) -> None:
    """The file goes up with exactly the signed headers and its length, and the etag comes back."""
    (tmp_path / "video").write_bytes(SONG)
    moved: list[int] = []
    assert transfers.upload(bucket.put_url("video"), tmp_path / "video", moved=moved.append) == "tag"
    assert bucket.objects["video"] == SONG
    sent = bucket.headers[0]
    assert (sent["content-type"], sent["if-none-match"], sent["content-length"]) == ("video/mp4", "*", str(len(SONG)))
    assert "transfer-encoding" not in sent
    assert moved[-1] == len(SONG)


def test_an_upload_after_a_hiccup(bucket: Bucket, transfers: Transfers, tmp_path: Path) -> None:
    """An upload that failed for a moment is sent again, whole."""
    (tmp_path / "video").write_bytes(SONG)
    bucket.statuses = [500]
    transfers.upload(bucket.put_url("video"), tmp_path / "video", moved=silent)
    assert bucket.objects["video"] == SONG


def test_an_upload_that_is_refused(bucket: Bucket, transfers: Transfers, tmp_path: Path) -> None:
    """A 403 for an upload is final."""
    (tmp_path / "video").write_bytes(b"v")
    bucket.statuses = [403]
    error = refusal(lambda: transfers.upload(bucket.put_url("video"), tmp_path / "video", moved=silent))
    assert error.code == "video.upload"


def test_stat(bucket: Bucket, transfers: Transfers) -> None:
    """A stat tells size and etag for the price of one byte, or that there is no object."""
    bucket.objects.update(video=SONG, empty=b"")
    found = transfers.stat(bucket.url("video"))
    assert found is not None and (found.size, found.etag) == (len(SONG), "tag")
    empty = transfers.stat(bucket.url("empty"))
    assert empty is not None and empty.size == 0
    assert transfers.stat(bucket.url("none")) is None
    assert transfers.read_small(bucket.url("none")) is None


# --- answers that trickle in

TRANSFERS: dict[str, Callable[[Transfers, Bucket, Path], object]] = {
    "read": lambda transfers, bucket, _: transfers.read_small(bucket.url("song")),
    "stat": lambda transfers, bucket, _: transfers.stat(bucket.url("song")),
    "download": lambda transfers, bucket, folder: transfers.download(
        bucket.url("song"), folder / "song", size=len(SONG), moved=silent
    ),
    "upload": lambda transfers, bucket, folder: transfers.upload(
        bucket.put_url("video"), folder / "video", moved=silent
    ),
}


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_an_answer_that_trickles_in(bucket: Bucket, tmp_path: Path, transfer: str) -> None:
    """An answer of which a line comes now and then, so that it never stalls, is cut off at the deadline."""
    (tmp_path / "video").write_bytes(b"v")
    bucket.objects["song"] = SONG
    began = time.monotonic()
    bucket.trickling_until = began + 12
    with open_transfers(local=False, stop=stopping_after(0.2)) as transfers:
        refusal(lambda: TRANSFERS[transfer](transfers, bucket, tmp_path))
    assert time.monotonic() - began < 6


# --- whole runs

PACE = Pace(progress_s=0.02, heartbeat_s=0.1, check_in_s=0.3, final_s=0.5, backoff_s=0.01)


def run(order: RenderOrder, answer: Any = lambda _event: EventReply(), **scene: Any) -> Completed | Failed:
    io = RunnerIO(send=Recorder(answer), render=InProcessRender({"fake": FakeRenderer(**scene)}), pace=PACE)
    return run_order(order, io=io)


def test_a_run_over_the_network(bucket: Bucket) -> None:
    """Audio comes down, video and result go up, and the result is the outcome."""
    outcome = run(bucket.order(), video="abc")
    assert isinstance(outcome, Completed)
    assert bucket.objects["video"] == b"abc"
    assert outcome.artifact.etag == "tag"
    assert Completed.model_validate_json(bucket.objects["result"]) == outcome


def test_an_answer_to_an_upload_that_is_lost(bucket: Bucket) -> None:
    """A 412 on the second try means that the first one delivered: it is looked at and reported."""
    bucket.forget_first_answer = True
    outcome = run(bucket.order(), video="abc")
    assert isinstance(outcome, Completed)
    assert (outcome.artifact.bytes, outcome.artifact.etag) == (3, "tag")


def test_a_second_run(bucket: Bucket) -> None:
    """A second run of the order reports what the first one delivered, without rendering."""
    first = run(bucket.order())
    second = run(bucket.order(), fail="rendered again")
    assert isinstance(first, Completed) and isinstance(second, Completed)
    assert second.artifact == first.artifact


@pytest.mark.parametrize("stage", [Stage.DOWNLOADING_AUDIO, Stage.UPLOADING_VIDEO])
def test_stop_in_a_transfer(bucket: Bucket, stage: Stage) -> None:
    """An answer of "stop" ends a slow download, or a slow upload, in its midst."""
    bucket.slow_s = 0.05

    def answer(event: RenderEvent) -> EventReply:
        stops = isinstance(event, Progressed) and event.stage is stage
        return EventReply(action=Action.STOP, reason="cancelled") if stops else EventReply()

    outcome = run(bucket.order(), answer, video="x" * (4 << 20))
    assert isinstance(outcome, Failed) and outcome.error.code == "render.stopped"
    assert "result" not in bucket.objects


def test_a_deadline_in_a_transfer(bucket: Bucket) -> None:
    """A download that would pass the deadline is given up."""
    bucket.slow_s = 0.2
    outcome = run(bucket.order(finish_by=datetime.now(UTC) + timedelta(seconds=0.5) - CLOCK_SLACK))
    assert isinstance(outcome, Failed) and outcome.error.code == "deadline.total"


def test_a_failure_tells_no_url(bucket: Bucket) -> None:
    """What a run reports of a refused transfer holds no URL."""
    order = bucket.order()
    bucket.statuses = [404, 403]  # no result yet, then the audio is refused
    outcome = run(order)
    assert isinstance(outcome, Failed)
    assert outcome.error.code == "audio.download"
    assert "do-not-tell" not in outcome.model_dump_json() + repr(outcome) + repr(order)


# --- the hash


def test_a_file_is_hashed_beside_its_upload(tmp_path: Path) -> None:
    """The hash is that of the file."""
    (tmp_path / "video").write_bytes(SONG)
    with Hashing(tmp_path / "video", stop=Stop()) as hashing:
        assert hashing.sha256() == hashlib.sha256(SONG).hexdigest()


def test_a_file_is_hashed_without_a_thread(tmp_path: Path, refuse_thread: Callable[[str], None]) -> None:
    """Where no thread can be started, the hash is computed all the same."""
    (tmp_path / "video").write_bytes(SONG)
    refuse_thread("renderdispatch-hash")
    with Hashing(tmp_path / "video", stop=Stop()) as hashing:
        assert hashing.sha256() == hashlib.sha256(SONG).hexdigest()


def test_a_stop_ends_a_hash(tmp_path: Path) -> None:
    """Once the run is to stop, no hash is returned, and the thread ends."""
    (tmp_path / "video").write_bytes(SONG)
    stop = Stop()
    stop.request("cancelled")
    with pytest.raises(Stopped), Hashing(tmp_path / "video", stop=stop) as hashing:
        hashing.sha256()
    assert "renderdispatch-hash" not in {thread.name for thread in threading.enumerate()}
