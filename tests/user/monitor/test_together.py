# SPDX-License-Identifier: GPL-2.0-or-later
"""Several virtual machines, and machines with several CPUs, on the real kernel, under both kinds of paging."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from l4lab.abi.ids import ThreadId
from l4lab.errors import LabError
from l4lab.kernel import invariants
from l4lab.kernel.events import ThreadDeleted, VmExit
from l4lab.rig.rig import Rig
from l4lab.user.asm import assemble
from l4lab.user.guests import greeting, linked, misbehave, tinyos, twins
from l4lab.user.guests.flat import COM1, ORIGIN, FlatGuest
from l4lab.user.host import Host, NativePlan, VmPlan
from l4lab.user.monitor.outcome import End, Outcome
from l4lab.user.monitor.together import START_PORT

SECOND = 10**9
MIB = 1 << 20

# A native program that says a word through the root task, and ends.
SPEAKER = """
        mov     ebx, text
.next:  movzx   ecx, byte ptr [ebx]
        test    ecx, ecx
        jz      .end
        mov     edi, gs:[0]
        mov     dword ptr [edi + 4], 0
        mov     [edi + 8], ecx
        mov     esi, PUT << 16 | 2
        call    tell
        inc     ebx
        jmp     .next
.end:   mov     edi, gs:[0]
        mov     dword ptr [edi + 4], 0
        mov     esi, ENDED << 16 | 1
        call    tell
        jmp     $
tell:   push    ebx
        mov     eax, ROOT
        mov     edx, 0
        mov     ecx, 0
        call    Ipc
        pop     ebx
        ret
text:   .asciz  "hello\\n"
"""


@pytest.fixture(params=["nested", "shadow"])
def shadow(request: pytest.FixtureRequest) -> bool:
    """Whether the machines of a test have shadow page tables."""
    return bool(request.param == "shadow")


def vm(name: str, guest: FlatGuest, shadow: bool, cpus: int = 1, **options: int) -> VmPlan:
    """A virtual machine of 4 MiB, one page."""
    return replace(VmPlan.flat(name, guest, shadow, cpus), **{"memory_size": 4 * MIB, **options})  # type: ignore[arg-type]


def run(host: Host, seconds: float = 5, check: bool = False) -> Rig:
    """Run it to its end; with `check`, the invariants are asked for after each kernel entry."""
    rig = Rig.for_host(host)
    if check:
        while rig.over() is None and rig.kernel.run(int(seconds * SECOND), one_entry=True) in ("event", "halted"):
            invariants.check(rig.kernel)
    stop = rig.run_until(int(seconds * SECOND))
    assert [] == [died.text for _, died in rig.kernel.deaths]
    assert stop.finished, stop
    return rig


def outcomes(rig: Rig) -> dict[str, Outcome]:
    """How guests have ended, by name."""
    assert rig.host is not None
    return rig.host.outcomes


def said(rig: Rig, name: str) -> list[str]:
    """The lines of one of them."""
    lines = bytes(rig.console).decode().split("\r\n")
    return [line.removeprefix(f"{name}: ") for line in lines if line.startswith(f"{name}: ")]


def guest_from(source: str, **constants: int) -> FlatGuest:
    return FlatGuest.of(assemble(source, ORIGIN, constants=COM1 | constants), "a test's own")


# -- several machines


@pytest.mark.parametrize("together", [False, True], ids=["a monitor each", "one monitor"])
def test_machines_and_a_native_program_run_side_by_side(shadow: bool, together: bool) -> None:
    """Do three guests and a native program say all that they say alone, and do the guests end as they do alone?"""
    guests = [vm("os", tinyos.build(), shadow), vm("twins", twins.build(50), shadow, cpus=2)]
    guests.append(vm("hello", greeting.build(), shadow))
    host = Host([guests] if together else [[guest] for guest in guests], natives=[NativePlan("native", SPEAKER)])

    rig = run(host)

    assert tinyos.expected_console("GenuineIntel").split("\r\n")[:-1] == said(rig, "os")
    assert ["100"] == said(rig, "twins")
    assert greeting.expected_console("GenuineIntel").split("\r\n")[:-1] == said(rig, "hello")
    assert ["hello"] == said(rig, "native")
    assert {"os": End.POWERED_OFF, "twins": End.HALTED, "hello": End.HALTED} == {
        name: outcome.end for name, outcome in outcomes(rig).items()
    }


POLLER = """
start:  mov     edx, COM1 + 5
        mov     ecx, 3000               ; many time slices
