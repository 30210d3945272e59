"""The web examples, each started as a real server on this machine and used as a client uses it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import av
import httpx
import pytest
from attrs import frozen

from renderdispatch.errors import ConfigurationError
from renderdispatch.render.music import compose
from renderdispatch.testing import eventually
from renderdispatch.testing.local_r2 import LocalR2, local_r2
from renderdispatch.webhooks import AttemptKeys, EventId, WebhookSigner
from tests.support.ports import free_port

EXAMPLES: Final = Path(__file__).parents[2] / "examples"
SECRET: Final = "whsec_b2xkIG9sZCBvbGQgb2xkIG9sZCBvbGQgb2xkIG9sZCE="
MIB: Final = 1 << 20
SERVERS: Final = {
    "fastapi_app": ["uvicorn", "--port", "{port}", "--log-level", "warning", "app:app"],
    "flask_app": [
        *("gunicorn", "--bind", "127.0.0.1:{port}", "--workers", "2", "--threads", "4"),
        *("--log-level", "warning", "app:app"),
    ],
}
ENDED: Final = {"complete", "failed", "cancelled"}


@frozen
class Site:
    """An example that runs, and a client of it."""

    port: int
    pid: int
    client: httpx.Client

    def submit(self, audio: Path | bytes, *, key: str | None = None, **form: str) -> httpx.Response:
        headers = {} if key is None else {"idempotency-key": key}
        data = audio if isinstance(audio, bytes) else audio.read_bytes()
        return self.client.post("/jobs", files={"audio": ("song.wav", data)}, data=form, headers=headers)

    def poll(self, job_id: str) -> dict[str, Any]:
        answer = self.client.get(f"/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def ended(self, job_id: str, *, within_s: float = 90) -> dict[str, Any]:
        """Poll as a browser does, until the job has ended."""
        deadline = time.monotonic() + within_s
        while (found := self.poll(job_id))["status"] not in ENDED:
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        return found

    @property
    def pids(self) -> list[int]:
        """The processes that answer."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="ascii").split()
        return [self.pid, *(int(pid) for pid in children)]


