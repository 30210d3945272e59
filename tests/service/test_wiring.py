"""Does the embedded default need nothing, and does the environment say what it says?"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

import renderdispatch
from renderdispatch import ConfigurationError, JobStatus, from_settings
from renderdispatch.errors import InvalidRequestError, MissingExtraError
from renderdispatch.modal_app.deployment import Deployment
from renderdispatch.protocols import Locality
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import registered_scenes
from renderdispatch.wiring import Settings, check_names, open_storage, read_settings


def test_the_embedded_default(tmp_path: Path) -> None:
    """`local()` makes its home when it is used, keeps everything there, and leaves no thread."""
    before = set(threading.enumerate())
    home = tmp_path / "some" / "home"
    with registered_scenes(tmp_path / "scenes"):
        with renderdispatch.local(home) as service:
            handle = service.submit(b"RIFF", scene="fake")
            assert handle.wait(timeout=30).status is JobStatus.COMPLETE
        with renderdispatch.local(home, worker=False) as again:
            assert again.get(handle.id).status is JobStatus.COMPLETE
            assert again.download_url(handle.id).startswith("file://")
    assert (home / "jobs.db").exists()
    assert set(threading.enumerate()) <= before  # others may end meanwhile


def test_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``RENDERDISPATCH_...`` variables move the home and choose the parts."""
    monkeypatch.setenv("RENDERDISPATCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RENDERDISPATCH_STORE", "memory")
    monkeypatch.setenv("RENDERDISPATCH_BACKENDS", "inline, local")
    monkeypatch.setenv("RENDERDISPATCH_WORKER", "false")
    service = from_settings()
    assert "MemoryJobStore" in repr(service)
    assert list(service._engine.parts.backends) == ["inline", "local"]
    service.close()