.poll:  in      al, dx
        dec     ecx
        jnz     .poll
        mov     edx, COM1
        mov     al, 'x'
        out     dx, al
        mov     al, 10
        out     dx, al
        cli
        hlt
"""


def test_two_guests_that_only_exit_take_turns(shadow: bool) -> None:
    """Two guests that do nothing but read a port, under one monitor: has the second begun before the first is done?"""
    host = Host([[vm(name, guest_from(POLLER), shadow, time_slice_us=5) for name in ("one", "two")]])

    rig = run(host)

    exits = [event for event in rig.trace.select(VmExit) if isinstance(event, VmExit)]
    each = {event.vcpu for event in exits}
    ends = [max(event.at for event in exits if event.vcpu == vcpu) for vcpu in each]
    begins = [min(event.at for event in exits if event.vcpu == vcpu) for vcpu in each]
    assert 2 == len(ends)
    assert max(begins) < min(ends)


SPY = """
SECRET = 0x5EC2E700                     ; no guest's code holds any of them
start:  mov     esp, 0x140000
        mov     edi, 0x180000
        mov     eax, ~SECRET ^ ME
        not     eax
        mov     ecx, 100
        cld
        rep     stosd
        mov     ecx, 200000             ; until the other has written its own
.wait:  dec     ecx
        jnz     .wait
        mov     ebx, ~SECRET ^ ME
        call    search
        mov     ebx, ~SECRET ^ OTHER
        call    search
        mov     al, 10
        mov     edx, COM1
        out     dx, al
        cli
        hlt

; Is NOT EBX anywhere? All of the memory is searched, and each 4 MiB beyond a little. Prints 1 or 0.
search: not     ebx
        mov     esi, 0
        mov     edx, '0'
.next:  cmp     [esi], ebx
        je      .found
        add     esi, 4
        cmp     esi, 0x400000
        jb      .next
.far:   cmp     [esi + 0x180000], ebx
        je      .found
        add     esi, 0x400000
        cmp     esi, 0x20000000
        jb      .far
        jmp     .print
.found: mov     edx, '1'
.print: mov     eax, edx
        mov     edx, COM1
        out     dx, al
        ret
"""


ECHO = """
next:   mov     dx, COM1_LSR
.wait:  mov     ecx, 2000               ; long enough to lose its turn
        loop    $
        in      al, dx
        test    al, 1
        jz      .wait
        mov     dx, COM1
        in      al, dx
        out     dx, al
        cmp     al, '.'
        jne     next
        cli
        hlt
"""  # says what it hears, up to a full stop


@pytest.mark.parametrize("together", [False, True], ids=["apart", "together"])
def test_what_is_typed_goes_to_one_of_them(together: bool) -> None:
    """Are keys the first one's until Ctrl-A n makes them the next one's, and the last one's when no other is left?"""
    echo = FlatGuest.of(assemble(ECHO, ORIGIN, constants=COM1), "says what it hears")
    plans = [vm(name, echo, False, time_slice_us=1) for name in ("one", "two")]  # they wait in loops
    rig = Rig.for_host(Host([plans] if together else [[plan] for plan in plans]))
    rig.run(4 * 10**6)
    for text in (b"first\n", b"\x01nsecond " + b"long " * 60, b"line\n", b"\x01n\x01\x01.", b"last."):
        rig.type(text)
        rig.run(4 * 10**6)

    assert ["first", "\x01."] == said(rig, "one")
    assert ["second " + "long " * 60 + "line", "last."] == said(rig, "two")
    assert b"the keyboard is two's\r\n" in bytes(rig.console)
    assert rig.over() is not None


@pytest.mark.parametrize("together", [False, True], ids=["a monitor each", "one monitor"])
def test_no_machine_sees_the_memory_of_another(shadow: bool, together: bool) -> None:
    """Does a guest that searches all of its guest-physical space find its own word, and not the other guest's?"""
    one = vm("one", guest_from(SPY, ME=1, OTHER=2), shadow, time_slice_us=50)
    two = vm("two", guest_from(SPY, ME=2, OTHER=1), shadow, time_slice_us=50)

    rig = run(Host([[one, two]] if together else [[one], [two]]))

    assert [["10"], ["10"]] == [said(rig, "one"), said(rig, "two")]


