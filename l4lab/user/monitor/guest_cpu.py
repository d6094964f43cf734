# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual CPU as its monitor sees it: a thread of a virtual-machine address space.

Lives here: making one (reference section 9.2), saying which registers come with which fault (9.5), starting it, and
reaching into it while it runs or waits, by ExchangeRegisters (8.3), or stopping it. What a guest's registers should be
is in `start`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from l4lab.abi import utcb as u
from l4lab.abi import vm
from l4lab.abi.calls import ExregsControl, SpaceControlBits
from l4lab.abi.fpage import PAGE_LOG2, Fpage
from l4lab.abi.ids import ThreadId
from l4lab.abi.message import CtrlXferItem, typed_items
from l4lab.abi.utcb import MESSAGE_REGISTERS
from l4lab.abi.vm import ItemId
from l4lab.user.l4 import L4
from l4lab.user.monitor.fault import Reply, item_words

# The VM's address space needs these areas like any other. They lie above all guest memory, and no guest sees them.
UTCB_AREA: Final = 0xDF00_0000
KIP_AREA: Final = 0xDF10_0000
MOST_CPUS: Final = (1 << PAGE_LOG2) // u.SIZE  # UTCBs in an area of one page
END_OF_MAPPINGS: Final = UTCB_AREA  # from here on nothing can be mapped into the VM's space

PRIORITY: Final = 100  # below the monitor's, so that a fault is answered before the guest's next instruction
_MORE: Final = 1  # the bit of an item that says: another one follows

Registers = Mapping[ItemId, Mapping[int, int]]  # values by item, and by number within the item


class GuestCpu:
    """One virtual CPU. Its monitor is the thread that made it."""

    def __init__(self, l4: L4, id_: ThreadId) -> None:
        self.l4 = l4
        self.id = id_

    @classmethod
    def create(
        cls,
        l4: L4,
        id_: ThreadId,
        priority: int = PRIORITY,
        shadow_paging: bool = False,
        monitor: ThreadId | None = None,
    ) -> GuestCpu:
        """Make a virtual machine's space with this thread in it; it then waits to be launched.

        `monitor`: who is going to launch it and answer its faults, if not the thread that makes it.
        """
        me = l4.my_id
        l4.thread_control(id_, space=id_, scheduler=me, utcb_location=UTCB_AREA)
        kind = SpaceControlBits.VM | (SpaceControlBits.SHADOW_PAGING if shadow_paging else 0)
        l4.space_control(id_, kind, Fpage.at(KIP_AREA), Fpage.at(UTCB_AREA))
        l4.schedule(id_, priority=priority)
        l4.thread_control(id_, space=id_, scheduler=me, pager=monitor or me)
        return cls(l4, id_)

    def join(self, id_: ThreadId, number: int, monitor: ThreadId, priority: int = PRIORITY) -> GuestCpu:
        """Make another virtual CPU of the same virtual machine, its `number`th from 0; it waits to be launched."""
        me = self.l4.my_id
        utcb = UTCB_AREA + u.SIZE * number
        self.l4.thread_control(id_, space=self.id, scheduler=me, utcb_location=utcb)
        self.l4.schedule(id_, priority=priority)
        self.l4.thread_control(id_, space=self.id, scheduler=me, pager=monitor)
        return GuestCpu(self.l4, id_)

    def configure(self, items: Mapping[int, Iterable[ItemId]]) -> None:
        """Which register items come with which message, by fault id: see `vm.fault_id_of` and `protocols.FaultId`."""
        words = [
            CtrlXferItem.make(id=fault_id, mask=sum(1 << item for item in set(wanted))) | _MORE
            for fault_id, wanted in items.items()
        ]
        for at in range(0, len(words), MESSAGE_REGISTERS - 1):
            chunk = words[at : at + MESSAGE_REGISTERS - 1]
            self._exchange(ExregsControl.CONFIGURE_ITEMS, [*chunk[:-1], chunk[-1] & ~_MORE])

    def launch(self, registers: Registers) -> list[int]:
        """The message that starts the guest with these registers; all others are as reference section 9.9 has them."""
        launch = Reply()
        for item, values in registers.items():
            for index, value in values.items():
                launch.write(item, index, value)
        return launch.words(vm.LAUNCH_LABEL)

    # -- reaching in ---------------------------------------------------------------------------------------------

    def read(self, *items: ItemId) -> dict[ItemId, dict[int, int]]:
        """All registers of some items, whatever the virtual CPU is doing."""
        wanted = [item_words(item, dict.fromkeys(range(count), 0)) for item in items if (count := _count(item))]
        registers: dict[ItemId, dict[int, int]] = {item: {} for item in items}
        for chain in _chains(wanted):
            _, words = self._exchange(ExregsControl.READ_ITEMS, chain)
            for item, values in typed_items(words):
                if isinstance(item, CtrlXferItem):
                    registers[ItemId(item.id)] = dict(zip(item.indices, values, strict=True))
        return registers

    def write(self, registers: Registers) -> None:
        """Set registers; a guest that runs goes on with them at its next entry."""
        for chain in _chains([item_words(item, registers[item]) for item in sorted(registers)]):
            self._exchange(ExregsControl.WRITE_ITEMS, chain)

    def halt(self) -> None:
        """Stop it; a fault whose answer it waits for is not touched by that."""
        self._exchange(ExregsControl.ACT_ON_HALT | ExregsControl.HALT, ())

    def resume(self) -> None:
        """Let it go on after `halt`."""
        self._exchange(ExregsControl.ACT_ON_HALT, ())

    def is_sending(self) -> bool:
        """Has it stopped with a message that the monitor has not received yet?"""
        control, _ = self._exchange(ExregsControl(0), ())
        return bool(control & ExregsControl.ABORT_SEND)

    def _exchange(self, control: ExregsControl, items: Sequence[int]) -> tuple[ExregsControl, list[int]]:
        _, old, words = self.l4.exchange_registers(self.id, control, items=items)
        return old, words


def _count(item: ItemId) -> int:
    return len(vm.ITEM_REGISTERS[item])


def _chains(items: Sequence[list[int]]) -> Iterator[list[int]]:
    """Items one after the other, each marked as followed by another except for the last, as many as fit in a call."""
    chain: list[int] = []
    last = 0
    for item in items:
        if len(chain) + len(item) >= MESSAGE_REGISTERS:
            yield chain
            chain = []
        elif chain:
            chain[last] |= _MORE
        last = len(chain)
        chain += item
    if chain:
        yield chain
