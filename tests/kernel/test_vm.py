# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual machines at the level of system calls: exits as messages, replies as state, memory as mappings.

Each test runs twice: once with nested paging, once with shadow page tables.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4lab.abi.calls import ExregsControl
from l4lab.abi.fpage import Fpage
from l4lab.abi.ids import NIL_THREAD, ThreadId
from l4lab.abi.message import CtrlXferItem, Message
from l4lab.abi.protocols import PAGE_FAULT, FaultId, is_page_fault
from l4lab.abi.vm import ITEM_REGISTERS, ExitReason, ItemId, fault_id_of, full_mask, label_of, reason_of
from l4lab.abi.vm_state import INITIAL_STATE
from l4lab.testing import MEMORY, PAGE, Root, run
from l4lab.user.asm import assemble
from l4lab.user.l4 import IpcFailed, Received

R = ExitReason
GUEST = MEMORY.base + 0x200000  # where the guest's memory lies in the monitor's: 1 MB, guest-physical 0 on
SIZE = 1 << 20
CODE, STACK, IDT = 0x1000, 0x9000, 0x4000
KIP, UTCB = Fpage.at(0x80_0000), Fpage.at(0x80_1000)
EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI, EFLAGS, EIP = 9, 8, 7, 6, 5, 4, 3, 2, 1, 0
HLT, INVLPG, RDTSC, MOV_DR, IO, PAUSE, WINDOW = 1 << 7, 1 << 9, 1 << 12, 1 << 23, 1 << 24, 1 << 30, 1 << 2
VALID = 1 << 31
VM_SPACE = {"nested": 1 << 30, "shadow": 1 << 30 | 1 << 28}  # SpaceControl's control word
_paging = "nested"


@pytest.fixture(scope="module", autouse=True, params=VM_SPACE)
def paging(request: pytest.FixtureRequest) -> str:
    """How the memory of all machines of a test is translated."""
    global _paging
    _paging = request.param
    return _paging


@dataclass
class Vm:
    """A virtual machine with one CPU, and what its monitor does."""

    r: Root
    id: ThreadId
    seen: list[Received] = field(default_factory=list)

    def conf(self, **items: tuple[ItemId, ...]) -> None:
        """Which items to send: by the names of exit reasons, `page_fault`, or `all`."""
        wanted: dict[int, int] = {}
        for name, list_ in items.items():
            mask = sum(1 << item for item in list_)
            if name == "page_fault":
                wanted[FaultId.PAGE_FAULT] = mask
            elif name == "all":
                wanted |= dict.fromkeys(range(9, 53), mask)
            else:
                wanted[fault_id_of(ExitReason[name])] = mask
        words = [CtrlXferItem.make(id=fault, mask=mask, more=1) for fault, mask in wanted.items()]
        words[-1] = CtrlXferItem(words[-1] & ~1)
        self.r.exchange_registers(self.id, ExregsControl.CONFIGURE_ITEMS, items=words)

    def read(self, item: ItemId) -> list[int]:
        """A register item by ExchangeRegisters."""
        words = [CtrlXferItem.make(id=item, mask=full_mask(item)), *(0 for _ in ITEM_REGISTERS[item])]
        return self.r.exchange_registers(self.id, ExregsControl.READ_ITEMS, items=words)[2][1:]

    def write(self, item: ItemId, values: dict[int, int]) -> None:
        """Write registers by ExchangeRegisters."""
        message = Message().append_registers(item, values)
        self.r.exchange_registers(self.id, ExregsControl.WRITE_ITEMS, items=message.typed)

    def go(self, message: Message | None = None) -> Received:
        """Send a reply, and get the next fault that is not for a page of the first megabyte."""
        received = self.r.call(self.id, message or Message())
        while True:
            reply = Message()
            if is_page_fault(received.label) and received.untyped[0] < SIZE:
                page = received.untyped[0] & -PAGE
                reply.append_map(Fpage.at(GUEST + page), page)
            elif not received.label & 8:
                break
            received = self.r.call(self.id, deliver_again(received, reply))
        self.seen.append(received)
        return received

    def skip(self, **changes: int) -> Received:
        """Go on behind the instruction that exited."""
        last = self.seen[-1]
        registers = {EIP: items(last)[ItemId.GPREGS][EIP] + last.untyped[1]}
        registers |= {globals()[name]: value for name, value in changes.items()}
        return self.go(Message().append_registers(ItemId.GPREGS, registers))


