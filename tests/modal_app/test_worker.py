"""Does an application of which nothing runs have its jobs finished, by what was deployed with ``--worker`` alone?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from renderdispatch.errors import ConfigurationError
from renderdispatch.messages import JobStatus, Output
from renderdispatch.testing.local_r2 import LocalR2, local_r2
from renderdispatch.testing.modal import CallStatus, LoopbackModal
from renderdispatch.wiring import from_settings
from tests.support.containers import song

SECRET: Final = "whsec_" + "A" * 43 + "="
_CACHE: Final = Path(__file__).parents[2] / ".cache" / "miniflare"


@pytest.fixture(scope="module")
def r2() -> Iterator[LocalR2]:
    try:
        with local_r2(cache=_CACHE) as server:
            yield server
    except ConfigurationError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def modal() -> Iterator[LoopbackModal]:
    chosen = {"WORKER": "1", "SECRET": "ours", "PERIOD": "5"}
    with LoopbackModal() as server:
        server.secrets["ours"] = {}
        server.deploy(
            "renderdispatch.modal_app", env={f"RENDERDISPATCH_MODAL_{n}": value for n, value in chosen.items()}
        )
        yield server


def test_a_submitted_job_is_dispatched_rendered_and_completed_on_modal(
    r2: LocalR2, modal: LoopbackModal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``tick`` spawns the render, which reports to ``webhook``; the application only submitted."""
    settings = {
        "RENDERDISPATCH_STORE": f"sqlite:///{tmp_path}/jobs.db",
        "RENDERDISPATCH_STORAGE": f"r2://{r2.buckets[0]}",
        "RENDERDISPATCH_R2_ENDPOINT_URL": r2.endpoint_url,
        "RENDERDISPATCH_R2_ACCESS_KEY_ID": r2.access_key_id,
        "RENDERDISPATCH_R2_SECRET_ACCESS_KEY": r2.secret_access_key,
        "RENDERDISPATCH_SECRETS": SECRET,
        "RENDERDISPATCH_WEBHOOK_URL": f"{modal.function('webhook').web_url}/",
    }
    modal.secrets["ours"].update(settings)
    for name, value in {**settings, "RENDERDISPATCH_BACKENDS": "modal", "RENDERDISPATCH_WORKER": "0"}.items():
        monkeypatch.setenv(name, value)
    for name in [name for name in os.environ if name.startswith("MODAL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MODAL_CONFIG_PATH", os.devnull)  # who submits needs no token
    with from_settings() as service:
        handle = service.submit(song(), scene="wave", output=Output(width=64, height=36))
        for _ in range(10):  # as the schedule would; one is enough on a quick machine
            assert modal.run("tick", timeout=100).status is CallStatus.SUCCEEDED
            if handle.job.status.terminal:
                break
        assert handle.job.status is JobStatus.COMPLETE, handle.job.error
        (attempt,) = handle.job.attempts
        (render,) = [call for call in modal.calls if call.function == "render"]
        assert attempt.call_id == render.id
    credentials = (r2.secret_access_key.encode(), SECRET.encode())
    assert not any(secret in render.args for secret in credentials)
