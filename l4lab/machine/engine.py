# SPDX-License-Identifier: GPL-2.0-or-later
"""The CPU engine: Unicorn, driven so that every run is exact and repeatable.

This is the only file that imports `unicorn`, and with its two cores (`core/`, in C; `pycore.py` where no compiler was
at hand) the only one that knows its private structures. What the rest of the machine sees is small: load the CPU from a
register frame, run at most so many instructions, store it back, say what happened. Which addresses are mapped, what an
exit means and who runs next are decided elsewhere.

The private offsets below are those of the pinned release. When the first engine of a process is made, `probe.py` checks
by behaviour every one that the chosen core uses, and refuses to start when one does not hold.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import warnings
from typing import Any, Final, Protocol

from l4lab.errors import LabError
from l4lab.machine.memory import Memory

# What run() returns beside exceptions (0..255) and VM exits (256 + AMD exit code). The same numbers as in core/core.h.
EVENT_BUDGET: Final = -1  # the deadline is reached, to the instruction; or the run has taken long
EVENT_ERROR: Final = -2  # the engine gave up; `info` has its error number
EVENT_WINDOW: Final = -3  # an interrupt could be taken now (asked for by set_window)
EVENT_IN: Final = -4  # IN or INS, before it happens
EVENT_OUT: Final = -5  # OUT or OUTS, before it happens
EVENT_DELIVER: Final = -6  # an event of a guest could not simply be delivered; `info` has it: see `INFO_KIND`
EVENT_BEFORE: Final = -7  # before INS, PUSHFD of virtual-8086 mode, or what may switch tasks; go_on() lets it happen
EVENT_SYSENTER: Final = -8  # SYSENTER of a guest, before it happens
EVENT_CPUID: Final = -9  # CPUID of a program, before it happens; of a guest it is a VM exit
# What can be injected, and what INFO_KIND says of an event that waits to be delivered.
KIND_EXTERNAL: Final = 0
KIND_EXCEPTION: Final = 1
KIND_SOFTWARE: Final = 2
KIND_NMI: Final = 3
VM_EXIT: Final = 0x100  # added to AMD's exit code

# Words of `info`.
INFO_VECTOR: Final = 0
INFO_ERROR_CODE: Final = 1
INFO_IS_INT: Final = 2
INFO_PORT: Final = 3
INFO_SIZE: Final = 4
INFO_VALUE: Final = 5
INFO_UC_ERROR: Final = 6
# Of an event to be delivered: what it is, the EIP that is to be pushed, and whether it was injected.
INFO_KIND: Final = INFO_IS_INT
INFO_BACK: Final = INFO_VALUE
INFO_INJECTED: Final = INFO_SIZE

# CPUX86State of Unicorn 2.1.4, in bytes. Registers are 8 bytes wide, EAX ECX EDX EBX ESP EBP ESI EDI from offset 0.
ENV_EIP, ENV_EFLAGS, ENV_CC_SRC, ENV_CC_OP, ENV_DIRECTION, ENV_HFLAGS, ENV_HFLAGS2 = 128, 136, 152, 168, 172, 176, 180
ENV_SEGS, ENV_LDT, ENV_TR, ENV_GDT, ENV_IDT = 184, 328, 352, 376, 400  # 24 bytes each: selector, base, limit, flags
ENV_EFER, ENV_SYSENTER_CS, ENV_SYSENTER_ESP, ENV_SYSENTER_EIP = 592, 4800, 4808, 4816
ENV_CR = 424  # CR0 CR1 CR2 CR3 CR4, 8 bytes each
ENV_ERROR_CODE, ENV_IS_INT, ENV_NEXT_EIP, ENV_DR, ENV_OLD_EXCEPTION = 5384, 5388, 5392, 5400, 5496
ENV_VM_VMCB, ENV_TSC_OFFSET, ENV_INTERCEPT, ENV_INTERCEPT_CR, ENV_INTERCEPT_DR = 5504, 5512, 5520, 5528, 5532
# The FPU. FPU_STATUS holds FSW and FCW; an x87 register takes 16 bytes, 10 of them used; an XMM register 64, the first
# 16 used. X87_ and SSE_STATUS are what the engine's arithmetic obeys: rounding is byte 1, precision byte 3.
ENV_FPU_TOP, ENV_FPU_STATUS, ENV_FPU_EMPTY, ENV_FPU_REGISTERS = 604, 608, 612, 624
ENV_X87_STATUS, ENV_SSE_STATUS, ENV_MXCSR, ENV_XMM = 776, 808, 816, 824
ENV_INTERCEPT_EXCEPTIONS, ENV_NESTED_CR3, ENV_RETURN_ADDRESS = 5536, 5544, 5560
ENV_SIZE = 5568
UC_CPU, CPU_ENV, CPU_CFLAGS, CPU_INTERRUPT_REQUEST, CPU_EXCEPTION_INDEX, CPU_CLASS = 440, 35408, 24, 28, 33184, 33200
TB_PC, TB_CS_BASE, TB_FLAGS, TB_SIZE, TB_ICOUNT, TB_CFLAGS, TB_CODE, TB_CODE_SIZE = 0, 8, 16, 20, 22, 24, 32, 40
TB_PAGES, TB_STRUCT = 72, 192
UC_COUNTER = 1368  # instructions begun in this run, from the engine's handle; kept up where a run has a count
TLB_TABLES = 64  # bytes in front of CPUX86State: mask and address of each TLB
# Counting in translated code: the credit, in front of CPUX86State, and where the CPU points to it. The engine has it
# for QEMU's -icount, which it does not offer. Behind it the structure is padded: there goes the block that began last.
CREDIT, CPU_CREDIT_POINTER, LAST_BLOCK = 16, 304, 8
# The translator's state, TCGContext: the address of the instruction in translation, the CPU's state as an operand, the
# engine's handle, the table of operations, and how many the block has.
UC_TRANSLATOR, TCG_PC_START, TCG_ENV, TCG_UC, TCG_DEFINITIONS, TCG_OPERATIONS = (
    768,
    0xA650,
    0x98F0,
    0x9970,
    0x9968,
    0x38,
)

TEMPORARY_NAME, DEFINITION_SIZE = 32, 32  # of its temporaries and its operations, whose numbers core/translation.c uses
OPERATIONS = {1: "set_label", 2: "call", 6: "movi_i32", 13: "ld_i32", 16: "st_i32", 18: "sub_i32", 64: "movi_i64"}
OPERATIONS |= {77: "st_i64"}

HF_CPL, HF_INHIBIT_IRQ, HF_TS, HF_GUEST = 3, 1 << 3, 1 << 11, 1 << 21
HF2_NMI, HF2_NESTED = 1 << 2, 1 << 6  # NMIs are blocked until IRET; the CPU walks the second-level tables

# The cores: native with translated code that counts for itself; native, called back from each block; in Python.
KINDS = ("native", "callback", "python")
_EVERYWHERE = 1, 0  # bounds of a hook: begin > end
_FUNCTIONS = (
    "uc_emu_start",
    "uc_emu_stop",
    "x86_cpu_do_interrupt_x86_64",
    "do_interrupt_x86_hardirq_x86_64",
    "cpu_loop_exit_noexc_x86_64",
    "tlb_flush_x86_64",
    "x86_cpu_exec_interrupt_x86_64",
    "tb_invalidate_phys_range_x86_64",
    "tlb_reset_dirty_x86_64",
    "tlb_flush_page_x86_64",
    "cpu_ldl_mmuidx_ra_x86_64",
    "gen_intermediate_code_x86_64",
    "tcg_func_start_x86_64",
    "cpu_ldub_code_x86_64",
    "cpu_lduw_code_x86_64",
    "cpu_ldl_code_x86_64",
    "tcg_gen_code_x86_64",
    "tcg_gen_callN_x86_64",
    "check_exit_request_x86_64",
    "helper_check_exit_request_x86_64",
    "tcg_gen_exit_tb_x86_64",
    "tcg_emit_op_x86_64",
    "tcg_gen_brcondi_i32_x86_64",
    "gen_new_label_x86_64",
    "tcg_temp_new_internal_x86_64",
    "tcg_temp_free_internal_x86_64",
)


class Clock(Protocol):
    """The machine's clock. One retired instruction is one cycle."""

    cycles: int  # instructions retired, events delivered, and what was charged
    retired: int  # instructions retired


