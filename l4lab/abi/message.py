# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages: the tag, the typed items, the acceptor, and the error word of an IPC that failed.

Lives here: the words, and `Message`, which assembles and takes apart the content of the message registers. How a
message travels is the kernel's; what the kernel's own messages say is in `protocols` and `vm`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import ClassVar, Final, Self

from l4lab.abi.fpage import COMPLETE_ADDRESS_SPACE, NILPAGE, Fpage, IoFpage
from l4lab.abi.frame import FRAME_WORDS
from l4lab.abi.utcb import MESSAGE_REGISTERS
from l4lab.errors import LabError
from l4lab.words import Word, bit, bits


class MsgTag(Word):
    """First word of every message: what it carries and how it arrived (X.2 manual, section Message tag)."""

    label = bits(31, 16)  # the sender's to choose; the kernel's own labels are negative
    error = bit(15)  # E, on return: the IPC failed; the UTCB's ErrorCode says why
    crossed = bit(14)  # x, on return: came from another processor
    redirected = bit(13)  # r, on return
    propagated = bit(12)  # p: sent, or to be sent, in VirtualSender's name
    flags = bits(15, 12, alias=True)  # E x r p together
    typed = bits(11, 6)  # words taken by map, grant, string and register items
    untyped = bits(5, 0)  # plain data words


class ItemType(IntEnum):
    """Typed items by bits 3..1 of their first word; 0 to 3 are strings (X.2 manual, section IPC; reference 5.5)."""

    STRING = 0
    MAP = 4
    GRANT = 5
    CTRLXFER = 6


class TypedItem(Word):
    """What the first words of all typed items have in common."""

    type = bits(3, 1, alias=True)
    more = bit(0)  # C: another item follows. IPC counts words instead; ExchangeRegisters and buffers rely on it

    @property
    def words(self) -> int:
        """Message registers that the item takes, this word included."""
        raise ValueError(f"{int(self):#x} begins no item that has a length")


class StringItem(TypedItem):
    """A piece of memory to copy; as a buffer register, one to copy into (X.2 manual, section String items)."""

    length = bits(31, 10)  # bytes of each substring
    compound = bit(9)  # c: the string goes on with another header after the pointers
    j = bits(8, 4)  # number of substrings, less one; as many pointers follow
    hint = bits(2, 1)  # how to cache it; meaningless here

    @property
    def words(self) -> int:
        """Message registers of this header and its pointers."""
        return 2 + self.j


class MapItem(TypedItem):
    """Give a piece of my space to the receiver too; the fpage follows (X.2 manual, section MapItem)."""

    send_base = bits(31, 10)  # base / 1024: where in the receive window, if that is larger than the fpage
    fixed: ClassVar[int] = ItemType.MAP << 1

    @classmethod
    def at(cls, base: int = 0) -> Self:
        """The item word for a send base, which is an address."""
        return cls.decode(base & ~0x3FF | cls.fixed)

    @cached_property
    def base(self) -> int:
        """The send base as an address."""
        return self.send_base << 10

    @property
    def words(self) -> int:
        """This word and the fpage."""
        return 2


class GrantItem(MapItem):
    """Hand a piece of my space over and lose it; the fpage follows (X.2 manual, section GrantItem)."""

    fixed: ClassVar[int] = ItemType.GRANT << 1


class CtrlXferItem(TypedItem):
    """Registers of the receiver or of the sender; one value follows for each bit of the mask (reference section 5.5).

    In ExchangeRegisters' configuration, `id` is the fault and `mask` the set of items wanted with its messages.
    """

    mask = bits(31, 12)
    id = bits(11, 4)
    fixed: ClassVar[int] = ItemType.CTRLXFER << 1

    @cached_property
    def indices(self) -> tuple[int, ...]:
        """Register numbers in the mask, in the order of their values."""
        return tuple(index for index in range(20) if self.mask >> index & 1)

    @cached_property
    def frame_indices(self) -> tuple[int, ...]:
        """Those that GPREGS, whose registers are the register frame, has."""
        return tuple(index for index in self.indices if index < FRAME_WORDS)

    @cached_property
    def words(self) -> int:
        """This word and its values."""
        return 1 + len(self.indices)


_ITEM_CLASSES: Final[tuple[type[TypedItem], ...]] = (*[StringItem] * 4, MapItem, GrantItem, CtrlXferItem, TypedItem)


def typed_item(word: int) -> TypedItem:
    """The first word of a typed item, as what it is; a plain `TypedItem` if the type is unknown."""
    return _ITEM_CLASSES[word >> 1 & 7].decode(word)


def typed_items(words: Sequence[int]) -> Iterator[tuple[TypedItem, list[int]]]:
    """The items among a message's typed words, each with the words that follow its first.

    Stops at an unknown type. A last item that is cut short comes with what is left of it.
    """
    at = 0
    while at < len(words):
        item = typed_item(words[at])
        if type(item) is TypedItem:
            return
        yield item, list(words[at + 1 : at + item.words])
        at += item.words


