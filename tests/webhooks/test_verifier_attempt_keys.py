"""Whom the key of an attempt speaks for."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderdispatch.errors import ConfigurationError, InvalidRequestError, WebhookVerificationError
from renderdispatch.webhooks import RECENT_ATTEMPTS, AttemptKeys, EventId, WebhookSigner, WebhookVerifier, parse_secret

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
OLD, NEW = ("whsec_" + base64.b64encode(byte * 32).decode() for byte in (b"o", b"n"))
BODY = b"{}"

job_ids = st.text("abcXYZ019_-", min_size=1, max_size=128)
attempts = st.integers(1, 9999)


def verify(verifier: WebhookVerifier, key: str, event: EventId) -> EventId | None:
    headers = WebhookSigner(key).sign(str(event), BODY, now=NOW)
    return EventId.parse(verifier.verify(headers, BODY, now=NOW).id)


def test_attempt_is_believed_with_its_own_key() -> None:
    """The verifier finds the key from the id alone."""
    event = EventId("job-1", 2, "e1")
    key = AttemptKeys(NEW).secret(job_id="job-1", attempt=2)
    assert verify(WebhookVerifier(AttemptKeys(NEW)), key, event) == event


@pytest.mark.parametrize("event", [EventId("job-2", 1, "e"), EventId("job-1", 2, "e"), EventId("job-11", 1, "e")])
def test_leaked_key_cannot_speak_for_another_job_or_attempt(event: EventId) -> None:
    """Only the ids of its own attempt are verified with it."""
    leaked = AttemptKeys(NEW).secret(job_id="job-1", attempt=1)
    with pytest.raises(WebhookVerificationError, match="no signature"):
        verify(WebhookVerifier(AttemptKeys(NEW)), leaked, event)


def test_key_of_an_attempt_is_no_master() -> None:
    """What is derived from a leaked key is worth nothing."""
    leaked = AttemptKeys(NEW).secret(job_id="job-1", attempt=1)
    with pytest.raises(WebhookVerificationError):
        verify(
            WebhookVerifier(AttemptKeys(NEW)),
            AttemptKeys(leaked).secret(job_id="job-1", attempt=1),
            EventId("job-1", 1, "e"),
        )


def test_master_secret_itself_does_not_sign_for_attempts() -> None:
    """The master only derives."""
    with pytest.raises(WebhookVerificationError):
        verify(WebhookVerifier(AttemptKeys(NEW)), NEW, EventId("job-1", 1, "e"))


def test_masters_rotate_under_renders_in_flight() -> None:
    """Keys of the old master are believed while it is listed, new attempts get the first master's."""
    before, during, after = AttemptKeys(OLD), AttemptKeys([NEW, OLD]), AttemptKeys([NEW])
    event = EventId("job-1", 1, "e")
    in_flight = before.secret(job_id="job-1", attempt=1)
    assert verify(WebhookVerifier(during), in_flight, event) == event
    assert during.secret(job_id="job-1", attempt=1) == after.secret(job_id="job-1", attempt=1) != in_flight
    with pytest.raises(WebhookVerificationError):
        verify(WebhookVerifier(after), in_flight, event)


def test_foreign_ids_have_no_key() -> None:
    """An id of another form is refused as such."""
    headers = WebhookSigner(NEW).sign("msg_1", BODY, now=NOW)
    with pytest.raises(WebhookVerificationError) as caught:
        WebhookVerifier(AttemptKeys(NEW)).verify(headers, BODY, now=NOW)
    assert caught.value.reason == "unknown-key"


def test_derivation_is_fixed() -> None:
    """Orders in flight outlive a deployment: the derivation never changes silently."""
    parts = [b"renderdispatch webhook attempt key v1", b"job-1", b"12"]
    message = b"".join(len(p).to_bytes(4, "big") + p for p in parts)
    expected = hmac.new(parse_secret(NEW), message, hashlib.sha256).digest()
    assert parse_secret(AttemptKeys(NEW).secret(job_id="job-1", attempt=12)) == expected
    assert AttemptKeys(NEW).secret(job_id="job-1", attempt=12) == "whsec_gltQFuoauVfX4kYnKm16xBiKXFE0ZD3Hz0e6618g7qQ="


@given(job_ids, attempts, job_ids, attempts)
def test_two_attempts_share_a_key_only_when_they_are_one(job_a: str, a: int, job_b: str, b: int) -> None:
    """Job and attempt cannot flow into one another."""
    same = AttemptKeys(NEW).secret(job_id=job_a, attempt=a) == AttemptKeys(NEW).secret(job_id=job_b, attempt=b)
    assert same == ((job_a, a) == (job_b, b))


@given(job_ids, attempts, st.text("abz09_-", min_size=1, max_size=64))
def test_event_ids_round_trip(job_id: str, attempt: int, event_id: str) -> None:
    """What is written is read, and can be signed."""
    event = EventId(job_id, attempt, event_id)
    assert EventId.parse(str(event)) == event
    assert WebhookSigner(NEW).sign(str(event), BODY, now=NOW)["webhook-id"] == str(event)


@given(st.text() | st.from_regex(r"rd:[^:]*:[0-9]*:.*"))
def test_whatever_parses_is_spelt_in_one_way(text: str) -> None:
    """Two ids are never the same event of the same attempt."""
    event = EventId.parse(text)
    assert event is None or str(event) == text


@pytest.mark.parametrize(
    "parts",
    [
        ("", 1, "e"),
        ("a.b", 1, "e"),
        ("a:b", 1, "e"),
        ("a", 0, "e"),
        ("a", -1, "e"),
        ("a", 10_000, "e"),
        ("a", 1, ""),
        ("a", 1, "e:e"),
        ("a" * 129, 1, "e"),
        ("a", 1, "e" * 65),
        ("é", 1, "e"),
        ("a", True, "e"),
        ("a\n", 1, "e\n"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts: Any) -> None:
    """Before anything is signed with them."""
    with pytest.raises(InvalidRequestError):
        EventId(*parts)


@pytest.mark.parametrize("masters", ["", [], None, "short", [NEW, "short"]])
def test_masters_that_are_missing_or_malformed_are_refused(masters: Any) -> None:
    """At construction: it never accepts all."""
    with pytest.raises(ConfigurationError):
        AttemptKeys(masters)


def test_repr_shows_no_master() -> None:
    """It stands in logs."""
    assert NEW[6:] not in repr(AttemptKeys(NEW)) and "nnnn" not in repr(AttemptKeys(NEW))


def test_the_keys_of_recent_attempts_are_kept_in_bounds() -> None:
    """Each attempt's key is derived once while it is recent; strangers' ids cost no more memory than a constant."""
    keys = AttemptKeys([NEW, OLD])
    first = keys.prepared("rd:job-1:1:e1")
    assert keys.prepared("rd:job-1:1:e2") is first and len(first) == 2
    assert keys.prepared("rd:job-1:2:e1") is not first
    for number in range(2 * RECENT_ATTEMPTS):
        keys.prepared(f"rd:stranger-{number}:1:e")
    assert keys._recent.cache_info().currsize == RECENT_ATTEMPTS
    event = EventId("job-1", 1, "e3")
    assert verify(WebhookVerifier(keys), keys.secret(job_id="job-1", attempt=1), event) == event
