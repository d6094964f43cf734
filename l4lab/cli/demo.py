# SPDX-License-Identifier: GPL-2.0-or-later
"""`l4lab demo`: boots the small guest that comes with the lab and shows the VM exits it caused."""

from __future__ import annotations

from l4lab.errors import LabError


def demo() -> None:
    """Boot a small guest that needs nothing but this package, and show its VM exits."""
    raise LabError("the demo is not in this version yet; try: l4lab lab")
