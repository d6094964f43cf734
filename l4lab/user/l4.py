# SPDX-License-Identifier: GPL-2.0-or-later
"""The system calls of L4 X.2 for hosted programs: threads written in Python.

A hosted program is a function `main(l4)`. `l4` puts arguments into the thread's registers and message registers as
the IA-32 ABI says (X.2 manual, appendix IA-32), traps into the kernel, and takes the results from where the ABI says
they are. It knows nothing of the kernel: `Cpu` is all that a program has, and it is what a CPU offers any program.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from mypy_extensions import mypyc_attr

from l4lab.abi import utcb as u
from l4lab.abi.calls import (
    UNCHANGED,
    ErrorCode,
    ExregsControl,
    ScheduleResult,
    SpaceControlBits,
    SystemCall,
    TimeControl,
    UnmapControl,
)
from l4lab.abi.fpage import NILPAGE, Fpage
from l4lab.abi.frame import EAX, EBP, EBX, ECX, EDI, EDX, ESI
from l4lab.abi.ids import ANY_THREAD, NIL_THREAD, ThreadId
from l4lab.abi.kip import SIZE as KIP_SIZE
from l4lab.abi.kip import Kip
from l4lab.abi.message import IpcErrorWord, Message, MsgTag, describe_error
from l4lab.abi.time import NEVER, ZERO, Timeouts, period, timeouts

WAIT_FOREVER: Final = timeouts(NEVER, NEVER)
REPLY: Final = timeouts(ZERO, NEVER)  # a server does not wait for clients that are not listening
IPC: Final = SystemCall.IPC
_ERROR: Final = 1 << 15  # of the tag
_MR: Final = u.MR0_FROM_LOCATION // 4  # index of MR0 among the words of the UTCB


class Utcb(Protocol):
    """The 128 words of the thread's UTCB; MR0 is word 64."""

    words: memoryview  # for reading many of them

    def __getitem__(self, index: int, /) -> int:
        """Read a word."""

    def __setitem__(self, index: int, value: int, /) -> None:
        """Write a word."""

    def put(self, index: int, words: Sequence[int]) -> None:
        """Write several."""


