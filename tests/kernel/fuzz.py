# SPDX-License-Identifier: GPL-2.0-or-later
"""Attackers: threads that issue system calls with arbitrary arguments, and threads whose code is arbitrary bytes.

A *round* is one system, made from a seed: a nurse (the root task) that pages for everybody and starts anew whoever is
stuck, two innocents that call each other, and attackers in several spaces, one of them a virtual machine. With
`privileged`, some attack from the root task's own space, which has all I/O ports. What is claimed: no exception leaves
the kernel, and its invariants hold. `test_fuzz.py` plays a few rounds; `campaign.py` plays more, and
`python -m tests.kernel.fuzz CALLS [SEED]` some of one's choice, and prints the seed and the number of kernel entries at
which something broke.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from l4lab.abi import utcb as u
from l4lab.abi.calls import UNCHANGED, ExregsControl, SystemCall
from l4lab.abi.fpage import COMPLETE_ADDRESS_SPACE, Fpage, IoFpage
from l4lab.abi.frame import EAX, ECX, EDI, EDX, ESI
from l4lab.abi.ids import ANY_LOCAL_THREAD, ANY_THREAD, NIL_THREAD, ROOT_TASK, SIGMA0, ThreadId, global_id, interrupt_id
from l4lab.abi.message import CtrlXferItem, GrantItem, MapItem, Message, StringItem
from l4lab.abi.protocols import PAGE_FAULT, sigma0_request, thread_start
from l4lab.abi.time import NEVER, ZERO, period, timeouts
from l4lab.abi.vm import ITEM_REGISTERS, ItemId
from l4lab.kernel import boot
from l4lab.kernel.boot import KIP_AREA, THE_KERNELS_OWN, UTCB_AREA
from l4lab.kernel.objects.program import HostedThread
from l4lab.kernel.parts import Parts
from l4lab.testing import PAGE, Root, System, ipc
from l4lab.user.l4 import L4, CallRefused, IpcFailed

CYCLES_PER_CALL = 20_000  # a round ends after so many for each call that was asked for, even if they were fewer
STUCK = 5000  # kernel entries without a call: the nurse is dead, and who is left runs in circles
NURSE_SLEEPS = 300  # microseconds
INNOCENT_PRIORITY = 120  # above the attackers', who may not raise their own
SHORT_SLICE = period(20) << 16 | NEVER
FEW_FRAMES = 420 << 10  # bytes of kernel memory in a round in which frames run out
SPACES, HOSTED, NATIVE, VCPUS = 3, 6, 3, 2
DEVICES = (
    0x20,
    0x21,
    0xA0,
    0xA1,
    0x4D0,
    0x4D1,
    0x40,
    0x42,
    0x43,
    0x60,
    0x64,
    0x70,
    0x71,
    *range(0x3F8, 0x400),
)  # ports
VM = 1 << 30
_MR = u.MR0_FROM_LOCATION // 4
_BR0 = _MR + u.BR0 // 4
_INNOCENT = (
    """
again:
  inc ebp
  mov dword ptr [COUNT], ebp
"""
    + ipc("SERVER", "SERVER", (2, 0x11, 0x22))
    + """
  cmp esi, 1
  jne broken
  mov ebp, dword ptr [COUNT]
  jmp again
broken:
  mov dword ptr [COUNT + 4], esi
  ud2
