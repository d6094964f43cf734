# SPDX-License-Identifier: GPL-2.0-or-later
"""Pure functions from a snapshot to SVG, HTML, DOT or plain text. No machine, no Jupyter and no clock in here.

`python -m l4lab.views.ipc`, and so on for each file, draws the built-in example. Every function draws an empty
snapshot too, and says in words that there is nothing.

    registers.as_html(snapshot)             HTML   the registers; changed ones are marked, and tell the old value
    disassembly.as_html(lines)              HTML   the instructions that come next
    threads.as_html(snapshot)               HTML   who there is, and who waits for whom
    spaces.as_dot(snapshot)                 DOT    who mapped what to whom
    spaces.memory_map(snapshot, space)      SVG    one address space (a `SpaceView`) by address
    spaces.merge(regions)                   list   the mappings, neighbours joined
    ipc.sequence(snapshot)                  SVG    the latest messages as a sequence chart
    vmexits.histogram(counts)               SVG    how often each exit reason occurred
    vmexits.as_html(snapshot)               HTML   the latest exits, newest first
    console.as_text(output)                 text   a guest's serial output as a plain page
    text.status_line(snapshot)              text   where the run stands, in one line
    text.registers, threads, spaces, ipc, exits, everything (snapshot), text.space(snapshot, space),
    text.disassembly(lines), text.exit_counts(counts)
                                            text   the plain twins of all the pictures

HTML and SVG are `svg.Markup`: text that is escaped already. `svg` holds the colours and the builders, `example` the
example, and `pictures` wraps all this for the cells of a notebook.
"""
