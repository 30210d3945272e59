"""How is an order rendered on Modal?

By a call of a deployed function (`renderdispatch.modal_app`), spawned with the order as JSON: only strings cross. The
function reports to the order's callback, and returns a `CallResult`.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from datetime import UTC, datetime, timedelta
from typing import Final

from pydantic import ValidationError

from renderdispatch.backends.modal_client import ModalTrouble, Target, Variant
from renderdispatch.backends.modal_faults import DEPLOY, how_to_deploy, refusal, state_of
from renderdispatch.backends.modal_link import ModalLink
from renderdispatch.errors import BackendError, ConfigurationError, MissingExtraError
from renderdispatch.messages import (
    MAX_ORDER_BYTES,
    PROTOCOL,
    CallResult,
    FaultDomain,
    HelperOrder,
    JobError,
    RenderOrder,
)
from renderdispatch.plumbing.per_process import PerProcess
from renderdispatch.protocols import BackendCall, CallState, CallStatus, Locality, OnEvent
from renderdispatch.runner.renderers import check_scene_file

_log: Final = logging.getLogger("renderdispatch.backends.modal")

TIMEOUT_STEPS_S: Final[tuple[int, ...]] = (*(900 * 2**step for step in range(7)), 86_400)
"""The timeouts that functions are given: 15 and 30 minutes, 1, 2, 4, 8, 16 and 24 hours. Calls with different options
run in different containers, so with few steps they share warm ones. Modal's own limit is 24 hours."""


class ModalBackend:
    """Renders on Modal. Opens nothing before its first use; safe to share between threads, and across forks.

    Args:
        app: The deployed app.
        function: The function in it; it takes a `RenderOrder` or `HelperOrder` and returns a `CallResult`, as JSON.
        environment: Modal's environment; None is the one that Modal's own configuration names.
        version: The only deployed version of the app to use; None is the newest.
        gpu: The kind of GPU for orders that name none, such as ``"L4"``; None leaves the one that was deployed.
        token_id: Of a Modal token; None takes it and ``token_secret`` from Modal's own configuration
            (``MODAL_TOKEN_ID`` and ``MODAL_TOKEN_SECRET``, or ``~/.modal.toml``).
        token_secret: Goes with ``token_id``.
        timeout_margin: How long a run may go on after the order's ``finish_by`` before Modal ends it; the sum is
            rounded up to one of `TIMEOUT_STEPS_S`. A run keeps its deadline itself; Modal's timeout ends runs that do
            not.
        connect_timeout: How long connecting and looking the function up may take.
        answer_timeout: How long Modal may take to respond, once connected.
        cancel_grace: How long a call has to obey a cancel. A call that is cancelled again later has its container taken
            away; a container renders one order at a time.
        device_class: What NumPy's scenes are drawn on there, such as ``cpu-x86-64``; None if it is not sure. A run that
            finds another device fails with ``device.mismatch``.

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
        device_class: str | None = None,
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
            connect_s=connect_timeout.total_seconds(),
            answer_s=answer_timeout.total_seconds(),
            cancel_grace_s=cancel_grace.total_seconds(),
        )
        self.device_class = device_class
        self._gpu = gpu
        self._margin = timeout_margin
        self._closed = False
        self._links = PerProcess(self._open)

    def __repr__(self) -> str:
        target = self._target
        where = "" if target.environment is None else f", environment={target.environment!r}"
        where += "" if target.version is None else f", version={target.version!r}"
        where += "" if self._gpu is None else f", gpu={self._gpu!r}"
        return f"ModalBackend({target.app!r}, {target.function!r}{where})"

    def start(self, order: RenderOrder, *, on_event: OnEvent) -> BackendCall:
        """Spawn the function, by one request after the first start. ``on_event`` is ignored: runs use the webhook.

        Raises:
            BackendError: The order is over 8 KiB, the function is not deployed, or Modal refuses or does not respond.
                A request without a response has an unknown outcome.
        """
        del on_event
        return self._spawn(order)

    def start_helper(self, order: HelperOrder) -> BackendCall:
        """Spawn the same function with the order of a helper. Raises what `start` raises."""
        return self._spawn(order)

    def _spawn(self, order: RenderOrder | HelperOrder) -> BackendCall:
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
            return BackendCall(self._links.get().start(variant, argument))
        except ModalTrouble as trouble:
            job = f"job {order.job_id}"
            unknown = f"whether {job} was started is not known"
            raise self._refusal(trouble, f"{job} was not started", unknown=unknown) from None

    def check_scene_file(self, text: str, *, name: str) -> None:
        """Raise `InvalidRequestError` for a scene file that can never be drawn; its text needs nothing from there."""
        check_scene_file(text, name=name)

    def poll(self, call: BackendCall) -> CallState:
        """Return the state of the call. At most 50 polls are sent at once; the others wait for their turn.

        Raises:
            BackendError: Modal does not say.
        """
        try:
            return _read(self._links.get().poll(call.id))
        except ModalTrouble as trouble:
            if (state := state_of(trouble.error, secret=self._secret)) is not None:
                return state
            trouble.sent = False  # a poll changes nothing
            raise self._refusal(trouble, f"the state of call {call.id} is not known") from None

    def cancel(self, call: BackendCall) -> None:
        """Tell the call to stop. If it is cancelled again after ``cancel_grace``, its container is taken away.

        Raises:
            BackendError: Modal does not respond, or refuses.
        """
        try:
            self._links.get().cancel(call.id)
        except ModalTrouble as trouble:
            error = self._refusal(trouble, f"whether call {call.id} was cancelled is not known")
            if state_of(trouble.error) is None and error.code != "modal.conflict":
                raise error from None

    def close(self) -> None:
        """Close this process's client. Renders go on."""
        self._closed = True
        if (link := self._links.take()) is not None:
            link.close()

    def _open(self) -> ModalLink:
        if self._closed:
            raise BackendError("the backend is closed", retryable=True, code="backend.closed")
        return ModalLink(self._target)

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
    """Return the smallest of `TIMEOUT_STEPS_S` that covers what is needed, or else the greatest."""
    return next((step for step in TIMEOUT_STEPS_S if step >= needed.total_seconds()), TIMEOUT_STEPS_S[-1])


def _read(answer: object) -> CallState:
    """Read what the function returned. Anything but a `CallResult` is an error of the deployment."""
    if not isinstance(answer, str):
        return _unreadable(f"the function returned {type(answer).__name__} in place of JSON")
    try:
        read = CallResult.model_validate_json(answer)
    except ValidationError:
        return _unreadable("the function returned something that is not a CallResult")
    if read.outcome is None and read.error is None and read.helped is None:
        return _unreadable(f"the function returned an answer without an outcome (protocol {read.protocol})")
    return CallState(status=CallStatus.ENDED, outcome=read.outcome, error=read.error)


def _unreadable(what: str) -> CallState:
    message = f"{what}; this service speaks protocol {PROTOCOL}: {DEPLOY}"
    _log.warning("%s", message)
    error = JobError(code="modal.answer", message=message, fault=FaultDomain.REQUEST)
    return CallState(status=CallStatus.ENDED, error=error)
