# SPDX-License-Identifier: GPL-2.0-or-later
"""Native programs on the real kernel: system-call entries, faults, exceptions, preemption, isolation."""

from __future__ import annotations

import itertools
from contextlib import suppress

import pytest

from l4lab.abi import utcb as u
from l4lab.abi.calls import ErrorCode, ExregsControl
from l4lab.abi.fpage import Fpage
from l4lab.abi.ids import NIL_THREAD, SIGMA0
from l4lab.abi.kip import API_VERSION
from l4lab.abi.message import Acceptor, Message
from l4lab.abi.protocols import ARCH_EXCEPTION, PAGE_FAULT, thread_start
from l4lab.abi.time import period
from l4lab.kernel import events
from l4lab.kernel.kernel import ENTRY_CYCLES
from l4lab.kernel.objects.thread import TIME_SLICE, ThreadState
from l4lab.testing import MEMORY, PAGE, Root, System, run
from l4lab.user.l4 import L4, CallRefused, IpcFailed, Received

DATA = MEMORY.base + 0x1000  # below what Root hands out
REGISTERS = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
OTHER_KIP, OTHER_UTCB = Fpage.at(0x00C0_0000), Fpage.at(0x0080_0000, 13)

# Leave all registers at DATA, in the order of PUSHAD from behind, and end.
SAVE = f"""
    mov dword ptr [{DATA + 16}], esp
    mov dword ptr [{DATA}], eax
    mov dword ptr [{DATA + 4}], ecx
    mov dword ptr [{DATA + 8}], edx
    mov dword ptr [{DATA + 12}], ebx
    mov dword ptr [{DATA + 20}], ebp
    mov dword ptr [{DATA + 24}], esi
    mov dword ptr [{DATA + 28}], edi
    ud2
"""
ENTRY = {  # the call's arguments, and which registers it may change
    "SystemClock": ("", "eax edx"),
    "ThreadSwitch": ("xor eax, eax", ""),
    "Schedule": ("mov eax, 0x1f0001\n mov ecx, -1", "eax edx"),
    "Unmap": ("mov edi, dword ptr gs:[0]\n xor eax, eax\n xor esi, esi", "esi"),
    "ExchangeRegisters": (
        "mov edi, dword ptr gs:[0]\n mov eax, [edi - 60]\n xor ecx, ecx",
        "eax ecx edx ebx ebp esi edi",
    ),
    "ThreadControl": ("mov eax, 0x1f0001", "eax"),
    "SpaceControl": ("mov eax, 0x1f0001", "eax ecx"),
    "MemoryControl": ("mov eax, 0", "eax"),
    "ProcessorControl": ("mov eax, 0", "eax"),
    "Ipc": ("mov edi, dword ptr gs:[0]\n xor eax, eax\n xor edx, edx\n xor esi, esi", "eax ecx edx ebx ebp esi"),
    "Lipc": ("mov edi, dword ptr gs:[0]\n xor eax, eax\n xor edx, edx\n xor esi, esi", "eax ecx edx ebx ebp esi"),
}


@pytest.mark.parametrize("call", ENTRY)
@pytest.mark.parametrize("elsewhere", [False, True], ids=["usual KIP", "KIP elsewhere"])
def test_every_entry_of_the_kip_can_be_called(call: str, elsewhere: bool) -> None:
    """Does each call return behind the call, the stack as before, changing only what the ABI lists?"""
    setup, may_change = ENTRY[call]
    marks = {name: 0x5500_0000 | i << 6 for i, name in enumerate(REGISTERS) if name != "esp"}
    load = "".join(f"mov {name}, {mark:#x}\n" for name, mark in marks.items())
    before = f"mov dword ptr [{DATA + 32}], esp\n mov dword ptr [{DATA + 36}], esi\n mov dword ptr [{DATA + 40}], edi\n"
    before += f"mov dword ptr [{DATA + 44}], eax\n mov dword ptr [{DATA + 48}], ecx\n"
    # edx, ecx and esi of ThreadControl and its kin are identifiers: give them what no stub takes for a local one
    marks = {name: mark | 1 for name, mark in marks.items()}
    load = load.replace("00\n", "01\n").replace("40\n", "41\n").replace("80\n", "81\n").replace("c0\n", "c1\n")

    def root(r: Root) -> None:
        kip, utcb = (OTHER_KIP, OTHER_UTCB) if elsewhere else (Fpage.at(0xBFF0_0000), Fpage.at(0xBF00_0000, 17))
        r.native(f"{load}{setup}\n{before} call {call}\n{SAVE}", r.space(kip, utcb), kip=kip.base)
        r.serve()

    system = run(root)
    after = dict(zip(REGISTERS, system.words(DATA, 8), strict=True))
    esp, esi, edi, eax, ecx = system.words(DATA + 32, 5)
    expected = marks | {"esp": esp, "esi": esi, "edi": edi, "eax": eax, "ecx": ecx}

    assert 0 != esp
    assert {n: v for n, v in expected.items() if n not in may_change.split()} == {
        n: v for n, v in after.items() if n not in may_change.split()
    }


