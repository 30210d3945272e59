"""Are pieces read and written by their URLs, through a network that fails?"""

from __future__ import annotations

import gzip
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from renderdispatch.errors import RenderStopped
from renderdispatch.messages import Grants, Pieces
from renderdispatch.plumbing.pieces import names, segment_name
from renderdispatch.plumbing.stop import Stop
from renderdispatch.protocols import Slots
from renderdispatch.runner.reporting import told_to_stop
from renderdispatch.runner.slots import open_slots
from renderdispatch.testing import eventually
from renderdispatch.testing.renderers import make_plan, make_segment
from tests.support.buckets import SIGNATURE, Bucket, small_bucket

DIGEST = "d" * 64
SEGMENT = make_segment(DIGEST, 2, b"a body")


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    """A storage that holds a grants object."""
    with small_bucket() as bucket:
        grant(bucket)
        yield bucket


def grant(bucket: Bucket, *, zipped: bool = True) -> None:
    """Store the grants object."""
    urls = {name: bucket.url(f"pieces/{name}") for name in names(4)}
    body = Grants(get=urls, put=urls, headers={"If-None-Match": "*"}).model_dump_json().encode()
    bucket.objects["grants"] = gzip.compress(body) if zipped else body


@pytest.fixture
def stop() -> Stop:
    return Stop(error=told_to_stop)


@pytest.fixture
def slots(bucket: Bucket, stop: Stop) -> Iterator[Slots]:
    """The slots of a lead, by an order that came over the network."""
    order = bucket.order(pieces=Pieces(slots=4, grants=bucket.url("grants")))
    with open_slots(order, stop=stop) as slots:
        yield slots


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    path = tmp_path / "segment"
    path.write_bytes(SEGMENT)
    return path


