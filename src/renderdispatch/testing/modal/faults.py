"""What goes wrong on the loopback Modal, and when?

Each switch is a probability. A draw depends on the seed, the kind of fault and the number of draws of that kind before:
the third spawn of a run ends in the same way, whatever else happens at that time.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from typing import Literal, get_args

Fault = Literal[
    "lose_spawn_answers",
    "unavailable",
    "container_unavailable",
    "ignore_cancels",
    "duplicate_deliveries",
    "crash",
    "preempt",
    "expired_results",
]


class ModalFaults:
    """The switches of one server. Set them at any time; all are off at first.

    Attributes:
        lose_spawn_answers: The call exists; the client gets UNAVAILABLE for this request and each of its retries.
        unavailable: A request of a client is refused with UNAVAILABLE before it has any effect. The client
            retries by itself, three times within 0.7 s.
        container_unavailable: The same for the requests of containers.
        ignore_cancels: A cancel gets a response of success, and has no effect.
        duplicate_deliveries: An input that a container begins is handed to a second container at the same time.
        crash: A container that begins an input is killed by SIGKILL within ``fault_within_s``.
        preempt: A container that begins an input is preempted within ``fault_within_s``.
        expired_results: A result is gone as soon as it is written.
        fault_within_s: The longest time from the start of an input to its crash or preemption.
        slow_s: How much later each request of a client is answered.
        forget_idempotency_keys: Each of the client's own retries of a spawn whose response was lost makes one more
            call. Off: they are one call, because they carry the same key.

    Args:
        seed: Draws everything; the same seed draws the same.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.lose_spawn_answers = 0.0
        self.unavailable = 0.0
        self.container_unavailable = 0.0
        self.ignore_cancels = 0.0
        self.duplicate_deliveries = 0.0
        self.crash = 0.0
        self.preempt = 0.0
        self.expired_results = 0.0
        self.fault_within_s = 1.0
        self.slow_s = 0.0
        self.forget_idempotency_keys = False
        self._lock = threading.Lock()
        self._asked: Counter[str] = Counter()
        self._forced: Counter[str] = Counter()

    def force(self, fault: Fault, times: int = 1) -> None:
        """Have ``fault`` happen the next ``times`` that it could, whatever its probability."""
        with self._lock:
            self._forced[fault] += times

    def clear(self) -> None:
        """Switch everything off. The draws are not started again."""
        with self._lock:
            self._forced.clear()
            for fault in get_args(Fault):
                setattr(self, fault, 0.0)
            self.slow_s = 0.0
            self.forget_idempotency_keys = False

    def happens(self, fault: Fault) -> bool:
        """Draw whether ``fault`` happens this time."""
        with self._lock:
            if self._forced[fault] > 0:
                self._forced[fault] -= 1
                return True
            probability: float = getattr(self, fault)
            return probability > 0 and self._draw(fault) < probability

    def delay_s(self, fault: Fault) -> float:
        """Draw how long after the start of an input ``fault`` strikes."""
        with self._lock:
            return self._draw(f"{fault} delay") * self.fault_within_s

    def _draw(self, kind: str) -> float:
        count = self._asked[kind]
        self._asked[kind] += 1
        return random.Random(f"{self.seed}/{kind}/{count}").random()
