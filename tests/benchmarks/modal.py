"""How long does `ModalBackend.start` take, next to the client's bare `spawn`?

``python tests/benchmarks/modal.py [--quick]``. Both ask the same loopback Modal, in a process of its own that starts
no containers; they take turns, each from one thread and from sixteen. What `start` does on top: it writes the order
as JSON, finds the bound function, and waits on an event loop of its own, so that it can give up. The last line is
JSON: the ratios of the times a start takes, ``start_vs_spawn_1`` and ``start_vs_spawn_16``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from renderdispatch.messages import EventReply, RenderOrder
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.testing.renderers import make_order

_APP = "benchmark"
_BLOCK = 160
_DEPLOYED = f"""
import modal

app = modal.App({_APP!r})


@app.function(timeout=900)
def render(order: str) -> str:
    return order
"""


def serve() -> None:
    """Run a loopback Modal until standard input ends; the first line says where it is.

    Each line of input has it give up the calls that it queued, for the queue's length costs it time.
    """
    from renderdispatch.testing.modal import LoopbackModal

    with LoopbackModal(max_containers=0) as server, tempfile.TemporaryDirectory() as name:
        (Path(name) / "deployed.py").write_text(_DEPLOYED)
        server.deploy("deployed", cwd=Path(name))
        print(json.dumps(server.environment()), flush=True)
        for _ in sys.stdin:
            for call in server.calls:
                if not call.status.ended:
                    server.lose(call.id)
            print("empty", flush=True)


@contextmanager
def served() -> Iterator[Callable[[], None]]:
    """Have a loopback Modal for as long as the block runs, and this process's Modal configuration name it.

    What comes with it empties its queue.
    """
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            os.environ.update(json.loads(process.stdout.readline()))
            asked, said = process.stdin, process.stdout

            def empty() -> None:
                asked.write("\n")
                asked.flush()
                said.readline()

            yield empty
        finally:
            process.stdin.close()


def block(start: Callable[[], object], *, threads: int, calls: int) -> float:
    """Return the seconds that one of ``calls`` starts takes, shared out among ``threads``."""
    barrier = threading.Barrier(threads + 1)

    def run(_: int) -> None:
        barrier.wait()
        for _ in range(calls // threads):
            start()

    with ThreadPoolExecutor(threads) as pool:
        done = [pool.submit(run, n) for n in range(threads)]
        barrier.wait()
        began = time.perf_counter()
        for one in done:
            one.result()
    return (time.perf_counter() - began) / (calls // threads * threads)


def long_order() -> RenderOrder:
    """Return an order with URLs as long as storage signs them: about 4 KiB of JSON."""
    order = make_order(MemoryStorage())
    signature = f"https://account.r2.cloudflarestorage.com/bucket/key?X-Amz-Signature={'0' * 500}"
    return order.model_copy(update={"audio_url": signature, "params": {"text": "x" * 2000}})


def measure(rounds: int, empty: Callable[[], None]) -> dict[int, tuple[float, float]]:
    """Return the median seconds of a start and of a spawn, by the number of threads."""
    import modal

    from renderdispatch.backends.modal import ModalBackend

    order = long_order()
    text = order.model_dump_json()
    backend = ModalBackend(_APP)
    function = modal.Function.from_name(_APP, "render").with_options(timeout=7200)

    def start() -> object:
        return backend.start(order, on_event=lambda _event: EventReply())

    def spawn() -> object:
        return function.spawn(text)

    medians = {}
    for threads in (1, 16):
        times: dict[Callable[[], object], list[float]] = {start: [], spawn: []}
        for one in times:
            block(one, threads=threads, calls=_BLOCK)
            empty()
        for n in range(rounds):
            for one in (start, spawn) if n % 2 else (spawn, start):
                times[one].append(block(one, threads=threads, calls=_BLOCK))
                empty()
        medians[threads] = (statistics.median(times[start]), statistics.median(times[spawn]))
    backend.close()
    return medians


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="some seconds; for tests")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    here = Path(__file__).resolve().parent  # this file has the name of the client
    sys.path = [place for place in sys.path if Path(place).resolve() != here]
    if options.serve:
        serve()
        return
    with served() as empty:
        medians = measure(9 if options.quick else 30, empty)
    for threads, (start_s, spawn_s) in medians.items():
        print(f"{threads:2} threads: start {start_s * 1e6:.0f} us, bare spawn {spawn_s * 1e6:.0f} us")
    print(json.dumps({f"start_vs_spawn_{n}": round(start / spawn, 2) for n, (start, spawn) in medians.items()}))


if __name__ == "__main__":
    main()
