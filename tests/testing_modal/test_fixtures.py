"""Do the fixtures that users name in ``pytest_plugins`` give what they say?"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import modal
import pytest

from renderdispatch.engine.inbox import WebhookResponse
from renderdispatch.testing.local_r2 import LocalR2
from renderdispatch.testing.modal import LoopbackModal
from renderdispatch.testing.webhook_server import WebhookServer

pytest_plugins = ["renderdispatch.testing.fixtures"]

HERE = Path(__file__).parent


@pytest.fixture
def loopback_modal_options() -> dict[str, Any]:
    return {"max_containers": 1}


class TestLoopbackModalFixture:
    """The fixture ``loopback_modal``."""

    @pytest.mark.parametrize("round", [1, 2])
    def test_every_client_of_the_process_talks_to_it(self, loopback_modal: LoopbackModal, round: int) -> None:
        """Code that knows nothing of it finds it by the environment; the next test has another one."""
        assert os.environ["MODAL_SERVER_URL"] == loopback_modal.url
        loopback_modal.secrets["keys"] = {}
        loopback_modal.deploy("modal_example", cwd=HERE)
        assert modal.Function.from_name("example", "shout").spawn("hello").get(timeout=30) == "HELLO"
        assert len(loopback_modal.calls) == 1


class TestLocalR2Fixture:
    """The fixture ``local_r2``."""

    @pytest.mark.parametrize("round", [1, 2])
    def test_its_buckets_are_empty(self, local_r2: LocalR2, round: int) -> None:
        """What one test leaves is gone in the next."""
        storage = local_r2.storage()
        assert list(storage.list("")) == []
        storage.put("key", b"value", content_type="text/plain")
        storage.close()


class _Taker:
    def __init__(self) -> None:
        self.taken: list[bytes] = []

    def handle_webhook(self, headers: list[tuple[str, str]], body: bytes) -> WebhookResponse:
        self.taken.append(body)
        return WebhookResponse(status=200, body=b"{}", headers={"content-type": "application/json"})


def _post(server: WebhookServer, body: bytes) -> int:
    """Return the status, 0 when the connection was broken off."""
    try:
        with urllib.request.urlopen(server.url, data=body, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


class TestWebhookServerFixture:
    """The fixture ``webhook_server``."""

    def test_a_webhook_reaches_the_service(self, webhook_server: WebhookServer) -> None:
        """What is posted is handed on, and kept."""
        taker = _Taker()
        assert _post(webhook_server, b"too early") == 503
        webhook_server.serve(taker)
        assert _post(webhook_server, b"hello") == 200
        assert taker.taken == [b"hello"]
        assert [(one.body, one.status) for one in webhook_server.received] == [(b"too early", 503), (b"hello", 200)]

    def test_webhooks_are_refused_dropped_and_lost(self, webhook_server: WebhookServer) -> None:
        """503 and a dropped connection reach nobody; a lost answer was taken."""
        taker = _Taker()
        webhook_server.serve(taker)
        webhook_server.fail("refuse")
        assert [_post(webhook_server, b"1"), _post(webhook_server, b"2")] == [503, 503]
        webhook_server.fail("drop", times=1)
        assert _post(webhook_server, b"3") == 0
        assert _post(webhook_server, b"4") == 200
        webhook_server.fail("lose-answer")
        assert _post(webhook_server, b"5") == 0
        webhook_server.recover()
        assert _post(webhook_server, b"6") == 200
        assert taker.taken == [b"4", b"5", b"6"]
