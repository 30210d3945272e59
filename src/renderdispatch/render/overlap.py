"""How do drawing and encoding run at the same time?

The caller draws, and another thread encodes. Few items wait between them, so that memory is bounded.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import Queue
from threading import Thread
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Consumer(Generic[T]):
    """Passes items to ``consume`` in another thread, in order.

    The end of the ``with`` block waits for this thread, which consumes all items first; if the block raised, it drops
    those that wait. An error of ``consume`` is raised by a later `put`, or at the end.

    Args:
        consume: Called in the other thread, with one item after the other.
        ahead: How many items may wait while one is consumed.
    """

    def __init__(self, consume: Callable[[T], None], *, ahead: int) -> None:
        self._consume = consume
        self._waiting: Queue[T | None] = Queue(ahead)
        self._failure: BaseException | None = None
        self._dropping = False
        self._thread = Thread(target=self._run, name="renderdispatch-encoder", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._dropping = self._dropping or error is not None
        self._waiting.put(None)
        self._thread.join()
        if error is None and self._failure is not None:
            raise self._failure

    def put(self, item: T) -> None:
        """Pass an item on; wait while too many are waiting."""
        self._waiting.put(item)
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        # After a failure, items are still taken, so that the caller never waits forever.
        while (item := self._waiting.get()) is not None:
            if not self._dropping:
                try:
                    self._consume(item)
                except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                    self._failure, self._dropping = error, True
