"""What becomes of an order in a container, and what is left of it when the platform takes the container away?"""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Final

import pytest

from renderdispatch.messages import (
    PROTOCOL,
    Callback,
    CallResult,
    Completed,
    Failed,
    FaultDomain,
    Grants,
    Helped,
    HelperOrder,
    Pieces,
    RenderOrder,
)
from renderdispatch.plumbing.pieces import names
from renderdispatch.plumbing.stop import Stop
from renderdispatch.runner.container import carry_out
from renderdispatch.runner.run import RunLeft
from renderdispatch.testing import eventually
from renderdispatch.testing.renderers import fake_digest, make_plan
from tests.support.containers import RENDERERS, Objects, marked, read, serve_objects
from tests.support.lengths import lengths

SECONDS: Final = 10.0
"""How soon nothing may be left."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")


class Cancelled(BaseException):
    """As Modal's InputCancellation: thrown into the main thread by a signal handler."""


@pytest.fixture
def store() -> Iterator[Objects]:
    with serve_objects() as store:
        yield store


@contextmanager
def thrown_in() -> Iterator[Callable[[], None]]:
    """Yield what throws `Cancelled` into the main thread, wherever that stands; once."""
    armed = True

    def throw(_signal: int, _frame: FrameType | None) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Cancelled

    before = signal.signal(signal.SIGUSR1, throw)
    try:
        yield lambda: os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        armed = False
        signal.signal(signal.SIGUSR1, before)


def nothing_is_left(scratch: Path) -> bool:
    return not marked(str(scratch)) and not list(scratch.iterdir())


# --- what goes in, and what comes out ----------------------------------------------------------------


def test_an_order_is_carried_out(store: Objects, scratch: Path) -> None:
    """The video is uploaded, then the result object; the answer is the same outcome, and nothing is left here."""
    outcome = read(carry_out(store.order().model_dump_json(), call_id="call-1", renderers=RENDERERS))
    assert isinstance(outcome, Completed)
    assert store.objects["video"] == b"a video of nothing"
    assert Completed.model_validate_json(store.objects["result"]) == outcome
    assert nothing_is_left(scratch)


def helper_order(store: Objects, *, segments: int = 4, **params: float) -> str:
    """Return the order of a helper whose plan is kept, as JSON."""
    grants = Grants(
        get={name: f"{store.root}/pieces/{name}" for name in names(8)},
        put={name: f"{store.root}/pieces/{name}" for name in names(8, 2)},
        headers={"if-none-match": "*"},
    )
    store.objects["grants"] = gzip.compress(grants.model_dump_json().encode())
    store.objects["pieces/plan.0"] = make_plan(fake_digest(segments))
    lead = store.order(scene="fake-segments", params={"segments": segments, **params})
    shared = {name: getattr(lead, name) for name in HelperOrder.model_fields if name in RenderOrder.model_fields}
    own = {
        "pieces": Pieces(slots=8, grants=f"{store.root}/grants"),
        "share": 1,
        "parallel": 2,
        "stop": f"{store.root}/stop",
        "result": f"{store.root}/result",
    }
    order = HelperOrder(**{**shared, **own})
    return order.model_dump_json()


def test_a_helper_is_carried_out(store: Objects, scratch: Path) -> None:
    """Its segments are uploaded, it has no outcome and no error, and nothing is left here."""
    answer = CallResult.model_validate_json(carry_out(helper_order(store), renderers=RENDERERS))
    assert (answer.outcome, answer.error) == (None, None)
    assert answer.helped == Helped(segments=4, reason="all segments are drawn")
    assert {key for key in store.objects if key.startswith("pieces/0")} == {f"pieces/{n:03d}.0" for n in range(4)}
    assert nothing_is_left(scratch)


def test_a_cancel_ends_a_helper(store: Objects, scratch: Path) -> None:
    """What the platform throws in passes, and nothing is left here."""
    order = helper_order(store, segment_s=0.2, segments=8)
    with thrown_in() as throw:

        def cancel() -> None:
            eventually(lambda: "pieces/001.0" in store.objects)
            throw()

        thread = threading.Thread(target=cancel)
        thread.start()
        with pytest.raises(Cancelled):
            carry_out(order, renderers=RENDERERS)
        thread.join()
    assert "pieces/006.0" not in store.objects
    eventually(lambda: nothing_is_left(scratch))


def test_a_scene_that_raises_is_an_answer(store: Objects, scratch: Path) -> None:
    """Whatever the renderer raises is a failure that says whose fault it is."""
    order = store.order(params={"fail": "a mistake in the scene"})
    outcome = read(carry_out(order.model_dump_json(), renderers=RENDERERS))
    assert isinstance(outcome, Failed)
    assert (outcome.error.fault, outcome.error.message) == (FaultDomain.SCENE, "a mistake in the scene")
    assert nothing_is_left(scratch)