class Cpu(Protocol):
    """What a program can do: what an IA-32 CPU in ring 3 can. Every access obeys the thread's own address space."""

    registers: memoryview  # the ten words of the register frame

    @property
    def utcb(self) -> Utcb:
        """The thread's UTCB."""

    def trap(self, call: SystemCall) -> None:
        """Enter the kernel by a system-call stub; back when the call is done."""

    def load(self, address: int, length: int) -> bytes:
        """Read memory."""

    def store(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write memory."""

    def port_in(self, port: int, size: int) -> int:
        """IN: read 1, 2 or 4 bytes from a port."""

    def port_out(self, port: int, size: int, value: int) -> None:
        """OUT: write 1, 2 or 4 bytes to a port."""

    def time_stamp(self) -> int:
        """RDTSC: cycles since power-on; one is one nanosecond."""


class IpcFailed(Exception):
    """An IPC ended with the error bit set; `error` says in which phase and why."""

    def __init__(self, error: IpcErrorWord) -> None:
        super().__init__(describe_error(error))
        self.error = error


class CallRefused(Exception):
    """The kernel refused a system call; `code` says why."""

    def __init__(self, call: SystemCall, code: int) -> None:
        name = ErrorCode(code).name.lower().replace("_", " ") if code in set(ErrorCode) else f"error {code}"
        super().__init__(f"{call.title} was refused: {name}")
        self.call = call
        self.code = code


class Received:
    """A message that arrived: who sent it, and what lay in MR0, MR1, ..."""

    __slots__ = ("sender", "words")

    def __init__(self, sender: ThreadId, words: Sequence[int]) -> None:
        self.sender = sender
        self.words = words  # MR0 first; untyped words, then typed ones

    @property
    def tag(self) -> MsgTag:
        """MR0."""
        return MsgTag.decode(self.words[0])

    @property
    def label(self) -> int:
        """What the sender says the message is."""
        return self.tag.label

    @property
    def untyped(self) -> list[int]:
        """The plain data words."""
        return list(self.words[1 : 1 + self.tag.untyped])

    @property
    def message(self) -> Message:
        """The message taken apart into words and items."""
        return Message.of(self.words)


class KernelInterface(NamedTuple):
    """What KernelInterface returns (X.2 manual, section KernelInterface)."""

    base: int  # address of the kernel interface page in the caller's space
    api_version: int
    api_flags: int
    kernel_id: int


@mypyc_attr(allow_interpreted_subclasses=True)
class L4:
    """The system-call bindings of one hosted thread."""

    def __init__(self, cpu: Cpu) -> None:
        self.cpu = cpu
        self._regs = cpu.registers
        self._utcb = cpu.utcb
        self._words, self._put = cpu.utcb.words, cpu.utcb.put  # every message reads and writes many
        self._mr0_address = cpu.registers[EDI]  # the kernel starts a thread with its UTCB's address in EDI
        self.trap = cpu.trap
        self.load = cpu.load
        self.store = cpu.store
        self.port_in = cpu.port_in
        self.port_out = cpu.port_out
        self.time_stamp = cpu.time_stamp

    # -- thread control registers: plain words of the UTCB --------------------------------------------------------

    def tcr(self, offset: int) -> int:
        """A thread control register by its offset in `abi.utcb`, for example `u.PAGER`."""
        return self._utcb[_MR + offset // 4]

    def set_tcr(self, offset: int, value: int) -> None:
        """Write a thread control register."""
        self._utcb[_MR + offset // 4] = value

    @property
    def my_id(self) -> ThreadId:
        """This thread's global identifier."""
        return ThreadId.decode(self.tcr(u.MY_GLOBAL_ID))

    @property
    def pager(self) -> ThreadId:
        """Who answers this thread's page faults."""
        return ThreadId.decode(self.tcr(u.PAGER))

    def accept(self, acceptor: int, *buffers: int) -> None:
        """BR0 and on: what the next receive may bring (X.2 manual, section Acceptor)."""
        for i, word in enumerate((acceptor, *buffers)):
            self._utcb[_MR + u.br(i) // 4] = word

    # -- IPC ------------------------------------------------------------------------------------------------------

    def ipc(
        self,
        to: int,
        from_: int,
        message: Message | Sequence[int] | None = None,
        times: Timeouts = WAIT_FOREVER,
    ) -> Received:
        """The Ipc system call: send to `to`, then receive from `from_`; either may be NIL_THREAD.

        Raises IpcFailed when the kernel says so. What was received stays in the message registers as well.
        """
        regs = self._regs
        if message is None:
            regs[ESI] = self._utcb[_MR] = 0
        else:
            words = message.words() if isinstance(message, Message) else message
            self._put(_MR, words)
            regs[ESI] = words[0]
        regs[EAX], regs[ECX], regs[EDX], regs[EDI] = to, times, from_, self._mr0_address
        self.trap(IPC)
        tag = regs[ESI]
        if tag & _ERROR:
            raise IpcFailed(IpcErrorWord.decode(self.tcr(u.ERROR_CODE)))
        count = 1 + (tag & 0x3F) + (tag >> 6 & 0x3F) if from_ else 1
        return Received(ThreadId.decode(regs[EAX]), u.WORDS[count].unpack_from(self._words, u.MR0_FROM_LOCATION))

    def send(self, to: int, message: Message | Sequence[int], timeout: int = NEVER) -> None:
        """Send only."""
        self.ipc(to, NIL_THREAD, message, timeouts(timeout, ZERO))

    def wait(self, timeout: int = NEVER) -> Received:
        """Receive from anyone."""
        return self.ipc(NIL_THREAD, ANY_THREAD, None, timeouts(ZERO, timeout))

    def receive(self, from_: int, timeout: int = NEVER) -> Received:
        """Receive from one thread only."""
        return self.ipc(NIL_THREAD, from_, None, timeouts(ZERO, timeout))

    def call(self, to: int, message: Message | Sequence[int], times: Timeouts = WAIT_FOREVER) -> Received:
        """Send, and receive the answer from the same thread."""
        return self.ipc(to, to, message, times)

    def reply_wait(self, to: int, message: Message | Sequence[int], receive: int = NEVER) -> Received:
        """Answer a client that is waiting, then receive from anyone. The loop of every server."""
        return self.ipc(to, ANY_THREAD, message, timeouts(ZERO, receive))

    def sleep(self, us: int) -> None:
        """Receive from oneself, which never happens, for so many microseconds."""
        with contextlib.suppress(IpcFailed):  # the timeout is what we wait for
            self.receive(self.my_id, period(us))

    # -- threads and spaces ---------------------------------------------------------------------------------------

    def thread_control(
        self, dest: int, space: int, scheduler: int = 0, pager: int = 0, utcb_location: int = UNCHANGED
    ) -> None:
        """ThreadControl: create, modify or delete a thread (privileged). Raises CallRefused."""
        regs = self._regs
        regs[EAX], regs[ECX], regs[EDX], regs[ESI], regs[EDI] = dest, pager, scheduler, space, utcb_location
        self._checked(SystemCall.THREAD_CONTROL)

    def space_control(
        self, space: int, control: int, kip_area: Fpage, utcb_area: Fpage, redirector: int = NIL_THREAD
    ) -> SpaceControlBits:
        """SpaceControl: give a new space its areas; with bit 30, make it a virtual machine. The old control word."""
        regs = self._regs
        regs[EAX], regs[ECX], regs[EDX], regs[ESI], regs[EDI] = space, control, kip_area, utcb_area, redirector
        self._checked(SystemCall.SPACE_CONTROL)
        return SpaceControlBits(regs[ECX])

    def exchange_registers(
        self,
        dest: int,
        control: int,
        sp: int = 0,
        ip: int = 0,
        flags: int = 0,
        handle: int = 0,
        pager: int = 0,
        items: Sequence[int] = (),
    ) -> tuple[ThreadId, ExregsControl, list[int]]:
        """ExchangeRegisters: read and change another thread. `items`: register items for MR1 and on.

        Returns the other form of dest's identifier, the old control word, and MR1 and on as the kernel left them.
        """
        regs, utcb = self._regs, self._utcb
        if items:
            utcb.put(_MR + 1, items)
        regs[EAX], regs[ECX], regs[EDX], regs[ESI], regs[EDI], regs[EBX], regs[EBP] = (
            *(dest, control, sp, ip, flags, handle, pager),
        )
        self._checked(SystemCall.EXCHANGE_REGISTERS)
        after = utcb.words[_MR + 1 : _MR + 1 + len(items)].tolist()
        return ThreadId.decode(regs[EAX]), ExregsControl(regs[ECX]), after

    def schedule(
        self,
        dest: int,
        priority: int = UNCHANGED,
        time: int = UNCHANGED,
        processor: int = UNCHANGED,
        preemption: int = UNCHANGED,
    ) -> ScheduleResult:
        """Schedule: priority and time of a thread that has me as its scheduler. `time_left` tells what it had left."""
        regs = self._regs
        regs[EAX], regs[ECX], regs[EDX], regs[ESI], regs[EDI] = dest, priority, time, processor, preemption
        self._checked(SystemCall.SCHEDULE)
        return ScheduleResult(regs[EAX])

    @property
    def time_left(self) -> tuple[int, int]:
        """After Schedule: what was left of the time slice and of the total quantum, in microseconds; 0: infinite."""
        left = TimeControl.decode(self._regs[EDX])
        return left.time_slice, left.total_quantum

    def thread_switch(self, to: int = NIL_THREAD) -> None:
        """ThreadSwitch: give the rest of my time slice to a thread, or to whoever is next."""
        self._regs[EAX] = to
        self.trap(SystemCall.THREAD_SWITCH)

    def system_clock(self) -> int:
        """SystemClock: microseconds since power-on."""
        self.trap(SystemCall.SYSTEM_CLOCK)
        return int(self._regs[EAX] | self._regs[EDX] << 32)

    def kernel_interface(self) -> KernelInterface:
        """KernelInterface: where the kernel interface page is, and what kernel it describes."""
        self.trap(SystemCall.KERNEL_INTERFACE)
        regs = self._regs
        return KernelInterface(regs[EAX], regs[ECX], regs[EDX], regs[ESI])

    def kip(self) -> Kip:
        """The kernel interface page, read."""
        return Kip(self.load(self.kernel_interface().base, KIP_SIZE))

    def unmap(self, *fpages: Fpage, flush: bool = False) -> list[Fpage]:
        """Unmap: revoke the rights named in the fpages; what has been done with the pages, in their rights fields."""
        regs, utcb = self._regs, self._utcb
        for i, fpage in enumerate(fpages):
            utcb[_MR + i] = fpage
        regs[EAX] = UnmapControl.make(flush=flush, k=len(fpages) - 1)
        regs[ESI], regs[EDI] = fpages[0], self._mr0_address
        self.trap(SystemCall.UNMAP)
        return [Fpage.decode(regs[ESI]), *(Fpage.decode(word) for word in utcb.words[_MR + 1 : _MR + len(fpages)])]

    def memory_control(self, fpages: Sequence[Fpage], attributes: Sequence[int]) -> None:
        """MemoryControl: cache attributes (privileged). An fpage's lowest two bits choose one of up to four."""
        regs, utcb = self._regs, self._utcb
        for i, fpage in enumerate(fpages):
            utcb[_MR + i] = fpage & ~7 if len(attributes) == 1 else fpage & ~4
        regs[EAX], regs[ESI], regs[EDI] = len(fpages) - 1, utcb[_MR], self._mr0_address
        regs[ECX], regs[EDX], regs[EBX], regs[EBP] = *attributes, *(0,) * (4 - len(attributes))
        self._checked(SystemCall.MEMORY_CONTROL)

    def processor_control(self, processor: int, internal: int = 0, external: int = 0, voltage: int = 0) -> None:
        """ProcessorControl: frequencies in kHz, and voltage (privileged)."""
        regs = self._regs
        regs[EAX], regs[ECX], regs[EDX], regs[ESI] = processor, internal, external, voltage
        self._checked(SystemCall.PROCESSOR_CONTROL)

    def _checked(self, call: SystemCall) -> None:
        self.trap(call)
        if not self._regs[EAX]:
            raise CallRefused(call, self.tcr(u.ERROR_CODE))

    # -- memory ---------------------------------------------------------------------------------------------------

    def load_word(self, address: int) -> int:
        """Read 32 bits."""
        return int.from_bytes(self.load(address, 4), "little")

    def store_word(self, address: int, value: int) -> None:
        """Write 32 bits."""
        self.store(address, value.to_bytes(4, "little"))


Program = Callable[[L4], None]
NO_WINDOW: Final = NILPAGE
