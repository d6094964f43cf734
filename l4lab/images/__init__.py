# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that hold programs, and how they are laid out in memory: bzImage, ELF, cpio, the Linux boot protocol.

Pure functions from bytes to bytes. Nothing here reads a file, knows a machine, or runs anything.
"""