class Acceptor(Word):
    """BR0: what the receiver is willing to take (X.2 manual, section Acceptor; bit c is reference section 5.6)."""

    b = bits(31, 10)
    s = bits(9, 4)  # b and s: the receive window, as in an fpage
    ctrlxfer = bit(1)  # c: register items are written into my registers, not into my message registers
    strings = bit(0)

    @classmethod
    def of(cls, window: Fpage = NILPAGE, *, strings: bool = False, ctrlxfer: bool = False) -> Acceptor:
        """The acceptor with this receive window; nilpage accepts no mappings."""
        return cls(window & ~0xF).replace(strings=strings, ctrlxfer=ctrlxfer)

    @cached_property
    def window(self) -> Fpage:
        """The receive window, with all rights; nilpage if mappings are not accepted."""
        return Fpage(self & ~0xF | 7) if self & ~0xF else NILPAGE

    def __repr__(self) -> str:
        accepted = (", strings" if self.strings else "") + (", ctrlxfer" if self.ctrlxfer else "")
        return f"Acceptor({self.window!r}{accepted})"


ACCEPT_NOTHING: Final = Acceptor(0)
ACCEPT_ALL_MAPPINGS: Final = Acceptor.of(COMPLETE_ADDRESS_SPACE)


class IpcErrorCode(IntEnum):
    """Why an IPC failed (X.2 manual, section IPC; reference section 5.3)."""

    NONE = 0
    TIMEOUT = 1
    NO_PARTNER = 2
    CANCELLED = 3
    MESSAGE_OVERFLOW = 4
    OWN_XFER_TIMEOUT = 5
    PARTNER_XFER_TIMEOUT = 6
    ABORTED = 7


class IpcErrorWord(Word):
    """The UTCB's ErrorCode after an IPC whose tag has the error bit (X.2 manual, section IPC)."""

    offset = bits(31, 4)  # bytes of strings that did arrive; codes 4 to 7 only
    code = bits(3, 1, IpcErrorCode)
    in_receive = bit(0)  # which phase failed: false for the send phase


_IPC_ERROR_TEXT: Final[dict[IpcErrorCode, str]] = {
    IpcErrorCode.NONE: "no error",
    IpcErrorCode.TIMEOUT: "timeout: the partner was not ready in time",
    IpcErrorCode.NO_PARTNER: "there is no such partner",
    IpcErrorCode.CANCELLED: "cancelled by ExchangeRegisters, deletion or migration before the transfer began",
    IpcErrorCode.MESSAGE_OVERFLOW: "message overflow: the receiver has no room or no window for all of it",
    IpcErrorCode.OWN_XFER_TIMEOUT: "a page fault during the transfer took longer than my transfer timeout",
    IpcErrorCode.PARTNER_XFER_TIMEOUT: "a page fault during the transfer took longer than the partner's timeout",
    IpcErrorCode.ABORTED: "aborted during the transfer",
}


def describe_error(error: int) -> str:
    """The ErrorCode of a failed IPC in words."""
    word = IpcErrorWord.decode(error)
    if word.code is IpcErrorCode.NONE:
        return _IPC_ERROR_TEXT[word.code]
    phase = "receive" if word.in_receive else "send"
    offset = f", after {word.offset} bytes of strings" if word.code >= IpcErrorCode.MESSAGE_OVERFLOW else ""
    return f"{phase} phase: {_IPC_ERROR_TEXT[word.code]}{offset}"


@dataclass(slots=True)
class Message:
    """A message being written, or one that was received. `words()` is what goes into MR0, MR1, ...

    The methods return the message, so that one can be written in a line:
    `Message(label=0x12).append(1, 2).append_map(page).words()`. (X.2 manual, section Message registers.)
    """

    label: int = 0
    untyped: list[int] = field(default_factory=list)
    typed: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, words: Sequence[int]) -> Message:
        """The message that lies in these message registers, MR0 first."""
        tag = MsgTag.decode(words[0])
        typed_from = 1 + tag.untyped
        return cls(tag.label, list(words[1:typed_from]), list(words[typed_from : typed_from + tag.typed]))

    def append(self, *words: int) -> Self:
        """Add plain data words."""
        self.untyped.extend(words)
        return self

    def append_map(self, fpage: Fpage | IoFpage, base: int = 0) -> Self:
        """Add a map item: the receiver gets the fpage too."""
        self.typed += [MapItem.at(base), fpage]
        return self

    def append_grant(self, fpage: Fpage | IoFpage, base: int = 0) -> Self:
        """Add a grant item: the fpage moves to the receiver."""
        self.typed += [GrantItem.at(base), fpage]
        return self

    def append_string(self, address: int, length: int) -> Self:
        """Add a simple string item: `length` bytes at `address` are copied."""
        self.typed += [StringItem.make(length=length), address]
        return self

    def append_registers(self, item_id: int, values: Mapping[int, int]) -> Self:
        """Add a register item: register numbers of the item (as in `vm.ITEM_REGISTERS`) and their values."""
        mask = sum(1 << index for index in values)
        self.typed += [CtrlXferItem.make(id=item_id, mask=mask), *(values[index] for index in sorted(values))]
        return self

    def items(self) -> Iterator[tuple[TypedItem, list[int]]]:
        """The typed items, each with the words that follow its first."""
        return typed_items(self.typed)

    @property
    def tag(self) -> MsgTag:
        """MR0 as the content requires."""
        if len(self.untyped) + len(self.typed) >= MESSAGE_REGISTERS:
            raise LabError(
                f"A message has {MESSAGE_REGISTERS - 1} words, not {len(self.untyped)} untyped and "
                f"{len(self.typed)} typed. Send a string item, or several messages."
            )
        return MsgTag.make(label=self.label, untyped=len(self.untyped), typed=len(self.typed))

    def words(self) -> list[int]:
        """The message registers, MR0 first."""
        return [self.tag, *self.untyped, *self.typed]
