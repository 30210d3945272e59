"""What may an operator decide about the queue and about retention, and how is that written as text?

A `QueuePolicy` is JSON. Its names are read strictly: a limit whose name is misspelt would not be kept. Retention is
``complete=30d,failed=7d``: a time for each status.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from datetime import timedelta
from typing import Final

from pydantic import ValidationError

from renderdispatch.engine import layout
from renderdispatch.errors import ConfigurationError, InvalidRequestError, UnknownNameError
from renderdispatch.messages import JobStatus, describe_validation
from renderdispatch.plumbing.json_objects import named_once
from renderdispatch.queueing import QueuePolicy, TenantPolicy

SHORTEST_KEEP: Final = timedelta(minutes=10)
"""Clients need some time to fetch what they waited for."""

LONGEST_KEEP: Final = timedelta(days=36525)

_UNITS: Final = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_KEPT: Final = re.compile(r"([a-z]+) *= *(\d{1,6}) *([mhdw])", re.ASCII)
_ENDS: Final = tuple(status for status in JobStatus if status.terminal)
_EXAMPLE: Final = "complete=30d,failed=7d,cancelled=12h"


def read_policy(text: str) -> QueuePolicy:
    """Read a policy that is written as JSON.

    Raises:
        ConfigurationError: It is not JSON, a value makes no sense, or (``configuration.unknown``) a name is unknown.
    """
    try:
        written = json.loads(text, object_pairs_hook=named_once(_named_twice))
    except ConfigurationError:
        raise
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        example = '{"tenant": {"queued": 100}}'
        raise ConfigurationError(f"the queue's policy is not JSON{where}; write an object such as {example}") from None
    if not isinstance(written, dict):
        raise ConfigurationError(f"the queue's policy is a JSON object, not {type(written).__name__}")
    _check_names("the queue's policy", written, QueuePolicy)
    _check_names("the queue's policy: tenant", written.get("tenant"), TenantPolicy)
    tenants = written.get("tenants")
    for name, entry in tenants.items() if isinstance(tenants, dict) else ():
        _check_names(f"the queue's policy: tenants.{name[:80]}", entry, TenantPolicy)
    try:
        policy = QueuePolicy.model_validate(written)
    except ValidationError as error:
        raise ConfigurationError(f"the queue's policy: {describe_validation(error)}") from None
    check_policy(policy)
    return policy


def _named_twice(name: str) -> ConfigurationError:
    """Return the refusal of a name that an object has twice: a limit would be lost."""
    return ConfigurationError(f"the queue's policy names {name!r} twice in one object; remove one of them")


def _check_names(where: str, written: object, model: type[QueuePolicy] | type[TenantPolicy]) -> None:
    """Refuse names that the model does not have; other mistakes are found by the model."""
    known = {name: field.alias for name, field in model.model_fields.items()}
    for name in written if isinstance(written, dict) else ():
        if name not in known and name not in known.values():
            code = "configuration.unknown"
            error = UnknownNameError.of("name", name, known, code=code)
            raise ConfigurationError(f"{where}: {error}", code=code)


def check_policy(policy: object) -> None:
    """Check that a policy names tenants that there can be.

    Raises:
        ConfigurationError: It does not, or it is not a `QueuePolicy`.
    """
    if not isinstance(policy, QueuePolicy):
        raise ConfigurationError(f"policy: a QueuePolicy, not {type(policy).__name__}")
    for name in policy.tenants:
        try:
            layout.check_tenant(name)
        except InvalidRequestError as error:
            raise ConfigurationError(f"the queue's policy: tenants.{name[:80]}: {error}") from None


def unknown_backends(policy: QueuePolicy, backends: Collection[str]) -> list[str]:
    """Return the backends that a policy limits and that are not among these, sorted."""
    named = {*policy.running, *policy.tenant.running_on}
    named.update(*(tenant.running_on for tenant in policy.tenants.values()))
    return sorted(named - set(backends))


def read_keep(text: str) -> dict[JobStatus, timedelta]:
    """Read for how long jobs are kept, by status: minutes (``m``), hours, days or weeks.

    Raises:
        ConfigurationError: It is written in another way, or a time is too short.
    """
    keep: dict[JobStatus, timedelta] = {}
    for part in text.split(","):
        found = _KEPT.fullmatch(part.strip())
        if found is None or found[1] not in _ENDS:
            raise ConfigurationError(f"{part.strip()[:40]!r} is not a status and a time; write {_EXAMPLE}")
        status = JobStatus(found[1])
        if status in keep:
            raise ConfigurationError(f"{status} is named twice; write {_EXAMPLE}")
        keep[status] = int(found[2]) * _UNITS[found[3]]
    return checked_keep(keep)


def checked_keep(keep: object) -> dict[JobStatus, timedelta]:
    """Return for how long jobs are to be kept, by status; None is for ever.

    Raises:
        ConfigurationError: A status is not an end, or a time is not between `SHORTEST_KEEP` and `LONGEST_KEEP`.
    """
    if keep is None:
        return {}
    if not isinstance(keep, Mapping):
        raise ConfigurationError(f"keep: a mapping of statuses to timedeltas, not {type(keep).__name__}")
    for status, time in keep.items():
        if status not in _ENDS:
            raise ConfigurationError(f"keep: jobs end as {', '.join(_ENDS)}; {str(status)[:40]!r} is not one of them")
        if not isinstance(time, timedelta) or not SHORTEST_KEEP <= time <= LONGEST_KEEP:
            raise ConfigurationError(
                f"keep: {status} jobs can be kept for 10 minutes to 100 years, as a timedelta; "
                "without an entry they are kept until they are deleted"
            )
    return {JobStatus(status): time for status, time in keep.items()}


def describe_policy(policy: QueuePolicy) -> str:
    """Return one line that says what a policy limits, for people."""
    lines = [f"{name}: {count} running" for name, count in policy.running.items()]
    lines += [f"each tenant: {text}" for text in [_describe_tenant(policy.tenant)] if text]
    named = ((name, _describe_tenant(policy.of(name)) or "no limits") for name in policy.tenants)
    lines += [f"tenant {name}: {text}" for name, text in named]
    return "; ".join(lines) or "tenants share alike, without limits"


def _describe_tenant(tenant: TenantPolicy) -> str:
    return ", ".join(_facts(tenant))


def _facts(tenant: TenantPolicy) -> Iterator[str]:
    if tenant.weight != 1:
        yield f"weight {tenant.weight:g}"
    if tenant.running is not None:
        yield f"{tenant.running} running"
    for name, count in tenant.running_on.items():
        yield f"{count} running on {name}"
    if tenant.queued is not None:
        yield f"{tenant.queued} queued"
    if tenant.submits_per_minute is not None:
        yield f"{tenant.submits_per_minute} submits a minute"


def describe_keep(keep: Mapping[JobStatus, timedelta]) -> str:
    """Return one line that says for how long jobs are kept, as `read_keep` reads it."""
    return ",".join(f"{status}={_describe_time(time)}" for status, time in keep.items()) or "until they are deleted"


def _describe_time(time: timedelta) -> str:
    unit = next((unit for unit in "wdh" if time % _UNITS[unit] == timedelta(0)), "m")
    return f"{time // _UNITS[unit]}{unit}"
