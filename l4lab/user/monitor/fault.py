# SPDX-License-Identifier: GPL-2.0-or-later
"""The two messages between a virtual CPU and its monitor: `Fault`, why the guest stopped, and `Reply`, what to change.

Lives here: reading and writing the words (reference sections 9.3, 9.6, 9.8). What a fault means and what to answer is
decided elsewhere. Both are on the path of each exit, so they decode nothing that nobody asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Final

from l4lab.abi import vm
from l4lab.abi.exceptions import PAGE_FAULT
from l4lab.abi.frame import EAX, EBX, ECX, EDI, EDX, EFLAGS, EIP, ESI, FLAG_IF
from l4lab.abi.message import CtrlXferItem, typed_items
from l4lab.abi.utcb import MESSAGE_REGISTERS
from l4lab.abi.vm import (
    EVENT_HAS_ERROR_CODE,
    EVENT_VALID,
    InterruptionInfo,
    InterruptionType,
    ItemId,
    exit_name,
)
from l4lab.errors import LabError
from l4lab.words import hex32

GPREGS: Final = ItemId.GPREGS
NONREGEXC: Final = ItemId.NONREGEXC
MASK: Final = 0xFFFF_FFFF


_ITEM_TYPE: Final = CtrlXferItem.fixed
_ALL_GPREGS: Final = CtrlXferItem.make(id=ItemId.GPREGS, mask=vm.full_mask(ItemId.GPREGS))
# Types of events that an instruction causes: executing it again causes them again, so they need no re-injection.
_BY_INSTRUCTION: Final = frozenset(
    (
        InterruptionType.SOFTWARE_INTERRUPT,
        InterruptionType.PRIVILEGED_SOFTWARE_EXCEPTION,
        InterruptionType.SOFTWARE_EXCEPTION,
    )
)


class Fault:
    """A message from a virtual CPU, with registers by name as far as items were configured for it.

    Also for page faults, whose two words are an address and an IP. `words` begins with the tag.
    """

    __slots__ = ("_gpregs", "_items", "label", "reason", "words")

    def __init__(self, words: Sequence[int]) -> None:
        self.words = words
        tag = words[0]
        self.label = tag >> 16  # which kind of fault
        self.reason = 0xFF7 - (tag >> 20)  # the basic exit reason, also one that `ExitReason` does not know
        self._items: dict[int, dict[int, int]] | None = None
        # GPREGS comes first wherever it is configured, because items come by ascending number.
        first = 1 + (tag & 0x3F)  # behind the untyped words
        self._gpregs = first + 1 if len(words) > first and words[first] == _ALL_GPREGS else 0

    # -- what happened ---------------------------------------------------------------------------------------------

    @property
    def internal(self) -> bool:
        """Has the kernel dealt with the exit, and only says that the delivery of an event was cut short?"""
        return bool(self.label & 8)

    @property
    def reason_name(self) -> str:
        """The reason as a person reads it."""
        return exit_name(self.reason)

    @property
    def qualification(self) -> int:
        """MR1: details, by reason; see the exit qualifications in `abi.vm`."""
        return self.words[1]

    @property
    def instruction_length(self) -> int:
        """MR2: bytes of the instruction that exited."""
        return self.words[2]

    @property
    def info(self) -> int:
        """MR3: for string I/O the linear address of the buffer, for VMX instructions their operands."""
        return self.words[3]

    # -- registers ---------------------------------------------------------------------------------------------------

    def gpr(self, index: int) -> int:
        """A word of the register frame by its index in `abi.frame`."""
        if self._gpregs:
            return self.words[self._gpregs + index]
        return self.register(GPREGS, index)

    def register(self, item: ItemId, index: int) -> int:
        """A register of any item; KeyError if the message does not carry it."""
        return self.items[item][index]

    @property
    def items(self) -> Mapping[int, Mapping[int, int]]:
        """All registers in the message: by item, then by number within the item."""
        if self._items is None:
            typed = self.words[1 + (self.words[0] & 0x3F) :]
            self._items = {
                item.id: dict(zip(item.indices, values, strict=False))
                for item, values in typed_items(typed)
                if isinstance(item, CtrlXferItem)
            }
        return self._items

    @property
    def eip(self) -> int:
        """Where the guest stopped: at the instruction that exited."""
        return self.gpr(EIP)

    @property
    def eflags(self) -> int:
        """The guest's flags."""
        return self.gpr(EFLAGS)

    @property
    def eax(self) -> int:
        """EAX."""
        return self.gpr(EAX)

    @property
    def ebx(self) -> int:
        """EBX."""
        return self.gpr(EBX)

    @property
    def ecx(self) -> int:
        """ECX."""
        return self.gpr(ECX)

    @property
    def edx(self) -> int:
        """EDX."""
        return self.gpr(EDX)

    @property
    def esi(self) -> int:
        """ESI."""
        return self.gpr(ESI)

    @property
    def edi(self) -> int:
        """EDI."""
        return self.gpr(EDI)

    @property
    def interrupted(self) -> InterruptionInfo | None:
        """The event whose delivery was cut short by this exit (idt_info), if the message says so."""
        nonregexc = self.items.get(NONREGEXC)
        if nonregexc is None or not nonregexc[vm.IDT_INFO] & EVENT_VALID:
            return None
        return InterruptionInfo.decode(nonregexc[vm.IDT_INFO])

    def text(self) -> str:
        """The fault and all its registers in lines, for people."""
        lines = [f"{self.reason_name}, qualification {hex32(self.qualification)}"] if self.words[0] & 0x3F == 3 else []
        for number, registers in self.items.items():
            item = ItemId(number)
            names = vm.ITEM_REGISTERS[item]
            values = ", ".join(f"{names[index]} {hex32(value)}" for index, value in registers.items())
            lines.append(f"{item.name}: {values}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Fault({self.reason_name})" if self.words[0] & 0x3F == 3 else f"Fault(page {hex32(self.words[1])})"


class Reply:
    """What the answer to a fault changes: registers, each at most once, sent in the order of the items.

    `hold` keeps the answer back: the virtual CPU stays where it is until something else happens.
    """

    __slots__ = ("_gpregs", "_others", "hold", "typed")

    def __init__(self) -> None:
        self._gpregs: dict[int, int] = {}  # nearly every reply has these, and most have no others
        self._others: dict[int, dict[int, int]] = {}
        self.typed: list[int] = []  # map items, which go before the registers
        self.hold = False

    def write(self, item: ItemId, index: int, value: int) -> None:
        """Set a register of the virtual CPU."""
        if item == GPREGS:
            self._gpregs[index] = value & MASK
        else:
            self._others.setdefault(item, {})[index] = value & MASK

    def gpr(self, index: int, value: int) -> None:
        """Set a word of the register frame."""
        self._gpregs[index] = value & MASK

    def gprs(self, values: Mapping[int, int]) -> None:
        """Set several words of the register frame at once; they are words already."""
        self._gpregs.update(values)

    def skip(self, fault: Fault, length: int | None = None) -> None:
        """The instruction has been done for the guest: go on after it.

        It ends the shadow that STI and MOV SS cast on one instruction. With IF clear that shadow hides nothing, and
        the word is saved.
        """
        self._gpregs[EIP] = fault.gpr(EIP) + (fault.words[2] if length is None else length) & MASK
        if fault.gpr(EFLAGS) & FLAG_IF:
            self.write(NONREGEXC, vm.INTERRUPTIBILITY, 0)

    @property
    def items(self) -> dict[int, dict[int, int]]:
        """What is written so far: by item, then by number within the item."""
        return {GPREGS: self._gpregs, **self._others} if self._gpregs else dict(self._others)

    # -- events ------------------------------------------------------------------------------------------------------

    @property
    def injects(self) -> bool:
        """Does the reply deliver an event already?"""
        return vm.ENTRY_INFO in self._others.get(NONREGEXC, ())

    def inject(self, info: int, error_code: int = 0, instruction_length: int = 0) -> None:
        """Deliver an event when the guest goes on (reference section 9.8)."""
        self.write(NONREGEXC, vm.ENTRY_INFO, info | EVENT_VALID)
        if info & EVENT_HAS_ERROR_CODE:
            self.write(NONREGEXC, vm.ENTRY_EEC, error_code)
        if instruction_length:
            self.write(NONREGEXC, vm.ENTRY_ILEN, instruction_length)

    def raise_exception(self, vector: int, error_code: int | None = None) -> None:
        """The instruction faults: deliver a hardware exception, EIP stays where it is."""
        self.inject(exception(vector, error_code is not None), error_code or 0)

    def raise_page_fault(self, address: int, error_code: int) -> None:
        """The guest's own page tables forbid an access that was made for it."""
        self.write(ItemId.CREGS, vm.CR2, address)
        self.raise_exception(PAGE_FAULT, error_code)

    def resume_delivery(self, fault: Fault) -> None:
        """Deliver again the event that an exit cut short, unless its instruction will cause it again by itself."""
        event = fault.interrupted
        if event is not None and event.type not in _BY_INSTRUCTION:
            nonregexc = fault.items[NONREGEXC]
            self.inject(event.replace(nmi_unblocking=0), nonregexc[vm.IDT_EEC])

    # -- words -------------------------------------------------------------------------------------------------------

    def words(self, label: int = vm.REPLY_LABEL) -> list[int]:
        """The message, MR0 first: map items, then register items by ascending number."""
        words = [0, *self.typed]
        if self._gpregs:
            words += item_words(GPREGS, self._gpregs)
        if self._others:
            for item, registers in sorted(self._others.items()):
                words += item_words(item, registers)
            if len(words) > MESSAGE_REGISTERS:
                raise LabError(
                    f"A reply has {MESSAGE_REGISTERS - 1} words, and these registers and mappings would need "
                    f"{len(words) - 1}. Write some of them with GuestCpu.write first."
                )
        words[0] = label << 16 | len(words) - 1 << 6
        return words


def item_words(item: int, registers: Mapping[int, int]) -> list[int]:
    """One register item: its header, and the values by ascending register number."""
    header, in_order = _layout(item, *registers)
    return [header, *in_order(registers)]


@lru_cache(maxsize=1024)
def _layout(item: int, *indices: int) -> tuple[int, Callable[[Mapping[int, int]], Iterable[int]]]:
    """The header of an item with these registers, and what puts them in order. A few recur at nearly every exit."""
    mask = sum(1 << index for index in indices)
    header = mask << 12 | item << 4 | _ITEM_TYPE
    if len(indices) == 1:
        return header, dict.values  # type: ignore[return-value]  # one value is in order; itemgetter() would unpack it
    return header, itemgetter(*sorted(indices))


def exception(vector: int, with_error_code: bool = False) -> int:
    """The event word of a hardware exception."""
    return (
        EVENT_VALID
        | (EVENT_HAS_ERROR_CODE if with_error_code else 0)
        | InterruptionType.HARDWARE_EXCEPTION << 8
        | vector
    )


def external_interrupt(vector: int) -> int:
    """The event word of an interrupt from outside."""
    return EVENT_VALID | vector
