"""A machine on which a run and its helpers draw in threads, over real storage; helpers may go wrong."""

from __future__ import annotations

import threading
import wave
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Literal

import numpy as np

from renderdispatch.backends.executor import Capacity, Executor, ThreadTask
from renderdispatch.errors import BackendError
from renderdispatch.messages import Completed, Failed, HelperOrder, RenderOrder
from renderdispatch.plumbing.stop import Stop
from renderdispatch.protocols import BackendCall, CallState, CallStatus, Locality, OnEvent
from renderdispatch.runner import InProcessRender, Pace, RunnerIO, run_order
from renderdispatch.runner.help import HelperIO, run_helper
from renderdispatch.runner.render import SupervisedRender
from renderdispatch.runner.reporting import told_to_stop
from renderdispatch.runner.webhook import WebhookSender
from tests.support.sleepy_scene import SLEEPY, Mishap, SleepyRenderer

Trouble = Mishap | Literal["never starts"]

_PACE: Final = Pace(progress_s=0.2, heartbeat_s=1.0, check_in_s=1.0, final_s=5.0, backoff_s=0.05, backoff_max_s=0.5)
_HANGING: Final = "tests.support.sleepy_scene:hanging"


class Crowd:
    """Draws the scene `Sleepy`: runs report by webhook, helpers report nothing.

    Args:
        troubles: What is wrong with which helper, by its share.
    """

    locality = Locality.WORLD
    slots = None

    def __init__(self, troubles: Mapping[int, Trouble] | None = None) -> None:
        self.troubles = dict(troubles or {})
        self.helpers: dict[int, BackendCall] = {}
        """The call of each helper that was started, by its share."""

        self.by_token: dict[str, BackendCall] = {}
        """The same, by its token."""

        self.deaths = 0
        """How many helpers died, and were started again as Modal does it."""

        self.loses_answers = self.ignores_cancels = False
        self._calls = Executor(lambda: Capacity(slots=1000))
        self._lock = threading.Lock()

    def start(self, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
        """Start a run."""
        stop, callback = Stop(error=told_to_stop), order.callback
        assert callback is not None

        def body(call: BackendCall) -> Completed | Failed:
            with WebhookSender(order, callback, try_s=2.0) as webhook:
                render = InProcessRender({SLEEPY: SleepyRenderer()})
                io = RunnerIO(send=webhook, render=render, call_id=call.id, pace=_PACE, stop=stop)
                return run_order(order, io=io)

        return self._calls.start(ThreadTask(body, lambda: stop.request("cancelled")))

    def start_helper(self, order: HelperOrder) -> BackendCall:
        """Start a helper, with its trouble."""
        stop = Stop(error=told_to_stop)
        draw = self._helper(order, stop)

        def body(_call: BackendCall) -> None:
            draw()

        call = self._calls.start(ThreadTask(body, lambda: stop.request("cancelled")))
        with self._lock:
            self.helpers[order.share] = self.by_token[order.token] = call
        if self.loses_answers:
            raise BackendError("the answer was lost", retryable=True, outcome_known=False)
        return call

    def _helper(self, order: HelperOrder, stop: Stop) -> Callable[[], object]:
        trouble = self.troubles.get(order.share)
        if trouble == "never starts":
            return lambda: stop.wait(3600)
        if trouble == "hangs":  # only a process can be ended that draws no frame
            return lambda: run_helper(order, io=HelperIO(render=SupervisedRender({SLEEPY: _HANGING}), stop=stop))
        io = HelperIO(render=InProcessRender({SLEEPY: SleepyRenderer(trouble)}), stop=stop)
        if trouble != "dies":
            return lambda: run_helper(order, io=io)

        def die_again_and_again() -> None:
            while "HelperDied" in run_helper(order, io=io).reason and not stop.requested:
                self.deaths += 1

        return die_again_and_again

    def computes(self, call: BackendCall) -> bool:
        """Return whether a call's thread runs."""
        return self.poll(call).status is CallStatus.RUNNING

    def poll(self, call: BackendCall) -> CallState:
        """Return the state of a call."""
        return self._calls.poll(call) or CallState(status=CallStatus.MISSING)

    def cancel(self, call: BackendCall) -> None:
        """End a call, unless cancels are ignored."""
        if not self.ignores_cancels:
            self._calls.cancel(call)

    def close(self) -> None:
        """End every call."""
        self._calls.stop()


class FindingCrowd(Crowd):
    """A crowd that finds a helper by its token."""

    def find(self, *, job_id: str, token: str) -> BackendCall | None:
        """Return the call of a helper; None: there is none, and there will be none."""
        del job_id
        return self.by_token.get(token)


def write_speech(path: Path, *, seconds: float) -> Path:
    """Write noise that grows louder and fainter, as a small WAV file."""
    rate = 8000
    t = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(5).uniform(-1, 1, len(t)) * (0.5 + 0.45 * np.sin(2 * np.pi * t / 7))
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 1, rate, 0, "NONE", "not compressed"))
        file.writeframes((128 + noise * 127).astype(np.uint8).tobytes())
    return path
