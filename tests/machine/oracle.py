# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's CPU as an oracle for guest mode: the same small program is run there and in a guest of ours.

A `Case` is a program with all the memory it sees: IDT, GDT, task-state segments, page tables. `Qemu` runs cases in one
QEMU, started once, over its gdb stub: reset, load memory, enter by a short ROM, run into the HLT that ends every case.
`run_here` enters the same memory as a guest; `oracle_vm.py` does so with a kernel and a monitor around it. All answer
with a `State`: registers with their hidden parts, and memory. Every handler is a HLT at an address of its own, so EIP
tells how a program ended.
"""

from __future__ import annotations

import functools
import re
import struct
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from l4lab.abi import vm
from l4lab.abi.frame import EAX, EBP, EBX, ECX, EDI, EDX, EFLAGS, EIP, ESI, ESP
from l4lab.abi.vm import EVENT_VALID, CrAccess, ExitReason, ItemId, TaskSwitch
from l4lab.machine import engine as e
from l4lab.machine.engine import Engine
from l4lab.machine.guestmode import GuestMode, Pause
from l4lab.machine.memory import Memory
from l4lab.machine.vmcs import CR4_PSE, Vmcs
from l4lab.machine.vtx import HLT_EXITING
from l4lab.user.asm import Program, assemble
from l4lab.user.monitor.guest_memory import GuestMemory
from l4lab.user.monitor.taskswitch import switch_task

# Guest-physical memory: 64 KiB.
SIZE = 0x10000
IDT, GDT, LDT, HANDLERS, TSS_A, TSS_B, TSS_16 = 0x1000, 0x2000, 0x2800, 0x3000, 0x4000, 0x4100, 0x4200
START, CODE, DATA, STACK_0, STACK_3, MISSING, DIRECTORY, TABLE = (
    *(0x4F00, 0x5000, 0x7000, 0x9000, 0xA000, 0xB000, 0xC000, 0xD000),
)
HIGH = 0xE000  # one more page of data, behind which nothing is
_VECTORS = 0x80

# Selectors of the GDT.
CODE_0, DATA_0, CODE_3, DATA_3, A, B, CODE_16, DATA_16, CONFORMING, ABSENT, LOCAL, CALL_GATE, TASK_GATE = (
    *(0x08, 0x10, 0x1B, 0x23, 0x28, 0x30, 0x38, 0x40, 0x48, 0x50, 0x58, 0x60, 0x68),
)
SMALL, BIT_16, CODE_1, CALL_GATE_16, READ_ONLY = 0x70, 0x78, 0x80, 0x88, 0x90


def descriptor(base: int, limit: int, access: int, flags: int = 0) -> bytes:
    """A segment descriptor; `flags`: G, D/B in bits 3, 2."""
    middle = base >> 16 & 0xFF | access << 8 | (limit >> 16 & 15 | flags << 4) << 16 | base & 0xFF000000
    return struct.pack("<HHI", limit & 0xFFFF, base & 0xFFFF, middle)


def gate(selector: int, offset: int, access: int, count: int = 0) -> bytes:
    """A call, interrupt, trap or task gate."""
    return struct.pack("<HHHH", offset & 0xFFFF, selector, count | access << 8, offset >> 16)


def tss(**values: int) -> bytes:
    """A 32-bit task-state segment, of which some registers are given."""
    names = [
        "link",
        "esp0",
        "ss0",
        "esp1",
        "ss1",
        "esp2",
        "ss2",
        "cr3",
        "eip",
        "eflags",
        "eax",
        "ecx",
        "edx",
        "ebx",
        "esp",
        "ebp",
        "esi",
        "edi",
    ]
    names += ["es", "cs", "ss", "ds", "fs", "gs", "ldt", "trap"]
    image = {"esp0": STACK_0 + 0xF00, "ss0": DATA_0, "cr3": DIRECTORY, "eflags": 2, "trap": 104 << 16, **values}
    return struct.pack("<26I", *(image.get(name, 0) for name in names))


def _memory() -> bytearray:
    image = bytearray(SIZE)

    def put(at: int, data: bytes) -> None:
        image[at : at + len(data)] = data

    put(HANDLERS, b"\xf4" * 256)
    for vector in range(_VECTORS):
        put(IDT + 8 * vector, gate(CODE_0, HANDLERS + vector, 0xEE if vector in (3, 4) or vector >= 32 else 0x8E))
    for selector, data in {
        CODE_0: descriptor(0, 0xFFFFF, 0x9B, 12),
        DATA_0: descriptor(0, 0xFFFFF, 0x93, 12),
        CODE_3: descriptor(0, 0xFFFFF, 0xFB, 12),
        DATA_3: descriptor(0, 0xFFFFF, 0xF3, 12),
        A: descriptor(TSS_A, 0x67, 0x89),
        B: descriptor(TSS_B, 0x67, 0x89),
        CODE_16: descriptor(0, 0xFFFF, 0x9B),
        DATA_16: descriptor(0, 0xFFFF, 0x93),
        CONFORMING: descriptor(0, 0xFFFFF, 0x9F, 12),
        ABSENT: descriptor(0, 0xFFFFF, 0x13, 12),
        LOCAL: descriptor(LDT, 0x3F, 0x82),
        CALL_GATE: gate(CODE_0, HANDLERS + 0x90, 0xEC, 2),
        TASK_GATE: gate(B, 0, 0xE5),
        SMALL: descriptor(DATA, 0x1F, 0xF3),
        BIT_16: descriptor(TSS_16, 0x2B, 0x81),
        CODE_1: descriptor(0, 0xFFFFF, 0xBB, 12),
        CALL_GATE_16: gate(CODE_0, HANDLERS + 0x91, 0xE4, 2),
        READ_ONLY: descriptor(0, 0xFFFFF, 0xF1, 12),
    }.items():
        put(GDT + (selector & ~7), data)
    put(LDT + 8, descriptor(0, 0xFFFFF, 0xF3, 12))
    segments = {"es": DATA_0, "cs": CODE_0, "ss": DATA_0, "ds": DATA_0, "fs": DATA_0, "gs": DATA_0}
    put(TSS_A, tss())
    put(TSS_B, tss(**segments, eip=HANDLERS + 0xA0, esp=STACK_0 + 0x800, eax=0xB0, ebx=0xB1, ebp=0xB2))
    put(
        TSS_16,
        struct.pack(
            "<22H",
            0,
            0xF00 + STACK_0,
            DATA_0,
            0,
            0,
            0,
            0,
            HANDLERS + 0xA1,
            2,
            *range(1, 5),
            *(STACK_0 + 0x700, 6, 7, 8),
            DATA_0,
            CODE_0,
            DATA_0,
            DATA_0,
            0,
        ),
    )
    put(DIRECTORY, struct.pack("<I", TABLE | 7))
    for page in range(SIZE >> 12):
        put(TABLE + 4 * page, struct.pack("<I", page << 12 | 7 if page << 12 != MISSING else 0))
    put(TABLE + 4 * (HANDLERS >> 12), struct.pack("<I", HANDLERS | 0x27))  # QEMU stops before it fetches from there
    put(DATA, bytes(n * 37 + 11 & 0xFF for n in range(0x2000)))
    return image


_IMAGE = bytes(_memory())
_GENERAL = (EDI, ESI, EBP, ESP, EBX, EDX, ECX, EAX)  # as POPAD takes them


@dataclass(frozen=True)
class Case:
    """A program at CODE, begun in ring 0 of flat protected mode (bits 32) or in real mode (16), paging off."""

    source: str
    bits: int = 32
    registers: dict[int, int] = field(default_factory=dict)  # by index in the register frame
    memory: dict[int, bytes] = field(default_factory=dict)  # what differs from everybody's
    manual: dict[int, int] = field(default_factory=dict)  # words of memory at the end, by the SDM and not by QEMU

    @property
    def program(self) -> Program:
        """The assembled program."""
        return assemble(self.source, CODE, self.bits)

    @property
    def frame(self) -> dict[int, int]:
        """The registers it begins with."""
        return {**dict.fromkeys(_GENERAL, 0), EFLAGS: 2, ESP: STACK_0 + 0xFF0, EIP: CODE, **self.registers}

    @property
    def image(self) -> bytes:
        """Its memory."""
        image = bytearray(_IMAGE)
        if self.bits == 16:
            for vector in range(_VECTORS):
                image[IDT + 4 * vector : IDT + 4 * vector + 4] = struct.pack("<2H", HANDLERS + vector, 0)
        frame = self.frame
        image[START : START + 40] = struct.pack("<10I", *(frame[n] for n in _GENERAL), frame[EFLAGS], frame[ESP])
        code = self.program.code
        image[CODE : CODE + len(code)] = code
        for at, data in self.memory.items():
            image[at : at + len(data)] = data
        return bytes(image)


@dataclass
class State:
    """A CPU at the end of a case, by register name, and its memory. Shut down: a triple fault."""

    registers: dict[str, int | tuple[int, ...]]
    memory: bytes
    shut_down: bool = False


def differences(ours: State, theirs: State, manual: dict[int, int] | None = None) -> list[str]:
    """What a person wants to read when they are not the same.

    One deviation of QEMU 7.2 is known here: it never sets RF in the EFLAGS that a fault pushes, as the SDM has it
    (vol. 3, "Masking Instruction Breakpoints"). Others are in `manual`.
    """
    if ours.shut_down or theirs.shut_down:
        return [] if ours.shut_down == theirs.shut_down else [f"shut down: {ours.shut_down}, QEMU {theirs.shut_down}"]
    found = []
    for name, theirs_is in theirs.registers.items():
        mine, value = _usable(ours.registers[name]), _usable(theirs_is)
        if mine != value:
            found.append(f"{name}: {_hex(mine)}, QEMU {_hex(value)}")
    for at in range(0, SIZE, 4):
        if ours.memory[at : at + 4] == theirs.memory[at : at + 4] and at not in (manual or ()):
            continue
        mine, value = (int.from_bytes(state.memory[at : at + 4], "little") for state in (ours, theirs))
        value = (manual or {}).get(at, value)
        if mine not in (value, value | _RF):
            found.append(f"[{at:#x}]: {ours.memory[at : at + 4].hex()}, QEMU {theirs.memory[at : at + 4].hex()}")
    return found[:40]


_RF = 1 << 16


def _usable(value: int | tuple[int, ...]) -> int | tuple[int, ...]:
    """A segment that is not present has no base and limit: after a return to ring 3 QEMU keeps what had been there."""
    if isinstance(value, tuple) and len(value) == 4 and not value[3] & 0x80:
        return value[0], 0, 0, 0
    return value


def _hex(value: int | tuple[int, ...]) -> str:
    return f"{value:#x}" if isinstance(value, int) else "(" + ", ".join(f"{word:#x}" for word in value) + ")"


# -- here


_NAMES = {"EDI": EDI, "ESI": ESI, "EBP": EBP, "ESP": ESP, "EBX": EBX, "EDX": EDX, "ECX": ECX, "EAX": EAX, "EIP": EIP}
_SEGMENTS = (ItemId.ES, ItemId.CS, ItemId.SS, ItemId.DS, ItemId.FS, ItemId.GS, ItemId.TR, ItemId.LDTR)
_ROOM = 0x40000
_FRAME, _REGION, _BLOCK, _HOST_DIRECTORY, _HOST_TABLE = 0x30000, 0x31000, 0x35000, 0x36000, 0x37000
ENOUGH = 100_000


@functools.cache
def _machine(kind: str) -> tuple[Memory, Engine, GuestMode]:
    """One for all guests of a core: making it takes longer than most cases."""
    memory = Memory(_ROOM)
    engine = Engine(memory, kind)
    return memory, engine, GuestMode(memory, engine, _REGION)


class Guest:
    """A guest in its first state, under nested paging; for shadow page tables see `oracle_vm.py`."""

    def __init__(self, kind: str, case: Case) -> None:
        self.memory, self.engine, self.mode = _machine(kind)
        memory = self.memory
        self.engine.swap(bytearray(e.ENV_SIZE), self.engine.reset_state)
        self.mode.withdraw()
        self.engine.forget_all_code()
        memory.set_word(_HOST_DIRECTORY >> 2, _HOST_TABLE | 7)
        for page in range(SIZE >> 12):
            memory.set_word((_HOST_TABLE >> 2) + page, page << 12 | 7)
        memory.write(0, case.image)
        self.vmcs = vmcs = self.mode.create(_FRAME, _BLOCK, _HOST_DIRECTORY)
        state = first_state(case)
        for item in _SEGMENTS:
            vmcs.set_segment(item.name.lower(), *state[item].values())
        vmcs.set_table("gdtr", *state[ItemId.GDTR].values())
        vmcs.set_table("idtr", *state[ItemId.IDTR].values())
        vmcs.set_control_register(4, state[ItemId.CREGS][vm.CR4])
        vmcs.set_control_register(0, state[ItemId.CREGS][vm.CR0])
        vmcs.cpu_controls = HLT_EXITING
        vmcs.exception_bitmap = vmcs.cr0_mask = 0
        vmcs.cr4_mask, vmcs.cr4_shadow = CR4_PSE, 0
        self.frame = memory.register_frame(_FRAME)
        for index, value in state[ItemId.GPREGS].items():
            self.frame[index] = value
        self.engine.swap(bytearray(e.ENV_SIZE), vmcs.context)
        vmcs.state = self.engine.env32

    def enter(self) -> ExitReason | None:
        """Run to an exit; None if there is none for so long that there will be none."""
        deadline = self.engine.cycles + ENOUGH
        while True:
            reason = self.mode.enter(self.vmcs, deadline)
            if not isinstance(reason, Pause):
                return reason
            if self.engine.cycles >= deadline:
                return None

    @property
    def state(self) -> State:
        """Where it is."""
        return state_of(self.vmcs, self.frame, bytes(self.memory.u8[:SIZE]))


def first_state(case: Case) -> dict[ItemId, dict[int, int]]:
    """What a case begins with, as register items, segments with their hidden parts."""
    protected = case.bits == 32
    limit, wide = (0xFFFFFFFF, 0xC000) if protected else (0xFFFF, 0)
    data = DATA_0 if protected else 0, 0, limit, 0x93 | wide
    words: dict[ItemId, tuple[int, ...]] = {
        **dict.fromkeys(_SEGMENTS, data),
        ItemId.CS: (CODE_0 if protected else 0, 0, limit, 0x9B | wide),
        ItemId.TR: (0, 0, 0xFFFF, 0x8B),
        ItemId.LDTR: (0, 0, 0xFFFF, 0x82),
        ItemId.GDTR: (GDT, 0x7FF),
        ItemId.IDTR: (IDT, 8 * _VECTORS - 1 if protected else 4 * _VECTORS - 1),
    }
    state = {item: dict(enumerate(values)) for item, values in words.items()}
    return state | {ItemId.GPREGS: case.frame, ItemId.CREGS: {vm.CR0: 0x11 if protected else 0x10, vm.CR4: 0}}


def state_of(vmcs: Vmcs, frame: memoryview, memory: bytes) -> State:
    """A virtual CPU as it stands."""
    registers: dict[str, int | tuple[int, ...]] = {name: frame[index] for name, index in _NAMES.items()}
    registers["EFL"] = frame[EFLAGS]
    for n in (0, 2, 3):
        registers[f"CR{n}"] = vmcs.control_register(n)
    registers["CR4"] = vmcs.visible_cr4()
    for n in (0, 1, 2, 3, 6, 7):
        registers[f"DR{n}"] = vmcs.debug_register(n)
    for name in ("ES", "CS", "SS", "DS", "FS", "GS", "LDT", "TR"):
        registers[name] = vmcs.segment({"LDT": "ldtr"}.get(name, name.lower()) if name != "TR" else "tr")
    for name in ("GDT", "IDT"):
        registers[name] = vmcs.table(name.lower() + "r")
    return State(registers, memory)


class BeyondMemory(Exception):
    """The program used more memory than there is here; QEMU has some."""


def run_here(kind: str, case: Case) -> State:
    """The end of a case in a guest of ours, with nothing but guest mode around it."""
    guest = Guest(kind, case)
    while True:
        reason = guest.enter()
        if reason is ExitReason.HLT:
            return guest.state
        if reason is ExitReason.EPT_VIOLATION:
            raise BeyondMemory(f"{guest.vmcs.guest_physical:#x}")
        if reason is ExitReason.TRIPLE_FAULT:
            return State({}, b"", shut_down=True)
        assert reason is not None, f"no end at {guest.frame[EIP]:#x}"
        if reason is ExitReason.CR_ACCESS:
            set_pse(guest)
        else:
            switch_tasks(guest, reason)


# What a monitor does, of the exits that the machine does not answer by itself.

_GENERAL_ITEM = (EIP, EFLAGS, EDI, ESI, EBP, ESP, EBX, EDX, ECX, EAX)
_DEBUG = (0, 1, 2, 3, 6, 7)


class _Bytes:
    """The guest's memory, as a monitor's window on it."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def load(self, address: int, length: int) -> bytes:
        return self.memory.read(address, length)

    def store(self, address: int, data: bytes | bytearray | memoryview) -> None:
        self.memory.write(address, bytes(data))


