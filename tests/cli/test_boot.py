# SPDX-License-Identifier: GPL-2.0-or-later
"""`l4lab boot` as a user has it: Debian's Linux at a pipe and at a terminal, and what cannot be booted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from l4lab.guests import guest
from l4lab.kernel import events
from l4lab.rig.trace import Trace
from l4lab.user.asm import assemble
from l4lab.user.guests import greeting
from l4lab.user.guests.flat import COM1, multiboot_image
from tests.cli.terminal import at_a_terminal, cpu_seconds, until

PATIENCE = 120.0  # seconds; a boot takes some ten


@pytest.fixture(scope="module")
def linux() -> guest.Guest:
    """Debian's kernel and our initrd."""
    return guest.get("linux")


def command(*arguments: str | Path) -> list[str]:
    """The command line that boots."""
    return [sys.executable, "-m", "l4lab", "boot", *map(str, arguments)]


def boot(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Boot without anybody at the keyboard."""
    line = command(*arguments)
    return subprocess.run(
        line,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * PATIENCE,
        errors="replace",
    )


def test_linux_boots_to_a_shell_does_what_it_is_told_and_halts(linux: guest.Guest, tmp_path: Path) -> None:
    """Do lines typed at the prompt run in the guest, is its end a clean one, and do stats and trace tell of it all?"""
    stats, trace = tmp_path / "stats.json", tmp_path / "boot.trace"
    done = boot(
        *(linux.kernel, "--initrd", linux.initrd, "--timeout", PATIENCE, "--stats", stats, "--trace", trace),
        *("--send", "echo $((6 * 7)) is the answer", "--send", "answer\\s+.*# =>poweroff -f"),
    )

    assert 0 == done.returncode, done.stderr
    assert "\n42 is the answer\n" in done.stdout.replace("\r", "")
    assert "unpacking" in done.stderr
    assert "the guest ended" in done.stderr
    figures = json.loads(stats.read_text())
    wanted = {"instructions", "virtual_s", "wall_s", "ipc_messages", "vm_exits", "page_faults", "injections"}
    wanted |= {"unknown", "debug_port", "virtual_machines"}
    assert wanted == set(figures)
    assert figures["instructions"] > 10**8
    assert {"CPUID", "IO_INSTRUCTION", "HLT"} <= set(figures["vm_exits"])
    assert figures["unknown"]["ports"]["out 0x80"] > 0  # where nobody answers, Linux waits a microsecond by writing
    counted = Trace.load(trace).counts()
    assert sum(figures["vm_exits"].values()) == counted[events.VmExit.__name__]
    assert figures["ipc_messages"] == counted[events.MessageSent.__name__]


def test_linux_goes_on_in_another_process_where_it_was_saved(linux: guest.Guest, tmp_path: Path) -> None:
    """Do a shell's variable, a program in the background and the clock go on in a run that restores them, twice?"""
    file = tmp_path / "saved"
    saved = boot(
        *(linux.kernel, "--initrd", linux.initrd, "--timeout", PATIENCE),
        *("--send", "x=6; (while :; do sleep 1; echo $((n = n + 1)) > /tmp/seconds; done) &"),
        *("--save-at", r"seconds; done\) &\s+.*# ", file),
    )
    assert 0 == saved.returncode, saved.stderr

    for factor in (7, 8):
        done = boot(
            *("--restore", file, "--timeout", PATIENCE, "--send", f"sleep 3; echo $((x * {factor})) is the answer"),
            *("--send", "cat /tmp/seconds; cat /proc/uptime", "--send", "poweroff -f"),
        )
        lines = done.stdout.replace("\r", "").splitlines()

        assert 0 == done.returncode, done.stderr
        assert f"{6 * factor} is the answer" in lines
        at = next(i for i, line in enumerate(lines) if line in ("2", "3"))
        assert 3 < float(lines[at + 1].split()[0]) < 10


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing to boot"),
        (("--restore", "nowhere"), "cannot read"),
        (("--restore", "file", "kernel"), "without image"),
        (("kernel", "--until", "x", "--save-at", "x", "file"), "one of the two"),
        (("kernel", "--save-at", "x", "nowhere/file"), "cannot write"),
    ],
)
def test_saving_and_restoring_say_what_they_need(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    """Are arguments that do not go together refused before anything runs?"""
    done = subprocess.run(command(*arguments), cwd=tmp_path, capture_output=True, text=True, check=False)

    assert 2 == done.returncode
    assert said in done.stderr


def test_at_a_terminal_keys_go_to_the_guest_and_an_idle_guest_lets_the_host_sleep(linux: guest.Guest) -> None:
    """Does Ctrl-C end a program of the guest, does waiting at the prompt cost little, and does Ctrl-] leave?"""
    line = command(linux.kernel, "--initrd", linux.initrd, "--timeout", PATIENCE)
    with at_a_terminal(line) as (user, process):
        assert b"Ctrl-]" in until(user, b"/ # ")
        os.write(user, b"sleep 1000\r")
        until(user, b"sleep 1000")
        time.sleep(0.5)
        os.write(user, b"\x03")
        until(user, b"/ # ")
        os.write(user, b"echo $((6 * 7))\r")
        until(user, b"\r\n42\r\n")
        time.sleep(0.5)
        before = cpu_seconds(process.pid)
        time.sleep(2.0)
        assert cpu_seconds(process.pid) - before < 1.0
        os.write(user, b"\x1d")
        assert 130 == process.wait(10.0)


DROP = "sync; echo 3 > /proc/sys/vm/drop_caches"  # so that the disk is read again


def test_linux_reads_and_writes_its_disk_at_its_screen(linux: guest.Guest, tmp_path: Path) -> None:
    """Does a stock driver find the disk, is what it writes read back, and is the file left as it was?

    All of it at the text screen, typed on the keyboard.
    """
    disk = tmp_path / "disk"
    contents = b"from the host\n".ljust(100 << 10, b".")
    disk.write_bytes(contents)
    done = boot(
        *(linux.kernel, "--initrd", linux.initrd, "--disk", disk, "--screen", "--timeout", 2 * PATIENCE),
        *("--send", f"head -n 1 /dev/sda; echo changed | dd of=/dev/sda conv=notrunc; {DROP}; head -n 2 /dev/sda"),
        *("--send", "poweroff -f"),
    )

    assert 0 == done.returncode, done.stderr
    assert "ata1.00: 200 sectors" in done.stdout
    said = [line.rstrip() for line in done.stdout.splitlines()]
    assert "from the host" in said
    assert "changed" in said
    assert "host" in said[said.index("changed") + 1]  # what is behind it on the disk
    assert contents == disk.read_bytes()


def test_at_a_terminal_the_screen_is_drawn_and_keys_are_the_guests(linux: guest.Guest) -> None:
    """Is the screen cleared and painted as the guest's is, and is what is typed there echoed on it?"""
    line = command(linux.kernel, "--initrd", linux.initrd, "--timeout", PATIENCE, "--screen")
    with at_a_terminal(line) as (user, process):
        painted = until(user, b"/ # ")
        assert b"\x1b[2J" in painted
        assert b"\x1b[0;37;40m" in painted
        os.write(user, b"echo $((6 * 7))\r")
        until(user, b"42 ")
        os.write(user, b"\x1d")
        assert 130 == process.wait(10.0)


def test_a_panic_is_status_4(linux: guest.Guest) -> None:
    """Does a kernel that finds no root file system die, with the reason told?"""
    done = boot(linux.kernel, "--timeout", PATIENCE)

    assert 4 == done.returncode, done.stderr
    assert "kernel panic: VFS: Unable to mount root fs" in done.stderr


def test_until_ends_at_a_match(linux: guest.Guest) -> None:
    """Does the run end with status 0 as soon as the console matches?"""
    done = boot(linux.kernel, "--until", r"Linux version 6\.\d+", "--timeout", PATIENCE)

    assert 0 == done.returncode
    assert "Run /init" not in done.stdout


def test_a_timeout_is_status_3_and_says_where_the_machine_stands(linux: guest.Guest) -> None:
    """Does a run that takes too long end, and is the next instruction shown?"""
    begin = time.monotonic()
    done = boot(linux.kernel, "--timeout", "1", "--until", "never")

    assert 3 == done.returncode
    assert "1 seconds are over" in done.stderr
    assert "→" in done.stderr
    assert "EIP" in done.stderr
    assert time.monotonic() - begin < 10


def test_ctrl_c_stops_within_a_second_and_says_where(linux: guest.Guest) -> None:
    """Without a terminal, does SIGINT end the run at once, with the place told?"""
    process = subprocess.Popen(
        command(linux.kernel), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 1)  # it runs
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
        took = time.monotonic() - begin
    finally:
        process.kill()
        process.communicate()

    assert 130 == process.returncode
    assert b"interrupted" in errors
    assert b"EIP" in errors
    assert b"Traceback" not in errors
    assert took < 3.0  # with the time that the interpreter takes to import the views and to end


def refused(*arguments: str | Path) -> str:
    """What is said to arguments that cannot be used."""
    done = boot(*arguments)

    assert 2 == done.returncode, done.stderr
    assert "" == done.stdout
    said = [line for line in done.stderr.splitlines() if not line.startswith("l4lab: unpacking")]
    assert 1 == len(said)
    assert said[0].startswith("l4lab: ")
    return said[0]


def test_what_is_no_kernel_is_refused(tmp_path: Path) -> None:
    """A file of zeros, an empty one, a folder, a device without end, none at all."""
    zeros, empty = tmp_path / "zeros", tmp_path / "empty"
    zeros.write_bytes(bytes(1 << 20))
    empty.touch()

    assert "not a Linux kernel" in refused(zeros)
    assert "is empty" in refused(empty)
    assert "not a file" in refused(tmp_path)
    assert "not a file" in refused("/dev/zero")
    assert "no such file" in refused(tmp_path / "nothing")


def test_a_truncated_kernel_is_refused(linux: guest.Guest, tmp_path: Path) -> None:
    """Half a bzImage is told as such."""
    half = tmp_path / "vmlinuz"
    half.write_bytes(linux.kernel.read_bytes()[: 1 << 20])

    assert "cut short" in refused(half)


def test_a_damaged_kernel_is_refused(linux: guest.Guest, tmp_path: Path) -> None:
    """A bzImage with some bytes of its payload changed is told as such."""
    damaged = tmp_path / "vmlinuz"
    image = bytearray(linux.kernel.read_bytes())
    image[1 << 20 : (1 << 20) + 64] = bytes(64)
    damaged.write_bytes(image)

    assert "damaged" in refused(damaged)


@pytest.mark.parametrize("memory", ["0", "1", "-5", "4096", "99999999999999"])
def test_absurd_memory_is_refused(linux: guest.Guest, memory: str) -> None:
    """No memory, too little, less than none, more than a 32-bit PC has, more than there is."""
    assert "try --memory" in refused(linux.kernel, "--memory", memory)


def test_what_does_not_fit_is_refused(linux: guest.Guest, tmp_path: Path) -> None:
    """A kernel larger than memory, and an initrd that does not fit beside it: both say how much would do."""
    large = tmp_path / "initrd"
    with large.open("wb") as file:
        file.truncate(64 << 20)

    assert "give it more, such as --memory" in refused(linux.kernel, "--memory", "16")
    assert "the initrd (64 MiB) does not fit" in refused(linux.kernel, "--initrd", large, "--memory", "64")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--initrd", "/nonexistent"), "cannot read /nonexistent"),
        (("--paging", "magic"), "there is no paging mode 'magic'; there is: nested"),
        (("--kind", "floppy"), "no kind of image 'floppy'; there is: auto, linux"),
        (("--kind", "multiboot"), "no Multiboot header"),
        (("--kind", "bios"), "a BIOS has 64, 128, 256 KiB"),
        (("--load", "0x1000"), "--load is for images of kind flat, and vmlinuz is booted as linux"),
        (("--load", "here"), "'here' is not an address"),
        (("--module", "/dev/null"), "/dev/null is not a file; give any file"),
        (("--until", "("), "not a regular expression"),
        (("--send", "*=>text"), "not a regular expression"),
        (("--timeout", "-1"), "a timeout of -1.0 s"),
        (("--timeout", "nan"), "a timeout of nan s"),
        (("--disk", "/nonexistent"), "cannot read /nonexistent"),
        (("--disk", "/dev/null"), "is no disk image"),
        (("--stats", "/nonexistent/stats.json"), "cannot write /nonexistent/stats.json"),
        (("--trace", "/"), "cannot write /"),
        (("--append", "caf\u00e9"), "ASCII"),
        (("--append", "x" * 5000), "shorten --append"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(linux: guest.Guest, arguments: tuple[str, str], told: str) -> None:
    """Each mistake is told in one line that names it."""
    assert told in refused(linux.kernel, *arguments)


def test_a_multiboot_kernel_and_a_boot_disk_boot(tmp_path: Path) -> None:
    """Are they recognised, and does what they print come out, with the status of a clean end?"""
    kernel, disk = tmp_path / "kernel", tmp_path / "disk"
    kernel.write_bytes(multiboot_image(greeting.build()))
    code = assemble("mov ax, 0x0e00 + 'o'\nint 0x10\nint 0x10\ncli\nhlt", 0x7C00, 16).code
    disk.write_bytes(code.ljust(510, b"\0") + b"\x55\xaa")

    of_kernel, of_disk = boot(kernel, "--module", f"{disk}=a disk"), boot(disk)
    of_the_guests_disk = boot("--disk", disk)

    assert (0, "Hello from GenuineIntel, guest!\n") == (of_kernel.returncode, of_kernel.stdout.replace("\r", ""))
    assert (0, "oo") == (of_disk.returncode, of_disk.stdout)
    assert (0, "oo") == (of_the_guests_disk.returncode, of_the_guests_disk.stdout)
    for arguments, said in ((("--kind", "linux"), "is the guest's disk"), (("--append", "x"), "booted as bootsector")):
        refused = boot("--disk", disk, *arguments)
        assert 2 == refused.returncode
        assert said in refused.stderr


def test_flat_code_boots_where_it_is_told(tmp_path: Path) -> None:
    """Does --kind flat take code without any header, and --load its address?"""
    code = tmp_path / "code"
    code.write_bytes(assemble(greeting.SOURCE, 0x20000, constants=COM1).code)

    done = boot(code, "--kind", "flat", "--load", "0x20000")

    assert (0, "Hello from GenuineIntel, guest!\n") == (done.returncode, done.stdout.replace("\r", ""))
