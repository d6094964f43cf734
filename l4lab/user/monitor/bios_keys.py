# SPDX-License-Identifier: GPL-2.0-or-later
"""What INT 16 returns for each key of a US keyboard, alone and together with Shift, Ctrl and Alt. Tables, mostly.

A key is a word: the scan code, and the character or 0. Source: Ralf Brown's Interrupt List, table "Values for keyboard
scan code"; IBM Personal System/2 BIOS Interface Technical Reference, "Keyboard Keystrokes".
"""

from __future__ import annotations

from typing import Final

from l4lab.devices.keys import PLAIN, SHIFTED

# Bits of the shift state in the data area, and the keys that set them while they are held, or change them.
RIGHT_SHIFT, LEFT_SHIFT, CONTROL, ALT = 0x01, 0x02, 0x04, 0x08
SCROLL_LOCK, NUM_LOCK, CAPS_LOCK = 0x10, 0x20, 0x40
MODIFIERS: Final = {0x36: RIGHT_SHIFT, 0x2A: LEFT_SHIFT, 0x1D: CONTROL, 0x38: ALT}
LOCKS: Final = {0x46: SCROLL_LOCK, 0x45: NUM_LOCK, 0x3A: CAPS_LOCK}
ESCAPE, BACKSPACE, TAB, ENTER, SPACE, DELETE = 0x01, 0x0E, 0x0F, 0x1C, 0x39, 0x53

_CHARACTER: Final = {code: ord(char) for char, code in PLAIN.items()} | {ESCAPE: 0x1B, ENTER: 0x0D}
_SHIFTED: Final = {code: ord(char) for char, code in SHIFTED.items()} | {TAB: 0}  # the others keep their character
_WITH_CONTROL: Final = {
    code: code << 8 | ord(char) & 0x1F for char, code in PLAIN.items() if char.isalpha() or char in "[\\]"
} | {
    0x03: 0x0300, 0x07: 0x071E, 0x0C: 0x0C1F,  # Ctrl-2 is NUL, Ctrl-6 is RS, Ctrl-minus is US
    ESCAPE: 0x011B, BACKSPACE: 0x0E7F, TAB: 0x9400, ENTER: 0x1C0A, SPACE: 0x3920,
}  # fmt: skip
_WITH_ALT: Final = {code: code << 8 for code in PLAIN.values()} | {
    **{code: code + 0x76 << 8 for code in range(0x02, 0x0E)},  # the upper row
    ESCAPE: 0x0100, TAB: 0xA500, ENTER: 0x1C00, SPACE: 0x3920,
}  # fmt: skip

# Function keys: alone, with Shift, Ctrl, Alt.
_FUNCTIONS: Final = {
    **{0x3B + n: (0x3B + n, 0x54 + n, 0x5E + n, 0x68 + n) for n in range(10)},
    **{0x57 + n: (0x85 + n, 0x87 + n, 0x89 + n, 0x8B + n) for n in range(2)},
}
# The number pad, and the grey keys that have its codes behind E0: the digit, and the code with Ctrl.
_PAD: Final = {
    0x47: ("7", 0x77), 0x48: ("8", 0x8D), 0x49: ("9", 0x84), 0x4B: ("4", 0x73), 0x4C: ("5", 0x8F), 0x4D: ("6", 0x74),
    0x4F: ("1", 0x75), 0x50: ("2", 0x91), 0x51: ("3", 0x76), 0x52: ("0", 0x92), 0x53: (".", 0x93),
}  # fmt: skip
_SIGNS: Final = {0x37: ("*", 0x96), 0x4A: ("-", 0x8E), 0x4E: ("+", 0x90)}
_GREY_WITH_ALT: Final = 0x50  # what is added to the code of an arrow key
GREY: Final = 0xE0  # the character of keys that only newer keyboards have


def key_pressed(code: int, shifts: int, *, extended: bool) -> int | None:
    """The key of a scan code (set 1), which had E0 before it or not; None for what is no key to a program."""
    shift = bool(shifts & (LEFT_SHIFT | RIGHT_SHIFT))
    kind = 3 if shifts & ALT else 2 if shifts & CONTROL else 1 if shift else 0
    if code in _FUNCTIONS:
        return _FUNCTIONS[code][kind] << 8
    if extended:
        return _grey(code, kind)
    if code in _PAD:
        digit, with_control = _PAD[code]
        if kind >= 2:
            return with_control << 8 if kind == 2 else None  # Alt and digits make a character, which is not kept here
        return code << 8 | (ord(digit) if shift != bool(shifts & NUM_LOCK) else 0)
    if code in _SIGNS:
        sign, with_control = _SIGNS[code]
        return (code << 8 | ord(sign), code << 8 | ord(sign), with_control << 8, code << 8)[kind]
    return _typewriter(code, kind, bool(shifts & CAPS_LOCK))


def _grey(code: int, kind: int) -> int | None:
    """A key with E0 before its code."""
    if code == ENTER:
        return (0xE00D, 0xE00D, 0xE00A, 0xA600)[kind]
    if code == 0x35:
        return (0xE02F, 0xE02F, 0x9500, 0xA400)[kind]
    if code not in _PAD:
        return None
    return (code << 8 | GREY, code << 8 | GREY, _PAD[code][1] << 8 | GREY, code + _GREY_WITH_ALT << 8)[kind]


def _typewriter(code: int, kind: int, caps_lock: bool) -> int | None:
    if kind >= 2:
        return (_WITH_CONTROL if kind == 2 else _WITH_ALT).get(code)
    plain = _CHARACTER.get(code)
    if plain is None:
        return None
    if caps_lock and chr(plain).isalpha():
        kind = 1 - kind
    return code << 8 | (_SHIFTED.get(code, plain) if kind else plain)


def key_of_character(char: str) -> int:
    """The key that a terminal means by a character."""
    if char == "\x7f":  # what a terminal sends for the key that deletes backwards
        char = "\b"
    elif char == "\n":
        char = "\r"
    code = (PLAIN | SHIFTED | {"\r": ENTER, "\x1b": ESCAPE}).get(char)
    if code is None and "\x01" <= char <= "\x1a":  # a letter with Ctrl
        code = PLAIN[chr(ord(char) + 0x60)]
    return (code or 0) << 8 | ord(char) & 0xFF
