"""What tests of `ModalBackend` deploy: a render function that also misbehaves as the order's params say."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
import types

import modal

app = modal.App("test-renders")


class UnpicklableError(Exception):
    """Cannot be sent: it holds a lock."""

    def __init__(self) -> None:
        super().__init__("no such star")
        self.lock = threading.Lock()


def far_away_error() -> Exception:
    """Return an exception of a class that only this process can import."""
    module = types.ModuleType("far_away")
    kind: type[Exception] = type("FarAwayError", (Exception,), {"__module__": "far_away"})
    vars(module)["FarAwayError"] = kind
    sys.modules["far_away"] = module
    return kind("no such moon")


def _render_another(order: str) -> str:
    """Have an order rendered from in here, as a scheduled worker does; answer with what became of it."""
    from renderdispatch.backends.modal import ModalBackend
    from renderdispatch.messages import CallResult, EventReply, RenderOrder
    from renderdispatch.protocols import CallStatus

    read = RenderOrder.model_validate_json(order)
    backend = ModalBackend("test-renders")
    call = backend.start(read.model_copy(update={"params": {"quirk": "newer"}}), on_event=lambda _: EventReply())
    while (state := backend.poll(call)).status is CallStatus.RUNNING:
        time.sleep(0.02)
    backend.close()
    return CallResult(error=state.error).model_dump_json()


@app.function(retries=0, max_containers=4, timeout=300)
def render(order: str) -> object:
    """Carry out the order, unless its params ask for something else."""
    from renderdispatch.runner.container import carry_out

    asked = json.loads(order)
    match asked["params"].get("quirk"):
        case None:
            place = "renderdispatch.testing.renderers"
            scenes = {"fake": f"{place}:FakeRenderer", "fake-segments": f"{place}:FakeSegmentsRenderer"}
            return carry_out(order, call_id=modal.current_function_call_id(), renderers=scenes)
        case "timeout":
            raise TimeoutError
        case "timeout with words":
            raise TimeoutError("the scene was late")
        case "value":
            raise ValueError("see https://bucket.example/key?X-Amz-Signature=abc")
        case "exit":
            raise SystemExit(3)
        case "unpicklable":
            raise UnpicklableError
        case "far away":
            raise far_away_error()
        case "number":
            return 17
        case "no json":
            return "done"
        case "older":
            return json.dumps({"protocol": 0, "videoKey": "video.mp4"})
        case "newer":
            error = {"code": "x.y", "message": "said", "fault": "scene", "colour": "red"}
            return json.dumps({"protocol": 99, "error": error, "mood": "good"})
        case "sleep":
            print(asked["jobId"], flush=True)
            time.sleep(600)
        case "nested":
            return _render_another(order)
        case "stubborn":
            said = False
            while True:
                with contextlib.suppress(BaseException):
                    if not said:  # whoever hears it may cancel at once
                        said = True
                        print(asked["jobId"], flush=True)
                    time.sleep(600)
    return None
