/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Threads: the control registers of one's own, ThreadControl, ExchangeRegisters.
 * (X.2 manual, sections Thread control registers, ThreadControl, ExchangeRegisters.)
 */
#ifndef L4_THREAD_H
#define L4_THREAD_H

#include <l4/syscall.h>

/* Control registers: words below MR0. */
L4_INLINE L4_ThreadId_t L4_MyLocalId(void) { return (L4_ThreadId_t){(L4_Word_t)l4_utcb()}; }
L4_INLINE L4_ThreadId_t L4_MyGlobalId(void) { return (L4_ThreadId_t){l4_utcb()[-15]}; }
L4_INLINE L4_ThreadId_t L4_Myself(void) { return L4_MyGlobalId(); }
L4_INLINE L4_Word_t L4_ProcessorNo(void) { return l4_utcb()[-14]; }
L4_INLINE L4_Word_t L4_UserDefinedHandle(void) { return l4_utcb()[-13]; }
L4_INLINE void L4_Set_UserDefinedHandle(L4_Word_t handle) { l4_utcb()[-13] = handle; }
L4_INLINE L4_ThreadId_t L4_Pager(void) { return (L4_ThreadId_t){l4_utcb()[-12]}; }
L4_INLINE void L4_Set_Pager(L4_ThreadId_t thread) { l4_utcb()[-12] = thread.raw; }
L4_INLINE L4_ThreadId_t L4_ExceptionHandler(void) { return (L4_ThreadId_t){l4_utcb()[-11]}; }
L4_INLINE void L4_Set_ExceptionHandler(L4_ThreadId_t thread) { l4_utcb()[-11] = thread.raw; }
L4_INLINE L4_Word_t L4_ErrorCode(void) { return l4_utcb()[-9]; }
L4_INLINE L4_Word_t L4_XferTimeouts(void) { return l4_utcb()[-8]; }
L4_INLINE void L4_Set_XferTimeouts(L4_Word_t timeouts) { l4_utcb()[-8] = timeouts; }
L4_INLINE L4_ThreadId_t L4_IntendedReceiver(void) { return (L4_ThreadId_t){l4_utcb()[-7]}; }
L4_INLINE L4_ThreadId_t L4_ActualSender(void) { return (L4_ThreadId_t){l4_utcb()[-6]}; }
L4_INLINE void L4_Set_VirtualSender(L4_ThreadId_t thread) { l4_utcb()[-6] = thread.raw; }
L4_INLINE L4_Word_t L4_WordOfThread(L4_Word_t i) { return l4_utcb()[-4 - (int)i]; }
L4_INLINE void L4_Set_WordOfThread(L4_Word_t i, L4_Word_t word) { l4_utcb()[-4 - (int)i] = word; }

/* The byte by which a thread asks not to be preempted just now. */
L4_INLINE L4_Word8_t *l4_preemption_flags(void) { return (L4_Word8_t *)(l4_utcb() - 10); }
L4_INLINE void L4_EnablePreemption(void) { *l4_preemption_flags() &= (L4_Word8_t)~0x40; }
L4_INLINE void L4_DisablePreemption(void) { *l4_preemption_flags() |= 0x40; }

L4_INLINE L4_Bool_t L4_PreemptionPending(void)
{
    L4_Bool_t pending = (*l4_preemption_flags() & 0x80) != 0;
    *l4_preemption_flags() &= 0x7f;
    return pending;
}

/* Errors of system calls other than Ipc. */
#define L4_ErrOk 0
#define L4_ErrNoPrivilege 1
#define L4_ErrInvalidThread 2
#define L4_ErrInvalidSpace 3
#define L4_ErrInvalidScheduler 4
#define L4_ErrInvalidParam 5
#define L4_ErrUtcbArea 6
#define L4_ErrKipArea 7
#define L4_ErrNoMem 8

#define L4_UTCB_UNCHANGED ((void *)~0UL)

