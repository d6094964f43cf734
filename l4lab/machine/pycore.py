# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's core in Python: the same interface and the same results as `core/`, for where no compiler was at hand.

Instructions are counted by the engine itself: `uc_emu_start` takes a count, and the engine calls a function of its own
before each instruction, which stops the run when the count is used up. That costs speed, and it is exact once one
knows what the counter holds: the instructions *begun*. So whoever is called while the CPU runs reads it at once, and
takes one off where the instruction at EIP has begun and not retired:

    a fault, a VM exit, a port          begun, not retired         counter - 1
    a fault of the fetch                not even begun             counter       (the engine's note of where it came
                                                                                  from is empty: nothing was running)
    INT n, a single-step trap           retired                    counter
    a store into its own block          begun twice                the second time is taken off when it begins

A Python function that the engine calls must return to it: it cannot leave by longjmp as the native core does. So events
of a guest are delivered between two runs, by `delivery.py`, and a port instruction is undone after it has happened;
likewise a store to where no RAM is.

Where a block of code ends is the native core's rule: see `blockends.py`.
This file does not import `unicorn`; it is handed the addresses of its functions.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NoReturn

from l4lab.abi.exceptions import BREAKPOINT, DEBUG, GENERAL_PROTECTION, OVERFLOW, PAGE_FAULT, UNDEFINED_OPCODE
from l4lab.abi.frame import FLAG_IF, FLAG_NT, FLAG_RF, FLAG_TF, FLAG_VM
from l4lab.machine import engine as e
from l4lab.machine import svm
from l4lab.machine.blockends import BlockEnds
from l4lab.machine.decode import CMPXCHG8B, MAX_LENGTH, special_instructions
from l4lab.machine.delivery import KINDS, Delivery, EventKind, GuestEvent, TaskSwitchNeeded
from l4lab.machine.memory import Memory
from l4lab.machine.mmu import NestedPageFault, WalkFault
from l4lab.machine.ring0 import Ring0Fault, RingZero
from l4lab.machine.vmcs import CR0_PG

_EXIT_RDTSC = e.VM_EXIT + svm.RDTSC
_EXIT_EXCEPTION = e.VM_EXIT + svm.EXCEPTION
_PAGE_FAULTS = frozenset((PAGE_FAULT, _EXIT_EXCEPTION + PAGE_FAULT, e.VM_EXIT + svm.NESTED_FAULT))
_SINGLE_STEPS = frozenset((DEBUG, _EXIT_EXCEPTION + DEBUG))
_ARITHMETIC, _DF = 0x8D5, 0x400  # OF SF ZF AF PF CF; DF
_REQUEST = 1 << 11  # of CPUState.interrupt_request: one that the engine itself never sets
_NO_ORDER = 0xFFFFFFFF  # in CPUState.cflags_next_tb: the next block is translated as any other
_NONE = 0xFFFFFFFF
# Events of our own: the next block has been thrown away; what comes next is to be the first instruction of a run.
_TRANSLATE_AGAIN, _BEGIN_AGAIN = -99, -98
_CODE_IS_32_BITS_WIDE = 1 << 4
_SPECIAL_BYTES = frozenset(b"\x6c\x6d\x9a\x9c\xc7\xea\xcf\xff")  # without one of these a block has no such instruction
_STOPPED_FOR_NOTHING = 0xFFFE  # in INFO_UC_ERROR: the engine came back of its own accord
_CLASS_WORDS = 64  # of the engine's table of functions that we look through
_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_READ_UNMAPPED, _FETCH_UNMAPPED = 19, 21  # UC_MEM_...: what was tried where no RAM is
_ERROR_READ_UNMAPPED = 6  # UC_ERR_...: numbers in the same order
_EAX, _ECX, _EDX, _ESI, _EDI = (2 * n for n in (0, 1, 2, 6, 7))  # words of the CPU state
_EIP, _EFLAGS, _HFLAGS, _DR6 = (at >> 2 for at in (e.ENV_EIP, e.ENV_EFLAGS, e.ENV_HFLAGS, e.ENV_DR + 48))
_IS_INT, _ERROR_CODE = e.ENV_IS_INT >> 2, e.ENV_ERROR_CODE >> 2
_OLD_EXCEPTION, _NEXT_EIP = e.ENV_OLD_EXCEPTION >> 2, e.ENV_NEXT_EIP >> 2
_CC_SRC, _CC_OP, _FLAGS_ARE_READY = e.ENV_CC_SRC >> 2, e.ENV_CC_OP >> 2, 1  # ready: they are what CC_SRC holds
_RETURN_ADDRESS = e.ENV_RETURN_ADDRESS >> 2
_CS_BASE = (e.ENV_SEGS + 24 + 8) >> 2
# What a port instruction changes, beside memory that it has written already when the port is reached.
_PORT_STATE = (_EIP, _EAX, _ECX, _ESI, _EDI, _DR6)

