# SPDX-License-Identifier: GPL-2.0-or-later
"""Any message in readable lines: for traces, notebooks and error texts.

Lives here: the words of a message put into English. It decides nothing and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from l4lab.abi import protocols, vm
from l4lab.abi.fpage import Fpage
from l4lab.abi.frame import REGISTER_NAMES
from l4lab.abi.message import CtrlXferItem, GrantItem, MapItem, Message, MsgTag, StringItem, TypedItem
from l4lab.words import hex32


def label_text(label: int) -> str:
    """What a label means, as far as the kernel's protocols go; the label in hex otherwise."""
    names = {
        protocols.INTERRUPT: "interrupt",
        protocols.PREEMPTION: "preemption",
        protocols.SYSTEM_EXCEPTION: "system exception",
        protocols.ARCH_EXCEPTION: "exception",
        protocols.SIGMA0_REQUEST: "sigma0 request",
        protocols.IO_PAGE_FAULT: "I/O page fault",
        protocols.SIGMA0_EXTENDED: "sigma0 extended",
        vm.LAUNCH_LABEL: "VM launch",
        vm.REPLY_LABEL: "VM reply",
    }
    if label in names:
        return names[label]
    if protocols.is_page_fault(label):
        return f"page fault {protocols.page_fault_rights(label).text}"
    if vm.is_vm_fault(label):
        try:
            name = vm.reason_of(label).name
        except ValueError:
            return f"VM fault of unknown reason {label:#x}"
        return f"VM fault {name}{', internal' if vm.is_internal(label) else ''}"
    return f"{label:#x}"


def _untyped_names(label: int, count: int) -> list[str]:
    """What the untyped words of the kernel's protocols are called."""
    names: list[str] = []
    if protocols.is_page_fault(label):
        names = ["address", "IP"]
    elif label == protocols.IO_PAGE_FAULT:
        names = ["ports", "IP"]
    elif label == protocols.ARCH_EXCEPTION and count == protocols.EXCEPTION_WITH_ITEMS_WORDS:
        names = ["exception number", "error code"]
    elif label == protocols.ARCH_EXCEPTION:
        names = [REGISTER_NAMES[index] if index is not None else "" for index in protocols.EXCEPTION_FRAME]
        names[protocols.EXCEPTION_NUMBER_MR - 1] = "exception number"
        names[protocols.EXCEPTION_ERROR_MR - 1] = "error code"
    elif label == protocols.SIGMA0_REQUEST:
        names = ["wanted", "attribute"]
    elif vm.is_vm_fault(label):
        names = ["qualification", "instruction length", "additional information"]
    return (names + [""] * count)[:count]


def _item_text(item: TypedItem, rest: Sequence[int]) -> str:
    """One typed item and the words that belong to it."""
    if len(rest) < item.words - 1:
        return f"{item!r}, cut short"
    match item:
        case MapItem():
            verb = "grant" if isinstance(item, GrantItem) else "map"
            return f"{verb} {Fpage.decode(rest[0])!r} at send base {item.base:#x}"
        case StringItem():
            return f"string of {item.length} bytes at {', '.join(f'{pointer:#x}' for pointer in rest)}"
        case CtrlXferItem():
            try:
                item_id = vm.ItemId(item.id)
            except ValueError:
                return f"registers of unknown item {item.id}: {', '.join(map(hex32, rest))}"
            names = vm.ITEM_REGISTERS[item_id]
            values = (
                f"{names[index] if index < len(names) else f'#{index}'}={value:#x}"
                for index, value in zip(item.indices, rest, strict=True)
            )
            return f"{item_id.name}: {', '.join(values)}"
        case _:
            return repr(item)


def describe(words: Sequence[int]) -> list[str]:
    """A message, MR0 first, in readable lines: the tag, each untyped word, each typed item."""
    tag = MsgTag.decode(words[0])
    message = Message.of(words)
    lines = [f"MR0 {tag!r}: {label_text(tag.label)}"]
    names = _untyped_names(tag.label, len(message.untyped))
    for index, (name, word) in enumerate(zip(names, message.untyped, strict=True), start=1):
        lines.append(f"MR{index} {hex32(word)}" + (f" {name}" if name else ""))
    at = 1 + len(message.untyped)
    for item, rest in message.items():
        lines.append(f"MR{at} {_item_text(item, rest)}")
        at += item.words
    return lines
