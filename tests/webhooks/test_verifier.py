"""What the signer writes, and what the verifier believes and refuses."""

from __future__ import annotations

import base64
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from email.message import Message
from typing import Any

import pytest

from renderdispatch.errors import (
    ConfigurationError,
    InvalidRequestError,
    RenderDispatchError,
    StoreUnavailableError,
    WebhookRefusal,
    WebhookVerificationError,
)
from renderdispatch.webhooks import (
    MAX_BODY,
    MAX_HEADER,
    MAX_ID,
    MAX_SIGNATURES,
    VerifiedWebhook,
    WebhookSigner,
    WebhookVerifier,
    parse_secret,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BODY = b'{"type":"progressed"}'


def secret_of(byte: bytes, size: int = 32) -> str:
    return "whsec_" + base64.b64encode(byte * size).decode()


SECRET, OTHER = secret_of(b"a"), secret_of(b"b")


def signed(
    *, message_id: str = "msg_1", body: bytes = BODY, secret: str = SECRET, now: datetime = NOW
) -> dict[str, str]:
    return WebhookSigner(secret).sign(message_id, body, now=now)


def refusal(headers: Any, body: Any = BODY, *, verifier: WebhookVerifier | None = None, now: datetime = NOW) -> str:
    """Return the reason of the refusal; fail when there is none."""
    with pytest.raises(WebhookVerificationError) as caught:
        (verifier or WebhookVerifier(SECRET)).verify(headers, body, now=now)
    assert caught.value.code == f"webhook.{caught.value.reason}"
    return caught.value.reason


# --- what is believed -----------------------------------------------------------------------------


def test_fixed_vector_is_verified_and_signed_alike() -> None:
    """The vector of the Standard Webhooks libraries holds, with its bare base64 secret."""
    secret, now = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", datetime.fromtimestamp(1614265330, UTC)
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    body = b'{"test": 2432232314}'
    assert WebhookSigner(secret).sign(headers["webhook-id"], body, now=now) == headers
    assert WebhookVerifier(secret).verify(headers, body, now=now) == VerifiedWebhook(headers["webhook-id"], now, body)


def test_verified_webhook_is_what_was_signed() -> None:
    """The answer carries id, whole seconds and the bytes."""
    verified = WebhookVerifier(SECRET).verify(signed(now=NOW + timedelta(milliseconds=900)), BODY, now=NOW)
    assert verified == VerifiedWebhook("msg_1", NOW, BODY)


def test_without_now_the_clock_of_this_machine_counts() -> None:
    """A message signed now is fresh, one of 2026-01-02 is not."""
    verifier = WebhookVerifier(SECRET)
    assert verifier.verify(signed(now=datetime.now(UTC)), BODY).id == "msg_1"
    with pytest.raises(WebhookVerificationError):
        verifier.verify(signed(), BODY)


def _upper_bytes(headers: dict[str, str]) -> Any:
    return {k.upper().encode(): v.encode() for k, v in headers.items()}


def _as_message(headers: dict[str, str]) -> Any:
    message = Message()
    for name, value in headers.items():
        message[name] = value
    return message


@pytest.mark.parametrize(
    "shape",
    [
        dict,
        lambda h: {k.title(): v for k, v in h.items()},
        _upper_bytes,
        lambda h: list(h.items()),
        lambda h: iter([(k.encode(), v.encode()) for k, v in h.items()]),
        lambda h: [("Host", "example.com"), ("webhook-note", "\xff\n"), *h.items(), ("cookie", "a"), ("cookie", "b")],
        _as_message,
    ],
)
def test_headers_come_in_any_shape(shape: Callable[[dict[str, str]], Any]) -> None:
    """Mappings or pairs, str or bytes, any case, among others."""
    assert WebhookVerifier(SECRET).verify(shape(signed()), BODY, now=NOW).id == "msg_1"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda b: memoryview(b + b).cast("B")[: len(b)]])
def test_body_comes_as_any_bytes(kind: Callable[[bytes], Any]) -> None:
    """The verified body is bytes of its own, whatever came."""
    body = WebhookVerifier(SECRET).verify(signed(), kind(BODY), now=NOW).body
    assert type(body) is bytes and body == BODY


def test_verified_body_does_not_change_with_the_buffer() -> None:
    """Writing to the buffer afterwards changes nothing that was verified."""
    buffer = bytearray(BODY)
    verified = WebhookVerifier(SECRET).verify(signed(), buffer, now=NOW)
    buffer[0:1] = b"X"
    assert verified.body == BODY


