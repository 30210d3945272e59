"""How is a bucket of Cloudflare R2, or of any other S3 API, an object storage?

An object is sent by one PUT if its size is known. A PUT is atomic, leaves nothing open when it fails, and R2 surely
checks `if-none-match` on it. Only chunks, whose size is not known, and objects above 5 GiB are sent in equal parts.
"""

from __future__ import annotations

import io
import logging
import math
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, Final, Literal, cast
from urllib.parse import quote

from renderdispatch import errors
from renderdispatch.messages import SignedPut
from renderdispatch.plumbing.net import STALL_S, etag_of, plain_url
from renderdispatch.plumbing.s3 import S3, Stream, check_endpoint, headers_of
from renderdispatch.plumbing.sigv4 import Endpoint
from renderdispatch.protocols import Locality, ObjectInfo, Source
from renderdispatch.storage import keys
from renderdispatch.storage.sources import Body, body_of, chunks_of, equal_parts, spool

_log: Final = logging.getLogger("renderdispatch.storage")

PART_BYTES: Final = 16 << 20
"""The size of the parts of an upload. R2 wants all but the last to be equal, and at least 5 MiB; 10,000 such parts are
156 GiB."""

_MAX_PARTS: Final = 10_000
_READ_BYTES: Final = 1 << 20
_WRITE_ID: Final = "write-id"


