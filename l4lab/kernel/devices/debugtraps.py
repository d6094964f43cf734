# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel debugger's traps: how native programs use the console without a driver.

A program executes INT3, and the bytes behind it say what it wants. They are an instruction that does no harm, because
the program goes on right there: `cmp $op, %al`, or a jump over a load of a message's address. What lives here: what
each of them does. There is no debugger to enter; an INT3 that asks for none of this is an exception like any other.

    CC 3C 00   print the character in AL            CC 3C 08   a character into EAX, or -1 if none has arrived
    CC 3C 01   print the text at EAX                CC 3C 0D   a character into EAX, waiting for it
    CC EB xx B8 address   announce the text there   CC 90 ...  any of these, a NOP before

The console is the machine's serial port: what is printed leaves there, what is read has arrived there, and a driver
that serves the port at the same time takes its share. (Reference sections 4.5 and 15.)
"""

from __future__ import annotations

from enum import IntEnum

from l4lab.abi.frame import EAX, EIP
from l4lab.abi.ids import NIL_THREAD
from l4lab.kernel.events import Blocked, Resumed
from l4lab.kernel.objects.thread import Tcb, ThreadState
from l4lab.kernel.objects.waits import CONSOLE, OWN_IPC
from l4lab.kernel.state import State

NOTHING_READ = 0xFFFF_FFFF
LONGEST_TEXT = 4096  # characters printed by one trap; a program may have forgotten the zero at the end
UNREADABLE = b"[text in memory that is not mapped]"

_COMPARE_AL, _JUMP, _LOAD_EAX, _NOP = 0x3C, 0xEB, 0xB8, 0x90
_CODE = 8  # the longest: NOP, JMP SHORT, MOV EAX with an address
_DATA, _LINE_STATUS, _DATA_READY = 0x3F8, 0x3FD, 1  # of the serial port


class Trap(IntEnum):
    """What is compared with AL behind the INT3 (reference section 4.5)."""

    PRINT_CHARACTER = 0x00
    PRINT_TEXT = 0x01
    BREAK_IN = 0x03
    READ = 0x08
    READ_BLOCKING = 0x0D


def breakpoint_trap(k: State, thread: Tcb) -> bool:
    """The thread executed INT3, and EIP is behind it. Was it one of these traps? Then it is done."""
    code = k.code_at(thread, _CODE)
    if code[:1] == bytes((_NOP,)):
        code = code[1:]
    if len(code) >= 7 and code[0] == _JUMP and code[2] == _LOAD_EAX:
        _print(k, b"--- " + _text_at(k, thread, int.from_bytes(code[3:7], "little")) + b" ---\n")
        return True
    if len(code) < 2 or code[0] != _COMPARE_AL:
        return False
    match code[1]:
        case Trap.PRINT_CHARACTER:
            _print(k, bytes((thread.regs[EAX] & 0xFF,)))
        case Trap.PRINT_TEXT:
            _print(k, _text_at(k, thread, thread.regs[EAX]))
        case Trap.BREAK_IN:
            pass  # whether Escape enters a debugger: there is none
        case Trap.READ:
            read = _read(k)
            thread.regs[EAX] = NOTHING_READ if read is None else read
        case Trap.READ_BLOCKING:
            read = _read(k)
            if read is None:
                _wait(k, thread)
            else:
                thread.regs[EAX] = read
        case _:
            return False
    return True


def wake_readers(k: State) -> None:
    """Something has happened to the devices: if a character lies in the serial port, whoever waits for one tries again.

    It need not have come from outside just now: a driver may have kept the port in loopback until then.
    """
    if not k.machine.uart.fifo:
        return
    for thread in k.readers:
        if thread.wait is CONSOLE:
            thread.wait = OWN_IPC
            thread.state = ThreadState.RUNNING
            k.trace.append(Resumed(k.now, thread.word))
            k.make_ready(thread)
    k.readers.clear()


def _wait(k: State, thread: Tcb) -> None:
    """Block until there is input; no message ends this wait.

    The thread stands before its INT3 again. When it goes on, because there is input, or because somebody aborts its
    wait, the trap recurs.
    """
    assert thread.wait is OWN_IPC, f"{thread!r} is in a kernel-issued call already"
    thread.regs[EIP] -= 1
    thread.wait_for = NIL_THREAD
    thread.wait = CONSOLE
    if thread not in k.readers:
        k.readers.append(thread)
    thread.wake_ticket += 1
    thread.state = ThreadState.WAITING
    k.trace.append(Blocked(k.now, thread.word, "WAITING", NIL_THREAD, CONSOLE.name))


def _read(k: State) -> int | None:
    """The next character that has arrived, read from the port as a driver does."""
    if not k.port_in(_LINE_STATUS, 1) & _DATA_READY:
        return None
    return k.port_in(_DATA, 1)


def _print(k: State, text: bytes) -> None:
    """The characters leave by the serial port, past its registers: a driver may just be using them."""
    for character in text:
        k.machine.uart.transmit(character)
    k.look_at_devices()  # whoever watches the console may have seen enough


def _text_at(k: State, thread: Tcb, address: int) -> bytes:
    """Characters up to a zero, as the program itself would read them."""
    found = k.read_program(thread, address, LONGEST_TEXT)
    text, zero, _ = found.partition(b"\0")
    return text if zero or len(text) == LONGEST_TEXT else text + UNREADABLE
