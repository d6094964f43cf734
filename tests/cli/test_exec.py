# SPDX-License-Identifier: GPL-2.0-or-later
"""`l4lab exec` as a user has it: a native root task at a pipe and at a terminal, modules, and what cannot be run."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from l4lab.kernel import events
from l4lab.rig.trace import Trace
from l4lab.user import cc
from tests.cli.terminal import at_a_terminal, cpu_seconds, until

PATIENCE = "60"
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Builds a program from the body of its main."""
    numbers: Iterator[int] = iter(range(100))

    def make(body: str, before: str = "", base: int = cc.BASE) -> Path:
        source = tmp_path / f"program{next(numbers)}.c"
        source.write_text(f"#include <l4/l4.h>\n{before}\nint main(void)\n{{\n{body}\nreturn 0;\n}}\n")
        assert "" == cc.build(source, source.with_suffix(".elf"), base)
        return source.with_suffix(".elf")

    return make


def command(*arguments: str | Path) -> list[str]:
    """The command line that runs a program."""
    return [sys.executable, "-m", "l4lab", "exec", *map(str, arguments)]


def run(*arguments: str | Path, typed: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run without a terminal; `typed` comes by a pipe."""
    where = {"stdin": subprocess.DEVNULL} if typed is None else {"input": typed}
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, timeout=120, **where)


def test_a_program_runs_to_its_end(make: Make, tmp_path: Path) -> None:
    """Does a program that has nothing more to do end with status 0, and do stats and trace tell of it?"""
    stats, trace = tmp_path / "stats.json", tmp_path / "trace"
    done = run(make('print("hello\\n");'), "--stats", stats, "--trace", trace, "--timeout", PATIENCE)

    assert (0, "hello\n") == (done.returncode, done.stdout), done.stderr
    assert "the program ended: everybody waits" in done.stderr
    figures = json.loads(stats.read_text())
    of_machines = {"vm_exits", "injections", "virtual_machines"}
    assert {"instructions", "virtual_s", "wall_s", "ipc_messages", "page_faults"} | of_machines == set(figures)
    assert [] == figures["virtual_machines"]
    assert figures["page_faults"] == figures["ipc_messages"] / 2 > 0
    printed = bytes(event.byte for event in Trace.load(trace).select(events.DeviceOutput))  # type: ignore[union-attr]
    assert b"hello\n" == printed


def test_until_ends_a_program_that_would_go_on(make: Make) -> None:
    """Does a match end the run with status 0 at once, and is none a timeout?"""
    image = make('for (unsigned int i = 0;; i++) { print("%u\\n", i); L4_Sleep(L4_TimePeriod(1000)); }')

    done = run(image, "--until", "^17$", "--timeout", PATIENCE)
    assert 0 == done.returncode, done.stderr
    assert list(map(str, range(18))) == done.stdout.split()
    late = run(image, "--until", "never", "--timeout", "1")
    assert 3 == late.returncode
    assert "1 seconds are over" in late.stderr


def test_what_can_never_match_is_a_timeout_at_once(make: Make) -> None:
    """When all wait and nobody can wake them, is it over without waiting for the time to be?"""
    begin = time.monotonic()

    assert 3 == run(make(""), "--until", "never", "--timeout", "100").returncode
    assert time.monotonic() - begin < 20


def test_lines_are_typed_when_the_program_waits(make: Make) -> None:
    """Do lines of --send arrive in order, each when the program waits, or when its own pattern has matched?"""
    image = make("""
        for (int lines = 0; lines < 3;) {
            int c = L4_KDB_ReadChar_Blocked();
            if (c == '\\r')
                print(" line %d, please\\n", ++lines);
            else
                print("<%c>", c);
        }
        print("bye\\n");
    """)
    done = run(image, "--send", "ab", "--send", "line 1=>c", "--send", "d", "--until", "^bye$", "--timeout", PATIENCE)

    assert 0 == done.returncode, done.stderr
    assert "<a><b> line 1, please\n<c> line 2, please\n<d> line 3, please\nbye" == done.stdout.rstrip("\n")


@pytest.mark.parametrize("pause", ["", "L4_Sleep(L4_TimePeriod(300));"], ids=["all the time", "now and then"])
def test_a_program_that_polls_gets_its_lines(make: Make, pause: str) -> None:
    """Do lines of --send come to a program that looks at the serial port, each only when it looks for it?"""
    read = f"static int read(void) {{ while (!(l4_in8(0x3fd) & 1)) {{ {pause} }} return l4_in8(0x3f8); }}"
    image = make(
        """
        for (int lines = 0; lines < 2; lines++) {
            print("line?");
            L4_Sleep(L4_TimePeriod(20000)); /* nobody looks yet */
            print(" %s\\n", l4_in8(0x3fd) & 1 ? "too early" : "in time");
            for (int c; (c = read()) != '\\r';)
                print("<%c>", c);
        }
        print("\\nbye\\n");
        """,
        read,
    )
    done = run(image, "--send", "ab", "--send", "c", "--until", "^bye$", "--timeout", PATIENCE)

    assert (0, "line? in time\n<a><b>line? in time\n<c>\nbye") == (done.returncode, done.stdout.rstrip("\n")), (
        done.stderr
    )


SCREEN = """
static unsigned short *const cells = (unsigned short *)0xb8000;
static int at;
static void put(const char *text)
{
    for (; *text; text++)
        if (*text == '\\n')
            at += 80 - at % 80;
        else
            cells[at++] = 0x700 | (unsigned char)*text;
    l4_out8(0x3d4, 14), l4_out8(0x3d5, at >> 8), l4_out8(0x3d4, 15), l4_out8(0x3d5, at & 255);
}
"""


def test_a_program_can_have_a_screen(make: Make, tmp_path: Path) -> None:
    """Is what a program writes to the text buffer its console with --screen, and do lines of --send come as keys?"""
    image = make(
        """
        put("key? ");
        while (!(l4_in8(0x64) & 1)) ;
        put(l4_in8(0x60) == 0x1e ? "a\\n" : "another\\n");
        put("done\\n");
        for (;;) ;
        """,
        SCREEN,
    )
    done = run(image, "--screen", "--send", "a", "--until", "^done", "--timeout", PATIENCE)

    assert (0, ["key? a", "done"]) == (done.returncode, done.stdout.split("\n")[:2]), done.stderr


ASK_FOR_PORTS = """
    L4_Word_t flags;
    __asm__ volatile("pushfl\\n\\tpopl %0" : "=r"(flags));
    print("IOPL %lu, %s\\n", flags >> 12 & 3, L4_Feature(l4_kip, 3) ? L4_Feature(l4_kip, 3) : "no I/O fpages");
    print("%d\\n", l4_in8(0x3fd) >> 5 & 1);
"""


def test_how_programs_come_by_ports_can_be_chosen(make: Make) -> None:
    """Do both ways work, does the KIP say which it is, and is the one without I/O fpages what one gets?"""
    image = make(ASK_FOR_PORTS)
    privileged, mapped = "IOPL 3, no I/O fpages\n1\n", "IOPL 0, ioflexpages\n1\n"

    assert (privileged, privileged, mapped) == tuple(
        run(image, *io, "--timeout", PATIENCE).stdout for io in ((), ("--io", "iopl3"), ("--io", "fpages"))
    )


FAULTS = {  # a thread's first act, and how its pager, the root task, answers
    "port": ("l4_in8(0x3f8);", "--io fpages", "asks for port 0x3f8 again and again", "try --io iopl3"),
    "page": ("*(volatile int *)0x3f00000 = 1;", "", "faults at 0x3f00000 again and again", "--memory"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_without_end_is_told_once(make: Make, fault: str) -> None:
    """Is a thread whose pager answers but gives nothing told of, once, with what to try?"""
    act, options, told, hint = FAULTS[fault]
    other = f"static char stack[4096]; static void other(void) {{ {act} }}"
    image = make(
        """
        L4_ThreadId_t me = L4_Myself(), it = L4_GlobalId(100, 1), from;
        L4_ThreadControl(it, me, me, me, (void *)0xbf000200);
        L4_Start_SpIp(it, (L4_Word_t)stack + sizeof stack, (L4_Word_t)other);
        L4_Wait(&from);
        for (;;) {
            L4_Set_MsgTag(L4_Niltag);
            L4_ReplyWait(from, &from);
        }
        """,
        other,
    )
    done = run(image, *options.split(), "--timeout", "3")

    assert 3 == done.returncode
    assert 1 == done.stderr.count("again and again"), done.stderr
    assert told in done.stderr
    assert hint in done.stderr


def test_a_fault_that_ends_is_not_told(make: Make) -> None:
    """Is nothing told of a program that touches much memory, and the same again after it was taken away?"""
    image = make(
        """
        for (L4_Word_t i = 0; i < 3000; i++) {
            *(volatile L4_Word_t *)0x1000000 = i;
            L4_Flush(L4_FpageAddRights(L4_FpageLog2(0x1000000, 12), 7));
        }
        for (L4_Word_t at = 0x1000000; at < 0x1800000; at += 4096)
            *(volatile L4_Word_t *)at = at;
        print("done\\n");
        """
    )
    done = run(image, "--until", "done", "--timeout", PATIENCE)

    assert 0 == done.returncode
    assert "again" not in done.stderr


def test_the_root_task_has_a_command_line(make: Make) -> None:
    """Is the command line of the root task, by its record in BootInfo and by Multiboot's list, what was given?"""
    image = make(
        """
        L4_BootRec_t *record = L4_BootRec_Next(L4_BootInfo_FirstEntry((void *)L4_BootInfo(l4_kip)));
        L4_Word_t *mods = (L4_Word_t *)((L4_Word_t *)L4_MBI_Address(L4_BootRec_Next(record)))[6];
        print("%s|%s\\n", L4_SimpleExec_Cmdline(record), (char *)mods[4 * 2 + 2]);
        """
    )

    for given, expected in (((), image.name), (("--append", "vga -v"), f"{image.name} vga -v")):
        assert f"{expected}|{expected}\n" == run(image, *given, "--timeout", PATIENCE).stdout


@pytest.mark.parametrize("read", ["L4_KDB_ReadChar_Blocked()", "polled()"], ids=["kernel debugger", "serial port"])
def test_piped_input_reaches_the_console(make: Make, read: str) -> None:
    """Is the console one, whether a program asks the kernel for characters or polls the serial port?"""
    polled = (
        "static int polled(void) { while (!(l4_in8(0x3fd) & 1)) L4_Sleep(L4_TimePeriod(500)); return l4_in8(0x3f8); }"
    )
    body = f"int c; while ((c = {read}) != '.') l4_out8(0x3f8, (L4_Word8_t)(c ^ 0x20)); L4_KDB_PrintString(\"!\\n\");"
    image = make(body, polled if read == "polled()" else "")
    done = run(image, "--until", "!", "--timeout", PATIENCE, typed="abc.")

    assert (0, "ABC!") == (done.returncode, done.stdout.rstrip("\n")), done.stderr


def test_at_a_terminal_keys_go_to_the_program_and_waiting_costs_nothing(make: Make) -> None:
    """Does a program at a terminal get each key, do its lines begin at the left, and does the host sleep meanwhile?"""
    image = make('for (;;) { print("key\\n"); print("got %d\\n", L4_KDB_ReadChar_Blocked()); }')
    with at_a_terminal(command(image, "--timeout", PATIENCE)) as (user, process):
        until(user, b"key\r\n")
        os.write(user, b"\x03")
        until(user, b"got 3\r\nkey\r\n")
        time.sleep(0.3)
        before = cpu_seconds(process.pid)
        time.sleep(1.0)
        assert cpu_seconds(process.pid) - before < 0.3
        os.write(user, b"\x1d")
        assert 130 == process.wait(10.0)


def test_ctrl_c_stops_a_program_that_spins(make: Make) -> None:
    """Does SIGINT end a program that never enters the kernel, with status 130?"""
    image = make('print("spins\\n"); for (;;) ;')
    process = subprocess.Popen(command(image), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    finally:
        process.kill()
        process.communicate()

    assert 130 == process.returncode
    assert b"EIP" in errors
    assert b"Traceback" not in errors


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ('__asm__ volatile("ud2");', "exception 6"),
        ('__asm__ volatile("hlt");', "exception 13"),
        ('__asm__ volatile("int3; hlt");', "exception 3"),
        ("L4_Set_Pager(L4_GlobalId(500, 1)); *(volatile int *)0x2000000 = 1;", "the thread that should hear of it"),
    ],
)
def test_a_root_task_that_dies_is_status_4(make: Make, body: str, told: str) -> None:
    """Does a root task that the kernel halts end the run, with the reason and the place told?"""
    done = run(make(f'print("before\\n"); {body} print("after\\n");'), "--timeout", PATIENCE)

    assert (4, "before\n") == (done.returncode, done.stdout)
    assert "the program died: the root task was halted" in done.stderr
    assert told in done.stderr
    assert "EIP" in done.stderr


