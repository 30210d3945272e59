"""Small renders for tests: a scene that does what its parameters say, and orders for it. No NumPy, no decoder."""

from __future__ import annotations

import os
import signal
import sys
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
from renderdispatch.messages import ObjectUrls, Output, RenderOrder, RenderStats
from renderdispatch.protocols import Report, StorageAdapter
from renderdispatch.runner.renderers import GROUP, find_renderer, forget_registered

FAKE_SCENE: Final = "fake"
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


@contextmanager
def registered_scenes(folder: Path, scenes: Mapping[str, str] | None = None) -> Iterator[None]:
    """Register scenes by entry points, as an installed package does, so that render processes find them too.

    Args:
        folder: Where the package's metadata is written. It is on ``sys.path`` while the block runs.
        scenes: Each scene's name and its object as ``"package.module:name"``. By default, ``fake`` is `FakeRenderer`.
    """
    found = scenes or {FAKE_SCENE: f"{__name__}:FakeRenderer"}
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
