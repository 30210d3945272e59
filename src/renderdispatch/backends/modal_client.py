"""What does one process hold of Modal: the client, the deployed function, and the time limits of their calls?

All of it lives on one event loop, which `renderdispatch.backends.modal_link` runs. The client's own calls may block for
long: its first connection to a control plane that is away takes about a minute. So each call here has a time limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar

from attrs import field, frozen

from renderdispatch.backends.modal_faults import Evidence, LinkClosed, Unanswered, meaning_of

if TYPE_CHECKING:
    import modal

    Function: TypeAlias = modal.Function[..., Any, Any]
    FunctionCall: TypeAlias = modal.FunctionCall[Any]

_FRESH_S: Final = 5.0
"""How long a response proves that the connection works. A start later than that looks the function up first. If that
fails, the call was surely not started. A lost response to the start itself leaves its outcome unknown for an hour."""

_HANDLES_S: Final = 600.0
"""How long handles are kept. A new deployment is in use so long after it, at the latest."""

_T = TypeVar("_T")


class ModalTrouble(Exception):
    """A call of the client failed.

    Args:
        error: What the client raised, of any class, or `Unanswered`.
        sent: Whether the request can have taken effect all the same.
    """

    def __init__(self, error: BaseException, *, sent: bool) -> None:
        super().__init__()
        self.error = error
        self.sent = sent


@frozen(kw_only=True)
class Target:
    """Which function, by whose token, and how long that may take.

    Args:
        app: The deployed app.
        function: The function in it.
        environment: Modal's environment; None is the one of Modal's own configuration.
        version: The only version of the app to use; None is the newest.
        token_id: Of a Modal token; None takes it from Modal's own configuration.
        token_secret: Goes with ``token_id``.
        connect_s: How long connecting and looking up may take.
        answer_s: How long the response to a request may take, once connected.
        cancel_grace_s: A call that is cancelled again so long after the first time has its container taken away.
    """

    app: str
    function: str
    environment: str | None
    version: int | None
    token_id: str | None
    token_secret: str | None = field(repr=False)
    connect_s: float
    answer_s: float
    cancel_grace_s: float


@frozen
class Variant:
    """The options that `with_options` is given. No GPU leaves the one that was deployed."""

    gpu: str | None
    timeout_s: int


class Connection:
    """The client, which is opened at its first use, and the time limits of its calls.

    Args:
        target: Says whose token is used, and the limits.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._client: modal.Client | None = None
        self._owned = False
        self._opening = _Shared(self._open)
        self._heard_at: float | None = None

    @property
    def fresh(self) -> bool:
        """Whether Modal has responded a moment ago."""
        return self._heard_at is not None and _now() - self._heard_at < _FRESH_S

    @property
    def request_s(self) -> float:
        """How long a request may take now: it may have to connect first."""
        return self._target.answer_s if self.fresh else self._target.connect_s

    async def client(self) -> modal.Client:
        """Return the client; it connects by itself, at its first request."""
        if self._client is None:
            opening = self._opening.join(again=True)
            self._client = await self.bounded(opening, seconds=self._target.connect_s, sent=False, proves=False)
        return self._client

    async def bounded(self, work: Awaitable[_T], *, seconds: float, sent: bool, proves: bool = True) -> _T:
        """Wait for a call of the client; whatever it raises, a remote `SystemExit` included, becomes a `ModalTrouble`.

        Args:
            work: The call.
            seconds: How long to wait.
            sent: Whether it may take effect though it fails here.
            proves: Whether its end shows that Modal can be reached.
        """
        import modal

        task = asyncio.ensure_future(_caught(work))
        try:
            await asyncio.wait({task}, timeout=seconds)
            result = task.result() if task.done() else _Result(error=Unanswered(f"within {seconds:g} s"))
        except asyncio.CancelledError:
            raise ModalTrouble(LinkClosed(), sent=sent) from None
        finally:
            task.cancel()  # not awaited: the client may take its time
        silent = result.error is not None and meaning_of(result.error).evidence is Evidence.SILENCE
        if proves or silent:
            self._heard_at = None if silent else _now()
        if isinstance(result.error, modal.exception.ClientClosed):
            self._client = None  # it was closed elsewhere: the next request opens another one
        if result.error is not None:
            raise ModalTrouble(result.error, sent=sent)
        return result.value  # type: ignore[return-value]  # of the type that the caller named

    async def close(self) -> None:
        """Close the client, if this opened it."""
        client, self._client = self._client, None
        if client is None or not self._owned:
            return
        try:
            await asyncio.to_thread(lambda: None)
        except RuntimeError:  # the interpreter shuts down, and the client with it: closed now, it prints a traceback
            return
        leaving = client.__aexit__(None, None, None)  # type: ignore[no-untyped-call]  # Modal's is not typed
        closing = asyncio.ensure_future(_caught(leaving))  # clients before 1.6.4 have no public `close`
        await asyncio.wait({closing}, timeout=2.0)

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


