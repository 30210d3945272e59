"""What the tests run in other processes: each function a worker on one database."""

from __future__ import annotations

import sys
from datetime import timedelta

from attrs import evolve

from renderdispatch.errors import RevisionConflictError
from renderdispatch.protocols import Claim
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import make_job


def claim_all(store: SqlJobStore) -> None:
    """Claim until nothing is left; print the ids."""
    while claimed := store.claim(Claim(backend="inline", local=True, holder="h", lease=timedelta(hours=1)), limit=3):
        for job in claimed:
            print(job.id)


def count_up(store: SqlJobStore) -> None:
    """Add one to a job's priority, fifty times."""
    done = 0
    while done < 50:
        job = store.get("counter")
        try:
            store.replace(evolve(job, priority=job.priority + 1), expected_revision=job.revision)
        except RevisionConflictError:
            continue
        done += 1


def create_one(store: SqlJobStore) -> None:
    """Be among the first to use the database."""
    store.create(make_job())


def create_for_ever(store: SqlJobStore) -> None:
    """Create jobs and print the id of each that stands."""
    while True:
        print(store.create(make_job()).id, flush=True)


if __name__ == "__main__":
    name, url = sys.argv[1:]
    store = SqlJobStore(url)
    print("ready", flush=True)
    sys.stdin.readline()
    globals()[name](store)