def deliver_again(received: Received, reply: Message) -> Message:
    """Have the event delivered whose delivery was cut short, unless an instruction will cause it again."""
    state = items(received).get(ItemId.NONREGEXC)
    if state and state[8] & VALID and (state[8] >> 8 & 7 in (0, 2, 3) or state[5]):
        reply.append_registers(ItemId.NONREGEXC, {3: state[8] & ~(1 << 12), 4: state[9], 5: state[5]})
    return reply


def items(received: Received) -> dict[ItemId, list[int]]:
    """The register items of a fault."""
    return {ItemId(item.id): rest for item, rest in received.message.items() if isinstance(item, CtrlXferItem)}


def start_state(protected: bool = True) -> Message:
    """Flat 32-bit protected mode at CODE, nothing masked but what VT-x masks at first."""
    m = Message().append_registers(ItemId.GPREGS, {EIP: CODE, ESP: STACK, EFLAGS: 2})
    cr0 = 0x11 if protected else 0x10
    m.append_registers(ItemId.CREGS, {0: cr0, 1: cr0, 2: 0xFFFF_FFFF, 5: 0, 6: 0, 7: 0xFFFF_FFFF})
    attributes = {ItemId.CS: 0xC09B}
    for item in (ItemId.CS, ItemId.SS, ItemId.DS, ItemId.ES):
        limit = 0xFFFF_FFFF
        m.append_registers(item, {0: 8 if item is ItemId.CS else 16, 1: 0, 2: limit, 3: attributes.get(item, 0xC093)})
    m.append_registers(ItemId.IDTR, {0: IDT, 1: 0x7FF})
    return m.append_registers(ItemId.GDTR, {0: 0x5000, 1: 0x1F})


def monitor(source: str, steps: Callable[[Vm], None], bitmap: int = 0, controls: int = 0) -> list[Received]:
    """Run a guest under a monitor that does `steps`; what the monitor saw."""
    seen: list[Received] = []

    def root(r: Root) -> None:
        r.store(GUEST + CODE, assemble(source, CODE).code)
        for vector in range(256):  # an IDT whose gates lead to HLT instructions, 16 bytes apart, and a GDT
            handler = 0x6000 + 16 * vector
            r.store(GUEST + IDT + 8 * vector, (handler | 8 << 16 | 0xEE00 << 32).to_bytes(8, "little"))
            r.store(GUEST + handler, b"\xf4")
        r.store(GUEST + 0x5008, bytes.fromhex("ffff0000009bcf00 ffff00000093cf00"))
        vm = Vm(r, r.create(r.space(KIP, UTCB, control=VM_SPACE[_paging])), seen)
        vm.conf(all=(ItemId.GPREGS, ItemId.NONREGEXC))
        m = start_state().append_registers(ItemId.EXECCTRL, {1: HLT | IO | controls, 2: bitmap})
        words = m.words()
        assert len(words) <= 64
        vm.go(m)
        steps(vm)
        r.thread_control(vm.id, NIL_THREAD)

    run(root)
    return seen


def nothing(vm: Vm) -> None:
    """A monitor that looks at the first exit only."""


def one(source: str, bitmap: int = 0, controls: int = 0) -> Received:
    """The first exit of a guest."""
    return monitor(source, nothing, bitmap, controls)[0]


# -- exits


