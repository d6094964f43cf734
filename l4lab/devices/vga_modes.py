# SPDX-License-Identifier: GPL-2.0-or-later
"""The standard video modes of a VGA: what its registers hold in each. Tables only.

Source: IBM Hardware Interface Technical Reference, "Video Subsystems", "Register Values" of modes 0 to 13.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class VideoMode:
    """One mode: characters of a row and rows, lines of a character, and the registers."""

    columns: int
    rows: int
    character: int
    page: int  # bytes of memory from one page of the screen to the next
    misc: int
    sequencer: bytes
    crtc: bytes
    graphics: bytes
    attribute: bytes

    @property
    def is_text(self) -> bool:
        """Does it show characters, not dots?"""
        return not self.graphics[6] & 1


_COLOURS: Final = "000102030405140738393a3b3c3d3e3f"
_CGA: Final = "00131517020406071011121314151617"
_EGA: Final = "00010203040506071011121314151617"


def _mode(
    shape: tuple[int, int, int, int], misc: int, sequencer: str, crtc: str, graphics: str, attribute: str
) -> VideoMode:
    return VideoMode(*shape, misc, *map(bytes.fromhex, (sequencer, crtc, graphics, attribute)))


_TEXT_40: Final = _mode(
    (40, 25, 16, 0x800), 0x67, "0308030002", "2d2728902ba0bf1f004f0d0e000000009c8e8f141f96b9a3ff",
    "0000000000100e0fff", _COLOURS + "0c000f0800",
)  # fmt: skip
_TEXT_80: Final = _mode(
    (80, 25, 16, 0x1000), 0x67, "0300030002", "5f4f50825581bf1f004f0d0e000000009c8e8f281f96b9a3ff",
    "0000000000100e0fff", _COLOURS + "0c000f0800",
)  # fmt: skip
_CGA_320: Final = _mode(
    (40, 25, 8, 0x4000), 0x63, "0309030002", "2d2728902b80bf1f00c10000000000009c8e8f140096b9a2ff",
    "0000000000300f0fff", _CGA + "0100030000",
)  # fmt: skip
MODES: Final[dict[int, VideoMode]] = {
    0x00: _TEXT_40,
    0x01: _TEXT_40,
    0x02: _TEXT_80,
    0x03: _TEXT_80,
    0x04: _CGA_320,
    0x05: _CGA_320,
    0x06: _mode(
        (80, 25, 8, 0x4000), 0x63, "0301010006", "5f4f50825480bf1f00c10000000000009c8e8f280096b9c2ff",
        "0000000000000d0fff", "00" + "17" * 15 + "0100010000",
    ),
    0x07: _mode(
        (80, 25, 16, 0x1000), 0x66, "0300030002", "5f4f50825581bf1f004f0d0e000000009c8e8f280f96b9a3ff",
        "0000000000100a0fff", "00" + "08" * 7 + "10" + "18" * 7 + "0e000f0800",
    ),
    0x0D: _mode(
        (40, 25, 8, 0x2000), 0x63, "03090f0006", "2d2728902b80bf1f00c00000000000009c8e8f140096b9e3ff",
        "000000000000050fff", _EGA + "01000f0000",
    ),
    0x0E: _mode(
        (80, 25, 8, 0x4000), 0x63, "03010f0006", "5f4f50825480bf1f00c00000000000009c8e8f280096b9e3ff",
        "000000000000050fff", _EGA + "01000f0000",
    ),
    0x0F: _mode(
        (80, 25, 14, 0x8000), 0xA3, "03010f0006", "5f4f50825480bf1f004000000000000083855d280f63bae3ff",
        "000000000000050fff", "0008000018180000000800000018000001" + "00010000",
    ),
    0x10: _mode(
        (80, 25, 14, 0x8000), 0xA3, "03010f0006", "5f4f50825480bf1f004000000000000083855d280f63bae3ff",
        "000000000000050fff", _COLOURS + "01000f0000",
    ),
    0x11: _mode(
        (80, 30, 16, 0xA000), 0xE3, "03010f0006", "5f4f508254800b3e0040000000000000ea8cdf2800e704e3ff",
        "000000000000050fff", "003f" * 8 + "01000f0000",
    ),
    0x12: _mode(
        (80, 30, 16, 0xA000), 0xE3, "03010f0006", "5f4f508254800b3e0040000000000000ea8cdf2800e704e3ff",
        "000000000000050fff", _COLOURS + "01000f0000",
    ),
    0x13: _mode(
        (40, 25, 8, 0x2000), 0x63, "03010f000e", "5f4f50825480bf1f00410000000000009c8e8f284096b9a3ff",
        "000000000040050fff", "000102030405060708090a0b0c0d0e0f41000f0000",
    ),
}  # fmt: skip
TEXT_MODE: Final = 3
