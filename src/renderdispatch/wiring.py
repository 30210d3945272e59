"""Which adapters does an application get?

This module alone chooses them: `local` needs nothing, and `from_settings` reads the environment. An adapter is imported
when it is chosen, so that a start does not wait for the others.
"""

from __future__ import annotations

import logging
import os
import pwd
import re
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from renderdispatch.engine.policies import read_keep, read_policy, unknown_backends
from renderdispatch.errors import ConfigurationError, MissingExtraError, UnknownNameError
from renderdispatch.messages import JobStatus
from renderdispatch.plumbing.interpreter import require_threads
from renderdispatch.protocols import JobStore, Locality, RenderBackend, StorageAdapter
from renderdispatch.queueing import QueuePolicy

if TYPE_CHECKING:
    from renderdispatch.failover import Failover
    from renderdispatch.plumbing.fetch import GuardedFetcher
    from renderdispatch.service import RenderService
    from renderdispatch.storage.signing import SignedUrls

_log: Final = logging.getLogger("renderdispatch.wiring")
_T = TypeVar("_T")

BACKENDS: Final = "renderdispatch.backends"
"""The entry points of other backends: each a callable without arguments."""

_SHIPPED: Final = ("local", "inline", "modal", "http")
_R2: Final = "r2://"
_RENDER_HERE: Final = frozenset({"local", "inline"})

_PREFIX: Final = "RENDERDISPATCH_"
_DEPLOYMENT: Final = "APP GPU CPU MEMORY TIMEOUT STARTUP_TIMEOUT SCALEDOWN_WINDOW WORKER SECRET PERIOD"
"""What ``RENDERDISPATCH_MODAL_...`` says where the render function is deployed."""

_OF_PROCESSES: Final = ("PYTHON", "PASS_ENV", "GPU", "GPU_LOCKS")
"""What is read where a render's process is started."""

_NOT_OURS: Final = re.compile(
    r"LIVE_.*|TEST_.*|STORM|EVENTS_FD|HELD_FD|SYS_PATH"  # of the tests, and of render processes
    # Kubernetes and Docker describe each service by such variables, one that is called renderdispatch too
    r"|(.+_)?SERVICE_(HOST|PORT(_.+)?)|(.+_)?PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?"
)


def _default_home() -> Path:
    """Return the user's data folder. Without a user it is not absolute, and refused where a home is needed."""
    data = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not data.is_absolute():  # the specification says to ignore others
        data = _user_home() / ("Library/Application Support" if sys.platform == "darwin" else ".local/share")
    return data / "renderdispatch"


def _user_home() -> Path:
    if home := os.environ.get("HOME"):
        return Path(home)
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:  # a container's user may have no entry
        return Path("~")


def _absolute(home: Path) -> Path:
    try:
        os.fsencode(home)
        return home.expanduser().absolute()
    except UnicodeEncodeError:
        why = "the system has no such names"
    except RuntimeError:
        why = "that user has no home folder"
    except FileNotFoundError:
        why = "it is relative, and the working directory is gone"
    raise ConfigurationError(f"the home {str(home)!a} cannot be used: {why}; write an absolute path")


