"""Does a bucket do everything that renders need?

Each check does what a render or a browser would do, below a prefix of its own that is deleted at the end. Signed URLs
are never shown.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from contextlib import closing, suppress
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Final

from renderdispatch.cli.finding import Finding, Verdict, found
from renderdispatch.errors import ObjectExistsError, StorageError, StorageUnavailableError
from renderdispatch.messages import SignedPut
from renderdispatch.plumbing.net import Client, NetError, Response
from renderdispatch.plumbing.stop import Stop
from renderdispatch.protocols import StorageAdapter
from renderdispatch.storage.r2 import PART_BYTES, R2Storage

_BODY: Final = b"renderdispatch"
_LIFE: Final = timedelta(minutes=10)
_REQUEST_S: Final = 30.0
_URL_S: Final = 5.0
_SKEW_S: Final = 5.0
_BAD_SKEW_S: Final = 60.0
"""Deadlines allow this much between two machines; S3 itself refuses requests from 15 minutes on."""
_TRIES: Final = 4
_PAUSE_S: Final = 1.1
"""R2 takes one write a second of one key."""


def examine_bucket(storage: R2Storage, *, origin: str | None = None, stop: Stop | None = None) -> list[Finding]:
    """Run every check; without access to the bucket, only those that need none.

    Args:
        storage: The bucket.
        origin: The origin of a page that uploads from browsers, such as ``https://app.example``.
        stop: Ends a running request.
    """
    with closing(Client(total_s=_REQUEST_S, proxies=True)) as client:
        prefix = f"doctor/{uuid.uuid4().hex}/"
        bucket = _Bucket(storage, client, prefix, stop)
        findings = [found("clock", bucket.clock)]
        if findings[0].status == "broken":
            return findings
        findings.append(found("storage", lambda: check_access(storage, f"{prefix}access")))
        if findings[-1].status == "broken":
            with suppress(StorageError):  # a token that may write need not be allowed to read
                bucket.clean_up()
            return findings
        checks = {
            "write-once": bucket.write_once,
            "multipart": bucket.multipart,
            "signed get": bucket.signed_get,
            "signed put": bucket.signed_put,
            "cors": lambda: bucket.cors(origin),
            "clean-up": bucket.clean_up,
        }
        return [*findings, *(found(name, check) for name, check in checks.items())]


def check_access(storage: StorageAdapter, key: str) -> Verdict:
    """Put, read, list and delete an object: a render must be allowed all four."""
    storage.put(key, _BODY)
    try:
        with storage.open(key) as file:
            same = file.read() == _BODY
        listed = [info.key for info in storage.list(key)]
    finally:
        storage.delete(key)
    if not same:
        return "broken", f"{storage!r} returned other bytes than were put"
    if listed != [key]:
        return "broken", f"{storage!r} does not list an object that was just put"
    return "ok", f"{storage!r}: an object was put, read, listed and deleted"


def check_urls(storage: StorageAdapter, key: str) -> Verdict:
    """Read an object by the URL that clients and renders get, which the application serves."""
    storage.put(key, _BODY)
    url = storage.sign_get(key, expires_in=_LIFE)
    step = "is the application that serves renderdispatch.web.objects running at RENDERDISPATCH_OBJECTS_URL?"
    try:
        with closing(Client(total_s=_URL_S, proxies=True)) as client:
            response = client.request("GET", url)
    except NetError as error:
        return "broken", f"a signed URL {error}; {step}"
    finally:
        storage.delete(key)
    if response.status == 200 and response.body == _BODY:
        return "ok", "an object was read by a signed URL"
    return "broken", f"a signed URL returned {response.status}; {step}"


class _Bucket:
    """The checks; each one writes keys of its own below the prefix."""

    def __init__(self, storage: R2Storage, client: Client, prefix: str, stop: Stop | None) -> None:
        self._storage = storage
        self._client = client
        self._prefix = prefix
        self._stop = stop

    def clock(self) -> Verdict:
        """Send an unsigned request: the refusal has a date too."""
        response = self._request("the endpoint", "GET", self._signed_put("clock").url.partition("?")[0])
        try:
            skew_s = time.time() - parsedate_to_datetime(response.headers.get("date", "")).timestamp()
        except ValueError:
            return "note", "the endpoint sends no date; the clock cannot be compared"
        if abs(skew_s) <= _SKEW_S:
            return "ok", f"within {_SKEW_S:g} s of the endpoint's"
        text = f"{abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} the endpoint's; set it by NTP"
        return "broken" if abs(skew_s) > _BAD_SKEW_S else "note", text

    def write_once(self) -> Verdict:
        """Put the same key twice, on the condition that it does not exist."""
        key = f"{self._prefix}once"
        self._storage.put(key, _BODY, if_absent=True)
        try:
            self._storage.put(key, _BODY, if_absent=True)
        except ObjectExistsError:
            return "ok", "a second conditional put was refused"
        return "broken", "a second conditional put was accepted: this S3 API ignores if-none-match; use R2"

    def multipart(self) -> Verdict:
        """Put one byte more than fits into one part."""
        key, size = f"{self._prefix}parts", PART_BYTES + 1
        put = self._storage.put(key, iter([bytes(PART_BYTES), b"."])).size
        if not put == self._storage.stat(key).size == size:
            return "broken", "an upload in two parts does not have the size of both"
        return "ok", "an upload in two parts arrived whole"

    def signed_get(self) -> Verdict:
        """Read an object by the URL that clients get."""
        key = f"{self._prefix}get"
        self._storage.put(key, _BODY)
        url = self._storage.sign_get(key, expires_in=_LIFE)
        what, step = "a signed URL", "check for a proxy between here and the endpoint that changes requests"
        if "X-Amz-Signature=" not in url:
            what, step = "the public domain", "connect the domain to this bucket, or unset RENDERDISPATCH_R2_PUBLIC_URL"
        response = self._request(what, "GET", url)
        if response.status == 200 and response.body == _BODY:
            return "ok", f"an object was read by {what}"
        return "broken", f"{what} returned {response.status}; {step}"

    def signed_put(self) -> Verdict:
        """Upload twice by one signed URL: the first must be accepted, the second refused."""
        put = self._signed_put("put")
        match statuses := [self._put(put), self._put(put)]:
            case [200, 412]:
                return "ok", "an upload by a signed URL was accepted once, and refused the second time"
            case [200, 200]:
                return "broken", "a signed URL took a second upload: this S3 API ignores if-none-match; use R2"
        return "broken", f"uploads by a signed URL returned {statuses}, not 200 and 412; check the token's permissions"

    def cors(self, origin: str | None) -> Verdict:
        """Send the request that a browser sends before it uploads."""
        if origin is None:
            step = "'renderdispatch doctor --origin https://your.app' checks that pages there may upload"
            return "note", f"not checked; {step}"
        put = self._signed_put("cors")
        wanted = sorted(name for name in put.headers if name != "content-length")  # browsers set that themselves
        headers = {
            "origin": origin,
            "access-control-request-method": "PUT",
            "access-control-request-headers": ",".join(wanted),
        }
        response = self._request("the preflight", "OPTIONS", put.url, headers)
        return judge_preflight(response.status, response.headers, origin=origin, wanted=wanted)

    def clean_up(self) -> Verdict:
        """Delete what the checks wrote."""
        return "ok", f"the {self._storage.delete_prefix(self._prefix)} objects of these checks are deleted"

    def _signed_put(self, name: str) -> SignedPut:
        key = f"{self._prefix}{name}"
        return self._storage.sign_put(key, expires_in=_LIFE, content_type="text/plain", size=len(_BODY))

    def _put(self, put: SignedPut) -> int:
        for _ in range(_TRIES):
            status = self._request("a signed URL", "PUT", put.url, put.headers, _BODY).status
            if status not in {429, 503}:
                break
            time.sleep(_PAUSE_S)
        return status

    def _request(
        self, what: str, method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Response:
        """Make one request; the error names ``what``, never the URL."""
        try:
            return self._client.request(method, url, headers=headers, body=body, stop=self._stop)
        except NetError as error:
            message = f"{what} {error}; check the endpoint's URL, DNS and the firewall"
            raise StorageUnavailableError(message) from None


def judge_preflight(status: int, headers: Mapping[str, str], *, origin: str, wanted: list[str]) -> Verdict:
    """Return whether a browser would upload after this response to ``OPTIONS``.

    Args:
        headers: The response's headers, by names in lower case.
        origin: The page's origin.
        wanted: The headers that the upload sends.
    """
    rule = (
        f"add a CORS rule to the bucket: AllowedOrigins [{origin}], AllowedMethods [PUT], "
        f"AllowedHeaders [{', '.join(wanted)}]"
    )
    refused_by_rule = status == 403 and "xml" in headers.get("content-type", "")
    if status >= 400 and not refused_by_rule:  # Cloudflare's local R2 has no rules, and refuses pages in plain text
        return "note", f"the endpoint does not support preflights ({status}); on R2 {rule}"
    allowed = {part.strip().lower() for part in headers.get("access-control-allow-headers", "").split(",")}
    methods = {part.strip().upper() for part in headers.get("access-control-allow-methods", "").split(",")}
    if not 200 <= status < 300 or headers.get("access-control-allow-origin") not in {origin, "*"}:
        return "broken", f"pages of {origin} may not upload; {rule}"
    if not methods & {"PUT", "*"}:
        return "broken", f"pages of {origin} may not PUT; {rule}"
    if "*" not in allowed and (missing := [name for name in wanted if name not in allowed]):
        return "broken", f"pages of {origin} may not send {', '.join(missing)}; {rule}"
    return "ok", f"pages of {origin} may upload"
