"""What happens to values of another type or shape than the signatures say?"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from renderdispatch import (
    AudioUrl,
    ConfigurationError,
    InvalidRequestError,
    JobNotFoundError,
    Limits,
    Output,
    RenderDispatchError,
    RenderService,
    StorageKey,
)
from renderdispatch.backends.http import HttpBackend
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.errors import UnknownNameError
from renderdispatch.messages import StoredAudio
from renderdispatch.plumbing.fetch import GuardedFetcher
from renderdispatch.storage.fsspec import FsspecStorage
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.storage.r2 import R2Storage
from renderdispatch.storage.signing import SignedUrls
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import FakeRenderer, eventually
from renderdispatch.webhooks import BearerVerifier, WebhookSigner, WebhookVerifier
from renderdispatch.wiring import Settings, from_settings, local

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**400), math.nan, math.inf, -math.inf, 1e308, -0.0, Decimal("NaN"), Fraction(1, 3)]),
    st.floats(),
    st.text(st.characters(codec=None), max_size=20),
    st.sampled_from(["", " ", "\0", "\ud800", "a" * 5000, "../x", "%00", "1e999", "bars", "flat-1080p-landscape"]),
    st.binary(max_size=8),
    st.sampled_from([(), [], {}, set(), [1], {1: 2}, {"a": {1, 2}}, {"a": math.nan}, {"a": b"x"}, {"\ud800": 1}]),
    st.sampled_from(
        [object(), int, len, ValueError("x"), ..., NotImplemented, range(3), memoryview(b"x"), bytearray(b"x")]
    ),
    st.sampled_from([timedelta(0), timedelta.max, datetime.now(UTC), Path(), Path("/\0"), Path("x" * 5000)]),
    st.sampled_from([np.int64(7), np.float32(0.5), np.array([1, 2]), np.array([]), np.str_("bars"), np.bool_(1)]),
    st.sampled_from(
        [Output.model_construct(width=641), Limits.model_construct(max_attempts="x"), Output.model_construct()]
    ),
)
FIELDS = [
    "scene", "params", "output", "start", "duration", "audio_track", "backend", "require_gpu", "limits", "priority", "metadata",
    "parallel", "idempotency_key",
]  # fmt: skip


@pytest.fixture(scope="module")
def service() -> Iterator[RenderService]:
    backend = InlineBackend({"fake": FakeRenderer()})
    service = RenderService(MemoryJobStore(), MemoryStorage(), backend, worker=False, owned=[backend])
    yield service
    service.close()


@pytest.fixture(scope="module")
def finished(service: RenderService) -> str:
    handle = service.submit(b"RIFF", scene="fake", output=Output(width=64, height=36), idempotency_key="first")
    eventually(lambda: service.tick() >= 0 and handle.job.ended)
    return handle.id


def _refusal(call: Callable[[], object]) -> RenderDispatchError | None:
    try:
        call()
    except RenderDispatchError as error:
        return error
    return None


_few = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.mark.parametrize("field", FIELDS)
@_few
@given(value=ANYTHING)
def test_any_value_of_a_request(service: RenderService, field: str, value: Any) -> None:
    """A request is taken, and can be read back, or is refused by an error of ours that names the field."""
    fields = {"scene": "fake", field: value}
    refused = _refusal(lambda: service.poll(service.submit(b"RIFF", **fields).id).to_json())
    assert refused is None or isinstance(refused, InvalidRequestError)
    assert refused is None or field in str(refused) or refused.code != "request.invalid"


@_few
@given(value=ANYTHING)
def test_any_value_as_audio(service: RenderService, value: Any) -> None:
    """Audio is what can be read as audio; a bare string is none."""
    for make in (lambda: value, lambda: AudioUrl(value), lambda: StorageKey(value)):
        with suppress(RenderDispatchError):
            service.submit(make(), scene="fake", idempotency_key="key")


@pytest.mark.parametrize("make", [Output, Limits])
@_few
@given(data=st.data(), value=ANYTHING)
def test_any_value_of_an_argument(make: type[Output | Limits], data: st.DataObject, value: Any) -> None:
    """What applications make themselves is refused where it is made, as a `ValueError` with a code."""
    name = data.draw(st.sampled_from([*make.model_fields]))
    refused = _refusal(lambda: make(**{name: value}))
    assert refused is None or (name in str(refused) and refused.code == "request.invalid")


CALLS: dict[str, Callable[[RenderService, Any], object]] = {
    "get": lambda service, value: service.get(value),
    "poll": lambda service, value: service.poll(value),
    "cancel": lambda service, value: service.cancel(value),
    "retry": lambda service, value: service.retry(value),
    "delete": lambda service, value: service.delete(value),
    "download_url": lambda service, value: service.download_url(value),
    "handle": lambda service, value: service.handle(value).job,
    "wait": lambda service, value: service.handle("absent").wait(value),
    "open_object": lambda service, value: service.open_object(value),
    "jobs by status": lambda service, value: service.jobs(status=value),
    "jobs by limit": lambda service, value: service.jobs(limit=value),
    "jobs by cursor": lambda service, value: service.jobs(cursor=value),
    "for_tenant": lambda service, value: service.for_tenant(value),
    "size": lambda service, value: service.create_upload(size=value, content_type="audio/wav"),
    "content_type": lambda service, value: service.create_upload(size=1, content_type=value),
}


@pytest.mark.parametrize("call", CALLS)
@_few
@given(value=ANYTHING)
def test_any_value_of_a_call(service: RenderService, call: str, value: Any) -> None:
    """Every other call takes what it can take, and refuses the rest by an error of ours."""
    with suppress(RenderDispatchError):
        CALLS[call](service, value)


@_few
@given(value=ANYTHING, other=ANYTHING)
def test_any_webhook(value: Any, other: Any) -> None:
    """A webhook of any shape is answered."""
    backend = InlineBackend({"fake": FakeRenderer()})
    service = RenderService(MemoryJobStore(), MemoryStorage(), backend, secrets="whsec_" + "A" * 44, worker=False)
    assert service.handle_webhook(value, other).status in {400, 401, 413}


@_few
@given(value=ANYTHING)
def test_any_path_to_save_to(service: RenderService, finished: str, tmp_path: Path, value: Any) -> None:
    """A video is saved to a file, or the path is refused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        with suppress(RenderDispatchError):
            service.save(finished, value)


