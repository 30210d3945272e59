"""How does one process reach Modal, and how long does it wait?

The client's own calls block: the first connect to a control plane that is away for about a minute. So every call is
made on an event loop of its own, in a daemon thread, and whoever waits for it waits for seconds. Only a start for which
everything is at hand goes to the client's own loop at once. The client and its connection are one process's: a child
makes its own.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attrs import field, frozen

from renderdispatch.backends.modal_faults import (
    LinkClosed,
    Says,
    Unanswered,
    UnknownCall,
    meaning_of,
)

if TYPE_CHECKING:
    import modal

MAX_POLLS: Final = 50
"""Polls at once: more of them starve the client's one connection."""

_JITTER_S: Final = 0.05
"""How far polls that have to queue are spread."""

_FRESH_S: Final = 5.0
"""How long an answer is believed to prove the connection. A start later than that looks the function up first: what
fails there surely was not started, where a lost answer to a start leaves its outcome unknown for up to an hour."""

_HANDLES_S: Final = 600.0
"""How long handles are kept: so long after a deployment, at the latest, it is in use."""

_REMEMBERED: Final = 10_000

_T = TypeVar("_T")


class ModalTrouble(Exception):
    """A call did not bring what was asked.

    Args:
        error: What the client raised, of whatever kind, or `Unanswered`.
        sent: Whether the request can have taken effect all the same.
    """

    def __init__(self, error: BaseException, *, sent: bool) -> None:
        super().__init__()
        self.error = error
        self.sent = sent


@frozen(kw_only=True)
class Target:
    """Which function, and who asks. No token: Modal's own configuration says it."""

    app: str
    function: str
    environment: str | None = None
    version: int | None = None
    token_id: str | None = None
    token_secret: str | None = field(default=None, repr=False)


@frozen
class Variant:
    """What `with_options` makes of the function; None leaves what was deployed."""

    gpu: str | None
    timeout_s: int


