# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers of VT-x as plain integers: kinds of events, what blocks them, activity states, controls.

They are those of `abi.vm`, which says what they mean. Plain, because the CPU's side of guest mode combines them at
every exit, and members of a flag are slow to combine.
"""

from __future__ import annotations

from typing import Final

from l4lab.abi.vm import ActivityState, CpuControls, EptViolation, Interruptibility, InterruptionType

EXTERNAL: Final = int(InterruptionType.EXTERNAL_INTERRUPT)
NMI: Final = int(InterruptionType.NMI)
HARDWARE_EXCEPTION: Final = int(InterruptionType.HARDWARE_EXCEPTION)
SOFTWARE_INTERRUPT: Final = int(InterruptionType.SOFTWARE_INTERRUPT)
PRIVILEGED_SOFTWARE: Final = int(InterruptionType.PRIVILEGED_SOFTWARE_EXCEPTION)
SOFTWARE_EXCEPTION: Final = int(InterruptionType.SOFTWARE_EXCEPTION)

BLOCKED_BY_STI: Final = int(Interruptibility.BLOCKED_BY_STI)
BLOCKED_BY_MOV_SS: Final = int(Interruptibility.BLOCKED_BY_MOV_SS)
BLOCKED_BY_SMI: Final = int(Interruptibility.BLOCKED_BY_SMI)
BLOCKED_BY_NMI: Final = int(Interruptibility.BLOCKED_BY_NMI)

ACTIVE: Final = int(ActivityState.ACTIVE)
HALTED: Final = int(ActivityState.HLT)
SHUTDOWN: Final = int(ActivityState.SHUTDOWN)
WAIT_FOR_SIPI: Final = int(ActivityState.WAIT_FOR_SIPI)

EPT_READ: Final = int(EptViolation.make(read=1))  # what was tried
EPT_WRITE: Final = int(EptViolation.make(write=1))

WINDOW: Final = int(CpuControls.INTERRUPT_WINDOW_EXITING)
TSC_OFFSETTING: Final = int(CpuControls.USE_TSC_OFFSET)
HLT_EXITING: Final = int(CpuControls.HLT_EXITING)
INVLPG_EXITING: Final = int(CpuControls.INVLPG_EXITING)
MWAIT_EXITING: Final = int(CpuControls.MWAIT_EXITING)
RDPMC_EXITING: Final = int(CpuControls.RDPMC_EXITING)
RDTSC_EXITING: Final = int(CpuControls.RDTSC_EXITING)
MOV_DR_EXITING: Final = int(CpuControls.MOV_DR_EXITING)
MONITOR_EXITING: Final = int(CpuControls.MONITOR_EXITING)
PAUSE_EXITING: Final = int(CpuControls.PAUSE_EXITING)
