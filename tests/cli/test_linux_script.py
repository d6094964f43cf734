# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's Linux, unmodified, through a script of commands: files, processes, /proc, the clock, and power-off.

Once for each way in which guest memory can be translated.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys

import pytest

from l4lab.cli.boot import PAGING
from l4lab.guests import guest

pytestmark = pytest.mark.linux

PATIENCE = 300  # seconds; some twenty are needed

FILES, FORKS, SLEEP = 40, 100, 3

# Each line ends with `= NAME value` on the console, from which the answers are read.
SCRIPT = (
    # Files: many small ones, their contents, links, a tree packed and unpacked again, a file system of their own.
    f"mkdir -p /tmp/a/b; for i in $(seq 1 {FILES}); do echo file $i > /tmp/a/b/$i; done",
    "echo = made $(ls /tmp/a/b | wc -l)",
    "echo = sum $(cat /tmp/a/b/* | md5sum)",
    "ln -s b/7 /tmp/a/link; mv /tmp/a/b/8 /tmp/a/moved; echo = links $(cat /tmp/a/link /tmp/a/moved)",
    "mkdir /mnt; mount -t tmpfs none /mnt; tar -C /tmp -cf - a | tar -C /mnt -xf -",
    "echo = copied $(ls /mnt/a/b | wc -l)",
    "dd if=/dev/zero of=/mnt/z bs=4096 count=256 2>/dev/null; echo = large $(stat -c %s /mnt/z) $(md5sum < /mnt/z)",
    "rm -r /mnt/a /mnt/z; umount /mnt && rm -r /tmp/a; echo = removed $(ls /tmp /mnt | grep -c a)",
    # Processes: a loop that starts one after the other, a pipeline, many at once.
    f"i=0; while [ $i -lt {FORKS} ]; do /bin/busybox true || break; i=$((i+1)); done; echo = forked $i",
    "echo = piped $(seq 1 2000 | sort -rn | head -n 1) $(seq 1 2000 | awk '{ s += $1 } END { print s }')",
    "for i in 1 2 3 4 5 6 7 8; do (sleep 0.1; echo $i >> /tmp/done) & done; wait; echo = parallel $(wc -l < /tmp/done)",
    # What the kernel says of itself.
    "echo = cpu $(grep -c ^processor /proc/cpuinfo) $(grep -o 'virtual CPU' /proc/cpuinfo)",
    "echo = memory $(awk '/MemTotal/ { print $2 }' /proc/meminfo)",
    "echo = self $(awk '/^Name/ { print $2 }' /proc/self/status) $(cat /proc/self/maps | wc -l)",
    "echo = ticks $(awk '/ 0:/ { print $2 }' /proc/interrupts)",
    "echo = all $(find /proc/sys /proc/net /proc/fs -type f -exec cat {} + 2>/dev/null | wc -c)",
    # The clock: date, uptime and sleeping agree.
    f"a=$(date +%s); u=$(cut -d. -f1 /proc/uptime); sleep {SLEEP}; echo = slept $(($(date +%s) - a)) "
    "$(($(cut -d. -f1 /proc/uptime) - u))",
    "echo = year $(date +%Y)",
)


@pytest.mark.parametrize("paging", PAGING)
def test_linux_does_what_a_script_says_and_turns_itself_off(paging: str) -> None:
    """Do files, processes, /proc and the clock work as on any PC, and is the end a clean one?"""
    linux = guest.get("linux")
    command = [sys.executable, "-m", "l4lab", "boot", str(linux.kernel), "--initrd", str(linux.initrd)]
    command += ["--paging", paging, "--timeout", str(PATIENCE)]
    for line in (*SCRIPT, "poweroff -f"):
        command += ["--send", line]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=2 * PATIENCE
    )

    said = {name: value.strip() for name, value in re.findall(r"^= (\w+) (.*)$", done.stdout.replace("\r", ""), re.M)}
    assert 0 == done.returncode, (done.stderr, done.stdout[-2000:])
    assert "the guest ended" in done.stderr
    files = b"".join(f"file {name}\n".encode() for name in sorted(str(i) for i in range(1, FILES + 1)))
    zeros = hashlib.md5(bytes(256 * 4096)).hexdigest()
    assert str(FILES) == said["made"]
    assert f"{hashlib.md5(files).hexdigest()} -" == said["sum"]
    assert "file 7 file 8" == said["links"]
    assert str(FILES - 1) == said["copied"]
    assert f"{256 * 4096} {zeros} -" == said["large"]
    assert "0" == said["removed"]
    assert str(FORKS) == said["forked"]
    assert f"2000 {2000 * 2001 // 2}" == said["piped"]
    assert "8" == said["parallel"]
    assert "1 virtual CPU" == said["cpu"]
    assert 90 * 1024 < int(said["memory"]) < 128 * 1024
    name, maps = said["self"].split()
    assert ("awk", True) == (name, int(maps) >= 3)
    assert int(said["ticks"]) > 100
    assert int(said["all"]) > 2_000
    assert all(SLEEP <= int(seconds) <= SLEEP + 1 for seconds in said["slept"].split())
    assert int(said["year"]) >= 2000
