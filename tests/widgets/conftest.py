# SPDX-License-Identifier: GPL-2.0-or-later
"""A real JupyterLab in a real browser, once for all tests: starting them takes most of the time.

Where the browser is missing the tests fail: the dashboard is nothing without one. `make test` installs it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[2]
BOARD = ".l4-dashboard"
CELL = """\
from l4lab import Dashboard, boot
board = Dashboard(boot("tinyos", interactive=True), title="tinyos")
board"""
WITHOUT_DOT = """\
import os
from l4lab.widgets import panels
os.environ["PATH"] = ""
panels.drawn.cache_clear()
Dashboard(boot("greeting"))"""


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab whose folder holds one notebook, tour.ipynb."""
    home = tmp_path_factory.mktemp("lab")
    (home / "work").mkdir()
    (home / "work" / "tour.ipynb").write_text(json.dumps(notebook(CELL, WITHOUT_DOT)))
    settings = (
        home / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    )
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),  # where it is not installed
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "lab" / "user-settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--IdentityProvider.token=", f"--ServerApp.root_dir={home / 'work'}"]
    with open(home / "log", "wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}/api/status")
                break
            except urllib.error.URLError:
                assert server.poll() is None, (home / "log").read_text()
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def page(lab: str, browser: Browser) -> Page:
    """The notebook, open in JupyterLab, its cell executed: the dashboard stands below."""
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    page.goto(f"{lab}/lab/tree/tour.ipynb", wait_until="domcontentloaded")
    page.locator(".jp-CodeCell .cm-content").first.click(timeout=60_000)
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(timeout=60_000)
    page.keyboard.press("Shift+Enter")
    page.locator(f"{BOARD} .l4-status").wait_for(timeout=60_000)
    return page


@pytest.fixture(scope="session")
def pictures() -> Path:
    """Where screenshots go, for people to look at."""
    folder = ROOT / "test-output"
    folder.mkdir(exist_ok=True)
    return folder


def notebook(*cells: str) -> dict[str, object]:
    """A notebook with these cells."""
    return {
        "cells": [
            {"cell_type": "code", "id": f"c{n}", "metadata": {}, "outputs": [], "execution_count": None, "source": cell}
            for n, cell in enumerate(cells)
        ],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