def test_backends_far_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``modal`` and ``http`` are made as the settings say; an empty variable is none."""
    settings = {
        "HOME": str(tmp_path),
        "STORE": "memory",
        "STORAGE": "r2://renders",
        "R2_ACCOUNT_ID": "0" * 32,
        "R2_ACCESS_KEY_ID": "someone",
        "R2_SECRET_ACCESS_KEY": "do-not-tell",
        "BACKENDS": "modal,http",
        "MODAL_APP": "ours",
        "MODAL_FUNCTION": "draw",
        "MODAL_ENVIRONMENT": "staging",
        "MODAL_VERSION": "3",
        "MODAL_GPU": "L4,A10",  # what was deployed
        "HTTP_URL": "https://gpu.example.com/",
        "HTTP_TOKEN": "do-not-tell",
        "HTTP_KEYED": "1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"RENDERDISPATCH_{name}", value)
    with closing(from_settings(worker=False)) as service:
        backends = service._engine.parts.backends
        assert repr(backends["modal"]) == "ModalBackend('ours', 'draw', environment='staging', version=3)"
        assert type(backends["http"]).__name__ == "KeyedHttpBackend"
        assert "do-not-tell" not in repr(service) + repr(backends)


def test_http_needs_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the variable."""
    monkeypatch.setenv("RENDERDISPATCH_BACKENDS", "http")
    with pytest.raises(ConfigurationError, match="RENDERDISPATCH_HTTP_URL"):
        from_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BACKENDS", "lokal"),
        ("BACKENDS", ","),
        ("LEASE_S", "soon"),
        ("LEASE_S", "0"),
        ("STORE", "nosuchdb://user:do-not-tell@host/db"),
        ("STORAGE", "nosuchfs://user:do-not-tell@host/bucket"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A wrong variable is one clear error, which quotes no secret."""
    monkeypatch.setenv("RENDERDISPATCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(f"RENDERDISPATCH_{name}", value)
    with pytest.raises((ConfigurationError, renderdispatch.RenderDispatchError)) as refused:
        from_settings()
    assert "do-not-tell" not in str(refused.value)


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As compose files write variables that have no value: each setting keeps its default."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"RENDERDISPATCH_{name.upper()}", raising=False)
    unset = read_settings()
    for name in Settings.model_fields:
        monkeypatch.setenv(f"RENDERDISPATCH_{name.upper()}", "")
    assert read_settings() == unset


@pytest.mark.parametrize("blank", [" ", "\n"])
def test_a_blank_variable_is_not_set(monkeypatch: pytest.MonkeyPatch, blank: str) -> None:
    """As a template writes what it has no value for."""
    unset = read_settings()
    for name in Settings.model_fields:
        monkeypatch.setenv(f"RENDERDISPATCH_{name.upper()}", blank)
    assert read_settings() == unset


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("RENDERDISPATCH_BAKENDS", "RENDERDISPATCH_BACKENDS"),
        ("RENDERDISPATCH_BACKEND", "RENDERDISPATCH_BACKENDS"),
        ("renderdispatch_stroage", "RENDERDISPATCH_STORAGE"),
        ("RENDER_DISPATCH_HOME", "RENDERDISPATCH_HOME"),
        ("RENDERDISPACH_STORE", "RENDERDISPATCH_STORE"),
        ("RENDERDISPATCH_MODAL_GPUS", "RENDERDISPATCH_MODAL_GPU"),
        ("RENDERDISPATCH_DATABASE_URL", "docs/reference.md"),
    ],
)
def test_a_misspelt_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, meant: str) -> None:
    """It is refused with the near match, rather than left out: the renders would go elsewhere."""
    monkeypatch.setenv(name, "modal")
    starts: list[Callable[[], object]] = [from_settings, lambda: renderdispatch.local(tmp_path)]
    for start in starts:
        with pytest.raises(ConfigurationError, match=f"^{name} is not a setting; .*{meant}") as refused:
            start()
        assert refused.value.code == "configuration.unknown"
    monkeypatch.setenv(name, "")
    read_settings()


@pytest.mark.parametrize(
    "name",
    [
        "RENDERDISPATCH_SERVICE_HOST",
        "RENDERDISPATCH_SERVICE_PORT_HTTP",
        "RENDERDISPATCH_PORT",
        "RENDERDISPATCH_PORT_8000_TCP_ADDR",
        "RENDERDISPATCH_STORE_PORT_5432_TCP",  # of a service that is called renderdispatch-store
        "RENDERDISPATCH_MODAL_SCALEDOWN_WINDOW",
        "RENDERDISPATCH_LIVE_WEBHOOK_URL",
        "RENDER_SERVICE_ID",
        "RENDERER",
    ],
)
def test_what_others_set_is_left_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Kubernetes describes services by variables of their names, deployments and tests have their own."""
    monkeypatch.setenv(name, "x")
    read_settings()


def test_the_variables_of_deployments_are_known() -> None:
    """All that `Deployment` reads can be set where a service is made."""
    check_names({f"RENDERDISPATCH_MODAL_{name.upper()}": "x" for name in Deployment.model_fields})


# --- the home -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["50%20off", "what?x=1", "a#b", "simple::memory:", "file:x", "new\nline", "~me", "ü"])
def test_a_home_of_any_name(tmp_path: Path, name: str) -> None:
    """A path is not a URL: jobs and objects are in this folder, and nothing is beside it."""
    home = tmp_path / name
    with renderdispatch.local(home, worker=False) as service:
        job_id = service.submit(b"RIFF").id
        assert service.create_upload(size=1, content_type="audio/wav").put.url.startswith(home.as_uri())
    with renderdispatch.local(str(home), worker=False) as again:
        assert again.get(job_id).status is JobStatus.PENDING
    assert {"jobs.db", "objects"} <= {path.name for path in home.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.fixture
def no_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose user has no entry and no variable for a home, as in containers."""

    def unknown(_: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_DATA_HOME", "RENDERDISPATCH_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("home", [None, "", "."])
def test_without_a_user_the_home_has_to_be_named(
    no_user: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    """The error says what to set, and nothing is written; a home, or parts that need none, are enough."""
    monkeypatch.chdir(tmp_path)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    for start in (from_settings, renderdispatch.local):
        with pytest.raises(ConfigurationError, match="set RENDERDISPATCH_HOME"):
            start()
    assert list(tmp_path.iterdir()) == []
    renderdispatch.local(tmp_path / "home").close()
    _set(monkeypatch, STORE="memory", STORAGE=str(tmp_path / "objects"))
    from_settings().close()


def test_an_empty_home_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's entry then has it."""
    monkeypatch.delenv("RENDERDISPATCH_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", "")
    monkeypatch.delenv("HOME", raising=False)
    expected = read_settings().home
    assert expected.is_relative_to(pwd.getpwuid(os.getuid()).pw_dir)
    monkeypatch.setenv("HOME", "")
    assert read_settings().home == expected


@pytest.mark.parametrize(("data", "expected"), [("/data", "/data/renderdispatch"), ("data", None), ("", None)])
def test_a_relative_data_folder_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, expected: str | None
) -> None:
    """As the specification of these variables says: it would be another home in each working directory."""
    monkeypatch.delenv("RENDERDISPATCH_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", data)
    home = read_settings().home
    assert home == Path(expected) if expected else home.is_relative_to(tmp_path)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.write_text(""), "not a folder"),
        (lambda path: path.symlink_to("nowhere"), "not a folder"),
        (lambda path: path.parent.joinpath("file").write_text(""), "not a folder"),
    ],
)
def test_a_home_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object], why: str
) -> None:
    """It is refused at once, with the variable to set."""
    make(tmp_path / "home")
    _set(monkeypatch, HOME=str(tmp_path / ("file/home" if (tmp_path / "file").exists() else "home")))
    for worker in (False, True):
        with pytest.raises(ConfigurationError, match=f"{why}; set RENDERDISPATCH_HOME"):
            from_settings(worker=worker)