@pytest.mark.parametrize("together", [False, True], ids=["a monitor each", "one monitor"])
def test_the_death_of_one_leaves_the_others_running(shadow: bool, together: bool) -> None:
    """Does the other machine go on to its own end when one dies of a triple fault, be it on its second CPU?"""
    second = f"start: mov eax, next\n mov edx, {START_PORT + 4}\n out dx, eax\n jmp $\n"
    dying = guest_from(second + misbehave.TRIPLE_FAULT_SOURCE.replace("start:", "next:"))
    guests = [vm("dying", misbehave.triple_fault(), shadow), vm("half", dying, shadow, cpus=2)]
    guests.append(vm("os", tinyos.build(), shadow))
    host = Host([guests] if together else [[guest] for guest in guests])

    rig = run(host)

    assert tinyos.expected_console("GenuineIntel").split("\r\n")[:-1] == said(rig, "os")
    assert [End.TRIPLE_FAULT, End.TRIPLE_FAULT, End.POWERED_OFF] == [
        outcomes(rig)[name].end for name in ("dying", "half", "os")
    ]
    assert "CPU 1" in outcomes(rig)["half"].why


def test_what_has_ended_leaves_nothing_behind(shadow: bool) -> None:
    """Are all threads and spaces gone at the end, and the kernel's frames free, but for those of register frames?"""
    host = Host([[vm("a", twins.build(20), shadow, cpus=2)], [vm("b", greeting.build(), shadow)]])
    rig = Rig.for_host(host)
    frames = rig.kernel.frames.used - len(rig.kernel.register_frames.pages)
    threads = set(rig.kernel.threads)

    rig.run()

    assert frames == rig.kernel.frames.used - len(rig.kernel.register_frames.pages)
    assert threads == set(rig.kernel.threads)
    deleted = [ThreadId.decode(event.thread) for event in rig.trace if isinstance(event, ThreadDeleted)]
    assert 5 == sum(not thread.is_interrupt for thread in deleted)


def test_two_runs_give_the_same_trace_to_the_byte(shadow: bool, tmp_path: Path) -> None:
    """Is the trace of linked machines beside one with two CPUs the same each time?"""
    for name in ("first", "second"):
        rig = run(Host([*lines(shadow), [vm("t", twins.build(100), shadow, 2, time_slice_us=3)]], [("left", "right")]))
        rig.trace.save(tmp_path / name)

    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


GREEDY = """
DIRECTORY = 0x180000
start:  mov     edi, DIRECTORY          ; all of its addresses lead to the same 4 MiB
        mov     ecx, 1024
        mov     eax, 0x87
        cld
        rep     stosd
        mov     eax, DIRECTORY
        mov     cr3, eax
        mov     eax, cr4
        or      eax, 0x10
        mov     cr4, eax
        mov     eax, cr0
        or      eax, 0x80000000
        mov     cr0, eax
        mov     ecx, 20
.round: mov     ebx, 0
.next:  mov     eax, [ebx]              ; takes a shadow table of its own
        add     ebx, 0x400000
        jnz     .next
        dec     ecx
        jnz     .round
        cli
        hlt
"""


def test_machines_that_use_up_the_kernels_frames_do_not_stop_others() -> None:
    """Do all come to their end when the shadow tables of some take every frame that the kernel has?"""
    memory = 2 * MIB  # not enough for a large page, so that each 4 MiB of addresses take a table
    greedy = [vm(f"greedy {n}", guest_from(GREEDY), True, memory_size=memory, time_slice_us=100) for n in range(3)]
    host = Host([[guest] for guest in (*greedy, vm("os", tinyos.build(), True))])
    rig = Rig.for_host(host)
    available = []

    while not rig.run(50_000).finished and rig.machine.cycles < SECOND:
        available.append(rig.kernel.frames.available)

    assert 0 == min(available)
    assert [End.HALTED] * 3 + [End.POWERED_OFF] == [outcomes(rig)[plan[0].name].end for plan in host.monitors]
    assert tinyos.expected_console("GenuineIntel").split("\r\n")[:-1] == said(rig, "os")


