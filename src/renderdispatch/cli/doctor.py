"""Does this machine have everything that a render needs?

Each check does what a render would do; it says what is wrong and what to do about it.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
import time
import uuid
import wave
from contextlib import closing, suppress
from datetime import timedelta
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import click
from attrs import evolve
from pydantic import SecretStr

from renderdispatch.cli.bucket import check_access, check_urls, examine_bucket
from renderdispatch.cli.finding import Finding, Verdict, found, show
from renderdispatch.cli.machine import examine_probe
from renderdispatch.cli.modal import examine_modal
from renderdispatch.cli.options import json_option
from renderdispatch.cli.requirements import outdated
from renderdispatch.engine.policies import describe_keep, describe_policy, unknown_backends
from renderdispatch.errors import RenderDispatchError
from renderdispatch.messages import JobStatus, Limits, Output
from renderdispatch.protocols import BackendCall, CallStatus, JobQuery, SupportsCounts, SupportsFind
from renderdispatch.runner.probe import probe
from renderdispatch.runner.renderers import find_renderer, scene_names
from renderdispatch.storage.r2 import R2Storage
from renderdispatch.wiring import (
    Settings,
    from_settings,
    open_backend,
    open_keep,
    open_policy,
    open_storage,
    open_store,
    read_settings,
    usable_home,
)

_NEEDED: Final = {"render": ("numpy", "av", "PIL"), "cli": ("click", "rich")}
_HERE: Final = ("local", "inline")
"""The backends that render on this machine."""
_LOW_DISK_BYTES: Final = 2 << 30
_RENDER_S: Final = 60.0
_PROBE_S: Final = 30.0
_SOUND_HZ: Final = 8000


@click.command(short_help="Check that this machine can render.")
@click.option("--origin", metavar="URL", help="Also check that browsers may upload to the bucket from pages there.")
@json_option
def doctor(*, origin: str | None, as_json: bool) -> int:
    """Check that this machine can render. If Modal is a backend, check Modal too.

    The exit status is 1 if something is broken.
    """
    return show(examine(origin=origin), as_json=as_json)


def examine(*, origin: str | None = None) -> list[Finding]:
    """Run every check, also after one has failed.

    Args:
        origin: The origin of a page that uploads to the bucket from browsers, such as ``https://app.example``.
    """
    try:
        settings = read_settings()
    except RenderDispatchError as error:
        return [Finding("settings", "broken", str(error))]
    storage = _storage(settings, origin)
    stored = all(finding.status != "broken" for finding in storage)
    return [
        found("python", _python),
        found("packages", lambda: _packages(settings)),
        found("home", lambda: _home(settings)),
        found("disk", lambda: _disk(settings)),
        found("job store", lambda: _store(settings)),
        found("queue", lambda: _queue(settings)),
        found("keep", lambda: ("ok", describe_keep(open_keep(settings)))),
        *storage,
        *_backends(settings),
        *_renders(settings, stored=stored),
        found("scenes", _scenes),
        *examine_probe(probe(timeout_s=_PROBE_S)),
    ]


# --- the checks -----------------------------------------------------------------------------------


def _python() -> Verdict:
    text = f"{platform.python_implementation()} {platform.python_version()} on {platform.system()}"
    tested = platform.system() in {"Linux", "Darwin"}
    return ("ok", text) if tested else ("note", f"{text}, where renderdispatch is not tested")


def _packages(settings: Settings) -> Verdict:
    """Find the extras, without which nothing is drawn here, and what is older than it may be."""
    missing = ",".join(extra for extra, modules in _NEEDED.items() if not all(map(find_spec, modules)))
    if missing and _renders_here(settings):
        return "broken", f"'{missing}' missing: pip install 'renderdispatch[{missing}]'"
    if wrong := ", ".join(outdated()):
        return "broken", f"this library needs {wrong}; install that version"
    return "ok", "all have a version that is supported"


def _home(settings: Settings) -> Verdict:
    usable_home(settings)
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=settings.home).close()
    except OSError as error:
        step = "set RENDERDISPATCH_HOME to a folder that you can write to"
        return "broken", f"{settings.home} cannot be written ({error.strerror}); {step}"
    return "ok", str(settings.home)


def _disk(settings: Settings) -> Verdict:
    existing = next(folder for folder in (settings.home, *settings.home.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    text = f"{free / 2**30:.1f} GiB are free"
    if free < _LOW_DISK_BYTES:
        return "note", f"only {text}; 'renderdispatch jobs rm --older-than 7d' frees some"
    return "ok", text


def _store(settings: Settings) -> Verdict:
    with closing(open_store(settings)) as store:
        name = type(store).__name__
        if isinstance(store, SupportsCounts):
            return "ok", f"{name}: {sum(store.counts().values())} jobs"
        return "ok", f"{name} can be read: {'jobs' if store.query(JobQuery(limit=1)).items else 'no jobs yet'}"


def _queue(settings: Settings) -> Verdict:
    policy = open_policy(settings)
    if unknown := unknown_backends(policy, settings.backends):
        return "note", f"RENDERDISPATCH_QUEUE limits {', '.join(unknown)}, which RENDERDISPATCH_BACKENDS does not have"
    return "ok", describe_policy(policy)


def _storage(settings: Settings, origin: str | None) -> list[Finding]:
    try:
        storage = open_storage(settings)
    except RenderDispatchError as error:
        return [Finding("storage", "broken", str(error))]
    with closing(storage):
        if isinstance(storage, R2Storage):
            return examine_bucket(storage, origin=origin)
        key = f"doctor/{uuid.uuid4().hex}"
        findings = [found("storage", lambda: check_access(storage, key))]
        if settings.objects_url is not None and findings[0].status == "ok":
            findings.append(found("signed get", lambda: check_urls(storage, key)))
        return findings


def _backends(settings: Settings) -> list[Finding]:
    """Check that the settings fit together, and contact what renders elsewhere."""

    def build() -> Verdict:
        from_settings(settings, worker=False).close()
        chain = f"; failover from {' to '.join(settings.failover)}" if settings.failover else ""
        return "ok", f"{', '.join(settings.backends)}{chain}"

    findings = [found("backends", build)]
    if "modal" in settings.backends:
        findings += [evolve(finding, check=f"modal {finding.check}") for finding in examine_modal(settings)]
    if "http" in settings.backends:
        findings.append(found("http", lambda: _http(settings)))
    return findings


def _http(settings: Settings) -> Verdict:
    """Ask the service for a render that was never started: it reads the credentials, and has nothing to do."""
    unknown = f"doctor-{uuid.uuid4().hex}"
    with closing(open_backend("http", settings)) as backend:
        if isinstance(backend, SupportsFind):
            backend.find(job_id=unknown, token=unknown)
            return "ok", f"{backend!r} answers, and accepts the credentials"
        if backend.poll(BackendCall(unknown)).status is not CallStatus.MISSING:
            return "broken", f"{backend!r} knows a render that was never started; is its URL right?"
    return "ok", f"{backend!r} answers, and knows no render that was never started; a wrong path would say the same"


# --- a render -------------------------------------------------------------------------------------


def _renders_here(settings: Settings) -> bool:
    return not set(_HERE).isdisjoint(settings.backends)


def _renders(settings: Settings, *, stored: bool) -> list[Finding]:
    return [found("render", lambda: _render(settings, stored=stored))] if _renders_here(settings) else []


def _render(settings: Settings, *, stored: bool) -> Verdict:
    """Render a second of sound as every job is rendered, from submit to the stored video; then delete the job.

    The job is recorded in memory alone.

    Args:
        stored: Whether the storage works; else a temporary folder takes its place.
    """
    backend = next(name for name in settings.backends if name in _HERE)
    changes = {"store": SecretStr("memory"), "backends": (backend,), "failover": (), "webhook_url": None}
    picture = Output(width=64, height=64, fps=Fraction(10))
    limits = Limits(max_attempts=1, total_timeout=timedelta(seconds=_RENDER_S))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="renderdispatch-doctor-") as folder:
        if not stored:
            changes |= {"home": Path(folder), "storage": None, "objects_url": None}
        song = _write_sound(Path(folder, "doctor.wav"))
        with closing(from_settings(settings.model_copy(update=changes), worker=True)) as service:
            job = service.submit(song, output=picture, duration=1, limits=limits).wait(2 * _RENDER_S)
            seconds = time.monotonic() - began
            with suppress(RenderDispatchError):  # why it failed counts more
                service.delete(job.id)
    if job.status is JobStatus.COMPLETE:
        return "ok", f"a second of sound became a video in {seconds:.1f} s"
    assert job.error is not None
    libraries = job.error.code.partition(".")[0] in {"scene", "renderer", "encode"}  # the scene is known to be right
    step = "; reinstall 'renderdispatch[render]'" if libraries else ""
    return "broken", f"a render failed: {job.error.message} ({job.error.code}){step}"


def _write_sound(path: Path) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, _SOUND_HZ, _SOUND_HZ, "NONE", ""))
        file.writeframes(b"".join((n % 80 * 300).to_bytes(2, "little") for n in range(_SOUND_HZ)))
    return path


# --- what is there --------------------------------------------------------------------------------


def _scenes() -> Verdict:
    broken = []
    for name in scene_names():
        try:
            find_renderer(name)
        except RenderDispatchError as error:
            broken.append(f"{name}: {error}")
    return ("broken", "; ".join(broken)) if broken else ("ok", ", ".join(scene_names()))
