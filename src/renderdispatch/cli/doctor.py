"""Does this machine have everything that a render needs?

Each check does what a render would do; it says what is wrong and what to do about it.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
import uuid
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import click
from attrs import evolve

from renderdispatch.cli.bucket import check_access, examine_bucket
from renderdispatch.cli.finding import Finding, Verdict, found, show
from renderdispatch.cli.modal import examine_modal
from renderdispatch.cli.options import json_option
from renderdispatch.errors import RenderDispatchError
from renderdispatch.protocols import JobQuery, SupportsCounts
from renderdispatch.runner.renderers import find_renderer, scene_names
from renderdispatch.storage.r2 import R2Storage
from renderdispatch.wiring import Settings, from_settings, open_storage, open_store, read_settings, usable_home

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
    return [
        found("python", _python),
        found("extras", _extras),
        found("home", lambda: _home(settings)),
        found("disk", lambda: _disk(settings)),
        found("job store", lambda: _store(settings)),
        *_storage(settings, origin),
        *_backends(settings),
        found("encoder", _encoder),
        found("scenes", _scenes),
        found("gpu", _gpu),
    ]


# --- the checks -----------------------------------------------------------------------------------


def _python() -> Verdict:
    text = f"{platform.python_implementation()} {platform.python_version()} on {platform.system()}"
    tested = platform.system() in {"Linux", "Darwin"}
    return ("ok", text) if tested else ("note", f"{text}, where renderdispatch is not tested")


def _extras() -> Verdict:
    missing = ",".join(extra for extra, modules in _NEEDED.items() if not all(map(find_spec, modules)))
    if missing:
        return "broken", f"'{missing}' missing: pip install 'renderdispatch[{missing}]'"
    return "ok", ", ".join(_NEEDED)


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


def _storage(settings: Settings, origin: str | None) -> list[Finding]:
    try:
        storage = open_storage(settings)
    except RenderDispatchError as error:
        return [Finding("storage", "broken", str(error))]
    with closing(storage):
        if isinstance(storage, R2Storage):
            return examine_bucket(storage, origin=origin)
        return [found("storage", lambda: check_access(storage, f"doctor/{uuid.uuid4().hex}"))]


def _backends(settings: Settings) -> list[Finding]:
    """Check Modal, or else that the backends and the storage go together. Nothing is to check for local renders."""
    if "modal" in settings.backends:
        return [evolve(finding, check=f"modal {finding.check}") for finding in examine_modal(settings)]

    def build() -> Verdict:
        from_settings(settings, worker=False).close()
        return "ok", ", ".join(settings.backends)

    return [] if settings.backends == ("local",) else [found("backends", build)]


def _encoder() -> Verdict:
    """Encode one frame in a separate process: a broken library would crash this one."""
    try:
        ran = _run([sys.executable, "-c", _ENCODE_A_FRAME], timeout_s=_ENCODER_S)
    except subprocess.TimeoutExpired:
        return "broken", f"libx264 did not encode one frame within {_ENCODER_S:g} s"
    if ran.returncode != 0:
        last = (ran.stderr.strip().splitlines() or [f"exit status {ran.returncode}"])[-1]
        return "broken", f"libx264 does not encode ({last}); reinstall 'renderdispatch[render]'"
    return "ok", "libx264 encoded a frame"


def _scenes() -> Verdict:
    broken = []
    for name in scene_names():
        try:
            find_renderer(name)
        except RenderDispatchError as error:
            broken.append(f"{name}: {error}")
    return ("broken", "; ".join(broken)) if broken else ("ok", ", ".join(scene_names()))


def _gpu() -> Verdict:
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        ran = _run([tool, "-L"], timeout_s=30)
        names = [line.partition(" (UUID")[0] for line in ran.stdout.splitlines() if line.startswith("GPU")]
        if ran.returncode == 0 and names:
            return "ok", "; ".join(names)
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return "note", "a device is present, but nvidia-smi does not list it; check the driver"
    return "note", "none; the scenes that ship draw on the CPU"


def _run(command: list[str], *, timeout_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL
    )
