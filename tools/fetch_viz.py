#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetches Graphviz as WebAssembly for the notebooks, so that pictures appear where there is no `dot`.

It comes by npm, is checked against the sum below, and goes beside the dashboard. Where it cannot be had the dashboard
shows words instead of that picture: so this says what is missing, and ends with status 0.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@viz-js/viz@3.31.0"
SHA512 = (
    "afbce541d46f730bc8a631c682cf8a3561de13f3f9fc3abb93c64029a3026d9a"
    "a89b1081255efc815b9061a1f315571afa4074997d1f316f5415ebc23811b9d0"
)
# The program; under which licence it is (MIT); what it contains (Graphviz, Expat). There is no file LICENSE in it.
WANTED = {"package/dist/viz.js": "viz.js", "package/package.json": "viz-package.json"}
STATIC = Path(__file__).parents[1] / "l4lab" / "widgets" / "static"


def main() -> None:
    if all((STATIC / name).exists() for name in WANTED.values()):
        return
    npm = shutil.which("npm")
    if npm is None:
        print("l4lab: no npm here, so pictures of address spaces need `dot` (Debian: apt install graphviz)")
        return
    with tempfile.TemporaryDirectory() as folder:
        pack = subprocess.run([npm, "pack", "--fetch-retries=1", PACKAGE], cwd=folder, capture_output=True, text=True)
        packed = next(Path(folder).glob("*.tgz"), None)
        if pack.returncode or packed is None:
            print(f"l4lab: npm cannot fetch {PACKAGE}; pictures of address spaces need `dot`\n{pack.stderr}")
            return
        archive = packed.read_bytes()
    if hashlib.sha512(archive).hexdigest() != SHA512:
        sys.exit(f"l4lab: {PACKAGE} is not what it was when it was chosen (its SHA-512 differs); nothing was installed")
    STATIC.mkdir(exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member, name in WANTED.items():
            file = tar.extractfile(member)
            assert file is not None, f"{member} is in the archive that has this sum"
            (STATIC / name).write_bytes(file.read())


if __name__ == "__main__":
    main()
