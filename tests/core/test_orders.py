"""What does an order hold?"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import pytest
from attrs import evolve, field, frozen
from pydantic import SecretStr

from renderdispatch.engine import layout
from renderdispatch.engine.orders import make_grants, make_helper_order, make_order, pieces_of, slots_of
from renderdispatch.errors import InvalidRequestError
from renderdispatch.jobs import Helper, Job
from renderdispatch.messages import (
    MAX_ORDER_BYTES,
    Asset,
    Callback,
    Limits,
    LocalAudio,
    RemoteAudio,
    RenderOrder,
    SignedPut,
    StoredAudio,
)
from renderdispatch.testing import make_request
from renderdispatch.testing.histories import HISTORIES, START, after, new_job

AUDIO = StoredAudio(key="songs/song.wav", size=7_000_000)


@frozen
class Signer:
    """Writes a key and its lifetime down, in place of a signature."""

    signed: list[tuple[str, timedelta]] = field(factory=list)
    padding: str = ""
    origin: str = "https://objects.example"

    def sign_get(self, key: str, *, expires_in: timedelta) -> str:
        self.signed.append((key, expires_in))
        return f"{self.origin}/{key}{self.padding}"

    def sign_put(self, key: str, *, expires_in: timedelta, content_type: str) -> SignedPut:
        return SignedPut(url=self.sign_get(key, expires_in=expires_in), headers={"content-type": content_type})


def claimed_job(**changes: Any) -> Job:
    return evolve(after(new_job(), HISTORIES["resolving-audio"]), **changes)


def order_of(job: Job, signer: Signer, *, now: datetime = START, callback: Callback | None = None) -> RenderOrder:
    return make_order(job, AUDIO, signer=signer, now=now, callback=callback, local=False)


def test_an_order_says_what_the_record_says() -> None:
    """The request, the attempt and the keys of its own prefix; and it starts and ends when the limits say."""
    job = claimed_job()
    assert job.attempt is not None
    order = order_of(job, Signer())
    assert (order.job_id, order.attempt, order.token) == (job.id, 1, job.attempt.token)
    assert (order.scene, order.output, order.finish_by) == (job.request.scene, job.request.output, job.finish_by)
    assert order.start_by == min(START + job.request.limits.start_timeout, job.finish_by)
    assert job.incarnation in order.video.key and job.attempt.token in order.result.key
    assert order.audio_url.endswith(AUDIO.key)


@frozen
class NamingSigner(Signer):
    """Signs as a storage does that names files."""

    names_files: bool = True
    named: list[str | None] = field(factory=list)

    def sign_get(self, key: str, *, expires_in: timedelta, file_name: str | None = None) -> str:
        return super().sign_get(key, expires_in=expires_in)

    def sign_put(
        self,
        key: str,
        *,
        expires_in: timedelta,
        content_type: str,
        size: int | None = None,
        file_name: str | None = None,
    ) -> SignedPut:
        self.named.append(file_name)
        put = super().sign_put(key, expires_in=expires_in, content_type=content_type)
        return put if file_name is None else SignedPut(url=put.url, headers={**put.headers, "file-name": file_name})


def test_an_order_says_what_is_the_song_s() -> None:
    """Title, artist, the cover by a URL that reads it, and the upload of a poster where one was asked for."""
    plain = order_of(claimed_job(), Signer())
    assert (plain.title, plain.artist, plain.cover, plain.poster) == (None, None, None, None)
    job = claimed_job(request=make_request(title="A", artist="B", poster=True))
    cover = StoredAudio(key="front.jpg", size=9)
    order = make_order(job, AUDIO, {"cover": cover}, signer=Signer(), now=START, callback=None, local=False)
    assert (order.title, order.artist) == ("A", "B")
    assert order.cover == Asset(url="https://objects.example/front.jpg", size=9)
    assert order.poster is not None and order.poster.put.headers == {"content-type": "image/jpeg"}
    assert order.poster.key == order.video.key.replace("video.mp4", "poster.jpg")


def test_a_file_in_place_says_its_time() -> None:
    """A cover that is read where it is carries what shows a change."""
    cover = LocalAudio(path="/covers/a b.jpg", machine="here", size=9, mtime_ns=5)
    attached = {"cover": cover, "scene_file": cover}
    order = make_order(claimed_job(), AUDIO, attached, signer=Signer(), now=START, callback=None, local=True)
    assert order.cover == Asset(url="file:///covers/a%20b.jpg", size=9, mtime_ns=5)
    assert order.scene_file == Asset(url="file:///covers/a%20b.jpg", size=9, mtime_ns=5, name="a b.jpg")


def test_an_order_has_the_scene_s_files() -> None:
    """Scene file and images come by URLs that read them, in order and under their own names; renderers see no URL."""
    attached = {
        "scene_file": StoredAudio(key="1.glsl", size=9, name="waves.glsl"),
        "image_1": StoredAudio(key="2.png", size=8, name="rocks.png"),
        "image_2": StoredAudio(key="3.png", size=7),
    }
    order = make_order(claimed_job(), AUDIO, attached, signer=Signer(), now=START, callback=None, local=False)
    assert order.scene_file == Asset(url="https://objects.example/1.glsl", size=9, name="waves.glsl")
    assert order.images == (
        Asset(url="https://objects.example/2.png", size=8, name="rocks.png"),
        Asset(url="https://objects.example/3.png", size=7),
    )
    seen = order.without_secrets()
    assert seen.scene_file is not None
    assert {asset.url for asset in (seen.scene_file, *seen.images)} == {""}


def test_uploads_are_named_where_storage_can() -> None:
    """Video and poster have the song's name, the result object has none; a storage without names is asked for none."""
    job = claimed_job(request=make_request(title="A", artist="B", poster=True))
    named, unnamed = NamingSigner(), NamingSigner(names_files=False)
    order_of(job, named)
    order_of(job, unnamed)
    assert (named.named, unnamed.named) == (["B - A.mp4", "B - A.jpg", None], [None] * 3)


