"""``doctor``: what would keep a render from working is found by doing what a render does."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from renderdispatch.backends.inline import InlineBackend
from renderdispatch.cli import doctor
from renderdispatch.cli.doctor import examine
from renderdispatch.cli.finding import Finding
from renderdispatch.cli.requirements import outdated
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.storage.signing import SignedUrls
from renderdispatch.web.asgi import AsgiApp
from renderdispatch.web.objects import asgi_app
from tests.support.command_line import CommandLine, as_an_ordinary_user
from tests.support.http_services import TOKEN, answering, rendering, service, uvicorn_in_a_thread

_SECRET = "s" * 24


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``settings(BACKENDS=...)`` sets variables; the home is an empty folder."""

    def change(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(f"RENDERDISPATCH_{name}", value)

    change(HOME=str(tmp_path / "home"))
    return change


@pytest.fixture
def no_render(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the render on this machine, which other tests make."""
    monkeypatch.setattr(doctor, "_renders", lambda *_, **__: [])


def _found(check: str) -> Finding:
    (finding,) = (finding for finding in examine() if finding.check == check)
    return finding


# --- this machine ---------------------------------------------------------------------------------


def test_doctor_finds_nothing_wrong_here(cli: CommandLine) -> None:
    """Every check is made and says what it found; what was written is removed."""
    ran = cli("doctor", "--json")
    findings = {found["check"]: found for found in map(json.loads, ran.out.splitlines())}
    assert ran.status == 0, ran.out
    checks = [
        "python",
        "packages",
        "home",
        "disk",
        "job store",
        "queue",
        "keep",
        "storage",
        "backends",
        "render",
        "scenes",
    ]
    checks += ["gpu", "opengl", "vulkan", "encoder"]
    assert list(findings) == checks
    assert re.fullmatch(r"a second of sound became a video in \d+\.\d s", findings["render"]["said"])
    left = [path for path in cli.home.rglob("*") if path.is_file() and "jobs.db" not in path.name]
    assert left == []


def test_doctor_says_what_is_broken(cli: CommandLine, tmp_path: Path) -> None:
    """A home that cannot be written is named with the way out, a plug-in that cannot be imported with the reason.

    The exit status is 1, the other checks are made, and ``scenes`` still lists the plug-in.
    """
    (cli.plugins / "test_scenes.py").write_text("raise RuntimeError('no such device')\n")
    tmp_path.chmod(0o500)
    try:
        ran = cli("doctor", preexec_fn=as_an_ordinary_user())
    finally:
        tmp_path.chmod(0o700)
    assert ran.status == 1
    assert "set RENDERDISPATCH_HOME to a folder that this user may write to" in ran.out
    assert "no such device" in ran.out
    assert "a second of sound became a video" in ran.out
    assert ran.err == ""
    assert "no such device" in cli("scenes").out


@pytest.mark.parametrize(
    "library",
    ["from av.nowhere import nothing\n", "import os\nos.abort()\n"],
    ids=["of another version", "that crashes"],
)
def test_doctor_meets_what_a_render_meets(cli: CommandLine, library: str) -> None:
    """A library that fails in the renderer's process is found there, and its failure is told with the next step."""
    (cli.plugins / "numpy.py").write_text(library)
    ran = cli("doctor", "--json")
    (found,) = (line for line in map(json.loads, ran.out.splitlines()) if line["check"] == "render")
    assert (ran.status, found["status"], ran.err) == (1, "broken", "")
    assert re.search(r"\((scene|renderer)\.\w+\); reinstall 'renderdispatch\[render\]'", found["said"])


# --- what is installed ----------------------------------------------------------------------------


@pytest.fixture
def old_package(cli: CommandLine) -> Path:
    """A package that claims a version from before the oldest that is supported."""
    metadata = cli.plugins / "pydantic_settings-2.4.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: pydantic-settings\nVersion: 2.4.0\n")
    return cli.plugins


def test_packages_are_as_new_as_they_must_be(monkeypatch: pytest.MonkeyPatch, old_package: Path) -> None:
    """One that is older is named with the versions that fit and its own."""
    assert outdated() == []
    monkeypatch.syspath_prepend(old_package)
    (old,) = outdated()
    assert re.fullmatch(r"pydantic-settings>=[\d.]+ \(2\.4\.0 is installed\)", old)


def test_an_import_that_fails_names_old_packages(cli: CommandLine, old_package: Path) -> None:
    """Every command that cannot start says which package is too old."""
    (old_package / "pydantic_settings.py").write_text("")
    ran = cli("jobs")
    assert ran.status == 1
    assert "it needs pydantic-settings>=" in ran.said_one_error()


# --- other machines -------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_render")
def test_backend_and_storage_that_do_not_go_together(
    settings: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What every render would be refused for is found, with the settings that mend it."""
    monkeypatch.setattr(doctor, "check_urls", lambda *_: ("ok", "not contacted"))
    with service(answering(404)) as remote:
        settings(BACKENDS="http", HTTP_URL=remote.url)
        found = _found("backends")
        assert found.status == "broken"
        assert "RENDERDISPATCH_STORAGE=r2://bucket" in found.said
        settings(OBJECTS_URL="https://app.example.com/objects", OBJECTS_SECRETS=_SECRET)
        assert Finding("backends", "ok", "http") in examine()


@pytest.mark.usefixtures("no_render")
@pytest.mark.parametrize(
    ("status", "body", "verdict", "said"),
    [
        (404, None, "ok", "answers, and knows no render that was never started"),
        (200, {"status": "missing"}, "ok", "answers, and knows no render that was never started"),
        (401, None, "broken", "check the token"),
        (202, None, "broken", "is its URL right?"),
        (200, b"<html>", "broken", "not in the form that this backend reads"),
        (500, None, "broken", "answered 500"),
    ],
)
def test_the_render_service_is_contacted(
    settings: Callable[..., None], status: int, body: object, verdict: str, said: str
) -> None:
    """It is asked for a render that it cannot know. The token is sent and not shown, and nothing is started."""
    with service(answering(status, body)) as remote:
        settings(BACKENDS="http", HTTP_URL=remote.url, HTTP_TOKEN=TOKEN)
        found = _found("http")
    (asked,) = remote.asked
    assert asked.line.startswith("GET /renders/doctor-")
    assert asked.headers["authorization"] == f"Bearer {TOKEN}"
    assert (found.status, said in found.said) == (verdict, True), found
    assert TOKEN not in found.said


@pytest.mark.usefixtures("no_render")
def test_a_keyed_render_service_accepts_the_token(settings: Callable[..., None]) -> None:
    """The service of this library proves that path and token are right; with another token it is denied."""
    with rendering(InlineBackend()) as url:
        settings(BACKENDS="http", HTTP_URL=url, HTTP_TOKEN=TOKEN, HTTP_KEYED="1")
        assert _found("http") == Finding(
            "http", "ok", f"KeyedHttpBackend({url!r}) answers, and accepts the credentials"
        )
        settings(HTTP_TOKEN="another")
        assert "answered 401" in _found("http").said


@pytest.mark.usefixtures("no_render")
def test_a_render_service_that_is_away(settings: Callable[..., None]) -> None:
    """It is named, in seconds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    settings(BACKENDS="http", HTTP_URL=f"http://127.0.0.1:{port}/renders")
    assert _found("http").said.startswith(f"the render service at http://127.0.0.1:{port} ")


def test_only_what_renders_here_must_be_able_to(settings: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """An application whose renders are elsewhere needs no renderer, and none is tried."""
    monkeypatch.setattr(doctor, "_NEEDED", {"render": ("no_such_library",)})
    assert "pip install 'renderdispatch[render]'" in _found("packages").said
    with service(answering(404)) as remote:
        settings(BACKENDS="http", HTTP_URL=remote.url)
        findings = {finding.check: finding.status for finding in examine()}
    assert findings["packages"] == "ok"
    assert "render" not in findings


@pytest.mark.usefixtures("no_render")
def test_urls_that_the_application_serves_are_read(settings: Callable[..., None], tmp_path: Path) -> None:
    """Where signed URLs are the application's, one is read; if the application is away, that is said."""
    settings(STORAGE=str(tmp_path / "objects"), OBJECTS_SECRETS=_SECRET)

    def app(base: str) -> AsgiApp:
        settings(OBJECTS_URL=base)
        urls = SignedUrls(base, _SECRET)
        return asgi_app(FsspecStorage(tmp_path / "objects", urls=urls), urls)

    with uvicorn_in_a_thread(app):
        assert _found("signed get").status == "ok"
    found = _found("signed get")
    assert found.status == "broken"
    assert "is the application that serves renderdispatch.web.objects running" in found.said
    assert "signature" not in found.said