@pytest.mark.parametrize("kip", [0xBFF0_0000, OTHER_KIP.base])
def test_lock_nop_finds_the_kip(kip: int) -> None:
    """Does KernelInterface give the KIP's address in the caller's own space, and leave the other registers alone?"""

    def root(r: Root) -> None:
        utcb = OTHER_UTCB if kip == OTHER_KIP.base else Fpage.at(0xBF00_0000, 17)
        source = f"mov ebx, 3\n mov ebp, 5\n mov edi, 7\n .byte 0xf0, 0x90\n{SAVE}"
        r.native(source, r.space(Fpage.at(kip), utcb), kip=kip)
        r.serve()

    eax, ecx, edx, ebx, _, ebp, esi, edi = run(root).words(DATA, 8)

    assert (kip, API_VERSION, 0, 4) == (eax, ecx, edx, esi >> 24)
    assert (3, 5, 7) == (ebx, ebp, edi)


# -- exceptions


@pytest.mark.parametrize(
    ("source", "vector", "error_code"),
    [
        ("xor ecx, ecx\n at: div ecx", 0, 0),
        ("at: ud2", 6, 0),
        ("at: hlt", 13, 0),
        ("at: mov eax, cr0", 13, 0),
        ("at: mov cr3, eax", 13, 0),
        ("at: jmp 0x10:0x400000", 13, 0x10),
        ("at: int 0x80", 13, 0x80 * 8 + 2),
        ("at: int 6", 13, 6 * 8 + 2),  # which is no invalid opcode
        ("at: int 14", 13, 14 * 8 + 2),
        ("at: int 0x20", 13, 0x20 * 8 + 2),
        ("at: rdmsr", 13, 0),
        ("at: cli", 13, 0),
        ("at: sti", 13, 0),
        ("at: lgdt [esp]", 13, 0),
        ("mov edx, 0xffff\n at: in ax, dx", 13, 0),
        ("int3\n at: nop", 3, 0),
    ],
    ids=lambda value: value.split("at: ")[-1] if isinstance(value, str) else "",
)
def test_exceptions_are_messages(source: str, vector: int, error_code: int) -> None:
    """Does the exception handler hear of the exception, and do the registers in its answer count?"""
    got: list[Received] = []

    def root(r: Root) -> None:
        setup = "mov ebp, gs:[0]\n mov dword ptr [ebp - 44], ROOT\n mov ebx, 0x77\n"
        end = f"\n after: mov dword ptr [{DATA}], ebx\n mov dword ptr [{DATA + 4}], esi\n ud2"
        n = r.native(setup + source + end, r.space(), ROOT=int(r.my_id))
        got.append(r.serve())
        words = got[0].untyped
        words[0], words[8], words[5] = n.at("after"), 0x1234, 0x99
        r.send(n.id, Message(0, words))
        got.append(r.serve())
        got.append(Received(n.id, [n.at("at")]))

    system = run(root)
    words = got[0].untyped

    assert (ARCH_EXCEPTION, 12) == (got[0].label, got[0].tag.untyped)
    assert (got[2].words[0], vector, error_code, 0x77) == (words[0], words[2], words[3], words[8])
    assert [0x1234, 0x99] == system.words(DATA, 2)
    assert (6, 0x1234) == (got[1].untyped[2], got[1].untyped[8])


