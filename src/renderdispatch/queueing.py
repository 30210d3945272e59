"""How do tenants share the backends?

A `QueuePolicy` is what an operator decides: the tenants' weights, how many attempts may run at once, and how much a
tenant may submit. Give the same one to every process that shares a job store.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, cached_property
from typing import Annotated, Any, Final, Self

from pydantic import Field

from renderdispatch.messages import Argument

Count = Annotated[int, Field(ge=0, le=10**9)]
"""How many jobs or attempts a limit allows; databases count in 64 bits, units of helpers included."""


LEAST_WEIGHT: Final = 1e-4
"""With it, 64 bits hold a tenant's virtual time after nine hundred million turns."""


class TenantPolicy(Argument):
    """What one tenant may use.

    Args:
        weight: Its share, relative to the other tenants that have work for the same backend: 0.0001 to 1,000,000.
        running: How many of its attempts may run at once, on all backends together. None: no limit.
        running_on: How many of its attempts may run at once on one backend, by the backend's name.
        queued: How many of its jobs may wait to be claimed; a submit beyond that is refused. None: no limit.
        submits_per_minute: How many jobs it may submit within a minute. None: no limit.
    """

    weight: float = Field(default=1.0, ge=LEAST_WEIGHT, le=1e6)
    running: Count | None = None
    running_on: Mapping[str, Count] = Field(default_factory=dict)
    queued: Count | None = None
    submits_per_minute: Count | None = None


class QueuePolicy(Argument):
    """How tenants share the backends.

    Args:
        running: How many attempts may run at once on one backend, of all tenants together, by the backend's name.
        tenant: What every tenant may use.
        tenants: What single tenants may use, by their names. What such an entry leaves out is as in ``tenant``.
    """

    running: Mapping[str, Count] = Field(default_factory=dict)
    tenant: TenantPolicy = Field(default_factory=TenantPolicy)
    tenants: Mapping[str, TenantPolicy] = Field(default_factory=dict)

    @property
    def limits_running(self) -> bool:
        """Whether anything limits how many attempts run at once."""
        policies = (self.tenant, *self.tenants.values())
        return bool(self.running) or any(each.running is not None or each.running_on for each in policies)

    def of(self, tenant: str | None) -> TenantPolicy:
        """Return what one tenant may use. Jobs without a tenant have weight 1 and no limits."""
        return _unlimited() if tenant is None else self._tenants.get(tenant, self.tenant)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy the policy, with changes."""
        copied = super().model_copy(update=update, deep=deep)
        vars(copied).pop("_tenants", None)  # it was made from other values
        return copied

    @cached_property
    def _tenants(self) -> Mapping[str, TenantPolicy]:
        """What single tenants may use, complete; every claim asks for each tenant that has work."""
        return {
            tenant: self.tenant.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})
            for tenant, own in self.tenants.items()
        }


@cache
def _unlimited() -> TenantPolicy:
    return TenantPolicy()
