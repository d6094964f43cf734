# SPDX-License-Identifier: GPL-2.0-or-later
"""The assembler agrees with GNU as about what instructions mean, and says where a mistake is."""

from __future__ import annotations

import contextlib
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4lab.errors import LabError
from l4lab.user.asm import Program, assemble

# One line for every instruction that a small system needs, and for everything that Keystone is known to get wrong.
SYSTEM_CODE = """
lgdt [eax]
lidt [0x1234]
sgdt [eax]
sidt [eax]
ltr ax
lldt ax
iret
iretd
pushf
popf
pushfd
popfd
pusha
popad
push ds
pop ds
push es
pop gs
push 8
push 200
push -1
push 0x12345678
push dword ptr [eax]
ret
ret 8
retf
int 0x80
int3
hlt
cli
sti
cld
cpuid
rdtsc
rdmsr
wrmsr
clts
invlpg [eax]
wbinvd
mov cr0, eax
mov eax, cr2
mov cr3, ecx
mov ds, ax
mov eax, [esp + 4]
mov eax, [esp + 4 + (1 << 3) - 2]
mov eax, [ebx - 5]
mov eax, [0x100000 + ecx*4 - 32]
mov dword ptr [eax], 10
mov byte ptr [edi + 1], 'A'
mov word ptr es:[edi], 0x741
mov eax, fs:[0]
lea esi, [ebx + ecx*8 + 100]
movzx eax, byte ptr [esi]
add esp, 12
sub esp, 128
and eax, 0xfffff000
or eax, 0x80000000
cmp al, 'a'
test al, 0x20
imul eax, ecx, 10
div ecx
shl eax, 12
shr edx, cl
bsf eax, ecx
bts dword ptr [eax], 3
xchg eax, [ebx]
lock cmpxchg [ebx], ecx
in al, dx
in al, 0x21
out dx, al
out dx, ax
out 0x20, al
rep outsb
rep movsd
movsd
rep movsb
rep stosd
repne scasb
lodsb
stosw
jmp eax
jmp dword ptr [eax*4 + 0x1000]
call dword ptr [0x1234]
sete al
cmovz eax, ebx
vmcall
ud2
sysenter
"""
REAL_MODE_CODE = """
ret
retf
iret
push 8
push 0x1234
push fs
pop gs
push eax
push ax
mov ax, [bx+si]
mov es:[di], ax
mov ds, ax
mov eax, cr0
or al, 1
mov cr0, eax
lgdt [0x7c50]
rep movsw
rep stosb
int 0x10
out 0x92, al
cli
hlt
"""


def gnu_as(directory: Path, source: str, origin: int, bits: int = 32) -> bytes:
    """What GNU as and ld make of Intel-syntax text."""
    text = f".intel_syntax noprefix\n.code{bits}\n.globl _start\n_start:\n{source}\n"
    obj, elf, flat = (str(directory / name) for name in ("t.o", "t.elf", "t.bin"))
    subprocess.run(["as", "--32", "-o", obj, "-"], input=text, text=True, check=True)
    subprocess.run(["ld", "-m", "elf_i386", f"-Ttext={origin:#x}", "-o", elf, obj], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", elf, flat], check=True)
    return (directory / "t.bin").read_bytes()


def disassembly(directory: Path, code: bytes, origin: int, bits: int = 32) -> list[str]:
    """What objdump reads in it, an instruction an entry, spaces made even."""
    (directory / "d.bin").write_bytes(code)
    machine = "i386" if bits == 32 else "i8086"
    command = ["objdump", "-D", "-b", "binary", "-m", machine, "-M", "intel", f"--adjust-vma={origin:#x}"]
    output = subprocess.run([*command, str(directory / "d.bin")], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^\s*[0-9a-f]+:\t(?:[0-9a-f]{2} )+\s*\t(.+)$", output, flags=re.MULTILINE)
    return [" ".join(line.split()) for line in found]


@pytest.mark.parametrize(("source", "bits"), [(SYSTEM_CODE, 32), (REAL_MODE_CODE, 16)])
def test_instructions_mean_what_gnu_as_says(source: str, bits: int, tmp_path: Path) -> None:
    """Does every instruction disassemble to the same text, whichever assembler encoded it?"""
    ours = assemble(source, 0x1000, bits).code

    theirs = gnu_as(tmp_path, source, 0x1000, bits)
    assert disassembly(tmp_path, theirs, 0x1000, bits) == disassembly(tmp_path, ours, 0x1000, bits)


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("gap", [0, 100, 126, 127, 128, 129, 1000])
def test_jumps_are_as_long_as_they_must_be(gap: int, bits: int, tmp_path: Path) -> None:
    """Forward and backward jumps over any distance: the same bytes as GNU as, short ones included."""
    source = f"back: jmp forth\njne forth\ncall forth\n.space {gap}\nforth: jmp back\nje back\ncall back\nnop\n"

    assert gnu_as(tmp_path, source, 0x1000, bits) == assemble(source, 0x1000, bits).code


def test_directives_lay_out_data_like_gnu_as(tmp_path: Path) -> None:
    """Bytes, words, strings, alignment, sums of labels: the same bytes as GNU as."""
    source = (
        "a: .byte 1, 0xff, -1, 'A'\n.word 1000, -2\n.long 100, b - a\n.quad 1\n.ascii \"x;y#\"\n"
        '.asciz "tab\\t nl\\n"\n.align 16, 0\nb: .long b, a + 4\n.space 10, 7\n'
    )

    assert gnu_as(tmp_path, source, 0x100000) == assemble(source, 0x100000).code


def test_symbols_have_their_addresses() -> None:
    """A label's value is its address; local labels belong to the label before them; constants come from outside."""
    program = assemble(
        "start: mov eax, LIMIT\n.loop: dec eax\njnz .loop\nother: jmp .loop\n.loop: .long start, start.loop, $\n",
        0xC0100000,
        constants={"LIMIT": 10},
    )

    assert {"start": 0, "start.loop": 5, "other": 8, "other.loop": 10} == {
        name: address - 0xC0100000 for name, address in program.symbols.items()
    }
    assert b"\xb8\x0a\0\0\0\x48\x75\xfd\xeb\0" == program.code[:10]
    assert [0xC0100000, 0xC0100005, 0xC010000A] == [
        int.from_bytes(program.code[i : i + 4], "little") for i in (10, 14, 18)
    ]


def test_org_is_an_address() -> None:
    """`.org` names the address of what follows it, whatever the origin."""
    program = assemble("nop\n.org 0x100010\nhere: hlt", 0x100000)

    assert (0x100010, 0x11) == (program.symbols["here"], len(program.code))


def test_far_jump_and_code_size_switch() -> None:
    """From real mode to protected mode: opcode, offset, selector at the width of the code before it."""
    program = assemble("jmp 0x08:protected\n.code32\nprotected: mov eax, 1\njmp 0x08:protected", 0x7C00, bits=16)

    assert "ea057c0800" + "b801000000" + "ea057c00000800" == program.code.hex()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 160), min_size=1, max_size=12), st.data())