def test_an_exception_without_handler_halts_the_thread() -> None:
    """Without an exception handler, does the thread halt, and only it?"""

    def root(r: Root) -> None:
        r.native("ud2")
        r.native(f"mov dword ptr [{DATA}], 1\n ud2")

    system = run(root)

    assert 2 == len([e for e in system.trace.of(events.ThreadHalted) if "exception 6" in e.why])
    assert [1] == system.words(DATA)


# -- page faults


@pytest.mark.parametrize(
    ("source", "label"),
    [
        ("at: mov eax, [0x00500010]", PAGE_FAULT | 5),
        ("at: mov dword ptr [0x00500010], 1", PAGE_FAULT | 2),
        ("at: jmp 0x500010", 5),
    ],
)
def test_page_faults_tell_address_ip_and_kind(source: str, label: int) -> None:
    """Does the pager learn the address, the instruction, and whether it was a write?"""
    got: list[Received] = []
    at: list[int] = []

    def root(r: Root) -> None:
        n = r.native(source + "\n ud2", r.space())
        r.serve(1)
        got.append(r.wait())
        at.append(n.at("at"))

    run(root)

    ip = 0x500010 if label == 5 else at[0]
    assert PAGE_FAULT | label & 7 == got[0].label
    assert [0x500010, ip] == got[0].untyped


def test_rights_are_what_was_mapped_and_no_more() -> None:
    """Can a program that was given a page without w read it, and does its write fault until w is given?"""
    faults: list[tuple[int, int]] = []

    def root(r: Root) -> None:
        r.store_word(DATA + 8, 5)
        source = f"mov eax, [{DATA + 8}]\n inc eax\n mov [{DATA + 8}], eax\n ud2"
        r.native(source, r.space())
        received = r.wait()
        for rights in ("rx", "rx", "rx", "rwx"):
            page = Fpage.at(received.untyped[0] & -PAGE, rights=rights)
            faults.append((received.label & 7, received.untyped[0]))
            received = r.reply_wait(received.sender, Message().append_map(page, page.base), period(1000))

    def lenient(r: Root) -> None:
        with suppress(IpcFailed):
            root(r)

    system = run(lenient)

    assert [(5, DATA + 8), (2, DATA + 8), (2, DATA + 8)] == faults[1:]
    assert [6] == system.words(DATA + 8)


@pytest.mark.parametrize("address", [0xFF00_0000, 0xE000_0000, 0xFFFF_F000, 0xBFF0_0000], ids=hex)
def test_the_kernels_pages_cannot_be_written(address: int) -> None:
    """Does a store to the kernel's area or to the KIP fault, and can no pager help?"""
    got: list[Received] = []

    def root(r: Root) -> None:
        r.native(f"mov dword ptr [{address}], 1\n ud2", r.space())
        r.serve(1)
        for _ in range(2):
            got.append(r.wait())
            page = Fpage.at(address)
            r.send(got[-1].sender, Message().append_map(Fpage.at(DATA & -PAGE), page.base))

    run(root)

    assert [[address, address], [PAGE_FAULT | 2] * 2] == [[g.untyped[0] for g in got], [g.label for g in got]]


def test_a_fault_without_pager_halts() -> None:
    """Does a thread that changes its pager to nobody halt at its next fault, and not take the kernel along?"""

    def root(r: Root) -> None:
        r.native("mov edi, gs:[0]\n mov dword ptr [edi - 48], 0x7fff0001\n mov eax, [0x00900000]\n ud2")

    assert any("does not exist" in event.why for event in run(root).trace.of(events.ThreadHalted))


def test_unmap_takes_effect_at_once() -> None:
    """Does a program that reads a page in a loop fault at the first read after its pager has unmapped it?"""
    got: list[Received] = []

    def root(r: Root) -> None:
        r.native(f"again: inc dword ptr [{DATA}]\n jmp again", r.space())
        r.serve(2)
        r.sleep(50)
        r.unmap(Fpage.at(DATA & -PAGE, rights="w"))
        got.append(r.wait())
        got.append(Received(NIL_THREAD, [r.load_word(DATA)]))
        r.sleep(50)
        got.append(Received(NIL_THREAD, [r.load_word(DATA)]))

    run(root)

    assert (PAGE_FAULT | 2, DATA) == (got[0].label, got[0].untyped[0])
    assert got[1].words == got[2].words
    assert got[1].words[0] > 10