def test_a_root_task_that_stops_itself_is_not_dead(make: Make) -> None:
    """Does the rest of the system go on when the root task has itself halted by ExchangeRegisters?"""
    thread = """
        static char stack[4096] __attribute__((aligned(16)));
        static void thread(void) { L4_Sleep(L4_TimePeriod(1000)); print("still here\\n"); L4_Sleep(L4_Never); }
    """
    body = """
        L4_ThreadId_t other = L4_GlobalId(100, 1);
        L4_ThreadControl(other, L4_Myself(), L4_Myself(), L4_Myself(), (void *)0xbf000200);
        L4_Start_SpIp(other, (L4_Word_t)stack + sizeof stack, (L4_Word_t)thread);
        L4_Stop(L4_Myself());
    """
    done = run(make(body, thread), "--timeout", PATIENCE)

    assert (0, "still here\n") == (done.returncode, done.stdout), done.stderr


LIST_MODULES = """
    L4_BootInfo_t *info = (L4_BootInfo_t *)L4_BootInfo(l4_kip);
    L4_BootRec_t *record = L4_BootInfo_FirstEntry(info);
    print("valid %d\\n", L4_BootInfo_Valid(info));
    for (L4_Word_t i = 0; i < L4_BootInfo_Entries(info); i++, record = L4_BootRec_Next(record)) {
        if (L4_BootRec_Type(record) == L4_BootInfo_Module) {
            char *text = (char *)L4_Module_Start(record);
            print("[%s] %lu bytes: ", L4_Module_Cmdline(record), L4_Module_Size(record));
            for (L4_Word_t j = 0; j < L4_Module_Size(record) && j < 20; j++)
                print("%c", text[j]);
            print("\\n");
        } else if (L4_BootRec_Type(record) == L4_BootInfo_Multiboot) {
            L4_Word_t *mbi = (L4_Word_t *)L4_MBI_Address(record), *mods = (L4_Word_t *)mbi[6];
            print("flags %lx, upper %lu KB, modules", mbi[0], mbi[2]);
            for (L4_Word_t j = 3; j < mbi[5]; j++)
                print(" %s:%lu", (char *)mods[4 * j + 2], mods[4 * j + 1] - mods[4 * j]);
            print("\\n");
        }
    }
"""