"""
)


@dataclass
class Words:
    """Where arguments come from: identifiers, addresses and fpages that mean something here, near misses, and noise."""

    rng: random.Random
    ids: list[int]
    addresses: list[int]
    controls: list[int] = field(default_factory=lambda: [0, 1, 2, 4, 63, 64, 127, VM, UNCHANGED, 1 << 31, 0x1FF, 0xFFF])

    def id(self) -> int:
        """A thread identifier, of somebody or nobody."""
        word = self.rng.choice(self.ids)
        return word if self.rng.random() < 0.9 else word ^ 1 << self.rng.randrange(32)

    def address(self) -> int:
        return self.rng.choice(self.addresses) + self.rng.choice((0, 0, 0, 4, 1, 512, 4095, 4096, -4)) & 0xFFFF_FFFF

    def fpage(self) -> int:
        match self.rng.randrange(8):
            case 0:
                return int(COMPLETE_ADDRESS_SPACE) | self.rng.randrange(8)
            case 1:
                port, log2 = self.port(), self.rng.randrange(17)
                return int(IoFpage.at(port & -(1 << log2), log2)) | self.rng.randrange(8)
            case 2:
                return self.rng.getrandbits(32)
            case _:
                log2 = self.rng.choice((12, 12, 12, 13, 16, 20, 22, 22, 23, 31))
                return self.address() >> log2 << log2 & 0xFFFF_FC00 | log2 << 4 | self.rng.randrange(8)

    def port(self) -> int:
        """A port that can be read four bytes wide; of a device more often than not."""
        return self.rng.choice(DEVICES) if self.rng.random() < 0.7 else self.rng.randrange((1 << 16) - 3)

    def time(self) -> int:
        choices = (ZERO, ZERO, period(1), period(50), period(400), NEVER, self.rng.getrandbits(16))
        return int(self.rng.choices(choices, (8, 8, 8, 8, 4, 1, 1))[0])

    def any(self) -> int:
        """A word of any kind."""
        match self.rng.randrange(8):
            case 0 | 1:
                return self.id()
            case 2:
                return self.address()
            case 3:
                return self.fpage()
            case 4:
                return self.rng.choice(self.controls)
            case 5:
                return self.rng.randrange(256)
            case 6:
                return 1 << self.rng.randrange(32)
            case _:
                return self.rng.getrandbits(32)

    def item(self, harmless: bool = False) -> list[int]:
        """A typed item, well formed or nearly so. A harmless one gives nothing away."""
        match self.rng.randrange(2 if harmless else 0, 5 if harmless else 6):
            case 0 | 1:
                kind = self.rng.choice((MapItem, GrantItem))
                return [int(kind.at(self.address() & -1024)) | self.rng.randrange(2), self.fpage()]
            case 2 | 3:
                j = self.rng.choice((0, 0, 1, 3))
                length = self.rng.choice((0, 1, 7, 64, 4096, 5000, self.rng.getrandbits(22)))
                header = StringItem.make(length=length, j=j, compound=self.rng.random() < 0.2)
                return [int(header) | self.rng.randrange(2), *(self.address() for _ in range(j + 1))]
            case 4:
                item = self.rng.choice(list(ItemId))
                count = len(ITEM_REGISTERS[item])
                header = CtrlXferItem.make(type=6, id=item, mask=self.rng.getrandbits(20) & (1 << count) - 1)
                return [int(header) | self.rng.randrange(2), *(self.any() for _ in range(count))][: int(header.words)]
            case _:
                return [self.any()]

    def message(self, harmless: bool = False) -> list[int]:
        """A tag and up to 63 words, which it counts right as a rule."""
        untyped = [self.any() for _ in range(self.rng.choice((0, 0, 1, 2, 2, 5)))]
        typed: list[int] = []
        for _ in range(self.rng.choice((0, 0, 1, 1, 2, 4))):
            typed += self.item(harmless)
        typed = typed[:57]
        tag = self.rng.choice((0, 0, 0, PAGE_FAULT | 7, self.rng.getrandbits(16))) << 16
        tag |= len(typed) << 6 | len(untyped) | self.rng.choice((0, 0, 0, 0, 0, 1 << 12, 15 << 12))
        if self.rng.random() < 0.1 and not harmless:
            tag = self.rng.getrandbits(32)
        return [tag, *untyped, *typed]

    def buffers(self) -> list[int]:
        """BR0 and what follows: an acceptor, and buffers for strings."""
        words = [self.fpage() & ~15 | self.rng.randrange(4)]
        for _ in range(self.rng.randrange(4)):
            words += self.item()
        return words[:33]

    def call(self, registers: memoryview, utcb: memoryview) -> SystemCall:
        """Fill registers and UTCB; which call to make."""
        rng = self.rng
        call = rng.choice((SystemCall.IPC, SystemCall.IPC, SystemCall.IPC, *SystemCall))
        for register in range(2, 10):
            registers[register] = self.any()
        if rng.random() < 0.1:
            utcb[rng.randrange(128)] = self.any()  # any word, the kernel's too
        if rng.random() < 0.3:
            for i, word in enumerate(self.buffers()):
                utcb[_BR0 - i] = word
        if rng.random() < 0.8:
            for i, word in enumerate(self.message()[:64]):
                utcb[_MR + i] = word
        registers[ESI] = utcb[_MR]
        match call:
            case SystemCall.IPC | SystemCall.LIPC:
                registers[EAX] = self.id() if rng.random() < 0.7 else NIL_THREAD
                registers[EDX] = rng.choice((NIL_THREAD, ANY_THREAD, ANY_LOCAL_THREAD, self.id(), registers[EAX]))
                registers[ECX] = timeouts(self.time(), self.time())
                utcb[_MR + u.VIRTUAL_SENDER // 4] = self.id()
            case SystemCall.THREAD_CONTROL:
                registers[EAX], registers[ECX], registers[EDX] = self.id(), self.id(), self.id()
                registers[ESI] = rng.choice((registers[EAX], self.id(), self.id(), NIL_THREAD))
                registers[EDI] = rng.choice((UNCHANGED, UTCB_AREA.base + u.SIZE * rng.randrange(32), self.any()))
            case SystemCall.SPACE_CONTROL:
                registers[EAX], registers[EDI] = self.id(), self.id()
                registers[ECX] = rng.choice((0, 0, VM, self.any()))
                if rng.random() < 0.7:
                    registers[EDX], registers[ESI] = KIP_AREA, UTCB_AREA
            case SystemCall.EXCHANGE_REGISTERS:
                registers[EAX] = self.id()
                registers[ECX] = rng.getrandbits(12) & rng.choice((0xFFF, 0xFFE, 0x0F8, 0x106))
            case SystemCall.SCHEDULE:
                registers[EAX] = self.id()
                registers[ECX] = rng.choice((UNCHANGED, rng.randrange(256), self.any()))
                registers[EDX] = rng.choice((UNCHANGED, self.time() << 16 | self.time(), self.any()))
                registers[ESI] = rng.choice((UNCHANGED, 0, self.any()))
                registers[EDI] = rng.choice((UNCHANGED, rng.getrandbits(24), self.any()))
            case SystemCall.THREAD_SWITCH:
                registers[EAX] = self.id()
            case SystemCall.UNMAP:
                for i in range(rng.randrange(4)):
                    utcb[_MR + i] = self.fpage()
                registers[ESI] = utcb[_MR]
                registers[EAX] = rng.choice((0, 1, 2, 0x40, 0x41, self.any()))
            case _:
                pass
        return call

    def code(self, origin: int, entries: list[int]) -> bytes:
        """A page of code that is mostly system calls, somewhat noise."""
        rng = self.rng
        code = bytearray()
        while len(code) < PAGE:
            match rng.randrange(10):
                case 0 | 1 | 2 | 3 | 4:
                    for register in range(8):
                        if register != 4 and rng.random() < 0.9:
                            code += bytes([0xB8 + register]) + self.any().to_bytes(4, "little")
                    if rng.random() < 0.7:
                        code += bytes([0x65, 0xA1, 0, 0, 0, 0, 0x89, 0xC7])  # mov edi, the UTCB
                        code += b"\xb8" + self.id().to_bytes(4, "little")  # mov eax, somebody
                    offset = rng.choice(entries) - (origin + len(code) + 5)
                    code += b"\xe8" + (offset & 0xFFFF_FFFF).to_bytes(4, "little")
                case 5:
                    code += rng.randbytes(rng.randrange(1, 6))
                case 6:
                    code += bytes([0xCD, rng.choice((0x30, 0x31, 3, 4, 0x80, rng.randrange(256)))])
                case 7:
                    code += b"\xa3" + self.address().to_bytes(4, "little")  # mov [address], eax
                case 8:
                    code += b"\xa1" + self.address().to_bytes(4, "little")
                case _:
                    code += rng.choice((b"\xec", b"\xee", b"\x6c", b"\xf3\x6e", b"\x0f\x0b", b"\x0f\xa2", b"\x0f\x31"))
        return bytes(code[:PAGE])


class Round:
    """One system under attack."""

    def __init__(self, seed: int, privileged: bool, parts: Parts = THE_KERNELS_OWN) -> None:
        self.calls = 0
        self.served = 0  # how often an innocent was answered
        self.broken: list[int] = []  # what an innocent got that it should not
        self.privileged = privileged
        self.rng = random.Random(seed)
        ids = [
            *(int(global_id(100 + n)) for n in range(24)),
            *(int(global_id(100 + n, 2)) for n in range(4)),
            *(int(interrupt_id(n)) for n in (0, 1, 4, 7, 8, 15)),
            *(UTCB_AREA.base + u.SIZE * n + u.MR0_FROM_LOCATION for n in range(6)),
            *(int(word) for word in (NIL_THREAD, ANY_THREAD, ANY_LOCAL_THREAD, SIGMA0, ROOT_TASK)),
            *(int(global_id(n)) for n in (1, 15, 16, 17, 31, 300, (1 << 18) - 1, 70000)),
        ]
        addresses = [
            *(0, 0x1000, 0x10_0000, 0x40_0000, 0x41_0000, 0x41_1000, 0x41_2000, 0x42_0000, 0x80_0000, 0xC0_0000),
            *(KIP_AREA.base, UTCB_AREA.base, UTCB_AREA.base + 0x1000, 0xDFFF_F000, 0xDFFF_FFFC),
            *(0xE000_0000, 0xE600_0000, 0xFF00_0000, 0xFFFF_F000, 0xFFFF_FFFF),
        ]
        if privileged and seed % 4 < 3:  # while nobody deletes these two, a round lasts longer
            ids = [word for word in ids if word not in (SIGMA0, ROOT_TASK)]
        self.words = Words(self.rng, ids, addresses)
        normal = boot.KERNEL_MEMORY
        boot.KERNEL_MEMORY = FEW_FRAMES if seed % 4 == 3 else normal
        try:
            self.system = System(self._nurse, memory=16 << 20, check=False, parts=parts)
        finally:
            boot.KERNEL_MEMORY = normal

    def run(self, calls: int, check_every: int = 1) -> int:
        """Attack until so many calls were made, or nothing happens any more; how many were. Checks the invariants."""
        k, system = self.system.kernel, self.system
        until = k.clock.cycles + calls * CYCLES_PER_CALL
        why = "event"
        made, since = 0, k.entries
        while self.calls < calls and why in ("event", "enough", "halted"):
            if self.calls != made:
                made, since = self.calls, k.entries
            elif k.entries - since > STUCK:
                break
            if check_every == 1:
                why = k.run(until, one_entry=True)
            else:
                entries = k.entries + check_every
                why = k.run(until, enough=lambda entries=entries: k.entries >= entries)  # type: ignore[misc]
            system.look()
            system.forget_events()
        return self.calls

    def stop(self) -> None:
        """Unwind the programs."""
        for thread in self.system.kernel.threads.values():
            if thread.program is not None:
                thread.program.stop()

    # -- the programs

    def _nurse(self, r: Root) -> None:
        """Set the scene; then page for everybody, and start anew whoever is stuck."""
        server = r.hosted(self._serve, r.space(), priority=INNOCENT_PRIORITY)
        self._count = r.room()
        r.store(self._count, bytes(8))
        client = r.native(_INNOCENT, r.space(), INNOCENT_PRIORITY, COUNT=self._count, SERVER=int(server))
        self._innocents = server, client.id
        for _ in range(4):  # until it runs: its code, its stack's page, its count
            with suppress(IpcFailed):
                self._page(r, period(1000))
        self._pages = [r.room() for _ in range(4)]
        entries = [KIP_AREA.base + offset for offset in r.entries.values()]
        for page in self._pages:
            r.store(page, self.words.code(page, entries))
        if self.privileged:
            r.ports(0, 16)
        spaces = [r.space() for _ in range(SPACES)]
        vm = r.space(control=VM)
        self._attackers: dict[int, Callable[[ThreadId], None]] = {}
        for n in range(HOSTED):
            here = n % 2 and self.privileged
            self._enlist(r, NIL_THREAD if here else spaces[n % SPACES], hosted=True)
        for n in range(NATIVE):
            self._enlist(r, NIL_THREAD if self.privileged and not n else spaces[n % SPACES], hosted=False)
        for _ in range(VCPUS):
            self._enlist(r, vm, hosted=False)
        while True:
            try:
                self._page(r, period(NURSE_SLEEPS))
                if self.rng.random() < 0.9:
                    continue
            except IpcFailed:
                pass
            attacker = self.rng.choice(list(self._attackers))
            with suppress(CallRefused, IpcFailed):
                self._attackers[attacker](ThreadId.decode(attacker))

    def _enlist(self, r: Root, space: ThreadId, hosted: bool) -> None:
        id_ = r.new_id()
        slot = UTCB_AREA.base + u.SIZE * (16 + len(self._attackers))

        def start(id_: ThreadId) -> None:
            with suppress(CallRefused):
                if not hosted and self.rng.random() < 0.5:
                    control = ExregsControl(0x11E)  # resume it somewhere else, whatever it was doing
                    r.exchange_registers(id_, control=control, sp=self.words.address(), ip=self.rng.choice(self._pages))
                    return
                r.thread_control(id_, NIL_THREAD)
            if hosted:
                self.system.kernel.programs[id_] = HostedThread(lambda cpu: self._attack(L4(cpu)), f"attacker {id_}")
            r.thread_control(id_, space or r.my_id, id_, r.my_id, slot)
            r.schedule(id_, priority=100, time=SHORT_SLICE)
            at = self.rng.choice(self._pages) + self.rng.choice((0, 0, self.rng.randrange(PAGE)))
            r.send(id_, thread_start(at, self.words.address()), ZERO)

        self._attackers[id_] = start
        start(id_)

    def _page(self, r: Root, timeout: int) -> None:
        """Answer one fault, with a page of those that were asked for or some other, or with anything at all."""
        received = r.wait(timeout)
        at = received.untyped[0] if received.untyped else 0
        chance = self.rng.random()
        if received.sender in self._innocents:
            page = at & -PAGE
        elif chance < 0.2:
            r.ipc(received.sender, NIL_THREAD, self.words.message(harmless=True), timeouts(ZERO, ZERO))
            return
        else:
            page = at & -PAGE if at & -PAGE in self._pages else self.rng.choice(self._pages)
        rights = "rwx" if chance < 0.9 else "rx"
        r.send(received.sender, Message().append_map(Fpage.at(page, rights=rights), at & -PAGE), ZERO)

    def _serve(self, l4: L4) -> None:
        """The innocent server: answers who calls it, and nobody else."""
        received = l4.wait()
        client = received.sender
        while True:
            if received.untyped != [0x11, 0x22]:
                self.broken.append(received.words[0])
            self.served += 1
            l4.sleep(NURSE_SLEEPS)
            l4.send(client, [1])
            received = l4.receive(client)

    def _attack(self, l4: L4) -> None:
        cpu, rng = l4.cpu, self.rng
        while True:
            self.calls += 1
            match rng.randrange(40):
                case 0:
                    cpu.load(self.words.address(), rng.choice((1, 4, 5000)))
                case 1:
                    cpu.store(self.words.address(), rng.randbytes(rng.choice((1, 4, 64))))
                case 2:
                    size = rng.choice((1, 2, 4))
                    cpu.port_in(self.words.port(), size)
                case 3:
                    cpu.port_out(self.words.port(), rng.choice((1, 1, 1, 2, 4)), rng.getrandbits(8))
                case 4:
                    wanted = self.words.fpage()
                    cpu.registers[EAX] = cpu.registers[EDX] = SIGMA0
                    cpu.registers[ECX] = timeouts(period(100), period(100))
                    words = sigma0_request(Fpage.decode(wanted)).words()
                    cpu.registers[ESI] = words[0]
                    for i, word in enumerate(words):
                        cpu.utcb[_MR + i] = word
                    cpu.trap(SystemCall.IPC)
                case 5:  # a line and its handler; or an answer to it
                    regs = cpu.registers
                    regs[EAX] = regs[ESI] = interrupt_id(rng.choice((0, 0, 1, 4, 8, 9)))
                    regs[ECX], regs[EDX] = self.words.id(), NIL_THREAD
                    regs[EDI] = UNCHANGED
                    cpu.trap(SystemCall.THREAD_CONTROL)
                case 6:  # a timer
                    for port, value in ((0x43, rng.choice((0x30, 0x34, 0x36))), (0x40, 0), (0x40, rng.randrange(1, 8))):
                        cpu.port_out(port, 1, value)
                case _:
                    cpu.trap(self.words.call(cpu.registers, cpu.utcb))


def main(calls: int, seed: int = 0, per_round: int = 5000, check_every: int = 50) -> None:
    """Play rounds until so many calls were made."""
    total = 0
    while total < calls:
        attack = Round(seed, privileged=bool(seed & 1))
        try:
            total += attack.run(per_round, check_every)
        except BaseException:
            print(f"seed {seed}: broke after {attack.calls} calls, {attack.system.kernel.entries} kernel entries")
            raise
        if not attack.privileged and (attack.broken or not attack.served):
            raise AssertionError(f"seed {seed}: the innocents were disturbed: {attack.served=} {attack.broken=}")
        print(f"seed {seed}: {attack.calls} calls, {attack.served} served, {total} calls in all", flush=True)
        attack.stop()
        seed += 1


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