def test_a_new_space_sees_nothing_of_a_deleted_one() -> None:
    """When a space is deleted and the next one gets its page directory, does its old TLB content not come along?"""
    got: list[list[int]] = []

    def root(r: Root) -> None:
        for _ in range(2):
            space = r.space()
            n = r.native(f"mov eax, [{DATA}]\n spin: jmp spin", space)
            got.append([])
            for _ in range(2):
                received = r.wait()
                got[-1].append(received.untyped[0])
                page = Fpage.at(received.untyped[0] & -PAGE)
                r.send(received.sender, Message().append_map(page, page.base))
            r.sleep(10)
            r.thread_control(n.id, NIL_THREAD)
            r.thread_control(space, NIL_THREAD)

    run(root, 100_000_000)

    assert DATA == got[0][1] == got[1][1]
    assert got[0][0] != got[1][0]


# -- time and scheduling


def test_time_slices_are_exact() -> None:
    """Do two threads that only spin take turns, each for exactly its slice of time?"""

    def root(r: Root) -> None:
        for i in range(2):
            r.native(f"again: inc dword ptr [{DATA + 4 * i}]\n jmp again")

    system = run(root, 105_000_000)
    ends = [event for event in system.trace.of(events.Preempted) if event.why == "slice"]

    assert [TIME_SLICE] * (len(ends) - 1) == [b.at - a.at for a, b in itertools.pairwise(ends)]
    assert len({event.thread for event in ends}) == 2
    assert all(a.thread != b.thread for a, b in itertools.pairwise(ends))
    one, other = system.words(DATA, 2)
    assert abs(one - other) <= TIME_SLICE


def test_the_higher_priority_runs() -> None:
    """Does a thread of lower priority get no time as long as one of higher priority spins?"""

    def root(r: Root) -> None:
        r.native(f"again: inc dword ptr [{DATA}]\n jmp again", priority=100)
        r.native(f"again: inc dword ptr [{DATA + 4}]\n jmp again", priority=101)

    low, high = run(root, 50_000_000).words(DATA, 2)

    assert low == 0
    assert high > 1_000_000


@pytest.mark.parametrize("kind", ["native", "hosted"])
def test_thread_switch_gives_the_rest_of_the_slice_away(kind: str) -> None:
    """Does ThreadSwitch run the named thread at once, even one of lower priority, before others that are ready?"""
    order: list[str] = []

    def root(r: Root) -> None:
        r.native("again: jmp again", priority=100)
        low = r.native(f"mov dword ptr [{DATA}], 1\n again: jmp again", priority=90)

        def switch(l4: L4) -> None:
            l4.thread_switch(low.id)
            l4.store_word(DATA + 4, l4.load_word(DATA))

        if kind == "native":
            r.native(
                f"mov eax, TO\n call ThreadSwitch\n mov eax, [{DATA}]\n mov [{DATA + 4}], eax\n ud2", TO=int(low.id)
            )
        else:
            r.hosted(switch)
        order.append("started")

    assert [1, 1] == run(root, 60_000_000).words(DATA, 2)


def test_a_run_is_the_same_however_it_is_paused() -> None:
    """Do many short runs, of one instruction now and then, leave the same trace and memory as one long run?"""

    def root(r: Root) -> None:
        space = r.space()
        call = "mov edi, gs:[0]\n mov eax, ROOT\n mov edx, eax\n xor ecx, ecx\n mov esi, 0x10000\n call Ipc\n"
        busy = "mov ecx, 40\n .l: rdtsc\n add [DATA], eax\n loop .l\n rep movsb\n mov ax, 0x23\n mov ss, ax\n"
        segments = "mov gs, ax\n mov ebx, gs:[DATA]\n mov eax, 0x2b\n mov gs, ax\n mov ecx, 1\n mov ss, dx\n"
        segments = segments.replace(
            "mov ss, dx\n", "mov eax, 0x23\n mov esi, DATA\n mov edi, DATA + 64\n mov ss, ax\n rep movsb\n"
        )
        for _ in range(2):
            r.native(
                "again: " + busy.replace(".l", "again.l") + segments + call + "jmp again",
                space,
                ROOT=int(r.my_id),
                DATA=DATA,
            )
        received = r.serve()
        for _ in range(6):
            r.send(received.sender, [0])
            received = r.serve()

    whole = System(root, check=False)
    whole.run(3_000_000)
    parts = System(root, check=False)
    step = 1
    while parts.machine.clock.cycles < 3_000_000:
        if parts.kernel.run(min(parts.machine.clock.cycles + step, 3_000_000)) == "idle":
            break
        step = step % 5 + 1 if parts.machine.clock.cycles < 60_000 else 50_001

    assert whole.trace.events == parts.trace.events
    assert whole.machine.memory.u8[: 8 << 20] == parts.machine.memory.u8[: 8 << 20]


