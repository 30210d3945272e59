"""How long are calls to storage tried again?"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from attrs import define

from renderdispatch.errors import StorageUnavailableError
from renderdispatch.plumbing.s3 import S3, THROTTLED
from renderdispatch.plumbing.sigv4 import Endpoint
from renderdispatch.testing import FakeClock

_AWAY = "storage.unavailable"


@define
class _Tries:
    """Calls that take ``length_s`` each, and end as ``codes`` say: by an error of that code, or well at the end."""

    clock: FakeClock
    codes: list[str]
    length_s: float = 0
    made: int = 0

    def __call__(self) -> str:
        self.clock.advance(timedelta(seconds=self.length_s))
        self.made += 1
        if self.made > len(self.codes):
            return "answer"
        raise StorageUnavailableError("as told", code=self.codes[self.made - 1])


Tries = Callable[..., _Tries]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def tries(clock: FakeClock) -> Tries:
    return lambda codes, **options: _Tries(clock, codes, **options)


@pytest.fixture
def s3(clock: FakeClock) -> S3:
    """A bucket that nobody is asked for, in a time of its own."""

    def sleep(seconds: float) -> None:
        clock.advance(timedelta(seconds=seconds))

    endpoint = Endpoint(url="http://127.0.0.1:9", bucket="renders", access_key_id="id", secret_access_key="secret")
    return S3(endpoint, monotonic=lambda: clock().timestamp(), sleep=sleep)


@pytest.mark.parametrize("length_s", [0, 90], ids=["at-once", "after-90-s"])
def test_storage_that_is_away_is_tried_five_times(s3: S3, tries: Tries, length_s: float) -> None:
    """However long a try takes before it fails, as a large body does, four more follow."""
    call = tries([_AWAY] * 9, length_s=length_s)
    with pytest.raises(StorageUnavailableError):
        s3.retry(call)
    assert call.made == 5


def test_a_fifth_try_may_succeed(s3: S3, tries: Tries) -> None:
    """Four failures of a large body are no reason to give up."""
    assert s3.retry(tries([_AWAY] * 4, length_s=90)) == "answer"


def test_a_throttled_call_waits_for_a_minute(s3: S3, tries: Tries, clock: FakeClock) -> None:
    """A call that is told to slow down is repeated for a minute, and then given up."""
    began = clock()
    call = tries([THROTTLED] * 99)
    with pytest.raises(StorageUnavailableError):
        s3.retry(call)
    assert timedelta(seconds=50) < clock() - began <= timedelta(seconds=60)
    assert call.made > 5


def test_the_minute_begins_with_the_first_refusal(s3: S3, tries: Tries, clock: FakeClock) -> None:
    """A large body that is refused after more than a minute is sent again; a minute later it is given up."""
    assert s3.retry(tries([THROTTLED], length_s=90)) == "answer"
    call = tries([THROTTLED] * 9, length_s=90)
    with pytest.raises(StorageUnavailableError):
        s3.retry(call)
    assert call.made == 2


def test_a_refusal_is_no_failure(s3: S3, tries: Tries) -> None:
    """Storage that throttles is there: what fails after that has five tries of its own."""
    assert s3.retry(tries([*[THROTTLED] * 6, *[_AWAY] * 4])) == "answer"
