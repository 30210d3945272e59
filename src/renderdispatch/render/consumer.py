"""How does a second thread take over items, in order, without being overrun?"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
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

    def __init__(self, consume: Callable[[T], object], *, ahead: int) -> None:
        self._consume = consume
        self._ahead = ahead
        self._unfinished: deque[Future[object]] = deque()
        self._thread = ThreadPoolExecutor(1, "renderdispatch-consumer")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._thread.shutdown(cancel_futures=error is not None)
        if error is None:
            for item in self._unfinished:
                item.result()

    def put(self, item: T) -> None:
        """Pass an item on; wait while too many are waiting."""
        if len(self._unfinished) > self._ahead:
            self._unfinished.popleft().result()
        self._unfinished.append(self._thread.submit(self._consume, item))
