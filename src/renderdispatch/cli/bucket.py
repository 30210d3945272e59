"""Does a bucket do all that renders ask of it?

Each check does what a render or a browser would do, below a prefix of its own that is removed at the end. Signed URLs
are never shown.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Final

from renderdispatch.cli.finding import Finding, found
from renderdispatch.errors import ObjectExistsError, StorageError, StorageUnavailableError
from renderdispatch.messages import SignedPut
from renderdispatch.plumbing.net import Client, NetError, Response
from renderdispatch.plumbing.stop import Stop
from renderdispatch.storage.r2 import PART_BYTES, R2Storage

_BODY: Final = b"renderdispatch"
_LIFE: Final = timedelta(minutes=10)
_REQUEST_S: Final = 30.0
_SKEW_S: Final = 5.0
_BAD_SKEW_S: Final = 60.0
"""Deadlines allow as much between two machines; S3 itself refuses from 15 minutes on."""
_TRIES: Final = 4
_PAUSE_S: Final = 1.1
"""R2 takes one write a second of one key."""


def examine_bucket(storage: R2Storage, *, origin: str | None = None, stop: Stop | None = None) -> list[Finding]:
    """Carry out every check; without access to the bucket, only those that need none.

    Args:
        storage: Over the bucket.
        origin: Of the page that uploads from browsers, as ``https://app.example``.
        stop: Ends the request that is running.
    """
    with closing(Client(total_s=_REQUEST_S, proxies=True)) as client:
        bucket = _Bucket(storage, client, f"doctor/{uuid.uuid4().hex}/", stop)
        findings = [found("clock", bucket.clock)]
        if findings[0].status == "broken":
            return findings
        findings.append(found("storage", bucket.access))
        if findings[-1].status == "broken":
            with suppress(StorageError):  # what may be written need not be readable
                bucket.clean_up()
            return findings
        checks: dict[str, Callable[[], Finding]] = {
            "write-once": bucket.write_once,
            "multipart": bucket.multipart,
            "signed get": bucket.signed_get,
            "signed put": bucket.signed_put,
            "cors": lambda: bucket.cors(origin),
            "clean-up": bucket.clean_up,
        }
        return [*findings, *(found(name, check) for name, check in checks.items())]


class _Bucket:
    """The checks; each writes other keys below the prefix."""

    def __init__(self, storage: R2Storage, client: Client, prefix: str, stop: Stop | None) -> None:
        self._storage = storage
        self._client = client
        self._prefix = prefix
        self._stop = stop

    def clock(self) -> Finding:
        """Ask without a signature: the refusal is dated too."""
        response = self._request("the endpoint", "GET", self._signed_put("clock").url.partition("?")[0])
        try:
            skew_s = time.time() - parsedate_to_datetime(response.headers.get("date", "")).timestamp()
        except ValueError:
            return Finding("clock", "note", "the endpoint does not say what time it is: nothing to compare with")
        if abs(skew_s) <= _SKEW_S:
            return Finding("clock", "ok", f"within {_SKEW_S:g} s of the endpoint's")
        said = f"{abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} the endpoint's; let NTP set it"
        return Finding("clock", "broken" if abs(skew_s) > _BAD_SKEW_S else "note", said)

    def access(self) -> Finding:
        """Put, read, list and delete: what the token of a render's bucket has to allow."""
        key = f"{self._prefix}access"
        self._storage.put(key, _BODY)
        with self._storage.open(key) as file:
            same = file.read() == _BODY
        listed = [info.key for info in self._storage.list(key)]
        self._storage.delete(key)
        if not same:
            return Finding("storage", "broken", f"{self._storage!r} gave back other bytes than were put")
        if listed != [key]:
            return Finding("storage", "broken", f"{self._storage!r} does not list an object that was just put")
        return Finding("storage", "ok", f"{self._storage!r}: an object was put, read, listed and deleted")

    def write_once(self) -> Finding:
        """Put the same key twice on the condition that nothing stands there."""
        key = f"{self._prefix}once"
        self._storage.put(key, _BODY, if_absent=True)
        try:
            self._storage.put(key, _BODY, if_absent=True)
        except ObjectExistsError:
            return Finding("write-once", "ok", "a second conditional put was refused")
        return Finding(
            "write-once", "broken", "a second conditional put went through: this S3 API ignores if-none-match; use R2"
        )

    def multipart(self) -> Finding:
        """Put one byte more than fits one part."""
        size = self._storage.put(f"{self._prefix}parts", iter([bytes(PART_BYTES), b"."])).size
        if size != PART_BYTES + 1 or self._storage.stat(f"{self._prefix}parts").size != size:
            return Finding("multipart", "broken", "an upload in two parts has not the size of both")
        return Finding("multipart", "ok", "an upload in two parts arrived whole")

    def signed_get(self) -> Finding:
        key = f"{self._prefix}get"
        self._storage.put(key, _BODY)
        url = self._storage.sign_get(key, expires_in=_LIFE)
        signed = "X-Amz-Signature=" in url
        what = "a signed URL" if signed else "the public domain"
        response = self._request(what, "GET", url)
        if response.status == 200 and response.body == _BODY:
            return Finding("signed get", "ok", f"an object was read by {what}")
        step = (
            "look whether something between here and the endpoint changes requests"
            if signed
            else "connect the domain to this bucket, or unset RENDERDISPATCH_R2_PUBLIC_URL"
        )
        return Finding("signed get", "broken", f"{what} answered {response.status}; {step}")

    def signed_put(self) -> Finding:
        """Upload twice by one signed URL: the first is taken, the second refused."""
        put = self._signed_put("put")
        statuses = [self._put(put), self._put(put)]
        match statuses:
            case [200, 412]:
                return Finding(
                    "signed put", "ok", "an upload by a signed URL was taken once, and refused the second time"
                )
            case [200, 200]:
                said = "a signed URL took a second upload: this S3 API ignores if-none-match; use R2"
            case _:
                said = f"uploads by a signed URL were answered {statuses}, not 200 and 412; look at the token's rights"
        return Finding("signed put", "broken", said)

    def cors(self, origin: str | None) -> Finding:
        """Ask what a browser asks before it uploads."""
        if origin is None:
            said = "not asked; 'renderdispatch doctor --origin https://your.app' asks whether pages there may upload"
            return Finding("cors", "note", said)
        put = self._signed_put("cors")
        wanted = sorted(name for name in put.headers if name != "content-length")  # browsers set that themselves
        asked = {
            "origin": origin,
            "access-control-request-method": "PUT",
            "access-control-request-headers": ",".join(wanted),
        }
        response = self._request("the preflight", "OPTIONS", put.url, asked)
        return judge_preflight(response.status, response.headers, origin=origin, wanted=wanted)

    def clean_up(self) -> Finding:
        number = self._storage.delete_prefix(self._prefix)
        return Finding("clean-up", "ok", f"the {number} objects of these checks are deleted")

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