def test_modules_are_in_memory_and_described(make: Make, tmp_path: Path) -> None:
    """Does the root task find each module with its contents and command line, in both formats?"""
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("first module")
    two.write_text("x" * 5000)
    empty = tmp_path / "empty"
    empty.touch()
    modules = (f"{one}=text a=b -v", str(two), f"{empty}=")
    sends = [word for module in modules for word in ("--module", module)]
    done = run(make(LIST_MODULES), *sends, "--timeout", PATIENCE)

    assert 0 == done.returncode, done.stderr
    assert [
        "valid 1",
        "[text a=b -v] 12 bytes: first module",
        "[two.txt] 5000 bytes: " + 20 * "x",
        "[] 0 bytes: ",
        f"flags 249, upper {59 * 1024} KB, modules text a=b -v:12 two.txt:5000 :0",
    ] == done.stdout.splitlines()


def test_the_kip_says_what_memory_is_for(make: Make, tmp_path: Path) -> None:
    """Do the descriptors tell the program's own memory, modules and tables from what is free?"""
    module = tmp_path / "module"
    module.write_bytes(bytes(5000))
    body = """
        for (L4_Word_t i = 0; i < L4_NumMemoryDescriptors(l4_kip); i++) {
            L4_MemoryDesc_t *m = L4_MemoryDesc(l4_kip, i);
            print("%lx %d %08lx %08lx\\n", L4_MemoryDescType(m), L4_IsMemoryDescVirtual(m), L4_MemoryDescLow(m),
                  L4_MemoryDescHigh(m));
        }
        print("%lx %lx\\n", l4_kip->root.low, l4_kip->root.high);
    """
    done = run(make(body), "--module", module, "--memory", "16", "--timeout", PATIENCE)
    *descriptors, region = done.stdout.splitlines()
    low, high = (int(word, 16) for word in region.split())

    assert 0x400000 == low
    assert [
        "1 1 00000000 dfffffff",
        "1 0 00000000 00bfffff",
        "2 0 00c00000 00ffffff",
        "4 0 000a0000 000fffff",
        f"2e 0 {low:08x} {high - 1:08x}",
        "3e 0 00bfd000 00bfefff",
        "1e 0 00bff000 00bfffff",
    ] == descriptors