def test_a_name_that_is_too_long_for_the_order_is_left_out() -> None:
    """A name is the least that is needed. Bytes count, not characters."""
    job = claimed_job(request=make_request(title="日" * 200, artist="日" * 200, poster=True))
    orders = [order_of(job, NamingSigner(padding="x" * padding)) for padding in range(500, 940, 10)]
    assert max(len(order.model_dump_json().encode()) for order in orders) <= MAX_ORDER_BYTES
    for pictures in ([order.video for order in orders], [order.poster for order in orders]):
        named = [picture is not None and "file-name" in picture.put.headers for picture in pictures]
        assert named == sorted(named, reverse=True) and len(set(named)) == 2
    with pytest.raises(InvalidRequestError):
        order_of(job, NamingSigner(padding="x" * 1300))


def test_names_of_files_are_left_out_before_an_order_is_refused() -> None:
    """Messages alone need them. While the files could still travel as one, that is done first."""
    name = "日" * 66
    files = {place: StoredAudio(key=f"{place}.png", size=8, name=name) for place in ("scene_file", "image_1")}
    bundle = StoredAudio(key="bundle.zip", size=99)

    def order(padding: int, attached: Mapping[str, StoredAudio], bundle: StoredAudio | None) -> RenderOrder:
        signer = Signer(padding="x" * padding)
        job = claimed_job()
        return make_order(job, AUDIO, attached, bundle=bundle, signer=signer, now=START, callback=None, local=False)

    for attached, packed in ((files, bundle), ({"scene_file": files["scene_file"]}, None)):
        room = next(
            room for room in range(0, 2000, 8) if (scene := order(room, attached, packed).scene_file) and not scene.name
        )
        assert len(order(room, attached, packed).model_dump_json().encode()) <= MAX_ORDER_BYTES
    with pytest.raises(InvalidRequestError):
        order(room, files, None)


def test_urls_outlive_the_deadline() -> None:
    """By ten minutes, and never by more than storages sign for (rule J10)."""
    signer = Signer()
    job = claimed_job(finish_by=START + timedelta(hours=6))
    order_of(job, signer)
    assert {life for _, life in signer.signed} == {timedelta(hours=6, minutes=10)}
    signer = Signer()
    order_of(evolve(job, finish_by=START + timedelta(days=30)), signer)
    assert {life for _, life in signer.signed} == {timedelta(days=7)}


