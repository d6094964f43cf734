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

from dataclasses import dataclass
from enum import Enum

from l4lab.abi.exceptions import (
    CONTRIBUTORY,
    DOUBLE_FAULT,
    GENERAL_PROTECTION,
    INVALID_TSS,
    NOT_PRESENT,
    NOT_RESTARTED,
    PAGE_FAULT,
    SHUTDOWN,
    STACK_FAULT,
    WITH_ERROR_CODE,
    escalated,
)
from l4lab.abi.frame import FLAG_AC, FLAG_IF, FLAG_NT, FLAG_RF, FLAG_TF, FLAG_VM
from l4lab.abi.vm import EVENT_HAS_ERROR_CODE, EVENT_VALID
from l4lab.machine import engine as e
from l4lab.machine import svm
from l4lab.machine.memory import Memory
from l4lab.machine.mmu import NestedPageFault, WalkFault
from l4lab.machine.ring0 import PRESENT, Ring0Fault, RingZero, base_of, limit_of
from l4lab.machine.vmcs import CR0_PE

_SERIOUS = CONTRIBUTORY | {PAGE_FAULT, DOUBLE_FAULT}  # in whose delivery another exception is not as usual
_NONE = 0xFFFFFFFF  # in ENV_OLD_EXCEPTION: no exception is being delivered

_HF_CS32, _HF_SS32, _HF_ADDSEG = 1 << 4, 1 << 5, 1 << 6

# The high word of a descriptor or gate. The engine keeps it as the flags of a loaded segment.
_SEGMENT, _CODE, _CONFORMING, _WRITABLE, _BIG = (1 << n for n in (12, 11, 10, 9, 22))
_TASK_GATE, _INTERRUPT_16, _TRAP_16, _INTERRUPT_32, _TRAP_32 = 5, 6, 7, 14, 15
_IN_IDT = 2  # bit of an error code: the index is that of a gate
_EXTERNAL = 1  # and that the program did not ask for the event in whose delivery it happened

_ES, _CS, _SS, _DS, _FS, _GS = range(6)
_ESP = 4  # in the engine's order of general registers


class EventKind(Enum):
    """Where an event comes from; the values are the control block's types of events."""

    EXTERNAL = 0  # no error code, no privilege check
    NMI = 2  # likewise
    EXCEPTION = 3
    SOFTWARE = 4  # INT n, INT3, INTO: the gate's DPL decides who may


KINDS = (
    EventKind.EXTERNAL,
    EventKind.EXCEPTION,
    EventKind.SOFTWARE,
    EventKind.NMI,
)  # as the engine's cores number them


@dataclass(frozen=True, slots=True)
class GuestEvent:
    """Something to deliver. `at` is where EIP stands if it comes to nothing, `back` the address that is pushed."""

    vector: int
    kind: EventKind
    error_code: int
    at: int
    back: int
    injected: bool = False  # a monitor's wish, or one that began in an earlier run: EFLAGS are pushed as they are


@dataclass(frozen=True, slots=True)
class Exit:
    """The delivery ended the guest's run: AMD exit code, and the error code that the engine gives with it."""

    code: int
    error_code: int = 0


class TaskSwitchNeeded(Exception):
    """The gate is a task gate to this TSS."""

    def __init__(self, selector: int) -> None:
        super().__init__(selector)
        self.selector = selector


_PROBLEMS = (NestedPageFault, WalkFault, Ring0Fault, TaskSwitchNeeded)  # what may prevent a delivery


