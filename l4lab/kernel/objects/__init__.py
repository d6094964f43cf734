# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel keeps records of: threads, address spaces, frames; data, and what concerns one record only."""