@pytest.fixture(autouse=True)
def no_secret_is_told(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No test of this file may leave a signed URL in a log."""
    caplog.set_level(logging.DEBUG)
    yield
    told = [record.getMessage() + (record.exc_text or "") for record in caplog.get_records("call")]
    assert not [text for text in told if "do-not-tell" in text]


def test_only_the_head_is_asked_for(bucket: Bucket, slots: Slots) -> None:
    """A look at a segment reads the bytes of its head alone, and a segment that was found is not asked for again."""
    bucket.objects[f"pieces/{segment_name(2, 0)}"] = SEGMENT
    assert slots.is_drawn(DIGEST, 2)
    assert bucket.headers[-1]["range"] == "bytes=0-1023"
    asked = len(bucket.headers)
    assert slots.is_drawn(DIGEST, 2)
    assert len(bucket.headers) == asked


def test_an_upload_sends_what_was_signed(bucket: Bucket, slots: Slots, segment: Path) -> None:
    """A PUT carries the headers of the grants and the length."""
    assert slots.commit(DIGEST, 2, segment) == "committed"
    assert bucket.headers[-1]["if-none-match"] == "*"
    assert bucket.headers[-1]["content-length"] == str(len(SEGMENT))
    assert bucket.objects[f"pieces/{segment_name(2, 0)}"] == SEGMENT


def test_grants_may_come_unzipped(bucket: Bucket, slots: Slots, segment: Path) -> None:
    """A storage that undoes the compression serves the object as well."""
    grant(bucket, zipped=False)
    assert slots.commit(DIGEST, 2, segment) == "committed"


def test_a_throttled_write_is_repeated_after_a_second(bucket: Bucket, slots: Slots, segment: Path) -> None:
    """After a 429 the piece is written a second later."""
    assert not slots.is_drawn(DIGEST, 2)  # which reads the grants
    bucket.statuses = [429]
    began = time.monotonic()
    assert slots.commit(DIGEST, 2, segment) == "committed"
    assert time.monotonic() - began >= 1


def test_a_throttled_write_may_have_been_somebody_elses(bucket: Bucket, slots: Slots, segment: Path) -> None:
    """After a 429 because another worker writes the same piece, its segment is found."""
    assert not slots.is_drawn(DIGEST, 2)
    bucket.statuses = [429]
    bucket.objects[f"pieces/{segment_name(2, 0)}"] = make_segment(DIGEST, 2, b"another body")
    assert slots.commit(DIGEST, 2, segment) == "twice"


def test_a_write_whose_answer_is_lost_is_ones_own(bucket: Bucket, slots: Slots, segment: Path) -> None:
    """A 412 after a try that broke off names a segment that this try wrote."""
    bucket.forget_first_answer = True
    assert slots.commit(DIGEST, 2, segment) == "committed"


def test_trouble_that_passes_is_not_noticed(bucket: Bucket, slots: Slots, segment: Path, tmp_path: Path) -> None:
    """One bad answer to each kind of request changes nothing."""
    bucket.statuses = [503]
    assert not slots.is_drawn(DIGEST, 2)
    bucket.statuses = [500]
    assert slots.commit(DIGEST, 2, segment) == "committed"
    bucket.statuses = [502]
    assert slots.fetch(DIGEST, 2, tmp_path / "into")
    assert (tmp_path / "into").read_bytes() == SEGMENT


def test_while_storage_is_away_nothing_is_found_and_nothing_kept(bucket: Bucket, slots: Slots, tmp_path: Path) -> None:
    """No call raises, and looks do not ask again and again."""
    (tmp_path / "segment").write_bytes(SEGMENT)
    (tmp_path / "plan").write_bytes(make_plan(DIGEST))
    bucket.statuses = [403] * 1000
    assert slots.commit(DIGEST, 2, tmp_path / "segment") == "kept"
    assert not slots.put_plan(tmp_path / "plan")
    assert slots.read_plan(0, 10) is None
    assert not slots.fetch(DIGEST, 2, tmp_path / "into")
    asked = len(bucket.headers)
    assert not any(slots.is_drawn(DIGEST, index) for index in range(4))
    assert len(bucket.headers) == asked


@pytest.mark.parametrize(
    "grants",
    [b"", b"nonsense", gzip.compress(b"{}"), gzip.compress(b"{}" * 1000)[:-9]],
    ids=["empty", "nonsense", "without URLs", "cut off"],
)
def test_grants_that_cannot_be_read(bucket: Bucket, slots: Slots, segment: Path, grants: bytes) -> None:
    """Without grants nothing is kept, and the render goes on."""
    bucket.objects["grants"] = grants
    assert slots.commit(DIGEST, 2, segment) == "kept"
    assert not slots.is_drawn(DIGEST, 2)


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        ("http://[::1/{}", {}),
        ("http://127.0.0.1:99999/{}", {}),
        ("ftp://127.0.0.1/{}", {}),
        ("{}", {}),
        ("", {"X-Key": "\N{EURO SIGN}{}"}),
        ("", {"\N{EURO SIGN}{}": "key"}),
        ("", {"X-Key": "a\r\nX-Other: {}"}),
    ],
)
def test_grants_with_nonsense_are_no_grants(
    bucket: Bucket, slots: Slots, segment: Path, url: str, headers: dict[str, str]
) -> None:
    """The render goes on without them, and nothing says what they hold."""
    urls = {name: url.format(SIGNATURE) or bucket.url(f"pieces/{name}") for name in names(4)}
    headers = {name.format(SIGNATURE): value.format(SIGNATURE) for name, value in headers.items()}
    bucket.objects["grants"] = Grants(get=urls, put=urls, headers=headers).model_dump_json().encode()
    assert not slots.is_drawn(DIGEST, 2)
    assert slots.commit(DIGEST, 2, segment) == "kept"
    assert set(bucket.objects) == {"grants", "song"}


def test_grants_from_afar_name_no_file_of_this_machine(bucket: Bucket, slots: Slots, tmp_path: Path) -> None:
    """A ``file:`` URL is not used for an order that came over the network."""
    (tmp_path / "segment").write_bytes(SEGMENT)
    urls = {name: (tmp_path / "kept").as_uri() for name in names(4)}
    bucket.objects["grants"] = Grants(get=urls, put=urls).model_dump_json().encode()
    assert slots.commit(DIGEST, 2, tmp_path / "segment") == "kept"
    assert not (tmp_path / "kept").exists()


def test_a_stop_cuts_a_call_that_runs(bucket: Bucket, slots: Slots, stop: Stop, segment: Path) -> None:
    """A call whose response does not come ends when the render is to stop."""
    assert not slots.is_drawn(DIGEST, 2)
    bucket.trickling_until = time.monotonic() + 60
    ended: list[BaseException] = []

    def commit() -> None:
        try:
            slots.commit(DIGEST, 2, segment)
        except RenderStopped as error:
            ended.append(error)

    thread = threading.Thread(target=commit)
    asked = len(bucket.headers)
    thread.start()
    eventually(lambda: len(bucket.headers) > asked)
    stop.request("cancelled")
    thread.join(30)
    bucket.trickling_until = 0
    assert [str(error) for error in ended] == ["told to stop: cancelled"]