@pytest.mark.parametrize(
    ("source", "reason", "qualification", "length", "additional", "controls"),
    [
        ("at: cpuid", R.CPUID, 0, 2, 0, 0),
        ("at: hlt", R.HLT, 0, 1, 0, 0),
        ("at: in al, 0x60", R.IO_INSTRUCTION, 0x60 << 16 | 8 | 64, 2, 0, 0),
        ("at: in ax, 0x60", R.IO_INSTRUCTION, 0x60 << 16 | 8 | 64 | 1, 3, 0, 0),
        ("at: in eax, 0x60", R.IO_INSTRUCTION, 0x60 << 16 | 8 | 64 | 3, 2, 0, 0),
        ("mov edx, 0x3f8\n at: in al, dx", R.IO_INSTRUCTION, 0x3F8 << 16 | 8, 1, 0, 0),
        ("mov edx, 0x3f8\n at: in eax, dx", R.IO_INSTRUCTION, 0x3F8 << 16 | 8 | 3, 1, 0, 0),
        ("at: out 0x80, al", R.IO_INSTRUCTION, 0x80 << 16 | 64, 2, 0, 0),
        ("mov edx, 0x3f8\n at: out dx, ax", R.IO_INSTRUCTION, 0x3F8 << 16 | 1, 2, 0, 0),
        ("mov edx, 0x3f8\n at: out dx, eax", R.IO_INSTRUCTION, 0x3F8 << 16 | 3, 1, 0, 0),
        ("mov edi, 0x7000\n at: insb", R.IO_INSTRUCTION, 16 | 8, 1, 0x7000, 0),
        ("mov edi, 0x7000\n mov ecx, 3\n at: rep insd", R.IO_INSTRUCTION, 16 | 8 | 32 | 3, 2, 0x7000, 0),
        ("mov esi, 0x7000\n at: outsw", R.IO_INSTRUCTION, 16 | 1, 2, 0x7000, 0),
        ("mov esi, 0x7010\n mov ecx, 3\n at: rep outsb", R.IO_INSTRUCTION, 16 | 32, 2, 0x7010, 0),
        ("mov ecx, 0x1b\n at: rdmsr", R.RDMSR, 0, 2, 0, 0),
        ("mov ecx, 0x1b\n at: wrmsr", R.WRMSR, 0, 2, 0, 0),
        ("mov ebx, 0x13\n at: mov cr0, ebx", R.CR_ACCESS, 3 << 8, 3, 0, 0),
        ("mov esi, 0x20\n at: mov cr4, esi", R.CR_ACCESS, 4 | 6 << 8, 3, 0, 0),
        ("at: mov cr3, edi", R.CR_ACCESS, 3 | 7 << 8, 3, 0, 1 << 15),
        ("at: mov ecx, cr3", R.CR_ACCESS, 3 | 1 << 4 | 1 << 8, 3, 0, 1 << 16),
        ("mov eax, 0x1b\n at: lmsw ax", R.CR_ACCESS, 3 << 4 | 0x1B << 16, 3, 0, 0),
        (
            "mov word ptr [0x7000], 0x13\n at: lmsw word ptr [0x7000]",
            R.CR_ACCESS,
            3 << 4 | 64 | 0x13 << 16,
            7,
            0x7000,
            0,
        ),
        ("at: invlpg [0x12345]", R.INVLPG, 0x12345, 7, 0, INVLPG),
        ("mov ebx, 0x1000\n at: invlpg [ebx + 8]", R.INVLPG, 0x1008, 4, 0, INVLPG),
        ("at: rdtsc", R.RDTSC, 0, 2, 0, RDTSC),
        ("at: pause", R.PAUSE, 0, 2, 0, PAUSE),
        ("at: vmcall", R.VMCALL, 0, 3, 0, 0),
        ("at: invd", R.INVD, 0, 2, 0, 0),
        ("at: mov dr7, eax", R.DR_ACCESS, 7, 3, 0, MOV_DR),
        ("at: mov ebx, dr6", R.DR_ACCESS, 6 | 16 | 3 << 8, 3, 0, MOV_DR),
    ],
    ids=lambda value: value.split("at: ")[-1] if isinstance(value, str) else "",
)
def test_an_exit_is_a_message(
    source: str, reason: ExitReason, qualification: int, length: int, additional: int, controls: int
) -> None:
    """Does each exit carry reason, qualification, length and address, at the instruction, with the items wanted?"""
    got = one(source, controls=controls)

    assert label_of(reason) == got.label
    assert [qualification, length, additional] == got.untyped
    assert [ItemId.GPREGS, ItemId.NONREGEXC] == list(items(got))
    assert assemble(source, CODE).address("at") == items(got)[ItemId.GPREGS][EIP]


