"""Is a video saved under the song's name, and is every name safe?"""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderdispatch.engine.names import MAX_NAME_BYTES, file_name, kept_name, song_name
from renderdispatch.messages import Audio, LocalAudio, RemoteAudio, StoredAudio
from renderdispatch.testing import make_request

FILE = LocalAudio(path="/music/01 - Été.flac", machine="here", size=1, mtime_ns=1)
URL = RemoteAudio.model_validate({"url": "https://example.com/s3cret.mp3"})


@pytest.mark.parametrize(
    ("audio", "tags", "name"),
    [
        (FILE, {"title": "Été", "artist": "Élan"}, "Élan - Été.mp4"),
        (FILE, {"title": "Mr. Blue"}, "Mr. Blue.mp4"),
        (FILE, {"artist": "Élan"}, "01 - Été.mp4"),
        (StoredAudio(key="songs/a song.wav", size=1), {}, "a song.mp4"),
        (StoredAudio(key="songs/no extension", size=1), {}, "no extension.mp4"),
        (StoredAudio(key="jobs/a/b/audio/audio.mp3", size=1, name="sent.mp3"), {}, "sent.mp4"),
        (StoredAudio(key="jobs/a/b/audio/audio.mp3", size=1), {}, "video.mp4"),
        (StoredAudio(key="uploads/20260301/" + "0" * 32, size=1), {}, "video.mp4"),
        (StoredAudio(key="", size=0), {}, "video.mp4"),
        (URL, {}, "video.mp4"),
    ],
    ids=str,
)
def test_the_song_gives_the_name(audio: Audio, tags: dict[str, Any], name: str) -> None:
    """By title and artist, else by its file's own name; a key that this library made up and a URL give none."""
    assert file_name(make_request(audio=audio, **tags)) == name


def test_a_stored_copy_says_what_a_url_sent() -> None:
    """Once audio by URL is stored, its copy knows the name."""
    assert file_name(make_request(audio=URL), StoredAudio(key="k", size=1, name="sent.mp3")) == "sent.mp4"
    assert file_name(make_request(audio=FILE), StoredAudio(key="jobs/a/b/c/audio.flac", size=1)) == "01 - Été.mp4"


def test_a_poster_has_the_same_name() -> None:
    """But for its suffix."""
    assert file_name(make_request(audio=FILE), suffix=".jpg") == "01 - Été.jpg"


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ('AC/DC: Back? *In* "Black" <live>|\\', "AC_DC_ Back_ _In_ _Black_ _live___.mp4"),
        ("../../etc/passwd", "_.._etc_passwd.mp4"),
        (".hidden", "hidden.mp4"),
        ("--force", "force.mp4"),
        ("line\nbreak\x00\x85", "linebreak.mp4"),
        ("gpj\u202e4pm.exe", "gpj4pm.exe.mp4"),
        ("con", "_con.mp4"),
        ("LPT1.live", "_LPT1.live.mp4"),
        ("con .", "_con.mp4"),
        ("Nul  .live", "_Nul  .live.mp4"),
        ("com\u00b9", "_com\u00b9.mp4"),
        ("a\u061cb", "ab.mp4"),
        ("the end...  ", "the end.mp4"),
        ("e\u0301", "é.mp4"),
        ("\ud800", "video.mp4"),
        ("...", "video.mp4"),
    ],
)
def test_a_name_is_made_safe(title: str, name: str) -> None:
    """No separators, control characters, marks that turn the text, leading dots or names of devices."""
    assert song_name(title, None, None) == name


@given(st.text(), st.none() | st.text(), st.none() | st.text())
def test_any_text_gives_a_name(title: str, artist: str | None, source: str | None) -> None:
    """Whatever the texts are, the name is one part of a path, at most 200 bytes of UTF-8, and ends in .mp4."""
    name = song_name(title, artist, source)
    assert name.endswith(".mp4") and len(name.encode()) <= MAX_NAME_BYTES
    assert not set(name) & set("/\\\0") and not name.startswith((".", "-"))
    assert all(unicodedata.category(character) != "Cc" for character in name)


@pytest.mark.parametrize("character", ["a", "é", "日", "🎵"])
def test_a_long_title_is_cut(character: str) -> None:
    """Between two characters."""
    name = song_name(character * 200, None, None)
    assert MAX_NAME_BYTES - 4 < len(name.encode()) <= MAX_NAME_BYTES
    assert set(name.removesuffix(".mp4")) == {character}


@pytest.mark.parametrize(
    ("given_name", "kept"),
    [
        ("/tmp/x/song.mp3", "song.mp3"),
        ("C:\\Music\\song.mp3", "song.mp3"),
        ("/tmp/tmpa8f3k2", None),
        ("s3cret-token", None),
        ("", None),
        (None, None),
        (".mp3", None),
    ],
)
def test_a_record_keeps_names_of_files(given_name: str | None, kept: str | None) -> None:
    """What has no extension may be a temporary file, or a secret in a URL."""
    assert kept_name(given_name) == kept
