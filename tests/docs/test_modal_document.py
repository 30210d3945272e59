"""The page about Modal runs too: against a Modal and an R2 on loopback, with its settings in the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from renderdispatch.render.music import compose
from renderdispatch.testing.local_r2 import LocalR2
from renderdispatch.testing.modal import LoopbackModal
from tests.support.documents import ROOT, script_of

pytest_plugins = ["renderdispatch.testing.fixtures"]


@pytest.mark.timeout(240)
def test_the_page_about_modal_runs(loopback_modal: LoopbackModal, local_r2: LocalR2, tmp_path: Path) -> None:
    """Deploying, checking, rendering on the command line and in Python, and the tests of an application."""
    compose(tmp_path / "song.mp3", seconds=1.5)
    script = tmp_path / "the_examples.py"
    script.write_text(script_of(ROOT / "docs" / "how-to" / "modal.md"))
    environment = {
        **os.environ,
        **loopback_modal.environment(),
        "RENDERDISPATCH_HOME": str(tmp_path / "home"),
        "RENDERDISPATCH_BACKENDS": "modal",
        "RENDERDISPATCH_STORAGE": f"r2://{local_r2.buckets[0]}/production",
        "RENDERDISPATCH_R2_ENDPOINT_URL": local_r2.endpoint_url,
        "RENDERDISPATCH_R2_ACCESS_KEY_ID": local_r2.access_key_id,
        "RENDERDISPATCH_R2_SECRET_ACCESS_KEY": local_r2.secret_access_key,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    ran = subprocess.run(
        [sys.executable, str(script)],
        check=False,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=220,
        stdin=subprocess.DEVNULL,
    )
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    assert (tmp_path / "song.mp4").stat().st_size > 0
    assert "complete" in ran.stdout
    assert [call.function for call in loopback_modal.calls] == ["probe", "render", "render"]