class Settings(BaseSettings):
    """What ``RENDERDISPATCH_...`` variables say. An empty one is not set; a ``.env`` file is not read.

    Args:
        home: ``RENDERDISPATCH_HOME``: the folder of the embedded database and the objects.
        store: ``RENDERDISPATCH_STORE``: a database URL, or ``memory``. Default: SQLite in the home.
        storage: ``RENDERDISPATCH_STORAGE``: ``r2://bucket/prefix``, or an fsspec URL. Default: a folder in the home.
        backends: ``RENDERDISPATCH_BACKENDS``: names, separated by commas; the first is the default.
        failover: ``RENDERDISPATCH_FAILOVER``: names of those: what ended an attempt of a job decides
            whether the next attempt runs on the next of them (`Failover`).
        worker: ``RENDERDISPATCH_WORKER``: whether each process works in the background.
        secrets: ``RENDERDISPATCH_SECRETS``: master secrets for webhooks, separated by spaces, the newest first.
        webhook_url: ``RENDERDISPATCH_WEBHOOK_URL``: the URL at which the GPU side reaches this application's webhook.
        lease_s: ``RENDERDISPATCH_LEASE_S``: seconds that a job stays with a silent worker.
        queue: ``RENDERDISPATCH_QUEUE``: how tenants share the backends: a `QueuePolicy` as JSON, or ``@`` and the
            absolute path of a file that holds it. Default: all alike, without limits.
        keep: ``RENDERDISPATCH_KEEP``: for how long ended jobs and their videos are kept, by status, such as
            ``complete=30d,failed=7d,cancelled=12h``. Default, and for a status that is not named: until they are
            deleted.
        fetch_allow_hosts: ``RENDERDISPATCH_FETCH_ALLOW_HOSTS``: the only hosts that audio is fetched from by URL,
            separated by commas; ``*.example.com`` is every name below one. Default: every public host.
        fetch_allow_http: ``RENDERDISPATCH_FETCH_ALLOW_HTTP``: whether http URLs are fetched too, for development.
        fetch_allow_private: ``RENDERDISPATCH_FETCH_ALLOW_PRIVATE``: whether private networks are too, for development.
        fetch_max_bytes: ``RENDERDISPATCH_FETCH_MAX_BYTES``: how large audio by URL may be.
        r2_account_id: ``RENDERDISPATCH_R2_ACCOUNT_ID``: of Cloudflare. With ``r2://`` this, or the endpoint.
        r2_endpoint_url: ``RENDERDISPATCH_R2_ENDPOINT_URL``: of another S3 API, without the bucket.
        r2_access_key_id: ``RENDERDISPATCH_R2_ACCESS_KEY_ID``: of an R2 API token; ``r2://`` needs it.
        r2_secret_access_key: ``RENDERDISPATCH_R2_SECRET_ACCESS_KEY``: belongs to it; ``r2://`` needs it.
        r2_jurisdiction: ``RENDERDISPATCH_R2_JURISDICTION``: ``eu`` or ``fedramp``, where the bucket was made so.
        r2_region: ``RENDERDISPATCH_R2_REGION``: of another S3 API that wants one.
        r2_public_url: ``RENDERDISPATCH_R2_PUBLIC_URL``: the bucket's public or custom domain, for plain download URLs.
        objects_url: ``RENDERDISPATCH_OBJECTS_URL``: where the application mounts `renderdispatch.web.objects`, as
            clients reach it. Signed URLs of a folder are then http URLs below it; needs ``objects_secrets``.
        objects_secrets: ``RENDERDISPATCH_OBJECTS_SECRETS``: what signs those, at least 24 bytes each, separated by
            spaces, the newest first.
        modal_app: ``RENDERDISPATCH_MODAL_APP``: the name of the deployed app that backend ``modal`` renders with.
        modal_function: ``RENDERDISPATCH_MODAL_FUNCTION``: the name of its function.
        modal_environment: ``RENDERDISPATCH_MODAL_ENVIRONMENT``: the Modal environment. Default: Modal's own.
        modal_version: ``RENDERDISPATCH_MODAL_VERSION``: the only deployed version that is used. Default: the newest.
        modal_device_class: ``RENDERDISPATCH_MODAL_DEVICE_CLASS``: what its containers draw on, such as ``cpu-x86-64``.
        http_url: ``RENDERDISPATCH_HTTP_URL``: the render service that backend ``http`` renders with; it needs this.
        http_token: ``RENDERDISPATCH_HTTP_TOKEN``: the Bearer token that the service wants.
        http_modal_key: ``RENDERDISPATCH_HTTP_MODAL_KEY``: of a Modal proxy token, where it is a Modal web endpoint.
        http_modal_secret: ``RENDERDISPATCH_HTTP_MODAL_SECRET``: belongs to it.
        http_keyed: ``RENDERDISPATCH_HTTP_KEYED``: whether the service can say what it started for a key, as
            `renderdispatch.web.renders` can.
        http_device_class: ``RENDERDISPATCH_HTTP_DEVICE_CLASS``: what it draws on, such as ``cpu-x86-64``.

    Raises:
        ConfigurationError: A value makes no sense, or (``configuration.unknown``) an argument is misspelt.
    """

    if not TYPE_CHECKING:  # it would hide the names of the fields

        def __init__(self, **values: Any) -> None:
            known, code = type(self).model_fields, "configuration.unknown"
            for name in values:
                if name not in known and not name.startswith("_"):  # those are of pydantic-settings
                    raise ConfigurationError(str(UnknownNameError.of("setting", name, known, code=code)), code=code)
            try:
                super().__init__(**values)
            except ValidationError as error:
                from renderdispatch.messages import describe_validation

                raise ConfigurationError(f"RENDERDISPATCH_... variables: {describe_validation(error)}") from None

    model_config = SettingsConfigDict(
        env_prefix="RENDERDISPATCH_", env_ignore_empty=True, hide_input_in_errors=True, extra="ignore"
    )

    home: Path = Field(default_factory=_default_home, validate_default=False)
    store: SecretStr | None = None
    storage: SecretStr | None = None
    backends: Annotated[tuple[str, ...], NoDecode] = ("local",)
    failover: Annotated[tuple[str, ...], NoDecode] = ()
    worker: bool = True
    secrets: SecretStr | None = None
    webhook_url: str | None = Field(default=None, repr=False)
    lease_s: float = Field(default=30.0, ge=1, le=3600)
    queue: str | None = None
    keep: str | None = None
    fetch_allow_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    fetch_allow_http: bool = False
    fetch_allow_private: bool = False
    fetch_max_bytes: int = Field(default=2 << 30, ge=1)
    r2_account_id: str | None = None
    r2_endpoint_url: str | None = None
    r2_access_key_id: SecretStr | None = None
    r2_secret_access_key: SecretStr | None = None
    r2_jurisdiction: Literal["eu", "fedramp"] | None = None
    r2_region: str | None = None
    r2_public_url: str | None = None
    objects_url: str | None = None
    objects_secrets: SecretStr | None = None
    modal_app: str = "renderdispatch"
    modal_function: str = "render"
    modal_environment: str | None = None
    modal_version: int | None = None
    modal_device_class: str | None = None
    http_url: str | None = None
    http_token: SecretStr | None = None
    http_modal_key: SecretStr | None = None
    http_modal_secret: SecretStr | None = None
    http_keyed: bool = False
    http_device_class: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_blanks(cls, values: Mapping[str, object]) -> dict[str, object]:
        return {name: value for name, value in values.items() if not isinstance(value, str) or value.strip()}

    @field_validator("backends", "failover", "fetch_allow_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("home")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return _absolute(value)


_EMBEDDED: Final = {
    "store": None,
    "storage": None,
    "backends": ("local",),
    "failover": (),
    "secrets": None,
    "webhook_url": None,
    "objects_url": None,
    "queue": None,
    "keep": None,
}


def local(home: str | Path | None = None, *, worker: bool = True) -> RenderService:
    """Return a service that needs nothing: jobs in SQLite, objects in a folder, renders on this machine.

    Args:
        home: The folder for everything; None is ``RENDERDISPATCH_HOME``, or the user's data directory.
        worker: Whether this process works in the background.

    Raises:
        ConfigurationError: A ``RENDERDISPATCH_...`` variable makes no sense.
    """
    found = read_settings()
    if not isinstance(home, str | Path | None):
        raise ConfigurationError(f"the home is a path, not {type(home).__name__}")
    chosen = found.home if home is None else _absolute(Path(home))
    return _build(Settings.model_construct(**{**dict(found), **_EMBEDDED, "home": chosen, "worker": worker}))


def from_settings(
    settings: Settings | None = None,
    *,
    worker: bool | None = None,
    backends: Mapping[str, RenderBackend] | None = None,
) -> RenderService:
    """Return the service that the environment describes; see `Settings` for the variables.

    Args:
        settings: In place of the environment.
        worker: Whether this process works in the background; None is what the settings say.
        backends: In place of those that the settings name, without failover. The service closes them.

    Raises:
        ConfigurationError: A setting makes no sense.
    """
    found = settings if settings is not None else read_settings()
    if not isinstance(found, Settings):
        raise ConfigurationError(f"from_settings takes Settings, not {type(found).__name__}")
    return _build(found if worker is None else found.model_copy(update={"worker": worker}), backends)


def read_settings() -> Settings:
    """Return what the environment says.

    Raises:
        ConfigurationError: A ``RENDERDISPATCH_...`` variable makes no sense, or is misspelt.
    """
    check_names(os.environ)
    return Settings()


def check_names(environment: Mapping[str, str]) -> None:
    """Refuse variables that were meant as settings and are none: with a misspelt one, renders would go elsewhere.

    Raises:
        ConfigurationError: ``configuration.unknown``: there is one; the message names it, and the near matches.
    """
    known = {name.upper() for name in Settings.model_fields} | {f"MODAL_{name}" for name in _DEPLOYMENT.split()}
    known.update(_OF_PROCESSES)
    for name, value in environment.items():
        upper = name.upper()
        if not upper.startswith("REN") or not value.strip():
            continue
        ours, rest = upper.startswith(_PREFIX), upper.removeprefix(_PREFIX)
        if ours and (rest in known or _NOT_OURS.fullmatch(rest)):
            continue
        from difflib import get_close_matches

        if ours:
            near = [_PREFIX + match for match in get_close_matches(rest, sorted(known), cutoff=0.7)]
        else:  # the prefix itself may be misspelt
            near = get_close_matches(upper, [_PREFIX + setting for setting in sorted(known)], cutoff=0.9)
        if ours or near:
            hint = f"did you mean {' or '.join(near)}?" if near else "unset it; docs/reference.md lists the settings"
            raise ConfigurationError(f"{name[:80]} is not a setting; {hint}", code="configuration.unknown")


def _build(settings: Settings, backends: Mapping[str, RenderBackend] | None = None) -> RenderService:
    from renderdispatch.service import RenderService

    if settings.worker:
        _check_extra(settings)
        require_threads()
    failover = _failover(settings) if backends is None else None
    policy, keep = open_policy(settings), open_keep(settings)
    storage, store = open_storage(settings), open_store(settings)
    if backends is None:
        backends = {name: open_backend(name, settings) for name in settings.backends}
    if unknown := unknown_backends(policy, backends):
        _log.warning("RENDERDISPATCH_QUEUE limits %s, which this process does not have", ", ".join(unknown))
    return RenderService(
        store,
        storage,
        backends,
        secrets=settings.secrets.get_secret_value().split() if settings.secrets else None,
        webhook_url=settings.webhook_url,
        fetcher=open_fetcher(settings),
        worker=settings.worker,
        lease=timedelta(seconds=settings.lease_s),
        failover=failover,
        policy=policy,
        keep=keep,
        owned=(*backends.values(), storage, store),
    )


def _failover(settings: Settings) -> Failover | None:
    """Return the policy that the settings name.

    Raises:
        ConfigurationError: It names a backend that is not one of the settings, or names one twice.
    """
    if not settings.failover:
        return None
    from renderdispatch.failover import Failover

    for name in settings.failover:
        if name not in settings.backends:
            message = (
                f"RENDERDISPATCH_FAILOVER names {name[:80]!r}, and RENDERDISPATCH_BACKENDS does not: it is "
                f"{','.join(settings.backends)!r}; name it there too"
            )
            raise ConfigurationError(message)
    return Failover(*settings.failover)


def _check_extra(settings: Settings) -> None:
    """Refuse to work without what the renderers that ship need; nothing is imported for it."""
    from importlib.util import find_spec

    here = [name for name in settings.backends if name in _RENDER_HERE]
    if here and not all(map(find_spec, ("numpy", "av", "PIL"))):
        raise MissingExtraError.of(f"backend {here[0]!r}", "render")


def usable_home(settings: Settings) -> Path:
    """Return the home, which need not exist.

    Raises:
        ConfigurationError: It can neither be used nor made.
    """
    from renderdispatch.plumbing.files import obstacle

    home = settings.home
    step = "set RENDERDISPATCH_HOME to a folder that this user may write to"
    if not home.is_absolute():
        raise ConfigurationError(f"this user has no home folder; {step}")
    exists = os.path.lexists(home)
    # Never raises.
    why = ("it is not a folder" if exists else obstacle(home)) if not os.path.isdir(home) else None  # noqa: PTH112
    if why is not None:
        raise ConfigurationError(f"the home {home} cannot be used: {why}; {step}")
    return home


def open_fetcher(settings: Settings) -> GuardedFetcher:
    """Return what fetches audio by URL, as guarded as the settings say."""
    from renderdispatch.plumbing.fetch import GuardedFetcher

    return GuardedFetcher(**_arguments(settings, "fetch_"))


def _arguments(settings: Settings, prefix: str) -> dict[str, Any]:
    """Return the settings of one adapter that are set. Without the prefix, they are named as its arguments are."""
    named = {name: getattr(settings, name) for name in Settings.model_fields if name.startswith(prefix)}
    return {name.removeprefix(prefix): _revealed(value) for name, value in named.items() if value is not None}


def _revealed(value: object) -> object:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def open_storage(settings: Settings) -> StorageAdapter:
    """Return the storage that the settings describe. The caller closes it.

    Raises:
        ConfigurationError: They do not fit together, or one is missing: the message names the variable.
    """
    url = settings.storage.get_secret_value() if settings.storage else ""
    if not url.startswith(_R2):
        from renderdispatch.storage.fsspec import FsspecStorage

        return FsspecStorage(url or usable_home(settings) / "objects", urls=open_urls(settings))
    if settings.objects_url is not None:
        raise ConfigurationError("R2 serves its own signed URLs: leave RENDERDISPATCH_OBJECTS_URL unset with r2://")
    return _open_r2(settings, url.removeprefix(_R2))


def _open_r2(settings: Settings, where: str) -> StorageAdapter:
    from renderdispatch.storage.r2 import R2Storage

    bucket, _, prefix = where.partition("/")
    if "@" in bucket or ":" in bucket:  # it may hold a secret, so it is not quoted
        raise ConfigurationError(
            "RENDERDISPATCH_STORAGE is r2://bucket/prefix; keys go in RENDERDISPATCH_R2_ACCESS_KEY_ID and "
            "RENDERDISPATCH_R2_SECRET_ACCESS_KEY, an endpoint in RENDERDISPATCH_R2_ENDPOINT_URL"
        )
    arguments = _arguments(settings, "r2_")
    needed = {"access_key_id", "secret_access_key"} - arguments.keys()
    variables = [f"RENDERDISPATCH_R2_{name.upper()}" for name in sorted(needed)]
    if arguments.keys().isdisjoint({"account_id", "endpoint_url"}):
        variables.insert(0, "RENDERDISPATCH_R2_ACCOUNT_ID (or, for another S3 API, RENDERDISPATCH_R2_ENDPOINT_URL)")
    if variables:
        raise ConfigurationError(f"RENDERDISPATCH_STORAGE is an r2:// URL, which needs {' and '.join(variables)}")
    return R2Storage(bucket, prefix=prefix, **arguments)


def open_urls(settings: Settings) -> SignedUrls | None:
    """Return what signs the http URLs of a folder, for `renderdispatch.web.objects` too; None without a URL for them.

    Raises:
        ConfigurationError: They need secrets, and there are none, or one is too short.
    """
    if settings.objects_url is None:
        return None
    if settings.objects_secrets is None:
        raise ConfigurationError("RENDERDISPATCH_OBJECTS_URL needs RENDERDISPATCH_OBJECTS_SECRETS, which sign its URLs")
    from renderdispatch.plumbing.net import is_loopback, plain_url
    from renderdispatch.storage.signing import SignedUrls

    parts = plain_url(settings.objects_url)
    here = parts is not None and is_loopback(parts.hostname or "")  # on another machine, it is that machine
    secrets = settings.objects_secrets.get_secret_value().split()
    return SignedUrls(settings.objects_url, secrets, locality=Locality.MACHINE if here else Locality.WORLD)


def open_store(settings: Settings) -> JobStore:
    """Return the job store that the settings describe. The caller closes it.

    Raises:
        ConfigurationError: Its URL or the home makes no sense.
    """
    url = settings.store.get_secret_value() if settings.store else ""
    if url == "memory":
        from renderdispatch.stores.memory import MemoryJobStore

        return MemoryJobStore()
    from renderdispatch.stores.sql import SqlJobStore

    return SqlJobStore(url or usable_home(settings) / "jobs.db")


# --- the queue and retention


def open_policy(settings: Settings) -> QueuePolicy:
    """Return how the settings let tenants share the backends.

    Raises:
        ConfigurationError: What they say makes no sense, or its file cannot be read.
    """
    text = settings.queue
    if text is None:
        return QueuePolicy()
    if text.startswith("@"):
        path = Path(text[1:])
        if not path.is_absolute():
            raise ConfigurationError("RENDERDISPATCH_QUEUE: after @ comes the absolute path of a file")
        try:
            text = path.read_text("utf-8")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is not text in UTF-8"
            raise ConfigurationError(f"RENDERDISPATCH_QUEUE: {str(path)!a} cannot be read: {why}") from None
    return _named("RENDERDISPATCH_QUEUE", read_policy, text)


def open_keep(settings: Settings) -> dict[JobStatus, timedelta]:
    """Return for how long the settings have ended jobs kept.

    Raises:
        ConfigurationError: What they say makes no sense.
    """
    return {} if settings.keep is None else _named("RENDERDISPATCH_KEEP", read_keep, settings.keep)


def _named(variable: str, read: Callable[[str], _T], text: str) -> _T:
    try:
        return read(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"{variable}: {error}", code=error.code) from None


# --- backends


def open_backend(name: str, settings: Settings) -> RenderBackend:
    """Return one of the backends that the settings name. The caller closes it.

    Raises:
        ConfigurationError: A setting is missing or makes no sense, or no backend has this name.
    """
    match name:
        case "local":
            from renderdispatch.backends.local import LocalGpuBackend

            return LocalGpuBackend()
        case "inline":
            from renderdispatch.backends.inline import InlineBackend

            return InlineBackend()
        case "modal":
            from renderdispatch.backends.modal import ModalBackend

            return ModalBackend(**_arguments(settings, "modal_"))
        case "http":
            from renderdispatch.backends.http import HttpBackend, KeyedHttpBackend

            if settings.http_url is None:
                raise ConfigurationError("backend 'http' needs RENDERDISPATCH_HTTP_URL, the URL of the render service")
            arguments = _arguments(settings, "http_")
            kind = KeyedHttpBackend if arguments.pop("keyed") else HttpBackend
            return kind(**arguments)
    from importlib.metadata import entry_points

    found = {point.name: point for point in entry_points(group=BACKENDS)}
    if name not in found:
        raise UnknownNameError.of("backend", name, {*_SHIPPED, *found}, code="backend.unknown")
    backend = found[name].load()()
    if not isinstance(backend, RenderBackend):
        raise ConfigurationError(
            f"the entry point of backend {name!r} ({found[name].value}) returned {type(backend).__name__}, "
            "which is not a RenderBackend"
        )
    return backend