def test_time_is_what_was_executed() -> None:
    """Do RDTSC and SystemClock read the machine's clock, to the instruction, natively as in hosted programs?"""
    hosted: list[int] = []

    def root(r: Root) -> None:
        r.native(
            f"rdtsc\n mov [{DATA}], eax\n rdtsc\n sub eax, [{DATA}]\n mov [{DATA + 4}], eax\n"
            f"call SystemClock\n mov [{DATA + 8}], eax\n ud2"
        )
        hosted.extend((r.time_stamp(), r.system_clock()))

    system = run(root)
    tsc, difference, clock = system.words(DATA, 3)

    assert 2 == difference
    assert tsc // 1000 <= clock <= tsc // 1000 + 1
    assert hosted[0] // 1000 <= hosted[1] <= hosted[0] // 1000 + 2
    assert [tsc, difference, clock] == run(root).words(DATA, 3)


# -- isolation


def test_the_floating_point_state_is_everyones_own() -> None:
    """Do two threads that preempt each other keep their x87 stack, control word, MXCSR and XMM registers?"""
    source = """
        fninit
        mov dword ptr [esp - 4], MODE
        fldcw [esp - 4]
        mov dword ptr [esp - 4], CSR
        ldmxcsr [esp - 4]
        mov dword ptr [esp - 4], VALUE
        fild dword ptr [esp - 4]
        movd xmm3, dword ptr [esp - 4]
        mov ecx, 9000000
        again: dec ecx
        jnz again
        fistp dword ptr [OUT]
        movd dword ptr [OUT + 4], xmm3
        fnstcw [OUT + 8]
        stmxcsr [OUT + 12]
        fnstsw ax
        mov word ptr [OUT + 16], ax
        ud2
    """

    def root(r: Root) -> None:
        for i in range(2):
            r.native(source, MODE=0x37F + 0x400 * i, CSR=0x1F80 + 0x2000 * i, VALUE=1000 + i, OUT=DATA + 32 * i)

    system = run(root)

    assert any(e.why == "slice" for e in system.trace.of(events.Preempted))
    for i in range(2):
        expected = [1000 + i, 1000 + i, 0x37F + 0x400 * i, 0x1F80 + 0x2000 * i, 0]
        got = system.words(DATA + 32 * i, 5)
        assert expected == [*got[:2], got[2] & 0xFFFF, got[3], got[4] & 0x3800]


def test_a_new_thread_starts_with_a_fresh_fpu() -> None:
    """Does a thread that takes over a deleted one's register frame see nothing of its floating-point registers?"""

    def root(r: Root) -> None:
        first = r.native("fninit\n fldpi\n mov eax, 0x1234\n movd xmm1, eax\n again: jmp again")
        r.sleep(100)
        r.thread_control(first.id, NIL_THREAD)
        r.native(f"fnstsw ax\n movzx eax, ax\n mov [{DATA}], eax\n movd dword ptr [{DATA + 4}], xmm1\n ud2")

    assert [0, 0] == run(root).words(DATA, 2)