def test_a_renderer_that_cannot_be_imported_is_an_answer(store: Objects, scratch: Path) -> None:
    """A wrong name in ``renderers`` fails the job, and says which."""
    outcome = read(carry_out(store.order().model_dump_json(), renderers={"fake": "no_such_module:Nothing"}))
    assert isinstance(outcome, Failed)
    assert "no_such_module:Nothing" in outcome.error.message


def test_an_order_from_another_version_is_carried_out(store: Objects, scratch: Path) -> None:
    """Of the version before, without what is new since, and of a newer one with fields that nobody here knows."""
    order = json.loads(store.order().model_dump_json())
    older = {name: value for name, value in order.items() if name not in {"gpu", "trace"}} | {"protocol": PROTOCOL - 1}
    assert isinstance(read(carry_out(json.dumps(older), renderers=RENDERERS)), Completed)
    newer = order | {"protocol": PROTOCOL + 1, "unheardOf": {"x": 1}}
    assert isinstance(read(carry_out(json.dumps(newer), renderers=RENDERERS)), Completed)


@pytest.mark.parametrize(
    "order",
    ["", "nonsense", "null", "[]", "{}", '{"protocol": 1}', "\ud800", "[" * 100_000, None, b"\xff", 7],
    ids=["empty", "nonsense", "null", "list", "object", "half", "surrogate", "deep", "None", "bytes", "int"],
)
def test_an_order_that_cannot_be_read_is_an_answer(order: str) -> None:
    """Never an exception; trying again makes no sense."""
    answer = CallResult.model_validate_json(carry_out(order))
    assert answer.outcome is None
    assert answer.error is not None
    assert (answer.error.code, answer.error.fault) == ("order.invalid", FaultDomain.REQUEST)


def test_an_unreadable_order_of_a_newer_service_says_what_to_do(store: Objects) -> None:
    """And quotes nothing of what it held."""
    order = json.loads(store.order().model_dump_json()) | {"protocol": PROTOCOL + 1, "attempt": "SECRET"}
    error = CallResult.model_validate_json(carry_out(json.dumps(order))).error
    assert error is not None
    assert "attempt" in error.message
    assert "deploy" in error.message
    assert "SECRET" not in error.message


def test_an_order_from_afar_names_no_file(store: Objects, scratch: Path, tmp_path: Path) -> None:
    """Even one that claims to be local gets at no file of the container."""
    (tmp_path / "song").write_bytes(b"mine")
    order = store.order(audio_url=(tmp_path / "song").as_uri(), audio_size=4, local=True)
    outcome = read(carry_out(order.model_dump_json(), renderers=RENDERERS))
    assert isinstance(outcome, Failed)
    assert outcome.error.code == "order.local-url"


def test_it_gives_up_before_the_platform_does(store: Objects, scratch: Path) -> None:
    """Where the platform's timeout is known and comes before the order's deadline, the run ends by itself."""
    order = store.order(params={"frames": 100_000, "frame_s": 0.01})
    outcome = read(carry_out(order.model_dump_json(), renderers=RENDERERS, timeout=timedelta(seconds=4)))
    assert isinstance(outcome, Failed)
    assert outcome.error.fault is FaultDomain.DEADLINE
    assert nothing_is_left(scratch)


