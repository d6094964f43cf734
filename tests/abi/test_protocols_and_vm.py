# SPDX-License-Identifier: GPL-2.0-or-later
"""Labels, fault ids, register items and control words: the numbers of the reference's tables."""

from __future__ import annotations

import pytest

from l4lab.abi import protocols, vm
from l4lab.abi.fpage import NILPAGE, Fpage
from l4lab.abi.message import MsgTag
from l4lab.abi.utcb import MESSAGE_REGISTERS
from l4lab.abi.vm import ExitReason, InterruptionInfo, InterruptionType, ItemId
from l4lab.abi.vm_state import CR0_WRITABLE, INITIAL_STATE
from l4lab.words import Rights


def test_kernel_labels_are_those_of_the_table() -> None:
    """Section 5.1, one by one."""
    labels = (
        protocols.INTERRUPT, protocols.PAGE_FAULT, protocols.PREEMPTION, protocols.SYSTEM_EXCEPTION,
        protocols.ARCH_EXCEPTION, protocols.SIGMA0_REQUEST, protocols.IO_PAGE_FAULT, protocols.SIGMA0_EXTENDED,
    )  # fmt: skip

    assert labels == (0xFFF0, 0xFFE0, 0xFFD0, 0xFFC0, 0xFFB0, 0xFFA0, 0xFF86, 0xC170)


def test_a_page_fault_says_what_was_wanted() -> None:
    """Reads want r-x, writes -w-."""
    assert protocols.page_fault_label(Rights.R | Rights.X) == 0xFFE5
    assert protocols.page_fault_rights(0xFFE2) == Rights.W
    assert protocols.is_page_fault(0xFFE7)
    assert not protocols.is_page_fault(0xFFE8)
    assert protocols.fault_id(0xFFE5) == protocols.FaultId.PAGE_FAULT


def test_sigma0_is_asked_and_answers() -> None:
    """Request and answer read back; refusal is nilpage with 8 before it."""
    request = protocols.sigma0_request(protocols.any_page()).words()
    page = Fpage.at(0x20_0000)

    assert request == [0xFFA0_0002, 0xFFFF_FCC0, 0]
    assert protocols.is_sigma0_request(MsgTag(request[0]))
    assert protocols.is_any_page(Fpage(request[1]))
    assert protocols.sigma0_grant(NILPAGE).words() == [0x80, 8, 0]
    assert protocols.sigma0_granted(protocols.sigma0_grant(page, 0x20_0000).words()) == page
    assert protocols.sigma0_granted([0]) == NILPAGE


# f, fault id and label of section 11.1.
EXITS = [
    (0, 9, 0xFF70), (1, 10, 0xFF60), (2, 11, 0xFF50), (3, 12, 0xFF40), (4, 13, 0xFF30), (6, 15, 0xFF10),
    (7, 16, 0xFF00), (9, 18, 0xFEE0), (10, 19, 0xFED0), (12, 21, 0xFEB0), (13, 22, 0xFEA0), (14, 23, 0xFE90),
    (15, 24, 0xFE80), (16, 25, 0xFE70), (17, 26, 0xFE60), (18, 27, 0xFE50), (19, 28, 0xFE40), (20, 29, 0xFE30),
    (21, 30, 0xFE20), (22, 31, 0xFE10), (23, 32, 0xFE00), (24, 33, 0xFDF0), (25, 34, 0xFDE0), (26, 35, 0xFDD0),
    (27, 36, 0xFDC0), (28, 37, 0xFDB0), (29, 38, 0xFDA0), (30, 39, 0xFD90), (31, 40, 0xFD80), (32, 41, 0xFD70),
    (33, 42, 0xFD60), (34, 43, 0xFD50), (36, 45, 0xFD30), (39, 48, 0xFD00), (40, 49, 0xFCF0), (41, 50, 0xFCE0),
    (43, 52, 0xFCC0),
]  # fmt: skip


