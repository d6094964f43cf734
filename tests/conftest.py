# SPDX-License-Identifier: GPL-2.0-or-later
"""What all tests share: properties are judged by what they find, not by how busy the machine is; and `--quick`.

With `--quick` (`make check`) each test runs once where it has seeds, and a property tries a few examples. What needs
a system that others wrote, a browser or patience is left to `make test`, which runs everything.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from l4lab.testing import System

if TYPE_CHECKING:
    from playwright.sync_api import Browser

EXAMPLES = 5  # of a property, with --quick
# What a test needs is told by its fixtures, or by a mark of its own.
NEEDS = {"linux": "linux", "debian_kernel": "linux", "fresh_cache": "linux", "page": "browser", "browser": "browser"}
LEFT_OUT = {"linux", "browser", "slow"}

settings.register_profile(
    "l4lab", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("l4lab")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option that `make check` gives."""
    parser.addoption("--quick", action="store_true", help="one seed, few examples, no Linux, no browser, nothing slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not quick, and make the rest so."""
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in NEEDS:
                item.add_marker(NEEDS[fixture])
    if not config.getoption("quick"):
        return
    seen: set[Any] = set()
    kept, left_out = [], []
    for item in items:
        again = _but_for_its_seed(item)
        is_quick = not LEFT_OUT.intersection(mark.name for mark in item.iter_markers()) and again not in seen
        (kept if is_quick else left_out).append(item)
        if again is not None:
            seen.add(again)
        _try_few(getattr(item, "obj", None), getattr(item, "cls", None))
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium, without a window: for one module, since no other loop of asyncio can run beside it."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium is not None, "these tests need a browser; on Debian: apt install chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    """Close the systems that a test has made. (Those of a fixture may be wanted by the next test.)"""
    before = len(System.opened)
    try:
        return (yield)
    finally:
        for system in System.opened[before:]:
            with suppress(Exception):  # one that a test has broken
                system.close()
        del System.opened[before:]


def _but_for_its_seed(item: pytest.Item) -> object:
    """What is the same for a test's other seeds; None if it has none."""
    call = getattr(item, "callspec", None)
    if call is None or "seed" not in call.params:
        return None
    others = tuple(sorted((name, repr(value)) for name, value in call.params.items() if name != "seed"))
    return item.nodeid.partition("[")[0], others


def _try_few(test: object, case: Any) -> None:
    """A property keeps its settings, the number of examples excepted; so does a model's test case."""
    test = getattr(test, "__func__", test)
    if isinstance(getattr(case, "settings", None), settings):
        case.settings = settings(case.settings, max_examples=min(EXAMPLES, case.settings.max_examples))
    elif getattr(test, "is_hypothesis_test", False):
        wanted = getattr(test, "_hypothesis_internal_use_settings", None) or settings()
        few = settings(wanted, max_examples=min(EXAMPLES, wanted.max_examples))
        vars(test)["_hypothesis_internal_use_settings"] = few
