# SPDX-License-Identifier: GPL-2.0-or-later
"""The root file system of the Linux guest: one static BusyBox and a script that makes a shell of it.

How the tree becomes bytes lives in `l4lab.images.cpio`; where BusyBox comes from, in `guest.py`.
"""

from __future__ import annotations

import hashlib

from l4lab.guests.drivers import FOLDER
from l4lab.images.cpio import CharDevice, Directory, File, Node, pack_gzip

BANNER = "l4lab: this is Linux, running in a virtual machine of an L4 kernel"

# The shell runs in a session of its own with the serial line as its terminal (setsid, cttyhack), or Ctrl-C would reach
# no one. Process 1 waits for it and then ends the machine in an orderly way; it must never return itself, for Linux
# panics when process 1 exits.
INIT = f"""\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /root /sbin /usr/bin /usr/sbin
/bin/busybox --install -s
export PATH=/sbin:/usr/sbin:/bin:/usr/bin HOME=/root TERM=vt100 PS1='\\w # '
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
for module in /{FOLDER}/*.ko; do [ -e "$module" ] && insmod "$module" $(cat "$module.options" 2>/dev/null); done
echo "{BANNER}"
cd /
setsid cttyhack sh
sync
poweroff -f
while :; do sleep 60; done
"""


def linux_initrd(busybox: bytes) -> bytes:
    """A compressed initrd around this (statically linked, 32-bit) BusyBox; the same bytes for the same BusyBox."""
    return pack_gzip(_tree(busybox))


def _tree(busybox: bytes) -> dict[str, Node]:
    return {
        "bin": Directory(),
        "bin/busybox": File(busybox, 0o755),
        "dev": Directory(),
        "dev/console": CharDevice(5, 1),  # process 1 gets it as its standard input and output before /dev is mounted
        "dev/null": CharDevice(1, 3, 0o666),
        "init": File(INIT.encode(), 0o755),
    }


def recipe() -> str:
    """Changes when the initrd made from the same BusyBox would; part of its name in the cache."""
    return hashlib.sha256(repr(_tree(b"")).encode()).hexdigest()[:8]