def items_of(guest: Guest) -> dict[ItemId, dict[int, int]]:
    """A guest's registers as the register items of a message."""
    vmcs = guest.vmcs
    cr0, cr4 = vmcs.control_register(0), vmcs.control_register(4)
    found: dict[ItemId, tuple[int, ...]] = {
        ItemId.GPREGS: tuple(guest.frame[n] for n in _GENERAL_ITEM),
        ItemId.CREGS: (cr0, cr0, 0, vmcs.control_register(2), vmcs.control_register(3), cr4, cr4, 0),
        ItemId.DREGS: tuple(vmcs.debug_register(n) for n in _DEBUG),
        ItemId.GDTR: vmcs.table("gdtr"),
        **{ItemId[name]: vmcs.segment(name.lower()) for name in ("ES", "CS", "SS", "DS", "FS", "GS", "TR", "LDTR")},
    }
    return {item: dict(enumerate(values)) for item, values in found.items()}


def set_pse(guest: Guest) -> None:
    """MOV to CR4 by a guest that asks for pages of 4 MB."""
    vmcs = guest.vmcs
    access = CrAccess.decode(vmcs.exit_qualification)
    assert access.cr == 4, access
    vmcs.cr4_shadow = guest.frame[access.register]
    vmcs.set_control_register(4, vmcs.cr4_shadow)
    guest.mode.skip(vmcs)


