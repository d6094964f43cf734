# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest as its own instructions see it: linear addresses, the bytes at EIP, operands of the instruction there.

What lives here: looking, without changing anything, at the guest that is loaded. What the CPU does about the
instruction is instructions.py's and its neighbours'; telling one instruction from another is decode.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from l4lab.abi.frame import EAX, EBP, EBX, ECX, EDI, EDX, EIP, ESI, ESP
from l4lab.machine import engine as e
from l4lab.machine.decode import MAX_LENGTH, Instruction, decode
from l4lab.machine.engine import Engine
from l4lab.machine.memory import PAGE_SIZE, Memory
from l4lab.machine.mmu import READ, NestedPageFault, WalkFault, host_walk, walk_nested
from l4lab.machine.vmcs import CR0_PG, CR0_WP, CR4_PSE, Vmcs

_HFLAGS: Final = e.ENV_HFLAGS >> 2
_CODE_IS_32_BITS_WIDE: Final = 1 << 4
_CS_BASE: Final = (e.ENV_SEGS + 24 >> 2) + 2
_FRAME_INDEX: Final = {"eax": EAX, "ecx": ECX, "edx": EDX, "ebx": EBX, "esp": ESP, "ebp": EBP, "esi": ESI, "edi": EDI}


class GuestView:
    """The memory and the code of virtual CPUs."""

    def __init__(self, memory: Memory, engine: Engine) -> None:
        self._memory = memory
        self._u32 = memory.u32
        self._engine = engine

    def translate(self, vmcs: Vmcs, linear: int, access: int = READ) -> int:
        """Physical address behind a guest-linear address; WalkFault or NestedPageFault. Leaves A and D alone."""
        nested = vmcs.state[e.ENV_NESTED_CR3 >> 2]  # under shadow paging too: it leads to the same memory
        cr0 = vmcs.control_register(0)
        if not cr0 & CR0_PG:
            return host_walk(self._memory, nested, True, False)(linear, access, False)
        return walk_nested(
            self._memory,
            nested,
            vmcs.control_register(3),
            linear,
            access,
            wp=bool(cr0 & CR0_WP),
            pse=bool(vmcs.control_register(4) & CR4_PSE),
            host_pse=True,
            set_ad=False,
        )

    def read_linear(self, vmcs: Vmcs, linear: int, length: int) -> bytes:
        """Guest memory at a linear address; shorter where a page is missing."""
        data = b""
        while len(data) < length:
            at = linear + len(data) & 0xFFFFFFFF
            size = min(length - len(data), PAGE_SIZE - at % PAGE_SIZE)
            try:
                physical = self.translate(vmcs, at)
            except (WalkFault, NestedPageFault):
                break
            piece = bytes(self._memory.u8[physical : physical + size])
            if not piece:  # a device's address, which nobody executes
                break
            data += piece
        return data

    def read_code(self, vmcs: Vmcs, length: int) -> bytes:
        """The bytes at the guest's EIP, as many as there are."""
        linear = vmcs.segment("cs")[1] + self._u32[(vmcs.frame >> 2) + EIP] & 0xFFFFFFFF
        code: bytes = self._engine.code_at(linear)  # what the CPU fetches, whatever the tables say by now
        return code[:length] if len(code) >= length else self.read_linear(vmcs, linear, length)

    def bits(self, vmcs: Vmcs) -> int:
        """Is the guest's code 16 or 32 bits wide?"""
        return 32 if vmcs.state[_HFLAGS] & _CODE_IS_32_BITS_WIDE else 16

    def instruction(self, vmcs: Vmcs) -> Instruction:
        """The instruction at the guest's EIP."""
        state = vmcs.state
        linear = state[_CS_BASE] + self._u32[(vmcs.frame >> 2) + EIP] & 0xFFFFFFFF
        # The CPU has just fetched it; only at the end of a page, or when the TLB lost it, do we walk the tables.
        found = decode(self._engine.code_at(linear), 32 if state[_HFLAGS] & _CODE_IS_32_BITS_WIDE else 16)
        if found is None:
            found = decode(self.read_code(vmcs, MAX_LENGTH), self.bits(vmcs))
        if found is None:  # it ran a moment ago; another CPU's or a DMA's store may have changed it since
            return Instruction(1, "", b"\0", 0, 0, False, None, 0, 4, 0, False)
        return found

    def effective_address(self, vmcs: Vmcs, instruction: Instruction) -> int:
        """Linear address of its operand in memory; 0 if it has none."""
        if instruction.memory is None:
            return 0
        segment, base, index, scale, displacement = instruction.memory
        register = self.register_of(vmcs)
        offset = displacement
        for name, factor in ((base, 1), (index, scale)):
            if name:
                offset += register(name) * factor
        segment = segment or ("ss" if base in ("esp", "ebp", "bp") else "ds")
        mask = 0xFFFF if instruction.address_size == 2 else 0xFFFFFFFF
        return vmcs.segment(segment)[1] + (offset & mask) & 0xFFFFFFFF

    def register_of(self, vmcs: Vmcs) -> Callable[[str], int]:
        """Asks for general registers by their names in instructions, of 32 or of 16 bits."""
        frame = self._u32[vmcs.frame >> 2 : (vmcs.frame >> 2) + 10]

        def register(name: str) -> int:
            wide = name.startswith("e")
            value = frame[_FRAME_INDEX[name if wide else "e" + name]]
            return value if wide else value & 0xFFFF

        return register