def test_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is relative is refused with a word of advice; what is absolute works."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    _set(monkeypatch, HOME="relative")
    calls: dict[str, Callable[[], object]] = {
        "RENDERDISPATCH_HOME": from_settings,
        "a home": lambda: renderdispatch.local("relative"),
        "a store": lambda: SqlJobStore(Path("jobs.db")),
        "a store's URL": lambda: SqlJobStore("sqlite:///jobs.db"),
        "a storage": lambda: FsspecStorage("objects"),
    }
    for call in calls.values():
        with pytest.raises(ConfigurationError, match=r"working directory is gone; .* an absolute path"):
            call()
    monkeypatch.delenv("RENDERDISPATCH_HOME")
    with registered_scenes(tmp_path / "scenes"), renderdispatch.local(tmp_path / "home") as service:
        assert service.submit(b"RIFF", scene="fake").wait(timeout=30).status is JobStatus.COMPLETE
        with pytest.raises(InvalidRequestError, match="does not exist"):
            service.submit(Path("song.wav"))


def test_a_user_who_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """``~nobody-of-this-name`` names no folder."""
    _set(monkeypatch, HOME="~nobody-of-this-name/renders")
    with pytest.raises(ConfigurationError, match="has no home folder; write an absolute path"):
        from_settings()


@pytest.mark.parametrize("backend", ["local", "inline"])
@pytest.mark.parametrize("missing", ["av", "numpy", "PIL"])
def test_without_the_render_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, missing: str) -> None:
    """A process that would render is refused at once, with what to install; one that only submits is not."""
    monkeypatch.setitem(sys.modules, missing, None)
    _set(monkeypatch, HOME=str(tmp_path), BACKENDS=backend)
    with pytest.raises(MissingExtraError, match=r"pip install 'renderdispatch\[render\]'"):
        from_settings()
    with pytest.raises(MissingExtraError):
        renderdispatch.local(tmp_path)
    from_settings(worker=False).close()
    _set(monkeypatch, BACKENDS="http", HTTP_URL="https://gpu.example.com")
    _set(monkeypatch, STORAGE="r2://renders", R2_ACCOUNT_ID="0" * 32, R2_ACCESS_KEY_ID="a", R2_SECRET_ACCESS_KEY="b")
    from_settings().close()


def test_a_backend_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point names a backend, by a callable without arguments; what it returns must be one."""
    metadata = tmp_path / "other-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    points = "theirs = renderdispatch.backends.inline:InlineBackend\nwrong = builtins:dict\n"
    (metadata / "entry_points.txt").write_text(f"[renderdispatch.backends]\n{points}")
    monkeypatch.syspath_prepend(tmp_path)
    _set(monkeypatch, HOME=str(tmp_path), BACKENDS="theirs")
    with closing(from_settings(worker=False)) as service:
        assert "InlineBackend" in repr(service._engine.parts.backends["theirs"])
    _set(monkeypatch, BACKENDS="wrong")
    with pytest.raises(ConfigurationError, match=r"'wrong' \(builtins:dict\) returned dict"):
        from_settings(worker=False)


def test_importing_is_cheap() -> None:
    """The service can be imported without any adapter."""
    code = "import sys, renderdispatch.service; print([m for m in ('sqlalchemy', 'fsspec', 'numpy', 'av') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


_ACCOUNT = "0123456789abcdef" * 2


def _set(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"RENDERDISPATCH_{name}", value)


_R2 = {
    "STORAGE": "r2://renders/some/prefix",
    "R2_ACCOUNT_ID": _ACCOUNT,
    "R2_ACCESS_KEY_ID": "id",
    "R2_SECRET_ACCESS_KEY": "do-not-tell",
}


def test_a_bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``r2://bucket/prefix`` and the R2 variables give an `R2Storage`; empty ones are unset."""
    _set(monkeypatch, HOME=str(tmp_path), **_R2, R2_JURISDICTION="eu", R2_ENDPOINT_URL="", R2_PUBLIC_URL="")
    settings = read_settings()
    with closing(open_storage(settings)) as storage:
        url = f"https://{_ACCOUNT}.eu.r2.cloudflarestorage.com"
        assert repr(storage) == f"R2Storage('renders', endpoint_url='{url}', prefix='some/prefix/')"
    assert "do-not-tell" not in repr(settings)