class Functions:
    """The function that was deployed, with and without options.

    Args:
        target: Which function.
        connection: Looks it up.
    """

    def __init__(self, target: Target, connection: Connection) -> None:
        self._target = target
        self._connection = connection
        self._found: _Found | None = None
        self._looking_up = _Shared(self._look_up)

    async def get(self, variant: Variant) -> Function:
        """Return the function with these options. Sends nothing if it is known and the connection was just proved."""
        if self._found is not None and _now() - self._found.since > _HANDLES_S:
            self.forget()
        found, limit_s = self._found, self._target.connect_s
        if found is None or not self._connection.fresh:
            looking_up = self._looking_up.join(again=True)
            found = await self._connection.bounded(looking_up, seconds=limit_s, sent=False)
        bound = found.variants.setdefault(variant, _Shared(lambda: _with_options(found.function, variant)))
        sends = not bound.ready
        return await self._connection.bounded(bound.join(), seconds=limit_s, sent=False, proves=sends)

    def forget(self) -> None:
        """Look the function up again before its next use."""
        self._found = None

    async def _look_up(self) -> _Found:
        import modal

        target = self._target
        function = modal.Function.from_name(
            target.app,
            target.function,
            version=target.version,
            environment_name=target.environment,
            client=await self._connection.client(),
        )
        await function.hydrate.aio()
        if self._found is None or self._found.function.object_id != function.object_id:
            self._found = _Found(function, _now())
        return self._found


@frozen
class _Found:
    function: Function
    since: float
    variants: dict[Variant, _Shared[Function]] = field(factory=dict)


class _Shared(Generic[_T]):
    """Work that several callers wait for. It goes on when one of them gives up, and is done again if it failed."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> None:
        self._work = work
        self._task: asyncio.Task[_T] | None = None

    @property
    def ready(self) -> bool:
        """Whether the work has succeeded."""
        task = self._task
        return task is not None and task.done() and not task.cancelled() and task.exception() is None

    def join(self, *, again: bool = False) -> Awaitable[_T]:
        """Return the work to wait for; begin it if it is not in progress.

        Args:
            again: Also begin again if it succeeded before.
        """
        if self._task is None or (self._task.done() and (again or not self.ready)):
            self._task = asyncio.ensure_future(self._work())
            self._task.add_done_callback(lambda done: done.cancelled() or done.exception())  # else asyncio warns
        return asyncio.shield(self._task)


@frozen
class _Result:
    value: object = None
    error: BaseException | None = None


async def _caught(work: Awaitable[object]) -> _Result:
    try:
        return _Result(value=await work)
    except asyncio.CancelledError:
        raise
    except ModalTrouble as trouble:
        return _Result(error=trouble.error)
    except BaseException as error:  # noqa: BLE001 - returned to the caller; raised here, it would end the loop
        return _Result(error=error)


async def _with_options(function: Function, variant: Variant) -> Function:
    bound = function.with_options(gpu=variant.gpu, timeout=variant.timeout_s)
    await bound.hydrate.aio()
    return bound


def _now() -> float:
    return asyncio.get_running_loop().time()
