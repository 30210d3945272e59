"""FastAPI and Flask hold the service: errors become answers, webhooks are taken where there is a secret, life is kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Annotated, Any, Final

import anyio
import httpx
import pytest
from fastapi import FastAPI, Form
from flask import Flask

from renderdispatch import QueuePolicy, TenantPolicy, errors
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.jobs import Job
from renderdispatch.service import RenderService
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import FakeRenderer
from renderdispatch.web import fastapi, flask
from renderdispatch.web.answers import answer

SECRET: Final = "whsec_b2xkIG9sZCBvbGQgb2xkIG9sZCBvbGQgb2xkIG9sZCE="


class FailingStore(MemoryJobStore):
    """Raises what it is told to, when it is asked for a job."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def get(self, job_id: str) -> Job:
        raise self.error


def service_with(error: Exception | None = None, *, secrets: str | None = None, worker: bool = False) -> RenderService:
    store = MemoryJobStore() if error is None else FailingStore(error)
    return RenderService(store, MemoryStorage(), InlineBackend(), secrets=secrets, worker=worker)


Answer = tuple[int, Any, dict[str, str]]
"""Status, body as JSON, headers."""


def by_fastapi(service: RenderService, method: str, path: str) -> Answer:
    app = FastAPI()
    fastapi.install(app, service, webhook="/hook")

    @app.get("/job")
    def job() -> None:
        service.get("an-id")

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path)

    response = anyio.run(ask)
    return response.status_code, response.json(), dict(response.headers)


def by_flask(service: RenderService, method: str, path: str) -> Answer:
    app = Flask(__name__)
    app.testing = True  # what nobody answers is raised
    flask.install(app, service, webhook="/hook")

    @app.get("/job")
    def job() -> str:
        return service.get("an-id").id

    response = app.test_client().open(path, method=method)
    return response.status_code, response.get_json(silent=True), {k.lower(): v for k, v in response.headers.items()}


Ask = Callable[[RenderService, str, str], Answer]
FRAMEWORKS = pytest.mark.parametrize("ask", [by_fastapi, by_flask], ids=["fastapi", "flask"])


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.JobNotFoundError("no job"), 404),
        (errors.ObjectNotFoundError("no object"), 404),
        (errors.JobNotCompleteError("it runs"), 409),
        (errors.JobFailedError("it failed", code="scene.failed"), 409),
        (errors.JobExpiredError("it is kept no longer"), 410),
        (errors.InvalidRequestError("cancel it first", code="job.running"), 409),
        (errors.InvalidRequestError("never"), 422),
        (errors.UnknownNameError.of("scene", "waev", ["wave"], code="scene.unknown"), 422),
        (errors.IdempotencyConflictError("another request"), 422),
        (errors.StorageFullError("full"), 507),
    ],
)
def test_each_error_has_a_status(error: errors.RenderDispatchError, status: int) -> None:
    """The body holds code and message, in the same shape for all."""
    told = answer(error)
    assert (told.status, told.headers) == (status, {})
    assert told.body == {"error": {"code": error.code, "message": str(error)}}


@pytest.mark.parametrize(
    "kind", [errors.StoreUnavailableError, errors.StorageUnavailableError, errors.RevisionConflictError]
)
def test_what_passes_is_503(kind: type[errors.RenderDispatchError]) -> None:
    """Clients are told when to come back."""
    told = answer(kind("away"))
    assert (told.status, told.headers) == (503, {"retry-after": "5"})


@FRAMEWORKS
def test_a_store_that_is_away_is_503(ask: Ask) -> None:
    """The application says so as JSON, with `Retry-After`."""
    status, body, headers = ask(service_with(errors.StoreUnavailableError("it does not answer")), "GET", "/job")
    assert (status, headers["retry-after"]) == (503, "5")
    assert body == {"error": {"code": "store.unavailable", "message": "it does not answer"}}


@pytest.mark.parametrize(
    ("wait_s", "header"), [(0.0, "1"), (0.2, "1"), (12.0, "12"), (12.001, "13"), (90_000.0, "90000")]
)
def test_a_limit_is_429(wait_s: float, header: str) -> None:
    """`Retry-After` is in whole seconds, rounded up: a client that comes back then is not too early."""
    error = errors.QueueLimitError("too many", code="limit.rate", retry_after=timedelta(seconds=wait_s))
    told = answer(error)
    assert (told.status, told.headers) == (429, {"retry-after": header})
    assert told.body == {"error": {"code": "limit.rate", "message": "too many"}}


