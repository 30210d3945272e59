"""Are URLs signed as botocore signs them, and without it?"""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
from botocore.config import Config
from botocore.session import get_session
from hypothesis import example, given, settings
from hypothesis import strategies as st

from renderdispatch.errors import StorageDeniedError
from renderdispatch.plumbing.s3 import headers_of
from renderdispatch.plumbing.sigv4 import Endpoint, Presigner
from renderdispatch.storage.keys import check_key
from renderdispatch.storage.r2 import content_disposition
from renderdispatch.testing.local_r2 import LocalR2

_ENDPOINTS: Final = (
    "https://0123456789abcdef0123456789abcdef.r2.cloudflarestorage.com",
    "https://0123456789abcdef0123456789abcdef.eu.r2.cloudflarestorage.com",
    "http://127.0.0.1:8787/cdn-cgi/local/r2/s3",
    "http://127.0.0.1:80",
    "https://S3.Example.com:443",
    "https://s3.example.com:9000",
    "http://s3.example.com:443",
    "http://[::1]:9000",
)
_REGIONS: Final = ("auto", "eu-central-1")
_WEEK_S: Final = 7 * 24 * 3600
_HOUR: Final = timedelta(hours=1)


@cache
def _botocore(endpoint: str, region: str) -> Any:
    return get_session().create_client(
        "s3",
        endpoint_url=endpoint,
        region_name=region,
        aws_access_key_id="the-id",
        aws_secret_access_key="the/secret+key",
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def _signed_by_botocore(endpoint: str, region: str, operation: str, expires_s: int, **params: Any) -> str:
    client = _botocore(endpoint, region)
    url: str = client.generate_presigned_url(operation, Params={"Bucket": "renders", **params}, ExpiresIn=expires_s)
    return url


def _ours(endpoint: str, region: str, botocores: str) -> Presigner:
    """Return our signer, at the moment of a URL that botocore signed."""
    moment = datetime.strptime(dict(parse_qsl(urlsplit(botocores).query))["X-Amz-Date"] + "+0000", "%Y%m%dT%H%M%SZ%z")
    place = Endpoint(
        url=endpoint, bucket="renders", access_key_id="the-id", secret_access_key="the/secret+key", region=region
    )
    return Presigner(place, clock=lambda: moment)


def _is_key(key: str) -> bool:
    with suppress(StorageDeniedError):
        return check_key(key) == key
    return False


_parts = st.text(
    st.sampled_from(" +%&=?#~'\"()*!@$,;:<>|[]{}^`-._aZ09éß日🎬") | st.characters(), min_size=1, max_size=20
)
_keys = st.lists(_parts, min_size=1, max_size=4).map("/".join).filter(_is_key)
_places = st.tuples(st.sampled_from(_ENDPOINTS), st.sampled_from(_REGIONS))
_expiries = st.integers(1, _WEEK_S)
_types = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1).filter(str.strip)


@settings(max_examples=300, deadline=None)
@given(place=_places, key=_keys, expires_s=_expiries)
@example(place=(_ENDPOINTS[0], "auto"), key="a b/ü/50%+~.mp4", expires_s=_WEEK_S)
def test_a_download_is_signed_as_botocore_signs_it(place: tuple[str, str], key: str, expires_s: int) -> None:
    """The URL is botocore's, byte for byte, for any key, endpoint and expiry."""
    theirs = _signed_by_botocore(*place, "get_object", expires_s, Key=key)
    assert _ours(*place, theirs).sign("GET", key, expires_s=expires_s) == theirs


