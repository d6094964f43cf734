# SPDX-License-Identifier: GPL-2.0-or-later
"""What a PC's firmware has left in memory when a boot loader begins: what programs find in the first page.

Nobody enters real mode on the machine again, so the vectors lead nowhere but to an IRET. But programs look there: for
the number of a port in the BIOS data area, or, by mistake, through a pointer that is zero.
"""

from __future__ import annotations

import struct
from typing import Final

from l4lab.user.monitor.rom import data_area

IRET_SEGMENT, IRET_OFFSET = 0xF000, 0xFF53  # where the first PC had an IRET, and each since then
FIRST_PAGE: Final = struct.pack("<HH", IRET_OFFSET, IRET_SEGMENT) * 256 + data_area(diskettes=0, hard_disks=0)
IRET: Final = ((IRET_SEGMENT << 4) + IRET_OFFSET, b"\xcf")
