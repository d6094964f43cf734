/* SPDX-License-Identifier: GPL-2.0-or-later */
/* All of L4 X.2 for programs in C. */
#ifndef L4_L4_H
#define L4_L4_H

#include <l4/bootinfo.h>
#include <l4/ipc.h>
#include <l4/kdebug.h>
#include <l4/misc.h>
#include <l4/schedule.h>
#include <l4/sigma0.h>
#include <l4/space.h>
#include <l4/thread.h>

#endif