@pytest.mark.parametrize("secrets", [[SECRET, OTHER], (OTHER, SECRET), lambda _id: [b"b" * 32, b"a" * 32]])
def test_any_of_several_secrets_may_have_signed(secrets: Any) -> None:
    """Secrets rotate: old and new are both believed."""
    assert WebhookVerifier(secrets).verify(signed(), BODY, now=NOW).id == "msg_1"


def test_any_of_several_signatures_may_be_right() -> None:
    """A sender that rotates signs with both secrets; versions that are not understood are skipped."""
    headers, other = signed(), signed(secret=OTHER)
    headers["webhook-signature"] = f"v1a,bm90LW91cnM v2,x {other['webhook-signature']} {headers['webhook-signature']}"
    assert WebhookVerifier(SECRET).verify(headers, BODY, now=NOW).id == "msg_1"


@pytest.mark.parametrize("off_s", [-300, 300])
def test_tolerance_is_inclusive(off_s: int) -> None:
    """Exactly five minutes off is still believed, either way."""
    assert WebhookVerifier(SECRET).verify(signed(), BODY, now=NOW + timedelta(seconds=off_s)).id == "msg_1"


def test_now_may_stand_in_any_time_zone() -> None:
    """An instant is an instant."""
    east = NOW.astimezone(timezone(timedelta(hours=9)))
    assert signed(now=east) == signed()
    assert WebhookVerifier(SECRET).verify(signed(), BODY, now=east).timestamp == NOW


def test_empty_body_is_a_body() -> None:
    """Nothing can be signed, too."""
    assert WebhookVerifier(SECRET).verify(signed(body=b""), b"", now=NOW).body == b""


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_missing_header_is_refused_by_name(name: str) -> None:
    """The message says which header is missing."""
    headers = signed()
    del headers[name]
    with pytest.raises(WebhookVerificationError, match=name) as caught:
        WebhookVerifier(SECRET).verify(headers, BODY, now=NOW)
    assert caught.value.reason is WebhookRefusal.MISSING_HEADER


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_duplicate_header_is_refused_by_name(name: str) -> None:
    """Two headers of one name are refused, also when they agree and differ only in case."""
    headers = signed()
    pairs = [*headers.items(), (name.upper(), headers[name])]
    with pytest.raises(WebhookVerificationError, match=name) as caught:
        WebhookVerifier(SECRET).verify(pairs, BODY, now=NOW)
    assert caught.value.reason is WebhookRefusal.DUPLICATE_HEADER


def test_name_that_only_looks_alike_is_another_header() -> None:
    """The Kelvin sign is no k, although it becomes one in lower case."""
    headers = {k.replace("k", "\u212a"): v for k, v in signed().items()}
    assert refusal(headers) == "missing-header"


@pytest.mark.parametrize(
    "headers",
    [
        None,
        7,
        "webhook-id",
        ["webhook-id"],
        [("webhook-id",)],
        [("webhook-id", "a", "b")],
        {None: "x"},
        {"webhook-id": None},
        {"webhook-id": ["msg_1"]},
        {"webhook-id": 5},
        {b"webhook-id": b"\xff"},
    ],
)
def test_headers_that_are_no_text_are_refused(headers: Any) -> None:
    """Whatever a gateway makes of headers, the answer is the one error."""
    assert refusal(headers) == "malformed-header"


@pytest.mark.parametrize(
    "message_id", ["", "a" * (MAX_ID + 1), "a.b", ".", "a b", " a", "a\n", "a\x00", "\x7f", "é", "\ud800", "a\u2028"]
)
def test_id_that_is_empty_long_dotted_or_unprintable_is_refused(message_id: str) -> None:
    """With a dot in the id, `id.timestamp.body` could be read in two ways."""
    assert refusal(signed() | {"webhook-id": message_id}) == "malformed-id"
    with pytest.raises(InvalidRequestError):
        signed(message_id=message_id)


def test_dot_cannot_move_between_id_and_timestamp() -> None:
    """Signed as id ``a.1``, a message cannot be replayed as id ``a`` with what follows as timestamp and body."""
    now_s = int(NOW.timestamp())
    headers = signed(message_id="a", body=b"1.rest")
    assert refusal(headers | {"webhook-id": f"a.{now_s}", "webhook-timestamp": "1"}, b"rest") == "malformed-id"


