# SPDX-License-Identifier: GPL-2.0-or-later
"""The X.2 words and layouts: what kernel and programs must agree on, and nothing that either of them does.

Reading order: `ids`, `fpage`, `message`, `time` (the words); `utcb`, `kip`, `frame`, `calls`, `protocols` (layouts and
numbers); `vm` and `vm_state` (the virtual-machine extension); `describe` (any message in readable lines).
"""
