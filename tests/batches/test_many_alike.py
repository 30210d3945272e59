"""Are rows that are alike read as if each came alone?"""

from __future__ import annotations

import re
from functools import partial
from itertools import permutations
from typing import Any

import pytest

from renderdispatch import JobHandle, Limits, Output, RenderService, StorageKey, Submission
from renderdispatch.backends.inline import InlineBackend
from renderdispatch.errors import InvalidRequestError
from renderdispatch.messages import RenderRequest
from renderdispatch.storage.memory import MemoryStorage
from renderdispatch.stores.memory import MemoryJobStore
from renderdispatch.testing import FakeRenderer

_OPTIONS: list[dict[str, Any]] = [
    {},
    {"title": "a song"},
    {"start": 1},
    {"start": True},
    {"params": {"frames": 3}},
    {"params": {"frames": 4}, "metadata": {"order": 7}},
    {"output": Output(width=640, height=360), "limits": Limits(max_attempts=1)},
    {"output": "no-such-preset"},
    {"cover": StorageKey("cover")},
]


@pytest.mark.parametrize("seed", range(6))
def test_each_row_has_the_record_that_submit_gives(service: RenderService, storage: MemoryStorage, seed: int) -> None:
    """Request and fingerprint of a row are those of a single submit, whatever the rows before it were."""
    for key in ("one", "two"):
        storage.put(key, b"RIFF")
    storage.put("cover", b"\x89PNG\r\n\x1a\n, a picture")
    mixed = list(list(permutations(_OPTIONS[:4]))[seed * 4]) + _OPTIONS[4:] + _OPTIONS[:2]
    rows = [Submission(StorageKey(key), scene="fake", **options) for options in mixed for key in ("one", "two", "one")]
    made = service.submit_many(rows)
    for row, result in zip(rows, made.rows, strict=True):
        own = {field: getattr(row, field) for field in ("title", "start", "params", "metadata", "output", "limits")}
        submit = partial(service.submit, row.audio, scene="fake", cover=row.cover, **own)
        if not isinstance(result, JobHandle):
            with pytest.raises(InvalidRequestError, match=re.escape(str(result))):
                submit()
            continue
        alone = submit()
        assert (result.job.request, result.job.fingerprint) == (alone.job.request, alone.job.fingerprint)


def test_a_route_chooses_for_each_row(storage: MemoryStorage) -> None:
    """Rows that are alike may still go to different backends."""
    backends = {name: InlineBackend({"fake": FakeRenderer()}) for name in ("a", "b")}
    turns = iter("abab")

    def route(_request: RenderRequest) -> str:
        return next(turns)

    with RenderService(MemoryJobStore(), storage, backends, route=route, worker=False) as service:
        made = service.submit_many([Submission(b"RIFF", scene="fake")] * 4)
        assert [handle.job.request.backend for handle in made.handles] == ["a", "b", "a", "b"]
