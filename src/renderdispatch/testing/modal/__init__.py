"""How do you test an application that renders on Modal, without Modal?

With a control plane on loopback. The real Modal client talks to it, the real ``modal deploy`` deploys to it, and
the real container entry point runs your functions, each container a process of its own. What goes wrong on the
real service goes wrong here on request: a lost answer, a crash, a preemption, a timeout, an expired result, a
second copy of the same input, a cancel that nobody obeys. Nothing leaves this machine, and no account is needed.

Deploy, call, look at what happened::

    from renderdispatch.testing.modal import CallStatus, LoopbackModal

    with LoopbackModal() as server:
        server.deploy("my_app")                          # the real `modal deploy -m my_app`
        function = server.function_handle("my-app", "work")
        call = function.spawn("hello")
        server.preempt(call.object_id)                   # once it runs: the same input starts again
        assert call.get(timeout=30) == "HELLO"
        record = server.call(call.object_id)
        assert record.status is CallStatus.SUCCEEDED
        assert [start.kind for start in record.starts] == ["first", "restart"]

Name `renderdispatch.testing.fixtures` in ``pytest_plugins`` and take the fixture ``loopback_modal`` to have one for
a test, with ``os.environ`` pointing every Modal client at it.

What it does not do: it builds no images (`LoopbackModal.image_layers` says what was asked for; ``ENV`` lines and
local files are honoured), has no GPUs, sets no limit on CPU and no startup timeout, and containers share this
machine's Python environment and file system; a function's hard memory limit kills (on Linux). How Modal itself behaves
where its documentation is silent is assumed: a running call that is cancelled ends when its container says so, and a
function that does not stop is interrupted 30 s and killed 60 s later, as after a timeout. Modal's protocol is private
and moves: this was tested with modal 1.5.0 and 1.6.4, and what a version's messages lack is left out.
"""

from __future__ import annotations

from renderdispatch.errors import MissingExtraError

try:
    import modal  # noqa: F401 - modal_proto cannot be imported before it
except ImportError:
    raise MissingExtraError.of("renderdispatch.testing.modal", "modal") from None

from renderdispatch.testing.modal.faults import Fault, ModalFaults
from renderdispatch.testing.modal.records import (
    CallStatus,
    ImageLayer,
    ModalCall,
    ModalContainer,
    ModalFunction,
    ModalStart,
)
from renderdispatch.testing.modal.server import DeployFailedError, LoopbackModal

__all__ = [
    "CallStatus",
    "DeployFailedError",
    "Fault",
    "ImageLayer",
    "LoopbackModal",
    "ModalCall",
    "ModalContainer",
    "ModalFaults",
    "ModalFunction",
    "ModalStart",
]
