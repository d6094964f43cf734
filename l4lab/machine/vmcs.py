# SPDX-License-Identifier: GPL-2.0-or-later
"""The virtual-machine control structure: all that one virtual CPU is while it does not run, in Intel VT-x terms.

Guest state proper (control registers, segments, debug registers) lives in a saved CPU context of the engine; while the
virtual CPU is loaded, the same accessors read and write the engine's live state. Controls, masks and exit information
are plain attributes. Entering a guest is guestmode.py's, translating its exits exits.py's.
"""

from __future__ import annotations

from typing import Final

from l4lab.abi.frame import FLAG_IF, FLAG_VM
from l4lab.machine import engine as e
from l4lab.machine.vtx import BLOCKED_BY_MOV_SS, BLOCKED_BY_NMI, BLOCKED_BY_STI

CR0_PE: Final = 1
CR0_TS: Final = 1 << 3
CR0_ET: Final = 1 << 4
CR0_WP: Final = 1 << 16
CR0_PG: Final = 1 << 31
CR4_DE: Final = 1 << 3
CR4_PGE: Final = 1 << 7
CR4_OSFXSR: Final = 1 << 9
CR4_EXISTING: Final = 0x0000_07DF  # bits that the CPU has: there is no PAE
# Fixed to one in guest mode, as VT-x fixes some bits: the engine reads 4 MB entries of the second-level tables by the
# guest's CR4.PSE, and would take what a guest wrote for page tables if that were zero.
CR4_PSE: Final = 1 << 4
SEGMENTS: Final = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr")  # in the engine's order
_SEGMENT_AT: Final = {name: (e.ENV_SEGS + 24 * i) >> 2 for i, name in enumerate(SEGMENTS)}
_TABLE_AT: Final = {"gdtr": e.ENV_GDT >> 2, "idtr": e.ENV_IDT >> 2}
_DEBUG_STATUS_RESET: Final = 0xFFFF_0FF0
_DEBUG_CONTROL_RESET: Final = 0x400
UNUSABLE: Final = 1 << 16
_ACCESSED: Final = 1
_BUSY: Final = 2
_DATA_OR_CODE: Final = 1 << 4
_PRESENT: Final = 1 << 7
DR7_ENABLE: Final = 0xFF
DR7_GENERAL_DETECT: Final = 1 << 13
_EFLAGS: Final = e.ENV_EFLAGS >> 2
_HFLAGS: Final = e.ENV_HFLAGS >> 2
_HFLAGS2: Final = e.ENV_HFLAGS2 >> 2


