# SPDX-License-Identifier: GPL-2.0-or-later
"""UTCB, KIP, frame and system calls: the values that compiled programs depend on."""

from __future__ import annotations

import pytest

from l4lab.abi import frame, kip, utcb
from l4lab.abi.calls import CONVENTIONS, KIP_ENTRIES, ExregsControl, SystemCall
from l4lab.abi.kip import Kip, MemoryDescriptor, MemoryType, ServerRegion
from l4lab.abi.kip_build import build_kip
from l4lab.words import Rights

ENTRIES = {call.entry_name: 16 * number for number, call in enumerate(KIP_ENTRIES)}
MEMORY = [
    MemoryDescriptor(MemoryType.CONVENTIONAL, 0, 0x03FF_FFFF),
    MemoryDescriptor(MemoryType.RESERVED, 0x0010_0000, 0x001F_FFFF),
    MemoryDescriptor(MemoryType.ARCHITECTURE, 0xA0000, 0xBFFFF, subtype=2),
    MemoryDescriptor(MemoryType.CONVENTIONAL, 0, 0xDFFF_FFFF, virtual=True),
]


def page(**changes: object) -> bytes:
    """A KIP of a machine with 64 MiB."""
    facts: dict[str, object] = {
        "memory": MEMORY,
        "stubs": bytes(range(176)),
        "entries": ENTRIES,
        "external_khz": 100_000,
        "internal_khz": 1_000_000,
        "features": ("ctrlxfer", "x86-hvm"),
        "root": ServerRegion(0, 0x40_0000, 0x40_0000, 0x41_0000),
    }
    return build_kip(**(facts | changes))  # type: ignore[arg-type]


def test_the_words_of_the_kip_are_those_that_programs_observe() -> None:
    """Each word of the reference's page that a program was seen to rely on."""
    words = Kip(page())

    assert bytes((0x4C, 0x34, 0xE6, 0x4B)) == words.page[:4]
    assert (words.api_version, words.api_flags) == (0x8405_0000, 0)
    assert tuple(words.word(at) for at in (kip.UTCB_INFO, kip.KIP_AREA_INFO, kip.THREAD_INFO, kip.PAGE_INFO)) == (
        0x000C_2401,
        0xC,
        0x0300_1011,
        0x0040_1006,
    )
    assert (words.kernel_id.id, words.kernel_id.subid) == (4, 2)
    assert words.word(kip.PROCESSOR_INFO) == 0x4000_0000
    assert words.page_info.rights == Rights.R | Rights.W


def test_the_kip_reads_back_as_built() -> None:
    """Memory, features, processors, servers and entries."""
    words = Kip(page())

    assert len(words.page) == kip.SIZE
    assert tuple(MEMORY) == words.memory
    assert words.features == ("ctrlxfer", "x86-hvm")
    assert (words.version_string, words.supplier) == ("l4lab 0.1", "l4lb")
    assert [(p.external_khz, p.internal_khz) for p in words.processors] == [(100_000, 1_000_000)]
    assert ServerRegion(0, 0x40_0000, 0x40_0000, 0x41_0000) == words.server(kip.ROOT_REGION)
    assert bytes(range(176)) == words.page[kip.STUBS : kip.STUBS + 176]
    assert [kip.STUBS + 16 * n for n in range(11)] == [words.entry(call) for call in KIP_ENTRIES]
    assert words.memory_info.offset % 16 == 0


def test_a_kip_without_features_has_none() -> None:
    """The list of strings ends where it should."""
    assert Kip(page(features=())).features == ()


def test_entries_are_where_the_manual_puts_them() -> None:
    """Ipc at 0xe0, Schedule at 0xf8."""
    assert tuple(
        kip.entry_offset(c)
        for c in (SystemCall.SPACE_CONTROL, SystemCall.IPC, SystemCall.EXCHANGE_REGISTERS, SystemCall.SCHEDULE)
    ) == (0xD0, 0xE0, 0xEC, 0xF8)


@pytest.mark.parametrize(
    "changes",
    [{"entries": {}}, {"stubs": bytes(2049)}, {"memory": MEMORY * 60}, {"features": ("x" * 2000,)}],
)
def test_what_does_not_fit_a_kip_is_refused(changes: dict[str, object]) -> None:
    """Nothing is cut off in silence."""
    with pytest.raises(ValueError, match=r"entries|fit|room"):
        page(**changes)


def test_a_memory_descriptor_is_made_of_kilobytes() -> None:
    """Other bounds cannot be encoded."""
    with pytest.raises(ValueError, match="whole kilobytes"):
        MemoryDescriptor(MemoryType.SHARED, 0, 0x1234).encode()


def test_only_a_kip_is_read_as_one() -> None:
    """The magic word is checked."""
    with pytest.raises(ValueError, match="no KIP"):
        Kip(bytes(4096))


def test_utcb_fields_are_where_the_table_has_them() -> None:
    """Byte offsets and word indices of section 2."""
    assert (utcb.mr(63), utcb.br(0), utcb.br(32)) == (252, -64, -192)
    assert (
        utcb.MY_GLOBAL_ID, utcb.PAGER, utcb.EXCEPTION_HANDLER, utcb.ERROR_CODE, utcb.VIRTUAL_SENDER,
    ) == (-60, -48, -44, -36, -24)  # fmt: skip
    assert (utcb.WORD_INDEX["BR0"], utcb.WORD_INDEX["PreemptionFlags"], utcb.WORD_INDEX["ThreadWord0"]) == (
        -16,
        -10,
        -4,
    )


def test_utcb_registers_end() -> None:
    """There is no MR64 and no BR33."""
    with pytest.raises(ValueError, match="no MR64"):
        utcb.mr(64)
    with pytest.raises(ValueError, match="no BR33"):
        utcb.br(33)


def test_the_frame_has_the_order_of_gpregs() -> None:
    """EIP first, EAX last; a register number of the CPU finds its slot."""
    assert [frame.REGISTER_NAMES[frame.of_gpr(n)] for n in range(8)] == [
        "EAX", "ECX", "EDX", "EBX", "ESP", "EBP", "ESI", "EDI",
    ]  # fmt: skip
    assert frame.REGISTER_NAMES[frame.EBX] == "EBX"
    assert frame.FRAME_SIZE == 40


def test_every_call_has_a_convention_with_distinct_registers() -> None:
    """No register carries two arguments, and arguments can be read by name."""
    assert set(SystemCall) == set(CONVENTIONS)
    for convention in CONVENTIONS.values():
        assert len(convention.inputs) == len(set(convention.inputs.values()))
        assert len(convention.outputs) == len(set(convention.outputs.values()))
    registers = list(range(10))
    assert CONVENTIONS[SystemCall.IPC].read_inputs(registers)["To"] == frame.EAX
    assert CONVENTIONS[SystemCall.IPC].read_outputs(registers)["MR1"] == frame.EBX
    assert SystemCall.EXCHANGE_REGISTERS.title == "ExchangeRegisters"


def test_starting_a_thread_without_a_message_takes_srsi() -> None:
    """Cancel send and receive, set SP and IP: 0x1e."""
    wanted = ExregsControl.ABORT_SEND | ExregsControl.ABORT_RECEIVE | ExregsControl.SP | ExregsControl.IP

    assert wanted == 0x1E