def test_the_unprivileged_control_nothing() -> None:
    """Are ThreadControl, SpaceControl, MemoryControl and ProcessorControl refused to an ordinary space?"""
    codes: list[int] = []
    calls = ("ThreadControl", "SpaceControl", "MemoryControl", "ProcessorControl")

    def root(r: Root) -> None:
        text = "".join(
            f"mov eax, 0x320001\n xor ecx, ecx\n xor edx, edx\n xor esi, esi\n mov edi, gs:[0]\n"
            f"call {call}\n mov [{DATA + 8 * i}], eax\n"
            f"mov edi, gs:[0]\n mov eax, [edi - 36]\n mov [{DATA + 8 * i + 4}], eax\n"
            for i, call in enumerate(calls)
        )
        r.native(text + "ud2", r.space())

        def ordinary(l4: L4) -> None:
            try:
                l4.thread_control(r.my_id, NIL_THREAD)
            except CallRefused as refused:
                codes.append(refused.code)
            try:
                l4.exchange_registers(r.my_id, ExregsControl.HALT | ExregsControl.ACT_ON_HALT)
            except CallRefused as refused:
                codes.append(refused.code)

        r.hosted(ordinary, r.space())
        r.serve()

    system = run(root)

    assert [0, ErrorCode.NO_PRIVILEGE] * 4 == system.words(DATA, 8)
    assert [ErrorCode.NO_PRIVILEGE, ErrorCode.INVALID_THREAD] == codes


def test_pause_is_an_instruction_like_others() -> None:
    """Does PAUSE, which spinning programs use, do nothing and take one cycle?"""

    def root(r: Root) -> None:
        r.native(f"rdtsc\n mov ebx, eax\n pause\n pause\n rdtsc\n sub eax, ebx\n mov [{DATA}], eax\n ud2")

    assert [4] == run(root).words(DATA)


def test_deleting_everything_gives_all_frames_back() -> None:
    """After threads and spaces of all kinds have come, faulted, mapped and gone: is every frame free again?"""
    free: list[int] = []

    def root(r: Root) -> None:
        for _ in range(3):
            space, machine = r.space(), r.space(control=1 << 30)
            ids = [space, machine]
            ids.append(r.native(f"mov eax, [{DATA}]\n mov [{DATA + 0x2000}], eax\n again: jmp again", space).id)
            ids.append(r.hosted(lambda l4: l4.sleep(10**7), space))
            ids.append(r.create(machine))
            r.serve(3)
            r.sleep(20)
            for thread in reversed(ids):
                r.thread_control(thread, NIL_THREAD)
            free.append(r.system.kernel.frames.available)

    run(root)

    assert [free[0]] * 3 == free


def test_out_of_memory_is_an_error_and_no_more() -> None:
    """When the kernel's memory is used up by page tables, do calls and mappings fail, and does the rest go on?"""
    codes: list[int] = []

    def root(r: Root) -> None:
        def greedy(l4: L4) -> None:
            l4.accept(Acceptor.of(Fpage.at(0, 32)))
            while True:
                with suppress(IpcFailed):
                    l4.wait()

        space = r.space()
        spaces = [r.hosted(greedy, space), r.hosted(greedy, r.space(OTHER_KIP, OTHER_UTCB))]
        try:
            for thread in spaces:
                for at in range(0x1000_0000, 0xB000_0000, 1 << 22):
                    r.send(thread, Message().append_map(Fpage.at(DATA & -PAGE), at))
        except IpcFailed as failed:
            codes.append(failed.error.code)
        try:
            r.thread_control(r.new_id(), space, r.my_id)
        except CallRefused as refused:
            codes.append(refused.code)
        r.thread_control(spaces[0], NIL_THREAD)
        r.thread_control(space, NIL_THREAD)
        r.space()

    run(root, check=False)

    assert [4, ErrorCode.NO_MEMORY] == codes


def test_thread_start_by_message_and_by_exregs() -> None:
    """Does a new thread start where its pager's message says, and also when ExchangeRegisters aborts its wait?"""

    def root(r: Root) -> None:
        p = r.assemble(f"one: mov dword ptr [{DATA}], esp\n ud2\n two: mov dword ptr [{DATA + 4}], esp\n ud2")
        a, b = r.create(), r.create()
        r.send(a, thread_start(p.address("one"), 0x400800))
        control = ExregsControl.ABORT_SEND | ExregsControl.ABORT_RECEIVE | ExregsControl.SP | ExregsControl.IP
        other, old, _ = r.exchange_registers(b, control, sp=0x400900, ip=p.address("two"))
        assert other.is_local
        assert ExregsControl.ABORT_RECEIVE == old

    assert [0x400800, 0x400900] == run(root).words(DATA, 2)


