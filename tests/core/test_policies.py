"""What may each tenant use, as a policy says?"""

from __future__ import annotations

from renderdispatch.queueing import QueuePolicy, TenantPolicy

POLICY_TENANTS = {"acme": TenantPolicy(weight=2)}


def test_a_tenant_has_what_every_tenant_has_unless_its_entry_says_otherwise() -> None:
    """What an entry leaves out is as for all."""
    policy = QueuePolicy(tenant=TenantPolicy(running=3), tenants=POLICY_TENANTS)
    assert policy.of("acme") == TenantPolicy(weight=2, running=3)
    assert policy.of("other") == TenantPolicy(running=3)


def test_jobs_without_a_tenant_have_no_limits() -> None:
    """Limits are those of tenants."""
    assert QueuePolicy(tenant=TenantPolicy(running=3)).of(None) == TenantPolicy()


def test_a_changed_copy_of_a_policy_says_what_it_was_changed_to() -> None:
    """A policy that was asked before and its changed copy do not mix."""
    policy = QueuePolicy(tenant=TenantPolicy(running=3), tenants=POLICY_TENANTS)
    assert policy.of("acme").weight == 2
    assert policy.model_copy(update={"tenants": {}}).of("acme") == TenantPolicy(running=3)
    assert policy == QueuePolicy(tenant=TenantPolicy(running=3), tenants=POLICY_TENANTS)
