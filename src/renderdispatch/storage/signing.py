"""How does a storage without a server of its own sign URLs that any HTTP client can use?

By a small scheme that binds what a presigned S3 URL binds::

    <base_url>/<quoted key>?expires=<Unix seconds>&headers=<names>&signature=<hex>[&file-name=<quoted name>]

    signature = HMAC-SHA256(secret, JSON of ["renderdispatch-url-1", base_url, method, key, expires, headers])

A URL that says under which name its object is saved has the name behind the headers in that list.

In the URL, ``headers`` are the names of the request headers that are bound, sorted and joined by dots. In the
signature, they are pairs of name and value. The verifier takes method, key and values from the request itself: a
request that differs in any of them has another signature. ``base_url`` is the verifier's own setting, never the
request's ``Host``, so a URL is valid only at the place that it was signed for. A secret is used as it is, as UTF-8.

Nothing is signed as it is spelled. So a proxy, a mail program or an analytics tool may escape path and query anew, may
reorder the parameters, and may add its own, which are ignored. Each parameter of this scheme occurs at most once.

`renderdispatch.web.objects` serves such URLs.
"""

from __future__ import annotations

import hmac
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import parse_qsl, quote

from renderdispatch.errors import ConfigurationError, StorageDeniedError
from renderdispatch.messages import SignedPut
from renderdispatch.plumbing.net import plain_url
from renderdispatch.protocols import Locality
from renderdispatch.storage.keys import check_expiry, check_file_name, check_key, check_put_size

MIN_SECRET_BYTES: Final = 24
_SCHEME: Final = "renderdispatch-url-1"
_MAX_QUERY: Final = 8192
_PARAMETERS: Final = {
    "expires": re.compile(r"[1-9][0-9]{0,11}", re.ASCII),
    "headers": re.compile(r"[a-z.-]*", re.ASCII),
    "signature": re.compile(r"[0-9a-f]{64}", re.ASCII),
}

_FILE_NAME: Final = "file-name"


