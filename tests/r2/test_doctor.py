"""Does ``doctor`` say what is wrong with a bucket, and leave nothing in it?"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from renderdispatch.cli.bucket import examine_bucket, judge_preflight
from renderdispatch.cli.doctor import examine
from renderdispatch.cli.finding import Finding
from renderdispatch.plumbing.s3 import refusal
from renderdispatch.plumbing.sigv4 import Endpoint
from renderdispatch.storage.r2 import R2Storage
from renderdispatch.testing.local_r2 import LocalR2

_ORIGIN = "https://app.example"


def _examined(r2: LocalR2, bucket: str | None = None, *, origin: str | None = None, **options: Any) -> list[Finding]:
    storage = r2.storage(bucket, **options)
    try:
        return examine_bucket(storage, origin=origin)
    finally:
        storage.close()


def _broken(findings: list[Finding]) -> Finding:
    """Return the one finding that is broken."""
    (broken,) = [finding for finding in findings if finding.status == "broken"]
    return broken


def test_a_bucket_that_is_right(r2: LocalR2, storage: R2Storage) -> None:
    """Every check is made, none is broken, and no object and no upload is left."""
    findings = {finding.check: finding.status for finding in _examined(r2)}
    checks = ["clock", "storage", "write-once", "multipart", "signed get", "signed put", "cors", "clean-up"]
    assert findings == {**dict.fromkeys(checks, "ok"), "cors": "note"}
    assert list(findings) == checks
    assert list(storage.list("")) == []
    assert r2.open_uploads() == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"secret_access_key": "not-the-secret"}, "the secret access key does not belong to the access key id"),
        ({"access_key_id": "nobody"}, "the access key id is not known"),
        ({"bucket": "absent"}, "there is no bucket 'absent'"),
    ],
    ids=["wrong secret", "wrong key", "wrong bucket"],
)
def test_no_access(r2: LocalR2, options: dict[str, Any], said: str) -> None:
    """What is wrong with the credentials or the bucket is told apart, once, and no secret is shown."""
    findings = _examined(r2, **options)
    assert said in _broken(findings).said
    assert [finding.check for finding in findings] == ["clock", "storage"]
    assert "not-the-secret" not in repr(findings)
    assert "Signature=" not in repr(findings)


def test_a_token_that_may_only_read(r2: LocalR2) -> None:
    """A right that is missing is told from a wrong key, with the right that is needed."""
    r2.fail("403", method="PUT", times=100)
    broken = _broken(_examined(r2))
    assert "'Object Read & Write'" in broken.said
    assert "key id is not known" not in broken.said


def test_a_token_that_may_only_write(r2: LocalR2, storage: R2Storage) -> None:
    """What was written before the refusal is removed."""
    r2.fail("403", method="GET", key="/access")
    assert "'Object Read & Write'" in _broken(_examined(r2)).said
    assert list(storage.list("")) == []


def test_nobody_listens(r2: LocalR2) -> None:
    """An endpoint that cannot be reached is said, before anything else is tried."""
    findings = _examined(r2, endpoint_url="http://127.0.0.1:9")
    assert [finding.check for finding in findings] == ["clock"]
    assert "the endpoint cannot be reached" in _broken(findings).said


@pytest.mark.parametrize(("ahead_s", "said"), [(3600, "s ahead of"), (-3600, "s behind")])
def test_a_wrong_clock(r2: LocalR2, monkeypatch: pytest.MonkeyPatch, ahead_s: int, said: str) -> None:
    """A clock that is an hour wrong is the first thing that is said, with the direction."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + ahead_s)
    broken = _broken(_examined(r2))
    assert broken.check == "clock"
    assert said in broken.said
    assert "NTP" in broken.said


def test_signed_urls_that_are_refused(r2: LocalR2, storage: R2Storage) -> None:
    """An upload that storage refuses is broken; the other checks are made, and everything is removed."""
    r2.fail("403", method="PUT", key="/put", times=2)
    findings = _examined(r2)
    assert "[403, 403]" in _broken(findings).said
    assert findings[-1].check == "clean-up"
    assert list(storage.list("")) == []


