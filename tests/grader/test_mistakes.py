# SPDX-License-Identifier: GPL-2.0-or-later
"""What students do: each mistake, made in the reference solution, is told for what it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from l4lab.grader import Report, check
from l4lab.grader.exercise import Exercise, exercises
from l4lab.grader.strip import solution_of

SOLUTION = solution_of("01_virtual_machines/first_exit.py").read_text()
NEXT = "reply.gpr(frame.EIP, fault.eip + fault.instruction_length)"


def checked(directory: Path, source: str) -> Report:
    """The report on a file with this text."""
    file = directory / "mine.py"
    file.write_text(source)
    return check("first_exit", file)


def changed(*changes: tuple[str, str]) -> str:
    """The solution with something else in some places."""
    source = SOLUTION
    for old, new in changes:
        assert old in source, f"the solution has no {old!r} any more"
        source = source.replace(old, new)
    return source


@pytest.mark.parametrize("exercise", exercises(), ids=lambda exercise: exercise.name)
def test_every_solution_passes(exercise: Exercise) -> None:
    """The reference solution passes all checks, and its report shows nothing to mend."""
    report = check(exercise.name, solution_of(exercise.file))

    assert report.passed, repr(report)
    assert len(exercise.checks) == sum(answer.passed is True for answer in report.result.answers)
    assert "Hint" not in repr(report)


@pytest.mark.parametrize("exercise", exercises(), ids=lambda exercise: exercise.name)
def test_every_untouched_exercise_fails_with_help(exercise: Exercise) -> None:
    """The student's copy as it comes fails, says what to do, and shows a picture."""
    report = check(exercise.name)

    assert not report.passed
    assert report.failed is not None
    assert report.failed.message
    assert exercise.hint in repr(report)
    assert "<svg" in report._repr_html_()


MISTAKES = {
    "EIP stays": ([(NEXT, "pass")], "After CPUID at .* the same exit again, 1000 times.*fault.instruction_length"),
    "EIP stays at ports": (
        [("console.send(fault.eax & 0xFF)\n    " + NEXT, "console.send(fault.eax & 0xFF)")],
        "After IN from port 0x3fd .* sent back to the same instruction",
    ),
    "EIP by a constant": ([("fault.eip + fault.instruction_length", "fault.eip + 2")], "is 1 bytes long.*moved by 2"),
    "lengths guessed": (
        [
            ("fault.eip + fault.instruction_length)\n    # END SOLUTION\n\n\ndef", "fault.eip + 2)\n\n\ndef"),
        ],
        "CPUID at .* is 3 bytes long, and EIP was moved by 2. Prefixes",
    ),
    "C before D": ([("frame.EDX", "frame.X"), ("frame.ECX", "frame.EDX"), ("frame.X", "frame.ECX")], "EBX, EDX, ECX"),
    "big endian": ([('"little"', '"big"')], "lowest byte"),
    "no vendor": ([("reply.gpr(frame.E", "0 and reply.gpr(frame.E"), ("0 and " + NEXT, NEXT)], "without EBX"),
    "VENDOR too short": ([('"YourNameHere"', '"Me"')], "12 plain characters, and is 'Me'"),
    "VENDOR is not text": (
        [('VENDOR.encode("ascii")', "b'YourNameHere'"), ('VENDOR = "Y', 'VENDOR = b"Y')],
        "12 plain",
    ),
    "another name": ([("VENDOR.encode", "'GenuineIntel'.encode")], "reads 'GenuineIntel'.*VENDOR is 'YourNameHere'"),
    "never ready": ([("value = READY if", "value = 0 if")], "gave 0x00, .* bit 5. It asked 1000 times"),
    "AL not merged": ([("fault.eax & ~0xFF | value", "value")], "keep fault.eax & ~0xFF"),
    "nothing is sent": ([("console.send(fault.eax & 0xFF)", "pass")], "wrote b'H', and nothing was sent"),
    "sent twice": (
        [("console.send(fault.eax & 0xFF)", "[console.send(fault.eax & 0xFF) for _ in 'ab']")],
        "wrote b'H', and b'HH' was sent",
    ),
    "EAX sent": ([("fault.eax & 0xFF", "fault.eax")], "console.send takes one byte, 0 to 255, and was given 0x"),
    "every leaf is leaf 0": ([(" if fault.eax == 0 else bytes(12)", "")], "leaf 0x7fff1234 and found EBX ="),
    "every port sends": ([("elif access.port == DATA:", "else:")], "OUT to port 0x3f9 .* sent b'!'"),
    "other ports raise": ([("else 0\n", "else 1 // 0\n")], "raised ZeroDivisionError"),
    "into nowhere": ([("fault.eip + fault.instruction_length", "0xE0000000")], "EIP was moved by"),
}


@pytest.mark.parametrize(("changes", "told"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_typical_mistake_is_told(tmp_path: Path, changes: list[tuple[str, str]], told: str) -> None:
    """The report names this mistake, and no later consequence of it."""
    report = checked(tmp_path, changed(*changes))

    assert not report.passed
    assert re.search(told, repr(report), re.DOTALL), repr(report)
    assert "l4lab/" not in repr(report), "lines of ours are no help"