class Engine:
    """One emulated CPU over a given RAM. All addresses are physical, all registers as the CPU's manual names them."""

    def __init__(self, ram: Memory, kind: str | None = None) -> None:
        """`kind`: native, callback or python; by default the native core if it was built."""
        self.kind = _kind_of_core() if kind is None else kind
        if kind is None:
            _probe(self.kind)
        self._ram = ram  # keeps the mapping alive as long as the engine
        uc = new_unicorn()
        self._uc: Any = uc
        uc.mem_map_ptr(0, ram.size, 7, ram.address)
        self._core = core = _attach_core(uc, ram, self.kind)
        self.env: memoryview = core.env  # the engine's CPU state, live
        self.env32: memoryview = self.env.cast("I")
        self.info: memoryview = core.info.cast("I")
        self.reset_state = bytes(self.env)  # protected mode, ring 0, paging off
        self.clock: Clock = core
        self.run = core.run  # run(frame_address, deadline) -> event
        self.charge = core.charge  # charge(cycles): move the clock without running; what it reads then
        self.swap = core.swap  # swap(save_into, load_from): exchange the whole CPU state
        self.set_cr3 = core.set_cr3
        self.flush_tlb = core.flush_tlb
        self.flush_page = core.flush_page  # flush_page(linear): as INVLPG does
        self.code_at = core.code_at  # code_at(linear): the instruction's bytes if the TLB still has its page, else b""
        ram.translated_by(core.forget_code)  # forget_code(begin, end): Python wrote there
        self.inject = core.inject  # inject(vector, kind, error_code, length)
        self.go_on = core.go_on  # go_on(): the next run executes the instruction that the last one stopped before
        self.set_window = core.set_window
        self.set_time = core.set_time  # set_time(native, offset): may a guest read the clock without an exit?

    def close(self) -> None:
        """Free the CPU, which has a gigabyte of address space. Clock and counts can still be read.

        Whoever keeps `env` or `env32` finds a released view; one derived from them keeps the engine until it goes, too.
        """
        self.env32.release()
        self.env.release()
        self._ram.translated_no_more()
        self._core.close()
        self._uc = None

    @property
    def retired(self) -> int:
        """Instructions retired since the engine was made."""
        return int(self._core.retired)

    @property
    def deliveries(self) -> int:
        """Events delivered through a guest's IDT; each costs one cycle."""
        return int(self._core.deliveries)

    @property
    def cycles(self) -> int:
        """The machine's clock: instructions retired, events delivered, and what was charged."""
        return int(self._core.cycles)

    @property
    def pending_injection(self) -> int:
        """The vector that waits to be delivered, or -1."""
        return int(self._core.pending)

    def write_register(self, name: str, value: int | tuple[int, ...]) -> None:
        """Set a register through the engine's public interface; `name` as in Unicorn's constants (CR0, GDTR, MSR)."""
        self._uc.reg_write(_constant(name), value)

    def read_register(self, name: str) -> int:
        """Read a register through the engine's public interface."""
        return int(self._uc.reg_read(_constant(name)))

    def read_msr(self, index: int) -> int:
        """Read a model-specific register of the emulated CPU."""
        return int(self._uc.msr_read(index))

    def write_msr(self, index: int, value: int) -> None:
        """Write a model-specific register of the emulated CPU."""
        self._uc.msr_write(index, value)

    def forget_all_code(self) -> None:
        """Drop every translation (after loading a program, restoring a checkpoint)."""
        self._uc.ctl_flush_tb()


