# SPDX-License-Identifier: GPL-2.0-or-later
"""The virtual-machine control structure: all that one virtual CPU is while it does not run, in Intel VT-x terms.

Guest state proper (control registers, segments, debug registers) lives in a saved CPU context of the engine; while the
virtual CPU is loaded, the same accessors read and write the engine's live state. Controls, masks and exit information
are plain attributes. Entering a guest and translating its exits is guestmode.py's.
"""

from __future__ import annotations

from l4lab.machine import engine as e

CR0_PE, CR0_TS, CR0_WP, CR0_PG = 1, 1 << 3, 1 << 16, 1 << 31
CR4_DE, CR4_OSFXSR = 1 << 3, 1 << 9
# Fixed to one in guest mode, as VT-x fixes some bits: the engine reads 4 MB entries of the second-level tables by the
# guest's CR4.PSE, and would take what a guest wrote for page tables if that were zero.
CR4_PSE = 1 << 4
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr")  # in the engine's order
_SEGMENT_AT = {name: (e.ENV_SEGS + 24 * i) >> 2 for i, name in enumerate(SEGMENTS)}
_TABLE_AT = {"gdtr": e.ENV_GDT >> 2, "idtr": e.ENV_IDT >> 2}
_DEBUG_STATUS_RESET, _DEBUG_CONTROL_RESET = 0xFFFF_0FF0, 0x400
UNUSABLE = 1 << 16
DR7_ENABLE, DR7_GENERAL_DETECT = 0xFF, 1 << 13
BLOCKED_BY_STI, BLOCKED_BY_MOV_SS, BLOCKED_BY_NMI = 1, 2, 8
_BUSY = 1 << 1  # in the type of TR, which is always busy; the engine keeps it as LTR found it


class Vmcs:
    """One virtual CPU. `frame` is the physical address of its register frame, `block` of the engine's control block."""

    def __init__(self, context: bytearray, frame: int, block: int) -> None:
        self.context = context  # the CPU state while another one is loaded
        self.frame = frame
        self.block = block
        self.state = memoryview(context).cast("I")  # the CPU state wherever it is now; guestmode.py moves it
        self.stale = True  # control registers or segments were written: derived CPU flags must be computed again
        self._unusable: dict[str, int] = {}  # attributes of segments that were loaded as unusable: the engine has none
        self.generation = -1  # of the second-level page tables that the TLB knows
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
        self._pending_debug = 0
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

    # -- control registers, as the CPU really has them -----------------------------------------------------------

    def control_register(self, number: int) -> int:
        """CR0, CR2, CR3 or CR4 as the CPU has it (not what the guest reads: that is merged with the shadow)."""
        return self.state[(e.ENV_CR >> 2) + 2 * number]

    def set_control_register(self, number: int, value: int) -> None:
        """Write CR0, CR2, CR3 or CR4; takes effect at the next entry."""
        if number == 4:
            value |= CR4_PSE
        self.state[(e.ENV_CR >> 2) + 2 * number] = value
        if number != 2:
            self.stale = True

    def visible_cr0(self) -> int:
        """What a guest's MOV from CR0 gives: the shadow where the mask is set, the real bit elsewhere."""
        return (self.cr0_shadow & self.cr0_mask) | (self.control_register(0) & ~self.cr0_mask)

    def visible_cr4(self) -> int:
        """What a guest's MOV from CR4 gives."""
        return (self.cr4_shadow & self.cr4_mask) | (self.control_register(4) & ~self.cr4_mask)

    # -- segments and tables -------------------------------------------------------------------------------------

    def segment(self, name: str) -> tuple[int, int, int, int]:
        """(selector, base, limit, attributes) of a segment register, attributes in VT-x layout."""
        at = _SEGMENT_AT[name]
        flags = self.state[at + 5]
        attributes = (flags >> 8 & 0xFF) | (flags >> 8 & 0xF000)
        if not attributes:
            attributes = self._unusable.get(name, UNUSABLE)
        elif name == "tr":
            attributes |= _BUSY
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
        if attributes & UNUSABLE:
            self._unusable[name] = attributes & 0x1F0FF
            attributes = 0
        elif name == "tr":
            attributes &= ~_BUSY
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
        """Write a debug register."""
        if number == 6:
            self._debug_status = value
        elif number == 7:
            self._debug_control = value
            self.watched = bool(value & DR7_ENABLE)
            self.stale = True
        else:
            self.state[(e.ENV_DR >> 2) + 2 * number] = value

    @property
    def pending_debug(self) -> int:
        """Debug exceptions that wait for the next entry."""
        return self._pending_debug

    @pending_debug.setter
    def pending_debug(self, value: int) -> None:
        self._pending_debug = value
        self.stale = True

    def sysenter(self, which: int) -> int:
        """SYSENTER_CS (0), SYSENTER_ESP (1) or SYSENTER_EIP (2)."""
        return self.state[(e.ENV_SYSENTER_CS >> 2) + 2 * which]

    def set_sysenter(self, which: int, value: int) -> None:
        """Write a SYSENTER register; see `sysenter`."""
        self.state[(e.ENV_SYSENTER_CS >> 2) + 2 * which] = value

    @property
    def interruptibility(self) -> int:
        """Bits 0, 1: events are blocked for one instruction, by STI or MOV SS; bit 3: NMIs, until IRET.

        The engine does not tell STI from MOV SS. With IF clear it was not STI; else it is told as STI.
        """
        state = self.state
        blocked = state[e.ENV_HFLAGS >> 2] >> 3 & 1
        if blocked and not state[e.ENV_EFLAGS >> 2] & 1 << 9:
            blocked = BLOCKED_BY_MOV_SS
        return blocked | (BLOCKED_BY_NMI if state[e.ENV_HFLAGS2 >> 2] & e.HF2_NMI else 0)

    @interruptibility.setter
    def interruptibility(self, value: int) -> None:
        at = e.ENV_HFLAGS >> 2
        self.state[at] = self.state[at] & ~e.HF_INHIBIT_IRQ | (e.HF_INHIBIT_IRQ if value & 3 else 0)
        at = e.ENV_HFLAGS2 >> 2
        self.state[at] = self.state[at] & ~e.HF2_NMI | (e.HF2_NMI if value & BLOCKED_BY_NMI else 0)

    def derive_flags(self, eflags: int) -> None:
        """Compute what the engine derives from control registers and segments and expects to find ready-made."""
        state = self.state
        cr0 = self.control_register(0)
        cs_flags = state[_SEGMENT_AT["cs"] + 5]
        ss_flags = state[_SEGMENT_AT["ss"] + 5]
        protected = cr0 & CR0_PE
        v8086 = bool(eflags & 1 << 17)
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
