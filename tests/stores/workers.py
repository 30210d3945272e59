"""What the tests run in other processes: each function a worker on one database."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

from attrs import evolve

from renderdispatch.errors import RevisionConflictError
from renderdispatch.protocols import Claim
from renderdispatch.stores.sql import SqlJobStore
from renderdispatch.testing import in_threads, make_job


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


def fork_while_writing(store: SqlJobStore) -> None:
    """Fork in two threads while two others write; print the exit status of each child, which reads a job."""

    def in_a_fork() -> int:
        pid = os.fork()
        if pid == 0:
            try:
                store.get("standing")
            except BaseException:  # noqa: BLE001 - the child must not return
                os._exit(1)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def work(number: int) -> list[int]:
        if number < 2:
            return [in_a_fork() for _ in range(5)]
        for _ in range(50):
            store.create(make_job())
        return []

    print(*(status for found in in_threads(4, work) for status in found), flush=True)


if __name__ == "__main__":
    name, url = sys.argv[1:]
    store = SqlJobStore(url)
    print("ready", flush=True)
    sys.stdin.readline()
    globals()[name](store)
