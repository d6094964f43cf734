# SPDX-License-Identifier: GPL-2.0-or-later
"""An L4 microkernel with virtual machines, on an emulated PC that you can step and look into.

The front door: the names that notebooks and exercises use. Each is loaded when it is first asked for, so that
`import l4lab` loads neither the CPU engine nor Jupyter. Everything else is found in the parts (ARCHITECTURE.md).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from l4lab import _compiled  # noqa: F401  decides which half of the kernel runs, before any of it is imported

if TYPE_CHECKING:
    from l4lab.abi import frame
    from l4lab.abi.describe import describe
    from l4lab.abi.vm import ExitReason, IoAccess
    from l4lab.errors import LabError
    from l4lab.kernel import events
    from l4lab.rig.comparison import compare_paging
    from l4lab.rig.named import boot
    from l4lab.rig.rig import Rig
    from l4lab.rig.trace import Trace
    from l4lab.user.guests import loops
    from l4lab.user.monitor.fault import Fault, Reply
    from l4lab.views import pictures
    from l4lab.widgets.dashboard import Dashboard

__all__ = [
    "Dashboard",
    "ExitReason",
    "Fault",
    "IoAccess",
    "LabError",
    "Reply",
    "Rig",
    "Trace",
    "boot",
    "compare_paging",
    "describe",
    "events",
    "frame",
    "loops",
    "pictures",
]

# Where each name is found; a name that is a module is found in its package.
_HOMES = {
    "Dashboard": "l4lab.widgets.dashboard",
    "ExitReason": "l4lab.abi.vm",
    "Fault": "l4lab.user.monitor.fault",
    "IoAccess": "l4lab.abi.vm",
    "LabError": "l4lab.errors",
    "Reply": "l4lab.user.monitor.fault",
    "Rig": "l4lab.rig.rig",
    "Trace": "l4lab.rig.trace",
    "boot": "l4lab.rig.named",
    "compare_paging": "l4lab.rig.comparison",
    "describe": "l4lab.abi.describe",
    "events": "l4lab.kernel",
    "frame": "l4lab.abi",
    "loops": "l4lab.user.guests",
    "pictures": "l4lab.views",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"l4lab has no {name!r}; it has: {', '.join(__all__)}")
    home = import_module(_HOMES[name])
    value = vars(home).get(name)
    if value is None:
        value = import_module(f"{_HOMES[name]}.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
