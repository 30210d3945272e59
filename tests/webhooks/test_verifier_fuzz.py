"""No bytes make the verifiers believe a forgery, or raise anything but their one error."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from renderdispatch.errors import WebhookVerificationError
from renderdispatch.webhooks import BearerVerifier
from tests.support import SUPPORT, forgeries
from tests.support.lengths import examples, lengths

quick = examples(1000)


class _Drawn:
    """Choices that Hypothesis makes, and simplifies when they lead to a failure."""

    def __init__(self, data: st.DataObject) -> None:
        self._draw: Callable[[st.SearchStrategy[Any]], Any] = data.draw

    def below(self, n: int) -> int:
        return int(self._draw(st.integers(0, n - 1)))

    def text(self) -> str:
        return str(self._draw(st.text(st.characters(), max_size=60)))

    def octets(self) -> bytes:
        return bytes(self._draw(st.binary(max_size=60)))


def _refuses_forgeries(data: st.DataObject) -> None:
    """A request with anything changed is refused, and by the one error."""
    forgeries.check(forgeries.forge(_Drawn(data)))


def test_forgeries_are_refused() -> None:
    """A request with anything changed is refused, and by the one error."""
    quick(given(st.data())(_refuses_forgeries))()


@pytest.mark.parametrize("number", lengths(long=10_000, soak=100_000, timeout_s=3600))
def test_very_many_forgeries_are_refused(number: int, seed: int) -> None:
    """The same at length."""
    thorough = settings(max_examples=number, suppress_health_check=list(HealthCheck))
    thorough(hypothesis.seed(seed)(given(st.data())(_refuses_forgeries)))()


_values = st.none() | st.integers() | st.text() | st.binary() | st.lists(st.text(), max_size=2)
_names = (
    st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature", "authorization", b"Webhook-Id"]) | _values
)
_headers = (
    _values
    | st.lists(st.tuples(_names, _values) | _values)
    | st.dictionaries(_names.filter(lambda n: not isinstance(n, list)), _values)
)


@quick
@given(_headers, st.binary() | _values)
def test_whatever_arrives_raises_the_one_error(headers: Any, body: Any) -> None:
    """Headers and bodies of any make, also those that no server produces."""
    for verifier in (forgeries.VERIFIER, BearerVerifier("a-token-of-some-length")):
        with pytest.raises(WebhookVerificationError) as caught:
            verifier.verify(headers, body)
        assert caught.value.code == f"webhook.{caught.value.reason}"


@quick
@given(st.text() | st.from_regex(r"[Bb]earer +[!-~]*"))
def test_no_other_authorization_is_believed(authorization: str) -> None:
    """Guessing does not help."""
    with pytest.raises(WebhookVerificationError):
        BearerVerifier("a-token-of-some-length").verify({"authorization": authorization}, b"{}")


def _run_atheris(enough: int) -> int:
    """Fuzz until so many forgeries were refused; return how many were. Atheris ends at the first that was not."""
    if importlib.util.find_spec("atheris") is None:
        if os.environ.get("CI"):
            pytest.fail("atheris is not installed, and CI has to fuzz")
        pytest.skip("atheris has no wheel for this platform")
    command = [sys.executable, str(Path(forgeries.__file__)), str(enough)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=SUPPORT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return int(re.findall(r"refused (\d+)", done.stdout)[-1])


@pytest.mark.parametrize("enough", lengths(20_000, long=100_000, soak=1_000_000, timeout_s=3600))
def test_forgeries_guided_by_coverage_are_refused(enough: int) -> None:
    """Atheris sees which branches a forgery takes, and tries its neighbours."""
    assert _run_atheris(enough) == enough
