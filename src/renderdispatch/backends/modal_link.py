"""How does one process talk to Modal, from any of its threads?

On an event loop in a daemon thread: a caller waits for a bounded time, whatever the client does. The client and its
connection belong to one process; a child makes its own.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, Final, TypeVar

from renderdispatch.backends.modal_client import Connection, Functions, ModalTrouble, Target, Variant
from renderdispatch.backends.modal_faults import LinkClosed, Unanswered, UnknownCall

if TYPE_CHECKING:
    from renderdispatch.backends.modal_client import FunctionCall

MAX_POLLS: Final = 50
"""Polls at once. More of them starve the client's one connection."""

_JITTER_S: Final = 0.05
"""How far the polls that have to queue are spread."""

_REMEMBERED: Final = 10_000

_T = TypeVar("_T")


class ModalLink:
    """What a process asks of Modal. Blocking; safe to share between threads.

    Args:
        target: Which function, by whose token, and how long that may take.
    """

    def __init__(self, target: Target) -> None:
        import modal  # noqa: F401 - now, so that the first call's time does not pay for it

        self._target = target
        self._connection = Connection(target)
        self._functions = Functions(target, self._connection)
        self._polls = asyncio.Semaphore(MAX_POLLS)
        self._cancelled_at: dict[str, float] = {}
        self._loop = _LoopThread("renderdispatch-modal")

    def start(self, variant: Variant, argument: str) -> str:
        """Start the function; return the id of the call."""
        return self._loop.run(self._start(variant, argument), sent=True)

    def poll(self, call_id: str) -> object:
        """Return what the call returned."""
        return self._loop.run(self._poll(call_id), sent=False)

    def cancel(self, call_id: str) -> None:
        """Tell the call to stop. Once the grace since the first time has passed, take its container away."""
        self._loop.run(self._cancel(call_id), sent=True)

    def close(self) -> None:
        """Fail the calls in progress, close the client, end the thread. A second call does nothing."""
        self._loop.close(self._connection.close)

    # --- on the loop

    async def _start(self, variant: Variant, argument: str) -> str:
        import modal

        function = await self._functions.get(variant)
        try:
            return await self._spawn(function, argument)
        except ModalTrouble as trouble:
            if not isinstance(trouble.error, modal.exception.NotFoundError):
                raise
        # Nothing was started: the function was deployed again, under another id.
        self._functions.forget()
        return await self._spawn(await self._functions.get(variant), argument)

    async def _spawn(self, function: Any, argument: str) -> str:
        spawned = function.spawn.aio(argument)
        call: FunctionCall = await self._connection.bounded(spawned, seconds=self._target.answer_s, sent=True)
        return call.object_id

    async def _poll(self, call_id: str) -> object:
        limit_s = self._connection.request_s
        if self._polls.locked():
            await asyncio.sleep(random.uniform(0, _JITTER_S))
        try:
            async with asyncio.timeout(self._target.answer_s):
                await self._polls.acquire()
        except TimeoutError:
            raise ModalTrouble(Unanswered("too many polls wait for answers"), sent=False) from None
        try:
            return await self._ask(call_id, lambda call: call.get.aio(timeout=0), limit_s=limit_s)
        finally:
            self._polls.release()

    async def _cancel(self, call_id: str) -> None:
        now = asyncio.get_running_loop().time()
        first = self._cancelled_at.setdefault(call_id, now)
        while len(self._cancelled_at) > _REMEMBERED:
            self._cancelled_at.pop(next(iter(self._cancelled_at)))
        terminate = now - first > self._target.cancel_grace_s
        limit_s = self._connection.request_s
        await self._ask(call_id, lambda call: call.cancel.aio(terminate_containers=terminate), limit_s=limit_s)

    async def _ask(
        self, call_id: str, question: Callable[[FunctionCall], Coroutine[Any, Any, _T]], *, limit_s: float
    ) -> _T:
        """Ask about a call."""
        import modal

        call = modal.FunctionCall.from_id(call_id, await self._connection.client())
        try:
            return await self._connection.bounded(question(call), seconds=limit_s, sent=True)
        except ModalTrouble as trouble:
            if isinstance(trouble.error, modal.exception.ExecutionError):
                await self._connection.bounded(_check(call), seconds=limit_s, sent=False, proves=False)
            raise


async def _check(call: FunctionCall) -> None:
    """Raise `UnknownCall` for what can be no id of a call. Sends nothing."""
    import modal

    try:
        await call.hydrate.aio()
    except modal.exception.ExecutionError as error:
        raise UnknownCall from error


class _LoopThread:
    """An event loop in a daemon thread, for callers in other threads.

    Args:
        name: The thread's.
    """

    def __init__(self, name: str) -> None:
        self._gate = threading.Lock()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # the process has as many threads as it may
            self._loop.close()
            raise ModalTrouble(error, sent=False) from error

    def run(self, work: Coroutine[Any, Any, _T], *, sent: bool) -> _T:
        """Run ``work`` on the loop and wait for it. It bounds each of its steps itself.

        Args:
            sent: Whether an error of an unforeseen kind leaves unknown what was done.

        Raises:
            ModalTrouble: Everything else that ends the work, `close` included.
        """
        with self._gate:  # what comes in before `close` is ended by it
            if self._closed:
                work.close()
                raise ModalTrouble(LinkClosed(), sent=False)
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise ModalTrouble(LinkClosed(), sent=False) from None
        except ModalTrouble:
            raise
        except Exception as error:
            raise ModalTrouble(error, sent=sent) from error
        except BaseException:  # this thread was interrupted
            future.cancel()
            raise

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Cancel what runs, then run ``last``, then end the thread. A second call does nothing."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._end(last), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        await last()
