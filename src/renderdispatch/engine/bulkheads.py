"""Which work may wait for which (rule J14)?

Each backend has five lanes: one starts calls, one asks how they go, one tells calls to stop, and two start and stop
helpers. The bucket has a lane for
questions and one for clean-ups. Fetches from the hosts of strangers have one, and so do the copying of local files and
the application's policy that chooses backends. The threads that claim, reconcile and renew leases call the store alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from attrs import field, frozen

from renderdispatch.plumbing.lanes import Lane

STARTS: Final = 4
"""How many calls of one backend are started at once."""

_ASKS: Final = 4
_ORDERS: Final = 2
_HELPS: Final = 4
_STOPS: Final = 8
_LOOKS: Final = 4
_TIDIES: Final = 4
_REROUTES: Final = 2
_FILES: Final = 4
_FETCHES: Final = 8
_FETCHES_PER_HOST: Final = 2
_AUDIO_WAITING: Final = 64
"""How many attempts may wait until their audio is brought: their leases are held."""


@frozen(eq=False)
class Bulkheads:
    """The lanes of one process.

    Args:
        start: By backend: starts calls.
        ask: By backend: asks how calls go.
        orders: By backend: tells calls to stop. It never waits behind a question.
        help: By backend: starts helpers. Runs never wait for them.
        stop: By backend: tells helpers to stop, of which there may be many.
        bucket: Looks for results and finished videos.
        reroute: Asks the application's policy where jobs are tried again.
        tidy: Removes what is no longer needed.
        fetch: Fetches audio by URL.
        files: Copies local files.
    """

    start: Mapping[str, Lane]
    ask: Mapping[str, Lane]
    orders: Mapping[str, Lane]
    help: Mapping[str, Lane]
    stop: Mapping[str, Lane]
    bucket: Lane = field(factory=lambda: Lane("renderdispatch-bucket", _LOOKS), init=False)
    reroute: Lane = field(factory=lambda: Lane("renderdispatch-reroute", _REROUTES), init=False)
    tidy: Lane = field(factory=lambda: Lane("renderdispatch-tidy", _TIDIES), init=False)
    fetch: Lane = field(
        factory=lambda: Lane("renderdispatch-fetch", _FETCHES, room=_AUDIO_WAITING, per_group=_FETCHES_PER_HOST),
        init=False,
    )
    files: Lane = field(factory=lambda: Lane("renderdispatch-files", _FILES, room=_AUDIO_WAITING), init=False)

    @classmethod
    def of(cls, backends: Iterable[str]) -> Bulkheads:
        """Return lanes for these backends, and one more of each kind for backends that have no name here."""
        names = [*backends, ""]

        def lanes(kind: str, threads: int) -> Mapping[str, Lane]:
            return {name: Lane(f"renderdispatch-{kind}-{name}", threads) for name in names}

        started, told = lanes("start", STARTS), lanes("orders", _ORDERS)
        return cls(started, lanes("ask", _ASKS), told, lanes("help", _HELPS), lanes("stop", _STOPS))

    def name_of(self, backend: str) -> str:
        """Return under which name a backend has lanes here."""
        return backend if backend in self.ask else ""

    def wind_up(self, timeout_s: float) -> None:
        """Let no more calls begin, and wait for those that are beginning; backends can still be asked and told."""
        _close([*self.start.values(), *self.help.values(), self.fetch, self.files], timeout_s)

    def close(self, timeout_s: float) -> None:
        """Take no more work, and wait for what is in progress."""
        by_backend = [*self.ask.values(), *self.orders.values(), *self.stop.values()]
        _close([*by_backend, self.bucket, self.reroute, self.tidy], timeout_s)


def _close(lanes: Sequence[Lane], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    for lane in lanes:
        lane.close()
    for lane in lanes:
        lane.join(max(0.0, deadline - time.monotonic()))
