"""Whose accounts do the live tests use, and what will that cost?

Both are read from the environment and from ``docs/how-to/live-tests.md``, which says the same to people.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from attrs import field, frozen

from renderdispatch.modal_app.deployment import Deployment

PAGE: Final = Path(__file__).parents[2] / "docs" / "how-to" / "live-tests.md"

APP: Final = "renderdispatch-live-tests"
"""The Modal app that the tests deploy: not the one that an application renders with."""

RENDERS: Final = 6
"""How many containers the tests start: five to render, and one to say what it draws with."""

RENDER_S: Final = 30
"""Seconds of a container that a render is billed for: it starts, imports, renders a second or two, and waits idly."""

PATIENCE_S: Final = 600
"""Seconds after which a render is cancelled."""

DEFAULT_PORT: Final = 8765

_PRICE: Final = re.compile(r"^\| ([A-Za-z0-9 -]+?) +\| +(0\.\d+) +\|", re.MULTILINE)
_PASSED_ON: Final = re.compile(r"MODAL_\w+|RENDERDISPATCH_(R2|MODAL)_\w+|(?i:https?|all|no)_(?i:proxy)|SSL_CERT_FILE")
_LIVE: Final = "RENDERDISPATCH_LIVE_"


@frozen(kw_only=True)
class Accounts:
    """What the live tests run with.

    Args:
        variables: The application's environment, but for where in the bucket it keeps its objects.
        storage: ``r2://bucket/prefix``.
        webhook_url: Where containers reach this machine; None where they do not.
        webhook_port: Where that leads.
        read_only: The access key of a token that may only read, as variables; empty where there is none.
    """

    variables: Mapping[str, str] = field(repr=False)
    storage: str
    webhook_url: str | None
    webhook_port: int
    read_only: Mapping[str, str] = field(repr=False)


def missing(environment: Mapping[str, str]) -> list[str]:
    """Return which variables the live tests would need, and do not find."""
    found = {name for name, value in environment.items() if value}
    lacking = []
    if not {"MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"} <= found and not _has_token(_configuration(environment)):
        lacking.append("MODAL_TOKEN_ID and MODAL_TOKEN_SECRET (or what `modal token new` writes)")
    if not environment.get("RENDERDISPATCH_STORAGE", "").startswith("r2://"):
        lacking.append("RENDERDISPATCH_STORAGE (r2://bucket/prefix)")
    if not {"RENDERDISPATCH_R2_ACCOUNT_ID", "RENDERDISPATCH_R2_ENDPOINT_URL"} & found:
        lacking.append("RENDERDISPATCH_R2_ACCOUNT_ID")
    keys = ("RENDERDISPATCH_R2_ACCESS_KEY_ID", "RENDERDISPATCH_R2_SECRET_ACCESS_KEY")
    return lacking + [name for name in keys if name not in found]


def accounts(environment: Mapping[str, str]) -> Accounts:
    """Return what is set, once nothing is `missing`."""
    passed_on = {name: value for name, value in environment.items() if value and _PASSED_ON.fullmatch(name)}
    key_id, secret = (environment.get(f"{_LIVE}READ_ONLY_{name}") for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"))
    both = {"RENDERDISPATCH_R2_ACCESS_KEY_ID": key_id or "", "RENDERDISPATCH_R2_SECRET_ACCESS_KEY": secret or ""}
    return Accounts(
        variables={
            "MODAL_CONFIG_PATH": str(_configuration(environment)),
            **passed_on,
            "RENDERDISPATCH_BACKENDS": "modal",
            "RENDERDISPATCH_MODAL_APP": APP,
        },
        storage=environment["RENDERDISPATCH_STORAGE"].rstrip("/"),
        webhook_url=environment.get(f"{_LIVE}WEBHOOK_URL") or None,
        webhook_port=int(environment.get(f"{_LIVE}WEBHOOK_PORT") or DEFAULT_PORT),
        read_only=both if all(both.values()) else {},
    )


def prices() -> dict[str, float]:
    """Return what a second costs in US dollars, of each GPU, of a ``core`` and of a ``GiB`` of memory."""
    return {name: float(price) for name, price in _PRICE.findall(PAGE.read_text())}


def estimate(environment: Mapping[str, str]) -> str:
    """Say what the live tests will cost, and what they cost at most."""
    chosen = Deployment.from_environment(environment)
    gpu = chosen.gpu[0].partition(":")[0] if chosen.gpu else "no GPU"
    known = prices()
    if chosen.gpu and gpu not in known:
        return f"{RENDERS} containers on {gpu}, whose price docs/how-to/live-tests.md does not know"
    a_second = known.get(gpu, 0) + chosen.cpu * known["core"] + chosen.memory / 1024 * known["GiB"]
    return (
        f"{RENDERS} containers on Modal ({gpu}, {chosen.cpu:g} cores, {chosen.memory / 1024:g} GiB: "
        f"${a_second:.6f} a second), about {RENDER_S} s each: about ${RENDERS * RENDER_S * a_second:.2f}; "
        f"${RENDERS * PATIENCE_S * a_second:.2f} at most, for a render is cancelled after {PATIENCE_S // 60} minutes. "
        "R2: some hundred operations and 10 MB for minutes, which its free tier covers"
    )


def _configuration(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("MODAL_CONFIG_PATH") or Path(environment.get("HOME", "~"), ".modal.toml")).expanduser()


def _has_token(configuration: Path) -> bool:
    return configuration.is_file() and "token_id" in configuration.read_text()