class R2Storage:
    """Keeps objects in a bucket of R2, or of any S3 API that checks ``if-none-match`` on PUT (AWS, MinIO).

    ``put`` with ``if_absent`` and `sign_put` are atomic up to 5 GiB, by one conditional PUT. For ``if_absent``, chunks
    are spooled to the local disk first, because their size must be known. Above 5 GiB, ``if_absent`` is a condition on
    the end of an upload in parts: R2 and AWS keep it, Cloudflare's local R2 ignores it.

    Nothing is opened before the first call. A throttled call is retried for a minute, any other that may succeed later
    is tried five times.

    Args:
        bucket: Its name.
        account_id: Of Cloudflare; R2's endpoint follows from it.
        endpoint_url: Of another S3 API, without the bucket; in place of ``account_id``.
        access_key_id: Of an R2 API token with "Object Read & Write" on the bucket.
        secret_access_key: Belongs to it.
        prefix: A folder within the bucket for everything. Keys do not show it.
        jurisdiction: Where the bucket was made, ``eu`` or ``fedramp``: it has an endpoint of its own.
        region: The region for signatures, if the endpoint is not R2's: ``eu-central-1``.
        public_url: The bucket's public or custom domain. `sign_get` then returns plain URLs below it, which do not
            expire and which everybody may read.
        stall_s: A try fails when no byte moves for so many seconds.
        clock: Returns the time, aware and in UTC; signatures carry it.

    Raises:
        ConfigurationError: These do not fit together; the message says what to give.
        MissingExtraError: s3fs is not installed.
    """

    locality = Locality.WORLD
    names_files = True

    def __init__(
        self,
        bucket: str,
        *,
        account_id: str | None = None,
        endpoint_url: str | None = None,
        access_key_id: str,
        secret_access_key: str,
        prefix: str = "",
        jurisdiction: Literal["eu", "fedramp"] | None = None,
        region: str = "auto",
        public_url: str | None = None,
        stall_s: float = STALL_S,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        texts: dict[str, object] = {"bucket": bucket, "prefix": prefix, "account_id": account_id, "region": region}
        for name, value in texts.items():
            if not isinstance(value, str) and not (name == "account_id" and value is None):
                raise errors.ConfigurationError(f"{name} is a str, not {type(value).__name__}")
        endpoint = Endpoint(
            url=check_endpoint(account_id=account_id, endpoint_url=endpoint_url, jurisdiction=jurisdiction),
            bucket=bucket,
            access_key_id=access_key_id,
            secret_access_key=secret_access_key,
            region=region,
        )
        self._s3 = S3(endpoint, stall_s=stall_s, clock=clock)
        try:
            self._prefix = f"{keys.check_key(prefix.removesuffix('/'))}/" if prefix else ""
        except errors.StorageDeniedError as error:
            raise errors.ConfigurationError(f"prefix: {error}") from None
        if public_url is not None and plain_url(public_url) is None:
            raise errors.ConfigurationError("public_url is a plain https URL, such as https://videos.example.com")
        self._public_url = public_url and public_url.rstrip("/")

    def __repr__(self) -> str:
        endpoint = self._s3.endpoint
        return f"R2Storage({endpoint.bucket!r}, endpoint_url={endpoint.url!r}, prefix={self._prefix!r})"

    def _path(self, key: str) -> str:
        path = self._prefix + keys.check_key(key)
        if len(path.encode()) > keys.MAX_KEY_BYTES:
            raise errors.StorageDeniedError(
                f"the key {key[:80]!a} is refused: with the prefix it is longer than {keys.MAX_KEY_BYTES} bytes"
            )
        return path

    # --- writing

    def put(
        self, key: str, source: Source, *, content_type: str = "application/octet-stream", if_absent: bool = False
    ) -> ObjectInfo:
        """Write an object, whole or not at all; see the class for what happens above 5 GiB."""
        params: dict[str, Any] = {
            "Key": self._path(key),
            "ContentType": _check_content_type(content_type),
            "ContentDisposition": content_disposition(key, content_type),
            "Metadata": {_WRITE_ID: secrets.token_hex(8)},
        }
        condition = {"IfNoneMatch": "*"} if if_absent else {}
        if (body := body_of(source)) is not None:
            return self._put_body(key, body, params, condition)
        parts = equal_parts(chunks_of(source), PART_BYTES)
        first, second = next(parts, bytearray()), next(parts, None)
        if second is None:
            return self._put_body(key, Body.of_bytes(first), params, condition)
        every = _chain([second, first], parts)
        del first, second  # they are many bytes
        if not condition:
            return self._put_parts(key, every, params, condition)
        with tempfile.TemporaryFile() as file:
            return self._put_body(key, spool(every, cast("BinaryIO", file)), params, condition)

    def _put_body(self, key: str, body: Body, params: dict[str, Any], condition: dict[str, str]) -> ObjectInfo:
        if body.size > keys.MAX_PUT_BYTES:
            part_bytes = max(PART_BYTES, math.ceil(body.size / _MAX_PARTS))
            return self._put_parts(key, equal_parts(body.pieces(), part_bytes), params, condition)
        headers = headers_of({**params, **condition})
        try:
            etag = self._s3.send(params["Key"], repr(key), size=body.size, pieces=body.pieces, headers=headers)
        except errors.ObjectExistsError as error:
            return self._written_by_us(key, params, error)
        return ObjectInfo(key=key, size=body.size, etag=etag_of(etag))

    def _written_by_us(self, key: str, params: dict[str, Any], error: errors.StorageError) -> ObjectInfo:
        """Return the object if this very `put` wrote it, else raise: a try after a lost response is refused."""
        with suppress(errors.ObjectNotFoundError):
            found = self._head(key)
            if found.get("Metadata", {}).get(_WRITE_ID) == params["Metadata"][_WRITE_ID]:
                return _info(key, found)
        raise error

    def _put_parts(
        self, key: str, parts: Iterator[bytearray], params: dict[str, Any], condition: dict[str, str]
    ) -> ObjectInfo:
        what, path = repr(key), params["Key"]
        upload_id = self._s3.call("create_multipart_upload", what, **params)["UploadId"]
        upload = {"Key": path, "UploadId": upload_id}
        try:
            size, done = 0, []
            for number, part in enumerate(_bounded(parts, what), 1):
                body, query = Body.of_bytes(part), {"partNumber": str(number), "uploadId": upload_id}
                etag = self._s3.send(path, what, size=body.size, pieces=body.pieces, query=query)
                done.append({"PartNumber": number, "ETag": etag})
                size += body.size
            end = {"MultipartUpload": {"Parts": done}, **upload, **condition}
            try:
                completed = self._s3.call("complete_multipart_upload", what, **end)
            except (errors.ObjectExistsError, errors.ObjectNotFoundError) as error:
                return self._written_by_us(key, params, error)
            return ObjectInfo(key=key, size=size, etag=etag_of(completed["ETag"]))
        except BaseException:
            self._abort(what, upload)
            raise

    def _abort(self, what: str, upload: dict[str, Any]) -> None:
        try:
            self._s3.call("abort_multipart_upload", what, **upload)
        except errors.ObjectNotFoundError:
            return
        except errors.StorageError as error:
            _log.warning("an upload of %s stays open until the bucket's lifecycle rule removes it: %s", what, error)

    # --- reading

    def open(self, key: str) -> AbstractContextManager[BinaryIO]:
        """Open an object for reading. A download that breaks off goes on at its place."""
        return io.BufferedReader(_Reader(self._s3, self._path(key), repr(key)), _READ_BYTES)

    def stat(self, key: str) -> ObjectInfo:
        """Return an object's size and etag."""
        return _info(key, self._head(key))

    def _head(self, key: str) -> dict[str, Any]:
        return self._s3.call("head_object", repr(key), Key=self._path(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Iterate over the objects whose keys start with ``prefix``, sorted by key."""
        for found in self._listed(prefix):
            key = found["Key"].removeprefix(self._prefix)
            with suppress(errors.StorageDeniedError):  # the dashboard's folders end with a slash
                keys.check_key(key)
                yield _info(key, {**found, "ContentLength": found["Size"]})

    def _listed(self, prefix: str) -> Iterator[dict[str, Any]]:
        more: dict[str, str] = {}
        while True:
            page = self._s3.call("list_objects_v2", "the list of objects", Prefix=self._prefix + prefix, **more)
            yield from page.get("Contents", [])
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""
        self._s3.call("delete_object", repr(key), Key=self._path(key))

    def delete_prefix(self, prefix: str) -> int:
        """Remove the objects whose keys start with ``prefix``; return how many there were."""
        doomed = [found["Key"] for found in self._listed(keys.check_prefix(prefix))]
        self._s3.delete(doomed, f"the objects below {prefix!r}")
        return len(doomed)

    # --- signing

    def sign_get(self, key: str, *, expires_in: timedelta, file_name: str | None = None) -> str:
        """Return a URL that reads the object for a while; below ``public_url``, for ever. Sends nothing.

        The object keeps the name that its upload said.
        """
        keys.check_file_name(file_name)
        path, expires_s = self._path(key), _seconds(expires_in)
        if self._public_url is not None:
            return f"{self._public_url}/{quote(path, safe='/')}"
        return self._s3.sign("GET", path, expires_s=expires_s)

    def sign_put(
        self,
        key: str,
        *,
        expires_in: timedelta,
        content_type: str,
        size: int | None = None,
        file_name: str | None = None,
    ) -> SignedPut:
        """Return a write-once upload; the object will say the file's name. Sends nothing."""
        path, expires_s = self._path(key), _seconds(expires_in)
        headers = {
            "content-type": _check_content_type(content_type),
            "content-disposition": content_disposition(keys.check_file_name(file_name) or key, content_type),
            "if-none-match": "*",
        }
        if keys.check_put_size(size) is not None:
            headers["content-length"] = str(size)
        return SignedPut(url=self._s3.sign("PUT", path, expires_s=expires_s, headers=headers), headers=headers)

    def close(self) -> None:
        """Close the connections of this process."""
        self._s3.close()


class _Reader(io.RawIOBase):
    """An object as a stream. After a failure it goes on at its place, if the object is still the same one."""

    def __init__(self, s3: S3, path: str, what: str) -> None:
        self._s3, self._path, self._what = s3, path, what
        self._at = 0
        self._etag: str | None = None
        self._rest = memoryview(b"")
        self._stream: Stream | None = None
        s3.retry(self._opened)

    def _opened(self) -> Stream:
        if self._stream is None:
            try:
                self._stream = self._s3.get(self._path, self._what, start=self._at, etag=self._etag)
            except errors.ObjectExistsError:
                raise errors.StorageError(f"{self._what} was replaced while it was read: open it again") from None
            self._etag = self._stream.etag
        return self._stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(self._s3.retry(self._next))
        into = memoryview(buffer).cast("B")
        size = min(len(into), len(self._rest))
        into[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    def _next(self) -> bytes:
        """Return the bytes that come next, none at the end."""
        stream = self._opened()
        try:
            piece = next(stream.pieces, b"")
        except errors.StorageError:
            self._stream = None
            stream.close()
            raise
        self._at += len(piece)
        return piece

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        super().close()


def _info(key: str, found: Mapping[str, Any]) -> ObjectInfo:
    return ObjectInfo(
        key=key, size=found["ContentLength"], etag=etag_of(found.get("ETag")), modified_at=found.get("LastModified")
    )


def _seconds(expires_in: timedelta) -> int:
    return math.ceil(keys.check_expiry(expires_in).total_seconds())


def _bounded(parts: Iterator[bytearray], what: str) -> Iterator[bytearray]:
    for number, part in enumerate(parts):
        if number == _MAX_PARTS:
            raise errors.StorageError(f"{what} is too large for chunks of unknown size: give a file or a path")
        yield part


def _chain(waiting: list[bytearray], rest: Iterator[bytearray]) -> Iterator[bytearray]:
    """Empty ``waiting`` from its end, then go on with the rest; `itertools.chain` would keep what it gave out."""
    while waiting:
        yield waiting.pop()
    yield from rest


def content_disposition(key: str, content_type: str) -> str:
    """Return the header that has browsers show what they play, and save everything else, under the key's last part.

    Pages and scripts are saved, because an uploaded one must not run under the bucket's domain. R2's signed URLs cannot
    carry the header, so it is stored with the object. RFC 6266 and RFC 8187 say how names are written.
    """
    how = "inline" if content_type.partition("/")[0] in _PLAYED or content_type == "image/jpeg" else "attachment"
    name = key.rpartition("/")[2]
    plain = re.sub(r'[^ !#-\[\]-~]|[%"\\]', "_", name)
    if plain == name:
        return f'{how}; filename="{name}"'
    return f"{how}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


_PLAYED: Final = frozenset({"audio", "video"})


def _check_content_type(content_type: str) -> str:
    if not re.fullmatch(r"[ -~]{1,255}", content_type):
        raise errors.InvalidRequestError("a content type is one line of printable ASCII")
    return content_type
