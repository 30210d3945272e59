"""How is H.264 stored in an mp4 file? See ISO/IEC 14496-15.

Encoders separate NAL units by start codes (ITU-T H.264, annex B). In mp4 each unit has its length in front, and the
parameter sets are stored once, in the decoder's configuration.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

_START: Final = b"\0\0\1"
_SEI, _SPS, _PPS, _DELIMITER = 6, 7, 8, 9
_LEFT_OUT: Final = frozenset({_SEI, _SPS, _PPS, _DELIMITER})
_HIGH: Final = frozenset({100, 110, 122, 244})
"""The profiles whose configuration says what chroma and how many bits a sample has."""


def nal_units(stream: bytes) -> Iterator[bytes]:
    """Iterate over the NAL units of a byte stream."""
    at = stream.find(_START)
    while at >= 0:
        begin, at = at + 3, stream.find(_START, at + 3)
        # the last byte of a unit is never 0: zeros belong to the next start code
        if unit := stream[begin : at if at >= 0 else len(stream)].rstrip(b"\0"):
            yield unit


def sample_of(packet: bytes) -> bytes:
    """Return the sample of an encoder's packet.

    SEI is left out: libx264 writes its version and settings there, with the number of threads. So are parameter sets,
    which the configuration holds.
    """
    units = (unit for unit in nal_units(packet) if unit[0] & 31 not in _LEFT_OUT)
    return b"".join(part for unit in units for part in (struct.pack(">I", len(unit)), unit))


def config_of(extradata: bytes) -> bytes:
    """Return the decoder's configuration (``avcC``) for an encoder's extradata, which are a byte stream of yuv420p.

    Raises:
        ValueError: They hold no parameter sets.
    """
    sets = {kind: [unit for unit in nal_units(extradata) if unit[0] & 31 == kind] for kind in (_SPS, _PPS)}
    if not (sets[_SPS] and sets[_PPS]):
        raise ValueError("the encoder gave no parameter sets")
    _, profile, compatible, level = sets[_SPS][0][:4]
    packed = {kind: b"".join(struct.pack(">H", len(unit)) + unit for unit in units) for kind, units in sets.items()}
    config = bytes((1, profile, compatible, level, 0xFF, 0xE0 | len(sets[_SPS]))) + packed[_SPS]
    config += bytes((len(sets[_PPS]),)) + packed[_PPS]
    if profile in _HIGH:
        config += bytes((0xFC | 1, 0xF8, 0xF8, 0))  # 4:2:0 in 8 bits, and no extensions
    return config
