# SPDX-License-Identifier: GPL-2.0-or-later
"""Shadow page tables, with the CPU's own nested paging as the oracle.

A guest carries out a script: it writes entries of its page tables, loads CR3, CR0 and INVLPG, and loads and stores
through its tables from ring 0 and ring 3; now and then its monitor takes a page of its memory away. What it reads, the
faults it takes, and its memory at the end, accessed and dirty bits included, must be the same under both; and what
Unmap tells the monitor of the guest's data: used, written to, or neither. (Of pages that hold page tables a CPU with
nested paging says that they were written to whenever it read them: SDM vol. 3, "Accessed and Dirty Flags for EPT".)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4lab.abi.fpage import Fpage
from l4lab.abi.ids import NIL_THREAD
from l4lab.abi.message import Message
from l4lab.abi.protocols import is_page_fault
from l4lab.abi.vm import ExitReason, ItemId, reason_of
from l4lab.kernel.events import VtlbFill
from l4lab.kernel.virtual.shadowtables import MOST_FRAMES
from l4lab.machine.mmu import PS, RW, US, A, D, G, P
from l4lab.testing import PAGE, Root, run
from l4lab.user.asm import assemble
from l4lab.words import Rights
from tests.kernel.test_vm import (
    CODE,
    EIP,
    GUEST,
    HLT,
    IDT,
    IO,
    KIP,
    STACK,
    UTCB,
    VM_SPACE,
    Vm,
    deliver_again,
    items,
    start_state,
)

DIRECTORIES = 0x10000, 0x11000
TABLES = 0x12000, 0x13000, 0x14000
DATA = 0x40000  # PAGES of them, each with its number in all bytes
PAGES = 4
SCRIPT, LOG, TSS = 0x20000, 0x28000, 0xA000
END, WRITE, CR3, INVLPG, LOAD, STORE, USER_LOAD, USER_STORE, CR0, TAKE, ASK = range(11)
CR0_ON = 0x8000_0011
WP = 1 << 16

GUEST_CODE = f"""
        mov     eax, {DIRECTORIES[0]}
        mov     cr3, eax
        mov     eax, cr4
        or      eax, 0x10               ; PSE
        mov     cr4, eax
        mov     eax, {CR0_ON}
        mov     cr0, eax
        mov     ax, 0x18                ; user data: for both rings
        mov     ds, ax
        mov     es, ax
        mov     ax, 0x28
        ltr     ax
        mov     esi, {SCRIPT}
        mov     edi, {LOG}
        cld
next:   mov     esp, {STACK}
        lodsd
        mov     edx, eax
        lodsd
        mov     ebx, eax
        lodsd
        mov     ecx, eax
        jmp     [edx * 4 + table]
end:    hlt
write:  mov     [ebx], ecx
        jmp     next
cr3_:   mov     cr3, ebx
        jmp     next
inv:    invlpg  [ebx]
        jmp     next
load:   mov     al, [ebx]
done:   movzx   eax, al
        stosd
        jmp     next
store:  mov     [ebx], cl
        mov     al, cl
        jmp     done
uload:  mov     edx, ring3_load
        jmp     ring3
ustore: mov     edx, ring3_store
ring3:  push    0x1B
        push    {STACK}
        push    2
        push    0x23
        push    edx
        iretd
ring3_load:
        mov     al, [ebx]
        int     0x80
ring3_store:
        mov     [ebx], cl
        mov     al, cl
        int     0x80
cr0_:   mov     cr0, ebx
        jmp     next
take:   mov     eax, ebx
        out     0x80, eax
        jmp     next
ask:    mov     eax, ebx
        out     0x81, eax
        jmp     next
fault:  mov     eax, cr2
        stosd
        pop     eax
        or      eax, 0x100
        stosd
        jmp     next
        .align 4
