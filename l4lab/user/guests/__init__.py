# SPDX-License-Identifier: GPL-2.0-or-later
"""Tiny systems for a virtual-machine monitor to run, each in a module with its assembly text and a `build` function.

They need 16 MiB of RAM, the serial port at 0x3F8, and the demo (`tinyos`) also the two interrupt controllers and the
timer: all run under a bare PC emulator just as well as under our monitor, and that is how they are tested.
"""
