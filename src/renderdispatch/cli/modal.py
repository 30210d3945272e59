"""How does the render function come to Modal, and is it there?"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Final

import click

from renderdispatch.backends.modal_faults import LOG_IN, Unanswered, how_to_deploy, refusal
from renderdispatch.cli.finding import Finding, found, show
from renderdispatch.cli.options import json_option
from renderdispatch.errors import ConfigurationError, MissingExtraError, RenderDispatchError
from renderdispatch.modal_app.deployment import GPUS, SUGGESTED_GPUS, Deployment, read_gpus
from renderdispatch.protocols import Locality
from renderdispatch.wiring import Settings, open_storage, read_settings

_APP: Final = "renderdispatch.modal_app"
_LOOK_UP_S: Final = 10.0
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600}


@click.group()
def modal() -> None:
    """Deploy the render function to Modal, and look whether it is there."""


# --- deploy ---------------------------------------------------------------------------------------


def _read_gpu(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    try:
        return None if value is None else read_gpus(value)
    except RenderDispatchError as error:
        raise click.BadParameter(str(error)) from None


def _read_seconds(_context: click.Context, _option: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    said = re.fullmatch(r"(\d{1,6})([smh]?)", value.strip())
    if said is None:
        raise click.BadParameter(f"{value[:40]!r} is no time such as 90s, 30m or 2h")
    return int(said[1]) * _UNITS[said[2]]


@modal.command()
@click.option(
    "--gpu",
    callback=_read_gpu,
    metavar="LIST",
    help=f"GPUs in order of preference, such as {','.join(SUGGESTED_GPUS)} or H100:2. Default: none, for the scenes "
    f"that ship draw on the CPU. Modal has {', '.join(GPUS)}.",
)
@click.option("--app", metavar="NAME", help="The app's name. Default: renderdispatch.")
@click.option("-e", "--environment", metavar="ENV", help="Of Modal. Default: Modal's own.")
@click.option("--cpu", type=float, help="Cores of a render. Default: 4.")
@click.option("--memory", type=int, metavar="MIB", help="Memory of a render. Default: 8192.")
@click.option("--timeout", callback=_read_seconds, metavar="TIME", help="Of calls that set none: 90s, 30m, 2h (24h).")
@click.option("--worker", is_flag=True, help="Also dispatch and reconcile there, and take webhooks.")
@click.option("--secret", metavar="NAME", help="The Modal Secret with the worker's RENDERDISPATCH_ variables.")
@click.option(
    "--period", callback=_read_seconds, metavar="TIME", help="Between two starts of the worker. Default: 60s."
)
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
def deploy(*, environment: str | None, dry_run: bool, **options: Any) -> None:
    """Deploy the render function, by 'modal deploy'.

    What no option says, RENDERDISPATCH_MODAL_ variables of the same names say.
    """
    chosen = _choose(options)
    command = [sys.executable, "-m", "modal", "deploy", "-m", _APP]
    command += ["--env", environment] if environment else []
    if dry_run:
        for name, value in chosen.to_environment().items():
            click.echo(f"{name}={value}")
        click.echo(" ".join(["modal", *command[3:]]))
        return
    _need_modal()
    _need_token()
    try:
        done = subprocess.run(command, check=False, env={**os.environ, **chosen.to_environment()})
    except OSError as error:
        raise ConfigurationError(f"modal deploy cannot be started: {error.strerror}") from None
    if done.returncode != 0:
        raise click.ClickException(f"modal deploy ended with status {done.returncode}; what it said stands above")
    click.echo(_next_steps(chosen, environment))


def _choose(options: dict[str, Any]) -> Deployment:
    """Return what the environment says, with what the options say in its place."""
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    environment = dict(os.environ)
    for name, value in given.items():  # the same check reads both, and names what it refuses
        written = ",".join(value) or "none" if name == "gpu" else "1" if value is True else str(value)
        environment[f"RENDERDISPATCH_MODAL_{name.upper()}"] = written
    chosen = Deployment.from_environment(environment)
    if "secret" in given and not chosen.worker:
        raise click.UsageError("--secret is the worker's: give --worker too; the render function gets no secret")
    return chosen


def _need_modal() -> None:
    if find_spec("modal") is None:
        raise MissingExtraError.of("deploying to Modal", "modal")


def _need_token() -> None:
    from modal.config import config

    if not (config.get("token_id") and config.get("token_secret")):
        raise ConfigurationError(f"there is no Modal token here: {LOG_IN}")


def _next_steps(chosen: Deployment, environment: str | None) -> str:
    on = " or ".join(chosen.gpu) or "the CPU"
    lines = [f"deployed: render of app {chosen.app!r}, on {on}", "", "Where your application runs, set:"]
    lines += ["  RENDERDISPATCH_BACKENDS=modal"]
    lines += [f"  RENDERDISPATCH_MODAL_APP={chosen.app}"] if chosen.app != "renderdispatch" else []
    lines += [f"  RENDERDISPATCH_MODAL_ENVIRONMENT={environment}"] if environment else []
    lines += [
        "  RENDERDISPATCH_STORAGE=r2://bucket",
        "  RENDERDISPATCH_R2_ACCOUNT_ID, RENDERDISPATCH_R2_ACCESS_KEY_ID, RENDERDISPATCH_R2_SECRET_ACCESS_KEY",
        "To see progress live, where renders can reach it:",
        "  RENDERDISPATCH_WEBHOOK_URL=https://your.app/webhook and RENDERDISPATCH_SECRETS",
    ]
    if chosen.worker:
        lines += [
            "The worker takes webhooks at the URL above, with a slash at its end: that is RENDERDISPATCH_WEBHOOK_URL,",
            "in its Modal Secret and in your application, which also sets RENDERDISPATCH_WORKER=0.",
        ]
    return "\n".join([*lines, "", "Then: renderdispatch modal check"])


# --- check ----------------------------------------------------------------------------------------


@modal.command(short_help="Look whether renders can go to Modal from here.")
@click.option("--app", metavar="NAME", help="Default: as RENDERDISPATCH_MODAL_APP says.")
@click.option("-e", "--environment", metavar="ENV", help="Default: as RENDERDISPATCH_MODAL_ENVIRONMENT says.")
@json_option
def check(*, app: str | None, environment: str | None, as_json: bool) -> int:
    """Look whether renders can go to Modal from here; the exit status is 1 when something is broken.

    Nothing is rendered, and no container started.
    """
    settings = read_settings()
    changes = {"modal_app": app, "modal_environment": environment}
    settings = settings.model_copy(update={name: value for name, value in changes.items() if value})
    return show([*examine_modal(settings), found("backend", lambda: _backend(settings))], as_json=as_json)


def examine_modal(settings: Settings) -> list[Finding]:
    """Look whether Modal takes the token and has the function, and whether renders there reach the storage."""
    findings = [found("client", _client)]
    if findings[-1].status == "ok":
        findings.append(found("token", _token))
    if findings[-1].status == "ok":
        findings.append(found("function", lambda: _function(settings)))
    return [*findings, found("storage", lambda: _storage(settings))]


def _client() -> Finding:
    _need_modal()
    return Finding("client", "ok", f"modal {version('modal')}")


def _token() -> Finding:
    _need_token()
    return Finding("token", "ok", "there is one; whether Modal takes it, the next line says")


def _function(settings: Settings) -> Finding:
    """Look the deployed function up, without waiting for as long as Modal's client would."""
    import modal as client

    name, app = settings.modal_function, settings.modal_app
    where = f" in the environment {settings.modal_environment!r}" if settings.modal_environment else ""
    failures: list[BaseException] = []

    def look() -> None:
        try:
            client.Function.from_name(app, name, environment_name=settings.modal_environment).hydrate()
        except BaseException as error:  # noqa: BLE001 - judged below
            failures.append(error)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(_LOOK_UP_S)
    if looking.is_alive():
        failures.append(Unanswered(f"no answer for {_LOOK_UP_S:.0f} s"))
    if failures:
        what = f"function {name!r} of app {app!r}{where} cannot be used"
        error = refusal(failures[0], what, sent=False, secret=os.environ.get("MODAL_TOKEN_SECRET"))
        if error.code != "modal.not-deployed":
            raise error
        step = how_to_deploy(app, environment=settings.modal_environment)
        return Finding("function", "broken", f"there is no function {name!r} of app {app!r}{where}; {step}")
    return Finding("function", "ok", f"{name!r} of app {app!r}{where} is deployed")


def _backend(settings: Settings) -> Finding:
    if "modal" in settings.backends:
        first = settings.backends[0]
        return Finding("backend", "ok", "the default" if first == "modal" else f"not the default, which is {first!r}")
    said = ",".join(settings.backends)
    return Finding("backend", "broken", f"RENDERDISPATCH_BACKENDS is {said!r}, without modal: set it to modal")


def _storage(settings: Settings) -> Finding:
    storage = open_storage(settings)
    try:
        if storage.locality is Locality.WORLD:
            return Finding("storage", "ok", f"{storage!r}: its URLs reach Modal; 'renderdispatch doctor' tries it")
    finally:
        storage.close()
    said = "its URLs do not leave this machine: set RENDERDISPATCH_STORAGE to a bucket, as r2://bucket"
    return Finding("storage", "broken", said)
