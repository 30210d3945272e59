"""Which ready jobs does this process take?

As many as its backends have free slots. A dispatcher claims a job and holds its attempt. Audio that is elsewhere is
brought first, in a lane of its own; only then does the attempt take a slot, the most urgent one first, and its
backend's lane starts it. So neither a slow host nor a slow backend holds up any other job.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Final
from urllib.parse import urlsplit

from attrs import define, field

from renderdispatch.engine import calls
from renderdispatch.engine.bulkheads import Bulkheads
from renderdispatch.engine.commit import commit_patiently
from renderdispatch.engine.events import Claimed
from renderdispatch.engine.helpers import Helpers
from renderdispatch.engine.inbox import Inbox
from renderdispatch.engine.leases import GivenUp, Held, LeaseKeeper
from renderdispatch.engine.parts import Parts
from renderdispatch.engine.preparation import Preparation
from renderdispatch.errors import JobNotFoundError, RenderDispatchError
from renderdispatch.jobs import Helper, Job
from renderdispatch.messages import Audio, LocalAudio, RemoteAudio
from renderdispatch.plumbing.lanes import Lane
from renderdispatch.plumbing.stop import Stop
from renderdispatch.protocols import (
    BackendCall,
    Claim,
    JobQuery,
    Locality,
    SupportsClaim,
    SupportsHelpers,
    is_ready,
    walk,
)

_log: Final = logging.getLogger("renderdispatch.engine.dispatch")

_BATCH: Final = 10
"""How many jobs a backend without a limit has in its lane, and how many are claimed at once."""

_CLAIMS: Final = 20
"""How often a round claims for one backend, where jobs take no slot because their audio is elsewhere."""

_AHEAD: Final = 16
"""How many attempts of a backend may wait for a slot with their audio at hand, before no more are claimed."""

_PASSED: Final = 100
"""How many attempts of a backend are held because their audio cannot be brought yet; jobs beyond that wait again."""

_CLAIM_PATIENCE_S: Final = 2.0

_HELP_AGAIN_S: Final = 5.0
"""How long no helper of an attempt is started after a start that failed, perhaps because storage is away."""

_SLOTS_S: Final = 1.0
"""How long a round waits until a backend says how many orders it takes; if it hangs, no later round waits for it."""


@define(eq=False)
class Dispatcher:
    """Claims jobs and starts them, for one process.

    Args:
        inbox: Takes the events of local runs.
        wake: Called when a preparation ended: there may be room.
        noticed: Called with each job whose preparation ended without a call.
    """

    _parts: Parts
    _keeper: LeaseKeeper
    _lanes: Bulkheads
    _inbox: Inbox
    _wake: Callable[[], None]
    _noticed: Callable[[Job], None]
    _lock: threading.RLock = field(factory=threading.RLock, init=False)
    _claiming: SupportsClaim | None = field(init=False)
    """The store, if it hands out jobs."""

    _expected: set[str] = field(factory=set, init=False)
    """The backends that may have ready jobs, as far as this process knows. The others are not asked for."""

    _waiting: dict[str, list[Preparation]] = field(factory=dict, init=False)
    """By backend: attempts whose audio is at hand, and that wait for a slot."""

    _passed: dict[str, list[Preparation]] = field(factory=dict, init=False)
    """By backend: attempts that wait for room in the lane that brings their audio. Jobs behind them go first."""

    _sated: set[str] = field(factory=set, init=False)
    """The backends that have no ready job that could be taken now, as the last round found."""

    _slots: dict[str, int | None] = field(factory=dict, init=False)
    """By backend: how many orders it takes at once, as it said last."""

    _helpers: Helpers = field(init=False)
    _closing: Stop = field(factory=lambda: Stop(error=GivenUp), init=False)

    def __attrs_post_init__(self) -> None:
        store = self._parts.store
        self._helpers = Helpers(store, self._parts.storage, self._parts.backends)
        self._claiming = store if isinstance(store, SupportsClaim) else None

    def tick(self) -> int:
        """Claim ready jobs while there is room for them; return how many were taken."""
        self.expect()
        return self.round()

    def expect(self) -> None:
        """Note that any backend may have ready jobs: the next round claims them."""
        with self._lock:
            self._expected.update(self._parts.backends)

    def round(self) -> int:
        """Go on with what is held, and claim where jobs are expected and there is room; return how many were taken."""
        for name in self._parts.backends:
            self._ask_slots(name)
            for preparation in self._passed.pop(name, ()):
                self._prepare(preparation)
            self._advance(name)
        taken = sum(self._serve(name) for name in self._claimable())
        for name in self._parts.backends:
            self._help(name)
        self._free_slots()
        return taken

    def drain(self, timeout_s: float) -> None:
        """Wait until every job that was taken is dispatched, has failed, or waits for a slot; at most for so long."""
        deadline = time.monotonic() + timeout_s
        lanes = [self._lanes.fetch, self._lanes.files, *self._lanes.start.values(), *self._lanes.help.values()]
        while any(lane.pending for lane in lanes) and time.monotonic() < deadline:
            for lane in lanes:
                lane.drain(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Give up the jobs that are being prepared, each at its next step, and take no more."""
        self._closing.request("the worker closes")

    # --- claiming

    def _claimable(self) -> list[str]:
        """Return the backends with room for jobs and, as far as the store knows, with ready jobs.

        The store is asked about all of them at once. A backend without ready jobs is not expected to have any from now
        on, until something says so.
        """
        with self._lock:
            asked = {name for name in self._expected if self._claims(name) > 0}
            self._sated = set(self._parts.backends) - self._expected
            self._expected -= asked
        if not asked:
            return []
        store = self._claiming
        try:
            found = asked if store is None else store.claimable(asked, machine=self._parts.machine)
        except BaseException:
            self._expect_again(asked)
            raise
        self._sated |= asked - found
        return [name for name in self._parts.backends if name in found]

    def _expect_again(self, names: Iterable[str]) -> None:
        with self._lock:
            self._expected.update(names)

    def _claims(self, name: str) -> int:
        """Return how many jobs of a backend to claim at once."""
        if self._closing.requested or len(self._waiting.get(name, ())) >= _AHEAD:
            return 0
        room = min(self._room(name), _BATCH)
        return room if room > 0 and self._lanes.start[name].ensure() else 0

    def _serve(self, name: str) -> int:
        """Claim jobs for one backend, and start as many as it has slots."""
        taken, more = 0, True
        try:
            for _ in range(_CLAIMS):
                if (limit := self._claims(name)) <= 0:
                    break
                jobs = self._ready(name, limit)
                taken += sum(self._take(job, name) for job in jobs)
                self._advance(name)
                if len(jobs) < limit:
                    self._sated.add(name)
                    more = self._claiming is None  # then there may be jobs whose lane has no room
                    break
        finally:
            if more:
                self._expect_again([name])
        return taken

    def _ask_slots(self, name: str) -> None:
        """Find out how many orders a backend takes at once. What a backend computes is asked for in its own lane.

        While that hangs, what the backend said last counts.
        """
        backend, lane = self._parts.backends[name], self._lanes.ask[name]

        def ask() -> None:
            self._slots[name] = calls.slots(backend)

        if not isinstance(getattr(type(backend), "slots", None), property):
            ask()
        elif lane.submit("slots", ask):
            lane.wait_for("slots", _SLOTS_S)

    def _room(self, name: str) -> int:
        slots = self._slots.get(name, 0)
        return _BATCH - self._lanes.start[name].pending if slots is None else slots - self._keeper.count(name)

    def _ready(self, backend: str, limit: int) -> list[Job]:
        store, machine = self._parts.store, self._parts.machine
        if self._claiming is not None:
            claim = Claim(
                backend=backend,
                local=self._parts.backends[backend].locality < Locality.WORLD,
                holder=self._keeper.holder,
                lease=self._keeper.lease,
                machine=machine,
                policy=self._parts.policy,
            )
            return self._claiming.claim(claim, limit=limit)
        query = JobQuery(order="ready", backends=frozenset([backend]), machine=machine)
        now = store.now()
        return list(islice((j for j in walk(store, query) if is_ready(j, now) and self._can_prepare(j)), limit))

    def _can_prepare(self, job: Job) -> bool:
        """Return whether there is room in the lane that brings its files."""
        lane = self._lane_of(job)
        return lane is None or (not lane.full and lane.ensure())

    def _lane_of(self, job: Job) -> Lane | None:
        """Return the lane that brings the job's files; None if they are in storage."""
        audio = job.audio or job.request.audio
        if isinstance(audio, RemoteAudio):
            return self._lanes.fetch
        files = (audio, *job.attached().values())
        return self._lanes.files if any(isinstance(file, LocalAudio) for file in files) else None

    def _take(self, job: Job, name: str) -> bool:
        """Hold a job's attempt and prepare it; return False if another process was faster."""
        if self._claiming is None:
            begun = self._begin(job, name)
            if begun is None:
                return False
            job = begun
        held = self._keeper.hold(job, Stop(parent=self._closing, error=GivenUp))
        parts, keeper, inbox = self._parts, self._keeper, self._inbox
        self._prepare(Preparation(parts, keeper, inbox, job, held, self._closing, self._noticed))
        return True

    def _prepare(self, preparation: Preparation) -> None:
        """Have the files of a held attempt brought; where there is no room for that, keep it until there is."""
        held, job = preparation.held, preparation.job
        lane = None if held.stop.requested else self._lane_of(job)  # an unwanted attempt only has to end
        if lane is None:
            self._await_slot(preparation)
            return
        bring, host = partial(self._bring, preparation), _host_of(preparation.source)
        if lane.ensure() and lane.submit(held.token, bring, group=host, priority=job.priority):
            return
        passed = self._passed.setdefault(held.backend, [])
        if len(passed) < _PASSED or self._closing.requested:
            passed.append(preparation)
        else:
            preparation.give_up("too many files are being brought to storage at once")

    def _begin(self, job: Job, name: str) -> Job | None:
        """Begin an attempt, for a store that does not claim; None where another process was faster."""
        store = self._parts.store
        claim = Claimed(
            token=secrets.token_hex(16),
            holder=self._keeper.holder,
            lease_until=store.now() + self._keeper.lease,
            backend=name,
            local=self._parts.backends[name].locality < Locality.WORLD,
        )
        try:
            decision = commit_patiently(store, job, claim, patience_s=_CLAIM_PATIENCE_S, stop=self._closing)
        except JobNotFoundError:
            return None
        job = decision.job
        ours = job.attempt is not None and job.attempt.token == claim.token  # also if a first answer was lost
        return job if ours else None

    # --- preparing

    def _bring(self, preparation: Preparation) -> None:
        try:
            if preparation.bring():
                self._await_slot(preparation)
                self._advance(preparation.held.backend)
        finally:
            self._wake()

    def _await_slot(self, preparation: Preparation) -> None:
        with self._lock:
            line = self._waiting.setdefault(preparation.held.backend, [])
            line.append(preparation)
            line.sort(key=lambda waiting: -waiting.job.priority)  # a stable sort: else first come first served
        preparation.held.stop.on_request(self._wake)

    def _advance(self, name: str) -> None:
        """Start waiting attempts while slots are free; end cancelled ones, which need no slot."""
        with self._lock:
            for preparation in tuple(self._waiting.get(name, ())):
                held = preparation.held
                unwanted = held.stop.requested and not self._closing.requested
                if not unwanted and (self._closing.requested or self._room(name) <= 0):
                    continue
                held.slotted = not unwanted
                if not self._lanes.start[name].submit(held.token, partial(self._start, preparation)):
                    held.slotted = False
                    return
                self._waiting[name].remove(preparation)
                held.stop.forget(self._wake)

    # --- helpers

    def _help(self, name: str) -> None:
        """Start helpers of the attempts that are held, in the slots of a backend that no ready job wants."""
        with self._lock:
            wanted = self._waiting.get(name) or self._passed.get(name) or name not in self._sated
            if wanted or self._closing.requested:
                return
            for held in self._keeper.helpable(name):
                intended = [helper for helper in held.job.helpers_to_start() if helper.token not in held.helpers]
                able = isinstance(self._parts.backends[name], SupportsHelpers)
                for helpers in [[helper] for helper in intended] if able else filter(None, [intended]):
                    if self._room(name) <= self._keeper.coming(name) and able:
                        return
                    tokens = [helper.token for helper in helpers]
                    held.helpers.update(dict.fromkeys(tokens))
                    if not self._lanes.help[name].submit(tokens[0], partial(self._start_helpers, held, helpers)):
                        for token in tokens:
                            held.helpers.pop(token)
                        return

    def _free_slots(self) -> None:
        """Where all slots are taken and a job wants one, have a helper stop: what it has committed is not lost."""
        with self._lock:
            crowded = {name for name in self._parts.backends if self._room(name) <= 0 and self._keeper.helped(name)}
            wanting = {name for name in crowded if self._waiting.get(name)}
            asked = (crowded & self._expected) - wanting
            self._expected -= asked
        if asked:
            found = asked if self._claiming is None else self._claiming.claimable(asked, machine=self._parts.machine)
            self._expect_again(found)
            wanting |= found if self._claiming is not None else {name for name in asked if self._ready(name, 1)}
        for name in wanting:
            self._keeper.free_slot(name)

    def _start_helpers(self, held: Held, helpers: Sequence[Helper]) -> None:
        """Start helpers, whose slots are taken."""
        begun: dict[str, BackendCall] | None = None
        try:
            begun = self._helpers.start(held.job, helpers, write=partial(held.commit, self._parts.store))
        except RenderDispatchError as error:
            _log.warning("job %s: a helper was not started: %s", held.job_id, error)
        finally:
            if begun is None:
                held.helpers_from_s = time.monotonic() + _HELP_AGAIN_S
            for token in [helper.token for helper in helpers]:
                if begun is not None and token in begun:
                    held.helpers[token] = begun[token]  # its place is never empty: the attempt would be forgotten
                else:
                    held.helpers.pop(token)
            self._wake()

    def _start(self, preparation: Preparation) -> None:
        try:
            preparation.start()
        finally:
            if preparation.held.released or self._expected:
                self._wake()


def _host_of(source: Audio) -> str | None:
    """Return which host is asked: a slow one takes up a part of the lane."""
    return urlsplit(source.url.get_secret_value()).hostname if isinstance(source, RemoteAudio) else None