def switch_tasks(guest: Guest, reason: ExitReason) -> None:
    """The monitor's part in a task switch."""
    assert reason is ExitReason.TASK_SWITCH, f"{reason!r} at {guest.frame[EIP]:#x}"
    vmcs = guest.vmcs
    by_event = vmcs.idt_info & EVENT_VALID and vmcs.idt_info >> 8 & 7 < 4
    error = vmcs.idt_error if vmcs.idt_info & EVENT_VALID and vmcs.idt_info & 1 << 11 else None
    done = switch_task(
        GuestMemory(_Bytes(guest.memory), SIZE, 0),
        items_of(guest),
        TaskSwitch.decode(vmcs.exit_qualification),
        guest.frame[EIP] + (0 if by_event else vmcs.exit_length),
        error,
    )
    for item, values in done.registers.items():
        name = item.name.lower()
        if item is ItemId.GPREGS:
            for index, value in values.items():
                guest.frame[_GENERAL_ITEM[index]] = value
        elif item is ItemId.CREGS:
            for index, number in ((0, 0), (4, 3)):
                if index in values:
                    vmcs.set_control_register(number, values[index])
        elif item is ItemId.DREGS:
            for index, value in values.items():
                vmcs.set_debug_register(_DEBUG[index], value)
        else:
            vmcs.set_segment(name, *values.values())
    if done.fault is not None:
        code = done.fault.error_code
        vmcs.entry_info = EVENT_VALID | (0 if code is None else 1 << 11) | 3 << 8 | done.fault.vector
        vmcs.entry_error = code or 0


