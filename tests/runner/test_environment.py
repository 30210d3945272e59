"""Is the process that decodes and draws free of secrets, in its environment and in its memory?"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest

from renderdispatch.backends.local import LocalGpuBackend
from renderdispatch.messages import Failed, Progressed, RenderOrder
from renderdispatch.plumbing.environment import PASS_ENV, of_renders
from renderdispatch.runner import RunnerIO, SupervisedRender, run_order
from renderdispatch.runner.environment import for_the_runner, proxies_of
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.testing import eventually, make_order, registered_scenes
from renderdispatch.testing.contracts.backends import Recorder
from renderdispatch.testing.renderers import AUDIO
from tests.support.containers import marked

SECRETS: Final = {
    "RENDERDISPATCH_SECRETS": "whsec_QUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJD",
    "RENDERDISPATCH_R2_SECRET_ACCESS_KEY": "of-the-bucket-8d1c",
    "AWS_SECRET_ACCESS_KEY": "of-the-cloud-4c7a",
    "MODAL_TOKEN_SECRET": "of-modal-1f5e",
    "DATABASE_URL": "postgresql://app:of-the-database-77e2@db/app",
    "NVIDIA_API_KEY": "of-nvidia-93b0",
    "PYTHON_PASSWORD": "of-python-5a3d",
    "https_proxy": "http://app:of-the-proxy-2b8f@proxy:3128",
}
"""Under names that tell, that do not, and that begin like what a render needs."""


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The secrets are in this process's environment."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def held(pid: int, secrets: Iterable[str]) -> set[str]:
    """Return which of these a process has in its environment, or in memory that it can write to."""
    found = [Path(f"/proc/{pid}/environ").read_bytes()]
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            bounds, access, _, _, inode, *_ = line.split()
            if access.startswith("rw") and inode == "0":
                start, end = (int(bound, 16) for bound in bounds.split("-"))
                memory.seek(start)
                found.append(memory.read(end - start))
    return {secret for secret in secrets if any(secret.encode() in one for one in found)}


@contextmanager
def locally(order: RenderOrder, scratch: Path) -> Iterator[None]:
    """A backend of this machine renders the order."""
    backend, heard = LocalGpuBackend(), Recorder()
    backend.start(order, on_event=heard)
    eventually(lambda: any(isinstance(e, Progressed) and e.frames for e in heard.events))
    yield
    backend.close()


@contextmanager
def from_a_shell(order: RenderOrder, scratch: Path) -> Iterator[None]:
    """A person renders the order, with secrets in the environment of the shell."""
    command = [sys.executable, "-m", "renderdispatch.runner"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as runner:
        assert runner.stdin is not None and runner.stdout is not None
        runner.stdin.write(order.model_dump_json().encode() + b"\n")
        runner.stdin.flush()
        while b'"framesTotal":1000' not in runner.stdout.readline():
            assert runner.poll() is None
        yield
        runner.terminate()
        runner.stdout.read()


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="looks into the memory of processes")
@pytest.mark.parametrize("way", [locally, from_a_shell])
def test_a_render_has_no_secret(
    way: Callable[[RenderOrder, Path], AbstractContextManager[None]], scratch: Path, tmp_path: Path
) -> None:
    """Neither what was in the environment of the service, nor what the order brings, is in the render's process."""
    with registered_scenes(tmp_path / "scenes"):
        storage = FsspecStorage(tmp_path / "objects")
        storage.put("song", AUDIO)  # where it is, the render has to know
        song = storage.sign_get("song", expires_in=timedelta(hours=1))
        order = make_order(storage, audio_url=song, params={"frames": 1000, "frame_s": 0.05})
        with way(order, scratch):
            processes = marked(str(scratch))
            (render,) = [pid for pid in processes if not _children(pid)]
            runner = _parent(_parent(render))
            of_order, proxy = {order.token, order.video.put.url}, SECRETS["https_proxy"]
            found = {pid: held(pid, {*SECRETS.values(), *of_order}) for pid in processes}
    assert len(found) == (4 if way is locally else 3)
    assert found.pop(runner) == {*of_order, proxy, *(SECRETS.values() if way is from_a_shell else ())}
    assert set().union(*found.values()) == set()


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _children(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return ["gone"]


def test_a_scene_that_looks_for_secrets(scratch: Path, tmp_path: Path) -> None:
    """A scene finds none in its environment; it finds what drawing needs, and what was named for it."""
    spy = tmp_path / "spy"
    spy.mkdir()
    (spy / "spy.py").write_text(
        "import os\n"
        "class Spy:\n"
        "    def render(self, order, audio, output, report):\n"
        "        raise RuntimeError(' '.join(sorted(os.environ)) + order.model_dump_json())\n"
    )
    with registered_scenes(spy, {"spy": "spy:Spy"}), pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "1")
        patch.setenv("STAR_CATALOGUE", "/stars")
        patch.setenv(PASS_ENV, "STAR_*")
        order = make_order(FsspecStorage(tmp_path / "objects"), scene="spy")
        outcome = run_order(order, io=RunnerIO(send=Recorder(), render=SupervisedRender()))
    assert isinstance(outcome, Failed)
    seen = outcome.error.message
    assert not [name for name in SECRETS if name in seen]
    assert {"CUDA_VISIBLE_DEVICES", "STAR_CATALOGUE", "PATH", "TMPDIR"} <= set(seen.split("{")[0].split()[1:])
    assert order.token not in seen


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        *(
            (name, True)
            for name in ("PATH", "LC_ALL", "NVIDIA_VISIBLE_DEVICES", "LIBGL_ALWAYS_SOFTWARE", "LP_NUM_THREADS")
        ),
        *(
            (name, True)
            for name in ("OPENBLAS_NUM_THREADS", "LD_LIBRARY_PATH", "PYTHONHASHSEED", "MY_MODEL", "ATLAS_1")
        ),
        *(
            (name, False)
            for name in (*SECRETS, "PATH_TO_KEY", "GITHUB_TOKEN", "MY_MODELS", "NO_PROXY", "TORCH_HUB_AUTH")
        ),
    ],
)
def test_which_variables_pass(name: str, passes: bool) -> None:
    """What decoding and drawing need passes, and what the user names; nothing else does."""
    environment = {name: "x", PASS_ENV: " MY_MODEL, ATLAS_*,,"}
    assert (name in of_renders(environment)) is passes


def test_filtering_twice_is_filtering_once() -> None:
    """A runner hands on what it got."""
    environment = {"PATH": "/bin", "MINE": "1", PASS_ENV: "MINE", **SECRETS}
    assert (
        of_renders(of_renders(environment))
        == of_renders(environment)
        == {"PATH": "/bin", "MINE": "1", PASS_ENV: "MINE"}
    )


def test_proxies_go_with_the_order(tmp_path: Path) -> None:
    """A runner gets the proxies beside its order, and an order without them is an order too."""
    order = make_order(FsspecStorage(tmp_path))
    line = for_the_runner(order, {**SECRETS, "HTTP_PROXY": "http://proxy", "PROXY": "no"})
    assert RenderOrder.model_validate_json(line) == order
    assert proxies_of(line.encode()) == {"https_proxy": SECRETS["https_proxy"], "HTTP_PROXY": "http://proxy"}
    assert proxies_of(order.model_dump_json().encode()) == {}
