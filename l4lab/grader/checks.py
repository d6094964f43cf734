# SPDX-License-Identifier: GPL-2.0-or-later
"""Questions asked of what happened, one function each. The docstring is the question as the student reads it.

A check returns None if all is well; else a `Finding`: what was found, and what to try. It looks at the trace, through
`exchange`, and at nothing that a picture would not show. Which checks an exercise has is said in exercises.toml.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from l4lab.abi.frame import EAX, EBX, ECX, EDX, EIP, REGISTER_NAMES
from l4lab.grader.exchange import Exchange
from l4lab.grader.probe_guest import STRANGE_LEAF
from l4lab.grader.scene import SAME_AGAIN, Run
from l4lab.user.guests import greeting
from l4lab.user.monitor.outcome import End

DATA, LINE_STATUS = 0x3F8, 0x3FD  # ports of the serial line
READY = 0x20  # bit of the line status: a byte may be sent


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found instead of what should be."""

    message: str
    picture: str = "messages"  # where it can be seen


@dataclass(frozen=True, slots=True)
class Evidence:
    """What there is to look at: the runs, and what the student's file says of itself."""

    main: Run  # of the exercise's guest
    probe: Run
    vendor: object  # VENDOR of the student's file, whatever it is

    @property
    def all(self) -> list[Exchange]:
        """All answered exits."""
        return [*self.main.exchanges, *self.probe.exchanges]


Check = Callable[[Evidence], Finding | None]


def the_guest_goes_on(evidence: Evidence) -> Finding | None:
    """Does the guest go on after each exit?"""
    stays = next((each for each in evidence.all if not each.moves_on), None)
    if stays is None:
        return None
    again = f", and caused the same exit again, {SAME_AGAIN} times" if evidence.main.stuck else ""
    return Finding(
        f"After {stays.what} the guest was sent back to the same instruction{again}. "
        "The reply must move EIP behind it: fault.eip + fault.instruction_length."
    )


def eip_moves_by_the_length(evidence: Evidence) -> Finding | None:
    """Does EIP move by exactly the length of the instruction?"""
    for each in evidence.all:
        moved, length = each.after(EIP) - each.fault.eip, each.fault.instruction_length
        if moved != length:
            return Finding(
                f"{each.what} is {length} bytes long, and EIP was moved by {moved}. "
                "Prefixes make an instruction longer: take fault.instruction_length, not a number.",
            )
    return None


def the_vendor_is_told(evidence: Evidence) -> Finding | None:
    """Does CPUID leaf 0 tell the VENDOR of the file?"""
    vendor = evidence.vendor
    if not isinstance(vendor, str) or len(vendor) != 12 or not vendor.isascii() or not vendor.isprintable():
        return Finding(f"VENDOR should be a text of 12 plain characters, and is {vendor!r}. Choose another.", "guest")
    asked = next((each for each in evidence.main.exchanges if each.asks(0)), None)
    if asked is None:
        return Finding("The guest's CPUID was not answered. Does cpuid come back without an error?")
    told = _text(asked, EBX, EDX, ECX)
    if told == vendor:
        return None
    if _text(asked, EBX, ECX, EDX) == vendor:
        return Finding(f"The guest reads {told!r}: EDX and ECX have changed places. The order is EBX, EDX, ECX.")
    if "".join(told[at : at + 4][::-1] for at in (0, 4, 8)) == vendor:
        return Finding(f"The guest reads {told!r}: put the first character into the lowest byte ('little').")
    if not any(register in asked.answer for register in (EBX, EDX, ECX)):
        return Finding("CPUID leaf 0 was answered without EBX, EDX and ECX. They carry the vendor's name.")
    return Finding(f"The guest reads {told!r} in EBX, EDX, ECX, and VENDOR is {vendor!r}. Put 4 characters in each.")