def _constant(name: str) -> int:
    from unicorn import x86_const

    return int(getattr(x86_const, f"UC_X86_REG_{name}"))


def new_unicorn() -> Any:
    """The bare engine: protected mode, with SVM, and without a place to stop at."""
    import unicorn

    if unicorn.__version__ != "2.1.4":
        raise LabError(
            f"l4lab drives the internals of unicorn 2.1.4, but {unicorn.__version__} is installed. "
            "Try: pip install unicorn==2.1.4"
        )
    from unicorn.x86_const import UC_CPU_X86_QEMU64

    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
    uc.ctl_set_cpu_model(UC_CPU_X86_QEMU64)  # the default model has no SVM
    uc.ctl_exits_enabled(True)  # no "until" address: the engine would touch it after each run
    uc.ctl_set_exits([])
    # The engine's FPU comes up with nothing masked and a full stack: give it what FNINIT and a reset of SSE give.
    for name, value in (("FPCW", 0x037F), ("FPTAG", 0xFFFF), ("MXCSR", 0x1F80)):
        uc.reg_write(_constant(name), value)
    return uc


def _attach_core(uc: Any, ram: Memory, kind: str) -> Any:
    """Make the core for `uc` and register its callbacks."""
    from unicorn import (
        UC_HOOK_BLOCK,
        UC_HOOK_CODE,
        UC_HOOK_EDGE_GENERATED,
        UC_HOOK_INSN,
        UC_HOOK_INSN_INVALID,
        UC_HOOK_INTR,
        UC_HOOK_MEM_UNMAPPED,
    )
    from unicorn.unicorn_py3.unicorn import uclib
    from unicorn.x86_const import UC_X86_INS_CPUID, UC_X86_INS_IN, UC_X86_INS_OUT, UC_X86_INS_SYSENTER

    functions = function_addresses()
    core: Any

    def add_hook(event: int, callback: int, begin: int, end: int, *instruction: Any) -> None:
        hook = ctypes.c_size_t(0)
        status = uclib.uc_hook_add(
            ctypes.c_void_p(handle_of(uc)),
            ctypes.byref(hook),
            ctypes.c_int(event),
            ctypes.c_void_p(callback),
            ctypes.c_void_p(core.callbacks[0]),
            ctypes.c_uint64(begin),
            ctypes.c_uint64(end),
            *instruction,
        )
        if status:
            raise LabError(
                f"unicorn refused a hook (error {status}). Try: pip install --force-reinstall unicorn==2.1.4"
            )

    if kind != "python":
        native = _native_core()
        assert native is not None
        addresses = handle_of(uc), ram.address, ram.size, ram.code_address
        core = native(*addresses, tuple(functions.values()), _offsets(), uc, kind == "native")
    else:
        from l4lab.machine.pycore import PyCore

        core = PyCore(handle_of(uc), ram, functions, functools.partial(add_hook, UC_HOOK_CODE), uc)
        add_hook(UC_HOOK_EDGE_GENERATED, core.on_new_block, *_EVERYWHERE)
    _, on_block, on_interrupt, on_invalid, on_in, on_out, on_sysenter, on_cpuid, on_unmapped = core.callbacks
    for event, callback, instruction in (
        (UC_HOOK_BLOCK, on_block, None),
        (UC_HOOK_INTR, on_interrupt, None),
        (UC_HOOK_INSN_INVALID, on_invalid, None),
        (UC_HOOK_INSN, on_in, UC_X86_INS_IN),
        (UC_HOOK_INSN, on_out, UC_X86_INS_OUT),
        (UC_HOOK_INSN, on_sysenter, UC_X86_INS_SYSENTER),
        (UC_HOOK_INSN, on_cpuid, UC_X86_INS_CPUID),
        (UC_HOOK_MEM_UNMAPPED, on_unmapped, None),
    ):
        if callback:  # only one kind of core counts by a call from each block
            add_hook(event, callback, *_EVERYWHERE, *(() if instruction is None else (ctypes.c_int(instruction),)))
    return core


