"""How do processes that share a database wake each other?

By PostgreSQL's NOTIFY, outside of the jobs' statements: a commit that notifies takes a lock of the whole database. One
thread sends, at most twenty times a second; one listens on a connection of its own. A notice that is lost costs time
alone, because workers poll as well. A transaction of the application that creates jobs sends its own notice, because
only PostgreSQL knows when it commits.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import sqlalchemy as sa

from renderdispatch.errors import RenderDispatchError
from renderdispatch.plumbing.per_process import PerProcess
from renderdispatch.plumbing.retry import Backoff, Trouble, retry
from renderdispatch.plumbing.stop import Bell, Stop, Stopped
from renderdispatch.stores.sql.connections import connect_arguments
from renderdispatch.stores.sql.database import Database

_log: Final = logging.getLogger("renderdispatch.stores.sql")

CHANNEL: Final = "renderdispatch_jobs"
SEND: Final = sa.select(sa.cast(sa.func.pg_notify(CHANNEL, ""), sa.Text))
"""What sends a notice; within a transaction, PostgreSQL delivers it at the commit, and never if there is none."""

_PAUSE_S: Final = 1 / 20
_LONGEST_END_S: Final = 5.0
_RECONNECT: Final = Backoff(pause_s=0.5, longest_pause_s=15.0)


class Notices:
    """The notices of one database. Nothing is started before the first call; a child of a fork starts its own."""

    def __init__(self, database: Database) -> None:
        self._possible: Final = database.dialect != "sqlite" and not database.address.pooler
        self._sender = PerProcess(lambda: _Sender(database))
        self._listener = PerProcess(lambda: _Listener(database))

    @property
    def heard(self) -> bool:
        """Whether notices reach this process at present."""
        listener = self._listener.peek()
        return listener is not None and listener.connected

    def send(self) -> None:
        """Send a notice soon. Never raises, never waits."""
        if self._possible:
            with suppress(RuntimeError):  # no further thread can be started
                self._sender.get().send()

    def listen(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Have ``wake`` called at each notice, from a thread of this object; return what ends that."""
        if not self._possible:
            return lambda: None
        return self._listener.get().add(wake)

    def close(self) -> None:
        """End the threads. A later call starts them again."""
        for part in (self._sender.take(), self._listener.take()):
            if part is not None:
                part.close()


class _Sender:
    """Sends notices from a thread. Those that are asked for while one is sent, or within the pause, become one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._stop = Stop()
        self._bell = Bell()
        self._asked = False
        self._thread = threading.Thread(target=self._run, name="renderdispatch-notify", daemon=True)
        self._thread.start()

    def send(self) -> None:
        self._asked = True
        self._bell.ring()

    def _run(self) -> None:
        while True:
            if not self._asked:
                if self._stop.requested:
                    return
                self._bell.wait(3600)
                continue
            self._asked = False
            try:
                self._database.step(SEND, {})
            except RenderDispatchError as error:  # polling serves meanwhile
                _log.debug("no notice was sent: %s", error)
            self._stop.wait(_PAUSE_S)

    def close(self) -> None:
        """End the thread; what was asked for before is sent: a program may submit a job and end."""
        self._stop.request("the store is closed")
        self._bell.ring()
        self._thread.join(_LONGEST_END_S)


class _Listener:
    """Hears notices in a thread, on a connection of its own, which it opens again whenever it breaks."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._stop = Stop()
        self._wakes: list[Callable[[], None]] = []
        self._here, self._there = socket.socketpair()
        self.connected = False
        self._thread = threading.Thread(target=self._run, name="renderdispatch-listen", daemon=True)
        self._thread.start()

    def add(self, wake: Callable[[], None]) -> Callable[[], None]:
        self._wakes.append(wake)

        def end() -> None:
            with suppress(ValueError):
                self._wakes.remove(wake)

        return end

    def close(self) -> None:
        self._stop.request("the store is closed")
        self._there.send(b"x")
        self._thread.join(_LONGEST_END_S)
        self._here.close()
        self._there.close()

    def _run(self) -> None:
        rounds = 0

        def listen() -> None:
            nonlocal rounds
            with self._connection() as connection:
                self.connected, rounds = True, rounds + 1
                self._wake()  # notices may have been missed
                self._hear(connection)

        with suppress(Stopped):
            retry(
                listen,
                _RECONNECT,
                trouble=lambda _: Trouble.FAILED,
                progress=lambda: rounds,
                stop=self._stop,
                what="listen to the notices of the job store",
            )

    def _connection(self) -> Any:
        import psycopg

        address = self._database.address
        args, options = address.url.get_dialect()().create_connect_args(address.url)
        options.pop("context", None)
        connection = psycopg.connect(*args, **connect_arguments(address, dict(options)), autocommit=True)
        try:
            connection.execute(f"LISTEN {CHANNEL}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _hear(self, connection: Any) -> None:
        """Wake others at each notice, until the connection breaks or this object is closed."""
        poll = select.poll()
        for descriptor in (self._here.fileno(), connection.fileno()):
            poll.register(descriptor, select.POLLIN)
        try:
            while not self._stop.requested:
                poll.poll()
                if list(connection.notifies(timeout=0)):
                    self._wake()
        finally:
            self.connected = False

    def _wake(self) -> None:
        for wake in tuple(self._wakes):
            try:
                wake()
            except Exception:  # noqa: BLE001 - the others are to be woken
                _log.exception("a worker could not be woken")
