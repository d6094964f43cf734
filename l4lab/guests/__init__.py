# SPDX-License-Identifier: GPL-2.0-or-later
"""Operating systems to run as guests: obtained, unpacked, and kept in the user's cache.

`guest.py` is the front: `get("linux")` and `listed()`. `debian.py` fetches Debian packages without root, `initrd.py`
builds a small root file system around BusyBox, `packaged.py` has the guests that are a single file of a package,
`cache.py` knows where all of it is kept. How a kernel image is laid out in a guest's memory is the business of
`l4lab.images`, and running it that of a monitor.
"""