def test_there_is_a_place_for_every_segment_that_music_may_have() -> None:
    """By the range that is rendered, by the size of the song, and never for more than a video has."""
    for duration, size, slots in (
        (None, 1 << 30, 256),
        (90.0, 1 << 30, 23),
        (None, 100_000, 101),
        (90.0, 20_000, 21),
        (None, 15_000, None),
    ):
        job = claimed_job(request=make_request(duration=duration))
        song = StoredAudio(key="song.wav", size=size)
        order = make_order(job, song, signer=Signer(), now=START, callback=None, local=False)
        assert (None if order.pieces is None else order.pieces.slots) == slots
        remote = RemoteAudio(url=SecretStr("https://songs.example/a.mp3"))
        assert slots_of(job.request, remote) == (256 if duration is None else 23)


def test_grants_name_no_more_than_the_pieces_of_one_picture() -> None:
    """Each piece has a URL that reads it and one that writes it; helpers write segments alone, in two generations."""
    job = claimed_job(request=make_request(duration=90.0), audio=StoredAudio(key="song.wav", size=1 << 30))
    prefix = pieces_of(job, "cpu")
    run = make_grants(job, prefix, signer=Signer(), now=START)
    helpers = make_grants(job, prefix, signer=Signer(), now=START, helpers=True)
    names = {*(f"plan.{g}" for g in range(4)), *(f"{index:03d}.{g}" for index in range(23) for g in range(4))}
    assert set(run.get) == set(run.put) == set(helpers.get) == names
    assert set(helpers.put) == {f"{index:03d}.{g}" for index in range(23) for g in range(2)}
    assert all(url == f"https://objects.example/{prefix}{name}" for name, url in run.get.items())
    assert run.headers == {"content-type": "application/octet-stream"}
    assert make_grants(job, prefix, signer=NamingSigner(), now=START).put == run.put


def test_an_order_of_a_helper_is_as_small_as_one_of_a_run() -> None:
    """With the longest parameters and files that travel as one."""
    files = {place: StoredAudio(key=f"{place}.png", size=8) for place in ("scene_file", "image_1")}
    bundle = StoredAudio(key="bundle.zip", size=99)
    job = evolve(claimed_job(request=make_request(params={"text": "x" * 2000})), parallel=3)
    helper = Helper(share=2, token="0" * 32)
    signer = Signer(padding="x" * 900)
    order = make_helper_order(job, helper, files, bundle=bundle, signer=signer, now=START, local=False)
    assert len(order.model_dump_json().encode()) <= MAX_ORDER_BYTES
    assert (order.share, order.parallel, order.bundle is not None) == (2, 3, True)


def test_what_others_drew_is_not_borrowed() -> None:
    """Orders name the folders of lenders that draw the same pictures; what is not declared is the attempt's own."""
    job, picture = claimed_job(borrows="jobs/b/life/pieces/"), layout.picture_of("cpu", "")
    lenders = ["jobs/b/life/pieces/", "jobs/a/life/pieces/"]
    order = make_order(
        job,
        AUDIO,
        signer=Signer(origin="file:///objects"),
        now=START,
        callback=None,
        local=True,
        device_class="cpu",
        borrowed=lenders,
    )
    assert order.pieces is not None
    assert [lent.partition("/jobs/")[2] for lent in order.pieces.lent] == [
        f"b/life/pieces/{picture}",
        f"a/life/pieces/{picture}",
    ]
    assert pieces_of(job, None) != pieces_of(job, "cpu") != pieces_of(job, "gpu")


def test_a_start_is_due_before_the_end() -> None:
    """The start deadline never lies behind the total one."""
    limits = Limits(start_timeout=timedelta(hours=2))
    job = claimed_job(request=make_request(limits=limits), finish_by=START + timedelta(hours=1))
    assert order_of(job, Signer()).start_by == job.finish_by


def test_the_same_record_gives_the_same_order() -> None:
    """Nothing but the arguments counts."""
    job = claimed_job()
    assert order_of(job, Signer()) == order_of(job, Signer())


def test_an_order_that_is_too_large_is_refused() -> None:
    """Backends take orders of 8 KiB; a longer one says what to shorten."""
    with pytest.raises(InvalidRequestError, match="shorten the storage key") as caught:
        order_of(claimed_job(), Signer(padding="x" * MAX_ORDER_BYTES))
    assert caught.value.code == "order.too-large"