def test_any_tangle_of_jumps_settles(gaps: list[int], data: st.DataObject) -> None:
    """Jumps between any labels at any distances land on their labels."""
    targets = [data.draw(st.integers(0, len(gaps) - 1)) for _ in gaps]
    source = "\n".join(f"l{i}: jmp l{to}\n.space {gap}" for i, (to, gap) in enumerate(zip(targets, gaps, strict=True)))
    program = assemble(source, 0x1000)

    for i, to in enumerate(targets):
        assert program.symbols[f"l{to}"] == _jump_target(program, program.symbols[f"l{i}"])


def _jump_target(program: Program, address: int) -> int:
    code = program.code[address - program.origin :]
    size = 1 if code[0] == 0xEB else 4
    return address + 1 + size + int.from_bytes(code[1 : 1 + size], "little", signed=True)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("mov eax,", "operands"),
        ("moov eax, 1", "no instruction 'moov'"),
        ("mov eax, strat", "nearest name is 'start'"),
        ("mov al, 300", "does not fit in 8 bits"),
        (".byte 256", "does not fit in 8 bits"),
        ("in al, 0x3f8", "go through dx"),
        ("mov [eax], 1", "needs its size"),
        ("start: nop", "second time"),
        ("eax: nop", "word of the CPU"),
        ("mov eax, 0fh", "not a number"),
        (".asciz hello", "double quotes"),
        (".org 5", "further on"),
        (".nosuch 1", "no directive"),
        ("= 5", "not the name of an instruction"),
        ("mov eax, (", "not an operand"),
        ("mov eax, 1/0", "operands"),
        ("jecxz far_away", "too far"),
    ],
)
def test_mistakes_are_named_with_their_line(line: str, complaint: str) -> None:
    """A mistake is a LabError with the line's number, its text, and what to try."""
    with pytest.raises(LabError, match=re.escape(complaint)) as caught:
        assemble(f"start: nop\n; a comment\n{line}\n.space 300\nfar_away: nop", 0x1000)

    assert f"Line 3: {line!r}" in str(caught.value)


def test_addresses_that_chase_each_other_are_refused() -> None:
    """A layout that depends on itself ends with an explanation, not with an endless loop."""
    with pytest.raises(LabError, match="do not settle"):
        assemble("a: .space 5 + b - a\nb:", 0x1000)


NONSENSE = ["mov", "eax", "[", "]", "(", ")", ",", ":", "+", "-", "*", "5", "'a'", '"s"', "jmp", "a", "a:", "é"]
NONSENSE += [".byte", ".org", "=", "rep", "\\", "%", "$", ".", ";"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(NONSENSE)))
def test_nonsense_is_refused_politely(words: list[str]) -> None:
    """Any jumble of words gives a program or a LabError, nothing else, and soon."""
    with contextlib.suppress(LabError):
        assemble(" ".join(words), 0x1000)


def test_negative_constants_work_in_addresses() -> None:
    """A name for a negative number stands where the number itself could."""
    assert (
        assemble("mov eax, [ebp - 8]\nmov ecx, -8", 0).code
        == assemble("BACK = -8\nmov eax, [ebp + BACK]\nmov ecx, BACK", 0).code
    )
