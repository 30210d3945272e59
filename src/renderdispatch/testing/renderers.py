"""Small renders for tests: a scene that does what its parameters say, and orders for it. No NumPy, no decoder."""

from __future__ import annotations

import gzip
import hashlib
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from renderdispatch.engine import layout
from renderdispatch.errors import AudioError, SceneError
from renderdispatch.messages import (
    Grants,
    Helped,
    HelperOrder,
    JsonObject,
    ObjectUrls,
    Output,
    Pieces,
    RenderOrder,
    RenderStats,
    SegmentCounts,
)
from renderdispatch.plumbing.pieces import GENERATIONS, HEAD_BYTES, PlanHead, SegmentHead, names
from renderdispatch.protocols import Report, Slots, StorageAdapter
from renderdispatch.runner.renderers import GROUP, find_renderer, forget_registered

FAKE_SCENE: Final = "fake"
FAKE_SEGMENTS: Final = "fake-segments"
AUDIO: Final = b"RIFF, a song"


@frozen(kw_only=True)
class FakeRenderer:
    """A renderer that draws nothing, reports frames, and writes a few bytes as its video.

    Its poster, if the order wants one, is the cover, else a few bytes too.

    Parameters of the order with these names override the arguments.

    Args:
        frames: The number of frames that it reports.
        frame_s: The seconds that each frame takes.
        fail: Raise `SceneError` with this message, half-way.
        die: Kill the process with this signal, half-way. Use it only in a render process, not in the test's own.
        video: The text that is written as the video.
    """

    frames: int = 3
    frame_s: float = 0.0
    fail: str | None = None
    die: int | None = None
    video: str = "a video of nothing"

    def render(self, order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        """Report every frame, then write the video."""
        asked: dict[str, Any] = {name: getattr(self, name) for name in ("frames", "frame_s", "fail", "die", "video")}
        asked.update(order.params)
        frames = asked["frames"]
        if not audio.read_bytes():
            raise AudioError("the sound is empty")
        for frame in range(frames):
            if frame == frames // 2:
                if asked["fail"] is not None:
                    raise SceneError(asked["fail"], code="scene.fake")
                if asked["die"] is not None:
                    os.kill(os.getpid(), signal.Signals(asked["die"]))
            time.sleep(asked["frame_s"])
            report(frame + 1, frames)
        output.write_bytes(asked["video"].encode())
        if order.poster is not None:
            cover = None if order.cover is None else order.cover.path
            output.with_suffix(".jpg").write_bytes(b"\xff\xd8\xff" if cover is None else Path(cover).read_bytes())
        return RenderStats(
            width=order.output.width,
            height=order.output.height,
            fps=order.output.fps,
            frames=frames,
            duration_s=float(frames / order.output.fps),
            rendered_by="fake",
            encoded_by="none",
        )


@frozen(kw_only=True)
class FakeSegmentsRenderer:
    """A renderer whose video is made of segments, each a line of text. It draws nothing, and needs no decoder.

    Parameters of the order with these names override the arguments.

    Args:
        segments: How many segments a video has.
        segment_s: The seconds that each takes.
        die_at: Kill the process by SIGKILL before this segment is drawn.
        wait_at: Wait before this segment is drawn until it is kept, drawn by another one.
        log: A file that gets a line for each segment that begins to be drawn: its index, and the id of the process.
    """

    segments: int = 4
    segment_s: float = 0.0
    die_at: int | None = None
    wait_at: int | None = None
    log: str | None = None

    def render(self, order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        """Draw all segments, and keep none."""
        del audio
        asked = self._asked(order.params)
        lines = [self._draw(asked, index) for index in range(asked["segments"])]
        report(len(lines), len(lines))
        output.write_text("".join(lines))
        return self._stats(order, len(lines))

    def render_segments(
        self, order: RenderOrder, audio: Path, output: Path, report: Report, *, slots: Slots
    ) -> RenderStats:
        """Keep a plan, draw what is missing, and join what is kept with what is not."""
        del audio
        asked = self._asked(order.params)
        total, own, taken, twice = asked["segments"], 0, 0, 0
        digest = fake_digest(asked["segments"])
        joined: dict[int, str] = {}
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            planned = slots.read_plan(0, HEAD_BYTES) is not None or slots.put_plan(self._plan(asked, folder))
            for index in range(total):
                slots.report(SegmentCounts(total=total, standing=len(joined), own=own), planned=planned)
                while index == asked["wait_at"] and not slots.is_drawn(digest, index):
                    time.sleep(0.01)
                    report(index, total)
                into = folder / "fetched"
                if slots.is_drawn(digest, index) and slots.fetch(digest, index, into):
                    joined[index], taken = into.read_bytes()[HEAD_BYTES:].decode(), taken + 1
                else:
                    became, joined[index] = self._commit(asked, index, folder, slots)
                    own, twice = own + (became != "twice"), twice + (became == "twice")
                report(len(joined), total)
            slots.report(SegmentCounts(total=total, standing=total, own=own), planned=planned)
        output.write_text("".join(joined.values()))
        stats = self._stats(order, total)
        return stats.model_copy(update={"segments": total, "segments_taken": taken, "segments_twice": twice})

    def help(self, order: HelperOrder, folder: Path, report: Report, *, slots: Slots) -> Helped:
        """Draw the own share, then what is missing, if the plan is the own one."""
        asked = self._asked(order.params)
        digest, total = fake_digest(asked["segments"]), asked["segments"]
        head = PlanHead.read(slots.read_plan(0, HEAD_BYTES) or b"")
        if head is None or head.digest != digest:
            return Helped(reason="the plan is not ours")
        counted = {"committed": 0, "twice": 0, "kept": 0}
        for index in sorted(range(total), key=lambda each: each % slots.parallel != slots.share):
            report(0, 0)
            if not slots.is_drawn(digest, index):
                counted[self._commit(asked, index, folder, slots)[0]] += 1
        return Helped(segments=counted["committed"], twice=counted["twice"], reason="all segments are drawn")

    def _asked(self, params: JsonObject) -> dict[str, Any]:
        names = ("segments", "segment_s", "die_at", "wait_at", "log")
        return {name: params.get(name, getattr(self, name)) for name in names}

    def _draw(self, asked: dict[str, Any], index: int) -> str:
        if index == asked["die_at"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if asked["log"] is not None:
            with Path(asked["log"]).open("a") as file:
                file.write(f"{index} {os.getpid()}\n")
        time.sleep(asked["segment_s"])
        return f"segment {index} of {asked['segments']}\n"

    def _commit(self, asked: dict[str, Any], index: int, folder: Path, slots: Slots) -> tuple[str, str]:
        line = self._draw(asked, index)
        path = folder / f"segment-{index}"
        path.write_bytes(make_segment(fake_digest(asked["segments"]), index, line.encode()))
        return slots.commit(fake_digest(asked["segments"]), index, path), line

    def _plan(self, asked: dict[str, Any], folder: Path) -> Path:
        path = folder / "plan"
        path.write_bytes(make_plan(fake_digest(asked["segments"])))
        return path

    def _stats(self, order: RenderOrder, frames: int) -> RenderStats:
        output = order.output
        return RenderStats(
            width=output.width,
            height=output.height,
            fps=output.fps,
            frames=frames,
            duration_s=float(frames / output.fps),
            rendered_by="fake",
            encoded_by="none",
        )


def fake_digest(segments: int) -> str:
    """Return the digest of a plan of `FakeSegmentsRenderer`."""
    return hashlib.sha256(f"fake plan of {segments}".encode()).hexdigest()


def make_segment(digest: str, index: int, body: bytes) -> bytes:
    """Return a segment whose head is right, whatever its body is."""
    sha256 = hashlib.sha256(body).hexdigest()
    head = SegmentHead(digest=digest, index=index, frames=1, size=len(body), sha256=sha256, config="")
    return head.pack() + body


def make_plan(digest: str, *, index: bytes = b"an index", rest: bytes = b"and the rest") -> bytes:
    """Return a plan whose head is right, whatever the rest is."""
    sha256, size = hashlib.sha256(index).hexdigest(), HEAD_BYTES + len(index) + len(rest)
    return PlanHead(digest=digest, index=len(index), sha256=sha256, size=size).pack() + index + rest


@contextmanager
def registered_scenes(folder: Path, scenes: Mapping[str, str] | None = None) -> Iterator[None]:
    """Register scenes by entry points, as an installed package does, so that render processes find them too.

    Args:
        folder: Where the package's metadata is written. It is on ``sys.path`` while the block runs.
        scenes: Each scene's name and its object as ``"package.module:name"``. By default, ``fake`` is `FakeRenderer`,
            and ``fake-segments`` is `FakeSegmentsRenderer`.
    """
    shipped = {FAKE_SCENE: f"{__name__}:FakeRenderer", FAKE_SEGMENTS: f"{__name__}:FakeSegmentsRenderer"}
    found = scenes or shipped
    metadata = folder / "renderdispatch_test_scenes-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: renderdispatch-test-scenes\nVersion: 1.0\n")
    lines = [f"{name} = {target}" for name, target in found.items()]
    (metadata / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))
    sys.path.insert(0, str(folder))
    forget_registered()
    try:
        for name in found:
            find_renderer(name)
        yield
    finally:
        sys.path.remove(str(folder))
        forget_registered()


def make_order(storage: StorageAdapter, *, audio: bytes = AUDIO, **changes: Any) -> RenderOrder:
    """Return an order for the fake scene. ``storage`` stores its audio and signs its URLs.

    Args:
        storage: Where the audio, the video and the result are.
        audio: The bytes of the song.
        changes: Any of the order's fields.
    """
    now = datetime.now(UTC)
    job_id = changes.get("job_id") or uuid.uuid4().hex
    token = changes.get("token") or uuid.uuid4().hex
    prefix = layout.job_prefix(None, job_id, layout.new_incarnation())
    hour = timedelta(hours=1)

    def urls(key: str, content_type: str) -> ObjectUrls:
        put = storage.sign_put(key, expires_in=hour, content_type=content_type)
        return ObjectUrls(key=key, put=put, get=storage.sign_get(key, expires_in=hour))

    song = layout.audio_key(prefix, layout.attempt_upload(token), "song.wav")
    storage.put(song, audio)
    fields = {
        "job_id": job_id,
        "attempt": 1,
        "token": token,
        "audio_url": storage.sign_get(song, expires_in=hour),
        "audio_size": len(audio),
        "video": urls(layout.video_key(prefix, token), "video/mp4"),
        "result": urls(layout.result_key(prefix, token), "application/json"),
        "scene": FAKE_SCENE,
        "output": Output(width=64, height=36),
        "start_by": now + hour,
        "finish_by": now + hour,
        "local": True,
    }
    return RenderOrder(**{**fields, **changes})


def make_helper_order(lead: RenderOrder, storage: StorageAdapter, *, share: int = 1, **changes: Any) -> HelperOrder:
    """Return the order of a helper of the run that ``lead`` orders; ``storage`` signs its URLs.

    Args:
        lead: It has pieces.
        storage: Where the result and the stop object are.
        share: See `HelperOrder`.
        changes: Any of the order's fields.
    """
    assert lead.pieces is not None
    assert lead.result.get is not None
    stop = lead.result.key.removesuffix("result.json") + "stop"
    shared = set(HelperOrder.model_fields) & set(RenderOrder.model_fields)
    fields = {name: getattr(lead, name) for name in shared} | {
        "token": uuid.uuid4().hex,
        "share": share,
        "parallel": max(2, lead.parallel),
        "stop": storage.sign_get(stop, expires_in=timedelta(hours=1)),
        "result": lead.result.get,
    }
    return HelperOrder(**{**fields, **changes})


def make_pieces(
    storage: StorageAdapter, prefix: str, *, slots: int = 256, generations: int = GENERATIONS, **grants: Any
) -> Pieces:
    """Store a grants object for the pieces below ``prefix``; return where pieces are kept.

    Args:
        storage: Keeps the pieces and the object.
        prefix: Such as ``"job/pieces/x/"``.
        slots: For how many segments there is a place.
        generations: How many generations may be written.
        grants: More fields of `Grants`.
    """
    hour = timedelta(hours=1)
    get = {name: storage.sign_get(prefix + name, expires_in=hour) for name in names(slots)}
    puts = {
        name: storage.sign_put(prefix + name, expires_in=hour, content_type="application/octet-stream")
        for name in names(slots, generations)
    }
    headers = dict(next(iter(puts.values())).headers)
    made = Grants(get=get, put={name: put.url for name, put in puts.items()}, headers=headers, **grants)
    key = f"{prefix}{uuid.uuid4().hex}.grants"
    storage.put(key, gzip.compress(made.model_dump_json().encode()))
    return Pieces(slots=slots, grants=storage.sign_get(key, expires_in=hour))
