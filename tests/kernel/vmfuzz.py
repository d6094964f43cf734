# SPDX-License-Identifier: GPL-2.0-or-later
"""A hostile monitor: answers each exit of guests with arbitrary code by arbitrary registers, events and mappings.

A *round* is one system, made from a seed: the root task is the monitor of one virtual machine, whose guest executes
what a random page holds, in odd rounds under shadow paging. What is claimed: no exception leaves the kernel, its
invariants hold, what it counts agrees with the trace, and the guest writes to no memory but the pages that its monitor
gave it. `test_vmfuzz.py` plays a few rounds; `campaign.py` plays more, and `python -m tests.kernel.vmfuzz EXITS [SEED]`
some of one's choice.
"""

from __future__ import annotations

import random
import sys
from contextlib import suppress

from l4lab.abi.calls import ExregsControl, SpaceControlBits
from l4lab.abi.fpage import Fpage
from l4lab.abi.ids import NIL_THREAD, ThreadId
from l4lab.abi.message import CtrlXferItem, Message
from l4lab.abi.protocols import is_page_fault
from l4lab.abi.time import period, timeouts
from l4lab.abi.vm import ITEM_REGISTERS, ExitReason, ItemId, full_mask, label_of
from l4lab.abi.vm_state import INITIAL_STATE
from l4lab.kernel import invariants
from l4lab.rig.counting import machines, recount
from l4lab.testing import MEMORY, PAGE, Root, System
from l4lab.user.l4 import IpcFailed

KIP, UTCB = Fpage.at(0x80_0000), Fpage.at(0x80_1000)
POOL, POOL_PAGES = MEMORY.base + 0x20_0000, 16  # what a guest may get
AROUND = 32  # pages before and behind that no guest may change
CANARY = b"\xa5" * PAGE
CYCLES_PER_EXIT = 100_000  # a round ends after so many for each exit that was asked for, even if they were fewer
I = ItemId  # noqa: E741
VALID = 1 << 31
_NO_MAPPING = 4  # a bit that no map or grant item has: noise is not to give the canaries away
REFUSED = label_of(ExitReason.ENTRY_FAILURE_GUEST_STATE)
REPAIRED = (I.GPREGS, I.CREGS, *(ItemId(n) for n in range(I.CS, I.NONREGEXC + 1)), I.OTHERREGS)
_INSTRUCTIONS = (
    *(b"\x0f\xa2", b"\xf4", b"\xe6\x80", b"\xec", b"\xf3\x6e", b"\x6d", b"\x0f\x32", b"\x0f\x30", b"\x0f\x31", b"\xfb"),
    *(
        b"\x0f\x20\xc0",
        b"\x0f\x22\xc0",
        b"\x0f\x22\xd8",
        b"\x0f\x22\xe0",
        b"\x0f\x23\xf8",
        b"\x0f\x06",
        b"\x0f\x01\x30",
    ),
    *(b"\x0f\x01\x10", b"\x0f\x01\x18", b"\x0f\x01\x38", b"\x0f\x00\xd8", b"\x0f\x00\xd0", b"\x8e\xd0", b"\x8e\xd8"),
    *(b"\xcd\x30", b"\xcc", b"\xce", b"\xf1", b"\xcf", b"\xcb", b"\x9d", b"\x17", b"\x0f\x0b", b"\x0f\x01\xc1"),
    *(
        b"\x0f\x08",
        b"\x0f\x09",
        b"\xf3\x90",
        b"\x0f\xae\x00",
        b"\x0f\xae\x08",
        b"\xd9\xe8",
        b"\x0f\x28\xc1",
        b"\x0f\x33",
    ),
    *(b"\x89\x03", b"\x8b\x03", b"\xff\x30", b"\x8f\x00", b"\xf3\xab", b"\xf3\xa4", b"\xff\xe0", b"\xff\x28", b"\xfa"),
)


