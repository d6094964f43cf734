# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that tries hard: through page tables of its own it reaches what its monitor has mapped, and nothing else.

It reads and writes a place in each 4 MB of guest-physical memory and all around the areas of the kernel, with page
tables plain and odd; from real mode; and through translations that it has used until the moment at which its monitor
takes the page away. Its monitor lets it skip what faults. At the end all of the programs' memory must be as it was, but
for the guest's pages; the guest must have read nothing that is not its own; and neither the mapping tree nor the shadow
tables may lead elsewhere. `vmfuzz.py` has guests without a plan.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4lab.abi.fpage import Fpage
from l4lab.abi.ids import NIL_THREAD
from l4lab.abi.message import Message
from l4lab.abi.protocols import PAGE_FAULT, is_page_fault
from l4lab.abi.time import period
from l4lab.abi.vm import ExitReason, ItemId, reason_of
from l4lab.kernel import invariants
from l4lab.machine.mmu import PS, RW, US, A, D, G, P
from l4lab.testing import MEMORY, PAGE, SECOND, Root, run
from l4lab.user.asm import assemble
from l4lab.user.l4 import IpcFailed
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

OWN = 0x20  # pages from guest-physical 0 on that the guest has
DIRECTORY, TABLE, LIST, LOG = 0xA000, 0xB000, 0x10000, 0x14000
ELSEWHERE, READ_ONLY = 0x8000_0000, 0x9000_0000  # where it has two more pages
GIVEN = {n * PAGE: Fpage.at(GUEST + n * PAGE) for n in range(OWN)}
GIVEN |= {ELSEWHERE: Fpage.at(GUEST + OWN * PAGE), READ_ONLY: Fpage.at(GUEST + (OWN + 1) * PAGE, rights="rx")}
MARK, BAD, SECRET = 0x0BAD_CAFE, 0xDEAD_BEEF, 0x5EC2_E75E
READ, WRITE = PAGE_FAULT | 5, PAGE_FAULT | 2
ALL = Rights(7)

PROBES = f"""
        mov     eax, {DIRECTORY}
        mov     cr3, eax
        mov     eax, 0x90               ; PSE, PGE
        mov     cr4, eax
        mov     eax, 0x80000011
        mov     cr0, eax
        mov     esi, {LIST}
        mov     edi, {LOG}
        cld
next:   lodsd
        test    eax, eax
        jz      end
        mov     ebx, eax
        mov     eax, {MARK}
        mov     eax, [ebx]              ; two bytes, and so is the store: to be skipped
        stosd
        mov     eax, {BAD}
        mov     [ebx], eax
        jmp     next
end:    hlt
fault:  add     esp, 4                  ; its own page faults it skips by itself
        add     dword ptr [esp], 2
        iretd
"""
REAL_PROBES = f"""
        mov     si, {LIST & 0xFFFF}
        mov     di, {LOG & 0xFFFF}
        mov     ax, 0x1000
        mov     es, ax
        cld
next:   mov     ax, 0x1000
        mov     ds, ax
        lodsw
        xchg    bx, ax
        lodsw
        test    ax, ax
        jz      end
        mov     ds, ax
        mov     ax, {MARK & 0xFFFF}
        mov     ax, [bx]
        stosw
        mov     ax, {BAD & 0xFFFF}
        mov     [bx], ax
        jmp     next
end:    hlt
"""


@pytest.fixture(params=VM_SPACE)
def control(request: pytest.FixtureRequest) -> int:
    """SpaceControl's control word for the machines of a test."""
    return VM_SPACE[request.param]


def put(r: Root, address: int, *words: int) -> None:
    """Words into the guest's memory."""
    r.store(GUEST + address, b"".join(word.to_bytes(4, "little") for word in words))