# --- what is said


def test_a_key_that_is_not_text(service: RenderService) -> None:
    """An integer as an idempotency key, as JSON may bring it, is refused by name."""
    keys: list[Any] = [5, b"x", 1.5, [], np.int64(5)]
    for key in keys:
        with pytest.raises(InvalidRequestError, match="idempotency_key: text of 1 to 1024 bytes") as refusal:
            service.submit(b"RIFF", scene="fake", idempotency_key=key)
        assert refusal.value.code == "idempotency-key.invalid"


def test_an_output_that_cannot_be(service: RenderService) -> None:
    """An odd size is refused where the output is made, and where one that was never checked is used."""
    with pytest.raises(InvalidRequestError, match="Output: width: Input should be a multiple of 2"):
        Output(width=641)
    changed = Output(width=640).model_copy(update={"width": 641})
    with pytest.raises(InvalidRequestError, match=r"output\.width: Input should be a multiple of 2"):
        service.submit(b"RIFF", scene="fake", output=changed)


def test_a_field_that_is_misspelt() -> None:
    """A name that no field has is refused with the near one, instead of being ignored."""
    with pytest.raises(UnknownNameError, match="unknown field of Output 'widht'; did you mean 'width'"):
        Output(widht=640)  # type: ignore[call-arg]
    assert Limits(maxAttempts=1).max_attempts == 1  # type: ignore[call-arg]  # the name of the wire
    assert Output.model_validate({"width": 640, "newer": 1}).width == 640  # a newer peer's field


def test_numbers_of_other_types(service: RenderService) -> None:
    """NumPy's numbers, decimals and fractions are numbers."""
    output = Output(width=np.int64(640), height=np.int32(360), fps=Decimal("29.97"))  # type: ignore[arg-type]
    assert (output.width, output.fps) == (640, Fraction(2997, 100))
    assert Output(fps=np.int64(25)) == Output(fps=np.float32(25)) == Output(fps=Fraction(25))  # type: ignore[arg-type]
    handle = service.submit(b"RIFF", scene="fake", start=np.float32(0.5), priority=np.int64(3))  # type: ignore[arg-type]
    assert (handle.job.request.start, type(handle.job.priority)) == (0.5, int)


def test_the_id_of_a_job_is_text(service: RenderService) -> None:
    """A handle in the place of its id is no job, and the error says what an id is."""
    with pytest.raises(JobNotFoundError, match="its id is a str, not JobHandle"):
        service.get(cast("str", service.handle("x")))


class _Odd(io.RawIOBase):
    """A stream whose ``read`` returns or raises what it was given."""

    def __init__(self, result: object) -> None:
        self._result = result

    def read(self, _: int = -1) -> Any:
        if isinstance(self._result, Exception):
            raise self._result
        result, self._result = self._result, b""
        return result


@pytest.mark.parametrize(
    "result", ["text", None, 5, OSError("the disk"), ValueError("closed"), io.UnsupportedOperation("not readable")]
)
def test_a_stream_that_is_not_one(service: RenderService, result: object) -> None:
    """What a stream does in place of reading bytes is the request's fault; nothing is stored."""
    with pytest.raises(InvalidRequestError) as refusal:
        service.submit(cast("BinaryIO", _Odd(result)), scene="fake")
    assert refusal.value.code == "audio.invalid"


