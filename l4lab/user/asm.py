# SPDX-License-Identifier: GPL-2.0-or-later
"""Assembly text to machine code: Intel syntax, labels, data directives.

Everything with a name in it is done here; `encode` turns single instructions into bytes. Keystone, behind it, has
labels and directives of its own, but reads plain numbers as hexadecimal, resolves some symbols to wrong values and
does not know `.org` as an address. So it is never shown any of them: each line reaches it alone, with every name
replaced by its value, and passes are made over the text until no address moves any more.
Linking, object files and macros do not live here.

    start:  mov   esi, message      ; a label's value is its address: no `offset` needed
    .next:  lodsb                   ; a label that begins with a dot belongs to the last one that does not
            cmp   al, 0
            jne   .next
            jmp   $                 ; $ is the address of this line
    message: .asciz "hello\\n"

Directives: .byte .word .long .quad .ascii .asciz .align N[, fill] .space N[, fill] .org ADDRESS .equ NAME, VALUE
.code16 .code32. Comments begin with `;`, `#` or `//`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from l4lab.errors import LabError
from l4lab.user.encode import RESERVED, Encoder, datum, evaluate

_MAX_PASSES = 60  # sizes only grow, so real programs settle in three or four


@dataclass(frozen=True, slots=True)
class Line:
    """What one source line became."""

    address: int
    code: bytes
    number: int  # counted from 1
    text: str
    is_instruction: bool  # no: a directive's data


@dataclass(frozen=True, slots=True)
class Program:
    """Machine code, where it wants to lie, and what its labels mean."""

    code: bytes
    origin: int
    symbols: dict[str, int]
    lines: tuple[Line, ...]  # in address order: the listing

    def address(self, symbol: str) -> int:
        """The address of a label; says which labels there are when it is none of them."""
        if symbol not in self.symbols:
            raise LabError(f"The program has no label {symbol!r}. Try one of: {', '.join(sorted(self.symbols))}.")
        return self.symbols[symbol]


def assemble(source: str, origin: int, bits: int = 32, constants: Mapping[str, int] | None = None) -> Program:
    """Assemble `source` to be run at address `origin`; `constants` are names it may use besides its own labels."""
    if bits not in (16, 32):
        raise LabError(f"There is no {bits}-bit code on this machine. Try bits=32, or 16 for real mode.")
    return _Assembler(source, origin, bits, dict(constants or {})).run()


# --- the text ---------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*")
      | (?P<char>'(?:[^'\\]|\\.)')
      | (?P<comment>;.*|\#.*|//.*)
      | (?P<number>[0-9]\w*)
      | (?P<name>[A-Za-z_.][\w.]*)
      | (?P<here>\$)
      | (?P<space>\s+)
      | (?P<other>.)""",
    re.VERBOSE,
)
_LABEL = re.compile(r"\s*([A-Za-z_.][\w.]*)\s*:")
_EQU = re.compile(r"\s*([A-Za-z_.][\w.]*)\s*=(?!=)")
_PREFIX = re.compile(r"(rep|repe|repz|repne|repnz|lock)\s+", re.IGNORECASE)
_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|.)")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "0": "\0", "e": "\x1b"}


@dataclass(frozen=True, slots=True)
class _Statement:
    number: int
    text: str
    label: str  # with the label it belongs to in front, or empty
    op: str  # mnemonic with its prefix, or directive; lower case; empty when the line is only a label
    operands: tuple[str, ...]  # split at commas, local labels spelled out, comments gone


def _parse(source: str) -> Iterator[_Statement]:
    scope = ""  # the last label without a dot

    for number, text in enumerate(source.splitlines(), start=1):
        rest = "".join(m.group() for m in _TOKEN.finditer(text) if m.lastgroup != "comment")
        while match := _LABEL.match(rest):
            name = match.group(1)
            if not name.startswith("."):
                scope = name
            yield _Statement(number, text, scope + name if name.startswith(".") else name, "", ())
            rest = rest[match.end() :]

        if match := _EQU.match(rest):  # `NAME = value` is `.equ NAME, value`
            yield _Statement(number, text, "", ".equ", (match.group(1), rest[match.end() :].strip()))
            continue
        rest = rest.strip()
        if not rest:
            continue
        prefix = ""
        while match := _PREFIX.match(rest):
            prefix += match.group(1).lower() + " "
            rest = rest[match.end() :]
        op, _, tail = rest.partition(" ") if " " in rest else rest.partition("\t")
        yield _Statement(number, text.strip(), "", prefix + op.lower(), tuple(_operands(tail, scope)))


def _operands(text: str, scope: str) -> Iterator[str]:
    """Split at the commas outside brackets and quotes; `.name` becomes `label.name`."""
    part, depth = "", 0
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token == "," and depth == 0:
            yield part.strip()
            part = ""
            continue
        depth += (token in "([") - (token in ")]")
        part += scope + token if match.lastgroup == "name" and token.startswith(".") else token
    if part.strip():
        yield part.strip()


def _text_of(literal: str) -> str:
    """What stands between the quotes, escapes resolved."""

    def one(match: re.Match[str]) -> str:
        body = match.group(1)
        return chr(int(body[1:], 16)) if len(body) == 3 else _ESCAPES.get(body, body)

    return _ESCAPE.sub(one, literal[1:-1])


# --- the passes -----------------------------------------------------------------------------------------------------


