# SPDX-License-Identifier: GPL-2.0-or-later
"""What enters the kernel: traps, system calls, programs in Python."""