def test_a_container_without_a_disk_answers(store: Objects, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no file can be written, that is what the answer says."""
    scratch.rmdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    answer = CallResult.model_validate_json(carry_out(store.order().model_dump_json(), renderers=RENDERERS))
    assert answer.error is not None
    assert answer.error.fault is FaultDomain.INFRASTRUCTURE


# --- what the platform throws in -----------------------------------------------------------------------

SLOW = {"frames": 100_000, "frame_s": 0.01}


@pytest.mark.parametrize("stage", ["downloading", "rendering", "uploading", "reporting", "checking-in"])
def test_a_cancel_ends_everything(store: Objects, scratch: Path, stage: str) -> None:
    """Wherever the run stands and however silent the network is: it passes, and soon nothing is left."""
    order = store.order()
    match stage:
        case "downloading":
            store.stalled = {"song"}
        case "rendering":
            order = store.order(params=SLOW)
        case "uploading":
            store.stalled = {"video"}
        case "reporting":
            store.stalled = {"result"}
        case "checking-in":
            order = store.order(callback=Callback(url=f"{store.root}/webhook", key="whsec_" + "A" * 43 + "="))

    def reached() -> bool:
        return store.met.is_set() if stage != "rendering" else len(marked(str(scratch))) > 1

    with thrown_in() as throw:

        def cancel() -> None:
            eventually(reached)
            throw()

        canceller = threading.Thread(target=cancel)
        canceller.start()
        began = time.monotonic()
        with pytest.raises(Cancelled):
            carry_out(order.model_dump_json(), renderers=RENDERERS)
        assert time.monotonic() - began < 30 + SECONDS
        canceller.join()
    assert nothing_is_left(scratch)
    assert "result" not in store.objects


def test_a_cancelled_run_reports_no_end(store: Objects, scratch: Path) -> None:
    """A preempted attempt starts again: what it said last must not be "failed"."""
    heard: list[str] = []
    with thrown_in() as throw:
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                heard.append(body["type"])
                if body.get("stage") == "rendering":
                    throw()
                self.send_response(200)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            callback = Callback(url=f"http://127.0.0.1:{server.server_address[1]}/", key="whsec_" + "A" * 43 + "=")
            order = store.order(params=SLOW, callback=callback)
            with pytest.raises(Cancelled):
                carry_out(order.model_dump_json(), call_id="call-1", renderers=RENDERERS)
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
    assert heard[0] == "checked-in"
    assert set(heard) <= {"checked-in", "progressed"}
    assert nothing_is_left(scratch)


def cancel_at_random(store: Objects, scratch: Path, times: int, seed: int) -> None:
    """Carry orders out and cancel each at a random moment; nothing may be left of any."""
    dice = random.Random(seed)
    cancelled = 0
    for _ in range(times):
        store.objects = {"song": store.objects["song"]}
        order = store.order(params={"frames": 100, "frame_s": 0.01}).model_dump_json()
        delay_s = dice.choice([dice.uniform(0, 0.01), dice.uniform(0, 1.2)])
        with thrown_in() as throw:
            timer = threading.Timer(delay_s, throw)
            try:
                timer.start()
                carry_out(order, renderers=RENDERERS)
                timer.join()
            except Cancelled:
                cancelled += 1
            timer.join()
        assert nothing_is_left(scratch), f"seed {seed}, after {delay_s} s: {list(scratch.iterdir())}"
    assert cancelled > times // 4  # nine in ten on average: a render takes a second and more


@pytest.mark.parametrize("times", lengths(12, long=40, soak=400, timeout_s=1800))
def test_a_cancel_at_any_moment_leaves_nothing(store: Objects, scratch: Path, times: int, seed: int) -> None:
    """No process, no file: what is thrown in may hit any instruction."""
    cancel_at_random(store, scratch, times=times, seed=seed)


def cleans_up(frame: FrameType | None) -> bool:
    """Whether a thread stands where `carry_out` waits until its run has cleaned up."""
    while frame is not None:
        if frame.f_code.co_name == "_leave":
            return "until" in frame.f_locals  # not before its first step
        frame = frame.f_back
    return False


def test_a_second_signal_changes_nothing(store: Objects, scratch: Path) -> None:
    """While a run cleans up, whatever else is thrown in waits; the first one is what passes."""

    class Again(BaseException):
        pass

    thrown = 0

    def throw(_signal: int, frame: FrameType | None) -> None:
        nonlocal thrown
        if not thrown or cleans_up(frame):
            thrown += 1
            raise Cancelled if thrown == 1 else Again

    def shower() -> None:
        eventually(lambda: len(marked(str(scratch))) > 1)
        while thrown < 5 and not over.wait(0.005):
            os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, throw)
    try:
        for _ in range(50):  # a run may have cleaned up before the second signal comes
            thrown, over = 0, threading.Event()
            thread = threading.Thread(target=shower)
            thread.start()
            with pytest.raises(Cancelled):
                carry_out(store.order(params=SLOW).model_dump_json(), renderers=RENDERERS)
            over.set()
            thread.join()
            assert nothing_is_left(scratch)
            if thrown > 1:
                break
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert thrown > 1


def test_what_is_thrown_into_a_request_leaves_no_lock_behind() -> None:
    """However often that happens, a run can be told to leave again: nobody waits for a lock that nobody will release."""
    stop = Stop(error=RunLeft)
    child = Stop(parent=stop)
    armed = False
    over = threading.Event()

    def throw(_signal: int, _frame: FrameType | None) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Cancelled

    def shower() -> None:
        while not over.wait(0.0005):
            os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, throw)
    thread = threading.Thread(target=shower)
    thread.start()
    try:
        for _ in range(500):
            with pytest.raises(Cancelled):
                armed = True
                while True:
                    stop.request("the platform takes the run away")
            stop.request("the platform takes the run away")
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    with pytest.raises(RunLeft):
        child.check()
