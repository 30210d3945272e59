"""How may a signed request be tampered with, and what must then happen?

`forge` turns choices into a request whose id, timestamp, body or every signature was changed; the choices come from
Hypothesis (`test_verifier_fuzz.py`) or, when this file runs as a program, from atheris, guided by coverage::

    python tests/webhooks/forgeries.py 1000000    # ends when so many were refused
"""

from __future__ import annotations

import base64
import os
import sys
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any, Protocol

from attrs import frozen

if __name__ == "__main__":
    import atheris

    instrumented = atheris.instrument_imports(include=["renderdispatch.webhooks"])
else:
    instrumented = nullcontext()

with instrumented:
    from renderdispatch.errors import WebhookVerificationError
    from renderdispatch.webhooks import WebhookSigner, WebhookVerifier

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SECRETS = ["whsec_" + base64.b64encode(byte * 32).decode() for byte in (b"a", b"b")]
BODY = b'{"type":"progressed","fraction":0.5}'
ID = "rd:job-1:1:event-1"
SIGNED = WebhookSigner(SECRETS[0]).sign(ID, BODY, now=NOW)
SIGNATURES = [SIGNED["webhook-signature"], WebhookSigner(SECRETS[1]).sign(ID, BODY, now=NOW)["webhook-signature"]]
VERIFIER = WebhookVerifier(SECRETS, max_body=1000)

TRICKS = [
    "",
    " ",
    "\n",
    "\t",
    "\x00",
    ".",
    ",",
    "=",
    "==",
    "+",
    "-",
    "_",
    "0",
    "v1,",
    "v1a,",
    "v2,x",
    "é",
    "\u0661",
    "\uff11",
]
TRICKS += ["\u212a", "\ud800", "\U0001f3b5", "A" * 43 + "=", "9" * 30, "x" * 5000, "1e9", "nan", *SIGNATURES, ID]


class Source(Protocol):
    """Where choices come from."""

    def below(self, n: int) -> int: ...
    def text(self) -> str: ...
    def octets(self) -> bytes: ...


@frozen
class Request:
    """What arrives, and whether it is, after all, what was signed."""

    headers: Any
    body: Any
    genuine: bool


def _edit_text(source: Source, original: str) -> str:
    at = source.below(len(original) + 1)
    match source.below(6):
        case 0:
            return source.text()
        case 1:
            return original[:at] + TRICKS[source.below(len(TRICKS))] + original[at:]
        case 2:
            return original[:at] + source.text() + original[at:]
        case 3:
            return original[:at] + original[at + 1 + source.below(4) :]
        case 4:
            return original[:at] + chr(33 + source.below(94)) + original[at + 1 :]
        case _:
            return TRICKS[source.below(len(TRICKS))]


def _edit_bytes(source: Source, original: bytes) -> bytes:
    at = source.below(len(original) + 1)
    match source.below(4):
        case 0:
            return source.octets()
        case 1:
            return original[:at] + source.octets() + original[at:]
        case 2:
            return original[:at] + bytes([source.below(256)]) + original[at + 1 :]
        case _:
            return original[:at] + original[at + 1 + source.below(4) :]


def _shape(source: Source, headers: dict[str, str]) -> Any:
    encoded = [(k.encode(), v.encode("utf-8", "surrogatepass")) for k, v in headers.items()]
    match source.below(5):
        case 0:
            return dict(encoded)
        case 1:
            return iter([*encoded, (source.octets(), source.octets())])
        case 2:
            return [(k.upper(), v) for k, v in headers.items()] + [(source.text(), source.text())]
        case 3:
            return [(_edit_text(source, k), v) for k, v in headers.items()]
        case _:
            return headers


def forge(source: Source) -> Request:
    """Return a request in which one part, or several, was tampered with."""
    parts = 1 + source.below(15)
    headers, body = dict(SIGNED), BODY
    if parts & 1:
        headers["webhook-id"] = _edit_text(source, ID)
    if parts & 2:
        headers["webhook-timestamp"] = _edit_text(source, headers["webhook-timestamp"])
    if parts & 4:
        headers["webhook-signature"] = " ".join(_edit_text(source, s) for s in SIGNATURES[: 1 + source.below(2)])
    if parts & 8:
        body = _edit_bytes(source, BODY)
    others_hold = all(headers[n] == SIGNED[n] for n in ("webhook-id", "webhook-timestamp")) and body == BODY
    genuine = others_hold and any(s in SIGNATURES for s in headers["webhook-signature"].split(" "))
    shaped = [body, bytearray(body), memoryview(body)][source.below(3)]
    return Request(_shape(source, headers), shaped, genuine)


def check(request: Request) -> bool:
    """Return whether the request was refused. What is not genuine must be, by the one error and no other."""
    try:
        VERIFIER.verify(request.headers, request.body, now=NOW)
    except WebhookVerificationError:
        return True
    assert request.genuine, f"a forgery was accepted: {request}"
    return False


# --- driven by atheris ----------------------------------------------------------------------------


class _Fuzzed:
    def __init__(self, data: bytes) -> None:
        self._provider = atheris.FuzzedDataProvider(data)

    def below(self, n: int) -> int:
        return int(self._provider.ConsumeIntInRange(0, n - 1))

    def text(self) -> str:
        return str(self._provider.ConsumeUnicode(self.below(60)))

    def octets(self) -> bytes:
        return bytes(self._provider.ConsumeBytes(self.below(60)))


def _main() -> None:
    enough = int(sys.argv.pop(1))
    refused, genuine = 0, 0

    def one(data: bytes) -> None:
        nonlocal refused, genuine
        if check(forge(_Fuzzed(data))):
            refused += 1
            if refused == enough:
                print(f"refused {refused}, as it was signed {genuine}", flush=True)
                os._exit(0)  # libFuzzer would go on
        else:
            genuine += 1

    # Without the first two, libFuzzer prefers inputs of a few bytes, which make few choices. It takes the peak memory of
    # the process that started this one for its own (getrusage), so it is to watch none.
    atheris.Setup([*sys.argv, "-max_len=400", "-len_control=0", "-rss_limit_mb=0"], one)
    atheris.Fuzz()


if __name__ == "__main__":
    _main()
