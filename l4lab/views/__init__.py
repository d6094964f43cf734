# SPDX-License-Identifier: GPL-2.0-or-later
"""Pure functions from a snapshot to SVG, HTML, DOT or plain text. No machine, no Jupyter and no clock in here.

`python -m l4lab.views.ipc`, and so on for each file, draws the built-in example.
"""