def test_a_native_program_that_strays_ends_alone(shadow: bool) -> None:
    """Is a program that touches memory which is not its own deleted, with a line that says so, and nobody else?"""
    host = Host([[vm("hello", greeting.build(), shadow)]], natives=[NativePlan("stray", "mov eax, [0x12345678]")])

    rig = run(host)

    assert ["touched 0x12345678, where it has no memory"] == said(rig, "stray")
    assert greeting.expected_console("GenuineIntel").split("\r\n")[:-1] == said(rig, "hello")


def test_what_a_monitor_could_not_do_is_told() -> None:
    """Does a run stop with the reason when a monitor cannot give its guest the memory that it was to have?"""
    plans = [vm("a", greeting.build(), False), replace(vm("b", greeting.build(), False), memory_size=MIB + 1)]

    stop = Rig.for_host(Host([[plan] for plan in plans])).run(SECOND)

    assert "died" == stop.reason
    assert "Give it whole pages" in stop.detail


def test_mistakes_in_the_plan_are_told() -> None:
    """Does a link to nobody, a name twice and a ninth CPU each give an error that says what to do?"""
    guest = vm("a", greeting.build(), False)
    with pytest.raises(LabError, match="Link those that there are: a"):
        Host([[guest]], [("a", "b")])
    with pytest.raises(LabError, match="a name of its own"):
        Host([[guest, guest]])
    with pytest.raises(LabError, match="1 to 8"):
        Host([[replace(guest, cpus=9)]])


# -- the line and the page between two


def lines(shadow: bool, shares: bool = False) -> Sequence[Sequence[VmPlan]]:
    """Two monitors, each with one guest, that talk."""
    left = vm("left", linked.caller(["stressed", "no lemon"], shares), shadow, shares=shares)
    return [left], [vm("right", linked.answerer(shares), shadow, shares=shares)]


ANSWERS = ["back came: desserts", "back came: nomel on"]
QUESTIONS = ["there came: stressed", "there came: no lemon"]


@pytest.mark.parametrize("together", [False, True], ids=["a monitor each", "one monitor"])
def test_two_machines_talk_over_a_serial_line(shadow: bool, together: bool) -> None:
    """Does each line arrive whole at the other machine, and its answer back, with all invariants in force?"""
    left, right = lines(shadow)
    rig = run(Host([[*left, *right]] if together else [left, right], [("left", "right")]), check=True)

    assert [ANSWERS, QUESTIONS] == [said(rig, "left"), said(rig, "right")]


def test_two_machines_share_a_page(shadow: bool) -> None:
    """Does the second machine read what the first has written into the page that both have?"""
    rig = run(Host(lines(shadow, shares=True), [("left", "right")]))

    assert [f"the page says: {linked.NOTE}", *QUESTIONS] == said(rig, "right")


def test_a_guest_whose_partner_is_gone_goes_on(shadow: bool) -> None:
    """Does a guest that writes to a line nobody listens at any more still come to its end?"""
    chatter = guest_from(
        "start: mov ecx, 1000\n mov edx, 0x2f8\n.next: out dx, al\n dec ecx\n jnz .next\n"
        " mov al, 10\n mov edx, COM1\n out dx, al\n cli\n hlt"
    )
    host = Host([[vm("left", chatter, shadow)], [vm("right", misbehave.triple_fault(), shadow)]], [("left", "right")])

    rig = run(host)

    assert [""] == said(rig, "left")


# -- several CPUs


@pytest.mark.parametrize("slice_us", [1, 2, 3, 7])
def test_two_cpus_count_exactly(shadow: bool, slice_us: int) -> None:
    """Is the sum exact, wherever in the loop the one CPU had to make way for the other?"""
    turns = 3000  # slices end at every instruction of the loop, since their lengths have no common divisor

    rig = run(Host([[vm("t", twins.build(turns), shadow, 2, time_slice_us=slice_us)]]))

    assert [str(2 * turns)] == said(rig, "t")


def test_without_the_lock_they_do_not(shadow: bool) -> None:
    """Would the test above notice: is the sum of CPUs that do not lock too small?"""
    rig = run(Host([[vm("t", twins.build(3000, locking=False), shadow, 2, time_slice_us=1)]]))

    assert int(said(rig, "t")[0]) < 6000


def test_the_invariants_hold_while_two_cpus_run(shadow: bool) -> None:
    """Do they hold after each kernel entry of a machine with two CPUs that preempt each other?"""
    rig = run(Host([[vm("t", twins.build(200), shadow, 2, time_slice_us=1)]]), check=True)

    assert ["400"] == said(rig, "t")