@pytest.mark.parametrize(
    "source", ["rdtsc", "pause", "invlpg [0x1000]", "mov dr7, eax", "mov eax, cr0", "mov cr3, eax"]
)
def test_what_nobody_asked_for_is_no_exit(source: str) -> None:
    """Does an instruction whose control is off run without an exit?"""
    assert R.HLT == reason_of(one(source + "\n hlt").label)


def test_clts_exits_when_ts_is_masked_and_set() -> None:
    """Does CLTS exit exactly when it would change a bit that the monitor owns?"""

    def steps(vm: Vm) -> None:
        vm.go(Message().append_registers(ItemId.GPREGS, {EIP: CODE}).append_registers(ItemId.CREGS, {1: 0x19}))

    seen = monitor("clts\n hlt", steps)

    assert [R.HLT, R.CR_ACCESS] == [reason_of(got.label) for got in seen]
    assert [2 << 4, 2, 0] == seen[1].untyped


@pytest.mark.parametrize(
    ("source", "vector", "error", "qualification"),
    [
        ("at: ud2", 6, None, 0),
        ("xor ecx, ecx\n at: div ecx", 0, None, 0),
        ("mov eax, 0x38\n at: mov ds, eax", 13, 0x38, 0),
        ("mov eax, 0x38\n at: mov ss, eax", 13, 0x38, 0),
        ("at: int3", 3, None, 0),
    ],
)
def test_an_exception_in_the_bitmap_is_an_exit(source: str, vector: int, error: int | None, qualification: int) -> None:
    """Does an exception of the bitmap exit with its vector and error code, and else go through the guest's IDT?"""
    got = one(source, bitmap=0xFFFF_FFFF)
    state = items(got)[ItemId.NONREGEXC]
    kind = 6 if vector == 3 else 3

    assert label_of(R.EXCEPTION_OR_NMI) == got.label
    assert qualification == got.untyped[0]
    assert VALID | kind << 8 | vector | (0x800 if error is not None else 0) == state[6]
    assert (error or 0) == state[7]
    own = one(source)
    assert (R.HLT, 0x6000 + 16 * vector) == (reason_of(own.label), items(own)[ItemId.GPREGS][EIP])


def test_a_guests_page_fault_with_the_bitmap_set() -> None:
    """Does a #PF of the guest's own paging exit with the address, or else reach the guest?"""
    tables = "mov dword ptr [0xa000], 0x83\n mov eax, 0xa000\n mov cr3, eax\n"
    source = tables + "mov eax, cr0\n or eax, 0x80000000\n mov cr0, eax\nmov eax, [0x12345678]\n hlt"

    def steps(vm: Vm) -> None:
        registers = {0: 0x8000_0011, 1: 0x8000_0011, 4: 0xA000, 5: 0x10}
        eip = items(vm.seen[-1])[ItemId.GPREGS][EIP] + vm.seen[-1].untyped[1]
        vm.go(Message().append_registers(ItemId.CREGS, registers).append_registers(ItemId.GPREGS, {EIP: eip}))

    caught = monitor(source, steps, bitmap=1 << 14)[-1]
    own = monitor(source, steps)[-1]

    assert (R.EXCEPTION_OR_NMI, 0x12345678) == (reason_of(caught.label), caught.untyped[0])
    assert VALID | 0x800 | 3 << 8 | 14 == items(caught)[ItemId.NONREGEXC][6]
    assert (R.HLT, 0x6000 + 16 * 14) == (reason_of(own.label), items(own)[ItemId.GPREGS][EIP])


@pytest.mark.parametrize(("source", "vector"), [("int 0x80", 0x80), ("int 5", 5), ("int3", 3)])
@pytest.mark.parametrize("bitmap", [0, 0xFFFF_FFF7, 0xFFFF_FFFF])
def test_software_interrupts_are_the_guests_own(source: str, vector: int, bitmap: int) -> None:
    """Do INT n always, and INT3 unless its bit is set, go through the guest's IDT with the address behind them?"""
    stack: list[int] = []

    def steps(vm: Vm) -> None:
        esp = items(vm.seen[-1])[ItemId.GPREGS][ESP]
        stack.extend(vm.r.words(GUEST + esp, 3))

    got = monitor(source, steps, bitmap)[0]

    if vector == 3 and bitmap >> 3 & 1:
        assert R.EXCEPTION_OR_NMI == reason_of(got.label)
    else:
        assert (R.HLT, 0x6000 + 16 * vector) == (reason_of(got.label), items(got)[ItemId.GPREGS][EIP])
        assert [CODE + len(assemble(source, CODE).code), 8, 2] == stack


