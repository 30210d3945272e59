"""How is an order rendered on Modal?

By a call of a deployed function (`renderdispatch.modal_app`), spawned with the order as JSON: only strings cross. The
function reports to the order's callback; what it returns is a `CallAnswer`.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from datetime import UTC, datetime, timedelta
from typing import Final

from pydantic import ValidationError

from renderdispatch.backends.modal_faults import DEPLOY, how_to_deploy, refusal, state_of
from renderdispatch.backends.modal_link import ModalLink, ModalTrouble, Target, Variant
from renderdispatch.errors import BackendError, ConfigurationError, MissingExtraError
from renderdispatch.messages import MAX_ORDER_BYTES, PROTOCOL, CallAnswer, FaultDomain, JobError, RenderOrder
from renderdispatch.protocols import BackendCall, CallState, CallStatus, Locality, OnEvent

_log: Final = logging.getLogger("renderdispatch.backends.modal")

TIMEOUT_STEPS_S: Final[tuple[int, ...]] = (*(900 * 2**step for step in range(7)), 86_400)
"""The timeouts that functions are given: 15 and 30 minutes, 1, 2, 4, 8, 16 and 24 hours. Calls with other options run
in other containers; with few steps they share warm ones. Modal's own limit is 24 hours."""


class ModalBackend:
    """Renders on Modal. Opens nothing before it is used; safe to share between threads, and across forks.

    Args:
        app: The deployed app.
        function: The function in it; it takes a `RenderOrder` and returns a `CallAnswer`, both as JSON.
        environment: Modal's environment; None is the one of Modal's own configuration.
        version: A deployed version of the app, to stay with; None is the newest.
        gpu: The kind of GPU for orders that name none, as ``"L4"``; None leaves what was deployed.
        token_id: Who asks; None takes both from Modal's own configuration (``MODAL_TOKEN_ID`` and
            ``MODAL_TOKEN_SECRET``, or ``~/.modal.toml``).
        token_secret: Goes with ``token_id``.
        timeout_margin: What Modal's timeout allows beyond the order's ``finish_by``, before it is rounded up to one of
            `TIMEOUT_STEPS_S`. The run holds the deadline itself; Modal's timeout ends runs that do not.
        connect_timeout: How long connecting and looking the function up may take.
        answer_timeout: How long Modal may take to answer, once connected.
        cancel_grace: How long a call has to obey a cancel. One that is cancelled again later has its container taken
            away; a container renders one order at a time.

    Raises:
        ConfigurationError: Only half of a token was given, or a time is not positive.
        MissingExtraError: Modal's client is not installed.
    """

    locality = Locality.WORLD
    slots = None

    def __init__(
        self,
        app: str = "renderdispatch",
        function: str = "render",
        *,
        environment: str | None = None,
        version: int | None = None,
        gpu: str | None = None,
        token_id: str | None = None,
        token_secret: str | None = None,
        timeout_margin: timedelta = timedelta(minutes=2),
        connect_timeout: timedelta = timedelta(seconds=10),
        answer_timeout: timedelta = timedelta(seconds=20),
        cancel_grace: timedelta = timedelta(seconds=10),
    ) -> None:
        if importlib.util.find_spec("modal") is None:
            raise MissingExtraError.of("ModalBackend", "modal")
        if (token_id is None) != (token_secret is None):
            raise ConfigurationError("a Modal token is token_id and token_secret: give both, or neither")
        if min(connect_timeout, answer_timeout) <= timedelta(0):
            raise ConfigurationError("connect_timeout and answer_timeout must be above zero")
        self._target = Target(
            app=app,
            function=function,
            environment=environment,
            version=version,
            token_id=token_id,
            token_secret=token_secret,
        )
        self._gpu = gpu
        self._margin = timeout_margin
        self._connect_s = connect_timeout.total_seconds()
        self._answer_s = answer_timeout.total_seconds()
        self._cancel_grace_s = cancel_grace.total_seconds()
        self._closed = False
        self._links: dict[int, ModalLink] = {}
        """By process: neither the client's connection, its threads nor a lock that is held survive a fork."""
        self._locks: dict[int, threading.Lock] = {}

    def __repr__(self) -> str:
        target = self._target
        where = "" if target.environment is None else f", environment={target.environment!r}"
        where += "" if target.version is None else f", version={target.version!r}"
        where += "" if self._gpu is None else f", gpu={self._gpu!r}"
        return f"ModalBackend({target.app!r}, {target.function!r}{where})"

    def start(self, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
        """Spawn the function; one request, after the first. ``on_event`` is ignored: the run reports by webhook.

        Raises:
            BackendError: The order is over 8 KiB, the function is not deployed, Modal refuses it or does not answer.
                A request that was sent and not answered has an unknown outcome.
        """
        del on_event
        argument = order.model_dump_json()
        if (size := len(argument.encode())) > MAX_ORDER_BYTES:
            raise BackendError(
                f"the order of job {order.job_id} has {size} bytes of JSON, and may have {MAX_ORDER_BYTES}: "
                "shorten its params, or the URLs that it carries",
                retryable=False,
                code="order.too-large",
            )
        variant = Variant(order.gpu or self._gpu, timeout_s(order.finish_by - datetime.now(UTC) + self._margin))
        try:
            return BackendCall(self._link().start(variant, argument))
        except ModalTrouble as trouble:
            job = f"job {order.job_id}"
            error = self._refusal(trouble, f"{job} was not started", unknown=f"whether {job} was started is not known")
        raise error

    def poll(self, call: BackendCall) -> CallState:
        """Ask how the call stands; at most 50 calls are asked about at once, others wait for their turn.

        Raises:
            BackendError: Modal does not say; nothing is known to have changed.
        """
        try:
            answer = self._link().poll(call.id)
        except ModalTrouble as trouble:
            state = state_of(trouble.error, secret=self._secret)
            trouble.sent = False  # a question changes nothing
            error = self._refusal(trouble, f"the state of call {call.id} is not known")
        else:
            return _read(answer)
        if state is None:
            raise error
        return state

    def cancel(self, call: BackendCall) -> None:
        """Tell the call to stop; again after ``cancel_grace``, and its container is taken away.

        Raises:
            BackendError: Modal does not answer, or refuses.
        """
        try:
            self._link().cancel(call.id)
        except ModalTrouble as trouble:
            error = self._refusal(trouble, f"whether call {call.id} was cancelled is not known")
            ended = state_of(trouble.error) is not None or error.code == "modal.conflict"
        else:
            return
        if not ended:
            raise error

    def close(self) -> None:
        """Close this process's client. Renders go on."""
        self._closed = True
        with self._lock():
            link = self._links.pop(os.getpid(), None)
        if link is not None:
            link.close()

    # --- the process's own

    def _lock(self) -> threading.Lock:
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def _link(self) -> ModalLink:
        process = os.getpid()
        if (found := self._links.get(process)) is not None:
            return found
        with self._lock():
            if self._closed:
                raise BackendError("the backend is closed", retryable=True, code="backend.closed")
            if process not in self._links:
                self._links[process] = ModalLink(
                    self._target,
                    connect_s=self._connect_s,
                    answer_s=self._answer_s,
                    cancel_grace_s=self._cancel_grace_s,
                )
            return self._links[process]

    @property
    def _secret(self) -> str | None:
        return self._target.token_secret or os.environ.get("MODAL_TOKEN_SECRET")

    def _refusal(self, trouble: ModalTrouble, what: str, *, unknown: str | None = None) -> BackendError:
        error = refusal(trouble.error, what, sent=trouble.sent, unknown=unknown, secret=self._secret)
        if error.code != "modal.not-deployed":
            return error
        target = self._target
        where = "" if target.environment is None else f" in the environment {target.environment!r}"
        where += "" if target.version is None else f", version {target.version}"
        step = how_to_deploy(target.app, environment=target.environment, version=target.version)
        return BackendError(
            f"{what}: Modal has no function {target.function!r} in a deployed app {target.app!r}{where}; {step}",
            retryable=False,
            code=error.code,
        )


def timeout_s(needed: timedelta) -> int:
    """Return the least of `TIMEOUT_STEPS_S` that covers what is needed, or the greatest."""
    seconds = needed.total_seconds()
    for step in TIMEOUT_STEPS_S:
        if step >= seconds:
            return step
    return TIMEOUT_STEPS_S[-1]


def _read(answer: object) -> CallState:
    """Read what the function returned; anything but a `CallAnswer` is an error of the deployment."""
    if not isinstance(answer, str):
        return _unreadable(f"the function returned no JSON but {type(answer).__name__}")
    try:
        read = CallAnswer.model_validate_json(answer)
    except ValidationError:
        return _unreadable("the function returned something that is no CallAnswer")
    if read.outcome is None and read.error is None:
        return _unreadable(f"the function returned an answer without an outcome (protocol {read.protocol})")
    return CallState(status=CallStatus.ENDED, outcome=read.outcome, error=read.error)


def _unreadable(what: str) -> CallState:
    message = f"{what}; this service speaks protocol {PROTOCOL}: {DEPLOY}"
    _log.warning("%s", message)
    error = JobError(code="modal.answer", message=message, fault=FaultDomain.REQUEST)
    return CallState(status=CallStatus.ENDED, error=error)
