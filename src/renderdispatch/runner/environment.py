"""What does a runner of this machine read before it begins?

One line of JSON: its order, further scenes, and what it needs to reach the network. No render process reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from renderdispatch.messages import HelperOrder, RenderOrder


def for_the_runner(
    order: RenderOrder | HelperOrder, environment: Mapping[str, str], renderers: Mapping[str, str] | None = None
) -> str:
    """Return what a runner of this machine reads: an order as JSON, with further scenes, and with the proxies.

    They are how the runner reaches the network, and may hold a password; so they are not in its own environment, which
    the render process would inherit.
    """
    proxies = {name: value for name, value in environment.items() if name.lower().endswith("_proxy")}
    return json.dumps({**json.loads(order.model_dump_json()), "proxies": proxies, "renderers": dict(renderers or {})})


def proxies_of(line: bytes) -> dict[str, str]:
    """Return the proxies in what a runner read."""
    return {str(name): str(value) for name, value in json.loads(line).get("proxies", {}).items()}


def renderers_of(line: bytes) -> dict[str, str]:
    """Return the scenes, beside those that are registered, in what a runner read."""
    return {str(name): str(where) for name, where in json.loads(line).get("renderers", {}).items()}