# -- memory


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("address", [0x20_0000, KIP.base, UTCB.base, 0xE000_0000, 0xE600_0000, 0xFF00_0000], ids=hex)
def test_what_is_not_mapped_is_a_page_fault(write: bool, address: int) -> None:
    """Does the monitor learn guest-physical address, EIP and kind, also for KIP, UTCB and the kernel's addresses?"""
    got = one(f"nop\n mov dword ptr [{address + 8:#x}], 5" if write else f"nop\n mov ebx, [{address + 8:#x}]")

    assert PAGE_FAULT | (2 if write else 5) == got.label
    assert [address + 8, CODE + 1] == got.untyped


def test_a_monitor_cannot_map_over_kip_and_utcb() -> None:
    """When a monitor maps a page at the KIP's place, does the guest still not reach anything there?"""

    def steps(vm: Vm) -> None:
        vm.go(Message().append_map(Fpage.at(GUEST), KIP.base))

    seen = monitor(f"mov ebx, [{KIP.base:#x}]\n hlt", steps)

    assert [[KIP.base, CODE]] * 2 == [got.untyped for got in seen]


def test_a_read_only_page_of_a_guest() -> None:
    """Does a guest's write to a page that it got without w fault, and can the monitor emulate it by its reply?"""

    def steps(vm: Vm) -> None:
        vm.go(Message().append_map(Fpage.at(GUEST + 0x8000, rights="rx"), 0x20_0000))
        vm.go(Message().append_registers(ItemId.GPREGS, {EIP: CODE + 16, EBX: 9}))

    source = "mov ebx, [0x200000]\n mov dword ptr [0x200000], 5\n hlt"
    seen = monitor(source, steps)

    assert [PAGE_FAULT | 5, PAGE_FAULT | 2] == [got.label for got in seen[:2]]
    assert (R.HLT, 9) == (reason_of(seen[2].label), items(seen[2])[ItemId.GPREGS][EBX])


def test_unmap_reaches_a_guest_at_once() -> None:
    """After the monitor has unmapped a page that the guest uses, is the guest's next access a fault?"""

    def steps(vm: Vm) -> None:
        vm.r.unmap(Fpage.at(GUEST + 0x7000))
        received = vm.r.call(vm.id, Message().append_registers(ItemId.GPREGS, {EIP: CODE}))
        vm.seen.append(received)

    seen = monitor("mov eax, [0x7004]\n hlt", steps)

    assert [0x7004, CODE] == seen[1].untyped
    assert PAGE_FAULT | 5 == seen[1].label


def test_a_reply_to_an_exit_cannot_map() -> None:
    """Does a map item in the reply to an exit fail the reply with an overflow, and the exit come again?"""
    codes: list[int] = []

    def steps(vm: Vm) -> None:
        try:
            vm.go(Message().append_map(Fpage.at(GUEST), 0))
        except IpcFailed as failed:
            codes.append(failed.error)
        vm.seen.append(vm.r.receive(vm.id))

    seen = monitor("hlt", steps)

    assert [8] == codes
    assert [R.HLT] * 2 == [reason_of(got.label) for got in seen]


# -- events


