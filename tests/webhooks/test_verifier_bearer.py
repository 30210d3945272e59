"""What the Bearer verifier believes and refuses."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

import pytest

from renderdispatch.errors import ConfigurationError, InvalidRequestError, WebhookVerificationError
from renderdispatch.webhooks import BearerVerifier, VerifiedWebhook

NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
TOKEN, OTHER, BODY = "a-token-of-some-length", "another-token-of-ours", b"{}"


def refusal(headers: Any, body: Any = BODY, **options: Any) -> str:
    with pytest.raises(WebhookVerificationError) as caught:
        BearerVerifier([TOKEN, OTHER], **options).verify(headers, body, now=NOW)
    assert TOKEN not in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize(
    "value", [f"Bearer {TOKEN}", f"bearer {OTHER}", f"BEARER   {TOKEN}", f"Bearer {TOKEN}".encode()]
)
def test_any_of_the_tokens_is_believed(value: str | bytes) -> None:
    """The scheme is read in any case; tokens rotate."""
    pairs: list[tuple[str | bytes, str | bytes]] = [("Authorization", value), ("webhook-id", "msg_1")]
    assert BearerVerifier([TOKEN, OTHER]).verify(pairs, BODY, now=NOW) == VerifiedWebhook("msg_1", NOW, BODY)


def test_without_an_id_the_digest_of_the_body_is_the_id() -> None:
    """A delivery repeated word for word can be told."""
    verified = BearerVerifier(TOKEN).verify({"authorization": f"Bearer {TOKEN}"}, BODY)
    assert verified.id == "sha256:" + hashlib.sha256(BODY).hexdigest()
    assert abs((verified.timestamp - datetime.now(UTC)).total_seconds()) < 60


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "missing-header"),
        ({"webhook-id": "msg_1"}, "missing-header"),
        ({"authorization": TOKEN}, "malformed-authorization"),
        ({"authorization": ""}, "malformed-authorization"),
        ({"authorization": "Bearer "}, "malformed-authorization"),
        ({"authorization": f"Basic {TOKEN}"}, "malformed-authorization"),
        ({"authorization": f"Bearer {TOKEN} "}, "malformed-authorization"),
        ({"authorization": f"Bearer {TOKEN}\n"}, "malformed-authorization"),
        ({"authorization": "Bearer é"}, "malformed-authorization"),
        ({"authorization": "Bearer " + "a" * 1_000_000}, "malformed-authorization"),
        ({"authorization": f"Bearer {TOKEN[:-1]}"}, "wrong-token"),
        ({"authorization": f"Bearer {TOKEN}x"}, "wrong-token"),
        ({"authorization": f"Bearer {TOKEN.upper()}"}, "wrong-token"),
        ([("authorization", f"Bearer {TOKEN}"), ("Authorization", f"Bearer {TOKEN}")], "duplicate-header"),
        ({"authorization": f"Bearer {TOKEN}", "webhook-id": "a.b"}, "malformed-id"),
        ({"authorization": f"Bearer {TOKEN}", "webhook-id": ""}, "malformed-id"),
        (None, "malformed-header"),
        ({"authorization": None}, "malformed-header"),
    ],
)
def test_everything_else_is_refused(headers: Any, reason: str) -> None:
    """By the same error and with the same reasons as signed webhooks, where they apply."""
    assert refusal(headers) == reason


def test_body_is_bounded_and_bytes() -> None:
    """As for signed webhooks."""
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert refusal(headers, b"123", max_body=2) == "body-too-large"
    assert refusal(headers, "{}") == "malformed-body"


@pytest.mark.parametrize(
    "tokens", ["", [], None, "short", ["a" * 15], ["a" * 513], [TOKEN, ""], ["white space in the middle"]]
)
def test_no_token_or_a_weak_one_is_refused(tokens: Any) -> None:
    """At construction: it never accepts all."""
    with pytest.raises(ConfigurationError):
        BearerVerifier(tokens)


def test_repr_shows_no_token() -> None:
    """It stands in logs."""
    assert TOKEN not in repr(BearerVerifier(TOKEN))


def test_naive_time_is_the_callers_mistake() -> None:
    """As for signed webhooks."""
    with pytest.raises(InvalidRequestError):
        BearerVerifier(TOKEN).verify({"authorization": f"Bearer {TOKEN}"}, BODY, now=NOW.replace(tzinfo=None))
