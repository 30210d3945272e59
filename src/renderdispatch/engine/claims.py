"""How does a claim begin an attempt?

A store does it, with the claim itself, so that a claimed job needs no second write. Each attempt's token is made from
the claim's random nonce and the job's id, so one statement can claim many jobs. The rule is that of the table.
"""

from __future__ import annotations

import hashlib
from datetime import datetime

from attrs import frozen

from renderdispatch.engine.events import Claimed
from renderdispatch.engine.transitions import decide
from renderdispatch.jobs import Job, evolve
from renderdispatch.protocols import Claim


@frozen(kw_only=True)
class Begun:
    """What a store keeps of a claim until the next write of the job's record.

    Args:
        at: When the job was claimed, by the store's clock.
        nonce: The claim's.
        holder: The claim's.
        lease_until: When the attempt's lease lapses.
        backend: The claim's.
        local: The claim's.
    """

    at: datetime
    nonce: str
    holder: str
    lease_until: datetime
    backend: str
    local: bool

    @classmethod
    def of(cls, claim: Claim, now: datetime) -> Begun:
        """Return what is kept of a claim that is made now."""
        return cls(
            at=now,
            nonce=claim.nonce,
            holder=claim.holder,
            lease_until=now + claim.lease,
            backend=claim.backend,
            local=claim.local,
        )


def begin(job: Job, begun: Begun) -> Job:
    """Return the job with the attempt that a claim began; its revision is not changed. Pure."""
    event = Claimed(
        token=token_of(begun.nonce, job),
        holder=begun.holder,
        lease_until=begun.lease_until,
        backend=begun.backend,
        local=begun.local,
    )
    return evolve(decide(job, event, begun.at).job, ready_at=None)


def token_of(nonce: str, job: Job) -> str:
    """Return the token of the attempt that a claim with this nonce begins: 32 hexadecimal digits, unlike any other."""
    parts = (nonce, job.id, job.incarnation)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