@pytest.mark.parametrize("by_exregs", [False, True], ids=["by reply", "by ExchangeRegisters"])
@pytest.mark.parametrize(
    ("info", "error", "length", "pushed_eip"),
    [
        (VALID | 0x30, 0, 0, CODE),  # external interrupt
        (VALID | 2 << 8 | 2, 0, 0, CODE),  # NMI
        (VALID | 3 << 8 | 6, 0, 0, CODE),
        (VALID | 3 << 8 | 0x800 | 13, 0x55AA, 0, CODE),
        (VALID | 3 << 8 | 0x800 | 14, 7, 0, CODE),
        (VALID | 4 << 8 | 0x80, 0, 2, CODE + 2),
        (VALID | 6 << 8 | 3, 0, 1, CODE + 1),
        (VALID | 5 << 8 | 1, 0, 1, CODE + 1),
    ],
    ids=["interrupt", "nmi", "ud", "gp", "pf", "int 0x80", "int3", "icebp"],
)
def test_an_injected_event_is_delivered(info: int, error: int, length: int, pushed_eip: int, by_exregs: bool) -> None:
    """Does an event written by the monitor arrive through the guest's IDT, with its error code, and only once?"""
    stack: list[int] = []

    def steps(vm: Vm) -> None:
        event = {3: info, 4: error, 5: length}
        go = Message().append_registers(ItemId.GPREGS, {EIP: CODE, EFLAGS: 0x202})
        if by_exregs:
            vm.write(ItemId.NONREGEXC, event)
            assert info == vm.read(ItemId.NONREGEXC)[3]
            vm.go(go)
        else:
            vm.go(go.append_registers(ItemId.NONREGEXC, event))
        esp = items(vm.seen[-1])[ItemId.GPREGS][ESP]
        stack.extend(vm.r.words(GUEST + esp, 4))

    got = monitor("hlt", steps)[-1]
    registers, state = items(got)[ItemId.GPREGS], items(got)[ItemId.NONREGEXC]
    frame = [pushed_eip, 8, 0x202]

    assert (R.HLT, 0x6000 + 16 * (info & 0xFF)) == (reason_of(got.label), registers[EIP])
    assert ([error, *frame] if info & 0x800 else frame) == (stack if info & 0x800 else stack[:3])
    assert info & ~VALID == state[3]
    assert STACK - (16 if info & 0x800 else 12) == registers[ESP]


@pytest.mark.parametrize("kind", [1, 7])
def test_an_event_of_no_type_fails_the_entry(kind: int) -> None:
    """Does the monitor hear that the guest could not be entered, and can it repair that?"""
    got: list[Received] = []

    def steps(vm: Vm) -> None:
        got.append(vm.go(Message().append_registers(ItemId.NONREGEXC, {3: VALID | kind << 8 | 0x20})))
        got.append(vm.go(Message().append_registers(ItemId.NONREGEXC, {3: 0})))

    monitor("nop\n hlt\n nop\n hlt", steps)

    assert [R.ENTRY_FAILURE_GUEST_STATE, R.HLT] == [reason_of(received.label) for received in got]


def test_the_interrupt_window() -> None:
    """With window exiting, does the guest exit at the first instruction at which an interrupt could be taken?"""

    def steps(vm: Vm) -> None:
        vm.go(
            Message()
            .append_registers(ItemId.GPREGS, {EIP: CODE, EFLAGS: 2})
            .append_registers(ItemId.EXECCTRL, {1: HLT | IO | WINDOW})
        )
        vm.go(Message().append_registers(ItemId.EXECCTRL, {1: HLT | IO}))

    seen = monitor("cli\n nop\n sti\n nop\n nop\n hlt", steps)

    assert [R.HLT, R.INTERRUPT_WINDOW, R.HLT] == [reason_of(got.label) for got in seen]
    assert CODE + 4 == items(seen[1])[ItemId.GPREGS][EIP]
    assert [0, 0, 0] == seen[1].untyped


def test_a_triple_fault_is_an_exit() -> None:
    """Does a guest without an IDT that faults exit with a triple fault, the machine alive?"""

    def steps(vm: Vm) -> None:
        vm.go(Message().append_registers(ItemId.GPREGS, {EIP: CODE}).append_registers(ItemId.IDTR, {0: 0, 1: 0}))

    assert R.TRIPLE_FAULT == reason_of(monitor("ud2", steps)[-1].label)


# -- register items

WORD = st.integers(0, 0xFFFF_FFFF)
WRITABLE = {  # item -> registers that take any value
    ItemId.GPREGS: (0, 2, 3, 4, 5, 6, 7, 8, 9),
    ItemId.CREGS: (1, 2, 3, 4, 6, 7),
    ItemId.DREGS: (0, 1, 2, 3),
    **dict.fromkeys((ItemId.CS, ItemId.SS, ItemId.DS, ItemId.ES, ItemId.FS, ItemId.GS, ItemId.TR), (1, 2)),
    ItemId.IDTR: (0, 1),
    ItemId.GDTR: (0, 1),
    ItemId.NONREGEXC: (2, 3, 4, 5),
    ItemId.EXECCTRL: (2,),
    ItemId.OTHERREGS: (0, 1, 2, 3, 4, 5, 6, 7),
}