@pytest.mark.parametrize("name", ["R2_ACCOUNT_ID", "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY"])
def test_a_bucket_without_all_that_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """The error names the variable that is missing."""
    _set(monkeypatch, HOME=str(tmp_path), **{**_R2, name: ""})
    with pytest.raises(ConfigurationError, match=f"needs RENDERDISPATCH_{name}") as refused:
        from_settings()
    assert "do-not-tell" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"STORAGE": "r2://id:do-not-tell@renders"}, "RENDERDISPATCH_R2_ENDPOINT_URL"),
        ({"STORAGE": "r2://"}, "not a bucket's name"),
        ({"STORAGE": "r2://renders/../up"}, "prefix"),
        ({"R2_JURISDICTION": "us"}, "r2_jurisdiction"),
        ({"R2_ENDPOINT_URL": "https://s3.example.com"}, "either account_id"),
        ({"OBJECTS_URL": "https://app.example/objects"}, "leave RENDERDISPATCH_OBJECTS_URL unset"),
    ],
    ids=str,
)
def test_a_bucket_that_makes_no_sense(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: dict[str, str], said: str
) -> None:
    """What is wrong is said, and no secret is quoted."""
    _set(monkeypatch, HOME=str(tmp_path), **{**_R2, **changes})
    with pytest.raises(ConfigurationError, match=said) as refused:
        from_settings()
    assert "do-not-tell" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "reach"),
    [
        ("https://app.example/objects", Locality.WORLD),
        ("http://localhost:8000/objects", Locality.MACHINE),
        ("http://127.0.0.1:8000/objects", Locality.MACHINE),
        ("http://[::1]:8000/objects", Locality.MACHINE),
    ],
)
def test_signed_urls_of_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str, reach: Locality) -> None:
    """With ``OBJECTS_URL`` and secrets a folder signs http URLs, which reach as far as their host does."""
    _set(monkeypatch, HOME=str(tmp_path), OBJECTS_URL=url, OBJECTS_SECRETS=f"{'new' * 8} {'old' * 8}")
    with closing(open_storage(read_settings())) as storage:
        assert storage.sign_get("key", expires_in=timedelta(hours=1)).startswith(f"{url}/key?expires=")
        assert storage.locality is reach


@pytest.mark.parametrize(("secrets", "said"), [("", "RENDERDISPATCH_OBJECTS_SECRETS"), ("short", "24 bytes")])
def test_signed_urls_without_good_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, secrets: str, said: str
) -> None:
    """URLs are not signed with what can be guessed."""
    _set(monkeypatch, HOME=str(tmp_path), OBJECTS_URL="https://app.example/objects", OBJECTS_SECRETS=secrets)
    with pytest.raises(ConfigurationError, match=said):
        from_settings()


_LOCAL = """
import sys
from renderdispatch import local
names = ("s3fs", "botocore", "modal", "sqlalchemy", "fsspec", "httpx", "numpy", "av")
print([name for name in names if name in sys.modules])
local(sys.argv[1], worker=False).close()
print([name for name in ("s3fs", "botocore", "modal", "httpx", "numpy", "av") if name in sys.modules])
"""


def test_adapters_are_imported_when_they_are_chosen(tmp_path: Path) -> None:
    """`local` is imported without any adapter, and a service over a folder waits for no library of the cloud."""
    command = [sys.executable, "-c", _LOCAL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[]"]