@pytest.mark.parametrize("size", [1, MAX_ID])
def test_id_of_any_allowed_length_is_believed(size: int) -> None:
    """1 to 256 characters."""
    assert WebhookVerifier(SECRET).verify(signed(message_id="~" * size), BODY, now=NOW).id == "~" * size


@pytest.mark.parametrize(
    "timestamp",
    [
        "",
        " 1767323045",
        "1767323045 ",
        "+1767323045",
        "-1",
        "1_767_323_045",
        "1767323045.0",
        "1.7e9",
        "01767323045",
        "00",
        "0x69573525",
        "١٧٦٧٣٢٣٠٤٥",
        "１７６７３２３０４５",
        "²",
        "nan",
        "inf",
        "1" * 12,
        "9" * 5000,
        "1767323045\n",
        "\ud800",
    ],
)
def test_timestamp_has_one_spelling(timestamp: str) -> None:
    """ASCII digits, no sign, space, point, underscore or leading zero, at most eleven."""
    assert refusal(signed() | {"webhook-timestamp": timestamp}) == "malformed-timestamp"


@pytest.mark.parametrize(
    ("clock_s", "reason", "says"),
    [
        (600, "timestamp-too-old", "600 s behind"),
        (-600, "timestamp-too-new", "600 s ahead"),
        (301, "timestamp-too-old", "301 s"),
    ],
)
def test_clock_that_is_off_is_told_how_far(clock_s: int, reason: str, says: str) -> None:
    """Old and new are distinct reasons, and the message says how far the clocks are apart."""
    with pytest.raises(WebhookVerificationError, match=says) as caught:
        WebhookVerifier(SECRET).verify(signed(), BODY, now=NOW + timedelta(seconds=clock_s))
    assert caught.value.reason == reason


def test_timestamp_zero_and_the_last_one_are_only_a_matter_of_tolerance() -> None:
    """The ends of the range verify under a tolerance that reaches them, and nothing overflows."""
    verifier = WebhookVerifier(SECRET, tolerance=timedelta.max)
    for moment in (datetime.fromtimestamp(0, UTC), datetime.fromtimestamp(99_999_999_999, UTC)):
        assert verifier.verify(signed(now=moment), BODY, now=NOW).timestamp == moment


GOOD = signed()["webhook-signature"]


@pytest.mark.parametrize(
    "signature",
    [
        "",
        " ",
        "v1",
        "v1,",
        ",",
        GOOD[3:],
        GOOD[:-1],
        GOOD + "=",
        GOOD + "A",
        GOOD + "\n",
        GOOD + " ",
        " " + GOOD,
        GOOD + ",",
        GOOD + "  " + GOOD,
        GOOD + " v1,AAAA",
        GOOD + " junk",
        GOOD.replace("v1,", "v1, "),
        GOOD.replace(",", "="),
        GOOD[:20] + "*" + GOOD[21:],
        GOOD[:20] + "\u0430" + GOOD[21:],
        GOOD[:20] + "-" + GOOD[21:],
        "v1," + "A" * 88,
        "v1,\ud800",
        "v1," + "é" * 44,
        "\x00",
        "v1," + "A" * 44,
        # the last character carries two bits that mean nothing: another spelling of the same bytes
        GOOD[:-2] + chr(ord(GOOD[-2]) + 1) + "=",
    ],
)
def test_signature_has_one_spelling(signature: str) -> None:
    """Canonical base64 of 32 bytes: junk, white space, another alphabet and stray bits are refused."""
    assert refusal(signed() | {"webhook-signature": signature}) == "malformed-signature"


def test_signatures_of_other_versions_alone_are_refused() -> None:
    """Nothing that is not understood is believed."""
    assert refusal(signed() | {"webhook-signature": "v1a,abc v2,def"}) == "unsupported-signature"


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_number_of_signatures_is_bounded(version: str) -> None:
    """Sixteen are looked at; more are refused, even with a right one among them."""
    filler = f"{version}," + "A" * 43 + "="
    most = " ".join([filler] * (MAX_SIGNATURES - 1) + [GOOD])
    assert WebhookVerifier(SECRET).verify(signed() | {"webhook-signature": most}, BODY, now=NOW).id == "msg_1"
    assert refusal(signed() | {"webhook-signature": f"{filler} {most}"}) == "malformed-signature"


@pytest.mark.parametrize(
    "signature", ["v2," + "A" * MAX_HEADER, "v1," + "A" * 10_000_000, " " * 1_000_000, "v1,A " * 100_000]
)
def test_long_signature_header_is_refused(signature: str) -> None:
    """4,096 characters are enough for sixteen signatures."""
    assert refusal(signed() | {"webhook-signature": signature}) == "malformed-signature"


