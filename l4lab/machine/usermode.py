# SPDX-License-Identifier: GPL-2.0-or-later
"""User mode: running native programs in ring 3 with paging on, and saying what ended their run.

Descriptor tables are real and in machine memory: the CPU reads them whenever a program loads a segment register. The
kernel gives one frame for them, mapped for the supervisor only at the same linear address in every address space.
Traps come back as vectors; nothing is delivered through the IDT, because the kernel that it would lead to is written
in Python. The IDT is there all the same: its gates say which software interrupts ring 3 may use.
"""

from __future__ import annotations

import struct
from typing import Final

from l4lab.abi.exceptions import DEVICE_NOT_AVAILABLE, GENERAL_PROTECTION
from l4lab.abi.frame import EAX, EBX, ECX, EDX, EFLAGS, EIP, ESP, USER_EFLAGS
from l4lab.machine import engine as e
from l4lab.machine.engine import Engine
from l4lab.machine.identity import CPUID, NO_LEAF
from l4lab.machine.memory import PAGE_SIZE, Memory
from l4lab.machine.mmu import read_mapped

KERNEL_CS: Final = 0x08
KERNEL_DS: Final = 0x10
USER_CS: Final = 0x1B
USER_DS: Final = 0x23
UTCB_GS: Final = 0x2B
_HFLAGS: Final = e.ENV_HFLAGS >> 2
# Offsets in the descriptor frame; 256 gates take 2 KB.
_GDT: Final = 0x000
_IDT: Final = 0x100
_STUB: Final = 0x900
_STACK: Final = 0xA00
_FPU_BEGIN: Final = 600  # x87 and SSE registers in the engine's CPU state
_FPU_END: Final = e.ENV_SYSENTER_CS
_SEGMENT_STATE: Final = slice(e.ENV_SEGS, e.ENV_SEGS + 6 * 24)
_CR0: Final = 0x80010033  # PG WP NE ET MP PE
_CR4: Final = 0x00000614  # PSE TSD OSFXSR OSXMMEXCPT: time is the machine's, so RDTSC traps


LONGEST_INSTRUCTION: Final = 15
_CPUID: Final = b"\x0f\xa2"
_RDTSC: Final = b"\x0f\x31"
_PREFIXES: Final = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf2\xf3")