@contextmanager
def serving(example: str, home: Path, **settings: str) -> Iterator[Site]:
    """Run an example as its own documents say, with nothing but environment variables; it says goodbye in order."""
    log = home / "server.log"
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RENDERDISPATCH_", "MODAL_"))}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *(part.format(port=port) for part in SERVERS[example])],
            cwd=EXAMPLES / example,
            env={**kept, "RENDERDISPATCH_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", **settings},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        eventually(lambda: _listens(port) or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            yield Site(port, process.pid, client)
        assert process.poll() is None, log.read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert "Traceback" not in log.read_text(), log.read_text()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.fixture(scope="module", params=list(SERVERS))
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp(request.param)
    with serving(request.param, home, RENDERDISPATCH_SECRETS=SECRET) as site:
        yield site


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("song") / "song.wav"
    compose(path, seconds=1.0)
    return path


# --- a render -------------------------------------------------------------------------------------


def test_a_song_becomes_a_video(site: Site, song: Path, tmp_path: Path) -> None:
    """Submit answers 202 at once, polling leads to `complete`, and its URLs give the video and poster asked for."""
    named = {"title": "Ein Lied", "artist": "Élan", "poster": "true"}
    began = site.submit(
        song, scene="wave", output="flat-1080p-square", params='{"background": "#101020"}', duration="0.5", **named
    )
    assert began.status_code == 202
    job_id = began.json()["jobId"]
    assert began.json() == {"jobId": job_id, "status": "pending"}

    found = site.ended(job_id)
    assert (found["status"], found["progress"], found["result"]["frames"]) == ("complete", 100, 15), found

    video = tmp_path / "video.mp4"
    with site.client.stream("GET", found["downloadUrl"]) as answer:
        assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
        assert "''%C3%89lan%20-%20Ein%20Lied.mp4" in answer.headers["content-disposition"]
        with video.open("wb") as file:
            for chunk in answer.iter_bytes():
                file.write(chunk)
    assert video.stat().st_size == found["result"]["bytes"]
    with av.open(str(video)) as opened:
        stream = opened.streams.video[0]
        assert stream.average_rate is not None
        assert (stream.width, stream.height, float(stream.average_rate)) == (1080, 1080, 30.0)
        assert sum(1 for _ in opened.decode(stream)) == 15
        assert [sound.codec_context.name for sound in opened.streams.audio] == ["aac"]

    part = site.client.get(found["downloadUrl"], headers={"range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")  # browsers seek so
    poster = site.client.get(found["posterUrl"])
    assert (poster.headers["content-type"], poster.content[:3]) == ("image/jpeg", b"\xff\xd8\xff")
    assert "''%C3%89lan%20-%20Ein%20Lied.jpg" in poster.headers["content-disposition"]


def test_a_job_is_cancelled(site: Site, tmp_path: Path) -> None:
    """DELETE answers with the job, which ends as `cancelled` and has no video; a second one is no error."""
    long = tmp_path / "long.wav"
    compose(long, seconds=20)
    job_id = site.submit(long, output="flat-4k-landscape").json()["jobId"]
    answer = site.client.delete(f"/jobs/{job_id}")
    assert answer.status_code == 200
    assert answer.json()["jobId"] == job_id
    assert site.ended(job_id)["status"] == "cancelled"
    assert site.client.delete(f"/jobs/{job_id}").json()["status"] == "cancelled"
    refused = site.client.get(f"/jobs/{job_id}/video")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "job.cancelled")


def test_an_idempotency_key_gives_the_same_job(site: Site, song: Path) -> None:
    """The same request twice is one job; another request under the key is refused."""
    key = uuid.uuid4().hex
    first, again = (site.submit(song, key=key, duration="0.1") for _ in range(2))
    assert (first.status_code, first.json()) == (202, again.json())
    other = site.submit(song, key=key, duration="0.2")
    assert (other.status_code, other.json()["error"]["code"]) == (422, "job.idempotency-conflict")
    site.client.delete(f"/jobs/{first.json()['jobId']}")


@pytest.fixture(scope="module")
def r2() -> Iterator[LocalR2]:
    """Cloudflare's own local R2; skips where there is no Node, and fails there in CI."""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(local_r2(buckets=("renders",), cache=EXAMPLES.parent / ".cache" / "miniflare"))
        except ConfigurationError as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(str(error))
        yield server


@pytest.mark.parametrize("example", list(SERVERS))
def test_the_same_example_runs_with_r2(example: str, r2: LocalR2, song: Path, tmp_path: Path) -> None:
    """By environment variables alone; the video then comes from R2 by a signed URL, and `/video` leads there."""
    settings = {
        "RENDERDISPATCH_STORAGE": "r2://renders",
        "RENDERDISPATCH_R2_ENDPOINT_URL": r2.endpoint_url,
        "RENDERDISPATCH_R2_ACCESS_KEY_ID": r2.access_key_id,
        "RENDERDISPATCH_R2_SECRET_ACCESS_KEY": r2.secret_access_key,
    }
    with serving(example, tmp_path, **settings) as site:
        found = site.ended(site.submit(song, duration="0.1").json()["jobId"])
        assert found["downloadUrl"].startswith(r2.endpoint_url), found
        for url in (found["downloadUrl"], f"/jobs/{found['jobId']}/video"):
            assert len(site.client.get(url, follow_redirects=True).content) == found["result"]["bytes"]


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"scene": "waev"}, "did you mean 'wave'"),
        ({"scene": "/etc/passwd"}, "unknown scene"),
        ({"output": "flat-8k"}, "unknown preset"),
        ({"params": "{"}, "params: "),
        ({"params": "[1]"}, "params: "),
        ({"params": '{"sides": 5}'}, "sides"),
        ({"duration": "soon"}, "duration: "),
        ({"duration": "-1"}, "duration: "),
        ({"duration": "nan"}, "duration: "),
    ],
)
def test_a_bad_form_is_refused(site: Site, song: Path, form: dict[str, str], said: str) -> None:
    """What can never be rendered is 422, and the message says what is wrong."""
    answer = site.submit(song, **form)
    assert answer.status_code == 422, answer.text
    assert said in answer.json()["error"]["message"]


def test_empty_audio_is_refused(site: Site) -> None:
    """An empty file is 422."""
    answer = site.submit(b"")
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "audio.empty")


