"""How does this library talk to a bucket behind an S3 endpoint?

Commands go through s3fs's aiobotocore client. Bodies travel over plain HTTP, by URLs that are signed here. Calls that
may succeed later are repeated here and nowhere else, so that the caller knows what was tried. Every refusal becomes an
error of our tree. Responses are never quoted in it, because they may hold signatures.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache, partial
from typing import Any, Final, TypeVar

from attrs import frozen

from renderdispatch import errors
from renderdispatch.plumbing.failures import translated
from renderdispatch.plumbing.net import STALL_S, Client, NetError, Response, plain_url
from renderdispatch.plumbing.per_process import PerProcess
from renderdispatch.plumbing.retry import Backoff, Trouble, retry
from renderdispatch.plumbing.sigv4 import Endpoint, Presigner

_T = TypeVar("_T")

_NOTHING: Final[Mapping[str, str]] = {}
_OWN_EXPIRY_S: Final = 3600
"""How long the URLs live that this process signs for itself. A transfer that has begun may take longer."""

_BACKOFF: Final = Backoff(failures=5, throttled_s=60.0, pause_s=0.5, longest_pause_s=4.0)
_SKEW_S: Final = 300.0
_ERROR_BYTES: Final = 1 << 16
_DELETES_AT_ONCE: Final = 16
_LOUD: Final = ("botocore.auth", "botocore.endpoint", "botocore.httpsession", "botocore.parsers", "botocore.hooks")

THROTTLED: Final = "storage.throttled"
NO_BUCKET: Final = "storage.no-bucket"

_UNAVAILABLE: Final = frozenset({408, 500, 502, 503, 504})
_THROTTLES: Final = frozenset({"SlowDown", "TooManyRequests", "Throttling", "RequestLimitExceeded"})
_AGAIN: Final = frozenset({"ConditionalRequestConflict", "OperationAborted", "RequestTimeout"})
_UNSAID: Final = {401: "Unauthorized", 403: "AccessDenied", 404: "NoSuchKey", 412: "PreconditionFailed"}
_WRONG_REGION: Final = frozenset({"AuthorizationHeaderMalformed", "AuthorizationQueryParametersError"})
_WRONG_CLOCK: Final = frozenset({"RequestTimeTooSkewed", "ExpiredRequest", "RequestExpired"})


class S3:
    """A bucket. Safe to share between threads, and across forks. Opens nothing before its first use.

    Args:
        endpoint: Where it is.
        stall_s: A try fails when no byte moves for so many seconds.
        clock: Returns the time, aware and in UTC; signatures carry it.
        monotonic: The clock of the retries; seconds.
        sleep: Waits so many seconds between two tries.

    Raises:
        MissingExtraError: s3fs is not installed.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        stall_s: float = STALL_S,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if importlib.util.find_spec("s3fs") is None:
            raise errors.MissingExtraError.of("R2Storage", "r2")
        self.endpoint = endpoint
        self._clock, self._monotonic, self._sleep = clock, monotonic, sleep
        self.sign: Final = Presigner(endpoint, clock=clock).sign
        self._http = Client(stall_s=stall_s, proxies=True)
        self._clients = PerProcess(partial(_new_client, endpoint, stall_s=stall_s))
        self._bucket_seen = False

    def close(self) -> None:
        """Close the connections of this process. A second call does nothing; a later use opens new ones."""
        self._http.close()
        if (client := self._clients.take()) is not None:
            _run(client.close)

    # --- commands

    def call(self, operation: str, what: str, /, **params: Any) -> dict[str, Any]:
        """Run one operation of botocore's S3 client on this bucket; retry where that may help.

        Args:
            operation: Its name, such as ``head_object``.
            what: What errors call the thing that it is about.
            params: As botocore takes them, without the bucket.

        Raises:
            StorageError: As `refusal` says.
        """
        return self._command(what, lambda client: getattr(client, operation)(Bucket=self.endpoint.bucket, **params))

    def delete(self, keys: list[str], what: str) -> None:
        """Delete many objects, some at a time. DeleteObjects is not used: servers differ on the checksum it wants."""

        async def delete_all(client: Any) -> None:
            import asyncio

            gate = asyncio.Semaphore(_DELETES_AT_ONCE)

            async def delete_one(key: str) -> None:
                async with gate:
                    await client.delete_object(Bucket=self.endpoint.bucket, Key=key)

            await asyncio.gather(*map(delete_one, keys))

        self._command(what, delete_all)

    def _command(self, what: str, work: Callable[[Any], Awaitable[_T]]) -> _T:
        def attempt() -> _T:
            with self._command_errors(what):
                done = _run(work, self._clients.get())
            self._bucket_seen = True
            return done

        return self.retry(attempt)

    # --- bodies

    def send(
        self,
        key: str,
        what: str,
        *,
        size: int,
        pieces: Callable[[], Iterator[bytes]],
        headers: Mapping[str, str] = _NOTHING,
        query: Mapping[str, str] = _NOTHING,
    ) -> str | None:
        """Put an object, or a part of one, and return its etag. A retry sends the body from its start.

        Args:
            key: Where it goes, within the bucket.
            what: What errors call it.
            size: Bytes of the body.
            pieces: Iterates over the body from its start. What it raises passes through.
            headers: Signed, and sent.
            query: Of the URL: which part of which upload. Empty for a whole object.
        """

        def attempt() -> str | None:
            url = self.sign("PUT", key, expires_s=_OWN_EXPIRY_S, headers=headers, query=query)
            with self._http_errors(what):
                sent = {**headers, "content-length": str(size)}
                response = self._http.request("PUT", url, body=pieces(), headers=sent, max_bytes=_ERROR_BYTES)
            if response.status != 200:
                raise self._refused(response, what)
            return response.headers.get("etag")

        return self.retry(attempt)

    def get(self, key: str, what: str, *, start: int = 0, etag: str | None = None) -> Stream:
        """Open an object for streamed reading, from the byte ``start`` on, if it is still the version ``etag``.

        This is one try; see `retry`.
        """
        headers = {"range": f"bytes={start}-"} if start else {}
        if etag is not None:
            headers["if-match"] = etag
        url = self.sign("GET", key, expires_s=_OWN_EXPIRY_S)
        with ExitStack() as stack, self._http_errors(what):
            response = stack.enter_context(self._http.stream("GET", url, headers=headers))
            if response.status == (206 if start else 200):
                return Stream(response.headers.get("etag"), self._pieces(response.pieces, what), stack.pop_all().close)
            refused = response.read(_ERROR_BYTES)
        raise self._refused(refused, what)

    def _pieces(self, pieces: Iterator[bytes], what: str) -> Iterator[bytes]:
        with self._http_errors(what):
            yield from pieces

    # --- trouble

    def retry(self, attempt: Callable[[], _T]) -> _T:
        """Call ``attempt`` until it returns: five failures in a row are too many, and so is a minute of throttling.

        The minute begins with the first refusal, because a large body may take longer than that to send.
        """
        return retry(
            attempt, _BACKOFF, trouble=_trouble, what="reach storage", monotonic=self._monotonic, sleep=self._sleep
        )

    def _http_errors(self, what: str) -> AbstractContextManager[None]:
        return translated({NetError: partial(self._unreachable, what)})

    def _command_errors(self, what: str) -> AbstractContextManager[None]:
        import aiohttp
        from botocore import exceptions
        from botocore.parsers import ResponseParserError

        unreachable = partial(self._unreachable, what)
        return translated(
            {
                exceptions.ClientError: partial(self._refused_command, what),
                exceptions.ParamValidationError: lambda _: errors.StorageError(
                    f"S3 does not take a parameter for {what}"
                ),
                ResponseParserError: lambda _: _not_s3(self.endpoint),
                aiohttp.ClientError: unreachable,
                exceptions.ConnectionError: unreachable,
                exceptions.HTTPClientError: unreachable,
                TimeoutError: unreachable,
            }
        )

    def _unreachable(self, what: str, error: BaseException) -> errors.StorageError:
        why = error if isinstance(error, NetError) else f"cannot be reached ({type(error).__name__})"
        return errors.StorageUnavailableError(f"no access to {what}: {self.endpoint.url} {why}")

    def _refused(self, response: Response, what: str) -> errors.StorageError:
        text = response.body.decode(errors="replace")
        code = re.search(r"<Code>([A-Za-z0-9.]{1,80})</Code>", text)
        return self._error(what, response.status, code[1] if code else "", text=text, date=response.headers.get("date"))

    def _refused_command(self, what: str, error: Any) -> errors.StorageError:
        found, about = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
        return self._error(
            what,
            int(about.get("HTTPStatusCode", 0)),
            str(found.get("Code", "")),
            text=str(found.get("Message", "")),
            date=about.get("HTTPHeaders", {}).get("date"),
        )

    def _error(self, what: str, status: int, code: str, *, text: str, date: str | None) -> errors.StorageError:
        if code == str(status):
            code = self._ask_why(status)
        if code in {"NoSuchKey", "NoSuchUpload"}:
            self._bucket_seen = True
        ahead_s = 0.0
        with suppress(TypeError, ValueError):
            ahead_s = (self._clock() - parsedate_to_datetime(date or "")).total_seconds()
        return refusal(what, status, code, endpoint=self.endpoint, text=text, ahead_s=ahead_s)

    def _ask_why(self, status: int) -> str:
        """Return why a HEAD was refused. Its response has no body; a list is refused for the same reason, and has."""
        from botocore.exceptions import ClientError
        from botocore.parsers import ResponseParserError

        if status not in {401, 403, 404} or (status == 404 and self._bucket_seen):
            return _UNSAID.get(status, str(status))
        try:
            _run(self._clients.get().list_objects_v2, Bucket=self.endpoint.bucket, MaxKeys=1)
        except ResponseParserError:
            return ""
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code.isdecimal():
                return ""
            return code if status != 404 or code == "NoSuchBucket" else _UNSAID[404]
        self._bucket_seen = True
        return _UNSAID[status]


