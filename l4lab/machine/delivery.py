# SPDX-License-Identifier: GPL-2.0-or-later
"""Delivering an event to a guest: what the CPU does between an exception and the first instruction of its handler.

Source: Intel SDM vol. 3, chapter "Interrupt and Exception Handling". This file does it to the engine's CPU state
and the guest's memory, step by step. So it is also the place to read what happens:

    vector -> gate in the IDT -> code segment of the handler -> (more privileged? then its stack, from the TSS)
           -> the frame is pushed -> flags, CS:EIP and SS:ESP are loaded

What the frame looks like, highest address first, in words of 32 bits (16 bits for a 286 gate):

    GS FS DS ES         only from virtual-8086 mode
    SS ESP              only if the privilege changes
    EFLAGS CS EIP
    error code          only of exceptions that have one

Each step can fail, which is an exception itself; one on top of another is a double fault, one more shuts the CPU down.
A page that the second-level tables miss ends the guest's run half-way: the event stays noted in the control block.

The native core has the engine do what is frequent and simple, and comes here for the rest: task gates, which are an
exit to the monitor, as every task switch is under VT-x, and whatever faults on its way. As the engine has it, and other
than the manual: limits of stack and code segment are not checked; accessed bits of descriptors are not set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from l4lab.machine import engine as e
from l4lab.machine.memory import PAGE_SIZE, Memory
from l4lab.machine.mmu import READ, USER, WRITE, NestedPageFault, PageFault, host_walk, walk, walk_nested

# What the engine's native delivery raises as exits (AMD64 manual vol. 2, "SVM Intercept Exit Codes").
EXIT_EXCEPTION, EXIT_TASK_SWITCH, EXIT_SHUTDOWN, EXIT_NESTED_FAULT = 0x40, 0x7D, 0x7F, 0x400
_B_EXIT_INFO_1, _B_EXIT_INFO_2, _B_EVENT, _B_EVENT_ERROR = 0x78, 0x80, 0xA8, 0xAC  # in the control block
_EVENT_VALID, _EVENT_HAS_ERROR = 1 << 31, 1 << 11

DOUBLE_FAULT, INVALID_TSS, NOT_PRESENT, STACK_FAULT, GENERAL_PROTECTION, PAGE_FAULT = 8, 10, 11, 12, 13, 14
_NO_FAULTS = frozenset((1, 2, 3, 4, DOUBLE_FAULT, 18))  # traps, NMI, aborts: executing the instruction again is no use
HAS_ERROR_CODE = frozenset((8, 10, 11, 12, 13, 14, 17))
_CONTRIBUTORY = frozenset((0, 10, 11, 12, 13))
_NONE = 0xFFFFFFFF  # in ENV_OLD_EXCEPTION: no exception is being delivered

_TF, _IF, _NT, _RF, _VM, _AC = 1 << 8, 1 << 9, 1 << 14, 1 << 16, 1 << 17, 1 << 18
_PE, _WP, _PG, _PSE = 1, 1 << 16, 1 << 31, 1 << 4
_HF_CS32, _HF_SS32, _HF_ADDSEG = 1 << 4, 1 << 5, 1 << 6

# The high word of a descriptor or gate. The engine keeps it as the flags of a loaded segment.
_PRESENT, _SEGMENT, _CODE, _CONFORMING, _WRITABLE, _BIG, _PAGES = (1 << n for n in (15, 12, 11, 10, 9, 22, 23))
_TSS_32, _TSS_32_LIMIT, _TSS_16_LIMIT = 1 << 11, 103, 43
_TASK_GATE, _INTERRUPT_16, _TRAP_16, _INTERRUPT_32, _TRAP_32 = 5, 6, 7, 14, 15
_IN_IDT = 2  # bit of an error code: the index is that of a gate
_EXTERNAL = 1  # and that the program did not ask for the event in whose delivery it happened

_ES, _CS, _SS, _DS, _FS, _GS = range(6)
_ESP = 4  # in the engine's order of general registers


class Kind(Enum):
    """Where an event comes from; the values are the control block's types of events."""

    EXTERNAL = 0  # no error code, no privilege check
    NMI = 2  # likewise
    EXCEPTION = 3
    SOFTWARE = 4  # INT n, INT3, INTO: the gate's DPL decides who may