@pytest.mark.parametrize(
    ("change", "body"),
    [
        ({"webhook-id": "msg_2"}, BODY),
        ({"webhook-timestamp": str(int(NOW.timestamp()) + 1)}, BODY),
        ({}, BODY + b" "),
        ({}, b""),
        ({"webhook-signature": "v1," + "A" * 43 + "="}, BODY),
    ],
)
def test_anything_changed_is_refused(change: dict[str, str], body: bytes) -> None:
    """Id, timestamp, body and signature stand and fall together."""
    assert refusal(signed() | change, body) == "wrong-signature"


def test_secret_of_somebody_else_is_refused() -> None:
    """A right signature under another secret is wrong."""
    assert refusal(signed(secret=OTHER)) == "wrong-signature"


@pytest.mark.parametrize("body", [None, "text", 5, [1, 2], {"a": 1}, "x" * (MAX_BODY + 1)])
def test_body_that_is_not_bytes_is_refused(body: Any) -> None:
    """A parsed or decoded body is no raw body."""
    assert refusal(signed(), body) == "malformed-body"


def test_body_whose_memory_is_gone_is_refused() -> None:
    """A released memoryview has no bytes."""
    view = memoryview(BODY)
    view.release()
    assert refusal(signed(), view) == "malformed-body"


def test_body_at_the_limit_is_read_and_one_byte_more_is_not() -> None:
    """The limit counts bytes, also in views with items of several bytes."""
    verifier = WebhookVerifier(SECRET, max_body=16)
    body = bytes(16)
    assert verifier.verify(signed(body=body), memoryview(body).cast("Q"), now=NOW).body == body
    assert refusal(signed(), bytes(17), verifier=verifier) == "body-too-large"
    assert refusal(signed(), memoryview(bytes(24)).cast("Q"), verifier=verifier) == "body-too-large"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_body_of_100_mb_is_refused_in_constant_memory_and_time(kind: Callable[[bytes], Any]) -> None:
    """It is neither hashed nor copied: refusing it costs what refusing a body just over the limit costs."""
    verifier, headers = WebhookVerifier(SECRET), signed()
    huge, small = kind(bytes(100_000_000)), kind(bytes(MAX_BODY + 1))

    def time_of(body: Any) -> float:
        started = time.perf_counter()
        assert refusal(headers, body, verifier=verifier) == "body-too-large"
        return time.perf_counter() - started

    times = [(time_of(huge), time_of(small)) for _ in range(21)]
    assert statistics.median(t for t, _ in times) < 10 * statistics.median(t for _, t in times)
    tracemalloc.start()
    try:
        refusal(headers, huge, verifier=verifier)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()


def test_refusal_quotes_neither_secret_nor_body() -> None:
    """Errors are logged; what they say is harmless."""
    with pytest.raises(WebhookVerificationError) as caught:
        WebhookVerifier(SECRET).verify(signed(secret=OTHER), BODY, now=NOW)
    assert (
        SECRET[6:] not in str(caught.value) and "progressed" not in str(caught.value) and GOOD not in str(caught.value)
    )


def test_refusal_is_in_the_tree() -> None:
    """Every refusal is caught as the library's error, and as `ValueError`."""
    assert issubclass(WebhookVerificationError, RenderDispatchError) and issubclass(
        WebhookVerificationError, ValueError
    )


# --- keys found by id -----------------------------------------------------------------------------


def test_callable_is_asked_for_the_keys_of_the_id() -> None:
    """The keys may depend on the id: it is signed itself."""
    keys = {"msg_1": [b"a" * 32], "msg_2": [b"b" * 32]}
    verifier = WebhookVerifier(lambda message_id: keys[message_id])
    assert verifier.verify(signed(), BODY, now=NOW).id == "msg_1"
    assert verifier.verify(signed(message_id="msg_2", secret=OTHER), BODY, now=NOW).id == "msg_2"
    assert refusal(signed(message_id="msg_2"), verifier=verifier) == "wrong-signature"


def test_id_without_a_key_is_refused() -> None:
    """No key, no belief."""
    assert refusal(signed(), verifier=WebhookVerifier(lambda _id: [])) == "unknown-key"


