"""How does this library talk to a bucket behind an S3 endpoint?

Commands and signatures go through s3fs's aiobotocore client, bodies over plain HTTP by URLs that it signs. Tries that
may work later are repeated here and nowhere else, so that it is known what was tried. Every refusal becomes an error of
our tree; answers are never quoted, for they may hold signatures.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attrs import field, frozen

from renderdispatch.errors import (
    ConfigurationError,
    MissingExtraError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageDeniedError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
)
from renderdispatch.plumbing.net import PIECE_BYTES, STALL_S, new_client

if TYPE_CHECKING:
    import asyncio

    import httpx

_log: Final = logging.getLogger("renderdispatch.plumbing.s3")

_T = TypeVar("_T")

_OWN_EXPIRY_S: Final = 3600
"""How long the URLs live that this process signs for itself; what has begun may take longer."""

_PATIENCE_S: Final = 60.0
_MAX_FAILURES: Final = 5
_MAX_PAUSE_S: Final = 4.0
_SKEW_S: Final = 300.0
_ERROR_BYTES: Final = 1 << 16
_LOUD: Final = ("botocore.auth", "botocore.endpoint", "botocore.httpsession", "botocore.parsers", "botocore.hooks")

THROTTLED: Final = "storage.throttled"
NO_BUCKET: Final = "storage.no-bucket"

_UNAVAILABLE: Final = frozenset({408, 500, 502, 503, 504})
_THROTTLES: Final = frozenset({"SlowDown", "TooManyRequests", "Throttling", "RequestLimitExceeded"})
_AGAIN: Final = frozenset({"ConditionalRequestConflict", "OperationAborted", "RequestTimeout"})
_UNSAID: Final = {401: "Unauthorized", 403: "AccessDenied", 404: "NoSuchKey", 412: "PreconditionFailed"}
_WRONG_REGION: Final = frozenset({"AuthorizationHeaderMalformed", "AuthorizationQueryParametersError"})
_WRONG_CLOCK: Final = frozenset({"RequestTimeTooSkewed", "ExpiredRequest", "RequestExpired"})


@frozen(kw_only=True)
class Endpoint:
    """Where a bucket is, and who asks.

    Args:
        url: Of the S3 API, without the bucket.
        bucket: Its name.
        access_key_id: Who asks.
        secret_access_key: Signs.
        region: What signatures are for.
    """

    url: str
    bucket: str
    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    region: str = "auto"


class S3:
    """A bucket; safe to share between threads, and across forks. Opens nothing before it is used.

    Args:
        endpoint: Where it is.
        stall_s: After how many seconds in which nothing moves a try has failed.
        monotonic: The clock by which patience ends; seconds.
        sleep: Waits so many seconds between tries.

    Raises:
        MissingExtraError: s3fs is not installed.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        stall_s: float = STALL_S,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if importlib.util.find_spec("s3fs") is None:
            raise MissingExtraError.of("R2Storage", "r2")
        self.endpoint = endpoint
        self._stall_s = stall_s
        self._monotonic, self._sleep = monotonic, sleep
        self._opened: dict[int, _Connections] = {}
        """By process: neither connections, fsspec's event loop nor a lock that is held survive a fork."""
        self._locks: dict[int, threading.Lock] = {}
        self._bucket_seen = False

    def close(self) -> None:
        """Close the connections of this process. A second call does nothing; a later use opens others."""
        if (opened := self._opened.pop(os.getpid(), None)) is not None:
            opened.close()

    @property
    def _connections(self) -> _Connections:
        process = os.getpid()
        if (found := self._opened.get(process)) is not None:
            return found
        with self._locks.setdefault(process, threading.Lock()):
            if process not in self._opened:
                self._opened[process] = _Connections.open(self.endpoint, stall_s=self._stall_s)
            return self._opened[process]

    # --- commands

    def call(self, operation: str, what: str, /, **params: Any) -> dict[str, Any]:
        """Run one operation of botocore's S3 client on this bucket, again where that may help.

        Args:
            operation: Its name, as ``head_object``.
            what: What errors call the thing that it is about.
            params: As botocore takes them, without the bucket.

        Raises:
            StorageError: As `refusal` says.
        """
        return self.persist(lambda: self._call(operation, what, params))

    def _call(self, operation: str, what: str, params: Mapping[str, Any]) -> dict[str, Any]:
        with self._translated(what):
            connections = self._connections
            answer: dict[str, Any] = connections.run(
                getattr(connections.client, operation), Bucket=self.endpoint.bucket, **params
            )
        self._bucket_seen = True
        return answer

    def delete(self, keys: list[str], what: str) -> None:
        """Delete many objects, some at a time: DeleteObjects wants a checksum on which servers differ."""
        self.persist(lambda: self._delete(keys, what))

    def _delete(self, keys: list[str], what: str) -> None:
        connections = self._connections

        async def delete_all() -> None:
            import asyncio

            gate = asyncio.Semaphore(16)

            async def delete_one(key: str) -> None:
                async with gate:
                    await connections.client.delete_object(Bucket=self.endpoint.bucket, Key=key)

            await asyncio.gather(*(delete_one(key) for key in keys))

        with self._translated(what):
            connections.run(delete_all)

    def sign(self, operation: str, *, expires_s: int, **params: Any) -> str:
        """Return a URL that runs the operation without credentials. Asks nobody."""
        connections = self._connections
        url: str = connections.run(
            connections.client.generate_presigned_url,
            operation,
            Params={"Bucket": self.endpoint.bucket, **params},
            ExpiresIn=expires_s,
        )
        return url

    # --- bodies

    def send(
        self, operation: str, what: str, /, *, size: int, pieces: Callable[[], Iterator[bytes]], **params: Any
    ) -> str | None:
        """Send a body by ``put_object`` or ``upload_part`` and return the etag; from its start again where that helps.

        Args:
            operation: botocore's name.
            what: What errors call it.
            size: Bytes of the body.
            pieces: Iterates over the body from its start. What it raises passes through.
            params: As botocore takes them. Those that are headers are signed, and sent.
        """
        headers = {**headers_of(params), "content-length": str(size)}

        def attempt() -> str | None:
            url = self.sign(operation, expires_s=_OWN_EXPIRY_S, **params)
            with self._translated(what):
                response = self._connections.http.put(url, content=pieces(), headers=headers)
            if response.status_code != 200:
                raise self._refused(response, what)
            etag: str | None = response.headers.get("etag")
            return etag

        return self.persist(attempt)

    def get(self, key: str, what: str, *, start: int = 0, etag: str | None = None) -> Stream:
        """Open an object for streamed reading, from the byte ``start`` on, as long as it is the version ``etag``.

        One try; see `persist`.
        """
        headers = {"range": f"bytes={start}-"} if start else {}
        if etag is not None:
            headers["if-match"] = etag
        url = self.sign("get_object", expires_s=_OWN_EXPIRY_S, Key=key)
        http = self._connections.http
        with self._translated(what):
            response = http.send(http.build_request("GET", url, headers=headers), stream=True)
            if response.status_code == (206 if start else 200):
                return Stream(response.headers.get("etag"), self._pieces(response, what), response.close)
            response.read()
        raise self._refused(response, what)

    def _pieces(self, response: httpx.Response, what: str) -> Iterator[bytes]:
        with self._translated(what):
            yield from response.iter_raw(PIECE_BYTES)

    # --- trouble

    def persist(self, attempt: Callable[[], _T]) -> _T:
        """Try again while storage is away (five times in a row) or asks to slow down (for a minute).

        The minute begins with the first refusal: a large body may take longer than that to send.
        """
        give_up_at: float | None = None
        tries = failures = 0
        while True:
            try:
                return attempt()
            except StorageUnavailableError as error:
                tries += 1
                pause_s = random.uniform(0.5, 1.0) * min(_MAX_PAUSE_S, 0.25 * 2**tries)
                if error.code == THROTTLED:
                    failures = 0  # in a row: it is there, and answers
                    now = self._monotonic()
                    give_up_at = now + _PATIENCE_S if give_up_at is None else give_up_at
                    tired = now + pause_s > give_up_at
                else:
                    failures += 1
                    tired = failures >= _MAX_FAILURES
                if tired:
                    raise
                _log.info("trying again in %.1f s: %s", pause_s, error)
            self._sleep(pause_s)

    def _refused(self, response: httpx.Response, what: str) -> StorageError:
        text = response.content[:_ERROR_BYTES].decode(errors="replace")
        code = re.search(r"<Code>([A-Za-z0-9.]{1,80})</Code>", text)
        return self._error(
            what, response.status_code, code[1] if code else "", text=text, date=response.headers.get("date")
        )

    def _error(self, what: str, status: int, code: str, *, text: str, date: str | None) -> StorageError:
        if code == str(status):
            code = self._ask_why(status)
        if code in {"NoSuchKey", "NoSuchUpload"}:
            self._bucket_seen = True
        return refusal(what, status, code, endpoint=self.endpoint, text=text, date=date)

    def _ask_why(self, status: int) -> str:
        """Return why a HEAD was refused, whose answer has no body to say it: a list is refused for the same reason."""
        from botocore.exceptions import ClientError
        from botocore.parsers import ResponseParserError

        if status not in {401, 403, 404} or (status == 404 and self._bucket_seen):
            return _UNSAID.get(status, str(status))
        connections = self._connections
        try:
            connections.run(connections.client.list_objects_v2, Bucket=self.endpoint.bucket, MaxKeys=1)
        except ResponseParserError:
            return ""
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code.isdecimal():
                return ""
            return code if status != 404 or code == "NoSuchBucket" else _UNSAID[404]
        self._bucket_seen = True
        return _UNSAID[status]

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Name the errors of botocore, aiohttp and httpx as this library does."""
        import aiohttp
        import httpx
        from botocore import exceptions
        from botocore.parsers import ResponseParserError

        try:
            yield
        except exceptions.ClientError as error:
            found = error.response
            about = found.get("ResponseMetadata", {})
            raise self._error(
                what,
                int(about.get("HTTPStatusCode", 0)),
                str(found.get("Error", {}).get("Code", "")),
                text=str(found.get("Error", {}).get("Message", "")),
                date=about.get("HTTPHeaders", {}).get("date"),
            ) from None
        except exceptions.ParamValidationError:
            raise StorageError(f"{what} cannot be asked for: a parameter is not as S3 takes it") from None
        except ResponseParserError:
            raise _not_s3(self.endpoint) from None
        except (
            httpx.HTTPError,
            aiohttp.ClientError,
            exceptions.ConnectionError,
            exceptions.HTTPClientError,
            TimeoutError,
        ) as error:
            host = self.endpoint.url
            raise StorageUnavailableError(f"{what} cannot be reached at {host}: {type(error).__name__}") from None


def refusal(
    what: str, status: int, code: str, *, endpoint: Endpoint, text: str = "", date: str | None = None
) -> StorageError:
    """Return what an answer that is no success means.

    Args:
        what: What was asked for.
        status: Of HTTP.
        code: Of S3; empty where the answer was none of S3's.
        endpoint: Who answered.
        text: What else was said; it decides, and is never quoted.
        date: When, by the clock of whoever answered.
    """
    bucket = endpoint.bucket
    if code == "NoSuchBucket":
        return StorageDeniedError(
            f"there is no bucket {bucket!r} at {endpoint.url}: check its name and the account, and the jurisdiction, "
            "which has an endpoint of its own",
            code=NO_BUCKET,
        )
    if status == 429 or code in _THROTTLES:
        return StorageUnavailableError(f"storage asks to slow down at {what} ({status} {code})", code=THROTTLED)
    if status in _UNAVAILABLE or code in _AGAIN:
        return StorageUnavailableError(f"storage could not serve {what} ({status} {code})")
    if status == 412 or code == "PreconditionFailed":
        return ObjectExistsError(f"{what} is write-once, and an object stands there")
    if code in {"NoSuchKey", "NoSuchUpload"}:
        return ObjectNotFoundError(f"nothing is stored under {what}")
    if not code or 300 <= status < 400:
        return _not_s3(endpoint)
    skew_s = _skew_s(date)
    if code in _WRONG_CLOCK or (status == 403 and abs(skew_s) > _SKEW_S):
        by = f" by {abs(skew_s):.0f} s" if abs(skew_s) > 1 else ""
        return StorageDeniedError(f"{what} is refused: the clock of this machine is wrong{by}; set it ({code})")
    if code == "SignatureDoesNotMatch":
        return StorageDeniedError(f"{what} is refused: the secret access key does not belong to the access key id")
    if code in _WRONG_REGION and "region" in text:
        return StorageDeniedError(
            f"{what} is refused: {endpoint.url} wants signatures for another region than {endpoint.region!r}; "
            "name it as region (R2's is 'auto')"
        )
    if status == 401 or code == "InvalidAccessKeyId" or "Credential access key" in text:
        return StorageDeniedError(f"{what} is refused: the access key id is not known to {endpoint.url}")
    if status == 403:
        return StorageDeniedError(
            f"{what} is refused: the credentials may not do this in bucket {bucket!r}; an R2 token needs "
            f"'Object Read & Write' on it ({code})"
        )
    if status == 507:
        return StorageFullError(f"no space is left to write {what}")
    return StorageError(f"storage refuses {what}: {code} ({status})")


def _not_s3(endpoint: Endpoint) -> StorageError:
    return StorageDeniedError(
        f"{endpoint.url} does not answer as an S3 API does: give the account's endpoint "
        "(https://<account>.r2.cloudflarestorage.com), and a bucket's public or custom domain as public_url"
    )


def _skew_s(date: str | None) -> float:
    """Return by how many seconds this machine's clock is ahead of the one that wrote ``date``."""
    with suppress(TypeError, ValueError):
        return time.time() - parsedate_to_datetime(date or "").timestamp()
    return 0.0