class Vmcs:
    """One virtual CPU. `frame` is the physical address of its register frame, `block` of the engine's control block."""

    def __init__(self, context: bytearray, frame: int, registers: memoryview, block: int) -> None:
        self.context = context  # the CPU state while another one is loaded
        self.frame = frame
        self.registers = registers  # the ten words of the frame
        self.block = block
        self.state = memoryview(context).cast("I")  # the CPU state wherever it is now; guestmode.py moves it
        self.stale = True  # control registers or segments were written: derived CPU flags must be computed again
        self.unchecked = 0  # register items, a bit each, of which something was written that `entrycheck` looks at
        self.misfits: set[str] = set()  # segments that were written with attributes which do not exist
        self._unusable: dict[str, int] = {}  # attributes of segments that were loaded as unusable: the engine has none
        self.generation = -1  # of the second-level page tables that the TLB knows
        # With shadow paging the CPU walks the kernel's tables: its real CR0 and CR3 differ from what the guest has.
        self.shadowed = False
        self.paging_changed = False  # something was written on which shadow tables depend
        self._own_cr0 = self._own_cr3 = 0
        # controls (SDM vol. 3, chapter "Virtual-Machine Control Structures")
        self.pin_controls = 0
        self.cpu_controls = 0
        self.exception_bitmap = 0xFFFF_FFFF
        self.cr0_mask = self.cr4_mask = 0xFFFF_FFFF
        self.cr0_shadow = 0x6000_0010
        self.cr4_shadow = 0
        self.tsc_offset = 0
        self.virtual_apic = self.tpr_threshold = self.debugctl = 0
        # guest non-register state
        self.activity = 0
        self._blocking = -1  # interruptibility as it was written; -1: as the CPU has it
        self.pending_debug = 0
        # DR6 and DR7 as the guest has them. The engine's own stay as after reset: it would keep breakpoints in
        # structures outside the CPU state, and leaves the mark of a single step in DR6 whoever gets to hear of it.
        self._debug_status, self._debug_control = _DEBUG_STATUS_RESET, _DEBUG_CONTROL_RESET
        self.watched = False  # a breakpoint is enabled in DR7
        # the event to deliver at the next entry
        self.entry_info = self.entry_error = self.entry_length = 0
        # what the last exit says
        self.exit_qualification = self.exit_length = 0
        self.exit_info = self.exit_error = 0
        self.idt_info = self.idt_error = 0
        self.guest_linear = self.guest_physical = 0
        self.instruction_info = 0

    @property
    def exceptions_that_exit(self) -> int:
        """The exception bitmap, and page faults where the CPU walks shadow tables."""
        return self.exception_bitmap | (1 << 14 if self.shadowed else 0)

    # -- control registers, as the CPU really has them -----------------------------------------------------------

    def control_register(self, number: int) -> int:
        """CR0, CR2, CR3 or CR4 of the guest (not what it reads: that is merged with the read shadow)."""
        if self.shadowed and (number == 0 or number == 3):
            return self._own_cr3 if number else self._own_cr0
        return self.state[(e.ENV_CR >> 2) + 2 * number]

    def set_control_register(self, number: int, value: int) -> None:
        """Write CR0, CR2, CR3 or CR4; takes effect at the next entry."""
        if number == 4:
            value |= CR4_PSE
        if self.shadowed:
            if number == 0:
                self.paging_changed |= bool((value ^ self._own_cr0) & (CR0_PG | CR0_WP))
                self._own_cr0 = value
                value |= CR0_PG | CR0_WP
            elif number == 3:
                self.paging_changed = True
                self._own_cr3 = value
                return
            elif number == 4:
                self.paging_changed |= bool((value ^ self.control_register(4)) & CR4_PGE)
        self.state[(e.ENV_CR >> 2) + 2 * number] = value
        if number != 2:
            self.stale = True

    def shadow_paging(self) -> None:
        """From now on the CPU translates by tables of the kernel's alone; see `set_shadow_root`."""
        self.state[(e.ENV_HFLAGS >> 2) + 1] &= ~e.HF2_NESTED
        self.shadowed = True
        self.set_control_register(0, 0)

    def set_shadow_root(self, directory: int) -> None:
        """The page directory that the CPU walks under shadow paging."""
        self.state[(e.ENV_CR >> 2) + 6] = directory

    def visible_cr0(self) -> int:
        """What a guest's MOV from CR0 gives: the shadow where the mask is set, the real bit elsewhere."""
        return (self.cr0_shadow & self.cr0_mask) | (self.control_register(0) & ~self.cr0_mask)

    def visible_cr4(self) -> int:
        """What a guest's MOV from CR4 gives."""
        return (self.cr4_shadow & self.cr4_mask) | (self.control_register(4) & ~self.cr4_mask)

    # -- segments and tables -------------------------------------------------------------------------------------

    def segment(self, name: str) -> tuple[int, int, int, int]:
        """(selector, base, limit, attributes) of a segment register, attributes in VT-x layout.

        As a CPU has them: what is loaded is accessed, and a task busy, which the engine notes in memory only; and what
        it has as not present cannot be used.
        """
        at = _SEGMENT_AT[name]
        flags = self.state[at + 5]
        attributes = (flags >> 8 & 0xFF) | (flags >> 8 & 0xF000)
        if not attributes:
            attributes = self._unusable.get(name, UNUSABLE)
        elif attributes & _PRESENT:
            attributes |= _ACCESSED if attributes & _DATA_OR_CODE else _BUSY if name == "tr" else 0
        else:
            attributes |= UNUSABLE
        return self.state[at], self.state[at + 2], self.state[at + 4], attributes

    def segment_base(self, name: str) -> int:
        """Only the base of a segment register."""
        return self.state[_SEGMENT_AT[name] + 2]

    def set_segment(self, name: str, selector: int, base: int, limit: int, attributes: int) -> None:
        """Load a segment register with its hidden part, unchecked, as a VM entry does."""
        at = _SEGMENT_AT[name]
        self.state[at] = selector & 0xFFFF
        self.state[at + 2], self.state[at + 3] = base, 0
        self.state[at + 4] = limit
        self._unusable.pop(name, None)
        if attributes & UNUSABLE:
            self._unusable[name] = attributes & 0x1F0FF
            attributes = 0
        elif name == "tr":
            attributes &= ~_BUSY  # the engine takes stacks only from a task that is not; see `segment`
        self.state[at + 5] = (attributes & 0xF0FF) << 8
        self.stale = True

    def table(self, name: str) -> tuple[int, int]:
        """(base, limit) of GDTR or IDTR."""
        at = _TABLE_AT[name]
        return self.state[at + 2], self.state[at + 4]

    def set_table(self, name: str, base: int, limit: int) -> None:
        """Load GDTR or IDTR."""
        at = _TABLE_AT[name]
        self.state[at + 2], self.state[at + 3] = base, 0
        self.state[at + 4] = limit

    # -- the rest ------------------------------------------------------------------------------------------------

    def debug_register(self, number: int) -> int:
        """DR0..DR3, DR6 or DR7."""
        if number == 6:
            return self._debug_status
        return self._debug_control if number == 7 else self.state[(e.ENV_DR >> 2) + 2 * number]

    def set_debug_register(self, number: int, value: int) -> None:
        """Write a debug register; bits that are fixed stay as they are."""
        if number == 6:
            self._debug_status = value & 0xE00F | _DEBUG_STATUS_RESET
        elif number == 7:
            self._debug_control = value & 0xFFFF_2FFF | _DEBUG_CONTROL_RESET
            self.watched = bool(value & DR7_ENABLE)
            self.stale = True
        else:
            self.state[(e.ENV_DR >> 2) + 2 * number] = value

    def sysenter(self, which: int) -> int:
        """SYSENTER_CS (0), SYSENTER_ESP (1) or SYSENTER_EIP (2)."""
        return self.state[(e.ENV_SYSENTER_CS >> 2) + 2 * which]

    def set_sysenter(self, which: int, value: int) -> None:
        """Write a SYSENTER register; see `sysenter`."""
        self.state[(e.ENV_SYSENTER_CS >> 2) + 2 * which] = value

    @property
    def interruptibility(self) -> int:
        """What keeps events away: bits 0 and 1, for one instruction, STI or MOV SS; bit 3, until IRET, an NMI.

        The engine does not tell STI from MOV SS; where IF is clear it can only have been MOV SS.
        """
        if self._blocking >= 0:
            return self._blocking
        blocking = BLOCKED_BY_NMI if self.state[_HFLAGS2] & e.HF2_NMI else 0
        if self.state[_HFLAGS] & e.HF_INHIBIT_IRQ:
            blocking |= BLOCKED_BY_STI if self.state[_EFLAGS] & FLAG_IF else BLOCKED_BY_MOV_SS
        return blocking

    @interruptibility.setter
    def interruptibility(self, value: int) -> None:
        self._blocking = value or -1
        if self.state[_HFLAGS2] & e.HF2_NMI or value & BLOCKED_BY_NMI:
            self.block_nmi(bool(value & BLOCKED_BY_NMI))
        self.end_shadow()
        if value & (BLOCKED_BY_STI | BLOCKED_BY_MOV_SS):
            self.state[_HFLAGS] |= e.HF_INHIBIT_IRQ

    def end_shadow(self) -> None:
        """The instruction behind STI or MOV SS is done."""
        self.state[_HFLAGS] &= ~e.HF_INHIBIT_IRQ

    def block_nmi(self, blocked: bool) -> None:
        """An NMI is being handled, which IRET ends; or is not."""
        flags = self.state[_HFLAGS2] & ~e.HF2_NMI
        self.state[_HFLAGS2] = flags | (e.HF2_NMI if blocked else 0)

    def accepted(self) -> None:
        """The state was checked, and is now the CPU's."""
        self.unchecked = 0
        self._blocking = -1

    def derive_flags(self, eflags: int) -> None:
        """Compute what the engine derives from control registers and segments and expects to find ready-made."""
        state = self.state
        cr0 = self.control_register(0)
        cs_flags = state[_SEGMENT_AT["cs"] + 5]
        ss_flags = state[_SEGMENT_AT["ss"] + 5]
        protected = cr0 & CR0_PE
        v8086 = bool(eflags & FLAG_VM)
        flags = state[e.ENV_HFLAGS >> 2] & (e.HF_INHIBIT_IRQ | e.HF_GUEST | 1 << 20)
        if v8086:
            flags |= 3
        elif protected:
            flags |= ss_flags >> 13 & 3
        flags |= (cs_flags >> 22 & 1) << 4 | (ss_flags >> 22 & 1) << 5  # 32-bit code, 32-bit stack
        bases = sum(state[_SEGMENT_AT[name] + 2] for name in ("ds", "es", "ss"))
        if not protected or v8086 or not cs_flags >> 22 & 1 or bases:
            flags |= 1 << 6  # segment bases are added
        flags |= (1 << 7 if protected else 0) | (cr0 << 8 & 0xE00)  # PE; MP, EM, TS
        flags |= 1 << 22 if self.control_register(4) & CR4_OSFXSR else 0
        state[e.ENV_HFLAGS >> 2] = flags
        self.stale = False
