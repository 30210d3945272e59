"""How is the render function deployed to Modal, and is it usable from here?"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Final, TypeVar

import click
from attrs import evolve

from renderdispatch.backends.modal_faults import LOG_IN, Unanswered, how_to_deploy, refusal
from renderdispatch.cli.finding import Finding, Verdict, found, show
from renderdispatch.cli.machine import examine_probe
from renderdispatch.cli.options import json_option, seconds_reader
from renderdispatch.errors import BackendError, ConfigurationError, MissingExtraError, RenderDispatchError
from renderdispatch.modal_app.deployment import GPUS, SUGGESTED_GPUS, Deployment, read_gpus
from renderdispatch.plumbing.interpreter import interpreter
from renderdispatch.protocols import Locality
from renderdispatch.runner.probe import Probe
from renderdispatch.wiring import Settings, open_storage, read_settings

_T = TypeVar("_T")

_APP: Final = "renderdispatch.modal_app"
_FIND_S: Final = 10.0
_PROBE_S: Final = 240.0
"""How long the container that tries the GPU may take, most of it to be started."""


@click.group()
def modal() -> None:
    """Deploy the render function to Modal, and check it."""


# --- deploy ---------------------------------------------------------------------------------------


def _read_gpu(text: str) -> tuple[str, ...]:
    try:
        return read_gpus(text)
    except RenderDispatchError as error:
        raise click.BadParameter(str(error)) from None


_seconds = seconds_reader("[smh]?", "90s, 30m or 2h")


@modal.command()
@click.option(
    "--gpu",
    type=_read_gpu,
    metavar="LIST",
    help=f"GPUs in order of preference, such as {','.join(SUGGESTED_GPUS)} or H100:2. Default: none, because the "
    f"scenes that ship draw on the CPU. Modal has {', '.join(GPUS)}.",
)
@click.option("--app", metavar="NAME", help="The app's name. Default: renderdispatch.")
@click.option("-e", "--environment", metavar="ENV", help="The Modal environment. Default: Modal's own.")
@click.option("--cpu", type=float, help="CPU cores for a render. Default: 4.")
@click.option("--memory", type=int, metavar="MIB", help="Memory for a render. Default: 8192.")
@click.option(
    "--timeout", type=_seconds, metavar="TIME", help="Limit of calls that set none: 90s, 30m, 2h. Default: 24h."
)
@click.option("--worker", is_flag=True, help="Also dispatch and reconcile on Modal, and receive webhooks there.")
@click.option("--secret", metavar="NAME", help="The Modal Secret with the worker's RENDERDISPATCH_ variables.")
@click.option("--period", type=_seconds, metavar="TIME", help="Between two starts of the worker. Default: 60s.")
@click.option("--dry-run", is_flag=True, help="Only print what would be done.")
@click.option(
    "--allow-cpu-drawing", is_flag=True, help="Accept GPUs that OpenGL does not draw on, and do not try them."
)
def deploy(*, environment: str | None, dry_run: bool, allow_cpu_drawing: bool, **options: Any) -> int:
    """Deploy the render function with 'modal deploy'.

    An option that is not given takes its value from the RENDERDISPATCH_MODAL_ variable of the same name.

    If it has a GPU, a container is then started for some seconds, to try it. The exit status is 1 if OpenGL draws on
    the CPU in there.
    """
    chosen = _choose(options)
    command = [interpreter(), "-m", "modal", "deploy", "-m", _APP]
    command += ["--env", environment] if environment else []
    if dry_run:
        for name, value in chosen.to_environment().items():
            click.echo(f"{name}={value}")
        click.echo(" ".join(["modal", *command[3:]]))
        return 0
    _client()
    _token()
    try:
        done = subprocess.run(command, check=False, env={**os.environ, **chosen.to_environment()})
    except OSError as error:
        raise ConfigurationError(f"'modal deploy' cannot be started: {error.strerror}") from None
    if done.returncode != 0:
        raise click.ClickException(f"modal deploy ended with status {done.returncode}; its output is above")
    click.echo(_next_steps(chosen, environment))
    return 0 if allow_cpu_drawing or not chosen.gpu else _try_gpu(chosen, environment)


def _try_gpu(chosen: Deployment, environment: str | None) -> int:
    """Say what the GPU that was asked for is good for; return the exit status."""
    gpus = " or ".join(chosen.gpu)
    click.echo(f"\ntrying {gpus}: a container is started", err=True)
    try:
        tried = _probe(chosen.app, environment)
    except RenderDispatchError as error:
        step = "'renderdispatch modal check' tries again"
        click.echo(f"renderdispatch: warning: what {gpus} draws is not known: {error}; {step}", err=True)
        return 0
    for finding in _drawing(tried):
        click.echo(f"{finding.check}: {finding.said}", err=True)
    if tried.opengl.on_gpu:
        return 0
    raise click.ClickException(
        f"{gpus} is billed for each render, and scenes in GLSL are drawn on the CPU there. The app is deployed all the "
        "same. Deploy it without --gpu, or with another one; for renderers that use the GPU without OpenGL, accept "
        "this with --allow-cpu-drawing"
    )


def _choose(options: dict[str, Any]) -> Deployment:
    """Return the deployment that the environment describes; options overrule it."""
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    environment = dict(os.environ)
    for name, value in given.items():  # one check reads both, and names what it refuses
        written = ",".join(value) or "none" if name == "gpu" else "1" if value is True else str(value)
        environment[f"RENDERDISPATCH_MODAL_{name.upper()}"] = written
    chosen = Deployment.from_environment(environment)
    if "secret" in given and not chosen.worker:
        raise click.UsageError("--secret is for the worker; add --worker. The render function gets no secret.")
    return chosen


def _next_steps(chosen: Deployment, environment: str | None) -> str:
    lines = [
        f"deployed: render of app {chosen.app!r}, on {' or '.join(chosen.gpu) or 'the CPU'}",
        "",
        "Where your application runs, set:",
        "  RENDERDISPATCH_BACKENDS=modal",
        *([f"  RENDERDISPATCH_MODAL_APP={chosen.app}"] if chosen.app != "renderdispatch" else []),
        *([f"  RENDERDISPATCH_MODAL_ENVIRONMENT={environment}"] if environment else []),
        "  RENDERDISPATCH_STORAGE=r2://bucket",
        "  RENDERDISPATCH_R2_ACCOUNT_ID, RENDERDISPATCH_R2_ACCESS_KEY_ID, RENDERDISPATCH_R2_SECRET_ACCESS_KEY",
        "To see progress live, if renders can reach your application:",
        "  RENDERDISPATCH_WEBHOOK_URL=https://your.app/webhook and RENDERDISPATCH_SECRETS",
    ]
    if chosen.worker:
        lines += [
            "The worker receives webhooks at the URL above, with a slash at its end: set RENDERDISPATCH_WEBHOOK_URL to",
            "this, in its Modal Secret and in your application. There, also set RENDERDISPATCH_WORKER=0.",
        ]
    return "\n".join([*lines, "", "Then: renderdispatch modal check"])


# --- check ----------------------------------------------------------------------------------------


@modal.command(short_help="Check that renders can go to Modal from here.")
@click.option("--app", metavar="NAME", help="Default: RENDERDISPATCH_MODAL_APP.")
@click.option("-e", "--environment", metavar="ENV", help="Default: RENDERDISPATCH_MODAL_ENVIRONMENT.")
@click.option(
    "--probe/--no-probe",
    default=True,
    help="Whether to start a container, for some seconds that are billed, to see what it draws and encodes with. "
    "Default: yes.",
)
@json_option
def check(*, app: str | None, environment: str | None, probe: bool, as_json: bool) -> int:
    """Check that renders can go to Modal from here. The exit status is 1 if something is broken.

    Nothing is rendered. A container of the app is started for some seconds, unless --no-probe is given.
    """
    settings = read_settings()
    changes = {"modal_app": app, "modal_environment": environment}
    settings = settings.model_copy(update={name: value for name, value in changes.items() if value})
    findings = examine_modal(settings)
    deployed = any(finding.check == "function" and finding.status == "ok" for finding in findings)
    if probe and deployed:
        findings += _examine_container(settings)
    return show([*findings, found("backend", lambda: _backend(settings))], as_json=as_json)


def examine_modal(settings: Settings) -> list[Finding]:
    """Check that Modal accepts the token and has the function, and that renders there can reach the storage."""
    findings = [found("client", _client)]
    if findings[-1].status == "ok":
        findings.append(found("token", _token))
    if findings[-1].status == "ok":
        findings.append(found("function", lambda: _function(settings)))
    return [*findings, found("storage", lambda: _storage(settings))]


def _client() -> Verdict:
    if find_spec("modal") is None:
        raise MissingExtraError.of("deploying to Modal", "modal")
    return "ok", f"modal {version('modal')}"


def _token() -> Verdict:
    from modal.config import config

    if not (config.get("token_id") and config.get("token_secret")):
        raise ConfigurationError(f"no Modal token was found: {LOG_IN}")
    return "ok", "a token was found; the next check uses it"


def _function(settings: Settings) -> Verdict:
    """Find the deployed function, without waiting for as long as Modal's client would."""
    import modal as client

    name, app, environment = settings.modal_function, settings.modal_app, settings.modal_environment
    where = _where(app, environment)
    try:
        _bounded(
            lambda: client.Function.from_name(app, name, environment_name=environment).hydrate(),
            f"function {name!r} of app {where} cannot be used",
            _FIND_S,
        )
    except BackendError as error:
        if error.code != "modal.not-deployed":
            raise
        step = how_to_deploy(app, environment=environment)
        return "broken", f"there is no function {name!r} of app {where}; {step}"
    return "ok", f"{name!r} of app {where} is deployed"