# -- there

_REAL = f"""
    lidt cs:[real_idt]
    lgdt cs:[gdt]
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov fs, ax
    mov gs, ax
    mov eax, 0x10
    mov cr0, eax
    mov sp, {START}
    .byte 0x66, 0x61, 0x66, 0x9d
    mov esp, dword ptr [{START + 36}]
    .byte 0xea
    .word {CODE}, 0
"""
_ENTRY = f"""
    jmp ready
    .org 0xf010
ready:
    jmp ready
    .org 0xf020
real:
    {_REAL}
    .org 0xf080
protected:
    lidt cs:[idt]
    lgdt cs:[gdt]
    mov eax, 0x11
    mov cr0, eax
    .byte 0x66, 0xea
    .long 0xfffff100
    .word {CODE_0}
real_idt: .word {4 * _VECTORS - 1}
    .long {IDT}
idt: .word {8 * _VECTORS - 1}
    .long {IDT}
gdt: .word 0x7ff
    .long {GDT}
"""
_ENTRY_32 = f"""
    mov eax, {DATA_0}
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov fs, eax
    mov gs, eax
    mov esp, {START}
    popad
    popfd
    mov esp, dword ptr [{START + 36}]
    .byte 0xea
    .long {CODE}
    .word {CODE_0}
"""
_ROM = 0xFFFF0000
_READY, _REAL_ENTRY, _PROTECTED_ENTRY = _ROM + 0xF010, 0xF020, 0xF080
_CHUNK = 0x400  # bytes that surely fit into a packet of the stub


