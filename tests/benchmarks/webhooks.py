"""How fast is a webhook of 2 KB verified, next to other libraries and next to the hash alone?

    python tests/benchmarks/webhooks.py [--quick]

The last line is JSON. ``vs_standardwebhooks`` and ``vs_svix``: verifications a second over theirs, the same request
for all, every check on. ``time_vs_hmac``: time over that of the bare least, `hmac.digest` of the signed content, put
together beforehand, and one `hmac.compare_digest`. Each is the median over rounds in which the contenders take turns, each short enough to fall between what else the machine does.
Peers that are not installed are installed by pip into a folder that is removed afterwards.
"""

from __future__ import annotations

import argparse
import base64
import gc
import hmac
import importlib
import importlib.metadata
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime

from renderdispatch.webhooks import WebhookSigner, WebhookVerifier, parse_secret

PEERS = ("standardwebhooks", "svix")
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
BODY = json.dumps({"type": "progressed", "filler": "x" * 2010}).encode().ljust(2048)


def contenders() -> dict[str, Callable[[], object]]:
    """Return what is timed, by name; each has verified once."""
    standardwebhooks = importlib.import_module("standardwebhooks").Webhook(SECRET)
    svix = importlib.import_module("svix.webhooks").Webhook(SECRET)
    ours = WebhookVerifier(SECRET)
    headers = WebhookSigner(SECRET).sign("msg_p5jXN8AQM9LWM0D4loKWxJek", BODY, now=datetime.now(UTC))
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + BODY
    key, signature = parse_secret(SECRET), base64.b64decode(headers["webhook-signature"].removeprefix("v1,"))
    found: dict[str, Callable[[], object]] = {
        "ours": lambda: ours.verify(headers, BODY),
        "standardwebhooks": lambda: standardwebhooks.verify(BODY, headers, json_parse=False),
        "svix": lambda: svix.verify(BODY, headers),
        "hmac": lambda: hmac.compare_digest(hmac.digest(key, content, "sha256"), signature),
    }
    for verify in found.values():
        verify()
    assert found["hmac"]()
    return found


def seconds_of(verify: Callable[[], object], times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        verify()
    return (time.perf_counter() - started) / times


def measure(rounds: int, times: int) -> dict[str, list[float]]:
    """Return the seconds a verification takes, by contender, round by round."""
    measured: dict[str, list[float]] = {}
    gc.disable()
    for turn in range(rounds):
        entries = list(contenders().items())
        for name, verify in entries[turn % len(entries) :] + entries[: turn % len(entries)]:
            measured.setdefault(name, []).append(seconds_of(verify, times))
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a second instead of ten")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        missing = [peer for peer in PEERS if importlib.util.find_spec(peer) is None]
        if missing:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, *missing]
            subprocess.run(pip, check=True, stdout=sys.stderr)
            sys.path.append(folder)
            importlib.invalidate_caches()
        measured = measure(rounds=100 if quick else 1000, times=300)
        versions = {peer: importlib.metadata.version(peer) for peer in PEERS}

    def ratio(above: str, below: str) -> float:
        pairs = zip(measured[above], measured[below], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    for name, seconds in measured.items():
        print(f"{name:17} {1 / statistics.median(seconds):9,.0f} /s  {versions.get(name, '')}")
    result = {
        "vs_standardwebhooks": ratio("standardwebhooks", "ours"),
        "vs_svix": ratio("svix", "ours"),
        "time_vs_hmac": ratio("ours", "hmac"),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
