"""How is a URL signed, so that it runs one S3 request without credentials?

By Signature Version 4 in its query string. This is pure computation: no connection, no event loop, and none of
botocore, which takes fifty times as long. The rules are AWS's, and the tests hold this module to botocore:
https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote, urlsplit

from attrs import field, frozen

from renderdispatch.errors import ConfigurationError

_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_PORTS: Final = {"http": 80, "https": 443}
_NOTHING: Final[Mapping[str, str]] = {}


def _matches(pattern: str, message: str) -> Callable[[object, Any, str], None]:
    def check(_: object, attribute: Any, value: str) -> None:
        if not re.fullmatch(pattern, value):
            raise ConfigurationError(message.format(name=attribute.name, value=value[:80]))

    return check


_NAME: Final = "{value!r} is not a bucket's name: 3 to 63 lower-case letters, digits and hyphens, without a URL"
_CREDENTIAL: Final = _matches(r"[!-~]+", "{name} is empty, or contains a space or a line break")


@frozen(kw_only=True)
class Endpoint:
    """Where a bucket is, and whose credentials are used.

    Args:
        url: Of the S3 API, without the bucket.
        bucket: Its name.
        access_key_id: Names who asks.
        secret_access_key: Signs.
        region: What signatures are for.

    Raises:
        ConfigurationError: The bucket's name or a credential cannot be right.
    """

    url: str
    bucket: str = field(validator=_matches(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", _NAME))
    access_key_id: str = field(repr=False, validator=_CREDENTIAL)
    secret_access_key: str = field(repr=False, validator=_CREDENTIAL)
    region: str = "auto"


class Presigner:
    """Signs URLs for the objects of one bucket. Safe to share between threads, and across forks.

    Args:
        endpoint: Where the bucket is, and whose credentials sign.
        clock: Returns the time, aware and in UTC.
    """

    def __init__(self, endpoint: Endpoint, *, clock: Callable[[], datetime]) -> None:
        parts = urlsplit(f"{endpoint.url}/{endpoint.bucket}")
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else str(parts.hostname)
        # clients leave out the port of the scheme in their Host header, so it must not be signed
        self._host = host if parts.port in {None, _PORTS.get(parts.scheme)} else f"{host}:{parts.port}"
        self._origin, self._path = f"{parts.scheme}://{parts.netloc}", f"{parts.path}/"
        self._endpoint, self._clock = endpoint, clock
        self._of_day: tuple[str, str, bytes] = ("", "", b"")
        """A day with its scope and its key. One attribute, so that threads see all three change at once."""

    def sign(
        self,
        method: str,
        key: str,
        *,
        expires_s: int,
        headers: Mapping[str, str] = _NOTHING,
        query: Mapping[str, str] = _NOTHING,
    ) -> str:
        """Return a URL that runs one request on the object ``key``. It may be used again until it expires.

        Args:
            method: Of HTTP, in capitals.
            key: Within the bucket.
            expires_s: Seconds from now until it expires, at most 604,800.
            headers: What the request must send, with names in lower case; their values are signed.
            query: What else the URL says.
        """
        moment = f"{self._clock():%Y%m%dT%H%M%SZ}"
        scope, signing_key = self._key_of(moment[:8])
        bound = {"host": self._host, **{name: " ".join(value.split()) for name, value in headers.items()}}
        names = sorted(bound)
        signed_names = ";".join(names)
        path = self._path + quote(key, safe="/")
        credential = f"{self._endpoint.access_key_id}/{scope}"
        text = _query(credential, moment, expires_s, signed_names, tuple(query.items()))
        lines = [f"{name}:{bound[name]}" for name in names]
        request = "\n".join([method, path, text, *lines, "", signed_names, "UNSIGNED-PAYLOAD"])
        to_sign = f"{_ALGORITHM}\n{moment}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = hmac.digest(signing_key, to_sign.encode(), "sha256").hex()
        return f"{self._origin}{path}?{text}&X-Amz-Signature={signature}"

    def _key_of(self, day: str) -> tuple[str, bytes]:
        known, scope, key = self._of_day
        if known != day:
            scope = f"{day}/{self._endpoint.region}/s3/aws4_request"
            key = f"AWS4{self._endpoint.secret_access_key}".encode()
            for part in scope.split("/"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._of_day = (day, scope, key)
        return scope, key


@lru_cache(64)
def _query(credential: str, moment: str, expires_s: int, signed_names: str, others: tuple[tuple[str, str], ...]) -> str:
    """Return the query string that is signed; the URLs of one order have the same one."""
    asked = {
        **dict(others),
        "X-Amz-Algorithm": _ALGORITHM,
        "X-Amz-Credential": credential,
        "X-Amz-Date": moment,
        "X-Amz-Expires": str(expires_s),
        "X-Amz-SignedHeaders": signed_names,
    }
    pairs = sorted((quote(name, safe=""), quote(value, safe="")) for name, value in asked.items())
    return "&".join(f"{name}={value}" for name, value in pairs)
