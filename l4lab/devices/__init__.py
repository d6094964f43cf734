# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices of a PC as pure state machines: no wall clock, no threads, no knowledge of the machine they sit in.

The machine's board uses them for native drivers; a virtual machine monitor uses the same ones for its guest. What
lives here is what a driver can see through I/O ports and interrupt lines. What does not: who decodes the port access,
who delivers the interrupt, and what happens to the bytes that go out.
"""
