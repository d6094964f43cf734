# SPDX-License-Identifier: GPL-2.0-or-later
"""The archive of drivers, from modules as far as their order concerns: what they say that they depend on."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from l4lab.errors import LabError
from l4lab.guests import drivers


def package(folder: Path, depends: dict[str, str]) -> Path:
    """A kernel package with these modules."""
    for name, others in depends.items():
        file = folder / "lib" / name[0] / f"{name}.ko"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"\x7fELF...\0license=GPL\0depends=" + others.encode() + b"\0name=x\0")
    return folder


def test_each_module_comes_once_and_behind_all_it_needs(tmp_path: Path) -> None:
    """With shared dependencies, and dashes for underscores in names of files: is the order one that loads?"""
    root = package(
        tmp_path,
        {
            "libata": "scsi-mod", "scsi_mod": "", "pata_legacy": "libata", "sd_mod": "scsi_mod,t10-pi", "t10-pi": "",
            "crc32c_generic": "", "ext4": "", "unrelated": "libata",
        },
    )  # fmt: skip
    archive = gzip.decompress(drivers.disk_archive(root))

    found = [name.decode() for name in re.findall(rb"modules/\d\d-(\w+)\.ko\0", archive)]
    assert ["scsi_mod", "libata", "pata_legacy", "t10_pi", "sd_mod", "crc32c_generic", "ext4"] == found
    assert b"probe_mask=1" in archive


def test_a_missing_module_is_named(tmp_path: Path) -> None:
    """Is it said which module the package does not have?"""
    with pytest.raises(LabError, match="no module libata"):
        drivers.disk_archive(package(tmp_path, {"pata_legacy": "libata"}))
