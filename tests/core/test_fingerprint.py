"""What makes two requests the same?"""

from __future__ import annotations

from datetime import timedelta
from fractions import Fraction
from typing import Any

import pytest

from renderdispatch.engine.intake import fingerprint
from renderdispatch.messages import Limits, Output, RenderRequest, StoredAudio
from renderdispatch.testing import make_request


def test_an_older_version_s_fingerprints_are_found_again() -> None:
    """Idempotency keys outlive an upgrade: a request without the new options has the fingerprint that it always had."""
    assert fingerprint(make_request()).startswith("2:")
    known = "c1aa04bb3bc89bf0b7e5799fdeb085b960265198c677a1d59c640c218faaf898"
    assert fingerprint(make_request(), version=1) == known
    assert fingerprint(make_request()) == "2:dfbc61eaa9dc8148145e3d1b3e7fa873a75ff676d512039112c43da5d4a9d752"


def test_fingerprints_of_before_there_were_scene_files() -> None:
    """What records of the second rule hold is found again, with a cover and without one."""
    audio, cover = StoredAudio(key="a", size=44, sha256="0" * 64), StoredAudio(key="c.jpg", size=5, sha256="1" * 64)
    plain = RenderRequest(audio=audio, scene="bars", backend="local")
    rich = plain.model_copy(
        update={"scene": "radial", "cover": cover, "poster": True, "title": "A", "params": {"x": 1}}
    )
    output = Output(width=64, height=36, fps=Fraction(24))
    assert fingerprint(plain) == "2:3c9f944ccb7117fecb2b4b47907b89bb3173b436899e2ee147529e5b090a160c"
    found = fingerprint(rich.model_copy(update={"output": output}))
    assert found == "2:66d67286ee4c7500bfeef186459f7a3622661a513c947102db7eee739bca23ed"


def test_scene_files_count_by_their_content() -> None:
    """Their keys and names do not count; that there are some, and in which order, does."""
    a, b = StoredAudio(key="a", size=5, sha256="a" * 64, name="a.glsl"), StoredAudio(key="b", size=5, sha256="b" * 64)
    moved = a.model_copy(update={"key": "elsewhere", "name": "other.glsl"})
    prints = [
        fingerprint(make_request(**changes))
        for changes in ({}, {"scene_file": a}, {"scene_file": b}, {"images": (a, b)}, {"images": (b, a)})
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint(make_request(scene_file=moved, images=(moved,))) == fingerprint(
        make_request(scene_file=a, images=(a,))
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"audio_track": 0},
        {"limits": Limits(max_duration=timedelta(days=1))},
        {"output": Output(width=64, height=64, fps=Fraction(10), encoder="h264_nvenc")},
    ],
    ids=str,
)
def test_new_options_count_where_they_are_used(changes: dict[str, Any]) -> None:
    """A request that uses a new option is another request, by every rule."""
    for version in (1, 2):
        assert fingerprint(make_request(**changes), version=version) != fingerprint(make_request(), version=version)