/*
 * Create, modify or delete a thread; associate an interrupt (then `dest` is the line, and `pager` its handler).
 * Zero if it was refused: then L4_ErrorCode says why.
 */
L4_INLINE L4_Word_t L4_ThreadControl(L4_ThreadId_t dest, L4_ThreadId_t space, L4_ThreadId_t scheduler,
                                     L4_ThreadId_t pager, void *utcb_location)
{
    L4_Registers_t r = {.eax = dest.raw,
                        .ecx = pager.raw,
                        .edx = scheduler.raw,
                        .esi = space.raw,
                        .edi = (L4_Word_t)utcb_location};
    l4_system_call(L4_ENTRY(ThreadControl), &r);
    return r.eax;
}

L4_INLINE L4_Word_t L4_AssociateInterrupt(L4_ThreadId_t line, L4_ThreadId_t handler)
{
    return L4_ThreadControl(line, line, L4_nilthread, handler, L4_UTCB_UNCHANGED);
}

L4_INLINE L4_Word_t L4_DeassociateInterrupt(L4_ThreadId_t line) { return L4_AssociateInterrupt(line, line); }

/* What ExchangeRegisters is to do, and what it found. */
#define L4_ExReg_Halt (1 << 0 | 1 << 8)
#define L4_ExReg_Resume (1 << 8)
#define L4_ExReg_AbortReceiveIpc (1 << 1)
#define L4_ExReg_AbortSendIpc (1 << 2)
#define L4_ExReg_AbortIpc (1 << 1 | 1 << 2)
#define L4_ExReg_sp (1 << 3)
#define L4_ExReg_ip (1 << 4)
#define L4_ExReg_sp_ip (1 << 3 | 1 << 4)
#define L4_ExReg_flags (1 << 5)
#define L4_ExReg_UserHandle (1 << 6)
#define L4_ExReg_pager (1 << 7)

L4_INLINE void l4_store(L4_Word_t *to, L4_Word_t word)
{
    if (to)
        *to = word;
}

/* The other form of dest's identifier; nilthread if it was refused. Any of the old values may be left out (0). */
L4_INLINE L4_ThreadId_t L4_ExchangeRegisters(L4_ThreadId_t dest, L4_Word_t control, L4_Word_t sp, L4_Word_t ip,
                                             L4_Word_t flags, L4_Word_t handle, L4_ThreadId_t pager,
                                             L4_Word_t *old_control, L4_Word_t *old_sp, L4_Word_t *old_ip,
                                             L4_Word_t *old_flags, L4_Word_t *old_handle, L4_ThreadId_t *old_pager)
{
    L4_Registers_t r = {.eax = dest.raw,
                        .ecx = control,
                        .edx = sp,
                        .ebx = handle,
                        .ebp = pager.raw,
                        .esi = ip,
                        .edi = flags};
    l4_system_call(L4_ENTRY(ExchangeRegisters), &r);
    l4_store(old_control, r.ecx);
    l4_store(old_sp, r.edx);
    l4_store(old_ip, r.esi);
    l4_store(old_flags, r.edi);
    l4_store(old_handle, r.ebx);
    l4_store(old_pager ? &old_pager->raw : 0, r.ebp);
    return (L4_ThreadId_t){r.eax};
}

/* Let a thread begin at an address: it need not wait for its pager's message. */
L4_INLINE void L4_Start_SpIp(L4_ThreadId_t thread, L4_Word_t sp, L4_Word_t ip)
{
    L4_ExchangeRegisters(thread, L4_ExReg_Resume | L4_ExReg_AbortIpc | L4_ExReg_sp_ip, sp, ip, 0, 0, L4_nilthread, 0,
                         0, 0, 0, 0, 0);
}

L4_INLINE void L4_Stop(L4_ThreadId_t thread)
{
    L4_ExchangeRegisters(thread, L4_ExReg_Halt, 0, 0, 0, 0, L4_nilthread, 0, 0, 0, 0, 0, 0);
}

#endif
