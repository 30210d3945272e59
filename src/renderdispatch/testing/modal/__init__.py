"""How do you test an application that renders on Modal, without Modal?

By a control plane on loopback. The real Modal client talks to it, the real ``modal deploy`` deploys to it, and the real
container entry point runs your functions, each container as a process. What goes wrong on the real service goes wrong
here on request: a lost response, a crash, a preemption, a timeout, an expired result, a second copy of the same input,
a cancel that has no effect. Nothing leaves this machine, and you need no account.

Deploy, call, and see what happened::

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

To have one for a test, name `renderdispatch.testing.fixtures` in ``pytest_plugins`` and use the fixture
``loopback_modal``: ``os.environ`` then points every Modal client at it.

Its limits: it builds no images (`LoopbackModal.image_layers` lists the layers that were requested; ``ENV`` lines and
local files take effect), has no GPUs, and limits neither CPU nor startup time. Containers share this machine's Python
environment and file system. A function's hard memory limit kills it (on Linux). Where Modal's documentation says
nothing, its behaviour is assumed: a running call that is cancelled ends when its container says so, and a function that
does not stop is interrupted after 30 s and killed 60 s later, as after a timeout. Modal's protocol is private and
changes: this was tested with modal 1.5.0 and 1.6.4, and leaves out the fields that a version's messages lack.
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
