# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual-machine monitors: programs that give a guest its memory, and do for it what the CPU leaves to them.

A library of small parts, and a monitor put together from them. Built on system calls alone; the order to read it in:

    fault           what the kernel says when a guest stopped, and what the monitor answers
    guest_cpu       a virtual CPU: making one, starting it, reaching into it
    start           what a guest starts with, and which instructions stop it
    guest_memory    the guest's memory: a window of the monitor's own
    paging          the guest's own page tables, walked
    guest_cpuid, msrs, guest_control, guest_ports    what the CPU would have done, one exit reason each
    emulate         instructions that touch a device's memory, or none; `alu` is their arithmetic
    scratch         all others of that kind, which the CPU executes on pages that are lent to it
    taskswitch      task switches by task-state segments, which VT-x leaves to its monitor
    exit_handlers   which part answers which exit
    guest_interrupts    how an interrupt reaches the guest, whatever it is doing
    pc              the devices of the guest's PC
    monitor         the main loop; how it ends is an `outcome`
    monitor_parts   the parts of a monitor that can be exchanged: what each has to do
    guarded_part, outside_pager, outside_interrupts, outside_devices, outside_loop    somebody else's, with checks
    start_linux, start_multiboot, start_flat    guests that begin in protected mode: what each starts with
    realmode        guests that begin in real mode: boot disks, setup code, somebody else's BIOS
    rom, bios, bios_call    the lab's BIOS: what lies in memory, which service answers what, one call of it
    bios_screen, bios_video, bios_disk, bios_keyboard, bios_keys, bios_clock, bios_system    its services
    together        several guests under one monitor, and guests with several CPUs
    link            the serial line and the page between two guests
"""