def _trouble(error: Exception) -> Trouble:
    if not isinstance(error, errors.StorageUnavailableError):
        return Trouble.FATAL
    return Trouble.THROTTLED if error.code == THROTTLED else Trouble.FAILED


def refusal(
    what: str, status: int, code: str, *, endpoint: Endpoint, text: str = "", ahead_s: float = 0.0
) -> errors.StorageError:
    """Return the error that a response without success means.

    Args:
        what: What the request was about.
        status: Of HTTP.
        code: Of S3; empty where the response is not one of S3's.
        endpoint: Who responded.
        text: What else the response says. It decides, and is never quoted.
        ahead_s: Seconds by which this machine's clock is ahead of the endpoint's.
    """
    if code == "NoSuchBucket":
        return errors.StorageDeniedError(
            f"there is no bucket {endpoint.bucket!r} at {endpoint.url}: check its name and the account, and the "
            "jurisdiction, which has an endpoint of its own",
            code=NO_BUCKET,
        )
    if status == 429 or code in _THROTTLES:
        return errors.StorageUnavailableError(f"storage asks to slow down at {what} ({status} {code})", code=THROTTLED)
    if status in _UNAVAILABLE or code in _AGAIN:
        return errors.StorageUnavailableError(f"storage could not serve {what} ({status} {code})")
    if status == 412 or code == "PreconditionFailed":
        return errors.ObjectExistsError(f"{what} is write-once, and an object exists there")
    if code in {"NoSuchKey", "NoSuchUpload"}:
        return errors.ObjectNotFoundError(f"nothing is stored under {what}")
    if status == 507:
        return errors.StorageFullError(f"no space is left to write {what}")
    if not code or 300 <= status < 400:
        return _not_s3(endpoint)
    return _denial(what, status, code, endpoint=endpoint, text=text, ahead_s=ahead_s)


