"""On which backend does the next attempt of a job run?

`Failover` is the policy that ships. A policy of your own is a function of the request and the attempts so far.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import Final

from renderdispatch.errors import ConfigurationError, UnknownNameError
from renderdispatch.jobs import Attempt
from renderdispatch.messages import FaultDomain, RenderRequest


class Ended(StrEnum):
    """What ended an attempt, as far as another backend may do better."""

    START_DEADLINE = "start-deadline"
    """It gave no sign of life in time: the backend has no room, or whether it was started was never known."""
    AWAY = "away"
    """The backend could not be reached, or lost the call."""
    REFUSED = "refused"
    """The backend did not start it: it is busy, a quota is used up, or its credentials are wrong."""
    PREEMPTED = "preempted"
    """The backend took its machine away."""
    HANDED_BACK = "handed-back"
    """The worker that held it was closed. It says nothing about the backend."""
    FAILED = "failed"
    """Anything else, such as a lost worker or a render that died."""


MOVES_ON: Final = frozenset({Ended.START_DEADLINE, Ended.AWAY, Ended.REFUSED, Ended.PREEMPTED})
"""What `Failover` takes as a reason to go on to the next backend, unless it is told otherwise."""

_AWAY: Final = frozenset(
    {"backend.unreachable", "backend.no-answer", "backend.closed", "backend.call-missing"}
    | {"modal.unreachable", "modal.trouble", "modal.unexpected", "modal.closed"}
)
_NO_SLOT: Final = frozenset({"backend.busy", "backend.waited"})
_HANDED_BACK: Final = "worker.closed"


def ended_by(attempt: Attempt) -> Ended:
    """Return what ended an attempt."""
    error = attempt.error
    if error is None or error.code == _HANDED_BACK:
        return Ended.HANDED_BACK
    if error.fault is FaultDomain.START_TIMEOUT:
        return Ended.START_DEADLINE
    if error.fault is FaultDomain.PREEMPTION:
        return Ended.PREEMPTED
    began = bool(attempt.runs)
    if error.code in _AWAY and not began:
        return Ended.AWAY
    if attempt.refused or (error.code in _NO_SLOT and not began):
        return Ended.REFUSED
    return Ended.FAILED


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name != ""


class Failover:
    """Tries backends in turn: an attempt that another backend may do better with is followed by one on the next.

    The first attempt runs on the first backend. What ended the last attempt decides about the next one:

    ==================  ===========================================================  ===============
    what ended it       for example                                                  the next attempt
    ==================  ===========================================================  ===============
    ``start-deadline``  ``deadline.start``                                           moves on
    ``away``            ``backend.unreachable``, ``modal.unreachable``,              moves on
                        ``backend.call-missing``
    ``refused``         ``backend.busy``, ``modal.busy``, ``backend.denied``,        moves on
                        ``modal.credentials``, ``modal.not-deployed``
    ``preempted``       ``modal.preempted``                                          moves on
    ``failed``          ``worker.lost``, ``runner.died``, ``modal.worker-lost``,     stays
                        ``disk.full``, ``artifact.missing``
    ``handed-back``     ``worker.closed``                                            stays
    ==================  ===========================================================  ===============

    After the last backend the first one is next, as long as the job has attempts and time left. What the audio, the
    scene or the request did is never tried again.

    Args:
        backends: Their names, the preferred one first.
        on: What moves on: reasons of the first column, and codes of errors.

    Raises:
        ConfigurationError: No backend is named, one is named twice, or ``on`` holds something else.
    """

    def __init__(self, *backends: str, on: Collection[str] = MOVES_ON) -> None:
        if not backends or not all(map(_is_name, backends)):
            raise ConfigurationError("Failover takes the names of backends, such as Failover('modal', 'local')")
        if len(set(backends)) < len(backends):
            raise ConfigurationError(f"Failover names a backend twice: {', '.join(backends)}")
        reasons = sorted(set(Ended) - {Ended.HANDED_BACK})
        for reason in [on] if isinstance(on, str) else on:
            if reason not in reasons and "." not in str(reason):
                error = UnknownNameError.of("reason to move on", str(reason), reasons, code="configuration")
                raise ConfigurationError(f"{error}; codes of errors are reasons too")
        self.backends = backends
        self.on = frozenset([on] if isinstance(on, str) else on)

    def __repr__(self) -> str:
        on = "" if self.on == MOVES_ON else f", on={sorted(map(str, self.on))}"
        return f"Failover({', '.join(map(repr, self.backends))}{on})"

    def __call__(self, request: RenderRequest, attempts: tuple[Attempt, ...]) -> str:  # noqa: ARG002 - the policies' form
        """Return the backend of the next attempt."""
        if not attempts or attempts[-1].backend not in self.backends:
            return self.backends[0]
        last = attempts[-1]
        place, way = self.backends.index(last.backend), ended_by(last)
        named = last.error is not None and last.error.code in self.on
        moves = way is not Ended.HANDED_BACK and (named or way in self.on)
        return self.backends[(place + moves) % len(self.backends)]
