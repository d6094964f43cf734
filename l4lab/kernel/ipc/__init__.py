# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages: sending, receiving, and what a message does on its way."""