class Delivery:
    """Delivers events to the guest whose state is in `env`. `attempts` counts; each costs the machine one cycle."""

    def __init__(self, memory: Memory, env: memoryview, ring0: RingZero) -> None:
        self._memory = memory
        self._env = env
        self.ring0 = ring0
        self.attempts = 0
        self.exiting = 0  # the exceptions that end the guest's run, a bit for each

    def deliver(self, event: GuestEvent) -> Exit | None:
        """Deliver `event` or whatever comes of it; None when the guest stands at the first instruction of a handler."""
        env = self._env
        serious = event.kind is EventKind.EXCEPTION and event.vector in _SERIOUS
        env[e.ENV_OLD_EXCEPTION >> 2] = event.vector if serious else _NONE
        while True:
            try:
                self.attempt(event)
            except _PROBLEMS as problem:
                after = self._after(problem, event)
                if isinstance(after, Exit):
                    env[e.ENV_OLD_EXCEPTION >> 2] = _NONE
                    return after
                event = after
            else:
                env[e.ENV_OLD_EXCEPTION >> 2] = _NONE
                return None

    def attempt(self, event: GuestEvent) -> None:
        """Deliver just this event. What prevents it is raised, and the guest is where it was."""
        env = self._env
        self.attempts += 1
        _forget_unusable_tss(env)
        self._note(event)
        try:
            if env[e.ENV_CR >> 2] & CR0_PE:
                self._protected_mode(event)
            else:
                self._real_mode(event)
        except _PROBLEMS:
            env[e.ENV_EIP >> 2] = event.at
            raise
        event_word = self._block(svm.B_EVENT)
        self._memory.set_word(event_word, self._memory.u32[event_word] & ~EVENT_VALID)

    def forget(self) -> None:
        """It is to be delivered from the beginning, by somebody else."""
        self.attempts -= 1
        self._memory.set_word(self._block(svm.B_EVENT), 0)

    def note_page_fault(self, fault: WalkFault, exiting: int) -> None:
        """The address goes to CR2, or into the control block where the exception ends the guest's run."""
        if exiting >> PAGE_FAULT & 1:
            self._memory.set_word(self._block(svm.B_EXIT_INFO_2), fault.address)
            self._memory.set_word(self._block(svm.B_EXIT_INFO_2 + 4), 0)
        else:
            self._set64(e.ENV_CR + 16, fault.address)

    def exit_for(self, problem: NestedPageFault) -> Exit:
        """The exit that a missing page of the second level is."""
        address = problem.address & 0xFFFFFFFF  # which a page of 4 MB may lie beyond (PSE-36)
        self._memory.set_word(self._block(svm.B_EXIT_INFO_2), address)
        self._memory.set_word(self._block(svm.B_EXIT_INFO_2 + 4), 0)
        return Exit(svm.NESTED_FAULT, problem.error_code)

    # -- what a failed delivery becomes --------------------------------------------------------------------------------

    def _after(self, problem: Exception, event: GuestEvent) -> GuestEvent | Exit:
        if isinstance(problem, TaskSwitchNeeded):
            self._memory.set_word(self._block(svm.B_EXIT_INFO_1), problem.selector)
            return Exit(svm.TASK_SWITCH)
        if isinstance(problem, NestedPageFault):
            return self.exit_for(problem)
        intercepted = self.exiting
        if isinstance(problem, WalkFault):
            vector, error_code = PAGE_FAULT, problem.error_code
            self.note_page_fault(problem, intercepted)
        else:
            assert isinstance(problem, Ring0Fault)
            vector, error_code = problem.vector, problem.error_code
            if event.kind is not EventKind.SOFTWARE:
                error_code |= _EXTERNAL  # it was no INT n of the program that met it
        if intercepted >> vector & 1:
            return Exit(svm.EXCEPTION + vector, error_code)
        return self._escalate(vector, error_code, event.at)

    def _escalate(self, second: int, error_code: int, at: int) -> GuestEvent | Exit:
        """An exception while `old_exception` is delivered."""
        vector = escalated(self._env[e.ENV_OLD_EXCEPTION >> 2], second)
        if vector == SHUTDOWN:
            return Exit(svm.SHUTDOWN)
        if vector != second:  # a double fault, of which it has to be asked again whether it ends the run
            error_code = 0
            if self.exiting >> vector & 1:
                return Exit(svm.EXCEPTION + vector)
        if vector in _SERIOUS:
            self._env[e.ENV_OLD_EXCEPTION >> 2] = vector
        return GuestEvent(vector, EventKind.EXCEPTION, error_code, at, at)

    def _note(self, event: GuestEvent) -> None:
        """The control block names the event in delivery: what an exit half-way has interrupted."""
        note = event.vector | event.kind.value << 8 | EVENT_VALID
        if event.kind is EventKind.EXCEPTION and event.vector in WITH_ERROR_CODE and self._env[e.ENV_CR >> 2] & CR0_PE:
            note |= EVENT_HAS_ERROR_CODE
            self._memory.set_word(self._block(svm.B_EVENT_ERROR), event.error_code)
        self._memory.set_word(self._block(svm.B_EVENT), note)

    # -- protected mode (SDM, "Exception or Interrupt Procedures" and "Error Code") ------------------------------------

    def _protected_mode(self, event: GuestEvent) -> None:
        env = self._env
        gate_error = event.vector * 8 | _IN_IDT
        low, high = self._gate(event.vector, gate_error)
        kind = high >> 8 & 31
        from_v8086 = bool(env[e.ENV_EFLAGS >> 2] & FLAG_VM)
        cpl = env[e.ENV_HFLAGS >> 2] & e.HF_CPL
        if kind not in (_TASK_GATE, _INTERRUPT_16, _TRAP_16, _INTERRUPT_32, _TRAP_32):
            raise Ring0Fault(GENERAL_PROTECTION, gate_error)
        if event.kind is EventKind.SOFTWARE and high >> 13 & 3 < cpl:
            raise Ring0Fault(GENERAL_PROTECTION, gate_error)
        if not high & PRESENT:
            raise Ring0Fault(NOT_PRESENT, gate_error)
        if kind == _TASK_GATE:
            self.ring0.check_task(low >> 16)
            raise TaskSwitchNeeded(low >> 16)

        selector, offset = low >> 16, high & 0xFFFF0000 | low & 0xFFFF
        code = self._code_segment(selector, cpl)
        new_cpl = cpl if code[1] & _CONFORMING else code[1] >> 13 & 3
        if new_cpl < cpl:
            stack_selector, esp = self._stack_from_tss(new_cpl)
            stack = self._stack_segment(stack_selector, new_cpl)
            stack_base, stack_flags = base_of(stack), stack[1]
        else:
            if from_v8086:  # a handler for it must run in ring 0
                raise Ring0Fault(GENERAL_PROTECTION, selector & 0xFFFC)
            stack = None
            esp = env[_ESP * 2]
            stack_base, stack_flags = env[_segment(_SS) + 2], env[_segment(_SS) + 5]
        esp_mask = 0xFFFFFFFF if stack_flags & _BIG else 0xFFFF

        size = 4 if kind in (_INTERRUPT_32, _TRAP_32) else 2
        for word in self._frame(event, stack is not None, from_v8086):
            esp = esp - size & 0xFFFFFFFF
            self.ring0.write(stack_base + (esp & esp_mask) & 0xFFFFFFFF, word, size)

        # Nothing below can fail.
        cleared = FLAG_TF | FLAG_VM | FLAG_RF | FLAG_NT | (FLAG_IF if kind in (_INTERRUPT_16, _INTERRUPT_32) else 0)
        env[e.ENV_EFLAGS >> 2] &= ~cleared
        if stack is not None:
            if from_v8086:
                for register in (_ES, _DS, _FS, _GS):
                    self._load_segment(register, 0, 0, 0, 0)
            self._load_segment(_SS, stack_selector & ~3 | new_cpl, stack_base, limit_of(stack), stack_flags)
            env[e.ENV_HFLAGS >> 2] = env[e.ENV_HFLAGS >> 2] & ~e.HF_CPL | new_cpl
        env[_ESP * 2] = env[_ESP * 2] & ~esp_mask & 0xFFFFFFFF | esp & esp_mask
        self._load_segment(_CS, selector & ~3 | new_cpl, base_of(code), limit_of(code), code[1])
        self._derive_flags()
        self._set64(e.ENV_EIP, offset)

    def _gate(self, vector: int, error_code: int) -> tuple[int, int]:
        table = e.ENV_IDT >> 2
        if vector * 8 + 7 > self._env[table + 4]:
            raise Ring0Fault(GENERAL_PROTECTION, error_code)
        at = self._env[table + 2] + vector * 8
        return self.ring0.read(at, 4), self.ring0.read(at + 4, 4)

    def _code_segment(self, selector: int, cpl: int) -> tuple[int, int]:
        if selector & 0xFFFC == 0:
            raise Ring0Fault(GENERAL_PROTECTION, 0)
        found = self.ring0.descriptor(selector)
        if found is None or not found[1] & _SEGMENT or not found[1] & _CODE or found[1] >> 13 & 3 > cpl:
            raise Ring0Fault(GENERAL_PROTECTION, selector & 0xFFFC)
        if not found[1] & PRESENT:
            raise Ring0Fault(NOT_PRESENT, selector & 0xFFFC)
        return found

    def _stack_from_tss(self, privilege: int) -> tuple[int, int]:
        """SS and ESP for a privilege level, from the TSS that TR names, of 32 or of 16 bits."""
        env = self._env
        at = e.ENV_TR >> 2
        wide = env[at + 5] >> 11 & 1
        entry = privilege * 4 + 2 << wide
        if entry + (4 << wide) - 1 > env[at + 4]:
            raise Ring0Fault(INVALID_TSS, env[at] & 0xFFFC)
        base = env[at + 2]
        if wide:
            esp = self.ring0.read(base + entry, 4)
            return self.ring0.read(base + entry + 4, 2), esp
        esp = self.ring0.read(base + entry, 2)
        return self.ring0.read(base + entry + 2, 2), esp

    def _stack_segment(self, selector: int, privilege: int) -> tuple[int, int]:
        error = Ring0Fault(INVALID_TSS, selector & 0xFFFC)
        if selector & 0xFFFC == 0 or selector & 3 != privilege:
            raise error
        found = self.ring0.descriptor(selector)
        if found is None or found[1] >> 13 & 3 != privilege:
            raise error
        if found[1] & (_SEGMENT | _CODE | _WRITABLE) != _SEGMENT | _WRITABLE:
            raise error
        if not found[1] & PRESENT:
            raise Ring0Fault(STACK_FAULT, selector & 0xFFFC)
        return found

    def _frame(self, event: GuestEvent, new_stack: bool, from_v8086: bool) -> list[int]:
        """The words to push, first one first."""
        env = self._env
        words: list[int] = []
        if new_stack:
            registers = (_GS, _FS, _DS, _ES, _SS) if from_v8086 else (_SS,)
            words += [env[_segment(register)] for register in registers]
            words.append(env[_ESP * 2])
        eflags = env[e.ENV_EFLAGS >> 2]
        if not event.injected:
            restarts = event.kind is EventKind.EXCEPTION and event.vector not in NOT_RESTARTED
            eflags = eflags | FLAG_RF if restarts else eflags & ~FLAG_RF
        words += [eflags, env[_segment(_CS)], event.back]
        if event.kind is EventKind.EXCEPTION and event.vector in WITH_ERROR_CODE:
            words.append(event.error_code)
        return words

    # -- real mode (SDM, "Interrupt and Exception Handling" of 8086 emulation) -----------------------------------------

    def _real_mode(self, event: GuestEvent) -> None:
        """Offset and segment come from the table of vectors; FLAGS, CS and IP are pushed, never an error code."""
        env = self._env
        table = e.ENV_IDT >> 2
        if event.vector * 4 + 3 > env[table + 4]:
            raise Ring0Fault(GENERAL_PROTECTION, event.vector * 8 | _IN_IDT)
        at = env[table + 2] + event.vector * 4
        offset, selector = self.ring0.read(at, 2), self.ring0.read(at + 2, 2)
        esp, base = env[_ESP * 2], env[_segment(_SS) + 2]
        for word in (env[e.ENV_EFLAGS >> 2], env[_segment(_CS)], event.back):
            esp = esp - 2 & 0xFFFFFFFF
            self.ring0.write(base + (esp & 0xFFFF), word, 2)
        env[_ESP * 2] = env[_ESP * 2] & 0xFFFF0000 | esp & 0xFFFF
        env[_segment(_CS)] = selector
        env[_segment(_CS) + 2], env[_segment(_CS) + 3] = selector << 4, 0
        env[e.ENV_EFLAGS >> 2] &= ~(FLAG_IF | FLAG_TF | FLAG_AC | FLAG_RF)
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


def _forget_unusable_tss(env: memoryview) -> None:
    """A TR that names no TSS becomes one with limit 0, so that reading a stack from it is #TS and nothing worse."""
    at = e.ENV_TR >> 2
    if not env[at + 5] & PRESENT or env[at + 5] >> 8 & 7 != 1:
        env[at + 4], env[at + 5] = 0, PRESENT | 9 << 8


def _segment(register: int) -> int:
    return e.ENV_SEGS + 24 * register >> 2