REMAPPING = """
DIRECTORY = 0x120000
TABLE     = 0x121000
PAGE_A    = 0x130000
PAGE_B    = 0x131000
SEEN      = 0x140000                    ; where the page is seen that moves
start:  mov     esp, 0x12E000
        cld
        mov     edi, DIRECTORY
        mov     ecx, 1024
        mov     eax, 0
        rep     stosd
        mov     edi, TABLE
        mov     eax, 3
.fill:  mov     [edi], eax
        add     edi, 4
        add     eax, 4096
        cmp     eax, 4 << 20
        jb      .fill
        mov     dword ptr [DIRECTORY], TABLE + 3
        mov     dword ptr [PAGE_A], PAGE_A
        mov     dword ptr [PAGE_B], PAGE_B
        mov     eax, second
        mov     edx, START_PORT + 4
        out     dx, eax
        call    paging_on
        mov     ecx, ROUNDS
        mov     ebx, PAGE_A
.round: mov     eax, [SEEN]             ; let this CPU know the old page, too
        xor     ebx, PAGE_A ^ PAGE_B
        lea     eax, [ebx + 3]
        mov     [TABLE + (SEEN >> 12) * 4], eax
        invlpg  [SEEN]
        cmp     [SEEN], ebx
        je      .good
        inc     dword ptr [wrong]
.good:  mov     [wanted], ebx           ; the other one's turn
.wait:  pause
        cmp     dword ptr [wanted], 0
        jne     .wait
        dec     ecx
        jnz     .round
        mov     eax, [wrong]
        add     al, '0'
        mov     edx, COM1
        out     dx, al
        mov     al, 10
        out     dx, al
        cli
        hlt

second: mov     esp, 0x12F000
        call    paging_on
.next:  pause
        mov     eax, [SEEN]
        mov     ebx, [wanted]
        test    ebx, ebx
        jz      .next
        FORGET
        cmp     [SEEN], ebx
        je      .good
        inc     dword ptr [wrong]
.good:  mov     dword ptr [wanted], 0
        jmp     .next

paging_on:
        mov     eax, DIRECTORY
        mov     cr3, eax
        mov     eax, cr0
        or      eax, 0x80000000
        mov     cr0, eax
        ret
        .align  4096
wanted: .long   0
wrong:  .long   0
"""


@pytest.mark.parametrize("forget", ["invlpg [SEEN]", "mov eax, cr3\n mov cr3, eax"], ids=["INVLPG", "CR3"])
@pytest.mark.parametrize("slice_us", [1, 5])
def test_a_cpu_sees_anothers_change_of_a_page_table(shadow: bool, forget: str, slice_us: int) -> None:
    """After its own INVLPG or load of CR3, does a CPU always see the entry that the other one has written?"""
    guest = guest_from(REMAPPING.replace("FORGET", forget), START_PORT=START_PORT, ROUNDS=40)

    rig = run(Host([[vm("t", guest, shadow, 2, time_slice_us=slice_us)]]))

    assert ["0"] == said(rig, "t")


def test_a_cpu_starts_once_and_only_where_there_is_one(shadow: bool) -> None:
    """Are starts of CPUs that run or that there are none ignored, and does the port tell how many CPUs there are?"""
    guest = guest_from(
        f"start: mov edx, {START_PORT}\n in eax, dx\n add al, '0'\n mov edx, COM1\n out dx, al\n"
        + "".join(f" mov edx, {START_PORT + 4 * n}\n mov eax, other\n out dx, eax\n" for n in (0, 1, 1, 2, 3, 7))
        + f" mov edx, {START_PORT + 4}\n mov ax, 5\n out dx, ax\n mov ecx, 3000\n"
        + ".wait: pause\n dec ecx\n jnz .wait\n"
        + " mov eax, [count]\n add al, '0'\n mov edx, COM1\n out dx, al\n mov al, 10\n out dx, al\n cli\n hlt\n"
        + "other: lock add [count], eax\n hlt\n hlt\n jmp other\n .align 4096\ncount: .long 0\n"
    )

    rig = run(Host([[vm("t", guest, shadow, 3, time_slice_us=20)]]))

    assert ["33"] == said(rig, "t"), "three CPUs; CPUs 1 and 2 have each added their number"
