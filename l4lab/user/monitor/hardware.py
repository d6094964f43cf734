# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guest's PC is, as far as one can choose."""

from __future__ import annotations

from dataclasses import dataclass

from l4lab.devices.disk import Image


@dataclass(frozen=True, slots=True)
class Hardware:
    """A choice of hardware.

    `shadow_paging`: the kernel keeps shadow page tables; otherwise the CPU walks both levels (nested paging).
    `disk`: what is on the guest's disk, which is never written itself; None for no disk.
    `restarts`: how often a guest that resets itself, be it by a triple fault, is started again, as a PC would; after
    that, a reset is its end.
    """

    shadow_paging: bool = False
    disk: Image | None = None
    restarts: int = 0


PLAIN = Hardware()
