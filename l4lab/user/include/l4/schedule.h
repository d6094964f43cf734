/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Time and processors: SystemClock, ThreadSwitch, Schedule (X.2 manual, sections of these names). */
#ifndef L4_SCHEDULE_H
#define L4_SCHEDULE_H

#include <l4/syscall.h>

#define L4_UNCHANGED ~0UL

/* Microseconds since the machine was switched on. */
L4_INLINE L4_Clock_t L4_SystemClock(void)
{
    L4_Registers_t r = {0};
    l4_system_call(L4_ENTRY(SystemClock), &r);
    return (L4_Clock_t){(L4_Word64_t)r.edx << 32 | r.eax};
}

/* The rest of my time slice is for `dest`; for whoever is next, if it is nilthread. */
L4_INLINE void L4_ThreadSwitch(L4_ThreadId_t dest)
{
    L4_Registers_t r = {.eax = dest.raw};
    l4_system_call(L4_ENTRY(ThreadSwitch), &r);
}

L4_INLINE void L4_Yield(void) { L4_ThreadSwitch(L4_nilthread); }

/* The thread's state, zero if it was refused. */
L4_INLINE L4_Word_t L4_Schedule(L4_ThreadId_t dest, L4_Word_t time_control, L4_Word_t processor_control,
                                L4_Word_t priority_control, L4_Word_t preemption_control, L4_Word_t *old_time_control)
{
    L4_Registers_t r = {.eax = dest.raw,
                        .ecx = priority_control,
                        .edx = time_control,
                        .esi = processor_control,
                        .edi = preemption_control};
    l4_system_call(L4_ENTRY(Schedule), &r);
    if (old_time_control)
        *old_time_control = r.edx;
    return r.eax;
}

L4_INLINE L4_Word_t L4_Set_Priority(L4_ThreadId_t dest, L4_Word_t priority)
{
    return L4_Schedule(dest, L4_UNCHANGED, L4_UNCHANGED, priority & 0xff, L4_UNCHANGED, 0);
}

L4_INLINE L4_Word_t L4_Set_Timeslice(L4_ThreadId_t dest, L4_Time_t slice, L4_Time_t quantum)
{
    return L4_Schedule(dest, (L4_Word_t)slice.raw << 16 | quantum.raw, L4_UNCHANGED, L4_UNCHANGED, L4_UNCHANGED, 0);
}

L4_INLINE L4_Word_t L4_Set_ProcessorNo(L4_ThreadId_t dest, L4_Word_t processor)
{
    return L4_Schedule(dest, L4_UNCHANGED, processor, L4_UNCHANGED, L4_UNCHANGED, 0);
}

L4_INLINE L4_Word_t L4_Set_PreemptionDelay(L4_ThreadId_t dest, L4_Word_t sensitive_priority, L4_Word_t max_delay)
{
    L4_Word_t control = (sensitive_priority & 0xff) << 16 | (max_delay & 0xffff);
    return L4_Schedule(dest, L4_UNCHANGED, L4_UNCHANGED, L4_UNCHANGED, control, 0);
}

#endif
