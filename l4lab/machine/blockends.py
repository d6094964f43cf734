# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the engine's translator ends a block of code, for the core in Python.

The engine goes on translating into the next page, and when that page is missing, the fault is told at the block's
start; when it is there, its accessed bit is set before its code is reached. A CPU does neither. So in both cores
a block lies in one page, or is one instruction; and it has MOST_INSTRUCTIONS at most, or it might need more temporaries
than the translator has room for (core/translation.c).

Under this core the translator asks for each instruction, and again at each access to memory, whether to go on: it
emits a call, by a function whose place we take. What we put there sees how far the translator is, and tells it that its
buffer of operations is full. The library calls that function through a table of slots, as all that it exports (System V
ABI, "Procedure Linkage Table"); into its slot goes ours. The native core does the same, in C; both may be in a process,
so each calls what was there before. On Linux only.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Callable
from typing import Any

from l4lab.machine import engine as e
from l4lab.machine.decode import MAX_LENGTH, decode
from l4lab.machine.memory import PAGE_SIZE

_WITH_LINK_MAP = 2  # RTLD_DL_LINKMAP
_PLT_SIZE, _SYMBOLS, _PLT = 2, 6, 23  # tags of the dynamic section: DT_PLTRELSZ, DT_SYMTAB, DT_JMPREL
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_SYMBOL_SIZE, _SYMBOL_VALUE = 24, 8
_P = ctypes.c_void_p
_CHECK = ctypes.CFUNCTYPE(None, _P)
_MOST_INSTRUCTIONS = 64  # of a block, as in core/translation.c
_FULL = 4000  # operations: the translator ends the block
_MARGIN = 2 * MAX_LENGTH + 4  # the translator may fetch 4 bytes too many of an instruction that is too long

_watched: dict[int, BlockEnds] = {}  # by the translator
_taken: list[Any] = []  # the function that has taken a place in the library, and what was there before


class BlockEnds:
    """Looks after the translator of one engine."""

    def __init__(self, handle: int, check: int, code: Callable[[int, int], bytes], bits: Callable[[], int]) -> None:
        """`handle`: the engine's; `check`: the address of the function that emits the question whether to go on.

        `code(linear, size)`: what is in memory there; `bits()`: how wide the code is that is executed, 16 or 32.
        """
        self._code = code
        self._bits = bits
        self._translator = translator = ctypes.c_uint64.from_address(handle + e.UC_TRANSLATOR).value
        self._at = ctypes.c_uint64.from_address(translator + e.TCG_PC_START)
        self._operations = ctypes.c_int32.from_address(translator + e.TCG_OPERATIONS)
        self._operations_seen = self._at_seen = self._instructions = 0  # of the block in translation
        _watched[translator] = self
        _take_place(check)

    def close(self) -> None:
        """Look after it no more."""
        _watched.pop(self._translator, None)

    def look(self) -> None:
        """The translator is at an instruction, or at an access to memory of one. Is the block to end behind it?"""
        operations, at = self._operations.value, self._at.value
        if operations <= self._operations_seen:  # a block begins
            self._instructions = 0
        elif at == self._at_seen and self._instructions:
            self._operations_seen = operations
            return
        self._operations_seen, self._at_seen = operations, at
        self._instructions += 1
        if self._instructions >= _MOST_INSTRUCTIONS or self._next_leaves_page(at):
            self._operations_seen = self._operations.value = _FULL

    def _next_leaves_page(self, at: int) -> bool:
        """Does the instruction behind the one at linear address `at` reach into another page, as far as we can tell?"""
        left = PAGE_SIZE - at % PAGE_SIZE
        if left > _MARGIN:
            return False
        code, bits = self._code(at, left), self._bits()
        this = decode(code, bits)
        return this is None or this.length == len(code) or decode(code[this.length :], bits) is None


def _take_place(check: int) -> None:
    slot = None if _taken else slot_of(check)
    if slot is not None:
        _taken.append(_CHECK(_look))
        _taken.append(_CHECK(put(slot, ctypes.cast(_taken[0], _P).value or 0)))


def _look(translator: int) -> None:
    _taken[1](translator)
    ends = _watched.get(translator)
    if ends is not None:
        ends.look()


def slot_of(function: int) -> int | None:
    """The address of the slot through which its library calls the function at this address."""
    this = ctypes.CDLL(None)
    if not hasattr(this, "dladdr1"):
        return None
    found, library = (ctypes.c_void_p * 4)(), ctypes.c_void_p()
    if not this.dladdr1(ctypes.c_void_p(function), found, ctypes.byref(library), _WITH_LINK_MAP):
        return None
    assert library.value is not None
    base, _, dynamic = struct.unpack("<3Q", ctypes.string_at(library.value, 24))
    tags: dict[int, int] = {}
    tag, value = struct.unpack("<qQ", ctypes.string_at(dynamic, 16))
    while tag:
        tags[tag] = value
        dynamic += 16
        tag, value = struct.unpack("<qQ", ctypes.string_at(dynamic, 16))
    if not {_PLT, _PLT_SIZE, _SYMBOLS} <= tags.keys():
        return None
    for at, info, _ in struct.iter_unpack("<QQq", ctypes.string_at(tags[_PLT], tags[_PLT_SIZE])):
        symbol = tags[_SYMBOLS] + _SYMBOL_SIZE * (info >> 32)
        if base + ctypes.c_uint64.from_address(symbol + _SYMBOL_VALUE).value == function:
            return int(base + at)
    return None


def put(slot: int, function: int) -> int:
    """Have the library call `function` from now on; what it called before."""
    page = slot & -mmap.PAGESIZE
    if ctypes.CDLL(None).mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), _READ_WRITE):
        raise OSError(f"the page at {page:#x} cannot be made writable")
    word = ctypes.c_uint64.from_address(slot)
    before, word.value = word.value, function
    return before