@pytest.mark.parametrize("form", [{}, {"audio": "/etc/passwd"}, {"audio": "https://example.com/song.mp3"}])
def test_audio_is_a_file(site: Site, form: dict[str, str]) -> None:
    """No audio, or a name where a file has to be, is the client's fault, told as JSON; nothing is read by name."""
    answer = site.client.post("/jobs", data={"scene": "bars", **form})
    assert answer.status_code in {400, 422}
    assert "audio: " in answer.json()["error"]["message"]


def test_no_sound_fails_the_job(site: Site) -> None:
    """What turns out to be no audio ends as `failed`, with a readable error."""
    found = site.ended(site.submit(b"no sound at all" * 100).json()["jobId"])
    assert found["status"] == "failed"
    assert found["error"]["code"].startswith("audio.")


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("GET", "/video")])
def test_an_unknown_job_is_404(site: Site, method: str, path: str) -> None:
    """Whatever is asked about a job that does not exist."""
    answer = site.client.request(method, f"/jobs/none{path}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job.not-found")


def announce(site: Site, size: int) -> tuple[int, bytes]:
    """Announce an upload of ``size`` bytes, and send none of it."""
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=60)
    connection.putrequest("POST", "/jobs")
    connection.putheader("content-type", "multipart/form-data; boundary=frontier")
    connection.putheader("content-length", str(size))
    connection.endheaders()
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, body


def test_an_upload_has_a_limit(site: Site) -> None:
    """An upload over 512 MiB is 413, before any of it is read."""
    status, body = announce(site, 512 * MIB + 1)
    assert status == 413
    assert "error" in json.loads(body)


def test_an_upload_takes_little_memory(site: Site, tmp_path: Path) -> None:
    """96 MiB pass through in a few."""
    large = tmp_path / "large.wav"
    with large.open("wb") as hole:
        hole.truncate(96 * MIB)
    assert site.submit(b"").status_code == 422
    before = {pid: _memory(pid) for pid in site.pids}
    most = dict.fromkeys(before, 0)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            for pid in most:
                most[pid] = max(most[pid], _memory(pid))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        with large.open("rb") as file:
            answer = site.client.post("/jobs", files={"audio": file})
    finally:
        done.set()
        watching.join()
    assert answer.status_code == 202
    assert max(most[pid] - before[pid] for pid in before) < 32 * MIB
    site.client.delete(f"/jobs/{answer.json()['jobId']}")


def _memory(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    return int(found[1]) << 10 if found else 0


# --- the webhook ----------------------------------------------------------------------------------


def test_a_stranger_is_refused(site: Site) -> None:
    """A webhook without a signature, or with a wrong one, is 401."""
    body = b'{"type": "failed"}'
    assert site.client.post("/webhook", content=body).status_code == 401
    strange = WebhookSigner("whsec_" + "c3RyYW5nZXIg" * 3)
    headers = strange.sign(str(EventId("none", 1, uuid.uuid4().hex)), body, now=datetime.now(UTC))
    answer = site.client.post("/webhook", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "webhook.wrong-signature")


def test_a_genuine_webhook_is_taken(site: Site) -> None:
    """A signed report about a job that is gone is told to stop computing."""
    event = {"type": "checked-in", "eventId": "e", "jobId": "none", "token": "t", "runId": "r"}
    body = json.dumps(event).encode()
    signer = WebhookSigner(AttemptKeys(SECRET).secret(job_id="none", attempt=1))
    headers = signer.sign(str(EventId("none", 1, uuid.uuid4().hex)), body, now=datetime.now(UTC))
    answer = site.client.post("/webhook", content=body, headers=headers)
    assert (answer.status_code, answer.json()["action"]) == (200, "stop")


# --- the examples themselves ----------------------------------------------------------------------


@pytest.mark.parametrize("site", ["fastapi_app"], indirect=True)
def test_fastapi_has_a_page(site: Site) -> None:
    """The page asks for what the application takes."""
    page = site.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    for name in ("audio", "scene", "output", "duration", "title", "artist", "poster"):
        assert f'name="{name}"' in page.text


@pytest.mark.parametrize("example", list(SERVERS))
def test_examples_are_short(example: str) -> None:
    """Each has less than 80 lines, imports and blank lines counted."""
    assert len((EXAMPLES / example / "app.py").read_text().splitlines()) < 80