@settings(max_examples=10, deadline=None)
@given(st.fixed_dictionaries({i: st.fixed_dictionaries(dict.fromkeys(w, WORD)) for i, w in WRITABLE.items()}))
def test_register_items_read_back_as_written(values: dict[ItemId, dict[int, int]]) -> None:
    """Does every register of every item read back what was written, before the guest runs, and no other change?"""

    def root(r: Root) -> None:
        vm = Vm(r, r.create(r.space(KIP, UTCB, control=VM_SPACE[_paging])))
        before = {item: vm.read(item) for item in ItemId}
        for item, registers in values.items():
            vm.write(item, registers)
        for item in ItemId:
            expected = [values.get(item, {}).get(i, value) for i, value in enumerate(before[item])]
            assert expected == vm.read(item), item

    run(root)


def test_the_first_state_is_the_one_of_the_table() -> None:
    """Is the state before the first reply what the ABI's table says, but for the real CR0 and CR4?"""

    def root(r: Root) -> None:
        vm = Vm(r, r.create(r.space(KIP, UTCB, control=VM_SPACE[_paging])))
        for item in ItemId:
            got, expected = vm.read(item), list(INITIAL_STATE[item])
            if item is ItemId.CREGS:
                got[0] = expected[0]
                got[5] = expected[5]
            if item is ItemId.GPREGS:
                got[EDI] = expected[EDI]
            assert expected == got, item

    run(root)


def test_a_configuration_that_no_message_can_hold() -> None:
    """When all items of all faults are asked for, real ones and others: does the message hold those that fit?"""

    def steps(vm: Vm) -> None:
        mask = (1 << 20) - 1
        vm.r.exchange_registers(vm.id, ExregsControl.CONFIGURE_ITEMS, items=[CtrlXferItem.make(id=21, mask=mask)])
        vm.go(Message().append_registers(ItemId.GPREGS, {EIP: CODE}))

    got = monitor("hlt", steps)[-1]

    assert label_of(R.HLT) == got.label
    assert ItemId.GPREGS in items(got)
    assert len(got.words) <= 64


def test_gpregs_of_an_ordinary_threads_fault() -> None:
    """Can the pager of an ordinary thread have its registers with each page fault, and set them in the reply?"""
    got: list[Received] = []

    def root(r: Root) -> None:
        n = r.native(f"mov ebx, 5\n mov eax, [0x00900000]\n mov [{int(MEMORY.base)}], ebx\n ud2", r.space())
        vm = Vm(r, n.id)
        vm.conf(page_fault=(ItemId.GPREGS,))
        got.append(r.serve(1))
        received = r.wait()
        got.append(received)
        eip = items(received)[ItemId.GPREGS][EIP]
        r.send(n.id, Message().append_registers(ItemId.GPREGS, {EBX: 77, EIP: eip + 5}))
        r.serve()

    system = run(root)

    assert 0x90_0000 == got[1].untyped[0]
    assert 5 == items(got[1])[ItemId.GPREGS][EBX]
    assert [77] == system.words(MEMORY.base)


def test_a_virtual_cpu_is_preempted_and_goes_on() -> None:
    """Does a guest that only computes share the processor with an ordinary thread of its priority?"""

    def root(r: Root) -> None:
        r.native(f"again: inc dword ptr [{int(MEMORY.base)}]\n jmp again")
        r.store(GUEST + CODE, assemble("again: inc dword ptr [0x7000]\n jmp again", CODE).code)
        vm = Vm(r, r.create(r.space(KIP, UTCB, control=VM_SPACE[_paging])))
        with suppress(IpcFailed):
            vm.go(start_state())

    system = run(root, 100_000_000)
    mine, guests = system.words(MEMORY.base)[0], system.words(GUEST + 0x7000)[0]

    assert abs(mine - guests) <= 10_000_000
    assert min(mine, guests) > 10_000_000
