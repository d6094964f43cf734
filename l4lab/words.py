# SPDX-License-Identifier: GPL-2.0-or-later
"""Bit-field words, address types, access rights and hex formatting: the alphabet of everything else.

Lives here: how a 32-bit word is declared as a table of named fields, decoded once and built from named values.
Does not live here: any particular word. Those are in `abi` and `machine`, under the names of their manuals.
This file imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntFlag
from functools import lru_cache
from typing import Any, ClassVar, Generic, Self, TypeVar, overload

WORD_MASK = 0xFFFF_FFFF
MEMO_LIMIT = 4096  # decoded words kept per class; a running system has a few hundred distinct ones
SHORTEST_ROW = 4  # of numbers at equal distances that are told as one

T = TypeVar("T")


class bits(Generic[T]):
    """One field of a word, top bit first: `untyped = bits(5, 0)`.

    `kind` makes the field's value from its bits (an enum, `bool`); every bit pattern must be acceptable to it.
    An `alias` is a second name for bits that other fields name already; `repr` leaves it out.

    It has no `__set__`, so what `__get__` leaves in the instance's `__dict__` hides it: the first read shifts and
    masks, all later reads are plain attribute reads.
    """

    @overload
    def __init__(self: bits[int], high: int, low: int, *, alias: bool = False) -> None: ...
    @overload
    def __init__(self: bits[T], high: int, low: int, kind: Callable[[int], T], *, alias: bool = False) -> None: ...
    def __init__(self, high: int, low: int, kind: Callable[[int], Any] = int, *, alias: bool = False) -> None:
        self.high, self.low, self.kind, self.alias = high, low, kind, alias
        self.mask = (1 << (high - low + 1)) - 1

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, word: None, owner: type) -> Self: ...
    @overload
    def __get__(self, word: Word, owner: type) -> T: ...
    def __get__(self, word: Word | None, owner: type) -> Self | T:
        if word is None:
            return self
        value: T = self.kind((word >> self.low) & self.mask)
        word.__dict__[self.name] = value
        return value

    def place(self, value: int) -> int:
        """The value shifted to where the field is; ValueError, naming the field, if it is too large."""
        if not 0 <= value <= self.mask:
            raise ValueError(
                f"{self.name}={value:#x} does not fit: at most {self.mask:#x} in bits {self.high}..{self.low}"
            )
        return int(value) << self.low

    def show(self, value: object) -> str:
        """The value as `repr` of a word prints it: names for enums, hex for wide fields, decimal for counts."""
        if isinstance(value, bool) or not isinstance(value, int):
            return repr(value)
        name = getattr(value, "name", None)
        return str(name) if name else f"{value:#x}" if self.mask > 0xFF else str(int(value))


def bit(position: int) -> bits[bool]:
    """A one-bit field, read as a bool: `error = bit(15)`."""
    return bits(position, position, bool)


class _Memo(dict[int, Any]):
    """Words of one class by value; a missing one is made on the way. Bounded: cleared when full."""

    def __init__(self, make: Callable[[int], Word]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, value: int) -> Word:
        if len(self) >= MEMO_LIMIT:
            self.clear()
        word = self[value] = self.make(value)
        return word


class Word(int):
    """A 32-bit word. A subclass declares its fields with `bits` and `bit`; a word is an `int` in every other respect.

    Negative values wrap as the CPU's do: `Word(-1)` is 0xffffffff.
    """

    fields: ClassVar[dict[str, bits[Any]]] = {}
    fixed: ClassVar[int] = 0  # bits that every word of the class has set, such as an item's type

    def __new__(cls, value: int = 0) -> Self:
        if not -0x8000_0000 <= value <= WORD_MASK:
            raise ValueError(f"{value:#x} is wider than 32 bits")
        return super().__new__(cls, value & WORD_MASK)

    def __init_subclass__(cls) -> None:
        cls.fields = cls.fields | {name: field for name, field in vars(cls).items() if isinstance(field, bits)}
        # The memo's own lookup becomes `decode`: one call into C on a hit, which system calls do several times each.
        cls.decode = _Memo(cls).__getitem__  # type: ignore[assignment, method-assign]
        cls.make = lru_cache(MEMO_LIMIT)(cls._make)  # type: ignore[method-assign]

    @classmethod
    def decode(cls, value: int) -> Self:
        """The word for a value, from a memo: a word that recurs has its fields decoded once. Never modify it."""
        return cls(value)  # each subclass replaces this by the lookup of its own memo

    @classmethod
    def make(cls, **values: int) -> Self:
        """Build a word from named fields; fields not named are 0. ValueError if a value does not fit its field.

        A word that was made before comes from a memo. Never modify it.
        """
        return cls._make(**values)  # each subclass replaces this by a memo of its own

    @classmethod
    def _make(cls, **values: int) -> Self:
        return cls(cls.fixed).replace(**values)

    def replace(self, **values: int) -> Self:
        """The same word with some fields changed, as `dataclasses.replace` does for records."""
        word = int(self)
        for name, value in values.items():
            field = self.fields.get(name)
            if field is None:
                raise TypeError(f"{type(self).__name__} has no field {name!r}; it has {', '.join(self.fields)}")
            word = word & ~(field.mask << field.low) | field.place(value)
        return type(self)(word)

    def __repr__(self) -> str:
        shown = (
            f"{name}={field.show(value)}"
            for name, field in self.fields.items()
            if not field.alias and (value := getattr(self, name)) is not False
        )
        return f"{type(self).__name__}({', '.join(shown) if self.fields else hex32(self)})"


class VAddr(int):
    """A virtual address: of a program, or guest-physical when the address space is a virtual machine."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"VAddr({int(self):#x})"


class PAddr(int):
    """A physical address: an offset into the machine's RAM or device space."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"PAddr({int(self):#x})"


class Rights(IntFlag):
    """Access rights, numbered as the low bits of an fpage (X.2 manual, section Fpage)."""

    R = 4
    W = 2
    X = 1
    NONE = 0
    RWX = 7

    @classmethod
    def parse(cls, text: str) -> Rights:
        """Rights from letters: "rw-", "rx", "w", ""; ValueError for any other letter."""
        rights = cls.NONE
        for letter in text.replace("-", "").upper():
            if letter not in ("R", "W", "X"):
                raise ValueError(f"{text!r} are no rights: use letters of 'rwx', with '-' for those that are missing")
            rights |= cls[letter]
        return rights

    @property
    def text(self) -> str:
        """Three letters as in a directory listing: "rw-"."""
        return "".join(letter if self & right else "-" for letter, right in (("r", 4), ("w", 2), ("x", 1)))


def hex32(word: int) -> str:
    """A word in eight hex digits: 0x0000ffe0."""
    return f"{word & WORD_MASK:#010x}"


def size_text(size: int) -> str:
    """A size in the largest unit that divides it: 4096 is 4K, 4194304 is 4M, 1536 is 1536."""
    for unit, log2 in (("G", 30), ("M", 20), ("K", 10)):
        if size and size % (1 << log2) == 0:
            return f"{size >> log2}{unit}"
    return str(size)


def hex_rows(counts: Mapping[int, int]) -> dict[str, int]:
    """Numbers, and how often each occurred; four or more at equal distances are told together, with their sum."""
    numbers, first = sorted(counts), 0
    rows: dict[str, int] = {}
    while first < len(numbers):
        last = first + 1
        while last < len(numbers) and numbers[last] - numbers[last - 1] == numbers[first + 1] - numbers[first]:
            last += 1
        row = numbers[first:last] if last - first >= SHORTEST_ROW else numbers[first : first + 1]
        step = row[1] - row[0] if len(row) > 1 else 0
        text = f"{row[0]:#x}" + (f" to {row[-1]:#x}" if step else "") + (f" in steps of {step:#x}" if step > 1 else "")
        rows[text] = sum(counts[number] for number in row)
        first += len(row)
    return rows