def test_callable_is_asked_only_about_what_is_well_formed_and_fresh() -> None:
    """A look-up in a store costs something: nonsense never gets there."""
    asked: list[str] = []

    def find(message_id: str) -> Sequence[bytes]:
        asked.append(message_id)
        return []

    verifier = WebhookVerifier(find)
    refusal(signed() | {"webhook-id": "a.b"}, verifier=verifier)
    refusal(signed() | {"webhook-signature": "v1,nonsense"}, verifier=verifier)
    refusal(signed(), verifier=verifier, now=NOW + timedelta(hours=1))
    refusal(signed(), bytes(MAX_BODY + 1), verifier=verifier)
    assert asked == []


def test_what_a_callable_raises_passes_through() -> None:
    """A store that is down is no forgery."""

    def find(_id: str) -> Sequence[bytes]:
        raise StoreUnavailableError("away")

    with pytest.raises(StoreUnavailableError):
        WebhookVerifier(find).verify(signed(), BODY, now=NOW)


@pytest.mark.parametrize("key", [b"", b"a" * 23, b"a" * 65])
def test_key_that_a_callable_finds_is_measured_too(key: bytes) -> None:
    """An empty key would let anybody sign."""
    with pytest.raises(ConfigurationError):
        WebhookVerifier(lambda _id: [key]).verify(signed(), BODY, now=NOW)


# --- how it is put together -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "secret",
    [
        "whsec_",
        secret_of(b"a", 23),
        secret_of(b"a", 65),
        SECRET + "\n",
        " " + SECRET,
        SECRET[:-3],
        SECRET[:-2] + "==" + "A",
        "WHSEC_" + SECRET[6:],
        "whsec_" + SECRET,
        "whsec_" + "*" * 40,
        "é" * 40,
        "whsec_" + "_" * 43 + "=",
        "a b" * 20,
    ],
)
def test_secret_that_is_short_long_or_malformed_is_refused_without_quoting_it(secret: str) -> None:
    """At construction, with the shape that is expected."""
    makers: Iterable[Callable[[], object]] = (
        lambda: WebhookVerifier(secret),
        lambda: WebhookVerifier([SECRET, secret]),
        lambda: WebhookSigner(secret),
    )
    for make in makers:
        with pytest.raises(ConfigurationError, match="24 to 64 bytes") as caught:
            make()
        text = secret.strip().removeprefix("whsec_")
        assert not text or text not in str(caught.value)
        assert caught.value.__cause__ is None and caught.value.__suppress_context__ is (
            caught.value.__context__ is not None
        )


@pytest.mark.parametrize("secrets", ["", [], (), None, [""], [None], [b"a" * 32], b"a" * 32])
def test_no_secret_at_all_is_refused(secrets: Any) -> None:
    """Without a secret there is no verifier: it never accepts all."""
    with pytest.raises(ConfigurationError):
        WebhookVerifier(secrets)


@pytest.mark.parametrize("size", [24, 32, 64])
def test_secret_may_lack_prefix_and_padding(size: int) -> None:
    """As the libraries of the specification read it."""
    full = secret_of(b"k", size)
    assert parse_secret(full) == parse_secret(full[6:]) == parse_secret(full.rstrip("=")) == b"k" * size


@pytest.mark.parametrize(
    "options", [{"tolerance": timedelta(0)}, {"tolerance": timedelta(seconds=-1)}, {"max_body": 0}]
)
def test_options_that_would_refuse_everything_are_refused(options: dict[str, Any]) -> None:
    """A tolerance and a limit are above 0."""
    with pytest.raises(ConfigurationError):
        WebhookVerifier(SECRET, **options)


def test_reprs_show_no_secret_and_no_body() -> None:
    """They stand in logs and tracebacks."""
    shown = repr([WebhookSigner(SECRET), WebhookVerifier([SECRET]), VerifiedWebhook("msg_1", NOW, b"hush")])
    assert SECRET[6:20] not in shown and "aaaa" not in shown and "hush" not in shown


def test_naive_time_is_the_callers_mistake() -> None:
    """It is never read as the time of some zone."""
    naive = NOW.replace(tzinfo=None)
    with pytest.raises(InvalidRequestError):
        signed(now=naive)
    with pytest.raises(InvalidRequestError):
        WebhookVerifier(SECRET).verify(signed(), BODY, now=naive)


@pytest.mark.parametrize("year", [1969, 9999])
def test_time_that_no_header_carries_is_not_signed(year: int) -> None:
    """Before 1970, or with more than eleven digits."""
    with pytest.raises(InvalidRequestError):
        signed(now=NOW.replace(year=year))
