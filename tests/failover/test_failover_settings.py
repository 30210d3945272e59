"""How do the settings and the command line name and show a chain of backends?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from renderdispatch import Settings, from_settings
from renderdispatch.errors import ConfigurationError
from renderdispatch.failover import Failover
from renderdispatch.testing import make_ended_job
from renderdispatch.wiring import open_store
from tests.support.command_line import CommandLine


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RENDERDISPATCH_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("home")
def test_the_variable_names_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """In its order, which need not be that of the backends."""
    monkeypatch.setenv("RENDERDISPATCH_BACKENDS", "local,inline")
    monkeypatch.setenv("RENDERDISPATCH_FAILOVER", "inline, local")
    with from_settings(worker=False) as service:
        policy = service._engine.parts.failover
    assert isinstance(policy, Failover)
    assert policy.backends == ("inline", "local")


@pytest.mark.usefixtures("home")
def test_without_the_variable_there_is_no_failover() -> None:
    """The first backend is the only one that requests without a name use."""
    with from_settings(worker=False) as service:
        assert service._engine.parts.failover is None


@pytest.mark.parametrize("chain", [("local", "modal"), ("local", "local")])
def test_a_chain_that_makes_no_sense_is_refused(home: Path, chain: tuple[str, ...]) -> None:
    """A name that is not one of the backends, or that comes twice; nothing is opened for it."""
    with pytest.raises(ConfigurationError, match=r"RENDERDISPATCH_BACKENDS does not|twice"):
        from_settings(Settings(home=home / "unused", failover=chain), worker=False)
    assert not (home / "unused").exists()


def test_jobs_show_says_where_each_attempt_ran(tmp_path: Path) -> None:
    """With why it failed, for people and for scripts."""
    cli = CommandLine(tmp_path, tmp_path / "home", tmp_path)
    store = open_store(Settings(home=tmp_path / "home"))
    job = store.create(make_ended_job())
    store.close()
    assert "1 on inline (worker.lost), 2 on inline" in cli("jobs", "show", job.id).out
    attempts = json.loads(cli("jobs", "show", job.id, "--json").out)["attempts"]
    assert [(attempt["number"], attempt["backend"]) for attempt in attempts] == [(1, "inline"), (2, "inline")]
    assert attempts[0]["error"]["code"] == "worker.lost"