def _where(app: str, environment: str | None) -> str:
    return f"{app!r} in the environment {environment!r}" if environment else repr(app)


def _bounded(ask: Callable[[], _T], what: str, timeout_s: float) -> _T:
    """Return what Modal answers.

    Args:
        ask: Called in a thread, which is left behind if it takes too long.
        what: Could not be done, for the error.
        timeout_s: How long it may take.

    Raises:
        BackendError: As the table of `modal_faults` says.
    """
    answers, failures = list[_T](), list[BaseException]()

    def run() -> None:
        try:
            answers.append(ask())
        except BaseException as error:  # noqa: BLE001 - judged below
            failures.append(error)

    asking = threading.Thread(target=run, daemon=True)
    asking.start()
    asking.join(timeout_s)
    if answers:
        return answers[0]
    failure = failures[0] if failures else Unanswered(f"no answer for {timeout_s:.0f} s")
    raise refusal(failure, what, sent=False, secret=os.environ.get("MODAL_TOKEN_SECRET"))


# --- what a container draws with ------------------------------------------------------------------


def _probe(app: str, environment: str | None) -> Probe:
    """Have a container of the app say what it draws and encodes with.

    Raises:
        BackendError: It did not; ``modal.not-deployed``: the app has no such function.
    """
    import modal as client

    def ask() -> Probe:
        call = client.Function.from_name(app, "probe", environment_name=environment).spawn()
        try:
            return Probe.model_validate_json(call.get(timeout=_PROBE_S))
        except TimeoutError:
            call.cancel()  # it may still wait for a GPU, or hold one
            raise Unanswered(f"no container answered for {_PROBE_S:.0f} s") from None

    return _bounded(ask, f"what a container of app {_where(app, environment)} draws with is not known", _PROBE_S + 20)