def machine(r: Root, control: int) -> Vm:
    """A virtual machine beside another one, whose memory holds secrets."""
    r.store(GUEST, bytes((OWN + 2) * PAGE))
    r.store(GUEST + 0x5008, bytes.fromhex("ffff0000009bcf00 ffff00000093cf00"))
    secrets = r.room(16 * PAGE)
    r.store(secrets, SECRET.to_bytes(4, "little") * (16 * PAGE // 4))
    other = r.create(r.space(KIP, UTCB, control=control), priority=200)
    r.store(secrets, assemble("next: mov ebx, [0x5000]\n hlt", 0).code)
    received = r.call(other, start_state().append_registers(ItemId.GPREGS, {EIP: 0}))
    while is_page_fault(received.label):
        page = received.untyped[0] & -PAGE
        received = r.call(other, Message().append_map(Fpage.at(secrets + page), page))
    vm = Vm(r, r.create(r.space(KIP, UTCB, control=control)))
    vm.conf(all=(ItemId.GPREGS, ItemId.NONREGEXC), page_fault=(ItemId.GPREGS, ItemId.NONREGEXC))
    return vm


def protected() -> Message:
    """The message that starts a guest whose control registers are its own."""
    message = start_state().append_registers(ItemId.EXECCTRL, {1: HLT | IO, 2: 0})
    return message.append_registers(ItemId.CREGS, {2: 0, 7: 0})


def let_it_try(vm: Vm, message: Message) -> list[tuple[int, int]]:
    """Give a guest its pages and let it skip whatever else it touches; what that was. Nothing else has changed then."""
    faults: list[tuple[int, int]] = []
    r = vm.r
    kernel = r.system.kernel
    memory = r.system.machine.memory.u8[: kernel.kernel_memory]
    before = bytes(memory)
    while True:
        received = r.call(vm.id, message)
        message = Message()
        if received.label & 8:
            deliver_again(received, message)
        elif not is_page_fault(received.label):
            break
        else:
            given = GIVEN.get(received.untyped[0] & -PAGE)
            if given is not None and Rights(received.label & 7) in given.rights:
                message.append_map(given, received.untyped[0] & -PAGE)
                continue
            faults.append((received.label, received.untyped[0]))
            eip = items(received)[ItemId.GPREGS][EIP]
            message.append_registers(ItemId.GPREGS, {EIP: eip + 2})
    assert reason_of(received.label) is ExitReason.HLT, received.message
    invariants.check_shadows(kernel)
    mapped = r.system.thread(r.my_id).space.tables.entries()
    here = next(m.pa - m.va for m in mapped if m.log2 == MEMORY.log2 and MEMORY.covers(m.va)) + GUEST
    own = range(here, here + (OWN + 1) * PAGE)
    changed = [at for at in range(0, len(before), PAGE) if before[at : at + PAGE] != memory[at : at + PAGE]]
    assert [] == [at for at in changed if at not in own]
    return faults


PLACES = [
    *((slot << 22 | slot * 0x9E37_79B1 >> 2 & 0x3F_FFFC) for slot in range(1, 1024)),
    *(area.base + at for area in (KIP, UTCB) for at in (-4, 0, 4, 0x100, 0xFFC, 0x1000)),
    *(at + offset for at in (0xE000_0000, 0xE600_0000, GUEST, MEMORY.base) for offset in (-4, 0, 0x1000)),
    *(OWN * PAGE - 4, OWN * PAGE, READ_ONLY + 8, ELSEWHERE + 8, ELSEWHERE - 4, ELSEWHERE + PAGE, 0xFFFF_FFFC),
]


def probe(control: int, entry: Callable[[int], int]) -> tuple[list[tuple[int, int]], list[int]]:
    """All places, through a directory with these entries: what faulted beyond the guest's tables, and what was read."""
    faults: list[tuple[int, int]] = []
    log: list[int] = []

    def root(r: Root) -> None:
        vm = machine(r, control)
        program = assemble(PROBES, CODE)
        r.store(GUEST + CODE, program.code)
        r.store(GUEST + IDT + 8 * 14, (program.address("fault") | 8 << 16 | 0x8E00 << 32).to_bytes(8, "little"))
        put(r, DIRECTORY, P | RW | PS, *(entry(slot) for slot in range(1, 1024)))
        put(r, LIST, *PLACES, 0)
        put(r, OWN * PAGE + 8, MARK + 1)
        put(r, (OWN + 1) * PAGE + 8, MARK + 2)
        faults.extend(let_it_try(vm, protected()))
        log.extend(r.words(GUEST + LOG, len(PLACES)))

    system = run(root, check=False, cycles=100 * SECOND)
    invariants.check(system.kernel)
    assert log, "the guest has not ended"
    return faults, log


def test_a_guest_reaches_its_pages_only(control: int) -> None:
    """With tables that map all of 4 GiB as it is: does each access beyond the guest's pages fault, and read nothing?"""
    faults, log = probe(control, lambda slot: slot << 22 | P | RW | PS | slot * A & (A | D | US | G))
    own = {OWN * PAGE - 4: 0, READ_ONLY + 8: MARK + 2, ELSEWHERE + 8: MARK + 1}

    assert [own.get(place, MARK) for place in PLACES] == log
    expected = [(label, place) for place in PLACES if place not in own for label in (READ, WRITE)]
    assert expected == [fault for fault in faults if fault != (WRITE, READ_ONLY + 8)]
    assert 1 == faults.count((WRITE, READ_ONLY + 8))


def test_reserved_bits_and_addresses_beyond_4_gib_lead_to_no_other_memory(control: int) -> None:
    """With large pages whose entries have bits set that are reserved, or mean memory beyond 4 GiB: is nothing read?

    But its own: under nested paging the CPU drops what is beyond 4 GiB from an address.
    """
    faults, log = probe(control, lambda slot: slot << 22 | (slot % 0x1FF + 1) << 13 | P | RW | PS | US)
    own = {OWN * PAGE - 4: 0, READ_ONLY + 8: MARK + 2, ELSEWHERE + 8: MARK + 1}

    assert [] == [value for place, value in zip(PLACES, log, strict=True) if value not in (MARK, own.get(place))]
    assert all(address >= OWN * PAGE for _, address in faults)


def test_real_mode_ends_where_its_pages_end(control: int) -> None:
    """With segments that reach beyond 1 MB, and offsets that wrap: is nothing read but the guest's own?"""
    places = [(0xFFFF, 0x10), (0xFFFF, 0x1234), (0xFFFF, 0xFFFE), (0xFFFF, 0xFFFF), (0xF000, 0xFFFE), (0xF000, 0xFFFF)]
    places += [(0x2000, 0), (0x1FFF, 0x10), (0x1FFF, 0xE), (0xA000, 0), (0xC800, 8), (0x8000, 0xFFFE), (0x3000, 0x77)]
    faults: list[tuple[int, int]] = []
    log: list[int] = []

    def root(r: Root) -> None:
        vm = machine(r, control)
        r.store(GUEST + CODE, assemble(REAL_PROBES, CODE, 16).code)
        put(r, LIST, *(segment << 16 | offset for segment, offset in places), 0)
        message = Message().append_registers(ItemId.GPREGS, {EIP: CODE, 5: STACK, 1: 2})
        message.append_registers(ItemId.CREGS, {0: 0x10, 1: 0x10, 2: 0, 5: 0, 6: 0, 7: 0x10})
        for item in (ItemId.CS, ItemId.SS, ItemId.DS, ItemId.ES):
            message.append_registers(item, {0: 0, 1: 0, 2: 0xFFFF, 3: 0x9B if item is ItemId.CS else 0x93})
        faults.extend(let_it_try(vm, message.append_registers(ItemId.EXECCTRL, {1: HLT | IO, 2: 0})))
        log.extend(word & 0xFFFF for word in r.words(GUEST + LOG, 7) for word in (word, word >> 16))

    run(root, check=False)

    linear = [(segment << 4) + offset for segment, offset in places]
    assert [0 if at < OWN * PAGE else MARK & 0xFFFF for at in linear] == log[: len(places)]
    assert {at for at in linear if at >= OWN * PAGE} == {address for _, address in faults}


SHARED = 0x18000
ALIASES = (SHARED, 1 << 22 | SHARED, 2 << 22 | SHARED, 3 << 22 | 0x5000)
COUNTING = f"""
        mov     eax, {DIRECTORY}
        mov     cr3, eax
        mov     eax, 0x90
        mov     cr4, eax
        mov     eax, 0x80000011
        mov     cr0, eax
next:   {"".join(f"add dword ptr [{alias}], 1{chr(10)}" for alias in ALIASES)}
        jmp     next
"""


@settings(max_examples=10)
@given(times=st.lists(st.integers(1, 60), min_size=1, max_size=4))
@pytest.mark.parametrize("paging", VM_SPACE)
def test_a_page_that_is_taken_back_is_out_of_reach_at_once(paging: str, times: list[int]) -> None:
    """While a guest uses a page by four translations, one of them global: does it touch it no more once it is gone?"""

    def root(r: Root) -> None:
        vm = machine(r, VM_SPACE[paging])
        r.store(GUEST + CODE, assemble(COUNTING, CODE).code)
        put(r, DIRECTORY, P | RW | PS, P | RW | PS | G, P | RW | US | PS, TABLE | P | RW)
        put(r, TABLE + 4 * 5, SHARED | P | RW | G)
        message = protected()
        window = GUEST + SHARED
        for us in times:
            while True:  # until the guest runs for that long
                r.send(vm.id, message)
                try:
                    received = r.receive(vm.id, period(us))
                except IpcFailed:
                    break
                page = received.untyped[0] & -PAGE
                message = Message().append_map(Fpage.at(window if page == SHARED else GUEST + page), page)
                deliver_again(received, message)
            r.unmap(Fpage.at(window, 12, ALL))
            assert 0 != r.words(window, 1)[0]
            r.store(window, SECRET.to_bytes(4, "little") * (PAGE // 4))
            old, window = window, r.room()
            received = r.receive(vm.id)
            assert SHARED == received.untyped[0]
            assert [SECRET] * (PAGE // 4) == r.words(old, PAGE // 4)
            invariants.check_shadows(r.system.kernel)
            message = Message().append_map(Fpage.at(window), SHARED)
        r.thread_control(vm.id, NIL_THREAD)
        done.append(True)

    done: list[bool] = []
    run(root, check=False)
    assert done