class ModalLink:
    """A process's client, its handles, and the thread that they live in. Blocking; safe to share between threads.

    Args:
        target: Which function.
        connect_s: How long connecting and looking up may take.
        answer_s: How long the answer to a request may take, once connected.
        cancel_grace_s: A call that is still told to stop so long after the first time has its container taken away.
    """

    def __init__(self, target: Target, *, connect_s: float, answer_s: float, cancel_grace_s: float) -> None:
        import modal  # noqa: F401 - here, and not within the first call's time

        self._target = target
        self._connect_s = connect_s
        self._answer_s = answer_s
        self._cancel_grace_s = cancel_grace_s
        self._client: modal.Client | None = None
        self._owned = False
        self._base: modal.Function[..., Any, Any] | None = None
        self._base_id = ""
        self._base_since = 0.0
        self._variants: dict[tuple[str, Variant], asyncio.Future[modal.Function[..., Any, Any]]] = {}
        self._opening: asyncio.Future[modal.Client] | None = None
        self._looking: asyncio.Future[modal.Function[..., Any, Any]] | None = None
        self._heard_at: float | None = None
        self._told: dict[str, float] = {}
        self._polls = asyncio.Semaphore(MAX_POLLS)
        self._gate = threading.Lock()
        self._closed = False
        self._spawning: set[Future[modal.FunctionCall[Any]]] = set()
        self._one_hop = _gives_futures()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="renderdispatch-modal", daemon=True)
        self._thread.start()

    # --- what is asked

    def start(self, variant: Variant, argument: str) -> str:
        """Start the function; return the id of the call."""
        function = self._at_hand(variant)
        if function is None:
            return self._run(self._start(variant, argument), sent=True)
        try:
            return self._spawn_from_here(function, argument)
        except ModalTrouble as trouble:
            if not _is_gone(trouble.error):
                raise
        return self._run(self._start_anew(variant, argument), sent=True)

    def poll(self, call_id: str) -> object:
        """Return what the call returned."""
        return self._run(self._poll(call_id), sent=False)

    def cancel(self, call_id: str) -> None:
        """Tell the call to stop; when the grace since the first time has passed, take its container away."""
        self._run(self._cancel(call_id), sent=True)

    def close(self) -> None:
        """Give up what is waited for, close the client, end the thread. A second call does nothing."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
            for future in self._spawning:
                future.cancel()
        asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # --- between threads

    def _run(self, work: Coroutine[Any, Any, _T], *, sent: bool) -> _T:
        """Run on the loop and wait: every step of ``work`` is bounded."""
        with self._gate:  # whatever comes in before `close` is ended by it
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

    def _at_hand(self, variant: Variant) -> modal.Function[..., Any, Any] | None:
        """Return the function with these options where a start needs nothing but its own request."""
        if not self._one_hop or not self._fresh or self._loop.time() - self._base_since > _HANDLES_S:
            return None
        found = self._variants.get((self._base_id, variant))
        if found is None or not found.done() or found.cancelled() or found.exception() is not None:
            return None
        return found.result()

    def _spawn_from_here(self, function: modal.Function[..., Any, Any], argument: str) -> str:
        """Spawn without the detour over this loop: each change of threads costs as much as the rest of the client."""
        future: Future[modal.FunctionCall[Any]] = Future()
        try:
            with self._gate:
                if self._closed:
                    raise ModalTrouble(LinkClosed(), sent=False)  # noqa: TRY301
                future = function.spawn(argument, _future=True)  # type: ignore[assignment]
                self._spawning.add(future)
            call = future.result(self._answer_s)
        except CancelledError:
            raise ModalTrouble(LinkClosed(), sent=True) from None
        except TimeoutError:
            raise self._heard(Unanswered(f"within {self._answer_s:g} s"), sent=True) from None
        except ModalTrouble:
            raise
        except Exception as error:  # noqa: BLE001 - of whatever kind; it says itself what it means
            raise self._heard(error, sent=True) from None
        finally:
            future.cancel()
            with self._gate:
                self._spawning.discard(future)
        self._heard_at = self._loop.time()
        return call.object_id

    def _heard(self, error: BaseException, *, sent: bool, proves: bool = True) -> ModalTrouble:
        """Return the trouble, and take note of whether it was Modal that said so."""
        silence = meaning_of(error).says is Says.SILENCE
        if proves or silence:
            self._heard_at = None if silence else self._loop.time()
        return ModalTrouble(error, sent=sent)

    async def _shut(self) -> None:
        mine = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not mine]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        client, self._client = self._client, None
        if client is None or not self._owned:
            return
        try:
            await asyncio.to_thread(lambda: None)
        except RuntimeError:  # this process ends, and the client with it: asked to close now, it prints a traceback
            return
        closing = asyncio.ensure_future(_caught(client.close.aio()))
        await asyncio.wait({closing}, timeout=2.0)

    async def _bounded(self, work: Coroutine[Any, Any, _T], *, seconds: float, sent: bool, proves: bool = True) -> _T:
        """Wait for a call of the client; whatever it raises, a remote `SystemExit` included, is a `ModalTrouble`.

        Args:
            work: The call.
            seconds: How long to wait.
            sent: Whether it may take effect though it fails here.
            proves: Whether its end shows that Modal can be reached.
        """
        task = asyncio.ensure_future(_caught(work))
        try:
            await asyncio.wait({task}, timeout=seconds)
            answer = task.result() if task.done() else _Answer(error=Unanswered(f"within {seconds:g} s"))
        except asyncio.CancelledError:
            raise ModalTrouble(LinkClosed(), sent=sent) from None
        finally:
            task.cancel()  # not waited for: the client may take its time
        if answer.error is not None:
            raise self._heard(answer.error, sent=sent, proves=proves)
        if proves:
            self._heard_at = self._loop.time()
        return answer.value  # type: ignore[return-value]

    async def _shared(self, future: asyncio.Future[_T]) -> _T:
        return await asyncio.shield(future)

    def _share(self, work: Coroutine[Any, Any, _T]) -> asyncio.Future[_T]:
        """Begin what several wait for, and what goes on when one of them gives up."""
        future = asyncio.ensure_future(work)
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return future

    # --- on the loop

    @property
    def _fresh(self) -> bool:
        return self._heard_at is not None and self._loop.time() - self._heard_at < _FRESH_S

    async def _start(self, variant: Variant, argument: str) -> str:
        function = await self._bound(variant)
        try:
            return await self._spawn(function, argument)
        except ModalTrouble as trouble:
            if not _is_gone(trouble.error):
                raise
        return await self._start_anew(variant, argument)

    async def _start_anew(self, variant: Variant, argument: str) -> str:
        """Start once more: nothing was started, for it was deployed anew, under another id."""
        self._forget()
        return await self._spawn(await self._bound(variant), argument)

    async def _spawn(self, function: modal.Function[..., Any, Any], argument: str) -> str:
        call = await self._bounded(function.spawn.aio(argument), seconds=self._answer_s, sent=True)
        return call.object_id

    async def _poll(self, call_id: str) -> object:
        seconds = self._answer_s if self._fresh else self._connect_s
        await self._take_turn()
        try:
            return await self._ask(call_id, lambda call: call.get.aio(timeout=0), seconds=seconds)
        finally:
            self._polls.release()

    async def _take_turn(self) -> None:
        if not self._polls.locked():
            await self._polls.acquire()
            return
        await asyncio.sleep(random.uniform(0, _JITTER_S))
        try:
            await asyncio.wait_for(self._polls.acquire(), timeout=self._answer_s)
        except TimeoutError:
            raise ModalTrouble(Unanswered("too many polls wait for answers"), sent=False) from None

    async def _cancel(self, call_id: str) -> None:
        now = self._loop.time()
        first = self._told.setdefault(call_id, now)
        while len(self._told) > _REMEMBERED:
            self._told.pop(next(iter(self._told)))
        terminate = now - first > self._cancel_grace_s
        seconds = self._answer_s if self._fresh else self._connect_s
        await self._ask(call_id, lambda call: call.cancel.aio(terminate_containers=terminate), seconds=seconds)

    async def _ask(
        self,
        call_id: str,
        question: Callable[[modal.FunctionCall[Any]], Coroutine[Any, Any, _T]],
        *,
        seconds: float,
    ) -> _T:
        """Ask about a call; nothing is left unknown when that fails."""
        import modal

        client = await self._connected()
        call = modal.FunctionCall.from_id(call_id, client)
        try:
            return await self._bounded(question(call), seconds=seconds, sent=True)
        except ModalTrouble as trouble:
            if isinstance(trouble.error, modal.exception.ExecutionError):
                await self._bounded(_check(call), seconds=seconds, sent=False, proves=False)
            elif isinstance(trouble.error, modal.exception.ClientClosed):
                self._client = None
            raise

    async def _connected(self) -> modal.Client:
        """Return the client; it connects by itself, at its first request."""
        if self._client is None:
            if self._opening is None or self._opening.done():
                self._opening = self._share(self._open())
            opening = self._shared(self._opening)
            self._client = await self._bounded(opening, seconds=self._connect_s, sent=False, proves=False)
        return self._client

    async def _open(self) -> modal.Client:
        import modal
        from modal.config import config

        token_id, token_secret = self._target.token_id, self._target.token_secret
        if token_id is None and modal.is_local():
            token_id, token_secret = config.get("token_id"), config.get("token_secret")
        self._owned = bool(token_id and token_secret)
        if self._owned:
            return await modal.Client.from_credentials.aio(str(token_id), str(token_secret))
        return await modal.Client.from_env.aio()

    async def _bound(self, variant: Variant) -> modal.Function[..., Any, Any]:
        """Return the function with these options: without a request, where the connection was just proved."""
        if self._base is not None and self._loop.time() - self._base_since > _HANDLES_S:
            self._forget()
        base = self._base
        if base is None or not self._fresh:
            if self._looking is None or self._looking.done():
                self._looking = self._share(self._look_up())
            base = await self._bounded(self._shared(self._looking), seconds=self._connect_s, sent=False)
        key = (self._base_id, variant)
        found = self._variants.get(key)
        if found is None or (found.done() and (found.cancelled() or found.exception() is not None)):
            found = self._variants[key] = self._share(_with_options(base, variant))
        if found.done():
            return found.result()
        return await self._bounded(self._shared(found), seconds=self._connect_s, sent=False)

    async def _look_up(self) -> modal.Function[..., Any, Any]:
        import modal

        target = self._target
        client = await self._connected()
        function = modal.Function.from_name(
            target.app, target.function, version=target.version, environment_name=target.environment, client=client
        )
        try:
            await function.hydrate.aio()
        except modal.exception.ClientClosed:
            self._client = None
            raise
        if self._base is None or self._base_id != function.object_id:
            self._forget()
            self._base, self._base_id, self._base_since = function, function.object_id, self._loop.time()
        return self._base

    def _forget(self) -> None:
        self._base = None
        self._variants.clear()


@frozen
class _Answer:
    value: object = None
    error: BaseException | None = None


async def _caught(work: Coroutine[Any, Any, object]) -> _Answer:
    try:
        return _Answer(value=await work)
    except asyncio.CancelledError:
        raise
    except ModalTrouble as trouble:
        return _Answer(error=trouble.error)
    except BaseException as error:  # noqa: BLE001 - handed to whoever asked; it would end the loop
        return _Answer(error=error)


async def _with_options(base: modal.Function[..., Any, Any], variant: Variant) -> modal.Function[..., Any, Any]:
    function = base.with_options(gpu=variant.gpu, timeout=variant.timeout_s)
    await function.hydrate.aio()
    return function


async def _check(call: modal.FunctionCall[Any]) -> None:
    """Raise `UnknownCall` for what can be no id of a call. Without a request."""
    import modal

    try:
        await call.hydrate.aio()
    except modal.exception.ExecutionError as error:
        raise UnknownCall from error


def _gives_futures() -> bool:
    """Return whether the client's blocking calls take ``_future=True``, which its manual does not promise."""
    from synchronicity import synchronizer

    return getattr(synchronizer, "_RETURN_FUTURE_KWARG", None) == "_future"


def _is_gone(error: BaseException) -> bool:
    import modal

    return isinstance(error, modal.exception.NotFoundError)