def test_memory_comes_by_page_faults(make: Make) -> None:
    """Can a program use all memory below the kernel's, with nothing in the way, and is none of it mapped before?"""
    body = """
        L4_Word_t pages = 0;
        for (L4_Word_t at = 0x1000000; at < 0x13e8000; at += 4096) {
            if (*(volatile L4_Word_t *)at)
                print("not clean: %lx\\n", at);
            *(volatile L4_Word_t *)at = at;
            pages++;
        }
        *(volatile short *)0xb8000 = 1; /* a PC's screen is there for everybody */
        print("%lu pages\\n", pages);
    """
    done = run(make(body), "--timeout", PATIENCE)

    assert (0, "1000 pages\n") == (done.returncode, done.stdout), done.stderr


SIGMA0 = """
    L4_ThreadId_t from;
    L4_MsgTag_t tag;
    print("sigma0 of one's own\\n");
    for (tag = L4_Wait(&from);; tag = L4_ReplyWait(from, &from)) {
        L4_Word_t address;
        L4_Msg_t msg;
        L4_StoreMR(1, &address);
        L4_MsgClear(&msg);
        if ((L4_Label(tag) & ~7UL) == L4_LABEL_PAGE_FAULT)
            L4_MsgAppendMapItem(&msg, L4_MapItem(L4_FpageAddRights(L4_FpageLog2(address & ~0xfffUL, 12), 7), address));
        L4_MsgLoad(&msg);
    }
"""