def test_a_public_domain_of_another_bucket(r2: LocalR2) -> None:
    """A public domain that does not serve the bucket's objects is broken, with the way out."""
    broken = _broken(_examined(r2, public_url=r2.endpoint_url.removesuffix("/cdn-cgi/local/r2/s3")))
    assert broken.check == "signed get"
    assert "connect the domain to this bucket" in broken.said


def test_an_endpoint_without_preflights(r2: LocalR2) -> None:
    """Where the endpoint answers no preflights, the rule to add is said all the same."""
    (cors,) = [finding for finding in _examined(r2, origin=_ORIGIN) if finding.check == "cors"]
    assert cors.status == "note"
    assert f"AllowedOrigins [{_ORIGIN}]" in cors.said


_ALLOWED = {
    "access-control-allow-origin": _ORIGIN,
    "access-control-allow-methods": "GET, PUT",
    "access-control-allow-headers": "Content-Type, If-None-Match",
}


@pytest.mark.parametrize(
    ("status", "changes", "judged", "said"),
    [
        (204, {}, "ok", "may upload"),
        (200, dict.fromkeys(_ALLOWED, "*"), "ok", "may upload"),
        (403, {"content-type": "application/xml"}, "broken", "AllowedMethods [PUT]"),
        (204, {"access-control-allow-origin": "https://other.example"}, "broken", f"AllowedOrigins [{_ORIGIN}]"),
        (204, {"access-control-allow-methods": "GET"}, "broken", "may not PUT"),
        (204, {"access-control-allow-headers": "content-type"}, "broken", "may not send if-none-match"),
        (403, {"content-type": "text/plain"}, "note", "does not support preflights"),
        (501, {}, "note", "does not support preflights"),
    ],
)
def test_preflights(status: int, changes: dict[str, str], judged: str, said: str) -> None:
    """The answer to a preflight is judged as a browser does; what is missing is named."""
    wanted = ["content-type", "if-none-match"]
    verdict, text = judge_preflight(status, {**_ALLOWED, **changes}, origin=_ORIGIN, wanted=wanted)
    assert verdict == judged
    assert said in text


def test_doctor_reads_the_settings(
    r2: LocalR2, storage: R2Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a bucket in the environment, ``doctor`` checks it beside the machine, and counts the jobs of the store.

    It renders by way of the bucket, and leaves nothing there.
    """
    variables = {
        "HOME": str(tmp_path),
        "STORAGE": "r2://renders/some/prefix",
        "R2_ENDPOINT_URL": r2.endpoint_url,
        "R2_ACCESS_KEY_ID": r2.access_key_id,
        "R2_SECRET_ACCESS_KEY": r2.secret_access_key,
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"RENDERDISPATCH_{name}", value)
    findings = {finding.check: finding for finding in examine()}
    assert findings["signed put"].status == "ok"
    assert "prefix='some/prefix/'" in findings["storage"].said
    assert findings["job store"].said == "SqlJobStore: 0 jobs"
    assert findings["render"].status == "ok"
    assert list(storage.list("")) == []
    monkeypatch.delenv("RENDERDISPATCH_R2_ACCESS_KEY_ID")
    findings = {finding.check: finding for finding in examine()}
    assert findings["storage"].status == "broken"
    assert "needs RENDERDISPATCH_R2_ACCESS_KEY_ID" in findings["storage"].said
    assert findings["render"].status == "ok"


def test_an_endpoint_with_regions() -> None:
    """An S3 API that wants signatures for a region of its own is named, and not taken for a wrong key."""
    endpoint = Endpoint(url="https://s3.example.com", bucket="renders", access_key_id="id", secret_access_key="secret")
    text = "Error parsing the X-Amz-Credential parameter; the region 'auto' is wrong; expecting 'eu-west-1'"
    error = refusal("'key'", 400, "AuthorizationQueryParametersError", endpoint=endpoint, text=text)
    assert "wants signatures for another region" in str(error)
