# SPDX-License-Identifier: GPL-2.0-or-later
"""Which scan codes a text has on a US keyboard, and how the two sets of scan codes translate.

Set 2 is what keyboards send; set 1, that of the PC/XT, is what the keyboard controller makes of it and what the world
is used to. Lives here: tables and the functions over them. Does not live here: controller and keyboard (`i8042`).
Source: IBM PS/2 Hardware Interface Technical Reference, "Keyboards (101- and 102-Key)", and "Scan Code Translation".
"""

from __future__ import annotations

from typing import Final

# Rows of the keyboard from their first scan code on (set 1), unshifted and shifted.
_ROWS: Final = (
    (0x02, "1234567890-=\b\t", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]\n", "QWERTYUIOP{}"),
    (0x1E, "asdfghjkl;'`", 'ASDFGHJKL:"~'),
    (0x2B, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
    (0x39, " ", ""),
)
PLAIN: Final = {char: first + i for first, plain, _ in _ROWS for i, char in enumerate(plain)}
SHIFTED: Final = {char: first + i for first, _, shifted in _ROWS for i, char in enumerate(shifted)}
LEFT_SHIFT, CONTROL, RELEASE = 0x2A, 0x1D, 0x80
EXTENDED, PAUSE = 0xE0, 0xE1  # prefixes of keys that the PC/XT did not have, in both sets
RELEASE_PREFIX: Final = 0xF0  # of set 2

# What terminals send for keys without a character (ECMA-48, and DEC's VT220), as set 1 codes.
_SPECIAL: Final = {
    "\x1b[A": b"\xe0\x48", "\x1b[B": b"\xe0\x50", "\x1b[C": b"\xe0\x4d", "\x1b[D": b"\xe0\x4b",  # up down right left
    "\x1b[H": b"\xe0\x47", "\x1b[F": b"\xe0\x4f", "\x1b[5~": b"\xe0\x49", "\x1b[6~": b"\xe0\x51",  # home end, pages
    "\x1b[2~": b"\xe0\x52", "\x1b[3~": b"\xe0\x53",  # insert delete
    "\x1bOP": b"\x3b", "\x1bOQ": b"\x3c", "\x1bOR": b"\x3d", "\x1bOS": b"\x3e", "\x1b[15~": b"\x3f",  # F1 to F5
    "\x1b[17~": b"\x40", "\x1b[18~": b"\x41", "\x1b[19~": b"\x42", "\x1b[20~": b"\x43", "\x1b[21~": b"\x44",
    "\x1b[23~": b"\x57", "\x1b[24~": b"\x58",
    "\x1b": b"\x01", "\r": b"\x1c", "\x7f": b"\x0e",
}  # fmt: skip
_LONGEST: Final = max(map(len, _SPECIAL))

# What the controller makes of the codes of set 2, from 0 on.
TO_SET_1: Final = (
    bytes.fromhex(
        "ff43413f3d3b3c5864444240 3e0f2959 65382a701d10025a66712c1f1e11035b"
        "672e2d201205045c6839 2f211413065d 69313023221507 5e6a72322416 08095f"
        "6b332517180b0a606c343526 27190c61 6d7328741a0d626e3a361c1b752b6376"
        "55567778797a0e7b7c4f7d4b477e7f6f 525350 4c4d48014557 4e514a37494654"
    )
    + bytes((0x80, 0x81, 0x82, 0x41, 0x54))
    + bytes(range(0x85, 0x100))
)
TO_SET_2: Final = {TO_SET_1[code]: code for code in (*range(0x7F, 0, -1), 0x83)}


def scan_codes(text: str) -> bytes:
    """Presses and releases that type a text, in set 1. ValueError, naming it, for a character that has no key.

    Control characters are typed with the control key; escape sequences of a terminal are its arrow and function keys.
    """
    codes = bytearray()
    at = 0
    while at < len(text):
        key = next((text[at : at + n] for n in range(_LONGEST, 0, -1) if text[at : at + n] in _SPECIAL), text[at])
        codes += _key(key)
        at += len(key)
    return bytes(codes)


def _key(key: str) -> bytes:
    if key in _SPECIAL:
        code = _SPECIAL[key]
        return code + code[:-1] + bytes((code[-1] | RELEASE,))
    if key in PLAIN:
        return bytes((PLAIN[key], PLAIN[key] | RELEASE))
    if key in SHIFTED:
        modifier, code = LEFT_SHIFT, bytes((SHIFTED[key],))
    elif key < " " and (letter := chr(ord(key) | 0x60)) in PLAIN:
        modifier, code = CONTROL, bytes((PLAIN[letter],))
    else:
        raise ValueError(f"there is no key for {key!r}")
    return bytes((modifier, *code, code[0] | RELEASE, modifier | RELEASE))


def has_key(char: str) -> bool:
    """Can this character be typed?"""
    return char in _SPECIAL or char in PLAIN or char in SHIFTED or (char < " " and chr(ord(char) | 0x60) in PLAIN)


def in_set_2(codes: bytes) -> bytes:
    """Codes of set 1 as a keyboard sends them in set 2."""
    made = bytearray()
    for code in codes:
        if code in (EXTENDED, PAUSE):
            made.append(code)
        else:
            made += bytes((RELEASE_PREFIX,)) * (code >> 7) + bytes((TO_SET_2[code & 0x7F],))
    return bytes(made)
