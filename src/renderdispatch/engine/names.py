"""Under which name is a video saved?

``Artist - Title.mp4`` or ``Title.mp4``, as the request says; else under the name of the song's file. A name comes from
strangers, so it is made safe for every file system and every header: one part of a path, without control characters.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath
from typing import Final

from renderdispatch.engine import layout
from renderdispatch.messages import Audio, LocalAudio, RemoteAudio, RenderRequest, StoredAudio

MAX_NAME_BYTES: Final = 200
"""In UTF-8, with the suffix: file systems take 255, and programs add to names."""

_NAMELESS: Final = "video"
_EXTENSION: Final = re.compile(r"\.[A-Za-z0-9]{1,8}$")
_LEFT_OUT: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
_TURNING: Final = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
"""Marks that write a name from right to left, so that it seems to end otherwise."""

_NOT_IN_NAMES: Final = re.compile(r'[/\\<>:"|?*]')
_RESERVED: Final = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³]) *(?:\..*)?", re.IGNORECASE)
"""Names of devices on Windows, with any suffix and with spaces before it."""


def file_name(request: RenderRequest, audio: Audio | None = None, *, suffix: str = ".mp4") -> str:
    """Return the name for the file of a finished video, or of its poster.

    Args:
        request: The job's.
        audio: The audio of a request that names a URL, once it is stored.
        suffix: The file's, with its dot.
    """
    song = audio if audio is not None and isinstance(request.audio, RemoteAudio) else request.audio
    return song_name(request.title, request.artist, _own_name(song), suffix=suffix)


def song_name(title: str | None, artist: str | None, source: str | None, *, suffix: str = ".mp4") -> str:
    """Return a safe name for a song's file: by its title, else by the name of the file that it came from."""
    known = f"{artist} - {title}" if artist and title else title
    stem = known or _EXTENSION.sub("", _last_part(source or ""))
    return _safe(stem, MAX_NAME_BYTES - len(suffix)) + suffix


def kept_name(name: str | None) -> str | None:
    """Return what a record keeps of a file's name: its last part, if that has an extension.

    One without is rarely a song's name: files of the system's temporary folder have such names, and secrets in URLs.
    """
    last = _safe(_last_part(name or ""), MAX_NAME_BYTES)
    return last if _EXTENSION.search(last) else None


def safe_name(name: str) -> str:
    """Return the last part of a file's name, safe for a record and for messages."""
    return _safe(_last_part(name), MAX_NAME_BYTES, nameless="file")


def attached_name(file: StoredAudio | LocalAudio) -> str | None:
    """Return what messages call a file beside the audio; None if that is not known."""
    return safe_name(file.path) if isinstance(file, LocalAudio) else file.name


def _own_name(audio: Audio) -> str | None:
    match audio:
        case LocalAudio():
            return audio.path
        case StoredAudio() if audio.name is None:
            ours = layout.job_of(audio.key) is not None or audio.key.startswith(layout.UPLOADS)
            return None if ours else audio.key
        case StoredAudio():
            return audio.name
    return None


def _last_part(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/")).name


def _safe(stem: str, most_bytes: int, *, nameless: str = _NAMELESS) -> str:
    stem = "".join(c for c in unicodedata.normalize("NFC", stem) if unicodedata.category(c) not in _LEFT_OUT)
    stem = _NOT_IN_NAMES.sub("_", _TURNING.sub("", stem)).lstrip("-. ")
    if _RESERVED.fullmatch(stem):
        stem = f"_{stem}"
    return stem.encode()[:most_bytes].decode(errors="ignore").rstrip(". ") or nameless