_P, _U32, _INT = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int
_ON_INTERRUPT = ctypes.CFUNCTYPE(None, _P, _U32, _P)
_ON_INVALID = ctypes.CFUNCTYPE(ctypes.c_bool, _P, _P)
_ON_IN = ctypes.CFUNCTYPE(_U32, _P, _U32, _INT, _P)
_ON_OUT = ctypes.CFUNCTYPE(None, _P, _U32, _INT, _U32, _P)
_ON_SYSENTER = ctypes.CFUNCTYPE(None, _P, _P)
_ON_CPUID = ctypes.CFUNCTYPE(_INT, _P, _P)
_ON_UNMAPPED = ctypes.CFUNCTYPE(ctypes.c_bool, _P, _INT, ctypes.c_uint64, _INT, ctypes.c_int64, _P)
_ON_CODE = ctypes.CFUNCTYPE(None, _P, ctypes.c_uint64, _U32, _P)


class _NewBlock(ctypes.Structure):
    """What the engine says of a block that it has just translated."""

    _fields_ = (("pc", ctypes.c_uint64), ("instructions", ctypes.c_uint16), ("size", ctypes.c_uint16))


_ON_NEW_BLOCK = ctypes.CFUNCTYPE(None, _P, ctypes.POINTER(_NewBlock), ctypes.POINTER(_NewBlock), _P)
_BETWEEN_BLOCKS = ctypes.CFUNCTYPE(ctypes.c_bool, _P, _INT)
# PYFUNCTYPE: as the native core, we keep Python's lock while the CPU runs.
_EMU_START = ctypes.PYFUNCTYPE(_INT, _P, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_size_t)
_OF_ENGINE = ctypes.PYFUNCTYPE(_INT, _P)
_OF_CPU = ctypes.PYFUNCTYPE(None, _P)
_OF_PAGE = ctypes.PYFUNCTYPE(None, _P, ctypes.c_uint64)
_OF_RANGE = ctypes.PYFUNCTYPE(None, _P, ctypes.c_uint64, ctypes.c_uint64)