def test_exits_have_the_labels_of_the_table() -> None:
    """Every exit reason that is reported, its fault id and its label, both ways."""
    reported = [reason for reason in ExitReason if reason is not ExitReason.EPT_VIOLATION]
    computed = [(int(r), vm.fault_id_of(r), vm.label_of(r)) for r in reported]

    assert computed == EXITS
    for reason in reported:
        for internal in (False, True):
            label = vm.label_of(reason, internal)
            assert (reason, internal) == (vm.reason_of(label), vm.is_internal(label))
            assert vm.is_vm_fault(label)
            assert protocols.fault_id(label) == vm.fault_id_of(reason)


@pytest.mark.parametrize("label", [0xFF80, 0xFF86, 0xFFE5, 0xFCB0, 0xFC70, 0, 0xC170])
def test_other_labels_are_no_vm_faults(label: int) -> None:
    """The range ends on both sides."""
    assert not vm.is_vm_fault(label)
    with pytest.raises(ValueError, match="ExitReason"):
        vm.reason_of(label)


def test_items_have_the_counts_of_the_table() -> None:
    """Section 9.6, with six debug registers and no FPU registers; ours come behind, and fill one message."""
    counts = [len(vm.ITEM_REGISTERS[item]) for item in ItemId]

    assert counts == [10, 0, 8, 6, 4, 4, 4, 4, 4, 4, 4, 4, 2, 2, 10, 3, 9, 4, 20, 16, 16]
    assert sum(counts[ItemId.FPUCTRL :]) + 4 <= MESSAGE_REGISTERS - 1
    assert max(counts) <= 20
    assert vm.full_mask(ItemId.GPREGS) == 0x3FF
    for item, name, index in [
        (ItemId.CREGS, "CR4 mask", vm.CR4_MASK),
        (ItemId.DREGS, "DR7", vm.DR7),
        (ItemId.CS, "attributes", vm.ATTRIBUTES),
        (ItemId.NONREGEXC, "entry_ilen", vm.ENTRY_ILEN),
        (ItemId.NONREGEXC, "idt_eec", vm.IDT_EEC),
        (ItemId.OTHERREGS, "TPR threshold", vm.TPR_THRESHOLD),
        (ItemId.OTHERREGS, "DEBUGCTL high", vm.DEBUGCTL_HIGH),
    ]:
        assert vm.ITEM_REGISTERS[item][index] == name


def test_an_event_reads_as_the_cpu_reads_it() -> None:
    """A page fault to inject is 0x80000b0e."""
    event = InterruptionInfo.make(valid=1, error_code_valid=1, type=InterruptionType.HARDWARE_EXCEPTION, vector=14)

    assert event == 0x8000_0B0E
    assert "type=HARDWARE_EXCEPTION" in repr(event)


def test_qualifications_name_the_register_in_the_frame() -> None:
    """MOV EBX to CR0, IN AL from an immediate port."""
    assert vm.CrAccess.make(gpr=3, access=vm.CrAccessType.MOV_TO_CR).register == 6
    assert vm.DrAccess.make(gpr=0, from_dr=1, dr=7).register == 9
    access = vm.IoAccess(0x0064_0048)
    assert (access.port, access.is_in, access.immediate, access.width, access.string) == (0x64, True, True, 1, False)


def test_the_initial_state_is_complete() -> None:
    """Every register of every item has a value, and the words stated by the reference are these."""
    assert {item: len(names) for item, names in vm.ITEM_REGISTERS.items()} == {
        item: len(values) for item, values in INITIAL_STATE.items()
    }
    assert INITIAL_STATE[ItemId.EXECCTRL] == (0x1F, 0x6581_FFF2, 0xFFFF_FFFF)
    assert INITIAL_STATE[ItemId.CREGS][vm.CR0_SHADOW] == 0x6000_0010
    assert INITIAL_STATE[ItemId.TR][vm.ATTRIBUTES] == 0x808B
    assert vm.SegmentAttributes(INITIAL_STATE[ItemId.LDTR][vm.ATTRIBUTES]).unusable
    assert CR0_WRITABLE == 0x6005_0006
