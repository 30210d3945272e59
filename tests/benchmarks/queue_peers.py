"""How do other queues take a job from its creation to its end?

``python queue_peers.py NAME PLACE TASKS`` runs in an environment that has the peers. It opens a queue at PLACE, a
database's URL or a new file, and prints "ready". For each line of input, a number of jobs, it creates, claims and
completes so many jobs of 1 KB and prints the seconds. TASKS threads or asynchronous tasks work at once.

Each peer is called as its documentation says. All of them create jobs one by one, as web requests do; claims and
completions are in batches of ten where the peer has batches. No worker runs around these calls, except for awa, which has no
others: its workers start before the jobs come, and its time ends when the last job is handled.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

BODY: Final = "x" * 1024
BATCH: Final = 10


class Peer(ABC):
    """A queue."""

    @abstractmethod
    def cycle(self, jobs: int) -> float:
        """Create, claim and complete so many jobs; return the seconds."""

    @abstractmethod
    def close(self) -> None:
        """Disconnect."""


# --- PostgreSQL -----------------------------------------------------------------------------------


class AsyncPeer(Peer):
    """A queue whose calls are asynchronous."""

    def __init__(self, url: str, tasks: int) -> None:
        self._url, self._tasks = url, tasks
        self._loop = asyncio.new_event_loop()
        self._left = 0
        self._loop.run_until_complete(self.open())

    def cycle(self, jobs: int) -> float:
        return self._loop.run_until_complete(self._cycle(jobs))

    def close(self) -> None:
        self._loop.run_until_complete(self.leave())

    async def _cycle(self, jobs: int) -> float:
        began = time.perf_counter()
        await asyncio.gather(*(self._create(jobs // self._tasks) for _ in range(self._tasks)))
        self._left = jobs // self._tasks * self._tasks
        await asyncio.gather(*(self._work() for _ in range(self._tasks)))
        return time.perf_counter() - began

    async def _create(self, jobs: int) -> None:
        for _ in range(jobs):
            await self.create()

    async def _work(self) -> None:
        while self._left > 0:
            wanted = min(BATCH, self._left)
            self._left -= wanted
            done = 0
            while done < wanted:
                done += await self.work(wanted - done)

    @abstractmethod
    async def open(self) -> None:
        """Connect and make the tables."""

    @abstractmethod
    async def leave(self) -> None:
        """Disconnect."""

    @abstractmethod
    async def create(self) -> None:
        """Create a job."""

    @abstractmethod
    async def work(self, limit: int) -> int:
        """Claim and complete at most so many jobs; return their number."""


class Procrastinate(AsyncPeer):
    async def open(self) -> None:
        from procrastinate import App, PsycopgConnector

        self._app = App(connector=PsycopgConnector(conninfo=self._url, min_size=self._tasks, max_size=self._tasks))

        @self._app.task(name="render")
        def render(body: str) -> None:
            raise NotImplementedError(body)

        self._task = render
        await self._app.open_async()
        await self._app.schema_manager.apply_schema_async()
        self._worker = await self._app.job_manager.register_worker()

    async def leave(self) -> None:
        await self._app.close_async()

    async def create(self) -> None:
        await self._task.defer_async(body=BODY)

    async def work(self, limit: int) -> int:
        from procrastinate.jobs import Status

        job = await self._app.job_manager.fetch_job(queues=None, worker_id=self._worker)
        if job is None:
            return 0
        await self._app.job_manager.finish_job(job, status=Status.SUCCEEDED, delete_job=False)
        return 1


class Saq(AsyncPeer):
    async def open(self) -> None:
        from saq import Queue

        self._queue = Queue.from_url(self._url, min_size=self._tasks, max_size=2 * self._tasks)
        await self._queue.connect()

    async def leave(self) -> None:
        await self._queue.disconnect()

    async def create(self) -> None:
        await self._queue.enqueue("render", body=BODY, ttl=0)

    async def work(self, limit: int) -> int:
        from saq import Status

        job = await self._queue.dequeue(timeout=1.0)
        if job is None:
            return 0
        await job.finish(Status.COMPLETE)
        return 1


class PgQueuer(AsyncPeer):
    async def open(self) -> None:
        import asyncpg
        from pgqueuer.db import AsyncpgPoolDriver
        from pgqueuer.ports.repository import EntrypointExecutionParameter
        from pgqueuer.queries import Queries

        self._pool = await asyncpg.create_pool(self._url, min_size=self._tasks, max_size=self._tasks)
        self._queries = Queries(AsyncpgPoolDriver(self._pool))
        self._entrypoints = {"render": EntrypointExecutionParameter(concurrency_limit=0)}
        await self._queries.install()

    async def leave(self) -> None:
        await self._pool.close()

    async def create(self) -> None:
        await self._queries.enqueue("render", BODY.encode())

    async def work(self, limit: int) -> int:
        jobs = await self._queries.dequeue(
            batch_size=limit,
            entrypoints=self._entrypoints,
            queue_manager_id=uuid.uuid4(),
            global_concurrency_limit=None,
            heartbeat_timeout=timedelta(seconds=30),
        )
        if jobs:
            await self._queries.log_jobs([(job, "successful", None) for job in jobs])
        return len(jobs)


@dataclass
class Render:
    """The arguments of a job of awa."""

    body: str


class Awa(Peer):
    def __init__(self, url: str, tasks: int) -> None:
        self._url, self._tasks = url, tasks
        self._loop = asyncio.new_event_loop()
        self._left = 0
        self._loop.run_until_complete(self._open())

    async def _open(self) -> None:
        from awa import AsyncClient

        self._client = AsyncClient(self._url, max_connections=2 * self._tasks)
        await self._client.migrate()

        @self._client.task(Render, queue="renders")
        async def handle(job: Any) -> None:
            self._left -= 1
            if self._left == 0:
                self._done.set()

        await self._client.start([("renders", self._tasks)])

    def cycle(self, jobs: int) -> float:
        return self._loop.run_until_complete(self._cycle(jobs))

    def close(self) -> None:
        self._loop.run_until_complete(self._client.shutdown())

    async def _cycle(self, jobs: int) -> float:
        self._done, self._left = asyncio.Event(), jobs // self._tasks * self._tasks
        began = time.perf_counter()
        await asyncio.gather(*(self._create(jobs // self._tasks) for _ in range(self._tasks)))
        await self._done.wait()
        return time.perf_counter() - began

    async def _create(self, jobs: int) -> None:
        for _ in range(jobs):
            await self._client.insert(Render(BODY), queue="renders")


# --- SQLite ---------------------------------------------------------------------------------------


class ThreadedPeer(Peer):
    """A queue whose calls block."""

    def __init__(self, place: str, tasks: int) -> None:
        self._place, self._tasks = place, tasks
        self._pool = ThreadPoolExecutor(tasks)
        self.open()

    def cycle(self, jobs: int) -> float:
        each = [jobs // self._tasks] * self._tasks
        began = time.perf_counter()
        for work in (self.create, self.work):
            list(self._pool.map(work, each))
        return time.perf_counter() - began

    def close(self) -> None:
        self._pool.shutdown()

    @abstractmethod
    def open(self) -> None:
        """Make the file."""

    @abstractmethod
    def create(self, jobs: int) -> None:
        """Create so many jobs."""

    @abstractmethod
    def work(self, jobs: int) -> None:
        """Claim and complete so many jobs."""


class LiteQueue(ThreadedPeer):
    def open(self) -> None:
        self._own = threading.local()
        self._queue()

    def _queue(self) -> Any:
        """Return the queue of this thread: a connection belongs to one thread."""
        import litequeue

        if not hasattr(self._own, "queue"):
            self._own.queue = litequeue.LiteQueue(self._place, timeout=30)
        return self._own.queue

    def create(self, jobs: int) -> None:
        queue = self._queue()
        for _ in range(jobs):
            queue.put(BODY)

    def work(self, jobs: int) -> None:
        queue = self._queue()
        for _ in range(jobs):
            queue.done(queue.pop().message_id)


class PersistQueue(ThreadedPeer):
    def open(self) -> None:
        from persistqueue import SQLiteAckQueue

        self._queue = SQLiteAckQueue(self._place, multithreading=True, auto_commit=True)
        for connection in (self._queue._getter, self._queue._putter):  # as the others; there is no option for it
            connection.execute("PRAGMA synchronous = NORMAL")

    def create(self, jobs: int) -> None:
        for _ in range(jobs):
            self._queue.put(BODY)

    def work(self, jobs: int) -> None:
        for _ in range(jobs):
            self._queue.ack(self._queue.get(block=False))


PEERS: Final[dict[str, Callable[[str, int], Peer]]] = {
    "procrastinate": Procrastinate,
    "saq": Saq,
    "awa": Awa,
    "pgqueuer": PgQueuer,
    "litequeue": LiteQueue,
    "persist_queue": PersistQueue,
}


def main() -> None:
    """Serve cycles."""
    name, place, tasks = sys.argv[1:]
    peer = PEERS[name](place, int(tasks))
    print("ready", flush=True)
    for line in sys.stdin:
        print(peer.cycle(int(line)), flush=True)
    peer.close()


if __name__ == "__main__":
    main()