def test_an_upload_of_an_asynchronous_framework(service: RenderService) -> None:
    """An upload whose ``read`` must be awaited is refused by what it returned."""

    class Upload:
        async def read(self, _: int) -> bytes:
            return b""

    with pytest.raises(InvalidRequestError, match=r"read\(\) returned a coroutine"):
        service.submit(Upload(), scene="fake")  # type: ignore[arg-type]


def test_a_stream_of_byte_arrays(service: RenderService) -> None:
    """A stream may return its bytes as a `bytearray`."""
    handle = service.submit(cast("BinaryIO", _Odd(bytearray(b"RIFF"))), scene="fake")
    with service.open_object(cast("StoredAudio", handle.job.request.audio).key) as file:
        assert file.read() == b"RIFF"


# --- what services and their parts are made from


_SECRET = "whsec_" + "A" * 44
_NOW = datetime.now(UTC)
PARTS: dict[str, Callable[[Any], object]] = {
    "backends": lambda value: RenderService(MemoryJobStore(), MemoryStorage(), value),
    "a backend": lambda value: RenderService(MemoryJobStore(), MemoryStorage(), {"a": value}),
    "lease": lambda value: RenderService(MemoryJobStore(), MemoryStorage(), InlineBackend(), lease=value),
    "secrets": lambda value: RenderService(MemoryJobStore(), MemoryStorage(), InlineBackend(), secrets=[value]),
    "webhook_url": lambda value: RenderService(
        MemoryJobStore(), MemoryStorage(), InlineBackend(), secrets=_SECRET, webhook_url=value
    ),
    "the base of signed URLs": lambda value: SignedUrls(value, "x" * 32),
    "secrets of signed URLs": lambda value: SignedUrls("https://a.example", value),
    "the life of a signed URL": lambda value: SignedUrls("https://a.example", "x" * 32).sign_get("a", expires_in=value),
    "the key of a signed URL": lambda value: SignedUrls("https://a.example", "x" * 32).sign_get(
        value, expires_in=timedelta(1)
    ),
    "a signer's secret": WebhookSigner,
    "a signed id": lambda value: WebhookSigner(_SECRET).sign(value, b"", now=_NOW),
    "a signed body": lambda value: WebhookSigner(_SECRET).sign("id", value, now=_NOW),
    "the time of signing": lambda value: WebhookSigner(_SECRET).sign("id", b"", now=value),
    "a verifier's tolerance": lambda value: WebhookVerifier(_SECRET, tolerance=value),
    "a verifier's secrets": lambda value: WebhookVerifier([value]),
    "the time of verifying": lambda value: WebhookVerifier(_SECRET).verify({}, b"", now=value),
    "a bearer token": BearerVerifier,
    "allowed hosts": lambda value: GuardedFetcher(allow_hosts=[value]),
    "the home in settings": lambda value: Settings(home=value),
    "the backends in settings": lambda value: Settings(backends=value),
    "a lease in settings": lambda value: Settings(lease_s=value),
    "the folder of a storage": FsspecStorage,
    "the prefix of a list": lambda value: list(MemoryStorage().list(value)),
    "the prefix of a deletion": lambda value: MemoryStorage().delete_prefix(value),
    "a bucket": lambda value: R2Storage(value, account_id="a" * 32, access_key_id="id", secret_access_key="secret"),
    "the prefix of a bucket": lambda value: R2Storage(
        "bucket", account_id="a" * 32, access_key_id="id", secret_access_key="secret", prefix=value
    ),
    "an account": lambda value: R2Storage("bucket", account_id=value, access_key_id="id", secret_access_key="secret"),
    "the URL of a render service": HttpBackend,
    "the token of a render service": lambda value: HttpBackend("https://a.example", token=value),
}


@pytest.mark.parametrize("part", PARTS)
@_few
@given(value=ANYTHING)
def test_any_value_of_a_part(part: str, value: Any) -> None:
    """What a service, a signer or a verifier cannot be made from is refused by an error of ours."""
    with suppress(RenderDispatchError):
        PARTS[part](value)


@pytest.mark.parametrize("value", [5, b"home", ["home"], "\ud800"])
def test_a_home_that_is_no_path(value: Any) -> None:
    """`local` says what it takes."""
    with pytest.raises(ConfigurationError, match="home"):
        local(value, worker=False)


def test_settings_that_are_none() -> None:
    """`from_settings` takes nothing but settings, and `Settings` no argument that is misspelt."""
    with pytest.raises(ConfigurationError, match="takes Settings, not dict"):
        from_settings(cast("Settings", {"backends": "inline"}))
    with pytest.raises(ConfigurationError, match="unknown setting 'bakends'; did you mean 'backends'") as misspelt:
        Settings(bakends=("inline",))  # type: ignore[call-arg]
    assert misspelt.value.code == "configuration.unknown"


def test_a_text_in_the_place_of_a_list() -> None:
    """The letters of a host's name are not hosts."""
    with pytest.raises(ConfigurationError, match=r"pass \['media\.example\.com'\], not a str"):
        GuardedFetcher(allow_hosts="media.example.com")