table:  .long   end, write, cr3_, inv, load, store, uload, ustore, cr0_, take, ask
"""
PROGRAM = assemble(GUEST_CODE, CODE)

Operation = tuple[int, int, int]


@dataclass
class Seen:
    """What one run leaves behind."""

    log: list[int] = field(default_factory=list)
    tables: bytes = b""
    data: bytes = b""
    taken: list[tuple[int, int]] = field(default_factory=list)  # page faults at the monitor: label, address
    used: list[tuple[int, int]] = field(default_factory=list)  # what Unmap said of a page of data: page, status
    fills: int = 0


def gate(handler: int) -> bytes:
    """An interrupt gate that ring 3 may use."""
    return (handler & 0xFFFF | 8 << 16 | 0xEE00 << 32 | handler >> 16 << 48).to_bytes(8, "little")


def play(paging: str, setup: list[Operation], script: list[Operation]) -> Seen:
    """Carry out a script in a new virtual machine."""
    seen = Seen()

    def root(r: Root) -> None:
        def put(address: int, *words: int) -> None:
            r.store(GUEST + address, b"".join(word.to_bytes(4, "little") for word in words))

        r.store(GUEST, bytes(0x50000))
        r.store(GUEST + CODE, PROGRAM.code)
        r.store(GUEST + IDT + 8 * 14, gate(PROGRAM.address("fault")))
        r.store(GUEST + IDT + 8 * 0x80, gate(PROGRAM.address("done")))
        for at, word in enumerate((0, 0xCF9B00_0000FFFF, 0xCF9300_0000FFFF, 0xCFF300_0000FFFF, 0xCFFB00_0000FFFF)):
            put(0x5000 + 8 * at, word & 0xFFFFFFFF, word >> 32)
        put(0x5028, TSS << 16 | 0x67, 0x8900)
        put(TSS, 0, STACK, 0x10)
        for directory in DIRECTORIES:
            put(directory, P | RW | US | PS)  # the first 4 MB, as they are
        for _, address, value in setup:
            put(address, value)
        for page in range(PAGES):
            r.store(GUEST + DATA + PAGE * page, bytes([0xA0 + page]) * PAGE)
        put(SCRIPT, *(word for operation in [*script, (END, 0, 0)] for word in operation))
        vm = Vm(r, r.create(r.space(KIP, UTCB, control=VM_SPACE[paging])))
        vm.conf(all=(ItemId.GPREGS, ItemId.NONREGEXC), page_fault=(ItemId.GPREGS, ItemId.NONREGEXC))
        m = start_state().append_registers(ItemId.EXECCTRL, {1: HLT | IO, 2: 0})
        m = m.append_registers(ItemId.GDTR, {0: 0x5000, 1: 0x2F})
        message = m.append_registers(ItemId.CREGS, {2: 0, 7: 0})
        while True:
            received = vm.r.call(vm.id, message)
            message = Message()
            registers = items(received)[ItemId.GPREGS]
            if is_page_fault(received.label):
                page = received.untyped[0] & -PAGE
                seen.taken.append((received.label, page))
                message.append_map(Fpage.at(GUEST + page), page)
            elif received.label & 8:
                deliver_again(received, message)
            elif reason_of(received.label) is ExitReason.IO_INSTRUCTION:
                page = registers[9] & -PAGE
                rights = Rights(7 if received.untyped[0] >> 16 == 0x80 else 0)
                (status,) = r.unmap(Fpage.at(GUEST + page, 12, rights))
                if DATA <= page < DATA + PAGES * PAGE:
                    seen.used.append((page, int(status.rights)))
                message.append_registers(ItemId.GPREGS, {EIP: registers[EIP] + received.untyped[1]})
            else:
                break
        assert reason_of(received.label) is ExitReason.HLT, received.message
        assert registers[EIP] == PROGRAM.address("end"), hex(registers[EIP])
        seen.log = r.words(GUEST + LOG, (registers[2] - LOG) // 4)
        seen.tables = r.load(GUEST + DIRECTORIES[0], TABLES[-1] + PAGE - DIRECTORIES[0])
        seen.data = r.load(GUEST + DATA, PAGES * PAGE)
        r.thread_control(vm.id, NIL_THREAD)

    seen.fills = len(run(root).trace.of(VtlbFill))
    return seen


SLOTS = (1, 2, 3)
NUMBERS = tuple((DATA >> 12) + page for page in range(PAGES))  # of table entries; the offset in a large page as well
directories, tables = st.sampled_from(DIRECTORIES), st.sampled_from(TABLES)
addresses = st.builds(
    lambda slot, number, offset: slot << 22 | number << 12 | offset,
    st.sampled_from(SLOTS), st.sampled_from(NUMBERS), st.sampled_from([0, 1, 0xFFF]),
)  # fmt: skip
flags = st.one_of(
    st.just(P | RW | US), st.sampled_from([P, P | RW, P | US, 0, P | RW | US | A, P | RW | US | A | D, P | RW | US | G])
)
pdes = st.one_of(
    st.builds(lambda table, f: table | f, tables, flags), flags.map(lambda f: f | PS), st.just(0)
)  # fmt: skip
ptes = st.builds(lambda number, f: number << 12 | f, st.sampled_from(NUMBERS), flags)
entries = st.one_of(
    st.builds(lambda d, slot, pde: (WRITE, d + 4 * slot, pde), directories, st.sampled_from(SLOTS), pdes),
    st.builds(lambda t, n, pte: (WRITE, t + 4 * n, pte), tables, st.sampled_from(NUMBERS), ptes),
)
loads = st.builds(lambda d: [(CR3, d, 0)], directories)
# A table entry is changed in place and each address behind it flushed; or CR3 is loaded, this directory or the other.
accesses = st.builds(
    lambda op, at, value: [(op, at, value)],
    st.sampled_from([LOAD, STORE, USER_LOAD, USER_STORE]), addresses, st.integers(0, 255),
)  # fmt: skip
steps = st.one_of(
    st.builds(lambda entry, load: [entry, *load], entries, loads),
    st.builds(
        lambda t, n, pte: [(WRITE, t + 4 * n, pte), *((INVLPG, slot << 22 | n << 12, 0) for slot in SLOTS)],
        tables, st.sampled_from(NUMBERS), ptes,
    ),
    loads,
    accesses,
    accesses,
    st.sampled_from([[(CR0, CR0_ON, 0)], [(CR0, CR0_ON | WP, 0)]]),
    st.builds(lambda page: [(TAKE, page, 0)], st.sampled_from([*TABLES, *(n << 12 for n in NUMBERS)])),
    st.builds(lambda n: [(ASK, n << 12, 0)], st.sampled_from(NUMBERS)),
)  # fmt: skip
scripts = st.lists(steps, max_size=40).map(lambda parts: [operation for part in parts for operation in part])


@settings(max_examples=60, deadline=None)
@given(st.lists(entries, max_size=12), scripts)
def test_shadow_tables_are_as_if_the_cpu_walked_the_guests(setup: list[Operation], script: list[Operation]) -> None:
    """Does a guest read, fault and leave behind the same under shadow and under nested paging?"""
    nested, shadow = play("nested", setup, script), play("shadow", setup, script)

    assert nested.log == shadow.log
    assert nested.data == shadow.data
    assert nested.tables == shadow.tables
    assert nested.used == shadow.used


MAPPED = [(WRITE, DIRECTORIES[0] + 4, TABLES[0] | 7), (WRITE, DIRECTORIES[1] + 4, TABLES[1] | 7)] + [
    (WRITE, TABLES[i] + 4 * NUMBERS[i], NUMBERS[i] << 12 | 7) for i in range(2)
]
FIRST, SECOND = 1 << 22 | NUMBERS[0] << 12, 1 << 22 | NUMBERS[1] << 12


def test_tables_of_recent_address_spaces_are_kept() -> None:
    """Does a guest that goes back and forth between two address spaces take no more faults than on the first visit?"""
    once = [(LOAD, FIRST, 0), (CR3, DIRECTORIES[1], 0), (LOAD, SECOND, 0), (CR3, DIRECTORIES[0], 0)]

    assert play("shadow", MAPPED, once).fills == play("shadow", MAPPED, once * 20).fills


def test_when_frames_run_out_the_guest_goes_on() -> None:
    """Does a guest whose pages need more shadow tables than it may have run on, only slower?"""
    slots = range(1, MOST_FRAMES + 50)
    setup = [(WRITE, DIRECTORIES[0] + 4 * slot, P | RW | US | PS) for slot in slots]
    script = [(STORE, slot << 22 | DATA, slot & 0xFF) for slot in slots] * 2
    nested, shadow = play("nested", setup, script), play("shadow", setup, script)

    assert nested.log == shadow.log
    assert nested.tables == shadow.tables


@pytest.mark.parametrize("paging", VM_SPACE)
def test_unmap_tells_what_a_guest_did_with_its_memory_since_last_asked(paging: str) -> None:
    """Does the monitor hear of a page that its guest has read, written, read and then written, or left alone, and of
    each once, until the guest does it again?"""
    pages = [number << 12 for number in NUMBERS]
    read, written, both, alone = (1 << 22 | page for page in pages)
    setup = [(WRITE, DIRECTORIES[0] + 4, P | RW | US | PS)]
    uses = [(LOAD, read, 0), (STORE, written, 1), (LOAD, both, 0), (STORE, both, 1)]
    asked = [(ASK, page, 0) for page in pages]
    script = [(LOAD, alone, 0), *asked, *asked, *uses, *asked, *asked, (STORE, read, 1), *asked, (TAKE, pages[0], 0)]

    statuses = [status for _, status in play(paging, setup, script).used]

    assert [0, 0, 0, 5] == statuses[:4]
    assert [0, 0, 0, 0] == statuses[4:8]
    assert [5, 7, 7, 0] == statuses[8:12]
    assert [0, 0, 0, 0] == statuses[12:16]
    assert [7, 0, 0, 0, 0] == statuses[16:]


@pytest.mark.parametrize("paging", VM_SPACE)
def test_a_fault_in_the_midst_of_a_delivery_is_delivered_once(paging: str) -> None:
    """The stack and the handler of a guest's page fault were not used since the monitor asked: is the fault still
    delivered once, and does the monitor hear of neither page?"""
    script = [(ASK, STACK - PAGE & -PAGE, 0), (ASK, CODE, 0), (ASK, IDT, 0), (LOAD, 3 << 22, 0), (LOAD, 3 << 22, 0)]

    seen = play(paging, [], script)

    assert [3 << 22, 0x100, 3 << 22, 0x100] == seen.log
    assert play(paging, [], script[:1] + script[3:]).taken == seen.taken
