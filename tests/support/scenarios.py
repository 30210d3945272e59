"""Which behaviours of the whole chain are the same with doubles and with real accounts?

Each scenario is a function of a `Chain`: it does what a client does, and asserts what a client (or the application's
log of webhooks) can see. The tests that run on every commit add what only the doubles show.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

import av
import httpx
import numpy as np
from attrs import frozen

from renderdispatch.messages import Completed, Failed, Limits
from renderdispatch.testing import eventually
from renderdispatch.webhooks import AttemptKeys, EventId, WebhookVerifier
from tests.support.chain import Answer, Chain, is_loopback

DISPATCH_STAGES: Final[Mapping[str, float]] = {
    "resolving-audio": 10,
    "uploading-audio": 20,
    "generating-url": 25,
    "dispatching": 27,
    "dispatched": 30,
}
"""What polling shows before the GPU side is heard of, in order."""

SEVEN_DAYS_S: Final = 604_800

CONNECT_S: Final = 10.0
"""How long the Modal backend tries to connect."""


@frozen(kw_only=True)
class Video:
    """What decoding every packet of a video gave.

    Args:
        frames: How many pictures.
        size: Width and height in pixels.
        picture_s: From the first picture to the end of the last, in seconds.
        sound_s: Of sound, in seconds.
        loudest: The largest sample, full scale at 1.
        changes: How far pictures next to each other differ at most, mean over the pixels, in 8-bit steps.
    """

    frames: int
    size: tuple[int, int]
    picture_s: float
    sound_s: float
    loudest: float
    changes: float


def decode(path: Path) -> Video:
    """Decode a whole video; anything in it that is no clean video raises."""
    with av.open(path, options={"err_detect": "explode"}) as container:
        pictures = container.streams.video[0]
        assert pictures.average_rate is not None
        count, changes, before = 0, 0.0, None
        for picture in container.decode(pictures):
            grey = picture.reformat(width=64, height=64, format="gray").to_ndarray().astype(np.float32)
            changes = max(changes, float(np.abs(grey - before).mean()) if before is not None else 0.0)
            before, count = grey, count + 1
        size = (pictures.width, pictures.height)
        picture_s = float(count / pictures.average_rate)
    with av.open(path, options={"err_detect": "explode"}) as container:
        sound = [(one.samples / one.sample_rate, one.to_ndarray()) for one in container.decode(audio=0)]
    return Video(
        frames=count,
        size=size,
        picture_s=picture_s,
        sound_s=sum(seconds for seconds, _ in sound),
        loudest=max(float(np.abs(samples).max()) for _, samples in sound),
        changes=changes,
    )


def answers_at_once(chain: Chain, song: Path) -> str:
    """Submit is answered with a job id and ``pending``, sooner than Modal has to be connected; return the id."""
    began = time.monotonic()
    answer = chain.post(song, duration="1", output="flat-1080p-square")
    assert time.monotonic() - began < CONNECT_S
    assert answer.status_code == 202, answer.text
    found = answer.json()
    assert found == {"jobId": found["jobId"], "status": "pending"}
    job_id: str = found["jobId"]
    return job_id


def renders_whole(chain: Chain, song: Path, work: Path, *, seconds: int = 2) -> Answer:
    """A song that was submitted becomes a video: pictures that move, all of its sound, as long as asked.

    While it is made, polling shows stages and percentages that only rise; return the last answer.
    """
    job_id = chain.submit(song, duration=seconds)
    answer: Answer = {}
    before = (0, 0.0)
    for answer in chain.polls(job_id):
        assert (answer["attempt"], answer["progress"]) >= before, answer
        before = (answer["attempt"], answer["progress"])
        if answer["stage"] in DISPATCH_STAGES:
            assert answer["progress"] == DISPATCH_STAGES[answer["stage"]], answer
    assert answer["status"] == "complete", answer
    assert answer["progress"] == 100
    result = answer["result"]
    file = chain.download(answer["downloadUrl"], work / f"{job_id}.mp4")
    assert file.stat().st_size == result["bytes"]
    video = decode(file)
    assert (video.frames, video.size) == (30 * seconds, (1080, 1080))
    assert (result["frames"], result["width"], result["height"]) == (30 * seconds, 1080, 1080)
    assert math.isclose(video.picture_s, seconds, abs_tol=0.001)
    assert math.isclose(video.sound_s, seconds, abs_tol=0.1)  # AAC pads its last frame
    assert video.loudest > 0.05
    assert video.changes > 0.1
    return answer


def signs_for_seven_days(url: str) -> None:
    """A download URL is a version 4 signature that is good for seven days, and nothing but it is needed."""
    query = parse_qs(urlsplit(url).query)
    assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
    assert query["X-Amz-Expires"] == [str(SEVEN_DAYS_S)]
    assert query["X-Amz-SignedHeaders"] == ["host"]
    spoilt = url[:-1] + ("0" if url[-1] != "0" else "1")
    assert httpx.get(spoilt, trust_env=not is_loopback(url)).status_code == 403


def reports_securely(chain: Chain, job_id: str) -> Completed | Failed:
    """Each webhook of a job is signed by the key of its attempt alone; return the last event, which is final."""
    assert chain.tap is not None
    verify = WebhookVerifier(AttemptKeys(chain.secret)).verify
    # the application has answered, but who passes the answer on may not have taken note of it yet
    eventually(lambda: any(isinstance(event, Completed | Failed) for event in chain.events(job_id)))
    seen = [one for one in chain.tap.deliveries if one.event.job_id == job_id]
    assert seen, "no webhook came"
    attempts = chain.job(job_id).attempts
    for one in seen:
        speaker = EventId.parse(verify(one.headers, one.body, now=one.at).id)
        assert speaker is not None
        assert speaker.job_id == job_id
        assert attempts[speaker.attempt - 1].token == one.event.token
    final = chain.events(job_id)[-1]
    assert isinstance(final, Completed | Failed), final
    return final


def reports_the_video(chain: Chain, song: Path) -> None:
    """The container says by webhook that it is done, with the key under which the video stands in the bucket."""
    job_id = chain.submit(song)
    answer = chain.wait(job_id)
    assert answer["status"] == "complete", answer
    if chain.tap is None:
        return
    final = reports_securely(chain, job_id)
    assert isinstance(final, Completed)
    assert final.artifact.key == answer["result"]["videoKey"]
    assert chain.objects(f"jobs/{job_id}/")[final.artifact.key] == final.artifact.bytes


def reports_a_failure(chain: Chain, work: Path) -> None:
    """What is no sound fails the render, and nothing else: webhook and polling say why, in words."""
    noise = work / "noise.wav"
    noise.write_bytes(b"no sound at all " * 64)
    job_id = chain.submit(noise)
    answer = chain.wait(job_id)
    assert answer["status"] == "failed", answer
    assert answer["attempt"] == 1, "the audio's fault is not tried again"
    assert answer["error"]["code"].startswith("audio."), answer
    if chain.tap is None:
        return
    final = reports_securely(chain, job_id)
    assert isinstance(final, Failed)
    assert final.error.message == answer["error"]["message"]


def reports_a_refused_upload(
    chain: Chain,
    song: Path,
    *,
    status: int,
    limits: Limits,
    timeout_s: float | None = None,
    variables: Mapping[str, str] | None = None,
) -> Answer:
    """Storage refuses the container's upload: webhook says `failed`, and so does polling, with a readable error.

    Args:
        status: With which storage refuses.
        variables: Of the process that submits, where they are not the application's.
    """
    job_id = chain.submit_with(limits, song, variables=variables)
    answer = chain.wait(job_id, timeout_s=timeout_s)
    assert answer["status"] == "failed", answer
    assert answer["error"]["code"] == "video.upload"
    assert answer["error"]["message"].startswith(f"could not upload the video: storage answered {status}"), answer
    assert "http" not in answer["error"]["message"]
    assert "downloadUrl" not in answer
    if chain.tap is not None:
        final = reports_securely(chain, job_id)
        assert isinstance(final, Failed)
        assert final.error.message == answer["error"]["message"]
    return answer