def headers_of(params: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers that must go with a URL that was signed for ``params``."""
    headers = {header: str(params[name]) for name, header in _HEADERS.items() if name in params}
    return {**headers, **{f"x-amz-meta-{name}": value for name, value in params.get("Metadata", {}).items()}}


_HEADERS: Final = {
    "ContentType": "content-type",
    "ContentDisposition": "content-disposition",
    "IfNoneMatch": "if-none-match",
    "ContentLength": "content-length",
}


@frozen
class Stream:
    """An object that is being read: its etag as the header says it, its bytes, and what ends the reading."""

    etag: str | None
    pieces: Iterator[bytes]
    close: Callable[[], None]


@frozen
class _Connections:
    """What one process has open: an aiobotocore client on fsspec's event loop, and an HTTP client."""

    loop: asyncio.AbstractEventLoop
    client: Any
    http: httpx.Client

    @classmethod
    def open(cls, endpoint: Endpoint, *, stall_s: float) -> _Connections:
        from fsspec.asyn import get_loop, sync
        from s3fs import S3FileSystem

        for name in _LOUD:  # at DEBUG they log what is signed, and the signature
            logging.getLogger(name).setLevel(logging.INFO)
        loop = get_loop()
        system = S3FileSystem(
            session=_session(),
            key=endpoint.access_key_id,
            secret=endpoint.secret_access_key,
            endpoint_url=endpoint.url,
            client_kwargs={"region_name": endpoint.region},
            config_kwargs={
                "signature_version": "s3v4",  # else URLs are signed as V2, which R2 refuses
                "s3": {"addressing_style": "path"},
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
                "retries": {"total_max_attempts": 1},  # `S3.persist` repeats, and knows that it did
                "connect_timeout": 10,
                "read_timeout": stall_s,
                "max_pool_connections": 32,
            },
            use_listings_cache=False,
            skip_instance_cache=True,
            asynchronous=True,
            loop=loop,
        )
        return cls(loop, sync(loop, system.set_session), new_client(stall_s=stall_s))

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Await ``function(...)`` on the event loop, from any thread but its own."""
        from fsspec.asyn import sync

        return sync(self.loop, function, *args, **kwargs)

    def close(self) -> None:
        self.http.close()
        self.run(self.client.close)


@cache
def _session() -> Any:
    """Return botocore's model of S3, which takes long to read; it holds no credentials and no connections."""
    from aiobotocore.session import AioSession

    return AioSession()


def check_endpoint(
    *, account_id: str | None, endpoint_url: str | None, jurisdiction: str | None, local_path: str
) -> str:
    """Return the URL of the S3 API.

    Raises:
        ConfigurationError: It cannot be one; the message says what to give.
    """
    from urllib.parse import urlsplit

    if (account_id is None) == (endpoint_url is None):
        raise ConfigurationError("give either account_id (for R2) or endpoint_url (for any S3 API)")
    if jurisdiction not in {None, "eu", "fedramp"}:
        raise ConfigurationError(f"jurisdiction is 'eu', 'fedramp' or None, not {jurisdiction!r}")
    if account_id is not None:
        if not re.fullmatch(r"[0-9a-f]{32}", account_id):
            raise ConfigurationError("account_id has 32 hexadecimal digits: the dashboard's R2 overview shows it")
        within = f".{jurisdiction}" if jurisdiction else ""
        return f"https://{account_id}{within}.{_R2_HOST}"
    assert endpoint_url is not None
    if jurisdiction is not None:
        raise ConfigurationError("endpoint_url names the jurisdiction itself: give jurisdiction with account_id alone")
    try:
        parts = urlsplit(endpoint_url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise ConfigurationError("endpoint_url is no URL") from None
    if parts.scheme not in {"http", "https"} or not host or parts.username or parts.query or parts.fragment:
        raise ConfigurationError(
            "endpoint_url is a plain http or https URL, as https://<account>.r2.cloudflarestorage.com"
        )
    if host == "r2.dev" or host.endswith(".r2.dev"):
        raise ConfigurationError(
            f"{host} is a bucket's public address, which takes no signatures: give account_id, and this as public_url"
        )
    path = parts.path.rstrip("/")
    if path not in {"", local_path}:
        raise ConfigurationError(
            f"endpoint_url has a path, {path[:80]!r}: leave it off, and give the bucket's name as bucket"
        )
    if host.endswith(_R2_HOST) and not re.fullmatch(r"[0-9a-f]{32}(\.eu|\.fedramp)?\." + re.escape(_R2_HOST), host):
        raise ConfigurationError(
            f"{host} is no account's endpoint: that is https://<account>.{_R2_HOST}, with no bucket in front"
        )
    return f"{parts.scheme}://{parts.netloc}{path}"


_R2_HOST: Final = "r2.cloudflarestorage.com"