KINDS = (Kind.EXTERNAL, Kind.EXCEPTION, Kind.SOFTWARE, Kind.NMI)  # as the engine's cores number them


@dataclass(frozen=True, slots=True)
class Event:
    """Something to deliver. `at` is where EIP stands if it comes to nothing, `back` the address that is pushed."""

    vector: int
    kind: Kind
    error_code: int
    at: int
    back: int
    injected: bool = False  # a monitor's wish, or one that began in an earlier run: EFLAGS are pushed as they are


@dataclass(frozen=True, slots=True)
class Exit:
    """The delivery ended the guest's run: AMD exit code, and the error code that the engine gives with it."""

    code: int
    error_code: int = 0


class Fault(Exception):
    """A step of the delivery failed with this exception."""

    def __init__(self, vector: int, error_code: int) -> None:
        super().__init__(vector, error_code)
        self.vector = vector
        self.error_code = error_code


class TaskSwitch(Exception):
    """The gate is a task gate to this TSS."""

    def __init__(self, selector: int) -> None:
        super().__init__(selector)
        self.selector = selector


class Delivery:
    """Delivers events to the guest whose state is in `env`. `attempts` counts; each costs the machine one cycle."""

    def __init__(self, memory: Memory, env: memoryview, wrote: Callable[[int, int], None]) -> None:
        """`env`: the engine's CPU state in words; `wrote` is told of each physical range that a frame went to."""
        self._memory = memory
        self._env = env
        self._wrote = wrote
        self.attempts = 0
        self.exiting = 0  # the exceptions that end the guest's run, a bit for each

    def deliver(self, event: Event) -> Exit | None:
        """Deliver `event` or whatever comes of it; None when the guest stands at the first instruction of a handler."""
        env = self._env
        double = event.vector in _CONTRIBUTORY or event.vector in (PAGE_FAULT, DOUBLE_FAULT)
        env[e.ENV_OLD_EXCEPTION >> 2] = event.vector if event.kind is Kind.EXCEPTION and double else _NONE
        while True:
            try:
                self.attempt(event)
            except (NestedPageFault, PageFault, Fault, TaskSwitch) as problem:
                after = self._after(problem, event)
                if isinstance(after, Exit):
                    env[e.ENV_OLD_EXCEPTION >> 2] = _NONE
                    return after
                event = after
            else:
                env[e.ENV_OLD_EXCEPTION >> 2] = _NONE
                return None

    def attempt(self, event: Event) -> None:
        """Deliver just this event. What prevents it is raised, and the guest is where it was."""
        env = self._env
        self.attempts += 1
        _forget_unusable_tss(env)
        self._note(event)
        try:
            if env[e.ENV_CR >> 2] & _PE:
                self._protected_mode(event)
            else:
                self._real_mode(event)
        except Exception:
            env[e.ENV_EIP >> 2] = event.at
            raise
        self._memory.u32[self._block(_B_EVENT)] &= ~_EVENT_VALID

    def forget(self) -> None:
        """It is to be delivered from the beginning, by somebody else."""
        self.attempts -= 1
        self._memory.u32[self._block(_B_EVENT)] = 0

    def note_page_fault(self, fault: PageFault, exiting: int) -> None:
        """The address goes to CR2, or into the control block where the exception ends the guest's run."""
        if exiting >> PAGE_FAULT & 1:
            u32 = self._memory.u32
            u32[self._block(_B_EXIT_INFO_2)], u32[self._block(_B_EXIT_INFO_2 + 4)] = fault.address, 0
        else:
            self._set64(e.ENV_CR + 16, fault.address)

    def exit_for(self, problem: NestedPageFault) -> Exit:
        """The exit that a missing page of the second level is."""
        u32 = self._memory.u32
        address = problem.address & 0xFFFFFFFF  # which a page of 4 MB may lie beyond (PSE-36)
        u32[self._block(_B_EXIT_INFO_2)], u32[self._block(_B_EXIT_INFO_2 + 4)] = address, 0
        return Exit(EXIT_NESTED_FAULT, problem.error_code)

    # -- what a failed delivery becomes --------------------------------------------------------------------------------

    def _after(self, problem: Exception, event: Event) -> Event | Exit:
        u32 = self._memory.u32
        if isinstance(problem, TaskSwitch):
            u32[self._block(_B_EXIT_INFO_1)] = problem.selector
            return Exit(EXIT_TASK_SWITCH)
        if isinstance(problem, NestedPageFault):
            return self.exit_for(problem)
        intercepted = self.exiting
        if isinstance(problem, PageFault):
            vector, error_code = PAGE_FAULT, problem.error_code
            self.note_page_fault(problem, intercepted)
        else:
            assert isinstance(problem, Fault)
            vector, error_code = problem.vector, problem.error_code
            if event.kind is not Kind.SOFTWARE:
                error_code |= _EXTERNAL  # it was no INT n of the program that met it
        if intercepted >> vector & 1:
            return Exit(EXIT_EXCEPTION + vector, error_code)
        return self._escalate(vector, error_code, event.at)

    def _escalate(self, second: int, error_code: int, at: int) -> Event | Exit:
        """An exception while `old_exception` is delivered (SDM, table "Conditions for Generating a Double Fault")."""
        first = self._env[e.ENV_OLD_EXCEPTION >> 2]
        if first == DOUBLE_FAULT:
            return Exit(EXIT_SHUTDOWN)
        serious = second in _CONTRIBUTORY
        if (first in _CONTRIBUTORY and serious) or (first == PAGE_FAULT and (serious or second == PAGE_FAULT)):
            second, error_code = DOUBLE_FAULT, 0
            if self.exiting >> DOUBLE_FAULT & 1:
                return Exit(EXIT_EXCEPTION + DOUBLE_FAULT)
        if serious or second in (PAGE_FAULT, DOUBLE_FAULT):
            self._env[e.ENV_OLD_EXCEPTION >> 2] = second
        return Event(second, Kind.EXCEPTION, error_code, at, at)

    def _note(self, event: Event) -> None:
        """The control block names the event in delivery: what an exit half-way has interrupted."""
        u32 = self._memory.u32
        note = event.vector | event.kind.value << 8 | _EVENT_VALID
        if event.kind is Kind.EXCEPTION and event.vector in HAS_ERROR_CODE and self._env[e.ENV_CR >> 2] & _PE:
            note |= _EVENT_HAS_ERROR
            u32[self._block(_B_EVENT_ERROR)] = event.error_code
        u32[self._block(_B_EVENT)] = note

    # -- protected mode (SDM, "Exception or Interrupt Procedures" and "Error Code") ------------------------------------

    def _protected_mode(self, event: Event) -> None:
        env = self._env
        gate_error = event.vector * 8 | _IN_IDT
        low, high = self._gate(event.vector, gate_error)
        kind = high >> 8 & 31
        from_v8086 = bool(env[e.ENV_EFLAGS >> 2] & _VM)
        cpl = env[e.ENV_HFLAGS >> 2] & e.HF_CPL
        if kind not in (_TASK_GATE, _INTERRUPT_16, _TRAP_16, _INTERRUPT_32, _TRAP_32):
            raise Fault(GENERAL_PROTECTION, gate_error)
        if event.kind is Kind.SOFTWARE and high >> 13 & 3 < cpl:
            raise Fault(GENERAL_PROTECTION, gate_error)
        if not high & _PRESENT:
            raise Fault(NOT_PRESENT, gate_error)
        if kind == _TASK_GATE:
            self.check_task(low >> 16)
            raise TaskSwitch(low >> 16)

        selector, offset = low >> 16, high & 0xFFFF0000 | low & 0xFFFF
        code = self._code_segment(selector, cpl)
        new_cpl = cpl if code[1] & _CONFORMING else code[1] >> 13 & 3
        if new_cpl < cpl:
            stack_selector, esp = self._stack_from_tss(new_cpl)
            stack = self._stack_segment(stack_selector, new_cpl)
            stack_base, stack_flags = _base(stack), stack[1]
        else:
            if from_v8086:  # a handler for it must run in ring 0
                raise Fault(GENERAL_PROTECTION, selector & 0xFFFC)
            stack = None
            esp = env[_ESP * 2]
            stack_base, stack_flags = env[_segment(_SS) + 2], env[_segment(_SS) + 5]
        esp_mask = 0xFFFFFFFF if stack_flags & _BIG else 0xFFFF

        size = 4 if kind in (_INTERRUPT_32, _TRAP_32) else 2
        for word in self._frame(event, stack is not None, from_v8086):
            esp = esp - size & 0xFFFFFFFF
            self.write(stack_base + (esp & esp_mask) & 0xFFFFFFFF, word, size)

        # Nothing below can fail.
        cleared = _TF | _VM | _RF | _NT | (_IF if kind in (_INTERRUPT_16, _INTERRUPT_32) else 0)
        env[e.ENV_EFLAGS >> 2] &= ~cleared
        if stack is not None:
            if from_v8086:
                for register in (_ES, _DS, _FS, _GS):
                    self._load_segment(register, 0, 0, 0, 0)
            self._load_segment(_SS, stack_selector & ~3 | new_cpl, stack_base, _limit(stack), stack_flags)
            env[e.ENV_HFLAGS >> 2] = env[e.ENV_HFLAGS >> 2] & ~e.HF_CPL | new_cpl
        env[_ESP * 2] = env[_ESP * 2] & ~esp_mask & 0xFFFFFFFF | esp & esp_mask
        self._load_segment(_CS, selector & ~3 | new_cpl, _base(code), _limit(code), code[1])
        self._derive_flags()
        self._set64(e.ENV_EIP, offset)

    def _gate(self, vector: int, error_code: int) -> tuple[int, int]:
        table = e.ENV_IDT >> 2
        if vector * 8 + 7 > self._env[table + 4]:
            raise Fault(GENERAL_PROTECTION, error_code)
        at = self._env[table + 2] + vector * 8
        return self.read(at, 4), self.read(at + 4, 4)

    def _code_segment(self, selector: int, cpl: int) -> tuple[int, int]:
        if selector & 0xFFFC == 0:
            raise Fault(GENERAL_PROTECTION, 0)
        found = self.descriptor(selector)
        if found is None or not found[1] & _SEGMENT or not found[1] & _CODE or found[1] >> 13 & 3 > cpl:
            raise Fault(GENERAL_PROTECTION, selector & 0xFFFC)
        if not found[1] & _PRESENT:
            raise Fault(NOT_PRESENT, selector & 0xFFFC)
        return found

    def check_task(self, selector: int, *, returning: bool = False) -> None:
        """Is it the selector of a TSS that may be switched to? IRET goes back to a busy one. (SDM, "Task Switching")"""
        bad = INVALID_TSS if returning else GENERAL_PROTECTION
        found = None if selector & 4 else self.descriptor(selector)
        if found is None or found[1] >> 8 & 0x17 != (3 if returning else 1):
            raise Fault(bad, selector & 0xFFFC)
        if not found[1] & _PRESENT:
            raise Fault(NOT_PRESENT, selector & 0xFFFC)
        if _limit(found) < (_TSS_32_LIMIT if found[1] & _TSS_32 else _TSS_16_LIMIT):
            raise Fault(INVALID_TSS, selector & 0xFFFC)

    def _stack_from_tss(self, privilege: int) -> tuple[int, int]:
        """SS and ESP for a privilege level, from the TSS that TR names, of 32 or of 16 bits."""
        env = self._env
        at = e.ENV_TR >> 2
        wide = env[at + 5] >> 11 & 1
        entry = privilege * 4 + 2 << wide
        if entry + (4 << wide) - 1 > env[at + 4]:
            raise Fault(INVALID_TSS, env[at] & 0xFFFC)
        base = env[at + 2]
        if wide:
            esp = self.read(base + entry, 4)
            return self.read(base + entry + 4, 2), esp
        esp = self.read(base + entry, 2)
        return self.read(base + entry + 2, 2), esp

    def _stack_segment(self, selector: int, privilege: int) -> tuple[int, int]:
        error = Fault(INVALID_TSS, selector & 0xFFFC)
        if selector & 0xFFFC == 0 or selector & 3 != privilege:
            raise error
        found = self.descriptor(selector)
        if found is None or found[1] >> 13 & 3 != privilege:
            raise error
        if found[1] & (_SEGMENT | _CODE | _WRITABLE) != _SEGMENT | _WRITABLE:
            raise error
        if not found[1] & _PRESENT:
            raise Fault(STACK_FAULT, selector & 0xFFFC)
        return found

    def _frame(self, event: Event, new_stack: bool, from_v8086: bool) -> list[int]:
        """The words to push, first one first."""
        env = self._env
        words: list[int] = []
        if new_stack:
            registers = (_GS, _FS, _DS, _ES, _SS) if from_v8086 else (_SS,)
            words += [env[_segment(register)] for register in registers]
            words.append(env[_ESP * 2])
        eflags = env[e.ENV_EFLAGS >> 2]
        if not event.injected:
            restarts = event.kind is Kind.EXCEPTION and event.vector not in _NO_FAULTS
            eflags = eflags | _RF if restarts else eflags & ~_RF
        words += [eflags, env[_segment(_CS)], event.back]
        if event.kind is Kind.EXCEPTION and event.vector in HAS_ERROR_CODE:
            words.append(event.error_code)
        return words

    # -- real mode (SDM, "Interrupt and Exception Handling" of 8086 emulation) -----------------------------------------

    def _real_mode(self, event: Event) -> None:
        """Offset and segment come from the table of vectors; FLAGS, CS and IP are pushed, never an error code."""
        env = self._env
        table = e.ENV_IDT >> 2
        if event.vector * 4 + 3 > env[table + 4]:
            raise Fault(GENERAL_PROTECTION, event.vector * 8 | _IN_IDT)
        at = env[table + 2] + event.vector * 4
        offset, selector = self.read(at, 2), self.read(at + 2, 2)
        esp, base = env[_ESP * 2], env[_segment(_SS) + 2]
        for word in (env[e.ENV_EFLAGS >> 2], env[_segment(_CS)], event.back):
            esp = esp - 2 & 0xFFFFFFFF
            self.write(base + (esp & 0xFFFF), word, 2)
        env[_ESP * 2] = env[_ESP * 2] & 0xFFFF0000 | esp & 0xFFFF
        env[_segment(_CS)] = selector
        env[_segment(_CS) + 2], env[_segment(_CS) + 3] = selector << 4, 0
        env[e.ENV_EFLAGS >> 2] &= ~(_IF | _TF | _AC | _RF)
        self._set64(e.ENV_EIP, offset)

    # -- CPU state -----------------------------------------------------------------------------------------------------

    def _block(self, offset: int) -> int:
        """Index of a word of the guest's control block."""
        return self._env[e.ENV_VM_VMCB >> 2] + offset >> 2

    def _set64(self, offset: int, value: int) -> None:
        self._env[offset >> 2], self._env[(offset >> 2) + 1] = value, 0

    def _load_segment(self, register: int, selector: int, base: int, limit: int, flags: int) -> None:
        at = _segment(register)
        env = self._env
        env[at], env[at + 2], env[at + 3], env[at + 4], env[at + 5] = selector, base, 0, limit, flags

    def _derive_flags(self) -> None:
        """What the engine keeps ready-made of segments: how wide code and stack are, and whether bases are added."""
        env = self._env
        flags = env[e.ENV_HFLAGS >> 2] & ~(_HF_CS32 | _HF_SS32 | _HF_ADDSEG)
        wide_code = bool(env[_segment(_CS) + 5] & _BIG)
        flags |= _HF_CS32 if wide_code else 0
        flags |= _HF_SS32 if env[_segment(_SS) + 5] & _BIG else 0
        if not wide_code or any(env[_segment(register) + 2] for register in (_DS, _ES, _SS)):
            flags |= _HF_ADDSEG
        env[e.ENV_HFLAGS >> 2] = flags

    def descriptor(self, selector: int) -> tuple[int, int] | None:
        """Both words of a descriptor in the GDT or LDT; None beyond the table's end."""
        table = (e.ENV_LDT if selector & 4 else e.ENV_GDT) >> 2
        index = selector & ~7
        if index + 7 > self._env[table + 4]:
            return None
        at = self._env[table + 2] + index
        return self.read(at, 4), self.read(at + 4, 4)

    # -- guest memory, as ring 0 reaches it ----------------------------------------------------------------------------

    def _physical(self, linear: int, access: int, set_ad: bool = True) -> int:
        env, memory = self._env, self._memory
        cr0 = env[e.ENV_CR >> 2]
        nested = env[e.ENV_NESTED_CR3 >> 2]
        pse = bool(env[(e.ENV_CR >> 2) + 8] & _PSE)
        if cr0 & _PG:
            cr3 = env[(e.ENV_CR >> 2) + 6]
            if not env[(e.ENV_HFLAGS >> 2) + 1] & e.HF2_NESTED:  # shadow tables: there is no second level
                return walk(memory, cr3, linear, access, wp=bool(cr0 & _WP), pse=pse, set_ad=set_ad)
            return walk_nested(memory, nested, cr3, linear, access, wp=bool(cr0 & _WP), pse=pse, set_ad=set_ad)
        return host_walk(memory, nested, pse, set_ad)(linear, access, False)

    def where(self, linear: int) -> int:
        """Physical address behind a linear one, without a mark in the tables; PageFault or NestedPageFault."""
        return self._physical(linear & 0xFFFFFFFF, READ, set_ad=False)

    def peek(self, linear: int, size: int) -> bytes:
        """Memory at a linear address, shorter where a page is missing; nobody notices."""
        data = bytearray()
        while len(data) < size:
            at = linear + len(data)
            try:
                physical = self.where(at)
            except (PageFault, NestedPageFault):
                break
            length = min(size - len(data), PAGE_SIZE - at % PAGE_SIZE)
            data += self._memory.u8[physical : physical + length]
        return bytes(data)

    def _pieces(self, linear: int, size: int, access: int) -> list[tuple[int, int]]:
        """Physical address and length of each part; all are there before the first is touched."""
        linear &= 0xFFFFFFFF
        first = min(size, PAGE_SIZE - linear % PAGE_SIZE)
        pieces = [(self._physical(linear, access), first)]
        if first < size:
            pieces.append((self._physical(linear + first & 0xFFFFFFFF, access), size - first))
        return pieces

    def read(self, linear: int, size: int) -> int:
        """A little-endian number at a linear address; PageFault or NestedPageFault."""
        u8 = self._memory.u8
        return int.from_bytes(b"".join(u8[pa : pa + n] for pa, n in self._pieces(linear, size, READ)), "little")

    def write(self, linear: int, value: int, size: int, user: bool = False) -> None:
        """Store a little-endian number, as ring 0 unless `user` says otherwise; PageFault or NestedPageFault."""
        data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        for pa, length in self._pieces(linear, size, WRITE | USER if user else WRITE):
            self._memory.u8[pa : pa + length] = data[:length]
            data = data[length:]
            self._wrote(pa, pa + length)


def _forget_unusable_tss(env: memoryview) -> None:
    """A TR that names no TSS becomes one with limit 0, so that reading a stack from it is #TS and nothing worse."""
    at = e.ENV_TR >> 2
    if not env[at + 5] & _PRESENT or env[at + 5] >> 8 & 7 != 1:
        env[at + 4], env[at + 5] = 0, _PRESENT | 9 << 8


def _segment(register: int) -> int:
    return e.ENV_SEGS + 24 * register >> 2


def _base(descriptor: tuple[int, int]) -> int:
    low, high = descriptor
    return low >> 16 | (high & 0xFF) << 16 | high & 0xFF000000


def _limit(descriptor: tuple[int, int]) -> int:
    low, high = descriptor
    limit = low & 0xFFFF | high & 0xF0000
    return limit << 12 | 0xFFF if high & _PAGES else limit
