# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of the lab: servers, monitors, guests, and what they are written with. Built on `abi` alone."""