def _denial(what: str, status: int, code: str, *, endpoint: Endpoint, text: str, ahead_s: float) -> errors.StorageError:
    if code in _WRONG_CLOCK or (status == 403 and abs(ahead_s) > _SKEW_S):
        by = f" by {abs(ahead_s):.0f} s" if abs(ahead_s) > 1 else ""
        why = f"the clock of this machine is wrong{by}; set it ({code})"
    elif code == "SignatureDoesNotMatch":
        why = "the secret access key does not belong to the access key id"
    elif code in _WRONG_REGION and "region" in text:
        wants = f"{endpoint.url} wants signatures for another region than {endpoint.region!r}"
        why = f"{wants}; name it as region (R2's is 'auto')"
    elif status == 401 or code == "InvalidAccessKeyId" or "Credential access key" in text:
        why = f"the access key id is not known to {endpoint.url}"
    elif status == 403:
        may_not = f"the credentials may not do this in bucket {endpoint.bucket!r}"
        why = f"{may_not}; an R2 token needs 'Object Read & Write' on it ({code})"
    else:
        return errors.StorageError(f"storage refuses {what}: {code} ({status})")
    return errors.StorageDeniedError(f"{what} is refused: {why}")


def _not_s3(endpoint: Endpoint) -> errors.StorageError:
    return errors.StorageDeniedError(
        f"{endpoint.url} does not answer as an S3 API does: give the account's endpoint "
        "(https://<account>.r2.cloudflarestorage.com), and a bucket's public or custom domain as public_url"
    )