def _rom() -> bytes:
    rom = bytearray(b"\xf4" * 0x10000)
    for at, source, bits in ((0xF000, _ENTRY, 16), (0xF100, _ENTRY_32, 32)):
        code = assemble(source, at, bits).code
        rom[at : at + len(code)] = code
    rom[0xFFF0:0xFFF3] = b"\xe9\x0d\xf0"  # to 0xF000
    return bytes(rom)


class Qemu:
    """One QEMU and its gdb stub."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        bios = Path(self._directory.name, "bios")
        bios.write_bytes(_rom())
        self._process = subprocess.Popen(
            [
                *("qemu-system-i386", "-M", "isapc", "-cpu", "qemu32", "-m", "2", "-display", "none", "-nodefaults"),
                *("-accel", "tcg", "-bios", str(bios), "-S", "-gdb", "stdio"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._ask("qSupported:xmlRegisters=i386")
        self._ask("qXfer:features:read:target.xml:0,ff0")  # without this it takes no single registers
        assert self._ask("Qqemu.PhyMemMode:1") == "OK"
        for at in (_READY, *range(HANDLERS, HANDLERS + 256)):
            assert self._ask(f"Z0,{at:x},1") == "OK"
        self._loaded = bytes(SIZE)

    def close(self) -> None:
        """End QEMU."""
        self._process.kill()
        self._process.communicate()
        self._directory.cleanup()

    def run(self, case: Case) -> State:
        """The end of a case in QEMU."""
        self._monitor("system_reset")
        while self._continue() != _READY:
            pass
        image = case.image
        for at in range(0, SIZE, _CHUNK):
            if image[at : at + _CHUNK] != self._loaded[at : at + _CHUNK]:
                assert self._ask(f"M{at:x},{_CHUNK:x}:{image[at : at + _CHUNK].hex()}") == "OK"
        entry = _PROTECTED_ENTRY if case.bits == 32 else _REAL_ENTRY
        self._ask(f"P8={struct.pack('<I', entry).hex()}")
        stopped = self._continue()
        dump = Path(self._directory.name, "dump")
        self._monitor(f'pmemsave 0 {SIZE} "{dump}"')
        self._loaded = dump.read_bytes()
        if stopped == _READY:
            return State({}, b"", shut_down=True)
        return State(_parse(self._monitor("info registers")), self._loaded)

    # -- the protocol

    def _continue(self) -> int:
        """Run to a breakpoint; the linear address of it."""
        assert self._ask("c").startswith("T05")
        registers = bytes.fromhex(self._ask("g")[: 16 * 8])
        eip = struct.unpack_from("<I", registers, 32)[0]
        return _ROM + eip if eip & 0xF000 == 0xF000 else int(eip)

    def _monitor(self, command: str) -> str:
        self._send("qRcmd," + command.encode().hex())
        text = ""
        while (answer := self._receive()) != "OK":
            assert answer.startswith("O"), answer
            text += bytes.fromhex(answer[1:]).decode()
        return text

    def _ask(self, packet: str) -> str:
        self._send(packet)
        return self._receive()

    def _send(self, packet: str) -> None:
        data = packet.encode()
        assert self._process.stdin is not None
        self._process.stdin.write(b"$" + data + b"#%02x" % (sum(data) & 0xFF))
        self._process.stdin.flush()

    def _receive(self) -> str:
        stream = self._process.stdout
        assert stream is not None
        while (byte := stream.read(1)) != b"$":
            assert byte in (b"+", b"-"), f"QEMU's stub has ended ({byte!r})"
        data = bytearray()
        while (byte := stream.read(1)) != b"#":
            data += byte
        stream.read(2)
        assert self._process.stdin is not None
        self._process.stdin.write(b"+")
        self._process.stdin.flush()
        return data.decode()


def _parse(text: str) -> dict[str, int | tuple[int, ...]]:
    """The answer to `info registers`."""
    found: dict[str, int | tuple[int, ...]] = {
        name: int(value, 16) for name, value in re.findall(r"\b(E[A-Z]{2}|CR\d|DR\d)=([0-9a-f]+)", text)
    }
    for name, *words in re.findall(r"^(\w\w\w?) *=(\w{4}) (\w{8}) (\w{8}) (\w{8})", text, re.M):
        selector, base, limit, flags = (int(word, 16) for word in words)
        attributes = flags >> 8 & 0xFF | flags >> 8 & 0xF000
        found[name] = selector, base, limit, attributes or 0x10000
    if found["TR"][3] & 0x80:  # type: ignore[index]
        found["TR"] = (*found["TR"][:3], found["TR"][3] | 2)  # type: ignore[index]  # as VT-x has it: always busy
    for name, base, limit in re.findall(r"^(\w\w\w) *= +(\w{8}) (\w{8})", text, re.M):
        found[name] = int(base, 16), int(limit, 16)
    return found
