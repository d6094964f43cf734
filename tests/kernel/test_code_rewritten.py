# SPDX-License-Identifier: GPL-2.0-or-later
"""Code that is written, executed, written anew by any route, and executed again: the CPU runs what memory holds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4lab.abi.fpage import Fpage
from l4lab.abi.ids import NIL_THREAD, ROOT_TASK
from l4lab.abi.message import Message, StringItem
from l4lab.abi.protocols import is_page_fault
from l4lab.abi.time import period
from l4lab.abi.vm import ExitReason
from l4lab.kernel.objects.thread import MR
from l4lab.rig.rig import Rig
from l4lab.testing import MEMORY, PAGE, Root, run
from l4lab.user.asm import assemble
from l4lab.user.guests.flat import ORIGIN, RAM_SIZE, FlatGuest
from l4lab.user.l4 import L4, IpcFailed
from l4lab.user.monitor.fault import Fault, Reply
from l4lab.user.monitor.monitor import Monitor
from l4lab.user.monitor.start_flat import start_of

CORES = pytest.mark.parametrize("core", ["native", "python"])
PLACE = MEMORY.base + 0x2000  # a page that all routes but messages write
SOURCE = MEMORY.base + 0x3000  # where strings come from
OWN_MR, RUNNERS_MR = 40, 4  # message registers that hold code: of the root task, of the runner
STRING = 6  # bytes of the code below

# Called with EBX and ESI from the message: what the runner does.
RUNNER = f"""
again:
  mov edi, dword ptr gs:[0]
  mov dword ptr [edi - 64], 1
  mov dword ptr [edi - 68], {StringItem.make(length=STRING):#x}
  mov dword ptr [edi - 72], {PLACE:#x}
  xor ecx, ecx
  xor eax, eax
  mov edx, {int(ROOT_TASK):#x}
  call Ipc
  mov edi, dword ptr gs:[0]
  mov edx, dword ptr [edi + 4]
  mov ebx, dword ptr [edi + 8]
  mov esi, dword ptr [edi + 12]
  call edx
  mov edi, dword ptr gs:[0]
  mov dword ptr [edi + 4], eax
  mov esi, 1
  mov eax, {int(ROOT_TASK):#x}
  xor edx, edx
  xor ecx, ecx
  call Ipc
  jmp again
poke:
  mov dword ptr [ebx + 1], esi
  ret
input:
  lea edi, [ebx + 1]
  mov dx, 0x3ff
  mov eax, esi
  out dx, al
  insb
  ret
"""


def code(value: int) -> bytes:
    """mov eax, value; ret."""
    return b"\xb8" + value.to_bytes(4, "little") + b"\xc3"


def words(value: int) -> list[int]:
    """The same, as words of a message."""
    return list(memoryview(code(value).ljust(8, b"\x90")).cast("I"))


def by_hosted_store(r: Root, call: Call, value: int) -> int:
    """A program in Python stores to its memory."""
    r.store(PLACE, code(value))
    return call(PLACE)


def by_string(r: Root, call: Call, value: int) -> int:
    """The kernel copies a string."""
    r.store(SOURCE, code(value))
    return call(PLACE, string=True)


def by_program(r: Root, call: Call, value: int) -> int:
    """A native program stores."""
    call(call.poke, PLACE, value)
    return call(PLACE)


def by_port_input(r: Root, call: Call, value: int) -> int:
    """INS: a device's byte is stored by the kernel."""
    r.store(PLACE + 2, bytes(3))
    call(call.input, PLACE, value & 0xFF)
    return call(PLACE)


def by_message(r: Root, call: Call, value: int) -> int:
    """The code lies in the message registers that a message has filled."""
    return call(call.registers + 4 * RUNNERS_MR, words_=words(value))


def by_own_utcb(r: Root, call: Call, value: int) -> int:
    """The code lies in the UTCB of a program in Python, which writes it there."""
    r.cpu.utcb.put(MR + OWN_MR, words(value))
    return call(r.system.thread(r.my_id).local_id + 4 * OWN_MR)


def by_own_utcb_word_by_word(r: Root, call: Call, value: int) -> int:
    """The same, one word at a time."""
    for i, word in enumerate(words(value)):
        r.cpu.utcb[MR + OWN_MR + i] = word
    return call(r.system.thread(r.my_id).local_id + 4 * OWN_MR)


Route = Callable[[Root, "Call", int], int]
ROUTES: tuple[Route, ...] = (
    *(by_hosted_store, by_string, by_program, by_port_input, by_message),
    *(by_own_utcb, by_own_utcb_word_by_word),
)


@dataclass
class Call:
    """Has the runner call an address; what it finds in EAX then."""

    root: Root
    runner: int
    registers: int  # address of the runner's MR0
    poke: int
    input: int

    def __call__(
        self, address: int, ebx: int = 0, esi: int = 0, string: bool = False, words_: Sequence[int] = ()
    ) -> int:
        message = Message(2).append(address, ebx, esi, *words_)
        if string:
            message.append_string(SOURCE, STRING)
        self.root.send(self.runner, message)
        return int(self.root.receive(self.runner).untyped[0])


STEPS = st.lists(st.tuples(st.sampled_from(ROUTES), st.integers(1, 0xFF)), min_size=2, max_size=12)


@CORES
def test_what_was_written_last_is_executed(core: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Does the CPU execute what lies in memory, whoever has put it there over code that has run before?"""
    monkeypatch.setenv("L4LAB_ENGINE", core)

    @settings(max_examples=25, deadline=None)
    @given(STEPS)
    def check(steps: list[tuple[Route, int]]) -> None:
        got: list[int] = []

        def main(r: Root) -> None:
            r.store(PLACE, code(0))
            r.ports(0x3F8, 3)
            runner = r.native(RUNNER)
            registers = r.system.thread(runner.id).local_id
            call = Call(r, runner.id, registers, runner.at("poke"), runner.at("input"))
            got.extend(route(r, call, value) for route, value in steps)

        run(main, check=False)
        assert [value for _, value in steps] == got

    check()


@CORES
def test_a_frame_of_another_life_holds_no_code(core: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Does a thread that gets a deleted space's frame for its UTCB find no code there, neither to read nor to run?"""
    monkeypatch.setenv("L4LAB_ENGINE", core)
    program = f"""
      mov ebp, dword ptr gs:[0]
      add ebp, 0x700
      {{store}}
      xor eax, eax
      call ebp
      mov dword ptr [{SOURCE} + {{slot}}], eax
    stay: jmp stay
    """
    store = "\n".join(f"mov dword ptr [ebp + {4 * i}], {word:#x}" for i, word in enumerate(words(0x2222)))
    ran: list[int] = []
    frames: list[set[int]] = []

    def main(r: Root) -> None:
        r.store(SOURCE, bytes(64))
        for slot, first in enumerate((store, store, "", "", "")):
            space = r.space()
            thread = r.native(program.format(store=first, slot=4 * slot), space=space, priority=50)
            with contextlib.suppress(IpcFailed):
                while True:
                    fault = r.receive(thread.id, timeout=period(20_000))
                    if not is_page_fault(fault.label) or not MEMORY.covers(fault.untyped[0]):
                        break  # it executed zeros up to the end of the page
                    page = Fpage.at(fault.untyped[0] & -PAGE)
                    r.send(thread.id, Message().append_map(page, page.base))
            frames.append(set(r.system.thread(thread.id).space.own_frames()))
            r.thread_control(thread.id, NIL_THREAD)
            r.thread_control(space, NIL_THREAD)
        ran.extend(r.words(SOURCE, 5))

    run(main, check=False)

    assert (frames[0] | frames[1]) & (frames[2] | frames[3] | frames[4])
    assert [0x2222, 0x2222, 0, 0, 0] == ran


@CORES
@pytest.mark.parametrize("shadow", [False, True], ids=["nested", "shadow"])
def test_a_guest_executes_what_its_monitor_has_written(
    core: str, shadow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Does a guest whose code the monitor overwrites through its window execute the new code?"""
    monkeypatch.setenv("L4LAB_ENGINE", core)
    values = [3, 1, 4, 1, 5, 9, 2, 6]
    guest = assemble(
        f"""
        mov esp, 0x300000
        mov edi, 0x200000
    again:
        cpuid
        call routine
        stosd
        cmp edi, {0x200000 + 4 * len(values)}
        jb again
        cli
        hlt
        .align 16
    routine:
        mov eax, 0
        ret
        """,
        ORIGIN,
    )
    at, seen = guest.address("routine"), []

    def main(l4: L4) -> None:
        monitor = Monitor(l4, RAM_SIZE, shadow_paging=shadow)
        monitor.load([(ORIGIN, guest.code)])
        left, usual = iter(values), monitor.handlers[ExitReason.CPUID]

        def on_cpuid(fault: Fault, reply: Reply) -> None:
            monitor.memory.write(at, code(next(left)))
            usual(fault, reply)

        monitor.handlers[ExitReason.CPUID] = on_cpuid
        monitor.run(start_of(FlatGuest.of(guest, "")))
        seen.extend(memoryview(monitor.memory.read(0x200000, 4 * len(values))).cast("I"))

    Rig(main, RAM_SIZE + (16 << 20)).run()

    assert values == seen