class Round:
    """One system, and what its monitor does."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.kind = SpaceControlBits.VM | (SpaceControlBits.SHADOW_PAGING if seed & 1 else 0)
        self.exits = 0
        self.reasons: set[int] = set()  # labels of the messages that came
        self.system = System(self._monitor, memory=16 << 20, check=False)

    def run(self, exits: int, check_every: int = 1) -> int:
        """Play until so many exits; how many came."""
        k = self.system.kernel
        until = k.clock.cycles + (exits + 100) * CYCLES_PER_EXIT
        why = "event"
        while self.exits < exits and why in ("event", "enough", "halted"):
            entries = k.entries + check_every
            why = k.run(until, enough=lambda entries=entries: k.entries >= entries)  # type: ignore[misc]
            self.system.look()
            invariants.check_shadows(k)
            for thread, died in k.deaths:
                raise AssertionError(f"the program of {thread.name} raised:\n{died.text}")
        self._look_around()
        self._count_again()
        return self.exits

    def stop(self) -> None:
        """Unwind the programs."""
        for thread in self.system.kernel.threads.values():
            if thread.program is not None:
                thread.program.stop()

    def _look_around(self) -> None:
        """Is the memory beside the guest's as it was?"""
        words = CANARY[:4] * 2
        for page in (*range(-AROUND, 0), *range(POOL_PAGES, POOL_PAGES + AROUND)):
            for offset in (0, 0x800, PAGE - 8):
                found = self.system.words(POOL + page * PAGE + offset, 2)
                assert words == b"".join(word.to_bytes(4, "little") for word in found), f"page {page} was changed"

    def _count_again(self) -> None:
        """Does the trace tell what the kernel has counted? Of guests that run, up to their last exit."""
        counters = self.system.kernel.counters
        found = recount(self.system.trace.events)
        for cpu, again in zip(counters.virtual_cpus, found, strict=True):
            assert cpu.instructions >= again.instructions
            again.instructions = cpu.instructions
        assert machines(counters.virtual_cpus) == machines(found)

    # -- the monitor

    def _monitor(self, r: Root) -> None:
        rng = self.rng
        for page in (*range(-AROUND, 0), *range(POOL_PAGES, POOL_PAGES + AROUND)):
            r.store(POOL + page * PAGE, CANARY)
        while True:
            for page in range(POOL_PAGES):
                r.store(POOL + page * PAGE, self._code() if rng.random() < 0.7 else self._tables())
            id_ = r.create(r.space(KIP, UTCB, control=self.kind), priority=90)
            with suppress(IpcFailed):
                self._configure(r, id_)
                r.send(id_, self._start())
                for _ in range(rng.randrange(50, 500)):
                    self._turn(r, id_)
            r.thread_control(id_, NIL_THREAD)
            for naming in [t.id for t in self.system.kernel.threads.values() if t.space.is_vm]:
                r.thread_control(naming, NIL_THREAD)

    def _turn(self, r: Root, id_: ThreadId) -> None:
        """Wait a while for a message and answer it somehow; now and then reach in while the guest runs."""
        rng = self.rng
        if rng.random() < 0.2:
            self._reach_in(r, id_)
        try:
            received = r.wait(period(rng.choice((1, 2, 5))))
        except IpcFailed:  # it may be in a loop that changes its own code, which takes long: on with something else
            self._reach_in(r, id_)
            message = Message().append_registers(I.GPREGS, self._sane(I.GPREGS))
            r.exchange_registers(id_, ExregsControl.WRITE_ITEMS, items=message.typed)
            return
        self.exits += 1
        self.reasons.add(received.label)
        reply = Message()
        if received.label == REFUSED and rng.random() < 0.7:  # or nothing would ever run
            for item in REPAIRED:
                message = Message()
                self._add(message, item, self._sane(item))
                r.exchange_registers(id_, ExregsControl.WRITE_ITEMS, items=message.typed)
        if is_page_fault(received.label) or rng.random() < 0.02:
            at = received.untyped[0] if rng.random() < 0.8 else rng.getrandbits(32)
            if rng.random() < 0.9:
                rights = rng.choice(("rwx", "rwx", "rwx", "rx"))
                page = POOL + rng.randrange(POOL_PAGES) * PAGE
                reply.append_map(Fpage.at(page, rights=rights), at & -PAGE)
        if rng.random() < 0.1:
            for item in I:
                if item in (I.GPREGS, I.CREGS, *range(I.CS, I.GDTR)):
                    self._add(reply, item, self._sane(item))
        elif not is_page_fault(received.label) or rng.random() < 0.3:
            self._add(reply, I.GPREGS, {0: self._address(), **({1: self._flags()} if rng.random() < 0.2 else {})})
            for item in rng.sample(list(I), rng.randrange(3)):
                self._add(reply, item, self._registers(item))
        words = reply.words()
        if rng.random() < 0.02:
            words = [rng.getrandbits(32), *(rng.getrandbits(32) | _NO_MAPPING for _ in range(63))]
        with suppress(IpcFailed):
            r.ipc(id_, NIL_THREAD, words, timeouts(period(100), period(100)))

    def _reach_in(self, r: Root, id_: ThreadId) -> None:
        rng = self.rng
        match rng.randrange(6):
            case 0:
                r.exchange_registers(id_, ExregsControl.ACT_ON_HALT | (rng.getrandbits(1) and ExregsControl.HALT))
                r.exchange_registers(id_, ExregsControl.ACT_ON_HALT)
            case 1:
                self._configure(r, id_)
            case 2:
                words = [w for item in rng.sample(list(I), 3) for w in (CtrlXferItem.make(id=item, mask=1, more=1), 0)]
                r.exchange_registers(id_, ExregsControl.READ_ITEMS, items=words)
            case 3:
                r.unmap(Fpage.at(POOL + rng.randrange(POOL_PAGES) * PAGE))
            case _:
                message = Message()
                for item in rng.sample(list(I), 2):
                    self._add(message, item, self._registers(item))
                r.exchange_registers(id_, ExregsControl.WRITE_ITEMS, items=_chained(message))

    def _configure(self, r: Root, id_: ThreadId) -> None:
        mask = self.rng.choice((0, 1, 1 | 1 << I.NONREGEXC, self.rng.getrandbits(20)))
        words = [int(CtrlXferItem.make(id=fault, mask=mask, more=1)) for fault in (2, *range(9, 53))]
        words[-1] &= ~1
        r.exchange_registers(id_, ExregsControl.CONFIGURE_ITEMS, items=words)

    # -- what it writes

    def _start(self) -> Message:
        message = Message()
        for item in (I.GPREGS, I.CREGS, *range(I.CS, I.DS + 1)):
            self._add(message, ItemId(item), self._sane(ItemId(item)))
        return message.append_registers(I.EXECCTRL, {1: self.rng.getrandbits(32), 2: self.rng.getrandbits(32)})

    @staticmethod
    def _add(message: Message, item: ItemId, registers: dict[int, int]) -> None:
        if registers and len(message.untyped) + len(message.typed) + len(registers) < 63:
            message.append_registers(item, registers)

    def _sane(self, item: ItemId) -> dict[int, int]:
        """Flat protected mode, or real mode where the state begins."""
        match item:
            case I.GPREGS:
                return {0: self._address(), 1: self.rng.choice((2, 0x202)), 5: 0x8000}
            case I.CREGS:
                value = self.rng.choice((0x10, 0x11, 0x11, 0x8000_0011))
                tables = {4: self.rng.randrange(16) * PAGE, 5: 0, 7: 0}
                return {0: value, 1: value, 2: self.rng.choice((0, 0, 1 << 31, 0xFFFF_FFFF)), **tables}
            case I.TR | I.LDTR | I.GDTR | I.IDTR:
                return dict(enumerate(INITIAL_STATE[item]))
            case I.NONREGEXC | I.OTHERREGS:
                return dict.fromkeys(range(6), 0)
            case _:
                return {0: 8, 1: 0, 2: 0xFFFF_FFFF, 3: 0xC09B if item is I.CS else 0xC093}

    def _registers(self, item: ItemId) -> dict[int, int]:
        """Some registers of an item: values that mean something there, and noise."""
        rng = self.rng
        if rng.random() < 0.3 and item in (I.GPREGS, I.CREGS, *range(I.CS, I.NONREGEXC)):
            return self._sane(item)
        mask = rng.getrandbits(20) & full_mask(item)
        values = {index: self._word() for index in range(len(ITEM_REGISTERS[item])) if mask >> index & 1}
        if item is I.NONREGEXC:
            kind, vector = rng.choice((0, 2, 3, 3, 4, 5, 6, rng.randrange(8))), rng.choice((2, 3, 6, 13, 14, 0x30))
            values |= {3: VALID | kind << 8 | vector | rng.getrandbits(1) << 11, 5: rng.randrange(4)}
            values |= {index: rng.choice((0, 0, 0, rng.randrange(16))) for index in range(3)}
        elif item is I.GPREGS:
            values |= {0: self._address(), 1: self._flags()}
        return values

    def _flags(self) -> int:
        return 2 | self.rng.choice((0, 0x200, 0x300, 1 << 17 | 0x3200, self.rng.getrandbits(22) & ~0x8028))

    def _address(self) -> int:
        return self.rng.choice((0x1000, 0x1000, 0x2000, 0x7C00, 0xFFFF0, 0x80_1000, self._word()))

    def _word(self) -> int:
        rng = self.rng
        match rng.randrange(4):
            case 0:
                return rng.getrandbits(32)
            case 1:
                return 1 << rng.randrange(32)
            case 2:
                return rng.randrange(16) * PAGE + rng.choice((0, 0, 0xFFC, 0x100))
            case _:
                return rng.choice(
                    (0, 0xFFFF, 0xFFFF_FFFF, 0xF3, 0x93, 0xC09B, 0xC0FB, 0x8B, 0x82, 0x8000_0011, KIP.base)
                )

    def _tables(self) -> bytes:
        """A page directory or table: most entries lead to few places, with any rights and sizes."""
        rng = self.rng
        usual = [rng.randrange(16) * PAGE | rng.choice((0x007, 0x067, 0x0E7, 0x087, 0x1E3, rng.getrandbits(12)))]
        usual += [rng.randrange(16) * PAGE | rng.getrandbits(12) for _ in range(3)]
        return b"".join(
            (rng.choice(usual) if rng.random() < 0.95 else rng.getrandbits(32)).to_bytes(4, "little")
            for _ in range(PAGE // 4)
        )

    def _code(self) -> bytes:
        """A page that is code, tables and noise."""
        rng, code = self.rng, bytearray()
        while len(code) < PAGE:
            match rng.randrange(6):
                case 0:
                    code += rng.randbytes(rng.randrange(1, 5))
                case 1:
                    code += bytes([0xB8 + rng.randrange(8)]) + self._word().to_bytes(4, "little")
                case 2:
                    code += rng.choice((b"\xa1", b"\xa3")) + self._word().to_bytes(4, "little")
                case 3 if rng.random() < 0.1:  # a descriptor or two words of a page table
                    code += rng.randrange(1 << 64).to_bytes(8, "little")
                case _:
                    code += rng.choice(_INSTRUCTIONS)
        return bytes(code[:PAGE])


def _chained(message: Message) -> list[int]:
    """The items of a message, each marked as followed by another."""
    words: list[int] = []
    for item, values in message.items():
        words += [int(item) | 1, *values]
    return words


def main(exits: int, seed: int = 0, per_round: int = 5000, check_every: int = 100) -> None:
    """Play rounds until so many exits were answered."""
    total = 0
    reasons: set[int] = set()
    while total < exits:
        print(f"seed {seed}, {total} exits, {len(reasons)} kinds", flush=True)
        one = Round(seed)
        total += one.run(min(per_round, exits - total), check_every)
        one.stop()
        reasons |= one.reasons
        seed += 1
    print(f"{total} exits, kinds: {', '.join(sorted(map(hex, reasons)))}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
