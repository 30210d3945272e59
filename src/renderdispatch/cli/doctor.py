"""Is everything here that a render needs?

Each check does what a render would do, and says in words what is wrong and what to do about it.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import uuid
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import click
from attrs import evolve

from renderdispatch.cli.bucket import examine_bucket
from renderdispatch.cli.finding import Finding, found, show
from renderdispatch.cli.modal import examine_modal
from renderdispatch.cli.options import json_option
from renderdispatch.errors import RenderDispatchError
from renderdispatch.protocols import JobQuery, StorageAdapter, SupportsCounts
from renderdispatch.runner.renderers import find_renderer, scene_names
from renderdispatch.storage.r2 import R2Storage
from renderdispatch.wiring import Settings, from_settings, open_storage, open_store, read_settings

_NEEDED: Final = {"render": ("numpy", "av"), "cli": ("click", "rich")}
_LOW_DISK_BYTES: Final = 2 << 30
_ENCODER_S: Final = 60.0

_ENCODE_A_FRAME: Final = """
import io, av, numpy
with av.open(io.BytesIO(), "w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=30)
    stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
    frame = av.VideoFrame.from_ndarray(numpy.zeros((64, 64, 3), numpy.uint8), format="rgb24")
    for packet in [*stream.encode(frame), *stream.encode(None)]:
        container.mux(packet)
"""


@click.command(short_help="Look whether everything that a render needs is there.")
@click.option("--origin", metavar="URL", help="Also ask whether browsers may upload to the bucket from pages there.")
@json_option
def doctor(*, origin: str | None, as_json: bool) -> int:
    """Look whether this machine can render, and Modal where it is a backend.

    The exit status is 1 when something is broken.
    """
    return show(examine(origin=origin), as_json=as_json)


def examine(*, origin: str | None = None) -> list[Finding]:
    """Carry out every check; one that fails does not keep the others from being made.

    Args:
        origin: Of the page that uploads to a bucket from browsers, as ``https://app.example``.
    """
    try:
        settings = read_settings()
    except RenderDispatchError as error:
        return [Finding("settings", "broken", str(error))]
    return [
        found("python", _python),
        found("extras", _extras),
        found("home", lambda: _home(settings)),
        found("disk", lambda: _disk(settings)),
        found("job store", lambda: _store(settings)),
        *_storage(settings, origin),
        *_modal(settings),
        *_backends(settings),
        found("encoder", _encoder),
        found("scenes", _scenes),
        found("gpu", _gpu),
    ]


# --- the checks -----------------------------------------------------------------------------------


def _python() -> Finding:
    said = f"{platform.python_implementation()} {platform.python_version()} on {platform.system()}"
    known = platform.system() in {"Linux", "Darwin"}
    return Finding("python", "ok" if known else "note", said if known else f"{said}, which nobody has tested")


def _extras() -> Finding:
    missing = [extra for extra, modules in _NEEDED.items() if not all(map(find_spec, modules))]
    if missing:
        wanted = ",".join(missing)
        return Finding("extras", "broken", f"'{wanted}' missing: pip install 'renderdispatch[{wanted}]'")
    return Finding("extras", "ok", ", ".join(_NEEDED))


def _home(settings: Settings) -> Finding:
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        probe = settings.home / f".doctor-{uuid.uuid4().hex}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        said = f"{settings.home} cannot be written ({error.strerror}); set RENDERDISPATCH_HOME to a folder of yours"
        return Finding("home", "broken", said)
    return Finding("home", "ok", str(settings.home))


def _disk(settings: Settings) -> Finding:
    existing = next(folder for folder in (settings.home, *settings.home.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    said = f"{free / 2**30:.1f} GiB are free"
    if free < _LOW_DISK_BYTES:
        return Finding("disk", "note", f"only {said}; 'renderdispatch jobs rm --older-than 7d' frees some")
    return Finding("disk", "ok", said)


def _store(settings: Settings) -> Finding:
    store = open_store(settings)
    try:
        name = type(store).__name__
        if isinstance(store, SupportsCounts):
            return Finding("job store", "ok", f"{name}: {sum(store.counts().values())} jobs")
        jobs = "jobs" if store.query(JobQuery(limit=1)).items else "no jobs yet"
        return Finding("job store", "ok", f"{name} was read: {jobs}")
    finally:
        store.close()


def _storage(settings: Settings, origin: str | None) -> list[Finding]:
    try:
        storage = open_storage(settings)
    except RenderDispatchError as error:
        return [Finding("storage", "broken", str(error))]
    try:
        if isinstance(storage, R2Storage):
            return examine_bucket(storage, origin=origin)
        return [found("storage", lambda: _objects(storage))]
    finally:
        storage.close()


def _objects(storage: StorageAdapter) -> Finding:
    key, body = f"doctor/{uuid.uuid4().hex}", b"renderdispatch"
    storage.put(key, body)
    try:
        with storage.open(key) as file:
            same = file.read() == body
    finally:
        storage.delete(key)
    if not same:
        return Finding("storage", "broken", f"{type(storage).__name__} gave back other bytes than were put")
    return Finding("storage", "ok", f"{type(storage).__name__}: an object was put, read and deleted")


def _modal(settings: Settings) -> list[Finding]:
    if "modal" not in settings.backends:
        return []
    return [evolve(finding, check=f"modal {finding.check}") for finding in examine_modal(settings)]


def _backends(settings: Settings) -> list[Finding]:
    """Put the service together; what is said of this machine and of Modal above is not said again."""
    if settings.backends == ("local",) or "modal" in settings.backends:
        return []

    def together() -> Finding:
        from_settings(settings, worker=False).close()
        return Finding("backends", "ok", ", ".join(settings.backends))

    return [found("backends", together)]


def _encoder() -> Finding:
    """Encode one frame, in a process of its own: a broken library would take this one with it."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ENCODE_A_FRAME],
            check=False,
            capture_output=True,
            text=True,
            timeout=_ENCODER_S,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return Finding("encoder", "broken", f"one frame was not encoded within {_ENCODER_S:g} s")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return Finding("encoder", "broken", f"libx264 does not encode ({last}); reinstall 'renderdispatch[render]'")
    return Finding("encoder", "ok", "libx264 encoded a frame")


def _scenes() -> Finding:
    broken = []
    for name in scene_names():
        try:
            find_renderer(name)
        except RenderDispatchError as error:
            broken.append(f"{name}: {error}")
    if broken:
        return Finding("scenes", "broken", "; ".join(broken))
    return Finding("scenes", "ok", ", ".join(scene_names()))


def _gpu() -> Finding:
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        listed = subprocess.run([tool, "-L"], check=False, capture_output=True, text=True, timeout=30)
        names = [line.partition(" (UUID")[0] for line in listed.stdout.splitlines() if line.startswith("GPU")]
        if listed.returncode == 0 and names:
            return Finding("gpu", "ok", "; ".join(names))
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return Finding("gpu", "note", "a device is there, but nvidia-smi does not list it; look at the driver")
    return Finding("gpu", "note", "none; the scenes that ship draw on the CPU")