def the_line_is_ready(evidence: Evidence) -> Finding | None:
    """Does the line status say that a byte may be sent?"""
    for each in evidence.main.exchanges:
        if each.reads(LINE_STATUS) and not each.after(EAX) & READY:
            again = f" It asked {SAME_AGAIN} times." if evidence.main.stuck else ""
            return Finding(
                f"IN from the line status gave {each.after(EAX) & 0xFF:#04x}, and the guest waits for bit 5.{again} "
                "Answer READY (0x20) in AL."
            )
    if not any(each.reads(LINE_STATUS) for each in evidence.main.exchanges):
        return Finding("The guest never came so far as to read the line status. Where does it stand?", "guest")
    return None


def in_changes_al_only(evidence: Evidence) -> Finding | None:
    """Does IN leave the rest of EAX as it was?"""
    for each in evidence.all:
        before, after = each.fault.eax, each.after(EAX)
        if each.access is not None and each.access.is_in and (before ^ after) >> 8:
            return Finding(
                f"{each.what} changed EAX from {before:#x} to {after:#x}. IN with AL fills the lowest 8 bits: "
                "keep fault.eax & ~0xFF. (This guest keeps its character in AH, and would lose it.)"
            )
    return None


def each_byte_is_sent(evidence: Evidence) -> Finding | None:
    """Does each OUT to the data port send AL, once?"""
    for each in evidence.main.exchanges:
        byte = bytes([each.fault.eax & 0xFF])
        if each.writes(DATA) and each.sent != byte:
            found = f"{each.sent!r} was" if each.sent else "nothing was"
            return Finding(
                f"The guest wrote {byte!r}, and {found} sent. Call console.send(fault.eax & 0xFF) once.", "console"
            )
    if not any(each.writes(DATA) for each in evidence.main.exchanges):
        return Finding("The guest never came so far as to write a byte. Where does it stand?", "guest")
    return None


def the_greeting_appears(evidence: Evidence) -> Finding | None:
    """Does the guest's greeting appear?"""
    expected = greeting.expected_console(str(evidence.vendor)).encode("latin-1", "replace")
    if evidence.main.console == expected:
        return None
    return Finding(
        f"The console shows {evidence.main.console[:200]!r}, and should show {expected!r}. "
        "Compare what the guest writes, byte by byte, with what appears.",
        "console",
    )


def the_guest_halts(evidence: Evidence) -> Finding | None:
    """Does the guest come to its end?"""
    outcome = evidence.main.rig.outcome
    if outcome is not None and outcome.end is End.HALTED:
        return None
    how = f"It ended otherwise: {outcome}." if outcome else "It was still running when the time was over."
    return Finding(f"The guest should halt after its greeting. {how} Where does it stand?", "guest")


def other_leaves_are_zero(evidence: Evidence) -> Finding | None:
    """Is a leaf that nobody knows answered by zeros?"""
    for each in evidence.probe.exchanges:
        if each.asks(STRANGE_LEAF):
            wrong = [register for register in (EAX, EBX, ECX, EDX) if each.after(register)]
            if wrong:
                found = ", ".join(f"{REGISTER_NAMES[register]} = {each.after(register):#x}" for register in wrong)
                return Finding(
                    f"Another guest asked for leaf {STRANGE_LEAF:#x} and found {found}. "
                    "Write all four registers, zeros where there is nothing to tell."
                )
            return None
    return Finding("Another guest asked for a leaf that nobody knows, and got no answer.")


def other_registers_are_quiet(evidence: Evidence) -> Finding | None:
    """Do the other registers of the serial port neither send nor stop the guest?"""
    for each in evidence.probe.exchanges:
        if each.sent and not each.writes(DATA):
            return Finding(f"Another guest's {each.what} sent {each.sent!r}. Only what is written to DATA is sent.")
    outcome = evidence.probe.rig.outcome
    if outcome is None or outcome.end is not End.HALTED or evidence.probe.console != b"*":
        return Finding(
            "Another guest, which also uses ports 0x3f9 and 0x3fa and then writes '*', "
            f"ended with {evidence.probe.console[:40]!r} on its console. Let IN from other ports read 0."
        )
    return None


def named(name: str) -> Check:
    """The check of that name."""
    check: Check = globals()[name]
    return check


def _text(each: Exchange, *registers: int) -> str:
    """What a guest finds in registers, four characters in each, lowest byte first."""
    return b"".join(each.after(register).to_bytes(4, "little") for register in registers).decode("latin-1")
