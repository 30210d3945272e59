"""Do the other libraries of the specification and this one understand each other?"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import standardwebhooks
import svix.webhooks
from hypothesis import given
from hypothesis import strategies as st

from renderdispatch.errors import WebhookVerificationError
from renderdispatch.webhooks import WebhookSigner, WebhookVerifier

BODIES = [
    b"{}",
    b'{"test": 2432232314}',
    '{"name": "\u00fcn\u00efc\u00f6de \U0001f3b5"}'.encode(),
    b'"' + b"x" * 100_000 + b'"',
]
SECRETS = ["whsec_" + base64.b64encode(bytes(range(size))).decode() for size in (24, 32, 64)]
PEERS: list[Callable[[str], Any]] = [standardwebhooks.Webhook, svix.webhooks.Webhook]

each_peer = pytest.mark.parametrize("peer", PEERS, ids=["standardwebhooks", "svix"])
each_secret = pytest.mark.parametrize("secret", SECRETS, ids=["24", "32", "64"])
each_body = pytest.mark.parametrize("body", BODIES, ids=["empty", "vector", "unicode", "long"])


@given(st.binary(min_size=24, max_size=64), st.binary(max_size=300))
def test_signature_is_the_hmac_of_the_standard_library(key: bytes, body: bytes) -> None:
    """For keys of every length that is allowed."""
    now = datetime(2026, 1, 2, tzinfo=UTC)
    headers = WebhookSigner(base64.b64encode(key).decode()).sign("msg_1", body, now=now)
    expected = hmac.new(key, b"msg_1.1767312000." + body, hashlib.sha256).digest()
    assert headers["webhook-signature"] == "v1," + base64.b64encode(expected).decode()


@each_peer
@each_secret
@each_body
def test_they_sign_and_we_verify(peer: Callable[[str], Any], secret: str, body: bytes) -> None:
    """Whatever a peer signs is verified."""
    now = datetime.now(UTC)
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": peer(secret).sign("msg_1", now, body.decode()),
    }
    assert WebhookVerifier(secret).verify(headers, body).body == body
    with pytest.raises(WebhookVerificationError):
        WebhookVerifier(secret).verify(headers, body + b" ")


@each_peer
@each_secret
@each_body
def test_we_sign_and_they_verify(peer: Callable[[str], Any], secret: str, body: bytes) -> None:
    """Whatever is signed here, a peer verifies."""
    now = datetime.now(UTC)
    peer(secret).verify(body, WebhookSigner(secret).sign("msg_1", body, now=now))
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        peer(secret).verify(body, WebhookSigner(secret).sign("msg_1", body, now=now - timedelta(minutes=6)))


@each_peer
def test_secrets_rotate_across_libraries(peer: Callable[[str], Any]) -> None:
    """Two signatures in one header are understood on either side."""
    now, body, (old, new, _) = datetime.now(UTC), BODIES[0], SECRETS
    headers = WebhookSigner(old).sign("msg_1", body, now=now)
    headers["webhook-signature"] += " " + WebhookSigner(new).sign("msg_1", body, now=now)["webhook-signature"]
    for secret in (old, new):
        peer(secret).verify(body, headers)
        assert WebhookVerifier(secret).verify(headers, body).body == body