class SignedUrls:
    """Signs and verifies the URLs of one storage.

    Args:
        base_url: Where `renderdispatch.web.objects` is mounted, as clients reach it: ``https://app.example/objects``.
        secrets: At least 24 random bytes each. The first one signs; URLs that any of them signed are valid. To replace
            a secret, add the new one in front, and drop the old one when its URLs have expired (7 days).
        locality: How far ``base_url`` reaches.
        clock: Returns the time, aware and in UTC.

    Raises:
        ConfigurationError: The base is not an http or https URL, or a secret is too short.
    """

    def __init__(
        self,
        base_url: str,
        secrets: str | bytes | Sequence[str | bytes],
        *,
        locality: Locality = Locality.WORLD,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._base = _check_base(base_url)
        self._secrets = _read_secrets(secrets)
        if not self._secrets or any(len(secret) < MIN_SECRET_BYTES for secret in self._secrets):
            raise ConfigurationError(f"signed URLs need secrets of at least {MIN_SECRET_BYTES} bytes each")
        self.locality = locality
        self._clock = clock

    def __repr__(self) -> str:
        return f"SignedUrls({self._base!r}, <{len(self._secrets)} secrets>)"

    def sign_get(self, key: str, *, expires_in: timedelta, method: str = "GET", file_name: str | None = None) -> str:
        """Return a URL that reads the object, by this one method: ``GET`` or ``HEAD``.

        Args:
            key: The object's.
            expires_in: How long.
            method: ``GET`` or ``HEAD``.
            file_name: The name under which browsers save it; None: the key's last part.

        Raises:
            StorageDeniedError: The key is not allowed.
            InvalidRequestError: ``expires_in`` is not above 0 and at most 7 days, or the name
                is not one part of a path.
        """
        return self._sign(method, key, expires_in, {}, check_file_name(file_name))

    def sign_put(self, key: str, *, expires_in: timedelta, content_type: str, size: int | None = None) -> SignedPut:
        """Return a write-once upload, as `StorageAdapter.sign_put` does. A size that is given is bound.

        Raises:
            StorageDeniedError: The key is not allowed.
            InvalidRequestError: ``expires_in`` is not above 0 and at most 7 days, or the size is not allowed.
        """
        headers = {"content-type": content_type, "if-none-match": "*"}
        if check_put_size(size) is not None:
            headers["content-length"] = str(size)
        return SignedPut(url=self._sign("PUT", key, expires_in, headers), headers=headers)

    def check(self, method: str, key: str, query: str, headers: Mapping[str, str]) -> str | None:
        """Check that this signed the request's URL, and that it has not expired; return the file's name that it says.

        Args:
            method: The request's, in capitals.
            key: Its path below the base URL, unquoted.
            query: Its raw query string.
            headers: Its headers, with names in lower case.

        Raises:
            StorageDeniedError: ``url.wrong-signature`` or ``url.expired``.
        """
        found = _read_query(query)
        expires, signature = int(found["expires"]), found["signature"]
        bound = {name: headers.get(name, "").strip() for name in found["headers"].split(".") if name}
        file_name = found.get(_FILE_NAME)
        signed = self._text(method, key, expires, bound, file_name)
        if not any(hmac.compare_digest(hmac.digest(s, signed, "sha256").hex(), signature) for s in self._secrets):
            signed_headers = ", ".join(bound) or "none"
            message = f"the signature does not match the request's method, key or signed headers ({signed_headers})"
            raise StorageDeniedError(message, code="url.wrong-signature")
        if self._clock().timestamp() >= expires:
            raise StorageDeniedError("the URL has expired", code="url.expired")
        return file_name

    def _sign(
        self, method: str, key: str, expires_in: timedelta, headers: Mapping[str, str], file_name: str | None = None
    ) -> str:
        expires = math.ceil((self._clock() + check_expiry(expires_in)).timestamp())
        signed = self._text(method, check_key(key), expires, headers, file_name)
        signature = hmac.digest(self._secrets[0], signed, "sha256").hex()
        query = f"expires={expires}&headers={'.'.join(sorted(headers))}&signature={signature}"
        named = "" if file_name is None else f"&{_FILE_NAME}={quote(file_name, safe='')}"
        return f"{self._base}/{quote(key, safe='/')}?{query}{named}"

    def _text(self, method: str, key: str, expires: int, headers: Mapping[str, str], file_name: str | None) -> bytes:
        named = [] if file_name is None else [file_name]
        return json.dumps([_SCHEME, self._base, method, key, expires, sorted(headers.items()), *named]).encode()


def _read_query(query: str) -> dict[str, str]:
    """Return the parameters of this scheme, whatever their order and spelling; others are ignored."""
    pairs = parse_qsl(query, keep_blank_values=True) if len(query) <= _MAX_QUERY else []
    ours = [(name, value) for name, value in pairs if name in _PARAMETERS or name == _FILE_NAME]
    found = dict(ours)
    fits = all(name in found and pattern.fullmatch(found[name]) for name, pattern in _PARAMETERS.items())
    if len(found) != len(ours) or not fits:
        raise StorageDeniedError("the URL is not signed, or was changed", code="url.wrong-signature")
    return found


def _read_secrets(secrets: object) -> list[bytes]:
    several = secrets if isinstance(secrets, Iterable) and not isinstance(secrets, (str, bytes)) else [secrets]
    given = [secret.encode(errors="replace") if isinstance(secret, str) else secret for secret in several]
    found = [secret for secret in given if isinstance(secret, bytes)]
    if len(found) < len(given):
        raise ConfigurationError("pass one secret of signed URLs as str or bytes, or several")
    return found


def _check_base(url: object) -> str:
    is_memory = str(url).startswith("memory://")  # of a `MemoryStorage`, which checks its URLs itself
    if not isinstance(url, str) or not (is_memory or plain_url(url)) or not re.fullmatch(r"[!-~]+", url):
        raise ConfigurationError("the base of signed URLs is an http or https URL without query, as clients reach it")
    return url.rstrip("/")