def _examine_container(settings: Settings) -> list[Finding]:
    """Say what a container of the app draws and encodes with."""
    app, environment = settings.modal_app, settings.modal_environment
    try:
        return _drawing(_probe(app, environment))
    except BackendError as error:
        if error.code != "modal.not-deployed":
            return [Finding("container", "note", str(error))]
        step = how_to_deploy(app, environment=environment)
        return [Finding("container", "note", f"this version of the app cannot tell what it draws with; {step}")]


def _drawing(tried: Probe) -> list[Finding]:
    return [evolve(finding, check=f"container {finding.check}") for finding in examine_probe(tried)]


def _backend(settings: Settings) -> Verdict:
    if "modal" in settings.backends:
        first = settings.backends[0]
        return "ok", "the default" if first == "modal" else f"not the default, which is {first!r}"
    return "broken", f"RENDERDISPATCH_BACKENDS is {','.join(settings.backends)!r}, without modal: set it to modal"


def _storage(settings: Settings) -> Verdict:
    storage = open_storage(settings)
    storage.close()
    if storage.locality is Locality.WORLD:
        return "ok", f"{storage!r}: Modal can reach its URLs; 'renderdispatch doctor' checks the bucket"
    return "broken", "Modal cannot read files stored on this machine; set RENDERDISPATCH_STORAGE=r2://bucket"
