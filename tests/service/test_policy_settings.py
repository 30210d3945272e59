"""Does the environment say how tenants share, and for how long jobs are kept?"""

from __future__ import annotations

import json
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from renderdispatch import ConfigurationError, JobStatus, QueuePolicy, TenantPolicy, from_settings
from renderdispatch.cli.doctor import examine
from renderdispatch.engine.policies import describe_keep, describe_policy, read_keep, read_policy
from renderdispatch.wiring import Settings, open_keep, open_policy

POLICY = {
    "running": {"inline": 20},
    "tenant": {"running": 2, "submitsPerMinute": 60},
    "tenants": {"acme": {"weight": 4, "running_on": {"inline": 10}}},
}


@pytest.fixture(autouse=True)
def _embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RENDERDISPATCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RENDERDISPATCH_STORE", "memory")
    monkeypatch.setenv("RENDERDISPATCH_BACKENDS", "inline")


def test_a_service_gets_the_policy_and_retention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are written in either form, as on the wire or as in Python."""
    monkeypatch.setenv("RENDERDISPATCH_QUEUE", json.dumps(POLICY))
    monkeypatch.setenv("RENDERDISPATCH_KEEP", "complete=30d, failed=1w,cancelled=90m")
    with closing(from_settings(worker=False)) as service:
        parts = service._engine.parts
    acme = TenantPolicy(weight=4, running_on={"inline": 10})
    every = TenantPolicy(running=2, submits_per_minute=60)
    assert parts.policy == QueuePolicy(running={"inline": 20}, tenant=every, tenants={"acme": acme})
    assert parts.policy.of("acme").running == 2
    days = timedelta(days=1)
    kept = {JobStatus.COMPLETE: 30 * days, JobStatus.FAILED: 7 * days, JobStatus.CANCELLED: timedelta(minutes=90)}
    assert parts.keep == kept


def test_without_settings_nothing_is_limited() -> None:
    """And everything is kept."""
    assert open_policy(Settings()) == QueuePolicy()
    assert open_keep(Settings()) == {}


def test_a_policy_may_be_a_file(tmp_path: Path) -> None:
    """After ``@`` comes its path."""
    file = tmp_path / "queue.json"
    file.write_text(json.dumps(POLICY))
    assert open_policy(Settings(queue=f"@{file}")) == read_policy(json.dumps(POLICY))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("@queue.json", "absolute path"),
        ("@/no/such/file.json", "cannot be read: No such file"),
        ("{", "not JSON \\(line 1, column 2\\)"),
        ("[" * 100_000, "not JSON"),
        ("[]", "a JSON object, not list"),
        ('{"tenat": {}}', "did you mean 'tenant'"),
        ('{"tenant": {"runing": 1}}', "tenant: unknown name 'runing'; did you mean 'running'"),
        ('{"tenants": {"acme": {"wieght": 1}}}', "tenants.acme: unknown name 'wieght'; did you mean 'weight'"),
        ('{"tenants": {"acme": {"weight": 0}}}', "tenants.acme.weight: Input should be greater than or equal to"),
        ('{"tenant": {"queued": 1}, "tenant": {"running": 2}}', "names 'tenant' twice"),
        ('{"tenant": {"weight": 1e-320}}', "tenant.weight: Input should be greater than or equal to"),
        (
            '{"running": {"inline": 99999999999999999999}}',
            "running.inline: Input should be less than or equal to 1000000000",
        ),
        ('{"tenant": {"running_on": {"inline": 99999999999999999999}}}', "less than or equal to 1000000000"),
        (
            '{"tenant": {"queued": 99999999999999999999}}',
            "tenant.queued: Input should be less than or equal to 1000000000",
        ),
        ('{"tenants": {"a/b": {"weight": 1}}}', "tenants.a/b: a tenant's name is"),
        ('{"tenants": ["acme"]}', "tenants: Input should be"),
        ('{"running": {"inline": "many"}}', "running.inline: Input should be a valid integer"),
        ('{"tenant": {"queued": -1}}', "tenant.queued: Input should be greater than or equal to 0"),
    ],
)
def test_a_policy_that_makes_no_sense(text: str, message: str) -> None:
    """The error names the variable, the place in the policy, and the near match of a name that is misspelt."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        from_settings(Settings(queue=text), worker=False)
    assert str(caught.value).startswith("RENDERDISPATCH_QUEUE: ")
    assert caught.value.code == (
        "configuration.unknown" if "unknown name" in message or "tenat" in text else "configuration"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("30d", "'30d' is not a status and a time"),
        ("complete=30", "'complete=30' is not"),
        ("complete=30s", "'complete=30s' is not"),
        ("pending=30d", "'pending=30d' is not"),
        ("complete=30d,", "'' is not"),
        ("complete=30d,complete=1d", "named twice"),
        ("complete=9m", "10 minutes to 100 years"),
        ("complete=999999w", "10 minutes to 100 years"),
        ("complete=٣d", "is not a status and a time"),
    ],
)
def test_a_retention_that_makes_no_sense(text: str, message: str) -> None:
    """The error names the variable and shows how it is written."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        from_settings(Settings(keep=text), worker=False)
    assert str(caught.value).startswith("RENDERDISPATCH_KEEP: ")


def test_a_limit_of_an_unknown_backend_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """It may be another process's, so it is a warning; doctor says it too."""
    text = '{"running": {"inlin": 1}, "tenants": {"acme": {"runningOn": {"modal": 1, "inline": 1}}}}'
    from_settings(Settings(queue=text), worker=False).close()
    assert "RENDERDISPATCH_QUEUE limits inlin, modal, which this process does not have" in caplog.text


def test_doctor_shows_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy and the retention in words, or what is wrong with them."""
    monkeypatch.setenv("RENDERDISPATCH_QUEUE", '{"running": {"inline": 3, "modal": 1}}')
    monkeypatch.setenv("RENDERDISPATCH_KEEP", "complete=3x")
    found = {finding.check: finding for finding in examine()}
    assert (found["queue"].status, found["keep"].status) == ("note", "broken")
    assert "limits modal, which RENDERDISPATCH_BACKENDS does not have" in found["queue"].said
    assert "'complete=3x' is not a status and a time" in found["keep"].said


def test_policies_are_said_in_words() -> None:
    """For people; what is not limited is left out."""
    assert describe_policy(QueuePolicy()) == "tenants share alike, without limits"
    said = "inline: 20 running; each tenant: 2 running, 60 submits a minute"
    more = "tenant acme: weight 4, 2 running, 10 running on inline, 60 submits a minute"
    assert describe_policy(read_policy(json.dumps(POLICY))) == f"{said}; {more}"


@pytest.mark.parametrize("text", ["complete=30d", "complete=1w,failed=36h", "cancelled=10m"])
def test_retention_is_said_as_it_is_written(text: str) -> None:
    """What doctor shows can be set again."""
    assert describe_keep(read_keep(text)) == text