def headers_of(params: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers that say over HTTP what ``params`` say to botocore."""
    headers = {header: str(params[name]) for name, header in _HEADERS.items() if name in params}
    return {**headers, **{f"x-amz-meta-{name}": value for name, value in params.get("Metadata", {}).items()}}


_HEADERS: Final = {
    "ContentType": "content-type",
    "ContentDisposition": "content-disposition",
    "IfNoneMatch": "if-none-match",
}


@frozen
class Stream:
    """An object that is being read: its etag as in the header, its bytes, and what ends the reading."""

    etag: str | None
    pieces: Iterator[bytes]
    close: Callable[[], None]


def _new_client(endpoint: Endpoint, *, stall_s: float) -> Any:
    """Return an aiobotocore client on fsspec's event loop."""
    from fsspec.asyn import get_loop
    from s3fs import S3FileSystem

    for name in _LOUD:  # at DEBUG they log what is signed, and the signature
        logging.getLogger(name).setLevel(logging.INFO)
    system = S3FileSystem(
        session=_session(),
        key=endpoint.access_key_id,
        secret=endpoint.secret_access_key,
        endpoint_url=endpoint.url,
        client_kwargs={"region_name": endpoint.region},
        config_kwargs={
            "signature_version": "s3v4",
            "s3": {"addressing_style": "path"},
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "retries": {"total_max_attempts": 1},  # `S3.retry` repeats, and knows that it did
            "connect_timeout": 10,
            "read_timeout": stall_s,
            "max_pool_connections": 32,
        },
        use_listings_cache=False,
        skip_instance_cache=True,
        asynchronous=True,
        loop=get_loop(),
    )
    return _run(system.set_session)


def _run(function: Callable[..., Awaitable[_T]], *args: Any, **kwargs: Any) -> _T:
    """Await ``function(...)`` on fsspec's event loop, from any thread but the loop's own."""
    from fsspec.asyn import get_loop, sync

    done: _T = sync(get_loop(), function, *args, **kwargs)
    return done


@cache
def _session() -> Any:
    """Return botocore's model of S3. It takes long to read, and holds no credentials and no connections."""
    from aiobotocore.session import AioSession

    return AioSession()


def check_endpoint(*, account_id: str | None, endpoint_url: str | None, jurisdiction: str | None) -> str:
    """Return the URL of the S3 API.

    Raises:
        ConfigurationError: The arguments do not name one; the message says what to give.
    """
    if (account_id is None) == (endpoint_url is None):
        why = "give either account_id (for R2) or endpoint_url (for any S3 API)"
    elif jurisdiction not in {None, "eu", "fedramp"}:
        why = f"jurisdiction is 'eu', 'fedramp' or None, not {jurisdiction!r}"
    elif endpoint_url is not None and jurisdiction is not None:
        why = "endpoint_url names the jurisdiction itself: give jurisdiction with account_id alone"
    elif endpoint_url is not None:
        return _check_url(endpoint_url)
    elif not re.fullmatch(r"[0-9a-f]{32}", account_id or ""):
        why = "account_id has 32 hexadecimal digits: the dashboard's R2 overview shows it"
    else:
        return f"https://{account_id}{f'.{jurisdiction}' if jurisdiction else ''}.{_R2_HOST}"
    raise errors.ConfigurationError(why)


def _check_url(endpoint_url: str) -> str:
    parts = plain_url(endpoint_url)
    if parts is None:
        raise errors.ConfigurationError(
            f"endpoint_url is a plain http or https URL, such as https://<account>.{_R2_HOST}"
        )
    host, path = parts.hostname or "", parts.path.rstrip("/")
    if host == "r2.dev" or host.endswith(".r2.dev"):
        why = f"{host} is a bucket's public address, which takes no signatures: give account_id, and this as public_url"
    elif path not in {"", _LOCAL_PATH}:
        why = f"endpoint_url has a path, {path[:80]!r}: remove it, and give the bucket's name as bucket"
    elif host.endswith(_R2_HOST) and not re.fullmatch(r"[0-9a-f]{32}(\.eu|\.fedramp)?\." + re.escape(_R2_HOST), host):
        why = f"{host} is not an account's endpoint: that is https://<account>.{_R2_HOST}, with no bucket in front"
    else:
        return f"{parts.scheme}://{parts.netloc}{path}"
    raise errors.ConfigurationError(why)


_R2_HOST: Final = "r2.cloudflarestorage.com"
_LOCAL_PATH: Final = "/cdn-cgi/local/r2/s3"
"""The path of the S3 API in Cloudflare's local R2. No other endpoint has a path."""