@FRAMEWORKS
def test_a_submit_beyond_a_limit_is_429(ask: Ask) -> None:
    """The application says so as JSON, with `Retry-After`."""
    policy = QueuePolicy(tenant=TenantPolicy(submits_per_minute=1))
    store, storage = MemoryJobStore(), MemoryStorage()
    every = RenderService(store, storage, InlineBackend({"fake": FakeRenderer()}), worker=False, policy=policy)
    one = every.for_tenant("acme")
    one.submit(b"RIFF", scene="fake")

    class Submitting(RenderService):
        """Submits a job where one is asked for."""

        def get(self, job_id: str) -> Job:
            return one.submit(b"RIFF", scene="fake").job

    status, body, headers = ask(Submitting(store, storage, InlineBackend(), worker=False), "GET", "/job")
    assert (status, body["error"]["code"]) == (429, "limit.rate")
    assert 1 <= int(headers["retry-after"]) <= 60


@FRAMEWORKS
def test_what_no_client_can_act_on_stays_an_exception(ask: Ask) -> None:
    """A wrong configuration is the framework's to log and to answer with 500."""
    with pytest.raises(errors.ConfigurationError, match="wrong"):
        ask(service_with(errors.ConfigurationError("wrong")), "GET", "/job")


# --- the webhook ----------------------------------------------------------------------------------


@FRAMEWORKS
def test_a_service_with_a_secret_takes_webhooks(ask: Ask) -> None:
    """At the path that was asked for, without a redirect; a stranger is refused."""
    status, body, _ = ask(service_with(secrets=SECRET), "POST", "/hook")
    assert (status, body["error"]["code"]) == (401, "webhook.missing-header")


@FRAMEWORKS
def test_a_service_without_a_secret_takes_none(ask: Ask) -> None:
    """The path does not exist, for nothing could be verified."""
    status, _, _ = ask(service_with(), "POST", "/hook")
    assert status == 404


# --- life -----------------------------------------------------------------------------------------


def test_fastapi_starts_and_closes_the_service() -> None:
    """The service works from the application's start, and is closed at its end."""
    service = service_with(worker=True)
    app = FastAPI(lifespan=fastapi.lifespan(service))

    async def live() -> bool:
        async with app.router.lifespan_context(app):
            return service._engine.worker().running

    assert anyio.run(live)
    with pytest.raises(errors.ConfigurationError, match="closed"):
        service.start()


def test_flask_starts_the_service_with_the_first_request() -> None:
    """Whatever it asks for; not before, for the server may yet fork."""
    with service_with(worker=True) as other:  # what `running` says of a service that was started
        assert other._engine.worker().running
    service = service_with(worker=True)
    app = Flask(__name__)
    flask.install(app, service)
    assert not service._engine.worker().running
    app.test_client().get("/nothing")
    assert service._engine.worker().running
    service.close()


# --- large bodies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "in chunks"])
@pytest.mark.parametrize(("size", "status"), [(1000, 200), (1001, 413)])
def test_a_body_has_a_limit(size: int, status: int, chunked: bool) -> None:
    """A form of exactly as many bytes is taken, a larger one is 413, however it comes."""
    app = FastAPI()
    app.add_middleware(fastapi.BodyLimit, max_bytes=1000)
    fastapi.install(app, service_with())

    @app.post("/form")
    def form(a: Annotated[str, Form()]) -> int:
        return len(a)

    body = b"a=" + b"x" * (size - 2)

    async def pieces() -> AsyncIterator[bytes]:
        yield body[:600]
        yield body[600:]

    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        headers = {"content-type": "application/x-www-form-urlencoded"}
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/form", content=pieces() if chunked else body, headers=headers)

    response = anyio.run(post)
    assert response.status_code == status
    if status == 413:
        assert response.json()["error"]["code"] == "request.too-large"


# --- without the framework ------------------------------------------------------------------------


@pytest.mark.parametrize("framework", ["fastapi", "flask"])
def test_a_missing_framework_is_said_by_its_extra(framework: str) -> None:
    """Where the framework is not installed, the module says which extra brings it."""
    code = f"import sys; sys.modules[{framework!r}] = None; import renderdispatch.web.{framework}"
    ran = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ran.returncode == 1
    assert f"MissingExtraError: renderdispatch.web.{framework} needs the '{framework}' extra" in ran.stderr