def handle_of(uc: Any) -> int:
    """Where the engine's own structure lies in this process."""
    handle = uc._uch
    return int(getattr(handle, "value", handle))


def _offsets() -> tuple[int, ...]:
    """What the native core needs to know, in the order of its own list."""
    return (
        *(UC_CPU, UC_TRANSLATOR),
        *(CPU_ENV, CPU_CFLAGS, CPU_INTERRUPT_REQUEST, CPU_EXCEPTION_INDEX, CPU_CLASS),
        *(ENV_EIP, ENV_EFLAGS, ENV_HFLAGS, ENV_SEGS, ENV_CR),
        *(ENV_ERROR_CODE, ENV_IS_INT, ENV_NEXT_EIP, ENV_OLD_EXCEPTION),
        *(ENV_TR, ENV_VM_VMCB, ENV_IDT, ENV_DIRECTION),
        ENV_SIZE,
        *(TB_PC, TB_CS_BASE, TB_FLAGS, TB_SIZE, TB_ICOUNT, TB_CFLAGS, TB_CODE, TB_CODE_SIZE, TB_PAGES, TB_STRUCT),
        *(TLB_TABLES, CREDIT, LAST_BLOCK),
        *(TCG_PC_START, TCG_ENV),
    )


@functools.cache
def function_addresses() -> dict[str, int]:
    """The functions that the engine exports beside its documented ones."""
    from unicorn.unicorn_py3.unicorn import uclib

    try:
        return {name: ctypes.cast(getattr(uclib, name), ctypes.c_void_p).value or 0 for name in _FUNCTIONS}
    except AttributeError as missing:
        raise LabError(
            f"this build of unicorn does not export {missing}. Try the wheel: pip install unicorn==2.1.4"
        ) from None


@functools.cache
def _native_core() -> Any:
    """The class of the native core; None where it was not built."""
    try:
        return importlib.import_module("l4lab.machine._core").Core
    except ImportError:
        return None


_HOW_TO_BUILD = (
    "To have it, install a C compiler and Python's headers (Debian: gcc python3-dev) and install l4lab again"
)


def _kind_of_core() -> str:
    """Native or python, as L4LAB_ENGINE says, else as there is."""
    wanted = os.environ.get("L4LAB_ENGINE", "")
    if wanted not in ("", *KINDS):
        raise LabError(f"L4LAB_ENGINE is {wanted!r}. Set it to native or python, or unset it.")
    if wanted in ("native", "callback") and _native_core() is None:
        raise LabError(
            f"L4LAB_ENGINE={wanted}, but the native core was not built. {_HOW_TO_BUILD}; or unset L4LAB_ENGINE."
        )
    if not wanted and _native_core() is None:
        _warn_slow()
    return wanted or ("python" if _native_core() is None else "native")


@functools.cache
def _warn_slow() -> None:
    warnings.warn(
        "the native core was not built: the machine runs several times slower, to the same results. "
        f"{_HOW_TO_BUILD}. Set L4LAB_ENGINE=python if this is meant.",
        RuntimeWarning,
        stacklevel=5,
    )


@functools.cache
def _probe(kind: str) -> None:
    from l4lab.machine.probe import probe

    probe(kind)