@settings(max_examples=300, deadline=None)
@given(
    place=_places,
    key=_keys,
    expires_s=_expiries,
    content_type=_types,
    size=st.none() | st.integers(0, 5 << 30),
    metadata=st.none() | st.text("0123456789abcdef", min_size=1),
    once=st.booleans(),
)
@example(
    place=(_ENDPOINTS[2], "auto"),
    key="é  x",
    expires_s=1,
    content_type=" text/html;  charset=utf-8 ",
    size=0,
    metadata="0f",
    once=True,
)
def test_an_upload_is_signed_as_botocore_signs_it(
    place: tuple[str, str],
    key: str,
    expires_s: int,
    content_type: str,
    size: int | None,
    metadata: str | None,
    once: bool,
) -> None:
    """The URL is botocore's, byte for byte, and binds the same headers: type, name, size, write-once, metadata."""
    params: dict[str, Any] = {"ContentType": content_type, "ContentDisposition": content_disposition(key, content_type)}
    params |= {"IfNoneMatch": "*"} if once else {}
    params |= {} if metadata is None else {"Metadata": {"write-id": metadata}}
    headers = headers_of(params) | ({} if size is None else {"content-length": str(size)})
    params |= {} if size is None else {"ContentLength": size}
    theirs = _signed_by_botocore(*place, "put_object", expires_s, Key=key, **params)
    assert _ours(*place, theirs).sign("PUT", key, expires_s=expires_s, headers=headers) == theirs


@settings(max_examples=100, deadline=None)
@given(place=_places, key=_keys, number=st.integers(1, 10_000), upload=st.text(min_size=1))
def test_a_part_is_signed_as_botocore_signs_it(place: tuple[str, str], key: str, number: int, upload: str) -> None:
    """The URL of a part says and signs what botocore's does; the order of a query says nothing."""
    theirs = _signed_by_botocore(*place, "upload_part", 60, Key=key, PartNumber=number, UploadId=upload)
    query = {"partNumber": str(number), "uploadId": upload}
    ours = _ours(*place, theirs).sign("PUT", key, expires_s=60, query=query)
    assert _without_order(ours) == _without_order(theirs)


def _without_order(url: str) -> tuple[str, list[tuple[str, str]]]:
    before, _, query = url.partition("?")
    return before, sorted(parse_qsl(query, keep_blank_values=True, strict_parsing=True))


def test_the_key_changes_with_the_day() -> None:
    """A signer that lives for days signs each with its own key."""
    now = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)
    place = Endpoint(url="https://s3.example.com", bucket="renders", access_key_id="id", secret_access_key="secret")
    old = Presigner(place, clock=lambda: now)
    old.sign("GET", "key", expires_s=60)
    now += timedelta(seconds=1)
    new = Presigner(place, clock=lambda: now)
    assert "20270101%2Fauto" in (url := old.sign("GET", "key", expires_s=60))
    assert url == new.sign("GET", "key", expires_s=60)


@pytest.mark.parametrize("key", ["plain", "a b/c+d", "50%/ü", "日本/🎬.mp4", "~'()*!@$&=;:,#?", 'q"u<o>t|e'])
@pytest.mark.parametrize("prefix", ["", "tenants/a b"])
def test_r2_takes_the_urls(r2: LocalR2, key: str, prefix: str) -> None:
    """R2 itself checks the signature of an upload and of a download, for keys with special characters."""
    storage = r2.storage(prefix=prefix)
    put = storage.sign_put(key, expires_in=_HOUR, content_type="text/plain;  charset=utf-8", size=5)
    assert httpx.put(put.url, headers=put.headers, content=b"hello").status_code == 200
    assert httpx.put(put.url, headers=put.headers, content=b"hello").status_code == 412
    other = {**put.headers, "content-type": "text/html"}
    assert httpx.put(put.url, headers=other, content=b"hello").status_code == 403
    url = storage.sign_get(key, expires_in=_HOUR)
    assert httpx.get(url).content == b"hello"
    assert httpx.get(url.replace("X-Amz-Expires=3600", "X-Amz-Expires=3601")).status_code == 403
    assert [info.key for info in storage.list("")] == [key]
    storage.close()


_SIGNING: Final = """
import sys
from datetime import timedelta
from renderdispatch.storage.r2 import R2Storage
storage = R2Storage("renders", endpoint_url="http://127.0.0.1:9", access_key_id="id", secret_access_key="secret")
storage.sign_get("key", expires_in=timedelta(hours=1))
storage.sign_put("key", expires_in=timedelta(hours=1), content_type="video/mp4")
storage.close()
print(*sorted({name.partition(".")[0] for name in sys.modules} & {"s3fs", "aiobotocore", "botocore", "httpx", "fsspec"}))
"""


def test_signing_loads_nothing() -> None:
    """A URL is signed without a connection, without botocore and without an HTTP client."""
    done = subprocess.run([sys.executable, "-c", _SIGNING], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
