"""How much may a tenant submit?

What the policy says of it. The store counts, in the transaction that records the jobs, so that submits in several
processes never exceed a quota together.
"""

from __future__ import annotations

from renderdispatch.errors import ConfigurationError
from renderdispatch.protocols import JobStore, Quota, SupportsClaim, SupportsCreateMany
from renderdispatch.queueing import QueuePolicy, TenantPolicy


def quota_of(policy: QueuePolicy, tenant: str | None) -> Quota | None:
    """Return what a tenant may submit; None: as much as it likes."""
    own = policy.of(tenant)
    return Quota(queued=own.queued, submits_per_minute=own.submits_per_minute) if _limits_submits(own) else None


def _limits_submits(tenant: TenantPolicy) -> bool:
    return tenant.queued is not None or tenant.submits_per_minute is not None


def check_store(store: JobStore, policy: QueuePolicy) -> None:
    """Check that a job store can keep a policy.

    Raises:
        ConfigurationError: It cannot: its promises would be broken silently.
    """
    if policy == QueuePolicy():
        return
    name, step = type(store).__name__, "use SqlJobStore, or leave it out of the policy"
    tenants = (policy.tenant, *policy.tenants.values())
    if any(map(_limits_submits, tenants)) and not isinstance(store, SupportsCreateMany):
        message = f"a {name} cannot count what tenants submit (SupportsCreateMany), and the policy limits that; {step}"
        raise ConfigurationError(message)
    shares = policy.running or any(t.weight != 1 or t.running is not None or t.running_on for t in tenants)
    if shares and not isinstance(store, SupportsClaim):
        message = f"a {name} cannot claim by weights and limits (SupportsClaim), and the policy has some; {step}"
        raise ConfigurationError(message)