@pytest.mark.parametrize("kind", ["native", "hosted"])
@pytest.mark.parametrize("state", [ThreadState.POLLING, ThreadState.WAITING])
@pytest.mark.parametrize("how", ["cancel", "delete partner", "delete"])
def test_what_ends_a_wait(kind: str, state: ThreadState, how: str) -> None:
    """When a thread in IPC is aborted, or its partner deleted, does it go on with the right error?"""
    codes: list[int] = []

    def root(r: Root) -> None:
        partner = r.create()
        to, from_ = (partner, 0) if state is ThreadState.POLLING else (0, partner)
        if state is ThreadState.WAITING:
            r.send(partner, thread_start(r.assemble("again: jmp again").origin, 0x400800))
            r.schedule(partner, 1)
        else:
            r.send(partner, thread_start(r.assemble("again: jmp again").origin, 0x400800))
        if kind == "native":
            source = "mov edi, gs:[0]\n mov eax, TO\n mov edx, FROM\n xor ecx, ecx\n xor esi, esi\n call Ipc\n"
            source += f"mov edi, gs:[0]\n mov eax, [edi - 36]\n mov [{DATA}], eax\n ud2"
            thread = r.native(source, TO=int(to), FROM=int(from_), priority=200).id
        else:

            def main(l4: L4) -> None:
                try:
                    l4.ipc(to, from_, [0])
                except IpcFailed:
                    l4.store_word(DATA, l4.tcr(u.ERROR_CODE))

            thread = r.hosted(main, priority=200)
        r.sleep(100)
        assert r.system.thread(thread).state is state
        if how == "cancel":
            r.exchange_registers(thread, ExregsControl.ABORT_SEND | ExregsControl.ABORT_RECEIVE)
        elif how == "delete partner":
            r.thread_control(partner, NIL_THREAD)
        else:
            r.thread_control(thread, NIL_THREAD)
        r.sleep(100)
        codes.append(r.load_word(DATA))

    run(root, 50_000_000)

    polling = state is ThreadState.POLLING
    expected = {"cancel": 6 if polling else 7, "delete partner": 4 if polling else 7, "delete": 0}
    assert [expected[how]] == codes


def test_entries_cost_what_they_cost() -> None:
    """Does a native system call take its instructions and one kernel entry?"""

    def root(r: Root) -> None:
        call = "xor eax, eax\n call ProcessorControl\n"
        r.native(f"rdtsc\n mov ebx, eax\n {call} rdtsc\n sub eax, ebx\n mov [{DATA}], eax\n ud2")

    # mov, xor, call, int, ret, rdtsc
    assert [6 + ENTRY_CYCLES] == run(root).words(DATA)


def test_sigma0_and_hosted_programs_stay_where_they_are() -> None:
    """Is it refused to delete or move the last thread of sigma0's space, and to move a hosted program?"""
    codes: list[int] = []

    def root(r: Root) -> None:
        other = r.space()
        hosted = r.hosted(lambda l4: l4.sleep(10**6))
        r.sleep(10)
        for dest, space in ((SIGMA0, NIL_THREAD), (SIGMA0, r.my_id), (hosted, other), (r.my_id, NIL_THREAD)):
            try:
                r.thread_control(dest, space)
            except CallRefused as refused:
                codes.append(refused.code)

    run(root)

    assert 4 == len(codes)


def test_a_native_thread_moves_to_another_space() -> None:
    """Does a native thread that is moved go on there, with its message registers and the new space's memory?"""

    def root(r: Root) -> None:
        source = f"mov edi, gs:[0]\n mov dword ptr [edi + 20], 77\n spin: inc dword ptr [{DATA}]\n"
        source += f"mov eax, [edi + 20]\n mov [{DATA + 4}], eax\n jmp spin"
        space = r.space()
        n = r.native(source)
        r.sleep(100)
        r.store_word(DATA + 4, 0)
        r.thread_control(n.id, space)
        r.serve(2)
        r.sleep(100)

    system = run(root, 40_000_000)

    assert 77 == system.words(DATA + 4)[0]