def judge_preflight(status: int, headers: Mapping[str, str], *, origin: str, wanted: list[str]) -> Finding:
    """Say whether a browser would upload after this answer.

    Args:
        status: Of the answer to ``OPTIONS``.
        headers: Of the answer, by names in lower case.
        origin: Of the page.
        wanted: Which headers the upload sends.
    """
    rule = (
        f"add a CORS rule to the bucket: AllowedOrigins [{origin}], AllowedMethods [PUT], "
        f"AllowedHeaders [{', '.join(wanted)}]"
    )
    refused_by_rule = status == 403 and "xml" in headers.get("content-type", "")
    if status >= 400 and not refused_by_rule:  # Cloudflare's local R2 knows no rules, and refuses pages in plain text
        return Finding("cors", "note", f"the endpoint does not answer preflights ({status}); on R2 {rule}")
    allowed = {part.strip().lower() for part in headers.get("access-control-allow-headers", "").split(",")}
    methods = {part.strip().upper() for part in headers.get("access-control-allow-methods", "").split(",")}
    if not 200 <= status < 300 or headers.get("access-control-allow-origin") not in {origin, "*"}:
        return Finding("cors", "broken", f"pages of {origin} may not upload; {rule}")
    if not methods & {"PUT", "*"}:
        return Finding("cors", "broken", f"pages of {origin} may not PUT; {rule}")
    if "*" not in allowed and (missing := [name for name in wanted if name not in allowed]):
        return Finding("cors", "broken", f"pages of {origin} may not send {', '.join(missing)}; {rule}")
    return Finding("cors", "ok", f"pages of {origin} may upload")
