# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs in C: the headers say what the ABI says, and whatever compiler is there can build them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from l4lab.abi import kip, utcb
from l4lab.abi import time as t
from l4lab.abi.calls import KIP_ENTRIES, ExregsControl
from l4lab.abi.fpage import COMPLETE_ADDRESS_SPACE, COMPLETE_IO_SPACE, Fpage, IoFpage
from l4lab.abi.ids import ANY_LOCAL_THREAD, ANY_THREAD, ROOT_TASK, SIGMA0, global_id
from l4lab.abi.message import Acceptor, GrantItem, MapItem, Message, MsgTag, StringItem
from l4lab.errors import LabError
from l4lab.rig.rig import Rig
from l4lab.user import cc

EXAMPLES = Path(__file__).parents[2] / "examples"
Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Builds a program from the body of its main, runs it, and returns what it printed."""

    def run(body: str, before: str = "", **options: object) -> str:
        source, image = tmp_path / "program.c", tmp_path / "program.elf"
        source.write_text(f"#include <l4/l4.h>\n{before}\nint main(void)\n{{\n{body}\nreturn 0;\n}}\n")
        assert "" == cc.build(source, image, options=("-Wextra", "-Werror", "-Wno-override-init"))
        rig = Rig.for_program(image.read_bytes(), "program", **options)  # type: ignore[arg-type]
        stop = rig.run(2_000_000_000)
        assert "idle" == stop.reason, stop
        return rig.console.decode()

    return run


def test_words_are_those_of_the_abi(run: Run) -> None:
    """Do the macros and functions of the headers make the words that our ABI package makes?"""
    same = {
        "L4_GlobalId(77, 5).raw": global_id(77, 5),
        "L4_anythread.raw": ANY_THREAD,
        "L4_anylocalthread.raw": ANY_LOCAL_THREAD,
        "L4_Sigma0().raw": SIGMA0,
        "L4_Myself().raw": ROOT_TASK,
        "L4_CompleteAddressSpace.raw": COMPLETE_ADDRESS_SPACE & ~7,
        "L4_CompleteIoSpace.raw": COMPLETE_IO_SPACE,
        "L4_FpageAddRights(L4_FpageLog2(0x400000, 22), L4_FullyAccessible).raw": Fpage.at(0x400000, 22),
        "L4_FpageAddRights(L4_Fpage(0x5000, 4000), L4_ReadeXecOnly).raw": Fpage.at(0x5000, 12, "rx"),
        "L4_Address(L4_FpageLog2(0x401000, 22))": 0x400000,
        "L4_Size(L4_FpageLog2(0x401000, 22))": 1 << 22,
        "L4_SizeLog2(L4_CompleteAddressSpace)": 32,
        "L4_IoFpageLog2(0x3f8, 3).raw": IoFpage.at(0x3F8, 3),
        "L4_TimePeriod(0).raw": t.ZERO,
        "L4_TimePeriod(1000).raw": t.period(1000),
        "L4_TimePeriod(1025).raw": t.period(1025),
        "L4_TimePeriod(123456789).raw": t.period(123456789),
        "L4_Never.raw": t.NEVER,
        "L4_Timeouts(L4_ZeroTime, L4_TimePeriod(7))": t.timeouts(t.ZERO, t.period(7)),
        "L4_MapItem(L4_FpageLog2(0x5000, 12), 0x6000).raw[0]": MapItem.at(0x6000),
        "L4_GrantItem(L4_FpageLog2(0x5000, 12), 0x6000).raw[0]": GrantItem.at(0x6000),
        "L4_StringItem(100, (void *)0x1234).raw[0]": StringItem.make(length=100),
        "L4_MapGrantItems(L4_FpageLog2(0x5000, 12)).raw": Acceptor.of(Fpage.at(0x5000)),
        "L4_AddAcceptor(L4_StringItemsAcceptor, L4_UntypedWordsAcceptor).raw": Acceptor.of(strings=True),
        "L4_MsgTagAddLabel((L4_MsgTag_t){2 | 4 << 6}, 0x12).raw": MsgTag.make(label=0x12, untyped=2, typed=4),
        "L4_ExReg_Halt": ExregsControl.HALT | ExregsControl.ACT_ON_HALT,
        "L4_ExReg_sp_ip": ExregsControl.SP | ExregsControl.IP,
        "L4_UtcbSize(l4_kip)": utcb.SIZE,
        "(L4_Word_t)l4_kip->magic": kip.MAGIC,
    }
    same |= {
        f"(L4_Word_t)__builtin_offsetof(L4_KernelInterfacePage_t, {call.title})": kip.entry_offset(call)
        for call in KIP_ENTRIES
    }
    fields = {"BootInfo": kip.BOOT_INFO, "UtcbInfo": kip.UTCB_INFO, "ThreadInfo": kip.THREAD_INFO}
    fields |= {"PageInfo": kip.PAGE_INFO, "root": kip.ROOT_REGION, "MemoryInfo": kip.MEMORY_INFO}
    same |= {f"__builtin_offsetof(L4_KernelInterfacePage_t, {field})": at for field, at in fields.items()}
    printed = run("\n".join(f'print("%lx\\n", (L4_Word_t)({expression}));' for expression in same))

    assert [f"{expression} = {int(word):x}" for expression, word in same.items()] == [
        f"{expression} = {word}" for expression, word in zip(same, printed.split(), strict=True)
    ]


def test_control_registers_are_where_the_abi_has_them(run: Run) -> None:
    """Does each accessor of a control register reach its word of the UTCB?"""
    setters = {
        "L4_Set_UserDefinedHandle(0x11)": utcb.USER_DEFINED_HANDLE,
        "L4_Set_ExceptionHandler(L4_GlobalId(0, 0x11))": utcb.EXCEPTION_HANDLER,
        "L4_Set_XferTimeouts(0x11)": utcb.XFER_TIMEOUTS,
        "L4_Set_VirtualSender(L4_GlobalId(0, 0x11))": utcb.VIRTUAL_SENDER,
        "L4_Set_WordOfThread(0, 0x11)": utcb.THREAD_WORD_0,
        "L4_Set_WordOfThread(1, 0x11)": utcb.THREAD_WORD_1,
        "L4_LoadBR(0, 0x11)": utcb.br(0),
        "L4_LoadBR(32, 0x11)": utcb.br(32),
        "L4_LoadMR(63, 0x11)": utcb.mr(63),
    }
    printed = run("\n".join(f'{set_}; print("%lx\\n", l4_utcb()[{at // 4}]);' for set_, at in setters.items()))

    assert ["11"] * len(setters) == printed.split()


def test_messages_are_put_together_as_the_abi_does(run: Run) -> None:
    """Do words and items come in the order that the tag tells, whatever was appended first?"""
    expected = Message(0x12, [1, 2]).append_map(Fpage.at(0x5000), 0x5000).append_string(0x1234, 100)
    body = """
        L4_Msg_t msg;
        L4_MsgClear(&msg);
        L4_Set_MsgLabel(&msg, 0x12);
        L4_MsgAppendWord(&msg, 1);
        L4_MsgAppendMapItem(&msg, L4_MapItem(L4_FpageAddRights(L4_FpageLog2(0x5000, 12), 7), 0x5000));
        L4_MsgAppendWord(&msg, 2);
        L4_MsgAppendSimpleStringItem(&msg, L4_StringItem(100, (void *)0x1234));
        for (int i = 0; i < 7; i++)
            print("%lx ", msg.raw[i]);
    """

    assert [f"{word:x}" for word in expected.words()] == run(body).split()


def test_every_system_call_can_be_made(run: Run) -> None:
    """Does each call of the headers reach the kernel, with its arguments and results where they belong?"""
    body = """
        L4_ThreadId_t me = L4_Myself(), other = L4_GlobalId(100, 1), from;
        L4_Word_t old, sp, ip, handle, attributes[4] = {0};
        L4_ThreadId_t pager;
        L4_Word64_t before = L4_SystemClock().raw;
        L4_Sleep(L4_TimePeriod(500));
        print("sleep %d, error %lu\\n", L4_SystemClock().raw - before >= 500, L4_ErrorCode());
        print("create %lu\\n", L4_ThreadControl(other, me, me, me, (void *)0xbf000200));
        print("again %lu", L4_ThreadControl(other, L4_GlobalId(101, 1), me, me, L4_UTCB_UNCHANGED));
        print(", error %lu\\n", L4_ErrorCode());
        print("priority %d\\n", L4_Set_Priority(other, 50) != 0);
        L4_Set_UserDefinedHandle(0x77);
        L4_ExchangeRegisters(me, 0, 0, 0, 0, 0, L4_nilthread, &old, &sp, &ip, 0, &handle, &pager);
        print("exregs %lx %d %d\\n", handle, L4_IsThreadEqual(pager, L4_Sigma0()), sp / 4096 == (L4_Word_t)&sp / 4096);
        L4_ThreadSwitch(other);
        L4_Yield();
        print("memory %lu\\n", L4_MemoryControl(0, attributes));
        L4_ProcessorControl(0, 0, 0, 0);
        L4_Start_SpIp(other, (L4_Word_t)stack + sizeof stack, (L4_Word_t)thread);
        print("wait %lx", L4_Label(L4_Wait(&from)));
        L4_StoreMR(1, &old);
        print(" from %d: %lx\\n", L4_IsLocalId(from), old);
        print("lcall %lx\\n", L4_Label(L4_Lcall(from)));
        print("flush %lx\\n", L4_Rights(L4_Flush(L4_FpageAddRights(L4_FpageLog2((L4_Word_t)&stack, 12), 7))) & 2);
        print("delete %lu\\n", L4_ThreadControl(other, L4_nilthread, L4_nilthread, L4_nilthread, L4_UTCB_UNCHANGED));
        print("send %d", L4_IpcFailed(L4_Send(other)));
        print(", error %lu\\n", L4_ErrorCode());
        print("space %lu", L4_SpaceControl(other, 0, L4_Nilpage, L4_Nilpage, L4_nilthread, &old));
        print(", error %lu\\n", L4_ErrorCode());
        print("divide %lu\\n", (L4_Word_t)(123456789012ULL / (L4_Word64_t)(ip ? 1000 : 1)));
    """
    thread = """
        static char stack[4096] __attribute__((aligned(4096)));
        static void thread(void)
        {
            L4_ThreadId_t root = L4_Pager();
            L4_Msg_t msg;
            L4_MsgClear(&msg);
            L4_Set_MsgLabel(&msg, 0x21);
            L4_MsgAppendWord(&msg, 0x1234);
            L4_MsgLoad(&msg);
            L4_Send(root);
            for (;;) {
                L4_Receive(root);
                L4_Set_MsgTag((L4_MsgTag_t){0x33 << 16});
                L4_Send(root);
            }
        }
    """
    printed = run(body, thread).splitlines()

    assert [
        "sleep 1, error 3",
        "create 1",
        "again 0, error 3",
        "priority 1",
        "exregs 77 1 1",
        "memory 1",
        "wait 21 from 1: 1234",
        "lcall 33",
        "flush 2",
        "delete 1",
        "send 1, error 4",
        "space 0, error 3",
        "divide 123456789",
    ] == printed


def test_strings_are_copied(run: Run) -> None:
    """Do string items and buffers of the headers bring several strings into several buffers?"""
    thread = """
        static char stack[4096] __attribute__((aligned(16)));
        static void thread(void)
        {
            static char one[] = "hello", two[] = "world";
            L4_Msg_t msg;
            L4_MsgClear(&msg);
            L4_MsgAppendSimpleStringItem(&msg, L4_StringItem(sizeof one, one));
            L4_MsgAppendSimpleStringItem(&msg, L4_StringItem(sizeof two, two));
            L4_MsgLoad(&msg);
            L4_Send(L4_Pager());
            L4_Sleep(L4_Never);
        }
    """
    body = """
        L4_ThreadId_t me = L4_Myself(), other = L4_GlobalId(100, 1), from;
        static char buffers[2][16];
        L4_MsgBuffer_t strings;
        L4_ThreadControl(other, me, me, me, (void *)0xbf000200);
        L4_Start_SpIp(other, (L4_Word_t)stack + sizeof stack, (L4_Word_t)thread);
        L4_MsgBufferClear(&strings);
        for (int i = 0; i < 2; i++)
            L4_MsgBufferAppendSimpleRcvString(&strings, L4_StringItem(sizeof buffers[i], buffers[i]));
        L4_AcceptStrings(L4_StringItemsAcceptor, &strings);
        print("%d ", L4_IpcSucceeded(L4_Wait(&from)));
        print("%s %s", buffers[0], buffers[1]);
    """

    assert "1 hello world" == run(body, thread)


def test_a_program_may_lie_anywhere(tmp_path: Path) -> None:
    """Does a program linked to the first megabyte, or far up, run as one at the usual place does?"""
    source, image = tmp_path / "p.c", tmp_path / "p.elf"
    source.write_text('#include <l4/l4.h>\nint main(void) { print("at %lx", (L4_Word_t)main >> 12 << 12); return 0; }')
    for base in (0x10000, 0x20000, 0x400000, 0x3000000):
        cc.build(source, image, base)
        rig = Rig.for_program(image.read_bytes(), "p")
        rig.run()
        assert f"at {base:x}" == rig.console.decode()


def test_mistakes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Does a mistake in a program come with the compiler's words, and a missing compiler with what to install?"""
    source = tmp_path / "wrong.c"
    source.write_text("int main(void) { return nothing; }\n")

    with pytest.raises(LabError, match=r"(?s)wrong\.c does not compile.*nothing"):
        cc.build(source, tmp_path / "wrong")
    with pytest.raises(LabError, match="there is no file"):
        cc.build(tmp_path / "missing.c", tmp_path / "wrong")
    monkeypatch.setenv("CC", "/nonexistent/cc")
    with pytest.raises(LabError, match="no C compiler.*apt install gcc"):
        cc.build(source, tmp_path / "wrong")


@pytest.mark.parametrize("compiler", [name for name in cc.COMPILERS if shutil.which(name)])
def test_every_compiler_that_is_here_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str) -> None:
    """Does each build without a warning, every header by itself, and is the program the same to its user?"""
    monkeypatch.setenv("CC", compiler)
    for header in (cc.INCLUDE / "l4").glob("*.h"):
        source = tmp_path / "alone.c"
        source.write_text(f"#include <l4/{header.name}>\nint main(void) {{ return 0; }}\n")
        assert "" == cc.build(source, tmp_path / "alone", options=("-Wextra", "-Werror")), header.name
    assert "" == cc.build(EXAMPLES / "pager.c", tmp_path / "pager", options=("-Wextra", "-Werror"))
    rig = Rig.for_program((tmp_path / "pager").read_bytes(), "pager")
    rig.run()

    assert rig.console.endswith(b"the client's words add up to 6\npager: done\n")