class UserMode:
    """Ring 3 of the CPU. One per machine; `context` is its CPU state while a guest is loaded."""

    def __init__(self, memory: Memory, engine: Engine, descriptors: int, linear: int, utcb_slot: int) -> None:
        """`descriptors`: a frame, mapped at `linear`; `utcb_slot`: linear address that %gs:0 shall reach."""
        self._memory = memory
        self._engine = engine
        self._frame = descriptors
        self._linear = linear
        self._write_tables(utcb_slot)
        self.context = bytearray(e.ENV_SIZE)
        self.state = engine.env32
        self._segments = b""
        self._flags = 0
        self._cr3 = self._generation = -1
        self._paused = -1  # the frame of who was stopped by a deadline, and has not trapped
        self._fpu_owner = -1
        self._fpu: dict[int, bytes] = {}

    def _write_tables(self, utcb_slot: int) -> None:
        def segment(base: int, limit: int, access: int, flags: int) -> int:
            low = limit & 0xFFFF | (base & 0xFFFFFF) << 16 | access << 40
            return low | (limit >> 16 & 15) << 48 | flags << 52 | (base >> 24) << 56

        gdt = (
            0,
            segment(0, 0xFFFFF, 0x9B, 0xC),  # kernel code
            segment(0, 0xFFFFF, 0x93, 0xC),  # kernel data
            segment(0, 0xFFFFF, 0xFB, 0xC),  # user code
            segment(0, 0xFFFFF, 0xF3, 0xC),  # user data
            segment(utcb_slot, 3, 0xF3, 0x4),  # one word: the address of the running thread's MR0
        )
        self._memory.write(self._frame + _GDT, struct.pack("<6Q", *gdt))
        # A gate's DPL says who may use it by INT n; the addresses are those of a kernel that would run here.
        for vector in range(256):
            dpl = 3 if vector in (3, 0x30, 0x31) else 0
            gate = KERNEL_CS << 16 | (0x8E | dpl << 5) << 40
            self._memory.write(self._frame + _IDT + 8 * vector, struct.pack("<Q", gate))

    def gate_dpl(self, vector: int) -> int:
        """The privilege that INT `vector` needs, from the IDT."""
        return self._memory.u8[self._frame + _IDT + 8 * vector + 5] >> 5 & 3

    def start(self, cr3: int) -> None:
        """Go to ring 3 for the first time, by IRET as a kernel does, under any address space that maps our frame."""
        engine, linear = self._engine, self._linear
        engine.write_register("GDTR", (0, linear + _GDT, 6 * 8 - 1, 0))
        engine.write_register("IDTR", (0, linear + _IDT, 256 * 8 - 1, 0))
        engine.write_register("CR4", _CR4)
        engine.write_register("CR3", cr3)
        engine.write_register("CR0", _CR0)
        for name, selector in (("CS", KERNEL_CS), ("SS", KERNEL_DS)):
            engine.write_register(name, selector)
        for name, selector in (("DS", USER_DS), ("ES", USER_DS), ("FS", USER_DS), ("GS", UTCB_GS)):
            engine.write_register(name, selector)
        self._memory.write(self._frame + _STUB, b"\xcf")  # IRET
        self._memory.write(self._frame + _STACK, struct.pack("<5I", 0, USER_CS, USER_EFLAGS, 0, USER_DS))
        scratch = self._frame + _STACK + 64
        frame = [0] * 10
        frame[EIP], frame[EFLAGS], frame[ESP] = linear + _STUB, 2, linear + _STACK
        self._memory.write(scratch, struct.pack("<10I", *frame))
        engine.run(scratch, engine.cycles + 1)
        self._flags = engine.env32[e.ENV_HFLAGS >> 2]
        if self._flags & e.HF_CPL != 3:
            raise RuntimeError("IRET did not enter ring 3: the engine is not the one we probed")
        self._segments = bytes(engine.env[_SEGMENT_STATE])
        self._cr3 = cr3

    def enter(self, frame: int, cr3: int, generation: int, deadline: int) -> int:
        """Run the thread with this register frame and address space until a trap or `deadline`; the engine's event.

        `generation` is that of the page tables: when it has moved, the TLB may hold what no longer is mapped.
        """
        engine = self._engine
        if cr3 != self._cr3 or generation != self._generation:
            engine.set_cr3(cr3)
            self._cr3, self._generation = cr3, generation
        while True:
            if frame != self._paused:
                # What a program loaded into segment registers is gone after a trap, as if the kernel reloaded them.
                # Not so where the run was only paused: who looks on must not change what happens.
                engine.env[_SEGMENT_STATE] = self._segments
                # CR0.TS, as the CPU caches it: whoever does not own the FPU traps at its first use of it.
                engine.env32[_HFLAGS] = self._flags if frame == self._fpu_owner else self._flags | e.HF_TS
            event: int = engine.run(frame, deadline)
            self._paused = frame if event == e.EVENT_BUDGET else -1
            if event == DEVICE_NOT_AVAILABLE and not engine.info[e.INFO_IS_INT]:
                self._switch_fpu(frame)
                engine.env32[_HFLAGS] &= ~e.HF_TS
                self._paused = frame  # the program sees nothing of this
                continue
            if event == e.EVENT_CPUID:
                self._identify(frame, cr3)
                self._paused = frame
                continue
            if event != GENERAL_PROTECTION or engine.info[e.INFO_IS_INT] or not self._read_time(frame, cr3):
                return event

    def forget_translations(self) -> None:
        """Another CPU state was loaded meanwhile: the TLB holds nothing of ours."""
        self._cr3 = self._paused = -1

    def forget_thread(self, frame: int) -> None:
        """The thread with this frame is gone."""
        self._fpu.pop(frame, None)
        if self._fpu_owner == frame:
            self._fpu_owner = -1
        if frame == self._paused:
            self._paused = -1

    def _switch_fpu(self, frame: int) -> None:
        env = self._engine.env
        if not self._fpu:
            self._fpu[-1] = bytes(env[_FPU_BEGIN:_FPU_END])  # as after reset: what a new thread starts with
        if self._fpu_owner >= 0:
            self._fpu[self._fpu_owner] = bytes(env[_FPU_BEGIN:_FPU_END])
        env[_FPU_BEGIN:_FPU_END] = self._fpu.get(frame) or self._fpu[-1]
        self._fpu_owner = frame

    def _identify(self, frame: int, cr3: int) -> None:
        """CPUID: the leaf that EAX names."""
        registers = self._memory.register_frame(frame)
        leaf = CPUID.get(registers[EAX], NO_LEAF)
        registers[EAX], registers[EBX], registers[ECX], registers[EDX] = leaf
        self._skip(frame, cr3, _CPUID)
        self._engine.charge(1)

    def _read_time(self, frame: int, cr3: int) -> bool:
        """Was that #GP an RDTSC? Then do it: the machine's clock is the only time there is."""
        if not self._skip(frame, cr3, _RDTSC):
            return False
        self._engine.charge(1)
        ticks = self._engine.cycles
        registers = self._memory.register_frame(frame)
        registers[EAX], registers[EDX] = ticks & 0xFFFFFFFF, ticks >> 32
        return True

    def _skip(self, frame: int, cr3: int, opcode: bytes) -> bool:
        """Move EIP behind this instruction, if it is there. To neither that we do ourselves a prefix means anything."""
        registers = self._memory.register_frame(frame)
        begin = registers[EIP]
        code = read_mapped(self._memory, cr3, begin, LONGEST_INSTRUCTION)
        prefixes = 0
        while prefixes < len(code) and code[prefixes] in _PREFIXES:
            prefixes += 1
        behind = prefixes + len(opcode)
        if code[prefixes:behind] != opcode:
            return False
        registers[EIP] = begin + behind & 0xFFFFFFFF
        return True


assert _STACK + 128 <= PAGE_SIZE
