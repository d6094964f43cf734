# SPDX-License-Identifier: GPL-2.0-or-later
"""The system-call stubs: the code in the KIP that programs call to enter the kernel.

Programs call `KIP base + the word at the call's KIP offset`. A stub turns local thread identifiers into global ones,
which it finds in the UTCB that a local identifier points to, and traps: `int 0x30` for IPC, `int 0x31` for all others,
which the kernel tells apart by where the trap came from. SystemClock needs no kernel: it divides the time stamp.
(Reference section 4.1.)
"""

from __future__ import annotations

from typing import Final

from l4lab.machine.board import FREQUENCY_KHZ

IPC_VECTOR: Final = 0x30
CALL_VECTOR: Final = 0x31

_RET = b"\xc3"
# test r32, 0x3f with the shortest encoding; mov r32, [r32 - 60]
_TEST = {"eax": b"\xa8\x3f", "ecx": b"\xf6\xc1\x3f", "edx": b"\xf6\xc2\x3f"} | {
    "esi": b"\xf7\xc6\x3f\x00\x00\x00",
    "edi": b"\xf7\xc7\x3f\x00\x00\x00",
}
_TEST_ZERO = {"eax": b"\x85\xc0", "ecx": b"\x85\xc9", "edx": b"\x85\xd2", "esi": b"\x85\xf6", "edi": b"\x85\xff"}
_LOAD = {"eax": b"\x8b\x40\xc4", "ecx": b"\x8b\x49\xc4", "edx": b"\x8b\x52\xc4", "esi": b"\x8b\x76\xc4"} | {
    "edi": b"\x8b\x7f\xc4"
}
_IS_ANY_LOCAL = {"edx": b"\x83\xfa\xc0"}  # cmp edx, 0xffffffc0


def _globalise(register: str, any_local: bool = False) -> bytes:
    """If the register holds a local identifier, load the global one; nilthread and anylocalthread stay."""
    load = _LOAD[register]
    if any_local:
        load = _IS_ANY_LOCAL[register] + _je(load) + load
    test = _TEST[register] + _jne(load) + load
    return _TEST_ZERO[register] + _je(test) + test


def _je(skipped: bytes) -> bytes:
    return bytes((0x74, len(skipped)))


def _jne(skipped: bytes) -> bytes:
    return bytes((0x75, len(skipped)))


def _int(vector: int) -> bytes:
    return bytes((0xCD, vector))


_IPC = b"\x89\x37" + _globalise("eax") + _globalise("edx", any_local=True) + _int(IPC_VECTOR) + _RET  # mov [edi], esi
# ExchangeRegisters tells the kernel by ZF whether dest was local: nothing after the test changes it.
_EXREGS = _TEST["eax"] + _jne(_LOAD["eax"]) + _LOAD["eax"]


def _call(*registers: str) -> bytes:
    return b"".join(_globalise(register) for register in registers) + _int(CALL_VECTOR) + _RET


# SystemClock: microseconds from cycles. EDX:EAX is divided by a word in two steps, as on paper: the high word first,
# then its remainder with the low word. All other registers are as before.
_SYSTEM_CLOCK = (
    b"\x51\x56"  # push ecx; push esi
    + b"\x0f\x31"  # rdtsc
    + b"\xb9" + (FREQUENCY_KHZ // 1000).to_bytes(4, "little")  # mov ecx, cycles in a microsecond
    + b"\x89\xc6\x89\xd0\x31\xd2"  # mov esi, eax; mov eax, edx; xor edx, edx
    + b"\xf7\xf1"  # div ecx: eax is the high word of the quotient
    + b"\x96"  # xchg eax, esi
    + b"\xf7\xf1"  # div ecx: eax is the low word
    + b"\x89\xf2"  # mov edx, esi
    + b"\x5e\x59"  # pop esi; pop ecx
    + _RET
)  # fmt: skip

_CODE = {
    "space_control": _call("edi"),
    "thread_control": _call("ecx", "edx", "esi"),
    "processor_control": _call(),
    "memory_control": _call(),
    "ipc": _IPC,
    "lipc": _IPC,
    "unmap": _call(),
    "exchange_registers": _TEST_ZERO["eax"] + _je(_EXREGS) + _EXREGS + _int(CALL_VECTOR) + _RET,
    "system_clock": _SYSTEM_CLOCK,
    "thread_switch": _call("eax"),
    "schedule": _call("eax"),
}


def build() -> tuple[bytes, dict[str, int], dict[int, str]]:
    """The code of all stubs; where each begins; and, per call, the offset to which its `int 0x31` returns."""
    code = b""
    entries: dict[str, int] = {}
    returns: dict[int, str] = {}
    for name, stub in _CODE.items():
        entries[name] = len(code)
        if stub is not _SYSTEM_CLOCK:
            returns[len(code) + len(stub) - len(_RET)] = name
        code += stub + b"\x90" * (-len(stub) % 16)
    return code, entries, returns
