"""Who really sent this webhook, when, and is it unchanged?

Headers, raw body bytes, secrets and a clock go in; a value or one exception comes out. Nothing here opens a socket,
reads a file or knows what a body means.

`WebhookSigner` and `WebhookVerifier` implement Standard Webhooks, version 1
(https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md): the signature is the
base64 of HMAC-SHA256 over ``id.timestamp.body``. The verifier accepts only what the specification describes: one
spelling of each number and of each signature, and each header once. So every later parser reads what was verified.
`BearerVerifier` has the same methods, for senders that only know a shared token.

`AttemptKeys` gives each attempt of a job its own key, derived from a master secret. A message id that `EventId` wrote
names job and attempt, so the verifier finds the key from the id. The id is signed too, so a leaked key cannot sign for
any other job or attempt.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from attrs import field, frozen

from renderdispatch.errors import ConfigurationError, InvalidRequestError
from renderdispatch.errors import WebhookRefusal as Refusal
from renderdispatch.errors import WebhookVerificationError as Refused

Headers = Mapping[str, str] | Mapping[bytes, bytes] | Mapping[str, bytes] | Iterable[tuple[str | bytes, str | bytes]]
"""Header names and values, in any case; pairs if the framework keeps repeated headers apart."""

Body = bytes | bytearray | memoryview
"""The raw body, before any parsing."""

Keys = Callable[[str], Sequence[bytes]]
"""Returns the keys that may have signed the message with this id; each has 24 to 64 bytes."""

MAX_BODY: Final = 1 << 20
MAX_ID: Final = 256
MAX_HEADER: Final = 4096
MAX_DIGITS: Final = 11
MAX_SIGNATURES: Final = 16
"""More than any rotation needs, and few enough to bound the cost of a request."""

MIN_KEY: Final = 24
MAX_KEY: Final = 64
MIN_TOKEN: Final = 16
MAX_TOKEN: Final = 512

RECENT_ATTEMPTS: Final = 1024
"""How many attempts `AttemptKeys` remembers the keys of: a run reports every few seconds."""

_PREFIX: Final = "whsec_"
_SIGNED: Final = frozenset({"webhook-id", "webhook-timestamp", "webhook-signature"})
_BEARER: Final = frozenset({"authorization", "webhook-id"})

# 32 bytes in base64 have one spelling: the 43rd character carries four bits, the two below them are 0.
_V1: Final = re.compile(r"v1,[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=")
_VERSIONED: Final = re.compile(r"[a-z0-9]+,[!-~]+")
_AUTHORIZATION: Final = re.compile(rf"(?i:bearer) +([!-~]{{1,{MAX_TOKEN}}})")
_TOKEN: Final = re.compile(rf"[!-~]{{{MIN_TOKEN},{MAX_TOKEN}}}")
_EVENT_ID: Final = re.compile(r"rd:([A-Za-z0-9_-]{1,128}):([1-9][0-9]{0,3}):([A-Za-z0-9_-]{1,64})")


@frozen
class VerifiedWebhook:
    """A webhook of a known sender.

    Args:
        id: The same for all deliveries of an event: deduplicate by it.
        timestamp: When this delivery was signed, in whole seconds; for `BearerVerifier`, when it arrived.
        body: The bytes that were signed.
    """

    id: str
    timestamp: datetime
    body: bytes = field(repr=False)


def parse_secret(secret: str) -> bytes:
    """Return the key of a secret: base64 of 24 to 64 bytes, with or without ``whsec_`` before it.

    Raises:
        ConfigurationError: It is not a secret; the message does not quote it.
    """
    expected = f"a webhook secret is {_PREFIX!r} and the base64 of {MIN_KEY} to {MAX_KEY} bytes"
    if not isinstance(secret, str):
        raise ConfigurationError(f"{expected}, as str, not {type(secret).__name__}")
    text = secret.removeprefix(_PREFIX)
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:  # such as binascii.Error
        key = b""
    spelling = base64.b64encode(key).decode("ascii")
    if not key or text not in (spelling, spelling.rstrip("=")):
        raise ConfigurationError(f"{expected}; this one is not base64 (white space around it, or cut off?)")
    if not MIN_KEY <= len(key) <= MAX_KEY:
        raise ConfigurationError(f"{expected}; this one has {len(key)}")
    return key


def _parse_secrets(secrets: str | Sequence[str]) -> tuple[bytes, ...]:
    if not (several := _several(secrets)):
        raise ConfigurationError("no webhook secret is configured; without one, webhooks cannot be verified")
    return tuple(parse_secret(secret) for secret in several)


def _several(secrets: object) -> list[Any]:
    if secrets is None or isinstance(secrets, str):
        return [secrets] if secrets else []
    if isinstance(secrets, Iterable) and not isinstance(secrets, (bytes, Mapping)):
        return list(secrets)
    raise ConfigurationError(f"pass one secret as str, or several, not {type(secrets).__name__}")


class WebhookSigner:
    """Signs messages with one secret, as Standard Webhooks v1.

    Args:
        secret: ``whsec_`` and base64, or the base64 alone.

    Raises:
        ConfigurationError: The secret is malformed, shorter than 24 or longer than 64 bytes.
    """

    __slots__ = ("_key",)

    def __init__(self, secret: str) -> None:
        self._key = _Key(parse_secret(secret))

    def __repr__(self) -> str:
        return "WebhookSigner(<secret>)"

    def sign(self, message_id: str, body: Body, *, now: datetime) -> dict[str, str]:
        """Return the headers of one delivery. A retry keeps the id and is signed again.

        Args:
            message_id: The id of the event: 1 to 256 visible ASCII characters, without a dot.
            body: The bytes, exactly as they will be sent.
            now: Aware; the header has whole seconds.

        Raises:
            InvalidRequestError: The id or the time is not allowed.
        """
        if not _is_id(message_id):
            what = f"a message id is 1 to {MAX_ID} visible ASCII characters without a dot"
            raise InvalidRequestError(what, code="webhook.malformed-id")
        if not isinstance(body, (bytes, bytearray, memoryview)):
            what = f"pass the raw bytes of the body, not {type(body).__name__}"
            raise InvalidRequestError(what, code="webhook.malformed-body")
        seconds = math.floor(_epoch(now))
        if not 0 <= seconds < 10**MAX_DIGITS:
            what = f"a webhook cannot be signed at {now}: the time is before 1970 or too far away"
            raise InvalidRequestError(what, code="webhook.malformed-timestamp")
        timestamp = str(seconds)
        signature = self._key.sign(message_id, timestamp, bytes(body))
        return {
            "webhook-id": message_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": f"v1,{signature.decode('ascii')}",
        }


class WebhookVerifier:
    """Verifies Standard Webhooks v1. It has no state: a delivery that arrives twice is verified twice.

    Args:
        secrets: One secret, several (for rotation: any of them may have signed), or a callable that finds the keys for
            a message id, such as `AttemptKeys`. The id that it gets is well-formed, but not yet verified.
        tolerance: How far the timestamp may be from now, in either direction.
        max_body: Bytes; a longer body is refused before it is read.

    Raises:
        ConfigurationError: There is no secret, or one is malformed, shorter than 24 or longer than 64 bytes.
    """

    __slots__ = ("_find", "_keys", "_max_body", "_tolerance_s")

    def __init__(
        self,
        secrets: str | Sequence[str] | Keys,
        *,
        tolerance: timedelta = timedelta(minutes=5),
        max_body: int = MAX_BODY,
    ) -> None:
        self._keys: tuple[_Key, ...] = ()
        self._find: Callable[[str], Sequence[_Key]] | None = None
        if isinstance(secrets, AttemptKeys):
            self._find = secrets.prepared
        elif callable(secrets):
            self._find = lambda message_id: [_Key(key) for key in secrets(message_id)]
        else:
            self._keys = tuple(_Key(key) for key in _parse_secrets(secrets))
        self._tolerance_s = _check_tolerance(tolerance)
        self._max_body = _check_max_body(max_body)

    def __repr__(self) -> str:
        keys = f"<{len(self._keys)} secrets>" if self._find is None else "<found by id>"
        return f"WebhookVerifier({keys}, tolerance={self._tolerance_s:g} s, max_body={self._max_body})"

    def verify(self, headers: Headers, body: Body, *, now: datetime | None = None) -> VerifiedWebhook:
        """Return the message if one of the keys signed exactly these bytes, recently.

        No headers and no body make this raise anything but `WebhookVerificationError`. The cost is bounded by
        ``max_body``, `MAX_SIGNATURES` and the number of keys. All keys and signatures are tried, also after a match.

        Args:
            headers: Of the request; other headers than the webhook's are ignored.
            body: As received, before any parsing.
            now: Aware; None is this machine's clock.

        Raises:
            WebhookVerificationError: It is refused; ``reason`` says why.
            InvalidRequestError: ``now`` has no time zone. This is the caller's mistake.
            ConfigurationError: A callable returned a key that does not have 24 to 64 bytes. Exceptions that it raises
                (such as `StoreUnavailableError`) pass through.
        """
        now_s = time.time() if now is None else _epoch(now)
        content = _read_body(body, self._max_body)
        found = _pick(headers, _SIGNED)
        if len(found) < len(_SIGNED):
            raise _missing(_SIGNED - found.keys())
        message_id, timestamp = found["webhook-id"], found["webhook-timestamp"]
        if not _is_id(message_id):
            raise _malformed_id()
        signed_at = _parse_timestamp(timestamp)
        if abs(ahead_s := signed_at - now_s) > self._tolerance_s:
            reason = Refusal.TIMESTAMP_TOO_NEW if ahead_s > 0 else Refusal.TIMESTAMP_TOO_OLD
            side = "ahead of" if ahead_s > 0 else "behind"
            what = f"the timestamp is {abs(ahead_s):.0f} s {side} this clock, and {self._tolerance_s:g} s are allowed"
            raise Refused(reason, f"{what}: the delivery is late, or the clocks differ")
        signatures = _parse_signatures(found["webhook-signature"])
        keys = self._keys if self._find is None else self._find(message_id)
        if not keys:
            raise Refused(Refusal.UNKNOWN_KEY, f"no key is known for message {message_id}")
        genuine = False
        for key in keys:
            expected = key.sign(message_id, timestamp, content)
            for signature in signatures:
                genuine |= hmac.compare_digest(expected, signature)
        if not genuine:
            what = f"no signature of message {message_id} is right: the secret differs, or the body was changed"
            raise Refused(Refusal.WRONG_SIGNATURE, what)
        return VerifiedWebhook(message_id, datetime.fromtimestamp(signed_at, UTC), content)


class BearerVerifier:
    """Verifies ``Authorization: Bearer <token>``, for senders that cannot sign.

    This is weaker than signatures: someone who saw one request can send any other, at any time. The verified id is the
    ``webhook-id`` header if there is one, else ``sha256:`` and the digest of the body in hex: deliveries with the same
    body have the same id, even if they are different events. Neither id is signed.

    Args:
        tokens: One token, or several (for rotation): 16 to 512 visible ASCII characters each.
        max_body: Bytes; a longer body is refused before it is read.

    Raises:
        ConfigurationError: There is no token, or one is malformed.
    """

    __slots__ = ("_digests", "_max_body")

    def __init__(self, tokens: str | Sequence[str], *, max_body: int = MAX_BODY) -> None:
        if not (several := _several(tokens)):
            raise ConfigurationError("no webhook token is configured; without one, webhooks cannot be verified")
        if not all(map(_is_token, several)):
            raise ConfigurationError(f"a webhook token is {MIN_TOKEN} to {MAX_TOKEN} visible ASCII characters")
        self._digests = tuple(_token_digest(t) for t in several)
        self._max_body = _check_max_body(max_body)

    def __repr__(self) -> str:
        return f"BearerVerifier(<{len(self._digests)} tokens>, max_body={self._max_body})"

    def verify(self, headers: Headers, body: Body, *, now: datetime | None = None) -> VerifiedWebhook:
        """Return the message if it came with one of the tokens.

        Raises:
            WebhookVerificationError: It is refused; ``reason`` says why.
            InvalidRequestError: ``now`` has no time zone. This is the caller's mistake.
        """
        now_s = time.time() if now is None else _epoch(now)
        content = _read_body(body, self._max_body)
        found = _pick(headers, _BEARER)
        if "authorization" not in found:
            raise _missing(["authorization"])
        authorization = _AUTHORIZATION.fullmatch(found["authorization"])
        if authorization is None:
            raise Refused(Refusal.MALFORMED_AUTHORIZATION, "the authorization header is not 'Bearer' and a token")
        message_id = found.get("webhook-id")
        if message_id is not None and not _is_id(message_id):
            raise _malformed_id()
        digest = _token_digest(authorization[1])
        genuine = False
        for expected in self._digests:
            genuine |= hmac.compare_digest(expected, digest)
        if not genuine:
            raise Refused(Refusal.WRONG_TOKEN, "the bearer token is wrong")
        if message_id is None:
            message_id = f"sha256:{hashlib.sha256(content).hexdigest()}"
        return VerifiedWebhook(message_id, datetime.fromtimestamp(now_s, UTC), content)


# --- a key for each attempt -----------------------------------------------------------------------


@frozen
class EventId:
    """The message id of an event: the job, the attempt and the event.

    ``str()`` writes it, and `parse` reads it. Job and event ids consist of ``A-Z a-z 0-9 _ -``, and have at most 128
    and 64 characters; attempts count from 1 to 9999.

    Raises:
        InvalidRequestError: A part is malformed.
    """

    job_id: str
    attempt: int
    event_id: str

    def __attrs_post_init__(self) -> None:
        if _EVENT_ID.fullmatch(str(self)) is None:
            what = "the job id, attempt or event id cannot be part of a message id"
            raise InvalidRequestError(what, code="webhook.event-id")

    def __str__(self) -> str:
        return f"rd:{self.job_id}:{self.attempt}:{self.event_id}"

    @classmethod
    def parse(cls, message_id: str) -> EventId | None:
        """Return the parts of an id; None if `EventId` did not write it."""
        match = _EVENT_ID.fullmatch(message_id)
        return None if match is None else cls(match[1], int(match[2]), match[3])


class AttemptKeys:
    """Finds the keys of attempts from message ids: ``WebhookVerifier(AttemptKeys(masters))``.

    The verified id then proves the sender: compare ``EventId.parse(verified.id)`` with what the body claims.

    Args:
        master_secrets: One, or several during a rotation: the first makes the keys of new attempts, and all are tried
            for what arrives. Keep an old one until the last attempt that uses it has ended.

    Raises:
        ConfigurationError: There is no master secret, or one is malformed, shorter than 24 or longer than 64 bytes.
    """

    __slots__ = ("_masters", "_recent")

    def __init__(self, master_secrets: str | Sequence[str]) -> None:
        self._masters = masters = _parse_secrets(master_secrets)

        def prepare(job_id: str, attempt: int) -> tuple[_Key, ...]:
            return tuple(_Key(_derive(master, job_id, attempt)) for master in masters)

        self._recent = lru_cache(RECENT_ATTEMPTS)(prepare)

    def __repr__(self) -> str:
        return f"AttemptKeys(<{len(self._masters)} master secrets>)"

    def __call__(self, message_id: str) -> Sequence[bytes]:
        """Return one key for each master secret; none for an id that `EventId` did not write."""
        event = EventId.parse(message_id)
        return () if event is None else [_derive(m, event.job_id, event.attempt) for m in self._masters]

    def prepared(self, message_id: str) -> Sequence[_Key]:
        """Return the same keys, ready to verify with; those of the `RECENT_ATTEMPTS` last attempts are kept."""
        match = _EVENT_ID.fullmatch(message_id)
        return () if match is None else self._recent(match[1], int(match[2]))

    def secret(self, *, job_id: str, attempt: int) -> str:
        """Return the secret that the order of a new attempt carries: ``whsec_...``, from the first master secret."""
        return _PREFIX + base64.b64encode(_derive(self._masters[0], job_id, attempt)).decode("ascii")


def _derive(master: bytes, job_id: str, attempt: int) -> bytes:
    """Return the key of one attempt.

    HMAC-SHA256 under the master of a domain, the job id and the attempt, each with its length before it: the
    expansion step of HKDF (RFC 5869) for one block. It reveals neither the master nor another attempt's key.
    """
    # The first byte is 0: no signed content begins so, and no signature under the master is ever a derived key.
    parts = (b"renderdispatch webhook attempt key v1", job_id.encode(), str(attempt).encode())
    return hmac.digest(master, b"".join(len(p).to_bytes(4, "big") + p for p in parts), "sha256")


# --- the parts ------------------------------------------------------------------------------------


class _Key:
    """HMAC-SHA256 under one key.

    The key is hashed once, and every message starts from a copy of that state.
    """

    __slots__ = ("_keyed",)

    def __init__(self, key: bytes) -> None:
        if not MIN_KEY <= len(key) <= MAX_KEY:
            raise ConfigurationError(f"a webhook key is {MIN_KEY} to {MAX_KEY} bytes; one was found with {len(key)}")
        self._keyed = hmac.new(key, digestmod="sha256")

    def sign(self, message_id: str, timestamp: str, body: bytes) -> bytes:
        """Return the base64 of the signature of ``id.timestamp.body``."""
        signed = self._keyed.copy()
        # one update: a second call costs more than copying a body of 2 KB
        signed.update(b"%b.%b.%b" % (message_id.encode(), timestamp.encode(), body))
        return binascii.b2a_base64(signed.digest(), newline=False)


def _check_tolerance(tolerance: object) -> float:
    if not isinstance(tolerance, timedelta) or tolerance <= timedelta(0):
        raise ConfigurationError(f"the tolerance must be a timedelta above 0, not {tolerance}")
    return tolerance.total_seconds()


def _check_max_body(max_body: object) -> int:
    if not isinstance(max_body, int) or max_body < 1:
        raise ConfigurationError(f"max_body must be at least 1, not {max_body}")
    return max_body


def _epoch(now: object) -> float:
    if not isinstance(now, datetime) or now.utcoffset() is None:
        raise InvalidRequestError("`now` must be an aware datetime: datetime.now(UTC)", code="webhook.naive-time")
    return now.timestamp()


def _read_body(body: object, limit: int) -> bytes:
    """Return the body as immutable bytes; check its size before any byte is copied."""
    if isinstance(body, (bytes, bytearray)):
        size = len(body)
    elif isinstance(body, memoryview):
        try:
            size = body.nbytes
        except ValueError:
            raise Refused(Refusal.MALFORMED_BODY, "the body's memory was released") from None
    else:
        raise Refused(Refusal.MALFORMED_BODY, f"pass the raw bytes of the body, not {type(body).__name__}")
    if size > limit:
        raise Refused(Refusal.BODY_TOO_LARGE, f"the body has {size} bytes, and {limit} are allowed")
    return bytes(body)


def _pick(headers: Headers, names: frozenset[str]) -> dict[str, str]:
    """Return the headers with these names; each may occur once."""
    found: dict[str, str] = {}
    twice = None
    try:
        for name, value in headers.items() if hasattr(headers, "items") else headers:
            key = (name if isinstance(name, str) else name.decode("latin-1")).lower()
            if key in names and name.isascii():  # the Kelvin sign's lower case is k
                if key in found:
                    twice = key
                found[key] = value if isinstance(value, str) else value.decode("ascii")
    except (AttributeError, TypeError, ValueError):
        raise Refused(Refusal.MALFORMED_HEADER, "the headers are not names and values of text") from None
    if twice is not None:
        raise Refused(Refusal.DUPLICATE_HEADER, f"the request has more than one {twice} header")
    return found


def _missing(names: Iterable[str]) -> Refused:
    return Refused(Refusal.MISSING_HEADER, f"the request has no {', '.join(sorted(names))} header")


def _is_id(text: object) -> bool:
    """Return whether it is visible ASCII without a dot: with dots, `id.timestamp.body` would be ambiguous."""
    if not isinstance(text, str):
        return False
    return 0 < len(text) <= MAX_ID and text.isascii() and text.isprintable() and " " not in text and "." not in text


def _malformed_id() -> Refused:
    return Refused(Refusal.MALFORMED_ID, f"webhook-id is not 1 to {MAX_ID} visible ASCII characters without a dot")


def _parse_timestamp(text: str) -> int:
    """Read the only spelling of a whole number of seconds; `int` also reads signs, spaces and other digits."""
    if len(text) <= MAX_DIGITS and text.isdigit() and text.isascii() and (text[0] != "0" or text == "0"):
        return int(text)
    raise Refused(Refusal.MALFORMED_TIMESTAMP, "webhook-timestamp is not a plain number of seconds since 1970")


def _parse_signatures(header: str) -> list[bytes]:
    """Return the v1 signatures, each the only spelling of 32 bytes; other versions are skipped."""
    if _V1.fullmatch(header):  # one signature: nearly all senders send this
        return [header[3:].encode()]
    entries = header.split(" ", MAX_SIGNATURES)
    if len(header) > MAX_HEADER or len(entries) > MAX_SIGNATURES:
        what = f"webhook-signature is longer than {MAX_HEADER} characters or {MAX_SIGNATURES} signatures"
        raise Refused(Refusal.MALFORMED_SIGNATURE, what)
    signatures = [e[3:].encode() for e in entries if _V1.fullmatch(e)]
    versions = [e.partition(",")[0] for e in entries if _VERSIONED.fullmatch(e)]
    if len(versions) < len(entries) or versions.count("v1") > len(signatures):
        what = "webhook-signature is not a list of versions and canonical base64 ('v1,...')"
        raise Refused(Refusal.MALFORMED_SIGNATURE, what)
    if not signatures:
        raise Refused(Refusal.UNSUPPORTED_SIGNATURE, "webhook-signature has no v1 signature")
    return signatures


def _is_token(token: object) -> bool:
    return isinstance(token, str) and _TOKEN.fullmatch(token) is not None


def _token_digest(token: str) -> bytes:
    """Return a digest of fixed length: comparing the tokens themselves would reveal their length."""
    return hashlib.sha256(token.encode("ascii")).digest()