def test_a_sigma0_of_ones_own(make: Make) -> None:
    """Does a given sigma0 take the place of the lab's, in memory of its own?"""
    done = run(make('print("root\\n");'), "--sigma0", make(SIGMA0, base=0x20000), "--timeout", PATIENCE)

    assert (0, ["root", "sigma0 of one's own"]) == (done.returncode, sorted(done.stdout.splitlines())), done.stderr


def test_a_run_can_be_repeated_exactly(make: Make, tmp_path: Path) -> None:
    """Do two runs with the same lines typed leave the same trace?"""
    image = make('for (;;) print("%c", L4_KDB_ReadChar_Blocked());')
    for name in ("one", "two"):
        assert 0 == run(image, "--send", "abc", "--until", "c", "--trace", tmp_path / name).returncode

    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


# -- what cannot be run


def refused(*arguments: str | Path) -> str:
    """What is said to arguments that cannot be used: one line."""
    done = run(*arguments)

    assert 2 == done.returncode, done.stderr
    assert "" == done.stdout
    (said,) = done.stderr.splitlines()
    assert said.startswith("l4lab: ")
    return said


def elf(*segments: tuple[int, int], entry: int | None = None, kind: int = 2, machine: int = 3, bits: int = 1) -> bytes:
    """An ELF file with segments at these addresses and of these sizes, of no contents."""
    entry = segments[0][0] if entry is None else entry
    header = b"\x7fELF" + bytes((bits, 1, 1)) + bytes(9)
    header += struct.pack("<HHIIIIIHHHHHH", kind, machine, 1, entry, 52, 0, 0, 52, 32, len(segments), 40, 0, 0)
    return header + b"".join(struct.pack("<8I", 1, 0, at, at, 0, size, 7, 0x1000) for at, size in segments)


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    """A script, an empty file, another machine's program, one to be relocated, a folder, a device, none at all."""
    file = tmp_path / "root.elf"

    for contents, told in (
        (b"#!/bin/sh\n", "root.elf is not an ELF executable"),
        (b"", "root.elf is not an ELF executable"),
        (elf((0x400000, 4096), machine=62), "EM_X86_64"),
        (elf((0x400000, 4096), kind=3), "ET_DYN"),
        (elf((0x400000, 4096))[:60], "root.elf"),
    ):
        file.write_bytes(contents)
        assert told in refused(file)
    assert "is not a file" in refused(tmp_path)
    assert "is not a file" in refused("/dev/zero")
    assert "no such file" in refused(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("segments", "entry", "told"),
    [
        (((0x400000, 0x1000), (0x400800, 0x1000)), None, "two segments at 0x400800"),
        (((0x400000, 0x8000000),), None, "such as --memory"),
        (((0xC0100000, 0x1000),), None, "link it to a lower address"),
        (((0xFFFFF000, 0x2000),), None, "link it to a lower address"),
        (((0x3C00000, 0x1000),), None, "such as --memory"),
        (((0x400000, 0x1000),), 0x500000, "entered at 0x500000, where it has nothing"),
        (((0x400000, 0),), None, "where it has nothing"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, segments: tuple[tuple[int, int], ...], entry: int | None, told: str
) -> None:
    """Segments over each other, too large, out of memory, the kernel's; an entry that leads nowhere."""
    file = tmp_path / "root.elf"
    file.write_bytes(elf(*segments, entry=entry))

    assert told in refused(file)


def test_two_programs_cannot_have_the_same_memory(tmp_path: Path) -> None:
    """Is a sigma0 that lies where root lies refused?"""
    file = tmp_path / "root.elf"
    file.write_bytes(elf((0x400000, 0x1000)))

    assert "need the same memory" in refused(file, "--sigma0", file)


@pytest.mark.parametrize("memory", ["0", "1", "-5", "4096", "99999999999999"])
def test_absurd_memory_is_refused(tmp_path: Path, memory: str) -> None:
    """No memory, too little, less than none, more than a 32-bit PC has, more than there is."""
    file = tmp_path / "root.elf"
    file.write_bytes(elf((0x400000, 0x1000)))

    assert "try --memory" in refused(file, "--memory", memory)


def test_arguments_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    """Each mistake is told in one line that names it."""
    file, large = tmp_path / "root.elf", tmp_path / "large"
    file.write_bytes(elf((0x400000, 0x1000)))
    with large.open("wb") as empty:
        empty.truncate(40 << 20)

    for arguments, told in (
        (("--module", "/nonexistent=text"), "cannot read /nonexistent"),
        (("--module", tmp_path), "is not a file"),
        (("--module", f"{file}={'x' * 5000}"), "shorten it"),
        (("--module", large, "--module", large), "such as --memory"),
        (("--sigma0", "/nonexistent"), "cannot read /nonexistent"),
        (("--append", "x" * 5000), "shorten it"),
        (("--io", "iopl0"), "--io iopl3 or --io fpages"),
        (("--until", "("), "not a regular expression"),
        (("--timeout", "-1"), "a timeout of -1.0 s"),
        (("--stats", "/nonexistent/stats.json"), "cannot write /nonexistent/stats.json"),
        (("--trace", "/"), "cannot write /"),
    ):
        assert told in refused(file, *arguments), arguments