class PyCore:
    """Drives one engine; see `Engine` for what the methods mean to the rest of the machine."""

    def __init__(
        self,
        handle: int,
        memory: Memory,
        functions: dict[str, int],
        call_before: Callable[[int, int, int], None],
        owner: object,
    ) -> None:
        """`handle`: the engine's; `functions`: addresses of the functions it exports, by name.

        `call_before(function, first, last)` has the engine call a function before instructions at these addresses.
        `owner`: Python's object of the engine, which is freed with it.
        """
        self._call_before = call_before
        self._looked_at: set[int] = set()  # linear addresses of instructions to stop before
        self._go_on = False
        self._uc = handle
        self._memory = memory
        memory.code[:] = b"\1" * len(memory.code)  # nobody notes here where code is: each store is told
        self._cpu = cpu = ctypes.c_uint64.from_address(handle + e.UC_CPU).value
        self._env = _words(cpu + e.CPU_ENV, e.ENV_SIZE, owner)
        self.env = self._env.cast("B")
        self._counter = ctypes.c_size_t.from_address(handle + e.UC_COUNTER)
        self._order = _U32.from_address(cpu + e.CPU_CFLAGS)
        self._request = _U32.from_address(cpu + e.CPU_INTERRUPT_REQUEST)
        self._emu_start: Callable[..., Any] = _EMU_START(functions["uc_emu_start"])
        self._emu_stop = _OF_ENGINE(functions["uc_emu_stop"])
        self._tlb_flush: Callable[..., Any] = _OF_CPU(functions["tlb_flush_x86_64"])
        self._tlb_flush_page: Callable[..., Any] = _OF_PAGE(functions["tlb_flush_page_x86_64"])
        self._invalidate: Callable[..., Any] = _OF_RANGE(functions["tb_invalidate_phys_range_x86_64"])
        self._between = _BETWEEN_BLOCKS(self._between_blocks)
        self._take_over(functions["x86_cpu_exec_interrupt_x86_64"])
        self._callbacks = (
            _ON_INTERRUPT(self._on_interrupt),
            _ON_INVALID(self._on_invalid),
            _ON_IN(self._on_in),
            _ON_OUT(self._on_out),
            _ON_SYSENTER(self._on_sysenter),
            _ON_CPUID(self._on_cpuid),
            _ON_UNMAPPED(self._on_unmapped),
        )
        self._on_new_block = _ON_NEW_BLOCK(self._find_special)
        self._on_special = _ON_CODE(self._stop_before)
        self.on_new_block = ctypes.cast(self._on_new_block, _P).value or 0
        self._ring0 = RingZero(memory, self._env)
        self._delivery = Delivery(memory, self._env, self._ring0)
        self._ends = BlockEnds(handle, functions["check_exit_request_x86_64"], self._code, self._code_bits)
        # of the current run of the engine
        self._number: int | None = None  # what was noted: exception, VM exit, or one of our events
        self._direct = False  # it is for our caller, whatever mode the CPU is in
        self._watching = False  # stop as soon as IF is set
        self._executed = 0  # instructions retired when it was noted
        self._resuming = 0  # RF as it was at the beginning
        self._count = 0  # instructions that it may execute
        self._port_state: list[int] | None = None
        self._whole_state: bytes | None = None  # to be put back
        # of all runs
        self.retired = 0
        self._charged = 0
        # orders for the next run
        self.pending = -1
        self._injection = (0, 0, 0)
        self._window = False
        self._native_time = False
        self._time_offset = 0
        self.info = memoryview(bytearray(4 * 7))
        self._info = self.info.cast("I")

    @property
    def callbacks(self) -> tuple[int, ...]:
        """What to register: opaque, block (none), interrupt, invalid instruction, in, out, SYSENTER, CPUID, no RAM."""
        return 0, 0, *(ctypes.cast(callback, _P).value or 0 for callback in self._callbacks)

    @property
    def deliveries(self) -> int:
        """Attempts to deliver an event through a guest's IDT."""
        return self._delivery.attempts

    @property
    def cycles(self) -> int:
        """The clock."""
        return self.retired + self._delivery.attempts + self._charged

    # -- orders --------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Nothing runs any more; the engine is freed once nobody has a view on its state."""
        self._ends.close()
        self._env.release()
        self.env.release()
        self._call_before = _closed
        self._emu_start = self._tlb_flush = self._tlb_flush_page = self._invalidate = _closed

    def charge(self, cycles: int) -> int:
        """Move the clock without running; what it reads then."""
        self._charged += cycles
        return self.cycles

    def swap(self, save: bytearray, load: bytes | bytearray) -> None:
        """Exchange the whole CPU state, and forget the TLB."""
        if len(save) != e.ENV_SIZE or len(load) != e.ENV_SIZE:
            raise ValueError("a CPU context has the size that the engine's probe found")
        load = bytes(load)
        save[:] = self.env
        self.env[:] = load
        self.flush_tlb()

    def flush_tlb(self) -> None:
        """Forget all address translations."""
        self._tlb_flush(self._cpu)

    def flush_page(self, linear: int) -> None:
        """Forget the translation of one page."""
        self._tlb_flush_page(self._cpu, linear & 0xFFFFF000)

    def set_cr3(self, address: int) -> None:
        """Load CR3, and forget all address translations."""
        at = (e.ENV_CR >> 2) + 6
        self._env[at], self._env[at + 1] = address, 0
        self.flush_tlb()

    def forget_code(self, begin: int, end: int) -> None:
        """RAM was written behind the engine's back."""
        self._invalidate(self._uc, begin, end)

    def code_at(self, linear: int) -> bytes:
        """Bytes of the instruction just fetched, where that is cheap to know; here it is not."""
        return b""

    def inject(self, vector: int, kind: int, error_code: int, length: int) -> None:
        """Deliver this event before the next instruction: external interrupt 0, exception 1, software interrupt 2."""
        self.pending = vector
        self._injection = (kind, error_code, length)

    def go_on(self) -> None:
        """Execute the instruction that the last run stopped before."""
        self._go_on = True

    def set_window(self, on: bool) -> None:
        """Stop at the first instruction boundary at which an interrupt could be taken."""
        self._window = on

    def set_time(self, native: bool, offset: int) -> None:
        """May a guest read the clock, plus `offset`, without an exit?"""
        self._native_time, self._time_offset = native, offset

    # -- what the engine calls -----------------------------------------------------------------------------------------

    def _on_interrupt(self, uc: int, number: int, opaque: int) -> None:
        """An exception, a software interrupt or a VM exit."""
        if self._number is not None:  # the trap behind a port instruction that will be undone
            return
        env = self._env
        if number >= e.VM_EXIT:
            env[_IS_INT] = 0
        fetch = number in _PAGE_FAULTS and not env[_RETURN_ADDRESS] and not env[_RETURN_ADDRESS + 1]
        self._note(number, retired=bool(env[_IS_INT] or fetch or number in _SINGLE_STEPS))

    def _on_invalid(self, uc: int, opaque: int) -> bool:
        """#UD. In guest mode too it is for our caller: VMX instructions, which the engine does not know, are exits.

        The engine goes by the number alone, so INT 6 comes here as well: it is a software interrupt as any other.
        """
        env = self._env
        if env[_IS_INT]:
            env[_EIP] = env[_NEXT_EIP]  # as the engine has done for the others
            self._on_interrupt(uc, UNDEFINED_OPCODE, opaque)
            return True
        self._note(UNDEFINED_OPCODE, retired=False)
        self._direct = True
        return True

    def _on_in(self, uc: int, port: int, size: int, opaque: int) -> int:
        self._on_port(e.EVENT_IN, port, size, 0)
        return 0

    def _on_out(self, uc: int, port: int, size: int, value: int, opaque: int) -> None:
        self._on_port(e.EVENT_OUT, port, size, value)

    def _on_port(self, event: int, port: int, size: int, value: int) -> None:
        self._note_for_undoing(event)
        self._info[e.INFO_PORT], self._info[e.INFO_SIZE], self._info[e.INFO_VALUE] = port, size, value

    def _on_sysenter(self, uc: int, opaque: int) -> None:
        """Nothing but EIP moves. A guest's is done by our caller; in a program it is a #GP."""
        if self._env[_HFLAGS] & e.HF_GUEST:
            self._note_for_undoing(e.EVENT_SYSENTER)
        else:
            self._note_for_undoing(GENERAL_PROTECTION)

    def _on_cpuid(self, uc: int, opaque: int) -> int:
        """CPUID of a program: the engine is not to do it, as what it returns says, but to step over it."""
        self._note_for_undoing(e.EVENT_CPUID)
        return 1

    def _note_for_undoing(self, event: int) -> None:
        """The instruction will complete before the engine stops, and be undone."""
        self._note(event, retired=False)
        self._direct = True
        env = self._env
        self._port_state = [env[at] for at in (*_PORT_STATE, _EFLAGS, _CC_SRC, _HFLAGS)]

    def _on_unmapped(self, uc: int, kind: int, address: int, size: int, value: int, opaque: int) -> bool:
        """An access to where no RAM is. The instruction may go on for a while: what that does to the CPU is undone."""
        if self._number is None:
            self._note(e.EVENT_ERROR, retired=kind == _FETCH_UNMAPPED)
            self._direct = True
            self._info[e.INFO_UC_ERROR] = kind - _READ_UNMAPPED + _ERROR_READ_UNMAPPED
            self._whole_state = bytes(self.env)
        return False

    def _code(self, linear: int, size: int) -> bytes:
        """What is at a linear address, shorter where a page is missing."""
        if self._translates():
            return self._ring0.peek(linear, size)
        return bytes(self._memory.u8[linear : linear + size])

    def _where(self, linear: int) -> int:
        return self._ring0.where(linear) if self._translates() else linear

    def _translates(self) -> bool:
        env = self._env
        return bool(env[_HFLAGS] & e.HF_GUEST or env[e.ENV_CR >> 2] & CR0_PG)

    def _code_bits(self) -> int:
        return 32 if self._env[_HFLAGS] & _CODE_IS_32_BITS_WIDE else 16

    def _find_special(self, uc: int, block: Any, previous: Any, opaque: int) -> None:
        """A block is about to run for the first time. Does it hold what the engine does not do as we need?

        In a guest that is INS, which writes before it asks for the port, task switches, which should be exits, and
        PUSHFD, which stores EFLAGS.VM. They are to be stopped before. Everywhere it is CMPXCHG8B, which leaves right
        flags only where a run begins with it. The block is translated again, with a call in front of each.
        """
        linear = block[0].pc
        size = min(block[0].size, MAX_LENGTH * block[0].instructions)  # the size of one that faults may be anything
        code = self._code(linear, size)
        if _SPECIAL_BYTES.isdisjoint(code):
            return
        found = self._special_in(code)
        new = [at for at in (linear + offset & 0xFFFFFFFF for offset in found) if at not in self._looked_at]
        for at in new:
            self._looked_at.add(at)
            self._call_before(ctypes.cast(self._on_special, _P).value or 0, at, at)
        if new:
            for at in new:
                physical = self._where(at)
                self.forget_code(physical, physical + 1)
            if self._number is None:
                self._note(_TRANSLATE_AGAIN, retired=True)

    def _stop_before(self, uc: int, linear: int, size: int, opaque: int) -> None:
        """One of those instructions is next."""
        env = self._env
        if self._number is not None:
            return
        code = self._code(linear, min(size, MAX_LENGTH))
        if self._special_in(code) != [0]:
            return  # another program has been here, or another page
        if code.lstrip(bytes(_PREFIXES))[:2] == CMPXCHG8B:
            if self._counter.value > 1:
                self._note(_BEGIN_AGAIN, retired=False)
            return
        opcode = code.lstrip(bytes(_PREFIXES))[:1]
        if opcode not in (b"\x6c", b"\x6d", b"\x9c"):
            if not env[e.ENV_CR >> 2] & 1 or env[_EFLAGS] & FLAG_VM:
                return
            if opcode == b"\xcf" and not env[_EFLAGS] & FLAG_NT:
                return
        if self._go_on:
            self._go_on = False
            return
        self._note(e.EVENT_BEFORE, retired=False)
        self._direct = True

    def _special_in(self, code: bytes) -> list[int]:
        env = self._env
        guest, v8086 = bool(env[_HFLAGS] & e.HF_GUEST), bool(env[_EFLAGS] & FLAG_VM)
        return special_instructions(code, self._code_bits(), guest, v8086)

    def _note(self, number: int, retired: bool) -> None:
        self._number = number
        self._executed = self._counter.value - (0 if retired else 1)
        if not retired:
            # The engine computed the flags when it counted this instruction, and then went back to the instruction's
            # record of how to compute them, which is from before.
            self._env[_CC_OP] = _FLAGS_ARE_READY
        elif not self._counter.value:  # the very first could not even be fetched
            self._env[_EFLAGS] |= self._resuming
        self._emu_stop(self._uc)

    def _between_blocks(self, cpu: int, request: int) -> bool:
        """Stands in for the engine's own look-out for interrupts: called whenever no block is running."""
        if self._order.value != _NO_ORDER:
            # The last block overwrote itself: the engine left it at the store, which will begin once more, alone.
            self._counter.value -= 1
            self._env[_CC_OP] = _FLAGS_ARE_READY  # see _note
        if self._counter.value < self._count and self._number is None:
            self._env[_EFLAGS] &= ~FLAG_RF  # the engine would keep it, and PUSHF store it, to the end of some block
        if self._watching and self._number is None and self._env[_EFLAGS] & FLAG_IF:
            self._note(e.EVENT_WINDOW, retired=True)
        return False

    def _take_over(self, function: int) -> None:
        table = ctypes.c_uint64.from_address(self._cpu + e.CPU_CLASS).value
        slots = (ctypes.c_uint64 * _CLASS_WORDS).from_address(table)
        for index, slot in enumerate(slots):
            if slot == function:
                slots[index] = ctypes.cast(self._between, _P).value or 0

    # -- running -------------------------------------------------------------------------------------------------------

    def run(self, frame: int, deadline: int) -> int:
        """Run until the clock reads `deadline` or something happens; the event."""
        env = self._env
        self._load(frame >> 2)
        env[_OLD_EXCEPTION], env[_IS_INT] = _NONE, 0
        event = None
        if self.cycles < deadline:
            while event is None:
                if self.pending >= 0:
                    event = self._deliver_injected()
                elif self._window_open():
                    event = e.EVENT_WINDOW
                else:
                    event = self._run_engine(deadline - self.cycles)
                if event is None and self.cycles >= deadline:
                    event = e.EVENT_WINDOW if self._window_open() else e.EVENT_BUDGET
        self._store(frame >> 2)
        self._go_on = False
        return e.EVENT_BUDGET if event is None else event

    def _window_open(self) -> bool:
        env = self._env
        return self._window and bool(env[_EFLAGS] & FLAG_IF) and not env[_HFLAGS] & e.HF_INHIBIT_IRQ

    def _run_engine(self, count: int) -> int | None:
        """Let the CPU run at most `count` instructions; the event, or None if there is reason to go on."""
        env = self._env
        self._watching = self._window
        if self._window and env[_EFLAGS] & FLAG_IF:  # in the shadow of STI or MOV SS: it ends with the next instruction
            self._watching = False
            count = 1
        self._number, self._direct, self._port_state, self._whole_state = None, False, None, None
        self._count = count
        self._resuming = env[_EFLAGS] & FLAG_RF
        self._order.value = _NO_ORDER
        self._request.value |= _REQUEST
        error = self._emu_start(self._uc, env[_EIP], 0, 0, count)
        self._request.value &= ~_REQUEST
        number = self._number
        if number is None and not error:
            if self._counter.value > count:
                self.retired += count
                return None
            error = _STOPPED_FOR_NOTHING
        if number is None:
            self.retired += self._counter.value if error == _STOPPED_FOR_NOTHING else max(self._counter.value - 1, 0)
            self._info[e.INFO_UC_ERROR] = error
            return e.EVENT_ERROR
        self.retired += self._executed
        if number in (e.EVENT_WINDOW, _TRANSLATE_AGAIN, _BEGIN_AGAIN):
            return None
        if self._port_state is not None:
            self._undo(self._port_state)
        if self._whole_state is not None:
            self.env[:] = self._whole_state
            env[_EFLAGS] &= ~(_ARITHMETIC | _DF)
            env[_EFLAGS] |= env[_CC_SRC] & _ARITHMETIC | env[e.ENV_DIRECTION >> 2] & _DF
        return self._happened(number)

    def _happened(self, number: int) -> int | None:
        env = self._env
        if self._direct:
            if number in (UNDEFINED_OPCODE, GENERAL_PROTECTION):
                self._tell(number, 0)
            return number
        if number == _EXIT_RDTSC and self._native_time and not env[_EFLAGS] & FLAG_TF:
            return self._read_time()
        if number < e.VM_EXIT and env[_HFLAGS] & e.HF_GUEST:
            eip = env[_EIP]
            if env[_IS_INT]:
                event = GuestEvent(number, EventKind.SOFTWARE, 0, self._before_software_interrupt(number, eip), eip)
            else:
                event = GuestEvent(number, EventKind.EXCEPTION, env[_ERROR_CODE], eip, eip)
            return self._deliver(event)
        self._tell(number, env[_ERROR_CODE], env[_IS_INT])
        return number

    def _tell(self, vector: int, error_code: int, is_int: int = 0) -> None:
        info = self._info
        info[e.INFO_VECTOR], info[e.INFO_ERROR_CODE], info[e.INFO_IS_INT] = vector, error_code, bool(is_int)

    def _undo(self, saved: list[int]) -> None:
        """The port instruction has completed with a dummy value: back to where it had not begun."""
        env = self._env
        for at, value in zip(_PORT_STATE, saved, strict=False):
            env[at] = value
        eflags, arithmetic, hflags = saved[-3:]
        env[_EFLAGS] = env[_EFLAGS] & ~(FLAG_RF | _ARITHMETIC) | eflags & FLAG_RF | arithmetic & _ARITHMETIC
        env[_HFLAGS] |= hflags & e.HF_INHIBIT_IRQ

    def _read_time(self) -> int | None:
        """RDTSC of a guest whose controls leave it alone: the clock, and on with the guest."""
        env = self._env
        start = env[_CS_BASE] + env[_EIP]
        length = 0
        while self._ring0.read(start + length, 1) in _PREFIXES:
            length += 1
        ticks = self.cycles + self._time_offset & 0xFFFFFFFFFFFFFFFF
        env[_EAX], env[_EAX + 1] = ticks & 0xFFFFFFFF, 0
        env[_EDX], env[_EDX + 1] = ticks >> 32, 0
        env[_EIP] = env[_EIP] + length + 2 & 0xFFFFFFFF
        env[_HFLAGS] &= ~e.HF_INHIBIT_IRQ
        self.retired += 1
        return None

    # -- events of a guest ---------------------------------------------------------------------------------------------

    def _deliver_injected(self) -> int | None:
        env = self._env
        vector, (kind, error_code, length) = self.pending, self._injection
        self.pending = -1
        eip = env[_EIP]
        back = eip + length & 0xFFFFFFFF if kind in (e.KIND_EXCEPTION, e.KIND_SOFTWARE) else eip
        return self._deliver(GuestEvent(vector, KINDS[kind], error_code, eip, back, injected=True))

    def _deliver(self, event: GuestEvent) -> int | None:
        """Deliver it if it can be done simply, as the native core does; else it is for our caller."""
        try:
            self._delivery.attempt(event)
        except NestedPageFault as problem:
            result = self._delivery.exit_for(problem)
            self._tell(e.VM_EXIT + result.code, result.error_code)
            return e.VM_EXIT + result.code
        except (WalkFault, Ring0Fault, TaskSwitchNeeded) as problem:
            if isinstance(problem, WalkFault):  # has left its mark in the native core when that gives up
                self._delivery.note_page_fault(problem, self._env[e.ENV_INTERCEPT_EXCEPTIONS >> 2])
            self._delivery.forget()
            info = self._info
            info[e.INFO_VECTOR], info[e.INFO_ERROR_CODE] = event.vector, event.error_code
            info[e.INFO_KIND], info[e.INFO_BACK] = KINDS.index(event.kind), event.back
            info[e.INFO_INJECTED] = event.injected
            return e.EVENT_DELIVER
        finally:
            self._env[_IS_INT], self._env[_OLD_EXCEPTION] = 0, _NONE
        return None

    def _before_software_interrupt(self, vector: int, behind: int) -> int:
        """Where the INT, INT3 or INTO that ends at `behind` begins; a prefix in front of it is not seen."""
        short = {BREAKPOINT: b"\xcc", OVERFLOW: b"\xce"}.get(vector)
        length = 1 if short == self._ring0.peek(self._env[_CS_BASE] + behind - 1, 1) else 2
        return behind - length & 0xFFFFFFFF

    # -- the register frame --------------------------------------------------------------------------------------------

    def _load(self, at: int) -> None:
        env, frame = self._env, self._memory.u32[at : at + 10]
        env[_EIP], env[_EIP + 1], env[_EFLAGS], env[_EFLAGS + 1] = frame[0], 0, frame[1] | 2, 0
        for i in range(8):
            env[14 - 2 * i], env[15 - 2 * i] = frame[2 + i], 0

    def _store(self, at: int) -> None:
        env, frame = self._env, self._memory.register_frame(at << 2)
        frame[0], frame[1] = env[_EIP], env[_EFLAGS] & ~(FLAG_RF if env[_HFLAGS] & e.HF_GUEST else 0)
        for i in range(8):
            frame[2 + i] = env[14 - 2 * i]


def _closed(*_: object) -> NoReturn:
    raise RuntimeError("this engine was closed")


def _words(address: int, size: int, owner: object) -> memoryview:
    """A view on the engine's memory, with which the engine lives on."""
    array: Any = (_U32 * (size // 4)).from_address(address)
    array.owner = owner
    return memoryview(array).cast("B").cast("I")
