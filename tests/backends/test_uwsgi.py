"""Do renders run where Python is embedded in the server?"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from renderdispatch.render.music import compose
from renderdispatch.testing import eventually
from tests.support.needs import need_uwsgi
from tests.support.ports import free_port

_APP = """
    from pathlib import Path
    import renderdispatch

    service = renderdispatch.local()

    def application(environ, start_response):
        small = renderdispatch.Output(width=64, height=36, fps=10)
        job = service.submit(Path("song.wav"), output=small, idempotency_key="one").job
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"{job.status} {job.error}".encode()]
"""


@contextmanager
def served(folder: Path, *options: str) -> Iterator[httpx.Client]:
    """Serve a small application by uWSGI."""
    (folder / "app.py").write_text(textwrap.dedent(_APP))
    compose(folder / "song.wav", seconds=1.0)
    port, standard = free_port(), {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    paths = [path for path in sys.path if path and not path.endswith(".zip") and not path.startswith(tuple(standard))]
    paths += [path for path in sys.path if "site-packages" in path]
    command = ["uwsgi", "--plugin", "python3", "--http-socket", f"127.0.0.1:{port}", "--master", "--die-on-term"]
    command += [*options, "--wsgi-file", "app.py", *(f"--pythonpath={path}" for path in dict.fromkeys(paths))]
    environment = {**os.environ, "RENDERDISPATCH_HOME": str(folder / "home"), "PYTHONDONTWRITEBYTECODE": "1"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        eventually(lambda: "spawned uWSGI worker" in (folder / "log").read_text() or server.poll() is not None)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            yield client
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.long
@pytest.mark.parametrize("options", [("--lazy-apps",), ()], ids=["lazy", "forked"])
def test_a_render_under_uwsgi(options: tuple[str, ...], tmp_path: Path) -> None:
    """``sys.executable`` is uWSGI itself there; renders start all the same, also in workers that were forked."""
    need_uwsgi()
    with served(tmp_path, "--enable-threads", *options) as client:
        answers: list[str] = []

        def ended() -> bool:
            answers.append(client.get("/").text)
            return not answers[-1].startswith(("pending", "processing"))

        eventually(ended)
        assert answers[-1] == "complete None", (tmp_path / "log").read_text()


@pytest.mark.long
def test_uwsgi_without_threads(tmp_path: Path) -> None:
    """The application is not served where its worker would never run, and the log says what to set."""
    need_uwsgi()
    with served(tmp_path, "--lazy-apps") as client:
        assert client.get("/").status_code == 500
        assert "--enable-threads" in (tmp_path / "log").read_text()