class _Assembler:
    """The passes over one text."""

    def __init__(self, source: str, origin: int, bits: int, constants: dict[str, int]) -> None:
        self._encoder = Encoder()
        self._origin = origin
        self._start_bits = self._bits = bits
        self._constants = constants
        self._statements = list(_parse(source))
        self._sizes = [0] * len(self._statements)
        self._labels: dict[str, int] = {}
        self._equates: dict[str, int] = {}
        self._guessing = True  # in the first pass labels further down have no value yet
        self._check_names()

    def run(self) -> Program:
        for _ in range(_MAX_PASSES):
            before = dict(self._labels), dict(self._equates)
            lines = self._one_pass()
            if not self._guessing and before == (self._labels, self._equates):
                code = b"".join(line.code for line in lines)
                return Program(code, self._origin, dict(self._labels), tuple(line for line in lines if line.code))
            self._guessing = False
        raise LabError(
            "The addresses in this program do not settle: a .space, .org or .align depends on a label behind it that "
            "it moves. Try a constant there."
        )

    def _check_names(self) -> None:
        seen = set(self._constants)
        for s in self._statements:
            if name := s.label or (s.operands[0] if s.op == ".equ" and s.operands else ""):
                where = f"Line {s.number}: {s.text.strip()!r}"
                if name.lower() in RESERVED:
                    raise LabError(f"{where}: {name!r} is a word of the CPU. Try another name.")
                if name in seen:
                    raise LabError(
                        f"{where}: {name!r} is defined a second time. Try another name, or a local '.{name}'."
                    )
                seen.add(name)

    def _one_pass(self) -> list[Line]:
        lines: list[Line] = []
        address = self._origin
        self._bits = self._start_bits
        for i, s in enumerate(self._statements):
            if s.label:
                self._labels[s.label] = address
                continue
            is_instruction = not s.op.startswith(".")
            try:
                code = self._instruction(s, address) if is_instruction else self._directive(s, address)
            except LabError as error:
                if not self._guessing:
                    raise LabError(f"Line {s.number}: {s.text.strip()!r}: {error}.") from None
                code = b""  # perhaps only the guess was wrong: the next pass tells
            if is_instruction:
                # It never gets shorter again, else two instructions could take turns for ever.
                code = code.ljust(self._sizes[i], b"\x90")
                self._sizes[i] = len(code)
            lines.append(Line(address, code, s.number, s.text, is_instruction))
            address += len(code)
        return lines

    # -- names and numbers

    def _resolve(self, operand: str, address: int) -> str:
        """Every name by its value, every number in hexadecimal: what is left means the same to everybody."""

        def one(match: re.Match[str]) -> str:
            token = match.group()
            match match.lastgroup:
                case "number":
                    try:
                        return hex(int(token, 0))
                    except ValueError:
                        raise LabError(f"{token!r} is not a number. Write 255, 0xff or 0b1010") from None
                case "char":
                    return hex(ord(_text_of(token)))
                case "here":
                    return hex(address)
                case "name" if token.lower() not in RESERVED:
                    return hex(self._value_of(token, address))
                case "string":
                    raise LabError("A string can stand only behind .ascii and .asciz. One character is written 'c'")
            return token

        return _TOKEN.sub(one, operand)

    def _value_of(self, name: str, address: int) -> int:
        for table in (self._labels, self._equates, self._constants):
            if name in table:
                return table[name]
        if self._guessing:
            return address
        known = [*self._labels, *self._equates, *self._constants]
        near = difflib.get_close_matches(name, known, n=1) or sorted(known)[:1]
        hint = f"The nearest name is {near[0]!r}" if near else "Define it by a label, or pass it in `constants`"
        raise LabError(f"There is no label or constant {name!r}. {hint}")

    def _number(self, operand: str, address: int) -> int:
        value = evaluate(self._resolve(operand, address))
        if value is None:
            raise LabError(f"{operand!r} is not a number. Write a sum of numbers, labels and constants")
        return value

    # -- directives

    def _directive(self, s: _Statement, address: int) -> bytes:
        def number(index: int, default: int | None = None) -> int:
            if index >= len(s.operands):
                if default is None:
                    raise LabError(f"{s.op} needs a number behind it")
                return default
            return self._number(s.operands[index], address)

        def filling(size: int, fill: int) -> bytes:
            if not 0 <= size <= 1 << 24:
                raise LabError(f"This would add {size} bytes. Try an address or size further on, at most 16 MiB away")
            return bytes([fill & 0xFF]) * size

        match s.op:
            case ".byte" | ".word" | ".long" | ".quad":
                width = {".byte": 1, ".word": 2, ".long": 4, ".quad": 8}[s.op]
                return b"".join(datum(number(i), width) for i in range(len(s.operands)))
            case ".ascii" | ".asciz":
                if not s.operands or not all(o.startswith('"') and o.endswith('"') for o in s.operands):
                    raise LabError(f'{s.op} needs text in double quotes. Try {s.op} "text\\n"')
                end = "\0" if s.op == ".asciz" else ""
                return "".join(_text_of(o) + end for o in s.operands).encode("latin-1", "replace")
            case ".align":
                step = number(0)
                if step <= 0:
                    raise LabError(".align needs a positive number of bytes. Try .align 4")
                return filling(-address % step, number(1, default=0x90))  # NOPs: it may stand between instructions
            case ".space":
                return filling(number(0), number(1, default=0))
            case ".org":
                return filling(0 if self._guessing else number(0) - address, 0)
            case ".equ":
                self._equates[s.operands[0] if s.operands else ""] = number(1)
                return b""
            case ".code16" | ".code32":
                self._bits = int(s.op[-2:])
                return b""
        known = ".byte .word .long .quad .ascii .asciz .align .space .org .equ .code16 .code32"
        raise LabError(f"There is no directive {s.op}. There are: {known}")

    # -- instructions

    def _instruction(self, s: _Statement, address: int) -> bytes:
        operands = [self._resolve(operand, address) for operand in s.operands]
        return self._encoder.encode(s.op, operands, address, self._bits)
