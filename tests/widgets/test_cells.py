# SPDX-License-Identifier: GPL-2.0-or-later
"""Dashboards in a real notebook kernel, whose cells are run again; and dashboards that are closed."""

from __future__ import annotations

import asyncio
import json
import os
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

from l4lab.errors import LabError
from l4lab.rig.named import boot
from l4lab.rig.rig import Rig
from l4lab.widgets.dashboard import Dashboard

Execute = Callable[..., str]
ROOT = Path(__file__).parents[2]
FIRST = "import weakref\nfrom l4lab import Dashboard, boot\nseen, boards = [], []"
CELL = """
rig = boot("tinyos", interactive=True)
seen.append(weakref.ref(rig))
board = Dashboard(rig)
boards.append(board)
board.run()
board"""
TOLD = """
import asyncio, json
for _ in range(500):
    if sum(r() is None for r in seen) >= {gone}:
        break
    await asyncio.sleep(0.01)
print(json.dumps([[r() is None for r in seen], [b.state for b in boards if b._rig is not None]]))"""


@pytest.fixture(scope="module")
def execute() -> Iterator[Execute]:
    """Runs text in a kernel, in a cell of a given name if one is given; what it printed."""
    manager, client = start_new_kernel(kernel_name="python3", env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert isinstance(client, BlockingKernelClient)

    def run(code: str, cell: str = "") -> str:
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        request = client.session.msg("execute_request", content, metadata={"cellId": cell} if cell else {})
        client.shell_channel.send(request)
        said = ""
        while True:
            message = client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") != request["header"]["msg_id"]:
                continue
            match message["msg_type"]:
                case "stream":
                    said += message["content"]["text"]
                case "error":
                    raise AssertionError("\n".join(message["content"]["traceback"]))
                case "status" if message["content"]["execution_state"] == "idle":
                    return said

    yield run
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize(("again", "cell"), [("\n# edited", "the cell"), ("", "")])
def test_a_cell_that_is_run_again_ends_what_it_made_before(execute: Execute, again: str, cell: str) -> None:
    """Is the old machine gone, known by its cell or by its text, and does the new one run?"""
    execute(FIRST)
    execute(CELL, cell)
    execute(CELL + again, cell)
    gone, states = json.loads(execute(TOLD.format(gone=1)))

    assert [True, False] == gone
    assert ["running"] == states


def test_other_cells_leave_a_machine_alone(execute: Execute) -> None:
    """Do two dashboards of one execution, and of two cells, run side by side?"""
    execute(FIRST)
    execute(CELL + CELL, "one")
    execute(CELL, "another")
    gone, states = json.loads(execute(TOLD.format(gone=0)))

    assert [False] * 3 == gone
    assert ["running"] * 3 == states


def test_a_closed_dashboard_lets_its_machine_go() -> None:
    """While it runs in the background, too: is the rig freed, and is that told who asks for it?"""

    async def story() -> tuple[Dashboard, weakref.ref[Rig]]:
        board = Dashboard(boot("tinyos", interactive=True))
        there = weakref.ref(board.rig)
        board.run()
        await asyncio.sleep(0.05)
        board.close()
        async with asyncio.timeout(20):
            while there() is not None:
                await asyncio.sleep(0.01)
        return board, there

    with ThreadPoolExecutor(1) as pool:  # the browser tests leave a loop running in the main thread
        board, there = pool.submit(asyncio.run, story()).result()

    assert there() is None
    with pytest.raises(LabError, match="was closed"):
        board.step()
