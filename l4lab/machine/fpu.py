# SPDX-License-Identifier: GPL-2.0-or-later
"""The x87 and SSE registers of a CPU state, as words of the register items FPUCTRL, X87REGS, XMMLOW and XMMHIGH.

Lives here: where the engine keeps them, and what else it wants to have changed when a control word is. What the words
mean is said in `abi.vm`; who may read and write them is the kernel's affair. The engine does not keep the addresses of
the last x87 instruction and operand (its FXSAVE stores zeros), so there are none here.
"""

from __future__ import annotations

from l4lab.machine import engine as e

# Index of words in the CPU state.
_TOP, _WORDS, _EMPTY, _REGISTERS = (
    at >> 2 for at in (e.ENV_FPU_TOP, e.ENV_FPU_STATUS, e.ENV_FPU_EMPTY, e.ENV_FPU_REGISTERS)
)
_X87, _SSE, _MXCSR, _XMM = (at >> 2 for at in (e.ENV_X87_STATUS, e.ENV_SSE_STATUS, e.ENV_MXCSR, e.ENV_XMM))
_REGISTER_WORDS, _XMM_WORDS = 4, 16  # from one register to the next
_ROUNDING, _PRECISION = 0xFF << 8, 0xFF << 24  # in the first word of what arithmetic obeys
_FLUSH_RESULTS, _FLUSH_INPUTS = 0xFF, 0xFF << 8  # in the second word
_TOP_BITS = 7 << 11  # of the status word
_BITS_OF_PRECISION = (32, 80, 64, 80)  # by the precision control of FCW; the second one is reserved


def control(state: memoryview) -> tuple[int, ...]:
    """FCW, FSW, FTW (a bit for each register in use) and MXCSR."""
    both, top = state[_WORDS], state[_TOP]
    empty = state[_EMPTY] | state[_EMPTY + 1] << 32
    in_use = sum(1 << n for n in range(8) if not empty >> 8 * n & 0xFF)
    return both >> 16, both & 0xFFFF & ~_TOP_BITS | (top & 7) << 11, in_use, state[_MXCSR]


def set_control(state: memoryview, index: int, value: int) -> None:
    """Write one of them, and tell the engine's arithmetic how to round."""
    match index:
        case 0:
            state[_WORDS] = state[_WORDS] & 0xFFFF | (value & 0xFFFF) << 16
            rounding, precision = value >> 10 & 3, _BITS_OF_PRECISION[value >> 8 & 3]
            state[_X87] = state[_X87] & ~(_ROUNDING | _PRECISION) | rounding << 8 | precision << 24
        case 1:
            state[_WORDS] = state[_WORDS] & 0xFFFF0000 | value & 0xFFFF & ~_TOP_BITS
            state[_TOP] = value >> 11 & 7
        case 2:
            for half in range(2):
                bits = value >> 4 * half
                state[_EMPTY + half] = sum(1 << 8 * n for n in range(4) if not bits >> n & 1)
        case _:
            state[_MXCSR] = value & 0xFFFF  # the bits above do not exist
            state[_SSE] = state[_SSE] & ~_ROUNDING | (value >> 13 & 3) << 8
            state[_SSE + 1] = state[_SSE + 1] & ~_FLUSH_INPUTS | (value >> 6 & 1) << 8
            # Of the two, the engine looks for this one among what x87 arithmetic obeys.
            state[_X87 + 1] = state[_X87 + 1] & ~_FLUSH_RESULTS | value >> 15 & 1


def x87(state: memoryview) -> tuple[int, ...]:
    """The significands of R0 to R7, low word first; then their signs and exponents, two to a word."""
    significands = [state[_REGISTERS + _REGISTER_WORDS * n + half] for n in range(8) for half in range(2)]
    tops = [state[_REGISTERS + _REGISTER_WORDS * n + 2] & 0xFFFF for n in range(8)]
    return *significands, *(tops[n] | tops[n + 1] << 16 for n in range(0, 8, 2))


def set_x87(state: memoryview, index: int, value: int) -> None:
    """Write one word of them."""
    if index < 16:
        state[_REGISTERS + _REGISTER_WORDS * (index // 2) + index % 2] = value
        return
    for n, half in ((0, value & 0xFFFF), (1, value >> 16)):
        state[_REGISTERS + _REGISTER_WORDS * (2 * (index - 16) + n) + 2] = half


def xmm(state: memoryview, first: int) -> tuple[int, ...]:
    """Four XMM registers from number `first` on, four words each, lowest first."""
    return tuple(state[_XMM + _XMM_WORDS * (first + n) + word] for n in range(4) for word in range(4))


def set_xmm(state: memoryview, first: int, index: int, value: int) -> None:
    """Write one word of them."""
    state[_XMM + _XMM_WORDS * (first + index // 4) + index % 4] = value
